"""TLS under MQTT: whom we believe, and as whom we come (decides; wire.py does the talking).

Two kinds of far end. `mqtts://` to somebody else's broker: its certificate is for its host name, by a CA of this machine or of
`ca_file`, and valid today. A broker of our own site (`Address.site_ca`): any gateway may host it, at any address, and the clock
of both may be at 1970; so neither the host name nor the time counts, but the chain to the site's CA, its list of revoked
certificates, and that it is a *gateway's*: the certificate of a person must not be enough to pose as the broker.
"""

from __future__ import annotations

import os
import ssl
from typing import cast

from edge_runtime.ports import Address, BrokerError, Stranger
from edge_runtime.trust.tls import client_context, context_for_anybody

GATEWAY = "gateway"
"""The organizational unit (OU) of a gateway's certificate."""

_Names = tuple[tuple[tuple[str, str], ...], ...]

_REVOKED = "SSLV3_ALERT_CERTIFICATE_REVOKED"
_REFUSED_US = {
    "TLSV13_ALERT_CERTIFICATE_REQUIRED": "certificate required: the broker wants one of its site",
    _REVOKED: "the broker says that our certificate is revoked",
    "SSLV3_ALERT_CERTIFICATE_EXPIRED": "the broker says that our certificate has expired",
    "TLSV1_ALERT_UNKNOWN_CA": "the broker does not know who made our certificate: it is of another site",
}
"""What the other side says of our certificate. With TLS 1.3 it says so after the handshake."""


def context(address: Address) -> ssl.SSLContext:
    """Raises BrokerError: a file is missing or broken. 1 ms for our site; 20 to 50 ms where all CAs of the machine are read."""
    made = _of_site(address) if address.site_ca else _of_anybody(address)
    if address.cert_file:
        try:
            made.load_cert_chain(address.cert_file, address.key_file or None)
        except OSError as error:
            files = " and ".join(filter(None, (address.cert_file, address.key_file)))
            raise BrokerError(f"client certificate {files}: {describe(error)}", "PEM files that belong together") from None
    return made


def refusal(where: str, address: Address, error: OSError) -> BrokerError:
    """Of a handshake that failed. What is no broker of ours is a Stranger, unless it is ours that will not have us. It is no
    Revoked: whoever answers may say that we are, without a certificate of anybody's."""
    said = describe(error)
    if address.site_ca and getattr(error, "reason", "") not in _REFUSED_US:
        return Stranger(
            f"{where}: no broker of our site: {said}", "a program or a gateway of somebody else; or it has left the site"
        )
    trust = isinstance(error, ssl.SSLCertVerificationError)
    hint = (
        "ca_file must hold the CA that signed it, for this host name"
        if trust
        else "is it a TLS port, and the certificate one that it knows?"
    )
    return BrokerError(f"{where}: {said}", hint)


def says_revoked(error: OSError) -> bool:
    """Of one after the handshake."""
    return getattr(error, "reason", "") == _REVOKED


def check_gateway(where: str, sock: ssl.SSLSocket) -> None:
    """Raises Stranger: it is of our site, but no gateway's."""
    subject: dict[str, str] = {}
    for part in cast(_Names, (sock.getpeercert() or {}).get("subject", ())):
        subject.update(part)
    unit = subject.get("organizationalUnitName", "")
    if unit != GATEWAY:
        who = f"{subject.get('commonName', '?')} ({unit or 'no role'})"
        raise Stranger(
            f"{where}: no gateway's broker: its certificate is that of {who}", "somebody of the site poses as its broker"
        )


def serial(sock: object) -> str:
    """Of the certificate that the other side has shown, in hex as in a roster; "": it has shown none."""
    shown = sock.getpeercert() if isinstance(sock, ssl.SSLSocket) else None
    return f"{int(str(shown['serialNumber']), 16):x}" if shown and "serialNumber" in shown else ""


def describe(error: OSError) -> str:
    """In words."""
    if isinstance(error, ssl.SSLCertVerificationError):
        return f"TLS: the broker's certificate was not accepted: {error.verify_message}"
    if isinstance(error, ssl.SSLError):
        if error.reason in _REFUSED_US:
            return f"TLS: {_REFUSED_US[error.reason]}"
        return f"TLS: {error.reason or error.strerror or error}".lower().replace("tls", "TLS").replace("_", " ")
    return (os.strerror(error.errno) if error.errno and error.errno > 0 else error.strerror or str(error)).lower()


def _of_site(address: Address) -> ssl.SSLContext:
    try:
        made = client_context(ca_file=address.ca_file)
        if address.crl:
            _revoked(made, address.crl)
    except OSError as error:
        hint = "the folder of this gateway's identity is damaged: join the site again"
        raise BrokerError(f"{address.ca_file}: {describe(error)}", hint) from None
    return made


def _of_anybody(address: Address) -> ssl.SSLContext:
    try:
        return context_for_anybody(address.ca_file or None)
    except OSError as error:
        raise BrokerError(f"CA certificate {address.ca_file}: {describe(error)}", "a PEM file with the site's CA") from None


def _revoked(made: ssl.SSLContext, crl: str) -> None:
    """The ssl module reads such a list from a file only: this one is in memory, and has no name on any disk."""
    with os.fdopen(os.memfd_create("crl"), "wb", buffering=0) as file:
        file.write(crl.encode())
        made.load_verify_locations(f"/proc/self/fd/{file.fileno()}")
    made.verify_flags |= ssl.VERIFY_CRL_CHECK_LEAF
