"""The receiver's HTTP door spoken to by hand: what is right, what is wrong, what is too much; and the command line."""

from __future__ import annotations

import asyncio
import errno
import json
import resource
import signal
import socket
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any, cast

import pytest
from receivers import ReceiverProcess, receiver, records, rows

from edge_runtime.board.system import ThreadWorker
from edge_runtime.bus import messages
from edge_runtime.receiver import http
from edge_runtime.receiver.receiver import Receiver

Answer = tuple[int, Any]
CURL = b"POST %s HTTP/1.1\r\nHost: x\r\nContent-Length: %d\r\n\r\n%s"


def payload(first: int, count: int) -> bytes:
    (batch,) = messages.batches("site", "gw", records(first, count))
    return messages.pack(batch)


def post(path: str, body: bytes) -> bytes:
    return CURL % (path.encode(), len(body), body)


def exchange(connection: socket.socket, request: bytes) -> Answer:
    connection.sendall(request)
    return read(connection)


def read(connection: socket.socket) -> Answer:
    """Status, JSON"""
    raw = b""
    while b"\r\n\r\n" not in raw:
        raw += connection.recv(1)
        assert raw, "closed without an answer"
    head, _, body = raw.partition(b"\r\n\r\n")
    length = next(int(line.split(b":")[1]) for line in head.split(b"\r\n") if line.lower().startswith(b"content-length"))
    while len(body) < length:
        body += connection.recv(length - len(body))
    return int(head.split()[1]), json.loads(body)


@contextmanager
def connected(far_end: ReceiverProcess) -> Iterator[socket.socket]:
    with socket.create_connection(("127.0.0.1", far_end.port), 10) as connection:
        yield connection


@pytest.fixture(scope="module")
def far_end(tmp_path_factory: pytest.TempPathFactory) -> Iterator[ReceiverProcess]:
    with receiver(tmp_path_factory.mktemp("http")) as process:
        yield process


def test_one_connection_for_everything(far_end: ReceiverProcess) -> None:
    hello = messages.pack(messages.hello("site", "gw", ["e1", "e9"]))
    with connected(far_end) as connection:
        status, answer = exchange(connection, post("/v1/batch", payload(1, 100)))
        assert (status, answer["lanes"]) == (200, [{"epoch": "e1", "lane": "result", "ranges": [[1, 100]]}])
        assert "epochs" not in answer
        status, answer = exchange(connection, post("/v1/hello", hello))
        assert (status, answer["epochs"], answer["receiver"]) == (200, ["e1", "e9"], "cloud")
        status, answer = exchange(connection, b"GET /v1/statistics?x HTTP/1.1\r\n\r\n")
        assert (status, answer["unique"]) == (200, 100)
        assert exchange(connection, b"GET /healthz HTTP/1.1\r\n\r\n")[0] == 200
        status, answer = exchange(connection, post("/v1/batch", b"{}"))
        assert (status, answer["refused"]) == (400, messages.digest(b"{}"))
        assert exchange(connection, post("/v1/bat", b"{}"))[0] == 404
        assert exchange(connection, b"GET /v1/batch HTTP/1.1\r\n\r\n")[0] == 405
        assert exchange(connection, b"GET /healthz HTTP/1.1\r\nConnection: close\r\n\r\n")[0] == 200
        assert connection.recv(1) == b""


@pytest.mark.parametrize(
    ("request_", "status"),
    [
        (b"hello\r\n\r\n", 400),
        (b"GET / HTTP/2.0\r\n\r\n", 400),
        (b"\x16\x03\x01\x02\x00", 400),
        (b"POST /v1/batch HTTP/1.1\r\nContent-Length: x\r\n\r\n", 411),
        (b"POST /v1/batch HTTP/1.1\r\nContent-Length: -1\r\n\r\n", 411),
        (b"POST /v1/batch HTTP/1.1\r\nTransfer-Encoding: chunked\r\n\r\n0\r\n\r\n", 411),
        (b"POST /v1/batch HTTP/1.1\r\nContent-Length: 99999999\r\n\r\n" + b"x" * 1_000_000, 413),
        (b"POST /v1/batch HTTP/1.1\r\nContent-Length: " + b"9" * 5000 + b"\r\n\r\n", 413),
        (b"GET / HTTP/1.1\r\nX: " + b"x" * 2 * http.HEAD_BYTES_MAX + b"\r\n\r\n", 431),
    ],
)
def test_a_bad_request_is_answered_and_cut(far_end: ReceiverProcess, request_: bytes, status: int) -> None:
    with connected(far_end) as connection:
        got, answer = exchange(connection, request_)
        assert (got, "refused" in answer) == (status, False)
        assert answer["cause"]
        connection.shutdown(socket.SHUT_WR)
        assert connection.recv(1) == b""


