"""A gateway that joins a site: what nobody has signed does not count there any more."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import trusted
from steered import Steered
from worlds import Site, plc, simulated, until

PARTS = {"devices": {"d": plc("x"), "e": plc("z")}, "pipelines": {"p": {"device": "d"}, "q": {"device": "e"}}}


def test_unsigned_layers_are_dropped_when_a_gateway_joins(tmp_path: Path) -> None:
    plant = trusted.Site(tmp_path / "plant", "s")
    identity = plant.member("g")

    async def scenario(site: Site) -> None:
        async with Steered(site, **PARTS).running() as steered:
            await steered.reported("active")
            for target, patch in (("gw/g", {"d": {"period_s": 0.5}}), ("group/default", {"e": {"period_s": 0.25}})):
                await steered.want(target, revision=1, patch={"devices": patch})
                await steered.reported("active")
            assert steered.gateway.settings.devices["d"].period_s == 0.5
        shutil.copytree(identity.folder, site.folder / "data" / "identity")
        async with Steered(site, **PARTS).running() as steered:
            await until(lambda: list(steered.lifetime.book.base) == ["file"] and not steered.lifetime.book.on_trial)
            await asyncio.sleep(5)
            devices = steered.gateway.settings.devices
            assert {name: devices[name].period_s for name in "de"} == {"d": 0.1, "e": 0.1}  # as the file has it
            assert {each.name: each.state for each in steered.said[-1].layers if each.name != "file"} == {
                "gateway": "reverted", "group/default": "reverted"
            }  # fmt: skip
            assert "nobody has signed it" in repr(steered.said)
            said = len(site.events("configuration_withdrawn"))
        async with Steered(site, **PARTS).running() as steered:
            await asyncio.sleep(60)
            assert len(site.events("configuration_withdrawn")) == said == 2

    simulated(scenario, tmp_path)
