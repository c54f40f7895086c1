"""The https sink against servers that misbehave: an error that says what to do, in time, and nothing lost."""

from __future__ import annotations

import asyncio
import ipaddress
import random
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import pytest
from cryptography import x509
from cryptography.hazmat.primitives import hashes
from cryptography.hazmat.primitives.asymmetric import ec
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat
from cryptography.x509.oid import NameOID
from receivers import STAMP, receiver, records

from edge_runtime.board.system import ThreadWorker
from edge_runtime.bus import messages
from edge_runtime.bus.messages import Failure
from edge_runtime.outbox.sinks import https
from edge_runtime.outbox.sinks.https import HttpsSink
from edge_runtime.ports import Refused, SinkError
from edge_runtime.records import Lane, Record
from edge_runtime.testing.sink_suite import failure, open_again

TIMEOUT_S = 1.0
Script = Callable[[asyncio.StreamReader, asyncio.StreamWriter, bytes], Awaitable[None]]
GREETING = messages.pack(messages.receipt("cloud", "gw", [], ["e1"]))


def sink(url: str, **options: Any) -> HttpsSink:
    return HttpsSink("site", "gw", url, lambda: ThreadWorker("sink"), **{"timeout_s": TIMEOUT_S, **options})


async def request(reader: asyncio.StreamReader) -> tuple[bytes, bytes]:
    """Head, body"""
    head = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    return head, await reader.readexactly(length)


def reply(body: bytes, status: str = "200 OK", length: int | None = None, more: str = "") -> bytes:
    return f"HTTP/1.1 {status}\r\nContent-Length: {len(body) if length is None else length}\r\n{more}\r\n".encode() + body


@asynccontextmanager
async def server(on_batch: Script) -> AsyncIterator[str]:
    """Greets well; a batch is answered by the script."""
    writers: list[asyncio.StreamWriter] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writers.append(writer)
        try:
            while True:
                head, body = await request(reader)
                if b"/v1/hello" in head:
                    writer.write(reply(GREETING))
                else:
                    await on_batch(reader, writer, body)
        except (asyncio.IncompleteReadError, ConnectionError):
            writer.close()

    listening = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}"
    finally:
        listening.close()
        for writer in writers:
            writer.close()


def says(answer: bytes, *, then: str = "keep") -> Script:
    async def script(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _body: bytes) -> None:
        writer.write(answer)
        await writer.drain()
        if then == "close":
            writer.close()

    return script


async def trickles(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _body: bytes) -> None:
    """A byte now and then: no read of it ever times out."""
    while True:
        writer.write(b"H")
        await writer.drain()
        await asyncio.sleep(TIMEOUT_S / 5)


