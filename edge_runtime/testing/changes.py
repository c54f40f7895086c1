"""Changes of a gateway's configuration under virtual time: a person wants this and that, valid, invalid and harmful, while the
process is killed between any two steps or SQL statements and the machine loses its power.

    outcome = simulate(17)                                  # or: python -m edge_runtime.testing.changes 17

The process is lifetime.py's own (process.py), its broker hosted by itself or met outside. After each start, and all the time,
what runs is the old or the new configuration (expected.py); when all is healed the gateway can be reached, takes two more
documents, and everything that it has ever acknowledged to its mailbox is at its far ends, once.
"""

from __future__ import annotations

import asyncio
import itertools
import json
import sqlite3
import sys
import tempfile
from collections import Counter
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge_runtime.bus import topics
from edge_runtime.config import Window, load
from edge_runtime.control.layers import Layer, layer_name
from edge_runtime.gateway import Gateway
from edge_runtime.pipeline.windowing import Windowing
from edge_runtime.records import Gap, Lane, Record, Result, Sample
from edge_runtime.testing.expected import Broken, Expected, name_of, require
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.loop import VirtualLoop, run
from edge_runtime.testing.network import FakeBroker
from edge_runtime.testing.person import Person
from edge_runtime.testing.process import PORT, Process
from edge_runtime.testing.sink import FakeReceiver
from edge_runtime.testing.wishes import ALL, LONELY, MINE, NAME, PLANT, SITE, SPARE, Patch, anew, draw, file, threshold

WINDOW = Window(count=4, step=2)
"""Of the pipeline "windows"."""

T = TypeVar("T")

__all__ = ["Broken", "Changes", "Outcome", "simulate"]

WISHES = 5
POST_S = 0.4
QUIET_S = 2.5
"""Between two messages, where statements are counted."""
LOOK_S = 0.25
REPORTS_S_MAX = 60.0
"""From the end of all faults, until the gateway says on its broker what it does."""
ACTIVE_S_MAX = 120.0
"""From a valid document until it is active: another one may be on trial before it."""
HEALED_S_MAX = 300.0
"""Until all is delivered."""
FAULTS = {
    "crash": 3, "crash at step": 4, "crash at statement": 6, "power": 2, "power at statement": 3, "ten cuts": 1,
    "broker dies": 1, "cut": 1, "uplink": 2, "disk": 1, "mailbox": 1,
}  # fmt: skip


class Outcome(msgspec.Struct, frozen=True):
    """What a run showed; equal for equal seeds."""

    digest: str
    lives: int
    boots: int
    trials: int
    confirmed: int
    reverted: int
    acknowledged: int
    now_s: float


