"""Modbus TCP: polls a second at 10 registers, the adapter against bare pymodbus, on the same server in the same run.

Both poll in turns, several rounds, and the median of the rounds' ratios counts: on a shared machine the absolute figures move.
"""

from __future__ import annotations

import asyncio
import statistics
import tempfile
from collections.abc import Awaitable, Callable
from pathlib import Path
from time import perf_counter
from typing import Any

from modbus_devices import build, libmodbus
from pymodbus.client import AsyncModbusTcpClient

ROUNDS = 9
POLLS = 400
REGISTERS = 10
RATIO_MIN = 0.8


async def rate(poll: Callable[[], Awaitable[Any]]) -> float:
    began = perf_counter()
    for _ in range(POLLS):
        await poll()
    return POLLS / (perf_counter() - began)


async def measure(port: int) -> list[tuple[float, float]]:
    """(adapter, bare) a round."""
    points = [{"name": f"r{n}", "address": n} for n in range(REGISTERS)]
    adapter = build({"host": "127.0.0.1", "port": port}, points)
    client = AsyncModbusTcpClient("127.0.0.1", port=port)
    await adapter.open()
    await client.connect()

    async def bare() -> None:
        answer = await client.read_holding_registers(0, count=REGISTERS, device_id=1)
        assert len(answer.registers) == REGISTERS

    rounds = [(await rate(adapter.read), await rate(bare)) for _ in range(ROUNDS)]
    await adapter.close()
    client.close()
    return rounds


def main() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, libmodbus(Path(folder)) as device:
        rounds = asyncio.run(measure(device.port))
    return [
        {
            "name": f"modbus: TCP, {REGISTERS} registers, adapter / bare pymodbus",
            "unit": "polls/s",
            "ours": round(statistics.median(ours for ours, _ in rounds)),
            "bare": round(statistics.median(bare for _, bare in rounds)),
            "ratio": statistics.median(ours / bare for ours, bare in rounds),
            "target": f">= {RATIO_MIN}",
        }
    ]


if __name__ == "__main__":
    for row in main():
        print(row)
