"""Writing one point: what may be written (pure), and how it is done once and no more.

`check` decides. `Writer` runs it, in this order: check, the line's turn, the value before, one write, reading back. Nothing is
queued and nothing is repeated: a write that was not confirmed is looked at, by reading back as soon as the device answers again.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Iterator
from dataclasses import dataclass
from functools import partial
from math import isfinite
from typing import Any

from edge_runtime.adapter import Adapter, LinkLost, Point, Unknown, Unusable, Writable, WritablePoint
from edge_runtime.document import closest
from edge_runtime.foreign import made
from edge_runtime.ports import EdgeError
from edge_runtime.records import Outcome, Value
from edge_runtime.sources.decoding import INTEGER_MAX, INTEGER_MIN

LOOK_S_MAX = 10.0
"""After a write that was not confirmed: longest wait until the device can be asked what it has now."""

LOOK_EVERY_S = 0.1
"""Between two looks at a device that does not show yet what was written."""

ROUNDED = 1e-6
"""Of a step: as much is the doing of float arithmetic (3 * 0.1 is no 0.3)."""


SINGLE = 1e-7
"""Of a number: as much is lost in 32 bits. A device that says -9999.9 there says -9999.900390625."""

TOLD_MAX = 60
"""Characters of a value in a message."""


WRITES_MAX = 10_000
"""Points whose last write is remembered, also of devices that the configuration has no more."""


@dataclass(frozen=True)
class Refusal:
    """Why a value is not written."""

    cause: str
    hint: str = ""


# --- what may be written (pure) --------------------------------------------------------------------------------------


def check(point: Point, value: Value, last_write_ns: int | None, now_ns: int) -> Value | Refusal:
    """The raw value to send, or why not. `last_write_ns`: when the point was last written, on the scale of `now_ns`.

    A number goes to the nearest value that the device can hold: of an integer register at most half a step (`scale`) away."""
    if not isinstance(point, WritablePoint) or (rule := point.write) is None:
        return Refusal(f"{point.name} may not be written", "allow it with `write` in the point's declaration")
    if (refusal := _permitted(point.name, rule, value)) or (refusal := _too_soon(rule, last_write_ns, now_ns)):
        return refusal
    raw = _fitting(point, value)
    return raw if isinstance(raw, Refusal) else _held(point, rule, value, raw) or raw


def unwritable(point: Point) -> Iterator[tuple[tuple[str | int, ...], Refusal]]:
    """What its `write` lets through and the device cannot hold: the place below `write`, and why. Of a range only the ends, and
    only where they are beyond what the device holds: what would be rounded, or says 'no value', may well lie inside."""
    if not isinstance(point, WritablePoint) or (rule := point.write) is None:
        return
    for number, value in enumerate(rule.allowed):
        if isinstance(refusal := check(point, value, None, 0), Refusal):
            yield ("allowed", number), refusal
    for key, end in (("low", rule.low), ("high", rule.high)):
        if end is not None and isinstance(raw := _fitting(point, end), Refusal):
            yield (key,), raw


def _fitting(point: WritablePoint, value: Value) -> Value | Refusal:
    try:
        return point.fit(unscaled(point, value))
    except Unusable as error:
        return Refusal(error.cause, error.hint)
    except OverflowError:
        return Refusal(f"{point.name} cannot hold {_told(value)}", "it is too large a number")


def _permitted(name: str, rule: Writable, value: Value) -> Refusal | None:
    if value is None or not isinstance(value, bool | int | float | str):
        return Refusal(f"no value for {name}", "give a number, true or false, or a text")
    if rule.allowed:
        if any(value == one and isinstance(value, bool) == isinstance(one, bool) for one in rule.allowed):
            return None
        hint = f"allowed are [{', '.join(map(_told, rule.allowed))}]"
        return Refusal(f"{_told(value)} is not among the values that {name} may be given", hint)
    hint = f"it takes {rule.low:g} to {rule.high:g}"
    if isinstance(value, bool | str):
        return Refusal(f"{_told(value)} is no number that {name} can be given", hint)
    if rule.low is None or rule.high is None or not rule.low <= value <= rule.high:
        return Refusal(f"{_told(value)} is out of the range of {name}", hint)
    return None


def _too_soon(rule: Writable, last_write_ns: int | None, now_ns: int) -> Refusal | None:
    if last_write_ns is None or (since_s := (now_ns - last_write_ns) / 1e9) >= rule.every_s_min:
        return None
    return Refusal(f"written {since_s:.3g} s ago, and at most every {rule.every_s_min:g} s", "wait, and write again")


def _held(point: Point, rule: Writable, value: Value, raw: Value) -> Refusal | None:
    """None: what the device would hold is what was meant. Rounding must lead neither beyond a limit nor far away."""
    if isinstance(raw, bool | str | None) or isinstance(value, bool | str | None):
        return None
    if isinstance(raw, float) and not isfinite(raw):
        return Refusal(f"{point.name} cannot hold {_told(value)}", "it is too large a number")
    if any(abs(raw - one) <= (SINGLE * abs(one) if isinstance(raw, float) else 0.0) for one in point.sentinels):
        return Refusal(f"{_told(value)} is what {point.name} says for 'no value'", "see the point's sentinels")
    sent = scaled(point, raw)
    if not isinstance(raw, int) or not isinstance(sent, int | float):
        return None
    step = abs(point.scale)
    if abs(sent - value) > step * (0.5 + ROUNDED):
        return Refusal(f"{point.name} cannot hold {_told(value)}", f"the nearest that it can hold is {sent}")
    slack = step * ROUNDED
    if rule.low is not None and rule.high is not None and not rule.low - slack <= sent <= rule.high + slack:
        return Refusal(f"{_told(value)} would be rounded to {sent}, out of the range of {point.name}", f"its step is {step:g}")
    return None


def unscaled(point: Point, value: Value) -> Value:
    """The raw value of a value: the inverse of what decoding does. A whole number without scaling stays exact."""
    if isinstance(value, bool | str | None) or not _linear(point):
        return value
    return (value - point.offset) / point.scale


def scaled(point: Point, raw: Value) -> Value:
    """The value of a raw value, also where decoding calls it bad: out of range is still what the device has."""
    if isinstance(raw, bool | str | None) or not _linear(point):
        return raw
    return raw * point.scale + point.offset


def shows(point: Point, found: Value, raw: Value) -> bool:
    """The device has what was sent, within the tolerance."""
    if isinstance(found, bool | str | None) or isinstance(raw, bool | str | None):
        return found == raw and isinstance(found, bool) == isinstance(raw, bool)
    tolerance = rule.tolerance if (rule := _rule(point)) else 0.0
    return found == raw or abs(found - raw) * abs(point.scale) <= tolerance


def _rule(point: Point) -> Writable | None:
    return point.write if isinstance(point, WritablePoint) else None


def _linear(point: Point) -> bool:
    return point.scale != 1.0 or point.offset != 0.0


def _told(value: Value) -> str:
    """In a message, as YAML writes it; it may be whatever somebody sent."""
    if isinstance(value, bool):
        return "true" if value else "false"
    if isinstance(value, int) and not INTEGER_MIN <= value <= INTEGER_MAX:
        return "a number of more than 64 bits"
    text = repr(value[:TOLD_MAX] if isinstance(value, str) else value)
    return text if not isinstance(value, str) or len(value) <= TOLD_MAX else f"{text}..."


# --- how it is done --------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Sent:
    """One request was sent. `doubt`: why it is not known whether it arrived (None: the device confirmed it)."""

    before: Value
    doubt: EdgeError | None


@dataclass(frozen=True)
class _Seen:
    """What reading back gave. `missing`: why there is nothing to compare."""

    raw: Value = None
    missing: str = ""


class Writes:
    """When each point was last written (`Clock.mono_ns`), by device and point. It outlives the parts that write: a restart of a
    device must not let anybody write faster than the point's declaration allows. The end of the process forgets it."""

    def __init__(self) -> None:
        self._last_ns: dict[tuple[str, str], int] = {}

    def last_ns(self, device: str, point: str) -> int | None:
        return self._last_ns.get((device, point))

    def note(self, device: str, point: str, now_ns: int) -> None:
        self._last_ns.pop((device, point), None)
        self._last_ns[device, point] = now_ns
        if len(self._last_ns) > WRITES_MAX:
            del self._last_ns[next(iter(self._last_ns))]


