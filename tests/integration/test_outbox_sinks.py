"""The outbox's file tells which sinks there are, what they take and who confirms; each start writes it anew."""

from __future__ import annotations

import asyncio
from collections.abc import Mapping, Sequence
from pathlib import Path

from outboxes import draft, everything, new_store, opened, texts
from worlds import Site, box, simulated

from edge_runtime.outbox import tables
from edge_runtime.outbox.database import FileDisk, open_read_only
from edge_runtime.records import LANES, Lane

Sinks = dict[str, tuple[tuple[Lane, ...], bool]]


def start(path: Path, lanes: Mapping[str, Sequence[Lane]], unconfirmed: Sequence[str] = ()) -> None:
    async def once() -> None:
        store = new_store(path)
        await store.open(lanes, {}, unconfirmed)
        await store.commit([draft("one more")])
        await store.close()

    asyncio.run(asyncio.wait_for(once(), 30))


def sinks(path: Path) -> Sinks:
    database = open_read_only(path)
    try:
        return tables.sinks(database)
    finally:
        database.close()


def without_table(path: Path) -> None:
    """As it was before files had one."""
    database = FileDisk().open(path)
    database.execute("DROP TABLE sinks")
    database.close()


def test_it_follows_the_configuration(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    start(path, {"cloud": [Lane.RESULT, Lane.GAP], "local": [Lane.EVENT]}, ["local"])
    assert sinks(path) == {"cloud": ((Lane.GAP, Lane.RESULT), True), "local": ((Lane.EVENT,), False)}
    start(path, {"local": LANES, "other": [Lane.SAMPLE]}, ["other"])
    assert sinks(path) == {"local": (LANES, True), "other": ((Lane.SAMPLE,), False)}
    start(path, {})
    assert sinks(path) == {}


def test_a_file_written_before_there_was_the_table_gets_it(tmp_path: Path) -> None:
    path = tmp_path / "outbox.db"
    start(path, {"cloud": LANES})
    without_table(path)
    assert sinks(path) == {}
    start(path, {"cloud": LANES}, ["cloud"])
    assert sinks(path) == {"cloud": (LANES, False)}


def test_a_salvage_while_running_takes_it_over(tmp_path: Path) -> None:
    """Or lets it be, in a file that had none."""

    async def salvaged(path: Path) -> None:
        async with opened(path) as store:
            await store._writer.run(store._file.drop_writer)
            if path.name == "old.db":
                without_table(path)
            store._file.corrupt = True
            await store.commit([draft("after")])
            assert texts(await everything(store)) == ["after"]

    for name, expected in (("new.db", {"cloud": (LANES, True)}), ("old.db", {})):
        asyncio.run(salvaged(tmp_path / name))
        assert (tmp_path / f"{name}.corrupt-1").exists()
        assert sinks(tmp_path / name) == expected


def test_a_gateway_writes_what_its_configuration_says(tmp_path: Path) -> None:
    """Also of a sink that could not be made, so that nobody could ask it."""
    path = ""

    async def scenario(site: Site) -> None:
        nonlocal path
        site.broken_sinks["cloud"] = "url: no port"
        configured = {
            "cloud": {"type": "https", "url": "http://x", "lanes": ["result"]},
            "plant": {"type": "mqtt", "url": "mqtt://x", "receiver": "plant", "lanes": ["result"]},
            "scada": {"type": "mqtt", "url": "mqtt://x", "lanes": ["gap", "event"]},
        }
        async with site.running(devices={"d": box("a")}, pipelines={"raw": {"device": "d"}}, sinks=configured) as gateway:
            path = str(gateway.data_dir / gateway.settings.outbox.file)

    simulated(scenario, tmp_path)
    assert sinks(Path(path)) == {
        "cloud": ((Lane.RESULT,), True),
        "plant": ((Lane.RESULT,), True),
        "scada": ((Lane.GAP, Lane.EVENT), False),
    }
