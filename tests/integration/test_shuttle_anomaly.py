"""The shipped model, measured on real rows that it never saw, through our engines."""

from __future__ import annotations

import csv
from pathlib import Path

import numpy as np
import pytest
from numpy.typing import NDArray

from edge_runtime.inference import store
from edge_runtime.inference.engine import Engine
from edge_runtime.inference.engine_openvino import OpenvinoEngine
from edge_runtime.inference.engine_tflite import TfliteEngine
from edge_runtime.inference.store import Stored
from edge_runtime.inference.trial import Candidate, prepare

FOLDER = store.shipped() / "shuttle-anomaly"
AUC_MIN = {"fp32": 0.995, "int8": 0.99}
WAYS: list[tuple[str, Engine]] = [
    ("fp32.tflite", TfliteEngine()),
    ("int8.tflite", TfliteEngine()),
    ("fp32.xml", OpenvinoEngine()),
    ("int8.xml", OpenvinoEngine()),
    ("fp32.onnx", OpenvinoEngine()),
    ("fp32.tflite", OpenvinoEngine()),
    ("int8.tflite", OpenvinoEngine()),
]


@pytest.fixture(scope="module")
def stored() -> Stored:
    return store.load(FOLDER)


@pytest.fixture(scope="module")
def held_out() -> tuple[NDArray[np.float64], NDArray[np.int64]]:
    with np.load(FOLDER / "heldout.npz") as arrays:
        return arrays["rows"].astype(np.float64), arrays["labels"].astype(np.int64)


def auc(scores: NDArray[np.float64], labels: NDArray[np.int64]) -> float:
    """The chance that an anomaly scores above a normal row; ties count half. By comparing them all, unlike train.py."""
    normal = np.sort(scores[labels == 0])
    anomalies = scores[labels == 1]
    below = np.searchsorted(normal, anomalies, "left")
    not_above = np.searchsorted(normal, anomalies, "right")
    return float((below + not_above).sum() / (2 * len(normal) * len(anomalies)))


@pytest.mark.parametrize(("file", "engine"), WAYS, ids=[f"{file}-{engine.name}" for file, engine in WAYS])
def test_auc_and_threshold_on_held_out_rows(
    stored: Stored, held_out: tuple[NDArray[np.float64], NDArray[np.int64]], file: str, engine: Engine
) -> None:
    rows, labels = held_out
    artefact = next(artefact for artefact in stored.manifest.artefacts if artefact.file == file)
    prepared = prepare(stored, Candidate(engine, artefact, "cpu"))
    scores = np.array([prepared.run(row[None, :])["score"] for row in rows])
    measured = auc(scores, labels)
    print(f"{file} by {engine.name}: AUC {measured:.4f} on {len(rows)} rows, {labels.sum()} anomalies")
    assert measured >= AUC_MIN[artefact.precision]
    assert artefact.auc is not None
    assert abs(measured - artefact.auc) < 5e-4
    assert artefact.threshold is not None
    found = scores > artefact.threshold
    assert found[labels == 1].mean() > 0.95
    assert found[labels == 0].mean() < 0.01


def test_every_artefact_is_measured(stored: Stored) -> None:
    assert {file for file, _ in WAYS} == {artefact.file for artefact in stored.manifest.artefacts}


def test_known_answers_have_both_decisions(stored: Stored) -> None:
    assert set(stored.known.decisions.tolist()) == {0, 1}


def test_the_sample_is_a_run_of_held_out_rows_with_anomalies_in_it(
    held_out: tuple[NDArray[np.float64], NDArray[np.int64]], stored: Stored
) -> None:
    with (FOLDER / "sample.csv").open(newline="") as file:
        header, *lines = list(csv.reader(file))
    assert header == [*(point.name for point in stored.manifest.input.points), "anomaly"]
    table = np.array(lines, dtype=np.int64)
    assert len(table) == 5_000
    assert 0.05 < table[:, -1].mean() < 0.10
    rows, labels = held_out
    start = 5_000  # train.py: SAMPLE begins this far into HELD_OUT
    np.testing.assert_array_equal(table[:, :-1], rows[start : start + len(table)])
    np.testing.assert_array_equal(table[:, -1], labels[start : start + len(table)])


def test_the_card_tells_the_figures_of_the_manifest(stored: Stored) -> None:
    card = (FOLDER / stored.manifest.card).read_text()
    for artefact in stored.manifest.artefacts:
        line = next(line for line in card.splitlines() if f"`{artefact.file}`" in line and line.startswith("|"))
        cells = [cell.strip() for cell in line.split("|")]
        assert f"{artefact.auc:.4f}" in cells
        assert str(artefact.threshold) in cells


def test_it_stays_small() -> None:
    sizes = {path.name: path.stat().st_size for path in Path(FOLDER).iterdir() if path.is_file()}
    assert sizes["heldout.npz"] < 1_000_000
    assert sizes["sample.csv"] < 400_000
    assert sum(sizes.values()) < 2_000_000
