"""Brings the outbox to one sink: read, send, advance, for ever. One instance a sink, so a dead one slows no other.

A position advances on the far end's receipt only. Whatever happens between (a lost answer, a crash, a resend) the far end sees
the same ids again and drops them; what it has already is not sent at all, since it tells its ranges on connect.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from itertools import groupby
from typing import Any

import msgspec

from edge_runtime import trail
from edge_runtime.outbox import intervals
from edge_runtime.outbox.lanes import Course, Turn
from edge_runtime.outbox.store import Store
from edge_runtime.ports import Dice, Ranges, Receipt, Refused, Sink, SinkError, delivery
from edge_runtime.records import Lane, Record

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.2, 2.0
"""Between attempts to reach a far end: the cap is short, so that a backlog starts to drain as soon as it is back."""

CLOSE_S_MAX = 2.0


class DeliveryState(msgspec.Struct):
    """What an operator sees of a sink. `cause` and `hint` say why it is away."""

    confirms: bool
    connected: bool = False
    cause: str = "not connected yet"
    hint: str = ""
    batches: int = 0
    records: int = 0
    refused: int = 0


class Delivery:
    """`run` until cancelled."""

    def __init__(
        self,
        name: str,
        sink: Sink,
        lanes: Sequence[Lane],
        store: Store,
        *,
        batch_records_max: int,
        dice: Dice,
        log: Any,
    ) -> None:
        self.name = name
        self._sink, self._lanes, self._store, self._limit = sink, lanes, store, batch_records_max
        self._dice, self._log = dice, log.bind(sink=name)
        self._news = store.listen()
        self.course = Course(lanes, {})
        self.state = DeliveryState(confirms=sink.confirms)
        self._done = asyncio.Event()
        self._wait_s = BACKOFF_S_MIN

    def depth(self) -> dict[Lane, int]:
        """Records on the disk that the far end does not have, by lane."""
        return self.course.depth(self._store.heads)

    @property
    def forged_receipts(self) -> int:
        """That the receiver had not signed; only where receipts are signed."""
        return int(getattr(self._sink, "forged", 0))

    async def drained(self) -> None:
        """Returns when the far end has everything that is on the disk."""
        while any(self.depth().values()):
            self._done.clear()
            await self._done.wait()

    async def run(self) -> None:
        self.course = Course(self._lanes, {lane: self._store.acknowledged(self.name, lane) for lane in self._lanes})
        try:
            while True:
                try:
                    receipt = await self._sink.open(self._store.epochs)
                    await self._take(receipt)
                    self._show(True, "", "")
                    self.course.split(self._store.heads)
                    await self._deliver()
                except SinkError as error:
                    self._show(False, error.cause, error.hint)
                    await self._close()
                await asyncio.sleep(self._dice.uniform(0, self._wait_s))
                self._wait_s = min(self._wait_s * 2, BACKOFF_S_MAX)
        finally:
            await self._close()

    async def _deliver(self) -> None:
        while True:
            self._news.clear()
            turn = self.course.next(self._store.heads)
            if turn is None:
                self._done.set()
                await self._news.wait()
                continue
            records = await self._store.read(turn.lane, turn.first, turn.last, self._limit)
            self._skip_evicted(turn, records)
            for _, same_epoch in groupby(records, key=lambda record: record.epoch):
                await self._send(list(same_epoch))

    async def _send(self, records: list[Record]) -> None:
        """A record that the far end refuses for ever must not hold up the ones behind it: it is found by halving, and set
        aside on the disk."""
        try:
            await self._send_once(records)
        except Refused as refused:
            if len(records) == 1:
                await self._set_aside(records[0], refused)
                return
            half = len(records) // 2
            await self._send(records[:half])
            await self._send(records[half:])

    async def _set_aside(self, record: Record, refused: Refused) -> None:
        self._finish(
            record.lane, ((record.seq, record.seq),)
        )  # in one transaction with the gap record, or it would be told twice
        await self._store.set_aside(self.name, record, refused.cause)
        self._log.error("record_refused", lane=record.lane, seq=record.seq, cause=refused.cause, hint=refused.hint)
        self.state.refused += 1

    async def _send_once(self, records: list[Record]) -> None:
        receipt = await self._sink.send(records)
        await self._take(receipt)
        lane, sent = records[0].lane, intervals.of(record.seq for record in records)
        # These very ids, also where a damaged disk has given one an epoch that we do not know: it would be sent for ever.
        self._done_with(lane, intervals.intersection(sent, receipt.ranges.get((records[0].epoch, lane), ())))
        if intervals.subtract(sent, self.course.done[lane]):
            raise SinkError("the far end's receipt does not cover what was sent", "see the receiver's log")
        self._wait_s = BACKOFF_S_MIN  # not when it is only open: one that takes nothing must not be asked ten times a second
        if trail.on(self._log):
            for each in records:
                name = trail.name(lane, each)
                self._log.debug("delivered", **name, source=each.source, lane=lane, epoch=each.epoch, seq=each.seq)
        self.state.batches += 1
        self.state.records += len(records)

    async def _take(self, receipt: Receipt) -> None:
        for lane, ranges in (await self._store.learn(receipt)).items():
            if lane in self.course.done:
                self._done_with(lane, ranges)

    def _done_with(self, lane: Lane, ranges: Ranges) -> None:
        if intervals.subtract(ranges, self.course.done[lane]):
            self._finish(lane, ranges)

    def _finish(self, lane: Lane, ranges: Ranges) -> None:
        self.course.finish(lane, ranges)
        self._store.acknowledge(self.name, lane, self.course.done[lane])

    def _skip_evicted(self, turn: Turn, records: list[Record]) -> None:
        """Seqs that are no more on the disk (a gap record tells the far end) are passed over for good."""
        last = records[-1].seq if records else turn.last
        gone = intervals.subtract(((turn.first, last),), intervals.of(record.seq for record in records))
        if gone:
            self._finish(turn.lane, gone)

    def _show(self, connected: bool, cause: str, hint: str) -> None:
        if connected != self.state.connected or (not connected and cause != self.state.cause):
            if connected:
                self._log.info("sink_connected", delivery=delivery(self._sink.confirms))
            else:
                self._log.warning("sink_away", cause=cause, hint=hint)
        self.state.connected, self.state.cause, self.state.hint = connected, cause, hint

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                await self._sink.close()
        except (TimeoutError, SinkError) as error:
            self._log.warning("sink_close_failed", cause=str(error) or "timeout", hint="the connection is dropped")
