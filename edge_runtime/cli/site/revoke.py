"""edge-runtime site revoke: ends a membership."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Raises EdgeError."""
    from edge_runtime.cli import terminal
    from edge_runtime.cli.site import opening

    authority = opening.authority(args)
    authority.revoke(args.name, args.why)
    _, roster = opening.roster(authority.folder)
    if args.json:
        terminal.emit_json({"site": authority.site, "revoked": args.name, "revision": roster.revision})
        return 0
    print(f"{args.name} is revoked: the roster of {authority.site} has revision {roster.revision}")
    print(opening.SPREAD)
    return 0
