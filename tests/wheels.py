"""Builds and installs wheels: what a user gets is not what a checkout shows."""

from __future__ import annotations

import email
import fcntl
import hashlib
import os
import re
import shutil
import subprocess
import sys
import zipfile
from collections.abc import Mapping, Sequence
from pathlib import Path

import pytest

ROOT = Path(__file__).resolve().parent.parent
CACHE = ROOT / ".cache"
LIMIT_S = 120
"""Of one command: a hanging one ends the test."""
DOWNLOAD_S_MAX = 500

PIP = (sys.executable, "-m", "pip")
UNMEETABLE = re.compile(r"from versions: (?!none\))|ResolutionImpossible")
"""pip has seen the index, and nothing there is what we ask for: our fault, where no answer at all is the network's."""


def build(project: Path, folder: Path) -> Path:
    """The project's wheel, built with the installed hatchling."""
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, project])
    [wheel] = folder.glob("*.whl")
    return wheel


def install(wheel: Path, *where: str | Path) -> None:
    """`where`: arguments of pip that say where to (--target DIR)."""
    run([*PIP, "install", "--quiet", "--no-deps", "--no-index", *where, wheel])


def metadata(wheel: Path) -> dict[str, list[str]]:
    """Its fields (Requires-Dist, Provides-Extra, ...), each with all its values."""
    with zipfile.ZipFile(wheel) as archive:
        [name] = [name for name in archive.namelist() if name.endswith(".dist-info/METADATA")]
        fields = email.message_from_bytes(archive.read(name))
    return {field: fields.get_all(field, []) for field in fields}


def venv(folder: Path, wheel: Path, extra: str = "") -> Path:
    """A new environment with this wheel and what it (and its extra) declares, nothing else: no pip either. Returns its bin.

    Skips the test where pip cannot reach the dependencies.
    """
    dependencies = _dependencies(wheel, extra)
    site = _empty(folder)
    run([*PIP, "--python", folder / "bin" / "python", "install", "--quiet", "--no-deps", "--no-index", wheel])
    (site / "dependencies.pth").write_text(f"{dependencies}\n")
    return folder / "bin"


def run(command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] = {}, status: int = 0) -> str:
    """Standard output (of a failure that is wanted: both); fails with both where the command ends with another status."""
    base = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env={**base, **env}, timeout=LIMIT_S, check=False)
    assert done.returncode == status, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout + done.stderr if status else done.stdout


def _empty(folder: Path) -> Path:
    """An environment without anything, not even the setuptools of `python -m venv`. Returns its site-packages."""
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    [site] = (folder / "lib").glob("python*/site-packages")
    return site


def _dependencies(wheel: Path, extra: str) -> Path:
    """A site-packages with what the wheel declares, without the wheel: made by pip, kept in .cache until a declaration changes.

    Nobody writes there again, so that two runs of the tests can share it.
    """
    kind = f"venv-{extra or 'core'}"
    declared = "\n".join([sys.version, *sorted(metadata(wheel)["Requires-Dist"])])
    kept = CACHE / f"{kind}-{hashlib.sha256(declared.encode()).hexdigest()[:12]}"
    CACHE.mkdir(exist_ok=True)
    with (CACHE / "venv.lock").open("w") as lock:
        fcntl.flock(lock, fcntl.LOCK_EX)
        if not kept.exists():
            for old in CACHE.glob(f"{kind}-*"):
                shutil.rmtree(old)
            _download(f"{wheel}[{extra}]" if extra else str(wheel), kept.with_suffix(".partial")).rename(kept)
    [site] = (kept / "lib").glob("python*/site-packages")
    return site


def _download(requirement: str, folder: Path) -> Path:
    _empty(folder)
    pip: list[str | Path] = [*PIP, "--python", folder / "bin" / "python"]
    done = subprocess.run(
        [*pip, "install", "--quiet", requirement], capture_output=True, text=True, timeout=DOWNLOAD_S_MAX, check=False
    )
    assert not UNMEETABLE.search(done.stderr), f"{requirement}: no such dependencies\n{done.stderr}"
    if done.returncode:
        pytest.skip(f"wheel NOT TESTED: pip cannot install its dependencies here: {done.stderr[-300:]}")
    run([*pip, "check"])
    run([*pip, "uninstall", "--quiet", "--yes", "edge-runtime"])
    return folder
