"""Tasks on virtual time: the real Asking, Answering and Link over a simulated broker, an executor with planned faults, and a peer
that says whatever the test wants."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from dataclasses import dataclass, field
from typing import Any

import msgspec
import pytest
import structlog

from edge_runtime.bus import frames
from edge_runtime.bus.frames import Cancel, Reply, Task, Verdict
from edge_runtime.config import Mesh
from edge_runtime.mesh import answering as answering_module
from edge_runtime.mesh import asking as asking_module
from edge_runtime.mesh.admission import FAIR_EVERY, Outcome
from edge_runtime.mesh.answering import Answering
from edge_runtime.mesh.asking import Asking, Dropped, Unanswered, Why
from edge_runtime.mesh.link import Home, Link
from edge_runtime.mesh.standing import FAILURES_MAX, PROBE_NS_MIN
from edge_runtime.ports import Address, Connection
from edge_runtime.records import Inference, Privacy, Tensor
from edge_runtime.testing.connection import FakeConnection
from edge_runtime.testing.executor import FakeExecutor
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.loop import VirtualLoop, run
from edge_runtime.testing.network import FakeBroker
from edge_runtime.testing.node import VirtualClock

MS = 1_000_000
QUICK, SLOW = "quick@1", "slow@1"
ADDRESS = Address(host="broker", keepalive_s=2)


def window(mark: int = 1, size: int = 9) -> Tensor:
    return Tensor("uint8", (size,), bytes([mark]) * size)


def _no_log(*_: Any) -> Any:
    raise structlog.DropEvent


@dataclass
class Site:
    """`me` asks, `w` answers; `wire` is a bare connection for everything else."""

    lan: Lan
    loop: VirtualLoop
    clock: VirtualClock
    tasks: list[asyncio.Task[Any]] = field(default_factory=list)
    connections: dict[str, Connection] = field(default_factory=dict)

    async def begin(self, settings: Mesh, slots: int) -> None:
        log = structlog.wrap_logger(None, processors=[_no_log])
        self.broker = FakeBroker(self.lan, "broker")
        self.executor = FakeExecutor({QUICK: 0.0, SLOW: 0.100})
        self.me, self.w = Link("s", "me", "me-1", log), Link("s", "w", "w-1", log)
        self.asking = Asking(self.me, self.clock, log)
        self.outside = False
        self.answering = Answering(self.w, self.executor, settings, self.clock, log, slots=slots, outside=lambda: self.outside)
        self.start(self.answering.run())
        await self.connect(self.me)
        await self.connect(self.w)
        self.wire = await self.lan.bus(Fence("wire")).connect(ADDRESS)

    def start(self, coroutine: Any) -> asyncio.Task[Any]:
        self.tasks.append(asyncio.create_task(coroutine))
        return self.tasks[-1]

    async def connect(self, link: Link) -> None:
        joined = asyncio.Event()

        async def join() -> None:
            joined.set()

        link.joined[:] = [join]
        connection = await self.lan.bus(Fence(link.gateway)).connect(ADDRESS)
        self.connections[link.gateway] = connection

        async def serve() -> None:
            with pytest.raises(Exception, match=r"closed|broke|answer"):
                await link.serve(connection, Home(ADDRESS))

        self.start(serve())
        await joined.wait()

    async def ask(self, model: str = QUICK, *, within_s: float = 2.0, peer: str = "w", **more: Any) -> Reply:
        tensor = more.pop("tensor", window())
        return await self.asking.ask(peer, model, tensor, deadline_ns=self.clock.mono_ns() + round(within_s * 1e9), **more)

    async def tell(self, topic: str, payload: bytes, **more: Any) -> None:
        await self.wire.publish(f"edge/s/gw/{topic}", payload, **more)
        await asyncio.sleep(0.05)

    async def hear(self, topic: str) -> list[Any]:
        """Frames that come on a topic, from now on."""
        connection, heard = await self.lan.bus(Fence("ear")).connect(ADDRESS), []
        await connection.subscribe(f"edge/s/gw/{topic}")

        async def listen() -> None:
            while True:
                heard.append(frames.unpack((await connection.receive()).payload))

        self.start(listen())
        return heard


def simulate(scenario: Callable[[Site], Awaitable[None]], *, settings: Mesh | None = None, slots: int = 1) -> None:
    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        site = Site(Lan(loop), loop, VirtualClock(loop))
        await site.begin(settings or Mesh(), slots)
        await scenario(site)
        assert site.answering.queue.count == 0 or site.executor.running
        assert site.asking.count == 0
        for task in site.tasks:
            task.cancel()
        await asyncio.wait(site.tasks)

    run(main, seed=1)


async def refused(ask: Awaitable[Reply]) -> Why:
    with pytest.raises(Unanswered) as caught:
        await ask
    return caught.value.why


def task(name: str, *, instance: str = "p-1", model: str = QUICK, **facts: Any) -> Task:
    more = {"remaining_ns": 2_000 * MS, "tensor": window(), **facts}
    return Task(id=name, instance=instance, model=model, **more)


def done(name: str, instance: str = "me-1", **facts: Any) -> Reply:
    return Reply(id=name, instance=instance, verdict=Verdict.DONE, inference=Inference({"e": 1.0}, "cpu", ""), **facts)


# --- request and reply ---


def test_a_window_goes_there_and_its_inference_comes_back() -> None:
    async def scenario(site: Site) -> None:
        reply = await site.ask(tensor=window(2, 3))
        assert reply.inference is not None
        assert (reply.verdict, reply.inference.outputs) == (Verdict.DONE, {"sum": 6.0})
        slow = await site.ask(SLOW)
        assert 100 * MS <= slow.service_ns < 101 * MS
        assert site.asking.service_ns("w", SLOW) == slow.service_ns
        assert 0 < site.asking.link_ns("w") < 30 * MS
        assert site.asking.verdicts == {Verdict.DONE: 2}
        assert site.answering.counts == {Outcome.DONE: 2}
        assert site.asking.round_trip_p50_ns() > 50 * MS

    simulate(scenario)


def test_a_window_that_cannot_be_computed_is_answered_and_may_be_tried_again() -> None:
    async def scenario(site: Site) -> None:
        site.executor.fail = "poison" * 1_000
        reply = await site.ask(task_id="t")
        assert (reply.verdict, reply.inference, reply.hint) == (Verdict.FAILED, None, "this is a test")
        assert reply.cause.startswith("poison")
        site.executor.fail = ""
        assert (await site.ask(task_id="t")).verdict is Verdict.DONE

    simulate(scenario)


def test_more_outputs_than_travel() -> None:
    async def scenario(site: Site) -> None:
        site.executor.outputs = 20_000
        reply = await site.ask()
        assert (reply.verdict, reply.inference) == (Verdict.FAILED, None)
        assert "64" in reply.cause or "65536" in reply.cause

    simulate(scenario)


@pytest.mark.parametrize(("slots", "seconds"), [(1, 0.4), (2, 0.2)])
def test_so_many_at_once(slots: int, seconds: float) -> None:
    async def scenario(site: Site) -> None:
        begin = site.loop.time()
        await asyncio.gather(*(site.ask(SLOW) for _ in range(4)))
        assert site.executor.running_max == slots
        assert site.loop.time() - begin == pytest.approx(seconds, abs=0.03)

    simulate(scenario, slots=slots)


def test_priority_then_deadline() -> None:
    async def scenario(site: Site) -> None:
        marks = {1: {}, 2: {"within_s": 1.9}, 3: {"priority": 9}, 4: {"within_s": 1.5}}
        asks = []
        for mark, facts in marks.items():
            asks.append(site.start(site.ask(SLOW, tensor=window(mark), **facts)))
            await asyncio.sleep(0.015)
        await asyncio.gather(*asks)
        assert site.executor.marks == [1, 3, 4, 2]

    simulate(scenario)


# --- how an ask ends without an answer ---


def test_by_the_deadline_and_then_the_peer_is_told() -> None:
    async def scenario(site: Site) -> None:
        site.executor.stuck = True
        heard = await site.hear("w/task/me")
        begin = site.loop.time()
        asks = [site.start(refused(site.ask(SLOW, within_s=0.5))) for _ in range(2)]
        assert await asyncio.gather(*asks) == [Why.DEADLINE] * 2
        assert site.loop.time() - begin == pytest.approx(0.5, abs=0.001)
        await asyncio.sleep(0.05)
        assert [type(each) for each in heard] == [Task, Task, Cancel, Cancel]
        assert site.answering.counts[Outcome.CANCELLED] == 2
        assert site.answering.backlog()[0] == 1  # the stuck one
        assert site.asking.unanswered == {Why.DEADLINE: 2}
        site.executor.release()
        await asyncio.sleep(0.5)
        assert site.answering.backlog() == (0, 0)
        assert site.asking.dropped == {}  # nobody sends what nobody wants

    simulate(scenario)


def test_at_once_when_the_peer_is_gone() -> None:
    async def scenario(site: Site) -> None:
        site.executor.stuck = True
        asks = [site.start(refused(site.ask(SLOW))) for _ in range(3)]
        other = site.start(refused(site.ask(peer="x", within_s=0.5)))
        await asyncio.sleep(0.1)
        begin = site.loop.time()
        site.asking.gone("w")
        assert await asyncio.gather(*asks) == [Why.GONE] * 3
        assert site.loop.time() == begin
        assert await other is Why.DEADLINE
        assert site.asking.breaker("w") == "closed"
        site.executor.release()
        await asyncio.sleep(0.5)
        assert site.asking.dropped[Dropped.LATE] >= 1

    simulate(scenario)


def test_at_once_when_the_connection_is_lost_and_without_one_nothing_is_sent() -> None:
    async def scenario(site: Site) -> None:
        site.executor.stuck = True
        ask = site.start(refused(site.ask(SLOW)))
        await asyncio.sleep(0.1)
        connection = site.connections["me"]
        assert isinstance(connection, FakeConnection)
        begin = site.loop.time()
        site.lan.sever(connection)
        assert await ask is Why.LOST
        assert site.loop.time() - begin < 0.05
        assert await refused(site.ask()) is Why.LOST
        site.executor.release()
        await site.connect(site.me)
        assert (await site.ask()).verdict is Verdict.DONE

    simulate(scenario)


def test_who_is_cancelled_tells_the_peer() -> None:
    async def scenario(site: Site) -> None:
        site.start(site.ask(SLOW))
        waits = site.start(site.ask(SLOW, task_id="waits"))
        await asyncio.sleep(0.05)
        assert site.answering.backlog()[0] == 2
        waits.cancel()
        await asyncio.sleep(0.02)
        assert site.answering.backlog()[0] == 1
        assert site.answering.counts[Outcome.CANCELLED] == 1
        assert site.asking.count == 1
        await asyncio.sleep(0.5)
        assert site.executor.computed == [SLOW]

    simulate(scenario)


def test_what_never_leaves_and_what_cannot_travel() -> None:
    async def scenario(site: Site) -> None:
        heard = await site.hear("+/task/+")
        assert await refused(site.ask(privacy=Privacy.GATEWAY)) is Why.UNFIT
        assert await refused(site.ask(tensor=window(1, frames.TASK_BYTES_MAX))) is Why.UNFIT
        assert await refused(site.ask(within_s=-1)) is Why.DEADLINE
        await asyncio.sleep(0.1)
        assert heard == []
        assert site.asking.unanswered == {Why.UNFIT: 2, Why.DEADLINE: 1}
        assert site.asking.breaker("w") == "closed"

    simulate(scenario)


def test_so_many_are_under_way_and_no_more() -> None:
    async def scenario(site: Site) -> None:
        peers = [f"x{number}" for number in range(20)]
        asks = [site.start(refused(site.ask(peer=peer, within_s=1))) for peer in peers for _ in range(200)]
        await asyncio.sleep(0.5)
        assert site.asking.count == asking_module.TASKS_MAX
        assert max(site.asking.under_way(peer) for peer in peers) == asking_module.TASKS_PEER_MAX
        whys = await asyncio.gather(*asks)
        assert whys.count(Why.DEADLINE) == asking_module.TASKS_MAX
        assert whys.count(Why.FULL) == 4_000 - asking_module.TASKS_MAX

    simulate(scenario)


def test_one_task_is_under_way_at_one_peer_once() -> None:
    async def scenario(site: Site) -> None:
        first = site.start(site.ask(SLOW, task_id="t"))
        await asyncio.sleep(0.01)
        assert await refused(site.ask(SLOW, task_id="t")) is Why.TWICE
        assert (await first).verdict is Verdict.DONE

    simulate(scenario)


# --- an answer is accepted once, from whom it was asked ---


def test_answers_that_nobody_asked_for_are_dropped_and_counted() -> None:
    async def scenario(site: Site) -> None:
        ask = site.start(site.ask(peer="x", task_id="t"))
        await asyncio.sleep(0.05)
        await site.tell("me/reply/evil", frames.pack(done("t")))
        await site.tell("me/reply/x", frames.pack(done("t", instance="me-0")))
        await site.tell("me/reply/x", frames.pack(done("other")))
        assert not ask.done()
        await site.tell("me/reply/x", frames.pack(done("t", cause="the first")))
        await site.tell("me/reply/x", frames.pack(done("t", cause="the second")))
        assert site.asking.count == 0
        assert (await ask).cause == "the first"
        assert site.asking.dropped == {Dropped.FOREIGN: 1, Dropped.STALE: 1, Dropped.LATE: 2}

    simulate(scenario)


def test_whoever_computed_it() -> None:
    """It is sent again to another peer; the first one's answer comes late."""

    async def scenario(site: Site) -> None:
        assert await refused(site.ask(peer="x", task_id="t", within_s=0.1)) is Why.DEADLINE
        assert (await site.ask(task_id="t")).verdict is Verdict.DONE
        await site.tell("me/reply/x", frames.pack(done("t")))
        assert site.asking.dropped == {Dropped.LATE: 1}

    simulate(scenario)


