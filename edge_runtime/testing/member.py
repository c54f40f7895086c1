"""One gateway of a simulated fleet: gateway.py's own composition, and what outlives its lives (its files, the machine that it
reads, the broker's program, its clock)."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

from edge_runtime.config import AnySink, Config
from edge_runtime.gateway import Gateway
from edge_runtime.mesh import election
from edge_runtime.mesh.discovery import NoDiscovery
from edge_runtime.mesh.mesh import Mesh
from edge_runtime.ports_mesh import Endpoint
from edge_runtime.testing.discovery import Air, FakeDiscovery
from edge_runtime.testing.disk import FaultyDisk
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.host import FakeHost, HostFaults
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.loop import InlineWorker, SeededDice, VirtualClock
from edge_runtime.testing.mailbox import Mailbox
from edge_runtime.testing.model import FakeModels
from edge_runtime.testing.network import FakeBroker
from edge_runtime.testing.sink import FakeReceiver, FakeSink, Faults
from edge_runtime.world import World

PORT = 1883
SITE = "sim"
AWAY_S = (0.0, 2.0)
DISK_S = (0.0, 0.004)
SLOW_DISK_S = (0.02, 0.3)
HOUR_NS = 3600 * 10**9


class _Watched(Gateway):
    watch: Callable[[Mesh], None]

    def _meet(self) -> None:
        super()._meet()
        if self.mesh:
            self.watch(self.mesh)


class Member:
    """`gateway` is of the present life."""

    def __init__(self, name: str, settings: Config, folder: Path, lan: Lan, air: Air, receiver: FakeReceiver, log: Any) -> None:
        self.name, self.settings, self.folder = name, settings, folder
        self.rng = lan.loop.rng(name)
        self.mailbox = Mailbox(lan.loop.rng(f"{name}/mailbox"))
        self.models = FakeModels(points=("a", "b"))
        self.broker = FakeBroker(lan, name, PORT, running=False, persistent=self.rng.random() < 0.3)
        self.hosts = HostFaults()
        self.uplink = Faults(latency_s=(0.0, 0.02))
        self.lives = 0
        self.slow_disk = False
        self.ends = False
        """A clean stop is the last one; else the gateway is started again."""
        self.gateway: Gateway
        self.fence: Fence
        self.disk: FaultyDisk
        self.clock = self._boot(lan)
        self.watch: Callable[[Mesh], None] = lambda _: None
        """Called with the mesh of each new life, before it runs."""
        self._lan, self._air, self._receiver, self._log = lan, air, receiver, log

    @property
    def up(self) -> bool:
        return self.lives > 0 and not self.fence.fallen and self.gateway.started.is_set() and not self.gateway.stopping

    @property
    def may_host(self) -> bool:
        return election.may_host(self.settings)

    async def live(self) -> None:
        """One life after the other, until somebody stops the gateway for good."""
        while True:
            self.lives += 1
            if self.lives > 1 and self.rng.random() < 0.3:
                self.clock = self._boot(self._lan)
            self.fence = Fence(self.name)
            self.disk = FaultyDisk(self._lan.loop.rng(f"{self.name}/disk-{self.lives}"), self.fence)
            self.gateway = _Watched(self.settings, self.folder, self._world())
            self.gateway.watch = self.watch
            life = self.fence.start(self.gateway.run(), name="run")
            gone = asyncio.create_task(self.fence.gone.wait(), name="gone")
            await asyncio.wait((life, gone), return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if life.done():
                await life
                if self.ends:
                    return
            await asyncio.sleep(self.rng.uniform(*AWAY_S))

    def heal(self) -> None:
        self.fence.go_on()
        self.slow_disk = False
        self.hosts.refuses = 0.0
        self.models.faults.stuck, self.models.faults.refuse = False, ""
        self.fence.fall_at = self.disk.crash_at = None
        self.mailbox.lost = self.mailbox.again = self.uplink.lost = self.uplink.unheard = 0.0

    def _world(self) -> World:
        fence, rng = self.fence, self._lan.loop.rng(f"{self.name}/life-{self.lives}")

        def new_worker(name: str) -> InlineWorker:
            return InlineWorker(rng, fence=fence, delay_s=SLOW_DISK_S if self.slow_disk else DISK_S)

        def make_sink(name: str, settings: AnySink, **_: Any) -> FakeSink:
            return FakeSink(self._receiver, self.name, rng, self.uplink)

        return World(
            clock=self.clock,
            dice=SeededDice(rng, node=f"{self.name}/{self.lives}", fence=fence),
            bus=self._lan.bus(fence),
            adapters={"mailbox": self.mailbox.adapter()},
            new_worker=new_worker,
            new_disk=lambda _: self.disk,
            make_sink=make_sink,
            new_host=lambda *_: FakeHost(self.broker, fence, rng, self.hosts),
            log=self._log,
            open_model=self.models.open,
            new_discovery=lambda mesh, _: NoDiscovery() if mesh.discovery == "off" else FakeDiscovery(self._air, fence),
            reachable=lambda _: (Endpoint(self.name, PORT),),
        )

    def _boot(self, lan: Lan) -> VirtualClock:
        """Monotonic time starts again; the wall clock may be far off, and the clock may run too fast or too slowly."""
        rng = self.rng
        offset_ns = 1_700_000_000 * 10**9 + rng.choice((0, 0, HOUR_NS, -HOUR_NS))
        skew = rng.choice((0.0, 0.0, rng.uniform(-0.01, 0.01)))
        return VirtualClock(lan.loop, boot=f"{self.name}-{self.lives}", wall_offset_ns=offset_ns, skew=skew)


def settings(name: str, names: Sequence[str], discovery: str, rng: random.Random) -> Config:
    """Ranks, deadlines and limits differ; in some sites mDNS is off; some gateways never host, a few are pinned."""
    static = [each for each in names if each != name] if discovery == "off" or rng.random() < 0.2 else []
    mesh = {
        "discovery": discovery, "peers": static, "rank": rng.choice((50, 100, 100)), "tasks_waiting_max": rng.choice((2, 64)),
        "may_host": rng.random() < 0.85,
    }  # fmt: skip
    return Config.model_validate(
        {
            "site": SITE,
            "gateway": name,
            "broker": {"mode": "hosted" if rng.random() < 0.05 else "auto", "listen": "0.0.0.0"},
            "mesh": mesh,
            "devices": {"box": {"adapter": "mailbox", "points": [{"name": "a"}, {"name": "b"}], "backoff_s_max": 1.0}},
            "pipelines": {
                "windows": {
                    "device": "box",
                    "window": {"count": 1},
                    "model": "m",
                    "deadline_s": rng.choice((0.5, 1.0, 2.0)),
                    "priority": rng.randint(0, 9),
                }
            },
            "sinks": {"cloud": {"type": "https", "url": "http://127.0.0.1:1"}},
            "outbox": {"drain_s_max": 200.0},
        }
    )
