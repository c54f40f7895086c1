"""A node's side of a simulated MQTT connection (ports.Bus, ports.Connection), and the way to the broker: lan.py is the network
between them, network.py the other side."""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from collections.abc import Callable
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_runtime.ports import Address, BrokerError, Message, Will
from edge_runtime.testing.fence import Fence

if TYPE_CHECKING:
    from edge_runtime.testing.lan import Lan
    from edge_runtime.testing.network import FakeBroker, Session

PUBLISH_INFLIGHT_MAX = 100
CLOSE_S_MAX = 1.0
"""How long a clean close waits for the broker."""

QOS0_UNREAD_MAX = 1_000
"""A client that has not read so many messages gets no more of QoS 0."""


@dataclass(frozen=True)
class Stored:
    topic: str
    payload: bytes
    qos: int
    retain: bool = False
    sent: bool = False


class Way:
    """One direction of a connection: in order, each packet after a delay. While the nodes are parted, packets pile up."""

    def __init__(self, lan: Lan, source: str, target: str) -> None:
        self._lan = lan
        self._pair = (source, target)
        self._packets: deque[tuple[Callable[..., object], tuple[Any, ...]]] = deque()
        self._last_s = 0.0

    def send(self, callback: Callable[..., object], *args: Any) -> None:
        self._packets.append((callback, args))
        now_s = self._lan.loop.time()
        self._last_s = max(self._last_s, now_s + self._lan.delay(*self._pair))
        self._lan.loop.outside(self._last_s - now_s, self._arrive)

    def send_qos0(self, callback: Callable[..., object], *args: Any) -> None:
        for _ in range(self._lan.copies(*self._pair)):
            self.send(callback, *args)

    def lose(self) -> None:
        """What is on the way never arrives."""
        self._packets.clear()

    def _arrive(self) -> None:
        if not self._lan.reaches(*self._pair):
            self._lan.hold(self._pair, self._arrive)
        elif self._packets:
            callback, args = self._packets.popleft()
            callback(*args)


class FakeBus:
    """ports.Bus of one node."""

    def __init__(self, lan: Lan, fence: Fence) -> None:
        self._lan = lan
        self._fence = fence

    async def connect(self, address: Address, *, will: Will | None = None, timeout_s: float = 5.0) -> FakeConnection:
        await self._fence.passage()
        where = f"{address.host}:{address.port}"
        if not address.clean and not address.client_id:
            raise BrokerError(f"{where}: no client_id", "a session that is kept (clean: false) needs a client_id")
        connection = FakeConnection(self._lan, address, will, self._fence)
        connection.up.send(self._lan.knock, connection, address)
        try:
            async with asyncio.timeout(timeout_s):
                await connection.accepted
        except TimeoutError:
            raise BrokerError(f"{where}: no answer within {timeout_s:g} s", "is the network up?") from None
        finally:
            if not connection.accepted.done() or connection.accepted.cancelled():
                connection.give_up()
        return connection


