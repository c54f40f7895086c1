"""A site under virtual time: 3 to 7 whole gateways on a network that is cut, parted and slow, with hosts that die and gateways
that crash between any two steps.

    outcome = simulate(17)                   # or: python -m edge_runtime.testing.fleet 17        (--log: and what they log)

Each gateway reads a mailbox that outlives it and delivers to a receiver that all share; its windows are computed by whoever the
mesh finds. First everything breaks; then the network stays as it is, perhaps in two parts, and each part must agree on one
broker; then all is healed, and the site must. At the end `check` compares what was accepted with what is at the receiver.
"""

from __future__ import annotations

import asyncio
import sys
import tempfile
from collections import Counter
from pathlib import Path

import msgspec

from edge_runtime.config import Config
from edge_runtime.records import Lane, Result
from edge_runtime.testing.discovery import Air
from edge_runtime.testing.lan import Lan, Line
from edge_runtime.testing.loop import VirtualLoop, run
from edge_runtime.testing.member import Member, settings
from edge_runtime.testing.sink import FakeReceiver
from edge_runtime.testing.watch import LOOK_S, Times, Watch

__all__ = ["Broken", "Fleet", "Outcome", "Times", "simulate"]

GATEWAYS = (3, 3, 4, 5, 7)
"""One is drawn from the seed."""
CHAOS_S = 6.0
FAULT_S = (0.05, 0.8)
POST_S = 0.6
"""Between two posts to one gateway, on average."""

AGREE_S_MAX = 12.0
"""After the last change of the network, until all who reach each other are on one broker and know each other."""
STAYS_S = 3.0
"""And stay there."""
DRAIN_S_MAX = 60.0
FAULTS = {
    "crash": 3, "restart": 1, "hang": 2, "crash at step": 2, "crash at statement": 2, "broker dies": 2, "cut": 2, "part": 2,
    "block": 1, "heal": 3, "line": 2, "drop": 2, "slow disk": 1, "stuck model": 1, "host": 1, "clock": 1, "air": 1, "mailbox": 1,
}  # fmt: skip
"""Kind -> how often, of all."""

SHAPES = ("whole", "parted", "one cut off", "one-way")
"""Of the network while each part has to agree."""


class Outcome(msgspec.Struct, frozen=True):
    """What a run showed; equal for equal seeds."""

    digest: str
    gateways: int
    lives: int
    hostings: int
    windows: int
    by_peers: int
    unanswered: int
    resends: int
    times: Times
    now_s: float


class Broken(AssertionError):
    """A promise was broken. The message says which."""


