"""The audit log: on the disk before it is done, in a chain that survives crashes and shows edits."""

from __future__ import annotations

import asyncio
import hashlib
import random
import shutil
import sqlite3
import textwrap
from collections.abc import Callable, Iterable, Mapping
from pathlib import Path
from typing import Any

import pytest
import structlog
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.control import audit_check, audit_file
from edge_runtime.control.audit import WAITING_MAX, AuditError, AuditLog, Entry, Head, Kind
from edge_runtime.control.audit_chain import FIELDS, FORMAT, START, Broken, Chain, Row, hash_of, row_of
from edge_runtime.control.audit_file import NAME, AuditFile
from edge_runtime.control.audit_rate import ENTRIES_MAX, PERIOD_S, Rate
from edge_runtime.control.audit_segments import Segments
from edge_runtime.outbox.database import FileDisk, open_read_only
from edge_runtime.ports import Disk
from edge_runtime.records import Stamp
from edge_runtime.testing.disk import FaultyDisk
from edge_runtime.testing.fence import Crashed, Fence
from edge_runtime.testing.loop import InlineWorker, VirtualClock, run

LOG = structlog.wrap_logger(None, processors=[], wrapper_class=structlog.make_filtering_bound_logger(50))
STAMP = Stamp("boot", 5, 1_000_000_005, True)
WRITE = Entry(kind=Kind.COMMAND, actor="person:alice", via="cmd/write", subject="point press/speed", requested=1200)
SMALL = 96 * 1024
"""A cap that is reached after some dozens of entries."""


def rule(number: int, actor: str = "rule:worn") -> Entry:
    return Entry(kind=Kind.RULE, actor=actor, subject="event wear", outcome="raised", why=f"wear wear@1 result {number}")


def new_log(
    folder: Path, fence: Fence | None = None, *, disk: Disk | None = None, boot: str = "boot-1", seed: int = 1,
    bytes_max: int = 2**20, segments: Segments | None = None,
) -> AuditLog:  # fmt: skip
    clock = VirtualClock(asyncio.get_running_loop(), boot=boot, fence=fence)
    file = AuditFile(disk or FileDisk(64), folder / NAME, clock, bytes_max=bytes_max, segments=segments)
    return AuditLog(file, worker=InlineWorker(random.Random(seed), fence=fence), clock=clock, log=LOG)


def rows(folder: Path) -> list[Row]:
    database = open_read_only(folder / NAME)
    try:
        return [row for row, _ in audit_check.entries(database, folder)]
    finally:
        database.close()


def verified(folder: Path, *heads: Head, since: int = 1) -> audit_check.Report:
    database = open_read_only(folder / NAME)
    try:
        return audit_check.verify(database, folder, heads, since=since)
    finally:
        database.close()


def fault(folder: Path, *heads: Head) -> Broken:
    with pytest.raises(Broken) as caught:
        verified(folder, *heads)
    return caught.value


# --- the chain -------------------------------------------------------------------------------------------------------


def test_the_hash_is_what_the_document_says() -> None:
    """Reckoned here with nothing of ours: whoever has the document can check a log."""
    row = row_of(WRITE, STAMP, 0, Head(7, "ab" * 32))
    texts = [FORMAT, "8", "boot", "5", "1000000005", "1", "command", "person:alice", "cmd/write", "point press/speed",
             "", "1200", "", "", "", "0", "ab" * 32]  # fmt: skip
    whole = "".join(f"{len(text)}:{text}," for text in texts)
    assert row.hash == hashlib.sha256(whole.encode()).hexdigest()
    assert FIELDS[-2:] == ("previous", "hash")


@given(st.lists(st.text(), min_size=6, max_size=6), st.recursive(st.none() | st.floats() | st.text() | st.integers(), st.lists))
def test_any_text_and_value_can_be_written_and_read(texts: list[str], value: Any) -> None:
    actor, via, subject, outcome, why, boot = texts
    entry = Entry(
        kind=Kind.TRUST, actor=actor, via=via, subject=subject, outcome=outcome, why=why, requested=value, before=[value]
    )
    row = row_of(entry, Stamp(boot, 1, 2, False), 3, START)
    Chain().take(row, "here")
    database = sqlite3.connect(":memory:")
    for statement in audit_file._SCHEMA:
        database.execute(statement)
    database.execute(audit_file._INSERT, [getattr(row, field) for field in FIELDS])
    [back] = audit_file.rows_from(database, 0, 10)
    database.close()
    assert back == row
    assert hash_of(back) == row.hash


