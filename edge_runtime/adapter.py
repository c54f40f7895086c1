"""The contract for adapters: code that talks to a kind of device. Small and stable; an adapter imports nothing else of us.

    class Weather(Adapter):
        \"\"\"Reads a weather station over its line protocol.\"\"\"      # shown by `edge-runtime adapters weather`
        class Options(adapter.Options):  port: str = Field(description="Serial port")
        class Point(adapter.Point):      field: int = Field(description="Column in the station's line")

        async def open(self) -> None: ...
        async def read(self) -> Sequence[Sample]: ...
        async def close(self) -> None: ...

The rules (edge_runtime.testing.adapter_suite checks them on any adapter):

1. `open` makes one attempt. Reconnecting, timeouts, back-off and cadence are the runtime's.
2. `read` of a polled adapter asks the device once; of a pushed one it waits for what comes. Both return samples made by
   `context.sample(...)`. It may be cancelled at any await and called again; a late answer to a cancelled request must
   never be taken for the answer to the next one.
3. What could not be read is None with a reason in `faults`. Never the last value, never 0.
4. Whatever fails raises LinkLost, Unusable or Exhausted, never an error of an outside library.
5. `close` may be called at any time, also twice, also after a failed `open`.
6. Importing the module must not import the outside library; `open` does (and raises Unusable if it is missing).
7. `write`, where there is one, sends one request and never a second: neither the adapter nor its library repeats it. What may
   have reached the device and was not confirmed is Unknown, never LinkLost; a late answer to a write that was given up must
   never be taken for the answer to the next request.
"""

from __future__ import annotations

import asyncio
from abc import ABC, abstractmethod
from collections.abc import Callable, Mapping, Sequence
from dataclasses import dataclass, field
from pathlib import Path
from typing import Any, ClassVar, Literal

from pydantic import BaseModel, ConfigDict, Field, SecretStr, model_validator

from edge_runtime.address import BadAddress, address
from edge_runtime.document import POINT_NAME
from edge_runtime.ports import Address, BrokerError, Bus, Clock, Connection, Dice, EdgeError, Message
from edge_runtime.records import Sample, Stamp, Value

__all__ = [
    "Adapter",
    "Address",
    "BadAddress",
    "BrokerError",
    "Bus",
    "Connection",
    "Context",
    "Exhausted",
    "Field",
    "Line",
    "LinkLost",
    "Message",
    "Options",
    "Point",
    "Sample",
    "Secret",
    "Stamp",
    "Unknown",
    "Unusable",
    "Value",
    "Writable",
    "WritablePoint",
    "address",
    "model_validator",
]


class LinkLost(EdgeError):
    """The device does not answer or the connection broke: the runtime closes, waits (back-off) and opens again."""


class Unusable(EdgeError):
    """It cannot work like this (missing library, unknown register, no such file): shown to the person who configures;
    tried again only rarely."""


class Unknown(EdgeError):
    """A write that may have reached the device: no answer, or the connection broke after it was sent. Reading back tells."""


class Exhausted(Exception):
    """The source has come to its end (a file, a recording). The device is done; this is no failure."""


Secret = SecretStr
"""Type of an option that nobody may see: `password: adapter.Secret = Field(description=...)`. Where it may be `secret:NAME`, use
`context.secret(options.password)`."""


class Options(BaseModel):
    """Base of an adapter's options: unknown keys are refused, every field has a description."""

    model_config = ConfigDict(extra="forbid", frozen=True, allow_inf_nan=False)


