"""Windows: what the definition says, whatever comes; and the same ones after a restart, at any instant."""

from __future__ import annotations

import math
from collections.abc import Sequence
from dataclasses import dataclass

import msgspec
import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.config import Window as Spec
from edge_runtime.pipeline import windowing
from edge_runtime.pipeline.windowing import State, Window, Windowing
from edge_runtime.records import Sample, Stamp, Value

S = 10**9


def stamp(at_s: float, boot: str = "b1") -> Stamp:
    return Stamp(boot, round(at_s * S), 0, True)


def sample(at_s: float, *values: Value, row: int = 0, boot: str = "b1") -> Sample:
    return Sample("press", stamp(at_s, boot), values, row=row)


def make(points: int = 1, state: State | None = None, **spec: object) -> Windowing:
    return Windowing(Spec.model_validate(spec), [f"p{i}" for i in range(points)], range(points), state)


def feed(windowing: Windowing, samples: Sequence[Sample]) -> list[Window]:
    return [window for each in samples for window in windowing.push(each)]


def firsts(windows: Sequence[Window]) -> list[list[float]]:
    """First column of each window."""
    return [window.values[:, 0].tolist() for window in windows]


def counting(n: int) -> list[Sample]:
    return [sample(i, float(i), row=i + 1) for i in range(n)]


# --- the plain cases, by hand ----------------------------------------------------------------------------------------


def test_tumbling_and_sliding_windows_by_count() -> None:
    assert firsts(feed(make(count=3), counting(8))) == [[0, 1, 2], [3, 4, 5]]
    assert firsts(feed(make(count=3, step=1), counting(5))) == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]


def test_windows_by_time_hold_what_came_from_start_to_before_end() -> None:
    assert firsts(feed(make(length_s=2), counting(7))) == [[0, 1], [2, 3], [4, 5]]
    assert firsts(feed(make(length_s=3, step_s=1), counting(6))) == [[0, 1, 2], [1, 2, 3], [2, 3, 4]]
    irregular = [sample(at, at) for at in (10.0, 10.5, 11.9, 12.0, 13.0, 17.0, 18.5)]
    assert firsts(feed(make(length_s=2), irregular)) == [[10.0, 10.5, 11.9], [12.0, 13.0], [17.0]]


def test_a_window_says_where_it_comes_from_and_stays_as_it_is() -> None:
    unit = Windowing(Spec(count=2), ["b", "c"], [1, 2])
    [window] = feed(unit, [sample(i, "text", i, True, row=10 * i) for i in (1, 2)])
    assert window.values.dtype == np.float64
    assert window.values.tolist() == [[1, 1], [2, 1]]
    assert (window.first, window.last) == (stamp(1), stamp(2))
    assert (window.rows, window.first_row, window.last_row, window.filled) == (2, 10, 20, 0)
    before = window.values.copy()
    feed(unit, counting(600)[:0] + [sample(i, 0, -1, -1) for i in range(600)])
    assert (window.values == before).all()


def test_all_the_windows_that_one_sample_completes_are_one_copy() -> None:
    """An hour by the second, after a silence: 250 MiB at once with a copy each; of a day, more than there is."""
    unit = make(length_s=600, step_s=1, bad="skip")
    feed(unit, counting(600))
    windows = unit.push(sample(10_000, 0.0))
    assert len(windows) == 600
    kept = windows[0].values.base
    assert kept is not None
    assert kept.shape == (600, 1)
    assert all(window.values.base is kept and window.values.flags.c_contiguous for window in windows)
    assert [window.values[:, 0].tolist() for window in windows] == [list(range(i, 600)) for i in range(600)]


@pytest.mark.parametrize("bad", [None, "12", math.nan, math.inf, 10**400])
def test_what_is_no_finite_number_is_bad(bad: Value) -> None:
    unit = make(2, count=2)
    assert feed(unit, [sample(1, 1.0, 1.0), sample(2, 1.0, bad), sample(3, 3.0, 1.0), sample(4, 4.0, 1.0)])[0].first == stamp(3)
    assert unit.discarded == {"bad": 1}
    assert unit.skipped == {"bad": 1}
    assert unit.bad == {"p1": 1}


def test_large_numbers_are_good() -> None:
    assert firsts(feed(make(2, count=2), [sample(1, 1e308, 1e308), sample(2, 2**64, False)])) == [[1e308, float(2**64)]]


def test_skip_goes_on_without_the_sample() -> None:
    stream = [sample(i, None if i in (1, 4) else float(i)) for i in range(6)]
    assert firsts(feed(make(count=2, bad="skip"), stream)) == [[0, 2], [3, 5]]


