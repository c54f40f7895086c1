"""The token of an enrolment (pure): what one gateway needs to find its site's authority, to know it, and to be let in once.

    press-1.plant-1.20Z01D-4R3X0P-...

The names stand in it as they are; then groups of six in Crockford's base32 (no I, L, O, U; capitals or not is one): version and
number of addresses (1 byte), port (2), the head of the sha256 of the CA's certificate (16), the secret (16), the addresses, and
3 bytes of a checksum over all of it, names too. The last character of a group is its own checksum, so that a typing error is
told with the number of its group. 128 bits of a sha256 are enough: who wants to be taken for the CA must find a second
certificate for a given one.
"""

from __future__ import annotations

import hashlib
import ipaddress
import re

import msgspec

from edge_runtime import document
from edge_runtime.ports import EdgeError

VERSION = 1
SECRET_BYTES = 16
CA_BYTES = 16
HOSTS_MAX = 4
HOST_CHARACTERS_MAX = 64
TEXT_CHARACTERS_MAX = 1_024
ASK = "ask for a new one: `edge-runtime site token GATEWAY`"

_ALPHABET = "0123456789ABCDEFGHJKMNPQRSTVWXYZ"
_MEANT = str.maketrans("OIL", "011")
_GROUP = 6
_SUM_BYTES = 3
_HEAD_BYTES = 3 + CA_BYTES + SECRET_BYTES
_HOST_NAME = re.compile(r"[A-Za-z0-9]([A-Za-z0-9.-]*[A-Za-z0-9])?")
_IS_NAME = 0x80


class BadToken(EdgeError):
    """It cannot be read, or cannot be made."""


class Token(msgspec.Struct, frozen=True, kw_only=True, repr_omit_defaults=True):
    """`ca`: see `ca_mark`. `hosts`: addresses or names of the machine that waits for the gateway, the likeliest first."""

    site: str
    gateway: str
    hosts: tuple[str, ...]
    port: int
    ca: bytes
    secret: bytes

    def __repr__(self) -> str:
        return f"Token({self.gateway}.{self.site})"  # a secret has no place in a log


def ca_mark(certificate: bytes) -> bytes:
    """Of the CA's certificate in DER: what the token pins."""
    return hashlib.sha256(certificate).digest()[:CA_BYTES]


def text(token: Token) -> str:
    """For a person to paste or type. Raises BadToken for names, hosts or a port that do not fit in."""
    names = f"{token.gateway}.{token.site}"
    if not all(re.fullmatch(document.NAME, name) for name in (token.gateway, token.site)):
        raise BadToken(f"{names} holds what is no name", "letters, digits, - and _; starts with a letter or digit; at most 63")
    if not 1 <= len(token.hosts) <= HOSTS_MAX or not 1 <= token.port <= 65_535:
        raise BadToken(f"a token holds 1 to {HOSTS_MAX} addresses and a port", "--listen HOST:PORT says which")
    head = bytes([VERSION << 4 | len(token.hosts)]) + token.port.to_bytes(2, "big") + token.ca + token.secret
    payload = head + b"".join(_packed(host) for host in token.hosts)
    symbols = _symbols(payload + _sum(names, payload))
    size = _GROUP - 1
    groups = [symbols[at : at + size] for at in range(0, len(symbols), size)]
    return f"{names}." + "-".join(group + _check(number, group) for number, group in enumerate(groups))


