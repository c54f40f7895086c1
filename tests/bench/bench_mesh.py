"""A task to another gateway and back, against a bare paho request and reply with the same latency settings, topics and bytes
(which computes nothing), and against MLServer (gRPC) serving the same model. Each answers in a process of its own.

    python -m tests.bench bench_mesh

MLServer is installed on demand, into an environment of its own in .cache; where that cannot be done, its row says why. It is
measured as it comes, and once more computing in its own process (parallel_workers 0), which is faster for one client.
"""

from __future__ import annotations

import asyncio
import json
import logging
import os
import shutil
import signal
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import numpy as np
import structlog
from bench_bus import Bare
from brokers import Broker, free_port, mosquitto
from wheels import CACHE, PIP

from edge_runtime.board.system import SystemClock, SystemDice, ThreadWorker
from edge_runtime.bus import frames
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.frames import Task
from edge_runtime.config import Mesh
from edge_runtime.inference import store
from edge_runtime.inference.model import Model, open_model
from edge_runtime.inference.offering import Offering, tensor_of
from edge_runtime.mesh.answering import Answering
from edge_runtime.mesh.asking import Asking
from edge_runtime.mesh.link import Home, Link
from edge_runtime.ports import Address, EdgeError

structlog.configure(wrapper_class=structlog.make_filtering_bound_logger(logging.INFO))
"""As a gateway's log is: at debug each task says where it is."""

HERE = Path(__file__).parent
MODEL = "shuttle-anomaly"
WINDOW = np.array([[50.0, 21.0, 77.0, 0.0, 28.0, 0.0, 27.0, 48.0, 22.0]])
RUNS, TRIPS, ROUNDS, WARM_UP = 3, 200, 7, 50
"""Each run with processes and a broker of its own: where the machine happens to put them makes a difference of a tenth."""
RATE, RATE_S = 200, 5.0
"""Tasks/s, for so long: an open loop, each at its time whether the one before is back or not."""
READY = "ready"
ASK, ANSWER = "edge/bench/gw/echo/task/asker", "edge/bench/gw/asker/reply/echo"

PEER = HERE / "mlserver_peer"
REQUIREMENTS = ("mlserver==1.7.*", "uvloop<0.22", "ai-edge-litert")
"""uvloop 0.22 raises where MLServer 1.7 starts its workers."""
INSTALL_S_MAX, START_S_MAX = 500, 60

Trip = Callable[[], Awaitable[None]]


# --- who answers, each in its own process ----------------------------------------------------------------------------


async def echo(port: int) -> None:
    bare = Bare(port, ASK, lambda client, _u, message: client.publish(ANSWER, message.payload, 0))
    await bare.ready.wait()
    print(READY, flush=True)
    await asyncio.Event().wait()


async def worker(port: int) -> None:
    clock, log = SystemClock(), structlog.get_logger().bind()

    async def opened(reference: str) -> Model:
        return await open_model(reference, [], "auto", "cpu", lambda: ThreadWorker("bench"), clock)

    link = Link("bench", "worker", "w1", log)
    offered = asyncio.Event()
    offering = Offering(offered.set, SystemDice(), log)
    offering.use([MODEL], opened)
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
    client = Bare(broker.port, ANSWER, lambda _c, _u, message: waiting.pop(message.payload[:8]).set_result(None))
    await client.ready.wait()
    numbers = iter(range(2**63))
    task = Task(id="task-1", instance="a1", model=f"{MODEL}@1.0.0", remaining_ns=2 * 10**9, tensor=tensor_of(WINDOW))
    body = frames.pack(task)[8:]

    async def trip() -> None:
        number = next(numbers).to_bytes(8, "big")
        waiting[number] = loop.create_future()
        client.client.publish(ASK, number + body, 0)
        await waiting[number]

    yield trip
    client.close()


