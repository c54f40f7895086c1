"""Where to speak to gateways that a change moves to another broker, and as whom (decides)."""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace

import msgspec

from edge_runtime import references
from edge_runtime.address import BadAddress, address, listener
from edge_runtime.bus.presence import Brokers
from edge_runtime.cli.config.preview import NEW
from edge_runtime.cli.mesh.finding import Plan
from edge_runtime.config import Broker, Config
from edge_runtime.control.redaction import HIDDEN
from edge_runtime.ports import Address, EdgeError

Secret = Callable[[str], str]
"""What is called so on this computer. Raises EdgeError."""


@dataclass(frozen=True)
class Here:
    """Where we talk now. `brokers`: who hosts this broker; None: nobody of the site. `hosts`: addresses, by gateway."""

    plan: Plan
    site: str
    brokers: Brokers | None = None
    hosts: Mapping[str, tuple[str, ...]] = field(default_factory=dict)


@dataclass(frozen=True)
class Place:
    """`name`: for people. `doubt`: why we may not get there; "": none is known."""

    name: str
    plan: Plan
    doubt: str = ""


def url_of(shown: str, said: object) -> str:
    """The url that counts, as a preview shows it; with the password that was typed, if it is that one."""
    if not isinstance(said, str) or not _hides(shown):
        return shown
    try:
        one, other = address(shown), address(said)
    except BadAddress:
        return shown
    same = (one.host, one.port, one.username, one.tls) == (other.host, other.port, other.username, other.tls)
    return said if same else shown


def places(here: Here, moved: Mapping[str, Config], said: object, secret: Secret) -> list[Place]:
    """Of each gateway that moves (by name: its configuration as it is wanted) where it goes, each place once. `said`: the url in
    the document; None: it says none."""
    found: dict[tuple[str, ...], Place] = {}
    for name, each in moved.items():
        broker = each.broker
        if broker.mode == "external":
            if (place := _external(here, broker.url, said, secret)) is not None:
                found.setdefault(("external", broker.url), place)
        elif broker.mode == "hosted":
            found[("hosted", name)] = _hosted(here, {name: each})
        elif broker.mode == "auto":
            alike = {one: other for one, other in moved.items() if (other.broker, other.mesh) == (broker, each.mesh)}
            found.setdefault(("auto", next(iter(alike))), _hosted(here, alike))
    return list(found.values())


def said_there(here: Here, url: str, secret: Secret) -> Place:
    """`url`: with which we get there, as somebody has said. Raises EdgeError."""
    where = address(url)
    if name := references.name_in(where.password):
        where = msgspec.structs.replace(where, password=secret(name))
    return _outside(here, where)


def is_elsewhere(here: Here, said: Brokers, moved: Sequence[str], *, meets: bool) -> bool:
    """Whether a broker, by what it says of itself, is one to which these gateways move: not the one where we are. `meets`: they
    have a `mesh`, and may come to one that another gateway of the site hosts."""
    now = here.brokers
    if said.host in moved:
        return now is None or said.run != now.run
    return meets and (now is None or said.instance != now.instance)


# --- a broker of nobody at the site ----------------------------------------------------------------------------------


def _external(here: Here, shown: str, said: object, secret: Secret) -> Place | None:
    """None: it is no url, and will be refused."""
    url, doubt = url_of(shown, said), ""
    try:
        where = address(url)
    except BadAddress:
        return None
    if url != said:  # only a gateway has told it: it could name any of our secrets, and a place of its own
        if where.username or here.plan.user:
            doubt = "the document does not say broker.url, and no password goes where only a gateway says so"
        return Place(_name(where), Plan(here.site, (_nobody(where),), identity=here.plan.identity), doubt)
    if name := references.name_in(where.password):
        try:
            where = msgspec.structs.replace(where, password=secret(name))
        except EdgeError as error:
            where, doubt = _nobody(where), f"{error.cause} ({error.hint})"
    place = _outside(here, where)
    if place.plan.identity and not where.tls:
        doubt = ""  # we come with our certificate
    return replace(place, doubt=doubt)


def _outside(here: Here, where: Address) -> Place:
    """As who we are now, where the url does not say as whom."""
    now, name = here.plan, _name(where)
    if now.places and not (where.username and (where.password or not now.authority)):
        own = now.places[0]
        if now.authority:  # a password goes to who shows a certificate of its site, and to nobody else
            who = where.username or own.username
            where = msgspec.structs.replace(own, host=where.host, port=where.port, username=who)
        elif where.tls or not own.tls:
            where = msgspec.structs.replace(where, username=own.username, password=own.password)
    authority = now.authority if where.site_ca else b""
    return Place(name, Plan(here.site, (where,), identity=now.identity, authority=authority))


def _name(where: Address) -> str:
    return f"{where.host}:{where.port}"


def _nobody(where: Address) -> Address:
    return msgspec.structs.replace(where, username="", password="")


def _hides(url: str) -> bool:
    return f":{HIDDEN}@" in url or f":{NEW}@" in url


# --- a broker that a gateway of the site hosts -----------------------------------------------------------------------


def _hosted(here: Here, moved: Mapping[str, Config]) -> Place:
    """One of these hosts it: on this machine, where the broker is now, where it says that it is, or where mDNS finds it."""
    now, names, settings = here.plan, tuple(moved), next(iter(moved.values()))
    mode, mesh = settings.broker.mode, settings.mesh
    told = [host for name in names for host in here.hosts.get(name, ())]
    hosts = dict.fromkeys(("127.0.0.1", *(each.host for each in now.places), *told))
    port = _port(settings.broker, password=bool(now.authority))
    own = now.places[0] if now.authority else Address(host="")
    guesses = [msgspec.structs.replace(own, host=host, port=port) for host in hosts if port]
    peers = [] if now.authority or mesh is None or mode != "auto" else list(_peers(mesh.peers))
    announced = mesh is not None and mesh.discovery == "mdns" and not now.authority
    doubt = ""
    if not port:
        doubt = "nobody comes there with a password (broker.people_listen)"
    elif not (told or peers or announced):
        tried = ", ".join(f"{each.host}:{each.port}" for each in guesses)
        doubt = f"where it will be is not known here (it has no `mesh`, and says no address): {tried} is tried"
    plan = replace(
        now, site=here.site, places=(*guesses, *peers), ours=True, discover=announced,
        takes=lambda said: is_elsewhere(here, said, names, meets=mesh is not None),
    )  # fmt: skip
    return Place(f"the broker of {', '.join(names[:5])}", plan, doubt)


def _port(broker: Broker, *, password: bool) -> int:
    """0: none for us."""
    try:
        if password:
            return listener(broker.people_listen)[1] if broker.people_listen else 0
        return address(broker.url).port
    except BadAddress:
        return 0


def _peers(said: Sequence[str]) -> Iterator[Address]:
    for each in said:
        try:
            yield address(f"mqtt://{each}")
        except BadAddress:
            continue
