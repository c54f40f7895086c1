"""One run of the site's demo: starts everything, kills the broker's host and starts it again, drains, and makes the account."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Mapping
from pathlib import Path

import msgspec

from edge_runtime.board.system import SystemClock
from edge_runtime.bus.broker import PahoBus
from edge_runtime.cli.demo.children import Children
from edge_runtime.cli.demo.ending import Ending
from edge_runtime.cli.demo.settings import DRAIN_S_MAX, MODEL, ROWS_PER_S, SETTLED_S, free_port
from edge_runtime.cli.demo.site import settings
from edge_runtime.cli.demo.site.hearing import HERE, Hearing
from edge_runtime.cli.demo.site.picture import GatewayPicture, Picture, SiteAccount, account
from edge_runtime.cli.demo.site.show import Show
from edge_runtime.cli.demo.watching import Rate
from edge_runtime.inference import store as models
from edge_runtime.outbox import tables
from edge_runtime.outbox.database import FileDisk
from edge_runtime.ports import Address
from edge_runtime.receiver.account import Statistics

TICK_S = 0.25
WARM_S_MAX = 30.0
"""The show's clock starts when every gateway has given results."""
STOP_S_MAX = DRAIN_S_MAX + 15.0
BACK_S_MAX = 10.0
"""At the end a gateway that was killed is waited for."""


