"""The book: what it keeps, what a start takes from it, and what happens when its file does not work."""

from __future__ import annotations

import asyncio
import contextlib
import random
import sqlite3
import subprocess
import tempfile
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from books import NAME, advance, digest, document, effective, file, new_book, propose, simulated
from hypothesis import settings
from hypothesis import strategies as st
from hypothesis.stateful import RuleBasedStateMachine, initialize, invariant, precondition, rule

from edge_runtime.board.system import SystemClock, ThreadWorker
from edge_runtime.control import pages
from edge_runtime.control.book import Book, BookError, Repeated, Start
from edge_runtime.control.book_file import COMMAND_S_MAX, REPLACEMENTS_MAX
from edge_runtime.control.trial import CRASHES_MAX, CRASHES_TRIAL_MAX, OK, Part, Terms
from edge_runtime.outbox.database import FileDisk, full
from edge_runtime.testing.disk import FaultyDisk
from edge_runtime.testing.fence import Fence

FILE = file("file 1")
ONE, TWO = document("gateway", "one", 1), document("gateway", "two", 2)
UNTIL_NS = int(30e9)


async def begun(folder: Path, boot: str = "b1") -> Book:
    """A gateway's first start, with its file."""
    book = new_book(folder, boot=boot)
    assert (await book.start(FILE)).text is None
    await propose(book, FILE)
    return book


# --- changes ---------------------------------------------------------------------------------------------------------


