"""A real site is attacked: three gateways (`edge-runtime run`), a press that is read over Modbus, a model, a receiver. Whatever a
stranger, a member, a person or the broker's host says, nothing of it is accepted, the line goes on, and it is counted.
"""

from __future__ import annotations

import json
import os
import signal
import ssl
import subprocess
import time
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from attacked import LINE, NAMES, RATE_MIN, ROWS_PER_S, RSS_GROWTH_BYTES_MAX, Plant, plant
from attackers import Flood, Knocking, NoWayIn, Raw, Trap, announced, credentials, publish
from gateways import until
from sites import brokers_of
from trusted import Site as Authority

from edge_runtime.bus import control, mosquitto, presence, programs
from edge_runtime.bus.control import Reported
from edge_runtime.bus.presence import Birth
from edge_runtime.control.audit_check import entries
from edge_runtime.control.reporting import REPORTED
from edge_runtime.mesh.sealing import BIRTH, Sealing
from edge_runtime.outbox.database import open_read_only

pytestmark = [
    pytest.mark.skipif(programs.mosquitto() is None, reason="MISSING SYSTEM PACKAGE: mosquitto"),
    pytest.mark.slow,
    pytest.mark.timeout(180),
]

FLOOD_PER_S, FLOOD_S = 5_000, float(os.environ.get("EDGE_FLOOD_S", "2"))
TRIES = 3
MEASURED = 3
"""Times at most: what else the machine does at that moment is no property of the gateways."""
LOOK_S = 0.2
"""A gateway has looked at a document by then: the next one would take its place."""
MARK = "only an attacker says this"
NOT_NOW = {"patch": {"log": {"level": "debug"}}}


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with plant(tmp_path_factory.mktemp("site")) as found:
        yield found


@pytest.fixture(autouse=True)
def as_before(site: Plant) -> Iterator[None]:
    """After each attack: all gateways are on one broker of theirs, and each result is there once."""
    yield
    site.site.meshed(NAMES)
    assert site.host in NAMES
    came = len(site.results())
    until(lambda: len(site.results()) > came, "the line goes on")
    site.nothing_lost()
    site.check()


# --- who is not of the site ------------------------------------------------------------------------------------------


def self_made(folder: Path, site: str) -> tuple[Path, Path]:
    """A certificate with the names of a gateway of the site, and its key."""
    key, certificate = folder / "own.key", folder / "own.pem"
    command = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-keyout", str(key), "-out", str(certificate)]
    subprocess.run([*command, "-subj", f"/O={site}/OU=gateway/CN={LINE}"], check=True, capture_output=True)
    return certificate, key


def test_a_stranger_does_not_get_in_and_each_try_is_counted(site: Plant, tmp_path: Path) -> None:
    other = Authority(tmp_path, site.name).member(LINE)
    ways: dict[str, ssl.SSLContext | None] = {
        "plain TCP": None,
        "no certificate": credentials(),
        "its own certificate": credentials(files=self_made(tmp_path, site.name)),
        "of another authority, with our names": credentials(who=other),
        "revoked": credentials(who=site.members["lost"]),
    }
    before = counted(site, "client", "certificate", site.host)
    for _ in range(TRIES):
        for context in ways.values():
            with pytest.raises(NoWayIn):
                Raw(site.port, context)
    many = TRIES * len(ways)
    until(lambda: counted(site, "client", "certificate", site.host) - before >= many, "each one is counted")
    until(
        lambda: site.said("broker_refused", site.host, reason="certificate")[-1]["times"] > many / 2,
        "told when they have doubled",
    )


