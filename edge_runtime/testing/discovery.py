"""mDNS in the simulator: announcements on a Lan that come late, get lost, are repeated, and outlive those who made them.

    air = Air(lan, lost=0.2)
    discovery = FakeDiscovery(air, fence)    # ports_mesh.Discovery of the node that the fence is named after

It does what mDNS does where that hurts: a killed gateway stays in the others' caches until `ttl_s`, a goodbye may be lost, and
what was announced during a cut is heard only with the next repetition. It passes the same DiscoverySuite as the real one.
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence

import msgspec

from edge_runtime.ports_mesh import Announcement
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.lan import Lan


class Heard(msgspec.Struct, frozen=True):
    number: int
    announcement: Announcement | None
    """None: it said goodbye."""
    until_s: float


class Air:
    """The multicast of a Lan."""

    def __init__(
        self,
        lan: Lan,
        *,
        delay_s: tuple[float, float] = (0.002, 0.3),
        lost: float = 0.0,
        repeat_s: tuple[float, float] = (1.0, 3.0),
        ttl_s: float = 15.0,
    ) -> None:
        self.delay_s, self.lost, self.repeat_s, self.ttl_s = delay_s, lost, repeat_s, ttl_s
        self.packets = 0
        self._lan = lan
        self._rng = lan.loop.rng("air")
        self._members: dict[FakeDiscovery, None] = {}

    @property
    def now_s(self) -> float:
        return self._lan.loop.time()

    def join(self, member: FakeDiscovery) -> None:
        """It asks, the others answer."""
        for other in self._members:
            self._tell(other, member)
        self._members[member] = None
        self._again(member)

    def leave(self, member: FakeDiscovery) -> None:
        self._members.pop(member, None)

    def say(self, member: FakeDiscovery) -> None:
        for other in self._members:
            if other is not member:
                self._tell(member, other)

    def _tell(self, member: FakeDiscovery, other: FakeDiscovery) -> None:
        heard, instance = member.says(), member.instance
        self.packets += 1
        self._lan.loop.outside(self._rng.uniform(*self.delay_s), self._arrive, member.node, other, instance, heard)

    def _arrive(self, source: str, other: FakeDiscovery, instance: str, heard: Heard) -> None:
        if self._lan.reaches(source, other.node) and self._rng.random() >= self.lost:
            other.hear(instance, heard)

    def _again(self, member: FakeDiscovery) -> None:
        if member in self._members:
            member.sweep()
            self.say(member)
            self._lan.loop.outside(self._rng.uniform(*self.repeat_s), self._again, member)


class FakeDiscovery:
    """ports_mesh.Discovery. An endpoint without a host gets the node's name, as the real one fills in the sender's address."""

    def __init__(self, air: Air, fence: Fence) -> None:
        self.changed = asyncio.Event()
        self.node = fence.node
        self._air, self._fence = air, fence
        self._mine: Announcement | None = None
        self._number = 0
        self._instance = ""
        self._heard: dict[str, Heard] = {}
        self._told: Sequence[Announcement] = []
        self._open = False

    # --- ports_mesh.Discovery

    async def open(self, mine: Announcement) -> None:
        await self._fence.passage()
        self._mine, self._instance, self._open = self._filled(mine), mine.instance, True
        self._number += 1
        self._fence.on_fall.append(self._leave)
        self._air.join(self)

    async def announce(self, mine: Announcement) -> None:
        await self._fence.passage()
        assert mine.instance == self._instance, "another instance is another process"
        self._mine = self._filled(mine)
        self._number += 1
        self._air.say(self)

    def found(self) -> Sequence[Announcement]:
        now_s, site = self._air.now_s, self._mine.site if self._mine else ""
        alive = [heard.announcement for heard in self._heard.values() if heard.until_s > now_s and heard.announcement is not None]
        return sorted((each for each in alive if each.site == site), key=lambda each: (each.gateway, each.instance))

    async def close(self) -> None:
        await self._fence.passage()
        if self._open:
            self._open = False
            self._mine = None
            self._number += 1
            self._air.say(self)
            self._leave()
            self._fence.on_fall.remove(self._leave)

    # --- for the air

    @property
    def instance(self) -> str:
        return self._instance

    def says(self) -> Heard:
        return Heard(self._number, self._mine, self._air.now_s + self._air.ttl_s)

    def hear(self, instance: str, heard: Heard) -> None:
        known = self._heard.get(instance)
        if known is not None and known.number > heard.number:
            return  # it was overtaken
        self._heard[instance] = heard
        self.sweep()

    def sweep(self) -> None:
        """Forgets what was not repeated."""
        now_s = self._air.now_s
        for instance in [instance for instance, heard in self._heard.items() if heard.until_s <= now_s]:
            del self._heard[instance]
        found = self.found()
        if found != self._told:
            self._told = found
            self.changed.set()

    # --- inside

    def _leave(self) -> None:
        self._air.leave(self)

    def _filled(self, mine: Announcement) -> Announcement:
        endpoints = tuple(msgspec.structs.replace(each, host=each.host or self.node) for each in mine.endpoints)
        return msgspec.structs.replace(mine, endpoints=endpoints)