def test_the_first_start_takes_the_file_and_the_next_one_the_book(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = new_book(tmp_path)
        assert await book.start(FILE) == Start("normal")
        number = await propose(book, FILE)
        assert book.on_trial is None
        await book.ended()
        await book.close()
        again = new_book(tmp_path)
        assert await again.start(FILE) == Start("normal", effective(FILE), number)

    simulated(scenario)


def test_a_change_is_tried_confirmed_and_the_one_before_is_the_last_good(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        terms = Terms(("device press",), {"device press": Part("failed", "dead before")}, 30)
        number = await propose(book, ONE, terms=terms)
        assert book.layers["gateway"].state == "trial"
        assert book.active is not None
        assert book.active.text == effective(FILE)
        again = new_book(tmp_path, boot="b2")
        assert await again.start(FILE) == Start("trial", effective(FILE, ONE), number, terms=terms)
        await again.confirm()
        assert again.life.last_good == 1
        assert again.layers["gateway"].state == "accepted"
        assert [(each.number, each.state) for each in await again.history()] == [(2, "active"), (1, "superseded")]

    simulated(scenario)


def test_a_reverted_document_is_known_as_such_and_the_next_change_builds_on_the_one_before(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        await propose(book, ONE)
        await book.confirm()
        await propose(book, TWO)
        back = await book.revert("device press: unusable")
        assert back is not None
        assert back.text == effective(FILE, ONE)
        held = book.layers["gateway"]
        assert (held.hash, held.revision, held.state, held.cause) == (TWO.hash, 2, "reverted", "device press: unusable")
        assert held.payload == TWO.payload
        assert book.base["gateway"].payload == b"one"
        group = document("group/a", "group", 1)
        await propose(book, group)
        assert book.on_trial is not None
        assert book.on_trial.text == effective(FILE, ONE, group)
        assert (await book.history())[1].why == "device press: unusable"

    simulated(scenario)


def test_what_is_active_already_is_no_change(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        commented = file("file 1, with a comment")
        assert await book.propose(effective(FILE), digest(effective(FILE)), [commented]) == 1
        assert book.on_trial is None
        assert book.base["file"].payload == commented.payload
        again = new_book(tmp_path)
        assert (await again.start(commented)).number == 1

    simulated(scenario)


def test_a_change_during_a_trial_takes_its_place_and_the_way_back_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        await propose(book, document("group/a", "group", 1))
        await propose(book, ONE)
        assert book.on_trial is not None
        assert book.on_trial.text == effective(FILE, ONE, document("group/a", "group", 1))
        await book.revert("no")
        assert {layer: each.state for layer, each in book.layers.items()} == {
            "file": "accepted",
            "group/a": "reverted",
            "gateway": "reverted",
        }
        assert book.life.active == 1

    simulated(scenario)


def test_an_invalid_document_is_kept_and_disturbs_nothing(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        await propose(book, ONE)
        await book.keep(document("gateway", "rubbish", 2, state="rejected", cause="devices: unknown key"))
        assert book.layers["gateway"].state == "rejected"
        assert book.base["gateway"].payload == b"one"
        await book.confirm()
        again = new_book(tmp_path)
        await again.start(FILE)
        assert again.base["gateway"].payload == b"one"
        assert again.layers["gateway"].cause == "devices: unknown key"

    simulated(scenario)


def test_a_rollback_goes_on_trial_and_what_it_takes_back_is_not_tried_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        with pytest.raises(BookError, match="no last good"):
            await book.rollback()
        await propose(book, ONE)
        await book.confirm()
        number = await book.rollback()
        assert book.on_trial is not None
        assert (book.on_trial.number, book.on_trial.text) == (number, effective(FILE))
        with pytest.raises(BookError, match="on trial"):
            await book.rollback()
        await book.revert("it was better before")
        assert book.layers["gateway"].state == "accepted"
        await book.rollback()
        await book.confirm()
        assert book.layers["gateway"].state == "reverted"
        assert book.active is not None
        assert book.active.text == effective(FILE)
        assert (await new_book(tmp_path).start(FILE)).text == effective(FILE)

    simulated(scenario)


# --- starts ----------------------------------------------------------------------------------------------------------


def test_a_changed_file_is_read_and_goes_on_trial(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        await propose(book, ONE)
        await book.confirm()
        changed = file("file 2")
        again = new_book(tmp_path, boot="b2")
        assert (await again.start(changed)).text is None
        await propose(again, changed)
        assert again.on_trial is not None
        assert again.on_trial.text == effective(changed, ONE)
        await again.revert("device press: unusable")
        third = new_book(tmp_path, boot="b3")
        start = await third.start(changed)
        assert (start.mode, start.text) == ("last_good", effective(FILE, ONE))
        assert "unusable" in start.why
        fourth = new_book(tmp_path, boot="b4")
        assert (await fourth.start(file("file 3"))).text is None
        fifth = new_book(tmp_path, boot="b5")
        assert (await fifth.start(FILE)).text is None, "the old one is read as well, and makes what is active already"
        assert await propose(fifth, FILE) == fifth.life.active
        assert fifth.on_trial is None

    simulated(scenario)


def test_an_invalid_file_starts_what_was_active_and_says_so(tmp_path: Path) -> None:
    async def scenario() -> None:
        await begun(tmp_path)
        broken = file("devices: [")
        for boot in ("b2", "b3"):
            book = new_book(tmp_path, boot=boot)
            assert (await book.start(broken)).text is None, "another version may read it"
            start = await book.without_file("line 1: no end of the list")
            assert (start.mode, start.text) == ("last_good", effective(FILE))
            assert "line 1" in start.why
        crashed = new_book(tmp_path, boot="b3")
        start = await crashed.start(broken)
        assert (start.mode, start.text) == ("last_good", effective(FILE))
        assert "line 1" in start.why
        gone = new_book(tmp_path, boot="b4")
        start = await gone.start(None)
        assert (start.mode, start.text, start.why) == ("last_good", effective(FILE), "the file cannot be read")

    simulated(scenario)


def test_an_invalid_first_file_starts_bare_and_a_good_one_ends_that(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = new_book(tmp_path)
        await book.start(file("rubbish"))
        start = await book.without_file("no mapping")
        assert (start.mode, start.text) == ("bare", None)
        book = new_book(tmp_path, boot="b2")
        assert (await book.start(FILE)).mode == "normal"
        await propose(book, FILE)
        assert (await new_book(tmp_path, boot="b3").start(FILE)).text == effective(FILE)

    simulated(scenario)


def test_a_crash_loop_ends_in_the_last_good_and_then_bare_and_a_change_ends_that(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        await propose(book, ONE)
        await book.confirm()
        modes = []
        for _ in range(2 * CRASHES_MAX):
            book = new_book(tmp_path)
            start = await book.start(FILE)
            modes.append((start.mode, start.text))
        good, bad = effective(FILE), effective(FILE, ONE)
        assert modes == [("normal", bad)] * 2 + [("last_good", good)] * 3 + [("bare", good)]
        assert "crashed 3 times" in start.why
        assert book.layers["gateway"].state == "reverted"
        await propose(book, TWO)
        assert (await new_book(tmp_path, boot="b2").start(FILE)).mode == "trial"
        again = new_book(tmp_path, boot="b3")
        await again.start(FILE)
        await again.confirm()
        assert await new_book(tmp_path, boot="b4").start(FILE) == Start("normal", effective(FILE, TWO), 3)

    simulated(scenario)


def test_out_of_bare_also_the_same_configuration_goes_on_trial(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        for _ in range(CRASHES_MAX):
            book = new_book(tmp_path)
            start = await book.start(FILE)
        assert start.mode == "bare"
        touched = file("file 1, touched")
        book = new_book(tmp_path)
        await book.start(touched)
        await book.propose(effective(FILE), digest(effective(FILE)), [touched])
        assert book.on_trial is not None
        for _ in range(CRASHES_TRIAL_MAX):
            book = new_book(tmp_path)
            start = await book.start(touched)
        assert start.mode == "bare"

    simulated(scenario)


def test_a_crash_after_a_steady_run_is_none_of_a_loop(tmp_path: Path) -> None:
    async def scenario() -> None:
        await begun(tmp_path)
        for _ in range(3 * CRASHES_MAX):
            book = new_book(tmp_path)
            assert (await book.start(FILE)).mode == "normal"
            await book.steady()

    simulated(scenario)


# --- bounds ----------------------------------------------------------------------------------------------------------


def test_the_history_is_bounded_and_the_way_back_stays(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        for revision in range(1, pages.HISTORY_MAX + 20):
            await propose(book, document("gateway", f"change {revision}", revision))
            await book.revert("no")
        found = await book.history()
        assert len(found) == pages.HISTORY_MAX + 1
        assert found[-1].number == book.life.active == 1
        old = await book.configuration(1)
        assert old is not None
        assert old.text == effective(FILE)
        assert len(book.layers) == 2
        assert len(book._book.pages.documents) == 2, "documents that nobody needs are forgotten"

    simulated(scenario)


def test_layers_that_are_not_used_are_forgotten_some_time(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        for number in range(pages.LAYERS_MAX + 10):
            await book.keep(document(f"group/{number}", "x", 1))
        assert len(book.layers) == pages.LAYERS_MAX + 1
        assert book.layers["file"].state == "accepted"

    simulated(scenario)


# --- commands --------------------------------------------------------------------------------------------------------


def test_a_command_is_begun_once_also_over_a_restart(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        assert await book.begin("id-1", "write", "b1", UNTIL_NS) is None
        assert await book.begin("id-1", "write", "b1", UNTIL_NS) == Repeated("write", None)
        again = new_book(tmp_path)
        await again.start(FILE)
        assert await again.begin("id-1", "write", "b1", UNTIL_NS) == Repeated("write", None)
        await again.complete("id-1", '{"outcome":"verified"}')
        advance(60)
        assert await again.begin("id-1", "write", "b1", UNTIL_NS) == Repeated("write", '{"outcome":"verified"}')

    simulated(scenario)


def test_a_command_that_may_be_forgotten_is_refused(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        with pytest.raises(BookError, match="expired"):
            await book.begin("a", "write", "another boot", UNTIL_NS)
        with pytest.raises(BookError, match="longer"):
            await book.begin("b", "write", "b1", int((COMMAND_S_MAX + 1) * 1e9))
        advance(31)
        with pytest.raises(BookError, match="expired"):
            await book.begin("c", "write", "b1", UNTIL_NS)

    simulated(scenario)


def test_commands_are_bounded_and_none_is_forgotten_that_is_valid(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pages, "COMMANDS_MAX", 10)

    async def scenario() -> None:
        book = await begun(tmp_path)
        for number in range(10):
            assert await book.begin(f"id-{number}", "write", "b1", UNTIL_NS + number) is None
        with pytest.raises(BookError, match="valid at once"):
            await book.begin("id-10", "write", "b1", UNTIL_NS)
        assert await book.begin("id-0", "write", "b1", UNTIL_NS) == Repeated("write", None)
        advance(40)
        assert await book.begin("id-11", "write", "b1", UNTIL_NS + int(40e9)) is None
        with pytest.raises(BookError, match="expired"):
            await book.begin("id-0", "write", "b1", UNTIL_NS)

    simulated(scenario)


# --- a disk that does not work ---------------------------------------------------------------------------------------


@pytest.mark.parametrize("code", [sqlite3.SQLITE_FULL, sqlite3.SQLITE_READONLY])
def test_a_disk_that_cannot_be_written_starts_what_can_be_read_and_refuses_changes(tmp_path: Path, code: int) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        await book.ended()
        await book.close()
        disk = FaultyDisk(random.Random(0), Fence("gw"))
        disk.trouble = code
        book = new_book(tmp_path, disk=disk)
        start = await book.start(FILE)
        assert (start.mode, start.text) == ("normal", effective(FILE))
        assert "not recorded" in start.why
        with pytest.raises(BookError, match=NAME) as refused:
            await propose(book, ONE)
        assert refused.value.hint
        with pytest.raises(BookError):
            await book.begin("id", "write", "b1", UNTIL_NS)
        assert book.trouble
        disk.trouble = None
        await propose(book, ONE)
        assert book.trouble == ""
        assert not book.life.ended, "the start is recorded now"
        assert (await new_book(tmp_path).start(FILE)).mode == "trial"

    simulated(scenario)


class LyingDisk(FaultyDisk):
    """Its next COMMIT reaches the disk, and says that it failed (its sync did, say)."""

    lies = False

    def open(self, path: Path, *, damaged: bool = False) -> Any:
        database: Any = super().open(path, damaged=damaged)
        execute = database.execute

        def lying(sql: str, parameters: Any = (), /) -> Any:
            rows = execute(sql, parameters)
            if sql == "COMMIT" and self.lies:
                self.lies = False
                raise full("database or disk is full")
            return rows

        database.execute = lying
        return database


def test_a_commit_that_failed_and_is_on_the_disk_all_the_same(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = LyingDisk(random.Random(0), Fence("gw"))
        book = new_book(tmp_path, disk=disk)
        await book.start(FILE)
        await propose(book, FILE)
        disk.lies = True
        number = await propose(book, ONE)
        assert book.on_trial is not None
        assert book.on_trial.number == number, "to say that it was refused would be wrong: the next start takes it"
        disk.lies = True
        with pytest.raises(BookError):
            await book.begin("id", "write", "b1", UNTIL_NS)
        assert await book.begin("id", "write", "b1", UNTIL_NS) == Repeated("write", None), "it is never executed twice"

    simulated(scenario)


def test_a_steady_trial_that_crashes_twice_is_reverted(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        await propose(book, ONE)
        for _ in range(CRASHES_TRIAL_MAX):
            await book.steady()
            book = new_book(tmp_path)
            start = await book.start(FILE)
        assert (start.mode, start.text) == ("normal", effective(FILE))
        assert "crashed 2 times" in start.why

    simulated(scenario)


def test_an_unwritable_disk_without_a_book_starts_from_the_file(tmp_path: Path) -> None:
    async def scenario() -> None:
        disk = FaultyDisk(random.Random(0), Fence("gw"))
        disk.trouble = sqlite3.SQLITE_READONLY
        book = new_book(tmp_path / "no such folder", disk=disk)
        start = await book.start(FILE)
        assert (start.mode, start.text) == ("normal", None)
        bare = await book.without_file("rubbish")
        assert (bare.mode, bare.text) == ("bare", None)

    simulated(scenario)


@pytest.fixture
def small_disk(tmp_path: Path) -> Iterator[Path]:
    folder = tmp_path / "disk"
    folder.mkdir()
    mounted = subprocess.run(["mount", "-t", "tmpfs", "-o", "size=1m", "tmpfs", folder], capture_output=True, check=False)
    if mounted.returncode:
        pytest.skip("NO MOUNT: a really full and a really read-only disk are NOT tested")
    yield folder
    subprocess.run(["umount", "-l", folder], check=True)


@pytest.mark.parametrize("ended", [True, False], ids=["after a clean end", "after a crash"])
@pytest.mark.parametrize("what", ["full", "read-only"])
def test_a_really_full_or_read_only_disk(small_disk: Path, what: str, ended: bool) -> None:
    filler = small_disk / "filler"

    async def scenario(book: Book) -> Start:
        return await book.start(FILE)

    async def before() -> None:
        book = await begun(small_disk)
        if ended:
            await book.ended()
        image = files(small_disk)
        await book.close()
        if not ended:  # as it is without closing: with a -wal that holds what was committed
            for name, content in image.items():
                (small_disk / name).write_bytes(content)

    async def after() -> None:
        assert (await new_book(small_disk).start(FILE)).text == effective(FILE)

    simulated(before)
    if what == "full":
        fill(filler)
    else:
        subprocess.run(["mount", "-o", "remount,ro", small_disk], check=True)
    try:
        start = simulated(lambda: scenario(new_book(small_disk)))
        assert start.text == effective(FILE)
        assert start.mode == "normal"
    finally:
        if what == "full":
            filler.unlink()
        else:
            subprocess.run(["mount", "-o", "remount,rw", small_disk], check=True)
    simulated(after)


def files(folder: Path) -> dict[str, bytes]:
    return {each.name: each.read_bytes() for each in folder.iterdir()}


def fill(path: Path) -> None:
    """Takes what is left of a small disk."""
    with contextlib.suppress(OSError), path.open("wb", buffering=0) as rest:
        while rest.write(bytes(4096)):
            pass


def test_a_file_that_is_no_database_is_set_aside(tmp_path: Path) -> None:
    (tmp_path / NAME).write_bytes(b"rubbish!" * 1024)

    async def scenario() -> None:
        book = new_book(tmp_path)
        start = await book.start(FILE)
        assert (start.mode, start.text) == ("normal", None)
        assert "corrupt" in start.why
        assert "set aside" in start.why
        await propose(book, FILE)
        with pytest.raises(BookError, match="was lost"):
            await book.begin("id", "write", "b1", UNTIL_NS)
        advance(COMMAND_S_MAX)
        assert await book.begin("id", "write", "b1", int((COMMAND_S_MAX + 30) * 1e9)) is None

    simulated(scenario)
    assert (tmp_path / f"{NAME}.corrupt-1").read_bytes() == b"rubbish!" * 1024


def test_what_can_be_read_of_a_rotten_file_is_saved(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        await propose(book, ONE)
        await book.confirm()
        await propose(book, TWO)
        await book.close()
        database = sqlite3.connect(tmp_path / NAME)
        with database:
            database.execute("UPDATE configurations SET text = replace(text, 'two', 'owt') WHERE number = 3")
        database.close()
        book = new_book(tmp_path)
        start = await book.start(FILE)
        assert (start.mode, start.text) == ("normal", effective(FILE, ONE)), "the trial cannot be read: it is over"
        assert "the active configuration was saved" in start.why
        assert {layer: each.payload for layer, each in book.base.items()} == {"file": b"file 1", "gateway": b"one"}
        assert book.life.last_good == 1
        await propose(book, document("gateway", "three", 3))
        await book.confirm()

    simulated(scenario)


def test_a_rotten_active_configuration_gives_way_to_the_last_good_one(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        await propose(book, ONE)
        await book.confirm()
        await book.close()
        database = sqlite3.connect(tmp_path / NAME)
        with database:
            database.execute("UPDATE configurations SET text = replace(text, 'one', 'eno') WHERE number = 2")
        database.close()
        start = await new_book(tmp_path).start(FILE)
        assert start.text == effective(FILE)

    simulated(scenario)


@pytest.mark.parametrize("seed", range(30))
def test_rot_never_makes_a_configuration_that_nobody_wrote(tmp_path: Path, seed: int) -> None:
    rng = random.Random(seed)

    async def scenario() -> None:
        book = await begun(tmp_path)
        big = [document("gateway", f"{number} " + "x" * 9_000, number) for number in (1, 2)]
        written = {effective(FILE), *(effective(FILE, each) for each in big)}
        for each in big:
            await propose(book, each)
            await book.confirm()
        await book.close()
        path = tmp_path / NAME
        with path.open("r+b") as content:
            for _ in range(rng.randrange(1, 4)):
                content.seek(rng.randrange(path.stat().st_size))
                content.write(rng.randbytes(rng.randrange(1, 4096)))
        again = new_book(tmp_path)
        start = await again.start(FILE)
        assert start.text is None or start.text in written
        await propose(again, FILE, document("gateway", "next", 3))
        assert (await new_book(tmp_path, boot="b2").start(FILE)).text is not None

    simulated(scenario)


def test_a_disk_that_spoils_every_new_file_is_not_filled_with_them(tmp_path: Path) -> None:
    path = tmp_path / NAME

    async def scenario() -> None:
        book = await begun(tmp_path)
        for revision in range(1, 3 * REPLACEMENTS_MAX):
            await book.close()
            spoil(path)
            with contextlib.suppress(BookError):
                await propose(book, document("gateway", f"change {revision}", revision))
        with pytest.raises(BookError, match="corrupt"):
            await book.confirm()

    simulated(scenario)
    assert len([*tmp_path.glob(f"{NAME}.corrupt-?")]) == REPLACEMENTS_MAX


def spoil(path: Path) -> None:
    path.write_bytes(b"rubbish!" * 1024)


def test_a_file_that_somebody_removes_while_it_is_in_use_is_written_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        for suffix in ("", "-wal", "-shm"):
            (tmp_path / (NAME + suffix)).unlink(missing_ok=True)
        await propose(book, ONE)
        assert book.on_trial is not None
        start = await new_book(tmp_path, boot="b2").start(FILE)
        assert (start.mode, start.text) == ("trial", effective(FILE, ONE))
        with pytest.raises(BookError, match="was lost"):
            await book.begin("id", "write", "b1", UNTIL_NS)

    simulated(scenario)


def test_a_file_of_a_newer_version_is_left_alone(tmp_path: Path) -> None:
    database = sqlite3.connect(tmp_path / NAME)
    database.execute("PRAGMA user_version = 99")
    database.close()

    async def scenario() -> None:
        book = new_book(tmp_path)
        start = await book.start(FILE)
        assert start.text is None
        assert "newer version" in start.why
        with pytest.raises(BookError, match="newer version"):
            await propose(book, ONE)

    simulated(scenario)
    assert [path.name for path in tmp_path.iterdir() if "corrupt" in path.name] == []


def test_on_a_real_disk_and_a_real_thread(tmp_path: Path) -> None:
    async def scenario() -> None:
        for expected in (None, effective(FILE)):
            worker = ThreadWorker("book")
            book = Book(FileDisk(), tmp_path / NAME, SystemClock(), worker)
            assert (await book.start(FILE)).text == expected
            await propose(book, FILE)
            await book.ended()
            await book.close()
            worker.close()

    asyncio.run(scenario())


# --- against a model -------------------------------------------------------------------------------------------------


class AnyOrder(RuleBasedStateMachine):
    """Changes, ends and starts in any order: the book says what a simple model of it says."""

    @initialize()
    def begin(self) -> None:
        self.folder = Path(tempfile.mkdtemp(dir="/dev/shm" if Path("/dev/shm").is_dir() else None))
        self.disk_file, self.boot, self.serial = FILE, 1, 0
        self.active, self.last_good, self.trial = "", "", ""
        self.executed: dict[str, str | None] = {}
        self.crashes, self.safe, self.tried = 0, "", dict[str, str]()
        simulated(self._first)
        self.active = effective(FILE)

    async def _first(self) -> None:
        await (await begun(self.folder)).close()

    async def _book(self) -> Book:
        book = new_book(self.folder, boot=f"b{self.boot}")
        await book.open()
        return book

    @rule(layer=st.sampled_from(["gateway", "group/a"]))
    def propose(self, layer: str) -> None:
        self.serial += 1

        async def scenario() -> None:
            book = await self._book()
            await propose(book, document(layer, f"{layer} {self.serial}", self.serial))
            assert book.on_trial is not None
            self.trial = book.on_trial.text
            await book.close()

        simulated(scenario)
        self.crashes = 0

    @precondition(lambda self: self.trial)
    @rule()
    def confirm(self) -> None:
        async def scenario() -> None:
            book = await self._book()
            await book.confirm()
            await book.close()

        simulated(scenario)
        self.active, self.last_good, self.trial = self.trial, self.active, ""
        self.crashes, self.safe = 0, ""

    @precondition(lambda self: self.trial)
    @rule()
    def revert(self) -> None:
        async def scenario() -> None:
            book = await self._book()
            back = await book.revert("no")
            assert back is not None
            assert back.text == self.active
            await book.close()

        simulated(scenario)
        self.trial, self.crashes = "", 0

    @rule(how=st.sampled_from(["power", "kill", "stop"]))
    def restart(self, how: str) -> None:
        async def scenario() -> Start:
            book = await self._book()
            if how == "stop":
                await book.ended()
            await book.close()
            self.boot += how == "power"
            again = new_book(self.folder, boot=f"b{self.boot}")
            start = await again.start(FILE)
            await again.close()
            return start

        start = simulated(scenario)
        self.crashes = 0 if how == "power" else self.crashes + (how == "kill")
        if self.trial and self.crashes >= CRASHES_TRIAL_MAX:
            self.trial, self.crashes = "", 0
        elif not self.trial and self.crashes >= CRASHES_MAX and self.safe != "bare":
            self.safe, self.crashes = ("last_good" if self.last_good else "bare"), 0
            self.active, self.last_good = self.last_good or self.active, ""
        assert start.text == (self.trial or self.active)
        assert start.mode == ("trial" if self.trial else self.safe or "normal")

    @rule(name=st.sampled_from("abc"), complete=st.booleans())
    def command(self, name: str, complete: bool) -> None:
        name = f"{name}-{self.boot}"

        async def scenario() -> None:
            book = await self._book()
            known = await book.begin(name, "write", f"b{self.boot}", UNTIL_NS)
            assert (known is not None) == (name in self.executed)
            assert known is None or known.outcome == self.executed[name]
            self.executed.setdefault(name, None)
            if complete:
                await book.complete(name, "{}")
                self.executed[name] = "{}"
            await book.close()

        simulated(scenario)

    @invariant()
    def a_reader_sees_the_same(self) -> None:
        async def scenario() -> None:
            book = await self._book()
            assert book.active is not None
            assert book.active.text == self.active
            assert (book.on_trial.text if book.on_trial else "") == self.trial
            assert effective(*(book.base[layer] for layer in sorted(book.base))) == (self.trial or self.active)
            await book.close()

        if hasattr(self, "folder"):
            simulated(scenario)

    def teardown(self) -> None:
        for path in self.folder.iterdir() if hasattr(self, "folder") else ():
            path.unlink()
        if hasattr(self, "folder"):
            self.folder.rmdir()


TestAnyOrder = AnyOrder.TestCase
TestAnyOrder.settings = settings(max_examples=15, stateful_step_count=25, deadline=None)


def test_terms_survive_as_they_are(tmp_path: Path) -> None:
    async def scenario() -> None:
        book = await begun(tmp_path)
        terms = Terms(("a", "b"), {"a": OK, "b": Part("failed", "x", True)}, 12.5)
        await propose(book, ONE, terms=terms)
        assert (await new_book(tmp_path).start(FILE)).terms == terms

    simulated(scenario)
