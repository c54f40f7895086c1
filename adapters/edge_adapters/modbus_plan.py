"""What a person declares about a Modbus device, which blocks of registers are read for it, and what registers mean. Pure.

    Options, Point -> plan() -> Blocks -> (modbus.py asks the device) -> Block.decode() -> values, faults

One request for 100 registers costs hardly more than one for 2, so neighbouring points share a request and small gaps between
them are read along and thrown away.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence
from dataclasses import dataclass
from typing import Literal

from edge_adapters import modbus_values
from edge_adapters.modbus_values import Decode, Order, Type
from edge_runtime import adapter
from edge_runtime.adapter import Field, Unusable, Value, model_validator

Table = Literal["holding", "input", "coil", "discrete"]

BITS: tuple[Table, ...] = ("coil", "discrete")
TABLES: tuple[Table, ...] = ("holding", "input", "coil", "discrete")
_MODICON: dict[int, Table] = {0: "coil", 1: "discrete", 3: "input", 4: "holding"}

WRITE_REGISTERS_MAX = 123
"""In one request (function 16)."""


class Options(adapter.Options):
    """Give `host` (Modbus TCP) or `serial` (Modbus RTU)."""

    host: str | None = Field(
        None, min_length=1, description="Modbus TCP: name or address of the device", examples=["192.168.0.10"]
    )
    port: int = Field(502, ge=1, le=65535, description="Modbus TCP: port")
    serial: str | None = Field(None, min_length=1, description="Modbus RTU: serial port, as /dev/ttyUSB0")
    baudrate: int = Field(19200, ge=300, le=4_000_000, description="Modbus RTU: bits per second")
    parity: Literal["none", "even", "odd"] = Field("even", description="Modbus RTU: parity (even is the Modbus default)")
    stopbits: Literal[1, 2] = Field(1, description="Modbus RTU: stop bits (2 is usual with parity none)")
    unit_id: int = Field(1, ge=0, le=255, description="Unit (slave) number of the device: 1 to 247; behind TCP also 0 and 255")
    order: Order = Field(
        "ABCD",
        description="Byte order of the device's values, where A is the most significant byte of a 32-bit value: "
        "ABCD big-endian, CDAB low word first, BADC bytes swapped in each register, DCBA little-endian. "
        "64-bit values follow the same rule (CDAB: lowest word first)",
    )
    gap_registers_max: int = Field(
        8, ge=0, le=124, description="Unused registers between two points that are read along to save a request (0: never)"
    )
    block_registers_max: int = Field(120, ge=1, le=125, description="Most registers in one request")
    block_bits_max: int = Field(2000, ge=1, le=2000, description="Most coils or discrete inputs in one request")
    write_multiple: bool = Field(
        False, description="Write a single coil or register with function 15 or 16, too: for a device that refuses 5 and 6"
    )
    quiet_s: float = Field(
        0.05,
        ge=0.002,
        le=10,
        description="Modbus RTU: after an unanswered request the line must be silent this long before the next",
    )

    @model_validator(mode="after")
    def _tcp_or_rtu(self) -> Options:
        given = self.model_fields_set
        if (self.host is None) == (self.serial is None):
            raise ValueError("give either `host` (Modbus TCP) or `serial` (Modbus RTU)")
        if self.host and ("/" in self.host or self.host.count(":") == 1):  # an IPv6 address has more of them
            raise ValueError(
                "`host` is a name or an address alone: no `tcp://` before it, and what is behind a `:` goes into `port`"
            )
        wrong = sorted(given & ({"port"} if self.serial else {"baudrate", "parity", "stopbits", "quiet_s"}))
        if wrong:
            raise ValueError(f"`{wrong[0]}` does not belong to Modbus {'RTU' if self.serial else 'TCP'}")
        if self.serial and not 1 <= self.unit_id <= 247:
            raise ValueError(f"unit_id {self.unit_id}: on a serial line it must be 1 to 247")
        return self


class Point(adapter.WritablePoint):
    """Where a value stands: `number` as in the device's list (40001), or `table` and `address` counted from 0."""

    number: int | None = Field(
        None,
        description="Register number as in most register lists, counted from 1: 40001 is the first holding register, 30001 the "
        "first input register, 10001 the first discrete input, 1 the first coil; six digits (400001) beyond the first 9,999",
        examples=[40001],
    )
    table: Table | None = Field(None, description="With `address`: which table (default: holding)")
    address: int | None = Field(None, ge=0, le=65535, description="Address as it is sent, counted from 0 (40001 is address 0)")
    type: Type | None = Field(None, description="How the value is stored (default: uint16; coils and discrete inputs: bool)")
    order: Order | None = Field(None, description="Byte order, where it differs from the device's")
    bit: int | None = Field(None, ge=0, le=15, description="bool in a register: which bit (0 is the least significant)")
    length: int | None = Field(None, ge=1, le=250, description="string: characters, two in a register")

    @model_validator(mode="after")
    def _place_is_clear(self) -> Point:
        if (self.number is None) == (self.address is None):
            raise ValueError("give either `number` (40001) or `address` (0, with `table`)")
        if self.number is not None and self.table is not None:
            raise ValueError("`table` belongs to `address`; `number` says the table by its first digit")
        table, address = place(self)
        self._check_type(table)
        if address + width(self) > 65536:
            raise ValueError(f"address {address} and {width(self)} registers go beyond 65535")
        return self

    def _check_type(self, table: Table) -> None:
        if table in BITS:
            if self.type not in (None, "bool") or self.bit is not None or self.order is not None:
                raise ValueError(f"a {table} is a bool: no other type, no `bit`, no `order`")
            return
        if (self.type == "bool") != (self.bit is not None):
            raise ValueError("a bool in a register needs `bit` (0 to 15), and only a bool has one")
        if (self.type == "string") != (self.length is not None):
            raise ValueError("a string needs `length` (in characters), and only a string has one")

    @model_validator(mode="after")
    def _device_can_be_written(self) -> Point:
        if self.write is None:
            return self
        table, _ = place(self)
        if table in ("input", "discrete"):
            what = "an input register" if table == "input" else "a discrete input"
            raise ValueError(f"{what} is read only: `write` is for coils and holding registers")
        if width(self) > WRITE_REGISTERS_MAX:
            raise ValueError(f"one request writes at most {WRITE_REGISTERS_MAX} registers, this point has {width(self)}")
        kind = kind_of(self)
        fitting = {"bool": bool, "string": str}.get(kind)
        if fitting and not (self.write.allowed and all(isinstance(one, fitting) for one in self.write.allowed)):
            raise ValueError(f"a {kind} needs `allowed`, such as {'[true, false]' if fitting is bool else '[AUTO, MANUAL]'}")
        if not fitting and any(isinstance(one, bool | str) for one in self.write.allowed):
            raise ValueError(f"`allowed` must be numbers: the point is a {kind}")
        return self

    @property
    def is_text(self) -> bool:
        return self.type == "string"

    def fit(self, raw: Value) -> Value:
        """An integer register holds the nearest whole number (of two equally near ones the even one), float32 the nearest of
        its 32 bits. Beyond its range: Unusable."""
        return modbus_values.fit(kind_of(self), self.length or 0, raw)


