"""A broker that a simulated node hosts: ports.Host over a FakeBroker. It starts after a while, or not at all, and dies as its
node does; the harness kills the process alone with `broker.kill()`.

    broker = FakeBroker(lan, "gw-1", persistent=True, running=False)   # the program and its folder: they outlive the node's lives
    host = FakeHost(broker, fence, rng, HostFaults(refuses=0.1))       # one hosting
"""

from __future__ import annotations

import asyncio
import random

import msgspec

from edge_runtime.ports import Address, BrokerError
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.network import FakeBroker

RESTART_S = (0.05, 0.1)


class HostFaults(msgspec.Struct, kw_only=True):
    """May be changed at any time."""

    start_s: tuple[float, float] = (0.02, 0.1)
    refuses: float = 0.0
    """Chance that it does not start."""


class FakeHost:
    """ports.Host. It passes the same HostSuite as the real one."""

    def __init__(self, broker: FakeBroker, fence: Fence, rng: random.Random, faults: HostFaults | None = None) -> None:
        self.faults = faults or HostFaults()
        self._broker, self._fence, self._rng = broker, fence, rng
        self._stopping = asyncio.Event()
        self._ours = False
        self.program = "simulated"

    @property
    def up(self) -> bool:
        return self._ours and not self._broker.died.is_set()

    async def start(self) -> Address:
        await self._launch()
        return Address(host="127.0.0.1", port=self._broker.port)

    async def run(self) -> None:
        while not self._stopping.is_set():
            died = asyncio.create_task(self._broker.died.wait(), name=f"{self._fence.node}/broker died")
            stopping = asyncio.create_task(self._stopping.wait(), name=f"{self._fence.node}/broker stops")
            try:
                await asyncio.wait((died, stopping), return_when=asyncio.FIRST_COMPLETED)
            finally:
                died.cancel()
                stopping.cancel()
            if self._stopping.is_set():
                return
            self._lay_down()
            await asyncio.sleep(self._rng.uniform(*RESTART_S))
            try:
                await self._launch()
            except BrokerError:  # as the real one: it is logged there, and tried again
                continue

    async def stop(self) -> None:
        self._stopping.set()
        await self._fence.passage()
        if self._ours:
            self._lay_down()
            self._broker.kill()

    async def _launch(self) -> None:
        await self._fence.passage()
        await asyncio.sleep(self._rng.uniform(*self.faults.start_s))
        await self._fence.passage()
        if self._stopping.is_set():
            return
        where = f"port {self._broker.port} on {self._broker.node}"
        if self._broker.taken:
            raise BrokerError(f"{where}: address already in use", "another broker?")
        if self._rng.random() < self.faults.refuses:
            raise BrokerError(f"{where}: the broker did not start", "this is a test")
        self._broker.start()
        self._ours = True
        self._fence.on_fall.append(self._broker.kill)

    def _lay_down(self) -> None:
        self._ours = False
        if self._broker.kill in self._fence.on_fall:
            self._fence.on_fall.remove(self._broker.kill)
