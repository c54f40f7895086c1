"""The pages when something around them hangs: a client, a port, the machine."""

from __future__ import annotations

import asyncio
import socket
import threading
from collections.abc import AsyncIterator
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from waiting import until
from watched import values, world

from edge_runtime.config import Config
from edge_runtime.gateway import Gateway
from edge_runtime.ports_mesh import Vitals
from edge_runtime.watching import http, watching

BIG = http.Page(200, http.TEXT, b"x" * 8 * 2**20)


async def big() -> http.Page:
    return BIG


async def ask(at: str, sent: bytes) -> bytes:
    """Whatever comes until the other side closes."""
    reader, writer = await asyncio.open_connection(*at.split(":"))
    writer.write(sent)
    try:
        return await reader.read(-1)
    except ConnectionError:
        return b""
    finally:
        writer.close()


def test_who_is_slow_is_left(monkeypatch: pytest.MonkeyPatch) -> None:
    """One says nothing, one says it byte by byte, one does not read: each is closed, and its memory given back."""
    monkeypatch.setattr(http, "EXCHANGE_S_MAX", 0.2)

    async def main() -> None:
        before = len(asyncio.all_tasks())
        async with http.listening({"/big": big}, "127.0.0.1", 0) as at:
            host, port = at.split(":")
            silent, _ = await asyncio.open_connection(host, port)
            drip, drips = await asyncio.open_connection(host, port)
            deaf = socket.create_connection((host, int(port)))
            deaf.sendall(b"GET /big HTTP/1.1\r\n\r\n")
            async with asyncio.timeout(20):
                assert await silent.read(1) == b""
                ended = asyncio.ensure_future(drip.read())
                while not ended.done():
                    drips.write(b"G")
                    await asyncio.sleep(0.02)
                await asyncio.wait((ended,))
                await until(lambda: len(asyncio.all_tasks()) <= before, 10)
            deaf.close()

    asyncio.run(main())


def test_a_large_page_comes_whole() -> None:
    async def main() -> None:
        async with http.listening({"/big": big}, "127.0.0.1", 0) as at:
            answer = await ask(at, b"GET /big HTTP/1.1\r\nHost: x\r\n\r\n")
            assert answer.endswith(b"\r\n\r\n" + BIG.body)

    asyncio.run(main())


@asynccontextmanager
async def running(folder: Path, listen: str, log: list[dict[str, Any]], sinks: Any = None, **more: Any) -> AsyncIterator[Gateway]:
    settings = Config.model_validate({"site": "s", "gateway": "g", "metrics": {"listen": listen}, "sinks": sinks or {}})
    gateway = Gateway(settings, folder, world(log, **more))
    life = asyncio.create_task(gateway.run())
    try:
        yield gateway
    finally:
        gateway.stop()
        await life


async def served(log: list[dict[str, Any]]) -> str:
    """host:port"""
    await until(lambda: any(each["event"] == "metrics_served" for each in log))
    return str(next(each["at"] for each in log if each["event"] == "metrics_served"))


def test_who_asks_all_the_time_gets_the_same_page(tmp_path: Path) -> None:
    asked = []

    def read() -> Vitals:
        asked.append(1)
        return Vitals()

    async def main() -> None:
        log: list[dict[str, Any]] = []
        async with running(tmp_path, "127.0.0.1:0", log, vitals=lambda _: read):
            at, now_s = await served(log), asyncio.get_running_loop().time
            began_s, pages = now_s(), []
            for _ in range(100):
                pages.append(await ask(at, b"GET /metrics HTTP/1.1\r\n\r\n"))
            assert all(page.startswith(b"HTTP/1.1 200") for page in pages)
            assert len(asked) <= 1 + (now_s() - began_s) / watching.FRESH_S
            assert len(asked) < len(pages)

    asyncio.run(main())


class Broken:
    """A sink with a bug."""

    confirms = True

    async def open(self, _epochs: Any) -> Any:
        raise KeyError("not for the page")

    async def close(self) -> None:
        return


def test_a_bug_of_ours_shows(tmp_path: Path) -> None:
    async def main() -> None:
        log: list[dict[str, Any]] = []
        sinks = {"cloud": {"type": "https", "url": "http://x"}}
        async with running(tmp_path, "127.0.0.1:0", log, sinks, make_sink=lambda *_, **__: Broken()) as gateway:
            at = await served(log)
            await until(lambda: gateway.failures)
            page = values((await ask(at, b"GET /metrics HTTP/1.1\r\n\r\n")).partition(b"\r\n\r\n")[2])
            assert page["edge_runtime_service_failures_total", ("delivery cloud",)] == 1
            said = await ask(at, b"GET /health HTTP/1.1\r\n\r\n")
            assert b'"degraded"' in said
            assert b'"service delivery cloud","cause":"KeyError at test_watching_pages.py:' in said
            assert b"not for the page" not in said

    asyncio.run(main())


def test_a_port_that_stays_taken_is_told_once(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(watching, "LISTEN_S_MIN", 0.01)
    monkeypatch.setattr(watching, "LISTEN_S_MAX", 0.01)
    tries = []
    listening = http.listening

    def counted(*arguments: Any) -> Any:
        tries.append(arguments)
        return listening(*arguments)

    monkeypatch.setattr(http, "listening", counted)

    async def main() -> None:
        log: list[dict[str, Any]] = []
        with socket.create_server(("127.0.0.1", 0)) as taken:
            async with running(tmp_path, f"127.0.0.1:{taken.getsockname()[1]}", log) as gateway:
                await until(lambda: len(tries) > 5 and gateway.started.is_set())
        assert len([each for each in log if each["event"] == "metrics_not_served"]) == 1

    asyncio.run(main())


def test_a_machine_that_does_not_answer_is_left_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It is asked by a thread of its own, and by one at a time."""
    monkeypatch.setattr(watching, "MEASURE_S_MAX", 0.05)
    free, asked = threading.Event(), []

    def read() -> Vitals:
        asked.append(1)
        free.wait(20)
        return Vitals(temperature_c=40.0)

    async def main() -> None:
        log: list[dict[str, Any]] = []
        async with running(tmp_path, "127.0.0.1:0", log, vitals=lambda _: read):
            at = await served(log)

            async def scraped() -> dict[Any, float]:
                return values((await ask(at, b"GET /metrics HTTP/1.1\r\n\r\n")).partition(b"\r\n\r\n")[2])

            for _ in range(3):
                page = await scraped()
                assert ("edge_runtime_uptime_seconds", ()) in page
                assert ("edge_runtime_board_temperature_celsius", ()) not in page
            assert len(asked) == 1
            free.set()
            scrapes = 1
            async with asyncio.timeout(20):
                while (await scraped()).get(("edge_runtime_board_temperature_celsius", ())) != 40.0:
                    scrapes += 1
            assert len(asked) <= 1 + scrapes

    asyncio.run(main())
