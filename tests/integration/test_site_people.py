"""A site that runs, and its people at a terminal: they revoke, renew and look, over the site's own broker."""

from __future__ import annotations

import asyncio
import json
import sqlite3
import time
import urllib.request
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager, closing
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from brokers import free_port
from gateways import GatewayProcess, gateway, until
from hosted import connected, hosted
from keepers import Log
from onlooking import Said, edge_runtime, play
from test_site_receipts import NAME
from trusted import PASSPHRASE, Site

from edge_runtime.board.system import SystemClock, SystemDice, ThreadWorker
from edge_runtime.bus import presence, programs, topics
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.member import Dress
from edge_runtime.bus.presence import Birth, Load
from edge_runtime.cli import identity as identities
from edge_runtime.cli.site.opening import ENVIRONMENT
from edge_runtime.config import Mesh
from edge_runtime.control.keeping import Keeping
from edge_runtime.control.renewing import Renewing
from edge_runtime.mesh.answering import Answering
from edge_runtime.mesh.link import Home, Link
from edge_runtime.mesh.sealing import Sealing
from edge_runtime.ports import Address, Message
from edge_runtime.records import Stamp
from edge_runtime.testing.executor import FakeExecutor
from edge_runtime.trust import envelope
from edge_runtime.trust.identity import Identity

pytestmark = pytest.mark.skipif(programs.mosquitto() is None, reason="MISSING SYSTEM PACKAGE: mosquitto")

YEAR_S = 365 * 86_400


@pytest.fixture(autouse=True)
def _passphrase(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, PASSPHRASE)
    monkeypatch.delenv(identities.ENVIRONMENT, raising=False)


def url(where: Address) -> str:
    return f"mqtt://{where.host}:{where.port}"


def settings(identity: Identity, port: int, **broker: Any) -> dict[str, Any]:
    """Of a gateway that has nothing to do but to belong to the site."""
    return {
        "site": NAME, "gateway": identity.name, "site_dir": str(identity.folder), "log": {"format": "json"},
        "broker": {"url": f"mqtt://127.0.0.1:{port}", **broker}, "mesh": {"discovery": "off", "offers": ["wear"]},
    }  # fmt: skip


