"""The receiver is killed -9 again and again while a sink sends: what it gave receipts for is there, all is there once."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path

import pytest
from brokers import mosquitto
from receivers import ReceiverProcess, receiver, records

from edge_runtime.board.system import ThreadWorker
from edge_runtime.bus.broker import PahoBus
from edge_runtime.outbox.sinks.https import HttpsSink
from edge_runtime.outbox.sinks.mqtt import MqttSink
from edge_runtime.ports import Sink, SinkError
from edge_runtime.testing.sink_suite import open_again

RECORDS = 5_000
BATCH = 50
KILLS_AT_A_RECEIPT, KILLS_IN_FLIGHT = 4, 6


async def deliver(sink: Sink, process: ReceiverProcess, rng: random.Random) -> None:
    """A sink's position goes on with receipts only; a hello's answer moves nothing here, so that a receipt that was given
    too early leaves a hole."""
    todo = [records(first, BATCH) for first in range(1, RECORDS + 1, BATCH)]
    fates = ["receipt"] * KILLS_AT_A_RECEIPT + ["flight"] * KILLS_IN_FLIGHT
    doomed = dict(zip(rng.sample(range(len(todo)), len(fates)), fates, strict=True))
    await open_again(sink, [])
    for number, batch in enumerate(todo):
        fate = doomed.get(number)
        while True:
            sending = asyncio.create_task(sink.send(batch))
            if fate == "flight":
                await asyncio.sleep(rng.uniform(0, 0.004))
                process.kill()
            failed = (await asyncio.gather(sending, return_exceptions=True))[0]
            if fate == "receipt":
                process.kill()
            if process.process is None:
                process.start()
            fate = None
            if isinstance(failed, BaseException):
                assert isinstance(failed, SinkError), failed
                await open_again(sink, [])
                continue
            if number in doomed:
                await open_again(sink, [])
            break
    await sink.close()


def check(process: ReceiverProcess) -> None:
    statistics = process.stop()
    assert sorted(seq for (seq,) in process.rows("seq")) == list(range(1, RECORDS + 1))
    (gateway,) = statistics["gateways"]
    assert (gateway["unique"], gateway["gaps"], gateway["kept_twice"]) == (RECORDS, 0, 0)
    assert gateway["received"] == RECORDS + gateway["duplicates"]


@pytest.mark.slow
def test_over_https(tmp_path: Path) -> None:
    with receiver(tmp_path) as process:
        sink = HttpsSink("site", "gw", process.url, lambda: ThreadWorker("sink"), timeout_s=2.0)
        asyncio.run(deliver(sink, process, random.Random(1)))
        check(process)


@pytest.mark.slow
def test_over_mqtt(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker, receiver(tmp_path, "--mqtt", broker.url, mqtt=True) as process:
        sink = MqttSink("site", "gw", "cloud", PahoBus(), lambda: broker.address(client_id="gw"), timeout_s=1.0)
        asyncio.run(deliver(sink, process, random.Random(2)))
        check(process)
