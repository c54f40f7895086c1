"""Writing a point: what is let through (pure), and that it is done once, whatever the device does (on virtual time)."""

from __future__ import annotations

import asyncio
import math
import re
from collections.abc import Awaitable, Callable, Coroutine, Sequence
from dataclasses import dataclass
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_adapters.modbus_plan import Point as Register
from edge_runtime import config
from edge_runtime.adapter import Adapter, Line, Point, Sample, Unusable, Value, WritablePoint
from edge_runtime.records import Outcome, Stamp
from edge_runtime.sources import writing
from edge_runtime.sources.decoding import Decoder
from edge_runtime.sources.supervisor import Source
from edge_runtime.sources.writing import Refusal, check, scaled, shows, unscaled
from edge_runtime.testing.adapter import Faulty, FaultyPush, Step, build
from edge_runtime.testing.loop import SeededDice, VirtualClock, VirtualLoop, run

RANGE = {"low": 0, "high": 100}


def register(**about: Any) -> Register:
    return Register(name="p", address=0, **about)


# --- what may be declared --------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"write": {}}, "no write without a bound"),
        ({"write": {"low": 0}}, "no write without a bound"),
        ({"write": {"high": 0}}, "no write without a bound"),
        ({"write": {"low": 0, "high": 1, "allowed": [1]}}, "no write without a bound"),
        ({"write": {"low": 1, "high": 1}}, "must be below"),
        ({"write": {"low": 0, "high": math.inf}}, "finite"),
        ({"write": {**RANGE, "every_s_min": 0}}, "greater than 0"),
        ({"write": {**RANGE, "tolerance": -1}}, "greater than or equal"),
        ({"write": RANGE, "high": 50}, "would read as out of range"),
        ({"write": {"allowed": [5]}, "low": 6}, "would read as out of range"),
        ({"write": RANGE, "scale": 0}, "scale 0"),
    ],
)
def test_what_cannot_be_declared(about: dict[str, Any], why: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=why):
        WritablePoint(name="p", **about)


def test_of_an_adapter_that_only_reads_nothing_can_be_declared_writable() -> None:
    with pytest.raises(pydantic.ValidationError, match="Extra inputs"):
        Point(name="p", write=RANGE)  # type: ignore[call-arg]
    assert isinstance(check(Point(name="p"), 1, None, 0), Refusal)


@pytest.mark.parametrize(
    ("about", "why"),
    [
        ({"number": 30001, "write": RANGE}, "an input register is read only"),
        ({"number": 10001, "write": {"allowed": [True]}}, "a discrete input is read only"),
        ({"number": 1, "write": RANGE}, r"a bool needs `allowed`, such as \[true, false\]"),
        ({"number": 1, "write": {"allowed": [0, 1]}}, "a bool needs `allowed`"),
        ({"number": 40001, "type": "bool", "bit": 1, "write": RANGE}, "a bool needs `allowed`"),
        ({"number": 40001, "type": "string", "length": 4, "write": RANGE}, "a string needs `allowed`"),
        ({"number": 40001, "type": "string", "length": 4, "write": {"allowed": [1]}}, "a string needs `allowed`"),
        ({"number": 40001, "type": "string", "length": 250, "write": {"allowed": ["a"]}}, "at most 123 registers"),
        ({"number": 40001, "write": {"allowed": [True]}}, "must be numbers"),
        ({"number": 40001, "write": {"allowed": ["1"]}}, "must be numbers"),
    ],
)
def test_what_cannot_be_declared_of_a_register(about: dict[str, Any], why: str) -> None:
    with pytest.raises(pydantic.ValidationError, match=why):
        Register(name="p", **about)


