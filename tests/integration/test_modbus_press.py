"""The simulated press, as its own process."""

from __future__ import annotations

import asyncio
import json
import os
import signal
import subprocess
import sys
import time
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest

from edge_adapters.modbus import Modbus
from edge_runtime.testing.adapter import build

FEATURES = [f"x{n}" for n in range(9)]
POINTS = [
    *({"name": name, "address": 2 * n, "type": "float32"} for n, name in enumerate(FEATURES)),
    {"name": "row", "address": 18, "type": "uint32"},
    {"name": "label", "address": 20},
]
ROWS = 50


def write_csv(folder: Path) -> Path:
    """Row r holds r + 0.5 in all features, and its label is r % 2."""
    path = folder / "rows.csv"
    lines = [",".join([str(r + 0.5)] * len(FEATURES) + [str(r % 2)]) for r in range(ROWS)]
    path.write_text("\n".join([",".join([*FEATURES, "label"]), *lines]) + "\n")
    return path


@contextmanager
def press(folder: Path, rows_per_s: float) -> Iterator[tuple[subprocess.Popen[str], int]]:
    command = [
        sys.executable,
        "-m",
        "edge_runtime.testing.press",
        "--csv",
        str(write_csv(folder)),
        "--rows-per-s",
        str(rows_per_s),
    ]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield process, json.loads(process.stdout.readline())["port"]
        finally:
            process.kill()


def test_a_read_never_sees_half_of_a_row(tmp_path: Path) -> None:
    async def main(port: int) -> list[int]:
        adapter = build(Modbus, {"host": "127.0.0.1", "port": port}, POINTS)
        await adapter.open()
        seen = []
        for _ in range(500):
            (sample,) = await adapter.read()
            *features, row, label = sample.values
            assert isinstance(row, int)
            r = (row - 1) % ROWS if row else 0
            assert features == [r + 0.5] * len(FEATURES)
            assert label == r % 2
            seen.append(row)
        await adapter.close()
        return seen

    with press(tmp_path, rows_per_s=0) as (process, port):
        seen = asyncio.run(main(port))
        assert seen == sorted(seen)
        assert seen[-1] - seen[0] > ROWS  # it was a fast replay, over the end of the file
        process.terminate()
        assert process.wait(timeout=10) == 0


def test_it_dies_with_who_started_it(tmp_path: Path) -> None:
    starter = (
        "import subprocess, sys, time\n"
        f"p = subprocess.Popen([sys.executable, '-m', 'edge_runtime.testing.press', '--csv', {str(write_csv(tmp_path))!r}])\n"
        "print(p.pid, flush=True); time.sleep(60)"
    )
    with subprocess.Popen([sys.executable, "-c", starter], stdout=subprocess.PIPE, text=True) as parent:
        assert parent.stdout
        lines = [parent.stdout.readline(), parent.stdout.readline()]  # the pid, and the press is up
        pid = next(int(line) for line in lines if not line.startswith("{"))
        parent.send_signal(signal.SIGKILL)
    until = time.monotonic() + 10
    while Path(f"/proc/{pid}/cmdline").exists() and b"press" in Path(f"/proc/{pid}/cmdline").read_bytes():
        if time.monotonic() > until:
            os.kill(pid, signal.SIGKILL)
            pytest.fail("the press outlives its parent")
        time.sleep(0.01)


def test_a_file_of_another_form_is_refused(tmp_path: Path) -> None:
    path = tmp_path / "rows.csv"
    path.write_text("a,b\n1,2\n")
    done = subprocess.run(
        [sys.executable, "-m", "edge_runtime.testing.press", "--csv", str(path)], capture_output=True, text=True, check=False
    )
    assert done.returncode == 1
    assert "9 columns" in done.stderr
