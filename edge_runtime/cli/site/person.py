"""edge-runtime site person: an identity folder for somebody who commands or configures."""

from __future__ import annotations

import argparse
from pathlib import Path


def run(args: argparse.Namespace) -> int:
    """Raises EdgeError."""
    from edge_runtime.cli import identity, terminal
    from edge_runtime.cli.site import opening
    from edge_runtime.trust import certificates
    from edge_runtime.trust.identity import Identity

    authority = opening.authority(args)
    opening.check_free(authority, args.name, args.role, replace=args.replace)
    folder = args.output or Path(f"{args.name}-identity")
    csr = certificates.request(Identity.begin(folder), args.name).decode()
    issued = opening.certify(authority, csr, args.name, args.role, replace=args.replace)
    made = Identity.finish(folder, ca=issued.ca.encode(), certificate=issued.certificate.encode(), roster=issued.roster)
    if args.json:
        shown = {"site": made.site, "name": made.name, "role": made.role, "key": made.key.fingerprint, "folder": str(folder)}
        terminal.emit_json(shown)
        return 0
    print(f"{made.name} is {made.role} at {made.site}: key {made.key.fingerprint}, folder {folder}")
    print(f"give the folder to {made.name} and keep no copy; to use it: export {identity.ENVIRONMENT}={folder.resolve()}")
    print(opening.SPREAD)
    return 0
