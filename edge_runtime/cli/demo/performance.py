"""One run of the demo: starts everything, takes the uplink away and gives it back, drains, and makes the account."""

from __future__ import annotations

import asyncio
import contextlib
import dataclasses
from pathlib import Path

import msgspec

from edge_runtime import config
from edge_runtime.address import address
from edge_runtime.cli.demo import settings
from edge_runtime.cli.demo.account import Account, account
from edge_runtime.cli.demo.children import Children
from edge_runtime.cli.demo.ending import Ending
from edge_runtime.cli.demo.picture import Picture, SinkPicture
from edge_runtime.cli.demo.show import Show
from edge_runtime.cli.demo.taps import Listener, timed
from edge_runtime.cli.demo.watching import Comparison, Latencies, Rate, is_cut
from edge_runtime.cli.run import logger, real_world
from edge_runtime.gateway import Gateway
from edge_runtime.inference import store as models
from edge_runtime.outbox.database import FileDisk
from edge_runtime.ports import BrokerError
from edge_runtime.receiver.account import Statistics
from edge_runtime.sources.registry import Registry

TICK_S = 0.25
"""Between two looks."""

WARM_S_MAX = 30.0
"""The clock of the show starts when the model is loaded and the first records are delivered, on a slow machine too; if that takes
longer it starts anyway, and the account will tell."""


