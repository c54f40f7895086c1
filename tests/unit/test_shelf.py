"""Models that come from a peer: only files of a model, piece by piece, verified before they are used."""

from __future__ import annotations

import shutil
from pathlib import Path

import pytest

from edge_runtime.bus.chunks import FRAME_BYTES_MAX, Ask, Chunk, pack, unpack
from edge_runtime.bus.messages import BadMessage
from edge_runtime.inference import shelf, store
from edge_runtime.inference.engine import EngineError
from edge_runtime.inference.shelf import Shelf
from edge_runtime.ports import EdgeError

MODEL, PART = "press-anomaly", 10_000


@pytest.fixture
def theirs(tmp_path: Path) -> Shelf:
    shutil.copytree(store.shipped() / "shuttle-anomaly", tmp_path / "theirs" / MODEL)
    (tmp_path / "theirs" / MODEL / "secret.txt").write_text("not of the model")
    return Shelf(tmp_path / "theirs")


@pytest.fixture
def ours(tmp_path: Path) -> Shelf:
    return Shelf(tmp_path / "ours")


def move(theirs: Shelf, ours: Shelf, file: str, offset: int = 0, parts: int = 10**6) -> int:
    """Bytes that were moved."""
    first = offset
    for _ in range(parts):
        data, size_bytes = theirs.read(MODEL, file, offset, PART)
        ours.add(MODEL, file, offset, data, size_bytes)
        offset += len(data)
        if offset >= size_bytes:
            break
    return offset - first


def move_all(theirs: Shelf, ours: Shelf) -> dict[str, int]:
    move(theirs, ours, ours.begin(MODEL))
    return {file: move(theirs, ours, file, there) for file, there in ours.wanted(MODEL)}


def test_a_model_comes_whole_and_without_what_is_not_of_it(theirs: Shelf, ours: Shelf, tmp_path: Path) -> None:
    assert not ours.has(MODEL)
    moved = move_all(theirs, ours)
    ours.finish(MODEL)
    assert ours.has(MODEL)
    assert {each.name for each in (tmp_path / "ours" / MODEL).iterdir()} == {*moved, "manifest.yaml"}
    assert "secret.txt" not in moved
    assert store.load(tmp_path / "ours" / MODEL).manifest.name == "shuttle-anomaly"


def test_it_goes_on_where_it_was(theirs: Shelf, ours: Shelf) -> None:
    move(theirs, ours, ours.begin(MODEL))
    move(theirs, ours, "fp32.tflite", parts=1)
    assert dict(ours.wanted(MODEL))["fp32.tflite"] == PART
    move(theirs, ours, "fp32.tflite", PART)
    assert "fp32.tflite" not in dict(ours.wanted(MODEL))
    move_all(theirs, ours)
    ours.finish(MODEL)


def test_one_that_is_not_what_its_manifest_says_is_thrown_away(theirs: Shelf, ours: Shelf, tmp_path: Path) -> None:
    move_all(theirs, ours)
    ours.add(MODEL, "fp32.tflite", 100, b"x", 101)
    with pytest.raises(EngineError, match="sha256"):
        ours.finish(MODEL)
    assert not ours.has(MODEL)
    assert not (tmp_path / "ours" / shelf.FETCHED / MODEL).exists()


def test_the_one_before_is_kept(theirs: Shelf, ours: Shelf, tmp_path: Path) -> None:
    for number in range(3):
        move_all(theirs, ours)
        ours.finish(MODEL)
        (tmp_path / "ours" / MODEL / "mark").write_text(str(number))
    assert (tmp_path / "ours" / f"{MODEL}.before" / "mark").read_text() == "1"


@pytest.mark.parametrize("model", ["../theirs", "a/b", "", ".fetched", "/etc"])
def test_no_name_leads_out_of_the_folder(theirs: Shelf, ours: Shelf, model: str) -> None:
    for step in (lambda: theirs.read(model, "manifest.yaml", 0, 10), lambda: ours.begin(model), lambda: ours.finish(model)):
        with pytest.raises(EdgeError):
            step()
    assert not ours.has(model)


@pytest.mark.parametrize("file", ["../secret.txt", "secret.txt", "/etc/passwd", "..", "nothing"])
def test_only_files_that_the_manifest_names_are_given_and_taken(theirs: Shelf, ours: Shelf, file: str) -> None:
    with pytest.raises(EdgeError):
        theirs.read(MODEL, file, 0, 10)
    ours.begin(MODEL)
    if "/" in file or file == "..":
        with pytest.raises(EdgeError):
            ours.add(MODEL, file, 0, b"x", 1)


def test_a_model_without_end_is_refused(ours: Shelf) -> None:
    ours.begin(MODEL)
    with pytest.raises(EdgeError, match="bytes"):
        ours.add(MODEL, "fp32.tflite", 0, b"x", shelf.MODEL_BYTES_MAX + 1)
    with pytest.raises(EdgeError, match="bytes"):
        ours.add(MODEL, "fp32.tflite", 10, b"xx", 11)


def test_messages_are_checked() -> None:
    ask = Ask("1", MODEL, "fp32.tflite", 7)
    assert unpack(pack(ask), Ask) == ask
    chunk = Chunk("1", b"x" * 60_000, 70_000)
    assert unpack(pack(chunk), Chunk) == chunk
    for wrong in (
        Ask("1", "../up", "f", 0),
        Ask("1", MODEL, "../up", 0),
        Ask("1", MODEL, ".hidden", 0),
        Ask("1", MODEL, "f", -1),
    ):
        with pytest.raises(BadMessage):
            unpack(pack(wrong), Ask)
    for garbage in (b"", b"\xff" * 10, b"x" * (FRAME_BYTES_MAX + 1)):
        with pytest.raises(BadMessage):
            unpack(garbage, Chunk)


def test_the_one_before_takes_its_place_and_back(tmp_path: Path) -> None:
    place, before = tmp_path / MODEL, tmp_path / f"{MODEL}{shelf.BEFORE}"
    for folder, words in ((place, "new"), (before, "old")):
        shutil.copytree(store.shipped() / "shuttle-anomaly", folder)
        (folder / "README.md").write_text(words)
    for words in ("old", "new"):
        Shelf(tmp_path).exchange(MODEL)
        assert (place / "README.md").read_text() == words
    artefact = next(before.glob("*.tflite"))
    artefact.write_bytes(artefact.read_bytes()[:-1])  # a damaged one stays where it is
    with pytest.raises(EngineError):
        Shelf(tmp_path).exchange(MODEL)
    assert (place / "README.md").read_text() == "new"
    shutil.rmtree(before)
    with pytest.raises(EdgeError, match="no model before"):
        Shelf(tmp_path).exchange(MODEL)