# --- what is let through ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("point", "value", "raw"),
    [
        (register(write=RANGE), 7, 7),
        (register(write=RANGE), 7.0, 7),
        (register(write=RANGE), 7.5, 8),  # of two equally near ones the even one
        (register(write=RANGE), 6.5, 6),
        (register(write=RANGE, scale=0.1), 21.37, 214),
        (register(write={"low": 0, "high": 0.3}, scale=0.1), 0.3, 3),  # 3 * 0.1 is 0.30000000000000004
        (register(write=RANGE, scale=0.1, offset=-40), 0, 400),
        (register(write={"low": -5, "high": 5}, type="int16", scale=-0.5), 4, -8),
        (register(write=RANGE, type="float32"), 0.1, 0.10000000149011612),
        (register(write={"allowed": [2**53 + 1]}, type="uint64"), 2**53 + 1, 2**53 + 1),
        (register(write={"allowed": [True, False]}, type="bool", bit=3), True, True),
        (register(write={"allowed": ["AUTO"]}, type="string", length=4), "AUTO", "AUTO"),
        (register(write={"allowed": [1, 5]}), 5.0, 5),
    ],
)
def test_what_is_sent(point: Point, value: Value, raw: Value) -> None:
    found = check(point, value, None, 0)
    assert (found, type(found)) == (raw, type(raw))


@pytest.mark.parametrize(
    ("point", "value", "why"),
    [
        (register(), 1, "may not be written"),
        (register(write=RANGE), 100.001, "out of the range"),
        (register(write=RANGE), -1, "out of the range"),
        (register(write=RANGE), math.nan, "out of the range"),
        (register(write=RANGE), math.inf, "out of the range"),
        (register(write=RANGE), -math.inf, "out of the range"),
        (register(write=RANGE), 10**400, "a number of more than 64 bits is out of the range"),
        (register(write=RANGE), True, "no number"),
        (register(write=RANGE), "7", "no number"),
        (register(write=RANGE), None, "no value"),
        (register(write=RANGE), [1], "no value"),
        (register(write={"allowed": [0, 1]}), True, "not among the values"),
        (register(write={"allowed": [0, 1]}), 2, "not among the values"),
        (register(write={"allowed": [0, 1]}), math.nan, "not among the values"),
        (register(write={"allowed": [0, 1]}), "x" * 10**6, "not among the values"),
        (register(write={"allowed": [True]}, type="bool", bit=0), False, r"false is not among the values.*allowed are \[true\]"),
        (register(write={"allowed": [True]}, type="bool", bit=0), 1, "not among the values"),
        (register(write={"allowed": ["AUTO "]}, type="string", length=8), "AUTO ", "blanks at its end"),
        (register(write={"allowed": ["ÄÖÜ"]}, type="string", length=4), "ÄÖÜ", "6 bytes, the point 4"),
        (register(write={"low": -5, "high": 5}), -1, "does not fit into uint16"),
        (register(write={"low": 0, "high": 1e6}), 65536, "does not fit into uint16"),
        (register(write={"low": 0, "high": 1e39}, type="float32"), 1e39, "does not fit into float32"),
        (register(write={"low": 0, "high": 1e6}, sentinels=(32767,)), 32767, "for 'no value'"),
        (register(write={"low": -1e4, "high": 1e4}, type="float32", sentinels=(-9999.9,)), -9999.9, "for 'no value'"),
        (register(write={"low": 0, "high": 10.06}, scale=0.1), 10.06, "rounded to 10.1.*, out of the range"),
        (register(write={"low": 0.2, "high": 9}, scale=0.5), 0.2, "rounded to 0.0, out of the range"),
        (register(write={"low": 1, "high": 5}, type="int64", offset=1e17), 3, "cannot hold 3"),
        (register(write={"low": 0, "high": 1e300}, type="float64", scale=1e-300), 1e300, "this is a float64|cannot hold"),
        (register(write={"allowed": [10**400]}, scale=0.1), 10**400, "cannot hold"),
    ],
)
def test_what_is_refused(point: Point, value: Any, why: str) -> None:
    found = check(point, value, None, 0)
    assert isinstance(found, Refusal), found
    assert re.search(why, f"{found.cause} ({found.hint})"), found
    assert found.hint
    assert len(found.cause) < 200


def test_the_rate_is_that_of_the_point() -> None:
    point = register(write={**RANGE, "every_s_min": 2.0})
    assert isinstance(check(point, 1, 0, 1_999_999_999), Refusal)
    assert check(point, 1, 0, 2_000_000_000) == 1
    assert check(point, 1, None, 0) == 1


