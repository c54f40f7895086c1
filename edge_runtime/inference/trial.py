"""Loads an artefact on an accelerator, proves it with the model's known answers, and times it. Runs on a worker's thread.

An import proves nothing and neither does a successful load: accelerators and their drivers have given wrong numbers.
"""

from __future__ import annotations

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.inference.engine import Engine, EngineError, EngineMissing, TensorSpec
from edge_runtime.inference.manifest import Artefact, Manifest, Raw, Tensor
from edge_runtime.inference.processing import Processing, Window
from edge_runtime.inference.store import KnownAnswers, Stored
from edge_runtime.ports import Clock

WARM_UP_RUNS = 20
TIMED_RUNS = 200
TIMED_RUNS_MIN = 5
TIMING_NS_MAX = 200_000_000
"""A model that takes long is timed with fewer runs."""
SCALE_ERROR_MAX = 1e-3
"""Relative; a quantisation scale is written into the manifest in decimal digits."""

WRONG_ANSWER = "wrong is the scaling of the points in manifest.yaml, the file's conversion, or the known answers (raw windows)"
WRONG_DECISION = "wrong is the threshold in manifest.yaml, the file's conversion, or the known answer is close to the threshold"
ONE_NUMBER = "all known outputs are one number, and `tolerance` is a part of their range: add windows with other outputs"

GROSS = 1e-2
"""Of the range of the known outputs: no computer rounds like that."""


class Mistaken(EngineError):
    """An answer that is so far off that the manifest, or the known answers, must be wrong, or the file another model."""


class Candidate(msgspec.Struct, frozen=True):
    """One way to compute a model here."""

    engine: Engine
    artefact: Artefact
    accelerator: str

    def __str__(self) -> str:
        return f"{self.artefact.file} by {self.engine.name} on {self.accelerator}"


class Trial(msgspec.Struct, frozen=True, kw_only=True):
    """What became of a candidate. Times of one window, processing included; 0 when it was refused."""

    engine: str
    accelerator: str
    file: str
    precision: str
    works: bool
    reason: str = ""
    missing: bool = False
    """The engine's library is not installed."""
    mistaken: bool = False
    """Its outputs were grossly wrong."""
    executed_on: str = ""
    p50_ns: int = 0
    p99_ns: int = 0


class Prepared:
    """An artefact, loaded: raw window -> outputs by name. Belongs to one thread, like its session."""

    def __init__(self, stored: Stored, candidate: Candidate) -> None:
        self.artefact = candidate.artefact
        self.session = candidate.engine.load(stored.path(candidate.artefact), candidate.accelerator)
        try:
            tensor_in, tensor_out = _agreed(candidate.artefact, self.session.inputs, self.session.outputs)
        except EngineError:
            self.session.close()
            raise
        self.processing = Processing(stored.manifest, tensor_in, tensor_out)
        self._in, self._out = tensor_in.name, tensor_out.name

    def run(self, values: Window) -> dict[str, float]:
        processing = self.processing
        return processing.outputs(self.session.run({self._in: processing.tensor(values)})[self._out])

    def real(self, values: Window) -> NDArray[np.float64]:
        """The model's own output, for the known answers."""
        return self.processing.real(self.session.run({self._in: self.processing.tensor(values)})[self._out])


def prepare(stored: Stored, candidate: Candidate) -> Prepared:
    """Loads and proves it, and lets go of it: the next thread that runs it owns it. Raises EngineError."""
    prepared = Prepared(stored, candidate)
    try:
        check(prepared, stored.manifest, stored.known)
    except EngineError:
        prepared.session.close()
        raise
    prepared.session.hand_over()
    return prepared


def untried(candidate: Candidate) -> Trial:
    """The trial of a candidate before anything is known."""
    return Trial(
        engine=candidate.engine.name,
        accelerator=candidate.accelerator,
        file=candidate.artefact.file,
        precision=candidate.artefact.precision,
        works=False,
    )


