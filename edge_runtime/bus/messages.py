"""Every payload that crosses a process border, validated and versioned. Topics stand in topics.py.

Batches are the one wire format of delivery: the body of an HTTPS request and of an MQTT message are the same bytes (JSON,
usually gzip-compressed).
"""

from __future__ import annotations

import gzip
import zlib
from collections.abc import Iterable, Sequence
from typing import TypeVar

import msgspec

from edge_runtime.ports import EdgeError, Ranges, Receipt
from edge_runtime.records import Lane, Record, Stamp

VERSION = 1
BATCH_BYTES_MAX = 16 * 2**20
"""Of a batch, unpacked: a receiver refuses more (a small gzip file can hold gigabytes)."""

COMPRESS_FROM_BYTES = 512


class BadMessage(EdgeError):
    """A payload that does not keep the contract; the cause names the path in it."""


class WireRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A record in a batch; gateway, epoch and lane stand in the batch."""

    seq: int
    source: str
    stamp: Stamp
    body: msgspec.Raw
    unique: str = ""


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Records of one epoch and lane, in order of seq."""

    v: int
    site: str
    gateway: str
    epoch: str
    lane: Lane
    records: tuple[WireRecord, ...]


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A gateway asks what the receiver has of these epochs."""

    v: int
    site: str
    gateway: str
    epochs: tuple[str, ...]


class LaneRanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epoch: str
    lane: Lane
    ranges: tuple[tuple[int, int], ...]


class ReceiptMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """What a receiver has on disk, of the epochs that were asked about or sent."""

    v: int
    receiver: str
    gateway: str
    lanes: tuple[LaneRanges, ...]

    def receipt(self) -> Receipt:
        return Receipt({(each.epoch, each.lane): tuple(each.ranges) for each in self.lanes})


M = TypeVar("M", Batch, Hello, ReceiptMessage)


def pack(message: Batch | Hello | ReceiptMessage) -> bytes:
    """JSON, gzip-compressed where it pays."""
    plain = msgspec.json.encode(message)
    return gzip.compress(plain, compresslevel=1, mtime=0) if len(plain) >= COMPRESS_FROM_BYTES else plain


def unpack(payload: bytes, kind: type[M]) -> M:
    """Raises BadMessage, naming what is wrong and where."""
    plain = _inflate(payload) if payload[:2] == b"\x1f\x8b" else payload
    try:
        message = msgspec.json.decode(plain, type=kind)
    except msgspec.DecodeError as error:
        raise BadMessage(f"{kind.__name__.lower()}: {error}", "see docs/topics.md for the format") from None
    if message.v != VERSION:
        raise BadMessage(f"{kind.__name__.lower()}: version {message.v}, this side speaks {VERSION}", "update the older side")
    return message


def batch(site: str, gateway: str, records: Sequence[Record]) -> Batch:
    """Records of one epoch and lane -> the message."""
    first = records[0]
    wire = tuple(WireRecord(r.seq, r.source, r.stamp, msgspec.Raw(r.body), r.unique) for r in records)
    return Batch(VERSION, site, gateway, first.epoch, first.lane, wire)


def hello(site: str, gateway: str, epochs: Iterable[str]) -> Hello:
    return Hello(VERSION, site, gateway, tuple(epochs))


def receipt(receiver: str, gateway: str, ranges: Iterable[tuple[str, Lane, Ranges]]) -> ReceiptMessage:
    return ReceiptMessage(VERSION, receiver, gateway, tuple(LaneRanges(e, lane, r) for e, lane, r in ranges))


def _inflate(payload: bytes) -> bytes:
    unzip = zlib.decompressobj(wbits=31)
    try:
        plain = unzip.decompress(payload, BATCH_BYTES_MAX)
    except zlib.error as error:
        raise BadMessage(f"gzip: {error}", "the payload was damaged on the way") from None
    if unzip.unconsumed_tail or not unzip.eof:
        raise BadMessage(f"gzip: truncated, or more than {BATCH_BYTES_MAX} bytes unpacked", "send smaller batches")
    return plain
