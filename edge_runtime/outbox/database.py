"""The outbox's file: opens SQLite so that a commit is on the disk when it returns, and tells what an error of it means."""

from __future__ import annotations

import sqlite3
from enum import StrEnum
from pathlib import Path

from edge_runtime.ports import Database

PAGE_BYTES = 4096
WAL_PAGES_MAX = 1000
BUSY_S_MAX = 5.0
SIDE_FILES = ("-wal", "-shm")


class Trouble(StrEnum):
    """What is wrong with the disk. Each is a state that the store waits out; none is a crash."""

    FULL = "full"
    READ_ONLY = "read-only"
    CORRUPT = "corrupt"
    FAILING = "failing"


HINTS = {
    Trouble.FULL: "free space on the disk; nothing is lost, sources wait until then",
    Trouble.READ_ONLY: "remount it writable or mend its permissions; nothing is lost, sources wait until then",
    Trouble.CORRUPT: "the file is set aside beside the new one and what can be read of it is taken over",
    Trouble.FAILING: "check the disk (dmesg, smartctl); it is tried again until it works",
}


def trouble(error: sqlite3.Error) -> Trouble:
    """SQLite's result code -> what it means for us. Raises what is no trouble of the disk but a fault of ours."""
    if isinstance(error, (sqlite3.ProgrammingError, sqlite3.IntegrityError, sqlite3.InterfaceError)):
        raise error
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if code == sqlite3.SQLITE_FULL:
        return Trouble.FULL
    if code in (sqlite3.SQLITE_READONLY, sqlite3.SQLITE_PERM):
        return Trouble.READ_ONLY
    if code in (sqlite3.SQLITE_CORRUPT, sqlite3.SQLITE_NOTADB):
        return Trouble.CORRUPT
    return Trouble.FAILING


class FileDisk:
    """ports.Disk on real files. `wal_pages_max` bounds the WAL; a smaller cap of the outbox needs a smaller WAL."""

    def __init__(self, wal_pages_max: int = WAL_PAGES_MAX) -> None:
        self._wal_pages_max = wal_pages_max

    def open(self, path: Path) -> Database:
        """Raises sqlite3.Error: full, read-only, not a database."""
        path.parent.mkdir(parents=True, exist_ok=True)
        # The store opens in one thread, uses it there and closes it there; the check would only forbid closing at exit.
        database = sqlite3.connect(path, timeout=BUSY_S_MAX, isolation_level=None, check_same_thread=False)
        try:
            for pragma in (
                f"page_size={PAGE_BYTES}",
                "journal_mode=WAL",
                "synchronous=FULL",
                f"wal_autocheckpoint={self._wal_pages_max}",
                f"journal_size_limit={self._wal_pages_max * PAGE_BYTES}",
                "temp_store=MEMORY",
            ):
                database.execute(f"PRAGMA {pragma}").fetchall()
        except sqlite3.Error:
            database.close()
            raise
        return database

    def size_bytes(self, path: Path) -> int:
        """Database, WAL and shared-memory file together; 0 where there is none."""
        total = 0
        for each in (path, *(path.with_name(path.name + suffix) for suffix in SIDE_FILES)):
            try:
                total += each.stat().st_size
            except FileNotFoundError:
                continue
        return total

    def set_aside(self, path: Path) -> Path:
        """outbox.db -> outbox.db.corrupt-1 (the next free number), with its WAL: SQLite reads it only under its own name."""
        number = 1
        while (aside := path.with_name(f"{path.name}.corrupt-{number}")).exists():
            number += 1
        for suffix in ("", *SIDE_FILES):
            source = path.with_name(path.name + suffix)
            if source.exists():
                source.rename(aside.with_name(aside.name + suffix))
        return aside


def open_read_only(path: Path) -> Database:
    """For looking, also while a gateway writes. Leaves nothing behind: a file that was closed cleanly has no WAL, and is read as
    it lies there. Raises DiskError."""
    options = "mode=ro" if path.with_name(path.name + "-wal").exists() else "mode=ro&immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, timeout=BUSY_S_MAX, isolation_level=None)


DiskError = sqlite3.DatabaseError
"""What any of it raises; `trouble` tells what it means."""


def full(cause: str) -> DiskError:
    """The cap is reached and nothing may go: the same state as a full disk."""
    error = sqlite3.OperationalError(cause)
    error.sqlite_errorcode = sqlite3.SQLITE_FULL
    return error