KINDS = {"int16": (-(2**15), 2**15 - 1), "uint16": (0, 2**16 - 1), "int32": (-(2**31), 2**31 - 1), "uint32": (0, 2**32 - 1)}


@given(st.data(), st.sampled_from(sorted(KINDS)), st.sampled_from([1.0, 0.1, 0.01, 2.5, -0.1, 1 / 3]), st.integers(-1000, 1000))
def test_what_decoding_says_can_be_written_as_it_is(data: st.DataObject, kind: Any, scale: float, offset: int) -> None:
    """The inverse of decoding, for each raw value of each integer type."""
    raw = data.draw(st.integers(*KINDS[kind]))
    point = register(type=kind, scale=scale, offset=offset, write={"low": -1e12, "high": 1e12})
    (value,) = Decoder([point])(Sample("d", Stamp("b", 0, 0, True), (raw,))).values
    assert value == scaled(point, raw)
    assert check(point, value, None, 0) == raw
    assert shows(point, raw, raw)


@given(st.floats(-1e6, 1e6), st.sampled_from([1.0, 0.1, 0.25, 3.0]), st.sampled_from(["int32", "float32", "float64"]))
def test_what_is_sent_is_within_half_a_step(value: float, scale: float, kind: Any) -> None:
    point = register(type=kind, scale=scale, write={"low": -1e7, "high": 1e7})
    raw = check(point, value, None, 0)
    assert not isinstance(raw, Refusal)
    sent = scaled(point, raw)
    assert isinstance(sent, float | int)
    steps = {"int32": scale, "float32": 2 * max(abs(value) * 2**-23, 1e-30), "float64": 2 * max(abs(value) * 1e-15, 1e-300)}
    step = steps[kind]
    assert abs(sent - value) <= step / 2 * 1.001


@given(st.one_of(st.none(), st.booleans(), st.integers(), st.floats(), st.text()))
def test_whatever_is_asked_for_is_answered(value: Value) -> None:
    for point in (register(write={"low": -1e300, "high": 1e300}, type="float32", scale=1e-10), register(write={"allowed": [1]})):
        found = check(point, value, None, 0)
        assert isinstance(found, Refusal | float | int)
        assert isinstance(check(point, 10**5000, None, 0), Refusal)  # more digits than Python turns into text


def test_the_tolerance_is_in_the_points_unit() -> None:
    point = register(write={**RANGE, "tolerance": 0.25}, scale=0.1)
    assert shows(point, 102, 100)
    assert not shows(point, 103, 100)
    assert not shows(point, None, 100)
    assert not shows(point, True, 1)
    assert unscaled(point, 10.0) == 100.0


# --- how it is done --------------------------------------------------------------------------------------------------


@dataclass
class Bench:
    adapter: Any
    source: Source
    samples: list[Sample]
    task: asyncio.Task[None]

    async def stop(self) -> None:
        self.source.stop()
        await self.task

    async def write(self, value: Value, **more: Any) -> Outcome:
        return await self.source.write("a", value, **more)


class Silent:
    def bind(self, **_: Any) -> Silent:
        return self

    def info(self, *_: Any, **__: Any) -> None: ...

    warning = error = info


def bench(
    kind: type[Adapter] = Faulty,
    write: dict[str, Any] | None = None,
    line: Line | None = None,
    device: str = "device",
    **settings: Any,
) -> Bench:
    loop = asyncio.get_running_loop()
    assert isinstance(loop, VirtualLoop)
    rule = {**RANGE, "every_s_min": 0.001, **(write or {})}
    points = [{"name": "a", "write": rule}, {"name": "b"}]
    options = {"latency_s": 0.01, "late_s": settings.pop("late_s", 5.0)}
    if "interval_s" in settings:
        options["interval_s"] = settings.pop("interval_s")
    samples: list[Sample] = []

    async def accept(batch: Sequence[Sample]) -> None:
        samples.extend(batch)

    context = {"clock": VirtualClock(loop), "dice": SeededDice(loop.rng(device)), "log": Silent(), "line": line, "device": device}
    adapter = build(kind, options, points, **context)
    settings = {"period_s": 1.0, "timeout_s": 0.5, "backoff_s_max": 8.0, **settings}
    source = Source(adapter, config.Device(adapter="faulty", points=list(points), **settings), accept)
    return Bench(adapter, source, samples, asyncio.create_task(source.run(), name="source"))


