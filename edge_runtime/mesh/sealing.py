"""What gateways of a site with an authority say to each other, so that nobody else can say it, not even whoever hosts the broker
(decides; the keys are trust/keys.py).

birth, will      signed by the gateway (Ed25519): anybody in the site can check who it was. It carries the public half of a key
                 agreement that is made anew with each start.
task, reply      end with a tag (HMAC-SHA256, cut to 16 bytes) by a key that only the two have: 2 us, where two signatures
                 would cost 150. It covers the kind, who it is from and to whom: nothing can be sent back as the other.

A tag says nothing of when. A task that is replayed finds its answer or a deadline that is over; a reply, nobody who waits.
"""

from __future__ import annotations

import hashlib
import hmac

from edge_runtime.bus.messages import BadMessage
from edge_runtime.ports import EdgeError
from edge_runtime.trust import envelope
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.keys import Agreement
from edge_runtime.trust.roster import Forged

TAG_BYTES = 16
PEERS_MAX = 2_000
"""Whose keys are kept: as many as a site has members."""

_Way = tuple[str, str, str]
"""Kind of the frame, who it is from, and to whom."""

BIRTH = "birth"
"""Context of its signature."""

_BLOCK_BYTES = 64
"""Of SHA-256."""


class _Begun:
    """HMAC-SHA256 (RFC 2104) whose key, and what every message begins with, were hashed beforehand. Python's own `hmac` can be
    copied, too, but then a task's four tags make it 3 % longer: with the caches that a task leaves cold, each call counts."""

    def __init__(self, key: bytes, head: bytes) -> None:
        """`key`: at most 64 bytes."""
        key = key.ljust(_BLOCK_BYTES, b"\0")
        self._inner = hashlib.sha256(bytes(each ^ 0x36 for each in key) + head)
        self._outer = hashlib.sha256(bytes(each ^ 0x5C for each in key))

    def tag(self, frame: bytes) -> bytes:
        inner, outer = self._inner.copy(), self._outer.copy()
        inner.update(frame)
        outer.update(inner.digest())
        return outer.digest()[:TAG_BYTES]


class Sealing:
    """Of one gateway, from its start to its end."""

    def __init__(self, identity: Identity) -> None:
        self._identity, self._name = identity, identity.name
        self._agreement = Agreement()
        self._publics: dict[str, str] = {}
        self._tags: dict[str, dict[_Way, _Begun]] = {}
        """Begun with the key that we share, by gateway."""
        self._good: dict[_Way, _Begun] = {}
        """Those of them whose other end is not revoked, by the roster `_by`."""
        self._by = identity.roster
        self.refused_births = False
        """There were some: with another roster they may be good."""
        self._signers: dict[str, str] = {}
        """Fingerprint of the key that has signed the newest birth, by gateway."""

    @property
    def public(self) -> str:
        """Our half of the key agreement, in hex: for our birth."""
        return self._agreement.public.hex()

    def sign(self, birth: bytes) -> bytes:
        return self._identity.sign(birth, BIRTH)

    def open_birth(self, gateway: str, payload: bytes) -> bytes:
        """Raises EdgeError: nobody of the site signed it, or somebody else than this gateway."""
        try:
            opened = envelope.open(payload, BIRTH, self._identity.roster)
        except Forged:
            self.refused_births = True
            raise
        if (opened.role, opened.by) != ("gateway", gateway):
            raise BadMessage(f"birth: of {gateway}, signed by {opened.by} ({opened.role})", "somebody speaks in another's name")
        if gateway in self._signers or len(self._signers) < PEERS_MAX:
            self._signers[gateway] = opened.key
            self._good.clear()
        return opened.document

    def forget_revoked(self) -> list[str]:
        """With a new roster: whose birth was signed by a key that it does not have is met no more. Returns their names. Until
        then their keys are kept, but not used."""
        gone = [name for name, key in self._signers.items() if self._identity.roster.member(key) is None]
        for name in gone:
            self._signers.pop(name)
            self._publics.pop(name, None)
            self._tags.pop(name, None)
        self._good.clear()
        return gone

    def meet(self, gateway: str, public: str) -> None:
        """What its birth says."""
        if self._publics.get(gateway) != public:
            if len(self._publics) >= PEERS_MAX:
                self._publics.clear()
                self._tags.clear()
            self._publics[gateway] = public
            self._tags.pop(gateway, None)
            self._good.clear()

    def seal(self, kind: str, to: str, frame: bytes) -> bytes:
        """The frame with its tag. Raises BadMessage: that gateway has told no key."""
        way = (kind, self._name, to)
        begun = self._good.get(way) if self._by is self._identity.roster else None
        return frame + (begun or self._begin(to, way)).tag(frame)

    def open(self, kind: str, sender: str, payload: bytes) -> bytes:
        """The frame. Raises BadMessage."""
        frame, way = payload[:-TAG_BYTES], (kind, sender, self._name)
        begun = self._good.get(way) if self._by is self._identity.roster else None
        if not hmac.compare_digest(payload[-TAG_BYTES:], (begun or self._begin(sender, way)).tag(frame)):
            raise BadMessage(f"{kind}: the tag is not that of {sender}", "forged, or from before one of the two started again")
        return frame

    def _begin(self, peer: str, way: _Way) -> _Begun:
        """The first time with each roster: what can be known beforehand is not asked four times a task."""
        if self._by is not self._identity.roster:
            self._good.clear()
            self._by = self._identity.roster
        signer = self._signers.get(peer)
        if signer is not None and self._by.member(signer) is None:
            raise BadMessage(f"{peer} was revoked", "edge-runtime site members")
        begun = self._tags.get(peer, {}).get(way)
        if begun is None:
            begun = _Begun(self._key(peer), "\0".join((*way, "")).encode())
            self._tags.setdefault(peer, {})[way] = begun
        self._good[way] = begun
        return begun

    def _key(self, peer: str) -> bytes:
        try:
            return self._agreement.key_with(bytes.fromhex(self._publics[peer]), b"tasks")
        except KeyError:  # only its will was heard
            raise BadMessage(f"{peer} has told no key yet", "its birth comes with the next connection") from None
        except (ValueError, EdgeError):
            raise BadMessage(f"birth: the key of {peer} is none", "update it") from None
