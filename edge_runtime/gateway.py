"""The composition root: builds every object of a gateway once, runs them, and stops them in the order in which data flows.

    sources -> (input journal) -> pipelines -> outbox -> deliveries -> sinks

Start: disk, deliveries, pipelines, sources: nobody speaks before somebody listens. Stop: the other way round, so that what was
accepted is on the disk and, if the far ends take it in time, delivered.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, Protocol

from edge_runtime import config
from edge_runtime.adapter import Adapter, Context
from edge_runtime.inference.model import Model, open_model
from edge_runtime.outbox.database import PAGE_BYTES
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.outbox.file import OutboxFile
from edge_runtime.outbox.store import Store
from edge_runtime.pipeline.pipeline import Pipeline
from edge_runtime.ports import Address, Bus, Clock, Dice, Disk, Sink, Worker
from edge_runtime.records import Lane, Sample
from edge_runtime.sources.reporting import Reporter
from edge_runtime.sources.supervisor import Lines, Source

RESTART_S_MIN, RESTART_S_MAX = 1.0, 30.0
"""Wait before a service that failed unexpectedly is started again."""

STOP_S_MAX = 5.0
"""For sources to end and for pipelines to finish what has come in."""

WAL_SHARE = 8
"""One part in so many of the outbox's cap is for the WAL."""


class Host(Protocol):
    """A broker that we start ourselves."""

    async def start(self) -> Address: ...
    async def run(self) -> None: ...
    async def stop(self) -> None: ...


class MakeSink(Protocol):
    def __call__(
        self, name: str, settings: config.AnySink, *, site: str, gateway: str, bus: Bus, new_worker: Callable[[], Worker],
        local: Address | None, resolve: Callable[[str], Path],
    ) -> Sink: ...  # fmt: skip


@dataclass(frozen=True)
class World:
    """Everything outside the process, behind ports. cli/run.py makes the real one, testing/ a seeded one."""

    clock: Clock
    dice: Dice
    bus: Bus
    adapters: Mapping[str, type[Adapter]]
    new_worker: Callable[[str], Worker]
    new_disk: Callable[[int], Disk]
    make_sink: MakeSink
    new_host: Callable[[config.Broker, Path], Host]
    local_address: Callable[[str], Address]
    log: Any


