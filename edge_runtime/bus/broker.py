"""MQTT 3.1.1 over asyncio: the one file that knows paho. Implements ports.Bus and ports.Connection.

paho does the protocol only. It has no thread, opens no socket and never reconnects: a client object lives for one connection,
because one that is used again sends its old messages to whatever broker it meets next.

What bounds it: PUBLISH_INFLIGHT_MAX publishes without acknowledgement (the next waits), RECEIVE_MAX messages or
RECEIVE_BYTES_MAX bytes that nobody has received (then the socket is not read, and the broker has to wait; PUBACKs of our own
publishes wait too: who publishes much and receives slowly takes two connections).
"""

from __future__ import annotations

import asyncio
import contextlib
import itertools
from collections import deque
from typing import Any

import paho.mqtt.client as paho
from paho.mqtt.enums import CallbackAPIVersion, MQTTErrorCode

from edge_runtime.bus import wire
from edge_runtime.ports import Address, BrokerError, Message, Revoked, Will

RECEIVE_MAX = 1_000
RECEIVE_BYTES_MAX = 16 * 2**20
OVERFLOW = 4
"""Times these limits, reached while we must go on reading for the answer to a request of ours: the connection is given up."""
PUBLISH_INFLIGHT_MAX = 100
CLOSE_S_MAX = 1.0
"""How long a clean close waits for the broker."""

TICKS = 4
"""Of the keepalive timer, a keepalive period."""
NEVER_S = 2**31
"""keepalive_s = 0: neither side asks."""
TICKS_QUIET = 2
"""Ticks without a byte, in or out, after which the broker is asked (PINGREQ)."""
TICKS_DEAD = 6
"""Ticks without a byte in, after which the broker counts as gone. Ticks, not seconds: a process that was stopped for a minute
sees one late tick, and reads what came in meanwhile before it judges."""

_HINTS = {
    "Not authorized": "check user, password and the broker's access rules (allow_anonymous)",
    "Bad user name or password": "check user and password in the url",
    "Client identifier not valid": "the broker wants another client_id",
    "Server unavailable": "the broker is starting or overloaded",
}
_REFUSED_HINT = "check the broker's access rules"
_REVOKED_HINT = "`edge-runtime site members` tells; then bring this gateway the newest roster: `edge-runtime join --roster FILE`"


class PahoBus:
    """Opens MQTT connections (ports.Bus)."""

    def __init__(self) -> None:
        self._generations = itertools.count(1)

    async def connect(self, address: Address, *, will: Will | None = None, timeout_s: float = 5.0) -> PahoConnection:
        """One attempt, DNS and TLS included. Raises BrokerError with the broker's own reason."""
        where = wire.name(address)
        try:
            async with asyncio.timeout(timeout_s):
                line = await wire.dial(address)
                with contextlib.ExitStack() as cleanup:
                    cleanup.callback(line.drop)
                    connection = PahoConnection(address, will, line, next(self._generations))
                    cleanup.callback(connection.abort)
                    await connection.accepted()
                    cleanup.pop_all()
                    return connection
        except ValueError as error:
            raise BrokerError(f"{where}: {error}", "a session that is kept (clean: false) needs a client_id") from None
        except TimeoutError:
            hint = "is it an MQTT broker (not TLS, not HTTP), does a firewall drop us?"
            raise BrokerError(f"{where}: no answer within {timeout_s:g} s", hint) from None


class _Client(paho.Client):
    """paho on a socket that is open already."""

    line: wire.Wire

    def _create_socket(self) -> wire.Wire:
        return self.line

    def _handle_on_message(self, message: paho.MQTTMessage) -> None:
        """Straight to us: paho looks for callbacks by topic first, under two locks. Nobody sets any."""
        assert self.on_message is not None
        self.on_message(self, None, message)


