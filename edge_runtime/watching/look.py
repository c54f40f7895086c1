"""Looks at a gateway: reads its objects into values, at once, without waiting for anything."""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Iterable, Mapping
from enum import Enum
from pathlib import Path
from typing import Any, Protocol

from edge_runtime import config
from edge_runtime.control.commands import Commands
from edge_runtime.control.control import Control
from edge_runtime.control.keeping import Keeping
from edge_runtime.control.renewing import Renewing
from edge_runtime.control.steering import Steering
from edge_runtime.mesh.mesh import Mesh
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.outbox.store import Store
from edge_runtime.pipeline.pipeline import Pipeline
from edge_runtime.records import Lane
from edge_runtime.sources.supervisor import Source
from edge_runtime.watching.seen import Belonging, Delivered, Failing, LocalBroker, Outbox, Phase, SafeMode, Seen, Together, Worked
from edge_runtime.world import World

RECENT_S = 60.0
"""A service that failed so short a while ago counts as failing."""


class Failure(Protocol):
    """gateway.Failure."""

    @property
    def count(self) -> int: ...
    @property
    def at_s(self) -> float: ...
    @property
    def cause(self) -> str: ...


class Gateway(Protocol):
    """What is looked at, of gateway.Gateway."""

    settings: config.Config
    world: World
    steering: Steering | None
    store: Store
    sources: dict[str, Source]
    pipelines: dict[str, Pipeline]
    deliveries: dict[str, Delivery]
    mesh: Mesh | None
    control: Control | None
    commands: Commands | None
    keeping: Keeping | None
    renewing: Renewing | None
    successor: config.Config | None
    started: asyncio.Event
    asked_to_stop: asyncio.Event

    @property
    def failures(self) -> Mapping[str, Failure]: ...
    @property
    def data_dir(self) -> Path: ...


def look(gateway: Gateway, began_ns: int) -> Seen:
    """`began_ns`: when it began, as ports.Clock.mono_ns()."""
    settings, now = gateway.settings, gateway.world.clock.now()
    return Seen(
        site=settings.site,
        gateway=settings.gateway,
        version=gateway.world.version,
        phase=_phase(gateway),
        uptime_s=(now.mono_ns - began_ns) / 1e9,
        synced=now.synced,
        safe=_safe(gateway.steering, gateway.control),
        outbox=_outbox(gateway.store),
        sources={name: source.state for name, source in gateway.sources.items()},
        pipelines={name: Worked(each.state, each.waiting, each.model_name) for name, each in gateway.pipelines.items()},
        sinks={name: Delivered(each.state, _by_kind(each.depth())) for name, each in gateway.deliveries.items()},
        failing=_failing(gateway.failures),
        broker=_local_broker(gateway.mesh) if gateway.mesh and settings.mesh is None else None,
        mesh=_together(gateway.mesh) if gateway.mesh and settings.mesh else None,
        belonging=_belonging(gateway),
        refused=_refused(gateway),
    )


def _phase(gateway: Gateway) -> Phase:
    if gateway.asked_to_stop.is_set():
        return "stopping" if gateway.successor is None else "starting"
    return "running" if gateway.started.is_set() else "starting"


def _safe(steering: Steering | None, control: Control | None) -> SafeMode | None:
    """Whoever steers it may have ended it since the start."""
    if steering is None or not (control.trying.safe if control else steering.origin.safe):
        return None
    start = steering.origin.start
    return SafeMode("bare" in (start.mode, steering.book.life.safe), start.why)


def _outbox(store: Store) -> Outbox:
    return Outbox(
        state=store.state,
        writing_s=store.writing_s,
        size_bytes_max=store.size_bytes_max,
        journal=store.journal_waiting,
        lost=_by_kind(store.news.lost),
        samples_lost=store.news.samples_lost,
        replaced=store.news.replaced,
    )


def _failing(failures: Mapping[str, Failure]) -> dict[str, Failing]:
    now_s = asyncio.get_running_loop().time()
    return {name: Failing(each.count, now_s - each.at_s < RECENT_S, each.cause) for name, each in failures.items()}


def _local_broker(mesh: Mesh) -> LocalBroker:
    state = mesh.membership.state
    return LocalBroker(state.role == "host", state.connected, state.cause, state.hint)


def _together(mesh: Mesh) -> Together:
    presence, asking, placing = mesh.presence, mesh.asking, mesh.placing
    return Together(
        state=mesh.membership.state,
        name_taken=bool(presence.name_taken),
        conflicts=presence.name.conflicts,
        bad_messages=sum(mesh.link.bad.values()),
        backlog=mesh.answering.backlog()[0],
        round_trip_s=asking.round_trip_p50_ns() / 1e9,
        peers=Counter(presence.peers.state(each.gateway) or "" for each in presence.peers.births()),
        asked=_named([*asking.verdicts.items(), *asking.unanswered.items()]),
        answered=_named(mesh.answering.counts.items()),
        decisions=_named(placing.reasons.items()),
        dropped=_named(asking.dropped.items()),
        by_peer=placing.outcomes,
    )


def _belonging(gateway: Gateway) -> Belonging | None:
    if gateway.keeping is None or gateway.renewing is None:
        return None
    standing = gateway.keeping.standing
    left_s = gateway.renewing.left_s()
    return Belonging(standing.revision, standing.members, standing.revoked, left_s, standing.cause, standing.hint)


def _refused(gateway: Gateway) -> dict[str, dict[str, int]]:
    """As metrics.REFUSED names it; what this gateway has no part for is left out."""
    found: dict[str, Mapping[str, int]] = {}
    if gateway.control is not None:
        found["configuration"] = gateway.control.refused
    if gateway.commands is not None:
        found["command"] = gateway.commands.refused
    if gateway.keeping is not None and gateway.renewing is not None:
        found["roster"], found["renewal"] = gateway.keeping.refused, gateway.renewing.refused
        found["receipt"] = {"forged": sum(each.forged_receipts for each in gateway.deliveries.values())}
    if gateway.mesh is not None:
        membership = gateway.mesh.membership
        found["broker"] = {"stranger": sum(membership.strangers.values())}
        found["client"] = membership.refused_by_broker
    return {what: dict(counts) for what, counts in found.items()}


def _by_kind(depth: Mapping[Lane, int]) -> dict[str, int]:
    found: dict[str, int] = {}
    for lane, count in depth.items():
        found[lane.kind] = found.get(lane.kind, 0) + count
    return found


def _named(counts: Iterable[tuple[Any, int]]) -> dict[str, int]:
    """By the names of an enum's members: what they say to people may be said in other words one day."""
    return {each.name.lower(): count for each, count in counts if isinstance(each, Enum)}
