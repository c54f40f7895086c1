"""A gateway's process in the simulator, lifetime.py's own, and the machine that it runs on: its files, its boots, the broker's
program, the mailbox that it reads. It is killed, or the machine loses its power, at any instant; then it is started again.

    process = Process("press-1", text, folder, lan)
    living = asyncio.create_task(process.live())
    process.crash()                          # the same boot goes on
    process.cut_power()                      # the next life has another boot id, and a monotonic clock that begins at 0
    process.end(); await living              # a clean stop, for good
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import structlog

from edge_runtime.adapter import Adapter, Sample
from edge_runtime.config import AnySink
from edge_runtime.gateway import Gateway
from edge_runtime.lifetime import Lifetime
from edge_runtime.mesh.discovery import NoDiscovery
from edge_runtime.ports import SinkError
from edge_runtime.ports_mesh import Endpoint
from edge_runtime.testing.adapter import Faulty
from edge_runtime.testing.discovery import Air, FakeDiscovery
from edge_runtime.testing.disk import FaultyDisk
from edge_runtime.testing.fence import FENCE, Fence
from edge_runtime.testing.host import FakeHost
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.loop import InlineWorker, SeededDice, VirtualClock
from edge_runtime.testing.mailbox import Mailbox
from edge_runtime.testing.model import FakeModels
from edge_runtime.testing.network import FakeBroker
from edge_runtime.testing.sink import FakeReceiver, FakeSink, Faults
from edge_runtime.world import World

PORT = 1883
AWAY_S = (0.0, 1.0)
"""Between the end of a life and the next one."""

UNMADE = "nowhere"
"""A sink whose name begins so cannot be built."""


class Bomb(Faulty):
    """A device whose driver kills the process as soon as it is read."""

    async def read(self) -> Sequence[Sample]:
        fence = FENCE.get()
        assert fence is not None
        fence.fall()
        await fence.passage()
        raise AssertionError("a fallen node goes on")


class Process:
    """See the module's text. `lifetime`, `fence` and `disk` are of the present life."""

    def __init__(self, name: str, text: str | None, folder: Path, lan: Lan, *, persistent: bool = True) -> None:
        """`persistent`: the broker that it hosts remembers retained messages when it is started again."""
        self.name, self.text, self.folder = name, text, folder
        self.rng = lan.loop.rng(name)
        self.mailbox = Mailbox(lan.loop.rng(f"{name}/mailbox"))
        self.adapters: dict[str, type[Adapter]] = {"mailbox": self.mailbox.adapter(), "faulty": Faulty, "bomb": Bomb}
        self.models = FakeModels(points=("a", "b"))
        self.broker = FakeBroker(lan, name, PORT, running=False, persistent=persistent)
        self.receivers: dict[str, FakeReceiver] = {}
        self.uplink = Faults(latency_s=(0.0, 0.02), timeout_s=0.2)
        self.air: Air | None = None
        self.trouble: int | None = None
        """Of its disk; for the next lives as well, see `spoil`."""
        self.lives = self.boots = 0
        self.lives_before = 0
        """This boot."""
        self.away_s = AWAY_S
        self.on_start: Callable[[Gateway], None] = lambda _: None
        """Called with each gateway (a process may have several, one after the other) before it runs."""
        self.on_log: Callable[[dict[str, Any]], None] = lambda _: None
        self.lifetime: Lifetime
        self.fence: Fence
        self.disk: FaultyDisk
        self._lan = lan
        self._ends = self.dark = False
        """`dark`: the next end of a life is a power cut."""
        self.clock = self._boot()

    @property
    def gateway(self) -> Gateway | None:
        """None: between two lives, or at the very beginning of one."""
        return None if self.lives == 0 or self.fence.fallen else self.lifetime.gateway

    def receiver(self, sink: str) -> FakeReceiver:
        return self.receivers.setdefault(sink, FakeReceiver())

    def crash(self) -> None:
        self.fence.fall()

    def cut_power(self) -> None:
        """Whatever the instant: also while it is down already."""
        self.dark = True
        self.fence.fall()

    def spoil(self, trouble: int | None) -> None:
        self.trouble = self.disk.trouble = trouble

    def end(self) -> None:
        self._ends = True
        self.lifetime.stop()

    async def live(self) -> None:
        """One life after the other, until `end`. Raises what ends a life by itself."""
        while True:
            if self.dark:
                self.dark, self.clock = False, self._boot()
            self.lives += 1
            self.fence = Fence(self.name)
            self.disk = FaultyDisk(self._lan.loop.rng(f"{self.name}/disk-{self.lives}"), self.fence)
            self.disk.trouble = self.trouble
            self.lifetime = Lifetime(self.text, "gateway.yaml", self.folder, self.folder / "data", self._world())
            self.lifetime.watch = self.on_start
            life = self.fence.start(self.lifetime.run(), name="run")
            gone = asyncio.create_task(self.fence.gone.wait(), name="gone")
            await asyncio.wait((life, gone), return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if life.done():
                await life
                if self._ends:
                    return
            await asyncio.sleep(self.rng.uniform(*self.away_s))

    def _boot(self) -> VirtualClock:
        self.boots += 1
        self.lives_before = self.lives
        return VirtualClock(self._lan.loop, boot=f"{self.name}-boot-{self.boots}")

    def _world(self) -> World:
        fence, rng = self.fence, self._lan.loop.rng(f"{self.name}/life-{self.lives}")

        def make_sink(name: str, settings: AnySink, **_: Any) -> FakeSink:
            if name.startswith(UNMADE):
                raise SinkError("this sink cannot be built", "this is a test")
            return FakeSink(self.receiver(name), self.name, rng, self.uplink)

        def note(_logger: Any, level: str, event: Any) -> Any:
            if not fence.fallen:
                self.on_log({**event, "level": level})
            raise structlog.DropEvent

        return World(
            clock=self.clock,
            dice=SeededDice(rng, node=f"{self.name}/{self.lives}", fence=fence),
            bus=self._lan.bus(fence),
            adapters=self.adapters,
            new_worker=lambda _: InlineWorker(rng, fence=fence),
            new_disk=lambda _: self.disk,
            make_sink=make_sink,
            new_host=lambda *_: FakeHost(self.broker, fence, rng),
            log=structlog.wrap_logger(None, processors=[note]),
            open_model=self.models.open,
            new_discovery=lambda mesh, _: (
                FakeDiscovery(self.air, fence) if self.air and mesh.discovery != "off" else NoDiscovery()
            ),
            reachable=lambda _: (Endpoint(self.name, PORT),),
        )
