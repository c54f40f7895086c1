"""edge-runtime site roster: the signed list of members as a file."""

from __future__ import annotations

import argparse
import sys


def run(args: argparse.Namespace) -> int:
    """Raises EdgeError."""
    from edge_runtime.cli.site import opening
    from edge_runtime.trust import files

    signed, roster = opening.roster(opening.folder(args.folder))
    if args.output is None:
        print(signed.decode())
        return 0
    files.write(args.output, signed)
    print(f"{args.output}: roster of {roster.site}, revision {roster.revision}, {len(roster.members)} members", file=sys.stderr)
    print(f"at the site: edge-runtime join --roster {args.output.name} --config FILE", file=sys.stderr)
    return 0
