"""The composition root: builds every object of a gateway once, runs them, and stops them in the order in which data flows.

    sources -> (input journal) -> pipelines -> outbox -> deliveries -> sinks
                                      |
                                    mesh: other gateways

Start: disk, mesh, deliveries, pipelines, sources: nobody speaks before somebody listens. Stop: the other way round, so that what
was accepted is on the disk and, if the far ends take it in time, delivered. Only the disk is waited for: a broker, a model, a
sink, a device or a peer that does not work is shown, tried again, and holds up nobody else.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any

from edge_runtime import config
from edge_runtime.building import Builder
from edge_runtime.mesh.mesh import Mesh
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.pipeline.pipeline import Pipeline
from edge_runtime.ports import Address, BrokerError
from edge_runtime.saying import told
from edge_runtime.sources.supervisor import Source
from edge_runtime.world import World

RESTART_S_MIN, RESTART_S_MAX = 1.0, 30.0
"""Wait before a service that failed unexpectedly, or a broker that does not start, is started again."""

STOP_S_MAX = 5.0
"""Of a clean stop: for sources to end, then for pipelines to finish what has come in, then for the disk to take the rest."""


@dataclass(frozen=True)
class BrokerState:
    """Of a hosted broker: `cause` and `hint` say why it does not run."""

    running: bool = False
    cause: str = ""
    hint: str = ""


@dataclass(frozen=True)
class Failure:
    """Of a service, by a fault of ours. `at_s`: the last one, as the event loop's time."""

    count: int
    at_s: float
    cause: str


