"""Windows that are placed on virtual time: the real Placing, Asking, Peers and Link, and peers with faults behind a simulated
broker."""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import pytest
import structlog

from edge_runtime.bus import why
from edge_runtime.bus.frames import TASK_BYTES_MAX
from edge_runtime.config import Mesh
from edge_runtime.mesh import placing as subject
from edge_runtime.mesh.asking import Asking
from edge_runtime.mesh.link import Home, Link
from edge_runtime.mesh.peers import Peers
from edge_runtime.mesh.placing import Job, NotPlaced, Placed, Placing
from edge_runtime.mesh.routing import Reason
from edge_runtime.ports import Address, BrokerError, EdgeError
from edge_runtime.ports_mesh import Vitals
from edge_runtime.records import Inference, Privacy, Tensor
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.loop import VirtualLoop, run
from edge_runtime.testing.network import FakeBroker
from edge_runtime.testing.node import SeededDice, VirtualClock
from edge_runtime.testing.peer import FakePeer, Fault

HERE = -1.0
"""What the output `by` says of a window that was computed here."""
MS = 1_000_000


@dataclass
class Site:
    """Gateway `me` and its peers on one broker."""

    lan: Lan
    clock: VirtualClock
    loop: VirtualLoop
    here_s: float = 0.040
    broken: bool = False
    vitals: Vitals = field(default_factory=Vitals)
    computed: list[float] = field(default_factory=list)
    """When a window began to be computed here."""
    them: dict[str, FakePeer] = field(default_factory=dict)
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _tasks: list[asyncio.Task[Any]] = field(default_factory=list)

    async def begin(self) -> None:
        log = structlog.wrap_logger(None, processors=[_no_log])
        self.broker = FakeBroker(self.lan, "broker")
        self.peers = Peers("me", Mesh())
        self.link = Link("plant-1", "me", "me-1", log)
        self.asking = Asking(self.link, self.clock, log)
        dice = SeededDice(self.loop.rng("me"))
        self.placing = Placing("me", self.asking, self.peers, self.clock, dice, vitals=lambda: self.vitals)
        address = Address(host="broker")
        connection = await self.lan.bus(Fence("me")).connect(address)
        joined = asyncio.Event()

        async def join() -> None:
            joined.set()

        self.link.joined.append(join)
        self._tasks.append(asyncio.create_task(_until_lost(self.link.serve(connection, Home(address)))))
        await joined.wait()

    async def add(self, name: str, service_s: float = 0.003, *faults: Fault, **facts: Any) -> FakePeer:
        peer = FakePeer(
            name=name, clock=self.clock, number=len(self.them), service_s=service_s, faults=deque(faults), **facts
        )  # fmt: skip
        connection = await self.lan.bus(Fence(name)).connect(Address(host="broker"))
        await peer.be_born(connection)
        self._tasks.append(asyncio.create_task(_until_lost(peer.serve(connection))))
        self.them[name] = peer
        self.peers.on_birth(peer.birth(), retained=False, now_ns=self.clock.mono_ns())
        self.peers.listen_to([], self.clock.mono_ns())
        return peer

    def job(self, number: int = 1, **facts: Any) -> Job:
        data = bytes(80)
        return Job(**{
            "result_id": f"r{number}", "model": "wear@1", "tensor": Tensor("float64", (5, 2), data), "privacy": Privacy.SITE,
            "deadline_s": 2.0, "service_ns": round(self.here_s * 1e9), **facts,
        })  # fmt: skip

    async def here(self) -> Inference:
        async with self._turn:
            self.computed.append(self.loop.time())
            await asyncio.sleep(self.here_s)
        if self.broken:
            raise EdgeError("the engine here broke", "mend it")
        return Inference({"by": HERE}, "here:cpu", "here.bin")

    async def place(self, number: int = 1, *, able: bool = True, **facts: Any) -> Placed:
        return await self.placing.place(self.job(number, **facts), self.here if able else None)


async def _until_lost(serving: Awaitable[None]) -> None:
    with contextlib.suppress(BrokerError):
        await serving


def _no_log(*_: Any) -> Any:
    raise structlog.DropEvent


def simulate(scenario: Callable[[Site], Awaitable[None]], *, seed: int = 1, **facts: Any) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        site = Site(Lan(loop), VirtualClock(loop), loop, **facts)
        await site.begin()
        await scenario(site)

    run(main, seed=seed)


