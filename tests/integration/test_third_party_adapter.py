"""An adapter of somebody else: a real wheel with an entry point, installed beside us, is found; a broken one harms nobody."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path

import pytest
import wheels

PYPROJECT = """
[build-system]
requires = ["hatchling"]
build-backend = "hatchling.build"
[project]
name = "edge-weather"
version = "2.5"
dependencies = ["edge-runtime"]
[project.entry-points."edge_runtime.adapters"]
weather = "edge_weather:Weather"
broken = "edge_weather.broken:Broken"
program = "edge_weather.program:Program"
wrong = "edge_weather:NotAnAdapter"
half = "edge_weather:Half"
odd = "edge_weather:Odd"
odder = "edge_weather:Odder"
modbus = "edge_weather:Weather"
[tool.hatch.build.targets.wheel]
packages = ["edge_weather"]
"""

MODULE = '''
from collections.abc import Sequence
from edge_runtime import adapter

NotAnAdapter = dict

class Weather(adapter.Adapter):
    """Reads a weather station.

    It speaks the line protocol of 1987.
    """

    mode = "pushed"

    class Options(adapter.Options):
        port: str = adapter.Field(description="Serial port of the station", examples=["/dev/ttyUSB0"])
        speed: int = adapter.Field(9600, description="Bits per second")

    class Point(adapter.Point):
        column: int = adapter.Field(ge=0, description="Column in the line")

    async def open(self) -> None: ...
    async def read(self) -> Sequence[adapter.Sample]:
        return []
    async def close(self) -> None: ...

class Half(adapter.Adapter):
    """Without close and read."""
    async def open(self) -> None: ...

class Odd(Weather):
    """Its author has not tried everything."""
    class Options(adapter.Options): ...
    class Point(adapter.WritablePoint):
        def fit(self, raw):
            return {}[raw]
    @classmethod
    def needs(cls, options):
        return None["x"]
    @classmethod
    def describe(cls, options, points):
        return [] if len(points) == 1 else points[7]

class Odder(Weather):
    """Nor has this one's; `how` is where."""
    class Options(adapter.Options):
        how: str = adapter.Field("", description="Where")
        @adapter.model_validator(mode="after")
        def _checked(self):
            return self if self.how != "options" else {}["x"]
    class Point(adapter.Point):
        how: str = adapter.Field("", description="Where")
        @adapter.model_validator(mode="after")
        def _checked(self):
            return self if self.how != "point" else {}["x"]
        @property
        def is_text(self):
            return {}["x"]
    @classmethod
    def session(cls, options):
        if options.how == "session":
            raise KeyError("x")
        return None if options.how == "no session" else ("", "")
    @classmethod
    def needs(cls, options):
        return None if options.how == "needs" else {}
    @classmethod
    def describe(cls, options, points):
        return {"describe": None, "rows": [7], "exit": exit}.get(options.how, [])
