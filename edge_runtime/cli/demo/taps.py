"""How the demo looks into its gateway without a hook in it: a sink that is timed, and a subscriber as any SCADA would be one."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec

from edge_runtime.bus import topics
from edge_runtime.cli.demo import settings
from edge_runtime.cli.demo.watching import Comparison, Latencies
from edge_runtime.config import AnySink
from edge_runtime.outbox.sinks.mqtt_live import LiveMessage
from edge_runtime.ports import Address, BrokerError, Bus, Clock, Connection, Message, Receipt, Sink
from edge_runtime.records import Record, Result
from edge_runtime.world import MakeSink

ATTEMPT_S, ATTEMPTS_MAX = 0.1, 100
"""To reach the local broker while it starts."""


class TimedSink:
    """ports.Sink around another one: measures from the instant of the sample to the far end's receipt."""

    def __init__(self, inner: Sink, clock: Clock, latencies: Latencies) -> None:
        self._inner, self._clock, self._latencies = inner, clock, latencies
        self.confirms = inner.confirms

    async def open(self, epochs: Sequence[str]) -> Receipt:
        receipt = await self._inner.open(epochs)
        self._latencies.begin(self._clock.mono_ns())
        return receipt

    async def send(self, records: Sequence[Record]) -> Receipt:
        receipt = await self._inner.send(records)
        self._latencies.delivered([record.stamp.mono_ns for record in records], self._clock.mono_ns())
        return receipt

    async def close(self) -> None:
        await self._inner.close()


def timed(make_sink: MakeSink, clock: Clock, latencies: Latencies) -> MakeSink:
    """For World.make_sink: only sinks whose far end confirms are timed."""

    def make(name: str, settings: AnySink, **rest: Any) -> Sink:
        sink = make_sink(name, settings, **rest)
        return TimedSink(sink, clock, latencies) if sink.confirms else sink

    return make


class _Sample(msgspec.Struct):
    values: dict[str, float | None]


class Listener:
    """Reads what the gateway tells people on the local broker: results, and samples with their labels."""

    def __init__(self, bus: Bus, address: Address, comparison: Comparison) -> None:
        self._bus, self._address, self._comparison = bus, address, comparison

    async def run(self) -> None:
        """Until cancelled. Raises BrokerError when the broker does not come, or is gone."""
        connection = await self._connect()
        try:
            await connection.subscribe(topics.gateway(settings.SITE, settings.GATEWAY, "+", "+"))
            while True:
                message = await connection.receive()
                self._hear(message)
                connection.acknowledge(message)
        finally:
            await connection.close()

    async def _connect(self) -> Connection:
        """The gateway starts its broker beside everything else."""
        for _ in range(ATTEMPTS_MAX - 1):
            try:
                return await self._bus.connect(self._address)
            except BrokerError:
                await asyncio.sleep(ATTEMPT_S)
        return await self._bus.connect(self._address)

    def _hear(self, message: Message) -> None:
        parsed = topics.parse(message.topic)
        kind = parsed[2][0] if parsed else ""
        if kind not in ("data", "result"):
            return
        live = msgspec.json.decode(message.payload, type=LiveMessage)
        if kind == "result":
            result = msgspec.json.decode(live.body, type=Result)
            if not result.fault:
                self._comparison.result(live.stamp.mono_ns, result.outputs["score"], settings.RULE in result.alarms)
            return
        values = msgspec.json.decode(live.body, type=_Sample).values
        row, label = values.get("row"), values.get("label")
        if row is not None and label is not None:
            self._comparison.label(live.stamp.mono_ns, int(row), bool(label))
