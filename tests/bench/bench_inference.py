"""What a window costs more through Model.infer than the bare interpreter call on a tensor that is ready: p50, in one run.

python tests/bench/bench_inference.py
"""

from __future__ import annotations

import asyncio
import statistics
import time
from collections.abc import Callable
from typing import Any

import numpy as np
import openvino
from ai_edge_litert.interpreter import Interpreter

from edge_runtime.board.system import SystemClock, ThreadWorker
from edge_runtime.inference import store
from edge_runtime.inference.engine_openvino import OpenvinoEngine
from edge_runtime.inference.engine_tflite import TfliteEngine
from edge_runtime.inference.model import Model, open_model
from edge_runtime.testing.engine import FaultyEngine

ROUNDS = 40
RUNS = 250
ALLOWED_US = 100.0
FOLDER = store.find("shuttle-anomaly", [])


def main() -> list[dict[str, Any]]:
    """p50 in microseconds; the difference is what counts."""
    return asyncio.run(_main())


async def _main() -> list[dict[str, Any]]:
    clock = SystemClock()

    async def opened(engine: str, accelerator: str = "cpu", **more: Any) -> Model:
        return await open_model("shuttle-anomaly", [], engine, accelerator, lambda: ThreadWorker("bench"), clock, **more)

    tflite, openvino_model = await opened("tflite"), await opened("openvino")
    hop = await opened("auto", "npu", available=[FaultyEngine(TfliteEngine(), "npu")])
    rows = [
        await _compare("autoencoder, LiteRT, inline", tflite, _bare_tflite()),
        await _compare("autoencoder, OpenVINO, inline", openvino_model, _bare_openvino()),
        await _compare("autoencoder, LiteRT, on a worker thread", hop, _bare_tflite()),
    ]
    for model in (tflite, openvino_model, hop):
        model.close()
    for engine in (TfliteEngine(), OpenvinoEngine()):
        started = clock.mono_ns()
        model = await opened(engine.name)
        rows.append({"name": f"inference: open_model, {engine.name}", "unit": "ms", "ours": (clock.mono_ns() - started) / 1e6})
        model.close()
    return rows


async def _compare(name: str, model: Model, bare: Callable[[], object]) -> dict[str, Any]:
    """In turns, so that what disturbs the machine disturbs both."""
    window = np.array([[50.0, 21.0, 77.0, 0.0, 28.0, 0.0, 27.0, 48.0, 22.0]])
    ours: list[int] = []
    plain: list[int] = []
    for turn in range(ROUNDS):
        for _ in range(RUNS):
            before = time.perf_counter_ns()
            await model.infer(window)
            ours.append(time.perf_counter_ns() - before)
        for _ in range(RUNS):
            before = time.perf_counter_ns()
            bare()
            plain.append(time.perf_counter_ns() - before)
        if turn == 0:  # warm-up
            ours.clear()
            plain.clear()
    ours_us, bare_us = statistics.median(ours) / 1e3, statistics.median(plain) / 1e3
    target = f"difference <= {ALLOWED_US:g}" if model.inline else ""
    return {
        "name": f"inference: {name}",
        "unit": "us",
        "ours": ours_us,
        "bare": bare_us,
        "ratio": ours_us / bare_us,
        "target": target,
    }


def _bare_tflite() -> Callable[[], object]:
    interpreter = Interpreter(str(FOLDER / "fp32.tflite"), num_threads=1)
    interpreter.allocate_tensors()
    index_in, index_out = interpreter.get_input_details()[0]["index"], interpreter.get_output_details()[0]["index"]
    tensor = np.zeros((1, 9), np.float32)

    def run() -> object:
        interpreter.set_tensor(index_in, tensor)
        interpreter.invoke()
        return interpreter.get_tensor(index_out)

    return run


def _bare_openvino() -> Callable[[], object]:
    core = openvino.Core()
    compiled = core.compile_model(FOLDER / "fp32.xml", "CPU", {"PERFORMANCE_HINT": "LATENCY", "INFERENCE_NUM_THREADS": 1})
    request = compiled.create_infer_request()
    request.set_input_tensor(0, openvino.Tensor(np.zeros((1, 9), np.float32)))
    return lambda: request.infer()


if __name__ == "__main__":
    for line in main():
        print("  ".join(f"{key} {value:.1f}" if isinstance(value, float) else str(value) for key, value in line.items()))
