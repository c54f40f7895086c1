"""What is seen of a simulated fleet while it runs: that every queue stays within its bound and every task ends by its deadline,
and how long things take."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import msgspec
import structlog

from edge_runtime.mesh import admission, asking, placing
from edge_runtime.mesh.mesh import Mesh
from edge_runtime.ports import EdgeError
from edge_runtime.testing.fence import FENCE
from edge_runtime.testing.loop import VirtualLoop
from edge_runtime.testing.member import Member

LOOK_S = 0.1
SLACK_S = 0.05
"""A deadline and what is done at it."""


class Times(msgspec.Struct):
    """The longest of each, seconds of the simulation."""

    parted: float = 0.0
    """From the last fault until each part of the network had agreed."""
    healed: float = 0.0
    """From the heal until the site had."""
    brokerless: float = 0.0
    """One gateway, without a connection to a broker."""
    task: float = 0.0
    """From asking a peer to its answer, or to giving up."""
    reissued: float = 0.0
    """From asking a peer that did not do it, until another one was asked or it was begun here."""
    window: float = 0.0
    """From the first decision to the result; a model that is stuck holds it up."""


class Watch:
    """`failures`: what has gone wrong so far."""

    def __init__(self, loop: VirtualLoop, log: bool) -> None:
        self.times = Times()
        self.failures: list[str] = []
        self.hostings = self.by_peers = self.unanswered = 0
        """Brokers that were started, windows that peers have computed, tasks without an answer."""
        self._loop, self._log = loop, log
        self._hosting: dict[str, bool] = {}
        self._alone_s: dict[tuple[str, int], float] = {}

    async def look(self, members: Sequence[Member]) -> None:
        while True:
            await asyncio.sleep(LOOK_S)
            for member in members:
                self._count_hosting(member)
                if member.up and member.gateway.mesh is not None:
                    self._bounds(member, member.gateway.mesh, len(members) - 1)
                    self._connected(member, member.gateway.mesh)

    def _bounds(self, member: Member, mesh: Mesh, others: int) -> None:
        assert member.settings.mesh is not None
        limits = {
            "tasks under way": (mesh.asking.count, asking.TASKS_MAX),
            "tasks that wait": (mesh.answering.queue.count, member.settings.mesh.tasks_waiting_max),
            "answers kept": (len(mesh.answering.kept), admission.KEPT_MAX),
            "decisions": (len(mesh.placing._told), placing.TOLD_MAX),
            "peers": (len(mesh.presence.peers.births()), others),
            **{
                f"samples at {name}": (pipeline.waiting, member.settings.pipelines[name].queue_max)
                for name, pipeline in member.gateway.pipelines.items()
            },
        }
        for what, (count, most) in limits.items():
            if count > most:
                self.failures.append(f"{member.name}: {count} {what}, at most {most}")

    def _connected(self, member: Member, mesh: Mesh) -> None:
        life = (member.name, member.lives)
        now_s = self._loop.time()
        since_s = self._alone_s.setdefault(life, now_s)
        if mesh.link.connected or member.fence.held is not None:
            self._alone_s[life] = now_s
        self.times.brokerless = max(self.times.brokerless, now_s - since_s)

    def _count_hosting(self, member: Member) -> None:
        self.hostings += member.broker.running and not self._hosting.get(member.name, False)
        self._hosting[member.name] = member.broker.running

    def life(self, member: Member, mesh: Mesh) -> None:
        """Of a new life: how long its tasks and windows take, and that each ends by its deadline."""
        ask, place, times = mesh.asking.ask, mesh.placing.place, self.times
        undone: dict[str, tuple[float, int]] = {}
        """Windows that a peer did not do: when it was asked."""

        def begun(window: str) -> None:
            began_s, stops = undone.pop(window, (self._loop.time(), 0))
            if member.fence.stops == stops:
                times.reissued = max(times.reissued, self._loop.time() - began_s)

        async def asked(peer: str, *args: Any, deadline_ns: int, task_id: str, **more: Any) -> Any:
            began_s, left_s = self._loop.time(), (deadline_ns - member.clock.mono_ns()) / 1e9
            begun(task_id)
            stops = member.fence.stops
            undone[task_id] = (began_s, stops)
            try:
                return await ask(peer, *args, deadline_ns=deadline_ns, task_id=task_id, **more)
            except EdgeError:
                self.unanswered += 1
                raise
            finally:
                took_s = self._loop.time() - began_s if member.fence.stops == stops else 0.0
                times.task = max(times.task, took_s)
                if took_s > max(0.0, left_s) + SLACK_S:
                    self.failures.append(f"{member.name} waited {took_s:.3f} s for {peer}, the deadline was in {left_s:.3f} s")

        async def placed(job: Any, here: Any) -> Any:
            async def computed() -> Any:
                begun(job.result_id)
                return await here()

            began_s = self._loop.time()
            found = await place(job, here and computed)
            undone.pop(job.result_id, None)
            self.by_peers += found.decision.where == "peer"
            times.window = max(times.window, self._loop.time() - began_s)
            return found

        mesh.asking.ask, mesh.placing.place = asked, placed  # type: ignore[method-assign,assignment]

    def logger(self, name: str) -> Any:
        def heard(_logger: Any, _method: str, event: Any) -> Any:
            fence = FENCE.get()
            if (fence is not None and fence.fallen) or not self._loop.is_running():
                raise structlog.DropEvent  # the last words of a life that was killed
            if self._log:
                print(f"{self._loop.time():8.3f} {name} {event}")
            if event["event"] == "service_failed":
                self.failures.append(f"{name}: {event}")
            raise structlog.DropEvent

        return structlog.wrap_logger(None, processors=[heard])