@pytest.mark.parametrize("value", [10**30, "\ud800", float("nan"), object(), "x" * 10**6, ["é" * 5000], {1: {2: 3}}])
def test_what_comes_from_outside_never_keeps_an_entry_from_being_written(value: Any) -> None:
    row = row_of(Entry(kind=Kind.COMMAND, actor="\ud800" + "a" * 5000, subject="\0", requested=value), STAMP, 0, START)
    assert len(row.requested) < 5000
    assert len(row.actor) <= 1000
    Chain().take(row, "here")


@pytest.mark.parametrize("field", FIELDS[:-1])
def test_an_edit_of_any_field_is_seen(field: str) -> None:
    row = row_of(WRITE, STAMP, 0, START)
    value = getattr(row, field)
    edited = Row(**{each: getattr(row, each) for each in FIELDS} | {field: value + 1 if isinstance(value, int) else value + "x"})
    with pytest.raises(Broken):
        Chain().take(edited, "here")


def test_a_head_is_read_back() -> None:
    head = Head(12, "0f" * 32)
    assert Head.parse(f" {head}\n") == head
    for wrong in ("", "12", "12:ab", f"x:{'0f' * 32}", f"12:{'zz' * 32}"):
        with pytest.raises(Exception, match="no head"):
            Head.parse(wrong)


# --- who calls -------------------------------------------------------------------------------------------------------


def scenario(tmp_path: Path, work: Callable[[AuditLog], Any], **more: Any) -> list[Row]:
    async def whole() -> None:
        log = new_log(tmp_path, **more)
        await log.open()
        await work(log)
        await log.close()

    run(whole, seed=1)
    verified(tmp_path)
    return rows(tmp_path)


def test_an_intent_and_its_outcome_are_two_entries(tmp_path: Path) -> None:
    async def work(log: AuditLog) -> None:
        n = await log.begin(WRITE)
        assert rows(tmp_path)[-1].outcome == "begun"  # before it is done
        assert await log.complete(n, "verified", before=1100, read_back=1200) == 2
        assert log.head == Head(2, rows(tmp_path)[-1].hash)

    begun, ended = scenario(tmp_path, work)
    assert (begun.n, begun.requested, begun.completes) == (1, "1200", 0)
    assert (ended.n, ended.before, ended.requested, ended.read_back, ended.outcome, ended.completes) == (
        2, "1100", "1200", "1200", "verified", 1,
    )  # fmt: skip


def test_callers_at_the_same_time_get_numbers_without_gaps(tmp_path: Path) -> None:
    numbers: list[int] = []

    async def work(log: AuditLog) -> None:
        async def one(number: int) -> None:
            numbers.append(await log.append(rule(number)))
            n = await log.begin(WRITE)
            numbers.extend((n, await log.complete(n, "written")))

        async with asyncio.TaskGroup() as group:
            for number in range(50):
                group.create_task(one(number))

    scenario(tmp_path, work)
    assert sorted(numbers) == list(range(1, 151))


def test_who_gives_up_while_it_waits_is_written_as_refused(tmp_path: Path) -> None:
    async def work(log: AuditLog) -> None:
        task = asyncio.create_task(log.begin(WRITE))
        await asyncio.sleep(0)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        await log.append(rule(1))
        await asyncio.sleep(1)

    found = scenario(tmp_path, work)
    assert [(row.outcome, row.completes) for row in found if row.kind == "command"] == [("begun", 0), ("refused", 1)]


def test_a_rule_that_flutters_is_counted(tmp_path: Path) -> None:
    async def work(log: AuditLog) -> None:
        for number in range(1000):
            log.note(rule(number))
            log.note(rule(number, "rule:calm")) if number < 5 else None
        await asyncio.sleep(PERIOD_S + 1)
        log.note(rule(1000))

    found = scenario(tmp_path, work)
    flutters = [row for row in found if row.actor == "rule:worn"]
    assert len(flutters) == ENTRIES_MAX + 2
    assert f'"entries":{1000 - ENTRIES_MAX}' in flutters[-2].requested
    assert "result 30" in flutters[-2].requested
    assert "result 999" in flutters[-2].requested
    assert sum(row.actor == "rule:calm" for row in found) == 5


def test_what_was_counted_is_written_at_the_end(tmp_path: Path) -> None:
    async def work(log: AuditLog) -> None:
        for number in range(ENTRIES_MAX + 7):
            log.note(rule(number))

    assert '"entries":7' in scenario(tmp_path, work)[-1].requested


def test_the_counts_of_rules_are_bounded() -> None:
    rate = Rate()
    for number in range(5000):
        rate.take(rule(number, f"rule:{number}"), number)
    assert len(rate._minutes) <= 1000


