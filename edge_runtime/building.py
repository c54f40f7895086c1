"""Builds the parts of a gateway from its configuration and its world: each object once, nothing is started."""

from __future__ import annotations

import asyncio
import re
from collections.abc import Awaitable, Callable, Mapping, Sequence
from functools import partial
from pathlib import Path
from typing import Any

from edge_runtime import config, references
from edge_runtime.adapter import Adapter, Context
from edge_runtime.address import BadAddress, address
from edge_runtime.bus.local import LocalBus
from edge_runtime.bus.unsealing import UnsealingBus
from edge_runtime.control.actions import Action
from edge_runtime.control.admitted import reached_from
from edge_runtime.control.commands import Commands, Verb
from edge_runtime.control.control import Control
from edge_runtime.control.control import Gateway as Steered
from edge_runtime.control.keeping import Keeping
from edge_runtime.control.neighbours import Neighbours
from edge_runtime.control.neighbours_file import NeighboursFile
from edge_runtime.control.plan import Wiring
from edge_runtime.control.renewing import Renewing
from edge_runtime.control.steering import Steering
from edge_runtime.document import NAME, dotted
from edge_runtime.foreign import made
from edge_runtime.inference.model import Model
from edge_runtime.inference.offering import Offering
from edge_runtime.inference.shared import Shared
from edge_runtime.inference.shelf import Shelf
from edge_runtime.inference.store import ModelMissing
from edge_runtime.mesh.fetching import Fetching
from edge_runtime.mesh.mesh import Mesh
from edge_runtime.outbox.database import PAGE_BYTES
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.outbox.file import OutboxFile
from edge_runtime.outbox.store import Store
from edge_runtime.pipeline.pipeline import Pipeline
from edge_runtime.ports import Address, EdgeError, Receipt, SecretError, SinkError
from edge_runtime.records import LANES, Lane, Record, Sample
from edge_runtime.sources.reporting import Reporter
from edge_runtime.sources.supervisor import Lines, Source
from edge_runtime.sources.unmade import Unmade, tried
from edge_runtime.trust.identity import Identity
from edge_runtime.world import World

OFFERING = "models for peers"
"""Name of a service."""

NEIGHBOURS, NEIGHBOURS_PAGES = "neighbours.db", 64
"""File in `data_dir`, and the pages of its WAL."""

ROOM_S = 0.005
"""Between two looks at whether the pipelines of a source that waits have room for more."""

WAL_SHARE = 8
"""One part in so many of the outbox's cap is for the WAL."""


