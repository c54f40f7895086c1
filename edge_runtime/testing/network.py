"""MQTT in the simulator: a broker at a node of the simulated network (lan.py).

    broker = FakeBroker(lan, "gw-1", queued_max=100)
    bus = lan.bus(fence)                     # ports.Bus of one node; when its fence falls, the broker sees its sockets close
    broker.kill(); broker.start()            # kill -9 of the broker; sessions and retained messages survive if it is `persistent`

It does what mosquitto does where that hurts: of QoS 1 at most `inflight_max` messages are unacknowledged and `queued_max` wait,
what comes beyond that is dropped without a word (`dropped` counts) although its publisher gets a PUBACK; after a reconnect
what was not acknowledged comes again, as a duplicate, and message ids start again at 1. BusSuite runs over both.
"""

from __future__ import annotations

import asyncio
import functools
import itertools
from collections import deque
from collections.abc import Callable, Iterator
from dataclasses import dataclass, field, replace

from edge_runtime.bus import topics
from edge_runtime.ports import Address
from edge_runtime.testing.connection import FakeConnection, Stored
from edge_runtime.testing.lan import Lan

MATCHES_MAX = 10_000
"""Answers that are remembered."""


matches = functools.lru_cache(maxsize=MATCHES_MAX)(topics.matches)


@dataclass
class Session:
    """What the broker keeps of a client."""

    client_id: str
    kept: bool
    filters: dict[str, int] = field(default_factory=dict)
    waiting: deque[Stored] = field(default_factory=deque)
    inflight: dict[int, Stored] = field(default_factory=dict)
    connection: FakeConnection | None = None
    mids: Iterator[int] = field(default_factory=lambda: itertools.count(1))

    def attach(self, connection: FakeConnection) -> None:
        self.connection = connection
        self.detached()
        self.mids = itertools.count(1)

    def detached(self) -> None:
        """What was in flight is sent again, first."""
        self.waiting.extendleft(reversed(self.inflight.values()))
        self.inflight.clear()

    def pump(self, inflight_max: int) -> None:
        while self.connection is not None and self.waiting and len(self.inflight) < inflight_max:
            stored, mid = self.waiting.popleft(), next(self.mids)
            self.inflight[mid] = replace(stored, sent=True)
            self.connection.down.send(self.connection.deliver, stored, mid)