@asynccontextmanager
async def our_trip(broker: Broker, model: str) -> AsyncIterator[Trip]:
    clock, log = SystemClock(), structlog.get_logger().bind()
    link = Link("bench", "asker", "a1", log)
    asking = Asking(link, clock, log)
    joined = asyncio.Event()

    async def join() -> None:
        joined.set()

    async def trip() -> None:
        reply = await asking.ask("worker", model, tensor_of(WINDOW), deadline_ns=clock.mono_ns() + 2_000_000_000)
        if reply.inference is None:
            raise EdgeError(reply.cause, reply.hint)

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
    """Seconds of each, RATE a second for RATE_S; of one that is refused, too (the machine stood still): far more than a miss."""
    loop, took = asyncio.get_running_loop(), []

    async def one() -> None:
        start = time.perf_counter()
        try:
            await trip()
            took.append(time.perf_counter() - start)
        except EdgeError:
            took.append(1.0)

    begin = loop.time()
    async with asyncio.TaskGroup() as group:
        for number in range(int(RATE * RATE_S)):
            await asyncio.sleep(begin + number / RATE - loop.time())
            group.create_task(one())
    return took


async def measure(broker: Broker, model: str) -> list[dict[str, Any]]:
    """In turns, so that what disturbs the machine disturbs both: the median of the rounds' ratios counts."""
    async with our_trip(broker, model) as ours, bare_trip(broker) as bare:
        trips = [(await one_by_one(ours), await one_by_one(bare)) for _ in range(ROUNDS)]
        rates = await at_a_rate(ours), await at_a_rate(bare)
    medians = [(statistics.median(mine) * 1e6, statistics.median(theirs) * 1e6) for mine, theirs in trips]
    us = [statistics.median(column) for column in zip(*medians, strict=True)]
    ratio = statistics.median(mine / theirs for mine, theirs in medians)
    p50 = [statistics.median(each) * 1e6 for each in rates]
    p99 = [statistics.quantiles(each, n=100)[98] * 1e3 for each in rates]
    return [
        row(f"mesh: task round trip, {MODEL}, p50", "us", us[0], us[1], "<= 1.5") | {"ratio": round(ratio, 2)},
        row(f"mesh: the same at {RATE}/s, p50", "us", p50[0], p50[1], ""),
        row(f"mesh: the same at {RATE}/s, p99", "ms", p99[0], p99[1], "<= 5") | {"ratio": None},
    ]


async def against_mlserver(broker: Broker, model: str, served: Served) -> dict[str, Any]:
    """How many times faster: its median by ours."""
    async with our_trip(broker, model) as ours:
        trips = [(statistics.median(await one_by_one(ours)), await asyncio.to_thread(served.median_s)) for _ in range(ROUNDS)]
    mine, theirs = (min(column) * 1e6 for column in zip(*trips, strict=True))
    return row(NAME, "us", mine, theirs, ">= 2.5") | {"ratio": theirs / mine}


def median_row(rows: list[dict[str, Any]]) -> dict[str, Any]:
    """By ratio, or where there is none by what we need."""
    return sorted(rows, key=lambda each: each["ratio"] or each["ours"])[len(rows) // 2]


def row(name: str, unit: str, ours: float, bare: float, target: str) -> dict[str, Any]:
    return {"name": name, "unit": unit, "ours": ours, "bare": bare, "ratio": ours / bare, "target": target}


def answerer(role: str, port: int) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, __file__, role, str(port)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"},
    )
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line.startswith(READY):
            return process, line.removeprefix(READY).strip()
    raise EdgeError(f"bench: the {role} did not start")


# --- MLServer --------------------------------------------------------------------------------------------------------

NAME = "mesh: MLServer (gRPC), the same model, times our p50"
PEERS: tuple[tuple[str, dict[str, Any], str], ...] = (
    (NAME, {}, ">= 2.5"),
    (f"{NAME}, parallel_workers 0", {"parallel_workers": 0}, ""),
)


