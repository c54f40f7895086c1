"""What a person gets wrong, and far ends that misbehave: each is told with what to do about it, through the real command line,
and costs no record."""

from __future__ import annotations

import os
import shutil
import subprocess
import threading
from collections.abc import Iterator
from contextlib import contextmanager
from http.server import BaseHTTPRequestHandler, ThreadingHTTPServer
from pathlib import Path
from typing import Any

import pytest
from brokers import free_port, mosquitto
from gateways import PATIENT, POINTS, GatewayProcess, assert_once, config, gateway, press, publisher, until
from receivers import ReceiverProcess, receiver

IMPATIENT: dict[str, Any] = {"outbox": {"drain_s_max": 0.1}}
NOWHERE = {"cloud": {"type": "https", "url": "http://127.0.0.1:1"}}
SHIPPED = Path(__file__).parents[2] / "models" / "shuttle-anomaly"


def replay(folder: Path, rows: int = 50) -> dict[str, Any]:
    """A device that needs nothing but a file."""
    lines = [",".join(str(n + column) for column in range(POINTS)) for n in range(rows)]
    (folder / "rows.csv").write_text("\n".join([",".join(f"c{n}" for n in range(POINTS)), *lines]) + "\n")
    points = [{"name": f"f{n}", "column": f"c{n}"} for n in range(POINTS)]
    return {"adapter": "replay", "options": {"file": "rows.csv"}, "points": points}


