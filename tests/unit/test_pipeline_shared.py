"""A pipeline whose windows are computed side by side, by peers too: judged in order, each once, whatever comes back first."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from worlds import Site, box, simulated, until

from edge_runtime.inference.shared import Shared
from edge_runtime.mesh.placing import Job, Placed
from edge_runtime.mesh.routing import Decision, Reason
from edge_runtime.pipeline.pipeline import ABREAST_MAX, WINDOWS_MAX, Pipeline
from edge_runtime.records import Inference, Lane

SETTINGS: dict[str, Any] = {
    "devices": {"d": box("a", "b")},
    "pipelines": {
        "p": {
            "device": "d",
            "window": {"count": 1},
            "model": "m",
            "rules": [{"name": "high", "output": "score", "above": 49.5}],
        }
    },
}


class Crowd:
    """pipeline.Place: peers that take a random time, and fail as told."""

    def __init__(self, site: Site) -> None:
        self.rng = site.loop.rng("crowd")
        self.under_way = self.most = self.asked = 0
        self.fail_at: set[float] = set()

    async def __call__(self, result_id: str, model: Any, values: Any, here: Any) -> tuple[Inference, str, str]:
        self.asked += 1
        self.under_way += 1
        self.most = max(self.most, self.under_way)
        try:
            await asyncio.sleep(self.rng.uniform(0.0, 0.5))
            value = float(values[-1, 0])
            if value in self.fail_at:
                self.fail_at.discard(value)
                raise ZeroDivisionError
            return Inference({"score": value}, "peer:cpu", "f" * 64, model.threshold), "", "peer-1: peer is faster"
        finally:
            self.under_way -= 1


def share(pipeline: Pipeline, crowd: Crowd) -> None:
    pipeline._place, pipeline._at_once = crowd, WINDOWS_MAX


def scores(site: Site) -> list[float]:
    return [body["outputs"]["score"] for body in site.bodies(Lane.RESULT, "p")]


def post(site: Site, count: int) -> None:
    site.post(*({"a": float(number), "b": 0.0} for number in range(count)))


def test_side_by_side_and_in_order(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        crowd = Crowd(site)
        async with site.running(**SETTINGS) as gateway:
            share(gateway.pipelines["p"], crowd)
            post(site, 100)
            await until(lambda: len(scores(site)) == 100)
            assert gateway.pipelines["p"].state.windows == 100
        assert scores(site) == [float(number) for number in range(100)]
        assert crowd.most == ABREAST_MAX
        events = site.bodies(Lane.EVENT)
        assert [(event["raised"], event["value"]) for event in events] == [(True, 50.0)], "judged in order: raised once"
        assert site.bodies(Lane.RESULT, "p")[0]["placed"] == "peer-1: peer is faster"

    simulated(scenario, tmp_path)


def test_one_that_breaks_unexpectedly_takes_nothing_with_it(tmp_path: Path) -> None:
    """The others that are under way are given up with it, and all are computed again from what is on the disk."""

    async def scenario(site: Site) -> None:
        crowd = Crowd(site)
        crowd.fail_at = {7.0, 23.0}
        async with site.running(**SETTINGS) as gateway:
            share(gateway.pipelines["p"], crowd)
            post(site, 40)
            await until(lambda: len(scores(site)) == 40)
        assert scores(site) == [float(number) for number in range(40)]
        assert crowd.asked > 40
        assert crowd.under_way == 0
        assert len(site.events("service_failed")) == 2

    simulated(scenario, tmp_path)


def test_a_model_that_breaks_under_several_windows_is_opened_once_for_all(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with site.running(**SETTINGS) as gateway:
            pipeline = gateway.pipelines["p"]

            async def here(_id: str, _model: Any, values: Any, own: Any) -> tuple[Inference, str, str]:
                await asyncio.sleep(0.01)
                return (*await own.infer(values), "")

            await until(lambda: pipeline.model_name)
            pipeline._place, pipeline._at_once = here, WINDOWS_MAX
            site.models.faults.refuse = "gone"
            post(site, 20)
            await until(lambda: pipeline.state.cause)
            await asyncio.sleep(5)
            assert scores(site) == []
            opened = site.models.opened
            site.models.faults.refuse = ""
            await until(lambda: len(scores(site)) == 20)
            assert site.models.opened == opened + 1
            assert site.models.opened - site.models.closed <= 1
        assert scores(site) == [float(number) for number in range(20)]

    simulated(scenario, tmp_path)


def test_a_window_that_cannot_be_computed_holds_up_no_other(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.models.faults.poison = lambda values: values[-1, 0] == 3
        async with site.running(**SETTINGS) as gateway:

            async def here(_id: str, _model: Any, values: Any, own: Any) -> tuple[Inference, str, str]:
                await asyncio.sleep(0.01)
                return (*await own.infer(values), "")

            pipeline = gateway.pipelines["p"]
            await until(lambda: pipeline.model_name)
            pipeline._place, pipeline._at_once = here, WINDOWS_MAX
            post(site, 8)
            await until(lambda: len(site.bodies(Lane.RESULT, "p")) == 8)
        faults = [bool(body["fault"]) for body in site.bodies(Lane.RESULT, "p")]
        assert faults == [number == 3 for number in range(8)]

    simulated(scenario, tmp_path)


class Stranger:
    """A Placing that has everything computed by a peer, which answers what it likes."""

    def __init__(self, inference: Inference) -> None:
        self.inference = inference

    async def place(self, job: Job, here: Any) -> Placed:
        return Placed(self.inference, Decision("peer", Reason.PEER_FASTER, "peer-1"))


@pytest.mark.parametrize("outputs", [{}, {"other": 1.0}, {"score": 1.0, "other": 1.0}])
def test_outputs_that_are_not_those_of_the_model_are_not_taken(tmp_path: Path, outputs: dict[str, float]) -> None:
    """The alarms' outputs would be missing in them: nothing would be raised any more, and nobody would know."""

    async def scenario(site: Site) -> None:
        async with site.running(**SETTINGS) as gateway:
            stranger: Any = Stranger(Inference(outputs, "peer:cpu", "f" * 64))
            pipeline = gateway.pipelines["p"]
            pipeline._place = Shared(gateway.settings.pipelines["p"], stranger)
            post(site, 60)
            await until(lambda: len(scores(site)) == 60)
        assert [event["value"] for event in site.bodies(Lane.EVENT)] == [50.0]
        assert site.bodies(Lane.RESULT, "p")[0]["placed"] == "here: the peer's outputs are not those of the model"

    simulated(scenario, tmp_path)


