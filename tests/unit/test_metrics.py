"""The page that Prometheus reads: its format, the names, the number of its series, and what is written about it."""

from __future__ import annotations

import json
import math
import re
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from watched import full, values

from edge_runtime.mesh.membership import State
from edge_runtime.outbox.database import Trouble
from edge_runtime.outbox.store import StoreState
from edge_runtime.ports_mesh import Vitals
from edge_runtime.watching import document, metrics
from edge_runtime.watching.exposition import Histogram, Metric, render
from edge_runtime.watching.metrics import LAG_BOUNDS_S, METRICS, Scrape
from edge_runtime.watching.seen import Machine, Outbox, Process, Seen, Together

ROOT = Path(__file__).parents[2]
SERIES_MAX = 500
"""Of one gateway with one device, pipeline and sink, whatever comes over the network."""


def scrape(seen: Seen) -> Scrape:
    machine = Machine(4096, Vitals(41.5, True, False, 10**9), Process(1.25, 5 * 2**20, 17))
    lag = Histogram(LAG_BOUNDS_S)
    for lag_s in (0.0005, 0.001, 0.3, 60.0):
        lag.observe(lag_s)
    return Scrape(seen, machine, lag)


def test_the_page_says_what_is_seen() -> None:
    found = values(metrics.page(scrape(full())))
    p = "edge_runtime_"
    expected: dict[tuple[str, tuple[str, ...]], float] = {
        (p + "gateway_info", ("plant", "g1")): 1,
        (p + "uptime_seconds", ()): 1.5,
        (p + "health_status", ("ok",)): 1,
        (p + "health_status", ("failed",)): 0,
        (p + "service_failures_total", ("pipeline wear",)): 2,
        (p + "source_connected", ("press",)): 1,
        (p + "source_reads_total", ("press",)): 7,
        (p + "source_samples_total", ("press",)): 6,
        (p + "source_overruns_total", ("press",)): 5,
        (p + "source_timeouts_total", ("press",)): 4,
        (p + "source_failures_total", ("press",)): 3,
        (p + "source_connects_total", ("press",)): 2,
        (p + "source_outages_total", ("press",)): 1,
        (p + "pipeline_working", ("wear",)): 1,
        (p + "pipeline_model_info", ("wear", "m@1", "cpu")): 1,
        (p + "pipeline_samples_total", ("wear",)): 10,
        (p + "pipeline_windows_total", ("wear",)): 9,
        (p + "pipeline_windows_failed_total", ("wear",)): 8,
        (p + "pipeline_windows_discarded_total", ("wear", "gap")): 5,
        (p + "pipeline_windows_discarded_total", ("wear", "journal full")): 0,
        (p + "pipeline_samples_skipped_total", ("wear", "late")): 4,
        (p + "pipeline_samples_dropped_total", ("wear",)): 6,
        (p + "pipeline_bad_values_total", ("wear",)): 3,
        (p + "pipeline_events_total", ("wear",)): 7,
        (p + "pipeline_waiting_samples", ("wear",)): 3,
        (p + "outbox_state", ("ok",)): 1,
        (p + "outbox_state", ("full",)): 0,
        (p + "outbox_size_bytes", ()): 4096,
        (p + "outbox_size_limit_bytes", ()): 100,
        (p + "outbox_writing_seconds", ()): 0.25,
        (p + "outbox_lost_records_total", ("result",)): 12,
        (p + "outbox_lost_records_total", ("event",)): 0,
        (p + "journal_samples", ("press",)): 11,
        (p + "sink_connected", ("cloud",)): 1,
        (p + "sink_confirms", ("cloud",)): 1,
        (p + "sink_waiting_records", ("cloud", "result")): 2,
        (p + "broker_hosted", ()): 1,
        (p + "mesh_role", ("host",)): 1,
        (p + "mesh_role", ("guest",)): 0,
        (p + "mesh_connected", ()): 1,
        (p + "mesh_peers", ("online",)): 2,
        (p + "mesh_peers", ("late",)): 0,
        (p + "mesh_tasks_asked_total", ("done",)): 3,
        (p + "mesh_tasks_asked_total", ("gone",)): 1,
        (p + "mesh_tasks_answered_total", ("malformed",)): 0,
        (p + "mesh_decisions_total", ("here_faster",)): 4,
        (p + "mesh_answers_dropped_total", ("late",)): 1,
        (p + "mesh_peer_tasks_total", ("g2", "done")): 3,
        (p + "mesh_round_trip_seconds", ()): 0.004,
        (p + "site_roster_revision", ()): 7,
        (p + "site_members", ()): 3,
        (p + "site_revoked", ()): 0,
        (p + "site_certificate_remaining_seconds", ()): 400 * 86_400,
        (p + "refused_total", ("roster", "forged")): 2,
        (p + "refused_total", ("roster", "flood")): 0,
        (p + "refused_total", ("command", "other")): 1,
        (p + "board_temperature_celsius", ()): 41.5,
        (p + "board_hot", ()): 1,
        ("process_cpu_seconds_total", ()): 1.25,
        ("process_open_fds", ()): 17,
        (p + "event_loop_lag_seconds_bucket", ("0.001",)): 2,
        (p + "event_loop_lag_seconds_bucket", ("10.0",)): 3,
        (p + "event_loop_lag_seconds_bucket", ("+Inf",)): 4,
        (p + "event_loop_lag_seconds_count", ()): 4,
    }
    assert {key: found.get(key) for key in expected} == expected