@pytest.mark.parametrize("how", ["plain", "TLS with a certificate of its own"])
def test_a_better_broker_that_a_stranger_announces_is_told_nothing(site: Plant, tmp_path: Path, how: str) -> None:
    context = None
    if how != "plain":
        context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
        context.load_cert_chain(*self_made(tmp_path, site.name))
    trap = Trap(context)
    before = counted(site, "broker", "stranger", site.host)
    try:
        with announced(site.name, trap.port):
            at = f"127.0.0.1:{trap.port}"
            until(lambda: site.said("broker_not_ours", site.host, at=at), "the host has looked at it")
            until(lambda: counted(site, "broker", "stranger", site.host) > before, "it is counted")
            looking = next(each for each in NAMES if each not in (site.host, LINE))
            site.site.gateways[looking].kill()
            site.site.gateways[looking].start()  # looks for a broker while there is one of rank 1
            site.site.meshed(NAMES)
            assert trap.callers
    finally:
        trap.close()
    words = [site.name.encode(), *(each.encode() for each in NAMES), b"MQTT", b"CERTIFICATE"]
    for said in trap.heard:
        assert context is None, said  # inside of TLS: not one byte
        assert said[:1] == b"\x16", said  # a TLS handshake
        assert not [word for word in words if word in said]


# --- who is of the site, and does what is not allowed ----------------------------------------------------------------


def test_nobody_writes_what_belongs_to_another(site: Plant) -> None:
    me = "evil"
    others = (
        "status",
        "load",
        "config/reported",
        "cmd/write/reply",
        "data/p",
        "result/p",
        "event/p",
        "batch/cloud",
        "hello/cloud",
    )
    theirs = [site.topic(each) for each in others]
    theirs += [site.topic("task", "press-3", of="press-2"), site.topic("reply", "press-2"), site.topic("receipt", "cloud")]
    theirs += [site.topic("cmd", "write"), f"edge/{site.name}/brokers", f"edge/{site.name}/brokers/press-2"]
    people = {"vera": [site.topic("cmd", "drain"), site.topic("config", "desired")], "otto": [site.topic("config", "desired")]}
    tries = {me: theirs, **people}
    before = counted(site, "client", "publish", site.host)
    with site.as_member("alice") as watcher:
        watcher.subscribe(f"edge/{site.name}/#")
        for who, refused in tries.items():
            with site.as_member(who) as raw:
                for topic in refused:
                    raw.publish(topic, MARK.encode(), retain=True)
        with site.as_member(me) as raw:
            raw.publish(site.topic("load", of=me), b"end")
        seen = []
        while (message := watcher.message())[1] != b"end":
            seen.append(message)
    assert not [topic for topic, payload in seen if MARK.encode() in payload]
    until(lambda: counted(site, "client", "publish", site.host) - before >= sum(map(len, tries.values())), "each one is counted")
    assert counted(site, "client", "publish", site.host) - before == sum(map(len, tries.values()))
    assert site.said("broker_refused", site.host, reason="publish")


def test_a_member_throws_nobody_out_by_a_client_id(site: Plant) -> None:
    """What a member can know of a client id: names, and the instance that stands in a birth."""
    victim = next(each for each in NAMES if each != site.host)
    with site.as_member("alice") as watcher:
        watcher.subscribe(site.topic("status", of=victim))
        birth = json.loads(json.loads(watcher.message()[1])["document"])
    before = len(site.said("broker_lost", victim))
    for _ in range(5):
        for name in (victim, f"edge-{site.name}-{victim}-{birth['instance']}", f"edge-{site.name}-{victim}"):
            site.as_member("evil", name).close()
    time.sleep(1.0)
    assert len(site.said("broker_lost", victim)) == before


def test_a_member_drives_nobody_from_the_broker(site: Plant) -> None:
    before = {name: len(site.said("broker_joined", name)) for name in NAMES}
    bad = {name: site.counted("edge_runtime_mesh_bad_messages_total", name) for name in NAMES}
    word = {
        "v": 1,
        "site": site.name,
        "host": "evil",
        "instance": "i",
        "rank": 1,
        "endpoints": [{"host": "127.0.0.1", "port": 9}],
    }
    with site.as_member("evil") as raw:
        for number in range(10):
            said = json.dumps({**word, "run": f"r{number}"}).encode()
            raw.publish(f"edge/{site.name}/brokers", said, retain=True)
            raw.publish(f"edge/{site.name}/brokers/evil", said)
    until(lambda: all(site.counted("edge_runtime_mesh_bad_messages_total", each) >= bad[each] + 10 for each in NAMES), "counted")
    assert {name: len(site.said("broker_joined", name)) for name in NAMES} == before


