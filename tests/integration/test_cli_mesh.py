"""`edge-runtime mesh` against a real mosquitto, with gateways that speak as real ones do."""

from __future__ import annotations

import asyncio
import contextlib
import io
import json
import os
import pty
import re
import socket
import sys
from collections.abc import AsyncIterator, Awaitable, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import msgspec
import numpy as np
import pytest
import structlog
from brokers import Broker, free_port, mosquitto

from edge_runtime import cli, config
from edge_runtime.board.system import SystemClock, SystemDice, ThreadWorker
from edge_runtime.bus import presence, topics
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.presence import Brokers
from edge_runtime.cli.mesh import finding
from edge_runtime.mesh.asking import Asking
from edge_runtime.mesh.explaining import Explaining
from edge_runtime.mesh.link import Home, Link
from edge_runtime.mesh.peers import Peers
from edge_runtime.mesh.placing import Job, Placing
from edge_runtime.outbox.database import FileDisk
from edge_runtime.outbox.file import OutboxFile
from edge_runtime.outbox.store import Store
from edge_runtime.ports import Vitals
from edge_runtime.records import LANES, Draft, Inference, Lane, Privacy, Result, Stamp, Tensor, to_json
from edge_runtime.testing.peer import FakePeer

CLOCK = SystemClock()
SITE = "plant-1"


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    with mosquitto(tmp_path) as running:
        yield running


class Said(msgspec.Struct):
    """What a command printed, and its exit status."""

    out: str
    error: str
    status: int

    @property
    def json(self) -> Any:
        return json.loads(self.out)


async def edge_runtime(*words: str) -> Said:
    """In a thread: a process takes longer to begin than to do it."""
    return await asyncio.wait_for(asyncio.to_thread(_run, words), 30)


def _run(words: Sequence[str]) -> Said:
    out, error = io.StringIO(), io.StringIO()
    with contextlib.redirect_stdout(out), contextlib.redirect_stderr(error):
        try:
            status = cli.main(words)
        except SystemExit as wrong:
            status = int(wrong.code or 0)
    return Said(out.getvalue(), error.getvalue(), status)


@asynccontextmanager
async def gateways(broker: Broker, *peers: FakePeer, beats: bool = True) -> AsyncIterator[None]:
    """They are born, and their hearts beat fast."""
    tasks = []
    for peer in peers:
        connection = await PahoBus().connect(broker.address())
        await peer.be_born(connection)
        tasks.append(asyncio.create_task(peer.serve(connection)))
        if beats:
            tasks.append(asyncio.create_task(_beat(peer, connection)))
    try:
        yield
    finally:
        for task in tasks:
            task.cancel()
        await asyncio.gather(*tasks, return_exceptions=True)


async def _beat(peer: FakePeer, connection: Any) -> None:
    while True:
        await peer.beat(connection, temperature_c=51.4, latency_ns=4_200_000, tasks_out=7, outbox_depth=12)
        await asyncio.sleep(0.1)


async def host(broker: Broker, peer: FakePeer, site: str = SITE) -> None:
    """`peer` says that it hosts the broker."""
    connection = await PahoBus().connect(broker.address())
    said = Brokers(site=site, host=peer.name, instance=f"{peer.name}-1", run="r1")
    await connection.publish(topics.brokers(site), presence.pack(said), qos=1, retain=True)
    await connection.close()


def peer(name: str, number: int = 0, **facts: Any) -> FakePeer:
    return FakePeer(name=name, clock=CLOCK, number=number, **facts)


def play(scenario: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(scenario(), 60))  # type: ignore[arg-type]


# --- show ------------------------------------------------------------------------------------------------------------


def test_all_gateways_as_json(broker: Broker) -> None:
    async def scenario() -> None:
        a, b, gone = peer("gateway-1", service_s=0.040), peer("gateway-2"), peer("gateway-3")
        connection = await PahoBus().connect(broker.address())
        await gone.be_born(connection)
        await host(broker, a)
        async with gateways(broker, a, b):
            said = await edge_runtime("mesh", "--broker", broker.url, "--site", SITE, "--json", "--seconds", "2")
        assert said.status == 0, said.error
        assert (said.json["site"], said.json["host"]) == (SITE, "gateway-1")
        one, two, three = said.json["gateways"]
        assert [one["role"], two["role"], three["role"]] == ["host", "guest", "guest"]
        assert [one["state"], two["state"], three["state"]] == ["online", "online", "unproved"]
        assert one["models"] == [{"model": "wear@1", "executed_on": "fake:cpu", "service_ns": 40_000_000, "artefact": "fake.bin"}]
        assert (one["temperature_c"], one["latency_ms"], one["tasks_out"], one["outbox_depth"]) == (51.4, 4.2, 7, 12)
        assert three["seen_s"] is None
        assert three["tasks_in"] is None

    play(scenario)


