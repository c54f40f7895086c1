"""One dead thing slows nothing else; a stop drains; no network is no reason not to work; and the memory stays small."""

from __future__ import annotations

import os
import shutil
import signal
import subprocess
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from brokers import mosquitto
from gateways import (
    PATIENT,
    POINTS,
    assert_once,
    config,
    count,
    gateway,
    numbers,
    press,
    publisher,
    until,
    uplink,
    waiting,
)
from modbus_devices import libmodbus
from receivers import ReceiverProcess, receiver

RSS_BYTES_MAX = 70 * 2**20
SAMPLES = 50


def plc(port: int) -> dict[str, Any]:
    return {
        "adapter": "modbus",
        "period_s": 0.02,
        "timeout_s": 0.3,
        "options": {"host": "127.0.0.1", "port": port},
        "points": [{"name": "a", "address": 0}],
    }


def test_a_device_that_stalls_slows_no_other(tmp_path: Path) -> None:
    (tmp_path / "one").mkdir()
    (tmp_path / "two").mkdir()
    with libmodbus(tmp_path / "one") as stalled, libmodbus(tmp_path / "two") as well, receiver(tmp_path) as far_end:
        devices = {"stalled": plc(stalled.port), "well": plc(well.port)}
        with gateway(tmp_path, config(devices, {"cloud": {"type": "https", "url": far_end.url}})) as edge:

            def time_for(source: str, samples: int) -> float:
                begin, before = time.monotonic(), count(far_end.file, source)
                edge.delivers(far_end, source, before + samples)
                return time.monotonic() - begin

            edge.delivers(far_end, "all-stalled", 10)
            alone_s = time_for("all-well", SAMPLES)
            stalled.stall()
            edge.wait("source_waiting", device="stalled")
            beside_s = min(time_for("all-well", SAMPLES) for _ in range(3))  # the machine may have something else to do, too
            stalled.go_on()
            edge.delivers(far_end, "all-stalled", count(far_end.file, "all-stalled") + 10)
            assert edge.stop() == 0
        assert beside_s < 2 * alone_s


def test_a_sink_that_stalls_slows_no_other(tmp_path: Path) -> None:
    with ExitStack() as stack:
        broker = stack.enter_context(mosquitto(tmp_path, **PATIENT))
        (tmp_path / "one").mkdir()
        (tmp_path / "two").mkdir()
        stalled = stack.enter_context(receiver(tmp_path / "one"))
        well = stack.enter_context(receiver(tmp_path / "two"))
        sinks = {name: {"type": "https", "url": each.url, "timeout_s": 1.0} for name, each in [("a", stalled), ("b", well)]}
        edge = stack.enter_context(gateway(tmp_path, config({"press": press(broker.url)}, sinks)))
        edge.wait("source_connected")
        edge.wait("sink_connected", sink="a")
        assert stalled.process is not None
        stalled.process.send_signal(signal.SIGSTOP)
        with publisher(broker, rate=0, count=2_000) as machine:
            accepted = machine.finish()
        edge.delivers(well, "all", 2_000)
        edge.wait("sink_away", sink="a")
        stalled.process.send_signal(signal.SIGCONT)
        edge.delivers(stalled, "all", 2_000)
        assert edge.stop() == 0
        assert_once(well, accepted)
        assert_once(stalled, accepted)


@pytest.mark.parametrize("how", [signal.SIGTERM, signal.SIGINT])
def test_a_stop_drains(tmp_path: Path, how: signal.Signals) -> None:
    with mosquitto(tmp_path, **PATIENT) as broker, receiver(tmp_path) as far_end:
        settings = config({"press": press(broker.url)}, {"cloud": {"type": "https", "url": far_end.url}})
        with gateway(tmp_path, settings) as edge:
            edge.wait("source_connected")
            with publisher(broker, rate=0, count=2_000) as machine:
                accepted = machine.finish()
            assert edge.stop(how) == 0
            assert edge.events("gateway_stopped")[0]["undelivered"] == {"cloud": 0}
            got = numbers(far_end.file)
            assert got == list(range(len(got))), "what was accepted has come, in order and once"
            edge.start()  # the rest is at the machine's broker
            edge.wait("gateway_started")
            edge.delivers(far_end, "all", 2_000)
            assert edge.stop(how) == 0
        assert_once(far_end, accepted)


def test_a_second_signal_does_not_wait_for_the_far_end(tmp_path: Path) -> None:
    count = 1_000
    with mosquitto(tmp_path, **PATIENT) as broker, receiver(tmp_path) as far_end, uplink(far_end.port) as line:
        line.cut()
        sinks = {"cloud": {"type": "https", "url": line.url}}
        with gateway(tmp_path, config({"press": press(broker.url)}, sinks, outbox={"drain_s_max": 3600})) as edge:
            edge.wait("source_connected")
            with publisher(broker, rate=0, count=count) as machine:
                accepted = machine.finish()
            until(lambda: waiting(edge) == count, "everything is in the outbox")
            assert edge.process is not None
            edge.process.send_signal(signal.SIGTERM)
            edge.wait("source_stopped")
            assert not edge.ended()
            assert edge.stop() == 0
            assert edge.events("gateway_interrupted")
            line.heal()
            edge.start()
            edge.delivers(far_end, "all", count)
            assert edge.stop() == 0
        assert_once(far_end, accepted)


