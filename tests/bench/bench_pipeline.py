"""What a window costs from the sample to its records, ready to commit, over the bare interpreter call: p50, in one run; and how
many samples a second a whole pipeline takes on one core (the goal is 10,000). No disk: the store takes everything at once.

python tests/bench/bench_pipeline.py
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable, Sequence
from typing import Any

import numpy as np
import structlog
from ai_edge_litert.interpreter import Interpreter

from edge_runtime import config
from edge_runtime.adapter import Point
from edge_runtime.board.system import SystemClock, SystemDice, ThreadWorker
from edge_runtime.inference import store as models
from edge_runtime.inference.model import open_model
from edge_runtime.pipeline.pipeline import Pipeline
from edge_runtime.records import Draft, Sample, Stamp
from edge_runtime.sources.reporting import Reporter

ROUNDS, RUNS = 40, 250
SAMPLES = 50_000
QUEUED = 250
ALLOWED_US = 100.0
GOAL = 10_000
FOLDER = models.find("shuttle-anomaly", [])
POINTS = [f"f{n + 1}" for n in range(9)]
ROW = (50.0, 21.0, 77.0, 0.0, 28.0, 0.0, 27.0, 48.0, 22.0)
MODELLED: dict[str, Any] = {
    "device": "press",
    "window": {"count": 1},
    "model": "shuttle-anomaly",
    "engine": "tflite",
    "rules": [{"name": "unusual", "output": "score", "above": "model"}],
}
CASES: dict[str, dict[str, Any]] = {
    "count 64 step 16, statistics": {"device": "press", "window": {"count": 64, "step": 16}},
    "count 1, autoencoder, a rule": MODELLED,
    "forwarded": {"device": "press"},
}


class NoDisk:
    """Takes everything at once."""

    def __init__(self) -> None:
        self.taken = 0

    def listen(self) -> asyncio.Event:
        return asyncio.Event()

    def journal_head(self, device: str) -> int:
        return 0

    async def position(self, pipeline: str, device: str) -> None:
        return None

    async def commit(self, drafts: Sequence[Draft], position: object = None) -> None:
        self.taken += len(drafts)


def pipeline(settings: dict[str, Any], disk: NoDisk) -> Pipeline:
    whole = config.Pipeline.model_validate(settings | {"queue_max": 10_000})
    clock: Any = SystemClock()
    store: Any = disk
    quiet = structlog.wrap_logger(None, processors=[_drop])

    async def opened() -> Any:
        if whole.model is None:
            return None
        return await open_model(whole.model, [], whole.engine, "cpu", lambda: ThreadWorker("bench"), clock)

    return Pipeline(
        "p", whole, POINTS, journaled=False, open_model=opened, store=store,
        reporter=Reporter([Point(name=name) for name in POINTS]), dice=SystemDice(), log=quiet, identity="site/gateway",
    )  # fmt: skip


def sample(n: int) -> Sample:
    return Sample(
        "press", Stamp("0123456789abcdef0123456789abcdef", n * 50_000_000, 10**18 + n, True), (ROW[0] + n % 7, *ROW[1:])
    )


def main() -> list[dict[str, Any]]:
    """name, ours, bare, ratio; times in microseconds, rates in samples a second."""
    return [asyncio.run(_window()), *(asyncio.run(_rate(name, settings)) for name, settings in CASES.items())]


async def _window() -> dict[str, Any]:
    """In turns, so that what disturbs the machine disturbs both."""
    ours: list[int] = []
    plain: list[int] = []
    under_test, bare, n = pipeline(MODELLED, NoDisk()), _bare(), 0
    await under_test.prepare()
    await under_test._model.open()
    for turn in range(ROUNDS):
        for _ in range(RUNS):
            samples, n = [sample(n)], n + 1
            before = time.perf_counter_ns()
            await under_test._handle(samples)
            ours.append(time.perf_counter_ns() - before)
        for _ in range(RUNS):
            before = time.perf_counter_ns()
            bare()
            plain.append(time.perf_counter_ns() - before)
        if turn == 0:  # warm-up
            ours.clear()
            plain.clear()
    ours_us, bare_us = statistics.median(ours) / 1e3, statistics.median(plain) / 1e3
    name = "pipeline, sample to records ready to commit, autoencoder and a rule (us)"
    return {
        "name": name, "ours": ours_us, "bare": bare_us, "difference": ours_us - bare_us, "ratio": bare_us / ours_us,
        "allowed": ALLOWED_US,
    }  # fmt: skip


async def _rate(name: str, settings: dict[str, Any]) -> dict[str, Any]:
    disk = NoDisk()
    under_test = pipeline(settings, disk)
    await under_test.prepare()
    running = asyncio.create_task(under_test.run())
    under_test.offer([sample(0)])
    await under_test.finish()
    stream = [sample(n) for n in range(1, SAMPLES)]
    began = time.perf_counter()
    for first in range(0, SAMPLES, QUEUED):
        under_test.offer(stream[first : first + QUEUED])
        await under_test.finish()
    rate = SAMPLES / (time.perf_counter() - began)
    running.cancel()
    await asyncio.wait((running,))
    assert disk.taken
    assert not under_test.state.dropped
    return {"name": f"pipeline, {name} (samples/s)", "ours": round(rate), "bare": GOAL, "ratio": round(rate / GOAL, 1)}


def _bare() -> Callable[[], object]:
    interpreter = Interpreter(str(FOLDER / "fp32.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    index_in, index_out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    tensor = np.zeros((1, 9), np.float32)

    def run() -> object:
        interpreter.set_tensor(index_in, tensor)
        interpreter.invoke()
        return interpreter.get_tensor(index_out)

    return run


def _drop(_logger: Any, _method: str, _event: Any) -> Any:
    raise structlog.DropEvent


if __name__ == "__main__":
    for line in main():
        print("  ".join(f"{key} {value:.1f}" if isinstance(value, float) else str(value) for key, value in line.items()))
