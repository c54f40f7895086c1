"""A simulated press: a Modbus TCP server, in its own process, that replays rows of a CSV file into holding registers.

    python -m edge_runtime.testing.press --csv rows.csv --rows-per-s 50 --port 0

| holding registers | value                                                              |
|-------------------|--------------------------------------------------------------------|
| 0, 2, ... 16      | the nine columns before the last one, float32, ABCD               |
| 18                | rows written so far, uint32, ABCD (starts again at 0 after 2**32)  |
| 20                | the last column (the label), uint16                                |

All 21 are written at once: a request that reads them never sees half of a row. At the end of the file it begins again. The first
line on stdout is {"port": N}. It ends on SIGTERM, and when the process that started it dies.
"""

from __future__ import annotations

import argparse
import asyncio
import csv
import json
import signal
import struct
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import cast

from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from edge_runtime.testing.parent import die_with_parent

FEATURES = 9
REGISTERS = 2 * FEATURES + 3
UNIT_ID = 1
WRITE_MULTIPLE_REGISTERS = 16


def load(path: Path) -> list[bytes]:
    """The rows, packed (without the row counter). Raises ValueError for a file of another form."""
    with path.open(newline="") as file:
        header, *rows = csv.reader(file)
    if len(header) != FEATURES + 1 or not rows:
        raise ValueError(f"{path}: {FEATURES} columns, then the label, and at least one row are needed; columns are {header}")
    return [struct.pack(f">{FEATURES}f", *map(float, row[:-1])) + struct.pack(">H", int(float(row[-1]))) for row in rows]


def registers(row: bytes, count: int) -> list[int]:
    """What the press shows after it has written `count` rows, `row` being the last of them."""
    packed = row[:-2] + struct.pack(">I", count % 2**32) + row[-2:]
    return list(struct.unpack(f">{REGISTERS}H", packed))


async def replay(server: ModbusTcpServer, rows: Sequence[bytes], rows_per_s: float) -> None:
    """For ever. Row n is due at n / rows_per_s; 0: as fast as possible."""
    loop = asyncio.get_running_loop()
    begin = loop.time()
    count = 0
    while True:
        for row in rows:
            count += 1
            await server.async_setValues(UNIT_ID, WRITE_MULTIPLE_REGISTERS, 0, registers(row, count))
            await asyncio.sleep(max(0.0, begin + count / rows_per_s - loop.time()) if rows_per_s else 0)


async def serve(rows: Sequence[bytes], rows_per_s: float, port: int) -> None:
    """Until SIGTERM or SIGINT."""
    device = SimDevice(UNIT_ID, SimData(0, count=REGISTERS, values=0, datatype=DataType.REGISTERS))
    server = ModbusTcpServer(device, address=("127.0.0.1", port))
    await server.async_setValues(UNIT_ID, WRITE_MULTIPLE_REGISTERS, 0, registers(rows[0], 0))
    await server.serve_forever(background=True)
    listening = cast("asyncio.Server", server.transport)
    print(json.dumps({"port": listening.sockets[0].getsockname()[1]}), flush=True)
    work = asyncio.create_task(replay(server, rows, rows_per_s), name="replay")
    for number in (signal.SIGTERM, signal.SIGINT):
        asyncio.get_running_loop().add_signal_handler(number, work.cancel)
    await asyncio.wait([work])
    server.close()
    if not work.cancelled():
        work.result()


def main() -> None:
    parser = argparse.ArgumentParser(description="A simulated press: replays CSV rows into Modbus TCP registers")
    parser.add_argument("--csv", type=Path, required=True, help=f"{FEATURES} columns of numbers, then `label`")
    parser.add_argument("--rows-per-s", type=float, default=10.0, help="0: as fast as possible")
    parser.add_argument("--port", type=int, default=0, help="0: a free one, printed on stdout as JSON")
    args = parser.parse_args()
    die_with_parent()
    try:
        rows = load(args.csv)
    except (OSError, ValueError) as error:
        sys.exit(str(error))
    asyncio.run(serve(rows, args.rows_per_s, args.port))


if __name__ == "__main__":
    main()
