"""The site authority: the folder with the key that makes members, on an engineer's laptop or a stick in a safe.

ca.pem, ca-key.pem (0600, encrypted), roster.json (signed: the truth about who is a member), issued/SERIAL.pem (every
certificate that ever was). Each change is one new revision of the roster, and is done when that is on disk.
"""

from __future__ import annotations

from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Self

import msgspec

from edge_runtime.ports import Clock, EdgeError
from edge_runtime.trust import certificates, files, passwords
from edge_runtime.trust.envelope import AUTHORITY, open_roster, seal
from edge_runtime.trust.envelope import ROSTER as CONTEXT
from edge_runtime.trust.keys import PrivateKey
from edge_runtime.trust.roster import (
    MEMBERS_MAX,
    PEOPLE,
    REVOKED_MAX,
    VERSION,
    Forged,
    Member,
    Revoked,
    Role,
    Roster,
    check_name,
    encode,
)

MEMBER_DAYS = 2 * 365
ROOM_TO_REVOKE = 2_000
"""Nobody is admitted into it: a site that is full can still revoke."""
_DAY_S = 86_400
CA = "ca.pem"
KEY = "ca-key.pem"
ROSTER = "roster.json"
ISSUED = "issued"


class Authority:
    """Makes and ends memberships of one site. Two processes on one folder wait for each other."""

    def __init__(self, folder: Path, key: PrivateKey, ca: bytes, clock: Clock) -> None:
        self.folder = folder
        self.ca = ca
        """The site's own certificate, PEM: every member has it."""
        self.site, self.public = certificates.parse_authority(ca)
        self._key = key
        self._clock = clock
        if key.public != self.public:
            raise EdgeError(f"{folder}: {KEY} does not belong to {CA}", "restore the folder from a backup")
        self._read()

    @classmethod
    def create(cls, folder: Path, site: str, passphrase: str, clock: Clock) -> Self:
        """A new site. Raises EdgeError: there is one in this folder, a passphrase that is too short."""
        check_name(site, "gateway")
        folder = folder.absolute()
        if not files.is_empty(folder):
            raise EdgeError(f"{folder}: not empty", "a site is made in a folder of its own")
        fresh = folder.with_name(f".{folder.name}.new")
        files.make_folder(fresh)
        files.make_folder(fresh / ISSUED)
        key = PrivateKey.generate()
        key.save(fresh / KEY, passphrase)
        ca = certificates.authority(key, site)
        files.write(fresh / CA, ca)
        files.write(fresh / ROSTER, _signed(key, ca, Roster(VERSION, site, 1, (), ())))
        files.move_folder(fresh, folder)
        return cls(folder, key, ca, clock)

    @classmethod
    def open(cls, folder: Path, passphrase: str, clock: Clock) -> Self:
        """Raises EdgeError: no authority there, a wrong passphrase, a file that does not fit the others."""
        ca = files.read(folder / CA)
        return cls(folder, PrivateKey.load(folder / KEY, passphrase), ca, clock)

    @property
    def members(self) -> tuple[Member, ...]:
        return self._roster.members

    def knew(self, name: str) -> bool:
        """Whether somebody has this name, or had it once."""
        return self._roster.named(name) is not None or any(each.name == name for each in self._roster.revoked)

    def roster(self) -> bytes:
        """Signed; for every member of the site."""
        return self._signed

    def crl(self) -> bytes:
        """What was revoked, as a CRL in PEM, for brokers. The roster carries the same."""
        return self._roster.crl.encode()

    def desk(self, public: bytes) -> bytes:
        """A certificate, PEM, for the server at which gateways join: of no member, and in no roster."""
        return certificates.desk(self._key, self.ca, public)

    def issue(self, csr: bytes, name: str, role: Role, password: str = "") -> bytes:
        """A certificate, PEM, for a new member. `password`: of a person, hashed. Raises EdgeError: a name or a key that somebody
        has, a revoked key."""
        check_name(name, role)
        _check_password(name, role, password)
        public = certificates.requested(csr)
        with self._changing():
            if taken := self._roster.named(name):
                raise EdgeError(
                    f"{name} is taken: a member in the role {taken.role} has this name",
                    f"new hardware: edge-runtime gateway replace {name}; gone for good: edge-runtime site revoke {name}",
                )
            return self._admit(public, name, role, self._roster, password)

    def replace(self, name: str, csr: bytes, password: str = "") -> bytes:
        """A certificate for new hardware (or a new laptop) under the old name; the old key is revoked, and the old password is
        gone: whoever has the old laptop may have that, too. One revision."""
        public = certificates.requested(csr)
        with self._changing():
            member = self._member(name)
            if public == member.public:
                raise EdgeError(f"{name}: this is the key that it has already", f"edge-runtime site renew {name}")
            _check_password(name, member.role, password)
            return self._admit(public, name, member.role, self._without(member, "replaced"), password)

    def renew(self, name: str, password: str | None = None) -> bytes:
        """A certificate for the key that the member has, good for another period. `password`: beside it, hashed; "": none any
        more; None: the one that the member has."""
        with self._changing():
            member = self._member(name)
            password = member.password if password is None else password
            _check_password(name, member.role, password)
            roster = msgspec.structs.replace(self._roster, members=self._others(member))
            return self._admit(member.public, name, member.role, roster, password)

    def set_password(self, name: str, password: str) -> None:
        """Of a person: another one, hashed; "" takes it away. Raises EdgeError: no such person; there is none to take away."""
        with self._changing():
            member = self._member(name)
            if not (password or member.password):
                raise EdgeError(f"{name} has no password", "edge-runtime site members shows who has one")
            _check_password(name, member.role, password)
            changed = msgspec.structs.replace(member, password=password)
            self._commit(msgspec.structs.replace(self._roster, members=(*self._others(member), changed)))

    def revoke(self, name: str, why: str) -> None:
        """Ends a membership: the key, and every certificate that it ever had."""
        with self._changing():
            self._commit(self._without(self._member(name), why))

    def take_roster(self, payload: bytes) -> bool:
        """Of a site whose authority was restored from a backup: the newest roster that its members have. True: it was newer, and
        is the truth from now on. Raises Forged."""
        with self._changing():
            if open_roster(payload, self.site, self.public).revision <= self._roster.revision:
                return False
            files.write(self.folder / ROSTER, payload)
            self._read()
            return True

    # --- inside -------------------------------------------------------------------------------------------------------

    def _member(self, name: str) -> Member:
        member = self._roster.named(name)
        if member is None:
            raise EdgeError(f"{name}: no member of {self.site}", "edge-runtime site members lists them")
        return member

    def _others(self, member: Member) -> tuple[Member, ...]:
        return tuple(each for each in self._roster.members if each is not member)

    def _admit(self, public: bytes, name: str, role: Role, roster: Roster, password: str) -> bytes:
        """Writes the certificate first: one that is in no roster was handed to nobody."""
        if len(roster.members) >= MEMBERS_MAX or len(roster.revoked) > REVOKED_MAX - ROOM_TO_REVOKE:
            raise EdgeError(f"the site {self.site} is full", "revoke who is gone; after 6,000 revocations, make a new site")
        if roster.is_revoked(key=public.hex()):
            raise EdgeError("this key was revoked", "make a new one: delete the folder of the identity and join again")
        if holder := next((each.name for each in roster.members if each.public == public), ""):
            raise EdgeError(f"this key belongs to {holder} already", "each member has a key of its own")
        not_after_s = self._clock.now().wall_ns // 10**9 + MEMBER_DAYS * _DAY_S
        pem = certificates.issue(self._key, self.ca, public, (name, role), not_after_s)
        subject = certificates.parse(pem)
        files.write(self.folder / ISSUED / f"{subject.serial}.pem", pem)
        member = Member(name, role, subject.key, subject.serial, subject.not_after_s, password)
        self._commit(msgspec.structs.replace(roster, members=(*roster.members, member)))
        return pem

    def _without(self, member: Member, why: str) -> Roster:
        """All certificates of the key: a broker knows them by their serial numbers only."""
        rows = tuple(Revoked(member.name, member.key, serial, why[:100]) for serial in self._serials(member))
        return msgspec.structs.replace(self._roster, members=self._others(member), revoked=(*self._roster.revoked, *rows))

    def _serials(self, member: Member) -> list[str]:
        found = [certificates.parse(files.read(path)) for path in sorted((self.folder / ISSUED).glob("*.pem"))]
        serials = [each.serial for each in found if each.key == member.key]
        return serials if member.serial in serials else [*serials, member.serial]

    def _commit(self, roster: Roster) -> None:
        roster = msgspec.structs.replace(roster, revision=self._roster.revision + 1)
        files.write(self.folder / ROSTER, _signed(self._key, self.ca, roster))
        self._read()

    @contextmanager
    def _changing(self) -> Iterator[None]:
        with files.locked(self.folder):
            self._read()
            yield

    def _read(self) -> None:
        self._signed, self._roster = read_roster(self.folder, self.site, self.public)


def read_roster(folder: Path, site: str, public: bytes) -> tuple[bytes, Roster]:
    """Of the authority in this folder: as it is signed, and read. Raises EdgeError."""
    signed = files.read(folder / ROSTER)
    try:
        return signed, open_roster(signed, site, public)
    except Forged as error:
        raise EdgeError(f"{folder / ROSTER}: {error.cause}", "restore the folder from a backup") from None


def check_role(name: str, role: Role) -> None:
    """Raises EdgeError: nobody in this role has a password."""
    if role not in PEOPLE:
        raise EdgeError(f"{name} is a {role}: it has no password", f"passwords are for people: {', '.join(PEOPLE)}")


def _check_password(name: str, role: Role, password: str) -> None:
    """ "": none. Raises EdgeError."""
    if password:
        check_role(name, role)
        if fault := passwords.wrong(password):
            raise EdgeError(f"the password of {name} {fault}", "passwords.hashed makes one")


def _signed(key: PrivateKey, ca: bytes, roster: Roster) -> bytes:
    crl = certificates.revocations(key, ca, (each.serial for each in roster.revoked), roster.revision)
    return seal(encode(msgspec.structs.replace(roster, crl=crl.decode())), CONTEXT, key, AUTHORITY)
