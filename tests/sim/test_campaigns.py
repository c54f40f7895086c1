"""The long ones: hundreds of seeded sites, gateways and changes of configuration on virtual time. A failing seed is told and
repeats exactly:

    python -m edge_runtime.testing.simulation SEED      # one gateway: crashes, failing disks, lossy uplinks
    python -m edge_runtime.testing.fleet SEED           # a site: partitions, hosts that die, gateways that crash and hang
    python -m edge_runtime.testing.changes SEED         # changes of configuration: kill -9 and power cuts at any instant

They compute and wait for nothing, so they take what the other tests leave of the machine, from the beginning (see conftest.py).
"""

from __future__ import annotations

import functools
import multiprocessing
import os
import random
from collections.abc import Callable, Iterable, Iterator
from concurrent.futures import ProcessPoolExecutor
from typing import Any, TypeVar

import msgspec
import pytest

from edge_runtime.testing import changes, fleet, simulation
from edge_runtime.testing.wishes import SPARE, Patch, everything, external, file, threshold

PROCESSES, NICE = 2, 10

GATEWAYS = int(os.environ.get("EDGE_SEEDS", "200"))
GATEWAY_FIRST = int(os.environ.get("EDGE_SEED_FIRST", "0"))
SITES = int(os.environ.get("EDGE_FLEET_SEEDS", "300"))
SITE_FIRST = int(os.environ.get("EDGE_FLEET_SEED_FIRST", "0"))
CHANGES = int(os.environ.get("EDGE_CHANGES_SEEDS", "20"))
CHANGES_FIRST = int(os.environ.get("EDGE_CHANGES_SEED_FIRST", "0"))
EVERY = int(os.environ.get("EDGE_CHANGES_EVERY", "9"))
"""Each so-manyth statement is crashed before (an odd number: both kinds have their turn); in `make soak` each one."""
POINTS_MIN = {"threshold": 150, "everything": 250}

A, R = TypeVar("A"), TypeVar("R")

pytestmark = [pytest.mark.slow, pytest.mark.timeout(max(900, 3 * GATEWAYS, 3 * SITES, 3 * CHANGES))]


def tried(work: Callable[[A], R], each: A) -> tuple[A, str, R | None]:
    """In a process of the pool."""
    try:
        return each, "", work(each)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the seed must be told
        return each, f"{type(error).__name__}: {error}", None


@pytest.fixture(scope="module")
def pool() -> Iterator[ProcessPoolExecutor]:
    context = multiprocessing.get_context("spawn")
    with ProcessPoolExecutor(PROCESSES, mp_context=context, initializer=os.nice, initargs=(NICE,)) as processes:
        yield processes


def all_hold(pool: ProcessPoolExecutor, work: Callable[[A], R], many: Iterable[A]) -> dict[A, R]:
    outcomes = list(pool.map(functools.partial(tried, work), many, chunksize=5))
    failed = [f"{each}: {why}" for each, why, _ in outcomes if why]
    assert not failed, "\n".join(failed[:20])
    return {each: outcome for each, _, outcome in outcomes}  # type: ignore[misc]


def test_every_site_keeps_every_promise(pool: ProcessPoolExecutor) -> None:
    told = all_hold(pool, fleet.simulate, range(SITE_FIRST, SITE_FIRST + SITES))
    print(f"\n{SITES} sites, the longest of each time (seconds, seed):", worst(told))
    assert len({outcome.digest for outcome in told.values()}) == SITES
    for what, least in {"lives": 6, "hostings": 3, "windows": 100, "by_peers": 20, "unanswered": 5, "resends": 0}.items():
        count = sum(getattr(outcome, what) for outcome in told.values())
        assert count > least * SITES, f"{count} {what}: the campaign shows nothing"


def worst(told: dict[int, fleet.Outcome]) -> dict[str, tuple[float, int]]:
    return {
        name: max((getattr(outcome.times, name), seed) for seed, outcome in told.items())
        for name in msgspec.structs.asdict(fleet.Times())
    }


def test_every_gateway_keeps_every_promise(pool: ProcessPoolExecutor) -> None:
    told = all_hold(pool, simulation.simulate, range(GATEWAY_FIRST, GATEWAY_FIRST + GATEWAYS)).values()
    assert sum(outcome.lives for outcome in told) > 2 * GATEWAYS, "the campaign must crash gateways, or it shows nothing"
    assert sum(outcome.resends for outcome in told) > 0, "it must lose receipts, or it shows nothing"
    assert len({outcome.digest for outcome in told}) == GATEWAYS


def test_every_change_is_old_or_new(pool: ProcessPoolExecutor) -> None:
    told = all_hold(pool, changes.simulate, range(CHANGES_FIRST, CHANGES_FIRST + CHANGES)).values()
    lives, boots = sum(outcome.lives for outcome in told), sum(outcome.boots for outcome in told)
    print(f"{CHANGES} seeds, {lives - len(told)} crash points, {boots - len(told)} of them power cuts")
    assert lives > 8 * CHANGES, "the campaign must kill gateways, or it shows nothing"
    assert boots > 4 * CHANGES, "it must cut the power"
    assert sum(outcome.confirmed for outcome in told) > CHANGES, "it must confirm changes"
    assert sum(outcome.reverted for outcome in told) > CHANGES / 2, "it must take changes back"
    assert len({outcome.digest for outcome in told}) == CHANGES


@pytest.mark.parametrize("kind", [*POINTS_MIN])
def test_a_crash_before_every_statement_of_a_change(pool: ProcessPoolExecutor, kind: str) -> None:
    """Odd ones are kill -9, even ones cut the power. It goes on with the old or the new one, and ends with the new one."""
    statements = changes.crash(*change(kind), None)
    assert statements > POINTS_MIN[kind], "too few crash points to show anything"
    all_hold(pool, functools.partial(crashed, kind), range(1, statements + 1, EVERY))


def crashed(kind: str, at: int) -> Any:
    return changes.crash(*change(kind), at, power=at % 2 == 0)


def change(kind: str) -> tuple[Patch, Patch]:
    """What the file says, and a document."""
    base = file(random.Random(2))
    assert base["broker"]["mode"] == "hosted"
    base["devices"]["plc"]["period_s"] = 5.0
    if kind == "threshold":
        return base, threshold(random.Random(0))
    return base, everything(random.Random(5)) | {"broker": external(SPARE)}
