"""The one place that touches time, chance and threads: the real Clock, Dice and Worker."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import os
import queue
import random
import threading
import time
import weakref
from collections.abc import Callable
from pathlib import Path
from types import TracebackType
from typing import Any, TypeVar

from edge_runtime.ports import EdgeError
from edge_runtime.records import Stamp

T = TypeVar("T")

SYNC_CHECK_S = 5.0
"""Whether the clock is synchronised is asked at most this often."""

WORKER_CALLS_MAX = 64
"""Calls that a worker holds; who comes later waits for room."""

_BOOT_ID = Path("/proc/sys/kernel/random/boot_id")
_TIMESYNCD = Path("/run/systemd/timesync/synchronized")
_STA_UNSYNC = 0x40
_TIME_ERROR = 5


class SystemClock:
    """The machine's clock. Nanoseconds since boot go on during suspend, so that what was measured before can be dated after."""

    def __init__(self) -> None:
        self.mono_ns: Callable[[], int] = functools.partial(time.clock_gettime_ns, time.CLOCK_BOOTTIME)
        """No method: a task asks ten times, and each step through Python costs a microsecond where the caches are cold."""
        self._boot = boot_id()
        self._synced = is_synchronised()
        self._checked_ns = self.mono_ns()

    def now(self) -> Stamp:
        mono_ns = self.mono_ns()
        if mono_ns - self._checked_ns > SYNC_CHECK_S * 1e9:
            self._synced, self._checked_ns = is_synchronised(), mono_ns
        return Stamp(self._boot, mono_ns, time.time_ns(), self._synced)


class SystemDice:
    """Chance of the operating system's making."""

    def __init__(self) -> None:
        self._random = random.Random(os.urandom(16))

    def uniform(self, low: float, high: float) -> float:
        return self._random.uniform(low, high)

    def token(self) -> str:
        return os.urandom(8).hex()


def secret(size_bytes: int) -> bytes:
    """For a token that lets somebody in: nothing that could be guessed, and never from a seed."""
    return os.urandom(size_bytes)


class ThreadWorker:
    """One thread, started by the first call. It is a daemon: a driver that hangs for ever does not keep the program from ending;
    whoever needs its calls done before the program ends awaits them, or calls `close`.

    A queue and one wake of the loop: half the cost of an executor's future for each call (30 us instead of 50)."""

    def __init__(self, name: str, calls_max: int = WORKER_CALLS_MAX) -> None:
        self._name = name
        self._calls: queue.SimpleQueue[_Call | None] = queue.SimpleQueue()
        self._room = asyncio.Semaphore(calls_max)
        self._thread: threading.Thread | None = None
        self._closed = False
        self._begun = 0
        """Calls of which the thread has not said that they are over."""

    def idle(self) -> bool:
        return not self._begun

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """A call that has begun is finished even if the caller is cancelled; one that waits is then taken back. Raises EdgeError
        after `close`."""
        async with self._room:
            if self._closed:
                raise EdgeError(f"the worker {self._name} is closed", "it was used after its owner stopped")
            if self._thread is None:
                self._thread = threading.Thread(target=_work, args=(self._calls,), name=self._name, daemon=True)
                self._thread.start()
            loop = asyncio.get_running_loop()
            done: asyncio.Future[T] = loop.create_future()
            self._begun += 1
            self._calls.put((loop, done, self._over, function, args))
            return await done

    def _over(self) -> None:
        self._begun -= 1

    def close(self) -> None:
        """Waits for the running call and those that wait for it."""
        self.abandon()
        if self._thread:
            self._thread.join()

    def abandon(self) -> None:
        """Waits for nothing: the thread ends when the running call does, if it ever does."""
        self._closed = True
        self._calls.put(None)
        if self._thread:
            _abandoned[self._thread] = None


_abandoned: weakref.WeakKeyDictionary[threading.Thread, None] = weakref.WeakKeyDictionary()


def left_behind(limit_s: float = 0.5) -> list[str]:
    """Names of abandoned threads whose call does not come back, to be asked at the end of a program. The interpreter must not be
    shut down around one that is inside a driver or an engine: it would abort with "terminate called ...". `limit_s`: for all."""
    ends_s = time.monotonic() + limit_s
    for thread in list(_abandoned):
        thread.join(max(0.0, ends_s - time.monotonic()))
    return [thread.name for thread in list(_abandoned) if thread.is_alive()]


_Call = tuple[asyncio.AbstractEventLoop, "asyncio.Future[Any]", Callable[[], None], Callable[..., Any], tuple[Any, ...]]
"""Who asks, what it awaits, what it is told when the call is over (also one that nobody awaits any more), and the call."""


class _Outcome:
    """What a call returned or raised, on its way to the loop that asked: there it is raised again."""

    __slots__ = ("_done", "_error", "_loop", "_over", "value")

    def __init__(self, loop: asyncio.AbstractEventLoop, done: asyncio.Future[Any], over: Callable[[], None]) -> None:
        self._loop, self._done, self._over = loop, done, over
        self.value: Any = None

    def __enter__(self) -> _Outcome:
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> bool:
        self._error = error
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            self._loop.call_soon_threadsafe(self._settle)
        return True

    def _settle(self) -> None:
        self._over()
        if self._done.cancelled():
            return
        if self._error is None:
            self._done.set_result(self.value)
        else:
            self._done.set_exception(self._error)


def _work(calls: queue.SimpleQueue[_Call | None]) -> None:
    while (call := calls.get()) is not None:
        loop, done, over, function, args = call
        with _Outcome(loop, done, over) as outcome:
            if not done.cancelled():
                outcome.value = function(*args)
        del outcome, call, done, over, function, args  # while it waits for the next call it keeps nothing alive


def boot_id() -> str:
    """The kernel's id of this boot; without one, an id of this process (then no two processes share a boot)."""
    try:
        return _BOOT_ID.read_text().strip().replace("-", "")
    except OSError:
        return os.urandom(16).hex()


def is_synchronised() -> bool:
    """Whether something keeps the wall clock right: the kernel says so (ntpd, timesyncd, chrony with `rtcsync`), or timesyncd."""
    return _kernel_says_synchronised() or _TIMESYNCD.exists()


class _Timex(ctypes.Structure):
    """The head of `struct timex`; the padding covers the rest of it on every Linux."""

    _fields_ = [
        ("modes", ctypes.c_uint),
        ("offset", ctypes.c_long),
        ("freq", ctypes.c_long),
        ("maxerror", ctypes.c_long),
        ("esterror", ctypes.c_long),
        ("status", ctypes.c_int),
        ("rest", ctypes.c_byte * 256),
    ]


def _kernel_says_synchronised() -> bool:
    adjtimex = getattr(ctypes.CDLL(None), "adjtimex", None)
    if adjtimex is None:
        return False
    timex = _Timex()  # modes = 0: asks, changes nothing
    state = adjtimex(ctypes.byref(timex))
    return 0 <= state < _TIME_ERROR and not timex.status & _STA_UNSYNC
