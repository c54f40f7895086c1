"""An asyncio event loop on virtual time: no sleeping, no threads, no chance. The same seed gives the same run, step by step.

    async def scenario() -> int: ...
    run(scenario, seed=17)          # an hour of one-second ticks takes milliseconds

What it takes to be repeatable, in another process too:

- time starts at 0 and jumps to the next timer when nothing is ready; equal timers go off in an order drawn from the seed
  (asyncio promises none), so that different seeds try different interleavings;
- tasks and futures hash by a number, not by their address: asyncio.TaskGroup cancels its tasks in the order of a set;
- tasks that were given no name are numbered by their loop, not by the process;
- the garbage collector, which runs finalisers, comes at fixed steps;
- nothing comes from outside: no sockets, no threads, no signals. They stand behind ports, and the simulator plugs its own.

A run that cannot go on says so: Deadlock (nobody is ready and no timer is set), Livelock (it spins).
"""

from __future__ import annotations

import asyncio
import contextvars
import gc
import hashlib
import heapq
import itertools
import random
import threading
from collections import deque
from collections.abc import Callable, Coroutine, Iterable
from pathlib import Path
from typing import Any, NoReturn, TypeVar, TypeVarTuple

from edge_runtime.testing.fence import FENCE, Crashed, Fence, discard
from edge_runtime.testing.node import InlineWorker, SeededDice, VirtualClock

__all__ = [
    "Crashed",
    "Deadlock",
    "Fence",
    "InlineWorker",
    "Livelock",
    "SeededDice",
    "Unhandled",
    "VirtualClock",
    "VirtualLoop",
    "discard",
    "run",
]

T = TypeVar("T")
Ts = TypeVarTuple("Ts")

STEPS_MAX = 20_000_000
STEPS_INSTANT_MAX = 1_000_000
"""Steps without any virtual time passing: somebody waits in a busy loop."""

STEPS_COLLECT = 50_000
"""The garbage collector comes every so many steps."""

TRACE_STEPS = 200
"""The last steps are kept, for the message of a run that failed."""

TIMERS_CANCELLED_MIN = 100


class Deadlock(Exception):
    """Nothing is ready, no timer is set, and the run has not ended. Says which tasks wait, and where."""


class Livelock(Exception):
    """The run makes steps and gets nowhere. Says which tasks made the last steps."""


class Unhandled(Exception):
    """A task failed and nobody asked for its result, or something else that asyncio would only have logged."""


class SimTask(asyncio.Task[Any]):
    """A task that hashes by its number, and knows the life that it belongs to."""

    def __init__(self, coro: Any, *, serial: int, fence: Fence | None, **options: Any) -> None:
        self.serial = serial
        self.fence = fence
        super().__init__(coro, **options)

    def __hash__(self) -> int:
        return self.serial

    def cancel(self, msg: Any = None) -> bool:
        """A dead node's `finally` blocks cancel nobody."""
        return False if self.fence is not None and self.fence.fallen else super().cancel(msg)


class SimFuture(asyncio.Future[Any]):
    def __init__(self, *, serial: int, fence: Fence | None, loop: asyncio.AbstractEventLoop) -> None:
        self.serial = serial
        self.fence = fence
        super().__init__(loop=loop)

    def __hash__(self) -> int:
        return self.serial