def test_hold_fills_counts_and_has_a_limit() -> None:
    stream = [sample(i, None if i in (0, 2, 3, 5) else float(i), row=i + 1) for i in range(9)]
    unit = make(count=2, bad="hold", filled_max=1)
    windows = feed(unit, stream)
    assert firsts(windows) == [[1, 1], [1, 4], [4, 6], [7, 8]]
    assert [window.filled for window in windows] == [1, 1, 1, 0]
    unit = make(count=2, bad="hold", filled_max=0)
    assert firsts(feed(unit, stream)) == [[7, 8]]
    assert unit.discarded == {"filled": 3}
    assert unit.skipped == {"bad": 1}


def test_a_gap_and_a_reboot_discard_every_open_window_and_forget_what_was_held() -> None:
    for stream in (
        [sample(0, 0.0), sample(1, 1.0), sample(1.5, 2.0), sample(4, 3.0), sample(5, 4.0)],
        [sample(0, 0.0), sample(1, 1.0), sample(1.5, 2.0), sample(2, 3.0, boot="b2"), sample(3, 4.0, boot="b2")],
    ):
        unit = make(count=4, step=2, gap_s_max=2)
        assert feed(unit, stream) == []
        assert unit.discarded == {"gap": 2}
        unit = make(length_s=8, step_s=1, gap_s_max=2)
        assert feed(unit, stream) == []
        assert unit.discarded == {"gap": 2}
        held = make(count=2, bad="hold", filled_max=9)
        feed(held, stream[:3])
        assert held.push(Sample("press", stamp(9, "b3"), (None,))) == []
        assert held.skipped == {"bad": 1}


def test_missing_row_numbers_are_no_gap() -> None:
    unit = make(count=3, gap_s_max=2)
    assert len(feed(unit, [sample(i, 1.0, row=1000 * i + 1) for i in range(3)])) == 1


def test_a_sample_that_is_late_is_left_out_of_windows_by_time() -> None:
    unit = make(length_s=3)
    assert firsts(feed(unit, [sample(at, at) for at in (0.0, 2.0, 1.0, 2.5, 4.0)])) == [[0, 2, 2.5]]
    assert unit.skipped == {"late": 1}


def test_more_rows_than_allowed_discard_the_window_and_memory_stays_bounded() -> None:
    unit = make(length_s=1_000, rows_max=100)
    assert feed(unit, counting(1_000)) == []
    assert unit.discarded == {"overfull": 9}
    assert unit._rows._capacity <= 4 * 100


def test_nothing_but_bad_samples_do_not_hold_on_to_the_journal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(windowing, "SKIPPED_MAX", 50)
    unit = make(count=4, bad="skip")
    feed(unit, counting(2))
    assert unit.needed_row == 1
    feed(unit, [sample(i, None, row=i) for i in range(3, 54)])
    assert unit.needed_row == 54
    assert unit.discarded == {"gap": 1}


def test_memory_is_bounded_by_the_window() -> None:
    unit = make(count=64, step=16)
    feed(unit, counting(20_000))
    assert unit._rows._capacity == windowing.ROWS_START


def test_an_empty_length_is_refused() -> None:
    with pytest.raises(ValueError, match="needs `count`"):
        make(length_s=1e-12)


# --- by the definition, whatever comes -------------------------------------------------------------------------------


@dataclass(frozen=True)
class Case:
    spec: Spec
    samples: tuple[Sample, ...]


COUNTS = st.integers(1, 6).flatmap(lambda n: st.fixed_dictionaries({"count": st.just(n), "step": st.none() | st.integers(1, n)}))
TIMES = st.sampled_from([(0.5, None), (0.5, 0.3), (1.0, None), (2.5, 1.0), (2.5, 0.3), (4.0, 2.5)]).flatmap(
    lambda pair: st.fixed_dictionaries(
        {"length_s": st.just(pair[0]), "step_s": st.just(pair[1]), "rows_max": st.sampled_from([3, 8, 1_000])}
    )
)
VALUES = st.sampled_from([None, "x", True]) | st.integers(-5, 5) | st.floats(-10, 10)


@st.composite
def cases(draw: st.DrawFn) -> Case:
    policy: dict[str, object] = {
        "gap_s_max": draw(st.sampled_from([None, 0.9, 2.0])),
        "bad": draw(st.sampled_from(["discard", "skip", "hold"])),
        "filled_max": draw(st.integers(0, 4)),
    }
    spec = Spec.model_validate({**draw(COUNTS | TIMES), **policy})
    samples, at_s, row, boot = [], 0.0, 0, 1
    good = draw(st.booleans())
    for _ in range(draw(st.integers(0, 40))):
        at_s = round(at_s + draw(st.sampled_from([0.0, 0.1, 0.5, 0.5, 0.5, 1.0, 3.0, 10.0, -0.2])), 3)
        row += draw(st.sampled_from([1, 1, 1, 7]))
        if draw(st.integers(0, 19)) == 0:
            boot, at_s = boot + 1, 0.0
        values = (float(row), 1) if good and draw(st.integers(0, 5)) else (draw(VALUES), draw(VALUES))
        samples.append(sample(at_s, *values, row=row, boot=f"b{boot}"))
    return Case(spec, tuple(samples))


