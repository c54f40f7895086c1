"""Takes over what can be read of a corrupt outbox: records keep their ids, and what is gone is declared gone.

One damaged page makes every scan that meets it fail, not the rows before and after it. So rows are read in order of their key;
where that fails, the next key that can be read is searched by doubling steps, and the hole in between becomes a gap record.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from typing import Any

from edge_runtime.outbox import intervals, tables
from edge_runtime.outbox.database import DiskError
from edge_runtime.outbox.epochs import Epoch, span
from edge_runtime.ports import Database
from edge_runtime.records import LANES, Gap, Lane

CHUNK_ROWS = 64
KEY_MAX = 2**62
PLAIN_TABLES = ("heads", "epochs", "boots", "positions", "acknowledged", "seen")


def salvage(open_old: Callable[[], Database], new: Database, epochs: Sequence[Epoch], heads: Mapping[Lane, int]) -> list[Gap]:
    """Copies rows from the old file into `new` (in the caller's transaction). `epochs` and `heads` are what is known besides
    the file. Returns what could not be read."""
    holes: dict[Lane, list[tuple[int, int]]] = {lane: [] for lane in LANES}
    try:
        old = open_old()
    except DiskError:  # not even its first page: all that is known to have been there is gone
        holes = {lane: [(1, KEY_MAX)] for lane in LANES}
    else:
        for table in PLAIN_TABLES:
            _copy_plain(old, new, table)
        _copy_by_key(old, new, "journal", "row", [])
        for lane in LANES:
            _copy_by_key(old, new, f"lane_{lane}", "seq", holes[lane])
        old.close()
    known = tables.epochs(new) or list(epochs)
    upto = {lane: max(heads[lane], seq) for lane, seq in tables.heads(new).items()}
    return [gap for lane in LANES for hole in holes[lane] for gap in _gaps(lane, hole, known, upto)]


def _gaps(lane: Lane, hole: tuple[int, int], epochs: Sequence[Epoch], heads: Mapping[Lane, int]) -> Iterator[Gap]:
    """A hole, cut at the borders of epochs. What had been delivered before may be counted with it: nobody can tell any more."""
    for at, epoch in enumerate(epochs):
        for first, last in intervals.clip((hole,), *span(epochs, at, lane, heads[lane])):
            yield Gap(lane=lane, epoch=epoch.name, first=first, last=last, count=last - first + 1, reason="disk corrupt")


def _copy_plain(old: Database, new: Database, table: str) -> None:
    """Small tables: all that comes before the damage."""
    rows: list[Any] = []
    try:
        for row in old.execute(f"SELECT * FROM {table}"):
            rows.append(row)
    except DiskError:
        pass
    if rows:
        new.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)


def _copy_by_key(old: Database, new: Database, table: str, key: str, holes: list[tuple[int, int]]) -> None:
    for rows in _readable(old, table, key, holes):
        new.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)


def _readable(old: Database, table: str, key: str, holes: list[tuple[int, int]]) -> Iterator[list[Any]]:
    """Rows in chunks; `holes` gets each range of keys that cannot be read."""
    last = 0
    while True:
        try:
            rows = _after(old, table, key, last, CHUNK_ROWS)
        except DiskError:
            rows = _one_by_one(old, table, key, last)
            if not rows:
                found = _next_readable(old, table, key, last)
                holes.append((last + 1, found - 1))
                if found >= KEY_MAX:
                    return
                last = found - 1
                continue
        if not rows:
            return
        yield rows
        last = rows[-1][0]


def _after(old: Database, table: str, key: str, last: int, limit: int) -> list[Any]:
    return tables.rows(old, f"SELECT * FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?", last, limit)


def _one_by_one(old: Database, table: str, key: str, last: int) -> list[Any]:
    """What stands before the damage within a chunk that failed as a whole."""
    rows: list[Any] = []
    try:
        for row in old.execute(f"SELECT * FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?", (last, CHUNK_ROWS)):
            rows.append(row)
    except DiskError:
        pass
    return rows


def _next_readable(old: Database, table: str, key: str, last: int) -> int:
    """The least key past `last` (found by doubling, then bisection) from which reading works again; KEY_MAX if there is none."""
    step = next((2**n for n in range(KEY_MAX.bit_length()) if _first_key(old, table, key, last + 2**n) is not None), None)
    if step is None:
        return KEY_MAX
    low, high = last + step // 2, last + step
    while low + 1 < high:
        middle = (low + high) // 2
        if _first_key(old, table, key, middle) is None:
            low = middle
        else:
            high = middle
    found = _first_key(old, table, key, high)
    return KEY_MAX if found is None else found


def _first_key(old: Database, table: str, key: str, at: int) -> int | None:
    """The first key >= at whose row can be read; None if the reading fails or nothing is there."""
    try:
        rows = _after(old, table, key, at - 1, 1)
    except DiskError:
        return None
    return int(rows[0][0]) if rows else None
