"""What came, what came twice, what is missing (pure): rows of the ledger -> the figures of `edge-runtime receive --statistics`.

Holes are looked for within one epoch and lane, between the least and the greatest seq that came: an epoch need not begin
at 1 (a restart begins a new epoch, and seq goes on). A hole that a gap record explains is a declared loss, no gap.

Gap records go to every receiver, also those of lanes that a receiver may not have (privacy classes). What they declare is lost
to it only if it has had something of that lane, and only what did not come: a record that one sink has and another has not when
it must go is declared to both.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping

import msgspec

from edge_runtime.outbox import intervals
from edge_runtime.ports import Ranges
from edge_runtime.records import Gap, Lane

HOLES_MAX = 100
"""Holes that are listed a gateway; `gaps` counts all."""


class Hole(msgspec.Struct, frozen=True):
    """Seqs first..last of a lane did not come, and no gap record says why."""

    epoch: str
    lane: Lane
    first: int
    last: int


class Account(msgspec.Struct, kw_only=True):
    """One gateway. received = unique + duplicates; duplicates = repeated (same id) + same_content (other id, same content).

    Duplicates were recognised and not kept; `kept_twice` counts ids that stand in the file twice, which must not be.
    `not_for_here`: records that gap records declare gone, of privacy classes of which nothing came here.
    """

    site: str
    gateway: str
    received: int = 0
    unique: int = 0
    duplicates: int = 0
    repeated: int = 0
    same_content: int = 0
    kept_twice: int = 0
    gaps: int = 0
    holes: list[Hole] = []
    declared_lost: int = 0
    lost_reasons: dict[str, int] = {}
    not_for_here: int = 0
    epochs: int = 0
    lanes: dict[str, int] = {}
    sources: dict[str, int] = {}


class Statistics(msgspec.Struct, kw_only=True):
    """All gateways of one ledger, and their sums."""

    received: int
    unique: int
    duplicates: int
    gaps: int
    declared_lost: int
    gateways: list[Account]


class Rows(msgspec.Struct, frozen=True):
    """What the ledger read."""

    arrivals: list[tuple[str, str, int, int, int]]
    """site, gateway, received, repeated, same_content"""
    kept: list[tuple[str, str, str, str, int]]
    """site, gateway, lane, source, count"""
    twice: list[tuple[str, str, int]]
    """site, gateway, ids that stand in the file more than once"""
    ranges: list[tuple[str, str, str, str, int, int]]
    """site, gateway, epoch, lane, first, last; in order"""
    gaps: list[tuple[str, str, str]]
    """site, gateway, body of a gap record"""


def statistics(rows: Rows) -> Statistics:
    accounts: dict[tuple[str, str], Account] = {}

    def of(site: str, gateway: str) -> Account:
        return accounts.setdefault((site, gateway), Account(site=site, gateway=gateway))

    for site, gateway, received, repeated, same_content in rows.arrivals:
        account = of(site, gateway)
        account.received, account.repeated, account.same_content = received, repeated, same_content
        account.duplicates = repeated + same_content
    for site, gateway, lane, source, count in rows.kept:
        account = of(site, gateway)
        account.unique += count
        account.lanes[lane] = account.lanes.get(lane, 0) + count
        account.sources[f"{lane}/{source}"] = count
    for site, gateway, count in rows.twice:
        of(site, gateway).kept_twice = count
    for (site, gateway), account in accounts.items():
        came: dict[tuple[str, str], Ranges] = {}
        for *_, epoch, lane, first, last in (row for row in rows.ranges if row[:2] == (site, gateway)):
            came[epoch, lane] = (*came.get((epoch, lane), ()), (first, last))
        declared = _declare(account, [body for s, g, body in rows.gaps if (s, g) == (site, gateway)], came)
        _look_for_holes(account, came, declared)
    return _summed(list(accounts.values()))


Came = Mapping[tuple[str, str], Ranges]
"""Seqs by epoch and lane."""


def _declare(account: Account, bodies: Iterable[str], came: Came) -> Came:
    """Counts what gap records say is lost. Returns the ranges that they explain."""
    lanes = {lane for _, lane in came}
    explained: dict[tuple[str, str], Ranges] = {}
    for body in bodies:
        try:
            gap = msgspec.json.decode(body, type=Gap)
        except msgspec.DecodeError:
            account.lost_reasons.setdefault("unreadable gap record", 0)
            continue
        if gap.lane is not gap.lane.kind and gap.lane.value not in lanes:
            account.not_for_here += gap.count
            continue
        key = (gap.epoch, gap.lane.value)
        lost = min(gap.count, intervals.size(tuple(intervals.missing(came.get(key, ()), gap.first, gap.last))))
        account.declared_lost += lost
        if lost:
            account.lost_reasons[gap.reason] = account.lost_reasons.get(gap.reason, 0) + lost
        explained[key] = intervals.union(explained.get(key, ()), ((gap.first, gap.last),))
    return explained


def _look_for_holes(account: Account, came: Came, explained: Came) -> None:
    account.epochs = len({epoch for epoch, _ in came})
    for (epoch, lane), ranges in came.items():
        known = intervals.union(ranges, explained.get((epoch, lane), ()))
        for first, last in intervals.missing(known, ranges[0][0], ranges[-1][1]):
            account.gaps += last - first + 1
            if len(account.holes) < HOLES_MAX:
                account.holes.append(Hole(epoch, Lane(lane), first, last))


def _summed(gateways: list[Account]) -> Statistics:
    return Statistics(
        received=sum(each.received for each in gateways),
        unique=sum(each.unique for each in gateways),
        duplicates=sum(each.duplicates for each in gateways),
        gaps=sum(each.gaps for each in gateways),
        declared_lost=sum(each.declared_lost for each in gateways),
        gateways=gateways,
    )
