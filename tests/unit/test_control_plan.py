"""What restarts when a configuration changes: only what must; and what may fail because of it."""

from __future__ import annotations

import copy
from collections.abc import Iterator
from typing import Any, get_args

import pytest
from hypothesis import given
from hypothesis import strategies as st
from pydantic import BaseModel

from edge_runtime import config
from edge_runtime.adapter import Point
from edge_runtime.config import Config
from edge_runtime.control.plan import CAUSES, EFFECTS, Change, Effect, Plan, Wiring, plan

BASE: dict[str, Any] = {
    "site": "s",
    "gateway": "g",
    "broker": {"mode": "external", "url": "mqtt://127.0.0.1:1883"},
    "devices": {
        "press": {
            "adapter": "modbus",
            "options": {"port": "/dev/ttyS0"},
            "points": [{"name": "t", "unit": "Cel", "register": 1}, {"name": "p", "register": 2}],
        },
        "saw": {"adapter": "mqtt", "options": {"url": "mqtt://localhost"}, "points": [{"name": "x", "path": "$.x"}]},
        "idle": {"adapter": "replay", "points": [{"name": "y"}]},
    },
    "pipelines": {
        "wear": {
            "device": "press",
            "window": {"count": 4},
            "rules": [
                {"name": "hot", "output": "t.max", "above": 80},
                {"name": "cold", "output": "t.min", "below": 5},
            ],
        },
        "raw": {"device": "press"},
        "cut": {"device": "saw", "window": {"count": 4}, "model": "m"},
    },
    "sinks": {"live": {"type": "mqtt", "url": "local"}, "cloud": {"type": "https", "url": "https://c"}},
}  # fmt: skip


def changed(*changes: tuple[str, Any]) -> Config:
    """BASE with other values: "devices.press.period_s"; ... removes."""
    value = copy.deepcopy(BASE)
    for path, new in changes:
        *around, last = (int(step) if step.isdigit() else step for step in path.split("."))
        here: Any = value
        for step in around:
            here = here[step] if isinstance(here, list) else here.setdefault(step, {})
        if new is ...:
            del here[last]
        elif isinstance(here, list) and last == len(here):
            here.append(new)
        else:
            here[last] = new
    return Config.model_validate(value)


OLD = changed()


def wired(line: dict[str, str] | None = None, journaled: tuple[str, ...] = ()) -> Any:
    """What adapters would tell: a port is a line, and some options make samples go through the journal."""

    def wire(name: str, device: config.Device) -> Wiring:
        return Wiring((line or {}).get(name, str(device.options.get("port", name))), device.options.get("qos") in journaled)

    return wire


def planned(*changes: tuple[str, Any], wire: Any = None) -> Plan:
    return plan(OLD, changed(*changes), wire)


# --- each kind of change ---


def test_nothing_changed_is_nothing_to_do() -> None:
    found = planned()
    assert not found
    assert (found, found.describe(), found.restarts, found.parts) == (Plan(), [], (), ())


def test_a_new_threshold_restarts_nothing() -> None:
    found = planned(("pipelines.wear.rules.0.above", 85))
    assert found == Plan(rules={"wear": ("hot.above",)}, parts=("pipeline wear",))
    assert found.restarts == ()
    assert found.describe() == ["pipeline wear: rules swapped (hot.above), nothing restarts"]


@pytest.mark.parametrize(
    ("changes", "told"),
    [
        ([("pipelines.wear.rules.2", {"name": "new", "output": "p.max", "above": 1})], ("new (new)",)),
        ([("pipelines.wear.rules.0", ...)], ("hot (removed)",)),
        ([("pipelines.wear.rules", [])], ("hot (removed)", "cold (removed)")),
        (
            [("pipelines.wear.rules.0.output", "p.max"), ("pipelines.wear.rules.1.severity", "info")],
            ("hot.output", "cold.severity"),
        ),
        ([("pipelines.wear.rules", BASE["pipelines"]["wear"]["rules"][::-1])], ("order",)),
        ([("pipelines.cut.rules", [{"name": "odd", "output": "score", "above": "model"}])], ("odd (new)",)),
    ],
)
def test_rules_are_swapped(changes: list[tuple[str, Any]], told: tuple[str, ...]) -> None:
    found = planned(*changes)
    assert list(found.rules.values()) == [told]
    assert found.restarts == ()


