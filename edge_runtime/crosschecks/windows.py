"""Windows that would never be full, or that the gateway could not compute: by their own keys, their device's, the journal's."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Iterator, Mapping
from functools import partial

from edge_runtime.adapter import Adapter
from edge_runtime.crosschecks import plain
from edge_runtime.document import Document, Path, Problem
from edge_runtime.foreign import made
from edge_runtime.ports import EdgeError

JOURNAL_ROWS = 100_000
"""What `outbox.journal_rows_max` is where it is not set."""

PERIOD_S = 1.0
"""What `period_s` of a device is where it is not set."""

OVERLAP_MAX = 10_000
"""Windows that one sample may be in. After a silence they all are completed by one sample, and while they are made nothing else
runs: a `step_s` of microseconds would stand the gateway still."""

WINDOW_ROWS, WINDOW_ROWS_MAX = 100_000, 1_000_000
"""What `rows_max` of a window is where it is not set, and the most that it may be."""


def problems(doc: Document, pipeline: Path, schemas: Mapping[str, type[Adapter]]) -> Iterator[Problem]:
    yield from _window(doc, pipeline)
    yield from _texts(doc, pipeline, schemas)
    yield from _fits_the_journal(doc, (*pipeline, "window", "count"))
    yield from _polled(doc, pipeline, schemas)


def _window(doc: Document, pipeline: Path) -> Iterator[Problem]:
    """It is there where it is needed, by count or by time, and no sample is between two windows."""
    here, window = (*pipeline, "window"), doc.at((*pipeline, "window"))
    needs = "model" if doc.at((*pipeline, "model")) is not None else "rules"
    if window is None and doc.at((*pipeline, needs)):
        hint = "give `window: {count: 1}` for every sample by itself"
        yield doc.problem((*pipeline, needs), "needs a window", hint=hint)
    given = {key for key, value in plain.mapping(window).items() if value is not None}
    if isinstance(window, dict) and len(given & {"count", "length_s"}) != 1:
        hint = "`count: 64` takes 64 samples, `length_s: 10` those of ten seconds"
        yield doc.problem(here, "give exactly one of count and length_s", hint=hint)
    for length, step in (("count", "step"), ("length_s", "step_s")):
        if step in given and length not in given:
            yield doc.problem((*here, step), f"goes with {length}", value=doc.at((*here, step)), hint=f"give `{length}`, too")
        longest, value = plain.number(doc.at((*here, length))), plain.number(doc.at((*here, step)))
        if 0 < longest < value:
            hint = f"at most {longest}: samples between two windows would be in none"
            yield doc.problem((*here, step), f"is larger than {length}", value=value, hint=hint)
    whole, apart = (plain.number(doc.at((*here, key))) for key in ("length_s", "step_s"))
    if 0 < apart * OVERLAP_MAX < whole < math.inf:
        hint = f"at least {whole / OVERLAP_MAX:g}: that is {OVERLAP_MAX} windows that overlap"
        yield doc.problem((*here, "step_s"), "is too small for length_s", value=apart, hint=hint)


def _polled(doc: Document, pipeline: Path, schemas: Mapping[str, type[Adapter]]) -> Iterator[Problem]:
    """The samples of a polled device are `period_s` apart. If that is a gap already, no window of several is ever full; and one
    by time that needs more rows than it may keep is thrown away each time."""
    here = (*pipeline, "window")
    device = plain.mapping(plain.mapping(doc.at(("devices",))).get(str(doc.at((*pipeline, "device")))))
    schema, period = plain.schema(schemas, device.get("adapter")), plain.number(device.get("period_s", PERIOD_S))
    if schema is None or schema.mode != "polled" or not period > 0:
        return
    gap, count, length = (plain.number(doc.at((*here, key))) for key in ("gap_s_max", "count", "length_s"))
    if 0 < gap < period and count != 1:
        hint = f"more than {period:g}, the period_s of the device: each sample would end the window before it"
        yield doc.problem((*here, "gap_s_max"), "is less than from one sample to the next", value=gap, hint=hint)
    kept = plain.number(doc.at((*here, "rows_max")) if (*here, "rows_max") in doc.lines else WINDOW_ROWS)
    if kept <= length / period < math.inf:
        rows = int(length / period) + 1
        larger = f"set rows_max to {rows} or more, or " if rows <= WINDOW_ROWS_MAX else ""
        hint = f"{larger}make the window shorter: it needs {rows} samples, one each {period:g} s (period_s of the device)"
        yield doc.problem((*here, "length_s"), "needs more samples than rows_max lets a window have", value=length, hint=hint)


def _texts(doc: Document, here: Path, schemas: Mapping[str, type[Adapter]]) -> Iterator[Problem]:
    """A window holds numbers: with a text among its points every sample would be bad, and no window ever full."""
    device, wanted = doc.at((*here, "device")), plain.items(doc.at((*here, "points")))
    declared = ("devices", device, "points") if isinstance(device, str) else ()
    schema = plain.schema(schemas, doc.at((*declared[:-1], "adapter")))
    if schema is None or doc.at((*here, "window")) is None:
        return
    texts = []
    for point in plain.items(doc.at(declared)):
        with contextlib.suppress(EdgeError):  # that is said elsewhere
            texts += [point["name"]] if made(partial(_is_text, schema, point), "") else []
    for number, point in enumerate(wanted):
        if point in texts:
            hint = "no window holds a text: leave it out"
            yield doc.problem((*here, "points", number), "is a text", value=point, hint=hint)
    if texts and not wanted and doc.at((*here, "model")) is None:
        hint = "give `points`: those of the device that are numbers"
        yield doc.problem((*here, "window"), f"cannot hold a text, and {', '.join(texts)} is one", hint=hint)


def _is_text(schema: type[Adapter], point: object) -> bool:
    return schema.Point.model_validate(point).is_text


def _fits_the_journal(doc: Document, here: Path) -> Iterator[Problem]:
    """A window larger than the journal would wait for samples that are never let in."""
    count, rows_max = plain.number(doc.at(here)), plain.number(doc.at(("outbox", "journal_rows_max")))
    if count * 2 > (JOURNAL_ROWS if math.isnan(rows_max) else rows_max):
        hint = f"set outbox.journal_rows_max to {count * 2} or more, or make the window smaller"
        yield doc.problem(here, "is more than half of what the input journal holds", value=count, hint=hint)
