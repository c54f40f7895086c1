"""The rules for adapters, on the Modbus adapter: over TCP with libmodbus, on a serial line with a scripted device."""

from __future__ import annotations

import asyncio
import struct
import threading
from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from typing import Any, ClassVar

from modbus_devices import WRITES, Libmodbus, asked, libmodbus, registers_answer, scripted_serial, write_answer, written

from edge_adapters.modbus import Modbus
from edge_runtime.adapter import Value
from edge_runtime.testing.adapter_suite import AdapterSuite

POINTS: list[dict[str, Any]] = [
    {"name": "level", "address": 190, "type": "uint32"},
    {"name": "speed", "number": 40196, "type": "float32"},
    {"name": "setpoint", "address": 180, "type": "float32", "order": "CDAB", "write": {"low": 0, "high": 100}},
    {"name": "mode", "address": 182, "write": {"allowed": [1, 2, 3]}},
]


class TestModbusTcp(AdapterSuite):
    adapter = Modbus
    outside = ("pymodbus", "serial")
    writes: ClassVar[Mapping[str, Sequence[Value]]] = {"setpoint": (1.5, 2.25, 99.9), "mode": (1, 2, 3)}
    _server: Libmodbus
    _changes = 0

    @asynccontextmanager
    async def device(self) -> AsyncIterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        with libmodbus(self.folder) as self._server:
            yield {"host": "127.0.0.1", "port": self._server.port}, POINTS

    def nowhere(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "port": 1}

    async def change(self) -> Mapping[str, Value]:
        """Another client writes."""
        self._changes += 1
        data = struct.pack(">IHHHf", 70_000 + self._changes, 0, 0, 0, self._changes + 0.5)
        reader, writer = await asyncio.open_connection("127.0.0.1", self._server.port)
        pdu = struct.pack(">BBHHB", 1, 16, 190, len(data) // 2, len(data)) + data
        writer.write(struct.pack(">HHH", 1, 0, len(pdu)) + pdu)
        await reader.readexactly(12)
        writer.close()
        return {"level": 70_000 + self._changes, "speed": self._changes + 0.5}

    def received(self) -> int:
        return len(self._server.writes()) - self._changes

    async def stall(self) -> None:
        self._server.stall()

    async def resume(self) -> None:
        self._server.go_on()


class TestModbusRtu(AdapterSuite):
    """What the device is asked while it is stalled it answers later, with the values of then."""

    adapter = Modbus
    outside = ("pymodbus", "serial")
    writes: ClassVar[Mapping[str, Sequence[Value]]] = {"setpoint": (1.5, 2.25, 99.9), "mode": (1, 2, 3)}
    _level = 0

    @asynccontextmanager
    async def device(self) -> AsyncIterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        self._awake = threading.Event()
        self._awake.set()
        self._received, self._held = 0, dict.fromkeys(range(180, 190), 0)
        with scripted_serial(self._reply) as port:
            yield {"serial": port, "parity": "none", "quiet_s": 0.01}, POINTS
            self._awake.set()

    def _reply(self, request: bytes) -> list[tuple[float, bytes]]:
        _, address, count = asked(request)
        if request[1] in WRITES:
            self._received += 1
            self._held |= dict(enumerate(written(request), address))
            answer = write_answer(request)
        else:
            shown = self._held | dict(
                enumerate(struct.unpack(">7H", struct.pack(">IHHHf", self._level, 0, 0, 0, self._level + 0.5)), 190)
            )
            answer = registers_answer(request, [shown.get(address + n, 0) for n in range(count)])
        self._awake.wait()
        return [(0.0, answer)]

    def received(self) -> int:
        return self._received

    def nowhere(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "serial": str(self.folder / "ttyUSB9")}

    async def change(self) -> Mapping[str, Value]:
        self._level += 1
        return {"level": self._level, "speed": self._level + 0.5}

    async def stall(self) -> None:
        self._awake.clear()

    async def resume(self) -> None:
        self._awake.set()