class FakeBroker:
    """See the module's text."""

    def __init__(
        self,
        lan: Lan,
        node: str = "broker",
        port: int = 1883,
        *,
        running: bool = True,
        queued_max: int = 1_000,
        inflight_max: int = 20,
        persistent: bool = True,
        lifetime_s: float | None = None,
        refuse: Callable[[Address], str] = lambda _: "",
    ) -> None:
        """`lifetime_s`: a connection breaks by itself after so long, on average. `refuse` says why an address is refused."""
        self.node, self.port = node, port
        self.running = False
        self.died = asyncio.Event()
        """Set while it does not run."""
        self.dropped = 0
        self.retained: dict[str, Stored] = {}
        self.queued_max = queued_max
        self.inflight_max = inflight_max
        self._lan = lan
        self._persistent = persistent
        self._lifetime_s = lifetime_s
        self._refuse = refuse
        self._sessions: dict[str, Session] = {}
        self._connections: dict[int, FakeConnection] = {}
        if running:
            self.start()

    # --- for the harness ---------------------------------------------------------------------------------------------

    def kill(self) -> None:
        """Its sockets close at once; no wills are sent."""
        if not self.running:
            return
        self.running = False
        self.died.set()
        del self._lan.listening[self.node, self.port]
        for connection in list(self._connections.values()):
            self._forget(connection)
            connection.up.lose()
            connection.down.send(connection.lose, "the broker closed the connection")
        if not self._persistent:
            self._sessions.clear()
            self.retained.clear()

    @property
    def taken(self) -> bool:
        """Its port, by itself or by another one."""
        return (self.node, self.port) in self._lan.listening

    def start(self) -> None:
        assert not self.taken
        self.running = True
        self.died.clear()
        self._lan.listening[self.node, self.port] = self

    # --- for connections: what arrives at the broker -----------------------------------------------------------------

    def open(self, connection: FakeConnection, address: Address) -> None:
        reason = self._refuse(address)
        if reason:
            connection.down.send(connection.lose, reason)
            return
        client_id = address.client_id or f"auto-{connection.generation}"
        session = self._sessions.get(client_id)
        if session is not None and session.connection is not None:
            old = session.connection
            self.on_lost(old)
            old.down.send(old.lose, "the broker closed the connection")
            session = self._sessions.get(client_id)
        present = session is not None and session.kept and not address.clean
        if session is None or not present:
            session = self._sessions[client_id] = Session(client_id, kept=not address.clean)
        self._connections[connection.generation] = connection
        connection.session = session
        session.attach(connection)
        connection.down.send(connection.accept, present)
        session.pump(self.inflight_max)
        if self._lifetime_s is not None:
            self._lan.loop.outside(self._lan.rng.expovariate(1 / self._lifetime_s), self._worn_out, connection)

    def on_publish(self, connection: FakeConnection, stored: Stored, mid: int) -> None:
        if connection.session is None:
            return
        if stored.qos:
            connection.down.send(connection.on_puback, mid)
        self._route(stored)

    def on_subscribe(self, connection: FakeConnection, filters: tuple[str, ...], qos: int, answer: int) -> None:
        session = connection.session
        if session is None:
            return
        session.filters.update(dict.fromkeys(filters, qos))
        connection.down.send(connection.on_suback, answer)
        for pattern in filters:
            for stored in self.retained.values():
                if matches(stored.topic, pattern):
                    self._offer(session, replace(stored, qos=min(stored.qos, qos)))

    def on_unsubscribe(self, connection: FakeConnection, filters: tuple[str, ...], answer: int) -> None:
        if connection.session is not None:
            for pattern in filters:
                connection.session.filters.pop(pattern, None)
            connection.down.send(connection.on_suback, answer)

    def on_puback(self, connection: FakeConnection, mid: int) -> None:
        if connection.session is not None:
            connection.session.inflight.pop(mid, None)
            connection.session.pump(self.inflight_max)

    def on_disconnect(self, connection: FakeConnection) -> None:
        self._forget(connection)
        connection.down.send(connection.closed.set)

    def on_lost(self, connection: FakeConnection) -> None:
        """The socket broke, or keepalive ran out: the will is sent."""
        if connection.session is not None:
            self._forget(connection)
            if connection.will is not None:
                self._route(Stored(connection.will.topic, connection.will.payload, connection.will.qos, connection.will.retain))

    # --- inside ------------------------------------------------------------------------------------------------------

    def _route(self, stored: Stored) -> None:
        if stored.retain and stored.payload:
            self.retained[stored.topic] = stored
        elif stored.retain:
            self.retained.pop(stored.topic, None)
        for session in list(self._sessions.values()):
            granted = [qos for pattern, qos in session.filters.items() if matches(stored.topic, pattern)]
            if granted:
                self._offer(session, replace(stored, retain=False, qos=min(stored.qos, max(granted))))

    def _offer(self, session: Session, stored: Stored) -> None:
        if stored.qos == 0:
            if session.connection is not None:
                session.connection.down.send_qos0(session.connection.deliver, stored, 0)
        elif len(session.waiting) >= self.queued_max:
            self.dropped += 1
        else:
            session.waiting.append(stored)
            session.pump(self.inflight_max)

    def _forget(self, connection: FakeConnection) -> None:
        session, connection.session = connection.session, None
        self._connections.pop(connection.generation, None)
        if session is not None:
            session.connection = None
            session.detached()
            if not session.kept:
                self._sessions.pop(session.client_id, None)
        self._lan.over(connection)

    def _worn_out(self, connection: FakeConnection) -> None:
        if connection.generation in self._connections:
            self._lan.sever(connection)
