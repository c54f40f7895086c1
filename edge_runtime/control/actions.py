"""What rules do (runs): an alarm that is raised or cleared writes a point, within the point's own limits, once.

    pipeline: event committed --> audit: intent, with pipeline, model and window --> write --> audit: outcome

It is done after the event is on the disk, so that a window that is computed again after a crash does nothing twice; a crash in
between costs the action, never doubles it. Nothing waits for it: a device that does not answer holds up no pipeline, and what
could not be done within ACTION_S_MAX is not done any more.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import msgspec

from edge_runtime.control.audit import AuditError, AuditLog, Entry, Kind
from edge_runtime.ports import Clock
from edge_runtime.records import Outcome, Value

ACTION_S_MAX = 5.0
"""From the event to the write: later the plant is in another state than the one that was judged."""

DRAINED_S = 0.02
DEVICE_S = 0.1
"""Between two looks whether a device is there."""
WAITING_MAX = 100
ABREAST_MAX = 8
"""Actions under way at once: devices that do not answer take their time."""


class Action(msgspec.Struct, frozen=True, kw_only=True):
    """`window` and `model` (name@version) are what was judged; `result` is its result's id."""

    pipeline: str
    rule: str
    raised: bool
    device: str
    point: str
    value: Value
    model: str
    window: str
    result: str


Write = Callable[[str, str, Value, int], Awaitable[Outcome]]
"""Device, point, value, until when (monotonic nanoseconds)."""


Due = tuple[Action, int]
"""And until when, by the monotonic clock."""


class Actions:
    """Of one gateway. `take` may be called at any time."""

    def __init__(
        self, write: Write, ready: Callable[[str], bool], audit: AuditLog | None, clock: Clock, log: Any, left: Sequence[Due] = ()
    ) -> None:
        """`ready`: whether a device is connected. `left`: what a gateway before this one, in this process, did not come to."""
        self._write, self._ready, self._audit, self._clock, self._log = write, ready, audit, clock, log
        self._waiting: asyncio.Queue[Due] = asyncio.Queue(WAITING_MAX + ABREAST_MAX)
        for due in left:
            self._waiting.put_nowait(due)
        self._under_way = 0
        self.outcomes: Counter[str] = Counter()

    def take(self, action: Action) -> None:
        """Never waits; what is too much is not done, and the log says so."""
        if self._waiting.qsize() >= WAITING_MAX:
            self._tell(action, "refused", f"{WAITING_MAX} actions wait already")
        else:
            self._waiting.put_nowait((action, self._clock.mono_ns() + round(ACTION_S_MAX * 1e9)))

    async def drained(self) -> None:
        """Returns when nothing waits and nothing is under way."""
        while self._waiting.qsize() or self._under_way:  # noqa: ASYNC110 - rarely, at a stop
            await asyncio.sleep(DRAINED_S)

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            for number in range(ABREAST_MAX):
                group.create_task(self._work(), name=f"action-{number}")

    async def _work(self) -> None:
        while True:
            action, until_ns = await self._waiting.get()
            self._under_way += 1
            try:
                await self._until_ready(action, until_ns)
                await self._do(action, until_ns)
            finally:
                self._under_way -= 1

    async def _until_ready(self, action: Action, until_ns: int) -> None:
        """The device may be restarting. Nothing is begun before; who is stopped meanwhile leaves it to the next one."""
        try:
            while not self._ready(action.device) and self._clock.mono_ns() < until_ns:  # noqa: ASYNC110 - no event tells it
                await asyncio.sleep(DEVICE_S)
        except asyncio.CancelledError:
            self._waiting.put_nowait((action, until_ns))
            raise

    def left(self) -> list[Due]:
        """What was not begun, after the end of `run`."""
        return [self._waiting.get_nowait() for _ in range(self._waiting.qsize())]

    def give_up(self) -> None:
        """Nobody comes after us."""
        for action, _ in self.left():
            if self._audit:
                self._audit.note(msgspec.structs.replace(self._entry(action), outcome="refused"))
            self._tell(action, "refused", "the gateway was stopped")

    async def _do(self, action: Action, until_ns: int) -> None:
        if self._audit is None:
            self._tell(action, "refused", "there is no audit log")
            return
        try:
            number = await self._audit.begin(self._entry(action))
        except AuditError as error:
            self._tell(action, "refused", f"it cannot be written to the audit log: {error.cause}")
            return
        found = await self._write(action.device, action.point, action.value, until_ns)
        await self._audit.complete(
            number, found.outcome, before=found.before, read_back=found.read_back, why=f"{_why(action)}: {found.cause}"
        )
        # Why it failed may say what was to be written and what was read back: no log has values.
        self._tell(action, found.outcome, f"see entry {number} of the audit log" if found.cause else "")

    def _entry(self, action: Action) -> Entry:
        return Entry(
            kind=Kind.RULE,
            actor=f"rule:{action.pipeline}/{action.rule}",
            via="rule",
            subject=f"point {action.device}/{action.point}",
            requested=action.value,
            why=_why(action),
        )

    def _tell(self, action: Action, outcome: str, cause: str) -> None:
        self.outcomes[outcome] += 1
        log = self._log.info if outcome in ("verified", "written") else self._log.error
        log(
            "rule_action", pipeline=action.pipeline, rule=action.rule, device=action.device, point=action.point,
            result=action.result, outcome=outcome, cause=cause,
        )  # fmt: skip


def _why(action: Action) -> str:
    what = "raised" if action.raised else "cleared"
    model = f", model {action.model}" if action.model else ""
    return f"{action.rule} {what} by pipeline {action.pipeline}{model}, window {action.window}, result {action.result}"
