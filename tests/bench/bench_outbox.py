"""The outbox against plain sqlite3: durable rows a second, and the start with a million undelivered records.

Both sides write the same rows into a table of the same columns with the same settings (WAL, synchronous=FULL), plain sqlite3 by
one executemany of 100 rows a transaction. Rounds alternate, so that a busy machine slows both; the median of their ratios
counts. `slow_sync.c` puts a delay into each fsync of both sides: a disk that really syncs.
"""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import statistics
import subprocess
import sys
import tempfile
from pathlib import Path
from time import perf_counter
from typing import Any

import structlog

from edge_runtime.board.system import SystemClock, SystemDice, ThreadWorker
from edge_runtime.outbox.database import PAGE_BYTES, WAL_PAGES_MAX, FileDisk
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.outbox.file import OutboxFile
from edge_runtime.outbox.store import Store
from edge_runtime.ports import Receipt
from edge_runtime.records import Draft, Lane, Record, Stamp

ROWS = 100
BODY = b"x" * 200
ROUNDS = 7
TARGET = 0.8
RECORDS = 1_000_000
START_S_MAX = 2.0
SHIM = Path(__file__).with_name("slow_sync.c")
LOG = structlog.wrap_logger(None, processors=[], wrapper_class=structlog.make_filtering_bound_logger(50))


def main() -> list[dict[str, Any]]:
    table = _rates_of_another("", 150, {})
    with tempfile.TemporaryDirectory(prefix="bench-outbox-") as folder:
        environment = _slow_sync(Path(folder))
        if environment is not None:
            table += _rates_of_another(", 4 ms more each fsync", 40, environment)
    took_s = asyncio.run(_start_with_a_million())
    table.append(
        _row(
            f"outbox: start with {RECORDS:,} records, to the first new one delivered",
            took_s,
            None,
            None,
            "s",
            f"<= {START_S_MAX}",
        )
    )
    return table


def _rates_of_another(sync: str, transactions: int, environment: dict[str, str]) -> list[dict[str, Any]]:
    """Of a process of its own: what slows its fsyncs is loaded before it starts."""
    told = subprocess.run(
        [sys.executable, __file__, "--rates", str(transactions)],
        env={**os.environ, **environment},
        stdout=subprocess.PIPE,
        check=True,
    )
    return [
        _row(f"outbox: {name}{sync}", ours, bare, ratio, "rows/s", f">= {TARGET}")
        for name, (ours, bare, ratio) in json.loads(told.stdout).items()
    ]


def _row(name: str, ours: float, bare: float | None, ratio: float | None, unit: str, target: str) -> dict[str, Any]:
    return {"name": name, "ours": ours, "bare": bare, "ratio": ratio, "unit": unit, "target": target}


def _slow_sync(folder: Path) -> dict[str, str] | None:
    """The environment that slows each fsync down by 4 ms; None where there is no C compiler."""
    compiler = shutil.which("cc") or shutil.which("gcc")
    if compiler is None:
        return None
    library = folder / "slow_sync.so"
    subprocess.run([compiler, "-shared", "-fPIC", "-O1", "-o", library, SHIM, "-ldl"], check=True)
    return {"LD_PRELOAD": str(library), "SLOW_SYNC_MS": "4"}


# --- accepted and durable rows a second ------------------------------------------------------------------------------


def rates(transactions: int) -> dict[str, tuple[float, float, float]]:
    """Case -> (ours, bare, median of the rounds' ratios)."""
    with tempfile.TemporaryDirectory(prefix="bench-outbox-", dir=os.environ.get("BENCH_DIR")) as folder:
        return asyncio.run(_rates(Path(folder), transactions))


async def _rates(folder: Path, transactions: int) -> dict[str, tuple[float, float, float]]:
    store, writer, reader = _store(folder / "ours.db")
    await store.open({}, {})
    bare = _Bare(folder / "bare.db")
    cases = {
        f"commit() of {ROWS} rows": _one_caller,
        f"{ROWS} callers of one row": _many_callers,
    }
    found: dict[str, list[tuple[float, float]]] = {name: [] for name in cases}
    drafts = [Draft(Lane.RESULT, "press", Stamp("boot", n, n, True), BODY) for n in range(ROWS)]
    for round_ in range(ROUNDS + 1):
        for name, case in cases.items():
            ours = transactions * ROWS / await case(store, drafts, transactions)
            plain = transactions * ROWS / bare.write(transactions)
            if round_:  # the first one warms up
                found[name].append((ours, plain))
    await store.close()
    writer.close()
    reader.close()
    bare.close()
    return {
        name: (
            round(statistics.median(ours for ours, _ in pairs)),
            round(statistics.median(plain for _, plain in pairs)),
            round(statistics.median(ours / plain for ours, plain in pairs), 2),
        )
        for name, pairs in found.items()
    }


