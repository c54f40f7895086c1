"""Makes everything in this folder except card.md: `pip install 'edge-runtime[train]' && python train.py [FOLDER]` (1 minute).

Data: Statlog (Shuttle), 49,097 rows, from the package `river`, in the package's order (already shuffled there, no row twice).

    rows 0      to 29,999   training: the normal rows of it; also the scaling and the int8 calibration
    rows 30,000 to 34,999   validation: the threshold of each artefact (best F1) and when to stop
    rows 35,000 to 49,096   held out: AUC, known answers, heldout.npz, sample.csv; seen by nothing above

The seeds are fixed and torch runs in one thread: the same versions on the same machine give the same files, byte for byte.
Elsewhere the last digits differ, and so do the sha256 sums; the AUC does not.
"""

from __future__ import annotations

import csv
import gzip
import hashlib
import itertools
import json
import random
import sys
from pathlib import Path
from typing import Any

import ai_edge_quantizer
import litert_torch
import nncf
import numpy as np
import openvino
import torch
import yaml
from ai_edge_quantizer import recipe
from nncf.quantization.range_estimator import RangeEstimatorParametersSet
from numpy.typing import NDArray
from river import datasets

from edge_runtime.inference.engine import Engine, Session
from edge_runtime.inference.engine_openvino import OpenvinoEngine
from edge_runtime.inference.engine_tflite import TfliteEngine
from edge_runtime.inference.manifest import Manifest, parse
from edge_runtime.inference.processing import Processing

SEED = 20261121
TRAINING = slice(0, 30_000)
VALIDATION = slice(30_000, 35_000)
HELD_OUT = slice(35_000, 49_097)
SAMPLE = slice(40_000, 45_000)
POINTS = [f"f{number}" for number in range(1, 10)]
EPOCHS = 120
BATCH = 256
LEARNING_RATE = 2e-3
TRIM = 0.001
"""Share of the normal rows at each end that does not count for mean and std: single rows reach 500 times the usual range."""
CLIP = 8.0
"""Training and calibration see scaled values up to this; the artefacts themselves clip nothing."""
CALIBRATION_ROWS = 1_000
KNOWN_NORMAL, KNOWN_ANOMALOUS = 24, 8
KNOWN_MARGIN = 2.0
"""Known answers lie at least this factor away from every artefact's threshold, so that each must decide them alike."""

Rows = NDArray[np.float64]


def main(folder: Path) -> None:
    random.seed(SEED)
    np.random.seed(SEED)
    torch.manual_seed(SEED)
    torch.set_num_threads(1)
    torch.use_deterministic_algorithms(True)
    rows, labels = shuttle()
    normal = rows[TRAINING][labels[TRAINING] == 0]
    low, high = np.quantile(normal, [TRIM, 1 - TRIM], axis=0)
    trimmed = np.clip(normal, low, high)
    mean, std = np.round(trimmed.mean(axis=0), 4), np.round(trimmed.std(axis=0), 4)
    network = train(np.clip((normal - mean) / std, -CLIP, CLIP).astype(np.float32))
    calibration = np.clip((normal[:CALIBRATION_ROWS] - mean) / std, -CLIP, CLIP).astype(np.float32)
    export(network, calibration, folder)
    write(folder, rows, labels, mean, std)


def shuttle() -> tuple[Rows, NDArray[np.int64]]:
    """Rows float64[49097, 9] and labels (1: anomaly)."""
    with gzip.open(datasets.Shuttle().path, "rt") as file:
        table = np.array(list(csv.reader(file))[1:], dtype=np.int64)
    return table[:, :-1].astype(np.float64), table[:, -1]


class Autoencoder(torch.nn.Module):
    """9-64-48-4-48-64-9."""

    def __init__(self) -> None:
        super().__init__()
        sizes = [9, 64, 48, 4, 48, 64, 9]
        layers: list[torch.nn.Module] = []
        for size, following in itertools.pairwise(sizes):
            layers += [torch.nn.Linear(size, following), torch.nn.ReLU()]
        self.layers = torch.nn.Sequential(*layers[:-1])

    def forward(self, x: torch.Tensor) -> torch.Tensor:
        return self.layers(x)


def train(scaled: NDArray[np.float32]) -> Autoencoder:
    network, data = Autoencoder(), torch.from_numpy(scaled)
    optimiser = torch.optim.Adam(network.parameters(), lr=LEARNING_RATE)
    schedule = torch.optim.lr_scheduler.CosineAnnealingLR(optimiser, EPOCHS)
    for epoch in range(EPOCHS):
        total = 0.0
        for batch in torch.randperm(len(data)).split(BATCH):
            optimiser.zero_grad()
            loss = torch.nn.functional.mse_loss(network(data[batch]), data[batch])
            loss.backward()
            optimiser.step()
            total += float(loss) * len(batch)
        schedule.step()
        if epoch % 20 == 19:
            print(f"epoch {epoch + 1}: {total / len(data):.5f}")
    return network.eval()


