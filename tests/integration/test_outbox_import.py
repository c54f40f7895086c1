"""The outbox of a gateway that is dead, taken into that of the hardware that took its name: all there, nothing twice."""

from __future__ import annotations

import asyncio
import json
import os
import sqlite3
import subprocess
import sys
from pathlib import Path
from typing import Any

import pytest
from brokers import mosquitto
from gateways import PATIENT, GatewayProcess, assert_once, config, press, publisher, until, waiting
from outboxes import SINKS, draft, everything, gaps_of, ids, opened, sample, texts
from receivers import receiver

from edge_runtime import cli
from edge_runtime.board.system import SystemClock, SystemDice
from edge_runtime.outbox import importing
from edge_runtime.outbox.batch import Position
from edge_runtime.outbox.database import PAGE_BYTES, FileDisk
from edge_runtime.outbox.importing import Imported, ImportRefused, Place
from edge_runtime.outbox.merging import NoPlace
from edge_runtime.records import LANES, Lane

CAP = 16 * 2**20
PRIVATE = {"cloud": [lane for lane in LANES if not lane.endswith("_gateway")]}


def take_in(old: Path, new: Path, *, cap: int = CAP, points: dict[str, int] | None = None) -> Imported:
    return importing.take_in(
        old, Place(new, cap, 4 * 2**20, points), disk=FileDisk(), clock=SystemClock(), dice=SystemDice(), tell=lambda *_: None
    )


def filled(
    path: Path, first: int, count: int, lane: Lane = Lane.RESULT, *, delivered: tuple[tuple[int, int], ...] = (), size: int = 0
) -> None:  # fmt: skip
    """Records named first..; of which some are delivered."""

    async def scenario() -> None:
        async with opened(path, SINKS) as store:
            drafts = [draft(number, lane, size=size) for number in range(first, first + count)]
            for at in range(0, count, 500):
                await store.commit(drafts[at : at + 500])
            if delivered:
                store.acknowledge("cloud", lane, delivered)
                await store.commit([])

    asyncio.run(scenario())


def holds(path: Path, lane: Lane = Lane.RESULT) -> list[str]:
    async def scenario() -> list[str]:
        async with opened(path, SINKS) as store:
            return texts(await everything(store, lane))

    return asyncio.run(scenario())


def rot_root(path: Path, table: str) -> None:
    database = sqlite3.connect(path)
    [(page,)] = database.execute("SELECT rootpage FROM sqlite_master WHERE name = ?", (table,)).fetchall()
    database.close()
    with path.open("r+b") as file:
        file.seek((page - 1) * PAGE_BYTES)
        file.write(b"\xee" * PAGE_BYTES)


@pytest.fixture
def places(tmp_path: Path) -> tuple[Path, Path]:
    return tmp_path / "old" / "outbox.db", tmp_path / "new" / "outbox.db"


def test_it_is_the_gateways_users_and_nobody_elses(places: tuple[Path, Path]) -> None:
    """`sudo edge-runtime outbox import`: the gateway could not write root's file."""
    if os.geteuid() != 0:
        pytest.skip("only root can give files away: not tried")
    old, new = places
    filled(old, 1, 3)
    new.parent.mkdir()
    os.chown(new.parent, 12_345, 12_345)
    assert importing.reserve(new, {"cloud": [Lane.RESULT]}, FileDisk())
    for told in ("reserved", "taken in"):
        found = new.stat()
        assert (found.st_uid, found.st_gid, found.st_mode & 0o777) == (12_345, 12_345, 0o600), told
        take_in(old, new)


def test_into_an_empty_one_all_of_it_comes_with_its_ids(places: tuple[Path, Path]) -> None:
    old, new = places
    filled(old, 1, 20, delivered=((1, 5), (8, 8)))
    filled(old, 1, 3, Lane.EVENT)
    new.parent.mkdir()
    before = ids(old)
    done = take_in(old, new)
    assert done.records == {Lane.EVENT: 3, Lane.RESULT: 14}
    assert ids(new) == before == ids(old)

    async def scenario() -> None:
        async with opened(new, SINKS) as store:
            assert store.acknowledged("cloud", Lane.RESULT) == ((1, 5), (8, 8))
            await store.commit([draft("mine")])
            records = await everything(store)
            assert (records[-1].seq, records[-1].epoch) == (21, store.epochs[-1])
            assert records[-1].epoch not in {each.epoch for each in records[:-1]}

    asyncio.run(scenario())


def test_again_takes_nothing_twice_also_when_all_of_it_is_delivered(places: tuple[Path, Path]) -> None:
    old, new = places
    filled(old, 1, 5)
    new.parent.mkdir()
    assert not take_in(old, new).already
    assert take_in(old, new).already
    filled(new, 6, 1, delivered=((1, 6),))
    assert holds(new) == []
    assert take_in(old, new).already
    assert holds(new) == []


