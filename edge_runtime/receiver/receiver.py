"""The far end between its doors (http, mqtt) and its ledger: batches that wait commit together (runs).

Every door awaits `take`; one loop takes whatever waits, commits it as one transaction, and only then wakes the doors with
their receipts. With one gateway this costs nothing; with many, or with an MQTT backlog, one sync serves all.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from pathlib import Path

from edge_runtime.bus.messages import Batch, Hello, ReceiptMessage
from edge_runtime.ports import Worker
from edge_runtime.receiver import ledger
from edge_runtime.receiver.account import Statistics
from edge_runtime.receiver.ledger import Ledger, LedgerError

GROUP_MAX = 100
"""Most batches in a transaction."""

WAITING_MAX = 200
"""Batches that wait for a commit; doors wait beyond it."""


class Receiver:
    """One ledger and its commit loop. `run` goes on until it is cancelled; without it `take` waits for ever."""

    def __init__(self, name: str, writer: Worker, reader: Worker, trace: Callable[[Batch], None] = lambda _: None) -> None:
        """`writer` and `reader` are threads: counting a large file must not hold up the commits. `trace`: is told each batch that
        is on the disk."""
        self.name = name
        self._trace = trace
        self._trouble: LedgerError | None = None
        self._writer = writer
        self._reader = reader
        self._ledger: Ledger | None = None
        self._waiting: asyncio.Queue[tuple[Batch, asyncio.Future[ReceiptMessage]]] = asyncio.Queue(WAITING_MAX)

    async def open(self, path: Path) -> None:
        """Raises LedgerError."""
        self._ledger = await self._writer.run(Ledger, path, self.name)

    async def take(self, batch: Batch) -> ReceiptMessage:
        """Returns when the batch is on disk. Raises LedgerError when it could not be written: nothing of it was kept."""
        answer: asyncio.Future[ReceiptMessage] = asyncio.get_running_loop().create_future()
        await self._waiting.put((batch, answer))
        return await answer

    async def hello(self, hello: Hello) -> ReceiptMessage:
        """What the disk has of these epochs. Raises LedgerError."""
        return await self._writer.run(self._open_ledger().hello, hello)

    async def statistics(self) -> Statistics:
        """Raises LedgerError."""
        return await self._reader.run(ledger.statistics, self._open_ledger().path)

    async def check(self) -> None:
        """Raises LedgerError while the disk takes nothing. After a failed commit it tries: a balancer that sends nobody here
        while we call ourselves ill would keep us ill for ever."""
        if self._trouble is not None:
            await self._writer.run(self._open_ledger().probe)
            self._trouble = None

    async def run(self) -> None:
        """The commit loop."""
        while True:
            group = [await self._waiting.get()]
            while len(group) < GROUP_MAX and not self._waiting.empty():
                group.append(self._waiting.get_nowait())
            try:
                receipts = await self._writer.run(self._open_ledger().take, [batch for batch, _ in group])
            except LedgerError as error:
                self._trouble = error
                for _, answer in group:
                    _settle(answer, LedgerError(error.cause, error.hint))
                continue
            except asyncio.CancelledError:
                for _, answer in group:
                    answer.cancel()
                raise
            self._trouble = None
            for (batch, answer), receipt in zip(group, receipts, strict=True):
                self._trace(batch)
                _settle(answer, receipt)

    async def close(self) -> None:
        if self._ledger is not None:
            await self._writer.run(self._ledger.close)
            self._ledger = None

    def _open_ledger(self) -> Ledger:
        if self._ledger is None:
            raise LedgerError("the ledger is not open", "await Receiver.open(path) first")
        return self._ledger


def _settle(answer: asyncio.Future[ReceiptMessage], outcome: ReceiptMessage | LedgerError) -> None:
    """A door that has gone (its connection was cut) has cancelled its future."""
    if answer.done():
        return
    if isinstance(outcome, LedgerError):
        answer.set_exception(outcome)
    else:
        answer.set_result(outcome)