class Writable(Options):
    """That a point may be written, and with what: one of `allowed`, or a number from `low` to `high`."""

    low: float | None = Field(
        None, description="Lowest number that may be written, in the point's unit (after scaling)", examples=[0]
    )
    high: float | None = Field(
        None, description="Highest number that may be written, in the point's unit (after scaling)", examples=[100]
    )
    allowed: tuple[bool | int | float | str, ...] = Field(
        (), description="The only values that may be written (instead of `low` and `high`): [true, false], [0, 1, 5], texts"
    )
    every_s_min: float = Field(1.0, gt=0, description="Least seconds between two writes of the point")
    verify: bool = Field(True, description="Read back what was written (false: a register that resets itself or cannot be read)")
    verify_s_max: float = Field(1.0, ge=0, le=10, description="Longest time until the device shows what was written")
    tolerance: float = Field(
        0.0, ge=0, description="The value read back may differ by so much, in the point's unit (a device that rounds)"
    )

    @model_validator(mode="after")
    def _is_bounded(self) -> Writable:
        ranged = self.low is not None or self.high is not None
        if ranged == bool(self.allowed) or (ranged and (self.low is None or self.high is None)):
            raise ValueError("no write without a bound: give `low` and `high`, or `allowed` (true and false too: [true, false])")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class Point(Options):
    """One declared value of a device. An adapter adds where to find it (register, topic path, column)."""

    name: str = Field(description="Name of the point, unique in the device", pattern=POINT_NAME, examples=["temperature"])
    unit: str = Field("", description="Unit of the scaled value (SenML/UCUM code: Cel, bar, 1/min, A, ...)")
    description: str = Field("", description="For people")
    scale: float = Field(1.0, description="value = raw * scale + offset (numbers only)")
    offset: float = Field(0.0, description="value = raw * scale + offset (numbers only)")
    low: float | None = Field(None, description="Below it (after scaling) the quality is bad: out of range")
    high: float | None = Field(None, description="Above it (after scaling) the quality is bad: out of range")
    sentinels: tuple[float, ...] = Field((), description="Raw values by which the device says 'no value' (32767, -9999, ...)")
    deadband: float | None = Field(None, ge=0, description="Forwarded only when it moved by more than this (absolute)")
    silence_max_s: float | None = Field(
        None, gt=0, le=366 * 86_400, description="... or when nothing was forwarded for this long"
    )

    @property
    def is_text(self) -> bool:
        """Its value is a text, which no window holds."""
        return False

    @model_validator(mode="after")
    def _tells_the_value(self) -> Point:
        if self.scale == 0:
            raise ValueError("scale 0: whatever the device says, the value would be the offset, and look good")
        if self.low is not None and self.high is not None and self.low >= self.high:
            raise ValueError(f"low ({self.low}) must be below high ({self.high})")
        return self


class WritablePoint(Point):
    """Base of the points of an adapter that writes. With `Point` the key `write` is unknown, and refused."""

    write: Writable | None = Field(None, description="What may be written to it (default: nothing, the point is only read)")

    @model_validator(mode="after")
    def _can_be_written(self) -> WritablePoint:
        """What was written must not read as bad quality."""
        if self.write is None:
            return self
        for value in (self.write.low, self.write.high, *self.write.allowed):
            if value is None or isinstance(value, bool | str):
                continue
            if (self.low is not None and value < self.low) or (self.high is not None and value > self.high):
                raise ValueError(f"{value:g} may be written, but would read as out of range: see the point's own low and high")
        return self

    def fit(self, raw: Value) -> Value:
        """The raw value that the device can hold and that is nearest to `raw` (an integer register: the nearest whole number).
        Pure. Raises Unusable, with the reason, where there is none: of another type, beyond the register's range."""
        return raw


@dataclass
class Line:
    """The physical line that devices share (a serial port, a TCP connection). The runtime lets one device at a time use it,
    in order of asking; `shared` is the adapter's own place for what the devices on it have in common (a client)."""

    key: str
    turn: asyncio.Lock = field(default_factory=asyncio.Lock)
    shared: Any = None
    users: int = 0


@dataclass(frozen=True)
class Context:
    """What the runtime gives to an adapter."""

    device: str
    options: Any
    points: tuple[Any, ...]
    clock: Clock
    dice: Dice
    line: Line
    bus: Bus
    log: Any
    resolve: Callable[[str], Path] = Path
    """Makes a path of the configuration absolute (relative ones are relative to the configuration file)."""
    reveal: Callable[[str], str] = str
    """For `secret`."""

    def secret(self, option: str | SecretStr) -> str:
        """The text of an option that is a secret: of `secret:NAME` what NAME is now. Ask for it where it is used (in `open`), and
        keep it nowhere. The bus does so by itself with the password of an address. Raises Unusable: it is not there."""
        try:
            return self.reveal(option if isinstance(option, str) else option.get_secret_value())
        except EdgeError as error:
            raise Unusable(error.cause, error.hint) from None

    def sample(
        self,
        values: Mapping[str, Value],
        faults: Mapping[str, str] | None = None,
        *,
        stamp: Stamp | None = None,
        message_id: str = "",
    ) -> Sample:
        """A raw sample, by point name. A declared point that is in neither mapping gets the fault "missing"."""
        bad = dict(faults or {})
        row: list[Value] = []
        for point in self.points:
            value = None if point.name in bad else values.get(point.name)
            if value is None and point.name not in bad:
                bad[point.name] = "missing"
            row.append(value)
        return Sample(self.device, stamp or self.clock.now(), tuple(row), bad, message_id)