def simulate(scenario: Callable[[], Coroutine[Any, Any, None]], seeds: int = 3) -> None:
    for seed in range(seeds):
        run(scenario, seed=seed)


def test_a_write_is_one_request_verified_by_reading_back() -> None:
    async def scenario() -> None:
        b = bench()
        await asyncio.sleep(0.5)
        assert await b.write(5) == Outcome(outcome="verified", requested=5, sent=5, read_back=5)
        assert await b.write(6.5) == Outcome(outcome="verified", requested=6.5, before=5, sent=6.5, read_back=6.5)
        assert b.adapter.received == [("a", 5), ("a", 6.5)]
        await asyncio.sleep(2)
        assert b.samples[-1].values[0] == 6.5
        await b.stop()

    simulate(scenario, seeds=1)


def test_nothing_is_sent_to_a_point_that_is_not_declared_for_it() -> None:
    async def scenario() -> None:
        b = bench()
        await asyncio.sleep(0.5)
        for point, value in (("b", 1), ("c", 1), ("a", 101), ("a", math.nan), ("a", None), ("a", "1"), ("a", True)):
            outcome = await b.source.write(point, value)
            assert (outcome.outcome, outcome.sent) == ("refused", None)
            assert outcome.cause
            assert outcome.hint
        assert b.adapter.received == []
        assert "write" not in [what for _, what in b.adapter.calls]
        await b.stop()

    simulate(scenario, seeds=1)


def test_an_adapter_that_fails_at_what_fits_refuses() -> None:
    class Careless(Faulty):
        class Point(WritablePoint):
            def fit(self, raw: Value) -> Value:
                return {1: 1}[raw]  # type: ignore[index]

    async def scenario() -> None:
        b = bench(Careless)
        await asyncio.sleep(0.5)
        outcome = await b.write(21.5)
        assert outcome.outcome == "refused"
        assert "its adapter cannot tell what a can hold: KeyError at test_writing.py:" in outcome.cause
        assert b.adapter.received == []
        assert (await b.write(1)).outcome == "verified"
        await b.stop()

    simulate(scenario, seeds=1)


def test_nothing_is_queued_for_a_device_that_is_away() -> None:
    async def scenario() -> None:
        b = bench()
        outcomes = [await b.write(1)]  # not open yet
        b.adapter.reads.extend([Step.LOST])
        b.adapter.opens.extend([Step.LOST] * 100)
        b.adapter.opens.appendleft(Step.GOOD)
        await asyncio.sleep(5)
        outcomes.append(await b.write(2))
        await b.stop()
        outcomes.append(await b.write(3))
        assert [(one.outcome, "not connected" in one.cause) for one in outcomes] == [("refused", True)] * 3
        assert b.adapter.received == []

    simulate(scenario)


@pytest.mark.parametrize("step", [Step.LOST_ANSWER, Step.BROKEN, Step.ERROR, Step.CANCELLED, Step.LOST_AND_LATE, Step.STALL])
def test_a_write_that_is_not_confirmed_is_looked_at_and_never_repeated(step: Step) -> None:
    """Two lost answers, one after the other: two commands, two writes, and no third."""

    async def scenario() -> None:
        b = bench(late_s=3.0)
        await asyncio.sleep(0.5)
        assert (await b.write(1)).outcome == "verified"
        arrives = step not in (Step.STALL, Step.CANCELLED)
        for value in (2, 3):
            b.adapter.writes.extend([step])
            outcome = await b.write(value)
            if arrives and step is not Step.LOST_AND_LATE:
                assert (outcome.outcome, outcome.read_back) == ("verified", value)
            else:
                assert (outcome.outcome, outcome.before, outcome.read_back, outcome.sent) == (
                    "failed",
                    outcome.before,
                    outcome.before,
                    value,
                )
                assert "again" in outcome.hint
            assert outcome.cause
            await asyncio.sleep(5)
        await asyncio.sleep(60)
        assert b.adapter.received == [("a", 1), ("a", 2), ("a", 3)]
        assert b.source.state.counters.opens == 3  # the connection is given up, as after a timeout
        assert b.source.state.phase == "connected"
        await b.stop()

    simulate(scenario)


