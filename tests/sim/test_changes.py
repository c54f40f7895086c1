"""The simulator of changes of configuration: a seed repeats exactly, and it finds bugs that are put in. The campaign:
test_campaigns.py."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from typing import Any

import pytest

from edge_runtime.control import trial
from edge_runtime.control.book import Book
from edge_runtime.control.calling import Calling
from edge_runtime.control.control import Control
from edge_runtime.control.trying import Trying
from edge_runtime.testing.changes import simulate
from edge_runtime.testing.expected import Broken


def test_a_seed_repeats_exactly_in_another_process() -> None:
    here = simulate(7)
    command = [sys.executable, "-m", "edge_runtime.testing.changes", "7"]
    for hash_seed in ("1", "2"):
        environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
        there = subprocess.run(command, env=environment, capture_output=True, text=True, check=True)
        assert here.digest in there.stdout


def seeds_until_broken(most: int, first: int = 0) -> str:
    for seed in range(first, first + most):
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


def test_it_finds_a_gateway_that_stays_on_a_broker_where_nobody_is(monkeypatch: pytest.MonkeyPatch) -> None:
    """What it says there itself, it takes for somebody's word."""
    monkeypatch.setattr(Control, "waits", False)
    assert "confirmed although reach cannot work" in seeds_until_broken(5, first=102)


def test_it_finds_a_call_that_is_not_heard(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(Calling, "judge", lambda *_: None)
    assert "somebody spoke to it" in seeds_until_broken(20)
