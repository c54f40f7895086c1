"""Which artefact, engine and accelerator compute a model here. Pure.

The rule: accelerators in the order of the chain, from the one that was asked for down to the CPU; the first one on which
anything passes its known answers is taken. On it the fastest wins, and fp32 goes before other precisions unless those are at
least 1.5 times faster (they see the same anomalies a little less well).

Other precisions are proved by their decisions only, and those are right with many a wrong scaling too. So where fp32 artefacts
are grossly wrong on a CPU, which computes as it should, the manifest is not believed for the others either.
"""

from __future__ import annotations

from collections.abc import Sequence

from edge_runtime.inference.engine import Engine, EngineError
from edge_runtime.inference.manifest import Manifest
from edge_runtime.inference.trial import Candidate, Trial

CHAIN = ("edgetpu", "npu", "gpu", "cpu")
QUANTISED_GAIN_MIN = 1.5


def chain(accelerator: str) -> tuple[str, ...]:
    """ "npu" -> npu, gpu, cpu. "gpu.1" -> gpu.1, cpu."""
    kind = accelerator.split(".")[0]
    if kind not in CHAIN:
        raise EngineError(f"unknown accelerator {accelerator!r}", f"one of {', '.join(CHAIN)}")
    return accelerator, *CHAIN[CHAIN.index(kind) + 1 :]


def named(known: Sequence[Engine], engine: str) -> list[Engine]:
    """Those that `engine` of a configuration means: auto, or one name."""
    return [one for one in known if engine in ("auto", one.name)]


def able(manifest: Manifest, engines: Sequence[Engine], accelerator: str) -> list[Engine]:
    """Those that load one of its artefacts, installed or not. Raises EngineError: none does, on any machine."""
    found = [one for one in engines if any(candidates(manifest, [one], each) for each in chain(accelerator))]
    if not found:
        raise no_artefact(manifest, engines)
    return found


def no_artefact(manifest: Manifest, engines: Sequence[Engine]) -> EngineError:
    suffixes = ", ".join(sorted({suffix for engine in engines for suffix in engine.suffixes}))
    there = ", ".join(artefact.file for artefact in manifest.artefacts)
    cause = f"model {manifest.name} has no artefact for this engine ({suffixes}), only {there}"
    return EngineError(cause, "`engine: auto` takes whichever engine can load it; else convert the model")


def candidates(manifest: Manifest, engines: Sequence[Engine], accelerator: str) -> list[Candidate]:
    """In the manifest's order, engines in theirs. An artefact whose suffix or accelerator an engine does not know is none."""
    kind = accelerator.split(".")[0]
    return [
        Candidate(engine, artefact, accelerator)
        for artefact in manifest.artefacts
        for engine in engines
        if kind in engine.accelerators and artefact.file.endswith(engine.suffixes)
    ]


def fastest(trials: Sequence[Trial]) -> Trial | None:
    """The one to take; None when none works."""
    full = min((t for t in trials if t.works and t.precision == "fp32"), key=lambda t: t.p50_ns, default=None)
    less = min((t for t in trials if t.works and t.precision != "fp32"), key=lambda t: t.p50_ns, default=None)
    if full is None and any(t.mistaken and t.precision == "fp32" and t.accelerator == "cpu" for t in trials):
        return None
    if full is None or less is None:
        return full or less
    return less if full.p50_ns > 0 and full.p50_ns >= QUANTISED_GAIN_MIN * less.p50_ns else full
