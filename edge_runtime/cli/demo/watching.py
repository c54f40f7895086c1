"""What the demo observes (pure): anomalies against the labels, latencies, rates. Bounded, however long it runs."""

from __future__ import annotations

import math
from collections import deque
from collections.abc import Sequence
from typing import TypeVar

import msgspec

T = TypeVar("T")

PENDING_MAX = 1_000
"""Rows whose other half has not come yet."""
LATENCIES_MAX = 2_000
LAST_MAX = 6
"""Rows that are shown."""
RATE_S = 5.0
"""Rates are those of so many seconds."""


class Found(msgspec.Struct):
    """Rows of the press, judged by the model and compared with their labels."""

    rows: int = 0
    true: int = 0
    false: int = 0
    missed: int = 0

    @property
    def labelled(self) -> int:
        return self.true + self.missed


class Judged(msgspec.Struct, frozen=True):
    """One row: what the model says (`alarm`) and what its label says (`anomaly`)."""

    row: int
    score: float
    alarm: bool
    anomaly: bool

    @property
    def verdict(self) -> str:
        if self.alarm:
            return "found" if self.anomaly else "false alarm"
        return "missed" if self.anomaly else "normal"


class Comparison:
    """Brings a row's label (a forwarded sample) and its result together. They are records of different lanes, so either may
    come first; what they share is the instant of the sample."""

    def __init__(self) -> None:
        self.found = Found()
        self.last: deque[Judged] = deque(maxlen=LAST_MAX)
        self.notable: deque[Judged] = deque(maxlen=LAST_MAX)
        """Those that are no normal rows."""
        self._labels: dict[int, tuple[int, bool]] = {}
        self._results: dict[int, tuple[float, bool]] = {}

    def label(self, mono_ns: int, row: int, anomaly: bool) -> None:
        if result := self._results.pop(mono_ns, None):
            self._judge(Judged(row, *result, anomaly))
        else:
            _keep(self._labels, mono_ns, (row, anomaly))

    def result(self, mono_ns: int, score: float, alarm: bool) -> None:
        if label := self._labels.pop(mono_ns, None):
            row, anomaly = label
            self._judge(Judged(row, score, alarm, anomaly))
        else:
            _keep(self._results, mono_ns, (score, alarm))

    def _judge(self, judged: Judged) -> None:
        """A row counts once, although it is read twice when the press is a moment late."""
        if self.last and self.last[-1].row == judged.row:
            return
        self.found.rows += 1
        self.found.true += judged.alarm and judged.anomaly
        self.found.false += judged.alarm and not judged.anomaly
        self.found.missed += judged.anomaly and not judged.alarm
        self.last.append(judged)
        if judged.alarm or judged.anomaly:
            self.notable.append(judged)


def _keep(pending: dict[int, T], mono_ns: int, value: T) -> None:
    """A half whose other half never comes is forgotten at last."""
    pending[mono_ns] = value
    if len(pending) > PENDING_MAX:
        del pending[next(iter(pending))]


class Latency(msgspec.Struct, frozen=True):
    """Milliseconds from the instant of the sample to the far end's receipt, of records that met no outage; and the longest wait
    of all, in seconds."""

    p50_ms: float | None = None
    p99_ms: float | None = None
    waited_s: float = 0.0

    def text(self) -> str:
        if self.p50_ms is None or self.p99_ms is None:
            return "none measured"
        return f"p50 {self.p50_ms:.0f} ms, p99 {self.p99_ms:.0f} ms"


class Latencies:
    """Records made before the last (re)connection waited for it: they do not tell how long the way is, and count for the
    longest wait only."""

    def __init__(self) -> None:
        self._usual_from_ns = 0
        self._usual_ns: deque[int] = deque(maxlen=LATENCIES_MAX)
        self._longest_ns = 0

    def begin(self, mono_ns: int) -> None:
        """What is made from now on need not wait for a connection."""
        self._usual_from_ns = mono_ns

    def warm(self, mono_ns: int) -> None:
        """What was made before waited for the model to be loaded: that is forgotten."""
        self.begin(mono_ns)
        self._usual_ns.clear()
        self._longest_ns = 0

    def delivered(self, made_ns: Sequence[int], mono_ns: int) -> None:
        for made in made_ns:
            if made >= self._usual_from_ns:
                self._usual_ns.append(mono_ns - made)
            else:
                self._longest_ns = max(self._longest_ns, mono_ns - made)

    @property
    def figures(self) -> Latency:
        ordered = sorted(self._usual_ns)
        return Latency(_percentile_ms(ordered, 0.5), _percentile_ms(ordered, 0.99), self._longest_ns / 1e9)


def _percentile_ms(ordered: Sequence[int], share: float) -> float | None:
    return round(ordered[math.ceil(share * len(ordered)) - 1] / 1e6, 2) if ordered else None


class Rate:
    """Counts a second, of a counter that is looked at now and then."""

    def __init__(self) -> None:
        self._seen: deque[tuple[int, int]] = deque()

    def at(self, mono_ns: int, count: int) -> float:
        self._seen.append((mono_ns, count))
        while mono_ns - self._seen[0][0] > RATE_S * 1e9:
            self._seen.popleft()
        (first_ns, first), (last_ns, last) = self._seen[0], self._seen[-1]
        return round((last - first) / ((last_ns - first_ns) / 1e9), 1) if last_ns > first_ns else 0.0


def is_cut(elapsed_s: float, seconds: float | None) -> bool:
    """Whether the uplink is away: once, from 30 % to 55 % of a run that ends; else 20 s of each minute."""
    if seconds is None:
        return 20 <= elapsed_s % 60 < 40
    return 0.3 <= elapsed_s / seconds < 0.55
