"""The receiver's MQTT door against a real mosquitto: backlog, forged and damaged batches, a broker that goes."""

from __future__ import annotations

import asyncio
import sqlite3
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager
from pathlib import Path

import pytest
from brokers import Broker, mosquitto
from receivers import ReceiverProcess, receiver, records

from edge_runtime.bus import messages, topics
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.messages import ReceiptMessage
from edge_runtime.outbox.sinks.mqtt import MqttSink
from edge_runtime.ports import Connection
from edge_runtime.records import Lane
from edge_runtime.testing.sink_suite import open_again

RECEIPTS = topics.gateway("site", "gw", "receipt", "cloud")
BATCHES = topics.gateway("site", "gw", "batch", "cloud")


@pytest.fixture
def broker(tmp_path: Path) -> Iterator[Broker]:
    with mosquitto(tmp_path) as running:
        yield running


@pytest.fixture
def far_end(tmp_path: Path, broker: Broker) -> Iterator[ReceiverProcess]:
    with receiver(tmp_path, "--mqtt", broker.url, mqtt=True) as process:
        asyncio.run(until_subscribed(broker))
        yield process


def sink(broker: Broker, gateway: str = "gw") -> MqttSink:
    return MqttSink("site", gateway, "cloud", PahoBus(), lambda: broker.address(client_id=gateway), timeout_s=2.0)


async def until_subscribed(broker: Broker) -> None:
    each = sink(broker)
    await open_again(each, [])
    await each.close()


@asynccontextmanager
async def listening(broker: Broker) -> AsyncIterator[Connection]:
    connection = await PahoBus().connect(broker.address())
    try:
        await connection.subscribe(RECEIPTS)
        async with asyncio.timeout(20):
            yield connection
    finally:
        await connection.close()


async def answer(connection: Connection) -> ReceiptMessage:
    message = await connection.receive()
    connection.acknowledge(message)
    return messages.unpack(message.payload, ReceiptMessage)


def payload(first: int, count: int, gateway: str = "gw") -> bytes:
    (batch,) = messages.batches("site", gateway, records(first, count))
    return messages.pack(batch)


