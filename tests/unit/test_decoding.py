"""Raw sample -> sample: scaling, sentinels, ranges; bad is None with a reason."""

from __future__ import annotations

import math
from typing import Any

import numpy as np
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.adapter import Point
from edge_runtime.records import Sample, Stamp, Value
from edge_runtime.sources.decoding import TEXT_MAX, TOO_LONG, Decoder, WrongShape

STAMP = Stamp("boot", 1, 2, True)


def decode(value: Value, faults: dict[str, str] | None = None, **point: Any) -> tuple[Value, str]:
    raw = Sample("d", STAMP, (value,), faults or {}, "m7", 3)
    sample = Decoder([Point(name="a", **point)])(raw)
    assert (sample.device, sample.stamp, sample.message_id, sample.row) == ("d", STAMP, "m7", 3)
    assert set(sample.faults) <= {"a"}
    return sample.values[0], sample.faults.get("a", "")


@pytest.mark.parametrize(
    ("value", "point", "expected"),
    [
        (2**63 + 1, {}, 2**63 + 1),
        (2**63 + 1, {"low": 0}, 2**63 + 1),
        (100, {"scale": 0.5, "offset": -10}, 40.0),
        (True, {"scale": 3.0, "low": 5}, True),
        ("open", {}, "open"),
        (0, {"low": 0, "high": 10}, 0),
        (10, {"low": 0, "high": 10}, 10),
        (-0.0, {}, -0.0),
    ],
)
def test_good(value: Value, point: dict[str, Any], expected: Value) -> None:
    got = decode(value, **point)
    assert got == (expected, "")
    assert type(got[0]) is type(expected)


@pytest.mark.parametrize(
    ("value", "point", "reason"),
    [
        (None, {}, "missing"),
        (math.nan, {}, "not finite"),
        (-math.inf, {"scale": 2.0}, "not finite"),
        (1e308, {"scale": 1e10}, "not finite"),
        (10**400, {"scale": 2.0}, "not finite"),
        (32767, {"sentinels": (32767,), "scale": 0.1}, "sentinel"),
        (-9999.900390625, {"sentinels": (-9999.9,)}, "sentinel"),
        (-9999.9, {"sentinels": (-9999.9,)}, "sentinel"),
        (10.5, {"high": 10}, "out of range"),
        (-1, {"low": 0}, "out of range"),
        (101, {"scale": 0.1, "low": 0, "high": 10}, "out of range"),
        ("n/a", {"low": 0}, "not a number"),
        ("n/a", {"scale": 0.1}, "not a number"),
        ("a\ud800", {}, "not text: half of a character (\\ud800 to \\udfff)"),
    ],
)
def test_bad_is_none_with_a_reason(value: Value, point: dict[str, Any], reason: str) -> None:
    assert decode(value, **point) == (None, reason)


def test_the_adapters_own_reason_stays_and_its_value_goes() -> None:
    assert decode(5, {"a": "device says so"}, scale=2.0) == (None, "device says so")
    assert decode(5, {"a": "device says so"}) == (None, "device says so")


def test_a_sample_that_needs_nothing_is_passed_on_as_it_is() -> None:
    raw = Sample("d", STAMP, (1.0, 2, "x", True))
    assert Decoder([Point(name=f"p{n}") for n in range(4)])(raw) is raw


@pytest.mark.parametrize("values", [(), (1.0,), (1.0, 2.0, 3.0)])
def test_a_wrong_number_of_values_is_refused(values: tuple[Value, ...]) -> None:
    with pytest.raises(WrongShape):
        Decoder([Point(name="a"), Point(name="b")])(Sample("d", STAMP, values))


@given(
    value=st.one_of(st.none(), st.booleans(), st.text(max_size=3), st.integers(), st.floats()),
    scale=st.floats(-1e6, 1e6).filter(bool),
    offset=st.floats(-1e6, 1e6),
    low=st.none() | st.floats(-1e9, 0),
    high=st.none() | st.floats(1, 1e9),
    faulty=st.booleans(),
)
def test_a_value_and_a_fault_never_stand_together(
    value: Value, scale: float, offset: float, low: float | None, high: float | None, faulty: bool
) -> None:
    got, reason = decode(value, {"a": "bad"} if faulty else {}, scale=scale, offset=offset, low=low, high=high)
    assert (got is None) == bool(reason)
    if isinstance(got, int | float) and not isinstance(got, bool):
        assert math.isfinite(got)
        assert low is None or got >= low
        assert high is None or got <= high


@pytest.mark.parametrize("point", [{}, {"scale": 2.0}])
def test_a_text_that_no_transaction_could_hold_is_bad_and_stops_nobody(point: dict[str, Any]) -> None:
    assert decode("x" * (TEXT_MAX + 1), **point) == (None, TOO_LONG)
    assert decode("x" * TEXT_MAX)[1] == ""


def test_a_reason_that_quotes_half_of_a_character_can_be_kept() -> None:
    assert decode(None, {"a": 'not a number: "\ud800"'}) == (None, 'not a number: "\\ud800"')


@pytest.mark.parametrize("odd", [np.float32(1.5), np.int64(3), [1, 2], {"a": 1}, b"1", object()])
@pytest.mark.parametrize("point", [Point(name="a"), Point(name="a", scale=2.0)])
def test_what_is_no_value_is_bad_and_breaks_no_pipeline(point: Point, odd: Any) -> None:
    """It could not be written: the pipeline that got it failed again and again, and with it all that its device said."""
    sample = Decoder([point])(Sample("d", Stamp("b", 0, 0, True), (odd,)))
    assert (sample.values, sample.faults) == ((None,), {"a": f"a {type(odd).__name__} is no value"})


@pytest.mark.parametrize(
    "odd",
    [
        None,
        "text",
        Sample("d", None, (1.0,)),  # type: ignore[arg-type]
        Sample("d", "2026-11-22", (1.0,)),  # type: ignore[arg-type]
        Sample("d", Stamp("b", 1.5, 0, True), (1.0,)),  # type: ignore[arg-type]
        Sample("d", Stamp("b", 0, 2**63, True), (1.0,)),
        Sample("d", STAMP, (1.0,), message_id=7),  # type: ignore[arg-type]
        Sample("d", STAMP, (1.0,), message_id="\ud800"),
        Sample("d", STAMP, (1.0,), message_id="x" * 3_000_000),
        Sample("d", STAMP, (None,), {"a": OSError("gone")}),  # type: ignore[dict-item]
        Sample("d", STAMP, (None,), ["a"]),  # type: ignore[arg-type]
    ],
)
def test_what_no_disk_could_take_is_refused_before_it_gets_there(odd: Any) -> None:
    """A sample without a stamp ended the whole gateway."""
    with pytest.raises(WrongShape, match="the adapter returned"):
        Decoder([Point(name="a")])(odd)


def test_a_fault_of_no_point_is_left_out_and_a_long_one_is_cut() -> None:
    """Thousands of them, or one of megabytes, would fit into no transaction, and come again for ever."""
    sample = Decoder([Point(name="a")])(Sample("d", STAMP, (1.0,), {"a": "x" * 3_000_000, "zz": "y"}))
    assert sample.faults == {"a": "x" * TEXT_MAX + "..."}