def export(network: Autoencoder, calibration: NDArray[np.float32], folder: Path) -> None:
    example = (torch.zeros(1, len(POINTS)),)
    full = folder / "fp32.tflite"
    litert_torch.convert(network, example).export(str(full))

    quantizer = ai_edge_quantizer.quantizer.Quantizer(str(full), recipe.static_wi8_ai8())
    (folder / "int8.tflite").write_bytes(bytes(quantizer.quantize(ranges(quantizer, calibration)).quantized_model))

    model = openvino.convert_model(network, example_input=example, input=[1, len(POINTS)])
    # Without this flag the weights are stored as fp16, silently.
    openvino.save_model(model, folder / "fp32.xml", compress_to_fp16=False)
    data = nncf.Dataset([row[None, :] for row in calibration])
    quantised = nncf.quantize(
        model,
        data,
        subset_size=len(calibration),
        advanced_parameters=nncf.AdvancedQuantizationParameters(
            activations_range_estimator_params=RangeEstimatorParametersSet.MINMAX  # not the mean of each row's range
        ),
    )
    for number, node in enumerate(quantised.get_ordered_ops()):
        if node.get_friendly_name() == node.get_name():  # a running number of the process: another one in each run
            node.set_friendly_name(f"{node.get_type_name()}_{number}")
    openvino.save_model(quantised, folder / "int8.xml", compress_to_fp16=False)
    # torch's newer exporter (dynamo) wants one more package for the same six layers.
    torch.onnx.export(network, example, folder / "fp32.onnx", dynamo=False, input_names=["scaled"], output_names=["rebuilt"])


def ranges(quantizer: ai_edge_quantizer.quantizer.Quantizer, calibration: NDArray[np.float32]) -> dict[str, Any]:
    """Smallest and largest value of each tensor over all rows. Calibrating them in one call gives a moving average of each
    row's range instead: of one row, about one standard deviation, and everything beyond saturates."""
    found: dict[str, Any] = {}
    for row in calibration:
        of_row = quantizer.calibrate({"serving_default": [{"args_0": row[None, :]}]}, num_threads=1)
        for name, values in of_row.items():
            known = found.setdefault(name, dict(values))
            known["min"], known["max"] = np.minimum(known["min"], values["min"]), np.maximum(known["max"], values["max"])
    return found


def write(folder: Path, rows: Rows, labels: NDArray[np.int64], mean: Rows, std: Rows) -> None:
    """Thresholds, AUC, known answers, held-out rows, sample and manifest."""
    plan: list[tuple[str, str, Engine]] = [
        ("fp32.tflite", "fp32", TfliteEngine()),
        ("int8.tflite", "int8", TfliteEngine()),
        ("fp32.xml", "fp32", OpenvinoEngine()),
        ("int8.xml", "int8", OpenvinoEngine()),
        ("fp32.onnx", "fp32", OpenvinoEngine()),
    ]
    manifest = template(mean, std)
    scores: list[tuple[Rows, float]] = []
    artefacts: list[dict[str, Any]] = []
    for file, precision, engine in plan:
        session = engine.load(folder / file, "cpu")
        entry = describe(folder, file, precision, session)
        processing = Processing(parse(json.dumps(manifest | {"artefacts": [entry]}), file), session.inputs[0], session.outputs[0])
        threshold = best_threshold(score(session, processing, rows[VALIDATION]), labels[VALIDATION])
        held_out = score(session, processing, rows[HELD_OUT])
        entry |= {"threshold": threshold, "auc": round(auc(held_out, labels[HELD_OUT]), 4)}
        scores.append((held_out, threshold))
        artefacts.append(entry)
        print(file, entry["threshold"], entry["auc"], report(held_out > threshold, labels[HELD_OUT]))
    manifest["artefacts"] = artefacts
    known_answers(folder, parse(json.dumps(manifest), "manifest.yaml"), rows[HELD_OUT], labels[HELD_OUT], scores)
    manifest["known_answers"]["sha256"] = sha256(folder / "known-answers.npz")
    text = yaml.safe_dump(manifest, sort_keys=False, default_flow_style=None, width=130, allow_unicode=True)
    (folder / "manifest.yaml").write_text(f"# Written by train.py.\n{text}")
    write_rows(folder, rows, labels)


def write_rows(folder: Path, rows: Rows, labels: NDArray[np.int64]) -> None:
    """heldout.npz for the tests, sample.csv for a simulated PLC."""
    np.savez_compressed(folder / "heldout.npz", rows=rows[HELD_OUT].astype(np.int16), labels=labels[HELD_OUT].astype(np.int8))
    with (folder / "sample.csv").open("w", newline="") as file:
        table = csv.writer(file, lineterminator="\n")
        table.writerow([*POINTS, "anomaly"])
        table.writerows(np.column_stack([rows[SAMPLE], labels[SAMPLE]]).astype(int).tolist())


