"""A gateway's process on virtual time, and a person who configures it over the broker that it hosts."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator
from typing import Any

import msgspec
from worlds import Site, until

from edge_runtime.bus import topics
from edge_runtime.bus.control import Reported
from edge_runtime.gateway import Gateway
from edge_runtime.lifetime import Lifetime
from edge_runtime.ports import Address, BrokerError
from edge_runtime.testing.fence import Fence
from edge_runtime.trust import envelope

BASE: dict[str, Any] = {
    "site": "s",
    "gateway": "g",
    "broker": {"mode": "hosted"},
    "control": {"trial_s": 20},
    "sinks": {"cloud": {"type": "https", "url": "http://x"}},
    "outbox": {"drain_s_max": 1},
}


class Steered:
    """`said`: every report, in order."""

    def __init__(self, site: Site, **settings: Any) -> None:
        self.site, self.file = site, {**BASE, **settings}
        self.lifetime: Lifetime
        self.said: list[Reported] = []
        self.gateways: list[Gateway] = []
        self._mark = 0

    @property
    def gateway(self) -> Gateway:
        return self.gateways[-1]

    @property
    def states(self) -> list[str]:
        """Without repetitions."""
        return [each.state for n, each in enumerate(self.said) if n == 0 or each.state != self.said[n - 1].state]

    @contextlib.asynccontextmanager
    async def running(self, text: str | None = None) -> AsyncIterator[Steered]:
        """Until the end of the block: a clean stop."""
        life = self.begin(text)
        listening = asyncio.create_task(self._listen(), name="listens")
        try:
            await until(lambda: life.done() or (self.gateways and self.gateway.started.is_set() and self.said))
            if life.done():
                await life
            yield self
            self.lifetime.stop()
            await life
        finally:
            life.cancel()
            listening.cancel()
            await asyncio.wait((life, listening))

    def begin(self, text: str | None = None) -> asyncio.Task[None]:
        self.site.lives += 1
        text = json.dumps(self.file) if text is None else text
        world = self.site.world()
        self.lifetime = Lifetime(text, "gateway.yaml", self.site.folder, self.site.folder / "data", world)
        self.lifetime.watch = self.gateways.append
        return asyncio.create_task(self.lifetime.run(), name="life")

    async def want(self, target: str = "gw/g", **document: Any) -> None:
        """Publishes a desired document as a person would, retained."""
        self._mark = len(self.said)
        await self.publish(topics.desired("s", target), json.dumps(document).encode(), retain=True)

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False, at: str = "127.0.0.1") -> None:
        connection = await self._connect("person", at)
        await connection.publish(topic, payload, qos=1, retain=retain)
        await connection.close()

    async def reported(self, state: str, limit_s: float = 120.0) -> Reported:
        """The newest report since the last `want`, when it says this state."""
        await until(lambda: len(self.said) > self._mark and self.said[-1].state == state, limit_s)
        return self.said[-1]

    async def _connect(self, name: str, at: str = "127.0.0.1") -> Any:
        return await self.site.lan.bus(Fence("g")).connect(Address(host=at, client_id=name), timeout_s=5.0)

    async def _listen(self) -> None:
        while True:
            with contextlib.suppress(BrokerError):
                connection = await self._connect("watcher")
                await connection.subscribe(topics.gateway("s", "g", "config", "reported"))
                while True:
                    message = await connection.receive()
                    connection.acknowledge(message)
                    self.said.append(msgspec.json.decode(envelope.unwrap(message.payload), type=Reported))
            await asyncio.sleep(0.05)
