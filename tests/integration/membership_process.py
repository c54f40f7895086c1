"""A process that has nothing of a gateway but its Membership, on loopback: name port rank folder peer...

It prints two lines for every change: KNOWN names, STATE role host.
"""

from __future__ import annotations

import asyncio
import signal
import sys
from pathlib import Path
from typing import Any

from memberships import Births

from edge_runtime.board.system import SystemClock, SystemDice
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.host import BrokerHost
from edge_runtime.config import Broker, Config, Mesh
from edge_runtime.mesh.discovery import NoDiscovery
from edge_runtime.mesh.link import Link
from edge_runtime.mesh.membership import Membership
from edge_runtime.ports_mesh import Announcement


class Log:
    def info(self, event: str, **words: Any) -> None:
        print("LOG", event, words, flush=True)

    warning = error = info


async def main(name: str, port: str, rank: str, folder: str, *peers: str) -> None:
    mode = {"mode": "hosted"} if rank == "0" else {"mode": "auto"}
    settings = Config.model_construct(
        site="plant",
        gateway=name,
        broker=Broker.model_validate({**mode, "url": f"mqtt://127.0.0.1:{port}"}),
        mesh=Mesh.model_validate({"discovery": "off", "peers": list(peers), "rank": int(rank) or 1}),
    )
    clock, dice, log = SystemClock(), SystemDice(), Log()
    instance = dice.token()
    link = Link("plant", name, instance, log)
    births = Births(link, settings)
    membership = Membership(
        settings, Announcement(site="plant", gateway=name, instance=instance, role="guest"), link, PahoBus(), NoDiscovery(),
        lambda: BrokerHost(settings.broker, Path(folder), clock, dice, log), clock, dice, log, births.will, births.alive,
    )  # fmt: skip
    births.endpoints = membership.endpoints
    running = asyncio.create_task(membership.run())
    said = ""
    while not running.done():
        state = membership.state
        now = f"KNOWN {[each.name for each in membership.candidates.there()]}\nSTATE {state.role} {state.host or '-'}"
        if now != said:
            said = now
            print(now, flush=True)
        await asyncio.sleep(0.01)
    await running


if __name__ == "__main__":
    signal.signal(signal.SIGINT, signal.default_int_handler)  # what a shell starts with & ignores it, and all that it starts
    asyncio.run(main(*sys.argv[1:]))