def read(text: str) -> Token:
    """Also of what was typed: spaces, capitals, O for 0 do not matter. Raises BadToken, which says what is wrong and where."""
    words = re.sub(r"[\s\"']", "", text[: TEXT_CHARACTERS_MAX + 1])
    parts = words.split(".")
    if len(parts) != 3 or len(words) > TEXT_CHARACTERS_MAX or not all(re.fullmatch(document.NAME, name) for name in parts[:2]):
        raise BadToken("this is no token", "GATEWAY.SITE.GROUPS-OF-SIX, as `edge-runtime site token` prints it")
    gateway, site, groups = parts
    content = _bytes(_checked(groups.upper().translate(_MEANT).replace("-", "")))
    payload, found = content[:-_SUM_BYTES], content[-_SUM_BYTES:]
    if len(payload) <= _HEAD_BYTES:
        raise BadToken("the token is not whole: its end is missing", "copy all of it")
    if found != _sum(f"{gateway}.{site}", payload):
        raise BadToken("the token is mistyped: a name in front, or two groups that changed places", f"compare it; or {ASK}")
    if payload[0] >> 4 != VERSION:
        raise BadToken(f"the token is of version {payload[0] >> 4}, this program reads {VERSION}", "update edge-runtime here")
    return Token(
        site=site,
        gateway=gateway,
        hosts=_hosts(payload[_HEAD_BYTES:], payload[0] & 0x0F),
        port=int.from_bytes(payload[1:3], "big"),
        ca=payload[3 : 3 + CA_BYTES],
        secret=payload[3 + CA_BYTES : _HEAD_BYTES],
    )


# --- addresses -------------------------------------------------------------------------------------------------------


def _packed(host: str) -> bytes:
    """Length (that of an IPv4 or IPv6 address; a name's with the highest bit set) and bytes."""
    try:
        packed = ipaddress.ip_address(host).packed
    except ValueError:
        if len(host) > HOST_CHARACTERS_MAX or not _HOST_NAME.fullmatch(host):
            raise BadToken(f"{host!r} is no address and no host name", "--listen HOST:PORT says which") from None
        return bytes([_IS_NAME | len(host)]) + host.encode()
    return bytes([len(packed)]) + packed


def _hosts(packed: bytes, count: int) -> tuple[str, ...]:
    """Raises BadToken: only a program that counts wrong makes such a token."""
    hosts = []
    while packed:
        size = packed[0] & ~_IS_NAME
        content, rest = packed[1 : 1 + size], packed[1 + size :]
        if len(content) != size or (size not in (4, 16) and not packed[0] & _IS_NAME):
            break
        hosts.append(content.decode("ascii", "replace") if packed[0] & _IS_NAME else str(ipaddress.ip_address(content)))
        packed = rest
    if packed or len(hosts) != count or not 1 <= count <= HOSTS_MAX:
        raise BadToken("the addresses in the token cannot be read", ASK)
    return tuple(hosts)


# --- base32 with checks ----------------------------------------------------------------------------------------------


def _sum(names: str, payload: bytes) -> bytes:
    return hashlib.sha256(names.encode() + b"\0" + payload).digest()[:_SUM_BYTES]


def _symbols(content: bytes) -> str:
    count = -(-len(content) * 8 // 5)
    number = int.from_bytes(content, "big") << (count * 5 - len(content) * 8)
    return "".join(_ALPHABET[number >> 5 * at & 31] for at in reversed(range(count)))


def _bytes(symbols: str) -> bytes:
    number = 0
    for each in symbols:
        number = number << 5 | _ALPHABET.index(each)
    size = len(symbols) * 5 // 8
    return (number >> (len(symbols) * 5 - size * 8)).to_bytes(size, "big")


def _check(number: int, group: str) -> str:
    """Odd weights: one wrong character always shows. The number: so does a group in another's place."""
    return _ALPHABET[(sum((2 * at + 1) * _ALPHABET.index(each) for at, each in enumerate(group)) + 5 * number) % 32]


def _checked(symbols: str) -> str:
    """Without the checks. Raises BadToken with the first wrong group: what is missing or too much shifts all that follows."""
    groups = [symbols[at : at + _GROUP] for at in range(0, len(symbols), _GROUP)]
    for number, group in enumerate(groups):
        if strange := [each for each in group if each not in _ALPHABET]:
            raise BadToken(f"the token is mistyped in group {number + 1}: {strange[0]!r} is in no token", "compare that group")
        if len(group) < 2 or group[-1] != _check(number, group[:-1]):
            cause = f"the token is mistyped in group {number + 1} of {len(groups)}"
            raise BadToken(cause, f"compare that group and the one before: a wrong character, one too many or too few; or {ASK}")
    return "".join(group[:-1] for group in groups)
