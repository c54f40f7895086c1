"""The rules of edge_runtime.adapter, as tests that run on any adapter and its real device.

    class TestWeather(AdapterSuite):
        adapter = Weather
        outside = ("serial",)                             # what importing the module must not import

        @asynccontextmanager
        async def device(self):
            async with weather_station() as port:         # start the device (or a stand-in for it)
                yield {"port": port}, [{"name": "wind", "field": 3}]

        def nowhere(self, options):                       # the same, but nobody is there
            return {**options, "port": "/dev/null"}

Give what else your device can do (`speak`, `change`, `stall`, `resume`; for an adapter that writes `writes` and `received`). A
rule that needs what is not given (`outside`, `nowhere`, `stall`, `received`) is no test of your suite: it is not collected, so
that a skip always means that something is missing.
"""

from __future__ import annotations

import asyncio
import inspect
import subprocess
import sys
from collections.abc import Awaitable, Callable, Coroutine, Mapping, Sequence
from contextlib import AbstractAsyncContextManager
from functools import partial
from pathlib import Path
from typing import Any, ClassVar, TypeVar

import pydantic
import pytest

from edge_runtime.adapter import Adapter, Exhausted, LinkLost, Sample, Unknown, Unusable, Value
from edge_runtime.sources.decoding import Decoder
from edge_runtime.testing.adapter import build

T = TypeVar("T")

GIVE_UP_AFTER_S = (0.0, 0.0, 0.000_2, 0.001, 0.003, 0.01)
"""A read is cancelled after these waits, somewhere in its way."""

OptionsAndPoints = tuple[dict[str, Any], list[dict[str, Any]]]


