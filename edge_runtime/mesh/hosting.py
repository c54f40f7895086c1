"""A gateway's life as the host of the site's broker (runs): starts it, says so, looks for rivals, and makes room for them.

rival = await Hosting(...).run()     # ends when another one is to host (then it says where), or when the broker does not stay up
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Awaitable, Callable, Mapping
from typing import Any

import msgspec

from edge_runtime.bus import presence, topics
from edge_runtime.bus.presence import Brokers
from edge_runtime.mesh import election
from edge_runtime.mesh.candidates import Candidates
from edge_runtime.mesh.link import Home, Link
from edge_runtime.mesh.probing import CONNECT_S_MAX, Answer, Probes
from edge_runtime.ports import Address, BrokerError, Bus, Clock, Dice, Host, Will
from edge_runtime.ports_mesh import Endpoint

LOOK_S = 1.0
"""From one look for rivals to the next."""

LOOK_MAX = 8
"""Candidates that are asked in one look, beside those that are likely: all of them get their turn."""

LIKELY_MAX = 8
"""Places where a rival is likely: those that announce it, that we heard of, that hosted before us."""

AGAIN_S = (0.05, 0.2)
"""Before we connect to our own broker again."""

DOWN_S_MAX = 3.0
"""Our own broker may be down so long, in all; then others have long taken over."""

GOODBYE_S_MAX = 0.5


class Hosting:
    """One term. `run` may be called once."""

    def __init__(
        self, host: Host, *, site: str, candidates: Candidates, before: str, link: Link, bus: Bus, probes: Probes, clock: Clock,
        dice: Dice, log: Any, will: Callable[[str], Will], dress: Callable[[Address], Address],
        begun: Callable[[], Awaitable[None]], learn: Callable[[], None], changed: asyncio.Event,
    ) -> None:  # fmt: skip
        """`before`: name of the host before us. `dress` gives an address our client id; `begun` is awaited when the broker runs;
        `learn` brings `candidates` up to date; when `changed` is set there may be a rival."""
        self._host, self._site, self._candidates, self._before = host, site, candidates, before
        self._link, self._bus, self._probes, self._clock, self._dice, self._log = link, bus, probes, clock, dice, log
        self._will, self._dress, self._begun, self._learn, self._changed = will, dress, begun, learn, changed
        self.address: Address | None = None
        """Of our broker, for this machine; None: it does not run (any more)."""
        self._run = ""
        self._said: Brokers | None = None
        self._lost = False
        """Our own broker, as was told; that it is back has to be told, too."""
        self._again = False
        """It has to be said again, though nothing in it has changed."""
        self._hints: deque[Endpoint] = deque(maxlen=LIKELY_MAX)
        self._turn = 0
        self._rivals: dict[str, int] = {}
        """Instances of lesser hosts that we reach, since when."""

    @property
    def refused(self) -> Mapping[str, int]:
        """By what was wrong, where the program that we host can tell."""
        return getattr(self._host, "refused", {})

    async def run(self) -> Brokers | None:
        """The host to go to; None: our broker did not stay up. Raises BrokerError when it does not start."""
        tasks: list[asyncio.Task[Any]] = []
        try:
            self.address = await self._host.start()
            await self._begun()
            parts = {"broker": self._host.run(), "home": self._live(self.address), "rivals": self._watch()}
            tasks = [asyncio.create_task(part, name=f"hosting {name}") for name, part in parts.items()]
            done, _ = await asyncio.wait(tasks, return_when=asyncio.FIRST_COMPLETED)
            results = [task.result() for task in tasks if task in done]
            rival = next((each for each in results if each is not None), None)
            if rival is not None:
                await self._hand_over(rival)
            return rival
        finally:
            self.address = None
            await _cancel(tasks)
            await self._host.stop()

    def say_again(self) -> None:
        """Somebody else has said something, maybe nonsense, where our word has to stand: without it nobody finds this broker."""
        self._again = True
        self._changed.set()

    def hint(self, brokers: Brokers) -> None:
        """Somebody said on our broker that another one hosts, too: we look there at once."""
        if brokers.instance != self._candidates.me.instance:
            self._hints.extend(brokers.endpoints[:LIKELY_MAX])
            self._changed.set()

    # --- our own broker ----------------------------------------------------------------------------------------------

    async def _live(self, address: Address) -> None:
        """As a client of our own broker. Each connection is a new run: what the broker remembers of earlier ones is stale."""
        lost_ns = 0
        while True:
            began_ns = self._clock.mono_ns()
            try:
                await self._live_once(address)
            except BrokerError as error:
                now_ns = self._clock.mono_ns()
                if self._said is not None:
                    self._log.warning("own_broker_lost", cause=error.cause, hint=error.hint)
                    lost_ns, self._said, self._lost = now_ns, None, True
                elif not lost_ns:
                    lost_ns = began_ns
                if now_ns - lost_ns > DOWN_S_MAX * 1e9:
                    return
            await asyncio.sleep(self._dice.uniform(*AGAIN_S))

    async def _live_once(self, address: Address) -> None:
        if not self._host.up:
            raise BrokerError("the broker that this gateway hosts does not run", "see broker_died in the log")
        run = self._dice.token()
        where = self._dress(address)
        will = self._will(run)
        connection = await self._bus.connect(where, will=will, timeout_s=CONNECT_S_MAX)
        try:
            self._run = run
            said = self._mine()
            await connection.publish(topics.brokers(self._site), presence.pack(said), qos=1, retain=True)
            self._said = said
            if self._lost:
                self._lost = False
                self._log.info("own_broker_back")
            await self._link.serve(connection, Home(where, self._candidates.me.name, run))
        finally:
            await connection.close()

    def _mine(self) -> Brokers:
        me = self._candidates.me
        return Brokers(
            site=self._site, host=me.name, instance=me.instance, run=self._run, rank=me.rank, endpoints=me.endpoints,
            candidates=self._candidates.places(),
        )  # fmt: skip

    async def _say_again(self) -> None:
        """The list of candidates has changed, or our word may be gone."""
        mine = self._mine()
        if self._said is not None and (mine != self._said or self._again) and self._link.connected:
            self._again = False
            with contextlib.suppress(BrokerError):  # then it is said on the next connection
                await self._link.send(topics.brokers(self._site), presence.pack(mine), qos=1, retain=True)
                self._said = mine

    async def _hand_over(self, rival: Brokers) -> None:
        """Our clients read where to go before the broker stops."""
        self._log.info("broker_handed_over", to=rival.host, instance=rival.instance)
        word = msgspec.structs.replace(rival, run="")
        with contextlib.suppress(BrokerError, TimeoutError):
            async with asyncio.timeout(GOODBYE_S_MAX):
                await self._link.send(topics.brokers(self._site), presence.pack(word), qos=1, retain=True)

    # --- rivals ------------------------------------------------------------------------------------------------------

    async def _watch(self) -> Brokers:
        """Until there is a host that we have to make room for."""
        while True:
            self._changed.clear()
            self._learn()
            await self._say_again()
            answers = await self._probes.ask_all(self._places(), self._tell, enough=self._outranked)
            rival = self._judge(answers)
            if rival is not None:
                return rival
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(self._dice.uniform(LOOK_S / 2, LOOK_S)):
                    await self._changed.wait()

    def _places(self) -> list[Endpoint]:
        """Where a rival is likely, and the next few of all others."""
        candidates = self._candidates
        known = candidates.all()
        before = candidates.named(self._before)
        rivals = [place for each in known if each.instance in self._rivals for place in each.endpoints]
        announced = [place for each in known if each.hosts for place in each.endpoints]
        likely = [*self._hints, *rivals, *(before.endpoints if before is not None else ()), *announced]
        self._hints.clear()
        everywhere = election.ask_order(candidates.me, known)
        start = self._turn % max(1, len(everywhere))
        self._turn = start + LOOK_MAX
        chosen = [*list(dict.fromkeys(likely))[:LIKELY_MAX], *(everywhere[start:] + everywhere[:start])[:LOOK_MAX]]
        return [place for place in dict.fromkeys(chosen) if place not in candidates.me.endpoints]

    def _tell(self, rival: Brokers) -> tuple[str, bytes] | None:
        """A lesser host learns of us on its own broker: perhaps it has no other way."""
        mine = self._mine()
        if rival.run and rival.instance != mine.instance and election.key(mine) < election.key(rival):
            topic = topics.other_broker(self._site, mine.host)
            return topic, presence.pack(msgspec.structs.replace(mine, run="", candidates=()))
        return None

    def _outranked(self, answer: Answer) -> bool:
        """Then nobody waits for those that do not answer: two hosts are to be one again."""
        return answer.ours and answer.brokers is not None and election.key(answer.brokers) < election.key(self._mine())

    def _judge(self, answers: list[Answer]) -> Brokers | None:
        now_ns, mine = self._clock.mono_ns(), self._mine()
        there: dict[str, int] = {}
        for answer in answers:
            rival = answer.brokers
            if rival is None or not answer.ours or rival.instance == mine.instance:
                continue
            self._candidates.hear_brokers(rival, now_ns)
            self._hints.append(answer.endpoint)
            since_ns = there[rival.instance] = self._rivals.get(rival.instance, now_ns)
            if rival.instance not in self._rivals:
                self._log.info("rival_host", gateway=rival.host, instance=rival.instance, rank=rival.rank)
            if election.steps_down(mine, rival, (now_ns - since_ns) / 1e9):
                # Where we reached it: what it says of itself may be an address that only others can use.
                return msgspec.structs.replace(rival, endpoints=(answer.endpoint, *rival.endpoints))
        self._rivals = there
        return None


async def _cancel(tasks: list[asyncio.Task[Any]]) -> None:
    for task in tasks:
        task.cancel()
    if tasks:
        await asyncio.wait(tasks)
