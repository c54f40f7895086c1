"""An adapter that keeps every rule of its contract, for a device that misbehaves: by script, or by chance with a seed.

    adapter = build(Faulty, points=[{"name": "a"}])
    adapter.reads.extend([Step.GOOD, Step.STALL, Step.LOST])     # then GOOD for ever, or what the options' chances say

`Faulty` is polled. `FaultyPush` sends numbered messages and asks for acknowledgements: like a broker it hands out only so
many unacknowledged ones, and those come again after a reconnect.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Mapping, Sequence
from enum import StrEnum
from pathlib import Path
from typing import Any, TypeVar

import structlog

from edge_runtime import adapter, ports
from edge_runtime.adapter import Adapter, Context, Exhausted, Field, Line, LinkLost, Sample, Unusable, Value
from edge_runtime.board.system import SystemClock, SystemDice

A = TypeVar("A", bound=Adapter)

CALLS_MAX = 100_000
"""Calls that are remembered."""


class Step(StrEnum):
    """What the device does with one call."""

    GOOD = "good"
    BAD = "bad"  # it answers, and one value is bad
    LATE = "late"  # it answers after `late_s`
    STALL = "stall"  # it never answers
    LOST = "lost"
    UNUSABLE = "unusable"
    ERROR = "error"  # an exception that the contract does not know
    CANCELLED = "cancelled"  # a library of the adapter's cancels something of its own
    END = "end"


class Faulty(Adapter):
    """A polled device that misbehaves on purpose: for tests and simulations."""

    class Options(adapter.Options):
        latency_s: float = Field(0.0, ge=0, description="Until it answers")
        late_s: float = Field(5.0, ge=0, description="Until it answers when it is late")
        lost: float = Field(0.0, ge=0, le=1, description="Chance that a call finds the connection lost")
        stall: float = Field(0.0, ge=0, le=1, description="Chance that a call is never answered")
        late: float = Field(0.0, ge=0, le=1, description="Chance that a call is answered late")
        bad: float = Field(0.0, ge=0, le=1, description="Chance that a value is bad")
        error: float = Field(0.0, ge=0, le=1, description="Chance of an exception that the contract does not know")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.opens: deque[Step] = deque()
        self.reads: deque[Step] = deque()
        self.calls: deque[tuple[float, str]] = deque(maxlen=CALLS_MAX)
        """(loop time, open | read | close | acknowledge), as they came in."""
        self.number = 0
        """Of the last sample; point i of sample n has the value n + i."""
        self.is_open = False

    async def open(self) -> None:
        self._called("open")
        await self._behave(self._next(self.opens))
        self.is_open = True

    async def read(self) -> Sequence[Sample]:
        self._called("read")
        if not self.is_open:
            raise LinkLost("not open")
        step = self._next(self.reads)
        await self._behave(step)
        self.number += 1
        return [self._sample(self.number, step)]

    async def close(self) -> None:
        self._called("close")
        self.is_open = False

    def times(self, call: str) -> list[float]:
        return [at for at, what in self.calls if what == call]

    def _called(self, what: str) -> None:
        self.calls.append((asyncio.get_running_loop().time(), what))

    def _next(self, script: deque[Step]) -> Step:
        if script:
            return script.popleft()
        options, draw = self.context.options, self.context.dice.uniform(0.0, 1.0)
        for step in (Step.LOST, Step.STALL, Step.LATE, Step.BAD, Step.ERROR):
            chance = float(getattr(options, step.value))
            if draw < chance:
                return step
            draw -= chance
        return Step.GOOD

    async def _behave(self, step: Step) -> None:
        options = self.context.options
        if step is Step.STALL:
            await asyncio.get_running_loop().create_future()
        await asyncio.sleep(options.late_s if step is Step.LATE else options.latency_s)
        if step in _RAISES:
            self.is_open = self.is_open and step is not Step.LOST
            raise _RAISES[step]()

    def _sample(self, number: int, step: Step, message_id: str = "") -> Sample:
        names = [point.name for point in self.context.points]
        values: dict[str, Value] = {name: float(number + i) for i, name in enumerate(names)}
        faults = {names[0]: "bad on purpose"} if step is Step.BAD else {}
        return self.context.sample(values, faults, message_id=message_id)


class FaultyPush(Faulty):
    """A source that sends numbered messages, and again those that were not acknowledged: for tests and simulations."""

    mode = "pushed"

    class Options(Faulty.Options):
        interval_s: float = Field(0.0, ge=0, description="Between two messages")
        messages: int | None = Field(None, ge=0, description="So many, then it is at its end (default: it never is)")
        unacknowledged_max: int = Field(20, ge=1, description="Messages handed out before the first is acknowledged")

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self.acknowledged: list[int] = []
        """Numbers, in the order in which they were acknowledged."""
        self._room = asyncio.Event()

    @property
    def redelivers(self) -> bool:
        return True

    async def open(self) -> None:
        await super().open()
        self.number = len(self.acknowledged)

    async def read(self) -> Sequence[Sample]:
        self._called("read")
        if not self.is_open:
            raise LinkLost("not open")
        options = self.context.options
        while self.number - len(self.acknowledged) >= options.unacknowledged_max:
            self._room.clear()
            await self._room.wait()
        if options.messages is not None and self.number >= options.messages:
            raise Exhausted
        step = self._next(self.reads)
        await self._behave(step)
        if options.interval_s:
            await asyncio.sleep(options.interval_s)
        self.number += 1
        return [self._sample(self.number, step, str(self.number))]

    async def acknowledge(self, samples: Sequence[Sample]) -> None:
        self._called("acknowledge")
        for sample in samples:
            number = int(sample.message_id)
            if self.is_open and number == len(self.acknowledged) + 1:
                self.acknowledged.append(number)
        self._room.set()


class NoBus:
    """ports.Bus without a broker."""

    async def connect(
        self, address: ports.Address, *, will: ports.Will | None = None, timeout_s: float = 5.0
    ) -> ports.Connection:
        raise ports.BrokerError("there is no broker in this test")


def build(
    kind: type[A],
    options: Mapping[str, Any] | None = None,
    points: Sequence[Mapping[str, Any]] = ({"name": "a"},),
    *,
    device: str = "device",
    line: Line | None = None,
    clock: ports.Clock | None = None,
    dice: ports.Dice | None = None,
    bus: ports.Bus | None = None,
    log: Any = None,
    resolve: Callable[[str], Path] = Path,
) -> A:
    """An adapter with a context of real parts where none is given. Raises pydantic.ValidationError."""
    checked = kind.Options(**dict(options or {}))
    context = Context(
        device=device,
        options=checked,
        points=tuple(kind.Point(**dict(point)) for point in points),
        clock=clock or SystemClock(),
        dice=dice or SystemDice(),
        line=line or Line(kind.line(device, checked)),
        bus=bus or NoBus(),
        log=log or structlog.get_logger(),
        resolve=resolve,
    )
    return kind(context)


_RAISES: dict[Step, Callable[[], BaseException]] = {
    Step.LOST: lambda: LinkLost("lost on purpose", "this is a test"),
    Step.UNUSABLE: lambda: Unusable("unusable on purpose", "this is a test"),
    Step.ERROR: lambda: ZeroDivisionError("on purpose"),
    Step.CANCELLED: asyncio.CancelledError,
    Step.END: Exhausted,
}
