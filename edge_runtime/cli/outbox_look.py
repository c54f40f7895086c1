"""Looks into an outbox's file without changing it: what `edge-runtime outbox` tells and exports."""

from __future__ import annotations

from collections import Counter
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.outbox import intervals, schema, tables
from edge_runtime.outbox.database import SIDE_FILES, DiskError, open_read_only
from edge_runtime.ports import Clock, Database, EdgeError, delivery
from edge_runtime.records import KINDS, LANES, Gap, Lane, Record

READ_ROWS = 1_000
"""Read at a time. Each by itself: one long transaction would hold up the checkpoint, and the WAL would grow beyond the cap."""


class OutboxError(EdgeError):
    """The file is not there, is no outbox, or is damaged."""


class LaneLook(msgspec.Struct, frozen=True, kw_only=True):
    """`records` are on the disk. `oldest_s`: age of the oldest (None: there is none, or no clock that tells). `head`: the highest
    seq that was ever given. `waiting`: by sink that takes this lane, what it has not acknowledged. A file that was written before
    it had a table of its sinks does not tell which lanes they take: there, those that have acknowledged something of this one.
    Of the lanes of a privacy class only those are told that ever had a record."""

    lane: Lane
    records: int
    oldest_s: float | None
    head: int
    waiting: dict[str, int]


class SinkLook(msgspec.Struct, frozen=True, kw_only=True):
    """A sink that the gateway had when it started last. `withheld`: records on the disk that it never gets: its reach is wider
    than their pipelines' privacy class allows."""

    sink: str
    lanes: list[Lane]
    delivery: str
    withheld: int


class Count(msgspec.Struct, frozen=True, kw_only=True):
    """So many records of a lane, and why. `sink` "": of all sinks."""

    lane: str
    reason: str
    count: int
    sink: str = ""


class Look(msgspec.Struct, frozen=True, kw_only=True):
    """`sinks`: none in a file that was written before it had a table of them. `gaps`: gap records that are on the disk, what they
    declare lost. `epochs`: oldest first."""

    file: str
    size_bytes: int
    lanes: list[LaneLook]
    sinks: list[SinkLook]
    gaps: list[Count]
    refused: list[Count]
    journal_rows: dict[str, int]
    pipelines: dict[str, int]
    epochs: list[str]


@contextmanager
def opened(path: Path) -> Iterator[Database]:
    """Raises OutboxError, also for what goes wrong while it is used."""
    if not path.is_file():
        raise OutboxError(
            f"{path}: there is no such file", "an outbox is `outbox.file` in the gateway's `data_dir`: data/outbox.db"
        )
    try:
        database = open_read_only(path)
        try:
            _recognise(database, path)
            yield database
        finally:
            database.close()
    except DiskError as error:
        hint = "no outbox, or a damaged one: a gateway that starts with it sets it aside and saves what can be read"
        raise OutboxError(f"{path}: {error}", hint) from None


def _recognise(database: Database, path: Path) -> None:
    import sqlite_utils

    connection: Any = database
    found = sqlite_utils.Database(connection).table_names()
    version = schema.version(database)
    if not {f"lane_{lane}" for lane in KINDS} <= {*found} or not version:
        raise OutboxError(
            f"{path}: is no outbox: its tables are not there", "an outbox is `outbox.file` in the gateway's `data_dir`"
        )
    if version > schema.SCHEMA_VERSION:
        cause = f"{path}: written by a newer edge-runtime (format {version}, this one knows {schema.SCHEMA_VERSION})"
        raise OutboxError(cause, "update edge-runtime")
    schema.pretend(database)


def look(path: Path, clock: Clock) -> Look:
    """Raises OutboxError."""
    with opened(path) as database:
        database.execute("BEGIN")  # one snapshot for all of it
        found = Look(
            file=str(path),
            size_bytes=sum(each.stat().st_size for each in files(path)),
            lanes=_lanes(database, clock),
            sinks=[],
            gaps=_gaps(database),
            refused=_refused(database),
            journal_rows=tables.journal_counts(database),
            pipelines=_pipelines(database),
            epochs=[epoch.name for epoch in tables.epochs(database)],
        )
        sinks = _sinks(database, found.lanes)
        database.execute("COMMIT")
        return msgspec.structs.replace(found, sinks=sinks)


