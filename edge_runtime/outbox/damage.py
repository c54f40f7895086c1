"""Which rows are none that we wrote (pure, but for `look`). SQLite keeps no checksums: a bit that turns over in a text, or in a
row's header, is no error of its, and what reads the row would fail on it at each start.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import msgspec

from edge_runtime.outbox import tables
from edge_runtime.outbox.database import corrupt
from edge_runtime.ports import Database
from edge_runtime.records import LANES, Gap, Lane

_Check = Callable[[Any], object]


def _lane(value: str) -> None:
    if value not in LANES:
        raise ValueError(value)


def _after(value: str) -> None:
    msgspec.json.decode(value, type=dict[Lane, int])


def _gap(value: bytes) -> None:
    msgspec.json.decode(value, type=Gap)


_TYPES: dict[str, tuple[tuple[type, ...], ...]] = {
    "heads": ((str, int),),
    "epochs": ((int, int, str),),
    "boots": ((int, str, int), (int, str, type(None))),
    "positions": ((str, str, int, bytes),),
    "acknowledged": ((str, str, int, int),),
    "seen": ((str, str, int),),
    "refused": ((str, str, int, int, str, bytes),),
    "sinks": ((str, str, int),),
    "imported": ((int, int),),
    "imported_upto": ((int, str, int),),
    "journal": ((int, str, bytes),),
    **{f"lane_{lane}": (tables.RECORD_TYPES,) for lane in LANES},
}
"""Of the columns, in their order."""

_CHECKS: dict[str, tuple[int, _Check]] = {
    "heads": (0, _lane),
    "epochs": (2, _after),
    "acknowledged": (1, _lane),
    "refused": (1, _lane),
    "imported_upto": (1, _lane),
    "journal": (2, tables.decode_sample),
    f"lane_{Lane.GAP}": (8, _gap),
}
"""Column, and what raises where its value is none of ours."""

SMALL = ("heads", "epochs", "boots", "positions", "acknowledged", "refused")
"""Tables that are read as a whole at each start. (`sinks` is written anew then, and may lack.)"""


def sound(table: str, row: tuple[Any, ...]) -> bool:
    """Whether we may have written it."""
    if tuple(map(type, row)) not in _TYPES[table]:
        return False
    if table in _CHECKS:
        column, check = _CHECKS[table]
        try:
            check(row[column])
        except (ValueError, msgspec.DecodeError):
            return False
    return True


def look(database: Database) -> None:
    """Raises DiskError: a row of a small table is none of ours."""
    for table in SMALL:
        for row in database.execute(f"SELECT * FROM {table}"):
            if not sound(table, row):
                raise corrupt(f"{table}: a row holds what none of ours holds")
