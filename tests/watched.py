"""A gateway as it is seen, with something of everything; a page of metrics as Prometheus' own library reads it; and a world for a
gateway that does nothing but being watched."""

from __future__ import annotations

from typing import Any

import msgspec
import structlog
from prometheus_client.parser import text_string_to_metric_families

from edge_runtime.board.system import SystemClock, SystemDice, ThreadWorker
from edge_runtime.mesh.membership import State
from edge_runtime.outbox.database import FileDisk
from edge_runtime.outbox.delivery import DeliveryState
from edge_runtime.pipeline.steady import PipelineState
from edge_runtime.records import Stamp
from edge_runtime.sources.supervisor import Counters, SourceState
from edge_runtime.testing.adapter import NoBus
from edge_runtime.watching.seen import Belonging, Delivered, Failing, LocalBroker, Outbox, Seen, Together, Worked
from edge_runtime.world import World


def source(phase: Any = "connected", cause: str = "") -> SourceState:
    counters = Counters(reads=7, samples=6, overruns=5, timeouts=4, failures=3, opens=2, bad_transitions=1)
    return SourceState(device="press", phase=phase, since=Stamp("b", 0, 0, True), cause=cause, hint="look", counters=counters)


def full(**more: Any) -> Seen:
    """There is something of everything."""
    pipeline = PipelineState(
        samples=10, windows=9, failed=8, events=7, dropped=6, executed_on="cpu", discarded={"gap": 5}, skipped={"late": 4},
        bad={"a": 1, "b": 2},
    )  # fmt: skip
    seen = Seen(
        site="plant", gateway="g1", version="1.2.3", uptime_s=1.5, sources={"press": source()},
        pipelines={"wear": Worked(pipeline, 3, "m@1")}, sinks={"cloud": Delivered(DeliveryState(True, True), {"result": 2})},
        failing={"pipeline wear": Failing(2, False, "x")}, broker=LocalBroker(True, True),
        outbox=Outbox(journal={"press": 11}, lost={"result": 12}, size_bytes_max=100, writing_s=0.25),
        mesh=Together(
            State("host", "g1", True), peers={"online": 2}, asked={"done": 3, "gone": 1}, answered={"refused": 0},
            decisions={"here_faster": 4}, dropped={"late": 1}, by_peer={"g2": {"done": 3}}, round_trip_s=0.004,
        ),
        belonging=Belonging(7, 3, False, 86_400.0 * 400), refused={"roster": {"forged": 2}, "command": {"odd": 1}},
    )  # fmt: skip
    return msgspec.structs.replace(seen, **more)


def values(page: bytes) -> dict[tuple[str, tuple[str, ...]], float]:
    """(name, values of the labels) -> value, as Prometheus' own library reads it."""
    families = text_string_to_metric_families(page.decode())
    return {(each.name, tuple(each.labels.values())): each.value for family in families for each in family.samples}


def world(log: list[dict[str, Any]], **more: Any) -> World:
    """`log` gets what is logged."""

    def note(_logger: Any, _level: str, event: Any) -> Any:
        log.append(event)
        raise structlog.DropEvent

    nothing: Any = None
    parts: dict[str, Any] = {
        "clock": SystemClock(), "dice": SystemDice(), "bus": NoBus(), "adapters": {}, "new_worker": ThreadWorker,
        "new_disk": FileDisk, "make_sink": nothing, "new_host": nothing,
        "log": structlog.wrap_logger(None, processors=[note]),
    }  # fmt: skip
    return World(**parts | more)
