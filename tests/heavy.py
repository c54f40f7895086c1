"""A model that takes time, made on the spot with OpenVINO alone: a window of 8 values goes through so many matrices.

folder = heavy_model(layers=24)         # .cache/models/heavy-24: manifest, IR, known answers; kept from run to run

It computes in the cache of one core and hardly reads memory, so that two cores do twice as much.
"""

from __future__ import annotations

import hashlib
import shutil
import tempfile
import time
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import yaml

CACHE = Path(__file__).parent.parent / ".cache" / "models"
POINTS = [f"f{number + 1}" for number in range(8)]
HEIGHT, WIDTH = 64, 512
"""Of what the 8 values are spread to."""
SETTINGS: dict[str, Any] = {
    "PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1, "NUM_STREAMS": 1, "INFERENCE_PRECISION_HINT": "f32",
}  # fmt: skip
"""As the engine compiles it."""


def heavy_model(layers: int) -> Path:
    """A model folder; its name and the model's are `heavy-{layers}`."""
    folder = CACHE / f"heavy-{layers}"
    if not (folder / "manifest.yaml").exists():
        CACHE.mkdir(parents=True, exist_ok=True)
        fresh = Path(tempfile.mkdtemp(dir=CACHE))
        _write(fresh, layers)
        shutil.rmtree(folder, ignore_errors=True)
        fresh.rename(folder)
    return folder


def layers_for(seconds: float) -> int:
    """How many make a window take so long here, alone on a core."""
    runs = 16
    request = _library().Core().compile_model(_network(runs), "CPU", SETTINGS).create_infer_request()
    took_s = [_timed(request) for _ in range(30)]
    return max(1, round(runs * seconds / min(took_s)))


def windows_per_s(layers: int, seconds: float) -> float:
    """Of the bare engine, in this process."""
    request = _library().Core().compile_model(_network(layers), "CPU", SETTINGS).create_infer_request()
    for _ in range(5):
        _timed(request)
    count, end = 0, time.monotonic() + seconds
    while time.monotonic() < end:
        _timed(request)
        count += 1
    return count / seconds


def _timed(request: Any) -> float:
    begin = time.perf_counter()
    request.infer({0: np.ones((1, len(POINTS)), np.float32)})
    return time.perf_counter() - begin


def _library() -> Any:
    return pytest.importorskip("openvino", reason="MISSING PACKAGE: openvino: no model that takes time can be made")


def _network(layers: int) -> Any:
    library = _library()
    ops = library.opset13
    dice = np.random.default_rng(1)

    def matrix(rows: int, columns: int) -> Any:
        return ops.constant((dice.standard_normal((rows, columns)) / np.sqrt(rows)).astype(np.float32))

    window = ops.parameter([1, len(POINTS)], np.float32, name="window")
    spread = ops.matmul(window, matrix(len(POINTS), HEIGHT * WIDTH), False, False)
    values, weights = ops.reshape(spread, np.array([HEIGHT, WIDTH]), False), matrix(WIDTH, WIDTH)
    for _ in range(layers):
        values = ops.tanh(ops.matmul(values, weights, False, False))
    score = ops.reduce_mean(ops.abs(values), np.array([0, 1]), keep_dims=False)
    return library.Model([ops.reshape(score, np.array([1, 1]), False)], [window], "heavy")


def _write(folder: Path, layers: int) -> None:
    library, network = _library(), _network(layers)
    library.save_model(network, folder / "fp32.xml", compress_to_fp16=False)
    windows = np.random.default_rng(2).standard_normal((4, 1, len(POINTS)))
    compiled = library.Core().compile_model(network, "CPU", SETTINGS)
    outputs = np.array([compiled(window.astype(np.float32))[0][0] for window in windows])
    np.savez(folder / "known.npz", windows=windows, outputs=outputs, decisions=np.zeros(len(windows), np.int64))
    (folder / "card.md").write_text("Matrices of random numbers: it finds nothing, and takes time.\n")
    manifest = {
        "name": f"heavy-{layers}",
        "version": "1.0.0",
        "licence": "Apache-2.0",
        "description": "Takes time",
        "input": {"rows": 1, "points": [{"name": name} for name in POINTS]},
        "postprocess": {"type": "raw", "outputs": ["score"]},
        "tolerance": 0.1,
        "known_answers": _pinned(folder / "known.npz"),
        "artefacts": [
            {
                **_pinned(folder / "fp32.xml"),
                "weights": _pinned(folder / "fp32.bin"),
                "precision": "fp32",
                "input": {"shape": [1, len(POINTS)], "dtype": "float32"},
                "output": {"shape": [1, 1], "dtype": "float32"},
            }
        ],
    }
    (folder / "manifest.yaml").write_text(yaml.safe_dump(manifest))


def _pinned(file: Path) -> dict[str, str]:
    return {"file": file.name, "sha256": hashlib.sha256(file.read_bytes()).hexdigest()}
