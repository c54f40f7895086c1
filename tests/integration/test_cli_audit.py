"""`edge-runtime audit` on real files: while a gateway writes and after it, edited with nothing but sqlite3, cut off, damaged."""

from __future__ import annotations

import asyncio
import gzip
import hashlib
import json
import os
import re
import shutil
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any

import pytest
import structlog

from edge_runtime import cli
from edge_runtime.board.system import SystemClock, ThreadWorker
from edge_runtime.control.audit import AuditLog, Entry, Kind
from edge_runtime.control.audit_file import NAME, WAL_PAGES, AuditFile
from edge_runtime.outbox.database import FileDisk
from edge_runtime.records import Stamp

LOG = structlog.wrap_logger(None, processors=[], wrapper_class=structlog.make_filtering_bound_logger(50))
SPEED = "point press/speed"
T0 = 1_795_255_200 * 10**9  # 2026-11-21T10:00:00Z
MINUTE = 60 * 10**9


class Clock:
    """Set by the test: what a gateway with a wrong clock writes."""

    def __init__(self) -> None:
        self.stamp = Stamp("boot-a", 1, T0, True)

    def set(self, minute: float, boot: str = "boot-a", synced: bool = True, wall_ns: int | None = None) -> None:
        mono_ns = round(minute * MINUTE) + 10**12
        self.stamp = Stamp(boot, mono_ns, T0 + round(minute * MINUTE) if wall_ns is None else wall_ns, synced)

    def now(self) -> Stamp:
        return self.stamp

    def mono_ns(self) -> int:
        return self.stamp.mono_ns


def new_log(folder: Path, clock: Any, bytes_max: int = 2**20) -> AuditLog:
    file = AuditFile(FileDisk(WAL_PAGES), folder / NAME, clock, bytes_max=bytes_max)
    return AuditLog(file, worker=ThreadWorker("audit"), clock=clock, log=LOG)


def write(folder: Path, work: Callable[[AuditLog, Clock], Any], bytes_max: int = 2**20) -> str:
    """Returns the head."""

    async def whole() -> str:
        clock = Clock()
        log = new_log(folder, clock, bytes_max)
        await log.open()
        await work(log, clock)
        await log.close()
        return str(log.head)

    return asyncio.run(whole())


async def command(
    log: AuditLog, actor: str, before: Any, requested: Any, outcome: str = "verified", subject: str = SPEED
) -> None:
    n = await log.begin(Entry(kind=Kind.COMMAND, actor=actor, via="cmd/write", subject=subject, requested=requested, why="shift"))
    await log.complete(n, outcome, before=before, read_back=requested)


async def twenty(log: AuditLog, clock: Clock) -> None:
    for number in range(10):
        clock.set(number)
        await command(log, "person:alice", number, number + 1)


def sql(folder: Path, *statements: str) -> None:
    database = sqlite3.connect(folder / NAME)
    for statement in statements:
        database.execute(statement)
    database.commit()
    database.close()


def answer(capsys: pytest.CaptureFixture[str], *words: str) -> Any:
    capsys.readouterr()
    assert cli.main(["audit", *words, "--json"]) in (0, 1)
    return json.loads(capsys.readouterr().out)


def failure(capsys: pytest.CaptureFixture[str], *words: str) -> str:
    assert cli.main(["audit", *words]) == 1
    return capsys.readouterr().err


# --- verify ----------------------------------------------------------------------------------------------------------


