"""Several things want to change a gateway at once, or something fails in the midst of a change: what is said is what runs."""

from __future__ import annotations

import asyncio
import dataclasses
import json
from pathlib import Path
from typing import Any

import pytest
from steered import Steered
from test_commands import Person
from worlds import Site, plc, simulated, until

from edge_runtime.control.book_file import BookError
from edge_runtime.testing.adapter import Faulty
from edge_runtime.world import World

RULES = [{"name": "high", "output": "x.max", "above": 1e9}]
SETTINGS: dict[str, Any] = {
    "devices": {"d": plc("x", "y"), "e": plc("z")},
    "pipelines": {"p": {"device": "d", "window": {"count": 4}, "rules": RULES}, "q": {"device": "e"}},
}


async def settled(steered: Steered, seconds: float = 40.0) -> None:
    """What the book has is what runs."""
    await asyncio.sleep(seconds)
    book, gateway = steered.lifetime.book, steered.gateway
    assert book.on_trial is None
    assert book.active is not None
    said = json.loads(book.active.text)
    running = json.loads(gateway.settings.model_dump_json())
    assert {name: each["period_s"] for name, each in said["devices"].items()} == {
        name: each["period_s"] for name, each in running["devices"].items()
    }
    for name, source in gateway.sources.items():
        assert source._device.period_s == said["devices"][name]["period_s"]


def test_a_restart_and_a_document_at_once(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **SETTINGS).running() as steered:
            await until(lambda: steered.gateway.sources["d"].state.phase == "connected")
            person = Person(steered)
            await asyncio.sleep(0.5)
            for number in range(4):
                await person.send("restart", person.payload(f"r{number}", args={"part": "device d"}))
                await steered.want(patch={"devices": {"d": {"period_s": 0.2 + number / 10}}})
                await asyncio.sleep(0.01)
                await person.send("restart", person.payload(f"s{number}", args={"part": "sink cloud"}))
                await person.send("restart", person.payload(f"t{number}", args={"part": "sink cloud"}))
            await settled(steered)
            assert steered.gateway.settings.devices["d"].period_s == 0.5
            names = [task.get_name() for task in asyncio.all_tasks() if task.get_name().startswith("delivery")]
            assert names == ["delivery cloud"]
            person.close()

    simulated(scenario, tmp_path)


def test_everything_is_built_anew_with_the_settings_of_then(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **SETTINGS).running() as steered:
            await until(lambda: steered.gateway.sources["d"].state.phase == "connected")
            person = Person(steered)
            await asyncio.sleep(0.5)
            await person.send("restart", person.payload(args={"part": "everything"}))
            await asyncio.sleep(0.3)
            await steered.want(patch={"devices": {"d": {"period_s": 0.33}}})
            await until(lambda: len(steered.gateways) == 2)
            await settled(steered)
            assert steered.gateway.settings.devices["d"].period_s == 0.33
            person.close()

    simulated(scenario, tmp_path)


def test_a_bad_document_does_not_take_down_the_good_one_of_another_layer(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **SETTINGS).running() as steered:
            await steered.reported("active")
            await steered.want("group/default", patch={"devices": {"e": {"period_s": 0.7}}})
            await steered.reported("trial")
            await asyncio.sleep(2)
            await steered.want(patch={"devices": {"d": {"options": {"lost": 1}}}})
            await steered.reported("reverted")
            assert steered.gateway.settings.devices["e"].period_s == 0.7
            assert steered.lifetime.book.layers["group/default"].state == "accepted"

    simulated(scenario, tmp_path)


def test_a_document_that_comes_while_the_book_cannot_be_written_is_not_lost(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **SETTINGS).running() as steered:
            await steered.reported("active")
            book = steered.lifetime.book
            propose = book.propose

            async def full(*_: Any, **__: Any) -> int:
                raise BookError("control.db: full", "make room")

            book.propose = full  # type: ignore[method-assign]
            await steered.want(patch={"devices": {"d": {"period_s": 0.4}}})
            await asyncio.sleep(20)
            assert steered.gateway.settings.devices["d"].period_s == 0.1
            assert len(site.events("configuration_not_kept")) == 1
            book.propose = propose  # type: ignore[method-assign]
            await until(lambda: steered.gateway.settings.devices["d"].period_s == 0.4)
            await steered.reported("active")

    simulated(scenario, tmp_path)


