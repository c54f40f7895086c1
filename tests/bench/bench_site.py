"""The gateways of a site at work, as real processes: what a second one brings, what an idle one costs, and a worker that dies.

PYTHONPATH=tests python tests/bench/bench_site.py [throughput | idle | worker]
"""

from __future__ import annotations

import json
import statistics
import subprocess
import sys
import tempfile
import time
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import paho.mqtt.client as mqtt
from brokers import Broker, mosquitto
from gateways import GatewayProcess, until
from heavy import heavy_model, layers_for
from sites import committed, cpu_s, row, site, slow

from edge_runtime.mesh.routing import Reason

TESTS = Path(__file__).parent.parent

WINDOW_S = 0.014
"""Of the model, on one core."""
ROUNDS, ROUND_S, WARM_UP_S = 4, 6.0, 1.5
GATEWAYS, IDLE_S = 5, 20.0
TASKS_PER_S, KILLS, KILL_EVERY_S = 100.0, 8, 3.0


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


# --- a worker that dies ----------------------------------------------------------------------------------------------


def worker() -> list[dict[str, Any]]:
    """A gateway on battery gives its 100 windows/s to two workers; one is killed (-9), KILLS times. A window takes from the
    instant of its sample to its result at a subscriber; whatever was decided again says so in its result."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        broker = stack.enter_context(mosquitto(folder))
        plant = stack.enter_context(site(folder))
        model, shared = heavy_model(8).name, {"broker": {"mode": "external", "url": broker.url}}
        workers = [plant.add(f"w{number}", mesh={"offers": [model]}, **shared) for number in (1, 2)]
        asker = plant.add(
            "asker",
            mesh={"power": "battery"},
            devices={"press": slow(folder, 10_000, rate_hz=TASKS_PER_S, message_ids=True)},
            pipelines={"heavy": {"device": "press", "window": {"count": 1}, "model": model}},
            sinks={"local": {"type": "mqtt", "url": "local"}},
            **shared,
        )
        results = Results(f"edge/{plant.name}/gw/asker/result/heavy", broker)
        stack.callback(results.close)
        for each in (*workers, asker):
            each.start()
        for each in workers:
            each.wait("model_offered")
        plant.meshed()
        killed = []
        for number in range(KILLS):
            time.sleep(KILL_EVERY_S / 2)
            killed.append(time.time())
            workers[number % 2].kill()
            time.sleep(KILL_EVERY_S / 2)
            workers[number % 2].start()
            workers[number % 2].wait("model_offered")
            plant.meshed()
        time.sleep(1.0)
        assert asker.stop() == 0
        made = committed(asker)
        until(lambda: len(results.got) >= made, f"{made} results")
        return _told(results.got, killed, made)


def _told(got: dict[int, tuple[float, float, str]], killed: list[float], made: int) -> list[dict[str, Any]]:
    hit = [at - sampled for sampled, at, _ in got.values() if any(begin - 1 < sampled < begin + 2 for begin in killed)]
    again = [at - sampled for sampled, at, placed in got.values() if Reason.REISSUED in placed]
    usual = statistics.median(at - sampled for sampled, at, _ in got.values())
    away = sum("here:" not in placed for _, _, placed in got.values()) / len(got)
    what = f"worker killed -9 at {TASKS_PER_S:.0f} tasks/s, {len(killed)} times"
    print(f"{what}: {made} windows, {away:.0%} by peers, median {1000 * usual:.1f} ms, {len(again)} re-issued", file=sys.stderr)
    return [
        row(f"{what}: windows without a result", "windows", made - len(got), "<= 0"),
        row(f"{what}: the slowest of {len(again)} re-issued windows", "s", max(again, default=float("nan")), "<= 1"),
        row(f"{what}: the slowest of all windows around the kill", "s", max(hit), "<= 1"),
    ]


class Results:
    """What a subscriber hears: seq of the result -> when its sample was taken, when it came, who computed it and why."""

    def __init__(self, topic: str, broker: Broker) -> None:
        self.got: dict[int, tuple[float, float, str]] = {}
        self._client = mqtt.Client(mqtt.CallbackAPIVersion.VERSION2)
        self._client.on_message = self._take
        self._client.on_connect = lambda client, *_: client.subscribe(topic, 1)
        self._client.connect("127.0.0.1", broker.port)
        self._client.loop_start()

    def _take(self, _client: Any, _data: Any, message: mqtt.MQTTMessage) -> None:
        now, said = time.time(), json.loads(message.payload)
        seq = int(said["id"].rpartition("/")[2])
        self.got[seq] = (said["stamp"][2] / 1e9, now, said["body"].get("placed", ""))

    def close(self) -> None:
        self._client.loop_stop()
        self._client.disconnect()


if __name__ == "__main__":
    chosen = [globals()[name] for name in sys.argv[1:]] or [main]
    for part in chosen:
        for each in part():
            print(each)