def _pipelines(database: Database) -> dict[str, int]:
    """The first row that each needs; of one that reads another device on trial, the earlier of both."""
    found: dict[str, int] = {}
    for (pipeline, _), (row, _) in tables.positions(database).items():
        found[pipeline] = min(row, found.get(pipeline, row))
    return found


def files(path: Path) -> list[Path]:
    """Of an outbox: those that are there."""
    return [each for suffix in ("", *SIDE_FILES) if (each := path.with_name(path.name + suffix)).exists()]


def _lanes(database: Database, clock: Clock) -> list[LaneLook]:
    heads, lows, acknowledged = tables.heads(database), tables.lows(database), tables.acknowledged(database)
    takes = [(sink, lane) for sink, (lanes, _) in tables.sinks(database).items() for lane in lanes] or list(acknowledged)
    return [
        LaneLook(
            lane=lane,
            records=_count(database, lane, 1, heads[lane]),
            oldest_s=_age_s(database, lane, lows[lane], clock) if lane in lows else None,
            head=heads[lane],
            waiting={
                sink: sum(
                    _count(database, lane, *hole)
                    for hole in intervals.missing(acknowledged.get((sink, lane), ()), 1, heads[lane])
                )
                for sink, at in takes
                if at is lane
            },
        )
        for lane in LANES
        if lane is lane.kind or heads[lane]
    ]


def _sinks(database: Database, there: list[LaneLook]) -> list[SinkLook]:
    found = []
    for sink, (lanes, confirms) in tables.sinks(database).items():
        kinds = [lane.kind for lane in lanes]
        withheld = sum(each.records for each in there if each.lane.kind in kinds and each.lane not in lanes)
        found.append(SinkLook(sink=sink, lanes=list(lanes), delivery=delivery(confirms), withheld=withheld))
    return found


def _count(database: Database, lane: Lane, first: int, last: int) -> int:
    import sqlite_utils

    connection: Any = database
    return int(sqlite_utils.Database(connection).table(f"lane_{lane}").count_where("seq BETWEEN ? AND ?", [first, last]))


def _age_s(database: Database, lane: Lane, seq: int, clock: Clock) -> float | None:
    """Within one boot it is exact; across boots both clocks must have been synchronised."""
    [record] = tables.read(database, lane, seq, seq, 1, tables.boots(database))
    now, made = clock.now(), record.stamp
    if now.boot == made.boot:
        return round((now.mono_ns - made.mono_ns) / 1e9, 3)
    return round((now.wall_ns - made.wall_ns) / 1e9, 3) if now.synced and made.synced else None


def _gaps(database: Database) -> list[Count]:
    lost: Counter[tuple[str, str]] = Counter()
    for record in _read(database, Lane.GAP):
        gap = msgspec.json.decode(record.body, type=Gap)
        lost[gap.lane, gap.reason] += gap.count
    return [Count(lane=lane, reason=reason, count=count) for (lane, reason), count in sorted(lost.items())]


def _refused(database: Database) -> list[Count]:
    import sqlite_utils

    connection: Any = database
    view = sqlite_utils.Database(connection)
    if "refused" not in view.table_names():
        return []
    kinds = Counter((row["sink"], row["lane"], row["cause"]) for row in view.table("refused").rows)
    return [Count(sink=sink, lane=lane, reason=cause, count=count) for (sink, lane, cause), count in sorted(kinds.items())]


# --- records ---------------------------------------------------------------------------------------------------------


def count(path: Path, lanes: list[Lane]) -> int:
    """Records on the disk. Raises OutboxError."""
    with opened(path) as database:
        heads = tables.heads(database)
        return sum(_count(database, lane, 1, heads[lane]) for lane in lanes)


def records(path: Path, lanes: list[Lane]) -> Iterator[Record]:
    """Lane by lane in order of seq, up to what was there when a lane began; what is delivered meanwhile may be missing.
    Raises OutboxError."""
    with opened(path) as database:
        for lane in lanes:
            yield from _read(database, lane)


def _read(database: Database, lane: Lane) -> Iterator[Record]:
    boots, last, first = tables.boots(database), tables.heads(database)[lane], 1
    while found := tables.read(database, lane, first, last, READ_ROWS, boots):
        yield from found
        first = found[-1].seq + 1
