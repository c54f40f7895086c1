"""The audit log's file as its one thread uses it: every SQL statement on it, and the moving of its oldest entries into segments.

| table    | a row is                                                             |
|----------|----------------------------------------------------------------------|
| entries  | an entry; n without gaps, each bound to the one before by its hash   |
| segments | a closed file with the oldest entries, which are no longer in here   |

Every method may raise DiskError; after `drop` the next call opens the file again.
"""

from __future__ import annotations

import contextlib
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.control.audit_chain import BEGUN, FIELDS, START, Broken, Entry, Head, Kind, Row, row_of
from edge_runtime.control.audit_segments import Segments
from edge_runtime.outbox.database import PAGE_BYTES, DiskError, Transaction, corrupt, full
from edge_runtime.ports import Clock, Database, Disk, EdgeError
from edge_runtime.records import Stamp

NAME = "audit.db"
BYTES_MAX = 64 * 2**20
WAL_PAGES = 256
"""Of the disk that the log is opened with: it writes little at a time."""

SEGMENT_SHARE = 16
"""A segment is so large a part of the cap: small enough that moving it away does not hold up a command for long."""

SCHEMA_VERSION = 1
_COLUMNS = ", ".join(FIELDS)
_SCHEMA = (
    "CREATE TABLE entries (n INTEGER PRIMARY KEY, boot TEXT NOT NULL, mono_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL, "
    "synced INTEGER NOT NULL, kind TEXT NOT NULL, actor TEXT NOT NULL, via TEXT NOT NULL, subject TEXT NOT NULL, "
    "before TEXT NOT NULL, requested TEXT NOT NULL, read_back TEXT NOT NULL, outcome TEXT NOT NULL, why TEXT NOT NULL, "
    "completes INTEGER NOT NULL, previous TEXT NOT NULL, hash TEXT NOT NULL)",
    f"CREATE INDEX intents ON entries (n) WHERE outcome = '{BEGUN}'",
    "CREATE INDEX completions ON entries (completes) WHERE completes > 0",
    "CREATE TABLE segments (number INTEGER PRIMARY KEY, file TEXT NOT NULL, first INTEGER NOT NULL, last INTEGER NOT NULL, "
    "hash TEXT NOT NULL)",
    f"PRAGMA user_version={SCHEMA_VERSION}",
)
_INSERT = f"INSERT INTO entries ({_COLUMNS}) VALUES ({', '.join('?' * len(FIELDS))})"
_ORPHANS = (
    f"SELECT n, kind, actor, via, subject FROM entries AS intent WHERE outcome = '{BEGUN}' "
    "AND NOT EXISTS (SELECT 1 FROM entries WHERE completes > 0 AND completes = intent.n) ORDER BY n"
)
_SIZES = "SELECT n, length(before) + length(requested) + length(read_back) + length(why) FROM entries ORDER BY n"
ROW_BYTES, ROW_BYTES_MAX = 400, 32_768
"""What an entry takes beside its values and its reason; the most that it can take at all."""

ENTRIES_MAX = 64
"""Of one transaction."""


class Draft(msgspec.Struct, frozen=True):
    """An entry that waits to be written. `key`: never used for another one."""

    key: int
    stamp: Stamp
    entry: Entry
    completes: int = 0


