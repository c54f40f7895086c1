"""Receipts of several batches (pure)."""

from __future__ import annotations

from collections.abc import Iterable

from edge_runtime.outbox import intervals
from edge_runtime.ports import Ranges, Receipt
from edge_runtime.records import Lane


def merged(receipts: Iterable[Receipt]) -> Receipt:
    """One that says all that they say."""
    ranges: dict[tuple[str, Lane], Ranges] = {}
    for each in receipts:
        for key, some in each.ranges.items():
            ranges[key] = intervals.union(ranges.get(key, ()), some)
    return Receipt(ranges)
