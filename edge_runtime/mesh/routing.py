"""Where a window is computed: here, by a peer, or nowhere (pure). No clock, no chance, no waiting: the same facts and draws give
the same decision, and the decision tells what it was based on.

    finish = link + what waits there + the time of the window itself

In this order:

1. Privacy `gateway` never leaves. Nor does what is too large to travel.
2. A peer counts when it has the model, was heard lately, was not asked for this window before, does not fail all the time, and is
   expected to finish in time. Of those that count two are compared, drawn by chance: were it always the best one, all gateways
   would go for it at once.
3. Here wins unless a peer is better by a margin: two that are equal must not send their windows to each other.
4. Who is hot or on battery computes only what nobody else can finish in time, and gives its own windows away readily.
5. Nobody knows how long a peer takes that has never computed the model, nor how long it takes here after a long time: now and
   then one window finds out.
"""

from __future__ import annotations

from collections.abc import Sequence
from enum import StrEnum
from typing import Literal, NamedTuple

import msgspec

from edge_runtime.records import Privacy

MARGIN = 1.25
"""A peer's finish, times this, must be earlier than ours; and earlier by MARGIN_NS."""
MARGIN_NS = 1_000_000

EXPLORE_SHARE = 0.05
"""Of the windows that could go to a peer whose time nobody knows."""

SERVICE_NS_UNKNOWN = 20_000_000
"""Taken for the time of a window where nobody, here or there, has measured it."""


class Reason(StrEnum):
    """Why. A counter each; in words that are shown as they are."""

    # Computed here because ...
    ALONE = "no peers"
    PRIVACY = "privacy: it does not leave the gateway"
    AWAY = "no connection to the site's broker"
    TOO_LARGE = "too large to travel"
    NO_MODEL = "no peer has the model"
    TRIED = "every peer that has the model was asked"
    LATE = "peers with the model are not heard of any more"
    BREAKER = "peers with the model failed lately"
    DEADLINE = "no peer would finish in time"
    SPARED = "peers are hot or on battery"
    HERE_FASTER = "here is faster"
    HERE_MEASURED = "here is to be measured"
    FALLBACK = "time ran out for the peers"
    # Computed by a peer because ...
    PEER_FASTER = "peer is faster"
    HERE_SPARED = "here is hot or on battery"
    HERE_CANNOT = "here cannot"
    EXPLORED = "peer's time is not known yet"
    REISSUED = "another peer did not do it"


class Wanted(msgspec.Struct, frozen=True):
    """What is known of the window. `tried`: peers that were asked already and did not do it."""

    privacy: Privacy
    remaining_ns: int
    """Until the deadline."""
    peers_ns: int
    """Until a peer must have finished: less, where there must be time to compute it here after all."""
    connected: bool = True
    """To the site's broker."""
    fits: bool = True
    """Into a message."""
    tried: tuple[str, ...] = ()


class Here(msgspec.Struct, frozen=True):
    """This gateway, for this model. `queue_ns`: what waits and runs here already, own windows and those of others."""

    able: bool = True
    queue_ns: int = 0
    service_ns: int = 0
    """0: not yet known."""
    stale: bool = False
    """`service_ns` was measured long ago, or never."""
    spared: bool = False
    """Hot, or on battery."""


class There(msgspec.Struct, frozen=True, kw_only=True):
    """A peer, for this model, as it is known here."""

    name: str
    has_model: bool = True
    service_ns: int = 0
    """0: not yet known."""
    queue_ns: int = 0
    link_ns: int = 0
    """There and back, for a window of this size."""
    late: bool = False
    """Its heartbeats stay away."""
    broken: bool = False
    """Its circuit breaker is open."""
    spared: bool = False
    exploring: bool = False
    """A window is there to find out how long it takes: one is enough."""


class Draw(NamedTuple):
    """Chance, from 0 up to but not including 1: for the two that are compared, and for whether to find out something."""

    first: float
    second: float
    explore: float


class Estimate(msgspec.Struct, frozen=True):
    """When a peer would have finished, from now."""

    peer: str
    finish_ns: int


class Decision(msgspec.Struct, frozen=True):
    """`here_ns`: when we would have finished (None: we cannot). `compared`: the peers that were looked at closely."""

    where: Literal["here", "peer", "refuse"]
    reason: Reason
    peer: str = ""
    here_ns: int | None = None
    compared: tuple[Estimate, ...] = ()

    @property
    def text(self) -> str:
        """gateway-2: peer is faster (est. 3.1 ms there, 40 ms here)"""
        here = [f"{ms(self.here_ns)} here"] if self.here_ns is not None else []
        who = self.peer or self.where
        named = [each for each in self.compared if each.peer == self.peer]
        if named:
            return f"{who}: {self.reason} (est. {', '.join([f'{ms(named[0].finish_ns)} there', *here])})"
        there = [f"{ms(each.finish_ns)} at {each.peer}" for each in self.compared]
        return f"{who}: {self.reason} (est. {', '.join([*here, *there])})" if there else f"{who}: {self.reason}"


