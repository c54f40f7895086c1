"""What is said when a certificate is to be renewed: the gateway's request, and the authority's answer (JSON).

The request is signed by the gateway (envelope, context RENEWAL), with the key that it has and keeps. The answer is not: the
certificate in it is signed by the site's authority, and good for that key alone.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from edge_runtime.bus.messages import VERSION, BadMessage, Word

RENEWAL = "renewal"
"""Context of the signature."""
RENEWAL_BYTES_MAX = 32 * 2**10

Pem = Annotated[str, msgspec.Meta(max_length=16 * 2**10)]


class Request(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    """`serial`: of the certificate that is to be renewed: a request that was answered is recognised by it. `csr`: for its key."""

    v: int = VERSION
    gateway: Word
    serial: Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{1,40}\Z")]
    csr: Pem


class Answer(msgspec.Struct, frozen=True, kw_only=True, forbid_unknown_fields=True):
    v: int = VERSION
    gateway: Word
    certificate: Pem


M = TypeVar("M", Request, Answer)


def pack(message: Request | Answer) -> bytes:
    return msgspec.json.encode(message)


def unpack(payload: bytes, kind: type[M]) -> M:
    """Raises BadMessage, naming what is wrong and where."""
    what = f"renewal {kind.__name__.lower()}"
    if len(payload) > RENEWAL_BYTES_MAX:
        raise BadMessage(f"{what}: {len(payload)} bytes, at most {RENEWAL_BYTES_MAX} are taken", "who else publishes there?")
    try:
        message = msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"{what}: {error}", "see docs/topics.md") from None
    if message.v != VERSION:
        raise BadMessage(f"{what}: version {message.v}, this side speaks {VERSION}", "update the older side")
    return message
