"""A whole gateway under virtual time: gateway.py's own composition with seeded disks, uplinks, sources and crashes.

    outcome = simulate(17)                                  # or: python -m edge_runtime.testing.simulation 17

The gateway reads a mailbox that outlives it (the broker's persistent session), keeps what it accepted on a real SQLite file that
outlives it too, and delivers to a receiver that outlives it. It is killed between any two steps or SQL statements and started
again. When all is healed and drained, `check` compares what was acknowledged to the source with what is at the receiver.
"""

from __future__ import annotations

import asyncio
import logging
import random
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import msgspec
import structlog

from edge_runtime import config
from edge_runtime.config import AnySink, Config
from edge_runtime.gateway import Gateway
from edge_runtime.pipeline.windowing import Window, Windowing
from edge_runtime.records import Event, Gap, Lane, Record, Result, Sample
from edge_runtime.testing.adapter import Faulty, NoBus
from edge_runtime.testing.disk import FaultyDisk
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.loop import InlineWorker, SeededDice, VirtualClock, VirtualLoop, run
from edge_runtime.testing.mailbox import UNACKNOWLEDGED_MAX, Mailbox
from edge_runtime.testing.model import FakeModels
from edge_runtime.testing.sink import FakeReceiver, FakeSink, Faults
from edge_runtime.world import World

__all__ = ["Broken", "Outcome", "Simulation", "simulate"]

MESSAGES = 180
MESSAGE_S = 0.05
FAULTS_S = MESSAGES * MESSAGE_S
HEALED_S_MAX = 300.0
LOOK_S = 0.5
"""Between two looks at what must be bounded."""

BAD_EVERY = 13
"""Each so-manyth message lacks the value of a point."""

WINDOWS: tuple[dict[str, Any], ...] = (
    {"count": 8, "step": 4},
    {"count": 8, "step": 4, "bad": "skip"},
    {"count": 6, "bad": "hold", "filled_max": 2},
    {"count": 8, "gap_s_max": 1.0, "bad": "skip"},
    {"length_s": 0.4, "step_s": 0.2, "bad": "skip"},
    {"length_s": 0.5, "bad": "hold", "filled_max": 2},
    {"length_s": 0.3, "step_s": 0.1},
)
"""One is drawn from the seed."""

MODELLED: dict[str, Any] = {"count": 2, "step": 1, "bad": "skip"}
RULE: dict[str, Any] = {"name": "high", "output": "b.mean", "above": 3.1, "hysteresis": 0.1}
POISON = 50
"""The model cannot compute a window that begins with a multiple of it."""


