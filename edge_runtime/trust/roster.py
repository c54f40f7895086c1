"""Who belongs to a site: its members, and what was revoked. The site's authority signs it; the highest revision wins."""

from __future__ import annotations

import re
from functools import cached_property
from typing import Annotated, Literal

import msgspec

from edge_runtime.document import NAME
from edge_runtime.ports import EdgeError
from edge_runtime.trust import passwords
from edge_runtime.trust.keys import fingerprint

VERSION = 1
MEMBERS_MAX = 2_000
REVOKED_MAX = 8_000
REVISION_MAX = 2**53 - 1
"""What every JSON reader can hold."""
PERSON = "person:"
COMMON_NAME_CHARACTERS_MAX, GATEWAY_CHARACTERS_MAX = 64, 63
"""A common name has 64 characters at most (X.520); a gateway's name has to be a label of DNS, too."""

Role = Literal["gateway", "viewer", "operator", "engineer", "receiver", "device"]
"""viewer: reads. operator: and commands. engineer: and configures. receiver: takes records, and gives receipts. device: equipment
that is no gateway; it has topics of its own, and sees nothing of the site's."""
PEOPLE: tuple[Role, ...] = ("viewer", "operator", "engineer")
MACHINES: tuple[Role, ...] = ("receiver", "device")
ROLES: tuple[Role, ...] = ("gateway", *PEOPLE, *MACHINES)
PREFIXES: dict[Role, str] = {"gateway": "", **dict.fromkeys(PEOPLE, PERSON), "receiver": "receiver:", "device": "device:"}
"""Before the name in the common name of a certificate: MQTT user names of gateways and of all others never meet."""
RESERVED: dict[Role, tuple[str, ...]] = {"device": ("edge", "device")}
"""Roots of topics. A device of this name would have all that is below them."""

Name = Annotated[str, msgspec.Meta(pattern=NAME.removesuffix("$") + r"\Z")]
Key = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{64}\Z")]
"""A raw Ed25519 public key in hex."""
Serial = Annotated[str, msgspec.Meta(pattern=r"^[0-9a-f]{1,40}\Z")]
"""Of a certificate, in hex."""
Password = Annotated[str, msgspec.Meta(pattern=passwords.PATTERN)]
"""A hash of one: see passwords.py."""


class Forged(EdgeError):
    """A document that nobody of this site has signed as it is, or that does not keep the contract of a signed one."""


class Member(msgspec.Struct, frozen=True, forbid_unknown_fields=True, omit_defaults=True):
    """A gateway or a person, with the certificate that is in force. What has its default is not written: a roster without
    passwords is read by gateways that know of none."""

    name: Name
    role: Role
    key: Key
    serial: Serial
    not_after_s: int
    """Seconds since 1970: until then it should have been renewed. Judged only by a clock that is synchronised."""
    password: Password = ""
    """Of a person, hashed: with it a client gets into the broker that has no certificate. "": only with the certificate."""

    @property
    def password_line(self) -> str:
        """Of a mosquitto password file: the name has no colon, and so is not that of the certificate."""
        return f"{self.name}:{self.password}"

    @property
    def public(self) -> bytes:
        return bytes.fromhex(self.key)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.public)


class Revoked(msgspec.Struct, frozen=True, forbid_unknown_fields=True):
    """A certificate that is void, and with it its key. A key that was renewed has several."""

    name: Name
    key: Key
    serial: Serial
    why: Annotated[str, msgspec.Meta(max_length=100)]


class Roster(msgspec.Struct, frozen=True, forbid_unknown_fields=True, dict=True):
    v: int
    site: Name
    revision: Annotated[int, msgspec.Meta(ge=1, le=REVISION_MAX)]
    members: Annotated[tuple[Member, ...], msgspec.Meta(max_length=MEMBERS_MAX)]
    revoked: Annotated[tuple[Revoked, ...], msgspec.Meta(max_length=REVOKED_MAX)]
    crl: Annotated[str, msgspec.Meta(max_length=2**20)] = ""
    """The same revocations as a CRL in PEM: for whoever hosts the broker."""

    def member(self, key_fingerprint: str) -> Member | None:
        """None: no member, or one that was revoked."""
        return self._by_key.get(key_fingerprint)

    def named(self, name: str) -> Member | None:
        """None: nobody has this name now."""
        return self._by_name.get(name)

    def is_revoked(self, *, key: str = "", serial: str = "") -> bool:
        """By the public key or the serial number of a certificate (hex)."""
        return key in self._revoked_keys or serial in self._revoked_serials

    @cached_property
    def _by_key(self) -> dict[str, Member]:
        return {each.fingerprint: each for each in self.members if each.key not in self._revoked_keys}

    @cached_property
    def _by_name(self) -> dict[str, Member]:
        return {each.name: each for each in self.members}

    @cached_property
    def _revoked_keys(self) -> frozenset[str]:
        return frozenset(each.key for each in self.revoked)

    @cached_property
    def _revoked_serials(self) -> frozenset[str]:
        return frozenset(each.serial for each in self.revoked)


def decode(document: bytes) -> Roster:
    """Raises Forged, naming what is wrong and where. It checks the form, not the signature: see envelope.open_roster."""
    try:
        roster = msgspec.json.decode(document, type=Roster)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise Forged(f"roster: {error}", "was it made by `edge-runtime site`?") from None
    if roster.v != VERSION:
        raise Forged(f"roster: version {roster.v}, this side speaks {VERSION}", "update the older side")
    for what, values in (("name", [m.name for m in roster.members]), ("key", [m.key for m in roster.members])):
        if len(set(values)) < len(values):
            raise Forged(f"roster: two members have the same {what}", "was it made by `edge-runtime site`?")
    if any(roster.is_revoked(key=each.key) for each in roster.members):
        raise Forged("roster: a member has a revoked key", "was it made by `edge-runtime site`?")
    for each in roster.members:
        if each.password and each.role not in PEOPLE:
            raise Forged(f"roster: {each.name} is {each.role}, and has a password", "passwords are for people")
        if each.password and (fault := passwords.wrong(each.password)):
            raise Forged(f"roster: the password of {each.name} {fault}", "was it made by `edge-runtime site`?")
    return roster


def encode(roster: Roster) -> bytes:
    return msgspec.json.encode(roster)


def certificate_name(name: str, role: Role) -> str:
    """Of a certificate, and so the MQTT user name: press-1, person:alice, receiver:cloud."""
    return PREFIXES[role] + name


def check_name(name: str, role: Role) -> None:
    """Raises EdgeError when nobody can have this name in this role."""
    if role not in ROLES:
        raise EdgeError(f"{role}: no such role", f"one of {', '.join(ROLES)}")
    if name in RESERVED.get(role, ()):
        raise EdgeError(f"{name}: no name for a {role}: topics begin with it", "another name")
    longest = min(GATEWAY_CHARACTERS_MAX, COMMON_NAME_CHARACTERS_MAX - len(PREFIXES[role]))
    if not re.fullmatch(NAME, name) or len(name) > longest:
        raise EdgeError(
            f"{name[:80]!r}: not a name", f"letters, digits, - and _; starts with a letter or digit; at most {longest}"
        )
