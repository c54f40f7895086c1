"""A node's life in the simulator, and its end: a crash leaves the world exactly as it was at that instant.

A process that is killed runs no `finally`. A task that is cancelled does, and so does a coroutine that is merely forgotten
(its finaliser throws GeneratorExit into it, whenever the garbage collector comes by). So a crash has two steps, in this order:

1. the fence falls: every port of the node refuses, and the loop never again runs a callback that belongs to this life;
2. its tasks are discarded: their coroutines are closed, and whatever their `finally` blocks try, the ports refuse it.

What belongs to a life is known by a context variable, so the tasks of a TaskGroup deep inside are found as well. Parts of the
*world* (a network, a broker) that are called by a node must schedule with `VirtualLoop.outside`, or their packets die with it.
"""

from __future__ import annotations

import asyncio
import contextlib
import contextvars
import sys
import warnings
from collections.abc import Callable, Coroutine, Iterable
from typing import Any, TypeVar

T = TypeVar("T")

CLOSES_MAX = 100
"""A `finally` that awaits swallows the GeneratorExit: the coroutine is closed again, this often at most."""


class Crashed(BaseException):
    """The node is dead. A BaseException, so that no code under test takes it for a failure that it can handle."""


class Fence:
    """One life of a node; a restarted node gets a new one. Ports check it: `check()` if they return at once, `await passage()`
    if they wait (before they touch the world, and before they return to the node)."""

    def __init__(self, node: str) -> None:
        self.node = node
        self.fallen = False
        self.steps = 0
        """Loop steps that this life has run."""
        self.fall_at: int | None = None
        """Falls instead of its n-th step: going through all n tries a crash at every await."""
        self.on_fall: list[Callable[[], None]] = []
        """What the world does at that very instant (keep the disk as it is, break connections)."""
        self.gone = asyncio.Event()
        """Set when the tasks are discarded; for the harness to wait on (the node's own tasks never end)."""
        self.held: list[asyncio.Handle] | None = None
        """While it is stopped: the steps that it will run when it goes on."""
        self.stops = 0
        self._discarding = False

    def start(self, coroutine: Coroutine[Any, Any, T], *, name: str) -> asyncio.Task[T]:
        """Begins a life: this task and all that it starts belong to it."""
        context = contextvars.copy_context()
        context.run(FENCE.set, self)
        return asyncio.get_running_loop().create_task(coroutine, name=f"{self.node}/{name}", context=context)

    def check(self) -> None:
        """For ports that return at once."""
        if self.fallen:
            raise Crashed(self.node)

    async def passage(self) -> None:
        """For ports that wait: a fallen node's call never returns."""
        if not self.fallen:
            return
        if self._discarding:
            raise Crashed(self.node)
        await asyncio.get_running_loop().create_future()

    def stop(self) -> None:
        """SIGSTOP: it runs no step, and its sockets stay open. Who waits for its word, waits."""
        if self.held is None and not self.fallen:
            self.held = []
            self.stops += 1

    def go_on(self) -> None:
        """SIGCONT: what has come in meanwhile, and every timer that went off, in that order."""
        held, self.held = self.held or (), None
        loop: Any = asyncio.get_running_loop()
        loop.resume(held)

    def fall(self) -> None:
        """kill -9. May be called from anywhere, also from inside the node's own port (which must then not return to it)."""
        if self.fallen:
            return
        self.fallen, self.held = True, None
        for callback in self.on_fall:
            callback()
        asyncio.get_running_loop().call_soon(self._discard, context=contextvars.Context())

    def _discard(self) -> None:
        self._discarding = True
        loop: Any = asyncio.get_running_loop()
        loop.crashes += 1
        context = contextvars.Context()
        context.run(FENCE.set, self)
        context.run(loop.drop, loop.tasks_of(self))
        self.gone.set()


FENCE: contextvars.ContextVar[Fence | None] = contextvars.ContextVar("fence", default=None)


def discard(tasks: Iterable[asyncio.Task[Any]]) -> None:
    """Drops tasks of a fallen node for good, now and in this order (not when the garbage collector likes), without a word."""
    hook, sys.unraisablehook = sys.unraisablehook, lambda _: None  # nor to hear of what they could not raise
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", RuntimeWarning)
        for task in tasks:
            quiet: Any = task
            quiet._log_destroy_pending = False
            _close(task.get_coro())
    sys.unraisablehook = hook


def _close(coroutine: Any) -> None:
    for _ in range(CLOSES_MAX):
        with contextlib.suppress(BaseException):  # whatever a dead node's finally blocks raise: nobody is there to hear it
            coroutine.close()
        if getattr(coroutine, "cr_frame", None) is None:
            return
