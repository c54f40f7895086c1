"""`edge-runtime demo` as a person runs it: real press, broker, uplink, receiver. It ends by itself, by Ctrl-C, or is killed."""

from __future__ import annotations

import contextlib
import json
import os
import pty
import re
import signal
import sqlite3
import subprocess
import sys
import time
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Any

import psutil
import pytest
import wheels

from edge_runtime.cli.demo import SECONDS_MIN

LIMIT_S = 60.0
PROGRAM = (sys.executable, "-m", "edge_runtime")
SHORT = f"{SECONDS_MIN:g}"


class Demo:
    """One run in a session of its own; `lines` are what it says as JSON (`form`)."""

    def __init__(self, folder: Path, *words: str, program: Sequence[str | Path] = PROGRAM, form: str = "--json") -> None:
        command = [*program, "demo", form, *words]
        env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH" or program is PROGRAM}
        env["TMPDIR"] = str(folder)
        self.process = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True, env=env
        )
        self.lines: list[dict[str, Any]] = []
        self._family: dict[int, psutil.Process] = {}

    def until(self, condition: Callable[[dict[str, Any]], bool]) -> dict[str, Any]:
        """Reads on, up to the line that is meant."""
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(json.loads(line))
            self._meet()
            if condition(self.lines[-1]):
                return self.lines[-1]
        raise AssertionError(f"it ended before: {self.end()}")

    def end(self) -> tuple[int, str]:
        """Waits. Returns its status and what it said on standard error; asserts that nobody is left behind."""
        out, err = self.process.communicate(timeout=LIMIT_S)
        self.lines += [json.loads(line) for line in out.splitlines() if line.startswith("{")]
        _, alive = psutil.wait_procs(self._family.values(), timeout=10)
        assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
        return self.process.returncode, err

    def child(self, *words: str) -> psutil.Process:
        """Whose command line holds one of the words."""
        self._meet()
        [found] = [each for each in self._family.values() if any(word in " ".join(each.cmdline()) for word in words)]
        return found

    def ctrl_c(self) -> None:
        """As a terminal does it: everybody in the group hears it."""
        self._meet()
        os.killpg(self.process.pid, signal.SIGINT)

    def _meet(self) -> None:
        with contextlib.suppress(psutil.NoSuchProcess):
            self._family |= {each.pid: each for each in psutil.Process(self.process.pid).children(recursive=True)}


@pytest.fixture
def demo(tmp_path: Path) -> Iterator[Callable[..., Demo]]:
    started: list[Demo] = []

    def start(*words: str, folder: Path = tmp_path, program: Sequence[str | Path] = PROGRAM, form: str = "--json") -> Demo:
        started.append(Demo(folder, *words, program=program, form=form))
        return started[-1]

    yield start
    for each in started:
        with contextlib.suppress(ProcessLookupError):
            each.process.kill()
        each.process.communicate()


def _works(line: dict[str, Any]) -> bool:
    return bool(line["results_per_s"] and line["sinks"][0]["delivered"])


def test_a_record_that_is_gone_is_noticed(demo: Callable[..., Demo], tmp_path: Path) -> None:
    """The broken promise: one record is taken away from the receiver's file behind everybody's back."""
    kept = tmp_path / "kept"
    run = demo("--keep", str(kept))
    run.until(_works)
    ledger = sqlite3.connect(kept / "records.db", timeout=LIMIT_S, isolation_level=None)
    ledger.execute("DELETE FROM records WHERE rowid = (SELECT min(rowid) FROM records)")
    ledger.close()
    run.ctrl_c()
    status, err = run.end()
    assert status == 1
    account = run.lines[-1]
    assert account["lost"] == 1
    assert account["problems"] == [f"1 of {account['accepted']} accepted records are not at the receiver"]
    assert f"files: {kept}" in err
    assert {"gateway.yaml", "gateway.log", "records.db", "data"} <= {file.name for file in kept.iterdir()}


def test_who_stops_it_before_the_outage_gets_a_clean_account(demo: Callable[..., Demo]) -> None:
    run = demo("--seconds", "600")
    run.until(_works)
    run.ctrl_c()
    assert run.end()[0] == 0, run.lines[-1]
    assert run.lines[-1]["problems"] == []


def test_a_process_that_ends_by_itself_ends_the_demo(demo: Callable[..., Demo]) -> None:
    """Three at once: each run takes its own ports."""
    victims = {
        ("testing.press",): "error: the press was killed by signal 9",
        ("edge_runtime receive",): "error: the receiver was killed by signal 9",
        ("mosquitto.conf", "bus.host"): "error: the local broker went away",
    }
    runs = {words: demo() for words in victims}
    for run in runs.values():
        run.until(_works)
    for words, run in runs.items():
        run.child(*words).kill()
    for words, run in runs.items():
        status, err = run.end()
        assert status == 1
        assert victims[words] in err
        assert "hint: see " in err
        assert "files: " in err
        assert "Traceback" not in err


def test_ctrl_c_heals_the_uplink_drains_and_accounts(demo: Callable[..., Demo], tmp_path: Path) -> None:
    run = demo("--seconds", "7", "--keep", str(tmp_path / "kept"))
    run.until(lambda line: line["uplink"] == "cut" and sum(line["sinks"][0]["waiting"].values()) > 0)
    run.ctrl_c()
    assert run.end() == (0, f"files: {tmp_path}/kept\n")
    assert "broker_died" not in (tmp_path / "kept" / "gateway.log").read_text(), "the broker heard the Ctrl-C, too"
    account = run.lines[-1]
    assert account["problems"] == []
    assert account["accepted"] == account["delivered"] > 0


