"""The gateway's one connection to the site's broker, for presence and tasks (runs). Who wants to hear a kind of message says so
here; nobody else of the mesh knows the topics of incoming messages.

    link = Link("plant-1", "gateway-1", instance, log)
    link.on("load", presence.on_load)          # (gateway that the topic names, message)
    link.joined.append(presence.say_birth)     # awaited on every new connection, before anything else is read
    await link.serve(connection, home)         # until the connection is lost: raises BrokerError

A handler decides quickly and never waits. What is no message of ours (it raises BadMessage) is counted and hurts nobody.
"""

from __future__ import annotations

import contextlib
import re
from collections import Counter
from collections.abc import Awaitable, Callable
from typing import Any, Literal, NamedTuple, get_args

import msgspec

from edge_runtime.bus import topics
from edge_runtime.bus.messages import WORD, BadMessage
from edge_runtime.mesh.sealing import Sealing
from edge_runtime.ports import Address, BrokerError, Connection, Message
from edge_runtime.trust.roster import Forged

Kind = Literal["status", "load", "task", "reply", "brokers", "why", "config", "cmd", "roster", "renewal", "fetch", "chunk"]
To = Literal["task", "reply", "fetch", "chunk"]
"""What one gateway says to another, with its own name at the end of the topic; sealed where the site has an authority."""
Handler = Callable[[str, Message], None]

SENDERS_MAX = 1_000
"""Of bad messages, by who sent them: beyond it they are counted together."""
ROUTES_MAX = 2_000

_WORD = re.compile(WORD)
_SEALED = get_args(To)


class _Route(NamedTuple):
    """Where a topic leads to."""

    kind: str
    sender: str
    """The gateway that it names; "": none."""
    is_name: bool
    handlers: tuple[Handler, ...]


class Home(msgspec.Struct, frozen=True):
    """Where the site's broker is now."""

    address: Address
    """For this gateway to connect to."""
    host: str = ""
    """Name of the gateway that hosts it; "": nobody of the site does (broker.mode external)."""
    run: str = ""
    """Of the broker: new with each start that we know of; see presence.Birth."""


