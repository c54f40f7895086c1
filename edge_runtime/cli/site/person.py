"""edge-runtime site person: an identity folder for somebody who commands or configures, and a password where one is wanted."""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.trust.authority import Authority

TELL = "to tell a site that runs: edge-runtime site roster --publish --broker URL --identity DIR"


def run(args: argparse.Namespace) -> int:
    """Raises EdgeError."""
    from edge_runtime.cli.site import opening

    authority = opening.authority(args)
    wanted = bool(args.password or args.password_file or args.generate)
    held = next((each.role for each in authority.members if each.name == args.name), None)
    if (wanted or args.no_password) and held == args.role and not args.replace:
        return _change(authority, args, wanted=wanted)
    opening.check_free(authority, args.name, args.role, replace=args.replace)
    return _make(authority, args, wanted=wanted)


def _change(authority: Authority, args: argparse.Namespace, *, wanted: bool) -> int:
    """The password alone: key, certificate and folder stay as they are."""
    shown, kept = _asked(args) if wanted else ("", "")
    authority.set_password(args.name, kept)
    what = "a new password" if wanted else "no password any more: only the certificate counts"
    _say(args, {"site": authority.site, "name": args.name, "role": args.role}, [f"{args.name} has {what}"], shown)
    return 0


def _make(authority: Authority, args: argparse.Namespace, *, wanted: bool) -> int:
    from edge_runtime.cli import identity
    from edge_runtime.cli.site import opening
    from edge_runtime.trust import certificates
    from edge_runtime.trust.identity import Identity

    shown, kept = _asked(args) if wanted else ("", "")
    folder = args.output or Path(f"{args.name}-identity")
    csr = certificates.request(Identity.begin(folder), args.name).decode()
    issued = opening.certify(authority, csr, args.name, args.role, replace=args.replace, password=kept)
    made = Identity.finish(folder, ca=issued.ca.encode(), certificate=issued.certificate.encode(), roster=issued.roster)
    facts = {"site": made.site, "name": made.name, "role": made.role, "key": made.key.fingerprint, "folder": str(folder)}
    lines = [
        f"{made.name} is {made.role} at {made.site}: key {made.key.fingerprint}, folder {folder}",
        f"give the folder to {made.name} and keep no copy; to use it: export {identity.ENVIRONMENT}={folder.resolve()}",
        opening.SPREAD,
    ]
    _say(args, facts, lines, shown)
    return 0


def _asked(args: argparse.Namespace) -> tuple[str, str]:
    """What is to be shown ("": the person knows it), and the hash. Raises EdgeError."""
    from edge_runtime.board.system import secret
    from edge_runtime.cli.site import opening
    from edge_runtime.trust import authority, passwords

    authority.check_role(args.name, args.role)  # before somebody thinks of one
    password = opening.password(args)
    return password if args.generate else "", passwords.hashed(password, secret(passwords.SALT_BYTES))


def _say(args: argparse.Namespace, facts: dict[str, Any], lines: list[str], password: str) -> None:
    from edge_runtime.cli import terminal

    if args.json:
        terminal.emit_json(facts | ({"password": password} if password else {}))
        return
    for line in lines:
        print(line)
    if password:
        print(f"password, shown this once: {password}")
    print(TELL)