BLACK_HOLE = (
    "ip link set lo up && ip link add hole type veth peer name nobody && ip link set nobody up"
    " && ip addr add 192.0.2.2/24 dev hole && ip link set hole up arp off && ip route add default dev hole"
)
"""A network in which everything is sent and nothing is ever answered, name servers included."""


@pytest.mark.parametrize("network", ["none", "black hole"])
def test_a_gateway_without_a_network_works(tmp_path: Path, network: str) -> None:
    """Names cannot be looked up, nothing can be reached: what can be read locally is accepted."""
    if os.geteuid() != 0 or not shutil.which("unshare") or not shutil.which("ip"):
        pytest.skip("NOT ROOT, OR NO unshare/ip: a gateway without a network is NOT tested (apt install iproute2)")
    setup = BLACK_HOLE if network == "black hole" else "true"
    inside = ["env", "RES_OPTIONS=timeout:2 attempts:1", "unshare", "--net", "sh", "-c", f'{setup} && exec "$@"', "sh"]
    if subprocess.run([*inside, "true"], check=False, capture_output=True).returncode:
        pytest.skip("NO NETWORK NAMESPACES HERE: a gateway without a network is NOT tested")
    lines = [",".join(str(n) for _ in range(POINTS)) for n in range(SAMPLES)]
    (tmp_path / "rows.csv").write_text("\n".join([",".join(f"c{n}" for n in range(POINTS)), *lines]) + "\n")
    points = [{"name": f"f{n}", "column": f"c{n}"} for n in range(POINTS)]
    devices = {
        "local": {"adapter": "replay", "options": {"file": "rows.csv"}, "points": points},
        "far": press("mqtt://machine.example:1883"),
        "plc": {**plc(502), "options": {"host": "plc.example"}},
    }
    sinks = {
        "cloud": {"type": "https", "url": "https://cloud.example:8443", "timeout_s": 1.0},
        "site": {"type": "mqtt", "url": "mqtt://broker.example:1883", "receiver": "plant", "timeout_s": 1.0},
    }
    with gateway(tmp_path, config(devices, sinks, outbox={"drain_s_max": 0.1}), inside=inside) as edge:
        edge.wait("gateway_started")
        edge.wait("source_ended", device="local")
        until(lambda: waiting(edge) >= SAMPLES, "the local samples are accepted")
        for sink in sinks:
            edge.wait("sink_away", sink=sink)
        for device in ("far", "plc"):
            edge.wait("source_waiting", device=device)
        assert edge.stop() == 0
    far_end = ReceiverProcess(tmp_path / "records.db")
    far_end.start()
    try:  # the network is there again
        settings = config(
            {"local": {**devices["local"], "options": {"file": "empty.csv"}}}, {"cloud": {"type": "https", "url": far_end.url}}
        )
        settings["pipelines"] = {"all": {"device": "local"}}
        (tmp_path / "empty.csv").write_text(",".join(f"c{n}" for n in range(POINTS)) + "\n")
        with gateway(tmp_path, settings) as edge:
            edge.delivers(far_end, "all-local", SAMPLES)
            assert edge.stop() == 0
        assert_once(far_end, list(range(SAMPLES)), "all-local")
    finally:
        far_end.kill()


def test_the_memory_of_a_gateway_without_an_engine(tmp_path: Path) -> None:
    """One device over MQTT, a sink over HTTP and one over MQTT, after some traffic."""
    messages = 3_000
    with ExitStack() as stack:
        broker = stack.enter_context(mosquitto(tmp_path, **PATIENT))
        (tmp_path / "one").mkdir()
        over_http = stack.enter_context(receiver(tmp_path))
        over_mqtt = stack.enter_context(receiver(tmp_path / "one", "--mqtt", broker.url, "--name", "plant", mqtt=True))
        sinks = {
            "cloud": {"type": "https", "url": over_http.url},
            "site": {"type": "mqtt", "url": broker.url, "receiver": "plant"},
        }
        edge = stack.enter_context(gateway(tmp_path, config({"press": press(broker.url)}, sinks)))
        edge.wait("source_connected")
        with publisher(broker, rate=0, count=messages) as machine:
            machine.finish()
        edge.delivers(over_http, "all", messages)
        edge.delivers(over_mqtt, "all", messages)
        assert edge.rss_bytes <= RSS_BYTES_MAX
        print(f"resident: {edge.rss_bytes / 2**20:.1f} MiB")
        assert edge.stop() == 0
