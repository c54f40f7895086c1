"""Has each window computed, here or by a peer (runs): decides (routing.py), asks, and decides again where a peer does not do it.

    placed = await placing.place(job, here)      # here: computes it on this gateway; None: we cannot

Local work never waits for the mesh: what is decided to be computed here begins at once, and a window that a peer has is taken
back early enough to be computed here before its deadline. Only one computes for us at a time, and whoever's result is returned
is the only one that counts: what comes later is nobody's.

What bounds it: a peer has a window for PATIENCE times as long as was expected, and never past the deadline; each is asked once,
but for one that said when to come back. Where we can compute, the deadline binds the peers only: here it is computed, even late.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from edge_runtime.bus import frames
from edge_runtime.bus.frames import Reply, Verdict
from edge_runtime.bus.why import Compared, Explanation, Step
from edge_runtime.mesh import routing
from edge_runtime.mesh.admission import RETRY_NS_MIN
from edge_runtime.mesh.asking import Asking, Unanswered
from edge_runtime.mesh.own import Own
from edge_runtime.mesh.peers import PEERS_MAX, Peer, Peers
from edge_runtime.mesh.routing import Decision, Draw, Here, Reason, There, Wanted
from edge_runtime.ports import Clock, Dice, EdgeError
from edge_runtime.ports_mesh import Vitals
from edge_runtime.records import Inference, Privacy, Tensor

TOLD_MAX = 10_000
"""Decisions that are remembered, by result."""
STEPS_MAX = 16
"""Of one window: those before are forgotten."""
OUTCOME_CHARS_MAX = 200
"""Of what a peer said: it is remembered, and sent to who asks why."""
MODELS_MAX = 256

PATIENCE = 8
PATIENCE_NS_MIN = 500_000_000
"""A peer that takes longer than that, and than PATIENCE times what was expected, is given up: it hangs, or its answer is lost."""

LINK_NS_UNKNOWN = 3_000_000
"""There and back, to a peer that has not answered us yet."""

PAYLOAD_BYTES_MAX = frames.TASK_BYTES_MAX - frames.HEADER_BYTES_MAX
"""Of a tensor that may travel."""

NEVER = 0
DONE = "done"
ALMOST_1 = 1 - 2**-53


class NotPlaced(EdgeError):
    """Nobody has computed the window: we cannot, and no peer did it in time."""


class Job(msgspec.Struct, frozen=True, kw_only=True):
    """A window to be computed. A task has the id of its result, however often and to whomever it is sent."""

    result_id: str
    model: str
    """name@version"""
    tensor: Tensor
    privacy: Privacy
    deadline_s: float
    priority: int = 5
    service_ns: int = 0
    """Of a window here, as measured when the model was opened; 0: not known. What is learned later counts more."""


class Placed(msgspec.Struct, frozen=True):
    """`decision`: the last one; its text says where and why."""

    inference: Inference
    decision: Decision


Compute = Callable[[], Awaitable[Inference]]


class Placing:
    """See the module's text. `vitals`: of this gateway; `tasks`: of others that wait or run here, and how long they will take."""

    def __init__(
        self, gateway: str, asking: Asking, peers: Peers, clock: Clock, dice: Dice, *, vitals: Callable[[], Vitals],
        tasks: Callable[[], tuple[int, int]] = lambda: (0, 0),
    ) -> None:  # fmt: skip
        self.gateway = gateway
        self.reasons: Counter[Reason] = Counter()
        """Of all decisions; a window has more than one where a peer did not do it."""
        self.outcomes: dict[str, Counter[str]] = {}
        """By peer: asked, done, refused, failed, cancelled, unanswered."""
        self._asking, self._peers = asking, peers
        self._clock, self._dice = clock, dice
        self._vitals, self._tasks = vitals, tasks
        self._own: dict[str, Own] = {}
        self._exploring: set[str] = set()
        self._told: dict[str, _Told] = {}

    # --- what it knows ---

    def backlog(self) -> tuple[int, int]:
        """Own windows that wait or run here, and how many nanoseconds they will take."""
        own = self._own.values()
        return sum(each.in_flight for each in own), sum(each.in_flight * _known(each.service_ns) for each in own)

    def services(self) -> dict[str, int]:
        """Learned nanoseconds a window here, by model."""
        return {model: own.service_ns for model, own in self._own.items() if own.service_ns}

    def explain(self, result: str) -> Explanation | None:
        """None: it was not decided here, or so long ago that it is forgotten."""
        told = self._told.get(result)
        return told.explanation(self.gateway, self._clock.mono_ns()) if told else None

    # --- a window ---

    async def place(self, job: Job, here: Compute | None) -> Placed:
        """Raises NotPlaced by the deadline where `here` is None; else what `here` raises, if no peer does it either."""
        course = _Course(job, here, self._clock.mono_ns())
        self._remember(course)
        while True:
            decision = self._decide(course)
            self.reasons[decision.reason] += 1
            if decision.where == "peer":
                found = await self._there(course, decision)
            elif decision.where == "here":
                found = await self._here(course, decision)
            elif not await self._retried(course):
                course.told.add(decision, "refused", 0)
                raise course.failed or _not_placed(job, decision, course.error)
            if decision.where != "refuse" and found is not None:
                return found

    def _decide(self, course: _Course) -> Decision:
        job, now_ns, dice = course.job, self._clock.mono_ns(), self._dice
        here = self._mine(course, now_ns)
        here_ns = here.queue_ns + _known(here.service_ns)
        course.begin(here_ns)
        if here.able and course.tried and now_ns >= course.until_ns:
            return Decision("here", Reason.FALLBACK, "", here_ns)
        fits = len(job.tensor.data) <= PAYLOAD_BYTES_MAX and len(job.tensor.shape) <= frames.DIMENSIONS_MAX
        connected = self._asking.connected
        wanted = Wanted(job.privacy, course.deadline_ns - now_ns, course.until_ns - now_ns, connected, fits, tuple(course.tried))
        soon = routing.at_once(wanted, here)
        if soon is not None:
            return soon
        draw = Draw(*(min(dice.uniform(0, 1), ALMOST_1) for _ in range(3)))
        peers = self._peers.peers() if connected and job.privacy is not Privacy.GATEWAY else []
        return routing.decide(wanted, here, [self._facts(peer, job.model) for peer in peers], draw)

    def _mine(self, course: _Course, now_ns: int) -> Here:
        own = self._account(course.job, now_ns)
        (_, own_ns), (_, tasks_ns) = self.backlog(), self._tasks()
        vitals = self._vitals()
        able = course.here is not None
        return Here(able, own_ns + tasks_ns, own.service_ns, own.stale(now_ns), vitals.hot or vitals.battery)

    def _facts(self, peer: Peer, model: str) -> There:
        asking, offered_ns = self._asking, peer.service_ns(model)
        service_ns = offered_ns or asking.service_ns(peer.name, model)
        # A heartbeat comes once a second: what we have sent since is known to us alone.
        queue_ns = max(peer.queue_ns, asking.under_way(peer.name) * _known(service_ns))
        return There(
            name=peer.name,
            has_model=offered_ns is not None,
            service_ns=service_ns,
            queue_ns=queue_ns,
            link_ns=asking.link_ns(peer.name) or LINK_NS_UNKNOWN,
            late=peer.late,
            broken=asking.breaker(peer.name) == "open",
            spared=peer.spared,
            exploring=peer.name in self._exploring,
        )

    # --- here ---

    async def _here(self, course: _Course, decision: Decision) -> Placed | None:
        """None: it failed, and a peer may do it."""
        compute, began_ns = course.here, self._clock.mono_ns()
        assert compute is not None
        own = self._account(course.job, began_ns)
        own.in_flight += 1
        try:
            inference = await compute()
        except EdgeError as error:
            course.here, course.failed, course.until_ns = None, error, course.deadline_ns
            course.told.add(decision, f"failed: {error.cause}", self._clock.mono_ns() - began_ns)
            return None
        finally:
            own.in_flight -= 1
        now_ns = self._clock.mono_ns()
        own.finished(began_ns, now_ns)
        course.told.add(decision, DONE, now_ns - began_ns)
        return Placed(inference, decision)

    # --- a peer ---

    async def _there(self, course: _Course, decision: Decision) -> Placed | None:
        """None: it did not do it."""
        job, peer, began_ns = course.job, decision.peer, self._clock.mono_ns()
        expected_ns = next(each.finish_ns for each in decision.compared if each.peer == peer)
        limit_ns = min(course.until_ns, began_ns + max(PATIENCE_NS_MIN, PATIENCE * expected_ns))
        exploring = decision.reason is Reason.EXPLORED
        course.tried[peer] = NEVER
        if exploring:
            self._exploring.add(peer)
        self._count(peer, "asked")
        try:
            reply = await self._asking.ask(
                peer,
                job.model,
                job.tensor,
                deadline_ns=limit_ns,
                priority=job.priority,
                privacy=job.privacy,
                task_id=job.result_id,
            )
        except Unanswered as error:
            course.error = error
            self._count(peer, "unanswered")
            course.told.add(decision, error.cause, self._clock.mono_ns() - began_ns)
            return None
        finally:
            if exploring:
                self._exploring.discard(peer)
        return self._replied(course, decision, reply, began_ns)

    def _replied(self, course: _Course, decision: Decision, reply: Reply, began_ns: int) -> Placed | None:
        peer, now_ns = decision.peer, self._clock.mono_ns()
        taken_ns = now_ns - began_ns
        self._peers.replied(peer, reply.queue_ns, now_ns)
        self._count(peer, reply.verdict)
        if reply.verdict is Verdict.DONE and reply.inference is not None:
            course.told.add(decision, DONE, taken_ns)
            return Placed(reply.inference, decision)
        what = f"{reply.verdict}: {reply.cause}"
        course.told.add(decision, what, taken_ns)
        course.error = EdgeError(f"{peer} {what}", reply.hint)
        if reply.verdict is Verdict.REFUSED and reply.retry_ns:
            course.tried[peer] = now_ns + max(RETRY_NS_MIN, reply.retry_ns)
        return None

    async def _retried(self, course: _Course) -> bool:
        """Nobody can now: waits for the first peer that said when to come back. False: there is none in time."""
        again = [(at_ns, name) for name, at_ns in course.tried.items() if at_ns and at_ns < course.deadline_ns]
        if not again:
            return False
        at_ns, name = min(again)
        await asyncio.sleep(max(0, at_ns - self._clock.mono_ns()) / 1e9)
        del course.tried[name]
        return True

    def _account(self, job: Job, now_ns: int) -> Own:
        if job.model not in self._own:
            _make_room(self._own, MODELS_MAX)
            self._own[job.model] = Own(job.service_ns, now_ns)
        own = self._own[job.model]
        if own.stale(now_ns):
            # What was measured last may be a window that waited until a broken model was open again. Were that believed for ever,
            # peers would have all windows from then on.
            own.service_ns = job.service_ns or own.service_ns
        return own

    def _count(self, peer: str, outcome: str) -> None:
        if peer not in self.outcomes:
            _make_room(self.outcomes, PEERS_MAX)
            self.outcomes[peer] = Counter()
        self.outcomes[peer][outcome] += 1

    def _remember(self, course: _Course) -> None:
        self._told.pop(course.job.result_id, None)
        _make_room(self._told, TOLD_MAX)
        self._told[course.job.result_id] = course.told