@pytest.mark.parametrize(
    ("answer", "ends"),
    [
        (b"", False),
        (b"ET1R" + b"\xff" * 50, False),
        (frames.pack(done("t"))[:-3], False),
        (frames.pack(Task(id="t", instance="me-1", model="m", remaining_ns=1, tensor=window())), False),
        (frames.pack(done("t")) + b"x", True),
        (frames.pack(done("t")).replace(b"done", b"gone"), True),
        (frames.pack(msgspec.structs.replace(done("t"), inference=Inference({"e": float("nan")}, "", ""))), True),
    ],
)
def test_a_peer_that_answers_garbage(answer: bytes, ends: bool) -> None:
    async def scenario(site: Site) -> None:
        ask = site.start(refused(site.ask(peer="x", task_id="t", within_s=0.5)))
        await asyncio.sleep(0.05)
        await site.tell("me/reply/x", answer)
        assert ask.done() == ends
        assert await ask is (Why.GARBAGE if ends else Why.DEADLINE)
        assert site.asking.dropped == {Dropped.GARBAGE: 1}
        assert site.asking._standings["x"].breaker.failures == (1 if ends else 2)
        assert site.me.bad == {"x": 1}
        assert (await site.ask()).verdict is Verdict.DONE

    simulate(scenario)


