"""Brings what the authority has signed to a site that runs: connects to its broker as a person of the site.

Any member may say a roster, for the authority has signed it; renewed certificates are brought by engineers. What counts is that
the broker has it: a broker answers also what it throws away, so it is heard back.
"""

from __future__ import annotations

import asyncio
import sys
from argparse import Namespace
from contextlib import suppress
from dataclasses import replace
from typing import TYPE_CHECKING

from msgspec import structs

from edge_runtime.bus import topics
from edge_runtime.cli import identity
from edge_runtime.cli.mesh import finding
from edge_runtime.cli.talking import Talk
from edge_runtime.ports import EdgeError
from edge_runtime.trust.roster import Forged

if TYPE_CHECKING:
    from edge_runtime.trust.roster import Roster

REVOKED_HOST = "note: the gateway that hosts this broker is revoked, and may keep it from the others: see `edge-runtime mesh`"

HEARD_S_MAX = 5.0
"""The broker has it by then, or it does not take it from us."""


def plan(args: Namespace, site: str, signed: bytes, *, to_anybody: bool = False) -> finding.Plan:
    """As whom, and where. `signed`: the newest roster; from now on it is that of our own folder, too. `to_anybody`: also over the
    broker of a gateway that it revokes; often there is no other, and all may know what is said. Raises EdgeError."""
    who = identity.needed(args.identity)
    if who.site != site:
        raise EdgeError(f"your identity is of the site {who.site}, the authority of {site}", "--identity DIR of the other one")
    with suppress(Forged):  # the site has another one than the authority: see `check_newest`
        who.take_roster(signed)
    if who.is_revoked:
        raise EdgeError(f"{who.name} is revoked at {site}, and gets into no broker of it", "--identity DIR of somebody else")
    found = finding.plan(args)
    return replace(found, identity=replace(who, roster=structs.replace(who.roster, crl=""))) if to_anybody else found


def check_newest(talk: Talk, roster: Roster) -> None:
    """Raises EdgeError: the site has a newer one."""
    newest = talk.identity.roster.revision if talk.identity else 0
    if newest > roster.revision:
        hint = "was the authority's folder restored from a backup? restore the newest one there is"
        raise EdgeError(f"{talk.where}: the site has revision {newest}, the authority {roster.revision}", hint)


async def put(talk: Talk, topic: str, payload: bytes) -> None:
    """Returns when the broker has it. Raises EdgeError."""
    await talk.listen(topic)
    await talk.publish(topic, payload, retain=True)
    until_s = asyncio.get_running_loop().time() + HEARD_S_MAX
    while (message := await talk.hear(until_s)) is not None:
        if message.topic == topic and message.payload == payload:
            return
    raise EdgeError(f"{talk.where}: the broker did not take {topic} from you", "who may: engineers of the site")


def publish(args: Namespace, signed: bytes, roster: Roster) -> str:
    """The roster, now. Returns where. Raises EdgeError."""
    site = roster.site
    place = plan(args, site, signed, to_anybody=True)

    async def main() -> str:
        async with Talk(place) as talk:
            check_newest(talk, roster)
            await put(talk, topics.roster(site), signed)
            if roster.is_revoked(serial=talk.host_serial):
                print(REVOKED_HOST, file=sys.stderr)
            return talk.where

    return asyncio.run(main())
