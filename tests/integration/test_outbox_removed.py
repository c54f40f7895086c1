"""Somebody removes or replaces the outbox's file while the gateway runs: what was accepted is still behind the open connection,
and is written out under the same name again."""

from __future__ import annotations

import asyncio
import shutil
from collections.abc import Callable
from pathlib import Path

import pytest
from campaigns import fill, small_disk
from outboxes import draft, everything, opened, texts
from waiting import until

from edge_runtime.outbox.database import Trouble
from edge_runtime.outbox.file import LOOK_NS
from edge_runtime.records import Lane

pytestmark = pytest.mark.usefixtures("both_writers")

LOOK_S = 2 * LOOK_NS / 1e9


def remove_the_file(file: Path) -> None:
    file.unlink()


def remove_all_of_it(file: Path) -> None:
    for each in file.parent.iterdir():
        each.unlink()


def remove_the_folder(file: Path) -> None:
    shutil.rmtree(file.parent)


def remove_its_log(file: Path) -> None:
    for suffix in ("-wal", "-shm"):
        file.with_name(file.name + suffix).unlink()


def put_another_in_its_place(file: Path) -> None:
    other = file.with_name("other.db")
    other.write_bytes(b"something else" * 1000)
    other.rename(file)


@pytest.mark.parametrize(
    "disturb", [remove_the_file, remove_all_of_it, remove_the_folder, remove_its_log, put_another_in_its_place]
)
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


@pytest.mark.parametrize("disturb", [remove_the_file, remove_all_of_it, remove_its_log])
def test_what_was_written_after_it_outlives_a_kill(disturb: Callable[[Path], None], tmp_path: Path) -> None:
    file, left = tmp_path / "data" / "outbox.db", tmp_path / "left"

    async def disturbed() -> None:
        async with opened(file) as store:
            for n in range(50):
                await store.commit([draft(n)])
            disturb(file)
            await asyncio.sleep(LOOK_S)
            for n in range(50, 60):
                await store.commit([draft(n)])
            shutil.copytree(file.parent, left)  # what `kill -9` leaves

    async def afterwards() -> None:
        async with opened(left / file.name) as store:
            assert texts(await everything(store)) == [str(n) for n in range(60)]

    asyncio.run(disturbed())
    asyncio.run(afterwards())


def test_nothing_is_lost_where_nothing_is_written_between_the_removal_and_the_stop(tmp_path: Path) -> None:
    file = tmp_path / "data" / "outbox.db"

    async def disturbed() -> None:
        async with opened(file) as store:
            await store.commit([draft(0)])
            remove_all_of_it(file)

    async def afterwards() -> None:
        async with opened(file) as store:
            assert texts(await everything(store)) == ["0"]

    asyncio.run(disturbed())
    asyncio.run(afterwards())


def test_who_removes_it_to_make_room_on_a_full_disk_loses_nothing(tmp_path: Path) -> None:
    """The room is not free before the last connection is closed, and there is none to write the file out once more."""
    file = tmp_path / "data" / "outbox.db"

    async def disturbed() -> None:
        async with opened(file) as store:
            for n in range(500):
                await store.commit([draft(n, size=1_000)])
            foreign = fill(file.parent)
            late = asyncio.ensure_future(asyncio.wait_for(store.commit([draft(500, size=1_000_000)]), 30))
            await until(lambda: store.state.trouble is Trouble.FULL)
            remove_the_file(file)
            await asyncio.sleep(1)  # some tries
            assert store.state.trouble is Trouble.FULL
            foreign.unlink()
            await late
            assert len(await everything(store)) == 501
            assert store.state.trouble is None

    with small_disk(file.parent):
        asyncio.run(disturbed())


def test_a_folder_that_cannot_be_entered_is_a_state(tmp_path: Path) -> None:
    folder, aside = tmp_path / "data", tmp_path / "aside"

    async def disturbed() -> None:
        async with opened(folder / "outbox.db") as store:
            for n in range(50):
                await store.commit([draft(n)])
            folder.rename(aside)
            folder.write_bytes(b"")
            await asyncio.sleep(LOOK_S)
            late = asyncio.ensure_future(asyncio.wait_for(store.commit([draft(50)]), 30))
            await until(lambda: store.state.trouble)
            folder.unlink()
            await late
            assert texts(await everything(store)) == [str(n) for n in range(51)]

    asyncio.run(asyncio.wait_for(disturbed(), 30))
