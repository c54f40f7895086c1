"""The book, killed at every step of every change: always the old or the new configuration, never none, never a mix.

A crash hits before each statement and before each renaming of a file (the simulated disk leaves a torn tail in the log), and in
the middle of each COMMIT (any part of what it writes is on the disk, in any order). Whatever is left is opened again: it must be
what was before that step or after it, a start must take it, and the next change must work.
"""

from __future__ import annotations

import asyncio
import random
import shutil
import sqlite3
import tempfile
from collections.abc import Awaitable, Callable, Iterator
from pathlib import Path
from typing import Any

import pytest
from books import NAME, digest, document, effective, file, new_book, propose, simulated

from edge_runtime.control.book import Book, Repeated
from edge_runtime.testing.disk import FaultyDisk
from edge_runtime.testing.fence import Fence

FILE = file("file 1")
UNTIL_NS = int(30e9)
SECTOR_BYTES = 512
TORN_EACH = 48
"""Different remains of each COMMIT."""

Op = Callable[[Book], Awaitable[Any]]


def gateway(revision: int) -> Any:
    # Longer than a page: its COMMIT writes several.
    return document("gateway", f"change {revision} " + "x" * 6_000, revision)


OPS: tuple[Op, ...] = (
    lambda book: book.start(FILE),
    lambda book: propose(book, FILE),
    lambda book: book.steady(),
    lambda book: propose(book, gateway(1)),
    lambda book: book.confirm(),
    lambda book: propose(book, gateway(2)),
    lambda book: book.revert("device press: unusable"),
    lambda book: book.begin("id-1", "write", "b1", UNTIL_NS),
    lambda book: book.complete("id-1", '{"outcome":"verified"}'),
    lambda book: book.keep(document("gateway", "rubbish", 3, state="rejected", cause="unknown key")),
    lambda book: propose(book, document("group/a", "group", 1)),
    lambda book: propose(book, gateway(4)),
    lambda book: book.confirm(),
    lambda book: book.rollback(),
    lambda book: book.confirm(),
    lambda book: book.ended(),
)
"""One life of a gateway. An item is one transaction."""

View = tuple[Any, ...]


async def view(folder: Path) -> View:
    """Everything that a person or a start would see, but the count of crashes."""
    book = new_book(folder)
    await book.open()
    assert book.trouble == ""
    life = book.life
    kept = tuple((each.layer, each.payload, each.state, each.cause) for each in book.layers.values())
    texts = tuple(one and (one.number, one.text, one.state) for one in (book.active, book.on_trial))
    base = tuple((layer, each.payload) for layer, each in sorted(book.base.items()))
    history = tuple((each.number, each.hash, each.state, each.why) for each in await book.history())
    commands = await book._do(lambda database: tuple(database.execute("SELECT * FROM commands")))
    await book.close()
    return texts, life.active, life.last_good, life.trial, life.safe, life.ended, kept, base, history, commands


async def goes_on(folder: Path, boot: str) -> None:
    """What is on the disk makes a start, and the next change works."""
    book = new_book(folder, boot=boot)
    start = await book.start(FILE)
    whole = book.on_trial or book.active
    if start.text is None:
        assert whole is None, "a file that is in no configuration yet"
    else:
        assert whole is not None
        assert (start.text, digest(start.text)) == (whole.text, whole.hash)
        assert start.text == effective(*(book.base[layer] for layer in sorted(book.base))), "a mix"
    assert start.mode == ("trial" if book.on_trial else "normal")
    assert start.why == ""
    await propose(book, FILE, document("gateway", "the fix", 9))
    await book.confirm()
    assert book.on_trial is None
    if boot == "b1" and await book.begin("id-2", "write", boot, UNTIL_NS) is None:
        assert await book.begin("id-2", "write", boot, UNTIL_NS) == Repeated("write", None)
    await book.close()


