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
from collections.abc import Awaitable, Iterable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path

from edge_runtime import condition, config
from edge_runtime.building import OFFERING, Builder
from edge_runtime.control.actions import ACTION_S_MAX, Actions, Due
from edge_runtime.control.commands import Commands
from edge_runtime.control.control import Control
from edge_runtime.control.keeping import Keeping
from edge_runtime.control.plan import Plan, Wiring
from edge_runtime.control.renewing import Renewing
from edge_runtime.control.steering import Steering
from edge_runtime.control.trial import Part
from edge_runtime.mesh.mesh import Mesh
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.pipeline.pipeline import Pipeline
from edge_runtime.records import Outcome, Value
from edge_runtime.services import Failure, Services, cancel, within
from edge_runtime.sources.supervisor import Source
from edge_runtime.verbs import verbs
from edge_runtime.world import World

STOP_S_MAX = 5.0
"""Of a clean stop: for sources to end, then for pipelines to finish what has come in, then for the disk to take the rest."""


@dataclass
class Gateway:
    """One gateway. `run` returns when `stop` was called and everything is on the disk."""

    settings: config.Config
    folder: Path
    world: World
    steering: Steering | None = None
    """Where its settings come from, and who may change them; None: nobody may."""
    sources: dict[str, Source] = field(default_factory=dict)
    pipelines: dict[str, Pipeline] = field(default_factory=dict)
    deliveries: dict[str, Delivery] = field(default_factory=dict)
    mesh: Mesh | None = None
    """The other gateways, and the connection to the local broker; None: there is no broker."""
    control: Control | None = None
    commands: Commands | None = None
    keeping: Keeping | None = None
    """Of the site's roster; None: there is no site."""
    renewing: Renewing | None = None
    pages: condition.Pages | None = None
    """For whoever wants to know how it is; None: nobody does."""
    kept: config.Config | None = None
    """While `settings` are on trial: those that may come back. What waits on the disk for their sinks and pipelines stays."""
    left: Sequence[Due] = ()
    """What rules wanted done of the gateway before this one."""
    successor: config.Config | None = None
    """After `run`: it has ended to make room for a gateway with these settings."""

    def __post_init__(self) -> None:
        self.asked_to_stop = asyncio.Event()
        self._log = self.world.log.bind(gateway=self.settings.gateway)
        identity = self.steering.identity if self.steering else None
        self._builder = Builder(self.settings, self.kept, self.folder, self.world, self._log, identity)
        self._services = Services(self._log)
        self._changed_s = 0.0
        self._watchers: tuple[str, ...] = ()
        audit = self.steering.audit if self.steering else None
        self.actions = Actions(self._write, self._is_connected, audit, self.world.clock, self._log, self.left)
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
        self._meet()
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
        await self.store.open(*self._builder.takers())
        self._build_parts(self.settings.devices, self.settings.pipelines, self.settings.sinks)
        for pipeline in self.pipelines.values():
            await pipeline.prepare()

    def _meet(self) -> None:
        """The local broker, and who steers us there: also while there is no disk, or a configuration that the disk cannot hold
        could never be taken back."""
        if self.settings.broker.mode == "none":
            return
        mesh = self.mesh = self._builder.mesh(self._undelivered, self._model_names)
        services = dict(mesh.services)
        if self.steering:
            self.control = self._builder.control(self.steering, self, mesh)
            self.commands = self._builder.commands(self.steering, verbs(self), lambda: self.settings, mesh, self.control)
            services |= {**self.control.services, "commands": self.commands.run}
            self.keeping, self.renewing = self._builder.belonging(self.steering, mesh) or (None, None)
            if self.keeping and self.renewing:
                services |= {"roster": self.keeping.run, "renewal": self.renewing.run}
        for name, service in services.items():
            self._services.keep(name, service)

    def _build_parts(self, devices: Iterable[str], pipelines: Iterable[str], sinks: Iterable[str]) -> None:
        """Of these names; the others are as they are."""
        builder = self._builder
        for name in sinks:
            self.deliveries[name] = builder.delivery(name, self.store, self.mesh.local if self.mesh else None)
        for name in pipelines:
            self.pipelines[name] = builder.pipeline(name, self.store, self.mesh, self.actions.take)
        for name in devices:
            if name in self.sources:
                continue
            if self._takers(name):
                self.sources[name] = builder.source(name, functools.partial(self._takers, name), self.store)
            else:  # its messages would be acknowledged, and thrown away
                self._log.warning("device_not_read", device=name, hint="no pipeline takes it: add one")

    def _takers(self, device: str) -> list[Pipeline]:
        return [pipeline for pipeline in self.pipelines.values() if pipeline.device == device]

    def _start(self) -> None:
        """Every service, in the order in which they are needed."""
        self._services.keep("rule actions", self.actions.run)
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
        await within(ACTION_S_MAX, [self.actions.drained()])  # while there are devices to write to
        await self._finish(self.sources, self.pipelines)
        if self.successor is None:  # else they go on in a moment
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

    # --- another configuration ---

    def become(self, settings: config.Config) -> None:
        """Ends, for a gateway with these settings to begin in the same process (`successor`)."""
        self.successor = settings
        self.stop()

    async def change(self, settings: config.Config, plan: Plan, kept: config.Config | None) -> None:
        """Does what the plan says, while all other parts go on. A polled device's samples wait meanwhile; what devices that ask
        again sent is in the journal. Raises EdgeError: then it is neither the old nor the new one, and has to `become` one."""
        devices, pipelines, sinks = [(*each.removed, *each.changed) for each in (plan.devices, plan.pipelines, plan.sinks)]
        await self._finish(devices, [])
        await self._services.drop(*[f"source {name}" for name in devices])
        for name in devices:
            self.sources.pop(name, None)
        await self._finish([], pipelines)
        await self._stop_parts([], pipelines, sinks)
        for name in pipelines:
            del self.pipelines[name]
        for name in sinks:
            del self.deliveries[name]
        self.settings, self.kept, self._changed_s = settings, kept, asyncio.get_running_loop().time()
        self._builder.use(settings, kept)
        await self.store.know(*self._builder.takers())
        await self._begin(plan)

    async def _begin(self, plan: Plan) -> None:
        """What is new in the settings."""
        settings, standing = self.settings, plan.pipelines.standing
        self._build_parts([], standing, plan.sinks.standing)
        for name in standing:
            await self.pipelines[name].prepare()
        for name in plan.rules:
            self.pipelines[name].use_rules(settings.pipelines[name])
        unread = [name for name in settings.devices if name not in self.sources]
        self._build_parts(unread, [], [])
        self._start_parts(unread, standing, plan.sinks.standing)
        await self._retire([name for name in self.sources if not self._takers(name)])
        if self.mesh and plan.offers:
            await self._services.drop(OFFERING)
            self._builder.offer()
            self._services.keep(OFFERING, self.mesh.services[OFFERING])
        if plan.metrics:
            await self._services.drop(*self._watchers)
            self._watch()
        self.world.use_log(settings.log)

    async def settle(self) -> None:
        """The settings before these will not come back."""
        self.kept = None
        self._builder.use(self.settings, None)
        await self.store.know(*self._builder.takers())

    async def _retire(self, devices: Iterable[str]) -> None:
        """Nobody takes what they bring any more."""
        for name in devices:
            await self._services.drop(f"source {name}")
            del self.sources[name]
            self._log.warning("device_not_read", device=name, hint="no pipeline takes it: add one")

    def _is_connected(self, device: str) -> bool:
        return device in self.sources and self.sources[device].state.phase == "connected"

    async def _write(self, device: str, point: str, value: Value, until_ns: int) -> Outcome:
        """For a rule."""
        source = self.sources.get(device)
        if source is None:
            return Outcome(outcome="refused", requested=value, cause=f"the device {device} is not read")
        return await source.write(point, value, until_ns=until_ns)

    def show(self, digest: str, safe: bool) -> None:
        """Says in its birth what it runs."""
        if self.mesh and (self.mesh.presence.config, self.mesh.presence.safe) != (digest, safe):
            self.mesh.presence.config, self.mesh.presence.safe = digest, safe
            self.mesh.refresh()

    # --- for who asks ---

    def wire(self, name: str, device: config.Device, /) -> Wiring:
        """What only its adapter knows of a device."""
        return self._builder.wire(name, device)

    def parts(self) -> Mapping[str, Part]:
        """How each one is, since the last change."""
        return condition.parts(self, self._changed_s)

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
        self.pages = None
        if self.settings.metrics is None and self.world.systemd is None:
            return
        from edge_runtime.watching.watching import Watching  # megabytes and milliseconds that others need not pay

        self.pages = watching = Watching(self, self._log)
        self._watchers = tuple(watching.services)
        for name, service in watching.services.items():
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
