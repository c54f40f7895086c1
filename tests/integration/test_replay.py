"""The replay adapter on real files: rates, ends, bad cells, redelivery; under the supervisor and under the suite."""

from __future__ import annotations

import asyncio
import json
import os
import subprocess
import sys
from collections.abc import AsyncIterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest

from edge_adapters.replay import Replay
from edge_runtime import config
from edge_runtime.adapter import Exhausted, Sample, Unusable
from edge_runtime.sources.supervisor import Source
from edge_runtime.testing.adapter import build
from edge_runtime.testing.adapter_suite import AdapterSuite
from edge_runtime.testing.loop import SeededDice, VirtualClock, VirtualLoop, run

POINTS: list[dict[str, Any]] = [{"name": "t", "column": "temp"}, {"name": "n", "column": 1}]


def csv_file(folder: Path, rows: int = 250) -> str:
    path = folder / "data.csv"
    path.write_text("temp,count\n" + "".join(f"{n}.5,{n}\n" for n in range(1, rows + 1)))
    return str(path)


async def drain(adapter: Replay) -> list[Sample]:
    await adapter.open()
    samples: list[Sample] = []
    try:
        while True:
            samples.extend(await adapter.read())
    except Exhausted:
        return samples
    finally:
        await adapter.close()


class TestReplay(AdapterSuite):
    adapter = Replay

    @asynccontextmanager
    async def device(self) -> AsyncIterator[tuple[dict[str, Any], list[dict[str, Any]]]]:
        yield {"file": csv_file(self.folder), "rate_hz": 50, "message_ids": True}, POINTS

    def nowhere(self, options: dict[str, Any]) -> dict[str, Any]:
        return {**options, "file": str(self.folder / "missing.csv")}


def test_all_rows_in_order_and_then_the_end(tmp_path: Path) -> None:
    samples = asyncio.run(drain(build(Replay, {"file": csv_file(tmp_path)}, POINTS)))
    assert [sample.values for sample in samples] == [(n + 0.5, n) for n in range(1, 251)]
    assert all(type(sample.values[1]) is int for sample in samples)


def test_a_rate_is_kept_without_drift_and_rows_are_stamped_when_due(tmp_path: Path) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        adapter = build(Replay, {"file": csv_file(tmp_path), "rate_hz": 7}, POINTS, clock=VirtualClock(loop))
        await adapter.open()
        start = loop.time()
        samples: list[Sample] = []
        while len(samples) < 250:
            samples.extend(await adapter.read())
            await asyncio.sleep(0.4)  # slower than the rows: they come in batches, and keep their instants
        assert [s.stamp.mono_ns / 1e9 for s in samples] == pytest.approx([start + n / 7 for n in range(250)])
        await adapter.close()

    run(scenario, seed=1)


@pytest.mark.parametrize("rate_hz", [5e-324, 1e-300, 1e6])
def test_a_rate_that_is_hardly_one_reads_the_first_row(tmp_path: Path, rate_hz: float) -> None:
    async def scenario() -> None:
        adapter = build(Replay, {"file": csv_file(tmp_path), "rate_hz": rate_hz}, POINTS)
        await adapter.open()
        assert (await adapter.read())[0].values == (1.5, 1)
        await adapter.close()

    asyncio.run(scenario())


def test_a_cancelled_read_loses_no_row(tmp_path: Path) -> None:
    async def scenario() -> None:
        adapter = build(Replay, {"file": csv_file(tmp_path), "rate_hz": 10}, POINTS)
        await adapter.open()
        rows: list[Any] = []
        while len(rows) < 50:
            try:
                async with asyncio.timeout(0.03):
                    rows.extend(sample.values[1] for sample in await adapter.read())
            except TimeoutError:
                pass
        assert rows == list(range(1, len(rows) + 1))

    run(scenario, seed=1)


def test_loops(tmp_path: Path) -> None:
    async def scenario() -> None:
        options = {"file": csv_file(tmp_path, 3), "loop": True, "batch_rows": 2, "message_ids": True}
        adapter = build(Replay, options, POINTS)
        await adapter.open()
        got = [[sample.message_id for sample in await adapter.read()] for _ in range(5)]
        assert got == [["1", "2"], ["3"], ["1.1", "1.2"], ["1.3"], ["2.1", "2.2"]]

    asyncio.run(scenario())


def test_bad_cells_name_their_row_and_give_no_value(tmp_path: Path) -> None:
    path = tmp_path / "bad.csv"
    path.write_bytes(b"temp,count,on,name\n1.5,1,yes,a\nx,1_000,maybe,b\n,4,no,\xff\n\n5\n6.5,nan,1,d\n")
    points = [*POINTS, {"name": "on", "column": "on", "type": "flag"}, {"name": "who", "column": "name", "type": "text"}]
    samples = asyncio.run(drain(build(Replay, {"file": str(path)}, points)))
    assert samples[0].values == (1.5, 1, True, "a")
    assert samples[1].values == (None, None, None, "b")
    assert samples[1].faults["t"] == "row 2: 'x' is no number"
    assert samples[2].faults == {"t": "row 3: empty cell"}
    assert samples[3].faults["n"] == "row 4: no such cell"
    assert len(samples) == 5


