"""The wheel, in environments with nothing but what it declares: it holds everything, nothing generic, and its commands work."""

from __future__ import annotations

import json
import re
import signal
import subprocess
import zipfile
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import pytest
import wheels
from tidy.imports import CORE, LIBRARIES

from edge_runtime.cli import VERBS

pytestmark = pytest.mark.timeout(600)  # the first run downloads

NOT_IN_THE_DEMO = {"openvino", "tflite_runtime", "pytest"}
MODEL = "shuttle-anomaly"
ON_A_TERMINAL = "import os, pty, sys; sys.exit(os.waitstatus_to_exitcode(pty.spawn(sys.argv[1:])))"
SUITES = {f"edge_runtime.testing.{each}_suite" for each in ("adapter", "bus", "engine", "host")}
"""For people who have pytest."""


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels.build(wheels.ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """With the extra `demo`."""
    return wheels.venv(tmp_path_factory.mktemp("demo") / "venv", wheel, "demo")


@pytest.fixture(scope="module")
def core(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    """Without extras. The folder with its commands."""
    return wheels.venv(tmp_path_factory.mktemp("core") / "venv", wheel)


# --- what it holds ---------------------------------------------------------------------------------------------------


def test_holds_nothing_generic(wheel: Path) -> None:
    """A package called `adapters` or `models` would be in everybody's way."""
    names = zipfile.ZipFile(wheel).namelist()
    tops = {name.partition("/")[0] for name in names}
    packages = {top for top in tops if not top.endswith((".dist-info", ".data"))}
    assert packages == {"edge_runtime", "edge_adapters"}
    assert not [name for name in names if "test_" in name or "__pycache__" in name]
    assert "edge_runtime/py.typed" in names
    assert any(name.endswith("licenses/LICENSE") for name in names)


def test_is_what_runs(bin_folder: Path, tmp_path: Path) -> None:
    """Else every other test here would look at the checkout."""
    code = "import edge_runtime, edge_adapters; print(edge_runtime.__file__, edge_adapters.__file__)"
    places = wheels.run([bin_folder / "python", "-c", code], cwd=tmp_path).split()
    assert all(Path(place).is_relative_to(bin_folder.parent) for place in places)


def test_brings_its_data(bin_folder: Path) -> None:
    """Every model of the checkout, file by file."""
    models = wheels.ROOT / "models"
    shipped = bin_folder.parent / "share" / "edge-runtime" / "models"
    files = [file.relative_to(models) for file in models.rglob("*") if file.is_file() and "__pycache__" not in file.parts]
    assert files, "the checkout has no models"
    assert [file for file in files if not (shipped / file).is_file()] == []


def test_brings_its_modules(bin_folder: Path) -> None:
    site = next((bin_folder.parent / "lib").glob("python*/site-packages"))
    for source, target in (
        (wheels.ROOT / "edge_runtime", "edge_runtime"),
        (wheels.ROOT / "adapters/edge_adapters", "edge_adapters"),
    ):
        for file in source.rglob("*.py"):
            assert (site / target / file.relative_to(source)).is_file(), file


# --- what it declares ------------------------------------------------------------------------------------------------


def test_declares_the_libraries_that_it_imports(core: Path, bin_folder: Path, tmp_path: Path) -> None:
    """Without extras those of the core and no other; the demo's extra brings all that it can use."""
    assert _present(core, LIBRARIES, tmp_path) == set(CORE)
    assert _present(bin_folder, LIBRARIES, tmp_path) == set(LIBRARIES) - NOT_IN_THE_DEMO


def test_modules_can_be_imported(core: Path, bin_folder: Path, tmp_path: Path) -> None:
    """Also without extras: they are imported where they are needed. The simulated press needs one."""
    assert _broken(bin_folder, tmp_path) == SUITES
    assert _broken(core, tmp_path) == SUITES | {"edge_runtime.testing.press"}


def test_named_extras_exist(wheel: Path) -> None:
    """pip ignores an extra that does not exist."""
    there = set(wheels.metadata(wheel)["Provides-Extra"])
    tops = (wheels.ROOT / "edge_runtime", wheels.ROOT / "adapters", wheels.ROOT / "docs")
    files = [wheels.ROOT / "README.md", *(file for top in tops for file in top.rglob("*") if file.suffix in (".py", ".md"))]
    named = {
        (extra, str(file.relative_to(wheels.ROOT)))
        for file in files
        for extras in re.findall(r"pip install [^\n]*?'(?:edge-runtime|\.)\[([\w,-]+)\]", file.read_text())
        for extra in extras.split(",")
    }
    assert {"modbus", "litert"} <= {extra for extra, _ in named}
    assert {(extra, file) for extra, file in named if extra not in there} == set()


def _present(bin_folder: Path, modules: Iterable[str], cwd: Path) -> set[str]:
    code = "import sys, importlib.util as util; print(*(name for name in sys.argv[1:] if util.find_spec(name)))"
    return set(wheels.run([bin_folder / "python", "-c", code, *modules], cwd=cwd).split())


def _broken(bin_folder: Path, cwd: Path) -> set[str]:
    code = (
        "import pkgutil, importlib, edge_runtime, edge_adapters\n"
        "for package in edge_runtime, edge_adapters:\n"
        "    for module in pkgutil.walk_packages(package.__path__, package.__name__ + '.'):\n"
        "        try:\n"
        "            module.name.endswith('__main__') or importlib.import_module(module.name)\n"
        "        except ModuleNotFoundError:\n"
        "            print(module.name)\n"
    )
    return set(wheels.run([bin_folder / "python", "-c", code], cwd=cwd).split())


# --- what it does: see also test_demo.py, which shows the demo from here ----------------------------------------------


@pytest.mark.parametrize("environment", ["core", "bin_folder"])
def test_commands_work(environment: str, request: pytest.FixtureRequest, tmp_path: Path) -> None:
    bin_folder: Path = request.getfixturevalue(environment)
    command = bin_folder / "edge-runtime"
    assert "check" in wheels.run([command, "--help"], cwd=tmp_path)
    assert wheels.run([command, "--version"], cwd=tmp_path).startswith("edge-runtime ")
    for verb in VERBS:
        assert f"usage: edge-runtime {verb}" in wheels.run([command, verb, "--help"], cwd=tmp_path)
    assert json.loads(wheels.run([command, "config", "schema"], cwd=tmp_path))["$defs"]
    piped = wheels.run(["sh", "-c", '"$0" config example | "$0" check -', command], cwd=tmp_path)
    assert "valid: gateway gateway-1" in piped
    listed = json.loads(wheels.run([command, "adapters", "--json"], cwd=tmp_path))
    assert {row["name"] for row in listed} == {"modbus", "mqtt", "replay"}
    [model] = json.loads(wheels.run([command, "models", "--json"], cwd=tmp_path))
    assert (model["name"], model["error"]) == (MODEL, None)
    assert Path(model["folder"]).is_relative_to(bin_folder.parent / "share")


def test_extras_work(bin_folder: Path, tmp_path: Path) -> None:
    """A table for a terminal, a model on an engine, an outbox opened: what the core cannot do."""
    command = bin_folder / "edge-runtime"
    assert "━" in wheels.run([bin_folder / "python", "-c", ON_A_TERMINAL, command, "adapters"], cwd=tmp_path)
    assert "tflite" in wheels.run([command, "models", MODEL], cwd=tmp_path)
    _gateway(command, _settings(tmp_path), {"gateway_started"})
    assert json.loads(wheels.run([command, "outbox", "data/outbox.db", "--json"], cwd=tmp_path))


def test_the_core_runs_a_gateway(core: Path, tmp_path: Path) -> None:
    """It reads all rows; SIGTERM ends it."""
    file = _settings(tmp_path)
    assert "valid: gateway g1" in wheels.run([core / "edge-runtime", "check", file], cwd=tmp_path)
    events = _gateway(core / "edge-runtime", file, {"source_ended"})
    assert {event["level"] for event in events} == {"info"}
    assert (tmp_path / "data" / "outbox.db").is_file()


def test_the_core_names_the_extras_that_a_gateway_lacks(core: Path, tmp_path: Path) -> None:
    """The rest of the gateway runs."""
    plc = {"adapter": "modbus", "options": {"host": "127.0.0.1"}, "points": [{"name": "a", "address": 0}]}
    file = _settings(tmp_path, broker={"mode": "hosted", "program": "iotcore"}, plc=plc)
    wanted = {"source_ended": "", "source_unusable": "modbus", "broker_does_not_start": "broker"}
    hints = {event["event"]: event.get("hint", "") for event in _gateway(core / "edge-runtime", file, wanted)}
    for event, extra in wanted.items():
        assert hints[event] == (f"pip install 'edge-runtime[{extra}]'" if extra else "")


@pytest.mark.parametrize(
    ("words", "extra", "missing"),
    [
        (["outbox", "outbox.db"], "cli", "sqlite-utils"),
        (["models", MODEL], "litert", "no engine"),
        (["demo", "--plain"], "demo", "pymodbus (the press), ai-edge-litert (the model)"),
        (["demo"], "demo", "rich (the view)"),
    ],
    ids=lambda value: value if isinstance(value, str) else "-".join(value),
)
def test_the_core_names_the_extra_that_a_command_lacks(
    words: list[str], extra: str, missing: str, core: Path, tmp_path: Path
) -> None:
    (tmp_path / "outbox.db").touch()
    said = wheels.run([core / "python", "-c", ON_A_TERMINAL, core / "edge-runtime", *words], cwd=tmp_path, status=1)
    assert missing in said
    assert f"hint: pip install 'edge-runtime[{extra}]'" in said
    assert "Traceback" not in said


def test_a_terminal_without_rich_gets_plain_tables(core: Path, tmp_path: Path) -> None:
    assert "modbus  polled" in wheels.run([core / "python", "-c", ON_A_TERMINAL, core / "edge-runtime", "adapters"], cwd=tmp_path)


def _settings(folder: Path, broker: dict[str, Any] | None = None, **devices: Any) -> Path:
    """Two rows played back, no sinks."""
    (folder / "rows.csv").write_text("a\n1.5\n2.5\n")
    devices["rows"] = {"adapter": "replay", "options": {"file": "rows.csv"}, "points": [{"name": "a", "column": "a"}]}
    settings = {"site": "plant", "gateway": "g1", "devices": devices, "pipelines": {name: {"device": name} for name in devices}}
    file = folder / "gateway.json"
    file.write_text(json.dumps(settings | ({"broker": broker} if broker else {}) | {"log": {"format": "json"}}))
    return file


def _gateway(command: Path, file: Path, wanted: Iterable[str]) -> list[dict[str, Any]]:
    """Runs it until these events were seen, then stops it; it must end well. All that it logged."""
    missing, events = set(wanted), []
    with subprocess.Popen([command, "run", file], stderr=subprocess.PIPE, text=True, cwd=file.parent) as process:
        assert process.stderr is not None
        try:
            for line in process.stderr:
                assert line.startswith("{"), line + process.communicate(timeout=10)[1]
                events.append(json.loads(line))
                missing.discard(events[-1]["event"])
                if not missing:
                    process.send_signal(signal.SIGTERM)
                    break
            events += [json.loads(line) for line in process.stderr]
            assert process.wait() == 0, events
        finally:
            process.kill()
    assert missing == set(), events
    assert events[-1]["event"] == "gateway_stopped"
    return events
