"""The source supervisor: cadence, timeouts, back-off, breaker, isolation, transitions. On virtual time, with real adapters."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass, field
from typing import Any

import pytest

from edge_runtime import config
from edge_runtime.adapter import Adapter, Exhausted, Line, Sample
from edge_runtime.sources import backoff, supervisor
from edge_runtime.sources.supervisor import Lines, Source
from edge_runtime.testing.adapter import Faulty, FaultyPush, Step, build
from edge_runtime.testing.loop import SeededDice, VirtualClock, VirtualLoop, run

POINTS = ({"name": "a"}, {"name": "b"})


@dataclass
class Log:
    """A structlog logger that keeps its lines."""

    lines: list[tuple[str, dict[str, Any]]] = field(default_factory=list)

    def bind(self, **_: Any) -> Log:
        return self

    def _line(self, event: str, **fields: Any) -> None:
        self.lines.append((event, fields))

    info = warning = error = _line


@dataclass
class Bench:
    """A supervised adapter and what came out of it."""

    adapter: Any
    source: Source
    log: Log
    samples: list[Sample]
    lost: list[Sample]

    def good(self) -> list[Sample]:
        return [sample for sample in self.samples if not sample.faults]

    async def run_for(self, seconds: float) -> None:
        task = asyncio.create_task(self.source.run(), name="source")
        await asyncio.sleep(seconds)
        self.source.stop()
        await task


def bench(
    kind: type[Adapter] = Faulty,
    options: dict[str, Any] | None = None,
    *,
    device: str = "device",
    line: Line | None = None,
    accept: Callable[[Sequence[Sample]], Awaitable[object]] | None = None,
    points: Sequence[dict[str, Any]] = POINTS,
    **settings: Any,
) -> Bench:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    log, samples, lost = Log(), [], []
    adapter = build(
        kind,
        options,
        points,
        device=device,
        line=line,
        clock=VirtualClock(loop),
        dice=SeededDice(loop.rng(device)),
        log=log,
    )

    async def keep(batch: Sequence[Sample]) -> None:
        if accept is not None:
            await accept(batch)
        samples.extend(batch)

    async def keep_lost(batch: Sequence[Sample]) -> None:
        lost.extend(batch)

    settings = {"period_s": 1.0, "timeout_s": 0.5, "backoff_s_max": 8.0, **settings}
    source = Source(adapter, config.Device(adapter="faulty", points=list(points), **settings), keep, keep_lost)
    return Bench(adapter, source, log, samples, lost)


def simulate(scenario: Callable[[], Coroutine[Any, Any, None]], seeds: int = 3) -> None:
    for seed in range(seeds):
        run(scenario, seed=seed)


# --- cadence ---------------------------------------------------------------------------------------------------------


def test_reads_stand_on_a_grid_however_long_each_takes() -> None:
    async def scenario() -> None:
        b = bench(options={"latency_s": 0.03}, period_s=0.1)
        await b.run_for(300.05)
        reads = b.adapter.times("read")
        assert len(reads) == 3_001
        assert max(abs(at - reads[0] - n * 0.1) for n, at in enumerate(reads)) < 1e-6
        assert b.source.state.counters.overruns == 0

    simulate(scenario, seeds=1)


def test_a_read_that_takes_exactly_a_period_is_no_overrun() -> None:
    async def scenario() -> None:
        b = bench(options={"latency_s": 0.1}, period_s=0.1)
        await b.run_for(30.0)
        assert b.source.state.counters.overruns == 0
        assert len(b.adapter.times("read")) >= 299

    simulate(scenario, seeds=1)


def test_ticks_that_a_read_runs_over_are_skipped_and_counted() -> None:
    async def scenario() -> None:
        b = bench(options={"latency_s": 0.25, "late_s": 0.25}, period_s=0.1)
        await b.run_for(9.01)
        reads = b.adapter.times("read")
        assert [round(at - reads[0], 6) for at in reads[:4]] == [0, 0.3, 0.6, 0.9]
        assert b.source.state.counters.overruns == 2 * b.source.state.counters.reads

    simulate(scenario, seeds=1)


# --- failures --------------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("step", [Step.STALL, Step.LATE, Step.LOST, Step.ERROR, Step.CANCELLED])
def test_any_failure_of_a_read_closes_waits_and_opens_again(step: Step) -> None:
    async def scenario() -> None:
        b = bench()
        b.adapter.reads.extend([Step.GOOD, step])
        await b.run_for(20)
        counters = b.source.state.counters
        assert (counters.failures, counters.opens) == (1, 2)
        assert counters.timeouts == (1 if step in (Step.STALL, Step.LATE) else 0)
        calls = [what for _, what in b.adapter.calls]
        assert calls[:7] == ["open", "read", "read", "close", "open", "read", "read"]
        assert [sample.values[0] for sample in b.good()][:3] == [1.0, 2.0, 3.0]

    simulate(scenario)


def test_a_stalled_read_is_given_up_after_its_timeout() -> None:
    async def scenario() -> None:
        b = bench(timeout_s=0.7)
        b.adapter.reads.extend([Step.STALL])
        await b.run_for(5)
        assert b.adapter.times("close")[0] - b.adapter.times("read")[0] == pytest.approx(0.7)
        assert "0.7 s" in b.source.state.cause

    simulate(scenario, seeds=1)


def test_first_connect_fails_and_is_tried_again_until_it_works() -> None:
    async def scenario() -> None:
        b = bench()
        b.adapter.opens.extend([Step.LOST, Step.STALL, Step.ERROR, Step.LOST])
        await b.run_for(60)
        assert b.source.state.counters.opens == 5
        assert [sample.values for sample in b.lost] == [(None, None)]
        assert len(b.good()) > 30

    simulate(scenario)


def test_backoff_grows_is_jittered_and_capped() -> None:
    async def scenario() -> None:
        b = bench(options={"lost": 1.0}, backoff_s_max=8.0)
        await b.run_for(1_000)
        opens = b.adapter.times("open")
        waits = [later - sooner for sooner, later in itertools.pairwise(opens)]
        for n, wait in enumerate(waits):
            assert wait <= min(8.0, backoff.BASE_S * 2**n) + 1e-6, n
        assert max(waits) > 6.0
        probes = waits[backoff.BREAKER_FAILURES :]
        assert min(probes) >= 4.0
        assert len({round(wait, 6) for wait in probes}) > len(probes) * 0.9
        assert b.source.state.phase == "stopped"

    simulate(scenario)


@dataclass
class Loaded:
    """Dice that always show the same: 0.0 the lowest, 1.0 the highest."""

    show: float

    def uniform(self, low: float, high: float) -> float:
        return low + self.show * (high - low)

    def token(self) -> str:
        return ""


def test_backoff_doubles_up_to_the_cap() -> None:
    wait = backoff.Backoff(Loaded(1.0), 8.0)
    assert [wait.failed() for _ in range(10)] == [0.5, 1, 2, 4, 8, 8, 8, 8, 8, 8]
    wait.succeeded()
    assert wait.failed() == 0.5


def test_backoff_never_spins_even_if_the_dice_always_say_zero() -> None:
    wait = backoff.Backoff(Loaded(0.0), 30.0)
    assert min(wait.failed() for _ in range(50)) >= backoff.FLOOR_S


def test_the_breaker_opens_says_so_and_a_success_closes_it() -> None:
    async def scenario() -> None:
        b = bench()
        b.adapter.opens.extend([Step.LOST] * (backoff.BREAKER_FAILURES + 3))
        task = asyncio.create_task(b.source.run())
        phases = []
        while b.source.state.phase != "connected":
            phases.append(b.source.state.phase)
            await asyncio.sleep(0.1)
        assert list(dict.fromkeys(phases)) == ["connecting", "waiting", "broken"]
        assert [event for event, _ in b.log.lines] == ["source_waiting", "source_broken", "source_connected"]
        b.adapter.reads.append(Step.LOST)
        await asyncio.sleep(1.01)
        assert b.source.state.phase == "waiting"  # it counts from the beginning again
        b.source.stop()
        await task

    simulate(scenario)


def test_a_device_that_only_opens_is_not_healthy() -> None:
    """Its socket is open and nobody answers: an open alone must not reset the back-off."""

    async def scenario() -> None:
        b = bench(options={"stall": 0.0})
        b.adapter.reads.extend([Step.STALL] * 1_000)
        await b.run_for(600)
        assert b.source.state.counters.opens < 600 / 4.0 + 2 * backoff.BREAKER_FAILURES
        assert "source_connected" not in [event for event, _ in b.log.lines]

    simulate(scenario)


def test_a_device_is_blind_until_one_of_its_values_was_good() -> None:
    """It answers, and every answer is that it has no such register. Later a value may be bad: that is how machines are."""

    async def scenario() -> None:
        b = bench()
        no, nothing = {"a": "no such register", "b": "out of order"}, (None, None)
        for faults, values, blind in (
            (no, nothing, "a: no such register"),
            ({"b": "out of order"}, (1.0, None), ""),
            (no, nothing, ""),
        ):
            await b.source._hand_on([Sample("device", b.source._clock.now(), values, faults)], b.source._accept)
            assert b.source.state.blind == blind

    simulate(scenario, seeds=1)


def test_unusable_is_shown_and_tried_again_rarely() -> None:
    async def scenario() -> None:
        b = bench()
        b.adapter.opens.extend([Step.UNUSABLE] * 3)
        task = asyncio.create_task(b.source.run())
        await asyncio.sleep(1)
        state = b.source.state
        assert (state.phase, state.cause, state.hint) == ("unusable", "unusable on purpose", "this is a test")
        await asyncio.sleep(3 * supervisor.UNUSABLE_RETRY_S)
        opens = b.adapter.times("open")
        assert all(later - sooner >= supervisor.UNUSABLE_RETRY_S - 1e-6 for sooner, later in itertools.pairwise(opens))
        assert b.source.state.phase == "connected"
        b.source.stop()
        await task

    simulate(scenario, seeds=1)


def test_a_foreign_exception_is_logged_with_its_traceback_once() -> None:
    async def scenario() -> None:
        b = bench(options={"error": 0.5})
        await b.run_for(300)
        broke = [fields for event, fields in b.log.lines if event == "adapter_broke_its_contract"]
        assert len(broke) == 1
        assert isinstance(broke[0]["exc_info"], ZeroDivisionError)
        assert b.source.state.cause.startswith("ZeroDivisionError at ")
        assert len(b.good()) > 20

    simulate(scenario)


def test_an_adapter_that_returns_rubbish_is_isolated() -> None:
    class Rubbish(Faulty):
        async def read(self) -> Sequence[Sample]:
            (sample,) = await super().read()
            return [Sample(sample.device, sample.stamp, (1.0,))]

    async def scenario() -> None:
        b = bench(Rubbish)
        await b.run_for(30)
        assert "1 values for 2 points" in b.source.state.cause
        assert b.samples == []

    simulate(scenario, seeds=1)


class Deaf(Faulty):
    """Swallows that it is given up: until `deaf_s` is over, then it answers with what it was asked for long ago."""

    deaf_s = 100.0

    async def read(self) -> Sequence[Sample]:
        until_s, self.deaf_s = asyncio.get_running_loop().time() + self.deaf_s, 0.0
        while (left_s := until_s - asyncio.get_running_loop().time()) > 0:
            try:
                await asyncio.sleep(left_s)
            except asyncio.CancelledError:
                continue
        return await super().read()


def test_a_read_that_swallows_its_timeout_is_told_once_and_its_late_value_is_not_taken() -> None:
    async def scenario() -> None:
        b = bench(Deaf)
        other = bench(device="other")
        task = asyncio.create_task(b.source.run())
        await other.run_for(50.5)
        state = b.source.state
        assert (state.phase, b.samples) == ("unusable", [])
        assert "does not end" in state.cause
        assert "CancelledError" in state.hint
        assert [event for event, _ in b.log.lines] == ["source_unusable"]
        assert len(other.samples) == 51
        await asyncio.sleep(100)
        assert (b.source.state.phase, b.source.state.counters.timeouts) == ("connected", 1)
        assert b.samples[0].values[0] == 2.0, "the late one was taken"
        b.source.stop()
        await task

    simulate(scenario, seeds=1)


class Ends(BaseException):
    """A library's own."""


