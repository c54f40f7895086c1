"""Every metric, in one table (pure): its name, its labels, what it says, and where it is read. docs/metrics.md is generated from
it.

No metric holds a point's value, and no label comes from one: names are those of the configuration or of a closed list, and of
peers at most PEERS_MAX. What comes over the network may not decide how many time series there are.
"""

from __future__ import annotations

import platform
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import TypeVar, get_args

from edge_runtime.bus.frames import Verdict
from edge_runtime.mesh.admission import Outcome
from edge_runtime.mesh.asking import Dropped, Why
from edge_runtime.mesh.peers import State as PeerState
from edge_runtime.mesh.routing import Reason
from edge_runtime.outbox.database import Trouble
from edge_runtime.pipeline.steady import PipelineState
from edge_runtime.ports_mesh import Role
from edge_runtime.sources.supervisor import Counters
from edge_runtime.watching import health
from edge_runtime.watching.exposition import Histogram, Metric, Rows, render
from edge_runtime.watching.seen import Belonging, Machine, Outbox, Seen, Together

PEERS_MAX = 32
"""Peers that are named; all others are one, OTHERS."""
OTHERS = "..."

LAG_BOUNDS_S = (0.001, 0.005, 0.02, 0.1, 0.5, 2.0, 10.0)

DISCARDED = ("gap", "bad", "filled", "overfull", "dropped", "journal full")
SKIPPED = ("bad", "late")
ASKED = (*(each.name.lower() for each in Verdict), *(each.name.lower() for each in Why))
ANSWERED = tuple(each.name.lower() for each in Outcome)
DECISIONS = tuple(each.name.lower() for each in Reason)
DROPPED = tuple(each.name.lower() for each in Dropped)
PEER_STATES = tuple(state for state in get_args(PeerState) if state != "offline")
BY_PEER = ("asked", "done", "refused", "failed", "cancelled", "unanswered")
OTHER = "other"
_SAID = ("unsigned", "forged", "role", "network", "no-site", "malformed")
REFUSED: dict[str, tuple[str, ...]] = {
    "configuration": (*_SAID, "older"),
    "command": (*_SAID, "flood", "verb", "expiry", "expired", "repeated", "audit"),
    "roster": ("forged", "conflict", "flood", "older"),
    "renewal": ("forged", "malformed", "disk", "moved"),
    "receipt": ("forged",),
    "broker": ("stranger",),
    "client": ("certificate", "password", "full", "publish", "packet", "will"),
}
"""By what it was; all other reasons are OTHER. broker: a place that could not show that it is of our site. client: at the broker
that we host, one without a certificate of the site or with a wrong password, one too many; a publish or a will where it may not
write; what is no MQTT, or too large."""
DISK_STATES = ("ok", *(each.value for each in Trouble))


@dataclass(frozen=True)
class Scrape:
    """What one scrape is made of."""

    seen: Seen
    machine: Machine
    lag: Histogram


T = TypeVar("T")
Read = Callable[[Scrape], Rows]


# --- how a line of the table is read ---------------------------------------------------------------------------------


def _one(read: Callable[[Scrape], float | Histogram | None]) -> Read:
    def rows(scrape: Scrape) -> Rows:
        value = read(scrape)
        return [] if value is None else [((), value)]

    return rows


def _told(*labels: Callable[[Scrape], str]) -> Read:
    """Always 1: it is the labels that say something."""
    return lambda scrape: [(tuple(label(scrape) for label in labels), 1)]


def _state(states: tuple[str, ...], read: Callable[[Scrape], str | None]) -> Read:
    """1 for the one that holds, 0 for all others."""

    def rows(scrape: Scrape) -> Rows:
        now = read(scrape)
        return [] if now is None else [((each,), each == now) for each in states]

    return rows


def _each(group: Callable[[Seen], Mapping[str, T]], read: Callable[[T], float]) -> Read:
    return lambda scrape: [((name,), read(each)) for name, each in group(scrape.seen).items()]


def _split(
    group: Callable[[Seen], Mapping[str, T]], read: Callable[[T], Mapping[str, float]], keys: tuple[str, ...] = ()
) -> Read:
    """By the name in the group, and by what it is counted under."""

    def rows(scrape: Scrape) -> Rows:
        for name, each in group(scrape.seen).items():
            for key, value in (dict.fromkeys(keys, 0) | dict(read(each))).items():
                yield (name, key), value

    return rows


def _counted(keys: tuple[str, ...], read: Callable[[Scrape], Mapping[str, float] | None]) -> Read:
    def rows(scrape: Scrape) -> Rows:
        found = read(scrape)
        return [] if found is None else [((key,), found.get(key, 0)) for key in keys]

    return rows


