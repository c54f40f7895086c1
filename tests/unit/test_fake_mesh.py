"""The simulated network of many brokers, the simulated host and mDNS: the rules of the real ones, and their faults."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edge_runtime.ports import Address, BrokerError, Host, Will
from edge_runtime.ports_mesh import Announcement
from edge_runtime.testing import discovery_suite, host_suite
from edge_runtime.testing.discovery import Air, FakeDiscovery
from edge_runtime.testing.discovery_suite import DiscoverySuite
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.host import FakeHost, HostFaults
from edge_runtime.testing.host_suite import HostSuite
from edge_runtime.testing.lan import Lan, Line
from edge_runtime.testing.loop import VirtualLoop, run
from edge_runtime.testing.network import FakeBroker


def loop() -> VirtualLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualLoop)
    return running


def simulate(scenario: Callable[[Lan], Awaitable[Any]], *, seed: int = 1) -> Any:
    async def main() -> Any:
        return await scenario(Lan(loop()))

    return run(main, seed=seed)


class Hosts:
    def __init__(self, lan: Lan) -> None:
        self._fence = Fence("gw-1")
        self._broker = FakeBroker(lan, "gw-1", running=False)
        self._rng = loop().rng("host")
        self.bus = lan.bus(self._fence)

    def new(self) -> Host:
        return FakeHost(self._broker, self._fence, self._rng)

    def kill(self, _: Host) -> None:
        self._broker.kill()


class TestFakeHost(HostSuite):
    def play(self, scenario: host_suite.Scenario) -> None:
        for seed in range(3):
            simulate(lambda lan: scenario(Hosts(lan)), seed=seed)


class TestFakeDiscovery(DiscoverySuite):
    def play(self, scenario: discovery_suite.Scenario) -> None:
        for seed in range(3):
            simulate(lambda lan: self._among(lan, Air(lan, lost=0.2 * (loop().seed % 2)), scenario), seed=seed)

    async def _among(self, lan: Lan, air: Air, scenario: discovery_suite.Scenario) -> None:
        nodes = iter(range(100))
        await scenario(lambda: FakeDiscovery(air, Fence(f"gw-{next(nodes)}")))


def at(host: str, **more: Any) -> Address:
    return Address(**{"host": host, "keepalive_s": 2, **more})


def test_each_broker_stands_at_its_node_and_is_found_there_only() -> None:
    async def scenario(lan: Lan) -> None:
        for node in ("gw-1", "gw-2"):
            FakeBroker(lan, node)
        bus = lan.bus(Fence("gw-1"))
        mine, same, other = [await bus.connect(at(host)) for host in ("127.0.0.1", "gw-1", "gw-2")]
        for each in (mine, same, other):
            await each.subscribe("t")
        await mine.publish("t", b"x", qos=1)
        assert (await same.receive()).payload == (await mine.receive()).payload == b"x"
        await other.publish("t", b"y", qos=1)
        assert (await other.receive()).payload == b"y"
        for nowhere in (at("gw-3"), at("gw-1", port=1884)):
            with pytest.raises(BrokerError, match="refused"):
                await bus.connect(nowhere, timeout_s=1)

    simulate(scenario)


async def heard(connection: Any, within_s: float) -> bytes | str:
    try:
        async with asyncio.timeout(within_s):
            message = await connection.receive()
            connection.acknowledge(message)
            return bytes(message.payload)
    except BrokerError as error:
        return error.cause
    except TimeoutError:
        return "nothing"


def test_parted_groups_talk_inside_and_not_across_and_both_sides_notice() -> None:
    async def scenario(lan: Lan) -> None:
        FakeBroker(lan, "gw-1")
        inside, across = [await lan.bus(Fence(node)).connect(at("gw-1"), will=Will(node, b"gone")) for node in ("gw-2", "gw-3")]
        await inside.subscribe("#")
        lan.part(["gw-1", "gw-2"], ["gw-3", "gw-4"])
        began_s = loop().time()
        assert await heard(inside, 10) == b"gone"
        assert 3 <= loop().time() - began_s < 3.1
        assert "did not answer" in str(await heard(across, 0.1))
        with pytest.raises(BrokerError, match="no answer"):
            await lan.bus(Fence("gw-4")).connect(at("gw-1"), timeout_s=1)
        assert lan.component("gw-4", ["gw-1", "gw-2", "gw-3", "gw-4"]) == ["gw-3", "gw-4"]
        lan.heal()
        await (await lan.bus(Fence("gw-4")).connect(at("gw-1"), timeout_s=1)).publish("x", b"back", qos=1)
        assert await heard(inside, 1) == b"back"

    simulate(scenario)


def test_a_heal_in_time_breaks_no_connection_and_the_next_cut_counts_from_its_own_begin() -> None:
    async def scenario(lan: Lan) -> None:
        FakeBroker(lan, "gw-1")
        one = await lan.bus(Fence("gw-2")).connect(at("gw-1"))
        await one.subscribe("t")
        for _ in range(5):
            lan.cut("gw-2")
            lan.part(["gw-1"], ["gw-2"])
            await asyncio.sleep(2)
            lan.heal()
            await asyncio.sleep(0.1)
        await one.publish("t", b"x", qos=1)
        assert await heard(one, 1) == b"x"
        lan.cut("gw-2")
        began_s = loop().time()
        assert "did not answer" in str(await heard(one, 10))
        assert 2.5 <= loop().time() - began_s < 2.6

    simulate(scenario)


def test_a_broker_that_dies_behind_a_cut_is_noticed_all_the_same() -> None:
    async def scenario(lan: Lan) -> None:
        broker = FakeBroker(lan, "gw-1")
        one = await lan.bus(Fence("gw-2")).connect(at("gw-1"))
        broker.kill()
        lan.cut("gw-1")
        assert "did not answer" in str(await heard(one, 10))
        assert not lan.connections

    simulate(scenario)


def test_a_one_way_firewall_lets_the_other_way_in_and_what_was_open() -> None:
    async def scenario(lan: Lan) -> None:
        for node in ("gw-1", "gw-2"):
            FakeBroker(lan, node)
        before = await lan.bus(Fence("gw-1")).connect(at("gw-2"))
        lan.block("gw-1", "gw-2")
        await before.publish("t", b"", qos=1)
        with pytest.raises(BrokerError, match="no answer within 1 s"):
            await lan.bus(Fence("gw-1")).connect(at("gw-2"), timeout_s=1)
        await (await lan.bus(Fence("gw-2")).connect(at("gw-1"))).publish("t", b"", qos=1)
        lan.heal()
        await lan.bus(Fence("gw-1")).connect(at("gw-2"))

    simulate(scenario)


def test_a_bad_line_loses_qos_0_only_and_delays_the_rest_in_order() -> None:
    async def scenario(lan: Lan) -> tuple[int, bool]:
        FakeBroker(lan, "gw-1")
        lan.lines["gw-2", "gw-1"] = Line(lost=0.5, stalls=0.2)
        reader, writer = [await lan.bus(Fence(node)).connect(at("gw-1", keepalive_s=60)) for node in ("gw-3", "gw-2")]
        await reader.subscribe("#")
        for n in range(100):
            await writer.publish("t", b"%03d" % n, qos=n % 2)
        got = []
        while isinstance(payload := await heard(reader, 30), bytes):
            got.append(int(payload))
        assert [n for n in got if n % 2] == list(range(1, 100, 2))
        return len(got), loop().time() > 35

    told = [simulate(scenario, seed=seed) for seed in range(3)]
    assert all(50 < count < 100 for count, _ in told)
    assert any(late for _, late in told)


def test_a_message_of_qos_0_may_come_twice() -> None:
    async def scenario(lan: Lan) -> list[bytes | str]:
        FakeBroker(lan, "gw-1")
        lan.lines["gw-2", "gw-1"] = Line(twice=0.5)
        reader, writer = [await lan.bus(Fence(node)).connect(at("gw-1")) for node in ("gw-3", "gw-2")]
        await reader.subscribe("#")
        for n in range(20):
            await writer.publish("t", b"%02d" % n, qos=n % 2)
        got = []
        while (payload := await heard(reader, 5)) != "nothing":
            got.append(payload)
        return got

    got = simulate(scenario)
    assert len(set(got)) == 20
    assert 1 < sum(got.count(b"%02d" % n) == 2 for n in range(0, 20, 2)) < 10
    assert all(got.count(b"%02d" % n) == 1 for n in range(1, 20, 2))


def test_a_node_that_hangs_is_dropped_by_its_broker_and_goes_on_where_it_stopped() -> None:
    async def scenario(lan: Lan, stopped_s: float) -> tuple[list[str], bytes | str]:
        FakeBroker(lan, "gw-1")
        watcher = await lan.bus().connect(at("gw-1"))
        await watcher.subscribe("status")
        fence, steps = Fence("gw-2"), list[str]()

        async def node() -> None:
            connection = await lan.bus(fence).connect(at("gw-1"), will=Will("status", b"gone"))
            await connection.subscribe("t")
            await asyncio.sleep(1)
            steps.append(f"slept until {loop().time():.0f}")
            try:
                steps.append((await connection.receive()).payload.decode())
            except BrokerError as error:
                steps.append(error.cause)

        fence.start(node(), name="main")
        await asyncio.sleep(0.1)
        lan.hang(fence)
        await watcher.publish("t", b"meanwhile")
        seen = await heard(watcher, stopped_s)
        assert not steps
        fence.go_on()
        await asyncio.sleep(2)
        return steps, seen

    steps, seen = simulate(lambda lan: scenario(lan, 2))
    assert (steps, seen) == (["slept until 2", "meanwhile"], "nothing")
    steps, seen = simulate(lambda lan: scenario(lan, 4))
    assert (steps, seen) == (["slept until 3", "meanwhile"], b"gone")


def test_a_hosts_broker_dies_with_its_node_and_the_next_life_starts_it_empty_or_with_its_old_truth() -> None:
    async def scenario(lan: Lan, persistent: bool) -> list[str]:
        broker = FakeBroker(lan, "gw-1", persistent=persistent, running=False)
        fence = Fence("gw-1")

        async def life() -> None:
            host = FakeHost(broker, fence, loop().rng("host"))
            await host.start()
            await host.run()

        fence.start(life(), name="host")
        await asyncio.sleep(1)
        one = await lan.bus(Fence("gw-2")).connect(at("gw-1"))
        await one.publish("kept", b"x", qos=1, retain=True)
        fence.fall()
        assert "closed" in str(await heard(one, 1))
        with pytest.raises(BrokerError, match="refused"):
            await lan.bus(Fence("gw-2")).connect(at("gw-1"))
        await FakeHost(broker, Fence("gw-1"), loop().rng("host")).start()
        return list(broker.retained)

    assert simulate(lambda lan: scenario(lan, True)) == ["kept"]
    assert simulate(lambda lan: scenario(lan, False)) == []


def test_a_host_may_not_start() -> None:
    async def scenario(lan: Lan) -> None:
        faults = HostFaults(refuses=1.0)
        host = FakeHost(FakeBroker(lan, "gw-1", running=False), Fence("gw-1"), loop().rng("host"), faults)
        with pytest.raises(BrokerError, match="did not start"):
            await host.start()
        faults.refuses = 0.0
        await host.start()

    simulate(scenario)


def announcement(gateway: str, **more: Any) -> Announcement:
    return Announcement(**{"site": "s", "gateway": gateway, "instance": f"{gateway}-1", "role": "candidate", **more})


def test_an_announcement_made_during_a_cut_is_heard_after_the_heal_and_a_killed_one_stays_for_its_ttl() -> None:
    async def scenario(lan: Lan) -> None:
        air = Air(lan, ttl_s=10)
        fence = Fence("gw-2")
        one, two = FakeDiscovery(air, Fence("gw-1")), FakeDiscovery(air, fence)
        await one.open(announcement("gw-1"))
        lan.cut("gw-2")
        await two.open(announcement("gw-2"))
        await asyncio.sleep(20)
        assert one.found() == []
        lan.heal()
        began_s = loop().time()
        assert [each.gateway for each in await discovery_suite.eventually(one, bool)] == ["gw-2"]
        assert loop().time() - began_s < 5
        fence.fall()
        await asyncio.sleep(5)
        assert [each.gateway for each in one.found()] == ["gw-2"]
        one.changed.clear()
        await discovery_suite.eventually(one, lambda found: not found)

    simulate(scenario)
