"""The way of one result through the logs of two gateways and a receiver, as somebody would look for it: grep."""

from __future__ import annotations

import json
import sys
from pathlib import Path
from typing import Any

from brokers import Broker, mosquitto
from gateways import GatewayProcess, until
from mesh_site import MODEL, write_rows
from receivers import ReceiverProcess, receiver

ROWS = 8


def member(folder: Path, name: str, broker: Broker, **more: Any) -> GatewayProcess:
    settings = {
        "site": "plant",
        "gateway": name,
        "broker": {"mode": "external", "url": broker.url},
        "mesh": {"discovery": "off", "offers": [MODEL]},
        "log": {"level": "debug", "format": "json"},
        **more,
    }
    return GatewayProcess(folder / name, settings)


def press(folder: Path, far_end: ReceiverProcess) -> dict[str, Any]:
    """A slow gateway with so much to do that its neighbour has to help."""
    names = [f"f{n + 1}" for n in range(9)]
    points = [{"name": name, "column": name} for name in names]
    file = write_rows(folder / "rows.csv", ROWS)
    options = {"file": str(file), "rate_hz": 5.0, "message_ids": True}
    rule = {"name": "odd", "output": "score", "above": -1}
    wear = {"device": "press", "window": {"count": 1}, "model": MODEL, "engine": "tflite", "rules": [rule], "deadline_s": 1.5}
    return {
        "devices": {"press": {"adapter": "replay", "options": options, "points": points}},
        "pipelines": {"wear": wear},
        "sinks": {"cloud": {"type": "https", "url": far_end.url}},
    }


def grep(word: str, *logs: Path) -> list[dict[str, Any]]:
    lines = [line for log in logs for line in log.read_text().splitlines() if word in line]
    return [json.loads(line) for line in lines]


def test_one_word_finds_the_whole_story(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker, receiver(tmp_path, "--trace") as far_end:
        helper = member(tmp_path, "press-2", broker)
        owner = member(tmp_path, "press-1", broker, **press(tmp_path, far_end))
        owner.command = [sys.executable, "-m", "edge_runtime.testing.slow", str(owner.file), "--infer-ms", "900"]
        try:
            helper.start()
            helper.wait("gateway_started")
            owner.start()
            owner.delivers(far_end, "wear", ROWS, 40.0)
            until(lambda: owner.events("task_over", how="done"), "a window that press-2 has computed")
            assert owner.stop() == 0
            assert helper.stop() == 0
        finally:
            owner.end()
            helper.end()
    helped = next(line["result"] for line in grep("task_over", owner.log) if line["how"] == "done")
    here = [line["event"] for line in grep(helped, owner.log)]
    assert [step for step in here if step not in ("event_raised",)] == [
        "window_made", "task_sent", "task_over", "result_judged", "committed", "delivered",
    ]  # fmt: skip
    assert [line["event"] for line in grep(helped, helper.log)] == ["task_received", "task_done"]
    [received] = grep(helped, far_end.log)
    [delivered] = [line for line in grep(helped, owner.log) if line["event"] == "delivered"]
    assert [received[key] for key in ("lane", "epoch", "seq")] == [delivered[key] for key in ("lane", "epoch", "seq")]

    raised = next(line for line in grep("event_raised", owner.log))
    alarm = [line["event"] for line in grep(raised["event_id"], owner.log)]
    assert alarm == ["event_raised", "committed", "delivered"]
    made = next(line for line in grep("window_made", owner.log) if line["result"] == raised["result"])
    assert [line["event"] for line in grep(made["first"], owner.log)] == ["sample_taken", "window_made"]
    assert _shape([*_sample_of(helped, owner.log), *grep(helped, owner.log, helper.log, far_end.log)]) == _shape(_documented())


def _sample_of(result: str, log: Path) -> list[dict[str, Any]]:
    [made] = [line for line in grep(result, log) if line["event"] == "window_made"]
    return [line for line in grep(made["last"], log) if line["event"] == "sample_taken"]


def _documented() -> list[dict[str, Any]]:
    """The example that people read."""
    text = (Path(__file__).parents[2] / "docs" / "logs.md").read_text()
    return [json.loads(line) for line in text.splitlines() if line.startswith("    {")]


def _shape(story: list[dict[str, Any]]) -> set[tuple[str, ...]]:
    """Who says what, with which words; an alarm may be raised or not."""
    said = [line for line in story if not line["event"].startswith("event_")]
    return {(line["gateway"], line["event"], *sorted(line.keys() - {"level", "timestamp"})) for line in said}
