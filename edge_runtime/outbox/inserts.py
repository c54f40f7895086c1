"""How records get into their tables: a hundred by one statement (SQL of the lanes; called as what is in tables.py)."""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from typing import Any

from edge_runtime.outbox.tables import epoch_number
from edge_runtime.ports import Database
from edge_runtime.records import LANES, Draft, Lane

INSERT_ROWS = (100, 10, 1)
"""Rows of one statement: a hundred in one take a third less than one by one, and the oldest SQLite takes them (999 values)."""


def _statements(row: str) -> dict[tuple[Lane, int], str]:
    columns = "epoch, seq, source, boot, synced, mono_ns, wall_ns, uniq, body"
    return {
        (lane, count): f"INSERT INTO lane_{lane} ({columns}) VALUES {','.join(row.format(n=n) for n in range(count))}"
        for lane in LANES
        for count in INSERT_ROWS
    }


_INSERT = _statements("(?1,?,?,?,?,?,?,?,?)")
_INSERT_ALIKE = _statements("(?1,?2+{n},?3,?4,?5,?,?,?,?)")
"""Of one source, boot and state of the clock, as nearly all rows of a statement are: half of the values."""


def insert(
    database: Database, lane: Lane, epoch: str, first: int, drafts: Sequence[Draft], boot_numbers: Mapping[str, int]
) -> None:
    """Numbers them first, first + 1, ...

    sqlite3 looks for an adapter for each value that is not exactly an int, float, str or bytearray: for a bool and for bytes that
    takes as long as a third of their row. Hence the int and the bytearray."""
    number, at = epoch_number(epoch), 0
    for count in INSERT_ROWS:
        while len(drafts) - at >= count:
            _insert_some(database, lane, number, first + at, drafts[at : at + count], boot_numbers)
            at += count


def _insert_some(
    database: Database, lane: Lane, number: int, first: int, drafts: Sequence[Draft], boot_numbers: Mapping[str, int]
) -> None:
    """By one statement; `number`: of the epoch."""
    source, stamp = drafts[0].source, drafts[0].stamp
    boot, synced = stamp.boot, stamp.synced
    values: list[Any] = [number, first, source, boot_numbers[boot], int(synced)]
    for draft in drafts:
        stamp = draft.stamp
        if draft.source != source or stamp.boot != boot or stamp.synced is not synced:
            break
        values += (stamp.mono_ns, stamp.wall_ns, draft.unique, bytearray(draft.body))
    else:
        database.execute(_INSERT_ALIKE[lane, len(drafts)], values)
        return
    values = [number]
    for seq, draft in enumerate(drafts, first):
        stamp = draft.stamp
        times = (int(stamp.synced), stamp.mono_ns, stamp.wall_ns)
        values += (seq, draft.source, boot_numbers[stamp.boot], *times, draft.unique, bytearray(draft.body))
    database.execute(_INSERT[lane, len(drafts)], values)
