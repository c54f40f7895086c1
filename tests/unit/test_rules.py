"""Rules: hysteresis, durations, reboots; and each event exactly once, whatever crashes when."""

from __future__ import annotations

import math

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.config import Rule
from edge_runtime.pipeline.rules import Rules, Transition
from edge_runtime.ports import EdgeError
from edge_runtime.records import Stamp

S = 10**9


def stamp(at_s: float, boot: str = "b1") -> Stamp:
    return Stamp(boot, round(at_s * S), 0, True)


def rule(**keys: object) -> Rule:
    return Rule.model_validate({"name": "hot", "output": "t", **keys})


def changes(rules: Rules, *values: float | None, period_s: float = 1.0) -> list[tuple[float, bool]]:
    """Values a period apart -> (time, raised) of each change."""
    found = []
    for n, value in enumerate(values):
        at = stamp(n * period_s)
        found += [(n * period_s, change.raised) for change in rules.update({} if value is None else {"t": value}, at)]
    return found


def test_raises_above_and_clears_with_hysteresis() -> None:
    rules = Rules([rule(above=80, hysteresis=5)])
    assert changes(rules, 80, 80.1, 90, 76, 75.1, 81, 75, 79, 80.5) == [(1, True), (6, False), (8, True)]
    assert rules.alarms == ("hot",)


def test_raises_below_and_outside_of_a_band() -> None:
    assert changes(Rules([rule(below=10, hysteresis=1)]), 10, 9, 10.5, 11) == [(1, True), (3, False)]
    band = Rules([rule(below=10, above=20, hysteresis=1)])
    assert changes(band, 15, 21, 9, 10.5, 19.5, 15, 9) == [(1, True), (5, False), (6, True)]


def test_a_transition_says_what_was_crossed() -> None:
    rules = Rules([rule(below=10, above=20, severity="critical")])
    assert rules.update({"t": 21.0}, stamp(1)) == [Transition("hot", True, stamp(1), "t", 21.0, 20.0, "critical")]
    assert rules.update({"t": 15.0}, stamp(2)) == [Transition("hot", False, stamp(2), "t", 15.0, 20.0, "critical")]
    assert rules.update({"t": 5.0}, stamp(3)) == [Transition("hot", True, stamp(3), "t", 5.0, 10.0, "critical")]


def test_it_must_last_without_interruption() -> None:
    rules = Rules([rule(above=80, hysteresis=5, raise_after_s=2, clear_after_s=3)])
    assert changes(rules, 81, 82, 79, 81, 81, 81, 70, 70, 77, 70, 70, 70, 70, 70) == [(5, True), (12, False)]


@pytest.mark.parametrize("nothing", [None, math.nan])
def test_what_is_no_number_decides_nothing(nothing: float | None) -> None:
    rules = Rules([rule(above=80, raise_after_s=2, clear_after_s=2)])
    assert changes(rules, 81, nothing, 81, nothing, 70, nothing, 70, nothing) == [(2, True), (6, False)]
    rules = Rules([rule(above=80)])
    assert changes(rules, nothing, 81, nothing, nothing) == [(1, True)]
    assert rules.alarms == ("hot",)


def test_infinity_is_over() -> None:
    assert changes(Rules([rule(above=80)]), math.inf, 0, -math.inf) == [(0, True), (1, False)]


def test_a_reboot_starts_durations_again_but_keeps_the_alarm() -> None:
    rules = Rules([rule(above=80, raise_after_s=5, clear_after_s=5)])
    assert rules.update({"t": 81}, stamp(1_000)) == []
    assert rules.update({"t": 81}, stamp(3, "b2")) == []
    assert rules.update({"t": 81}, stamp(7.9, "b2")) == []
    assert [change.raised for change in rules.update({"t": 81}, stamp(8, "b2"))] == [True]
    assert rules.update({"t": 70}, stamp(9, "b2")) == []
    assert rules.update({"t": 70}, stamp(1_000, "b3")) == []
    assert rules.alarms == ("hot",)
    assert [change.raised for change in rules.update({"t": 70}, stamp(1_005, "b3"))] == [False]


def test_the_limit_of_the_model_is_that_of_the_artefact_in_use() -> None:
    rules = Rules([rule(above="model")], model_limit=0.5)
    assert changes(rules, 0.5, 0.6, 0.4) == [(1, True), (2, False)]
    rules.model_limit = 0.9
    assert changes(rules, 0.6, 1.0) == [(1, True)]


