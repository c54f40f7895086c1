"""Is there a broker of our site? (runs) Looks at the retained `brokers` message of whatever listens at an address. A broker that
has none is somebody else's, or another site's: it is passed over. Where the site has certificates, so is whatever cannot show
one of a gateway of the site, before anything of MQTT is said to it.
"""

from __future__ import annotations

import asyncio
from collections import Counter, deque
from collections.abc import Callable, Iterable
from typing import Any

import msgspec

from edge_runtime.bus import presence, topics
from edge_runtime.bus.messages import BadMessage
from edge_runtime.bus.presence import Brokers
from edge_runtime.ports import Address, BrokerError, Bus, Clock, Connection, Dice, Revoked, Stranger
from edge_runtime.ports_mesh import Endpoint

CONNECT_S_MAX = 1.0
ANSWER_S_MAX = 0.5
"""For the retained message, once we are connected."""

IN_FLIGHT_MAX = 16
"""Addresses that are asked at the same time."""

STRANGERS_MAX = 256
"""Places that are remembered by name, each in its own words in the log; those beyond are counted together."""

Tell = Callable[[Brokers], tuple[str, bytes] | None]
"""What to say to a rival on its own broker: topic and payload; None: nothing."""


class Answer(msgspec.Struct, frozen=True, kw_only=True):
    endpoint: Endpoint
    brokers: Brokers | None = None
    """What our site's host says there."""
    silent: bool = False
    """Not even a refusal came: the machine is off, cut off, or behind a firewall."""

    stranger: bool = False
    """Something answered that could not show that it is of our site: it was told nothing."""

    @property
    def ours(self) -> bool:
        """The site's broker itself is there, not only word of where it is."""
        return self.brokers is not None and self.brokers.run != ""


class Probes:
    """Asks addresses. Every connection that it opens it closes."""

    def __init__(
        self, site: str, bus: Bus, clock: Clock, dice: Dice, log: Any = None, dress: Callable[[Address], Address] = lambda at: at
    ) -> None:  # fmt: skip
        """`dress` gives an address what it takes to get in there, as a member of the site."""
        self._site, self._bus, self._clock, self._dice, self._log, self._dress = site, bus, clock, dice, log, dress
        self._topic = topics.brokers(site)
        self.strangers: Counter[str] = Counter()
        """host:port -> how often what is there could not show that it is of our site ("...": all that are too many to name)."""
        self._put_out = False
        """A broker of our site said so; it is logged once."""

    async def ask(self, endpoint: Endpoint, tell: Tell = lambda _: None) -> Answer:
        """One address; at most CONNECT_S_MAX + ANSWER_S_MAX."""
        began_ns = self._clock.mono_ns()
        where = Address(host=endpoint.host, port=endpoint.port, client_id=f"probe-{self._dice.token()}", keepalive_s=5)
        try:
            connection = await self._bus.connect(self._dress(where), timeout_s=CONNECT_S_MAX)
        except Stranger as error:
            self._note_stranger(endpoint, error)
            return Answer(endpoint=endpoint, stranger=True)
        except Revoked as error:
            self._note_revoked(error)
            return Answer(endpoint=endpoint)
        except BrokerError:
            waited_s = (self._clock.mono_ns() - began_ns) / 1e9
            return Answer(endpoint=endpoint, silent=waited_s >= 0.9 * CONNECT_S_MAX)
        try:
            async with asyncio.timeout(ANSWER_S_MAX):
                brokers = await self._read(connection)
                said = tell(brokers) if brokers is not None else None
                if said is not None:
                    await connection.publish(*said, qos=1)
        except (BrokerError, TimeoutError):
            return Answer(endpoint=endpoint)
        finally:
            await connection.close()
        return Answer(endpoint=endpoint, brokers=brokers)

    async def ask_all(
        self,
        endpoints: Iterable[Endpoint],
        tell: Tell = lambda _: None,
        *,
        enough: Callable[[Answer], bool] = lambda _: False,
        within_s: float | None = None,
    ) -> list[Answer]:
        """In this order (each place once), IN_FLIGHT_MAX at a time. After an answer that is `enough` the rest is not asked any
        more; after `within_s` those that have not answered count as silent, and the rest is not asked."""
        waiting, answers = deque(endpoints), list[Answer]()
        running: dict[Endpoint, asyncio.Task[Answer]] = {}
        end_ns = self._clock.mono_ns() + round((within_s or 0.0) * 1e9)
        try:
            while (waiting or running) and not any(enough(each) for each in answers):
                while waiting and len(running) < IN_FLIGHT_MAX:
                    place = waiting.popleft()
                    running[place] = asyncio.create_task(self.ask(place, tell), name=f"ask {place.host}:{place.port}")
                left_s = None if within_s is None else max(0.0, (end_ns - self._clock.mono_ns()) / 1e9)
                done, _ = await asyncio.wait(running.values(), timeout=left_s, return_when=asyncio.FIRST_COMPLETED)
                answers += [each.result() for each in running.values() if each in done]
                running = {place: each for place, each in running.items() if each not in done}
                if not done:
                    return answers + [Answer(endpoint=place, silent=True) for place in running]
            return answers
        finally:
            for each in running.values():
                each.cancel()
            if running:
                await asyncio.wait(running.values())

    def _note_stranger(self, endpoint: Endpoint, error: Stranger) -> None:
        """Logged once for each place: it is asked again and again."""
        name = f"{endpoint.host}:{endpoint.port}"
        name = name if name in self.strangers or len(self.strangers) < STRANGERS_MAX else "..."
        if name not in self.strangers and self._log is not None:
            self._log.warning("broker_not_ours", at=name, cause=error.cause, hint=error.hint)
        self.strangers[name] += 1

    def _note_revoked(self, error: Revoked) -> None:
        """Who was off when it was revoked can hear of it from no broker: each that has the new roster turns it away."""
        if not self._put_out and self._log is not None:
            self._put_out = True
            self._log.error("broker_refuses_us", cause=error.cause, hint=error.hint)

    async def _read(self, connection: Connection) -> Brokers | None:
        """None: it is no message of ours. Raises TimeoutError where there is none."""
        await connection.subscribe(self._topic)
        message = await connection.receive()
        connection.acknowledge(message)
        try:
            brokers = presence.unpack(message.payload, Brokers)
        except BadMessage:
            return None
        return brokers if brokers.site == self._site else None
