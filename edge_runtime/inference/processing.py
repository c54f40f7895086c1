"""Before and after the model: raw window -> scaled (and quantised) tensor; output tensor -> named numbers. Pure numpy.

A handful of numpy calls on buffers that are made once: for a small model this costs as much as the model.
"""

from __future__ import annotations

import math

import numpy as np
from numpy.typing import NDArray

from edge_runtime.inference.engine import EngineError, Tensor, TensorSpec
from edge_runtime.inference.manifest import Manifest, ReconstructionError

Window = NDArray[np.float64]

BAD_OUTPUT = "a value of the window is not a number, or the model divides by zero, or takes a root or logarithm that there is not"


class Processing:
    """Of one session: the buffers are reused, so it is used by the session's thread only."""

    def __init__(self, manifest: Manifest, tensor_in: TensorSpec, tensor_out: TensorSpec) -> None:
        self._model = manifest.name
        points = manifest.input.points
        self._shape = (manifest.input.rows, len(points))
        self._shift = np.array([point.shift for point in points])
        self._span = np.array([point.span for point in points])
        self._scaled = np.zeros(self._shape)
        self._flat = self._scaled.reshape(-1)
        self._in, self._out = tensor_in, tensor_out
        self._tensor = np.zeros(tensor_in.shape, tensor_in.dtype)
        self._tensor_flat = self._tensor.reshape(-1)
        self._steps = np.zeros(self._flat.shape)
        self._difference = np.zeros(self._flat.shape)
        rule = manifest.postprocess
        self._error = rule.error if isinstance(rule, ReconstructionError) else ""
        self._names = (rule.output,) if isinstance(rule, ReconstructionError) else rule.outputs

    def tensor(self, values: Window) -> Tensor:
        """Raw values float64[rows, points] -> the model's input tensor (valid until the next call)."""
        if values.shape != self._shape or values.dtype != np.float64:
            raise EngineError(
                f"model {self._model} wants a window of {self._shape[0]} x {self._shape[1]} float64 (rows x points), "
                f"got {' x '.join(map(str, values.shape)) or 'a number'} {values.dtype}",
                "rows and points must be the model's (in a pipeline: window.count and points)",
            )
        np.subtract(values, self._shift, out=self._scaled)
        np.divide(self._scaled, self._span, out=self._scaled)
        if self._in.scale:
            limits = np.iinfo(self._in.dtype)
            np.divide(self._flat, self._in.scale, out=self._steps)
            np.rint(self._steps, out=self._steps)
            np.add(self._steps, self._in.zero_point, out=self._steps)
            np.clip(self._steps, limits.min, limits.max, out=self._steps)
            self._tensor_flat[...] = self._steps
        else:
            self._tensor_flat[...] = self._flat
        return self._tensor

    def real(self, tensor: Tensor) -> NDArray[np.float64]:
        """The output tensor as numbers, one after the other."""
        flat = tensor.reshape(-1).astype(np.float64)
        if self._out.scale:
            flat -= self._out.zero_point
            flat *= self._out.scale
        return flat

    def outputs(self, tensor: Tensor) -> dict[str, float]:
        """The output tensor of the window that `tensor` was last called with -> outputs by name, all finite."""
        real = self.real(tensor)
        if self._error:
            difference = self._difference
            np.subtract(real, self._flat, out=difference)
            total = np.dot(difference, difference) if self._error == "mean_squared" else np.abs(difference).sum()
            named = {self._names[0]: float(total) / difference.size}
        else:
            named = dict(zip(self._names, real.tolist(), strict=True))
        for name, value in named.items():
            if not math.isfinite(value):
                raise EngineError(f"model {self._model}: output {name} is {value}", BAD_OUTPUT)
        return named