def test_ctrl_c_in_the_moment_of_the_cut_gets_a_clean_account(demo: Callable[..., Demo]) -> None:
    """The gateway could not notice it yet: nothing is wrong with what was delivered."""
    run = demo("--seconds", "7", form="--plain")
    assert run.process.stdout is not None
    assert any("CUT" in line for line in run.process.stdout)
    run.ctrl_c()
    assert run.end() == (0, "")


def test_ctrl_c_while_it_starts_ends_it_at_once(demo: Callable[..., Demo]) -> None:
    run = demo()
    started = psutil.Process(run.process.pid)
    deadline = time.monotonic() + LIMIT_S
    while not started.children() and time.monotonic() < deadline:
        time.sleep(0.02)
    run.ctrl_c()
    status, err = run.end()
    assert status == 130
    assert "Traceback" not in err


@pytest.mark.parametrize(
    "numbers", [(signal.SIGINT,), (signal.SIGTERM,), (signal.SIGHUP,), (signal.SIGINT, signal.SIGTERM, signal.SIGINT)]
)
def test_whoever_ends_it_early_finds_no_files_of_it(
    numbers: Sequence[signal.Signals], demo: Callable[..., Demo], tmp_path: Path
) -> None:
    """From the instant at which there are some."""
    others = tmp_path / "edge-runtime-demo-of-another"
    others.mkdir()
    for at_s in (0.0, 0.1, 0.5, 1.5):
        run = demo()
        deadline = time.monotonic() + LIMIT_S
        while len(list(tmp_path.iterdir())) == 1 and time.monotonic() < deadline:
            time.sleep(0.002)
        time.sleep(at_s)
        for number in numbers:
            run.process.send_signal(number)
            time.sleep(0.01)
        status, err = run.end()
        assert status in (0, 130, *(-each for each in numbers)), err
        assert "Traceback" not in err
        assert list(tmp_path.iterdir()) == [others], at_s


def test_killed_it_leaves_nobody_behind(demo: Callable[..., Demo]) -> None:
    run = demo()
    run.until(_works)
    for process in ("testing.press", "testing.relay", "edge_runtime receive"):
        assert run.child(process).is_running()
    run.process.kill()
    assert run.end()[0] == -signal.SIGKILL


def test_it_refuses_a_folder_with_something_in_it(demo: Callable[..., Demo], tmp_path: Path) -> None:
    (tmp_path / "old").mkdir()
    (tmp_path / "old" / "records.db").touch()
    status, err = demo("--keep", str(tmp_path / "old")).end()
    assert status == 1
    assert f"error: {tmp_path}/old is not empty" in err


def test_an_installed_wheel_shows_it_to_programs_and_people(demo: Callable[..., Demo], tmp_path: Path) -> None:
    """Two runs at once: one gives JSON to a pipe, one the view to a terminal. Both are clean, and leave nothing behind."""
    dist, files = tmp_path / "dist", tmp_path / "files"
    files.mkdir()
    program = wheels.venv(dist / "venv", wheels.build(wheels.ROOT, dist), "demo") / "edge-runtime"
    run = demo("--seconds", SHORT, program=[program], folder=files)
    _check_view(_on_a_terminal([program, "demo", "--seconds", SHORT], files))
    assert run.end() == (0, "")
    _check_json(run.lines)
    assert list(files.iterdir()) == []


def _on_a_terminal(command: Sequence[str | Path], folder: Path) -> str:
    """What it shows there, without the colours. It ends with status 0."""
    near, far = pty.openpty()
    env = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    env |= {"TERM": "xterm", "COLUMNS": "80", "LINES": "24", "TMPDIR": str(folder)}
    process = subprocess.Popen(command, stdin=far, stdout=far, stderr=far, cwd=folder, env=env, start_new_session=True)
    os.close(far)
    said = b""
    with contextlib.suppress(OSError):  # EIO: nobody holds the other end any more
        while chunk := os.read(near, 65_536):
            said += chunk
    os.close(near)
    assert process.wait(LIMIT_S) == 0, said.decode()
    return re.sub(r"\x1b\[[0-9;?]*[A-Za-z]", "", said.decode())


def _check_view(shown: str) -> None:
    for part in ("uplink CUT", "uplink up", "to the broker only", "clean: every accepted record is at the receiver exactly once"):
        assert part in shown


def _check_json(lines: list[dict[str, Any]]) -> None:
    *progress, account = lines
    assert {line["type"] for line in progress} == {"progress"}
    cut = [line for line in progress if line["uplink"] == "cut"]
    assert cut[-1]["results_per_s"] > 0, "the gateway stopped working when the uplink went away"
    assert account["type"] == "account"
    assert account["problems"] == []
    assert (account["lost"], account["duplicates"], account["waiting"], account["outages"]) == (0, 0, 0, 1)
    assert account["accepted"] == account["delivered"] == sum(account["by_lane"].values())
    assert account["by_lane"]["result"] > 20
    assert account["waited_max"] > 0
    found = account["anomalies"]
    assert found["rows"] > 20
    assert found["true"] >= found["missed"] + found["false"], "the model finds less than it should"
    assert account["latency"]["p50_ms"] > 0
    assert {sink["name"]: sink["confirms"] for sink in progress[-1]["sinks"]} == {"cloud": True, "local": False}
