"""Canary values of each privacy class go through a real gateway. Whatever leaves it is caught (all that two brokers are told, the
files of two receivers, the log at debug level) and searched for them: as text, in JSON, packed by gzip, and as the raw bytes of
a number.
"""

from __future__ import annotations

import json
import struct
import zlib
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import Broker, mosquitto
from canaries import CLASSES, ROWS, end, everything, files, found, needles, number, payloads, spoiled, word
from gateways import GatewayProcess, count, gateway, until
from receivers import ReceiverProcess

from edge_runtime import cli

# --- the site --------------------------------------------------------------------------------------------------------


def source(folder: Path, privacy: str) -> dict[str, Any]:
    """A number, a word, and now and then something that is no number."""
    lines = ["n,w,bad"]
    for row in range(ROWS):
        bad = spoiled(privacy) if row % 10 == 3 else row
        lines.append(f"{number(privacy, row)!r},{word(privacy)},{bad}")
    (folder / f"{privacy}.csv").write_text("\n".join(lines) + "\n")
    points = [
        {"name": "n", "column": "n"},
        {"name": "w", "column": "w", "type": "text"},
        {"name": "bad", "column": "bad"},
    ]
    return {"adapter": "replay", "options": {"file": f"{privacy}.csv", "message_ids": True}, "points": points}


def settings(folder: Path, local: Broker, far: Broker, plant: ReceiverProcess, cloud: ReceiverProcess) -> dict[str, Any]:
    rules = [{"name": "high", "output": "n.max", "above": 1_000}]
    pipelines: dict[str, Any] = {}
    for privacy in CLASSES:
        pipelines[f"raw-{privacy}"] = {"device": f"d-{privacy}", "privacy": privacy}
        pipelines[f"win-{privacy}"] = {
            "device": f"d-{privacy}", "privacy": privacy, "points": ["n"], "window": {"count": 2}, "rules": rules,
        }  # fmt: skip
    return {
        "site": "plant",
        "gateway": "g1",
        "log": {"level": "debug", "format": "json"},
        "broker": {"mode": "external", "url": local.url},
        "devices": {f"d-{privacy}": source(folder, privacy) for privacy in CLASSES},
        "pipelines": pipelines,
        "sinks": {
            "scada": {"type": "mqtt", "url": "local"},
            "plant": {"type": "https", "url": plant.url, "reach": "site"},
            "cloud": {"type": "https", "url": cloud.url},
            "abroad": {"type": "mqtt", "url": far.url},
            "batches": {"type": "mqtt", "url": far.url, "receiver": "far"},
        },
    }


@contextmanager
def receiving(folder: Path, name: str, *options: str, mqtt: bool = False) -> Iterator[ReceiverProcess]:
    process = ReceiverProcess(folder / f"{name}.db", "--name", name, *options, mqtt=mqtt)
    process.start()
    try:
        yield process
    finally:
        process.kill()


RECORDS = ROWS + ROWS // 2 + 1
"""Of a class: samples, results, and one alarm."""


def wait(edge: GatewayProcess, file: Path, classes: int) -> None:
    """Until a receiver has all records of so many classes."""

    def have() -> int:
        return sum(count(file, f"{kind}-{privacy}") for kind in ("raw", "win") for privacy in CLASSES)

    until(lambda: have() >= classes * RECORDS or edge.ended(), f"{classes * RECORDS} records in {file.name}")


def test_canaries_are_found_where_they_may_be_and_nowhere_else(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    with ExitStack() as stack:
        local, far = (stack.enter_context(mosquitto(tmp_path)) for _ in range(2))
        local_traffic, far_traffic = (stack.enter_context(everything(broker, tmp_path)) for broker in (local, far))
        plant, cloud = (stack.enter_context(receiving(tmp_path, name)) for name in ("plant", "cloud"))
        behind = stack.enter_context(receiving(tmp_path, "far", "--mqtt", far.url, mqtt=True))
        edge = stack.enter_context(gateway(tmp_path, settings(tmp_path, local, far, plant, cloud)))
        for each, classes in ((plant, 2), (cloud, 1), (behind, 1)):
            wait(edge, each.file, classes)
        until(lambda: local_traffic.read_bytes().count(b"/data/") >= 2 * ROWS, "the samples at the local broker")
        assert edge.stop() == 0
        for broker, traffic in ((local, local_traffic), (far, far_traffic)):
            end(broker, traffic)
        caught = {
            "local": payloads(local_traffic), "plant": files(tmp_path, "plant.db"),
            "far": payloads(far_traffic), "cloud": files(tmp_path, "cloud.db"), "behind": files(tmp_path, "far.db"),
        }  # fmt: skip
        account = {each.file.stem: each.stop()["gateways"][0] for each in (plant, cloud, behind)}
    log = [edge.log.read_bytes()]
    assert b"gateway_stopped" in log[0]
    for where, blobs in caught.items():
        assert not found("gateway", blobs), f"{where} has what never leaves"
        assert bool(found("site", blobs)) is (where in ("local", "plant")), where
        everywhere = found("cloud", blobs)
        assert set(needles("cloud")[:3]) <= set(everywhere), f"{where} lacks what it should have"
    for privacy in CLASSES:
        assert not found(privacy, log), "a value in the log"
    kept = _exported(edge, "gateway", capsys)
    assert len(kept) == RECORDS
    assert set(needles("gateway")[:3]) <= set(found("gateway", kept)), "what stays can be read here"
    for each in account.values():
        assert (each["gaps"], each["declared_lost"], each["kept_twice"]) == (0, 0, 0)
    assert "withheld: it never gets these" in _shown(edge, capsys)


def test_a_canary_that_is_there_is_found() -> None:
    """The search itself: text, JSON, gzip within something, raw numbers."""
    value = number("site", 3)
    packed = zlib.compressobj(wbits=31)
    blobs = {
        "json": json.dumps({"v": [value]}).encode(),
        "text": f"n={value:.6f}".encode(),
        "word": b"x" + word("site").encode(),
        "little": b"\1" + struct.pack("<d", value),
        "big": b"\1" + struct.pack(">d", value),
        "gzip": b"head" + packed.compress(spoiled("site").encode()) + packed.flush() + b"tail",
    }
    for what, blob in blobs.items():
        assert found("site", [blob]), what
        assert not found("gateway", [blob])


def _exported(edge: GatewayProcess, privacy: str, capsys: pytest.CaptureFixture[str]) -> list[bytes]:
    """What people on the gateway can read of a class."""
    assert cli.main(["outbox", str(edge.data_dir / "outbox.db"), "export", "--privacy", privacy]) == 0
    return capsys.readouterr().out.encode().splitlines()


def _shown(edge: GatewayProcess, capsys: pytest.CaptureFixture[str]) -> str:
    assert cli.main(["outbox", str(edge.data_dir / "outbox.db")]) == 0
    return capsys.readouterr().out
