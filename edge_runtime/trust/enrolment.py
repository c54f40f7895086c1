"""Enrolment, the authority's end (runs): waits on the local network for one gateway, and lets it in. The gateway's is joining.py.

It is bounded in every direction. Whoever holds connections open harms only himself: when there are too many, the oldest of the
address that has the most of them is cut.
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
from collections import Counter
from collections.abc import AsyncIterator, Callable
from contextlib import asynccontextmanager
from typing import Literal, TypeVar, cast

import msgspec

from edge_runtime.ports import Clock, EdgeError
from edge_runtime.trust import desk
from edge_runtime.trust.desk import BadMessage, Desk, Greeting, Issued, Joined, Message, Refusal, Request
from edge_runtime.trust.token import ASK

CONNECTIONS_MAX = 64
BACKLOG = 128
EXCHANGE_S_MAX = 5.0
"""For the TLS handshake, and once more for the request and a refusal."""
JOINED_S_MAX = 60.0
"""From the answer until the gateway has it on its disk."""
EXPIRY_CHECK_S = 1.0
"""A laptop sleeps, and asyncio's clock with it; the token's does not."""

M = TypeVar("M", bound=Message)


class Expired(EdgeError):
    """Nobody has joined in time."""


class Event(msgspec.Struct, frozen=True):
    """What goes on. `count`: of refused ones so far; after the first few, only round numbers are told."""

    event: Literal["refused", "issued", "joined"]
    source: str
    cause: str = ""
    count: int = 0


def listen(host: str, port: int) -> socket.socket:
    """Raises EdgeError: the address is taken, or is not ours."""
    try:
        family = socket.AF_INET6 if ":" in host else socket.AF_INET
        listening = socket.create_server((host, port), family=family, backlog=BACKLOG)
    except OSError as error:
        cause = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise EdgeError(cause, "another port or address of this machine: --listen HOST:PORT") from None
    listening.setblocking(False)
    return listening


def tls(cert_file: str, key_file: str) -> ssl.SSLContext:
    """Of the authority's end: a certificate that the CA has made for this."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.minimum_version = ssl.TLSVersion.TLSv1_3
    context.num_tickets = 0
    context.load_cert_chain(cert_file, key_file)
    return context


async def serve(
    at: Desk,
    listening: socket.socket,
    context: ssl.SSLContext,
    ca: str,
    sign: Callable[[Request], Issued],
    clock: Clock,
    tell: Callable[[Event], None],
) -> None:
    """Returns when the gateway has joined. `sign` raises EdgeError where the authority cannot. Closes `listening`.

    Raises Expired."""
    door = _Door(at, context, ca, sign, clock, tell)
    loop = asyncio.get_running_loop()
    loop.add_reader(listening, door.accept, listening)
    try:
        while not at.joined:
            left_s = (at.until_ns - clock.mono_ns()) / 1e9
            if left_s <= 0:
                raise _expired(at)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(min(left_s, EXPIRY_CHECK_S)):
                    await door.joined.wait()
    finally:
        loop.remove_reader(listening)
        listening.close()
        await door.close()


def _expired(at: Desk) -> Expired:
    if at.issued:
        cause = f"{at.token.gateway} was let in, but never said that it has its certificate"
        return Expired(cause, f"look at the gateway; has it not joined: {ASK} with --replace")
    return Expired(f"the token has expired, and {at.token.gateway} has not joined", ASK)


