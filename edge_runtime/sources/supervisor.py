"""Runs one device's adapter: when to read, how long to wait for it, what to do when it fails.

    connecting --> connected --> waiting (failed; back-off) --> broken (breaker open; only probes at the cap)
                       ^------------'---------------------------'
    unusable: it cannot work like this; tried again rarely.  ended: the source has come to its end.  stopped: by us.

An adapter is foreign code: whatever it raises is a failure of this one device. What `accept` raises is our own failure and
leaves `run`.
"""

from __future__ import annotations

import asyncio
import math
from collections.abc import Awaitable, Callable, Iterable, Sequence
from functools import partial
from typing import Literal, TypeVar

import msgspec

from edge_runtime import config
from edge_runtime.adapter import Adapter, Exhausted, Line, LinkLost, Unknown, Unusable
from edge_runtime.foreign import Strayed, awaited, in_time, watched
from edge_runtime.ports import EdgeError
from edge_runtime.records import Outcome, Sample, Stamp, Value
from edge_runtime.saying import told
from edge_runtime.sources.backoff import Backoff
from edge_runtime.sources.decoding import Decoder, why_blind
from edge_runtime.sources.handover import Accept, Handover
from edge_runtime.sources.writing import Writer, Writes

T = TypeVar("T")

UNUSABLE_RETRY_S = 60.0
"""Wait before an unusable device is tried again (longer where its `backoff_s_max` is): a missing file may have come."""

CLOSE_S_MAX = 2.0
"""An adapter's `close` that takes longer is left behind; so is waiting for its turn on the line before it."""

LET_GO = "an adapter that catches asyncio.CancelledError has to raise it again: tell its author. Until it ends nothing is read"

YIELD_SAMPLES = 64
"""A source that never has to wait lets the others run after so many samples."""

SWITCHED_ON = "is the device switched on and connected?"

Phase = Literal["connecting", "connected", "waiting", "broken", "unusable", "ended", "stopped"]


class Counters(msgspec.Struct):
    """Since the start. `reads` and `opens`: good reads, attempts to open; `overruns`: ticks that a read ran over;
    `bad_transitions`: how often downstream was told that the device is unreachable."""

    reads: int = 0
    samples: int = 0
    overruns: int = 0
    timeouts: int = 0
    failures: int = 0
    opens: int = 0
    bad_transitions: int = 0


class SourceState(msgspec.Struct, frozen=True, kw_only=True):
    """How a device is doing. `cause` and `hint` are those of the last failure; they stay after a recovery, for people."""

    device: str
    phase: Phase
    since: Stamp
    cause: str
    hint: str
    counters: Counters
    blind: str = ""
    """Why none of its values has been good since the start; "": one was, or nothing has come yet."""


class Lines:
    """The physical lines of a gateway: devices with the same key take turns on one."""

    def __init__(self) -> None:
        self._lines: dict[str, Line] = {}

    def get(self, key: str) -> Line:
        return self._lines.setdefault(key, Line(key))


class _Failure(Exception):
    """Whatever an adapter raised, told in our words."""

    def __init__(self, cause: str, hint: str = "", *, unusable: bool = False) -> None:
        super().__init__(cause)
        self.cause, self.hint, self.unusable = cause, hint, unusable


class _Interrupted(Exception):
    """A wait or a call of the adapter was ended by `stop`, or because handing over has failed."""


