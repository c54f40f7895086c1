"""TLS between members of a site: both sides show a certificate of the site's authority. There are no host names (a gateway's
address changes) and no dates (its clock may stand at 1970): who the other one is, `check_peer` says after the handshake.
"""

from __future__ import annotations

import ssl

from edge_runtime.ports import EdgeError
from edge_runtime.trust import certificates
from edge_runtime.trust.certificates import Subject
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.roster import Forged, Role, Roster

NO_CHECK_TIME = 0x200000
"""X509_V_FLAG_NO_CHECK_TIME; Python's ssl has no name for it."""


def client_context(identity: Identity) -> ssl.SSLContext:
    """To connect as this member. Raises EdgeError: the files have changed since they were loaded."""
    return _context(ssl.PROTOCOL_TLS_CLIENT, identity)


def server_context(identity: Identity) -> ssl.SSLContext:
    """To listen as this member; a client without a certificate of the site does not get in."""
    return _context(ssl.PROTOCOL_TLS_SERVER, identity)


def check_peer(connection: ssl.SSLObject | ssl.SSLSocket, roster: Roster, *, role: Role | None = "gateway") -> Subject:
    """Who is at the other end of a finished handshake. Raises Forged: no certificate, another site, another role, revoked.

    A member that our roster does not know yet is let in: it may be the one that brings the newer roster.
    """
    der = connection.getpeercert(binary_form=True)
    if der is None:
        raise Forged("the other end has shown no certificate", "join the site: edge-runtime join")
    try:
        subject = certificates.parse(ssl.DER_cert_to_PEM_cert(der).encode())
    except EdgeError as error:
        raise Forged(error.cause, error.hint) from None
    if subject.site != roster.site:
        raise Forged(f"the other end is of the site {subject.site}, not of {roster.site}", "each site has its own members")
    if roster.is_revoked(key=subject.key, serial=subject.serial):
        raise Forged(f"the certificate of {subject.name} was revoked", "join the site again with a new key")
    if role is not None and subject.role != role:
        raise Forged(f"the other end is {subject.name} ({subject.role}); a {role} was expected", "is it the right address?")
    return subject


def _context(protocol: int, identity: Identity) -> ssl.SSLContext:
    context = ssl.SSLContext(protocol)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags |= NO_CHECK_TIME
    try:
        context.load_verify_locations(identity.ca_file)
        context.load_cert_chain(identity.cert_file, identity.key_file)
    except (OSError, ssl.SSLError) as error:
        raise EdgeError(f"{identity.folder}: {error}", "was the identity changed while it was in use? start again") from None
    return context
