"""What one transaction writes: collected on the event loop, written in the store's thread, then all its callers are woken."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from edge_runtime.ports import Ranges
from edge_runtime.records import Draft, Lane, Record, Sample

RECORD_OVERHEAD_BYTES = 120
"""What a row costs beside its body: ids, stamps, b-tree."""


class Position(msgspec.Struct, frozen=True):
    """How far a pipeline is: the first row of the journal that it still needs, and the state of its rules."""

    pipeline: str
    device: str
    row: int
    state: bytes = b""


class Entry(msgspec.Struct):
    """Samples on their way into the journal; `numbers` are their rows once they are written (0: was there before)."""

    device: str
    samples: Sequence[Sample]
    numbers: list[int] = []


class Batch:
    """Rows in lists and one wake: an own future and thread call for each row would cost three times the write."""

    def __init__(self) -> None:
        self.drafts: dict[Lane, list[Draft]] = {}
        self.entries: list[Entry] = []
        self.refused: list[tuple[str, Record, str]] = []
        self.positions: dict[str, Position] = {}
        self.acknowledged: dict[tuple[str, Lane], Ranges] = {}
        self.size_bytes = 0
        self._waiters: list[asyncio.Future[None]] = []
        self._loop: asyncio.AbstractEventLoop | None = None

    @property
    def empty(self) -> bool:
        """Nothing that anyone waits for, and nothing to note."""
        return not (self._waiters or self.acknowledged)

    def add(self, drafts: Sequence[Draft]) -> asyncio.Future[None]:
        """The future is done when they are on the disk. A caller that is cancelled meanwhile leaves its rows in: they are
        written all the same. (One future a caller: a cancelled caller would cancel a shared one for all.)"""
        for draft in drafts:
            lane = self.drafts.get(draft.lane)
            if lane is None:
                lane = self.drafts[draft.lane] = []
            lane.append(draft)
            self.size_bytes += len(draft.body) + RECORD_OVERHEAD_BYTES
        return self.durable()

    def add_samples(self, device: str, samples: Sequence[Sample]) -> tuple[Entry, asyncio.Future[None]]:
        """The entry has its numbers when the future is done."""
        entry = Entry(device, samples)
        self.entries.append(entry)
        self.size_bytes += sum(RECORD_OVERHEAD_BYTES + 16 * len(sample.values) + len(sample.message_id) for sample in samples)
        return entry, self.durable()

    def durable(self) -> asyncio.Future[None]:
        if self._loop is None:
            self._loop = asyncio.get_running_loop()
        waiter = self._loop.create_future()
        self._waiters.append(waiter)
        return waiter

    def wake(self) -> None:
        for waiter in self._waiters:
            if not waiter.done():
                waiter.set_result(None)