@pytest.mark.parametrize(
    ("keys", "message"),
    [
        ({"above": "model"}, "rule hot: the model has no threshold"),
        ({"above": 10, "below": 5, "hysteresis": 3}, "rule hot could never clear"),
    ],
)
def test_rules_that_cannot_work_are_refused(keys: dict[str, object], message: str) -> None:
    with pytest.raises(EdgeError, match=message):
        Rules([rule(**keys)])


def test_restore_with_other_rules() -> None:
    before = Rules([rule(name="a", above=1), rule(name="b", above=1), rule(name="c", above=9)])
    before.update({"t": 5}, stamp(1))
    after = Rules([rule(name="b", above=1), rule(name="d", above=1)])
    assert after.restore(before.snapshot()) == ("a",)
    assert after.alarms == ("b",)
    with pytest.raises(EdgeError, match="cannot be read"):
        after.restore(b'{"b": 7}')


RULES = st.lists(
    st.builds(
        lambda above, below, hysteresis, raise_after_s, clear_after_s: {
            "above": above,
            "below": below if above is not None else 2,
            "hysteresis": hysteresis,
            "raise_after_s": raise_after_s,
            "clear_after_s": clear_after_s,
        },
        above=st.sampled_from([None, 6, "model"]),
        below=st.sampled_from([None, 2]),
        hysteresis=st.sampled_from([0, 1]),
        raise_after_s=st.sampled_from([0, 1, 2.5]),
        clear_after_s=st.sampled_from([0, 1, 2.5]),
    ),
    min_size=1,
    max_size=3,
)
STEPS = st.lists(
    st.tuples(
        st.sampled_from([0.0, 0.5, 1.0, 1.0, 3.0]),
        st.sampled_from([None, math.nan]) | st.integers(0, 9).map(float) | st.sampled_from([7.0, 4.0]),
        st.integers(0, 15),
    ),
    max_size=30,
)


def windows(steps: list[tuple[float, float | None, int]]) -> list[tuple[dict[str, float], Stamp]]:
    made, at_s, boot = [], 0.0, 1
    for wait_s, value, reboot in steps:
        at_s += wait_s
        if reboot == 0:
            boot, at_s = boot + 1, 0.0
        made.append(({} if value is None else {"t": value}, stamp(at_s, f"b{boot}")))
    return made


@given(RULES, STEPS, st.data())
@settings(max_examples=200)
def test_each_event_exactly_once_over_any_crash(
    declared: list[dict[str, object]], steps: list[tuple[float, float | None, int]], data: st.DataObject
) -> None:
    config = [rule(name=f"r{n}", **keys) for n, keys in enumerate(declared)]
    stream = windows(steps)
    straight = Rules(config, model_limit=5.0)
    expected = [change for outputs, at in stream for change in straight.update(outputs, at)]

    running, on_disk, events, n = Rules(config, model_limit=5.0), (0, b"{}"), list[Transition](), 0
    for _ in range(len(stream) * 3):
        if n == len(stream):
            break
        changed = running.update(*stream[n])
        n += 1
        if data.draw(st.booleans()):  # it crashes: nothing of this window is on disk
            n, running = on_disk[0], Rules(config, model_limit=5.0)
            running.restore(on_disk[1])
        else:  # one transaction
            on_disk = (n, running.snapshot())
            events += changed
    assert events == expected[: len(events)]
    if n == len(stream):
        assert events == expected


@given(RULES, STEPS)
@settings(max_examples=200)
def test_raised_and_cleared_alternate_and_only_at_a_value_that_says_so(
    declared: list[dict[str, object]], steps: list[tuple[float, float | None, int]]
) -> None:
    config = [rule(name=f"r{n}", **keys) for n, keys in enumerate(declared)]
    rules = Rules(config, model_limit=5.0)
    raised: dict[str, bool] = {}
    for outputs, at in windows(steps):
        for change in rules.update(outputs, at):
            keys = declared[int(change.rule[1:])]
            above = 5.0 if keys["above"] == "model" else keys["above"]
            below = keys["below"]
            assert change.raised != raised.get(change.rule, False)
            raised[change.rule] = change.raised
            over = (above is not None and change.value > above) or (below is not None and change.value < below)  # type: ignore[operator]
            assert over == change.raised
            assert change.at == at
        assert rules.alarms == tuple(name for name in sorted(raised) if raised[name])
    assert msgspec.json.decode(rules.snapshot()).keys() == {each.name for each in config}
