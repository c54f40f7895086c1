"""edge-runtime site members: who belongs to the site, as its authority has it."""

from __future__ import annotations

import argparse
import datetime


def run(args: argparse.Namespace) -> int:
    """Raises EdgeError."""
    from edge_runtime.cli import terminal
    from edge_runtime.cli.site import opening
    from edge_runtime.trust.keys import fingerprint

    _, roster = opening.roster(opening.folder(args.folder))
    revoked = {each.key: each for each in roster.revoked}  # a key that was renewed has several certificates
    rows = [
        *(
            (each.name, each.role, each.fingerprint, day(each.not_after_s), _yes(each.password), None, None)
            for each in roster.members
        ),
        *((each.name, None, fingerprint(bytes.fromhex(each.key)), None, None, "revoked", each.why) for each in revoked.values()),
    ]
    columns = ("name", "role", "key", "renew by", "password", "revoked", "why")
    if args.json:
        keys = ("name", "role", "key", "renew_by", "password", "revoked", "why")
        members = [dict(zip(keys, (*row[:4], row[4] is not None, row[5] is not None, row[6]), strict=True)) for row in rows]
        terminal.emit_json({"site": roster.site, "revision": roster.revision, "members": members})
        return 0
    terminal.table(columns, rows, f"site {roster.site}, revision {roster.revision}")
    return 0


def _yes(password: str) -> str | None:
    return "yes" if password else None


def day(seconds: int) -> str:
    return datetime.datetime.fromtimestamp(seconds, datetime.UTC).date().isoformat()
