"""Bounded and honest: bytes on disk stay under the cap at every step; what goes is told; what is delivered is deleted."""

from __future__ import annotations

import asyncio
import random
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from outboxes import SINKS, STAMP, accounted, draft, everything, gaps_of, opened, sample, texts
from waiting import until

from edge_runtime.outbox import gaps, intervals, tables
from edge_runtime.outbox.batch import Position
from edge_runtime.outbox.database import SIDE_FILES, FileDisk, Trouble
from edge_runtime.outbox.room import BATCH_SHARE, PURGE_ROWS_MAX
from edge_runtime.outbox.store import Store
from edge_runtime.ports import Database
from edge_runtime.records import KINDS, Lane, Record, Sample

pytestmark = pytest.mark.usefixtures("both_writers")

MIB = 2**20


def size_bytes(path: Path) -> int:
    """As `du --apparent-size` sees it; not the code's own sum."""
    return sum(file.stat().st_size for suffix in ("", *SIDE_FILES) if (file := Path(f"{path}{suffix}")).exists())


READS_FOR_EVER = """
import sqlite3, sys
database = sqlite3.connect(f"file:{sys.argv[1]}?mode=ro", uri=True, isolation_level=None)
database.execute("BEGIN")
database.execute("SELECT * FROM heads").fetchall()
print("reading", flush=True)
sys.stdin.readline()
"""


@contextmanager
def another_reader(path: Path) -> Iterator[None]:
    """Another program in a read transaction: no checkpoint can end, the WAL cannot be cut."""
    command = [sys.executable, "-c", READS_FOR_EVER, str(path)]
    with subprocess.Popen(command, stdin=subprocess.PIPE, stdout=subprocess.PIPE, text=True) as program:
        assert program.stdout
        assert program.stdout.readline() == "reading\n"
        try:
            yield
        finally:
            program.communicate("\n")


@pytest.mark.parametrize(
    ("cap", "low", "high", "each"),
    [
        (MIB, 20, 20, 400),
        (MIB, 100, 3_000, 20),
        (MIB, 100_000, 100_000, 1),
        (4 * MIB, 20, 100_000, 4),
        (24 * MIB, 5_000, 100_000, 20),
    ],
)
def test_ten_times_the_cap(cap: int, low: int, high: int, each: int, tmp_path: Path) -> None:
    """The sink is away. Every seq is there or declared gone, and the oldest went first."""
    rng, path = random.Random(cap + low), tmp_path / "outbox.db"

    async def scenario() -> None:
        written, most = 0, 0
        async with opened(path, size_bytes_max=cap) as store:
            most_at_once = cap // BATCH_SHARE
            while written < 10 * cap:
                sizes, budget = [], most_at_once
                while len(sizes) < each and (size := rng.randint(low, high)) + 120 <= budget:
                    sizes.append(size)
                    budget -= size + 120
                await store.commit([draft(n, size=size) for n, size in enumerate(sizes)])
                written += sum(sizes) + 120 * len(sizes)
                most = max(most, size_bytes(path))
                assert most <= cap
            head = store.heads[Lane.RESULT]
            assert await accounted(store, Lane.RESULT) == ((1, head),)
            declared = gaps_of(await everything(store, Lane.GAP))
            assert len(declared) == 1  # no sink has seen one: it was extended each time
            records = await everything(store)
            assert [record.seq for record in records] == list(range(declared[0].last + 1, head + 1))
            assert declared[0].count == declared[0].last
            assert sum(len(record.body) + 60 for record in records) > cap // 6  # the cap is used
        assert size_bytes(path) <= cap

    asyncio.run(scenario())


