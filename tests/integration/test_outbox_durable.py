"""Accepted means on disk: the sync before the answer, kill -9, group commit, all or nothing."""

from __future__ import annotations

import asyncio
import os
import random
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from outboxes import SINKS, draft, everything, new_store, opened, sample, texts

from edge_runtime.outbox import file as outbox_file
from edge_runtime.outbox.batch import BATCH_BYTES_MAX, Position
from edge_runtime.outbox.database import FileDisk
from edge_runtime.ports import Database, EdgeError
from edge_runtime.records import Lane

pytestmark = pytest.mark.usefixtures("both_writers")

TESTS = Path(__file__).parent.parent
COMPILER = shutil.which("cc") or shutil.which("gcc")
KILLS = 20


class Told(FileDisk):
    """A disk that writes down each statement."""

    def __init__(self) -> None:
        super().__init__()
        self.statements: list[str] = []

    def open(self, path: Path, *, damaged: bool = False) -> Database:
        database: Any = super().open(path, damaged=damaged)
        database.set_trace_callback(lambda sql: self.statements.append(sql.split()[0]))
        return database  # type: ignore[no-any-return]


@pytest.fixture(scope="module")
def sync_log(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """A library that tells of each fsync."""
    if COMPILER is None:
        pytest.skip("NO C COMPILER: that a commit waits for its fsync is not shown here (apt install gcc)")
    library = tmp_path_factory.mktemp("shim") / "slow_sync.so"
    subprocess.run([COMPILER, "-shared", "-fPIC", "-o", library, TESTS / "bench" / "slow_sync.c", "-ldl"], check=True)
    return library


COMMITS_WITHOUT_SYNC = """
import asyncio, sys
from pathlib import Path
from outboxes import draft, opened
from edge_runtime.outbox.database import FileDisk

class Hasty(FileDisk):
    def open(self, path, *, damaged=False):
        database = super().open(path, damaged=damaged)
        if sys.argv[3] == "hasty":
            database.execute("PRAGMA synchronous=NORMAL")
        return database

async def main():
    log, missing = Path(sys.argv[2]), 0
    async with opened(Path(sys.argv[1]), disk=Hasty()) as store:
        for number in range(50):
            before = log.stat().st_size
            await store.commit([draft(number)])
            missing += log.stat().st_size == before
    print(missing)

asyncio.run(main())
"""


@pytest.mark.parametrize(("mode", "missing"), [("full", 0), ("hasty", 50)])
def test_every_commit_returns_after_a_sync(mode: str, missing: int, sync_log: Path, tmp_path: Path) -> None:
    """The second case is the control: with synchronous=NORMAL the same program finds commits without one."""
    log = tmp_path / "syncs"
    log.touch()
    found = subprocess.run(
        [sys.executable, "-c", COMMITS_WITHOUT_SYNC, str(tmp_path / "outbox.db"), str(log), mode],
        env={**os.environ, "LD_PRELOAD": str(sync_log), "SYNC_LOG": str(log), "PYTHONPATH": str(TESTS)},
        capture_output=True,
        text=True,
        check=True,
    )
    assert int(found.stdout) == missing


WRITES_FOR_EVER = """
import asyncio, itertools, sys
from pathlib import Path
from outboxes import draft, opened

async def caller(store, name):
    for number in itertools.count():
        await store.commit([draft(f"{name}-{number}")])
        sys.stdout.write(f"{name}-{number}\\n")
        sys.stdout.flush()

async def main():
    async with opened(Path(sys.argv[1])) as store:
        await asyncio.gather(*(caller(store, f"{sys.argv[2]}-{n}") for n in range(5)))

asyncio.run(main())
"""


def test_kill_9_loses_nothing_that_was_accepted(tmp_path: Path) -> None:
    path, rng, acknowledged = tmp_path / "outbox.db", random.Random(1), []
    for life in range(KILLS):
        program = subprocess.Popen(
            [sys.executable, "-c", WRITES_FOR_EVER, str(path), str(life)],
            env={**os.environ, "PYTHONPATH": str(TESTS)},
            stdout=subprocess.PIPE,
            text=True,
        )
        assert program.stdout
        lines = [program.stdout.readline() for _ in range(rng.randrange(1, 300))]
        program.send_signal(signal.SIGKILL)
        rest = program.stdout.read()
        program.wait()
        acknowledged += "".join([*lines, rest[: rest.rfind("\n") + 1]]).split()

    async def read() -> Counter[str]:
        async with opened(path) as store:
            records = await everything(store)
            assert [record.seq for record in records] == list(range(1, len(records) + 1))
            return Counter(texts(records))

    found = asyncio.run(read())
    assert len(acknowledged) > 100
    assert not [text for text in acknowledged if not found[text]]
    assert max(found.values()) == 1


def test_who_comes_together_shares_a_transaction_and_keeps_the_order(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = Told()
        async with opened(tmp_path / "outbox.db", disk=disk) as store:
            disk.statements.clear()
            await asyncio.gather(*(store.commit([draft(number)]) for number in range(100)))
            assert disk.statements.count("COMMIT") == 1
            assert texts(await everything(store)) == [str(number) for number in range(100)]

    asyncio.run(scenario())


def test_a_cancelled_callers_rows_are_written_once(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db") as store:

            async def commit(number: int) -> None:
                await store.commit([draft(number)])

            callers = [asyncio.create_task(commit(number)) for number in range(9)]
            await asyncio.sleep(0)
            for caller in callers[::2]:
                caller.cancel()
            done = await asyncio.gather(*callers, return_exceptions=True)
            assert [isinstance(each, asyncio.CancelledError) for each in done] == [n % 2 == 0 for n in range(9)]
            await store.commit([draft("last")])
            assert Counter(texts(await everything(store))) == Counter([*map(str, range(9)), "last"])

    asyncio.run(scenario())


def test_a_position_goes_with_its_records(tmp_path: Path) -> None:
    """All or none: at each statement of the transaction at which the disk may fail."""

    class Failing(Told):
        """Fails once, before its n-th statement; then everything is as it was."""

        fail_at = 0

        def open(self, path: Path, *, damaged: bool = False) -> Database:
            return Striking(self, super().open(path, damaged=damaged))

    class Striking:
        def __init__(self, disk: Failing, real: Any) -> None:
            self._disk, self._real = disk, real

        def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
            self._disk.fail_at -= 1
            if self._disk.fail_at == 0:
                raise sqlite3.OperationalError("disk I/O error")
            return self._real.execute(sql, parameters)

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    async def scenario() -> None:
        disk = Failing()
        async with opened(tmp_path / "outbox.db", disk=disk, pipelines={"p": "plc"}) as store:  # type: ignore[arg-type]
            for number in range(1, 9):
                disk.fail_at = number
                await store.commit([draft(number)], Position("p", "plc", number, b"state"))
                disk.fail_at = 0
                assert texts(await everything(store)) == [str(n) for n in range(1, number + 1)]
                assert await store.position("p", "plc") == Position("p", "plc", number, b"state")

    asyncio.run(scenario())


def test_a_pipeline_that_goes_to_another_device_has_both_positions_in_one_transaction(tmp_path: Path) -> None:
    """On trial: after a revert it goes on with the former one, and must not do again what stands in the same transaction."""

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db") as store:
            await store.know(SINKS, [("p", "plc"), ("p", "other")])
            both = Position("p", "plc", 3, b"old"), Position("p", "other", 5, b"new")
            await asyncio.gather(*(store.commit([draft(each.device)], each) for each in both))
            assert [await store.position("p", each.device) for each in both] == [*both]

    asyncio.run(scenario())


def test_a_commit_that_failed_but_reached_the_disk_is_not_written_twice(tmp_path: Path) -> None:
    """As when the sync fails and the log, read again, has the transaction nevertheless."""

    class Lying:
        def __init__(self, real: Any) -> None:
            self._real = real

        def execute(self, sql: str, parameters: Sequence[Any] = ()) -> Any:
            found = self._real.execute(sql, parameters)
            if sql == "COMMIT" and lies:
                lies.pop()
                raise sqlite3.OperationalError("disk I/O error")
            return found

        def __getattr__(self, name: str) -> Any:
            return getattr(self._real, name)

    class Disk(FileDisk):
        def open(self, path: Path, *, damaged: bool = False) -> Database:
            return Lying(super().open(path, damaged=damaged))

    lies: list[int] = [1]

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db", disk=Disk(), pipelines={"p": "plc"}) as store:
            for number in range(3):
                lies.append(1)
                await store.commit([draft(number)])
                lies.append(1)
                assert await store.journal("plc", [sample(number)]) == [number + 1]
                assert store.journal_rows == number + 1
            assert texts(await everything(store)) == ["0", "1", "2"]
            assert len(await store.read_journal("plc", 0, 10)) == 3
            assert len(store.epochs) == 1

    asyncio.run(scenario())


def test_rows_that_cannot_be_stored_come_back_to_their_callers_and_the_rest_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db") as store:
            bad: Any = draft("bad")
            bad = type(bad)(bad.lane, object(), bad.stamp, bad.body)
            with pytest.raises((sqlite3.Error, TypeError)):
                await store.commit([bad])
            await store.commit([draft("good")])
            assert texts(await everything(store)) == ["good"]

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_a_fault_of_ours_in_the_writer_is_told_to_all_who_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def scenario() -> None:
        store = new_store(tmp_path / "outbox.db")
        await store.open(SINKS, {})
        monkeypatch.setattr(outbox_file, "insert", lambda *_: {}["no such key"])
        for _ in range(2):
            with pytest.raises(EdgeError, match="no such key"):
                await store.commit([draft(1)])
        with pytest.raises(KeyError):
            await store.close()

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_more_than_a_transaction_may_hold_is_refused_clearly(tmp_path: Path) -> None:
    async def scenario() -> None:
        for cap in (2**20, 64 * 2**20):
            most = min(BATCH_BYTES_MAX, cap // 8)
            async with opened(tmp_path / f"{cap}.db", size_bytes_max=cap) as store:
                with pytest.raises(EdgeError, match=f"one transaction may hold {most}"):
                    await store.commit([draft("x", size=most)])
                with pytest.raises(EdgeError, match=f"one transaction may hold {most}"):
                    await store.journal("plc", [sample(1, message_id="x" * most)])
                await store.commit([draft("fits", size=most - 200)])
                assert texts(await everything(store)) == ["fits"]

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_close_writes_what_was_handed_over_and_takes_no_more(tmp_path: Path) -> None:
    async def scenario() -> None:
        path = tmp_path / "outbox.db"
        store = new_store(path)
        await store.open(SINKS, {})
        waiting = [asyncio.ensure_future(store.commit([draft(number, size=100_000)])) for number in range(20)]
        await store.close()
        await asyncio.gather(*waiting)
        with pytest.raises(EdgeError, match="closed"):
            await store.commit([draft("late")])
        with pytest.raises(EdgeError, match="closed"):
            await store.journal("plc", [sample(1)])
        async with opened(path) as store:
            assert len(await everything(store)) == 20

    asyncio.run(asyncio.wait_for(scenario(), 20))


def test_what_waits_is_bounded(tmp_path: Path) -> None:
    """However many callers: one transaction under way, one that is collected, and each caller's own rows."""

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db") as store:
            callers = [asyncio.ensure_future(store.commit([draft(n, Lane.RESULT, size=100_000)])) for n in range(200)]
            most = 0
            while not all(caller.done() for caller in callers):
                await asyncio.wait(callers, return_when=asyncio.FIRST_COMPLETED)
                callers = [caller for caller in callers if not caller.done()] or callers
                most = max(most, store._batch.size_bytes)
            assert most <= BATCH_BYTES_MAX
            assert len(await everything(store)) == 200

    asyncio.run(scenario())
