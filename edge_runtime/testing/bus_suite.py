"""The rules of ports.Bus and ports.Connection as tests: they run over the real client with a real broker, and over the
simulated ones, so that what the simulator teaches is true outside of it.

    class TestMyBus(BusSuite):
        def play(self, scenario):           # asyncio.run, or the simulator's run
            with my_broker() as broker:
                asyncio.run(scenario(broker))

The broker keeps QUEUED_MAX messages for a client that is away and hands out INFLIGHT_MAX that are not acknowledged.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterable
from typing import Any, Protocol

import pytest

from edge_runtime.ports import Address, BrokerError, Bus, Connection, Message, Will

QUEUED_MAX = 100
INFLIGHT_MAX = 20
FAR_TOO_LONG_S = 10.0
"""What has not come by now never will; no promise of speed."""

QUIET_S = 0.3
"""What has not come by now is not on its way."""


class BrokerInTest(Protocol):
    """A broker and the bus that reaches it."""

    bus: Bus

    def address(self, **changes: Any) -> Address:
        """Address(host, port, **changes)"""
        ...

    def kill(self) -> None:
        """kill -9"""
        ...

    def start(self) -> None: ...

    def sever(self, connection: Any) -> None:
        """Breaks a connection without a DISCONNECT."""
        ...


Scenario = Callable[[BrokerInTest], Awaitable[None]]


class BusSuite:
    """Subclass it and give `play`."""

    def play(self, scenario: Scenario) -> None:
        raise NotImplementedError

    def test_messages_arrive_in_order_with_the_lower_qos(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            one, other = await connect(broker), await connect(broker)
            await one.subscribe("a/#", qos=1)
            await one.subscribe("b", qos=0)
            for n in range(INFLIGHT_MAX):
                await other.publish("a/x", b"%d" % n, qos=n % 2)
            got = await take(one, INFLIGHT_MAX)
            assert payloads(got) == [b"%d" % n for n in range(INFLIGHT_MAX)]
            assert [each.qos for each in got] == [n % 2 for n in range(INFLIGHT_MAX)]
            assert {(each.topic, each.retain, each.duplicate) for each in got} == {("a/x", False, False)}
            await other.publish("b", b"", qos=1)
            assert [each.qos for each in await take(one, 1)] == [0]
            await close(one, other)

        self.play(scenario)

    def test_a_retained_message_is_kept_until_an_empty_one(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            one, other = await connect(broker), await connect(broker)
            await one.publish("state", b"old", qos=1, retain=True)
            await one.publish("state", b"on", qos=1, retain=True)
            await other.subscribe("+")
            assert [(m.payload, m.retain) for m in await take(other, 1)] == [(b"on", True)]
            await one.publish("state", b"off", qos=1, retain=True)
            assert [(m.payload, m.retain) for m in await take(other, 1)] == [(b"off", False)]
            await one.publish("state", b"", qos=1, retain=True)
            await take(other, 1)
            third = await connect(broker)
            await third.subscribe("state")
            await nothing_comes(third)
            await close(one, other, third)

        self.play(scenario)

    @pytest.mark.parametrize(
        ("pattern", "topics"),
        [
            ("a/b", ["a/b"]),
            ("a/+", ["a/b", "a/"]),
            ("a/#", ["a", "a/b", "a/b/c", "a/"]),
            ("#", ["a", "a/b", "a/b/c", "a/", "/a"]),
            ("+", ["a"]),
            ("+/+", ["a/b", "a/", "/a"]),
            ("+/b/#", ["a/b", "a/b/c"]),
        ],
    )
    def test_filters(self, pattern: str, topics: list[str]) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            one, other = await connect(broker), await connect(broker)
            await one.subscribe(pattern)
            for topic in ("a", "a/b", "a/b/c", "a/", "/a", "$own/b"):
                await other.publish(topic, b"", qos=1)
            assert [each.topic for each in await take(one, len(topics))] == topics
            await nothing_comes(one)
            await close(one, other)

        self.play(scenario)

    def test_a_message_comes_once_though_two_filters_match(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            one = await connect(broker)
            await one.subscribe("a/#", "a/+")
            await one.publish("a/b", b"x", qos=1)
            await take(one, 1)
            await nothing_comes(one)
            await close(one)

        self.play(scenario)

    def test_what_is_unsubscribed_comes_no_more(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            one, other = await connect(broker), await connect(broker)
            await one.subscribe("a", "b", "c/+")
            await other.publish("a", b"before", qos=1)
            assert payloads(await take(one, 1)) == [b"before"]
            await one.unsubscribe("a", "c/+", "never/subscribed")
            for topic in ("a", "b", "c/d"):
                await other.publish(topic, b"after", qos=1)
            assert [each.topic for each in await take(one, 1)] == ["b"]
            await nothing_comes(one)
            await one.subscribe("a")
            await other.publish("a", b"again", qos=1)
            assert payloads(await take(one, 1)) == [b"again"]
            with pytest.raises(BrokerError, match="not a topic filter"):
                await one.unsubscribe("a/#/b")
            waiting = asyncio.create_task(one.receive())
            broker.kill()
            with pytest.raises(BrokerError):
                await waiting
            with pytest.raises(BrokerError):
                await one.unsubscribe("a")
            await close(one, other)

        self.play(scenario)

    def test_a_kept_session_gets_what_came_while_it_was_away(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            kept = broker.address(client_id="kept", clean=False)
            one, other = await broker.bus.connect(kept), await connect(broker)
            assert not one.session_present
            await one.subscribe("t")
            await one.close()
            await other.publish("t", b"not kept", qos=0)
            for n in range(30):
                await other.publish("t", b"%d" % n, qos=1)
            one = await broker.bus.connect(kept)
            assert one.session_present
            await asyncio.sleep(QUIET_S)  # what comes right at CONNACK waits until somebody asks
            got = []
            for _ in range(30):
                got += await take(one, 1)
                one.acknowledge(got[-1])
            assert [(m.payload, m.duplicate) for m in got] == [(b"%d" % n, False) for n in range(30)]
            await nothing_comes(one)
            await one.close()
            one = await broker.bus.connect(broker.address(client_id="kept"))
            assert not one.session_present
            await one.close()
            one = await broker.bus.connect(kept)
            assert not one.session_present
            await close(one, other)

        self.play(scenario)

    def test_what_was_not_acknowledged_comes_again_and_stale_acknowledgements_do_nothing(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            kept = broker.address(client_id="kept", clean=False)
            one, other = await broker.bus.connect(kept), await connect(broker)
            await one.subscribe("t")
            for n in range(4):
                await other.publish("t", b"%d" % n, qos=1)
            old = await take(one, 4)
            for message in (old[0], old[3], old[2]):  # 1 is missing: only 0 goes out
                one.acknowledge(message)
            await asyncio.sleep(QUIET_S)
            broker.sever(one)
            one = await broker.bus.connect(kept)
            again = await take(one, 3)
            assert [(m.payload, m.duplicate) for m in again] == [(b"1", True), (b"2", True), (b"3", True)]
            for message in old:
                one.acknowledge(message)
            one.acknowledge(again[0])
            await one.close()
            one = await broker.bus.connect(kept)
            assert payloads(await take(one, 2)) == [b"2", b"3"]
            await close(one, other)

        self.play(scenario)

    def test_so_many_are_handed_out_without_an_acknowledgement(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            one, other = await connect(broker), await connect(broker)
            await one.subscribe("t")
            for n in range(50):
                await other.publish("t", b"%d" % n, qos=1)
            got = await take(one, INFLIGHT_MAX)
            await nothing_comes(one)
            for n in range(50 - INFLIGHT_MAX):
                # At least one more for each; mosquitto 2.0.11 hands out a whole window more.
                one.acknowledge(got[n])
                if len(got) <= INFLIGHT_MAX + n:
                    got += await take(one, 1)
            got += await take(one, 50 - len(got))
            assert payloads(got) == [b"%d" % n for n in range(50)]
            await close(one, other)

        self.play(scenario)

    def test_a_full_queue_drops_without_a_word_what_was_acknowledged_to_its_publisher(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            kept = broker.address(client_id="kept", clean=False)
            one, other = await broker.bus.connect(kept), await connect(broker)
            await one.subscribe("t")
            await one.close()
            for n in range(3 * QUEUED_MAX):
                await other.publish("t", b"%d" % n, qos=1)
            one = await broker.bus.connect(kept)
            got: list[Message] = []
            while message := await one_more(one):
                one.acknowledge(message)
                got.append(message)
            assert QUEUED_MAX <= len(got) <= QUEUED_MAX + INFLIGHT_MAX
            assert payloads(got) == [b"%d" % n for n in range(len(got))]
            await close(one, other)

        self.play(scenario)

    def test_the_will_is_sent_when_the_connection_breaks_and_only_then(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            watcher = await connect(broker)
            await watcher.subscribe("status")
            will = Will("status", b"gone")
            one = await broker.bus.connect(broker.address(client_id="a"), will=will)
            await one.close()
            await nothing_comes(watcher)
            one = await broker.bus.connect(broker.address(client_id="a"), will=will)
            broker.sever(one)
            assert payloads(await take(watcher, 1)) == [b"gone"]
            late = await connect(broker)
            await late.subscribe("status")
            assert [(m.payload, m.retain) for m in await take(late, 1)] == [(b"gone", True)]
            await close(watcher, late)

        self.play(scenario)

    def test_who_takes_over_a_client_id_ends_the_other_connection(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            one = await broker.bus.connect(broker.address(client_id="twin"))
            other = await broker.bus.connect(broker.address(client_id="twin"))
            with pytest.raises(BrokerError):
                await take(one, 1)
            await other.publish("t", b"", qos=1)
            await close(one, other)

        self.play(scenario)

    def test_a_killed_broker_is_told_to_everyone_who_waits_and_what_had_come_is_handed_out(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            one = await connect(broker)
            await one.subscribe("t")
            await one.publish("t", b"before", qos=1)
            waiting = asyncio.create_task(take(one, 2))
            await asyncio.sleep(QUIET_S)
            broker.kill()
            with pytest.raises(BrokerError):
                await waiting
            for failing in (one.receive(), one.publish("t", b""), one.publish("t", b"", qos=1), one.subscribe("t")):
                with pytest.raises(BrokerError):
                    await failing
            with pytest.raises(BrokerError):
                await connect(broker)
            broker.start()
            await close(one, await connect(broker))

        self.play(scenario)

    def test_what_had_come_in_is_handed_out_before_the_error(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            one = await connect(broker)
            await one.subscribe("t")
            for n in range(3):
                await one.publish("t", b"%d" % n, qos=1)
            await asyncio.sleep(QUIET_S)
            broker.kill()
            await asyncio.sleep(QUIET_S)
            assert payloads(await take(one, 3)) == [b"0", b"1", b"2"]
            with pytest.raises(BrokerError):
                await one.receive()
            await close(one)

        self.play(scenario)

    def test_receive_can_be_cancelled_without_losing_a_message(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            one, other = await connect(broker), await connect(broker)
            await one.subscribe("t")
            got: list[Message] = []

            async def impatient() -> None:
                while len(got) < 200:
                    try:
                        async with asyncio.timeout(0.0005):
                            message = await one.receive()
                            one.acknowledge(message)
                            got.append(message)
                    except TimeoutError:
                        continue

            task = asyncio.create_task(impatient())
            for n in range(200):
                await other.publish("t", b"%d" % n, qos=1)
            async with asyncio.timeout(FAR_TOO_LONG_S):
                await task
            assert payloads(got) == [b"%d" % n for n in range(200)]
            await close(one, other)

        self.play(scenario)

    def test_what_cannot_be_is_refused(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            one = await connect(broker)
            for failing in (
                one.subscribe("a/#/b"),
                one.subscribe("a", "b+"),
                one.publish("a/+", b""),
                one.publish("#", b"", qos=1),
            ):
                with pytest.raises(BrokerError):
                    await failing
            with pytest.raises(BrokerError, match="needs a client_id"):
                await broker.bus.connect(broker.address(client_id="", clean=False))
            await one.publish("t", b"", qos=1)
            await close(one)

        self.play(scenario)

    def test_close_twice(self) -> None:
        async def scenario(broker: BrokerInTest) -> None:
            one = await connect(broker)
            waiting = asyncio.create_task(one.receive())
            await asyncio.sleep(0)
            await close(one, one)
            with pytest.raises(BrokerError, match="closed by us"):
                await waiting
            with pytest.raises(BrokerError, match="closed by us"):
                await one.publish("t", b"")

        self.play(scenario)


async def connect(broker: BrokerInTest) -> Connection:
    return await broker.bus.connect(broker.address())


async def close(*connections: Connection) -> None:
    for each in connections:
        await each.close()


async def take(connection: Connection, count: int) -> list[Message]:
    async with asyncio.timeout(FAR_TOO_LONG_S):
        return [await connection.receive() for _ in range(count)]


async def one_more(connection: Connection) -> Message | None:
    try:
        async with asyncio.timeout(QUIET_S):
            return await connection.receive()
    except TimeoutError:
        return None


async def nothing_comes(connection: Connection) -> None:
    assert await one_more(connection) is None


def payloads(messages: Iterable[Message]) -> list[bytes]:
    return [each.payload for each in messages]