class _Course:
    """One window on its way."""

    def __init__(self, job: Job, here: Compute | None, now_ns: int) -> None:
        self.job, self.here = job, here
        self.deadline_ns = self.until_ns = now_ns + round(job.deadline_s * 1e9)
        """`until_ns`: until then a peer may have it."""
        self.tried: dict[str, int] = {}
        """Peers that were asked, and when they may be asked again, or NEVER."""
        self.failed: EdgeError | None = None
        """Of the attempt here."""
        self.error: EdgeError | None = None
        """Of the last peer."""
        self.told = _Told(job, now_ns)
        self._begun_ns: int | None = now_ns

    def begin(self, here_ns: int) -> None:
        """At the first decision: where we can compute, time is kept back for it, but at most half of it."""
        if self._begun_ns is not None and self.here is not None:
            self.until_ns -= min(here_ns, (self.deadline_ns - self._begun_ns) // 2)
        self._begun_ns = None


class _Told:
    """What is remembered of a window. It does not keep the window."""

    __slots__ = ("_at_ns", "_deadline_s", "_id", "_model", "_privacy", "_steps")

    def __init__(self, job: Job, now_ns: int) -> None:
        self._id, self._model, self._privacy, self._deadline_s = job.result_id, job.model, job.privacy, job.deadline_s
        self._at_ns = now_ns
        self._steps: deque[tuple[Decision, str, int]] = deque(maxlen=STEPS_MAX)

    def add(self, decision: Decision, outcome: str, taken_ns: int) -> None:
        self._steps.append((decision, outcome[:OUTCOME_CHARS_MAX], taken_ns))

    def explanation(self, gateway: str, now_ns: int) -> Explanation:
        steps = tuple(
            Step(
                decision.peer,
                decision.reason.value,
                decision.here_ns,
                tuple(Compared(each.peer, each.finish_ns) for each in decision.compared),
                outcome,
                taken_ns,
            )
            for decision, outcome, taken_ns in self._steps
        )
        ago_s = (now_ns - self._at_ns) / 1e9
        return Explanation(
            id=self._id, gateway=gateway, model=self._model, privacy=self._privacy.value, deadline_s=self._deadline_s,
            ago_s=ago_s, steps=steps,
        )  # fmt: skip


def _make_room(table: dict[str, Any], limit: int) -> None:
    """For one more entry: the oldest goes."""
    if len(table) >= limit:
        del table[next(iter(table))]


def _known(service_ns: int) -> int:
    return service_ns or routing.SERVICE_NS_UNKNOWN


def _not_placed(job: Job, decision: Decision, error: EdgeError | None) -> NotPlaced:
    cause = f"{job.model}: cannot be computed here, nor by a peer: {decision.reason.value}"
    last = f"the last one: {error.cause}" if error else "see `edge-runtime mesh` for who offers it"
    return NotPlaced(cause, last)
