"""A task to another gateway and back, against a bare paho request and reply with the same latency settings and the same tensor,
and against MLServer (gRPC) serving the same model. Each answers in a process of its own.

    python tests/bench/bench_mesh.py
"""

from __future__ import annotations

import asyncio
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
if __name__ == "__main__":
    sys.path[:0] = [str(HERE), str(HERE.parent)]

import numpy as np
import structlog
from bench_bus import Bare
from brokers import Broker, mosquitto

from edge_runtime.board.system import SystemClock, SystemDice, ThreadWorker
from edge_runtime.bus.broker import PahoBus
from edge_runtime.config import Mesh
from edge_runtime.inference.model import Model, open_model
from edge_runtime.inference.offering import Offering, tensor_of
from edge_runtime.mesh.answering import Answering
from edge_runtime.mesh.asking import Asking
from edge_runtime.mesh.link import Home, Link
from edge_runtime.ports import Address, EdgeError

MODEL = "shuttle-anomaly"
WINDOW = np.array([[50.0, 21.0, 77.0, 0.0, 28.0, 0.0, 27.0, 48.0, 22.0]])
TRIPS, ROUNDS, WARM_UP = 400, 5, 50
RATE, RATE_S = 200, 5.0
"""Tasks/s, for so long: an open loop, each at its time whether the one before is back or not."""
READY = "ready"

Trip = Callable[[], Awaitable[None]]


# --- who answers, each in its own process ----------------------------------------------------------------------------


async def echo(port: int) -> None:
    bare = Bare(port, "ask", lambda client, _u, message: client.publish("answer", message.payload, 0))
    await bare.ready.wait()
    print(READY, flush=True)
    await asyncio.Event().wait()


async def worker(port: int) -> None:
    clock, log = SystemClock(), structlog.get_logger()

    async def opened(reference: str) -> Model:
        return await open_model(reference, [], "auto", "cpu", lambda: ThreadWorker("bench"), clock)

    link = Link("bench", "worker", "w1", log)
    offered = asyncio.Event()
    offering = Offering([MODEL], opened, offered.set, SystemDice(), log)
    answering = Answering(link, offering, Mesh(), clock, log)

    async def ready() -> None:
        print(READY, offering.offers()[0].model, flush=True)

    link.joined.append(ready)
    async with asyncio.TaskGroup() as group:
        group.create_task(offering.run())
        group.create_task(answering.run())
        await offered.wait()
        group.create_task(serve(link, port))


async def serve(link: Link, port: int) -> None:
    address = Address(host="127.0.0.1", port=port, client_id=link.gateway)
    await link.serve(await PahoBus().connect(address), Home(address))


# --- who asks --------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def bare_trip(broker: Broker) -> AsyncIterator[Trip]:
    """Request and reply by number: several may be under way."""
    loop = asyncio.get_running_loop()
    waiting: dict[bytes, asyncio.Future[None]] = {}
    client = Bare(broker.port, "answer", lambda _c, _u, message: waiting.pop(message.payload[:8]).set_result(None))
    await client.ready.wait()
    numbers = iter(range(2**63))
    body = bytes(tensor_of(WINDOW).data)[8:]

    async def trip() -> None:
        number = next(numbers).to_bytes(8, "big")
        waiting[number] = loop.create_future()
        client.client.publish("ask", number + body, 0)
        await waiting[number]

    yield trip
    client.close()


@asynccontextmanager
async def our_trip(broker: Broker, model: str) -> AsyncIterator[Trip]:
    clock, log = SystemClock(), structlog.get_logger()
    link = Link("bench", "asker", "a1", log)
    asking = Asking(link, clock, log)
    joined = asyncio.Event()

    async def join() -> None:
        joined.set()

    async def trip() -> None:
        reply = await asking.ask("worker", model, tensor_of(WINDOW), deadline_ns=clock.mono_ns() + 2_000_000_000)
        assert reply.inference is not None, reply

    link.joined.append(join)
    serving = asyncio.create_task(serve(link, broker.port))
    await joined.wait()
    yield trip
    serving.cancel()
    await asyncio.wait([serving])


async def one_by_one(trip: Trip) -> list[float]:
    """Seconds of each of TRIPS."""
    took = []
    for number in range(WARM_UP + TRIPS):
        start = time.perf_counter()
        await trip()
        if number >= WARM_UP:
            took.append(time.perf_counter() - start)
    return took


async def at_a_rate(trip: Trip) -> list[float]:
    """Seconds of each, RATE a second for RATE_S."""
    loop, took = asyncio.get_running_loop(), []

    async def one() -> None:
        start = time.perf_counter()
        await trip()
        took.append(time.perf_counter() - start)

    begin = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(int(RATE * RATE_S)):
            await asyncio.sleep(begin + number / RATE - loop.time())
            group.create_task(one())
    return took


async def measure(broker: Broker, model: str) -> list[dict[str, Any]]:
    """In turns, so that what disturbs the machine disturbs both; of the best round."""
    async with our_trip(broker, model) as ours, bare_trip(broker) as bare:
        trips = [(await one_by_one(ours), await one_by_one(bare)) for _ in range(ROUNDS)]
        rates = [(await at_a_rate(ours), await at_a_rate(bare)) for _ in range(2)]
    us = [min(statistics.median(each) for each in column) * 1e6 for column in zip(*trips, strict=True)]
    p50 = [min(statistics.median(each) for each in column) * 1e6 for column in zip(*rates, strict=True)]
    p99 = [min(statistics.quantiles(each, n=100)[98] for each in column) * 1e3 for column in zip(*rates, strict=True)]
    return [
        row(f"mesh: task round trip, {MODEL}, p50", "us", us[0], us[1], "<= 1.5"),
        row(f"mesh: the same at {RATE}/s, p50", "us", p50[0], p50[1], ""),
        row(f"mesh: the same at {RATE}/s, p99", "ms", p99[0], p99[1], "<= 5") | {"ratio": None},
    ]


def row(name: str, unit: str, ours: float, bare: float, target: str) -> dict[str, Any]:
    return {"name": name, "unit": unit, "ours": ours, "bare": bare, "ratio": ours / bare, "target": target}


def answerer(role: str, port: int) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen([sys.executable, __file__, role, str(port)], stdout=subprocess.PIPE, text=True)
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line.startswith(READY):
            return process, line.removeprefix(READY).strip()
    raise EdgeError(f"bench: the {role} did not start")


def main() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder, mosquitto(Path(folder), log_type="none") as broker:
        echoing, _ = answerer("echo", broker.port)
        working, model = answerer("worker", broker.port)
        try:
            return asyncio.run(measure(broker, model))
        finally:
            for process in (echoing, working):
                process.kill()
                process.wait()


if __name__ == "__main__":
    if len(sys.argv) == 3:
        asyncio.run({"echo": echo, "worker": worker}[sys.argv[1]](int(sys.argv[2])))
    else:
        for line in main():
            print("  ".join(f"{key} {value:.3g}" if isinstance(value, float) else str(value) for key, value in line.items()))
