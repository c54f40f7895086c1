"""Entries of the audit log and the chain that binds them (pure): who did what, and the hash that an edited entry no longer fits.

    hash = SHA-256( netstring(FORMAT) netstring(n) netstring(boot) ... netstring(completes) netstring(previous) )

A netstring is `<length in bytes>:<UTF-8>,`: numbers are decimal, true is 1. Values stand in an entry as the JSON text that was
hashed, so that nobody who checks it has to write a number again as we did.
"""

from __future__ import annotations

import hashlib
from enum import StrEnum
from typing import Any

import msgspec

from edge_runtime.ports import EdgeError
from edge_runtime.records import Stamp

FORMAT = "edge-runtime audit 1"

GENESIS = "0" * 64
"""`previous` of the first entry."""

BEGUN = "begun"
"""Outcome of an intent: what came of it stands in the entry that completes it, and if there is none, nobody knows."""

VALUE_BYTES_MAX = 4096
"""Of before, requested and read_back each, as JSON; of a larger one its hash and its beginning are kept."""

TEXT_CHARS_MAX = 1000
"""Of each text."""

VALUE_BEGINNING_CHARS = 500


class Kind(StrEnum):
    """What an entry is about."""

    COMMAND = "command"
    CONFIGURATION = "configuration"
    RULE = "rule"
    START = "start"
    TRUST = "trust"


class Entry(msgspec.Struct, frozen=True, kw_only=True):
    """What is told to the log. `before`, `requested` and `read_back` are anything that JSON can say; None: there is none, or it
    is not known.

    `actor`: person:alice, a gateway's name, file, or rule:NAME. `via`: the topic, or cli. `subject`: `point press/speed`,
    `config`, `model wear`, ... `why` is free text; for a rule: pipeline, model@version, and the id of the window or the result.
    """

    kind: Kind
    actor: str
    via: str = ""
    subject: str
    before: Any = None
    requested: Any = None
    read_back: Any = None
    outcome: str = ""
    why: str = ""


class Row(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """An entry as it lies on the disk, in the database and in a segment's file; its fields in the order in which they are hashed.

    `n` has no gaps. `before`, `requested`, `read_back` are JSON texts, "" for none. `completes`: n of the intent whose outcome
    this is, or 0."""

    n: int
    boot: str
    mono_ns: int
    wall_ns: int
    synced: bool
    kind: str
    actor: str
    via: str
    subject: str
    before: str
    requested: str
    read_back: str
    outcome: str
    why: str
    completes: int
    previous: str
    hash: str

    @property
    def stamp(self) -> Stamp:
        return Stamp(self.boot, self.mono_ns, self.wall_ns, self.synced)


FIELDS = Row.__struct_fields__


class Head(msgspec.Struct, frozen=True):
    """The newest entry: all that it takes, kept elsewhere, to notice that the log's end was cut off or written anew."""

    n: int
    hash: str

    def __str__(self) -> str:
        return f"{self.n}:{self.hash}"

    @classmethod
    def parse(cls, text: str) -> Head:
        """`1234:<64 hex digits>`; raises EdgeError."""
        n, _, digest = text.strip().partition(":")
        if not n.isdecimal() or len(digest) != 64 or digest.strip("0123456789abcdef"):
            raise EdgeError(
                f"{text[:100]!r} is no head of an audit log", "a head is N:HASH, as `edge-runtime audit verify` prints it"
            )
        return cls(int(n), digest)


START = Head(0, GENESIS)
"""Of a log without entries."""


def row_of(entry: Entry, stamp: Stamp, completes: int, after: Head) -> Row:
    """The entry in its place in the chain."""
    row = Row(
        n=after.n + 1,
        boot=stamp.boot,
        mono_ns=stamp.mono_ns,
        wall_ns=stamp.wall_ns,
        synced=stamp.synced,
        kind=entry.kind.value,
        actor=_text(entry.actor),
        via=_text(entry.via),
        subject=_text(entry.subject),
        before=_value(entry.before),
        requested=_value(entry.requested),
        read_back=_value(entry.read_back),
        outcome=_text(entry.outcome),
        why=_text(entry.why),
        completes=completes,
        previous=after.hash,
        hash="",
    )
    return msgspec.structs.replace(row, hash=hash_of(row))


def hash_of(row: Row) -> str:
    """What its `hash` must be."""
    parts = [FORMAT.encode()]
    for value in msgspec.structs.astuple(row)[:-1]:
        parts.append((value if isinstance(value, str) else str(int(value))).encode(errors="surrogatepass"))
    return hashlib.sha256(b"".join(b"%d:%b," % (len(part), part) for part in parts)).hexdigest()


def _text(text: str) -> str:
    """What SQLite and JSON can hold, not too long."""
    clean = text.encode(errors="backslashreplace").decode()
    return clean if len(clean) <= TEXT_CHARS_MAX else clean[: TEXT_CHARS_MAX - 1] + "…"


def _value(value: Any) -> str:
    if value is None:
        return ""
    try:
        encoded = msgspec.json.encode(value, order="deterministic")
    except (
        TypeError,
        ValueError,
    ) as error:  # an int beyond 64 bits, lone surrogates: it came from outside, and is told all the same
        return _value(f"not JSON ({type(error).__name__}): {value!r}".encode(errors="backslashreplace").decode())
    if len(encoded) > VALUE_BYTES_MAX:
        digest, beginning = hashlib.sha256(encoded).hexdigest(), encoded.decode()[:VALUE_BEGINNING_CHARS]
        encoded = msgspec.json.encode({"shortened": beginning, "bytes": len(encoded), "sha256": digest})
    return encoded.decode()


# --- checking --------------------------------------------------------------------------------------------------------


class Broken(EdgeError):
    """The chain does not hold. `n`: the first entry that is not what was written; `cause` names it and says how."""

    def __init__(self, n: int, where: str, cause: str, hint: str = "") -> None:
        super().__init__(f"{where}: {cause}", hint)
        self.n = n


class Chain:
    """Takes entries in their order and raises Broken at the first one that is not what was written, or not where it was."""

    def __init__(self, after: Head = START) -> None:
        self.head = after

    def take(self, row: Row, where: str) -> None:
        expected, n = self.head.n + 1, row.n
        if n > expected:
            missing = f"entry {expected} is missing" if n == expected + 1 else f"entries {expected} to {n - 1} are missing"
            raise Broken(expected, where, f"{missing}: what comes next is entry {n}", "removed, or the log began anew")
        if n < expected:
            raise Broken(n, where, f"entry {n} comes after entry {self.head.n}", "put in, or put in another order")
        if hash_of(row) != row.hash:
            raise Broken(n, where, f"entry {n} was edited: its hash does not fit what it says", f"it says: {said(row)}")
        if row.previous != self.head.hash:
            raise Broken(
                self.head.n,
                where,
                f"entry {n} does not continue entry {self.head.n} as it is here",
                f"one of them was replaced as a whole; entry {n} continues {row.previous[:16]}…, not {self.head.hash[:16]}…",
            )
        self.head = Head(n, row.hash)


def said(row: Row) -> str:
    """In one line, for messages."""
    return " ".join(part for part in (row.kind, row.subject, "by", row.actor, row.requested[:100], row.outcome) if part)
