"""The rules of ports.Host as tests: they run over the real child process and over the simulated one.

class TestMyHost(HostSuite):
    def play(self, scenario):           # asyncio.run, or the simulator's run
        asyncio.run(scenario(kit))      # a HostsInTest
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from typing import Protocol

import pytest

from edge_runtime.ports import Address, BrokerError, Bus, Host

FAR_TOO_LONG_S = 10.0
AGAIN_S = 0.05


class HostsInTest(Protocol):
    """Hosts of one machine that all want the same port."""

    bus: Bus

    def new(self) -> Host: ...

    def kill(self, host: Host) -> None:
        """kill -9 of the broker's process."""
        ...


Scenario = Callable[[HostsInTest], Awaitable[None]]


class HostSuite:
    """Subclass it and give `play`."""

    def play(self, scenario: Scenario) -> None:
        raise NotImplementedError

    def test_started_it_accepts_connections_and_stopped_it_refuses(self) -> None:
        async def scenario(kit: HostsInTest) -> None:
            async with started(kit.new()) as address:
                connection = await kit.bus.connect(address)
                await connection.publish("t", b"", qos=1)
            with pytest.raises(BrokerError):
                await connection.receive()
            with pytest.raises(BrokerError, match="refused"):
                await kit.bus.connect(address)

        self.play(scenario)

    def test_a_second_one_is_told_that_the_port_is_taken_and_hurts_nobody(self) -> None:
        async def scenario(kit: HostsInTest) -> None:
            async with started(kit.new()) as address:
                second = kit.new()
                with pytest.raises(BrokerError, match=r"port.*in use"):
                    await second.start()
                await second.stop()
                await (await kit.bus.connect(address)).close()

        self.play(scenario)

    def test_after_a_stop_the_next_one_can_start(self) -> None:
        async def scenario(kit: HostsInTest) -> None:
            for _ in range(3):
                async with started(kit.new()) as address:
                    await (await kit.bus.connect(address)).close()

        self.play(scenario)

    def test_one_whose_process_is_killed_comes_back(self) -> None:
        async def scenario(kit: HostsInTest) -> None:
            host = kit.new()
            async with started(host) as address:
                connection = await kit.bus.connect(address)
                kit.kill(host)
                with pytest.raises(BrokerError):
                    await connection.receive()
                async with asyncio.timeout(FAR_TOO_LONG_S):
                    while not await answers(kit.bus, address):  # noqa: ASYNC110 - nobody tells
                        await asyncio.sleep(AGAIN_S)

        self.play(scenario)

    def test_it_is_up_while_its_own_process_lives(self) -> None:
        """Whoever answers at its address when it is not is somebody else."""

        async def scenario(kit: HostsInTest) -> None:
            host = kit.new()
            seen = [host.up]
            async with started(host) as address, asyncio.timeout(FAR_TOO_LONG_S):
                seen.append(host.up)
                kit.kill(host)
                while seen[-3:] != [True, False, True]:
                    await asyncio.sleep(AGAIN_S / 10)
                    seen += [host.up] if host.up != seen[-1] else []
                await (await kit.bus.connect(address)).close()
            assert [*seen, host.up] == [False, True, False, True, False]

        self.play(scenario)

    def test_stop_before_start_and_stop_twice(self) -> None:
        async def scenario(kit: HostsInTest) -> None:
            host = kit.new()
            await host.stop()
            other = kit.new()
            async with started(other) as address:
                await other.stop()
            await other.stop()
            assert not await answers(kit.bus, address)

        self.play(scenario)

    def test_a_start_that_is_given_up_leaves_nothing_behind(self) -> None:
        async def scenario(kit: HostsInTest) -> None:
            host = kit.new()
            starting = asyncio.create_task(host.start())
            await asyncio.sleep(0)
            starting.cancel()
            await asyncio.wait((starting,))
            await host.stop()
            async with started(kit.new()):
                pass

        self.play(scenario)


@asynccontextmanager
async def started(host: Host) -> AsyncIterator[Address]:
    address = await host.start()
    running = asyncio.create_task(host.run())
    try:
        yield address
    finally:
        await host.stop()
        async with asyncio.timeout(FAR_TOO_LONG_S):
            await running


async def answers(bus: Bus, address: Address) -> bool:
    try:
        await (await bus.connect(address)).close()
    except BrokerError:
        return False
    return True
