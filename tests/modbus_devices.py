"""Real Modbus devices for tests: a libmodbus server in C, a serial cable, and a device whose every byte the test holds.

with libmodbus(tmp_path) as device:                     # TCP; device.stall() / .go_on() / .kill() / .start()
with serial_cable(tmp_path) as (ours, theirs):          # two ends of a socat pty pair
with scripted_serial(reply) as (port, device):          # reply(request) -> [(delay_s, bytes), ...]
"""

from __future__ import annotations

import asyncio
import atexit
import ctypes
import functools
import os
import shutil
import signal
import struct
import subprocess
import tempfile
import threading
import time
import tty
from collections.abc import AsyncIterator, Callable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_adapters.modbus import Modbus
from edge_runtime.adapter import Line, LinkLost
from edge_runtime.testing import adapter

START_S_MAX = 10.0
WRITES = (5, 6, 15, 16, 22)
"""Functions of Modbus that write."""
_SOURCE = Path(__file__).parent / "integration" / "counterparts" / "modbus_server.c"
_LIBC = ctypes.CDLL(None)

Reply = Callable[[bytes], Sequence[tuple[float, bytes]]]
"""A request (unit, function, data; no checksum, no header) -> what to send after how long, as (seconds, the same form)."""


def build(options: dict[str, Any], points: Sequence[dict[str, Any]], line: Line | None = None, name: str = "device") -> Modbus:
    return adapter.build(Modbus, options, points, device=name, line=line)


async def read(device: Modbus, timeout_s: float = 5.0) -> dict[str, Any]:
    """One read as the runtime does it: values by name; a fault is ("fault", reason)."""
    async with asyncio.timeout(timeout_s), device.context.line.turn:
        (sample,) = await device.read()
    names = [point.name for point in device.context.points]
    return {
        name: ("fault", sample.faults[name]) if name in sample.faults else value
        for name, value in zip(names, sample.values, strict=True)
    }


async def reopen(device: Modbus, timeout_s: float = 5.0) -> None:
    """What the runtime does after a failure: close, open."""
    async with asyncio.timeout(timeout_s), device.context.line.turn:
        await device.close()
        await device.open()


async def reopen_until_there(device: Modbus, attempt_s: float = 0.5, attempts_max: int = 20) -> None:
    for _ in range(attempts_max):
        try:
            return await reopen(device, attempt_s)
        except (LinkLost, TimeoutError):
            await asyncio.sleep(0.02)
    raise AssertionError("the device does not come back")


# --- libmodbus ------------------------------------------------------------------------------------------------------


@functools.cache
def _program() -> str:
    if not shutil.which("cc"):
        pytest.skip("NO C COMPILER: the Modbus traps are NOT tested against libmodbus (apt install gcc)")
    if subprocess.run(["pkg-config", "--exists", "libmodbus"], check=False).returncode:
        pytest.skip("NO LIBMODBUS: the Modbus traps are NOT tested against it (apt install libmodbus-dev pkg-config)")
    flags = subprocess.run(["pkg-config", "--cflags", "--libs", "libmodbus"], check=True, capture_output=True, text=True).stdout
    folder = tempfile.mkdtemp(prefix="modbus-server-")
    atexit.register(shutil.rmtree, folder, ignore_errors=True)
    program = Path(folder) / "modbus_server"
    subprocess.run(["cc", "-O1", "-Wall", "-Werror", "-Wno-overflow", "-o", program, _SOURCE, *flags.split()], check=True)
    return str(program)


class Libmodbus:
    """The C server as a child process."""

    def __init__(self, log: Path, *arguments: str) -> None:
        self._log = log
        self._arguments = list(arguments)
        self._process: subprocess.Popen[bytes] | None = None

    @property
    def port(self) -> int:
        return int(self._arguments[1])

    def start(self) -> None:
        with self._log.open("wb") as out:
            self._process = subprocess.Popen([_program(), *self._arguments], stdout=out, preexec_fn=_die_with_us)
        until = time.monotonic() + START_S_MAX
        while not (first := self._log.read_text().partition("\n"))[1]:
            assert self._process.poll() is None, "the libmodbus server ended"
            assert time.monotonic() < until, "the libmodbus server does not start"
            time.sleep(0.005)
        if self._arguments[0] == "tcp":
            self._arguments[1] = first[0].split()[1]

    def requests(self) -> list[tuple[int, int, int]]:
        """(function, address, count) of each request since the start."""
        lines = self._log.read_text().splitlines()[1:]
        return [(int(function), int(address), int(count)) for function, address, count in map(str.split, lines)]

    def writes(self) -> list[tuple[int, int]]:
        """(function, address) of each request to write since the start."""
        return [(function, address) for function, address, _ in self.requests() if function in WRITES]

    def stall(self) -> None:
        self._signal(signal.SIGSTOP)

    def go_on(self) -> None:
        self._signal(signal.SIGCONT)

    def kill(self) -> None:
        if self._process:
            self._process.kill()
            self._process.wait()
            self._process = None

    def _signal(self, number: signal.Signals) -> None:
        assert self._process
        self._process.send_signal(number)


