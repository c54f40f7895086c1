"""Foreign code: whatever it raises becomes an error that one can go on with, and that names its place."""

from __future__ import annotations

import asyncio
import sys
from collections.abc import Callable

import pytest

from edge_runtime.foreign import LETS_GO_S_MAX, Strayed, awaited, in_time, made
from edge_runtime.ports import EdgeError
from edge_runtime.testing.loop import run


class Own(BaseException):
    """A library's own word for being cancelled."""


@pytest.mark.parametrize("call", [lambda: {}["21.5"], lambda: sys.exit("21.5"), lambda: 1 / 0])
def test_what_is_raised_while_it_is_asked_is_told_with_its_place_and_without_words(call: Callable[[], object]) -> None:
    with pytest.raises(EdgeError, match=r"it cannot: \w+ at test_foreign.py:\d+ \(tell its author\)$"):
        made(call, "it cannot")


def test_an_error_of_ours_comes_through_as_it_is() -> None:
    def refused() -> None:
        raise EdgeError("no", "do")

    with pytest.raises(EdgeError) as caught:
        made(refused, "it cannot")
    assert (caught.value.cause, caught.value.hint) == ("no", "do")


def test_an_exception_in_the_place_of_a_cause_is_a_text() -> None:
    """`raise LinkLost(error)`: no log and no disk takes an exception."""
    error = EdgeError(OSError(5, "gone"), 7)  # type: ignore[arg-type]
    assert (error.cause, error.hint) == ("[Errno 5] gone", "7")


@pytest.mark.parametrize("error", [SystemExit(3), Own(), asyncio.CancelledError()])
def test_what_would_end_more_than_a_call_is_an_exception_like_any_other(error: BaseException) -> None:
    async def raises() -> None:
        raise error

    async def scenario() -> None:
        with pytest.raises(Strayed) as caught:
            await awaited(raises)
        assert caught.value.__cause__ is error

    run(scenario, seed=0)


def test_being_cancelled_by_us_goes_through() -> None:
    async def scenario() -> None:
        task = asyncio.create_task(awaited(lambda: asyncio.sleep(9)))
        await asyncio.sleep(1)
        task.cancel()
        with pytest.raises(asyncio.CancelledError):
            await task

    run(scenario, seed=0)


def test_who_does_not_end_when_given_up_is_told_while_we_wait() -> None:
    async def scenario() -> None:
        loop, told = asyncio.get_running_loop(), list[float]()

        async def clings() -> None:
            try:
                await asyncio.sleep(1e6)
            finally:
                await asyncio.sleep(60)

        assert not await in_time(clings, 2, lambda: told.append(loop.time()))
        assert await in_time(lambda: asyncio.sleep(1), 2, lambda: told.append(0))
        await asyncio.sleep(60)
        assert told == [2 + LETS_GO_S_MAX]

    run(scenario, seed=0)
