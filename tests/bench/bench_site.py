"""The gateways of a site at work, as real processes: what a second one brings, what an idle one costs, and a worker that dies.

PYTHONPATH=tests python tests/bench/bench_site.py [throughput | idle | worker]
"""

from __future__ import annotations

import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from brokers import mosquitto
from gateways import GatewayProcess, until
from heavy import heavy_model, layers_for
from sites import committed, cpu_s, row, site, slow

TESTS = Path(__file__).parent.parent

WINDOW_S = 0.014
"""Of the model, on one core."""
ROUNDS, ROUND_S, WARM_UP_S = 4, 6.0, 1.5
GATEWAYS, IDLE_S = 5, 20.0


def main() -> list[dict[str, Any]]:
    return [*throughput(), *idle(), *worker()]


# --- a second gateway ------------------------------------------------------------------------------------------------


def throughput() -> list[dict[str, Any]]:
    """Windows a second that the first gateway commits, alone and with a second one that only offers the model; in turns. Each is
    pinned to a core of its own. `bare`: the engine alone, one process on each core against one."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(mosquitto(folder))
        plant = stack.enter_context(site(folder))
        layers = round(layers_for(WINDOW_S), -1)
        model = heavy_model(layers).name
        shared = {"broker": {"mode": "external", "url": broker.url}}
        first = plant.add(
            "g1",
            core=0,
            devices={"press": slow(folder, 1_000, rate_hz=2.5 / WINDOW_S, loop=True)},
            pipelines={"heavy": {"device": "press", "window": {"count": 1}, "model": model, "queue_max": 200}},
            sinks={"local": {"type": "mqtt", "url": "local"}},
            **shared,
        )
        second = plant.add("g2", core=1, mesh={"offers": [model]}, **shared)
        bare = statistics.median(_bare(layers, 0, 1) / _bare(layers, 0) for _ in range(ROUNDS))
        first.start()
        first.wait("model_loaded")
        pairs = []
        for _ in range(ROUNDS):
            alone = _rate(first)
            second.start()
            second.wait("model_offered")
            until(lambda: plant.known("g1"), "the second one is known")
            pairs.append((alone, _rate(first)))
            second.end()
        ratio = statistics.median(together / alone for alone, together in pairs)
        took_ms = 1000 / statistics.median(alone for alone, _ in pairs)
        return [
            row("one window, one gateway alone", "ms", took_ms, ">= 10"),
            row("throughput of two gateways / of one (bare: the engine alone)", "x", ratio, ">= 1.7", bare),
        ]


def _rate(gateway: GatewayProcess) -> float:
    """Windows a second that it commits, from one commit to another: many windows are committed at once."""
    time.sleep(WARM_UP_S)
    began, before = _next_commit(gateway)
    time.sleep(ROUND_S)
    ended, after = _next_commit(gateway)
    return (after - before) / (ended - began)


def _next_commit(gateway: GatewayProcess) -> tuple[float, int]:
    before = committed(gateway)
    until(lambda: committed(gateway) > before, "windows are committed")
    return time.monotonic(), committed(gateway)


def _bare(layers: int, *cores: int) -> float:
    """Windows a second of the engine, a process on each core."""
    code = f"import heavy; print(heavy.windows_per_s({layers}, {ROUND_S / 3}))"
    running = [
        subprocess.Popen(["taskset", "-c", str(core), sys.executable, "-c", code], stdout=subprocess.PIPE, cwd=TESTS)
        for core in cores
    ]
    return sum(float(each.communicate()[0]) for each in running)


# --- nothing to do ---------------------------------------------------------------------------------------------------


def idle() -> list[dict[str, Any]]:
    """Part of one core that a gateway of five takes while nothing comes in, the one that hosts the broker and the others; without
    an engine, and where each has a model loaded and offers it."""
    return [*_idle("no engine", {}), *_idle("a model loaded and offered", {"window": {"count": 1}, "model": heavy_model(1).name})]


def _idle(what: str, pipeline: dict[str, Any]) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        plant = stack.enter_context(site(Path(stack.enter_context(tempfile.TemporaryDirectory()))))
        for number in range(GATEWAYS):
            each = plant.add(
                f"g{number + 1}",
                pipelines={"all": {"device": "press", **pipeline}},
                sinks={"local": {"type": "mqtt", "url": "local"}},
            )
            each.start()
            each.wait("sink_connected")
            if pipeline:
                each.wait("model_loaded")
                each.wait("model_offered")
        plant.meshed()
        time.sleep(WARM_UP_S)
        before = {name: cpu_s(each) for name, each in plant.gateways.items()}
        time.sleep(IDLE_S)
        used = {name: 100 * (cpu_s(each) - before[name]) / IDLE_S for name, each in plant.gateways.items()}
        host = used.pop(plant.host())
        return [
            row(f"idle gateway of five, {what}", "% of a core", max(used.values()), "<= 2"),
            row(f"idle gateway of five that hosts the broker, {what}", "% of a core", host, "<= 2"),
        ]


def worker() -> list[dict[str, Any]]:
    return []


if __name__ == "__main__":
    chosen = [globals()[name] for name in sys.argv[1:]] or [main]
    for part in chosen:
        for each in part():
            print(each)
