"""What heartbeats cost: CPU of one gateway's presence, and deliveries on the site's broker, with 5, 50 and 500 gateways.

One gateway is real, in a process of its own; the others are this process: each has its own connection to a real mosquitto (plain
sockets, so that 499 fit), says a birth and heartbeats as often as the law says, and listens to as many others as a gateway does.
They do not listen to births: those come once, not all the time.
"""

from __future__ import annotations

import asyncio
import os
import random
import tempfile
import time
from pathlib import Path
from typing import Any

from brokers import Broker, mosquitto
from presences import Child, child

from edge_runtime.bus import presence, topics
from edge_runtime.bus.presence import Birth, Load
from edge_runtime.config import Mesh
from edge_runtime.mesh.peers import LISTEN_MAX, period_s
from edge_runtime.ports_mesh import Offer

SIZES = (5, 50, 500)
MEASURE_S = 15.0
SETTLE_S_MAX = 60.0
SAMPLING = 1.02
"""So much more than the limit may be counted: a second begins and ends anywhere."""
LIMIT = Mesh().heartbeats_per_s_max


class Simulated(asyncio.Protocol):
    """A gateway on a plain socket: MQTT 3.1.1, as little of it as it takes."""

    def __init__(self, name: str, listens: list[str], period: float) -> None:
        self.name, self.listens, self.period = name, listens, period
        self.heard = 0
        self._rest = b""
        self._skip = 0
        self._transport: asyncio.Transport

    def connection_made(self, transport: Any) -> None:
        self._transport = transport
        client_id = _text(f"edge-s-{self.name}-1")
        self._send(0x10, _text("MQTT") + b"\x04\x02\x00\x00" + client_id)  # clean session, no keepalive
        filters = b"".join(_text(topics.gateway("s", each, "load")) + b"\x00" for each in [self.name, *self.listens])
        self._send(0x82, b"\x00\x01" + filters)
        offers = (Offer("m@1", "cpu", 1_000_000),)
        birth = Birth(site="s", gateway=self.name, instance="1", online=True, run="r1", offers=offers, version="1", may_host=True)
        self._send(0x31, _text(topics.gateway("s", self.name, "status")) + presence.pack(birth))
        asyncio.get_running_loop().call_later(random.uniform(0, self.period), self._beat)

    def data_received(self, data: bytes) -> None:
        data = self._rest + data
        at = 0
        while len(data) - at >= 4:
            length, first = data[at + 1], 2
            if length & 0x80:
                length, first = (length & 0x7F) | data[at + 2] << 7, 3
            if len(data) - at < first + length:
                break
            self.heard += data[at] >> 4 == 3
            at += first + length
        self._rest = data[at:]

    def close(self) -> None:
        self.period = 0.0
        self._transport.abort()

    def _beat(self) -> None:
        if not self.period:
            return
        load = Load(
            gateway=self.name, instance="1", period_s=self.period, uptime_s=100.0, queue=3, queue_ns=30_000_000,
            temperature_c=51.5, disk_free_bytes=10**10,
        )  # fmt: skip
        self._send(0x30, _text(topics.gateway("s", self.name, "load")) + presence.pack(load))
        asyncio.get_running_loop().call_later(self.period * random.uniform(0.9, 1.1), self._beat)

    def _send(self, kind: int, body: bytes) -> None:
        length = bytes([len(body)]) if len(body) < 0x80 else bytes([len(body) & 0x7F | 0x80, len(body) >> 7])
        self._transport.write(bytes([kind]) + length + body)


def _text(text: str) -> bytes:
    return len(text).to_bytes(2, "big") + text.encode()


def _cpu_s(pid: int) -> float:
    fields = Path(f"/proc/{pid}/stat").read_text().rpartition(")")[2].split()
    return (int(fields[11]) + int(fields[12])) / os.sysconf("SC_CLK_TCK")


async def measured(broker: Broker, real: Child, gateways: int) -> dict[str, float]:
    """CPU seconds to hear of all the others; then, a second, CPU seconds of the real one and of the broker, and deliveries."""
    assert broker.process is not None
    before = real.ask()
    names = [f"g{n:03}" for n in range(gateways - 1)]
    period, heard_by = period_s(gateways, Mesh()), min(gateways - 1, LISTEN_MAX)
    ring = [*names, "real"]
    simulated = [
        Simulated(name, [ring[(at + step) % len(ring)] for step in range(1, heard_by + 1)], period)
        for at, name in enumerate(names)
    ]
    loop = asyncio.get_running_loop()
    for each in simulated:
        await loop.create_connection(lambda each=each: each, "127.0.0.1", broker.port)  # type: ignore[misc]
    settled = loop.time()
    while (joined := real.ask())["peers"] < gateways - 1 or joined["listens"] < heard_by:
        assert loop.time() - settled < SETTLE_S_MAX, joined
        await asyncio.sleep(0.2)
    await asyncio.sleep(2 * period)
    broker_s = _cpu_s(broker.process.pid)
    start, began, counted = real.ask(), time.monotonic(), sum(each.heard for each in simulated)
    await asyncio.sleep(MEASURE_S)
    end, took, heard = real.ask(), time.monotonic() - began, sum(each.heard for each in simulated) - counted
    for each in simulated:
        each.close()
    assert end["late"] == 0, end
    return {
        "join_s": joined["cpu_s"] - before["cpu_s"],
        "cpu": (end["cpu_s"] - start["cpu_s"]) / took,
        "broker": (_cpu_s(broker.process.pid) - broker_s) / took,
        "deliveries": (heard + end["heard"] - start["heard"]) / took,
        "heard": (end["heard"] - start["heard"]) / took,
        "period_s": end["period_s"],
    }


def main() -> list[dict[str, Any]]:
    rows: list[dict[str, Any]] = []
    for gateways in SIZES:
        with (
            tempfile.TemporaryDirectory() as folder,
            mosquitto(Path(folder), log_type="none") as broker,
            child(broker.port, "real") as real,
        ):
            got = asyncio.run(measured(broker, real, gateways))
        what = f"presence: {gateways} gateways (period {got['period_s']:.2g} s, {got['heard']:.0f} heard/s)"
        rows += [
            {"name": f"{what}, CPU", "unit": "% of a core", "ours": 100 * got["cpu"], "target": "<= 2"},
            {"name": f"{what}, deliveries", "unit": "1/s", "ours": got["deliveries"], "target": f"<= {LIMIT * SAMPLING:g}"},
            {"name": f"{what}, CPU of mosquitto", "unit": "% of a core", "ours": 100 * got["broker"]},
            {"name": f"{what}, CPU to hear of all", "unit": "ms", "ours": 1e3 * got["join_s"]},
        ]
    return [{"bare": None, "ratio": None, "target": "", **row} for row in rows]


if __name__ == "__main__":
    for row in main():
        print(row)
