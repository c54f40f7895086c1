"""Gateways of a site with an authority on the simulated network, each with as much as keeps its roster and its certificate.

async def scenario(plant: Plant) -> None:
    press = plant.start("press")
    await plant.settled()
simulated(scenario, tmp_path)
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any

from trusted import NOW_S, Site

from edge_runtime.bus import topics
from edge_runtime.control.audit import Entry
from edge_runtime.control.keeping import Keeping
from edge_runtime.control.renewing import Renewing
from edge_runtime.mesh.link import Home, Link
from edge_runtime.ports import Address, BrokerError
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.loop import VirtualLoop, run
from edge_runtime.testing.network import FakeBroker
from edge_runtime.testing.node import InlineWorker, SeededDice, VirtualClock
from edge_runtime.trust.identity import Identity

AGAIN_S = 0.5
SETTLED_S = 10.0
YEAR_S = 365 * 86_400


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **words: Any) -> None:
        self.lines.append((event, words))

    warning = error = info

    def is_enabled_for(self, _level: int) -> bool:
        return False

    def events(self) -> list[str]:
        return [event for event, _ in self.lines]

    def count(self, event: str) -> int:
        return self.events().count(event)


class Gateway:
    def __init__(self, plant: Plant, identity: Identity, broker: FakeBroker) -> None:
        loop, name = plant.loop, identity.name
        self.identity, self.log, self.audit = identity, Log(), list[Entry]()
        self.broker = broker
        self.clock = VirtualClock(loop, wall_offset_ns=NOW_S * 10**9)
        self.worker = InlineWorker(loop.rng(f"{name}/worker"))
        dice = SeededDice(loop.rng(name), node=name)
        self.link = Link(plant.site.name, name, f"{name}1", self.log)
        self.refuses_us: BrokerError | None = None
        self.keeping = Keeping(
            self.link, identity, self.audit.append, lambda: self.worker, dice, self.log, lambda: self.refuses_us
        )  # fmt: skip
        self.renewing = Renewing(self.link, identity, self.audit.append, lambda: self.worker, self.clock, self.log)
        self.keeping.changed.append(self.renewing.look)
        self.link.joined += [self.keeping.joined, self.renewing.joined]
        self._bus = plant.lan.bus(Fence(name))
        self.connections = 0
        self.tasks = [asyncio.create_task(each(), name=name) for each in (self.keeping.run, self.renewing.run, self._stay)]

    async def _stay(self) -> None:
        """On its broker."""
        while True:
            with contextlib.suppress(BrokerError):
                address = Address(host=self.broker.node)
                connection = await self._bus.connect(address)
                self.connections += 1
                await self.link.serve(connection, Home(address))
            await asyncio.sleep(AGAIN_S)


class Plant:
    def __init__(self, folder: Path) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop, self.lan, self.site = loop, Lan(loop), Site(folder)
        self.broker = FakeBroker(self.lan)
        self.published: list[tuple[str, bytes]] = []
        """All that was published, in order."""

        def note(connection: Any, stored: Any, mid: int, on_publish: Any = self.broker.on_publish) -> None:
            self.published.append((stored.topic, stored.payload))
            on_publish(connection, stored, mid)

        self.broker.on_publish = note  # type: ignore[method-assign]

    def start(self, name: str, broker: FakeBroker | None = None) -> Gateway:
        return Gateway(self, self.site.member(name), broker or self.broker)

    async def settled(self, seconds: float = SETTLED_S) -> None:
        await asyncio.sleep(seconds)

    @property
    def kept(self) -> bytes:
        """The roster that the broker has."""
        found = self.broker.retained.get(topics.roster(self.site.name))
        return found.payload if found else b""

    def rosters(self) -> int:
        """That were said on the broker."""
        return sum(topic == topics.roster(self.site.name) for topic, _ in self.published)

    async def say(self, topic: str, payload: bytes) -> None:
        """By somebody else."""
        connection = await self.lan.bus(Fence("somebody")).connect(Address(host=self.broker.node))
        await connection.publish(topic, payload, qos=1, retain=True)
        await connection.close()

    async def say_roster(self, payload: bytes) -> None:
        await self.say(topics.roster(self.site.name), payload)


def simulated(scenario: Callable[[Plant], Awaitable[None]], folder: Path, seed: int = 1) -> None:
    async def main() -> None:
        await scenario(Plant(folder))

    run(main, seed=seed)