# --- documents -------------------------------------------------------------------------------------------------------


def desired(site: Plant, who: str, revision: int | None, *, target: str = f"gw/{LINE}", **more: Any) -> bytes:
    document = {"target": target, "revision": revision, **NOT_NOW, **more}
    return site.members[who].sign(json.dumps({k: v for k, v in document.items() if v is not None}).encode(), "desired")


def reported(site: Plant, gateway: str = LINE) -> dict[str, Any]:
    with site.as_member("vera") as raw:
        raw.subscribe(site.topic("config", "reported", of=gateway))
        found: dict[str, Any] = json.loads(json.loads(raw.message()[1])["document"])
    return found


def in_force(report: dict[str, Any]) -> list[int]:
    """Revisions of the gateway's own layer."""
    return [each["revision"] for each in report["layers"] if each["name"] == "gateway" and report["state"] == "active"]


def refused(site: Plant, event: str, reason: str) -> bool:
    """Counted; and told in the log, for the first one of each reason."""
    return bool(site.said(event, reason=reason))


def test_a_configuration_that_no_engineer_has_signed_for_this_gateway_is_not_taken(site: Plant, tmp_path: Path) -> None:
    good = {"patch": {"log": {"level": "info"}}, "trial_s": 1}
    with site.as_member("alice") as raw:
        raw.publish(site.topic("config", "desired"), desired(site, "alice", 7, **good), retain=True)
    until(lambda: in_force(reported(site)) == [7], "the engineer's document is in force")
    layers = reported(site)["layers"]
    other = Authority(tmp_path, site.name).member("alice", "engineer")
    sealed = json.loads(desired(site, "alice", 9))
    changed = {**sealed, "document": sealed["document"].replace("debug", "error")}
    as_command = site.members["alice"].sign(json.dumps({"target": f"gw/{LINE}", "revision": 9, **NOT_NOW}).encode(), "command")
    tries: dict[str, tuple[str, bytes]] = {
        "unsigned": ("unsigned", json.dumps({"revision": 9, **NOT_NOW}).encode()),
        "a gateway's": ("role", desired(site, "evil", 9)),
        "a viewer's": ("role", desired(site, "vera", 9)),
        "an operator's": ("role", desired(site, "otto", 9)),
        "another authority's": ("forged", other.sign(json.dumps({"revision": 9, **NOT_NOW}).encode(), "desired")),
        "changed on the way": ("forged", json.dumps(changed).encode()),
        "signed as something else": ("forged", as_command),
        "who was revoked": ("forged", desired(site, "lost", 9)),
        "for another gateway": ("malformed", desired(site, "alice", 9, target="gw/press-2")),
        "for a group": ("malformed", desired(site, "alice", 9, target="group/default")),
        "for whoever it comes to": ("malformed", desired(site, "alice", 9, target="")),
        "without a revision": ("malformed", desired(site, "alice", None)),
        "an old one": ("older", desired(site, "alice", 6)),
        "the same revision, another content": ("malformed", desired(site, "alice", 7)),
        "no JSON": ("unsigned", b"\xff{"),
    }
    before = counted(site, "configuration")
    with site.as_member("evil") as raw:  # a gateway may write these topics: it says again what engineers have signed
        for way, (reason, payload) in tries.items():
            raw.publish(site.topic("config", "desired"), payload, retain=True)
            if reason != "older":  # that is no news: the one that is held is said again
                until(lambda r=reason: refused(site, "configuration_refused", r), f"refused: {way}")  # type: ignore[misc]
            time.sleep(LOOK_S)
    until(lambda: counted(site, "configuration") - before >= len(tries), "each one is counted")
    assert reported(site)["layers"] == layers
    assert len(site.said("configuration_on_trial")) == 1