class Picky(Faulty):
    refuses = "made"

    def __init__(self, context: Any) -> None:
        super().__init__(context)
        self._asked("made", context.options)

    @classmethod
    def session(cls, options: Any) -> tuple[str, str]:
        cls._asked("session", options)
        return "", ""

    @property
    def redelivers(self) -> bool:
        self._asked("redelivers", self.context.options)
        return False

    @classmethod
    def _asked(cls, what: str, options: Any) -> None:
        if cls.refuses == what and options.late_s == 7.0:
            raise ValueError("21.5")


def picky(site: Site) -> None:
    """From now on its devices of this kind are choosy."""
    world = site.world

    def other() -> World:
        there = world()
        return dataclasses.replace(there, adapters={**there.adapters, "faulty": Picky})

    site.world = other  # type: ignore[method-assign]


@pytest.mark.parametrize("refuses", ["made", "session", "redelivers"])
def test_an_adapter_that_cannot_be_made_is_told_and_hurts_nobody(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    monkeypatch.setattr(Picky, "refuses", refuses)

    async def scenario(site: Site) -> None:
        picky(site)
        async with Steered(site, **SETTINGS).running() as steered:
            await steered.reported("active")
            await steered.want(patch={"devices": {"d": {"options": {"late_s": 7.0}}}})
            report = await steered.reported("rejected")
            assert "cannot be made" in report.cause
            assert "21.5" not in report.cause
            await steered.want(patch={"devices": {"d": {"period_s": 0.5}}})
            await steered.reported("active")
            assert not site.events("service_failed")

    simulated(scenario, tmp_path)


@pytest.mark.parametrize("refuses", ["made", "session", "redelivers"])
def test_one_that_cannot_be_made_at_the_start_is_the_only_device_that_does_not_work(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, refuses: str
) -> None:
    monkeypatch.setattr(Picky, "refuses", refuses)

    async def scenario(site: Site) -> None:
        picky(site)
        wrong = {**SETTINGS["devices"], "other": {**SETTINGS["devices"]["d"], "options": {"late_s": 7.0}}}
        taken = {**SETTINGS["pipelines"], "o": {"device": "other"}}
        async with Steered(site, **{**SETTINGS, "devices": wrong, "pipelines": taken}).running() as steered:
            sources = steered.gateway.sources
            await until(lambda: sources["other"].state.phase == "unusable" and sources["d"].state.phase == "connected")
            assert "cannot be made" in sources["other"].state.cause
            assert "21.5" not in sources["other"].state.cause

    simulated(scenario, tmp_path)


def test_a_device_that_loses_its_pipeline_is_no_reason_to_revert(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **SETTINGS).running() as steered:
            await steered.reported("active")
            await steered.want(patch={"pipelines": {"q": None}})
            await steered.reported("active")
            assert [*steered.gateway.sources] == ["d"]

    simulated(scenario, tmp_path)


def test_a_changed_file_is_not_taken_back_for_an_uplink_that_is_away(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **SETTINGS).running() as steered:
            await steered.reported("active")
        site.far_end().up = False
        devices = {**SETTINGS["devices"], "e": plc("z", period_s=0.9)}
        async with Steered(site, **{**SETTINGS, "devices": devices}).running() as steered:
            await until(lambda: steered.lifetime.book.on_trial is None)
            assert steered.gateway.settings.devices["e"].period_s == 0.9
            assert steered.said[-1].mode == "normal"

    simulated(scenario, tmp_path)


def test_a_rollback_is_not_taken_back_for_an_uplink_that_fails_meanwhile(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **SETTINGS).running() as steered:
            await steered.reported("active")
            await steered.want(patch={"devices": {"e": {"period_s": 0.9}}})
            await steered.reported("active")
            person = Person(steered)
            await asyncio.sleep(0.5)
            site.far_end().up = False
            assert (await person.ask("rollback")).outcome == "done"
            await until(lambda: steered.lifetime.book.on_trial is None)
            assert steered.gateway.settings.devices["e"].period_s == 0.1
            person.close()

    simulated(scenario, tmp_path)


def test_a_document_without_a_revision_counts_on(tmp_path: Path) -> None:
    """A broker that comes back with the one before it changes nothing."""

    async def scenario(site: Site) -> None:
        async with Steered(site, **SETTINGS).running() as steered:
            await steered.reported("active")
            for document in ({"revision": 6}, {"revision": 7}, {}):
                period_s = 0.2 + len(steered.said) / 100
                await steered.want(**document, patch={"devices": {"d": {"period_s": period_s}}})
                await steered.reported("active")
            await steered.want(revision=6, patch={"devices": {"d": {"period_s": 9.0}}})
            await asyncio.sleep(15)
            assert steered.gateway.settings.devices["d"].period_s == period_s

    simulated(scenario, tmp_path)


def test_what_would_lock_everybody_out_is_refused(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **SETTINGS).running() as steered:
            await steered.reported("active")
            await steered.want(patch={"broker": {"listen": "0.0.0.0"}})
            report = await steered.reported("rejected")
            assert "nobody could change it again" in report.errors[0].message
            await steered.want(patch={"broker": {"mode": "none"}})
            await steered.reported("rejected")

    simulated(scenario, tmp_path)


def test_an_outbox_that_does_not_open_is_taken_back(tmp_path: Path) -> None:
    """Control and judge do not wait for the disk: or a cap that is too small would be the end of it."""

    async def scenario(site: Site) -> None:
        async with Steered(site, **SETTINGS).running() as steered:
            await steered.reported("active")
            stuck: list[object] = []

            async def never(*_: Any) -> None:
                stuck.append(True)
                await asyncio.Event().wait()

            def watch(gateway: Any) -> None:
                steered.gateways.append(gateway)
                if gateway.settings.outbox.drain_s_max == 3:
                    gateway.store.open = never

            steered.lifetime.watch = watch
            await steered.want(patch={"outbox": {"drain_s_max": 3}})
            report = await steered.reported("reverted")
            assert stuck
            assert "outbox" in report.cause
            await until(lambda: steered.gateway.settings.outbox.drain_s_max == 1 and steered.gateway.started.is_set())

    simulated(scenario, tmp_path)


def test_a_newer_document_that_waits_for_its_turn_is_not_said_over(tmp_path: Path) -> None:
    """One layer is on trial, and everything was built anew for it: another layer's new document waits, on a new connection, on
    which the gateway says what the broker misses."""

    async def scenario(site: Site) -> None:
        async with Steered(site, **SETTINGS).running() as steered:
            await steered.reported("active")
            await steered.want("group/default", revision=1, patch={"devices": {"d": {"period_s": 0.6}}})
            await until(lambda: site.events("configuration_confirmed"))
            await steered.want(revision=1, patch={"outbox": {"drain_s_max": 2}})
            await until(lambda: len(steered.gateways) == 2 and site.broker.running and steered.gateway.control.trying.judge)  # type: ignore[union-attr]
            await steered.want("group/default", revision=2, patch={"devices": {"d": {"period_s": 0.7}}})
            await until(lambda: len(site.events("configuration_confirmed")) == 3)
            assert not site.events("document_said_again")
            assert steered.gateway.settings.devices["d"].period_s == 0.7

    simulated(scenario, tmp_path)


def test_a_good_document_does_not_fall_with_a_bad_one_for_which_all_was_built_anew(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **SETTINGS).running() as steered:
            await steered.reported("active")
            await steered.want(revision=1, patch={"outbox": {"drain_s_max": 2}, "devices": {"d": {"options": {"lost": 1}}}})
            await until(lambda: len(steered.gateways) == 2 and site.broker.running)
            await asyncio.sleep(1)
            await steered.want("group/default", revision=1, patch={"devices": {"e": {"period_s": 0.7}}})
            await until(lambda: site.events("configuration_confirmed"))
            (reverted,) = site.events("configuration_reverted")
            assert "lost on purpose" in reverted["cause"]
            assert steered.gateway.settings.devices["e"].period_s == 0.7
            assert steered.gateway.settings.outbox.drain_s_max == 1

    simulated(scenario, tmp_path)