def test_a_device_that_stays_away_leaves_the_outcome_unknown_within_a_bounded_time() -> None:
    async def scenario() -> None:
        b = bench()
        await asyncio.sleep(0.5)
        b.adapter.writes.extend([Step.LOST_ANSWER])
        b.adapter.opens.extend([Step.LOST] * 1_000)
        started_s = asyncio.get_running_loop().time()
        outcome = await b.write(7)
        assert asyncio.get_running_loop().time() - started_s <= writing.LOOK_S_MAX + 3 * 0.5
        assert (outcome.outcome, outcome.sent, outcome.read_back) == ("unknown", 7, None)
        assert "no answer within 0.5 s" in outcome.cause
        assert len(b.adapter.received) == 1
        await b.stop()

    simulate(scenario)


def test_what_the_device_refuses_is_refused_and_the_connection_stays() -> None:
    async def scenario() -> None:
        b = bench()
        await asyncio.sleep(0.5)
        b.adapter.writes.extend([Step.UNUSABLE])
        outcome = await b.write(7)
        assert (outcome.outcome, outcome.cause) == ("refused", "unusable on purpose")
        b.adapter.writes.extend([Step.LOST])
        outcome = await b.write(8)
        assert (outcome.outcome, outcome.cause) == ("refused", "lost on purpose: nothing was sent")
        assert (b.adapter.received, b.source.state.counters.opens) == ([("a", 7)], 1)
        await asyncio.sleep(20)
        assert b.source.state.counters.opens == 2
        await b.stop()

    simulate(scenario)


def test_a_device_that_takes_its_time_is_waited_for_and_one_that_confirms_and_ignores_has_failed() -> None:
    async def scenario() -> None:
        b = bench(late_s=0.4, write={"verify_s_max": 1.0})
        await asyncio.sleep(0.1)
        b.adapter.writes.extend([Step.APPLIED_LATE, Step.IGNORED])
        assert (await b.write(7)).outcome == "verified"
        outcome = await b.write(8)
        assert (outcome.outcome, outcome.read_back, outcome.sent) == ("failed", 7, 8)
        assert "confirmed, but the device shows 7, sent was 8" in outcome.cause
        assert len(b.adapter.received) == 2
        await b.stop()

    simulate(scenario)


def test_without_reading_back_it_is_written_or_unknown() -> None:
    async def scenario() -> None:
        b = bench(write={"verify": False})
        await asyncio.sleep(0.5)
        assert (await b.write(7)).outcome == "written"
        b.adapter.writes.extend([Step.LOST_ANSWER])
        assert (await b.write(8)).outcome == "unknown"
        await asyncio.sleep(20)
        b.adapter.reads_back.extend([Step.UNUSABLE])
        assert (await b.write(9)).outcome == "written"  # a register that can only be written
        await b.stop()

    async def cannot_be_read_back() -> None:
        b = bench()
        await asyncio.sleep(0.5)
        b.adapter.reads_back.extend([Step.UNUSABLE, Step.UNUSABLE])
        outcome = await b.write(7)
        assert (outcome.outcome, outcome.read_back) == ("written", None)
        assert "unusable on purpose" in outcome.cause
        b.adapter.reads_back.extend([Step.GOOD, Step.LOST])  # the link breaks after it was confirmed
        assert (await b.write(8)).outcome == "verified"
        b.adapter.reads_back.extend([Step.GOOD, Step.STALL, *[Step.STALL] * 20])
        assert (await b.write(9)).outcome == "written"
        assert len(b.adapter.received) == 3
        await b.stop()

    simulate(scenario)
    simulate(cannot_be_read_back)