# --- commands --------------------------------------------------------------------------------------------------------


class Time:
    """Of a gateway, from its heartbeat."""

    def __init__(self, site: Plant, gateway: str = LINE) -> None:
        with site.as_member("vera") as raw:
            raw.subscribe(site.topic("load", of=gateway))
            load = json.loads(raw.message(10.0)[1])
        self.boot, self.now_ns = load["boot"], load["now_ns"]


def command(site: Plant, who: str, name: str, at: Time, **more: Any) -> bytes:
    whole = {"id": name, "target": LINE, "verb": "drain", "boot": at.boot, "until_ns": at.now_ns + 60 * 10**9}
    whole |= {"args": {"resume": True}, **more}
    return site.members[who].sign(json.dumps(whole).encode(), "command")


def executed(site: Plant, name: str) -> int:
    """How often a command was begun, as the audit log says."""
    with open_read_only(site.line.data_dir / "audit.db") as database:
        found = [row for row, _ in entries(database, site.line.data_dir) if row.kind == "command" and f"id {name}" in row.why]
    return len([row for row in found if row.outcome == "begun"])


def test_a_command_is_done_once_for_who_may_give_it_and_never_again(site: Plant) -> None:
    at, topic = Time(site), site.topic("cmd", "drain")
    good = command(site, "otto", "good-1", at)
    before = counted(site, "command", "repeated")
    with site.as_member("otto") as raw:
        raw.publish(topic, good)
        until(lambda: site.said("command", id="good-1", outcome="done"), "it is done")
        for number in range(TRIES):
            raw.publish(topic, good)
            until(lambda n=number: len(site.said("command", id="good-1")) == 2 + n, "a replay: it is told what came of the first")  # type: ignore[misc]
        until(lambda: counted(site, "command", "repeated") - before == TRIES, "each one is counted")
        site.line.kill()  # also when it has restarted, its memory gone
        site.line.start()
        until(lambda: site.said("gateway_started"), "it is back")
    site.site.meshed(NAMES)
    with site.as_member("otto") as raw:
        raw.publish(topic, good)
        until(lambda: site.said("command", id="good-1", outcome="done"), "a replay after the restart")
    until(lambda: counted(site, "command", "repeated") == 1, "it is counted")
    assert executed(site, "good-1") == 1


ANSWERED = ("expired", "expiry")
"""Who may command is told why it is not done; nobody else is."""


