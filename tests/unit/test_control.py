"""A gateway is configured over MQTT: what is valid and works stays, what does not is taken back, and nothing else restarts."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

from steered import Steered
from worlds import Site, plc, simulated, until

from edge_runtime.bus import topics
from edge_runtime.testing.network import FakeBroker
from edge_runtime.watching.health import judge
from edge_runtime.watching.look import look

DEVICES = {"devices": {"d": plc("x", "y"), "e": plc("z")}}
RULES = [{"name": "high", "output": "x.max", "above": 1e9}]
PIPELINES: dict[str, Any] = {
    "pipelines": {"p": {"device": "d", "window": {"count": 4}, "rules": RULES}, "q": {"device": "e"}},
}


def parts(steered: Steered) -> dict[str, object]:
    gateway = steered.gateway
    return {**gateway.sources, **gateway.pipelines, "cloud": gateway.deliveries["cloud"], "gateway": gateway}


def test_a_new_threshold_restarts_nothing(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **DEVICES, **PIPELINES).running() as steered:
            assert (await steered.reported("active")).mode == "normal"
            before = parts(steered)
            await steered.want(patch={"pipelines": {"p": {"rules": {"high": {"above": 3.5}}}}})
            report = await steered.reported("active")
            assert parts(steered) == before
            assert steered.states == ["active", "trial", "active"]
            assert report.config is not None
            assert report.config["pipelines"]["p"]["rules"][0]["above"] == 3.5
            assert report.provenance["pipelines.p.rules.high.above"] == "gateway"
            await until(lambda: steered.gateway.pipelines["p"].state.alarms == ("high",))

    simulated(scenario, tmp_path)


def test_a_changed_point_list_restarts_one_device(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **DEVICES, **PIPELINES).running() as steered:
            await steered.reported("active")
            before = parts(steered)
            await steered.want(patch={"devices": {"d": {"points": {"w": {}}}}})
            await steered.reported("trial")
            await steered.reported("active")
            after = parts(steered)
            assert [name for name in before if after[name] is not before[name]] == ["d", "p"]

    simulated(scenario, tmp_path)


def test_the_same_document_twice_does_nothing(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **DEVICES, **PIPELINES).running() as steered:
            await steered.reported("active")
            for _ in range(3):
                await steered.want(patch={"devices": {"d": {"period_s": 0.2}}})
                await asyncio.sleep(15)
            assert steered.states == ["active", "trial", "active"]
            assert len(site.events("configuration_on_trial")) == 1

    simulated(scenario, tmp_path)


def test_what_is_wrong_is_told_with_its_path_and_changes_nothing(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **DEVICES, **PIPELINES).running() as steered:
            await steered.reported("active")
            before = parts(steered)
            await steered.want(patch={"devices": {"d": {"period_s": "often"}}, "pipelines": {"q": {"device": "nowhere"}}})
            report = await steered.reported("rejected")
            assert [each.path for each in report.errors] == ["devices.d.period_s", "pipelines.q.device"]
            assert all(each.layer == "gateway" for each in report.errors)
            assert parts(steered) == before
            await steered.want(patch={"site": "elsewhere"})
            report = await steered.reported("rejected")
            assert "file on the gateway" in report.errors[0].hint

    simulated(scenario, tmp_path)


def test_a_device_that_the_change_broke_takes_it_back(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **DEVICES, **PIPELINES).running() as steered:
            await steered.reported("active")
            await steered.want(patch={"devices": {"d": {"options": {"lost": 1}}}})
            report = await steered.reported("reverted")
            assert "device d" in report.cause
            assert report.config is not None
            assert "options" not in report.config["devices"]["d"]
            reads = steered.gateway.sources["d"].state.counters.reads
            await until(lambda: steered.gateway.sources["d"].state.counters.reads > reads)

    simulated(scenario, tmp_path)


def test_an_uplink_that_fails_at_the_same_time_takes_nothing_back(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **DEVICES, **PIPELINES).running() as steered:
            await steered.reported("active")
            site.far_end().up = False
            await steered.want(patch={"devices": {"d": {"period_s": 0.3}}})
            await steered.reported("trial")
            await steered.reported("active")

    simulated(scenario, tmp_path)


def test_a_change_of_everything_is_built_anew_and_confirmed(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **DEVICES, **PIPELINES).running() as steered:
            await steered.reported("active")
            await steered.want(patch={"outbox": {"drain_s_max": 2}})
            await steered.reported("active")
            assert steered.gateway.settings.outbox.drain_s_max == 2
        again = Steered(site, **DEVICES, **PIPELINES)
        async with again.running():
            assert again.gateway.settings.outbox.drain_s_max == 2  # it is remembered

    simulated(scenario, tmp_path)


def test_a_change_that_cuts_it_off_is_taken_back_without_a_network(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        control = {"trial_s": 20, "from_network": True}
        async with Steered(site, **DEVICES, **PIPELINES, control=control).running() as steered:
            await steered.reported("active")
            await steered.want(patch={"broker": {"mode": "external", "url": "mqtt://10.9.9.9"}})
            await until(lambda: len(steered.gateways) == 2)
            await until(lambda: len(steered.gateways) == 3)
            report = await steered.reported("reverted")
            assert steered.gateway.settings.broker.mode == "hosted"
            assert "broker" in report.cause

    simulated(scenario, tmp_path)


def test_a_broker_that_answers_is_not_enough_somebody_has_to_speak_there(tmp_path: Path) -> None:
    """At `elsewhere` a broker runs. Nobody is there at first; then somebody says the same document; then a command is given."""

    async def scenario(site: Site) -> None:
        elsewhere = FakeBroker(site.lan, "elsewhere")
        moved = {"broker": {"mode": "external", "url": "mqtt://elsewhere"}, "control": {"trial_s": 20}}
        control = {"trial_s": 20, "from_network": True}
        async with Steered(site, **DEVICES, **PIPELINES, control=control).running() as steered:
            await steered.reported("active")
            await steered.want(revision=1, patch=moved)
            report = await steered.reported("reverted")
            assert "reach: nobody who may steer it has spoken to it on this broker" in report.cause
            assert steered.gateway.settings.broker.mode == "hosted"
            assert not [each for each in site.events("document_said_again") if each["revision"] == 1]

            await steered.want(revision=2, patch=moved)
            await until(lambda: steered.gateway.settings.broker.mode == "external")
            await asyncio.sleep(10)
            assert not site.events("configuration_confirmed")
            document = json.dumps({"revision": 2, "patch": moved}).encode()
            await steered.publish(topics.desired("s", "gw/g"), document, retain=True, at="elsewhere")
            await until(lambda: site.events("configuration_confirmed"))
            assert elsewhere.running

    simulated(scenario, tmp_path)


def test_a_command_is_a_call_too_and_a_rollback_needs_none(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        FakeBroker(site.lan, "elsewhere")
        moved = {"broker": {"mode": "external", "url": "mqtt://elsewhere"}}
        control = {"trial_s": 20, "from_network": True}
        async with Steered(site, **DEVICES, **PIPELINES, control=control).running() as steered:
            await steered.reported("active")
            await steered.want(patch=moved)
            await until(lambda: steered.gateway.settings.broker.mode == "external")
            await asyncio.sleep(2)
            await steered.publish(topics.gateway("s", "g", "cmd", "time"), b'{"id": "1"}', at="elsewhere")
            await until(lambda: site.events("configuration_confirmed"))
            assert steered.gateway.control
            await steered.gateway.control.rollback("alice")
            await until(lambda: len(site.events("configuration_confirmed")) == 2)
            assert steered.gateway.settings.broker.mode == "hosted"

    simulated(scenario, tmp_path)


def test_what_its_own_broker_has_kept_is_no_call(tmp_path: Path) -> None:
    """Its broker moves to another port, with all that it remembers: the very document is retained there."""

    async def scenario(site: Site) -> None:
        control = {"trial_s": 20, "from_network": True}
        async with Steered(site, **DEVICES, **PIPELINES, control=control).running() as steered:
            await steered.reported("active")
            patch = {"broker": {"queued_messages_max": 5_000, "listen": "0.0.0.0"}, "control": {"trial_s": 15}}
            await steered.want(revision=1, patch=patch)
            report = await steered.reported("reverted")
            assert "reach: nobody" in report.cause
            await until(lambda: site.broker.running and steered.gateway.settings.broker.listen == "127.0.0.1")
            await steered.want(revision=2, patch=patch)
            await until(lambda: steered.gateway.settings.broker.listen == "0.0.0.0")
            await asyncio.sleep(2)
            await steered.want(revision=2, patch=patch)
            await steered.reported("active")

    simulated(scenario, tmp_path)


def test_what_a_broker_remembers_without_a_revision_is_no_call_and_a_groups_document_is_one(tmp_path: Path) -> None:
    """Also while the gateway's own document is on trial, so that the group's waits for its turn."""

    async def scenario(site: Site) -> None:
        elsewhere = FakeBroker(site.lan, "elsewhere")
        moved = {"broker": {"mode": "external", "url": "mqtt://elsewhere"}, "control": {"trial_s": 20}}
        control = {"trial_s": 20, "from_network": True}
        async with Steered(site, **DEVICES, **PIPELINES, control=control).running() as steered:
            await steered.reported("active")
            unnumbered = json.dumps({"patch": moved}).encode()
            await steered.publish(topics.desired("s", "gw/g"), unnumbered, retain=True, at="elsewhere")
            await steered.want(patch=moved)
            report = await steered.reported("reverted")
            assert "reach: nobody" in report.cause

            await until(lambda: site.broker.running and steered.gateway.settings.broker.mode == "hosted")
            await steered.want(patch={**moved, "log": {"level": "info"}})
            await until(lambda: steered.gateway.settings.broker.mode == "external")
            await asyncio.sleep(2)
            group = json.dumps({"patch": {"devices": {"d": {"period_s": 0.4}}}}).encode()
            await steered.publish(topics.desired("s", "group/default"), group, at="elsewhere")
            await until(lambda: len(site.events("configuration_confirmed")) == 2)
            assert steered.gateway.settings.devices["d"].period_s == 0.4
            assert elsewhere.running

    simulated(scenario, tmp_path)


def test_a_move_with_canaries_is_refused(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **DEVICES, **PIPELINES, control={"trial_s": 20, "from_network": True}).running() as steered:
            await steered.reported("active")
            patch = {"broker": {"mode": "external", "url": "mqtt://elsewhere"}}
            await steered.want("group/default", revision=1, patch=patch, canaries=["g"])
            report = await steered.reported("rejected")
            assert [each.path for each in report.errors] == ["canaries"]
            assert len(steered.gateways) == 1

    simulated(scenario, tmp_path)


def test_an_invalid_file_starts_with_what_worked_and_takes_a_fix(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **DEVICES, **PIPELINES).running() as steered:
            await steered.reported("active")
        broken = Steered(site, **{**DEVICES, "devices": {"d": plc("x", "y", period_s="often"), "e": plc("z")}}, **PIPELINES)
        async with broken.running() as steered:
            report = await steered.reported("rejected")
            assert report.mode == "safe"
            assert [each.path for each in report.errors] == ["devices.d.period_s"]
            assert [*steered.gateway.sources] == ["d", "e"]  # the last good one runs
            assert steered.gateway.mesh is not None
            assert steered.gateway.mesh.presence.safe  # and its birth says so
            assert health_of(steered) == [("configuration", "degraded")]
            assert report.audit.partition(":")[0].isdigit()
            assert site.events("configuration_fault")
            await steered.want(patch={"devices": {"d": {"period_s": 0.5}}})
            report = await steered.reported("active")
            assert report.mode == "normal"
            assert not steered.gateway.mesh.presence.safe
            assert steered.gateway.mesh.presence.config == report.hash
            assert steered.gateway.settings.devices["d"].period_s == 0.5
            assert health_of(steered) == []

    simulated(scenario, tmp_path)


def health_of(steered: Steered) -> list[tuple[str, str]]:
    """What /health says of the configuration, and as what it stands for it."""
    found = judge(look(steered.gateway, 0))
    return [(each.what, found.status) for each in found.problems if each.what == "configuration"]


def test_without_anything_that_works_there_are_broker_and_control(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, devices={"d": {"adapter": "none"}}).running() as steered:
            report = await steered.reported("rejected")
            assert report.mode == "safe"
            assert not steered.gateway.sources
            assert health_of(steered) == [("configuration", "failed")]
            await steered.want(config={**steered.file, **DEVICES, **PIPELINES})
            report = await steered.reported("active")
            assert report.mode == "normal"
            assert health_of(steered) == []
            await until(lambda: steered.gateway.sources["d"].state.phase == "connected")

    simulated(scenario, tmp_path)


def test_a_crash_loop_of_a_gateway_that_nobody_reaches_goes_on_as_it_is(tmp_path: Path) -> None:
    """Safe mode is for who can be told of it: a line that stands still for good is worse than one that starts again."""

    async def scenario(site: Site) -> None:
        alone = {**DEVICES, **PIPELINES, "broker": {"mode": "none"}}
        for _ in range(8):
            steered = Steered(site, **alone)
            life = steered.begin()
            await until(lambda steered=steered: steered.gateways and steered.gateway.started.is_set())  # type: ignore[misc]
            assert [*steered.gateway.sources] == ["d", "e"]
            steered.lifetime.book.ended = _not  # type: ignore[method-assign]
            steered.lifetime.stop()  # as after a kill -9: the book does not hear of it
            await life

    simulated(scenario, tmp_path)


async def _not() -> None:
    return
