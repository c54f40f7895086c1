"""Takes the outbox of a gateway that is dead into the one of the hardware that took its name. Nobody else may have either open.

Records keep their ids (epoch, lane, seq): receivers know what they have, nothing comes twice. So each lane of the old outbox
needs its seqs in the new one, below those that the new one gave away itself:

    the lane has no record of its own that waits       as it is: what is accepted from now on comes after
    its own records stand higher (see `reserve`)       as it is
    it belongs to the privacy class `gateway`          as it is; its own get new numbers: nobody has ever seen them
    else                                               refused: first its own have to be delivered

The old files are copied and read there: an old disk is evidence, and may be one that cannot be written. What cannot be read of it
becomes gap records (salvage.py). All is made in a folder beside the outbox and takes its place at once: a crash leaves the outbox
as it was, and the next try begins anew.
"""

from __future__ import annotations

import os
import shutil
from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Mapping, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.outbox import merging, schema, tables
from edge_runtime.outbox.batch import BATCH_BYTES_MAX
from edge_runtime.outbox.database import PAGE_BYTES, SIDE_FILES, DiskError, Transaction
from edge_runtime.outbox.epochs import Epoch
from edge_runtime.outbox.gaps import Change, Gaps
from edge_runtime.outbox.merging import Journal, merge
from edge_runtime.outbox.room import Room
from edge_runtime.outbox.salvage import salvage
from edge_runtime.ports import Clock, Database, Dice, Disk, EdgeError
from edge_runtime.records import LANES, Gap, Lane

WORK = ".import"
"""Folder beside the outbox, while it lasts."""

RESERVED = 2**40
"""Seqs kept free below an outbox that begins while the old one is not at hand: more than a gateway gives away in its life."""

COPY_BYTES = 2**16
SPARE_BYTES = 16 * 2**20
"""That stay free on the disk."""

Tell = Callable[[str, int, int], None]
"""What is being done, how far it is, of how much."""


class ImportRefused(EdgeError):
    """Nothing was changed."""


class Imported(msgspec.Struct, frozen=True, kw_only=True):
    """`already`: it was taken in before, and nothing was done. `records`: taken, by lane; `unreadable`: told as gaps; `samples`:
    of the journal, by device, for windows that were open; `samples_left`: not taken, and why."""

    already: bool = False
    records: dict[Lane, int] = {}
    unreadable: dict[Lane, int] = {}
    samples: dict[str, int] = {}
    samples_left: dict[str, tuple[int, str]] = {}
    samples_unreadable: int = 0
    epochs: list[str] = []


class Place(msgspec.Struct, frozen=True):
    """The outbox that takes it in. `wal_bytes`: what its log may grow to. `points`: of each device that a pipeline reads, how
    many (None: nobody knows; every journal is taken)."""

    path: Path
    size_bytes_max: int
    wal_bytes: int
    points: Mapping[str, int] | None = None


def take_in(old: Path, place: Place, *, disk: Disk, clock: Clock, dice: Dice, tell: Tell) -> Imported:
    """Raises ImportRefused: why not, and nothing was changed; EdgeError."""
    if not old.is_file():
        raise ImportRefused(f"{old}: there is no such outbox", "it is outbox.db in the old gateway's data_dir")
    if old.resolve() == place.path.resolve():
        raise ImportRefused(f"{old}: is the outbox that is to take it in", "give outbox.db of the old gateway's data_dir")
    with _work(place.path) as work:
        try:
            _check_disk(old, place)
            _copy(old, work / "old.db", tell)
            found, done = _build(old, work, place, disk, clock, dice, tell)
        except DiskError as error:
            raise ImportRefused(f"{place.path}: {error}", "stop what uses it; is the disk full?") from None
        if not done.already:
            _take_place(found, place.path, disk)
        return done


def reserve(path: Path, sinks: Mapping[str, Sequence[Lane]], disk: Disk) -> bool:
    """A new outbox that keeps the seqs up to RESERVED free for an old one. False: there is one already."""
    if disk.size_bytes(path):
        return False
    with _work(path) as work:
        new = _fresh(work / "new.db", disk)
        schema.create(new)
        tables.set_heads(new, dict.fromkeys(LANES, RESERVED))
        for sink, lanes in sinks.items():
            for lane in lanes:
                tables.set_acknowledged(new, sink, lane, ((1, RESERVED),))
        new.execute("COMMIT")
        new.close()
        _take_place(work / "new.db", path, disk)
    return True


