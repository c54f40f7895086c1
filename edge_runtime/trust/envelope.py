"""Signed documents: who wrote this, and nobody changed it on the way, whoever carried it.

{"document": "<JSON text>", "by": "alice", "key": "<fingerprint>", "signature": "<base64>"}

Signed is b"edge-runtime/1\\0" + context + b"\\0" + document: what was signed as a command is no configuration. The key says who
it was; `by` is there for people, and must agree. When something was signed is not known: replay is held off by what stands in
the document (a revision, a nonce, a deadline), never here.
"""

from __future__ import annotations

import re
from typing import Annotated, NamedTuple

import msgspec

from edge_runtime.trust import roster as rosters
from edge_runtime.trust.keys import SIGNATURE_BYTES, PrivateKey, fingerprint, verify
from edge_runtime.trust.roster import Forged, Role, Roster

DOCUMENT_BYTES_MAX = 2**20
"""And of the envelope around it twice as much: it stands there as a JSON string, in which a quotation mark takes two bytes."""
ROSTER_BYTES_MAX = 4 * DOCUMENT_BYTES_MAX
"""Of the largest site: roster.MEMBERS_MAX members and roster.REVOKED_MAX revocations."""
ROSTER = "roster"
AUTHORITY = "authority"
"""As whom a roster is signed."""
_CONTEXT = re.compile(r"[a-z][a-z0-9-]{0,31}")
_HINT = "sign it again with a key of this site"


class Opened(NamedTuple):
    """A document, and who signed it."""

    document: bytes
    by: str
    role: Role
    key: str
    """The fingerprint."""


class _Envelope(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    document: str
    by: Annotated[str, msgspec.Meta(max_length=64)]
    key: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{32}\Z")]
    signature: bytes


class _Glance(msgspec.Struct, frozen=True):
    document: msgspec.Raw
    signature: msgspec.Raw


def seal(document: bytes, context: str, key: PrivateKey, by: str) -> bytes:
    """Raises EdgeError (Forged): a document that nobody would open: too large, or not UTF-8."""
    size_bytes_max = _size_bytes_max(context)
    if len(document) > size_bytes_max:
        raise Forged(f"the document has {len(document)} bytes", f"at most {size_bytes_max}")
    try:
        text = document.decode()
    except UnicodeDecodeError:
        raise Forged("the document is not UTF-8", "documents are JSON text") from None
    payload = msgspec.json.encode(_Envelope(text, by, key.fingerprint, key.sign(signed_bytes(context, document))))
    if len(payload) > 2 * size_bytes_max:
        raise Forged(f"the signed document has {len(payload)} bytes", f"at most {2 * size_bytes_max}")
    return payload


def open(payload: bytes, context: str, roster: Roster, *, now_s: int | None = None) -> Opened:  # noqa: A001
    """Of a member of the site, of which role the caller judges. Raises Forged, and nothing else.

    `now_s` is the wall clock if it is synchronised: then a member whose certificate has run out is refused. None: it is not, or
    age is no matter for this document.
    """
    envelope = _parsed(payload, context)
    member = roster.member(envelope.key)
    if member is None:
        raise Forged(f"signed by the key {envelope.key}, which is no member of {roster.site} or was revoked", _HINT)
    if envelope.by != member.name:
        raise Forged(f"says that it is by {envelope.by!r}, but the key belongs to {member.name}", _HINT)
    if now_s is not None and now_s > member.not_after_s:
        raise Forged(f"the certificate of {member.name} has run out", f"edge-runtime site renew {member.name}")
    return Opened(_checked(envelope, context, member.public), member.name, member.role, envelope.key)


def open_late(payload: bytes, context: str, roster: Roster, name: str) -> bytes:
    """The document of the gateway of this name, also if it is dead and its key was revoked since: for what it said of itself and
    for nothing else, as whoever has the key can say it by now. Raises Forged, and nothing else."""
    envelope = _parsed(payload, context)
    member = roster.member(envelope.key)
    keys = [member.public] if member and (member.name, member.role) == (name, "gateway") else []
    keys += [bytes.fromhex(each.key) for each in roster.revoked if each.name == name]
    public = next((each for each in keys if fingerprint(each) == envelope.key), None)
    if public is None or envelope.by != name:
        raise Forged(f"signed by the key {envelope.key} of {envelope.by!r}, which is not and was not that of {name}", _HINT)
    return _checked(envelope, context, public)


def open_roster(payload: bytes, site: str, authority: bytes) -> Roster:
    """A roster that the site's authority signed (`authority`: its raw public key). Raises Forged, and nothing else."""
    roster = rosters.decode(_checked(_parsed(payload, ROSTER), ROSTER, authority))
    if roster.site != site:
        raise Forged(f"a roster of the site {roster.site}, not of {site}", "each site has its own")
    return roster


def is_signed(payload: bytes) -> bool:
    """Whether it has the form of a signed document; says nothing about the signature."""
    if len(payload) > 2 * ROSTER_BYTES_MAX:
        return False
    try:
        msgspec.json.decode(payload, type=_Glance)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError):
        return False
    return True


def signed_bytes(context: str, document: bytes) -> bytes:
    if not _CONTEXT.fullmatch(context):
        raise ValueError(f"no context of a signed document: {context!r}")
    return b"edge-runtime/1\0" + context.encode() + b"\0" + document


def _size_bytes_max(context: str) -> int:
    return ROSTER_BYTES_MAX if context == ROSTER else DOCUMENT_BYTES_MAX


def _parsed(payload: bytes, context: str) -> _Envelope:
    if len(payload) > 2 * _size_bytes_max(context):
        raise Forged(f"a signed document of {len(payload)} bytes", f"at most {2 * _size_bytes_max(context)}")
    try:
        return msgspec.json.decode(payload, type=_Envelope)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Forged(f"not a signed document: {error}", _HINT) from None


def _checked(envelope: _Envelope, context: str, public: bytes) -> bytes:
    document = envelope.document.encode()
    if len(document) > _size_bytes_max(context):
        raise Forged(f"a document of {len(document)} bytes", f"at most {_size_bytes_max(context)}")
    if len(envelope.signature) != SIGNATURE_BYTES or not verify(public, envelope.signature, signed_bytes(context, document)):
        raise Forged(f"the signature does not fit: changed on the way, or signed as something else than a {context}", _HINT)
    return document


def unwrap(payload: bytes) -> bytes:
    """The document of a payload that was checked before (what is kept on our own disk), or the payload itself where it was not
    signed. Raises Forged."""
    return _parsed(payload, "document").document.encode() if is_signed(payload) else payload