@pytest.mark.parametrize("error", [SystemExit(3), Ends()])
@pytest.mark.parametrize("where", ["open", "read", "close"])
def test_what_would_end_the_gateway_ends_one_call(error: BaseException, where: str) -> None:
    """sys.exit in an adapter that was a program once ended the process; a library's own BaseException the device, in silence."""

    async def scenario() -> None:
        b = bench()
        good, fails = getattr(b.adapter, where), [error]

        async def once() -> object:
            if fails and (where != "close" or len(b.adapter.times("read")) > 1):
                raise fails.pop()
            return await good()

        setattr(b.adapter, where, once)
        b.adapter.reads.extend([Step.GOOD, Step.LOST] if where == "close" else [])
        await b.run_for(60)
        broke = [fields for event, fields in b.log.lines if event == "adapter_broke_its_contract"]
        assert [type(fields["exc_info"]) for fields in broke] == [type(error)]
        assert b.samples

    simulate(scenario, seeds=1)


# --- isolation -------------------------------------------------------------------------------------------------------


def test_a_dead_device_on_its_own_line_costs_the_others_nothing() -> None:
    async def scenario() -> None:
        dead = bench(options={"stall": 1.0}, device="dead", period_s=0.1)
        alive = [bench(device=f"alive{n}", period_s=0.1) for n in range(5)]
        async with asyncio.TaskGroup() as group:
            for b in (dead, *alive):
                group.create_task(b.run_for(60.05), name=b.source.state.device)
        assert dead.good() == []
        assert all(len(b.good()) == 601 and b.source.state.counters.overruns == 0 for b in alive)

    simulate(scenario, seeds=2)


