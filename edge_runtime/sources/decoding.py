"""Raw sample -> sample (pure): scale and offset, sentinels, ranges. What is bad becomes None with a reason in `faults`."""

from __future__ import annotations

import re
import struct
from collections.abc import Sequence
from math import isfinite

from edge_runtime.adapter import Point
from edge_runtime.ports import EdgeError
from edge_runtime.records import Sample, Stamp, Value

SENTINEL = "sentinel"
OUT_OF_RANGE = "out of range"
NOT_FINITE = "not finite"
NOT_A_NUMBER = "not a number"
MISSING = "missing"

INTEGER_MIN, INTEGER_MAX = -(2**63), 2**64 - 1
"""Whole numbers beyond have no place on the disk or the wire; any publisher could stop the gateway with one."""


TEXT_MAX = 4_096
"""Characters. One message with a longer text would not fit into a transaction, come again for ever, and stop its source."""

NS_MAX = 2**63
"""Nanoseconds since 1970, or since the machine started, that the disk can hold."""

ID_MAX = 2**17
"""Characters of a message id; an MQTT topic, which may be part of one, has up to half as many."""

TOO_LONG = "text too long"

NOT_TEXT = "not text: half of a character (\\ud800 to \\udfff)"

_HALF = re.compile("[\ud800-\udfff]")
"""Half of a character: JSON may hold one (as an escape), a disk or a wire may not. Such a message would come for ever, too."""


class WrongShape(EdgeError):
    """An adapter returned something that is no sample of its device: a bug in the adapter."""


class Decoder:
    """Of one device. Call it with each raw sample; it is the same object again where there is nothing to do."""

    def __init__(self, points: Sequence[Point]) -> None:
        self._names = tuple(point.name for point in points)
        self._rules = tuple(_Rule(point) for point in points)
        self._plain = all(rule.plain for rule in self._rules)

    def __call__(self, raw: Sample) -> Sample:
        """Raises WrongShape when it is no sample of this device: one that the disk cannot take would end the gateway there."""
        if wrong := _wrong_shape(raw, len(self._names)):
            raise WrongShape(f"the adapter returned {wrong}", "this is a bug in the adapter: see context.sample(...)")
        if self._plain and not raw.faults and _all_good(raw.values):
            return raw
        return self._decode(raw)

    def _decode(self, raw: Sample) -> Sample:
        faults = {name: _as_text(raw.faults[name]) for name in self._names if name in raw.faults}
        values: list[Value] = []
        for name, rule, value in zip(self._names, self._rules, raw.values, strict=True):
            if name in faults:
                values.append(None)
                continue
            good, fault = rule.apply(value)
            if fault:
                faults[name] = fault
            values.append(good)
        return Sample(raw.device, raw.stamp, tuple(values), faults, raw.message_id, raw.row)


def _wrong_shape(raw: object, points: int) -> str:
    if type(raw) is not Sample:
        return f"a {type(raw).__name__} where a sample is expected"
    stamp, faults = raw.stamp, raw.faults
    if len(raw.values) != points:
        return f"{len(raw.values)} values for {points} points"
    if type(stamp) is not Stamp or not _is_instant(stamp):
        return "a sample whose stamp is none: see context.clock.now()"
    if type(raw.message_id) is not str or len(raw.message_id) > ID_MAX or _HALF.search(raw.message_id):
        return f"a message id that is no text of at most {ID_MAX} characters"
    if type(faults) is not dict or (faults and not all(type(text) is str for text in (*faults, *faults.values()))):
        return "faults that are no texts by the names of points"
    return ""


def _is_instant(stamp: Stamp) -> bool:
    fits = type(stamp.boot) is str and type(stamp.synced) is bool
    return fits and all(type(ns) is int and -NS_MAX <= ns < NS_MAX for ns in (stamp.mono_ns, stamp.wall_ns))


class _Rule:
    """What is done to the values of one point."""

    __slots__ = ("_high", "_linear", "_low", "_offset", "_scale", "_sentinels", "plain")

    def __init__(self, point: Point) -> None:
        self._scale, self._offset = point.scale, point.offset
        self._low, self._high = point.low, point.high
        self._sentinels = frozenset((*point.sentinels, *_as_float32(point.sentinels)))
        self._linear = point.scale != 1.0 or point.offset != 0.0
        ranged = point.low is not None or point.high is not None
        self.plain = not (self._linear or ranged or self._sentinels)

    def apply(self, value: Value) -> tuple[Value, str]:
        """(good value, "") or (None, reason)."""
        if value is None:
            return None, MISSING
        if isinstance(value, bool):
            return value, ""
        if isinstance(value, str):
            if len(value) > TEXT_MAX:
                return None, TOO_LONG
            if _HALF.search(value):
                return None, NOT_TEXT
            return (value, "") if self.plain else (None, NOT_A_NUMBER)
        given: object = value  # whatever the adapter's author took for one
        if not isinstance(given, int | float):  # numpy's float32, a list: nothing that the disk or the wire could take
            return None, f"a {type(given).__name__} is no value"
        if value in self._sentinels:
            return None, SENTINEL
        try:
            # A whole number that needs no scaling stays exact: a counter beyond 2**53 does not survive a float.
            scaled = value * self._scale + self._offset if self._linear else value
        except OverflowError:
            return None, NOT_FINITE
        if isinstance(scaled, float) and not isfinite(scaled):
            return None, NOT_FINITE
        if isinstance(scaled, int) and not INTEGER_MIN <= scaled <= INTEGER_MAX:
            return None, OUT_OF_RANGE
        if (self._low is not None and scaled < self._low) or (self._high is not None and scaled > self._high):
            return None, OUT_OF_RANGE
        return scaled, ""


def why_blind(samples: Sequence[Sample]) -> str:
    """Of the newest one; "": a value of one of them is good."""
    if any(value is not None for sample in samples for value in sample.values):
        return ""
    return next((f"{point}: {reason}" for point, reason in samples[-1].faults.items()), "no value")


def _all_good(values: tuple[Value, ...]) -> bool:
    for value in values:  # all() with a generator takes twice as long, and this runs for every sample
        if isinstance(value, float):
            if value - value != 0.0:
                return False
        elif isinstance(value, int):
            if not INTEGER_MIN <= value <= INTEGER_MAX:
                return False
        elif not isinstance(value, str) or len(value) > TEXT_MAX or _HALF.search(value):
            return False
    return True


def _as_text(reason: str) -> str:
    """It may quote what a device said."""
    reason = reason if len(reason) <= TEXT_MAX else f"{reason[:TEXT_MAX]}..."
    return reason.encode("utf-8", "backslashreplace").decode() if _HALF.search(reason) else reason


def _as_float32(numbers: Sequence[float]) -> list[float]:
    """A device that says -9999.9 in 32 bits says -9999.900390625: both must be recognised."""
    return [struct.unpack("f", struct.pack("f", n))[0] for n in numbers if abs(n) < 3.4e38]
