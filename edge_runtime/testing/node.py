"""What a simulated node has of the world: a clock, dice, and a worker. All stand behind the fence of its life."""

from __future__ import annotations

import asyncio
import random
import zlib
from collections.abc import Callable
from typing import Any, TypeVar

from edge_runtime.ports import EdgeError
from edge_runtime.records import Stamp
from edge_runtime.testing.fence import Crashed, Fence

T = TypeVar("T")


class VirtualClock:
    """ports.Clock over the loop's time. A reboot is a new clock with a new `boot`: its `mono_ns` starts at 0.

    `wall_offset_ns` (what the wall clock shows at mono 0) and `synced` may be set at any time: that is what NTP does.
    """

    def __init__(
        self,
        loop: asyncio.AbstractEventLoop,
        *,
        boot: str = "boot-1",
        wall_offset_ns: int = 1_700_000_000 * 10**9,
        synced: bool = True,
        skew: float = 0.0,
        fence: Fence | None = None,
    ) -> None:
        self.boot = boot
        self.wall_offset_ns = wall_offset_ns
        self.synced = synced
        self._loop = loop
        self._fence = fence
        self._skew = skew
        self._since_s = loop.time()
        self._base_ns = 0

    @property
    def skew(self) -> float:
        """1e-4 runs 100 ppm fast. Set it at any time: the clock never goes back."""
        return self._skew

    @skew.setter
    def skew(self, skew: float) -> None:
        self._base_ns, self._since_s = self.mono_ns(), self._loop.time()
        self._skew = skew

    def now(self) -> Stamp:
        mono_ns = self.mono_ns()
        return Stamp(self.boot, mono_ns, mono_ns + self.wall_offset_ns, self.synced)

    def mono_ns(self) -> int:
        if self._fence is not None:
            self._fence.check()
        return self._base_ns + round((self._loop.time() - self._since_s) * 1e9 * (1.0 + self._skew))


class SeededDice:
    """ports.Dice. Give every life of a node the same `rng` (`loop.rng(node)`), and no token is seen twice."""

    def __init__(self, rng: random.Random, *, node: str = "", fence: Fence | None = None) -> None:
        self._rng = rng
        self._prefix = f"{zlib.crc32(node.encode()) & 0xFFFF:04x}"
        self._fence = fence

    def uniform(self, low: float, high: float) -> float:
        if self._fence is not None:
            self._fence.check()
        return self._rng.uniform(low, high)

    def token(self) -> str:
        if self._fence is not None:
            self._fence.check()
        return f"{self._prefix}{self._rng.getrandbits(48):012x}"


class InlineWorker:
    """ports.Worker without a thread: the call runs inside the loop, after one seeded delay and before another, so that a crash
    can hit before it, after it but before the caller knows, and (if a port in it lets the fence fall) in the middle.

    `before` and `after` are called around it with the function; what they raise, the caller gets (an OSError, say). To crash
    there, let them call `fence.fall()`.
    """

    def __init__(
        self,
        rng: random.Random,
        *,
        fence: Fence | None = None,
        delay_s: tuple[float, float] = (0.0, 0.005),
        before: Callable[[Callable[..., Any]], None] | None = None,
        after: Callable[[Callable[..., Any]], None] | None = None,
    ) -> None:
        self.before = before
        self.after = after
        self.delay_s = delay_s
        self._rng = rng
        self._fence = fence or Fence("")
        self._turn = asyncio.Lock()
        self._calls: set[asyncio.Task[Any]] = set()
        self._closed = False

    def idle(self) -> bool:
        return not self._calls

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        if self._closed:
            raise EdgeError("the worker is closed", "it was used after the gateway stopped")
        # A task of its own, shielded: a thread finishes what it began, whatever becomes of the caller.
        call = asyncio.create_task(self._call(function, args), name=f"{self._fence.node}/worker")
        self._calls.add(call)
        call.add_done_callback(self._calls.discard)
        return await asyncio.shield(call)

    def close(self) -> None:
        self._closed = True

    def abandon(self) -> None:
        self._closed = True

    async def _call(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        async with self._turn:
            await asyncio.sleep(self._rng.uniform(*self.delay_s))
            try:
                return self._inline(function, args)
            except Crashed:
                await self._fence.passage()
                raise
            finally:
                if not self._fence.fallen:
                    await asyncio.sleep(self._rng.uniform(*self.delay_s))

    def _inline(self, function: Callable[..., T], args: tuple[Any, ...]) -> T:
        self._fence.check()
        if self.before is not None:
            self.before(function)
            self._fence.check()
        result = function(*args)
        self._fence.check()
        if self.after is not None:
            self.after(function)
            self._fence.check()
        return result
