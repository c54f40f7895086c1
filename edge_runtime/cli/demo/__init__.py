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
from typing import TYPE_CHECKING

if TYPE_CHECKING:
    from edge_runtime.cli.demo.ending import Ending

SUMMARY = "show one gateway at work (or a mesh of several), end to end: press, model, outbox, an uplink that fails, receiver"

SECONDS_MIN = 5.0
GATEWAYS_MAX = 9
"""Each is a process of its own, on this machine."""
LOG = "gateway.log"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "--seconds",
        type=_seconds,
        metavar="N",
        help=f"end by itself, with status 0 only if the account is clean (>= {SECONDS_MIN:g})",
    )
    parser.add_argument("--json", action="store_true", help="JSON lines: progress every second, the account at the end")
    parser.add_argument("--plain", action="store_true", help="plain lines also on a terminal")
    parser.add_argument("--keep", type=Path, metavar="DIR", help="keep all files (configuration, outbox, records, logs) here")
    parser.add_argument(
        "--gateways",
        type=_gateways,
        default=1,
        metavar="N",
        help=f"a mesh of so many gateways (2 to {GATEWAYS_MAX}); one is slow and helped by the others, one is killed",
    )
    parser.add_argument(
        "--broker-port",
        type=_port,
        default=0,
        metavar="N",
        help="port of the local MQTT broker (default: a free one; with --gateways always)",
    )


def run(args: argparse.Namespace) -> int:
    """0: the account is clean. 1: it is not, or something failed."""
    import asyncio

    from edge_runtime.cli.demo import settings
    from edge_runtime.cli.demo.ending import Ending
    from edge_runtime.ports import EdgeError

    if args.broker_port and args.gateways > 1:
        raise EdgeError("--broker-port is for one gateway: in a site each has a port of its own", "leave it out")
    live = sys.stdout.isatty() and sys.stdout.encoding.lower().startswith("utf") and not (args.json or args.plain)
    settings.check_extras(live)
    broker_port = settings.free_port(args.broker_port)
    clean = False
    with Ending() as ending:
        folder = _folder(args.keep)
        try:
            clean = _shown(args, folder, broker_port, live, ending)
        except asyncio.CancelledError:
            raise KeyboardInterrupt from None
        finally:
            if args.keep or not (clean or ending.at_once):
                print(f"files: {folder}", file=sys.stderr)
            else:
                shutil.rmtree(folder)
    return 0 if clean else 1


def _shown(args: argparse.Namespace, folder: Path, broker_port: int, live: bool, ending: Ending) -> bool:
    """True: the account is clean."""
    import asyncio

    from edge_runtime.cli.demo import show
    from edge_runtime.cli.demo.performance import Performance
    from edge_runtime.cli.demo.site import show as site
    from edge_runtime.cli.demo.site.performance import SitePerformance

    if args.gateways == 1:
        with _stderr_to(folder / LOG):
            one = Performance(folder, args.seconds, broker_port, show.choose(args.json, live), ending)
            account = asyncio.run(one.run())
        return show.finish(*account, args.json)
    with _stderr_to(folder / LOG):
        many = SitePerformance(folder, args.seconds, args.gateways, site.choose(args.json, live), ending)
        accounts = asyncio.run(many.run())
    return site.finish(*accounts, args.json)


def _seconds(text: str) -> float:
    try:
        seconds = float(text)
    except ValueError:
        raise argparse.ArgumentTypeError(f"{text}: no number of seconds") from None
    if not seconds >= SECONDS_MIN:
        raise argparse.ArgumentTypeError(f"{text}: at least {SECONDS_MIN:g}, or the outage is too short to be seen")
    return seconds


def _gateways(text: str) -> int:
    if not (text.isdecimal() and 1 <= int(text) <= GATEWAYS_MAX):
        raise argparse.ArgumentTypeError(f"{text}: 1 to {GATEWAYS_MAX} gateways")
    return int(text)


def _port(text: str) -> int:
    if not (text.isdecimal() and int(text) < 65_536):
        raise argparse.ArgumentTypeError(f"{text}: no port number")
    return int(text)


def _folder(keep: Path | None) -> Path:
    """An empty folder: the account is of what this run accepts."""
    from edge_runtime.ports import EdgeError

    if keep is None:
        try:
            return Path(tempfile.mkdtemp(prefix="edge-runtime-demo-"))
        except OSError as error:
            raise EdgeError(f"no folder for its files: {error.strerror}", "give one: --keep DIR, or TMPDIR=DIR") from None
    try:
        keep.mkdir(parents=True, exist_ok=True)
        if any(keep.iterdir()):
            raise EdgeError(f"{keep} is not empty", "give a new folder with --keep")
    except OSError as error:
        raise EdgeError(f"{keep}: {error.strerror}", "give a folder that can be made and written") from None
    return keep.resolve()


@contextlib.contextmanager
def _stderr_to(file: Path) -> Iterator[None]:
    """The gateway's log, and what libraries in C print: else they would stand in the middle of the view."""
    sys.stderr.flush()
    saved = os.dup(2)
    try:
        with file.open("ab") as log:
            os.dup2(log.fileno(), 2)
        yield
    finally:
        with contextlib.suppress(OSError):  # the disk is full: who is told that has to see it
            sys.stderr.flush()
        os.dup2(saved, 2)
        os.close(saved)
