"""Until when a command holds: by the gateway's own word, not by a heartbeat that anybody could have said."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import msgspec
import pytest
import trusted
from steered import Steered
from test_commands import device, settings
from worlds import Site, simulated, until

from edge_runtime.bus import control as messages
from edge_runtime.bus import presence, topics
from edge_runtime.bus.presence import Birth, Load
from edge_runtime.cli.commanding import HEARTBEAT_S_MAX, OFFLINE_S_MAX, VALID_S, commanded
from edge_runtime.cli.mesh.finding import Plan
from edge_runtime.cli.talking import Talk
from edge_runtime.ports import EdgeError
from edge_runtime.trust import envelope

AHEAD_NS = 500 * 10**9


def test_a_forged_heartbeat_makes_no_command_hold_longer(tmp_path: Path) -> None:
    plant = trusted.Site(tmp_path / "plant", "s")
    identity, alice = plant.member("g"), plant.member("alice", "operator")
    plant.roster(identity, alice)

    async def scenario(site: Site) -> None:
        shutil.copytree(identity.folder, site.folder / "data" / "identity")
        async with Steered(site, **settings()).running() as steered:
            await until(lambda: steered.gateway.sources["d"].state.phase == "connected")
            host, heard = await steered._connect("host"), []
            await host.subscribe(topics.gateway("s", "g", "cmd", "+"))

            async def forge() -> None:
                while True:
                    now = site.clock.now()
                    beat = Load(gateway="g", instance="i", period_s=1.0, boot=now.boot, now_ns=now.mono_ns + AHEAD_NS)
                    await host.publish(topics.gateway("s", "g", "load"), presence.pack(beat), qos=0)
                    await asyncio.sleep(2)

            async def listen() -> None:
                while True:
                    message = await host.receive()
                    host.acknowledge(message)
                    verb = message.topic.rpartition("/")[2]
                    heard.append(messages.command(envelope.unwrap(message.payload), "g", verb))

            tasks = [asyncio.create_task(each(), name=each.__name__) for each in (forge, listen)]
            talk = Talk(Plan("s", (), identity=alice))
            talk._connection = await steered._connect("alice")
            async with asyncio.timeout(60):
                reply = await commanded(talk, "g", "write", {"point": "d/speed", "value": 40})
            assert reply.outcome == "verified"
            assert device(steered).received == [("speed", 40)]
            await asyncio.sleep(1)
            assert [each.verb for each in heard] == ["time", "write"]
            now_ns = site.clock.now().mono_ns
            assert heard[1].until_ns <= now_ns + VALID_S * 1e9
            again = await commanded(talk, "g", "write", {}, name=reply.id, asks_only=True)
            assert msgspec.to_builtins(again) == msgspec.to_builtins(reply)
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    simulated(scenario, tmp_path)


@pytest.mark.parametrize("belongs", [False, True])
@pytest.mark.parametrize("back", [False, True])
def test_one_that_is_offline_is_not_waited_for_as_if_it_were_not(tmp_path: Path, belongs: bool, back: bool) -> None:
    """It took 15 s to say that it is silent."""
    plant = trusted.Site(tmp_path / "plant", "s")
    identity, alice = plant.member("g"), plant.member("alice", "operator")
    plant.roster(identity, alice)

    async def scenario(site: Site) -> None:
        loop = asyncio.get_running_loop()
        async with Steered(site, **settings()).running() as steered:
            host = await steered._connect("host")
            status = topics.gateway("s", "ghost", "status")
            for online in (False, True) if back else (False,):
                if online:
                    task = asyncio.create_task(asyncio.sleep(1), name="away")
                    await task
                birth = presence.pack(Birth(site="s", gateway="ghost", instance="i", online=online))
                await host.publish(status, birth, qos=1, retain=not online)
                if not online:
                    talk = Talk(Plan("s", (), identity=alice if belongs else None))
                    talk._connection = await steered._connect("alice")
                    began_s = loop.time()
                    asking = asyncio.create_task(commanded(talk, "ghost", "drain", {}), name="asks")
            with pytest.raises(EdgeError) as caught:
                await asking
            took_s = loop.time() - began_s
            if back and not belongs:
                assert "ghost is silent" in caught.value.cause
                assert took_s >= HEARTBEAT_S_MAX
            else:
                assert caught.value.cause == "ghost is offline: nothing was sent"
                assert "edge-runtime mesh" in caught.value.hint
                assert took_s < 2 * OFFLINE_S_MAX

    simulated(scenario, tmp_path)
