"""The receiver's HTTP door: HTTP/1.1 by hand over asyncio streams, bounded in every direction (runs).

| request             | answer                                                                                   |
|---------------------|------------------------------------------------------------------------------------------|
| POST /v1/batch      | 200 and a receipt once the batch is on disk; 400 with `refused`: never send it again     |
| POST /v1/hello      | 200 and a receipt, complete for the epochs that were asked about                         |
| GET  /v1/statistics | 200 and the figures of `edge-runtime receive --statistics`                               |
| GET  /healthz       | 200; 503 while the ledger cannot be written (needs no token)                             |

Every other answer is a Failure (JSON: cause, hint). 5xx and a cut connection mean: send it again, nothing was kept or
the receipt was lost; both are the same to a sender, because ids are recognised.
"""

from __future__ import annotations

import asyncio
import hmac
import ssl
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import cast

import msgspec

from edge_runtime.bus import messages
from edge_runtime.bus.messages import BadMessage, Batch, Failure, Hello
from edge_runtime.ports import EdgeError
from edge_runtime.receiver.ledger import LedgerError
from edge_runtime.receiver.receiver import Receiver

HEAD_BYTES_MAX = 16 * 1024
CONNECTIONS_MAX = 64
"""Beyond it a connection is answered 503 and closed."""

WORKED_ON_MAX = 16
"""Batches that are unpacked at the same time; others wait, packed."""

IDLE_S_MAX = 120.0
"""A connection that asks nothing for this long is closed."""

BODY_S_MAX = 30.0
"""A head or a body that takes longer to come is given up (408)."""

LINGER_S_MAX = 1.0
"""How long a refused request's body is read and thrown away before the connection is closed."""

CLOSE_S_MAX = 5.0
"""How long a stop waits for batches that are being committed."""