'''


@pytest.fixture(scope="module")
def installed(tmp_path_factory: pytest.TempPathFactory) -> Path:
    project = tmp_path_factory.mktemp("weather")
    (project / "pyproject.toml").write_text(PYPROJECT)
    package = project / "edge_weather"
    package.mkdir()
    (package / "__init__.py").write_text(MODULE)
    (package / "broken.py").write_text("import a_library_that_nobody_has\n")
    (package / "program.py").write_text("import sys\nsys.exit(7)\n")
    target = tmp_path_factory.mktemp("site")
    wheels.install(wheels.build(project, tmp_path_factory.mktemp("dist")), "--target", target)
    return target


def _edge_runtime(installed: Path, *words: str | Path) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_runtime", *words]
    return subprocess.run(command, capture_output=True, text=True, env={"PYTHONPATH": str(installed)}, timeout=60, check=False)


def test_is_listed_and_the_broken_ones_are_named(installed: Path) -> None:
    done = _edge_runtime(installed, "adapters", "--json")
    listed = {row["name"]: row for row in json.loads(done.stdout)}
    assert listed["weather"]["summary"] == "Reads a weather station."
    assert (listed["weather"]["mode"], listed["weather"]["distribution"]) == ("pushed", "edge-weather 2.5")
    assert "a_library_that_nobody_has" in listed["broken"]["error"]
    assert "edge-weather 2.5" in listed["broken"]["error"]
    assert "SystemExit at program.py:2" in listed["program"]["error"]
    assert "no subclass of edge_runtime.adapter.Adapter" in listed["wrong"]["error"]
    assert "edge_weather:Half has no close, read" in listed["half"]["error"]
    assert "several distributions" in listed["modbus"]["error"]
    assert "edge-weather 2.5" in listed["modbus"]["error"]
    assert listed["replay"]["error"] is None
    assert done.returncode == 1


def test_its_text_and_sample_come_from_its_models(installed: Path) -> None:
    shown = _edge_runtime(installed, "adapters", "weather").stdout
    assert "It speaks the line protocol of 1987." in shown
    assert 'port: "/dev/ttyUSB0"' in shown
    assert "# Bits per second\n      #speed: 9600\n" in shown


def test_its_sample_is_a_valid_configuration(installed: Path, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(_edge_runtime(installed, "config", "example", "--adapter", "weather").stdout)
    done = _edge_runtime(installed, "check", file)
    assert done.returncode == 0, done.stderr
    schema = json.loads(_edge_runtime(installed, "config", "schema").stdout)
    assert "weather" in schema["$defs"]["Device"]["properties"]["adapter"]["enum"]


def test_its_options_are_checked(installed: Path, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "site: s\ngateway: g\ndevices:\n  roof:\n    adapter: weather\n    options: {port: x, sped: 1}\n    points:\n"
        "      - name: wind\n        column: -1\n  cellar:\n    adapter: broken\n    points: [{name: x}]\n"
    )
    done = _edge_runtime(installed, "check", file)
    assert done.returncode == 1
    assert ":6: devices.roof.options.sped: unknown key (it is 1)\n    hint: did you mean `speed`?" in done.stderr
    assert ":9: devices.roof.points[0].column: should be greater than or equal to 0 (it is -1)" in done.stderr
    assert ":11: devices.cellar.adapter: the adapter broken of edge-weather 2.5 cannot be imported" in done.stderr


def test_a_bug_of_it_is_told_with_its_place_and_is_no_traceback(installed: Path, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    text = "site: s\ngateway: g\ndevices:\n  roof:\n    adapter: odd\n    points: [{name: a, write: {low: 0, high: 1}}]\n"
    file.write_text(f"{text}pipelines: {{p: {{device: roof}}}}\n")
    done = _edge_runtime(installed, "check", file)
    assert done.returncode == 0, done.stderr
    assert ":5: devices.roof.adapter: the adapter odd cannot say what it needs: TypeError at " in done.stdout
    assert ":6: devices.roof.points[0].write: the adapter cannot tell what fits: KeyError at " in done.stdout
    file.write_text(text.replace("}}]", "}}, {name: b}]"))
    done = _edge_runtime(installed, "check", file)
    assert done.returncode == 1
    assert ":4: devices.roof: the adapter odd cannot plan its reads: IndexError at " in done.stderr
    assert "hint: tell its author" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.mark.parametrize(
    ("options", "point", "told"),
    [
        ("options", "", ":6: devices.roof.options: the adapter odder cannot check this: KeyError at "),
        ("", "point", ":7: devices.roof.points[0]: the adapter odder cannot check this: KeyError at "),
        ("session", "", ":4: devices.roof: the adapter odder cannot tell what one device only may have (`session`): KeyError"),
        (
            "no session",
            "",
            ":4: devices.roof: the adapter odder cannot tell what one device only may have (`session`): TypeError",
        ),
        ("describe", "", ":4: devices.roof: the adapter odder cannot plan its reads: TypeError at "),
        ("rows", "", ":4: devices.roof: the adapter odder cannot plan its reads: TypeError at "),
        ("needs", "", ":5: devices.roof.adapter: the adapter odder cannot say what it needs: AttributeError at "),
    ],
)
def test_wherever_it_is_wrong_check_says_where_and_goes_on(
    installed: Path, tmp_path: Path, options: str, point: str, told: str
) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(
        "site: s\ngateway: g\ndevices:\n  roof:\n    adapter: odder\n"
        f"    options: {{how: {options}}}\n    points: [{{name: a, how: {point}}}]\n"
        "pipelines:\n  p: {device: roof, window: {count: 2}}\n  q: {device: cellar}\n"
        f"  r: {{device: {'roof' if options == 'needs' else 'attic'}}}\n".replace("how: }", 'how: ""}')
    )
    if options == "needs":
        file.write_text(file.read_text().replace("  q: {device: cellar}\n", ""))
    done = _edge_runtime(installed, "check", file, "--plan")
    assert told in done.stdout + done.stderr
    assert "Traceback" not in done.stderr
    assert done.returncode == (0 if options == "needs" else 1)