class Source:
    """One device under supervision. The adapter's context carries its name, points, line, clock, dice and log.

    `accept` gets every decoded sample, in order. For an adapter that redelivers it returns when they are durable; then they
    are acknowledged. `lost` gets the one sample that tells that the device became unreachable: every value None, every
    fault the reason, no message id, never acknowledged (default: `accept` gets it). `writes`: what outlives this
    source of when its points were last written.
    """

    def __init__(
        self, adapter: Adapter, device: config.Device, accept: Accept, lost: Accept | None = None, writes: Writes | None = None
    ) -> None:
        context = adapter.context
        self._adapter = adapter
        self._device = device
        self._accept = accept
        self._lost = lost or accept
        self._name, self._line, self._clock = context.device, context.line, context.clock
        self._log = context.log.bind(device=context.device)
        self._points = tuple(point.name for point in context.points)
        self._decode = Decoder(context.points)
        self._backoff = Backoff(context.dice, device.backoff_s_max)
        self._count = Counters()
        self._phase: Phase = "connecting"
        self._since = self._clock.now()
        self._cause = self._hint = ""
        self._blind: str | None = None
        self._told_lost = False
        self._kinds_logged: dict[str, None] = {}
        self._interruption: _Interrupted | _Failure | None = None
        self._scope: asyncio.Timeout | None = None
        self._unyielded = 0
        self._live = asyncio.Event()
        self._writer = Writer(adapter, device.timeout_s, self._attempt, self._live, self._give_up, writes or Writes())

    @property
    def state(self) -> SourceState:
        return SourceState(
            device=self._name, phase=self._phase, since=self._since, cause=self._cause, hint=self._hint,
            counters=msgspec.structs.replace(self._count), blind=self._blind or "",
        )  # fmt: skip

    def stop(self) -> None:
        """A clean stop: the running read is given up, what was read is handed on and acknowledged, then `run` returns.
        It may be called at any time; if `accept` never returns, neither does `run`: then cancel it."""
        self._interrupt(_Interrupted())

    async def write(self, point: str, value: Value, *, until_ns: int | None = None) -> Outcome:
        """Writes a scaled value to a point, once, on the open connection and in a gap between two reads; what may be written
        the point's `write` says. After `until_ns` (`Clock.mono_ns`) nothing is sent any more. Raises nothing; whoever
        cancels it must take the outcome for unknown."""
        return await self._writer.write(point, value, until_ns)

    async def run(self) -> None:
        """Until stopped, cancelled, or the source has come to its end. Raises only what `accept` raises."""
        try:
            while True:
                try:
                    await self._connection()
                except _Failure as failure:
                    await self._pause(await self._failed(failure))
        except Exhausted:
            self._enter("ended")
        except _Interrupted:
            pass
        finally:
            if self._phase != "ended":
                self._enter("stopped")

    # --- one connection ----------------------------------------------------------------------------------------------

    async def _connection(self) -> None:
        """Opens, and reads until something ends it; what was read is handed on in any case."""
        try:
            self._count.opens += 1
            await self._call(self._adapter.open, self._device.timeout_s)
            self._live.set()
            if not self._adapter.redelivers:
                await self._stream(self._accept)
                return
            # Not `stop`: whoever calls `run` again may go on.
            broken = partial(self._interrupt, _Failure("handing over failed"))
            async with Handover(self._accept, self._acknowledge, f"accept {self._name}", broken) as handover:
                await self._stream(handover.put)
        finally:
            self._live.clear()
            if isinstance(self._interruption, _Failure):
                self._interruption = None  # of an acknowledgement or a write on this connection
            await self._close()

    async def _stream(self, accept: Accept) -> None:
        loop = asyncio.get_running_loop()
        opened_s = loop.time()
        try:
            await (self._poll(accept) if self._adapter.mode == "polled" else self._follow(accept))
        finally:
            if loop.time() - opened_s >= self._device.backoff_s_max:
                self._backoff.succeeded()  # it was fine for long, even if it had nothing to say

    async def _poll(self, accept: Accept) -> None:
        """Reads at start + n * period: a late read does not move the ones after it; ticks it ran over are skipped."""
        loop = asyncio.get_running_loop()
        start_s, period_s, tick = loop.time(), self._device.period_s, 0
        while True:
            await self._pause(start_s + tick * period_s - loop.time())
            samples = await self._call(self._read, self._device.timeout_s)
            self._recovered()
            await self._hand_on(samples, accept)
            # A hair's breadth late (float arithmetic) is not late.
            due = max(tick + 1, math.ceil((loop.time() - start_s) / period_s - 1e-6))
            self._count.overruns += due - tick - 1
            tick = due

    async def _follow(self, accept: Accept) -> None:
        """Takes what a pushed source sends."""
        self._enter("connected")
        while True:
            samples = await self._call(self._read, None)
            self._recovered()
            await self._hand_on(samples, accept)
            self._unyielded += 1 + len(samples)
            if self._unyielded >= YIELD_SAMPLES:
                self._unyielded = 0
                await asyncio.sleep(0)

    async def _read(self) -> list[Sample]:
        found = await self._adapter.read()
        return [self._decode(sample) for sample in (found if isinstance(found, Iterable) else [found])]

    async def _hand_on(self, samples: Sequence[Sample], accept: Accept) -> None:
        self._count.reads += 1
        if samples:
            self._count.samples += len(samples)
            self._told_lost = False
            if self._blind != "":
                self._blind = why_blind(samples)
            await accept(samples)

    async def _acknowledge(self, samples: Sequence[Sample]) -> None:
        """Must not raise, so the adapter's rules say; if it does or hangs, the connection is given up, and nothing more is
        acknowledged on it: that would be out of order."""
        if isinstance(self._interruption, _Failure):
            return
        seconds = self._device.timeout_s
        try:
            if not await in_time(partial(self._adapter.acknowledge, samples), seconds, self._does_not_end):
                self._interrupt(_Failure(f"acknowledging took longer than {seconds:g} s"))
        except Exception as error:  # noqa: BLE001 - foreign code
            self._interrupt(self._told(error, "acknowledge"))

    async def _close(self) -> None:
        """In its turn on the line where that comes in time; in any case, and never for long."""
        turn = self._line.turn
        held = await in_time(turn.acquire, CLOSE_S_MAX)
        try:
            await in_time(self._adapter.close, CLOSE_S_MAX, self._does_not_end)
        except Exception as error:  # noqa: BLE001 - foreign code
            self._told(error, "close")
        finally:
            if held:
                turn.release()

    # --- calls of the adapter ----------------------------------------------------------------------------------------

    async def _call(self, function: Callable[[], Awaitable[T]], timeout_s: float | None) -> T:
        """One call of the adapter, in its turn on the line. `timeout_s` counts from the turn on; None: a pushed source's
        read, which waits for as long as it takes and holds no line. Raises _Failure, Exhausted or _Interrupted."""
        scope = self._interruptible()
        try:
            async with scope:
                if timeout_s is None:
                    return await awaited(function)
                async with self._line.turn:
                    if self._interruption is None:
                        scope.reschedule(asyncio.get_running_loop().time() + timeout_s)
                    with watched(timeout_s, self._does_not_end):
                        found = await awaited(function)
            if scope.expired() and self._interruption is None:
                raise TimeoutError  # it swallowed that it was given up, and what it brings is late
            return found
        except Exhausted:
            raise
        except Exception as error:
            if scope.expired():  # whatever the adapter made of being cancelled
                raise self._expired(timeout_s) from None
            raise self._told(error, "call") from error
        finally:
            self._scope = None

    async def _attempt(self, function: Callable[[], Awaitable[T]]) -> T:
        """One call of the adapter by the writer, who has the turn. Raises LinkLost, Unusable, or Unknown for all else."""
        scope = asyncio.timeout(self._device.timeout_s)
        try:
            async with scope:
                with watched(self._device.timeout_s, self._does_not_end):
                    return await awaited(function)
        except Exception as error:
            if scope.expired():  # whatever the adapter made of being cancelled
                self._count.timeouts += 1
                raise Unknown(f"no answer within {self._device.timeout_s:g} s", SWITCHED_ON) from None
            if isinstance(error, LinkLost | Unusable | Unknown):
                raise
            failure = self._told(error, "write")
            raise Unknown(failure.cause, failure.hint) from error

    def _give_up(self, error: EdgeError) -> None:
        """The connection, as after a timeout: it is closed and, after a wait, opened again."""
        if self._live.is_set():
            self._live.clear()
            self._interrupt(_Failure(error.cause, error.hint))

    def _expired(self, timeout_s: float | None) -> Exception:
        if self._interruption is not None:
            return self._interruption
        self._count.timeouts += 1
        return _Failure(f"no answer within {timeout_s:g} s", SWITCHED_ON)

    def _told(self, error: BaseException, where: str) -> _Failure:
        """Any exception -> a failure. One that the adapter's contract does not know is logged with its traceback, once a kind."""
        if isinstance(error, EdgeError):
            return _Failure(error.cause or type(error).__name__, error.hint, unusable=isinstance(error, Unusable))
        if isinstance(error, Strayed) and error.__cause__:
            error = error.__cause__
        kind = type(error).__name__
        if kind not in self._kinds_logged:
            self._kinds_logged[kind] = None
            self._log.error("adapter_broke_its_contract", where=where, kind=kind, exc_info=error)
        return _Failure(told(error), "this is a bug in the adapter: it raises only LinkLost, Unusable or Exhausted")

    # --- waiting, and being interrupted ------------------------------------------------------------------------------

    async def _pause(self, delay_s: float) -> None:
        """Sleeps (lets others run, at least); `stop` ends it with _Interrupted."""
        try:
            async with self._interruptible():
                await asyncio.sleep(delay_s)
        except TimeoutError:
            raise self._interruption or _Interrupted() from None
        finally:
            self._scope = None

    def _interruptible(self) -> asyncio.Timeout:
        """A scope for waiting that `_interrupt` ends. Raises at once where that has come already: an adapter that never has
        to wait would not notice its scope ending."""
        if self._interruption is not None:
            raise self._interruption
        self._scope = asyncio.timeout(None)
        return self._scope

    def _interrupt(self, reason: _Interrupted | _Failure) -> None:
        """Ends the wait or the call that is under way, or the next one; a batch on its way to `accept` is left alone."""
        if not isinstance(self._interruption, _Interrupted):  # being stopped goes before a failure
            self._interruption = reason
        if self._scope is not None and not self._scope.expired():  # an adapter may take its time to end
            self._scope.reschedule(asyncio.get_running_loop().time())

    def _does_not_end(self) -> None:
        """A call that was given up. Nothing can end it from outside, so it holds its device and line; but that is said."""
        self._cause, self._hint = "its adapter does not end a call that was given up", LET_GO
        self._enter("unusable")

    # --- transitions -------------------------------------------------------------------------------------------------

    def _recovered(self) -> None:
        self._backoff.succeeded()
        if self._phase != "connected":
            self._enter("connected")

    async def _failed(self, failure: _Failure) -> float:
        """Counts it, tells downstream once; seconds until the next attempt."""
        self._count.failures += 1
        self._cause, self._hint = failure.cause, failure.hint
        delay_s = self._backoff.failed()
        if failure.unusable:
            delay_s = max(UNUSABLE_RETRY_S, self._device.backoff_s_max)
            self._enter("unusable")
        else:
            self._enter("broken" if self._backoff.open else "waiting")
        if not self._told_lost:
            self._told_lost = True
            self._count.bad_transitions += 1
            nothing = (None,) * len(self._points)
            await self._lost([Sample(self._name, self._clock.now(), nothing, dict.fromkeys(self._points, failure.cause))])
        return delay_s

    def _enter(self, phase: Phase) -> None:
        """One line in the log a transition, never one a poll."""
        if phase == self._phase:
            return
        self._phase, self._since = phase, self._clock.now()
        if phase in ("waiting", "broken", "unusable"):
            self._log.warning("source_" + phase, cause=self._cause, hint=self._hint, failures=self._backoff.failures)
        else:
            self._log.info("source_" + phase)
