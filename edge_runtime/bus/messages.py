"""Every payload that crosses a process border, validated and versioned. Topics stand in topics.py.

Batches are the one wire format of delivery: the body of an HTTPS request and of an MQTT message are the same bytes (JSON,
usually gzip-compressed).

| message        | from -> to          | over HTTP           | over MQTT               |
|----------------|---------------------|---------------------|-------------------------|
| Hello          | gateway -> receiver | POST /v1/hello      | hello/{receiver}        |
| Batch          | gateway -> receiver | POST /v1/batch      | batch/{receiver}        |
| ReceiptMessage | receiver -> gateway | the 200 reply       | receipt/{receiver}      |
| Failure        | receiver -> gateway | every other reply   | `failure` of a receipt  |
"""

from __future__ import annotations

import gzip
import hashlib
import re
import zlib
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Annotated, TypeVar

import msgspec

from edge_runtime.ports import EdgeError, Ranges, Receipt
from edge_runtime.records import Lane, Record, Stamp

VERSION = 1
BATCH_BYTES_MAX = 16 * 2**20
"""Of a batch, packed and unpacked: a receiver refuses more (a small gzip file can hold gigabytes)."""

BATCH_BYTES_AIM = 2 * 2**20
"""A sink starts another batch when the record bodies of one come to this."""

COMPRESS_FROM_BYTES = 512

SEQ_MAX = 2**63 - 1
"""What SQLite can hold."""

WORD = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z"
"""Ends with \\Z: to msgspec, as to Python, `$` is also in front of a line end. Such a name would be two lines in a file."""
Word = Annotated[str, msgspec.Meta(pattern=WORD)]
"""Names and epochs, as they stand in topics and tables."""

Seq = Annotated[int, msgspec.Meta(ge=1, le=SEQ_MAX)]


_HALF = re.compile(
    rb"(?<!\\)(?:\\\\)*(?:\\u[dD][89abAB][0-9a-fA-F]{2}(?!\\u[dD][c-fC-F])|(?<!\\u[dD][89abAB][0-9a-fA-F]{2})\\u[dD][c-fC-F])"
)
"""An escape that needs another one beside it, which is not there."""

SEARCHED_BYTES_MAX = 2**20
"""For one of them, in a payload that is no JSON: 30 ms."""


class BadMessage(EdgeError):
    """A payload that does not keep the contract; the cause names the path in it. Sending it again changes nothing."""


