"""What a person wants of a simulated gateway, from a threshold to all at once; and what of it no gateway may keep.

A document that breaks something does so for certain, and is known by what it makes (`harm`): so whatever comes of any two of
them together can be judged, too.
"""

from __future__ import annotations

import random
from collections.abc import Callable, Mapping
from typing import Any

from edge_runtime.config import Config
from edge_runtime.testing.process import UNMADE

SITE, NAME, MINE, ALL = "sim", "gw", "gw/gw", "group/default"
AWAY, LONELY, PLANT, SPARE = "10.9.9.9", "lonely", "plant", "spare"
"""Hosts of brokers: where there is none, one where nobody ever is, and two that are run by somebody else."""

Patch = dict[str, Any]
SINK = {"type": "https", "url": "http://127.0.0.1:1", "batch_records_max": 20}


def file(rng: random.Random) -> Patch:
    """The file on the gateway. Its mailbox, and who takes what comes from there, no document changes for good."""
    broker = rng.choice(({"mode": "hosted"}, external(PLANT)))
    return {
        "site": SITE,
        "gateway": NAME,
        "broker": broker,
        "control": {"trial_s": 20, "from_network": True},
        "devices": {
            "box": {"adapter": "mailbox", "points": [{"name": "a"}, {"name": "b"}], "backoff_s_max": 1.0},
            "plc": {"adapter": "faulty", "points": [{"name": "x"}, {"name": "y"}], "period_s": 1.0, "timeout_s": 0.2},
        },
        "pipelines": {
            "raw": {"device": "box"},
            "windows": {
                "device": "box",
                "window": {"count": 4, "step": 2},
                "rules": [{"name": "high", "output": "b.mean", "above": 3.0}],
            },
            "polled": {"device": "plc", "window": {"count": 2, "bad": "skip"}},
        },
        "sinks": {"cloud": SINK, "plant": SINK},
        "outbox": {"drain_s_max": 1},
    }


def external(host: str) -> Patch:
    return {"mode": "external", "url": f"mqtt://{host}"}


def threshold(rng: random.Random) -> Patch:
    return {"pipelines": {"windows": {"rules": {"high": {"above": rng.randrange(1, 6)}}}}}


def points(rng: random.Random) -> Patch:
    return {"devices": {"plc": {"points": {"y": rng.choice((None, {"scale": 2.0})), "z": {}}}}}


def period(rng: random.Random) -> Patch:
    return {"devices": {"plc": {"period_s": rng.choice((0.5, 2.0))}}}


def device(rng: random.Random) -> Patch:
    return {"devices": {"press": {"adapter": "faulty", "points": [{"name": "p"}]}}, "pipelines": {"press": {"device": "press"}}}


def sink(rng: random.Random) -> Patch:
    return {"sinks": {"extra": {**SINK, "batch_records_max": rng.choice((5, 50))}}}


def restarts(rng: random.Random) -> Patch:
    return {
        "pipelines": {"windows": {"queue_max": rng.choice((50, 500))}, "raw": {"queue_max": 600}},
        "sinks": {"plant": {"batch_records_max": 7}},
    }


def anew(rng: random.Random) -> Patch:
    return {"outbox": {"drain_s_max": rng.choice((0.5, 2))}}


def broker(rng: random.Random) -> Patch:
    return {"broker": rng.choice(({"mode": "hosted"}, external(PLANT), external(SPARE)))}


def everything(rng: random.Random) -> Patch:
    patch: Patch = {}
    for each in (threshold, points, device, sink, restarts, anew, broker):
        for section, change in each(rng).items():
            for name, value in change.items():
                held = patch.setdefault(section, {})
                held[name] = {**held[name], **value} if isinstance(held.get(name), dict) else value
    return patch


def broken_device(rng: random.Random) -> Patch:
    return {"devices": {"plc": {"options": {"lost": 1}}}}


def broken_and_less(rng: random.Random) -> Patch:
    """What it takes away, and brings back when it is reverted, has lost nothing."""
    return {
        "devices": {"plc": {"options": {"lost": 1}}, "box": rng.choice((None, {"backoff_s_max": 2.0}))},
        "pipelines": rng.choice(({"raw": None, "windows": None}, {"polled": {"queue_max": 30}, "raw": None, "windows": None})),
        "sinks": {"plant": None},
    }


def broken_sink(rng: random.Random) -> Patch:
    return {"sinks": {UNMADE: SINK, "plant": None}}


def bomb(rng: random.Random) -> Patch:
    return {"devices": {"plc": {"adapter": "bomb"}}}


def cut_off(rng: random.Random) -> Patch:
    return {"broker": external(AWAY)}


def cut_off_and_less(rng: random.Random) -> Patch:
    return {"broker": external(AWAY), "sinks": {"plant": None}}


def stranded(rng: random.Random) -> Patch:
    """A broker that answers, and nobody who could configure the gateway there."""
    return {"broker": external(LONELY)} | rng.choice(({}, threshold(rng)))


GOOD: Mapping[Callable[[random.Random], Patch], int] = {
    threshold: 4, points: 2, period: 1, device: 2, sink: 2, restarts: 2, anew: 2, broker: 2, everything: 2,
}  # fmt: skip
HARMFUL: Mapping[Callable[[random.Random], Patch], int] = {
    broken_device: 2, broken_and_less: 3, broken_sink: 2, bomb: 1, cut_off: 2, cut_off_and_less: 2, stranded: 2,
}  # fmt: skip
INVALID: tuple[Patch, ...] = (
    {"devices": {"plc": {"period_s": "often"}}},
    {"pipelines": {"windows": {"device": "nowhere"}}},
    {"site": "elsewhere"},
    {"broker": {"mode": "none"}},
    {"pipelines": {"windows": {"rules": {"high": {"below": "x"}}}}, "sinks": {"extra": SINK}},
    {"nothing": 1},
)


def draw(rng: random.Random) -> Patch:
    kind = rng.random()
    if kind < 0.12:
        return rng.choice(INVALID)
    table = GOOD if kind < 0.62 else HARMFUL
    return rng.choices([*table], [*table.values()])[0](rng)


def harm(settings: Config) -> str:
    """The part that cannot work with this configuration; "": all can. (Validity is another matter.)"""
    for name, each in settings.devices.items():
        taken = any(pipeline.device == name for pipeline in settings.pipelines.values())
        if taken and (each.adapter == "bomb" or each.options.get("lost") == 1):
            return f"device {name}"
    for name in settings.sinks:
        if name.startswith(UNMADE):
            return f"sink {name}"
    if settings.broker.mode == "external":
        return next((part for host, part in ((AWAY, "broker"), (LONELY, "reach")) if host in settings.broker.url), "")
    return ""


def differ(old: Config, new: Config) -> set[str]:
    """Parts that are other ones: what a trial of the new one may be taken back for. Written down again on purpose, not taken
    from control/plan.py."""
    found: set[str] = set()
    for section, kind in (("devices", "device"), ("pipelines", "pipeline"), ("sinks", "sink")):
        before, after = getattr(old, section), getattr(new, section)
        found |= {f"{kind} {name}" for name in after if before.get(name) != after[name]}
    if old.broker != new.broker:
        found |= {"broker", "mesh", "reach"}
    if old.outbox != new.outbox:
        found |= {"outbox"}
    for name, pipeline in new.pipelines.items():
        if f"device {pipeline.device}" in found:
            found.add(f"pipeline {name}")
        elif f"pipeline {name}" in found:  # its device may begin to be read by it
            found.add(f"device {pipeline.device}")
    return found
