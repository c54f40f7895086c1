"""Who may configure and command this gateway (decides). With a site: who its authority has made an operator or an engineer, and
has signed; or, where `control.require_signature` wants no signature of that role, whoever the broker's access rules let say it.
Without one: whoever reaches the broker, so only where nobody else does.
"""

from __future__ import annotations

import ipaddress
import re
from collections.abc import Sequence
from typing import Literal, NamedTuple

from edge_runtime import config
from edge_runtime.address import address
from edge_runtime.ports import EdgeError
from edge_runtime.trust import envelope
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.roster import Role

Context = Literal["desired", "command"]

_PLAIN = re.compile(r"[A-Za-z0-9_.@/-][A-Za-z0-9_.@/ -]*|")
"""A claim that cannot be taken for person:NAME, whatever the eye makes of it: no colon, and nothing that looks like one."""

MAY: dict[Context, Sequence[Role]] = {"desired": ("engineer",), "command": ("operator", "engineer")}


class NotAdmitted(EdgeError):
    """Nobody who may say it has said it. `reason`: in a word, for a counter."""

    def __init__(self, reason: str, cause: str, hint: str = "") -> None:
        super().__init__(cause, hint)
        self.reason = reason


class Said(NamedTuple):
    """What was said, without its signature. `by`: who has signed it; "": nobody has."""

    document: bytes
    by: str
    signed: bool

    def actor(self, issuer: str) -> str:
        """For the audit log. `issuer`: as the document says, which proves nothing where it is not signed: then it looks like
        nobody who has signed."""
        claimed = issuer if _PLAIN.fullmatch(issuer) else f"{issuer} (not signed)"
        return self.by or claimed or "somebody on the broker"


def wants_signature(settings: config.Config, identity: Identity | None, context: Context) -> bool:
    """Whether a document of this kind counts only if somebody has signed it."""
    return identity is not None and signs(settings.control.require_signature, context)


def signs(wanted: bool | Sequence[str], context: Context) -> bool:
    """`wanted`: control.require_signature. A list names the roles whose word it holds for; a kind of document is the word of the
    least role that may say it."""
    return wanted if isinstance(wanted, bool) else MAY[context][0] in wanted


def opened(payload: bytes, context: Context, settings: config.Config, identity: Identity | None, now_s: int | None) -> Said:
    """`now_s`: the wall clock where it is synchronised. Raises NotAdmitted."""
    signed = envelope.is_signed(payload)
    if identity is None:
        return _without_site(payload, signed, settings)
    if not signed:
        if wants_signature(settings, identity, context):
            hint = "`edge-runtime config` and `edge-runtime command` sign with --identity"
            raise NotAdmitted("unsigned", "it is not signed, and this site wants signatures (control.require_signature)", hint)
        return Said(payload, "", False)
    try:
        found = envelope.open(payload, context, identity.roster, now_s=now_s)
    except EdgeError as error:
        raise NotAdmitted("forged", error.cause, error.hint) from None
    if found.role not in MAY[context]:
        hint = f"{context} is for {' and '.join(MAY[context])}: edge-runtime site person"
        raise NotAdmitted("role", f"{found.by} is {found.role}, who may not say it", hint)
    return Said(found.document, f"person:{found.by}", True)


def closed_by(settings: config.Config) -> str:
    """Where the broker is reached, if without a site nobody may say anything with these settings; else ""."""
    return "" if settings.control.from_network else reached_from(settings)


def _without_site(payload: bytes, signed: bool, settings: config.Config) -> Said:
    if where := closed_by(settings):
        hint = "make a site (`edge-runtime site init`), or set control.from_network in the file on the gateway"
        raise NotAdmitted("network", f"the broker is open to the network ({where}), and this gateway has no site", hint)
    if signed:
        raise NotAdmitted("no-site", "it is signed, and this gateway has joined no site", "edge-runtime join")
    return Said(payload, "", False)


def reached_from(settings: config.Config) -> str:
    """The address by which others on the network reach the local broker; "": nobody does."""
    broker = settings.broker
    if broker.mode == "external":
        host = address(broker.url).host
        return "" if _is_loopback(host) else host
    if broker.mode == "auto":
        return "" if _is_loopback(broker.listen) and _alone(settings) else broker.listen
    return "" if _is_loopback(broker.listen) else broker.listen


def _alone(settings: config.Config) -> bool:
    """It finds no broker but on this machine."""
    mesh = config.together(settings)
    return mesh.discovery == "off" and all(_is_loopback(address(f"mqtt://{peer}").host) for peer in mesh.peers)


def _is_loopback(host: str) -> bool:
    try:
        return host == "localhost" or ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False
