"""What becomes of a configuration, and what a trial is judged by."""

from __future__ import annotations

import pytest
from hypothesis import given
from hypothesis import strategies as st
from msgspec.structs import replace

from edge_runtime.control import trial
from edge_runtime.control.trial import (
    CALLED,
    CRASHES_MAX,
    CRASHES_TRIAL_MAX,
    EVERYTHING,
    OK,
    SETTLE_S,
    STARTING,
    TRIAL_S,
    Judge,
    Life,
    News,
    Part,
    Terms,
    Verdict,
)

RUNNING = Life(active=3, last_good=2, boot="b", ended=False)
ON_TRIAL = replace(RUNNING, trial=4)


def starts(life: Life, boots: list[str], file: News = "known") -> list[Life]:
    """The lives of processes that never end by themselves, each begun in such a boot."""
    lives = []
    for boot in boots:
        lives.append(life := trial.started(life, boot, file).life)
    return lives


# --- crashes ---------------------------------------------------------------------------------------------------------


def test_ten_power_cuts_are_no_crash() -> None:
    lives = starts(ON_TRIAL, [f"boot-{number}" for number in range(10)])
    assert [(life.trial, life.active, life.crashes) for life in lives] == [(4, 3, 0)] * 10


def test_two_crashes_on_trial_revert_it_and_power_cuts_between_them_count_anew() -> None:
    assert [life.trial for life in starts(ON_TRIAL, ["b"] * CRASHES_TRIAL_MAX)] == [4, 0]
    assert [life.trial for life in starts(ON_TRIAL, ["b", "c", "c", "d", "d", "d"])] == [4, 4, 4, 4, 4, 0]
    (left,) = trial.started(replace(ON_TRIAL, crashes=1), "b", "known").left
    assert left == (4, "reverted", "crashed 2 times on trial")


def test_a_crash_late_in_a_trial_counts_too() -> None:
    assert trial.started(replace(ON_TRIAL, crashes=1, steady=True), "b", "known").life.trial == 0


def test_an_active_configuration_that_crashes_gives_way_to_the_last_good_one_and_that_to_none() -> None:
    lives = starts(RUNNING, ["b"] * 2 * CRASHES_MAX)
    assert [life.active for life in lives] == [3, 3, 2, 2, 2, 2]
    assert [life.safe for life in lives] == ["", "", "last_good", "last_good", "last_good", "bare"]
    assert [trial.mode(life, "known", reads_file=False) for life in lives] == ["normal"] * 2 + ["last_good"] * 3 + ["bare"]


def test_crashes_of_steady_runs_are_no_loop() -> None:
    life = RUNNING
    for _ in range(10):
        life = replace(trial.started(life, "b", "known").life, steady=True, crashes=0)  # what `steady` writes
    assert (life.active, life.safe) == (3, "")


def test_a_clean_stop_neither_counts_nor_forgets() -> None:
    crashed = replace(RUNNING, crashes=2)
    stopped = trial.started(replace(crashed, ended=True), "b", "known").life
    assert (stopped.crashes, stopped.active) == (2, 3)
    assert trial.started(stopped, "b", "known").life.active == 2


@pytest.mark.parametrize("boot", ["b", "another"])
@pytest.mark.parametrize("ended", [True, False])
def test_no_start_leaves_safe_mode(boot: str, ended: bool) -> None:
    for safe in ("last_good", "bare"):
        life = replace(RUNNING, safe=safe, why="it crashed", ended=ended)  # type: ignore[arg-type]
        step = trial.started(life, boot, "known")
        assert trial.mode(step.life, "known", reads_file=step.reads_file) == safe


def test_a_confirmed_change_leaves_safe_mode_and_a_reverted_one_does_not() -> None:
    bare = replace(RUNNING, safe="bare", why="it crashed")
    tried = trial.proposed(bare, 7).life
    assert trial.mode(tried, "known", reads_file=False) == "trial"
    assert trial.reverted(tried, "no").life.safe == "bare"
    assert trial.confirmed(tried).life.safe == ""


@given(st.lists(st.sampled_from(["kill", "power", "stop", "steady"]), max_size=30), st.booleans())
def test_whatever_happens_there_is_something_to_start(events: list[str], on_trial: bool) -> None:
    life, boot = (ON_TRIAL if on_trial else RUNNING), 0
    for event in events:
        if event == "steady":
            life = replace(life, steady=True, crashes=life.crashes if life.trial else 0)
            continue
        boot += event == "power"
        life = trial.started(replace(life, ended=event == "stop"), f"boot-{boot}", "known").life
        assert life.active in (2, 3)
        assert life.crashes < CRASHES_MAX or life.safe == "bare"
        if "kill" not in events:
            assert (life.trial, life.active, life.safe) == (4 if on_trial else 0, 3, "")


