"""A real gateway, watched as Prometheus, systemd and a stranger on the network do."""

from __future__ import annotations

import http.client
import json
import socket
import subprocess
import sys
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import Broker, free_port, mosquitto
from campaigns import fill, small_disk
from canaries import CLASSES, ROWS, found, number, spoiled, word
from gateways import GatewayProcess, config, gateway, until, uplink
from receivers import receiver
from watched import values

from edge_runtime.watching.http import CONNECTIONS_MAX, HEAD_BYTES_MAX
from edge_runtime.watching.metrics import METRICS

P = "edge_runtime_"


class Pages:
    """One gateway's pages."""

    def __init__(self, port: int) -> None:
        self.port = port

    def get(self, path: str, limit_s: float = 5.0) -> tuple[int, bytes]:
        connection = http.client.HTTPConnection("127.0.0.1", self.port, timeout=limit_s)
        try:
            connection.request("GET", path)
            answer = connection.getresponse()
            return answer.status, answer.read()
        finally:
            connection.close()

    def value(self, name: str, *labels: str) -> float:
        return values(self.get("/metrics")[1])[P + name, labels]

    @property
    def health(self) -> tuple[int, str, list[str]]:
        code, body = self.get("/health")
        said = json.loads(body)
        return code, said["status"], [problem["what"] for problem in said["problems"]]

    def raw(self, sent: bytes) -> bytes:
        """The whole answer to whatever is sent."""
        with socket.create_connection(("127.0.0.1", self.port), 5.0) as line:
            line.sendall(sent)
            line.shutdown(socket.SHUT_WR)
            got = b""
            while more := line.recv(65536):
                got += more
            return got


def canary(folder: Path, privacy: str) -> dict[str, Any]:
    rows = [f"{number(privacy, row)!r},{word(privacy)},{spoiled(privacy) if row % 10 == 3 else row}" for row in range(ROWS)]
    (folder / f"{privacy}.csv").write_text("\n".join(["n,w,bad", *rows]) + "\n")
    points = [{"name": "n", "column": "n"}, {"name": "w", "column": "w", "type": "text"}, {"name": "bad", "column": "bad"}]
    return {"adapter": "replay", "options": {"file": f"{privacy}.csv", "message_ids": True}, "points": points}


def settings(folder: Path, url: str, port: int, **more: Any) -> dict[str, Any]:
    """Values of each privacy class, as they are and in windows with alarms."""
    devices = {f"d-{privacy}": canary(folder, privacy) for privacy in CLASSES}
    rules = [{"name": "high", "output": "n.max", "above": 1_000}]
    pipelines: dict[str, Any] = {}
    for privacy in CLASSES:
        pipelines[f"raw-{privacy}"] = {"device": f"d-{privacy}", "privacy": privacy}
        window = {"points": ["n"], "window": {"count": 2}, "rules": rules}
        pipelines[f"win-{privacy}"] = {"device": f"d-{privacy}", "privacy": privacy} | window
    (folder / "beat.csv").write_text("b\n1\n2\n")
    options = {"file": "beat.csv", "rate_hz": 20, "loop": True}  # whoever has nothing to send does not miss the uplink
    devices["beat"] = {"adapter": "replay", "options": options, "points": [{"name": "b", "column": "b"}]}
    pipelines["beat"] = {"device": "beat"}
    sinks = {"cloud": {"type": "https", "url": url, "reach": "site"}}
    more = {"outbox": {"drain_s_max": 0.1}} | more
    return config(devices, sinks, pipelines=pipelines, metrics={"listen": f"127.0.0.1:{port}"}, **more)


@contextmanager
def watched(folder: Path, url: str, **more: Any) -> Iterator[tuple[GatewayProcess, Pages]]:
    port = free_port()
    with gateway(folder, settings(folder, url, port, **more)) as edge:
        edge.wait("gateway_started")
        edge.wait("metrics_served")
        yield edge, Pages(port)


