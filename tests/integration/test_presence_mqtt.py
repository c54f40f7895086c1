"""Presence over a real mosquitto: processes that die, hang, and have one name."""

from __future__ import annotations

import asyncio
import signal
import time
from collections.abc import Awaitable, Callable
from pathlib import Path

from brokers import Broker, mosquitto
from presences import KEEPALIVE_S, Member, child, until

from edge_runtime.bus import presence as payloads
from edge_runtime.bus import topics
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.presence import Birth, Load
from edge_runtime.mesh.peers import LATE_PERIODS
from edge_runtime.ports import Connection

FAST = {"heartbeat_s_min": 0.2}
"""So that silence is noticed long before the broker's keepalive."""


def play(folder: Path, scenario: Callable[[Broker], Awaitable[None]]) -> None:
    with mosquitto(folder) as broker:
        asyncio.run(scenario(broker))


def status(name: str) -> str:
    return topics.gateway("s", name, "status")


async def stranger(broker: Broker) -> Connection:
    return await PahoBus().connect(broker.address())


async def remembered(broker: Broker, name: str) -> Birth:
    """What the broker hands to newcomers."""
    client = await stranger(broker)
    await client.subscribe(status(name))
    message = await client.receive()
    await client.close()
    assert message.retain
    return payloads.unpack(message.payload, Birth)


