"""`edge-runtime mesh` and gateways that speak as real ones do, on a real broker."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from typing import Any

import msgspec
from brokers import Broker

from edge_runtime import cli
from edge_runtime.board.system import SystemClock
from edge_runtime.bus import presence, topics
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.presence import Brokers
from edge_runtime.testing.peer import FakePeer

CLOCK = SystemClock()
SITE = "plant-1"


class Said(msgspec.Struct):
    """What a command printed, and its exit status."""

    out: str
    error: str
    status: int

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def edge_runtime(*words: str) -> Said:
    """In a thread: a process takes longer to begin than to do it."""
    return await asyncio.wait_for(asyncio.to_thread(_run, words), 30)


def _run(words: Sequence[str]) -> Said:
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            status = cli.main(words)
        except SystemExit as wrong:
            status = int(wrong.code or 0)
    return Said(out.getvalue(), error.getvalue(), status)


@asynccontextmanager
async def gateways(broker: Broker, *peers: FakePeer, beats: bool = True) -> AsyncIterator[None]:
    """They are born, and their hearts beat fast."""
    tasks = []
    for peer in peers:
        connection = await PahoBus().connect(broker.address())
        await peer.be_born(connection)
        tasks.append(asyncio.create_task(peer.serve(connection)))
        if beats:
            tasks.append(asyncio.create_task(_beat(peer, connection)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _beat(peer: FakePeer, connection: Any) -> None:
    while True:
        await peer.beat(connection, temperature_c=51.4, latency_ns=4_200_000, tasks_out=7, outbox_depth=12)
        await asyncio.sleep(0.1)


async def host(broker: Broker, peer: FakePeer, site: str = SITE) -> None:
    """`peer` says that it hosts the broker."""
    connection = await PahoBus().connect(broker.address())
    said = Brokers(site=site, host=peer.name, instance=f"{peer.name}-1", run="r1")
    await connection.publish(topics.brokers(site), presence.pack(said), qos=1, retain=True)
    await connection.close()


def peer(name: str, number: int = 0, **facts: Any) -> FakePeer:
    return FakePeer(name=name, clock=CLOCK, number=number, **facts)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))  # type: ignore[arg-type]
