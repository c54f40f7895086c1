"""The suite runs on the adapter that the guide shows, and fails on adapters that break one rule each."""

from __future__ import annotations

import asyncio
import importlib.util
import re
import socket
import sys
import types
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any, ClassVar

import pytest

from edge_runtime import adapter as contract
from edge_runtime import config
from edge_runtime.adapter import Adapter, Field, LinkLost, Sample, Value
from edge_runtime.sources.supervisor import Source
from edge_runtime.testing.adapter import Faulty, FaultyPush, build
from edge_runtime.testing.adapter_suite import AdapterSuite

GUIDE = Path(__file__).parents[2] / "docs" / "guide-integrator.md"


@pytest.fixture(scope="module", autouse=True)
def wind_station(tmp_path_factory: pytest.TempPathFactory) -> types.ModuleType:
    """The first block of Python in the guide, as an installed module."""
    code = re.findall(r"```python\n(.*?)```", GUIDE.read_text(), re.DOTALL)[0]
    path = tmp_path_factory.mktemp("guide") / "wind_station.py"
    path.write_text(code)
    spec = importlib.util.spec_from_file_location("wind_station", path)
    assert spec is not None
    assert spec.loader is not None
    module = importlib.util.module_from_spec(spec)
    sys.modules["wind_station"] = module
    spec.loader.exec_module(module)
    return module


class Station:
    """A wind station that can fall silent; what it was asked meanwhile it answers late."""

    def __init__(self) -> None:
        self.speed = 1.0
        self.awake = asyncio.Event()
        self.awake.set()
        self._links: list[asyncio.StreamWriter] = []

    def hang_up(self) -> None:
        for link in self._links:
            link.close()

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        self._links.append(writer)
        try:
            while await reader.readline():
                answer = f"{self.speed};270\n".encode()
                await self.awake.wait()
                writer.write(answer)
        except ConnectionError:
            pass
        finally:
            writer.close()


class WindSuite(AdapterSuite):
    station: Station

    @asynccontextmanager
    async def device(self) -> AsyncIterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        self.station = Station()
        server = await asyncio.start_server(self.station.serve, "127.0.0.1", 0)
        port = server.sockets[0].getsockname()[1]
        points = [{"name": "speed", "field": 0}, {"name": "direction", "field": 1}, {"name": "gust", "field": 2}]
        yield {"host": "127.0.0.1", "port": port}, points
        self.station.awake.set()
        server.close()
        self.station.hang_up()

    def nowhere(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "port": 1}

    async def change(self) -> Mapping[str, Value]:
        self.station.speed += 1.0
        return {"speed": self.station.speed, "gust": None}

    async def stall(self) -> None:
        self.station.awake.clear()

    async def resume(self) -> None:
        self.station.awake.set()


class TestWind(WindSuite):
    @pytest.fixture(autouse=True)
    def _adapter(self, wind_station: types.ModuleType) -> None:
        type(self).adapter = wind_station.Wind


def test_supervised_it_survives_a_station_that_is_absent_silent_and_started_again(wind_station: types.ModuleType) -> None:
    """On the real clock, over real sockets."""

    async def scenario() -> None:
        station, taken = Station(), asyncio.Queue[Sample]()

        async def accept(samples: Sequence[Sample]) -> None:
            for sample in samples:
                taken.put_nowait(sample)

        async def until(speed: float | None) -> Sample:
            async with asyncio.timeout(20):
                while (sample := await taken.get()).values != (speed,):
                    pass
                return sample

        with socket.create_server(("127.0.0.1", 0)) as free:
            port = free.getsockname()[1]
        points = [{"name": "speed", "field": 0}]
        device = config.Device(adapter="wind", points=points, period_s=0.01, timeout_s=0.3, backoff_s_max=0.05)
        source = Source(build(wind_station.Wind, {"host": "127.0.0.1", "port": port}, points), device, accept)
        task = asyncio.create_task(source.run())
        assert "is the station" not in (await until(None)).faults["speed"]  # absent at the start: the cause, not the hint
        for speed in (5.0, 6.0):
            station.speed = speed
            server = await asyncio.start_server(station.serve, "127.0.0.1", port)
            await until(speed)
            station.awake.clear()
            assert "no answer within 0.3 s" in (await until(None)).faults["speed"]
            station.speed += 0.5
            station.awake.set()
            await until(speed + 0.5)
            server.close()
            station.hang_up()
            await until(None)
        source.stop()
        await task
        assert source.state.phase == "stopped"

    asyncio.run(scenario())


