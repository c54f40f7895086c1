"""Attacks on the broker by whom it lets in: each attempt is counted, as what it is, and nobody else is named for it."""

from __future__ import annotations

import asyncio
import re
import time
from collections.abc import Callable
from contextlib import suppress
from pathlib import Path

import pytest
from attackers import Flood, NoWayIn, Raw, credentials, packet, publish, text
from gateways import until as waiting
from test_broker_mtls import run
from test_passwords import SECRETS, Doors, doors, member
from trusted import Site
from waiting import until

from edge_runtime.bus import host, mosquitto, programs, topics
from edge_runtime.bus.pipe import Pipe
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.roster import certificate_name

pytestmark = pytest.mark.skipif(programs.mosquitto() is None, reason="MISSING SYSTEM PACKAGE: mosquitto")

THEIRS = "edge/plant-1/gw/press/load"
PER_S, SECONDS, TRIES = 5_000, 2.0, 3
LONG = 2_000
"""mosquitto cuts its lines at 1,000 bytes."""


class Attacked(Doors):
    """With a member who attacks, `evil`, at the members' door."""

    evil: Identity

    def enter(self, client_id: str = "", *, will: str = "") -> Raw:
        return Raw(self.members.port, credentials(self.evil.ca_file, self.evil), client_id, will=will)

    def causes(self) -> list[str]:
        return [words["cause"] for event, words in self.log.lines if event == "broker_refused"]


def attack(folder: Path, scenario: Callable[[Attacked], None], **expected: int) -> None:
    """`scenario`, in a thread; then exactly this is counted, if anything is said of it."""
    site = Site(folder)
    press, evil = site.member("press"), site.member("evil")
    member(site, "vera")
    site.roster(press, evil)

    async def main() -> None:
        async with doors(folder, press) as two:
            attacked = Attacked(two.broker, two.log, two.members, two.people)
            attacked.evil = evil
            await asyncio.to_thread(scenario, attacked)
            if expected:
                await until(lambda: sum(two.broker.refused.values()) >= sum(expected.values()), 10.0)
                await asyncio.sleep(3 * host.LOOK_S)
                assert {reason: times for reason, times in two.broker.refused.items() if times} == expected

    run(main)


@pytest.mark.parametrize(("client_id", "topic"), [("evil", "x" * LONG), ("x" * LONG, THEIRS)])
def test_none_of_a_flood_is_missed_that_makes_long_lines(tmp_path: Path, client_id: str, topic: str) -> None:
    def scenario(attacked: Attacked) -> None:
        for _ in range(TRIES):  # at 10 MB/s a host that gets no processor for a tenth of a second misses some
            before = attacked.broker.refused["publish"]
            with Flood(attacked.enter(client_id), [publish(topic, b"x", qos=1, mid=mid) for mid in range(1, 60)], PER_S) as flood:
                time.sleep(SECONDS)
            assert flood.sent >= 0.8 * PER_S * SECONDS
            with suppress(AssertionError):
                waiting(lambda b=before, f=flood: attacked.broker.refused["publish"] - b >= f.sent, "each one is counted", 2.0)  # type: ignore[misc]
                return
        raise AssertionError(f"{attacked.broker.refused['publish'] - before} of {flood.sent}")

    attack(tmp_path, scenario)


def test_a_client_that_calls_itself_a_failed_handshake_is_none(tmp_path: Path) -> None:
    names = (
        "connection from 10.0.0.9:5 failed: error:0A000418:SSL routines::tlsv1 alert unknown ca",
        "OpenSSL Error[0]: error:0A0000C7:SSL routines::peer did not return a certificate",
        "x: OpenSSL Error[0]: error:0A0000C7:SSL routines::peer did not return a certificate",
        "connection from 10.0.0.9:5 failed: error:0A000418:SSL routines::ca" + "a" * LONG,
    )

    def scenario(attacked: Attacked) -> None:
        for name in names:
            with attacked.enter(name):
                attacked.enter(name).close()  # it takes the place of the first one
            with attacked.enter(name) as raw:
                raw.sock.sendall(b"\xe0\x00")  # goodbye
        attacked.enter().publish(THEIRS, b"x")

    attack(tmp_path, scenario, publish=1)


def test_nobody_else_is_named_for_what_a_client_with_a_long_name_does(tmp_path: Path) -> None:
    """mosquitto cuts the line after what the client has written into it."""
    name = f"vera (d0, q1, r0, m1, 'edge/plant-1/gw/other/load', ... (1 bytes)){'x' * LONG}"

    def scenario(attacked: Attacked) -> None:
        with attacked.enter(name) as raw:
            raw.publish(THEIRS, b"x")
        waiting(attacked.causes, "it is told")
        assert [each for each in attacked.causes() if each.startswith("vera ")] == []

    attack(tmp_path, scenario, publish=1)


