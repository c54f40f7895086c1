"""The contract of an engine: what turns an artefact (one file of a model) into outputs on one accelerator.

A session belongs to one thread: an OpenVINO request used by two threads gave 353 silently wrong results in 2,000. It caches
what it knows of its tensors (asking costs more than a small model), copies what it returns, and says where it really ran.
Accelerators are named cpu, gpu, npu, edgetpu (gpu.1: the second one); each engine translates to its own words.
"""

from __future__ import annotations

import importlib.util
import threading
from abc import ABC, abstractmethod
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.ports import EdgeError

Tensor = NDArray[np.generic]

PROBE_FILE = Path(__file__).with_name("probe.tflite")
"""The known-answer model of probe(): y = 2 x + 1 over float32[1, 4]. Made by `litert_torch.convert` from a torch.nn.Linear
with weight 2 * eye(4) and bias 1; every engine here loads .tflite."""

PROBE_INPUT = np.array([[-1.0, 0.0, 0.5, 3.0]], dtype=np.float32)
PROBE_OUTPUT = np.array([[-1.0, 1.0, 2.0, 7.0]], dtype=np.float32)
PROBE_ERROR_MAX = 1e-2
"""Accelerators that compute in half precision pass too."""


class EngineError(EdgeError):
    """An engine is missing, cannot load an artefact, or gave an answer that it should not have given."""


class EngineMissing(EngineError):
    """The library of an engine is not installed, or cannot work with what else is installed."""


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
    accelerator: str
    works: bool
    reason: str = ""
    version: str = ""


class Session(ABC):
    """A loaded artefact on one accelerator. The thread that runs it first owns it until `hand_over`."""

    inputs: tuple[TensorSpec, ...]
    outputs: tuple[TensorSpec, ...]
    executed_on: str
    """What really ran it, in the engine's words: "tflite:cpu", "openvino:CPU"."""

    def __init__(self, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...], executed_on: str) -> None:
        self.inputs = inputs
        self.outputs = outputs
        self.executed_on = executed_on
        self._wanted = [(spec.name, spec.shape, np.dtype(spec.dtype)) for spec in inputs]
        self._owner = 0

    def run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        """Tensors exactly as declared (name, shape, dtype) -> copies of the outputs, which no later run changes.

        Raises EngineError for any other name, shape or dtype, for a thread that does not own the session, and for what the
        engine itself reports.
        """
        thread = threading.get_ident()
        if self._owner != thread:
            self._claim(thread)
        if len(feeds) != len(self._wanted):
            raise EngineError(f"{self.executed_on}: wants the tensors {[n for n, _, _ in self._wanted]}, got {list(feeds)}")
        for name, shape, dtype in self._wanted:
            array = feeds.get(name)
            if array is None or array.shape != shape or array.dtype != dtype:
                got = "nothing" if array is None else f"{array.dtype}{list(array.shape)}"
                raise EngineError(f"{self.executed_on}: tensor {name!r} wants {dtype}{list(shape)}, got {got}")
        return self._run(feeds)

    def hand_over(self) -> None:
        """The owner lets go: the next thread that runs the session owns it. Nobody may be in `run` meanwhile."""
        self._owner = 0

    def _claim(self, thread: int) -> None:
        if self._owner:
            raise EngineError(
                f"{self.executed_on}: the session belongs to thread {self._owner}, thread {thread} must not use it",
                "load one session for each thread",
            )
        self._owner = thread

    @abstractmethod
    def _run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]: ...

    @abstractmethod
    def close(self) -> None:
        """May be called twice. A closed session raises EngineError on `run`."""


class Engine(Protocol):
    """One runtime library."""

    name: ClassVar[str]
    suffixes: ClassVar[tuple[str, ...]]
    """Of the artefacts that it can load: (".tflite",)."""
    accelerators: ClassVar[tuple[str, ...]]
    """That it could use if they were there."""
    libraries: ClassVar[tuple[str, ...]]
    """Top-level modules of which it needs one, the best first; none: it needs no library."""
    install: ClassVar[str]
    """What to type where they are missing."""

    def probe(self, accelerator: str) -> Probe: ...

    def load(self, artefact: Path, accelerator: str, threads: int = 1) -> Session:
        """Raises EngineError (unreadable file, unknown accelerator) or EngineMissing (library not installed)."""
        ...


def not_installed(engine: Engine) -> EngineMissing:
    return EngineMissing(f"engine {engine.name} is not installed", engine.install)


def is_installed(engine: Engine) -> bool:
    """As far as can be seen without importing it: an import takes long, and may fail all the same."""
    return not engine.libraries or any(importlib.util.find_spec(name) for name in engine.libraries)


def prove(engine: Engine, accelerator: str, version: str, executed_on: str) -> Probe:
    """Loads the known-answer model, runs it, and wants the known answer from the accelerator that was asked for."""
    try:
        session = engine.load(PROBE_FILE, accelerator)
        answer = session.run({session.inputs[0].name: PROBE_INPUT})[session.outputs[0].name]
        ran_on = session.executed_on
        session.close()
    except EngineError as error:
        return Probe(engine.name, accelerator, works=False, reason=str(error), version=version)
    wrong = float(np.max(np.abs(answer.astype(np.float64) - PROBE_OUTPUT)))
    reason = ""
    if not wrong <= PROBE_ERROR_MAX:
        reason = f"the known-answer model is off by {wrong:g} (allowed {PROBE_ERROR_MAX:g})"
    elif ran_on != executed_on:
        reason = f"it ran on {ran_on}, not on {executed_on}"
    return Probe(engine.name, accelerator, works=not reason, reason=reason, version=version)
