"""The durability point: `commit` returns when the records are on the disk, never before.

Group commit: callers put their rows into one open batch; one transaction writes whatever has come together while the disk was
busy with the one before, and then all its callers are woken. A full, read-only or broken disk is a state: the batch is tried
again until it is on the disk, callers wait (that is the back-pressure), and nothing they handed over is lost.
"""

from __future__ import annotations

import asyncio
import weakref
from collections.abc import Awaitable, Callable, Collection, Mapping, Sequence
from typing import Any, TypeVar

import msgspec

from edge_runtime.outbox import tables
from edge_runtime.outbox.batch import RECORD_OVERHEAD_BYTES, Batch, Position, samples_bytes
from edge_runtime.outbox.database import DISK_ERRORS, HINTS, UNWRITABLE, DiskError, Trouble, trouble
from edge_runtime.outbox.epochs import confirmed, used_by_another
from edge_runtime.outbox.file import OutboxFile
from edge_runtime.outbox.news import News
from edge_runtime.ports import Dice, EdgeError, Ranges, Receipt, Worker
from edge_runtime.records import Draft, Lane, Record, Sample
from edge_runtime.saying import told

T = TypeVar("T")

LAZY_S_MAX = 0.25
"""A sink's acknowledgement waits this long for a commit to ride on: lost in a crash, it costs a resend that the far end
recognises, while a transaction of its own would cost the disk as much as a record."""

PUT_OFF_S = 0.2
"""As long as that it lets rows pass that can be appended."""

READ_BYTES_MAX = 2**20
"""A read ends with the record that reaches it: a batch for a sink must fit into the memory, whatever its records hold."""

RETRY_S_MIN, RETRY_S_MAX = 0.1, 2.0


class StoreState(msgspec.Struct, frozen=True):
    """`trouble` None: all is well."""

    trouble: Trouble | None = None
    cause: str = ""
    hint: str = ""