def test_garbage_from_another_ends_nobodys_task() -> None:
    async def scenario(site: Site) -> None:
        ask = site.start(site.ask(SLOW, task_id="t"))
        await asyncio.sleep(0.02)
        for _ in range(10 * FAILURES_MAX):
            await site.wire.publish("edge/s/gw/me/reply/evil", frames.pack(done("t")) + b"x")
        assert (await ask).verdict is Verdict.DONE
        assert [*site.asking._standings] == ["w"]  # who was never asked takes nobody's place
        assert site.asking.breaker("w") == "closed"

    simulate(scenario)


def test_the_breaker_of_a_peer_that_never_answers() -> None:
    async def scenario(site: Site) -> None:
        for _ in range(FAILURES_MAX):
            assert await refused(site.ask(peer="x", within_s=0.1)) is Why.DEADLINE
        assert site.asking.breaker("x") == "open"
        assert await refused(site.ask(peer="x")) is Why.BREAKER
        assert (await site.ask()).verdict is Verdict.DONE
        await asyncio.sleep(PROBE_NS_MIN / 1e9)
        assert site.asking.breaker("x") == "half-open"
        probe = site.start(site.ask(peer="x", task_id="probe"))
        await asyncio.sleep(0.05)
        assert await refused(site.ask(peer="x")) is Why.BREAKER
        await site.tell("me/reply/x", frames.pack(done("probe")))
        assert (await probe).verdict is Verdict.DONE
        assert site.asking.breaker("x") == "closed"

    simulate(scenario)


