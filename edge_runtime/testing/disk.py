"""A disk that fails as disks do, by chance with a seed, under the real SQLite: full, I/O errors, read-only, a power cut with a
torn tail of the WAL, and pages that rot.

    disk = FaultyDisk(rng, fence)            # one a life; the files outlive it
    disk.trouble = sqlite3.SQLITE_FULL       # until it is None again
    disk.errors = 0.01                       # chance that a statement fails, once (a COMMIT: before it is on the disk, or after)
    disk.crash_at = 120                      # the node falls in the middle of its 120th statement

What was committed (WAL, synchronous=FULL) survives a crash: that SQLite keeps that promise is shown with a real kill -9
elsewhere; here the crash hits between any two statements.
"""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Iterable, Sequence
from pathlib import Path
from typing import Any

from edge_runtime.outbox.database import SIDE_FILES, FileDisk
from edge_runtime.ports import Database
from edge_runtime.testing.fence import Crashed, Fence

TORN_BYTES_MAX = 5_000
WRITES = ("BEGIN", "INSERT", "UPDATE", "DELETE", "COMMIT", "CREATE")

MESSAGES = {
    sqlite3.SQLITE_FULL: "database or disk is full",
    sqlite3.SQLITE_IOERR: "disk I/O error",
    sqlite3.SQLITE_READONLY: "attempt to write a readonly database",
}


class FaultyDisk:
    """ports.Disk. Files lie in a real folder (a tmpfs is best: nothing here waits for a real sync)."""

    def __init__(self, rng: random.Random, fence: Fence, *, wal_pages_max: int = 1000) -> None:
        self.trouble: int | None = None
        self.errors = 0.0
        self.crash_at: int | None = None
        self.statements = 0
        self._rng, self._fence = rng, fence
        self._files = FileDisk(wal_pages_max)
        self._open: list[tuple[Path, Any]] = []
        fence.on_fall.append(self._crash)

    def open(self, path: Path, *, damaged: bool = False) -> Database:
        self._fence.check()
        self._strike("BEGIN")
        real: Any = self._files.open(path, damaged=damaged)
        real.execute("PRAGMA synchronous=OFF")  # a simulated power cut does not reach the host's page cache
        self._open.append((path, real))
        return _FaultyDatabase(self, real)

    def size_bytes(self, path: Path) -> int:
        return self._files.size_bytes(path)

    def log_bytes(self, path: Path) -> int:
        return self._files.log_bytes(path)

    def set_aside(self, path: Path) -> Path:
        self._fence.check()
        return self._files.set_aside(path)

    def move(self, path: Path, target: Path) -> None:
        self._fence.check()
        self._files.move(path, target)

    def identity(self, path: Path) -> int:
        return self._files.identity(path)

    def copy(self, database: Any, target: Path) -> None:
        self._fence.check()
        self._files.copy(database.real, target)

    def before(self, sql: str) -> None:
        """Every statement of the node comes by here."""
        self._fence.check()
        self.statements += 1
        if self.statements == self.crash_at:
            self._fence.fall()
            raise Crashed(self._fence.node)
        self._strike(sql)

    def after(self, sql: str) -> None:
        """A COMMIT may fail, and have reached the disk all the same: its sync failed."""
        if sql == "COMMIT":
            self._strike(sql)

    def _strike(self, sql: str) -> None:
        if not sql.startswith(WRITES):
            return
        if self.trouble is not None:
            raise _error(self.trouble)
        if self.errors and self._rng.random() < self.errors:
            raise _error(self._rng.choice(list(MESSAGES)))

    def _crash(self) -> None:
        """The files stay as they are at this instant, but for a torn tail: closing would tidy up (roll back, checkpoint)."""
        images = {path: _image(path) for path, _ in self._open}
        for _, real in self._open:
            real.close()
        for path, image in images.items():
            for file, content in image.items():
                if content is None:
                    file.unlink(missing_ok=True)
                else:
                    file.write_bytes(content)
            wal = path.with_name(path.name + "-wal")
            if image[wal]:
                with wal.open("ab") as tail:
                    tail.write(self._rng.randbytes(self._rng.randrange(TORN_BYTES_MAX)))
        self._open.clear()


class _FaultyDatabase:
    """ports.Database with its disk's faults in front of each statement."""

    def __init__(self, disk: FaultyDisk, real: Any) -> None:
        self._disk, self.real = disk, real

    @property
    def in_transaction(self) -> bool:
        return bool(self.real.in_transaction)

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Iterable[Any]:
        self._disk.before(sql)
        rows: Iterable[Any] = self.real.execute(sql, parameters)
        self._disk.after(sql)
        return rows

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> Any:
        self._disk.before(sql)
        return self.real.executemany(sql, rows)

    def close(self) -> None:
        self.real.close()


def rot(path: Path, rng: random.Random, pages: int = 1, page_bytes: int = 4096) -> None:
    """Overwrites pages of a closed database with rubbish (never the first one, that names the file)."""
    count = path.stat().st_size // page_bytes
    with path.open("r+b") as file:
        for _ in range(pages):
            file.seek(rng.randrange(1, count) * page_bytes)
            file.write(rng.randbytes(page_bytes))


def _image(path: Path) -> dict[Path, bytes | None]:
    files = [path, *(path.with_name(path.name + suffix) for suffix in SIDE_FILES)]
    return {file: file.read_bytes() if file.exists() and not file.name.endswith("-shm") else None for file in files}


def _error(code: int) -> sqlite3.OperationalError:
    error = sqlite3.OperationalError(MESSAGES.get(code, f"error {code}"))
    error.sqlite_errorcode = code
    return error
