"""One pipeline: samples -> windows -> model -> rules -> records on the disk.

Samples come from a queue (polled sources: bounded, the oldest are dropped and counted) or from the input journal (sources that
ask again). What came of a chunk of samples and how far the pipeline is in the journal are committed in one transaction: a
restart goes on exactly there, and makes no window twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Awaitable, Callable, Sequence
from typing import Any, TypeVar

import msgspec

from edge_runtime import config
from edge_runtime.inference.engine import EngineError
from edge_runtime.inference.model import Inference, Model
from edge_runtime.outbox.batch import Position
from edge_runtime.outbox.store import Store
from edge_runtime.pipeline import results
from edge_runtime.pipeline.rules import Rules
from edge_runtime.pipeline.windowing import State, Window, Windowing
from edge_runtime.ports import Dice, EdgeError
from edge_runtime.records import Draft, Result, Sample
from edge_runtime.sources.reporting import Reporter

T = TypeVar("T")

CHUNK_SAMPLES_MAX = 256
"""Handled and committed together while the disk was busy; one at a time when nothing waits."""

MOVED_ROWS = 64
"""A position that moved this far is committed even if no window came of it: the journal must not fill with what is not needed."""

BACKOFF_S_MIN, BACKOFF_S_MAX = 0.5, 30.0
"""Between attempts to load or run a model that does not work."""

OpenModel = Callable[[], Awaitable[Model | None]]


class PipelineState(msgspec.Struct):
    """`cause` and `hint` say why it does not work, "" if it does."""

    cause: str = ""
    hint: str = ""
    samples: int = 0
    windows: int = 0
    events: int = 0
    dropped: int = 0
    executed_on: str = ""
    alarms: tuple[str, ...] = ()


class Saved(msgspec.Struct):
    """What a restart needs, beside the journal: committed with the results."""

    windowing: State = State()
    rules: msgspec.Raw = msgspec.Raw(b"{}")


class Pipeline:
    """`run` until cancelled; `finish` handles what has come so far."""

    def __init__(
        self, name: str, settings: config.Pipeline, device_points: Sequence[str], *, journaled: bool, open_model: OpenModel,
        store: Store, reporter: Reporter, dice: Dice, log: Any, identity: str,
    ) -> None:  # fmt: skip
        self.name, self.device = name, settings.device
        self.state = PipelineState()
        self._settings, self._device_points, self._journaled = settings, tuple(device_points), journaled
        self._points = tuple(settings.points or device_points)
        self._open_model, self._store, self._reporter, self._dice = open_model, store, reporter, dice
        self._log, self._identity = log.bind(pipeline=name), identity
        self._queue: deque[Sample] = deque(maxlen=settings.queue_max)
        self._news = store.listen()
        self._model: Model | None = None
        self._windowing: Windowing | None = None
        self._rules = Rules([])
        self._next_row = self._committed_row = 0
        self._quiet = asyncio.Event()
        self._dropping = False

    def offer(self, samples: Sequence[Sample]) -> None:
        """From a polled source. Where the queue is full the oldest samples go, and are counted."""
        too_many = max(0, len(self._queue) + len(samples) - self._settings.queue_max)
        if too_many and not self._dropping:
            self._log.warning("samples_dropped", cause=self.state.cause or "samples come faster than the pipeline handles them")
        self._dropping = bool(too_many)
        self.state.dropped += too_many
        self._queue.extend(samples)
        self._quiet.clear()
        self._news.set()

    def note_lost(self, samples: Sequence[Sample]) -> None:
        """The device became unreachable. A window of the journal must not depend on it (a restart could not repeat it): its
        own gap tells; what is forwarded, and windows of polled devices, are told."""
        if not (self._journaled and self._settings.window):
            self.offer(samples)

    async def run(self) -> None:
        await self._restore()
        await self._until_it_works(self._load)
        try:
            while True:
                self._news.clear()
                samples = await self._take()
                if samples:
                    await self._handle(samples)
                else:
                    self._quiet.set()
                    await self._news.wait()
        finally:
            if self._model:
                self._model.close()

    async def finish(self) -> None:
        """Returns when nothing waits any more."""
        self._news.set()
        await self._quiet.wait()

    # --- samples ---

    async def _take(self) -> list[Sample]:
        if self._queue:
            return [self._queue.popleft() for _ in range(min(len(self._queue), CHUNK_SAMPLES_MAX))]
        if self._journaled and self._store.journal_head(self.device) >= self._next_row:
            return await self._store.read_journal(self.device, self._next_row, CHUNK_SAMPLES_MAX)
        return []

    async def _handle(self, samples: Sequence[Sample]) -> None:
        drafts: list[Draft] = []
        for sample in samples:
            drafts += await self._windowed(sample) if self._windowing else self._forwarded(sample)
        self.state.samples += len(samples)
        if samples[-1].row:
            self._next_row = samples[-1].row + 1
        position = self._position()
        if drafts or position.row >= self._committed_row + MOVED_ROWS:
            self._committed_row = position.row
            await self._store.commit(drafts, position if self._journaled or self._settings.rules else None)

    def _forwarded(self, sample: Sample) -> list[Draft]:
        if not self._reporter.changed(sample):
            return []
        return [results.sample_draft(self.name, self._device_points, sample)]

    async def _windowed(self, sample: Sample) -> list[Draft]:
        assert self._windowing is not None
        drafts: list[Draft] = []
        for window in self._windowing.push(sample):
            self.state.windows += 1
            drafts += await self._judge(window)
        return drafts

    # --- windows ---

    async def _judge(self, window: Window) -> list[Draft]:
        inference = await self._until_it_works(lambda: self._infer(window))
        name = results.window_name(window)
        result_id = results.content_id(self._identity, self.name, inference.artefact, name)
        events = self._apply_rules(result_id, window, inference)
        result = Result(
            id=result_id,
            pipeline=self.name,
            device=self.device,
            window=name,
            first=window.first,
            last=window.last,
            rows=window.rows,
            filled=window.filled,
            model=self._model.name if self._model else "",
            artefact=inference.artefact,
            executed_on=inference.executed_on,
            outputs=inference.outputs,
            alarms=self.state.alarms,
        )
        return [results.result_draft(result), *events]

    async def _infer(self, window: Window) -> Inference:
        if self._model is None:
            return Inference(results.statistics(self._points, window.values), "", "")
        inference = await self._model.infer(window.values)
        self.state.executed_on = inference.executed_on
        return inference

    def _apply_rules(self, result_id: str, window: Window, inference: Inference) -> list[Draft]:
        if self._model:
            self._rules.model_limit = self._model.threshold  # another artefact may have taken over
        transitions = self._rules.update(inference.outputs, window.last)
        self.state.events += len(transitions)
        self.state.alarms = self._rules.alarms
        return [results.event_draft(self.name, self.device, result_id, transition) for transition in transitions]

    # --- where it stands ---

    def _position(self) -> Position:
        saved = Saved(rules=msgspec.Raw(self._rules.snapshot()))
        row = self._next_row
        if self._windowing and self._journaled:
            saved.windowing = self._windowing.state
            row = self._windowing.needed_row
        return Position(self.name, self.device, row, msgspec.json.encode(saved))

    async def _restore(self) -> None:
        found = await self._store.position(self.name)
        self._saved = msgspec.json.decode(found.state, type=Saved) if found else Saved()
        self._next_row = self._committed_row = found.row if found else 0

    async def _load(self) -> None:
        """Raises EngineError where the model cannot work here, also if it does not fit the pipeline."""
        self._model = await self._open_model()
        if self._settings.window:
            self._check_fit()
            indices = [self._device_points.index(point) for point in self._points]
            self._windowing = Windowing(self._settings.window, self._points, indices, self._saved.windowing)
        threshold = self._model.threshold if self._model else None
        self._rules = Rules(self._settings.rules, threshold)
        for alarm in self._rules.restore(bytes(self._saved.rules)):
            self._log.warning("alarm_without_rule", rule=alarm, hint="its rule is gone: it will not be cleared by a record")
        self.state.executed_on = self._model.executed_on if self._model else ""

    def _check_fit(self) -> None:
        model, window = self._model, self._settings.window
        if model is None or window is None:
            return
        if window.count != model.rows:
            raise EngineError(
                f"model {model.name} takes windows of {model.rows} samples, pipelines.{self.name}.window.count is {window.count}",
                f"set it to {model.rows}",
            )
        if len(self._points) != len(model.points):
            raise EngineError(
                f"model {model.name} takes {len(model.points)} points ({', '.join(model.points)}), "
                f"pipelines.{self.name} has {len(self._points)} ({', '.join(self._points)})",
                f"name them in this order in pipelines.{self.name}.points",
            )

    async def _until_it_works(self, step: Callable[[], Awaitable[T]]) -> T:
        """A model that fails holds up its own pipeline only: the queue drops and counts, the journal keeps."""
        wait_s = BACKOFF_S_MIN
        while True:
            try:
                value = await step()
            except EdgeError as error:
                if error.cause != self.state.cause:
                    self._log.error("pipeline_stopped", cause=error.cause, hint=error.hint)
                self.state.cause, self.state.hint = error.cause, error.hint
                await asyncio.sleep(self._dice.uniform(wait_s / 2, wait_s))
                wait_s = min(wait_s * 2, BACKOFF_S_MAX)
            else:
                if self.state.cause:
                    self._log.info("pipeline_works")
                    self.state.cause = self.state.hint = ""
                return value