class Fleet:
    """One seeded run. `run` raises Broken."""

    def __init__(self, folder: Path, log: bool = False) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop, self.rng = loop, loop.rng("fleet")
        self.lan = Lan(loop)
        self.air = Air(self.lan)
        self.receiver = FakeReceiver()
        self.watch = Watch(loop, log)
        discovery = self.rng.choice(("mdns", "mdns", "mdns", "off"))
        names = [f"gw-{number}" for number in range(1, self.rng.choice(GATEWAYS) + 1)]
        self.members = [self._member(name, settings(name, names, discovery, self.rng), folder) for name in names]
        self.lives: list[asyncio.Task[None]] = []

    async def run(self) -> Outcome:
        self.lives = [asyncio.create_task(member.live(), name=f"{member.name} lives") for member in self.members]
        looking = asyncio.create_task(self.watch.look(self.members), name="looking")
        posting = asyncio.create_task(self._post(), name="posting")
        await self._break()
        self.watch.times.parted = await self._agree(self.rng.choice(SHAPES))
        self.watch.times.healed = await self._agree("whole")
        posting.cancel()
        await self._drain()
        looking.cancel()
        for member in self.members:
            member.ends = True
            member.gateway.stop()
        async with asyncio.timeout(DRAIN_S_MAX):
            await asyncio.gather(*self.lives)
        check(self)
        return self._outcome()

    # --- the world goes on ---

    async def _post(self) -> None:
        """Now and then several at once."""
        while True:
            member = self.rng.choice(self.members)
            for _ in range(self.rng.choice((1, 1, 1, 6))):
                member.mailbox.post({"a": float(len(member.mailbox.posted)), "b": 0.0})
            await asyncio.sleep(POST_S / len(self.members))

    async def _break(self) -> None:
        end_s = self.loop.time() + CHAOS_S
        while self.loop.time() < end_s:
            await asyncio.sleep(self.rng.uniform(*FAULT_S))
            self._fine()
            self._fault(self.rng.choices([*FAULTS], [*FAULTS.values()])[0], self._victim())

    def _victim(self) -> Member:
        """The host of a broker as often as anybody else."""
        hosts = [member for member in self.members if member.broker.running]
        return self.rng.choice(hosts if hosts and self.rng.random() < 0.5 else self.members)

    def _fault(self, kind: str, member: Member) -> None:
        rng, lan = self.rng, self.lan
        others = [each.name for each in self.members if each is not member]
        if kind == "crash":
            member.fence.fall()
        elif kind == "restart":
            member.gateway.stop()
        elif kind == "hang":
            lan.hang(member.fence)
        elif kind == "crash at step":
            member.fence.fall_at = member.fence.steps + rng.randrange(1, 300)
        elif kind == "crash at statement":
            member.disk.crash_at = member.disk.statements + rng.randrange(1, 30)
        elif kind == "broker dies":
            member.broker.kill()
        elif kind in ("cut", "part", "block"):
            self._shape({"cut": "one cut off", "part": "parted", "block": "one-way"}[kind], member)
        elif kind == "heal":
            lan.heal(rng.choice((None, member.name)))
            member.fence.go_on()
        elif kind == "line":
            line = Line(lost=rng.choice((0.0, 0.2)), twice=rng.choice((0.0, 0.3)), stalls=rng.choice((0.0, 0.05)))
            lan.lines.update({pair: line for each in others for pair in ((member.name, each), (each, member.name))})
        elif kind == "drop":
            lan.drop(member.name)
        elif kind == "slow disk":
            member.slow_disk = not member.slow_disk
        elif kind == "stuck model":
            member.models.faults.stuck = not member.models.faults.stuck
        elif kind == "host":
            member.hosts.refuses = rng.choice((0.0, 0.5, 1.0))
        elif kind == "clock":
            member.clock.skew = rng.uniform(-0.01, 0.01)
            member.clock.wall_offset_ns += rng.choice((-1, 1)) * 3600 * 10**9
        elif kind == "air":
            self.air.lost = rng.choice((0.0, 0.5, 1.0))
        else:
            member.mailbox.lost, member.mailbox.again = rng.choice((0.0, 0.01)), rng.choice((0.0, 0.05))
            member.uplink.unheard = member.uplink.lost = member.uplink.twice = rng.choice((0.0, 0.2))

    def _shape(self, shape: str, member: Member) -> None:
        names = [each.name for each in self.members]
        if shape == "parted":
            self.rng.shuffle(names)
            at = self.rng.randrange(1, len(names))
            self.lan.part(names[:at], names[at:])
        elif shape == "one cut off":
            self.lan.cut(member.name)
        elif shape == "one-way":
            # A guest that cannot come to the host has nowhere to go, for good.
            sources = [each.name for each in self.members if each.may_host]
            pairs = [(a, b) for a in sources for b in names if a != b and member.name in (a, b)]
            if pairs:
                self.lan.block(*self.rng.choice(pairs))

    # --- one broker for all who reach each other ---

    async def _agree(self, shape: str) -> float:
        """Nothing breaks any more, and the network has this shape: how long until each part has agreed."""
        self.lan.heal()
        self.lan.lines.clear()
        self.air.lost = 0.0
        for member in self.members:
            member.heal()
        self._shape(shape, self._victim())
        began_s = differed_s = self.loop.time()
        while self.loop.time() - differed_s < STAYS_S:
            await asyncio.sleep(LOOK_S)
            self._fine()
            if why := self._differ():
                differed_s = self.loop.time()
                _require(differed_s - began_s < AGREE_S_MAX, f"{shape}, after {AGREE_S_MAX:g} s {why}")
        return differed_s - began_s

    def _fine(self) -> None:
        """Nothing that is watched has gone wrong, and nobody has ended."""
        for life in self.lives:
            if life.done():
                life.result()
        _require(not self.watch.failures, "; ".join(self.watch.failures[:3]))

    def _differ(self) -> str:
        """What is wrong with: each part of the network has one broker, all are on it, and each knows the others and no more."""
        names = [member.name for member in self.members]
        for member in self.members:
            part = self.lan.component(member.name, names)
            hosts = [each.name for each in self.members if each.broker.running and each.name in part]
            if not any(each.may_host for each in self.members if each.name in part):
                if hosts:
                    return f"among {part} nobody may host, and {hosts} do"
                continue
            if len(hosts) != 1:
                return f"the hosts among {part} are {hosts}"
            if not member.up or member.gateway.mesh is None:
                return f"{member.name} is not up"
            home = member.gateway.mesh.link.home
            if home is None or home.host != hosts[0]:
                return f"{member.name} is at {home.host if home else 'no broker'}, not at {hosts[0]}"
            peers = [peer.name for peer in member.gateway.mesh.presence.peers.peers() if peer.here]
            if sorted([*peers, member.name]) != part:
                return f"{member.name} knows {peers} of {part}"
        return ""

    async def _drain(self) -> None:
        """Until everything is delivered, if it ever is: `check` tells."""
        end_s = self.loop.time() + DRAIN_S_MAX
        while self.loop.time() < end_s and not all(map(self._delivered, self.members)):
            await asyncio.sleep(LOOK_S)
            self._fine()

    def _delivered(self, member: Member) -> bool:
        kept = self.receiver.kept.items()
        arrived = sum(name == member.name and record.lane is Lane.RESULT for (name, *_), record in kept)
        return len(member.mailbox.acknowledged) == len(member.mailbox.posted) <= arrived

    # --- how it is made ---

    def _member(self, name: str, settings: Config, folder: Path) -> Member:
        here = folder / name
        here.mkdir()
        member = Member(name, settings, here, self.lan, self.air, self.receiver, self.watch.logger(name))
        member.models.faults.takes_s = self.rng.choice((0.002, 0.02, 0.3))
        member.watch = lambda mesh: self.watch.life(member, mesh)
        return member

    def _outcome(self) -> Outcome:
        return Outcome(
            digest=self.loop.digest(),
            gateways=len(self.members),
            lives=sum(member.lives for member in self.members),
            hostings=self.watch.hostings,
            windows=sum(record.lane is Lane.RESULT for record in self.receiver.kept.values()),
            by_peers=self.watch.by_peers,
            unanswered=self.watch.unanswered,
            resends=self.receiver.repeated,
            times=msgspec.convert(
                {name: round(took, 2) for name, took in msgspec.structs.asdict(self.watch.times).items()}, Times
            ),
            now_s=round(self.loop.time(), 3),
        )


