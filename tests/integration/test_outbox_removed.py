"""Somebody removes or replaces the outbox's file while the gateway runs: what was accepted is still behind the open connection,
and is written out under the same name again."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from outboxes import draft, everything, opened, texts

from edge_runtime.records import Lane

pytestmark = pytest.mark.usefixtures("both_writers")


def remove_the_file(file: Path) -> None:
    file.unlink()


def remove_all_of_it(file: Path) -> None:
    for each in file.parent.iterdir():
        each.unlink()


def remove_the_folder(file: Path) -> None:
    shutil.rmtree(file.parent)


def put_another_in_its_place(file: Path) -> None:
    other = file.with_name("other.db")
    other.write_bytes(b"something else" * 1000)
    other.rename(file)


@pytest.mark.parametrize("disturb", [remove_the_file, remove_all_of_it, remove_the_folder, put_another_in_its_place])
def test_nothing_accepted_is_lost(disturb: Callable[[Path], None], tmp_path: Path) -> None:
    file = tmp_path / "data" / "outbox.db"

    async def disturbed() -> None:
        async with opened(file) as store:
            for n in range(50):
                await store.commit([draft(n)])
            assert len(await everything(store)) == 50  # the reader has it open, too
            disturb(file)
            for n in range(50, 60):
                await store.commit([draft(n)])
            assert texts(await everything(store)) == [str(n) for n in range(60)]
            store.acknowledge("cloud", Lane.RESULT, ((1, 20),))
            await store.commit([draft(60)])
            assert store.state.trouble is None

    async def afterwards() -> None:
        async with opened(file) as store:
            assert texts(await everything(store)) == [str(n) for n in range(20, 61)]

    asyncio.run(disturbed())
    asyncio.run(afterwards())
    if disturb is put_another_in_its_place:
        assert b"something else" in file.with_name("outbox.db.corrupt-1").read_bytes()
