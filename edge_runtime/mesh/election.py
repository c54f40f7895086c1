"""Which gateway hosts the site's broker (decides). Pure: the same knowledge gives the same choice, in whatever order it came.

Gateways are ordered by (rank, name, instance); rank 0 is for those that a configuration pins as the host. The rules:

1. Who finds a broker of the site takes it, whoever hosts it: a better gateway that joins later moves nobody.
2. Without a broker, a gateway asks those that say that they host, then the better ones, then all others it knows of.
3. If nobody hosts, its turn to do so comes after those of all better gateways that were there and may still be (`position`).
4. Two hosts that can reach each other: the lesser one steps down (`steps_down`).
5. A lesser host that goes on, although the better one reaches it, cannot reach the better one (a firewall lets one way through
   only): after YIELD_S the better one steps down. So two hosts never stay where one of them reaches the other.
"""

from __future__ import annotations

import ipaddress
from collections.abc import Collection, Iterable, Sequence

import msgspec

from edge_runtime.address import address
from edge_runtime.bus.presence import Brokers
from edge_runtime.config import Config
from edge_runtime.ports_mesh import Endpoint, Role

PINNED_RANK = 0
"""Of a gateway with `broker.mode: hosted`; the others have 1 or more."""

DISCOVER_S = 0.6
"""A gateway that has just started listens so long before the first one's turn."""

GRACE_S = 0.4
"""After a broker was lost, before the first one's turn: a broker that crashed is started again where it was."""

LATER_S = 3.0
"""More grace where no broker was lost, but one that answered a moment ago does not now: it is asked once more meanwhile, for on a
bad link a packet may have been lost."""

SLOT_S = 0.6
"""Each one's turn: to start a broker, and for the others to find it. A host that is cut off is missed by some half a second later
than by others: shorter turns would make two hosts of it."""

YIELD_S = 4.0
"""A lesser host has so long to step down."""

Key = tuple[int, str, str]


class Candidate(msgspec.Struct, frozen=True, kw_only=True):
    """A gateway that may host the broker, as far as others know it. Without a name: an address that somebody gave us."""

    name: str = ""
    instance: str = ""
    rank: int = 1_000
    endpoints: tuple[Endpoint, ...] = ()
    hosts: bool = False
    """It says that it hosts the broker now; it may have died since."""

    @property
    def key(self) -> Key:
        return (self.rank, self.name, self.instance)


# --- what the configuration makes of this gateway ---------------------------------------------------------------------


def rank(settings: Config) -> int:
    """Lower hosts first."""
    if settings.broker.mode == "hosted":
        return PINNED_RANK
    return settings.mesh.rank if settings.mesh is not None else 0


def may_host(settings: Config) -> bool:
    mode = settings.broker.mode
    return mode == "hosted" or (mode == "auto" and settings.mesh is not None and settings.mesh.may_host)


def role(settings: Config) -> Role:
    """Of a gateway that does not host now. A pinned one says from the start that it hosts: that is what it is there for."""
    if settings.broker.mode == "hosted":
        return "host"
    return "candidate" if may_host(settings) else "guest"


def peer(text: str) -> Endpoint:
    """An entry of `mesh.peers`: host, host:port, [IPv6]:port. Raises BadAddress."""
    where = address(f"mqtt://{text}")
    return Endpoint(where.host, where.port)


# --- looking for a broker ---------------------------------------------------------------------------------------------


def ask_order(me: Candidate, known: Iterable[Candidate], hints: Iterable[Endpoint] = ()) -> list[Endpoint]:
    """Where to look for the site's broker, first things first: hints, those that say that they host, the better ones, addresses
    without a name, the lesser ones. No address twice, none of our own."""

    def group(each: Candidate) -> int:
        if each.hosts:
            return 0
        if not each.name:
            return 2
        return 1 if each.key < me.key else 3

    ordered = sorted(known, key=lambda each: (group(each), each.key, sortable(each.endpoints)))
    places = [*hints, *(place for each in ordered if each.instance != me.instance for place in each.endpoints)]
    return [place for place in dict.fromkeys(places) if place not in me.endpoints]


def position(me: Candidate, known: Iterable[Candidate], gone: Collection[str] = (), silent: Collection[Endpoint] = ()) -> int:
    """How many have their turn to host before me. `known`: those that were there last; `gone`: names of those that were seen to
    fail; `silent`: places that do not even refuse a connection, so whoever was there is cut off or switched off.

    Of an address without a name the rank is not known: the lowest address goes first, so that gateways that only have each
    other's addresses do not all host at once."""
    ahead = 0
    for each in known:
        if each.instance == me.instance or each.name in gone or (each.endpoints and all(one in silent for one in each.endpoints)):
            continue
        if each.name:
            ahead += each.key < me.key
        elif me.endpoints:
            ahead += sortable(each.endpoints) < sortable(me.endpoints)
    return ahead


def turn_s(ahead: int, *, cold: bool, pinned: bool, torn: bool = True) -> float:
    """When our turn to host comes, counted from when we began to look."""
    if pinned:  # by the configuration: it is there for that, and waits for nobody
        return 0.0
    if cold:  # we never had a broker
        first_s = DISCOVER_S
    elif torn:  # we had one, and it went without a word
        first_s = GRACE_S
    else:  # one has just answered, and is not to be had now
        first_s = GRACE_S + LATER_S
    return first_s + ahead * SLOT_S


# --- being the host ---------------------------------------------------------------------------------------------------


def key(brokers: Brokers) -> Key:
    return (brokers.rank, brokers.host, brokers.instance)


def steps_down(mine: Brokers, rival: Brokers, seen_s: float) -> bool:
    """Do we, as host, make room for another host whose broker we reach? `seen_s`: for how long we have reached it."""
    return key(rival) < key(mine) or seen_s >= YIELD_S


# --- the list for everybody else --------------------------------------------------------------------------------------


def sortable(endpoints: Sequence[Endpoint]) -> tuple[tuple[int, int, str, int], ...]:
    """10.0.0.9 comes before 10.0.0.10, and addresses before names."""
    return tuple(_sortable(each) for each in endpoints)


def _sortable(endpoint: Endpoint) -> tuple[int, int, str, int]:
    try:
        parsed = ipaddress.ip_address(endpoint.host)
    except ValueError:
        return (9, 0, endpoint.host, endpoint.port)
    return (parsed.version, int(parsed), endpoint.host, endpoint.port)


def listed(endpoints: Iterable[Endpoint]) -> tuple[Endpoint, ...]:
    """Sorted, each once: the same list whoever makes it."""
    return tuple(sorted(dict.fromkeys(endpoints), key=_sortable))
