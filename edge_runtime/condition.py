"""How each part of a gateway is, for a configuration on trial to be judged by (reads; asks nobody)."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping
from typing import Protocol

from edge_runtime.config import Config
from edge_runtime.control.control import Control
from edge_runtime.control.trial import CALLED, OK, STARTING, Part
from edge_runtime.mesh.mesh import Mesh
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.outbox.store import Store
from edge_runtime.pipeline.pipeline import Pipeline
from edge_runtime.services import Failure
from edge_runtime.sources.supervisor import Source

KINDS = {"source": "device", "pipeline": "pipeline", "delivery": "sink"}
"""Of a service -> of the part."""

UNCALLED = Part(
    "failed",
    "nobody who may steer it has spoken to it on this broker (publish the document there, too, or give a command; "
    "`edge-runtime config apply` does it)",
)


class Pages(Protocol):
    """What is read, of watching.Watching."""

    served: bool
    cause: str


class Gateway(Protocol):
    """What is read, of gateway.Gateway."""

    sources: dict[str, Source]
    pipelines: dict[str, Pipeline]
    deliveries: dict[str, Delivery]
    mesh: Mesh | None
    control: Control | None
    pages: Pages | None
    settings: Config
    store: Store
    started: asyncio.Event

    @property
    def failures(self) -> Mapping[str, Failure]: ...


def parts(gateway: Gateway, since_s: float) -> dict[str, Part]:
    """By name ("device press"). `since_s`: a service that failed by a fault of ours after this time of the event loop failed for
    good."""
    found = {f"device {name}": _device(source) for name, source in gateway.sources.items()}
    found |= {f"pipeline {name}": _pipeline(pipeline) for name, pipeline in gateway.pipelines.items()}
    found |= {f"sink {name}": _sink(delivery) for name, delivery in gateway.deliveries.items()}
    if gateway.mesh:
        found["broker"] = found["mesh"] = _broker(gateway.mesh)
    found |= {"outbox": _outbox(gateway.store, gateway.started.is_set()), "control": OK, "metrics": _metrics(gateway)}
    if gateway.control:
        found[CALLED] = OK if gateway.control.calling.called else UNCALLED
    for service, failure in gateway.failures.items():
        if failure.at_s >= since_s:
            kind, _, name = service.partition(" ")
            part = f"{KINDS[kind]} {name}" if kind in KINDS else "mesh" if kind in ("mesh", "models") else service
            found[part] = Part("failed", failure.cause, terminal=True)
    return found


def _device(source: Source) -> Part:
    state = source.state
    if state.phase in ("connected", "ended"):
        # It answers, and refuses all that it is asked for: registers that it does not have, another unit behind it.
        return Part("failed", f"no value of it is good ({state.blind})") if state.blind else OK
    if state.phase in ("connecting", "stopped") or not state.cause:
        return STARTING
    return Part("failed", state.cause, terminal=state.phase == "unusable")


def _pipeline(pipeline: Pipeline) -> Part:
    if pipeline.state.cause:
        return Part("failed", pipeline.state.cause)
    return OK if pipeline.ready else STARTING


def _sink(delivery: Delivery) -> Part:
    state = delivery.state
    if state.connected:
        return OK
    return Part("failed", state.cause) if state.cause else STARTING


def _outbox(store: Store, is_open: bool) -> Part:
    if store.state.trouble:
        return Part("failed", store.state.cause)
    return OK if is_open else STARTING


def _metrics(gateway: Gateway) -> Part:
    if gateway.settings.metrics is None or gateway.pages is None or gateway.pages.served:
        return OK
    return Part("failed", gateway.pages.cause) if gateway.pages.cause else STARTING


def _broker(mesh: Mesh) -> Part:
    if mesh.link.connected:
        return OK
    cause = mesh.membership.state.cause
    return Part("failed", cause) if cause else STARTING