@pytest.mark.parametrize("delay_s", [0.0, 0.005, 0.0105, 0.015, 0.0205, 0.025])
def test_a_write_that_is_cancelled_is_not_repeated_and_the_connection_is_made_anew(delay_s: float) -> None:
    async def scenario() -> None:
        b = bench()
        await asyncio.sleep(0.5)
        task = asyncio.create_task(b.write(7), name="write")
        await asyncio.sleep(delay_s)
        task.cancel()
        await asyncio.wait([task])
        assert task.cancelled()
        calls = [what for _, what in b.adapter.calls]
        await asyncio.sleep(30)
        assert len(b.adapter.received) == calls.count("write") <= 1
        assert b.source.state.counters.opens == (2 if 0.01 < delay_s < 0.02 else 1)
        assert (await b.write(8)).outcome == "verified"
        assert (b.source.state.phase, b.adapter.received[-1]) == ("connected", ("a", 8))
        await b.stop()

    simulate(scenario)


def test_too_fast_expired_and_doubled_writes_are_refused() -> None:
    async def scenario() -> None:
        b = bench(write={"every_s_min": 2.0})
        clock = b.adapter.context.clock
        await asyncio.sleep(0.5)
        assert (await b.write(1)).outcome == "verified"
        assert "at most every 2 s" in (await b.write(2)).cause
        await asyncio.sleep(2)
        assert "expired" in (await b.write(3, until_ns=clock.mono_ns() - 1)).cause
        first = asyncio.create_task(b.write(4), name="first")
        await asyncio.sleep(0)
        assert "under way" in (await b.write(4)).cause
        assert (await first).outcome == "verified"
        assert b.adapter.received == [("a", 1), ("a", 4)]
        await b.stop()

    simulate(scenario)


def test_a_write_waits_for_its_turn_and_no_longer_than_a_read_may_take() -> None:
    async def scenario() -> None:
        line = Line("shared")
        b, other = bench(line=line), bench(line=line, device="other", timeout_s=20.0)
        await asyncio.sleep(0.5)
        clock = b.adapter.context.clock
        async with line.turn:
            late = asyncio.create_task(b.write(1, until_ns=clock.mono_ns() + 200_000_000), name="late")
            await asyncio.sleep(0.3)
        assert "expired" in (await late).cause
        other.adapter.reads.extend([Step.LATE])  # 5 s
        await asyncio.sleep(0.6)
        started_s = asyncio.get_running_loop().time()
        outcome = await b.write(2)
        assert asyncio.get_running_loop().time() - started_s == pytest.approx(0.5)
        assert (outcome.outcome, "busy" in outcome.cause) == ("refused", True)
        assert b.adapter.received == []
        await asyncio.sleep(10)
        assert (await b.write(3)).outcome == "verified"
        await b.stop()
        await other.stop()

    simulate(scenario)


def test_polling_keeps_its_cadence_around_writes_and_no_two_requests_are_out() -> None:
    async def scenario() -> None:
        b = bench(period_s=0.1)
        busy = most = 0
        for name in ("read", "write", "read_back"):

            def counted(call: Callable[..., Awaitable[Any]]) -> Callable[..., Awaitable[Any]]:
                async def wrapped(*arguments: Any) -> Any:
                    nonlocal busy, most
                    busy += 1
                    most = max(most, busy)
                    try:
                        return await call(*arguments)
                    finally:
                        busy -= 1

                return wrapped

            setattr(b.adapter, name, counted(getattr(b.adapter, name)))
        await asyncio.sleep(0.05)
        for value in range(50):
            assert (await b.write(value)).outcome == "verified"
            await asyncio.sleep(0.137)
        reads = b.adapter.times("read")
        late_s = [at - reads[0] - n * 0.1 for n, at in enumerate(reads)]
        assert max(late_s) <= 0.02 + 1e-6  # the value before and the write; reading back is a turn of its own
        assert min(late_s) > -1e-6
        assert b.source.state.counters.overruns == 0
        assert most == 1
        await b.stop()

    simulate(scenario)


