"""Epochs (pure): which run of the gateway gave a seq away.

Every start of the outbox begins a new epoch. Seqs go on within one file, so they are unique there; the epoch makes them unique
when a file is copied, restored or cloned: two runs that go on from the same file give the same seqs under different epochs.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import msgspec

from edge_runtime.outbox import intervals
from edge_runtime.ports import Ranges, Receipt
from edge_runtime.records import LANES, Lane


class Epoch(msgspec.Struct, frozen=True):
    """`after`: the heads when it began; its first seq in a lane is the one after."""

    name: str
    after: dict[Lane, int]


def span(epochs: Sequence[Epoch], at: int, lane: Lane, head: int) -> tuple[int, int]:
    """First and last seq that epochs[at] gave away in a lane (first > last: none)."""
    first = epochs[at].after.get(lane, 0) + 1
    last = epochs[at + 1].after.get(lane, 0) if at + 1 < len(epochs) else head
    return first, last


def in_use(epochs: Sequence[Epoch], lows: Mapping[Lane, int], heads: Mapping[Lane, int]) -> list[Epoch]:
    """Those with records that are still here, and the newest."""
    kept = [
        epoch
        for at, epoch in enumerate(epochs[:-1])
        if any(span(epochs, at, lane, heads[lane])[1] >= max(low, span(epochs, at, lane, 0)[0]) for lane, low in lows.items())
    ]
    return [*kept, *epochs[-1:]]


def confirmed(epochs: Sequence[Epoch], receipt: Receipt, heads: Mapping[Lane, int]) -> dict[Lane, Ranges]:
    """A receipt -> seqs of ours that the far end has. What it has of a run that we know nothing of is not ours."""
    found: dict[Lane, Ranges] = {}
    for at, epoch in enumerate(epochs):
        for lane in LANES:
            ranges = receipt.ranges.get((epoch.name, lane))
            if ranges:
                ours = intervals.clip(ranges, *span(epochs, at, lane, heads[lane]))
                found[lane] = intervals.union(found.get(lane, ()), ours)
    return found


def used_by_another(epoch: Epoch, receipt: Receipt, offered: Mapping[Lane, int]) -> bool:
    """True if the far end has seqs of our *current* epoch that we never offered to anyone: a snapshot of this machine
    ran on elsewhere (or before). Copied and restored files need no such look: each start has an epoch of its own."""
    for lane in LANES:
        ranges = receipt.ranges.get((epoch.name, lane), ())
        if ranges and ranges[-1][1] > offered.get(lane, 0):
            return True
    return False