@pytest.mark.parametrize("key", ["period_s", "timeout_s", "backoff_s_max"])
def test_a_period_restarts_the_device_only(key: str) -> None:
    found = planned((f"devices.press.{key}", 7))
    assert found.restarts == ("device press",)
    assert found.describe() == [f"device press: restarts ({key} changed)"]
    assert found.parts == ("device press", "pipeline wear", "pipeline raw")


@pytest.mark.parametrize(
    ("changes", "pipelines"),
    [
        ([("devices.press.points.0.register", 9)], ()),
        ([("devices.press.points.0.description", "hot end")], ()),
        ([("devices.press.points.0.high", 400)], ()),
        ([("devices.press.points.1.unit", "")], ()),  # that is what it was
        ([("devices.press.points.1.unit", "bar")], ("wear", "raw")),
        ([("devices.press.points.0.name", "temp")], ("wear", "raw")),
        ([("devices.press.points.0.scale", 0.1)], ("wear", "raw")),
        ([("devices.press.points.0.deadband", 0.1)], ("wear", "raw")),
        ([("devices.press.points", BASE["devices"]["press"]["points"][::-1])], ("wear", "raw")),
        ([("devices.press.points.2", {"name": "new", "register": 3})], ("wear", "raw")),
        ([("devices.press.adapter", "replay")], ("wear", "raw")),
    ],
)
def test_a_point_list_restarts_one_device_and_what_must_know(changes: list[tuple[str, Any]], pipelines: tuple[str, ...]) -> None:
    found = planned(*changes)
    assert found.restarts == ("device press", *(f"pipeline {name}" for name in pipelines))
    assert found.parts == ("device press", "pipeline wear", "pipeline raw")


def test_options_restart_pipelines_only_where_samples_come_in_another_way() -> None:
    assert planned(("devices.saw.options.batch", 5)).restarts == ("device saw", "pipeline cut")  # nobody could say
    assert planned(("devices.saw.options.batch", 5), wire=wired()).restarts == ("device saw",)
    found = planned(("devices.saw.options.qos", 1), wire=wired(journaled=(1,)))
    assert found.restarts == ("device saw", "pipeline cut")
    assert found.describe()[1] == "pipeline cut: restarts (device saw: its samples come in another way)"


@pytest.mark.parametrize("name", [name for name in config.Pipeline.model_fields if name not in ("rules", "device")])
def test_whatever_else_of_a_pipeline_restarts_it_alone(name: str) -> None:
    values = {"points": ["x"], "window": {"count": 8}, "model": "n", "engine": "tflite", "accelerator": "gpu", "privacy": "site"}
    found = planned((f"pipelines.cut.{name}", values.get(name, 7)), ("pipelines.wear.rules.0.above", 85))
    assert (found.restarts, found.parts) == (("pipeline cut",), ("pipeline wear", "pipeline cut"))
    assert found.rules == {"wear": ("hot.above",)}


def test_parts_come_and_go() -> None:
    found = planned(
        ("devices.mill", BASE["devices"]["saw"]), ("devices.idle", ...), ("pipelines.raw", ...), ("sinks.live", ...),
        ("sinks.new", BASE["sinks"]["cloud"]), ("pipelines.more", {"device": "mill"}),
    )  # fmt: skip
    assert found.devices == Change(("mill",), ("idle",), {})
    assert found.pipelines == Change(("more",), ("raw",), {})
    assert found.sinks == Change(("new",), ("live",), {})
    assert found.restarts == ("device idle", "device mill", "pipeline raw", "pipeline more", "sink live", "sink new")
    assert found.parts == ("device mill", "pipeline more", "sink new")
    assert "pipeline raw: stops (removed)" in found.describe()


def test_a_device_starts_when_the_first_pipeline_takes_it_and_stops_with_the_last() -> None:
    assert planned(("pipelines.first", {"device": "idle"})).devices.changed == {"idle": ("read by a pipeline now",)}
    assert planned(("pipelines.cut", ...)).devices.changed == {"saw": ("read by no pipeline now",)}
    assert planned(("pipelines.raw", ...)).devices.changed == {}
    moved = planned(("pipelines.cut.device", "idle"), ("pipelines.cut.model", None))
    assert moved.restarts == ("device saw", "device idle", "pipeline cut")


