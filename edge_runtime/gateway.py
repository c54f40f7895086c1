"""The composition root: builds every object of a gateway once, runs them, and stops them in the order in which data flows.

    sources -> (input journal) -> pipelines -> outbox -> deliveries -> sinks

Start: disk, deliveries, pipelines, sources: nobody speaks before somebody listens. Stop: the other way round, so that what was
accepted is on the disk and, if the far ends take it in time, delivered. Only the disk is waited for: a broker, a model, a sink or
a device that does not work is shown, tried again, and holds up nobody else.
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
from edge_runtime.ports import Address, BrokerError, Bus, Clock, Dice, Disk, Host, Receipt, Sink, SinkError, Worker
from edge_runtime.records import Lane, Record, Sample
from edge_runtime.sources.reporting import Reporter
from edge_runtime.sources.supervisor import Lines, Source

RESTART_S_MIN, RESTART_S_MAX = 1.0, 30.0
"""Wait before a service that failed unexpectedly, or a broker that does not start, is started again."""

STOP_S_MAX = 5.0
"""Of a clean stop: for sources to end, then for pipelines to finish what has come in, then for the disk to take the rest."""

WAL_SHARE = 8
"""One part in so many of the outbox's cap is for the WAL."""


class MakeSink(Protocol):
    def __call__(
        self, name: str, settings: config.AnySink, *, site: str, gateway: str, bus: Bus, new_worker: Callable[[], Worker],
        local: Address | None, resolve: Callable[[str], Path],
    ) -> Sink: ...  # fmt: skip


OpenModel = Callable[..., Awaitable[Model]]
"""inference.model.open_model, or one like it."""


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
    open_model: OpenModel = open_model


@dataclass(frozen=True)
class BrokerState:
    """Of a hosted broker: `cause` and `hint` say why it does not run."""

    running: bool = False
    cause: str = ""
    hint: str = ""


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

    def __post_init__(self) -> None:
        self._stopping = asyncio.Event()
        self._log = self.world.log.bind(gateway=self.settings.gateway)
        self._lines = Lines()
        self.store = self._build_store()
        self.started = asyncio.Event()

    def stop(self) -> None:
        """Begins a clean stop; `run` returns when it is done. May be called at any time, and again."""
        self._stopping.set()

    @property
    def stopping(self) -> bool:
        return self._stopping.is_set()

    async def run(self) -> None:
        """Until `stop`, or until something fails that no restart can mend (it raises)."""
        services: list[list[asyncio.Task[None]]] = []
        try:
            if await self._unless_stopped(self._open()):
                readers = self._start(services)
                await self._unless_stopped(self.store.ended())
                await self._drain(readers)
        finally:
            for group in reversed(services):
                await _cancel(group)
            await self._close()

    async def _open(self) -> None:
        """Waits for the disk."""
        await self.store.open(self._sink_lanes(), self._pipeline_devices(), self._unconfirmed_sinks())
        self._build()
        for pipeline in self.pipelines.values():
            await pipeline.prepare()

    def _start(self, services: list[list[asyncio.Task[None]]]) -> list[asyncio.Task[None]]:
        """Every service, in groups in the order in which they are needed; returns those that bring samples."""
        hosted = self.settings.broker.mode == "hosted"
        services.append([self._keep("broker", self._host_broker)] if hosted else [])
        services.append([self._keep(f"delivery {name}", delivery.run) for name, delivery in self.deliveries.items()])
        services.append([self._keep(f"pipeline {name}", pipeline.run) for name, pipeline in self.pipelines.items()])
        services.append([self._keep(f"source {name}", source.run) for name, source in self.sources.items()])
        self._log.info("gateway_started", site=self.settings.site, devices=len(self.sources), sinks=len(self.deliveries))
        self.started.set()
        return services[-1]

    async def _drain(self, readers: Sequence[asyncio.Task[None]]) -> None:
        """Sources end, pipelines finish, deliveries go on for a while; what is left then is on the disk."""
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
                    self._log.exception(
                        "service_failed", service=name, error=f"{type(error).__name__}: {error}", again_in_s=wait_s
                    )
                await asyncio.sleep(wait_s)
                wait_s = min(wait_s * 2, RESTART_S_MAX)

        return asyncio.create_task(supervised(), name=name)

    async def _unless_stopped(self, work: Awaitable[None]) -> bool:
        """False: `stop` came first, and the work was given up. Raises what it raises."""
        working = asyncio.ensure_future(work)
        stopping = asyncio.create_task(self._stopping.wait(), name="stopping")
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

    # --- building ---

    def _build(self) -> None:
        settings = self.settings
        local = self.world.local_address(settings.broker.url) if settings.broker.mode != "none" else None
        adapters = {name: self._build_adapter(name, device) for name, device in settings.devices.items()}
        self.deliveries = {name: self._build_delivery(name, sink, local) for name, sink in settings.sinks.items()}
        self.pipelines = {
            name: self._build_pipeline(name, pipeline, adapters[pipeline.device]) for name, pipeline in settings.pipelines.items()
        }
        for name, device in settings.devices.items():
            takers = [pipeline for pipeline in self.pipelines.values() if pipeline.device == name]
            if takers:
                self.sources[name] = self._build_source(name, device, adapters[name], takers)
            else:  # its messages would be acknowledged, and thrown away
                self._log.warning("device_not_read", device=name, hint="no pipeline takes it: add one")

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
        try:
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
        except SinkError as error:
            sink = _Unmade(error)
        lanes = self._sink_lanes()[name]
        return Delivery(
            name, sink, lanes, self.store, batch_records_max=settings.batch_records_max, dice=world.dice, log=self._log
        )

    def _build_pipeline(self, name: str, settings: config.Pipeline, adapter: Adapter) -> Pipeline:
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
        return await world.open_model(
            settings.model, folders, settings.engine, settings.accelerator, lambda: world.new_worker(f"model-{name}"), world.clock
        )

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

    def _build_source(self, name: str, device: config.Device, adapter: Adapter, takers: Sequence[Pipeline]) -> Source:
        async def offer(samples: Sequence[Sample]) -> None:
            for pipeline in takers:
                pipeline.offer(samples)

        async def journal(samples: Sequence[Sample]) -> None:
            await self.store.journal(name, samples)

        async def unreachable(samples: Sequence[Sample]) -> None:
            for pipeline in takers:
                pipeline.note_lost(samples)

        return Source(adapter, device, journal if adapter.redelivers else offer, unreachable)

    # --- what the configuration says ---

    @property
    def data_dir(self) -> Path:
        return self._resolve(self.settings.data_dir)

    def _resolve(self, name: str) -> Path:
        return self.folder / name

    def _sink_lanes(self) -> dict[str, list[Lane]]:
        return {name: [Lane(lane) for lane in sink.lanes] for name, sink in self.settings.sinks.items()}

    def _unconfirmed_sinks(self) -> list[str]:
        """To the broker only."""
        return [name for name, sink in self.settings.sinks.items() if sink.type == "mqtt" and not sink.receiver]

    def _pipeline_devices(self) -> dict[str, str]:
        return {name: pipeline.device for name, pipeline in self.settings.pipelines.items()}


class _Unmade:
    """In the place of a sink whose settings cannot work: it is away for good and says why; the others go on."""

    confirms = False

    def __init__(self, error: SinkError) -> None:
        self._error = error

    async def open(self, epochs: Sequence[str]) -> Receipt:
        raise self._error

    async def send(self, records: Sequence[Record]) -> Receipt:
        raise self._error

    async def close(self) -> None:
        return


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
