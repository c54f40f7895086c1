"""The outbox's file as the store's two threads use it: one writes, one reads. Every method may raise DiskError; after `drop` the
next call opens the file again, and one that was found corrupt is first set aside, salvaged and replaced (never deleted).
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from pathlib import Path
from types import TracebackType

import msgspec

from edge_runtime.outbox import intervals, tables
from edge_runtime.outbox.batch import RECORD_OVERHEAD_BYTES, Batch
from edge_runtime.outbox.database import PAGE_BYTES, full
from edge_runtime.outbox.epochs import Epoch, in_use
from edge_runtime.outbox.lanes import EVICT_SHARE, evict_order
from edge_runtime.outbox.salvage import salvage
from edge_runtime.ports import Clock, Database, Disk, EdgeError, Ranges
from edge_runtime.records import LANES, Draft, Gap, Lane, to_json

PURGE_ROWS_MAX = 5_000
"""Delivered records deleted in one transaction: a backlog of a million must not make it last for seconds."""

SEEN_MAX = 50_000
"""Message ids kept for each device, to recognise a redelivery."""

REFUSED_MAX = 1_000
"""Refused records kept for people to look at."""

FILL = 1.4
"""Bytes on the disk for a byte of rows: pages are not full."""


class Books(msgspec.Struct, frozen=True):
    """What is on the disk, in short; replaced as a whole after each transaction."""

    heads: dict[Lane, int]
    epochs: tuple[Epoch, ...] = ()
    acknowledged: dict[tuple[str, Lane], Ranges] = {}
    boots: dict[int, tuple[str, int | None]] = {}
    journal_rows: dict[str, int] = {}
    journal_heads: dict[str, int] = {}
    purge_left: bool = False


class OutboxFile:
    """`wal_bytes` is what the WAL may grow to; the cap holds for database, WAL and shared memory together."""

    def __init__(self, disk: Disk, path: Path, clock: Clock, *, size_bytes_max: int, wal_bytes: int) -> None:
        self._disk, self._path, self._clock = disk, path, clock
        self._pages_max = (size_bytes_max - wal_bytes) // PAGE_BYTES
        self._writer: Database | None = None
        self._reader: Database | None = None
        self._corrupt = False
        self._last_gap: tuple[int, Gap] | None = None
        self._purged: dict[Lane, Ranges] = {}
        self._sinks: dict[str, tuple[Lane, ...]] = {}
        self._pipelines: dict[str, str] = {}
        self._pages_spare = 0
        self.books = Books(dict.fromkeys(LANES, 0))
        self.lost: list[Gap] = []
        """Gaps made since the store last looked."""

    # --- the writer's thread ---

    def start(self, epoch: str, sinks: Mapping[str, Sequence[Lane]], pipelines: Mapping[str, str]) -> None:
        """Begins an epoch, and forgets sinks and pipelines that are no more. `pipelines`: name -> device."""
        self._sinks = {name: tuple(lanes) for name, lanes in sinks.items()}
        self._pipelines = dict(pipelines)
        database = self._write_connection()
        with Transaction(database):
            heads, lows = tables.heads(database), tables.lows(database)
            known = [*tables.epochs(database), Epoch(epoch, heads)]
            tables.add_epoch(database, known[-1])
            kept = in_use(known, lows, heads)
            for gone in (each for each in known if each not in kept):
                tables.forget_epoch(database, gone.name)
            for sink in {sink: None for sink, _ in tables.acknowledged(database) if sink not in sinks}:
                tables.forget_sink(database, sink)
            for pipeline, (device, _, _) in tables.positions(database).items():
                if pipelines.get(pipeline) != device:
                    tables.forget_position(database, pipeline)
            for device in tables.journal_counts(database):
                if device not in pipelines.values():
                    tables.trim_journal(database, device, 2**62, SEEN_MAX)
            tables.boot_number(database, self._clock.now().boot)
            self.books = self._read_books(database)

    def write(self, batch: Batch, offered: Mapping[Lane, int]) -> None:
        """One transaction: all of the batch or nothing. A gap record that was offered to a sink is never changed."""
        database = self._write_connection()
        before = (list(self.lost), self._last_gap, dict(self._purged))
        try:
            with Transaction(database):
                books = self._write(database, batch, offered)
        except BaseException:
            self.lost, self._last_gap, self._purged = before
            self._pages_spare = 0
            raise
        self.books = books

    def _write(self, database: Database, batch: Batch, offered: Mapping[Lane, int]) -> Books:
        books = self.books
        heads, acknowledged, purge_left = dict(books.heads), books.acknowledged, False
        journal_rows, journal_heads = books.journal_rows, books.journal_heads
        self._make_room(database, batch, heads, offered)
        boots, numbers = self._number_boots(database, batch)
        for lane, drafts in batch.drafts.items():
            tables.insert(database, lane, books.epochs[-1].name, heads[lane] + 1, drafts, numbers)
            heads[lane] += len(drafts)
        for sink, record, cause in batch.refused:
            tables.add_refused(database, sink, record, cause, REFUSED_MAX)
            reason = f"refused by {sink}: {cause}"
            self._declare(
                database,
                Gap(lane=record.lane, epoch=record.epoch, first=record.seq, last=record.seq, count=1, reason=reason),
                heads,
                offered,
            )
        tables.set_heads(database, {lane: head for lane, head in heads.items() if head != books.heads[lane]})
        for entry in batch.entries:
            entry.numbers = tables.add_to_journal(database, entry.device, entry.samples)
        for position in batch.positions.values():
            tables.set_position(database, position.pipeline, position.device, position.row, position.state)
        if batch.entries or batch.positions:
            journal_rows = self._count_journal(database, batch)
            journal_heads = {
                **journal_heads,
                **{entry.device: max(entry.numbers) for entry in batch.entries if any(entry.numbers)},
            }
        if batch.acknowledged or books.purge_left:
            acknowledged = {**acknowledged, **batch.acknowledged}
            for (sink, lane), ranges in batch.acknowledged.items():
                tables.set_acknowledged(database, sink, lane, ranges)
            purge_left = self._purge(database, acknowledged, heads)
        return Books(heads, books.epochs, acknowledged, boots, journal_rows, journal_heads, purge_left)

    def renew_epoch(self, epoch: str, offered: Mapping[Lane, int]) -> None:
        """What was not offered yet gets a new epoch, and all that comes."""
        current = self.books.epochs[-1]
        after = {lane: max(current.after.get(lane, 0), offered.get(lane, 0)) for lane in LANES}
        database = self._write_connection()
        with Transaction(database):
            tables.rename_epoch(database, current.name, Epoch(epoch, after))
            self.books = self._read_books(database)

    def drop(self, writer: bool, corrupt: bool) -> None:
        """After a DiskError: the connection may be stale (the disk came back read-only, the file was replaced)."""
        self._corrupt = self._corrupt or corrupt
        if writer and self._writer:
            self._writer.close()
            self._writer = None
        elif not writer and self._reader:
            self._reader.close()
            self._reader = None

    # --- the reader's thread ---

    def read_connection(self) -> Database:
        if self._reader is None:
            self._reader = self._disk.open(self._path)
        return self._reader

    # --- in a transaction ---

    def _write_connection(self) -> Database:
        if self._writer is None and self._corrupt:
            self._replace()
        if self._writer is None:
            self._writer = self._disk.open(self._path)
            found = tables.version(self._writer)
            if found > tables.SCHEMA_VERSION:
                raise EdgeError(
                    f"{self._path}: written by a newer edge-runtime (format {found}, this one knows {tables.SCHEMA_VERSION})",
                    "update edge-runtime, or give `outbox.file` another name",
                )
            tables.create(self._writer)
        return self._writer

    def _replace(self) -> None:
        """A new file in the place of the corrupt one, with all that could be read of it."""
        aside = self._disk.set_aside(self._path)
        new = self._disk.open(self._path)
        tables.create(new)
        try:
            with Transaction(new):
                lost = salvage(lambda: self._disk.open(aside), new, self.books.epochs, self.books.heads)
                heads = tables.heads(new)
                for gap in lost:
                    heads[Lane.GAP] += 1
                    self._add_gap(new, heads[Lane.GAP], gap)
                tables.set_heads(new, {lane: max(heads[lane], self.books.heads[lane]) for lane in LANES})
        finally:
            new.close()
        self.lost.extend(lost)
        self._corrupt, self._last_gap, self._purged = False, None, {}

    def _read_books(self, database: Database) -> Books:
        return Books(
            tables.heads(database),
            tuple(tables.epochs(database)),
            tables.acknowledged(database),
            tables.boots(database),
            tables.journal_counts(database),
            tables.journal_heads(database),
        )

    def _number_boots(self, database: Database, batch: Batch) -> tuple[dict[int, tuple[str, int | None]], dict[str, int]]:
        """The boots as they are now, and boot id -> number. Notes wall - monotonic as soon as a stamp is synchronised."""
        known, changed = {boot: (number, offset_ns) for number, (boot, offset_ns) in self.books.boots.items()}, False
        for drafts in batch.drafts.values():
            stamp = drafts[-1].stamp  # the newest: a batch is some milliseconds, and offsets are noted once a boot
            for boot in dict.fromkeys([draft.stamp.boot for draft in drafts]):
                if boot not in known:
                    known[boot], changed = (tables.boot_number(database, boot), None), True
            number, offset_ns = known[stamp.boot]
            if stamp.synced and offset_ns is None:
                known[stamp.boot], changed = (number, stamp.wall_ns - stamp.mono_ns), True
                tables.set_boot_offset(database, stamp.boot, stamp.wall_ns - stamp.mono_ns)
        numbers = {boot: number for boot, (number, _) in known.items()}
        return (tables.boots(database) if changed else self.books.boots), numbers

    def _make_room(self, database: Database, batch: Batch, heads: dict[Lane, int], offered: Mapping[Lane, int]) -> None:
        """Checked before the write: evicts, the least important lane first and the oldest record first, and says so."""
        needed = int(batch.size_bytes * FILL) // PAGE_BYTES + len(LANES)
        self._pages_spare -= needed
        if self._pages_spare >= 0:
            return
        while (short := self._pages_short(database, needed)) > 0:
            size_bytes = max(short * PAGE_BYTES, int(self._pages_max * PAGE_BYTES * EVICT_SHARE))
            for lane in evict_order(tables.lows(database)):
                if self._evict(database, lane, size_bytes, heads, offered):
                    break
            else:
                raise full(f"outbox.size_bytes_max leaves no room: {short} pages short and nothing to evict")
        # Asking SQLite costs as much as a small transaction: from here on half of what is spare may be used without asking.
        self._pages_spare = -short // 2

    def _pages_short(self, database: Database, needed: int) -> int:
        pages, free = tables.size_pages(database)
        return pages - free + needed - self._pages_max

    def _evict(
        self, database: Database, lane: Lane, size_bytes: int, heads: dict[Lane, int], offered: Mapping[Lane, int]
    ) -> bool:
        """The oldest records of one epoch, about so many bytes. False: nothing there."""
        gone: list[int] = []
        epoch = None
        for seq, number, body_bytes in tables.oldest(database, lane, PURGE_ROWS_MAX):
            if size_bytes <= 0 or (epoch is not None and number != epoch):
                break
            gone.append(seq)
            epoch = number
            size_bytes -= body_bytes + RECORD_OVERHEAD_BYTES
        if epoch is None:
            return False
        tables.delete(database, lane, gone[0], gone[-1], len(gone))
        self._declare(
            database,
            Gap(lane=lane, epoch=tables.epoch_text(epoch), first=gone[0], last=gone[-1], count=len(gone), reason="outbox full"),
            heads,
            offered,
        )
        return True

    def _declare(self, database: Database, gap: Gap, heads: dict[Lane, int], offered: Mapping[Lane, int]) -> None:
        """A gap record; the last one is extended where it is the neighbour and no sink has seen it."""
        self.lost.append(gap)
        if self._last_gap:
            seq, last = self._last_gap
            same = (last.lane, last.epoch, last.reason, last.last + 1) == (gap.lane, gap.epoch, gap.reason, gap.first)
            if same and seq > offered.get(Lane.GAP, 0):
                tables.delete(database, Lane.GAP, seq, seq, 1)
                self._add_gap(database, seq, msgspec.structs.replace(last, last=gap.last, count=last.count + gap.count))
                return
        heads[Lane.GAP] += 1
        self._add_gap(database, heads[Lane.GAP], gap)

    def _add_gap(self, database: Database, seq: int, gap: Gap) -> None:
        stamp = self._clock.now()
        draft = Draft(Lane.GAP, gap.lane, stamp, to_json(gap))
        epoch = self.books.epochs[-1].name if self.books.epochs else gap.epoch
        tables.insert(database, Lane.GAP, epoch, seq, [draft], {stamp.boot: tables.boot_number(database, stamp.boot)})
        self._last_gap = (seq, gap)

    def _purge(self, database: Database, acknowledged: Mapping[tuple[str, Lane], Ranges], heads: Mapping[Lane, int]) -> bool:
        """Deletes what every sink of a lane has; a lane that no sink takes keeps its records. True: there is more to delete."""
        purged, left, budget = self._purged, False, PURGE_ROWS_MAX
        for lane in LANES:
            takers = [sink for sink, lanes in self._sinks.items() if lane in lanes]
            if not takers:
                continue
            everywhere: Ranges = ((1, heads[lane]),)
            for sink in takers:
                everywhere = intervals.intersection(everywhere, acknowledged.get((sink, lane), ()))
            for first, last in intervals.subtract(everywhere, purged.get(lane, ())):
                upto = tables.delete(database, lane, first, last, budget) if budget > 0 else first - 1
                purged[lane] = intervals.union(purged.get(lane, ()), ((first, upto),))
                budget -= upto - first + 1
                left = left or upto < last
        return left

    def _count_journal(self, database: Database, batch: Batch) -> dict[str, int]:
        counts = dict(self.books.journal_rows)
        for entry in batch.entries:
            counts[entry.device] = counts.get(entry.device, 0) + sum(1 for number in entry.numbers if number)
        for device in {position.device: None for position in batch.positions.values()}:
            # A pipeline that has committed nothing yet needs everything: forgetting what only the others have done lost samples.
            done = {name: row for name, (_, row, _) in tables.positions(database).items()}
            needed = min(done.get(name, 0) for name, at in self._pipelines.items() if at == device)
            counts[device] = max(0, counts.get(device, 0) - tables.trim_journal(database, device, needed, SEEN_MAX))
        return counts


class Transaction:
    """BEGIN IMMEDIATE ... COMMIT, or ROLLBACK when anything fails on the way."""

    def __init__(self, database: Database) -> None:
        self._database = database

    def __enter__(self) -> None:
        self._database.execute("BEGIN IMMEDIATE")

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if kind is None:
            try:
                self._database.execute("COMMIT")
            except BaseException:
                self._roll_back()
                raise
        else:
            self._roll_back()

    def _roll_back(self) -> None:
        if getattr(self._database, "in_transaction", True):
            self._database.execute("ROLLBACK")