_REASONS = {
    200: "OK",
    400: "Bad Request",
    401: "Unauthorized",
    404: "Not Found",
    405: "Method Not Allowed",
    408: "Request Timeout",
    411: "Length Required",
    413: "Content Too Large",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


_TLS_HANDSHAKE = b"\x16"
_BODY_WAS_READ = (400, 404, 405, 503)


class _Request(msgspec.Struct):
    method: str
    path: str
    headers: dict[str, str]
    keep: bool


class _Bad(Exception):
    """The request cannot be answered with what it asked for."""

    def __init__(self, status: int, failure: Failure) -> None:
        super().__init__(failure.cause)
        self.status = status
        self.failure = failure


class Door:
    """Answers the requests of every connection out of one receiver."""

    def __init__(self, receiver: Receiver, token: str = "") -> None:
        self._receiver = receiver
        self._token = token
        self._connections: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        self._worked_on = asyncio.Semaphore(WORKED_ON_MAX)

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        """One connection, until the other side closes it or breaks the protocol."""
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._connections[task] = writer
        try:
            if len(self._connections) > CONNECTIONS_MAX:
                await _answer(writer, 503, Failure(f"more than {CONNECTIONS_MAX} connections", "try again later"), keep=False)
                return
            while await self._exchange(reader, writer):
                pass
        except (OSError, asyncio.IncompleteReadError):
            return  # the other side has gone; what it sent is kept, or it sends it again
        finally:
            del self._connections[task]
            writer.close()

    async def close(self) -> None:
        """Cuts every connection. Batches that were handed in are committed; those whose receipt is cut off come again."""
        open_ones = dict(self._connections)
        for writer in open_ones.values():
            writer.transport.abort()
        if open_ones:
            _, stuck = await asyncio.wait(open_ones, timeout=CLOSE_S_MAX)
            for task in open_ones:
                if task in stuck:
                    task.cancel()

    async def _exchange(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> bool:
        """One request and its answer. Returns whether the connection goes on."""
        request: _Request | None = None
        try:
            request = await _head(reader)
            if request is None:
                return False
            self._authorise(request)
            body = await _body(reader, writer, request)
            answer = await self._work(request, body)
        except _Bad as bad:
            keep = request is not None and request.keep and bad.status in _BODY_WAS_READ
            await _answer(writer, bad.status, bad.failure, keep=keep)
            if not keep:
                await _throw_away(reader, writer)
            return keep
        await _answer(writer, 200, answer, keep=request.keep)
        return request.keep

    def _authorise(self, request: _Request) -> None:
        given = request.headers.get("authorization", "")
        if (
            self._token
            and request.path != "/healthz"
            and not hmac.compare_digest(given.encode(), f"Bearer {self._token}".encode())
        ):
            raise _Bad(401, Failure("the token is missing or wrong", "set `token_file` of the sink to the receiver's token"))

    async def _work(self, request: _Request, body: bytes) -> msgspec.Struct:
        match request.method, request.path:
            case "POST", "/v1/batch":
                return await self._take(body)
            case "POST", "/v1/hello":
                with _refusing(body):
                    hello = messages.unpack(body, Hello)
                with _unavailable():
                    return await self._receiver.hello(hello)
            case "GET", "/v1/statistics":
                with _unavailable():
                    return await self._receiver.statistics()
            case "GET", "/healthz":
                with _unavailable():
                    await self._receiver.check()
                return Failure("ok")
            case _, "/v1/batch" | "/v1/hello" | "/v1/statistics" | "/healthz":
                raise _Bad(405, Failure(f"{request.method} is not for {request.path}", "see docs/receiver.md"))
            case _:
                hint = "there are /v1/batch, /v1/hello, /v1/statistics and /healthz: is `url` of the sink right?"
                raise _Bad(404, Failure(f"nothing at {request.path}", hint))

    async def _take(self, body: bytes) -> msgspec.Struct:
        async with self._worked_on:
            with _refusing(body):
                batch = messages.unpack(body, Batch)
            with _unavailable():
                return await self._receiver.take(batch)


@contextmanager
def _refusing(body: bytes) -> Iterator[None]:
    """A payload that can never be taken -> 400, with its digest: the sender knows that no proxy on the way says so."""
    try:
        yield
    except BadMessage as error:
        raise _Bad(400, Failure(error.cause, error.hint, messages.digest(body))) from None


@contextmanager
def _unavailable() -> Iterator[None]:
    """A ledger that cannot be written now -> 503: send it again later."""
    try:
        yield
    except LedgerError as error:
        raise _Bad(503, Failure(error.cause, error.hint)) from None


async def _head(reader: asyncio.StreamReader) -> _Request | None:
    """The next request's head; None when the other side has closed the connection or keeps it idle for too long."""
    try:
        async with asyncio.timeout(IDLE_S_MAX):
            first = await reader.readexactly(1)
    except (TimeoutError, asyncio.IncompleteReadError):
        return None
    if first == _TLS_HANDSHAKE:  # it would wait for our part of the handshake, and we for the end of its head
        raise _Bad(400, Failure("this port does not speak TLS", "write http:// into `url` of the sink"))
    try:
        async with asyncio.timeout(BODY_S_MAX):
            raw = first + await reader.readuntil(b"\r\n\r\n")
    except TimeoutError:
        raise _Bad(408, Failure(f"the head did not come within {BODY_S_MAX:g} s")) from None
    except asyncio.LimitOverrunError:
        raise _Bad(431, Failure(f"a head of more than {HEAD_BYTES_MAX} bytes")) from None
    line, *fields = raw.decode("latin-1").split("\r\n")[:-2]
    match line.split(" "):
        case [method, target, "HTTP/1.1" | "HTTP/1.0" as version]:
            headers = {name.strip().lower(): value.strip() for name, _, value in (field.partition(":") for field in fields)}
        case _:
            raise _Bad(400, Failure(f"no HTTP/1.1 request: {line[:80]!r}", "is the sink's `url` http where it should be https?"))
    keep = headers.get("connection", "").lower() != "close" and version == "HTTP/1.1"
    return _Request(method, target.partition("?")[0], headers, keep)


async def _body(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, request: _Request) -> bytes:
    if "transfer-encoding" in request.headers:
        raise _Bad(411, Failure("a body of unknown length", "send a Content-Length, not Transfer-Encoding: chunked"))
    length = request.headers.get("content-length", "0")
    if not length.isascii() or not length.isdigit():
        raise _Bad(411, Failure(f"Content-Length is no number: {length[:20]!r}"))
    if len(length) > 12 or int(length) > messages.BATCH_BYTES_MAX:
        raise _Bad(413, Failure(f"a body of {length[:12]} bytes, at most {messages.BATCH_BYTES_MAX}", "send smaller batches"))
    if request.headers.get("expect", "").lower() == "100-continue":
        writer.write(b"HTTP/1.1 100 Continue\r\n\r\n")
    try:
        async with asyncio.timeout(BODY_S_MAX):
            return await reader.readexactly(int(length))
    except TimeoutError:
        raise _Bad(408, Failure(f"the body did not come within {BODY_S_MAX:g} s")) from None


async def _answer(writer: asyncio.StreamWriter, status: int, answer: msgspec.Struct, *, keep: bool) -> None:
    body = msgspec.json.encode(answer)
    head = (
        f"HTTP/1.1 {status} {_REASONS[status]}\r\nContent-Type: application/json\r\nContent-Length: {len(body)}\r\n"
        f"Connection: {'keep-alive' if keep else 'close'}\r\n\r\n"
    )
    writer.write(head.encode() + body)
    async with asyncio.timeout(BODY_S_MAX):
        await writer.drain()


async def _throw_away(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
    """The rest of a request that was refused before its end. It would be taken for the next request; and closing over unread
    bytes would reset the connection, so that the other side might never see the answer."""
    if writer.can_write_eof():
        writer.write_eof()
    async with asyncio.timeout(LINGER_S_MAX):
        while await reader.read(HEAD_BYTES_MAX):
            pass


class CannotListen(EdgeError):
    """The address, or the certificate, is of no use."""


@asynccontextmanager
async def serve(door: Door, host: str, port: int, tls: ssl.SSLContext | None = None) -> AsyncIterator[str]:
    """Listens until the block ends. Gives the URL with the real port (port 0: a free one). Raises CannotListen."""
    try:
        server = await asyncio.start_server(door.serve, host, port, ssl=tls, limit=HEAD_BYTES_MAX)
    except OSError as error:
        raise CannotListen(
            f"cannot listen on {host}:{port}: {error.strerror or error}", "is another program on that port?"
        ) from None
    try:
        at, real = server.sockets[0].getsockname()[:2]
        name = f"[{at}]" if ":" in at else at
        yield f"{'https' if tls else 'http'}://{name}:{real}"
    finally:
        server.close()
        await door.close()


def tls_context(cert: Path, key: Path | None) -> ssl.SSLContext:
    """Raises CannotListen."""
    context = ssl.create_default_context(ssl.Purpose.CLIENT_AUTH)
    try:
        context.load_cert_chain(cert, key)
    except OSError as error:
        raise CannotListen(
            f"certificate {cert}: {error.strerror or error}", "PEM files that belong together: --cert, --key"
        ) from None
    return context
