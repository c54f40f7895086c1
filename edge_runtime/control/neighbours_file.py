"""What is kept for the other gateways of the site, on the disk: a row a thing, replaced by a newer one. For a worker's thread."""

from __future__ import annotations

from collections.abc import Callable
from pathlib import Path
from typing import NamedTuple, TypeVar

from edge_runtime.outbox.database import DiskError, Transaction, Trouble, trouble
from edge_runtime.ports import Database, Disk

T = TypeVar("T")


class Thing(NamedTuple):
    """`what`: desired or kept; `target`: gw/press-1 or group/presses. Of two of the same name the higher `rank` is newer."""

    what: str
    target: str
    rank: int
    size_bytes: int


class NeighboursFile:
    """A damaged file is set aside and begun anew: all of it is said by others, too."""

    def __init__(self, disk: Disk, path: Path) -> None:
        self._disk, self._path = disk, path

    def things(self) -> list[Thing]:
        """Raises DiskError. Makes no file."""
        if not self._disk.size_bytes(self._path):
            return []
        sql = "SELECT what, target, rank, length(payload) FROM kept ORDER BY what, target"
        return self._do(lambda database: [Thing(*row) for row in database.execute(sql)])

    def payload(self, what: str, target: str) -> bytes:
        """b"" : it is not there. Raises DiskError."""
        sql = "SELECT payload FROM kept WHERE what = ? AND target = ?"
        found = self._do(lambda database: list(database.execute(sql, (what, target))))
        return bytes(found[0][0]) if found else b""

    def keep(self, what: str, target: str, rank: int, payload: bytes) -> None:
        """On the disk when it returns. Raises DiskError."""
        sql = "INSERT OR REPLACE INTO kept (what, target, rank, payload) VALUES (?,?,?,?)"
        self._do(lambda database: database.execute(sql, (what, target, rank, payload)) and None)

    def _do(self, step: Callable[[Database], T]) -> T:
        try:
            return self._once(step)
        except DiskError as error:
            if trouble(error) is not Trouble.CORRUPT:
                raise
            self._disk.set_aside(self._path)
            return self._once(step)

    def _once(self, step: Callable[[Database], T]) -> T:
        database = self._disk.open(self._path)
        try:
            with Transaction(database):
                database.execute(
                    "CREATE TABLE IF NOT EXISTS kept (what TEXT, target TEXT, rank INTEGER NOT NULL, payload BLOB NOT NULL, "
                    "PRIMARY KEY (what, target)) WITHOUT ROWID"
                )
                return step(database)
        finally:
            database.close()