@dataclass
class Gateway:
    """One gateway. `run` returns when `stop` was called and everything is on the disk."""

    settings: config.Config
    folder: Path
    world: World
    sources: dict[str, Source] = field(default_factory=dict)
    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    deliveries: dict[str, Delivery] = field(default_factory=dict)

    def __post_init__(self) -> None:
        self._stopping = asyncio.Event()
        self._log = self.world.log.bind(gateway=self.settings.gateway)
        self._host: Host | None = None
        self._lines = Lines()
        self._adapters: dict[str, Adapter] = {}
        self.store = self._build_store()
        self.started = asyncio.Event()

    def stop(self) -> None:
        """Begins a clean stop; `run` returns when it is done."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    async def run(self) -> None:
        """Until `stop`, or until something fails that no restart can mend (it raises)."""
        local = await self._start_broker()
        await self.store.open(self._sink_lanes(), self._pipeline_devices())
        self._adapters = {name: self._build_adapter(name, device) for name, device in self.settings.devices.items()}
        self.deliveries = {name: self._build_delivery(name, sink, local) for name, sink in self.settings.sinks.items()}
        self.pipelines = {name: self._build_pipeline(name, pipeline) for name, pipeline in self.settings.pipelines.items()}
        self.sources = {name: self._build_source(name, device) for name, device in self.settings.devices.items()}
        services = [
            *([self._keep("broker", self._host.run)] if self._host else []),
            *[self._keep(f"delivery {name}", delivery.run) for name, delivery in self.deliveries.items()],
            *[self._keep(f"pipeline {name}", pipeline.run) for name, pipeline in self.pipelines.items()],
        ]
        readers = [self._keep(f"source {name}", source.run) for name, source in self.sources.items()]
        self._log.info("gateway_started", site=self.settings.site, devices=len(readers), sinks=len(self.deliveries))
        self.started.set()
        try:
            await self._stopping.wait()
            await self._drain(readers)
        finally:
            await _cancel([*readers, *services])
            if self._host:
                await self._host.stop()
        await self.store.close()
        self._log.info("gateway_stopped", undelivered={name: sum(d.depth().values()) for name, d in self.deliveries.items()})

    async def _drain(self, readers: Sequence[asyncio.Task[None]]) -> None:
        """Sources end, pipelines finish, deliveries go on for a while; what is left then is on the disk."""
        for source in self.sources.values():
            source.stop()
        if readers:
            await asyncio.wait(readers, timeout=STOP_S_MAX)
        await _within(STOP_S_MAX, [pipeline.finish() for pipeline in self.pipelines.values()])
        await _within(self.settings.outbox.drain_s_max, [delivery.drained() for delivery in self.deliveries.values()])

    def _keep(self, name: str, service: Callable[[], Awaitable[None]]) -> asyncio.Task[None]:
        """Runs a service; an error that it did not expect ends only this one, and it is started again after a while."""

        async def supervised() -> None:
            wait_s = RESTART_S_MIN
            while True:
                try:
                    return await service()
                except Exception as error:  # noqa: BLE001 - a supervisor: one service's bug must not stop the others
                    self._log.exception(
                        "service_failed", service=name, error=f"{type(error).__name__}: {error}", again_in_s=wait_s
                    )
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RESTART_S_MAX)

        return asyncio.create_task(supervised(), name=name)

    # --- building ---

    def _build_store(self) -> Store:
        outbox, world = self.settings.outbox, self.world
        wal_pages = max(16, min(1000, outbox.size_bytes_max // WAL_SHARE // PAGE_BYTES))
        file = OutboxFile(
            world.new_disk(wal_pages),
            self.data_dir / outbox.file,
            world.clock,
            size_bytes_max=outbox.size_bytes_max,
            wal_bytes=2 * wal_pages * PAGE_BYTES,
        )
        return Store(
            file,
            journal_rows_max=outbox.journal_rows_max,
            writer=world.new_worker("outbox-writer"),
            reader=world.new_worker("outbox-reader"),
            dice=world.dice,
            log=self._log,
        )

    def _build_delivery(self, name: str, settings: config.AnySink, local: Address | None) -> Delivery:
        world = self.world
        sink = world.make_sink(
            name,
            settings,
            site=self.settings.site,
            gateway=self.settings.gateway,
            bus=world.bus,
            new_worker=lambda: world.new_worker(f"sink-{name}"),
            local=local,
            resolve=self._resolve,
        )
        lanes = self._sink_lanes()[name]
        return Delivery(
            name, sink, lanes, self.store, batch_records_max=settings.batch_records_max, dice=world.dice, log=self._log
        )

    def _build_pipeline(self, name: str, settings: config.Pipeline) -> Pipeline:
        adapter = self._adapters[settings.device]
        points = adapter.context.points
        return Pipeline(
            name,
            settings,
            [point.name for point in points],
            journaled=adapter.redelivers,
            open_model=lambda: self._open_model(name, settings),
            store=self.store,
            reporter=Reporter(points),
            dice=self.world.dice,
            log=self._log,
            identity=f"{self.settings.site}/{self.settings.gateway}",
        )

    async def _open_model(self, name: str, settings: config.Pipeline) -> Model | None:
        if settings.model is None:
            return None
        folders = [self._resolve(self.settings.models_dir)]
        world = self.world
        model = await open_model(
            settings.model, folders, settings.engine, settings.accelerator, lambda: world.new_worker(f"model-{name}"), world.clock
        )
        self._log.info(
            "model_loaded", pipeline=name, model=model.name, executed_on=model.executed_on, artefact=model.artefact[:12]
        )
        return model

    def _build_adapter(self, name: str, device: config.Device) -> Adapter:
        schema = self.world.adapters[device.adapter]
        options = schema.Options.model_validate(device.options)
        return schema(
            Context(
                device=name,
                options=options,
                points=tuple(schema.Point.model_validate(point) for point in device.points),
                clock=self.world.clock,
                dice=self.world.dice,
                line=self._lines.get(schema.line(name, options)),
                bus=self.world.bus,
                log=self._log,
                resolve=self._resolve,
            )
        )

    def _build_source(self, name: str, device: config.Device) -> Source:
        takers = [pipeline for pipeline in self.pipelines.values() if pipeline.device == name]

        async def offer(samples: Sequence[Sample]) -> None:
            for pipeline in takers:
                pipeline.offer(samples)

        async def journal(samples: Sequence[Sample]) -> None:
            if takers:
                await self.store.journal(name, samples)

        async def unreachable(samples: Sequence[Sample]) -> None:
            for pipeline in takers:
                pipeline.note_lost(samples)

        adapter = self._adapters[name]
        return Source(adapter, device, journal if adapter.redelivers else offer, unreachable)

    async def _start_broker(self) -> Address | None:
        broker = self.settings.broker
        if broker.mode == "hosted":
            self._host = self.world.new_host(broker, self.data_dir / "broker")
            return await self._host.start()
        return self.world.local_address(broker.url) if broker.mode == "external" else None

    # --- what the configuration says ---

    @property
    def data_dir(self) -> Path:
        return self._resolve(self.settings.data_dir)

    def _resolve(self, name: str) -> Path:
        return self.folder / name

    def _sink_lanes(self) -> dict[str, list[Lane]]:
        return {name: [Lane(lane) for lane in sink.lanes] for name, sink in self.settings.sinks.items()}

    def _pipeline_devices(self) -> dict[str, str]:
        return {name: pipeline.device for name, pipeline in self.settings.pipelines.items()}


async def _within(limit_s: float, waits: Sequence[Awaitable[None]]) -> None:
    """All of them, or until the time is up."""
    tasks = [asyncio.ensure_future(wait) for wait in waits]
    if tasks:
        _, late = await asyncio.wait(tasks, timeout=limit_s)
        await _cancel(list(late))


async def _cancel(tasks: Sequence[asyncio.Future[None]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
