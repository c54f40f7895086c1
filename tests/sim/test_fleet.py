"""The simulator of sites: a seed repeats exactly, and it finds bugs that are put in. The campaign: test_campaigns.py."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.mesh import election
from edge_runtime.mesh.asking import Asking
from edge_runtime.mesh.placing import Placing
from edge_runtime.testing.fleet import Broken, simulate


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
