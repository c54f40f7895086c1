"""A model that is asked for at peers: one does not answer, one gives something else, one has it."""

from __future__ import annotations

import asyncio
import contextlib
import random
import shutil
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest
from outboxes import LOG

from edge_runtime.inference import store
from edge_runtime.inference.shelf import Shelf
from edge_runtime.mesh import fetching
from edge_runtime.mesh.fetching import Fetching
from edge_runtime.ports import BrokerError, Message
from edge_runtime.testing.loop import InlineWorker, SeededDice, VirtualLoop, run

MODEL = "press-anomaly"


class Link:
    """One end of a mesh.link.Link; `others` are all of them."""

    site = "plant"

    def __init__(self, gateway: str, others: dict[str, Link]) -> None:
        self.gateway, self.connected, self.others = gateway, True, others
        self.handlers: dict[str, Callable[[str, Message], None]] = {}
        self.lose: Callable[[str], bool] = lambda kind: False
        self.told = 0
        others[gateway] = self

    def on(self, kind: str, handler: Callable[[str, Message], None], *filters: str) -> None:
        self.handlers[kind] = handler

    async def tell(self, peer: str, kind: str, frame: bytes) -> None:
        assert len(frame) <= 2**16
        self.told += 1
        await asyncio.sleep(0.001)
        if peer not in self.others:
            raise BrokerError(f"{peer} has told no key yet")
        if not self.lose(kind):
            self.others[peer].handlers[kind](self.gateway, Message("", frame, 1, False, False, 0, 0))


class Site:
    def __init__(self, folder: Path) -> None:
        self.folder, self.links = folder, dict[str, Link]()
        self.all: dict[str, Fetching] = {}

    def add(self, name: str, *, has: bool, peers: tuple[str, ...] = (), allowed: bool = True) -> Fetching:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        if has:
            shutil.copytree(store.shipped() / "shuttle-anomaly", self.folder / name / MODEL)
        link: Any = Link(name, self.links)
        rng = loop.rng(name)
        self.all[name] = Fetching(
            link, Shelf(self.folder / name), lambda: peers, lambda: InlineWorker(rng), SeededDice(rng), LOG, allowed=allowed
        )
        return self.all[name]


def simulated(scenario: Callable[[Site], Coroutine[Any, Any, None]], folder: Path) -> None:
    async def main() -> None:
        await scenario(Site(folder))

    run(main, seed=1)


@contextlib.asynccontextmanager
async def serving(site: Site, *names: str) -> AsyncIterator[None]:
    tasks = [asyncio.create_task(site.all[name].run(), name=name) for name in names]
    yield
    for task in tasks:
        task.cancel()


def test_it_is_taken_from_the_first_that_has_it_whole(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        ours = site.add("ours", has=False, peers=("gone", "silent", "without", "broken", "good"))
        site.add("silent", has=True)
        site.add("without", has=False)
        site.add("broken", has=True)
        site.add("good", has=True)
        file = tmp_path / "broken" / MODEL / "fp32.tflite"
        file.write_bytes(file.read_bytes()[:-1] + b"?")
        async with serving(site, "without", "broken", "good"):
            assert await ours.fetch(MODEL)
            assert store.load(tmp_path / "ours" / MODEL)
            assert site.links["good"].told > 5
            told = site.links["ours"].told
            assert await ours.fetch(MODEL)
            assert site.links["ours"].told == told  # it is there

    simulated(scenario, tmp_path)


def test_what_is_lost_on_the_way_is_asked_for_again(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        ours = site.add("ours", has=False, peers=("good",))
        site.add("good", has=True)
        rng = random.Random(1)
        for link in site.links.values():
            link.lose = lambda kind: rng.random() < 0.1
        async with serving(site, "good"):
            assert await ours.fetch(MODEL)

    simulated(scenario, tmp_path)


@pytest.mark.parametrize("closed", ["ours", "good"])
def test_where_anybody_may_be_on_the_broker_nothing_is_asked_or_answered(tmp_path: Path, closed: str) -> None:
    async def scenario(site: Site) -> None:
        ours = site.add("ours", has=False, peers=("good",), allowed=closed != "ours")
        site.add("good", has=True, allowed=closed != "good")
        async with serving(site, "good"):
            assert not await ours.fetch(MODEL)
            assert site.links["good"].told == 0
            assert site.links["ours"].told == (0 if closed == "ours" else fetching.TRIES)

    simulated(scenario, tmp_path)
