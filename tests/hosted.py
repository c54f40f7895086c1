"""A broker of a site as its gateway hosts it, in this process, and connections to it.

async with hosted(tmp_path, press) as (_, where), connected(where, alice) as connection: ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import free_port
from keepers import Log

from edge_runtime.board.system import SystemClock, SystemDice
from edge_runtime.bus.broker import PahoBus, PahoConnection
from edge_runtime.bus.host import BrokerHost
from edge_runtime.bus.member import Dress
from edge_runtime.config import Broker
from edge_runtime.ports import Address, BrokerError, Message, Will
from edge_runtime.trust.identity import Identity

BUS = PahoBus()


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30), debug=True)


@asynccontextmanager
async def hosted(
    folder: Path, identity: Identity, log: Log | None = None, **settings: Any
) -> AsyncIterator[tuple[BrokerHost, Address]]:
    """The host, and its address as a stranger sees it: not dressed."""
    settings = {"mode": "hosted", "url": f"mqtt://127.0.0.1:{free_port()}", **settings}
    one = BrokerHost(Broker.model_validate(settings), folder / "broker", SystemClock(), SystemDice(), log or Log(), identity)
    where = await one.start()
    assert (where.tls, where.site_ca, where.quickack) == (True, True, False)
    supervisor = asyncio.create_task(one.run())
    try:
        yield one, Address(host=where.host, port=where.port)
    finally:
        await one.stop()
        await asyncio.wait_for(supervisor, 20)


@asynccontextmanager
async def connected(
    address: Address, identity: Identity | None = None, will: Will | None = None
) -> AsyncIterator[PahoConnection]:
    connection = await BUS.connect(address if identity is None else Dress(identity)(address), will=will)
    try:
        yield connection
    finally:
        await connection.close()


async def take(connection: PahoConnection, count: int) -> list[Message]:
    async with asyncio.timeout(10):
        return [await connection.receive() for _ in range(count)]


async def no_way_in(address: Address) -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        async with connected(address):
            pytest.fail("the broker let it in")
    return caught.value
