"""What a restart must know of a pipeline besides its journal rows (pure). It is committed in one transaction with the results.

A restart may come with another configuration. Rows of the journal were made under the one before it: their values are picked by
the names that their device's points had then, never by their place. And a grid of windows that was begun under other settings
is not gone on with: the pipeline begins anew at the first row that it still needs.
"""

from __future__ import annotations

import hashlib
from collections.abc import Sequence

import msgspec

from edge_runtime import config
from edge_runtime.pipeline.windowing import State
from edge_runtime.records import Sample

UNDECLARED = "not declared when it came"
"""The fault of a point that its device did not have yet."""


class Era(msgspec.Struct, frozen=True, array_like=True):
    """From this row of the journal on, a device's samples hold these points."""

    first_row: int
    points: tuple[str, ...]


class Saved(msgspec.Struct, frozen=True):
    """`window` is the fingerprint of the settings that `windowing` belongs to; the last of `eras` is the one that lasts."""

    windowing: State = State()
    rules: msgspec.Raw = msgspec.Raw(b"{}")
    window: str = ""
    eras: tuple[Era, ...] = ()


def encode(saved: Saved) -> bytes:
    return _encode(saved)


def decode(state: bytes) -> Saved | None:
    """None: it cannot be read, another version wrote it."""
    try:
        return _decode(state)
    except msgspec.DecodeError:
        return None


def fingerprint(window: config.Window | None, points: Sequence[str]) -> str:
    """Changes with everything that decides which samples make a window and what is in it."""
    settings = window.model_dump_json() if window else ""
    return hashlib.blake2b("\0".join((settings, *points)).encode(), digest_size=8).hexdigest()


def begin_era(eras: tuple[Era, ...], points: tuple[str, ...], head: int) -> tuple[Era, ...]:
    """Rows up to `head` are of the eras so far; what comes now has these points."""
    return eras if eras and eras[-1].points == points else (*eras, Era(head + 1, points))


def forget_eras(eras: tuple[Era, ...], needed_row: int) -> tuple[Era, ...]:
    """Without those that no row is left of."""
    while len(eras) > 1 and eras[1].first_row <= needed_row:
        eras = eras[1:]
    return eras


def as_declared_now(sample: Sample, eras: tuple[Era, ...]) -> Sample:
    """A sample of the journal with the values of the last era's points, in their order."""
    now = eras[-1].points
    then = next((era.points for era in reversed(eras) if era.first_row <= sample.row), now)
    if then == now:
        return sample
    values = dict(zip(then, sample.values, strict=True))
    faults = {point: sample.faults.get(point, UNDECLARED) for point in now if values.get(point) is None}
    return msgspec.structs.replace(sample, values=tuple(values.get(point) for point in now), faults=faults)


_encode = msgspec.json.Encoder().encode
_decode = msgspec.json.Decoder(Saved).decode
