"""Disk full, read-only, failing, corrupt: states, not crashes. Nothing accepted is lost without being told."""

from __future__ import annotations

import asyncio
import os
import random
import sqlite3
import subprocess
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from outboxes import SINKS, accounted, draft, everything, gaps_of, new_store, opened, sample, texts
from waiting import until

from edge_runtime.outbox import schema
from edge_runtime.outbox.batch import BATCH_BYTES_MAX, Position
from edge_runtime.outbox.database import PAGE_BYTES, FileDisk, Trouble, trouble
from edge_runtime.outbox.file import SALVAGED
from edge_runtime.outbox.gaps import HEADS_EVERY
from edge_runtime.outbox.store import Store
from edge_runtime.ports import EdgeError
from edge_runtime.records import LANES, Lane
from edge_runtime.testing.disk import FaultyDisk, rot
from edge_runtime.testing.fence import Fence

pytestmark = pytest.mark.usefixtures("both_writers")

ROWS = 2_000


# --- full, read-only, failing ----------------------------------------------------------------------------------------


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    """A file system of 16 MiB."""
    folder = tmp_path / "small"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=16m", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("NOT ROOT, OR NO MOUNT HERE: the real full and read-only disk are not shown")
    yield folder
    subprocess.run(["umount", folder], check=True)


def remount(folder: Path, how: str) -> None:
    subprocess.run(["mount", "-o", f"remount,{how}", folder], check=True)


def test_a_full_disk_is_waited_out(small_disk: Path) -> None:
    async def scenario() -> None:
        path = small_disk / "outbox.db"
        async with opened(path) as store:
            (small_disk / "ballast").write_bytes(bytes(15_500_000))
            commits: list[asyncio.Future[Any]] = []
            while not store.state.trouble:
                commits.append(asyncio.gather(store.commit([draft(len(commits), size=5_000)])))
                await asyncio.wait(commits[-1:], timeout=0.2)
            assert store.state.trouble is Trouble.FULL
            assert "free space" in store.state.hint
            accepted = sum(commit.done() for commit in commits)
            assert 0 < accepted < len(commits)
            more = [asyncio.gather(store.commit([draft(len(commits) + n, size=100_000)])) for n in range(60)]
            await asyncio.sleep(0.3)
            assert store._batch.size_bytes <= BATCH_BYTES_MAX  # the rest waits with its callers
            assert not any(commit.done() for commit in more)
            for commit in more:
                commit.cancel()
            (small_disk / "ballast").unlink()
            await asyncio.wait_for(asyncio.gather(*commits), 20)
            assert store.state.trouble is None
            assert texts(await everything(store))[: len(commits)] == [str(n) for n in range(len(commits))]

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_a_read_only_disk_is_waited_out(small_disk: Path) -> None:
    async def scenario() -> None:
        async with opened(small_disk / "outbox.db") as store:
            await store.commit([draft("before")])
            await store._writer.run(store._file.drop_writer)  # a file that is open for writing forbids the remount
            await store._reader.run(store._file.drop_reader)
            remount(small_disk, "ro")
            commit = asyncio.gather(store.commit([draft("after")]))
            await until(lambda: store.state.trouble is Trouble.READ_ONLY)
            assert "remount" in store.state.hint
            remount(small_disk, "rw")
            await asyncio.wait_for(commit, 20)
            assert store.state.trouble is None
            assert texts(await everything(store)) == ["before", "after"]

    asyncio.run(asyncio.wait_for(scenario(), 60))


