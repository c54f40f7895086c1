"""Report by exception (pure): which samples of a device are worth forwarding. A window gets every sample all the same."""

from __future__ import annotations

from collections.abc import Sequence

from edge_runtime.adapter import Point
from edge_runtime.records import Sample, Value


class Reporter:
    """Of one device. Dead-bands are measured from the last *forwarded* value, so slow drift is not lost."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._deadbands = tuple(point.deadband or 0.0 for point in points)
        silences = [point.silence_max_s for point in points if point.silence_max_s is not None]
        self._silence_ns = int(min(silences) * 1e9) if silences else None
        self._everything = not silences and all(point.deadband is None for point in points)
        self._last: Sample | None = None

    def changed(self, sample: Sample) -> bool:
        """True: forward it (it then is what the next ones are compared with)."""
        if self._everything:
            return True
        last = self._last
        if last is None or self._differs(last, sample) or self._silent(last, sample):
            self._last = sample
            return True
        return False

    def _differs(self, last: Sample, sample: Sample) -> bool:
        return last.faults != sample.faults or any(
            _moved(before, now, deadband)
            for before, now, deadband in zip(last.values, sample.values, self._deadbands, strict=True)
        )

    def _silent(self, last: Sample, sample: Sample) -> bool:
        if last.stamp.boot != sample.stamp.boot:
            return True  # the two clocks cannot be compared
        return self._silence_ns is not None and sample.stamp.mono_ns - last.stamp.mono_ns >= self._silence_ns


def _moved(before: Value, now: Value, deadband: float) -> bool:
    if before == now and type(before) is type(now):
        return False
    if isinstance(before, bool | str | None) or isinstance(now, bool | str | None):
        return True
    return abs(now - before) > deadband
