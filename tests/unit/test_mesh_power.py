"""`mesh.power` counts for the gateway's own decisions as it does for what its peers hear."""

from __future__ import annotations

import asyncio
from typing import Any

import pytest
import structlog

from edge_runtime.board.system import SystemClock, SystemDice
from edge_runtime.bus.broker import PahoBus
from edge_runtime.config import Config
from edge_runtime.mesh.discovery import NoDiscovery
from edge_runtime.mesh.mesh import Mesh
from edge_runtime.ports import Host
from edge_runtime.ports_mesh import Offer, Vitals
from edge_runtime.records import Inference, Tensor


class Nothing:
    """ports_mesh.Executor"""

    def offers(self) -> list[Offer]:
        return []

    def offer(self, model: str) -> None: ...

    def withdraw(self) -> None: ...

    def resume(self) -> None: ...

    async def execute(self, model: str, tensor: Tensor) -> Inference:
        raise AssertionError(model)


class Here:
    """ports.Worker: at once."""

    def idle(self) -> bool:
        return True

    async def run(self, function: Any, *args: Any) -> Any:
        return function(*args)

    def close(self) -> None: ...

    def abandon(self) -> None: ...


def mesh(power: str, machine: Vitals) -> Mesh:
    device = {"adapter": "replay", "options": {"file": "f.csv"}, "points": [{"name": "a", "column": "a"}]}
    settings = Config.model_validate({"site": "s", "gateway": "g", "devices": {"d": device}, "mesh": {"power": power}})

    def new_host() -> Host:
        raise AssertionError

    given: dict[str, Any] = {"bus": PahoBus(), "discovery": NoDiscovery(), "clock": SystemClock(), "dice": SystemDice()}
    return Mesh(
        settings, **given, new_host=new_host, reachable=tuple, executor=Nothing(), needs=list, read_vitals=lambda: machine,
        new_worker=Here,
        outbox_depth=lambda: 0, version="1", log=structlog.get_logger(),
    )  # fmt: skip


@pytest.mark.parametrize(
    ("power", "machine", "battery"),
    [("auto", True, True), ("auto", False, False), ("battery", False, True), ("mains", True, False)],
)
def test_its_own_windows_are_placed_with_the_power_that_the_configuration_says(power: str, machine: bool, battery: bool) -> None:
    async def look() -> tuple[Vitals, Vitals]:
        one = mesh(power, Vitals(battery=machine, hot=True))
        watching = asyncio.create_task(one.services["mesh vitals"]())
        await asyncio.sleep(0)
        await asyncio.sleep(0)
        watching.cancel()
        return one.vitals, one.placing._vitals()

    of_the_heartbeat, of_the_decisions = asyncio.run(look())
    assert of_the_heartbeat == of_the_decisions == Vitals(battery=battery, hot=True)