def test_a_sink_restarts_alone_also_when_it_is_of_another_kind() -> None:
    found = planned(("sinks.cloud.timeout_s", 9))
    assert (found.restarts, found.parts) == (("sink cloud",), ("sink cloud",))
    assert planned(("sinks.cloud", {"type": "mqtt", "url": "local"})).sinks.changed == {"cloud": ("type",)}


def test_log_and_metrics_touch_nothing_else() -> None:
    found = planned(("log.level", "debug"), ("metrics.listen", "127.0.0.1:9"))
    assert (found.restarts, found.parts) == (("metrics",), ("metrics",))
    assert found.describe() == ["metrics: restart", "log: goes on as it is told, nothing restarts"]
    assert plan(changed(("metrics.listen", "127.0.0.1:9")), OLD).parts == ()


def test_other_groups_are_other_topics_and_the_rest_of_control_is_taken_as_it_is() -> None:
    found = planned(("control.trial_s", 5))
    assert (found.control, found.everything, found.restarts, found.parts) == (True, (), (), ())
    assert found.describe() == ["control: goes on as it is told, nothing restarts"]
    found = planned(("control.groups", ["presses"]))
    assert (found.everything, found.parts) == (("control.groups",), ("control",))


# --- everything ---


def test_a_new_broker_builds_everything_and_only_what_speaks_to_it_can_fail_of_it() -> None:
    found = planned(("broker.url", "mqtt://10.0.0.9:1884"))
    assert (found.everything, found.restarts) == (("broker.url",), ("everything",))
    assert found.parts == ("broker", "mesh", "device saw", "sink live")  # the saw's broker is at the same place
    assert found.describe() == ["everything inside the gateway is built anew (broker.url)"]


@pytest.mark.parametrize(
    ("path", "value", "parts"),
    [
        ("outbox.drain_s_max", 9, ("outbox",)),
        ("models_dir", "x", ("pipeline cut",)),
        ("data_dir", "x", ("outbox", "broker")),
        ("mesh", {"rank": 5}, ("broker", "mesh", "device saw", "sink live")),
    ],
)
def test_what_can_fail_of_a_site_wide_change(path: str, value: Any, parts: tuple[str, ...]) -> None:
    found = planned((path, value))
    assert (found.everything, found.parts) == ((path,), parts)


@pytest.mark.parametrize(
    ("before", "after", "moves"),
    [
        ({"mode": "external"}, {"mode": "external", "url": "mqtt://10.0.0.2"}, True),
        ({"mode": "external"}, {"mode": "external", "url": "mqtt://other:secret@localhost"}, False),  # the same, as another one
        ({"mode": "external"}, {"mode": "hosted"}, True),
        ({"mode": "hosted"}, {"mode": "hosted", "listen": "0.0.0.0"}, True),
        ({"mode": "hosted"}, {"mode": "hosted", "url": "mqtt://127.0.0.1:1884"}, True),
        ({"mode": "hosted"}, {"mode": "hosted", "queued_messages_max": 5}, False),
    ],
)
def test_it_says_where_others_have_to_look_for_it_then(before: dict[str, Any], after: dict[str, Any], moves: bool) -> None:
    one, other = (Config.model_validate({"site": "s", "gateway": "g", "broker": each}) for each in (before, after))
    assert plan(one, other).moves is moves


@pytest.mark.parametrize(
    ("mode", "mesh", "moves"),
    [
        ("auto", {"discovery": "off"}, True),
        ("auto", {"peers": ["10.0.0.2"]}, True),
        ("auto", {"interfaces": ["eth1"]}, True),
        ("auto", {"interfaces_exclude": []}, True),
        ("auto", {"rank": 5, "may_host": False, "accept_tasks": False}, False),  # they find each other as before
        ("auto", None, True),
        ("hosted", {"discovery": "off", "peers": ["10.0.0.2"]}, False),
    ],
)
def test_where_the_broker_is_looked_for_it_is_how_that_is_done(mode: str, mesh: dict[str, Any] | None, moves: bool) -> None:
    base = {"site": "s", "gateway": "g", "broker": {"mode": mode}}
    one, other = (Config.model_validate({**base, "mesh": each}) for each in ({}, mesh))
    assert plan(one, other).moves is moves


