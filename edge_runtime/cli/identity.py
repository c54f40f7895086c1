"""Who uses the command line: the identity folder of a person, from --identity DIR or EDGE_RUNTIME_IDENTITY.

`edge-runtime site person` makes the folder. With it a verb signs what it publishes, and connects to the site's broker.
"""

from __future__ import annotations

import argparse
import os
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.trust.identity import Identity

ENVIRONMENT = "EDGE_RUNTIME_IDENTITY"


def add_argument(parser: argparse.ArgumentParser) -> None:
    """--identity; `find(args.identity)` reads it."""
    parser.add_argument(
        "--identity", type=Path, metavar="DIR", help=f"your key and certificate for this site (default: ${ENVIRONMENT})"
    )


def find(given: Path | None) -> Identity | None:
    """None: nobody said who it is; good where there is no site. Raises EdgeError: a folder that is named must be good."""
    folder = given or Path(os.environ.get(ENVIRONMENT, ""))
    if folder == Path():
        return None
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust.identity import Identity

    identity = Identity.load(folder.expanduser())
    if identity is None:
        named_by = "--identity" if given else f"${ENVIRONMENT}"
        raise EdgeError(f"{named_by} {folder}: no identity is there", "`edge-runtime site person NAME --role ROLE` makes one")
    return identity


def needed(given: Path | None) -> Identity:
    """Raises EdgeError, which says how to give one."""
    from edge_runtime.ports import EdgeError

    if identity := find(given):
        return identity
    hint = f"--identity DIR or {ENVIRONMENT}=DIR; `edge-runtime site person NAME --role ROLE` makes one"
    raise EdgeError("this site takes it from its members only, and you have not said who you are", hint)
