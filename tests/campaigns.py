"""The campaigns against a whole gateway, on real processes: tests run them short, `make soak` and `make bench` at full length.

Each one returns its figures, and fails when a record is lost, doubled or made up.

| function      | what happens to the gateway                                                                              |
|---------------|----------------------------------------------------------------------------------------------------------|
| kills         | kill -9 at random instants while 500 messages/s come in, windows of 64 sliding by 16                     |
| outage        | 200 messages/s; the uplink is cut from 1/7 to 5/7 of the time, kill -9 at 3/7                            |
| receiver_back | the receiver behind a default mosquitto is away while the messages come                                  |
| old_copy      | the outbox is copied, goes on, and the old copy is put back                                              |
| full_disk     | a foreign file takes all the room on the disk, and goes away again                                       |
"""

from __future__ import annotations

import os
import random
import shutil
import sqlite3
import statistics
import subprocess
import threading
import time
from collections.abc import Iterator
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import Broker, mosquitto
from gateways import PATIENT, POINTS, GatewayProcess, assert_once, bodies, config, gateway, press, publisher, uplink
from publishing import values
from receivers import ReceiverProcess, receiver

WINDOW, STEP = 64, 16
LIFE_S_MIN, LIFE_S_MAX = 0.05, 1.6
"""A gateway needs about half a second to start: some are killed before they have done anything."""

START_S, SETTLE_S = 0.02, 1.0
"""What a kill and a start take the campaign itself, and how long messages come after the last one."""

KILL_RATE, OUTAGE_RATE = 500.0, 200.0
CUT, KILLED, HEALED = 5 / 35, 15 / 35, 25 / 35
"""Parts of an outage's length."""

TMPFS_BYTES = 8 * 2**20

Figures = dict[str, float]

# --- kill -9 ---------------------------------------------------------------------------------------------------------


def expected_windows(numbers: list[int]) -> dict[int, dict[str, float]]:
    """First message of each window -> what is to be told of it, computed from the messages themselves."""
    windows = {}
    for at in range(0, len(numbers) - WINDOW + 1, STEP):
        rows = [values(n) for n in numbers[at : at + WINDOW]]
        columns = dict(enumerate(zip(*rows, strict=True)))
        told = {f"f{n}.{name}": float(of(column)) for n, column in columns.items() for name, of in _TOLD.items()}
        windows[numbers[at]] = told
    return windows


_TOLD = {"min": min, "max": max, "mean": lambda column: sum(column) / len(column), "last": lambda column: column[-1]}


def kills(folder: Path, number: int, seed: int) -> Figures:
    """What the broker has acknowledged to the machine is at the far end exactly once, and so is every window that it makes."""
    print(f"EDGE_KILL_SEED={seed} EDGE_KILLS={number}")
    dice = random.Random(seed)
    lives = [dice.uniform(LIFE_S_MIN, LIFE_S_MAX) for _ in range(number)]
    count = int((sum(lives) + START_S * number + SETTLE_S) * KILL_RATE)
    with mosquitto(folder, **PATIENT) as broker, receiver(folder) as far_end:
        window = {"device": "press", "window": {"count": WINDOW, "step": STEP}}
        pipelines = {"windows": window, "all": {"device": "press"}}
        sinks = {"cloud": {"type": "https", "url": far_end.url}}
        with gateway(folder, config({"press": press(broker.url)}, sinks, pipelines=pipelines)) as edge:
            edge.wait("source_connected")
            with publisher(broker, rate=KILL_RATE, count=count) as machine:
                for life_s in lives:
                    time.sleep(life_s)  # the instant is chance, on purpose
                    edge.kill()
                    edge.start()
                acknowledged = machine.finish()
            assert len(acknowledged) == count
            windows = expected_windows(acknowledged)
            edge.delivers(far_end, "all", count)
            edge.delivers(far_end, "windows", len(windows))
            edge.wait("gateway_started")  # before it a signal ends it at once
            assert edge.stop() == 0
        assert_once(far_end, acknowledged)
        got = bodies(far_end.file, "windows")
        firsts = sorted(int(body["outputs"]["f0.min"]) for body in got)
        assert firsts == sorted(windows), f"seed {seed}: windows are missing, too many or other ones"
        for body in got:
            told = {name: value for name, value in body["outputs"].items() if not name.startswith(f"f{POINTS - 1}.")}
            assert told == pytest.approx(windows[int(body["outputs"]["f0.min"])]), f"seed {seed}"
        said = far_end.stop()
        assert (said["gaps"], said["declared_lost"]) == (0, 0)
        return {"messages": count, "windows": len(windows), "resent": said["duplicates"]}