class Performance:
    """`run` once. `seconds` None: until a signal."""

    def __init__(self, folder: Path, seconds: float | None, broker_port: int, show: Show, ending: Ending) -> None:
        self._folder, self._seconds, self._show, self._ending = folder, seconds, show, ending
        self._broker_port = broker_port
        self._children = Children(folder)
        self._comparison, self._latencies = Comparison(), Latencies()
        self._samples, self._results = Rate(), Rate()
        self._stop = asyncio.Event()
        self._playing = self._warm = self._cut = self._noticed = False
        self._healed = self._outages = self._waited_max = 0
        self._elapsed_s = 0.0

    async def run(self) -> tuple[Account, float]:
        """The account, and the seconds it is of. Raises EdgeError: something does not start, or ended by itself."""
        try:
            with self._ending.hear(self._may_drain):
                self._gateway = await self._build()
                await self._children.unless_one_ends(self._perform())
                said = await self._children.finish("receiver")
        finally:
            await self._children.end()
            self._show.close()
        return self._account(msgspec.json.decode(said.splitlines()[-1], type=Statistics)), self._elapsed_s

    def _may_drain(self) -> bool:
        """The first signal drains; a second one, and one before there is anything to drain, ends at once."""
        if not self._playing or self._stop.is_set():
            return False
        self._stop.set()
        return True

    async def _build(self) -> Gateway:
        """Starts the processes around the gateway and makes it."""
        rows = models.find(settings.MODEL, []) / "sample.csv"
        speed = str(settings.ROWS_PER_S)
        press = await self._children.start("press", "edge_runtime.testing.press", "--csv", str(rows), "--rows-per-s", speed)
        options = ("--json", "--http", "127.0.0.1:0", "--file", "records.db")
        receiver = await self._children.start("receiver", "edge_runtime", "receive", *options)
        far_end = str(receiver["http"]).rpartition("/")[2]
        uplink = await self._children.start("uplink", "edge_runtime.testing.relay", "--to", far_end)
        file = self._folder / "gateway.yaml"
        file.write_text(settings.text(broker_port=self._broker_port, press_port=press["port"], uplink_port=uplink["port"]))
        registry = Registry()
        loaded = config.load_file(file, registry)
        world = real_world(registry, logger(loaded.config.log))
        self._clock = world.clock
        self._listener = Listener(world.bus, address(loaded.config.broker.url), self._comparison)
        make_sink = timed(world.make_sink, world.clock, self._latencies)
        return Gateway(loaded.config, loaded.folder, dataclasses.replace(world, make_sink=make_sink))

    # --- the run ---

    async def _perform(self) -> None:
        running = asyncio.create_task(self._gateway.run(), name="gateway")
        started = asyncio.create_task(self._gateway.started.wait(), name="started")
        listening = None
        try:
            await asyncio.wait([running, started], return_when=asyncio.FIRST_COMPLETED)
            if running.done():
                running.result()
            listening = asyncio.create_task(self._listener.run(), name="listener")
            await self._play([running, listening])
            await self._drain(running)
        finally:
            tasks = [task for task in (running, started, listening) if task]
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)

    async def _play(self, needed: list[asyncio.Task[None]]) -> None:
        """Until the time is up or a signal comes. Raises what ends one of `needed`."""
        started_ns = begin_ns = self._clock.mono_ns()
        self._playing = True
        while not self._stop.is_set() and (self._seconds is None or self._elapsed_s < self._seconds):
            for task in needed:
                if task.done():
                    _explain(task)
            wanted = is_cut(self._elapsed_s, self._seconds)
            if wanted != self._cut:
                await self._set_uplink(wanted)
                self._healed += not wanted
            self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):  # wait_for loses a second signal that comes with the first one
                    await self._stop.wait()
            now_ns = self._clock.mono_ns()
            if not self._warm and now_ns - started_ns < WARM_S_MAX * 1e9:
                begin_ns = now_ns
            self._elapsed_s = (now_ns - begin_ns) / 1e9
        self._stop.set()

    async def _drain(self, running: asyncio.Task[None]) -> None:
        await self._set_uplink(False)
        self._gateway.stop()
        while not running.done():
            self._look()
            await asyncio.wait([running], timeout=TICK_S)
        running.result()
        self._look()

    async def _set_uplink(self, cut: bool) -> None:
        if cut and not self._cut:
            self._noticed = False
        self._cut = cut
        await self._children.ask("uplink", "cut" if cut else "heal")

    # --- looking ---

    def _look(self) -> None:
        now = self._picture()
        cloud = now.sink("cloud")
        if not self._warm and now.executed_on and cloud.delivered:
            self._warm = True
            self._latencies.warm(self._clock.mono_ns())
        self._waited_max = max(self._waited_max, cloud.depth)
        if self._cut and not cloud.connected and not self._noticed:
            self._noticed = True
            self._outages += 1
        self._show.picture(now)

    def _picture(self) -> Picture:
        gateway, mono_ns = self._gateway, self._clock.mono_ns()
        anomaly, raw = gateway.pipelines["anomaly"].state, gateway.pipelines["raw"].state
        store = gateway.store.state
        return Picture(
            elapsed_s=round(self._elapsed_s, 2),
            seconds=self._seconds,
            draining=gateway.stopping,
            uplink="cut" if self._cut else "up",
            samples_per_s=self._samples.at(mono_ns, raw.samples),
            results_per_s=self._results.at(mono_ns, anomaly.windows),
            outbox_bytes=FileDisk().size_bytes(gateway.data_dir / gateway.settings.outbox.file),
            sinks=[self._sink(name) for name in gateway.deliveries],
            latency=self._latencies.figures,
            anomalies=msgspec.structs.replace(self._comparison.found),
            last=list(self._comparison.last),
            notable=list(self._comparison.notable),
            executed_on=anomaly.executed_on,
            broker=gateway.settings.broker.url,
            trouble=next((why for why in (anomaly.cause, raw.cause, store.cause) if why), ""),
        )

    def _sink(self, name: str) -> SinkPicture:
        delivery = self._gateway.deliveries[name]
        state = delivery.state
        return SinkPicture(
            name=name,
            confirms=state.confirms,
            connected=state.connected,
            cause=state.cause,
            delivered=state.records,
            waiting={lane.value: depth for lane, depth in delivery.depth().items()},
        )

    def _account(self, statistics: Statistics) -> Account:
        ours = [each for each in statistics.gateways if (each.site, each.gateway) == (settings.SITE, settings.GATEWAY)]
        return account(
            self._gateway.store.heads,
            ours[0] if ours else None,
            waiting=sum(self._gateway.deliveries["cloud"].depth().values()),
            outages=self._outages,
            # Who has stopped it early saw what there was until then: a cut that has just begun could not be noticed yet.
            outage_due=(self._seconds is not None and self._elapsed_s >= self._seconds) or self._healed > 0,
            settled=self._elapsed_s >= settings.SETTLED_S,
            waited_max=self._waited_max,
            found=self._comparison.found,
            latency=self._latencies.figures,
        )


def _explain(task: asyncio.Task[None]) -> None:
    """Raises why a task ended that should not have."""
    try:
        task.result()
    except BrokerError as error:
        raise BrokerError(
            f"the local broker went away: {error.cause}", "see data/broker/broker.log in the demo's folder"
        ) from None