def test_a_gateway_at_work_then_without_its_uplink(tmp_path: Path) -> None:
    """Nothing of the points is on any page, in any state."""
    with ExitStack() as stack:
        broker: Broker = stack.enter_context(mosquitto(tmp_path))
        far_end = stack.enter_context(receiver(tmp_path))
        line = stack.enter_context(uplink(far_end.port))
        together = {"broker": {"mode": "external", "url": broker.url}, "mesh": {"discovery": "off"}}
        edge, seen = stack.enter_context(watched(tmp_path, line.url, **together))
        pages = []

        def delivered() -> bool:
            pages.append(seen.get("/metrics")[1])
            told = values(pages[-1])
            computed = all(told.get((P + "pipeline_windows_total", (f"win-{each}",))) == ROWS // 2 for each in CLASSES)
            return computed and told[P + "sink_records_total", ("cloud",)] >= 2 * (ROWS + ROWS // 2 + 1)

        until(delivered, "the records of the classes site and cloud")
        told = values(pages[-1])
        for privacy in CLASSES:
            assert told[P + "source_samples_total", (f"d-{privacy}",)] == ROWS
            assert told[P + "pipeline_events_total", (f"win-{privacy}",)] == 1
            assert told[P + "pipeline_working", (f"win-{privacy}",)] == 1
        assert told[P + "sink_waiting_records", ("cloud", "result")] == 0
        assert told[P + "outbox_state", ("ok",)] == 1
        assert told[P + "outbox_size_bytes", ()] > 4096
        assert told["process_resident_memory_bytes", ()] > 2**20
        assert {name.removesuffix("_bucket").removesuffix("_count").removesuffix("_sum") for name, _ in told} <= {
            metric.name.removesuffix("_count") for metric in METRICS
        }

        until(lambda: seen.value("mesh_connected") == 1, "the site's broker")
        until(lambda: seen.value("mesh_role", "guest") == 1, "its role")
        evil = ["mosquitto_pub", "-p", str(broker.port), "-t", "edge/plant/gw/evil/status", "-m", "no birth"]
        subprocess.run(evil, check=True)
        until(lambda: seen.value("mesh_bad_messages_total") == 1, "the bad message")
        assert seen.health == (200, "ok", [])
        assert seen.get("/live") == (200, b"alive\n")

        line.cut()
        until(lambda: seen.health == (200, "degraded", ["sink cloud"]), "the uplink is missed")
        until(lambda: seen.value("sink_connected", "cloud") == 0, "a page made since")
        pages += [seen.get("/metrics")[1], seen.get("/health")[1]]
        line.heal()
        until(lambda: seen.health == (200, "ok", []), "the uplink is back")
        broker.kill()
        until(lambda: seen.health == (200, "degraded", ["mesh"]), "the broker is missed")
        pages.append(seen.get("/health")[1])
        assert edge.stop() == 0
        for privacy in CLASSES:
            assert not found(privacy, pages), "a value on a page"


def test_without_a_mesh_the_external_broker_is_missed_as_well(tmp_path: Path) -> None:
    with ExitStack() as stack:
        broker: Broker = stack.enter_context(mosquitto(tmp_path))
        far_end = stack.enter_context(receiver(tmp_path))
        alone = {"broker": {"mode": "external", "url": broker.url}, "mesh": None}
        _, seen = stack.enter_context(watched(tmp_path, far_end.url, **alone))
        until(lambda: seen.health == (200, "ok", []), "all is well")
        broker.kill()
        until(lambda: seen.health == (200, "degraded", ["broker"]), "the broker is missed")
        assert seen.value("broker_hosted") == 0


@pytest.fixture
def systemd(tmp_path: Path) -> Iterator[socket.socket]:
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind(str(tmp_path / "notify"))
        heard.settimeout(20)
        yield heard


def until_said(heard: socket.socket, wanted: bytes) -> list[bytes]:
    """The words of each datagram up to the first that has it."""
    said = []
    while not said or wanted not in said[-1].split(b"\n"):
        said.append(heard.recv(4096))
    return said


def test_a_disk_that_is_full_at_the_start(tmp_path: Path, systemd: socket.socket) -> None:
    """It has not started, it has failed, and it lives; systemd is asked for time until there is room, and then told."""
    watchdog = ["env", f"NOTIFY_SOCKET={tmp_path / 'notify'}", "WATCHDOG_USEC=200000"]
    with small_disk(tmp_path / "data") as disk, receiver(tmp_path) as far_end:
        foreign, port = fill(disk), free_port()
        with gateway(tmp_path, settings(tmp_path, far_end.url, port), inside=watchdog) as edge:
            edge.wait("outbox_state", state="full")
            seen = Pages(port)
            assert seen.health == (503, "failed", ["outbox"])
            assert "free space" in seen.get("/health")[1].decode()
            assert seen.get("/live")[0] == 200
            until(lambda: seen.value("outbox_state", "full") == 1, "a page made since")
            said = until_said(systemd, b"STATUS=failed: outbox: full: database or disk is full")
            foreign.unlink()
            said += until_said(systemd, b"READY=1")
            assert all(b"EXTEND_TIMEOUT_USEC=30000000" in each for each in said[:-1])
            assert not [each for each in said[:-1] if b"WATCHDOG" in each or b"READY" in each]
            until(lambda: seen.health == (200, "ok", []), "all is well")
            until_said(systemd, b"WATCHDOG=1")
            beats = until_said(systemd, b"WATCHDOG=1")
            assert len(beats) == 1
            assert edge.stop() == 0
            until_said(systemd, b"STOPPING=1")


GARBAGE = [
    (b"", b"HTTP/1.1 400"),
    (b"\r\n\r\n", b"HTTP/1.1 400"),
    (b"GET /metrics\r\n\r\n", b"HTTP/1.1 400"),
    (b"\x16\x03\x01\x02\x00\x01\x00\x01\xfc\x03\x03" + bytes(200), b"HTTP/1.1 400"),
    (bytes(range(256)) * 4 + b"\r\n\r\n", b"HTTP/1.1 400"),
    (b"POST /metrics HTTP/1.1\r\nContent-Length: 9\r\n\r\n", b"HTTP/1.1 405"),
    (b"GET /../../etc/passwd HTTP/1.1\r\n\r\n", b"HTTP/1.1 404"),
    (b"GET /metrics?x=" + b"y" * HEAD_BYTES_MAX + b" HTTP/1.1\r\n\r\n", b"HTTP/1.1 431"),
    (b"GET /health HTTP/1.1\r\nX: " + b"z" * 200_000 + b"\r\n\r\n", b"HTTP/1.1 431"),
    (b"GET /live HTTP/1.0\r\n\r\n", b"HTTP/1.1 200"),
    (b"GET /live HTTP/1.1\r\n\r\nGET /live HTTP/1.1\r\n\r\n", b"HTTP/1.1 200"),
]


def test_strangers_at_the_door(tmp_path: Path) -> None:
    with watched(tmp_path, "http://127.0.0.1:1") as (edge, seen):
        for sent, expected in GARBAGE:
            try:
                got = seen.raw(sent)
            except ConnectionError:  # it was closed over what we still had to say
                assert len(sent) > 100_000
                continue
            assert got.startswith(expected), sent[:40]
            assert got.count(b"HTTP/1.1 ") == 1
        files, memory = values(seen.get("/metrics")[1])["process_open_fds", ()], edge.rss_bytes
        with ExitStack() as stack:
            for number in range(100):  # each says a little, and no more
                line = stack.enter_context(socket.create_connection(("127.0.0.1", seen.port), 5.0))
                line.sendall(b"GET /metrics HTTP/1.1\r\n"[: number % 20])
            code, page = seen.get("/metrics")
            assert code == 200
            assert values(page)["process_open_fds", ()] <= files + CONNECTIONS_MAX
            assert all(seen.get("/metrics")[0] == 200 for _ in range(20))
            stalled = stack.enter_context(socket.create_connection(("127.0.0.1", seen.port), 5.0))
            stalled.setsockopt(socket.SOL_SOCKET, socket.SO_RCVBUF, 1024)
            stalled.sendall(b"GET /metrics HTTP/1.1\r\n\r\n")  # and does not read
            assert seen.get("/live")[0] == 200
        until(lambda: values(seen.get("/metrics")[1])["process_open_fds", ()] <= files, "every connection is closed")
        assert edge.rss_bytes < memory + 4 * 2**20
        assert edge.stop() == 0


def test_a_port_that_is_taken_stops_nothing(tmp_path: Path) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        with gateway(tmp_path, settings(tmp_path, "http://127.0.0.1:1", port)) as edge:
            said = edge.wait("metrics_not_served")
            assert f"127.0.0.1:{port}" in said["cause"]
            assert "metrics.listen" in said["hint"]
            edge.wait("source_connected")
            taken.close()
            edge.wait("metrics_served", at=f"127.0.0.1:{port}")
            assert len(edge.events("metrics_not_served")) == 1
            assert Pages(port).get("/live")[0] == 200
            assert edge.stop() == 0


def test_without_the_section_nothing_is_loaded(tmp_path: Path) -> None:
    """A gateway that nobody watches pays nothing."""
    file = tmp_path / "gateway.json"
    plain = settings(tmp_path, "http://127.0.0.1:1", 0)
    del plain["metrics"]
    file.write_text(json.dumps(plain))
    code = (
        "import sys, threading, time, os, signal; from edge_runtime.cli import main\n"
        "def stop():\n"
        "    while signal.getsignal(signal.SIGTERM) == signal.SIG_DFL: time.sleep(0.05)\n"
        "    time.sleep(0.5); os.kill(os.getpid(), signal.SIGTERM)\n"
        "threading.Thread(target=stop, daemon=True).start()\n"
        f"main(['run', {str(file)!r}]); print([name for name in sys.modules if 'edge_runtime.watching' in name])"
    )
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=30, check=True, cwd=tmp_path)
    assert done.stdout.splitlines()[-1] == "[]", done.stderr
    assert "gateway_started" in done.stderr
