"""What was accepted is there when a change is taken back; a smaller cap stops no start and takes no acknowledged sample."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from steered import Steered
from worlds import Site, box, plc, simulated, until

from edge_runtime.records import Lane

MIB = 2**20
LOST = {"e": {"options": {"lost": 1}}}
"""Makes a trial fail: the change is taken back."""
OTHER_DEVICE = {"p": {"device": "e", "points": ["z"]}}
LONG = "x" * 3_000


def settings(count: int = 50, **more: Any) -> dict[str, Any]:
    pipeline = {"device": "m", "points": ["a"], "window": {"count": count}}
    return {"devices": {"m": box("a", "b"), "e": plc("z")}, "pipelines": {"p": pipeline, "q": {"device": "e"}}, **more}


def rows(first: int, last: int, text: str | float = 0.0) -> list[dict[str, Any]]:
    return [{"a": float(number), "b": text} for number in range(first, last)]


def windows(site: Site) -> list[str]:
    """First and last row of each."""
    return [each["window"].rsplit(":", 1)[1] for each in site.bodies(Lane.RESULT, "p")]


def journal(steered: Steered) -> dict[str, int]:
    return {device: count for device, count in steered.gateway.store.journal_waiting.items() if count}


@pytest.mark.parametrize("anew", [False, True], ids=["in part", "everything built anew"])
def test_a_pipeline_that_read_another_device_on_trial_goes_on_where_it_was(tmp_path: Path, anew: bool) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **settings()).running() as steered:
            await steered.reported("active")
            site.post(*rows(0, 30))
            await site.acknowledged(30)
            more = {"outbox": {"drain_s_max": 2}} if anew else {}
            await steered.want(patch={"pipelines": OTHER_DEVICE, "devices": LOST, **more})
            await until(lambda: steered.gateway.settings.pipelines["p"].device == "e")
            await asyncio.sleep(2)
            assert journal(steered) == {"m": 30}
            await steered.reported("reverted")
            await until(lambda: steered.gateway.started.is_set())
            site.post(*rows(30, 100))
            await until(lambda: len(windows(site)) == 2)
            assert windows(site) == ["1-50", "51-100"]

    simulated(scenario, tmp_path)


def test_another_reader_of_the_device_forgets_nothing_of_it_meanwhile(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        base = settings()
        base["pipelines"]["fast"] = {"device": "m", "points": ["b"], "window": {"count": 1}}
        async with Steered(site, **base).running() as steered:
            await steered.reported("active")
            site.post(*rows(0, 30))
            await site.acknowledged(30)
            await steered.want(patch={"pipelines": OTHER_DEVICE, "devices": LOST})
            await until(lambda: steered.gateway.settings.pipelines["p"].device == "e")
            site.post(*rows(30, 100))
            await site.acknowledged(100)
            await steered.reported("reverted")
            await until(lambda: len(windows(site)) == 2)
            assert windows(site) == ["1-50", "51-100"]

    simulated(scenario, tmp_path)


def test_what_only_the_former_device_needed_goes_when_the_change_is_confirmed(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **settings()).running() as steered:
            await steered.reported("active")
            site.post(*rows(0, 30))
            await site.acknowledged(30)
            await steered.want(patch={"pipelines": OTHER_DEVICE})
            await until(lambda: steered.gateway.settings.pipelines["p"].device == "e")
            assert await steered.gateway.store.position("p", "m")
            await steered.reported("active")
            await until(lambda: not journal(steered))
            assert await steered.gateway.store.position("p", "m") is None

    simulated(scenario, tmp_path)


def raw(**outbox: Any) -> dict[str, Any]:
    """Every sample is a record."""
    base = settings(outbox={"drain_s_max": 1, **outbox})
    base["pipelines"]["p"] = {"device": "m"}
    base["pipelines"]["q"]["window"] = {"count": 10_000}
    return base


def test_a_smaller_cap_on_trial_evicts_nothing_before_it_is_confirmed(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **raw(size_bytes_max=16 * MIB)).running() as steered:
            await steered.reported("active")
            site.far_end().up = False
            site.post(*rows(0, 300, LONG))
            await site.acknowledged(300)
            await steered.want(patch={"outbox": {"size_bytes_max": MIB}, "devices": LOST})
            await until(lambda: steered.gateway.settings.outbox.size_bytes_max == MIB and steered.gateway.started.is_set())
            assert steered.gateway.store.size_bytes_max == 16 * MIB
            site.post(*rows(300, 305))
            await steered.reported("reverted")
            site.far_end().up = True
            await until(lambda: len(site.bodies(Lane.SAMPLE, "p")) == 305)
            assert not site.bodies(Lane.GAP)

    simulated(scenario, tmp_path)


def test_a_smaller_cap_holds_when_it_is_confirmed_and_what_goes_is_told(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        async with Steered(site, **raw(size_bytes_max=16 * MIB)).running() as steered:
            await steered.reported("active")
            site.far_end().up = False
            site.post(*rows(0, 300, LONG))
            await site.acknowledged(300)
            await asyncio.sleep(1)
            await steered.want(patch={"outbox": {"size_bytes_max": MIB}})
            await steered.reported("active")
            await until(lambda: steered.gateway.store.size_bytes_max == MIB and steered.gateway.store.news.lost)
            site.far_end().up = True
            await until(lambda: site.bodies(Lane.GAP) and not steered.gateway._undelivered())
            gone = sum(gap["count"] for gap in site.bodies(Lane.GAP) if gap["lane"] == "sample")
            assert 0 < gone < 300
            assert len(site.bodies(Lane.SAMPLE, "p")) + gone == 300

    simulated(scenario, tmp_path)


def test_a_start_under_a_cap_that_the_journal_alone_exceeds_makes_its_windows(tmp_path: Path) -> None:
    """They were acknowledged to the source: nobody else has them."""

    async def scenario(site: Site) -> None:
        big = {"drain_s_max": 1, "size_bytes_max": 64 * MIB}
        async with Steered(site, **settings(3_000, outbox=big)).running() as steered:
            await steered.reported("active")
            site.post(*rows(0, 700, LONG))
            await site.acknowledged(700)
        (tmp_path / "data" / "control.db").unlink()  # as of another configuration file: no trial
        async with Steered(site, **settings(100, outbox={**big, "size_bytes_max": MIB})).running() as steered:
            assert steered.gateway.store.size_bytes_max == MIB
            await until(lambda: len(windows(site)) == 7)
            assert windows(site) == [f"{first}-{first + 99}" for first in range(1, 700, 100)]
            assert site.events("outbox_over_cap")[0]["over_bytes"] > MIB
            await until(lambda: not journal(steered))
            site.post(*rows(700, 800))
            await until(lambda: len(windows(site)) == 8)
            assert site.events("outbox_within_cap")
            assert not [gap for gap in site.bodies(Lane.GAP) if gap["lane"] == "result"]

    simulated(scenario, tmp_path)


def test_a_confirmed_smaller_cap_does_not_stop_the_gateway(tmp_path: Path) -> None:
    """The journal of an open window is larger than the new cap: the window can never be made, and is discarded."""

    async def scenario(site: Site) -> None:
        async with Steered(site, **settings(3_000, outbox={"drain_s_max": 1, "size_bytes_max": 64 * MIB})).running() as steered:
            await steered.reported("active")
            site.post(*rows(0, 700, LONG))
            await site.acknowledged(700)
            await steered.want(patch={"outbox": {"size_bytes_max": MIB}})
            await until(lambda: len(steered.gateways) == 2 and steered.gateway.started.is_set())
            assert journal(steered) == {"m": 700}
            await steered.reported("active")
            site.post(*rows(700, 710))
            await site.acknowledged(710)
            assert site.events("window_discarded")
            assert steered.gateway.store.state.trouble is None

    simulated(scenario, tmp_path)