async def refuses(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(reply(messages.pack(Failure("seq 0", "fix it", messages.digest(body))), "400 Bad Request"))


WRONG = messages.pack(messages.receipt("cloud", "another", [("e1", Lane.RESULT, ((1, 5),))]))
GOOD = messages.pack(messages.receipt("cloud", "gw", [("e1", Lane.RESULT, ((1, 5),))]))
OTHERS_REFUSAL = messages.pack(Failure("seq 0", "fix it", "0123456789abcdef"))


@pytest.mark.parametrize(
    ("script", "words"),
    [
        (says(reply(b"oops", "500 Internal Server Error")), "status 500: 4 bytes"),
        (says(reply(b'{"cause":"disk full","hint":"buy one"}', "503 Service Unavailable")), "disk full (buy one)"),
        (says(reply(b"<html>no upstream</html>", "503 Service Unavailable")), "who stands before it"),
        (says(reply(b'{"cause":"x","y":%s}' % (b"[" * 100_000 + b"]" * 100_000), "502 Bad Gateway")), "status 502: 200018 bytes"),
        (says(reply(b"<html>400 plain HTTP request sent to HTTPS port</html>", "400 Bad Request")), "status 400"),
        (says(reply(OTHERS_REFUSAL, "400 Bad Request")), "status 400"),
        (says(reply(b"", "301 Moved", more="Location: http://elsewhere/\r\n")), "put the final address"),
        (says(reply(b"", "401 Unauthorized")), "token_file"),
        (says(reply(b"{}", "404 Not Found")), "url"),
        (says(reply(b"", "413 Content Too Large")), "batch_records_max"),
        (says(reply(b"<html>hello</html>")), "no receipt"),
        (says(reply(b"")), "no receipt"),
        (says(reply(b"\x1f\x8b\x00\x01")), "no receipt"),
        (says(reply(WRONG)), "another"),
        (says(reply(GOOD[:10], length=len(GOOD)), then="close"), "no receipt"),
        (says(reply(GOOD, length=len(GOOD) + 9)), "no answer within"),
        (says(b"SSH-2.0-OpenSSH_9.2\r\n", then="close"), "something else listen"),
        (says(b"HTTP/1.1 200 OK\r\nContent-Le", then="close"), "no receipt"),
        (says(b"", then="close"), "is the receiver running"),
        (says(b""), "no answer within"),
        (trickles, "no answer within"),
    ],
)
def test_a_strange_answer_is_an_error_in_time(script: Script, words: str) -> None:
    async def main() -> None:
        async with server(script) as url:
            each = sink(url)
            for _ in range(2):
                await each.open(["e1"])
                error = await failure(each.send(records(1, 5)))
                assert words in str(error)
                assert error.hint
                assert not isinstance(error, Refused), "only the receiver itself may make us give a batch up"
            await each.close()

    asyncio.run(main())


async def echoes(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(reply(body[-60:], "500 Internal Server Error" if len(body) % 2 else "200 OK"))


async def echoes_without_a_head(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(body + b"\r\n\r\n")


async def echoes_as_a_version(_reader: asyncio.StreamReader, writer: asyncio.StreamWriter, body: bytes) -> None:
    writer.write(b"HTTP/" + body + b" 200 OK\r\n\r\n")


@pytest.mark.parametrize("echo", [echoes, echoes_without_a_head, echoes_as_a_version])
def test_a_server_that_repeats_what_it_was_told_puts_no_value_into_the_log(echo: Script) -> None:
    """The error goes to the log."""

    async def main() -> None:
        async with server(echo) as url:
            each = sink(url)
            for name in ("odd", "even"):
                await each.open(["e1"])
                record = Record(Lane.SAMPLE, "e1", 1, name, STAMP, b'{"value":"canary"}')
                assert "canary" not in str(await failure(each.send([record])))
            await each.close()

    asyncio.run(main())


def test_a_refusal_of_this_very_batch() -> None:
    async def main() -> None:
        async with server(refuses) as url:
            each = sink(url)
            await each.open(["e1"])
            error = await failure(each.send(records(1, 5)))
            assert isinstance(error, Refused)
            assert (error.cause, error.hint) == (f"{url}: seq 0", "fix it")
            await each.close()

    asyncio.run(main())


def test_an_answer_of_unknown_length_is_understood() -> None:
    chunked = b"HTTP/1.1 200 OK\r\nTransfer-Encoding: chunked\r\n\r\n" + b"%x\r\n%s\r\n0\r\n\r\n" % (len(GOOD), GOOD)

    async def main() -> None:
        for answer, then in ((chunked, "keep"), (b"HTTP/1.0 200 OK\r\n\r\n" + GOOD, "close")):
            async with server(says(answer, then=then)) as url:
                each = sink(url)
                await each.open(["e1"])
                for _ in range(2):
                    assert (await each.send(records(1, 5))).ranges == {("e1", Lane.RESULT): ((1, 5),)}
                await each.close()

    asyncio.run(main())


def test_a_connection_that_the_server_closed_while_idle_is_no_error() -> None:
    async def main() -> None:
        async with server(says(reply(GOOD), then="close")) as url:
            each = sink(url)
            await each.open(["e1"])
            for _ in range(3):
                await each.send(records(1, 5))
                await asyncio.sleep(0.05)  # the FIN comes in
            await each.close()

    asyncio.run(main())


def test_nothing_is_lost_behind_a_proxy_that_damages_everything(tmp_path: Path) -> None:
    """Between the sink and a real receiver: answers that are cut, replaced or late, requests that are dropped or damaged."""
    rng = random.Random(7)
    done: list[str] = []

    async def main() -> None:
        with receiver(tmp_path) as process:

            async def proxy(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, _first: bytes = b"") -> None:
                try:
                    while True:
                        head, body = await request(reader)
                        fate = rng.choice(["good"] * 6 + ["drop", "damage", "cut", "500", "garbage", "silent"])
                        done.append(fate)
                        if fate == "drop":
                            break
                        if fate == "damage":
                            at = rng.randrange(len(body))
                            body = body[:at] + bytes([body[at] ^ 0x10]) + body[at + 1 :]
                        answer = await forward(process.port, head, body)
                        if fate == "silent":
                            continue
                        replaced = {
                            "500": reply(b"no", "500 No"),
                            "garbage": reply(b"{}"),
                            "cut": answer[: rng.randrange(len(answer))],
                        }
                        writer.write(replaced.get(fate, answer))
                        if fate == "cut":
                            break
                except (asyncio.IncompleteReadError, ConnectionError):
                    pass
                writer.close()

            listening = await asyncio.start_server(proxy, "127.0.0.1", 0)
            each = sink(f"http://127.0.0.1:{listening.sockets[0].getsockname()[1]}", timeout_s=0.1)
            await open_again(each, ["e1"])
            for first in range(1, 751, 25):
                while True:
                    try:
                        receipt = await each.send(records(first, 25))
                    except SinkError:
                        await open_again(each, ["e1"])
                        continue
                    assert receipt.ranges[("e1", Lane.RESULT)][-1][1] >= first + 24
                    break
            await each.close()
            listening.close()
            assert sorted(process.rows("seq, body")) == [(n, f'{{"n":{n},"text":"é"}}') for n in range(1, 751)]

    asyncio.run(main())
    assert set(done) == {"good", "drop", "damage", "cut", "500", "garbage", "silent"}


async def forward(port: int, head: bytes, body: bytes) -> bytes:
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(head + body)
    answer = await reader.readuntil(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in answer.split(b"\r\n") if line.lower().startswith(b"content-length"))
    answer += await reader.readexactly(length)
    writer.close()
    return answer


def test_tls_and_token(tmp_path: Path) -> None:
    cert, key, token = tmp_path / "cert.pem", tmp_path / "key.pem", tmp_path / "token"
    kind = ["-newkey", "ec", "-pkeyopt", "ec_paramgen_curve:P-256", "-nodes", "-days", "1", "-subj", "/CN=x"]
    names = ["-addext", "subjectAltName=IP:127.0.0.1", "-keyout", str(key), "-out", str(cert)]
    subprocess.run(["openssl", "req", "-x509", *kind, *names], check=True, capture_output=True)
    token.write_text("secret\n")

    async def main() -> None:
        with receiver(tmp_path, "--cert", str(cert), "--key", str(key), "--token-file", str(token)) as process:
            url = process.url.replace("http:", "https:")
            good = sink(url, timeout_s=5, ca_file=cert, token_file=token)
            await good.open([])
            await good.send(records(1, 10))
            await good.close()
            for options, words in (
                ({"token_file": token}, "ca_file"),
                ({"ca_file": cert}, "token_file"),
                ({"ca_file": cert, "token_file": tmp_path / "none"}, "readable"),
                ({"ca_file": tmp_path / "none", "token_file": token}, "ca_file"),
            ):
                each = sink(url, **options)
                assert words in str(await failure(each.open([])))
                await each.close()
            plain = sink(process.url)
            assert "https" in (await failure(plain.open([]))).hint
            await plain.close()
            assert len(process.rows()) == 10

    asyncio.run(main())


def test_a_certificate_that_is_out_of_time_asks_for_the_clock(tmp_path: Path) -> None:
    """Without NTP it is 1970 after a boot: no `ca_file` mends that."""
    cert, key = tmp_path / "cert.pem", tmp_path / "key.pem"
    own, name = ec.generate_private_key(ec.SECP256R1()), x509.Name([x509.NameAttribute(NameOID.COMMON_NAME, "x")])
    ended = datetime.now(UTC) - timedelta(days=1)
    at = x509.SubjectAlternativeName([x509.IPAddress(ipaddress.ip_address("127.0.0.1"))])
    builder = x509.CertificateBuilder(name, name, own.public_key(), 1, ended - timedelta(days=1), ended).add_extension(at, False)
    cert.write_bytes(builder.sign(own, hashes.SHA256()).public_bytes(Encoding.PEM))
    key.write_bytes(own.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))

    async def main() -> None:
        with receiver(tmp_path, "--cert", str(cert), "--key", str(key)) as process:
            each = sink(process.url.replace("http:", "https:"), ca_file=cert)
            assert "clock" in (await failure(each.open([]))).hint
            await each.close()

    asyncio.run(main())


def test_tls_to_a_server_without_it(tmp_path: Path) -> None:
    async def main() -> None:
        with receiver(tmp_path) as process:
            each = sink(process.url.replace("http:", "https:"))
            assert "http://" in (await failure(each.open([]))).hint
            await each.close()

    asyncio.run(main())


@pytest.mark.parametrize("url", ["", "ftp://h", "https://", "https://h:port", "https://h/?q=1", "local"])
def test_a_url_that_cannot_be_one(url: str) -> None:
    with pytest.raises(SinkError, match="url") as caught:
        https.checked(url)
    assert caught.value.hint