class Changes:
    """One seeded run. `run` raises Broken."""

    def __init__(self, folder: Path, log: bool = False, base: Patch | None = None) -> None:
        """`base`: the file on the gateway; None: it is drawn."""
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop, self.rng = loop, loop.rng("changes")
        self.lan = Lan(loop)
        self.brokers = {
            host: FakeBroker(self.lan, host, PORT, persistent=self.rng.random() < 0.7) for host in (LONELY, PLANT, SPARE)
        }
        base = base or file(self.rng)
        self.process = Process(NAME, json.dumps(base), folder, self.lan, persistent=self.rng.random() < 0.5)
        self.process.on_start, self.process.on_log = self._starts, self._logs
        schemas = self.process.adapters
        load(json.dumps(base), schemas)
        self.expected = Expected(base, schemas)
        self.person = Person(self.lan, SITE)
        self.log, self.failure, self.trials = log, "", 0
        self.post_s = POST_S
        self._revisions = itertools.count(1)
        self._told = 0
        self._life = 0

    async def change(self, patch: Patch, crash_at: int | None, *, power: bool) -> int:
        """One document, and a crash instead of the n-th statement from then on. Returns how many there were until it was
        confirmed."""
        process, self.post_s = self.process, QUIET_S
        living, around = self._begin()
        await self._until("has begun", self._told_true, REPORTS_S_MAX)
        before, process.dark = process.disk.statements, power
        process.disk.crash_at = None if crash_at is None else before + crash_at
        layer = await self.want(MINE, patch)
        new = self.expected.makes(layer)
        await self._until("has taken it", lambda: self.expected.active == new, ACTIVE_S_MAX)
        statements = process.disk.statements - before
        await asyncio.sleep(0.5)
        process.disk.crash_at, process.dark = None, process.dark and process.fence.fallen
        await self._until("says so", self._told_true, REPORTS_S_MAX)
        await self._end(living, around)
        return statements

    def _begin(self) -> tuple[asyncio.Task[None], list[asyncio.Task[None]]]:
        living = asyncio.create_task(self.process.live(), name="living")
        around = [asyncio.create_task(self.person.listen(host), name=f"person at {host}") for host in (NAME, PLANT, SPARE)]
        around += [asyncio.create_task(self._post(), name="posting"), asyncio.create_task(self._look(living), name="looking")]
        return living, around

    async def _end(self, living: asyncio.Task[None], around: list[asyncio.Task[None]]) -> None:
        around[-2].cancel()
        await self._settle(living)
        for each in around:
            each.cancel()
        check(self)

    async def run(self) -> Outcome:
        living, around = self._begin()
        await asyncio.sleep(self.rng.uniform(0.0, 3.0))
        for _ in range(WISHES):
            await self.want(self.rng.choice((MINE, MINE, ALL)), draw(self.rng))
            for _ in range(self.rng.choice((1, 2, 3, 5))):
                await self._fault(self.rng.choices([*FAULTS], [*FAULTS.values()])[0])
                await asyncio.sleep(self.rng.choice((0.1, 0.5, 6.0)) * self.rng.random())
            await asyncio.sleep(self.rng.choice((0.2, 3.0, 12.0, 25.0)) * self.rng.random())
            self._fine()
        self._heal()
        await self._reachable()
        await self._takes_more()
        await self._end(living, around)
        seen, process = self.expected, self.process
        return Outcome(
            self.loop.digest(), process.lives, process.boots, self.trials, seen.confirmed, len(seen.reverts),
            len(process.mailbox.acknowledged), self.loop.time(),
        )  # fmt: skip

    async def want(self, target: str, patch: Patch, **more: Any) -> Layer:
        revision = next(self._revisions)
        layer = Layer(layer_name(target), revision, patch=patch)
        self._tell("WANTED", target=target, revision=revision, patch=patch)
        self.expected.published(layer)
        document = {"revision": revision, "patch": patch, **more}
        await self.person.want(topics.desired(SITE, target), json.dumps(document).encode())
        return layer

    # --- the world goes on, whatever happens to the gateway ---

    async def _post(self) -> None:
        for number in itertools.count():
            self.process.mailbox.post({"a": float(number), "b": float(number % 7)})
            await asyncio.sleep(self.post_s)

    async def _look(self, living: asyncio.Task[None]) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            if living.done() and living.exception():
                self.failure = f"it ended by itself: {living.exception()!r}"
            gateway = self.process.gateway
            if gateway is not None and not self.failure:
                self._judge(lambda gateway=gateway: self.expected.runs(gateway.settings))

    def _starts(self, gateway: Gateway) -> None:
        assert gateway.steering is not None
        start, process = gateway.steering.origin.start, self.process
        lives = process.lives - max(self._life, process.lives_before) if process.lives != self._life else 0
        self._tell("starts" if lives else "anew", mode=start.mode, why=start.why, broker=gateway.settings.broker.mode)
        self._life = process.lives
        self._judge(lambda: self.expected.started(gateway.settings, start.mode, start.why, process.clock.boot, lives=lives))

    def _logs(self, event: dict[str, Any]) -> None:
        gateway = self.process.gateway
        self._tell(**event)
        self.trials += event["event"] == "configuration_on_trial"
        if gateway is not None:
            self._judge(lambda: self.expected.said(event, gateway.settings))
        if event["event"] in ("service_failed", "control_not_closed") and not self.failure:
            self.failure = f"at {self.loop.time():.2f} s: {event}"

    def _tell(self, event: str, **more: Any) -> None:
        if self.log:
            print(f"{self.loop.time():8.2f} {self.process.clock.boot} life {self.process.lives} {event}", more)

    def _judge(self, judge: Any) -> None:
        """What is wrong is told by the harness: raised here, the gateway would take it for its own."""
        try:
            judge()
        except Broken as error:
            self.failure = self.failure or f"at {self.loop.time():.2f} s, life {self.process.lives}: {error}"

    def _fine(self) -> None:
        require(not self.failure, self.failure)

    # --- faults ---

    async def _fault(self, kind: str) -> None:
        rng, process = self.rng, self.process
        self._tell("FAULT", kind=kind)
        if kind == "crash":
            process.crash()
        elif kind == "crash at step":
            process.fence.fall_at = process.fence.steps + rng.randrange(1, rng.choice((60, 600)))
        elif kind in ("crash at statement", "power at statement"):
            process.disk.crash_at = process.disk.statements + rng.randrange(1, rng.choice((20, 120)))
            process.dark = process.dark or kind == "power at statement"
        elif kind == "power":
            process.cut_power()
        elif kind == "ten cuts":
            for _ in range(10):
                await asyncio.sleep(rng.uniform(0.0, 6.0))
                process.cut_power()
        elif kind == "broker dies":
            broker = rng.choice((process.broker, *self.brokers.values()))
            broker.kill()
            if broker is not process.broker:
                self.loop.outside(rng.uniform(0.1, 8.0), self._again, broker)
        elif kind == "cut":
            self.lan.cut(NAME)
            self.loop.outside(rng.uniform(0.1, 30.0), self.lan.heal, NAME)
        elif kind == "uplink":
            for name in ("cloud", "plant"):
                process.receiver(name).up = rng.random() < 0.4
            process.uplink.lost, process.uplink.unheard = rng.choice((0.0, 0.1)), rng.choice((0.0, 0.1))
        elif kind == "disk":
            process.spoil(rng.choice((sqlite3.SQLITE_FULL, sqlite3.SQLITE_IOERR, sqlite3.SQLITE_READONLY)))
            await asyncio.sleep(rng.uniform(0.1, 8.0))
            process.spoil(None)
        else:
            process.mailbox.lost, process.mailbox.again = rng.choice((0.0, 0.01)), rng.choice((0.0, 0.05))

    def _again(self, broker: FakeBroker) -> None:
        if not broker.running:
            broker.start()

    def _heal(self) -> None:
        process = self.process
        process.fence.fall_at = process.disk.crash_at = None
        process.dark = process.dark and process.fence.fallen
        process.spoil(None)
        self.lan.heal()
        for broker in self.brokers.values():
            self._again(broker)
        for receiver in process.receivers.values():
            receiver.up = True
        process.uplink.lost = process.uplink.unheard = process.mailbox.lost = process.mailbox.again = 0.0

    # --- the end ---

    async def _reachable(self) -> None:
        """It says what it does, and that is so."""
        await self._until("says on its broker what it does", self._told_true, REPORTS_S_MAX + ACTIVE_S_MAX)

    async def _takes_more(self) -> None:
        """Two more documents, that need nothing and break nothing; what was harmful before is replaced by them."""
        lower = await self.want(ALL, {**threshold(self.rng), "log": {"level": "warning"}})
        await asyncio.sleep(self.rng.choice((0.0, 2.0, 30.0)))
        upper = await self.want(MINE, self.rng.choice(({}, anew(self.rng))) | {"control": {"trial_s": self.rng.choice((15, 25))}})
        name = self.expected.makes(lower, upper)
        await self._until("has taken the last two documents", lambda: self.expected.active == name, ACTIVE_S_MAX)
        await self._until("says so", self._told_true, REPORTS_S_MAX)
        gateway = self.process.gateway
        assert gateway is not None
        require(name_of(gateway.settings) == name, "another one runs than what is active")

    def _told_true(self) -> bool:
        """Somewhere, and it is what runs."""
        gateway = self.process.gateway
        if gateway is None or gateway.mesh is None or gateway.mesh.link.home is None or gateway.control is None:
            return False
        host = self.lan.resolve(NAME, gateway.mesh.link.home.address.host)
        report = self.person.reports.get((host, NAME))
        if report is None or self.expected.trial or report.state in ("trial", "validating"):
            return False
        return self.expected.says(report, gateway.settings) and self._whole(gateway)

    def _whole(self, gateway: Gateway) -> bool:
        """All parts are there, and no others."""
        settings = gateway.settings
        read = {pipeline.device for pipeline in settings.pipelines.values()}
        found = (set(gateway.sources), set(gateway.pipelines), set(gateway.deliveries))
        return found == (read & set(settings.devices), set(settings.pipelines), set(settings.sinks))

    async def _settle(self, living: asyncio.Task[None]) -> None:
        """Everything acknowledged, everything delivered, and a clean stop."""
        mailbox = self.process.mailbox
        await self._until(
            "has taken and delivered everything",
            lambda: len(mailbox.acknowledged) == len(mailbox.posted) and self._idle(),
            HEALED_S_MAX,
        )
        self.process.end()
        async with asyncio.timeout(HEALED_S_MAX):
            await living
        self._fine()

    def _idle(self) -> bool:
        gateway = self.process.gateway
        if gateway is None or not gateway.started.is_set():
            return False
        done = all(pipeline.idle for pipeline in gateway.pipelines.values())
        return done and not any(any(each.depth().values()) for each in gateway.deliveries.values())

    async def _until(self, what: str, condition: Any, limit_s: float) -> None:
        end_s = self.loop.time() + limit_s
        while not condition():
            self._fine()
            require(self.loop.time() < end_s, f"{limit_s:g} s, and it has not: {what} ({self._state()})")
            await asyncio.sleep(0.1)
        self._fine()

    def _state(self) -> str:
        reports = {host: (each.state, each.cause) for host, each in self.person.reports.items()}
        gateway = self.process.gateway
        mode = gateway.settings.broker.mode if gateway else None
        control = gateway.control.refused if gateway and gateway.control else None
        parts = {name: each.cause for name, each in gateway.parts().items() if each.phase != "ok"} if gateway else None
        return f"on trial {bool(self.expected.trial)}, reports {reports}, broker {mode}, refused {control}, parts {parts}"