def at_once(wanted: Wanted, here: Here) -> Decision | None:
    """Where it is done here so soon that no peer could be better by MARGIN_NS; None: it matters who the peers are. Most models
    are that fast, and looking at sixteen peers takes longer than their windows."""
    here_ns = here.queue_ns + here.service_ns
    matters = wanted.tried or wanted.privacy is Privacy.GATEWAY or not here.able or here.spared or here.stale
    if matters or not here.service_ns or here_ns > min(MARGIN_NS, wanted.remaining_ns):
        return None
    return _alone(Reason.HERE_FASTER, here_ns)


def decide(wanted: Wanted, here: Here, peers: Sequence[There], draw: Draw) -> Decision:
    """`peers` in any order; names are unique. Refuses only where we are not able and no peer counts."""
    here_ns = here.queue_ns + (here.service_ns or SERVICE_NS_UNKNOWN) if here.able else None
    if wanted.privacy is Privacy.GATEWAY:
        return _alone(Reason.PRIVACY, here_ns)
    if not wanted.connected:
        return _alone(Reason.AWAY, here_ns)
    if not wanted.fits:
        return _alone(Reason.TOO_LARGE, here_ns)
    obstacles = [_obstacle(wanted, here, peer) for peer in peers]
    capable = sorted(
        [peer for peer, obstacle in zip(peers, obstacles, strict=True) if obstacle is None], key=lambda peer: peer.name
    )
    rested = [peer for peer in capable if not peer.spared]
    if not capable:
        return _alone(_furthest([each for each in obstacles if each]), here_ns)
    if not rested and _in_time(wanted, here_ns):
        return _alone(Reason.SPARED, here_ns)
    return _among(wanted, here, here_ns, rested or capable, draw)


def finish_ns(here: Here, peer: There) -> int:
    """From now; a time that nobody has measured is taken to be ours."""
    return peer.link_ns + peer.queue_ns + (peer.service_ns or here.service_ns or SERVICE_NS_UNKNOWN)


_STAGES = (Reason.ALONE, Reason.NO_MODEL, Reason.TRIED, Reason.LATE, Reason.BREAKER, Reason.DEADLINE)
"""What a peer fails by, in the order in which it is looked at."""


def _obstacle(wanted: Wanted, here: Here, peer: There) -> Reason | None:
    if not peer.has_model:
        return Reason.NO_MODEL
    if peer.name in wanted.tried:
        return Reason.TRIED
    if peer.late:
        return Reason.LATE
    if peer.broken:
        return Reason.BREAKER
    return Reason.DEADLINE if finish_ns(here, peer) > wanted.peers_ns else None


def _furthest(obstacles: Sequence[Reason]) -> Reason:
    """Of the peer that came nearest to being asked."""
    return max(obstacles, key=_STAGES.index, default=Reason.ALONE)


def _alone(reason: Reason, here_ns: int | None, compared: tuple[Estimate, ...] = ()) -> Decision:
    return Decision("refuse" if here_ns is None else "here", reason, "", here_ns, compared)


def _in_time(wanted: Wanted, here_ns: int | None) -> bool:
    return here_ns is not None and here_ns <= wanted.remaining_ns


def _among(wanted: Wanted, here: Here, here_ns: int | None, peers: list[There], draw: Draw) -> Decision:
    """Here, or one of two of the peers."""
    two = _two(peers, draw)
    compared = tuple(Estimate(peer.name, finish_ns(here, peer)) for peer in two)
    best, there_ns = min(zip(two, (each.finish_ns for each in compared), strict=True), key=lambda pair: pair[1])

    def there(reason: Reason) -> Decision:
        return Decision("peer", Reason.REISSUED if wanted.tried else reason, best.name, here_ns, compared)

    if here_ns is None:
        return there(Reason.HERE_CANNOT)
    if here.spared and not best.spared:
        return there(Reason.HERE_SPARED)
    if here.stale and not here.queue_ns and _in_time(wanted, 2 * here.service_ns):
        return _alone(Reason.HERE_MEASURED, here_ns, compared)
    if _better(there_ns, here_ns) or not _in_time(wanted, here_ns):
        return there(Reason.PEER_FASTER)
    if not best.service_ns and not best.exploring and not best.spared and draw.explore < EXPLORE_SHARE:
        return there(Reason.EXPLORED)
    return _alone(Reason.HERE_FASTER, here_ns, compared)


def _better(there_ns: int, here_ns: int) -> bool:
    return there_ns * MARGIN < here_ns and there_ns + MARGIN_NS < here_ns


def _two(peers: list[There], draw: Draw) -> list[There]:
    """Two different ones, or the one that there is."""
    first = int(draw.first * len(peers))
    if len(peers) == 1:
        return [peers[first]]
    second = int(draw.second * (len(peers) - 1))
    return [peers[first], peers[second + (second >= first)]]


def ms(nanoseconds: int) -> str:
    """0.31 ms, 3.1 ms, 40 ms, 1,240 ms"""
    value = nanoseconds / 1e6
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.2g} ms"
