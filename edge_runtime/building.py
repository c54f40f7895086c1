"""Builds the parts of a gateway from its configuration and its world: each object once, nothing is started."""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import Any

from edge_runtime import config
from edge_runtime.adapter import Adapter, Context
from edge_runtime.control.actions import Action
from edge_runtime.control.commands import Commands, Verb
from edge_runtime.control.control import Control
from edge_runtime.control.control import Gateway as Steered
from edge_runtime.control.plan import Wiring
from edge_runtime.control.steering import Steering
from edge_runtime.inference.model import Model
from edge_runtime.inference.offering import Offering
from edge_runtime.inference.shared import Shared
from edge_runtime.mesh.mesh import Mesh
from edge_runtime.outbox.database import PAGE_BYTES
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.outbox.file import OutboxFile
from edge_runtime.outbox.store import Store
from edge_runtime.pipeline.pipeline import Pipeline
from edge_runtime.ports import Address, Receipt, SinkError
from edge_runtime.records import LANES, Lane, Record, Sample
from edge_runtime.sources.reporting import Reporter
from edge_runtime.sources.supervisor import Lines, Source
from edge_runtime.trust.identity import Identity
from edge_runtime.world import World

OFFERING = "models for peers"
"""Name of a service."""

WAL_SHARE = 8
"""One part in so many of the outbox's cap is for the WAL."""


