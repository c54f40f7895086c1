"""Models that this gateway computes for its peers (ports_mesh.Executor; runs).

They have own sessions, so that a peer's window and an own one never wait for the same lock; what is fast enough runs on the event
loop here, too."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable, Sequence
from typing import Any

import numpy as np
from numpy.typing import NDArray

from edge_runtime.inference.engine import EngineError
from edge_runtime.inference.model import Model, Stuck
from edge_runtime.ports import Dice, EdgeError
from edge_runtime.ports_mesh import Offer
from edge_runtime.records import Inference, Tensor

REOPEN_S_MIN, REOPEN_S_MAX = 1.0, 60.0
"""Between two attempts to open a model that does not work."""


FAILURES_MAX = 5
"""Windows that a model could not compute, one after the other: it is opened again."""


class Offering:
    """`changed` is called whenever `offers` gives something else. Say `use` first."""

    def __init__(self, changed: Callable[[], None], dice: Dice, log: Any) -> None:
        self._changed, self._dice, self._log = changed, dice, log
        self._references: tuple[str, ...] = ()
        self._open_model: Callable[[str], Awaitable[Model]]
        self._models: dict[str, Model] = {}
        self._names: dict[str, str] = {}
        """Of a model's name: the reference that it was opened by."""
        self._failures: dict[str, int] = {}
        """In a row."""
        self._broken = asyncio.Event()
        self._withdrawn = False

    def use(self, references: Sequence[str], open_model: Callable[[str], Awaitable[Model]]) -> None:
        """The models, as pipelines name them, and how they are opened: with the next `run`."""
        self._references, self._open_model = tuple(dict.fromkeys(references)), open_model

    async def run(self) -> None:
        """Opens them, one after the other, and keeps trying what does not open; until cancelled."""
        left, wait_s = list(self._references), REOPEN_S_MIN
        causes: dict[str, str] = {}
        try:
            while True:
                left = [each for each in left if not await self._open(each, causes)]
                if left:
                    await asyncio.sleep(self._dice.uniform(wait_s / 2, wait_s))
                else:
                    await self._broken.wait()
                    # Not at once: it may be the windows that are at fault, and whoever sends them must not keep us busy.
                    await asyncio.sleep(wait_s)
                    left = self._close_broken()
                wait_s = min(wait_s * 2, REOPEN_S_MAX)
        finally:
            self._forget(list(self._models))

    async def _open(self, reference: str, causes: dict[str, str]) -> bool:
        try:
            model = await self._open_model(reference)
        except EdgeError as error:
            if causes.get(reference) != error.cause:
                self._log.error("model_not_offered", model=reference, cause=error.cause, hint=error.hint)
            causes[reference] = error.cause
            return False
        name = name_of(model)
        if name in self._models:  # two names of one model
            model.close()
            return True
        self._models[name], self._names[name] = model, reference
        self._log.info("model_offered", model=name, executed_on=model.executed_on)
        self._changed()
        return True

    def _close_broken(self) -> list[str]:
        """Their references. Opening one again proves it with its known answers, or tells why it does not work."""
        self._broken.clear()
        broken = [name for name, failures in self._failures.items() if failures >= FAILURES_MAX]
        references = [self._names[name] for name in broken]
        self._forget(broken)
        self._changed()
        return references

    def _forget(self, names: Sequence[str]) -> None:
        for name in names:
            self._failures.pop(name, None)
            self._models.pop(name).close()

    # --- ports_mesh.Executor ---

    def withdraw(self) -> None:
        self._withdrawn = True
        self._changed()

    def resume(self) -> None:
        self._withdrawn = False
        self._changed()

    def offers(self) -> list[Offer]:
        return [found for name in sorted(self._models) if (found := self.offer(name)) is not None]

    def offer(self, model: str) -> Offer | None:
        found = None if self._withdrawn else self._models.get(model)
        return None if found is None else Offer(model, found.executed_on, found.service_ns, found.artefact)

    async def execute(self, model: str, tensor: Tensor) -> Inference:
        found = self._models.get(model)
        if found is None:
            raise EngineError(f"model {model} is not offered here", f"offered: {', '.join(sorted(self._models)) or 'none'}")
        values = values_of(tensor)
        try:
            inference = await found.infer(values)
        except Stuck:  # the model replaces its worker itself
            raise
        except EngineError:
            self._failures[model] = self._failures.get(model, 0) + 1
            if self._failures[model] >= FAILURES_MAX:
                self._broken.set()
            raise
        self._failures.pop(model, None)
        return inference


def name_of(model: Model) -> str:
    """name@version: the same at every gateway."""
    return f"{model.name}@{model.version}"


def tensor_of(values: NDArray[np.float64]) -> Tensor:
    """A raw window float64[rows, points], as it travels."""
    return Tensor("float64", values.shape, np.ascontiguousarray(values, "<f8").data.cast("B"))


def values_of(tensor: Tensor) -> NDArray[np.float64]:
    """Raises EngineError: windows are float64[rows, points] of numbers; an int8 artefact would compute something of nan."""
    if tensor.dtype != "float64" or len(tensor.shape) != 2:
        raise EngineError(f"a window is float64[rows, points], not {tensor.dtype}{list(tensor.shape)}", "send raw values")
    values = np.frombuffer(tensor.data, "<f8").reshape(tensor.shape)
    if not np.isfinite(values).all():
        raise EngineError("a value of the window is nan or infinite", "leave such rows out, or fill them")
    return values