def test_a_log_that_holds(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = write(tmp_path, twenty)
    assert cli.main(["audit", "verify", str(tmp_path), "--head", head]) == 0
    out = capsys.readouterr().out
    assert "entries: 20" in out
    assert head in out
    assert answer(capsys, "verify", str(tmp_path / NAME))["holds"] is True


@pytest.mark.parametrize(
    ("statements", "says"),
    [
        (["UPDATE entries SET requested = '9999' WHERE n = 7"], "entry 7 was edited"),
        (["UPDATE entries SET actor = 'person:bob' WHERE n = 1"], "entry 1 was edited"),
        (["UPDATE entries SET synced = 0 WHERE n = 20"], "entry 20 was edited"),
        (["UPDATE entries SET why = x'00ff' WHERE n = 7"], "entry 7 was edited"),
        (["UPDATE entries SET mono_ns = 'noon' WHERE n = 7"], "entry 7 was edited"),
        (["UPDATE entries SET hash = replace(hash, '0', '1') WHERE n = 7"], "entry 7 was edited"),
        (["DELETE FROM entries WHERE n = 7"], "entry 7 is missing"),
        (["DELETE FROM entries WHERE n BETWEEN 7 AND 9"], "entries 7 to 9 are missing"),
        (["DELETE FROM entries WHERE n < 5"], "entries 1 to 4 are missing"),
        (["DELETE FROM entries WHERE n = 7", "UPDATE entries SET n = n - 1 WHERE n > 7"], "entry 7 was edited"),
        (["UPDATE entries SET n = -7 WHERE n = 7", "UPDATE entries SET n = 7 WHERE n = 8",
          "UPDATE entries SET n = 8 WHERE n < 0"],
         "entry 7 was edited"),
        (["UPDATE entries SET n = -n WHERE n > 7", "UPDATE entries SET n = 1 - n WHERE n < 0",
          "INSERT INTO entries SELECT 8, boot, mono_ns, wall_ns, synced, kind, actor, via, subject, before, requested, "
          "read_back, outcome, why, completes, previous, hash FROM entries WHERE n = 7"], "entry 8 was edited"),
    ],
)  # fmt: skip
def test_an_edit_with_plain_sqlite3_is_found_and_named(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], statements: list[str], says: str
) -> None:
    write(tmp_path, twenty)
    sql(tmp_path, *statements)
    assert says in failure(capsys, "verify", str(tmp_path))
    assert answer(capsys, "verify", str(tmp_path))["entry"] == int(re.findall(r"\d+", says)[0])


def _forge(folder: Path, n: int, *, whole: bool) -> None:
    """Who knows the document can reckon a hash: of the edited entry alone, or of all that follow, too."""
    database = sqlite3.connect(folder / NAME)
    columns = [name for _, name, *_ in database.execute("PRAGMA table_info(entries)")]
    database.execute("UPDATE entries SET actor = 'person:bob' WHERE n = ?", (n,))
    previous = ""
    for row in database.execute("SELECT * FROM entries WHERE n >= ? ORDER BY n", (n,)).fetchall():
        fields = dict(zip(columns, row, strict=True))
        fields["previous"] = previous or fields["previous"]
        texts = ["edge-runtime audit 1", *(str(fields[name]) for name in columns[:-1])]
        previous = hashlib.sha256("".join(f"{len(text.encode())}:{text}," for text in texts).encode()).hexdigest()
        database.execute("UPDATE entries SET previous = ?, hash = ? WHERE n = ?", (fields["previous"], previous, fields["n"]))
        if not whole:
            break
    database.commit()
    database.close()


def test_an_entry_that_was_replaced_with_its_hash_is_found(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, twenty)
    _forge(tmp_path, 7, whole=False)
    assert "entry 8 does not continue entry 7" in failure(capsys, "verify", str(tmp_path))
    assert answer(capsys, "verify", str(tmp_path))["entry"] == 7


