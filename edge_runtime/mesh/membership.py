"""Where the site's broker is, for one gateway (runs): finds it, or hosts it, and keeps the one connection to it.

    membership = Membership(settings, me, link, bus, discovery, new_host, clock, dice, log, presence.will, presence.births)
    await membership.run()               # for ever
    membership.local()                   # -> Address of the broker now, for the gateway's other clients; None: there is none

`broker.mode: external` connects to the url for ever; `hosted` hosts at once, and outranks every `auto` host; `auto` looks for a
broker first. election.py says whom to ask and whose turn it is, hosting.py is the life as the host. Nothing between a source and
the disk waits for any of it.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable, Mapping, Sequence
from typing import Any

import msgspec

from edge_runtime.address import address
from edge_runtime.bus import presence
from edge_runtime.bus.messages import BadMessage
from edge_runtime.bus.presence import Birth, Brokers
from edge_runtime.config import Config
from edge_runtime.mesh import election
from edge_runtime.mesh.candidates import Candidates
from edge_runtime.mesh.election import Candidate
from edge_runtime.mesh.hosting import Hosting
from edge_runtime.mesh.link import Home, Link
from edge_runtime.mesh.probing import CONNECT_S_MAX, Answer, Probes
from edge_runtime.ports import Address, BrokerError, Bus, Clock, Dice, Host, Message, Will
from edge_runtime.ports_mesh import Announcement, Discovery, Endpoint, Role

KEEPALIVE_S = 2
"""A broker that is cut off is noticed after 1.25 to 1.5 times this."""

PAUSE_S_MIN, PAUSE_S_MAX = 0.1, 0.5
"""Between two rounds of asking, growing; half of it to all of it, so that gateways that lost one broker do not come in step."""

ROUND_MAX, ROUND_OTHERS_MAX = 24, 8
"""Places that are asked in a round: the first ones in order, and some of the others."""

QUICK_S, HURRY_S = election.GRACE_S, 2.0
"""A round takes so long, for so long after a broker was lost; then, and at a start, slow networks get their time, too."""

SILENT_S = 2.0
"""A place that did not answer is not asked again for so long."""

PATIENT_S = 10.0
"""Without a broker for so long, rounds come every BACKOFF_S_MAX."""

BACKOFF_S_MAX = 2.0
EXTERNAL_S_MAX = 30.0
"""An external broker that was away for longer than PATIENT_S is tried this often at least."""

REFUSED_S_MAX = 30.0
"""A broker of ours that does not start is tried again after 1 s, 2 s, ... up to this."""

LEARN_S = 2.0
"""How often the candidates are brought up to date while all is well."""

GOODBYE_S_MAX = 0.5


class State(msgspec.Struct, frozen=True):
    """For people. `cause` and `hint` say why there is no broker, or why this gateway cannot host it."""

    role: Role
    host: str = ""
    """Name of the gateway that hosts the site's broker; "" : there is none, or it is an external one."""
    connected: bool = False
    cause: str = ""
    hint: str = ""


