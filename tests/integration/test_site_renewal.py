"""What a running `edge-runtime run` does for its membership by itself: it renews its certificate when half of its time is over,
by a clock that is right, and takes what comes to it on a stick. Nothing stops meanwhile."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import sqlite3
import threading
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, closing, contextmanager
from pathlib import Path
from typing import Any

import paho.mqtt.client as paho
import pytest
from brokers import Broker, free_port, mosquitto
from gateways import PATIENT, GatewayProcess, assert_once, config, gateway, press, until
from machines import DAY_S, Machine
from onlooking import edge_runtime
from paho.mqtt.enums import CallbackAPIVersion
from publishing import TOPIC, values
from receivers import ReceiverProcess, receiver
from trusted import PASSPHRASE, Site

from edge_runtime.board.system import SystemClock
from edge_runtime.bus import programs
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.member import Dress
from edge_runtime.cli.site.opening import ENVIRONMENT
from edge_runtime.ports import Address
from edge_runtime.records import Stamp
from edge_runtime.trust.identity import Identity

pytestmark = pytest.mark.skipif(programs.mosquitto() is None, reason="MISSING SYSTEM PACKAGE: mosquitto")

NAME = "plant"
LIFE_DAYS = 730
LINE_PER_S = 50


class Now:
    """A clock that is right, on whatever machine the test runs."""

    def now(self) -> Stamp:
        return Stamp("b", 0, time.time_ns(), True)

    def mono_ns(self) -> int:
        return SystemClock().mono_ns()


@pytest.fixture
def site(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Site:
    monkeypatch.setenv(ENVIRONMENT, PASSPHRASE)
    made = Site(tmp_path / "site", NAME)
    made.authority._clock = Now()
    return made


def settings(identity: Identity, port: int, mode: str, **more: Any) -> dict[str, Any]:
    broker = {"mode": mode, "url": f"mqtt://127.0.0.1:{port}"}
    return {
        "site": NAME, "gateway": identity.name, "site_dir": str(identity.folder), "log": {"format": "json"}, "broker": broker,
        "mesh": {"discovery": "off"}, "metrics": {"listen": f"127.0.0.1:{free_port()}"}, **more,
    }  # fmt: skip


class Line(threading.Thread):
    """A machine that publishes until it is told to stop."""

    def __init__(self, broker: Broker) -> None:
        super().__init__(daemon=True)
        self._client = paho.Client(CallbackAPIVersion.VERSION2, client_id="machine")
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()
        self._end = threading.Event()
        self.count = 0

    def run(self) -> None:
        while not self._end.wait(1 / LINE_PER_S):
            message = json.dumps({"id": self.count, "v": [*values(self.count), 0]})
            self._client.publish(TOPIC, message, 1).wait_for_publish(10)
            self.count += 1

    def finish(self) -> int:
        """How many there were; the broker has all."""
        self._end.set()
        self.join()
        self._client.disconnect()
        self._client.loop_stop()
        return self.count


@contextmanager
def line(broker: Broker) -> Iterator[Line]:
    machine = Line(broker)
    machine.start()
    try:
        yield machine
    finally:
        machine.finish()


def moves(edge: GatewayProcess, far_end: ReceiverProcess, machine: Line) -> None:
    """What the machine says from now on arrives."""
    edge.delivers(far_end, "all", machine.count + LINE_PER_S // 2)


def stamped(far_end: ReceiverProcess, days: float) -> None:
    """Returns when a record has come that was made so far from now, by the gateway's clock."""

    def last() -> bool:
        return abs(far_end.rows("wall_ns")[-1][0] / 1e9 - time.time() - days * DAY_S) < DAY_S

    until(last, f"a record {days} days from now")


def synchronised(*edges: GatewayProcess) -> None:
    """Returns when they know that their clock is right."""
    for edge in edges:
        url = f"http://{json.loads(edge.file.read_text())['metrics']['listen']}/metrics"

        def told(url: str = url) -> bool:
            with urllib.request.urlopen(url, timeout=5) as answer:
                return b"edge_runtime_clock_synchronised 1\n" in answer.read()

        until(told, f"a clock that is right at {url}")


