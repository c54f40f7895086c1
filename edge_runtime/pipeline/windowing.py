"""Samples in, windows out (pure): the same samples make the same windows, whoever computes them, before or after a restart.

Windows stand on a grid that begins with the first sample of a *run*: samples without a gap between them. Window k of a run
begins k steps later. A run ends, and its open windows are discarded and counted, by a gap longer than `gap_s_max`, by a
reboot (times of two boots cannot be compared), and, where the policy says so, by a sample with a bad value.

After each sample, `state` is what a restart needs: a Windowing made with it and fed the journal from row `needed_row` on makes
the windows that this one would have made. Rows before that may be forgotten. Missing row numbers mean nothing.
"""

from __future__ import annotations

import math
import struct
from collections import Counter
from collections.abc import Callable, Sequence
from operator import itemgetter
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import Window as Spec
from edge_runtime.records import Sample, Stamp

SKIPPED_MAX = 10_000
"""Bad samples skipped one after the other in an open window; then it is discarded. An open window holds on to the journal from
its first row on: a device that says nothing but "bad" must not fill it."""

ROWS_START = 256

Numbers = Sequence[Any]
"""Values of the window's points; once they are found good: numbers."""


class Window(msgspec.Struct, frozen=True):
    """What a model eats: `values` is float64 [rows, points], not to be changed: windows share it. `first_row`, `last_row` are
    journal rows (0: not journaled); `filled` counts the values that stand in for bad ones; `start_ns` is the place on the grid of
    a window by time (two places can hold the same samples); `number` counts those that are not journaled (what came at once may
    have one instant: windows of it differ in nothing else)."""

    values: NDArray[np.float64]
    first: Stamp
    last: Stamp
    rows: int
    first_row: int
    last_row: int
    filled: int = 0
    start_ns: int = 0
    number: int = 0


class State(msgspec.Struct, frozen=True):
    """What a restart needs besides the journal rows from `needed_row` on, as of just before that row. Small; JSON."""

    needed_row: int = 0
    boot: str | None = None
    last_ns: int = 0
    held: tuple[float, ...] | None = None
    start_ns: int | None = None


