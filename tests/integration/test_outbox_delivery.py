"""Delivery on virtual time: what a sink and its far end can do to it, and what the far end must have in the end."""

from __future__ import annotations

import asyncio
import random
from collections.abc import Sequence
from pathlib import Path
from typing import Any

import pytest
from outboxes import LOG, draft, everything, gaps_of, texts

from edge_runtime.outbox.database import FileDisk
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.outbox.file import OutboxFile
from edge_runtime.outbox.store import Store
from edge_runtime.ports import Receipt, SinkError
from edge_runtime.records import LANES, Lane, Record
from edge_runtime.testing.loop import InlineWorker, SeededDice, VirtualClock, VirtualLoop, run
from edge_runtime.testing.sink import FakeReceiver, FakeSink, Faults


class Site:
    """A store and its deliveries, on virtual time and a real file."""

    def __init__(self, path: Path, *, size_bytes_max: int = 8 * 2**20) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop, self.dice = loop, SeededDice(loop.rng(f"dice {loop.steps}"))  # each life draws others
        file = OutboxFile(FileDisk(100), path, VirtualClock(loop), size_bytes_max=size_bytes_max, wal_bytes=2**18)
        worker = InlineWorker(loop.rng("worker"))
        self.store = Store(file, journal_rows_max=100, writer=worker, reader=worker, dice=self.dice, log=LOG)
        self.tasks: list[asyncio.Task[None]] = []
        self.deliveries: dict[str, Delivery] = {}

    async def start(self, sinks: dict[str, Any], lanes: Sequence[Lane] = LANES, limit: int = 10) -> None:
        await self.store.open({name: list(lanes) for name in sinks}, {})
        for name, sink in sinks.items():
            self.deliveries[name] = Delivery(name, sink, lanes, self.store, batch_records_max=limit, dice=self.dice, log=LOG)
            self.tasks.append(asyncio.create_task(self.deliveries[name].run(), name=name))

    async def stop(self) -> None:
        for task in self.tasks:
            task.cancel()
        await asyncio.gather(*self.tasks, return_exceptions=True)
        await self.store.close()

    async def commit(self, count: int, lane: Lane = Lane.RESULT, name: str = "r", size: int = 0) -> None:
        for number in range(count):
            await self.store.commit([draft(f"{name}{number}", lane, size=size)])


def sink(far_end: FakeReceiver, faults: Faults | None = None) -> FakeSink:
    return FakeSink(far_end, "gw", random.Random(1), faults)


def arrived(far_end: FakeReceiver, lane: Lane = Lane.RESULT) -> list[str]:
    return texts([record for record in far_end.kept.values() if record.lane is lane])


def test_everything_arrives_once_and_drained_says_when(tmp_path: Path) -> None:
    async def scenario() -> None:
        site, far_end = Site(tmp_path / "outbox.db"), FakeReceiver()
        faults = Faults(lost=0.1, unheard=0.2, torn=0.2, late=0.1, twice=0.1, latency_s=(0.0, 0.05), late_s_max=3.0)
        await site.start({"cloud": sink(far_end, faults)})
        await site.commit(200)
        await site.deliveries["cloud"].drained()
        assert sorted(arrived(far_end)) == sorted(f"r{n}" for n in range(200))
        assert far_end.repeated > 0
        assert not any(site.deliveries["cloud"].depth().values())
        await site.stop()

    run(scenario, seed=1)


def test_a_dead_sink_slows_no_other(tmp_path: Path) -> None:
    async def scenario() -> None:
        site, dead, alive = Site(tmp_path / "outbox.db"), FakeReceiver(), FakeReceiver()
        dead.up = False
        await site.start({"dead": sink(dead, Faults(timeout_s=3600.0)), "alive": sink(alive)})
        began = site.loop.time()
        await site.commit(100)
        await site.deliveries["alive"].drained()
        assert site.loop.time() - began < 60
        assert len(arrived(alive)) == 100
        assert not arrived(dead)
        assert site.deliveries["dead"].depth()[Lane.RESULT] == 100
        dead.up = True
        await site.deliveries["dead"].drained()
        assert arrived(dead) == [f"r{n}" for n in range(100)]
        await site.stop()

    run(scenario, seed=2)