class PahoConnection:
    """One connection, from CONNACK until it is lost (ports.Connection)."""

    def __init__(self, address: Address, will: Will | None, line: wire.Wire, generation: int) -> None:
        self._loop = asyncio.get_running_loop()
        self._where = wire.name(address)
        self._early_hint = "is it an MQTT 3.1.1 broker without TLS?"
        if address.tls:  # with TLS 1.3 we hear after the handshake that our certificate is not taken
            self._early_hint = "is it an MQTT 3.1.1 broker, and our certificate one that it takes, not revoked?"
        self._generation = generation
        self._line = line
        self.peer_serial = line.peer_serial
        """Of the broker's certificate; "": it has shown none."""
        self._lost: BrokerError | None = None
        self._session_present = False
        self._connack: asyncio.Future[None] = self._loop.create_future()
        self._inbox: deque[Message] = deque()
        self._inbox_bytes = 0
        self._arrived = asyncio.Event()
        self._unacknowledged: dict[int, Message] = {}
        self._done: set[int] = set()
        self._window = asyncio.Semaphore(PUBLISH_INFLIGHT_MAX)
        self._published: dict[int, asyncio.Future[None]] = {}
        self._subscribed: dict[int, tuple[tuple[str, ...], asyncio.Future[list[str]]]] = {}
        """mid of a subscribe or unsubscribe -> the filters, and those of them that are refused."""
        self._silent = self._quiet = 0
        self._client = self._build(address, will)
        self._tick_s = (address.keepalive_s or NEVER_S) / TICKS
        self._timer = self._loop.call_later(self._tick_s, self._tick)
        line.on_data, line.on_room = self._read, self._write
        line.resume()

    def _build(self, address: Address, will: Will | None) -> _Client:
        client = _Client(
            CallbackAPIVersion.VERSION2,
            address.client_id,
            clean_session=address.clean,
            reconnect_on_failure=False,
            manual_ack=True,
        )
        client.line = self._line
        client.max_inflight_messages_set(0)  # no second queue: our window bounds it
        if address.username:
            client.username_pw_set(address.username, address.password or None)
        if will is not None:
            client.will_set(will.topic, will.payload, will.qos, will.retain)
        client.on_connect = self._on_connect
        client.on_disconnect = self._on_disconnect
        client.on_message = self._on_message
        client.on_subscribe = self._on_subscribe
        client.on_unsubscribe = self._on_subscribe
        client.connect(address.host, address.port, address.keepalive_s)
        return client

    # --- ports.Connection

    @property
    def session_present(self) -> bool:
        return self._session_present

    async def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """See ports.Connection. A QoS 1 publish that is cancelled may or may not arrive; it keeps its place in the window
        until the broker has acknowledged it."""
        await self._window.acquire()
        try:
            self._check()
            future = self._publish(topic, payload, qos, retain)
        except BrokerError:
            self._window.release()
            raise
        if future is None:
            self._window.release()
        else:
            await future  # _on_publish gives the place in the window back

    async def subscribe(self, *filters: str, qos: int = 1) -> None:
        self._check_filters(filters)
        refused = await self._answer(filters, self._client.subscribe([(each, qos) for each in filters])[1])
        if refused:
            raise BrokerError(f"{self._where}: subscription refused: {', '.join(refused)}", _REFUSED_HINT)

    async def unsubscribe(self, *filters: str) -> None:
        self._check_filters(filters)
        await self._answer((), self._client.unsubscribe(list(filters))[1])

    async def receive(self) -> Message:
        while not self._inbox:
            self._check()
            self._arrived.clear()
            await self._arrived.wait()
        message = self._inbox.popleft()
        self._inbox_bytes -= len(message.payload)
        if len(self._inbox) <= RECEIVE_MAX // 2 and self._inbox_bytes <= RECEIVE_BYTES_MAX // 2:
            self._line.resume()
        return message

    def acknowledge(self, message: Message) -> None:
        if self._lost or self._unacknowledged.get(message.mid) is not message:
            return  # of another connection, or acknowledged already: its id may belong to another message by now
        self._done.add(message.mid)
        while (oldest := next(iter(self._unacknowledged), None)) is not None and oldest in self._done:
            self._done.discard(oldest)
            self._client.ack(oldest, self._unacknowledged.pop(oldest).qos)

    async def close(self) -> None:
        if self._lost is None:
            self._lose("the connection was closed by us")
            self._client.disconnect()
            await self._line.finish(CLOSE_S_MAX)
        self.abort()

    # --- for PahoBus

    async def accepted(self) -> None:
        """Waits for CONNACK. Raises BrokerError when the broker refuses us."""
        await self._connack

    def abort(self) -> None:
        """Lets the connection fall, without a DISCONNECT: the broker sends the will. May be called again."""
        self._lose("the connection was dropped by us")
        self._line.drop()

    # --- what the wire and paho call

    def _read(self) -> None:
        full = self._full()
        while self._line.unread and not full:
            self._client.loop_read()
            full = self._full()
        if full:
            # A session that was there may have a heap of messages for us in front of the answer to a subscription (mosquitto
            # 2.0 does not keep its limit of 20 after a reconnect): they have to be received first.
            for _, future in self._subscribed.values():
                _resolve(future, [])
            self._line.pause()

    def _write(self) -> None:
        if self._client.want_write():
            self._client.loop_write()

    def _tick(self) -> None:
        line = self._line
        self._silent = 0 if line.heard or not line.reading else self._silent + 1
        self._quiet = 0 if line.spoke else self._quiet + 1
        line.heard = line.spoke = False
        if self._silent >= TICKS_DEAD:
            self._lose(f"the broker did not answer for {self._tick_s * self._silent:g} s", "is the network up?")
            line.drop()
            return
        if self._connack.done() and max(self._silent, self._quiet) >= TICKS_QUIET:
            self._client._send_pingreq()
        self._timer = self._loop.call_later(self._tick_s, self._tick)

    def _on_connect(self, _client: Any, _data: Any, flags: Any, reason: Any, _properties: Any) -> None:
        if reason.is_failure:
            self._lose(f"the broker refused us: {str(reason).lower()}", _HINTS.get(str(reason), ""))
        elif not self._connack.done():
            self._session_present = bool(flags.session_present)
            self._connack.set_result(None)

    def _on_disconnect(self, _client: Any, _data: Any, _flags: Any, reason: Any, _properties: Any) -> None:
        if self._lost is not None:
            return
        hint = self._early_hint if not self._connack.done() else "did it stop, or did another client take our client_id?"
        if self._line.revoked:
            self._lose(self._line.ended, _REVOKED_HINT, Revoked)
        else:
            self._lose(self._line.ended or f"the broker broke the protocol: {str(reason).lower()}", hint)
        self._line.drop()

    def _on_message(self, _client: Any, _data: Any, raw: paho.MQTTMessage) -> None:
        payload = bytes(raw.payload)
        message = Message(_topic(raw), payload, raw.qos, raw.retain, raw.dup, raw.mid, self._generation)
        if raw.qos:
            self._unacknowledged[raw.mid] = message
        self._inbox.append(message)
        self._inbox_bytes += len(payload)
        self._arrived.set()
        if len(self._inbox) > OVERFLOW * RECEIVE_MAX or self._inbox_bytes > OVERFLOW * RECEIVE_BYTES_MAX:
            cause = f"{len(self._inbox)} messages ({self._inbox_bytes} bytes) came in while we waited for an acknowledgement"
            self._lose(cause, "receive and publish on two connections")
            self._line.drop()

    def _on_publish(self, _client: Any, _data: Any, mid: int, _reason: Any, _properties: Any) -> None:
        future = self._published.pop(mid, None)
        if not self._published:  # paho builds 20 us of objects for this call, also of each message of QoS 0
            self._client.on_publish = None
        if future is not None:
            self._window.release()
            _resolve(future, None)

    def _on_subscribe(self, _client: Any, _data: Any, mid: int, answers: list[Any], _properties: Any) -> None:
        filters, future = self._subscribed.pop(mid, ((), None))
        refused = [each for each, answer in zip(filters, answers, strict=False) if answer.is_failure]
        if future is None:
            return
        if refused and future.done():  # nobody waits for it any more
            self._lose(f"subscription refused: {', '.join(refused)}", _REFUSED_HINT)
            self._line.drop()
        _resolve(future, refused)

    # --- inside

    def _publish(self, topic: str, payload: bytes, qos: int, retain: bool) -> asyncio.Future[None] | None:
        """None: it is with the socket already."""
        try:
            info = self._client.publish(topic, payload, qos, retain)
        except ValueError as error:
            raise BrokerError(f"topic {topic!r}: {error}", "no wildcards, at most 65535 bytes") from None
        if info.rc != MQTTErrorCode.MQTT_ERR_SUCCESS:
            raise BrokerError(f"{self._where}: not published: {paho.error_string(info.rc)}")
        if qos == 0 and info.is_published():
            return None
        future = self._published[info.mid] = self._loop.create_future()
        self._client.on_publish = self._on_publish
        self._line.resume()
        return future

    def _full(self) -> bool:
        """Stop reading? Never while we wait for a PUBACK: a coroutine that receives, publishes and receives again would
        wait for ever for a PUBACK that stands behind unread messages."""
        full = len(self._inbox) >= RECEIVE_MAX or self._inbox_bytes >= RECEIVE_BYTES_MAX
        return full and not self._published

    def _check_filters(self, filters: tuple[str, ...]) -> None:
        self._check()
        bad = [each for each in filters if not _is_filter(each)]
        if bad:
            raise BrokerError(f"not a topic filter: {', '.join(map(repr, bad))}", "+ stands alone in a level, # in the last one")

    async def _answer(self, filters: tuple[str, ...], mid: int | None) -> list[str]:
        """The broker's answer to a subscribe or unsubscribe: the filters that it refuses."""
        if mid is None:
            raise BrokerError(f"{self._where}: not connected")
        future: asyncio.Future[list[str]] = self._loop.create_future()
        self._subscribed[mid] = (filters, future)
        self._line.resume()
        return await future

    def _check(self) -> None:
        if self._lost is not None:
            raise type(self._lost)(self._lost.cause, self._lost.hint)

    def _lose(self, cause: str, hint: str = "", kind: type[BrokerError] = BrokerError) -> None:
        if self._lost is not None:
            return
        self._lost = kind(f"{self._where}: {cause}", hint)
        self._timer.cancel()
        subscribing = [future for _, future in self._subscribed.values()]
        waiting: list[asyncio.Future[Any]] = [self._connack, *self._published.values(), *subscribing]
        for future in waiting:
            if not future.done():
                future.set_exception(kind(self._lost.cause, hint))
        for _ in self._published:
            self._window.release()
        self._published.clear()
        self._subscribed.clear()
        self._arrived.set()


def _resolve(future: asyncio.Future[Any], value: Any) -> None:
    if not future.done():
        future.set_result(value)


def _is_filter(text: str) -> bool:
    levels = text.split("/")
    alone = all(len(level) == 1 for level in levels if "+" in level or "#" in level)
    return bool(text) and alone and "#" not in levels[:-1] and len(text.encode()) <= 65_535


def _topic(raw: paho.MQTTMessage) -> str:
    """A broker should refuse a topic that is not UTF-8; one that does not must not break the connection again and again."""
    try:
        return raw.topic
    except UnicodeDecodeError:
        return raw._topic.decode("utf-8", "replace")
