"""What one member of the site can make the hosted broker keep."""

from __future__ import annotations

import asyncio
import contextlib
from pathlib import Path

import pytest
from hosted import connected, hosted
from trusted import Site

from edge_runtime.bus import mosquitto, programs
from edge_runtime.ports import BrokerError

pytestmark = pytest.mark.skipif(programs.mosquitto() is None, reason="MISSING SYSTEM PACKAGE: mosquitto")

NAME = "plant-1"


def test_a_member_fills_neither_the_memory_nor_the_disk_of_the_host(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """With what it may publish, retained, on ever new topics."""
    limit = 32 * 2**20
    monkeypatch.setattr(mosquitto, "MEMORY_BYTES_MAX", limit)
    site = Site(tmp_path)
    press, evil, alice = site.member("press-1"), site.member("evil"), site.member("alice", "engineer")
    site.roster(press)

    async def main() -> None:
        async with hosted(tmp_path, press) as (_, where):
            refused = 0
            for number in range(8):
                with contextlib.suppress(BrokerError):
                    refused += 1
                    async with connected(where, evil) as connection:
                        await connection.publish(f"edge/{NAME}/gw/evil/data/x{number}", bytes(8 * 2**20), qos=1, retain=True)
                    refused -= 1
            assert 3 <= refused < 8
            async with connected(where, alice) as other, connected(where, press) as watcher:
                await watcher.subscribe(f"edge/{NAME}/gw/press-1/cmd/+")
                await other.publish(f"edge/{NAME}/gw/press-1/cmd/drain", b"still", qos=1)
                assert (await watcher.receive()).payload == b"still"
            await asyncio.sleep(2)  # it has saved what it keeps
        assert sum(each.stat().st_size for each in (tmp_path / "broker").iterdir()) < limit

    asyncio.run(main())