@pytest.mark.parametrize(
    ("code", "kind"),
    [
        (sqlite3.SQLITE_FULL, Trouble.FULL),
        (sqlite3.SQLITE_READONLY, Trouble.READ_ONLY),
        (sqlite3.SQLITE_IOERR, Trouble.FAILING),
    ],
)
def test_a_disk_that_fails_for_a_while_also_at_the_start(code: int, kind: Trouble, tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = FaultyDisk(random.Random(1), Fence("node"))
        disk.trouble = code
        store = new_store(tmp_path / "outbox.db", disk=disk)
        opening = asyncio.create_task(store.open(SINKS, {}))
        await until(lambda: store.state.trouble is kind)
        disk.trouble = None
        await asyncio.wait_for(opening, 20)
        assert store.state.trouble is None
        for number in range(3):
            disk.trouble = code
            commit = asyncio.gather(store.commit([draft(number)]))
            await until(lambda: store.state.trouble is kind)
            assert store.state.cause
            assert not commit.done()
            disk.trouble = None
            await asyncio.wait_for(commit, 20)
        assert texts(await everything(store)) == ["0", "1", "2"]
        await store.close()

    asyncio.run(scenario())


def test_a_disk_whose_statements_fail_now_and_then_loses_and_repeats_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = FaultyDisk(random.Random(2), Fence("node"))
        async with opened(tmp_path / "outbox.db", disk=disk) as store:
            disk.errors = 0.02
            for number in range(100):
                await store.commit([draft(number)])
            disk.errors = 0.0
            assert texts(await everything(store)) == [str(number) for number in range(100)]

    asyncio.run(asyncio.wait_for(scenario(), 60))


def test_another_program_that_writes_is_waited_for_and_named(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr("edge_runtime.outbox.database.BUSY_S_MAX", 0.01)

    async def scenario() -> None:
        path = tmp_path / "outbox.db"
        async with opened(path) as store:
            other = sqlite3.connect(path, isolation_level=None)
            other.execute("BEGIN IMMEDIATE")
            commit = asyncio.gather(store.commit([draft("waits")]))
            await until(lambda: store.state.trouble is Trouble.LOCKED)
            assert "other program" in store.state.hint
            other.close()
            await asyncio.wait_for(commit, 20)

    asyncio.run(scenario())


def test_a_fault_of_ours_is_no_trouble_of_the_disk() -> None:
    with pytest.raises(sqlite3.IntegrityError):
        trouble(sqlite3.IntegrityError("UNIQUE"))
    assert trouble(sqlite3.OperationalError("unable to open database file")) is Trouble.FAILING


# --- corrupt ---------------------------------------------------------------------------------------------------------


def make(path: Path) -> list[str]:
    """An outbox with 2,000 results, some events, a journal, a position and half acknowledged. Returns its epochs."""

    async def write() -> list[str]:
        async with opened(path, pipelines={"p": "plc"}) as store:
            for at in range(0, ROWS, 100):
                await store.commit([draft(at + n + 1, size=300) for n in range(100)], Position("p", "plc", 5, b"state"))
            await store.commit([draft(n, Lane.EVENT) for n in range(50)])
            await store.journal("plc", [sample(n, f"m{n}") for n in range(1, 21)])
            store.acknowledge("cloud", Lane.RESULT, ((1, 500),))
            await store.commit([draft("last", Lane.EVENT)], Position("p", "plc", 21, b"state"))
            return store.epochs

    return asyncio.run(write())


def flip(path: Path, at: int, size: int = PAGE_BYTES) -> None:
    with path.open("r+b") as file:
        file.seek(at)
        file.write(random.Random(at).randbytes(size))


def _rot(path: Path) -> None:
    rot(path, random.Random(7), pages=4)


def _garbage_header(path: Path) -> None:
    flip(path, 0, 100)


def _truncated(path: Path) -> None:
    os.truncate(path, path.stat().st_size // 2 // PAGE_BYTES * PAGE_BYTES)


def _truncated_within_a_page(path: Path) -> None:
    """SQLite reads the rest of that page as zeros and does not mind: records would come with half a body."""
    _truncated(path)
    os.truncate(path, path.stat().st_size + PAGE_BYTES // 2)


def _all_garbage(path: Path) -> None:
    path.write_bytes(random.Random(1).randbytes(300_000))


def _index_page(path: Path) -> None:
    """The root of lane_result: every row of it is out of reach."""
    database = sqlite3.connect(path)
    (page,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = 'lane_result'").fetchone()
    database.close()
    flip(path, (page - 1) * PAGE_BYTES)


def _leaves(path: Path) -> list[int]:
    """Offsets of the leaves of lane_result that hold nothing but rows 502 to 900, in order."""
    raw = path.read_bytes()
    found = {}
    for at in range(0, len(raw), PAGE_BYTES):
        page = raw[at : at + PAGE_BYTES]
        pointers = [int.from_bytes(page[8 + 2 * n : 10 + 2 * n], "big") for n in range(int.from_bytes(page[3:5], "big"))]
        keys = [(page[each + 2] & 127) << 7 | page[each + 3] for each in pointers] if page[0] == 13 else []
        if keys and b"press" in page and 501 < keys[0] <= keys[-1] < 900:
            found[keys[0]] = at
    return [found[key] for key in sorted(found)]


def _cells_fewer(path: Path) -> None:
    """A leaf with three rows less, and a row that shows the damage."""
    _page_elsewhere(path, count_only=True)


def _page_elsewhere(path: Path, *, count_only: bool = False) -> None:
    """A leaf stands where the one behind it was (a write that went astray), and a row that shows the damage."""
    database = sqlite3.connect(path)
    database.execute("PRAGMA wal_checkpoint(TRUNCATE)").fetchall()
    database.execute("UPDATE lane_result SET epoch = 'x' WHERE seq = 950")
    database.commit()
    database.close()
    _, first, second, *_ = _leaves(path)
    raw = bytearray(path.read_bytes())
    if count_only:
        raw[first + 3 : first + 5] = (int.from_bytes(raw[first + 3 : first + 5], "big") - 3).to_bytes(2, "big")
    else:
        raw[second : second + PAGE_BYTES] = raw[first : first + PAGE_BYTES]
    path.write_bytes(raw)


DAMAGES = [_rot, _garbage_header, _truncated, _truncated_within_a_page, _all_garbage, _index_page, _cells_fewer, _page_elsewhere]


@pytest.mark.parametrize("damage", DAMAGES, ids=lambda damage: damage.__name__.strip("_"))
def test_corrupt_at_the_start(damage: Callable[[Path], None], tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    [epoch] = make(path)
    damage(path)

    async def scenario() -> None:
        async with opened(path, pipelines={"p": "plc"}) as store:
            await store.commit([draft("new")])
            records = await everything(store)
            assert texts(records)[-1] == "new"
            for record in records[:-1]:  # what was salvaged kept its id
                assert (record.epoch, texts([record])) == (epoch, [str(record.seq)])
            assert records[-1].seq > max([record.seq for record in records[:-1]], default=0)
            if damage is not _all_garbage and damage is not _garbage_header:
                # What was not acknowledged is there, or told gone.
                assert await accounted(store, Lane.RESULT) == ((501, store.heads[Lane.RESULT]),)
            assert (await store.journal("plc", [sample(99, "m99")]))[0] > 0
            [fresh] = [each for each in await store.read_journal("plc", 0, 99) if each.values == (99,)]
            position = await store.position("p", "plc")
            assert position is None or fresh.row >= position.row

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert (tmp_path / "outbox.db.corrupt-1").exists()
    assert not path.with_name(path.name + SALVAGED).exists()


def test_a_lane_that_is_gone_as_a_whole_is_told(tmp_path: Path) -> None:
    """Nothing was delivered of it yet, and the program was killed: no row says any more how far it had come, but for a note."""
    path = tmp_path / "outbox.db"

    async def write() -> None:
        async with opened(path) as store:
            for at in range(0, ROWS, 100):
                await store.commit([draft(at + n + 1, size=300) for n in range(100)])

    asyncio.run(write())
    _index_page(path)

    async def scenario() -> None:
        async with opened(path) as store:
            [gap] = gaps_of(await everything(store, Lane.GAP))
            assert (gap.lane, gap.first, gap.reason) == (Lane.RESULT, 1, "disk corrupt")
            assert ROWS - HEADS_EVERY < gap.last <= ROWS

    asyncio.run(asyncio.wait_for(scenario(), 30))


def index_leaves(path: Path, *, named: str) -> list[int]:
    """Offsets of the leaves of an index or a table WITHOUT ROWID, in the order of its keys."""
    database = sqlite3.connect(path)
    database.execute("VACUUM")  # each in one piece, nothing free between them
    (root,) = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (named,)).fetchone()
    database.close()
    raw = path.read_bytes()
    page = raw[(root - 1) * PAGE_BYTES : root * PAGE_BYTES]
    assert page[0] == 2, "it has inner pages"
    cells = [int.from_bytes(page[at : at + 2], "big") for at in range(12, 12 + 2 * int.from_bytes(page[3:5], "big"), 2)]
    numbers = [int.from_bytes(page[at : at + 4], "big") for at in [*cells, 8]]
    return [(number - 1) * PAGE_BYTES for number in numbers]


@pytest.mark.parametrize(("named", "where"), [("seen", 0), ("seen", 0.5), ("seen", 1), ("seen_row", 0), ("seen_row", 1)])
def test_message_ids_on_damaged_pages_are_still_known(named: str, where: float, tmp_path: Path) -> None:
    """Nobody reads them before the next message comes: only then is the damage found. What a source sends again is not counted
    twice for it."""
    path, count = tmp_path / "outbox.db", 3_000
    samples = [sample(n, f"m{n}") for n in range(1, count + 1)]

    async def write() -> None:
        async with opened(path, pipelines={"p": "plc"}) as store:
            assert all(await store.journal("plc", samples))
            await store.commit([], Position("p", "plc", count + 1, b""))

    asyncio.run(write())
    leaves = index_leaves(path, named=named)
    assert len(leaves) > 9
    flip(path, leaves[round(where * (len(leaves) - 1))])

    async def scenario() -> None:
        async with opened(path, pipelines={"p": "plc"}) as store:
            fresh = [sample(n, f"m{n}") for n in range(count + 1, count + 100)]
            rows = await store.journal("plc", [*samples, *fresh])
            assert not any(rows[:count]), "each was there before"
            assert all(rows[count:])

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert (tmp_path / "outbox.db.corrupt-1").exists(), "the damage was found"


@pytest.mark.parametrize("found_by", ["writer", "reader"])
def test_corrupt_while_running(found_by: str, tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    make(path)

    async def damaged(store: Store) -> None:
        """The pages in SQLite's memory are dropped, as they are in time."""
        await store._reader.run(store._file.drop_reader)
        await store._writer.run(store._file.drop_writer)
        flip(path, 30 * PAGE_BYTES, path.stat().st_size - 40 * PAGE_BYTES)

    async def scenario() -> None:
        async with opened(path, pipelines={"p": "plc"}) as store:
            await store.commit([draft("before", Lane.EVENT)])
            await everything(store)  # the reader has the old file open
            epochs = store.epochs
            await damaged(store)
            if found_by == "writer":
                store.acknowledge("cloud", Lane.RESULT, ((1, 1_500),))  # it must delete what it cannot read
            else:
                await everything(store)
            await store.commit([draft("after")])
            await store.commit([draft("after", Lane.EVENT)])
            assert store.state.trouble is None
            assert store.epochs == epochs  # the run goes on
            assert texts(await everything(store))[-1] == "after"
            assert texts(await everything(store, Lane.EVENT))[-2:] == ["before", "after"]
            present = await accounted(store, Lane.RESULT)
            assert present[-1][1] == store.heads[Lane.RESULT] == ROWS + 1
            assert "disk corrupt" in {gap.reason for gap in gaps_of(await everything(store, Lane.GAP))}
            assert not (tmp_path / "outbox.db.corrupt-2").exists()  # once
        async with opened(path, pipelines={"p": "plc"}) as store:
            assert texts(await everything(store))[-1] == "after"

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_nobody_opens_a_file_that_is_being_replaced(tmp_path: Path) -> None:
    """SQLite removes a WAL by its name when the last connection is closed: it would be the new file's."""

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db") as store:
            await store.commit([draft(1)])
            await store._reader.run(store._file.drop_reader)
            store._file.corrupt = True
            with pytest.raises(sqlite3.OperationalError, match="being salvaged"):
                store._file.read_connection()
            await store._writer.run(store._file.drop_writer)
            await store.commit([draft(2)])
            assert texts(await everything(store)) == ["1", "2"]

    asyncio.run(scenario())


def test_a_file_that_vanished_under_a_running_gateway_is_told(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"

    async def scenario() -> None:
        async with opened(path) as store:
            await store.commit([draft(1), draft(2)])
            await store._reader.run(store._file.drop_reader)
            await store._writer.run(store._file.drop_writer)
            path.write_bytes(b"")
            await store.commit([draft(3)])
            assert [record.seq for record in await everything(store)] == [3]
            assert await accounted(store, Lane.RESULT) == ((1, 3),)

    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize("steps", range(8))
def test_a_crash_in_the_midst_of_the_replacement(steps: int, tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Before and after each rename: the next start finds everything."""
    path = tmp_path / "outbox.db"
    make(path)
    rot(path, random.Random(7), pages=2)
    path.with_name("outbox.db-wal").write_bytes(b"")
    left = [steps]

    def rename(self: Path, target: Path) -> Path:
        if not left[0]:
            raise KeyboardInterrupt
        left[0] -= 1
        return real(self, target)

    async def start() -> None:
        async with opened(path) as store:
            assert await accounted(store, Lane.RESULT) == ((501, ROWS),)
            assert len(await everything(store)) > ROWS // 2

    real = Path.rename
    monkeypatch.setattr(Path, "rename", rename)
    try:
        asyncio.run(start())
    except BaseException:  # noqa: BLE001 - the "crash"
        assert left == [0]
    monkeypatch.setattr(Path, "rename", real)
    asyncio.run(asyncio.wait_for(start(), 30))
    asyncio.run(asyncio.wait_for(start(), 30))


def test_a_wal_of_rubbish_is_ignored_as_sqlite_does(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    make(path)
    path.with_name("outbox.db-wal").write_bytes(random.Random(3).randbytes(50_000))

    async def scenario() -> None:
        async with opened(path) as store:
            await store.commit([draft("new")])
            assert len(await everything(store)) == ROWS - 500 + 1

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_an_empty_file_is_a_new_outbox(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    path.touch()

    async def scenario() -> None:
        async with opened(path) as store:
            await store.commit([draft("first")])
            assert [record.seq for record in await everything(store)] == [1]

    asyncio.run(scenario())
    assert [file.name for file in tmp_path.iterdir()] == ["outbox.db"]


def test_a_newer_format_is_refused_and_left_alone(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    make(path)
    database = sqlite3.connect(path)
    database.execute(f"PRAGMA user_version={schema.SCHEMA_VERSION + 1}")
    database.close()
    before = path.read_bytes()

    async def scenario() -> None:
        with pytest.raises(EdgeError, match="written by a newer edge-runtime") as told:
            async with opened(path):
                pass
        assert "update edge-runtime" in told.value.hint

    asyncio.run(asyncio.wait_for(scenario(), 30))
    assert path.read_bytes() == before


def test_a_row_that_sqlite_takes_for_one_and_is_none(tmp_path: Path) -> None:
    """A flipped bit in a row's header: another type, and no error of SQLite's."""
    path = tmp_path / "outbox.db"
    make(path)
    database = sqlite3.connect(path)
    database.execute("UPDATE lane_result SET epoch = 'x' WHERE seq = 700")
    database.commit()
    database.close()

    async def scenario() -> None:
        async with opened(path) as store:
            records = await everything(store)
            assert [gap.first for gap in gaps_of(await everything(store, Lane.GAP))] == [700]
            assert len(records) == ROWS - 500 - 1
            assert all(lane in store.heads for lane in LANES)

    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize(
    "turned",
    [
        "INSERT INTO heads VALUES ('resulu', 7)",
        "UPDATE heads SET seq = 'x'",
        "UPDATE acknowledged SET lane = 'resulu'",
        "UPDATE acknowledged SET first = 'x'",
        "UPDATE epochs SET after = '{'",
        "UPDATE boots SET offset_ns = 'x'",
        "UPDATE positions SET pipeline = CAST(x'ff' AS TEXT)",
        "UPDATE sqlite_sequence SET seq = 'x'",
        "UPDATE journal SET sample = x'c1'",
        "UPDATE lane_gap SET body = x'7b'",
        "UPDATE lane_result SET uniq = CAST(x'ff' AS TEXT) WHERE seq = 700",
    ],
)
def test_a_bit_that_turned_over_in_a_text_stops_nothing(turned: str, tmp_path: Path) -> None:
    """No error of SQLite's, but what reads it would fail, at each start anew."""
    path = tmp_path / "outbox.db"

    async def damaged() -> None:
        async with opened(path, pipelines={"p": "plc"}) as store:
            [record] = await store.read(Lane.RESULT, 600, 600, 1)
            await store.set_aside("cloud", record, "no")  # a gap record
            await store.journal("plc", [sample(50)])

    make(path)
    asyncio.run(damaged())
    database = sqlite3.connect(path)
    database.execute("INSERT OR IGNORE INTO heads VALUES ('result', 7)")
    assert database.execute(turned).rowcount > 0
    database.commit()
    database.close()

    async def scenario() -> None:
        async with opened(path, pipelines={"p": "plc"}) as store:
            await store.commit([draft("new")])
            assert {*texts(await everything(store))} >= {str(n) for n in range(501, ROWS + 1) if n != 700} | {"new"}
            await everything(store, Lane.GAP)
            await store.read_journal("plc", 0, 99)
            await store.position("p", "plc")

    asyncio.run(asyncio.wait_for(scenario(), 30))


@pytest.mark.parametrize("and_its_neighbour", [False, True])
def test_a_damaged_seq_hides_nothing_that_is_behind_it(and_its_neighbour: bool, tmp_path: Path) -> None:
    """SQLite ends there without an error; what stood behind it was taken for evicted. The row after it may be damaged, too: then
    they are read one by one."""
    path = tmp_path / "outbox.db"
    [epoch] = make(path)
    _, leaf, *_ = _leaves(path)
    raw = bytearray(path.read_bytes())
    number = int.from_bytes(raw[leaf + 3 : leaf + 5], "big") // 2
    cell = leaf + int.from_bytes(raw[leaf + 8 + 2 * number : leaf + 10 + 2 * number], "big")
    damaged = (raw[cell + 2] & 127) << 7 | raw[cell + 3]
    raw[cell + 2] |= 64  # 2 bytes of seq: 14 bits
    gone = {damaged}
    if and_its_neighbour:
        raw[leaf + 10 + 2 * number : leaf + 12 + 2 * number] = b"\xff\xff"  # the next cell, beyond the page
        keys = [leaf + int.from_bytes(raw[leaf + 8 + 2 * n : leaf + 10 + 2 * n], "big") for n in range(number)]
        first = (raw[keys[0] + 2] & 127) << 7 | raw[keys[0] + 3]
        gone = {*range(first, first + int.from_bytes(raw[leaf + 3 : leaf + 5], "big"))}
    path.write_bytes(raw)

    async def scenario() -> None:
        async with opened(path) as store:
            records = await everything(store)
            assert {each.seq for each in records} >= {*range(501, ROWS + 1)} - gone
            assert damaged not in {each.seq for each in records}
            assert {each.epoch for each in records} == {epoch}
            assert await accounted(store, Lane.RESULT) == ((501, store.heads[Lane.RESULT]),)

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_numbers_go_on_where_acknowledgements_know_more_than_rows(tmp_path: Path) -> None:
    """A seq that a sink has acknowledged would, given again, never be sent."""
    path = tmp_path / "outbox.db"
    make(path)
    database = sqlite3.connect(path)
    database.execute("DELETE FROM heads")
    database.execute("DELETE FROM lane_result")
    database.execute("UPDATE acknowledged SET last = 5000")
    database.commit()
    database.close()

    async def scenario() -> None:
        async with opened(path) as store:
            await store.commit([draft("new")])
            assert [record.seq for record in await everything(store)] == [5_001]

    asyncio.run(asyncio.wait_for(scenario(), 30))


def test_a_database_is_renamed_after_its_wal(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A crash between the two must not leave the old WAL where the next database of that name would take it for its own."""
    for suffix in ("", "-wal", "-shm"):
        (tmp_path / f"outbox.db{suffix}").touch()
    renamed: list[str] = []
    real = Path.rename
    monkeypatch.setattr(Path, "rename", lambda self, target: (renamed.append(self.name), real(self, target))[1])
    aside = FileDisk().set_aside(tmp_path / "outbox.db")
    assert renamed == ["outbox.db-wal", "outbox.db-shm", "outbox.db"]
    assert sorted(file.name for file in tmp_path.iterdir()) == [aside.name, f"{aside.name}-shm", f"{aside.name}-wal"]
