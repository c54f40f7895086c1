"""edge-runtime outbox import: takes the outbox of a gateway that is dead into that of the one that took its name."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.config import Config
    from edge_runtime.outbox.importing import Imported, Place, Tell


def run(args: argparse.Namespace) -> int:
    """0. Raises EdgeError."""
    from edge_runtime.cli import terminal

    with progress() as tell:
        done = take_in(args.old, args.into, tell)
    if args.json:
        terminal.emit_json(described(args.old, done))
    else:
        show(args.old, done)
    return 0


def take_in(old: Path, into: Path, tell: Tell) -> Imported:
    """`into`: the gateway's configuration, or its outbox.db. Raises EdgeError."""
    from edge_runtime.board.system import SystemClock, SystemDice
    from edge_runtime.cli.run import LOCK, locked
    from edge_runtime.outbox import importing
    from edge_runtime.outbox.database import FileDisk

    with contextlib.ExitStack() as locks:
        place = place_of(into)
        if (old.parent / LOCK).exists() and old.parent.resolve() != place.path.parent.resolve():
            locks.enter_context(_not_running(old.parent / LOCK))
        locks.enter_context(locked(place.path.parent, "stop it until the records are in its outbox"))
        return importing.take_in(old, place, disk=FileDisk(), clock=SystemClock(), dice=SystemDice(), tell=tell)


@contextlib.contextmanager
def _not_running(lock: Path) -> Iterator[None]:
    """The old gateway; its disk may be one that cannot be written."""
    import fcntl

    from edge_runtime.ports import EdgeError

    with contextlib.suppress(PermissionError), lock.open("rb") as file:
        try:
            fcntl.flock(file, fcntl.LOCK_SH | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EdgeError(
                f"{lock.parent}: the old gateway runs on this folder", "stop it first, and never start it again"
            ) from None
        yield
        return
    yield


def place_of(into: Path) -> Place:
    """Raises EdgeError."""
    from edge_runtime.config import Outbox
    from edge_runtime.outbox.importing import Place

    if into.suffix == ".db":
        size_bytes_max = Outbox().size_bytes_max
        return Place(into.absolute(), size_bytes_max, wal_bytes(size_bytes_max))
    from edge_runtime import config
    from edge_runtime.sources.registry import Registry

    return place(config.load_file(into, Registry()).config, into.resolve().parent)


def place(settings: Config, folder: Path) -> Place:
    """Where a gateway with these settings keeps what is not yet delivered."""
    from edge_runtime.outbox.importing import Place

    size_bytes_max = settings.outbox.size_bytes_max
    read = dict.fromkeys(each.device for each in settings.pipelines.values())
    points = {name: len(settings.devices[name].points) for name in read}
    return Place(folder / settings.data_dir / settings.outbox.file, size_bytes_max, wal_bytes(size_bytes_max), points)


def wal_bytes(size_bytes_max: int) -> int:
    from edge_runtime.building import wal_pages
    from edge_runtime.outbox.database import PAGE_BYTES

    return 2 * wal_pages(size_bytes_max) * PAGE_BYTES


# --- what is said ----------------------------------------------------------------------------------------------------


def described(old: Path, done: Imported) -> dict[str, Any]:
    import msgspec

    found: dict[str, Any] = msgspec.to_builtins(done)
    return {"old": str(old), **found, "taken": sum(done.records.values())}


def show(old: Path, done: Imported) -> None:
    from edge_runtime.cli import terminal

    if done.already:
        print(f"{old}: was taken in before; nothing to do")
        return
    lanes = dict.fromkeys([*done.records, *done.unreadable])
    rows = [(lane.value, done.records.get(lane, 0), done.unreadable.get(lane, 0)) for lane in lanes]
    terminal.table(("lane", "taken", "unreadable"), rows, f"records of {old}")
    left = [
        (device, done.samples.get(device, 0), *done.samples_left.get(device, (0, "")))
        for device in {**done.samples, **done.samples_left}
    ]
    if left:
        terminal.table(("device", "taken", "left", "why"), left, "samples of windows that were open")
    if done.samples_unreadable:
        print(f"samples that could not be read: {done.samples_unreadable}")
    print("what receivers have already, they recognise; what could not be read, they are told")


@contextlib.contextmanager
def progress() -> Iterator[Tell]:
    """A bar on standard error, if that is a terminal."""
    bars: Any = None
    if sys.stderr.isatty():
        with contextlib.suppress(ImportError):
            from rich.console import Console
            from rich.progress import Progress

            bars = Progress(console=Console(stderr=True), transient=True)
    if bars is None:
        yield lambda what, done, total: None
        return
    tasks: dict[str, Any] = {}
    with bars:

        def tell(what: str, done: int, total: int) -> None:
            if what not in tasks:
                tasks[what] = bars.add_task(what)
            bars.update(tasks[what], completed=done, total=total)

        yield tell