def test_kill_9_is_told_by_the_will(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        member = Member(broker.address(), "a", "r1")
        life = asyncio.create_task(member.run())
        with child(broker.port, "b") as other:
            await until(lambda: member.sees("b"))
            other.process.kill()
            killed = time.monotonic()
            await until(lambda: member.gone)
            assert member.peers.state("b") == "offline"
            took_s = member.gone[0][1] - killed
            print(f"kill -9 noticed after {took_s * 1e3:.1f} ms")
            assert not (await remembered(broker, "b")).online
        life.cancel()

    play(tmp_path, scenario)


def test_a_process_that_is_stopped_is_late_before_the_broker_gives_it_up_and_comes_back(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        member = Member(broker.address(), "a", "r1", **FAST)
        life = asyncio.create_task(member.run())
        with child(broker.port, "b", **FAST) as other:
            await until(lambda: member.sees("b") and member.peers.peers()[0].load)
            other.process.send_signal(signal.SIGSTOP)
            stopped = time.monotonic()
            await until(lambda: member.gone)
            assert member.peers.state("b") == "late"
            took_s = member.gone[0][1] - stopped
            print(f"SIGSTOP noticed after {took_s:.2f} s; {LATE_PERIODS} periods of 0.2 s are 0.7 s")
            await until(lambda: member.peers.state("b") == "offline")  # now its will is there
            print(f"its will came after {time.monotonic() - stopped:.2f} s, at a keepalive of {KEEPALIVE_S} s")
            assert len(member.gone) == 1, "told once"
            other.process.send_signal(signal.SIGCONT)
            await until(lambda: member.sees("b"))
        life.cancel()

    play(tmp_path, scenario)


def test_who_was_stopped_itself_takes_nobody_for_late(tmp_path: Path) -> None:
    """What the others said meanwhile is still to be read."""

    async def scenario(broker: Broker) -> None:
        member = Member(broker.address(), "a", "r1", **FAST)
        life = asyncio.create_task(member.run())
        with child(broker.port, "b", **FAST) as other:
            await until(lambda: member.sees("b"))
            await until(lambda: other.ask()["listens"] == 1)
            other.process.send_signal(signal.SIGSTOP)
            await asyncio.sleep(1.5)  # more than twice what makes a peer late, less than the broker's patience
            other.process.send_signal(signal.SIGCONT)
            await until(lambda: member.sees("b"))
            await asyncio.sleep(0.5)
            account = other.ask()
            assert (account["gone"], account["late"], account["listens"]) == (0, 0, 1)
        life.cancel()

    play(tmp_path, scenario)


def test_the_memory_of_an_earlier_run_is_not_believed(tmp_path: Path) -> None:
    """A broker that was killed comes back with births of gateways that are no more."""

    async def scenario(broker: Broker) -> None:
        with child(broker.port, "b", "r1"):
            client = await stranger(broker)
            await client.subscribe(status("b"))
            await client.receive()
            broker.save()
            broker.kill()
        broker.start()
        assert (await remembered(broker, "b")).online, "the broker remembers it"
        member = Member(broker.address(), "a", "r2")
        life = asyncio.create_task(member.run())
        await until(lambda: member.peers.state("b"))
        assert member.peers.state("b") == "unproved"
        assert member.peers.peers() == []
        with child(broker.port, "b", "r2"):
            await until(lambda: member.sees("b"))
        life.cancel()

    play(tmp_path, scenario)


def test_the_late_will_of_an_earlier_life_is_ignored_and_answered(tmp_path: Path) -> None:
    """A stopped process is replaced by a new one; then the broker gives the old one up."""

    async def scenario(broker: Broker) -> None:
        watcher = Member(broker.address(), "a", "r1")
        life = asyncio.create_task(watcher.run())
        with child(broker.port, "b") as old:
            await until(lambda: watcher.sees("b"))
            before = watcher.peers.peers()[0].birth.instance
            old.process.send_signal(signal.SIGSTOP)
            with child(broker.port, "b"):
                await until(lambda: watcher.sees("b") and watcher.peers.peers()[0].birth.instance != before)
                client = await stranger(broker)
                await client.subscribe(status("b"))
                seen: list[Birth] = []
                while not (len(seen) > 1 and seen[-1].online and not seen[-2].online):
                    async with asyncio.timeout(30):
                        seen.append(payloads.unpack((await client.receive()).payload, Birth))
                assert (seen[-2].instance, seen[-1].instance) == (before, watcher.peers.peers()[0].birth.instance)
                assert watcher.sees("b")
                assert [name for name, _ in watcher.gone] == ["b"], "the old life ended when the new one began"
        life.cancel()

    play(tmp_path, scenario)


def test_of_two_processes_with_one_name_the_newcomer_stands_down_until_the_other_is_gone(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        watcher, first = Member(broker.address(), "w", "r1", **FAST), Member(broker.address(), "b", "r1", **FAST)
        life, other = asyncio.create_task(watcher.run()), asyncio.create_task(first.run())
        await until(lambda: watcher.sees("b"))
        assert first.presence._since_ns is not None
        first.presence._since_ns -= 100 * 10**9  # it is here for long
        with child(broker.port, "b", **FAST) as second:
            assert await asyncio.to_thread(second.say) == {"taken": first.link.instance}
            assert (await remembered(broker, "b")).instance == first.link.instance
            assert not first.presence.name_taken
            assert first.presence.name.conflicts == 1
            await until(lambda: watcher.sees("b") and watcher.peers.peers()[0].birth.instance == first.link.instance)
            other.cancel()
            assert await asyncio.to_thread(second.say) == {"taken": ""}
            await until(lambda: watcher.sees("b") and watcher.peers.peers()[0].birth.instance != first.link.instance)
        life.cancel()

    play(tmp_path, scenario)


def test_garbage_at_a_real_broker_hurts_nobody(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        member = Member(broker.address(), "a", "r1")
        life = asyncio.create_task(member.run())
        with child(broker.port, "b"):
            await until(lambda: member.sees("b"))
            liar = await stranger(broker)
            loads = topics.gateway("s", "b", "load")
            await liar.publish(status("x"), payloads.pack(Birth(site="s", gateway="b", instance="l", online=False)), qos=1)
            await liar.publish(status("x"), b"\x00" * 100_000, qos=1)
            await liar.publish(loads, payloads.pack(Load(gateway="x", instance="l", period_s=1)), qos=1)
            await liar.publish(loads, b"{}", qos=1)
            await until(lambda: member.link.bad.total() == 4)
            assert member.link.bad == {"x": 2, "b": 2}
            assert member.sees("b")
            assert not member.gone
        life.cancel()

    play(tmp_path, scenario)
