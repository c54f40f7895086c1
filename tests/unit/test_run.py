"""`edge-runtime run`: signals, the lock on the data folder, the log. (What needs a process of its own is tested with one.)"""

from __future__ import annotations

import asyncio
import contextlib
import errno
import json
import os
import random
import signal
import sqlite3
from contextlib import closing
from pathlib import Path
from typing import Any

import pytest
import structlog
from waiting import until

from edge_runtime.board.system import SystemClock, SystemDice, ThreadWorker
from edge_runtime.cli import run
from edge_runtime.config import Log
from edge_runtime.gateway import Gateway
from edge_runtime.lifetime import Lifetime
from edge_runtime.outbox.database import FileDisk
from edge_runtime.ports import EdgeError
from edge_runtime.testing.adapter import Faulty, NoBus
from edge_runtime.testing.sink import FakeReceiver, FakeSink, Faults
from edge_runtime.world import World

SETTINGS: dict[str, Any] = {
    "site": "s",
    "gateway": "g",
    "data_dir": ".",
    "devices": {"d": {"adapter": "faulty", "points": [{"name": "a"}], "period_s": 0.01}},
    "pipelines": {"p": {"device": "d"}},
    "sinks": {"cloud": {"type": "https", "url": "http://x"}},
    "outbox": {"drain_s_max": 60},
}


def world(far_end: FakeReceiver, told: list[str]) -> World:
    def note(_logger: Any, _method: str, event: Any) -> Any:
        told.append(event["event"])
        raise structlog.DropEvent

    refuse: Any = lambda *_: None  # noqa: E731
    return World(
        clock=SystemClock(),
        dice=SystemDice(),
        bus=NoBus(),
        adapters={"faulty": Faulty},
        new_worker=ThreadWorker,
        new_disk=FileDisk,
        make_sink=lambda *_, **__: FakeSink(far_end, "g", random.Random(1), Faults(timeout_s=0.05)),
        new_host=refuse,
        log=structlog.wrap_logger(None, processors=[note]),
    )


async def served(folder: Path, far_end: FakeReceiver, told: list[str]) -> None:
    there = world(far_end, told)
    await run.serve(lambda: Lifetime(json.dumps(SETTINGS), "gateway.yaml", folder, folder, there), there.log)


def serve(folder: Path, far_end: FakeReceiver, told: list[str], signals: int) -> None:
    """Signals come when something is on the disk, 0.2 s apart."""

    def accepted() -> int:
        """What was delivered is still on the disk, or not any more."""
        with closing(sqlite3.connect(folder / "outbox.db", timeout=30)) as database:
            last = int(database.execute("SELECT coalesce(max(seq), 0) FROM lane_sample").fetchone()[0])
        return max(last, len(far_end.kept))

    async def both() -> None:
        serving = asyncio.create_task(served(folder, far_end, told))
        await until(lambda: "source_connected" in told)
        await until(lambda: accepted() > 3)
        for _ in range(signals):
            os.kill(os.getpid(), signal.SIGTERM)
            await asyncio.sleep(0.2)
        await asyncio.wait((serving,), timeout=30)  # not by cancelling: that is what a second signal does
        assert serving.done()
        await serving

    asyncio.run(both())


def test_a_signal_drains_and_ends(tmp_path: Path) -> None:
    far_end, told = FakeReceiver(), []  # type: ignore[var-annotated]
    serve(tmp_path, far_end, told, signals=1)
    assert told[-1] == "gateway_stopped"
    assert len(far_end.kept) > 3
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as database:
        assert database.execute("SELECT seq FROM heads WHERE lane = 'sample'").fetchone() == (len(far_end.kept),)


def test_a_second_signal_does_not_wait_for_a_far_end_that_is_away(tmp_path: Path) -> None:
    far_end, told = FakeReceiver(), []  # type: ignore[var-annotated]
    far_end.up = False
    serve(tmp_path, far_end, told, signals=2)  # within 30 s, though draining may take 60
    assert "gateway_interrupted" in told
    with closing(sqlite3.connect(tmp_path / "outbox.db")) as database:
        assert database.execute("SELECT count(*) FROM lane_sample").fetchone()[0] > 3
        assert database.execute("PRAGMA integrity_check").fetchone() == ("ok",)


def test_a_signal_before_it_has_started_ends_it(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def waits(self: Gateway) -> None:
        os.kill(os.getpid(), signal.SIGINT)
        await asyncio.Event().wait()

    monkeypatch.setattr(Gateway, "_open", waits)
    told: list[str] = []

    async def within() -> None:
        async with asyncio.timeout(20):
            await served(tmp_path, FakeReceiver(), told)

    asyncio.run(within())
    assert "gateway_started" not in told


def test_two_gateways_on_one_folder(tmp_path: Path) -> None:
    folder = tmp_path / "new"
    with run.locked(folder):
        with pytest.raises(EdgeError, match="another gateway is running") as error, run.locked(folder):
            pass
        assert "data_dir" in error.value.hint
    with run.locked(folder):
        pass


def test_root_locks_for_the_user_who_has_the_folder_and_follows_no_link(tmp_path: Path) -> None:
    folder, other = tmp_path / "data", tmp_path / "shadow"
    folder.mkdir()
    other.write_text("as it was")
    (folder / run.LOCK).symlink_to(other)
    with pytest.raises(EdgeError, match="data"), run.locked(folder):
        pass
    assert other.read_text() == "as it was"
    if os.geteuid() != 0:
        pytest.skip("only root can give files away: not tried")
    (folder / run.LOCK).unlink()
    os.chown(folder, 12_345, 12_345)
    with run.locked(folder):
        assert (folder / run.LOCK).stat().st_uid == 12_345


def test_a_folder_that_cannot_be_made_or_locked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    (tmp_path / "file").write_text("")
    with pytest.raises(EdgeError, match="file"), run.locked(tmp_path / "file" / "data"):
        pass
    import fcntl

    def refuses(*_: Any) -> None:
        raise OSError(errno.ENOLCK, "No locks available")

    monkeypatch.setattr(fcntl, "flock", refuses)
    with pytest.raises(EdgeError, match="cannot be locked: No locks available"), run.locked(tmp_path):
        pass


def test_the_log_is_one_json_line_an_event(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        log = run.logger(Log(level="warning", format="json"))
        log.info("unseen")
        try:
            raise ZeroDivisionError
        except ZeroDivisionError:
            log.exception("broken", service="x")
    finally:
        structlog.reset_defaults()
    (line,) = capsys.readouterr().err.splitlines()
    told = json.loads(line)
    assert (told["event"], told["service"], told["level"]) == ("broken", "x", "error")
    assert "ZeroDivisionError" in told["exception"]


def test_a_log_on_a_full_disk_loses_its_lines_and_ends_nothing(monkeypatch: pytest.MonkeyPatch) -> None:
    full = Path("/dev/full").open("w", buffering=1)  # noqa: SIM115
    monkeypatch.setattr("sys.stderr", full)
    try:
        log = run.logger(Log(format="json"))
        for _ in range(1_000):
            log.info("begun", device="press")
    finally:
        structlog.reset_defaults()
        with contextlib.suppress(OSError):
            full.close()


def test_text_that_goes_into_a_file_has_no_colours(capsys: pytest.CaptureFixture[str]) -> None:
    try:
        run.logger(Log(format="text")).info("begun", device="press")
    finally:
        structlog.reset_defaults()
    said = capsys.readouterr().err
    assert "device=press" in said
    assert "\x1b" not in said