def audited(edge: GatewayProcess) -> list[dict[str, Any]]:
    with closing(sqlite3.connect(f"{(edge.data_dir / 'audit.db').as_uri()}?mode=ro", uri=True)) as database:
        database.row_factory = sqlite3.Row
        (table,) = [name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE name = 'entries'")] or ["audit"]
        return [dict(row) for row in database.execute(f"SELECT * FROM {table} WHERE kind = 'trust'")]


def test_a_revocation_reaches_a_site_without_internet(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, saw, alice = site.member("press"), site.member("saw"), site.member("alice", "engineer")
    site.roster(press, saw)
    port = free_port()

    async def revoke(*words: str) -> Said:
        folder = str(site.authority.folder)
        return await edge_runtime("site", "revoke", *words, "--folder", folder, "--identity", str(alice.folder), "--json")

    with gateway(tmp_path / "a", settings(press, port, mode="hosted")) as one:
        one.wait("broker_hosted")
        with gateway(tmp_path / "b", settings(saw, port, mode="external")) as other:
            one.wait("peer_alive", peer="saw")
            said = asyncio.run(revoke("saw", "--why", "stolen", "--broker", f"mqtt://127.0.0.1:{port}"))
            assert said.status == 0, said.error
            assert said.json == {"site": NAME, "revoked": "saw", "revision": 5, "published": f"127.0.0.1:{port}"}
            one.wait("roster_taken", revision=5, revoked=["saw"])
            one.wait("peer_gone", peer="saw")
            one.wait("broker_restarted")
            other.wait("gateway_revoked")
            until(lambda: [each for each in other.events("broker_lost") if "revoked" in each["cause"]], "no way back")
            rows = audited(one)
            assert [(each["actor"], each["subject"], each["outcome"]) for each in rows][-1] == ("authority", "roster", "taken")


def test_who_was_off_when_it_was_revoked_is_not_well_until_it_knows_it(tmp_path: Path) -> None:
    """It hosts a broker of its own, and all works there: nothing else would tell of it."""
    site = Site(tmp_path)
    press, saw = site.member("press"), site.member("saw")
    site.roster(press, saw)
    site.authority.revoke("saw", "stolen")
    site.roster(press)
    ports = free_port(), free_port(), free_port()
    alone = settings(saw, ports[1], mode="auto") | {"metrics": {"listen": f"127.0.0.1:{ports[2]}"}}
    alone["mesh"] |= {"peers": [f"127.0.0.1:{ports[0]}"]}

    def health() -> tuple[str, list[tuple[str, str]]]:
        with urllib.request.urlopen(f"http://127.0.0.1:{ports[2]}/health", timeout=5) as page:
            said = json.load(page)
        return said["status"], [(each["what"], each["cause"].rpartition(": ")[2]) for each in said["problems"]]

    with gateway(tmp_path / "a", settings(press, ports[0], mode="hosted")) as one:
        one.wait("broker_hosted")
        with gateway(tmp_path / "b", alone) as other:
            other.wait("broker_refuses_us")
            other.wait("broker_hosted")
            told = ("degraded", [("site", "the broker says that our certificate is revoked")])
            until(lambda: health() == told, "it is told")
            one.stop()  # with the broker that said so: it is as true as before
            time.sleep(1.5)
            assert health() == told
            saw.take_roster(site.authority.roster())
            other.wait("gateway_revoked")
            assert ("site", "no other member hears it") in health()[1]


def test_the_host_itself_is_revoked_over_its_own_broker(tmp_path: Path) -> None:
    """The others leave it at once, with all that they have there."""
    site = Site(tmp_path)
    press, saw, alice = site.member("press"), site.member("saw"), site.member("alice", "engineer")
    site.roster(press, saw)
    port = free_port()
    sink = {"live": {"type": "mqtt", "url": f"mqtt://127.0.0.1:{port}"}}  # the same as `local`
    device = {
        "adapter": "mqtt",
        "options": {"url": "local", "topics": ["device/#"], "client_id": "saw-d"},
        "points": [{"name": "a", "path": "a"}],
    }
    working = {"devices": {"d": device}, "pipelines": {"all": {"device": "d"}}, "sinks": sink}
    with gateway(tmp_path / "a", settings(press, port, mode="hosted")) as one:
        one.wait("broker_hosted")
        with gateway(tmp_path / "b", settings(saw, port, mode="external") | working) as other:
            other.wait("source_connected")
            other.wait("sink_connected")
            words = ["site", "revoke", "press", "--folder", str(site.authority.folder), "--identity", str(alice.folder)]
            said = asyncio.run(edge_runtime(*words, "--broker", f"mqtt://127.0.0.1:{port}"))
            assert said.status == 0, said.error
            assert "hosts this broker is revoked" in said.error
            other.wait("roster_taken", revision=5, revoked=["press"])
            other.wait("broker_lost", host="")
            one.wait("gateway_revoked")
            until(lambda: [each for each in other.events("broker_lost") if "no broker of our site" in each["cause"]], "left")


def test_what_is_in_the_way_of_a_revocation_is_said(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, alice = site.member("press"), site.member("alice", "engineer")
    site.member("saw")
    folder = ["--folder", str(site.authority.folder)]
    nowhere = ["--broker", f"mqtt://127.0.0.1:{free_port()}"]

    async def main() -> None:
        said = await edge_runtime("site", "revoke", "saw", *folder, *nowhere)
        assert said.status == 1
        assert "you have not said who you are" in said.error  # and nothing is done
        assert b"saw" in site.authority.roster()
        said = await edge_runtime("site", "revoke", "saw", *folder, *nowhere, "--identity", str(alice.folder))
        assert said.status == 1
        assert "saw is revoked, but the site does not know it yet" in said.error
        assert "site roster --publish" in said.error
        async with hosted(tmp_path, press) as (_, where):
            said = await edge_runtime(
                "site", "roster", "--publish", *folder, "--broker", url(where), "--identity", str(alice.folder)
            )
            assert said.status == 0, said.error
            assert "has it: roster of plant-1, revision 5" in said.error
            async with connected(where, alice) as connection:
                await connection.subscribe(topics.roster(NAME))
                assert press.take_roster((await connection.receive()).payload)
        assert press.roster.named("saw") is None

    play(main)


class Running:
    """As much of a gateway as renews its certificate, on a real broker, with a clock that is right and `years` ahead."""

    def __init__(self, identity: Identity, where: Address, years: float = 0.0) -> None:
        self.identity, self.log, clock = identity, Log(), SystemClock()
        ahead_ns = int(years * YEAR_S * 10**9)

        class Ahead(SystemClock):
            def now(self) -> Stamp:
                now = clock.now()
                return Stamp(now.boot, now.mono_ns, now.wall_ns + ahead_ns, True)

        self.link = Link(NAME, identity.name, "i1", self.log)
        keeping = Keeping(self.link, identity, lambda _: None, lambda: ThreadWorker("roster"), SystemDice(), self.log)
        self.renewing = Renewing(self.link, identity, lambda _: None, lambda: ThreadWorker("renewal"), Ahead(), self.log)
        self.link.joined += [keeping.joined, self.renewing.joined]
        self.tasks = [asyncio.create_task(each()) for each in (keeping.run, self.renewing.run, lambda: self._serve(where))]

    async def _serve(self, where: Address) -> None:
        dressed = Dress(self.identity)(where)
        await self.link.serve(await PahoBus().connect(dressed), Home(dressed))

    async def end(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)


async def soon(condition: Any) -> None:
    async with asyncio.timeout(20):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.02)


def test_all_that_have_asked_are_renewed_in_one_go(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, saw, oven = (site.member(name) for name in ("press", "saw", "oven"))
    alice, vera = site.member("alice", "engineer"), site.member("vera", "viewer")
    site.roster(press, saw, oven)
    before = {each.name: each.subject for each in (press, saw, oven)}

    async def main() -> None:
        async with hosted(tmp_path, oven) as (_, where):
            words = ["site", "renew", "--folder", str(site.authority.folder), "--broker", url(where)]
            said = await edge_runtime(*words, "--identity", str(vera.folder))
            assert (said.status, "vera is viewer" in said.error) == (1, True)
            said = await edge_runtime(*words, "--identity", str(alice.folder))
            assert (said.status, "no gateway has asked" in said.out) == (0, True)
            ahead = [Running(press, where, 1.5), Running(saw, where, 1.5)]
            await soon(lambda: all(each.log.count("renewal_asked") for each in ahead))
            said = await edge_runtime(*words, "--identity", str(alice.folder), "--json")
            # By the clock of the authority's machine they are new: it is theirs that is ahead.
            assert [each["outcome"] for each in said.json["answered"]] == ["not due", "not due"]
            for each in ahead:
                await each.end()

    play(main)
    assert {each.name: each.subject for each in (press, saw, oven)} == before


def test_a_certificate_is_renewed_and_the_broker_goes_on_with_it(tmp_path: Path) -> None:
    site = Site(tmp_path)

    class LongAgo:
        def now(self) -> Stamp:
            return Stamp("b", 0, SystemClock().now().wall_ns - int(1.5 * YEAR_S) * 10**9, True)

    site.authority._clock = LongAgo()  # type: ignore[assignment]
    press, saw, alice = site.member("press"), site.member("saw"), site.member("alice", "engineer")
    site.roster(press, saw)
    serials = {each.name: each.subject.serial for each in (press, saw)}

    async def main() -> None:
        async with hosted(tmp_path, press) as (_, where):
            running = [Running(press, where), Running(saw, where)]
            await soon(lambda: all(each.log.count("renewal_asked") for each in running))
            words = ["site", "renew", "--folder", str(site.authority.folder), "--broker", url(where)]
            said = await edge_runtime(*words, "--identity", str(alice.folder))
            assert said.status == 0, said.error + said.out
            assert "press    renewed" in said.out
            await soon(lambda: all(each.log.count("certificate_renewed") for each in running))
            for each in (press, saw):
                assert each.subject.serial != serials[each.name]
                await soon(lambda each=each: each.roster.named(each.name).serial == each.subject.serial)
            assert all(not task.done() for each in running for task in each.tasks)  # nobody lost its connection
            bus, dress = PahoBus(), Dress(saw)

            async def shown() -> str:
                connection = await bus.connect(dress(where))
                await connection.close()
                return connection.peer_serial

            async with asyncio.timeout(10):  # the broker shows the new one, once it has read it
                while await shown() != press.subject.serial:  # noqa: ASYNC110
                    await asyncio.sleep(0.1)
            said = await edge_runtime(*words, "--identity", str(alice.folder))
            assert "no gateway has asked" in said.out
            for one in running:
                await one.end()

    play(main)
    assert {each.name: each.subject.serial for each in map(Identity.load, (press.folder, saw.folder)) if each} != serials


# --- who looks -------------------------------------------------------------------------------------------------------


def test_a_person_sees_the_gateways_and_nobody_who_only_says_to_be_one(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, vera = site.member("press"), site.member("vera", "viewer")
    saw = site.member("saw")  # vera's roster does not have it; the broker's does
    site.roster(press)

    async def main() -> None:
        async with hosted(tmp_path, press) as (_, where), connected(where, press) as connection, connected(where, saw) as other:

            async def born(name: str, by: Identity) -> None:
                payload = by.sign(presence.pack(Birth(site=NAME, gateway=name, instance=name, online=True)), "birth")
                for one in (connection, other):
                    await one.publish(topics.gateway(NAME, name, "status"), payload, qos=1, retain=True)

            await connection.publish(topics.roster(NAME), press.signed_roster, qos=1, retain=True)
            await born("press", press)
            await born("saw", saw)
            said = await edge_runtime("mesh", "--broker", url(where), "--identity", str(vera.folder), "--json", "--seconds", "2")
            assert said.status == 0, said.error
            assert [each["gateway"] for each in said.json["gateways"]] == ["press", "saw"]
            await born("oven", press)  # by whoever hosts the broker
            said = await edge_runtime("mesh", "--broker", url(where), "--identity", str(vera.folder), "--json", "--seconds", "2")
            assert [each["gateway"] for each in said.json["gateways"]] == ["press", "saw"]
            said = await edge_runtime("mesh", "--broker", url(where), "--json")
            assert said.status == 1

    play(main)


@asynccontextmanager
async def computing(who: Identity, where: Address) -> AsyncIterator[FakeExecutor]:
    """A gateway that computes a window of wear@1 in a millisecond."""
    log, executor = Log(), FakeExecutor({"wear@1": 0.001})
    sealing = Sealing(who)
    link = Link(NAME, who.name, f"{who.name}1", log, sealing)
    answering = Answering(link, executor, Mesh(), SystemClock(), log, outside=lambda: False)

    def heard(gateway: str, message: Message) -> None:
        sealing.meet(gateway, presence.unpack(message.payload, Birth).agreement)

    async def say() -> None:
        birth = Birth(
            site=NAME, gateway=who.name, instance=link.instance, online=True, agreement=sealing.public,
            offers=tuple(executor.offers()),
        )  # fmt: skip
        await link.send(topics.gateway(NAME, who.name, "status"), sealing.sign(presence.pack(birth)), qos=1, retain=True)

    async def beat() -> None:
        while True:
            if link.connected:
                load = presence.pack(Load(gateway=who.name, instance=link.instance, period_s=1.0))
                await link.send(topics.gateway(NAME, who.name, "load"), load)
            await asyncio.sleep(0.1)

    async def serve() -> None:
        dressed = Dress(who)(where)
        await link.serve(await PahoBus().connect(dressed), Home(dressed))

    link.on("status", heard)
    link.joined.append(say)
    tasks = [asyncio.create_task(each()) for each in (serve, beat, answering.run)]
    try:
        yield executor
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


def test_a_task_is_sent_by_a_gateway_and_by_no_person(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, bench, alice = site.member("press"), site.member("bench"), site.member("alice", "engineer")
    site.roster(press)  # bench has an older one, without itself
    windows = tmp_path / "windows.npy"
    np.save(windows, np.zeros((2, 5, 2)))

    async def main() -> None:
        async with (
            hosted(tmp_path, press) as (_, where),
            computing(press, where) as executor,
            connected(where, press) as connection,
        ):
            await connection.publish(topics.roster(NAME), press.signed_roster, qos=1, retain=True)
            words = ["mesh", "submit", "wear", str(windows), "--broker", url(where), "--json", "--identity"]
            said = await edge_runtime(*words, str(alice.folder))
            assert (said.status, executor.computed) == (1, [])
            assert "alice is engineer: where a site has an authority, tasks go between gateways only" in said.error
            assert "--identity DIR of the gateway" in said.error
            said = await edge_runtime(*words, str(bench.folder))
            assert said.status == 0, said.error
            assert [each["gateway"] for each in said.json] == ["press", "press"]
            await connection.subscribe(topics.gateway(NAME, "bench", "status"))
            kept = envelope.unwrap((await connection.receive()).payload)
            assert not presence.unpack(kept, Birth).online  # it is gone
            said = await edge_runtime(*words, str(press.folder))
            assert (said.status, "the gateway press runs" in said.error) == (1, True)

    play(main)
