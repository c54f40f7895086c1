"""The identity folder of a gateway or a person: who it is, at which site, and whom that site trusts.

ca.pem, cert.pem, key.pem (0600), roster.json (signed by the authority). No folder: there is no site. A folder with something
missing or wrong in it is an error, never "no site": that would open what was closed.
"""

from __future__ import annotations

import contextlib
import hashlib
from collections.abc import Callable
from dataclasses import dataclass, field
from pathlib import Path
from typing import Self, TypeVar

from edge_runtime.ports import EdgeError
from edge_runtime.trust import certificates, files
from edge_runtime.trust.certificates import Subject
from edge_runtime.trust.envelope import open_roster, seal, signed_bytes
from edge_runtime.trust.keys import PrivateKey
from edge_runtime.trust.roster import Forged, Role, Roster, certificate_name

T = TypeVar("T")

CA = "ca.pem"
CERTIFICATE = "cert.pem"
KEY = "key.pem"
ROSTER = "roster.json"
_AGAIN = "join the site again, or restore the folder from a backup"
_RESTART = "restart this program: until then it goes on with what it has, and writes nothing there"


class Moved(EdgeError):
    """The folder is somebody else's by now: it was moved away while we ran, and another site was joined, or the same one anew.
    Nothing of ours was written into it."""


