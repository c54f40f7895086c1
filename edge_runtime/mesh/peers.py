"""The other gateways of the site, as far as this one knows (pure): who is there, how busy, whose heartbeats to listen to.

Built from what they say (births, wills, heartbeats, replies). Time is ours alone, monotonic, and durations: what a peer's wall
clock shows changes nothing. A peer is

| state    | when                                                                                                     |
|----------|----------------------------------------------------------------------------------------------------------|
| online   | it was heard on this broker: a birth that is not from the broker's memory (or is from this run), a       |
|          | heartbeat, a reply                                                                                       |
| unproved | only the broker's memory says that it is there: it may be long gone                                      |
| late     | we listen to it, and LATE_PERIODS of its periods went by without a word: it hangs, or is cut off         |
| offline  | itself or its will said so, or it did not come to a new broker within PROVE_S                            |

Work is given only to who is online and listened to: of the others nobody knows what waits there.
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable
from dataclasses import dataclass
from typing import Literal

import msgspec

from edge_runtime.bus.presence import Birth, Load
from edge_runtime.config import Mesh

PEERS_MAX = 1_000
"""Births of more gateways are counted (`beyond`), and the gateways not seen."""

LISTEN_MAX = 16
"""Peers whose heartbeats one gateway hears."""

LATE_PERIODS = 3.5
PERIOD_S_MIN, PERIOD_S_MAX = 0.05, 60.0
"""Of a peer's heartbeat, whatever it says; for how long to wait for it."""

PROVE_S = 10.0
"""A peer that was there has so long to come to a new broker."""

NANOSECONDS_MAX = 2**62

State = Literal["online", "unproved", "late", "offline"]


def period_s(gateways: int, settings: Mesh) -> float:
    """Seconds between two heartbeats of one gateway where there are so many: each gateway hears LISTEN_MAX others at most, and
    itself, and the site's broker shall not deliver more than `heartbeats_per_s_max` heartbeats a second."""
    heard = min(gateways, LISTEN_MAX + 1)
    return max(settings.heartbeat_s_min, gateways * heard / settings.heartbeats_per_s_max)


class Explained(msgspec.Struct, frozen=True, kw_only=True):
    """A line of `edge-runtime mesh`: all that is known of one peer. `why`: of the state."""

    name: str
    state: State
    why: str
    listened: bool
    heard_s: float | None
    """Since its last word; None: the broker's memory is all that we have."""
    birth: Birth
    load: Load | None


@dataclass(slots=True, eq=False)
class Peer:
    """Another gateway, in one of its lives."""

    birth: Birth
    weight: bytes
    """Where it stands in our order of whom to listen to."""
    load: Load | None = None
    queue_ns: int = 0
    """What waits there, as it said last."""
    late: bool = False
    online: bool = True
    proved: bool = False
    """On the connection that we have now."""
    known: bool = False
    """Was proved, maybe on the broker before this one."""
    why: str = ""
    """It is offline."""
    heard_ns: int | None = None
    listened_ns: int | None = None
    """Since when."""

    @property
    def name(self) -> str:
        return self.birth.gateway

    @property
    def spared(self) -> bool:
        """It is hot or on battery."""
        return self.load is not None and (self.load.hot or self.load.battery)

    def service_ns(self, model: str) -> int | None:
        """Of one window, as it says now, else as it said at its birth. None: it does not offer the model; 0: not yet known."""
        offered = next((offer.service_ns for offer in self.birth.offers if offer.model == model), None)
        said = self.load.services.get(model, 0) if self.load is not None else 0
        return offered if offered is None or said <= 0 else min(said, NANOSECONDS_MAX)

    @property
    def here(self) -> bool:
        """It was here last, and nothing says that it is not."""
        return self.online and self.known and not self.late