def test_another_program_that_reads_does_not_break_the_cap(tmp_path: Path) -> None:
    path, cap = tmp_path / "outbox.db", 2 * MIB

    async def scenario() -> None:
        async with opened(path, size_bytes_max=cap) as store:
            await store.commit([draft("first")])
            with another_reader(path):
                stuck = None
                while stuck is None:
                    commit = asyncio.gather(store.commit([draft("x", size=9_000) for _ in range(5)]))
                    while not commit.done() and not store.state.trouble:  # noqa: ASYNC110 - a state, not an event
                        await asyncio.sleep(0.01)
                    assert size_bytes(path) <= cap
                    stuck = None if commit.done() else commit
                assert store.state.trouble is Trouble.LOCKED
                assert "another program reads outbox.db" in store.state.cause
            await asyncio.wait_for(stuck, 20)
            assert store.state.trouble is None
            for _ in range(50):
                await store.commit([draft("x", size=9_000) for _ in range(5)])
                assert size_bytes(path) <= cap
            assert await accounted(store, Lane.RESULT) == ((1, store.heads[Lane.RESULT]),)

    asyncio.run(scenario())


async def fill(store: Store, lane: Lane, count: int, size: int = 2_000) -> None:
    for at in range(0, count, 20):
        await store.commit([draft(f"{lane}-{at + n}", lane, size=size) for n in range(20)])


def test_the_least_important_lane_goes_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db", size_bytes_max=MIB) as store:
            await fill(store, Lane.SAMPLE, 60)
            await fill(store, Lane.RESULT, 60)
            await fill(store, Lane.EVENT, 60)
            assert len(await everything(store, Lane.EVENT)) == 60
            assert len(await everything(store, Lane.RESULT)) == 60
            assert 0 < len(await everything(store, Lane.SAMPLE)) < 60
            await fill(store, Lane.EVENT, 40)
            assert len(await everything(store, Lane.EVENT)) == 100
            assert not await everything(store, Lane.SAMPLE)
            assert len(await everything(store, Lane.RESULT)) < 60
            for lane in KINDS[1:]:
                assert await accounted(store, lane) == ((1, store.heads[lane]),)

    asyncio.run(scenario())


def test_an_alarm_does_not_go_for_a_sample(tmp_path: Path) -> None:
    """What comes is less important than all that is there: it goes itself, is numbered, and is told."""

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db", size_bytes_max=MIB) as store:
            await fill(store, Lane.EVENT, 400)
            events = len(await everything(store, Lane.EVENT))
            assert events < 400
            await fill(store, Lane.SAMPLE, 20)
        async with opened(tmp_path / "outbox.db", size_bytes_max=MIB) as store:
            assert store.heads[Lane.SAMPLE] == 20  # although there never was a row
            await fill(store, Lane.SAMPLE, 80)
            assert len(await everything(store, Lane.EVENT)) == events
            assert await accounted(store, Lane.SAMPLE) == ((1, 100),)
            await fill(store, Lane.EVENT, 20)
            assert texts(await everything(store, Lane.EVENT))[-1] == "event-19"
        async with opened(tmp_path / "outbox.db", size_bytes_max=MIB) as store:
            assert store.heads[Lane.SAMPLE] == 100

    asyncio.run(scenario())


