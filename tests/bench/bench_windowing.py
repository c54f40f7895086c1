"""Windowing: samples a second on one core, 9 points, windows of 64 sliding by 16 (and others). The goal is 10,000."""

from __future__ import annotations

from time import perf_counter
from typing import Any

from edge_runtime.config import Window
from edge_runtime.pipeline.windowing import Windowing
from edge_runtime.records import Sample, Stamp

SAMPLES = 200_000
GOAL = 10_000
POINTS = 9
CASES: dict[str, dict[str, Any]] = {
    "count 64 step 16": {"count": 64, "step": 16},
    "count 64 step 16, hold, 10 % bad": {"count": 64, "step": 16, "bad": "hold", "filled_max": 64},
    "count 1": {"count": 1},
    "1 s step 0.25 s of 64 Hz": {"length_s": 1.0, "step_s": 0.25},
}


def samples(bad_every: int) -> list[Sample]:
    """64 samples a second, floats; each `bad_every`-th has one value that is bad."""
    period_ns = 10**9 // 64
    rows: list[Sample] = []
    for n in range(SAMPLES):
        values: list[float | None] = [n * 0.5 + point for point in range(POINTS)]
        if bad_every and n % bad_every == 1:
            values[3] = None
        rows.append(Sample("press", Stamp("boot", n * period_ns, n * period_ns, True), tuple(values), row=n + 1))
    return rows


def main() -> list[dict[str, Any]]:
    table = []
    for name, spec in CASES.items():
        stream = samples(10 if "bad" in name else 0)
        windowing = Windowing(Window.model_validate(spec), [f"p{n}" for n in range(POINTS)], range(POINTS))
        windows = 0
        began = perf_counter()
        for sample in stream:
            windows += len(windowing.push(sample))
        rate = SAMPLES / (perf_counter() - began)
        table.append({"name": f"windowing: {name}", "unit": "samples/s", "ours": round(rate), "target": f">= {GOAL}"})
        assert windows
    return table


if __name__ == "__main__":
    for row in main():
        print(row)