def test_a_dead_device_on_a_shared_line_costs_the_others_its_timeout_at_each_probe() -> None:
    async def scenario() -> None:
        lines = Lines()
        assert lines.get("/dev/ttyS0") is lines.get("/dev/ttyS0")
        dead = bench(device="dead", line=lines.get("/dev/ttyS0"))
        dead.adapter.opens.extend([Step.STALL] * 10_000)
        alive = [bench(device=f"alive{n}", line=lines.get("/dev/ttyS0"), options={"latency_s": 0.01}) for n in range(3)]
        async with asyncio.TaskGroup() as group:
            for b in (dead, *alive):
                group.create_task(b.run_for(600.5), name=b.source.state.device)
        probes = dead.source.state.counters.opens
        assert probes < 600 / (4 + 0.5) + 2 * backoff.BREAKER_FAILURES
        for b in alive:
            ticks = [round(at % 1.0, 6) for at in b.adapter.times("read")]
            grid = max(ticks, key=ticks.count)
            late = [(tick - grid) % 1.0 for tick in ticks]
            assert max(late) <= 0.5 + 0.04  # the dead one's timeout, and the turns of the two others
            assert b.source.state.counters.overruns == 0
            assert len(b.good()) >= 600

    simulate(scenario, seeds=2)


def test_one_at_a_time_uses_a_line() -> None:
    using = 0

    class Greedy(Faulty):
        async def read(self) -> Sequence[Sample]:
            nonlocal using
            using += 1
            assert using == 1
            try:
                return await super().read()
            finally:
                using -= 1

    async def scenario() -> None:
        line = Line("shared")
        benches = [bench(Greedy, {"latency_s": 0.04}, device=f"d{n}", line=line, period_s=0.1) for n in range(4)]
        async with asyncio.TaskGroup() as group:
            for b in benches:
                group.create_task(b.run_for(20), name=b.source.state.device)
        assert all(b.source.state.counters.failures == 0 for b in benches)
        reads = [b.source.state.counters.reads for b in benches]
        assert max(reads) - min(reads) <= 2 < min(reads)  # in order of asking: nobody starves

    simulate(scenario, seeds=2)


