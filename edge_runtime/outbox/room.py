"""Keeps the outbox's files (database, WAL, shared memory) under the cap: looks before each write, evicts in the same transaction,
and deletes what every sink has.

    cap = pages of the database + the WAL (up to its checkpoint, and what one transaction may add) + shared memory

A reader in another program can keep the WAL from being cut. While the cap allows it the WAL then grows; after that the store
waits.
"""

from __future__ import annotations

import contextlib
from collections.abc import Mapping, Sequence
from pathlib import Path

from edge_runtime.outbox import intervals, tables
from edge_runtime.outbox.batch import RECORD_OVERHEAD_BYTES, Batch
from edge_runtime.outbox.database import BUSY_S_MAX, PAGE_BYTES, DiskError, full, locked
from edge_runtime.outbox.gaps import Change, Gaps
from edge_runtime.outbox.journal import SEEN_SHARE
from edge_runtime.outbox.lanes import EVICT_SHARE, next_to_go
from edge_runtime.ports import Database, Disk, Ranges
from edge_runtime.records import LANES, Draft, Gap, Lane

PURGE_ROWS_MAX = 5_000
"""Delivered records deleted in one transaction: a backlog of a million must not make it last for seconds."""

FILL = 1.4
"""Bytes on the disk for a byte of rows: pages are not full."""

CHANGE_PAGES = 16
"""What a transaction writes beside its rows: inner pages, free lists, heads, positions, a gap record."""

FRAME_BYTES = PAGE_BYTES + 24
SHARED_BYTES = 32_768
"""The -shm file, for each 4,096 frames of the WAL."""

LOG_FILL = 1.5
"""Pages in the WAL for a page that is needed: what is evicted is written as well."""

PURGE_SHARE = 4
"""One part in so many of a transaction's bytes may be deleted in it after delivery."""

PURGE_PIECES_MAX = 4
"""It is divided between so many ranges."""

APPEND_PAGES = 4
"""What an append writes beside its rows; rather more than less. (A WAL longer than what SQLite leaves of it when it is cut
has to grow again, and is synced half as fast.)"""

BATCH_SHARE = 8
"""One part in so many of the cap may come in one transaction."""

FULL_REASON = "outbox full"


