"""The mqtt sink without a receiver, the factory, and the fake far end under simulated time."""

from __future__ import annotations

import asyncio
import json
import random
from pathlib import Path

import pytest
from brokers import mosquitto
from receivers import STAMP, records

from edge_runtime.board.system import ThreadWorker
from edge_runtime.bus.broker import PahoBus
from edge_runtime.config import HttpsSink, MqttSink
from edge_runtime.outbox import sinks
from edge_runtime.ports import Address, Connection, Message, Sink, SinkError
from edge_runtime.records import Lane, Record
from edge_runtime.testing import loop
from edge_runtime.testing.sink import FakeReceiver, FakeSink, Faults
from edge_runtime.testing.sink_suite import failure, open_again


def made(settings: MqttSink | HttpsSink, local: Address | None = None) -> Sink:
    return sinks.make(
        "up",
        settings,
        site="site",
        gateway="gw",
        bus=PahoBus(),
        new_worker=lambda: ThreadWorker("up"),
        local=(lambda: local) if local else None,
        resolve=Path,
    )


async def take(connection: Connection, count: int) -> list[Message]:
    async with asyncio.timeout(20):
        got = []
        for _ in range(count):
            got.append(await connection.receive())
            connection.acknowledge(got[-1])
        return got


def test_one_readable_message_a_record_on_its_own_topic(tmp_path: Path) -> None:
    some = [
        Record(Lane.SAMPLE, "e1", 1, "press", STAMP, b'{"force":1.5}'),
        Record(Lane.RESULT, "e1", 2, "wear", STAMP, b'{"score":0.1}', "u1"),
        Record(Lane.EVENT, "e1", 3, "wear", STAMP, b"{}"),
        Record(Lane.GAP, "e1", 4, "result", STAMP, b"{}"),
    ]

    async def main() -> None:
        sink = made(MqttSink(type="mqtt", url="local", timeout_s=2), broker.address())
        assert not sink.confirms
        listener = await PahoBus().connect(broker.address())
        await listener.subscribe("edge/#")
        assert (await sink.open(["e1"])).ranges == {}
        for record in some:
            assert (await sink.send([record])).ranges == {("e1", record.lane): ((record.seq, record.seq),)}
        got = await take(listener, len(some))
        assert [message.topic.removeprefix("edge/site/gw/gw/") for message in got] == [
            "data/press",
            "result/wear",
            "event/wear",
            "gap/result",
        ]
        assert json.loads(got[1].payload) == {
            "id": "gw/e1/result/2",
            "source": "wear",
            "stamp": ["boot", 1, 2, True],
            "body": {"score": 0.1},
            "unique": "u1",
        }
        receipt, got = await asyncio.gather(sink.send(records(1, 2000)), take(listener, 2000))
        assert receipt.ranges == {("e1", Lane.RESULT): ((1, 2000),)}
        numbers = [json.loads(message.payload)["body"]["n"] for message in got]
        assert numbers == list(range(1, 2001)), "in order"
        await listener.close()
        broker.kill()
        assert (await failure(sink.send(records(2001, 10)))).cause
        assert (await failure(sink.open([]))).cause
        broker.start()
        await open_again(sink, [])
        await sink.send(records(2001, 10))
        await sink.close()
        await sink.close()
        assert "not open" in str(await failure(sink.send(records(1, 1))))

    with mosquitto(tmp_path) as broker:
        asyncio.run(main())


def test_a_broker_that_hangs_is_an_error_in_time(tmp_path: Path) -> None:
    async def main() -> None:
        for receiver in (None, "cloud"):
            sink = made(MqttSink(type="mqtt", url=broker.url, receiver=receiver, timeout_s=1.0))
            if receiver is None:
                await sink.open([])
                broker.freeze()
                assert (await failure(sink.send(records(1, 10)))).hint
            assert (await failure(sink.open([]))).hint
            await sink.close()
        broker.thaw()

    with mosquitto(tmp_path) as broker:
        asyncio.run(main())


def test_the_factory_makes_what_is_configured(tmp_path: Path) -> None:
    kinds = [
        (HttpsSink(type="https", url="https://cloud.example:8443/base"), "HttpsSink", True),
        (MqttSink(type="mqtt", url="mqtt://cloud.example", receiver="cloud"), "MqttSink", True),
        (MqttSink(type="mqtt", url="local"), "MqttLiveSink", False),
    ]
    for settings, name, confirms in kinds:
        sink = made(settings, Address(host="127.0.0.1"))
        assert (type(sink).__name__, sink.confirms) == (name, confirms)
        asyncio.run(sink.close())
    with pytest.raises(SinkError, match="no local broker"):
        made(MqttSink(type="mqtt", url="local"))


ALL_FAULTS = Faults(lost=0.1, unheard=0.1, torn=0.1, late=0.1, twice=0.1, latency_s=(0.001, 0.3))


@pytest.mark.parametrize("seed", range(20))
def test_with_every_fault_all_arrives_once(seed: int) -> None:
    """The simplest delivery there is: again, until there is a receipt."""

    async def main() -> FakeReceiver:
        far_end = FakeReceiver()
        sink = FakeSink(far_end, "gw", random.Random(seed), ALL_FAULTS)
        await open_again(sink, ["e1"])
        for first in range(1, 501, 10):
            while True:
                try:
                    receipt = await sink.send(records(first, 10))
                except SinkError:
                    await open_again(sink, ["e1"])
                    continue
                assert set(range(first, first + 10)) <= {n for a, b in receipt.ranges["e1", Lane.RESULT] for n in range(a, b + 1)}
                break
        await sink.close()
        await asyncio.sleep(60)  # what was late arrives
        return far_end

    one, two = loop.run(main, seed=seed), loop.run(main, seed=seed)
    assert sorted(seq for _, _, _, seq in one.kept) == list(range(1, 501))
    assert one.repeated > 0
    assert (one.received, list(one.kept)) == (two.received, list(two.kept)), "the same seed, the same run"