# --- the file --------------------------------------------------------------------------------------------------------


def test_what_a_file_is_to_the_book() -> None:
    assert trial.news(None, "held", "h") == "new"
    assert trial.news("h", "held", None) == "missing"
    assert trial.news("old", "accepted", "h") == "new"
    found = [trial.news("h", state, "h") for state in ("held", "trial", "accepted", "rejected", "reverted")]  # type: ignore[arg-type]
    assert found == ["pending", "known", "known", "rejected", "reverted"]


def test_a_new_file_is_read_and_given_up_when_reading_it_crashes_twice() -> None:
    first = trial.started(replace(RUNNING, crashes=2), "b", "new")
    assert first.reads_file
    assert first.life.crashes == 0
    second = trial.started(first.life, "b", "pending")
    assert second.reads_file
    third = trial.started(second.life, "b", "pending")
    assert not third.reads_file
    assert third.file_given_up
    assert third.life.active == 3


def test_cuts_of_power_while_a_new_file_is_read_do_not_count() -> None:
    life = trial.started(RUNNING, "b", "new").life
    for number in range(10):
        step = trial.started(life, f"boot-{number}", "pending")
        assert step.reads_file
        life = step.life


def test_a_reverted_file_is_not_read_again_and_an_invalid_one_is_unless_the_start_follows_a_crash() -> None:
    assert not trial.started(RUNNING, "another", "reverted").reads_file
    assert trial.started(RUNNING, "another", "rejected").reads_file
    assert not trial.started(RUNNING, "b", "rejected").reads_file
    assert trial.mode(RUNNING, "reverted", reads_file=False) == "last_good"


def test_a_first_file_that_crashes_the_start_ends_in_bare() -> None:
    life, boot = Life(), "b"
    step = trial.started(life, boot, "new")
    for _ in range(CRASHES_TRIAL_MAX):
        step = trial.started(step.life, boot, "pending")
    assert trial.mode(step.life, "reverted", reads_file=step.reads_file) == "bare"


# --- changes ---------------------------------------------------------------------------------------------------------


def test_the_first_configuration_is_active_and_the_next_ones_are_tried() -> None:
    first = trial.proposed(Life(), 1).life
    assert (first.active, first.trial) == (1, 0)
    second = trial.proposed(first, 2).life
    assert (second.active, second.trial) == (1, 2)
    step = trial.proposed(second, 3)
    assert (step.life.active, step.life.trial) == (1, 3)
    assert [(number, state) for number, state, _ in step.left] == [(2, "superseded")]
    after = trial.confirmed(step.life)
    assert (after.life.active, after.life.last_good, after.life.trial) == (3, 1, 0)


def test_the_same_configuration_confirmed_again_keeps_the_way_back() -> None:
    after = trial.confirmed(replace(ON_TRIAL, safe="bare"), same=True).life
    assert (after.active, after.last_good) == (4, 2)


def test_without_a_trial_nothing_is_confirmed_or_reverted() -> None:
    assert trial.confirmed(RUNNING) == trial.Step(RUNNING)
    assert trial.reverted(RUNNING, "why") == trial.Step(RUNNING)


# --- judging ---------------------------------------------------------------------------------------------------------

DEAD = Part("failed", "no answer for 3.02 s")
UNUSABLE = Part("failed", "no register 40001", terminal=True)


def judged(terms: Terms, *seen: tuple[float, dict[str, Part]]) -> Verdict | None:
    """The first verdict."""
    judge = Judge(terms)
    return next((verdict for at_s, now in seen if (verdict := judge.see(at_s, now))), None)


def test_who_has_to_be_called_is_judged_by_that_and_nobody_else_is() -> None:
    silent = Part("failed", "nobody has spoken to it")
    terms = Terms(("broker", CALLED), {"broker": OK, CALLED: silent})
    verdict = judged(terms, (0, {"broker": OK, CALLED: silent}), (TRIAL_S, {"broker": OK, CALLED: silent}))
    assert verdict == Verdict(False, f"not ok after {TRIAL_S:g} s: reach: nobody has spoken to it")  # as before, and no excuse
    verdict = judged(terms, (50, {"broker": OK, CALLED: OK}), (50 + SETTLE_S, {"broker": OK, CALLED: OK}))
    assert verdict
    assert verdict.confirm
    for others in (("broker",), (EVERYTHING,)):
        verdict = judged(Terms(others, {"broker": OK}), *((at_s, {"broker": OK, CALLED: silent}) for at_s in (0.0, SETTLE_S)))
        assert verdict
        assert verdict.confirm