def attempt(stored: Stored, candidate: Candidate, clock: Clock, window_s_max: float, attempt_s_max: float) -> Trial:
    """Loads, proves, times and closes it. Never raises EngineError: the reason is in the trial."""
    trial = untried(candidate)
    try:
        prepared = Prepared(stored, candidate)
        try:
            _in_time(prepared, stored.known.windows, clock, window_s_max, attempt_s_max)
            check(prepared, stored.manifest, stored.known)
            times = _time(prepared, stored.known.windows, clock)
        finally:
            prepared.session.close()
    except EngineError as error:
        kinds = {"missing": isinstance(error, EngineMissing), "mistaken": isinstance(error, Mistaken)}
        return msgspec.structs.replace(trial, reason=str(error), **kinds)
    p50, p99 = times[len(times) // 2], times[(len(times) * 99) // 100]
    return msgspec.structs.replace(trial, works=True, executed_on=prepared.session.executed_on, p50_ns=p50, p99_ns=p99)


def _in_time(prepared: Prepared, windows: Window, clock: Clock, window_s_max: float, attempt_s_max: float) -> None:
    """Nobody waits for an attempt that takes longer; it goes on in a thread that was left behind, and so does the next one. So
    this is asked before all known answers are; twice, for the first window may have more to do. The times are not told: with
    other ones at each attempt the log would tell each."""
    for _ in range(2):
        began_ns = clock.mono_ns()
        prepared.real(windows[0])
        took_s = (clock.mono_ns() - began_ns) / 1e9
        whole_s = took_s * (2 * len(windows) + TIMED_RUNS_MIN)
        if took_s <= window_s_max and whole_s <= attempt_s_max:
            return
    if took_s > window_s_max:
        raise EngineError(
            f"{prepared.artefact.file}: takes longer than {window_s_max:g} s for a window, and after that one is given up",
            "make the model smaller, or run it on an accelerator",
        )
    raise EngineError(
        f"{prepared.artefact.file}: its {len(windows)} known answers take longer than the {attempt_s_max:g} s of an attempt",
        "fewer known answers prove it, too",
    )


def check(prepared: Prepared, manifest: Manifest, known: KnownAnswers) -> None:
    """Raises EngineError at the first known answer that it does not give.

    fp32: every output within tolerance x range of the known ones, and the same decision. Others: the same decision only;
    int8 engines differ by up to a tenth of the range and still decide alike.
    """
    artefact = prepared.artefact
    span = float(np.ptp(known.outputs))
    allowed = manifest.tolerance * span
    for number, window in enumerate(known.windows):
        real = prepared.real(window)
        off = float(np.max(np.abs(real - known.outputs[number])))
        if artefact.precision == "fp32" and not off <= allowed:
            rest = zip(known.windows[number:], known.outputs[number:], strict=True)
            gross = any(not np.max(np.abs(prepared.real(each) - wanted)) <= GROSS * span for each, wanted in rest)
            raise (Mistaken if span and gross else EngineError)(
                f"{artefact.file}: known answer {number} is off by {off:.3g}, allowed {allowed:.3g}",
                WRONG_ANSWER if allowed else ONE_NUMBER,
            )
        decision = _decide(manifest, artefact, prepared.run(window))
        if decision != known.decisions[number]:
            raise EngineError(
                f"{artefact.file}: known answer {number} is decided {decision}, not {known.decisions[number]}", WRONG_DECISION
            )


def _decide(manifest: Manifest, artefact: Artefact, outputs: dict[str, float]) -> int:
    if artefact.threshold is not None:
        return int(outputs[manifest.decided_by] > artefact.threshold)
    values = list(outputs.values())
    return values.index(max(values)) if isinstance(manifest.postprocess, Raw) else 0


def _time(prepared: Prepared, windows: Window, clock: Clock) -> list[int]:
    """Nanoseconds of each run, sorted."""
    window = windows[0]
    started = clock.mono_ns()
    for _ in range(WARM_UP_RUNS):
        prepared.run(window)
        if clock.mono_ns() - started > TIMING_NS_MAX:
            break
    times: list[int] = []
    started = clock.mono_ns()
    while len(times) < TIMED_RUNS and (len(times) < TIMED_RUNS_MIN or clock.mono_ns() - started < TIMING_NS_MAX):
        before = clock.mono_ns()
        prepared.run(window)
        times.append(clock.mono_ns() - before)
    return sorted(times)


def _agreed(artefact: Artefact, inputs: tuple[TensorSpec, ...], outputs: tuple[TensorSpec, ...]) -> tuple[TensorSpec, TensorSpec]:
    """The one input and the one output, when they are what the manifest says."""
    if len(inputs) != 1 or len(outputs) != 1:
        raise EngineError(
            f"{artefact.file}: has {len(inputs)} inputs and {len(outputs)} outputs, a model here has one of each",
            "export it with one input tensor and one output tensor",
        )
    return _same(artefact.file, "input", artefact.input, inputs[0]), _same(artefact.file, "output", artefact.output, outputs[0])


def _same(file: str, side: str, wanted: Tensor, got: TensorSpec) -> TensorSpec:
    """What the engine found, with the quantisation that the manifest declares: an engine does not see that of every file."""
    if wanted.shape != got.shape or wanted.dtype != got.dtype:
        raise EngineError(
            f"{file}: its {side} is {got.dtype}{list(got.shape)}, the manifest says {wanted.dtype}{list(wanted.shape)}",
            f"correct {side} in manifest.yaml, or export the model again",
        )
    if wanted.scale is None:
        return got
    off = abs(wanted.scale - got.scale) > SCALE_ERROR_MAX * wanted.scale or wanted.zero_point != got.zero_point
    if got.scale and off:
        raise EngineError(
            f"{file}: its {side} is quantised with {got.scale:g}, {got.zero_point}; "
            f"the manifest says {wanted.scale:g}, {wanted.zero_point}",
            f"correct {side} in manifest.yaml, or export the model again",
        )
    return msgspec.structs.replace(got, scale=wanted.scale, zero_point=wanted.zero_point)
