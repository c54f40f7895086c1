"""Foreign code (an adapter that is not ours): whatever it raises becomes an error that one can go on with, and that names its
place. Only Ctrl-C, the end of a coroutine, and being cancelled by us go through."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable, Iterator
from typing import TypeVar

from edge_runtime.ports import EdgeError
from edge_runtime.saying import told

T = TypeVar("T")

LETS_GO_S_MAX = 5.0
"""So long a call may take to end when it has been given up: some say goodbye to their device."""


class Strayed(Exception):
    """What foreign code raised, and what nothing but a whole program may: sys.exit in what was one once, a cancellation of a
    library's own. `__cause__` has it."""


def made(build: Callable[[], T], otherwise: str) -> T:
    """Raises EdgeError, whatever that raises: `otherwise`, and why."""
    try:
        return build()
    except EdgeError:
        raise
    except (Exception, SystemExit) as error:  # noqa: BLE001 - foreign code may raise anything
        raise EdgeError(f"{otherwise}: {told(error)}", "tell its author") from None


async def awaited(function: Callable[[], Awaitable[T]]) -> T:
    """Raises what it raises, or Strayed: a library of an adapter's that cancels something of its own, say, must not end the
    supervision of its device, and nobody would say that it has ended."""
    try:
        return await function()
    except asyncio.CancelledError as error:
        task = asyncio.current_task()
        if task is None or task.cancelling():
            raise
        raise Strayed from error
    except (Exception, GeneratorExit, KeyboardInterrupt):
        raise
    except BaseException as error:
        raise Strayed from error


async def in_time(function: Callable[[], Awaitable[object]], seconds: float, late: Callable[[], None] = lambda: None) -> bool:
    """False if it took longer and was given up. `late`: see `watched`."""
    scope = asyncio.timeout(seconds)
    try:
        async with scope:
            with watched(seconds, late):
                await awaited(function)
    except TimeoutError:
        if not scope.expired():
            raise
        return False
    return True


@contextlib.contextmanager
def watched(seconds: float, late: Callable[[], None]) -> Iterator[None]:
    """`late` is called where what is done inside was given up after so many seconds and still has not ended some time later."""
    timer = asyncio.get_running_loop().call_later(seconds + LETS_GO_S_MAX, late)
    try:
        yield
    finally:
        timer.cancel()
