"""A real `edge-runtime receive` for tests: a child process that dies with the test run.

with receiver(tmp_path) as far_end:
    HttpsSink("site", "gw", far_end.url, ...)
    far_end.kill(); far_end.start()        # kill -9, and up again on the same port with the same file
"""

from __future__ import annotations

import ctypes
import json
import signal
import sqlite3
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

from brokers import free_port

from edge_runtime.records import Lane, Record, Stamp

END_S_MAX = 15.0
_LIBC = ctypes.CDLL(None)
STAMP = Stamp("boot", 1, 2, True)


def records(first: int, count: int, *, epoch: str = "e1", lane: Lane = Lane.RESULT, unique: str = "u-{seq}") -> list[Record]:
    """Consecutive ones; the body names the seq."""
    return [
        Record(lane, epoch, seq, "wear", STAMP, b'{"n":%d,"text":"\xc3\xa9"}' % seq, unique.format(seq=seq))
        for seq in range(first, first + count)
    ]


class ReceiverProcess:
    """`start`, `kill` and `stop` as often as you like; port and file stay."""

    def __init__(self, file: Path, *options: str, mqtt: bool = False) -> None:
        self.file = file
        self.log = file.with_suffix(".log")
        self.process: subprocess.Popen[bytes] | None = None
        self.port = free_port()
        http = [] if mqtt else ["--http", f"127.0.0.1:{self.port}"]
        self.command = [sys.executable, "-m", "edge_runtime", "receive", "--json", "--file", str(file), *http, *options]

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.port}"

    def start(self) -> dict[str, Any]:
        """Returns the ready line."""
        assert self.process is None, "it runs already"
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stdout=subprocess.PIPE, stderr=log, preexec_fn=_die_with_parent)
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        if not line:
            raise RuntimeError(f"the receiver did not start: {self.log.read_text()[-2000:]}")
        ready: dict[str, Any] = json.loads(line)
        return ready

    def kill(self) -> None:
        """kill -9"""
        if self.process is not None:
            process, self.process = self.process, None
            process.kill()
            process.communicate()

    def stop(self) -> dict[str, Any]:
        """SIGTERM. Returns the statistics that it prints."""
        assert self.process is not None
        process, self.process = self.process, None
        process.send_signal(signal.SIGTERM)
        out, _ = process.communicate(timeout=END_S_MAX)
        log = self.log.read_text()
        assert process.returncode == 0, log[-2000:]
        assert "Traceback" not in log, log[-2000:]
        statistics: dict[str, Any] = json.loads(out)
        return statistics

    def rows(self, columns: str = "epoch, lane, seq") -> list[tuple[Any, ...]]:
        return rows(self.file, columns)


def rows(file: Path, columns: str = "epoch, lane, seq") -> list[tuple[Any, ...]]:
    """Of the records, in the order in which they came."""
    database = sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)
    try:
        return database.execute(f"SELECT {columns} FROM records ORDER BY rowid").fetchall()
    finally:
        database.close()


@contextmanager
def receiver(folder: Path, *options: str, mqtt: bool = False) -> Iterator[ReceiverProcess]:
    process = ReceiverProcess(folder / "records.db", *options, mqtt=mqtt)
    process.start()
    try:
        yield process
    finally:
        process.kill()


def _die_with_parent() -> None:
    _LIBC.prctl(1, signal.SIGKILL)