# --- files -----------------------------------------------------------------------------------------------------------


@contextmanager
def _work(path: Path) -> Iterator[Path]:
    work = path.with_name(path.name + WORK)
    try:
        shutil.rmtree(work, ignore_errors=True)
        work.mkdir(parents=True)
        yield work
    except OSError as error:
        raise EdgeError(f"{work}: {error.strerror}", "is the disk full, or not ours to write?") from None
    finally:
        shutil.rmtree(work, ignore_errors=True)


def _files(path: Path) -> list[Path]:
    """Database and WAL; the shared memory is only an index of that."""
    return [each for each in (path, path.with_name(path.name + SIDE_FILES[0])) if each.exists()]


def _check_disk(old: Path, place: Place) -> None:
    """Room for the copy, and for the new outbox beside the present one."""
    needed = sum(each.stat().st_size for path, times in ((old, 2), (place.path, 1)) for each in _files(path) * times)
    free = shutil.disk_usage(place.path.parent).free
    if needed + SPARE_BYTES > free:
        short = needed + SPARE_BYTES - free
        raise ImportRefused(f"{place.path.parent}: {short:,} bytes more have to be free while it is taken in", "free them")


def _copy(old: Path, target: Path, tell: Tell) -> None:
    files = _files(old)
    total, done = sum(each.stat().st_size for each in files), 0
    for each in files:
        name = target.name + each.name[len(old.name) :]
        with each.open("rb", buffering=0) as source, target.with_name(name).open("wb") as copy:
            while True:
                try:
                    chunk = source.read(COPY_BYTES)
                except OSError:  # a sector that is gone: zeros in its place, which salvage finds
                    chunk = bytes(min(COPY_BYTES, each.stat().st_size - source.tell()))
                    source.seek(len(chunk), os.SEEK_CUR)
                if not chunk:
                    break
                copy.write(chunk)
                done += len(chunk)
                tell("copying", done, total)


def _take_place(found: Path, path: Path, disk: Disk) -> None:
    """At once; a crash leaves the one or the other. Nobody else reads the values in it, and what root has written is for the user
    of the gateway, who has the folder."""
    descriptor = os.open(found, os.O_RDONLY)
    try:
        os.fchmod(descriptor, 0o600)
        if os.geteuid() == 0:
            owner = path.parent.stat()
            os.fchown(descriptor, owner.st_uid, owner.st_gid)
        os.fsync(descriptor)
    finally:
        os.close(descriptor)
    if disk.log_bytes(path):
        raise ImportRefused(f"{path}: another program has it open", "stop it (`fuser` names it)")
    for suffix in SIDE_FILES:
        path.with_name(path.name + suffix).unlink(missing_ok=True)
    found.replace(path)
    folder = os.open(path.parent, os.O_RDONLY)
    try:
        os.fsync(folder)
    finally:
        os.close(folder)


def _fresh(path: Path, disk: Disk) -> Database:
    """Nobody sees it before it is complete: it needs no log, and its sync comes at the end. One transaction, until its COMMIT."""
    new = disk.open(path)
    for statement in ("PRAGMA journal_mode=OFF", "PRAGMA synchronous=OFF", "BEGIN"):
        tables.rows(new, statement)
    return new


# --- the new outbox --------------------------------------------------------------------------------------------------


def _build(old: Path, work: Path, place: Place, disk: Disk, clock: Clock, dice: Dice, tell: Tell) -> tuple[Path, Imported]:
    """`old`: as messages name it; its copy in `work` is read."""
    path = work / "new.db"
    total = _check_format(old, work / "old.db", disk)
    new = _fresh(path, disk)
    try:
        schema.create(new)
        merging.create_imported(new)
        counting = _Counting(new, total, tell)
        lost, samples_lost = salvage(lambda: disk.open(work / "old.db", damaged=True), counting, (), dict.fromkeys(LANES, 0))
        epochs = [each.name for each in tables.epochs(new)]
        if not epochs:
            raise ImportRefused(f"{old}: nothing in it can be read as an outbox", "it is outbox.db in the old gateway's data_dir")
        journal = Journal(new, place.points)
        own = _own(place, disk)
        try:
            before = merging.imported(own) if own is not None else []
            heads = tables.heads(new)
            if own is not None and (later := merging.came_later(new, own, heads)):
                cause = f"{old}: a copy of it was taken in that was made while it ran; {later:,} records came later"
                raise ImportRefused(cause, f"they stay there: `edge-runtime outbox {old} export`")
            if epochs[-1] in before:
                return path, Imported(already=True, epochs=epochs)
            for epoch in before:
                merging.delete_epoch_rows(new, epoch)
            merging.note_imported(new, [*before, *epochs], epochs[-1], heads)
            records = _counted(new)
            _check_cap(new, own, place, disk)
            if own is not None:
                journal.keep_off(own)
                merge(new, own, dice.token())
        finally:
            if own is not None:
                own.close()
        _declare(new, [each for each in lost if each.epoch not in before], clock, dice)
        new.execute("COMMIT")
        done = Imported(
            records=records, unreadable=_unreadable(lost), samples=journal.taken, samples_left=journal.left,
            samples_unreadable=samples_lost, epochs=epochs,
        )  # fmt: skip
    finally:
        new.close()
    return path, done


