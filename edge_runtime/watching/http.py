"""Pages for whoever asks with GET: HTTP/1.1 over asyncio streams, one request a connection, bounded in every direction (runs).

Not the receiver's door: that one takes bodies, keeps connections and knows no gateway. Here whoever holds connections open, or
sends nothing, harms only himself: the one that came first makes room for the next.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable, Mapping
from contextlib import asynccontextmanager
from typing import cast

import msgspec

from edge_runtime.ports import EdgeError

HEAD_BYTES_MAX = 8 * 1024
CONNECTIONS_MAX = 16
EXCHANGE_S_MAX = 5.0
"""From the connection to the end of the answer."""

CLOSE_S_MAX = 2.0
"""A page that is being made has so long at a stop."""

LINGER_S_MAX = 0.5
LINGER_BYTES_MAX = 64 * 1024
"""What is read and thrown away of a request that was refused before its end: closing over unread bytes would reset the
connection, and the answer with it."""

TEXT = "text/plain; charset=utf-8"
JSON = "application/json"

_REASONS = {
    200: "OK",
    400: "Bad Request",
    404: "Not Found",
    405: "Method Not Allowed",
    431: "Request Header Fields Too Large",
    503: "Service Unavailable",
}


class Page(msgspec.Struct, frozen=True):
    """An answer."""

    status: int
    kind: str
    body: bytes


class CannotListen(EdgeError):
    """The address is taken, or is not ours."""


Pages = Mapping[str, Callable[[], Awaitable[Page]]]
"""By path."""


@asynccontextmanager
async def listening(pages: Pages, host: str, port: int) -> AsyncIterator[str]:
    """Serves the pages until the block ends. Gives host:port with the real port (0: a free one). Raises CannotListen."""
    door = _Door(pages)
    try:
        server = await asyncio.start_server(door.serve, host, port, limit=HEAD_BYTES_MAX)
    except OSError as error:
        cause = f"cannot listen on {host}:{port}: {error.strerror or error}"
        raise CannotListen(cause, "is another program on that port? see `metrics.listen`") from None
    try:
        at, real = server.sockets[0].getsockname()[:2]
        yield f"[{at}]:{real}" if ":" in at else f"{at}:{real}"
    finally:
        server.close()
        await door.close()


class _Door:
    def __init__(self, pages: Pages) -> None:
        self._pages = pages
        self._open: dict[asyncio.Task[None], asyncio.StreamWriter] = {}
        """In the order in which they came."""

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        task = cast("asyncio.Task[None]", asyncio.current_task())
        self._open[task] = writer
        writer.transport.set_write_buffer_limits(0)  # so that `drain` returns when the kernel has all of it
        if len(self._open) > CONNECTIONS_MAX:
            first = next(iter(self._open))
            self._open.pop(first).transport.abort()
        try:
            async with asyncio.timeout(EXCHANGE_S_MAX):
                page = await self._asked(reader)
                await _answer(reader, writer, page)
        except (OSError, TimeoutError):  # the other side has gone, or is too slow
            return
        finally:
            self._open.pop(task, None)
            writer.transport.abort()

    async def close(self) -> None:
        """Cuts every connection. A task that the end of the loop cancels would be an error in the log (before Python 3.12)."""
        tasks = list(self._open)
        for writer in self._open.values():
            writer.transport.abort()
        if tasks:
            await asyncio.wait(tasks, timeout=CLOSE_S_MAX)

    async def _asked(self, reader: asyncio.StreamReader) -> Page:
        try:
            head = await reader.readuntil(b"\r\n\r\n")
        except asyncio.LimitOverrunError:
            return _plain(431, f"a head of more than {HEAD_BYTES_MAX} bytes")
        except asyncio.IncompleteReadError:
            return _plain(400, "no HTTP request")
        match head.partition(b"\r\n")[0].decode("latin-1").split(" "):
            case ["GET", target, "HTTP/1.1" | "HTTP/1.0"]:
                page = self._pages.get(target.partition("?")[0])
                return await page() if page else _plain(404, f"there are {', '.join(self._pages)}")
            case [_, _, "HTTP/1.1" | "HTTP/1.0"]:
                return _plain(405, "only GET")
        return _plain(400, "no HTTP request")


async def _answer(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, page: Page) -> None:
    head = (
        f"HTTP/1.1 {page.status} {_REASONS[page.status]}\r\nContent-Type: {page.kind}\r\nContent-Length: {len(page.body)}\r\n"
        "Allow: GET\r\nCache-Control: no-store\r\nConnection: close\r\n\r\n"
    )
    writer.write(head.encode() + page.body)
    await writer.drain()
    writer.write_eof()
    left = LINGER_BYTES_MAX
    async with asyncio.timeout(LINGER_S_MAX):
        while left > 0 and (more := await reader.read(HEAD_BYTES_MAX)):
            left -= len(more)


def _plain(status: int, text: str) -> Page:
    return Page(status, TEXT, f"{text}\n".encode())
