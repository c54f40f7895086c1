"""What this gateway says of its configuration (runs): the report, on every broker that it comes to, and the documents that it is
made of, where that broker does not know them.

A broker that moves is empty, and one that comes back knows what was true long ago. Whoever joins it listens first: a document
that is said there and newer counts; one that is older, or missing, is said again as it came, with its signature.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Mapping
from typing import Any, Protocol

from edge_runtime.bus import control as messages
from edge_runtime.bus import topics
from edge_runtime.bus.control import LayerState, Reported
from edge_runtime.control.layers import Effective
from edge_runtime.control.origin import target_of
from edge_runtime.control.pages import LayerDocument
from edge_runtime.ports import BrokerError, Dice
from edge_runtime.records import Stamp
from edge_runtime.trust.identity import Identity

LISTEN_S_MIN, LISTEN_S_MAX = 1.0, 2.0
"""On a new broker, before a document is said again: what it knows has come by then; and of twenty gateways one does."""

REPORTED = "reported"
"""Context of the signature."""


class Home(Protocol):
    @property
    def host(self) -> str: ...


class Link(Protocol):
    """mesh.link.Link, as far as control needs it."""

    site: str
    gateway: str

    @property
    def connected(self) -> bool: ...

    @property
    def home(self) -> Home | None:
        """Where the broker is, while there is a connection. `host`: the gateway that hosts it."""

    def on(self, kind: Any, handler: Callable[[str, Any], None], *filters: str) -> None: ...

    async def also(self, *filters: str) -> None: ...

    async def send(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None: ...


class Held(Protocol):
    """A document as the book has it."""

    @property
    def revision(self) -> int | None: ...
    @property
    def payload(self) -> bytes: ...


class Reporting:
    """Of one gateway. `documents`: the newest of each layer that came over MQTT."""

    def __init__(
        self, link: Link, identity: Identity | None, documents: Callable[[], Mapping[str, Held]], dice: Dice, log: Any
    ) -> None:
        self._link, self._identity, self._documents, self._dice, self._log = link, identity, documents, dice, log
        self._report: Reported | None = None
        self._news, self._missing = asyncio.Event(), asyncio.Event()
        self._heard: dict[str, int] = {}
        """Revisions that were said on this broker, by layer."""
        self._connections = 0

    async def joined(self) -> None:
        """A new connection. Never waits: it is said in `run`."""
        self._connections += 1
        self._heard = {}
        self._news.set()
        self._missing.set()

    def heard(self, layer: str, revision: int) -> None:
        self._heard[layer] = max(revision, self._heard.get(layer, 0))

    def repeat(self) -> None:
        """What is missing on this broker may be said by now."""
        self._missing.set()

    def stale(self, layer: str) -> None:
        """Somebody says an old document there: ours has to be said again."""
        self._heard[layer] = 0
        self._missing.set()

    def say(self, report: Reported) -> None:
        """From now on, on every broker."""
        self._report = report
        self._news.set()

    @property
    def newest(self) -> Reported | None:
        return self._report

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._keep_reporting(), name="control-report")
            group.create_task(self._keep_documents(), name="control-documents")

    async def _keep_reporting(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            with contextlib.suppress(BrokerError):  # on the next one it is said again
                await self._say_report()

    async def _keep_documents(self) -> None:
        while True:
            await self._missing.wait()
            self._missing.clear()
            connection = self._connections
            await asyncio.sleep(self._dice.uniform(LISTEN_S_MIN, LISTEN_S_MAX))
            if connection == self._connections:
                with contextlib.suppress(BrokerError):
                    await self._say_documents()

    async def _say_report(self) -> None:
        if self._report is None or not self._link.connected:
            return
        payload = messages.pack(self._report)
        if self._identity is not None:
            payload = self._identity.sign(payload, REPORTED)
        topic = topics.gateway(self._link.site, self._link.gateway, "config", "reported")
        await self._link.send(topic, payload, qos=1, retain=True)

    async def _say_documents(self) -> None:
        for layer, held in self._documents().items():
            if held.revision is None or self._heard.get(layer, 0) >= held.revision or not self._link.connected:
                continue
            topic = topics.desired(self._link.site, target_of(layer, self._link.gateway))
            self._heard[layer] = held.revision
            await self._link.send(topic, held.payload, qos=1, retain=True)
            self._log.info("document_said_again", layer=layer, revision=held.revision)


def report(
    gateway: str, state: Any, effective: Effective, layers: Mapping[str, LayerDocument], now: Stamp, **more: Any
) -> Reported:
    """What runs, and of which documents it is made."""
    told = (
        LayerState(name=name, revision=each.revision or 0, hash=each.hash, state=each.state, cause=each.cause)
        for name, each in layers.items()
    )
    return Reported(
        gateway=gateway,
        state=state,
        hash=effective.hash,
        layers=tuple(told),
        provenance=effective.summary(),
        wall_ns=now.wall_ns,
        synced=now.synced,
        **more,
    )