def by(placed: Placed) -> float:
    return placed.inference.outputs["by"]


def test_the_fast_peer_does_it_and_the_decision_says_why() -> None:
    async def scenario(site: Site) -> None:
        peer = await site.add("fast")
        placed = await site.place()
        assert by(placed) == 0.0
        assert placed.decision.text == "fast: peer is faster (est. 6 ms there, 40 ms here)"
        [task] = peer.tasks
        assert (task.id, task.model, task.privacy) == ("r1", "wear@1", Privacy.SITE)
        assert site.placing.reasons == {Reason.PEER_FASTER: 1}
        assert site.placing.outcomes == {"fast": {"asked": 1, "done": 1}}
        assert site.computed == []

    simulate(scenario)


def test_here_is_not_held_up_by_the_mesh() -> None:
    """It begins in the same instant: with peers, without, with a broker that is cut off."""

    async def scenario(site: Site) -> None:
        for number, prepare in enumerate((_nothing, lambda: site.add("slow", 0.2), lambda: site.add("late"))):
            await prepare()
            if number == 2:
                site.lan.cut("me")
            began = site.loop.time()
            placed = await site.place(number, privacy=Privacy.GATEWAY if number == 2 else Privacy.CLOUD)
            assert by(placed) == HERE
            assert site.computed[-1] == began
            assert site.loop.time() == pytest.approx(began + 0.040)

    simulate(scenario)


async def _nothing() -> None:
    return


def test_what_is_private_never_leaves() -> None:
    async def scenario(site: Site) -> None:
        peer = await site.add("fast")
        assert by(await site.place(privacy=Privacy.GATEWAY)) == HERE
        with pytest.raises(NotPlaced, match="it does not leave"):
            await site.place(2, able=False, privacy=Privacy.GATEWAY)
        site.broken = True
        with pytest.raises(EdgeError, match="the engine here broke"):
            await site.place(3, privacy=Privacy.GATEWAY)
        assert peer.tasks == []

    simulate(scenario)


@pytest.mark.parametrize("fault", ["hangs", "refuses", "refuses for ever", "fails", "answers nothing"])
def test_another_peer_gets_it_with_the_same_id_and_what_time_remains(fault: Fault) -> None:
    async def scenario(site: Site) -> None:
        first = await site.add("a", 0.003, fault, says_s=0.001)
        second = await site.add("b", 0.003)
        placed = await site.place()
        assert by(placed) == 1.0
        assert placed.decision.reason is Reason.REISSUED
        assert [task.id for task in first.tasks] == [task.id for task in second.tasks] == ["r1"]
        assert second.tasks[0].remaining_ns < 2_000 * MS
        assert site.loop.time() < 1.0
        assert site.computed == []
        kind = {"hangs": "unanswered", "refuses for ever": "refused", "answers nothing": "unanswered", "fails": "failed"}
        assert site.placing.outcomes["a"] == {"asked": 1, kind.get(fault, "refused"): 1}

    simulate(scenario)


def test_a_peer_that_dies_under_a_window_is_replaced_at_once() -> None:
    async def scenario(site: Site) -> None:
        await site.add("a", 10.0, "hangs", says_s=0.003)
        placing = asyncio.create_task(site.place())
        await site.them["a"].arrived.wait()
        died = site.loop.time()
        site.asking.gone("a")
        assert by(await placing) == HERE
        assert site.computed == [pytest.approx(died)]

    simulate(scenario)


def test_peers_that_hang_leave_time_for_here() -> None:
    """However many there are: it is computed here before its deadline, and only then."""

    async def scenario(site: Site) -> None:
        for name in "abcdefgh":
            await site.add(name, 0.003, "hangs")
        began = site.loop.time()
        placed = await site.place()
        assert by(placed) == HERE
        assert placed.decision.reason is Reason.FALLBACK
        assert site.loop.time() <= began + 2.001
        assert site.computed == [pytest.approx(began + 1.7)]

    simulate(scenario, here_s=0.3)


