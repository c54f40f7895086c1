"""A store on a real file, for the outbox's tests."""

from __future__ import annotations

from collections.abc import AsyncIterator, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import structlog

from edge_runtime.board.system import SystemClock, SystemDice, ThreadWorker
from edge_runtime.outbox import intervals, tables
from edge_runtime.outbox.database import PAGE_BYTES, FileDisk
from edge_runtime.outbox.file import OutboxFile
from edge_runtime.outbox.store import Store
from edge_runtime.ports import Clock, Disk, Ranges
from edge_runtime.records import LANES, Draft, Gap, Lane, Record, Sample, Stamp

LOG = structlog.wrap_logger(None, processors=[], wrapper_class=structlog.make_filtering_bound_logger(50))
SINKS = {"cloud": list(LANES)}
STAMP = Stamp("boot", 5, 1_000_000_005, True)


def new_store(
    path: Path, *, size_bytes_max: int = 64 * 2**20, wal_pages: int = 0, journal_rows_max: int = 1_000, disk: Disk | None = None,
    clock: Clock | None = None,
) -> Store:  # fmt: skip
    """Like the gateway builds it."""
    pages = wal_pages or max(16, min(1000, size_bytes_max // 8 // PAGE_BYTES))
    file = OutboxFile(
        disk or FileDisk(pages), path, clock or SystemClock(), size_bytes_max=size_bytes_max, wal_bytes=2 * pages * PAGE_BYTES
    )
    writer, reader = ThreadWorker("outbox-writer"), ThreadWorker("outbox-reader")
    return Store(file, journal_rows_max=journal_rows_max, writer=writer, reader=reader, dice=SystemDice(), log=LOG)


@asynccontextmanager
async def opened(
    path: Path, sinks: Mapping[str, Sequence[Lane]] = SINKS, pipelines: Mapping[str, str] | None = None, **more: Any
) -> AsyncIterator[Store]:
    store = new_store(path, **more)
    await store.open(sinks, [*(pipelines or {}).items()])
    try:
        yield store
    finally:
        await store.close()


def draft(text: object, lane: Lane = Lane.RESULT, *, size: int = 0, stamp: Stamp = STAMP) -> Draft:
    return Draft(lane, "press", stamp, str(text).encode().ljust(size, b"."))


def sample(number: int, message_id: str = "", device: str = "plc") -> Sample:
    return Sample(device, STAMP, (number,), message_id=message_id)


async def everything(store: Store, lane: Lane = Lane.RESULT) -> list[Record]:
    records: list[Record] = []
    while found := await store.read(lane, records[-1].seq + 1 if records else 1, store.heads[lane], 10**9):
        records += found
    return records


def texts(records: Sequence[Record]) -> list[str]:
    return [record.body.rstrip(b".").decode() for record in records]


def gaps_of(records: Sequence[Record]) -> list[Gap]:
    return [msgspec.json.decode(record.body, type=Gap) for record in records]


async def accounted(store: Store, lane: Lane) -> Ranges:
    """What is there and what is declared gone."""
    present = intervals.of(record.seq for record in await everything(store, lane))
    gaps = gaps_of(await everything(store, Lane.GAP))
    return intervals.union(present, intervals.normalise((gap.first, gap.last) for gap in gaps if gap.lane is lane))


def ids(path: Path) -> list[tuple[str, str, int]]:
    """(lane, epoch, seq) of all records of a closed outbox."""
    database = FileDisk().open(path)
    try:
        return [
            (lane, epoch, seq)
            for lane in LANES
            for seq, epoch in tables.rows(database, f"SELECT seq, epoch FROM lane_{lane} ORDER BY seq")
        ]
    finally:
        database.close()