def _check_format(old: Path, copy: Path, disk: Disk) -> int:
    """How many rows it has, about. Raises ImportRefused: it is of a newer format."""
    try:
        database = disk.open(copy)
    except DiskError:
        return 0
    try:
        version = schema.version(database)
        if version > schema.SCHEMA_VERSION:
            cause = f"{old}: written by a newer edge-runtime (format {version}, this one knows {schema.SCHEMA_VERSION})"
            raise ImportRefused(cause, "update edge-runtime here first")
        schema.pretend(database)
        lanes = [f"lane_{lane}" for lane in LANES]
        return sum(int(tables.rows(database, f"SELECT count(*) FROM {each}")[0][0]) for each in [*lanes, "journal", "seen"])
    except DiskError:
        return 0
    finally:
        database.close()


def _own(place: Place, disk: Disk) -> Database | None:
    if not disk.size_bytes(place.path):
        return None
    own = disk.open(place.path)
    if not schema.version(own):
        own.close()
        raise ImportRefused(f"{place.path}: is no outbox", "--into takes the gateway's configuration, or its outbox.db")
    if schema.version(own) < schema.SCHEMA_VERSION:
        with Transaction(own):
            schema.create(own)
    merging.create_imported(own)
    return own


def _check_cap(new: Database, own: Database | None, place: Place, disk: Disk) -> None:
    room = Room(
        disk, place.path, size_bytes_max=place.size_bytes_max, log_bytes_max=place.wal_bytes, batch_bytes_max=BATCH_BYTES_MAX
    )
    sizes = [tables.size_pages(each) for each in (new, own) if each is not None]
    short = (sum(pages - free for pages, free in sizes) - room.pages_max) * PAGE_BYTES
    if short > 0:
        cause = f"it needs {short:,} bytes more than outbox.size_bytes_max ({place.size_bytes_max:,}) leaves"
        raise ImportRefused(cause, f"set outbox.size_bytes_max to at least {place.size_bytes_max + 2 * short:,}")


def _declare(new: Database, lost: Sequence[Gap], clock: Clock, dice: Dice) -> None:
    """What is gone is told under an epoch of its own."""
    if not lost:
        return
    heads = tables.heads(new)
    epoch = Epoch(dice.token(), dict(heads))
    tables.add_epoch(new, epoch)
    change, gaps = Change(new, epoch.name, heads, {Lane.GAP: heads[Lane.GAP]}), Gaps(clock)
    for gap in lost:
        gaps.declare(change, gap)
    tables.set_heads(new, change.heads)


def _unreadable(lost: Iterable[Gap]) -> dict[Lane, int]:
    found: Counter[Lane] = Counter()
    for gap in lost:
        found[gap.lane] += gap.count
    return dict(found)


def _counted(new: Database) -> dict[Lane, int]:
    found = {lane: int(tables.rows(new, f"SELECT count(*) FROM lane_{lane}")[0][0]) for lane in LANES}
    return {lane: count for lane, count in found.items() if count}


class _Counting:
    """A database that tells how many rows it was given."""

    def __init__(self, database: Database, total: int, tell: Tell) -> None:
        self._database, self._total, self._tell = database, total, tell
        self._done = 0

    def execute(self, sql: str, parameters: Sequence[Any] = (), /) -> Iterable[Any]:
        return self._database.execute(sql, parameters)

    def executemany(self, sql: str, rows: Iterable[Sequence[Any]], /) -> Any:
        rows = list(rows)
        self._database.executemany(sql, rows)
        self._done += len(rows)
        self._tell("taking in", min(self._done, self._total), self._total)

    def close(self) -> None:
        self._database.close()
