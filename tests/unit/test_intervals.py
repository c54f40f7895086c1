"""Ranges of seqs, against plain sets."""

from __future__ import annotations

from itertools import pairwise

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.outbox import intervals
from edge_runtime.ports import Ranges

NUMBERS = st.sets(st.integers(1, 40))
ENDS = st.tuples(st.integers(1, 40), st.integers(1, 40))


def as_set(ranges: Ranges) -> set[int]:
    return {n for first, last in ranges for n in range(first, last + 1)}


def is_normal(ranges: Ranges) -> bool:
    return all(a <= b for a, b in ranges) and all(x[1] + 1 < y[0] for x, y in pairwise(ranges))


@given(NUMBERS, NUMBERS)
def test_they_are_sets(a: set[int], b: set[int]) -> None:
    x, y = intervals.of(a), intervals.of(b)
    for ranges, numbers in (
        (x, a),
        (intervals.union(x, y), a | b),
        (intervals.intersection(x, y), a & b),
        (intervals.subtract(x, y), a - b),
    ):
        assert as_set(ranges) == numbers
        assert is_normal(ranges)
        assert intervals.size(ranges) == len(numbers)


@given(NUMBERS, ENDS)
def test_within_two_ends(numbers: set[int], ends: tuple[int, int]) -> None:
    ranges, (first, last) = intervals.of(numbers), ends
    inside = {n for n in numbers if first <= n <= last}
    assert as_set(intervals.clip(ranges, first, last)) == inside
    holes = tuple(intervals.missing(ranges, first, last))
    assert as_set(holes) == set(range(first, last + 1)) - numbers
    assert is_normal(holes)


@given(NUMBERS, st.integers(0, 41))
def test_contains(numbers: set[int], number: int) -> None:
    assert intervals.contains(intervals.of(numbers), number) == (number in numbers)


@given(st.lists(ENDS))
def test_any_pairs_become_normal(pairs: list[tuple[int, int]]) -> None:
    ranges = intervals.normalise(pairs)
    assert is_normal(ranges)
    assert as_set(ranges) == {n for first, last in pairs for n in range(first, last + 1)}
