"""Receipts: of several batches, and whose they are (pure)."""

from __future__ import annotations

from collections.abc import Callable, Iterable

from edge_runtime.outbox import intervals
from edge_runtime.ports import Ranges, Receipt
from edge_runtime.records import Lane
from edge_runtime.trust import envelope
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.roster import Forged, Role

CONTEXT = "receipt"
"""Of the signature."""
GIVERS: tuple[Role, ...] = ("receiver", "gateway")


def opener(receiver: str, identity: Identity) -> Callable[[bytes], bytes]:
    """What opens the signed receipts of this receiver, by the roster of that moment: a forged one would make a gateway forget
    what nobody has. It raises Forged. An old one is as good as a new one: what a receiver has, it has."""

    def opened(payload: bytes) -> bytes:
        found = envelope.open(payload, CONTEXT, identity.roster)
        if found.by != receiver or found.role not in GIVERS:
            hint = f"edge-runtime site person {receiver} --role receiver"
            raise Forged(f"a receipt of {receiver}, signed by {found.by} ({found.role})", hint)
        return found.document

    return opened


def merged(receipts: Iterable[Receipt]) -> Receipt:
    """One that says all that they say."""
    ranges: dict[tuple[str, Lane], Ranges] = {}
    for each in receipts:
        for key, some in each.ranges.items():
            ranges[key] = intervals.union(ranges.get(key, ()), some)
    return Receipt(ranges)
