"""Files of older formats: what was accepted into them is there after an update, under its ids, and goes on."""

from __future__ import annotations

import asyncio
import json
import sqlite3
from pathlib import Path

import pytest
from outboxes import SINKS, accounted, draft, everything, ids, opened, texts

from edge_runtime import cli
from edge_runtime.outbox import schema, tables
from edge_runtime.outbox.batch import Position
from edge_runtime.outbox.database import FileDisk, Transaction
from edge_runtime.outbox.store import Store
from edge_runtime.ports import EdgeError
from edge_runtime.records import KINDS, LANES, Lane

FORMAT_1 = Path(__file__).parent.parent / "data" / "outbox-format-1.sql"
"""Written by the last version of that format: seven results of which 1 and 2 were delivered everywhere, seven events, six samples
of which one was refused, a journal with two samples, a pipeline at row 3."""
FORMAT_2 = FORMAT_1.with_name("outbox-format-2.sql")
"""One result, a journal with four samples of `plc` and two of `box`; of the pipelines, `wear` needs row 3 and what follows,
`heat` row 2, and `raw` has committed nothing."""
EPOCH = "8c3a7f534de4344f"
OLD_SINKS = {"cloud": KINDS, "local": [Lane.RESULT]}


@pytest.fixture
def old(tmp_path: Path) -> Path:
    return written(tmp_path / "outbox.db", FORMAT_1)


def written(path: Path, sql: Path) -> Path:
    database = sqlite3.connect(path)
    database.execute("PRAGMA page_size=4096")
    database.executescript(sql.read_text())
    database.close()
    return path


def version(path: Path) -> int:
    database = FileDisk().open(path)
    try:
        return schema.version(database)
    finally:
        database.close()


async def _is_all_there(store: Store) -> None:
    results = await everything(store)
    assert [(record.epoch, record.seq) for record in results] == [(EPOCH, seq) for seq in range(3, 8)]
    assert texts(results) == [f"result-{n}" for n in range(2, 7)]
    assert texts(await everything(store, Lane.EVENT)) == [f"event-{n}" for n in range(7)]
    assert await accounted(store, Lane.SAMPLE) == ((1, 6),)
    assert store.acknowledged("cloud", Lane.RESULT) == ((1, 3), (6, 6))
    assert [sample.message_id for sample in await store.read_journal("plc", 0, 10)] == ["m2", "m3"]
    position = await store.position("wear", "plc")
    assert position
    assert (position.row, position.state) == (3, b"state")


def test_format_1_goes_on_where_it_was(old: Path) -> None:
    async def scenario() -> None:
        async with opened(old, OLD_SINKS, {"wear": "plc"}) as store:
            await _is_all_there(store)
            assert (await store.journal("plc", []), store.journal_head("plc")) == ([], 4)
            await store.commit([draft("next"), draft("here", Lane.RESULT_GATEWAY), draft("site", Lane.EVENT_SITE)])
            assert store.heads[Lane.RESULT] == 8
        async with opened(old, OLD_SINKS, {"wear": "plc"}) as store:
            assert texts(await everything(store))[-1] == "next"
            assert texts(await everything(store, Lane.RESULT_GATEWAY)) == ["here"]
            assert texts(await everything(store, Lane.EVENT_SITE)) == ["site"]

    before = _accepted(old)
    asyncio.run(scenario())
    assert version(old) == schema.SCHEMA_VERSION
    assert set(before) < set(ids(old))


def test_an_update_that_is_cut_short_changes_nothing(old: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """All tables and the version, or none of it: `kill -9` between two of them leaves the old file."""
    with monkeypatch.context() as patch:
        patch.setattr(schema, "_SCHEMA", (*schema._SCHEMA[:-1], "CREATE TABLE broken ("))
        database = FileDisk().open(old)
        with pytest.raises(sqlite3.OperationalError), Transaction(database):
            schema.create(database)
        database.close()
    assert version(old) == 1
    test_format_1_goes_on_where_it_was(old)


def test_positions_of_format_2_go_on_and_stand_beside_those_of_another_device(tmp_path: Path) -> None:
    path = written(tmp_path / "outbox.db", FORMAT_2)
    readers = {"wear": "plc", "heat": "plc", "raw": "box"}

    async def scenario() -> None:
        async with opened(path, pipelines=readers) as store:
            assert await store.position("wear", "plc") == Position("wear", "plc", 3, b"state")
            assert await store.position("heat", "plc") == Position("heat", "plc", 2, b"warm")
            assert await store.position("raw", "box") is None
            assert [each.row for each in await store.read_journal("plc", 0, 10)] == [2, 3, 4]
            await store.know(SINKS, [*readers.items(), ("wear", "box")])
            await store.commit([], Position("wear", "box", 6, b"other"))
            assert (await store.position("wear", "plc"), await store.position("wear", "box")) == (
                Position("wear", "plc", 3, b"state"),
                Position("wear", "box", 6, b"other"),
            )

    assert version(path) == 2
    asyncio.run(scenario())
    assert version(path) == schema.SCHEMA_VERSION


def test_a_corrupt_file_of_format_1_is_salvaged(old: Path) -> None:
    """Lanes that it never had are no loss."""

    async def scenario() -> None:
        async with opened(old, OLD_SINKS, {"wear": "plc"}) as store:
            state = {lane: await accounted(store, lane) for lane in KINDS[1:]}
            assert state == {Lane.EVENT: ((1, 7),), Lane.RESULT: ((3, 7),), Lane.SAMPLE: ((1, 6),)}
            assert texts(await everything(store)) == [f"result-{n}" for n in range(2, 7)]
            assert not any(store.heads[lane] for lane in LANES if lane not in KINDS)

    content = bytearray(old.read_bytes())
    root = _root_page(old, "boots")
    content[(root - 1) * 4096 : root * 4096] = b"\xa5" * 4096
    old.write_bytes(content)
    asyncio.run(scenario())
    assert old.with_name("outbox.db.corrupt-1").exists()
    assert version(old) == schema.SCHEMA_VERSION


def test_people_look_at_format_1_without_changing_it(old: Path, capsys: pytest.CaptureFixture[str]) -> None:
    before = old.read_bytes()
    assert cli.main(["outbox", str(old), "--json"]) == 0
    found = json.loads(capsys.readouterr().out)
    assert {lane["lane"]: lane["records"] for lane in found["lanes"]} == {"gap": 1, "event": 7, "result": 5, "sample": 5}
    assert [(sink["sink"], sink["withheld"]) for sink in found["sinks"]] == [("cloud", 0), ("local", 0)]
    assert cli.main(["outbox", str(old), "export"]) == 0
    assert len(capsys.readouterr().out.splitlines()) == 18
    assert old.read_bytes() == before


def test_a_newer_format_is_refused_and_left_alone(old: Path) -> None:
    database = FileDisk().open(old)
    database.execute(f"PRAGMA user_version={schema.SCHEMA_VERSION + 1}")
    database.close()

    async def scenario() -> None:
        async with opened(old):
            raise AssertionError

    with pytest.raises(EdgeError, match="newer edge-runtime"):
        asyncio.run(scenario())


def _accepted(path: Path) -> list[tuple[str, str, int]]:
    database = FileDisk().open(path)
    found = [(lane, epoch, seq) for lane in KINDS for seq, epoch in tables.rows(database, f"SELECT seq, epoch FROM lane_{lane}")]
    database.close()
    return found


def _root_page(path: Path, table: str) -> int:
    database = FileDisk().open(path)
    [(page,)] = tables.rows(database, "SELECT rootpage FROM sqlite_master WHERE name = ?", table)
    database.close()
    return int(page)
