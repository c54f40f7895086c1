"""A gateway's presence alone, over a real broker: in this process (`Member`), or as a process of its own that can be killed.

member = Member(broker.address(), "a", run="r1")
task = asyncio.create_task(member.run())

python tests/presences.py PORT NAME RUN [SETTINGS]     # SETTINGS: JSON, see config.Mesh; a line on stdout for each change of
                                                       # the name ({"taken": instance}), and at "?" on stdin one with its
                                                       # CPU time (`Member.account`)
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import structlog

from edge_runtime.board.system import SystemClock, SystemDice
from edge_runtime.bus.broker import PahoBus
from edge_runtime.config import Config
from edge_runtime.mesh.link import Home, Link
from edge_runtime.mesh.presence import Facts, Presence
from edge_runtime.ports import Address, BrokerError, Message
from edge_runtime.ports_mesh import Offer

KEEPALIVE_S = 2


class Member:
    """As much of a gateway as presence needs."""

    def __init__(self, address: Address, name: str, run: str, **mesh: Any) -> None:
        dice, log = SystemDice(), structlog.wrap_logger(None, processors=[_drop])
        settings = Config.model_validate(
            {"site": "s", "gateway": name, "mesh": mesh, "devices": {"d": {"adapter": "x", "points": [{}]}}}
        )
        self.clock = SystemClock()
        self.link = Link("s", name, dice.token(), log)
        self.gone: list[tuple[str, float]] = []
        """Who, and when."""
        self.heard = 0
        """Heartbeats, the own ones too."""
        offers = [Offer("m@1", "cpu", 1_000_000)]
        self.presence = Presence(
            self.link, settings, lambda: offers, lambda: ["m@1"], Facts, self.clock, dice, log, self._on_gone
        )
        self.peers = self.presence.peers
        on_load = self.link._handlers["load"]

        def count(gateway: str, message: Message) -> None:
            self.heard += 1
            on_load(gateway, message)

        self.link.on("load", count)
        self._address, self._run = address, run

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(self.presence.run())
            group.create_task(self._member())

    def account(self) -> dict[str, float]:
        peers = self.peers.peers()
        return {
            "cpu_s": time.process_time(),
            "heard": self.heard,
            "peers": len(self.peers.births()),
            "listens": len(peers),
            "gone": len(self.gone),
            "late": sum(peer.late for peer in peers),
            "period_s": self.peers.period_s,
        }

    def sees(self, *names: str) -> bool:
        return [peer.name for peer in self.peers.peers() if not peer.late] == list(names)

    async def _member(self) -> None:
        client_id = f"edge-s-{self.link.gateway}-{self.link.instance}"
        address = Address(host=self._address.host, port=self._address.port, client_id=client_id, keepalive_s=KEEPALIVE_S)
        while True:
            with contextlib.suppress(BrokerError):
                connection = await PahoBus().connect(address, will=self.presence.will(self._run), timeout_s=1.0)
                try:
                    await self.link.serve(connection, Home(address, run=self._run))
                finally:
                    connection.abort()
            await asyncio.sleep(0.05)

    def _on_gone(self, name: str) -> None:
        self.gone.append((name, time.monotonic()))


def _drop(*_: Any) -> Any:
    raise structlog.DropEvent


async def until(condition: Any, limit_s: float = 30.0) -> None:
    """`limit_s` is far too long: no promise of speed."""
    async with asyncio.timeout(limit_s):
        while not condition():  # noqa: ASYNC110
            await asyncio.sleep(0.01)


class Child:
    """A member in its own process."""

    def __init__(self, port: int, name: str, run: str, **mesh: Any) -> None:
        command = [sys.executable, __file__, str(port), name, run, json.dumps(mesh)]
        environment = {**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)}
        self.process = subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, env=environment)

    def say(self) -> dict[str, Any]:
        """The next line. Blocks."""
        assert self.process.stdout is not None
        return dict(json.loads(self.process.stdout.readline()))

    def ask(self) -> dict[str, Any]:
        assert self.process.stdin is not None
        self.process.stdin.write(b"?\n")
        self.process.stdin.flush()
        return self.say()

    def end(self) -> None:
        self.process.kill()
        self.process.wait()


@contextlib.contextmanager
def child(port: int, name: str, run: str = "r1", **mesh: Any) -> Iterator[Child]:
    started = Child(port, name, run, **mesh)
    try:
        yield started
    finally:
        started.end()


async def _main(port: int, name: str, run: str, mesh: dict[str, Any]) -> None:
    member = Member(Address(host="127.0.0.1", port=port), name, run, **mesh)
    life = asyncio.create_task(member.run())
    taken = ""

    def asked() -> None:
        if not sys.stdin.readline():
            life.cancel()
        print(json.dumps(member.account()), flush=True)

    asyncio.get_running_loop().add_reader(sys.stdin, asked)
    while not life.done():
        await asyncio.wait((life,), timeout=1.0)
        if member.presence.name_taken != taken:
            taken = member.presence.name_taken
            print(json.dumps({"taken": taken}), flush=True)


if __name__ == "__main__":
    asyncio.run(_main(int(sys.argv[1]), sys.argv[2], sys.argv[3], json.loads(sys.argv[4])))
