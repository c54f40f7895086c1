"""The contract of an engine: what turns an artefact (one file of a model) into outputs on one accelerator.

A session belongs to one worker and is never shared between threads: an OpenVINO request used by two threads gave 353
silently wrong results in 2,000. It caches what it knows of its tensors (asking costs more than a small model), copies what
it returns, and says where it really ran.
"""

from __future__ import annotations

from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.ports import EdgeError


class EngineError(EdgeError):
    """An engine is missing, cannot load an artefact, or gave an answer that it should not have given."""


class TensorSpec(msgspec.Struct, frozen=True):
    """A tensor as the engine declares it. `scale` and `zero_point` of a quantised one: real = (q - zero_point) * scale."""

    name: str
    shape: tuple[int, ...]
    dtype: str
    scale: float = 0.0
    zero_point: int = 0


class Probe(msgspec.Struct, frozen=True):
    """What an engine can do on this machine, proved by running a known-answer model, and the exact reason if it can not."""

    engine: str
    device: str
    works: bool
    reason: str = ""
    version: str = ""


class Session(Protocol):
    """A loaded artefact on one accelerator."""

    @property
    def inputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def outputs(self) -> tuple[TensorSpec, ...]: ...

    @property
    def executed_on(self) -> str:
        """What really ran it, in the engine's words: "tflite:cpu", "openvino:CPU"."""
        ...

    def run(self, feeds: Mapping[str, NDArray[np.generic]]) -> dict[str, NDArray[np.generic]]:
        """Tensors exactly as declared (dtype and shape) -> copies of the outputs. Raises EngineError on any other shape."""
        ...

    def close(self) -> None: ...


class Engine(Protocol):
    """One runtime library."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """Of the artefacts that it can load: (".tflite",)."""

    def probe(self, device: str) -> Probe: ...

    def load(self, artefact: Path, device: str, threads: int = 1) -> Session:
        """Raises EngineError (missing library, unreadable file, unknown device)."""
        ...