# --- the uplink is away ---


class Arrivals:
    """Notes when the messages of pipeline `all` are on the far end's disk: looks into its file each millisecond."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._end = threading.Event()
        self.took_s: list[tuple[float, float]] = []
        """(when, how long after the machine handed it to its MQTT client), seconds."""
        self._thread = threading.Thread(target=self._watch)

    def __enter__(self) -> Arrivals:
        self._thread.start()
        return self

    def __exit__(self, *_: object) -> None:
        self._end.set()
        self._thread.join()

    def _watch(self) -> None:
        seen = 0
        with closing(sqlite3.connect(f"{self._file.as_uri()}?mode=ro", uri=True)) as database:
            sql = "SELECT rowid, json_extract(body, '$.values.f8') FROM records WHERE rowid > ? AND source = 'all' ORDER BY rowid"
            while not self._end.wait(0.001):
                rows = database.execute(sql, (seen,)).fetchall()
                now = time.time()
                self.took_s += [(now, now - sent) for _, sent in rows]
                seen = rows[-1][0] if rows else seen


def outage(folder: Path, length_s: float) -> Figures:
    """`drain_s`: from the uplink's return until everything is there that was published before it."""
    count = int(OUTAGE_RATE * length_s)
    with mosquitto(folder, **PATIENT) as broker, receiver(folder) as far_end, uplink(far_end.port) as line:
        settings = config({"press": press(broker.url)}, {"cloud": {"type": "https", "url": line.url}})
        with gateway(folder, settings) as edge:
            edge.wait("source_connected")
            edge.wait("sink_connected")
            with Arrivals(far_end.file) as arrivals, publisher(broker, rate=OUTAGE_RATE, count=count) as machine:
                begin = time.monotonic()

                def sleep_until(part: float) -> None:
                    time.sleep(max(0.0, begin + part * length_s - time.monotonic()))

                sleep_until(CUT)
                cut_at = time.time()
                line.cut()
                sleep_until(KILLED)
                edge.kill()
                edge.start()
                sleep_until(HEALED)
                healed_at = time.time()
                line.heal()
                acknowledged = machine.finish()
                edge.delivers(far_end, "all", count)
            assert len(acknowledged) == count
            assert edge.stop() == 0
        assert_once(far_end, acknowledged)
        said = far_end.stop()
        assert (said["gaps"], said["declared_lost"]) == (0, 0)
        normal = [took for at, took in arrivals.took_s if at < cut_at]
        late = [at for at, took in arrivals.took_s if at - took < healed_at]
        return {
            "p50_ms": 1000 * statistics.median(normal),
            "p99_ms": 1000 * statistics.quantiles(normal, n=100)[98],
            "drain_s": max(late) - healed_at,
            "drained": sum(at >= healed_at for at in late),
            "resent": said["duplicates"],
        }


def receiver_back(folder: Path, count: int) -> Figures:
    """A default mosquitto acknowledges and then drops what is past 1,000 queued messages."""
    with mosquitto(folder, **PATIENT) as machines, mosquitto(folder, log_type="none") as between:
        far_end = ReceiverProcess(folder / "records.db", "--mqtt", between.url, "--name", "plant", mqtt=True)
        far_end.start()
        sinks = {"site": {"type": "mqtt", "url": between.url, "receiver": "plant", "timeout_s": 1.0}}
        with gateway(folder, config({"press": press(machines.url)}, sinks)) as edge:
            try:
                edge.wait("sink_connected")
                edge.wait("source_connected")
                far_end.kill()
                with publisher(machines, rate=0, count=count) as machine:
                    acknowledged = machine.finish()
                edge.wait("sink_away")
                far_end.start()
                edge.delivers(far_end, "all", count)
                assert edge.stop() == 0
                assert_once(far_end, acknowledged)
                assert far_end.stop()["gaps"] == 0
                return {"messages": count}
            finally:
                far_end.kill()


