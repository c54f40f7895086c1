"""Samples of a source that asks again, on their way to the disk: reading goes on while a commit is under way.

One accept at a time, of everything that has come in since the last one: the batch grows with the disk's slowness, so the
order of acknowledgements needs no care and 5 ms a sync still carry thousands of messages a second.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence

from edge_runtime.records import Sample

SAMPLES_WAITING_MAX = 1_000
"""Read but not yet given to accept; beyond it reading waits, and with it the source."""

Accept = Callable[[Sequence[Sample]], Awaitable[object]]


class Handover:
    """Of one connection: `async with`. Leaving it waits until everything is accepted and acknowledged (a cancellation does not
    wait). What `accept` raises is raised by leaving; `broken` is called at once, so that nobody goes on reading."""

    def __init__(self, accept: Accept, acknowledge: Accept, name: str, broken: Callable[[], None]) -> None:
        self._accept = accept
        self._acknowledge = acknowledge
        self._name = name
        self._broken = broken
        self._waiting: list[Sample] = []
        self._leaving = False
        self._arrived = asyncio.Event()
        self._room = asyncio.Event()

    async def put(self, samples: Sequence[Sample]) -> None:
        """Waits while too many are waiting."""
        while len(self._waiting) >= SAMPLES_WAITING_MAX and not self._task.done():
            self._room.clear()
            await self._room.wait()
        self._waiting.extend(samples)
        self._arrived.set()

    async def __aenter__(self) -> Handover:
        self._task = asyncio.create_task(self._run(), name=self._name)
        self._task.add_done_callback(self._ended)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: object) -> None:
        self._leaving = True
        self._arrived.set()
        if kind is not None and not issubclass(kind, Exception):
            self._task.cancel()
            await asyncio.wait((self._task,))
        else:
            await self._task

    async def _run(self) -> None:
        while self._waiting or not self._leaving:
            await self._arrived.wait()
            self._arrived.clear()
            while batch := self._waiting:
                self._waiting = []
                self._room.set()
                await self._accept(batch)
                await self._acknowledge(batch)

    def _ended(self, task: asyncio.Task[None]) -> None:
        self._room.set()
        if task.cancelled() or task.exception() is not None:
            self._broken()
