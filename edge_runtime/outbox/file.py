"""The outbox's file as the store's two threads use it: one writes, one reads; where the disk is quick, rows are appended on the
event loop instead. Every method may raise DiskError; after `drop` the next call opens the file again. One that was found corrupt
is salvaged into a new file, set aside and replaced (never deleted).
"""

from __future__ import annotations

import contextlib
from collections.abc import Collection, Mapping, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.outbox import damage, schema, tables
from edge_runtime.outbox.batch import BATCH_BYTES_MAX, Batch
from edge_runtime.outbox.books import Acknowledged, Books, read
from edge_runtime.outbox.boots import Boots
from edge_runtime.outbox.database import BUSY_S_MAX, DiskError, Transaction, Trouble, corrupt, locked, trouble
from edge_runtime.outbox.epochs import Epoch, in_use
from edge_runtime.outbox.gaps import Change, Gaps
from edge_runtime.outbox.inserts import insert
from edge_runtime.outbox.journal import Journal
from edge_runtime.outbox.pace import QUICK_BYTES_MAX, Pace
from edge_runtime.outbox.room import Room
from edge_runtime.outbox.salvage import salvage
from edge_runtime.ports import Clock, Database, Disk, EdgeError
from edge_runtime.records import LANES, Draft, Gap, Lane, Record

REFUSED_MAX, REFUSED_SHARE = 250, 64
"""Refused records kept of each sink and lane for people to look at, and at most one part in so many of the cap."""

SALVAGED = ".salvaged"
"""The new file beside the corrupt one, until it takes its place."""


LOOK_NS = 100_000_000
"""So often appends look whether the file still has its name: a WAL that is written all the time tells it in 40 us."""


