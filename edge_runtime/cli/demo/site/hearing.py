"""How the demo looks at its site: as any SCADA would, on whichever gateway the broker is."""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Sequence

import msgspec

from edge_runtime.bus import presence, topics
from edge_runtime.bus.presence import Birth, Brokers, Load
from edge_runtime.cli.demo.site.settings import SITE
from edge_runtime.outbox.sinks.mqtt_live import LiveMessage
from edge_runtime.ports import Address, BrokerError, Bus, Connection, Message
from edge_runtime.records import Result

AGAIN_S = 0.1
CONNECT_S_MAX = 1.0
LAST_MAX = 4
HERE = "here"


class Hearing:
    """`places`: every place where the broker may be. What it knows is of the gateways by name."""

    def __init__(self, bus: Bus, places: Sequence[Address], slow: str) -> None:
        self._bus, self._places, self._slow = bus, places, slow
        self.births: dict[str, Birth] = {}
        self.loads: dict[str, Load] = {}
        self.results: dict[str, Counter[str]] = {}
        """By who computed them."""
        self.host = ""
        self.last: deque[str] = deque(maxlen=LAST_MAX)

    async def run(self) -> None:
        """Until cancelled."""
        while True:
            for place in self._places:
                try:
                    connection = await self._bus.connect(place, timeout_s=CONNECT_S_MAX)
                except BrokerError:
                    continue
                try:
                    await self._listen(connection)
                except BrokerError:
                    self.host = ""
                finally:
                    await connection.close()
            await asyncio.sleep(AGAIN_S)

    async def _listen(self, connection: Connection) -> None:
        await connection.subscribe(
            topics.brokers(SITE),
            *(topics.gateway(SITE, "+", kind) for kind in ("status", "load")),
            topics.gateway(SITE, "+", "result", "+"),
        )
        while True:
            message = await connection.receive()
            connection.acknowledge(message)
            self._hear(message)

    def _hear(self, message: Message) -> None:
        if message.topic == topics.brokers(SITE):
            self.host = presence.unpack(message.payload, Brokers).host
            return
        parsed = topics.parse(message.topic)
        if parsed is None or not message.payload:
            return
        _, name, (kind, *_) = parsed
        if kind == "status":
            self.births[name] = presence.unpack(message.payload, Birth)
        elif kind == "load":
            self.loads[name] = presence.unpack(message.payload, Load)
        else:
            self._result(name, message.payload)

    def _result(self, name: str, payload: bytes) -> None:
        placed = msgspec.json.decode(msgspec.json.decode(payload, type=LiveMessage).body, type=Result).placed
        who = placed.partition(":")[0] or HERE
        self.results.setdefault(name, Counter())[who] += 1
        if name == self._slow:
            self.last.append(placed)
