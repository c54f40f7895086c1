"""A whole gateway under virtual time: gateway.py's own composition with seeded disks, uplinks, sources and crashes.

    outcome = simulate(17)                                  # or: python -m edge_runtime.testing.simulation 17

The gateway reads a mailbox that outlives it (the broker's persistent session), keeps what it accepted on a real SQLite file that
outlives it too, and delivers to a receiver that outlives it. It is killed between any two steps or SQL statements and started
again. When all is healed and drained, `check` compares what was acknowledged to the source with what is at the receiver.
"""

from __future__ import annotations

import asyncio
import itertools
import random
import sqlite3
import sys
import tempfile
from collections import Counter
from pathlib import Path
from typing import Any

import msgspec
import structlog

from edge_runtime import config
from edge_runtime.config import AnySink, Config
from edge_runtime.gateway import Gateway, World
from edge_runtime.pipeline.windowing import Windowing
from edge_runtime.ports import Address
from edge_runtime.records import Gap, Lane, Result, Sample
from edge_runtime.testing.adapter import Faulty, NoBus
from edge_runtime.testing.disk import FaultyDisk
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.loop import InlineWorker, SeededDice, VirtualClock, VirtualLoop, run
from edge_runtime.testing.mailbox import Mailbox
from edge_runtime.testing.sink import FakeReceiver, FakeSink, Faults

__all__ = ["Broken", "Outcome", "Simulation", "simulate"]

MESSAGES = 240
MESSAGE_S = 0.05
FAULTS_S = MESSAGES * MESSAGE_S
HEALED_S_MAX = 300.0
COUNT, STEP = 8, 4


class Outcome(msgspec.Struct, frozen=True):
    """What a run showed; equal for equal seeds."""

    digest: str
    lives: int
    acknowledged: int
    windows: int
    declared_lost: int
    resends: int
    now_s: float


class Broken(AssertionError):
    """A promise was broken. The message says which."""