@dataclass
class Gateway:
    """One gateway. `run` returns when `stop` was called and everything is on the disk."""

    settings: config.Config
    folder: Path
    world: World
    sources: dict[str, Source] = field(default_factory=dict)
    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    broker: BrokerState = field(default_factory=BrokerState)
    mesh: Mesh | None = None
    failures: dict[str, Failure] = field(default_factory=dict)
    """Of services, by name."""

    def __post_init__(self) -> None:
        self.asked_to_stop = asyncio.Event()
        self._log = self.world.log.bind(gateway=self.settings.gateway)
        self._builder = Builder(self.settings, self.folder, self.world, self._log)
        self.store = self._builder.store()
        self.started = asyncio.Event()

    def stop(self) -> None:
        """Begins a clean stop; `run` returns when it is done. May be called at any time, and again."""
        self.asked_to_stop.set()

    @property
    def stopping(self) -> bool:
        return self.asked_to_stop.is_set()

    async def run(self) -> None:
        """Until `stop`, or until something fails that no restart can mend (it raises)."""
        services: list[list[asyncio.Task[None]]] = []
        watchers = self._watchers()
        try:
            if await self._unless_stopped(self._open()):
                readers = self._start(services)
                await self._unless_stopped(self.store.ended())
                await self._drain(readers)
        finally:
            for group in reversed(services):
                await _cancel(group)
            await self._close()
            await _cancel(watchers)

    async def _open(self) -> None:
        """Waits for the disk."""
        builder = self._builder
        await self.store.open(builder.sink_lanes, builder.pipeline_devices, builder.unconfirmed_sinks)
        self._build()
        for pipeline in self.pipelines.values():
            await pipeline.prepare()

    def _start(self, services: list[list[asyncio.Task[None]]]) -> list[asyncio.Task[None]]:
        """Every service, in groups in the order in which they are needed; returns those that bring samples."""
        hosted = self.settings.broker.mode == "hosted" and not self.mesh
        services.append([self._keep("broker", self._host_broker)] if hosted else [])
        services.append([self._keep(name, service) for name, service in self.mesh.services.items()] if self.mesh else [])
        services.append([self._keep(f"delivery {name}", delivery.run) for name, delivery in self.deliveries.items()])
        services.append([self._keep(f"pipeline {name}", pipeline.run) for name, pipeline in self.pipelines.items()])
        services.append([self._keep(f"source {name}", source.run) for name, source in self.sources.items()])
        self._log.info("gateway_started", site=self.settings.site, devices=len(self.sources), sinks=len(self.deliveries))
        self.started.set()
        return services[-1]

    async def _drain(self, readers: Sequence[asyncio.Task[None]]) -> None:
        """Sources end, pipelines finish, deliveries go on for a while; what is left then is on the disk."""
        if self.mesh:
            self.mesh.drain()
        for source in self.sources.values():
            source.stop()
        if readers:
            await asyncio.wait(readers, timeout=STOP_S_MAX)
        await _within(STOP_S_MAX, [pipeline.finish() for pipeline in self.pipelines.values()])
        await _within(self.settings.outbox.drain_s_max, [delivery.drained() for delivery in self.deliveries.values()])

    async def _close(self) -> None:
        """A disk that is broken does not keep us: what it did not take was never acknowledged, and is sent again by sources that
        can; the last results of the others are lost."""
        known = self.deliveries if self.started.is_set() else {}
        undelivered = {name: sum(delivery.depth().values()) for name, delivery in known.items()}
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await self.store.close()
        except TimeoutError:
            state = self.store.state
            self._log.error("outbox_not_closed", cause=state.cause or "the disk does not answer", hint=state.hint)
        self._log.info("gateway_stopped", undelivered=undelivered)

    def _build(self) -> None:
        builder, settings = self._builder, self.settings
        self.mesh = builder.mesh(self._undelivered, self._model_names) if settings.mesh else None
        adapters = {name: builder.adapter(name) for name in settings.devices}
        self.deliveries = {name: builder.delivery(name, self.store, self._local_broker()) for name in settings.sinks}
        self.pipelines = {
            name: builder.pipeline(name, adapters[pipeline.device], self.store, self.mesh)
            for name, pipeline in settings.pipelines.items()
        }
        for name, adapter in adapters.items():
            takers = [pipeline for pipeline in self.pipelines.values() if pipeline.device == name]
            if takers:
                self.sources[name] = builder.source(name, adapter, takers, self.store)
            else:  # its messages would be acknowledged, and thrown away
                self._log.warning("device_not_read", device=name, hint="no pipeline takes it: add one")

    def _local_broker(self) -> Callable[[], Address] | None:
        """Where the local broker is, for the sinks."""
        if self.mesh:
            return self.mesh.local
        if self.settings.broker.mode == "none":
            return None
        address = self.world.local_address(self.settings.broker.url)
        return lambda: address

    def _undelivered(self) -> int:
        """Records that wait for the sink that is furthest behind."""
        return max((sum(delivery.depth().values()) for delivery in self.deliveries.values()), default=0)

    def _model_names(self) -> list[str]:
        """Of the models that the pipelines use now."""
        return [name for pipeline in self.pipelines.values() if (name := pipeline.model_name)]

    @property
    def data_dir(self) -> Path:
        return self._builder.data_dir

    def _watchers(self) -> list[asyncio.Task[None]]:
        """Who wants to know how it is, wants to know also while there is no disk."""
        if self.settings.metrics is None and self.world.systemd is None:
            return []
        from edge_runtime.watching.watching import Watching  # megabytes and milliseconds that others need not pay

        return [self._keep(name, service) for name, service in Watching(self, self._log).services.items()]

    # --- services ---

    def _keep(self, name: str, service: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Runs a service; an error that it did not expect ends only this one, and it is started again after a while."""

        async def supervised() -> None:
            wait_s, clock = RESTART_S_MIN, asyncio.get_running_loop().time
            while True:
                began_s = clock()
                try:
                    return await service()
                except Exception as error:  # noqa: BLE001 - a supervisor: one service's bug must not stop the others
                    if clock() - began_s > RESTART_S_MAX:
                        wait_s = RESTART_S_MIN
                    count = self.failures[name].count + 1 if name in self.failures else 1
                    self.failures[name] = Failure(count, clock(), told(error))
                    self._log.exception("service_failed", service=name, error=told(error), again_in_s=wait_s)
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RESTART_S_MAX)

        return asyncio.create_task(supervised(), name=name)

    async def _unless_stopped(self, work: Awaitable[None]) -> bool:
        """False: `stop` came first, and the work was given up. Raises what it raises."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.create_task(self.asked_to_stop.wait(), name="stopping")
        try:
            await asyncio.wait((working, stopping), return_when=asyncio.FIRST_COMPLETED)
            if working.done():
                working.result()
            return working.done()
        finally:
            await _cancel([working, stopping])

    async def _host_broker(self) -> None:
        """Tried until it starts. Nothing between a source and the disk waits for it; the sinks that need it are away."""
        wait_s = RESTART_S_MIN
        while True:
            try:
                return await self._host_once()
            except BrokerError as error:
                if error.cause != self.broker.cause:
                    self._log.error("broker_does_not_start", cause=error.cause, hint=error.hint)
                self.broker = BrokerState(False, error.cause, error.hint)
            await asyncio.sleep(self.world.dice.uniform(wait_s / 2, wait_s))
            wait_s = min(wait_s * 2, RESTART_S_MAX)

    async def _host_once(self) -> None:
        host = self.world.new_host(self.settings.broker, self.data_dir / "broker")
        try:
            await host.start()
            self.broker = BrokerState(running=True)
            await host.run()
            self.broker = BrokerState()
        finally:
            await host.stop()


async def _within(limit_s: float, waits: Sequence[Awaitable[None]]) -> None:
    """All of them, or until the time is up."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=limit_s)
        await _cancel(list(late))


async def _cancel(tasks: Sequence[asyncio.Future[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