def test_commands_that_nobody_may_give_are_not_done(site: Plant, tmp_path: Path) -> None:
    at, topic = Time(site), site.topic("cmd", "drain")
    other = Authority(tmp_path, site.name).member("otto", "operator")
    plain = json.dumps({"id": "bad", "boot": at.boot, "until_ns": at.now_ns + 10**10, "args": {"resume": True}}).encode()
    tries: dict[str, tuple[str, bytes]] = {
        "unsigned": ("unsigned", plain),
        "a viewer's": ("role", command(site, "vera", "bad", at)),
        "a gateway's": ("role", command(site, "evil", "bad", at)),
        "another authority's": ("forged", other.sign(plain, "command")),
        "a document": ("forged", site.members["alice"].sign(plain, "desired")),
        "for another gateway": ("malformed", command(site, "otto", "bad", at, target="press-2")),
        "another verb": ("malformed", command(site, "otto", "bad", at, verb="restart")),
        "for whoever it comes to": ("malformed", command(site, "otto", "bad", at, target="")),
        "for whatever verb": ("malformed", command(site, "otto", "bad", at, verb="")),
        "of another boot": ("expired", command(site, "otto", "bad", at, boot="0" * 32)),
        "expired": ("expired", command(site, "otto", "bad", at, until_ns=at.now_ns)),
        "valid for ever": ("expired", command(site, "otto", "bad", at, until_ns=2**62)),
        "no time at all": ("expiry", command(site, "otto", "bad", at, until_ns=None)),
    }
    before = counted(site, "command")
    with site.as_member("otto") as raw:
        for way, (reason, payload) in tries.items():
            answers = len(site.said("command"))
            raw.publish(topic, payload)
            if reason in ANSWERED:
                until(lambda n=answers: len(site.said("command")) > n, f"refused: {way}")  # type: ignore[misc]
            else:
                until(lambda r=reason: site.said("command_refused", reason=r), f"refused: {way}")  # type: ignore[misc]
        until(lambda: counted(site, "command") - before >= len(tries), "each one is counted")
        assert executed(site, "bad") == 0
        assert {each["outcome"] for each in site.said("command", id="bad")} == {"refused"}
        raw.publish(topic, command(site, "otto", "retained", at), retain=True)  # to who is there it comes as a live one
        until(lambda: site.said("command", id="retained", outcome="done"), "the live one is done")
    if site.host != LINE:
        site.line.kill()
        site.line.start()
        until(lambda: site.said("bad_message"), "what the broker remembers is no command")
    assert executed(site, "retained") == 1
    with site.as_member("otto") as raw:
        raw.publish(topic, b"", retain=True)


# --- too much of it --------------------------------------------------------------------------------------------------


def births(site: Plant, sealing: Sealing) -> bytes:
    birth = Birth(site=site.name, gateway="evil", instance="e" * 16, online=True, agreement=sealing.public)
    return site.members["evil"].sign(presence.pack(birth), BIRTH)


def everything(site: Plant, qos: int) -> list[bytes]:
    """What a member may publish in its own name, none of it of any use."""
    load = presence.pack(presence.Load(gateway="evil", instance="e" * 16, period_s=1, queue_ns=1))
    report = Reported(gateway="evil", state="active", config={"site": site.name}, wall_ns=time.time_ns())
    said = [
        (site.topic("load", of="evil"), load),
        (site.topic("load", of="evil"), b"{}"),
        (site.topic("task", "evil"), b"ET1" + b"x" * 400),
        (site.topic("reply", "evil"), b"x" * 400),
        (f"edge/{site.name}/why/r1", b'{"id": "r1"}'),
        (f"edge/{site.name}/roster", b"{}"),
        (f"edge/{site.name}/brokers/evil", b"{}"),
        (site.topic("config", "desired"), b"{}"),
        (site.topic("config", "reported", of="evil"), site.members["evil"].sign(control.pack(report), REPORTED)),
    ]
    return [publish(topic, payload, qos=qos, mid=mid) for mid in range(1, 60) for topic, payload in said]