def test_json_does_not_wait_longer_than_it_has_to(broker: Broker) -> None:
    """Everybody was heard: it ends, long before its limit."""

    async def scenario() -> None:
        async with gateways(broker, peer("gateway-1"), peer("gateway-2")):
            said = await edge_runtime("mesh", "--broker", broker.url, "--json", "--seconds", "3600")
        assert [each["state"] for each in said.json["gateways"]] == ["online", "online"]

    play(scenario)


def test_a_line_for_every_change_where_there_is_no_terminal(broker: Broker) -> None:
    async def scenario() -> None:
        a = peer("gateway-1")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edge_runtime", "mesh", "--broker", broker.url, "--site", SITE, "--seconds", "3",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        lines = aiter(process.stdout)
        async with gateways(broker, a):
            assert await anext(lines) == f"site plant-1 on 127.0.0.1:{broker.port}\n".encode()
            await _line(lines, "gateway-1 online: guest, wear@1")
            await host(broker, a)
            await _line(lines, "gateway-1 online: host, wear@1")
        connection = await PahoBus().connect(broker.address())
        gone = presence.pack(a.birth(online=False))
        await connection.publish(topics.gateway(SITE, "gateway-1", "status"), gone, qos=1, retain=True)
        await _line(lines, "gateway-1 offline: guest, wear@1")
        await connection.close()
        table = (await process.stdout.read()).decode()
        assert re.search(r"^gateway +role +state", table, re.MULTILINE)
        assert await process.wait() == 0

    play(scenario)


async def _line(lines: AsyncIterator[bytes], wanted: str) -> None:
    async for line in lines:
        if line.decode() == f"{wanted}\n":
            return
    raise AssertionError(f"it ended without saying: {wanted}")


def test_a_live_table_on_a_terminal(broker: Broker) -> None:
    async def scenario() -> str:
        ours, its = pty.openpty()
        async with gateways(broker, peer("gateway-1")):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "edge_runtime", "mesh", "--broker", broker.url, "--seconds", "1.5", stdout=its,
                env={**os.environ, "COLUMNS": "200", "TERM": "xterm"},
            )  # fmt: skip
            os.close(its)
            shown = await asyncio.to_thread(_drain, ours)
            assert await process.wait() == 0
        return shown

    shown = asyncio.run(scenario())
    assert "1 of 1 gateways online" in shown
    assert "\x1b[" in shown  # drawn over itself
    assert "51 C" in shown


def _drain(terminal: int) -> str:
    read = b""
    while True:
        try:
            read += os.read(terminal, 65_536)
        except OSError:
            return read.decode()


def test_the_broker_is_lost_and_found_again(broker: Broker) -> None:
    async def scenario() -> None:
        async with gateways(broker, peer("gateway-1")):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "edge_runtime", "mesh", "--broker", broker.url, "--site", SITE,
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            await process.stdout.readline()
            await process.stdout.readline()
            await asyncio.to_thread(broker.kill)
            assert b"the broker is lost" in await process.stdout.readline()
        await asyncio.to_thread(broker.start)
        async with gateways(broker, peer("gateway-9")):
            async for line in process.stdout:
                if line.startswith(b"gateway-9 online"):
                    break
        process.terminate()
        await process.wait()

    play(scenario)


# --- where -----------------------------------------------------------------------------------------------------------


def _gateway_file(folder: Path, text: str) -> str:
    file = folder / "gateway.yaml"
    device = "devices: {press: {adapter: replay, options: {file: x.csv}, points: [{name: temperature, column: 0}]}}"
    file.write_text(f"site: {SITE}\ngateway: gateway-1\n{device}\n{text}\n")
    return str(file)


