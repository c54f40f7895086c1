"""Lets others see how a gateway is (runs): pages over HTTP, and words for systemd. Nothing waits for it, and it begins before the
disk works: that is when somebody wants to know.

    watching = Watching(gateway, log)
    watching.services            # what has to run, by name; empty where nobody wants to know
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

from edge_runtime.address import listener
from edge_runtime.board import process
from edge_runtime.board.systemd import Systemd
from edge_runtime.records import to_json
from edge_runtime.watching import exposition, health, http, metrics
from edge_runtime.watching.exposition import Histogram
from edge_runtime.watching.health import Health
from edge_runtime.watching.http import Page
from edge_runtime.watching.look import Gateway, look
from edge_runtime.watching.metrics import LAG_BOUNDS_S, Scrape
from edge_runtime.watching.seen import Machine, Phase, Process, Seen

LISTEN_S_MIN, LISTEN_S_MAX = 1.0, 30.0
"""Before an address that is taken is tried again."""

MEASURE_S_MAX = 1.0
"""The machine has so long to answer (a chip, a network disk); then what it would say is left out."""

FRESH_S = 0.1
"""A page of metrics is given again for so long: who asks a thousand times a second must not keep the event loop busy."""

LAG_S = 1.0
"""From one look at the event loop's lag to the next."""

BEAT_S_MAX = 10.0
"""Between two words for systemd; half of its watchdog's time where that is less."""

EXTEND_S = 3 * BEAT_S_MAX
"""How long each word of a start or a stop puts systemd's own limits off: a full disk is waited out, not restarted."""


class Watching:
    """Of one gateway."""

    def __init__(self, gateway: Gateway, log: Any) -> None:
        world, settings = gateway.world, gateway.settings
        self._gateway, self._log = gateway, log
        self._began_ns = world.clock.mono_ns()
        self._lag = Histogram(LAG_BOUNDS_S)
        self._page, self._stale_at_s = Page(503, http.TEXT, b""), 0.0
        self._measuring: asyncio.Future[Machine] | None = None
        self._read_vitals = world.vitals(gateway.data_dir)
        self.served, self.cause = False, ""
        """Whether the pages can be had; why not."""
        self.services: dict[str, Callable[[], Awaitable[None]]] = {}
        if settings.metrics is not None:
            self._listen = listener(settings.metrics.listen)
            self._worker = world.new_worker("watching")
            self.services |= {"metrics": self._serve, "event loop lag": self._watch_lag}
        if (systemd := world.systemd) is not None:
            self.services["systemd"] = lambda: self._tell(systemd)

    # --- pages ---

    async def _serve(self) -> None:
        """Until cancelled. An address that is taken is tried again: nothing else waits for it."""
        pages = {"/metrics": self._metrics, "/health": self._health, "/live": self._live}
        wait_s = LISTEN_S_MIN
        while True:
            try:
                async with http.listening(pages, *self._listen) as at:
                    self._log.info("metrics_served", at=at)
                    self.served, self.cause = True, ""
                    await asyncio.Event().wait()
            except http.CannotListen as error:
                if error.cause != self.cause:
                    self._log.error("metrics_not_served", cause=error.cause, hint=error.hint)
                self.served, self.cause = False, error.cause
            await asyncio.sleep(wait_s)
            wait_s = min(wait_s * 2, LISTEN_S_MAX)

    async def _metrics(self) -> Page:
        now_s = asyncio.get_running_loop().time
        if now_s() >= self._stale_at_s:
            scrape = Scrape(machine=await self._measure(), seen=self._look(), lag=self._lag)
            self._page, self._stale_at_s = Page(200, exposition.CONTENT_TYPE, metrics.page(scrape)), now_s() + FRESH_S
        return self._page

    async def _health(self) -> Page:
        found = health.judge(self._look())
        return Page(found.code, http.JSON, to_json(found) + b"\n")

    async def _live(self) -> Page:
        stuck = health.stuck(self._look().outbox)
        return Page(503 if stuck else 200, http.TEXT, b"the disk does not come back from a write\n" if stuck else b"alive\n")

    def _look(self) -> Seen:
        return look(self._gateway, self._began_ns)

    async def _measure(self) -> Machine:
        """One at a time: a machine that does not answer is not asked again until it does."""
        if self._measuring is None or self._measuring.done():
            self._measuring = asyncio.ensure_future(self._worker.run(self._ask_machine))
        await asyncio.wait((self._measuring,), timeout=MEASURE_S_MAX)
        return self._measuring.result() if self._measuring.done() else Machine()

    def _ask_machine(self) -> Machine:
        outbox_bytes = None
        with contextlib.suppress(OSError):
            outbox_bytes = self._gateway.store.size_bytes()
        mine = Process(process.cpu_s(), process.resident_bytes(), process.open_files())
        return Machine(outbox_bytes, self._read_vitals(), mine)

    async def _watch_lag(self) -> None:
        now_s = asyncio.get_running_loop().time
        while True:
            due_s = now_s() + LAG_S
            await asyncio.sleep(LAG_S)
            self._lag.observe(max(0.0, now_s() - due_s))

    # --- systemd ---

    async def _tell(self, systemd: Systemd) -> None:
        """Says how it is, and at once when it has started or is to stop. The watchdog hears nothing where the event loop hangs
        (then nobody comes here), or the disk does not come back."""
        beat_s = min(BEAT_S_MAX, systemd.watchdog_s / 2 or BEAT_S_MAX)
        told: Phase = "starting"
        while True:
            seen = self._look()
            words: dict[str, str | int] = {"STATUS": sentence(health.judge(seen), seen)}
            if seen.phase != told:
                words[{"running": "READY", "stopping": "STOPPING", "starting": "RELOADING"}[seen.phase]] = 1
                if seen.phase == "starting":  # in this process, with other settings
                    words["MONOTONIC_USEC"] = self._gateway.world.clock.mono_ns() // 1_000
                told = seen.phase
            if not health.stuck(seen.outbox):
                words |= {"WATCHDOG": 1} if seen.phase == "running" else {"EXTEND_TIMEOUT_USEC": round(EXTEND_S * 1e6)}
            systemd.tell(**words)
            await self._next_phase(beat_s)

    async def _next_phase(self, limit_s: float) -> None:
        events = [event for event in (self._gateway.started, self._gateway.asked_to_stop) if not event.is_set()]
        waits = [asyncio.ensure_future(event.wait()) for event in events]
        try:
            if waits:
                await asyncio.wait(waits, timeout=limit_s, return_when=asyncio.FIRST_COMPLETED)
            else:
                await asyncio.sleep(limit_s)
        finally:
            for wait in waits:
                wait.cancel()


def sentence(found: Health, seen: Seen) -> str:
    """One line, for `systemctl status`."""
    if found.problems:
        return f"{found.status}: " + "; ".join(f"{each.what}: {each.cause}" for each in found.problems)
    waiting = max((sum(sink.waiting.values()) for sink in seen.sinks.values()), default=0)
    return f"{found.status}: {len(seen.sources)} devices, {len(seen.sinks)} sinks, {waiting} records wait"
