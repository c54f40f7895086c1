"""`edge-runtime config get`: what a gateway runs, as it reports it."""

from __future__ import annotations

import argparse
import asyncio
from collections.abc import Mapping
from typing import Any

import msgspec

from edge_runtime.bus.control import Reported
from edge_runtime.cli import terminal
from edge_runtime.cli.config import patching, shape
from edge_runtime.cli.config.seen import Seen
from edge_runtime.cli.config.wanting import look
from edge_runtime.cli.mesh import finding
from edge_runtime.cli.talking import Talk
from edge_runtime.document import closest, dotted
from edge_runtime.ports import EdgeError

COLUMN = 60
"""Where it is said which layer a value comes from."""


def run(args: argparse.Namespace) -> int:
    """0. Raises EdgeError: no such gateway, nothing at the path."""
    path = patching.path_of(args.path) if args.path else ()
    _, report = asyncio.run(reported(args, args.gateway))
    if args.json:
        terminal.emit_json(_json(report, path))
        return 0
    value = _at(report, path)
    print("\n".join(f"# {line}" for line in head(report)))
    for text, here in shape.lines(value, path):
        layer = report.provenance.get(dotted(here)) if args.provenance else None
        print(f"{text:{COLUMN}} # {layer}" if layer else text)
    if args.provenance and (whole := _around(report.provenance, path)):
        print(f"# all else is of {whole}")
    return 0


async def reported(args: argparse.Namespace, gateway: str) -> tuple[Seen, Reported]:
    """What the broker has of this gateway, and its report. Raises EdgeError."""
    async with Talk(finding.plan(args)) as talk:
        seen = await look(talk, gateway)
        if gateway not in seen.reports:
            raise seen.forged.get(gateway) or await talk.unknown(gateway)
        return seen, seen.reports[gateway]


def head(report: Reported) -> list[str]:
    """State, mode, layers: in a few lines."""
    said = [f"{report.gateway}: {report.state}, mode {report.mode}, hash {report.hash[:12]}"]
    if report.cause:
        said.append(f"cause: {report.cause}" + (f" ({report.hint})" if report.hint else ""))
    for layer in report.layers:
        said.append(f"{layer.name}, revision {layer.revision}: {layer.state}" + (f": {layer.cause}" if layer.cause else ""))
    return [line for each in (*said, *map(str, report.errors)) for line in each.splitlines()]


def _at(report: Reported, path: tuple[str, ...]) -> Any:
    if report.config is None:
        raise EdgeError(f"{report.gateway} does not report its configuration", report.hint or "--json shows what it reports")
    try:
        return shape.at(report.config, path)
    except KeyError as missing:
        cause = f"{report.gateway}: nothing is set at {dotted(path)}"
        raise EdgeError(cause, closest(path[-1], missing.args[0], "set there are") or "its default holds") from None


def _around(provenance: Mapping[str, str], path: tuple[str, ...]) -> str:
    """The layer of what has no word of its own."""
    return next((provenance[dotted(path[:n])] for n in range(len(path), -1, -1) if dotted(path[:n]) in provenance), "")


def _json(report: Reported, path: tuple[str, ...]) -> Any:
    said = msgspec.to_builtins(report)
    if not path:
        return said
    start = dotted(path)
    below = {key: layer for key, layer in report.provenance.items() if key == start or key.startswith((f"{start}.", f"{start}["))}
    around = {start: _around(report.provenance, path)} if start not in below and _around(report.provenance, path) else {}
    return {**said, "config": _at(report, path), "provenance": around | below}
