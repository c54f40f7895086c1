"""X.509 of a site: the authority's certificate, requests, members' certificates, revocation lists. The other file that touches
`cryptography`, besides keys.py.

A member's certificate says O=site, OU=role, CN=name. It is valid from 1970 and, in the sense of X.509, for ever: mosquitto judges
certificates by its own machine's clock and cannot be told otherwise, and a clock at 1970 or 2100 must not stop a line. Until
when a member is to be renewed stands beside it, as privateKeyUsagePeriod: we judge it ourselves, by a clock that is
synchronised. What ends a membership before is a revocation.

Only gateways may be TLS servers (extended key usage): no person's certificate makes a broker.
"""

from __future__ import annotations

import datetime
from collections.abc import Iterable, Iterator
from contextlib import contextmanager
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.ports import EdgeError
from edge_runtime.trust.keys import PrivateKey, require
from edge_runtime.trust.roster import PREFIXES, ROLES, Role, certificate_name

if TYPE_CHECKING:
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

PEM_BYTES_MAX = 2**14
_FIRST = datetime.datetime(1970, 1, 1)
_LAST = datetime.datetime(9999, 12, 31, 23, 59, 59)
"""What RFC 5280 (4.1.2.5) has for "no end"."""
AUTHORITY_NAME = "edge-runtime site authority"
"""The common name of a site's own certificate; the site is its O."""
DESK_ROLE = "authority"
"""Where gateways join: for that minute, a server of the authority's."""
_HINT = "is it the right file? certificates of a site are made by `edge-runtime site`"


class Subject(msgspec.Struct, frozen=True):
    """What a certificate says of its owner."""

    site: str
    role: Role
    name: str
    key: str
    """The raw public key, hex."""
    serial: str
    """Hex."""
    not_after_s: int
    """Seconds since 1970."""


def authority(key: PrivateKey, site: str) -> bytes:
    """A new site's own certificate, PEM."""
    from cryptography import x509

    name = _name(site, None, AUTHORITY_NAME)
    builder = _builder(name, name, key.native.public_key(), key.native.public_key())
    builder = builder.add_extension(x509.BasicConstraints(ca=True, path_length=0), critical=True)
    builder = builder.add_extension(_usage("key_cert_sign", "crl_sign"), critical=True)
    return _pem(builder.sign(key.native, None))


def request(key: PrivateKey, name: str) -> bytes:
    """A certificate request, PEM: proves that its sender has the key. The name is a wish; the authority decides."""
    from cryptography import x509

    return _pem(x509.CertificateSigningRequestBuilder().subject_name(_name(None, None, name)).sign(key.native, None))


def requested(csr: bytes) -> bytes:
    """The raw public key of a request. Raises EdgeError: no request, not signed with its own key, another kind of key."""
    with _reading("a certificate request in PEM", "make one with `edge-runtime join`"):
        from cryptography import x509

        read = x509.load_pem_x509_csr(_bounded(csr))
        if not read.is_signature_valid:
            raise EdgeError("the certificate request is not signed with its own key", "was it damaged on the way?")
        return _raw(read.public_key())


def issue(authority_key: PrivateKey, authority_pem: bytes, public: bytes, member: tuple[str, Role], not_after_s: int) -> bytes:
    """A certificate, PEM, with a serial number that nobody can guess, for `member` (name, role)."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer = _load(authority_pem)
    name, role = member
    subject = _name(_site(issuer), role, certificate_name(name, role))
    builder = _builder(subject, issuer.subject, Ed25519PublicKey.from_public_bytes(public), authority_key.native.public_key())
    purposes = [ExtendedKeyUsageOID.CLIENT_AUTH]
    if role == "gateway":
        purposes.insert(0, ExtendedKeyUsageOID.SERVER_AUTH)
    until = datetime.datetime.fromtimestamp(not_after_s, datetime.UTC).replace(tzinfo=None)
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage(purposes), critical=False)
        .add_extension(x509.PrivateKeyUsagePeriod(not_before=None, not_after=until), critical=False)
    )
    return _pem(builder.sign(authority_key.native, None))


def desk(authority_key: PrivateKey, authority_pem: bytes, public: bytes) -> bytes:
    """A certificate, PEM, for the TLS server at which gateways join. Its role is none of a member: `parse` refuses it."""
    from cryptography import x509
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey
    from cryptography.x509.oid import ExtendedKeyUsageOID

    issuer = _load(authority_pem)
    subject = _name(_site(issuer), DESK_ROLE, "edge-runtime site desk")
    builder = _builder(subject, issuer.subject, Ed25519PublicKey.from_public_bytes(public), authority_key.native.public_key())
    builder = (
        builder.add_extension(x509.BasicConstraints(ca=False, path_length=None), critical=True)
        .add_extension(_usage("digital_signature"), critical=True)
        .add_extension(x509.ExtendedKeyUsage([ExtendedKeyUsageOID.SERVER_AUTH]), critical=False)
    )
    return _pem(builder.sign(authority_key.native, None))


def parse(pem: bytes) -> Subject:
    """Of a member's certificate. Raises EdgeError: no certificate, or not one of a site. Who signed it is not checked here."""
    with _reading("the certificate of a member of a site", _HINT):
        from cryptography import x509

        certificate = x509.load_pem_x509_certificate(_bounded(pem))
        name, role = _one(certificate, x509.NameOID.COMMON_NAME), _one(certificate, x509.NameOID.ORGANIZATIONAL_UNIT_NAME)
        site, until = _site(certificate), certificate.extensions.get_extension_for_class(x509.PrivateKeyUsagePeriod)
        if role not in ROLES:
            raise ValueError
        plain = name.removeprefix(PREFIXES[role])
        if not site or not plain or ":" in plain or name != certificate_name(plain, role):
            raise ValueError
        return Subject(
            site=site,
            role=role,
            name=plain,
            key=_raw(certificate.public_key()).hex(),
            serial=f"{certificate.serial_number:x}",
            not_after_s=_seconds(until.value.not_after),
        )


