"""The broker's host is the attacker: a gateway with a certificate of the site that outranks the others, so that all come to its
broker, which has no access rules. It reads all that is said, withholds and repeats what it likes, and says what it wants in every
name. Nothing of it is accepted; the line goes on.

What it can do is to say heartbeats: they are not signed. At worst work goes to who is busy, or not to who is free. A heartbeat in
a gateway's own name, of another life than its own, does not drive it out of the mesh: only a birth, signed by its key, would.
"""

from __future__ import annotations

import json
import time
from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from attacked import LINE, NAMES, RATE_MIN, ROWS_PER_S, Plant, plant
from attackers import Raw, announced, credentials
from brokers import mosquitto
from gateways import until
from trusted import Site as Authority

from edge_runtime.bus import frames, presence, programs
from edge_runtime.bus.frames import Reply, Task, Verdict
from edge_runtime.bus.presence import Birth, Brokers, Load
from edge_runtime.mesh.sealing import BIRTH, TAG_BYTES, Sealing
from edge_runtime.ports_mesh import Endpoint
from edge_runtime.records import Inference

pytestmark = [
    pytest.mark.skipif(programs.mosquitto() is None, reason="MISSING SYSTEM PACKAGE: mosquitto"),
    pytest.mark.slow,
    pytest.mark.timeout(180),
]

INSTANCE = "e" * 16
INFER_MS = 70.0
"""On the gateway of the line: others have to help, so there are tasks and replies."""
WRONG = 666.0
LISTEN_S = 4.0


