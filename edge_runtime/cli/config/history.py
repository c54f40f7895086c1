"""`edge-runtime config history`: from the gateway's book: its configurations, newest first."""

from __future__ import annotations

import argparse
import asyncio
from datetime import UTC, datetime
from typing import Any

from edge_runtime.cli import command, terminal
from edge_runtime.cli.commanding import commanded
from edge_runtime.cli.mesh import finding
from edge_runtime.cli.talking import Talk


def run(args: argparse.Namespace) -> int:
    """0; 1: the gateway does not tell. Raises EdgeError."""
    return asyncio.run(_history(args))


async def _history(args: argparse.Namespace) -> int:
    async with Talk(finding.plan(args)) as talk:
        reply = await commanded(talk, args.gateway, "history", {})
    if reply.outcome != "done":
        command.show(reply, as_json=args.json)
        return 1
    found = reply.result.get("history", [])
    if args.json:
        terminal.emit_json(found)
    else:
        terminal.table(("number", "state", "when", "who", "note", "because"), [_cells(each) for each in found], args.gateway)
    return 0


def _cells(one: dict[str, Any]) -> tuple[object, ...]:
    number = None if one.get("number") is None else str(one["number"])
    return number, one.get("state"), _when(one), one.get("by"), one.get("note"), one.get("why")


def _when(one: dict[str, Any]) -> str:
    when = datetime.fromtimestamp(one.get("wall_ns", 0) / 1e9, UTC).strftime("%Y-%m-%d %H:%M:%SZ")
    return when if one.get("synced") else f"{when}?"