# --- transitions -----------------------------------------------------------------------------------------------------


def test_unreachable_is_told_once_with_reason_and_never_with_a_value() -> None:
    async def scenario() -> None:
        b = bench()
        b.adapter.reads.extend([Step.GOOD, Step.GOOD, *[Step.LOST] * 12, Step.GOOD, Step.LOST])
        await b.run_for(300)
        assert [(s.values, s.faults, s.message_id) for s in b.lost] == [
            ((None, None), {"a": "lost on purpose", "b": "lost on purpose"}, "")
        ] * 2
        assert b.source.state.counters.bad_transitions == 2
        events = [event for event, _ in b.log.lines]
        assert events == [
            "source_" + word for word in ["connected", "waiting", "broken", "connected", "waiting", "connected", "stopped"]
        ]

    simulate(scenario)


def test_without_a_way_of_its_own_the_lost_sample_goes_to_accept() -> None:
    async def scenario() -> None:
        b = bench()
        taken: list[Sample] = []

        async def accept(samples: Sequence[Sample]) -> None:
            taken.extend(samples)

        b.adapter.reads.extend([Step.GOOD, Step.LOST])
        settings = config.Device(adapter="faulty", points=[{"name": "a"}])
        b.source = Source(b.adapter, settings, accept)
        await b.run_for(3)
        assert [sample.values for sample in taken[:3]] == [(1.0, 2.0), (None, None), (2.0, 3.0)]

    simulate(scenario, seeds=1)