# --- the disk --------------------------------------------------------------------------------------------------------


def test_a_full_disk_refuses_a_command_and_keeps_what_has_happened(tmp_path: Path) -> None:
    async def whole() -> None:
        disk = FaultyDisk(random.Random(1), Fence("g"))
        log = new_log(tmp_path, disk=disk)
        await log.open()
        n = await log.begin(WRITE)
        disk.trouble = sqlite3.SQLITE_FULL
        outcome = asyncio.create_task(log.complete(n, "verified", read_back=1200))
        await asyncio.sleep(0)
        log.note(rule(1))
        for _ in range(3):
            with pytest.raises(AuditError, match="full"):
                await log.begin(WRITE)
            with pytest.raises(AuditError, match="full"):
                await log.append(WRITE)
            await asyncio.sleep(10)
        assert log.trouble
        assert not outcome.done()
        disk.trouble = None
        await outcome
        assert not log.trouble
        await log.append(WRITE)
        await log.close()

    run(whole, seed=1)
    verified(tmp_path)
    assert [(row.kind, row.outcome) for row in rows(tmp_path)] == [
        ("command", "begun"), ("command", "verified"), ("rule", "raised"), ("command", ""),
    ]  # fmt: skip


def test_a_command_does_not_wait_behind_what_is_tried_again(tmp_path: Path) -> None:
    async def whole() -> None:
        disk = FaultyDisk(random.Random(1), Fence("g"))
        log = new_log(tmp_path, disk=disk)
        await log.open()
        disk.trouble = sqlite3.SQLITE_IOERR
        log.note(rule(1))
        await asyncio.sleep(60)
        async with asyncio.timeout(0.1):
            with pytest.raises(AuditError):
                await log.begin(WRITE)
        disk.trouble = None
        await log.close()

    run(whole, seed=1)


def test_what_waits_for_a_broken_disk_is_bounded(tmp_path: Path) -> None:
    async def whole() -> None:
        disk = FaultyDisk(random.Random(1), Fence("g"))
        log = new_log(tmp_path, disk=disk)
        await log.open()
        disk.trouble = sqlite3.SQLITE_READONLY
        for number in range(3 * WAITING_MAX):
            log.note(rule(number, f"rule:{number % 500}"))
        assert len(log._waiting) == WAITING_MAX
        with pytest.raises(AuditError, match="wait"):
            await log.begin(WRITE)
        disk.trouble = None
        await log.close()

    run(whole, seed=1)
    found = rows(tmp_path)
    counted = [row for row in found if row.outcome == "counted"]
    assert len(found) - len(counted) == WAITING_MAX
    assert sum(int(row.requested.partition('"entries":')[2].partition(",")[0]) for row in counted) == 2 * WAITING_MAX


def test_a_disk_that_fails_now_and_then_breaks_nothing_and_doubles_nothing(tmp_path: Path) -> None:
    refused, told = 0, 0

    async def whole() -> None:
        nonlocal refused, told
        disk = FaultyDisk(random.Random(3), Fence("g"))
        log = new_log(tmp_path, disk=disk)
        await log.open()
        disk.errors = 0.05
        for number in range(200):
            try:
                n = await log.begin(WRITE)
            except AuditError:
                refused += 1
                continue
            await log.complete(n, f"done {number}")
            told += 1
        disk.errors = 0.0
        await log.close()

    run(whole, seed=1)
    verified(tmp_path)
    outcomes = [row.outcome for row in rows(tmp_path) if row.outcome.startswith("done")]
    assert len(outcomes) == len(dict.fromkeys(outcomes)) == told
    assert refused


class _CommitFails(FileDisk):
    """A COMMIT that reached the disk and says that it did not: a sync that failed, and was done all the same."""

    commits = 0

    def open(self, path: Path, *, damaged: bool = False) -> Any:
        disk, real = self, super().open(path, damaged=damaged)

        class Database:
            in_transaction = False

            def execute(self, sql: str, parameters: Any = (), /) -> Any:
                found = real.execute(sql, parameters)
                if sql == "COMMIT" and disk.commits:
                    disk.commits -= 1
                    raise sqlite3.OperationalError("disk I/O error")
                return found

            executemany, close = real.executemany, real.close

        return Database()