def fails(edge: GatewayProcess) -> str:
    """What it says when it does not even start."""
    done = subprocess.run(edge.command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1, done
    assert "Traceback" not in done.stderr
    return done.stderr


def test_a_file_that_lacked_an_adapter_runs_as_soon_as_that_is_installed(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Also after several attempts: each is told the same, with its line, and none of them is a crash."""
    edge = GatewayProcess(tmp_path, config({"wind": {**replay(tmp_path), "adapter": "wind"}}, {}))
    for _ in range(4):
        said = fails(edge)
        assert "gateway.json:1: devices.wind.adapter: no adapter of this name is installed" in said
        assert "the file is not valid" not in said
    wheel = tmp_path / "site" / "wind-1.dist-info"
    wheel.mkdir(parents=True)
    (wheel / "METADATA").write_text("Metadata-Version: 2.1\nName: wind\nVersion: 1\n")
    (wheel / "entry_points.txt").write_text("[edge_runtime.adapters]\nwind = edge_adapters.replay:Replay\n")
    monkeypatch.setenv("PYTHONPATH", str(wheel.parent), prepend=os.pathsep)
    edge.start()
    try:
        edge.wait("source_connected")
        assert edge.stop() == 0
    finally:
        edge.end()


def test_every_mistake_in_the_file_is_told_at_once_with_its_line(tmp_path: Path) -> None:
    edge = GatewayProcess(tmp_path, {})
    edge.file.write_text(
        "site: plant\ngateway: g1\ndevices:\n  press:\n    adaptor: mqtt\n    adapter: modbsu\n"
        "    points: [{name: a}]\nsinks:\n  cloud: {type: https, url: 'ftp://x'}\n"
    )
    said = fails(edge)
    for essential in ("gateway.json:5", "adaptor", "gateway.json:6", "modbsu", "modbus", "gateway.json:9", "ftp://x"):
        assert essential in said, said


def test_text_that_is_no_yaml_is_told_with_its_line(tmp_path: Path) -> None:
    edge = GatewayProcess(tmp_path, {})
    edge.file.write_text("site: plant\ndevices: [\n")
    said = fails(edge)
    assert f"{edge.file}:3: no valid YAML" in said
    assert "hint: a bracket or a quote is not closed" in said


def test_a_file_that_is_not_there(tmp_path: Path) -> None:
    edge = GatewayProcess(tmp_path, {})
    edge.file.unlink()
    said = fails(edge)
    assert str(edge.file) in said
    assert "edge-runtime config example" in said


@pytest.mark.parametrize("broken", ["bracket", "bytes", "gone"])
def test_a_file_that_breaks_leaves_the_way_to_what_worked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch, broken: str) -> None:
    """Its data are where only it has said, as with our unit of systemd: what is left of it says so still, or systemd does."""
    away = {"mode": "external", "url": f"mqtt://127.0.0.1:{free_port()}"}
    with gateway(
        tmp_path, config({"press": replay(tmp_path)}, NOWHERE, **IMPATIENT, broker=away, data_dir=str(tmp_path / "kept"))
    ) as edge:
        edge.wait("gateway_started")
        assert edge.stop() == 0
        whole = edge.file.read_text()
        if broken == "gone":
            edge.file.unlink()
        else:
            edge.file.write_bytes(whole.encode() + b"[" if broken == "bracket" else bytes(4096))
        if broken != "bracket":
            monkeypatch.setenv("STATE_DIRECTORY", str(tmp_path / "kept"))
        edge.start()
        assert edge.wait("gateway_started")["devices"] == 1
        assert edge.stop() == 0


def test_a_second_gateway_on_the_same_folder_is_refused(tmp_path: Path) -> None:
    with gateway(tmp_path, config({"press": replay(tmp_path)}, NOWHERE, **IMPATIENT)) as edge:
        edge.wait("gateway_started")
        said = fails(edge)
        assert "another gateway is running" in said
        assert str(edge.data_dir) in said
        assert "data_dir" in said.splitlines()[-1]
        assert edge.stop() == 0


def test_a_missing_extra_is_named_and_holds_up_its_own_device_and_pipeline_only(tmp_path: Path) -> None:
    plc = {"adapter": "modbus", "options": {"host": "127.0.0.1", "port": 1}, "points": [{"name": "a", "address": 0}]}
    pipelines = {
        "all": {"device": "press"},
        "plc": {"device": "plc"},
        "anomaly": {"device": "press", "window": {"count": 1}, "model": "shuttle-anomaly"},
    }
    blocked = ("pymodbus", "ai_edge_litert", "tflite_runtime", "openvino")
    with receiver(tmp_path) as far_end:
        sinks = {"cloud": {"type": "https", "url": far_end.url}}
        settings = config({"press": replay(tmp_path), "plc": plc}, sinks, pipelines=pipelines)
        with gateway(tmp_path, settings, without=blocked) as edge:
            said = edge.wait("source_unusable", device="plc")
            assert "edge-runtime[modbus]" in said["cause"] + said["hint"], said
            said = edge.wait("pipeline_stopped", pipeline="anomaly")
            assert "edge-runtime[litert]" in said["cause"] + said["hint"], said
            edge.delivers(far_end, "all", 50)
            assert not edge.ended()


def _no_manifest(_folder: Path) -> None:
    pass


def _other_bytes(folder: Path) -> None:
    shutil.copytree(SHIPPED, folder)
    for file in ("fp32.tflite", "int8.tflite"):
        (folder / file).write_bytes(b"TFL3" + bytes(1_000))


def _no_yaml(folder: Path) -> None:
    folder.mkdir(parents=True)
    (folder / "manifest.yaml").write_text("name: [\n")


@pytest.mark.parametrize(
    ("spoil", "essentials"),
    [
        (_no_manifest, ["no model 'mine'", "there are", "shuttle-anomaly"]),
        (_other_bytes, ["tflite", "sha256", "copy it again"]),
        (_no_yaml, ["manifest.yaml"]),
    ],
)
def test_an_unreadable_model_is_told_and_stops_its_own_pipeline_only(tmp_path: Path, spoil: Any, essentials: list[str]) -> None:
    spoil(tmp_path / "models" / "mine")
    _stops_only_its_pipeline(tmp_path, {"device": "press", "window": {"count": 1}, "model": "mine"}, essentials)


@pytest.mark.parametrize(
    ("settings", "essentials"),
    [
        ({"window": {"count": 64}}, ["shuttle-anomaly", "windows of 1", "pipelines.anomaly.window.count is 64"]),
        (
            {"window": {"count": 1}, "points": ["f1", "f2"]},
            ["takes 9 points", "(f1, f2)", "pipelines.anomaly.points"],
        ),
    ],
)
def test_a_model_of_another_shape_is_told(tmp_path: Path, settings: dict[str, Any], essentials: list[str]) -> None:
    _stops_only_its_pipeline(tmp_path, {"device": "press", "model": "shuttle-anomaly", **settings}, essentials)


def _stops_only_its_pipeline(folder: Path, bad: dict[str, Any], essentials: list[str]) -> None:
    with receiver(folder) as far_end:
        pipelines = {"all": {"device": "press"}, "anomaly": bad}
        sinks = {"cloud": {"type": "https", "url": far_end.url}}
        with gateway(folder, config({"press": replay(folder)}, sinks, pipelines=pipelines)) as edge:
            said = edge.wait("pipeline_stopped", pipeline="anomaly")
            edge.delivers(far_end, "all", 50)
            assert not edge.ended()
    for essential in essentials:
        assert essential in said["cause"] + said["hint"], said


def test_a_broker_that_refuses_us_is_told_and_asked_again(tmp_path: Path) -> None:
    """Source and sink. Then the broker lets us in, and everything comes."""
    with mosquitto(tmp_path, **PATIENT, allow_anonymous="false") as strict, receiver(tmp_path) as far_end:
        url = strict.url.replace("//", "//me:wrong@")
        far_sink = {"type": "mqtt", "url": url, "receiver": "plant"}
        settings = config({"press": press(url)}, {"site": far_sink, "cloud": {"type": "https", "url": far_end.url}})
        with gateway(tmp_path, settings) as edge:
            for said in (edge.wait("source_waiting", device="press"), edge.wait("sink_away", sink="site")):
                assert f"127.0.0.1:{strict.port}" in said["cause"], said
                assert "authori" in said["cause"] or "password" in said["cause"], said
                assert "password" in said["hint"], said
            strict.stop()
            conf = Path(strict.command[-1])
            conf.write_text(conf.read_text().replace("allow_anonymous false", "allow_anonymous true"))
            strict.start()
            edge.wait("source_connected")
            with publisher(strict, rate=0, count=100) as machine:
                accepted = machine.finish()
            edge.delivers(far_end, "all", 100)
            assert not edge.ended()
        assert_once(far_end, accepted)


@contextmanager
def strange_server(port: int, status: int, body: bytes) -> Iterator[list[str]]:
    """Answers every request with this. Yields the paths that were asked for."""
    asked: list[str] = []

    class Handler(BaseHTTPRequestHandler):
        def do_POST(self) -> None:
            asked.append(self.path)
            self.rfile.read(int(self.headers.get("Content-Length", 0)))
            self.send_response(status)
            self.send_header("Content-Length", str(len(body)))
            self.end_headers()
            self.wfile.write(body)

        def log_message(self, *_: Any) -> None:
            pass

    with ThreadingHTTPServer(("127.0.0.1", port), Handler) as server:
        thread = threading.Thread(target=server.serve_forever, args=(0.01,))
        thread.start()
        try:
            yield asked
        finally:
            server.shutdown()
            thread.join()


@pytest.mark.parametrize(
    ("status", "body", "essential"),
    [
        (500, b"out of order", "500"),
        (200, b"<html>Welcome to the hotel's wireless network</html>", "hotel"),
        (200, b"", "says nothing"),
        (400, b"no such thing", "400"),
    ],
)
def test_a_far_end_that_answers_nonsense_is_told_and_gets_everything_once_it_is_right(
    tmp_path: Path, status: int, body: bytes, essential: str
) -> None:
    far_end = ReceiverProcess(tmp_path / "records.db")
    far_end.port = free_port()
    far_end.command = [part if not part.startswith("127.0.0.1:") else f"127.0.0.1:{far_end.port}" for part in far_end.command]
    with gateway(tmp_path, config({"press": replay(tmp_path)}, {"cloud": {"type": "https", "url": far_end.url}})) as edge:
        with strange_server(far_end.port, status, body) as asked:
            until(lambda: len(asked) >= 2, "it is asked again and again")
            told = edge.wait("sink_away")
            assert far_end.url in told["cause"], told
            assert essential in told["cause"] + told["hint"], told
            assert not edge.events("sink_connected")
        far_end.start()
        try:
            edge.delivers(far_end, "all", 50)
            assert edge.stop() == 0
            assert_once(far_end, list(range(50)))
            assert far_end.stop()["declared_lost"] == 0
        finally:
            far_end.kill()