def test_refused_is_an_answer_and_failed_is_a_failure() -> None:
    async def scenario(site: Site) -> None:
        for _ in range(2 * FAILURES_MAX):
            assert (await site.ask("unknown@1")).verdict is Verdict.REFUSED
        assert site.asking.breaker("w") == "closed"
        site.executor.fail = "always"
        for _ in range(FAILURES_MAX):
            assert (await site.ask()).verdict is Verdict.FAILED
        assert site.asking.breaker("w") == "open"

    simulate(scenario)


def test_what_is_known_of_peers_is_bounded() -> None:
    async def scenario(site: Site) -> None:
        for number in range(asking_module.PEERS_MAX + 50):
            await refused(site.ask(peer=f"x{number}", within_s=0.001))
        assert len(site.asking._standings) == asking_module.PEERS_MAX

    simulate(scenario)


# --- what is refused, repeated, malformed ---


@pytest.mark.parametrize(
    ("facts", "outcome", "again"),
    [
        ({"privacy": Privacy.GATEWAY}, Outcome.PRIVACY, False),
        ({"model": "unknown@1"}, Outcome.MODEL, False),
        ({"remaining_ns": 0}, Outcome.EXPIRED, False),
        ({"model": SLOW, "remaining_ns": 99 * MS}, Outcome.LATE, False),
    ],
)
def test_refused_with_the_reason(facts: dict[str, Any], outcome: Outcome, again: bool) -> None:
    async def scenario(site: Site) -> None:
        heard = await site.hear("p/reply/w")
        await site.tell("w/task/p", frames.pack(task("t", **facts)))
        [reply] = heard
        assert (reply.id, reply.instance, reply.verdict, bool(reply.retry_ns)) == ("t", "p-1", Verdict.REFUSED, again)
        assert reply.cause
        assert site.answering.counts == {outcome: 1}
        assert site.executor.computed == []

    simulate(scenario)


