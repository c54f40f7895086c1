"""The mqtt adapter against a real mosquitto."""

from __future__ import annotations

import asyncio
import itertools
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import Broker, free_port, mosquitto
from waiting import until

from edge_adapters.mqtt import Mqtt
from edge_runtime.adapter import LinkLost, Sample, Unusable, Value
from edge_runtime.bus.broker import PahoBus
from edge_runtime.ports import Connection
from edge_runtime.testing.adapter import build
from edge_runtime.testing.adapter_suite import AdapterSuite

BUS = PahoBus()
POINTS = [{"name": "n", "path": "n"}]


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    with mosquitto(tmp_path) as running:
        yield running


def adapter(broker: Broker, points: Sequence[Mapping[str, Any]] = POINTS, **options: Any) -> Mqtt:
    settings = {"url": broker.url, "topics": ["t"], "client_id": "gateway", "message_id": "id", **options}
    return build(Mqtt, settings, points, bus=BUS)


@asynccontextmanager
async def publisher(broker: Broker) -> AsyncIterator[Connection]:
    connection = await BUS.connect(broker.address())
    yield connection
    await connection.close()


async def publish(broker: Broker, numbers: Sequence[int], topic: str = "t") -> None:
    async with publisher(broker) as connection:
        for each in numbers:
            await connection.publish(topic, b'{"n": %d, "id": %d}' % (each, each), qos=1)


async def read(one: Mqtt, count: int) -> list[Sample]:
    samples: list[Sample] = []
    async with asyncio.timeout(10):
        while len(samples) < count:
            samples += await one.read()
    return samples


async def nothing_more(one: Mqtt) -> None:
    with pytest.raises(TimeoutError):
        async with asyncio.timeout(0.2):
            await one.read()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30), debug=True)


def numbers(samples: Sequence[Sample]) -> list[Value]:
    return [sample.values[0] for sample in samples]


def test_what_was_not_acknowledged_comes_again_with_the_same_id_after_the_connection_fell(broker: Broker) -> None:
    async def main() -> None:
        one = adapter(broker)
        await one.open()
        await publish(broker, range(10))
        first = await read(one, 10)
        await one.acknowledge(first[:4])
        await one._connection.publish("elsewhere", b"", qos=1)  # type: ignore[union-attr]  # its answer comes after those went in
        one._connection.abort()  # type: ignore[union-attr]
        with pytest.raises(LinkLost):
            await one.read()
        await one.acknowledge(first[4:])  # too late: they will come again, nothing may break
        await one.close()
        await one.open()
        again = await read(one, 6)
        assert numbers(again) == [4, 5, 6, 7, 8, 9]
        assert [s.message_id for s in again] == [s.message_id for s in first[4:]]
        assert len({s.message_id for s in first}) == 10
        await one.acknowledge(first[4:])  # of the old connection: these are not the samples of this one
        assert len(one._pending) == 6
        await one.acknowledge(again)
        await one.close()
        await one.open()
        await nothing_more(one)
        await one.close()

    run(main)


def test_what_was_acknowledged_is_acknowledged_also_over_a_kill_of_the_broker(broker: Broker) -> None:
    async def main() -> None:
        one = adapter(broker)
        await one.open()
        await publish(broker, range(30))
        await one.acknowledge(await read(one, 20))
        await one.acknowledge(await read(one, 10))
        await publish(broker, [30])
        broker.save()
        broker.kill()
        got = await read(one, 1)  # it came in before
        with pytest.raises(LinkLost):
            await one.read()
        await one.close()
        with pytest.raises(LinkLost, match="refused"):
            await one.open()
        broker.start()
        await one.open()
        assert numbers(await read(one, 1)) == numbers(got) == [30]
        await one.close()

    run(main)


def test_a_message_that_came_while_we_were_away(broker: Broker) -> None:
    async def main() -> None:
        one = adapter(broker)
        await one.open()
        await one.close()
        await publish(broker, range(500))
        await one.open()
        samples: list[Sample] = []
        while len(samples) < 500:
            batch = await read(one, 1)
            await one.acknowledge(batch)
            samples += batch
        assert numbers(samples) == list(range(500))
        await one.close()

    run(main)


def test_the_limit_of_messages_in_flight_holds_only_until_they_are_acknowledged(broker: Broker) -> None:
    """mosquitto hands out 20; a window of 64 is read all the same."""

    async def main() -> None:
        one = adapter(broker)
        await one.open()
        await publish(broker, range(64))
        samples = await read(one, 20)
        await nothing_more(one)
        await one.acknowledge(samples)
        while len(samples) < 64:
            batch = await one.read()
            await one.acknowledge(batch)
            samples += batch
        assert numbers(samples) == list(range(64))
        await one.close()

    run(main)


def test_a_read_takes_what_is_there_up_to_its_limit(tmp_path: Path) -> None:
    """So that one transaction carries many messages."""
    with mosquitto(tmp_path, max_inflight_messages=0) as broker:

        async def main() -> None:
            one = adapter(broker, batch_max=100)
            await one.open()
            await publish(broker, range(250))
            await until(lambda: len(one._connection._inbox) == 250)  # type: ignore[union-attr]
            assert [len(await one.read()) for _ in range(3)] == [100, 100, 50]
            await one.close()

        run(main)


