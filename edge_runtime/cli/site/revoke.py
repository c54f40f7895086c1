"""edge-runtime site revoke: ends a membership, and tells the site where that is wanted."""

from __future__ import annotations

import argparse


def run(args: argparse.Namespace) -> int:
    """Raises EdgeError; one after the revocation says that it is done, and has not reached the site."""
    from edge_runtime.cli import identity, terminal
    from edge_runtime.cli.site import opening
    from edge_runtime.ports import EdgeError

    wanted = bool(args.broker or args.config)
    if wanted:
        identity.needed(args.identity)  # before anything is done
    authority = opening.authority(args)
    authority.revoke(args.name, args.why)
    signed, roster = opening.roster(authority.folder)
    where = ""
    if wanted:
        from edge_runtime.cli.site import spreading

        try:
            where = spreading.publish(args, signed, roster)
        except EdgeError as error:
            cause = f"{args.name} is revoked, but the site does not know it yet: {error.cause}"
            raise EdgeError(cause, f"{error.hint}; then: edge-runtime site roster --publish --broker URL") from None
    if args.json:
        shown = {"site": authority.site, "revoked": args.name, "revision": roster.revision, "published": where or None}
        terminal.emit_json(shown)
        return 0
    print(f"{args.name} is revoked: the roster of {authority.site} has revision {roster.revision}")
    print(f"the broker at {where} has it: the gateways take it within seconds" if where else opening.SPREAD)
    return 0