def test_it_confirms_when_all_is_ok_for_long_enough() -> None:
    terms = Terms(("device press",), {"device press": OK})
    assert judged(terms, (0, {"device press": OK}), (SETTLE_S - 0.1, {"device press": OK})) is None
    verdict = judged(terms, (0, {"device press": STARTING}), (2, {"device press": OK}), (2 + SETTLE_S, {"device press": OK}))
    assert verdict is not None
    assert verdict.confirm


def test_a_failure_in_between_begins_the_wait_anew() -> None:
    seen = [(0.0, OK), (4.0, DEAD), (5.0, OK), (9.0, OK)]
    assert judged(Terms(("device press",)), *((at_s, {"device press": part}) for at_s, part in seen)) is None


def test_a_change_that_touches_no_part_is_confirmed_after_a_while() -> None:
    verdict = judged(Terms(()), (0, {"sink cloud": DEAD}), (SETTLE_S, {"sink cloud": DEAD}))
    assert verdict is not None
    assert verdict.confirm


def test_a_terminal_failure_reverts_at_once_and_another_at_the_end() -> None:
    terms = Terms(("device press",), {"device press": OK}, trial_s=60)
    assert judged(terms, (1, {"device press": UNUSABLE})) == Verdict(False, "device press: no register 40001")
    assert judged(terms, (1, {"device press": DEAD}), (59, {"device press": DEAD})) is None
    verdict = judged(terms, (60, {"device press": DEAD}))
    assert verdict == Verdict(False, "not ok after 60 s: device press: no answer for 3.02 s")
    assert judged(terms, (60, {"device press": STARTING})) is not None
    assert judged(terms, (60, {})) is not None, "a part that does not come up is not ok"


def test_what_becomes_ok_just_before_the_end_may_settle_after_it() -> None:
    terms = Terms(("device press",), trial_s=60)
    settled = judged(terms, (58, {"device press": OK}), (61, {"device press": OK}), (63, {"device press": OK}))
    assert settled is not None
    assert settled.confirm
    broken = judged(terms, (58, {"device press": OK}), (61, {"device press": DEAD}))
    assert broken is not None
    assert not broken.confirm


def test_a_part_that_is_not_named_never_counts() -> None:
    """An uplink that fails at the same time takes no fleet's thresholds back; nor does the broker."""
    before = {"pipeline wear": OK, "sink cloud": OK, "mesh": OK, "broker": OK}
    now = {"pipeline wear": OK, "sink cloud": UNUSABLE, "mesh": DEAD, "broker": UNUSABLE}
    verdict = judged(Terms(("pipeline wear",), before), (0, now), (SETTLE_S, now))
    assert verdict is not None
    assert verdict.confirm


def test_a_part_that_was_dead_before_for_the_same_cause_does_not_count() -> None:
    terms = Terms(("device press",), {"device press": DEAD})
    again = {"device press": Part("failed", "no answer for 41.7 s")}
    verdict = judged(terms, (0, again), (SETTLE_S, again))
    assert verdict is not None
    assert verdict.confirm
    other = judged(terms, (0, {"device press": Part("failed", "it refuses us")}), (60, {"device press": DEAD}))
    assert other is None, "for another cause it counts while it lasts"
    reverted = judged(terms, (60, {"device press": Part("failed", "it refuses us")}))
    assert reverted is not None
    assert not reverted.confirm


def test_a_dead_part_that_is_still_starting_is_waited_for_and_excused_at_the_end() -> None:
    terms = Terms(("device press",), {"device press": DEAD}, trial_s=60)
    seen = [(float(at_s), {"device press": STARTING}) for at_s in range(66)]
    assert judged(terms, *seen[:65]) is None
    verdict = judged(terms, *seen)
    assert verdict is not None
    assert verdict.confirm


@pytest.mark.parametrize("named", ["mesh", "broker", "control", EVERYTHING])
def test_a_change_that_cut_the_gateway_off_is_reverted(named: str) -> None:
    now = {"mesh": DEAD, "broker": OK}
    verdict = judged(Terms((named,), {"mesh": OK, "broker": OK}, trial_s=60), (1, now), (60, now))
    assert verdict is not None
    assert not verdict.confirm


def test_a_connection_that_was_not_there_before_is_not_cut_off() -> None:
    now = {"mesh": DEAD}
    verdict = judged(Terms(("control",), {"mesh": DEAD}), (0, now), (SETTLE_S, now))
    assert verdict is not None
    assert verdict.confirm


def test_a_connection_that_the_change_took_away_is_gone() -> None:
    verdict = judged(Terms(("mesh",), {"mesh": OK}, trial_s=60), (60, {}))
    assert verdict == Verdict(False, "not ok after 60 s: mesh: is gone since the change")


def test_everything_means_every_part_that_is_there() -> None:
    verdict = judged(Terms((EVERYTHING,), {}, trial_s=60), (1, {"device a": OK, "device b": UNUSABLE}))
    assert verdict == Verdict(False, "device b: no register 40001")
