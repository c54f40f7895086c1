"""The way of a record through the logs (pure): at level debug each step is an event, and all of them name the same thing.

| event                                  | says                                             | names                        |
|----------------------------------------|--------------------------------------------------|------------------------------|
| sample_taken                           | a pipeline has it; `message`: its source's id    | sample                       |
| window_made                            | of the samples `first` to `last`                 | result                       |
| task_sent, task_over                   | asked of a peer, and how that ended              | result                       |
| task_received, task_done, task_refused | what a peer does with it                         | result                       |
| result_judged                          | computed, and seen by the rules                  | result                       |
| event_raised, event_cleared            | by that result                                   | result, event_id             |
| committed                              | on the disk, as (lane, epoch, seq)               | result, event_id, or sample  |
| delivered                              | the sink's far end has it                        | the same                     |
| received                               | it is on the disk of `edge-runtime receive`      | the same                     |

A sample is named by its instant, boot:nanoseconds, that stands in its record, too. No value of a point is in any of them.

Who traces asks first, once for many records: at level info it costs a call and no more.
"""

from __future__ import annotations

import logging
from typing import Any, Protocol

from edge_runtime.records import Lane, Stamp


class Known(Protocol):
    """A draft, or a record, also as it travels."""

    @property
    def stamp(self) -> Stamp: ...
    @property
    def unique(self) -> str: ...


def on(log: Any) -> bool:
    """Whether anybody reads it."""
    return bool(log.is_enabled_for(logging.DEBUG))


def instant(stamp: Stamp) -> str:
    """The name of a sample."""
    return f"{stamp.boot}:{stamp.mono_ns}"


def name(lane: Lane, record: Known) -> dict[str, str]:
    """What the events about a record have in common: {"result": "5f0c..."}"""
    if lane.kind is Lane.RESULT:
        return {"result": record.unique}
    if lane.kind is Lane.EVENT:
        return {"event_id": record.unique}
    return {lane.kind.value: instant(record.stamp)}
