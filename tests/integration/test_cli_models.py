"""edge-runtime models, as a person calls it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.inference import store

NAME = "shuttle-anomaly"


@pytest.fixture
def own(tmp_path: Path) -> Path:
    """A folder with one model, `own`, that can run, and one, `wrong`, whose manifest has two mistakes."""
    for name in ("own", "wrong"):
        shutil.copytree(store.find(NAME, []), tmp_path / name)
    manifest = tmp_path / "wrong" / store.MANIFEST
    manifest.write_text(manifest.read_text().replace("tolerance:", "colour: blue\ntolerence:"))
    return tmp_path


def _models(*words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_runtime", "models", *map(str, words)]
    return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)


def _json(*words: str | Path) -> Any:
    return json.loads(_models(*words, "--json").stdout)


def test_the_shipped_models_are_listed(tmp_path: Path) -> None:
    done = _models("--dir", tmp_path)
    assert done.returncode == 0, done.stderr
    header, line = done.stdout.splitlines()
    assert header.split() == ["name", "version", "window", "folder", "summary"]
    assert line.split()[:5] == [NAME, "1.0.0", "1", "x", "9"]


def test_those_of_a_folder_too_and_what_is_wrong_with_one(own: Path) -> None:
    done = _models("--dir", own)
    assert done.returncode == 1
    assert [line.split()[0] for line in done.stdout.splitlines()] == ["name", "own", NAME, "wrong"]
    assert "broken: " in done.stdout
    good, _, bad = _json("--dir", own)
    assert (good["error"], good["folder"], good["version"]) == (None, str(own / "own"), "1.0.0")
    assert "fp32.onnx" in good["artefacts"]
    assert "colour: unknown key" in bad["error"]
    assert "tolerence: unknown key" in bad["error"]


def test_a_model_is_tried_in_every_way() -> None:
    done = _models(NAME)
    assert done.returncode == 0, done.stderr
    title, header, *ways, taken = done.stdout.splitlines()
    assert title == f"{NAME} 1.0.0"
    assert header.split()[:3] == ["file", "engine", "accelerator"]
    assert len(ways) == 7
    assert all(way.endswith(" works") for way in ways)
    assert taken.startswith("taken: fp32.")
    assert "threshold 1.106" in taken


def test_a_path_with_what_was_refused_and_why(own: Path) -> None:
    """Another threshold in one artefact: its known answers are decided wrongly."""
    manifest = own / "own" / store.MANIFEST
    manifest.write_text(manifest.read_text().replace("threshold: 1.69\n", "threshold: 1000.0\n"))
    shown = _json(own / "own")
    refused = [trial for trial in shown["trials"] if not trial["works"]]
    assert {trial["file"] for trial in refused} == {"int8.tflite"}
    assert all("is decided 0, not 1" in trial["reason"] for trial in refused)
    fast = [trial for trial in shown["trials"] if trial["file"] == shown["taken"]["file"]]
    assert min(trial["p50_ns"] for trial in fast) > 0
    assert (shown["name"], shown["version"]) == (NAME, "1.0.0")
    assert "is decided 0, not 1" in _models(own / "own").stdout


@pytest.mark.parametrize(
    ("words", "error"),
    [
        (["schuttle"], "error: no model 'schuttle'"),
        (["--dir", "nowhere"], "error: nowhere: there is no such folder"),
        ([NAME, "--accelerator", "abacus"], "error: unknown accelerator 'abacus'"),
    ],
)
def test_what_cannot_be_opened_is_an_error_with_a_hint(words: list[str], error: str) -> None:
    done = _models(*words)
    assert (done.returncode, done.stdout) == (1, "")
    assert error in done.stderr
    assert "\nhint: " in done.stderr
