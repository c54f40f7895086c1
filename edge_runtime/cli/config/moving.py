"""Speaks to gateways where a change moves them (runs). To them a broker that answers proves nothing: somebody who may steer them
has to say something there, or they come back. So whoever publishes such a change publishes it there as well.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Iterable, Mapping, Sequence
from dataclasses import replace
from types import TracebackType
from typing import Any, Self

from edge_runtime.address import BadAddress, address
from edge_runtime.cli.mesh import finding
from edge_runtime.cli.talking import Talk
from edge_runtime.ports import EdgeError, Message

AGAIN_S = 1.0
"""From one word to the next, and from one search to the next: the gateways need a while to be there."""


def places(now: finding.Plan, site: str, brokers: Iterable[Mapping[str, Any]]) -> list[finding.Plan]:
    """Where to speak. `brokers`: the section of each gateway's configuration, as it is wanted."""
    return [plan for each in {str(each): each for each in brokers}.values() if (plan := _place(now, site, each))]


def _place(now: finding.Plan, site: str, broker: Mapping[str, Any]) -> finding.Plan | None:
    """None: it cannot be told from here."""
    try:
        place = address(str(broker.get("url", "mqtt://127.0.0.1:1883")))
    except BadAddress:
        return None
    if broker.get("mode") == "external":
        return finding.Plan(site, (place,), identity=now.identity)
    # One of the gateways hosts it: on this machine, where the broker is now, or where they say it by mDNS.
    hosts = dict.fromkeys(("127.0.0.1", *(each.host for each in now.places)))
    here = tuple(address(f"mqtt://{f'[{host}]' if ':' in host else host}:{place.port}") for host in hosts)
    return replace(now, site=site, places=here, ours=True, discover=True)


class Elsewhere:
    """Says a document, retained, at each of these places until the end of the block. `heard`: what gateways say there."""

    def __init__(self, plans: Sequence[finding.Plan], topic: str, payload: bytes, filters: Sequence[str]) -> None:
        self.heard: asyncio.Queue[Message] = asyncio.Queue()
        self._plans, self._topic, self._payload, self._filters = plans, topic, payload, filters
        self._tasks: list[asyncio.Task[None]] = []

    async def __aenter__(self) -> Self:
        self._tasks = [asyncio.create_task(self._stay(plan), name="elsewhere") for plan in self._plans]
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        for task in self._tasks:
            task.cancel()
        await asyncio.gather(*self._tasks, return_exceptions=True)

    def __bool__(self) -> bool:
        return bool(self._plans)

    async def _stay(self, plan: finding.Plan) -> None:
        while True:
            with contextlib.suppress(EdgeError):  # nobody is there yet: who follows the change says what came of it
                async with Talk(plan) as talk:
                    await talk.listen(*self._filters)
                    await self._speak(talk)
            await asyncio.sleep(AGAIN_S)

    async def _speak(self, talk: Talk) -> None:
        """Again and again: a gateway that hosts the broker does not count what it finds there, only what it hears."""
        loop = asyncio.get_running_loop()
        while True:
            await talk.publish(self._topic, self._payload, retain=True)
            until_s = loop.time() + AGAIN_S
            while message := await talk.hear(until_s):
                self.heard.put_nowait(message)
