"""edge-runtime secret: puts a secret where a gateway finds it, and lists which ones its configuration asks for."""

from __future__ import annotations

import argparse
import sys
from pathlib import Path
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.board.secrets import SystemSecrets

SUMMARY = "keep what a configuration calls secret:NAME: set it, list what is asked for"

_WHERE = "the gateway's configuration, or the folder of its secrets"


def arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="WHAT", required=True, dest="what")
    put = verbs.add_parser("set", help="read it from the terminal, or from standard input, into a file that only you can read")
    put.add_argument("name", metavar="NAME", help="as in secret:NAME")
    listed = verbs.add_parser("list", help="which ones are asked for or kept, where, and where each is found; never their values")
    for verb in (put, listed):
        verb.add_argument("where", type=Path, metavar="WHERE", help=_WHERE)
    listed.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """list: 1 where one that is asked for cannot be had. Raises EdgeError."""
    return _set(args) if args.what == "set" else _list(args)


def _set(args: argparse.Namespace) -> int:
    secrets, _ = _opened(args.where)
    value = _typed(args.name).removesuffix("\n").removesuffix("\r")
    print(f"secret {args.name} is in {secrets.put(args.name, value)}; it counts from the next connection on")
    return 0


def _typed(name: str) -> str:
    """Raises EdgeError."""
    from edge_runtime.ports import EdgeError

    if sys.stdin is None:
        raise EdgeError("standard input is closed", f"edge-runtime secret set {name} ... < FILE")
    if sys.stdin.isatty():
        import getpass

        return getpass.getpass(f"{name}: ")
    try:
        text = sys.stdin.read()
        text.encode()  # in the C locale what is no text comes as lone surrogates
    except UnicodeError:
        raise EdgeError(f"secret {name}: is no text in UTF-8", "is it the right file?") from None
    return text


def _list(args: argparse.Namespace) -> int:
    from edge_runtime.cli import terminal
    from edge_runtime.ports import SecretError

    secrets, asked = _opened(args.where)
    rows, missing = [], False
    for name in dict.fromkeys([*asked, *secrets.names()]):
        try:
            secrets.get(name)
            found = secrets.place(name)
        except SecretError as error:
            found, missing = f"{error.cause} ({error.hint})", missing or name in asked
        rows.append((name, ", ".join(asked.get(name, ())), found))
    if args.json:
        terminal.emit_json([{"name": name, "asked_by": list(asked.get(name, ())), "found": found} for name, _, found in rows])
    else:
        terminal.table(("secret", "asked for by", "found in"), rows, str(secrets.folder))
    return int(missing)


def _opened(where: Path) -> tuple[SystemSecrets, dict[str, list[str]]]:
    """The secrets of a configuration, and which keys of it ask for which one. It need not be valid."""
    from edge_runtime import config, document, references
    from edge_runtime.board.secrets import SystemSecrets
    from edge_runtime.control.origin import bare, said_by

    if where.is_dir():
        return SystemSecrets(where), {}
    said = said_by(config.text_of(where))
    asked: dict[str, list[str]] = {}
    for path, name in references.found(said):
        asked.setdefault(name, []).append(document.dotted(path))
    return SystemSecrets(where.resolve().parent / config.secrets_folder(bare(said))), asked