class Writer:
    """Of one device.

    `attempt` makes one call of the adapter, of bounded length, and raises only LinkLost, Unusable or Unknown. `live` is set
    while the device is connected. `give_up` lets the runtime close the connection and open it again.
    """

    def __init__(
        self,
        adapter: Adapter,
        timeout_s: float,
        attempt: Callable[[Callable[[], Awaitable[Any]]], Awaitable[Any]],
        live: asyncio.Event,
        give_up: Callable[[EdgeError], None],
        writes: Writes,
    ) -> None:
        self._adapter, self._timeout_s = adapter, timeout_s
        self._attempt, self._live, self._give_up = attempt, live, give_up
        self._turn, self._clock = adapter.context.line.turn, adapter.context.clock
        self._points: dict[str, Point] = {point.name: point for point in adapter.context.points}
        self._device, self._writes = adapter.context.device, writes
        self._under_way: dict[str, None] = {}

    async def write(self, name: str, value: Value, until_ns: int | None) -> Outcome:
        """Writes once. Whoever cancels it must take the outcome for unknown."""
        if (point := self._points.get(name)) is None:
            hint = closest(name, self._points, f"the points of {self._device} are")
            return _refused(value, Refusal(f"no point {name}", hint))
        if name in self._under_way:
            return _refused(value, Refusal(f"another write to {name} is under way", "wait for its outcome"))
        self._under_way[name] = None
        try:
            return await self._write(point, value, until_ns)
        finally:
            del self._under_way[name]

    async def _write(self, point: Point, value: Value, until_ns: int | None) -> Outcome:
        raw = self._may(point, value, until_ns)
        if isinstance(raw, Refusal):
            return _refused(value, raw)
        if not await self._my_turn():
            return _refused(value, Refusal(f"the line was busy for {self._timeout_s:g} s: nothing was sent", "try again"))
        try:
            sent = await self._once(point, value, raw, until_ns)
        finally:
            self._turn.release()
        if isinstance(sent, Outcome):
            return sent
        rule = _rule(point)
        if rule is not None and not rule.verify:
            return _judge(point, value, raw, sent, _Seen(missing="the point is declared with `verify: false`"))
        return _judge(point, value, raw, sent, await self._look(point, raw))

    def _may(self, point: Point, value: Value, until_ns: int | None) -> Value | Refusal:
        now_ns = self._clock.mono_ns()
        if until_ns is not None and now_ns > until_ns:
            return Refusal("it has expired: nothing was sent", "give it more time")
        if not self._live.is_set():
            return Refusal(f"{self._device} is not connected: nothing was sent", "nothing is queued: try again")
        last_ns = self._writes.last_ns(self._device, point.name)
        try:
            return made(partial(check, point, value, last_ns, now_ns), f"its adapter cannot tell what {point.name} can hold")
        except EdgeError as error:
            return Refusal(f"{error.cause}: nothing was sent", error.hint)

    async def _my_turn(self) -> bool:
        """Waits for the read that is running; not for longer than one may take."""
        try:
            async with asyncio.timeout(self._timeout_s):
                await self._turn.acquire()
        except TimeoutError:
            return False
        return True

    async def _once(self, point: Point, value: Value, raw: Value, until_ns: int | None) -> _Sent | Outcome:
        """The value before, and the one request. The caller has the turn."""
        before: Value = None
        try:
            if self._live.is_set():
                before = scaled(point, await self._attempt(partial(self._adapter.read_back, point.name)))
        except Unusable:
            pass  # a register that can only be written
        except (LinkLost, Unknown) as error:
            self._give_up(error)
            return _refused(value, Refusal(f"{error.cause}: nothing was sent", error.hint))
        again = self._may(point, value, until_ns)  # waiting took time
        if isinstance(again, Refusal):
            return _refused(value, again, before)
        self._writes.note(self._device, point.name, self._clock.mono_ns())
        try:
            await self._attempt(partial(self._adapter.write, point.name, raw))
        except Unusable as error:
            return _refused(value, Refusal(error.cause, error.hint), before)
        except LinkLost as error:
            self._give_up(error)
            return _refused(value, Refusal(f"{error.cause}: nothing was sent", error.hint), before)
        except Unknown as error:
            self._give_up(error)
            return _Sent(before, error)
        except asyncio.CancelledError:
            self._give_up(Unknown("a write was given up", "an answer of the device may still come"))
            raise
        return _Sent(before, None)

    async def _look(self, point: Point, raw: Value) -> _Seen:
        """Reads back, as soon as the device answers, until it shows what was sent or has had its time for it."""
        loop, patience_s = asyncio.get_running_loop(), rule.verify_s_max if (rule := _rule(point)) else 0.0
        seen, until_s = _Seen(missing=f"the device could not be asked within {LOOK_S_MAX:g} s"), None
        try:
            async with asyncio.timeout(LOOK_S_MAX):
                while True:
                    await self._live.wait()
                    found = await self._read_back(point)
                    if found is not None and (found.missing or shows(point, found.raw, raw)):
                        return found
                    if found is not None:
                        seen, until_s = found, loop.time() + patience_s if until_s is None else until_s
                        if loop.time() >= until_s:
                            return seen
                    await asyncio.sleep(LOOK_EVERY_S)
        except TimeoutError:
            return seen

    async def _read_back(self, point: Point) -> _Seen | None:
        """None: no answer; the connection has been given up."""
        async with self._turn:
            if not self._live.is_set():
                return None
            try:
                return _Seen(await self._attempt(partial(self._adapter.read_back, point.name)))
            except Unusable as error:
                return _Seen(missing=error.cause)
            except (LinkLost, Unknown) as error:
                self._give_up(error)
                return None