class Link:
    """See the module's text. `send` may be called by everybody, at any time."""

    def __init__(self, site: str, gateway: str, instance: str, log: Any, sealing: Sealing | None = None) -> None:
        """`sealing`: where the site has an authority."""
        self.sealing = sealing
        self.site, self.gateway, self.instance = site, gateway, instance
        self.joined: list[Callable[[], Awaitable[None]]] = []
        self.left: list[Callable[[], None]] = []
        """Called when the connection is lost."""
        self.home: Home | None = None
        """Set while there is a connection."""
        self.bad: Counter[str] = Counter()
        """Messages that were none, by the gateway that their topic names ("..." : all that are too many to name)."""
        self._log = log
        self._connection: Connection | None = None
        self._handlers: dict[str, Handler] = {}
        self._overhears: dict[str, Handler] = {}
        self._more: list[str] = []
        """Filters, beside what the mesh needs."""
        self._loads: dict[str, None] = {}
        self._routes: dict[str, _Route] = {}
        """By topic, as they came in."""
        self._topics: dict[tuple[str, str], str] = {}
        """To tell somebody something: by kind and peer."""

    def on(self, kind: Kind, handler: Handler, *filters: str) -> None:
        """`filters`: what has to be subscribed to for it, beside what the mesh needs."""
        self._handlers[kind] = handler
        self._more += filters
        self._routes.clear()

    def overhear(self, kind: Kind, handler: Handler, *filters: str) -> None:
        """As `on`, beside who it is for."""
        self._overhears[kind] = handler
        self._more += filters
        self._routes.clear()

    async def also(self, *filters: str) -> None:
        """Subscribes to these, too, from now on. Raises BrokerError when the connection is lost: on the next one it is done."""
        new = [each for each in dict.fromkeys(filters) if each not in self._more]
        self._more += new
        if new and self._connection is not None:
            await self._connection.subscribe(*new, qos=1)

    @property
    def connected(self) -> bool:
        return self._connection is not None

    async def send(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Raises BrokerError, also when there is no connection now."""
        if self._connection is None:
            raise BrokerError("there is no connection to the site's broker now", "see `edge-runtime mesh`")
        await self._connection.publish(topic, payload, qos=qos, retain=retain)

    async def tell(self, peer: str, kind: To, frame: bytes) -> None:
        """To one gateway; tasks and replies have their own deadlines, and are sent once. Raises BrokerError, also where it has
        told no key yet."""
        if self.sealing is not None:
            try:
                frame = self.sealing.seal(kind, peer, frame)
            except BadMessage as error:
                raise BrokerError(error.cause, error.hint) from None
        topic = self._topics.get((kind, peer))
        if topic is None:
            if len(self._topics) >= ROUTES_MAX:
                self._topics.clear()
            topic = self._topics[kind, peer] = topics.gateway(self.site, peer, kind, self.gateway)
        await self.send(topic, frame, qos=int(kind in ("fetch", "chunk")))

    async def serve(self, connection: Connection, home: Home) -> None:
        """Until the connection is lost: raises BrokerError."""
        try:
            asked: list[str] = []
            while wanted := [each for each in self._filters() if each not in asked]:  # `listen_to` may be called meanwhile
                asked += wanted
                await connection.subscribe(*wanted, qos=1)
            self._connection, self.home = connection, home
            for join in self.joined:
                await join()
            # Last, for there may be any number of retained births: while we wait for a PUBACK we would have to hold them all.
            await connection.subscribe(topics.gateway(self.site, "+", "status"), qos=1)
            while True:
                message = await connection.receive()
                if message.qos:
                    connection.acknowledge(message)
                self._take(message)
        finally:
            self._connection, self.home = None, None
            for leave in self.left:
                leave()

    async def hear_births(self) -> None:
        """All that the broker has kept, again."""
        if self._connection is not None:
            with contextlib.suppress(BrokerError):  # the next connection hears them
                await self._connection.subscribe(topics.gateway(self.site, "+", "status"), qos=1)

    async def listen_to(self, gateways: list[str]) -> None:
        """Whose heartbeats are heard. Raises BrokerError when the connection is lost: on the next one it is done again."""
        wanted = dict.fromkeys(gateways)
        more = [self._load(each) for each in wanted if each not in self._loads]
        less = [self._load(each) for each in self._loads if each not in wanted]
        self._loads = wanted
        if self._connection is None:
            return
        if more:
            await self._connection.subscribe(*more, qos=0)
        if less:
            await self._connection.unsubscribe(*less)

    def _filters(self) -> list[str]:
        site, me = self.site, self.gateway
        return [
            topics.brokers(site),
            topics.other_broker(site, "+"),
            topics.why(site, "+"),
            topics.gateway(site, me, "task", "+"),
            topics.gateway(site, me, "reply", "+"),
            *self._more,
            # Of our own name: another gateway may have it too.
            self._load(me),
            *(self._load(each) for each in self._loads if each != me),
        ]

    def _load(self, gateway: str) -> str:
        return topics.gateway(self.site, gateway, "load")

    def _take(self, message: Message) -> None:
        route = self._routes.get(message.topic)
        if route is None:
            route = self._route(message.topic)
            if len(self._routes) >= ROUTES_MAX:
                self._routes.clear()
            self._routes[message.topic] = route
        kind, sender, is_name, handlers = route
        if not handlers:
            return
        try:
            if not is_name:
                raise BadMessage("a topic that names no gateway", "who else publishes there?")
            opened = message
            if self.sealing is not None and kind in _SEALED:
                opened = msgspec.structs.replace(message, payload=self.sealing.open(kind, sender, message.payload))
            elif self.sealing is not None and kind == "status" and message.payload:
                opened = msgspec.structs.replace(message, payload=self.sealing.open_birth(sender, message.payload))
            for handler in handlers:
                handler(sender, opened)
        except (BadMessage, Forged) as error:
            self.note_bad(sender, error)

    def _route(self, topic: str) -> _Route:
        kind, sender = self._parsed(topic)
        handlers = tuple(each[kind] for each in (self._handlers, self._overhears) if kind in each)
        return _Route(kind, sender, not sender or bool(_WORD.match(sender)), handlers)

    def _parsed(self, topic: str) -> tuple[str, str]:
        """Kind of message, and the gateway that the topic names ("": none)."""
        if topic == topics.brokers(self.site):
            return "brokers", ""
        if topic.startswith(topics.other_broker(self.site, "")):
            return "brokers", topic.rpartition("/")[2]
        if topic.startswith(topics.why(self.site, "")):
            return "why", ""
        if topic == topics.roster(self.site):
            return "roster", ""
        if topics.desired_target(self.site, topic) is not None:
            return "config", ""
        parsed = topics.parse(topic)
        if parsed is None:
            return "", ""
        _, gateway, rest = parsed
        return rest[0], rest[1] if len(rest) == 2 and rest[0] in get_args(To) else gateway

    def note_bad(self, sender: str, error: BadMessage | Forged) -> None:
        """Logged once for each sender: one that sends garbage a thousand times a second must not fill the disk."""
        name = sender if sender in self.bad or (len(self.bad) < SENDERS_MAX and _WORD.match(sender)) else "..."
        if name not in self.bad:
            self._log.warning("bad_message", sender=sender, cause=error.cause, hint=error.hint)
        self.bad[name] += 1
