"""One pipeline: samples -> windows -> model -> rules -> records on the disk.

Samples come from a queue (polled sources: bounded, the oldest are dropped and counted) or from the input journal (sources that
ask again). What came of a chunk of samples and how far the pipeline is in the journal are committed in one transaction: a
restart goes on exactly there, and makes no window twice.
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Callable, Sequence
from typing import Any, Protocol

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime import config, trail
from edge_runtime.control.actions import Action
from edge_runtime.inference.model import Model
from edge_runtime.outbox.batch import RECORD_OVERHEAD_BYTES, Position
from edge_runtime.outbox.store import Store
from edge_runtime.pipeline import limits, results, saved
from edge_runtime.pipeline.fit import window_points
from edge_runtime.pipeline.results import Found
from edge_runtime.pipeline.rules import Rules
from edge_runtime.pipeline.saved import Saved
from edge_runtime.pipeline.steady import OpenModel, PipelineState, SteadyModel
from edge_runtime.pipeline.windowing import State, Window, Windowing
from edge_runtime.ports import Dice
from edge_runtime.records import Draft, Inference, Sample
from edge_runtime.sources.reporting import Reporter

CHUNK_SAMPLES_MAX = 256
"""Handled and committed together while the disk was busy; one at a time when nothing waits."""

COMMIT_BYTES = 64 * 2**10
"""Of records: so many are committed at once, before the chunk is done. A transaction has its limit."""

PART_BYTES = 128 * 2**10
"""Most of one transaction: what fits into it under the smallest cap that an outbox may have."""

COMMIT_S = 0.2
"""With a slow model a chunk takes seconds: what came of it so far is committed this often."""

MOVED_ROWS = 64
"""A position that moved this far is committed even if no window came of it: the journal must not fill with what is not needed."""

UNYIELDED_WINDOWS = 16
"""Models of less than a millisecond run on the event loop: after so many windows the others have their turn."""

ABREAST_MAX = 8
"""Windows under way at once where peers compute some of them."""

WINDOWS_MAX = 32
"""Where peers help: windows that are brought together, so that those under way need not end together too often."""


class Place(Protocol):
    """Computes a window here or at a peer (see inference/shared.py)."""

    async def __call__(
        self, result_id: str, model: Model, values: NDArray[np.float64], here: SteadyModel
    ) -> tuple[Inference, str, str]:
        """What came of it, "" or why it cannot be computed, and who computed it and why."""
        ...


class Pipeline:
    """Call `prepare` before its source may speak; then `run` until cancelled; `finish` handles what has come so far."""

    def __init__(
        self, name: str, settings: config.Pipeline, device_points: Sequence[str], *, journaled: bool, open_model: OpenModel,
        store: Store, reporter: Reporter, dice: Dice, log: Any, identity: str, place: Place | None = None,
        act: Callable[[Action], None] = lambda _: None,
    ) -> None:  # fmt: skip
        """`place`: who computes a window, where gateways share work. `act`: does what rules want done."""
        self.name, self.device = name, settings.device
        self.state = PipelineState()
        self._settings, self._device_points, self._journaled = settings, tuple(device_points), journaled
        self._store, self._reporter, self._identity = store, reporter, identity
        self._log = log.bind(pipeline=name)
        self._act, self._due = act, list[Action]()
        """What is to be done when the events are on the disk."""
        self._place, self._at_once = place, WINDOWS_MAX if place else 1
        self._model = SteadyModel(open_model, self._fit, self.state, dice, self._log)
        self._points: tuple[str, ...] = ()
        self._windowing: Windowing | None = None
        self._rules, self._saved = Rules([]), Saved()
        self._tell_limits = limits.teller(self._log)
        self._next_row = self._committed_row = 0
        self._queue: deque[Sample] = deque(maxlen=settings.queue_max)
        self._prepared = self._running = self._dropping = self._torn = False
        self._news, self._quiet = store.listen(), asyncio.Event()
        self._windows_unyielded = 0

    @property
    def waiting(self) -> int:
        """Samples of a polled source."""
        return len(self._queue)

    @property
    def model_name(self) -> str:
        """name@version; "" where there is none, or none worked yet."""
        model = self._model.last
        return f"{model.name}@{model.version}" if model else ""

    @property
    def ready(self) -> bool:
        """It runs, and its model, if it has one, is open."""
        return self._running and (self._settings.model is None or self._model.model is not None)

    @property
    def idle(self) -> bool:
        """It has taken all that there is."""
        return not self._queue and self._store.journal_head(self.device) < self._next_row

    # --- from the sources ---

    def offer(self, samples: Sequence[Sample]) -> None:
        """From a polled source. Where the queue is full the oldest samples go, and are counted."""
        too_many = max(0, len(self._queue) + len(samples) - self._settings.queue_max)
        if too_many:
            if not self._dropping:
                self._log.warning(
                    "samples_dropped", cause=self.state.cause or "samples come faster than the pipeline handles them"
                )
            self._dropping = self._torn = True
            self.state.dropped += too_many
        self._queue.extend(samples)
        self._quiet.clear()
        self._news.set()

    def note_lost(self, samples: Sequence[Sample]) -> None:
        """The device became unreachable. A window of the journal must not depend on it (a restart could not repeat it): its
        own gap tells; what is forwarded, and windows of polled devices, are told."""
        if not (self._journaled and self._settings.window):
            self.offer(samples)

    # --- life ---

    async def prepare(self) -> None:
        """Goes back to what is on the disk. Returns when the disk knows what the rows that come from now on will hold."""
        found, head = await self._store.position(self.name, self.device), self._store.journal_head(self.device)
        if found is None:
            self._begin(head)
        else:
            self._go_on(found, head)
        self._windowing, self._torn = None, False
        if self._journaled:
            await self._store.commit([], self._position())
        self._prepared = True

    async def run(self) -> None:
        if not self._prepared:
            await self.prepare()
        try:
            await self._model.open()
            self._running = True
            while True:
                self._news.clear()
                samples = await self._take()
                if samples:
                    await self._handle(samples)
                elif not await self._made_room():
                    self._quiet.set()
                    await self._news.wait()
        finally:
            self._prepared = self._running = False
            self._model.close()

    def use_rules(self, settings: config.Pipeline) -> None:
        """Other rules from the next window on; nothing else in `settings` is another. Alarms of rules that stay are as they are.
        Raises EdgeError, and goes on as it was."""
        if self._windowing is not None:  # else the model is not open yet: `_fit` takes them then
            window_points(self.name, settings, self._device_points, self._model.last)
            rules = Rules(settings.rules, self._rules.model_limit)
            gone = rules.restore(self._rules.snapshot())
            self._rules, self.state.alarms = rules, rules.alarms
            self._tell_gone(gone)
        self._settings = settings

    async def finish(self) -> None:
        """Returns when nothing waits any more; at once where the model does not work: waiting would not mend it."""
        if self.state.cause:
            return
        self._quiet.clear()
        self._news.set()
        await self._quiet.wait()

    def _begin(self, head: int) -> None:
        """A pipeline that the disk does not know begins with what comes now: what older rows hold, nobody can tell it."""
        if self._journaled and head:
            self._log.info("pipeline_begins", after_row=head)
        self._saved = Saved(State(head + 1), eras=saved.begin_era((), self._device_points, head))
        self._next_row = self._committed_row = head + 1

    def _go_on(self, found: Position, head: int) -> None:
        was = saved.decode(found.state)
        if was is None:
            self._log.error("pipeline_state_unreadable", hint="written by another version: windows and alarms begin anew")
            was = Saved(State(found.row))
        self._saved = msgspec.structs.replace(was, eras=saved.begin_era(was.eras, self._device_points, head))
        self._next_row = self._committed_row = found.row

    def _fit(self, model: Model | None) -> None:
        """Called with each model that was opened. Raises EngineError."""
        points = window_points(self.name, self._settings, self._device_points, model)
        rules = Rules(self._settings.rules, model.threshold if model else None)
        gone = rules.restore(bytes(self._saved.rules) if self._windowing is None else self._rules.snapshot())
        if self._settings.window and (self._windowing is None or points != self._points):
            self._windowing = self._open_windowing(self._settings.window, points)
        self._rules, self._points, self.state.alarms = rules, points, rules.alarms
        self._tell_gone(gone)

    def _tell_gone(self, alarms: Sequence[str]) -> None:
        for alarm in alarms:
            self._log.warning("alarm_without_rule", rule=alarm, hint="its rule is gone: it will not be cleared by a record")

    def _open_windowing(self, window: config.Window, points: tuple[str, ...]) -> Windowing:
        mark, state = saved.fingerprint(window, points), self._saved.windowing
        if self._saved.window not in ("", mark):
            self._log.warning("windows_begin_anew", cause="the window's settings or points are other ones", row=self._next_row)
            state = State(self._next_row)
        self._saved = msgspec.structs.replace(self._saved, window=mark, windowing=state)
        windowing = Windowing(window, points, [self._device_points.index(point) for point in points], state)
        self.state.discarded, self.state.skipped, self.state.bad = windowing.discarded, windowing.skipped, windowing.bad
        return windowing

    # --- samples ---

    async def _take(self) -> list[Sample]:
        if self._queue:
            if self._torn and self._windowing:
                self._windowing.cut("dropped")
            self._torn = False
            return [self._queue.popleft() for _ in range(min(len(self._queue), CHUNK_SAMPLES_MAX))]
        self._dropping = False
        if self._journaled and self._store.journal_head(self.device) >= self._next_row:
            samples = await self._store.read_journal(self.device, self._next_row, CHUNK_SAMPLES_MAX)
            eras = self._saved.eras
            return samples if len(eras) == 1 else [saved.as_declared_now(sample, eras) for sample in samples]
        return []

    async def _handle(self, samples: Sequence[Sample]) -> None:
        drafts: list[Draft] = []
        windows: list[Window] = []
        size_bytes = 0
        clock = asyncio.get_running_loop().time
        committed_s = clock()
        if trail.on(self._log):
            self._trace(samples)
        for sample in samples:
            made: list[Draft] = []
            if self._windowing is None:
                made = self._forwarded(sample)
            else:
                windows += self._windowing.push(sample)
                if len(windows) >= self._at_once:
                    made, windows = await self._judged(windows), []
            drafts += made
            size_bytes += sum([len(draft.body) for draft in made])
            self.state.samples += 1
            self._next_row = sample.row + 1 if sample.row else self._next_row
            # What is committed says how far we are: no window that came of these samples may be left behind.
            if not windows and (size_bytes >= COMMIT_BYTES or (made and clock() - committed_s >= COMMIT_S)):
                await self._commit(drafts)
                drafts, size_bytes, committed_s = [], 0, clock()
        self._tell_limits(self.state.discarded)
        drafts += await self._judged(windows)
        if drafts or self._needed_row() >= self._committed_row + MOVED_ROWS:
            await self._commit(drafts)

    def _trace(self, samples: Sequence[Sample]) -> None:
        for each in samples:
            at = trail.instant(each.stamp)
            self._log.debug("sample_taken", device=each.device, sample=at, message=each.message_id, row=each.row)

    def _forwarded(self, sample: Sample) -> list[Draft]:
        if not self._reporter.changed(sample):
            return []
        return [results.sample_draft(self.name, self._device_points, sample, self._settings.privacy)]

    async def _judged(self, windows: Sequence[Window]) -> list[Draft]:
        """Computed side by side where peers help; judged in their order, whichever is back first."""
        if self._place is None or len(windows) == 1:
            return [draft for window in windows for draft in self._judge(window, await self._infer(window))]
        drafts: list[Draft] = []
        under_way: deque[tuple[Window, asyncio.Task[Found]]] = deque()
        async with asyncio.TaskGroup() as group:
            for window in windows:
                if len(under_way) == ABREAST_MAX:
                    oldest, task = under_way.popleft()
                    drafts += self._judge(oldest, await task)
                under_way.append((window, group.create_task(self._infer(window), name=f"{self.name}/window")))
            for oldest, task in under_way:
                drafts += self._judge(oldest, await task)
        return drafts

    def _judge(self, window: Window, found: Found) -> list[Draft]:
        inference = found.inference
        if found.model and not found.fault:  # the artefact that computed it may be another one than when the pipeline began
            self._rules.use_model_limit(inference.threshold)
        transitions = self._rules.update(inference.outputs, window.last)
        self.state.events += len(transitions)
        self.state.alarms = self._rules.alarms
        self.state.windows += 1
        if transitions:
            self._due += results.actions(self.name, self._settings.rules, transitions, found)
        privacy = self._settings.privacy
        result = results.result(self.name, self.device, window, found, alarms=self._rules.alarms, privacy=privacy)
        events = [results.event_draft(self.name, self.device, found.result_id, each, privacy) for each in transitions]
        if trail.on(self._log):
            results.trace(self._log, found, zip(transitions, events, strict=True))
        return [result, *events]

    async def _infer(self, window: Window) -> Found:
        model = self._model.last
        # The model, not the artefact: another engine's file of it (after a restart, on another gateway) gives the same result.
        reference = self.model_name
        name = results.window_name(window)
        result_id = results.content_id(self._identity, self.name, reference, name)
        if trail.on(self._log):
            first, last = trail.instant(window.first), trail.instant(window.last)
            self._log.debug("window_made", result=result_id, model=reference, first=first, last=last, rows=window.rows)
        if model is None:
            inference, fault, placed = Inference(results.statistics(self._points, window.values), "", ""), "", ""
        elif self._place is None:
            (inference, fault), placed = await self._model.infer(window.values), ""
        else:
            inference, fault, placed = await self._place(result_id, model, window.values, self._model)
            if not fault and not self._rules.can_use(inference.threshold):
                (inference, fault), placed = await self._model.infer(window.values), "here: no threshold for our rules came"
        self._windows_unyielded += 1
        if self._windows_unyielded >= UNYIELDED_WINDOWS:
            self._windows_unyielded = 0
            await asyncio.sleep(0)
        return Found(result_id, name, reference, inference, fault, placed)

    # --- where it stands ---

    async def _commit(self, drafts: Sequence[Draft]) -> None:
        position = self._position() if self._journaled or self._settings.rules else None
        self._committed_row = self._needed_row()
        due, self._due = self._due, []
        while (fitting := _fitting(drafts)) < len(drafts):
            # After a silence one sample may complete more windows than a transaction holds. The position moves with the last
            # of them: a restart before that computes all of them again, with the ids that they have now.
            await self._store.commit(drafts[:fitting])
            drafts = drafts[fitting:]
        await self._store.commit(drafts, position)
        for action in due:
            self._act(action)

    def _needed_row(self) -> int:
        """The first row of the journal that a restart needs."""
        if self._windowing and self._journaled:
            return self._windowing.needed_row
        return self._next_row

    def _position(self) -> Position:
        """As the disk is to know it."""
        row = self._needed_row()
        if self._windowing:
            windowing = self._windowing.state if self._journaled else State()
            rules = msgspec.Raw(self._rules.snapshot())
            eras = saved.forget_eras(self._saved.eras, row) if self._journaled else ()
            self._saved = Saved(windowing, rules, self._saved.window, eras)
        else:
            self._saved = msgspec.structs.replace(self._saved, eras=saved.forget_eras(self._saved.eras, row))
        return Position(self.name, self.device, row, saved.encode(self._saved))

    async def _made_room(self) -> bool:
        """Everything was handled. If the journal is full nevertheless, nothing more can come before something goes: what is
        not needed, or else the open window that holds on to the oldest row, for it can never be completed."""
        if not (self._journaled and self._store.journal_full(self.device)):
            return False
        if self._needed_row() > self._committed_row:
            await self._commit([])
            return True
        oldest = await self._store.read_journal(self.device, 0, 1)
        if self._windowing is None or not oldest or oldest[0].row < self._needed_row():
            return False  # another pipeline's
        await self._commit([])  # the others may have let go since: after this the store knows
        if self._store.journal_full(self.device) and self._windowing.cut("journal full"):
            hint = "make the window smaller, or outbox.journal_rows_max larger"
            self._log.warning("window_discarded", cause="the input journal is full and the window is not", hint=hint)
            await self._commit([])
        return True


def _fitting(drafts: Sequence[Draft]) -> int:
    """How many of them, one at least, go into one transaction."""
    size_bytes = 0
    for count, draft in enumerate(drafts):
        size_bytes += RECORD_OVERHEAD_BYTES + len(draft.body)
        if count and size_bytes > PART_BYTES:
            return count
    return len(drafts)
