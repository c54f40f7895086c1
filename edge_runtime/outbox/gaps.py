"""Gap records: what is gone and will not come, told as records that are themselves delivered. They coalesce while no sink has
seen them, and are bounded: beyond GAPS_MAX the oldest are told again in fewer."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edge_runtime.outbox import tables
from edge_runtime.outbox.inserts import insert
from edge_runtime.ports import Clock, Database
from edge_runtime.records import LANES, Draft, Gap, Lane, to_json

GAPS_MAX = 1_000
GAPS_MERGED = 500
MERGED = "gap records merged"

HEADS_EVERY = 256
"""Records of a lane after which its head is noted: a damaged page may take all rows of it, and what is lost must be told."""


class Change:
    """One transaction in the making: what it will have changed when it is committed."""

    def __init__(self, database: Database, epoch: str, heads: Mapping[Lane, int], offered: Mapping[Lane, int]) -> None:
        self.database, self.epoch, self.heads, self.offered = database, epoch, dict(heads), offered
        self._began = heads
        self.deleted = False
        self.lost: list[Gap] = []

    def delete(self, lane: Lane, first: int, last: int, limit: int) -> int:
        """At most `limit` rows; returns the last seq up to which nothing is left."""
        self.deleted = True
        return tables.delete(self.database, lane, first, last, limit)

    def finish(self) -> None:
        """Where rows are gone the heads can no more be seen from them."""
        if self.deleted:
            tables.set_heads(self.database, self.heads)
        elif due := {lane: seq for lane, seq in self.heads.items() if seq // HEADS_EVERY > self._began[lane] // HEADS_EVERY}:
            tables.set_heads(self.database, due)


class Gaps:
    """`newest`: the last gap record of each lane, which may be extended while no sink has seen it."""

    def __init__(self, clock: Clock) -> None:
        self._clock = clock
        self.newest: dict[Lane, tuple[int, Gap]] = {}

    def declare(self, change: Change, gap: Gap) -> None:
        """A gap record; the lane's last one is extended where it is the neighbour and no sink has seen it."""
        change.lost.append(gap)
        self._declare(change, gap)
        low = tables.lows(change.database)[Lane.GAP]
        if change.heads[Lane.GAP] - low >= GAPS_MAX:
            self._merge(change)

    def _declare(self, change: Change, gap: Gap) -> None:
        seq, last = self.newest.get(gap.lane, (0, gap))
        same = (last.lane, last.epoch, last.reason, last.last + 1) == (gap.lane, gap.epoch, gap.reason, gap.first)
        if same and seq > change.offered.get(Lane.GAP, 0):
            change.delete(Lane.GAP, seq, seq, 1)
            gap = msgspec.structs.replace(last, last=gap.last, count=last.count + gap.count)
        else:
            change.heads[Lane.GAP] += 1
            seq = change.heads[Lane.GAP]
        self._write(change, seq, gap)

    def _write(self, change: Change, seq: int, gap: Gap) -> None:
        stamp = self._clock.now()
        numbers = {stamp.boot: tables.boot_number(change.database, stamp.boot)}
        insert(change.database, Lane.GAP, change.epoch, seq, [Draft(Lane.GAP, gap.lane, stamp, to_json(gap))], numbers)
        self.newest[gap.lane] = (seq, gap)

    def _merge(self, change: Change) -> None:
        """The oldest ones become few: the same seqs are told gone, in wider ranges. That they went is told as well."""
        oldest = tables.oldest_gaps(change.database, GAPS_MERGED)
        change.delete(Lane.GAP, oldest[0][0], oldest[-1][0], GAPS_MERGED)
        self.newest = {lane: (seq, gap) for lane, (seq, gap) in self.newest.items() if seq > oldest[-1][0]}
        wider: dict[tuple[Lane, str, str], Gap] = {}
        for seq, epoch, gap in oldest:
            gone = Gap(lane=Lane.GAP, epoch=epoch, first=seq, last=seq, count=1, reason=MERGED)
            for each in (gap, gone):
                key = (each.lane, each.epoch, each.reason)
                known = wider.get(key, each)
                wider[key] = msgspec.structs.replace(
                    known,
                    first=min(known.first, each.first),
                    last=max(known.last, each.last),
                    count=each.count + (known.count if known is not each else 0),
                )
        for gap in sorted(wider.values(), key=lambda each: (LANES.index(each.lane), each.first)):
            self._declare(change, gap)