class WireRecord(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A record in a batch; gateway, epoch and lane stand in the batch."""

    seq: Seq
    source: str
    stamp: Stamp
    body: msgspec.Raw
    unique: str = ""


class Batch(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """Records of one epoch and lane, in order of seq."""

    v: int
    site: Word
    gateway: Word
    epoch: Word
    lane: Lane
    records: Annotated[tuple[WireRecord, ...], msgspec.Meta(min_length=1)]


class Hello(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A gateway asks what the receiver has of these epochs."""

    v: int
    site: Word
    gateway: Word
    epochs: tuple[Word, ...]


class LaneRanges(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    epoch: str
    lane: Lane
    ranges: tuple[tuple[Seq, Seq], ...]


class Failure(msgspec.Struct, frozen=True, omit_defaults=True):
    """Why there is no receipt. `refused` is the digest of a payload that will never be taken as it is ("": try again)."""

    cause: str
    hint: str = ""
    refused: str = ""


class ReceiptMessage(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """What a receiver has on disk.

    The answer to a hello is complete for the `epochs` that were asked about. The answer to a batch names no epochs and
    tells only the ranges of its lane that the batch touches: it stays small whatever the receiver has.
    """

    v: int
    receiver: str
    gateway: str
    lanes: tuple[LaneRanges, ...]
    epochs: tuple[str, ...] = ()
    failure: Failure | None = None

    def receipt(self) -> Receipt:
        return Receipt({(each.epoch, each.lane): tuple(each.ranges) for each in self.lanes})


Packable = Batch | Hello | ReceiptMessage | Failure
M = TypeVar("M", Batch, Hello, ReceiptMessage)


def _as_it_is(document: bytes) -> bytes:
    return document


def pack(message: Packable, sign: Callable[[bytes], bytes] = _as_it_is) -> bytes:
    """JSON, gzip-compressed where it pays. `sign` makes a signed document of it; raises what that raises."""
    plain = sign(msgspec.json.encode(message))
    return gzip.compress(plain, compresslevel=1, mtime=0) if len(plain) >= COMPRESS_FROM_BYTES else plain


def unpack(payload: bytes, kind: type[M], opened: Callable[[bytes], bytes] = _as_it_is) -> M:
    """Raises BadMessage, naming what is wrong and where. `opened`: of a signed document what was signed; it may raise, too."""
    what, plain = kind.__name__.lower(), b""
    try:
        plain = opened(inflate(payload))
        message = msgspec.json.decode(plain.decode(), type=kind)
    except UnicodeDecodeError as error:
        raise BadMessage(f"{what}: is no text in UTF-8 (byte {error.start})", "JSON is") from None
    except (msgspec.DecodeError, RecursionError) as error:  # arrays in arrays, in a record's body
        if found := _HALF.search(plain, 0, SEARCHED_BYTES_MAX):  # msgspec says that the text ends too early, or nothing of it
            cause = f"{what}: holds half of a character (byte {found.start()})"
            raise BadMessage(cause, "write both halves of it (\\ud83d\\ude00), or the character in UTF-8") from None
        raise BadMessage(f"{what}: {error}", "see docs/receiver.md for the format") from None
    if message.v != VERSION:
        raise BadMessage(f"{what}: version {message.v}, this side speaks {VERSION}", "update the older side")
    if isinstance(message, Batch):
        _check(message)
    return message


def digest(payload: bytes) -> str:
    """By which a sender recognises that a refusal means the payload it has just sent, and not an earlier one."""
    return hashlib.sha256(payload).hexdigest()[:16]


def batches(site: str, gateway: str, records: Sequence[Record]) -> Iterator[Batch]:
    """Records of one epoch and lane -> one message, or several where their bodies are large."""
    wire: list[WireRecord] = []
    size_bytes = 0
    for record in records:
        if wire and size_bytes + len(record.body) > BATCH_BYTES_AIM:
            yield Batch(VERSION, site, gateway, records[0].epoch, records[0].lane, tuple(wire))
            wire, size_bytes = [], 0
        wire.append(WireRecord(record.seq, record.source, record.stamp, msgspec.Raw(record.body), record.unique))
        size_bytes += len(record.body)
    if wire:
        yield Batch(VERSION, site, gateway, records[0].epoch, records[0].lane, tuple(wire))


def hello(site: str, gateway: str, epochs: Iterable[str]) -> Hello:
    return Hello(VERSION, site, gateway, tuple(epochs))


def receipt(
    receiver: str, gateway: str, ranges: Iterable[tuple[str, Lane, Ranges]], epochs: Iterable[str] = ()
) -> ReceiptMessage:
    return ReceiptMessage(VERSION, receiver, gateway, tuple(LaneRanges(e, lane, r) for e, lane, r in ranges), tuple(epochs))


def refusal(receiver: str, gateway: str, payload: bytes, error: EdgeError) -> ReceiptMessage:
    """The answer over MQTT to a payload that will never be taken."""
    return ReceiptMessage(VERSION, receiver, gateway, (), failure=Failure(error.cause, error.hint, digest(payload)))


def inflate(payload: bytes) -> bytes:
    """Payload as it came, gzip or not -> JSON. Raises BadMessage when it is damaged or unpacks to too much."""
    if len(payload) > BATCH_BYTES_MAX:
        raise BadMessage(f"{len(payload)} bytes, at most {BATCH_BYTES_MAX} are taken", "send smaller batches")
    if payload[:2] != b"\x1f\x8b":
        return payload
    unzip = zlib.decompressobj(wbits=31)
    try:
        plain = unzip.decompress(payload, BATCH_BYTES_MAX)
    except zlib.error as error:
        raise BadMessage(f"gzip: {error}", "the payload was damaged on the way") from None
    if not unzip.eof or unzip.unused_data:
        raise BadMessage(f"gzip: truncated, or more than {BATCH_BYTES_MAX} bytes unpacked", "send smaller batches")
    return plain


def _check(message: Batch) -> None:
    """What the types cannot say: strictly growing seqs, numbers that SQLite can hold."""
    before = 0
    for at, record in enumerate(message.records):
        where = f"batch: $.records[{at}]"
        if record.seq <= before:
            raise BadMessage(f"{where}.seq: {record.seq} after {before}", "records stand in order of seq, each once")
        before = record.seq
        if abs(record.stamp.mono_ns) > SEQ_MAX or abs(record.stamp.wall_ns) > SEQ_MAX:
            raise BadMessage(f"{where}.stamp: more than 64 bits", "nanoseconds fit in 64 bits until the year 2262")
