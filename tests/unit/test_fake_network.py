"""The simulated bus: the rules of the real one, and what only a simulation can do."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import pytest

from edge_runtime.ports import Address, BrokerError, Will
from edge_runtime.testing.bus_suite import INFLIGHT_MAX, QUEUED_MAX, BusSuite, Scenario
from edge_runtime.testing.connection import FakeConnection
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.loop import VirtualLoop, run
from edge_runtime.testing.network import FakeBroker, matches

HOST = Address(host="broker", client_id="press-1", clean=False, keepalive_s=2)


class Simulated:
    def __init__(self, loop: VirtualLoop) -> None:
        lan = Lan(loop)
        broker = FakeBroker(lan, queued_max=QUEUED_MAX, inflight_max=INFLIGHT_MAX)
        self.bus = lan.bus()
        self.kill, self.start, self.sever = broker.kill, broker.start, lan.sever

    def address(self, **changes: Any) -> Address:
        return Address(**{"host": "broker", **changes})


class TestFakeBus(BusSuite):
    @pytest.fixture(autouse=True, params=range(3))
    def _seed(self, request: pytest.FixtureRequest) -> None:
        self.seed = request.param

    def play(self, scenario: Scenario) -> None:
        async def main() -> None:
            await scenario(Simulated(loop()))

        run(main, seed=self.seed)


def loop() -> VirtualLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualLoop)
    return running


def simulate(scenario: Callable[[Lan, FakeBroker], Awaitable[Any]], *, seed: int = 1, **options: Any) -> Any:
    async def main() -> Any:
        lan = Lan(loop())
        return await scenario(lan, FakeBroker(lan, **options))

    return run(main, seed=seed)


@pytest.mark.parametrize(
    ("topic", "pattern", "yes"),
    [
        ("a", "a/#", True),
        ("a/b", "#", True),
        ("$SYS/x", "#", False),
        ("$SYS/x", "$SYS/#", True),
        ("a", "a/+", False),
        ("b/c", "a/#", False),
    ],
)
def test_matches(topic: str, pattern: str, yes: bool) -> None:
    assert matches(topic, pattern) is yes


def test_a_short_cut_delays_and_a_long_one_breaks_the_connection_and_sends_the_will() -> None:
    async def scenario(lan: Lan, broker: FakeBroker) -> None:
        fence = Fence("press-1")
        one = await lan.bus(fence).connect(HOST, will=Will("status", b"gone"))
        watcher = await lan.bus().connect(Address(host="broker"))
        await watcher.subscribe("status", "t")
        lan.cut("press-1")
        publish = asyncio.create_task(one.publish("t", b"x", qos=1))
        await asyncio.sleep(1)
        assert not publish.done()
        lan.heal("press-1")
        await publish
        assert (await watcher.receive()).payload == b"x"
        lan.cut("press-1")
        began = loop().time()
        with pytest.raises(BrokerError, match="did not answer"):
            await one.receive()
        assert (await watcher.receive()).payload == b"gone"
        assert 3 <= loop().time() - began < 3.1
        with pytest.raises(BrokerError, match="no answer within 5 s"):
            await lan.bus(fence).connect(HOST)
        lan.heal("press-1")
        assert (await lan.bus(fence).connect(HOST)).session_present

    simulate(scenario)


def test_an_attempt_that_began_during_a_cut_succeeds_when_it_heals_in_time() -> None:
    async def scenario(lan: Lan, broker: FakeBroker) -> None:
        lan.cut("harness")
        attempt = asyncio.create_task(lan.bus().connect(HOST))
        await asyncio.sleep(2)
        lan.heal("harness")
        await (await attempt).publish("t", b"", qos=1)

    simulate(scenario)


def test_a_dead_node_is_seen_by_the_broker_and_its_packets_may_or_may_not_arrive() -> None:
    async def scenario(lan: Lan, broker: FakeBroker) -> tuple[bytes, ...]:
        watcher = await lan.bus().connect(Address(host="broker"))
        await watcher.subscribe("#")
        fence = Fence("press-1")

        async def node() -> None:
            connection = await lan.bus(fence).connect(HOST, will=Will("status", b"gone"))
            try:
                await connection.publish("t", b"x", qos=1)
                fence.fall()
                await asyncio.sleep(1)
            finally:
                again = await lan.bus(fence).connect(HOST)
                await again.publish("t", b"never", qos=1)

        async def burst() -> None:
            connection = await lan.bus(fence).connect(Address(host="broker"))
            for _ in range(10):
                await connection.publish("t", b"y")
            fence.fall()

        fence.start(burst() if loop().seed % 2 else node(), name="main")
        await fence.gone.wait()
        got = []
        while True:
            try:
                async with asyncio.timeout(5):
                    got.append((await watcher.receive()).payload)
            except TimeoutError:
                assert len(lan.connections) == 1
                return tuple(got)

    assert {simulate(scenario, seed=seed) for seed in range(0, 20, 2)} == {(b"x", b"gone")}
    assert {len(simulate(scenario, seed=seed)) for seed in range(1, 40, 2)} == {0, 10}


def test_connections_wear_out_and_nothing_that_was_acknowledged_is_lost() -> None:
    """A publisher that tries again, a subscriber with a kept session: each message at least once, over any breaks."""

    async def scenario(lan: Lan, broker: FakeBroker) -> tuple[list[bytes], int, str]:
        got: list[bytes] = []
        breaks = 0

        async def subscriber() -> None:
            while True:
                try:
                    connection = await lan.bus().connect(HOST)
                    await connection.subscribe("t")
                    while True:
                        message = await connection.receive()
                        await asyncio.sleep(0.01)
                        got.append(message.payload)
                        connection.acknowledge(message)
                except BrokerError:
                    await asyncio.sleep(0.1)

        async def publisher() -> None:
            nonlocal breaks
            connection: FakeConnection | None = None
            for n in range(100):
                while True:
                    try:
                        connection = connection or await lan.bus().connect(Address(host="broker"))
                        await connection.publish("t", b"%03d" % n, qos=1)
                        break
                    except BrokerError:
                        connection, breaks = None, breaks + 1
                await asyncio.sleep(0.05)

        reader = asyncio.create_task(subscriber())
        await asyncio.sleep(1)
        await publisher()
        await asyncio.sleep(60)
        reader.cancel()
        return got, breaks, loop().digest()

    runs = [simulate(scenario, seed=seed, lifetime_s=0.5) for seed in range(5)]
    for got, breaks, _ in runs:
        assert sorted(set(got)) == [b"%03d" % n for n in range(100)]
        assert breaks > 0
    assert runs == [simulate(scenario, seed=seed, lifetime_s=0.5) for seed in range(5)]
    assert max(len(got) for got, _, _ in runs) > 100  # duplicates are part of it


def test_a_broker_without_persistence_comes_back_empty() -> None:
    async def scenario(lan: Lan, broker: FakeBroker) -> bool:
        one = await lan.bus().connect(HOST)
        await one.publish("kept", b"x", qos=1, retain=True)
        broker.kill()
        await asyncio.sleep(1)
        broker.start()
        one = await lan.bus().connect(HOST)
        assert bool(broker.retained) == one.session_present
        return one.session_present

    assert simulate(scenario) is True
    assert simulate(scenario, persistent=False) is False


def test_a_broker_can_refuse() -> None:
    async def scenario(lan: Lan, broker: FakeBroker) -> None:
        with pytest.raises(BrokerError, match="not authorized"):
            await lan.bus().connect(HOST)

    simulate(scenario, refuse=lambda _: "the broker refused us: not authorized")


def test_lost_connections_leave_nothing_behind() -> None:
    async def scenario(lan: Lan, broker: FakeBroker) -> None:
        fence = Fence("press-1")
        for _ in range(50):
            one = await lan.bus(fence).connect(HOST)
            lan.sever(one)
            two = await lan.bus(fence).connect(HOST)
            await two.close()
            await asyncio.sleep(1)
        assert not fence.on_fall
        assert not lan.connections

    simulate(scenario)
