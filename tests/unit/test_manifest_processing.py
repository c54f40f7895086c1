"""Scaling, quantisation and scores as the manifest declares them."""

from __future__ import annotations

import json
from typing import Any

import numpy as np
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from hypothesis.extra.numpy import arrays

from edge_runtime.inference.engine import EngineError, TensorSpec
from edge_runtime.inference.manifest import Manifest, parse
from edge_runtime.inference.processing import Processing

SHA = "a" * 64
FLOAT = TensorSpec("x", (1, 2, 2), "float32")
INT8 = TensorSpec("x", (1, 2, 2), "int8", 0.1, -3)


def manifest(postprocess: dict[str, Any], outputs: int = 4) -> Manifest:
    artefact = {
        "file": "m.tflite",
        "sha256": SHA,
        "precision": "fp32",
        "input": {"shape": [1, 2, 2], "dtype": "float32"},
        "output": {"shape": [1, outputs], "dtype": "float32"},
    }
    data = {
        "name": "m",
        "version": "1",
        "licence": "none",
        "description": "d",
        "input": {"rows": 2, "points": [{"name": "a", "mean": 1.0, "std": 2.0}, {"name": "b", "min": 10.0, "max": 20.0}]},
        "postprocess": postprocess,
        "tolerance": 1e-5,
        "known_answers": {"file": "k.npz", "sha256": SHA},
        "artefacts": [artefact],
    }
    return parse(json.dumps(data), "m")


def autoencoder(tensor: TensorSpec = FLOAT, error: str = "mean_squared") -> Processing:
    return Processing(manifest({"type": "reconstruction_error", "error": error}), tensor, tensor)


WINDOW = np.array([[3.0, 15.0], [1.0, 30.0]])
SCALED = np.array([1.0, 0.5, 0.0, 2.0])


def test_each_point_is_scaled_as_declared() -> None:
    tensor = autoencoder().tensor(WINDOW)
    assert tensor.shape == (1, 2, 2)
    assert tensor.dtype == np.float32
    np.testing.assert_allclose(tensor.reshape(-1), SCALED)


def test_quantised_input_is_rounded_shifted_and_saturates() -> None:
    tensor = autoencoder(INT8).tensor(WINDOW * np.array([1.0, 100.0]))
    assert tensor.dtype == np.int8
    assert tensor.reshape(-1).tolist() == [7, 127, -3, 127]


@pytest.mark.parametrize(("error", "wanted"), [("mean_squared", (1 + 0.25 + 0 + 4) / 4), ("mean_absolute", 3.5 / 4)])
def test_the_score_is_the_distance_from_the_scaled_input(error: str, wanted: float) -> None:
    processing = autoencoder(error=error)
    processing.tensor(WINDOW)
    assert processing.outputs(np.zeros((1, 4), np.float32)) == {"score": pytest.approx(wanted)}


def test_a_quantised_score_compares_with_the_input_before_it_saturated() -> None:
    # Otherwise the worst anomalies, which saturate most, would score least.
    processing = autoencoder(INT8)
    tensor = processing.tensor(np.array([[3.0, 15.0], [1001.0, 30.0]]))
    assert processing.outputs(tensor)["score"] > 1000


def test_raw_outputs_have_the_declared_names() -> None:
    processing = Processing(
        manifest({"type": "raw", "outputs": ["cold", "hot"]}, 2), FLOAT, TensorSpec("y", (1, 2), "int8", 0.5, 1)
    )
    processing.tensor(WINDOW)
    assert processing.outputs(np.array([[3, -1]], np.int8)) == {"cold": 1.0, "hot": -1.0}


@pytest.mark.parametrize("shape", [(2,), (1, 2), (2, 3), (4, 2), (1, 2, 2), ()])
def test_another_window_is_refused_naming_model_wanted_and_got(shape: tuple[int, ...]) -> None:
    with pytest.raises(EngineError, match="model m wants a window of 2 x 2 float64") as caught:
        autoencoder().tensor(np.zeros(shape))
    assert "got " + (" x ".join(map(str, shape)) or "a number") in caught.value.cause
    assert caught.value.hint


def test_another_dtype_is_refused() -> None:
    with pytest.raises(EngineError, match="got 2 x 2 int64"):
        autoencoder().tensor(np.zeros((2, 2), np.int64))  # type: ignore[arg-type]


@pytest.mark.parametrize("value", [np.nan, np.inf])
def test_an_output_that_is_no_number_is_an_error(value: float) -> None:
    processing = autoencoder()
    tensor = processing.tensor(np.full((2, 2), value))
    with pytest.raises(EngineError, match="output score is") as caught:
        processing.outputs(np.zeros_like(tensor))
    assert "not a number" in caught.value.hint


@settings(max_examples=200)
@given(arrays(np.float64, (2, 2), elements=st.floats(-1e6, 1e6)))
def test_quantising_and_back_is_within_half_a_step_or_saturated(window: np.ndarray) -> None:
    processing = autoencoder(INT8)
    back = processing.real(processing.tensor(window))
    scaled = ((window - [1.0, 10.0]) / [2.0, 10.0]).reshape(-1)
    low, high = (-128 + 3) * 0.1, (127 + 3) * 0.1
    np.testing.assert_allclose(back, np.clip(scaled, low, high), atol=0.05 + 1e-9)


def test_the_window_is_left_as_it_was() -> None:
    window = WINDOW.copy()
    autoencoder(INT8).tensor(window)
    np.testing.assert_array_equal(window, WINDOW)
