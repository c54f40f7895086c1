"""The wheel, in an environment of its own: it holds everything, nothing generic, and its commands work."""

from __future__ import annotations

import zipfile
from pathlib import Path

import pytest
import wheels


@pytest.fixture(scope="module")
def wheel(tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels.build(wheels.ROOT, tmp_path_factory.mktemp("dist"))


@pytest.fixture(scope="module")
def bin_folder(wheel: Path, tmp_path_factory: pytest.TempPathFactory) -> Path:
    return wheels.venv(tmp_path_factory.mktemp("clean") / "venv", wheel)


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


def test_modules_can_be_imported(bin_folder: Path, tmp_path: Path) -> None:
    """Every file of the packages is in the wheel."""
    code = "import edge_runtime.config, edge_runtime.sources.registry, edge_runtime.testing, edge_adapters.modbus"
    wheels.run([bin_folder / "python", "-c", code], cwd=tmp_path)
    site = next((bin_folder.parent / "lib").glob("python*/site-packages"))
    for source, target in (
        (wheels.ROOT / "edge_runtime", "edge_runtime"),
        (wheels.ROOT / "adapters/edge_adapters", "edge_adapters"),
    ):
        for file in source.rglob("*.py"):
            assert (site / target / file.relative_to(source)).is_file(), file


def test_commands_work(bin_folder: Path, tmp_path: Path) -> None:
    command = bin_folder / "edge-runtime"
    assert "check" in wheels.run([command, "--help"], cwd=tmp_path)
    assert wheels.run([command, "--version"], cwd=tmp_path).startswith("edge-runtime ")
    assert "modbus" in wheels.run([command, "adapters"], cwd=tmp_path)
    (tmp_path / "gateway.yaml").write_text(wheels.run([command, "config", "example"], cwd=tmp_path))
    assert "valid: gateway gateway-1" in wheels.run([command, "check", "gateway.yaml"], cwd=tmp_path)
