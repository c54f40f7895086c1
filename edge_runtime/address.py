"""mqtt://user:password@host:port -> ports.Address, and host:port to listen on. Pure; never shows a password in a message."""

from __future__ import annotations

import re
from urllib.parse import SplitResult, unquote, urlsplit

from edge_runtime.ports import Address, EdgeError

PORTS = {"mqtt": 1883, "mqtts": 8883}
_EXAMPLE = "mqtt://[user:password@]host[:port], mqtts:// for TLS"


class BadAddress(EdgeError):
    """A broker url that cannot be understood."""


def address(
    url: str,
    *,
    client_id: str = "",
    clean: bool = True,
    ca_file: str = "",
    cert_file: str = "",
    key_file: str = "",
    keepalive_s: int = 5,
) -> Address:
    """Raises BadAddress. User and password may be percent-encoded; an IPv6 address stands in brackets."""
    try:
        parts = urlsplit(url.strip())
        port = parts.port
    except ValueError:  # its text may hold a piece of the password
        raise BadAddress(f"{_safe(url)}: broken host, or the port is no number from 1 to 65535", _EXAMPLE) from None
    _check(url, parts)
    tls = parts.scheme == "mqtts"
    if not tls and (ca_file or cert_file or key_file):
        raise BadAddress(f"{_safe(url)}: certificates are given, but mqtt:// does not encrypt", "write mqtts://")
    if bool(cert_file) != bool(key_file):
        raise BadAddress(f"{_safe(url)}: cert_file and key_file belong together", "give both or none")
    if not clean and not client_id:
        raise BadAddress(f"{_safe(url)}: a session that is kept needs a client_id", "give it a fixed name, unique at the broker")
    return Address(
        host=parts.hostname or "",
        port=PORTS[parts.scheme] if port is None else port,
        client_id=client_id,
        clean=clean,
        username=unquote(parts.username or ""),
        password=unquote(parts.password or ""),
        ca_file=ca_file,
        cert_file=cert_file,
        key_file=key_file,
        tls=tls,
        keepalive_s=keepalive_s,
    )


def listener(text: str) -> tuple[str, int]:
    """127.0.0.1:9464 or [::1]:9464 -> (host, port); port 0: a free one. Raises BadAddress."""
    found = re.fullmatch(r"(?:\[([0-9a-fA-F:.]+)\]|([\w.-]+)):(\d{1,5})", text, re.ASCII)
    if found is None or int(found[3]) > 65_535:
        raise BadAddress(
            "is no host:port to listen on", "127.0.0.1:9464, [::1]:9464; 0.0.0.0:9464 for every address of this machine"
        )
    return found[1] or found[2], int(found[3])


def _check(url: str, parts: SplitResult) -> None:
    if parts.scheme not in PORTS:
        scheme = f"{parts.scheme}:// is not spoken here" if "://" in url else "the scheme is missing"
        raise BadAddress(f"{_safe(url)}: {scheme}", _EXAMPLE)
    if not parts.hostname:
        raise BadAddress(f"{_safe(url)}: the host is missing", _EXAMPLE)
    if parts.path not in ("", "/") or parts.query or parts.fragment:
        raise BadAddress(f"{_safe(url)}: nothing may follow the port", f"{_EXAMPLE}; a # or / in a password is written %23, %2F")
    if parts.port == 0:
        raise BadAddress(f"{_safe(url)}: port 0", _EXAMPLE)
    if parts.password and not parts.username:
        raise BadAddress(f"{_safe(url)}: a password without a user", _EXAMPLE)


def _safe(url: str) -> str:
    """Everything between // and the last @ may be a secret."""
    return re.sub(r"(//|^)[^/]*.*@", r"\1***@", url.strip())
