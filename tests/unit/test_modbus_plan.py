"""The batch plan and what registers mean: pure, so most of it is checked for any points."""

from __future__ import annotations

import re
import struct
from pathlib import Path
from typing import Any

import pydantic
import pytest
import yaml
from hypothesis import given
from hypothesis import strategies as st

from edge_adapters.modbus import Modbus
from edge_adapters.modbus_plan import BITS, Options, Point, place, plan, width
from edge_runtime.adapter import Unusable, Value


def options(**more: Any) -> Options:
    return Options.model_validate({"host": "plc", **more})


def point(name: str = "p", **more: Any) -> Point:
    return Point.model_validate({"name": name, **more})


def decoded(registers: list[int], given_options: Options | None = None, **more: Any) -> Value | tuple[str, str]:
    """The point at address 0, read from these registers; a fault is ("fault", reason)."""
    (block,) = plan(given_options or options(), [point(address=0, **more)])
    values: dict[str, Value] = {}
    faults: dict[str, str] = {}
    block.decode(registers, values, faults)
    return ("fault", faults["p"]) if faults else values["p"]


ORDERS = {  # how 0x0A0B0C0D (or its double) stands in the registers, most significant byte first
    "ABCD": (0, 1, 2, 3, 4, 5, 6, 7),
    "CDAB": (6, 7, 4, 5, 2, 3, 0, 1),
    "BADC": (1, 0, 3, 2, 5, 4, 7, 6),
    "DCBA": (7, 6, 5, 4, 3, 2, 1, 0),
}
CODES = {"int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q", "float32": "f", "float64": "d"}


@given(st.sampled_from(sorted(ORDERS)), st.sampled_from(sorted(CODES)), st.binary(min_size=8, max_size=8))
def test_every_type_in_every_byte_order(order: str, kind: str, raw: bytes) -> None:
    """Against the definition: byte k of the registers is byte ORDERS[order][k] of the value."""
    size = struct.calcsize(CODES[kind])
    raw = raw[:size]
    value = struct.unpack(f">{CODES[kind]}", raw)[0]
    where = [place_ for place_ in ORDERS[order] if place_ < size]
    sent = bytes(raw[place_] for place_ in where)
    found = decoded(list(struct.unpack(f">{size // 2}H", sent)), type=kind, order=order)
    if value != value or value in (float("inf"), float("-inf")):
        assert found == ("fault", "not a number")
    else:
        assert found == value


def test_the_devices_byte_order_holds_unless_the_point_has_its_own() -> None:
    registers = list(struct.unpack(">2H", struct.pack("<f", 2.5)))
    assert decoded(registers, options(order="DCBA"), type="float32") == 2.5
    assert decoded(registers[::-1], options(order="DCBA"), type="float32", order="BADC") == 2.5


@pytest.mark.parametrize(
    ("more", "registers", "value"),
    [
        ({"type": "bool", "bit": 0}, [0x0001], True),
        ({"type": "bool", "bit": 15}, [0x7FFF], False),
        ({"type": "bool", "bit": 0, "order": "BADC"}, [0x0100], True),
        ({"type": "string", "length": 4}, [0x5075, 0x6D70], "Pump"),
        ({"type": "string", "length": 3}, [0x5075, 0x6D70], "Pum"),
        ({"type": "string", "length": 4, "order": "BADC"}, [0x7550, 0x706D], "Pump"),
        ({"type": "string", "length": 4, "order": "CDAB"}, [0x5075, 0x6D70], "Pump"),
        ({"type": "string", "length": 6}, [0x4100, 0xFFFF, 0xFFFF], "A"),
        ({"type": "string", "length": 4}, [0x4120, 0x2020], "A"),
        ({"type": "string", "length": 2}, [0xFFFE], ("fault", "not text")),
        ({}, [65535], 65535),
    ],
)
def test_bits_and_text(more: dict[str, Any], registers: list[int], value: Value) -> None:
    assert decoded(registers, **more) == value


