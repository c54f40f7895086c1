"""What a gateway says of itself over mDNS, and on which of the machine's interfaces (decides). discovery.py does the talking.

Whoever is on the network can announce anything: what does not fit exactly is refused, never guessed.
"""

from __future__ import annotations

import ipaddress
import zlib
from collections.abc import Iterable, Mapping, Sequence
from fnmatch import fnmatchcase
from typing import Annotated, Literal

import msgspec

from edge_runtime.bus.messages import Word
from edge_runtime.ports import EdgeError
from edge_runtime.ports_mesh import Announcement, Endpoint, Role

PROTOCOL = 1
ENDPOINTS_MAX = 16
"""Of one gateway; more are left out."""
LABEL_BYTES_MAX = 63
"""Of one part of a DNS name."""
TOKEN_BYTES_MAX = 16
ANNOUNCE_S_MIN = 2.0
ANNOUNCE_S_EACH = 0.04
"""Every gateway hears every announcement: from 50 gateways on, each says its own less often, 25 announcements a second in all."""

_Text = Annotated[str, msgspec.Meta(max_length=128, pattern=r"^[\x20-\x7e]*\Z")]


class BadAnnouncement(EdgeError):
    """What was announced is no gateway that we understand."""


# --- TXT -------------------------------------------------------------------------------------------------------------


class _Txt(msgspec.Struct, frozen=True, kw_only=True):
    v: Literal[1]
    site: Word
    gateway: Word
    instance: Word
    role: Role
    rank: Annotated[int, msgspec.Meta(ge=0, le=1_000)]
    version: _Text = ""
    fingerprint: _Text = ""


def label(gateway: str, instance: str) -> str:
    """The name of the announcement: unique by construction, so nobody has to ask for 1.2 s whether it is taken."""
    token = instance[:TOKEN_BYTES_MAX]
    return f"{gateway[: LABEL_BYTES_MAX - TOKEN_BYTES_MAX - 1]}-{token}"


def encode(mine: Announcement, revision: int) -> dict[str, str]:
    """Keys of TXT. `revision` makes every change a record of its own: mDNS caches take one that comes back (host, candidate,
    host) for the old one and tell nobody."""
    return {
        "v": str(PROTOCOL),
        "site": mine.site,
        "gateway": mine.gateway,
        "instance": mine.instance,
        "role": mine.role,
        "rank": str(mine.rank),
        "version": mine.version,
        "fingerprint": mine.fingerprint,
        "revision": str(revision),
    }


def decode(name: str, properties: Mapping[bytes, bytes | None], addresses: Sequence[str], port: int) -> Announcement:
    """`name`: the first part of its DNS name. Keys that we do not know are passed over. Raises BadAnnouncement."""
    try:
        texts = {key.decode(): (value or b"").decode() for key, value in properties.items()}
        txt = msgspec.convert(texts, _Txt, strict=False)
    except (msgspec.ValidationError, UnicodeDecodeError) as error:
        raise BadAnnouncement(f"announcement {name[:80]!r}: {error}", "who else announces gateways on this network?") from None
    if name.lower() != label(txt.gateway, txt.instance).lower():
        cause = f"announcement {name[:80]!r} is of {txt.gateway} {txt.instance}"
        raise BadAnnouncement(cause, "who else announces gateways on this network?")
    return Announcement(
        site=txt.site,
        gateway=txt.gateway,
        instance=txt.instance,
        role=txt.role,
        rank=txt.rank,
        endpoints=_endpoints(addresses, port),
        version=txt.version,
        fingerprint=txt.fingerprint,
    )


def _endpoints(addresses: Sequence[str], port: int) -> tuple[Endpoint, ...]:
    """Always in the same order: IPv4 first, link-local last (and only where it is known on which interface)."""
    if not 1 <= port <= 65_535:
        return ()
    parsed = [ipaddress.ip_address(each) for each in dict.fromkeys(addresses)]
    useful = [each for each in parsed if not (each.is_link_local and each.version == 6 and not each.scope_id)]
    ordered = sorted(useful, key=lambda each: (each.is_link_local, each.version, each.packed))
    return tuple(Endpoint(str(each), port) for each in ordered[:ENDPOINTS_MAX])


def period_s(gateways: int, instance: str) -> float:
    """From one announcement to the next. A tenth more or less by the instance: gateways that were switched on together do not
    stay in step."""
    spread = zlib.crc32(instance.encode()) / 2**32
    return max(ANNOUNCE_S_MIN, ANNOUNCE_S_EACH * gateways) * (0.9 + 0.2 * spread)


# --- interfaces ------------------------------------------------------------------------------------------------------


class Interface(msgspec.Struct, frozen=True):
    """One network interface that is up. `addresses` in the machine's order, without %scope."""

    name: str
    index: int
    addresses: tuple[str, ...]

    @property
    def loopback(self) -> bool:
        return any(ipaddress.ip_address(each).is_loopback for each in self.addresses)


def listens_on(listen: str) -> ipaddress.IPv4Address | ipaddress.IPv6Address:
    """Raises EdgeError."""
    try:
        return ipaddress.ip_address("127.0.0.1" if listen == "localhost" else listen)
    except ValueError:
        raise EdgeError(f"broker.listen: {listen!r} is no address", "an address of this machine, or 0.0.0.0") from None


def chosen(interfaces: Iterable[Interface], only: Sequence[str], never: Sequence[str], listen: str) -> tuple[Interface, ...]:
    """`only`, `never`: patterns of names. Loopback is used alone, for gateways that listen on loopback (a demo, a test), or where
    `only` has its very name: announced on a wire, 127.0.0.1 would send others to themselves."""
    inside = listens_on(listen).is_loopback
    return tuple(
        each
        for each in sorted(interfaces, key=lambda one: one.index)
        if each.addresses
        and not _matches(each.name, never)
        and (not only or _matches(each.name, only))
        and (each.name in only or each.loopback == inside or (bool(only) and not each.loopback))
    )


def announced(interfaces: Iterable[Interface], listen: str) -> tuple[str, ...]:
    """The addresses at which a broker that listens on `listen` can be reached over these interfaces. 0.0.0.0 takes IPv4 only,
    :: both. A link-local IPv6 address is announced only where the interface has no other: it needs a scope to be of use."""
    where = listens_on(listen)
    found: list[str] = []
    for interface in interfaces:
        addresses = [ipaddress.ip_address(each) for each in interface.addresses]
        fits = [each for each in addresses if where in (each, _ANY6) or (where == _ANY4 and each.version == 4)]
        wide = [each for each in fits if each.version == 4 or not each.is_link_local]
        found += [str(each) for each in wide or fits]
    return tuple(dict.fromkeys(found))


_ANY4 = ipaddress.ip_address("0.0.0.0")
_ANY6 = ipaddress.ip_address("::")


def _matches(name: str, patterns: Sequence[str]) -> bool:
    return any(fnmatchcase(name, pattern) for pattern in patterns)