def template(mean: Rows, std: Rows) -> dict[str, Any]:
    points = [{"name": n, "mean": float(m), "std": float(s)} for n, m, s in zip(POINTS, mean, std, strict=True)]
    return {
        "name": "shuttle-anomaly",
        "version": "1.0.0",
        "licence": "Apache-2.0 (model), CC-BY-4.0 (data: Statlog Shuttle, UCI)",
        "description": "Finds rows of nine Space Shuttle sensor values that do not look like normal operation",
        "card": "card.md",
        "input": {"rows": 1, "points": points},
        "postprocess": {"type": "reconstruction_error", "error": "mean_squared", "output": "score"},
        "tolerance": 1e-5,
        "known_answers": {"file": "known-answers.npz", "sha256": "0" * 64},
    }


def describe(folder: Path, file: str, precision: str, session: Session) -> dict[str, Any]:
    entry: dict[str, Any] = {"file": file, "sha256": sha256(folder / file)}
    if file.endswith(".xml"):
        weights = file.replace(".xml", ".bin")
        entry["weights"] = {"file": weights, "sha256": sha256(folder / weights)}
    entry["precision"] = precision
    for side, spec in (("input", session.inputs[0]), ("output", session.outputs[0])):
        entry[side] = {"shape": list(spec.shape), "dtype": spec.dtype}
        if spec.scale:
            entry[side] |= {"scale": spec.scale, "zero_point": spec.zero_point}
    return entry


def score(session: Session, processing: Processing, rows: Rows) -> Rows:
    """What a gateway computes for each row."""
    name_in, name_out = session.inputs[0].name, session.outputs[0].name
    return np.array(
        [processing.outputs(session.run({name_in: processing.tensor(row[None, :])})[name_out])["score"] for row in rows]
    )


def auc(scores: Rows, labels: NDArray[np.int64]) -> float:
    """Area under the ROC curve by ranks; ties count half."""
    _, inverse, counts = np.unique(scores, return_inverse=True, return_counts=True)
    ranks = (np.cumsum(counts) - (counts - 1) / 2)[inverse]
    positives = int(labels.sum())
    return float((ranks[labels == 1].sum() - positives * (positives + 1) / 2) / (positives * (len(labels) - positives)))


def best_threshold(scores: Rows, labels: NDArray[np.int64]) -> float:
    """Best F1, in the middle between two scores, to 4 digits."""
    order = np.argsort(-scores)
    ordered, hits = scores[order], np.cumsum(labels[order])
    f1 = 2 * hits / (np.arange(1, len(scores) + 1) + labels.sum())
    best = int(np.argmax(f1[:-1]))
    return float(f"{(ordered[best] + ordered[best + 1]) / 2:.4g}")


def report(found: NDArray[np.bool_], labels: NDArray[np.int64]) -> str:
    hits = int((found & (labels == 1)).sum())
    return (
        f"found {hits} of {int(labels.sum())}, {int(found.sum()) - hits} false alarms in {int((labels == 0).sum())} normal rows"
    )


def known_answers(
    folder: Path, manifest: Manifest, rows: Rows, labels: NDArray[np.int64], scores: list[tuple[Rows, float]]
) -> None:
    """Held-out rows on which every artefact is sure, with the outputs of the fp32 TFLite artefact."""
    sure_low = np.all([values < threshold / KNOWN_MARGIN for values, threshold in scores], axis=0) & (labels == 0)
    sure_high = np.all([values > threshold * KNOWN_MARGIN for values, threshold in scores], axis=0) & (labels == 1)
    chosen = np.concatenate([np.flatnonzero(sure_low)[:KNOWN_NORMAL], np.flatnonzero(sure_high)[:KNOWN_ANOMALOUS]])
    session = TfliteEngine().load(folder / "fp32.tflite", "cpu")
    processing = Processing(manifest, session.inputs[0], session.outputs[0])
    name_in, name_out = session.inputs[0].name, session.outputs[0].name
    outputs = [processing.real(session.run({name_in: processing.tensor(rows[i][None, :])})[name_out]) for i in chosen]
    np.savez_compressed(
        folder / "known-answers.npz", windows=rows[chosen][:, None, :], outputs=np.array(outputs), decisions=labels[chosen]
    )


def sha256(path: Path) -> str:
    return hashlib.sha256(path.read_bytes()).hexdigest()


if __name__ == "__main__":
    main(Path(sys.argv[1] if len(sys.argv) > 1 else Path(__file__).parent))
