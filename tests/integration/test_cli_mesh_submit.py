"""`edge-runtime mesh submit` and `mesh why` against a real mosquitto."""

from __future__ import annotations

import asyncio
import re
from pathlib import Path
from typing import Any

import numpy as np
import pytest
import structlog
from brokers import Broker, free_port, mosquitto
from onlooking import CLOCK, SITE, edge_runtime, gateways, peer, play

from edge_runtime import config
from edge_runtime.board.system import SystemDice, ThreadWorker
from edge_runtime.bus.broker import PahoBus
from edge_runtime.mesh.asking import Asking
from edge_runtime.mesh.explaining import Explaining
from edge_runtime.mesh.link import Home, Link
from edge_runtime.mesh.peers import Peers
from edge_runtime.mesh.placing import Job, Placing
from edge_runtime.outbox.database import FileDisk
from edge_runtime.outbox.file import OutboxFile
from edge_runtime.outbox.store import Store
from edge_runtime.ports_mesh import Vitals
from edge_runtime.records import LANES, Draft, Inference, Lane, Privacy, Result, Stamp, Tensor, to_json
from edge_runtime.testing.peer import FakePeer


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    with mosquitto(tmp_path) as running:
        yield running


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
            for fault, told in (
                ("hangs", "a did not answer within 300 ms"),
                ("refuses", "too much waits"),
                ("fails", "the engine broke"),
            ):
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
        assert "outputs" not in said.json  # of whatever privacy the result is
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
    await store.open({"cloud": LANES}, [("wear", "press")], unconfirmed=[])
    at = Stamp("b", 1, 1, True)
    result = Result(
        id="r7", pipeline="wear", device="press", window="w", first=at, last=at, rows=1, model="wear@1", executed_on="fake:cpu",
        artefact="fake.bin", outputs={"by": 1.0}, placed="gateway-2: peer is faster (est. 3.1 ms there, 40 ms here)",
    )  # fmt: skip
    await store.commit([Draft(Lane.RESULT_SITE, "wear", CLOCK.now(), to_json(result), "r7")])
    await store.close()
    writer.close()
    reader.close()