def _store(path: Path) -> tuple[Store, ThreadWorker, ThreadWorker]:
    clock, writer, reader = SystemClock(), ThreadWorker("writer"), ThreadWorker("reader")
    file = OutboxFile(FileDisk(), path, clock, size_bytes_max=2**31, wal_bytes=2 * WAL_PAGES_MAX * PAGE_BYTES)
    return Store(file, journal_rows_max=10_000, writer=writer, reader=reader, dice=SystemDice(), log=LOG), writer, reader


async def _one_caller(store: Store, drafts: list[Draft], transactions: int) -> float:
    began = perf_counter()
    for _ in range(transactions):
        await store.commit(drafts)
    return perf_counter() - began


async def _many_callers(store: Store, drafts: list[Draft], transactions: int) -> float:
    """Each waits for its own row before it has the next one."""

    async def caller(draft: Draft) -> None:
        for _ in range(transactions):
            await store.commit([draft])

    began = perf_counter()
    async with asyncio.TaskGroup() as group:
        for draft in drafts:
            group.create_task(caller(draft))
    return perf_counter() - began


class _Bare:
    """What a program does that writes 100 rows a transaction, and nothing else."""

    def __init__(self, path: Path) -> None:
        self._database: Any = FileDisk().open(path)
        self._database.execute(
            "CREATE TABLE rows (seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, source TEXT NOT NULL, boot INTEGER NOT NULL,"
            "mono_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL, synced INTEGER NOT NULL, uniq TEXT NOT NULL, body BLOB NOT NULL)"
        )
        self._seq = 0

    def write(self, transactions: int) -> float:
        began = perf_counter()
        for _ in range(transactions):
            rows = [(self._seq + n, 5 * 2**60, "press", 1, n, n, 1, "", BODY) for n in range(1, ROWS + 1)]
            self._database.execute("BEGIN IMMEDIATE")
            self._database.executemany("INSERT INTO rows VALUES (?,?,?,?,?,?,?,?,?)", rows)
            self._database.execute("COMMIT")
            self._seq += ROWS
        return perf_counter() - began

    def close(self) -> None:
        self._database.close()


# --- a million undelivered records -----------------------------------------------------------------------------------


class _FarEnd:
    """Takes everything; tells when the first record past `head` came."""

    confirms = True

    def __init__(self, head: int) -> None:
        self._head, self.new = head, asyncio.Event()

    async def open(self, epochs: Any) -> Receipt:
        return Receipt({})

    async def send(self, records: Any) -> Receipt:
        first: Record = records[0]
        if records[-1].seq > self._head:
            self.new.set()
        return Receipt({(first.epoch, first.lane): ((first.seq, records[-1].seq),)})

    async def close(self) -> None: ...


def fill(path: Path, records: int) -> None:
    """An outbox with so many undelivered records, written by the store itself."""

    async def write() -> None:
        store, writer, reader = _store(path)
        await store.open({"cloud": [Lane.RESULT]}, {})
        for n in range(0, records, 5_000):
            await store.commit([Draft(Lane.RESULT, "press", Stamp("b", s, s, True), BODY) for s in range(n, n + 5_000)])
        await store.close()
        writer.close()
        reader.close()

    asyncio.run(write())


async def _start_with_a_million() -> float:
    with tempfile.TemporaryDirectory(prefix="bench-outbox-", dir=os.environ.get("BENCH_DIR")) as folder:
        path = Path(folder) / "outbox.db"
        await asyncio.to_thread(fill, path, RECORDS)
        began = perf_counter()
        store, writer, reader = _store(path)
        await store.open({"cloud": [Lane.RESULT]}, {})
        far_end = _FarEnd(store.heads[Lane.RESULT])
        delivery = Delivery("cloud", far_end, [Lane.RESULT], store, batch_records_max=500, dice=SystemDice(), log=LOG)
        running = asyncio.create_task(delivery.run())
        await store.commit([Draft(Lane.RESULT, "press", Stamp("b", 1, 1, True), BODY)])
        await far_end.new.wait()
        took_s = perf_counter() - began
        running.cancel()
        await asyncio.wait([running])
        await store.close()
        writer.close()
        reader.close()
    return round(took_s, 3)


if __name__ == "__main__":
    if sys.argv[1:2] == ["--rates"]:
        print(json.dumps(rates(int(sys.argv[2]))))
    else:
        for row in main():
            print(row)
