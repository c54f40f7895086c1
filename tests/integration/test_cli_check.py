"""`edge-runtime check` looks at the models too: what `run` would only say in its log is an error here, with line and hint."""

from __future__ import annotations

import json
import shutil
from pathlib import Path

import pytest

from edge_runtime.cli import main
from edge_runtime.inference import store

POINTS = ", ".join(f"{{name: f{n}, number: {40001 + 2 * n}, type: float32}}" for n in range(1, 10))
TEXT = f"""
site: s
gateway: g
devices:
  press: {{adapter: modbus, options: {{host: 127.0.0.1}}, points: [{POINTS}]}}
pipelines:
  anomaly:
    device: press
    window: {{count: 1}}
    model: shuttle-anomaly
    rules: [{{name: odd, output: score, above: model}}]
"""


def check(tmp_path: Path, text: str, capsys: pytest.CaptureFixture[str]) -> list[dict[str, str]]:
    file = tmp_path / "gateway.yaml"
    file.write_text(text)
    status = main(["check", str(file), "--json"])
    told = json.loads(capsys.readouterr().out)
    assert status == (0 if told["valid"] else 1)
    return list(told["problems"])


def test_a_model_that_fits(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert check(tmp_path, TEXT, capsys) == []


@pytest.mark.parametrize(
    ("right", "wrong", "cause", "hint"),
    [
        ("model: shuttle-anomaly", "model: shutle-anomaly", "no model 'shutle-anomaly'", "did you mean `shuttle-anomaly`?"),
        ("output: score", "output: scor", "rule odd is on output scor", "did you mean `score`?"),
        ("count: 1", "count: 3", "takes windows of 1 samples", "set pipelines.anomaly.window.count to 1"),
        ("name: f9", "name: g9", "takes points that device press does not declare: f9", "pipelines.anomaly.points"),
    ],
)
def test_a_model_that_does_not(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], right: str, wrong: str, cause: str, hint: str
) -> None:
    text = TEXT.replace(right, wrong)
    (problem,) = check(tmp_path, text, capsys)
    assert cause in problem["message"]
    assert hint in problem["hint"]
    assert problem["path"] == "pipelines.anomaly.model"
    assert text.splitlines()[int(problem["line"]) - 1].strip().startswith("model:")


def test_a_damaged_model_beside_the_configuration(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    folder = tmp_path / "models" / "mine"
    shutil.copytree(store.find("shuttle-anomaly", []), folder)
    manifest = folder / "manifest.yaml"
    manifest.write_text(manifest.read_text().replace("name: shuttle-anomaly", "name: mine"))
    (folder / "fp32.tflite").write_bytes(b"rubbish")
    (problem,) = check(tmp_path, TEXT.replace("model: shuttle-anomaly", "model: mine"), capsys)
    assert "fp32.tflite" in problem["message"]
    assert problem["hint"]
