"""The outbox's file: opens SQLite so that a commit is on the disk when it returns, and tells what an error of it means."""

from __future__ import annotations

import contextlib
import errno
import os
import sqlite3
from enum import StrEnum
from pathlib import Path
from types import TracebackType
from typing import Any

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
    LOCKED = "locked"
    FAILING = "failing"


HINTS = {
    Trouble.FULL: "free space on the disk; nothing is lost, sources wait until then",
    Trouble.READ_ONLY: "remount it writable or mend its permissions; nothing is lost, sources wait until then",
    Trouble.CORRUPT: "the file is set aside beside the new one and what can be read of it is taken over",
    Trouble.LOCKED: "end the other program that holds the file (`fuser` names it); nothing is lost, sources wait until then",
    Trouble.FAILING: "check the disk (dmesg, smartctl); it is tried again until it works",
}


UNWRITABLE = (
    sqlite3.ProgrammingError,
    sqlite3.IntegrityError,
    sqlite3.InterfaceError,
    sqlite3.DataError,
    TypeError,
    ValueError,
    OverflowError,
)
"""What rows raise that SQLite cannot take: a fault of whoever made them, not of the disk. Trying again changes nothing."""


def trouble(error: sqlite3.Error | OSError) -> Trouble:
    """SQLite's result code, or the file system's -> what it means for us. Raises what is no trouble of the disk but a fault of
    ours."""
    if isinstance(error, OSError):
        return _MEANINGS_OF_THE_SYSTEM.get(error.errno or 0, Trouble.FAILING)
    if isinstance(error, UNWRITABLE):
        raise error
    code = (getattr(error, "sqlite_errorcode", None) or 0) & 0xFF
    if not code and "Could not decode to UTF-8" in str(error):  # Python's own: a bit of a text has turned over
        return Trouble.CORRUPT
    return _MEANINGS.get(code, Trouble.FAILING)


_MEANINGS = {
    sqlite3.SQLITE_FULL: Trouble.FULL,
    sqlite3.SQLITE_READONLY: Trouble.READ_ONLY,
    sqlite3.SQLITE_PERM: Trouble.READ_ONLY,
    sqlite3.SQLITE_CANTOPEN: Trouble.READ_ONLY,  # a WAL that may not be made, a folder that may not be entered
    sqlite3.SQLITE_CORRUPT: Trouble.CORRUPT,
    sqlite3.SQLITE_NOTADB: Trouble.CORRUPT,
    sqlite3.SQLITE_BUSY: Trouble.LOCKED,
    sqlite3.SQLITE_LOCKED: Trouble.LOCKED,
}

_MEANINGS_OF_THE_SYSTEM = {
    errno.ENOSPC: Trouble.FULL,
    errno.EDQUOT: Trouble.FULL,
    errno.EROFS: Trouble.READ_ONLY,
    errno.EACCES: Trouble.READ_ONLY,
    errno.EPERM: Trouble.READ_ONLY,
}


class FileDisk:
    """ports.Disk on real files. `wal_pages_max` bounds the WAL; a smaller cap of the outbox needs a smaller WAL."""

    def __init__(self, wal_pages_max: int = WAL_PAGES_MAX) -> None:
        self._wal_pages_max = wal_pages_max

    def open(self, path: Path, *, damaged: bool = False) -> Database:
        """Raises sqlite3.Error: full, read-only, not a database."""
        with contextlib.suppress(OSError):  # SQLite then says that it cannot open the file
            path.parent.mkdir(parents=True, exist_ok=True)
            if damaged:  # SQLite fills a page that was cut off with zeros, and takes a record with half a body for a whole one
                os.truncate(path, path.stat().st_size // PAGE_BYTES * PAGE_BYTES)
        # The store opens in one thread, uses it there and closes it there; the check would only forbid closing at exit.
        database = sqlite3.connect(path, timeout=BUSY_S_MAX, isolation_level=None, check_same_thread=False)
        try:
            for pragma in (
                f"writable_schema={int(damaged)}",  # else SQLite reads nothing at all of a file that was cut off
                f"page_size={PAGE_BYTES}",
                "journal_mode=WAL",
                "synchronous=FULL",
                f"wal_autocheckpoint={self._wal_pages_max}",
                f"journal_size_limit={self._wal_pages_max * PAGE_BYTES}",
                "temp_store=MEMORY",
                "cell_size_check=ON",  # a damaged page is noticed when it is read, not when its rubbish is believed
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

    def log_bytes(self, path: Path) -> int:
        try:
            return path.with_name(path.name + "-wal").stat().st_size
        except FileNotFoundError:
            return 0

    def set_aside(self, path: Path) -> Path:
        """outbox.db -> outbox.db.corrupt-1 (the next free number), with its WAL: SQLite reads it only under its own name."""
        number = 1
        while any(_files(aside := path.with_name(f"{path.name}.corrupt-{number}"))):
            number += 1
        self.move(path, aside)
        return aside

    def move(self, path: Path, target: Path) -> None:
        """The WAL first: a database must never meet a WAL that is not its own."""
        for suffix in (*SIDE_FILES, ""):
            source = path.with_name(path.name + suffix)
            if source.exists():
                source.rename(target.with_name(target.name + suffix))
        folder = os.open(path.parent, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def identity(self, path: Path) -> int:
        """Of the database and its WAL: what was committed since the last checkpoint stands in that one alone."""
        database, log = (_inode(each) for each in (path, path.with_name(path.name + "-wal")))
        return database << 64 | log if database else 0

    def copy(self, database: Any, target: Path) -> None:
        """`database`: a connection of `open`."""
        target.parent.mkdir(parents=True, exist_ok=True)
        new = sqlite3.connect(target)
        try:
            database.backup(new)
        except BaseException:
            new.close()
            target.unlink(missing_ok=True)  # the next try begins anew, and needs the room
            raise
        new.close()


def _inode(path: Path) -> int:
    try:
        return path.stat().st_ino
    except OSError:
        return 0


def _files(path: Path) -> list[Path]:
    return [file for suffix in ("", *SIDE_FILES) if (file := path.with_name(path.name + suffix)).exists()]


def open_read_only(path: Path, *, alone: bool = False) -> Database:
    """For looking, also while a gateway writes. Leaves nothing behind: a file that was closed cleanly has no WAL, and is read as
    it lies there. `alone`: nobody writes it, so an empty WAL is none (a full disk leaves one). Raises DiskError."""
    log = path.with_name(path.name + "-wal")
    logged = log.exists() and (not alone or log.stat().st_size > 0)
    options = "mode=ro" if logged else "mode=ro&immutable=1"
    return sqlite3.connect(f"{path.absolute().as_uri()}?{options}", uri=True, timeout=BUSY_S_MAX, isolation_level=None)


DiskError = sqlite3.DatabaseError
"""What any of it raises; `trouble` tells what it means."""

DISK_ERRORS = (DiskError, OSError)
"""Where files are looked at, moved or copied as well: a folder that may not be entered any more is the file system's to tell."""


def full(cause: str) -> DiskError:
    """The cap is reached and nothing may go: the same state as a full disk."""
    return _error(cause, sqlite3.SQLITE_FULL)


def corrupt(cause: str) -> DiskError:
    """What SQLite took for a row is none of ours."""
    return _error(cause, sqlite3.SQLITE_CORRUPT)


def locked(cause: str) -> DiskError:
    """Somebody else's turn."""
    return _error(cause, sqlite3.SQLITE_BUSY)


def _error(cause: str, code: int) -> DiskError:
    error = sqlite3.OperationalError(cause)
    error.sqlite_errorcode = code
    return error


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
