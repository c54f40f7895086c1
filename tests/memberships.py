"""Gateways of one site on the simulated network that have nothing but a Membership each.

async def scenario(site: Site) -> None:
    site.start("gw-1", "gw-2")
    await site.settled()             # one host, everybody on it
simulate(scenario, seed=3)
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

from edge_runtime.bus import presence, topics
from edge_runtime.bus.presence import Birth
from edge_runtime.config import Broker, Config, Mesh
from edge_runtime.mesh import election
from edge_runtime.mesh.link import Link
from edge_runtime.mesh.membership import Membership
from edge_runtime.ports import Address, Message, Will
from edge_runtime.ports_mesh import Announcement, Endpoint
from edge_runtime.testing.discovery import Air, FakeDiscovery
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.host import FakeHost, HostFaults
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.loop import SeededDice, VirtualClock, VirtualLoop, run
from edge_runtime.testing.network import FakeBroker

SITE = "plant"
SETTLED_S_MAX = 60.0


class Log:
    """What was logged, for tests."""

    def __init__(self) -> None:
        self.events: list[str] = []

    def info(self, event: str, **_: Any) -> None:
        self.events.append(event)

    warning = error = info


class Births:
    """The least that a membership wants of presence: says a birth on every connection, and hears the others'."""

    def __init__(self, link: Link, settings: Config) -> None:
        self.link, self.settings = link, settings
        self.endpoints: tuple[Endpoint, ...] = ()
        self.heard: dict[str, Birth] = {}
        link.on("status", self._on_status)
        link.joined.append(self._say)

    def birth(self, run: str, online: bool) -> Birth:
        return Birth(
            site=self.link.site, gateway=self.link.gateway, instance=self.link.instance, online=online, run=run,
            rank=election.rank(self.settings), may_host=election.may_host(self.settings), endpoints=self.endpoints,
        )  # fmt: skip

    def will(self, run: str) -> Will:
        return Will(topics.gateway(self.link.site, self.link.gateway, "status"), presence.pack(self.birth(run, False)))

    def alive(self) -> list[Birth]:
        return [each for each in self.heard.values() if each.online and each.gateway != self.link.gateway]

    async def _say(self) -> None:
        assert self.link.home is not None
        self.heard.clear()
        birth = self.birth(self.link.home.run, True)
        await self.link.send(self.will("").topic, presence.pack(birth), qos=1, retain=True)

    def _on_status(self, sender: str, message: Message) -> None:
        birth = presence.unpack(message.payload, Birth)
        if self.link.home is not None and (not message.retain or birth.run == self.link.home.run):
            self.heard[sender] = birth


class Node:
    """One gateway, from its start to its kill."""

    def __init__(
        self, site: Site, name: str, life: int, broker: dict[str, Any], mesh: dict[str, Any], site_name: str,
        wear: Callable[[Address], Address],
    ) -> None:  # fmt: skip
        loop = site.loop
        self._site = site
        self.fence = Fence(name)
        self.hostings = 0
        """Times that it tried to host."""
        self.log = Log()
        fields = {"mode": "auto", "listen": "0.0.0.0", **broker}
        self.settings = Config.model_construct(
            site=site_name, gateway=name, broker=Broker.model_validate(fields), mesh=Mesh.model_validate(mesh)
        )
        port = int(self.settings.broker.url.rpartition(":")[2])
        self.broker = site.brokers.setdefault((name, port), FakeBroker(site.lan, name, port, running=False))
        clock = VirtualClock(loop, fence=self.fence)
        dice = SeededDice(loop.rng(f"{name}/{life}"), node=f"{name}/{life}", fence=self.fence)
        instance = dice.token()
        self.link = Link(site_name, name, instance, self.log)
        self.births = Births(self.link, self.settings)
        endpoints = (Endpoint(name, port),)
        self.discovery = FakeDiscovery(site.air, self.fence)
        if self.settings.mesh is not None and self.settings.mesh.discovery == "off":
            self.discovery.hear = lambda *_: None  # type: ignore[method-assign]
            self.discovery._open, self.discovery.open = False, self._not_announced  # type: ignore[method-assign]
            self.discovery.announce = self._not_announced  # type: ignore[method-assign]
        self.membership = Membership(
            self.settings,
            Announcement(site=site_name, gateway=name, instance=instance, role="guest", endpoints=endpoints),
            self.link, site.lan.bus(self.fence), self.discovery,
            self._new_host,
            clock, dice, self.log, self.births.will, self.births.alive, wear,
        )  # fmt: skip
        self.births.endpoints = self.membership.endpoints
        self.task = self.fence.start(self.membership.run(), name="membership")

    def _new_host(self) -> FakeHost:
        self.hostings += 1
        return FakeHost(self.broker, self.fence, self._site.loop.rng(f"{self.fence.node}/host"), self._site.host_faults)

    async def _not_announced(self, _: Announcement) -> None: ...

    @property
    def host(self) -> str:
        """Of the broker that it is on; "": on none."""
        return self.membership.state.host

    @property
    def hosts(self) -> bool:
        return self.membership.state.role == "host"


