"""`edge-runtime config rollback`: the last good configuration goes on trial."""

from __future__ import annotations

import argparse
import asyncio
import sys

from edge_runtime.cli import command
from edge_runtime.cli.commanding import commanded
from edge_runtime.cli.config import wanting
from edge_runtime.cli.config.following import Following
from edge_runtime.cli.mesh import finding
from edge_runtime.cli.talking import Talk
from edge_runtime.ports import Message


def run(args: argparse.Namespace) -> int:
    """0: it is active; 1: it is not. Raises EdgeError."""
    return asyncio.run(_rollback(args))


async def _rollback(args: argparse.Namespace) -> int:
    out = sys.stderr if args.json else sys.stdout
    async with Talk(finding.plan(args)) as talk:
        seen = await wanting.look(talk, args.gateway)
        following = Following(None, [args.gateway])

        def meanwhile(message: Message) -> None:
            if (name := seen.take(message)) and (line := following.take(seen.reports[name])):
                print(line, file=out, flush=True)

        reply = await commanded(talk, args.gateway, "rollback", {}, aside=meanwhile)
        if reply.outcome != "done":
            command.show(reply, as_json=args.json)
            return 1
        print(f"{args.gateway}: {reply.result.get('does') or 'nothing changes'}", file=out, flush=True)
        await wanting.follow(talk, seen, following, lambda line: print(line, file=out, flush=True))
        return wanting.finish(following, as_json=args.json)