def test_a_record_that_is_refused_is_set_aside_and_the_rest_goes_on(tmp_path: Path) -> None:
    async def scenario() -> None:
        site, far_end = Site(tmp_path / "outbox.db"), FakeReceiver()
        far_end.poison = lambda record: record.body in (b"r7", b"r23", b"r24")
        await site.start({"cloud": sink(far_end)})
        await site.commit(40)
        await site.deliveries["cloud"].drained()
        bad = {"r7", "r23", "r24"}
        assert sorted(arrived(far_end)) == sorted({f"r{n}" for n in range(40)} - bad)
        await site.commit(1, name="after")
        await site.deliveries["cloud"].drained()
        gaps = gaps_of([record for record in far_end.kept.values() if record.lane is Lane.GAP])
        assert sum(gap.count for gap in gaps) == 3
        assert {gap.reason for gap in gaps} == {"refused by cloud: record 8 is refused", "refused by cloud: record 24 is refused",
                                                "refused by cloud: record 25 is refused"}  # fmt: skip
        assert site.deliveries["cloud"].state.refused == 3
        await site.stop()

    run(scenario, seed=3)


class Stingy(FakeSink):
    """Answers, and has kept nothing."""

    stingy = True

    async def send(self, records: Sequence[Record]) -> Receipt:
        if self.stingy:
            await asyncio.sleep(0.01)
            return Receipt({})
        return await super().send(records)


def test_a_receipt_that_does_not_cover_what_was_sent_is_no_delivery(tmp_path: Path) -> None:
    async def scenario() -> None:
        site, far_end = Site(tmp_path / "outbox.db"), FakeReceiver()
        stingy = Stingy(far_end, "gw", random.Random(1))
        await site.start({"cloud": stingy})
        await site.commit(1)
        await asyncio.sleep(60)
        assert site.deliveries["cloud"].depth()[Lane.RESULT] == 1
        assert "does not cover" in site.deliveries["cloud"].state.cause
        stingy.stingy = False
        await site.deliveries["cloud"].drained()
        assert arrived(far_end) == ["r0"]
        await site.stop()

    run(scenario, seed=4)


class Opens(FakeSink):
    """Opens, and takes nothing."""

    asked = 0

    async def send(self, records: Sequence[Record]) -> Receipt:
        self.asked += 1
        raise SinkError("500", "see the server's log")


def test_a_record_whose_epoch_was_damaged_holds_up_nothing(tmp_path: Path) -> None:
    """A bit of the disk turned over in it: no epoch of ours."""

    async def scenario() -> None:
        far_end = FakeReceiver()
        site = Site(tmp_path / "outbox.db")
        await site.start({})
        await site.commit(20)
        await site.stop()
        database = FileDisk(100).open(tmp_path / "outbox.db")
        database.execute("UPDATE lane_result SET epoch = epoch + 1 WHERE seq = 7")
        database.close()
        site = Site(tmp_path / "outbox.db")
        await site.start({"cloud": sink(far_end)})
        async with asyncio.timeout(20):
            await site.deliveries["cloud"].drained()
        await site.stop()
        assert arrived(far_end) == [f"r{n}" for n in range(20)]

    run(scenario, seed=1)


def test_one_that_opens_and_takes_nothing_is_not_asked_ten_times_a_second(tmp_path: Path) -> None:
    async def scenario() -> None:
        site, opens = Site(tmp_path / "outbox.db"), Opens(FakeReceiver(), "gw", random.Random(1))
        await site.start({"cloud": opens})
        await site.commit(1)
        await asyncio.sleep(600)
        assert 200 < opens.asked < 1_200  # about one a second: the longest wait is 2 s
        await site.stop()

    run(scenario, seed=5)


