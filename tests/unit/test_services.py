"""A service that does not end when it is told to: an adapter of somebody's that swallows it, say."""

from __future__ import annotations

import asyncio
import subprocess
import sys
from typing import Any

import pytest
from keepers import Log

from edge_runtime import services
from edge_runtime.services import Services


async def swallows() -> None:
    while True:
        try:
            await asyncio.sleep(3600)
        except asyncio.CancelledError:
            continue


async def listens() -> None:
    await asyncio.sleep(3600)


def test_one_that_swallows_it_is_left_behind_and_told(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(services, "LEFT_S_MAX", 0.05)
    log = Log()

    async def main() -> None:
        one = Services(log)
        for name, service in {"good": listens, "bad": swallows}.items():
            one.keep(name, service)
        await asyncio.sleep(0)
        await asyncio.wait_for(one.drop_all(), 20)
        assert "bad" not in one
        one.keep("bad", listens)  # its name is free again: the device may be configured anew
        await one.drop("bad")

    services.run_to_the_end(main(), log)
    assert [(event, words.get("service")) for event, words in log.lines] == [
        ("service_left_behind", "bad"),
        ("tasks_left_behind", None),
    ]


PROGRAM = """
import asyncio, sys
from edge_runtime import services
from keepers import Log
from test_services import swallows

async def main():
    left = asyncio.create_task(swallows(), name="left")
    await asyncio.sleep(0.01)

services.LEFT_S_MAX = 0.05
log = Log()
try:
    services.run_to_the_end(main(), log)
finally:
    print(log.lines)
"""


def test_the_process_ends_all_the_same() -> None:
    done = subprocess.run([sys.executable, "-c", PROGRAM], capture_output=True, text=True, timeout=60, env=paths())
    assert done.returncode == 0, done.stderr
    assert "'tasks': ['left']" in done.stdout


def paths() -> dict[str, str]:
    return {"PYTHONPATH": ":".join(sys.path)}


def test_what_main_raises_comes_out_and_everybody_else_is_told_to_end() -> None:
    ended: list[str] = []

    async def other() -> None:
        try:
            await listens()
        finally:
            ended.append("other")

    async def main() -> None:
        task: Any = asyncio.create_task(other())
        await asyncio.sleep(0)
        assert not task.done()
        raise ValueError("no")

    with pytest.raises(ValueError, match="no"):
        services.run_to_the_end(main(), Log())
    assert ended == ["other"]


THREAD = """
import asyncio, sys, threading
from edge_runtime import services
from edge_runtime.cli import main
from keepers import Log

async def hangs():
    asyncio.get_running_loop().run_in_executor(None, threading.Event().wait)

def run(words):
    services.LEFT_S_MAX = 0.05
    log = Log()
    services.run_to_the_end(hangs(), log)
    print(log.lines[0][0])
    return 0

from edge_runtime import cli
cli._guarded = run
sys.exit(main())
"""


def test_a_call_in_a_thread_that_never_returns_does_not_keep_the_process() -> None:
    """asyncio.to_thread of a blocking library: neither the loop nor Python ends before it does."""
    done = subprocess.run([sys.executable, "-c", THREAD], capture_output=True, text=True, timeout=60, env=paths())
    assert (done.returncode, done.stdout, done.stderr) == (0, "calls_left_behind\n", "")


def test_who_ends_the_process_from_within_is_told() -> None:
    log = Log()

    async def main() -> None:
        asyncio.get_running_loop().call_soon(exits)
        await listens()

    with pytest.raises(SystemExit):
        services.run_to_the_end(main(), log)
    ((event, words),) = log.lines
    assert event == "process_ended"
    assert "SystemExit at test_services.py:" in words["cause"]


def exits() -> None:
    sys.exit(5)
