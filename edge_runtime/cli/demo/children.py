"""The demo's other processes: started, watched, ended; they die with us, also by kill -9."""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import json
import signal
import sys
from collections.abc import Coroutine
from pathlib import Path
from typing import Any, TypeVar

from edge_runtime.ports import EdgeError

T = TypeVar("T")

START_S_MAX = 20.0
END_S_MAX = 5.0
WORDS_MAX = 400
_PR_SET_PDEATHSIG = 1


class ChildError(EdgeError):
    """A process of the demo did not start, or ended by itself."""


class Children:
    """Each one tells in its first line, as JSON, that it is ready. Their logs are files in `folder`."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder
        self._running: dict[str, asyncio.subprocess.Process] = {}

    async def start(self, name: str, *words: str) -> dict[str, Any]:
        """`python -m WORDS`. Returns what its first line says. Raises ChildError."""
        child = await self.launch(name, *words)
        assert child.stdout is not None
        try:
            async with asyncio.timeout(START_S_MAX):
                ready: dict[str, Any] = json.loads(await child.stdout.readline())
                return ready
        except TimeoutError:
            raise ChildError(f"the {name} did not start within {START_S_MAX:g} s", self._log_hint(name)) from None
        except ValueError:
            raise ChildError(f"the {name} did not start: {self._last_words(name)}", self._log_hint(name)) from None

    async def launch(self, name: str, *words: str) -> asyncio.subprocess.Process:
        """`python -m WORDS`; one that does not say when it is ready. May be one that ended before."""
        with (self._folder / f"{name}.log").open("ab") as log:
            # A group of its own: Ctrl-C is for us, and we end the others in the right order.
            child = await asyncio.create_subprocess_exec(
                sys.executable, "-m", *words, stdin=asyncio.subprocess.PIPE, stdout=asyncio.subprocess.PIPE, stderr=log,
                cwd=self._folder, process_group=0, preexec_fn=_die_with_parent,
            )  # fmt: skip
        self._running[name] = child
        return child

    async def kill(self, name: str) -> None:
        """kill -9; it may be launched again."""
        child = self._running.pop(name)
        with contextlib.suppress(ProcessLookupError):
            child.kill()
        await child.wait()

    def runs(self, name: str) -> bool:
        return name in self._running

    def check(self) -> None:
        """Raises ChildError when one has ended by itself."""
        for name, child in self._running.items():
            if child.returncode is not None:
                raise self._ended(name, child.returncode)

    async def ask(self, name: str, word: str) -> None:
        """A line to its standard input; returns when it has answered with one. If it has ended, `unless_one_ends` tells."""
        child = self._running[name]
        assert child.stdin is not None
        assert child.stdout is not None
        with contextlib.suppress(ConnectionError):
            child.stdin.write(f"{word}\n".encode())
            await child.stdin.drain()
            await child.stdout.readline()

    async def finish(self, name: str, limit_s: float = END_S_MAX) -> bytes:
        """Ends one cleanly (SIGTERM); returns what else it has said. Raises ChildError."""
        child = self._running[name]
        with contextlib.suppress(ProcessLookupError):
            child.terminate()
        try:
            async with asyncio.timeout(limit_s):
                out, _ = await child.communicate()
        except TimeoutError:
            raise ChildError(f"the {name} did not end within {limit_s:g} s", self._log_hint(name)) from None
        self._running.pop(name, None)  # not before: cancelled meanwhile, it is for `end`
        if child.returncode:
            raise self._ended(name, child.returncode)
        return out

    async def unless_one_ends(self, work: Coroutine[Any, Any, T]) -> T:
        """The work's outcome; raises ChildError as soon as one of the processes ends before."""
        working = asyncio.ensure_future(work)
        ends = {name: asyncio.ensure_future(child.wait()) for name, child in self._running.items()}
        try:
            await asyncio.wait([working, *ends.values()], return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                return working.result()
            name = next(name for name, end in ends.items() if end.done())
            raise self._ended(name, ends[name].result())
        finally:
            for task in (working, *ends.values()):
                task.cancel()
            await asyncio.wait([working, *ends.values()])

    async def end(self) -> None:
        """All that still run: nobody needs them any more."""
        running, self._running = self._running, {}
        for child in running.values():
            with contextlib.suppress(ProcessLookupError):
                child.kill()
        for child in running.values():
            await child.wait()

    def _ended(self, name: str, status: int) -> ChildError:
        how = f"was killed by signal {-status}" if status < 0 else f"ended with status {status}"
        words = self._last_words(name)
        return ChildError(f"the {name} {how}{': ' + words if words else ''}", self._log_hint(name))

    def _last_words(self, name: str) -> str:
        lines = (self._folder / f"{name}.log").read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-2:])[-WORDS_MAX:]

    def _log_hint(self, name: str) -> str:
        return f"see {self._folder / name}.log"


_libc = ctypes.CDLL(None)


def _die_with_parent() -> None:
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
