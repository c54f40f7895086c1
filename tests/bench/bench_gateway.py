"""A whole gateway on real processes: start, latency, memory, draining, and the campaigns of which nothing may be lost.

EDGE_OUTAGE_S and EDGE_KILLS change the lengths of the campaigns (35 s, 50 kills).
"""

from __future__ import annotations

import os
import statistics
import tempfile
import time
import traceback
from collections.abc import Callable
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import campaigns
import pytest
from brokers import mosquitto
from gateways import PATIENT, GatewayProcess, assert_once, config, count, press, publisher, until, uplink, waiting
from receivers import receiver

STARTS = 7
BACKLOG = 20_000
OUTAGE_S = float(os.environ.get("EDGE_OUTAGE_S", "35"))
KILLS = int(os.environ.get("EDGE_KILLS", "50"))
SEED = int(os.environ.get("EDGE_KILL_SEED", "0")) or 20_240


def main() -> list[dict[str, Any]]:
    return [
        *_starts(),
        *_drain(),
        *_outage(),
        _campaign(f"kill -9 x {KILLS} at 500 messages/s, windows 64/16", lambda folder: campaigns.kills(folder, KILLS, SEED)),
        _campaign("receiver away behind a default mosquitto, 5,000", lambda folder: campaigns.receiver_back(folder, 5_000)),
        _campaign("old copy of the outbox put back, https", lambda folder: campaigns.old_copy(folder, "https")),
        _campaign("old copy of the outbox put back, mqtt", lambda folder: campaigns.old_copy(folder, "mqtt")),
        _campaign("disk filled and freed", campaigns.full_disk),
    ]


def _row(name: str, unit: str, ours: float, target: str = "") -> dict[str, Any]:
    return {"name": f"gateway: {name}", "unit": unit, "ours": ours, "bare": None, "ratio": None, "target": target}


def _starts() -> list[dict[str, Any]]:
    """From exec to the first sample at the far end; the machine's messages wait at its broker already. And the memory then."""
    took_s = []
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        (folder / "one").mkdir()
        broker = stack.enter_context(mosquitto(folder, **PATIENT))
        over_http = stack.enter_context(receiver(folder))
        over_mqtt = stack.enter_context(receiver(folder / "one", "--mqtt", broker.url, "--name", "plant", mqtt=True))
        sinks = {
            "cloud": {"type": "https", "url": over_http.url},
            "site": {"type": "mqtt", "url": broker.url, "receiver": "plant"},
        }
        edge = GatewayProcess(folder, config({"press": press(broker.url)}, sinks))
        stack.callback(edge.end)
        for number in range(STARTS):
            if number:  # the first one makes the session
                with publisher(broker, rate=0, count=1, first=number) as machine:
                    machine.finish()
            begin = time.monotonic()
            edge.start()
            edge.wait("source_connected")
            edge.delivers(over_http, "all", number)
            took_s.append(time.monotonic() - begin)
            edge.wait("gateway_started")
            if number < STARTS - 1:
                edge.stop()
        with publisher(broker, rate=500, count=3_000, first=STARTS) as machine:
            machine.finish()
        for far_end in (over_http, over_mqtt):
            edge.delivers(far_end, "all", STARTS - 1 + 3_000)
        return [
            _row("start to first sample at the far end", "s", statistics.median(took_s[1:]), "<= 1.5"),
            _row("resident memory, no engine, sinks mqtt and https", "MiB", edge.rss_bytes / 2**20, "<= 70"),
        ]


def _drain() -> list[dict[str, Any]]:
    """Records a second once the uplink is back, nothing else going on."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(mosquitto(folder, **PATIENT))
        far_end = stack.enter_context(receiver(folder))
        line = stack.enter_context(uplink(far_end.port))
        edge = GatewayProcess(folder, config({"press": press(broker.url)}, {"cloud": {"type": "https", "url": line.url}}))
        stack.callback(edge.end)
        line.cut()
        edge.start()
        edge.wait("source_connected")
        with publisher(broker, rate=0, count=BACKLOG) as machine:
            accepted = machine.finish()
        until(lambda: waiting(edge) == BACKLOG, "all are in the outbox")
        line.heal()
        until(lambda: count(far_end.file, "all") > 0, "the first one")
        begin, first = time.monotonic(), count(far_end.file, "all")
        edge.delivers(far_end, "all", BACKLOG)
        rate = (BACKLOG - first) / (time.monotonic() - begin)
        edge.stop()
        assert_once(far_end, accepted)
        return [_row(f"drain of a backlog of {BACKLOG:,}, https", "records/s", rate)]


def _outage() -> list[dict[str, Any]]:
    with tempfile.TemporaryDirectory() as folder:
        found = campaigns.outage(Path(folder), OUTAGE_S)
    what = f"outage of {OUTAGE_S:g} s at 200 messages/s with a kill -9"
    return [
        _row("latency source to uplink, 200 messages/s, p50", "ms", found["p50_ms"], "<= 15"),
        _row("latency source to uplink, 200 messages/s, p99", "ms", found["p99_ms"]),
        _row(f"{what}: lost or doubled", "records", 0, "<= 0"),
        _row(f"{what}: backlog drained after", "s", found["drain_s"], "<= 5"),
    ]


def _campaign(name: str, campaign: Callable[[Path], campaigns.Figures]) -> dict[str, Any]:
    """It fails when anything is lost or doubled: then there is no figure."""
    with tempfile.TemporaryDirectory() as folder:
        try:
            found = campaign(Path(folder))
        except pytest.skip.Exception as skipped:
            return _row(f"{name}: {skipped}", "records", 0) | {"verdict": "skipped"}
        except AssertionError as error:
            traceback.print_exc()
            return _row(f"{name}: {str(error).partition(chr(10))[0]}", "records", 0) | {"ours": None, "verdict": "failed"}
    told = ", ".join(f"{figure} {value:,.0f}" for figure, value in found.items())
    return _row(f"{name}: lost or doubled ({told})", "records", 0, "<= 0")


if __name__ == "__main__":
    for row in main():
        print(row)