class TestFaulty(AdapterSuite):
    adapter = Faulty
    writes: ClassVar[Mapping[str, Sequence[Value]]] = {"a": (1.0, 2.0, 3.0), "b": (4.0, 5.0, 6.0)}
    _adapter: Any = None

    def _build(self, options: dict[str, Any], points: list[dict[str, Any]]) -> Adapter:
        self._adapter = super()._build(options, points)
        return self._adapter

    def received(self) -> int:
        return len(self._adapter.received)

    @asynccontextmanager
    async def device(self) -> AsyncIterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        yield {"latency_s": 0.001, "bad": 0.3}, [{"name": "a"}, {"name": "b"}]

    def nowhere(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "lost": 1.0}


class TestFaultyPush(TestFaulty):
    adapter = FaultyPush


# --- adapters that break one rule each -------------------------------------------------------------------------------


def late_answers(wind: Any) -> type[Adapter]:
    class Late(wind):
        __doc__ = "Takes a late answer for the next one."

        async def read(self) -> Sequence[Sample]:
            self._asked = False
            return await super().read()

    return Late


def last_value(wind: Any) -> type[Adapter]:
    class Last(wind):
        __doc__ = "Says the last value again."
        _last: Any = None

        async def read(self) -> Sequence[Sample]:
            if self._last is None:
                self._last = await super().read()
            return self._last

    return Last


def foreign_errors(wind: Any) -> type[Adapter]:
    class Foreign(wind):
        __doc__ = "Lets errors through."

        async def open(self) -> None:
            try:
                await super().open()
            except LinkLost:
                raise ConnectionRefusedError from None

    return Foreign


def close_once(wind: Any) -> type[Adapter]:
    class Once(wind):
        __doc__ = "Can be closed when it is open only."

        async def close(self) -> None:
            await super().close()
            self._closed = getattr(self, "_closed", 0) + 1
            if self._closed > 3:
                raise RuntimeError("closed already")

    return Once


def reconnects(wind: Any) -> type[Adapter]:
    class Again(wind):
        __doc__ = "Tries again by itself."

        async def open(self) -> None:
            while True:
                try:
                    return await super().open()
                except LinkLost:
                    await asyncio.sleep(0.1)

    return Again


def value_and_fault(wind: Any) -> type[Adapter]:
    class Both(wind):
        __doc__ = "Gives a value and calls it bad."

        def _sample(self, cells: list[str]) -> Sample:
            good = super()._sample(cells)
            return Sample(good.device, good.stamp, (0.0, *good.values[1:]), {"speed": "bad"})

    return Both


def undescribed(wind: Any) -> type[Adapter]:
    class Undescribed(wind):
        __doc__ = "Has an option without a description."

        class Options(contract.Options):
            host: str
            port: int = Field(1, description="Port")

    return Undescribed


def undocumented(wind: Any) -> type[Adapter]:
    class Undocumented(wind):
        __doc__ = None

    return Undocumented


def lenient(wind: Any) -> type[Adapter]:
    class Lenient(wind):
        __doc__ = "Takes unknown options."

        class Options(wind.Options, extra="ignore"):
            pass

    return Lenient


def cannot_be_cancelled(wind: Any) -> type[Adapter]:
    class Stubborn(wind):
        __doc__ = "Swallows being cancelled."

        async def read(self) -> Sequence[Sample]:
            while True:
                try:
                    return await super().read()
                except asyncio.CancelledError:
                    self._asked = False

    return Stubborn


def late_acknowledge(wind: Any) -> type[Adapter]:
    class Acknowledging(wind):
        __doc__ = "Raises where the connection is gone."

        async def acknowledge(self, samples: Sequence[Sample]) -> None:
            if self._writer is None:
                raise LinkLost("gone")

    return Acknowledging


@pytest.mark.parametrize(
    ("violation", "rule"),
    [
        (late_answers, "test_a_late_answer_is_never_taken_for_the_next_one"),
        (last_value, "test_a_read_may_be_cancelled_at_any_await"),
        (last_value, "test_a_closed_adapter_says_so_in_the_words_of_its_contract"),
        (foreign_errors, "test_open_makes_one_attempt_and_close_after_it_is_fine"),
        (reconnects, "test_open_makes_one_attempt_and_close_after_it_is_fine"),
        (close_once, "test_close_at_any_time"),
        (value_and_fault, "test_read_returns_samples_of_the_declared_points"),
        (undescribed, "test_it_is_documented"),
        (undocumented, "test_it_is_documented"),
        (lenient, "test_unknown_keys_are_refused"),
        (cannot_be_cancelled, "test_a_late_answer_is_never_taken_for_the_next_one"),
        (late_acknowledge, "test_acknowledging_without_a_connection_is_harmless"),
    ],
)
def test_the_suite_notices(
    violation: Callable[[Any], type[Adapter]], rule: str, wind_station: types.ModuleType, tmp_path: Path
) -> None:
    class Planted(WindSuite):
        adapter = violation(wind_station.Wind)
        answer_s_max = 0.5

    suite = Planted()
    suite.folder = tmp_path
    with pytest.raises((Exception, pytest.fail.Exception)):
        getattr(suite, rule)()
    Planted.adapter, Planted.answer_s_max = wind_station.Wind, AdapterSuite.answer_s_max
    getattr(suite, rule)()