class CutDisk(FaultyDisk):
    """Falls before the renaming of files as well, and shows what a COMMIT finds and leaves."""

    def __init__(self, rng: random.Random, fence: Fence, on_commit: Callable[[bool], None] | None = None) -> None:
        super().__init__(rng, fence)
        self._on_commit = on_commit

    def open(self, path: Path, *, damaged: bool = False) -> Any:
        database: Any = super().open(path, damaged=damaged)
        execute = database.execute

        def watched(sql: str, parameters: Any = (), /) -> Any:
            if sql != "COMMIT" or self._on_commit is None:
                return execute(sql, parameters)
            self._on_commit(False)
            rows = execute(sql, parameters)
            self._on_commit(True)
            return rows

        database.execute = watched
        return database

    def set_aside(self, path: Path) -> Path:
        self.before("set aside")
        return super().set_aside(path)

    def move(self, path: Path, target: Path) -> None:
        self.before("move")
        super().move(path, target)


@pytest.fixture
def memory() -> Iterator[Path]:
    with tempfile.TemporaryDirectory(dir="/dev/shm" if Path("/dev/shm").is_dir() else None) as folder:
        yield Path(folder)


def views(folder: Path) -> list[View]:
    """After each of OPS, without a crash; the first one is of nothing."""
    folder.mkdir()

    async def scenario() -> list[View]:
        book = new_book(folder)
        await book.open()
        seen = [await view(folder)]
        for op in OPS:
            await op(book)
            seen.append(await view(folder))
        return seen

    return simulated(scenario)


def lived(folder: Path, crash_at: int | None, ops: tuple[Op, ...] = OPS) -> tuple[int, int, bool]:
    """One life. Returns how many of OPS came back, how many statements there were, and whether it crashed."""
    folder.mkdir(exist_ok=True)

    async def scenario() -> tuple[int, int, bool]:
        fence = Fence("gw")
        disk = CutDisk(random.Random(crash_at), fence)
        disk.crash_at = crash_at
        done = 0

        async def life() -> None:
            nonlocal done
            book = new_book(folder, disk=disk, fence=fence)
            for op in ops:
                await op(book)
                done += 1

        task = fence.start(life(), name="life")
        gone = asyncio.create_task(fence.gone.wait())
        await asyncio.wait([task, gone], return_when=asyncio.FIRST_COMPLETED)
        gone.cancel()
        if not fence.fallen:
            await task
        return done, disk.statements, fence.fallen

    return simulated(scenario)


def test_a_crash_before_every_statement_leaves_the_old_or_the_new(memory: Path) -> None:
    expected = views(memory / "whole")
    _, statements, _ = lived(memory / "count", None)
    assert statements > 200, "too few crash points to show anything"
    for crash_at in range(1, statements + 1):
        folder = memory / str(crash_at)
        done, _, crashed = lived(folder, crash_at)
        assert crashed
        found = simulated(lambda folder=folder: view(folder))  # type: ignore[misc]
        assert found in expected[done : done + 2], f"crash at statement {crash_at}, in step {done}"
        boot = random.Random(crash_at).choice(["b1", "b2"])
        simulated(lambda folder=folder, boot=boot: goes_on(folder, boot))  # type: ignore[misc]
        shutil.rmtree(folder, ignore_errors=True)  # SQLite may take its -shm away meanwhile


def test_a_commit_that_is_torn_leaves_the_old_or_the_new(memory: Path) -> None:
    expected = views(memory / "whole")
    commits = torn_commits(memory / "live")
    assert len(commits) >= len(OPS)
    points = 0
    for number, (done, before, after) in enumerate(commits):
        # The first COMMIT of all makes the tables.
        wanted = expected[: done + 2] if done == 0 else expected[done : done + 2]
        for cut in range(TORN_EACH):
            folder = memory / f"{number}-{cut}"
            folder.mkdir()
            remains(folder, before, after, random.Random(f"{number}/{cut}"), cut)
            found = simulated(lambda folder=folder: view(folder))  # type: ignore[misc]
            assert found in wanted, f"COMMIT {number}, remains {cut}"
            if cut % 4 == 0:
                simulated(lambda folder=folder: goes_on(folder, "b2"))  # type: ignore[misc]
            shutil.rmtree(folder, ignore_errors=True)  # SQLite may take its -shm away meanwhile
            points += 1
    assert points >= 800