def test_a_copy_that_was_made_while_it_ran_is_not_taken_for_the_whole(places: tuple[Path, Path], tmp_path: Path) -> None:
    """An image of the running gateway was taken in; then comes its real disk, which went on under the same epoch."""
    old, new = places
    image = tmp_path / "image.db"

    async def scenario() -> None:
        async with opened(old, SINKS) as store:
            await store.commit([draft(n) for n in range(5)])
            FileDisk().copy(FileDisk().open(old), image)
            await store.commit([draft(n) for n in range(5, 12)])

    asyncio.run(scenario())
    new.parent.mkdir()
    take_in(image, new)
    for restarted in (False, True):  # also where a later epoch stands on the disk that is new to us
        with pytest.raises(ImportRefused, match=r"7 records came later") as caught:
            take_in(old, new)
        assert "export" in caught.value.hint
        assert holds(new) == [str(n) for n in range(5)]
        if not restarted:
            filled(old, 12, 1, Lane.EVENT)
    assert take_in(image, new).already


def test_a_new_outbox_that_keeps_the_place_free_takes_it_below_its_own(places: tuple[Path, Path]) -> None:
    old, new = places
    filled(old, 1, 10, delivered=((1, 4),))
    new.parent.mkdir()
    assert importing.reserve(new, SINKS, FileDisk())
    assert not importing.reserve(new, SINKS, FileDisk())
    filled(new, 100, 3, delivered=((1, importing.RESERVED + 1),))
    take_in(old, new)
    assert holds(new) == [*map(str, range(5, 11)), "101", "102"]

    async def scenario() -> None:
        async with opened(new, SINKS) as store:
            assert store.acknowledged("cloud", Lane.RESULT) == ((1, 4), (11, importing.RESERVED + 1))

    asyncio.run(scenario())


def test_where_its_own_wait_it_is_refused_and_nothing_changes(places: tuple[Path, Path]) -> None:
    old, new = places
    filled(old, 1, 10)
    filled(new, 100, 3)
    before = ids(new)
    with pytest.raises(NoPlace, match="result") as caught:
        take_in(old, new)
    assert "delivered" in caught.value.hint
    assert ids(new) == before
    assert [each.name for each in new.parent.iterdir()] == ["outbox.db"]


def test_where_its_own_are_delivered_the_old_ones_take_their_place(places: tuple[Path, Path]) -> None:
    """Also in the other lanes, and where its own numbers are higher."""
    old, new = places
    filled(old, 1, 10)
    filled(old, 1, 2, Lane.EVENT)
    filled(new, 100, 30, delivered=((1, 30),))
    filled(new, 100, 2, Lane.SAMPLE)
    own = ids(new)
    take_in(old, new)
    assert holds(new) == [*map(str, range(1, 11))]
    assert set(own) < set(ids(new))

    async def scenario() -> None:
        async with opened(new, SINKS) as store:
            assert store.acknowledged("cloud", Lane.RESULT) == ((11, 30),)
            await store.commit([draft("mine")])
            assert (await everything(store))[-1].seq == 31

    asyncio.run(scenario())


def test_what_never_leaves_a_gateway_gets_new_numbers_where_they_meet(places: tuple[Path, Path]) -> None:
    old, new = places
    lane = Lane.RESULT_GATEWAY

    async def fill(path: Path, words: list[str]) -> None:
        async with opened(path, PRIVATE) as store:
            for word in words:
                await store.commit([draft(word, lane)])

    asyncio.run(fill(old, ["a", "b"]))
    asyncio.run(fill(new, ["c"]))
    take_in(old, new)

    async def scenario() -> list[str]:
        async with opened(new, PRIVATE) as store:
            return texts(await everything(store, lane))

    assert asyncio.run(scenario()) == ["a", "b", "c"]


def test_receipts_for_old_records_count(places: tuple[Path, Path]) -> None:
    """What the far end confirms of the old epochs is found among the records that were taken in."""
    from edge_runtime.ports import Receipt

    old, new = places
    filled(old, 1, 10)
    filled(new, 1, 4, Lane.EVENT, delivered=((1, 4),))
    take_in(old, new)

    async def scenario() -> None:
        async with opened(new, SINKS) as store:
            epoch = (await everything(store))[0].epoch
            assert await store.learn(Receipt({(epoch, Lane.RESULT): ((2, 7),)})) == {Lane.RESULT: ((2, 7),)}

    asyncio.run(scenario())