FAULTS = ("crash", "crash at step", "crash at statement", "disk", "disk errors", "uplink", "source", "model")


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
        self.receivers = {"cloud": FakeReceiver(), "plant": FakeReceiver()}
        self.faults = Faults(latency_s=(0.0, 0.05))
        self.models = FakeModels(points=("a", "b"), rows=MODELLED["count"])
        self.models.faults.poison = lambda values: values[0, 0] % POISON == 0
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
        looking = asyncio.create_task(self._look(), name="looking")
        await posting
        await breaking
        self._heal()
        await self._settle(living)
        looking.cancel()
        for receiver in self.receivers.values():
            check(self, receiver)
        receiver = self.receivers["cloud"]
        return Outcome(
            self.loop.digest(),
            self.lives,
            len(self.mailbox.acknowledged),
            sum(1 for record in receiver.kept.values() if record.lane is Lane.RESULT),
            sum(gap.count for gap in gaps(receiver)),
            receiver.repeated,
            self.loop.time(),
        )

    # --- the world goes on, whatever happens to the gateway ---

    async def _post(self) -> None:
        for number in range(MESSAGES):
            row = {"a": float(number), "b": float(number % 7)}
            self.mailbox.post(row if number % BAD_EVERY else {"a": row["a"]})
            await asyncio.sleep(MESSAGE_S)

    async def _break(self) -> None:
        """Faults come and go, drawn from the seed."""
        end_s = self.loop.time() + FAULTS_S
        while self.loop.time() < end_s:
            await asyncio.sleep(self.rng.uniform(0.1, 2.0))
            self._fault(self.rng.choice(FAULTS))

    async def _look(self) -> None:
        """What must be bounded is, in every life."""
        outbox = self.settings.outbox
        while True:
            await asyncio.sleep(LOOK_S)
            rows = self.gateway.store.journal_rows
            _require(rows <= outbox.journal_rows_max + 2 * UNACKNOWLEDGED_MAX, f"{rows} rows in the journal")
            size_bytes = self.disk.size_bytes(self.gateway.data_dir / outbox.file)
            _require(size_bytes <= outbox.size_bytes_max, f"{size_bytes} bytes on the disk")
            for name, pipeline in self.gateway.pipelines.items():
                limit = self.settings.pipelines[name].queue_max
                _require(pipeline.waiting <= limit, f"{pipeline.waiting} samples wait at {name}")
            _require(self.models.opened - self.models.closed <= self.lives, "models are opened and never closed")

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
            self.receivers["cloud"].up, self.receivers["plant"].up = rng.random() < 0.5, rng.random() < 0.15
            for fault in ("lost", "unheard", "torn", "late", "twice"):
                setattr(self.faults, fault, rng.choice((0.0, 0.0, 0.1)))
        elif kind == "model":
            self.models.faults.refuse, self.models.faults.stuck = rng.choice((("", False), ("gone", False), ("", True)))
        else:
            self.mailbox.lost, self.mailbox.again = rng.choice((0.0, 0.01)), rng.choice((0.0, 0.05))
        self.disk.trouble, self.disk.errors = self.trouble, self.errors

    def _heal(self) -> None:
        self.trouble, self.errors = None, 0.0
        self.disk.trouble, self.disk.errors, self.disk.crash_at, self.fence.fall_at = None, 0.0, None, None
        self.models.faults.refuse, self.models.faults.stuck = "", False
        for receiver in self.receivers.values():
            receiver.up = True
        self.mailbox.lost = self.mailbox.again = 0.0
        for fault in ("lost", "unheard", "torn", "late", "twice"):
            setattr(self.faults, fault, 0.0)

    async def _settle(self, living: asyncio.Task[None]) -> None:
        """Everything acknowledged, everything delivered, and a clean stop."""
        async with asyncio.timeout(HEALED_S_MAX):
            while len(self.mailbox.acknowledged) < MESSAGES or not self._idle():  # noqa: ASYNC110 - no hook in a gateway
                await asyncio.sleep(1.0)
            self.gateway.stop()
            await living

    def _idle(self) -> bool:
        """And has nothing left to do that a stop would leave for the next life."""
        done = all(pipeline.idle for pipeline in self.gateway.pipelines.values())
        return self.gateway.started.is_set() and not self.fence.fallen and done

    # --- lives of the gateway ---

    async def _live(self) -> None:
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
        await self.gateway.run()

    def _world(self) -> World:
        fence, rng = self.fence, self.loop.rng(f"life-{self.lives}")

        def make_sink(name: str, settings: AnySink, **_: Any) -> FakeSink:
            return FakeSink(self.receivers[name], self.settings.gateway, self.loop.rng(f"{name}-{self.lives}"), self.faults)

        return World(
            clock=self.clock,
            dice=SeededDice(rng, node=f"{self.lives}", fence=fence),
            bus=NoBus(),
            adapters={"mailbox": self.mailbox.adapter(), "faulty": Faulty},
            new_worker=lambda _: InlineWorker(rng, fence=fence),
            new_disk=lambda _: self.disk,
            make_sink=make_sink,
            new_host=_no_host,
            log=LOG,
            open_model=self.models.open,
        )

    def _boot(self) -> VirtualClock:
        """A reboot: monotonic time starts again, and the wall clock is wrong until somebody sets it."""
        self.boots += 1
        synced = self.rng.random() < 0.7
        return VirtualClock(self.loop, boot=f"boot-{self.boots}", wall_offset_ns=int(1.7e18) if synced else 0, synced=synced)


def settings(rng: random.Random) -> Config:
    """A gateway with a source that asks again, a polled one that misbehaves, four pipelines and two far ends."""
    sink = {"type": "https", "url": "http://127.0.0.1:1", "batch_records_max": rng.choice((3, 50))}
    window = rng.choice(WINDOWS)
    # What comes all at once after an outage may be more than a small journal holds, and in one window by time.
    rows_max = rng.choice((100, 100_000)) if "count" in window else 100_000
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
                    "window": window,
                    "rules": [RULE],
                },
                "modelled": {"device": "box", "window": MODELLED, "model": "m"},
                "raw": {"device": "box"},
                "polled": {"device": "plc", "window": {"count": 2, "bad": "skip"}, "queue_max": rng.choice((3, 1_000))},
            },
            "sinks": {"cloud": sink, "plant": sink},
            "outbox": {"drain_s_max": 200.0, "journal_rows_max": rows_max},
        }
    )


