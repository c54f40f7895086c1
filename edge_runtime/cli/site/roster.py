"""edge-runtime site roster: the signed list of members, as a file, or to a site that runs."""

from __future__ import annotations

import argparse
import sys


def run(args: argparse.Namespace) -> int:
    """Raises EdgeError."""
    from edge_runtime.cli.site import opening
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust import files

    signed, roster = opening.roster(opening.folder(args.folder))
    told = f"roster of {roster.site}, revision {roster.revision}, {len(roster.members)} members"
    if args.publish:
        if not (args.broker or args.config):
            raise EdgeError("--publish: over which broker?", "--broker mqtt://HOST:PORT, or --config FILE of a gateway")
        from edge_runtime.cli.site import spreading

        where = spreading.publish(args, signed, roster)
        print(f"the broker at {where} has it: {told}", file=sys.stderr)
    if args.output is not None:
        files.write(args.output, signed)
        print(f"{args.output}: {told}", file=sys.stderr)
        print(f"at the site: edge-runtime join --roster {args.output.name} --config FILE", file=sys.stderr)
    elif not args.publish:
        print(signed.decode())
    return 0