def parse_authority(pem: bytes) -> tuple[str, bytes]:
    """(site, raw public key) of a site's own certificate. Raises EdgeError."""
    with _reading("the certificate of a site's authority", _HINT):
        from cryptography import x509

        certificate = x509.load_pem_x509_certificate(_bounded(pem))
        if _one(certificate, x509.NameOID.COMMON_NAME) != AUTHORITY_NAME or not is_signed(pem, pem):
            raise ValueError
        return _site(certificate), _raw(certificate.public_key())


def is_signed(pem: bytes, authority_pem: bytes) -> bool:
    """Whether this authority has signed this certificate. Raises EdgeError when one of them is none."""
    from cryptography.exceptions import InvalidSignature

    certificate, authority_certificate = _load(pem), _load(authority_pem)
    try:
        certificate.verify_directly_issued_by(authority_certificate)
    except (InvalidSignature, ValueError, TypeError):
        return False
    return True


def revocations(authority_key: PrivateKey, authority_pem: bytes, serials: Iterable[str], revision: int) -> bytes:
    """A CRL, PEM; never out of date by itself, for the reason above."""
    from cryptography import x509

    builder = x509.CertificateRevocationListBuilder().issuer_name(_load(authority_pem).subject)
    builder = builder.last_update(_FIRST).next_update(_LAST).add_extension(x509.CRLNumber(revision), critical=False)
    identifier = x509.AuthorityKeyIdentifier.from_issuer_public_key(authority_key.native.public_key())
    builder = builder.add_extension(identifier, critical=False)
    for serial in serials:
        entry = x509.RevokedCertificateBuilder().serial_number(int(serial, 16)).revocation_date(_FIRST)
        builder = builder.add_revoked_certificate(entry.build())
    return _pem(builder.sign(authority_key.native, None))


# --- inside ----------------------------------------------------------------------------------------------------------


def _builder(
    subject: x509.Name, issuer: x509.Name, public: Ed25519PublicKey, issuer_public: Ed25519PublicKey
) -> x509.CertificateBuilder:
    from cryptography import x509

    return (
        x509.CertificateBuilder()
        .subject_name(subject)
        .issuer_name(issuer)
        .public_key(public)
        .serial_number(x509.random_serial_number())
        .not_valid_before(_FIRST)
        .not_valid_after(_LAST)
        .add_extension(x509.SubjectKeyIdentifier.from_public_key(public), critical=False)
        .add_extension(x509.AuthorityKeyIdentifier.from_issuer_public_key(issuer_public), critical=False)
    )


def _usage(*uses: str) -> x509.KeyUsage:
    from cryptography import x509

    every = (
        "digital_signature",
        "content_commitment",
        "key_encipherment",
        "data_encipherment",
        "key_agreement",
        "key_cert_sign",
        "crl_sign",
        "encipher_only",
        "decipher_only",
    )
    return x509.KeyUsage(**{use: use in uses for use in every})


def _name(site: str | None, role: str | None, common: str) -> x509.Name:
    from cryptography import x509

    parts = (
        (x509.NameOID.ORGANIZATION_NAME, site),
        (x509.NameOID.ORGANIZATIONAL_UNIT_NAME, role),
        (x509.NameOID.COMMON_NAME, common),
    )
    return x509.Name([x509.NameAttribute(oid, value) for oid, value in parts if value is not None])


def _pem(signed: x509.Certificate | x509.CertificateSigningRequest | x509.CertificateRevocationList) -> bytes:
    from cryptography.hazmat.primitives.serialization import Encoding

    return signed.public_bytes(Encoding.PEM)


@contextmanager
def _reading(what: str, hint: str) -> Iterator[None]:
    """Parts of a certificate are read only when they are asked for: what is damaged may come up anywhere below."""
    require()
    from cryptography import x509
    from cryptography.exceptions import UnsupportedAlgorithm

    try:
        yield
    except (ValueError, UnsupportedAlgorithm, x509.InvalidVersion, x509.ExtensionNotFound, x509.DuplicateExtension):
        raise EdgeError(f"not {what}", hint) from None


def _load(pem: bytes) -> x509.Certificate:
    with _reading("a certificate in PEM", _HINT):
        from cryptography import x509

        return x509.load_pem_x509_certificate(_bounded(pem))


def _bounded(pem: bytes) -> bytes:
    if len(pem) > PEM_BYTES_MAX:
        raise EdgeError(f"a certificate of {len(pem)} bytes; at most {PEM_BYTES_MAX}", _HINT)
    return pem


def _raw(public: object) -> bytes:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if not isinstance(public, Ed25519PublicKey):
        raise EdgeError("not an Ed25519 key", "keys of a site are made by `edge-runtime join` and `edge-runtime site`")
    return public.public_bytes_raw()


def _site(certificate: x509.Certificate) -> str:
    from cryptography import x509

    return _one(certificate, x509.NameOID.ORGANIZATION_NAME)


def _one(certificate: x509.Certificate, oid: x509.ObjectIdentifier) -> str:
    """Of its subject; "": there is none, or more than one."""
    found = certificate.subject.get_attributes_for_oid(oid)
    return str(found[0].value) if len(found) == 1 else ""


def _seconds(when: datetime.datetime | None) -> int:
    if when is None:
        raise ValueError
    return int(when.replace(tzinfo=datetime.UTC).timestamp())