class _Door:
    """Accepts, and speaks with whoever comes."""

    def __init__(
        self,
        at: Desk,
        context: ssl.SSLContext,
        ca: str,
        sign: Callable[[Request], Issued],
        clock: Clock,
        tell: Callable[[Event], None],
    ) -> None:
        self._at, self._context, self._sign, self._clock, self._tell = at, context, sign, clock, tell
        self._greeting = desk.encode(Greeting(desk.VERSION, ca))
        self._open: dict[asyncio.Task[None], str] = {}
        """Where each comes from, in the order in which they came. Who has shown the secret is not among them any more."""
        self._known: list[asyncio.Task[None]] = []
        self._refused = 0
        self.joined = asyncio.Event()

    def accept(self, listening: socket.socket) -> None:
        """One that waits; called whenever there is one. (asyncio's own sock_accept fails in a flood when it is cancelled.)"""
        try:
            connection, (source, *_) = listening.accept()
        except OSError:  # gone again already
            return
        connection.setblocking(False)
        self._make_room()
        task = asyncio.create_task(self._serve(connection, source), name="enrolment: speaks")
        self._open[task] = source
        task.add_done_callback(self._forget)

    async def close(self) -> None:
        tasks = [*self._open, *self._known]
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)

    def _make_room(self) -> None:
        if len(self._open) >= CONNECTIONS_MAX:
            ((most, _),) = Counter(self._open.values()).most_common(1)
            victim = next(task for task, source in self._open.items() if source == most)
            self._open.pop(victim)
            victim.cancel()

    def _forget(self, task: asyncio.Task[None]) -> None:
        self._open.pop(task, None)
        if task in self._known:
            self._known.remove(task)

    async def _serve(self, connection: socket.socket, source: str) -> None:
        try:
            async with _accepted(connection, self._context) as (reader, writer):
                async with asyncio.timeout(EXCHANGE_S_MAX):  # without `as`: who is cut would hold himself, and 300 KiB of TLS
                    issued = await self._exchange(reader, writer, source)
                if issued:
                    async with asyncio.timeout(JOINED_S_MAX):
                        await self._let_in(issued, reader, writer, source)
        except (OSError, BadMessage) as error:
            self._refuse(source, _said(error))
            # The streams hold it, and its traceback holds the streams: 300 KiB each, until the collector comes by.
            error.__traceback__ = None

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str) -> Issued | None:
        """None: it is refused, or wanted no more than to see the CA's certificate (the first of a gateway's two connections)."""
        writer.write(self._greeting)
        request = await receive(reader, Request)
        if request is None:
            return None
        answer = self._answer(request)
        if isinstance(answer, Issued):
            return answer
        self._refuse(source, answer.cause)
        if answer.reason == "wrong":
            await asyncio.sleep(self._at.pause_s())
        writer.write(desk.encode(answer))
        await reader.read(1)  # until it has read that, and closes
        return None

    async def _let_in(self, issued: Issued, reader: asyncio.StreamReader, writer: asyncio.StreamWriter, source: str) -> None:
        """It has shown the secret: from here on it makes room for nobody."""
        if not self._known:
            self._tell(Event("issued", source))
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._open.pop(task, None)
        self._known.append(task)
        writer.write(desk.encode(issued))
        if await receive(reader, Joined):
            self._at.joined = True
            self._tell(Event("joined", source))
            self.joined.set()

    def _answer(self, request: Request) -> Issued | Refusal:
        if refusal := self._at.judge(request, self._clock.mono_ns()):
            return refusal
        if self._at.issued is None:
            try:
                self._at.keep(request, self._sign(request))
            except EdgeError as error:
                return desk.failed(error)
        assert self._at.issued
        return self._at.issued

    def _refuse(self, source: str, cause: str) -> None:
        """Counted; told where the count has one digit, or is 10, 20, ... 100, 200, ...: a flood must not be one of lines, too."""
        self._refused += 1
        if str(self._refused)[1:].strip("0") == "":
            self._tell(Event("refused", source, cause, self._refused))


def _said(error: OSError | BadMessage) -> str:
    if isinstance(error, BadMessage):
        return error.cause
    if isinstance(error, TimeoutError):
        return "too slow"
    return "speaks no TLS" if isinstance(error, ssl.SSLError) else "cut the connection"


@asynccontextmanager
async def _accepted(
    connection: socket.socket, context: ssl.SSLContext
) -> AsyncIterator[tuple[asyncio.StreamReader, asyncio.StreamWriter]]:
    """TLS over it. asyncio.start_server would not count who is still shaking hands. Raises OSError."""
    loop = asyncio.get_running_loop()
    reader = asyncio.StreamReader(limit=desk.OPEN_BYTES_MAX)
    protocol = asyncio.StreamReaderProtocol(reader)
    try:
        async with asyncio.timeout(EXCHANGE_S_MAX):
            transport, _ = await loop.connect_accepted_socket(lambda: protocol, connection, ssl=context)
    except BaseException:
        connection.close()
        raise
    try:
        yield reader, asyncio.StreamWriter(transport, protocol, reader, loop)
    finally:
        transport.abort()


async def receive(reader: asyncio.StreamReader, *kinds: type[M]) -> M | None:
    """None: it has closed instead. Raises BadMessage, OSError."""
    try:
        line = await reader.readline()
    except ValueError:
        raise BadMessage("what came is longer than any message of an enrolment", ASK) from None
    if not line.endswith(b"\n"):
        return None
    message = desk.decode(line)
    if not isinstance(message, kinds):
        raise BadMessage("what came is not what is due now", ASK)
    return message