def test_open_windows_go_on_where_the_device_is_the_same(places: tuple[Path, Path]) -> None:
    old, new = places

    async def fill(path: Path, device: str, count: int) -> None:
        async with opened(path, SINKS, {f"p-{device}": device}) as store:
            await store.journal(device, [sample(n, f"m{n}", device) for n in range(count)])
            await store.commit([], Position(f"p-{device}", device, 2, b"s"))

    for device in ("plc", "gone", "wide"):
        asyncio.run(_both(fill, old, device))
    new.parent.mkdir()
    done = take_in(old, new, points={"plc": 1, "wide": 7})
    assert done.samples.keys() == {"plc"}
    assert {device: why for device, (_, why) in done.samples_left.items()} == {
        "gone": "the configuration has no such device", "wide": "the device has other points now"
    }  # fmt: skip


async def _both(fill: Any, old: Path, device: str) -> None:
    """All three devices have a pipeline, or the store would forget the others."""
    pipelines = {f"p-{each}": each for each in ("plc", "gone", "wide")}
    async with opened(old, SINKS, pipelines) as store:
        await store.journal(device, [sample(n, f"m{n}", device) for n in range(4)])
        await store.commit([], Position(f"p-{device}", device, store.journal_head(device) - 2, b"s"))


def test_a_device_that_is_read_here_already_keeps_its_own_journal(places: tuple[Path, Path]) -> None:
    old, new = places

    async def fill(path: Path, devices: dict[str, int]) -> None:
        async with opened(path, SINKS, {f"p-{each}": each for each in devices}) as store:
            for device, first in devices.items():
                await store.journal(device, [sample(first + n, f"m{first + n}", device) for n in range(4)])
                await store.commit([], Position(f"p-{device}", device, store.journal_head(device) - 1, b"s"))

    asyncio.run(fill(old, {"plc": 0, "other": 50}))
    asyncio.run(fill(new, {"plc": 100}))
    done = take_in(old, new)
    assert done.samples == {"other": 2}
    assert done.samples_left == {"plc": (2, "the device is read here already")}

    async def scenario() -> None:
        async with opened(new, SINKS, {"p-plc": "plc", "p-other": "other"}) as store:
            for device, values in (("plc", [102, 103]), ("other", [52, 53])):
                position = await store.position(f"p-{device}", device)
                assert position
                assert [each.values[0] for each in await store.read_journal(device, position.row, 10)] == values
                assert await store.journal(device, [sample(0, f"m{values[0]}", device)]) == [0]  # a redelivery is recognised

    asyncio.run(scenario())


def test_what_does_not_fit_is_refused_before_and_told_by_how_much(places: tuple[Path, Path]) -> None:
    old, new = places

    async def scenario() -> None:
        async with opened(old, SINKS) as store:
            for number in range(40):
                await store.commit([draft(number, size=100_000)])

    asyncio.run(scenario())
    new.parent.mkdir()
    with pytest.raises(ImportRefused, match=r"[\d,]+ bytes more than outbox.size_bytes_max") as caught:
        take_in(old, new, cap=2 * 2**20 + 4 * 2**20)
    assert not new.exists()
    enough = int(caught.value.hint.split()[-1].replace(",", ""))
    assert sum(take_in(old, new, cap=enough).records.values()) == 40


