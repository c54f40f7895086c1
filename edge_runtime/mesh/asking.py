"""Windows that are sent to peers as tasks (runs).

    asking = Asking(link, clock, log)
    reply = await asking.ask("gateway-2", "shuttle-anomaly@1", tensor, deadline_ns=..., task_id=result_id)

Exactly one of these happens to an `ask`, by its deadline: a Reply (done, refused or failed: the caller decides what follows), or
Unanswered. An answer is accepted once, from the peer that was asked, for a task of this life of ours; every other is dropped and
counted. Who stops waiting (cancelled, or out of time) tells the peer.
"""

from __future__ import annotations

import asyncio
import itertools
import statistics
from collections import Counter, deque
from dataclasses import dataclass
from enum import StrEnum
from typing import Any

from edge_runtime import trail
from edge_runtime.bus import frames
from edge_runtime.bus.frames import BadFrame, Cancel, Reply, Task, Verdict
from edge_runtime.mesh.link import Link
from edge_runtime.mesh.routing import ms
from edge_runtime.mesh.standing import Standing, State
from edge_runtime.ports import BrokerError, Clock, EdgeError, Message
from edge_runtime.records import Privacy, Tensor

TASKS_MAX = 1_000
"""Under way, in all."""
TASKS_PEER_MAX = 100
"""Under way at one peer."""
PEERS_MAX = 1_000
"""That we know something of; who was asked first is forgotten first."""
CANCELS_MAX = 100
"""That wait for the link; more are not sent: the deadline ends those tasks, too."""
ROUND_TRIPS_MAX = 256


class Why(StrEnum):
    """There is no answer. A counter each."""

    DEADLINE = "deadline"
    GONE = "peer is gone"
    LOST = "connection lost"
    GARBAGE = "garbage"
    """The peer answered, and what it said makes no sense."""
    BREAKER = "breaker"
    """Not sent: the peer fails all the time."""
    FULL = "too many under way"
    """Not sent."""
    TWICE = "asked already"
    """Not sent: this task is under way at this peer."""
    UNFIT = "cannot travel"
    """Not sent: too large, or its privacy is `gateway`."""


class Dropped(StrEnum):
    """Answers that were not accepted. A counter each."""

    LATE = "late"
    """Nobody waits for it (any more): a second one, one after the deadline, a forged one."""
    FOREIGN = "foreign"
    """From another peer than the one that was asked."""
    STALE = "stale"
    """For an earlier life of ours."""
    GARBAGE = "garbage"


class Unanswered(EdgeError):
    """No answer, and why."""

    def __init__(self, why: Why, cause: str, hint: str = "") -> None:
        super().__init__(cause, hint)
        self.why = why


@dataclass(slots=True, eq=False)
class _Asked:
    peer: str
    id: str
    model: str
    sent_ns: int
    answer: asyncio.Future[Reply]