class Site:
    def __init__(self, **air: Any) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop = loop
        self.lan = Lan(loop)
        self.air = Air(self.lan, **air)
        self.host_faults = HostFaults()
        self.brokers: dict[tuple[str, int], FakeBroker] = {}
        self.nodes: dict[str, Node] = {}
        self.lives = 0

    def start(
        self, *names: str, broker: dict[str, Any] | None = None, site: str = SITE,
        wear: Callable[[Address], Address] = lambda each: each, **mesh: Any,
    ) -> None:  # fmt: skip
        for name in names:
            self.lives += 1
            self.nodes[name] = Node(self, name, self.lives, broker or {}, mesh, site, wear)

    def kill(self, name: str) -> None:
        """kill -9 of the gateway; its broker dies with it."""
        self.nodes.pop(name).fence.fall()

    @property
    def now_s(self) -> float:
        return self.loop.time()

    @property
    def hosts(self) -> list[str]:
        return [name for name, node in self.nodes.items() if node.hosts]

    def agreed(self, *names: str) -> bool:
        """These are on one broker, which one of them hosts, and no other of them hosts."""
        group = [self.nodes[name] for name in (names or self.nodes)]
        found = sorted({node.host for node in group})
        hosting = [node.membership.candidates.me.name for node in group if node.hosts]
        return len(found) == 1 and found == hosting

    async def settled(self, *names: str, within_s: float = SETTLED_S_MAX) -> float:
        """Waits until they agree; returns how long that took."""
        return await self.until(lambda: self.agreed(*names), within_s, lambda: self.report())

    async def until(self, true: Callable[[], bool], within_s: float, report: Callable[[], str]) -> float:
        began_s = self.now_s
        while not true():
            assert self.now_s - began_s <= within_s, f"not within {within_s} s: {report()}"
            await asyncio.sleep(0.05)
        return self.now_s - began_s

    async def stays(self, for_s: float, *names: str) -> None:
        """They go on to agree, on the same host."""
        host = self.nodes[(names or tuple(self.nodes))[0]].host
        end_s = self.now_s + for_s
        while self.now_s < end_s:
            assert self.agreed(*names), self.report()
            await asyncio.sleep(0.1)
        assert self.nodes[(names or tuple(self.nodes))[0]].host == host

    def report(self) -> str:
        return ", ".join(f"{name}: {'HOST' if node.hosts else 'on'} {node.host or '-'}" for name, node in self.nodes.items())


def simulate(scenario: Callable[[Site], Awaitable[Any]], *, seed: int = 1, **air: Any) -> Any:
    async def main() -> Any:
        return await scenario(Site(**air))

    return run(main, seed=seed)