class FakeConnection:
    """ports.Connection; `session` is the broker's side of it (None: the broker has none, or not any more)."""

    def __init__(self, lan: Lan, address: Address, will: Will | None, fence: Fence) -> None:
        self.node, self.host = fence.node, lan.resolve(fence.node, address.host)
        self.will = will
        self.keepalive_s = address.keepalive_s
        self.generation = next(lan.generations)
        self.broker: FakeBroker | None = None
        """The one that it has come to."""
        self.session: Session | None = None
        self.silent_since: float | None = None
        """Nothing comes through since then; both sides find out."""
        self.up, self.down = Way(lan, self.node, self.host), Way(lan, self.host, self.node)
        self.accepted: asyncio.Future[None] = lan.loop.create_future()
        self.closed = asyncio.Event()
        """The broker has read our DISCONNECT, and all that stood before it."""
        self.session_present = False
        self._lan = lan
        self._fence = fence
        self._where = f"{address.host}:{address.port}"
        self._lost: str = ""
        self._ids = itertools.count(1)
        self._answers: dict[int, asyncio.Future[None]] = {}
        self._window = asyncio.Semaphore(PUBLISH_INFLIGHT_MAX)
        self._inbox: deque[Message] = deque()
        self._arrived = asyncio.Event()
        self._unacknowledged: dict[int, Message] = {}
        self._done: set[int] = set()
        lan.connections[self.generation] = self
        fence.on_fall.append(self.fell)

    @property
    def is_lost(self) -> bool:
        """The node has given it up; the broker may not know yet."""
        return bool(self._lost)

    # --- ports.Connection --------------------------------------------------------------------------------------------

    async def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        await self._fence.passage()
        if not topic or "+" in topic or "#" in topic:
            raise BrokerError(f"topic {topic!r}: wildcards or nothing in it", "no wildcards, at most 65535 bytes")
        self._check()
        if qos == 0:
            self.up.send_qos0(self._at_broker.on_publish, self, Stored(topic, payload, 0, retain), 0)
            return
        await self._window.acquire()
        try:
            answer = self._ask()
        except BrokerError:
            self._window.release()
            raise
        self.up.send(self._at_broker.on_publish, self, Stored(topic, payload, qos, retain), answer)
        await self._answers[answer]

    async def subscribe(self, *filters: str, qos: int = 1) -> None:
        await self._fence.passage()
        _check_filters(filters)
        answer = self._ask()
        self.up.send(self._at_broker.on_subscribe, self, filters, qos, answer)
        await self._answers[answer]

    async def unsubscribe(self, *filters: str) -> None:
        await self._fence.passage()
        _check_filters(filters)
        answer = self._ask()
        self.up.send(self._at_broker.on_unsubscribe, self, filters, answer)
        await self._answers[answer]

    async def receive(self) -> Message:
        await self._fence.passage()
        while not self._inbox:
            self._check()
            self._arrived.clear()
            await self._arrived.wait()
        return self._inbox.popleft()

    def acknowledge(self, message: Message) -> None:
        self._fence.check()
        if self._lost or self._unacknowledged.get(message.mid) is not message:
            return
        self._done.add(message.mid)
        while (oldest := next(iter(self._unacknowledged), None)) is not None and oldest in self._done:
            self._done.discard(oldest)
            del self._unacknowledged[oldest]
            self.up.send(self._at_broker.on_puback, self, oldest)

    async def close(self) -> None:
        await self._fence.passage()
        if not self._lost:
            self.lose("the connection was closed by us")
            self.up.send(self._at_broker.on_disconnect, self)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CLOSE_S_MAX):
                    await self.closed.wait()

    # --- what arrives at the node, and its end -----------------------------------------------------------------------

    def accept(self, session_present: bool) -> None:
        self.session_present = session_present
        if not self.accepted.done():
            self.accepted.set_result(None)

    def deliver(self, stored: Stored, mid: int) -> None:
        if self._lost or (mid == 0 and len(self._inbox) >= QOS0_UNREAD_MAX):
            return
        message = Message(stored.topic, stored.payload, stored.qos, stored.retain, stored.sent, mid, self.generation)
        if mid:
            self._unacknowledged[mid] = message
        self._inbox.append(message)
        self._arrived.set()

    def on_puback(self, answer: int) -> None:
        if answer in self._answers:
            self._window.release()
        self.on_suback(answer)

    def on_suback(self, answer: int) -> None:
        future = self._answers.pop(answer, None)
        if future is not None and not future.done():
            future.set_result(None)

    def lose(self, cause: str) -> None:
        """The node's side ends; everyone who waits is told."""
        if self._lost:
            return
        self._lost = cause
        for future in [self.accepted, *self._answers.values()]:
            if not future.done():
                future.set_exception(BrokerError(f"{self._where}: {cause}"))
                future.exception()  # nobody has to be there to hear it
        for _ in self._answers:  # who waits for a place in the window is told by who had it
            self._window.release()
        self._answers.clear()
        self._arrived.set()
        if not self._fence.fallen:
            self._fence.on_fall.remove(self.fell)
        self._lan.over(self)

    def give_up(self) -> None:
        """The node closes its socket without a DISCONNECT."""
        self.lose("the broker did not answer")
        self.up.send(self._lan.lost, self)

    def fell(self) -> None:
        """The node was killed: its kernel closes the socket; what stands unsent in it may go out or not."""
        if not self._lost:
            self._lost = "killed"
            if self._lan.rng.random() < 0.5:
                self.up.lose()
            self.up.send(self._lan.lost, self)
            self._lan.over(self)

    @property
    def _at_broker(self) -> FakeBroker:
        assert self.broker is not None, "it was accepted by nobody"
        return self.broker

    def _ask(self) -> int:
        self._check()
        answer = next(self._ids)
        self._answers[answer] = self._lan.loop.create_future()
        return answer

    def _check(self) -> None:
        if self._lost:
            raise BrokerError(f"{self._where}: {self._lost}")


def _check_filters(filters: tuple[str, ...]) -> None:
    bad = [each for each in filters if not _is_filter(each)]
    if bad:
        raise BrokerError(f"not a topic filter: {', '.join(bad)}", "+ stands alone in a level, # in the last one")


def _is_filter(text: str) -> bool:
    levels = text.split("/")
    alone = all(len(level) == 1 for level in levels if "+" in level or "#" in level)
    return bool(text) and alone and "#" not in levels[:-1]