def test_a_gateways_file_says_where(broker: Broker, tmp_path: Path) -> None:
    """auto: not a broker of another site, though it stands where ours would; then those that `mesh.peers` names."""

    async def scenario() -> None:
        with mosquitto(tmp_path) as other:
            file = _gateway_file(
                tmp_path,
                f"broker: {{mode: auto, url: 'mqtt://127.0.0.1:{other.port}'}}\n"
                f"mesh: {{discovery: 'off', peers: ['127.0.0.1:{free_port()}', '127.0.0.1:{broker.port}']}}",
            )
            stranger = peer("stranger", site="plant-2")
            await host(other, stranger, "plant-2")
            said = await edge_runtime("mesh", file)
            assert said.status == 1
            assert "error: no broker of site plant-1 was found: " in said.error
            assert "no gateway of the site says that this is its broker" in said.error
            a = peer("gateway-1")
            await host(broker, a)
            async with gateways(broker, a):
                said = await edge_runtime("mesh", file, "--json")
                assert said.status == 0, said.error
                assert said.json["broker"] == f"127.0.0.1:{broker.port}"

    play(scenario)


@pytest.mark.parametrize("mode", ["external", "hosted"])
def test_a_file_with_a_known_broker(broker: Broker, tmp_path: Path, mode: str) -> None:
    file = _gateway_file(tmp_path, f"broker: {{mode: {mode}, url: 'mqtt://127.0.0.1:{broker.port}'}}")

    async def scenario() -> None:
        async with gateways(broker, peer("gateway-1")):
            said = await edge_runtime("mesh", file, "--json")
        assert [each["gateway"] for each in said.json["gateways"]] == ["gateway-1"]

    play(scenario)


