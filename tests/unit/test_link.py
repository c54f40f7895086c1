"""mesh/link.py: the one connection to the site's broker."""

from __future__ import annotations

import asyncio
import contextlib

import pytest
import structlog

from edge_runtime.bus import topics
from edge_runtime.mesh.link import Home, Link
from edge_runtime.ports import Address, BrokerError
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.loop import VirtualLoop, run
from edge_runtime.testing.network import FakeBroker

WHERE = Address(host="broker")


@pytest.mark.parametrize("called_after_s", [0.0, 0.001, 0.002, 0.004, 0.006, 0.008, 0.5])
def test_whom_to_listen_to_may_change_at_any_instant_of_a_new_connection(called_after_s: float) -> None:
    """Found by a fleet: called while the new connection subscribed, it listened to nobody new until the next connection."""

    async def main() -> list[str]:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        lan = Lan(loop)
        FakeBroker(lan)
        heard: list[str] = []
        link = Link("s", "gw-1", "i", structlog.get_logger())
        link.on("load", lambda gateway, _message: heard.append(gateway))

        async def serve() -> None:
            with contextlib.suppress(BrokerError):
                await link.serve(await lan.bus().connect(WHERE), Home(WHERE))

        serving = asyncio.create_task(serve())
        await asyncio.sleep(called_after_s)
        await link.listen_to(["gw-2", "gw-3"])
        await asyncio.sleep(1)
        await link.listen_to(["gw-3"])
        other = await lan.bus().connect(WHERE)
        for name in ("gw-2", "gw-3"):
            await other.publish(topics.gateway("s", name, "load"), b"x", qos=1)
        await asyncio.sleep(1)
        serving.cancel()
        return heard

    for seed in range(5):
        assert run(main, seed=seed) == ["gw-3"]