class Peers:
    """See the module's text. Every `now_ns` is ports.Clock.mono_ns()."""

    def __init__(self, me: str, settings: Mesh) -> None:
        self.beyond = 0
        """Births of gateways for which there is no place."""
        self.strangers = 0
        """Heartbeats of nobody that we know to be here."""
        self.shut = False
        """We stand outside (our name is taken): there is nobody to give work to."""
        self._me = me
        self._settings = settings
        self._peers: dict[str, Peer] = {}
        self._run = ""
        self._joined_ns = 0
        self._awake_ns = 0
        """Since when we listen without a break of our own."""

    # --- what happens ------------------------------------------------------------------------------------------------

    def joined(self, run: str, now_ns: int) -> None:
        """A new connection, to a broker in this life: who was there has to be heard again."""
        self._run, self._joined_ns = run, now_ns
        self.woke(now_ns)
        for peer in self._peers.values():
            peer.proved = False

    def woke(self, now_ns: int) -> None:
        """We did nothing for a while (stopped, asleep): what peers said meanwhile is still to be read."""
        self._awake_ns = now_ns

    def on_birth(self, birth: Birth, *, retained: bool, now_ns: int) -> bool:
        """`retained`: from the broker's memory. True: the life that was here is over."""
        peer = self._peers.get(birth.gateway)
        proof = not retained or (birth.run == self._run != "")
        if peer is not None and not proof and (peer.proved or self._run) and (peer.here or not birth.online):
            return False  # older than what we know
        same = peer is not None and peer.birth.instance == birth.instance
        if not birth.online:
            return peer is not None and same and _end(peer, "it said so, or its will did")
        if peer is None and not self._room():
            self.beyond += 1
            return False
        ended = peer is not None and not same and peer.here
        if peer is None:
            weight = hashlib.blake2b(f"{self._me}/{birth.gateway}".encode(), digest_size=8).digest()
            peer = self._peers[birth.gateway] = Peer(birth, weight)
        elif not same:
            peer = self._peers[birth.gateway] = Peer(birth, peer.weight, listened_ns=peer.listened_ns)
        peer.birth, peer.online = birth, True
        if proof:
            _heard(peer, now_ns)
        return ended

    def on_load(self, load: Load, now_ns: int) -> None:
        peer = self._peers.get(load.gateway)
        if peer is None or peer.birth.instance != load.instance or not peer.online:  # who comes back says so with a birth
            self.strangers += 1
            return
        _heard(peer, now_ns)
        peer.load, peer.queue_ns = load, min(load.queue_ns, NANOSECONDS_MAX)

    def replied(self, name: str, queue_ns: int, now_ns: int) -> None:
        """It answered a task, and said what waits there."""
        peer = self._peers.get(name)
        if peer is not None and peer.online:
            _heard(peer, now_ns)
            peer.queue_ns = min(queue_ns, NANOSECONDS_MAX)

    def forget(self, name: str) -> None:
        """Its birth was taken from the broker's memory: by a person, for good. One that is here is not forgotten."""
        peer = self._peers.get(name)
        if peer is not None and not peer.here:
            del self._peers[name]

    def put_out(self, name: str) -> bool:
        """It was revoked. True: it was here."""
        peer = self._peers.get(name)
        return peer is not None and _end(peer, "it was revoked")

    def check(self, now_ns: int) -> list[str]:
        """Who has become late, or did not come to this broker, since the last time. In order of their names."""
        over = []
        for name, peer in sorted(self._peers.items()):
            was = peer.here
            if peer.online and peer.listened_ns is not None and now_ns >= self._due_ns(peer):
                peer.late = True
            if peer.online and peer.known and not peer.proved and now_ns - self._joined_ns >= PROVE_S * 1e9:
                _end(peer, "it did not come to this broker")
            if was and not peer.here:
                over.append(name)
        return over

    def next_check_s(self, now_ns: int) -> float:
        """Until `check` may find something; at most PERIOD_S_MAX."""
        due = [
            self._due_ns(peer) - now_ns
            for peer in self._peers.values()
            if peer.online and not peer.late and peer.listened_ns is not None
        ]
        if any(peer.online and peer.known and not peer.proved for peer in self._peers.values()):
            due.append(self._joined_ns + int(PROVE_S * 1e9) - now_ns)
        return max(0.0, min([PERIOD_S_MAX, *(each / 1e9 for each in due)]))

    # --- whom to listen to -------------------------------------------------------------------------------------------

    @property
    def gateways(self) -> int:
        """How many there may be, with us."""
        return 1 + sum(peer.online and not self._stale(peer) for peer in self._peers.values())

    @property
    def period_s(self) -> float:
        return period_s(self.gateways, self._settings)

    def listen_to(self, needs: Iterable[str], now_ns: int) -> list[str]:
        """Whose heartbeats to hear from now on, in order of their names: everybody's, or where there are many those of some that
        offer a model that we need. Each gateway takes others of them (rendezvous hashing), so that no peer is heard by all."""
        peers = [peer for peer in self._peers.values() if peer.online]
        if self.gateways - 1 > LISTEN_MAX:
            wanted = frozenset(needs)
            peers = [peer for peer in peers if any(offer.model in wanted for offer in peer.birth.offers)]
        peers.sort(key=lambda peer: (peer.late or self._stale(peer), peer.weight))
        chosen = sorted(peer.name for peer in peers[:LISTEN_MAX])
        for name, peer in self._peers.items():
            if name not in chosen:
                peer.listened_ns = None
            elif peer.listened_ns is None:
                peer.listened_ns = now_ns
        return chosen

    # --- queries -----------------------------------------------------------------------------------------------------

    def peers(self) -> list[Peer]:
        """Those to whom work may go, in order of their names, and those of them that are late."""
        listened = [peer for peer in self._peers.values() if peer.online and peer.listened_ns is not None]
        return [] if self.shut else sorted([peer for peer in listened if peer.proved], key=lambda peer: peer.name)

    def alive(self) -> list[Birth]:
        """Who was here last, in order of their names: on this broker, or on the one before and may still come."""
        return [peer.birth for _, peer in sorted(self._peers.items()) if peer.here]

    def births(self) -> list[Birth]:
        """Of all that may be there, proved or not, in order of their names."""
        return [peer.birth for _, peer in sorted(self._peers.items()) if peer.online]

    def state(self, name: str) -> State | None:
        """None: nobody has heard of it."""
        peer = self._peers.get(name)
        if peer is None or not peer.online:
            return None if peer is None else "offline"
        return "late" if peer.late else "online" if peer.proved else "unproved"

    def explain(self, now_ns: int) -> list[Explained]:
        """All of them, in order of their names."""
        return [
            Explained(
                name=name,
                state=self.state(name) or "offline",
                why=self._why(peer),
                listened=peer.listened_ns is not None,
                heard_s=None if peer.heard_ns is None else (now_ns - peer.heard_ns) / 1e9,
                birth=peer.birth,
                load=peer.load,
            )
            for name, peer in sorted(self._peers.items())
        ]

    # --- inside ------------------------------------------------------------------------------------------------------

    def _why(self, peer: Peer) -> str:
        if not peer.online:
            return peer.why
        if peer.late:
            return "no heartbeat comes"
        if peer.proved:
            return ""
        if peer.known:
            return "it did not come to this broker yet"
        return "the broker remembers it from an earlier life" if self._stale(peer) else "only the broker's memory says so"

    def _stale(self, peer: Peer) -> bool:
        """The broker remembers it from another of its lives. Where nobody of the site hosts the broker, we cannot tell."""
        return not peer.known and self._run != "" and peer.birth.run != self._run

    def _due_ns(self, peer: Peer) -> int:
        """When it is late, if it says nothing until then."""
        said_s = self.period_s if peer.load is None else min(PERIOD_S_MAX, max(PERIOD_S_MIN, peer.load.period_s))
        since_ns = max(peer.heard_ns or 0, peer.listened_ns or 0, self._awake_ns)
        return since_ns + int(LATE_PERIODS * said_s * 1e9)

    def _room(self) -> bool:
        """There is a place for one more: one that is gone gives up its own, else one that was never proved, else one that is
        late."""
        if len(self._peers) < PEERS_MAX:
            return True
        victims = [name for name, peer in self._peers.items() if not peer.online]
        victims = victims or [name for name, peer in self._peers.items() if not peer.known]
        victims = victims or [name for name, peer in self._peers.items() if peer.late]
        if victims:
            del self._peers[victims[0]]
        return bool(victims)


def _heard(peer: Peer, now_ns: int) -> None:
    peer.proved = peer.known = True
    peer.late, peer.why, peer.heard_ns = False, "", now_ns


def _end(peer: Peer, why: str) -> bool:
    """True: it was here."""
    was = peer.here
    peer.online = peer.proved = peer.known = peer.late = False
    peer.why = why
    return was
