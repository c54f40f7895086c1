"""What a site's security costs a task: mTLS to the broker and sealed frames, against the same two gateways without either, in one
run. And how long a gateway takes to join, with one command on each side.

    python -m tests.bench trust
"""

from __future__ import annotations

import asyncio
import json
import os
import statistics
import subprocess
import sys
import tempfile
import time
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import structlog
from bench_mesh import HERE, MODEL, READY, TRIPS, WINDOW, Trip, answerer, median_row, our_trip, row
from brokers import free_port, mosquitto
from trusted import Site

from edge_runtime.board.system import SystemClock, SystemDice, ThreadWorker
from edge_runtime.bus import presence, topics
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.host import BrokerHost
from edge_runtime.bus.member import Dress
from edge_runtime.bus.presence import Birth
from edge_runtime.config import Broker, Mesh
from edge_runtime.inference.model import Model, open_model
from edge_runtime.inference.offering import Offering, tensor_of
from edge_runtime.mesh.answering import Answering
from edge_runtime.mesh.asking import Asking
from edge_runtime.mesh.link import Home, Link
from edge_runtime.mesh.sealing import Sealing
from edge_runtime.ports import Address, EdgeError, Message
from edge_runtime.trust.identity import Identity

RUNS, ROUNDS = 3, 15
"""Each run with workers and a broker of its own: where the machine happens to put them makes a difference of 0.05. And pairs in
each: a single one is off by a tenth and more."""
TURN, TURN_WARM_UP = 20, 3
"""Trips of one kind in a row."""
JOINS = 5
SITE = "bench"


def sealed_link(identity: Identity, met: asyncio.Event, other: str) -> Link:
    """It tells its key in its birth, and knows when the other has told its own."""
    sealing = Sealing(identity)
    link = Link(SITE, identity.name, f"{identity.name}1", structlog.get_logger().bind(), sealing)

    def heard(gateway: str, message: Message) -> None:
        sealing.meet(gateway, presence.unpack(message.payload, Birth).agreement)
        if gateway == other:
            met.set()

    async def say() -> None:
        birth = Birth(site=SITE, gateway=identity.name, instance=link.instance, online=True, agreement=sealing.public)
        await link.send(topics.gateway(SITE, identity.name, "status"), sealing.sign(presence.pack(birth)), qos=1, retain=True)

    link.on("status", heard)
    link.joined.append(say)
    return link


async def serve(link: Link, identity: Identity, port: int) -> None:
    address = Dress(identity)(Address(host="127.0.0.1", port=port, client_id=link.gateway, quickack=False))
    await link.serve(await PahoBus().connect(address), Home(address))


async def worker(port: int, folder: Path) -> None:
    clock, log, met, offered = SystemClock(), structlog.get_logger().bind(), asyncio.Event(), asyncio.Event()
    identity = Identity.load(folder)
    assert identity is not None

    async def opened(reference: str) -> Model:
        return await open_model(reference, [], "auto", "cpu", lambda: ThreadWorker("bench"), clock)

    link = sealed_link(identity, met, "asker")
    offering = Offering(offered.set, SystemDice(), log)
    offering.use([MODEL], opened)
    answering = Answering(link, offering, Mesh(), clock, log)
    async with asyncio.TaskGroup() as group:
        group.create_task(offering.run())
        group.create_task(answering.run())
        await offered.wait()
        group.create_task(serve(link, identity, port))
        print(READY, offering.offers()[0].model, flush=True)


@asynccontextmanager
async def sealed_trip(port: int, identity: Identity, model: str) -> AsyncIterator[Trip]:
    clock, met = SystemClock(), asyncio.Event()
    link = sealed_link(identity, met, "worker")
    asking = Asking(link, clock, structlog.get_logger().bind())

    async def trip() -> None:
        reply = await asking.ask("worker", model, tensor_of(WINDOW), deadline_ns=clock.mono_ns() + 2_000_000_000)
        if reply.inference is None:
            raise EdgeError(reply.cause, reply.hint)

    serving = asyncio.create_task(serve(link, identity, port))
    await met.wait()
    await asyncio.sleep(0.5)  # the worker has to have heard us, too
    yield trip
    serving.cancel()
    await asyncio.wait([serving])