def test_curl_asks_before_it_sends_a_large_body(far_end: ReceiverProcess) -> None:
    body = payload(1, 100)
    with connected(far_end) as connection:
        connection.sendall(b"POST /v1/batch HTTP/1.1\r\nExpect: 100-continue\r\nContent-Length: %d\r\n\r\n" % len(body))
        assert connection.recv(100) == b"HTTP/1.1 100 Continue\r\n\r\n"
        assert exchange(connection, body)[0] == 200


def test_a_client_that_goes_in_the_middle_harms_nobody(far_end: ReceiverProcess) -> None:
    request = post("/v1/batch", payload(1, 100))
    for cut in (1, 20, len(request) // 2, len(request) - 1):
        with connected(far_end) as connection:
            connection.sendall(request[:cut])
    with connected(far_end) as connection:
        assert exchange(connection, request)[0] == 200


class Gone:
    """A connection that is reset as soon as the answer is on its way: a TLS client does so to a port without TLS."""

    closed = False

    def write(self, answer: bytes) -> None:
        assert answer.startswith(b"HTTP/1.1 400 ")

    async def drain(self) -> None:
        pass

    def can_write_eof(self) -> bool:
        return True

    def write_eof(self) -> None:
        raise OSError(errno.ENOTCONN, "Transport endpoint is not connected")

    def close(self) -> None:
        self.closed = True


def test_a_client_that_resets_at_the_answer_is_no_fault() -> None:
    writer = Gone()

    async def main() -> None:
        reader = asyncio.StreamReader()
        reader.feed_data(b"\x16\x03\x01 hello\r\n\r\n")
        await http.Door(cast(Receiver, None)).serve(reader, cast(asyncio.StreamWriter, writer))

    asyncio.run(main())
    assert writer.closed


def test_too_many_connections_are_told_so(far_end: ReceiverProcess) -> None:
    idle = [socket.create_connection(("127.0.0.1", far_end.port), 10) for _ in range(http.CONNECTIONS_MAX)]
    try:
        for each in idle:
            assert exchange(each, b"GET /healthz HTTP/1.1\r\n\r\n")[0] == 200
        with connected(far_end) as connection:
            assert read(connection)[0] == 503
    finally:
        for each in idle:
            each.close()


def test_a_ledger_that_cannot_be_written_is_503_until_it_can(tmp_path: Path) -> None:
    with receiver(tmp_path) as far_end, connected(far_end) as connection:
        locker = sqlite3.connect(far_end.file, isolation_level=None)
        locker.execute("BEGIN EXCLUSIVE")
        status, answer = exchange(connection, post("/v1/batch", payload(1, 10)))
        assert (status, "refused" in answer) == (503, False)
        assert "locked" in answer["cause"]
        assert exchange(connection, b"GET /healthz HTTP/1.1\r\n\r\n")[0] == 503
        locker.execute("ROLLBACK")
        locker.close()
        assert exchange(connection, b"GET /healthz HTTP/1.1\r\n\r\n")[0] == 200
        assert exchange(connection, post("/v1/batch", payload(1, 10)))[0] == 200


def test_a_disk_that_takes_no_more_is_503_until_there_is_room(tmp_path: Path) -> None:
    with receiver(tmp_path) as far_end, connected(far_end) as connection:
        assert far_end.process is not None
        assert exchange(connection, post("/v1/batch", payload(1, 10)))[0] == 200
        pid, limits = far_end.process.pid, resource.getrlimit(resource.RLIMIT_FSIZE)
        resource.prlimit(pid, resource.RLIMIT_FSIZE, (64 * 1024, limits[1]))  # no file of it may grow beyond this
        first, status, answer = 11, 200, None
        while status == 200:
            status, answer = exchange(connection, post("/v1/batch", payload(first, 100)))
            first += 100
        assert (status, "refused" in answer) == (503, False)
        assert "disk" in answer["hint"]
        resource.prlimit(pid, resource.RLIMIT_FSIZE, limits)
        status, answer = exchange(connection, post("/v1/batch", payload(first - 100, 100)))
        assert (status, answer["lanes"][0]["ranges"]) == (200, [[1, first - 1]])
        assert far_end.stop()["unique"] == first - 1


def test_batches_that_wait_commit_together(tmp_path: Path) -> None:
    """200 at once: fewer transactions than batches, a receipt for each."""
    sizes: list[int] = []

    class Counting(ThreadWorker):
        async def run(self, function: Any, *args: Any) -> Any:
            if args and isinstance(args[0], list):
                sizes.append(len(args[0]))
            return await super().run(function, *args)

    async def main() -> None:
        taker = Receiver("cloud", Counting("w"), ThreadWorker("r"))
        await taker.open(tmp_path / "records.db")
        running = asyncio.create_task(taker.run())
        batches = [next(messages.batches("site", "gw", records(n, 1))) for n in range(1, 201)]
        receipts = await asyncio.gather(*(taker.take(batch) for batch in batches))
        assert all(n in range(r.lanes[0].ranges[0][0], r.lanes[0].ranges[0][1] + 1) for n, r in enumerate(receipts, 1))
        running.cancel()
        await taker.close()

    asyncio.run(main())
    assert sum(sizes) == len(rows(tmp_path / "records.db")) == 200
    assert len(sizes) <= 10


def command(*words: str) -> subprocess.CompletedProcess[str]:
    return subprocess.run([sys.executable, "-m", "edge_runtime", "receive", *words], capture_output=True, text=True, timeout=30)


def test_the_command_line(tmp_path: Path) -> None:
    with receiver(tmp_path) as far_end, connected(far_end) as connection:
        exchange(connection, post("/v1/batch", payload(1, 10)))
        exchange(connection, post("/v1/batch", payload(16, 5)))
        during = command("--statistics", "--json", "--file", str(far_end.file))
        assert json.loads(during.stdout)["unique"] == 15
        statistics = far_end.stop()  # also with a connection that is open
    assert (statistics["unique"], statistics["gaps"]) == (15, 5)
    text = command("--statistics", "--file", str(far_end.file))
    assert "missing: gw e1 result 11..15" in text.stdout
    assert text.returncode == 0


def test_ready_line_and_ctrl_c(tmp_path: Path) -> None:
    words = [sys.executable, "-m", "edge_runtime", "receive", "--http", "127.0.0.1:0", "--file", str(tmp_path / "r.db")]
    with subprocess.Popen(words, stdout=subprocess.PIPE, text=True) as process:
        assert process.stdout is not None
        line = process.stdout.readline()
        assert "http://127.0.0.1:" in line
        process.send_signal(signal.SIGINT)
        assert "received" in process.stdout.read()
    assert process.returncode == 0
    ready = ReceiverProcess(tmp_path / "s.db", "--name", "north")
    try:
        assert ready.start() == {"name": "north", "file": str(tmp_path / "s.db"), "http": ready.url}
    finally:
        ready.kill()


def test_a_second_receiver_on_one_file_is_refused_and_none_after_a_kill(tmp_path: Path) -> None:
    with receiver(tmp_path) as far_end, connected(far_end) as connection:
        exchange(connection, post("/v1/batch", payload(1, 10)))
        (tmp_path / "link.db").symlink_to(far_end.file)
        for name in ("records.db", "link.db"):
            second = command("--http", "127.0.0.1:0", "--file", str(tmp_path / name))
            assert (second.returncode, second.stdout) == (1, "")
            assert f"{name}: another `edge-runtime receive` keeps its records there" in second.stderr
            assert "--file" in second.stderr.partition("hint:")[2]
        exchange(connection, post("/v1/batch", payload(11, 10)))
        far_end.kill()
        far_end.start()
        assert far_end.stop()["unique"] == 20


@pytest.mark.parametrize(
    ("words", "hint"),
    [
        (["--http", "nowhere"], "--http 127"),
        (["--http", "127.0.0.1:65536"], "--http 127"),
        (["--key", "k.pem"], "both"),
        (["--http", "203.0.113.1:0"], "port"),
        (["--file", "/nowhere/r.db"], "folder"),
        (["--file", "/"], "folder"),
        (["--statistics", "--file", "none.db"], "folder"),
        (["--token-file", "none"], "readable"),
        (["--cert", "none"], "PEM"),
        (["--mqtt", "http://x"], "mqtt://"),
        (["--name", "a/b", "--mqtt", "mqtt://x"], "letters"),
    ],
)
def test_wrong_usage_says_what_to_do(tmp_path: Path, words: list[str], hint: str) -> None:
    done = command("--file", str(tmp_path / "r.db"), *words)
    assert done.returncode == 1
    assert hint in done.stderr.partition("hint:")[2]
    assert "Traceback" not in done.stderr
