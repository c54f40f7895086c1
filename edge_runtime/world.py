"""Everything outside the process, behind ports: cli/run.py makes the real one, testing/ a seeded one."""

from __future__ import annotations

from collections.abc import Awaitable, Callable, Mapping
from dataclasses import dataclass, field
from pathlib import Path
from typing import TYPE_CHECKING, Any, Protocol

from edge_runtime import config
from edge_runtime.adapter import Adapter
from edge_runtime.inference.model import Model, open_model
from edge_runtime.mesh.discovery import NoDiscovery
from edge_runtime.ports import Address, Bus, Clock, Dice, Disk, Host, SecretError, Secrets, Sink, Worker
from edge_runtime.ports_mesh import Discovery, Endpoint, Vitals
from edge_runtime.sources.writing import Writes
from edge_runtime.trust.identity import Identity

if TYPE_CHECKING:
    from edge_runtime.board.systemd import Systemd


class MakeSink(Protocol):
    def __call__(
        self, name: str, settings: config.AnySink, *, site: str, gateway: str, bus: Bus, new_worker: Callable[[], Worker],
        local: Callable[[], Address] | None, resolve: Callable[[str], Path], identity: Identity | None = None,
    ) -> Sink: ...  # fmt: skip


OpenModel = Callable[..., Awaitable[Model]]
"""inference.model.open_model, or one like it."""


class NoSecrets:
    """ports.Secrets where there are none."""

    def get(self, name: str) -> str:
        raise SecretError(f"secret {name} is not here", "this gateway was given no secrets")


@dataclass(frozen=True)
class World:
    """What a gateway is given."""

    clock: Clock
    dice: Dice
    bus: Bus
    adapters: Mapping[str, type[Adapter]]
    new_worker: Callable[[str], Worker]
    new_disk: Callable[[int], Disk]
    make_sink: MakeSink
    new_host: Callable[[config.Broker, Path, Identity | None], Host]
    """Its identity: of this gateway, where there is a site."""
    log: Any
    open_model: OpenModel = open_model
    version: str = ""
    """Of edge-runtime."""
    new_discovery: Callable[[config.Mesh, str], Discovery] = lambda *_: NoDiscovery()
    """Of the mesh's settings, and the address that the broker listens on."""
    reachable: Callable[[config.Config], tuple[Endpoint, ...]] = lambda _: ()
    """Where others on the network reach the broker that we host, or may host."""
    vitals: Callable[[Path], Callable[[], Vitals]] = lambda _: Vitals
    """Reads how the machine is, on a worker; the folder is the one whose disk counts."""
    use_log: Callable[[config.Log], None] = lambda _: None
    """From now on the log is as these settings say."""
    secrets: Callable[[Path], Secrets] = lambda _: NoSecrets()
    """Those of a folder, and of what else the machine keeps them in."""
    systemd: Systemd | None = None
    """Who wants to be told that we have started, and live."""
    writes: Writes = field(default_factory=Writes)
    """When points were last written: a restart of a device, or of everything in this process, forgets nothing of it."""