def test_floods(site: Plant, capsys: pytest.CaptureFixture[str]) -> None:
    at = Time(site)
    signed = [command(site, "otto", f"flood-{n}", at, boot="x") for n in range(8)]
    commands = [publish(site.topic("cmd", "drain"), each, qos=1, mid=mid) for mid in range(1, 60) for each in signed]
    with site.as_member("evil") as raw:
        raw.publish(site.topic("status", of="evil"), births(site, Sealing(site.members["evil"])), retain=True)
    others = [publish(site.topic("load"), bytes(100), qos=1, mid=mid) for mid in range(1, 60)]
    floods: dict[str, Callable[[], Flood | Knocking]] = {
        "QoS 0 of a member": lambda: Flood(site.as_member("evil"), everything(site, 0), FLOOD_PER_S),
        "QoS 1 of a member": lambda: Flood(site.as_member("evil"), everything(site, 1), FLOOD_PER_S),
        "signed commands of an operator": lambda: Flood(site.as_member("otto"), commands, FLOOD_PER_S),
        "topics of another": lambda: Flood(site.as_member("evil"), others, FLOOD_PER_S),
        "handshakes of a stranger": lambda: Knocking(site.port, credentials()),
    }
    figures = []
    for kind, begin in floods.items():
        bad, rss = site.counted("edge_runtime_mesh_bad_messages_total"), site.rss()
        off, knocked = (counted(site, "client", each, site.host) for each in ("publish", "certificate"))
        commanded = counted(site, "command")
        for _ in range(MEASURED):
            before = min(ROWS_PER_S, site.rate(3.0))
            with begin() as flood:
                during, after = site.rate(FLOOD_S), site.rss()
                many = flood.sent if isinstance(flood, Flood) else flood.tries
            if during >= RATE_MIN * before:
                break
        grown = {name: after[name] - size for name, size in rss.items()}
        mib = {name: round(size / 2**20, 1) for name, size in grown.items()}
        figures.append(f"{kind}: {before:.1f} -> {during:.1f} results/s, {many / FLOOD_S:.0f}/s, MiB {mib}")
        with capsys.disabled():
            print("\n  " + figures[-1], end="")
        assert during >= RATE_MIN * before
        assert all(grown[name] <= RSS_GROWTH_BYTES_MAX for name in NAMES), grown
        assert grown["broker"] <= len(NAMES) * mosquitto.QUEUED_BYTES_MAX, grown
        if isinstance(flood, Knocking):
            all_counted(site, "certificate", knocked, many)
        elif "another" in kind:
            all_counted(site, "publish", off, many)
        elif "command" in kind:
            assert many >= 0.8 * FLOOD_PER_S * FLOOD_S
            until(lambda b=commanded, m=many: counted(site, "command") - b >= m, "each one is counted", 100.0)  # type: ignore[misc]
        else:
            assert many >= 0.8 * FLOOD_PER_S * FLOOD_S
            until(lambda b=bad: site.counted("edge_runtime_mesh_bad_messages_total") > b + 1_000, "counted")  # type: ignore[misc]
    with site.as_member("evil") as raw:
        raw.publish(site.topic("status", of="evil"), b"", retain=True)


def all_counted(site: Plant, reason: str, before: float, many: int) -> None:
    found: list[str] = []

    def whole() -> bool:
        times = counted(site, "client", reason, site.host) - before
        found.append(f"{times:g} of {many}, host {site.host}")
        return times >= many

    try:
        until(whole, "each one is counted")
    except AssertionError:
        raise AssertionError(f"{reason}: not each one is counted: {found[0]}, then {found[-1]}") from None


def test_a_host_that_hangs_in_a_flood_is_left(site: Plant) -> None:
    """Its broker waits for it, as soon as nobody hears any more what it refuses. So the others find another host."""
    first = site.host
    others = [each for each in NAMES if each != first]
    process = site.site.gateways[first].process
    assert process is not None
    with Flood(site.as_member("evil"), [publish(site.topic("load"), bytes(100))], FLOOD_PER_S):
        process.send_signal(signal.SIGSTOP)
        try:
            until(lambda: site.site.host(others) in others, "another host", 40.0)
        finally:
            process.send_signal(signal.SIGCONT)
        until(lambda: site.host, "one broker for all")


def test_a_host_whose_broker_was_killed_says_that_it_is_back(site: Plant) -> None:
    """Else its log ends with the loss, and whoever looks takes the site for one without a broker."""
    host = site.host
    before = len(site.said("own_broker_back", host))
    for each in brokers_of(site.site.gateways[host]):
        each.kill()
    until(lambda: len(site.said("own_broker_back", host)) > before, "back on its own broker")


def counted(site: Plant, what: str, reason: str = "", of: str = LINE) -> float:
    """Of `edge_runtime_refused_total`, as a gateway tells Prometheus; without a reason, of all."""
    return site.counted(f'edge_runtime_refused_total{{what="{what}"' + (f',reason="{reason}"' if reason else ""), of)
