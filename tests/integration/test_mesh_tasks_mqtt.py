"""Tasks over a real mosquitto, the executor in a process of its own: killed, stopped, replaced by one that talks nonsense."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import signal
import subprocess
import sys
import time
from collections.abc import Awaitable, Callable, Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
import structlog
from brokers import Broker, mosquitto

from edge_runtime.board.system import SystemClock
from edge_runtime.bus import frames
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.frames import Task, Verdict
from edge_runtime.config import Mesh
from edge_runtime.mesh.admission import Outcome
from edge_runtime.mesh.answering import Answering
from edge_runtime.mesh.asking import Asking, Unanswered, Why
from edge_runtime.mesh.link import Home, Link
from edge_runtime.ports import Address, BrokerError, Will
from edge_runtime.records import Tensor
from edge_runtime.testing.executor import FakeExecutor

LONG_S = 20.0
READY, COUNTS = "ready", "counts"
WINDOW = Tensor("float32", (1, 9), bytes(36))
GONE = "edge/s/gw/w/status"


# --- the process that answers ---


async def work(port: int, takes_s: float) -> None:
    log = structlog.get_logger()
    link = Link("s", "w", f"w-{os.getpid()}", log)
    answering = Answering(link, FakeExecutor({"m@1": takes_s}), Mesh(), SystemClock(), log)
    address = Address(host="127.0.0.1", port=port, client_id="w", keepalive_s=2)

    async def ready() -> None:
        print(READY, flush=True)

    async def report() -> None:
        while await asyncio.get_running_loop().run_in_executor(None, sys.stdin.readline):
            print(COUNTS, json.dumps(answering.counts), flush=True)

    link.joined.append(ready)
    async with asyncio.TaskGroup() as group:
        group.create_task(answering.run())
        group.create_task(report())
        await link.serve(await PahoBus().connect(address, will=Will(GONE, b"gone")), Home(address))


@contextmanager
def worker(broker: Broker, takes_s: float = 0.0) -> Iterator[subprocess.Popen[str]]:
    process = subprocess.Popen(
        [sys.executable, __file__, str(broker.port), str(takes_s)],
        stdin=subprocess.PIPE,
        stdout=subprocess.PIPE,
        text=True,
        env={**os.environ, "PYTHONPATH": str(Path(__file__).parent.parent)},
    )
    try:
        assert process.stdout is not None
        assert process.stdout.readline().strip() == READY
        yield process
    finally:
        process.kill()
        process.wait()


def counts(process: subprocess.Popen[str]) -> dict[str, int]:
    assert process.stdin is not None
    assert process.stdout is not None
    process.stdin.write("\n")
    process.stdin.flush()
    line = next(line for line in process.stdout if line.startswith(COUNTS))
    counted: dict[str, int] = json.loads(line.removeprefix(COUNTS))
    return counted


# --- who asks ---


class Asker:
    def __init__(self, port: int) -> None:
        log = structlog.get_logger()
        self.link = Link("s", "me", "me-1", log)
        self.asking = Asking(self.link, SystemClock(), log)
        self.link.on("status", lambda gateway, message: self.asking.gone(gateway) if message.payload == b"gone" else None)
        self.address = Address(host="127.0.0.1", port=port, client_id="me", keepalive_s=2)

    async def ask(self, within_s: float = LONG_S, **more: Any) -> Verdict | Why:
        deadline_ns = SystemClock().mono_ns() + round(within_s * 1e9)
        try:
            return (await self.asking.ask("w", "m@1", more.pop("tensor", WINDOW), deadline_ns=deadline_ns, **more)).verdict
        except Unanswered as error:
            return error.why


def play(broker: Broker, scenario: Callable[[Asker], Awaitable[None]]) -> None:
    async def main() -> None:
        asker, joined = Asker(broker.port), asyncio.Event()

        async def join() -> None:
            joined.set()

        async def serve() -> None:
            with pytest.raises(BrokerError):
                await asker.link.serve(await PahoBus().connect(asker.address), Home(asker.address))

        asker.link.joined.append(join)
        serving = asyncio.create_task(serve())
        await joined.wait()
        async with asyncio.timeout(2 * LONG_S):
            await scenario(asker)
        assert asker.asking.count == 0
        serving.cancel()
        await asyncio.wait([serving])

    asyncio.run(main())


def mosquitto_pub(broker: Broker, topic: str, file: Path) -> None:
    program = shutil.which("mosquitto_pub")
    if program is None:
        pytest.skip("MISSING SYSTEM PACKAGE: mosquitto-clients (apt-get install mosquitto-clients)")
    subprocess.run([program, "-p", str(broker.port), "-t", topic, "-f", str(file), "-q", "0"], check=True, timeout=LONG_S)


# --- what must hold ---


def test_a_worker_that_is_killed_ends_all_its_tasks(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker, worker(broker, 0.05) as process:

        async def scenario(asker: Asker) -> None:
            asks = [asyncio.create_task(asker.ask()) for _ in range(16)]
            assert (await next(iter(asks))) is Verdict.DONE
            process.kill()
            ends = await asyncio.gather(*asks)
            assert set(ends) == {Verdict.DONE, Why.GONE}
            assert asker.asking.breaker("w") == "closed"

        play(broker, scenario)


def test_a_worker_that_hangs_costs_its_deadline_and_opens_the_breaker(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker, worker(broker) as process:

        async def scenario(asker: Asker) -> None:
            asker.link.on("status", lambda *_: None)  # nobody tells us
            assert await asker.ask() is Verdict.DONE
            process.send_signal(signal.SIGSTOP)
            begin = time.monotonic()
            assert await asyncio.gather(*(asker.ask(0.3) for _ in range(3))) == [Why.DEADLINE] * 3
            assert time.monotonic() - begin >= 0.3
            assert await asker.ask() is Why.BREAKER
            process.send_signal(signal.SIGCONT)
            for _ in range(400):
                if await asker.ask() is Verdict.DONE:
                    break
                await asyncio.sleep(0.05)
            assert asker.asking.breaker("w") == "closed"

        play(broker, scenario)


def test_a_broker_that_is_killed_ends_all_tasks_at_once(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker, worker(broker, 0.5):

        async def scenario(asker: Asker) -> None:
            asks = [asyncio.create_task(asker.ask()) for _ in range(4)]
            await asyncio.sleep(0.1)
            await asyncio.get_running_loop().run_in_executor(None, broker.kill)
            assert await asyncio.gather(*asks) == [Why.LOST] * 4
            assert await asker.ask() is Why.LOST

        play(broker, scenario)


def test_replayed_malformed_and_oversized_frames_hurt_nobody(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker, worker(broker) as process:
        frame = frames.pack(Task(id="t1", instance="p-1", model="m@1", remaining_ns=10**12, tensor=WINDOW))
        files = {"task": frame, "garbage": os.urandom(1_000), "huge": frame + bytes(frames.TASK_BYTES_MAX)}
        for name, content in files.items():
            (tmp_path / name).write_bytes(content)

        async def scenario(asker: Asker) -> None:
            for name in ("task", "task", "garbage", "task", "huge"):
                await asyncio.to_thread(mosquitto_pub, broker, "edge/s/gw/w/task/p", tmp_path / name)
            assert await asker.ask() is Verdict.DONE

        play(broker, scenario)
        assert counts(process) == {Outcome.DONE: 2, Outcome.REPEATED: 2, Outcome.MALFORMED: 1, Outcome.OVERSIZED: 1}


def test_a_peer_that_answers_garbage_is_given_up_and_the_others_are_not(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker, worker(broker):

        async def scenario(asker: Asker) -> None:
            connection = await PahoBus().connect(broker.address())
            await connection.subscribe("edge/s/gw/liar/task/me")

            async def lie() -> None:
                while True:
                    task = frames.unpack((await connection.receive()).payload)
                    answer = frames.pack(frames.Cancel(id=task.id, instance=task.instance)).replace(b"ET1C", b"ET1R")
                    await connection.publish("edge/s/gw/me/reply/liar", answer)

            lying = asyncio.create_task(lie())
            deadline_ns = SystemClock().mono_ns() + round(LONG_S * 1e9)
            whys = []
            for _ in range(5):
                with pytest.raises(Unanswered) as caught:
                    await asker.asking.ask("liar", "m@1", WINDOW, deadline_ns=deadline_ns)
                whys.append(caught.value.why)
            assert whys == [Why.GARBAGE] * 3 + [Why.BREAKER] * 2
            assert await asker.ask() is Verdict.DONE
            lying.cancel()
            await connection.close()

        play(broker, scenario)


def test_large_windows_travel_up_to_the_limit(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker, worker(broker):

        async def scenario(asker: Asker) -> None:
            data = os.urandom(frames.TASK_BYTES_MAX - 1_000)
            tensor = Tensor("uint8", (len(data),), data)
            ends = await asyncio.gather(*(asker.ask(tensor=tensor) for _ in range(3)))
            assert set(ends) <= {Verdict.DONE, Verdict.REFUSED}
            assert ends.count(Verdict.DONE) >= 1
            too_large = Tensor("uint8", (frames.TASK_BYTES_MAX,), bytes(frames.TASK_BYTES_MAX))
            assert await asker.ask(tensor=too_large) is Why.UNFIT

        play(broker, scenario)


if __name__ == "__main__":
    asyncio.run(work(int(sys.argv[1]), float(sys.argv[2])))
