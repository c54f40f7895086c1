"""The services of a gateway (a supervisor): each runs by itself, and one that fails by a fault of ours is started again after a
while, whatever the others do.

    services = Services(log)
    task = services.keep("pipeline wear", pipeline.run)
    await services.drop("pipeline wear")
    services.failures["pipeline wear"].cause
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Coroutine, Iterable, Sequence
from dataclasses import dataclass
from typing import Any, TypeVar

from edge_runtime.ports import EdgeError
from edge_runtime.saying import told

RESTART_S_MIN, RESTART_S_MAX = 1.0, 30.0
"""Wait before a service that failed unexpectedly is started again."""
LEFT_S_MAX = 15.0
"""So long one may take to end: a broker may take 5 s to write what it keeps."""

IN_A_THREAD = "an adapter that calls a blocking library has to give it a time-out: tell its author"


@dataclass(frozen=True)
class Failure:
    """Of a service, by a fault of ours. `at_s`: the last one, as the event loop's time."""

    count: int
    at_s: float
    cause: str


F = TypeVar("F", bound="asyncio.Future[Any]")


class Services:
    """Of one gateway, by name, in the order in which they were started."""

    def __init__(self, log: Any) -> None:
        self._log = log
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self.failures: dict[str, Failure] = {}

    def __contains__(self, name: str) -> bool:
        return name in self._tasks

    def keep(self, name: str, service: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Runs it until it returns or is dropped. Two of one name would be one too many, and nobody could drop the first."""
        if name in self._tasks and not self._tasks[name].done():
            raise EdgeError(f"{name} runs already", "report it")
        self._tasks[name] = asyncio.create_task(self._supervised(name, service), name=name)
        return self._tasks[name]

    async def drop(self, *names: str) -> None:
        """All of them at once; returns when they have ended. A name that is not there is none too many. One that does not end
        when it is told to (in an adapter that swallows that) is left behind."""
        for task in await cancel([self._tasks.pop(name) for name in names if name in self._tasks], LEFT_S_MAX):
            hint = "an adapter that catches asyncio.CancelledError has to raise it again: tell its author"
            self._log.error("service_left_behind", service=task.get_name(), cause="it does not end when told to", hint=hint)

    async def drop_all(self, but: Iterable[str] = ()) -> None:
        await self.drop(*[name for name in self._tasks if name not in but])

    async def ended(self, names: Sequence[str], limit_s: float) -> None:
        """Returns when these have ended by themselves, or the time is up."""
        tasks = [self._tasks[name] for name in names if name in self._tasks]
        if tasks:
            await asyncio.wait(tasks, timeout=limit_s)

    async def _supervised(self, name: str, service: Callable[[], Awaitable[None]]) -> None:
        wait_s, clock = RESTART_S_MIN, asyncio.get_running_loop().time
        while True:
            began_s = clock()
            try:
                return await service()
            except Exception as error:  # noqa: BLE001 - a supervisor: one service's bug must not stop the others
                if clock() - began_s > RESTART_S_MAX:
                    wait_s = RESTART_S_MIN
                count = self.failures[name].count + 1 if name in self.failures else 1
                self.failures[name] = Failure(count, clock(), told(error))
                self._log.exception("service_failed", service=name, error=told(error), again_in_s=wait_s)
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, RESTART_S_MAX)


async def within(limit_s: float, waits: Sequence[Awaitable[None]]) -> None:
    """All of them, or until the time is up."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=limit_s)
        await cancel(list(late))


async def cancel(tasks: Sequence[F], limit_s: float | None = None) -> set[F]:
    """Returns those that go on all the same when the time is up."""
    for task in tasks:
        task.cancel()
    return (await asyncio.wait(tasks, timeout=limit_s))[1] if tasks else set()


left: list[asyncio.Future[Any]] = []
"""What did not end before its loop did. Kept, for Python would end it in the middle; whoever ends the process ends around it."""


def run_to_the_end(main: Coroutine[Any, Any, None], log: Any) -> None:
    """As asyncio.run, but that tasks, and calls in threads of the loop, which do not end when they are told to end with the
    process (see `left`): it would wait for ever."""
    loop = asyncio.new_event_loop()
    asyncio.set_event_loop(loop)
    try:
        loop.run_until_complete(main)
    except SystemExit as error:  # in a task, or a call back, that an adapter has left: no supervisor is around it
        log.error("process_ended", cause=f"sys.exit was called: {told(error)}", hint="tell the author of what is at that place")
        raise
    finally:
        if late := loop.run_until_complete(cancel(list(asyncio.all_tasks(loop)), LEFT_S_MAX)):
            log.error("tasks_left_behind", tasks=sorted(task.get_name() for task in late))
        loop.run_until_complete(loop.shutdown_asyncgens())
        threads = loop.create_task(loop.shutdown_default_executor())  # cancelled, it would wait all the same
        if waits := loop.run_until_complete(asyncio.wait([threads], timeout=LEFT_S_MAX))[1]:
            log.error("calls_left_behind", cause="a call in a thread (asyncio.to_thread) does not end", hint=IN_A_THREAD)
        left.extend([*late, *waits])
        asyncio.set_event_loop(None)
        loop.close()