def test_what_is_wrong_is_said(broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        said = await edge_runtime("mesh", "--broker", f"mqtt://127.0.0.1:{free_port()}")
        assert (said.status, said.out) == (1, "")
        assert "connection refused" in said.error
        said = await edge_runtime("mesh", "--broker", broker.url)
        assert "no gateway is, or was, on this broker" in said.error
        said = await edge_runtime("mesh", "--broker", broker.url, "--site", "plant-9")
        assert "no gateway of site plant-9 is, or was, there" in said.error
        said = await edge_runtime("mesh", _gateway_file(tmp_path, ""))
        assert "this gateway has no broker" in said.error
        async with gateways(broker, peer("gateway-1"), peer("gateway-1", site="plant-2")):
            said = await edge_runtime("mesh", "--broker", broker.url)
            assert "gateways of more than one site: plant-1, plant-2" in said.error
            assert "hint: say which: --site SITE" in said.error
        assert (await edge_runtime("mesh", "submit")).status == 2

    play(scenario)


def test_garbage_is_counted_and_hides_nobody(broker: Broker) -> None:
    async def scenario() -> None:
        connection = await PahoBus().connect(broker.address())
        for payload in (b"\xff", b"{}", b'{"v":99}'):
            await connection.publish(topics.gateway(SITE, "bad", "status"), payload, qos=1, retain=True)
        async with gateways(broker, peer("gateway-1")):
            said = await edge_runtime("mesh", "--broker", broker.url, "--seconds", "2")
        assert "1 of 1 gateways online, 1 messages that were none" in said.out

    play(scenario)


# --- submit ----------------------------------------------------------------------------------------------------------


def saved(folder: Path, array: Any) -> str:
    file = folder / "windows.npy"
    np.save(file, array)
    return str(file)


def test_a_window_is_computed_by_who_should_be_done_first(broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        slow, fast = peer("a-slow", 1, service_s=0.040), peer("b-fast", 2, service_s=0.001)
        window = np.arange(10, dtype=np.float32).reshape(5, 2)
        async with gateways(broker, slow, fast):
            said = await edge_runtime("mesh", "submit", "wear", saved(tmp_path, window), "--broker", broker.url)
            assert said.status == 0, said.error
            assert re.search(r"^ *0 +2 +b-fast +fake:cpu", said.out, re.MULTILINE)
            [task] = fast.tasks
            assert (task.model, task.tensor.dtype, task.tensor.shape) == ("wear@1", "float64", (5, 2))
            assert np.frombuffer(task.tensor.data).tolist() == list(range(10))
            assert 0 < task.remaining_ns <= 2_000_000_000
            words = ["wear@1", saved(tmp_path, window), "--gateway", "a-slow", "--deadline", "7", "--json"]
            said = await edge_runtime("mesh", "submit", *words, "--broker", broker.url)
            [done] = said.json
            assert (done["gateway"], done["outputs"], done["executed_on"]) == ("a-slow", {"by": 1.0}, "fake:cpu")
            assert done["round_trip_ms"] >= done["computed_ms"] >= 40
            assert 2_000_000_000 < slow.tasks[0].remaining_ns <= 7_000_000_000

    play(scenario)


def test_several_windows_and_another_gateway_where_one_refuses(broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        a, b = peer("a", 1, service_s=0.001), peer("b", 2, service_s=0.002)
        a.faults.extend(["", "refuses"])
        async with gateways(broker, a, b):
            said = await edge_runtime(
                "mesh", "submit", "wear", saved(tmp_path, np.zeros((3, 5, 2))), "--broker", broker.url, "--json"
            )
        assert said.status == 0, said.error
        assert [each["gateway"] for each in said.json] == ["a", "b", "a"]

    play(scenario)


def test_what_cannot_be_computed_is_said(broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        a = peer("a")
        file = saved(tmp_path, np.zeros((5, 2)))
        where = ["--broker", broker.url, "--site", SITE, "--deadline", "0.3"]
        async with gateways(broker, a):
            for fault, told in (("hangs", "a did not answer"), ("refuses", "too much waits"), ("fails", "the engine broke")):
                a.faults.append(fault)  # type: ignore[arg-type]
                said = await edge_runtime("mesh", "submit", "wear", file, *where)
                assert (said.status, said.out) == (1, "")
                assert told in said.error
            said = await edge_runtime("mesh", "submit", "tear", file, *where)
            assert "tear: no gateway offers it" in said.error
            assert "hint: offered are: wear@1" in said.error
            said = await edge_runtime("mesh", "submit", "wear", file, "--gateway", "z", *where)
            assert "gateway z: it is not there" in said.error

    play(scenario)


@pytest.mark.parametrize(
    ("array", "told"),
    [
        (np.zeros(5), "its shape is 5"),
        (np.zeros((0, 5)), "its shape is 0 x 5"),
        (np.zeros((1, 1, 1, 1)), "its shape is 1 x 1 x 1 x 1"),
        (np.array([["a"]]), "no real numbers"),
        (np.zeros((1, 2), dtype=np.complex64), "holds complex64"),
        (np.array([[None]]), "is no .npy file of numbers"),
        (np.zeros((700_000, 1)), "at most 4 MiB travel"),
    ],
)
def test_a_wrong_array_is_not_sent(tmp_path: Path, array: Any, told: str) -> None:
    said = asyncio.run(edge_runtime("mesh", "submit", "wear", saved(tmp_path, array)))
    assert said.status == 1
    assert told in said.error
    assert "hint: " in said.error


def test_a_wrong_file(tmp_path: Path) -> None:
    (tmp_path / "text.npy").write_text("1,2,3")
    np.savez(tmp_path / "many.npz", a=np.zeros(1))
    (tmp_path / "empty.npy").touch()
    for name, told in (
        ("none.npy", "No such file"),
        ("text.npy", "is no .npy"),
        ("many.npz", ".npz"),
        ("empty.npy", "is no .npy"),
    ):
        said = asyncio.run(edge_runtime("mesh", "submit", "wear", str(tmp_path / name)))
        assert said.status == 1
        assert told in said.error


# --- why -------------------------------------------------------------------------------------------------------------


async def _decided(broker: Broker, far: FakePeer) -> asyncio.Task[Any]:
    """A gateway's real part in the mesh has placed the window of result `r1`."""
    log = structlog.wrap_logger(structlog.ReturnLogger())
    link, peers = Link(SITE, "gateway-1", "i1", log), Peers("gateway-1", config.Mesh())
    placing = Placing("gateway-1", Asking(link, CLOCK, log), peers, CLOCK, SystemDice(), vitals=Vitals)
    explaining = Explaining(link, placing)
    joined = asyncio.Event()

    async def join() -> None:
        joined.set()

    link.joined.append(join)
    connection = await PahoBus().connect(broker.address())

    async def run() -> None:
        async with asyncio.TaskGroup() as group:
            group.create_task(link.serve(connection, Home(broker.address())))
            group.create_task(explaining.run())

    running = asyncio.create_task(run())
    await joined.wait()
    peers.on_birth(far.birth(), retained=False, now_ns=CLOCK.mono_ns())
    peers.listen_to([], CLOCK.mono_ns())

    async def here() -> Inference:
        raise AssertionError("it is not computed here")

    tensor = Tensor("float64", (1, 1), bytes(8))
    job = Job(
        result_id="r1", model="wear@1", tensor=tensor, privacy=Privacy.SITE, deadline_s=20, service_ns=400_000_000
    )  # fmt: skip
    await placing.place(job, here)
    return running


def test_the_gateway_that_decided_tells_why(broker: Broker) -> None:
    async def scenario() -> None:
        far = peer("gateway-2")
        async with gateways(broker, far):
            running = await _decided(broker, far)
            said = await edge_runtime("mesh", "why", "r1", "--broker", broker.url, "--site", SITE)
            assert said.status == 0, said.error
            assert said.out.startswith("result r1 of gateway-1, model wear@1, ")
            assert re.search(r"^gateway-2 +peer is faster +400 ms +6 ms at gateway-2 +done", said.out, re.MULTILINE)
            said = await edge_runtime("mesh", "why", "r1", "--broker", broker.url, "--json")
            assert said.json["steps"][0]["where"] == "gateway-2"
            said = await edge_runtime("mesh", "why", "r2", "--broker", broker.url)
            assert (said.status, said.out) == (1, "")
            assert "r2: no gateway remembers it" in said.error
            running.cancel()

    play(scenario)


def test_nobody_remembers_but_the_outbox_does(broker: Broker, tmp_path: Path) -> None:
    pytest.importorskip("sqlite_utils")
    file = tmp_path / "outbox.db"

    async def scenario() -> None:
        await _fill(file)
        async with gateways(broker, peer("gateway-2")):
            said = await edge_runtime("mesh", "why", "r7", "--broker", broker.url, "--outbox", str(file))
            assert said.status == 0, said.error
            assert "no gateway remembers it" in said.error
            assert said.out.endswith("gateway-2: peer is faster (est. 3.1 ms there, 40 ms here)\n")
        said = await edge_runtime(
            "mesh", "why", "r7", "--broker", f"mqtt://127.0.0.1:{free_port()}", "--outbox", str(file), "--json"
        )
        assert said.json["placed"].startswith("gateway-2: ")
        said = await edge_runtime("mesh", "why", "r8", "--broker", broker.url, "--site", SITE, "--outbox", str(file))
        assert said.status == 1
        assert "r8: is not in" in said.error
        assert "is no id of a result" in (await edge_runtime("mesh", "why", "#", "--broker", broker.url)).error

    play(scenario)


async def _fill(file: Path) -> None:
    writer, reader = ThreadWorker("writer"), ThreadWorker("reader")
    disk = OutboxFile(FileDisk(16), file, CLOCK, size_bytes_max=2**24, wal_bytes=2 * 16 * 4096)
    log = structlog.wrap_logger(structlog.ReturnLogger())
    store = Store(disk, journal_rows_max=1000, writer=writer, reader=reader, dice=SystemDice(), log=log)
    await store.open({"cloud": LANES}, {"wear": "press"}, unconfirmed=[])
    at = Stamp("b", 1, 1, True)
    result = Result(
        id="r7", pipeline="wear", device="press", window="w", first=at, last=at, rows=1, model="wear@1", executed_on="fake:cpu",
        artefact="fake.bin", outputs={"by": 1.0}, placed="gateway-2: peer is faster (est. 3.1 ms there, 40 ms here)",
    )  # fmt: skip
    await store.commit([Draft(Lane.RESULT_SITE, "wear", CLOCK.now(), to_json(result), "r7")])
    await store.close()
    writer.close()
    reader.close()


def test_a_port_that_does_not_speak_mqtt_ends_in_time() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"mqtt://127.0.0.1:{mute.getsockname()[1]}"
        said = asyncio.run(edge_runtime("mesh", "--broker", url))
    assert said.status == 1
    assert f"no answer within {finding.CONNECT_S_MAX:g} s" in said.error
