"""Report by exception: dead-band, maximum silence, faults."""

from __future__ import annotations

from typing import Any

import pytest

from edge_runtime.adapter import Point
from edge_runtime.records import Sample, Stamp, Value
from edge_runtime.sources.reporting import Reporter


def sample(*values: Value, at_s: float = 0.0, boot: str = "b", **faults: str) -> Sample:
    return Sample("d", Stamp(boot, int(at_s * 1e9), 0, True), values, faults)


def reporter(*points: dict[str, Any]) -> Reporter:
    return Reporter([Point(name=f"p{n}", **point) for n, point in enumerate(points)])


def test_without_a_deadband_everything_is_forwarded() -> None:
    report = reporter({}, {})
    assert all(report.changed(sample(1.0, 2.0)) for _ in range(3))


def test_only_what_moved_by_more_than_the_deadband() -> None:
    report = reporter({"deadband": 1.0}, {"deadband": 0.0})
    assert report.changed(sample(10.0, 5))
    assert not report.changed(sample(11.0, 5))  # by no more than 1
    assert report.changed(sample(11.1, 5))
    assert report.changed(sample(11.1, 6))


def test_slow_drift_is_seen_because_it_is_measured_from_what_was_forwarded() -> None:
    report = reporter({"deadband": 1.0})
    forwarded = [n / 10 for n in range(51) if report.changed(sample(n / 10))]
    assert forwarded == pytest.approx([0.0, 1.1, 2.2, 3.3, 4.4])


def test_a_point_without_a_deadband_counts_any_change() -> None:
    report = reporter({"deadband": 1.0}, {})
    assert report.changed(sample(1.0, "open"))
    assert not report.changed(sample(1.5, "open"))
    assert report.changed(sample(1.5, "shut"))


def test_silence_ends_by_the_clock_since_boot() -> None:
    report = reporter({"deadband": 1.0, "silence_max_s": 10}, {"silence_max_s": 60})
    assert report.changed(sample(1.0, 1, at_s=0))
    assert not report.changed(sample(1.0, 1, at_s=9.9))
    assert report.changed(sample(1.0, 1, at_s=10))
    assert not report.changed(sample(1.0, 1, at_s=19.9))
    assert report.changed(sample(1.0, 1, at_s=3, boot="next"))


def test_a_fault_that_comes_changes_or_goes_is_forwarded() -> None:
    report = reporter({"deadband": 1.0})
    assert report.changed(sample(1.0))
    assert report.changed(sample(None, p0="sentinel"))
    assert not report.changed(sample(None, p0="sentinel"))
    assert report.changed(sample(None, p0="out of range"))
    assert report.changed(sample(1.0))


def test_true_is_not_one() -> None:
    report = reporter({"deadband": 5.0})
    assert report.changed(sample(1))
    assert report.changed(sample(True))
    assert report.changed(sample("1"))
