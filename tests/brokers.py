"""Real brokers for tests: a child process on a free port of 127.0.0.1 that dies with the test run.

with mosquitto(tmp_path, max_queued_messages=100) as broker:
    await PahoBus().connect(broker.address())
    broker.kill(); broker.start()          # kill -9, and up again on the same port with the same files
"""

from __future__ import annotations

import ctypes
import itertools
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.ports import Address

START_S_MAX = 10.0
_LIBC = ctypes.CDLL(None)


_PORTS_EACH = 2_000
_FIRST = 12_000 + _PORTS_EACH * (int(os.environ.get("PYTEST_XDIST_WORKER", "gw0").removeprefix("gw")) % 8)
_ports = (_FIRST + (os.getpid() + number) % _PORTS_EACH for number in itertools.count())


def free_port() -> int:
    """Nobody else gets it soon: each process that tests has a range of its own, below that from which the kernel takes ports for
    whoever connects somewhere. (What it says is free may be given to another test before it is used.)"""
    for port in itertools.islice(_ports, _PORTS_EACH):
        with socket.socket() as sock:
            sock.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
            try:
                sock.bind(("127.0.0.1", port))
            except OSError:
                continue
            return port
    raise AssertionError("no port is free")


class Broker:
    """A broker program on one port; `start` and `kill` as often as you like."""

    def __init__(self, command: list[str], port: int, log: Path) -> None:
        self.command = command
        self.port = port
        self.log = log
        self.process: subprocess.Popen[bytes] | None = None

    @property
    def url(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def address(self, **changes: Any) -> Address:
        """Address(host, port, **changes)"""
        return Address(**{"host": "127.0.0.1", "port": self.port, **changes})

    def start(self) -> None:
        assert self.process is None, "it runs already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(
                self.command, stdin=subprocess.PIPE, stdout=log, stderr=log, preexec_fn=_die_with_parent
            )
        deadline = time.monotonic() + START_S_MAX
        while not self._accepts():
            if self.process.poll() is not None or time.monotonic() > deadline:
                raise RuntimeError(f"{self.command[0]} did not start: {self.log.read_text(errors='replace')[-2000:]}")
            time.sleep(0.01)

    def kill(self) -> None:
        """kill -9"""
        self._end(signal.SIGKILL)

    def stop(self) -> None:
        """A clean end: persistence is written."""
        self._end(signal.SIGTERM)

    def save(self) -> None:
        """mosquitto writes its persistence file now (it does so each second or two by itself)."""
        assert self.process is not None
        save_now(self.process.pid, self.log.parent / "mosquitto.db")

    def freeze(self) -> None:
        """SIGSTOP: it does not answer, and its connections stay open."""
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)

    def _end(self, how: signal.Signals) -> None:
        if self.process is None:
            return
        process, self.process = self.process, None
        process.send_signal(how)
        if how is not signal.SIGKILL:
            process.send_signal(signal.SIGCONT)
        if process.stdin is not None:
            process.stdin.close()
        process.wait(START_S_MAX)

    def _accepts(self) -> bool:
        try:
            socket.create_connection(("127.0.0.1", self.port), 0.5).close()
        except OSError:
            return False
        return True


@contextmanager
def mosquitto(folder: Path, **settings: Any) -> Iterator[Broker]:
    """A mosquitto with persistence in `folder`. `settings` are lines of its configuration; a list gives several lines, and
    None leaves one of the defaults out: mosquitto(tmp_path, listener="18830 127.0.0.1", cafile=..., allow_anonymous="false")."""
    program = shutil.which("mosquitto") or shutil.which("mosquitto", path="/usr/sbin:/usr/local/sbin")
    if program is None:
        pytest.skip("MISSING SYSTEM PACKAGE: mosquitto (apt-get install mosquitto)")
    folder = folder / f"mosquitto-{len(list(folder.glob('mosquitto-*')))}"
    folder.mkdir(parents=True)
    port = free_port()
    lines: dict[str, Any] = {
        "user": "root" if os.geteuid() == 0 else None,
        "listener": f"{port} 127.0.0.1",
        "allow_anonymous": "true",
        "persistence": "true",
        "persistence_location": f"{folder}/",
        "autosave_interval": 1,
        "log_type": "all",
        **settings,
    }
    text = "".join(
        f"{key} {value}\n"
        for key, values in lines.items()
        if values is not None
        for value in (values if isinstance(values, list) else [values])
    )
    (folder / "mosquitto.conf").write_text(text)
    broker = Broker([program, "-c", str(folder / "mosquitto.conf")], port, folder / "mosquitto.log")
    yield from _running(broker)


@contextmanager
def iotcore(folder: Path) -> Iterator[Broker]:
    """The embedded broker; nothing survives a restart."""
    pytest.importorskip("iotcore", reason="MISSING PACKAGE: iotcore (pip install 'edge-runtime[broker]')")
    folder.mkdir(parents=True, exist_ok=True)
    port = free_port()
    command = [sys.executable, "-m", "iotcore", "--port", str(port), "--listen", "127.0.0.1", "--log-level", "CRITICAL"]
    yield from _running(Broker(command, port, folder / "iotcore.log"))


def save_now(pid: int, file: Path) -> None:
    """Makes a mosquitto write its persistence file, and returns when it is there."""
    before = file.stat().st_mtime_ns if file.exists() else 0
    os.kill(pid, signal.SIGUSR1)
    deadline = time.monotonic() + START_S_MAX
    while not file.exists() or file.stat().st_mtime_ns == before:
        assert time.monotonic() < deadline, f"{file} was not written"
        time.sleep(0.005)


def _running(broker: Broker) -> Iterator[Broker]:
    broker.start()
    try:
        yield broker
    finally:
        broker.kill()


def _die_with_parent() -> None:
    _LIBC.prctl(1, signal.SIGKILL)
