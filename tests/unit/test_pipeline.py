"""A pipeline inside a real gateway on virtual time: models that fail, points and their order, restarts with other settings."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from worlds import Site, box, plc, simulated, until

from edge_runtime.gateway import Gateway
from edge_runtime.outbox.store import Store
from edge_runtime.pipeline.pipeline import COMMIT_BYTES, Pipeline
from edge_runtime.pipeline.results import content_id
from edge_runtime.records import Draft, Lane, Sample

COUNT_1 = {"count": 1}


def rows(first: int, count: int) -> list[dict[str, Any]]:
    """a = n, b = 1000 n"""
    return [{"a": float(n), "b": 1000.0 * n} for n in range(first, first + count)]


def scores(site: Site, pipeline: str = "p") -> list[float]:
    return [body["outputs"]["score"] for body in site.bodies(Lane.RESULT, pipeline)]


def modelled(*declared: str, **pipeline: Any) -> dict[str, Any]:
    return {"devices": {"d": box(*declared)}, "pipelines": {"p": {"device": "d", "window": COUNT_1, "model": "m", **pipeline}}}


async def stopped(gateway: Gateway, cause: str, pipeline: str = "p") -> None:
    await until(lambda: cause in gateway.pipelines[pipeline].state.cause)


# --- points --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("declared", "points", "expected"),
    [
        (("a", "b"), None, 5 + 10 * 7),
        (("b", "a"), None, 5 + 10 * 7),
        (("x", "b", "y", "a"), None, 5 + 10 * 7),
        (("b", "a"), ["a", "b"], 5 + 10 * 7),
        (("x", "y"), ["y", "x"], 90 + 10 * 80),
        (("x", "b"), ["x", "b"], 80 + 10 * 7),
    ],
)
def test_points_are_taken_by_name_or_as_written_down(
    tmp_path: Path, declared: tuple[str, ...], points: list[str] | None, expected: float
) -> None:
    async def scenario(site: Site) -> None:
        async with site.running(**modelled(*declared, points=points)):
            site.post({"a": 5.0, "b": 7.0, "x": 80.0, "y": 90.0})
            await site.acknowledged(1)
        assert scores(site) == [expected]

    simulated(scenario, tmp_path)


@pytest.mark.parametrize(
    ("declared", "points", "cause", "hint"),
    [
        (("a", "x"), None, "device d does not declare: b", "in this order: a, b"),
        (("x", "y"), None, "does not declare: a, b", "pipelines.p.points"),
        (("a", "b"), ["b", "a"], "puts b, a where model m takes another point", "leave pipelines.p.points out"),
        (("a", "b", "c"), ["c", "a"], "puts a where model m takes another point (its order is a, b)", "in this order"),
        (("a", "b"), ["a"], "takes 2 points (a, b), pipelines.p.points names 1 (a)", "one for each"),
    ],
)
def test_points_that_do_not_fit_the_model_stop_the_pipeline(
    tmp_path: Path, declared: tuple[str, ...], points: list[str] | None, cause: str, hint: str
) -> None:
    async def scenario(site: Site) -> None:
        async with site.running(**modelled(*declared, points=points)) as gateway:
            site.post({"a": 5.0, "b": 7.0})
            await stopped(gateway, cause)
            assert hint in gateway.pipelines["p"].state.hint
        assert not site.bodies(Lane.RESULT)

    simulated(scenario, tmp_path)


@pytest.mark.parametrize(
    ("window", "cause"),
    [
        ({"count": 3}, "takes windows of 4 samples, pipelines.p.window.count is 3"),
        ({"length_s": 1}, "takes windows of 4 samples, pipelines.p.window is by time"),
    ],
)
def test_a_window_that_does_not_fit_the_model_stops_the_pipeline(tmp_path: Path, window: dict[str, Any], cause: str) -> None:
    async def scenario(site: Site) -> None:
        site.models.rows = 4
        async with site.running(**modelled("a", "b", window=window)) as gateway:
            await stopped(gateway, cause)
            assert gateway.pipelines["p"].state.hint == "set pipelines.p.window.count to 4"
            site.models.rows = 3  # somebody ships another one
            if "count" in window:
                await until(lambda: not gateway.pipelines["p"].state.cause)
            await until(lambda: site.models.opened > 1)  # what does not fit is opened again
        assert site.models.opened == site.models.closed, "and closed each time"

    simulated(scenario, tmp_path)


def test_the_id_of_a_result_names_its_owner_its_model_and_its_window(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with site.running(**modelled("a", "b")):
            site.post(*rows(0, 2))
            await site.acknowledged(2)
        for body in site.bodies(Lane.RESULT):
            assert body["artefact"] == site.models.artefact
            assert body["id"] == content_id("s/g", "p", body["model"], body["window"])
            assert body["model"].endswith("@1")

    simulated(scenario, tmp_path)


# --- models that fail ----------------------------------------------------------------------------------------------------


def two_pipelines(device: dict[str, Any]) -> dict[str, Any]:
    pipelines = {"p": {"device": "d", "window": COUNT_1, "model": "m"}, "raw": {"device": "d"}}
    return {"devices": {"d": device}, "pipelines": pipelines}


@pytest.mark.parametrize("fault", ["refuse at start", "refuse", "stuck"])
def test_a_dead_model_stops_its_own_pipeline_only_and_the_journal_keeps_all(tmp_path: Path, fault: str) -> None:
    async def scenario(site: Site) -> None:
        faults = site.models.faults
        faults.refuse = "no file" if fault == "refuse at start" else ""
        async with site.running(**two_pipelines(box("a", "b"))) as gateway:
            state = gateway.pipelines["p"].state
            if not faults.refuse:
                site.post(*rows(0, 3))
                await until(lambda: len(scores(site)) == 3)
                faults.refuse, faults.stuck = ("the stick is gone", False) if fault == "refuse" else ("", True)
            first = len(site.mailbox.posted)
            site.post(*rows(first, 200))
            await until(lambda: len(site.bodies(Lane.SAMPLE, "raw")) == first + 200)
            await until(lambda: state.cause)
            assert state.hint == "this is a test"
            assert len(scores(site)) == first
            await asyncio.sleep(60.0)
            faults.refuse, faults.stuck = "", False
            await until(lambda: len(scores(site)) == first + 200)
            assert (state.cause, state.hint, state.failed) == ("", "", 0)
        assert scores(site) == [n + 10_000.0 * n for n in range(first + 200)]
        assert (len(site.events("pipeline_stopped")), len(site.events("pipeline_works"))) == (1, 1)
        assert site.models.opened == site.models.closed

    simulated(scenario, tmp_path)


def test_a_polled_queue_drops_the_oldest_counts_and_says_so_once(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.models.faults.refuse = "no file"
        settings = two_pipelines(plc("a", "b"))
        settings["pipelines"]["p"] |= {"queue_max": 10, "window": {"count": 2}}
        site.models.rows = 2
        async with site.running(**settings) as gateway:
            state = gateway.pipelines["p"].state
            await until(lambda: state.dropped == 25)
            assert gateway.pipelines["p"].waiting == 10
            site.models.faults.refuse = ""
            await until(lambda: len(scores(site)) >= 10)
            dropped, made = state.dropped, scores(site)
        assert made[0] == (dropped + 2) * 11 + 10, "the oldest went"
        # Two neighbours each: a window across the place where samples are missing would be a lie.
        assert made == [made[0] + 22 * n for n in range(len(made))]
        assert len(site.bodies(Lane.SAMPLE, "raw")) >= dropped + 20, "the other one went on"
        assert len(site.events("samples_dropped")) == 1

    simulated(scenario, tmp_path)


def test_samples_of_one_instant_make_windows_of_their_own(tmp_path: Path) -> None:
    """A source that hands on what has piled up stamps all of it with one instant: 39 of 40 results were taken for duplicates."""

    async def scenario(site: Site) -> None:
        settings = two_pipelines(plc("a", "b"))
        settings["pipelines"]["p"] |= {"window": {"count": 1}}
        async with site.running(**settings) as gateway:
            await until(lambda: gateway.pipelines["p"].ready)
            stamp = site.clock.now()
            gateway.pipelines["p"].offer([Sample("box", stamp, (float(n), -1.0)) for n in range(40)])
            await until(lambda: {n - 10.0 for n in range(40)} <= {*scores(site)})
            assert not site.far_ends["cloud"].same_content

    simulated(scenario, tmp_path)


def test_no_window_spans_samples_that_were_dropped(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.models.rows = 3
        settings = two_pipelines(plc("a", "b"))
        settings["pipelines"]["p"] |= {"queue_max": 4, "window": {"count": 3, "step": 1}}
        neighbours = site.models.faults
        seen: list[bool] = []
        neighbours.poison = lambda values: bool(seen.append(bool((np.diff(values[:, 0]) == 1).all())))
        async with site.running(**settings) as gateway:
            await until(lambda: len(seen) > 5)
            neighbours.stuck = True
            await until(lambda: gateway.pipelines["p"].state.dropped > 10)
            neighbours.stuck = False
            made = len(seen)
            await until(lambda: len(seen) > made + 10)
            assert gateway.pipelines["p"].state.discarded == {"dropped": 2}
        assert all(seen)

    simulated(scenario, tmp_path)


def test_a_window_that_a_proved_model_cannot_compute_does_not_hold_up_the_others(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.models.faults.poison = lambda values: values[0, 0] == 3
        settings = modelled("a", "b", rules=[{"name": "high", "output": "score", "above": 1}])
        async with site.running(**settings) as gateway:
            site.post(*rows(0, 6))
            await until(lambda: len(site.bodies(Lane.RESULT)) == 6)
            assert gateway.pipelines["p"].state.failed == 1
            assert gateway.pipelines["p"].state.cause == ""
        bodies = site.bodies(Lane.RESULT)
        assert [body["fault"] for body in bodies] == ["", "", "", "output score is nan (this is a test)", "", ""]
        assert bodies[3]["outputs"] == {}
        assert bodies[3]["alarms"] == ["high"], "no number neither raises nor clears"
        assert site.models.opened == 3, "each time the model had to prove itself"
        assert len(site.events("window_failed")) == len(site.events("pipeline_stopped")) == 1

    simulated(scenario, tmp_path)


def test_another_artefact_brings_its_own_threshold_or_the_pipeline_stands_still(tmp_path: Path) -> None:
    """A stuck accelerator may be replaced by another artefact. One without a threshold must not clear the alarm."""

    async def scenario(site: Site) -> None:
        site.models.threshold = 15.0
        settings = modelled("a", "b", rules=[{"name": "high", "output": "score", "above": "model"}])
        async with site.running(**settings) as gateway:
            pipeline = gateway.pipelines["p"]
            for at, (threshold, alarms) in enumerate([(15.0, ()), (5.0, ("high",)), (None, ("high",))]):
                await until(lambda: pipeline._model.model)
                assert pipeline._model.model is not None
                pipeline._model.model.threshold = site.models.threshold = threshold
                site.post({"a": 10.0, "b": 0.0})
                if threshold is None:
                    await stopped(gateway, "rule high: the model has no threshold")
                else:
                    await until(lambda at=at: len(scores(site)) == at + 1)
                assert pipeline.state.alarms == alarms
            site.models.threshold = 20.0
            await until(lambda: len(scores(site)) == 3)
            assert pipeline.state.alarms == ()
        assert [(event["raised"], event["limit"]) for event in site.bodies(Lane.EVENT)] == [(True, 5.0), (False, 5.0)]

    simulated(scenario, tmp_path)


# --- restarts ------------------------------------------------------------------------------------------------------------


def statistics(window: dict[str, Any], *declared: str, **pipeline: Any) -> dict[str, Any]:
    return {
        "devices": {"d": box(*declared)},
        "pipelines": {"p": {"device": "d", "window": window, **pipeline}, "raw": {"device": "d"}},
    }


def lasts(site: Site, output: str = "a.last") -> list[float]:
    return [body["outputs"][output] for body in site.bodies(Lane.RESULT, "p")]


@pytest.mark.parametrize(
    ("before", "after", "expected"),
    [
        ({"count": 4}, {"count": 4}, [3, 7, 11]),
        ({"count": 4, "step": 2}, {"count": 4, "step": 2}, [3, 5, 7, 9, 11]),
        ({"count": 4}, {"count": 3}, [3, 6, 9, 12]),
        ({"count": 4}, {"length_s": 2.9}, [3, 6, 9]),
        ({"length_s": 3.9}, {"count": 2}, [3, 5, 7, 9, 11]),
        ({"count": 4, "bad": "hold"}, {"count": 4, "bad": "skip"}, [3, 7, 11]),
    ],
)
def test_windows_go_on_after_a_restart_and_begin_anew_with_other_settings(
    tmp_path: Path, before: dict[str, Any], after: dict[str, Any], expected: list[float]
) -> None:
    async def post(site: Site, first: int, count: int) -> None:
        for row in rows(first, count):
            site.post(row)
            await site.acknowledged(len(site.mailbox.posted))
            await until(lambda: site.loop.time() % 1.0 < 0.06)  # one a second
            await until(lambda: site.loop.time() % 1.0 > 0.5)

    async def scenario(site: Site) -> None:
        async with site.running(**statistics(before, "a", "b")):
            await post(site, 0, 6)
        async with site.running(**statistics(after, "a", "b")):
            await post(site, 6, 7)
        assert lasts(site) == expected
        assert len(site.events("windows_begin_anew")) == (before != after)
        assert len(site.bodies(Lane.SAMPLE, "raw")) == 13

    simulated(scenario, tmp_path)


@pytest.mark.parametrize(
    ("window", "reason", "hint"),
    [
        ({"length_s": 3600, "rows_max": 3}, "overfull", "set rows_max of the pipeline's window higher"),
        ({"count": 2, "bad": "hold"}, "filled", "set filled_max of the pipeline's window"),
    ],
)
def test_a_window_that_its_own_limit_discards_is_told_once_and_counted(
    tmp_path: Path, window: dict[str, Any], reason: str, hint: str
) -> None:
    async def scenario(site: Site) -> None:
        async with site.running(**statistics(window, "a", "b")) as gateway:
            site.post(*rows(0, 1), *({"a": None, "b": 1.0} if reason == "filled" else {"a": 1.0, "b": 1.0} for _ in range(40)))
            await site.acknowledged(41)
            await until(lambda: gateway.pipelines["p"].state.samples == 41)
            assert gateway.pipelines["p"].state.discarded[reason] > 5
        told = site.events("window_discarded")
        assert len(told) == 1
        assert told[0]["hint"].startswith(hint)
        assert told[0]["pipeline"] == "p"

    simulated(scenario, tmp_path)


def test_rows_of_the_journal_are_read_by_the_names_that_they_came_with(tmp_path: Path) -> None:
    """Twice another declaration, and windows that began under the one before."""

    async def scenario(site: Site) -> None:
        for at, declared in enumerate([("a", "b"), ("x", "b", "a"), ("b", "a"), ("b", "a")]):
            async with site.running(**statistics({"count": 9, "step": 3}, *declared, points=["a", "b"])) as gateway:
                site.post(*({**row, "x": -5.0} for row in rows(at * 5, 5)))
                await site.acknowledged(at * 5 + 5)
                assert gateway.store.journal_rows > 0
        assert [(a, b) for a, b in zip(lasts(site), lasts(site, "b.last"), strict=True)] == [
            (n, 1000.0 * n) for n in (8, 11, 14, 17)
        ]
        assert [body["values"]["a"] for body in site.bodies(Lane.SAMPLE, "raw")] == [*range(20)]

    simulated(scenario, tmp_path)


def test_a_backlog_is_read_by_the_names_that_it_came_with(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.models.faults.refuse = "stands still"
        async with site.running(**modelled("a", "b")):
            site.post(*rows(0, 3))
            await site.acknowledged(3)
        async with site.running(**modelled("x", "b", "a")):
            site.post({"x": 1.0, "a": 3.0, "b": 3000.0})
            await site.acknowledged(4)
        site.models.faults.refuse = ""
        async with site.running(**modelled("b", "a")):
            await until(lambda: len(scores(site)) >= 4)
        assert scores(site) == [n + 10_000.0 * n for n in range(4)]

    simulated(scenario, tmp_path)


def test_a_new_pipeline_begins_with_what_comes_now(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        settings = statistics({"count": 4}, "a", "b")
        async with site.running(**settings):
            site.post(*rows(0, 6))
            await site.acknowledged(6)
        settings["pipelines"]["new"] = {"device": "d", "window": COUNT_1}
        del settings["pipelines"]["p"]
        async with site.running(**settings) as gateway:
            site.post(*rows(6, 2))
            await until(lambda: len(site.bodies(Lane.RESULT, "new")) == 2)
            await until(lambda: gateway.store.journal_rows == 0)
        assert [body["outputs"]["a.last"] for body in site.bodies(Lane.RESULT, "new")] == [6, 7]

    simulated(scenario, tmp_path)


def test_alarms_survive_a_restart_and_are_raised_once(tmp_path: Path) -> None:
    rule = {"name": "high", "output": "a.last", "above": 4.5}

    async def scenario(site: Site) -> None:
        for first in (0, 4, 8):
            async with site.running(**statistics(COUNT_1, "a", "b", rules=[rule])) as gateway:
                if first == 8:
                    await until(lambda: gateway.pipelines["p"].state.alarms == ("high",))
                site.post(*rows(first, 4))
                await site.acknowledged(first + 4)
        assert [(event["raised"], event["value"]) for event in site.bodies(Lane.EVENT)] == [(True, 5.0)]

    simulated(scenario, tmp_path)


def test_a_pipeline_that_broke_unexpectedly_goes_on_where_the_disk_is(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    broken: list[int] = []
    judge = Pipeline._judge

    def breaks(self: Pipeline, window: Any, found: Any) -> Any:
        if window.values[-1, 0] == 7 and len(broken) < 2:
            broken.append(1)
            raise ZeroDivisionError
        return judge(self, window, found)

    monkeypatch.setattr(Pipeline, "_judge", breaks)

    async def scenario(site: Site) -> None:
        async with site.running(**statistics({"count": 4, "step": 2}, "a", "b")):
            site.post(*rows(0, 14))
            await until(lambda: len(site.bodies(Lane.RESULT)) == 6)
        assert lasts(site) == [3, 5, 7, 9, 11, 13]
        assert len(site.events("service_failed")) == 2
        assert len(site.bodies(Lane.SAMPLE, "raw")) == 14

    simulated(scenario, tmp_path)


def test_a_state_of_another_version_is_told_and_not_fatal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario(site: Site) -> None:
        settings = statistics({"count": 4}, "a", "b")
        async with site.running(**settings):
            site.post(*rows(0, 5))
            await site.acknowledged(5)
        position = Store.position

        async def strange(self: Store, pipeline: str, device: str) -> Any:
            import msgspec

            found = await position(self, pipeline, device)
            return found and msgspec.structs.replace(found, state=b'{"windowing": 7}')

        monkeypatch.setattr(Store, "position", strange)
        async with site.running(**settings):
            site.post(*rows(5, 5))
            await until(lambda: len(site.bodies(Lane.RESULT)) == 2)
        assert lasts(site) == [3, 7]
        assert site.events("pipeline_state_unreadable")

    simulated(scenario, tmp_path)


def test_windows_end_with_the_boot(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        for at, boot in enumerate(("boot-1", "boot-2")):
            site.clock.boot = boot
            async with site.running(**statistics({"count": 4}, "a", "b")) as gateway:
                site.post(*rows(at * 6, 6))
                await site.acknowledged(at * 6 + 6)
                await until(lambda at=at: len(site.bodies(Lane.RESULT)) == at + 1)
                assert gateway.pipelines["p"].state.discarded == ({"gap": 1} if at else {})
        assert lasts(site) == [3, 9]

    simulated(scenario, tmp_path)


# --- limits --------------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    "window",
    [
        {"count": 50},
        {"count": 50, "bad": "skip"},
        {"count": 90, "bad": "skip"},
        {"length_s": 1e6},
        {"count": 50, "bad": "hold", "filled_max": 1},
    ],
)
def test_a_full_journal_never_stands_still_for_a_window(tmp_path: Path, window: dict[str, Any]) -> None:
    """Nine values in ten are bad, and the journal is as small as it may be."""

    async def scenario(site: Site) -> None:
        settings = statistics(window, "a", "b") | {"outbox": {"journal_rows_max": 100}}
        async with site.running(**settings) as gateway:
            for row in rows(0, 900):
                site.post(row if row["a"] % 10 == 0 or window == {"length_s": 1e6} else {**row, "b": "bad"})
            await site.acknowledged(900)
            assert gateway.store.journal_rows <= 100 + 20
        assert len(site.bodies(Lane.SAMPLE, "raw")) == 900

    simulated(scenario, tmp_path)


def test_an_open_window_is_kept_while_another_pipeline_holds_the_journal(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.models.faults.refuse = "stands still"
        settings = statistics({"count": 40}, "a", "b") | {"outbox": {"journal_rows_max": 100}}
        settings["pipelines"]["slow"] = {"device": "d", "window": COUNT_1, "model": "m"}
        async with site.running(**settings) as gateway:
            site.post(*rows(0, 200))
            await until(lambda: gateway.store.journal_full("d"))
            await until(lambda: len(lasts(site)) == 2)
            site.models.faults.refuse = ""
            await site.acknowledged(200)
            assert gateway.pipelines["p"].state.discarded == {}
        assert lasts(site) == [39, 79, 119, 159, 199]
        assert len(scores(site, "slow")) == 200

    simulated(scenario, tmp_path)


def test_a_backlog_is_committed_in_transactions_of_a_limited_size(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    sizes: list[int] = []
    commit = Store.commit

    def weighs(self: Store, drafts: Sequence[Draft], position: Any = None) -> Any:
        sizes.append(sum(len(draft.body) for draft in drafts))
        return commit(self, drafts, position)

    monkeypatch.setattr(Store, "commit", weighs)

    async def scenario(site: Site) -> None:
        points = [{"name": f"point-{n}"} for n in range(60)]
        options = {"messages": 200, "unacknowledged_max": 200}
        devices = {"d": {"adapter": "push", "points": points, "options": options}}
        async with site.running(devices=devices, pipelines={"p": {"device": "d", "window": COUNT_1}}):
            await until(lambda: len(site.bodies(Lane.RESULT)) == 200)

    simulated(scenario, tmp_path)
    assert COMMIT_BYTES < max(sizes) < 2 * COMMIT_BYTES


def test_windows_that_come_all_at_once_after_a_silence_are_more_than_a_transaction_and_stop_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """A sensor that said nothing for an hour: its pipeline could not commit, and failed again after each start, for ever."""
    parts: list[bool] = []
    commit = Store.commit

    def notes(self: Store, drafts: Sequence[Draft], position: Any = None) -> Any:
        if drafts and drafts[0].source == "p":
            parts.append(position is not None)
        return commit(self, drafts, position)

    monkeypatch.setattr(Store, "commit", notes)

    async def scenario(site: Site) -> None:
        window = {"length_s": 3600, "step_s": 0.5}
        async with site.running(**statistics(window, "a"), outbox={"size_bytes_max": 64 * 2**20}):
            site.post({"a": 1.0})
            await asyncio.sleep(3599.5)
            site.post({"a": 2.0})
            await asyncio.sleep(3700)
            site.post({"a": 3.0})
            await until(lambda: len(site.bodies(Lane.RESULT)) == 7200)
            await site.acknowledged(3)
        found = [body["outputs"]["a.last"] for body in site.bodies(Lane.RESULT)]
        assert found == [2.0] * 7200
        assert parts == [False] * (len(parts) - 1) + [True]

    simulated(scenario, tmp_path)


def test_a_number_that_fits_nowhere_is_bad_and_stops_nobody(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with site.running(**statistics(COUNT_1, "a", "b")):
            site.post({"a": 1.0, "b": 1}, {"a": 2.0, "b": 10**30}, {"a": 3.0, "b": 2**64 - 1}, {"a": 1e308, "b": -1.0})
            await site.acknowledged(4)
        assert lasts(site) == [1, 3, 1e308]
        assert [body["faults"] for body in site.bodies(Lane.SAMPLE)] == [{}, {"b": "out of range"}, {}, {}]

    simulated(scenario, tmp_path)


def test_half_of_a_character_is_bad_and_stops_nobody(tmp_path: Path) -> None:
    """JSON may hold one. It could not be written: its message came again for ever, and nothing behind it came through."""

    async def scenario(site: Site) -> None:
        async with site.running(**statistics(COUNT_1, "a", "b")):
            site.post({"a": 1.0, "b": "good"}, {"a": 2.0, "b": "\ud800"}, {"a": 3.0, "b": "good"})
            await site.acknowledged(3)
        assert [body["faults"] for body in site.bodies(Lane.SAMPLE)] == [
            {},
            {"b": "not text: half of a character (\\ud800 to \\udfff)"},
            {},
        ]

    simulated(scenario, tmp_path)


def test_a_dead_device_is_told_to_forwarding_pipelines(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        devices = {"d": plc("a", options={"lost": 0.5})}
        async with site.running(devices=devices, pipelines={"raw": {"device": "d"}}):
            await until(lambda: len(site.bodies(Lane.SAMPLE)) > 20)
        told = [body for body in site.bodies(Lane.SAMPLE) if body["faults"] == {"a": "lost on purpose"}]
        assert told
        assert all(body["values"] == {"a": None} for body in told)

    simulated(scenario, tmp_path)