@dataclass(eq=False)
class Identity:
    """Of one member of one site. It changes only by `take_roster` and `take_certificate`."""

    folder: Path
    subject: Subject
    key: PrivateKey
    authority: bytes
    """The raw public key of the site's authority."""
    roster: Roster
    signed_roster: bytes = field(repr=False)
    """As the authority signed it: to be handed on."""

    @classmethod
    def load(cls, folder: Path) -> Self | None:
        """None: there is no site. Raises EdgeError: something in the folder is missing, broken, readable by others, of
        another site or another key."""
        if files.is_empty(folder):
            return None
        key = PrivateKey.load(folder / KEY)
        return cls._checked(folder, key, *(files.read(folder / name) for name in (CA, CERTIFICATE, ROSTER)))

    @classmethod
    def begin(cls, folder: Path) -> PrivateKey:
        """The key of an identity that is about to be: it stands beside the folder until `finish`. The same one, when called
        again: a request that is on its way stays good. Raises EdgeError, also when there is an identity already."""
        cls._refuse_second(folder)
        waiting = _waiting(folder)
        files.make_folder(waiting)
        if not (waiting / KEY).exists():
            PrivateKey.generate().save(waiting / KEY)
        return PrivateKey.load(waiting / KEY)

    @classmethod
    def finish(cls, folder: Path, *, ca: bytes, certificate: bytes, roster: bytes) -> Self:
        """Makes the folder, with the key of `begin`, all of it at once. Raises EdgeError when the parts do not fit."""
        cls._refuse_second(folder)
        waiting = _waiting(folder)
        cls._checked(waiting, PrivateKey.load(waiting / KEY), ca, certificate, roster)
        for name, content in ((CA, ca), (CERTIFICATE, certificate), (ROSTER, roster)):
            files.write(waiting / name, content)
        files.move_folder(waiting, folder.absolute())
        identity = cls.load(folder)
        assert identity is not None
        return identity

    @property
    def site(self) -> str:
        return self.subject.site

    @property
    def name(self) -> str:
        return self.subject.name

    @property
    def role(self) -> Role:
        return self.subject.role

    @property
    def username(self) -> str:
        """As the broker knows us: press-1, person:alice."""
        return certificate_name(self.name, self.role)

    @property
    def not_after_s(self) -> int:
        """When our certificate should have been renewed: seconds since 1970."""
        return self.subject.not_after_s

    @property
    def is_revoked(self) -> bool:
        """The newest roster that we have says so: nobody who has it will hear us."""
        return self.roster.is_revoked(key=self.subject.key)

    @property
    def ca_file(self) -> Path:
        return self.folder / CA

    @property
    def cert_file(self) -> Path:
        return self.folder / CERTIFICATE

    @property
    def key_file(self) -> Path:
        return self.folder / KEY

    @property
    def roster_file(self) -> Path:
        return self.folder / ROSTER

    def sign(self, document: bytes, context: str) -> bytes:
        """An envelope in our name."""
        return seal(document, context, self.key, self.name)

    def client_id(self, name: str) -> str:
        """The same for a name whenever we start, and known to nobody else: mosquitto throws off who is there already under a
        client id, whoever comes with it next, and gives away the session that was kept for it."""
        mark = hashlib.sha256(self.key.sign(signed_bytes("client-id", name.encode()))).hexdigest()[:32]
        return f"{name}-{mark}"

    def take_roster(self, payload: bytes) -> bool:
        """True: it was newer and is ours now, also on disk. False: we had it, or a newer one. Raises Forged (not signed by our
        authority; or another roster with the revision of ours), EdgeError when it cannot be written, Moved when it must not be:
        then we keep the old."""
        roster = open_roster(payload, self.site, self.authority)
        if roster.revision == self.roster.revision and roster != self.roster:
            raise Forged(f"two rosters with revision {roster.revision}", "was the authority's folder restored from a backup?")
        if roster.revision <= self.roster.revision:
            return False
        self.check_folder()
        _keep(self.roster_file, payload)
        self.roster, self.signed_roster = roster, payload
        return True

    def keep_roster(self) -> None:
        """Writes ours again, over an older one that somebody has put there. Raises EdgeError, Moved."""
        self.check_folder()
        files.write(self.roster_file, self.signed_roster)

    def take_certificate(self, pem: bytes) -> bool:
        """True: our renewed certificate, now on disk. False: ours runs as long. Raises EdgeError: not ours; Moved."""
        self.check_folder()
        if PrivateKey.load(self.key_file).public != self.key.public:  # it has joined the same site anew
            raise Moved(f"{self.folder}: there is another key than ours by now", _RESTART)
        subject = _own(pem, files.read(self.ca_file), self.key)
        if (subject.name, subject.role) != (self.name, self.role):
            raise EdgeError(f"a certificate of {subject.name} ({subject.role}), not of {self.name} ({self.role})", _AGAIN)
        if subject.not_after_s <= self.not_after_s:
            return False
        _keep(self.cert_file, pem)
        self.subject = subject
        return True

    def check_folder(self) -> None:
        """Raises Moved: what is there is of another site. EdgeError: it is gone, or broken."""
        site, authority = certificates.parse_authority(files.read(self.ca_file))
        if authority != self.authority:
            also = " (another one of this name)" if site == self.site else f", and this process to {self.site}"
            raise Moved(f"{self.folder}: belongs to the site {site} by now{also}", _RESTART)

    @classmethod
    def _checked(cls, folder: Path, key: PrivateKey, ca: bytes, certificate: bytes, roster: bytes) -> Self:
        site, authority = _naming(folder / CA, lambda: certificates.parse_authority(ca))
        subject = _naming(folder / CERTIFICATE, lambda: _own(certificate, ca, key))
        opened = _naming(folder / ROSTER, lambda: open_roster(roster, site, authority))
        return cls(folder, subject, key, authority, opened, roster)

    @staticmethod
    def _refuse_second(folder: Path) -> None:
        if not files.is_empty(folder):
            raise EdgeError(f"{folder}: there is an identity already", f"to join another site, first: mv {folder} {folder}.old")


def _waiting(folder: Path) -> Path:
    folder = folder.absolute()
    return folder.with_name(folder.name + ".joining")


def _keep(path: Path, content: bytes) -> None:
    """It may be there: `edge-runtime join` has put it there, beside a gateway that runs, and may not be done with the folder."""
    with contextlib.suppress(EdgeError):
        if files.read(path) == content:
            return
    files.write(path, content)


def _own(pem: bytes, ca: bytes, key: PrivateKey) -> Subject:
    subject = certificates.parse(pem)
    site, _ = certificates.parse_authority(ca)
    if subject.site != site:
        raise EdgeError(f"is of the site {subject.site}, but ca.pem is of {site}", _AGAIN)
    if not certificates.is_signed(pem, ca):
        raise EdgeError(f"was not signed by this site's authority (ca.pem), though both say {site}", _AGAIN)
    if subject.key != key.public.hex():
        raise EdgeError("does not belong to the key in key.pem", _AGAIN)
    return subject


def _naming(path: Path, step: Callable[[], T]) -> T:
    try:
        return step()
    except EdgeError as error:
        raise EdgeError(f"{path}: {error.cause}", error.hint or _AGAIN) from None
