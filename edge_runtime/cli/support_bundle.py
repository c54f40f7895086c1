"""edge-runtime support-bundle: one file for who helps, of a gateway that runs or one that does not start."""

from __future__ import annotations

import argparse
from collections.abc import Mapping
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.support.looking import Looking

SUMMARY = "one file for who helps: state, configuration without secrets, log; no point's value"

MESH_S_MAX = 3.0


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="CONFIG", help="the gateway's configuration; it need not be valid")
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: edge-runtime-GATEWAY.tar.gz in this folder")
    parser.add_argument("--log", type=Path, metavar="FILE", help="where its log goes, if not to the journal")
    parser.add_argument("--json", action="store_true", help="print what went in as JSON")


def run(args: argparse.Namespace) -> int:
    """0, also where parts are missing: then it says which. Raises EdgeError: it cannot be written."""
    import os
    import sys

    import msgspec

    from edge_runtime import config
    from edge_runtime.board.secrets import SystemSecrets
    from edge_runtime.board.system import SystemClock
    from edge_runtime.cli import terminal
    from edge_runtime.sources.registry import Registry
    from edge_runtime.support import making
    from edge_runtime.support.looking import Looking

    try:
        text: str | None = config.text_of(args.file)
    except config.ConfigError as error:
        text = None
        print(f"warning: {error}", file=sys.stderr)
    clock = SystemClock()
    folder = Path(os.path.realpath(args.file)).parent
    looking = Looking(text, str(args.file), folder, Registry(), clock, SystemSecrets, log=args.log)
    target = args.output or Path(f"edge-runtime-{looking.settings.gateway}.tar.gz")
    made = making.make(looking, clock, target, {"mesh.json": lambda: _mesh(args.file, looking)})
    if args.json:
        terminal.emit_json(msgspec.to_builtins(made))
        return 0
    rows = [(part["name"], part.get("bytes"), part.get("missing") or _cut(part)) for part in made.parts]
    terminal.table(("part", "bytes", ""), rows, f"{made.path}: {made.size_bytes} bytes, sha256 {made.sha256}")
    print("no point's value, no record, no key and no password is in it; look for yourself: tar xzf FILE")
    return 0


def _cut(part: Mapping[str, Any]) -> str:
    return f"{part['cut']} bytes before it were left out" if part["cut"] else ""


def _mesh(file: Path, looking: Looking) -> Any:
    """What the site's broker says, if there is one."""
    import asyncio

    from edge_runtime.cli.mesh import finding, show

    if looking.settings.broker.mode == "none":
        return None
    plan = finding.plan(argparse.Namespace(broker=None, config=file, site=None, identity=None, ca=None))
    return asyncio.run(show.look(plan, MESH_S_MAX))
