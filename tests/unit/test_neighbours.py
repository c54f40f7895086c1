"""What gateways keep for each other: on the disk, verified, said again by one of many on a broker that does not know it."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import msgspec
import pytest
import worlds
from outboxes import LOG
from steered import Steered
from trusted import Site

from edge_runtime import config
from edge_runtime.bus import control as messages
from edge_runtime.bus import topics
from edge_runtime.bus.control import Desired, Reported
from edge_runtime.bus.messages import BadMessage
from edge_runtime.control import neighbours
from edge_runtime.control.neighbours import Neighbours, opened_kept
from edge_runtime.control.neighbours_file import NeighboursFile
from edge_runtime.outbox.database import FileDisk
from edge_runtime.ports import Message
from edge_runtime.testing.loop import InlineWorker, SeededDice, VirtualLoop, run
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.roster import Forged

SITE = "plant-1"
DESIRED = topics.desired(SITE, "gw/dead")
REPORTED = topics.gateway(SITE, "dead", "config", "reported")
KEPT = topics.gateway(SITE, "dead", "config", "kept")


def on_virtual_time(test: Callable[[Path], Coroutine[Any, Any, None]]) -> Callable[[Path], None]:
    def wrapped(tmp_path: Path) -> None:
        run(lambda: test(tmp_path), seed=1)

    wrapped.__name__ = test.__name__
    return wrapped


class Broker:
    """Retained messages, and everybody hears everything at once."""

    def __init__(self) -> None:
        self.retained: dict[str, bytes] = {}
        self.said: list[tuple[str, str]] = []
        self.links: list[Link] = []


class Link:
    """As mesh.link.Link has it, on a broker that can be replaced by an empty one."""

    site, connected = SITE, True

    def __init__(self, gateway: str) -> None:
        self.gateway = gateway
        self.handler: Callable[[str, Message], None]
        self.broker: Broker

    def overhear(self, kind: Any, handler: Callable[[str, Message], None], *filters: str) -> None:
        self.handler = handler

    async def send(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        assert (qos, retain) == (1, True)
        self.broker.retained[topic] = payload
        self.broker.said.append((self.gateway, topic))
        for link in self.broker.links:
            link.hear(topic, payload, retain=False)

    def hear(self, topic: str, payload: bytes, *, retain: bool) -> None:
        parsed = topics.parse(topic)
        self.handler(parsed[1] if parsed else "", Message(topic, payload, 1, retain, False, 0, 0))


class Plant:
    """Gateways with what they keep."""

    def __init__(self, folder: Path, identities: dict[str, Identity | None]) -> None:
        self.folder, self.identities = folder, identities
        self.all: dict[str, Neighbours] = {}
        self.links: dict[str, Link] = {}

    @contextlib.asynccontextmanager
    async def running(self, broker: Broker) -> AsyncIterator[None]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        async with asyncio.TaskGroup() as group:
            tasks = []
            for name, identity in self.identities.items():
                link = Link(name)
                settings = config.Config.model_validate({"site": SITE, "gateway": name})
                file = NeighboursFile(FileDisk(16), self.folder / f"{name}.db")
                one = Neighbours(
                    link,
                    identity,
                    lambda s=settings: s,
                    file,
                    lambda: InlineWorker(loop.rng("worker")),
                    lambda: False,
                    SeededDice(loop.rng(name)),
                    LOG,
                )
                self.all[name], self.links[name] = one, link
                tasks.append(group.create_task(one.run()))
            await asyncio.sleep(0)
            await self.move(broker)
            yield
            for task in tasks:
                task.cancel()

    async def move(self, broker: Broker) -> None:
        for name, link in self.links.items():
            link.broker = broker
            broker.links.append(link)
            await self.all[name].joined()
            for topic, payload in list(broker.retained.items()):
                link.hear(topic, payload, retain=True)


def desired(revision: int, *, target: str = "gw/dead", **patch: Any) -> bytes:
    return messages.pack(Desired(target=target, revision=revision, patch=patch))


def report(wall_ns: int = 1, gateway: str = "dead", **more: Any) -> bytes:
    return messages.pack(Reported(gateway=gateway, state="active", config={"site": SITE}, wall_ns=wall_ns, **more))


def alone(count: int) -> dict[str, Identity | None]:
    return {f"g{n}": None for n in range(count)}


async def wait() -> None:
    await asyncio.sleep(2 * neighbours.LISTEN_S_MAX)


@on_virtual_time
async def test_of_twenty_gateways_one_says_it_on_an_empty_broker(tmp_path: Path) -> None:
    plant, first, second = Plant(tmp_path, alone(20)), Broker(), Broker()
    first.retained = {DESIRED: desired(7, a=1), REPORTED: report()}
    async with plant.running(first):
        await wait()
        assert [topic for _, topic in first.said] == [KEPT]
        await plant.move(second)
        await wait()
    assert sorted(topic for _, topic in second.said) == [DESIRED, KEPT]
    assert second.retained[DESIRED] == first.retained[DESIRED]
    assert opened_kept(second.retained[KEPT], None, "dead")[1] == report()


@on_virtual_time
async def test_it_is_on_the_disk_and_never_takes_the_place_of_a_newer_one(tmp_path: Path) -> None:
    broker, stale = Broker(), Broker()
    broker.retained = {DESIRED: desired(7, a=1)}
    async with Plant(tmp_path, alone(2)).running(broker):
        await wait()
    newer = Broker()
    newer.retained = {DESIRED: desired(8, a=2)}
    async with Plant(tmp_path, alone(1)).running(newer):
        await wait()
    assert newer.said == []
    stale.retained = {DESIRED: desired(7, a=1)}
    async with Plant(tmp_path, alone(2)).running(stale):
        await wait()
    assert stale.said == [("g0", DESIRED)]
    assert stale.retained == newer.retained


@on_virtual_time
async def test_a_report_that_is_said_now_is_newer_whatever_the_clock_says(tmp_path: Path) -> None:
    plant, broker = Plant(tmp_path, alone(3)), Broker()
    broker.retained = {REPORTED: report(wall_ns=1_000)}
    async with plant.running(broker):
        await wait()
        plant.links["g0"].hear(REPORTED, late := report(wall_ns=5, cause="after a cut"), retain=False)
        await wait()
        await plant.move(again := Broker())
        await wait()
    assert opened_kept(again.retained[KEPT], None, "dead")[1] == late


@on_virtual_time
async def test_with_a_site_only_what_is_signed_is_kept_and_it_outlives_the_key(tmp_path: Path) -> None:
    site = Site(tmp_path)
    dead, alice = site.member("dead"), site.member("alice", "engineer")
    g0, g1 = site.member("g0"), site.member("g1")
    site.roster(g0, g1, dead, alice)
    plant, broker = Plant(tmp_path, {"g0": g0, "g1": g1}), Broker()
    good = alice.sign(desired(7, a=1), "desired")
    broker.retained = {
        DESIRED: good,
        REPORTED: dead.sign(report(), "reported"),
        topics.desired(SITE, "gw/other"): desired(3, target="gw/other", a=1),
        topics.desired(SITE, "group/all"): dead.sign(desired(3, target="group/all", a=1), "desired"),
        topics.desired(SITE, "group/copied"): good,
        topics.gateway(SITE, "other", "config", "reported"): dead.sign(report(gateway="other"), "reported"),
        topics.gateway(SITE, "fourth", "config", "reported"): dead.sign(report(), "reported"),
        topics.gateway(SITE, "third", "config", "kept"): alice.sign(b"{}", "kept"),
    }
    async with plant.running(broker):
        await wait()
        site.authority.revoke("dead", "dead")
        site.roster(g0, g1)
        await plant.move(again := Broker())
        await wait()
    assert again.retained.keys() == {DESIRED, KEPT}
    assert again.retained[DESIRED] == good
    assert opened_kept(again.retained[KEPT], g1, "dead")[2] == messages.unpack(report(), Reported)
    with pytest.raises(BadMessage, match="kept"):
        opened_kept(report(), None, "dead")


@on_virtual_time
async def test_what_a_member_takes_from_the_broker_or_writes_over_is_said_again(tmp_path: Path) -> None:
    site = Site(tmp_path)
    dead, alice, g0, g1 = site.member("dead"), site.member("alice", "engineer"), site.member("g0"), site.member("g1")
    site.roster(g0, g1, dead, alice)
    plant, broker = Plant(tmp_path, {"g0": g0, "g1": g1}), Broker()
    good = alice.sign(desired(7, a=1), "desired")
    broker.retained = {DESIRED: good, REPORTED: dead.sign(report(), "reported")}

    def say(payload: bytes) -> None:
        broker.said.clear()
        for topic in (DESIRED, KEPT):
            broker.retained[topic] = payload
            for link in plant.links.values():
                link.hear(topic, payload, retain=False)

    async with plant.running(broker):
        await wait()
        kept = broker.retained[KEPT]
        for payload in (b"", b"garbage", g0.sign(desired(9, a=2), "desired")):
            say(payload)
            await wait()
            assert broker.retained[DESIRED] == good
            assert broker.retained[KEPT] == kept
            assert sorted(topic for _, topic in broker.said) == [DESIRED, KEPT], "one of the two says it, once"
        site.authority.revoke("alice", "gone")
        site.roster(g0, g1)
        say(b"")
        await wait()
    assert [topic for _, topic in broker.said] == [KEPT], "what a revoked engineer has signed counts no more"


def test_what_is_kept_of_a_gateway_is_its_own_word(tmp_path: Path) -> None:
    """Else any other gateway could write the configuration of the hardware that replaces it."""
    site = Site(tmp_path)
    dead, evil, alice = site.member("dead"), site.member("evil"), site.member("alice", "engineer")
    own = dead.sign(report(), "reported")
    site.authority.revoke("dead", "dead")
    site.roster(alice, evil)
    assert opened_kept(neighbours.pack_kept(5, own), alice, "dead")[2].gateway == "dead"
    for forged in (
        report(),
        evil.sign(report(), "reported"),
        dead.sign(report(), "birth"),
        own.replace(b"active", b"trial"),
        neighbours.envelope.seal(report(), "reported", evil.key, "dead"),
        evil.sign(report(gateway="evil"), "reported"),
    ):
        with pytest.raises(Forged):
            opened_kept(neighbours.pack_kept(5, forged), alice, "dead")
    sealed = evil.sign(neighbours.pack_kept(5, report()), "kept")
    with pytest.raises((BadMessage, Forged)):
        opened_kept(sealed, alice, "dead")
    site.authority.issue(site.csr(), "dead", "gateway")
    site.roster(alice)
    assert opened_kept(neighbours.pack_kept(5, own), alice, "dead")[2].gateway == "dead"


@on_virtual_time
async def test_a_rank_or_revision_beyond_all_others_is_not_kept(tmp_path: Path) -> None:
    plant, broker = Plant(tmp_path, alone(1)), Broker()
    async with plant.running(broker):
        link, held = plant.links["g0"], plant.all["g0"].ranks
        link.hear(DESIRED, desired(2**53), retain=True)
        link.hear(KEPT, neighbours.pack_kept(2**63 - 2, report()), retain=True)
        await wait()
        assert held == {}
        link.hear(REPORTED, report(wall_ns=2**70), retain=False)
        await wait()
        link.hear(REPORTED, report(wall_ns=2**70, cause="again"), retain=False)
        await wait()
        assert held == {("kept", "gw/dead"): neighbours.RANK_MAX + 1}


@on_virtual_time
async def test_what_is_kept_is_bounded(tmp_path: Path) -> None:
    plant, broker = Plant(tmp_path, alone(1)), Broker()
    async with plant.running(broker):
        for number in range(neighbours.THINGS_MAX + 50):
            plant.links["g0"].hear(
                topics.desired(SITE, f"gw/x{number}"), desired(1, target=f"gw/x{number}", a=number), retain=True
            )
            await asyncio.sleep(0.02)
        await wait()
        assert len(plant.all["g0"].ranks) == neighbours.THINGS_MAX


@on_virtual_time
async def test_a_damaged_file_is_set_aside_and_begun_anew(tmp_path: Path) -> None:
    (tmp_path / "g0.db").write_bytes(b"no database at all" * 1000)
    broker = Broker()
    broker.retained = {DESIRED: desired(7, a=1)}
    async with Plant(tmp_path, alone(1)).running(broker):
        await wait()
    assert [each.what for each in NeighboursFile(FileDisk(16), tmp_path / "g0.db").things()] == ["desired"]
    assert (tmp_path / "g0.db.corrupt-1").exists()
    assert msgspec.json.decode(NeighboursFile(FileDisk(16), tmp_path / "g0.db").payload("desired", "gw/dead"))["revision"] == 7


def test_what_is_wanted_of_another_gateway_is_kept_and_changes_nothing_here(tmp_path: Path) -> None:
    async def scenario(site: worlds.Site) -> None:
        async with Steered(site, devices={"d": worlds.plc("x")}, pipelines={"p": {"device": "d"}}).running() as steered:
            before = steered.gateway.settings
            await steered.want("gw/other", revision=3, patch={"log": {"level": "error"}})
            file = NeighboursFile(FileDisk(16), site.folder / "data" / "neighbours.db")
            await worlds.until(lambda: file.things())
            assert [(each.what, each.target, each.rank) for each in file.things()] == [("desired", "gw/other", 3)]
            await asyncio.sleep(5)
            assert steered.gateway.settings == before
            assert steered.states == ["active"]

    worlds.simulated(scenario, tmp_path)
