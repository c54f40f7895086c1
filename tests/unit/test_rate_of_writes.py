"""`every_s_min` of a point holds over restarts of its device, and of everything in the process."""

from __future__ import annotations

import asyncio
from pathlib import Path

import pytest
from steered import Steered
from test_commands import SPEED, Person, device, settings
from worlds import Site, simulated, until

from edge_runtime.sources import writing


@pytest.mark.parametrize("part", ["device d", "everything"])
def test_a_restart_lets_nobody_write_faster(tmp_path: Path, part: str) -> None:
    base = settings()
    base["devices"]["d"]["points"][1] = {**SPEED, "write": {"low": 0, "high": 100, "every_s_min": 60}}

    async def scenario(site: Site) -> None:
        async with Steered(site, **base).running() as steered:
            await until(lambda: steered.gateway.sources["d"].state.phase == "connected")
            person = Person(steered)
            await until(lambda: person.steered.site.clock.mono_ns() > 10**9)
            try:
                assert (await person.write(10)).outcome == "verified"
                before = steered.gateway.sources["d"]
                assert (await person.ask("restart", "restart", args={"part": part})).outcome == "done"
                await until(lambda: steered.gateway.sources.get("d") not in (None, before))
                await until(lambda: steered.gateway.sources["d"].state.phase == "connected" and site.broker.running)
                person.close()
                person = Person(steered)  # the broker may be another one
                await asyncio.sleep(5)
                reply = await person.write(20, "two")
                assert (reply.outcome, "at most every 60 s" in reply.cause) == ("refused", True)
                assert not device(steered).received
                since_ns = site.clock.mono_ns()
                await until(lambda: site.clock.mono_ns() - since_ns > 60 * 10**9)
                assert (await person.write(20, "three")).outcome == "verified"
            finally:
                person.close()

    simulated(scenario, tmp_path)


def test_what_is_remembered_is_bounded(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(writing, "WRITES_MAX", 2)
    writes = writing.Writes()
    for device_name, now_ns in (("a", 1), ("b", 2), ("a", 3), ("c", 4)):
        writes.note(device_name, "speed", now_ns)
    assert [writes.last_ns(name, "speed") for name in ("a", "b", "c")] == [3, None, 4]