def check(run: Changes) -> None:
    """Of what was acknowledged to the mailbox, at the far ends that are in every configuration that stayed."""
    past = run.expected.past
    whole = all({"raw", "windows"} <= {*each.pipelines} and "box" in each.devices for each in past)
    for name in [name for name in ("cloud", "plant") if whole and all(name in each.sinks for each in past)]:
        _delivered(name, run.process.receiver(name), run.process.mailbox.acknowledged)
    for name, receiver in run.process.receivers.items():
        require(not receiver.same_content, f"{name}: {receiver.same_content} results were computed and committed twice")


def _delivered(name: str, receiver: FakeReceiver, acknowledged: Iterable[int]) -> None:
    kept = sorted(receiver.kept.values(), key=lambda record: record.seq)
    lost = [msgspec.json.decode(record.body, type=Gap) for record in kept if record.lane is Lane.GAP]
    require(not lost, f"{name}: declared lost: {lost}")
    forwarded = [sample for record in kept if record.source == "raw" and (sample := _sample(record)).message_id]
    found, wanted = Counter(int(sample.message_id) for sample in forwarded), Counter([*acknowledged])
    require(found == wanted, f"{name}: samples: {_difference(found, wanted)}")
    results = [msgspec.json.decode(record.body, type=Result) for record in kept if record.lane is Lane.RESULT]
    shown = Counter((each.first.boot, each.first.mono_ns, each.last.mono_ns) for each in results if each.pipeline == "windows")
    windowing = Windowing(WINDOW, ["a", "b"], [0, 1])
    made = Counter(
        (window.first.boot, window.first.mono_ns, window.last.mono_ns) for each in forwarded for window in windowing.push(each)
    )
    require(shown == made, f"{name}: windows: {_difference(shown, made)}")