def wal_pages(size_bytes_max: int) -> int:
    """Of an outbox with this cap."""
    return max(16, min(1000, size_bytes_max // WAL_SHARE // PAGE_BYTES))


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
        self._fetching: Fetching | None = None
        self._secrets = world.secrets(folder / config.secrets_folder(settings))
        broker = settings.broker
        self._bus = LocalBus(UnsealingBus(world.bus, self.reveal), "" if broker.mode == "none" else broker.url, identity)

    def use(self, settings: config.Config, kept: config.Config | None) -> None:
        """From now on. `kept`: the configuration that may come back; what waits on the disk for its sinks and pipelines stays."""
        self._settings, self._kept = settings, kept

    # --- what the configuration says ---

    @property
    def data_dir(self) -> Path:
        return self.resolve(self._settings.data_dir)

    def resolve(self, name: str) -> Path:
        return self._folder / name

    def reveal(self, text: str) -> str:
        """Of `secret:NAME` what NAME is now; of all else itself. Raises SecretError, which says where the configuration asks."""
        name = references.name_in(text)
        if not name:
            return text
        try:
            return self._secrets.get(name)
        except SecretError as error:
            said = self._settings.model_dump(mode="json")
            where = ", ".join(dotted(path) for path, found in references.found(said) if found == name)
            raise SecretError(f"{where}: {error.cause}", error.hint) from None

    def takers(self) -> tuple[dict[str, list[Lane]], list[tuple[str, str]], list[str], int]:
        """For whom the disk keeps what: lanes by sink, pipelines with their devices, the sinks that are to the broker only; and
        the cap of the configuration that may come back (0: there is none). A pipeline that reads another device on trial stands
        there with both: what its old one was told to be accepted is needed when it comes back."""
        found = [self._settings, self._kept] if self._kept else [self._settings]
        sinks = {name: sink for each in reversed(found) for name, sink in each.sinks.items()}
        taken = {name: [lane for each in found for lane in _lanes(each, name)] for name in sinks}
        return (
            {name: [lane for lane in LANES if lane in lanes] for name, lanes in taken.items()},
            list(dict.fromkeys((name, pipeline.device) for each in found for name, pipeline in each.pipelines.items())),
            [name for name, sink in sinks.items() if sink.type == "mqtt" and not sink.receiver],
            self._kept.outbox.size_bytes_max if self._kept else 0,
        )

    # --- the disk ---

    def store(self) -> Store:
        outbox, world = self._settings.outbox, self._world
        pages = wal_pages(outbox.size_bytes_max)
        file = OutboxFile(
            world.new_disk(pages),
            self.data_dir / outbox.file,
            world.clock,
            size_bytes_max=outbox.size_bytes_max,
            wal_bytes=2 * pages * PAGE_BYTES,
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
        """What only the adapter knows of a device that may be. Raises EdgeError: it cannot be made."""
        adapter = self._made(name, device)
        return Wiring(adapter.context.line.key, adapter.redelivers)

    def adapter(self, name: str) -> Adapter:
        device = self._settings.devices[name]
        try:
            return self._made(name, device)
        except EdgeError as error:
            return Unmade(self._context(name, device, name), error)

    def _made(self, name: str, device: config.Device) -> Adapter:
        schema = self._world.adapters[device.adapter]
        new = partial(tried, schema, name, device, partial(self._context, name, device))
        return made(new, f"device {name}: its adapter {device.adapter} cannot be made")

    def _context(self, name: str, device: config.Device, line: str) -> Context:
        schema = self._world.adapters[device.adapter]
        return Context(
            device=name, options=schema.Options.model_validate(device.options),
            points=tuple(schema.Point.model_validate(point) for point in device.points),
            clock=self._world.clock, dice=self._world.dice, line=self._lines.get(line), bus=self._bus, log=self._log,
            resolve=self.resolve, reveal=self.reveal,
        )  # fmt: skip

    def source(self, name: str, takers: Callable[[], Sequence[Pipeline]], store: Store) -> Source:
        """`takers`: the pipelines that take its samples now."""

        async def offer(samples: Sequence[Sample]) -> None:
            for pipeline in takers():
                pipeline.offer(samples)

        async def offer_slowly(samples: Sequence[Sample]) -> None:
            for sample in samples:
                while any(self._is_full(pipeline) for pipeline in takers()):  # noqa: ASYNC110 - of several, which may change
                    await asyncio.sleep(ROOM_S)
                await offer([sample])

        async def journal(samples: Sequence[Sample]) -> None:
            await store.journal(name, samples)

        async def unreachable(samples: Sequence[Sample]) -> None:
            for pipeline in takers():
                pipeline.note_lost(samples)

        adapter = self.adapter(name)
        device = self._settings.devices[name]
        accept = journal if adapter.redelivers else offer_slowly if adapter.waits else offer
        return Source(adapter, device, accept, unreachable, self._world.writes)

    def _is_full(self, pipeline: Pipeline) -> bool:
        """For a while: nobody waits for one that stands still (no such model)."""
        settings = self._settings.pipelines.get(pipeline.name)
        return settings is not None and not pipeline.state.cause and pipeline.waiting >= settings.queue_max

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

        def opening() -> Awaitable[Model]:
            return world.open_model(reference, folders, engine, accelerator, lambda: world.new_worker(worker), world.clock)

        try:
            return await opening()
        except ModelMissing:
            if self._fetching is None or not re.fullmatch(NAME, reference) or not await self._fetching.fetch(reference):
                raise
        return await opening()

    # --- from the disk to a far end ---

    def delivery(self, name: str, store: Store, local: Callable[[], Address] | None) -> Delivery:
        world, settings = self._world, self._settings.sinks[name]
        try:
            sink = world.make_sink(
                name,
                settings,
                site=self._settings.site,
                gateway=self._settings.gateway,
                bus=self._bus,
                new_worker=lambda: world.new_worker(f"sink-{name}"),
                local=local,
                resolve=self.resolve,
                identity=self._identity if self._is_local(settings) else None,
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

    def _is_local(self, settings: config.AnySink) -> bool:
        """Whether its far end is on the site's broker."""
        try:
            return settings.type == "mqtt" and (settings.url == "local" or self._bus.is_local(address(settings.url)))
        except BadAddress:
            return False  # the sink says so

    # --- the other gateways ---

    def mesh(self, depth: Callable[[], int], needs: Callable[[], Sequence[str]]) -> Mesh:
        """`depth`: records that wait for a sink; `needs`: names of the models that the pipelines use, as they are now."""
        world, settings = self._world, self._settings
        together = config.together(settings)
        offering = self._offering = Offering(lambda: mesh.refresh(), world.dice, self._log)
        self.offer()
        mesh = Mesh(
            settings,
            bus=self._bus,
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
        self._fetching = Fetching(
            mesh.link,
            Shelf(self.resolve(settings.models_dir)),
            lambda: [birth.gateway for birth in mesh.presence.peers.alive()],
            lambda: world.new_worker("models"),
            world.dice,
            self._log,
            allowed=self._identity is not None or settings.control.from_network or not reached_from(settings),
        )
        mesh.services["models from peers"] = self._fetching.run
        self._bus.local = mesh.local
        return mesh

    def belonging(self, steering: Steering, mesh: Mesh) -> tuple[Keeping, Renewing] | None:
        """To the site, where there is one: its roster, and our certificate."""
        world, identity, note = self._world, steering.identity, steering.audit.note
        if identity is None:
            return None
        keeping = Keeping(
            mesh.link, identity, note, lambda: world.new_worker("roster"), world.dice, self._log, lambda: self._bus.refuses_us
        )  # fmt: skip
        renewing = Renewing(mesh.link, identity, note, lambda: world.new_worker("renewal"), world.clock, self._log)
        keeping.changed += [mesh.refresh_roster, self._bus.leave_revoked, renewing.look]
        mesh.link.joined += [keeping.joined, renewing.joined]
        return keeping, renewing

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
        neighbours = self._neighbours(steering.identity, mesh, control)
        mesh.link.joined.append(neighbours.joined)
        control.calling.then.append(neighbours.repeat)
        control.services["control neighbours"] = neighbours.run
        return control

    def _neighbours(self, identity: Identity | None, mesh: Mesh, control: Control) -> Neighbours:
        world, file = self._world, NeighboursFile(self._world.new_disk(NEIGHBOURS_PAGES), self.data_dir / NEIGHBOURS)
        return Neighbours(
            mesh.link,
            identity,
            lambda: self._settings,
            file,
            lambda: world.new_worker("neighbours"),
            lambda: control.waits,
            world.dice,
            self._log,
        )

    def commands(
        self, steering: Steering, verbs: Mapping[str, Verb], settings: Callable[[], config.Config], mesh: Mesh, control: Control
    ) -> Commands:
        return Commands(steering, settings, mesh.link, verbs, self._world.clock, control.calling.call, self._log)

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
