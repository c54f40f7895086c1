"""How the demo is ended from outside: by Ctrl-C, SIGTERM, or a terminal that is closed, at any instant, and again."""

from __future__ import annotations

import asyncio
import contextlib
import signal
from collections.abc import Callable, Iterator
from types import FrameType, TracebackType
from typing import Any

_NUMBERS = (signal.SIGINT, signal.SIGTERM, signal.SIGHUP)


class Ending:
    """Handles these signals as long as there are files to tidy up: a loop hears them, and elsewhere they wait.

    Not asyncio's handlers: they go with its loop, and a SIGTERM would end the process before the files are gone. And no exception
    out of a handler: it may come up in a destructor, where Python drops it."""

    def __init__(self) -> None:
        self._came = False
        self._tell: Callable[[bool], object] | None = None
        self._before: dict[int, Any] = {}
        self.at_once = False
        """Somebody did not wait for the account."""

    def __enter__(self) -> Ending:
        for number in _NUMBERS:
            if number != signal.SIGHUP or signal.getsignal(number) is not signal.SIG_IGN:  # under nohup it is
                self._before[number] = signal.signal(number, self._on)
        return self

    def __exit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        if self._came:
            return  # the process ends now: who presses Ctrl-C once more need not see it fall
        for number, before in self._before.items():
            signal.signal(number, before)

    @contextlib.contextmanager
    def hear(self, drain: Callable[[], bool]) -> Iterator[None]:
        """In the task that is to end. `drain` begins a clean end; False: there is nothing to drain now, and it is cancelled.
        Raises KeyboardInterrupt: one has come before."""
        loop, running = asyncio.get_running_loop(), asyncio.current_task()
        assert running is not None

        def told(hung_up: bool) -> None:
            if hung_up or not drain():  # nobody sees an account on a terminal that is gone
                self.at_once = True
                running.cancel()

        self._tell = lambda hung_up: loop.call_soon_threadsafe(told, hung_up)
        try:
            if self._came:
                self.at_once = True
                raise KeyboardInterrupt
            yield
        finally:
            self._tell = None

    def _on(self, number: int, _frame: FrameType | None) -> None:
        self._came = True
        if self._tell is not None:
            self._tell(number == signal.SIGHUP)