class Windowing:
    """One pipeline's windows. Counters: `discarded` windows by reason (gap, bad, filled, overfull), `skipped` samples by reason
    (bad, late), `bad` values by point."""

    def __init__(self, spec: Spec, points: Sequence[str], indices: Sequence[int], state: State | None = None) -> None:
        if len(points) != len(indices):
            raise ValueError(f"{len(points)} points, but {len(indices)} indices")
        self.discarded: Counter[str] = Counter()
        self.skipped: Counter[str] = Counter()
        self.bad: Counter[str] = Counter()
        self._spec = spec
        self._points = tuple(points)
        self._pick = _picker(indices)
        self._gap_ns = None if spec.gap_s_max is None else round(spec.gap_s_max * 1e9)
        self._count, self._step = spec.count or 0, spec.step or spec.count or 0
        self._length_ns = round((spec.length_s or 0.0) * 1e9)
        self._step_ns = round((spec.step_s or spec.length_s or 0.0) * 1e9)
        if not (self._count or (self._length_ns and self._step_ns)):
            raise ValueError("a window needs `count`, or `length_s` (one nanosecond at least)")
        state = state or State()
        self._rows = _Rows(len(self._points))
        self._seen_row = state.needed_row - 1
        self._boot, self._last_ns = state.boot, state.last_ns
        self._held: Numbers | None = state.held
        self._start_ns = state.start_ns
        self._skipped_on = 0
        self._made = 0

    @property
    def needed_row(self) -> int:
        """The earliest journal row that a coming window needs; 0 as long as nothing was journaled."""
        return self._rows.first_row if self._rows.used else max(0, self._seen_row + 1)

    @property
    def state(self) -> State:
        """To be committed together with what came of the windows so far."""
        row = self.needed_row
        held = tuple(map(float, self._held)) if self._held is not None and self._spec.bad == "hold" else None
        if self._rows.used:
            # As of before the oldest row: what was held then shows in it, where it had to be filled.
            return State(row, held=held and self._rows.oldest(), start_ns=self._start_ns)
        return State(row, self._boot, self._last_ns, held, self._start_ns)

    def push(self, sample: Sample) -> list[Window]:
        """Takes the next sample; returns the windows that it completes (more than one only where time has passed)."""
        stamp = sample.stamp
        now_ns = stamp.mono_ns
        if sample.row:
            self._seen_row = sample.row
        if self._boot is not None:
            if stamp.boot != self._boot or (self._gap_ns is not None and now_ns - self._last_ns > self._gap_ns):
                self._end_run("gap")
            elif self._length_ns and now_ns < self._last_ns:
                self.skipped["late"] += 1
                return []
        values, filled = self._pick(sample.values), 0
        if not _all_good(values):
            mended = self._mend(values)
            if mended is None:
                return []
            values, filled = mended
        self._boot, self._last_ns, self._held, self._skipped_on = stamp.boot, now_ns, values, 0
        if self._count:
            return self._by_count(sample, values, filled)
        return self._by_time(sample, values, filled)

    def cut(self, reason: str) -> bool:
        """Samples are missing from here on: the open windows are discarded and counted under this reason. False: none is open."""
        was_open = self._rows.used > 0
        self._end_run(reason)
        return was_open

    # --- a window is full --------------------------------------------------------------------------------------------

    def _by_count(self, sample: Sample, values: Numbers, filled: int) -> list[Window]:
        rows = self._rows
        rows.append(values, sample, filled)
        if rows.used < self._count:
            return []
        window = self._cut(self._count)
        rows.drop(self._step)
        return [] if window is None else [window]

    def _by_time(self, sample: Sample, values: Numbers, filled: int) -> list[Window]:
        now_ns = sample.stamp.mono_ns
        if self._start_ns is None:
            self._start_ns = now_ns
        windows = []
        while self._rows.used and self._start_ns + self._length_ns <= now_ns:
            window = self._cut(self._rows.before(self._start_ns + self._length_ns))
            if window is not None:
                windows.append(window)
            self._start_ns += self._step_ns
            self._rows.drop(self._rows.before(self._start_ns))
        if self._start_ns + self._length_ns <= now_ns:
            # Nobody was there for a while: on to the first place of the grid whose window is still open.
            self._start_ns += ((now_ns - self._length_ns - self._start_ns) // self._step_ns + 1) * self._step_ns
        if self._rows.used >= self._spec.rows_max:
            self._end_run("overfull")
            self._boot, self._last_ns, self._held, self._start_ns = sample.stamp.boot, now_ns, values, now_ns
        self._rows.append(values, sample, filled)
        return windows

    def _cut(self, count: int) -> Window | None:
        if count == 0:
            return None
        self._made += 1
        window = self._rows.window(count, self._start_ns or 0, self._made)
        if window.filled > self._spec.filled_max:
            self.discarded["filled"] += 1
            return None
        return window

    # --- a run ends --------------------------------------------------------------------------------------------------

    def _mend(self, values: Numbers) -> tuple[Numbers, int] | None:
        """Values that may be bad -> values to go on with, and how many were filled in; None: go on without this sample."""
        bad = [i for i, value in enumerate(values) if not _good(value)]
        self.bad.update(self._points[i] for i in bad)
        if not bad or (self._spec.bad == "hold" and self._held is not None):
            held = self._held or values
            return [held[i] if i in bad else value for i, value in enumerate(values)], len(bad)
        self.skipped["bad"] += 1
        self._skipped_on += 1
        if self._spec.bad == "discard":
            self._end_run("bad")
        elif self._rows.used and self._skipped_on > SKIPPED_MAX:
            self._end_run("gap")
        return None

    def _end_run(self, reason: str) -> None:
        if self._rows.used:
            if self._count:
                self.discarded[reason] += -(-self._rows.used // self._step)
            else:
                assert self._start_ns is not None
                self.discarded[reason] += max(0, self._last_ns - self._start_ns) // self._step_ns + 1
        self._rows.drop(self._rows.used)
        self._boot, self._last_ns, self._held, self._start_ns, self._skipped_on = None, 0, None, None, 0


class _Rows:
    """The samples that open windows need, in one float64 array that is filled from the left; `used` rows from `_head` on."""

    def __init__(self, width: int) -> None:
        self.used = 0
        self._width = width
        self._head = 0
        self._pack = struct.Struct(f"{width}d").pack_into
        self._values: NDArray[np.float64] = np.zeros((0, width))
        self._samples: list[Sample | None] = []
        self._filled: list[int] = []
        self._copied: tuple[int, NDArray[np.float64]] | None = None
        self._resize(ROWS_START)

    def _resize(self, capacity: int) -> None:
        values = np.zeros((capacity, self._width))
        live = slice(self._head, self._head + self.used)
        if self.used:
            values[: self.used] = self._values[live]
        self._samples = self._samples[live] + [None] * (capacity - self.used)
        self._filled = self._filled[live] + [0] * (capacity - self.used)
        self._values, self._bytes, self._head, self._capacity = values, values.data.cast("B"), 0, capacity

    def append(self, values: Numbers, sample: Sample, filled: int) -> None:
        at = self._head + self.used
        if at == self._capacity:
            self._resize(self._capacity * 2 if self.used * 2 > self._capacity else self._capacity)
            at = self.used
        # 3 times as fast as assigning a tuple to a row of the array.
        self._pack(self._bytes, at * self._width * 8, *values)
        self._samples[at] = sample
        self._filled[at] = filled
        self._copied = None
        self.used += 1

    def drop(self, count: int) -> None:
        self._head += count
        self.used -= count
        if not self.used:
            self._head, self._copied = 0, None

    @property
    def first_row(self) -> int:
        return self._sample(0).row

    def oldest(self) -> tuple[float, ...]:
        return tuple(self._values[self._head].tolist())

    def before(self, limit_ns: int) -> int:
        """How many of them, from the oldest on, are older than that."""
        low, high = 0, self.used
        while low < high:
            middle = (low + high) // 2
            if self._sample(middle).stamp.mono_ns < limit_ns:
                low = middle + 1
            else:
                high = middle
        return low

    def window(self, count: int, start_ns: int, number: int) -> Window:
        first, last = self._sample(0), self._sample(count - 1)
        # One copy for all the windows that one sample completes: after a silence thousands of them overlap, and a copy each
        # would be more than the memory holds.
        since, rows = self._copied = self._copied or (self._head, self._values[self._head : self._head + self.used].copy())
        values = rows[self._head - since : self._head - since + count]
        filled = sum(self._filled[self._head : self._head + count])
        number = 0 if first.row else number
        return Window(values, first.stamp, last.stamp, count, first.row, last.row, filled, start_ns, number)

    def _sample(self, at: int) -> Sample:
        sample = self._samples[self._head + at]
        assert sample is not None
        return sample


def _picker(indices: Sequence[int]) -> Callable[[Numbers], Numbers]:
    """values of a sample -> those of the window's points."""
    if len(indices) == 1:
        only = indices[0]
        return lambda values: (values[only],)
    return itemgetter(*indices)


def _all_good(values: Numbers) -> bool:
    """Fast, and may say no where `_good` says yes of each one (a sum that overflows)."""
    try:
        total = sum(values, 0.0)
    except (TypeError, OverflowError):
        return False
    return total - total == 0.0


def _good(value: Any) -> bool:
    """A finite number; True and False are 1 and 0; a text is none, whatever it says."""
    if value is None or isinstance(value, str):
        return False
    try:
        return math.isfinite(value)
    except OverflowError:
        return False
