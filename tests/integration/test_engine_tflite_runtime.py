"""The suite of test_engine_tflite.py over tflite-runtime, in an environment of its own: it needs numpy 1 and Python 3.11 at most.

The environment is made on demand in .cache/venv-tflite and kept.
"""

from __future__ import annotations

import os
import shutil
import subprocess
import sys
from pathlib import Path

import pytest

REPOSITORY = Path(__file__).resolve().parents[2]
ENVIRONMENT = REPOSITORY / ".cache" / "venv-tflite"
PACKAGES = ["tflite-runtime==2.14.0", "numpy<2", "pydantic", "msgspec", "pyyaml", "structlog", "pytest"]
READY = ENVIRONMENT / "ready.txt"
"""Written last, so that an installation that was cut off is done again."""

pytestmark = [pytest.mark.slow, pytest.mark.timeout(600)]


@pytest.fixture(scope="module")
def python() -> Path:
    if sys.version_info >= (3, 12):
        pytest.skip("tflite-runtime NOT TESTED: it has no wheel for Python 3.12 and newer")
    if not READY.exists() or READY.read_text().splitlines() != PACKAGES:
        shutil.rmtree(ENVIRONMENT, ignore_errors=True)
        subprocess.run([sys.executable, "-m", "venv", str(ENVIRONMENT)], check=True, timeout=120)
        pip = [str(ENVIRONMENT / "bin" / "python"), "-m", "pip", "install", "-q", *PACKAGES]
        done = subprocess.run(pip, capture_output=True, text=True, timeout=500, check=False)
        if done.returncode:
            pytest.skip(f"tflite-runtime NOT TESTED: pip cannot install it here: {done.stderr[-300:]}")
        READY.write_text("\n".join(PACKAGES))
    return ENVIRONMENT / "bin" / "python"


def test_the_engine_suite_passes_with_tflite_runtime(python: Path) -> None:
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY), "EDGE_TEST_TFLITE_LIBRARY": "tflite-runtime"}
    command = ["-m", "pytest", "-q", "--noconftest", "-c", os.devnull, "--rootdir", str(REPOSITORY), "-p", "no:cacheprovider"]
    suite = str(REPOSITORY / "tests" / "integration" / "test_engine_tflite.py")
    done = subprocess.run(
        [str(python), *command, suite], capture_output=True, text=True, env=environment, cwd=REPOSITORY, timeout=300, check=False
    )
    assert done.returncode == 0, done.stdout + done.stderr
    assert " passed" in done.stdout
    assert "skipped" not in done.stdout


def test_with_numpy_2_it_is_refused_and_the_reason_named(python: Path, tmp_path: Path) -> None:
    # A numpy that calls itself 2 in front of the real one: our refusal must come before the library's crash.
    code = (
        "import numpy; numpy.__version__ = '2.1.0'\n"
        "from edge_runtime.inference.engine_tflite import TfliteEngine\n"
        "print(TfliteEngine().probe('cpu').reason)"
    )
    environment = {**os.environ, "PYTHONPATH": str(REPOSITORY)}
    done = subprocess.run(
        [str(python), "-c", code], capture_output=True, text=True, env=environment, cwd=tmp_path, timeout=60, check=True
    )
    assert "does not work with numpy 2.1.0" in done.stdout
    assert "numpy<2" in done.stdout
