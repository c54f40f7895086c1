"""Results and events as records (pure): bodies, and ids that depend on the content only.

The same window computed again (a retry, a restart, another gateway) by the same model gives the same id, so that it counts once.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.config import Rule
from edge_runtime.control.actions import Action
from edge_runtime.pipeline.rules import Transition
from edge_runtime.pipeline.windowing import Window
from edge_runtime.records import Draft, Event, Inference, Lane, Privacy, Result, Sample, to_json

STATISTICS = ("min", "mean", "max", "last")


class Found(msgspec.Struct, frozen=True):
    """What was made of a window: `window` is its name, `model` name@version ("": statistics), `fault` why there are no outputs,
    `placed` who computed it and why ("": here, for nobody else was asked)."""

    result_id: str
    window: str
    model: str
    inference: Inference
    fault: str = ""
    placed: str = ""


def window_name(window: Window) -> str:
    """What no other window of the pipeline shares: its first and last instant; where it is journaled, its rows, else its number;
    where it is by time, its place."""
    rows = f"{window.first_row}-{window.last_row}" if window.first_row else f"#{window.number}"
    name = f"{window.first.boot}:{window.first.mono_ns}-{window.last.mono_ns}:{rows}"
    return f"{name}@{window.start_ns}" if window.start_ns else name


def content_id(*parts: str) -> str:
    """32 hex digits of what makes a thing this thing."""
    return hashlib.blake2b("\0".join(parts).encode(), digest_size=16).hexdigest()


def statistics(points: Sequence[str], values: NDArray[np.float64]) -> dict[str, float]:
    """What a pipeline without a model tells of a window: POINT.min, POINT.mean, POINT.max, POINT.last. All are finite."""
    with np.errstate(over="ignore"):
        mean = values.mean(axis=0)
    if not np.isfinite(mean).all():  # the sum of very large values overflows, their mean does not
        mean = (values / len(values)).sum(axis=0)
    columns = [column.tolist() for column in (values.min(axis=0), mean, values.max(axis=0), values[-1])]
    return {f"{p}.{s}": column[i] for i, p in enumerate(points) for s, column in zip(STATISTICS, columns, strict=True)}


def result(pipeline: str, device: str, window: Window, found: Found, *, alarms: tuple[str, ...], privacy: Privacy) -> Draft:
    inference = found.inference
    body = Result(
        id=found.result_id,
        pipeline=pipeline,
        device=device,
        window=found.window,
        first=window.first,
        last=window.last,
        rows=window.rows,
        filled=window.filled,
        model=found.model,
        artefact=inference.artefact,
        executed_on=inference.executed_on,
        outputs=inference.outputs,
        fault=found.fault,
        alarms=alarms,
        placed=found.placed,
    )
    return Draft(Lane.RESULT.of(privacy), pipeline, window.last, to_json(body), found.result_id)


def actions(pipeline: str, rules: Sequence[Rule], transitions: Sequence[Transition], found: Found) -> list[Action]:
    """What the rules want done, in their order."""
    return [
        Action(
            pipeline=pipeline, rule=each.rule, raised=each.raised, device=write.point.partition("/")[0],
            point=write.point.partition("/")[2], value=write.value, model=found.model, window=found.window,
            result=found.result_id,
        )
        for each in transitions
        for rule in rules
        if rule.name == each.rule
        for write in rule.writes or ()
        if (write.on == "raised") == each.raised
    ]  # fmt: skip


def event_draft(pipeline: str, device: str, result_id: str, transition: Transition, privacy: Privacy) -> Draft:
    event = Event(
        id=content_id(result_id, transition.rule, "raised" if transition.raised else "cleared"),
        pipeline=pipeline,
        device=device,
        **msgspec.structs.asdict(transition),
    )
    return Draft(Lane.EVENT.of(privacy), pipeline, transition.at, to_json(event), event.id)


def trace(log: Any, found: Found, events: Iterable[tuple[Transition, Draft]]) -> None:
    """For a log at level debug (see trail.py): without outputs."""
    by, failed = found.inference.executed_on, bool(found.fault)
    log.debug("result_judged", result=found.result_id, executed_on=by, placed=found.placed, failed=failed)
    for each, draft in events:
        what = "event_raised" if each.raised else "event_cleared"
        log.debug(what, result=found.result_id, event_id=draft.unique, rule=each.rule)


def sample_draft(pipeline: str, points: Sequence[str], sample: Sample, privacy: Privacy) -> Draft:
    """A forwarded sample: values by point; a bad one is null and stands in `faults` with the reason."""
    body: Mapping[str, object] = {
        "pipeline": pipeline,
        "device": sample.device,
        "values": dict(zip(points, sample.values, strict=True)),
        "faults": sample.faults,
        "message_id": sample.message_id,
    }
    return Draft(Lane.SAMPLE.of(privacy), pipeline, sample.stamp, to_json(body))