def _sample(record: Record) -> Sample:
    body = msgspec.json.decode(record.body)
    stamp = msgspec.structs.replace(record.stamp, wall_ns=0)
    return Sample(body["device"], stamp, tuple(body["values"].values()), body["faults"], body["message_id"])


def _difference(found: Counter[Any], wanted: Counter[Any]) -> str:
    return f"missing {[*(wanted - found).elements()][:5]}, too many {[*(found - wanted).elements()][:5]}"


def simulate(seed: int, *, log: bool = False) -> Outcome:
    """One seed. Raises Broken, Deadlock, ..."""
    return _simulated(seed, lambda folder: Changes(folder, log).run())


def crash(base: Patch, patch: Patch, crash_at: int | None, *, power: bool = False, log: bool = False) -> int:
    """One change of one gateway: see `Changes.change`. Raises as `simulate` does."""
    return _simulated(crash_at or 0, lambda folder: Changes(folder, log, base).change(patch, crash_at, power=power))


def _simulated(seed: int, main: Callable[[Path], Coroutine[Any, Any, T]]) -> T:
    """On a memory file system where there is one; nothing is left behind."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="edge-changes-", dir=memory if memory.is_dir() else None) as name:

        async def one() -> T:
            return await main(Path(name))

        return run(one, seed=seed)


if __name__ == "__main__":
    _seeds = [each for each in sys.argv[1:] if each != "--log"]
    if not _seeds or not all(each.isdecimal() for each in _seeds):
        sys.exit("usage: python -m edge_runtime.testing.changes [--log] SEED ...     (a seed is a whole number)")
    for _each in _seeds:
        print(_each, simulate(int(_each), log="--log" in sys.argv))