def shown(identity: Identity, port: int) -> str:
    """The serial of the certificate that the broker shows to a member."""

    async def main() -> str:
        connection = await PahoBus().connect(Dress(identity)(Address(host="127.0.0.1", port=port)))
        await connection.close()
        return connection.peer_serial

    return asyncio.run(asyncio.wait_for(main(), 20))


def broker_of(edge: GatewayProcess) -> int:
    """The process id of the broker that it hosts."""
    assert edge.process is not None
    (pid,) = Path(f"/proc/{edge.process.pid}/task/{edge.process.pid}/children").read_text().split()
    return int(pid)


def audited(edge: GatewayProcess, subject: str) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(f"{(edge.data_dir / 'audit.db').as_uri()}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        return [dict(row) for row in database.execute("SELECT * FROM entries WHERE subject = ?", (subject,))]


def reloaded(identity: Identity) -> Identity:
    found = Identity.load(identity.folder)
    assert found is not None
    return found


# --- over the network ------------------------------------------------------------------------------------------------


def test_a_gateway_renews_its_certificate_by_itself(tmp_path: Path, site: Site) -> None:
    """From 1970 without a right time, over a right time that is told by nobody, to one that is known to be right."""
    computer, port = Machine(tmp_path), free_port()
    one, two, alice = site.member("press"), site.member("saw"), site.member("alice", "engineer")
    site.roster(one, two, alice)
    key = one.key_file.read_bytes()
    broker_url = f"mqtt://127.0.0.1:{port}"
    words = ["site", "renew", "--folder", site.authority.folder, "--broker", broker_url, "--identity", alice.folder, "--json"]

    def renewed() -> dict[str, str]:
        done = computer.edge_runtime(*words)
        assert done.returncode == 0, done.stderr
        return {each["gateway"]: each["outcome"] for each in json.loads(done.stdout)["answered"]}

    with ExitStack() as stack:
        plain = stack.enter_context(mosquitto(tmp_path, **PATIENT))
        far_end = stack.enter_context(receiver(tmp_path))
        parts = config({"press": press(plain.url)}, {"cloud": {"type": "https", "url": far_end.url}})
        computer.set_to_1970(synchronised=False)
        hosts = parts | settings(one, port, "hosted")
        edge = stack.enter_context(gateway(tmp_path / "a", hosts, inside=computer.inside))
        saw = stack.enter_context(gateway(tmp_path / "b", settings(two, port, "external"), inside=computer.inside))

        edge.wait("source_connected")
        machine = stack.enter_context(line(plain))

        # A clock that stands at 1970: all works, and nothing is asked for.
        edge.wait("peer_alive", peer="saw")
        saw.wait("peer_alive", peer="press")
        moves(edge, far_end, machine)
        assert far_end.rows("wall_ns")[-1][0] < DAY_S * 10**9
        assert renewed() == {}

        # One that shows a day on which it is due, but that nobody keeps right: nor here. On each new connection it is looked at.
        computer.set(in_days=LIFE_DAYS - 60, synchronised=False)
        stamped(far_end, LIFE_DAYS - 60)
        again(edge, saw)
        assert renewed() == {}
        assert not edge.events("renewal_asked") + saw.events("renewal_asked")

        # Now it is right.
        computer.set(in_days=LIFE_DAYS - 60, synchronised=True)
        synchronised(edge, saw)
        again(edge, saw)
        assert edge.wait("renewal_asked")["days_left"] == 60
        saw.wait("renewal_asked")
        process, broker, lost = edge.process, broker_of(edge), len(saw.events("broker_lost"))
        assert renewed() == {"press": "renewed", "saw": "renewed"}
        for each in (edge, saw):
            each.wait("certificate_renewed")
        fresh = reloaded(one)
        assert (fresh.name, fresh.role, fresh.key.public) == ("press", "gateway", one.key.public)
        assert one.key_file.read_bytes() == key
        assert fresh.subject.serial != one.subject.serial
        assert abs(fresh.not_after_s - one.not_after_s - (LIFE_DAYS - 60) * DAY_S) < DAY_S
        assert [row["outcome"] for row in audited(edge, "certificate")] == ["renewed"]

        # The broker goes on with it, and nobody has lost anything.
        until(lambda: shown(reloaded(two), port) == fresh.subject.serial, "the new certificate of the broker")
        moves(edge, far_end, machine)
        assert (edge.process, edge.ended(), broker_of(edge)) == (process, False, broker)
        assert len(saw.events("broker_lost")) == lost
        assert renewed() == {}

        # And after the next start.
        assert edge.stop() == 0
        edge.start()
        edge.wait("broker_hosted")
        edge.wait("peer_alive", peer="saw")
        assert shown(reloaded(two), port) == fresh.subject.serial
        moves(edge, far_end, machine)
        assert not edge.events("renewal_asked")
        assert reloaded(one).subject == fresh.subject
        total = machine.finish()
        edge.delivers(far_end, "all", total)
        assert_once(far_end, list(range(total)))
        assert edge.stop() == 0


def again(*edges: GatewayProcess) -> None:
    """Kills the broker that the first one hosts. All are back when it returns, for each has heard the birth of another: what they
    ask for on a new connection they could have asked for."""

    def happened(event: str) -> list[int]:
        return [len(each.events(event)) for each in edges]

    def on(before: list[int], event: str) -> bool:
        return all(now > then for now, then in zip(happened(event), before, strict=True))

    died, alive = happened("broker_died"), happened("peer_alive")
    os.kill(broker_of(edges[0]), signal.SIGKILL)
    until(lambda: happened("broker_died")[0] > died[0], "its death is noticed")
    until(lambda: on(alive, "peer_alive"), "all are back")


# --- on a stick ------------------------------------------------------------------------------------------------------


def test_a_revocation_on_a_stick_holds_in_a_gateway_that_runs(tmp_path: Path, site: Site) -> None:
    port, roster = free_port(), tmp_path / "roster.json"
    one, two = site.member("press"), site.member("saw")
    site.roster(one, two)
    with ExitStack() as stack:
        edge = stack.enter_context(gateway(tmp_path / "a", settings(one, port, "hosted")))
        saw = stack.enter_context(gateway(tmp_path / "b", settings(two, port, "external")))
        edge.wait("peer_alive", peer="saw")
        process = edge.process
        site.authority.revoke("saw", "stolen")
        asyncio.run(done("site", "roster", "-o", str(roster), "--folder", str(site.authority.folder)))
        asyncio.run(done("join", "--roster", str(roster), "--folder", str(one.folder)))
        edge.wait("roster_taken", revision=4, revoked=["saw"])
        edge.wait("peer_gone", peer="saw")
        until(lambda: [each for each in saw.events("broker_lost") if "revoked" in each["cause"]], "no way back")
        assert (edge.process, edge.ended()) == (process, False)
        (row,) = audited(edge, "roster")
        assert (row["actor"], row["outcome"], row["via"]) == ("authority", "taken", str(one.roster_file))


def test_a_certificate_on_a_stick_is_shown_by_a_gateway_that_runs(tmp_path: Path, site: Site) -> None:
    port, answer = free_port(), tmp_path / "press.answer"
    one, alice = site.member("press"), site.member("alice", "engineer")
    with gateway(tmp_path / "a", settings(one, port, "hosted")) as edge:
        edge.wait("broker_hosted")
        assert shown(alice, port) == one.subject.serial
        process, broker = edge.process, broker_of(edge)
        asyncio.run(done("site", "renew", "press", "-o", str(tmp_path), "--folder", str(site.authority.folder)))
        asyncio.run(done("join", "--answer", str(answer), "--folder", str(one.folder)))
        serial = edge.wait("certificate_renewed")["serial"]
        assert serial == reloaded(one).subject.serial != one.subject.serial
        until(lambda: shown(alice, port) == serial, "the new certificate of the broker")
        assert (edge.process, edge.ended(), broker_of(edge)) == (process, False, broker)
        assert edge.stop() == 0


async def done(*words: str) -> None:
    said = await edge_runtime(*words)
    assert said.status == 0, said.error
