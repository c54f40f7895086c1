"""Builds and installs wheels without a network: what a user gets is not what a checkout shows."""

from __future__ import annotations

import os
import subprocess
import sys
from collections.abc import Mapping, Sequence
from pathlib import Path

ROOT = Path(__file__).resolve().parent.parent
LIMIT_S = 120
"""Of one command: a hanging one ends the test."""


def build(project: Path, folder: Path) -> Path:
    """The project's wheel, built with the installed hatchling."""
    run([sys.executable, "-m", "build", "--wheel", "--no-isolation", "--outdir", folder, project])
    [wheel] = folder.glob("*.whl")
    return wheel


def install(wheel: Path, *where: str | Path) -> None:
    """`where`: arguments of pip that say where to (--target DIR)."""
    run([sys.executable, "-m", "pip", "install", "--quiet", "--no-deps", "--no-index", *where, wheel])


def venv(folder: Path, wheel: Path) -> Path:
    """A new environment with this wheel; its dependencies are those of the environment that runs the tests. Returns its bin."""
    run([sys.executable, "-m", "venv", "--without-pip", folder])
    python = folder / "bin" / "python"
    run([sys.executable, "-m", "pip", "--python", python, "install", "--quiet", "--no-deps", "--no-index", wheel])
    [site] = (folder / "lib").glob("python*/site-packages")
    dependencies = [path for path in sys.path if path.endswith("site-packages")]
    # A .pth inside these folders (an editable install of ours) is not followed: that is what makes the environment clean.
    (site / "dependencies.pth").write_text("\n".join(dependencies) + "\n")
    return folder / "bin"


def run(command: Sequence[str | Path], *, cwd: Path | None = None, env: Mapping[str, str] = {}) -> str:
    """Standard output; fails with both outputs where the command fails."""
    base = {name: value for name, value in os.environ.items() if name != "PYTHONPATH"}
    done = subprocess.run(command, capture_output=True, text=True, cwd=cwd, env=base | env, timeout=LIMIT_S, check=False)
    assert done.returncode == 0, f"{command}: {done.returncode}\n{done.stdout}\n{done.stderr}"
    return done.stdout
