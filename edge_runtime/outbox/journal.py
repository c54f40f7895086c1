"""The input journal's part of a transaction: which samples a window still needs, and how much of the cap they may take.

What a source was told to be accepted stays until its windows are made, whatever the cap has become meanwhile. A journal that is
larger than its share (the cap was made smaller) therefore stands over the cap, and less and less of it (`over_bytes`).
"""

from __future__ import annotations

from collections.abc import Collection, Mapping
from typing import Any

import msgspec

from edge_runtime.outbox import tables
from edge_runtime.outbox.batch import RECORD_OVERHEAD_BYTES, Batch, Entry
from edge_runtime.outbox.database import PAGE_BYTES
from edge_runtime.ports import Database

SEEN_MAX, SEEN_BYTES, SEEN_SHARE = 50_000, 200, 16
"""Message ids kept to recognise a redelivery: so many a device, and at most one part in SEEN_SHARE of the cap."""

JOURNAL_SHARE = 4
"""The journal's part of the cap: results must find room, or the pipelines could never free it."""


TRIM_QUICK_MAX = 1_000
"""Samples that go at once in less time than the event loop may wait for."""

SHRUNK = 2
"""Times its share: more than that was not accepted under the cap that holds now."""


class Held(msgspec.Struct, frozen=True):
    """What is in it, by device: samples, their bytes, the newest row; and the highest row ever given."""

    rows: dict[str, int] = {}
    size_bytes: dict[str, int] = {}
    heads: dict[str, int] = {}
    last: int = 0


def read(database: Database) -> Held:
    return Held(
        tables.journal_counts(database),
        tables.journal_bytes(database),
        tables.journal_heads(database),
        tables.journal_last(database),
    )


class Journal:
    """Of one outbox."""

    def __init__(self) -> None:
        self._readers: tuple[tuple[str, str], ...] = ()
        self._size_bytes_max = self._filled_max = 0
        self._trimmed: dict[str, int] = {}

    def begin(self, readers: Collection[tuple[str, str]], size_bytes_max: int) -> None:
        """`readers`: (pipeline, device), also those that may come back."""
        self._readers, self._size_bytes_max = tuple(dict.fromkeys(readers)), size_bytes_max
        self.forget()

    def forget(self) -> None:
        """After a transaction that failed, and with a new file: nothing is known."""
        self._trimmed = {}

    @property
    def _devices(self) -> int:
        return max(1, len(dict.fromkeys(device for _, device in self._readers)))

    @property
    def bytes_max(self) -> int:
        """What the samples of one device may take."""
        return self._size_bytes_max // JOURNAL_SHARE // self._devices

    @property
    def _seen_max(self) -> int:
        return min(SEEN_MAX, self._size_bytes_max // SEEN_SHARE // SEEN_BYTES // self._devices)

    def measure(self, held: Held) -> None:
        """After `know`: was so much accepted only under a larger cap? From one that holds now it may come a little over its
        share, and that the others have to bear."""
        shrunk = sum(held.size_bytes.values()) > SHRUNK * self._size_bytes_max // JOURNAL_SHARE
        self._filled_max = _filled(held) if shrunk else 0

    def over_bytes(self, held: Held) -> int:
        """How much of it stands over the cap, in pages that it fills; never more than when it was measured."""
        if not self._filled_max:
            return 0
        return max(0, min(_filled(held), self._filled_max) - self._size_bytes_max // JOURNAL_SHARE)

    def trims_many(self, batch: Batch, held: Held) -> bool:
        """Whether what a batch no longer needs may be more than TRIM_QUICK_MAX samples."""
        return any(
            min(held.rows.get(each.device, 0), each.row - self._trimmed.get(each.device, 0)) - 1 > TRIM_QUICK_MAX
            for each in batch.positions.values()
        )

    # --- in a transaction ---

    def know(self, database: Database) -> None:
        """Forgets what none of the readers needs; of message ids, what is too much for the cap that holds now."""
        for pipeline, device in tables.positions(database):
            if (pipeline, device) not in self._readers:
                tables.forget_position(database, pipeline, device)
        devices = [device for _, device in self._readers]
        for device in tables.journal_counts(database):
            if device not in devices:
                tables.trim_journal(database, device, tables.ROW_MAX, self._seen_max)
        for device in tables.seen_devices(database):
            tables.trim_seen(database, device, self._seen_max)

    def write(self, database: Database, batch: Batch, held: Held) -> Held:
        """The samples and positions of a batch. Samples that no pipeline needs any more go."""
        for position in batch.positions.values():
            tables.set_position(database, position.pipeline, position.device, position.row, position.state)
        if not (batch.entries or batch.positions):
            return held
        rows, sizes, heads = dict(held.rows), dict(held.size_bytes), dict(held.heads)
        last = held.last
        for entry in batch.entries:
            if new := _add(database, entry):
                rows[entry.device] = rows.get(entry.device, 0) + len(new)
                sizes[entry.device] = sizes.get(entry.device, 0) + entry.size_bytes
                heads[entry.device] = last = new[-1]
        for device in dict.fromkeys(position.device for position in batch.positions.values()):
            needed = self._needed(tables.positions(database), device)
            if rows.get(device) and needed > self._trimmed.get(device, 0):
                left = max(0, rows[device] - tables.trim_journal(database, device, needed, self._seen_max))
                sizes[device] = sizes.get(device, 0) * left // rows[device]
                rows[device] = left
                self._trimmed[device] = needed
        return Held(rows, sizes, heads, last)

    def _needed(self, positions: Mapping[tuple[str, str], tuple[int, Any]], device: str) -> int:
        """The first row that one of its readers needs. One that has committed nothing yet needs everything: forgetting what
        only the others have done lost samples."""
        return min((positions.get(each, (0, b""))[0] for each in self._readers if each[1] == device), default=0)


def _add(database: Database, entry: Entry) -> list[int]:
    """Rows of the samples that were not there before."""
    entry.numbers = tables.add_to_journal(database, entry.device, entry.samples)
    return [number for number in entry.numbers if number]


def _filled(held: Held) -> int:
    return sum(_filled_bytes(held.rows.get(device, 0), size_bytes) for device, size_bytes in held.size_bytes.items())


def _filled_bytes(rows: int, size_bytes: int) -> int:
    """Pages that so many samples fill, in bytes: no page holds a part of a small row, and a large one fills pages of its own. The
    message id stands in an index and in `seen` as well."""
    if not rows:
        return 0
    each = size_bytes // rows + 16
    small = each <= tables.LEAF_BYTES_MAX
    pages = -(-rows // (tables.LEAF_BYTES_MAX // each)) if small else rows * (each // tables.LEAF_BYTES_MAX + 2)
    return pages * PAGE_BYTES + rows * RECORD_OVERHEAD_BYTES