def test_thousands_of_batches_that_waited_at_the_broker(tmp_path: Path) -> None:
    """The receiver was away; its session was not. Each batch is there twice, as after a reconnect."""
    count = 3_000
    with (
        mosquitto(tmp_path, max_queued_messages=10_000) as broker,
        receiver(tmp_path, "--mqtt", broker.url, mqtt=True) as far_end,
    ):

        async def main() -> None:
            await until_subscribed(broker)
            far_end.kill()
            async with listening(broker) as connection:
                for first in range(1, count // 2 + 1):
                    await asyncio.gather(*(connection.publish(BATCHES, payload(first, 1), qos=1) for _ in range(2)))
                far_end.start()
                for _ in range(count):
                    last = await answer(connection)
            assert last.lanes[0].ranges == ((1, count // 2),)

        asyncio.run(main())
        (gateway,) = far_end.stop()["gateways"]
        assert (gateway["received"], gateway["unique"], gateway["repeated"], gateway["gaps"]) == (
            count,
            count // 2,
            count // 2,
            0,
        )


def test_a_bad_batch_is_refused_once_and_blocks_nothing(broker: Broker, far_end: ReceiverProcess) -> None:
    deep = payload(1, 1).replace(b'{"n":1,', b'{"n":' + b"[" * 100_000 + b"]" * 100_000 + b",")
    bad = [b"", b"garbage", b"\x1f\x8bgarbage", payload(1, 10)[:-3], b'{"v":2}', payload(1, 1, gateway="other"), deep]

    async def main() -> None:
        async with listening(broker) as connection:
            for each in bad:
                await connection.publish(BATCHES, each, qos=1)
            await connection.publish(BATCHES, payload(1, 10), qos=1)
            answers = [await answer(connection) for _ in range(len(bad) + 1)]
            # An answer goes out just before its message is acknowledged: the next answer says that this is done.
            await connection.publish(BATCHES, payload(11, 1), qos=1)
            await answer(connection)
        *refusals, receipt = sorted(answers, key=lambda each: each.failure is None)
        assert {each.failure.refused for each in refusals if each.failure} == {messages.digest(each) for each in bad}
        assert receipt.receipt().ranges == {("e1", Lane.RESULT): ((1, 10),)}
        far_end.kill()
        far_end.start()  # were one of the bad ones not acknowledged, it would come back now
        async with listening(broker) as connection:
            await connection.publish(BATCHES, payload(12, 1), qos=1)
            told = await answer(connection)
            while told.failure is None and told.lanes[0].ranges != ((1, 12),):  # the last good one may come again
                told = await answer(connection)
            assert told.failure is None

    asyncio.run(main())
    (gateway,) = far_end.stop()["gateways"]
    assert (gateway["gateway"], gateway["unique"]) == ("gw", 12)


def test_the_broker_is_killed_and_comes_back(broker: Broker, far_end: ReceiverProcess) -> None:
    async def main() -> None:
        one = sink(broker)
        await open_again(one, [])
        for first in range(1, 400, 100):
            await one.send(records(first, 100))
            broker.kill()
            broker.start()
            assert (await open_again(one, ["e1"])).ranges[("e1", Lane.RESULT)] == ((1, first + 99),)
        await one.close()

    asyncio.run(main())
    assert far_end.stop()["unique"] == 400


def test_many_gateways_at_once(broker: Broker, far_end: ReceiverProcess) -> None:
    async def one(name: str) -> None:
        mine = sink(broker, name)
        await open_again(mine, [])
        for first in range(1, 501, 50):
            receipt = await mine.send(records(first, 50, unique=name + "{seq}"))
            assert receipt.ranges[("e1", Lane.RESULT)][0] == (1, first + 49)
        await mine.close()

    async def main() -> None:
        await asyncio.gather(*(one(f"gw-{n}") for n in range(8)))

    asyncio.run(main())
    statistics = far_end.stop()
    assert [(each["unique"], each["duplicates"], each["gaps"]) for each in statistics["gateways"]] == [(500, 0, 0)] * 8


def test_a_ledger_that_cannot_be_written_gives_no_receipt_and_goes_on_by_itself(broker: Broker, far_end: ReceiverProcess) -> None:
    async def main() -> None:
        locker = sqlite3.connect(far_end.file, isolation_level=None)
        async with listening(broker) as connection:
            locker.execute("BEGIN EXCLUSIVE")
            await connection.publish(BATCHES, payload(1, 10), qos=1)
            while "trying again" not in far_end.log.read_text():  # noqa: ASYNC110 (another process writes it)
                await asyncio.sleep(0.05)
            locker.execute("ROLLBACK")
            locker.close()
            assert (await answer(connection)).lanes[0].ranges == ((1, 10),)

    asyncio.run(main())
    assert far_end.stop()["unique"] == 10


def test_what_a_broker_acknowledged_and_dropped_is_delivered_all_the_same(tmp_path: Path) -> None:
    """A default mosquitto holds 1,000 messages for a receiver that is away, acknowledges the rest, and drops it."""
    with mosquitto(tmp_path) as broker, receiver(tmp_path, "--mqtt", broker.url, mqtt=True) as far_end:

        async def main() -> None:
            await until_subscribed(broker)
            far_end.kill()
            async with listening(broker) as connection:
                await asyncio.gather(*(connection.publish(BATCHES, payload(first, 1), qos=1) for first in range(1, 1501)))
            far_end.start()
            one = sink(broker)
            await open_again(one, ["e1"])
            for first in range(1, 1501, 500):
                assert (await one.send(records(first, 500))).ranges
            await one.close()

        asyncio.run(main())
        (gateway,) = far_end.stop()["gateways"]
        assert (gateway["unique"], gateway["gaps"], gateway["kept_twice"]) == (1500, 0, 0)
        assert gateway["received"] < 3000, "the broker dropped nothing: the test has lost its point"


def test_killed_in_the_middle_of_a_backlog_it_loses_nothing_that_the_broker_had(tmp_path: Path) -> None:
    """Nobody sends anything again here: a batch that is acknowledged to the broker before it is on disk would be gone."""
    count = 800
    with mosquitto(tmp_path) as broker, receiver(tmp_path, "--mqtt", broker.url, mqtt=True) as far_end:

        async def main() -> None:
            await until_subscribed(broker)
            far_end.kill()
            async with listening(broker) as connection:
                await asyncio.gather(*(connection.publish(BATCHES, payload(first, 1), qos=1) for first in range(1, count + 1)))
                for answers in (10, 50, 120, 200):
                    far_end.start()
                    for _ in range(answers):
                        await answer(connection)
                    far_end.kill()
                far_end.start()
                while (await answer(connection)).lanes[0].ranges != ((1, count),):
                    pass

        asyncio.run(main())
        (gateway,) = far_end.stop()["gateways"]
        assert (gateway["unique"], gateway["gaps"], gateway["kept_twice"]) == (count, 0, 0)
