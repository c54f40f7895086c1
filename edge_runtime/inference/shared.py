"""A pipeline's windows, computed here or by a peer: between pipeline/ and mesh/ (runs)."""

from __future__ import annotations

from typing import Protocol

import numpy as np
from numpy.typing import NDArray

from edge_runtime import config
from edge_runtime.inference.model import Model
from edge_runtime.inference.offering import name_of, tensor_of
from edge_runtime.mesh.placing import Job, NotPlaced, Placing
from edge_runtime.records import Inference


class Steady(Protocol):
    """The pipeline's own model (pipeline/steady.py): it tries again until it has computed a window, or knows that it cannot."""

    model: Model | None
    """None: it does not work now."""

    async def infer(self, values: NDArray[np.float64]) -> tuple[Inference, str]: ...


class Shared:
    """pipeline.Place over the mesh, for one pipeline."""

    def __init__(self, settings: config.Pipeline, placing: Placing) -> None:
        self._settings, self._placing = settings, placing

    async def __call__(
        self, result_id: str, model: Model, values: NDArray[np.float64], here: Steady
    ) -> tuple[Inference, str, str]:
        """What came of the window, "" or why it cannot be computed, and who computed it and why."""
        fault = ""

        async def compute() -> Inference:
            nonlocal fault
            inference, fault = await here.infer(values)
            return inference

        try:
            placed = await self._placing.place(self._job(result_id, model, values), compute if here.model else None)
        except NotPlaced as error:  # a window that was accepted has a result: it waits until our own model works again
            return (*await here.infer(values), f"here: {error.cause}")
        if placed.decision.peer and sorted(placed.inference.outputs) != sorted(model.outputs):
            return (*await here.infer(values), "here: the peer's outputs are not those of the model")
        if not fault and (placed.inference.threshold is None) != (model.threshold is None):
            # The artefact of a peer that has no threshold could neither raise nor clear our alarms.
            return (*await here.infer(values), "here: the peer's artefact has no threshold")
        return placed.inference, fault, placed.decision.text

    def _job(self, result_id: str, model: Model, values: NDArray[np.float64]) -> Job:
        settings = self._settings
        return Job(
            result_id=result_id,
            model=name_of(model),
            tensor=tensor_of(values),
            privacy=settings.privacy,
            deadline_s=settings.deadline_s,
            priority=settings.priority,
            service_ns=model.service_ns,
        )
