"""Sources that ask again: acknowledged in order when durable, read on meanwhile, throttled when nothing is taken."""

from __future__ import annotations

import asyncio
from collections.abc import Sequence
from typing import Any

import pytest

from edge_runtime import config
from edge_runtime.adapter import Exhausted, Sample
from edge_runtime.sources import handover
from edge_runtime.sources.supervisor import Source
from edge_runtime.testing.adapter import Faulty, FaultyPush, Step, build
from edge_runtime.testing.loop import SeededDice, VirtualClock, VirtualLoop, run

SYNC_S = 0.005


class Journal:
    """accept(): a commit takes `sync_s`; while `full` is set, it waits. Knows a message that came before."""

    def __init__(self, sync_s: float = SYNC_S) -> None:
        self.sync_s = sync_s
        self.numbers: list[int] = []
        self.batches: list[int] = []
        self.lost: list[Sample] = []
        self.duplicates = 0
        self.under_way = 0
        self.room = asyncio.Event()
        self.room.set()

    async def accept(self, samples: Sequence[Sample]) -> Sequence[Sample]:
        self.under_way += 1
        assert self.under_way == 1
        await self.room.wait()
        await asyncio.sleep(self.sync_s)
        for sample in samples:
            number = int(sample.message_id)
            if number in self.numbers[-200:]:
                self.duplicates += 1
            else:
                self.numbers.append(number)
        self.batches.append(len(samples))
        self.under_way -= 1
        return samples

    async def unreachable(self, samples: Sequence[Sample]) -> None:
        self.lost.extend(samples)


class Checked(FaultyPush):
    """Never acknowledges what is not in the journal."""

    journal: Journal

    async def acknowledge(self, samples: Sequence[Sample]) -> None:
        assert int(samples[-1].message_id) in self.journal.numbers
        await super().acknowledge(samples)


def source(journal: Journal, **options: Any) -> tuple[Checked, Source]:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    adapter = build(Checked, options, clock=VirtualClock(loop), dice=SeededDice(loop.rng("device")))
    adapter.journal = journal
    settings = config.Device(adapter="faulty", points=[{"name": "a"}], backoff_s_max=0.5, timeout_s=0.5)
    return adapter, Source(adapter, settings, journal.accept, journal.unreachable)


def numbers(count: int) -> list[int]:
    return list(range(1, count + 1))


def test_2000_messages_a_second_with_5_ms_a_sync() -> None:
    """One message a read, as MQTT hands them out, and no more than 20 unacknowledged: a commit must take all that came."""

    async def scenario() -> None:
        loop, journal = asyncio.get_running_loop(), Journal()
        adapter, supervised = source(journal, interval_s=1 / 2000, messages=4_000)
        await supervised.run()
        assert adapter.acknowledged == journal.numbers == numbers(4_000)
        assert loop.time() < 2.1
        assert max(journal.batches) <= 20

    run(scenario, seed=1)


@pytest.mark.parametrize("seed", range(10))
def test_acknowledged_in_order_and_only_when_durable_through_any_trouble(seed: int) -> None:
    async def scenario() -> None:
        journal = Journal()
        adapter, supervised = source(journal, interval_s=0.002, messages=1_000, lost=0.01, error=0.005)
        await supervised.run()
        assert adapter.acknowledged == journal.numbers == numbers(1_000)
        assert supervised.state.counters.opens > 3
        assert all(sample.message_id == "" and sample.values == (None,) for sample in journal.lost)

    run(scenario, seed=seed)


def test_while_nothing_is_taken_nothing_more_is_read() -> None:
    async def scenario() -> None:
        journal = Journal()
        journal.room.clear()  # the disk is full
        adapter, supervised = source(journal, messages=10_000, unacknowledged_max=100_000)
        task = asyncio.create_task(supervised.run())
        await asyncio.sleep(60)
        assert adapter.number <= 2 * handover.SAMPLES_WAITING_MAX + 2
        assert adapter.acknowledged == []
        journal.room.set()
        await task
        assert adapter.acknowledged == numbers(10_000)

    run(scenario, seed=1)


