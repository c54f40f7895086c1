"""manifest.yaml of a model folder: what goes in, what comes out, which files can do it, and how to see that they do it right.

    shuttle-anomaly/
      manifest.yaml        this
      card.md              where the data come from, licence, metrics, limits
      known-answers.npz    windows, the outputs that they must give, the decisions that must follow
      *.tflite *.xml+*.bin *.onnx    the artefacts

Unknown keys are refused; an error names the file, the line, the key, the value and what to do.
"""

from __future__ import annotations

import hashlib
import math
from collections.abc import Iterator
from typing import Annotated, Literal

from pydantic import BaseModel, ConfigDict, Field, model_validator

from edge_runtime.document import NAME, Document, DocumentError, Problem, read, validate
from edge_runtime.inference.engine import EngineError

Name = Annotated[str, Field(pattern=NAME)]
Sha256 = Annotated[str, Field(pattern=r"^[0-9a-f]{64}$")]
FileName = Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*$")]
"""In the model's own folder: no path leads out of it."""

WINDOW_VALUES_MAX = 16_000_000
"""Rows x points of one window (64 MB of float32)."""


class Section(BaseModel):
    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class File(Section):
    """A file of the model's folder, pinned."""

    file: FileName = Field(description="Name in the model's folder")
    sha256: Sha256 = Field(description="sha256sum FILE")


class Point(Section):
    """One column of a window. The model eats (value - mean) / std, or (value - min) / (max - min)."""

    name: str = Field(min_length=1, description="For people and for matching with a device's points")
    mean: float | None = Field(None, description="With std: scaled = (value - mean) / std")
    std: float | None = Field(None, gt=0, description="With mean")
    min: float | None = Field(None, description="With max: scaled = (value - min) / (max - min)")
    max: float | None = Field(None, description="With min")

    @model_validator(mode="after")
    def _one_scaling(self) -> Point:
        given = {key for key in ("mean", "std", "min", "max") if getattr(self, key) is not None}
        if given not in (set(), {"mean", "std"}, {"min", "max"}):
            raise ValueError("give mean and std, or min and max, or none of them")
        if self.min is not None and self.max is not None and self.max <= self.min:
            raise ValueError("max must be above min")
        return self

    @property
    def shift(self) -> float:
        return self.mean if self.mean is not None else self.min if self.min is not None else 0.0

    @property
    def span(self) -> float:
        """scaled = (value - shift) / span"""
        if self.std is not None:
            return self.std
        return self.max - self.min if self.max is not None and self.min is not None else 1.0


class Input(Section):
    """A window: rows x points, row by row, oldest first."""

    rows: int = Field(ge=1, description="Samples in a window")
    points: tuple[Point, ...] = Field(min_length=1, description="In the model's order")

    @model_validator(mode="after")
    def _distinct(self) -> Input:
        names = [point.name for point in self.points]
        twice = sorted({name for name in names if names.count(name) > 1})
        if twice:
            raise ValueError(f"points named twice: {', '.join(twice)}")
        if self.rows * len(names) > WINDOW_VALUES_MAX:
            raise ValueError(f"a window has at most {WINDOW_VALUES_MAX} values")
        return self


class ReconstructionError(Section):
    """An autoencoder: one output, how far the model's output is from its (scaled) input."""

    type: Literal["reconstruction_error"]
    error: Literal["mean_squared", "mean_absolute"] = Field("mean_squared", description="Over all values of the window")
    output: Name = Field("score", description="Name of the output")


class Raw(Section):
    """The model's own outputs, by name."""

    type: Literal["raw"]
    outputs: tuple[Name, ...] = Field(min_length=1, description="One name for each value of the output tensor, in order")
    decide: Name | None = Field(None, description="Which of them an artefact's threshold belongs to (default: the first)")

    @model_validator(mode="after")
    def _known(self) -> Raw:
        twice = sorted({name for name in self.outputs if self.outputs.count(name) > 1})
        if twice:
            raise ValueError(f"outputs named twice: {', '.join(twice)}")
        if self.decide is not None and self.decide not in self.outputs:
            raise ValueError(f"decide: {self.decide!r} is none of the outputs")
        return self


class Tensor(Section):
    """A tensor with a static shape. Quantised: real = (q - zero_point) * scale."""

    shape: tuple[Annotated[int, Field(ge=1)], ...] = Field(min_length=1, description="Static: no -1")
    dtype: Literal["float32", "float16", "int8", "uint8"] = Field(description="As the artefact has it")
    scale: float | None = Field(None, gt=0, description="int8, uint8: step of the quantisation")
    zero_point: int = Field(0, description="int8, uint8: the integer that means 0.0")

    @model_validator(mode="after")
    def _quantised(self) -> Tensor:
        if (self.scale is not None) != self.dtype.endswith("int8"):
            raise ValueError(f"dtype {self.dtype}: " + ("needs scale" if self.scale is None else "has no scale"))
        return self