def test_a_pushed_source_is_written_while_it_waits() -> None:
    async def scenario() -> None:
        b = bench(FaultyPush)
        b.adapter.reads.extend([Step.GOOD, Step.STALL])
        await asyncio.sleep(0.5)
        assert (await b.write(5)).outcome == "verified"
        b.adapter.writes.extend([Step.LOST_ANSWER])
        assert (await b.write(6)).outcome == "verified"
        assert (b.adapter.received, b.source.state.counters.opens) == ([("a", 5), ("a", 6)], 2)
        b.task.cancel()
        await asyncio.wait([b.task])

    simulate(scenario, seeds=1)


def test_a_connection_that_ends_while_a_write_is_out_is_made_anew_once() -> None:
    """The write's own failure comes when the runtime has closed the connection already, and must not end its waiting."""

    async def scenario() -> None:
        b = bench(FaultyPush, interval_s=1.0)
        b.adapter.reads.extend([Step.GOOD, Step.LOST])
        await asyncio.sleep(0.9)
        b.adapter.writes.extend([Step.STALL])
        outcome = await b.write(5)
        assert (outcome.outcome, len(b.adapter.received)) == ("failed", 1)
        await asyncio.sleep(20)
        assert not b.task.done()
        assert b.source.state.phase == "connected"
        assert b.source.state.counters.opens == 2
        b.task.cancel()
        await asyncio.wait([b.task])

    simulate(scenario)


def test_a_stop_in_the_middle_of_a_write_ends_both() -> None:
    async def scenario() -> None:
        b = bench()
        await asyncio.sleep(0.5)
        b.adapter.writes.extend([Step.LOST_ANSWER])
        task = asyncio.create_task(b.write(7), name="write")
        await asyncio.sleep(0.1)
        await b.stop()
        assert (await task).outcome == "unknown"
        assert len(b.adapter.received) == 1

    simulate(scenario)


def test_by_chance_no_write_is_ever_two_and_what_is_verified_is_there() -> None:
    steps = [Step.GOOD, Step.LOST, Step.STALL, Step.LOST_ANSWER, Step.BROKEN, Step.ERROR, Step.UNUSABLE, Step.APPLIED_LATE]

    async def scenario() -> None:
        b = bench(late_s=0.3, backoff_s_max=0.5)
        dice = asyncio.get_running_loop().rng("steps")  # type: ignore[attr-defined]
        seen = dict.fromkeys(["verified", "written", "refused", "failed", "unknown"], 0)
        await asyncio.sleep(0.5)
        for number in range(300):
            b.adapter.writes.extend(dice.choices(steps, k=1))
            b.adapter.reads_back.extend(dice.choices([Step.GOOD, Step.LOST, Step.STALL], weights=[8, 1, 1], k=4))
            before = len(b.adapter.received)
            outcome = await b.write(number % 100)
            seen[outcome.outcome] += 1
            assert len(b.adapter.received) - before <= 1
            if outcome.outcome == "verified":
                assert b.adapter.held["a"] == number % 100
            if outcome.outcome == "refused" and outcome.sent is None and "on purpose" not in outcome.cause:
                assert len(b.adapter.received) == before
            b.adapter.writes.clear()
            b.adapter.reads_back.clear()
            await asyncio.sleep(dice.uniform(0.0, 1.0))
        assert seen["verified"] > 100
        assert seen["refused"] > 50
        assert seen["failed"] > 5
        await b.stop()

    simulate(scenario, seeds=4)


def test_an_adapter_that_cannot_write_says_so() -> None:
    class ReadOnly(Faulty):
        """Only reads."""

        write = Adapter.write
        read_back = Adapter.read_back

    async def scenario() -> None:
        b = bench(ReadOnly)
        await asyncio.sleep(0.5)
        outcome = await b.write(5)
        assert (outcome.outcome, outcome.cause) == ("refused", "this adapter cannot write")
        with pytest.raises(Unusable):
            await b.adapter.read_back("a")
        await b.stop()

    simulate(scenario, seeds=1)