class Room:
    """One outbox file's room. `log_bytes_max`: what the WAL may hold before a transaction."""

    def __init__(self, disk: Disk, path: Path, *, size_bytes_max: int, log_bytes_max: int, batch_bytes_max: int) -> None:
        self.batch_bytes_max = min(batch_bytes_max, size_bytes_max // BATCH_SHARE)
        self._disk, self._path, self.size_bytes_max = disk, path, size_bytes_max
        # The WAL is cut when it has half of log_bytes_max; one transaction may come on top of that.
        log_frames = log_bytes_max // 2 // FRAME_BYTES + _frames(self.batch_bytes_max, self.batch_bytes_max // PURGE_SHARE)
        self._log_bytes_max = log_frames * FRAME_BYTES
        self._shared_bytes = SHARED_BYTES * (1 + log_frames // 4_000)
        self._pages_spare = self._pages_over = 0
        self._log_bytes = self._log_bytes_max
        """What the WAL holds at most."""
        self.log_pages_max = log_bytes_max // 2 // PAGE_BYTES
        """At which SQLite cuts the WAL, and what is left of the file then."""
        self._appended_pages = 0
        """About so many since the WAL was cut."""
        self._sinks: Mapping[str, Sequence[Lane]] = {}
        self._taken: tuple[Lane, ...] = ()
        self._purged: dict[Lane, Ranges] = {}

    @property
    def pages_max(self) -> int:
        """Of the database, in use."""
        return (self.size_bytes_max - self._log_bytes_max - self._shared_bytes) // PAGE_BYTES

    @property
    def over_bytes(self) -> int:
        """What stood over the cap when it was looked last."""
        return self._pages_over * PAGE_BYTES

    def begin(self, sinks: Mapping[str, Sequence[Lane]], size_bytes_max: int) -> None:
        """`size_bytes_max`: the cap from now on; not less than that of which the log and a transaction are a part."""
        self._sinks, self.size_bytes_max = sinks, size_bytes_max
        self._taken = tuple(lane for lane in LANES if any(lane in lanes for lanes in sinks.values()))
        self.forget()

    def forget(self) -> None:
        """After a transaction that failed, and with a new file: nothing is known."""
        self._pages_spare, self._log_bytes, self._purged = 0, self._log_bytes_max, {}

    # --- before the write ---

    def fits(self, batch: Batch) -> bool:
        """Rows only, which are taken for written then: there is nothing to evict, as far as is known without asking SQLite, and
        no log to cut."""
        touched = self._touched(batch)
        coming = FRAME_BYTES * (_frames(batch.size_bytes, 0) + touched)
        if self._log_bytes + coming > self._log_bytes_max:
            self._log_bytes = self._disk.log_bytes(self._path)
        if self._is_log_long or _pages(batch.size_bytes) > self._pages_spare or self._log_bytes + coming > self._log_bytes_max:
            return False
        self._log_bytes += coming
        self._appended_pages += batch.size_bytes // PAGE_BYTES + APPEND_PAGES + touched
        return True

    def _touched(self, batch: Batch) -> int:
        """Pages of the journal's indexes: a message id goes to any page of all that are known, and from it later."""
        ids = sum(bool(sample.message_id) for entry in batch.entries for sample in entry.samples)
        return len(batch.entries) + min(2 * ids, self.size_bytes_max // SEEN_SHARE // PAGE_BYTES)

    @property
    def _is_log_long(self) -> bool:
        return self._appended_pages > self.log_pages_max

    def cut_log(self, database: Database) -> None:
        """Outside a transaction, where appends have made it long: they do not wait for a checkpoint. The rows before it are on
        the disk, so that where it fails they must not be written again: the next one tries, as SQLite does with its own."""
        if self._is_log_long:
            with contextlib.suppress(DiskError):
                tables.rows(database, "PRAGMA wal_checkpoint(PASSIVE)")
                self._appended_pages = 0

    def check_log(self, database: Database, batch: Batch, *, purging: bool) -> None:
        """Outside a transaction. Raises DiskError while the WAL cannot be cut and nothing more may be added to it."""
        coming = FRAME_BYTES * _frames(batch.size_bytes, self.batch_bytes_max // PURGE_SHARE if purging else 0)
        self._log_bytes += coming
        if self._log_bytes <= self._log_bytes_max:  # at most that much: asking the file system costs a tenth of a transaction
            return
        self._log_bytes = self._disk.log_bytes(self._path) + coming
        if self._log_bytes <= self._log_bytes_max:
            return
        database.execute("PRAGMA busy_timeout=0")
        tables.rows(database, "PRAGMA wal_checkpoint(TRUNCATE)")
        database.execute(f"PRAGMA busy_timeout={int(BUSY_S_MAX * 1000)}")
        log = self._disk.log_bytes(self._path)
        self._log_bytes = log + coming
        if self._log_bytes <= self._log_bytes_max:
            return
        pages, _ = tables.size_pages(database)
        shared = SHARED_BYTES * (1 + (log + coming) // FRAME_BYTES // 4_000)
        if (pages + _pages(batch.size_bytes)) * PAGE_BYTES + log + coming + shared > self.size_bytes_max:
            raise locked(f"another program reads {self._path.name}, so that its log cannot be cut and has reached the cap")

    def make(
        self, change: Change, batch: Batch, gaps: Gaps, acknowledged: Mapping[tuple[str, Lane], Ranges], over_bytes: int = 0
    ) -> dict[Lane, list[Draft]]:
        """Evicts, the least important lane first and the oldest record first, and says so. Returns the drafts to be written:
        those that are less important than all that could go instead go themselves. `over_bytes`: of the journal, which were
        accepted under a larger cap; they are no reason to evict."""
        drafts: dict[Lane, list[Draft]] = batch.drafts
        needed = _pages(batch.size_bytes)
        self._pages_spare -= needed
        if self._pages_spare >= 0:
            return drafts
        while (short := self._pages_short(change.database, needed) - over_bytes // PAGE_BYTES) > 0:
            lows = tables.lows(change.database)
            lane = next_to_go(lows, drafts, self._taken)
            if lane is None and (over_bytes or not batch.entries):
                break  # what is to be written makes room: to wait for room first would be to wait for ever
            if lane is None:
                raise full(f"outbox.size_bytes_max leaves no room: {short} pages short and nothing to evict")
            if lane in lows:
                share = int(self.pages_max * PAGE_BYTES * EVICT_SHARE)
                self._evict(change, lane, max(short * PAGE_BYTES, share), gaps, self._delivered(lane, acknowledged, change.heads))
            else:
                dropped = drafts[lane]
                drafts = {each: rows for each, rows in drafts.items() if each is not lane}
                needed -= _row_pages(dropped)
                self._drop(change, lane, len(dropped), gaps)
        # Asking SQLite costs as much as a small transaction: from here on half of what is spare may be used without asking.
        self._pages_spare = 0 if over_bytes else -short // 2
        return drafts

    def _pages_short(self, database: Database, needed: int) -> int:
        pages, free = tables.size_pages(database)
        self._pages_over = max(0, pages - free - self.pages_max)
        return pages - free + needed - self.pages_max

    def _evict(self, change: Change, lane: Lane, size_bytes: int, gaps: Gaps, delivered: Ranges) -> None:
        """The oldest records of one epoch, about so many bytes."""
        gone: list[int] = []
        epoch = 0
        for seq, number, body_bytes in tables.oldest(change.database, lane, PURGE_ROWS_MAX):
            if size_bytes <= 0 or (gone and number != epoch):
                break
            gone.append(seq)
            epoch = number
            size_bytes -= body_bytes + RECORD_OVERHEAD_BYTES
        change.delete(lane, gone[0], gone[-1], len(gone))
        lost = intervals.subtract(intervals.of(gone), delivered)
        if lost:
            first, last = lost[0][0], lost[-1][1]
            count, epoch_name = intervals.size(lost), tables.epoch_text(epoch)
            gaps.declare(change, Gap(lane=lane, epoch=epoch_name, first=first, last=last, count=count, reason=FULL_REASON))

    def _drop(self, change: Change, lane: Lane, count: int, gaps: Gaps) -> None:
        """Drafts that get their seqs and are gone at once."""
        first = change.heads[lane] + 1
        change.heads[lane] += count
        change.deleted = True
        last = change.heads[lane]
        gaps.declare(change, Gap(lane=lane, epoch=change.epoch, first=first, last=last, count=count, reason=FULL_REASON))

    # --- after delivery ---

    def purge(self, change: Change, acknowledged: Mapping[tuple[str, Lane], Ranges]) -> bool:
        """Deletes what every sink of a lane has. True: there is more to delete."""
        purged, left, budget = self._purged, False, PURGE_ROWS_MAX
        due = {
            lane: intervals.subtract(self._delivered(lane, acknowledged, change.heads), purged.get(lane, ()))
            for lane in self._taken
        }
        pieces = sum(len(ranges) for ranges in due.values())
        bytes_max = self.batch_bytes_max // PURGE_SHARE // min(max(1, pieces), PURGE_PIECES_MAX)
        for lane, ranges in due.items():
            for first, last in ranges:
                upto = first - 1
                if budget > 0:
                    end = tables.within(change.database, lane, first, last, budget, bytes_max)
                    upto = change.delete(lane, first, end, budget)
                    budget = 0 if end < last else budget
                purged[lane] = intervals.union(purged.get(lane, ()), ((first, upto),))
                budget -= upto - first + 1
                left = left or upto < last
        return left

    def _delivered(self, lane: Lane, acknowledged: Mapping[tuple[str, Lane], Ranges], heads: Mapping[Lane, int]) -> Ranges:
        """What every sink of a lane has; nothing of a lane that no sink takes: it keeps its records."""
        takers = [sink for sink, lanes in self._sinks.items() if lane in lanes]
        everywhere: Ranges = ((1, heads[lane]),) if takers and heads[lane] else ()
        for sink in takers:
            everywhere = intervals.intersection(everywhere, acknowledged.get((sink, lane), ()))
        return everywhere


def _pages(size_bytes: int) -> int:
    return int(size_bytes * FILL) // PAGE_BYTES + CHANGE_PAGES


def _frames(size_bytes: int, deleted_bytes: int) -> int:
    return int(_pages(size_bytes) * LOG_FILL + deleted_bytes * FILL / PAGE_BYTES)


def _row_pages(drafts: Sequence[Draft]) -> int:
    return int(sum(len(draft.body) + RECORD_OVERHEAD_BYTES for draft in drafts) * FILL) // PAGE_BYTES
