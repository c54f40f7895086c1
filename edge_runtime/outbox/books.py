"""What an outbox holds, in short, as the store asks for it."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edge_runtime.outbox import journal, tables
from edge_runtime.outbox.epochs import Epoch
from edge_runtime.outbox.journal import Held
from edge_runtime.ports import Database, Ranges
from edge_runtime.records import Lane

Acknowledged = Mapping[tuple[str, Lane], Ranges]
"""What each sink need not be given any more of a lane."""


class Books(msgspec.Struct, frozen=True):
    """What is on the disk, in short; replaced as a whole after each transaction."""

    heads: dict[Lane, int]
    epochs: tuple[Epoch, ...] = ()
    acknowledged: Acknowledged = {}
    boots: dict[int, tuple[str, int | None]] = {}
    journal: Held = Held()
    purge_left: bool = False


def read(database: Database) -> Books:
    return Books(
        tables.heads(database),
        tuple(tables.epochs(database)),
        tables.acknowledged(database),
        tables.boots(database),
        journal.read(database),
    )
