"""A far end in memory and the sink that leads to it, with every way in which a delivery can go wrong, by chance with a seed.

    far_end = FakeReceiver()
    sink = FakeSink(far_end, "press-1", loop.rng("uplink"), Faults(lost=0.1, unheard=0.1, late=0.05))
    far_end.up = False                     # the uplink is gone, for every sink
    far_end.kept                           # id -> record: what has arrived, each once

It passes the same SinkSuite as the real ones. It counts with plain sets, not with the ledger's code: it is there to judge.
"""

from __future__ import annotations

import asyncio
import contextlib
import random
from collections.abc import Callable, Sequence

import msgspec

from edge_runtime.outbox import intervals
from edge_runtime.ports import Receipt, Refused, SinkError
from edge_runtime.records import Lane, Record
from edge_runtime.testing.fence import FENCE, Fence
from edge_runtime.testing.loop import VirtualLoop

Id = tuple[str, str, Lane, int]
"""gateway, epoch, lane, seq"""


class Faults(msgspec.Struct, kw_only=True):
    """Chances per request; change them while it runs."""

    lost: float = 0.0
    """It does not arrive, and nobody says so until the timeout."""
    unheard: float = 0.0
    """It arrives and is kept, but the receipt is lost."""
    torn: float = 0.0
    """A part of it is kept (a large batch goes in several messages), then the connection breaks."""
    late: float = 0.0
    """The sink gives up, and it arrives up to `late_s_max` later, perhaps after others (a broker had it)."""
    twice: float = 0.0
    """It arrives a second time within `late_s_max` (a broker hands a message out again)."""
    latency_s: tuple[float, float] = (0.0, 0.0)
    late_s_max: float = 30.0
    timeout_s: float = 1.0


class FakeReceiver:
    """What a receiver has on its disk: it outlives every sink and gateway."""

    def __init__(self) -> None:
        self.up = True
        self.poison: Callable[[Record], bool] = lambda record: record.seq < 1
        """Records that it refuses for ever; by default those that a real one refuses."""
        self.kept: dict[Id, Record] = {}
        self.received = self.repeated = self.same_content = 0
        self._seqs: dict[tuple[str, str, Lane], set[int]] = {}
        self._content: set[tuple[Lane, str]] = set()

    def take(self, gateway: str, records: Sequence[Record]) -> Receipt:
        """All or nothing. Raises Refused."""
        bad = next((record for record in records if self.poison(record)), None)
        if bad is not None:
            raise Refused(f"record {bad.seq} is refused", "it was made so by the test")
        for record in records:
            self._keep(gateway, record)
        first = records[0]
        return Receipt({(first.epoch, first.lane): intervals.of(self._seqs[gateway, first.epoch, first.lane])})

    def hello(self, gateway: str, epochs: Sequence[str]) -> Receipt:
        found = {
            (epoch, lane): intervals.of(self._seqs[gateway, epoch, lane])
            for epoch in epochs
            for lane in Lane
            if (gateway, epoch, lane) in self._seqs
        }
        return Receipt(found)

    def _keep(self, gateway: str, record: Record) -> None:
        self.received += 1
        seqs = self._seqs.setdefault((gateway, record.epoch, record.lane), set())
        content = (record.lane, record.unique)
        if record.seq in seqs:
            self.repeated += 1
        elif record.unique and content in self._content:
            self.same_content += 1
        else:
            self.kept[gateway, record.epoch, record.lane, record.seq] = record
        seqs.add(record.seq)
        self._content.add(content)


class FakeSink:
    """ports.Sink to a FakeReceiver. Stands behind the fence of the node that it was made for, if there is one."""

    confirms = True

    def __init__(self, far_end: FakeReceiver, gateway: str, rng: random.Random, faults: Faults | None = None) -> None:
        self.faults = faults or Faults()
        self.sent = 0
        self._far_end, self._gateway, self._rng = far_end, gateway, rng
        self._fence = FENCE.get() or Fence("")
        self._open = False

    async def open(self, epochs: Sequence[str]) -> Receipt:
        self._open = False
        await self._travel()
        if not self._far_end.up or self._happens(self.faults.lost):
            await self._give_up()
        receipt = self._far_end.hello(self._gateway, epochs)
        await self._travel()
        self._open = True
        return receipt

    async def send(self, records: Sequence[Record]) -> Receipt:
        if not self._open:
            raise SinkError("the sink is not open", "open it first")
        self.sent += 1
        await self._travel()
        if not self._far_end.up or self._happens(self.faults.lost):
            await self._give_up()
        if self._happens(self.faults.late):
            self._arrives_later(records)
            await self._give_up()
        if self._happens(self.faults.torn) and len(records) > 1:
            self._far_end.take(self._gateway, records[: self._rng.randrange(1, len(records))])
            await self._give_up()
        receipt = self._far_end.take(self._gateway, records)
        if self._happens(self.faults.twice):
            self._arrives_later(records)
        await self._travel()
        if self._happens(self.faults.unheard):
            await self._give_up()
        return receipt

    async def close(self) -> None:
        self._fence.check()
        self._open = False

    def _happens(self, chance: float) -> bool:
        return chance > 0 and self._rng.random() < chance

    async def _travel(self) -> None:
        await self._fence.passage()
        await asyncio.sleep(self._rng.uniform(*self.faults.latency_s))
        await self._fence.passage()

    async def _give_up(self) -> None:
        """A connection that failed once is of no use any more."""
        self._open = False
        await asyncio.sleep(self.faults.timeout_s)
        await self._fence.passage()
        raise SinkError(f"no receipt within {self.faults.timeout_s:g} s", "the far end is away, or the network")

    def _arrives_later(self, records: Sequence[Record]) -> None:
        """What is on its way outlives its sender, even one that is killed: it belongs to the world."""
        delay_s = self._rng.uniform(0, self.faults.late_s_max)
        loop = asyncio.get_running_loop()
        outside = loop.outside if isinstance(loop, VirtualLoop) else loop.call_later
        outside(delay_s, self._arrives, tuple(records))

    def _arrives(self, records: Sequence[Record]) -> None:
        with contextlib.suppress(Refused):
            self._far_end.take(self._gateway, records)
