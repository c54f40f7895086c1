"""One gateway's part in the mesh: builds the services of this room once, and says what others may ask of it.

membership   which broker is the site's, or hosts it; opens the connection
link         the one connection: hands each message to who wants it
presence     who is here, and how busy; the table of peers
answering    windows of others, computed here
asking       windows of ours, computed by others
placing      decides for each window of ours: here, or which peer
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

from edge_runtime.address import address
from edge_runtime.board.vitals import READ_S
from edge_runtime.bus.frames import Verdict
from edge_runtime.bus.member import Dress
from edge_runtime.config import Config, together
from edge_runtime.mesh.admission import Outcome
from edge_runtime.mesh.answering import Answering
from edge_runtime.mesh.asking import Asking
from edge_runtime.mesh.explaining import Explaining
from edge_runtime.mesh.link import Link
from edge_runtime.mesh.membership import Membership
from edge_runtime.mesh.placing import Placing
from edge_runtime.mesh.presence import Facts, Presence, powered
from edge_runtime.mesh.sealing import Sealing
from edge_runtime.ports import Address, BrokerError, Bus, Clock, Dice, Host, Worker
from edge_runtime.ports_mesh import Announcement, Discovery, Endpoint, Executor, Vitals
from edge_runtime.trust.identity import Identity

ADDRESSES_S = 2.0
"""How often it is looked whether the machine has other addresses."""


class Mesh:
    """`services`: what has to run, by name, in this order. `reachable`: where others reach the broker that we may host, as things
    are now."""

    def __init__(
        self,
        settings: Config,
        *,
        bus: Bus,
        discovery: Discovery,
        new_host: Callable[[], Host],
        reachable: Callable[[], tuple[Endpoint, ...]],
        executor: Executor,
        needs: Callable[[], Sequence[str]],
        read_vitals: Callable[[], Vitals],
        new_worker: Callable[[], Worker],
        outbox_depth: Callable[[], int],
        version: str,
        clock: Clock,
        dice: Dice,
        log: Any,
        identity: Identity | None = None,
    ) -> None:
        """`identity`: of this gateway, where there is a site; without: plain MQTT, and nothing is signed."""
        shared = together(settings)
        sealing = None if identity is None else Sealing(identity)
        self.link = Link(settings.site, settings.gateway, dice.token(), log, sealing)
        self.asking = Asking(self.link, clock, log)
        self.answering = Answering(self.link, executor, shared, clock, log, outside=lambda: bool(self.presence.name_taken))
        self.presence = Presence(
            self.link, settings, self.answering.offers, needs, self._facts, clock, dice, log, self.asking.gone, version
        )
        endpoints = self.presence.endpoints = reachable()
        self.placing = Placing(
            settings.gateway,
            self.asking,
            self.presence.peers,
            clock,
            dice,
            vitals=lambda: self.vitals,
            tasks=self.answering.backlog,
        )
        me = Announcement(
            site=settings.site, gateway=settings.gateway, instance=self.link.instance, role="guest", endpoints=endpoints,
            port=address(settings.broker.url).port, version=version,
            fingerprint=identity.key.fingerprint if identity else "",
        )  # fmt: skip
        self.presence.fingerprint = me.fingerprint
        self.membership = Membership(
            settings, me, self.link, bus, discovery, new_host, clock, dice, log,
            self.presence.will, self.presence.peers.alive, Dress(identity) if identity else lambda each: each,
        )  # fmt: skip
        self._settings, self._reachable, self._executor = shared, reachable, executor
        self.vitals = powered(Vitals(), shared)
        self._read_vitals, self._new_worker, self._outbox_depth = read_vitals, new_worker, outbox_depth
        self.services: dict[str, Callable[[], Awaitable[None]]] = {
            "mesh membership": self.membership.run,
            "mesh presence": self.presence.run,
            "mesh answering": self.answering.run,
            "mesh vitals": self._watch_vitals,
            "mesh addresses": self._watch_addresses,
            "mesh explaining": Explaining(self.link, self.placing).run,
        }

    def drain(self) -> None:
        """This gateway is about to stop: it takes no more tasks, and says so. Its own windows may still go to others."""
        self._executor.withdraw()

    def resume(self) -> None:
        """It takes tasks again."""
        self._executor.resume()

    def refresh(self) -> None:
        """What this gateway can compute for others has changed."""
        self.presence.refresh()

    async def refresh_roster(self) -> None:
        """The site has a new one: who was revoked is gone; who is new may have been born before we knew."""
        sealing = self.link.sealing
        if sealing is None:
            return
        self.presence.put_out(sealing.forget_revoked())
        if sealing.refused_births:
            sealing.refused_births = False
            await self.link.hear_births()

    def local(self) -> Address:
        """Where the site's broker is now. Raises BrokerError while nobody knows."""
        found = self.membership.local()
        if found is None:
            state = self.membership.state
            raise BrokerError(state.cause or "the site's broker is not known now", state.hint or "see `edge-runtime mesh`")
        return found

    async def _watch_addresses(self) -> None:
        """A gateway may be there before its network is, and be given another address at any time."""
        while True:
            await asyncio.sleep(ADDRESSES_S)
            endpoints = self._reachable()
            if endpoints and endpoints != self.presence.endpoints:
                self.presence.endpoints = endpoints
                self.presence.refresh()
                await self.membership.relocate(endpoints)

    async def _watch_vitals(self) -> None:
        worker = self._new_worker()
        try:
            while True:
                self.vitals = powered(await worker.run(self._read_vitals), self._settings)
                await asyncio.sleep(READ_S)
        finally:
            worker.abandon()

    def _facts(self) -> Facts:
        """Of this gateway, for its heartbeats."""
        (own, own_ns), (tasks, tasks_ns) = self.placing.backlog(), self.answering.backlog()
        return Facts(
            queue=own + tasks,
            queue_ns=own_ns + tasks_ns,
            tasks_in=self.answering.counts[Outcome.DONE],
            tasks_out=self.asking.verdicts[Verdict.DONE],
            outbox_depth=self._outbox_depth(),
            latency_ns=self.asking.round_trip_p50_ns(),
            vitals=self.vitals,
        )
