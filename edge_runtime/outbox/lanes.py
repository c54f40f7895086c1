"""Which records go next (pure): urgent lanes first, new records before the backlog, and the backlog never starves.

After an outage a lane is split at its `boundary`: what came after it is live and goes out at once, what came before is backlog
and fills the rest of the line. The far end therefore has two ranges until the backlog has caught up.
"""

from __future__ import annotations

from collections.abc import Container, Mapping, Sequence

import msgspec

from edge_runtime.outbox import intervals
from edge_runtime.ports import Ranges
from edge_runtime.records import LANES, Lane

BACKLOG_TURN = 4
"""While live records keep coming, every so many batches one is from the backlog."""

SPLITS_MAX = 64
"""Ranges that a lane may fall into; beyond it an outage makes no new boundary (the backlog then goes first)."""

EVICT_SHARE = 0.02
"""Of the cap, freed at a time: one gap record for many evicted ones."""


class Turn(msgspec.Struct, frozen=True):
    """What to read and send next: at most `limit` records of first..last."""

    lane: Lane
    first: int
    last: int


class Course:
    """How far one sink has come: `done` are the seqs that need not be sent (any more), by lane."""

    def __init__(self, lanes: Sequence[Lane], done: Mapping[Lane, Ranges]) -> None:
        self.lanes = tuple(lane for lane in LANES if lane in lanes)
        self.done: dict[Lane, Ranges] = {lane: tuple(done.get(lane, ())) for lane in self.lanes}
        self._boundary: dict[Lane, int] = dict.fromkeys(self.lanes, 0)
        self._turns = 0

    def split(self, heads: Mapping[Lane, int]) -> None:
        """What is there now is backlog; what comes from now on is live."""
        for lane in self.lanes:
            if len(self.done[lane]) < SPLITS_MAX:
                self._boundary[lane] = heads[lane]

    def finish(self, lane: Lane, ranges: Ranges) -> None:
        """The far end has these, or they are gone."""
        self.done[lane] = intervals.union(self.done[lane], ranges)

    def depth(self, heads: Mapping[Lane, int]) -> dict[Lane, int]:
        """Seqs not finished, by lane."""
        return {lane: heads[lane] - intervals.size(intervals.clip(self.done[lane], 1, heads[lane])) for lane in self.lanes}

    def next(self, heads: Mapping[Lane, int]) -> Turn | None:
        """None: everything is delivered."""
        live = self._hole({lane: (self._boundary[lane] + 1, heads[lane]) for lane in self.lanes})
        backlog = self._hole({lane: (1, min(self._boundary[lane], heads[lane])) for lane in self.lanes})
        self._turns += 1
        if live and backlog:
            return backlog if self._turns % BACKLOG_TURN == 0 else live
        return live or backlog

    def _hole(self, spans: Mapping[Lane, tuple[int, int]]) -> Turn | None:
        for lane, (first, last) in spans.items():
            for hole in intervals.missing(self.done[lane], first, last):
                return Turn(lane, *hole)
        return None


def next_to_go(stored: Container[Lane], coming: Container[Lane], taken: Container[Lane] = LANES) -> Lane | None:
    """The lane that loses records where there is no room: the least important one that has any, on the disk or in what comes; a
    gap record never goes. Lanes that no sink takes go before those that are `taken`: what stays here in any case (a privacy
    class) fills the room that the others leave; otherwise it would soon hold all of it, and an outage would lose what waits."""
    lanes = [lane for lane in reversed(LANES) if lane is not Lane.GAP and (lane in stored or lane in coming)]
    return next((lane for lane in lanes if lane not in taken), lanes[0] if lanes else None)
