"""`edge-runtime config set`: changes values, on top of what the layer says already."""

from __future__ import annotations

import argparse
import asyncio
import sys

from edge_runtime.bus import control as messages
from edge_runtime.bus.control import Desired
from edge_runtime.cli.commanding import commanded
from edge_runtime.cli.config import patching
from edge_runtime.cli.config.wanting import Wanting, want, wanting
from edge_runtime.cli.talking import Talk
from edge_runtime.ports import EdgeError
from edge_runtime.trust import envelope


def run(args: argparse.Namespace) -> int:
    """0: active; 1: it was not taken, or taken back. Raises EdgeError."""
    change = patching.patch([patching.assignment(each) for each in args.changes])
    return asyncio.run(_set(args, change))


async def _set(args: argparse.Namespace, change: dict[str, object]) -> int:
    async with wanting(args) as wanted:
        held = await _in_force(wanted)
        wanted.before = held.content if held else {}
        return await want(wanted, patching.on_top(held, change, wanted.layer))


async def _in_force(wanted: Wanting) -> Desired | None:
    """What the layer says. Where the document on the broker is not the one that counts (refused, taken back, old) it is not
    built on: a gateway knows which one does. Raises EdgeError."""
    if wanted.in_force:
        return wanted.held
    gateway = who_knows(wanted)
    print(f"note: this builds on the document of {wanted.layer} that is in force on {gateway}", file=sys.stderr)
    reply = await commanded(wanted.talk, gateway, "history", {"layer": wanted.layer})
    if reply.outcome != "done":
        raise EdgeError(f"{gateway} does not say what counts for {wanted.layer}: {reply.cause}", reply.hint)
    payload = reply.result.get("document")
    return None if payload is None else believed(wanted.talk, wanted.target, gateway, str(payload).encode())


def who_knows(wanted: Wanting) -> str:
    """A gateway that is there and knows what counts in the layer. Raises EdgeError: all that know it are offline."""
    newest = wanted.states[0][1].revision
    names = [name for name, each in wanted.states if each.revision == newest]
    for name in names:
        if wanted.seen.online.get(name, True):
            return name
    cause = f"layer {wanted.layer}: the document on the broker is not in force, and who knows which one is, is offline: "
    apply = f"`edge-runtime config apply {wanted.args.target} FILE --patch`"
    hint = f"set it when {names[0]} is back; or {apply}: it is taken then, in place of all that the layer says"
    raise EdgeError(cause + ", ".join(names), hint)


def believed(talk: Talk, target: str, gateway: str, payload: bytes) -> Desired:
    """The document of a layer, as a gateway tells it: as a person has signed it; or without its secrets, and so without the
    signature. Of its own layer the gateway may be believed: nobody else gets what is built on it. Raises EdgeError."""
    if talk.roster is None or envelope.is_signed(payload):
        return messages.desired(talk.of_person(payload), target)
    if target != f"gw/{gateway}":
        cause = f"the document of {target} that is in force holds secrets, which a gateway tells to nobody: it cannot be built on"
        raise EdgeError(cause, f"`edge-runtime config apply {target} FILE --patch` puts a document in its place: no *** in it")
    return messages.desired(payload, target)
