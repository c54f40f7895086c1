"""Who attacks a site: an MQTT client that keeps no rules, a port that notes down what it is told, a crowd of handshakes, a broker
of somebody's own. Raw sockets and threads: nothing of the project's own client stands between the attack and the site.

raw = Raw(port, credentials(site.ca_file, evil))
raw.publish("edge/plant/gw/press-1/cmd/write", b"...")
with Flood(raw, packet, rate=5_000) as flood: ...
"""

from __future__ import annotations

import asyncio
import contextlib
import socket
import ssl
import struct
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

from edge_runtime.config import Mesh
from edge_runtime.mesh.discovery import ZeroconfDiscovery
from edge_runtime.ports_mesh import Announcement, Endpoint
from edge_runtime.trust.identity import Identity

TIMEOUT_S = 5.0
BURST_S = 0.01
"""A flood comes in such pieces."""


def credentials(ca: Path | None = None, who: Identity | None = None, *, files: Sequence[Path] = ()) -> ssl.SSLContext:
    """Of `who`, or of a certificate and its key in `files`; none of them: without a certificate. Without `ca` whoever answers is
    believed."""
    made = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    made.check_hostname = False
    made.verify_mode = ssl.CERT_REQUIRED if ca else ssl.CERT_NONE
    made.verify_flags |= 0x200000
    if ca:
        made.load_verify_locations(ca)
    if who:
        made.load_cert_chain(who.cert_file, who.key_file)
    elif files:
        made.load_cert_chain(*files)
    return made


# --- MQTT 3.1.1 by hand ----------------------------------------------------------------------------------------------


def packet(kind: int, body: bytes) -> bytes:
    size, length = bytearray(), len(body)
    while True:
        length, digit = length >> 7, length & 0x7F
        size.append(digit | (0x80 if length else 0))
        if not length:
            return bytes([kind]) + bytes(size) + body


def text(value: str | bytes) -> bytes:
    raw = value.encode() if isinstance(value, str) else value
    return struct.pack(">H", len(raw)) + raw


def publish(topic: str, payload: bytes, *, qos: int = 0, retain: bool = False, mid: int = 1) -> bytes:
    return packet(0x30 | qos << 1 | retain, text(topic) + (struct.pack(">H", mid) if qos else b"") + payload)


class NoWayIn(Exception):
    """The broker, or what stands before it, did not let us in."""


class Raw:
    """One connection, with a clean session, that nobody keeps from saying anything."""

    def __init__(
        self, port: int, context: ssl.SSLContext | None, client_id: str = "", *, will: str = "", login: Sequence[str] = ()
    ) -> None:
        """`will`: its topic. `login`: name and password. Raises NoWayIn."""
        self.closed = False
        self.sock: socket.socket = socket.create_connection(("127.0.0.1", port), TIMEOUT_S)
        try:
            if context is not None:
                self.sock = context.wrap_socket(self.sock)
            flags = 0x02 | (0x04 if will else 0) | (0xC0 if login else 0)
            rest = [client_id, *([will, "a will"] if will else []), *login]
            self.sock.sendall(packet(0x10, text("MQTT") + bytes([4, flags, 0, 60]) + b"".join(map(text, rest))))
            answer = self.sock.recv(4)  # with TLS 1.3 it is only now that our certificate is looked at
        except OSError as error:
            self.sock.close()
            raise NoWayIn(str(error)) from None
        if answer[:1] != b"\x20" or answer[3:4] != b"\x00":
            self.sock.close()
            raise NoWayIn(f"CONNACK {answer!r}")
        self._mid = 0
        self._rest = b""

    def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """QoS 1; returns when the broker has acknowledged it, which says nothing of whether it was allowed."""
        self._mid = self._mid % 60_000 + 1
        self.sock.sendall(publish(topic, payload, qos=1, retain=retain, mid=self._mid))
        self.until(lambda kind, body: kind >> 4 == 4 and body == struct.pack(">H", self._mid))

    def subscribe(self, topic: str) -> None:
        self._mid = self._mid % 60_000 + 1
        self.sock.sendall(packet(0x82, struct.pack(">H", self._mid) + text(topic) + b"\x00"))
        self.until(lambda kind, _: kind >> 4 == 9)

    def message(self, limit_s: float = TIMEOUT_S) -> tuple[str, bytes]:
        """The next one of QoS 0."""
        _, body = self.until(lambda kind, _: kind >> 4 == 3, limit_s)
        size = struct.unpack(">H", body[:2])[0]
        return body[2 : 2 + size].decode(), body[2 + size :]

    def until(self, wanted: Callable[[int, bytes], bool], limit_s: float = TIMEOUT_S) -> tuple[int, bytes]:
        """The first packet of this kind; all others are thrown away."""
        end = time.monotonic() + limit_s
        while True:
            found = self._cut()
            if found is None:
                self.sock.settimeout(max(0.01, end - time.monotonic()))
                chunk = self.sock.recv(65_536)
                if not chunk:
                    self.closed = True
                    raise NoWayIn("the broker closed the connection")
                self._rest += chunk
            elif wanted(*found):
                return found
            assert time.monotonic() < end, "the broker does not answer"

    def _cut(self) -> tuple[int, bytes] | None:
        rest, size, at = self._rest, 0, 1
        while True:
            if len(rest) <= at:
                return None
            size |= (rest[at] & 0x7F) << 7 * (at - 1)
            at += 1
            if not rest[at - 1] & 0x80:
                break
        if len(rest) < at + size:
            return None
        self._rest = rest[at + size :]
        return rest[0], rest[at : at + size]

    def close(self) -> None:
        with contextlib.suppress(OSError):
            self.sock.close()

    def __enter__(self) -> Raw:
        return self

    def __exit__(self, *_: object) -> None:
        self.close()


