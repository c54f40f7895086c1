"""A site with its authority and members, in a folder of a test.

site = Site(tmp_path)
press = site.member("press-1")                # an Identity, on disk
alice = site.member("alice", "engineer")
"""

from __future__ import annotations

import subprocess
from pathlib import Path

import msgspec

from edge_runtime.records import Stamp
from edge_runtime.trust import certificates
from edge_runtime.trust.authority import Authority
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.keys import PrivateKey
from edge_runtime.trust.roster import Role, Roster

PASSPHRASE = "correct horse battery"
NOW_S = 1_795_000_000


class Still:
    """A clock that stands at NOW_S."""

    def now(self) -> Stamp:
        return Stamp(boot="boot", mono_ns=0, wall_ns=NOW_S * 10**9, synced=True)

    def mono_ns(self) -> int:
        return 0


class Later(Still):
    """A year later."""

    def now(self) -> Stamp:
        return msgspec.structs.replace(super().now(), wall_ns=(NOW_S + 365 * 86_400) * 10**9)


class Site:
    """One authority; `member` makes identities that it knows."""

    def __init__(self, folder: Path, name: str = "plant-1") -> None:
        self.folder = folder / name
        self.name = name
        self.authority = Authority.create(self.folder / "authority", name, PASSPHRASE, Still())

    def member(self, name: str, role: Role = "gateway") -> Identity:
        folder = self.folder / name
        csr = certificates.request(Identity.begin(folder), name)
        certificate = self.authority.issue(csr, name, role)
        return Identity.finish(folder, ca=self.authority.ca, certificate=certificate, roster=self.authority.roster())

    def roster(self, *identities: Identity) -> Roster:
        """The newest one; these members have it from now on."""
        for identity in identities:
            identity.take_roster(self.authority.roster())
        return identities[0].roster

    def csr(self, name: str = "somebody") -> bytes:
        """Of a new key."""
        return certificates.request(PrivateKey.generate(), name)


def own_certificate(folder: Path) -> Path:
    """Key and certificate in one file, with the name of a gateway, signed by itself."""
    file = folder / "own.pem"
    make = ["openssl", "req", "-x509", "-newkey", "ed25519", "-nodes", "-subj", "/O=plant-1/OU=gateway/CN=press", "-days", "9"]
    certificate = subprocess.run([*make, "-keyout", file, "-out", "-"], check=True, capture_output=True).stdout
    with file.open("ab") as out:
        out.write(certificate)
    return file
