"""A person in the simulator who configures gateways: wants documents on every broker that there is, and reads every report."""

from __future__ import annotations

import asyncio
import contextlib
from typing import Any

import msgspec

from edge_runtime.bus import topics
from edge_runtime.bus.control import Reported
from edge_runtime.ports import Address, BrokerError
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.process import PORT


class Person:
    """Publishes documents on every broker that there is, and reads every report."""

    def __init__(self, lan: Lan, site: str) -> None:
        self.reports: dict[tuple[str, str], Reported] = {}
        """The newest one that is on a broker, by broker and gateway."""
        self.states: dict[str, list[str]] = {}
        """Of each gateway, in order, without repetitions."""
        self._lan, self._site = lan, site
        self._connections: dict[str, Any] = {}
        self._wanted: dict[str, bytes] = {}

    async def want(self, topic: str, payload: bytes, *, once: bool = False) -> None:
        """From now on, retained: on a broker that is away or that forgets, as soon as it is there.

        `once`: only where it is now."""
        if not once:
            self._wanted[topic] = payload
        for connection in [*self._connections.values()]:
            with contextlib.suppress(BrokerError):
                await connection.publish(topic, payload, qos=1, retain=True)

    async def listen(self, host: str) -> None:
        """Until cancelled."""
        bus, address = self._lan.bus(Fence("person")), Address(host=host, port=PORT, client_id="person")
        while True:
            with contextlib.suppress(BrokerError):
                connection = await bus.connect(address, timeout_s=2.0)
                await connection.subscribe(topics.gateway(self._site, "+", "config", "reported"), qos=1)
                self._connections[host] = connection
                for topic, payload in [*self._wanted.items()]:
                    await connection.publish(topic, payload, qos=1, retain=True)
                while True:
                    message = await connection.receive()
                    connection.acknowledge(message)
                    self._hears(host, msgspec.json.decode(message.payload, type=Reported))
            self._connections.pop(host, None)
            self.reports = {key: report for key, report in self.reports.items() if key[0] != host}
            await asyncio.sleep(0.3)

    def _hears(self, host: str, report: Reported) -> None:
        self.reports[host, report.gateway] = report
        states = self.states.setdefault(report.gateway, [])
        if states[-1:] != [report.state]:
            states.append(report.state)
