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
import functools
from collections.abc import Awaitable, Iterable, Mapping
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime import config
from edge_runtime.building import Builder
from edge_runtime.mesh.mesh import Mesh
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.pipeline.pipeline import Pipeline
from edge_runtime.services import Failure, Services, cancel, within
from edge_runtime.sources.supervisor import Source
from edge_runtime.world import World

STOP_S_MAX = 5.0
"""Of a clean stop: for sources to end, then for pipelines to finish what has come in, then for the disk to take the rest."""


@dataclass
class Gateway:
    """One gateway. `run` returns when `stop` was called and everything is on the disk."""

    settings: config.Config
    folder: Path
    world: World
    sources: dict[str, Source] = field(default_factory=dict)
    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    mesh: Mesh | None = None
    """The other gateways, and the connection to the local broker; None: there is no broker."""

    def __post_init__(self) -> None:
        self.asked_to_stop = asyncio.Event()
        self._log = self.world.log.bind(gateway=self.settings.gateway)
        self._builder = Builder(self.settings, self.folder, self.world, self._log)
        self._services = Services(self._log)
        self._watchers: tuple[str, ...] = ()
        self.store = self._builder.store()
        self.started = asyncio.Event()

    def stop(self) -> None:
        """Begins a clean stop; `run` returns when it is done. May be called at any time, and again."""
        self.asked_to_stop.set()

    @property
    def stopping(self) -> bool:
        return self.asked_to_stop.is_set()

    @property
    def failures(self) -> Mapping[str, Failure]:
        """Of services, by name."""
        return self._services.failures

    async def run(self) -> None:
        """Until `stop`, or until something fails that no restart can mend (it raises)."""
        self._watch()
        try:
            if await self._unless_stopped(self._open()):
                self._start()
                await self._unless_stopped(self.store.ended())
                await self._drain()
        finally:
            await self._stop_parts(self.sources, self.pipelines, self.deliveries)
            await self._services.drop_all(but=self._watchers)
            await self._close()
            await self._services.drop_all()

    async def _open(self) -> None:
        """Waits for the disk."""
        builder = self._builder
        await self.store.open(builder.sink_lanes, builder.pipeline_devices, builder.unconfirmed_sinks)
        self._build()
        for pipeline in self.pipelines.values():
            await pipeline.prepare()

    def _build(self) -> None:
        if self.settings.broker.mode != "none":
            self.mesh = self._builder.mesh(self._undelivered, self._model_names)
        self._build_parts(self.settings.devices, self.settings.pipelines, self.settings.sinks)

    def _build_parts(self, devices: Iterable[str], pipelines: Iterable[str], sinks: Iterable[str]) -> None:
        """Of these names; the others are as they are."""
        builder = self._builder
        for name in sinks:
            self.deliveries[name] = builder.delivery(name, self.store, self.mesh.local if self.mesh else None)
        for name in pipelines:
            self.pipelines[name] = builder.pipeline(name, self.store, self.mesh)
        for name in devices:
            if self._takers(name):
                self.sources[name] = builder.source(name, functools.partial(self._takers, name), self.store)
            else:  # its messages would be acknowledged, and thrown away
                self._log.warning("device_not_read", device=name, hint="no pipeline takes it: add one")

    def _takers(self, device: str) -> list[Pipeline]:
        return [pipeline for pipeline in self.pipelines.values() if pipeline.device == device]

    def _start(self) -> None:
        """Every service, in the order in which they are needed."""
        for name, service in self.mesh.services.items() if self.mesh else ():
            self._services.keep(name, service)
        self._start_parts(self.sources, self.pipelines, self.deliveries)
        self._log.info("gateway_started", site=self.settings.site, devices=len(self.sources), sinks=len(self.deliveries))
        self.started.set()

    def _start_parts(self, devices: Iterable[str], pipelines: Iterable[str], sinks: Iterable[str]) -> None:
        for name in sinks:
            self._services.keep(f"delivery {name}", self.deliveries[name].run)
        for name in pipelines:
            self._services.keep(f"pipeline {name}", self.pipelines[name].run)
        for name in devices:
            if name in self.sources:
                self._services.keep(f"source {name}", self.sources[name].run)

    async def _stop_parts(self, devices: Iterable[str], pipelines: Iterable[str], sinks: Iterable[str]) -> None:
        """The other way round; of a kind all at once, for one that does not answer takes its time."""
        await self._services.drop(*[f"source {name}" for name in devices])
        await self._services.drop(*[f"pipeline {name}" for name in pipelines])
        await self._services.drop(*[f"delivery {name}" for name in sinks])

    async def _drain(self) -> None:
        """Sources end, pipelines finish, deliveries go on for a while; what is left then is on the disk."""
        if self.mesh:
            self.mesh.drain()
        await self._finish(self.sources, self.pipelines)
        await within(self.settings.outbox.drain_s_max, [delivery.drained() for delivery in self.deliveries.values()])

    async def _finish(self, devices: Iterable[str], pipelines: Iterable[str]) -> None:
        """These bring no more samples, and what they brought is handled."""
        names = [name for name in devices if name in self.sources]
        for name in names:
            self.sources[name].stop()
        await self._services.ended([f"source {name}" for name in names], STOP_S_MAX)
        await within(STOP_S_MAX, [self.pipelines[name].finish() for name in pipelines])

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

    def _undelivered(self) -> int:
        """Records that wait for the sink that is furthest behind."""
        return max((sum(delivery.depth().values()) for delivery in self.deliveries.values()), default=0)

    def _model_names(self) -> list[str]:
        """Of the models that the pipelines use now."""
        return [name for pipeline in self.pipelines.values() if (name := pipeline.model_name)]

    @property
    def data_dir(self) -> Path:
        return self._builder.data_dir

    def _watch(self) -> None:
        """Who wants to know how it is, wants to know also while there is no disk."""
        if self.settings.metrics is None and self.world.systemd is None:
            return
        from edge_runtime.watching.watching import Watching  # megabytes and milliseconds that others need not pay

        watching = Watching(self, self._log).services
        self._watchers = tuple(watching)
        for name, service in watching.items():
            self._services.keep(name, service)

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
            await cancel([working, stopping])
