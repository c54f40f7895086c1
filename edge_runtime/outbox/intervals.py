"""Sets of seqs as ranges (pure): what a receiver has, what a sink may forget. ((1, 40), (57, 60)) - both ends included."""

from __future__ import annotations

from bisect import bisect_right
from collections.abc import Iterable, Iterator

from edge_runtime.ports import Ranges


def of(numbers: Iterable[int]) -> Ranges:
    """Any numbers -> ranges: 3 1 2 7 -> ((1, 3), (7, 7))."""
    return normalise((n, n) for n in numbers)


def normalise(ranges: Iterable[tuple[int, int]]) -> Ranges:
    """Sorted, disjoint, not adjacent."""
    merged: list[tuple[int, int]] = []
    for first, last in sorted(ranges):
        if last < first:
            continue
        if merged and first <= merged[-1][1] + 1:
            merged[-1] = (merged[-1][0], max(merged[-1][1], last))
        else:
            merged.append((first, last))
    return tuple(merged)


def union(a: Ranges, b: Ranges) -> Ranges:
    return normalise((*a, *b))


def contains(ranges: Ranges, number: int) -> bool:
    at = bisect_right(ranges, (number, float("inf"))) - 1
    return at >= 0 and ranges[at][0] <= number <= ranges[at][1]


def size(ranges: Ranges) -> int:
    return sum(last - first + 1 for first, last in ranges)


def clip(ranges: Ranges, first: int, last: int) -> Ranges:
    """What of them lies within first..last."""
    return normalise((max(a, first), min(b, last)) for a, b in ranges)


def missing(ranges: Ranges, first: int, last: int) -> Iterator[tuple[int, int]]:
    """The holes within first..last."""
    at = first
    for a, b in clip(ranges, first, last):
        if at < a:
            yield at, a - 1
        at = b + 1
    if at <= last:
        yield at, last


def intersection(a: Ranges, b: Ranges) -> Ranges:
    return normalise(piece for first, last in a for piece in clip(b, first, last))


def subtract(a: Ranges, b: Ranges) -> Ranges:
    """What is in a and not in b."""
    return tuple(hole for first, last in a for hole in missing(b, first, last))
