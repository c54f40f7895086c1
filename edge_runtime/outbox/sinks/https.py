"""Records to a receiver over HTTP(S): one persistent connection of the standard library's http.client, in a thread (touches).

A request that fails in any way leaves it unknown whether the batch arrived; it is sent again and the receiver recognises it.
Only a 200 with a receipt in it counts. Only a refusal with the digest of our own payload means "never again": a proxy's 400
must not make us give up records.
"""

from __future__ import annotations

import asyncio
import contextlib
import http.client
import socket
import ssl
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar
from urllib.parse import urlsplit

import msgspec

from edge_runtime.bus import messages
from edge_runtime.bus.messages import BadMessage, Batch, Failure, Hello, ReceiptMessage
from edge_runtime.outbox.sinks.receipts import merged
from edge_runtime.ports import Receipt, Refused, SinkError, Worker
from edge_runtime.records import Record
from edge_runtime.trust.tls import context_for_anybody

ANSWER_BYTES_MAX = messages.BATCH_BYTES_MAX
SHOWN_MAX = 120
"""Characters of a strange answer that stand in the error."""

_HINTS = {
    401: "set `token_file` to a file with the receiver's token",
    403: "set `token_file` to a file with the receiver's token",
    404: "is `url` right? The sink adds /v1/batch to it",
    413: "something on the way takes less: set a smaller `batch_records_max`",
    503: "the receiver cannot take records now, or who stands before it does not reach it",
}

_OUT_OF_TIME = (9, 10)
"""OpenSSL's verify codes: a certificate that is not valid yet, or not any more."""

T = TypeVar("T")

_Answer = tuple[int, bytes, str]
"""Status, body, digest of what was sent."""


