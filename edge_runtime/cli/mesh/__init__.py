"""edge-runtime mesh: the gateways of a site, as they tell of themselves; a task for one of them; why a result came from where."""

from __future__ import annotations

import argparse
from collections.abc import Sequence
from pathlib import Path

from edge_runtime.cli import identity

SUMMARY = "show the gateways of a site, send one a task, or ask why a window was computed where it was"

SHOW = "show"
KINDS = (SHOW, "submit", "why")

BROKER_DEFAULT = "mqtt://127.0.0.1:1883"
DEADLINE_S = 2.0


def spelled(words: Sequence[str]) -> list[str]:
    """`mesh`, `mesh FILE` and `mesh --site S` are short for `mesh show ...`."""
    return [*words] if words and words[0] in (*KINDS, "-h", "--help") else [SHOW, *words]


def arguments(parser: argparse.ArgumentParser) -> None:
    kinds = parser.add_subparsers(metavar="WHAT", dest="what", required=True, title="what (show, if nothing is said)")
    show = kinds.add_parser(SHOW, help="the gateways: role, load, models, temperature, tasks", description=SUMMARY)
    show.add_argument("gateway_file", nargs="?", type=Path, metavar="FILE", help="short for --config FILE")
    add_where(show)
    show.add_argument("--json", action="store_true", help="print one JSON object, and end")
    show.add_argument("--seconds", type=_seconds, metavar="N", help="end after so many seconds (default: never; --json: 5)")
    submit = kinds.add_parser("submit", help="send windows to a gateway and print what it makes of them")
    submit.add_argument("model", metavar="MODEL", help="name or name@version, as `edge-runtime mesh` shows it")
    submit.add_argument("file", type=Path, metavar="FILE.npy", help="rows x points: one window; windows x rows x points: several")
    submit.add_argument("--gateway", metavar="NAME", help="this one (default: the one that should be done first)")
    submit.add_argument(
        "--deadline", type=_seconds, default=DEADLINE_S, metavar="S", help=f"of a window (default: {DEADLINE_S:g})"
    )
    why = kinds.add_parser("why", help="ask the gateways why the window of a result was computed where it was")
    why.add_argument("result", metavar="RESULT-ID", help="`id` of a result: see `edge-runtime outbox FILE export --lane result`")
    why.add_argument("--outbox", type=Path, metavar="FILE", help="if no gateway remembers it, look into this outbox")
    for each in (submit, why):
        add_where(each)
        each.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """0; `why`: 1 if nobody knows. Raises EdgeError."""
    import importlib

    if args.what == SHOW:
        args.config = args.config or args.gateway_file
    return int(importlib.import_module(f"edge_runtime.cli.mesh.{args.what}").run(args))


def add_where(parser: argparse.ArgumentParser) -> None:
    """--config, --broker, --site, --identity, --ca: `finding.plan(args)` reads them."""
    parser.add_argument("--config", type=Path, metavar="FILE", help="a gateway's file: its site, and where its broker is")
    parser.add_argument("--broker", metavar="URL", help=f"mqtt://[user:password@]host[:port] (default: {BROKER_DEFAULT})")
    parser.add_argument(
        "--site", metavar="SITE", help="default: the only one there; given without --broker, mDNS looks for it, too"
    )
    identity.add_argument(parser)
    parser.add_argument(
        "--ca", type=Path, metavar="FILE",
        help="ca.pem of the site, where you come with a password: --broker mqtts://NAME@HOST:PORT; it is asked for, or stands "
        "there: NAME:secret:SECRET",
    )  # fmt: skip


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: no number of seconds") from None
    if not 0 < seconds <= 3_600:
        raise argparse.ArgumentTypeError(f"{text} is not between 0 and 3600")
    return seconds
