"""Speaks to gateways where a change moves them (runs). To them a broker that answers proves nothing: somebody who may steer them
has to say something there, or they come back. So whoever publishes such a change publishes it there as well.
"""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from types import TracebackType
from typing import Self

from edge_runtime.bus import presence, topics
from edge_runtime.bus.messages import BadMessage
from edge_runtime.bus.presence import Brokers
from edge_runtime.cli.config.places import Here, Place
from edge_runtime.cli.config.seen import birth_of
from edge_runtime.cli.mesh import finding
from edge_runtime.cli.talking import Talk
from edge_runtime.ports import EdgeError, Message

AGAIN_S = 1.0
"""From one word to the next, and from one search to the next: the gateways need a while to be there."""
HEARD_MAX = 64
"""Reports that nobody has taken yet; then no more is read, and nothing more is said."""
SEARCHES_MAX = 4
"""At the same time: with mDNS each is a burst on the network."""


async def look_around(talk: Talk) -> Here:
    """Who hosts the broker where we are, and the addresses that gateways have told of themselves."""
    brokers: Brokers | None = None
    hosts: dict[str, tuple[str, ...]] = {}
    async for message in talk.kept(topics.brokers(talk.site), topics.gateway(talk.site, "+", "status")):
        if message.topic == topics.brokers(talk.site):
            brokers = _brokers(message.payload) or brokers
        elif (parsed := topics.parse(message.topic)) and parsed[2] == ("status",) and (birth := birth_of(message.payload)):
            hosts[parsed[1]] = tuple(dict.fromkeys(each.host for each in birth.endpoints if each.host))
    return Here(talk.plan, talk.site, brokers, hosts)


def _brokers(payload: bytes) -> Brokers | None:
    try:
        return presence.unpack(payload, Brokers)
    except BadMessage:
        return None


class Elsewhere:
    """Says a document at each of these places until the end of the block: retained the first time, for who comes later; then
    live, so that a newer one that somebody leaves there stays. `heard`: what gateways say there, without what the place had
    kept from before."""

    def __init__(self, places: Sequence[Place], topic: str, payload: bytes, filters: Sequence[str]) -> None:
        self.heard: asyncio.Queue[Message] = asyncio.Queue(HEARD_MAX)
        self._places, self._topic, self._payload, self._filters = places, topic, payload, filters
        self._failures: dict[int, EdgeError] = {}
        self._searches = asyncio.Semaphore(SEARCHES_MAX)
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [
            asyncio.create_task(self._stay(number, each.plan), name=f"elsewhere {number}")
            for number, each in enumerate(self._places)
        ]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    @property
    def failures(self) -> Mapping[str, EdgeError]:
        """Why we do not get there, by place."""
        return {self._places[number].name: error for number, error in self._failures.items()}

    async def _stay(self, number: int, plan: finding.Plan) -> None:
        spoken = False
        while True:
            talk = Talk(plan)
            try:
                try:
                    async with self._searches:
                        await talk.__aenter__()
                    await talk.listen(*self._filters)
                    await talk.publish(self._topic, self._payload, retain=not spoken)
                    first, spoken = not spoken, True
                    self._failures.pop(number, None)
                    await self._speak(talk, first)
                finally:  # also where it has come half way: a broker without the site's roster
                    await talk.__aexit__(None, None, None)
            except EdgeError as error:  # nobody is there yet: who follows the change says what came of it
                self._failures[number] = error
            await asyncio.sleep(AGAIN_S)

    async def _speak(self, talk: Talk, first: bool) -> None:
        """Again and again: a gateway that hosts the broker does not count what it finds there, only what it hears. `first`: what
        this connection finds kept is of before; that on a later one may be the answer."""
        loop = asyncio.get_running_loop()
        while True:
            until_s = loop.time() + AGAIN_S
            while message := await talk.hear(until_s):
                if not (message.retain and first and talk.connections == 1):
                    await self.heard.put(message)
            await talk.publish(self._topic, self._payload)
