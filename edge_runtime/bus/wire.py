"""The TCP (or TLS) socket under an MQTT connection, fed by the event loop.

Two traps shape it. Nagle's algorithm and delayed acknowledgements together make a QoS 1 request and reply 88 ms instead of
0.5 ms on loopback: TCP_NODELAY is set once, and TCP_QUICKACK again after every read, because the kernel forgets it. Only the
brokers that gateways of our own site host need no such haste: started with set_tcp_nodelay they wait for no acknowledgement,
and one of its own for each packet is 10 us that each end of a task pays. (An external one may show a certificate of the site,
too, and wait.) And an MQTT client library reads packets byte by byte: here one system call reads what is there, one a turn of
the loop writes what has gathered, and the library is served from memory.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
import ssl
import threading
from collections.abc import Callable
from typing import Any

from edge_runtime.bus import tls
from edge_runtime.bus.tls import describe
from edge_runtime.ports import Address, BrokerError

READ_BYTES = 65_536
"""One read system call."""

SEND_BYTES_MAX = 262_144
"""Bytes that wait for room in the kernel's socket buffer; beyond it `send` says "not now" and the publisher waits."""

LOOKUPS_MAX = 32
"""Names that are looked up at the same time; of more a connection fails at once, and is tried again."""

_lookups = threading.BoundedSemaphore(LOOKUPS_MAX)
_RETRY = (BlockingIOError, ssl.SSLWantReadError, ssl.SSLWantWriteError)


class Wire:
    """A connected socket in the shape that paho wants (recv, send, close, fileno, setblocking), which never blocks."""

    def __init__(self, sock: socket.socket, *, quickack: bool) -> None:
        """`quickack`: see ports.Address."""
        self._loop = asyncio.get_running_loop()
        self._sock = sock
        self._quickack = quickack and hasattr(socket, "TCP_QUICKACK")
        self.peer_serial = tls.serial(sock)
        """Of the broker's certificate; "": it has shown none."""
        self._in = b""
        self._at = 0
        self._out = bytearray()
        self._flushing: asyncio.Handle | None = None
        self._sent = asyncio.Event()
        self._writing = False
        self.reading = False
        self._closed = False
        self.on_data: Callable[[], None] = _nothing
        self.on_room: Callable[[], None] = _nothing
        self.ended = ""
        """Why nothing more comes in; "" while it may."""
        self.revoked = False
        """It is because our certificate is revoked, as the broker says. With TLS 1.3 we hear it at the first read."""
        self.heard = False
        self.spoke = False
        """Did bytes come in, go out, since somebody set it to False? For keepalive."""

    # --- what paho calls

    def recv(self, size: int) -> bytes:
        """From memory: b"" at the end of the stream, BlockingIOError when there is nothing now."""
        if self._at < len(self._in):
            chunk = self._in[self._at : self._at + size]
            self._at += len(chunk)
            return chunk
        if self.ended:
            return b""
        raise BlockingIOError

    def send(self, data: bytes | bytearray) -> int:
        """Takes all of it, or raises BlockingIOError when too much waits already (then `on_room` is called later)."""
        if len(self._out) >= SEND_BYTES_MAX:
            raise BlockingIOError
        self._out += data
        self.spoke = True
        if self._flushing is None and not self._writing:
            # The first of this turn of the loop goes out at once, the others together: a lone request does not wait, a
            # thousand messages are no thousand system calls.
            self._push()
            self._flushing = self._loop.call_soon(self._flush)
        return len(data)

    def fileno(self) -> int:
        return self._sock.fileno()

    def setblocking(self, flag: bool) -> None:
        """It never blocks, whatever `flag` says."""

    def close(self) -> None:
        """paho lets go. What it has sent still goes out: the connection closes the socket, with `finish` or `drop`."""
        self.pause()

    # --- what the connection calls

    @property
    def unread(self) -> bool:
        """Is there something that recv would hand out (the end counts)?"""
        return not self._closed and (self._at < len(self._in) or bool(self.ended))

    def resume(self) -> None:
        if self.reading or self._closed:
            return
        self.reading = True
        self._loop.add_reader(self._sock.fileno(), self._readable)
        if self.unread:
            self._loop.call_soon(self._serve)

    def pause(self) -> None:
        """Stop reading: what comes stays with the kernel, whose full buffer makes the broker wait."""
        if self.reading:
            self.reading = False
            self._loop.remove_reader(self._sock.fileno())

    def drop(self) -> None:
        """Closes at once. May be called again."""
        if self._closed:
            return
        self._closed = True
        self.pause()
        self._watch_room(False)
        if self._flushing is not None:
            self._flushing.cancel()
        self._sock.close()

    async def finish(self, timeout_s: float) -> None:
        """Sends what is left, waits until the other side has closed too, then closes. Closing a socket at once while bytes
        stand unread in it sends a RST, which can overtake our last acknowledgements and the DISCONNECT."""
        self.pause()
        try:
            async with asyncio.timeout(timeout_s):
                while self._out:
                    self._sent.clear()
                    await self._sent.wait()
                self._sock.shutdown(socket.SHUT_WR)
                while not self.ended:
                    await _readable(self._sock)
                    self._fill()
                    self._in = b""
        except (TimeoutError, OSError) as error:
            self.ended = self.ended or describe(error)
        finally:
            self.drop()

    # --- what the event loop calls

    def _readable(self) -> None:
        self._fill()
        if self._out and not self._writing:
            self._flush()
        self.on_data()

    def _serve(self) -> None:
        if self.reading:
            self.on_data()

    def _fill(self) -> None:
        try:
            data = self._sock.recv(READ_BYTES)
            if self._quickack:
                self._sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_QUICKACK, 1)
        except _RETRY:
            return
        except OSError as error:
            self.ended, self.revoked = describe(error), tls.says_revoked(error)
            return
        if not data:
            self.ended = "the broker closed the connection"
        self.heard = True
        self._in = self._in[self._at :] + data
        self._at = 0

    def _flush(self) -> None:
        if self._flushing is not None:
            self._flushing.cancel()
            self._flushing = None
        self._push()
        if len(self._out) < SEND_BYTES_MAX // 2:
            self.on_room()
        if not self._out:
            self._sent.set()

    def _push(self) -> None:
        if self._out:
            try:
                del self._out[: self._sock.send(self._out)]
            except _RETRY:
                pass
            except OSError as error:
                self._out.clear()
                self._fill()  # what the other side said last tells more than that it is gone
                self.ended = self.ended or describe(error)
                self._loop.call_soon(self._serve)
        if self._writing != bool(self._out):
            self._watch_room(not self._writing)

    def _watch_room(self, watch: bool) -> None:
        if watch and not self._writing:
            self._loop.add_writer(self._sock.fileno(), self._flush)
        elif self._writing and not watch:
            self._loop.remove_writer(self._sock.fileno())
        self._writing = watch


