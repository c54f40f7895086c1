"""The ground floor: values, instants and ids that travel from a device to the far end. Nothing here does I/O.

| value   | born in                  | ends in                        |
|---------|--------------------------|--------------------------------|
| Sample  | an adapter               | a window, or a SAMPLE record   |
| Outcome | sources/writing          | the reply to a command         |
| Window  | pipeline/windowing       | a model's input                |
| Tensor  | a window                 | a model's input, here or there |
| Inference | a model                | a result                       |
| Result  | pipeline/pipeline        | a RESULT record                |
| Event   | pipeline/rules           | an EVENT record                |
| Gap     | outbox/store             | a GAP record                   |
| Draft   | a pipeline               | outbox/store, which numbers it |
| Record  | outbox/store             | a sink                         |
"""

from __future__ import annotations

from enum import StrEnum
from typing import Any, Literal

import msgspec

Value = float | int | bool | str | None
"""What a point can hold. None means: there is no value now (its quality is bad); it is never the last value and never 0."""


class Stamp(msgspec.Struct, frozen=True, array_like=True):
    """An instant that stays usable when the wall clock was wrong.

    `wall_ns` (Unix epoch) is only as good as `synced` says; (`boot`, `mono_ns`) is always exact within one boot.
    """

    boot: str
    mono_ns: int
    wall_ns: int
    synced: bool


class Sample(msgspec.Struct, frozen=True):
    """Values of a device's points at one instant.

    `values` stand in the order of the device's declared points. A point whose quality is bad has the value None and
    stands in `faults` with the reason. `message_id` is the source's own id of the message ("" if it has none), by which
    a redelivery is recognised. `row` is the sample's number in the input journal (0: not journaled, a polled source).
    """

    device: str
    stamp: Stamp
    values: tuple[Value, ...]
    faults: dict[str, str] = {}
    message_id: str = ""
    row: int = 0


class Outcome(msgspec.Struct, frozen=True, kw_only=True):
    """What came of writing one point. Values are scaled, as samples have them.

    | outcome  | the device                                                                                 |
    |----------|--------------------------------------------------------------------------------------------|
    | verified | shows what was sent                                                                        |
    | written  | has confirmed it; it was not read back (the point says so, or it could not be: `cause`)    |
    | refused  | has not changed: nothing was sent, or the device itself refused it                         |
    | failed   | was sent it, and shows something else                                                      |
    | unknown  | was sent it, and neither confirmed it nor could be asked: it may have the one or the other |

    `requested` is what was asked for, `sent` the nearest that the point can hold (None: nothing was sent), `before` and
    `read_back` what the device showed (None: it was not asked, or showed no value).
    """

    outcome: Literal["verified", "written", "refused", "unknown", "failed"]
    requested: Value
    cause: str = ""
    hint: str = ""
    before: Value = None
    sent: Value = None
    read_back: Value = None


class Privacy(StrEnum):
    """How far what a pipeline sees and finds may travel."""

    GATEWAY = "gateway"
    SITE = "site"
    CLOUD = "cloud"


class Lane(StrEnum):
    """Kind and privacy class of records in the outbox, most urgent first. What must go when the disk is full goes from the last
    one up.

    A class has lanes of its own, with seqs of their own: a sink that may not have a class does not take its lanes, so nothing
    of it is read for that sink, passed over or missing. The lane is part of a record's id: what a class was when a record was
    accepted binds it for ever. A gap record holds no values and goes everywhere.
    """

    GAP = "gap"
    EVENT = "event"
    EVENT_SITE = "event_site"
    EVENT_GATEWAY = "event_gateway"
    RESULT = "result"
    RESULT_SITE = "result_site"
    RESULT_GATEWAY = "result_gateway"
    SAMPLE = "sample"
    SAMPLE_SITE = "sample_site"
    SAMPLE_GATEWAY = "sample_gateway"

    @property
    def kind(self) -> Lane:
        """gap, event, result or sample: the lane of its kind that may go anywhere."""
        return Lane(self.value.partition("_")[0])

    @property
    def privacy(self) -> Privacy:
        return Privacy(self.value.partition("_")[2] or Privacy.CLOUD)

    def of(self, privacy: Privacy) -> Lane:
        """Lane.RESULT.of(Privacy.SITE) is Lane.RESULT_SITE."""
        return self.kind if privacy is Privacy.CLOUD else Lane(f"{self.kind.value}_{privacy.value}")


LANES = tuple(Lane)
"""In order of priority, most urgent first."""

KINDS = tuple(lane for lane in LANES if lane is lane.kind)
"""What a record may be, whatever its class: gap, event, result, sample."""


class Draft(msgspec.Struct, frozen=True):
    """A record before the outbox has numbered it.

    `unique` identifies the *content* ("" if nothing does): the same window computed again by the same model is the same
    result, whoever computed it. `body` is JSON, ready to be sent. `source` names the pipeline (or the device, for samples).
    """

    lane: Lane
    source: str
    stamp: Stamp
    body: bytes
    unique: str = ""


class Record(msgspec.Struct, frozen=True):
    """A record of the outbox. (gateway, epoch, lane, seq) is its id for ever; seq is never used twice within an epoch."""

    lane: Lane
    epoch: str
    seq: int
    source: str
    stamp: Stamp
    body: bytes
    unique: str = ""


class Tensor(msgspec.Struct, frozen=True):
    """Raw values, little-endian, C order: what crosses the network. `dtype` is numpy's name of it ("float64")."""

    dtype: str
    shape: tuple[int, ...]
    data: bytes | memoryview


class Inference(msgspec.Struct, frozen=True):
    """What a model made of a window."""

    outputs: dict[str, float]
    executed_on: str
    artefact: str
    threshold: float | None = None
    """Of the artefact that computed it: after a stuck accelerator another one may do."""


class Result(msgspec.Struct, frozen=True, kw_only=True):
    """What a pipeline made of one window. `id` depends on the window and the model only. `fault` says why there are no
    outputs, where the model could not compute this window."""

    id: str
    pipeline: str
    device: str
    window: str
    first: Stamp
    last: Stamp
    rows: int
    filled: int = 0
    model: str = ""
    artefact: str = ""
    executed_on: str = ""
    outputs: dict[str, float]
    fault: str = ""
    alarms: tuple[str, ...] = ()
    placed: str = ""
    """Where gateways share work: who computed it, and why there."""


class Event(msgspec.Struct, frozen=True, kw_only=True):
    """An alarm that was raised or cleared by a rule. `id` depends on the rule, the window and the transition only."""

    id: str
    pipeline: str
    device: str
    rule: str
    raised: bool
    at: Stamp
    output: str
    value: float
    limit: float
    severity: str = "warning"


class Gap(msgspec.Struct, frozen=True, kw_only=True):
    """Records that are gone and will not come: seqs `first`..`last` of a lane, `count` of them, and why.

    `count` may be smaller than last - first + 1 where some of the range had been delivered already.
    """

    lane: Lane
    epoch: str
    first: int
    last: int
    count: int
    reason: str


def to_json(value: Any) -> bytes:
    """One JSON encoding for every record body and message."""
    return _encoder.encode(value)


_encoder = msgspec.json.Encoder()
