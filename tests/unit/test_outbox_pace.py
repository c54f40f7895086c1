"""When rows may be written on the event loop, and how callers go on after it."""

from __future__ import annotations

import asyncio
import contextvars
from collections.abc import Awaitable, Callable

import pytest

from edge_runtime.outbox import pace
from edge_runtime.outbox.batch import Batch
from edge_runtime.outbox.pace import Pace
from edge_runtime.ports import EdgeError

MS = 1_000_000


def noted(*took_ns: float) -> Pace:
    one = Pace()
    for each in took_ns:
        one.note(int(each), added=True)
    return one


def test_a_disk_has_to_show_that_it_is_quick() -> None:
    assert not Pace().quick
    assert not noted(*[0.2 * MS] * (pace.PROOF - 1)).quick
    assert noted(*[0.2 * MS] * pace.PROOF).quick


def test_a_disk_that_syncs_in_milliseconds_is_never_waited_for() -> None:
    assert not noted(*[4 * MS] * 10_000).quick
    assert not noted(*[0.2 * MS] * 1_000, *[1.5 * MS] * 50).quick  # it became slow


def test_a_checkpoint_now_and_then_changes_nothing() -> None:
    one = noted(*[0.3 * MS] * pace.PROOF)
    for number in range(1_000):
        one.note(5 * MS if number % 60 == 0 else int(0.3 * MS), added=True)
        assert one.quick


def test_after_a_stall_the_loop_waits_for_none_for_long() -> None:
    one = noted(*[0.2 * MS] * 1_000, pace.STALL_NS)
    for _ in range(pace.PROOF_AFTER_STALL):
        assert not one.quick
        one.note(int(0.2 * MS), added=True)
    assert one.quick


def test_what_need_not_sync_shows_no_more_than_a_stall() -> None:
    one = noted(*[4 * MS] * pace.PROOF)
    for _ in range(1_000):
        one.note(20_000, added=False)
    assert not one.quick
    one = noted(*[0.2 * MS] * pace.PROOF)
    one.note(pace.STALL_NS, added=False)
    assert not one.quick


# --- who waits -------------------------------------------------------------------------------------------------------

WHO: contextvars.ContextVar[str] = contextvars.ContextVar("WHO")


def callers(
    wake: Callable[[Batch], object], caller: Callable[[Awaitable[None], int], Awaitable[str]]
) -> list[str | BaseException]:
    """What each of ten says that waits for one batch."""

    async def main() -> list[str | BaseException]:
        batch = Batch(asyncio.get_running_loop())

        async def named(number: int) -> str:
            WHO.set(f"caller {number}")
            return await caller(batch.durable(), number)

        tasks = [asyncio.create_task(named(number)) for number in range(10)]
        await asyncio.sleep(0)
        tasks[3].cancel()
        wake(batch)
        tasks[4].cancel()  # it has been told, and has not gone on yet
        return await asyncio.gather(*tasks, return_exceptions=True)

    return asyncio.run(main())


async def waits(durable: Awaitable[None], _number: int) -> str:
    await durable
    return WHO.get()


def test_all_go_on_each_in_its_own_context_but_those_that_were_cancelled() -> None:
    said = callers(lambda batch: batch.wake(), waits)
    assert [each for each in said if isinstance(each, str)] == [f"caller {n}" for n in range(10) if n not in (3, 4)]
    assert [type(each) for each in said[3:5]] == [asyncio.CancelledError] * 2


def test_a_failure_is_told_to_each_one() -> None:
    said = callers(lambda batch: batch.wake(EdgeError("no")), waits)
    assert [str(each) for n, each in enumerate(said) if n not in (3, 4)] == ["no"] * 8


def test_who_shields_or_limits_its_wait_goes_on_as_well() -> None:
    async def careful(durable: Awaitable[None], number: int) -> str:
        await (asyncio.shield(durable) if number % 2 else asyncio.wait_for(durable, 60))
        return "on"

    assert callers(lambda batch: batch.wake(), careful).count("on") >= 8  # wait_for does not mind being cancelled too late


def test_one_that_ends_the_program_leaves_nobody_waiting_for_ever() -> None:
    went_on = []

    async def caller(durable: Awaitable[None], number: int) -> None:
        try:
            await durable
        finally:
            went_on.append(number)
        if number == 2:
            raise SystemExit(5)

    async def main() -> None:
        batch = Batch(asyncio.get_running_loop())
        tasks = [asyncio.create_task(caller(batch.durable(), number)) for number in range(10)]
        await asyncio.sleep(0)
        batch.wake()
        await asyncio.wait(tasks)

    with pytest.raises(SystemExit):
        asyncio.run(main())
    assert sorted(went_on) == list(range(10))
