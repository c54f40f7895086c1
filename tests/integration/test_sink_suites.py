"""The rules of ports.Sink over every sink with receipts: https, mqtt (through a real mosquitto), and the one in memory."""

from __future__ import annotations

import random
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import Broker, mosquitto
from receivers import ReceiverProcess, receiver

from edge_runtime.board.system import ThreadWorker
from edge_runtime.bus.broker import PahoBus
from edge_runtime.outbox.sinks.https import HttpsSink
from edge_runtime.outbox.sinks.mqtt import MqttSink
from edge_runtime.ports import Sink
from edge_runtime.records import Lane
from edge_runtime.testing.sink import FakeReceiver, FakeSink, Faults
from edge_runtime.testing.sink_suite import FarEnd, Kept, SinkSuite


class ProcessFarEnd:
    """`edge-runtime receive` as a process."""

    def __init__(self, process: ReceiverProcess, broker: Broker | None = None) -> None:
        self.process, self.broker = process, broker

    def sink(self) -> Sink:
        if self.broker is not None:
            return MqttSink("site", "gw", "cloud", PahoBus(), lambda: self.broker.address(client_id="gw"), timeout_s=1.0)
        return HttpsSink("site", "gw", self.process.url, lambda: ThreadWorker("sink"), timeout_s=1.0)

    def stop(self) -> None:
        self.process.kill()

    def start(self) -> None:
        self.process.start()

    def kept(self) -> list[Kept]:
        found = self.process.rows("epoch, lane, seq, body")
        return [(epoch, Lane(lane), seq, body.encode()) for epoch, lane, seq, body in found]


class TestHttpsSink(SinkSuite):
    @pytest.fixture
    def far_end(self, tmp_path: Path) -> Iterator[FarEnd]:
        with receiver(tmp_path) as process:
            yield ProcessFarEnd(process)


class TestMqttSink(SinkSuite):
    @pytest.fixture
    def far_end(self, tmp_path: Path) -> Iterator[FarEnd]:
        with mosquitto(tmp_path) as broker, receiver(tmp_path, "--mqtt", broker.url, mqtt=True) as process:
            yield ProcessFarEnd(process, broker)


class MemoryFarEnd:
    def __init__(self) -> None:
        self.receiver = FakeReceiver()

    def sink(self) -> Sink:
        return FakeSink(self.receiver, "gw", random.Random(1), Faults(latency_s=(0.0, 0.01), timeout_s=0.05))

    def stop(self) -> None:
        self.receiver.up = False

    def start(self) -> None:
        self.receiver.up = True

    def kept(self) -> list[Kept]:
        return [(epoch, lane, seq, record.body) for (_, epoch, lane, seq), record in self.receiver.kept.items()]


class TestFakeSink(SinkSuite):
    @pytest.fixture
    def far_end(self) -> FarEnd:
        return MemoryFarEnd()
