"""An alarm writes a point: once, within the point's limits, after its event is on the disk, and the audit log tells why."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from steered import Steered
from worlds import Site, plc, simulated, until

from edge_runtime import config
from edge_runtime.control.audit_check import entries
from edge_runtime.outbox.database import open_read_only
from edge_runtime.testing.adapter import Faulty

STOP = {"name": "stop", "write": {"allowed": [True, False], "every_s_min": 0.1}}


def settings(value: object = True, **rule: Any) -> dict[str, Any]:
    rules = [{"name": "high", "output": "x.max", "above": 5.5, "writes": [{"point": "d/stop", "value": value}], **rule}]
    device = plc("x")
    device["points"] = [{"name": "x"}, {**STOP}]
    pipeline = {"device": "d", "points": ["x"], "window": {"count": 1}, "rules": rules}
    return {"devices": {"d": device}, "pipelines": {"p": pipeline}}


def device(steered: Steered) -> Faulty:
    adapter = steered.gateway.sources["d"]._adapter
    assert isinstance(adapter, Faulty)
    return adapter


def test_an_alarm_writes_its_point_once_and_the_log_tells_why(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **settings()).running() as steered:
            await until(lambda: site.events("rule_action"))
            await asyncio.sleep(5)
            assert device(steered).received == [("stop", True)]
            assert site.events("rule_action")[0]["outcome"] == "verified"
        database = open_read_only(tmp_path / "data" / "audit.db")
        found = [each for each, _ in entries(database, tmp_path / "data") if each.kind == "rule"]
        database.close()
        assert [each.outcome for each in found] == ["begun", "verified"]
        assert found[0].actor == "rule:p/high"
        assert found[0].subject == "point d/stop"
        for word in ("pipeline p", "window", "result"):
            assert word in found[1].why

    simulated(scenario, tmp_path)


def test_no_log_tells_what_a_rule_was_to_write(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        whole = settings(value=2718)
        whole["devices"]["d"]["points"][1] = {"name": "stop", "sentinels": [2718], "write": {"allowed": [2718]}}
        async with Steered(site, **whole).running():
            await until(lambda: site.events("rule_action"))
            assert "2718" not in str(site.events("rule_action"))
            number = int(site.events("rule_action")[0]["cause"].split()[2])
        database = open_read_only(tmp_path / "data" / "audit.db")
        found = [each for each, _ in entries(database, tmp_path / "data") if each.kind == "rule"]
        database.close()
        assert found[0].n == number
        assert "2718 " in found[1].why

    simulated(scenario, tmp_path)


def test_a_value_that_the_point_may_not_have_is_refused(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        whole = settings(value=2)
        whole["devices"]["d"]["points"][1] = {"name": "stop", "sentinels": [2], "write": {"allowed": [2]}}
        async with Steered(site, **whole).running() as steered:
            await until(lambda: site.events("rule_action"))
            assert device(steered).received == []
            assert site.events("rule_action")[0]["outcome"] == "refused"

    simulated(scenario, tmp_path)


def test_a_point_that_is_not_writable_is_no_target(tmp_path: Path) -> None:
    whole = {"site": "s", "gateway": "g", **settings()}
    del whole["devices"]["d"]["points"][1]["write"]
    with pytest.raises(config.ConfigError) as error:
        config.load(json.dumps(whole), {"faulty": Faulty})
    (problem,) = error.value.problems
    assert problem.path == "pipelines.p.rules[0].writes[0].point"
    assert "write" in problem.hint


@pytest.mark.parametrize(
    ("value", "bound", "hint"),
    [
        (2, {"allowed": [True, False]}, "allowed are [true, false]"),
        (1, {"allowed": [True, False]}, "allowed are [true, false]"),
        ("OFF", {"allowed": ["AUTO", "AUS"]}, 'allowed are ["AUTO", "AUS"]'),
        (5.5, {"low": 0, "high": 5}, "it takes 0 to 5"),
        (True, {"low": 0, "high": 5}, "it takes 0 to 5"),
    ],
)
def test_a_value_that_the_point_never_takes_is_said_before_the_alarm(value: object, bound: dict[str, Any], hint: str) -> None:
    whole = {"site": "s", "gateway": "g", **settings(value)}
    whole["devices"]["d"]["points"][1]["write"] = bound
    with pytest.raises(config.ConfigError) as error:
        config.load(json.dumps(whole), {"faulty": Faulty})
    (problem,) = error.value.problems
    assert problem.path == "pipelines.p.rules[0].writes[0].value"
    assert (problem.message, problem.hint) == ("is nothing that d/stop may be given", hint)


def test_an_alarm_of_the_last_window_before_a_restart_writes_its_point_all_the_same(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        whole = settings()
        whole["pipelines"]["p"]["rules"][0]["above"] = 100.5
        async with Steered(site, **whole).running() as steered:
            await until(lambda: "d" in steered.gateway.sources and device(steered).number >= 90)
            old = device(steered)
            while old.number < 101:  # noqa: ASYNC110 - to the millisecond
                await asyncio.sleep(0.001)
            steered.gateway.become(steered.gateway.settings)  # while the alarm is being raised
            await until(lambda: len(steered.gateways) == 2)
            await asyncio.sleep(3)
            assert [*old.received, *device(steered).received] == [("stop", True)]

    simulated(scenario, tmp_path)
