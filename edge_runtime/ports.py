"""The seams: everything a service needs of the world, as Protocols. gateway.py plugs the real ones, testing/ the seeded ones.
Those of the mesh are in ports_mesh.py.

| port       | real                    | in a test or the simulator        |
|------------|-------------------------|-----------------------------------|
| Clock      | board/system.py         | testing/loop.py                   |
| Dice       | board/system.py         | testing/loop.py (seeded)          |
| Worker     | board/system.py         | testing/loop.py (inline)          |
| Bus        | bus/broker.py           | testing/network.py                |
| Database   | outbox/database.py      | testing/disk.py                   |
| Sink       | outbox/sinks/*.py       | testing/sink.py                   |
| Host       | bus/host.py             | testing/host.py                   |
| Secrets    | board/secrets.py        | world.NoSecrets                   |
"""

from __future__ import annotations

from collections.abc import Callable, Iterable, Mapping, Sequence
from pathlib import Path
from typing import Any, Protocol, TypeVar

import msgspec

from edge_runtime.records import Lane, Record, Stamp

T = TypeVar("T")


class EdgeError(Exception):
    """A failure that a person can act on: what is wrong (`cause`) and what to do about it (`hint`)."""

    def __init__(self, cause: str, hint: str = "") -> None:
        super().__init__(cause)
        self.cause = str(cause)  # an adapter's author may give the exception that is the cause: no log and no disk takes that
        self.hint = str(hint)

    def __str__(self) -> str:
        return f"{self.cause} ({self.hint})" if self.hint else self.cause


# --- time, chance, threads, secrets ----------------------------------------------------------------------------------


class Clock(Protocol):
    """Time. Waiting is asyncio's own (asyncio.sleep, asyncio.timeout): the simulator owns the event loop."""

    def now(self) -> Stamp:
        """Boot id, monotonic and wall nanoseconds, and whether the wall clock is synchronised."""
        ...

    def mono_ns(self) -> int:
        """Nanoseconds since boot; never goes back; the same scale as `now().mono_ns`."""
        ...


class Dice(Protocol):
    """Chance, for jitter and names only; never for security."""

    def uniform(self, low: float, high: float) -> float:
        """A number from low to high."""
        ...

    def token(self) -> str:
        """16 hex digits, never seen before."""
        ...


class Worker(Protocol):
    """One thread that does blocking work, one call after the other."""

    def idle(self) -> bool:
        """No call has begun or waits: what its owner does before the next step of the loop meets none."""
        ...

    async def run(self, function: Callable[..., T], *args: Any) -> T:
        """A call that has begun is finished even if the caller is cancelled."""
        ...

    def close(self) -> None:
        """Finishes the calls that wait, and returns when its thread has ended."""
        ...

    def abandon(self) -> None:
        """Like `close`, but waits for nothing: for a call that may never come back. Its thread ends when the call does."""
        ...


class SecretError(EdgeError):
    """A secret is in none of its places, or where others could read it. Its words never hold the secret."""


class Secrets(Protocol):
    """What configurations call `secret:NAME`."""

    def get(self, name: str) -> str:
        """What it is now: asked for in the moment in which it is used, and kept by nobody. Raises SecretError."""
        ...


# --- MQTT ------------------------------------------------------------------------------------------------------------


class BrokerError(EdgeError):
    """The broker could not be reached, refused us, or went away."""


class Stranger(BrokerError):
    """What answers there is no broker of our site: it was told nothing of us."""


class Revoked(BrokerError):
    """The broker, which has proved who it is, says that our certificate is revoked."""


class Address(msgspec.Struct, frozen=True, kw_only=True):
    """Where a broker is and as whom to connect."""

    host: str
    port: int = 1883
    client_id: str = ""
    clean: bool = True
    username: str = ""
    password: str = ""
    """Or `secret:NAME`: the bus of a gateway asks for it when it connects."""
    ca_file: str = ""
    cert_file: str = ""
    key_file: str = ""
    crl: str = ""
    """Certificates that the CA has revoked, PEM."""
    tls: bool = False
    site_ca: bool = False
    """Of our site: it shows a gateway's certificate of `ca_file`, for whatever name and time. False: one for its host name."""
    quickack: bool = True
    """It may wait for the kernel's acknowledgements: only of one that a gateway has started do we know that it does not."""
    keepalive_s: int = 5

    def __repr__(self) -> str:
        return f"Address({self.host}:{self.port}, client_id={self.client_id!r}, username={self.username!r})"


class Will(msgspec.Struct, frozen=True):
    """What the broker says in our name when we are gone."""

    topic: str
    payload: bytes
    qos: int = 1
    retain: bool = True


class Message(msgspec.Struct, frozen=True):
    """A message as it came in. `mid` and `generation` belong to its acknowledgement and to nothing else."""

    topic: str
    payload: bytes
    qos: int
    retain: bool
    duplicate: bool
    mid: int
    generation: int