def test_of_a_section_that_nobody_thought_of_anything_can_fail() -> None:
    parts = planned(("site", "other")).parts
    assert {"device idle", "pipeline raw", "sink cloud", "broker", "mesh", "outbox", "control", "metrics"} <= set(parts)


def test_a_neighbour_on_the_line_can_fail_of_it() -> None:
    line = {"press": "/dev/ttyS0", "saw": "/dev/ttyS0"}
    found = planned(("devices.press.period_s", 9), wire=wired(line))
    assert found.parts == ("device press", "device saw", "pipeline wear", "pipeline raw")
    assert found.restarts == ("device press",)


def test_models_for_peers_are_offered_anew() -> None:
    shared = [("mesh", {}), ("broker.mode", "auto")]
    old = changed(*shared)
    found = plan(old, changed(*shared, ("pipelines.cut.model", "n")))
    assert (found.offers, found.parts) == (True, ("pipeline cut", "mesh"))
    assert plan(old, changed(*shared, ("pipelines.cut.priority", 1))).offers is False


# --- the table ---


def _sections(kind: Any) -> Iterator[type[BaseModel]]:
    if isinstance(kind, type) and issubclass(kind, BaseModel):
        yield kind
    for inner in get_args(kind):
        yield from _sections(inner)


def test_every_field_of_the_configuration_is_in_the_table() -> None:
    """One that is not: what must be done when it changes? Say it in control/plan.py."""
    walk: list[type[BaseModel]] = [Config, Point]
    for section in walk:
        assert section in EFFECTS, f"{section.__name__} has no effects"
        missing = [name for name in section.model_fields if name not in EFFECTS[section]]
        assert not missing, f"{section.__name__}: {missing}"
        for name, field in section.model_fields.items():
            if EFFECTS[section][name] is Effect.EACH:
                walk += [inner for inner in _sections(field.annotation) if inner not in walk]
    assert set(walk) == set(EFFECTS)


def test_what_builds_everything_has_its_causes() -> None:
    """Without them anything may have failed because of it: a coincident failure would revert the change."""
    everything = {"control", *(name for name, effect in EFFECTS[Config].items() if effect is Effect.EVERYTHING)}
    assert everything - set(CAUSES) == {"site", "gateway"}
    assert set(CAUSES) <= everything


# --- whatever changes ---

LEAVES: list[tuple[str, Any, str]] = [
    ("devices.press.period_s", 3, "device press"),
    ("devices.press.points.0.register", 4, "device press"),
    ("devices.press.points.0.unit", "K", "pipeline wear"),
    ("devices.saw.options.url", "mqtt://b", "device saw"),
    ("devices.idle.timeout_s", 4, "device idle"),
    ("pipelines.wear.window.count", 8, "pipeline wear"),
    ("pipelines.wear.rules.1.hysteresis", 1, "pipeline wear"),
    ("pipelines.raw.queue_max", 10, "pipeline raw"),
    ("pipelines.cut.model", "n", "pipeline cut"),
    ("sinks.live.receiver", "r", "sink live"),
    ("sinks.cloud.lanes", ["event"], "sink cloud"),
    ("outbox.journal_rows_max", 900, "outbox"),
    ("broker.queued_messages_max", 9, "broker"),
    ("metrics", {}, "metrics"),
]


@given(st.sets(st.sampled_from(range(len(LEAVES)))), st.sets(st.sampled_from(range(len(LEAVES)))))
def test_every_changed_leaf_names_its_part_and_no_other(one: set[int], other: set[int]) -> None:
    old, new = (changed(*[LEAVES[number][:2] for number in sorted(each)]) for each in (one, other))
    found = plan(old, new)
    assert bool(found) == (one != other)
    told = "\n".join(found.describe())
    for number in sorted(one ^ other):
        path, _, part = LEAVES[number]
        # A device that no pipeline takes is not read: nothing can be seen of it.
        assert part in found.parts or part == "device idle" or (part == "metrics" and number in one)
        assert (path if found.everything and path in found.everything else part) in told
    touched = {path.split(".")[1] for path in (LEAVES[number][0] for number in one ^ other) if "." in path}
    touched |= {name for name, each in BASE["pipelines"].items() if each["device"] in touched}
    for kind in (found.devices, found.pipelines, found.sinks):
        assert set(kind.standing) <= touched
    assert plan(new, new) == Plan() == plan(old, old)