def old_copy(folder: Path, kind: str) -> Figures:
    """1,000 are delivered, the disk is copied, 1,000 more are delivered, the old copy is put back, 1,000 new ones come."""
    with mosquitto(folder, **PATIENT) as broker:
        options = ["--mqtt", broker.url, "--name", "plant"] if kind == "mqtt" else []
        sink: dict[str, Any] = {"type": "mqtt", "url": broker.url, "receiver": "plant"}
        far_end = ReceiverProcess(folder / "records.db", *options, mqtt=kind == "mqtt")
        far_end.start()
        try:
            sinks = {"far": sink if kind == "mqtt" else {"type": "https", "url": far_end.url}}
            edge = GatewayProcess(folder, config({"press": press(broker.url)}, sinks))
            copy = folder / "copy"
            _deliver(edge, broker, far_end, 0)
            shutil.copytree(edge.data_dir, copy)
            _deliver(edge, broker, far_end, 1_000)
            shutil.rmtree(edge.data_dir)
            shutil.copytree(copy, edge.data_dir)
            _deliver(edge, broker, far_end, 2_000)
            assert_once(far_end, list(range(3_000)))
            said = far_end.stop()
            assert (said["unique"], said["gaps"], said["declared_lost"]) == (3_000, 0, 0)
            return {"messages": 3_000}
        finally:
            far_end.kill()


def _deliver(edge: GatewayProcess, broker: Broker, far_end: ReceiverProcess, first: int) -> None:
    """1,000 messages, by a gateway that then stops."""
    edge.start()
    try:
        edge.wait("source_connected")
        with publisher(broker, rate=0, count=1_000, first=first) as machine:
            assert len(machine.finish()) == 1_000
        edge.delivers(far_end, "all", first + 1_000)
        assert edge.stop() == 0
    finally:
        edge.end()


# --- the disk is full ---


@contextmanager
def small_disk(folder: Path) -> Iterator[Path]:
    """A file system of TMPFS_BYTES."""
    if os.geteuid() != 0:
        pytest.skip("NOT ROOT: a full disk is NOT tested on a real file system (a small tmpfs has to be mounted)")
    folder.mkdir()
    mounted = subprocess.run(
        ["mount", "-t", "tmpfs", "-o", f"size={TMPFS_BYTES}", "tmpfs", str(folder)], capture_output=True, text=True, check=False
    )
    if mounted.returncode:
        pytest.skip(f"NO MOUNT HERE: a full disk is NOT tested on a real file system ({mounted.stderr.strip()})")
    try:
        yield folder
    finally:
        subprocess.run(["umount", "--lazy", str(folder)], check=True)


def remount(folder: Path, how: str) -> None:
    """`ro` or `rw`, of a small_disk."""
    subprocess.run(["mount", "-o", f"remount,{how}", str(folder)], check=True)


def fill(folder: Path) -> Path:
    """A foreign file that takes all the room there is."""
    file = folder / "foreign.bin"
    with file.open("wb", buffering=0) as out:
        try:
            while True:
                out.write(bytes(4096))
        except OSError:
            return file


def full_disk(folder: Path) -> Figures:
    """While it is full the machine's messages wait at its broker; what had been accepted is delivered meanwhile."""
    with (
        mosquitto(folder, **PATIENT) as broker,
        receiver(folder) as far_end,
        uplink(far_end.port) as line,
        small_disk(folder / "data"),
    ):
        settings = config({"press": press(broker.url)}, {"cloud": {"type": "https", "url": line.url}})
        with gateway(folder, settings) as edge:
            edge.wait("source_connected")
            edge.wait("sink_connected")
            line.cut()
            with publisher(broker, rate=0, count=1_000) as machine:
                accepted = machine.finish()
            foreign = fill(edge.data_dir)
            with publisher(broker, rate=0, count=6_000, first=1_000) as machine:
                accepted += machine.finish()
            full = edge.wait("outbox_state", state="full")
            assert "free" in full["hint"], full
            assert not edge.ended()
            line.heal()
            foreign.unlink()
            edge.delivers(far_end, "all", 7_000)
            edge.wait("outbox_state", state="ok")
            assert edge.stop() == 0
        assert_once(far_end, accepted)
        said = far_end.stop()
        assert (said["gaps"], said["declared_lost"]) == (0, 0)
        return {"messages": len(accepted)}
