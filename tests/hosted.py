"""A broker of a site as its gateway hosts it, in this process, and connections to it.

async with hosted(tmp_path, press) as where, connected(where, alice) as connection: ...
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

from brokers import free_port

from edge_runtime.board.system import SystemClock, SystemDice
from edge_runtime.bus.broker import PahoBus, PahoConnection
from edge_runtime.bus.host import BrokerHost
from edge_runtime.bus.member import Dress
from edge_runtime.config import Broker
from edge_runtime.ports import Address
from edge_runtime.trust.identity import Identity


class Quiet:
    def info(self, event: str, **_: Any) -> None: ...

    warning = error = info

    def is_enabled_for(self, _level: int) -> bool:
        return False


@asynccontextmanager
async def hosted(folder: Path, identity: Identity) -> AsyncIterator[Address]:
    """Its address, as a stranger sees it: not dressed."""
    settings = Broker.model_validate({"mode": "hosted", "url": f"mqtt://127.0.0.1:{free_port()}"})
    host = BrokerHost(settings, folder / f"broker-{identity.name}", SystemClock(), SystemDice(), Quiet(), identity)
    where = await host.start()
    supervisor = asyncio.create_task(host.run())
    try:
        yield Address(host=where.host, port=where.port)
    finally:
        await host.stop()
        await asyncio.wait_for(supervisor, 20)


@asynccontextmanager
async def connected(where: Address, identity: Identity) -> AsyncIterator[PahoConnection]:
    connection = await PahoBus().connect(Dress(identity)(where))
    try:
        yield connection
    finally:
        await connection.close()
