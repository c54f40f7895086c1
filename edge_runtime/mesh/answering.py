"""Tasks of others, computed here (runs): takes them from the link, in the order of admission.py, and answers.

    answering = Answering(link, executor, settings, clock, log)
    await answering.run()                     # for ever

Every task that is taken or refused is answered; what is no frame of ours is answered where its sender can be read from it, and
counted always. A repeated task joins the one that waits or runs, or gets the answer that was kept. Nothing goes to disk here:
only the owner of a window commits it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable
from typing import Any

import msgspec

from edge_runtime import trail
from edge_runtime.bus import frames
from edge_runtime.bus.frames import BadFrame, Cancel, Reply, Task, Verdict
from edge_runtime.config import Mesh
from edge_runtime.mesh.admission import Kept, Outcome, Queue, Refusal, TaskKey, Waiting, learned, left_ns
from edge_runtime.mesh.link import Link
from edge_runtime.mesh.own import STALE_NS
from edge_runtime.ports import BrokerError, Clock, EdgeError, Message
from edge_runtime.ports_mesh import Executor, Offer
from edge_runtime.records import Inference, Privacy

REFUSALS_MAX = 256
"""That wait for the link; more are not sent, and counted: whoever asks so much has its own deadline."""


class Answering:
    """`slots`: how many are computed at once. An executor that works on the event loop has one. `outside`: another gateway has
    our name now; then nothing is taken and nothing is said: what comes is for that one, and an answer would be taken for its."""

    def __init__(
        self, link: Link, executor: Executor, settings: Mesh, clock: Clock, log: Any, *, slots: int = 1,
        outside: Callable[[], bool] = lambda: False,
    ) -> None:  # fmt: skip
        self.counts: Counter[Outcome] = Counter()
        self.queue = Queue(settings.tasks_waiting_max, slots)
        self.kept = Kept()
        self._link, self._executor, self._settings, self._clock, self._log = link, executor, settings, clock, log
        self._slots, self._outside = slots, outside
        self._open: dict[TaskKey, Waiting] = {}
        """Those that wait or run."""
        self._running: dict[TaskKey, tuple[int, Waiting]] = {}
        """And when they began."""
        self._services: dict[str, tuple[int, int]] = {}
        """Model -> measured time of a window, and when it was; only of models that were on offer."""
        self._idle: list[asyncio.Future[None]] = []
        """Slots that wait for work."""
        self._refusals: deque[tuple[str, bytes]] = deque()
        self._refused = asyncio.Event()
        link.on("task", self._arrived)

    async def run(self) -> None:
        async with asyncio.TaskGroup() as group:
            for number in range(self._slots):
                group.create_task(self._compute_all(), name=f"tasks-{number}")
            group.create_task(self._send_refusals(), name="tasks-refused")

    def offers(self) -> list[Offer]:
        """The executor's, with the time that a window takes as things are now."""
        return [msgspec.structs.replace(each, service_ns=self._service_ns(each)) for each in self._executor.offers()]

    def backlog(self) -> tuple[int, int]:
        """Tasks that wait or run, and how long they will take (nanoseconds)."""
        return len(self._open), (self.queue.service_ns + self._running_ns(self._clock.mono_ns())) // self._slots

    # --- what comes in: called by the link, decides at once ---

    def _arrived(self, sender: str, message: Message) -> None:
        if self._outside():
            self.counts[Outcome.OUTSIDE] += 1
            return
        try:
            frame = frames.unpack(message.payload)
            if message.retain or isinstance(frame, Reply):
                raise BadFrame(f"task: a {'retained message' if message.retain else 'reply'}", "who else publishes there?")
        except BadFrame as error:
            self.counts[Outcome.OVERSIZED if error.oversized else Outcome.MALFORMED] += 1
            if error.id:
                self._refuse(sender, error.id, error.instance, error.cause, error.hint)
            raise
        if isinstance(frame, Cancel):
            self._cancel((sender, frame.instance, frame.id))
        else:
            self._admit((sender, frame.instance, frame.id), frame)

    def _admit(self, key: TaskKey, task: Task) -> None:
        now_ns = self._clock.mono_ns()
        known = self._open.get(key)
        if known is not None:
            known.unwanted = False
            self.counts[Outcome.JOINED] += 1
            return
        kept = self.kept.get(key, now_ns)
        if kept is not None:
            self.counts[Outcome.REPEATED] += 1
            self._say(key[0], kept)
            return
        offer = self._executor.offer(task.model)
        service_ns = self._service_ns(offer) if offer else 0
        waiting = Waiting(key, task, now_ns, now_ns + task.remaining_ns, service_ns)
        refusal = self._unfit(task, offer) or self._no_place(waiting, now_ns)
        if refusal is not None:
            self._refuse_for(waiting, refusal)
            return
        self._open[key] = waiting
        if trail.on(self._log):
            self._trace("task_received", waiting)
        while self._idle:
            slot = self._idle.pop()
            if not slot.done():
                slot.set_result(None)
                break

    def _unfit(self, task: Task, offer: Offer | None) -> Refusal | None:
        """What no waiting would help."""
        if task.privacy is Privacy.GATEWAY:
            return Refusal(Outcome.PRIVACY, "privacy gateway: it must never have been sent", "update the sender")
        if not self._settings.accept_tasks:
            return Refusal(Outcome.CLOSED, "this gateway computes for nobody else", "mesh.accept_tasks is false")
        if offer is None:
            return Refusal(Outcome.MODEL, f"model {task.model} is not offered here", "mesh.offers, or another gateway")
        if task.remaining_ns == 0:
            return Refusal(Outcome.EXPIRED, "its time was over when it was sent")
        return None

    def _no_place(self, waiting: Waiting, now_ns: int) -> Refusal | None:
        running_ns = self._running_ns(now_ns)
        refusal = self.queue.admit(waiting, now_ns, running_ns)
        if refusal is None or refusal.why not in (Outcome.FULL, Outcome.SHARE):
            return refusal
        overdue = self.queue.overdue(now_ns)  # places that nobody needs any more: the executor is slow, or stuck
        for each in overdue:
            del self._open[each.key]
            self._refuse_for(each, _EXPIRED)
        return self.queue.admit(waiting, now_ns, running_ns) if overdue else refusal

    def _cancel(self, key: TaskKey) -> None:
        waiting = self._open.get(key)
        if waiting is None:
            return
        self.counts[Outcome.CANCELLED] += 1
        if self.queue.drop(waiting):
            del self._open[key]
        else:
            waiting.unwanted = True  # a window that has begun is computed to its end: an engine cannot be interrupted

    def _running_ns(self, now_ns: int) -> int:
        running = self._running.values()
        return sum([left_ns(began_ns, each.service_ns, now_ns) for began_ns, each in running]) if running else 0

    def _service_ns(self, offer: Offer) -> int:
        """As measured with tasks. After a while without any it is doubted: who was slow once would be asked no more, and never
        show that it is fast again."""
        measured_ns, at_ns = self._services.get(offer.model, (0, 0))
        stale = self._clock.mono_ns() - at_ns > STALE_NS
        return (offer.service_ns if stale else 0) or measured_ns or offer.service_ns

    # --- what is computed ---

    async def _compute_all(self) -> None:
        while True:
            waiting = self.queue.take()
            if waiting is None:
                idle = asyncio.get_running_loop().create_future()
                self._idle.append(idle)
                await idle
                continue
            now_ns = self._clock.mono_ns()
            if waiting.deadline_ns <= now_ns:
                del self._open[waiting.key]
                self._refuse_for(waiting, _EXPIRED)
                continue
            await self._compute(waiting, now_ns)
            if self.queue.count:
                await asyncio.sleep(0)  # a model on the event loop never waits: others want to go on, too

    async def _compute(self, waiting: Waiting, began_ns: int) -> None:
        self._running[waiting.key] = (began_ns, waiting)
        try:
            inference, cause, hint = await self._execute(waiting.task)
        finally:
            del self._running[waiting.key], self._open[waiting.key]
        ended_ns = self._clock.mono_ns()
        service_ns = ended_ns - began_ns
        self.counts[Outcome.FAILED if inference is None else Outcome.DONE] += 1
        if trail.on(self._log):
            self._trace("task_done", waiting)
        answer = self._packed(waiting, inference, cause, hint, began_ns - waiting.arrived_ns, service_ns)
        if inference is not None:  # what failed may be tried again
            known_ns, _ = self._services.get(waiting.task.model, (0, 0))
            self._services[waiting.task.model] = (learned(known_ns, service_ns), ended_ns)
            self.kept.put(waiting.key, answer, ended_ns)
        if not waiting.unwanted:
            await self._send(waiting.sender, answer)

    async def _execute(self, task: Task) -> tuple[Inference | None, str, str]:
        try:
            return await self._executor.execute(task.model, task.tensor), "", ""
        except EdgeError as error:
            return None, error.cause, error.hint

    def _trace(self, event: str, waiting: Waiting) -> None:
        self._log.debug(event, result=waiting.task.id, sender=waiting.sender, model=waiting.task.model)

    # --- what goes out ---

    def _packed(
        self, waiting: Waiting, inference: Inference | None, cause: str, hint: str, waited_ns: int, service_ns: int
    ) -> bytes:
        def packed(verdict: Verdict, inference: Inference | None, cause: str, hint: str) -> bytes:
            return frames.pack(
                Reply(
                    id=waiting.task.id,
                    instance=waiting.task.instance,
                    verdict=verdict,
                    inference=inference,
                    cause=cause[: frames.TEXT_CHARS_MAX],
                    hint=hint[: frames.TEXT_CHARS_MAX],
                    queue_ns=self.backlog()[1],
                    service_ns=service_ns,
                    waited_ns=waited_ns,
                )
            )

        try:
            return packed(Verdict.FAILED if inference is None else Verdict.DONE, inference, cause, hint)
        except BadFrame as error:  # more outputs than travel
            return packed(Verdict.FAILED, None, error.cause, error.hint)

    def _refuse_for(self, waiting: Waiting, refusal: Refusal) -> None:
        self.counts[refusal.why] += 1
        if trail.on(self._log):
            self._trace("task_refused", waiting)
        self._refuse(waiting.sender, waiting.task.id, waiting.task.instance, refusal.cause, refusal.hint, refusal.retry_ns)

    def _refuse(self, sender: str, task_id: str, instance: str, cause: str, hint: str, retry_ns: int = 0) -> None:
        reply = Reply(
            id=task_id,
            instance=instance,
            verdict=Verdict.REFUSED,
            cause=cause[: frames.TEXT_CHARS_MAX],
            hint=hint[: frames.TEXT_CHARS_MAX],
            retry_ns=retry_ns,
            queue_ns=self.backlog()[1],
        )
        self._say(sender, frames.pack(reply))

    def _say(self, to: str, answer: bytes) -> None:
        """From where nobody may wait."""
        if len(self._refusals) >= REFUSALS_MAX:
            self.counts[Outcome.UNSENT] += 1
            return
        self._refusals.append((to, answer))
        self._refused.set()

    async def _send_refusals(self) -> None:
        while True:
            while self._refusals:
                await self._send(*self._refusals.popleft())
            self._refused.clear()
            await self._refused.wait()

    async def _send(self, to: str, answer: bytes) -> None:
        if self._outside():
            self.counts[Outcome.UNSENT] += 1
            return
        try:
            await self._link.tell(to, "reply", answer)
        except BrokerError:
            self.counts[Outcome.UNSENT] += 1  # it is kept: who still wants it asks again


_EXPIRED = Refusal(Outcome.EXPIRED, "its time was over before its turn came", "another gateway")