def test_results_of_a_slow_model_are_on_the_disk_while_the_backlog_is_computed(tmp_path: Path) -> None:
    """Else a person would see nothing for the minute that it takes."""

    async def scenario(site: Site) -> None:
        async with site.running(**SETTINGS) as gateway:
            pipeline = gateway.pipelines["p"]

            async def slowly(_id: str, _model: Any, values: Any, own: Any) -> tuple[Inference, str, str]:
                await asyncio.sleep(0.1)
                return (*await own.infer(values), "")

            await until(lambda: pipeline.model_name)
            pipeline._place, pipeline._at_once = slowly, 1
            post(site, 200)
            await until(lambda: pipeline.state.windows >= 5)
            began_s = site.loop.time()
            await until(lambda: len(scores(site)) >= 3)
            assert site.loop.time() - began_s < 2
            assert pipeline.state.windows < 50
            await until(lambda: len(scores(site)) == 200)
        assert scores(site) == [float(number) for number in range(200)]

    simulated(scenario, tmp_path)


def test_a_threshold_that_the_rules_cannot_work_with_does_not_stop_the_pipeline(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.models.threshold = 49.5
        rule = {"name": "range", "output": "score", "above": "model", "below": 10.0, "hysteresis": 1.0}
        settings = {**SETTINGS, "pipelines": {"p": {**SETTINGS["pipelines"]["p"], "rules": [rule]}}}
        async with site.running(**settings) as gateway:
            stranger: Any = Stranger(Inference({"score": 30.0}, "peer:cpu", "f" * 64, 5.0))
            gateway.pipelines["p"]._place = Shared(gateway.settings.pipelines["p"], stranger)
            post(site, 60)
            await until(lambda: len(scores(site)) == 60)
        assert scores(site) == [float(number) for number in range(60)]
        assert site.events("service_failed") == []

    simulated(scenario, tmp_path)