class SitePerformance:
    """`run` once. `seconds` None: until a signal."""

    def __init__(self, folder: Path, seconds: float | None, gateways: int, show: Show, ending: Ending) -> None:
        self._folder, self._seconds, self._show, self._ending = folder, seconds, show, ending
        self._names = [settings.name(number) for number in range(gateways)]
        self._children, self._clock = Children(folder), SystemClock()
        self._rates = {name: Rate() for name in self._names}
        self._stop = asyncio.Event()
        self._playing = self._warm = self._draining = False
        self._away = ""
        self._kills = self._back = 0
        self._elapsed_s = 0.0
        self._hearing: Hearing

    async def run(self) -> tuple[SiteAccount, float]:
        """The account, and the seconds it is of. Raises EdgeError: something does not start, or ended by itself."""
        try:
            with self._ending.hear(self._may_drain):
                await self._begin()
                last, said = await self._perform()
        finally:
            await self._children.end()
            self._show.close()
        statistics = msgspec.json.decode(said.splitlines()[-1], type=Statistics)
        accepted = {name: self._accepted(name) for name in self._names}
        found = account(
            accepted,
            statistics.gateways,
            last,
            kills=self._kills,
            back=self._back,
            kill_due=self._seconds is not None and self._elapsed_s >= self._seconds,  # who stopped it early saw what there was
            settled=self._elapsed_s >= SETTLED_S,
        )
        return found, self._elapsed_s

    def _may_drain(self) -> bool:
        """The first signal drains; a second one, and one before there is anything to drain, ends at once."""
        if not self._playing or self._stop.is_set():
            return False
        self._stop.set()
        return True

    async def _begin(self) -> None:
        rows = models.find(MODEL, []) / "sample.csv"
        press = await self._children.start(
            "press", "edge_runtime.testing.press", "--csv", str(rows), "--rows-per-s", str(ROWS_PER_S)
        )
        options = ("--json", "--http", "127.0.0.1:0", "--file", "records.db")
        receiver = await self._children.start("receiver", "edge_runtime", "receive", *options)
        ports = [free_port(0) for _ in self._names]
        far_end = int(str(receiver["http"]).rpartition(":")[2])
        for number, name in reversed(list(enumerate(self._names))):  # the slow one last: on a busy machine the first one hosts
            (self._folder / name).mkdir()
            text = settings.text(number, ports, press_port=press["port"], receiver_port=far_end)
            (self._folder / name / "gateway.yaml").write_text(text)
            await self._launch(name)
        places = [Address(host="127.0.0.1", port=port) for port in ports]
        self._hearing = Hearing(PahoBus(), places, slow=self._names[0])

    async def _launch(self, name: str) -> None:
        file = f"{name}/gateway.yaml"
        if name == self._names[0]:
            await self._children.launch(name, "edge_runtime.testing.slow", file, "--infer-ms", str(settings.SLOW_INFER_MS))
        else:
            await self._children.launch(name, "edge_runtime", "run", file)

    # --- the run ---

    async def _perform(self) -> tuple[Picture, bytes]:
        """The last picture, and what the receiver says at its end."""
        hearing = asyncio.create_task(self._hearing.run(), name="hearing")
        try:
            await self._play(hearing)
            last = await self._drain()
        finally:
            hearing.cancel()
            await asyncio.wait([hearing])
        return last, await self._children.finish("receiver")

    async def _play(self, hearing: asyncio.Task[None]) -> None:
        """Until the time is up or a signal comes."""
        started_ns = begin_ns = self._clock.mono_ns()
        self._playing = True
        while not self._stop.is_set() and (self._seconds is None or self._elapsed_s < self._seconds):
            self._children.check()
            if hearing.done():
                hearing.result()
            await self._kill_or_bring_back()
            self._look()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(TICK_S):  # wait_for loses a second signal that comes with the first one
                    await self._stop.wait()
            now_ns = self._clock.mono_ns()
            if not self._warm and now_ns - started_ns < WARM_S_MAX * 1e9:
                self._warm = all(self._hearing.results.get(name) for name in self._names)
                begin_ns = now_ns
            self._elapsed_s = (now_ns - begin_ns) / 1e9
        self._stop.set()

    async def _kill_or_bring_back(self) -> None:
        """Once, from 40 % to 65 % of a run that ends; else 20 s of each minute."""
        at, whole = self._elapsed_s, self._seconds
        away = 20 <= at % 60 < 40 if whole is None else 0.4 <= at / whole < 0.65
        if away and not self._away and self._warm:
            name = self._hearing.host
            # The slow one stays: it is whom the others help.
            self._away = name if name and name != self._names[0] else self._names[-1]
            await self._children.kill(self._away)
            self._kills += 1
        elif not away and self._away:
            await self._bring_back()

    async def _bring_back(self) -> None:
        name, self._away = self._away, ""
        self._hearing.births.pop(name, None)
        await self._launch(name)

    async def _drain(self) -> Picture:
        """Returns the last picture."""
        if self._away:
            await self._bring_back()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(BACK_S_MAX):
                while not all(self._online(name) for name in self._names):
                    self._look()
                    await asyncio.sleep(TICK_S)
        self._back = self._kills if all(self._online(name) for name in self._names) else self._kills - 1
        self._draining = True
        self._look()
        last = self._picture()
        await asyncio.gather(*(self._children.finish(name, STOP_S_MAX) for name in self._names))
        return last

    # --- looking ---

    def _online(self, name: str) -> bool:
        birth = self._hearing.births.get(name)
        return birth is not None and birth.online and self._children.runs(name)

    def _look(self) -> None:
        self._show.picture(self._picture())

    def _picture(self) -> Picture:
        return Picture(
            elapsed_s=round(self._elapsed_s, 2),
            seconds=self._seconds,
            draining=self._draining,
            gateways=[self._gateway(name) for name in self._names],
            broker=self._hearing.host,
            last=list(self._hearing.last),
        )

    def _gateway(self, name: str) -> GatewayPicture:
        heard: Mapping[str, int] = self._hearing.results.get(name, {})
        load = self._hearing.loads.get(name)
        total = sum(heard.values())
        return GatewayPicture(
            name=name,
            running=self._children.runs(name),
            online=self._online(name),
            host=name == self._hearing.host,
            slow=name == self._names[0],
            results_per_s=self._rates[name].at(self._clock.mono_ns(), total),
            here=heard.get(HERE, 0),
            by_peers=total - heard.get(HERE, 0),
            for_others=load.tasks_in if load else 0,
            waiting=load.outbox_depth if load else 0,
        )

    def _accepted(self, name: str) -> int:
        """Records in its outbox, delivered ones too, since it began."""
        database = FileDisk().open(self._folder / name / "data" / "outbox.db")
        try:
            return sum(tables.heads(database).values())
        finally:
            database.close()