def test_a_slow_gateway_gives_its_peers_half_the_time() -> None:
    async def scenario(site: Site) -> None:
        await site.add("a", 0.5, "hangs")
        assert by(await site.place()) == HERE
        assert site.computed[0] == pytest.approx(1.0, abs=0.1)
        assert by(await site.place(2)) == 0.0

    simulate(scenario, here_s=5.0)


def test_nobody_can_and_it_says_so_by_the_deadline() -> None:
    async def scenario(site: Site) -> None:
        with pytest.raises(NotPlaced, match="wear@1: cannot be computed here, nor by a peer: no peers"):
            await site.place(able=False)
        for name in "abc":
            await site.add(name, 0.003, *["hangs"] * 9)
        began = site.loop.time()
        with pytest.raises(NotPlaced, match="asked") as caught:
            await site.place(2, able=False)
        assert "did not answer" in caught.value.hint
        assert site.loop.time() <= began + 2.0

    simulate(scenario)


def test_who_cannot_waits_for_a_peer_that_says_when() -> None:
    async def scenario(site: Site) -> None:
        peer = await site.add("a", 0.003, "refuses", "refuses", retry_s=0.5)
        assert by(await site.place(able=False)) == 0.0
        assert len(peer.tasks) == 3
        assert 1.0 <= site.loop.time() < 1.2
        peer.faults.extend(["refuses"] * 9)
        peer.retry_s, began = 0.8, site.loop.time()
        with pytest.raises(NotPlaced):
            await site.place(2, able=False)
        assert site.loop.time() < began + 2.0

    simulate(scenario)


def test_a_model_that_breaks_here_is_computed_by_a_peer() -> None:
    async def scenario(site: Site) -> None:
        await site.add("a", 0.2)
        site.broken = True
        assert by(await site.place()) == 0.0
        site.them["a"].faults.extend(["fails"])
        with pytest.raises(EdgeError, match="the engine here broke"):
            await site.place(2)

    simulate(scenario)


def test_a_second_answer_and_a_late_one_count_nothing() -> None:
    async def scenario(site: Site) -> None:
        await site.add("a", 0.003, "answers twice")
        for number in range(3):
            assert by(await site.place(number)) == 0.0
        await asyncio.sleep(1)
        assert site.placing.outcomes == {"a": {"asked": 3, "done": 3}}

    simulate(scenario)


def test_a_cancelled_caller_leaves_nothing_behind() -> None:
    async def scenario(site: Site) -> None:
        peer = await site.add("a", 0.5, says_s=0.001)
        placing = asyncio.create_task(site.place())
        await asyncio.sleep(0.1)
        placing.cancel()
        with pytest.raises(asyncio.CancelledError):
            await placing
        await asyncio.sleep(0.1)
        assert peer.cancelled == ["r1"]
        local = asyncio.create_task(site.place(2, privacy=Privacy.GATEWAY))
        await asyncio.sleep(0.01)
        assert site.placing.backlog() == (1, 40 * MS)
        local.cancel()
        await asyncio.sleep(0.01)
        assert site.placing.backlog() == (0, 0)

    simulate(scenario)


def test_two_share_a_load_that_is_too_much_for_one() -> None:
    """200 windows at once, both need 10 ms: nearly twice as fast as alone."""

    async def scenario(site: Site) -> None:
        peer = await site.add("equal", 0.010)
        began = site.loop.time()
        await asyncio.gather(*(site.place(number, deadline_s=60) for number in range(200)))
        taken_s = site.loop.time() - began
        assert len(peer.tasks) + len(site.computed) == 200
        assert 200 * 0.010 / taken_s >= 1.7

    simulate(scenario, here_s=0.010)