class VirtualLoop(asyncio.BaseEventLoop):
    """See the module's text. `steps` counts; `digest()` is the fingerprint of all steps so far (time and task of each)."""

    def __init__(self, seed: int, *, steps_max: int = STEPS_MAX) -> None:
        super().__init__()
        self.seed = seed
        self.steps = 0
        self.steps_max = steps_max
        self.trace: deque[tuple[float, str]] = deque(maxlen=TRACE_STEPS)
        self.complaints: list[dict[str, Any]] = []
        self.crashes = 0
        self._now = 0.0
        self._instant = 0
        self._hash = hashlib.blake2b(digest_size=16)
        self._ties = self.rng("loop").random
        self._timers: list[tuple[float, float, int, asyncio.TimerHandle]] = []
        self._timers_cancelled = 0
        self._serials = itertools.count(1)
        self._tasks: dict[int, SimTask] = {}
        self._tasks_sweep = 1_000
        self._generators: dict[int, Fence | None] = {}

    # --- for the harness ---------------------------------------------------------------------------------------------

    def rng(self, name: str) -> random.Random:
        """A stream of chance of its own for each part, so that one part's draws do not shift another's."""
        return random.Random(f"{self.seed}/{name}")

    def digest(self) -> str:
        return self._hash.hexdigest()

    def outside(self, delay_s: float, callback: Callable[[*Ts], object], *args: *Ts) -> asyncio.TimerHandle:
        """An event of the world: it happens even if the node that caused it dies before."""
        return self.call_at(self._now + delay_s, callback, *args, context=contextvars.Context())

    def tasks_of(self, fence: Fence | None) -> list[SimTask]:
        """The unfinished tasks of one life (None: of the harness and the world), oldest first."""
        return [task for task in self._tasks.values() if task.fence is fence and not task.done()]

    def unfinished(self) -> list[SimTask]:
        """Of all that are alive, oldest first."""
        return [task for task in self._tasks.values() if not task.done() and not (task.fence and task.fence.fallen)]

    def drop(self, tasks: list[SimTask]) -> None:
        """Discards unfinished tasks without running them on."""
        discard(tasks)
        for task in tasks:
            self._tasks.pop(task.serial, None)

    def resume(self, handles: Iterable[asyncio.Handle]) -> None:
        """Steps of a life that was stopped; those that were cancelled meanwhile are left out when their turn comes."""
        self._ready.extend(handles)  # type: ignore[attr-defined]

    def finish(self) -> None:
        """A clean end: cancels what is left, and finds what failed without anybody asking."""
        self.run_until_complete(_cancel(self.unfinished(), self.complaints))
        self.run_until_complete(self.shutdown_asyncgens())
        for task in self._tasks.values():
            asked: Any = task
            if task.done() and not task.cancelled() and asked._log_traceback:
                self.call_exception_handler(
                    {"message": "a task failed, nobody asked", "exception": task.exception(), "task": task}
                )

    # --- asyncio's side ----------------------------------------------------------------------------------------------

    def time(self) -> float:
        return self._now

    def create_task(self, coro: Any, *, name: object = None, context: contextvars.Context | None = None, **more: Any) -> Any:
        self._check_closed()  # type: ignore[attr-defined]
        serial = next(self._serials)
        fence = FENCE.get() if context is None else context.get(FENCE)
        task = SimTask(coro, serial=serial, fence=fence, loop=self, name=str(name or f"task-{serial}"), context=context, **more)
        self._tasks[serial] = task
        if len(self._tasks) > self._tasks_sweep:
            self._tasks = {number: each for number, each in self._tasks.items() if not each.done()}
            self._tasks_sweep = max(1_000, 2 * len(self._tasks))
        return task

    def create_future(self) -> SimFuture:
        return SimFuture(serial=next(self._serials), fence=FENCE.get(), loop=self)

    def call_later(
        self, delay: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        return self.call_at(self._now + delay, callback, *args, context=context)

    def call_at(
        self, when: float, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.TimerHandle:
        self._check_closed()  # type: ignore[attr-defined]
        timer: Any = asyncio.TimerHandle(when, callback, args, self, context)
        timer._scheduled = True
        heapq.heappush(self._timers, (when, self._ties(), next(self._serials), timer))
        return timer  # type: ignore[no-any-return]

    def _timer_handle_cancelled(self, handle: asyncio.TimerHandle) -> None:
        self._timers_cancelled += 1
        if self._timers_cancelled > max(TIMERS_CANCELLED_MIN, len(self._timers) // 2):
            self._timers = [timer for timer in self._timers if not timer[3].cancelled()]
            heapq.heapify(self._timers)
            self._timers_cancelled = 0

    def call_soon_threadsafe(
        self, callback: Callable[[*Ts], object], *args: *Ts, context: contextvars.Context | None = None
    ) -> asyncio.Handle:
        own = self._thread_id  # type: ignore[attr-defined]
        if own is not None and own != threading.get_ident():
            raise RuntimeError(f"a thread called into the simulated loop ({callback!r}): put threads behind ports.Worker")
        return self.call_soon(callback, *args, context=context)

    def call_exception_handler(self, context: dict[str, Any]) -> None:
        """What asyncio would log. A dead node has nothing to say (nor does a gather() that may have been its own)."""
        owner = context.get("task") or context.get("future")
        if isinstance(owner, SimTask | SimFuture):
            dead = owner.fence is not None and owner.fence.fallen
        else:
            dead = self.crashes > 0 and owner is not None
        if not dead:
            self.complaints.append(context)

    def _asyncgen_firstiter_hook(self, agen: Any) -> None:
        self._generators[id(agen)] = FENCE.get()  # by id: weak references are gone when a finaliser runs
        super()._asyncgen_firstiter_hook(agen)  # type: ignore[misc]

    def _asyncgen_finalizer_hook(self, agen: Any) -> None:
        fence = self._generators.pop(id(agen), None)
        if fence is None or not fence.fallen:
            super()._asyncgen_finalizer_hook(agen)  # type: ignore[misc]

    def _run_once(self) -> None:
        ready: deque[Any] = self._ready  # type: ignore[attr-defined]
        if not ready and not self._stopping:  # type: ignore[attr-defined]
            self._jump()
        while self._timers and self._timers[0][0] <= self._now:
            timer: Any = heapq.heappop(self._timers)[3]
            timer._scheduled = False
            if timer._cancelled:
                self._timers_cancelled -= 1
            else:
                ready.append(timer)
        for _ in range(len(ready)):
            handle = ready.popleft()
            if not handle._cancelled:
                self._step(handle)

    def _jump(self) -> None:
        """Nothing is ready: on to the next timer."""
        while self._timers and self._timers[0][3].cancelled():
            heapq.heappop(self._timers)
            self._timers_cancelled -= 1
        if not self._timers:
            raise Deadlock(f"nothing is ready and no timer is set at {self._now} s; these wait:\n{self._waiting()}")
        if self._timers[0][0] > self._now:
            self._now = self._timers[0][0]
            self._instant = self.steps

    def _step(self, handle: Any) -> None:
        context, callback = handle._context, handle._callback
        fence = context.get(FENCE)
        if fence is not None:
            if fence.fallen:
                return
            if fence.held is not None:
                fence.held.append(handle)
                return
            fence.steps += 1
            if fence.steps == fence.fall_at:
                fence.fall()
                return
        self.steps += 1
        owner = getattr(callback, "__self__", None)
        name = owner.get_name() if type(owner) is SimTask else getattr(callback, "__qualname__", "-")
        self.trace.append((self._now, name))
        self._hash.update(f"{self._now!r} {name}\n".encode())
        if self.steps % STEPS_COLLECT == 0:
            self._limits()
        context.run(callback, *handle._args)

    def _limits(self) -> None:
        gc.collect(1)
        if self.steps >= self.steps_max or self.steps - self._instant > STEPS_INSTANT_MAX:
            last = "\n".join(f"  {when} s  {name}" for when, name in list(self.trace)[-10:])
            raise Livelock(f"{self.steps} steps, {self.steps - self._instant} of them at {self._now} s; the last ones:\n{last}")

    def _waiting(self) -> str:
        return "\n".join(f"  {task.get_name()}: {_where(task)}" for task in self.unfinished())


def _refuse(*_: Any, **__: Any) -> NoReturn:
    raise RuntimeError("the simulated loop has no sockets, threads, processes and signals: put them behind a port")


for _name in (
    "add_reader",
    "add_signal_handler",
    "add_writer",
    "create_connection",
    "create_datagram_endpoint",
    "create_server",
    "create_unix_connection",
    "create_unix_server",
    "getaddrinfo",
    "run_in_executor",
    "subprocess_exec",
    "subprocess_shell",
):
    setattr(VirtualLoop, _name, _refuse)


def run(main: Callable[[], Coroutine[Any, Any, T]], *, seed: int, steps_max: int = STEPS_MAX) -> T:
    """Runs `main()` to its end on virtual time and cancels what it left behind. An error carries a note with the seed.

    Raises Deadlock, Livelock, and Unhandled where asyncio would only have logged.
    """
    loop = VirtualLoop(seed, steps_max=steps_max)
    collecting = gc.isenabled()
    gc.disable()
    try:
        result: T = loop.run_until_complete(loop.create_task(main(), name="main"))
        loop.finish()
        if loop.complaints:
            first = loop.complaints[0]
            raise Unhandled(first.get("message", "")) from first.get("exception")
        return result
    except BaseException as error:
        error.add_note(f"simulated with seed={seed}: at {loop.time()} s, step {loop.steps}")
        raise
    finally:
        loop.drop([task for task in loop._tasks.values() if not task.done()])
        loop.close()
        if collecting:
            gc.enable()


async def _cancel(tasks: list[SimTask], complaints: list[dict[str, Any]]) -> None:
    for task in tasks:
        task.cancel()
    for task, result in zip(tasks, await asyncio.gather(*tasks, return_exceptions=True), strict=True):
        if isinstance(result, Exception):
            complaints.append({"message": f"{task.get_name()} failed while it was cancelled", "exception": result})


def _where(task: asyncio.Task[Any]) -> str:
    """The chain of awaits, innermost last: gateway.py:40 run > delivery.py:73 _loop."""
    chain = []
    at: Any = task.get_coro()
    while at is not None:
        frame = getattr(at, "cr_frame", None) or getattr(at, "gi_frame", None) or getattr(at, "ag_frame", None)
        if frame is not None:
            chain.append(f"{Path(frame.f_code.co_filename).name}:{frame.f_lineno} {frame.f_code.co_name}")
        at = getattr(at, "cr_await", None) or getattr(at, "gi_yieldfrom", None) or getattr(at, "ag_await", None)
    return " > ".join(chain)