def test_bad_values_of_one_point_are_no_failure_of_the_device() -> None:
    async def scenario() -> None:
        b = bench()
        b.adapter.reads.extend([Step.GOOD, Step.BAD, Step.GOOD])
        await b.run_for(2.5)
        assert [sample.values for sample in b.samples] == [(1.0, 2.0), (None, 3.0), (3.0, 4.0)]
        assert b.source.state.counters.failures == 0

    simulate(scenario, seeds=1)


# --- the end ---------------------------------------------------------------------------------------------------------


def test_the_end_of_a_source_is_no_failure() -> None:
    async def scenario() -> None:
        b = bench()
        b.adapter.reads.extend([Step.GOOD, Step.END])
        await b.source.run()
        assert b.source.state.phase == "ended"
        assert (len(b.samples), b.lost, b.source.state.counters.failures) == (1, [], 0)
        assert not b.adapter.is_open

    simulate(scenario, seeds=1)


@pytest.mark.parametrize("script", [[], [Step.STALL], [Step.LOST] * 100])
def test_stop_ends_a_wait_a_read_and_a_backoff_at_once(script: list[Step]) -> None:
    async def scenario() -> None:
        b = bench(timeout_s=100, period_s=100)
        b.adapter.reads.extend(script)
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(b.source.run())
        await asyncio.sleep(50)
        at = loop.time()
        b.source.stop()
        await task
        assert loop.time() - at < 1e-6
        assert b.source.state.phase == "stopped"
        assert b.adapter.calls[-1][1] == "close"
        assert not (script == [Step.STALL] and b.lost)  # that we stop is no failure of the device

    simulate(scenario)


def test_stop_while_it_waits_for_its_turn_on_the_line() -> None:
    async def scenario() -> None:
        line = Line("shared")
        b = bench(line=line)
        async with line.turn:
            task = asyncio.create_task(b.source.run())
            await asyncio.sleep(1)
            b.source.stop()
            await task
        assert b.adapter.times("open") == []

    simulate(scenario, seeds=1)


def test_stop_at_the_very_moment_when_its_turn_comes() -> None:
    async def scenario() -> None:
        line = Line("shared")
        b = bench(line=line, timeout_s=100)
        b.adapter.opens.append(Step.STALL)
        async with line.turn:
            task = asyncio.create_task(b.source.run())
            await asyncio.sleep(1)
        b.source.stop()
        await task
        assert asyncio.get_running_loop().time() < 1.1

    simulate(scenario)


