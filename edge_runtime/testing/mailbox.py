"""A source of the simulated world that outlives the gateways that read it: what a broker with a persistent session is to them.

    mailbox = Mailbox()
    mailbox.post({"a": 1.0})                       # at any time, also while nobody reads
    adapters = {"mailbox": mailbox.adapter()}      # for World.adapters

Messages are handed out in order, at most so many unacknowledged ones at a time; what is not acknowledged comes again on the next
connection, and now and then one comes again that was.
"""

from __future__ import annotations

import asyncio
import random
from collections.abc import Mapping, Sequence

from edge_runtime.adapter import Adapter, LinkLost, Sample, Value
from edge_runtime.testing.fence import FENCE

UNACKNOWLEDGED_MAX = 20


class Mailbox:
    """`posted`: every message; `acknowledged`: the numbers (from 0) that a gateway said are safe."""

    def __init__(self, rng: random.Random) -> None:
        self.posted: list[Mapping[str, Value]] = []
        self.acknowledged: dict[int, None] = {}
        self.lost = 0.0
        """Chance that a read finds the connection lost."""
        self.again = 0.0
        """Chance that a message that was acknowledged comes again (its PUBACK was lost)."""
        self._rng = rng
        self._news: list[asyncio.Event] = []

    def post(self, values: Mapping[str, Value]) -> None:
        self.posted.append(values)
        for event in self._news:
            event.set()

    def adapter(self) -> type[Adapter]:
        """An adapter class that reads this mailbox."""
        mailbox = self

        class Post(Adapter):
            """Reads a simulated mailbox."""

            mode = "pushed"

            @property
            def redelivers(self) -> bool:
                return True

            async def open(self) -> None:
                self._fence = FENCE.get()
                self._handed_out: list[int] = []
                self._next = next((n for n in range(len(mailbox.posted)) if n not in mailbox.acknowledged), len(mailbox.posted))
                self._event = asyncio.Event()
                mailbox._news.append(self._event)

            async def read(self) -> Sequence[Sample]:
                while True:
                    if mailbox._rng.random() < mailbox.lost:
                        raise LinkLost("the simulated connection broke")
                    if self._handed_out and mailbox._rng.random() < mailbox.again:
                        return [self._sample(mailbox._rng.choice(self._handed_out))]
                    if len(self._handed_out) < UNACKNOWLEDGED_MAX and self._next < len(mailbox.posted):
                        number = self._next
                        self._next += 1
                        if number in mailbox.acknowledged:
                            continue
                        self._handed_out.append(number)
                        return [self._sample(number)]
                    self._event.clear()
                    await self._event.wait()

            async def acknowledge(self, samples: Sequence[Sample]) -> None:
                if self._fence is not None:
                    self._fence.check()
                for sample in samples:
                    number = int(sample.message_id)
                    mailbox.acknowledged[number] = None
                    if number in self._handed_out:
                        self._handed_out.remove(number)
                self._event.set()

            async def close(self) -> None:
                if getattr(self, "_event", None) in mailbox._news:
                    mailbox._news.remove(self._event)

            def _sample(self, number: int) -> Sample:
                return self.context.sample(mailbox.posted[number], message_id=str(number))

        return Post
