"""What gateways tell each other of themselves, as JSON: who is there, how busy it is, where brokers are. Topics: topics.py.

| message | topic                | how                    | who says it                                        |
|---------|----------------------|------------------------|----------------------------------------------------|
| Birth   | gw/{gateway}/status  | QoS 1, retained; will  | each gateway, on every connection to a broker      |
| Load    | gw/{gateway}/load    | QoS 0                  | each gateway, every `period_s`                     |
| Brokers | brokers              | QoS 1, retained        | the gateway that hosts the broker                  |

A key that a reader does not know is passed over: gateways of a site are updated one after the other.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from edge_runtime.bus.messages import VERSION, BadMessage, Word
from edge_runtime.ports_mesh import Endpoint, Offer

PRESENCE_BYTES_MAX = 64 * 2**10
"""Of one message; more is refused."""

MODELS_MAX = 256
PLACES_MAX = 64
"""Endpoints and accelerators of one gateway. Thousands of short ones take ten times their size in memory."""

Count = Annotated[int, msgspec.Meta(ge=0)]
Seconds = Annotated[float, msgspec.Meta(ge=0)]


class Birth(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A gateway is here (or gone: the will that it left with the broker).

    `instance` is new with each start of the process: a late will of an earlier life is recognised by it. `run` names the life of
    the broker that the birth was said to ("" where nobody of the site hosts it): a retained birth of another run is stale.
    """

    v: int = VERSION
    site: Word
    gateway: Word
    instance: Word
    online: bool
    run: str = ""
    boot: str = ""
    version: str = ""
    rank: Count = 0
    """Lower hosts first; see mesh/election.py."""
    may_host: bool = False
    endpoints: Annotated[tuple[Endpoint, ...], msgspec.Meta(max_length=PLACES_MAX)] = ()
    offers: Annotated[tuple[Offer, ...], msgspec.Meta(max_length=MODELS_MAX)] = ()
    accelerators: Annotated[tuple[str, ...], msgspec.Meta(max_length=PLACES_MAX)] = ()
    fingerprint: str = ""
    """Of its key, where the site has an authority."""
    agreement: Annotated[str, msgspec.Meta(pattern=r"^([0-9a-f]{64})?\Z")] = ""
    """Its half of the keys for tasks and replies; new with each start."""
    config: str = ""
    """Hash of the configuration that it runs."""
    safe: bool = False
    """It is in safe mode: it runs what worked last, or nothing but broker and control."""
    uptime_s: Seconds = 0.0
    """In the mesh; of two gateways with one name the one that is longer there keeps it."""


class Load(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A heartbeat: load only. `period_s`: when the next one comes."""

    v: int = VERSION
    gateway: Word
    instance: Word
    period_s: Seconds
    boot: str = ""
    now_ns: Count = 0
    """Of its monotonic clock in this boot: by it others say until when a command holds, whatever the wall clocks show."""
    uptime_s: Seconds = 0.0
    queue: Count = 0
    """Windows that wait or run here, own ones and tasks."""
    queue_ns: Count = 0
    """How long they will take."""
    services: dict[str, int] = {}
    """Of models whose time changed much since the birth: name@version -> nanoseconds a window."""
    tasks_in: Count = 0
    tasks_out: Count = 0
    temperature_c: float | None = None
    hot: bool = False
    battery: bool = False
    """It runs on battery."""
    disk_free_bytes: Count | None = None
    outbox_depth: Count = 0
    latency_ns: Count = 0
    """p50 of its own tasks' round trips; 0: none lately."""


class Brokers(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Where this site's broker is now, and all the places where it may be: for gateways, and for SCADA and dashboards.

    `candidates` is sorted and changes only when a gateway that may host joins or is taken away for good. With `run` "" it is not
    about the broker that it was read from: the host is elsewhere, at `endpoints`.
    """

    v: int = VERSION
    site: Word
    host: Word
    instance: Word
    run: str
    rank: Count = 0
    endpoints: tuple[Endpoint, ...] = ()
    """Where the host's broker listens."""
    candidates: tuple[Endpoint, ...] = ()


Message = Birth | Load | Brokers
M = TypeVar("M", Birth, Load, Brokers)


def pack(message: Message) -> bytes:
    return msgspec.json.encode(message)


def unpack(payload: bytes, kind: type[M]) -> M:
    """Raises BadMessage, naming what is wrong and where."""
    what = kind.__name__.lower()
    if len(payload) > PRESENCE_BYTES_MAX:
        raise BadMessage(f"{what}: {len(payload)} bytes, at most {PRESENCE_BYTES_MAX} are taken", "who else publishes there?")
    try:
        message = msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # arrays in arrays, under a key that nobody knows
        raise BadMessage(f"{what}: {error}", "see docs/topics.md") from None
    if message.v != VERSION:
        raise BadMessage(f"{what}: version {message.v}, this side speaks {VERSION}", "update the older side")
    return message