def gaps(receiver: FakeReceiver) -> list[Gap]:
    return [msgspec.json.decode(record.body, type=Gap) for record in receiver.kept.values() if record.lane is Lane.GAP]


def check(simulation: Simulation, receiver: FakeReceiver) -> None:
    """Every promise that can be seen from outside. Nothing may be missing: this outbox is large enough to lose nothing."""
    _require(not gaps(receiver), f"records were declared lost: {gaps(receiver)}")
    _require(not receiver.same_content, f"{receiver.same_content} results were computed and committed twice")
    kept = sorted(receiver.kept.values(), key=lambda record: record.seq)
    forwarded = [sample for record in kept if record.source == "raw" and (sample := _sample(record)).message_id]
    samples, acknowledged = Counter(int(sample.message_id) for sample in forwarded), Counter([*simulation.mailbox.acknowledged])
    _require(samples == acknowledged, f"forwarded samples: {_difference(samples, acknowledged)}")
    results = [msgspec.json.decode(record.body, type=Result) for record in kept if record.lane is Lane.RESULT]
    for name in ("windows", "modelled"):
        found = Counter(_shown(result) for result in results if result.pipeline == name)
        wanted = Counter(_wanted(window, name) for window in _windows(simulation.settings.pipelines[name], forwarded))
        _require(found == wanted, f"windows of {name}: {_difference(found, wanted)}")
    events = [msgspec.json.decode(record.body, type=Event) for record in kept if record.lane is Lane.EVENT]
    told = [(event.raised, event.at.mono_ns, event.value) for event in events]
    due = _events(result for result in results if result.pipeline == "windows")
    _require(told == due, f"events: {_difference(Counter(told), Counter(due))}")


def _events(results: Iterable[Result]) -> list[tuple[bool, int, float]]:
    """What the rule makes of the results, in their order."""
    found: list[tuple[bool, int, float]] = []
    raised = False
    for result in results:
        value = result.outputs[RULE["output"]]
        if value <= RULE["above"] - RULE["hysteresis"] if raised else value > RULE["above"]:
            raised = not raised
            found.append((raised, result.last.mono_ns, value))
    return found


Shown = tuple[str, int, int, int, int, float | None]
"""Of a window: boot, first and last instant, rows, filled, and what came of it (None: the model could not compute it)."""


def _sample(record: Record) -> Sample:
    """As it was before it was forwarded; its wall clock may have been set since."""
    body = msgspec.json.decode(record.body)
    stamp = msgspec.structs.replace(record.stamp, wall_ns=0)
    return Sample(body["device"], stamp, tuple(body["values"].values()), body["faults"], body["message_id"])


def _windows(settings: config.Pipeline, samples: list[Sample]) -> list[Window]:
    """What the forwarded samples make, computed by a Windowing that never crashed."""
    assert settings.window is not None
    windowing = Windowing(settings.window, ["a", "b"], [0, 1])
    return [window for sample in samples for window in windowing.push(sample)]


def _shown(result: Result) -> Shown:
    value = result.outputs.get("score" if result.pipeline == "modelled" else "a.last")
    return (result.first.boot, result.first.mono_ns, result.last.mono_ns, result.rows, result.filled, value)


def _wanted(window: Window, pipeline: str) -> Shown:
    a, b = (float(value) for value in window.values[-1])
    value = a if pipeline == "windows" else None if window.values[0, 0] % POISON == 0 else a + 10 * b
    return (window.first.boot, window.first.mono_ns, window.last.mono_ns, window.rows, window.filled, value)


def _difference(found: Counter[Any], wanted: Counter[Any]) -> str:
    return f"missing {[*(wanted - found).elements()][:5]}, too many {[*(found - wanted).elements()][:5]}"


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise Broken(message)


def _no_host(*_: object) -> Any:
    raise AssertionError("no hosted broker in the simulation")


LOG = structlog.wrap_logger(
    None,
    processors=[lambda logger, method, event: _drop(logger, method, event)],
    wrapper_class=structlog.make_filtering_bound_logger(logging.INFO),
)


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
    if not sys.argv[1:] or not all(_each.isdecimal() for _each in sys.argv[1:]):
        sys.exit("usage: python -m edge_runtime.testing.simulation SEED ...     (a seed is a whole number)")
    for _each in sys.argv[1:]:
        print(_each, simulate(int(_each)))