def test_stop_hands_on_and_acknowledges_what_was_read() -> None:
    async def scenario() -> None:
        journal = Journal(sync_s=0.05)
        adapter, supervised = source(journal, interval_s=0.001, unacknowledged_max=1_000)
        task = asyncio.create_task(supervised.run())
        await asyncio.sleep(1.23)
        supervised.stop()
        await task
        assert adapter.acknowledged == journal.numbers == numbers(adapter.number)
        assert adapter.calls[-1][1] == "close"
        assert journal.lost == []

    run(scenario, seed=1)


def test_a_source_that_ends_before_anything_was_taken() -> None:
    class Hasty(Checked):
        """Never waits."""

        async def read(self) -> Sequence[Sample]:
            self.number += 1
            if self.number > 3:
                raise Exhausted
            return [self._sample(self.number, Step.GOOD, str(self.number))]

    async def scenario() -> None:
        journal = Journal()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        adapter = build(Hasty, clock=VirtualClock(loop), dice=SeededDice(loop.rng("d")))
        adapter.journal = journal
        await Source(adapter, config.Device(adapter="faulty", points=[{"name": "a"}]), journal.accept).run()
        assert adapter.acknowledged == journal.numbers == numbers(3)

    run(scenario, seed=1)


def test_a_connection_lost_under_a_commit_drops_its_acknowledgements() -> None:
    async def scenario() -> None:
        journal = Journal(sync_s=0.2)
        adapter, supervised = source(journal, messages=30, interval_s=0.01)
        adapter.reads.extend([Step.GOOD] * 3 + [Step.LOST])
        await supervised.run()
        assert journal.duplicates >= 3
        assert adapter.acknowledged == journal.numbers == numbers(30)

    run(scenario, seed=1)


@pytest.mark.parametrize("fault", ["raises", "hangs"])
def test_an_acknowledge_that_breaks_the_rules_costs_the_connection_not_the_messages(fault: str) -> None:
    class Bad(Checked):
        faults = 3

        async def acknowledge(self, samples: Sequence[Sample]) -> None:
            if self.faults:
                self.faults -= 1
                if fault == "raises":
                    raise KeyError("gone")
                await asyncio.sleep(1e6)
            await super().acknowledge(samples)

    async def scenario() -> None:
        journal = Journal()
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        adapter = build(Bad, {"messages": 50, "interval_s": 0.01}, clock=VirtualClock(loop), dice=SeededDice(loop.rng("d")))
        adapter.journal = journal
        settings = config.Device(adapter="faulty", points=[{"name": "a"}], backoff_s_max=0.5, timeout_s=0.5)
        supervised = Source(adapter, settings, journal.accept, journal.unreachable)
        await supervised.run()
        assert adapter.acknowledged == journal.numbers == numbers(50)
        assert supervised.state.counters.failures == 3

    run(scenario, seed=1)


def test_cancelling_does_not_wait_for_a_disk_that_takes_nothing() -> None:
    async def scenario() -> None:
        journal = Journal()
        journal.room.clear()
        adapter, supervised = source(journal, interval_s=0.1)
        task = asyncio.create_task(supervised.run())
        await asyncio.sleep(10)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert not adapter.is_open
        assert asyncio.get_running_loop().time() < 10.1

    run(scenario, seed=1)


def test_a_source_that_never_waits_lets_the_others_run() -> None:
    class Endless(Faulty):
        mode = "pushed"

        async def read(self) -> Sequence[Sample]:
            self.number += 1
            return [self._sample(self.number, Step.GOOD)]

    async def scenario() -> None:
        taken = 0

        async def accept(samples: Sequence[Sample]) -> None:
            nonlocal taken
            taken += len(samples)

        adapter = build(Endless, clock=VirtualClock(asyncio.get_running_loop()))
        supervised = Source(adapter, config.Device(adapter="faulty", points=[{"name": "a"}]), accept)
        task = asyncio.create_task(supervised.run())
        for _ in range(50):
            await asyncio.sleep(0)
        assert 0 < taken < 50 * 100
        supervised.stop()
        await task

    run(scenario, seed=1)