def _die_with_us() -> None:
    _LIBC.prctl(1, signal.SIGKILL)


@contextmanager
def libmodbus(folder: Path) -> Iterator[Libmodbus]:
    """Modbus TCP."""
    server = Libmodbus(folder / "requests.txt", "tcp", "0")
    server.start()
    try:
        yield server
    finally:
        server.kill()


@contextmanager
def libmodbus_rtu(folder: Path, port: str, unit_id: int = 1) -> Iterator[Libmodbus]:
    server = Libmodbus(folder / f"requests-{unit_id}.txt", "rtu", port, str(unit_id))
    server.start()
    try:
        yield server
    finally:
        server.kill()


class Cable:
    """A serial line: two ptys and socat between them. `unplug` takes both ends away."""

    def __init__(self, folder: Path) -> None:
        self.ours, self.theirs = str(folder / "ours"), str(folder / "theirs")
        self._process: subprocess.Popen[bytes] | None = None

    def plug_in(self) -> None:
        ends = [f"pty,raw,echo=0,link={end}" for end in (self.ours, self.theirs)]
        self._process = subprocess.Popen(["socat", *ends], preexec_fn=_die_with_us)
        until = time.monotonic() + START_S_MAX
        while not (Path(self.ours).exists() and Path(self.theirs).exists()):
            assert time.monotonic() < until, "socat does not start"
            time.sleep(0.005)

    def unplug(self) -> None:
        if self._process:
            self._process.terminate()
            self._process.wait()
            self._process = None


@contextmanager
def serial_cable(folder: Path) -> Iterator[Cable]:
    if not shutil.which("socat"):
        pytest.skip("NO SOCAT: Modbus RTU is NOT tested against libmodbus (apt install socat)")
    cable = Cable(folder)
    cable.plug_in()
    try:
        yield cable
    finally:
        cable.unplug()


# --- scripted devices: the test holds every byte --------------------------------------------------------------------


def crc16(data: bytes) -> bytes:
    """Modbus RTU checksum, from the specification (bit by bit)."""
    crc = 0xFFFF
    for byte in data:
        crc ^= byte
        for _ in range(8):
            crc = crc >> 1 ^ (0xA001 if crc & 1 else 0)
    return struct.pack("<H", crc)


@contextmanager
def scripted_serial(reply: Reply) -> Iterator[str]:
    """A serial port with a device behind it that works off requests one by one, in its own thread. Yields the port."""
    master, slave = os.openpty()
    tty.setraw(slave)
    ended = threading.Event()
    thread = threading.Thread(target=_work_off, args=(master, reply, ended), daemon=True)
    thread.start()
    try:
        yield os.ttyname(slave)
    finally:
        ended.set()
        os.write(slave, b"\0")
        thread.join()
        os.close(master)
        os.close(slave)


def _work_off(master: int, reply: Reply, ended: threading.Event) -> None:
    buffer = b""
    while not ended.is_set():
        buffer += os.read(master, 256)
        while len(buffer) >= 8 and len(buffer) >= (size := _request_bytes(buffer)) and not ended.is_set():
            request, buffer = buffer[: size - 2], buffer[size:]
            for delay_s, answer in reply(request):
                ended.wait(delay_s)
                os.write(master, answer + crc16(answer))


def _request_bytes(buffer: bytes) -> int:
    """With unit and checksum."""
    return {15: 9 + buffer[6], 16: 9 + buffer[6], 22: 10}.get(buffer[1], 8)


@asynccontextmanager
async def scripted_tcp(reply: Reply) -> AsyncIterator[int]:
    """The same over TCP. Yields the port. Answers carry the transaction number of their request."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        try:
            while True:
                header = await reader.readexactly(6)
                request = await reader.readexactly(int.from_bytes(header[4:6], "big"))
                for delay_s, answer in reply(request):
                    await asyncio.sleep(delay_s)
                    writer.write(header[:4] + len(answer).to_bytes(2, "big") + answer)
        except (asyncio.IncompleteReadError, ConnectionError):
            pass
        finally:
            writer.close()

    server = await asyncio.start_server(serve, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def registers_answer(request: bytes, registers: Sequence[int]) -> bytes:
    """An answer to a request for registers, with these in it."""
    return request[:2] + bytes([2 * len(registers)]) + struct.pack(f">{len(registers)}H", *registers)


def exception_answer(request: bytes, code: int) -> bytes:
    return bytes([request[0], request[1] | 0x80, code])


def asked(request: bytes) -> tuple[int, int, int]:
    """(unit, address, count)"""
    address, count = struct.unpack(">HH", request[2:6])
    return request[0], address, count


def written(request: bytes) -> list[int]:
    """The registers (functions 6 and 16) that a request writes."""
    data = request[4:6] if request[1] == 6 else request[7:]
    return list(struct.unpack(f">{len(data) // 2}H", data))


def write_answer(request: bytes) -> bytes:
    """What confirms it."""
    return request[:8] if request[1] == 22 else request[:6]
