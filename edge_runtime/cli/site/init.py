"""edge-runtime site init: a new site."""

from __future__ import annotations

import argparse
from pathlib import Path


def run(args: argparse.Namespace) -> int:
    """Raises EdgeError: there is one, or no good passphrase."""
    from edge_runtime.board.system import SystemClock
    from edge_runtime.cli import terminal
    from edge_runtime.cli.site import opening
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust.authority import Authority
    from edge_runtime.trust.keys import PASSPHRASE_CHARACTERS_MIN
    from edge_runtime.trust.roster import check_name

    check_name(args.site, "gateway")
    folder = args.folder or Path(f"{args.site}-site")
    if folder.exists() and any(folder.iterdir()):  # before somebody thinks of a passphrase
        raise EdgeError(f"{folder}: not empty", "a site is made in a folder of its own: --folder DIR")
    prompt = f"passphrase for the new site {args.site} (at least {PASSPHRASE_CHARACTERS_MIN} characters): "
    authority = Authority.create(folder, args.site, opening.passphrase(args.passphrase_file, prompt, twice=True), SystemClock())
    mark = opening.mark(authority.ca)
    if args.json:
        terminal.emit_json({"site": args.site, "folder": str(folder), "ca": mark})
        return 0
    print(f"site {args.site} is made in {folder}, authority {mark}")
    print("who has this folder and its passphrase decides who belongs to the site: keep a copy of it in another place, offline")
    print(f"next: edge-runtime site token GATEWAY    lets a gateway in (from here, or with --folder {folder})")
    print("      edge-runtime site person NAME --role engineer    makes a key for you")
    return 0