def test_a_gateway_that_takes_no_tasks_says_so() -> None:
    async def scenario(site: Site) -> None:
        reply = await site.ask()
        assert (reply.verdict, reply.hint) == (Verdict.REFUSED, "mesh.accept_tasks is false")
        assert site.answering.counts == {Outcome.CLOSED: 1}

    simulate(scenario, settings=Mesh(accept_tasks=False))


@pytest.mark.parametrize(
    ("payload", "outcome", "answered"),
    [
        (b"", Outcome.MALFORMED, False),
        (b"\x00" * 1_000, Outcome.MALFORMED, False),
        (frames.pack(done("t")), Outcome.MALFORMED, False),
        (frames.pack(task("t")).replace(b"uint8", b"uint9"), Outcome.MALFORMED, True),
        (frames.pack(task("t")) + bytes(frames.TASK_BYTES_MAX), Outcome.OVERSIZED, True),
    ],
)
def test_malformed_and_oversized_are_counted_and_answered_where_it_is_known_whose_it_is(
    payload: bytes, outcome: Outcome, answered: bool
) -> None:
    async def scenario(site: Site) -> None:
        heard = await site.hear("p/reply/w")
        await site.tell("w/task/p", payload)
        assert [(reply.id, reply.verdict) for reply in heard] == [("t", Verdict.REFUSED)] * answered
        assert site.answering.counts == {outcome: 1}
        assert site.w.bad == {"p": 1}
        assert (await site.ask()).verdict is Verdict.DONE

    simulate(scenario)


