"""The uplink of demo and kill tests: bytes pass, a cut is a cut, and nobody is left behind."""

from __future__ import annotations

import contextlib
import json
import os
import signal
import socket
import socketserver
import subprocess
import sys
import threading
import time
from collections.abc import Iterator
from typing import IO, cast

import psutil
import pytest

COMMAND = [sys.executable, "-m", "edge_runtime.testing.relay", "--to"]
LIMIT_S = 10.0


class Echo(socketserver.BaseRequestHandler):
    def handle(self) -> None:
        try:
            while data := self.request.recv(65_536):
                self.request.sendall(data)
        except ConnectionError:
            self.server.resets.append(1)  # type: ignore[attr-defined]


@pytest.fixture
def echo() -> Iterator[socketserver.ThreadingTCPServer]:
    with socketserver.ThreadingTCPServer(("127.0.0.1", 0), Echo) as server:
        server.daemon_threads = True
        server.resets = []  # type: ignore[attr-defined]
        threading.Thread(target=server.serve_forever, daemon=True).start()
        yield server
        server.shutdown()


class Relay:
    def __init__(self, to_port: int) -> None:
        command = [*COMMAND, f"127.0.0.1:{to_port}"]
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True, bufsize=1)
        self.port = json.loads(cast(IO[str], self.process.stdout).readline())["port"]

    def say(self, word: str) -> dict[str, str]:
        cast(IO[str], self.process.stdin).write(word + "\n")
        return cast(dict[str, str], json.loads(cast(IO[str], self.process.stdout).readline()))

    def connect(self) -> socket.socket:
        return socket.create_connection(("127.0.0.1", self.port), LIMIT_S)

    def listen(self) -> bytes:
        """What comes on a new connection, unasked."""
        with self.connect() as line:
            return line.recv(1)

    def echoed(self, data: bytes) -> bytes:
        """All that comes back when we have said all and hung up."""
        with self.connect() as line:
            threading.Thread(target=_say_all, args=(line, data), daemon=True).start()
            return b"".join(iter(lambda: line.recv(65_536), b""))


def _say_all(line: socket.socket, data: bytes) -> None:
    with contextlib.suppress(OSError):
        line.sendall(data)
        line.shutdown(socket.SHUT_WR)


@pytest.fixture
def relay(echo: socketserver.ThreadingTCPServer) -> Iterator[Relay]:
    relay = Relay(echo.server_address[1])
    yield relay
    relay.process.terminate()
    relay.process.communicate(timeout=LIMIT_S)


def test_passes_bytes_both_ways_to_the_last_one(relay: Relay) -> None:
    data = os.urandom(3_000_000)
    assert relay.echoed(data) == data


def test_a_cut_resets_what_is_open_at_both_ends_and_refuses_what_is_new(
    relay: Relay, echo: socketserver.ThreadingTCPServer
) -> None:
    with relay.connect() as line:
        line.sendall(b"a")
        assert line.recv(1) == b"a"
        assert relay.say("cut") == {"uplink": "cut"}
        with pytest.raises(ConnectionError):
            line.recv(1)
    with pytest.raises(ConnectionError):
        relay.listen()
    deadline = time.monotonic() + LIMIT_S
    while not echo.resets and time.monotonic() < deadline:  # type: ignore[attr-defined]
        time.sleep(0.01)
    assert len(echo.resets) == 1, "the far end saw no reset, or a connection during the cut"  # type: ignore[attr-defined]
    assert relay.say("heal") == {"uplink": "up"}
    assert relay.echoed(b"again") == b"again"


def test_a_far_end_that_is_not_there_is_a_reset_and_it_goes_on() -> None:
    with socket.socket() as free:
        free.bind(("127.0.0.1", 0))
        relay = Relay(free.getsockname()[1])
        for _ in range(2):
            with pytest.raises(ConnectionError):
                relay.listen()
        relay.process.terminate()
        relay.process.communicate(timeout=LIMIT_S)


def test_dies_with_its_parent() -> None:
    code = (
        f"import subprocess, time; p = subprocess.Popen({[*COMMAND, '127.0.0.1:9']!r}); print(p.pid, flush=True); time.sleep(60)"
    )
    parent = subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True)
    stdout = cast(IO[str], parent.stdout)
    lines = [stdout.readline(), stdout.readline()]  # its pid and, once it listens, its port
    relay = psutil.Process(int(next(line for line in lines if not line.startswith("{"))))
    parent.send_signal(signal.SIGKILL)
    parent.communicate(timeout=LIMIT_S)
    psutil.wait_procs([relay], timeout=LIMIT_S)
    assert not relay.is_running() or relay.status() == psutil.STATUS_ZOMBIE