class HttpsSink:
    """ports.Sink over HTTP(S). Its thread lives from `open` to `close`."""

    confirms = True

    def __init__(
        self,
        site: str,
        gateway: str,
        url: str,
        new_worker: Callable[[], Worker],
        *,
        timeout_s: float,
        token_file: Path | None = None,
        ca_file: Path | None = None,
    ) -> None:
        parts = urlsplit(url)
        self._site, self._gateway, self._url = site, gateway, url
        self._tls = parts.scheme == "https"
        self._host, self._port, self._prefix = parts.hostname or "", parts.port, parts.path.rstrip("/")
        self._new_worker = new_worker
        self._worker: Worker | None = None
        self._timeout_s = timeout_s
        self._token_file, self._ca_file = token_file, ca_file
        self._headers: dict[str, str] = {}
        self._connection: http.client.HTTPConnection | None = None
        self._asked = self._given_up = 0
        """Numbers of requests: the newest, and the newest that was given up. (A flag that the next request resets came too
        early for the thread: it then sent the old request once more, and the new one waited behind it.)"""

    async def open(self, epochs: Sequence[str]) -> Receipt:
        if self._worker is None:
            self._worker = self._new_worker()
        await self._in_time(self._prepare)
        answer = await self._ask("/v1/hello", messages.hello(self._site, self._gateway, epochs))
        if not set(epochs) <= set(answer.epochs):
            raise SinkError(f"{self._url}: the answer to our hello is of other epochs", "is the far end `edge-runtime receive`?")
        return answer.receipt()

    async def send(self, records: Sequence[Record]) -> Receipt:
        receipts = []
        for part in messages.batches(self._site, self._gateway, records):
            receipts.append((await self._ask("/v1/batch", part)).receipt())
        return merged(receipts)

    async def close(self) -> None:
        worker, self._worker = self._worker, None
        if worker is not None:
            self._cut()
            try:
                await worker.run(self._drop)
            finally:
                worker.close()

    async def _ask(self, path: str, message: Batch | Hello) -> ReceiptMessage:
        self._asked += 1
        status, body, digest = await self._in_time(self._exchange, self._asked, path, message)
        return self._understood(status, body, digest, show=isinstance(message, Hello))

    async def _in_time(self, function: Callable[..., T], *args: Any) -> T:
        """Takes `timeout_s` at most, whatever the far end does: a server that sends a byte now and then would outwit the
        socket's own timeout. The thread is set free by cutting its connection."""
        if self._worker is None:
            raise SinkError(f"{self._url}: the sink is closed", "open it first")
        try:
            async with asyncio.timeout(self._timeout_s):
                return await self._worker.run(function, *args)
        except asyncio.CancelledError:
            self._cut()
            raise
        except TimeoutError:
            self._cut()
            raise SinkError(
                f"{self._url}: no answer within {self._timeout_s:g} s", "is the receiver overloaded, the network slow?"
            ) from None
        except (OSError, http.client.HTTPException, ValueError) as error:
            raise self._failed(error) from None

    def _cut(self) -> None:
        """Ends what the thread waits for. Past ssl's own shutdown(), which would pull the session from under the thread."""
        self._given_up = self._asked
        connection = self._connection
        if connection is not None and connection.sock is not None:
            with contextlib.suppress(OSError):
                socket.socket.shutdown(connection.sock, socket.SHUT_RDWR)

    def _failed(self, error: Exception) -> SinkError:
        cause = f"{error or type(error).__name__}"
        match error:
            case ssl.SSLCertVerificationError(verify_code=code) if code in _OUT_OF_TIME:
                hint = "is the clock of this machine right? Else the receiver needs a new certificate"
            case ssl.SSLCertVerificationError():
                hint = "set `ca_file` to the CA that signed the receiver's certificate; the name in `url` must be in it"
            case ssl.SSLError():
                hint = "does the receiver speak TLS? If not, `url` begins with http://"
            case socket.gaierror():
                hint = "is the name in `url` right, and is the name server reachable?"
            case http.client.RemoteDisconnected():
                hint = "is the receiver running? Does it want https?"
            case http.client.BadStatusLine() | http.client.UnknownProtocol():
                cause = "the answer is no HTTP/1.1"  # the error holds a line of it: perhaps what we have sent
                hint = "does something else listen there, or does it want https?"
            case _:
                hint = "is the receiver running, and reachable from here?"
        return SinkError(f"{self._url}: {cause}", hint)

    def _understood(self, status: int, body: bytes, digest: str, *, show: bool) -> ReceiptMessage:
        """Raises Refused when the receiver says that it will never take this payload, SinkError for all other answers. `show`:
        our question held no values, so that a strange answer, which may repeat it, may stand in the log."""
        if status == http.HTTPStatus.OK:
            try:
                answer = messages.unpack(body, ReceiptMessage)
            except BadMessage as error:
                raise SinkError(
                    f"{self._url}: no receipt: {error.cause}", f"it says {_shown(body, show)}; is it `edge-runtime receive`?"
                ) from None
            if answer.gateway != self._gateway:
                raise SinkError(
                    f"{self._url}: a receipt for {answer.gateway!r}, not for us", "do two gateways share a connection?"
                )
            return answer
        try:
            failure = msgspec.json.decode(body, type=Failure)
        except (msgspec.DecodeError, RecursionError):
            failure = Failure(_shown(body, show))
        if failure.refused == digest:
            raise Refused(f"{self._url}: {failure.cause}", failure.hint)
        if status == http.HTTPStatus.SERVICE_UNAVAILABLE and failure.hint:  # a receiver knows what its disk lacks
            raise SinkError(f"{self._url}: status {status}: {failure.cause}", failure.hint)
        hint = _HINTS.get(
            status, failure.hint or ("put the final address into `url`" if 300 <= status < 400 else "see the receiver's log")
        )
        raise SinkError(f"{self._url}: status {status}: {failure.cause}", hint)

    # --- in the worker's thread

    def _prepare(self) -> None:
        """A fresh connection and a fresh token each time: both may have been replaced because the old one failed."""
        self._drop()
        self._headers = {"Content-Type": "application/json", "User-Agent": "edge-runtime"}
        if self._token_file is not None:
            self._headers["Authorization"] = f"Bearer {_token(self._token_file)}"

    def _exchange(self, number: int, path: str, message: Batch | Hello) -> _Answer:
        """Packs here, too: compressing a large batch would hold up everything else in the gateway."""
        payload = messages.pack(message)
        reused = self._connection is not None
        try:
            return self._exchange_once(path, payload)
        except (http.client.RemoteDisconnected, BrokenPipeError, ConnectionResetError):
            # A server closes a connection that was idle; it says so only when we write the next request to it.
            if not reused or self._given_up >= number:
                raise
            return self._exchange_once(path, payload)

    def _exchange_once(self, path: str, payload: bytes) -> _Answer:
        if self._connection is None:
            self._connection = self._connect()
        try:
            encoding = {"Content-Encoding": "gzip"} if payload[:2] == b"\x1f\x8b" else {}
            self._connection.request("POST", self._prefix + path, payload, self._headers | encoding)
            answer = self._connection.getresponse()
            body = answer.read(ANSWER_BYTES_MAX)
            if answer.isclosed() and not answer.will_close:
                return answer.status, body, messages.digest(payload)
        except BaseException:
            self._drop()
            raise
        self._drop()
        return answer.status, body, messages.digest(payload)

    def _connect(self) -> http.client.HTTPConnection:
        if not self._tls:
            return http.client.HTTPConnection(self._host, self._port, timeout=self._timeout_s)
        context = _trust(self._ca_file)
        return http.client.HTTPSConnection(self._host, self._port, timeout=self._timeout_s, context=context)

    def _drop(self) -> None:
        if self._connection is not None:
            self._connection.close()
            self._connection = None


def _token(file: Path) -> str:
    try:
        return file.read_text().strip()
    except OSError as error:
        raise SinkError(f"token_file {file}: {error.strerror}", "make it readable for the gateway") from None


def _trust(ca_file: Path | None) -> ssl.SSLContext:
    try:
        return context_for_anybody(str(ca_file) if ca_file else None)
    except OSError as error:
        raise SinkError(f"ca_file {ca_file}: {error.strerror or error}", "a readable file with a certificate (PEM)") from None


def _shown(body: bytes, show: bool) -> str:
    """The begin of an answer that nobody expected, fit for a log."""
    if body and not show:
        return f"{len(body)} bytes that are none of a receiver's"
    text = body[: SHOWN_MAX * 4].decode(errors="replace").strip()
    return repr(text[:SHOWN_MAX]) if text else "nothing"


def checked(url: str) -> str:
    """Raises SinkError when the url cannot be one of a receiver."""
    hint = "https://host[:port][/prefix]; http:// for tests and trusted networks"
    if "@" in url:  # not shown: what stands there may be a password
        raise SinkError("url: user and password are not sent over HTTP", "give the receiver's token: `token_file`")
    try:
        parts = urlsplit(url)
        _ = parts.port
    except ValueError as error:
        raise SinkError(f"url {url!r}: {error}", hint) from None
    if parts.scheme not in ("http", "https") or not parts.hostname or parts.query or parts.fragment:
        raise SinkError(f"url {url!r} is no address of a receiver", hint)
    return url