def place(point: Point) -> tuple[Table, int]:
    """Table and address counted from 0. Raises ValueError for a number that is in no table."""
    if point.address is not None:
        return point.table or "holding", point.address
    number = point.number or 0
    digit, rest = divmod(number, 100_000 if number > 99_999 else 10_000)
    table = _MODICON.get(digit)
    if table is None or not 1 <= rest <= 65536:
        raise ValueError(f"number {number}: not one of 1.., 10001.., 30001.., 40001.., 100001.., 300001.., 400001..")
    return table, rest - 1


def kind_of(point: Point) -> Type:
    return "bool" if place(point)[0] in BITS else point.type or "uint16"


def width(point: Point) -> int:
    """Registers (or bits) of a point."""
    return modbus_values.width(point.type or "uint16", point.length or 0)


@dataclass(frozen=True)
class Spot:
    """A point as the plan sees it."""

    name: str
    address: int
    count: int
    decode: Decode
    fault: str

    @property
    def end(self) -> int:
        return self.address + self.count


@dataclass(frozen=True)
class Block:
    """One read request: `count` registers (or bits) of a table from `address` on, and the points in them."""

    table: Table
    address: int
    count: int
    spots: tuple[Spot, ...]

    @property
    def answer_bytes(self) -> int:
        """Data bytes of the right answer."""
        return answer_bytes(self.table, self.count)

    @property
    def wasted(self) -> int:
        """Registers that are read and belong to no point."""
        return self.count - len({each for field in self.spots for each in range(field.address, field.end)})

    def decode(self, answer: Sequence[int], values: dict[str, Value], faults: dict[str, str]) -> None:
        for field in self.spots:
            value = field.decode(answer, field.address - self.address)
            if value is None:
                faults[field.name] = field.fault
            else:
                values[field.name] = value

    def split(self) -> tuple[Block, ...]:
        """Smaller blocks with the same points, for a device that refuses this one: first without the gaps, then halves.
        Empty when it cannot be split further."""
        if self.wasted:
            return tuple(_grow(self.table, self.spots, 0, self.count))
        middle = len(self.spots) // 2
        if not middle:
            return ()
        halves = (self.spots[:middle], self.spots[middle:])
        return tuple(block for half in halves for block in _grow(self.table, half, 0, self.count))


