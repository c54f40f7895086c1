"""Models without an engine, with planned faults: for pipelines and gateways on virtual time.

models = FakeModels(points=("a", "b"), rows=4)        # World(open_model=models.open, ...)
models.faults.refuse = "no such file"                 # from now on none can be opened
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.inference.engine import EngineError
from edge_runtime.inference.model import INFER_S_MAX, Model, Stuck
from edge_runtime.records import Inference

Values = NDArray[np.float64]


class ModelFaults(msgspec.Struct):
    """May be changed while models are in use."""

    refuse: str = ""
    """No model can be opened, for this reason; one that is open fails."""
    stuck: bool = False
    """A window does not come back in time."""
    poison: Callable[[Values], bool] = lambda values: False
    """Windows that the model cannot compute, while it passes its known answers."""
    takes_s: float = 0.0
    """Of one window; a model computes one after the other."""


class FakeModels:
    """`score` = 1 x the first column's last value + 10 x the second's + 100 x ...: it shows the order of the columns."""

    def __init__(self, points: tuple[str, ...], rows: int = 1, threshold: float | None = None) -> None:
        self.points, self.rows, self.threshold = points, rows, threshold
        self.faults = ModelFaults()
        self.artefact = "f" * 64
        self.opened = self.closed = 0

    async def open(self, reference: str, *_: Any, **__: Any) -> Model:
        await asyncio.sleep(0.01)
        if self.faults.refuse:
            raise EngineError(self.faults.refuse, "this is a test")
        self.opened += 1
        return FakeModel(self, reference)


class FakeModel(Model):
    def __init__(self, world: FakeModels, name: str) -> None:
        self._world = world
        self.name, self.version, self.rows, self.points = name, "1", world.rows, world.points
        self.outputs: tuple[str, ...] = ("score",)
        self.threshold, self.artefact, self.executed_on = world.threshold, world.artefact, "fake:cpu"
        self.service_ns = round(world.faults.takes_s * 1e9) or 1_000_000
        self._turn = asyncio.Lock()
        self._shut = False

    async def infer(self, values: Values) -> Inference:
        faults = self._world.faults
        if self._shut:
            raise EngineError(f"model {self.name} is closed")
        if values.shape != (self.rows, len(self.points)):
            raise EngineError(f"model {self.name} got a window of {values.shape}")
        if faults.stuck:
            await asyncio.sleep(INFER_S_MAX)
            raise Stuck("the accelerator is stuck", "this is a test")
        if faults.refuse or faults.poison(values):
            raise EngineError(faults.refuse or "output score is nan", "this is a test")
        if faults.takes_s:
            async with self._turn:
                await asyncio.sleep(faults.takes_s)
        weights = 10.0 ** np.arange(len(self.points))
        return Inference({"score": float(values[-1] @ weights)}, self.executed_on, self.artefact, self.threshold)

    def close(self) -> None:
        self._world.closed += not self._shut
        self._shut = True