async def measure(plain_port: int, model: str, site: Site, folder: Path) -> dict[str, Any]:
    host, asker, working = (site.member(name) for name in ("host", "asker", "worker"))
    site.roster(host, asker, working)
    port, clock = free_port(), SystemClock()
    settings = Broker(mode="hosted", url=f"mqtt://127.0.0.1:{port}", program="mosquitto")
    broker = BrokerHost(settings, folder / "broker", clock, SystemDice(), structlog.get_logger().bind(), host)
    await broker.start()
    hosting = asyncio.create_task(broker.run())
    process, _ = await asyncio.to_thread(sealed_worker, port, working.folder)
    try:
        async with our_trip(Plain(plain_port), model) as plain, sealed_trip(port, asker, model) as sealed:
            rounds = [await in_turns(sealed, plain) for _ in range(ROUNDS)]
    finally:
        process.kill()
        process.wait()
        await broker.stop()
        await hosting
    medians = [(statistics.median(mine) * 1e6, statistics.median(theirs) * 1e6) for mine, theirs in rounds]
    us = [statistics.median(column) for column in zip(*medians, strict=True)]
    ratio = statistics.median(mine / theirs for mine, theirs in medians)
    return row("trust: task round trip with mTLS and sealed frames, p50", "us", us[0], us[1], "<= 1.3") | {
        "ratio": round(ratio, 2)
    }


async def in_turns(*trips: Trip) -> list[list[float]]:
    """Seconds of each of TRIPS, of each kind: a few of the one, a few of the other. What the machine does meanwhile meets both
    alike, and neither rests long enough for its core to sleep (that would cost both the same, and make the ratio look better)."""
    took: list[list[float]] = [[] for _ in trips]
    for _ in range(TRIPS // TURN):
        for trip, seconds in zip(trips, took, strict=True):
            for number in range(TURN_WARM_UP + TURN):
                start = time.perf_counter()
                await trip()
                if number >= TURN_WARM_UP:
                    seconds.append(time.perf_counter() - start)
    return took


class Plain:
    """bench_mesh's broker, by its port."""

    def __init__(self, port: int) -> None:
        self.port = port


def sealed_worker(port: int, folder: Path) -> tuple[subprocess.Popen[str], str]:
    process = subprocess.Popen(
        [sys.executable, __file__, str(port), str(folder)],
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": f"{HERE}{os.pathsep}{HERE.parent}"},
    )
    assert process.stdout is not None
    while line := process.stdout.readline():
        if line.startswith(READY):
            return process, line.removeprefix(READY).strip()
    raise EdgeError("bench: the worker did not start")


def joined(folder: Path) -> dict[str, Any]:
    """Seconds from `join` typed until it is a member, the command's own start included; the token was printed before."""
    command = [sys.executable, "-m", "edge_runtime"]
    passphrase = folder / "passphrase"
    passphrase.write_text("correct horse battery")
    passphrase.chmod(0o600)
    authority = folder / "authority"
    asked = ["--folder", authority, "--passphrase-file", passphrase]
    subprocess.run([*command, "site", "init", SITE, *asked], check=True, capture_output=True)
    took = []
    for number in range(JOINS):
        serving = subprocess.Popen(
            [*command, "site", "token", f"g{number}", *asked, "--listen", f"127.0.0.1:{free_port()}", "--json"],
            stdout=subprocess.PIPE, text=True,
        )  # fmt: skip
        assert serving.stdout is not None
        token = next(said["token"] for line in serving.stdout if (said := json.loads(line)).get("token"))
        start = time.perf_counter()
        subprocess.run([*command, "join", token, "--folder", folder / f"g{number}"], check=True, capture_output=True)
        took.append(time.perf_counter() - start)
        serving.wait()
    return row("trust: join a site, one command on each side", "s", statistics.median(took), 1, "<= 5") | {
        "ratio": None,
        "bare": None,
    }


def run() -> dict[str, Any]:
    with tempfile.TemporaryDirectory() as name, mosquitto(Path(name), log_type="none") as broker:
        folder = Path(name)
        working, model = answerer("worker", broker.port)
        try:
            return asyncio.run(measure(broker.port, model, Site(folder / "site", SITE), folder))
        finally:
            working.kill()
            working.wait()


def main() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        return [median_row([run() for _ in range(RUNS)]), joined(Path(folder))]


if __name__ == "__main__":
    asyncio.run(worker(int(sys.argv[1]), Path(sys.argv[2])))