class Builder:
    """Of one gateway."""

    def __init__(
        self,
        settings: config.Config,
        kept: config.Config | None,
        folder: Path,
        world: World,
        log: Any,
        identity: Identity | None = None,
    ) -> None:
        self._identity = identity
        self._settings, self._kept, self._folder, self._world, self._log = settings, kept, folder, world, log
        self._lines = Lines()

    def use(self, settings: config.Config, kept: config.Config | None) -> None:
        """From now on. `kept`: the configuration that may come back; what waits on the disk for its sinks and pipelines stays."""
        self._settings, self._kept = settings, kept

    # --- what the configuration says ---

    @property
    def data_dir(self) -> Path:
        return self.resolve(self._settings.data_dir)

    def resolve(self, name: str) -> Path:
        return self._folder / name

    def takers(self) -> tuple[dict[str, list[Lane]], dict[str, str], list[str]]:
        """For whom the disk keeps what: lanes by sink, device by pipeline, and the sinks that are to the broker only."""
        found = [self._settings, self._kept] if self._kept else [self._settings]
        sinks = {name: sink for each in reversed(found) for name, sink in each.sinks.items()}
        taken = {name: [lane for each in found for lane in _lanes(each, name)] for name in sinks}
        return (
            {name: [lane for lane in LANES if lane in lanes] for name, lanes in taken.items()},
            {name: pipeline.device for each in reversed(found) for name, pipeline in each.pipelines.items()},
            [name for name, sink in sinks.items() if sink.type == "mqtt" and not sink.receiver],
        )

    # --- the disk ---

    def store(self) -> Store:
        outbox, world = self._settings.outbox, self._world
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

    # --- from a device to the disk ---

    def wire(self, name: str, device: config.Device) -> Wiring:
        """What only the adapter knows of a device that may be."""
        adapter = self.adapter(name, device)
        return Wiring(adapter.context.line.key, adapter.redelivers)

    def adapter(self, name: str, device: config.Device | None = None) -> Adapter:
        device = device or self._settings.devices[name]
        schema = self._world.adapters[device.adapter]
        options = schema.Options.model_validate(device.options)
        return schema(
            Context(
                device=name,
                options=options,
                points=tuple(schema.Point.model_validate(point) for point in device.points),
                clock=self._world.clock,
                dice=self._world.dice,
                line=self._lines.get(schema.line(name, options)),
                bus=self._world.bus,
                log=self._log,
                resolve=self.resolve,
            )
        )

    def source(self, name: str, takers: Callable[[], Sequence[Pipeline]], store: Store) -> Source:
        """`takers`: the pipelines that take its samples now."""

        async def offer(samples: Sequence[Sample]) -> None:
            for pipeline in takers():
                pipeline.offer(samples)

        async def journal(samples: Sequence[Sample]) -> None:
            await store.journal(name, samples)

        async def unreachable(samples: Sequence[Sample]) -> None:
            for pipeline in takers():
                pipeline.note_lost(samples)

        adapter = self.adapter(name)
        device = self._settings.devices[name]
        return Source(adapter, device, journal if adapter.redelivers else offer, unreachable)

    def pipeline(self, name: str, store: Store, mesh: Mesh | None, act: Callable[[Action], None]) -> Pipeline:
        settings = self._settings.pipelines[name]
        adapter = self.adapter(settings.device)
        points = adapter.context.points

        async def open_model() -> Model | None:
            if settings.model is None:
                return None
            return await self._open_model(settings.model, settings.engine, settings.accelerator, f"model-{name}")

        return Pipeline(
            name,
            settings,
            [point.name for point in points],
            journaled=adapter.redelivers,
            open_model=open_model,
            store=store,
            reporter=Reporter(points),
            dice=self._world.dice,
            log=self._log,
            identity=f"{self._settings.site}/{self._settings.gateway}",
            act=act,
            place=Shared(settings, mesh.placing) if mesh and self._settings.mesh else None,
        )

    async def _open_model(self, reference: str, engine: str, accelerator: str, worker: str) -> Model:
        world, folders = self._world, [self.resolve(self._settings.models_dir)]
        return await world.open_model(reference, folders, engine, accelerator, lambda: world.new_worker(worker), world.clock)

    # --- from the disk to a far end ---

    def delivery(self, name: str, store: Store, local: Callable[[], Address] | None) -> Delivery:
        world, settings = self._world, self._settings.sinks[name]
        try:
            sink = world.make_sink(
                name,
                settings,
                site=self._settings.site,
                gateway=self._settings.gateway,
                bus=world.bus,
                new_worker=lambda: world.new_worker(f"sink-{name}"),
                local=local,
                resolve=self.resolve,
            )
        except SinkError as error:
            sink = _Unmade(error)
        return Delivery(
            name,
            sink,
            config.lanes(settings),
            store,
            batch_records_max=settings.batch_records_max,
            dice=world.dice,
            log=self._log,
        )

    # --- the other gateways ---

    def mesh(self, depth: Callable[[], int], needs: Callable[[], Sequence[str]]) -> Mesh:
        """`depth`: records that wait for a sink; `needs`: names of the models that the pipelines use, as they are now."""
        world, settings = self._world, self._settings
        together = config.together(settings)
        offering = self._offering = Offering(lambda: mesh.refresh(), world.dice, self._log)
        self.offer()
        mesh = Mesh(
            settings,
            bus=world.bus,
            discovery=world.new_discovery(together, settings.broker.listen),
            new_host=lambda: world.new_host(settings.broker, self.data_dir / "broker", self._identity),
            identity=self._identity,
            reachable=lambda: world.reachable(settings) if settings.mesh else (),
            executor=offering,
            needs=needs,
            read_vitals=world.vitals(self.data_dir),
            new_worker=lambda: world.new_worker("vitals"),
            outbox_depth=depth,
            version=world.version,
            clock=world.clock,
            dice=world.dice,
            log=self._log,
        )
        mesh.services[OFFERING] = offering.run
        return mesh

    def control(self, steering: Steering, gateway: Steered, mesh: Mesh) -> Control:
        control = Control(
            steering,
            gateway,
            mesh.link,
            self._world.adapters,
            clock=self._world.clock,
            dice=self._world.dice,
            log=self._log,
        )
        mesh.link.joined.append(control.joined)
        return control

    def commands(
        self, steering: Steering, verbs: Mapping[str, Verb], settings: Callable[[], config.Config], mesh: Mesh
    ) -> Commands:
        return Commands(steering, settings, mesh.link, verbs, self._world.clock, self._log)

    def offer(self) -> None:
        """To the peers: the models of its own pipelines, as they run them, and those that it only offers."""
        mesh = config.together(self._settings)
        how = dict.fromkeys(mesh.offers, ("auto", "cpu"))
        how.update({each.model: (each.engine, each.accelerator) for each in self._settings.pipelines.values() if each.model})

        async def open_model(reference: str) -> Model:
            engine, accelerator = how[reference]
            return await self._open_model(reference, engine, accelerator, "model-for-peers")

        self._offering.use(list(how) if mesh.accept_tasks else [], open_model)


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


def _lanes(settings: config.Config, sink: str) -> list[Lane]:
    return config.lanes(settings.sinks[sink]) if sink in settings.sinks else []
