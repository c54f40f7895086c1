"""The simulated local network: which node reaches which, how fast, and what listens where. Everything drawn from the seed.

    lan = Lan(loop, Line(stalls=0.001))
    FakeBroker(lan, "gw-1"); FakeBroker(lan, "gw-2", 1884)       # network.py: they listen at (node, port)
    bus = lan.bus(fence)                     # ports.Bus of the node that the fence is named after
    lan.cut("gw-1")                          # nothing comes through, either way; who notices, notices by keepalive
    lan.part(["gw-1", "gw-2"], ["gw-3"])     # the same, between groups
    lan.block("gw-1", "gw-3")                # a firewall: gw-1 opens no new connection to gw-3; gw-3 does to gw-1
    lan.heal("gw-1"); lan.heal()
    lan.hang(fence); fence.go_on()           # SIGSTOP and SIGCONT

TCP loses nothing: what is sent during a cut arrives when it heals, unless somebody has given the connection up before; a packet
that is lost on a bad line comes late, and all behind it on the same connection. What can be lost is a message of QoS 0.
"""

from __future__ import annotations

import itertools
import random
from collections.abc import Callable, Sequence
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.ports import Address
from edge_runtime.testing.connection import FakeBus, FakeConnection
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.loop import VirtualLoop

if TYPE_CHECKING:
    from edge_runtime.testing.network import FakeBroker

NODE_GIVES_UP, BROKER_GIVES_UP = 1.25, 1.5
"""Times keepalive, in silence: our client's ping is not answered; the broker's limit (MQTT 3.1.1, 3.1.2.10)."""

HERE = ("127.0.0.1", "localhost", "::1")
LOOPBACK_S = (0.00005, 0.0005)

Pair = tuple[str, str]


class Line(msgspec.Struct, kw_only=True):
    """What the network between two nodes does; may be changed at any time."""

    delay_s: tuple[float, float] = (0.0002, 0.005)
    lost: float = 0.0
    """Chance that a message of QoS 0 is dropped on the way (a broker's full socket buffer)."""
    twice: float = 0.0
    """Chance that a message of QoS 0 comes a second time, right behind the first (somebody replays it)."""
    stalls: float = 0.0
    """Chance that a packet has to be sent again: it and all behind it come later."""
    stall_s: tuple[float, float] = (0.2, 1.0)