@pytest.mark.parametrize(
    ("number", "expected"),
    [
        (1, ("coil", 0)),
        (9999, ("coil", 9998)),
        (10001, ("discrete", 0)),
        (30001, ("input", 0)),
        (40001, ("holding", 0)),
        (49999, ("holding", 9998)),
        (100001, ("discrete", 0)),
        (300010, ("input", 9)),
        (400001, ("holding", 0)),
        (465536, ("holding", 65535)),
    ],
)
def test_register_numbers_as_in_the_lists(number: int, expected: tuple[str, int]) -> None:
    assert place(point(number=number)) == expected


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({}, "give either `number`"),
        ({"number": 40001, "address": 0}, "give either `number`"),
        ({"number": 40001, "table": "input"}, "`table` belongs to `address`"),
        ({"number": 0}, "number 0: not one of"),
        ({"number": 20001}, "number 20001: not one of"),
        ({"number": 40000}, "number 40000: not one of"),
        ({"number": 465537}, "number 465537: not one of"),
        ({"address": 65535, "type": "float32"}, "beyond 65535"),
        ({"number": 1, "type": "int16"}, "a coil is a bool"),
        ({"table": "discrete", "address": 1, "bit": 1}, "a discrete is a bool"),
        ({"address": 1, "type": "bool"}, "needs `bit`"),
        ({"address": 1, "bit": 3}, "only a bool has one"),
        ({"address": 1, "type": "string"}, "needs `length`"),
        ({"address": 1, "length": 3}, "only a string has one"),
        ({"address": 1, "type": "float16"}, "Input should be"),
    ],
)
def test_a_wrong_point_is_told_in_words(more: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        point(**more)


@pytest.mark.parametrize(
    ("more", "message"),
    [
        ({"host": None}, "give either `host`"),
        ({"host": "10.0.0.5:502"}, "goes into `port`"),
        ({"host": "tcp://10.0.0.5"}, "no `tcp://` before it"),
        ({"serial": "/dev/ttyUSB0"}, "give either `host`"),
        ({"baudrate": 9600}, "`baudrate` does not belong to Modbus TCP"),
        ({"host": None, "serial": "/dev/ttyUSB0", "port": 502}, "`port` does not belong to Modbus RTU"),
        ({"host": None, "serial": "/dev/ttyUSB0", "unit_id": 0}, "must be 1 to 247"),
        ({"unit_id": 256}, "less than or equal to 255"),
        ({"block_registers_max": 126}, "less than or equal to 125"),
        ({"block_bits_max": 2001}, "less than or equal to 2000"),
    ],
)
def test_wrong_options_are_told_in_words(more: dict[str, Any], message: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=message):
        options(**more)


TYPES = [{"type": kind} for kind in CODES] + [{"type": "bool", "bit": 3}, {"type": "string", "length": 7}]
REGISTERS = st.builds(
    lambda table, address, kind: {"table": table, "address": address, **kind},
    st.sampled_from(["holding", "input"]),
    st.integers(0, 300),
    st.sampled_from(TYPES),
)
COILS = st.builds(lambda table, address: {"table": table, "address": address}, st.sampled_from(BITS), st.integers(0, 3000))


@given(
    st.lists(REGISTERS | COILS, min_size=1, max_size=40),
    st.integers(0, 124),
    st.integers(4, 125),
    st.integers(1, 2000),
)
def test_the_plan_reads_every_point_once_and_keeps_the_limits(
    wanted: list[dict[str, Any]], gap: int, registers_max: int, bits_max: int
) -> None:
    points = [point(f"p{n}", **more) for n, more in enumerate(wanted)]
    chosen = options(gap_registers_max=gap, block_registers_max=registers_max, block_bits_max=bits_max)
    blocks = plan(chosen, points)
    assert sorted(spot.name for block in blocks for spot in block.spots) == sorted(each.name for each in points)
    for block in blocks:
        assert block.count <= (bits_max if block.table in BITS else registers_max)
        used = {each for spot in block.spots for each in range(spot.address, spot.end)}
        assert (min(used), max(used)) == (block.address, block.address + block.count - 1)
        assert block.wasted == block.count - len(used)
        holes = [after - before - 1 for before, after in zip(sorted(used), sorted(used)[1:], strict=False)]
        assert max(holes, default=0) <= gap * (16 if block.table in BITS else 1)
        for spot in block.spots:
            declared = points[int(spot.name[1:])]
            assert (block.table, spot.address) == place(declared)
            assert spot.end - spot.address == width(declared)


@given(st.lists(REGISTERS, min_size=1, max_size=30))
def test_splitting_keeps_every_point_and_ends_at_single_ones(wanted: list[dict[str, Any]]) -> None:
    points = [point(f"p{n}", **more) for n, more in enumerate(wanted)]
    todo = list(plan(options(gap_registers_max=124), points))
    done = []
    while todo:
        block = todo.pop()
        parts = block.split()
        assert all(part.wasted == 0 for part in parts) or not block.wasted
        assert len(parts) != 1
        todo += parts
        done += [] if parts else [block]
    assert sorted(spot.name for block in done for spot in block.spots) == sorted(each.name for each in points)
    assert all(len(block.spots) == 1 for block in done)


def test_the_plan_can_be_shown() -> None:
    points = [point("a", number=40001, type="float32"), point("b", address=5), point("c", address=20), point("d", number=3)]
    assert Modbus.describe(options(), points) == [
        {"table": "holding", "address": 0, "count": 6, "points": "a, b", "wasted": 3},
        {"table": "holding", "address": 20, "count": 1, "points": "c", "wasted": 0},
        {"table": "coil", "address": 2, "count": 1, "points": "d", "wasted": 0},
    ]


def test_a_point_larger_than_a_block_is_unusable() -> None:
    with pytest.raises(Unusable, match="point p has 4 registers, block_registers_max is 3"):
        plan(options(block_registers_max=3), [point(address=0, type="float64")])
    with pytest.raises(Unusable, match="point p has 4 registers, point p has 2 registers, block_registers_max is 1"):
        plan(options(block_registers_max=1), [point(address=0, type="float64"), point(address=9), point(address=8, type="int32")])


def test_what_the_guide_declares_is_valid() -> None:
    text = (Path(__file__).parents[2] / "docs" / "guide-modbus.md").read_text()
    samples = [yaml.safe_load(sample) for sample in re.findall(r"```yaml\n(.*?)```", text, re.DOTALL)]
    devices = [device for sample in samples for device in sample.get("devices", {}).values()]
    devices += [{"options": {"host": "h"}, "points": sample["points"]} for sample in samples if "points" in sample]
    assert len(devices) == 3
    for device in devices:
        points = [Point.model_validate(each) for each in device["points"]]
        assert Modbus.describe(Options.model_validate(device["options"]), points)


def test_devices_share_a_line_by_host_and_port_or_by_serial_port() -> None:
    serial = options(host=None, serial="/dev/ttyUSB0")
    assert Modbus.line("a", serial) == Modbus.line("b", options(host=None, serial="/dev/ttyUSB0", unit_id=2))
    assert Modbus.line("a", options(port=5020)) == Modbus.line("b", options(port=5020, unit_id=2))
    assert len({Modbus.line("a", each) for each in (serial, options(), options(port=5020), options(host="other"))}) == 4


@pytest.mark.parametrize("host", ["10.0.0.5", "plc.example", "fe80::1%eth0", "::1"])
def test_a_host_is_a_name_or_an_address(host: str) -> None:
    assert Options(host=host).host == host