@pytest.fixture(scope="module")
def site(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    folder = tmp_path_factory.mktemp("host")
    with plant(folder, infer_ms=INFER_MS) as found, evil_host(found, folder):
        yield found


@contextmanager
def evil_host(site: Plant, folder: Path) -> Iterator[None]:
    """All gateways are on its broker, `site.broker_port`."""
    who = site.members["evil"]
    files = {"cafile": site.ca, "certfile": who.cert_file, "keyfile": who.key_file}
    with mosquitto(folder, **files, require_certificate="true", use_identity_as_username="true") as broker:
        site.evil_port = broker.port
        run = Brokers(
            site=site.name, host="evil", instance=INSTANCE, run="evil-1", rank=1, endpoints=(Endpoint("127.0.0.1", broker.port),)
        )
        with announced(site.name, broker.port, gateway="evil", instance=INSTANCE), evil(site) as raw:
            raw.publish(f"edge/{site.name}/brokers", presence.pack(run), retain=True)
            until(lambda: all(site.site.home(each)[1] == "evil" for each in NAMES), "all have come to the better broker", 40.0)
            site.site.meshed(NAMES)
            yield
        broker.kill()
    until(lambda: all(site.site.home(each)[1] != "evil" for each in NAMES), "all have left it", 40.0)
    site.site.meshed(NAMES, limit_s=60.0)
    assert site.host in NAMES
    time.sleep(1.0)
    site.nothing_lost()
    site.check()


def evil(site: Plant) -> Raw:
    return Raw(site.evil_port, credentials(site.ca, site.members["evil"]))


def bad(site: Plant, of: str = LINE) -> float:
    return site.counted("edge_runtime_mesh_bad_messages_total", of)


def heard(site: Plant, topic: str, seconds: float) -> list[tuple[str, bytes]]:
    with evil(site) as raw:
        raw.subscribe(topic)
        found, end = [], time.monotonic() + seconds
        while (left := end - time.monotonic()) > 0:
            try:
                found.append(raw.message(left))
            except (TimeoutError, AssertionError):
                break
        return found


def roster_refused(site: Plant, of: str, reason: str) -> float:
    return site.counted(f'edge_runtime_refused_total{{what="roster",reason="{reason}"', of)


def scores(site: Plant) -> list[float]:
    return [json.loads(body)["outputs"]["score"] for source, body in site.receiver.rows("source, body") if source == "anomaly"]


def test_a_wrong_result_for_a_task_is_not_taken(site: Plant) -> None:
    before, forged = bad(site), Counter[str]()
    sealing, end = Sealing(site.members["evil"]), time.monotonic() + 3 * LISTEN_S
    with evil(site) as ear, evil(site) as mouth:
        ear.subscribe(site.topic("task", LINE, of="+"))
        ear.subscribe(site.topic("status"))
        while time.monotonic() < end and forged["bad"] < 60:
            topic, payload = ear.message(10.0)
            if topic.endswith("/status"):
                birth = json.loads(json.loads(payload)["document"])
                sealing.meet(LINE, birth["agreement"])
                continue
            task = frames.unpack(payload[:-TAG_BYTES])
            if not isinstance(task, Task):
                continue
            wrong = Inference(outputs={"score": WRONG}, artefact="a" * 64, executed_on="evil")
            frame = frames.pack(Reply(id=task.id, instance=task.instance, verdict=Verdict.DONE, inference=wrong))
            asked = topic.split("/")[3]
            for tag in (b"", bytes(TAG_BYTES), sealing.seal("reply", LINE, frame)[-TAG_BYTES:]):
                mouth.publish(site.topic("reply", asked), frame + tag)
                forged["bad"] += 1
            mouth.publish(site.topic("reply", asked), payload)  # the task, sent back as its answer
            forged["bad"] += 1
    assert forged["bad"], "no task was sent to a peer"
    until(lambda: bad(site) >= before + forged["bad"], "each one is counted")
    assert WRONG not in scores(site)


def test_births_that_their_gateway_has_not_signed_are_not_taken(site: Plant) -> None:
    before, meshed = bad(site), site.site.known(LINE).keys()
    agreement = Sealing(site.members["evil"]).public
    born = [
        presence.pack(
            Birth(site=site.name, gateway="press-2", instance=INSTANCE, online=online, agreement=agreement, run="evil-1")
        )
        for online in (True, False)
    ]
    signed = [site.members["evil"].sign(each, BIRTH) for each in born]
    person = [site.members["alice"].sign(each, BIRTH) for each in born]
    with evil(site) as raw:
        for payload in (*born, *signed, *person, b"\x00", b"{}"):
            raw.publish(site.topic("status", of="press-2"), payload)
    until(lambda: bad(site) >= before + 8, "each one is counted")
    assert site.site.known(LINE).keys() == meshed


def test_documents_and_commands_of_others_are_not_taken(site: Plant) -> None:
    alice, otto = site.members["alice"], site.members["otto"]
    patch = {"patch": {"log": {"level": "info"}}, "trial_s": 1}

    def document(revision: int, target: str = f"gw/{LINE}", **more: Any) -> bytes:
        return json.dumps({"target": target, "revision": revision, **patch, **more}).encode()

    with evil(site) as raw:
        topic = site.topic("config", "desired")
        old, new = (alice.sign(document(revision), "desired") for revision in (4, 5))
        raw.publish(topic, new, retain=True)  # carried as it should be: it is in force
        until(lambda: site.said("configuration_confirmed"), "the engineer's document")
        for each in (
            document(9), site.members["evil"].sign(document(9), "desired"), otto.sign(document(9), "desired"), old,
            alice.sign(document(5, patch={"log": {"level": "debug"}}), "desired"),
            alice.sign(document(9, "gw/press-2"), "desired"), new.replace(b"info", b"warn"), alice.sign(document(9), "command"),
        ):  # fmt: skip
            raw.publish(topic, each, retain=True)
            time.sleep(0.2)
        for reason in ("unsigned", "role", "forged", "malformed"):
            until(lambda r=reason: site.said("configuration_refused", reason=r), f"refused: {reason}")  # type: ignore[misc]
        beat = json.loads(next(payload for _, payload in heard(site, site.topic("load"), 3.0)))
        whole = {"id": "h1", "target": "press-2", "verb": "drain", "boot": beat["boot"], "args": {"resume": True}}
        whole["until_ns"] = beat["now_ns"] + 30 * 10**9
        for signed in (
            otto.sign(json.dumps(whole).encode(), "command"),
            site.members["evil"].sign(json.dumps(whole).encode(), "command"),
        ):
            raw.publish(site.topic("cmd", "drain"), signed)  # held back, and sent to another one; and one of its own
    for reason in ("malformed", "role"):
        until(lambda r=reason: site.said("command_refused", reason=r), f"refused: {reason}")  # type: ignore[misc]
    assert len(site.said("configuration_on_trial")) == 1
    assert not site.said("command")


def test_a_roster_that_our_authority_has_not_signed_or_an_older_one_is_not_taken(site: Plant, tmp_path: Path) -> None:
    files = {name: site.site.gateways[name].data_dir / "identity" / "roster.json" for name in NAMES}
    before = {name: file.read_bytes() for name, file in files.items()}
    counted = {(name, why): roster_refused(site, name, why) for name in NAMES for why in ("forged", "older")}
    other = Authority(tmp_path, site.name)
    for number in range(20):
        other.member(f"x{number}")
    with evil(site) as raw:
        for payload in (other.authority.roster(), site.first_roster, b"{}", b""):
            raw.publish(f"edge/{site.name}/roster", payload, retain=True)
    for (name, why), many in counted.items():
        more = {"forged": 2, "older": 1}[why]
        until(lambda n=name, w=why, m=many + more: roster_refused(site, n, w) >= m, f"{name} counts what is {why}")  # type: ignore[misc]
    assert {name: file.read_bytes() for name, file in files.items()} == before


def test_forged_heartbeats_drive_nobody_out_and_the_line_goes_on(site: Plant) -> None:
    double = Load(gateway=LINE, instance="f" * 16, period_s=0.5, uptime_s=10**6)
    lazy = Load(gateway="press-2", instance="f" * 16, period_s=60, queue_ns=2**60)
    for _ in range(3):
        before = min(ROWS_PER_S, site.rate(3.0))
        with evil(site) as raw:
            end, sent = time.monotonic() + 6.0, 0
            count = len(site.results())
            while time.monotonic() < end:
                raw.publish(site.topic("load"), presence.pack(double))
                raw.publish(site.topic("load", of="press-2"), presence.pack(lazy))
                sent += 2
                time.sleep(0.1)
            during = (len(site.results()) - count) / 6.0
        if during >= RATE_MIN * before:
            break
    assert during >= RATE_MIN * before
    assert not site.said("name_conflict")
    print(f"forged heartbeats: {before:.1f} -> {during:.1f} results/s; {sent} sent")