def test_a_damaged_disk_gives_what_can_be_read_and_says_what_is_gone(places: tuple[Path, Path]) -> None:
    old, new = places
    filled(old, 1, 400, size=1_000)
    with old.open("r+b") as file:
        file.seek(old.stat().st_size // 2 // 4096 * 4096)
        file.write(os.urandom(4096))
    image = old.read_bytes()
    new.parent.mkdir()
    done = take_in(old, new)
    assert old.read_bytes() == image

    async def scenario() -> None:
        async with opened(new, SINKS) as store:
            there = [record.seq for record in await everything(store)]
            gone = [gap for gap in gaps_of(await everything(store, Lane.GAP)) if gap.lane is Lane.RESULT]
            told = [seq for gap in gone for seq in range(gap.first, gap.last + 1)]
            assert sorted([*there, *told]) == list(range(1, 401))
            assert 0 < len(told) == done.unreadable[Lane.RESULT]

    asyncio.run(scenario())


def test_what_took_another_one_in_is_salvaged_like_any_other(places: tuple[Path, Path]) -> None:
    old, new = places
    filled(old, 1, 20)
    new.parent.mkdir()
    take_in(old, new)
    filled(new, 21, 3, Lane.EVENT)
    rot_root(new, "lane_event")

    async def scenario() -> None:
        async with asyncio.timeout(20), opened(new, SINKS) as store:
            assert await everything(store, Lane.EVENT) == []
            await store.commit([draft(24)])
            assert texts(await everything(store)) == [str(n) for n in [*range(1, 21), 24]]

    asyncio.run(scenario())
    assert take_in(old, new).already


@pytest.mark.parametrize("content", [b"", b"no database at all" * 1000])
def test_what_is_no_outbox_is_refused(places: tuple[Path, Path], content: bytes) -> None:
    old, new = places
    old.parent.mkdir()
    new.parent.mkdir()
    old.write_bytes(content)
    with pytest.raises(ImportRefused, match=f"{old}: nothing in it"):
        take_in(old, new)
    assert not list(new.parent.iterdir())


def test_it_is_not_taken_into_itself(places: tuple[Path, Path], tmp_path: Path) -> None:
    old, _ = places
    filled(old, 1, 20)
    link = tmp_path / "link.db"
    link.symlink_to(old)
    for same in (old, link):
        with pytest.raises(ImportRefused, match="is the outbox that is to take it in"):
            take_in(same, old)


def test_an_old_file_that_was_copied_beside_the_new_one_is_taken_in(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    settings = config({"press": press("mqtt://127.0.0.1:1")}, {"cloud": {"type": "https", "url": "http://127.0.0.1:1"}})
    new = GatewayProcess(tmp_path, settings)
    copied = new.data_dir / "old.db"
    filled(copied, 1, 20)
    (new.data_dir / "gateway.lock").touch()
    assert cli.main(["outbox", "import", str(copied), "--into", str(new.file), "--json"]) == 0
    assert json.loads(capfd.readouterr().out)["taken"] == 20


def test_a_crash_on_the_way_leaves_it_as_it_was(places: tuple[Path, Path]) -> None:
    """kill -9 wherever it is: the outbox is the one before or the one after, and the next try does it."""
    old, new = places
    filled(old, 1, 3_000)
    filled(new, 1, 2, Lane.EVENT)
    before = ids(new)
    code = (
        "import os, sys; from pathlib import Path; sys.path.insert(0, 'tests'); sys.path.insert(0, 'tests/integration');"
        "from edge_runtime.outbox import importing; from edge_runtime.outbox.importing import Place;"
        "from edge_runtime.outbox.database import FileDisk; from edge_runtime.board.system import SystemClock, SystemDice;"
        "left = [int(sys.argv[3])]\n"
        "def tell(*_):\n"
        "    left[0] -= 1\n"
        "    if not left[0]: os.kill(os.getpid(), 9)\n"
        "importing.take_in(Path(sys.argv[1]), Place(Path(sys.argv[2]), 16 * 2**20, 4 * 2**20), disk=FileDisk(),"
        " clock=SystemClock(), dice=SystemDice(), tell=tell)"
    )
    for steps in (1, 20, 45):
        done = subprocess.run([sys.executable, "-c", code, str(old), str(new), str(steps)], capture_output=True, text=True)
        assert done.returncode == -9, done.stderr
        assert ids(new) == before
    assert take_in(old, new).records[Lane.RESULT] == 3_000
    assert len(ids(new)) == 3_002
    assert [each.name for each in new.parent.iterdir()] == ["outbox.db"]


# --- the whole way ---------------------------------------------------------------------------------------------------


@pytest.mark.slow
def test_half_delivered_killed_taken_in_all_there_once(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with mosquitto(tmp_path, **PATIENT) as broker, receiver(tmp_path) as far_end:
        settings = config({"press": press(broker.url)}, {"cloud": {"type": "https", "url": far_end.url}})
        old = GatewayProcess(tmp_path / "old", settings)
        new = GatewayProcess(tmp_path / "new", settings)
        try:
            old.start()
            old.wait("source_connected")
            with publisher(broker, rate=2_000, count=500) as machine:
                machine.finish()
            old.delivers(far_end, "all", 500)
            far_end.kill()
            with publisher(broker, rate=2_000, count=700, first=500) as machine:
                machine.finish()
            until(lambda: waiting(old) >= 700, "700 records that wait")
            assert cli.main(["outbox", "import", str(old.data_dir / "outbox.db"), "--into", str(new.file)]) == 1
            assert "runs on this folder" in capfd.readouterr().err
            old.kill()
            far_end.start()
            command = ["outbox", "import", str(old.data_dir / "outbox.db"), "--into", str(new.file), "--json"]
            assert cli.main(command) == 0
            said = json.loads(capfd.readouterr().out)
            assert said["taken"] >= 700
            new.start()
            new.wait("gateway_started")
            assert cli.main(command) == 1
            refused = capfd.readouterr().err
            assert "another gateway is running" in refused
            assert "data_dir" not in refused, "the hint is for who imports"
            new.delivers(far_end, "all", 1_200)
            with publisher(broker, rate=2_000, count=100, first=1_200) as machine:
                machine.finish()
            new.delivers(far_end, "all", 1_300)
            assert_once(far_end, list(range(1_300)))
            assert new.stop() == 0
            assert cli.main(command) == 0
            assert json.loads(capfd.readouterr().out)["already"]
        finally:
            old.end()
            new.end()
