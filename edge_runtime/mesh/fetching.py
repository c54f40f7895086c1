"""Models from peers (runs): a gateway that lacks a model asks those that are here, one after the other, and takes it from the
first that has it; and it answers those that ask.

    fetching = Fetching(link, shelf, peers, ...)
    await fetching.run()                       # answers, for ever
    await fetching.fetch("shuttle-anomaly")    # True: it is on our shelf, every file of it verified

One question is open at a time, and there is a pause after each answer: tasks and heartbeats go before. What is there already of
a file is not asked for again, also after a restart.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from typing import Any, Protocol

from edge_runtime.bus import chunks, topics
from edge_runtime.bus.chunks import CHUNK_BYTES, Ask, Chunk
from edge_runtime.bus.messages import BadMessage
from edge_runtime.mesh.link import Link
from edge_runtime.ports import BrokerError, Dice, EdgeError, Message, Worker

ANSWER_S_MAX = 3.0
TRIES = 3
"""Of one question."""
PAUSE_S = 0.005
"""After each answer: at most twelve megabytes a second."""
ASKERS_MAX = 32
"""Whose questions wait at once; of each the newest."""


class Shelf(Protocol):
    """Where models stand. Its methods block, and raise EdgeError."""

    def has(self, model: str) -> bool: ...

    def read(self, model: str, file: str, offset: int, size_bytes: int) -> tuple[bytes, int]:
        """What stands there of a file of ours, and the size of the whole file."""
        ...

    def begin(self, model: str) -> str:
        """Of a model that comes: the file that says which others there are. What is there of those stays."""
        ...

    def wanted(self, model: str) -> Sequence[tuple[str, int]]:
        """Its other files, and how much of each is there."""
        ...

    def add(self, model: str, file: str, offset: int, data: bytes, size_bytes: int) -> None: ...

    def finish(self, model: str) -> None:
        """All of it is there: it is verified, and takes its place. Where it is not what it should be all of it is thrown away."""
        ...


class Fetching:
    """`peers`: names of gateways that are here now. `allowed` False: we neither ask nor answer: anybody may be on the broker."""

    def __init__(
        self, link: Link, shelf: Shelf, peers: Callable[[], Sequence[str]], new_worker: Callable[[], Worker], dice: Dice,
        log: Any, *, allowed: bool,
    ) -> None:  # fmt: skip
        self._link, self._shelf, self._peers, self._new_worker, self._dice, self._log = link, shelf, peers, new_worker, dice, log
        self._allowed = allowed
        self._asked: dict[str, Ask] = {}
        self._news = asyncio.Event()
        self._one_at_a_time = asyncio.Lock()
        self._open: tuple[str, str, asyncio.Future[Chunk]] | None = None
        """Our question: whom we asked, its id."""
        link.on("fetch", self._on_ask, topics.gateway(link.site, link.gateway, "fetch", "+"))
        link.on("chunk", self._on_chunk, topics.gateway(link.site, link.gateway, "chunk", "+"))

    # --- what comes in: called by the link, decides at once ---

    def _on_ask(self, sender: str, message: Message) -> None:
        ask = chunks.unpack(message.payload, Ask)
        if self._allowed and (sender in self._asked or len(self._asked) < ASKERS_MAX):
            self._asked[sender] = ask
            self._news.set()

    def _on_chunk(self, sender: str, message: Message) -> None:
        chunk = chunks.unpack(message.payload, Chunk)
        if self._open is not None and (sender, chunk.id) == self._open[:2] and not self._open[2].done():
            self._open[2].set_result(chunk)

    # --- for others ---

    async def run(self) -> None:
        """Until cancelled."""
        worker = self._new_worker()
        try:
            while True:
                await self._news.wait()
                self._news.clear()
                while self._asked:
                    asker = next(iter(self._asked))
                    await self._answer(asker, self._asked.pop(asker), worker)
                    await asyncio.sleep(PAUSE_S)
        finally:
            worker.abandon()

    async def _answer(self, asker: str, ask: Ask, worker: Worker) -> None:
        try:
            data, size_bytes = await worker.run(self._shelf.read, ask.model, ask.file, ask.offset, CHUNK_BYTES)
            chunk = Chunk(ask.id, data, size_bytes)
        except EdgeError as error:
            chunk = Chunk(ask.id, cause=error.cause[:500])
        try:
            await self._link.tell(asker, "chunk", chunks.pack(chunk))
        except BrokerError:
            return  # it asks again

    # --- for us ---

    async def fetch(self, model: str) -> bool:
        """False: nobody who is here has it, or gives it whole; why is logged."""
        if not self._allowed or not self._link.connected:
            return False
        async with self._one_at_a_time:
            worker = self._new_worker()
            try:  # two pipelines may lack the same one
                return await worker.run(self._shelf.has, model) or await self._from_anybody(model, worker)
            finally:
                worker.abandon()

    async def _from_anybody(self, model: str, worker: Worker) -> bool:
        causes = []
        for peer in self._peers():
            try:
                await self._from(peer, model, worker)
            except EdgeError as error:
                causes.append(f"{peer}: {error.cause}")
            else:
                self._log.info("model_fetched", model=model, peer=peer)
                return True
        self._log.warning("model_not_fetched", model=model, cause="; ".join(causes) or "no other gateway is here")
        return False

    async def _from(self, peer: str, model: str, worker: Worker) -> None:
        first = await worker.run(self._shelf.begin, model)
        await self._file(peer, model, first, 0, worker)
        for file, there in await worker.run(self._shelf.wanted, model):
            await self._file(peer, model, file, there, worker)
        await worker.run(self._shelf.finish, model)

    async def _file(self, peer: str, model: str, file: str, offset: int, worker: Worker) -> None:
        while True:
            chunk = await self._chunk(peer, Ask(self._dice.token(), model, file, offset))
            if chunk.cause:
                raise EdgeError(chunk.cause, "another gateway may have it")
            await worker.run(self._shelf.add, model, file, offset, chunk.data, chunk.size_bytes)
            offset += len(chunk.data)
            if offset >= chunk.size_bytes or not chunk.data:
                return

    async def _chunk(self, peer: str, ask: Ask) -> Chunk:
        loop = asyncio.get_running_loop()
        for _ in range(TRIES):
            answer: asyncio.Future[Chunk] = loop.create_future()
            self._open = (peer, ask.id, answer)
            try:
                await self._link.tell(peer, "fetch", chunks.pack(ask))
                async with asyncio.timeout(ANSWER_S_MAX):
                    return await answer
            except TimeoutError:
                continue
            finally:
                self._open = None
        raise BadMessage(f"{ask.file}: no answer", "is it of an older version?")