class AdapterSuite:
    """Subclass it as `class TestMine(AdapterSuite)`. Every test starts the device anew; `self.folder` is an empty folder."""

    adapter: ClassVar[type[Adapter]]
    outside: ClassVar[tuple[str, ...]] = ()
    """Outside modules of the adapter: importing its module must not import them."""

    writes: ClassVar[Mapping[str, Sequence[Value]]] = {}
    """Adapters that write: raw values that the device takes, by point (three or more each, all different)."""

    answer_s_max: ClassVar[float] = 10.0
    """An open, a read, a close that takes longer is a failure."""

    folder: Path

    # --- what a subclass gives ---------------------------------------------------------------------------------------

    def device(self) -> AbstractAsyncContextManager[OptionsAndPoints]:
        """Starts the device; gives the options and points under which the adapter finds it."""
        raise NotImplementedError("give `device`: an async context manager of (options, points)")

    def bus(self) -> Any:
        """The MQTT that the adapter gets (default: there is none)."""
        return None

    def nowhere(self, options: dict[str, Any]) -> dict[str, Any]:
        """Options under which nothing answers."""
        raise NotImplementedError

    async def speak(self) -> None:
        """Pushed adapters: makes the device send one message. Called before each read that has to return."""

    async def change(self) -> Mapping[str, Value] | None:
        """Gives the device values that it never had before; returns what a read must say of them now."""
        return None

    async def stall(self) -> None:
        """From now on the device is silent, with the connection open."""
        raise NotImplementedError

    async def resume(self) -> None:
        """It answers again (also what it was asked in the meantime, if that is what the device does)."""

    def received(self) -> int:
        """How many requests to write have reached the device, those of `change` aside: counted there, not by the adapter."""
        raise NotImplementedError

    # --- the rules ---------------------------------------------------------------------------------------------------

    def __init_subclass__(cls) -> None:
        """Takes away the rules that need what this suite does not give (pytest collects no None), and no others: a suite made
        from one that gave less has them again."""
        writes = cls.received is not AdapterSuite.received
        given = {
            "test_a_missing_library_is_unusable_with_a_hint": bool(cls.outside),
            "test_open_makes_one_attempt_and_close_after_it_is_fine": cls.nowhere is not AdapterSuite.nowhere,
            "test_a_late_answer_is_never_taken_for_the_next_one": cls.stall is not AdapterSuite.stall,
            "test_a_write_is_one_request_and_is_read_back": writes,
            "test_a_write_may_be_cancelled_at_any_await_and_is_not_repeated": writes,
            "test_a_closed_adapter_writes_nothing": writes,
            "test_a_write_without_an_answer_is_one_write": writes and cls.stall is not AdapterSuite.stall,
        }
        for rule, is_given in given.items():
            ours = vars(AdapterSuite)[rule]
            if rule not in vars(cls) and getattr(cls, rule) in (ours, None):
                setattr(cls, rule, ours if is_given else None)

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def test_it_is_documented(self) -> None:
        """`edge-runtime adapters NAME` shows it."""
        assert inspect.cleandoc(self.adapter.__doc__ or ""), "the adapter's class needs a docstring"
        assert self.adapter.__doc__ != Adapter.__doc__
        for model in (self.adapter.Options, self.adapter.Point):
            silent = [name for name, field in model.model_fields.items() if not field.description]
            assert not silent, f"{model.__qualname__}: no description for {', '.join(silent)}"

    def test_unknown_keys_are_refused(self) -> None:
        async def scenario() -> None:
            async with self.device() as (options, points):
                with pytest.raises(pydantic.ValidationError):
                    self._build({**options, "no_such_option": 1}, points)
                with pytest.raises(pydantic.ValidationError):
                    self._build(options, [{**points[0], "no_such_key": 1}])

        asyncio.run(scenario())

    def test_importing_it_imports_no_outside_library(self) -> None:
        """Rule 6. A gateway without the extra must still start, and say what is missing."""
        module = self.adapter.__module__
        check = f"import sys, {module}; print([m for m in {list(self.outside)!r} if m in sys.modules])"
        folder = Path(inspect.getfile(self.adapter)).parents[module.count(".")]
        path = [str(folder), *sys.path]
        program = f"import sys; sys.path[:0] = {path!r}; {check}"
        done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, check=False)
        assert done.returncode == 0, done.stderr
        assert done.stdout.strip() == "[]", f"importing {module} imports {done.stdout.strip()}"

    def test_a_missing_library_is_unusable_with_a_hint(self, monkeypatch: pytest.MonkeyPatch) -> None:
        """Rule 6."""

        async def scenario() -> None:
            async with self.device() as (options, points):
                adapter = self._build(options, points)
                for name in [name for name in sys.modules if name.split(".")[0] in self.outside] + list(self.outside):
                    monkeypatch.setitem(sys.modules, name, None)
                with pytest.raises(Unusable) as caught:
                    await self._bounded(adapter.open)
                await self._bounded(adapter.close)
                monkeypatch.undo()
                assert "install" in caught.value.hint

        asyncio.run(scenario())

    def test_read_returns_samples_of_the_declared_points(self) -> None:
        """Rules 2 and 3."""

        async def scenario(adapter: Adapter) -> None:
            await self._read(adapter)
            expected = await self.change()
            await self._read_expected(adapter, expected)

        self._opened(scenario)

    def test_open_makes_one_attempt_and_close_after_it_is_fine(self) -> None:
        """Rules 1, 4 and 5."""

        async def scenario() -> None:
            async with self.device() as (options, points):
                adapter = self._build(self.nowhere(options), points)
                for _ in range(2):
                    with pytest.raises((LinkLost, Unusable)) as caught:
                        await self._bounded(adapter.open)
                    assert caught.value.cause
                    await self._bounded(adapter.close)

        asyncio.run(scenario())

    def test_close_at_any_time(self) -> None:
        """Rule 5: before open, twice, while a read was given up, and then it opens again."""

        async def scenario() -> None:
            async with self.device() as (options, points):
                adapter = self._build(options, points)
                await self._bounded(adapter.close)
                for _ in range(2):
                    await self._bounded(adapter.open)
                    await self._read(adapter)
                    await self._give_up_reading(adapter, 0.0)
                    await self._bounded(adapter.close)
                    await self._bounded(adapter.close)

        asyncio.run(scenario())

    def test_a_closed_adapter_says_so_in_the_words_of_its_contract(self) -> None:
        """Rule 4."""

        async def scenario() -> None:
            async with self.device() as (options, points):
                adapter = self._build(options, points)
                with pytest.raises((LinkLost, Unusable, Exhausted)):
                    await self._bounded(adapter.read)
                await self._bounded(adapter.open)
                await self._read(adapter)
                await self._bounded(adapter.close)
                with pytest.raises((LinkLost, Unusable, Exhausted)):
                    await self._bounded(adapter.read)

        asyncio.run(scenario())

    def test_a_read_may_be_cancelled_at_any_await(self) -> None:
        """Rule 2: what is read after it is what the device says now, not the answer to the cancelled request."""

        async def scenario(adapter: Adapter) -> None:
            await self._read(adapter)
            for delay_s in GIVE_UP_AFTER_S:
                await self._give_up_reading(adapter, delay_s)
                expected = await self.change()
                await self._read_expected(adapter, expected)

        self._opened(scenario)

    def test_a_late_answer_is_never_taken_for_the_next_one(self) -> None:
        """Rule 2. The device falls silent, the read is given up, the device answers after all."""

        async def scenario(adapter: Adapter) -> None:
            await self._read(adapter)
            for _ in range(3):
                await self.stall()
                await self._give_up_reading(adapter, 0.2)
                await self.resume()
                expected = await self.change()
                await self._read_expected(adapter, expected)

        self._opened(scenario)

    def test_acknowledging_without_a_connection_is_harmless(self) -> None:
        """The source asks again."""

        async def scenario(adapter: Adapter) -> None:
            samples = await self._read(adapter)
            await self._bounded(adapter.close)
            await self._bounded(lambda: adapter.acknowledge(samples))
            await self._bounded(adapter.open)
            await self._bounded(lambda: adapter.acknowledge(samples))
            await self._read(adapter)

        self._opened(scenario)

    # --- the rules for writing (7) -----------------------------------------------------------------------------------

    def test_an_adapter_only_reads_or_its_writing_is_tested(self) -> None:
        async def scenario(adapter: Adapter) -> None:
            with pytest.raises(Unusable):
                await self._bounded(lambda: adapter.write(adapter.context.points[0].name, 1))

        if self.adapter.write is Adapter.write:
            self._opened(scenario)
        else:
            assert type(self).received is not AdapterSuite.received
            assert min(map(len, self.writes.values())) >= 3

    def test_a_write_is_one_request_and_is_read_back(self) -> None:
        async def scenario(adapter: Adapter) -> None:
            await self._taken(adapter)
            for point, values in self.writes.items():
                for value in values:
                    await self._written(adapter, point, value)

        self._opened(scenario)

    def test_a_write_may_be_cancelled_at_any_await_and_is_not_repeated(self) -> None:
        """Afterwards the device has the old value or the new one, and the next answer belongs to the next request."""

        async def scenario(adapter: Adapter) -> None:
            for point, (first, second, third, *_) in self.writes.items():
                for delay_s in GIVE_UP_AFTER_S:
                    await self._written(adapter, point, first)
                    before = self.received()
                    await self._give_up(adapter.write(point, second), delay_s)
                    await self._taken(adapter)
                    assert await self._bounded(partial(adapter.read_back, point)) in (first, second)
                    await self._written(adapter, point, third, at_most=1)
                    assert self.received() - before <= 2, "a write that was given up was repeated"

        self._opened(scenario)

    def test_a_closed_adapter_writes_nothing(self) -> None:
        async def scenario(adapter: Adapter) -> None:
            await self._taken(adapter)
            await self._bounded(adapter.close)
            before = self.received()
            for point, (value, *_) in self.writes.items():
                with pytest.raises((LinkLost, Unusable)):
                    await self._bounded(partial(adapter.write, point, value))
            assert self.received() == before

        self._opened(scenario)

    def test_a_write_without_an_answer_is_one_write(self) -> None:
        """The device falls silent, the write is given up, the device answers after all: to nobody."""

        async def scenario(adapter: Adapter) -> None:
            for point, (first, second, third, *_) in self.writes.items():
                await self._written(adapter, point, first)
                before = self.received()
                await self.stall()
                await self._give_up(adapter.write(point, second), 0.2)
                await self.resume()
                await self._read_expected(adapter, await self.change())
                await self._written(adapter, point, third, at_most=1)
                await self._taken(adapter)
                assert self.received() - before <= 2, "a write without an answer was repeated"

        self._opened(scenario)

    async def _written(self, adapter: Adapter, point: str, value: Value, at_most: int = 0) -> None:
        """Written once, and read back; `at_most` more may arrive meanwhile, from before. A lost link is opened again."""
        before, raw = self.received(), {one.name: one for one in adapter.context.points}[point].fit(value)
        await self._taken(adapter)
        await self._bounded(partial(adapter.write, point, raw))
        assert 1 <= self.received() - before <= 1 + at_most
        assert await self._bounded(partial(adapter.read_back, point)) == raw

    async def _taken(self, adapter: Adapter) -> None:
        await adapter.acknowledge(await self._read(adapter))

    # --- how it is done ----------------------------------------------------------------------------------------------

    def _build(self, options: dict[str, Any], points: list[dict[str, Any]]) -> Adapter:
        return build(self.adapter, options, points, bus=self.bus())

    def _opened(self, scenario: Callable[[Adapter], Awaitable[None]]) -> None:
        async def run() -> None:
            async with self.device() as (options, points):
                adapter = self._build(options, points)
                await self._bounded(adapter.open)
                try:
                    await scenario(adapter)
                finally:
                    await self._bounded(adapter.close)

        asyncio.run(run())

    async def _bounded(self, call: Callable[[], Awaitable[T]]) -> T:
        async with asyncio.timeout(self.answer_s_max):
            return await call()

    async def _read(self, adapter: Adapter) -> Sequence[Sample]:
        """Reads until samples come; they must be of the declared points. A lost link is opened again, once."""
        if adapter.mode == "pushed":
            await self.speak()
        try:
            samples = await self._bounded(adapter.read)
        except LinkLost:
            await self._bounded(adapter.close)
            await self._bounded(adapter.open)
            samples = await self._bounded(adapter.read)
        decode = Decoder(adapter.context.points)
        names = [point.name for point in adapter.context.points]
        for sample in samples:
            assert isinstance(sample, Sample)
            assert sample.device == adapter.context.device
            assert decode(sample) is not None  # raises on a wrong number of values
            assert set(sample.faults) <= set(names), "a fault of a point that was not declared"
            for name, value in zip(names, sample.values, strict=True):
                assert (value is None) == (name in sample.faults), f"{name}: {value!r}, faults {sample.faults}"
        return samples

    async def _read_expected(self, adapter: Adapter, expected: Mapping[str, Value] | None) -> None:
        """A polled adapter says it at once; a pushed one after what was sent before."""
        names = [point.name for point in adapter.context.points]
        async with asyncio.timeout(self.answer_s_max):
            while True:
                samples = await self._read(adapter)
                got = [dict(zip(names, sample.values, strict=True)) for sample in samples]
                if expected is None or (got and all(got[-1][name] == value for name, value in expected.items())):
                    return
                assert adapter.mode == "pushed", f"the device says {dict(expected)}, the adapter {got}"

    async def _give_up_reading(self, adapter: Adapter, after_s: float) -> None:
        await self._give_up(adapter.read(), after_s)

    async def _give_up(self, call: Coroutine[Any, Any, Any], after_s: float) -> None:
        task = asyncio.create_task(call, name="a call that is given up")
        await asyncio.sleep(after_s)
        task.cancel()
        done, _ = await asyncio.wait((task,), timeout=self.answer_s_max)
        assert done, "the adapter does not let its call be cancelled"
        if not task.cancelled() and (error := task.exception()) is not None:
            assert isinstance(error, LinkLost | Exhausted | Unknown), f"{error!r} is no error of the contract"
