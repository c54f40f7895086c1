"""Answers why a window was computed where it was (runs): who remembers the decision tells, all others say nothing."""

from __future__ import annotations

import asyncio
from collections import deque

from edge_runtime.bus import topics, why
from edge_runtime.bus.messages import BadMessage
from edge_runtime.mesh.link import Link
from edge_runtime.mesh.placing import Placing
from edge_runtime.ports import BrokerError, Message

QUESTIONS_MAX = 32
"""That wait for their answer; of more the oldest are dropped: a person asks again."""


class Explaining:
    """See the module's text."""

    def __init__(self, link: Link, placing: Placing) -> None:
        self._link, self._placing = link, placing
        self._waiting: deque[why.Explanation] = deque(maxlen=QUESTIONS_MAX)
        self._asked = asyncio.Event()
        link.on("why", self._on_question)

    async def run(self) -> None:
        """For ever."""
        while True:
            await self._asked.wait()
            self._asked.clear()
            while self._waiting:
                told = self._waiting.popleft()
                try:
                    await self._link.send(topics.why_answer(self._link.site, told.id), why.pack(told))
                except BrokerError:
                    self._waiting.clear()  # who asked is on a broker that we are not on any more

    def _on_question(self, _: str, message: Message) -> None:
        question = why.unpack(message.payload, why.Question)
        if message.retain:
            raise BadMessage("question: it is retained, so it would be asked again and again", "publish it without `retain`")
        told = self._placing.explain(question.id)
        if told is not None:
            self._waiting.append(told)
            self._asked.set()