class Lan:
    """See the module's text."""

    def __init__(self, loop: VirtualLoop, line: Line | None = None) -> None:
        self.loop = loop
        self.rng: random.Random = loop.rng("lan")
        self.line = line or Line()
        """Between any two nodes for which `lines` has none."""
        self.lines: dict[Pair, Line] = {}
        """From the first to the second."""
        self.listening: dict[tuple[str, int], FakeBroker] = {}
        self.connections: dict[int, FakeConnection] = {}
        """By generation; those that at least one side takes for alive."""
        self.generations = itertools.count(1)
        self._alone: dict[str, None] = {}
        self._parted: dict[Pair, None] = {}
        self._blocked: dict[Pair, None] = {}
        self._held: dict[Pair, list[Callable[[], None]]] = {}

    # --- for the harness ---------------------------------------------------------------------------------------------

    def bus(self, fence: Fence | None = None) -> FakeBus:
        return FakeBus(self, fence or Fence("harness"))

    def cut(self, node: str) -> None:
        """From all others."""
        self._alone[node] = None
        self._silence()

    def part(self, *groups: Sequence[str]) -> None:
        """Nodes of different groups reach each other no more; who is in no group reaches all."""
        for one, other in itertools.combinations(groups, 2):
            for a, b in itertools.product(one, other):
                self._parted[a, b] = self._parted[b, a] = None
        self._silence()

    def block(self, source: str, target: str) -> None:
        """No new connections from the one to the other."""
        self._blocked[source, target] = None

    def heal(self, node: str | None = None) -> None:
        """All, or all that is wrong with one node."""
        for broken in (self._parted, self._blocked):
            for pair in [pair for pair in broken if node is None or node in pair]:
                del broken[pair]
        for alone in [node] if node is not None else [*self._alone]:
            self._alone.pop(alone, None)
        for connection in self.connections.values():
            if self.reaches(connection.node, connection.host):
                connection.silent_since = None
        for pair in [pair for pair in self._held if self.reaches(*pair)]:
            for arrive in self._held.pop(pair):
                arrive()

    def reaches(self, a: str, b: str) -> bool:
        return a == b or not (a in self._alone or b in self._alone or (a, b) in self._parted)

    def component(self, node: str, nodes: Sequence[str]) -> list[str]:
        """Those of `nodes` that can talk to `node`, directly or through others."""
        found = [node]
        for each in found:
            found += [other for other in nodes if other not in found and self.reaches(each, other)]
        return sorted(found)

    def sever(self, connection: FakeConnection) -> None:
        """The connection breaks without a DISCONNECT."""
        connection.up.lose()
        connection.down.lose()
        connection.lose("the connection broke")
        self.lost(connection)

    def drop(self, node: str) -> None:
        """All connections of this client break."""
        for connection in [each for each in self.connections.values() if each.node == node]:
            self.sever(connection)

    def hang(self, fence: Fence) -> None:
        """The node's process is stopped (SIGSTOP): brokers that hear no ping of it close the connection."""
        fence.stop()
        for connection in self.connections.values():
            if connection.node == fence.node and not connection.is_lost:
                self.loop.outside(BROKER_GIVES_UP * connection.keepalive_s, self._hangs, fence, fence.held, connection)

    # --- for connections and brokers ---------------------------------------------------------------------------------

    def resolve(self, node: str, host: str) -> str:
        """The node that `host` means to `node`."""
        return node if host in HERE else host

    def delay(self, source: str, target: str) -> float:
        if source == target:
            return self.rng.uniform(*LOOPBACK_S)
        line = self.lines.get((source, target), self.line)
        delay_s = self.rng.uniform(*line.delay_s)
        return delay_s + self.rng.uniform(*line.stall_s) if line.stalls and self.rng.random() < line.stalls else delay_s

    def copies(self, source: str, target: str) -> int:
        """How often a message of QoS 0 arrives."""
        line = self.lines.get((source, target), self.line)
        if source == target or not (line.lost or line.twice):
            return 1
        return 0 if self.rng.random() < line.lost else 1 + (self.rng.random() < line.twice)

    def hold(self, pair: Pair, arrive: Callable[[], None]) -> None:
        """A packet would arrive, but the nodes are parted."""
        self._held.setdefault(pair, []).append(arrive)

    def knock(self, connection: FakeConnection, address: Address) -> None:
        """A CONNECT arrives at its node."""
        if connection.is_lost or (connection.node, connection.host) in self._blocked:
            return
        broker = self.listening.get((connection.host, address.port))
        if broker is None:
            connection.down.send(connection.lose, "connection refused")
        else:
            connection.broker = broker
            broker.open(connection, address)

    def lost(self, connection: FakeConnection) -> None:
        """The broker, if the connection has come to one, sees that its socket broke, or hears nothing any more."""
        if connection.broker is not None:
            connection.broker.on_lost(connection)

    def over(self, connection: FakeConnection) -> None:
        """One side has ended; when the other has, too, nobody knows the connection any more."""
        if connection.is_lost and connection.session is None:
            self.connections.pop(connection.generation, None)

    # --- inside ------------------------------------------------------------------------------------------------------

    def _silence(self) -> None:
        """Nobody is told. The node notices first, then the broker."""
        since = self.loop.time()
        for connection in self.connections.values():
            if connection.silent_since is None and not self.reaches(connection.node, connection.host):
                connection.silent_since = since
                keepalive_s = connection.keepalive_s
                self.loop.outside(NODE_GIVES_UP * keepalive_s, self._still_silent, connection, since, connection.give_up)
                self.loop.outside(BROKER_GIVES_UP * keepalive_s, self._still_silent, connection, since, self.lost, connection)

    def _hangs(self, fence: Fence, since: object, connection: FakeConnection) -> None:
        if fence.held is since is not None:
            self.lost(connection)
            connection.down.send(connection.lose, "the broker closed the connection")

    def _still_silent(self, connection: FakeConnection, since: float, then: Callable[..., object], *args: Any) -> None:
        if connection.silent_since == since:
            then(*args)
