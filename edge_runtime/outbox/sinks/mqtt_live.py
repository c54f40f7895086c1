"""Records to whoever subscribes, one readable message each: "to the broker only" (runs).

What is confirmed is that the broker took the message, at least once. Whether anybody has it, nobody knows.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence

import msgspec

from edge_runtime.bus import topics
from edge_runtime.outbox import intervals
from edge_runtime.ports import Address, BrokerError, Bus, Connection, Receipt, SinkError
from edge_runtime.records import Record, Stamp, to_json


class LiveMessage(msgspec.Struct, frozen=True, omit_defaults=True):
    """The payload: whose record it is, when it was made, and the record itself. By its id a subscriber recognises a copy."""

    id: str
    """gateway/epoch/lane/seq"""
    source: str
    stamp: Stamp
    body: msgspec.Raw
    unique: str = ""


class MqttLiveSink:
    """ports.Sink without receipts. One connection from `open` to the next `open` or `close`."""

    confirms = False

    def __init__(self, site: str, gateway: str, bus: Bus, where: Callable[[], Address], *, timeout_s: float) -> None:
        self._site, self._gateway = site, gateway
        self._bus, self._where, self._timeout_s = bus, where, timeout_s
        self._connection: Connection | None = None

    async def open(self, epochs: Sequence[str]) -> Receipt:
        """An empty receipt: a broker does not know what it had."""
        await self.close()
        try:
            self._connection = await self._bus.connect(self._where(), timeout_s=self._timeout_s)
        except BrokerError as error:
            raise SinkError(error.cause, error.hint) from None
        return Receipt({})

    async def send(self, records: Sequence[Record]) -> Receipt:
        """Covers what the broker acknowledged: all of them, or it raises SinkError."""
        connection = self._connection
        if connection is None:
            raise SinkError("the sink is not open", "open it first")
        try:
            async with asyncio.timeout(self._timeout_s):
                outcomes = await asyncio.gather(*(self._publish(connection, each) for each in records), return_exceptions=True)
        except TimeoutError:
            hint = "is the broker overloaded, the network slow?"
            raise SinkError(f"the broker did not acknowledge within {self._timeout_s:g} s", hint) from None
        for outcome in outcomes:
            if isinstance(outcome, BrokerError):
                raise SinkError(outcome.cause, outcome.hint)
            if outcome is not None:
                raise outcome
        return Receipt({(records[0].epoch, records[0].lane): intervals.of(each.seq for each in records)})

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _publish(self, connection: Connection, record: Record) -> None:
        name = f"{self._gateway}/{record.epoch}/{record.lane.value}/{record.seq}"
        message = LiveMessage(name, record.source, record.stamp, msgspec.Raw(record.body), record.unique)
        topic = topics.live(self._site, self._gateway, record.lane, record.source)
        await connection.publish(topic, to_json(message), qos=1)
