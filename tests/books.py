"""Books over a simulated disk on virtual time, for the book's tests."""

from __future__ import annotations

import asyncio
import hashlib
import json
import random
from collections.abc import Awaitable, Callable
from pathlib import Path
from typing import Any, TypeVar

from edge_runtime.control.book import Book
from edge_runtime.control.pages import LayerDocument
from edge_runtime.ports import Disk
from edge_runtime.records import Stamp
from edge_runtime.testing.disk import FaultyDisk
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.loop import InlineWorker, VirtualClock, VirtualLoop, run

T = TypeVar("T")
STAMP = Stamp("b1", 5, 1_000_000_005, True)
NAME = "control.db"


def digest(text: str) -> str:
    return hashlib.sha256(text.encode()).hexdigest()


def document(layer: str, content: str, revision: int | None = None, **more: Any) -> LayerDocument:
    return LayerDocument(layer=layer, hash=digest(content), payload=content.encode(), stamp=STAMP, revision=revision, **more)


def file(content: str) -> LayerDocument:
    return document("file", content)


def effective(*documents: LayerDocument) -> str:
    """What stands for the configuration that these make together: it names each of them, so a mix is seen."""
    return json.dumps([each.payload.decode() for each in documents])


def new_book(folder: Path, *, boot: str = "b1", disk: Disk | None = None, fence: Fence | None = None) -> Book:
    loop = asyncio.get_running_loop()
    rng = random.Random(0)
    worker = InlineWorker(rng, fence=fence, delay_s=(0.0, 0.0))
    disk = disk or FaultyDisk(rng, fence or Fence("gw"))
    return Book(disk, folder / NAME, VirtualClock(loop, boot=boot, fence=fence), worker)


async def propose(book: Book, *documents: LayerDocument, **more: Any) -> int:
    """A change of these layers, on what the book has of the others."""
    made_of = {**book.base, **{each.layer: each for each in documents}}
    whole = [made_of[layer] for layer in sorted(made_of)]
    text = effective(*whole)
    return await book.propose(text, digest(text), whole, **more)


def simulated(scenario: Callable[[], Awaitable[T]]) -> T:
    async def main() -> T:
        return await scenario()

    return run(main, seed=0)


def advance(seconds: float) -> None:
    """Time passes at once."""
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    loop._now += seconds
