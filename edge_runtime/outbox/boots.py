"""Which boots the records are of: each has a number, and the difference of its two clocks as soon as that is known."""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_runtime.outbox import tables
from edge_runtime.ports import Database
from edge_runtime.records import Draft, Lane

Known = dict[int, tuple[str, int | None]]
"""Boot id and wall - monotonic in ns (None: not known yet), by number."""


class Boots:
    """Remembers what it has looked at: nearly always there is nothing to note."""

    def __init__(self) -> None:
        self._known: Known = {}
        self._numbers: dict[str, int] = {}
        """Of those whose wall - monotonic is known."""

    def number(self, database: Database, known: Known, drafts: Mapping[Lane, Sequence[Draft]]) -> tuple[Known, dict[str, int]]:
        """In a transaction: `known` and what these drafts add to it, and the number of each of their boots."""
        if self._known is not known:
            self._known = known
            self._numbers = {boot: number for number, (boot, offset_ns) in known.items() if offset_ns is not None}
        if self._numbers.keys() >= {draft.stamp.boot for rows in drafts.values() for draft in rows}:
            return known, self._numbers
        found, changed = {boot: (number, offset_ns) for number, (boot, offset_ns) in known.items()}, False
        for rows in drafts.values():
            for boot in dict.fromkeys([draft.stamp.boot for draft in rows]):
                if boot not in found:
                    found[boot], changed = (tables.boot_number(database, boot), None), True
                number, offset_ns = found[boot]
                if offset_ns is None:
                    stamp = next(
                        (draft.stamp for draft in reversed(rows) if draft.stamp.boot == boot and draft.stamp.synced), None
                    )
                    if stamp:
                        found[boot], changed = (number, stamp.wall_ns - stamp.mono_ns), True
                        tables.set_boot_offset(database, boot, stamp.wall_ns - stamp.mono_ns)
        numbers = {boot: number for boot, (number, _) in found.items()}
        return (tables.boots(database) if changed else known), numbers
