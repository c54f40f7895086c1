"""A gateway on virtual time whose world is in memory: mailboxes that ask again, a scripted PLC, models, and far ends."""

from __future__ import annotations

import asyncio
import contextlib
import logging
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any, TypeVar

import msgspec
import structlog

from edge_runtime.config import AnySink, Broker, Config
from edge_runtime.gateway import Gateway
from edge_runtime.outbox.database import FileDisk
from edge_runtime.ports import BrokerError, Disk, Host, SinkError
from edge_runtime.records import Lane
from edge_runtime.testing.adapter import Faulty, FaultyPush
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.host import FakeHost
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.loop import InlineWorker, SeededDice, VirtualClock, VirtualLoop, run
from edge_runtime.testing.mailbox import Mailbox
from edge_runtime.testing.model import FakeModels
from edge_runtime.testing.network import FakeBroker
from edge_runtime.testing.sink import FakeReceiver, FakeSink, Faults
from edge_runtime.world import World

T = TypeVar("T")


class Site:
    """Outlives its gateways. Everything in it may be changed between and during their lives."""

    def __init__(self, folder: Path) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop, self.folder = loop, folder
        self.mailbox = Mailbox(loop.rng("mailbox"))
        self.models = FakeModels(points=("a", "b"))
        self.far_ends: dict[str, FakeReceiver] = {}
        self.log: list[dict[str, Any]] = []
        self.log_level = logging.INFO
        self.lives = 0
        self.clock = VirtualClock(loop)
        self.lan = Lan(loop)
        self.broker = FakeBroker(self.lan, "g", running=False)
        """What a gateway hosts."""
        self.new_disk: Callable[[int], Disk] = FileDisk
        self.new_host: Callable[[Broker, Path], Host] = lambda _settings, _folder: FakeHost(
            self.broker, Fence("g"), loop.rng("host")
        )
        self.broken_sinks: dict[str, str] = {}

    def gateway(self, **settings: Any) -> Gateway:
        self.lives += 1
        whole = {"site": "s", "gateway": "g", "sinks": {"cloud": {"type": "https", "url": "http://x"}}, **settings}
        return Gateway(Config.model_validate(whole), self.folder, self.world())

    @contextlib.asynccontextmanager
    async def running(self, **settings: Any) -> AsyncIterator[Gateway]:
        """Until the end of the block: a clean stop."""
        gateway = self.gateway(**settings)
        life = asyncio.create_task(gateway.run(), name="life")
        try:
            await asyncio.wait((life, asyncio.create_task(gateway.started.wait())), return_when=asyncio.FIRST_COMPLETED)
            yield gateway
            gateway.stop()
            await life
        finally:
            life.cancel()
            await asyncio.wait((life,))

    def post(self, *rows: dict[str, Any]) -> None:
        for row in rows:
            self.mailbox.post(row)

    async def acknowledged(self, count: int) -> None:
        await until(lambda: len(self.mailbox.acknowledged) >= count)

    def far_end(self, sink: str = "cloud") -> FakeReceiver:
        return self.far_ends.setdefault(sink, FakeReceiver())

    def bodies(self, lane: Lane, source: str | None = None, sink: str = "cloud") -> list[Any]:
        kept = sorted(self.far_end(sink).kept.values(), key=lambda record: (record.lane, record.seq))
        return [msgspec.json.decode(r.body) for r in kept if r.lane is lane and source in (None, r.source)]

    def events(self, name: str) -> list[dict[str, Any]]:
        return [event for event in self.log if event["event"] == name]

    def world(self) -> World:
        rng = self.loop.rng(f"life-{self.lives}")

        def make_sink(name: str, settings: AnySink, **_: Any) -> FakeSink:
            if name in self.broken_sinks:
                raise SinkError(self.broken_sinks[name], "this is a test")
            return FakeSink(self.far_end(name), "g", self.loop.rng(f"{name}-{self.lives}"), Faults(timeout_s=0.1))

        return World(
            clock=self.clock,
            dice=SeededDice(rng, node=str(self.lives)),
            bus=self.lan.bus(Fence("g")),
            adapters={"mailbox": self.mailbox.adapter(), "faulty": Faulty, "push": FaultyPush},
            new_worker=lambda _: InlineWorker(rng),
            new_disk=lambda pages: self.new_disk(pages),
            make_sink=make_sink,
            new_host=lambda broker, folder, _: self.new_host(broker, folder),
            log=structlog.wrap_logger(
                None, processors=[self._note], wrapper_class=structlog.make_filtering_bound_logger(self.log_level)
            ),
            open_model=self.models.open,
        )

    def _note(self, _logger: Any, level: str, event: Any) -> Any:
        self.log.append({**event, "level": level, "at": self.loop.time()})
        raise structlog.DropEvent


def no_host(_settings: Broker, _folder: Path) -> Host:
    raise BrokerError("no broker in this test")


async def until(condition: Callable[[], object], limit_s: float = 120.0) -> None:
    """On virtual time: asking costs nothing."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.05)


def simulated(scenario: Callable[[Site], Coroutine[Any, Any, T]], folder: Path, seed: int = 1) -> T:
    async def main() -> T:
        return await scenario(Site(folder))

    return run(main, seed=seed)


def box(*names: str, **more: Any) -> dict[str, Any]:
    """A device that asks again."""
    return {"adapter": "mailbox", "points": [{"name": name} for name in names], "backoff_s_max": 1.0, **more}


def plc(*names: str, **more: Any) -> dict[str, Any]:
    """A polled device: point i of sample n is n + i."""
    return {"adapter": "faulty", "points": [{"name": name} for name in names], "period_s": 0.1, "timeout_s": 0.2, **more}
