"""The seams of the mesh: what gateways say of themselves and ask of each other, and who does it; see ports.py.

| port       | real                    | in a test or the simulator        |
|------------|-------------------------|-----------------------------------|
| Discovery  | mesh/discovery.py       | testing/discovery.py              |
| Executor   | inference/offering.py   | testing/executor.py               |
"""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Annotated, Literal, Protocol

import msgspec

from edge_runtime.records import Inference, Tensor

Role = Literal["host", "candidate", "guest"]
"""Of a gateway: it hosts the site's broker; it may; it never will."""


class Endpoint(msgspec.Struct, frozen=True):
    """Where a gateway's broker listens, or would."""

    host: str
    port: Annotated[int, msgspec.Meta(ge=1, le=65_535)]


class Announcement(msgspec.Struct, frozen=True, kw_only=True):
    """What a gateway says of itself on the network, before there is a broker: unproved, so where to ask, never who is alive."""

    site: str
    gateway: str
    instance: str
    """New with each start of the process."""
    role: Role
    rank: int = 100
    """Lower hosts first."""
    endpoints: tuple[Endpoint, ...] = ()
    port: Annotated[int, msgspec.Meta(ge=0, le=65_535)] = 0
    """Of our own broker, for Discovery to announce with the addresses that the machine has at the moment: at the start, and
    after a power cut, it may have none. 0: that of the first endpoint."""
    version: str = ""
    fingerprint: str = ""
    """Of its key; "" until the site has a CA."""


class Discovery(Protocol):
    """Announces this gateway on the local network and hears the others of its site."""

    changed: asyncio.Event
    """Set whenever `found` may give something else; its reader clears it."""

    async def open(self, mine: Announcement) -> None: ...

    async def announce(self, mine: Announcement) -> None:
        """What others hear from now on."""
        ...

    def found(self) -> Sequence[Announcement]:
        """The others, in order of their names; of an instance that said goodbye nothing."""
        ...

    async def close(self) -> None:
        """Says goodbye. May be called again."""
        ...


class Offer(msgspec.Struct, frozen=True, omit_defaults=True):
    """A model that a gateway computes for others. `service_ns`: of one window, as measured; 0: not yet known."""

    model: str
    """name@version: the same everywhere, whichever artefact computes it."""
    executed_on: str = ""
    service_ns: Annotated[int, msgspec.Meta(ge=0)] = 0
    artefact: str = ""


class Executor(Protocol):
    """Computes windows for peers."""

    def offers(self) -> Sequence[Offer]:
        """What it can compute now, in order of the models' names."""
        ...

    def offer(self, model: str) -> Offer | None: ...

    def withdraw(self) -> None:
        """From now on it offers nothing; what it has begun it computes to the end."""
        ...

    def resume(self) -> None:
        """It offers again what it can compute."""
        ...

    async def execute(self, model: str, tensor: Tensor) -> Inference:
        """One window. Raises EdgeError: no such model, a wrong shape, an engine that fails."""
        ...


class Vitals(msgspec.Struct, frozen=True):
    """How the machine is. None: it cannot tell."""

    temperature_c: float | None = None
    hot: bool = False
    battery: bool = False
    disk_free_bytes: int | None = None
