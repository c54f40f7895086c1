"""Where rows are written: on the event loop where the disk is quick, and everything else in the writer's thread."""

from __future__ import annotations

import asyncio
import random
import sqlite3
import threading
import time
from collections.abc import AsyncIterator, Callable, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager, contextmanager
from pathlib import Path
from typing import Any

import pytest
from outboxes import SINKS, draft, everything, opened, sample, texts
from waiting import until

from edge_runtime.outbox import pace
from edge_runtime.outbox.batch import Position
from edge_runtime.outbox.database import FileDisk, Trouble, full
from edge_runtime.outbox.file import LOOK_NS
from edge_runtime.outbox.journal import TRIM_QUICK_MAX
from edge_runtime.outbox.pace import QUICK_BYTES_MAX
from edge_runtime.outbox.store import Store
from edge_runtime.ports import Database
from edge_runtime.records import Lane, Record

HERE, THREAD = "loop", "outbox-writer"


class Watched(FileDisk):
    """Says in which thread each transaction was committed; `delay_s` is what each one takes longer, and `fail` may raise."""

    def __init__(self) -> None:
        super().__init__(16)
        self.commits: list[str] = []
        self.delay_s = 0.0
        self.fail: Callable[[], None] = lambda: None
        self.fail_checkpoint = False
        self.opened = 0

    def open(self, path: Path, *, damaged: bool = False) -> Database:
        self.opened += 1
        return _Watched(super().open(path, damaged=damaged), self)

    def last(self) -> str:
        return self.commits[-1]


class _Watched:
    def __init__(self, database: Any, disk: Watched) -> None:
        self._database, self._disk = database, disk
        self._changes = 0

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Iterable[Any]:
        if sql == "COMMIT":
            name = threading.current_thread().name
            self._disk.commits.append(HERE if name == "MainThread" else name)
            changes, self._changes = self._changes, self._database.total_changes
            time.sleep(self._disk.delay_s if changes < self._changes else 0)
        if sql.startswith("PRAGMA wal_checkpoint") and self._disk.fail_checkpoint:
            raise full("database or disk is full")
        found: Iterable[Any] = self._database.execute(sql, parameters)
        if sql == "COMMIT":
            self._disk.fail()
        return found

    def __getattr__(self, name: str) -> Any:
        return getattr(self._database, name)


@pytest.fixture
def disk(monkeypatch: pytest.MonkeyPatch) -> Watched:
    """Quick from the beginning, however slow the machine is."""
    monkeypatch.setattr(pace, "PROOF", 0)
    monkeypatch.setattr(pace, "QUICK_NS", 10**18)
    monkeypatch.setattr(pace, "STALL_NS", 10**18)
    return Watched()


@asynccontextmanager
async def quick(path: Path, disk: Watched, **more: Any) -> AsyncIterator[Store]:
    """One that rows are appended to. (How much room there is has been asked.)"""
    async with opened(path, disk=disk, **more) as store:
        await store.commit([draft("first")])
        await store.commit([draft("second")])
        assert disk.commits[-2:] == [THREAD, HERE]
        yield store


