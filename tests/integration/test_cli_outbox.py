"""`edge-runtime outbox` on real files: of a running gateway, of a stopped one, of a killed one, and on files that are none."""

from __future__ import annotations

import asyncio
import csv
import hashlib
import importlib.util
import json
import os
import pty
import shutil
import sqlite3
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog

from edge_runtime import cli
from edge_runtime.board.system import SystemClock, SystemDice, ThreadWorker
from edge_runtime.cli import outbox_look
from edge_runtime.outbox.database import FileDisk
from edge_runtime.outbox.file import OutboxFile
from edge_runtime.outbox.store import Store
from edge_runtime.records import LANES, Draft, Lane, Record, Sample

CLOCK = SystemClock()
BODY = '{"text":"a \\"quoted\\", comma; é\\n","n":1.50}'.encode()
WAL_PAGES = 16


async def _with_store(path: Path, work: Callable[[Store], Any], size_bytes_max: int = 2**24) -> None:
    """A real outbox with two sinks, closed cleanly at the end. `work` may return a coroutine."""
    file = OutboxFile(FileDisk(WAL_PAGES), path, CLOCK, size_bytes_max=size_bytes_max, wal_bytes=2 * WAL_PAGES * 4096)
    writer, reader = ThreadWorker("writer"), ThreadWorker("reader")
    store = Store(
        file,
        journal_rows_max=1000,
        writer=writer,
        reader=reader,
        dice=SystemDice(),
        log=structlog.wrap_logger(structlog.ReturnLogger()),
    )
    await store.open({"cloud": LANES, "local": [Lane.RESULT]}, [("wear", "press")], unconfirmed=["local"])
    if asyncio.iscoroutine(doing := work(store)):
        await doing
    await store.close()
    writer.close()
    reader.close()


def _drafts(lane: Lane, count: int, body: bytes = BODY) -> list[Draft]:
    return [Draft(lane, "wear", CLOCK.now(), body, f"u{n}") for n in range(count)]


async def _fill(store: Store) -> None:
    await store.commit([*_drafts(Lane.RESULT, 10), *_drafts(Lane.EVENT, 2), *_drafts(Lane.SAMPLE, 5)])
    await store.journal("press", [Sample("press", CLOCK.now(), (1.0,), message_id="m1")])
    store.acknowledge("cloud", Lane.RESULT, ((1, 3), (6, 6)))
    store.acknowledge("local", Lane.RESULT, ((1, 10),))
    await store.commit(_drafts(Lane.EVENT, 1))


def _look(path: Path, capsys: pytest.CaptureFixture[str]) -> dict[str, Any]:
    assert cli.main(["outbox", str(path), "--json"]) == 0
    found: dict[str, Any] = json.loads(capsys.readouterr().out)
    return found


def _state(folder: Path) -> dict[str, str]:
    """Every file that is there, and what is in it; the shared memory of readers aside."""
    files = [file for file in folder.iterdir() if not file.name.endswith("-shm")]
    return {file.name: hashlib.sha256(file.read_bytes()).hexdigest() for file in files}


@pytest.fixture
def stopped(tmp_path: Path) -> Path:
    path = tmp_path / "stopped" / "outbox.db"
    asyncio.run(_with_store(path, _fill))
    return path


def _lanes(found: dict[str, Any]) -> dict[str, tuple[int, int, dict[str, int]]]:
    return {lane["lane"]: (lane["records"], lane["head"], lane["waiting"]) for lane in found["lanes"]}


EXPECTED = {
    "gap": (0, 0, {"cloud": 0}),
    "event": (3, 3, {"cloud": 3}),
    # 1..3 and 6 are with both sinks, so they are gone from the disk.
    "result": (6, 10, {"cloud": 6, "local": 0}),
    "sample": (5, 5, {"cloud": 5}),
}
SINKS = [
    {"sink": "cloud", "lanes": [lane.value for lane in LANES], "delivery": "confirmed by the receiver", "withheld": 0},
    {"sink": "local", "lanes": ["result"], "delivery": "to the broker only", "withheld": 0},
]