class Served:
    """MLServer with the model, and a gRPC client beside it."""

    def __init__(self, python: Path, folder: Path, settings: dict[str, Any]) -> None:
        self.python, self.port = python, free_port()
        artefact = store.find(MODEL, []) / "fp32.tflite"
        ports = {"grpc_port": self.port, "http_port": free_port(), "metrics_port": free_port()}
        settings = {"host": "127.0.0.1", "debug": False, **ports, **settings}
        model = {"name": "autoencoder", "implementation": "served.Served", "parameters": {"uri": str(artefact)}}
        (folder / "settings.json").write_text(json.dumps(settings))
        (folder / "model-settings.json").write_text(json.dumps(model))
        shutil.copy(PEER / "served.py", folder)
        command = [python, "-c", "from mlserver.cli import main; main()", "start", folder]
        self.log = folder / "log"
        with self.log.open("wb") as log:
            self.process = subprocess.Popen(command, cwd=folder, stdout=log, stderr=log, start_new_session=True)

    def stop(self) -> None:
        """With its own workers; asked politely it may hang."""
        os.killpg(self.process.pid, signal.SIGKILL)
        self.process.wait()

    def median_s(self) -> float:
        command: list[str | Path] = [self.python, PEER / "client.py", str(self.port), str(WARM_UP), str(TRIPS)]
        done = subprocess.run(command, capture_output=True, text=True, check=False, timeout=START_S_MAX)
        if done.returncode:
            raise EdgeError(f"it does not answer: {done.stderr[-200:]} {self.log.read_text()[-300:]}")
        return float(done.stdout)


def installed() -> Path:
    """The Python of MLServer's environment. Raises EdgeError with pip's reason."""
    kept = CACHE / f"venv-mlserver-{sys.version_info[0]}.{sys.version_info[1]}"
    python = kept / "bin" / "python"
    if not (kept / "complete").exists():
        shutil.rmtree(kept, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", "--without-pip", kept], check=True)
        pip = [*PIP, "--python", python, "install", "--quiet", *REQUIREMENTS]
        done = subprocess.run(pip, capture_output=True, text=True, check=False, timeout=INSTALL_S_MAX)
        if done.returncode:
            raise EdgeError(f"pip cannot install it here: {done.stderr.strip()[-200:]}")
        (kept / "complete").touch()
    return python


@contextmanager
def answerers() -> Iterator[tuple[Broker, str]]:
    """A broker, with the echo and the worker at it; the model that the worker offers."""
    with tempfile.TemporaryDirectory() as folder, mosquitto(Path(folder), log_type="none") as broker:
        (echoing, _), (working, model) = answerer("echo", broker.port), answerer("worker", broker.port)
        try:
            yield broker, model
        finally:
            for process in (echoing, working):
                process.kill()
                process.wait()


def run() -> list[dict[str, Any]]:
    with answerers() as (broker, model):
        return asyncio.run(measure(broker, model))


def peer(name: str, settings: dict[str, Any], target: str) -> dict[str, Any]:
    with answerers() as (broker, model), tempfile.TemporaryDirectory() as folder:
        served = Served(installed(), Path(folder), settings)
        try:
            return asyncio.run(against_mlserver(broker, model, served)) | {"name": name, "target": target}
        finally:
            served.stop()


def main() -> list[dict[str, Any]]:
    rows = [median_row(list(each)) for each in zip(*(run() for _ in range(RUNS)), strict=True)]
    try:
        for each in PEERS:
            rows.append(peer(*each))  # it stays where the next one cannot be
    except (EdgeError, OSError, subprocess.SubprocessError) as error:
        rows.append({"name": f"{NAME}: NOT MEASURED: {error}", "verdict": "skipped"})
    return rows


if __name__ == "__main__":
    asyncio.run({"echo": echo, "worker": worker}[sys.argv[1]](int(sys.argv[2])))
