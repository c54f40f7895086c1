"""The start does not read what waits: its work is the same for a hundred records and for a hundred thousand."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

from outboxes import LOG, SINKS, draft, new_store

from edge_runtime.board.system import SystemDice
from edge_runtime.outbox import tables
from edge_runtime.outbox.database import FileDisk
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.ports import Database, Receipt
from edge_runtime.records import Lane, Record

BATCH = 50
STEPS_A_RECORD = 50
"""To read one and to note that it was delivered, with room."""
EVERY = 10
"""Steps of SQLite's machine between two calls of the counter."""


class Counting(FileDisk):
    """Counts what SQLite does."""

    steps = 0

    def open(self, path: Path, *, damaged: bool = False) -> Database:
        database: Any = super().open(path, damaged=damaged)
        database.set_progress_handler(self._count, EVERY)
        return database  # type: ignore[no-any-return]

    def _count(self) -> int:
        self.steps += EVERY
        return 0


class FarEnd:
    """Takes everything; tells when the first record past `head` came, and what came before it."""

    confirms = True

    def __init__(self, head: int) -> None:
        self._head, self.new, self.came = head, asyncio.Event(), 0

    async def open(self, epochs: Any) -> Receipt:
        return Receipt({})

    async def send(self, records: Any) -> Receipt:
        first: Record = records[0]
        if records[-1].seq > self._head:
            self.new.set()
        elif not self.new.is_set():
            self.came += len(records)
        return Receipt({(first.epoch, first.lane): ((first.seq, records[-1].seq),)})

    async def close(self) -> None: ...


def undelivered(path: Path, count: int) -> None:
    """Written past the store: it is the rows that count."""

    async def write() -> None:
        store = new_store(path, size_bytes_max=2**30)
        await store.open(SINKS, {})
        await store.commit([draft("first")])
        await store.close()

    asyncio.run(write())
    database: Any = FileDisk().open(path)
    database.execute(
        "WITH RECURSIVE n(seq) AS (SELECT 2 UNION ALL SELECT seq + 1 FROM n WHERE seq < ?) INSERT INTO "
        "lane_result SELECT n.seq, epoch, source, boot, mono_ns, wall_ns, synced, uniq, zeroblob(100) "
        "FROM n, lane_result WHERE lane_result.seq = 1",
        (count,),
    )
    database.close()


async def start(path: Path) -> tuple[int, int, int]:
    """Steps until the first new record is delivered, and how many old ones went before it: while the disk took it, and then."""
    disk = Counting()
    store = new_store(path, size_bytes_max=2**30, disk=disk)
    await store.open(SINKS, {})
    far_end = FarEnd(store.heads[Lane.RESULT])
    delivery = Delivery("cloud", far_end, [Lane.RESULT], store, batch_records_max=BATCH, dice=SystemDice(), log=LOG)
    running = asyncio.create_task(delivery.run())
    await store.commit([draft("new")])
    before = far_end.came  # while the disk took it, the backlog went on: how far is the disk's and the machine's affair
    await far_end.new.wait()
    steps, came = disk.steps, far_end.came - before
    running.cancel()
    await asyncio.wait([running])
    await store.close()
    return steps, before, came


def test_the_work_until_the_first_new_record_does_not_grow_with_the_backlog(tmp_path: Path) -> None:
    few, many = tmp_path / "few.db", tmp_path / "many.db"
    undelivered(few, 500)
    undelivered(many, 200_000)
    steps, _, _ = asyncio.run(start(few))
    more, before, came = asyncio.run(start(many))
    assert came <= 2 * BATCH  # one may be on its way, and one be read
    assert more - STEPS_A_RECORD * before < steps + 20_000 < 200_000


def test_every_query_of_a_lane_uses_its_key(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    undelivered(path, 10)
    plans: list[str] = []
    database: Any = FileDisk().open(path)

    class Explaining:
        def execute(self, sql: str, parameters: Any = ()) -> Any:
            if sql.startswith(("SELECT", "DELETE", "UPDATE")):
                plans.extend(row[3] for row in database.execute(f"EXPLAIN QUERY PLAN {sql}", parameters))
            return database.execute(sql, parameters)

    explaining: Any = Explaining()
    tables.heads(explaining)
    tables.lows(explaining)
    tables.read(explaining, Lane.RESULT, 2, 5, 3, {})
    tables.oldest(explaining, Lane.RESULT, 3)
    tables.oldest_gaps(explaining, 3)
    tables.delete(explaining, Lane.RESULT, 1, 3, 2)
    tables.add_to_journal(explaining, "plc", [])
    tables.read_journal(explaining, "plc", 1, 10)
    tables.trim_journal(explaining, "plc", 5, 10)
    database.close()
    # "SCAN lane_x" alone is the oldest rows in order of the key, with a LIMIT; a scan with a sort would say so.
    assert len(plans) > 10
    assert not [plan for plan in plans if "ORDER BY" in plan]
    assert not [plan for plan in plans if plan.startswith("SCAN journal")]
