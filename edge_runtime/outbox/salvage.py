"""Takes over what can be read of a corrupt outbox: records keep their ids, and what is gone is declared gone.

One damaged page makes every scan that meets it fail, not the rows before and after it. So rows are read in order of their key;
where that fails, the next key that can be read is searched by doubling steps, and the hole in between becomes a gap record.
Other damage hides rows without an error (a page with fewer cells, or one that belongs elsewhere): what is missing between rows
that are there becomes a gap record as well, unless it was delivered or told before. (The cap takes the oldest, none between.)
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping, Sequence
from itertools import pairwise
from typing import Any

from edge_runtime.outbox import intervals, tables
from edge_runtime.outbox.damage import sound
from edge_runtime.outbox.database import DiskError, corrupt
from edge_runtime.outbox.epochs import Epoch, span
from edge_runtime.outbox.merging import create_imported
from edge_runtime.ports import Database, Ranges
from edge_runtime.records import LANES, Gap, Lane

CHUNK_ROWS = 64
KEY_MAX = tables.ROW_MAX
PLAIN_TABLES = (
    "heads", "epochs", "boots", "positions", "acknowledged", "seen", "refused", "sinks", "imported", "imported_upto",
)  # fmt: skip
_ORDERS: Mapping[str, Sequence[str]] = {
    "seen": tuple(f"ORDER BY device {way}, {key} {way}" for key in ("row", "message_id") for way in ("DESC", "ASC"))
}
"""The large one among them is read from both ends, in its own order and in its index's: an id that is gone is a message counted
twice, if its source sends it again."""

HIDDEN_MAX = 2**20
"""Rows between two that are there. Where there are more, numbers were kept free (importing.RESERVED), or one is damaged."""

REASON = "disk corrupt"

Hole = tuple[int, int]


def salvage(
    open_old: Callable[[], Database], new: Database, epochs: Sequence[Epoch], heads: Mapping[Lane, int]
) -> tuple[list[Gap], int]:
    """Copies rows from the old file into `new` (in the caller's transaction). `epochs` and `heads` are what is known besides
    the file. Returns what could not be read: records, and how many rows of the journal."""
    holes: dict[Lane, list[Hole]] = {lane: [] for lane in LANES}
    samples: list[Hole] = []
    try:
        old = open_old()
    except DiskError:  # not even its first page: all that is known to have been there is gone
        holes = {lane: [(1, KEY_MAX)] for lane in LANES}
    else:
        create_imported(new)  # no other new outbox has that
        for table in PLAIN_TABLES:
            for order in _ORDERS.get(table, ("",)):
                _copy_plain(old, new, table, order)
        _copy_by_key(old, new, "journal", "row", samples)
        for lane in LANES:
            _copy_by_key(old, new, f"lane_{lane}", "seq", holes[lane])
        samples = _go_on_numbering(old, new, samples)
        old.close()
    known = _complete_epochs(new, epochs)
    upto = {lane: max(heads[lane], seq) for lane, seq in tables.heads(new).items()}
    delivered, told = _delivered(new), _told(new)
    lost = [
        gap
        for lane in LANES
        for hole in intervals.subtract(_missing(new, lane, upto[lane], holes[lane], told.get(lane, ())), delivered.get(lane, ()))
        for gap in _gaps(lane, hole, known, upto)
    ]
    return lost, intervals.size(tuple(samples))


def _gaps(lane: Lane, hole: Hole, epochs: Sequence[Epoch], heads: Mapping[Lane, int]) -> Iterator[Gap]:
    """A hole, cut at the borders of epochs."""
    for at, epoch in enumerate(epochs):
        for first, last in intervals.clip((hole,), *span(epochs, at, lane, heads[lane])):
            yield Gap(lane=lane, epoch=epoch.name, first=first, last=last, count=last - first + 1, reason=REASON)


def _missing(new: Database, lane: Lane, head: int, holes: Sequence[Hole], told: Ranges) -> Ranges:
    """What could not be read, and what does not stand between rows that could be, or behind them."""
    there = tables.ranges(new, lane)
    between = tuple((first, last) for (_, first), (last, _) in pairwise((*there, (head + 1, head + 1))))
    hidden = intervals.normalise((first + 1, last - 1) for first, last in between if last - first < HIDDEN_MAX)
    return intervals.subtract(intervals.normalise((*holes, *intervals.subtract(hidden, told))), there)


def _told(new: Database) -> dict[Lane, Ranges]:
    """What gap records that still wait declare gone."""
    found: dict[Lane, list[Hole]] = {}
    for _, _, gap in tables.oldest_gaps(new, KEY_MAX):
        found.setdefault(gap.lane, []).append((gap.first, gap.last))
    return {lane: intervals.normalise(ranges) for lane, ranges in found.items()}


def _delivered(new: Database) -> dict[Lane, Ranges]:
    """What every sink has that takes a lane (where the file does not tell: that has taken anything of it): it was purged, or may
    be; it is not lost."""
    found: dict[Lane, Ranges] = {}
    takers = tables.sinks(new)
    for (sink, lane), ranges in tables.acknowledged(new).items():
        if not takers or (sink in takers and lane in takers[sink][0]):
            found[lane] = intervals.intersection(found[lane], ranges) if lane in found else ranges
    return found


def _go_on_numbering(old: Database, new: Database, holes: list[Hole]) -> list[Hole]:
    """The journal's next row: given again, a row would be taken for one that the pipelines have handled. Returns the holes that
    the pipelines still needed."""
    positions = [row for row, _ in tables.positions(new).values()]
    seen = tables.rows(new, "SELECT coalesce(max(row), 0) FROM seen")[0][0]
    last = max(tables.journal_last(new), seen, *(row - 1 for row in positions), 0)
    with contextlib.suppress(DiskError):
        last = max(last, tables.journal_last(old))
    tables.set_journal_last(new, last)
    return list(intervals.normalise(intervals.clip(tuple(holes), min(positions, default=1), last)))


def _complete_epochs(new: Database, epochs: Sequence[Epoch]) -> list[Epoch]:
    """Every epoch of a record is known, or no receipt for it could be understood: from the table, from the run that goes on, or,
    where both do not know it, from where its records begin."""
    known = {epoch.name: epoch for epoch in [*tables.epochs(new), *epochs]}
    starts = {lane: tables.first_seqs(new, lane) for lane in LANES}
    for name in dict.fromkeys(name for lane in LANES for name in starts[lane]):
        if name not in known:
            known[name] = Epoch(name, {lane: starts[lane][name] - 1 for lane in LANES if name in starts[lane]})
    ordered = sorted(known.values(), key=lambda epoch: (max(epoch.after.values(), default=0), sum(epoch.after.values())))
    after = tables.heads(new)
    for at, epoch in reversed(list(enumerate(ordered))):  # a lane in which it has nothing: it begins where the next one does
        after = {lane: min(epoch.after.get(lane, after[lane]), after[lane]) for lane in LANES}
        ordered[at] = Epoch(epoch.name, after)
    for epoch in ordered:
        tables.forget_epoch(new, epoch.name)
        tables.add_epoch(new, epoch)
    return ordered


def _copy_plain(old: Database, new: Database, table: str, order: str) -> None:
    """Small tables: all that comes before the damage."""
    rows: list[Any] = []
    try:
        for row in old.execute(f"SELECT * FROM {table} {order}"):
            rows.append(row)
    except DiskError:
        with contextlib.suppress(DiskError):  # Python reads one row ahead: the last good one is lost with the damaged one
            rows += tables.rows(old, f"SELECT * FROM {table} {order} LIMIT 1 OFFSET ?", len(rows))
    _insert(new, table, [row for row in rows if sound(table, row)])


def _copy_by_key(old: Database, new: Database, table: str, key: str, holes: list[Hole]) -> None:
    for rows in _readable(old, table, key, holes):
        good = [row for row in rows if sound(table, row)]
        taken = {row[0] for row in good}
        holes += [(row[0], row[0]) for row in rows if row[0] not in taken]
        _insert(new, table, good)


def _insert(new: Database, table: str, rows: Sequence[tuple[Any, ...]]) -> None:
    if rows:
        new.executemany(f"INSERT OR REPLACE INTO {table} VALUES ({','.join('?' * len(rows[0]))})", rows)


def _readable(old: Database, table: str, key: str, holes: list[Hole]) -> Iterator[list[Any]]:
    """Rows in chunks; `holes` gets each range of keys that cannot be read."""
    last = 0
    while True:
        try:
            rows = _in_order(_after(old, table, key, last, CHUNK_ROWS + 1))[:CHUNK_ROWS]
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
    found = tables.rows(old, f"SELECT * FROM {table} WHERE {key} > ? ORDER BY {key} LIMIT ?", last, limit)
    past = [row for row in found if row[0] > last]
    if found and not past:  # a page that belongs elsewhere: to go on from its keys would be to go in circles
        raise corrupt(f"{table}: keys that go back")
    if limit == 1 and past and _between(old, table, key, last, past[0][0]):
        raise corrupt(f"{table}: a key that is too large")
    return past


def _between(old: Database, table: str, key: str, last: int, found: int) -> bool:
    """Whether there are rows before the one that seemed to be the next: seen from the other side."""
    sql = f"SELECT 1 FROM {table} WHERE {key} > ? AND {key} < ? ORDER BY {key} DESC LIMIT 1"
    return bool(tables.rows(old, sql, last, found))


def _in_order(rows: list[Any]) -> list[Any]:
    """Without those whose key is damaged, or that belong elsewhere: they stand before smaller ones."""
    kept: list[Any] = []
    for row in reversed(rows):
        if not kept or row[0] < kept[-1][0]:
            kept.append(row)
    return kept[::-1]


def _one_by_one(old: Database, table: str, key: str, last: int) -> list[Any]:
    """What stands before the damage within a chunk that failed as a whole. A query a row: sqlite3 reads one row ahead, and the
    last good row would be lost with the error of the next one."""
    rows: list[Any] = []
    with contextlib.suppress(DiskError):
        while len(rows) < CHUNK_ROWS and (found := _after(old, table, key, last, 1)):
            rows += found
            last = found[0][0]
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