class Membership:
    """See the module's text. Of `me`: site, gateway, instance, version, fingerprint, and the endpoints where others reach our
    broker ([]: what `broker.listen` says, where that is one address)."""

    def __init__(
        self, settings: Config, me: Announcement, link: Link, bus: Bus, discovery: Discovery, new_host: Callable[[], Host],
        clock: Clock, dice: Dice, log: Any, will: Callable[[str], Will], alive: Callable[[], Sequence[Birth]],
        wear: Callable[[Address], Address] = lambda each: each,
    ) -> None:  # fmt: skip
        """`will`: what the broker says when we are gone, for a run of it. `alive`: births of all that are on our broker now.
        `wear` gives the address of a broker of the site what a member needs there (bus.member.Dress); without: plain MQTT."""
        self._settings, self._link, self._bus, self._discovery, self._new_host = settings, link, bus, discovery, new_host
        self._clock, self._dice, self._log, self._will, self._alive, self._wear = clock, dice, log, will, alive, wear
        self.endpoints = me.endpoints or _own(settings)
        """Where others reach our broker, when we host."""
        self._announcement = msgspec.structs.replace(
            me, role=election.role(settings), rank=election.rank(settings), endpoints=self.endpoints
        )
        myself = Candidate(name=me.gateway, instance=me.instance, rank=election.rank(settings), endpoints=self.endpoints)
        static = [election.peer(each) for each in settings.mesh.peers] if settings.mesh is not None else []
        self.candidates = Candidates(myself, static)
        self._probes = Probes(settings.site, bus, clock, dice, log, wear)
        self._hosting: Hosting | None = None
        self._refused_before: Counter[str] = Counter()
        """By brokers that we hosted before."""
        self._moved = asyncio.Event()
        self._hints: tuple[Endpoint, ...] = ()
        """Where the broker was said to be, or was last."""
        self._before = ""
        """Name of the host that we had last."""
        self._client = dice.token()
        """Of our client id, and told to nobody: whoever of the site comes with the id of another one throws it out."""
        self._torn = False
        """The broker we had went without a word. Else one has just answered: behind a slow link it needs that time again."""
        self._turn = 0
        self._again_ns = 0
        """Not before then do we try to host again."""
        self._refusals = 0
        self._failures = 0
        """Connections that failed in a row although the broker had answered."""
        self._joined = False
        self._cause, self._hint = "", ""
        link.on("brokers", self._on_brokers)

    @property
    def state(self) -> State:
        home = self._link.home
        role: Role = "candidate" if election.may_host(self._settings) else "guest"
        if self._hosting is not None and self._hosting.address is not None:
            role = "host"
        return State(role, home.host if home else "", home is not None, self._cause, self._hint)

    def local(self) -> Address | None:
        """Without client id: for one client more."""
        home = self._link.home
        return None if home is None else msgspec.structs.replace(self._wear(home.address), client_id="", keepalive_s=5)

    @property
    def strangers(self) -> Mapping[str, int]:
        """host:port -> how often what is there could not show that it is of our site."""
        return self._probes.strangers

    @property
    def refused_by_broker(self) -> Counter[str]:
        """What the brokers that we hosted have refused, by reason: clients, and what they published; see bus/refusals.py."""
        found = self._refused_before.copy()
        found.update({} if self._hosting is None else self._hosting.refused)
        return found

    async def relocate(self, endpoints: tuple[Endpoint, ...]) -> None:
        """The machine has got other addresses: others reach our broker there from now on."""
        self.endpoints = endpoints
        self.candidates.me = msgspec.structs.replace(self.candidates.me, endpoints=endpoints)
        self._announcement = msgspec.structs.replace(self._announcement, endpoints=endpoints)
        if self._settings.broker.mode != "external":
            await self._discovery.announce(self._announcement)

    async def run(self) -> None:
        """For ever."""
        if self._settings.broker.mode == "external":
            return await self._follow()
        await self._discovery.open(self._announcement)
        try:
            while True:
                home = await self._look()
                if home is None:
                    await self._host()
                else:
                    await self._join(home)
        finally:
            await self._discovery.close()

    # --- an external broker ------------------------------------------------------------------------------------------

    async def _follow(self) -> None:
        """With certificates `mqtt://` is a broker of the site, wherever it is; `mqtts://` anybody's, judged by its host name."""
        while True:
            await self._join(Home(self._dress(address(self._settings.broker.url))))

    # --- looking for the site's broker -------------------------------------------------------------------------------

    async def _look(self) -> Home | None:
        """The site's broker; None: it is our turn to host it."""
        mode, began_ns = self._settings.broker.mode, self._clock.mono_ns()
        pinned, cold, gone = mode == "hosted", self.candidates.cold, (self._before,) if self._before else ()
        silent: dict[Endpoint, int] = {}
        jitter_s, pause_s = self._dice.uniform(0.0, 0.0 if pinned else election.SLOT_S / 5), PAUSE_S_MIN
        while True:
            self._hear()
            hosts = self._said_to_host()
            if not pinned or self._hints:
                hurry = self._torn and not cold and self._clock.mono_ns() - began_ns < HURRY_S * 1e9
                home = await self._ask(silent, QUICK_S if hurry else None)
                if home is not None:
                    return home
            waited_s = (self._clock.mono_ns() - began_ns) / 1e9
            left_s = BACKOFF_S_MAX
            if election.may_host(self._settings) and self._clock.mono_ns() >= self._again_ns:
                ahead = election.position(self.candidates.me, self.candidates.there(), gone, silent)
                left_s = election.turn_s(ahead, cold=cold, pinned=pinned, torn=self._torn) + jitter_s - waited_s
                if left_s <= 0:
                    return None
            await self._pause(min(left_s, self._dice.uniform(pause_s / 2, pause_s)), hosts)
            pause_s = min(2 * pause_s, PAUSE_S_MAX if waited_s < PATIENT_S else BACKOFF_S_MAX)

    async def _ask(self, silent: dict[Endpoint, int], within_s: float | None) -> Home | None:
        """One round. The first broker of ours is taken. `silent`: places that did not answer, and when."""
        now_ns = self._clock.mono_ns()
        answers = await self._probes.ask_all(self._places(silent, now_ns), enough=self._is_other, within_s=within_s)
        for answer in answers:
            if answer.silent:
                silent[answer.endpoint] = now_ns
            else:
                silent.pop(answer.endpoint, None)
            if answer.brokers is not None:
                self.candidates.hear_brokers(answer.brokers, now_ns)
        found = next((each for each in answers if self._is_other(each)), None)
        if found is None or found.brokers is None:
            said = [place for each in answers if each.brokers is not None and not each.ours for place in each.brokers.endpoints]
            self._hints = tuple(dict.fromkeys(said))
            return None
        where = self._dress(Address(host=found.endpoint.host, port=found.endpoint.port))
        return Home(where, found.brokers.host, found.brokers.run)

    def _places(self, silent: Mapping[Endpoint, int], now_ns: int) -> list[Endpoint]:
        """The first ones, and a few of the others: all get their turn. Who was silent just now is left in peace."""
        ordered = election.ask_order(self.candidates.me, self.candidates.all(), self._hints)
        awake = [place for place in ordered if place not in silent or now_ns - silent[place] > SILENT_S * 1e9]
        first, others = awake[:ROUND_MAX], awake[ROUND_MAX:]
        start = self._turn % max(1, len(others))
        self._turn = start + ROUND_OTHERS_MAX
        return first + (others[start:] + others[:start])[:ROUND_OTHERS_MAX]

    def _is_other(self, answer: Answer) -> bool:
        return answer.ours and answer.brokers is not None and answer.brokers.instance != self.candidates.me.instance

    async def _pause(self, wait_s: float, hosts: list[str]) -> None:
        """Or until others than `hosts` say that they host; one more gateway is no reason to ask all of them again."""
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(max(0.0, wait_s)):
                while self._said_to_host() == hosts:
                    self._discovery.changed.clear()
                    await self._discovery.changed.wait()

    def _said_to_host(self) -> list[str]:
        return [each.instance for each in self._discovery.found() if each.role == "host"]

    # --- being on a broker -------------------------------------------------------------------------------------------

    async def _join(self, home: Home) -> None:
        """Until it is lost, or another one is to be taken."""
        began_ns = self._clock.mono_ns()
        try:
            await self._serve(home)
            self._failures, self._joined, self._torn = 0, False, False
        except BrokerError as error:
            # One that lived longer than the longest pause needs none: that pause would only keep the site without a broker.
            lived = self._clock.mono_ns() - began_ns > BACKOFF_S_MAX * 1e9
            self._failures = 0 if lived else self._failures + 1
            if self._joined or error.cause != self._cause:
                self._log.warning("broker_lost", host=home.host, cause=error.cause, hint=error.hint)
            self._torn, self._joined, self._cause, self._hint = self._joined, False, error.cause, error.hint
        self._before = home.host
        self._hints = tuple(dict.fromkeys((*self._hints, Endpoint(home.address.host, home.address.port))))
        if self._failures:
            external = self._settings.broker.mode == "external"
            limit_s = EXTERNAL_S_MAX if external and self._failures > PATIENT_S / BACKOFF_S_MAX else BACKOFF_S_MAX
            pause_s = min(limit_s, PAUSE_S_MIN * 2 ** min(self._failures, 16))
            await asyncio.sleep(self._dice.uniform(pause_s / 2, pause_s))

    async def _serve(self, home: Home) -> None:
        """Raises BrokerError when the connection is lost; returns when the broker is to be looked for again."""
        self._moved.clear()
        self._hints = ()
        will = self._will(home.run)
        connection = await self._bus.connect(home.address, will=will, timeout_s=CONNECT_S_MAX)
        tasks = [
            asyncio.create_task(self._link.serve(connection, home), name="link"),
            asyncio.create_task(self._moved.wait(), name="broker moved"),
            asyncio.create_task(self._keep_up(home), name="candidates"),
        ]
        try:
            self._joined, self._cause, self._hint = True, "", ""
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            for task in tasks:
                if task in done:
                    task.result()
        except asyncio.CancelledError:  # the gateway stops: others need not wait for our silence
            with contextlib.suppress(BrokerError, TimeoutError):
                async with asyncio.timeout(GOODBYE_S_MAX):
                    await connection.publish(will.topic, will.payload, qos=will.qos, retain=will.retain)
            raise
        finally:
            for task in tasks:
                task.cancel()
            await asyncio.wait(tasks)
            await connection.close()

    async def _keep_up(self, home: Home) -> None:
        self._log.info("broker_joined", host=home.host, run=home.run, at=f"{home.address.host}:{home.address.port}")
        worn = self._wear(home.address)
        while True:
            await asyncio.sleep(LEARN_S)
            self._learn()
            if (now := self._wear(home.address)) != worn:  # somebody was revoked: was it this broker's gateway?
                worn = now
                if (await self._probes.ask(Endpoint(now.host, now.port))).stranger:
                    self._moved.set()

    def _on_brokers(self, sender: str, message: Message) -> None:
        """`sender`: another gateway, of a broker of its own; "": the word of this broker's host. Raises BadMessage."""
        try:
            brokers = presence.unpack(message.payload, Brokers)
        except BadMessage:
            if self._hosting is not None and not sender:
                self._hosting.say_again()
            raise
        if sender and (brokers.host != sender or brokers.run):
            raise BadMessage(f"brokers: of {brokers.host}, where only {sender} speaks, and not of this broker", "update it")
        home = self._link.home
        if brokers.site != self._settings.site or brokers.instance == self.candidates.me.instance or home is None:
            return
        self.candidates.hear_brokers(brokers, self._clock.mono_ns())
        if self._hosting is not None:
            self._hosting.hint(brokers)
            if not sender:
                self._hosting.say_again()
        elif brokers.run == "":
            self._hints = brokers.endpoints
        elif home.host and brokers.run != home.run:
            self._moved.set()

    # --- hosting it --------------------------------------------------------------------------------------------------

    async def _host(self) -> None:
        before, self._before = self._before, self.candidates.me.name
        try:
            hosting = self._hosting = Hosting(
                self._new_host(), site=self._settings.site, candidates=self.candidates, before=before, link=self._link,
                bus=self._bus, probes=self._probes, clock=self._clock, dice=self._dice, log=self._log, will=self._will,
                dress=self._dress, begun=self._begun, learn=self._learn, changed=self._discovery.changed,
            )  # fmt: skip
            rival = await hosting.run()
            self._hints, self._torn = rival.endpoints if rival is not None else (), rival is None
            if rival is None:
                self._refused(BrokerError("the broker that this gateway hosts does not stay up", "see broker_died in the log"))
        except BrokerError as error:
            self._refused(error)
        finally:
            self._refused_before, self._hosting = self.refused_by_broker, None
        role: Role = election.role(self._settings) if self._clock.mono_ns() >= self._again_ns else "guest"
        await self._announce(role)

    async def _begun(self) -> None:
        self._refusals, self._cause, self._hint = 0, "", ""
        self._log.info("broker_hosted", endpoints=[f"{each.host}:{each.port}" for each in self.endpoints])
        await self._announce("host")

    def _refused(self, error: BrokerError) -> None:
        if error.cause != self._cause:
            self._log.error("broker_does_not_start", cause=error.cause, hint=error.hint)
        self._cause, self._hint = error.cause, error.hint
        wait_s = min(REFUSED_S_MAX, 2.0**self._refusals)
        self._refusals += 1
        self._again_ns = self._clock.mono_ns() + round(self._dice.uniform(wait_s / 2, wait_s) * 1e9)

    async def _announce(self, role: Role) -> None:
        if role != self._announcement.role:
            self._announcement = msgspec.structs.replace(self._announcement, role=role)
            await self._discovery.announce(self._announcement)

    # --- what is known -----------------------------------------------------------------------------------------------

    def _hear(self) -> None:
        self.candidates.hear_announced(self._discovery.found(), self._clock.mono_ns())

    def _learn(self) -> None:
        """While there is a broker."""
        now_ns = self._clock.mono_ns()
        self._hear()
        self.candidates.hear_births(self._alive(), now_ns)
        self.candidates.forget(now_ns)

    def _dress(self, where: Address) -> Address:
        """As a member of the site; and two gateways with one name do not throw each other out."""
        worn = self._wear(where)
        client_id = f"edge-{self._settings.site}-{self.candidates.me.name}-{self._client}"
        quickack = not worn.site_ca or self._settings.broker.mode == "external"  # else a gateway has started it
        return msgspec.structs.replace(worn, client_id=client_id, keepalive_s=KEEPALIVE_S, quickack=quickack)


def _own(settings: Config) -> tuple[Endpoint, ...]:
    """Where we listen, if that is one address; else the network knows better."""
    listen = settings.broker.listen
    if not election.may_host(settings) or listen in ("0.0.0.0", "::"):
        return ()
    return (Endpoint(listen, address(settings.broker.url).port),)