def _source(read: Callable[[Counters], int]) -> Read:
    return _each(lambda seen: seen.sources, lambda source: read(source.counters))


def _pipeline(read: Callable[[PipelineState], float]) -> Read:
    return _each(lambda seen: seen.pipelines, lambda each: read(each.state))


def _outbox(read: Callable[[Outbox], float]) -> Read:
    return _one(lambda scrape: read(scrape.seen.outbox))


def _mesh(read: Callable[[Together], float]) -> Read:
    return _one(lambda scrape: None if scrape.seen.mesh is None else read(scrape.seen.mesh))


def _of_mesh(keys: tuple[str, ...], read: Callable[[Together], Mapping[str, int]]) -> Read:
    return _counted(keys, lambda scrape: None if scrape.seen.mesh is None else read(scrape.seen.mesh))


def _process(read: Callable[[Machine], float | None]) -> Read:
    return _one(lambda scrape: read(scrape.machine))


def _by_peer(scrape: Scrape) -> Rows:
    if scrape.seen.mesh is None:
        return
    told: dict[str, dict[str, int]] = {}
    for number, (peer, counts) in enumerate(scrape.seen.mesh.by_peer.items()):
        mine = told.setdefault(peer if number < PEERS_MAX else OTHERS, dict.fromkeys(BY_PEER, 0))
        for outcome in BY_PEER:
            mine[outcome] += counts.get(outcome, 0)
    for peer, counts in told.items():
        for outcome, count in counts.items():
            yield (peer, outcome), count


def _site(read: Callable[[Belonging], float | None]) -> Read:
    return _one(lambda scrape: None if scrape.seen.belonging is None else read(scrape.seen.belonging))


def _refused(scrape: Scrape) -> Rows:
    for what, counts in scrape.seen.refused.items():
        reasons = REFUSED.get(what, ())
        told = {reason: counts.get(reason, 0) for reason in reasons}
        told[OTHER] = sum(count for reason, count in counts.items() if reason not in reasons)
        for reason, count in told.items():
            yield (what, reason), count


# --- the table -------------------------------------------------------------------------------------------------------

P = "edge_runtime_"

