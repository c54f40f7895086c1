"""Another gateway as others see it, over a real or a simulated connection: its birth, its heartbeats, the tasks that it does, and
the faults it can have. It computes nothing: the output `by` is its number."""

from __future__ import annotations

import asyncio
from collections import deque
from dataclasses import dataclass, field
from typing import Literal

from edge_runtime.bus import frames, presence, topics
from edge_runtime.bus.frames import Cancel, Reply, Task, Verdict
from edge_runtime.bus.presence import Birth, Load
from edge_runtime.ports import Clock, Connection
from edge_runtime.ports_mesh import Offer
from edge_runtime.records import Inference

Fault = Literal["", "hangs", "refuses", "refuses for ever", "fails", "answers nothing", "answers twice"]


@dataclass(kw_only=True)
class FakePeer:
    """One thread computes what comes, one window after the other. `faults`: of the next tasks, in turn; then there are none."""

    name: str
    clock: Clock
    number: int = 0
    site: str = "plant-1"
    model: str = "wear@1"
    service_s: float = 0.003
    says_s: float | None = None
    """What it says of its service time; None: the truth."""
    retry_s: float = 0.1
    faults: deque[Fault] = field(default_factory=deque)
    tasks: list[Task] = field(default_factory=list)
    arrived: asyncio.Event = field(default_factory=asyncio.Event)
    """There was a task."""
    cancelled: list[str] = field(default_factory=list)
    _waiting: int = 0
    _turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    _doing: set[asyncio.Task[None]] = field(default_factory=set)

    def birth(self, *, online: bool = True) -> Birth:
        says_s = self.service_s if self.says_s is None else self.says_s
        offer = Offer(self.model, "fake:cpu", round(says_s * 1e9), "fake.bin")
        return Birth(site=self.site, gateway=self.name, instance=f"{self.name}-1", online=online, offers=(offer,), uptime_s=60)

    def load(self, **more: object) -> Load:
        facts: dict[str, object] = {"queue": self._waiting, "queue_ns": self._queue_ns(), "tasks_in": len(self.tasks)}
        return Load(gateway=self.name, instance=f"{self.name}-1", period_s=1.0, **(facts | more))  # type: ignore[arg-type]

    async def be_born(self, connection: Connection) -> None:
        await connection.subscribe(topics.gateway(self.site, self.name, "task", "+"))
        topic = topics.gateway(self.site, self.name, "status")
        await connection.publish(topic, presence.pack(self.birth()), qos=1, retain=True)

    async def beat(self, connection: Connection, **more: object) -> None:
        await connection.publish(topics.gateway(self.site, self.name, "load"), presence.pack(self.load(**more)))

    async def serve(self, connection: Connection) -> None:
        """Until the connection is lost: raises BrokerError."""
        while True:
            message = await connection.receive()
            connection.acknowledge(message)
            frame, sender = frames.unpack(message.payload), message.topic.rpartition("/")[2]
            if isinstance(frame, Task):
                self.tasks.append(frame)
                self.arrived.set()
                doing = asyncio.create_task(self._do(connection, sender, frame), name=f"{self.name}-{len(self.tasks)}")
                self._doing.add(doing)
                doing.add_done_callback(self._doing.discard)
            elif isinstance(frame, Cancel):
                self.cancelled.append(frame.id)

    async def _do(self, connection: Connection, sender: str, task: Task) -> None:
        fault = self.faults.popleft() if self.faults else ""
        if fault == "hangs":
            return
        reply = self._refusal(task, fault) if fault.startswith("refuses") else await self._computed(task, fault)
        for _ in range(2 if fault == "answers twice" else 1):
            await connection.publish(topics.gateway(self.site, sender, "reply", self.name), frames.pack(reply))

    def _refusal(self, task: Task, fault: Fault) -> Reply:
        retry_ns = round(self.retry_s * 1e9) if fault == "refuses" else 0
        return Reply(
            id=task.id, instance=task.instance, verdict=Verdict.REFUSED, cause="too much waits here", hint="fewer windows",
            retry_ns=retry_ns,
        )  # fmt: skip

    async def _computed(self, task: Task, fault: Fault) -> Reply:
        arrived_ns = self.clock.mono_ns()
        self._waiting += 1
        async with self._turn:
            began_ns = self.clock.mono_ns()
            await asyncio.sleep(self.service_s)
        self._waiting -= 1
        verdict = Verdict.FAILED if fault == "fails" else Verdict.DONE
        inference = (
            None if fault in ("fails", "answers nothing") else Inference({"by": float(self.number)}, "fake:cpu", "fake.bin")
        )
        return Reply(
            id=task.id, instance=task.instance, verdict=verdict, inference=inference,
            cause="the engine broke" if fault == "fails" else "", queue_ns=self._queue_ns(),
            service_ns=self.clock.mono_ns() - began_ns, waited_ns=began_ns - arrived_ns,
        )  # fmt: skip

    def _queue_ns(self) -> int:
        return round(self._waiting * self.service_s * 1e9)