Image = dict[str, bytes]


def torn_commits(folder: Path) -> list[tuple[int, Image, Image]]:
    """Of each COMMIT of one life: how many of OPS were done, and the files before and after it."""
    folder.mkdir()

    async def scenario() -> list[tuple[int, Image, Image]]:
        found: list[tuple[int, Image, Image]] = []
        done = 0
        last: Image = {}

        def on_commit(over: bool) -> None:
            nonlocal last
            now = {each.name: each.read_bytes() for each in folder.iterdir() if not each.name.endswith("-shm")}
            if over:
                found.append((done, last, now))
            last = now

        book = new_book(folder, disk=CutDisk(random.Random(0), Fence("gw"), on_commit))
        for op in OPS:
            await op(book)
            done += 1
        return found

    return simulated(scenario)


def remains(folder: Path, before: Image, after: Image, rng: random.Random, cut: int) -> None:
    """Some sectors of what a COMMIT wrote to its log are on the disk, others are not: the first ones (even cuts), or any."""
    assert before[NAME] == after[NAME], "a COMMIT writes to the log only"
    log = f"{NAME}-wal"
    old, new = before[log], after[log]
    sectors = range(0, len(new), SECTOR_BYTES)
    changed = [at for at in sectors if old[at : at + SECTOR_BYTES] != new[at : at + SECTOR_BYTES]]
    first = rng.randrange(len(changed) + 1)
    kept = changed[:first] if cut % 2 == 0 else [at for at in changed if rng.random() < rng.choice((0.5, 0.95))]
    size = max([len(old), *(min(at + SECTOR_BYTES, len(new)) for at in kept)])
    torn = bytearray(old.ljust(size, b"\0"))
    for at in kept:
        torn[at : at + SECTOR_BYTES] = new[at : at + SECTOR_BYTES]
    (folder / NAME).write_bytes(before[NAME])
    (folder / log).write_bytes(torn[:size])


def test_a_crash_in_the_middle_of_a_replacement_loses_no_configuration(memory: Path) -> None:
    """A trial that cannot be read any more: the file is replaced, and each step of that is killed."""
    whole = memory / "whole"
    lived(whole, None, OPS[:6])
    database = sqlite3.connect(whole / NAME)
    with database:
        database.execute("UPDATE configurations SET text = 'rot' WHERE state = 'trial'")
    database.close()
    shutil.copytree(whole, memory / "count")
    _, statements, _ = lived(memory / "count", None, OPS[:1])
    assert statements > 30
    for crash_at in range(1, statements + 1):
        folder = memory / str(crash_at)
        shutil.copytree(whole, folder)
        lived(folder, crash_at, OPS[:1])

        start = simulated(lambda folder=folder: new_book(folder, boot="b2").start(FILE))  # type: ignore[misc]
        assert start.text == effective(FILE, gateway(1)), f"crash at {crash_at}"
        assert [*folder.glob(f"{NAME}.corrupt-*")], "it is kept"
        shutil.rmtree(folder, ignore_errors=True)  # SQLite may take its -shm away meanwhile


def test_ten_power_cuts_within_a_minute_leave_a_trial_on_trial(memory: Path) -> None:
    async def scenario() -> None:
        book = new_book(memory, boot="boot-0")
        await book.start(FILE)
        await propose(book, FILE)
        await propose(book, gateway(1))
        for number in range(1, 11):
            book = new_book(memory, boot=f"boot-{number}")
            start = await book.start(FILE)
            assert (start.mode, start.text) == ("trial", effective(FILE, gateway(1)))
        await book.confirm()
        assert book.active is not None
        assert book.active.text == effective(FILE, gateway(1))

    simulated(scenario)