METRICS: tuple[Metric[Scrape], ...] = (
    # The gateway.
    Metric(P + "build_info", "gauge", ("version", "python_version"), "Always 1: what runs here",
           _told(lambda s: s.seen.version, lambda _: platform.python_version())),
    Metric(P + "gateway_info", "gauge", ("site", "gateway"), "Always 1: which gateway this is",
           _told(lambda s: s.seen.site, lambda s: s.seen.gateway)),
    Metric(P + "uptime_seconds", "gauge", (), "Since the gateway was built, or built anew",
           _one(lambda s: s.seen.uptime_s)),
    Metric(P + "health_status", "gauge", ("status",), "1 for the status that /health tells",
           _state(tuple(status for status, *_ in health.STATUSES), lambda s: health.judge(s.seen).status)),
    Metric(P + "health_problems", "gauge", (), "Problems that /health tells",
           _one(lambda s: len(health.judge(s.seen).problems))),
    Metric(P + "clock_synchronised", "gauge", (), "1: something keeps the wall clock right",
           _one(lambda s: s.seen.synced)),
    Metric(P + "service_failures_total", "counter", ("service",), "Services that a bug of ours ended; each was started again",
           _each(lambda seen: seen.failing, lambda each: each.count)),
    Metric(P + "event_loop_lag_seconds", "histogram", (), "How much later than due the event loop woke up; measured each second",
           _one(lambda s: s.lag)),
    # Sources.
    Metric(P + "source_connected", "gauge", ("device",), "1: the device answers",
           _each(lambda seen: seen.sources, lambda source: source.phase == "connected")),
    Metric(P + "source_reads_total", "counter", ("device",), "Good reads",
           _source(lambda c: c.reads)),
    Metric(P + "source_samples_total", "counter", ("device",), "Samples that the device gave",
           _source(lambda c: c.samples)),
    Metric(P + "source_failures_total", "counter", ("device",), "Reads and attempts to connect that failed",
           _source(lambda c: c.failures)),
    Metric(P + "source_timeouts_total", "counter", ("device",), "Those of the failures where nothing came in time",
           _source(lambda c: c.timeouts)),
    Metric(P + "source_connects_total", "counter", ("device",), "Attempts to connect: the first one, and each one again",
           _source(lambda c: c.opens)),
    Metric(P + "source_outages_total", "counter", ("device",), "How often the device became unreachable",
           _source(lambda c: c.bad_transitions)),
    Metric(P + "source_overruns_total", "counter", ("device",), "Reads of a polled device that were due while another one ran",
           _source(lambda c: c.overruns)),
    # Pipelines.
    Metric(P + "pipeline_working", "gauge", ("pipeline",), "0: it stands still, /health says why",
           lambda s: [((name,), name not in health.standing_still(s.seen)) for name in s.seen.pipelines]),
    Metric(P + "pipeline_model_info", "gauge", ("pipeline", "model", "executed_on"), "Always 1: the model, and where it runs",
           lambda s: [((name, each.model, each.state.executed_on), 1) for name, each in s.seen.pipelines.items() if each.model]),
    Metric(P + "pipeline_samples_total", "counter", ("pipeline",), "Samples handled",
           _pipeline(lambda p: p.samples)),
    Metric(P + "pipeline_windows_total", "counter", ("pipeline",), "Windows computed, those that failed among them",
           _pipeline(lambda p: p.windows)),
    Metric(P + "pipeline_windows_failed_total", "counter", ("pipeline",), "Windows that the model could not compute",
           _pipeline(lambda p: p.failed)),
    Metric(P + "pipeline_windows_discarded_total", "counter", ("pipeline", "reason"), "Windows that were never complete",
           _split(lambda seen: seen.pipelines, lambda each: each.state.discarded, DISCARDED)),
    Metric(P + "pipeline_samples_dropped_total", "counter", ("pipeline",), "Samples of a polled device that found the queue full",
           _pipeline(lambda p: p.dropped)),
    Metric(P + "pipeline_samples_skipped_total", "counter", ("pipeline", "reason"), "Samples that went into no window",
           _split(lambda seen: seen.pipelines, lambda each: each.state.skipped, SKIPPED)),
    Metric(P + "pipeline_bad_values_total", "counter", ("pipeline",), "Values of bad quality, of all points",
           _pipeline(lambda p: sum(p.bad.values()))),
    Metric(P + "pipeline_events_total", "counter", ("pipeline",), "Events raised and cleared (how many, of every privacy class)",
           _pipeline(lambda p: p.events)),
    Metric(P + "pipeline_waiting_samples", "gauge", ("pipeline",), "Samples of a polled device that wait in memory",
           _each(lambda seen: seen.pipelines, lambda each: each.waiting)),
    # The outbox.
    Metric(P + "outbox_state", "gauge", ("state",), "1 for the state of the disk",
           _state(DISK_STATES, lambda s: s.seen.outbox.state.trouble or "ok")),
    Metric(P + "outbox_size_bytes", "gauge", (), "On the disk, with the WAL",
           _one(lambda s: s.machine.outbox_bytes)),
    Metric(P + "outbox_size_limit_bytes", "gauge", (), "outbox.size_bytes_max",
           _outbox(lambda o: o.size_bytes_max)),
    Metric(P + "outbox_writing_seconds", "gauge", (), "How long the disk has been at the transaction that runs now",
           _outbox(lambda o: o.writing_s)),
    Metric(P + "outbox_lost_records_total", "counter", ("kind",), "Records that are gone: the cap, a corrupt file, refused",
           _counted(("event", "gap", "result", "sample"), lambda s: s.seen.outbox.lost)),
    Metric(P + "outbox_lost_samples_total", "counter", (), "Samples of the input journal that a corrupt file has cost",
           _outbox(lambda o: o.samples_lost)),
    Metric(P + "outbox_replaced_total", "counter", (), "Corrupt files that were set aside",
           _outbox(lambda o: o.replaced)),
    Metric(P + "journal_samples", "gauge", ("device",), "Samples in the input journal that a window still needs",
           lambda s: [((name,), rows) for name, rows in s.seen.outbox.journal.items()]),
    # Deliveries.
    Metric(P + "sink_connected", "gauge", ("sink",), "1: the far end takes records",
           _each(lambda seen: seen.sinks, lambda sink: sink.state.connected)),
    Metric(P + "sink_confirms", "gauge", ("sink",), "1: delivered means confirmed by the receiver; 0: to the broker only",
           _each(lambda seen: seen.sinks, lambda sink: sink.state.confirms)),
    Metric(P + "sink_waiting_records", "gauge", ("sink", "kind"), "Records on the disk that the far end does not have",
           _split(lambda seen: seen.sinks, lambda sink: sink.waiting)),
    Metric(P + "sink_records_total", "counter", ("sink",), "Records delivered",
           _each(lambda seen: seen.sinks, lambda sink: sink.state.records)),
    Metric(P + "sink_batches_total", "counter", ("sink",), "Batches delivered",
           _each(lambda seen: seen.sinks, lambda sink: sink.state.batches)),
    Metric(P + "sink_refused_records_total", "counter", ("sink",), "Records that the far end will never take",
           _each(lambda seen: seen.sinks, lambda sink: sink.state.refused)),
    # The broker and the mesh.
    Metric(P + "broker_hosted", "gauge", (), "1: this gateway hosts a broker that runs",
           _one(lambda s: s.seen.broker.hosted if s.seen.broker is not None
                else None if s.seen.mesh is None else s.seen.mesh.state.role == "host")),
    Metric(P + "mesh_role", "gauge", ("role",), "1 for the part that this gateway has",
           _state(get_args(Role), lambda s: None if s.seen.mesh is None else s.seen.mesh.state.role)),
    Metric(P + "mesh_connected", "gauge", (), "1: there is a connection to the site's broker",
           _mesh(lambda m: m.state.connected)),
    Metric(P + "mesh_peers", "gauge", ("state",), "Other gateways of the site, as this one sees them",
           _of_mesh(PEER_STATES, lambda m: m.peers)),
    Metric(P + "mesh_tasks_asked_total", "counter", ("outcome",), "Windows of ours sent to peers, and what became of them",
           _of_mesh(ASKED, lambda m: m.asked)),
    Metric(P + "mesh_tasks_answered_total", "counter", ("outcome",), "Windows of peers that came here, and what became of them",
           _of_mesh(ANSWERED, lambda m: m.answered)),
    Metric(P + "mesh_peer_tasks_total", "counter", ("peer", "outcome"), f"Windows sent, by peer ({PEERS_MAX} by name)",
           _by_peer),
    Metric(P + "mesh_tasks_backlog", "gauge", (), "Windows of peers that wait or run here",
           _mesh(lambda m: m.backlog)),
    Metric(P + "mesh_round_trip_seconds", "gauge", (), "From asking a peer to its answer: median of the last ones; 0: none",
           _mesh(lambda m: m.round_trip_s)),
    Metric(P + "mesh_decisions_total", "counter", ("reason",), "Why windows were computed where they were",
           _of_mesh(DECISIONS, lambda m: m.decisions)),
    Metric(P + "mesh_answers_dropped_total", "counter", ("reason",), "Answers that were not accepted",
           _of_mesh(DROPPED, lambda m: m.dropped)),
    Metric(P + "mesh_bad_messages_total", "counter", (), "Messages on the site's broker that were none of ours",
           _mesh(lambda m: m.bad_messages)),
    Metric(P + "mesh_name_conflicts_total", "counter", (), "Other gateways that came with our name",
           _mesh(lambda m: m.conflicts)),
    Metric(P + "mesh_name_taken", "gauge", (), "1: another gateway keeps our name, and we stay out of the mesh",
           _mesh(lambda m: m.name_taken)),
    # The site, where it has an authority.
    Metric(P + "site_roster_revision", "gauge", (), "Of the roster that this gateway has",
           _site(lambda b: b.revision)),
    Metric(P + "site_members", "gauge", (), "Members in that roster: gateways, people, receivers, equipment",
           _site(lambda b: b.members)),
    Metric(P + "site_revoked", "gauge", (), "1: this gateway was revoked, and nobody of the site hears it",
           _site(lambda b: b.revoked)),
    Metric(P + "site_certificate_remaining_seconds", "gauge", (), "Left of our certificate; none if the clock is wrong",
           _site(lambda b: b.remaining_s)),
    Metric(P + "refused_total", "counter", ("what", "reason"), "What came from others and was not taken",
           _refused),
    # The machine.
    Metric(P + "board_temperature_celsius", "gauge", (), "The hottest zone of the machine",
           _process(lambda m: m.vitals.temperature_c)),
    Metric(P + "board_hot", "gauge", (), "1: hot enough that the machine slows down",
           _process(lambda m: m.vitals.hot)),
    Metric(P + "board_on_battery", "gauge", (), "1: a battery gives the power",
           _process(lambda m: m.vitals.battery)),
    Metric(P + "disk_free_bytes", "gauge", (), "Free where `data_dir` is",
           _process(lambda m: m.vitals.disk_free_bytes)),
    Metric("process_cpu_seconds_total", "counter", (), "CPU time of this process, user and system",
           _process(lambda m: m.process.cpu_s)),
    Metric("process_resident_memory_bytes", "gauge", (), "Memory of this process (RSS)",
           _process(lambda m: m.process.resident_bytes)),
    Metric("process_open_fds", "gauge", (), "Open files and connections of this process",
           _process(lambda m: m.process.open_files)),
)  # fmt: skip


def page(scrape: Scrape) -> bytes:
    """What GET /metrics answers."""
    return render(METRICS, scrape)
