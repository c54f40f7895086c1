"""An engine with planned faults around a real one: what a driver, a stick or a broken file does to us."""

from __future__ import annotations

import threading
from collections.abc import Mapping
from pathlib import Path
from typing import ClassVar

import msgspec
import numpy as np

from edge_runtime.inference.engine import Engine, EngineError, Probe, Session, Tensor


class Faults(msgspec.Struct):
    """May be changed while the engine is in use."""

    refuse: str = ""
    """`load` raises EngineError with this."""
    fail: str = ""
    """`run` raises EngineError with this."""
    off: float = 0.0
    """Added to every output."""
    stuck: bool = False
    """`run` does not come back before `FaultyEngine.release`."""


class FaultyEngine:
    """The real engine's answers, on an accelerator that this machine may not have, with faults."""

    name: ClassVar[str] = "faulty"
    accelerators: ClassVar[tuple[str, ...]] = ("edgetpu", "npu", "gpu")
    suffixes: ClassVar[tuple[str, ...]] = (".tflite", ".xml", ".onnx")
    libraries: ClassVar[tuple[str, ...]] = ()
    install: ClassVar[str] = ""

    def __init__(self, inner: Engine, *accelerators: str) -> None:
        self.inner = inner
        self.faults = {accelerator: Faults() for accelerator in accelerators}
        self.loads = 0
        self.entered = threading.Event()
        """Set when a stuck call has begun."""
        self._released = threading.Event()

    def release(self) -> None:
        """Lets every stuck call go on, so that its thread can end."""
        self._released.set()

    def probe(self, accelerator: str) -> Probe:
        reason = self.faults[accelerator].refuse if accelerator in self.faults else f"no {accelerator} here"
        return Probe(self.name, accelerator, works=not reason, reason=reason)

    def load(self, artefact: Path, accelerator: str, threads: int = 1) -> Session:
        faults = self.faults.get(accelerator)
        if faults is None:
            raise EngineError(f"no {accelerator} here")
        if faults.refuse:
            raise EngineError(faults.refuse)
        if not artefact.name.endswith(self.inner.suffixes):
            raise EngineError(f"{artefact}: not for {self.inner.name}")
        self.loads += 1
        return _FaultySession(self.inner.load(artefact, "cpu", threads), accelerator, faults, self)

    def wait(self) -> None:
        self.entered.set()
        self._released.wait()


class _FaultySession(Session):
    def __init__(self, inner: Session, accelerator: str, faults: Faults, engine: FaultyEngine) -> None:
        super().__init__(inner.inputs, inner.outputs, f"faulty:{accelerator}")
        self._inner, self._faults, self._engine = inner, faults, engine

    def _run(self, feeds: Mapping[str, Tensor]) -> dict[str, Tensor]:
        if self._faults.stuck:
            self._engine.wait()
        if self._faults.fail:
            raise EngineError(self._faults.fail)
        outputs = self._inner.run(feeds)
        return {name: np.asarray(array + np.asarray(self._faults.off, array.dtype)) for name, array in outputs.items()}

    def hand_over(self) -> None:
        super().hand_over()
        self._inner.hand_over()

    def close(self) -> None:
        self._inner.close()
