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


@pytest.mark.parametrize(
    ("privacy", "sinks", "words"),
    [
        ("cloud", "cloud: {type: https, url: http://x}", []),
        ("gateway", "cloud: {type: https, url: http://x}", ["privacy: gateway", "no sink gets its records", "data/outbox.db"]),
        ("site", "cloud: {type: https, url: http://x}", ["privacy: site", "no sink is of the site", "`reach: site`"]),
        ("site", "plant: {type: https, url: http://x, reach: site}", []),
        ("gateway", "plant: {type: https, url: http://x, reach: site}", ["no sink gets its records"]),
        ("site", "bridge: {type: mqtt, url: mqtt://x}", ["no sink is of the site"]),
    ],
)
def test_a_pipeline_that_no_sink_may_have_is_no_error_and_no_surprise(
    tmp_path: Path, capsys: pytest.CaptureFixture[str], privacy: str, sinks: str, words: list[str]
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(TEXT.replace("device: press\n", f"device: press\n    privacy: {privacy}\n") + f"sinks:\n  {sinks}\n")
    assert main(["check", str(file), "--json"]) == 0
    notices = json.loads(capsys.readouterr().out)["notices"]
    assert len(notices) == bool(words)
    assert main(["check", str(file)]) == 0
    shown = capsys.readouterr().out
    assert ("notice:" in shown) is bool(words)
    for word in words:
        assert word in notices[0]
        assert word in shown


SITE = "broker: {{mode: auto, listen: {listen}}}\nmesh: {{offers: [{offers}]}}\n"


def test_a_model_that_is_offered_and_not_there(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    text = TEXT + SITE.format(listen="127.0.0.1", offers="shuttle-anomaly, shutle-anomaly")
    (problem,) = check(tmp_path, text, capsys)
    assert "no model 'shutle-anomaly'" in problem["message"]
    assert (problem["path"], problem["hint"]) == ("mesh.offers[1]", "did you mean `shuttle-anomaly`?")
    assert text.splitlines()[int(problem["line"]) - 1].startswith("mesh:")


@pytest.mark.parametrize(
    ("listen", "words"),
    [("127.0.0.1", "of this machine only"), ("::1", "of this machine only"), ("0.0.0.0", "whoever is on that network")],
)
def test_who_gets_in_is_no_surprise(tmp_path: Path, capsys: pytest.CaptureFixture[str], listen: str, words: str) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(TEXT + SITE.format(listen=f'"{listen}"', offers="shuttle-anomaly"))
    assert main(["check", str(file)]) == 0
    shown = capsys.readouterr().out
    assert f"broker  auto: listens on {listen}, port 1883" in shown
    assert "mesh    others: mDNS; computes for them: shuttle-anomaly" in shown
    assert words in shown
