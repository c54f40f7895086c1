"""At level debug a record can be followed from its samples to the far end; at level info that costs next to nothing."""

from __future__ import annotations

import logging
from pathlib import Path
from typing import Any

import pytest
import structlog
from worlds import Site, box, simulated, until

from edge_runtime import trail
from edge_runtime.cli import run as running
from edge_runtime.config import Log
from edge_runtime.records import Draft, Lane, Stamp

STAMP = Stamp("boot", 7, 8, True)
RULE = {"name": "high", "output": "a.max", "above": 5}
SETTINGS: dict[str, Any] = {
    "devices": {"press": box("a")},
    "pipelines": {
        "windows": {"device": "press", "window": {"count": 2}, "rules": [RULE]},
        "all": {"device": "press"},
    },
}


@pytest.mark.parametrize(
    ("lane", "name"),
    [
        (Lane.RESULT_SITE, {"result": "u"}),
        (Lane.EVENT, {"event_id": "u"}),
        (Lane.SAMPLE_GATEWAY, {"sample": "boot:7"}),
        (Lane.GAP, {"gap": "boot:7"}),
    ],
)
def test_what_a_record_is_called(lane: Lane, name: dict[str, str]) -> None:
    assert trail.name(lane, Draft(lane, "p", STAMP, b"{}", "u")) == name


def test_a_record_can_be_followed(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.log_level = logging.DEBUG
        async with site.running(**SETTINGS):
            site.post({"a": 1.0}, {"a": 9.0}, {"a": 1.0}, {"a": 1.0})
            await until(lambda: len(site.events("delivered")) >= 8)

        made, judged = site.events("window_made"), site.events("result_judged")
        assert [each["result"] for each in made] == [each["result"] for each in judged]
        taken = [each["sample"] for each in site.events("sample_taken") if each["pipeline"] == "windows"]
        assert [(each["first"], each["last"]) for each in made] == [(taken[0], taken[1]), (taken[2], taken[3])]
        raised, cleared = site.events("event_raised"), site.events("event_cleared")
        assert [raised[0]["result"], cleared[0]["result"]] == [each["result"] for each in made]
        far_end = site.far_end().kept.values()
        for key, names in (
            ("result", [each["result"] for each in made]),
            ("event_id", [raised[0]["event_id"], cleared[0]["event_id"]]),
            ("sample", taken),
        ):
            lane = {"event_id": Lane.EVENT}.get(key, Lane(key) if key != "event_id" else Lane.EVENT)
            there = {(each.epoch, each.seq): each for each in far_end if each.lane is lane}
            for event in ("committed", "delivered"):
                told = [each for each in site.events(event) if key in each]
                assert [each[key] for each in told] == names, f"{event} of {key}"
                for each in told:
                    assert trail.name(lane, there[each["epoch"], each["seq"]]) == {key: each[key]}, "another record's number"
        steps = [each["event"] for each in site.log if each.get("result") == made[0]["result"]]
        assert steps == ["window_made", "result_judged", "event_raised", "committed", "delivered"]

    simulated(scenario, tmp_path)


def test_no_value_is_in_it(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.log_level = logging.DEBUG
        async with site.running(**SETTINGS):
            site.post(*[{"a": 8452.5526 + row} for row in range(6)])
            await until(lambda: len(site.events("delivered")) >= 9)
        assert "8452" not in repr(site.log)

    simulated(scenario, tmp_path)


class _Counted:
    """Counts what is asked of a log."""

    def __init__(self) -> None:
        self.asked = self.said = 0

    def is_enabled_for(self, level: int) -> bool:
        self.asked += 1
        return level >= logging.INFO

    def bind(self, **_: Any) -> _Counted:
        return self

    def debug(self, *_: Any, **__: Any) -> None:
        self.said += 1

    info = warning = error = lambda *_, **__: None


def test_at_level_info_nothing_is_said_and_a_thousand_records_ask_a_few_times(tmp_path: Path) -> None:
    """Once a chunk of samples, once a transaction, once a batch; a record by itself never."""

    async def scenario(site: Site) -> None:
        import dataclasses

        log, world = _Counted(), site.world
        site.world = lambda: dataclasses.replace(world(), log=log)  # type: ignore[method-assign]
        devices, pipelines = {"press": box("a")}, {"all": {"device": "press"}}
        async with site.running(devices=devices, pipelines=pipelines):
            site.post(*[{"a": float(row)} for row in range(1_000)])
            await until(lambda: len(site.far_end().kept) >= 1_000)
        assert log.said == 0
        assert log.asked < 500, "three steps of a thousand records"

    simulated(scenario, tmp_path)


def test_the_level_of_the_moment_counts(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        log = running.logger(Log(level="info", format="json")).bind(a=1)
        assert not trail.on(log)
        running.use_log(Log(level="debug"))
        assert trail.on(log)
        log.debug("seen")
        running.use_log(Log(level="warning"))
        assert not trail.on(log)
        log.debug("unseen")
        shown = capsys.readouterr().err
        assert "seen" in shown
        assert "unseen" not in shown
    finally:
        structlog.reset_defaults()
        running.use_log(Log())
        logging.lastResort = None