def test_a_retained_task_is_none() -> None:
    async def scenario(site: Site) -> None:
        await site.tell("w/task/p", frames.pack(task("t")), retain=True)
        assert site.executor.computed == [QUICK]  # to who is connected it comes as any other
        connection = site.connections["w"]
        assert isinstance(connection, FakeConnection)
        site.lan.sever(connection)
        await asyncio.sleep(0.1)
        await site.connect(site.w)
        await asyncio.sleep(0.1)
        assert site.executor.computed == [QUICK]
        assert site.answering.counts == {Outcome.DONE: 1, Outcome.MALFORMED: 1}

    simulate(scenario)


def test_a_repeated_task_joins_or_gets_the_answer_again() -> None:
    async def scenario(site: Site) -> None:
        heard = await site.hear("p/reply/w")
        frame = frames.pack(task("t", model=SLOW))
        for _ in range(3):
            await site.wire.publish("edge/s/gw/w/task/p", frame)
        await asyncio.sleep(0.3)
        assert len(heard) == 1
        for _ in range(2):
            await site.tell("w/task/p", frame)
        assert heard == [heard[0]] * 3
        assert site.executor.computed == [SLOW]
        assert site.answering.counts == {Outcome.DONE: 1, Outcome.JOINED: 2, Outcome.REPEATED: 2}
        await site.tell("w/task/p", frames.pack(task("t", instance="p-2")))
        await site.tell("w/task/q", frames.pack(task("t")))
        assert site.executor.computed == [SLOW, QUICK, QUICK]  # of another life, of another peer: other tasks

    simulate(scenario)


def test_a_refused_task_is_no_answer_to_keep() -> None:
    async def scenario(site: Site) -> None:
        assert (await site.ask(SLOW, task_id="t", within_s=0.05)).verdict is Verdict.REFUSED
        assert (await site.ask(SLOW, task_id="t")).verdict is Verdict.DONE

    simulate(scenario)


def test_a_cancelled_task_that_comes_again_is_wanted() -> None:
    async def scenario(site: Site) -> None:
        heard = await site.hear("p/reply/w")
        frame = frames.pack(task("t", model=SLOW))
        for payload in (frame, frames.pack(Cancel(id="t", instance="p-1")), frame):
            await site.wire.publish("edge/s/gw/w/task/p", payload)
        await asyncio.sleep(0.3)
        assert [reply.verdict for reply in heard] == [Verdict.DONE]
        await site.tell("w/task/p", frames.pack(Cancel(id="nobody", instance="p-1")))

    simulate(scenario)


def test_a_flood_leaves_places_and_turns_to_others() -> None:
    async def scenario(site: Site) -> None:
        async def flood() -> None:
            for number in range(100_000):
                frame = frames.pack(task(f"f{number}", model=SLOW, priority=9, remaining_ns=3_000_000 * MS))
                await site.wire.publish("edge/s/gw/w/task/p", frame)
                await asyncio.sleep(0.002)

        flooding = site.start(flood())
        await asyncio.sleep(2)
        assert site.answering.queue.count == Mesh().tasks_waiting_max // 2
        begin = site.loop.time()
        reply = await site.ask(SLOW, within_s=5, priority=0)
        assert reply.verdict is Verdict.DONE
        assert site.loop.time() - begin < (2 * FAIR_EVERY + 2) * 0.100
        flooding.cancel()
        assert site.answering.counts[Outcome.SHARE] > 100
        site.executor.takes_s[SLOW] = 0
        await asyncio.sleep(1)

    simulate(scenario)


def test_a_task_whose_time_ran_out_while_it_waited_is_refused_and_not_computed() -> None:
    async def scenario(site: Site) -> None:
        site.executor.takes_s[QUICK] = 0.3
        site.executor.takes_s["unknown-time@1"] = 0.1
        site.executor.known = False
        heard = await site.hear("p/reply/w")
        for name in ("first", "second"):
            frame = frames.pack(task(name, model="unknown-time@1", remaining_ns=90 * MS))
            await site.wire.publish("edge/s/gw/w/task/p", frame)
        await asyncio.sleep(0.5)
        assert [(reply.id, reply.verdict) for reply in heard] == [("first", Verdict.DONE), ("second", Verdict.REFUSED)]
        assert site.answering.counts == {Outcome.DONE: 1, Outcome.EXPIRED: 1}
        assert site.executor.computed == ["unknown-time@1"]

    simulate(scenario)


