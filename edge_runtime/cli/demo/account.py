"""The account of a demo (pure): what was accepted, what the receiver has, and whether nothing is lost or there twice."""

from __future__ import annotations

from collections.abc import Mapping

import msgspec

from edge_runtime.cli.demo.watching import Found, Latency
from edge_runtime.receiver.account import Account as Delivered
from edge_runtime.records import Lane


class Account(msgspec.Struct, frozen=True, kw_only=True, tag_field="type", tag="account"):
    """`accepted` counts what was committed to the outbox, `delivered` what the receiver keeps, each record once; `waiting` is
    still on the disk. `duplicates` stand at the receiver twice, which must not be; `resends` came again, were recognised and
    not kept. `outages` counts those that the gateway noticed, `waited_max` the most records that waited for the cloud.
    `problems` is empty when the account is clean."""

    accepted: int
    by_lane: dict[str, int]
    delivered: int
    lost: int
    duplicates: int
    resends: int
    waiting: int
    outages: int
    waited_max: int
    anomalies: Found
    latency: Latency
    problems: list[str] = []


def account(
    heads: Mapping[Lane, int], delivered: Delivered | None, *, waiting: int, outages: int, outage_due: bool, settled: bool,
    waited_max: int, found: Found, latency: Latency,
) -> Account:  # fmt: skip
    """`heads`: the highest seq by lane of an outbox that began empty. `delivered` None: the receiver knows no such gateway.
    `outage_due`: the uplink was to be away at least once. `settled`: it ran for long enough to show something.

    What came under two ids with the same content was recognised: it is not kept again, and not lost."""
    far_end = delivered or Delivered(site="", gateway="")
    accepted = sum(heads.values())
    # What waits may be at the receiver already, its receipt lost: then it is counted on both sides.
    lost = max(0, accepted - far_end.unique - far_end.same_content - waiting)
    checks = (
        (settled and accepted == 0, "nothing was accepted"),
        (settled and heads.get(Lane.RESULT, 0) == 0, "the model gave no result"),
        (lost > 0, f"{lost} of {accepted} accepted records are not at the receiver"),
        (waiting > 0, f"{waiting} records could not be delivered in time; they are on the disk"),
        (far_end.declared_lost > 0, f"{far_end.declared_lost} records had to go, and were declared lost"),
        (far_end.kept_twice > 0, f"{far_end.kept_twice} records are at the receiver twice"),
        (outage_due and outages == 0, "the gateway never noticed that the uplink was away: nothing is proved"),
    )
    return Account(
        accepted=accepted,
        by_lane={lane.value: count for lane, count in heads.items() if count},
        delivered=far_end.unique,
        lost=lost,
        duplicates=far_end.kept_twice,
        resends=far_end.duplicates,
        waiting=waiting,
        outages=outages,
        waited_max=waited_max,
        anomalies=found,
        latency=latency,
        problems=[text for wrong, text in checks if wrong],
    )


def lines(account: Account) -> list[str]:
    """For people."""
    lanes = ", ".join(f"{count:,} {lane}{'s' if count > 1 else ''}" for lane, count in account.by_lane.items())
    found, latency = account.anomalies, account.latency
    outage = f"; up to {latency.waited_s:.1f} s in an outage" if account.outages else ""
    return [
        f"accepted   {account.accepted:7,}   {lanes or 'nothing'}",
        f"delivered  {account.delivered:7,}   at the receiver",
        f"lost       {account.lost:7,}",
        f"duplicates {account.duplicates:7,}   {account.resends:,} resent records were recognised",
        f"outages    {account.outages:7,}   up to {account.waited_max:,} records waited on the disk",
        f"anomalies  {found.labelled:7,}   by label, in {found.rows:,} rows: {found.true:,} found, {found.missed:,} missed, "
        f"{found.false:,} false alarm{'' if found.false == 1 else 's'}",
        f"latency    {latency.text()} source to receipt{outage}",
        *(f"NOT CLEAN: {problem}" for problem in account.problems),
        *([] if account.problems else ["clean: every accepted record is at the receiver exactly once"]),
    ]