class Artefact(File):
    """One file that computes the model. The threshold is its own: an int8 autoencoder saturates where fp32 does not."""

    file: Annotated[str, Field(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]*\.(tflite|xml|onnx)$")] = Field(
        description="Its suffix says which engines can load it: .tflite (tflite, openvino), .xml and .onnx (openvino)"
    )
    weights: File | None = Field(None, description="The .bin of an IR")
    precision: Literal["fp32", "fp16", "int8"] = Field(description="fp32: outputs must agree; others: decisions must agree")
    input: Tensor = Field(description="The one input tensor")
    output: Tensor = Field(description="The one output tensor")
    threshold: float | None = Field(None, description="Above it the window is an anomaly; `above: model` in a rule takes it")
    auc: float | None = Field(None, ge=0, le=1, description="Measured on held-out data")

    @model_validator(mode="after")
    def _weights_of_ir(self) -> Artefact:
        if self.file.endswith(".xml") != (self.weights is not None):
            raise ValueError("an IR (.xml) needs `weights`, its .bin; other files have none")
        return self

    @property
    def identity(self) -> str:
        """One sha256 for what is computed: of the file, or of both files of an IR (networks of one shape share the .xml)."""
        if self.weights is None:
            return self.sha256
        return hashlib.sha256(f"{self.sha256}{self.weights.sha256}".encode()).hexdigest()


class Manifest(Section):
    """A model."""

    name: Name = Field(description="Peers know it by this and its version; give it the folder's name, too")
    version: str = Field(min_length=1, description="Of the model, for people")
    licence: str = Field(min_length=1, description="Of the model and its data (SPDX where there is one)")
    description: str = Field(min_length=1, description="One sentence: what it finds")
    card: FileName = Field("card.md", description="Data card: source, licence, metrics, limits")
    input: Input = Field(description="A window")
    postprocess: ReconstructionError | Raw = Field(discriminator="type", description="From the output tensor to named outputs")
    tolerance: float = Field(gt=0, le=0.1, description="fp32 outputs may differ by this fraction of the outputs' range")
    known_answers: File = Field(description="npz: windows [n, rows, points], outputs [n, values], decisions [n]")
    artefacts: tuple[Artefact, ...] = Field(min_length=1, description="The files that compute it")

    @property
    def rows(self) -> int:
        """Samples in a window."""
        return self.input.rows

    @property
    def output_values(self) -> int:
        """Of the model's own output tensor, for one window."""
        if isinstance(self.postprocess, ReconstructionError):
            return self.input.rows * len(self.input.points)
        return len(self.postprocess.outputs)

    @property
    def points(self) -> tuple[str, ...]:
        """Columns of a window, in order."""
        return tuple(point.name for point in self.input.points)

    @property
    def files(self) -> tuple[File, ...]:
        """All that it names by their sha256, each once."""
        named = [self.known_answers, *self.artefacts, *(each.weights for each in self.artefacts if each.weights)]
        return tuple({each.file: each for each in named}.values())

    @property
    def outputs(self) -> tuple[str, ...]:
        """Names of what it tells of a window."""
        return (self.postprocess.output,) if isinstance(self.postprocess, ReconstructionError) else self.postprocess.outputs

    @property
    def decided_by(self) -> str:
        """The output that a threshold belongs to."""
        if isinstance(self.postprocess, ReconstructionError):
            return self.postprocess.output
        return self.postprocess.decide or self.postprocess.outputs[0]


def parse(text: str, file: str) -> Manifest:
    """The text of a manifest.yaml -> Manifest. Raises EngineError with every mistake in it: file, line, key, value, hint."""
    try:
        document = read(text, file)
    except DocumentError as error:
        raise EngineError(error.cause) from error
    problems = validate(document, Manifest)
    if not problems:
        manifest = Manifest.model_validate(document.value)
        problems = list(_sizes(document, manifest))
    if problems:
        raise EngineError("\n".join(map(str, problems)), "docs/guide-data-scientist.md shows the keys")
    return manifest


def _sizes(document: Document, manifest: Manifest) -> Iterator[Problem]:
    """Tensors that do not hold a window, or not what comes of one."""
    values = manifest.rows * len(manifest.points)
    window = f"input.rows x input.points is {manifest.rows} x {len(manifest.points)}"
    rebuilt = isinstance(manifest.postprocess, ReconstructionError)
    outputs = window if rebuilt else f"postprocess.outputs names {manifest.output_values}"
    for number, artefact in enumerate(manifest.artefacts):
        sides = (("input", artefact.input, values, window), ("output", artefact.output, manifest.output_values, outputs))
        for side, tensor, wanted, hint in sides:
            size = math.prod(tensor.shape)
            if size != wanted:
                message = f"{artefact.file}: {side} shape {list(tensor.shape)} has {size} values, wanted {wanted}"
                yield document.problem(("artefacts", number, side, "shape"), message, hint=hint)