class Asking:
    """See the module's text."""

    def __init__(self, link: Link, clock: Clock, log: Any) -> None:
        self.verdicts: Counter[Verdict] = Counter()
        self.unanswered: Counter[Why] = Counter()
        self.dropped: Counter[Dropped] = Counter()
        self.count = 0
        """Under way."""
        self._link, self._clock, self._log = link, clock, log
        self._asked: dict[str, dict[str, _Asked]] = {}
        """Under way: peer -> task id."""
        self._standings: dict[str, Standing] = {}
        self._round_trips: deque[int] = deque(maxlen=ROUND_TRIPS_MAX)
        self._cancels: dict[int, asyncio.Task[None]] = {}
        self._serials = itertools.count(1)
        link.on("reply", self._arrived)
        link.left.append(self._lost)

    async def ask(
        self,
        peer: str,
        model: str,
        tensor: Tensor,
        *,
        deadline_ns: int,
        priority: int = 5,
        privacy: Privacy = Privacy.SITE,
        task_id: str = "",
    ) -> Reply:
        """`deadline_ns`: of the monotonic clock. `task_id`: the same when a task is sent again; "": a new one.
        Raises Unanswered."""
        task = Task(
            id=task_id or f"task-{next(self._serials)}",
            instance=self._link.instance,
            model=model,
            remaining_ns=max(0, deadline_ns - self._clock.mono_ns()),
            priority=priority,
            privacy=privacy,
            tensor=tensor,
        )
        frame = self._frame(task)
        asked = self._enter(peer, task)
        try:
            async with asyncio.timeout(task.remaining_ns / 1e9) as limit:
                await self._link.tell(peer, "task", frame)
                return await asked.answer
        except TimeoutError:
            if not limit.expired():
                raise
            self._cancel(asked)
            self._failed(peer)
            raise self._no(Why.DEADLINE, f"{peer} did not answer within {ms(task.remaining_ns)}") from None
        except BrokerError as error:
            raise self._no(Why.LOST, error.cause, error.hint) from None
        except asyncio.CancelledError:
            self._cancel(asked)
            raise
        finally:
            self._leave(asked)

    def gone(self, peer: str) -> None:
        """It died: nobody waits for it any more. What it was like says nothing about its next life."""
        self._fail_all(peer, Why.GONE, f"{peer} is gone")
        self._standings.pop(peer, None)

    @property
    def connected(self) -> bool:
        """To the site's broker: else nobody can be asked."""
        return self._link.connected

    def breaker(self, peer: str) -> State:
        """closed: it may be asked. half-open: with one task, to find out. open: not now."""
        standing = self._standings.get(peer)
        return standing.breaker.state(self._clock.mono_ns()) if standing else "closed"

    def link_ns(self, peer: str) -> int:
        """There and back, without what the task took: smoothed. 0: not yet known."""
        standing = self._standings.get(peer)
        return standing.link_ns if standing else 0

    def link_p50_ns(self, peer: str) -> int:
        """0: not yet known."""
        standing = self._standings.get(peer)
        return standing.link_p50_ns() if standing else 0

    def service_ns(self, peer: str, model: str) -> int:
        """Of one window, as its answers said: smoothed. 0: not yet known."""
        standing = self._standings.get(peer)
        return standing.services.get(model, 0) if standing else 0

    def round_trip_p50_ns(self) -> int:
        """Of all peers, from asking to the answer. 0: none yet."""
        return round(statistics.median(self._round_trips)) if self._round_trips else 0

    def under_way(self, peer: str) -> int:
        """Tasks that it has not answered yet."""
        return len(self._asked.get(peer, ()))

    # --- what goes out ---

    def _frame(self, task: Task) -> bytes:
        if task.privacy is Privacy.GATEWAY:
            raise self._no(Why.UNFIT, "privacy gateway: it never leaves this gateway")
        if task.remaining_ns == 0:
            raise self._no(Why.DEADLINE, "its time was over before it was sent")
        try:
            return frames.pack(task)
        except BadFrame as error:
            raise self._no(Why.UNFIT, error.cause, error.hint) from None

    def _enter(self, peer: str, task: Task) -> _Asked:
        mine = self._asked.get(peer, {})
        if task.id in mine:
            raise self._no(Why.TWICE, f"task {task.id} is under way at {peer} already")
        if self.count >= TASKS_MAX or len(mine) >= TASKS_PEER_MAX:
            raise self._no(Why.FULL, f"{len(mine)} tasks are under way at {peer}, {self.count} in all")
        now_ns = self._clock.mono_ns()
        if not self._standing(peer).breaker.enter(now_ns):
            raise self._no(Why.BREAKER, f"{peer} failed too often", "see its log; it is tried again by itself")
        asked = _Asked(peer, task.id, task.model, now_ns, asyncio.get_running_loop().create_future())
        self._asked.setdefault(peer, mine)[task.id] = asked
        self.count += 1
        if trail.on(self._log):
            self._log.debug("task_sent", result=task.id, peer=peer, model=task.model)
        return asked

    def _leave(self, asked: _Asked) -> None:
        """Whatever ended it. An answer that came while it still waited for the link is read by nobody."""
        answered = asked.answer.done() and not asked.answer.cancelled() and asked.answer.exception() is None
        if trail.on(self._log):
            how = asked.answer.result().verdict.name.lower() if answered else "unanswered"
            self._log.debug("task_over", result=asked.id, peer=asked.peer, how=how)
        mine = self._asked.get(asked.peer, {})
        if mine.get(asked.id) is asked:
            self._take_out(asked)
            self._standing(asked.peer).breaker.withdrawn()

    def _take_out(self, asked: _Asked) -> None:
        mine = self._asked[asked.peer]
        del mine[asked.id]
        if not mine:
            del self._asked[asked.peer]
        self.count -= 1

    def _cancel(self, asked: _Asked) -> None:
        """In a task of its own: who was cancelled must not wait for the link."""
        if len(self._cancels) >= CANCELS_MAX:
            return
        frame = frames.pack(Cancel(id=asked.id, instance=self._link.instance))
        number = next(self._serials)
        task = asyncio.get_running_loop().create_task(self._send_cancel(asked.peer, frame), name=f"cancel-{number}")
        self._cancels[number] = task
        task.add_done_callback(lambda _: self._cancels.pop(number, None))

    async def _send_cancel(self, peer: str, frame: bytes) -> None:
        try:
            await self._link.tell(peer, "task", frame)
        except BrokerError:
            return  # then the task's own deadline ends it

    # --- what comes in: called by the link, decides at once ---

    def _arrived(self, peer: str, message: Message) -> None:
        try:
            reply = frames.unpack(message.payload)
            if not isinstance(reply, Reply) or message.retain:
                raise BadFrame("reply: a task, or a retained message", "who else publishes there?")
        except BadFrame as error:
            self._garbage(peer, error)
            raise
        asked = self._find(peer, reply.instance, reply.id)
        if asked is not None:
            self._learn(asked, reply)
            asked.answer.set_result(reply)

    def _find(self, peer: str, instance: str, task_id: str) -> _Asked | None:
        """Takes it out: a second answer finds nothing."""
        asked = self._asked.get(peer, {}).get(task_id)
        if instance != self._link.instance:
            self.dropped[Dropped.STALE] += 1
        elif asked is None:
            foreign = any(task_id in mine for mine in self._asked.values())
            self.dropped[Dropped.FOREIGN if foreign else Dropped.LATE] += 1
        elif asked.answer.done():  # its caller was cancelled in this very turn of the loop
            self.dropped[Dropped.LATE] += 1
        else:
            self._take_out(asked)
            return asked
        return None

    def _learn(self, asked: _Asked, reply: Reply) -> None:
        self.verdicts[reply.verdict] += 1
        standing = self._standing(asked.peer)
        round_trip_ns = self._clock.mono_ns() - asked.sent_ns
        self._round_trips.append(round_trip_ns)
        standing.measured(round_trip_ns, reply.waited_ns, reply.service_ns)
        if reply.verdict is Verdict.FAILED:
            self._failed(asked.peer)
            return
        standing.breaker.succeeded()
        if reply.verdict is Verdict.DONE:
            standing.served(asked.model, min(reply.service_ns, round_trip_ns))

    def _garbage(self, peer: str, error: BadFrame) -> None:
        self.dropped[Dropped.GARBAGE] += 1
        asked = self._asked.get(peer, {}).get(error.id)
        if asked is not None and error.instance == self._link.instance and not asked.answer.done():
            self._take_out(asked)
            asked.answer.set_exception(self._no(Why.GARBAGE, f"{peer} answered: {error.cause}", error.hint))
        if peer in self._standings:  # of others we expect nothing
            self._failed(peer)

    def _failed(self, peer: str) -> None:
        breaker = self._standing(peer).breaker
        if breaker.failed(self._clock.mono_ns()):
            self._log.warning("breaker_opened", peer=peer, failures=breaker.failures)

    def _lost(self) -> None:
        for peer in list(self._asked):
            self._fail_all(peer, Why.LOST, "the connection to the site's broker was lost")

    def _fail_all(self, peer: str, why: Why, cause: str) -> None:
        for asked in list(self._asked.get(peer, {}).values()):
            if not asked.answer.done():
                self._take_out(asked)
                self._standing(peer).breaker.withdrawn()
                asked.answer.set_exception(self._no(why, cause))

    def _standing(self, peer: str) -> Standing:
        standing = self._standings.get(peer)
        if standing is None:
            if len(self._standings) >= PEERS_MAX:
                idle = next((each for each in self._standings if each not in self._asked), None)
                self._standings.pop(idle or next(iter(self._standings)))
            standing = self._standings[peer] = Standing()
        return standing

    def _no(self, why: Why, cause: str, hint: str = "") -> Unanswered:
        self.unanswered[why] += 1
        return Unanswered(why, cause, hint)
