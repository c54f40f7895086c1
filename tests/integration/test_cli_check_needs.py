"""`edge-runtime check` warns of what a configuration needs and is not here; it stays valid: another machine may run it."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from test_engine_model import edit

from edge_adapters.modbus import Modbus
from edge_runtime.bus import programs
from edge_runtime.cli import main
from edge_runtime.inference import engine, store
from edge_runtime.inference.model import engines

POINTS = ", ".join(f"{{name: f{n}, number: {40001 + 2 * n}, type: float32}}" for n in range(1, 10))
TEXT = f"""
site: s
gateway: g
devices:
  press: {{adapter: modbus, options: {{host: 127.0.0.1}}, points: [{POINTS}]}}
  other: {{adapter: modbus, options: {{host: 127.0.0.2}}, points: [{{name: a, address: 0}}]}}
pipelines:
  anomaly: {{device: press, window: {{count: 1}}, model: shuttle-anomaly}}
  rest: {{device: other}}
"""
SERIAL = "options: {serial: /dev/ttyS0}"
LITERT, OPENVINO = "pip install 'edge-runtime[litert]'", "pip install 'edge-runtime[openvino]'"
TFLITE = ("ai_edge_litert", "tflite_runtime")


@pytest.fixture
def check(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> Any:
    def told(text: str, *without: str) -> list[dict[str, Any]]:
        for name in without:
            monkeypatch.setitem(sys.modules, name, None)
        file = tmp_path / "gateway.yaml"
        file.write_text(text)
        assert main(["check", str(file), "--json"]) == 0
        said = json.loads(capsys.readouterr().out)
        assert (said["valid"], said["problems"]) == (True, [])
        assert all(warning["file"] == str(file) for warning in said["warnings"])
        return [{key: warning[key] for key in ("line", "path", "message", "value", "hint")} for warning in said["warnings"]]

    return told


def test_nothing_is_missing(check: Any) -> None:
    assert check(TEXT) == []


def test_a_window_that_holds_values_and_may_have_none(check: Any) -> None:
    window = "window: {count: 1, bad: hold}"
    [warning] = check(TEXT.replace("window: {count: 1}", window))
    assert (warning["path"], warning["value"]) == ("pipelines.anomaly.window.bad", "hold")
    assert "is discarded" in warning["message"]
    assert warning["hint"].startswith("set filled_max")
    assert check(TEXT.replace("window: {count: 1}", window.replace("}", ", filled_max: 1}"))) == []


def test_a_device_that_no_pipeline_takes(check: Any) -> None:
    [warning] = check(TEXT.replace("rest: {device: other}", "rest: {device: press}"))
    assert (warning["line"], warning["path"]) == (6, "devices.other")
    assert warning["message"] == "no pipeline takes it: it is neither read nor written"
    assert warning["hint"] == "add a pipeline with `device: other`"


@pytest.mark.parametrize(
    ("declared", "place", "value", "words"),
    [
        ("write: {low: -5, high: 65535}", "low", -5, "it does not fit into uint16"),
        ("type: int16, scale: 0.1, write: {low: 0, high: 4000}", "high", 4000, "it does not fit into int16"),
        ("type: float32, write: {low: 0, high: 1e39}", "high", 1e39, "it does not fit into float32"),
        ("sentinels: [5], write: {allowed: [4, 5]}", "allowed[1]", 5, "says for 'no value'"),
        ("type: string, length: 4, write: {allowed: [AUTO, MANUAL]}", "allowed[1]", "MANUAL", "has 6 bytes, the point 4"),
    ],
)
def test_what_may_be_written_and_fits_into_no_register(check: Any, declared: str, place: str, value: object, words: str) -> None:
    [warning] = check(TEXT.replace("points: [", f"points: [{{name: wish, number: 40101, {declared}}}, ", 1))
    assert (warning["line"], warning["path"]) == (5, f"devices.press.points[0].write.{place}")
    assert warning["value"] == value
    assert words in warning["message"]
    assert warning["hint"]


def test_limits_that_fit_are_no_doubt_though_a_value_between_may_be_none(check: Any) -> None:
    for declared in (
        "sentinels: [65535], write: {low: 0, high: 65535}",
        "scale: 0.1, write: {low: 0.04, high: 20.04}",
        "type: uint64, write: {low: 0, high: 1e19}",
        "type: bool, bit: 3, write: {allowed: [true, false]}",
    ):
        assert check(TEXT.replace("points: [", f"points: [{{name: wish, number: 40101, {declared}}}, ", 1)) == [], declared


def test_the_library_of_an_adapter_once_for_all_its_devices(check: Any) -> None:
    [warning] = check(TEXT, "pymodbus", "serial")
    assert warning == {
        "line": 5,
        "path": "devices.press.adapter",
        "message": "adapter modbus needs pymodbus, which is not installed here",
        "value": "modbus",
        "hint": "pip install 'edge-runtime[modbus]'",
    }


def test_a_serial_line_needs_one_more(check: Any) -> None:
    [warning] = check(TEXT.replace("options: {host: 127.0.0.2}", SERIAL), "serial")
    assert (warning["line"], warning["path"]) == (6, "devices.other.adapter")
    assert "needs serial" in warning["message"]


def test_an_adapter_that_names_nothing_gets_no_warning(check: Any) -> None:
    device = "{adapter: replay, options: {file: a.csv}, points: [{name: a, column: a}]}"
    text = f"site: s\ngateway: g\ndevices: {{r: {device}}}\npipelines: {{p: {{device: r}}}}\n"
    assert check(text, "pymodbus", *TFLITE, "openvino", "zeroconf", "iotcore") == []


def test_a_submodule_imports_no_parent(check: Any, monkeypatch: pytest.MonkeyPatch) -> None:
    needs = {"not_there.at_all": "pip install not-there", "wave.nothing": ""}
    monkeypatch.delitem(sys.modules, "wave", raising=False)
    monkeypatch.setattr(Modbus, "needs", classmethod(lambda _cls, _options: needs))
    [warning] = check(TEXT)
    assert (warning["hint"], "wave" in sys.modules) == ("pip install not-there", False)


@pytest.mark.parametrize(
    ("chosen", "without", "hint"),
    [
        ("auto", (*TFLITE, "openvino"), f"{LITERT} or {OPENVINO}"),
        ("auto", TFLITE, ""),
        ("auto", ("openvino",), ""),
        ("tflite", TFLITE, LITERT),
        ("tflite", ("openvino",), ""),
        ("openvino", ("openvino",), OPENVINO),
    ],
)
def test_an_engine(check: Any, chosen: str, without: tuple[str, ...], hint: str) -> None:
    told = check(TEXT.replace("model: shuttle", f"engine: {chosen}, model: shuttle"), *without)
    assert [warning["hint"] for warning in told] == ([hint] if hint else [])
    for warning in told:
        assert (warning["line"], warning["path"], warning["value"]) == (8, "pipelines.anomaly.model", "shuttle-anomaly")
        assert "model shuttle-anomaly needs the engine" in warning["message"]


def test_the_model_that_is_only_offered(check: Any) -> None:
    text = "site: s\ngateway: g\nbroker: {mode: external}\nmesh: {discovery: off, offers: [shuttle-anomaly]}\n"
    [warning] = check(text, *TFLITE, "openvino")
    assert (warning["line"], warning["path"]) == (4, "mesh.offers[0]")


@pytest.mark.parametrize(
    ("mesh", "path"), [("mesh: {}", "mesh"), ("mesh: {discovery: off}", ""), ("control: {groups: [a]}", "")], ids=str
)
def test_mdns(check: Any, mesh: str, path: str) -> None:
    told = check(f"{TEXT}broker: {{mode: external}}\n{mesh}\n", "zeroconf")
    assert [warning["path"] for warning in told] == ([path] if path else [])
    assert all(warning["hint"].startswith("pip install 'edge-runtime[mesh]'") for warning in told)


@pytest.mark.parametrize(
    ("settings", "hint"),
    [
        ("broker: {mode: hosted}", "apt-get install mosquitto or pip install 'edge-runtime[broker]'"),
        ("broker: {mode: hosted, program: iotcore}", "pip install 'edge-runtime[broker]'"),
        ("broker: {mode: hosted}\nsite_dir: identity", "apt-get install mosquitto"),
        ("broker: {mode: auto}\nmesh: {}", "apt-get install mosquitto or pip install 'edge-runtime[broker]'"),
        ("broker: {mode: auto}\nmesh: {may_host: false}", ""),
        ("broker: {mode: external}", ""),
    ],
)
def test_a_broker_to_start(check: Any, monkeypatch: pytest.MonkeyPatch, tmp_path: Path, settings: str, hint: str) -> None:
    monkeypatch.setattr(programs, "PLACES", str(tmp_path))
    monkeypatch.setenv("PATH", str(tmp_path))
    told = check(f"{TEXT}{settings}\n", "iotcore")
    assert [warning["hint"] for warning in told] == ([hint] if hint else [])
    assert all(warning["path"] == "broker.mode" for warning in told)


def test_all_of_it_in_the_order_of_the_lines_and_for_people(
    check: Any, tmp_path: Path, capsys: pytest.CaptureFixture[str]
) -> None:
    told = check(f"{TEXT}broker: {{mode: external}}\nmesh: {{}}\n", "pymodbus", *TFLITE, "openvino", "zeroconf")
    assert [warning["path"] for warning in told] == ["devices.press.adapter", "pipelines.anomaly.model", "mesh"]
    file = tmp_path / "gateway.yaml"
    assert main(["check", str(file)]) == 0
    shown = capsys.readouterr().out
    assert "valid: gateway g" in shown
    assert f"warning: {file}:5: devices.press.adapter: adapter modbus needs pymodbus" in shown
    assert "    hint: pip install 'edge-runtime[modbus]'" in shown


def test_an_engine_that_loads_none_of_its_files_is_an_error(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """On every machine, whatever is installed."""
    folder = tmp_path / "models" / "mine"
    shutil.copytree(store.find("shuttle-anomaly", []), folder)
    edit(folder, lambda data: data.update(artefacts=[a for a in data["artefacts"] if ".xml" in a["file"]]))
    file = tmp_path / "gateway.yaml"
    file.write_text(TEXT.replace("model: shuttle-anomaly", f"engine: tflite, model: {folder}"))
    assert main(["check", str(file), "--json"]) == 1
    [problem] = json.loads(capsys.readouterr().out)["problems"]
    assert (problem["line"], problem["path"]) == (8, "pipelines.anomaly.model")
    assert "no artefact for this engine (.tflite), only fp32.xml, int8.xml" in problem["message"]
    assert "`engine: auto`" in problem["hint"]


def test_nothing_that_is_an_extra_is_imported(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(f"{TEXT}broker: {{mode: auto}}\nmesh: {{}}\n")
    extras = ("pymodbus", "serial", "ai_edge_litert", "tflite_runtime", "openvino", "zeroconf", "iotcore", "paho", "cryptography")
    code = (
        f"import sys; from edge_runtime.cli import main; status = main(['check', {str(file)!r}, '--json'])\n"
        f"print([name for name in {extras} if name in sys.modules], status)"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout.splitlines()[-1] == "[] 0"


def test_what_the_engines_name_is_what_they_import() -> None:
    """Each says that it is not installed as soon as what it names is blocked, and only then."""
    code = """
import sys
from edge_runtime.inference.model import engines
for engine in engines():
    before = engine.probe("cpu").works
    sys.modules.update(dict.fromkeys(engine.libraries))
    for name in [name for name in sys.modules if name.partition(".")[0] in engine.libraries]:
        sys.modules[name] = None
    print(before, engine.probe("cpu").reason.endswith(f"not installed ({engine.install})"))
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert [line.split()[1] for line in done.stdout.splitlines() if line.startswith(("True", "False"))] == ["True", "True"]
    assert all(engine.is_installed(one) for one in engines())