class Connection(Protocol):
    """One connection to one broker, from CONNACK until it is lost. It never reconnects: who holds it opens a new one."""

    @property
    def session_present(self) -> bool:
        """The broker has kept a session of this client id: its subscriptions, and the messages that came meanwhile."""
        ...

    async def publish(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None:
        """Returns when QoS 0 is handed to the socket, or QoS 1 is acknowledged by the broker. Waits while the in-flight
        window is full. Raises BrokerError when the connection is lost."""
        ...

    async def subscribe(self, *filters: str, qos: int = 1) -> None:
        """Raises BrokerError when the broker refuses one of them (it names the filter). Where a session was there with so many
        messages that they have to be received first, it returns before the answer, and a refusal ends the connection."""
        ...

    async def unsubscribe(self, *filters: str) -> None:
        """Returns when nothing more comes for these filters than what had come in already (or, as `subscribe`, before that). One
        that was never subscribed is no error. Raises BrokerError when the connection is lost, or for what is no filter."""
        ...

    async def receive(self) -> Message:
        """The next message; may be cancelled without losing one. Raises BrokerError when the connection is lost and
        everything that had come in before was handed out."""
        ...

    def acknowledge(self, message: Message) -> None:
        """PUBACK for a QoS 1 message, in order of arrival. One of another generation is ignored."""
        ...

    async def close(self) -> None:
        """A clean DISCONNECT: the broker does not send the will."""
        ...


class Bus(Protocol):
    """Opens MQTT connections."""

    async def connect(self, address: Address, *, will: Will | None = None, timeout_s: float = 5.0) -> Connection:
        """One attempt. Raises BrokerError with the broker's own reason."""
        ...


class Host(Protocol):
    """A broker that we start ourselves, as a child process. While it is not `up`, whoever answers at its address is somebody
    else, who took the port meanwhile."""

    async def start(self) -> Address:
        """Returns when it accepts connections; the address is the one for us on this machine. Raises BrokerError."""
        ...

    async def run(self) -> None:
        """Keeps it running; returns after `stop`."""
        ...

    @property
    def up(self) -> bool:
        """Its process lives."""
        ...

    async def stop(self) -> None:
        """May be called again, and before `start`."""
        ...


# --- SQLite ----------------------------------------------------------------------------------------------------------


class Database(Protocol):
    """The part of sqlite3.Connection that the store uses. It raises sqlite3's own errors."""

    def execute(self, sql: str, parameters: Sequence[Any] = ..., /) -> Iterable[Any]: ...

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> Any: ...

    def close(self) -> None: ...


class Disk(Protocol):
    """Files of the outbox: opens a database, tells sizes, sets a broken one aside."""

    def open(self, path: Path, *, damaged: bool = False) -> Database:
        """`damaged`: to read what can be read, also of a file that is shorter than it says."""
        ...

    def size_bytes(self, path: Path) -> int:
        """Bytes of the database with its -wal and -shm files; 0 if it is not there."""
        ...

    def log_bytes(self, path: Path) -> int:
        """Bytes of its -wal file."""
        ...

    def set_aside(self, path: Path) -> Path:
        """Renames the database (with its -wal and -shm) to a new name beside it; never overwrites, never deletes."""
        ...

    def move(self, path: Path, target: Path) -> None:
        """Renames a closed database; nothing may be at `target`."""
        ...

    def identity(self, path: Path) -> int:
        """Of the file that has this name now; 0 if there is none. Another number: somebody removed or replaced it."""
        ...

    def copy(self, database: Database, target: Path) -> None:
        """Writes an open database out to a new file, synced: also one whose own file has no name any more."""
        ...


# --- sinks -----------------------------------------------------------------------------------------------------------


class SinkError(EdgeError):
    """The far end did not take what we sent. The batch stays in the outbox; delivery tries again."""


class Refused(SinkError):
    """The far end will never take this batch as it is: sending it again changes nothing. Only a receiver of ours says so;
    a proxy's or a broker's error is a plain SinkError."""


def delivery(confirms: bool) -> str:
    """What a sink's "delivered" means, in the words that are shown everywhere."""
    return "confirmed by the receiver" if confirms else "to the broker only"


Ranges = tuple[tuple[int, int], ...]
"""Sorted, disjoint, not adjacent, both ends included: ((1, 40), (57, 60))."""


class Receipt(msgspec.Struct, frozen=True):
    """What a receiver has, of the epochs it was asked about: (epoch, lane) -> ranges of seqs."""

    ranges: Mapping[tuple[str, Lane], Ranges]


class Sink(Protocol):
    """Who takes records: one instance a configured sink; used by one coroutine."""

    confirms: bool
    """True: `send` returns what the *receiver* has on disk. False: "to the broker only", shown as such everywhere."""

    async def open(self, epochs: Sequence[str]) -> Receipt:
        """Connects, and asks the far end what it has of these epochs. Raises SinkError."""
        ...

    async def send(self, records: Sequence[Record]) -> Receipt:
        """All of one epoch and lane, in order of seq. Returns what the far end has now. Raises SinkError; then it is
        unknown whether the batch arrived: it is sent again, and the far end recognises it."""
        ...

    async def close(self) -> None:
        """Lets go of the far end; at any time, also twice. Raises nothing."""
        ...
