"""A gateway's discovery and nothing else, as a process: python discovering.py '{"gateway": "g1", "listen": "0.0.0.0", ...}'

It writes a line of JSON whenever it has found something else, and obeys `host`, `candidate` (its role from now on), `cpu` and
`close` on standard input.
"""

from __future__ import annotations

import asyncio
import json
import sys
import time
from dataclasses import dataclass, field
from typing import Any

import msgspec
from netns import Lines, Network

from edge_runtime.board.system import SystemDice
from edge_runtime.config import Mesh
from edge_runtime.mesh.discovery import NoDiscovery, ZeroconfDiscovery
from edge_runtime.ports_mesh import Announcement, Discovery


@dataclass
class Finder:
    """The process, seen from the test."""

    lines: Lines
    gateway: str
    counts: dict[str, int] = field(default_factory=dict)

    def found(self) -> dict[str, dict[str, Any]]:
        """Gateway -> what it announces, as this one has it now."""
        for _, line in reversed(list(self.lines.got)):
            said = json.loads(line)
            if "found" in said:
                return {each["gateway"]: each for each in said["found"]}
        return {}

    def sees(self, *gateways: str, limit_s: float = 20.0) -> float:
        """Returns how long that took."""
        began = time.monotonic()
        wanted = sorted(gateways)
        self.lines.wait(lambda: sorted(self.found()) == wanted, f"{self.gateway} sees {wanted}", limit_s)
        return time.monotonic() - began

    def wait(self, event: str) -> dict[str, Any]:
        """A line of its log."""
        said = self.lines.wait(lambda: [one for one in self.said() if one.get("event") == event], f"{event} of {self.gateway}")
        last: dict[str, Any] = said[-1]
        return last

    def said(self) -> list[dict[str, Any]]:
        return [json.loads(line) for _, line in list(self.lines.got)]

    def ask(self, what: str) -> Any:
        """`cpu`: seconds of processor time since it started. `refused`: counters."""
        before = len(self.lines.got)
        self.lines.say(what)
        return self.lines.wait(lambda: [one[what] for one in self.said()[before:] if what in one], f"{what}")[-1]

    def kill(self) -> None:
        """kill -9"""
        self.lines.process.kill()
        self.lines.process.wait()

    def close(self) -> None:
        self.lines.say("close")
        assert self.lines.process.wait(10) == 0


def finder(net: Network, node: int, gateway: str, **facts: Any) -> Finder:
    """`facts`: listen, site, port, and whatever stands under `mesh`."""
    given = json.dumps({"gateway": gateway, "listen": "0.0.0.0", **facts})
    started = Finder(net.lines(node, sys.executable, __file__, given), gateway)
    started.lines.wait(lambda: any("open" in one for one in started.said()), f"{gateway} is there")
    return started


class _Log:
    def __getattr__(self, level: str) -> Any:
        return lambda event, **fields: print(json.dumps({"level": level, "event": event, **fields}), flush=True)


async def _serve(gateway: str, listen: str, site: str = "plant", port: int = 1883, **mesh: Any) -> None:
    settings = Mesh(**mesh)
    off = settings.discovery == "off"
    discovery: Discovery = NoDiscovery() if off else ZeroconfDiscovery(settings, listen, _Log())
    mine = Announcement(
        site=site,
        gateway=gateway,
        instance=SystemDice().token(),
        role="candidate",
        port=port,
        version="1.2.3",
    )
    await discovery.open(mine)
    print(json.dumps({"open": gateway}), flush=True)
    loop = asyncio.get_running_loop()
    orders: asyncio.Queue[str] = asyncio.Queue()
    loop.add_reader(sys.stdin, lambda: orders.put_nowait(sys.stdin.readline().strip()))
    telling = asyncio.create_task(_tell(discovery))
    while (order := await orders.get()) not in ("close", ""):
        if order == "cpu":
            print(json.dumps({"cpu": time.process_time()}), flush=True)
        elif order == "refused":
            print(json.dumps({"refused": getattr(discovery, "refused", {})}), flush=True)
        else:
            mine = msgspec.structs.replace(mine, role=order)
            await discovery.announce(mine)
    telling.cancel()
    await discovery.close()


async def _tell(discovery: Discovery) -> None:
    while True:
        found = msgspec.to_builtins(discovery.found())
        print(json.dumps({"found": found}), flush=True)
        await discovery.changed.wait()
        discovery.changed.clear()
        await asyncio.sleep(0.02 * (len(found) > 50))


if __name__ == "__main__":
    asyncio.run(_serve(**json.loads(sys.argv[1])))