def test_only_a_head_shows_an_end_that_was_cut_off(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = write(tmp_path, twenty)
    sql(tmp_path, "DELETE FROM entries WHERE n = 20")
    assert cli.main(["audit", "verify", str(tmp_path)]) == 0
    assert "only a head" in capsys.readouterr().out
    assert "entries 20 to 20 are missing at the end" in failure(capsys, "verify", str(tmp_path), "--head", head)


def test_only_a_head_shows_a_log_that_was_written_anew(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = write(tmp_path, twenty)
    _forge(tmp_path, 7, whole=True)
    assert cli.main(["audit", "verify", str(tmp_path)]) == 0
    capsys.readouterr()
    assert "entry 20 is not the one that was seen as head" in failure(capsys, "verify", str(tmp_path), "--head", head)


def test_a_log_that_was_cut_off_and_went_on_does_not_fit_the_head(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = write(tmp_path, twenty)
    sql(tmp_path, "DELETE FROM entries WHERE n > 15")
    write(tmp_path, twenty)
    assert cli.main(["audit", "verify", str(tmp_path)]) == 0
    assert "entry 20 is not the one" in failure(capsys, "verify", str(tmp_path), "--head", head)


# --- segments --------------------------------------------------------------------------------------------------------

SMALL = 128 * 1024


async def many(log: AuditLog, clock: Clock) -> None:
    for number in range(300):
        clock.set(number)
        await command(log, "person:alice", number, "x" * 400, subject=SPEED if number % 10 == 0 else "point press/force")


@pytest.fixture(scope="module")
def segmented(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Written once; each test damages a copy."""
    folder = tmp_path_factory.mktemp("segmented")
    write(folder, many, SMALL)
    return folder


def test_segments_belong_to_the_log(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = write(tmp_path, many, SMALL)
    report = answer(capsys, "verify", str(tmp_path), "--head", head)
    assert report["entries"] == 600
    assert len(report["segments"]) > 5
    one = answer(capsys, "verify", str(tmp_path / report["segments"][2]))
    assert answer(capsys, "verify", str(tmp_path / report["segments"][1]))["head"] == one["continues"]
    found = answer(capsys, "point", "press/speed", str(tmp_path), "--at", "2026-11-21T10:11:00Z")
    assert found["wrote"]["before"] == 10  # it is in the first segment
    assert found["wrote"]["n"] == 21


@pytest.mark.parametrize(
    ("damage", "says"),
    [
        (lambda file: file.unlink(), "is missing|are missing"),
        (lambda file: file.write_bytes(file.read_bytes()[:-30]), "damaged"),
        (lambda file: file.write_bytes(file.read_bytes()[:-400] + b"\0" * 400), "damaged"),
        (lambda file: file.write_bytes(gzip.compress(b"".join(_lines(file)).replace(b"alice", b"bobby", 1))), "edited"),
        (lambda file: file.write_bytes(gzip.compress(b"".join(_lines(file)[:-1]))), "ends before"),
        (lambda file: file.write_bytes(gzip.compress(b"".join(_lines(file)[1:]))), "missing"),
        (lambda file: file.write_bytes(gzip.compress(b"".join(reversed(_lines(file))))), "audit-000003"),
        (lambda file: file.write_bytes(gzip.compress(b"".join([*_lines(file)[:2], *_lines(file)[1:]]))), "comes after"),
        (lambda file: file.write_bytes(gzip.compress(b"{}\n")), "damaged"),
        (lambda file: shutil.copy(file.with_name("audit-000002.jsonl.gz"), file), "audit-000003"),
    ],
)  # fmt: skip
def test_a_segment_that_is_damaged_is_found_and_named(
    tmp_path: Path, segmented: Path, capsys: pytest.CaptureFixture[str], damage: Callable[[Path], Any], says: str
) -> None:
    shutil.copytree(segmented, tmp_path, dirs_exist_ok=True)
    damage(tmp_path / "audit-000003.jsonl.gz")
    error = failure(capsys, "verify", str(tmp_path))
    assert "audit-000003.jsonl.gz" in error
    assert re.search(says, error)
    assert cli.main(["audit", "verify", str(tmp_path), "--from", "400"]) == 0  # what comes after it holds
    capsys.readouterr()
    assert cli.main(["audit", "show", str(tmp_path), "--last", "5"]) in (0, 1)  # and the rest can be read
    assert "point press/force" in capsys.readouterr().out


def _lines(file: Path) -> list[bytes]:
    return gzip.decompress(file.read_bytes()).splitlines(keepends=True)


def test_a_segment_that_the_log_does_not_know_any_more_is_missed(
    tmp_path: Path, segmented: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    shutil.copytree(segmented, tmp_path, dirs_exist_ok=True)
    sql(tmp_path, "DELETE FROM segments WHERE number <= 2")
    (tmp_path / "audit-000001.jsonl.gz").unlink()
    assert "missing" in failure(capsys, "verify", str(tmp_path))


# --- point and show --------------------------------------------------------------------------------------------------


async def story(log: AuditLog, clock: Clock) -> None:
    clock.set(0)
    await command(log, "person:alice", 1000, 1100)
    clock.set(5)
    await command(log, "rule:worn", 1100, 1200)
    clock.set(6)
    await command(log, "person:eve", None, 9000, "refused")
    clock.set(7)
    await command(log, "person:alice", 1, 2, subject="point press/force")
    clock.set(10)
    await command(log, "person:bob", 1200, 1300, "unknown")


@pytest.mark.parametrize(
    ("at", "actor", "before", "requested"),
    [
        ("2026-11-21T10:00:01Z", "person:alice", 1000, 1100),
        ("2026-11-21T10:06:30+00:00", "rule:worn", 1100, 1200),
        ("2026-11-21T12:09:59+02:00", "rule:worn", 1100, 1200),
        ("2026-11-21T10:10:00", "person:bob", 1200, 1300),
        ("-1s", "person:bob", 1200, 1300),
    ],
)
def test_who_last_wrote_a_point(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch,
    at: str, actor: str, before: int, requested: int,
) -> None:  # fmt: skip
    write(tmp_path, story)
    _now(monkeypatch, T0 + 3600 * 10**9)
    wrote = answer(capsys, "point", "press/speed", str(tmp_path), "--at", at)["wrote"]
    assert (wrote["actor"], wrote["before"], wrote["requested"]) == (actor, before, requested)


def _now(monkeypatch: pytest.MonkeyPatch, wall_ns: int, boot: str = "another-boot") -> None:
    monkeypatch.setattr(SystemClock, "now", lambda _: Stamp(boot, 10**12, wall_ns, True))


def test_the_answer_for_people(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, story)
    _now(monkeypatch, T0 + 3600 * 10**9)
    assert (
        cli.main(["audit", "point", "press/speed", "--at", "@10:06:30", str(tmp_path)]) == 0
    )  # the log last, as docs/audit.md has it
    out = capsys.readouterr().out
    first, around = out.split("around it")
    for text in ("by rule:worn via cmd/write", "2026-11-21T10:05:00.000Z", "1100", "1200", "verified", "shift", "outcome in 4"):
        assert text in first
    for text in ("person:alice", "person:eve", "refused", "person:bob", "unknown"):
        assert text in around
    assert "press/force" not in out


def test_nothing_wrote_it(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, story)
    _now(monkeypatch, T0 + 3600 * 10**9)
    found = answer(capsys, "point", "press/speed", str(tmp_path), "--at", "2026-11-21T09:00:00Z")
    assert found["wrote"] is None
    assert [each["actor"] for each in found["around"]] == ["person:alice", "rule:worn", "person:eve"]
    assert cli.main(["audit", "point", "press/nothing", str(tmp_path)]) == 0
    assert "nothing in this log wrote it" in capsys.readouterr().out


def test_what_a_clock_at_1970_wrote_is_dated_by_its_boot(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch
) -> None:
    async def work(log: AuditLog, clock: Clock) -> None:
        clock.set(0)
        await command(log, "person:alice", 1, 2)
        clock.set(20, "boot-b", synced=False, wall_ns=7 * 10**9)
        await command(log, "person:bob", 2, 3)
        clock.set(30, "boot-b")  # it heard of the time
        await log.append(Entry(kind=Kind.START, actor="gateway", subject="clock"))
        clock.set(40, "boot-c", synced=False, wall_ns=9 * 10**9)
        await command(log, "person:carol", 3, 4)

    write(tmp_path, work)
    _now(monkeypatch, T0 + 3600 * 10**9)

    def wrote(at: str) -> tuple[Any, ...]:
        found = answer(capsys, "point", "press/speed", str(tmp_path), "--at", at)
        return found["wrote"]["actor"], found["wrote"]["at"], found["sure"]

    assert wrote("2026-11-21T10:19:00Z") == ("person:alice", "2026-11-21T10:00:00.000Z", True)
    assert wrote("2026-11-21T10:21:00Z") == ("person:bob", "~2026-11-21T10:20:00.000Z", True)
    assert wrote("2026-11-21T10:50:00Z")[:2] == ("person:carol", "~1970-01-01T00:00:09.000Z (boot boot-c +3400.000 s)")
    assert cli.main(["audit", "show", str(tmp_path)]) == 0
    assert "~1970-01-01T00:00:09.000Z (boot boot-c +3400.000 s)" in capsys.readouterr().out


def test_show_filters(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    write(tmp_path, story)
    _now(monkeypatch, T0 + 11 * MINUTE)
    assert [row["n"] for row in answer(capsys, "show", str(tmp_path))] == list(range(1, 11))
    assert [row["n"] for row in answer(capsys, "show", str(tmp_path), "--last", "2")] == [9, 10]
    assert [row["n"] for row in answer(capsys, "show", str(tmp_path), "--subject", "point press/force")] == [7, 8]
    assert [row["n"] for row in answer(capsys, "show", str(tmp_path), "--since", "-5m", "--until", "-4m")] == [5, 6, 7, 8]
    assert answer(capsys, "show", str(tmp_path), "--kind", "trust") == []


def test_what_came_from_outside_moves_no_cursor(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, lambda log, _: log.append(Entry(kind=Kind.COMMAND, actor="\x1b[2J\x9b1A", subject="a\nb", requested="\x9b")))
    assert cli.main(["audit", "show", str(tmp_path)]) == 0
    out = capsys.readouterr().out
    assert not re.search(r"[\x00-\x09\x0b-\x1f\x7f-\x9f]", out)
    assert "a\\nb" in out


@pytest.mark.parametrize("words", [["show"], ["point", "press/speed"], ["verify"]])
def test_what_is_no_log_is_told(tmp_path: Path, capsys: pytest.CaptureFixture[str], words: Sequence[str]) -> None:
    assert "there is no such file" in failure(capsys, *words, str(tmp_path))
    (tmp_path / NAME).write_bytes(b"no database at all" * 100)
    assert "no audit log" in failure(capsys, *words, str(tmp_path))
    (tmp_path / NAME).unlink()
    sqlite3.connect(tmp_path / NAME).execute("CREATE TABLE entries (n)")
    assert "no audit log" in failure(capsys, *words, str(tmp_path))


def test_wrong_words_are_told(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    write(tmp_path, twenty)
    assert "is no time" in failure(capsys, "point", "press/speed", str(tmp_path), "--at", "yesterday")
    assert "no head" in failure(capsys, "verify", str(tmp_path), "--head", "12")


def test_a_configuration_names_its_log_even_where_it_is_not_valid(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    (tmp_path / "here").mkdir()
    write(tmp_path / "here", twenty)
    (tmp_path / "gateway.yaml").write_text("data_dir: here\nnonsense: 1\n")
    assert answer(capsys, "verify", str(tmp_path / "gateway.yaml"))["entries"] == 20
    (tmp_path / "gateway.yaml").write_text("- no mapping\n")
    assert "no such file" in failure(capsys, "verify", str(tmp_path / "gateway.yaml"))
    (tmp_path / "gateway.yaml").write_text("a: [\n")
    failure(capsys, "verify", str(tmp_path / "gateway.yaml"))


# --- while it is written, and after a kill ---------------------------------------------------------------------------


def test_it_reads_while_the_gateway_writes_and_moves_segments(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    async def whole() -> int:
        clock = Clock()
        log = new_log(tmp_path, clock, SMALL)
        await log.open()
        await many(log, clock)
        writing = asyncio.create_task(many(log, clock))
        checks = 0
        while not writing.done():
            before = str(log.head)
            status = await asyncio.to_thread(cli.main, ["audit", "verify", str(tmp_path), "--head", before])
            assert status == 0, capsys.readouterr().err
            checks += 1
        await writing
        await log.close()
        return checks

    assert asyncio.run(whole()) > 1
    assert cli.main(["audit", "verify", str(tmp_path)]) == 0


WRITER = """
import asyncio, sys
sys.path.insert(0, {tests!r})
from pathlib import Path
import test_cli_audit as t
async def main():
    log = t.new_log(Path({folder!r}), t.SystemClock(), t.SMALL)
    await log.open()
    while True:
        n = await log.begin(t.Entry(kind=t.Kind.COMMAND, actor="a", subject=t.SPEED, requested="x" * 500))
        print(log.head, flush=True)
        await log.complete(n, "verified")
asyncio.run(main())
"""


def test_what_was_told_survives_a_kill(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    head = ""
    for lines in (3, 40, 150):
        code = WRITER.format(tests=str(Path(__file__).parent), folder=str(tmp_path))
        with subprocess.Popen([sys.executable, "-c", code], stdout=subprocess.PIPE, text=True, env=os.environ) as process:
            assert process.stdout
            for _ in range(lines):
                head = process.stdout.readline().strip()
            process.send_signal(signal.SIGKILL)
        assert cli.main(["audit", "verify", str(tmp_path), "--head", head]) == 0, capsys.readouterr().err
    shown = answer(capsys, "show", str(tmp_path), "--last", "1000")
    assert [row["n"] for row in shown] == list(range(1, shown[-1]["n"] + 1))
    left_open = [row["n"] for row in shown if row["outcome"] == "begun" and row["n"] not in [each["completes"] for each in shown]]
    assert left_open in ([], [shown[-1]["n"]])  # of the last life only