# --- many at once ----------------------------------------------------------------------------------------------------


class Flood:
    """Publishes `packets`, one after the other, again and again, `rate` a second, from a thread.

    It is the only one that uses the connection. Of two in one TLS session (Python 3.11 has no lock there) the one that reads
    saw an end that was none, in 3 of 400 floods; with answers left unread, the closed connection takes along what the broker has
    not read yet. It seemed to have counted 52 of 10,018 too few."""

    def __init__(self, raw: Raw, packets: Sequence[bytes], rate: float) -> None:
        self.sent = 0
        self.error = ""
        """Why it ended before it was told to."""
        self.began_s = time.monotonic()
        self._raw, self._packets, self._rate = raw, packets, rate
        self._over = threading.Event()
        self._thread = threading.Thread(target=self._run, daemon=True)

    def _run(self) -> None:
        sock = self._raw.sock
        try:
            while not self._over.is_set():
                due = int((time.monotonic() - self.began_s) * self._rate) - self.sent
                chunk = b"".join(self._packets[(self.sent + n) % len(self._packets)] for n in range(due))
                sock.settimeout(30)
                sock.sendall(chunk)
                self.sent += due
                self._take_answers()
                self._over.wait(BURST_S)
            # What was sent is read: words of the broker that met a closed socket would make it lose what it has not read yet.
            sock.settimeout(30)
            sock.shutdown(socket.SHUT_WR)
            while sock.recv(65_536):
                pass
        except OSError as error:
            self.error = f"{type(error).__name__}: {error}"

    def _take_answers(self) -> None:
        """PUBACKs, and whatever else has come. Raises OSError where the broker has closed the connection."""
        self._raw.sock.settimeout(0)
        with contextlib.suppress(BlockingIOError, ssl.SSLWantReadError):
            while self._raw.sock.recv(65_536):
                pass
            raise ConnectionResetError("the broker has closed the connection")

    @property
    def rate(self) -> float:
        return self.sent / (time.monotonic() - self.began_s)

    def __enter__(self) -> Flood:
        self.began_s = time.monotonic()
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        self._thread.join(65)
        self._raw.close()


class Knocking:
    """Strangers who begin TLS with the broker, one after the other, from so many threads, and never get in."""

    def __init__(self, port: int, context: ssl.SSLContext, threads: int = 2) -> None:
        self.tries = 0
        self._port, self._context, self._over = port, context, threading.Event()
        self._lock = threading.Lock()
        self._threads = [threading.Thread(target=self._knock, daemon=True) for _ in range(threads)]

    def _knock(self) -> None:
        while not self._over.is_set():
            with contextlib.suppress(NoWayIn, OSError):
                Raw(self._port, self._context).close()
            with self._lock:
                self.tries += 1

    def __enter__(self) -> Knocking:
        for each in self._threads:
            each.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._over.set()
        for each in self._threads:
            each.join(10)


# --- a better broker -------------------------------------------------------------------------------------------------


class Trap:
    """A port that answers whoever comes, and notes down what it is told: before any TLS (`plain`), or inside of it."""

    def __init__(self, context: ssl.SSLContext | None = None) -> None:
        self.heard: list[bytes] = []
        """What each one said, inside of TLS where there is any."""
        self.callers = 0
        self._context = context
        self._server = socket.create_server(("127.0.0.1", 0))
        self.port: int = self._server.getsockname()[1]
        threading.Thread(target=self._serve, daemon=True).start()

    def _serve(self) -> None:
        with contextlib.suppress(OSError):
            while True:
                caller, _ = self._server.accept()
                self.callers += 1
                threading.Thread(target=self._listen, args=(caller,), daemon=True).start()

    def _listen(self, caller: socket.socket) -> None:
        caller.settimeout(2)
        said = b""
        with contextlib.suppress(OSError), caller:
            if self._context is not None:
                caller = self._context.wrap_socket(caller, server_side=True)
            with caller:
                while chunk := caller.recv(4096):
                    said += chunk
                    if said[:1] != b"\x10":  # as a broker without TLS does
                        break
                    caller.sendall(b"\x20\x02\x00\x00")  # welcome; tell us more
        if said:
            self.heard.append(said)

    def close(self) -> None:
        self._server.close()


@contextmanager
def announced(site: str, port: int, *, gateway: str = "better", instance: str = "0" * 16, rank: int = 1) -> Iterator[None]:
    """mDNS says, on loopback, that a gateway of this site hosts the broker at this port."""
    over, there = threading.Event(), threading.Event()
    where = (Endpoint("127.0.0.1", port),)
    mine = Announcement(site=site, gateway=gateway, instance=instance, role="host", rank=rank, endpoints=where, port=port)

    async def main() -> None:
        discovery = ZeroconfDiscovery(Mesh(interfaces=["lo"]), "127.0.0.1", _Silent())
        await discovery.open(mine)
        there.set()
        await asyncio.to_thread(over.wait)
        await discovery.close()

    thread = threading.Thread(target=asyncio.run, args=(main(),), daemon=True)
    thread.start()
    assert there.wait(10)
    try:
        yield
    finally:
        over.set()
        thread.join(10)


class _Silent:
    def info(self, _event: str, **_words: object) -> None: ...

    debug = warning = error = info
