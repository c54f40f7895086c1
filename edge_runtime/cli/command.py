"""edge-runtime command: tells a gateway to do something, once, and shows what came of it."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from typing import TYPE_CHECKING, Any

from edge_runtime.cli.mesh import add_where

if TYPE_CHECKING:
    from edge_runtime.bus.control import CommandReply

SUMMARY = "tell a gateway to do something: write a point, restart a part, drain, reload a model, ..."

GOOD = ("verified", "written", "done")


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gateway", metavar="GATEWAY")
    parser.add_argument("verb", metavar="VERB", help="write, reload, restart, drain, ...: the gateway says which there are")
    parser.add_argument("values", nargs="*", metavar="NAME=VALUE", help="point=press/speed value=1200; VALUE is YAML")
    parser.add_argument("--valid", type=_valid, default=10.0, metavar="S", help="it expires then (default: 10, at most 600)")
    parser.add_argument("--wait", type=_seconds, default=60.0, metavar="S", help="for the answer (default: 60)")
    parser.add_argument("--id", metavar="ID", help="only ask what came of this command: nothing is done")
    parser.add_argument("--json", action="store_true", help="print the answer as JSON")
    add_where(parser)


def run(args: argparse.Namespace) -> int:
    """0: verified, written or done; 1: anything else. Raises EdgeError."""
    import asyncio

    return asyncio.run(_run(args, _values(args.values)))


async def _run(args: argparse.Namespace, values: dict[str, Any]) -> int:
    import sys

    import msgspec

    from edge_runtime.board.system import SystemDice
    from edge_runtime.cli.commanding import commanded
    from edge_runtime.cli.mesh import finding
    from edge_runtime.cli.talking import Talk
    from edge_runtime.control.book import EXPIRED

    async with Talk(finding.plan(args)) as talk:
        name = args.id or SystemDice().token()
        print(f"id {name}", file=sys.stderr, flush=True)  # before it is sent: who is cut off can ask for it
        reply = await commanded(
            talk, args.gateway, args.verb, values, name=name, asks_only=bool(args.id), valid_s=args.valid, wait_s=args.wait
        )
    if args.id and reply.outcome == "refused" and reply.cause == EXPIRED:
        reply = msgspec.structs.replace(reply, cause="it was never begun there, or long ago", hint="")
    show(reply, as_json=args.json)
    return 0 if reply.outcome in GOOD else 1


def show(reply: CommandReply, *, as_json: bool) -> None:
    """What came of it; what went wrong on standard error."""
    import sys

    import msgspec

    from edge_runtime.cli import terminal
    from edge_runtime.cli.config import shape

    if as_json:
        terminal.emit_json(msgspec.to_builtins(reply))
        return
    print(reply.outcome)
    for line in shape.text(reply.result) if reply.result else ():
        print(f"  {line}")
    if reply.cause:
        print(f"{'note' if reply.outcome in GOOD else 'error'}: {reply.cause}", file=sys.stderr)
    if reply.hint:
        print(f"hint: {reply.hint}", file=sys.stderr)


def _values(said: Sequence[str]) -> dict[str, Any]:
    """Raises EdgeError."""
    from edge_runtime.cli.config import patching
    from edge_runtime.ports import EdgeError

    found: dict[str, Any] = {}
    for each in said:
        name, is_one, value = each.partition("=")
        if not is_one or not name.isidentifier():
            raise EdgeError(f"{each!r} is not NAME=VALUE", "point=press/speed value=1200")
        if name in found:
            raise EdgeError(f"{name} is given twice", "say it once")
        found[name] = patching.yaml(value, each)
    return found


def _valid(text: str) -> float:
    """As long as a gateway takes it for (control.book_file.COMMAND_S_MAX)."""
    return _seconds(text, 600)


def _seconds(text: str, most_s: int = 3_600) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: no number of seconds") from None
    if not 0 < seconds <= most_s:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and {most_s}")
    return seconds