class AuditFile:
    """`bytes_max` bounds the database; its WAL comes on top (WAL_PAGES)."""

    def __init__(
        self, disk: Disk, path: Path, clock: Clock, *, bytes_max: int = BYTES_MAX, segments: Segments | None = None
    ) -> None:
        self._disk, self._path, self._clock, self._bytes_max = disk, path, clock, bytes_max
        self._segments = segments or Segments(path.parent)
        self._database: Database | None = None
        self._identity = 0
        self._begun: dict[int, None] = {}
        self._unsure: tuple[Head, dict[int, int], dict[int, None]] | None = None
        self._known = False
        self.corrupt = False
        """Set by who met corruption: the next call sets the file aside and begins another."""
        self.head = START
        """The newest entry, as far as we know; START before the file was opened."""
        self.aside: Path | None = None
        """Where a damaged file went, if nobody has looked since."""
        self.export_failure = ""
        """Why the oldest segment could not be moved away, "" while it could."""

    # --- writing ---

    @property
    def entries_max(self) -> int:
        """Of one call of `write`: what fits between the mark where segments are moved away and the cap."""
        return max(1, min(ENTRIES_MAX, self._bytes_max // SEGMENT_SHARE // ROW_BYTES_MAX))

    def write(self, drafts: Sequence[Draft]) -> dict[int, int]:
        """One transaction. key -> n, also of drafts of an earlier call whose commit failed and had reached the disk."""
        database = self._connection()
        landed = self._landed(database)
        self._close_intents(database)
        rest = [draft for draft in drafts if draft.key not in landed]
        if rest:
            self._make_room(database)
            landed |= self._append(database, rest)
        return landed

    def _append(self, database: Database, drafts: Sequence[Draft]) -> dict[int, int]:
        numbers: dict[int, int] = {}
        begun, rows = dict(self._begun), []
        with Transaction(database):
            head = _head(database)
            for draft in drafts:
                row = row_of(draft.entry, draft.stamp, draft.completes, head)
                head = Head(row.n, row.hash)
                numbers[draft.key] = row.n
                rows.append(msgspec.structs.astuple(row))
                if row.outcome == BEGUN:
                    begun[row.n] = None
                begun.pop(row.completes, None)
            database.executemany(_INSERT, rows)
            self._unsure = (head, numbers, begun)
        self._unsure, self.head, self._begun = None, head, begun
        return numbers

    def _landed(self, database: Database) -> dict[int, int]:
        """A COMMIT that failed may have reached the disk all the same. Intents in it are not ours: whoever began them was told
        that they could not be written."""
        unsure, self._unsure = self._unsure, None
        if unsure is None:
            return {}
        head, numbers, begun = unsure
        if list(database.execute("SELECT hash FROM entries WHERE n = ?", (head.n,))) != [(head.hash,)]:
            return {}
        self._begun = {n: None for n in begun if n in self._begun}
        self.head = _head(database)
        return numbers

    def _close_intents(self, database: Database) -> None:
        """Those that nobody will complete any more: of an earlier life, or of a commit that failed and landed after all."""
        if self._known:
            return
        orphans = [row for row in database.execute(_ORPHANS) if row[0] not in self._begun]
        if orphans:
            first, now = self.head is START, self._clock.now()
            self._append(database, [Draft(-n, now, _orphaned(*rest, ended=first), n) for n, *rest in orphans])
        self.head, self._known = _head(database), True

    # --- room ---

    def _make_room(self, database: Database) -> None:
        """Moves the oldest entries away while the cap is near. Where that fails it goes on as long as there is room."""
        segment = self._bytes_max // SEGMENT_SHARE
        try:
            while _used_bytes(database) > self._bytes_max - 2 * segment and self._export(database, segment):
                pass
            self.export_failure = ""
        except OSError as error:
            self.export_failure = error.strerror or str(error)
            if _used_bytes(database) > self._bytes_max - segment:
                cause = f"the audit log has reached its cap, and its oldest part cannot be moved away: {self.export_failure}"
                raise full(cause) from None

    def _export(self, database: Database, size_bytes: int) -> bool:
        """The file first, then the deletion: after a crash between the two the entries are in both, and are exported again."""
        first, last = _oldest(database, size_bytes)
        if not last:
            return False
        [(number,)] = database.execute("SELECT coalesce(max(number), 0) + 1 FROM segments")
        self._segments.write(number, _between(database, first, last))
        [(digest,)] = database.execute("SELECT hash FROM entries WHERE n = ?", (last,))
        with Transaction(database):
            name = self._segments.path(number).name
            database.execute("INSERT INTO segments VALUES (?, ?, ?, ?, ?)", (number, name, first, last, digest))
            database.execute("DELETE FROM entries WHERE n <= ?", (last,))
        return True

    # --- opening ---

    def drop(self) -> None:
        """After a DiskError: the connection may be stale."""
        database, self._database, self._known = self._database, None, False
        if database:
            with contextlib.suppress(DiskError):
                database.close()

    def _connection(self) -> Database:
        if self._database and self._disk.identity(self._path) != self._identity:
            self._rescue(self._database)
        if self._database is None:
            self._take_rescued()
            if self.corrupt:
                self._replace()
            self._database = self._open(self._path)
            self._identity = self._disk.identity(self._path)
        return self._database

    def _open(self, path: Path) -> Database:
        database = self._disk.open(path)
        try:
            [(version,)] = database.execute("PRAGMA user_version")
            if version > SCHEMA_VERSION:
                raise EdgeError(f"{path}: written by a newer edge-runtime (format {version})", "update edge-runtime")
            if not version and self.head is not START:
                raise corrupt(f"{path.name} is empty, and was not when it was opened last")
            if not version:
                with Transaction(database):
                    _create(database)
        except BaseException:
            database.close()
            raise
        return database

    def _replace(self) -> None:
        """A new file in place of the damaged one, which is kept beside it. It goes on from the newest entry that we know of and
        says so: what the damaged file held is missing in the chain, and `verify` tells it."""
        head = self._last_of_damaged() if self.head is START else self.head
        if self._disk.size_bytes(self._rescued):
            self._disk.set_aside(self._rescued)
        database = self._disk.open(self._rescued)
        try:
            with Transaction(database):
                _create(database)
                row = row_of(REPLACED, self._clock.now(), 0, head)
                database.execute(_INSERT, msgspec.structs.astuple(row))
        finally:
            database.close()
        self.head, self._begun = Head(row.n, row.hash), {}
        self._take_rescued()

    def _last_of_damaged(self) -> Head:
        with contextlib.suppress(DiskError):
            database = self._disk.open(self._path, damaged=True)
            try:
                return _head(database)
            finally:
                database.close()
        return START

    def _rescue(self, database: Database) -> None:
        """Somebody removed or replaced the file while we had it open: what we wrote is only behind our connection."""
        if self._disk.size_bytes(self._rescued):
            self._disk.set_aside(self._rescued)
        self._disk.copy(database, self._rescued)
        self.drop()

    def _take_rescued(self) -> None:
        """A complete file beside ours takes its place, also after a crash in the midst of it."""
        if not self._disk.size_bytes(self._rescued):
            return
        database = self._disk.open(self._rescued)
        try:
            [(version,)] = database.execute("PRAGMA user_version")
        finally:
            database.close()
        if not version:  # the crash was while it was written
            self._disk.set_aside(self._rescued)
            return
        if self._disk.size_bytes(self._path):
            self.aside = self._disk.set_aside(self._path)
        self._disk.move(self._rescued, self._path)
        self.corrupt = False

    @property
    def _rescued(self) -> Path:
        return self._path.with_name(self._path.name + ".rescued")


REPLACED = Entry(
    kind=Kind.START,
    actor="gateway",
    subject="audit log",
    outcome="replaced",
    why=f"{NAME} was damaged; it is kept beside this file as {NAME}.corrupt-N, and what only it held is missing in this chain",
)


def row_from(values: Sequence[Any]) -> Row:
    """A row of the table; raises Broken for one that holds what no entry does."""
    try:
        return msgspec.convert(_named(values), Row)
    except msgspec.ValidationError as error:
        n = values[0] if isinstance(values[0], int) else 0
        raise Broken(n, NAME, f"entry {n} was edited: {error}") from None


def newest(database: Database) -> Head:
    """The newest entry of a log that somebody else writes."""
    return _head(database)


def rows_from(database: Database, n: int, limit: int) -> list[Row]:
    """Entries from n on, in order."""
    return [*map(row_from, database.execute(f"SELECT {_COLUMNS} FROM entries WHERE n >= ? ORDER BY n LIMIT ?", (n, limit)))]


def segments_after(database: Database, number: int) -> list[tuple[int, str, int, int, str]]:
    """(number, file, first, last, hash) of the segments that the log knows."""
    return list(database.execute("SELECT * FROM segments WHERE number > ? ORDER BY number", (number,)))


def _create(database: Database) -> None:
    for statement in _SCHEMA:
        database.execute(statement)


def _head(database: Database) -> Head:
    """The newest entry, if need be that of the newest segment."""
    found = list(database.execute("SELECT n, hash FROM entries ORDER BY n DESC LIMIT 1")) or list(
        database.execute("SELECT last, hash FROM segments ORDER BY number DESC LIMIT 1")
    )
    return Head(*found[0]) if found else START


def _used_bytes(database: Database) -> int:
    [(pages,)] = database.execute("PRAGMA page_count")
    [(free,)] = database.execute("PRAGMA freelist_count")
    return int(pages - free) * PAGE_BYTES


def _oldest(database: Database, size_bytes: int) -> tuple[int, int]:
    """The first and the last n of the oldest entries that have `size_bytes` together; (0, 0) where there are none."""
    first = last = total = 0
    for n, size in database.execute(_SIZES):
        first, last, total = first or n, n, total + size + ROW_BYTES
        if total > size_bytes:
            break
    return first, last


def _between(database: Database, first: int, last: int) -> Iterator[dict[str, Any]]:
    """As they are, also those that somebody has edited: who verifies the segment finds them."""
    sql = f"SELECT {_COLUMNS} FROM entries WHERE n BETWEEN ? AND ? ORDER BY n"
    return map(_named, database.execute(sql, (first, last)))


def _named(values: Sequence[Any]) -> dict[str, Any]:
    named = dict(zip(FIELDS, values, strict=True))
    return named | {"synced": bool(named["synced"])} if named["synced"] in (0, 1) else named


def _orphaned(kind: str, actor: str, via: str, subject: str, *, ended: bool) -> Entry:
    """What is written of an intent that was left open. `ended`: by an earlier life of the gateway."""
    outcome, why = "refused", "not executed: that its entry was on the disk was known only later"
    if ended:
        outcome, why = "unknown", "the gateway ended before the outcome was written"
    known = Kind(kind) if kind in [*Kind] else Kind.COMMAND
    return Entry(kind=known, actor=str(actor), via=str(via), subject=str(subject), outcome=outcome, why=why)