def test_a_gap_record_that_was_offered_is_never_changed(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db", size_bytes_max=MIB) as store:
            seen: dict[int, Record] = {}
            for _ in range(8):
                await fill(store, Lane.RESULT, 400)
                for record in await everything(store, Lane.GAP):
                    assert seen.setdefault(record.seq, record) == record
            assert len(seen) == 8
            assert await accounted(store, Lane.RESULT) == ((1, store.heads[Lane.RESULT]),)

    asyncio.run(scenario())


def test_gap_records_are_bounded(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A sink that takes everything and confirms nothing, for years: the oldest gap records are told again in fewer."""
    monkeypatch.setattr(gaps, "GAPS_MAX", 20)
    monkeypatch.setattr(gaps, "GAPS_MERGED", 10)

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db", size_bytes_max=MIB) as store:
            await fill(store, Lane.RESULT, 400)
            for _ in range(120):
                await fill(store, Lane.RESULT, 20)
                assert len(await everything(store, Lane.GAP)) <= 22
            for lane in (Lane.RESULT, Lane.GAP):
                assert await accounted(store, lane) == ((1, store.heads[lane]),)
            present = len(await everything(store))
            counted = sum(gap.count for gap in gaps_of(await everything(store, Lane.GAP)) if gap.lane is Lane.RESULT)
            assert present + counted == store.heads[Lane.RESULT]

    asyncio.run(scenario())


def test_what_every_sink_has_is_deleted_and_the_file_stays_small(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"

    async def scenario() -> None:
        two = {"cloud": [Lane.RESULT], "local": [Lane.RESULT, Lane.EVENT]}
        async with opened(path, sinks=two) as store:
            most = 0
            for number in range(200):
                await store.commit([draft(n, size=50) for n in range(1_000)])
                head = store.heads[Lane.RESULT]
                store.acknowledge("cloud", Lane.RESULT, ((1, head),))
                store.acknowledge("local", Lane.RESULT, ((1, head - 500),))
                if number == 20:
                    most = size_bytes(path)
            assert store.heads[Lane.RESULT] == 200_000
            assert size_bytes(path) <= 1.5 * most
            await store.commit([draft("last")])
            async with asyncio.timeout(30):  # a purge has a budget for each transaction: what is left goes with the next ones
                while len(await everything(store)) > 502:  # noqa: ASYNC110 - the store has no event for it
                    await asyncio.sleep(0.05)

    asyncio.run(scenario())


def test_a_great_purge_goes_in_bounded_transactions(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    deleted: list[int] = []

    def told(database: Database, lane: Lane, first: int, last: int, limit: int) -> int:
        upto = delete(database, lane, first, last, limit)
        deleted.append(upto - first + 1)
        return upto

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db") as store:
            for _ in range(6):
                await store.commit([draft(n) for n in range(4_000)])
            store.acknowledge("cloud", Lane.RESULT, ((1, 24_000),))
            while await everything(store):
                await store.commit([draft("tick", Lane.EVENT)])

    delete = tables.delete
    monkeypatch.setattr(tables, "delete", told)
    asyncio.run(scenario())
    assert sum(deleted) == 24_000
    assert max(deleted) <= PURGE_ROWS_MAX


@pytest.mark.parametrize(("cap", "size"), [(MIB, 30), (MIB, 500), (3 * MIB, 3_000), (12 * MIB, 300)])
def test_a_purge_stays_under_the_cap(cap: int, size: int, tmp_path: Path) -> None:
    """Deleting writes to the WAL as well."""
    path = tmp_path / "outbox.db"

    async def scenario() -> None:
        async with opened(path, size_bytes_max=cap) as store:
            for _ in range(2):
                for _ in range(cap // 40 // (size + 120)):
                    await store.commit([draft(n, size=size) for n in range(40)])
                head = store.heads[Lane.RESULT]
                store.acknowledge("cloud", Lane.RESULT, ((1, head),))
                await until(lambda h=head: store.acknowledged("cloud", Lane.RESULT) == ((1, h),))  # type: ignore[misc]
                await store.commit([draft("event", Lane.EVENT)])
                while store._file.books.purge_left:
                    assert size_bytes(path) <= cap
                    await store.commit([draft(n, Lane.EVENT, size=size) for n in range(20)])
                assert size_bytes(path) <= cap
                assert not await everything(store)

    asyncio.run(scenario())


def test_what_was_delivered_and_not_yet_deleted_is_not_declared_lost(tmp_path: Path) -> None:
    """The transaction that writes what was acknowledged needs room as well: it evicts first, and deletes what was delivered."""

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db", size_bytes_max=MIB) as store:
            await fill(store, Lane.RESULT, 400)
            oldest = (await everything(store, Lane.RESULT))[0].seq
            store.acknowledge("cloud", Lane.RESULT, ((1, oldest + 9),))
            await store.commit([draft(n, size=1_000) for n in range(100)])
            declared = intervals.normalise((gap.first, gap.last) for gap in gaps_of(await everything(store, Lane.GAP)))
            assert (await everything(store, Lane.RESULT))[0].seq > oldest + 10, "more was evicted than had been delivered"
            assert not intervals.intersection(declared, ((oldest, oldest + 9),))
            assert intervals.intersection(declared, ((oldest + 10, oldest + 10),))

    asyncio.run(scenario())


def test_a_lane_that_no_sink_takes_keeps_its_records(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "outbox.db"
        async with opened(path, sinks={"cloud": [Lane.EVENT]}) as store:
            await store.commit([draft("kept"), draft("told", Lane.EVENT)])
            store.acknowledge("cloud", Lane.EVENT, ((1, 1),))
            await store.commit([draft("kept as well")])
            assert texts(await everything(store)) == ["kept", "kept as well"]
            await until(lambda: store.acknowledged("cloud", Lane.EVENT))
            assert not await everything(store, Lane.EVENT)
        async with opened(path, sinks={"other": [Lane.RESULT]}) as store:
            assert store.acknowledged("cloud", Lane.EVENT) == ()

    asyncio.run(scenario())


# --- the input journal -----------------------------------------------------------------------------------------------


def test_redeliveries_are_recognised_also_after_a_restart(tmp_path: Path) -> None:
    path, pipelines = tmp_path / "outbox.db", {"p": "plc"}

    async def scenario() -> None:
        async with opened(path, pipelines=pipelines) as store:
            assert await store.journal("plc", [sample(1, "a"), sample(2, "b"), sample(1, "a"), sample(3)]) == [1, 2, 0, 3]
            assert await store.journal("other", [sample(1, "a", "other")]) == [4]
            await store.commit([], Position("p", "plc", 4))
        async with opened(path, pipelines=pipelines) as store:
            assert await store.read_journal("plc", 0, 10) == []
            assert store.journal_head("plc") == 0
            assert await store.journal("plc", [sample(2, "b"), sample(3), sample(4, "c")]) == [0, 5, 6]
            assert [each.values for each in await store.read_journal("plc", 0, 10)] == [(3,), (4,)]

    asyncio.run(scenario())


def test_a_full_journal_holds_up_its_own_device_only(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db", journal_rows_max=10, pipelines={"p": "plc", "q": "plc", "r": "ok"}) as store:
            await store.journal("plc", [sample(n, f"{n}") for n in range(10)])
            assert store.journal_full("plc")
            waiting = asyncio.ensure_future(store.journal("plc", [sample(11, "11")]))
            for number in range(20):
                [row] = await store.journal("ok", [sample(number, f"{number}", "ok")])
                await store.commit([], Position("r", "ok", row + 1))
            await store.commit([], Position("p", "plc", 9))  # the other pipeline still needs all of them
            assert not waiting.done()
            await store.commit([], Position("q", "plc", 5))
            assert len(await asyncio.wait_for(waiting, 10)) == 1
            assert [each.values[0] for each in await store.read_journal("plc", 0, 99)] == [4, 5, 6, 7, 8, 9, 11]

    asyncio.run(scenario())


def test_the_journal_leaves_room_for_the_results_that_free_it(tmp_path: Path) -> None:
    """Its samples are under the cap, too: full of them, the outbox could never commit what makes them unneeded."""
    path = tmp_path / "outbox.db"

    async def scenario() -> None:
        async with opened(path, size_bytes_max=MIB, journal_rows_max=10**6, pipelines={"p": "plc"}) as store:
            rows = 0
            while not store.journal_full("plc"):
                rows += len(await store.journal("plc", [sample(rows + n, f"message-{rows + n}") for n in range(50)]))
                assert size_bytes(path) <= MIB
            assert rows < 10_000
            for number in range(600):  # message ids do not fill it up either
                await store.commit([draft(number, size=300)], Position("p", "plc", rows))
                rows += len(await store.journal("plc", [sample(rows + n, f"message-{rows + n}" * 3) for n in range(20)]))
                assert size_bytes(path) <= MIB
            assert await accounted(store, Lane.RESULT) == ((1, 600),)

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize("length", [400, 2_100, 3_000])
def test_a_cap_made_smaller_evicts_records_and_keeps_what_sources_were_told_to_be_accepted(tmp_path: Path, length: int) -> None:
    path = tmp_path / "outbox.db"
    more: dict[str, Any] = {"journal_rows_max": 10**6, "pipelines": {"p": "plc"}}

    async def scenario() -> None:
        async with opened(path, size_bytes_max=64 * MIB, **more) as store:
            await store.journal("plc", [Sample("plc", STAMP, ("x" * length,), message_id=str(n)) for n in range(2_000)])
            await fill(store, Lane.SAMPLE, 2_000, 1_000)
            await fill(store, Lane.RESULT, 100, 100)
        async with opened(path, size_bytes_max=MIB, **more) as store:
            assert store.journal_full("plc")
            await store.commit([], Position("p", "plc", 1))
            assert store._file.over_bytes > MIB // 4
            assert len(await store.read_journal("plc", 0, 10**6)) == 2_000
            assert await accounted(store, Lane.SAMPLE) == ((1, 2_000),)
            assert len(await everything(store, Lane.SAMPLE)) < 2_000
            assert len(await everything(store, Lane.RESULT)) == 100
            for row in range(1, 2_001, 100):  # its windows are made: their results have room, and less and less is needed
                await store.commit([draft(row)], Position("p", "plc", row + 100))
            assert len(await everything(store, Lane.RESULT)) == 120
            assert not store.journal_full("plc")
            await store.commit([draft("after")])
            assert not store._file.over_bytes
            pages, free = tables.size_pages(store._file.read_connection())
            assert (pages - free) * 4096 < MIB

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_message_ids_and_refused_records_of_a_larger_cap_do_not_fill_a_smaller_one(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"

    async def scenario() -> None:
        async with opened(path, size_bytes_max=64 * MIB, journal_rows_max=10**6, pipelines={"p": "plc"}) as store:
            await store.journal("plc", [sample(n, f"{n}" * 50) for n in range(20_000)])
            await store.commit([], Position("p", "plc", 20_001))
            await fill(store, Lane.RESULT, 200, 2_000)
            for record in await everything(store):
                await store.set_aside("cloud", record, "rubbish")
        async with opened(path, size_bytes_max=MIB, pipelines={"p": "plc"}) as store:
            await store.commit([draft("first", size=1_000)], Position("p", "plc", 20_001))
            assert "first" in texts(await everything(store))
            assert await store.journal("plc", [sample(0, "19999" * 50)]) == [0]
            assert not store._file.over_bytes

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_pipelines_and_devices_that_are_no_more_are_forgotten(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"

    async def scenario() -> None:
        async with opened(path, pipelines={"p": "plc", "gone": "old"}) as store:
            await store.journal("plc", [sample(1, "a")])
            await store.journal("old", [sample(1, "a", "old")])
            await store.commit([], Position("p", "plc", 1, b"p"))
            await store.commit([], Position("gone", "old", 1, b"gone"))
        async with opened(path, pipelines={"p": "plc"}) as store:
            assert await store.position("p", "plc") == Position("p", "plc", 1, b"p")
            assert await store.position("gone", "old") is None
            assert len(await store.read_journal("plc", 0, 9)) == 1
            assert not await store.read_journal("old", 0, 9)
        async with opened(path, pipelines={"p": "another device"}) as store:
            assert await store.position("p", "plc") is None

    asyncio.run(scenario())


def test_refused_records_are_kept_within_limits_each_lane_for_itself(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"

    async def scenario() -> None:
        async with opened(path, sinks=SINKS, size_bytes_max=MIB) as store:
            await fill(store, Lane.RESULT, 40, 500)
            for record in await everything(store):
                await store.set_aside("cloud", record, "rubbish")
            await store.commit([draft("an old seq", Lane.EVENT)])
            await store.set_aside("cloud", (await everything(store, Lane.EVENT))[0], "rubbish")
            declared = gaps_of(await everything(store, Lane.GAP))
            assert {gap.reason for gap in declared} == {"refused by cloud: rubbish"}
            assert intervals.normalise((gap.first, gap.last) for gap in declared if gap.lane is Lane.RESULT) == ((1, 40),)

    asyncio.run(scenario())
    database = FileDisk().open(path)
    kept = tables.rows(database, "SELECT lane, seq FROM refused ORDER BY lane, seq")
    database.close()
    assert ("event", 1) in kept
    results = [seq for lane, seq in kept if lane == "result"]
    assert 0 < len(results) < 40
    assert results == list(range(41 - len(results), 41))
    assert size_bytes(path) <= MIB