@pytest.mark.parametrize(
    ("content", "points", "cause"),
    [
        (None, POINTS, "No such file"),
        ("", POINTS, "is empty"),
        ("a,b\n", [{"name": "t", "column": "c"}], "no column 'c'"),
        ("a,b\n", [{"name": "t", "column": 2}], "no column 2"),
        ("a,b, a\n", [{"name": "t", "column": "a"}], "more than one column 'a'"),
    ],
)
def test_unusable_says_why(tmp_path: Path, content: str | None, points: list[dict[str, Any]], cause: str) -> None:
    path = tmp_path / "data.csv"
    if content is not None:
        path.write_text(content)
    adapter = build(Replay, {"file": str(path)}, points)
    with pytest.raises(Unusable, match=cause) as caught:
        asyncio.run(adapter.open())
    assert caught.value.hint


def test_a_pipe_is_refused_and_holds_up_nobody(tmp_path: Path) -> None:
    """To open one waits for a writer: in the loop that all of the gateway shares."""
    os.mkfifo(tmp_path / "data.csv")
    adapter = build(Replay, {"file": str(tmp_path / "data.csv")}, POINTS)
    with pytest.raises(Unusable, match="no regular file"):
        asyncio.run(adapter.open())


def test_a_looped_file_without_rows_ends(tmp_path: Path) -> None:
    assert asyncio.run(drain(build(Replay, {"file": csv_file(tmp_path, 0), "loop": True}, POINTS))) == []


def test_what_was_not_acknowledged_comes_again(tmp_path: Path) -> None:
    async def scenario() -> None:
        adapter = build(Replay, {"file": csv_file(tmp_path), "batch_rows": 10, "message_ids": True}, POINTS)
        await adapter.open()
        first, second = await adapter.read(), await adapter.read()
        await adapter.acknowledge(first)
        for _ in range(2):
            await adapter.close()
            await adapter.open()
            assert [s.message_id for s in await adapter.read()] == [s.message_id for s in second]
            await adapter.acknowledge(first)  # again, of an old connection: ignored

    asyncio.run(scenario())


def test_supervised_every_row_is_accepted_and_acknowledged(tmp_path: Path) -> None:
    async def scenario() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        options = {"file": csv_file(tmp_path, 1_000), "rate_hz": 500, "message_ids": True}
        adapter = build(Replay, options, POINTS, clock=VirtualClock(loop), dice=SeededDice(loop.rng("d")))
        accepted: list[Sample] = []

        async def accept(samples: Sequence[Sample]) -> None:
            await asyncio.sleep(0.005)
            accepted.extend(samples)

        source = Source(adapter, config.Device(adapter="replay", points=POINTS), accept)
        await source.run()
        assert source.state.phase == "ended"
        assert [sample.message_id for sample in accepted] == [str(n) for n in range(1, 1_001)]
        assert str(adapter._done) == "1000"
        assert loop.time() < 2.1

    run(scenario, seed=3)


def test_as_fast_as_possible_is_as_fast_as_the_gateway_takes_the_rows(tmp_path: Path) -> None:
    """All of them arrive: of 50,000 rows 43,524 were dropped, for a file is read faster than a disk is synced."""
    csv_file(tmp_path, 5_000)
    settings = {
        "site": "plant",
        "gateway": "gw",
        "devices": {"d": {"adapter": "replay", "options": {"file": "data.csv", "batch_rows": 500}, "points": POINTS}},
        "pipelines": {"raw": {"device": "d", "queue_max": 100}, "w": {"device": "d", "window": {"count": 10}}},
    }
    file = tmp_path / "gateway.yaml"
    file.write_text(json.dumps(settings))
    command = [sys.executable, "-m", "edge_runtime", "run", str(file)]
    with subprocess.Popen(command, stderr=subprocess.PIPE, text=True) as gateway:
        assert gateway.stderr is not None
        said = ""
        while "source_ended" not in said:
            line = gateway.stderr.readline()
            assert line, said
            said += line
        gateway.terminate()
        said += gateway.stderr.read()
    assert "samples_dropped" not in said
    command = [sys.executable, "-m", "edge_runtime", "outbox", str(tmp_path / "data" / "outbox.db"), "export"]
    rows = [json.loads(line) for line in subprocess.run(command, capture_output=True, check=True).stdout.splitlines()]
    assert [row["body"]["values"]["n"] for row in rows if row["lane"] == "sample"] == list(range(1, 5_001))
    assert len([row for row in rows if row["lane"] == "result"]) == 500
