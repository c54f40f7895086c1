"""manifest.yaml: every mistake is refused, with the file, the key, the value and what to do."""

from __future__ import annotations

import copy
import re
from typing import Any

import pytest
import yaml

from edge_runtime.inference.engine import EngineError
from edge_runtime.inference.manifest import Manifest, parse

SHA = "a" * 64

GOOD: dict[str, Any] = {
    "name": "press",
    "version": "1.0.0",
    "licence": "Apache-2.0",
    "description": "Finds odd strokes",
    "input": {
        "rows": 4,
        "points": [{"name": "force", "mean": 10.0, "std": 2.0}, {"name": "way", "min": -1.0, "max": 3.0}, {"name": "raw"}],
    },
    "postprocess": {"type": "reconstruction_error"},
    "tolerance": 1e-5,
    "known_answers": {"file": "known-answers.npz", "sha256": SHA},
    "artefacts": [
        {
            "file": "press.tflite",
            "sha256": SHA,
            "precision": "fp32",
            "input": {"shape": [1, 4, 3], "dtype": "float32"},
            "output": {"shape": [1, 12], "dtype": "float32"},
            "threshold": 0.5,
        }
    ],
}


def changed(path: str, value: Any) -> dict[str, Any]:
    """GOOD with one key set (or removed: value is ...)."""
    data = copy.deepcopy(GOOD)
    *parents, last = [int(part) if part.isdigit() else part for part in path.split(".")]
    place: Any = data
    for part in parents:
        place = place[part]
    if value is ...:
        del place[last]
    else:
        place[last] = value
    return data


def taken(data: object) -> Manifest:
    return parse(yaml.safe_dump(data), "m")


def refusal(data: object) -> str:
    with pytest.raises(EngineError) as caught:
        parse(yaml.safe_dump(data, sort_keys=False), "models/press/manifest.yaml")
    assert re.match(r"models/press/manifest\.yaml:[0-9]+: ", caught.value.cause)
    assert caught.value.hint
    return caught.value.cause


def test_a_good_one_is_taken_with_its_defaults() -> None:
    manifest = taken(GOOD)
    assert manifest.decided_by == "score"
    assert [(point.shift, point.span) for point in manifest.input.points] == [(10.0, 2.0), (-1.0, 4.0), (0.0, 1.0)]


@pytest.mark.parametrize(
    ("path", "value", "words"),
    [
        ("threshold", 3, ["threshold: unknown key"]),
        ("artefacts.0.treshold", 3, ["artefacts[0].treshold: unknown key", "did you mean `threshold`?"]),
        ("input.points.1.scale", 3, ["input.points[1].scale: unknown key"]),
        ("licence", ..., ["licence: is missing"]),
        ("artefacts.0.sha256", "abc", ["artefacts[0].sha256: ", "abc"]),
        ("artefacts.0.file", "../press.tflite", ["artefacts[0].file: ", "../press.tflite"]),
        ("artefacts.0.file", "press.h5", ["artefacts[0].file: ", "press.h5"]),
        ("artefacts.0.input.shape", [-1, 4, 3], ["artefacts[0].input.shape[0]: ", "it is -1"]),
        (
            "artefacts.0.input.shape",
            [1, 9],
            ["[0].input.shape: press.tflite: input shape [1, 9] has 9 values, wanted 12", "4 x 3"],
        ),
        (
            "artefacts.0.output.shape",
            [1, 2],
            ["[0].output.shape: press.tflite: output shape [1, 2] has 2 values, wanted 12"],
        ),
        ("artefacts.0.output.dtype", "int8", ["dtype int8: needs scale"]),
        ("artefacts.0.output.scale", 0.5, ["dtype float32: has no scale"]),
        ("artefacts.0.weights", {"file": "press.bin", "sha256": SHA}, ["an IR (.xml) needs `weights`"]),
        ("artefacts.0.file", "press.xml", ["an IR (.xml) needs `weights`"]),
        ("artefacts", [], ["artefacts"]),
        ("input.points.0.std", ..., ["input.points[0]", "mean and std, or min and max"]),
        ("input.points.0.std", 0, ["input.points[0].std: ", "it is 0"]),
        ("input.points.1.max", -1.0, ["input.points[1]", "max must be above min"]),
        ("input.points.1.name", "force", ["points named twice: force"]),
        ("input.rows", 10_000_000, ["at most 16000000 values"]),
        ("postprocess", {"type": "softmax"}, ["postprocess", "softmax"]),
        ("postprocess", {"type": "raw", "outputs": ["a"], "decide": "b"}, ["decide: 'b' is none of the outputs"]),
        ("postprocess", {"type": "raw", "outputs": ["a", "b", "a"]}, ["outputs named twice: a"]),
        ("tolerance", float("nan"), ["tolerance: "]),
        ("name", "press 1", ["name: ", "press 1"]),
    ],
)
def test_a_mistake_is_named_by_file_key_and_value(path: str, value: Any, words: list[str]) -> None:
    message = refusal(changed(path, value))
    assert all(word in message for word in words), message


def test_all_mistakes_come_at_once() -> None:
    data = changed("licence", ...)
    data["tolerance"] = -1
    message = refusal(data)
    assert "licence: is missing" in message
    assert "tolerance: " in message
    assert "it is -1" in message


@pytest.mark.parametrize("data", [[], "text", 3])
def test_what_is_no_mapping_is_refused(data: object) -> None:
    assert "a mapping" in refusal(data)


def test_the_identity_of_an_ir_covers_its_weights() -> None:
    def ir(weights: str) -> Manifest:
        data = changed("artefacts.0.file", "press.xml")
        data["artefacts"][0]["weights"] = {"file": "press.bin", "sha256": weights}
        return taken(data)

    assert taken(GOOD).artefacts[0].identity == SHA
    assert ir(SHA).artefacts[0].identity != ir("b" * 64).artefacts[0].identity


def test_the_threshold_of_named_outputs_belongs_to_the_one_that_decides() -> None:
    data = changed("postprocess", {"type": "raw", "outputs": [f"o{n}" for n in range(12)], "decide": "o7"})
    assert taken(data).decided_by == "o7"