@pytest.mark.parametrize("at_s", [0.4, 0.6, 1.2])
def test_stop_twice_while_a_read_takes_its_time_to_be_given_up(at_s: float) -> None:
    class Slow(Faulty):
        async def read(self) -> Sequence[Sample]:
            try:
                return await super().read()
            finally:
                await asyncio.sleep(1)

    async def scenario() -> None:
        b = bench(Slow)
        b.adapter.reads.append(Step.STALL)
        task = asyncio.create_task(b.source.run())
        await asyncio.sleep(at_s)
        for _ in range(3):
            b.source.stop()
            await asyncio.sleep(0.01)
        await task
        assert b.source.state.phase == "stopped"

    simulate(scenario)


def test_stop_before_it_ran() -> None:
    async def scenario() -> None:
        b = bench()
        b.source.stop()
        await b.source.run()
        assert b.adapter.times("read") == []

    simulate(scenario, seeds=1)


def test_cancelling_closes_the_adapter_and_a_close_that_hangs_is_left_behind() -> None:
    class Clinging(Faulty):
        async def close(self) -> None:
            await super().close()
            await asyncio.sleep(1e6)

    async def scenario() -> None:
        b = bench(Clinging)
        loop = asyncio.get_running_loop()
        task = asyncio.create_task(b.source.run())
        await asyncio.sleep(3.3)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task
        assert len(b.adapter.times("close")) == 1
        assert loop.time() <= 3.3 + supervisor.CLOSE_S_MAX + 1e-6

    simulate(scenario, seeds=1)


def test_what_accept_raises_leaves_run() -> None:
    async def refuse(_: Sequence[Sample]) -> None:
        raise MemoryError("ours")

    async def scenario() -> None:
        for kind in (Faulty, FaultyPush):
            b = bench(kind, accept=refuse)
            with pytest.raises(MemoryError):
                await asyncio.wait_for(b.source.run(), 10)
            assert b.lost == []
            assert not b.adapter.is_open

    simulate(scenario, seeds=3)


def test_a_pushed_source_that_is_quiet_for_long_starts_its_backoff_again() -> None:
    class Quiet(FaultyPush):
        async def read(self) -> Sequence[Sample]:
            await asyncio.sleep(3_600)
            raise Exhausted

    async def scenario() -> None:
        b = bench(Quiet)
        b.adapter.opens.extend([Step.LOST] * 4)
        task = asyncio.create_task(b.source.run())
        await asyncio.sleep(60)
        assert b.source.state.phase == "connected"
        await task
        assert b.source._backoff.failures == 0

    simulate(scenario, seeds=1)


# --- everything at once ----------------------------------------------------------------------------------------------


@pytest.mark.parametrize("seed", range(20))
def test_whatever_the_device_does_no_value_is_invented_and_every_outage_is_told_once(seed: int) -> None:
    async def scenario() -> None:
        chances = {"lost": 0.05, "stall": 0.03, "late": 0.05, "bad": 0.1, "error": 0.03, "latency_s": 0.2}
        b = bench(options=chances, period_s=0.5)
        together: list[Sample] = []
        b.samples, b.lost = together, together
        b.source = Source(b.adapter, b.source._device, _into(together))
        await b.run_for(200)
        counters = b.source.state.counters
        numbers = [sample.values[1] for sample in together if sample.values[1] is not None]
        assert numbers == [float(n + 1) for n in range(1, len(numbers) + 1)]
        outages = ["unreachable" if set(sample.faults) == {"a", "b"} else "here" for sample in together]
        assert outages.count("unreachable") == counters.bad_transitions <= counters.failures
        assert ("unreachable", "unreachable") not in set(itertools.pairwise(outages))
        assert all((value is None) == (name in s.faults) for s in together for name, value in zip("ab", s.values, strict=True))
        assert len([event for event, _ in b.log.lines if event.startswith("source_")]) <= 2 * counters.bad_transitions + 2

    run(scenario, seed=seed)


def _into(samples: list[Sample]) -> Callable[[Sequence[Sample]], Awaitable[None]]:
    async def accept(batch: Sequence[Sample]) -> None:
        samples.extend(batch)

    return accept
