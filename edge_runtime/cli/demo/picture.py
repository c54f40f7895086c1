"""What the demo shows at one instant (pure), and the same as plain lines."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from edge_runtime.cli.demo.watching import Found, Judged, Latency
from edge_runtime.ports import delivery

PLAIN_S = 2.0
"""Between two plain lines."""


class SinkPicture(msgspec.Struct, frozen=True, kw_only=True):
    """`cause` says why it is away. `waiting`: records on the disk that it does not have, by lane."""

    name: str
    confirms: bool
    connected: bool
    cause: str
    delivered: int
    waiting: dict[str, int]

    @property
    def depth(self) -> int:
        return sum(self.waiting.values())

    @property
    def delivery(self) -> str:
        return delivery(self.confirms)

    @property
    def state(self) -> str:
        return "connected" if self.connected else f"away: {self.cause}"


class Picture(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="progress"):
    """`seconds` None: until Ctrl-C. `trouble`: why the pipeline or the disk does not work, "" if they do."""

    elapsed_s: float
    seconds: float | None
    draining: bool
    uplink: str
    samples_per_s: float
    results_per_s: float
    outbox_bytes: int
    sinks: list[SinkPicture]
    latency: Latency
    anomalies: Found
    last: list[Judged]
    notable: list[Judged]
    executed_on: str
    broker: str
    trouble: str = ""

    def sink(self, name: str) -> SinkPicture:
        return next(sink for sink in self.sinks if sink.name == name)


def plain(picture: Picture) -> str:
    """One line."""
    cloud, found = picture.sink("cloud"), picture.anomalies
    return (
        f"{picture.elapsed_s:5.1f} s  uplink {picture.uplink:3}  {picture.samples_per_s:4.1f} samples/s  "
        f"{picture.results_per_s:4.1f} results/s  waiting {cloud.depth:4}  delivered {cloud.delivered:5}  "
        f"{picture.latency.text()}  anomalies: {found.true} found, {found.missed} missed, {found.false} false"
    )


def changes(before: Picture | None, now: Picture) -> Iterator[str]:
    """What a person wants to hear at once, a line each."""
    at = f"{now.elapsed_s:5.1f} s  "
    if before is None:
        yield f"{at}local broker: {now.broker}"
    if now.uplink != (before.uplink if before else "up"):
        yield at + ("the uplink is CUT" if now.uplink == "cut" else "the uplink is back")
    for sink in now.sinks:
        old = before.sink(sink.name).state if before else ""
        if sink.state != old:
            yield f"{at}sink {sink.name} ({sink.delivery}): {sink.state}"
    if now.executed_on and now.executed_on != (before.executed_on if before else ""):
        yield f"{at}the model runs on {now.executed_on}"
    if now.trouble and now.trouble != (before.trouble if before else ""):
        yield at + now.trouble
    if now.draining and not (before and before.draining):
        yield f"{at}draining: what was accepted is delivered"