def plain(window: Window) -> tuple[object, ...]:
    return (window.values.tolist(), window.first, window.last, window.rows, window.first_row, window.last_row, window.filled)


def test_a_restart_between_two_windows_knows_what_was_held_and_when() -> None:
    spec: dict[str, object] = {"count": 1, "bad": "hold", "filled_max": 1, "gap_s_max": 2}
    before = make(**spec)
    feed(before, [sample(5, 7.0, row=1)])
    assert before.state == State(2, "b1", 5 * S, (7.0,))
    assert firsts(make(1, before.state, **spec).push(sample(7, None, row=2))) == [[7.0]]
    assert make(1, before.state, **spec).push(sample(7.1, None, row=2)) == []


@given(cases())
@settings(max_examples=250)
def test_a_restart_at_any_instant_makes_the_same_windows(case: Case) -> None:
    unit = make(2, **case.spec.model_dump())
    made: list[list[tuple[object, ...]]] = []
    states = [unit.state]
    for each in case.samples:
        made.append([plain(window) for window in unit.push(each)])
        states.append(msgspec.json.decode(msgspec.json.encode(unit.state), type=State))
    needed = [state.needed_row for state in states]
    assert needed == sorted(needed)
    for cut, state in enumerate(states):
        again = make(2, state, **case.spec.model_dump())
        replayed = [each for each in case.samples if each.row >= state.needed_row]
        assert [plain(window) for window in feed(again, replayed)] == [window for windows in made[cut:] for window in windows]
        assert again.state == unit.state


@given(cases())
@settings(max_examples=250)
def test_windows_are_what_the_definition_says(case: Case) -> None:
    unit = make(2, **case.spec.model_dump())
    assert [plain(window) for window in feed(unit, case.samples)] == definition(case)


Kept = tuple[Sample, list[float], int]


def definition(case: Case) -> list[tuple[object, ...]]:
    """The same in the simplest way: first the runs, then the windows of each."""
    spec = case.spec
    windows = []
    for run in runs(case):
        for window in by_count(spec, run) if spec.count else by_time(spec, run):
            filled = sum(each[2] for each in window)
            first, last = window[0][0], window[-1][0]
            if filled <= spec.filled_max:
                values = [each[1] for each in window]
                windows.append((values, first.stamp, last.stamp, len(window), first.row, last.row, filled))
    return windows


def runs(case: Case) -> list[list[Kept]]:
    spec, found, run = case.spec, [], list[Kept]()
    for each in case.samples:
        if run:
            last = run[-1][0].stamp
            apart_s = (each.stamp.mono_ns - last.mono_ns) / S
            if each.stamp.boot != last.boot or (spec.gap_s_max is not None and apart_s > spec.gap_s_max):
                found.append(run)
                run = []
            elif spec.length_s and apart_s < 0:
                continue
        good = [isinstance(value, (int, float)) for value in each.values]
        if all(good):
            run.append((each, [float(value) for value in each.values], 0))  # type: ignore[arg-type]
        elif spec.bad == "discard":
            found.append(run)
            run = []
        elif spec.bad == "hold" and run:
            mended = [float(v) if ok else h for v, ok, h in zip(each.values, good, run[-1][1], strict=True)]  # type: ignore[arg-type]
            run.append((each, mended, good.count(False)))
    return [*found, run]


def by_count(spec: Spec, run: list[Kept]) -> list[list[Kept]]:
    count, step = spec.count or 0, spec.step or spec.count or 0
    return [run[at : at + count] for at in range(0, len(run) - count + 1, step)]


def by_time(spec: Spec, run: list[Kept]) -> list[list[Kept]]:
    """Cuts the run where more rows than allowed come together, then takes each [start, start + length) that was passed."""
    if not run:
        return []
    length, step = round((spec.length_s or 0) * S), round((spec.step_s or spec.length_s or 0) * S)
    at = [each[0].stamp.mono_ns for each in run]
    windows, start = [], at[0]
    for n, now in enumerate(at):
        while start + length <= now:
            inside = [each for each in run[:n] if start <= each[0].stamp.mono_ns < start + length]
            if inside:
                windows.append(inside)
            start += step
        if sum(start <= each < start + length for each in at[:n]) >= spec.rows_max:
            return windows + by_time(spec, run[n:])
    return windows
