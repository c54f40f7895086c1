"""Canary values through two gateways that share work: windows of a slow one go to a fast one, but none of class `gateway`."""

from __future__ import annotations

import sys
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from brokers import Broker, mosquitto
from canaries import CLASSES, end, everything, found, needles, number, payloads
from gateways import GatewayProcess, until

MODEL = "shuttle-anomaly"
INFER_MS = 60
"""Of the slow gateway: longer than the next window needs to come."""
ROWS = 400
ENOUGH = 20


def device(folder: Path, privacy: str) -> dict[str, Any]:
    lines = [",".join(f"f{n}" for n in range(1, 10))]
    lines += [",".join([repr(number(privacy, row % 40)), *["0"] * 8]) for row in range(ROWS)]
    (folder / f"{privacy}.csv").write_text("\n".join(lines) + "\n")
    points = [{"name": f"f{n}", "column": f"f{n}"} for n in range(1, 10)]
    return {"adapter": "replay", "options": {"file": f"{privacy}.csv", "rate_hz": 25, "loop": True}, "points": points}


def settings(broker: Broker, name: str, **more: Any) -> dict[str, Any]:
    return {
        "site": "plant", "gateway": name, "broker": {"mode": "external", "url": broker.url},
        "log": {"level": "debug", "format": "json"}, **more,
    }  # fmt: skip


def owner(folder: Path, broker: Broker) -> GatewayProcess:
    """On a slow board: it gives away what it may."""
    folder.mkdir()
    windows = {"window": {"count": 1}, "model": MODEL}
    made = GatewayProcess(
        folder,
        settings(
            broker,
            "owner",
            mesh={"discovery": "off", "accept_tasks": False},
            devices={privacy: device(folder, privacy) for privacy in CLASSES},
            pipelines={privacy: {"device": privacy, "privacy": privacy, **windows} for privacy in CLASSES},
            sinks={},
        ),
    )
    made.command = [sys.executable, "-m", "edge_runtime.testing.slow", str(made.file), "--infer-ms", str(INFER_MS)]
    return made


def test_a_window_that_stays_is_never_sent(tmp_path: Path) -> None:
    """All three pipelines are the same but for their class, and all of them are late without help."""
    with ExitStack() as stack:
        broker = stack.enter_context(mosquitto(tmp_path))
        traffic = stack.enter_context(everything(broker, tmp_path))
        peer = GatewayProcess(tmp_path / "peer", settings(broker, "peer", mesh={"discovery": "off", "offers": [MODEL]}))
        mine = owner(tmp_path / "owner", broker)
        for each in (peer, mine):
            each.start()
            stack.callback(each.kill)
        until(lambda: traffic.read_bytes().count(b" edge/plant/gw/owner/reply/peer") >= ENOUGH, "answers of the peer", 60)
        assert mine.stop() == peer.stop() == 0
        end(broker, traffic)
    caught = payloads(traffic)
    tasks = [
        payload for payload, topic in zip(caught[::2], caught[1::2], strict=True) if topic == b"edge/plant/gw/peer/task/owner"
    ]
    for privacy in ("site", "cloud"):
        assert set(needles(privacy)) & set(found(privacy, tasks)), f"windows of class {privacy} were to be sent"
    assert not found("gateway", caught), "a window of class gateway was sent"
    for each in (mine, peer):
        log = [each.log.read_bytes()]
        assert not [privacy for privacy in CLASSES if found(privacy, log)], "a value in the log"
