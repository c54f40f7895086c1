"""The log says where and what kind, never the words of an exception that is not ours: they may hold a point's value."""

from __future__ import annotations

import asyncio
import gc
import json
import logging
import math
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from typing import Any, Literal

import pytest
import structlog

from edge_runtime.cli import run
from edge_runtime.config import Log
from edge_runtime.ports import EdgeError
from edge_runtime.saying import LINES_MAX, told, trace

CANARY = "canary-21.5"


def _parses() -> None:
    value = CANARY
    try:
        float(value)
    except ValueError as error:
        raise KeyError(value) from error


def _groups() -> None:
    raise ExceptionGroup(CANARY, [_caught(_parses), ValueError(CANARY)])


def _ours() -> None:
    try:
        _parses()
    except KeyError as error:
        raise EdgeError("the line is silent", "switch it on") from error


def _caught(function: Callable[[], object]) -> Exception:
    try:
        function()
    except Exception as error:  # noqa: BLE001 - whatever it is
        return error
    raise AssertionError


@pytest.mark.parametrize(
    ("function", "words"),
    [
        (_parses, ["KeyError", "test_saying.py", "_parses", "because of ValueError"]),
        (_groups, ["ExceptionGroup", "because of KeyError", "because of ValueError"]),
        (_ours, ["EdgeError: the line is silent (switch it on)", "because of KeyError"]),
    ],
)
def test_a_trace_tells_places_and_kinds(function: Callable[[], object], words: list[str]) -> None:
    error = _caught(function)
    for text in (trace(error), told(error)):
        assert CANARY not in text
    for word in words:
        assert word in trace(error)


def test_an_error_in_short() -> None:
    assert told(_caught(_ours)) == "the line is silent (switch it on)"
    assert told(_caught(lambda: math.sqrt(-1))).startswith("ValueError at test_saying.py:")
    assert told(ValueError(CANARY)) == "ValueError"


def test_a_trace_has_an_end() -> None:
    def deep(count: int) -> None:
        if not count:
            _parses()
        deep(count - 1)

    assert len(trace(_caught(lambda: deep(500))).splitlines()) == LINES_MAX
    one, other = ValueError(CANARY), KeyError(CANARY)
    one.__cause__, other.__cause__ = other, one
    assert trace(one).splitlines()[1:] == ["ValueError", "because of KeyError"]


@contextmanager
def as_in_a_gateway() -> Iterator[None]:
    """Without the handlers of the test program; and what `run.logger` sets is undone."""
    root, last = logging.getLogger(), logging.lastResort
    handlers, root.handlers[:] = [*root.handlers], []
    try:
        yield
    finally:
        root.handlers[:], logging.lastResort = handlers, last
        structlog.reset_defaults()


@pytest.mark.parametrize("form", ["json", "text"])
def test_no_value_gets_into_the_log_by_way_of_an_exception(
    form: Literal["json", "text"], capsys: pytest.CaptureFixture[str]
) -> None:
    """Not by its words, not by local variables, not by what asyncio and libraries say of it."""
    with as_in_a_gateway():
        _provoke(run.logger(Log(level="debug", format=form)))
    said = capsys.readouterr().err
    assert CANARY not in said
    assert said.count("test_saying.py") > 6
    assert "odd answer %r" in said
    assert "exception was never retrieved" in said
    if form == "json":
        lines = [json.loads(line) for line in said.splitlines()]
        assert len(lines) == 9
        assert all("Traceback" in line["exception"] for line in lines if line["event"] == "broken")


def _provoke(log: Any) -> None:
    for function in (_parses, _groups, _ours):
        try:
            function()
        except Exception as error:
            log.exception("broken", service="x")
            log.error("broken", exc_info=error)
    library = logging.getLogger("some.library")
    library.warning("odd answer %r", CANARY)
    library.error("bad\nanswer", exc_info=_caught(_parses))

    async def nobody_asks() -> None:
        answer: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        answer.set_exception(_caught(_parses))
        del answer
        gc.collect()

    asyncio.run(nobody_asks())
