"""An adapter that keeps every rule of its contract, for a device that misbehaves: by script, or by chance with a seed.

    adapter = build(Faulty, points=[{"name": "a"}])
    adapter.reads.extend([Step.GOOD, Step.STALL, Step.LOST])     # then GOOD for ever, or what the options' chances say

    adapter.writes.extend([Step.LOST_ANSWER])                    # writes have a script of their own; `received` counts them

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
from edge_runtime.adapter import Adapter, Context, Exhausted, Field, Line, LinkLost, Sample, Unknown, Unusable, Value
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
    # Of a write only. LOST: nothing was sent. UNUSABLE: the device refuses. STALL: sent and never applied, no answer.
    LOST_ANSWER = "lost answer"  # applied, no answer
    BROKEN = "broken"  # applied, then the connection breaks
    APPLIED_LATE = "applied late"  # confirmed, applied after `late_s`
    LOST_AND_LATE = "lost and late"  # no answer, applied after `late_s`
    IGNORED = "ignored"  # confirmed, never applied


class Faulty(Adapter):
    """A polled device that misbehaves on purpose: for tests and simulations."""

    Point = adapter.WritablePoint

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
        self.writes: deque[Step] = deque()
        self.reads_back: deque[Step] = deque()
        self.calls: deque[tuple[float, str]] = deque(maxlen=CALLS_MAX)
        """(loop time, open | read | close | acknowledge | write | read_back), as they came in."""
        self.received: list[tuple[str, Value]] = []
        """Writes that reached the device, whatever it made of them."""
        self.held: dict[str, Value] = {}
        """What was written last, by point: it is read from then on."""
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

    async def write(self, point: str, value: Value) -> None:
        self._called("write")
        if not self.is_open:
            raise LinkLost("not open")
        step = self.writes.popleft() if self.writes else Step.GOOD
        if step is Step.LOST:
            await self._behave(step)
        self.received.append((point, value))
        if step in (Step.APPLIED_LATE, Step.LOST_AND_LATE):
            asyncio.get_running_loop().call_later(self.context.options.late_s, self.held.__setitem__, point, value)
        elif step in (Step.GOOD, Step.LATE, Step.LOST_ANSWER, Step.BROKEN, Step.ERROR):
            self.held[point] = value
        if step is Step.BROKEN:
            self.is_open = False
            raise Unknown("the connection broke on purpose", "this is a test")
        await self._behave(Step.STALL if step in (Step.LOST_ANSWER, Step.LOST_AND_LATE) else step)

    async def read_back(self, point: str) -> Value:
        self._called("read_back")
        if not self.is_open:
            raise LinkLost("not open")
        await self._behave(self.reads_back.popleft() if self.reads_back else Step.GOOD)
        return self.held.get(point)

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
        values.update(self.held)
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
