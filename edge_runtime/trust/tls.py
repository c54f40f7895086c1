"""TLS on the side of who connects. Between members of a site what counts is the chain to the site's authority: no host name (the
address of a gateway changes) and no date (its clock may stand at 1970), nor the machine's own list of CAs. With anybody else's
server all of these count.
"""

from __future__ import annotations

import ssl

NO_CHECK_TIME = 0x200000
"""OpenSSL's X509_V_FLAG_NO_CHECK_TIME, which the ssl module does not name: of certificates and of the list of the revoked."""


def context_for_anybody(ca_file: str | None) -> ssl.SSLContext:
    """To a server that is not of our site: believes the CAs of this machine, or that of a file alone. Raises OSError."""
    context = ssl.create_default_context(cafile=ca_file)
    if ca_file:
        # From Python 3.13 on, only certificates exactly as RFC 5280 wants them: those that plants make for themselves are not
        # (`openssl req -x509` leaves the key usage out), and no gateway may lose its cloud with an update of Python.
        context.verify_flags &= ~ssl.VERIFY_X509_STRICT
    return context


def client_context(*, ca_file: str | None = None, ca: str | None = None) -> ssl.SSLContext:
    """Believes only this authority, of a file or in PEM: whoever has a certificate of it. Which member that is, the caller judges
    after the handshake. Raises OSError (ssl.SSLError is one): no such file, no certificate in it."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
    context.minimum_version = ssl.TLSVersion.TLSv1_2
    context.check_hostname = False
    context.verify_mode = ssl.CERT_REQUIRED
    context.verify_flags = ssl.VerifyFlags(int(context.verify_flags) | NO_CHECK_TIME)
    context.load_verify_locations(cafile=ca_file, cadata=ca)
    return context