def test_a_stopped_outbox_is_shown_and_stays_as_it_is(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = _state(stopped.parent)
    found = _look(stopped, capsys)
    assert _lanes(found) == EXPECTED
    assert found["sinks"] == SINKS
    assert found["size_bytes"] == stopped.stat().st_size
    assert found["journal_rows"] == {"press": 1}
    assert len(found["epochs"]) == 1
    assert all(0 <= lane["oldest_s"] < 3600 for lane in found["lanes"] if lane["records"])
    assert _state(stopped.parent) == before, "looking changed the file, or left one behind"


def test_a_running_outbox_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "outbox.db"

    async def meanwhile(store: Store) -> None:
        await _fill(store)
        assert _lanes(_look(path, capsys)) == EXPECTED
        await store.commit(_drafts(Lane.RESULT, 1))
        assert _lanes(_look(path, capsys))["result"] == (7, 11, {"cloud": 7, "local": 1})

    asyncio.run(_with_store(path, meanwhile))


def test_what_a_killed_gateway_leaves_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The committed rows are in the WAL only."""
    path, left = tmp_path / "outbox.db", tmp_path / "left"
    left.mkdir()

    async def meanwhile(store: Store) -> None:
        await _fill(store)
        for suffix in ("", "-wal"):
            shutil.copy(f"{path}{suffix}", f"{left}/outbox.db{suffix}")

    asyncio.run(_with_store(path, meanwhile))
    before = _state(left)
    assert _lanes(_look(left / "outbox.db", capsys)) == EXPECTED
    assert cli.main(["outbox", str(left / "outbox.db"), "export"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 14
    assert _state(left) == before


def test_people_get_tables(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["outbox", str(stopped)]) == 0
    out = capsys.readouterr().out
    assert f"{stopped}: {stopped.stat().st_size:,} bytes on disk" in out
    lines = [" ".join(line.split()) for line in out.splitlines()]
    [result] = [line.split() for line in lines if line.startswith("result")]
    assert (result[1], result[4:]) == ("6", ["10", "cloud,", "local"])
    assert "sink gap event result sample withheld delivery" in lines
    assert "cloud 0 3 6 5 0 confirmed by the receiver" in lines
    assert "local - - 0 - 0 to the broker only" in lines
    assert "-: the sink does not take this lane" in out.splitlines()


def test_an_outage_from_the_first_start_is_shown(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """No sink has acknowledged anything, and the operator must see for whom it all waits."""
    path = tmp_path / "outbox.db"
    asyncio.run(_with_store(path, lambda store: _commit(store, _drafts(Lane.RESULT, 4))))
    waiting = {lane: at for lane, (_, _, at) in _lanes(_look(path, capsys)).items()}
    nothing = {"cloud": 0}
    assert waiting == {"gap": nothing, "event": nothing, "result": {"cloud": 4, "local": 4}, "sample": nothing}
    assert cli.main(["outbox", str(path)]) == 0
    lines = [" ".join(line.split()) for line in capsys.readouterr().out.splitlines()]
    assert "cloud 0 0 4 0 0 confirmed by the receiver" in lines
    assert "local - - 4 - 0 to the broker only" in lines


def test_a_file_that_does_not_tell_its_sinks_shows_what_they_acknowledged(
    stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    database = sqlite3.connect(stopped)
    database.execute("DROP TABLE sinks")
    database.close()
    before = _state(stopped.parent)
    found = _look(stopped, capsys)
    assert found["sinks"] == []
    assert {lane: at for lane, (_, _, at) in _lanes(found).items() if at} == {"result": {"cloud": 6, "local": 0}}
    assert cli.main(["outbox", str(stopped)]) == 0
    out = capsys.readouterr().out.splitlines()
    assert "cloud - - 6 - - -" in [" ".join(line.split()) for line in out]
    assert "-: the sink does not take this lane, or has acknowledged nothing of it" in out
    assert cli.main(["outbox", str(stopped), "export"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 14
    assert _state(stopped.parent) == before


def test_what_was_evicted_or_refused_is_shown_with_its_reason(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "outbox.db"

    async def overfill(store: Store) -> None:
        await store.commit(_drafts(Lane.RESULT, 2))
        for _ in range(12):
            await store.commit(_drafts(Lane.SAMPLE, 100, b'"%s"' % (b"x" * 1_000)))
        [record] = await store.read(Lane.RESULT, 1, 1, 1)
        await store.set_aside("cloud", record, "too strange")

    asyncio.run(_with_store(path, overfill, size_bytes_max=2**20))
    found = _look(path, capsys)
    samples = next(lane for lane in found["lanes"] if lane["lane"] == "sample")
    lost = {(gap["lane"], gap["reason"]): gap["count"] for gap in found["gaps"]}
    assert samples["head"] == 1_200
    assert lost["sample", "outbox full"] == 1_200 - samples["records"] > 0
    assert found["refused"] == [{"lane": "result", "reason": "too strange", "count": 1, "sink": "cloud"}]
    assert cli.main(["outbox", str(path)]) == 0
    out = capsys.readouterr().out
    assert "outbox full" in out
    assert "too strange" in out


# --- export ----------------------------------------------------------------------------------------------------------


def _records(path: Path) -> list[Record]:
    return list(outbox_look.records(path, list(LANES)))


def test_rows_are_exported_exactly(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before, records = _state(stopped.parent), _records(stopped)
    for form in ("csv", "jsonl"):
        assert cli.main(["outbox", str(stopped), "export", "--format", form, "--output", str(tmp_path / form)]) == 0
    assert capsys.readouterr() == ("", "")
    with (tmp_path / "csv").open(newline="") as file:
        from_csv = list(csv.DictReader(file))
    from_json = [json.loads(line) for line in (tmp_path / "jsonl").read_text().splitlines()]
    assert len(from_csv) == len(from_json) == len(records) == 14
    for record, row, line in zip(records, from_csv, from_json, strict=True):
        ids = (record.epoch, record.lane, record.seq, record.source, record.unique)
        assert (row["epoch"], row["lane"], int(row["seq"]), row["source"], row["unique"]) == ids
        assert (line["epoch"], line["lane"], line["seq"], line["source"], line["unique"]) == ids
        stamp = (record.stamp.boot, record.stamp.mono_ns, record.stamp.wall_ns)
        assert (row["boot"], int(row["mono_ns"]), int(row["wall_ns"])) == stamp
        assert (line["boot"], line["mono_ns"], line["wall_ns"]) == stamp
        assert row["body"].encode() == record.body
        assert line["body"] == json.loads(record.body)
    assert BODY.decode() in (tmp_path / "jsonl").read_text(), "the body is to stand there byte for byte"
    assert _state(stopped.parent) == before


def test_only_the_lanes_that_are_asked_for(stopped: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["outbox", str(stopped), "export", "--lane", "event", "--lane", "sample"]) == 0
    assert [json.loads(line)["lane"] for line in capsys.readouterr().out.splitlines()] == ["event"] * 3 + ["sample"] * 5


def test_many_rows_come_in_order_and_all(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path, count = tmp_path / "outbox.db", 2 * outbox_look.READ_ROWS + 7
    asyncio.run(_with_store(path, lambda store: _commit(store, _drafts(Lane.RESULT, count))))
    assert cli.main(["outbox", str(path), "export"]) == 0
    assert [json.loads(line)["seq"] for line in capsys.readouterr().out.splitlines()] == list(range(1, count + 1))


async def _commit(store: Store, drafts: list[Draft]) -> None:
    await store.commit(drafts)


def test_an_export_does_not_hold_up_the_checkpoint(tmp_path: Path) -> None:
    """One that is slow (a pipe that nobody reads) must not make the WAL of a running gateway grow."""
    path = tmp_path / "outbox.db"

    async def meanwhile(store: Store) -> None:
        await store.commit(_drafts(Lane.RESULT, 3 * outbox_look.READ_ROWS))
        slow = outbox_look.records(path, [Lane.RESULT])
        next(slow)
        for _ in range(50):
            await store.commit(_drafts(Lane.RESULT, 100))
        assert path.with_name("outbox.db-wal").stat().st_size < 8 * WAL_PAGES * 4096
        assert sum(1 for _ in slow) == 3 * outbox_look.READ_ROWS - 1

    asyncio.run(_with_store(path, meanwhile))


def test_progress_is_for_terminals(stopped: Path, tmp_path: Path) -> None:
    pytest.importorskip("rich", reason="rich is not installed: the progress bar is not tested")
    near, far = pty.openpty()
    command = [sys.executable, "-m", "edge_runtime", "outbox", str(stopped), "export", "--output", str(tmp_path / "rows")]
    done = subprocess.run(
        command, stderr=far, stdout=subprocess.PIPE, env={**os.environ, "TERM": "xterm"}, timeout=60, check=False
    )
    os.close(far)
    shown = os.read(near, 65_536).decode()
    os.close(near)
    assert (done.returncode, done.stdout) == (0, b"")
    assert "exporting" in shown
    assert "100%" in shown


# --- files that are none ---------------------------------------------------------------------------------------------


def _newer(path: Path) -> None:
    database = sqlite3.connect(path)
    database.execute("PRAGMA user_version=99")
    database.close()


def _other(path: Path) -> None:
    path.unlink()
    database = sqlite3.connect(path)
    database.execute("CREATE TABLE recipes (name TEXT)")
    database.close()


def _damaged(path: Path) -> None:
    content = bytearray(path.read_bytes())
    content[4096:] = b"\xa5" * (len(content) - 4096)
    path.write_bytes(content)


@pytest.mark.parametrize("words", [[], ["export"]])
@pytest.mark.parametrize(
    ("spoil", "cause", "hint"),
    [
        (Path.unlink, "there is no such file", "data/outbox.db"),
        (lambda path: path.write_bytes(b""), "is no outbox", "data_dir"),
        (lambda path: path.write_text("site: plant-1\n" * 400), "file is not a database", "no outbox, or a damaged one"),
        (_other, "is no outbox", "data_dir"),
        (_newer, "format 99, this one knows", "update edge-runtime"),
        (_damaged, "database disk image is malformed", "no outbox, or a damaged one"),
    ],
    ids=["missing", "empty", "text", "other", "newer", "damaged"],
)
def test_a_file_that_is_none_is_told(
    spoil: Callable[[Path], object], cause: str, hint: str, words: list[str], stopped: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    spoil(stopped)
    before = _state(stopped.parent)
    assert cli.main(["outbox", str(stopped), *words]) == 1
    error, advice = capsys.readouterr().err.splitlines()
    assert error.startswith(f"error: {stopped}: ")
    assert cause in error
    assert hint in advice
    assert _state(stopped.parent) == before


@pytest.mark.parametrize("words", [["export", "x.db"], ["export", "--format", "csv", "x.db"], ["export"]])
def test_export_before_its_file_says_what_to_type(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["outbox", *words])
    assert ended.value.code == 2
    assert "edge-runtime outbox FILE export" in capsys.readouterr().err.splitlines()[-1]


def test_an_outbox_may_be_called_export(
    stopped: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.chdir(tmp_path)
    Path("export").symlink_to(stopped)
    assert cli.main(["outbox", "export", "export"]) == 0
    assert capsys.readouterr().out


def test_an_output_that_cannot_be_written_is_told(stopped: Path, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert cli.main(["outbox", str(stopped), "export", "--output", str(tmp_path / "no" / "rows")]) == 1
    assert f"error: {tmp_path}/no/rows: No such file or directory" in capsys.readouterr().err


def test_an_outbox_is_not_written_over(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    path = tmp_path / "outbox.db"
    (tmp_path / "rows").symlink_to(path)

    async def exported_meanwhile(store: Store) -> None:
        await _fill(store)
        for name in ("outbox.db", "outbox.db-wal", "rows"):
            assert await asyncio.to_thread(cli.main, ["outbox", str(path), "export", "--output", str(tmp_path / name)]) == 1
            assert f"{name}: belongs to the outbox" in capsys.readouterr().err

    asyncio.run(_with_store(path, exported_meanwhile))
    assert cli.main(["outbox", str(path), "--json"]) == 0
    assert {each["lane"]: each["records"] for each in json.loads(capsys.readouterr().out)["lanes"]}["result"] > 0


def test_standard_output_on_a_full_disk_is_told(stopped: Path) -> None:
    with Path("/dev/full").open("w") as full:
        ended = subprocess.run(
            [sys.executable, "-m", "edge_runtime", "outbox", str(stopped), "export"],
            stdout=full, stderr=subprocess.PIPE, text=True, check=False,
        )  # fmt: skip
    assert ended.returncode == 1
    assert ended.stderr == "error: standard output: No space left on device\nhint: what is written so far is not complete\n"


def test_a_missing_extra_is_told(stopped: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> None:
    real = importlib.util.find_spec
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name == "sqlite_utils" else real(name))
    assert cli.main(["outbox", str(stopped)]) == 1
    assert "hint: pip install 'edge-runtime[cli]'" in capsys.readouterr().err
