"""What a receiver has, in one SQLite file: records, ranges of seqs, counters (touches sqlite3).

The ranges, not a high-water mark, say what was received: live records overtake the backlog within a lane. A batch's
records, ranges and counters commit in one synced transaction before `take` returns: a receipt made of its answer is
never ahead of the disk.
"""

from __future__ import annotations

import sqlite3
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edge_runtime.bus import messages
from edge_runtime.bus.messages import Batch, Hello, ReceiptMessage, WireRecord
from edge_runtime.outbox import intervals
from edge_runtime.outbox.database import FileDisk
from edge_runtime.ports import EdgeError, Ranges
from edge_runtime.receiver import account
from edge_runtime.records import Lane

LAYOUT = 1
"""Version of the tables, in `pragma user_version`."""

APPLICATION = 0x65726C31
"""In `pragma application_id`: by it a ledger is told from any other SQLite file (an outbox, say)."""

BUSY_MS_MAX = 1_000
"""How long a statement waits for another process that holds the file."""

WAL_BYTES_MAX = 16 * 2**20

_TABLES = """
CREATE TABLE IF NOT EXISTS records (
    site TEXT NOT NULL, gateway TEXT NOT NULL, epoch TEXT NOT NULL, lane TEXT NOT NULL, seq INTEGER NOT NULL,
    source TEXT NOT NULL, "unique" TEXT NOT NULL, boot TEXT NOT NULL, mono_ns INTEGER NOT NULL,
    wall_ns INTEGER NOT NULL, synced INTEGER NOT NULL, body TEXT NOT NULL);
CREATE UNIQUE INDEX IF NOT EXISTS records_content ON records (site, lane, "unique") WHERE "unique" <> '';
CREATE TABLE IF NOT EXISTS ranges (
    site TEXT NOT NULL, gateway TEXT NOT NULL, epoch TEXT NOT NULL, lane TEXT NOT NULL,
    first INTEGER NOT NULL, last INTEGER NOT NULL,
    PRIMARY KEY (site, gateway, epoch, lane, first)) WITHOUT ROWID;
CREATE TABLE IF NOT EXISTS arrivals (
    site TEXT NOT NULL, gateway TEXT NOT NULL, epoch TEXT NOT NULL, lane TEXT NOT NULL,
    received INTEGER NOT NULL, repeated INTEGER NOT NULL, same_content INTEGER NOT NULL,
    PRIMARY KEY (site, gateway, epoch, lane)) WITHOUT ROWID;
"""

_STREAM = "site = ? AND gateway = ? AND epoch = ? AND lane = ?"

Stream = tuple[str, str, str, str]
"""site, gateway, epoch, lane: within it a seq stands for one record for ever."""


class LedgerError(EdgeError):
    """The file cannot be read or written now. Nothing of the call was kept, and no receipt may be given."""


class Ledger:
    """One open file. Every method blocks; used by one thread at a time."""

    def __init__(self, path: Path, name: str) -> None:
        """Opens or makes the file. Raises LedgerError. `name` is the receiver's, as it stands in receipts."""
        self.path = path
        self.name = name
        with _explained(path):
            self._database = sqlite3.connect(path, timeout=BUSY_MS_MAX / 1000, isolation_level=None, check_same_thread=False)
            try:
                self._prepare()
                self._identity = FileDisk().identity(path)
            except BaseException:
                self._database.close()
                raise

    def take(self, batches: Sequence[Batch]) -> list[ReceiptMessage]:
        """Keeps what is new of them, all in one transaction. Returns what to answer, once it is on disk."""
        self._check_place()
        with _explained(self.path), self._transaction():
            return [self._take(batch) for batch in batches]

    def hello(self, hello: Hello) -> ReceiptMessage:
        """Everything it has of these epochs."""
        self._check_place()
        with _explained(self.path):
            found = {
                epoch: self._database.execute(
                    "SELECT lane, first, last FROM ranges WHERE site = ? AND gateway = ? AND epoch = ? ORDER BY lane, first",
                    (hello.site, hello.gateway, epoch),
                ).fetchall()
                for epoch in dict.fromkeys(hello.epochs)
            }
        lanes: dict[tuple[str, Lane], list[tuple[int, int]]] = {}
        for epoch, rows in found.items():
            for lane, first, last in rows:
                lanes.setdefault((epoch, Lane(lane)), []).append((first, last))
        ranges = [(epoch, lane, tuple(each)) for (epoch, lane), each in lanes.items()]
        return messages.receipt(self.name, hello.gateway, ranges, found)

    def probe(self) -> None:
        """Writes what is there already, synced. Raises LedgerError while that does not work."""
        self._check_place()
        with _explained(self.path), self._transaction():
            self._database.execute(f"PRAGMA user_version = {LAYOUT}")

    def close(self) -> None:
        self._database.close()

    def _check_place(self) -> None:
        """Raises LedgerError: what is written to a file that has no name any more ends with this process, and a gateway would
        have forgotten it."""
        if FileDisk().identity(self.path) != self._identity:
            raise LedgerError(f"{self.path}: was removed or replaced while it was open", "start the receiver again")

    def _prepare(self) -> None:
        if self._database.execute("SELECT count(*) FROM sqlite_master").fetchone() != (0,):
            _recognise(self._database, self.path)
        self._database.execute("PRAGMA journal_mode = WAL")
        self._database.execute("PRAGMA synchronous = FULL")
        self._database.execute(f"PRAGMA journal_size_limit = {WAL_BYTES_MAX}")
        mark = f"PRAGMA application_id = {APPLICATION}; PRAGMA user_version = {LAYOUT}"
        self._database.executescript(f"BEGIN IMMEDIATE; {_TABLES} {mark}; COMMIT")

    @contextmanager
    def _transaction(self) -> Iterator[None]:
        self._database.execute("BEGIN IMMEDIATE")
        try:
            yield
            self._database.execute("COMMIT")
        except BaseException:
            if self._database.in_transaction:  # SQLite has already rolled back by itself when the disk was full
                self._database.execute("ROLLBACK")
            raise

    def _take(self, batch: Batch) -> ReceiptMessage:
        stream = (batch.site, batch.gateway, batch.epoch, batch.lane.value)
        near = self._near(stream, batch.records[0].seq, batch.records[-1].seq)
        fresh = [record for record in batch.records if not intervals.contains(near, record.seq)]
        same_content = len(fresh) - self._insert(stream, fresh) if fresh else 0
        have = intervals.union(near, intervals.of(record.seq for record in fresh))
        if have != near:
            self._database.executemany(f"DELETE FROM ranges WHERE {_STREAM} AND first = ?", [(*stream, a) for a, _ in near])
            self._database.executemany("INSERT INTO ranges VALUES (?, ?, ?, ?, ?, ?)", [(*stream, a, b) for a, b in have])
        self._database.execute(
            "INSERT INTO arrivals VALUES (?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO UPDATE SET received = received + excluded.received,"
            " repeated = repeated + excluded.repeated, same_content = same_content + excluded.same_content",
            (*stream, len(batch.records), len(batch.records) - len(fresh), same_content),
        )
        return messages.receipt(self.name, batch.gateway, [(batch.epoch, batch.lane, have)])

    def _near(self, stream: Stream, first: int, last: int) -> Ranges:
        """The ranges that overlap or touch first..last."""
        rows = self._database.execute(
            f"SELECT first, last FROM ranges WHERE {_STREAM} AND first <= ? AND last >= ? ORDER BY first",
            (*stream, last + 1 if last < messages.SEQ_MAX else last, first - 1),
        )
        return tuple((a, b) for a, b in rows)

    def _insert(self, stream: Stream, fresh: Sequence[WireRecord]) -> int:
        """Returns how many were kept: content that is here already under another id is not kept again."""
        before = self._database.total_changes
        self._database.executemany(
            "INSERT INTO records VALUES (?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?, ?) ON CONFLICT DO NOTHING",
            [
                (
                    *stream,
                    r.seq,
                    r.source,
                    r.unique,
                    r.stamp.boot,
                    r.stamp.mono_ns,
                    r.stamp.wall_ns,
                    r.stamp.synced,
                    str(r.body, "utf-8"),
                )
                for r in fresh
            ],
        )
        return self._database.total_changes - before


