"""Gateways that have asked on the broker for another certificate, and what each of them gets; spreading.py talks to the broker.

A request that was answered already gets the same answer again; one whose certificate has most of its life before it gets none: a
gateway whose clock is wrong makes no work.
"""

from __future__ import annotations

from typing import Literal

import msgspec

from edge_runtime.bus import renewal, topics
from edge_runtime.bus.messages import BadMessage
from edge_runtime.ports import EdgeError, Message
from edge_runtime.trust import certificates, envelope, files
from edge_runtime.trust.authority import ISSUED, MEMBER_DAYS, Authority
from edge_runtime.trust.roster import Roster

GAIN_S_MIN = 30 * 86_400
"""A certificate that would last only so much longer than the old one is not made."""

Outcome = Literal["renewed", "answered again", "not due", "refused"]


class Answered(msgspec.Struct, frozen=True, kw_only=True):
    """`renew_by_s`: until when the certificate is good now, seconds since 1970."""

    gateway: str
    outcome: Outcome
    renew_by_s: int | None = None
    cause: str = ""
    certificate: bytes = b""


def answer(message: Message, authority: Authority, roster: Roster, now_s: int) -> Answered | None:
    """None: it is no request. A bad one is refused, and does not keep the others waiting. Raises EdgeError: the folder of the
    authority is broken."""
    parsed = topics.parse(message.topic)
    if parsed is None or not message.payload:
        return None
    gateway = parsed[1]
    try:
        request = _checked(gateway, message.payload, roster)
    except (BadMessage, EdgeError) as error:
        return Answered(gateway=gateway, outcome="refused", cause=error.cause)
    member = roster.named(gateway)
    assert member is not None
    if request.serial != member.serial:
        pem = files.read(authority.folder / ISSUED / f"{member.serial}.pem")
        return Answered(gateway=gateway, outcome="answered again", renew_by_s=member.not_after_s, certificate=pem)
    if now_s + MEMBER_DAYS * 86_400 - member.not_after_s < GAIN_S_MIN:
        cause = "by the clock of this machine it was made lately: look at the gateway's clock"
        return Answered(gateway=gateway, outcome="not due", renew_by_s=member.not_after_s, cause=cause)
    pem = authority.renew(gateway)
    return Answered(
        gateway=gateway, outcome="renewed", renew_by_s=certificates.parse(pem).not_after_s, certificate=pem
    )  # fmt: skip


def _checked(gateway: str, payload: bytes, roster: Roster) -> renewal.Request:
    """Raises EdgeError."""
    opened = envelope.open(payload, renewal.RENEWAL, roster)
    request = renewal.unpack(opened.document, renewal.Request)
    if opened.role != "gateway" or {opened.by, request.gateway} != {gateway}:
        raise BadMessage(f"of {request.gateway}, signed by {opened.by}, where only {gateway} speaks")
    member = roster.named(gateway)
    if member is None or certificates.requested(request.csr.encode()) != member.public:
        raise BadMessage("it is for another key than the one that the gateway has")
    return request
