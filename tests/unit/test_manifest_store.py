"""Finding a model and refusing one whose files are not the ones that its manifest names."""

from __future__ import annotations

import shutil
from collections.abc import Callable
from pathlib import Path

import numpy as np
import pytest
import yaml

from edge_runtime.inference import store
from edge_runtime.inference.engine import EngineError


@pytest.fixture
def folder(tmp_path: Path) -> Path:
    return Path(shutil.copytree(store.find("shuttle-anomaly", []), tmp_path / "copy"))


def edit(folder: Path, change: Callable[[dict], None]) -> None:  # type: ignore[type-arg]
    path = folder / store.MANIFEST
    data = yaml.safe_load(path.read_text())
    change(data)
    path.write_text(yaml.safe_dump(data))


def test_a_name_is_found_in_the_folders_first_then_among_the_shipped(tmp_path: Path, folder: Path) -> None:
    shipped = store.find("shuttle-anomaly", [tmp_path])
    assert shipped == store.shipped() / "shuttle-anomaly"
    folder.rename(tmp_path / "shuttle-anomaly")
    assert store.find("shuttle-anomaly", [tmp_path]) == tmp_path / "shuttle-anomaly"
    assert "shuttle-anomaly" in store.names([])


def test_a_path_is_found(folder: Path) -> None:
    assert store.load(store.find(str(folder), [])).manifest.name == "shuttle-anomaly"


def test_a_model_that_is_not_there_is_named_with_the_places_and_the_models_that_are(tmp_path: Path) -> None:
    with pytest.raises(EngineError, match="no model 'schuttle'") as caught:
        store.find("schuttle", [tmp_path])
    assert str(tmp_path / "schuttle") in caught.value.cause
    assert "shuttle-anomaly" in caught.value.hint


def test_a_path_that_is_not_there_is_named_once(tmp_path: Path) -> None:
    with pytest.raises(EngineError) as caught:
        store.find(str(tmp_path / "schuttle"), [tmp_path])
    assert caught.value.cause.count("schuttle") == 2  # what was asked for, and where it was looked for


@pytest.mark.parametrize("file", ["fp32.tflite", "int8.tflite", "fp32.xml", "fp32.bin", "fp32.onnx", "known-answers.npz"])
def test_a_file_that_was_changed_is_refused(folder: Path, file: str) -> None:
    content = bytearray((folder / file).read_bytes())
    content[len(content) // 2] ^= 1
    (folder / file).write_bytes(content)
    with pytest.raises(EngineError, match="sha256 is") as caught:
        store.load(folder)
    assert str(folder / file) in caught.value.cause
    assert "copy it again" in caught.value.hint


@pytest.mark.parametrize("file", ["fp32.tflite", "int8.bin", "known-answers.npz", "manifest.yaml"])
def test_a_file_that_is_missing_is_named(folder: Path, file: str) -> None:
    (folder / file).unlink()
    with pytest.raises(EngineError, match="No such file") as caught:
        store.load(folder)
    assert file in caught.value.cause


def test_a_manifest_that_is_no_yaml_is_refused(folder: Path) -> None:
    (folder / store.MANIFEST).write_text("name: [")
    with pytest.raises(EngineError, match="no valid YAML"):
        store.load(folder)


def test_a_mistake_in_the_manifest_names_the_file(folder: Path) -> None:
    edit(folder, lambda data: data.update(colour="blue"))
    with pytest.raises(EngineError, match="colour: unknown key") as caught:
        store.load(folder)
    assert f"{folder / store.MANIFEST}:" in caught.value.cause


def test_a_manifest_that_is_no_text_is_refused(folder: Path) -> None:
    (folder / store.MANIFEST).write_bytes(b"\xff\xfe\x00")
    with pytest.raises(EngineError, match="is no text"):
        store.load(folder)


@pytest.mark.parametrize(
    "arrays",
    [
        {"windows": np.zeros((2, 1, 9)), "outputs": np.zeros((2, 9))},
        {"windows": np.zeros((2, 1, 8)), "outputs": np.zeros((2, 9)), "decisions": np.zeros(2)},
        {"windows": np.zeros((2, 1, 9)), "outputs": np.zeros((3, 9)), "decisions": np.zeros(2)},
        {"windows": np.zeros((0, 1, 9)), "outputs": np.zeros((0, 9)), "decisions": np.zeros(0)},
        {"windows": np.array([object()]), "outputs": np.zeros((1, 9)), "decisions": np.zeros(1)},
        {"windows": np.zeros((2, 1, 9)), "outputs": np.zeros((2, 5)), "decisions": np.zeros(2)},
        {"windows": np.zeros((2, 1, 9)), "outputs": np.zeros((2, 9)), "decisions": np.zeros(())},
        {"windows": np.zeros((2, 1, 9)), "outputs": np.zeros((2, 9)), "decisions": np.array(["yes", "no"])},
        {"windows": np.full((2, 1, 9), np.nan), "outputs": np.zeros((2, 9)), "decisions": np.zeros(2)},
    ],
)
def test_known_answers_that_do_not_fit_are_refused(folder: Path, arrays: dict[str, np.ndarray]) -> None:
    path = folder / "known-answers.npz"
    np.savez(path, **arrays)  # type: ignore[arg-type]
    edit(folder, lambda data: data["known_answers"].update(sha256=store.hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(EngineError, match=r"known-answers\.npz"):
        store.load(folder)


@pytest.mark.parametrize("content", [b"", b"no archive", b"\x93NUMPY\x01\x00"], ids=["empty", "garbage", "npy"])
def test_known_answers_that_are_no_archive_are_refused(folder: Path, content: bytes) -> None:
    path = folder / "known-answers.npz"
    path.write_bytes(content)
    edit(folder, lambda data: data["known_answers"].update(sha256=store.hashlib.sha256(path.read_bytes()).hexdigest()))
    with pytest.raises(EngineError, match=r"known-answers\.npz: is no npz"):
        store.load(folder)
