"""Ids: a seq is never given twice, whatever is deleted, restored, copied or cloned; and time that comes back."""

from __future__ import annotations

import asyncio
import shutil
from pathlib import Path

import pytest
from outboxes import draft, everything, ids, opened, texts

from edge_runtime.ports import Receipt
from edge_runtime.records import LANES, Lane, Stamp

pytestmark = pytest.mark.usefixtures("both_writers")


def run(path: Path, count: int, *, acknowledged: bool = False) -> list[tuple[str, str, int]]:
    """One life of a gateway that makes so many records. Returns their ids."""

    async def live() -> list[tuple[str, str, int]]:
        async with opened(path) as store:
            before = dict(store.heads)
            for number in range(count):
                await store.commit([draft(number, lane) for lane in LANES[1:]])
            made = [
                (str(lane), store.epochs[-1], seq) for lane in LANES[1:] for seq in range(before[lane] + 1, store.heads[lane] + 1)
            ]
            if acknowledged:
                for lane in LANES:
                    store.acknowledge("cloud", lane, ((1, store.heads[lane]),) if store.heads[lane] else ())
                await store.commit([])
            return made

    return asyncio.run(live())


def test_seqs_are_never_given_again_after_everything_was_deleted(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    made = [each for _ in range(3) for each in run(path, 5, acknowledged=True)]
    assert not ids(path)
    made += run(path, 5, acknowledged=True)

    async def without_the_sink() -> None:
        async with opened(path, sinks={}):
            pass

    asyncio.run(without_the_sink())  # what it had acknowledged is forgotten
    made += run(path, 5)
    assert len({(lane, seq) for lane, _, seq in made}) == len(made) == 5 * 5 * len(LANES[1:])
    assert len({epoch for _, epoch, _ in made}) == 5


def test_a_copy_that_is_restored_gives_no_id_again(tmp_path: Path) -> None:
    path, copy = tmp_path / "outbox.db", tmp_path / "copy.db"
    made = run(path, 5)
    shutil.copy(path, copy)
    made += run(path, 5)
    newer = tmp_path / "newer.db"
    shutil.copy(path, newer)
    shutil.copy(copy, path)  # back to the old one
    made += run(path, 5)
    shutil.copy(newer, path)  # and forth again
    made += run(path, 5)
    assert len(set(made)) == len(made) == 4 * 5 * len(LANES[1:])


def test_a_snapshot_that_ran_on_begins_a_new_epoch(tmp_path: Path) -> None:
    """Memory and all: two machines give the same seqs in the same epoch. Whoever hears of it first gives way."""

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db") as store:
            await store.commit([draft(n) for n in range(4)])
            await store.read(Lane.RESULT, 1, 2, 10)  # two were offered
            [epoch] = store.epochs
            assert await store.learn(Receipt({(epoch, Lane.RESULT): ((1, 2),)})) == {Lane.RESULT: ((1, 2),)}
            assert store.epochs == [epoch]
            ours = await store.learn(Receipt({(epoch, Lane.RESULT): ((1, 7),)}))
            assert ours == {Lane.RESULT: ((1, 2),)}  # 3..7 came from the other one
            assert len(store.epochs) == 2
            await store.commit([draft("new")])
            records = await everything(store)
            assert [record.epoch for record in records] == [epoch] * 2 + [store.epochs[-1]] * 3
            assert [record.seq for record in records] == [1, 2, 3, 4, 5]
            await store.learn(Receipt({(epoch, Lane.RESULT): ((1, 9),)}))
            assert len(store.epochs) == 2

    asyncio.run(scenario())


def test_epochs_without_records_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    for _ in range(5):
        run(path, 0)
    run(path, 3)

    async def scenario() -> None:
        async with opened(path) as store:
            assert len(store.epochs) == 2

    asyncio.run(scenario())


def test_every_start_has_an_epoch_of_its_own_whatever_the_file(tmp_path: Path) -> None:
    made = run(tmp_path / "a.db", 2) + run(tmp_path / "b.db", 2)
    assert len(set(made)) == len(made)


# --- time without NTP ------------------------------------------------------------------------------------------------


def test_records_are_dated_once_their_boots_clock_is_known(tmp_path: Path) -> None:
    path, wrong, year = tmp_path / "outbox.db", 1_000, 1_700_000_000 * 10**9

    async def first_boot() -> None:
        async with opened(path) as store:
            await store.commit([draft("early", stamp=Stamp("b1", 10, wrong + 10, False))])
            await store.commit([draft("never", stamp=Stamp("b2", 99, wrong + 99, False))])
            for record in await everything(store):
                assert not record.stamp.synced
            # In one commit with others, and not the last of them: the clock became right and was lost again.
            await store.commit(
                [
                    draft("later", stamp=Stamp("b1", 30, year + 30, True)),
                    draft("other boot", stamp=Stamp("b3", 1, wrong, False)),
                    draft("again wrong", stamp=Stamp("b1", 40, wrong, False)),
                ]
            )

    async def afterwards() -> None:
        async with opened(path) as store:
            found = {texts([record])[0]: record.stamp for record in await everything(store)}
            assert found["early"] == Stamp("b1", 10, year + 10, True)
            assert found["later"] == Stamp("b1", 30, year + 30, True)
            assert found["again wrong"] == Stamp("b1", 40, year + 40, True)
            assert found["never"] == Stamp("b2", 99, wrong + 99, False)
            assert found["other boot"] == Stamp("b3", 1, wrong, False)

    asyncio.run(first_boot())
    asyncio.run(afterwards())


def test_a_boot_whose_first_rows_were_refused_is_known_when_others_come(tmp_path: Path) -> None:
    good, refused = Stamp("b9", 30, 1_700_000_000 * 10**9, True), Stamp("b9", 2**70, 0, False)

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db") as store:
            with pytest.raises(OverflowError):
                await store.commit([draft("refused with it", stamp=good), draft("refused", stamp=refused)])
            await store.commit([draft("kept", stamp=good)])
            await store.commit([draft("kept", stamp=good)])
            assert [record.stamp for record in await everything(store)] == [good, good]

    asyncio.run(scenario())
