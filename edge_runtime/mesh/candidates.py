"""What a gateway remembers of those that may host the broker (decides): from announcements, births, the host's list, and
`mesh.peers`. Nothing of it is proved; all of it is bounded.
"""

from __future__ import annotations

from collections.abc import Iterable, Sequence

import msgspec

from edge_runtime.bus.presence import Birth, Brokers
from edge_runtime.mesh import election
from edge_runtime.mesh.election import Candidate
from edge_runtime.ports_mesh import Announcement, Endpoint

CANDIDATES_MAX = 256
"""Gateways with a name, and as many addresses without one; of more the one that was heard longest ago is forgotten."""

ENDPOINTS_MAX = 16
"""Of one gateway; more are passed over."""

KEPT_NS = 24 * 3_600 * 10**9
"""A gateway that was not heard for a day is no candidate any more."""


class Candidates:
    """`me` is one of them. Times are ports.Clock's mono_ns."""

    def __init__(self, me: Candidate, static: Iterable[Endpoint]) -> None:
        self.me = me
        self._static = tuple(dict.fromkeys(static))
        self._named: dict[str, tuple[Candidate, int]] = {}
        """By name, with when it was heard; the one heard last stands last."""
        self._places: dict[Endpoint, int] = {}
        """From the list of a host before us."""
        self._announced: tuple[str, ...] = ()
        self._alive: tuple[str, ...] | None = None

    # --- what is heard ---

    def hear_announced(self, found: Sequence[Announcement], now_ns: int) -> None:
        """All that discovery has now."""
        for name, (candidate, heard_ns) in self._named.items():
            if candidate.hosts:
                self._named[name] = (msgspec.structs.replace(candidate, hosts=False), heard_ns)
        theirs = [each for each in found if each.role != "guest" and each.instance != self.me.instance]
        for each in theirs:
            self._note(
                Candidate(
                    name=each.gateway,
                    instance=each.instance,
                    rank=each.rank,
                    endpoints=each.endpoints[:ENDPOINTS_MAX],
                    hosts=each.role == "host",
                ),
                now_ns,
            )
        self._announced = tuple(each.gateway for each in theirs)

    def hear_births(self, births: Sequence[Birth], now_ns: int) -> None:
        """All that are alive on the broker that we are on."""
        theirs = [each for each in births if each.online and each.may_host and each.instance != self.me.instance]
        for each in theirs:
            known = self._named.get(each.gateway)
            same = known is not None and known[0].instance == each.instance
            endpoints = each.endpoints[:ENDPOINTS_MAX] or (known[0].endpoints if known is not None and same else ())
            self._note(
                Candidate(
                    name=each.gateway,
                    instance=each.instance,
                    rank=each.rank,
                    endpoints=endpoints,
                    hosts=known is not None and same and known[0].hosts,
                ),
                now_ns,
            )
        self._alive = tuple(each.gateway for each in theirs)

    def hear_brokers(self, brokers: Brokers, now_ns: int) -> None:
        """What a host says: its own places, and the list that it would hand on."""
        if brokers.instance != self.me.instance and brokers.endpoints:
            self._note(
                Candidate(
                    name=brokers.host,
                    instance=brokers.instance,
                    rank=brokers.rank,
                    endpoints=brokers.endpoints[:ENDPOINTS_MAX],
                    hosts=True,
                ),
                now_ns,
            )
        for place in brokers.candidates[:CANDIDATES_MAX]:
            self._places.setdefault(place, now_ns)
        while len(self._places) > CANDIDATES_MAX:
            del self._places[next(iter(self._places))]

    def forget(self, now_ns: int) -> None:
        """Who was not heard for a day."""
        self._named = {name: pair for name, pair in self._named.items() if now_ns - pair[1] < KEPT_NS}
        self._places = {place: heard_ns for place, heard_ns in self._places.items() if now_ns - heard_ns < KEPT_NS}

    # --- what is known ---

    def all(self) -> list[Candidate]:
        """Everybody and every address to ask, without me."""
        named = [each for each, _ in self._named.values()]
        theirs = dict.fromkeys(place for each in [self.me, *named] for place in each.endpoints)
        bare = [Candidate(endpoints=(place,)) for place in dict.fromkeys((*self._static, *self._places)) if place not in theirs]
        return named + bare

    def there(self) -> list[Candidate]:
        """Those that were there last: on the broker that we had; as long as we never had one, those that are announced, and the
        addresses of `mesh.peers`."""
        if self._alive is not None:
            return [self._named[name][0] for name in self._alive if name in self._named]
        return [
            each for each in self.all() if each.name in self._announced or (not each.name and each.endpoints[0] in self._static)
        ]

    @property
    def cold(self) -> bool:
        """We never had a broker."""
        return self._alive is None

    def named(self, name: str) -> Candidate | None:
        pair = self._named.get(name)
        return None if pair is None else pair[0]

    def places(self) -> tuple[Endpoint, ...]:
        """The list for everybody: all the places where the site's broker may be."""
        named = [place for each, _ in self._named.values() for place in each.endpoints]
        return election.listed([*self.me.endpoints, *self._static, *named, *self._places])[:CANDIDATES_MAX]

    def _note(self, candidate: Candidate, now_ns: int) -> None:
        self._named.pop(candidate.name, None)
        self._named[candidate.name] = (candidate, now_ns)
        while len(self._named) > CANDIDATES_MAX:
            del self._named[next(iter(self._named))]