class Adapter(ABC):
    """One device. See the module's text for the rules."""

    mode: ClassVar[Literal["polled", "pushed"]] = "polled"
    Options: ClassVar[type[Options]] = Options
    Point: ClassVar[type[Point]] = Point

    def __init__(self, context: Context) -> None:
        self.context = context

    @classmethod
    def line(cls, device: str, options: Any) -> str:
        """Key of the physical line; devices with one key take turns. By default each device has its own."""
        return device

    @classmethod
    def session(cls, options: Any) -> tuple[str, str]:
        """(option, key): what one device only can have at the far end, and the option that names it. Two devices with one key
        would take each other's data, so they are refused. By default (an empty key) there is no such thing."""
        return "", ""

    @classmethod
    def describe(cls, options: Any, points: Sequence[Any]) -> list[dict[str, object]]:
        """How the device will be read, as rows for people (`edge-runtime check --plan`). Pure: the device is not asked.
        Raises Unusable for points that cannot be read like this."""
        return []

    @classmethod
    def needs(cls, options: Any) -> Mapping[str, str]:
        """The outside modules that `open` imports with these options, and what to type where one is missing:
        {"pymodbus": "pip install 'edge-runtime[modbus]'"}. Top-level names; `edge-runtime check` looks for them and imports none.
        By default there are none."""
        return {}

    @property
    def redelivers(self) -> bool:
        """True: what is not acknowledged is delivered again after a reconnect. Its samples go through the input journal
        and are acknowledged when they are on disk."""
        return False

    @property
    def waits(self) -> bool:
        """True: a pushed source that loses nothing while it is not read (a file). It is read as fast as its pipelines take its
        samples; of another one that is faster than they are the oldest samples are dropped, and counted."""
        return False

    @abstractmethod
    async def open(self) -> None:
        """One attempt to connect, given up after the device's `timeout_s`. Raises LinkLost or Unusable."""
        ...

    @abstractmethod
    async def read(self) -> Sequence[Sample]:
        """Samples with raw values, the oldest first; a polled adapter asks once, a pushed one waits for what comes. May be
        cancelled at any await and called again. Raises LinkLost, Unusable or Exhausted."""
        ...

    @abstractmethod
    async def close(self) -> None:
        """Lets go of the device. At any time, also twice, also after a failed `open`; left behind after 2 s. Raises nothing."""
        ...

    async def write(self, point: str, value: Value) -> None:
        """Writes a raw value (what `fit` of the point returned), once; returns when the device has confirmed it. It is called
        in the line's turn; of a pushed adapter while `read` waits. May be cancelled at any await: then it may have reached
        the device.

        Raises LinkLost where certainly nothing was sent; Unknown where it may have reached the device; Unusable where the
        device refuses it. Nothing repeats it: not the adapter, not its library."""
        raise Unusable("this adapter cannot write", "`edge-runtime adapters` shows what each one does")

    async def read_back(self, point: str) -> Value:
        """The raw value that the point has now, asked of the device (None: it has none), in the line's turn like `write`.
        Raises LinkLost, or Unusable where it cannot be read."""
        raise Unusable("this adapter cannot read back", "what it writes is `written`, never `verified`")

    async def acknowledge(self, samples: Sequence[Sample]) -> None:
        """These samples, the oldest that `read` returned and that were not acknowledged yet, are on disk. Only called
        where `redelivers`; in the order of `read`. Must not raise when the connection is gone: the source asks again."""
        return