def test_a_commit_that_failed_and_landed_is_neither_doubled_nor_left_open(tmp_path: Path) -> None:
    async def whole() -> None:
        disk = _CommitFails()
        log = new_log(tmp_path, disk=disk)
        await log.open()
        n = await log.begin(WRITE)
        disk.commits = 1
        await log.complete(n, "verified")
        disk.commits = 1
        with pytest.raises(AuditError):
            await log.begin(WRITE)
        await log.append(rule(1))
        await log.close()

    run(whole, seed=1)
    verified(tmp_path)
    assert [(row.outcome, row.completes) for row in rows(tmp_path)] == [
        ("begun", 0), ("verified", 1), ("begun", 0), ("refused", 3), ("raised", 0),
    ]  # fmt: skip


# --- the cap ---------------------------------------------------------------------------------------------------------


async def _fill(log: AuditLog, count: int, size: int = 500) -> None:
    for number in range(count):
        await log.append(Entry(kind=Kind.COMMAND, actor="a", subject=f"point p/{number}", requested="x" * size))


def test_the_oldest_entries_move_into_segments_and_the_chain_goes_on(tmp_path: Path) -> None:
    found = scenario(tmp_path, lambda log: _fill(log, 400), bytes_max=SMALL)
    assert [row.n for row in found] == list(range(1, 401))
    assert len(verified(tmp_path).segments) > 10
    assert (tmp_path / NAME).stat().st_size <= SMALL
    Segments(tmp_path).path(2).unlink()
    broken = fault(tmp_path)
    assert "audit-000002.jsonl.gz" in broken.cause
    assert "missing" in broken.cause


def test_a_segment_that_cannot_be_written_stops_the_log_only_at_the_cap(tmp_path: Path) -> None:
    class Full(Segments):
        full = True

        def write(self, number: int, rows: Iterable[Mapping[str, Any]]) -> None:
            if self.full:
                raise OSError(28, "No space left on device")
            super().write(number, rows)

    segments, written = Full(tmp_path), 0

    async def work(log: AuditLog) -> None:
        nonlocal written
        error = AuditError("")
        while not error.cause and written < 1000:
            try:
                await _fill(log, 1)
                written += 1
            except AuditError as refusal:
                error = refusal
        assert "cannot be moved away: No space left" in error.cause
        assert FileDisk().size_bytes(tmp_path / NAME) <= SMALL + 2 * 2**20
        segments.full = False
        await _fill(log, 100)

    found = scenario(tmp_path, work, bytes_max=SMALL, segments=segments)
    assert len(found) == written + 100
    assert written > 40
    assert (tmp_path / NAME).stat().st_size <= SMALL


def test_a_file_that_is_in_the_way_of_a_segment_is_kept(tmp_path: Path) -> None:
    Segments(tmp_path).path(1).write_bytes(b"somebody's")
    scenario(tmp_path, lambda log: _fill(log, 200), bytes_max=SMALL)
    assert (tmp_path / "audit-000001.jsonl.gz.aside-1").read_bytes() == b"somebody's"
    assert verified(tmp_path).beside == ["audit-000001.jsonl.gz.aside-1"]


# --- files that go or rot --------------------------------------------------------------------------------------------


@pytest.mark.parametrize("other", [False, True])
def test_a_file_that_is_removed_while_it_is_open_is_written_out_again(tmp_path: Path, other: bool) -> None:
    def remove() -> None:
        for file in tmp_path.glob("audit.db*"):
            file.unlink()
        if other:
            (tmp_path / NAME).write_bytes(b"another file")

    async def work(log: AuditLog) -> None:
        await _fill(log, 5)
        remove()
        await _fill(log, 5)

    assert len(scenario(tmp_path, work)) == 10


def test_a_damaged_file_is_kept_and_the_new_one_says_so(tmp_path: Path) -> None:
    scenario(tmp_path, lambda log: _fill(log, 100))
    with (tmp_path / NAME).open("r+b") as file:
        file.write(b"rubbish " * 10)

    async def life() -> None:
        log = new_log(tmp_path, boot="boot-2")
        await log.open()
        await log.begin(WRITE)
        await log.close()

    run(life, seed=1)
    assert (tmp_path / f"{NAME}.corrupt-1").exists()
    assert [(row.outcome, row.requested) for row in rows(tmp_path)] == [("replaced", ""), ("begun", "1200")]
    assert "began anew" in fault(tmp_path).cause


def test_damage_while_it_runs_is_named_by_verify(tmp_path: Path) -> None:
    async def life() -> None:
        disk = FaultyDisk(random.Random(1), Fence("g"))
        log = new_log(tmp_path, disk=disk)
        await log.open()
        await _fill(log, 10)
        disk.trouble = sqlite3.SQLITE_CORRUPT
        with pytest.raises(AuditError):
            await log.begin(WRITE)
        disk.trouble = None
        assert await log.append(WRITE) == 12
        await log.close()

    run(life, seed=1)
    broken = fault(tmp_path)
    assert broken.n == 1
    assert "entries 1 to 10 are missing" in broken.cause
    assert verified(tmp_path, since=11).entries == 2