def test_everything_in_the_table_can_be_on_the_page() -> None:
    page = metrics.page(scrape(full())).decode()
    assert re.findall(r"^# TYPE (\S+)", page, re.MULTILINE) == [metric.name for metric in METRICS]


def test_what_is_not_there_is_left_out() -> None:
    page = metrics.page(Scrape(Seen(site="s", gateway="g"), Machine(), Histogram(LAG_BOUNDS_S))).decode()
    for absent in ("mesh_", "broker_hosted", "outbox_size_bytes", "temperature", "source_", "process_cpu"):
        assert absent not in page
    assert "edge_runtime_outbox_state" in page


def test_a_disk_that_is_full_shows() -> None:
    full_disk = Outbox(StoreState(Trouble.FULL, "no space", ""))
    found = values(metrics.page(scrape(full(outbox=full_disk))))
    assert found["edge_runtime_outbox_state", ("full",)] == 1
    assert found["edge_runtime_outbox_state", ("ok",)] == 0
    assert found["edge_runtime_health_status", ("failed",)] == 1


def test_names_keep_the_conventions() -> None:
    """https://prometheus.io/docs/practices/naming/"""
    assert len({metric.name for metric in METRICS}) == len(METRICS)
    for metric in METRICS:
        name = metric.name
        assert re.fullmatch(r"(edge_runtime|process)_[a-z_]+", name), name
        assert name.endswith("_total") is (metric.kind == "counter"), name
        assert not re.search(r"_(ms|millis|minutes|kb|mb|percent|count|sum|bucket)(_|$)", name), name
        assert metric.help, name
        assert not metric.help.endswith("."), name
        assert all(re.fullmatch(r"[a-z_]+", label) and label != "le" for label in metric.labels), name


def test_others_do_not_decide_how_many_series_there_are() -> None:
    """Ten thousand names on the site's broker, reasons that nobody knows: the page stays as it is."""
    names = [f"stranger-{number}" for number in range(10_000)]
    mesh = Together(
        State("guest"), peers=dict.fromkeys(names, 1), asked=dict.fromkeys(names, 1), answered=dict.fromkeys(names, 1),
        decisions=dict.fromkeys(names, 1), dropped=dict.fromkeys(names, 1),
        by_peer={name: {"done": 2, "made up": 5} for name in names},
    )  # fmt: skip
    found = values(metrics.page(scrape(full(mesh=mesh))))
    assert len(found) < SERIES_MAX
    asked = {labels: value for (name, labels), value in found.items() if name == "edge_runtime_mesh_peer_tasks_total"}
    assert asked[metrics.OTHERS, "done"] == 2 * (len(names) - metrics.PEERS_MAX)
    assert not [labels for labels in asked if labels[1] == "made up"]


@given(st.text(st.characters(codec="utf-8")), st.floats() | st.integers(-(2**53), 2**53) | st.booleans())
def test_any_text_and_any_number_come_out_as_they_went_in(text: str, value: float) -> None:
    metric: Metric[None] = Metric("m", "gauge", ("a", "b"), text, lambda _: [((text, "x"), value)])
    [(key, found)] = values(render([metric], None)).items()
    assert key == ("m", (text, "x"))
    assert found == value or (math.isnan(found) and math.isnan(value))


@pytest.mark.parametrize("text", ['a"b', "a\\b", "a\nb", "a\\nb", '"', "\\", "\\\\n", 'x="1",y="2"} 7', "ü€"])
def test_labels_are_escaped(text: str) -> None:
    metric: Metric[None] = Metric("m", "gauge", ("a",), "help", lambda _: [((text,), 1)])
    assert values(render([metric], None)) == {("m", (text,)): 1}


# --- what is written -------------------------------------------------------------------------------------------------


def test_metrics_md_is_up_to_date() -> None:
    page = ROOT / "docs" / "metrics.md"
    assert page.read_text() == document.document(), "run: python -m edge_runtime.watching.document > docs/metrics.md"


def test_the_dashboard_asks_for_metrics_that_exist() -> None:
    board = json.loads((ROOT / "packaging" / "grafana" / "edge-runtime.json").read_text())
    texts = [target["expr"] for panel in board["panels"] for target in panel.get("targets", [])]
    texts += [str(each["query"]) for each in board["templating"]["list"] if each["type"] == "query"]
    said = " ".join(texts)
    named = set(re.findall(r"\b((?:edge_runtime|process)_[a-z_]+)", said))
    known = {metric.name for metric in METRICS}
    known |= {f"{metric.name}_{part}" for metric in METRICS if metric.kind == "histogram" for part in ("bucket", "sum", "count")}
    assert named <= known
    assert len(named) > 20
    labels = {label for metric in METRICS for label in metric.labels} | {"le", "instance", "job"}
    assert set(re.findall(r"[{,]\s*(\w+)\s*=~?\"", said)) <= labels
    assert len({panel["id"] for panel in board["panels"]}) == len(board["panels"])
