"""edge-runtime demo: one gateway at work, end to end, on this machine; nothing has to be set up.

| process  | what it is                                                                                    |
|----------|-----------------------------------------------------------------------------------------------|
| press    | a simulated PLC: replays real sensor rows into Modbus registers, with a label in another one  |
| gateway  | this process, with its local broker as a child                                                |
| uplink   | a TCP relay that is cut for a while                                                           |
| receiver | `edge-runtime receive`: the far end                                                           |
"""

from __future__ import annotations

import argparse
import contextlib
import os
import shutil
import sys
import tempfile
from collections.abc import Iterator
from pathlib import Path

SUMMARY = "show one gateway at work, end to end: press, model, outbox, an uplink that fails, receiver"

SECONDS_MIN = 5.0
LOG = "gateway.log"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds", type=_seconds, metavar="N", help=f"end by itself, with status 0 only if the account is clean (>= {SECONDS_MIN:g})"
    )
    parser.add_argument("--json", action="store_true", help="JSON lines: progress every second, the account at the end")
    parser.add_argument("--plain", action="store_true", help="plain lines also on a terminal")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all files (configuration, outbox, records, logs) here")
    parser.add_argument("--broker-port", type=int, default=0, metavar="N", help="port of the local MQTT broker (default: a free one)")


def run(args: argparse.Namespace) -> int:
    """0: the account is clean. 1: it is not, or something failed."""
    import asyncio

    from edge_runtime.cli.demo import settings, show
    from edge_runtime.cli.demo.performance import Performance

    live = sys.stdout.isatty() and not (args.json or args.plain)
    settings.check_extras(live)
    folder = _folder(args.keep)
    shown = show.choose(args.json, live)
    clean = False
    try:
        with _stderr_to(folder / LOG):
            account, seconds = asyncio.run(_perform(Performance, folder, args, shown))
        shown.account(account, seconds)
        clean = not account.problems
    except asyncio.CancelledError:
        raise KeyboardInterrupt from None
    finally:
        if args.keep or not clean:
            print(f"files: {folder}", file=sys.stderr)
        else:
            shutil.rmtree(folder)
    return 0 if clean else 1