def answer_bytes(table: Table, count: int) -> int:
    """Data bytes of the answer to a request for `count` registers (or bits)."""
    return -(-count // 8) if table in BITS else 2 * count


def plan(options: Options, points: Iterable[Point]) -> tuple[Block, ...]:
    """The fewest requests that the limits allow. Raises Unusable for a point that is larger than a block may be."""
    fields: dict[Table, list[Spot]] = {}
    points, largest = list(points), options.block_registers_max
    if large := [f"point {point.name} has {width(point)} registers" for point in points if width(point) > largest]:
        raise Unusable(f"{', '.join(large)}, block_registers_max is {largest}", "raise block_registers_max (at most 125)")
    for point in points:
        table, address = place(point)
        fields.setdefault(table, []).append(_field(point, table, address, point.order or options.order))
    blocks: list[Block] = []
    for table in TABLES:
        bits = table in BITS
        gap = options.gap_registers_max * (16 if bits else 1)
        most = options.block_bits_max if bits else options.block_registers_max
        blocks += _grow(table, sorted(fields.get(table, ()), key=lambda each: (each.address, each.end)), gap, most)
    return tuple(blocks)


def describe(options: Options, points: Iterable[Point]) -> list[dict[str, object]]:
    """The plan as rows for people."""
    return [
        {
            "table": block.table,
            "address": block.address,
            "count": block.count,
            "points": ", ".join(field.name for field in block.spots),
            "wasted": block.wasted,
        }
        for block in plan(options, points)
    ]


def _grow(table: Table, fields: Sequence[Spot], gap: int, most: int) -> list[Block]:
    """Joins neighbours (sorted by address) as long as the gap and the size allow."""
    blocks: list[Block] = []
    taken: list[Spot] = []
    end = 0
    for field in fields:
        fits = taken and field.address - end <= gap and max(end, field.end) - taken[0].address <= most
        if taken and not fits:
            blocks.append(Block(table, taken[0].address, end - taken[0].address, tuple(taken)))
            taken, end = [], 0
        taken.append(field)
        end = max(end, field.end)
    if taken:
        blocks.append(Block(table, taken[0].address, end - taken[0].address, tuple(taken)))
    return blocks


def _field(point: Point, table: Table, address: int, order: Order) -> Spot:
    decode, fault = modbus_values.decoder(kind_of(point), order, point.bit, point.length or 0)
    return Spot(point.name, address, width(point), decode, fault)


# --- writing ---------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Write:
    """One write request. `words`: registers (functions 6 and 16), coils as 0 and 1 (5 and 15), or what function 22 ANDs a
    register with and ORs into it: it changes one bit inside the device, while reading, changing and writing the register from
    here would put back what the device's program has changed in between."""

    function: Literal[5, 6, 15, 16, 22]
    address: int
    words: tuple[int, ...]


def write_request(options: Options, point: Point, raw: Value) -> Write:
    """All registers of a value in one request. Raises Unusable for a value that does not fit."""
    table, address = place(point)
    raw, order = point.fit(raw), point.order or options.order
    if table == "coil":
        return Write(15 if options.write_multiple else 5, address, (int(bool(raw)),))
    if point.bit is not None:
        mask = 1 << modbus_values.shift(point.bit, order)
        return Write(22, address, (0xFFFF & ~mask, mask if raw else 0))
    words = modbus_values.registers(kind_of(point), order, point.length or 0, raw)
    return Write(16 if options.write_multiple or len(words) > 1 else 6, address, words)