def statistics(path: Path) -> account.Statistics:
    """Reads a ledger, also while a receiver writes it. Raises LedgerError."""
    with _explained(path):
        database = sqlite3.connect(
            f"{path.absolute().as_uri()}?mode=ro", uri=True, timeout=BUSY_MS_MAX / 1000, isolation_level=None
        )
        try:
            _recognise(database, path)
            database.execute("BEGIN")  # one snapshot for all of them
            return account.statistics(account.Rows(*(database.execute(sql).fetchall() for sql in _STATISTICS)))
        finally:
            database.close()


_STATISTICS = (
    "SELECT site, gateway, sum(received), sum(repeated), sum(same_content) FROM arrivals GROUP BY site, gateway",
    "SELECT site, gateway, lane, source, count(*) FROM records GROUP BY site, gateway, lane, source",
    "SELECT site, gateway, count(*) FROM"
    " (SELECT site, gateway FROM records GROUP BY site, gateway, epoch, lane, seq HAVING count(*) > 1) GROUP BY site, gateway",
    "SELECT site, gateway, epoch, lane, first, last FROM ranges ORDER BY site, gateway, epoch, lane, first",
    f"SELECT site, gateway, body FROM records WHERE lane = '{Lane.GAP.value}'",
)
"""In the order of account.Rows."""


def _recognise(database: sqlite3.Connection, path: Path) -> None:
    (application,) = database.execute("PRAGMA application_id").fetchone()
    (layout,) = database.execute("PRAGMA user_version").fetchone()
    if application != APPLICATION:
        raise LedgerError(f"{path}: no file of `edge-runtime receive`", "give another path with --file")
    if layout != LAYOUT:
        raise LedgerError(f"{path}: tables of version {layout}, this program knows {LAYOUT}", "update edge-runtime")


@contextmanager
def _explained(path: Path) -> Iterator[None]:
    """sqlite3's errors -> LedgerError with what to do about it."""
    try:
        yield
    except sqlite3.Error as error:
        raise LedgerError(f"{path}: {error}", _hint(error)) from error


def _hint(error: sqlite3.Error) -> str:
    code = getattr(error, "sqlite_errorcode", 0) & 0xFF
    hints = {
        sqlite3.SQLITE_FULL: "free some disk space: gateways keep what was not confirmed and send it again",
        sqlite3.SQLITE_IOERR: "the disk fails or is full, or this is a folder: gateways keep what was not confirmed",
        sqlite3.SQLITE_READONLY: "make the file and its folder writable for this user",
        sqlite3.SQLITE_CANTOPEN: "is the path right? The folder must exist and be writable for this user",
        sqlite3.SQLITE_CORRUPT: "the file is damaged: move it away, and save what is readable with `sqlite3 FILE .recover`",
        sqlite3.SQLITE_NOTADB: "this is no file of `edge-runtime receive`: give another path with --file",
        sqlite3.SQLITE_BUSY: "another program holds the file: stop the other `edge-runtime receive`",
        sqlite3.SQLITE_LOCKED: "another program holds the file: stop the other `edge-runtime receive`",
    }
    return hints.get(code, "see the file with `sqlite3 FILE 'pragma integrity_check'`")