class Store:
    """The outbox and the input journal of one gateway. Used by one event loop; call `open` first."""

    def __init__(self, file: OutboxFile, *, journal_rows_max: int, writer: Worker, reader: Worker, dice: Dice, log: Any) -> None:
        self._file, self._journal_rows_max, self._dice = file, journal_rows_max, dice
        self._log = log.bind()  # what structlog gives out binds itself anew for each question
        self._writer, self._reader = writer, reader
        self._batch: Batch
        self._batch_bytes_max = file.batch_bytes_max
        self._wake, self._room = asyncio.Event(), asyncio.Event()
        self._closing = False
        self._failure = ""
        self._task: asyncio.Task[None] | None = None
        self._listeners: list[weakref.ref[asyncio.Event]] = []
        """Of pipelines and sinks that still are."""
        self.state = StoreState()
        self.news = News(file, self._log)
        self._writing_since_s: float | None = None
        self._acknowledged_s = 0.0
        """Since when what is acknowledged waits to be written, in the loop's time."""

    # --- life ---

    async def open(
        self,
        sinks: Mapping[str, Sequence[Lane]],
        pipelines: Collection[tuple[str, str]],
        unconfirmed: Sequence[str] = (),
        size_bytes_kept: int = 0,
    ) -> None:
        """Waits until the file can be written. `sinks`: name -> lanes; `pipelines`: (name, device); others are forgotten.
        `unconfirmed`: sinks that are to the broker only; `size_bytes_kept`: the cap of settings that may come back, which holds
        where it is the larger one. Raises EdgeError for a file of a newer format."""
        self._batch = Batch(asyncio.get_running_loop())
        known = (sinks, pipelines, unconfirmed, size_bytes_kept)
        await self._until_it_works(self._writer, self._file.start, self._dice.token(), *known)
        self.news.tell_losses()
        self._task = asyncio.create_task(self._run(), name="store")

    async def know(
        self,
        sinks: Mapping[str, Sequence[Lane]],
        pipelines: Collection[tuple[str, str]],
        unconfirmed: Sequence[str] = (),
        size_bytes_kept: int = 0,
    ) -> None:
        """From now on these, as in `open`; others are forgotten. Waits until the disk has it."""
        before = self.size_bytes_max
        await self._until_it_works(self._writer, self._file.know, sinks, pipelines, unconfirmed, size_bytes_kept)
        if self.size_bytes_max < before:
            self._wake.set()  # what must go goes now

    async def close(self) -> None:
        """Writes what is left, then closes the file. While the disk is broken this waits: cancel it then."""
        self._closing = True
        self._wake.set()
        if self._task:
            await self._task
            await self._until_it_works(self._writer, self._file.keep)
        await self._reader.run(self._file.drop_reader)
        await self._writer.run(self._file.drop_writer)
        self._reader.close()
        self._writer.close()

    async def ended(self) -> None:
        """Returns after `close`. Raises what the writer did not expect: then nothing is committed any more."""
        assert self._task
        await asyncio.shield(self._task)

    def listen(self) -> asyncio.Event:
        """An event that is set whenever there may be something new to deliver or to read from the journal; for as long as
        somebody holds it."""
        event = asyncio.Event()
        self._listeners = [*(each for each in self._listeners if each() is not None), weakref.ref(event)]
        return event

    # --- what comes in ---

    def commit(self, drafts: Sequence[Draft], position: Position | None = None) -> Awaitable[None]:
        """Await it: it returns when the records, and the pipeline's position with them, are on the disk: all or none. Raises
        EdgeError if they are more than one transaction may hold.

        A future, not a coroutine: with a hundred callers of one row each, the coroutine would cost as much as its row."""
        batch, size_bytes = self._batch, RECORD_OVERHEAD_BYTES * len(drafts)
        for draft in drafts:
            size_bytes += len(draft.body)
        if self._closing or batch.size_bytes + size_bytes > self._batch_bytes_max:
            return self._commit_later(drafts, position, size_bytes)
        if position:
            batch.positions[position.pipeline, position.device] = position
        if not batch.waiters:
            self._wake.set()
        return batch.add(drafts, size_bytes)

    async def _commit_later(self, drafts: Sequence[Draft], position: Position | None, size_bytes: int) -> None:
        self._check_size("records", size_bytes)
        while not self._closing and self._batch.size_bytes + size_bytes > self._batch_bytes_max:
            await self._next_batch()
        self._refuse_if_closing()
        await self.commit(drafts, position)

    async def journal(self, device: str, samples: Sequence[Sample]) -> list[int]:
        """Returns the samples' rows when they are on the disk; 0 for one that was there before (a redelivery). Waits while the
        journal holds all that it may of this device."""
        size_bytes = samples_bytes(samples)
        if size_bytes > self._batch_bytes_max and len(samples) > 1:
            half = len(samples) // 2
            return [*await self.journal(device, samples[:half]), *await self.journal(device, samples[half:])]
        self._check_size("a sample", size_bytes)
        while not self._closing and (self.journal_full(device) or self._batch.size_bytes + size_bytes > self._batch_bytes_max):
            await self._next_batch()
        self._refuse_if_closing()
        entry, durable = self._batch.add_samples(device, samples)
        self._wake.set()
        await durable
        return entry.numbers

    def journal_full(self, device: str) -> bool:
        """Whether the device's samples wait outside until its pipelines need less."""
        books = self._file.books
        rows, size_bytes = books.journal.rows.get(device, 0), books.journal.size_bytes.get(device, 0)
        return rows >= self._journal_rows_max or size_bytes >= self._file.journal_bytes_max

    def _check_size(self, what: str, size_bytes: int) -> None:
        if size_bytes > self._batch_bytes_max:
            raise EdgeError(
                f"{what} of {size_bytes} bytes: one transaction may hold {self._batch_bytes_max}",
                "raise outbox.size_bytes_max, or commit less at a time",
            )

    def acknowledge(self, sink: str, lane: Lane, ranges: Ranges) -> None:
        """The sink need not be given these any more. Written with the next transaction of the writer's thread, or soon."""
        if not self._batch.acknowledged:
            loop = asyncio.get_running_loop()
            self._acknowledged_s = loop.time()
            loop.call_later(LAZY_S_MAX, self._wake.set)
        self._batch.acknowledged[sink, lane] = ranges

    async def set_aside(self, sink: str, record: Record, cause: str) -> None:
        """Keeps a record that a sink's far end refuses for ever, with the reason; a gap record tells that it will not come. What
        was acknowledged in the same step of the loop is written in the same transaction."""
        self._refuse_if_closing()
        self._batch.refused.append((sink, record, cause))
        self._wake.set()
        await self._batch.durable()

    # --- what goes out ---

    def acknowledged(self, sink: str, lane: Lane) -> Ranges:
        return self._file.books.acknowledged.get((sink, lane), ())

    @property
    def heads(self) -> Mapping[Lane, int]:
        """The highest seq on the disk, by lane."""
        return self._file.books.heads

    @property
    def epochs(self) -> list[str]:
        """Epochs that a far end is asked about, the newest last."""
        return [epoch.name for epoch in self._file.books.epochs]

    async def read(self, lane: Lane, first: int, last: int, limit: int) -> list[Record]:
        """Records first..last in order, at most `limit` (less if they are large); evicted ones are missing. From now on they
        count as offered."""
        file = self._file
        if lane is Lane.GAP:
            return await self._until_it_works(self._writer, file.read_gaps, first, last, limit)
        found = await self._read(tables.read, lane, first, last, limit, file.books.boots, READ_BYTES_MAX)
        if found:
            file.offered[lane] = max(file.offered.get(lane, 0), found[-1].seq)
        return found

    async def learn(self, receipt: Receipt) -> dict[Lane, Ranges]:
        """What of a receipt is ours. Begins a new epoch if our numbers were used by another run of this machine."""
        current = self._file.books.epochs[-1]
        if used_by_another(current, receipt, {**current.after, **self._file.offered}):
            await self._until_it_works(self._writer, self._file.renew_epoch, self._dice.token())
            self._log.warning("epoch_renewed", cause="the far end has numbers of this run that were never sent: a copy ran")
        return confirmed(self._file.books.epochs, receipt, self.heads)

    async def read_journal(self, device: str, first: int, limit: int) -> list[Sample]:
        """Samples from row `first` on, in order, each with its row."""
        return await self._read(tables.read_journal, device, first, limit)

    async def position(self, pipeline: str, device: str) -> Position | None:
        found = (await self._read(tables.positions)).get((pipeline, device))
        return Position(pipeline, device, *found) if found else None

    @property
    def journal_rows(self) -> int:
        return sum(self._file.books.journal.rows.values())

    def journal_head(self, device: str) -> int:
        """The newest row of a device; 0: none."""
        return self._file.books.journal.heads.get(device, 0)

    # --- for who watches it ---

    @property
    def writing_s(self) -> float:
        """How long the disk has been at what the writer told it last; 0: it has nothing to do."""
        since_s = self._writing_since_s
        return 0.0 if since_s is None else asyncio.get_running_loop().time() - since_s

    @property
    def size_bytes_max(self) -> int:
        return self._file.size_bytes_max

    def size_bytes(self) -> int:
        """On the disk; asks the file system: call it on a worker. Raises OSError."""
        return self._file.size_bytes()

    @property
    def journal_waiting(self) -> Mapping[str, int]:
        """Rows of the journal, by device."""
        return self._file.books.journal.rows

    # --- the writer ---

    async def _run(self) -> None:
        batch = self._batch
        try:
            while not (self._closing and self._batch.empty):
                await self._wake.wait()
                self._wake.clear()
                batch, self._batch = self._batch, Batch(asyncio.get_running_loop())
                self._room.set()
                await self._write(batch)
                if self._file.books.purge_left or self._batch.waiters or self._closing:
                    self._wake.set()
        except BaseException as error:
            # A fault of ours. Whoever waits, or comes later, must hear of it and not wait for ever.
            self._closing, self._failure = True, f"{type(error).__name__}: {error}"
            for each in (batch, self._batch):
                each.wake(self._closed())
            self._room.set()
            raise

    async def _append(self, batch: Batch) -> bool:
        """On the loop, where that is no longer than to ask the writer's thread. False: it has to be asked."""
        lately = asyncio.get_running_loop().time() - self._acknowledged_s < PUT_OFF_S
        if self.state.trouble or not self._writer.idle() or (batch.acknowledged and not (batch.waiters and lately)):
            return False
        try:
            appended = self._file.append(batch)
        except DISK_ERRORS as error:
            await self._drop(self._writer, error)
            return False
        if appended:
            self._batch.acknowledged = batch.acknowledged  # for the next one; nothing has come to that yet
        return appended

    async def _write(self, batch: Batch) -> None:
        """Rows that cannot be stored come back to their callers; nothing of the batch is on the disk then."""
        try:
            if not await self._append(batch):
                await self._until_it_works(self._writer, self._file.write, batch)
        except (EdgeError, *UNWRITABLE) as error:
            self._log.error("rows_refused", cause=told(error), hint="their callers are told")
            batch.wake(error)
        else:
            batch.wake()
            self.news.tell_written()
        self.news.tell_losses()
        self._room.set()
        for listener in self._listeners:
            event = listener()
            if event is not None:
                event.set()

    async def _next_batch(self) -> None:
        self._room.clear()
        await self._room.wait()

    def _refuse_if_closing(self) -> None:
        if self._closing:
            raise self._closed()

    def _closed(self) -> EdgeError:
        return EdgeError(
            f"the outbox is closed {self._failure}".rstrip(), "report it" if self._failure else "the gateway is stopping"
        )

    async def _read(self, function: Callable[..., T], *arguments: Any) -> T:
        return await self._until_it_works(self._reader, lambda: function(self._file.read_connection(), *arguments))

    async def _until_it_works(self, worker: Worker, function: Callable[..., T], *arguments: Any) -> T:
        """Again and again, until the disk allows it. What the reader finds corrupt, the writer salvages."""
        wait_s, troubled = RETRY_S_MIN, False
        while True:
            try:
                value = await self._timed(worker, function, *arguments)
            except DISK_ERRORS as error:
                troubled = True
                await self._drop(worker, error)
                await asyncio.sleep(self._dice.uniform(wait_s / 2, wait_s))
                wait_s = min(wait_s * 2, RETRY_S_MAX)
            else:
                if troubled or (self.state.trouble and worker is self._writer):
                    self._set_state(StoreState())
                return value

    async def _timed(self, worker: Worker, function: Callable[..., T], *arguments: Any) -> T:
        if worker is not self._writer:
            return await worker.run(function, *arguments)
        self._writing_since_s = asyncio.get_running_loop().time()
        try:
            return await worker.run(function, *arguments)
        finally:
            self._writing_since_s = None

    async def _drop(self, worker: Worker, error: DiskError | OSError) -> None:
        """Corruption is noted at once: from here on nobody opens the old file, so that it can be replaced. Where the disk is full
        the writer's connection stays: it holds a file that somebody removes to make room."""
        kind, file = trouble(error), self._file
        if kind is Trouble.CORRUPT:
            file.corrupt = True
        if kind is not Trouble.LOCKED or not file.corrupt:
            self._set_state(StoreState(kind, str(error), HINTS[kind]))
        if worker is self._reader or kind is Trouble.CORRUPT:
            await self._reader.run(file.drop_reader)
        if (worker is self._writer and kind is not Trouble.FULL) or kind is Trouble.CORRUPT:
            await self._writer.run(file.drop_writer)
        if worker is self._reader:
            self._wake.set()

    def _set_state(self, state: StoreState) -> None:
        if state.trouble != self.state.trouble:
            log = self._log.warning if state.trouble else self._log.info
            log("outbox_state", state=state.trouble or "ok", cause=state.cause, hint=state.hint)
        self.state = state