def test_too_large_stays_here() -> None:
    async def scenario(site: Site) -> None:
        peer = await site.add("fast")
        for shape in ((TASK_BYTES_MAX // 8, 1), (1,) * 9):
            size = 8 * shape[0] * shape[1]
            assert by(await site.place(tensor=Tensor("float64", shape, bytes(size)))) == HERE
        assert site.placing.reasons == {Reason.TOO_LARGE: 2}
        assert peer.tasks == []

    simulate(scenario)


def test_without_the_broker_nobody_is_asked() -> None:
    """Peers that were there a moment ago are not tried one after the other for each window."""

    async def scenario(site: Site) -> None:
        await site.add("fast")
        assert by(await site.place(1)) == 0.0
        site.broker.kill()
        await asyncio.sleep(0.5)
        assert [peer.name for peer in site.peers.peers()] == ["fast"]
        placed = await site.place(2)
        assert (by(placed), placed.decision.text) == (HERE, "here: no connection to the site's broker")
        assert site.placing.outcomes == {"fast": {"asked": 1, "done": 1}}

    simulate(scenario)


def test_on_battery_it_gives_its_work_away() -> None:
    async def scenario(site: Site) -> None:
        await site.add("slow", 0.2)
        assert by(await site.place(1)) == HERE
        site.vitals = Vitals(battery=True)
        assert by(await site.place(2)) == 0.0
        site.peers.on_load(site.them["slow"].load(hot=True), site.clock.mono_ns())
        assert by(await site.place(3)) == HERE
        assert site.placing.reasons[Reason.SPARED] == 1

    simulate(scenario)


def test_the_time_here_is_learned_and_measured_again() -> None:
    """The queue is not part of it; a time that was not measured for long is found out anew."""

    async def scenario(site: Site) -> None:
        await asyncio.gather(*(site.place(number, service_ns=0) for number in range(10)))
        assert site.placing.services()["wear@1"] == pytest.approx(40 * MS, rel=0.01)
        await site.add("fast")
        assert by(await site.place(20)) == 0.0
        await asyncio.sleep(31)
        site.here_s = 0.001
        assert (await site.place(21)).decision.reason is Reason.HERE_MEASURED
        assert site.placing.services()["wear@1"] == pytest.approx(1 * MS, rel=0.01)
        assert by(await site.place(22)) == HERE

    simulate(scenario)


def test_a_window_that_waited_for_a_broken_model_does_not_send_all_others_away_for_ever() -> None:
    async def scenario(site: Site) -> None:
        assert by(await site.place(1)) == HERE
        site.here_s = 60.0  # until the model is open again
        assert by(await site.place(2, service_ns=40 * MS)) == HERE
        site.here_s = 0.040
        await site.add("equal", 0.040)
        await asyncio.sleep(31)
        placed = [by(await site.place(number)) for number in range(3, 13)]
        assert placed == [HERE] * 10
        assert site.placing.services()["wear@1"] == pytest.approx(40 * MS, rel=0.01)

    simulate(scenario)


def test_a_peer_that_always_says_come_back_at_once_is_not_asked_at_once() -> None:
    """And what is remembered of it is bounded."""

    async def scenario(site: Site) -> None:
        peer = await site.add("busy", 0.003, *["refuses"] * 100_000, retry_s=1e-9)
        with pytest.raises(NotPlaced):
            await site.place(able=False)
        assert 10 < len(peer.tasks) <= 200
        told = site.placing.explain("r1")
        assert told is not None
        assert len(told.steps) == subject.STEPS_MAX
        assert len(why.pack(told)) <= why.WHY_BYTES_MAX

    simulate(scenario)


def test_a_peer_whose_time_nobody_knows_is_found_out() -> None:
    async def scenario(site: Site) -> None:
        peer = await site.add("fast", 0.003, says_s=0.0)
        for number in range(200):
            await site.place(number)
        assert site.placing.reasons[Reason.EXPLORED] == 1
        assert len(peer.tasks) > 50

    simulate(scenario)


def test_every_decision_can_be_explained() -> None:
    async def scenario(site: Site) -> None:
        await site.add("a", 0.003, "fails", says_s=0.001)
        await site.add("b")
        await site.place()
        told = site.placing.explain("r1")
        assert told is not None
        assert why.unpack(why.pack(told), why.Explanation) == told
        first, second = told.steps
        assert (first.where, first.reason, first.outcome) == ("a", "peer is faster", "failed: the engine broke")
        assert (second.where, second.reason, second.outcome) == ("b", "another peer did not do it", "done")
        assert first.here_ns == 40 * MS
        assert [each.peer for each in second.compared] == ["b"]
        assert site.placing.explain("r2") is None

    simulate(scenario)


def test_the_newest_decisions_are_remembered(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(subject, "TOLD_MAX", 100)

    async def scenario(site: Site) -> None:
        for number in range(250):
            await site.place(number)
        remembered = [number for number in range(250) if site.placing.explain(f"r{number}")]
        assert remembered == list(range(150, 250))

    simulate(scenario, here_s=0.0)
