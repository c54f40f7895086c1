"""A disk that is full, a cap that is reached, a file that is damaged: a state with a message, never the end of the gateway, and
what could not be kept is declared."""

from __future__ import annotations

import sqlite3
from contextlib import closing
from pathlib import Path

import campaigns
import pytest
from brokers import mosquitto
from campaigns import fill, remount, small_disk
from gateways import (
    PATIENT,
    GatewayProcess,
    assert_once,
    config,
    gateway,
    newest,
    numbers,
    press,
    publisher,
    until,
    uplink,
    waiting,
)
from receivers import receiver

CAP_BYTES = 2 * 2**20


@pytest.mark.slow
def test_a_full_disk_that_is_freed_goes_on_by_itself(tmp_path: Path) -> None:
    campaigns.full_disk(tmp_path)


def test_a_gateway_that_starts_on_a_full_disk_waits_for_room(tmp_path: Path) -> None:
    with mosquitto(tmp_path, **PATIENT) as broker, receiver(tmp_path) as far_end, small_disk(tmp_path / "data") as disk:
        foreign = fill(disk)
        with gateway(tmp_path, config({"press": press(broker.url)}, {"cloud": {"type": "https", "url": far_end.url}})) as edge:
            edge.wait("outbox_state", state="full")
            foreign.unlink()
            edge.wait("source_connected")
            with publisher(broker, rate=0, count=100) as machine:
                accepted = machine.finish()
            edge.delivers(far_end, "all", 100)
            assert edge.stop() == 0
        assert_once(far_end, accepted)


def test_a_gateway_that_starts_on_a_read_only_disk_waits_until_it_is_writable(tmp_path: Path) -> None:
    """As after a power cut, when the kernel mounts a file system with errors read-only."""
    with mosquitto(tmp_path, **PATIENT) as broker, receiver(tmp_path) as far_end, small_disk(tmp_path / "data") as disk:
        with gateway(tmp_path, config({"press": press(broker.url)}, {"cloud": {"type": "https", "url": far_end.url}})) as edge:
            edge.wait("source_connected")
            edge.kill()
            remount(disk, "ro")
            edge.start()
            edge.wait("outbox_state", state="read-only")
            assert edge.stop() == 0
            edge.start()
            edge.wait("outbox_state", state="read-only")
            remount(disk, "rw")
            edge.wait("source_connected")
            with publisher(broker, rate=0, count=100) as machine:
                accepted = machine.finish()
            edge.delivers(far_end, "all", 100)
            assert edge.stop() == 0
        assert_once(far_end, accepted)


def test_what_the_cap_has_cost_is_declared(tmp_path: Path) -> None:
    """The uplink is away for longer than the outbox is large: the oldest go, and the far end is told which."""
    count = 12_000
    with mosquitto(tmp_path, **PATIENT) as broker, receiver(tmp_path) as far_end, uplink(far_end.port) as line:
        sinks = {"cloud": {"type": "https", "url": line.url}}
        settings = config({"press": press(broker.url)}, sinks, outbox={"size_bytes_max": CAP_BYTES, "drain_s_max": 20})
        with gateway(tmp_path, settings) as edge:
            edge.wait("source_connected")
            edge.wait("sink_connected")
            line.cut()
            largest = 0

            def all_in() -> bool:
                nonlocal largest
                largest = max(largest, sum(file.stat().st_size for file in edge.data_dir.glob("outbox.db*")))
                return not machine.waits()

            with publisher(broker, rate=0, count=count) as machine:
                until(all_in, "the machine's messages are at the broker")
                assert len(machine.finish()) == count
            edge.wait("records_lost")
            until(lambda: newest(edge) == count, "all messages are accepted")
            line.heal()
            until(lambda: count - 1 in numbers(far_end.file), "the newest message")
            assert edge.stop() == 0  # drains
        assert largest <= CAP_BYTES
        got = numbers(far_end.file)
        said = far_end.stop()
        assert len(got) == len(set(got))
        assert said["declared_lost"] == count - len(got) > 0
        assert said["gaps"] == 0, "every hole is explained by a gap record"


@pytest.mark.parametrize("damage", ["no database at all", "some pages"])
def test_a_damaged_file_is_set_aside_and_what_is_gone_is_declared(tmp_path: Path, damage: str) -> None:
    count = 3_000
    with mosquitto(tmp_path, **PATIENT) as broker, receiver(tmp_path) as far_end, uplink(far_end.port) as line:
        sinks = {"cloud": {"type": "https", "url": line.url}}
        edge = GatewayProcess(tmp_path, config({"press": press(broker.url)}, sinks, outbox={"drain_s_max": 0.1}))
        try:
            edge.start()
            edge.wait("source_connected")
            line.cut()
            with publisher(broker, rate=0, count=count) as machine:
                machine.finish()
            until(lambda: waiting(edge) == count, "everything is in the outbox")
            assert edge.stop() == 0
            file = edge.data_dir / "outbox.db"
            with closing(sqlite3.connect(file, isolation_level=None)) as database:
                # The middle is records then; else it may be free pages and message ids (1 in 30): nobody reads those.
                database.execute("VACUUM")
            content = bytearray(file.read_bytes())
            if damage == "some pages":
                content[len(content) // 2 : len(content) // 2 + 20_000] = b"\xa5" * 20_000
            else:
                content[:] = b"this is no database\n" * 1_000
            file.write_bytes(content)
            line.heal()
            edge.start()
            said = edge.wait("outbox_state", state="corrupt")
            assert "set aside" in said["hint"], said
            edge.wait("source_connected")
            with publisher(broker, rate=0, count=100, first=count) as machine:
                machine.finish()
            until(lambda: set(range(count, count + 100)) <= set(numbers(far_end.file)), "the new messages")
            until(lambda: not waiting(edge) and not waiting(edge, "gap"), "the old ones too, and what is declared")
            assert edge.stop() == 0
            assert list(edge.data_dir.glob("outbox.db.corrupt-*"))
            got = numbers(far_end.file)
            told = far_end.stop()
            assert len(got) == len(set(got))
            if damage == "some pages":
                assert len(got) > count // 2
                assert told["declared_lost"] >= count + 100 - len(got) > 0
                assert told["gaps"] == 0
        finally:
            edge.end()
