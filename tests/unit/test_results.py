"""Results and events as records: ids that depend on the content only, JSON that a receiver can read; what a restart knows."""

from __future__ import annotations

import json
import math

import msgspec
import numpy as np
import pytest

from edge_runtime import config
from edge_runtime.pipeline import results, saved
from edge_runtime.pipeline.rules import Transition
from edge_runtime.pipeline.saved import Era, Saved
from edge_runtime.pipeline.windowing import State, Window
from edge_runtime.records import Draft, Inference, Lane, Privacy, Result, Sample, Stamp


def stamp(mono_ns: int, boot: str = "boot") -> Stamp:
    return Stamp(boot, mono_ns, 0, False)


def window(first: int = 1, last: int = 4, boot: str = "boot", row: int = 0) -> Window:
    return Window(np.array([[1.0], [4.0]]), stamp(first, boot), stamp(last, boot), 2, row, row + 3 if row else 0)


def draft(of: Window, model: str = "m@1", identity: str = "site/gateway", pipeline: str = "p") -> Draft:
    name = results.window_name(of)
    result_id = results.content_id(identity, pipeline, model, name)
    inference = Inference({"score": 0.5}, "tflite:cpu", "f" * 64)
    found = results.Found(result_id, name, model, inference)
    return results.result(pipeline, "d", of, found, alarms=("high",), privacy=Privacy.CLOUD)


def test_the_same_window_computed_again_is_the_same_record() -> None:
    assert draft(window()) == draft(window())


def test_whatever_makes_it_another_result_makes_another_id() -> None:
    others = [
        draft(window()),
        draft(window(), model="m@2"),
        draft(window(), identity="site/other"),
        draft(window(), pipeline="q"),
        draft(window(last=5)),
        draft(window(first=0)),
        draft(window(boot="boot-2")),
        draft(window(row=7)),
        draft(msgspec.structs.replace(window(), start_ns=1)),
        draft(msgspec.structs.replace(window(), start_ns=2)),
        draft(msgspec.structs.replace(window(), number=1)),
        draft(msgspec.structs.replace(window(), number=2)),
    ]
    assert len({each.unique for each in others}) == len(others)


def test_parts_of_an_id_cannot_run_into_each_other() -> None:
    assert results.content_id("a", "bc") != results.content_id("ab", "c")


def test_a_result_is_read_back_as_it_was_and_is_small() -> None:
    made = draft(window())
    found = msgspec.json.decode(made.body, type=Result)
    assert (made.lane, made.source, made.stamp, made.unique) == (Lane.RESULT, "p", stamp(4), found.id)
    assert (found.outputs, found.rows, found.alarms, found.fault) == ({"score": 0.5}, 2, ("high",), "")
    assert len(made.body) < 600


def test_raised_and_cleared_are_two_events_and_each_is_one() -> None:
    raised = Transition("high", True, stamp(4), "score", 0.5, 0.4, "warning")
    cleared = msgspec.structs.replace(raised, raised=False)
    ids = [results.event_draft("p", "d", "r" * 32, each, Privacy.CLOUD).unique for each in (raised, cleared, raised)]
    assert ids[0] == ids[2] != ids[1]


def test_statistics() -> None:
    values = np.array([[1.0, -1.0], [3.0, -2.0], [2.0, -6.0]])
    assert results.statistics(["a", "b"], values) == {
        "a.min": 1, "a.mean": 2, "a.max": 3, "a.last": 2, "b.min": -6, "b.mean": -3, "b.max": -1, "b.last": -6,
    }  # fmt: skip


@pytest.mark.filterwarnings("error")
def test_statistics_of_very_large_values_are_numbers() -> None:
    found = results.statistics(["a"], np.full((4, 1), 1.5e308))
    assert all(map(math.isfinite, found.values()))
    assert found["a.mean"] == pytest.approx(1.5e308)


def test_a_forwarded_sample_names_its_values_and_its_faults() -> None:
    made = results.sample_draft("p", ["a", "b"], Sample("d", stamp(1), (None, 2), {"a": "missing"}, "m1"), Privacy.CLOUD)
    assert json.loads(made.body) == {
        "pipeline": "p", "device": "d", "values": {"a": None, "b": 2}, "faults": {"a": "missing"}, "message_id": "m1",
    }  # fmt: skip


# --- what a restart knows --------------------------------------------------------------------------------------------------


def test_saved_is_read_back_and_rubbish_is_none() -> None:
    state = Saved(State(3, "boot", 5, (1.5,), 7), msgspec.Raw(b'{"r":1}'), "mark", (Era(1, ("a", "b")),))
    found = saved.decode(saved.encode(state))
    assert found is not None
    assert (found.windowing, bytes(found.rules), found.window, found.eras) == (state.windowing, b'{"r":1}', "mark", state.eras)
    for rubbish in (b"", b"[]", b'{"windowing": 7}', b'{"eras": [["a"]]}'):
        assert saved.decode(rubbish) is None


def test_eras() -> None:
    eras = saved.begin_era((), ("a", "b"), 0)
    assert saved.begin_era(eras, ("a", "b"), 9) == eras
    eras = saved.begin_era(eras, ("c", "b"), 9)
    old = saved.as_declared_now(Sample("d", stamp(1), (None, 2.0), {"a": "lost"}, row=9), eras)
    assert (old.values, old.faults) == ((None, 2.0), {"c": saved.UNDECLARED})
    new = Sample("d", stamp(1), (3.0, 2.0), row=10)
    assert saved.as_declared_now(new, eras) is new
    assert saved.forget_eras(eras, 9) == eras
    assert saved.forget_eras(eras, 10) == (Era(10, ("c", "b")),)


def test_a_fingerprint_changes_with_each_setting_and_with_the_points() -> None:
    settings = [{"count": 4}, {"count": 4, "step": 2}, {"length_s": 4}, {"count": 4, "bad": "hold"}, {"count": 4, "gap_s_max": 1}]
    marks = [saved.fingerprint(config.Window.model_validate(each), ["a", "b"]) for each in settings]
    marks.append(saved.fingerprint(config.Window(count=4), ["b", "a"]))
    assert len({*marks}) == len(marks)
