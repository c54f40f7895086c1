"""The simulator of one gateway: a seed repeats exactly, and it finds bugs that are put in. The campaign: test_campaigns.py."""

from __future__ import annotations

import asyncio
import os
import subprocess
import sys
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime.outbox import tables
from edge_runtime.outbox.batch import Batch
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.outbox.store import Store
from edge_runtime.pipeline.windowing import State, Windowing
from edge_runtime.records import Sample
from edge_runtime.testing.simulation import Broken, simulate


def test_a_seed_repeats_exactly_in_another_process() -> None:
    here = simulate(7)
    command = [sys.executable, "-m", "edge_runtime.testing.simulation", "7"]
    for hash_seed in ("1", "2"):
        there = subprocess.run(
            command, env={**os.environ, "PYTHONHASHSEED": hash_seed}, capture_output=True, text=True, check=True
        )
        assert here.digest in there.stdout


def seeds_until_broken(most: int) -> str:
    for seed in range(most):
        try:
            simulate(seed)
        except (Broken, TimeoutError) as error:
            return f"{type(error).__name__}: {error}"
    return ""


def test_it_finds_an_acknowledgement_before_the_commit(monkeypatch: pytest.MonkeyPatch) -> None:
    journal, pending = Store.journal, []

    async def hasty(self: Store, device: str, samples: Sequence[Sample]) -> list[int]:
        pending.append(asyncio.ensure_future(journal(self, device, samples)))
        return [0]

    monkeypatch.setattr(Store, "journal", hasty)
    assert "missing" in seeds_until_broken(20)


def test_it_finds_a_position_that_is_not_committed(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(tables, "set_position", lambda *_: None)
    assert "twice" in seeds_until_broken(20) or "too many" in seeds_until_broken(20)


def test_it_finds_a_journal_that_forgets_too_early(monkeypatch: pytest.MonkeyPatch) -> None:
    trim = tables.trim_journal
    monkeypatch.setattr(tables, "trim_journal", lambda db, device, needed, most: trim(db, device, needed + 1, most))
    assert "missing" in seeds_until_broken(20)


def test_it_finds_redeliveries_that_are_not_recognised(monkeypatch: pytest.MonkeyPatch) -> None:
    add = Batch.add_samples

    def forgetful(self: Batch, device: str, samples: Sequence[Sample], *rest: Any) -> Any:
        named = [msgspec.structs.replace(sample, message_id=f" {sample.message_id}{id(sample)}") for sample in samples]
        return add(self, device, named, *rest)

    monkeypatch.setattr(Batch, "add_samples", forgetful)
    assert "too many" in seeds_until_broken(20)


def test_it_finds_a_sink_that_counts_sending_as_delivery(monkeypatch: pytest.MonkeyPatch) -> None:
    from edge_runtime.outbox import intervals
    from edge_runtime.ports import SinkError

    async def believe(self: Delivery, records: list[object]) -> None:
        lane = records[0].lane  # type: ignore[attr-defined]
        self._finish(lane, intervals.of(record.seq for record in records))  # type: ignore[attr-defined]
        try:
            await self._sink.send(records)  # type: ignore[arg-type]
        except SinkError:
            return

    monkeypatch.setattr(Delivery, "_send_once", believe)
    assert "missing" in seeds_until_broken(20)


def test_it_finds_a_window_that_spans_an_uncommitted_state(monkeypatch: pytest.MonkeyPatch) -> None:
    """A restart that forgets what was held, or where the grid stands."""
    monkeypatch.setattr(Windowing, "state", property(lambda self: State(self.needed_row)))
    assert "windows of" in seeds_until_broken(40)


def test_a_seed_leaves_nothing_behind(tmp_path: Path) -> None:
    simulate(3, tmp_path)
    assert not list(tmp_path.iterdir())