async def dial(address: Address) -> Wire:
    """One attempt at each of the host's addresses. Raises BrokerError; may be cancelled."""
    # Of somebody else's broker at once: that a file is wrong is told also while nobody is there. Of our site's when somebody
    # listens: a host that looks for rivals all day finds nobody, and a context takes 1 ms and more.
    context = tls.context(address) if address.tls and not address.site_ca else None
    last = OSError(f"no address for {address.host}")
    for family, where in await _resolve(address):
        with contextlib.ExitStack() as cleanup:
            sock = cleanup.enter_context(socket.socket(family, socket.SOCK_STREAM))
            sock.setblocking(False)
            try:
                await asyncio.get_running_loop().sock_connect(sock, where)
            except OSError as error:
                last = error
                continue
            sock.setsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY, 1)
            if address.tls:
                sock = cleanup.enter_context(await _handshake(context or tls.context(address), sock, address))
            cleanup.pop_all()
            return Wire(sock, quickack=address.quickack)
    hint = "is the broker running, is the port right?" if isinstance(last, ConnectionRefusedError) else "is the network up?"
    raise BrokerError(f"{name(address)}: {describe(last)}", hint) from None


def name(address: Address) -> str:
    """For messages: never with the password."""
    host = f"[{address.host}]" if ":" in address.host else address.host
    return f"{'mqtts' if address.tls else 'mqtt'}://{host}:{address.port}"


async def _resolve(address: Address) -> list[tuple[int, Any]]:
    """(family, sockaddr) of each address. A literal needs no thread."""
    try:
        literal = ipaddress.ip_address(address.host)
    except ValueError:
        pass
    else:
        return [(socket.AF_INET if literal.version == 4 else socket.AF_INET6, (address.host, address.port))]
    try:
        found = await _look_up(address.host, address.port)
    except OSError as error:
        hint = "check the name, or give the IP address: name resolution may be down without the uplink"
        raise BrokerError(f"{name(address)}: host name not found: {describe(error)}", hint) from None
    return [(family, where) for family, _, _, _, where in found]


async def _look_up(host: str, port: int) -> list[Any]:
    """In a thread that nobody waits for: without a name server a look-up takes half a minute, and asyncio's own threads (as
    Python's pools) are waited for when the program ends. Raises OSError, and ValueError for what is no name."""
    if not _lookups.acquire(blocking=False):
        raise OSError(f"{LOOKUPS_MAX} names are being looked up already")
    loop = asyncio.get_running_loop()
    found: asyncio.Future[list[Any]] = loop.create_future()

    def settle(answer: list[Any], error: Exception | None) -> None:
        if found.done():
            return
        if error is None:
            found.set_result(answer)
        else:
            found.set_exception(error)

    def look_up() -> None:
        answer: list[Any] = []
        error: Exception | None = None
        try:
            answer = socket.getaddrinfo(host, port, type=socket.SOCK_STREAM)
        except (OSError, ValueError) as reason:
            error = reason
        finally:
            _lookups.release()
        with contextlib.suppress(RuntimeError):  # the loop is closed: nobody waits any more
            loop.call_soon_threadsafe(settle, answer, error)

    threading.Thread(target=look_up, name=f"look up {host[:50]}", daemon=True).start()
    return await found


async def _handshake(context: ssl.SSLContext, plain: socket.socket, address: Address) -> ssl.SSLSocket:
    """Raises BrokerError. 6 ms on loopback, of which the event loop is held 1.5 ms at a time."""
    with contextlib.ExitStack() as cleanup:
        try:
            sock = context.wrap_socket(plain, server_hostname=address.host, do_handshake_on_connect=False)
        except OSError as error:  # reset already: a broker that ends
            raise BrokerError(f"{name(address)}: {describe(error)}", "is the broker running, is it a TLS port?") from None
        cleanup.callback(sock.close)
        while True:
            try:
                sock.do_handshake()
            except ssl.SSLWantReadError:
                await _readable(sock)
            except ssl.SSLWantWriteError:
                await _writable(sock)
            except OSError as error:
                raise tls.refusal(name(address), address, error) from None
            else:
                break
        if address.site_ca:
            tls.check_gateway(name(address), sock)
        cleanup.pop_all()
        return sock


async def _readable(sock: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_reader(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_reader(sock.fileno())


async def _writable(sock: socket.socket) -> None:
    loop, ready = asyncio.get_running_loop(), asyncio.Event()
    loop.add_writer(sock.fileno(), ready.set)
    try:
        await ready.wait()
    finally:
        loop.remove_writer(sock.fileno())


def _nothing() -> None:
    return
