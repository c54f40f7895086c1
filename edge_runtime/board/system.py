"""The one place that touches time, chance and threads: the real Clock, Dice and Worker."""

from __future__ import annotations

import asyncio
import ctypes
import os
import random
import time
from collections.abc import Callable
from concurrent.futures import ThreadPoolExecutor
from pathlib import Path
from typing import Any, TypeVar

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
        self._boot = boot_id()
        self._synced = is_synchronised()
        self._checked_ns = self.mono_ns()

    def mono_ns(self) -> int:
        return time.clock_gettime_ns(time.CLOCK_BOOTTIME)

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


class ThreadWorker:
    """One thread, started by the first call. It is no daemon: leaving the program waits for the running call."""

    def __init__(self, name: str, calls_max: int = WORKER_CALLS_MAX) -> None:
        self._thread = ThreadPoolExecutor(max_workers=1, thread_name_prefix=name)
        self._room = asyncio.Semaphore(calls_max)

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """A call that has begun is finished even if the caller is cancelled; one that waits is then taken back."""
        async with self._room:
            return await asyncio.get_running_loop().run_in_executor(self._thread, function, *args)

    def close(self) -> None:
        """Waits for the running call and those that wait for it."""
        self._thread.shutdown(wait=True)


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