def writes_twice() -> type[Faulty]:
    class Twice(Faulty):
        """As a library that repeats what was not answered at once."""

        async def write(self, point: str, value: Value) -> None:
            await super().write(point, value)
            await super().write(point, value)

    return Twice


def writes_again_when_given_up() -> type[Faulty]:
    class Again(Faulty):
        """Does not let go of a write that was given up."""

        async def write(self, point: str, value: Value) -> None:
            for _ in range(3):
                try:
                    await super().write(point, value)
                except asyncio.CancelledError:
                    continue
                return

    return Again


def says_what_it_was_told() -> type[Faulty]:
    class Told(Faulty):
        """Reads back what was written first, not what the device has."""

        async def read_back(self, point: str) -> Value:
            return next(value for name, value in self.received if name == point)

    return Told


def writes_when_closed() -> type[Faulty]:
    class Closed(Faulty):
        """Opens by itself."""

        async def write(self, point: str, value: Value) -> None:
            self.is_open = True
            await super().write(point, value)

    return Closed


@pytest.mark.parametrize(
    ("violation", "rule"),
    [
        (writes_twice, "test_a_write_is_one_request_and_is_read_back"),
        (writes_again_when_given_up, "test_a_write_may_be_cancelled_at_any_await_and_is_not_repeated"),
        (says_what_it_was_told, "test_a_write_is_one_request_and_is_read_back"),
        (writes_when_closed, "test_a_closed_adapter_writes_nothing"),
    ],
)
def test_the_suite_notices_wrong_writing(violation: Callable[[], type[Faulty]], rule: str, tmp_path: Path) -> None:
    class Planted(TestFaulty):
        __test__ = False
        adapter = violation()

    suite = Planted()
    suite.folder = tmp_path
    with pytest.raises((Exception, pytest.fail.Exception)):
        getattr(suite, rule)()
    Planted.adapter = Faulty
    getattr(suite, rule)()


def test_the_suite_notices_an_adapter_whose_writing_is_not_tested() -> None:
    class Planted(WindSuite):
        adapter = Faulty

    with pytest.raises(AssertionError):
        Planted().test_an_adapter_only_reads_or_its_writing_is_tested()


def test_the_suite_notices_an_import_of_the_outside_library() -> None:
    class Planted(WindSuite):
        adapter = Faulty
        outside = ("structlog",)

    with pytest.raises(AssertionError, match="structlog"):
        Planted().test_importing_it_imports_no_outside_library()


def _rules(suite: type[AdapterSuite]) -> set[str]:
    return {name for name in dir(suite) if name.startswith("test_") and callable(getattr(suite, name))}


def test_a_rule_that_needs_what_is_not_given_is_no_test() -> None:
    class Bare(AdapterSuite):
        adapter = Faulty

    class Full(Bare):
        outside = ("structlog",)

        def nowhere(self, options: dict[str, Any]) -> dict[str, Any]:
            return options

        async def stall(self) -> None: ...

    class Own(Bare):
        def test_a_late_answer_is_never_taken_for_the_next_one(self) -> None:
            """Shows it in another way."""

    class OwnToo(Own): ...

    class Writing(Bare):
        def received(self) -> int:
            return 0

    late = "test_a_late_answer_is_never_taken_for_the_next_one"
    writing = {
        "test_a_write_is_one_request_and_is_read_back",
        "test_a_write_may_be_cancelled_at_any_await_and_is_not_repeated",
        "test_a_closed_adapter_writes_nothing",
    }
    silent = "test_a_write_without_an_answer_is_one_write"
    needy = {
        "test_a_missing_library_is_unusable_with_a_hint",
        "test_open_makes_one_attempt_and_close_after_it_is_fine",
        late,
    }
    assert _rules(AdapterSuite) - _rules(Bare) == needy | writing | {silent}
    assert _rules(Full) == _rules(AdapterSuite) - writing - {silent}
    assert _rules(Writing) == _rules(Bare) | writing
    assert _rules(OwnToo) == _rules(Bare) | {late}
    assert vars(Own)[late] is OwnToo.test_a_late_answer_is_never_taken_for_the_next_one
