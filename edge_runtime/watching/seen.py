"""What is seen of a gateway at one instant: values only, read from the objects that do the work. Nobody keeps books for it."""

from __future__ import annotations

from collections.abc import Mapping
from typing import Literal

import msgspec

from edge_runtime.mesh.membership import State as Membership
from edge_runtime.outbox.delivery import DeliveryState
from edge_runtime.outbox.store import StoreState
from edge_runtime.pipeline.steady import PipelineState
from edge_runtime.ports_mesh import Vitals
from edge_runtime.sources.supervisor import SourceState

Phase = Literal["starting", "running", "stopping"]


class Outbox(msgspec.Struct, frozen=True):
    """`writing_s`: how long the disk has been at what it was told last; `lost`: records, by kind; `replaced`: corrupt files that
    were set aside."""

    state: StoreState = StoreState()
    writing_s: float = 0.0
    size_bytes_max: int = 0
    journal: Mapping[str, int] = {}
    lost: Mapping[str, int] = {}
    samples_lost: int = 0
    replaced: int = 0


class Worked(msgspec.Struct, frozen=True):
    """Of a pipeline. `waiting`: samples of a polled source; `model`: name@version, "": none, or none worked yet."""

    state: PipelineState
    waiting: int = 0
    model: str = ""


class Delivered(msgspec.Struct, frozen=True):
    """Of a sink. `waiting`: records on the disk that it does not have, by kind."""

    state: DeliveryState
    waiting: Mapping[str, int] = {}


class LocalBroker(msgspec.Struct, frozen=True):
    """Of a gateway without a mesh: one that it hosts, or somebody else's."""

    hosted: bool = False
    connected: bool = False
    cause: str = ""
    hint: str = ""


class Together(msgspec.Struct, frozen=True):
    """Of the mesh: counters by the names of their reasons. `peers`: by state; `by_peer`: tasks, by peer and outcome."""

    state: Membership
    name_taken: bool = False
    conflicts: int = 0
    bad_messages: int = 0
    backlog: int = 0
    round_trip_s: float = 0.0
    peers: Mapping[str, int] = {}
    asked: Mapping[str, int] = {}
    answered: Mapping[str, int] = {}
    decisions: Mapping[str, int] = {}
    dropped: Mapping[str, int] = {}
    by_peer: Mapping[str, Mapping[str, int]] = {}


class Belonging(msgspec.Struct, frozen=True):
    """To a site with an authority. `remaining_s`: of our certificate; None: nobody knows what time it is. `cause`: why the
    gateway does not stand well at its site."""

    revision: int
    members: int
    revoked: bool = False
    remaining_s: float | None = None
    cause: str = ""
    hint: str = ""


class Failing(msgspec.Struct, frozen=True):
    """A service that has ended by a fault of ours, and is started again. `recent`: a short while ago."""

    count: int
    recent: bool
    cause: str


class SafeMode(msgspec.Struct, frozen=True):
    """What was configured does not run: the last good configuration does, or (`bare`) only what is needed to be reached."""

    bare: bool
    cause: str


class Seen(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway; each mapping is by the names of the configuration."""

    site: str
    gateway: str
    version: str = ""
    phase: Phase = "running"
    uptime_s: float = 0.0
    synced: bool = True
    safe: SafeMode | None = None
    outbox: Outbox = Outbox()
    sources: Mapping[str, SourceState] = {}
    pipelines: Mapping[str, Worked] = {}
    sinks: Mapping[str, Delivered] = {}
    failing: Mapping[str, Failing] = {}
    broker: LocalBroker | None = None
    mesh: Together | None = None
    belonging: Belonging | None = None
    """None: there is no site with an authority."""
    refused: Mapping[str, Mapping[str, int]] = {}
    """What came from others and was not taken: by what it was, and why."""


class Process(msgspec.Struct, frozen=True):
    """Of the operating system. None: it cannot tell."""

    cpu_s: float | None = None
    resident_bytes: int | None = None
    open_files: int | None = None


class Machine(msgspec.Struct, frozen=True):
    """What is asked of the machine when somebody wants to know. None: it did not answer in time."""

    outbox_bytes: int | None = None
    vitals: Vitals = Vitals()
    process: Process = Process()