# --- crashes ---------------------------------------------------------------------------------------------------------


class _Falling(Segments):
    """The node falls while it writes a segment's file, or when that has its name and the log does not know it yet."""

    def __init__(self, folder: Path, fence: Fence, rng: random.Random) -> None:
        super().__init__(folder)
        self._fence, self._rng = fence, rng

    def write(self, number: int, rows: Iterable[Mapping[str, Any]]) -> None:
        where = self._rng.choice(("inside", "after", "", "", ""))
        super().write(number, self._cut(rows) if where == "inside" else rows)
        if where == "after":
            self._fall()

    def _cut(self, rows: Iterable[Mapping[str, Any]]) -> Iterable[Mapping[str, Any]]:
        for row in rows:
            yield row
            if self._rng.random() < 0.3:
                self._fall()

    def _fall(self) -> None:
        self._fence.fall()
        raise Crashed("g")


def _crash(folder: Path, seed: int) -> tuple[list[Head], int]:
    """One life that ends at a statement or in a segment. Returns what it was told, and how many segments there are."""
    told: list[Head] = []

    async def whole() -> None:
        fence, rng = Fence("g"), random.Random(seed)
        disk = FaultyDisk(rng, fence, wal_pages_max=32)
        disk.crash_at = rng.randrange(1, 300)
        log = new_log(
            folder, fence, disk=disk, seed=seed, bytes_max=SMALL, boot=f"b{seed}", segments=_Falling(folder, fence, rng)
        )

        async def life() -> None:
            await log.open()
            while True:
                log.note(rule(1))
                n = await log.begin(Entry(kind=Kind.COMMAND, actor="a", subject="point p/q", requested="x" * 900))
                told.append(log.head)
                await log.complete(n, "verified", before="y" * 900)
                told.append(log.head)

        fence.start(life(), name="life")
        await fence.gone.wait()

    run(whole, seed=seed)
    return told, len([*folder.glob("audit-*.gz")])


def test_a_crash_at_any_instant_leaves_a_chain_that_holds(tmp_path: Path) -> None:
    """Lives follow upon each other on the same file; each ends where it likes, and all that was told is there."""
    told: list[Head] = []
    segments = 0
    for seed in range(300):
        if seed % 20 == 0:
            told, folder = [], tmp_path / str(seed)
            folder.mkdir()
        new, count = _crash(folder, seed)
        told += new
        segments = max(segments, count)
        if not (folder / NAME).exists():
            continue
        copy = tmp_path / "copy"  # looking at a WAL may tidy it up
        shutil.copytree(folder, copy)
        report = verified(copy, *told[-40:])
        open_before = [row for row in rows(copy) if row.outcome == "begun"]
        shutil.rmtree(copy)
        assert report.entries >= (told[-1].n if told else 0)
        assert len(open_before) <= report.entries
    assert segments > 3


def test_an_intent_that_a_crash_left_open_is_closed_as_unknown(tmp_path: Path) -> None:
    async def first() -> None:
        fence = Fence("g")
        log = new_log(tmp_path, fence, disk=FaultyDisk(random.Random(1), fence))

        async def life() -> None:
            await log.open()
            await log.begin(WRITE)
            fence.fall()

        fence.start(life(), name="life")
        await fence.gone.wait()

    run(first, seed=1)
    for _ in range(2):  # once, not at every start
        scenario(tmp_path, lambda log: log.append(rule(1)), boot="boot-2")
    found = rows(tmp_path)
    assert [(row.outcome, row.completes) for row in found] == [("begun", 0), ("unknown", 1), ("raised", 0), ("raised", 0)]
    assert found[1].actor == "person:alice"


def test_the_document_tells_how_to_check_a_log_with_nothing_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    document = (Path(__file__).parents[2] / "docs/audit.md").read_text()
    [code] = [block for block in document.split("\n\n") if "import hashlib" in block]
    scenario(tmp_path, lambda log: _fill(log, 20))
    monkeypatch.chdir(tmp_path)
    exec(textwrap.dedent(code), {})
    database = sqlite3.connect(tmp_path / NAME)
    database.execute("UPDATE entries SET before = '1' WHERE n = 11")
    database.commit()
    database.close()
    with pytest.raises(AssertionError, match="11"):
        exec(textwrap.dedent(code), {})
