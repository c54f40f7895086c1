"""This gateway's presence in the mesh (runs): says that it is here and how busy it is, hears who else is, and tells who is gone.

birth       retained, on every connection, and when what it says has changed; the will says the opposite in our name (and whoever
            closes the connection says it at a clean stop)
heartbeat   every `peers.period_s`, QoS 0: the next one makes up for one that is lost
listening   to those whose load we need (peers.py); who becomes late, dies or begins another life is told to `on_gone`
the name    another gateway with our name: one of the two stands down (naming.py), and says nothing here until the other is gone

What comes in only changes tables; what has to be said or listened to because of it is left to the tasks of `run`.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import msgspec

from edge_runtime.bus import presence, topics
from edge_runtime.bus.messages import BadMessage
from edge_runtime.bus.presence import MODELS_MAX, PLACES_MAX, Birth, Load
from edge_runtime.config import Config, Mesh, together
from edge_runtime.mesh import election
from edge_runtime.mesh.link import Link
from edge_runtime.mesh.naming import Name
from edge_runtime.mesh.peers import LATE_PERIODS, PERIOD_S_MAX, Peers
from edge_runtime.ports import BrokerError, Clock, Dice, Message, Will
from edge_runtime.ports_mesh import Endpoint, Offer, Vitals

JITTER = 0.1
"""Of the heartbeat's period: gateways that came to a broker at one instant shall not beat at one instant for ever."""

CHANGED = 1.25
"""A model whose time is so much longer or shorter than the birth says has its time in the heartbeats."""

STALL_S = 1.0
"""Waking up later than this, we were stopped or asleep: peers get a new period before they count as late."""

WAIT_S = 0.1
"""Before something is done about what was heard. Births come in crowds; and a process that was stopped first reads what came
meanwhile, then judges who is late."""


class Facts(msgspec.Struct, frozen=True, kw_only=True):
    """What a heartbeat says of this gateway; see bus.presence.Load."""

    queue: int = 0
    queue_ns: int = 0
    tasks_in: int = 0
    tasks_out: int = 0
    outbox_depth: int = 0
    latency_ns: int = 0
    vitals: Vitals = Vitals()


