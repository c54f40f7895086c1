"""Prometheus' text format 0.0.4 (pure): https://prometheus.io/docs/instrumenting/exposition_formats/"""

from __future__ import annotations

import bisect
import math
from collections.abc import Callable, Iterable, Iterator, Sequence
from dataclasses import dataclass, field
from typing import Generic, Literal, TypeVar

CONTENT_TYPE = "text/plain; version=0.0.4; charset=utf-8"

T = TypeVar("T")


@dataclass
class Histogram:
    """`bounds`: upper ones, rising, without +Inf."""

    bounds: tuple[float, ...]
    counts: list[int] = field(init=False)
    total: float = 0.0

    def __post_init__(self) -> None:
        self.counts = [0] * (len(self.bounds) + 1)

    def observe(self, value: float) -> None:
        self.counts[bisect.bisect_left(self.bounds, value)] += 1
        self.total += value


Value = float | Histogram
Rows = Iterable[tuple[tuple[str, ...], Value]]
"""Values of the labels, in the order of their names, and what there is for them."""


@dataclass(frozen=True)
class Metric(Generic[T]):
    """One line of the table: what it is, and how it is read from what is seen. `read` gives nothing where there is nothing to
    say; then it is left out."""

    name: str
    kind: Literal["counter", "gauge", "histogram"]
    labels: tuple[str, ...]
    help: str
    read: Callable[[T], Rows]


def render(metrics: Iterable[Metric[T]], seen: T) -> bytes:
    """A whole page."""
    return "".join(line + "\n" for metric in metrics for line in _lines(metric, seen)).encode()


def _lines(metric: Metric[T], seen: T) -> Iterator[str]:
    rows = list(metric.read(seen))
    if not rows:
        return
    yield f"# HELP {metric.name} {_escaped(metric.help)}"
    yield f"# TYPE {metric.name} {metric.kind}"
    for labels, value in rows:
        pairs = list(zip(metric.labels, labels, strict=True))
        if isinstance(value, Histogram):
            yield from _histogram(metric.name, pairs, value)
        else:
            yield f"{metric.name}{_labels(pairs)} {_number(value)}"


def _histogram(name: str, pairs: Sequence[tuple[str, str]], value: Histogram) -> Iterator[str]:
    count = 0
    for bound, more in zip((*value.bounds, math.inf), value.counts, strict=True):
        count += more
        yield f"{name}_bucket{_labels([*pairs, ('le', _number(bound))])} {count}"
    yield f"{name}_sum{_labels(pairs)} {_number(value.total)}"
    yield f"{name}_count{_labels(pairs)} {count}"


def _labels(pairs: Sequence[tuple[str, str]]) -> str:
    inside = ",".join(f'{name}="{_escaped(value, quote=True)}"' for name, value in pairs)
    return f"{{{inside}}}" if inside else ""


def _escaped(text: str, *, quote: bool = False) -> str:
    text = text.replace("\\", "\\\\").replace("\n", "\\n")
    return text.replace('"', '\\"') if quote else text


def _number(value: float) -> str:
    if math.isinf(value):
        return "+Inf" if value > 0 else "-Inf"
    if math.isnan(value):
        return "NaN"
    return str(int(value)) if isinstance(value, bool | int) else repr(float(value))