def test_a_cancelled_read_loses_nothing(broker: Broker) -> None:
    async def main() -> None:
        one = adapter(broker)
        await one.open()
        sending = asyncio.create_task(publish(broker, range(400)))
        got: list[Sample] = []
        async with asyncio.timeout(15):
            for turn in itertools.count():
                if len(got) >= 400:
                    break
                task = asyncio.create_task(one.read())
                for _ in range(turn % 7):
                    await asyncio.sleep(0)
                if not task.done():
                    task.cancel()
                    await asyncio.wait((task,))
                if not task.cancelled():
                    batch = task.result()
                    await one.acknowledge(batch)
                    got += batch
                await asyncio.sleep(0)
        await sending
        assert numbers(got) == list(range(400))
        await one.close()

    run(main)


def test_poison_becomes_bad_samples_and_does_not_block_what_comes_after(broker: Broker) -> None:
    async def main() -> None:
        one = adapter(broker)
        await one.open()
        async with publisher(broker) as connection:
            for poison in (b"", b"{", b"\xff\xfe", b"[" * 100_000, b'{"id": 1}', b'{"n": "x", "id": 2}', b'{"n": NaN}') * 6:
                await connection.publish("t", poison, qos=1)
        await publish(broker, [7])
        samples: list[Sample] = []
        while len(samples) < 43:
            batch = await read(one, 1)
            await one.acknowledge(batch)
            samples += batch
        assert all(s.values == (None,) and s.faults["n"] for s in samples[:42])
        assert samples[42].values == (7,)
        await one.close()
        await one.open()
        await nothing_more(one)
        await one.close()

    run(main)


def test_retained_and_leftover_messages_are_no_samples_and_do_not_block(broker: Broker) -> None:
    async def main() -> None:
        old = adapter(broker, topics=["old"])
        await old.open()
        await old.close()
        await publish(broker, range(25), "old")
        async with publisher(broker) as connection:
            await connection.publish("t", b'{"n": -1}', qos=1, retain=True)
        one = adapter(broker)  # the same session, with another topic now
        await one.open()
        await publish(broker, [1, 2])
        samples = await read(one, 2)
        assert numbers(samples) == [1, 2]
        await one.acknowledge(samples)
        await one.close()
        both = adapter(broker, retained=True)
        await both.open()
        assert numbers(await read(both, 1)) == [-1]
        await both.close()

    run(main)


@pytest.mark.parametrize("options", [{"clean_session": True}, {"qos": 0}])
def test_without_redelivery_nobody_needs_to_acknowledge(broker: Broker, options: dict[str, Any]) -> None:
    async def main() -> None:
        one = adapter(broker, **options)
        assert not one.redelivers
        await one.open()
        sending = asyncio.create_task(publish(broker, range(100)))
        assert numbers(await read(one, 100)) == list(range(100))
        await sending
        await one.close()

    assert adapter(broker).redelivers
    run(main)


def test_several_topics_in_one_device(broker: Broker) -> None:
    async def main() -> None:
        points = [{"name": "a", "topic": "m/a"}, {"name": "b", "topic": "m/b"}]
        one = adapter(broker, points, topics=["m/+"], message_id="")
        await one.open()
        async with publisher(broker) as connection:
            await connection.publish("m/a", b"1", qos=1)
            await connection.publish("m/b", b"2", qos=1)
        first, second = await read(one, 2)
        assert (first.values, dict(first.faults)) == ((1, None), {"b": "not in this message"})
        assert (second.values, dict(second.faults)) == ((None, 2), {"a": "not in this message"})
        await one.close()

    run(main)


def test_what_cannot_work(tmp_path: Path) -> None:
    async def main() -> None:
        gone = build(Mqtt, {"url": f"mqtt://127.0.0.1:{free_port()}", "topics": ["t"], "client_id": "c"}, POINTS, bus=BUS)
        with pytest.raises(LinkLost, match="refused"):
            await gone.open()
        with pytest.raises(LinkLost, match="not open"):
            await gone.read()
        secure = {"url": "mqtts://127.0.0.1:1", "topics": ["t"], "client_id": "c", "ca_file": "no-such.pem"}
        resolved = build(Mqtt, secure, POINTS, bus=BUS, resolve=lambda name: tmp_path / name)
        with pytest.raises((LinkLost, Unusable), match=str(tmp_path / "no-such.pem")):
            await resolved.open()
        await gone.close()

    run(main)


class TestMqtt(AdapterSuite):
    """The rules of every adapter."""

    adapter = Mqtt
    outside = ("paho",)
    number = 0

    test_a_missing_library_is_unusable_with_a_hint = None  # type: ignore[assignment]  # paho comes with every gateway

    @asynccontextmanager
    async def device(self) -> AsyncIterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        with mosquitto(self.folder, max_inflight_messages=0) as broker:
            self.broker = broker
            async with publisher(broker) as self.machine:
                yield {"url": broker.url, "topics": ["t"], "client_id": "c", "message_id": "id"}, POINTS

    def bus(self) -> Any:
        return BUS

    def nowhere(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "url": f"mqtt://127.0.0.1:{free_port()}"}

    async def speak(self) -> None:
        payload = {"n": self.number, "id": f"{self.number}-{id(object())}"}
        await self.machine.publish("t", json.dumps(payload).encode(), qos=1)

    async def change(self) -> Mapping[str, Value]:
        self.number += 1
        return {"n": self.number}

    async def stall(self) -> None:
        self.broker.freeze()

    async def resume(self) -> None:
        self.broker.thaw()