def _refused(requested: Value, why: Refusal, before: Value = None) -> Outcome:
    return Outcome(outcome="refused", requested=requested, cause=why.cause, hint=why.hint, before=before)


def _judge(point: Point, requested: Value, raw: Value, sent: _Sent, seen: _Seen) -> Outcome:
    """What was sent and what was seen -> what came of it (pure)."""

    def outcome(word: Any, cause: str = "", hint: str = "") -> Outcome:
        return Outcome(
            outcome=word,
            requested=requested,
            cause=cause,
            hint=hint,
            before=sent.before,
            sent=scaled(point, raw),
            read_back=scaled(point, seen.raw),
        )

    doubt = sent.doubt
    if seen.missing and doubt is None:
        return outcome("written", f"confirmed by the device, not read back: {seen.missing}")
    if seen.missing:
        assert doubt is not None
        cause = f"{doubt.cause}; not read back: {seen.missing}"
        return outcome("unknown", cause, "look at the device before it is written again: it may have taken the value")
    if shows(point, seen.raw, raw):
        return outcome("verified", f"{doubt.cause}; reading back shows the value" if doubt else "")
    shown = f"the device shows {_told(scaled(point, seen.raw))}, sent was {_told(scaled(point, raw))}"
    if doubt is None:
        return outcome(
            "failed", f"confirmed, but {shown}", "does the device's own program set it, or does it need longer to take it?"
        )
    return outcome(
        "failed", f"{doubt.cause}; {shown}", "what lies between may still deliver it: look again before you write again"
    )