def test_after_an_outage_what_is_new_overtakes_the_backlog(tmp_path: Path) -> None:
    async def scenario() -> None:
        site, far_end = Site(tmp_path / "outbox.db"), FakeReceiver()
        far_end.up = False
        await site.start({"cloud": sink(far_end, Faults(latency_s=(0.05, 0.1)))})
        await site.commit(300, name="old")
        await asyncio.sleep(5)
        far_end.up = True
        while not site.deliveries["cloud"].state.connected:  # noqa: ASYNC110 - virtual time
            await asyncio.sleep(0.05)
        await site.commit(20, name="new")
        await asyncio.sleep(2.0)
        early = arrived(far_end)
        assert all(f"new{n}" in early for n in range(20))
        assert len(early) < 320
        await site.deliveries["cloud"].drained()
        assert len(arrived(far_end)) == 320
        await site.stop()

    run(scenario, seed=6)


def test_large_records_come_in_small_batches(tmp_path: Path) -> None:
    async def scenario() -> None:
        site, far_end = Site(tmp_path / "outbox.db"), FakeReceiver()
        far_end.up = False
        await site.start({"cloud": sink(far_end)}, limit=500)
        await site.commit(40, size=100_000)
        assert len(await site.store.read(Lane.RESULT, 1, 40, 500)) == 11  # what reaches 1 MiB
        far_end.up = True
        await site.deliveries["cloud"].drained()
        assert arrived(far_end) == [f"r{n}" for n in range(40)]
        await site.stop()

    run(scenario, seed=15)


def test_urgent_lanes_go_first(tmp_path: Path) -> None:
    async def scenario() -> None:
        site, far_end = Site(tmp_path / "outbox.db"), FakeReceiver()
        far_end.up = False
        await site.start({"cloud": sink(far_end)})
        for lane in reversed(LANES[1:]):
            await site.commit(15, lane)
        far_end.up = True
        await site.deliveries["cloud"].drained()
        order = list(dict.fromkeys(record.lane for record in far_end.kept.values()))
        assert order == list(LANES[1:])
        await site.stop()

    run(scenario, seed=7)


def test_evicted_records_are_passed_over_and_their_gap_arrives(tmp_path: Path) -> None:
    async def scenario() -> None:
        site, far_end = Site(tmp_path / "outbox.db", size_bytes_max=2**20), FakeReceiver()
        far_end.up = False
        await site.start({"cloud": sink(far_end)})
        await site.commit(400, size=3_000)
        far_end.up = True
        await site.deliveries["cloud"].drained()
        came = {record.seq for record in far_end.kept.values() if record.lane is Lane.RESULT}
        gaps = gaps_of([record for record in far_end.kept.values() if record.lane is Lane.GAP])
        gone = {seq for gap in gaps for seq in range(gap.first, gap.last + 1)}
        assert came | gone == set(range(1, 401))
        assert not came & gone
        assert sum(gap.count for gap in gaps) == len(gone)
        await site.stop()

    run(scenario, seed=8)


def test_a_restart_sends_nothing_again_that_was_acknowledged(tmp_path: Path) -> None:
    async def scenario() -> None:
        far_end = FakeReceiver()
        for life in range(4):
            site = Site(tmp_path / "outbox.db")
            await site.start({"cloud": sink(far_end)})
            await site.commit(25, name=f"{life}-")
            await site.deliveries["cloud"].drained()
            await asyncio.sleep(1)
            await site.stop()
        assert len(arrived(far_end)) == 100
        assert far_end.repeated == 0
        site = Site(tmp_path / "outbox.db")
        await site.start({})
        assert not await everything(site.store)
        await site.stop()

    run(scenario, seed=9)


@pytest.mark.parametrize("seed", range(10, 14))
def test_two_sinks_with_faults_and_stops_each_get_everything(seed: int, tmp_path: Path) -> None:
    async def scenario() -> None:
        far_ends = {"a": FakeReceiver(), "b": FakeReceiver()}
        for life in range(4):
            site = Site(tmp_path / f"outbox{seed}.db")
            faults = Faults(lost=0.1, unheard=0.1, torn=0.1, late=0.1, latency_s=(0.0, 0.1), late_s_max=5.0)
            await site.start({name: sink(far_end, faults) for name, far_end in far_ends.items()})
            await site.commit(30, name=f"{life}-")
            if life == 3:
                for delivery in site.deliveries.values():
                    await delivery.drained()
            await site.stop()
        for far_end in far_ends.values():
            assert sorted(arrived(far_end)) == sorted(f"{life}-{n}" for life in range(4) for n in range(30))

    run(scenario, seed=seed)