class Simulation:
    """One seeded run. `run` raises Broken."""

    def __init__(self, folder: Path) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop, self.folder = loop, folder
        self.rng = loop.rng("simulation")
        self.mailbox = Mailbox(loop.rng("mailbox"))
        self.receiver = FakeReceiver()
        self.faults = Faults(latency_s=(0.0, 0.05))
        self.settings = settings(self.rng)
        self.boots = 0
        self.lives = 0
        self.clock = self._boot()
        self.gateway: Gateway
        self.fence: Fence
        self.disk: FaultyDisk
        self.trouble: int | None = None
        self.errors = 0.0

    async def run(self) -> Outcome:
        posting = asyncio.create_task(self._post(), name="posting")
        breaking = asyncio.create_task(self._break(), name="breaking")
        living = asyncio.create_task(self._live(), name="living")
        await posting
        await breaking
        self._heal()
        await self._settle(living)
        check(self)
        return Outcome(
            self.loop.digest(),
            self.lives,
            len(self.mailbox.acknowledged),
            sum(1 for record in self.receiver.kept.values() if record.lane is Lane.RESULT),
            sum(gap.count for gap in gaps(self.receiver)),
            self.receiver.repeated,
            self.loop.time(),
        )

    # --- the world goes on, whatever happens to the gateway ---

    async def _post(self) -> None:
        for number in range(MESSAGES):
            self.mailbox.post({"a": float(number), "b": float(number % 7)})
            await asyncio.sleep(MESSAGE_S)

    async def _break(self) -> None:
        """Faults come and go, drawn from the seed."""
        end_s = self.loop.time() + FAULTS_S
        while self.loop.time() < end_s:
            await asyncio.sleep(self.rng.uniform(0.1, 2.0))
            self._fault(
                self.rng.choice(("crash", "crash at step", "crash at statement", "disk", "disk errors", "uplink", "source"))
            )

    def _fault(self, kind: str) -> None:
        rng = self.rng
        if kind == "crash":
            self.fence.fall()
        elif kind == "crash at step":
            self.fence.fall_at = self.fence.steps + rng.randrange(1, 200)
        elif kind == "crash at statement":
            self.disk.crash_at = self.disk.statements + rng.randrange(1, 60)
        elif kind == "disk":
            self.trouble = rng.choice((None, sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY))
        elif kind == "disk errors":
            self.errors = rng.choice((0.0, 0.02))
        elif kind == "uplink":
            self.receiver.up = rng.random() < 0.5
            for fault in ("lost", "unheard", "torn", "late", "twice"):
                setattr(self.faults, fault, rng.choice((0.0, 0.0, 0.1)))
        else:
            self.mailbox.lost, self.mailbox.again = rng.choice((0.0, 0.01)), rng.choice((0.0, 0.05))
        self.disk.trouble, self.disk.errors = self.trouble, self.errors

    def _heal(self) -> None:
        self.trouble, self.errors = None, 0.0
        self.disk.trouble, self.disk.errors, self.disk.crash_at, self.fence.fall_at = None, 0.0, None, None
        self.receiver.up = True
        self.mailbox.lost = self.mailbox.again = 0.0
        for fault in ("lost", "unheard", "torn", "late", "twice"):
            setattr(self.faults, fault, 0.0)

    async def _settle(self, living: asyncio.Task[None]) -> None:
        """Everything acknowledged, everything delivered, and a clean stop."""
        async with asyncio.timeout(HEALED_S_MAX):
            while len(self.mailbox.acknowledged) < MESSAGES:  # noqa: ASYNC110 - the world has no hook in a gateway
                await asyncio.sleep(1.0)
            self._stop = True
            self.gateway.stop()
            await living

    # --- lives of the gateway ---

    async def _live(self) -> None:
        self._stop = False
        while True:
            self.lives += 1
            if self.lives > 1 and self.rng.random() < 0.3:
                self.clock = self._boot()
            self._start()
            gone = asyncio.create_task(self.fence.gone.wait(), name="gone")
            await asyncio.wait((self.life, gone), return_when=asyncio.FIRST_COMPLETED)
            gone.cancel()
            if self.life.done():
                await self.life
                return
            await asyncio.sleep(self.rng.uniform(0.0, 1.0))

    def _start(self) -> None:
        self.fence = Fence(f"gateway-{self.lives}")
        self.disk = FaultyDisk(self.loop.rng(f"disk-{self.lives}"), self.fence)
        self.disk.trouble, self.disk.errors = self.trouble, self.errors
        self.life = self.fence.start(self._serve(), name="run")

    async def _serve(self) -> None:
        self.gateway = Gateway(self.settings, self.folder, self._world())
        if self._stop:
            self.gateway.stop()
        await self.gateway.run()

    def _world(self) -> World:
        fence, rng = self.fence, self.loop.rng(f"life-{self.lives}")

        def make_sink(name: str, settings: AnySink, **_: Any) -> FakeSink:
            return FakeSink(self.receiver, self.settings.gateway, self.loop.rng(f"{name}-{self.lives}"), self.faults)

        return World(
            clock=self.clock,
            dice=SeededDice(rng, node=f"{self.lives}", fence=fence),
            bus=NoBus(),
            adapters={"mailbox": self.mailbox.adapter(), "faulty": Faulty},
            new_worker=lambda _: InlineWorker(rng, fence=fence),
            new_disk=lambda _: self.disk,
            make_sink=make_sink,
            new_host=_no_host,
            local_address=lambda url: Address(host=url),
            log=LOG,
        )

    def _boot(self) -> VirtualClock:
        """A reboot: monotonic time starts again, and the wall clock is wrong until somebody sets it."""
        self.boots += 1
        synced = self.rng.random() < 0.7
        return VirtualClock(self.loop, boot=f"boot-{self.boots}", wall_offset_ns=int(1.7e18) if synced else 0, synced=synced)


