"""What one transaction writes: collected on the event loop, and when it is on the disk all its callers go on."""

from __future__ import annotations

import asyncio
import contextvars
from collections import defaultdict
from collections.abc import Callable, Iterator, Sequence

import msgspec

from edge_runtime.ports import Ranges
from edge_runtime.records import Draft, Lane, Record, Sample

RECORD_OVERHEAD_BYTES = 120
"""What a row costs beside its body: ids, stamps, b-tree."""


BATCH_BYTES_MAX = 2 * 2**20
"""Of one transaction (less where the cap is small); callers wait for the next one. It bounds the memory and the WAL."""


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
    size_bytes: int
    numbers: list[int] = []


class Batch:
    """Rows in lists and one wake: an own future and thread call for each row would cost three times the write."""

    def __init__(self, loop: asyncio.AbstractEventLoop) -> None:
        self.drafts: defaultdict[Lane, list[Draft]] = defaultdict(list)
        self.entries: list[Entry] = []
        self.refused: list[tuple[str, Record, str]] = []
        self.positions: dict[tuple[str, str], Position] = {}
        """By pipeline and device: one that is told to read another device may have both in one transaction."""
        self.acknowledged: dict[tuple[str, Lane], Ranges] = {}
        self.size_bytes = 0
        self.waiters: list[asyncio.Future[None]] = []
        self._loop = loop

    @property
    def empty(self) -> bool:
        """Nothing that anyone waits for, and nothing to note."""
        return not (self.waiters or self.acknowledged)

    def add(self, drafts: Sequence[Draft], size_bytes: int) -> asyncio.Future[None]:
        """The future is done when they are on the disk. A caller that is cancelled meanwhile leaves its rows in: they are
        written all the same. (One future a caller: a cancelled caller would cancel a shared one for all.)"""
        lanes = self.drafts
        for draft in drafts:
            lanes[draft.lane].append(draft)
        self.size_bytes += size_bytes
        waiter: asyncio.Future[None] = asyncio.Future(loop=self._loop)  # as `durable`, and two calls less
        self.waiters.append(waiter)
        return waiter

    def add_samples(self, device: str, samples: Sequence[Sample]) -> tuple[Entry, asyncio.Future[None]]:
        """The entry has its numbers when the future is done."""
        entry = Entry(device, samples, samples_bytes(samples))
        self.entries.append(entry)
        self.size_bytes += entry.size_bytes
        return entry, self.durable()

    def durable(self) -> asyncio.Future[None]:
        waiter = self._loop.create_future()
        self.waiters.append(waiter)
        return waiter

    def wake(self, error: Exception | None = None) -> None:
        """All callers go on in one step of the loop: a step for each would take half as long as their rows take to be written."""
        steps: list[_Step] = []
        for waiter in self.waiters:
            if waiter.done():
                continue
            for call, context in waiter._callbacks or ():
                waiter.remove_done_callback(call)
                steps.append((call, context, waiter))
            if error is None:
                waiter.set_result(None)
            else:
                waiter.set_exception(error)
        if steps:
            self._loop.call_soon(_go_on, self._loop, iter(steps))


_Step = tuple[Callable[[asyncio.Future[None]], object], contextvars.Context, asyncio.Future[None]]
"""What a task that awaits a future left there, to be called with it, in the task's context."""


def _go_on(loop: asyncio.AbstractEventLoop, steps: Iterator[_Step]) -> None:
    try:
        for call, context, waiter in steps:
            context.run(call, waiter)
    finally:  # one of them ended the program: the others have to hear of it
        if rest := list(steps):
            loop.call_soon(_go_on, loop, iter(rest))


def samples_bytes(samples: Sequence[Sample]) -> int:
    """Of the journal: values as they are encoded, and the message id twice (it has an index)."""
    return sum(
        RECORD_OVERHEAD_BYTES
        + 9 * len(sample.values)
        + sum(len(value) for value in sample.values if isinstance(value, str))
        + sum(len(point) + len(reason) for point, reason in sample.faults.items())
        + 2 * len(sample.message_id)
        for sample in samples
    )