def check(fleet: Fleet) -> None:
    """What was accepted is at the receiver, each exactly once; and nothing is left over."""
    fleet._fine()
    receiver = fleet.receiver
    _require(not receiver.same_content, f"{receiver.same_content} results were computed and committed twice")
    lost = [record for record in receiver.kept.values() if record.lane is Lane.GAP]
    _require(not lost, f"records were declared lost: {lost}")
    for member in fleet.members:
        found = Counter(result.outputs.get("score", -1.0) for result in results(receiver, member.name))
        wanted = Counter(float(number) for number in range(len(member.mailbox.posted)))
        _require(found == wanted, f"{member.name}: missing {wanted - found}, too many {found - wanted}")
    for member in fleet.members:
        mesh = member.gateway.mesh
        _require(mesh is not None and not mesh.asking.count, f"{member.name} waits for answers")
        _require(not member.broker.running, f"the broker of {member.name} runs on")
    left = [task.get_name() for task in fleet.loop.unfinished() if task is not asyncio.current_task()]
    _require(not [name for name in left if name not in HARNESS], f"tasks are left: {left}")


HARNESS = ("main", "looking", "posting")


def results(receiver: FakeReceiver, gateway: str) -> list[Result]:
    """Of this gateway, that have arrived."""
    bodies = [record.body for (name, *_), record in receiver.kept.items() if name == gateway and record.lane is Lane.RESULT]
    return [msgspec.json.decode(body, type=Result) for body in bodies]


def _require(holds: bool, message: str) -> None:
    if not holds:
        raise Broken(message)


def simulate(seed: int, folder: Path | None = None, *, log: bool = False) -> Outcome:
    """One seed, on a memory file system where there is one; nothing is left behind. Raises Broken, Deadlock, ..."""
    memory = Path("/dev/shm")
    with tempfile.TemporaryDirectory(prefix="edge-fleet-", dir=folder or (memory if memory.is_dir() else None)) as name:

        async def one() -> Outcome:
            return await Fleet(Path(name), log).run()

        return run(one, seed=seed)


if __name__ == "__main__":
    _seeds = [_each for _each in sys.argv[1:] if _each != "--log"]
    if not _seeds or not all(_each.isdecimal() for _each in _seeds):
        sys.exit("usage: python -m edge_runtime.testing.fleet SEED ... [--log]     (a seed is a whole number)")
    for _each in _seeds:
        print(_each, simulate(int(_each), log="--log" in sys.argv))