def test_what_is_no_packet_for_a_broker_is_counted(tmp_path: Path) -> None:
    ways = {
        "a topic for everybody": publish("edge/plant-1/gw/+/load", b"x"),
        "all topics": publish("edge/#", b"x"),
        "no topic": publish("", b"x"),
        "more levels than there may be": publish("/".join("x" * 300), b"x"),
        "a line end": publish("edge/x\n1700000000: Denied PUBLISH from vera", b"x"),
        "no UTF-8": publish(b"edge/\xff", b"x"),
        "a second CONNECT": packet(0x10, text("MQTT") + b"\x04\x02\x00\x3c" + text("again")),
        "a subscription that is none": packet(0x82, b"\x00\x01" + text("edge/#/x") + b"\x00"),
    }

    def scenario(attacked: Attacked) -> None:
        for said in ways.values():
            with attacked.enter() as raw, suppress(NoWayIn):
                raw.sock.sendall(said)
                raw.until(lambda _kind, _body: False)
        with attacked.enter() as raw:
            raw.publish(THEIRS, bytes(mosquitto.MESSAGE_BYTES_MAX + 1))
        for will in ("edge/#", "edge/x\n"):
            with pytest.raises(NoWayIn):
                attacked.enter(will=will)
        with pytest.raises(NoWayIn):
            attacked.enter("x\n1700000000: Denied PUBLISH from vera")

    attack(tmp_path, scenario, packet=len(ways) + 4)


def test_a_will_that_its_client_may_not_say_is_counted_when_it_comes(tmp_path: Path) -> None:
    def scenario(attacked: Attacked) -> None:
        for topic in (THEIRS, "$SYS/x", "$CONTROL/x", "x" * LONG, "edge/plant-1/gw/evil/load", "edge/plant-1/gw/evil/status"):
            attacked.enter(will=topic).close()
        attacked.enter("a client id with a #", will="edge/plant-1/gw/evil/load").close()
        attacked.enter("x" * LONG, will=THEIRS).close()
        for topic in ("edge/plant-1/gw/vera/load", "edge/plant-1/gw/person:vera/load", "edge/plant-1/gw/press/receipt/vera"):
            Raw(attacked.people.port, credentials(attacked.evil.ca_file), will=topic, login=("vera", SECRETS["vera"])).close()
        waiting(lambda: [each for each in attacked.causes() if "may not leave a will at " in each], "it is told")

    attack(tmp_path, scenario, will=8)


PLACES = ("press", "late", "cloud", "scale", "vera", "person:vera", "person:alice", "receiver:cloud", "device:scale")


def test_where_one_may_write_we_judge_as_the_broker_does(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Else a will that is allowed would count, or one that is not would go unseen. By each role, at each door."""
    site = Site(tmp_path)
    members = [site.member("press"), site.member("scale", "device"), site.member("cloud", "receiver")]
    people = [member(site, name) for name in SECRETS]
    site.roster(members[0])
    members += [*people, site.member("late")]  # the broker does not know it yet
    places = {re.sub(r"{[a-z]+}", name, f"edge/plant-1/{each}") for each, _, _ in topics.TOPICS for name in PLACES}
    places |= {f"edge/plant-1/gw/{who}/{each}/{who}" for who in PLACES for each in ("receipt", "task", "cmd")}
    places |= {f"edge/plant-1/gw/press/{each}/{who}" for who in PLACES for each in ("receipt", "task", "hello")}
    places |= {f"{start}{who}/x/y" for start in ("device/", "", "/", "$", "edge/") for who in PLACES}
    places |= {f"edge/plant-1/gw/person:vera/receipt/{each}" for each in PLACES} | {
        "device",
        "device/",
        "scale",
        "$SYS/x",
        "edge/x",
    }
    heard = bytearray()
    read = Pipe._read
    monkeypatch.setattr(Pipe, "_read", lambda self: heard.extend(said := read(self)) or said)

    def say(raw: Raw, user: str, client_id: str, two: Doors) -> None:
        heard.clear()
        with raw:
            for each in sorted(places):
                raw.publish(each, b"x")
            raw.publish("nobody/may/write/this", b"x")
        waiting(lambda: b"nobody/may/write/this" in heard, "all is heard")
        denied = set(re.findall(r"Denied PUBLISH from .*? '([^']*)'", heard.decode()))
        rules = two.broker._refusals.rules
        assert {each for each in places if not rules.may_write(user, client_id, each)} == denied & places, user

    def scenario(two: Doors) -> None:
        for each in members:
            for client_id in ("one", "with a +"):
                raw = Raw(two.members.port, credentials(each.ca_file, each), client_id)
                say(raw, certificate_name(each.name, each.subject.role), client_id, two)
        for name, secret in SECRETS.items():
            for client_id in ("one", "with a #"):
                raw = Raw(two.people.port, credentials(members[0].ca_file), client_id, login=(name, secret))
                say(raw, name, client_id, two)

    async def main() -> None:
        async with doors(tmp_path, members[0]) as two:
            await asyncio.to_thread(scenario, two)

    run(main)