class Presence:
    """See the module's text. It puts its handlers into `link` by itself. `boot` and `version` are for people."""

    def __init__(
        self, link: Link, settings: Config, offers: Callable[[], Sequence[Offer]], needs: Callable[[], Sequence[str]],
        load: Callable[[], Facts], clock: Clock, dice: Dice, log: Any, on_gone: Callable[[str], None], version: str = "",
    ) -> None:  # fmt: skip
        mesh = together(settings)
        self.peers = Peers(settings.gateway, mesh)
        self.name = Name(link.instance)
        self.endpoints: tuple[Endpoint, ...] = ()
        """Where our broker listens, or would; `refresh` after a change, as with all that stands in the birth."""
        self.accelerators: tuple[str, ...] = ()
        self.fingerprint = self.config = ""
        self.safe = False
        self._link, self._settings, self._mesh = link, settings, mesh
        self._offers, self._needs, self._load = offers, needs, load
        self._clock, self._dice, self._log, self._on_gone = clock, dice, log, on_gone
        self._version = version
        self._since_ns: int | None = None
        """In the mesh, under our name."""
        self._said: Birth | None = None
        """On this connection."""
        self._again = False
        """It has to be said again, though nothing in it has changed."""
        self._say, self._changed = asyncio.Event(), asyncio.Event()
        self._alive: dict[str, None] = {}
        """Peers that were heard on this connection, and the log knows it."""
        link.on("status", self._on_status)
        link.on("load", self._on_load)
        link.joined.append(self.born)

    @property
    def name_taken(self) -> str:
        """The instance of another gateway that has our name: we stay out of the mesh. "": we have it."""
        return self.name.taken

    @property
    def uptime_s(self) -> float:
        """In the mesh, under our name."""
        return 0.0 if self._since_ns is None else (self._clock.mono_ns() - self._since_ns) / 1e9

    def will(self, run: str) -> Will:
        """For a connection to a broker in this life of it (Home.run)."""
        return Will(self._topic("status"), self._signed(self._birth(run, online=False)), qos=1, retain=True)

    def refresh(self) -> None:
        """What we offer, or where we listen, may have changed."""
        self._say.set()
        self._changed.set()

    async def born(self) -> None:
        """Says that we are here, on a new connection. Raises BrokerError when it is lost."""
        now_ns, home = self._clock.mono_ns(), self._link.home
        self._said = None
        self._alive.clear()
        self.peers.joined(home.run if home is not None else "", now_ns)
        self.name.woke(now_ns)
        self._changed.set()
        await self._say_birth()

    async def run(self) -> None:
        """Until cancelled."""
        async with asyncio.TaskGroup() as group:
            group.create_task(self._beat(), name="mesh-heartbeat")
            group.create_task(self._speak(), name="mesh-birth")
            group.create_task(self._watch(), name="mesh-watch")

    # --- what is said ------------------------------------------------------------------------------------------------

    async def _say_birth(self) -> None:
        if self.name.taken or self._link.home is None:
            return
        if self._since_ns is None:
            self._since_ns = self._clock.mono_ns()
        birth = self._birth(self._link.home.run, online=True)
        same = self._said is not None and msgspec.structs.replace(birth, uptime_s=self._said.uptime_s) == self._said
        if same and not self._again:
            return
        self._said, self._again = birth, False
        await self._link.send(self._topic("status"), self._signed(birth), qos=1, retain=True)

    async def _speak(self) -> None:
        """Says the birth again when something has changed, or somebody said something else in our name."""
        while True:
            await self._say.wait()
            claim = self._again and self.name.rival
            await asyncio.sleep(self.name.claim_wait_s() if claim else WAIT_S)
            self._say.clear()
            if claim:
                self.name.claimed()
            with contextlib.suppress(BrokerError):  # on the next connection it is said anyway
                await self._say_birth()

    async def _beat(self) -> None:
        while True:
            period_s = self.peers.period_s
            await asyncio.sleep(period_s * self._dice.uniform(1 - JITTER, 1 + JITTER))
            if self._said is not None:
                with contextlib.suppress(BrokerError):  # there will be another broker, and another heartbeat
                    await self._link.send(self._topic("load"), presence.pack(self._heartbeat(self.peers.period_s)))

    def _birth(self, run: str, *, online: bool) -> Birth:
        who = Birth(site=self._link.site, gateway=self._link.gateway, instance=self._link.instance, online=online, run=run)
        if not online:
            return who
        return msgspec.structs.replace(
            who,
            boot=self._clock.now().boot,
            version=self._version,
            rank=election.rank(self._settings),
            may_host=election.may_host(self._settings),
            endpoints=self.endpoints[:PLACES_MAX],
            offers=self._offered(),
            accelerators=self.accelerators,
            fingerprint=self.fingerprint,
            config=self.config,
            safe=self.safe,
            agreement=self._link.sealing.public if self._link.sealing is not None else "",
            uptime_s=self.uptime_s,
        )

    def _signed(self, birth: Birth) -> bytes:
        payload = presence.pack(birth)
        return payload if self._link.sealing is None else self._link.sealing.sign(payload)

    def _offered(self) -> tuple[Offer, ...]:
        """With the times that the last birth said: that a time has changed is said by heartbeats."""
        said = {offer.model: offer.service_ns for offer in self._said.offers} if self._said is not None else {}
        offers = self._offers() if self._mesh.accept_tasks else ()
        return tuple(
            msgspec.structs.replace(offer, service_ns=said.get(offer.model, offer.service_ns)) for offer in offers[:MODELS_MAX]
        )

    def _heartbeat(self, period_s: float) -> Load:
        facts = self._load()
        said = {offer.model: offer.service_ns for offer in self._said.offers} if self._said is not None else {}
        now = self._offers() if self._mesh.accept_tasks else ()
        vitals, moment = powered(facts.vitals, self._mesh), self._clock.now()
        return Load(
            gateway=self._link.gateway,
            instance=self._link.instance,
            period_s=period_s,
            boot=moment.boot,
            now_ns=moment.mono_ns,
            uptime_s=self.uptime_s,
            queue=facts.queue,
            queue_ns=facts.queue_ns,
            services={o.model: o.service_ns for o in now if o.model in said and _differ(said[o.model], o.service_ns)},
            tasks_in=facts.tasks_in,
            tasks_out=facts.tasks_out,
            temperature_c=vitals.temperature_c,
            hot=vitals.hot,
            battery=vitals.battery,
            disk_free_bytes=vitals.disk_free_bytes,
            outbox_depth=facts.outbox_depth,
            latency_ns=facts.latency_ns,
        )

    def _topic(self, kind: str) -> str:
        return topics.gateway(self._link.site, self._link.gateway, kind)

    # --- what is heard -----------------------------------------------------------------------------------------------

    def _on_status(self, gateway: str, message: Message) -> None:
        mine = gateway == self._link.gateway
        if not message.payload:  # somebody took it from the broker's memory
            if mine and not message.retain:
                self._claim()
            elif not mine:
                self.peers.forget(gateway)
            return
        birth = presence.unpack(message.payload, Birth)
        if (birth.site, birth.gateway) != (self._link.site, gateway):
            raise BadMessage(
                f"birth: of {birth.gateway} in {birth.site}, where only {gateway} speaks", "who else publishes there?"
            )
        if mine:
            if not message.retain or self._said is not None:  # we said ours before we listened: what is there now came after it
                self._on_own(birth)
            return
        if self._link.sealing is not None and birth.online:
            self._link.sealing.meet(gateway, birth.agreement)
        if self.peers.on_birth(birth, retained=message.retain, now_ns=self._clock.mono_ns()):
            self._tell_gone(gateway)
        self._tell_alive(gateway)
        self._changed.set()

    def _on_load(self, gateway: str, message: Message) -> None:
        load = presence.unpack(message.payload, Load)
        if load.gateway != gateway:
            raise BadMessage(f"load: of {load.gateway}, where only {gateway} speaks", "who else publishes there?")
        if gateway != self._link.gateway:
            self.peers.on_load(load, self._clock.mono_ns())
            self._tell_alive(gateway)
        elif load.instance != self._link.instance and (self._link.sealing is None or load.instance == self.name.rival):
            # Where births are signed, and heartbeats are not: who has shown no birth is no double of ours.
            self._on_rival(load.instance, load.uptime_s, load.period_s)

    def put_out(self, revoked: Iterable[str]) -> None:
        """At once: their wills are signed by keys that count no more."""
        for peer in revoked:
            if self.peers.put_out(peer):
                self._tell_gone(peer)
        self._changed.set()

    def _tell_alive(self, peer: str) -> None:
        if peer not in self._alive and self.peers.state(peer) == "online":
            self._alive[peer] = None
            self._log.info("peer_alive", peer=peer)

    def _tell_gone(self, peer: str) -> None:
        """Or its present life is another one."""
        self._alive.pop(peer, None)
        self._log.info("peer_gone", peer=peer, state=self.peers.state(peer))
        self._on_gone(peer)

    def _on_own(self, birth: Birth) -> None:
        """What is said in our name: an echo, the late will of an earlier connection or life, or another gateway."""
        if birth.instance == self._link.instance:
            if not birth.online:
                self._claim()
        elif birth.online:
            self._on_rival(birth.instance, birth.uptime_s, self.peers.period_s)
        else:
            self.name.gone(birth.instance)
            self.peers.shut = bool(self.name.taken)
            self._claim()

    def _on_rival(self, instance: str, uptime_s: float, period_s: float) -> None:
        silent_s = LATE_PERIODS * min(PERIOD_S_MAX, max(period_s, self._mesh.heartbeat_s_min))
        if self.name.heard(instance, uptime_s, self.uptime_s, silent_s, self._clock.mono_ns()):
            self._log.error(
                "name_conflict",
                gateway=self._link.gateway,
                ours=self._link.instance,
                theirs=instance,
                keeps="theirs" if self.name.taken else "ours",
                hint="give each gateway of the site a name of its own",
            )
        self.peers.shut = bool(self.name.taken)
        if self.name.taken:
            self._said = self._since_ns = None
        else:
            self._claim()

    def _claim(self) -> None:
        self._again = True
        self._say.set()

    async def _watch(self) -> None:
        """Tells who is late, and listens to those to whom it should."""
        looked_ns = self._clock.mono_ns()
        while True:
            wait_s = self._next_check_s(self._clock.mono_ns())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(wait_s):
                    await self._changed.wait()
            await asyncio.sleep(WAIT_S)
            self._changed.clear()
            began_ns, looked_ns = looked_ns, self._clock.mono_ns()
            if looked_ns - began_ns > (wait_s + WAIT_S + STALL_S) * 1e9:
                self.peers.woke(looked_ns)
                self.name.woke(looked_ns)
            if self._link.connected:
                self._look(looked_ns)
            with contextlib.suppress(BrokerError):  # the next connection listens to the same ones
                await self._link.listen_to(self.peers.listen_to(self._needs(), looked_ns))

    def _look(self, now_ns: int) -> None:
        for name in self.peers.check(now_ns):
            self._tell_gone(name)
        if self.name.check(now_ns):
            self.peers.shut = False
            self._claim()

    def _next_check_s(self, now_ns: int) -> float:
        """While there is no connection nobody is late."""
        wait_s = self.peers.next_check_s(now_ns) if self._link.connected else PERIOD_S_MAX
        return min(wait_s, self.peers.period_s) if self.name.taken else wait_s


def powered(vitals: Vitals, settings: Mesh) -> Vitals:
    """With the power that the configuration says, if it says one."""
    return vitals if settings.power == "auto" else msgspec.structs.replace(vitals, battery=settings.power == "battery")


def _differ(before_ns: int, now_ns: int) -> bool:
    return now_ns > before_ns * CHANGED or now_ns * CHANGED < before_ns