class OutboxFile:
    """`wal_bytes` is what the WAL may grow to; the cap holds for database, WAL and shared memory together. `size_bytes_max` is
    that of the settings; while they are on trial, that of the settings which may come back holds where it is larger (`know`)."""

    def __init__(self, disk: Disk, path: Path, clock: Clock, *, size_bytes_max: int, wal_bytes: int) -> None:
        self._disk, self._path, self._clock, self._size_bytes_set = disk, path, clock, size_bytes_max
        self._room = Room(disk, path, size_bytes_max=size_bytes_max, log_bytes_max=wal_bytes, batch_bytes_max=BATCH_BYTES_MAX)
        self._gaps = Gaps(clock)
        self._writer: Database | None = None
        self._reader: Database | None = None
        self._refusers_number = 1
        self._journal = Journal()
        self._unsure: tuple[Batch, Books] | None = None
        self.corrupt = False
        """Set when one of the two threads met corruption; both connections are closed before the file is replaced."""
        self._identity = self._looked_ns = 0
        self._boots, self._pace = Boots(), Pace()
        self._patient = True
        self._rescued = self._adrift = False
        self.offered: dict[Lane, int] = {}
        """The highest seqs that a sink was given to send, in this run."""
        self.books = Books(dict.fromkeys(LANES, 0))
        self.written: list[tuple[Lane, int, Sequence[Draft]]] = []
        """By the last transaction: their first seq, and all of a lane; whoever has read it empties it."""
        self.lost: list[Gap] = []
        """Gaps made since the store last looked."""
        self.aside: Path | None = None
        """Where the file went that was found corrupt, if the store has not looked since."""
        self.samples_lost = 0
        """Rows of the journal that could not be salvaged, since the store last looked."""

    @property
    def size_bytes_max(self) -> int:
        """The cap that holds now."""
        return self._room.size_bytes_max

    @property
    def over_bytes(self) -> int:
        """How much stands over the cap, when it was looked last: what was accepted before the cap was made smaller."""
        return self._room.over_bytes

    def size_bytes(self) -> int:
        """With its WAL. From any thread; raises OSError."""
        return self._disk.size_bytes(self._path)

    @property
    def batch_bytes_max(self) -> int:
        """What one transaction may hold."""
        return self._room.batch_bytes_max

    @property
    def journal_bytes_max(self) -> int:
        """What the samples of one device may take."""
        return self._journal.bytes_max

    # --- the writer's thread ---

    def start(self, epoch: str, *known: Any) -> None:
        """Begins an epoch; then `know(*known)`."""
        database = self._write_connection(epoch)
        damage.look(database)
        with Transaction(database):
            heads, lows = tables.heads(database), tables.lows(database)
            epochs = tables.epochs(database)
            if epoch not in [each.name for each in epochs]:  # it is, if a COMMIT that failed had reached the disk
                epochs.append(Epoch(epoch, heads))
                tables.add_epoch(database, epochs[-1])
            kept = in_use(epochs, lows, heads)
            for gone in (each for each in epochs if each not in kept):
                tables.forget_epoch(database, gone.name)
            tables.boot_number(database, self._clock.now().boot)
        self.know(*known)

    def know(
        self,
        sinks: Mapping[str, Sequence[Lane]],
        pipelines: Collection[tuple[str, str]],
        unconfirmed: Sequence[str] = (),
        size_bytes_kept: int = 0,
    ) -> None:
        """These sinks and pipelines, and no others. `pipelines`: (name, device); `unconfirmed`: sinks that are to the broker
        only; `size_bytes_kept`: the cap of settings that may come back."""
        cap = max(self._size_bytes_set, size_bytes_kept)
        self._refusers_number = max(1, sum(len(lanes) for lanes in sinks.values()))
        self._room.begin({name: tuple(lanes) for name, lanes in sinks.items()}, cap)
        self._journal.begin(pipelines, cap)
        database = self._write_connection()
        with Transaction(database):
            for sink in dict.fromkeys(sink for sink, _ in tables.acknowledged(database) if sink not in sinks):
                tables.forget_sink(database, sink)
            tables.set_sinks(database, sinks, unconfirmed)
            for sink, lane in tables.refused_kinds(database):
                tables.trim_refused(database, sink, lane, REFUSED_MAX, self._refused_bytes_max)
            self._journal.know(database)
            books = read(database)
        self._journal.measure(books.journal)
        self.books = msgspec.structs.replace(books, purge_left=True)

    def write(self, batch: Batch) -> None:
        """One transaction: all of the batch or nothing. A gap record that was offered to a sink is never changed."""
        database = self._connection_in_place()
        if self._landed(database, batch):
            return
        self._room.check_log(database, batch, purging=bool(batch.acknowledged or self.books.purge_left))
        self._commit(database, batch, batch.acknowledged)
        self._room.cut_log(database)

    def keep(self) -> None:
        """Before the last connection is closed: what only it holds has a name again then."""
        if self._writer or self._rescued:
            self._connection_in_place()

    def _connection_in_place(self) -> Database:
        database = self._write_connection()
        if not self._is_in_place():
            self._rescue(database)
        return database

    def append(self, batch: Batch) -> bool:
        """Its rows, on the event loop, by whoever knows that the writer's thread is idle; what it acknowledges is left out.
        False: nothing is written; it may take longer than to ask the thread for it, so `write` has to do it."""
        database = self._writer
        deletes = batch.refused or self.books.purge_left or self._journal.trims_many(batch, self.books.journal)
        if database is None or self.corrupt or deletes or batch.size_bytes > QUICK_BYTES_MAX or not self._pace.quick:
            return False
        if not self._room.fits(batch) or (self._clock.mono_ns() - self._looked_ns > LOOK_NS and not self._is_in_place()):
            return False
        self._set_patience(database, patient=False)
        try:
            self._commit(database, batch, {})
        except DiskError as error:
            if trouble(error) is Trouble.LOCKED:  # another program writes, or recovers: the thread can wait for it
                return False
            raise
        return True

    def _is_in_place(self) -> bool:
        self._looked_ns = self._clock.mono_ns()
        return self._disk.identity(self._path) == self._identity

    def _set_patience(self, database: Database, *, patient: bool) -> None:
        """Whether a transaction may wait for a lock, and cut the log at its end."""
        if patient is not self._patient:
            database.execute(f"PRAGMA busy_timeout={int(BUSY_S_MAX * 1000) if patient else 0}")
            database.execute(f"PRAGMA wal_autocheckpoint={self._room.log_pages_max if patient else 0}")
            self._patient = patient

    def _commit(self, database: Database, batch: Batch, acknowledged: Acknowledged) -> None:
        newest, before, books, began_ns = dict(self._gaps.newest), self.books, None, self._clock.mono_ns()
        change = Change(database, before.epochs[-1].name, before.heads, self.offered)
        try:
            with Transaction(database):
                books = self._write(change, batch, acknowledged)
        except BaseException:
            self._gaps.newest = newest
            self._room.forget()
            self._journal.forget()
            self._unsure = (batch, books) if books else None  # it was the COMMIT
            raise
        else:
            self.books = books
            self.lost += change.lost
        finally:
            if batch.size_bytes <= QUICK_BYTES_MAX:
                now = self.books
                added = (now.heads, now.journal.last) != (before.heads, before.journal.last)
                self._pace.note(self._clock.mono_ns() - began_ns, added=added)

    def _rescue(self, database: Database) -> None:
        """The file was removed or replaced while we had it open. What we wrote is still behind our connection, and nowhere else:
        it is written out, and takes its place again when both threads have let go of the old one. Until it is (the disk is full,
        which may be why somebody removed it) the connection stays open: closed, it would take all of it along."""
        self._adrift = True
        if self._disk.size_bytes(self._salvaged):
            self._disk.set_aside(self._salvaged)
        try:
            self._disk.copy(database, self._salvaged)
        except DiskError as error:
            self._adrift = trouble(error) is not Trouble.CORRUPT
            raise
        self._rescued, self._adrift = True, False
        raise corrupt(f"{self._path.name} was removed or replaced while it was in use")

    def _landed(self, database: Database, batch: Batch) -> bool:
        """A COMMIT that failed may have reached the disk all the same (its sync failed, then the log was read again): writing
        the batch a second time would make every record of it twice."""
        unsure, self._unsure = self._unsure, None
        if unsure is None or unsure[0] is not batch:
            return False
        before, after = self.books, unsure[1]
        now = (tables.heads(database), tables.journal_last(database))
        if now == (before.heads, before.journal.last) or now != (after.heads, after.journal.last):
            return False
        self.books = read(database)
        return True

    def _write(self, change: Change, batch: Batch, new: Acknowledged) -> Books:
        books, database = self.books, change.database
        acknowledged, purge_left = books.acknowledged, False
        if new:
            acknowledged = {**acknowledged, **new}
            for (sink, lane), ranges in new.items():
                tables.set_acknowledged(database, sink, lane, ranges)
        drafts = self._room.make(change, batch, self._gaps, acknowledged, self._journal.over_bytes(books.journal))
        boots, numbers = self._boots.number(database, books.boots, drafts)
        self.written = [(lane, change.heads[lane] + 1, rows) for lane, rows in drafts.items()]
        for lane, rows in drafts.items():
            insert(database, lane, change.epoch, change.heads[lane] + 1, rows, numbers)
            change.heads[lane] += len(rows)
        for sink, record, cause in batch.refused:
            self._set_aside(change, sink, record, cause)
        held = self._journal.write(database, batch, books.journal)
        if new or books.purge_left:
            purge_left = self._room.purge(change, acknowledged)
        change.finish()
        return msgspec.structs.replace(
            books, heads=change.heads, acknowledged=acknowledged, boots=boots, purge_left=purge_left, journal=held
        )

    def renew_epoch(self, epoch: str) -> None:
        """What was not offered yet gets a new epoch, and all that comes."""
        current = self.books.epochs[-1]
        if current.name == epoch:
            return
        after = {lane: max(current.after.get(lane, 0), self.offered.get(lane, 0)) for lane in LANES}
        database = self._write_connection()
        with Transaction(database):
            if epoch not in [each.name for each in tables.epochs(database)]:
                tables.rename_epoch(database, current.name, Epoch(epoch, after))
            books = read(database)
        self.books = msgspec.structs.replace(books, purge_left=True)

    def read_gaps(self, first: int, last: int, limit: int) -> list[Record]:
        """In the writer's thread, so that none is extended while it is read; from now on they count as offered."""
        found = tables.read(self._write_connection(), Lane.GAP, first, last, limit, self.books.boots)
        if found:
            self.offered[Lane.GAP] = max(self.offered.get(Lane.GAP, 0), found[-1].seq)
        return found

    def drop_writer(self) -> None:
        """After a DiskError: the connection may be stale (the disk came back read-only, the file was replaced)."""
        if self._adrift:
            return
        writer, self._writer, self._patient = self._writer, None, True
        if writer:
            with contextlib.suppress(DiskError):
                writer.close()

    # --- the reader's thread ---

    def read_connection(self) -> Database:
        if self.corrupt:
            # Opened now it would be the old file, and closing it later would delete the *new* one's WAL: SQLite goes by name.
            raise locked(f"{self._path.name} is being salvaged")
        if self._reader is None:
            self._reader = self._disk.open(self._path)
        return self._reader

    def drop_reader(self) -> None:
        reader, self._reader = self._reader, None
        if reader:
            with contextlib.suppress(DiskError):
                reader.close()

    # --- opening ---

    def _write_connection(self, epoch: str = "") -> Database:
        """`epoch`: of gap records that a start must write; later it is the current one."""
        if self._writer is None:
            if self.corrupt and not self._rescued:
                self._replace(epoch or self.books.epochs[-1].name)
            self._end_replacement()
            self._rescued = False
            self._writer = self._writer or self._open()
            self._identity = self._disk.identity(self._path)
        self._set_patience(self._writer, patient=True)
        return self._writer

    def _open(self) -> Database:
        database = self._disk.open(self._path)
        try:
            found = schema.version(database)
            if found > schema.SCHEMA_VERSION:
                raise EdgeError(
                    f"{self._path}: written by a newer edge-runtime (format {found}, this one knows {schema.SCHEMA_VERSION})",
                    "update edge-runtime, or give `outbox.file` another name",
                )
            if not found and self.books.epochs:
                raise corrupt(f"{self._path.name} is empty or another file, and was not when it was opened last")
            if found < schema.SCHEMA_VERSION:  # new, or of an older format: it gets the tables that it lacks, all or none
                with Transaction(database):
                    schema.create(database)
        except BaseException:
            database.close()
            raise
        return database

    def _replace(self, epoch: str) -> None:
        """All that can be read of the corrupt file, in a new one; then that takes its place."""
        salvaged = self._salvaged
        if self._disk.size_bytes(salvaged):  # begun by a run that did not end it; the corrupt file is still there
            self._disk.set_aside(salvaged)
        new = self._disk.open(salvaged)
        try:
            with Transaction(new):
                schema.create(new)
                lost, samples_lost = salvage(
                    lambda: self._disk.open(self._path, damaged=True), new, self.books.epochs, self.books.heads
                )
                heads = {lane: max(head, self.books.heads[lane]) for lane, head in tables.heads(new).items()}
                if epoch not in [each.name for each in tables.epochs(new)]:
                    tables.add_epoch(new, Epoch(epoch, heads))
                change = Change(new, epoch, heads, {Lane.GAP: heads[Lane.GAP]})
                for gap in lost:
                    self._gaps.declare(change, gap)
                tables.set_heads(new, change.heads)
                if self.books.epochs:
                    tables.set_journal_last(new, max(tables.journal_last(new), self.books.journal.last))
        finally:
            new.close()
        self.lost += lost
        self.samples_lost += samples_lost
        self._gaps.newest = {}
        self._room.forget()
        self._journal.forget()
        self._end_replacement()
        if self.books.epochs:  # seqs were given to gap records, and rows are gone
            self._writer = self._open()
            self.books = read(self._writer)

    def _end_replacement(self) -> None:
        """Also after a crash in the midst of it: a salvage that is complete takes the corrupt file's place."""
        if self._disk.size_bytes(self._salvaged):
            new = self._disk.open(self._salvaged)
            complete = schema.version(new) > 0
            new.close()
            if complete:
                if self._disk.size_bytes(self._path):
                    self.aside = self._disk.set_aside(self._path)
                self._disk.move(self._salvaged, self._path)
        self.corrupt = False

    @property
    def _salvaged(self) -> Path:
        return self._path.with_name(self._path.name + SALVAGED)

    # --- in a transaction ---

    @property
    def _refused_bytes_max(self) -> int:
        return self.size_bytes_max // REFUSED_SHARE // self._refusers_number

    def _set_aside(self, change: Change, sink: str, record: Record, cause: str) -> None:
        tables.add_refused(change.database, sink, record, cause, REFUSED_MAX, self._refused_bytes_max)
        reason, seq = f"refused by {sink}: {cause}", record.seq
        self._gaps.declare(change, Gap(lane=record.lane, epoch=record.epoch, first=seq, last=seq, count=1, reason=reason))