def test_places_of_tasks_that_nobody_wants_any_more_are_free() -> None:
    async def scenario(site: Site) -> None:
        site.executor.stuck, site.executor.known = True, False
        for number in range(3):
            await site.tell("w/task/p", frames.pack(task(f"t{number}", remaining_ns=200 * MS)))
        await asyncio.sleep(0.3)
        await site.tell("w/task/p", frames.pack(task("late", remaining_ns=5_000 * MS)))
        assert site.answering.counts[Outcome.EXPIRED] == 1
        assert [each.task.id for each in site.answering.queue] == ["late"]
        site.executor.release()
        await asyncio.sleep(0.1)

    simulate(scenario, settings=Mesh(tasks_waiting_max=2))


def test_a_stuck_executor_fills_up_and_then_says_no() -> None:
    async def scenario(site: Site) -> None:
        site.executor.stuck = True
        heard = await site.hear("+/reply/w")
        for number in range(200):
            frame = frames.pack(task(f"t{number}", remaining_ns=500 * MS))
            await site.wire.publish(f"edge/s/gw/w/task/p{number % 10}", frame)
            await asyncio.sleep(0.02)
        queue = site.answering.queue
        assert queue.count <= queue.waiting_max
        assert {reply.verdict for reply in heard} == {Verdict.REFUSED}
        assert site.answering.counts[Outcome.LATE] > 50  # nobody believes that it is about to be free
        assert len(heard) > 150
        site.executor.release()
        await asyncio.sleep(1)
        assert site.answering.backlog() == (0, 0)
        assert len(site.answering.kept) <= 200

    simulate(scenario)


def test_refusals_that_cannot_be_sent_are_counted_and_bounded() -> None:
    async def scenario(site: Site) -> None:
        connection = site.connections["w"]
        assert isinstance(connection, FakeConnection)
        for number in range(3 * answering_module.REFUSALS_MAX):
            site.answering._refuse("p", f"t{number}", "p-1", "no", "")
        assert len(site.answering._refusals) == answering_module.REFUSALS_MAX
        assert site.answering.counts[Outcome.UNSENT] == 2 * answering_module.REFUSALS_MAX
        await asyncio.sleep(0.1)
        site.lan.sever(connection)
        await asyncio.sleep(0.1)
        site.answering._refuse("p", "t", "p-1", "no", "")
        await asyncio.sleep(0.1)
        assert site.answering.counts[Outcome.UNSENT] == 2 * answering_module.REFUSALS_MAX + 1

    simulate(scenario)


# --- the name, and the time that a window takes ---


def test_who_stands_outside_takes_no_task_of_the_name_that_another_has_and_says_nothing_in_it() -> None:
    async def scenario(site: Site) -> None:
        heard = await site.hear("me/reply/w")
        running = site.start(refused(site.ask(SLOW, within_s=1.0)))
        await asyncio.sleep(0.05)
        site.outside = True
        assert await refused(site.ask(within_s=0.5)) is Why.DEADLINE
        await site.tell("w/task/me", b"garbage")
        assert await running is Why.DEADLINE
        assert heard == []
        assert site.executor.computed == [SLOW]
        counts = site.answering.counts
        assert (counts[Outcome.OUTSIDE], counts[Outcome.UNSENT]) == (3, 1)  # a task, its cancel, garbage
        site.outside = False
        assert (await site.ask()).verdict is Verdict.DONE

    simulate(scenario)


def test_what_is_offered_tells_the_time_that_windows_take_now() -> None:
    """Not only the one that was measured when the model was opened: the machine may have other things to do since."""

    async def scenario(site: Site) -> None:
        def offered() -> int:
            return next(offer.service_ns for offer in site.answering.offers() if offer.model == SLOW)

        known = site.executor.offers
        site.executor.offers = lambda: [msgspec.structs.replace(each, service_ns=1 * MS) for each in known()]  # type: ignore[method-assign]
        assert offered() == 1 * MS
        await site.ask(SLOW)
        assert offered() == pytest.approx(100 * MS, rel=0.01)
        await asyncio.sleep(31)  # or nobody would ask again, and it would never be found out that the machine is free
        assert offered() == 1 * MS

    simulate(scenario)