def settings(rng: random.Random) -> Config:
    """A gateway with a source that asks again, a polled one that misbehaves, and three pipelines."""
    return Config.model_validate(
        {
            "site": "sim",
            "gateway": "gw",
            "devices": {
                "box": {"adapter": "mailbox", "points": [{"name": "a"}, {"name": "b"}], "backoff_s_max": 1.0},
                "plc": {
                    "adapter": "faulty",
                    "options": {"lost": 0.02, "stall": 0.02, "bad": 0.05, "error": 0.01},
                    "points": [{"name": "x"}],
                    "period_s": 0.5,
                    "timeout_s": 0.2,
                },
            },
            "pipelines": {
                "windows": {
                    "device": "box",
                    "window": {"count": COUNT, "step": STEP},
                    "rules": [{"name": "high", "output": "b.mean", "above": 3.1, "hysteresis": 0.1}],
                },
                "raw": {"device": "box"},
                "polled": {"device": "plc", "window": {"count": 2, "bad": "skip"}},
            },
            "sinks": {"cloud": {"type": "https", "url": "http://127.0.0.1:1", "batch_records_max": rng.choice((3, 50))}},
            "outbox": {"drain_s_max": 200.0},
        }
    )


def gaps(receiver: FakeReceiver) -> list[Gap]:
    return [msgspec.json.decode(record.body, type=Gap) for record in receiver.kept.values() if record.lane is Lane.GAP]


def check(simulation: Simulation) -> None:
    """Every promise that can be seen from outside. Nothing may be missing: this outbox is large enough to lose nothing."""
    receiver, mailbox = simulation.receiver, simulation.mailbox
    _require(not gaps(receiver), f"records were declared lost: {gaps(receiver)}")
    _require(not receiver.same_content, f"{receiver.same_content} results were computed and committed twice")
    kept = sorted(receiver.kept.values(), key=lambda record: record.seq)
    samples = Counter(
        int(body["message_id"])
        for record in kept
        if record.lane is Lane.SAMPLE and (body := msgspec.json.decode(record.body))["message_id"]
    )
    _require(
        samples == Counter(list(mailbox.acknowledged)),
        f"forwarded samples: {_difference(samples, Counter(list(mailbox.acknowledged)))}",
    )
    found = Counter(
        int(result.outputs["a.last"])
        for record in kept
        if record.lane is Lane.RESULT and (result := msgspec.json.decode(record.body, type=Result)).pipeline == "windows"
    )
    # A window across a reboot of the gateway is none: its samples' times cannot be compared.
    _require(max(found.values(), default=0) == 1, f"windows more than once: {found.most_common(3)}")
    wanted = Counter(windows_of(kept))
    _require(found == wanted, f"windows: {_difference(found, wanted)}")
    events = [msgspec.json.decode(record.body) for record in kept if record.lane is Lane.EVENT]
    raised = [event["raised"] for event in events]
    _require(all(a != b for a, b in itertools.pairwise(raised)), f"an event was raised or cleared twice: {raised}")


def windows_of(kept: list[Any]) -> list[int]:
    """The last message of each window that the forwarded samples make: computed from what arrived, in order, by a fresh
    Windowing that never crashed."""
    windowing = Windowing(config.Window(count=COUNT, step=STEP), ["a"], [0])
    found = []
    for record in kept:
        if record.lane is Lane.SAMPLE and record.source == "raw":
            body = msgspec.json.decode(record.body)
            if body["message_id"]:
                stamp = msgspec.structs.replace(record.stamp, wall_ns=0)
                for window in windowing.push(Sample("box", stamp, (body["values"]["a"],))):
                    found.append(int(window.values[-1][0]))
    return found


def _difference(found: Counter[int], wanted: Counter[int]) -> str:
    return f"missing {sorted((wanted - found).elements())[:10]}, too many {sorted((found - wanted).elements())[:10]}"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise Broken(message)


def _no_host(_settings: config.Broker, _folder: Path) -> Any:
    raise AssertionError("no hosted broker in the simulation")


LOG = structlog.wrap_logger(None, processors=[lambda logger, method, event: _drop(logger, method, event)])


def _drop(_logger: Any, _method: str, _event: Any) -> Any:
    raise structlog.DropEvent


def simulate(seed: int, folder: Path | None = None) -> Outcome:
    """One seed, on a memory file system where there is one; nothing is left behind. Raises Broken, Deadlock, ..."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="edge-sim-", dir=folder or (memory if memory.is_dir() else None)) as name:

        async def one() -> Outcome:
            return await Simulation(Path(name)).run()

        return run(one, seed=seed)


if __name__ == "__main__":
    for _each in sys.argv[1:]:
        print(_each, simulate(int(_each)))
