"""The simulator's loop: the same seed is the same run; a crash leaves the world as it was at that instant."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import subprocess
import sys
import threading
import time
from collections.abc import AsyncIterator, Callable, Coroutine
from typing import Any

import pytest

from edge_runtime.testing.loop import (
    Crashed,
    Deadlock,
    Fence,
    InlineWorker,
    Livelock,
    SeededDice,
    Unhandled,
    VirtualClock,
    VirtualLoop,
    run,
)


def loop() -> VirtualLoop:
    running = asyncio.get_running_loop()
    assert isinstance(running, VirtualLoop)
    return running


# --- time ------------------------------------------------------------------------------------------------------------


def test_an_hour_passes_at_once() -> None:
    async def main() -> tuple[float, int]:
        ticks = 0
        while loop().time() < 3600:
            await asyncio.sleep(1)
            ticks += 1
        return loop().time(), ticks

    began = time.monotonic()
    assert run(main, seed=1) == (3600.0, 3600)
    assert time.monotonic() - began < 60


def test_time_starts_at_zero_and_jumps_exactly_to_the_timer() -> None:
    async def main() -> list[float]:
        seen = [loop().time()]
        for delay in (0.1, 0.2, 0.3, 1e-9, 86_400.0):
            deadline = loop().time() + delay
            await asyncio.sleep(delay)
            seen.append(loop().time() - deadline)
        return seen

    assert run(main, seed=1) == [0.0] * 6


def test_timeouts_and_cancelled_timers() -> None:
    async def main() -> int:
        for _ in range(1_000):
            async with asyncio.timeout(1_000):
                await asyncio.sleep(0.001)
        kept = len(loop()._timers)
        with pytest.raises(TimeoutError):
            async with asyncio.timeout(5):
                await asyncio.sleep(6)
        return kept

    assert run(main, seed=1) < 300


# --- the same seed is the same run -----------------------------------------------------------------------------------


async def busy() -> str:
    """Groups that abort, queues, timeouts, waits on sets: what tends to depend on addresses."""
    rng = loop().rng("busy")
    queue: asyncio.Queue[int] = asyncio.Queue(3)
    order: list[str] = []

    async def produce(name: str) -> None:
        for n in range(20):
            await asyncio.sleep(rng.choice((0.0, 0.01, 0.01, 0.02)))
            await queue.put(n)
            order.append(f"{name}{n}")

    async def consume() -> None:
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(2):
                while True:
                    await queue.get()

    async def linger(n: int) -> None:
        try:
            await asyncio.sleep(100 + n)
        finally:
            order.append(f"end{n}")

    async def fail() -> None:
        await asyncio.sleep(1)
        raise ValueError

    async with asyncio.TaskGroup() as group:
        group.create_task(consume())
        for name in "abc":
            group.create_task(produce(name))
    with contextlib.suppress(ExceptionGroup):
        async with asyncio.TaskGroup() as group:
            for n in range(10):
                group.create_task(linger(n))
            group.create_task(fail())
    done, _ = await asyncio.wait({asyncio.create_task(asyncio.sleep(1, n)) for n in range(5)})
    order += [str(task.result()) for task in done]
    return loop().digest() + ",".join(order)


def test_the_same_seed_is_the_same_run_and_another_one_is_not() -> None:
    runs = [run(busy, seed=seed) for seed in range(20)]
    noise = [object() for _ in range(1_000)]
    assert [run(busy, seed=seed) for seed in range(20)] == runs
    assert len(set(runs)) == 20
    del noise


def test_the_same_seed_is_the_same_run_in_another_process() -> None:
    program = "import sys; sys.path.insert(0, 'tests/unit'); import test_loop; print(test_loop.run(test_loop.busy, seed=7))"
    outputs = {
        subprocess.run(
            [sys.executable, "-c", program],
            env={**os.environ, "PYTHONHASHSEED": hash_seed},
            capture_output=True,
            text=True,
            check=True,
            timeout=60,
        ).stdout
        for hash_seed in ("0", "1", "4242")
    }
    assert outputs == {run(busy, seed=7) + "\n"}


def test_equal_timers_go_off_in_an_order_of_the_seed() -> None:
    async def main() -> str:
        order: list[str] = []
        for name in "abcdef":
            loop().call_later(1, order.append, name)
        await asyncio.sleep(2)
        return "".join(order)

    orders = {run(main, seed=seed) for seed in range(30)}
    assert len(orders) > 10
    assert all(sorted(order) == list("abcdef") for order in orders)


# --- what cannot go on -----------------------------------------------------------------------------------------------


def test_a_deadlock_says_who_waits_where() -> None:
    async def forever() -> None:
        await asyncio.Event().wait()

    async def main() -> None:
        async with asyncio.TaskGroup() as group:
            task = group.create_task(forever(), name="waiter")
            await task

    with pytest.raises(Deadlock, match=r"waiter: test_loop.py:\d+ forever > locks.py") as caught:
        run(main, seed=5)
    assert "seed=5" in caught.value.__notes__[0]


def test_a_livelock_is_noticed() -> None:
    async def spin() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(0)

    async def tick() -> None:
        while True:  # noqa: ASYNC110
            await asyncio.sleep(1)

    with pytest.raises(Livelock, match=r"of them at 0\.0 s"):
        run(spin, seed=1)
    with pytest.raises(Livelock, match="100000 steps"):
        run(tick, seed=1, steps_max=100_000)


def test_a_failed_task_that_nobody_asks_is_an_error() -> None:
    async def fail() -> None:
        raise ValueError("lost")

    async def main() -> None:
        task = asyncio.create_task(fail())
        await asyncio.sleep(1)
        del task

    with pytest.raises(Unhandled, match="nobody asked"):
        run(main, seed=1)


def test_threads_and_sockets_are_refused() -> None:
    async def main() -> None:
        errors: list[str] = []
        here = loop()

        def intrude() -> None:
            try:
                here.call_soon_threadsafe(print)
            except RuntimeError as error:
                errors.append(str(error))

        thread = threading.Thread(target=intrude)
        thread.start()
        thread.join()
        assert "put threads behind ports.Worker" in errors[0]
        here.call_soon_threadsafe(lambda: None)
        with pytest.raises(RuntimeError, match="behind a port"):
            await asyncio.to_thread(print)
        with pytest.raises(RuntimeError, match="behind a port"):
            await asyncio.open_connection("127.0.0.1", 1)

    run(main, seed=1)


def test_what_is_left_at_the_end_is_cancelled_in_order() -> None:
    ended: list[int] = []

    async def linger(n: int) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(1)
            ended.append(n)

    async def main() -> None:
        tasks = [asyncio.create_task(linger(n)) for n in range(5)]
        await asyncio.sleep(1)
        del tasks

    run(main, seed=1)
    assert sorted(ended) == list(range(5))


# --- clock, dice -----------------------------------------------------------------------------------------------------


def test_the_clock_runs_with_the_loop_and_never_goes_back() -> None:
    async def main() -> None:
        clock = VirtualClock(loop(), synced=False, wall_offset_ns=5)
        assert clock.now().mono_ns == 0
        await asyncio.sleep(1.5)
        assert clock.mono_ns() == 1_500_000_000
        assert clock.now().wall_ns == 1_500_000_005
        clock.skew = 1e-3
        assert clock.mono_ns() == 1_500_000_000
        await asyncio.sleep(1)
        assert clock.mono_ns() == 2_501_000_000
        clock.skew = -1e-3
        assert clock.mono_ns() == 2_501_000_000
        reboot = VirtualClock(loop(), boot="boot-2")
        assert (reboot.now().boot, reboot.mono_ns()) == ("boot-2", 0)

    run(main, seed=1)


def test_tokens_are_unique_across_nodes_and_lives() -> None:
    async def main() -> list[str]:
        tokens = []
        for node in ("a", "b"):
            rng = loop().rng(node)
            tokens += [SeededDice(rng, node=node).token() for _ in range(3) for _ in range(100)]
        return tokens

    tokens = run(main, seed=1)
    assert len(set(tokens)) == 600
    assert {len(token) for token in tokens} == {16}
    assert run(main, seed=1) == tokens
    assert run(main, seed=2) != tokens


# --- crash -----------------------------------------------------------------------------------------------------------


class Paper:
    """A disk behind a fence."""

    def __init__(self, fence: Fence) -> None:
        self.lines: list[str] = []
        self.fence = fence
        self.at_fall: list[str] | None = None
        fence.on_fall.append(self._fell)

    def _fell(self) -> None:
        self.at_fall = list(self.lines)

    def write(self, line: str) -> None:
        self.fence.check()
        self.lines.append(line)

    async def write_slowly(self, line: str) -> None:
        await self.fence.passage()
        await asyncio.sleep(0.01)
        await self.fence.passage()
        self.lines.append(line)


async def generate(paper: Paper) -> AsyncIterator[int]:
    try:
        for n in range(3):
            await asyncio.sleep(0.1)
            yield n
    finally:
        paper.write("generator closed")
        await paper.write_slowly("generator closed slowly")


async def tidy(paper: Paper, n: int) -> None:
    """Everything that a clean stop would do, and a crash must not."""
    try:
        async for each in generate(paper):
            await paper.write_slowly(f"{n} {each}")
    except asyncio.CancelledError:
        paper.write("cancelled")
        raise
    finally:
        with contextlib.suppress(Exception):
            await paper.write_slowly("finally slowly")
        paper.write("finally")


async def node(paper: Paper, worker: InlineWorker) -> None:
    paper.write("start")
    try:
        async with asyncio.TaskGroup() as group, asyncio.timeout(60):
            for n in range(3):
                group.create_task(tidy(paper, n))
            await worker.run(paper.write, "worked")
            loop().call_later(0.2, paper.write, "timer")
            await asyncio.shield(asyncio.create_task(paper.write_slowly("shielded")))
    finally:
        paper.write("stopped")


async def life(fall_at: int | None, hook: Callable[[Fence, InlineWorker], None] = lambda *_: None) -> tuple[Fence, Paper]:
    fence = Fence("a")
    fence.fall_at = fall_at
    paper = Paper(fence)
    worker = InlineWorker(loop().rng("a"), fence=fence)
    hook(fence, worker)
    task = fence.start(node(paper, worker), name="main")
    ended = asyncio.create_task(fence.gone.wait())
    await asyncio.wait({task, ended}, return_when=asyncio.FIRST_COMPLETED)
    await asyncio.sleep(10)
    return fence, paper


def simulate(main: Callable[[], Coroutine[Any, Any, tuple[Fence, Paper]]]) -> tuple[Fence, Paper]:
    return run(main, seed=3)


def test_a_crash_at_any_await_leaves_the_disk_as_it_was_at_that_instant(
    capsys: pytest.CaptureFixture[str], recwarn: pytest.WarningsRecorder
) -> None:
    fence, whole = simulate(lambda: life(None))
    assert whole.lines[-1] == "stopped"
    assert fence.steps > 50
    assert not fence.fallen
    longest = 0
    for step in range(1, fence.steps + 1):
        crashed, paper = simulate(lambda step=step: life(step))  # type: ignore[misc]
        gc.collect()
        assert crashed.fallen
        assert crashed.steps == step
        assert paper.at_fall is not None
        assert paper.lines == paper.at_fall == whole.lines[: len(paper.lines)]
        longest = max(longest, len(paper.lines))
    assert longest == len(whole.lines) - 1  # the last line is written in the last step
    assert capsys.readouterr() == ("", "")
    assert not recwarn.list


@pytest.mark.parametrize("when", ["before", "after", "within"])
def test_a_crash_in_the_worker_never_returns_to_the_node(when: str) -> None:
    def hook(fence: Fence, worker: InlineWorker) -> None:
        setattr(worker, when, lambda _: fence.fall())

    async def main() -> tuple[Fence, Paper]:
        if when != "within":
            return await life(None, hook)
        fence = Fence("a")
        paper = Paper(fence)

        def work() -> None:
            try:
                paper.write("worked")
                fence.fall()
                paper.write("never")
            finally:
                with contextlib.suppress(Crashed):
                    paper.write("rollback")

        async def use() -> None:
            try:
                await InlineWorker(loop().rng("a"), fence=fence).run(work)
            finally:
                paper.write("stopped")

        fence.start(use(), name="main")
        await fence.gone.wait()
        return fence, paper

    _, paper = simulate(main)
    gc.collect()
    assert paper.lines == paper.at_fall
    assert ("worked" in paper.lines) == (when != "before")
    assert "stopped" not in paper.lines


def test_the_worker_does_one_call_after_the_other_and_finishes_what_it_began() -> None:
    async def main() -> list[str]:
        worker = InlineWorker(loop().rng("a"), delay_s=(0.1, 0.2))
        log: list[str] = []
        calls = [asyncio.create_task(worker.run(log.append, str(n))) for n in range(3)]
        await asyncio.sleep(0.01)
        calls[0].cancel()
        await asyncio.gather(*calls, return_exceptions=True)
        with pytest.raises(ZeroDivisionError):
            await worker.run(lambda: 1 // 0)
        return log

    assert run(main, seed=1) == ["0", "1", "2"]


def test_the_hooks_of_the_worker_can_fail_a_call() -> None:
    def full(_: object) -> None:
        raise OSError("disk full")

    async def main() -> int:
        worker = InlineWorker(loop().rng("a"), before=full)
        with pytest.raises(OSError, match="disk full"):
            await worker.run(int)
        worker.before = None
        return await worker.run(int, "7")

    assert run(main, seed=1) == 7


def test_others_go_on_and_the_node_lives_again() -> None:
    async def beat(paper: Paper, name: str) -> None:
        while True:
            await asyncio.sleep(1)
            paper.write(f"{name} {loop().time():.1f}")

    async def main() -> tuple[list[str], list[str], list[str]]:
        fences = [Fence("a"), Fence("b"), Fence("a")]
        papers = [Paper(fence) for fence in fences]
        fences[0].start(beat(papers[0], "a"), name="beat")
        fences[1].start(beat(papers[1], "b"), name="beat")
        await asyncio.sleep(2.5)
        fences[0].fall()
        fences[2].start(beat(papers[2], "a again"), name="beat")
        await fences[0].gone.wait()
        await asyncio.sleep(2)
        assert [len(loop().tasks_of(fence)) for fence in fences] == [0, 1, 1]
        return papers[0].lines, papers[1].lines, papers[2].lines

    assert run(main, seed=1) == (["a 1.0", "a 2.0"], ["b 1.0", "b 2.0", "b 3.0", "b 4.0"], ["a again 3.5", "a again 4.5"])


def test_a_generator_that_is_found_only_by_the_garbage_collector_is_not_closed_after_the_crash() -> None:
    async def main() -> list[str]:
        fence = Fence("a")
        paper = Paper(fence)

        async def circle() -> None:
            generator = generate(paper)
            keep: list[object] = [generator]
            keep.append(keep)
            await anext(generator)
            await asyncio.sleep(60)

        fence.start(circle(), name="main")
        await asyncio.sleep(1)
        fence.fall()
        await fence.gone.wait()
        gc.collect()
        await asyncio.sleep(1)
        return paper.lines

    assert run(main, seed=1) == []


def test_what_the_world_has_on_the_way_arrives_though_the_sender_is_dead() -> None:
    async def main() -> list[str]:
        arrived: list[str] = []
        fence = Fence("a")

        async def send() -> None:
            loop().outside(5, arrived.append, "packet")
            loop().call_later(5, arrived.append, "own timer")

        await fence.start(send(), name="send")
        fence.fall()
        await asyncio.sleep(10)
        return arrived

    assert run(main, seed=1) == ["packet"]
