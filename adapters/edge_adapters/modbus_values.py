"""Registers -> values and values -> registers: types and byte orders. Pure.

Byte orders: A is the most significant byte. CDAB and DCBA: the words come last one first. BADC and DCBA: in each word the low
byte is the more significant one. It holds for 16, 32 and 64 bits alike. In a string characters stand in the order of the
registers, whatever the word order of numbers; bytes in a register may be swapped.
"""

from __future__ import annotations

import math
import struct
from collections.abc import Callable, Sequence
from typing import Literal

from edge_runtime.adapter import Unusable, Value

Type = Literal["int16", "uint16", "int32", "uint32", "int64", "uint64", "float32", "float64", "bool", "string"]
Order = Literal["ABCD", "CDAB", "BADC", "DCBA"]

_NUMBERS = {"int16": "h", "uint16": "H", "int32": "i", "uint32": "I", "int64": "q", "uint64": "Q", "float32": "f", "float64": "d"}

Decode = Callable[[Sequence[int], int], Value]
"""Registers (or bits) of a block and where the point starts in them -> raw value; None: these registers hold no value."""


def width(kind: Type, length: int) -> int:
    """Registers of a value (or bits: one)."""
    return -(-length // 2) if kind == "string" else struct.calcsize(_NUMBERS.get(kind, "H")) // 2


# --- registers -> value ----------------------------------------------------------------------------------------------


def decoder(kind: Type, order: Order, bit: int | None, length: int) -> tuple[Decode, str]:
    """And what is wrong where it gives None."""
    if kind == "bool":
        return (_bit if bit is None else _bit_of(bit, order)), "no value"
    if kind == "string":
        return _text(length, order), "not text"
    return _number(_NUMBERS[kind], order), "not a number"


def shift(bit: int, order: Order) -> int:
    """Where a bit of a register stands as it is sent."""
    return bit ^ 8 if order in ("BADC", "DCBA") else bit


def _bit(answer: Sequence[int], at: int) -> Value:
    return bool(answer[at])


def _bit_of(bit: int, order: Order) -> Decode:
    place = shift(bit, order)
    return lambda answer, at: bool(answer[at] >> place & 1)


def _number(code: str, order: Order) -> Decode:
    if code == "H" and order in ("ABCD", "CDAB"):
        return lambda answer, at: answer[at]
    count = struct.calcsize(code) // 2
    pack = struct.Struct(f"{'<' if order in ('BADC', 'DCBA') else '>'}{count}H").pack
    unpack = struct.Struct(f">{code}").unpack
    step = -1 if order in ("CDAB", "DCBA") else 1
    real = code in "fd"

    def decode(answer: Sequence[int], at: int) -> Value:
        value: float | int = unpack(pack(*answer[at : at + count][::step]))[0]
        return None if real and not math.isfinite(value) else value

    return decode


def _text(length: int, order: Order) -> Decode:
    """It ends at the first NUL; trailing blanks are padding."""
    count = width("string", length)
    pack = struct.Struct(f"{'<' if order in ('BADC', 'DCBA') else '>'}{count}H").pack

    def decode(answer: Sequence[int], at: int) -> Value:
        raw = pack(*answer[at : at + count])[:length]
        try:
            return raw.split(b"\0", 1)[0].decode("utf-8").rstrip()
        except UnicodeDecodeError:
            return None

    return decode


# --- value -> registers ----------------------------------------------------------------------------------------------


def fit(kind: Type, length: int, raw: Value) -> Value:
    """The nearest value that such a register holds. Raises Unusable, with the reason, where there is none."""
    if kind == "bool":
        if not isinstance(raw, bool):
            raise Unusable("this is a bool", "give true or false")
        return raw
    if kind == "string":
        return _fitting_text(length, raw)
    if raw is None or isinstance(raw, bool | str) or not math.isfinite(raw):
        raise Unusable(f"this is a {kind}", "give a number")
    code = _NUMBERS[kind]
    if code not in "fd":
        raw = round(raw)
    try:
        held: Value = struct.unpack(f">{code}", struct.pack(f">{code}", raw))[0]
    except (struct.error, OverflowError):
        raise Unusable(f"it does not fit into {kind}", _range(code)) from None
    return held


def registers(kind: Type, order: Order, length: int, raw: Value) -> tuple[int, ...]:
    """What `fit` has returned, as it is sent."""
    swapped = "<" if order in ("BADC", "DCBA") else ">"
    if kind == "string":
        data = str(raw).encode().ljust(2 * width(kind, length), b"\0")
        return struct.unpack(f"{swapped}{len(data) // 2}H", data)
    data = struct.pack(f">{_NUMBERS[kind]}", raw)
    words = struct.unpack(f"{swapped}{len(data) // 2}H", data)
    return words[::-1] if order in ("CDAB", "DCBA") else words


def _fitting_text(length: int, raw: Value) -> str:
    if not isinstance(raw, str):
        raise Unusable("this is a text", "put quotes around it")
    try:
        size = len(raw.encode())
    except UnicodeEncodeError:
        raise Unusable("this text cannot be written as UTF-8", "it holds half of a character") from None
    if size > length:
        raise Unusable(f"the text has {size} bytes, the point {length}", "shorten it")
    if "\0" in raw or raw != raw.rstrip():
        raise Unusable("a text with a NUL or with blanks at its end would not be read back as it is", "leave them out")
    return raw


def _range(code: str) -> str:
    if code in "fd":
        return "the largest number in 32 bits is 3.4e38"
    bits = 8 * struct.calcsize(code)
    low, high = (-(2 ** (bits - 1)), 2 ** (bits - 1) - 1) if code.islower() else (0, 2**bits - 1)
    return f"raw values go from {low} to {high} (raw = (value - offset) / scale)"
