"""A pipeline's model, opened again until it works. What fails here holds up this pipeline only: meanwhile a polled source's queue
drops its oldest samples and counts them, and the journal keeps everything.

    it cannot be opened, or does not fit    tried again for ever
    it fails on a window                    opened again, which proves it with its known answers; then the same window again
    it is stuck                             the same window again: the model replaces its worker itself
    it is proved, and fails every time      the window is at fault: its result says so, and the next one's turn comes
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.inference.engine import EngineError
from edge_runtime.inference.model import Model, Stuck
from edge_runtime.ports import Dice, EdgeError
from edge_runtime.records import Inference

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.5, 30.0
"""Between attempts to open a model, or to run a window."""

ATTEMPTS_MAX = 3
"""To compute one window with a model that has proved itself."""

OpenModel = Callable[[], Awaitable[Model | None]]
"""None: the pipeline has no model. Raises EngineError."""


class PipelineState(msgspec.Struct):
    """`cause` and `hint` say why it stands still, "" if it does not. `failed`: windows that the model could not compute;
    `dropped`: samples of a polled source that came while the queue was full; `discarded` (windows), `skipped` (samples), by
    reason, and `bad` values, by point, are the windowing's."""

    cause: str = ""
    hint: str = ""
    samples: int = 0
    windows: int = 0
    failed: int = 0
    events: int = 0
    dropped: int = 0
    executed_on: str = ""
    alarms: tuple[str, ...] = ()
    discarded: dict[str, int] = {}
    skipped: dict[str, int] = {}
    bad: dict[str, int] = {}


class SteadyModel:
    """`fit` is called with each model that was opened, and raises EngineError where it does not fit the pipeline."""

    def __init__(
        self, open_model: OpenModel, fit: Callable[[Model | None], None], state: PipelineState, dice: Dice, log: Any
    ) -> None:
        self._open_model, self._fit, self._state, self._dice, self._log = open_model, fit, state, dice, log
        self._opening = asyncio.Lock()
        self.model: Model | None = None
        """None: it is being opened."""
        self.last: Model | None = None
        """The one that was opened last; where it is closed, what is known of it still holds."""

    async def open(self) -> None:
        """Returns when the pipeline can run."""
        await self._until_open()
        self._works()

    async def infer(self, values: NDArray[np.float64]) -> tuple[Inference, str]:
        """A raw window, only where there is a model. ("", or why it cannot be computed.) Several may be under way."""
        attempt, proved, fault = 0, 0, ""
        while True:
            model = await self._opened()
            try:
                inference = await model.infer(values)
            except EngineError as error:
                if self.model is not model:
                    continue  # another window has found it broken, and had it opened again
                self._stands_still(error)
                stuck = isinstance(error, Stuck)  # no window's fault; and the model replaces its worker itself, and faster
                proved, fault = proved + (not stuck), str(error)
                if proved == ATTEMPTS_MAX:
                    break
                await self._pause(attempt)
                attempt += 1
                if not stuck and self.model is model:
                    self.close()
            else:
                self._works()
                self._state.executed_on = inference.executed_on
                return inference, ""
        self._log.error("window_failed", cause=fault, hint="the model passes its known answers: look at the window's values")
        self._state.failed += 1
        self._works()
        return Inference({}, model.executed_on, model.artefact), fault

    async def _opened(self) -> Model:
        if self.model is None:
            async with self._opening:
                if self.model is None:
                    await self._until_open()
        assert self.model is not None
        return self.model

    def close(self) -> None:
        if self.model:
            self.model.close()
        self.model = None

    async def _until_open(self) -> None:
        attempt = 0
        while True:
            self.close()
            try:
                self.model = await self._open_model()
                self._fit(self.model)
            except EdgeError as error:
                self._stands_still(error)
            else:
                self._loaded(self.model)
                return
            self.close()
            await self._pause(attempt)
            attempt += 1

    def _loaded(self, model: Model | None) -> None:
        """Said only of a model that fits: a pipeline that stands still must not look healthy in the log."""
        self.last = model
        self._state.executed_on = model.executed_on if model else ""
        if model:
            self._log.info("model_loaded", model=model.name, executed_on=model.executed_on, artefact=model.artefact[:12])

    async def _pause(self, attempt: int) -> None:
        wait_s = min(BACKOFF_S_MIN * 2.0 ** min(attempt, 10), BACKOFF_S_MAX)
        await asyncio.sleep(self._dice.uniform(wait_s / 2, wait_s))

    def _stands_still(self, error: EdgeError) -> None:
        if error.cause != self._state.cause:
            self._log.error("pipeline_stopped", cause=error.cause, hint=error.hint)
        self._state.cause, self._state.hint = error.cause, error.hint

    def _works(self) -> None:
        if self._state.cause:
            self._log.info("pipeline_works")
            self._state.cause = self._state.hint = ""
