"""The real clock, dice and worker."""

from __future__ import annotations

import asyncio
import subprocess
import sys
import threading
from pathlib import Path

import pytest
from waiting import until

from edge_runtime.board import system
from edge_runtime.board.system import SystemClock, SystemDice, ThreadWorker, left_behind
from edge_runtime.ports import EdgeError


def test_the_clock_never_goes_back_and_knows_its_boot() -> None:
    clock = SystemClock()
    stamps = [clock.now() for _ in range(1_000)]
    assert [stamp.mono_ns for stamp in stamps] == sorted(stamp.mono_ns for stamp in stamps)
    assert {stamp.boot for stamp in stamps} == {SystemClock().now().boot}
    kernel = Path("/proc/sys/kernel/random/boot_id")
    if kernel.exists():
        assert stamps[0].boot == kernel.read_text().strip().replace("-", "")


def test_whether_the_clock_is_right_is_asked_rarely_and_noticed(monkeypatch: pytest.MonkeyPatch) -> None:
    asked: list[bool] = []

    def synchronised() -> bool:
        asked.append(len(asked) > 0)
        return asked[-1]

    monkeypatch.setattr(system, "is_synchronised", synchronised)
    clock = SystemClock()
    assert [clock.now().synced for _ in range(100)] == [False] * 100
    clock._checked_ns -= int(system.SYNC_CHECK_S * 1e9) + 1  # so much later
    assert clock.now().synced
    assert len(asked) == 2


def test_timesyncd_counts_where_the_kernel_says_nothing(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system, "_kernel_says_synchronised", lambda: False)
    monkeypatch.setattr(system, "_TIMESYNCD", tmp_path / "synchronized")
    assert not system.is_synchronised()
    (tmp_path / "synchronized").touch()
    assert system.is_synchronised()


def test_without_a_boot_id_no_two_processes_share_one(monkeypatch: pytest.MonkeyPatch, tmp_path: Path) -> None:
    monkeypatch.setattr(system, "_BOOT_ID", tmp_path / "none")
    assert system.boot_id() != system.boot_id()


def test_dice() -> None:
    dice = SystemDice()
    tokens = [dice.token() for _ in range(1_000)]
    assert len(set(tokens)) == 1_000
    assert all(len(token) == 16 and int(token, 16) >= 0 for token in tokens)
    assert all(2.0 <= dice.uniform(2.0, 3.0) <= 3.0 for _ in range(100))


def test_a_worker_does_one_call_after_the_other_in_one_thread() -> None:
    async def scenario() -> None:
        worker = ThreadWorker("test")
        names = await asyncio.gather(*(worker.run(threading.get_ident) for _ in range(20)))
        assert len(set(names)) == 1
        assert names[0] != threading.get_ident()
        with pytest.raises(ZeroDivisionError):
            await worker.run(divmod, 1, 0)
        worker.close()

    asyncio.run(scenario())


def test_a_call_that_has_begun_is_finished_and_close_waits_for_it() -> None:
    async def scenario() -> None:
        worker, done = ThreadWorker("test"), []
        loop, begun, go_on = asyncio.get_running_loop(), asyncio.Event(), threading.Event()

        def work() -> None:
            loop.call_soon_threadsafe(begun.set)
            assert go_on.wait(10)
            done.append("begun")

        first = asyncio.create_task(worker.run(work))
        second = asyncio.create_task(worker.run(done.append, "waiting"))
        await begun.wait()
        first.cancel()
        second.cancel()
        results = await asyncio.gather(first, second, return_exceptions=True)
        assert [type(result) for result in results] == [asyncio.CancelledError] * 2
        assert done == []
        go_on.set()
        worker.close()
        assert done == ["begun"]

    asyncio.run(scenario())


def test_it_is_idle_when_its_thread_is_not_when_nobody_waits_any_more() -> None:
    async def scenario() -> None:
        worker, begun, go_on = ThreadWorker("test"), threading.Event(), threading.Event()
        assert worker.idle()
        calls = [asyncio.create_task(worker.run(lambda: begun.set() or go_on.wait(10))) for _ in range(2)]
        await asyncio.to_thread(begun.wait)
        for call in calls:
            call.cancel()
        await asyncio.wait(calls)
        assert not worker.idle()
        go_on.set()
        await until(worker.idle)
        with pytest.raises(ZeroDivisionError):
            await worker.run(divmod, 1, 0)
        assert worker.idle()
        worker.close()

    asyncio.run(scenario())


def test_more_calls_than_it_holds_wait_outside() -> None:
    async def scenario() -> None:
        worker, go_on = ThreadWorker("test", calls_max=3), threading.Event()
        calls = [asyncio.create_task(worker.run(go_on.wait, 10)) for _ in range(10)]
        await asyncio.sleep(0)
        assert worker._calls.qsize() <= 3
        go_on.set()
        assert all(await asyncio.gather(*calls))
        worker.close()

    asyncio.run(scenario())


def test_a_call_that_never_ends_does_not_keep_the_program() -> None:
    program = """
import asyncio, threading
from edge_runtime.board.system import ThreadWorker

async def main():
    begun = threading.Event()
    stuck = asyncio.create_task(ThreadWorker("stuck").run(lambda: begun.set() or threading.Event().wait()))
    await asyncio.to_thread(begun.wait)
    stuck.cancel()

asyncio.run(main())
"""
    subprocess.run([sys.executable, "-c", program], check=True, timeout=30)


def test_its_thread_has_its_name_and_is_gone_after_close() -> None:
    async def scenario() -> None:
        worker = ThreadWorker("press-writer")
        thread = await worker.run(threading.current_thread)
        assert thread.name == "press-writer"
        worker.close()
        worker.close()
        assert not thread.is_alive()
        with pytest.raises(EdgeError, match="press-writer is closed"):
            await worker.run(print)

    asyncio.run(scenario())


def test_a_thread_that_does_not_come_back_is_known_at_the_end() -> None:
    """The program then ends without shutting the interpreter down around it."""
    stays, goes, ends = ThreadWorker("stays"), ThreadWorker("goes"), threading.Event()

    async def both() -> None:
        begun = threading.Event()
        waiting = asyncio.ensure_future(stays.run(lambda: (begun.set(), ends.wait())))
        await goes.run(lambda: None)
        await asyncio.to_thread(begun.wait)
        waiting.cancel()
        stays.abandon()
        goes.abandon()

    asyncio.run(both())
    assert left_behind(0.1) == ["stays"]
    ends.set()
    assert left_behind(5.0) == []


def test_many_threads_that_do_not_come_back_are_waited_for_no_longer_than_one(monkeypatch: pytest.MonkeyPatch) -> None:
    ends, waits_s, join = threading.Event(), [], threading.Thread.join

    def noted(thread: threading.Thread, timeout: float | None = None) -> None:
        if thread.name in names:  # other tests have left some behind, too, which end at once
            waits_s.append(timeout)
        join(thread, timeout)

    async def begin(worker: ThreadWorker) -> None:
        begun = asyncio.Event()
        waiting = asyncio.ensure_future(
            worker.run(lambda loop: (loop.call_soon_threadsafe(begun.set), ends.wait()), asyncio.get_running_loop())
        )
        await begun.wait()
        waiting.cancel()
        worker.abandon()

    names = [f"stays-{number}" for number in range(5)]
    for name in names:
        asyncio.run(begin(ThreadWorker(name)))
    with monkeypatch.context() as patched:
        patched.setattr(threading.Thread, "join", noted)
        assert sorted(left_behind(0.1)) == names
    assert sum(waits_s) < 0.2
    ends.set()
    assert left_behind(5.0) == []
