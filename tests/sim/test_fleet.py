"""Whole sites on virtual time: hundreds of seeded networks with partitions, hosts that die, gateways that crash and hang. A
failing seed is told and repeats exactly: `python -m edge_runtime.testing.fleet SEED --log`."""

from __future__ import annotations

import asyncio
import multiprocessing
import os
import subprocess
import sys
from concurrent.futures import ProcessPoolExecutor
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.mesh import election
from edge_runtime.mesh.asking import Asking
from edge_runtime.mesh.placing import Placing
from edge_runtime.testing.fleet import Broken, Outcome, Times, simulate

SEEDS = int(os.environ.get("EDGE_FLEET_SEEDS", "300"))
FIRST = int(os.environ.get("EDGE_FLEET_SEED_FIRST", "0"))


def one(seed: int) -> tuple[int, str, Outcome | None]:
    try:
        return seed, "", simulate(seed)
    except BaseException as error:  # noqa: BLE001 - whatever it is, the seed must be told
        return seed, f"{type(error).__name__}: {error}", None


@pytest.mark.slow
@pytest.mark.timeout(max(600, 3 * SEEDS))
def test_every_site_keeps_every_promise() -> None:
    with ProcessPoolExecutor(2, mp_context=multiprocessing.get_context("spawn")) as pool:
        outcomes = list(pool.map(one, range(FIRST, FIRST + SEEDS), chunksize=5))
    failed = [f"seed {seed}: {why}" for seed, why, outcome in outcomes if outcome is None]
    assert not failed, "\n".join(failed)
    told = {seed: outcome for seed, _, outcome in outcomes if outcome is not None}
    print(f"\n{SEEDS} sites, the longest of each time (seconds, seed):", worst(told))
    assert len({outcome.digest for outcome in told.values()}) == SEEDS
    for what, least in {"lives": 6, "hostings": 3, "windows": 100, "by_peers": 20, "unanswered": 5, "resends": 0}.items():
        count = sum(getattr(outcome, what) for outcome in told.values())
        assert count > least * SEEDS, f"{count} {what}: the campaign shows nothing"


def worst(told: dict[int, Outcome]) -> dict[str, tuple[float, int]]:
    return {
        name: max((getattr(outcome.times, name), seed) for seed, outcome in told.items())
        for name in msgspec.structs.asdict(Times())
    }


def test_a_seed_repeats_exactly_in_another_process() -> None:
    here = simulate(7)
    command = [sys.executable, "-m", "edge_runtime.testing.fleet", "7"]
    for hash_seed in ("1", "2"):
        there = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert here.digest in there.stdout


def test_a_seed_leaves_nothing_behind(tmp_path: Path) -> None:
    simulate(3, tmp_path)
    assert not list(tmp_path.iterdir())


# --- planted bugs ----------------------------------------------------------------------------------------------------


def until_broken(most: int = 30, first: int = 0) -> str:
    """What is said of the first seed that finds the bug."""
    for seed in range(first, first + most):
        try:
            simulate(seed)
        except Broken as error:
            print(f"found with seed {seed}: {error}")
            return str(error)
    return f"{most} seeds found nothing"


def test_it_finds_a_window_that_is_not_given_to_anybody_else(monkeypatch: pytest.MonkeyPatch) -> None:
    there = Placing._there

    async def forgetful(self: Placing, course: Any, decision: Any) -> Any:
        placed = await there(self, course, decision)
        return placed or await asyncio.get_running_loop().create_future()

    monkeypatch.setattr(Placing, "_there", forgetful)
    assert "missing" in until_broken()


def test_it_finds_an_answer_that_is_accepted_twice(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Asking, "_find", lambda self, peer, _, task_id: self._asked.get(peer, {}).get(task_id))
    assert "InvalidStateError" in until_broken()


def test_it_finds_a_task_that_outlives_its_deadline(monkeypatch: pytest.MonkeyPatch) -> None:
    ask = Asking.ask

    async def patient(self: Asking, *args: Any, deadline_ns: int, **more: Any) -> Any:
        return await ask(self, *args, deadline_ns=deadline_ns + 2 * 10**9, **more)

    monkeypatch.setattr(Asking, "ask", patient)
    assert "the deadline was in" in until_broken()


def test_it_finds_a_host_that_does_not_step_down(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(election, "steps_down", lambda *_: False)
    assert "the hosts among" in until_broken()


def test_it_finds_a_choice_by_order_of_arrival(monkeypatch: pytest.MonkeyPatch) -> None:
    """Each host was there first, as far as it has seen."""
    monkeypatch.setattr(election, "position", lambda *_: 0)
    monkeypatch.setattr(election, "steps_down", lambda _mine, _rival, seen_s: seen_s >= election.YIELD_S)
    assert ", after " in until_broken(first=45)  # the first that finds it is 51