def run(scenario: Callable[[], Any]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_disk_is_written_on_the_loop_when_it_has_shown_that_it_is_quick(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.setattr(pace, "QUICK_NS", 10**18)
    disk = Watched()

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db", disk=disk) as store:
            del disk.commits[:]
            for number in range(pace.PROOF + 10):
                await store.commit([draft(number)])
            assert disk.commits == [THREAD] * pace.PROOF + [HERE] * 10
            assert texts(await everything(store)) == [str(n) for n in range(pace.PROOF + 10)]

    run(scenario)


def test_a_slow_disk_is_written_in_the_thread(tmp_path: Path) -> None:
    disk = Watched()
    disk.delay_s = 0.002

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db", disk=disk) as store:
            for number in range(2 * pace.PROOF):
                await store.commit([draft(number)])
            assert HERE not in disk.commits

    run(scenario)


def test_a_slow_disk_is_not_taken_for_a_quick_one_though_most_that_comes_was_there_before(tmp_path: Path) -> None:
    disk = Watched()
    disk.delay_s = 0.002

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db", {"cloud": [Lane.RESULT]}, {"pipeline": "plc"}, disk=disk) as store:
            for number in range(20):
                await store.commit([draft(number)])
                for _ in range(20):
                    await store.journal("plc", [sample(1, "the same")])
            assert store.journal_rows == 1
            assert HERE not in disk.commits

    run(scenario)


def test_a_stall_that_ends_in_a_failure_is_one(tmp_path: Path, disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "STALL_NS", 50_000_000)

    def hang() -> None:
        disk.fail = lambda: None
        time.sleep(0.06)
        raise sqlite3.OperationalError("disk I/O error")

    async def scenario() -> None:
        async with quick(tmp_path / "outbox.db", disk) as store:
            disk.fail = hang
            await store.commit([draft(2)])
            assert disk.last() == HERE
            await store.commit([draft(3)])
            await store.commit([draft(4)])
            assert disk.last() == THREAD

    run(scenario)


def test_after_a_stall_the_loop_waits_no_more(tmp_path: Path, disk: Watched, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pace, "STALL_NS", 50_000_000)

    async def scenario() -> None:
        async with quick(tmp_path / "outbox.db", disk) as store:
            disk.delay_s = 0.06
            await store.commit([draft(2)])
            assert disk.last() == HERE
            for number in range(3):
                await store.commit([draft(number)])
                assert disk.last() == THREAD

    run(scenario)


def test_what_is_large_or_deletes_something_goes_to_the_thread(tmp_path: Path, disk: Watched) -> None:
    async def scenario() -> None:
        async with quick(tmp_path / "outbox.db", disk) as store:
            await store.commit([draft("large", size=QUICK_BYTES_MAX)])
            assert disk.last() == THREAD
            (small, *_) = await everything(store)
            await store.set_aside("cloud", small, "it never takes it")
            assert disk.last() == THREAD
            store.acknowledge("cloud", Lane.RESULT, ((1, 3),))
            await until(lambda: store.acknowledged("cloud", Lane.RESULT))
            assert disk.last() == THREAD
            await store.commit([draft("small again")])
            assert disk.last() == HERE
            assert texts(await everything(store)) == ["small again"]

    run(scenario)


def test_samples_that_no_window_needs_any_more_go_in_the_thread_where_they_are_many(tmp_path: Path, disk: Watched) -> None:
    """50,000 of them, as a large tumbling window has, take 30 ms."""

    async def scenario() -> None:
        async with quick(tmp_path / "outbox.db", disk, pipelines={"pipeline": "plc"}, journal_rows_max=10**6) as store:
            for needed, where in ((TRIM_QUICK_MAX, HERE), (2 * TRIM_QUICK_MAX, HERE), (4 * TRIM_QUICK_MAX, THREAD)):
                while store.journal_head("plc") < needed:
                    await store.journal("plc", [sample(number) for number in range(100)])
                await store.commit([draft("a window")], Position("pipeline", "plc", needed + 1))
                assert disk.last() == where
                assert store.journal_rows == 0

    run(scenario)


def test_what_is_acknowledged_lets_rows_pass_and_is_written_all_the_same(tmp_path: Path, disk: Watched) -> None:
    async def scenario() -> None:
        async with quick(tmp_path / "outbox.db", disk) as store:
            here = 0
            for number in range(2, 10_000):
                store.acknowledge("cloud", Lane.RESULT, ((1, number),))
                await store.commit([draft(number)])
                here += disk.last() == HERE
                await asyncio.sleep(0.001)
                if store.acknowledged("cloud", Lane.RESULT) and here > 10:
                    break
            ((_, last),) = store.acknowledged("cloud", Lane.RESULT)
            assert texts(await everything(store))[0] == str(last)  # those before it are gone
            store.acknowledge("cloud", Lane.RESULT, ((1, number + 1),))
        async with opened(tmp_path / "outbox.db", disk=disk) as store:
            assert not await everything(store)

    run(scenario)


def test_a_record_that_was_delivered_is_not_declared_lost_though_its_receipt_was_put_off(tmp_path: Path, disk: Watched) -> None:
    async def scenario() -> None:
        async with quick(tmp_path / "outbox.db", disk, size_bytes_max=2**20) as store:
            for number in range(3_000):
                await store.commit([draft(number, size=1_000)])
                store.acknowledge("cloud", Lane.RESULT, ((1, store.heads[Lane.RESULT]),))
                if not number % 50:
                    await asyncio.sleep(0)
            assert HERE in disk.commits
            assert not store.news.lost

    run(scenario)


def test_the_loop_does_not_wait_for_a_lock_of_another_program(tmp_path: Path, disk: Watched) -> None:
    path = tmp_path / "outbox.db"

    async def scenario() -> None:
        async with quick(path, disk) as store:
            with another_writer(path):
                waiting = asyncio.ensure_future(store.commit([draft(1)]))
                began = time.monotonic()
                steps = 0
                while time.monotonic() - began < 0.5:
                    await asyncio.sleep(0.001)
                    steps += 1
                assert not waiting.done()
                assert steps > 10  # a loop that waits for the lock would make none
                assert not store.state.trouble
            await waiting
            assert disk.last() == THREAD
            await store.commit([draft(2)])
            assert disk.last() == HERE
            assert texts(await everything(store)) == ["first", "second", "1", "2"]

    run(scenario)


def test_the_thread_waits_for_a_lock_whatever_it_has_to_do(tmp_path: Path, disk: Watched) -> None:
    path = tmp_path / "outbox.db"

    async def scenario() -> None:
        async with quick(path, disk) as store:
            for task in (lambda: store.know(SINKS, []), lambda: store._writer.run(store._file.renew_epoch, "2" * 16)):
                await store.commit([draft("which is purged after the other task")])
                await store.commit([draft("on the loop")])
                assert disk.last() == HERE
                with another_writer(path):
                    waiting = asyncio.ensure_future(task())
                    await asyncio.sleep(0.1)
                    assert not waiting.done()
                    assert not store.state.trouble
                await waiting

    run(scenario)


@contextmanager
def another_writer(path: Path) -> Iterator[None]:
    other = sqlite3.connect(path, isolation_level=None)
    other.execute("BEGIN IMMEDIATE")
    try:
        yield
    finally:
        other.execute("ROLLBACK")
        other.close()


def test_a_commit_that_fails_on_the_loop_is_made_in_the_thread(tmp_path: Path, disk: Watched) -> None:
    """By another connection: this one may not know what is on the disk. There it is, and must not come twice."""

    async def scenario() -> None:
        async with quick(tmp_path / "outbox.db", disk) as store:
            for number in range(20):
                failures, opened_before = iter([sqlite3.OperationalError("disk I/O error")]), disk.opened
                disk.fail = lambda f=failures: fail(f)  # type: ignore[misc]
                await store.commit([draft(number)])
                assert disk.last() == HERE
                assert disk.opened == opened_before + 1
                await store.commit([draft("between")])
                assert disk.last() == THREAD
            assert store.state.trouble is None
            found = [each for each in texts(await everything(store)) if each.isdigit()]
            assert found == [str(n) for n in range(20)]

    def fail(failures: Iterator[Exception]) -> None:
        for each in failures:
            raise each

    run(scenario)


def test_rows_that_come_while_the_thread_works_wait_for_it(tmp_path: Path, disk: Watched) -> None:
    """Two transactions at a time on one connection would be one."""

    async def scenario() -> None:
        async with quick(tmp_path / "outbox.db", disk) as store:
            disk.delay_s, opened_before = 0.05, disk.opened
            for number, patient in enumerate((True, False)):
                renewing = asyncio.create_task(store._writer.run(store._file.renew_epoch, f"{number + 1:016x}"))
                await asyncio.sleep(0.01)
                if not patient:
                    renewing.cancel()  # the thread goes on with it
                await store.commit([draft(number)])
                assert disk.last() == THREAD
                await store.commit([draft("what is to be purged then")])
            disk.delay_s = 0.0
            await store.commit([draft(3)])
            assert disk.last() == HERE
            assert disk.opened == opened_before  # nothing has failed

    run(scenario)


def test_the_log_does_not_grow_though_only_rows_are_written(tmp_path: Path, disk: Watched) -> None:
    path = tmp_path / "outbox.db"
    log, most = path.with_name("outbox.db-wal"), 0

    async def scenario() -> None:
        nonlocal most
        async with quick(path, disk, wal_pages=16) as store:
            for number in range(500):
                await store.commit([draft(number, size=100)])
                most = max(most, log.stat().st_size)

    run(scenario)
    assert disk.commits.count(HERE) > 300
    assert most <= 3 * 16 * 4_120


def test_the_log_does_not_grow_though_each_message_id_goes_to_another_page(tmp_path: Path, disk: Watched) -> None:
    path = tmp_path / "outbox.db"
    log, most, anything = path.with_name("outbox.db-wal"), 0, random.Random(1)

    async def scenario() -> None:
        nonlocal most
        async with quick(path, disk, pipelines={"pipeline": "plc"}, journal_rows_max=10**6) as store:
            for number in range(200):
                await store.journal("plc", [sample(number, f"{anything.getrandbits(128):032x}") for _ in range(200)])
                most = max(most, log.stat().st_size)

    run(scenario)
    assert disk.commits.count(HERE) > 50
    assert most <= 6 * 2**20


def test_a_log_that_cannot_be_cut_does_not_make_rows_be_written_twice(tmp_path: Path, disk: Watched) -> None:
    """The disk is full: the log has its place already, the database would have to grow."""

    async def scenario() -> None:
        async with quick(tmp_path / "outbox.db", disk, wal_pages=16) as store:
            disk.fail_checkpoint = True
            for number in range(20):
                await asyncio.wait_for(store.commit([draft(number)]), 5)
            assert disk.last() == THREAD  # each of them tries to cut it
            disk.fail_checkpoint = False
            await store.commit([draft("cuts it")])
            await store.commit([draft("last")])
            assert disk.last() == HERE
            assert texts(await everything(store)) == ["first", "second", *map(str, range(20)), "cuts it", "last"]

    run(scenario)


def test_a_file_that_is_removed_or_found_corrupt_is_nothing_for_the_loop(tmp_path: Path, disk: Watched) -> None:
    path = tmp_path / "outbox.db"

    async def scenario() -> None:
        async with quick(path, disk) as store:
            for each in path.parent.glob("outbox.db*"):
                each.unlink()
            await asyncio.sleep(2 * LOOK_NS / 1e9)
            await store.commit([draft(1)])
            assert disk.last() == THREAD
            assert sorted(texts(await everything(store))) == ["1", "first", "second"]
            await store.commit([draft(2)])
            assert disk.last() == HERE
            assert store.state.trouble is not Trouble.CORRUPT

    run(scenario)


def test_records_of_many_sources_clocks_and_boots_are_what_they_were(tmp_path: Path, disk: Watched) -> None:
    """Rows that are alike are written by another statement than those that are not."""

    async def scenario() -> None:
        async with quick(tmp_path / "outbox.db", disk) as store:
            drafts = []
            for number in range(700):
                one = draft(number)
                stamp = type(one.stamp)("a" if number < 130 else "b", number, 10 * number, 300 < number < 520 or number % 7 == 0)
                source = "press" if number % 250 < 200 else f"source {number % 3}"
                drafts.append(type(one)(one.lane, source, stamp, one.body, "" if number % 2 else f"id {number}"))
            for count in (1, 9, 10, 11, 99, 100, 101, 369):
                await store.commit(drafts[:count])
                del drafts[:count]
            found = (await everything(store))[2:]
        assert [each.seq for each in found] == list(range(3, 703))
        for number, each in enumerate(found):
            check(number, each)

    def check(number: int, found: Record) -> None:
        assert found.body == str(number).encode()
        assert found.source == ("press" if number % 250 < 200 else f"source {number % 3}")
        assert found.unique == ("" if number % 2 else f"id {number}")
        assert found.stamp.boot == ("a" if number < 130 else "b")
        assert found.stamp.mono_ns == number

    run(scenario)
