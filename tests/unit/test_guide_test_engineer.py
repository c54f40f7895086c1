"""The guide's test of a gateway of one's own: it passes as it stands there, and its log is the same in each process."""

from __future__ import annotations

import os
import re
import subprocess
import sys
from pathlib import Path

import pytest

GUIDE = Path(__file__).resolve().parents[2] / "docs" / "guide-test-engineer.md"
TELL = """
import hashlib, tempfile
from pathlib import Path
from test_my_gateway import *
log = []
with tempfile.TemporaryDirectory() as folder:
    lanes = run(lambda: scenario(Path(folder), log), seed=17)
print(hashlib.sha256(repr((lanes, log)).encode()).hexdigest())
"""


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    [block] = [each for each in re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL) if "FaultyDisk" in each]
    (tmp_path / "test_my_gateway.py").write_text(block)
    return tmp_path


def ran(folder: Path, hash_seed: str, *command: str) -> str:
    environment = {**os.environ, "PYTHONHASHSEED": hash_seed}
    done = subprocess.run(
        [sys.executable, *command], cwd=folder, env=environment, capture_output=True, text=True, timeout=60, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    return done.stdout


def test_it_passes(folder: Path) -> None:
    assert "1 passed" in ran(folder, "0", "-m", "pytest", "-q", "-p", "no:cacheprovider", "-c", os.devnull, "--rootdir", ".")


def test_its_log_is_the_same_in_every_process(folder: Path) -> None:
    assert len({ran(folder, hash_seed, "-c", TELL) for hash_seed in ("0", "1", "random")}) == 1
