"""Changes of configuration on virtual time, with kill -9 and power cuts at every disk operation of two of them, and at drawn
instants of thousands: always the old or the new configuration, always reachable again, nothing lost. A failing seed is told and
repeats exactly: `python -m edge_runtime.testing.changes SEED`."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import random
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from typing import Any

import pytest

from edge_runtime.control import trial
from edge_runtime.control.book import Book
from edge_runtime.control.trying import Trying
from edge_runtime.testing.changes import Outcome, crash, simulate
from edge_runtime.testing.expected import Broken
from edge_runtime.testing.wishes import SPARE, Patch, everything, external, file, threshold

SEEDS = int(os.environ.get("EDGE_CHANGES_SEEDS", "20"))
FIRST = int(os.environ.get("EDGE_CHANGES_SEED_FIRST", "0"))
EVERY = int(os.environ.get("EDGE_CHANGES_EVERY", "5"))
"""Each so-manyth statement is crashed before (an odd number: both kinds have their turn); in `make soak` each one."""
POINTS_MIN = {"threshold": 150, "everything": 250}


def change(kind: str) -> tuple[Patch, Patch]:
    """What the file says, and a document."""
    base = file(random.Random(2))
    assert base["broker"]["mode"] == "hosted"
    base["devices"]["plc"]["period_s"] = 5.0
    if kind == "threshold":
        return base, threshold(random.Random(0))
    return base, everything(random.Random(5)) | {"broker": external(SPARE)}


def one(seed: int) -> tuple[int, str, Outcome | None]:
    try:
        return seed, "", simulate(seed)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the seed must be told
        return seed, f"{type(error).__name__}: {error}", None


def point(arguments: tuple[str, int]) -> str:
    kind, at = arguments
    try:
        crash(*change(kind), at, power=at % 2 == 0)
    except BaseException as error:  # noqa: BLE001 - the point must be told
        return f"{kind}, before statement {at}: {type(error).__name__}: {error}"
    return ""


@pytest.mark.slow
@pytest.mark.timeout(max(600, 3 * SEEDS))
def test_every_seed_keeps_every_promise() -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        outcomes = list(pool.map(one, range(FIRST, FIRST + SEEDS), chunksize=5))
    failed = [f"seed {seed}: {why}" for seed, why, outcome in outcomes if outcome is None]
    assert not failed, "\n".join(failed)
    told = [outcome for _, _, outcome in outcomes if outcome is not None]
    lives, boots = sum(outcome.lives for outcome in told), sum(outcome.boots for outcome in told)
    print(f"{SEEDS} seeds, {lives - len(told)} crash points, {boots - len(told)} of them power cuts")
    assert lives > 8 * SEEDS, "the campaign must kill gateways, or it shows nothing"
    assert boots > 4 * SEEDS, "it must cut the power"
    assert sum(outcome.confirmed for outcome in told) > SEEDS, "it must confirm changes"
    assert sum(outcome.reverted for outcome in told) > SEEDS / 2, "it must take changes back"
    assert len({outcome.digest for outcome in told}) == SEEDS


@pytest.mark.slow
@pytest.mark.timeout(600)
@pytest.mark.parametrize("kind", [*POINTS_MIN])
def test_a_crash_before_every_statement_of_a_change(kind: str) -> None:
    """Odd ones are kill -9, even ones cut the power. It goes on with the old or the new one, and ends with the new one."""
    statements = crash(*change(kind), None)
    assert statements > POINTS_MIN[kind], "too few crash points to show anything"
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        found = [*pool.map(point, [(kind, at) for at in range(1, statements + 1, EVERY)], chunksize=20)]
    failed = [each for each in found if each]
    assert not failed, "\n".join(failed[:20])


def test_a_seed_repeats_exactly_in_another_process() -> None:
    here = simulate(7)
    command = [sys.executable, "-m", "edge_runtime.testing.changes", "7"]
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert here.digest in there.stdout


def seeds_until_broken(most: int) -> str:
    for seed in range(most):
        try:
            simulate(seed)
        except (Broken, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"
    return ""


def test_it_finds_a_change_that_is_confirmed_before_it_is_tried(monkeypatch: pytest.MonkeyPatch) -> None:
    propose = Book.propose

    async def hasty(self: Book, *arguments: Any, **more: Any) -> int:
        number = await propose(self, *arguments, **more)
        await self.confirm()
        return number

    monkeypatch.setattr(Book, "propose", hasty)
    assert seeds_until_broken(10)


def test_it_finds_a_revert_that_does_not_restore(monkeypatch: pytest.MonkeyPatch) -> None:
    async def idle(*_: Any) -> None:
        await asyncio.sleep(0)

    revert = Trying.revert

    async def forgetful(self: Trying, why: str) -> None:
        with monkeypatch.context() as patch:
            patch.setattr(self, "apply", idle)
            await revert(self, why)

    monkeypatch.setattr(Trying, "revert", forgetful)
    assert seeds_until_broken(10)


def test_it_finds_a_power_cut_that_counts_as_a_crash(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(trial, "_crashes", lambda life, boot: life.crashes + 1)
    assert "crashes" in seeds_until_broken(10)
