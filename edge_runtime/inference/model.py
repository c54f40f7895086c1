"""What a pipeline uses: opens a model on the best engine of this machine, and runs windows through it.

    model = await open_model("shuttle-anomaly", [models_dir], "auto", "cpu", new_worker, clock)
    inference = await model.infer(values)         # float64[rows, points] -> outputs by name
    model.close()

A model that is fast on a CPU runs inline on the event loop (a hop to a thread costs 70 to 145 us, many models 5); any other
runs on its own worker. A call on a worker that does not come back in time is given up, with its worker and session: the next
window opens the model again, on a new worker, and what hangs there too is passed over for the next in the chain.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Sequence
from pathlib import Path
from typing import Any, TypeVar

import msgspec

from edge_runtime.inference import store
from edge_runtime.inference.engine import Engine, EngineError, EngineMissing, not_installed
from edge_runtime.inference.engine_openvino import OpenvinoEngine
from edge_runtime.inference.engine_tflite import TfliteEngine
from edge_runtime.inference.processing import Window
from edge_runtime.inference.selection import candidates, chain, fastest, named, no_artefact
from edge_runtime.inference.store import Stored
from edge_runtime.inference.trial import Candidate, Prepared, Trial, attempt, prepare, untried
from edge_runtime.ports import Clock, Worker
from edge_runtime.records import Inference

T = TypeVar("T")

INFER_S_MAX = 2.0
"""An accelerator that takes longer is stuck."""
ATTEMPT_S_MAX = 30.0
"""Loading, proving and timing one candidate. Compiling for a GPU or NPU takes seconds."""
REOPEN_S_MAX = 5.0
"""The same after a window hung: the pipeline is waiting, and the next in the chain is known to work."""
INLINE_NS_MAX = 1_000_000
"""p99 of a window on a CPU, below which it runs on the event loop."""

UNBELIEVED = "decides as it should, but is not taken where fp32 is so wrong"


class Stuck(EngineError):
    """A call on a worker did not come back in time; the worker was replaced."""


def engines() -> list[Engine]:
    """All that we have, installed or not. Nothing is imported before it is used."""
    return [TfliteEngine(), OpenvinoEngine()]


async def open_model(
    reference: str,
    folders: Sequence[Path],
    engine: str,
    accelerator: str,
    new_worker: Callable[[], Worker],
    clock: Clock,
    *,
    available: Sequence[Engine] | None = None,
    infer_s_max: float = INFER_S_MAX,
    attempt_s_max: float = ATTEMPT_S_MAX,
) -> Model:
    """Finds, checks, measures and loads a model; returns when it is ready to run.

    `reference`: a name in `folders` (then among the shipped models) or a path. `engine`: auto, tflite, openvino.
    `accelerator`: the first choice, see selection.py. `available`: the engines to choose from (default: ours).
    Raises EngineError: no such model, a wrong file, no engine that computes it here (each reason is in the message).
    """
    known = engines() if available is None else available
    chosen = named(known, engine)
    if not chosen:
        raise EngineError(f"unknown engine {engine!r}", f"auto, {', '.join(one.name for one in known)}")
    accelerators = chain(accelerator)
    thread = _Thread(new_worker)
    try:
        stored = await thread.run(attempt_s_max, "reading the model", store.load, store.find(reference, folders))
        model = Model(stored, chosen, accelerators, thread, clock, infer_s_max, attempt_s_max)
        await model.prepare()
    except BaseException:
        thread.close()
        raise
    return model


class Model:
    """A model, ready to run. Used by one event loop; windows of several callers run one after the other."""

    def __init__(
        self,
        stored: Stored,
        chosen: Sequence[Engine],
        accelerators: Sequence[str],
        thread: _Thread,
        clock: Clock,
        infer_s_max: float,
        attempt_s_max: float,
    ) -> None:
        self._stored, self._engines, self._accelerators = stored, chosen, accelerators
        self._thread, self._clock = thread, clock
        self._infer_s_max, self._attempt_s_max = infer_s_max, attempt_s_max
        self._prepared: Prepared | None = None
        self._closed = False
        self._one_at_a_time = asyncio.Lock()
        self.name, self.version = stored.manifest.name, stored.manifest.version
        self.rows, self.points, self.outputs = stored.manifest.rows, stored.manifest.points, stored.manifest.outputs
        self.artefact = ""
        """sha256 of what computes it (of an IR: of both of its files)."""
        self.file = ""
        self.precision = ""
        self.threshold: float | None = None
        """Of the artefact in use: it may change when a stuck accelerator is replaced."""
        self.executed_on = ""
        self.inline = False
        self.service_ns = 0
        """Of one window, p50, as measured when it was chosen."""
        self.trials: tuple[Trial, ...] = ()
        """What was tried, in order, with times and reasons."""

    async def infer(self, values: Window) -> Inference:
        """One raw window float64[rows, points], oldest row first -> outputs by name.

        Raises EngineError: another shape or dtype, an output that is no number, an engine that fails, Stuck.
        """
        prepared = self._prepared
        if self.inline and prepared is not None:
            return self._inference(prepared.run(values))
        async with self._one_at_a_time:
            return self._inference(await self._infer_on_worker(values))

    def _inference(self, outputs: dict[str, float]) -> Inference:
        return Inference(outputs, self.executed_on, self.artefact, self.threshold)

    async def _infer_on_worker(self, values: Window) -> dict[str, float]:
        if self._closed:
            raise EngineError(f"model {self.name} is closed")
        if self._prepared is None:
            # A window hung, perhaps long after the files were read. What lies there now may be a copy that is not complete.
            stored = self._stored
            await self._thread.run(self._attempt_s_max, "reading the model", store.verify_all, stored.folder, stored.manifest)
            await self.prepare()
        prepared = self._prepared
        assert prepared is not None
        try:
            return await self._thread.run(self._infer_s_max, f"model {self.name} on {self.executed_on}", prepared.run, values)
        except Stuck:
            self._prepared = None
            self._attempt_s_max = min(self._attempt_s_max, REOPEN_S_MAX)
            raise

    async def prepare(self) -> None:
        """Tries, chooses and loads. Raises EngineError with each reason when nothing computes the model here."""
        trials: list[Trial] = []
        for accelerator in self._accelerators:
            here = candidates(self._stored.manifest, self._engines, accelerator)
            tried = await self._try(here)
            trials += tried
            best = fastest(tried)
            if best is not None:
                await self._take(here[tried.index(best)], best)
                self.trials = tuple(trials)
                return
        raise self._nothing_works(trials)

    async def _try(self, here: Sequence[Candidate]) -> list[Trial]:
        """One trial for each, in order; the first that hangs ends it: what hangs once hangs with the next artefact too."""
        tried: list[Trial] = []
        for candidate in here:
            try:
                limits = self._infer_s_max, self._attempt_s_max
                trial = await self._thread.run(limits[1], str(candidate), attempt, self._stored, candidate, self._clock, *limits)
            except Stuck as error:
                return [*tried, msgspec.structs.replace(untried(candidate), reason=str(error))]
            tried.append(trial)
        return tried

    async def _take(self, candidate: Candidate, trial: Trial) -> None:
        prepared = await self._thread.run(self._attempt_s_max, str(candidate), prepare, self._stored, candidate)
        artefact = candidate.artefact
        self.artefact, self.file, self.precision = artefact.identity, artefact.file, artefact.precision
        self.threshold, self.executed_on, self.service_ns = artefact.threshold, trial.executed_on, trial.p50_ns
        self.inline = candidate.accelerator == "cpu" and trial.p99_ns < INLINE_NS_MAX
        self._prepared = prepared
        if self.inline:
            self._thread.close()

    def _nothing_works(self, trials: Sequence[Trial]) -> EngineError:
        if not trials:
            return no_artefact(self._stored.manifest, self._engines)
        reasons = list(dict.fromkeys(f"{t.file} by {t.engine} on {t.accelerator}: {t.reason or UNBELIEVED}" for t in trials))
        if all(trial.missing for trial in trials):
            hints = list(dict.fromkeys(trial.reason for trial in trials))
            # One that is here and cannot work (tflite-runtime beside numpy 2) needs something else than to be installed.
            absent = {str(not_installed(engine)) for engine in self._engines}
            if told := hints if len(hints) == 1 else [hint for hint in hints if hint not in absent]:
                return EngineMissing(f"model {self.name}: {'; '.join(told)}")
            return EngineMissing(f"model {self.name}: no engine is installed", self._engines[0].install)
        return EngineError(f"model {self.name}: nothing computes it here: {'; '.join(reasons)}")

    def close(self) -> None:
        """May be called twice; not while an `infer` is running."""
        self._closed, self._prepared = True, None
        self._thread.close()


class _Thread:
    """A worker that is replaced when a call on it does not come back: a hung driver cannot be interrupted, only left behind."""

    def __init__(self, new_worker: Callable[[], Worker]) -> None:
        self._new_worker = new_worker
        self._worker: Worker | None = None

    async def run(self, limit_s: float, what: str, function: Callable[..., T], *args: Any) -> T:
        if self._worker is None:
            self._worker = self._new_worker()
        try:
            async with asyncio.timeout(limit_s) as limit:
                return await self._worker.run(function, *args)
        except TimeoutError as error:
            if not limit.expired():
                raise
            self.close()
            hint = "a driver that hangs, or a model too large for it? It is tried again, and what hangs is passed over"
            raise Stuck(f"{what} did not answer within {limit_s:g} s and was left behind", hint) from error

    def close(self) -> None:
        """Waits for no call that has begun: it may hang, and nobody wants its result any more."""
        if self._worker is not None:
            self._worker.abandon()
        self._worker = None
