"""What must be done so that a running gateway does what another configuration says, and no more (pure).

| what changed                                         | what is done                                        |
|------------------------------------------------------|-----------------------------------------------------|
| rules of a pipeline                                  | they are swapped; nothing restarts                  |
| period, time limits, addresses of points of a device | the device restarts                                 |
| what its points are called, mean, or how often told  | the device and its pipelines restart                |
| window, model, privacy, ... of a pipeline            | the pipeline restarts                               |
| a sink                                               | the sink restarts                                   |
| broker, mesh, outbox, folders, ...                   | everything inside the gateway's process is built anew |

EFFECTS says it of every field. One that stands in no table builds everything anew: slow, and right.
"""

from __future__ import annotations

from collections.abc import Callable, Iterator, Mapping
from dataclasses import dataclass, field
from enum import StrEnum
from typing import Any, NamedTuple

from pydantic import BaseModel

from edge_runtime import config
from edge_runtime.adapter import BadAddress, Point, address
from edge_runtime.document import dotted


class Effect(StrEnum):
    """Of a changed field."""

    EVERYTHING = "everything is built anew"
    EACH = "see the fields of each part"
    DEVICE = "the device restarts"
    DEVICE_AND_PIPELINES = "the device restarts, and its pipelines"
    WIRING = "the device restarts; its pipelines, if its samples come in another way"
    POINTS = "the device restarts; its pipelines, if what they take changed"
    PIPELINE = "the pipeline restarts"
    RULES = "the rules are swapped"
    SINK = "the sink restarts"
    METRICS = "the metrics restart"
    LOG = "the log goes on as it is told"
    TAKEN = "it is taken as it is"


_SINK = dict.fromkeys((*config.MqttSink.model_fields, *config.HttpsSink.model_fields), Effect.SINK)

EFFECTS: Mapping[type[BaseModel], Mapping[str, Effect]] = {
    config.Config: {
        **dict.fromkeys(("site", "gateway", "data_dir", "models_dir", "site_dir", "secrets_dir"), Effect.EVERYTHING),
        **dict.fromkeys(("broker", "outbox", "mesh"), Effect.EVERYTHING),
        **dict.fromkeys(("control", "devices", "pipelines", "sinks"), Effect.EACH),
        "metrics": Effect.METRICS,
        "log": Effect.LOG,
    },
    config.Control: {
        "groups": Effect.EVERYTHING,  # other topics
        **dict.fromkeys(("trial_s", "require_signature", "from_network"), Effect.TAKEN),
    },
    config.Device: {
        "adapter": Effect.DEVICE_AND_PIPELINES,
        "options": Effect.WIRING,
        "points": Effect.POINTS,
        "period_s": Effect.DEVICE,
        "timeout_s": Effect.DEVICE,
        "backoff_s_max": Effect.DEVICE,
    },
    config.Pipeline: {
        **dict.fromkeys(("device", "points", "window", "model", "engine", "accelerator"), Effect.PIPELINE),
        **dict.fromkeys(("privacy", "deadline_s", "priority", "queue_max"), Effect.PIPELINE),
        "rules": Effect.RULES,
    },
    config.MqttSink: _SINK,
    config.HttpsSink: _SINK,
    Point: {
        **dict.fromkeys(("name", "unit", "scale", "offset", "deadband", "silence_max_s"), Effect.DEVICE_AND_PIPELINES),
        **dict.fromkeys(("description", "low", "high", "sentinels"), Effect.DEVICE),
    },
}
"""A key of a point that is the adapter's own (a register) restarts the device. A unit or a scale ends the open windows: one must
not hold values before and after it."""

CAUSES: Mapping[str, tuple[str, ...]] = {
    "broker": ("broker", "mesh", "clients"),
    "mesh": ("broker", "mesh", "clients"),
    "control": ("control",),
    "outbox": ("outbox",),
    "data_dir": ("outbox", "broker"),
    "models_dir": ("models",),
    "site_dir": ("broker", "mesh", "control"),
    "secrets_dir": ("broker", "mesh", "clients"),
}
"""What may fail because of a changed section; of one that is not here, anything may."""


_LOOKS = ("discovery", "interfaces", "interfaces_exclude", "peers")
"""Of `mesh`: how the gateways of a site find each other."""
_LOOPBACK = ("localhost", "127.0.0.1", "::1", "0.0.0.0")


class Wiring(NamedTuple):
    """What only the adapter knows of a device: its physical line, and whether its samples go through the input journal."""

    line: str
    journaled: bool


Wire = Callable[[str, config.Device], Wiring]


@dataclass(frozen=True)
class Change:
    """Of parts of one kind, by name. `changed`: what of each."""

    added: tuple[str, ...] = ()
    removed: tuple[str, ...] = ()
    changed: Mapping[str, tuple[str, ...]] = field(default_factory=dict)

    def __bool__(self) -> bool:
        return bool(self.added or self.removed or self.changed)

    @property
    def standing(self) -> tuple[str, ...]:
        """Those that are there after the change, and are new or other ones."""
        return (*self.added, *self.changed)


@dataclass(frozen=True)
class Plan:
    """`everything`: the paths for which all is built anew (then the rest is only for people). `rules`: of pipelines whose rules
    alone changed, the rules. `offers`: the models that peers may ask for are other ones. `parts`: see `plan`."""

    everything: tuple[str, ...] = ()
    devices: Change = Change()
    pipelines: Change = Change()
    sinks: Change = Change()
    rules: Mapping[str, tuple[str, ...]] = field(default_factory=dict)
    offers: bool = False
    control: bool = False
    metrics: bool = False
    log: bool = False
    parts: tuple[str, ...] = ()
    moves: bool = False
    """Its broker is elsewhere then: who steers it has to be there, too."""

    def __bool__(self) -> bool:
        """False: nothing is to be done."""
        kinds = self.devices or self.pipelines or self.sinks
        return bool(self.everything or kinds or self.rules or self.offers or self.control or self.metrics or self.log)

    @property
    def restarts(self) -> tuple[str, ...]:
        """Parts that stop, start or both; "everything" stands for all."""
        if self.everything:
            return ("everything",)
        each = (("device", self.devices), ("pipeline", self.pipelines), ("sink", self.sinks))
        names = [f"{kind} {name}" for kind, change in each for name in (*change.removed, *change.standing)]
        return (*names, *(("metrics",) if self.metrics else ()))

    def describe(self) -> list[str]:
        """For people, one line a part: what happens to it, and why."""
        lines = [f"everything inside the gateway is built anew ({', '.join(self.everything)})"] if self.everything else []
        for kind, change in (("device", self.devices), ("pipeline", self.pipelines), ("sink", self.sinks)):
            lines += [f"{kind} {name}: starts (new)" for name in change.added]
            lines += [f"{kind} {name}: stops (removed)" for name in change.removed]
            lines += [f"{kind} {name}: restarts ({_reasons(why)})" for name, why in change.changed.items()]
        lines += [f"pipeline {name}: rules swapped ({', '.join(why)}), nothing restarts" for name, why in self.rules.items()]
        lines += ["models for peers: offered anew, nothing restarts"] if self.offers else []
        lines += ["control: goes on as it is told, nothing restarts"] if self.control else []
        lines += ["metrics: restart"] if self.metrics else []
        return lines + (["log: goes on as it is told, nothing restarts"] if self.log else [])


def plan(old: config.Config, new: config.Config, wire: Wire | None = None) -> Plan:
    """`wire`: what only the adapters know; without it options that changed restart the device's pipelines, too, and each device
    has a line of its own. `parts` of the plan: what may fail because of this change; what else fails, fails by itself."""
    changed = _changed(old, new)
    everything = [path for name in changed for path in _anew(name, old, new)]
    devices = _devices(old, new)
    pipelines, rules = _pipelines(old, new, _rewired(old, new, wire))
    found = Plan(
        everything=tuple(everything),
        devices=devices,
        pipelines=pipelines,
        sinks=_parts(old.sinks, new.sinks),
        rules=rules,
        offers=_offers(old) != _offers(new),
        control=any(EFFECTS[config.Control].get(name) is Effect.TAKEN for name in _changed(old.control, new.control)),
        metrics="metrics" in changed,
        log="log" in changed,
        moves=_meeting(old) != _meeting(new),
    )
    return Plan(**{**vars(found), "parts": tuple(dict.fromkeys(_suspects(found, old, new, wire)))})


def _anew(name: str, old: config.Config, new: config.Config) -> Iterator[str]:
    """The paths in a section for which everything is built anew; the section where there was none, or is none."""
    before, after = getattr(old, name), getattr(new, name)
    effect = EFFECTS[config.Config].get(name, Effect.EVERYTHING)
    if not (isinstance(before, BaseModel) and isinstance(after, BaseModel)):
        yield from (name,) if effect is Effect.EVERYTHING else ()
    elif effect in (Effect.EVERYTHING, Effect.EACH):
        fields = EFFECTS.get(type(after), {})
        for each in _changed(before, after):
            if fields.get(each, Effect.EVERYTHING) is Effect.EVERYTHING:
                yield dotted((name, each))


# --- devices and pipelines -------------------------------------------------------------------------------------------


def _parts(old: Mapping[str, Any], new: Mapping[str, Any]) -> Change:
    """Of parts that restart whatever changed."""
    return Change(
        added=tuple(name for name in new if name not in old),
        removed=tuple(name for name in old if name not in new),
        changed={name: found for name in new if name in old and (found := _changed(old[name], new[name]))},
    )


def _changed(old: BaseModel, new: BaseModel) -> tuple[str, ...]:
    """The fields that are other ones."""
    if type(old) is not type(new):
        return ("type",)
    return tuple(name for name in type(new).model_fields if getattr(old, name) != getattr(new, name))


def _devices(old: config.Config, new: config.Config) -> Change:
    """A device that no pipeline takes is not read: it starts when the first one takes it, and stops with the last one."""
    found, before, after = _parts(old.devices, new.devices), _read(old), _read(new)
    changed = dict(found.changed)
    for name in new.devices:
        if name in old.devices and (name in before) != (name in after):
            changed[name] = (*changed.get(name, ()), "read by a pipeline now" if name in after else "read by no pipeline now")
    return Change(found.added, found.removed, changed)


def _read(settings: config.Config) -> dict[str, None]:
    return {pipeline.device: None for pipeline in settings.pipelines.values()}


def _rewired(old: config.Config, new: config.Config, wire: Wire | None) -> dict[str, str]:
    """Devices whose pipelines must restart with them, and why."""
    found: dict[str, str] = {}
    for name, device in new.devices.items():
        was = old.devices.get(name)
        if was is not None:
            reason = next((why for each in _changed(was, device) if (why := _for_pipelines(name, each, was, device, wire))), "")
            found |= {name: reason} if reason else {}
    return found


def _for_pipelines(name: str, changed: str, was: config.Device, now: config.Device, wire: Wire | None) -> str:
    """Why the pipelines of a device must restart when this field of it changed; "": they need not."""
    match EFFECTS[config.Device].get(changed, Effect.DEVICE_AND_PIPELINES):
        case Effect.DEVICE:
            return ""
        case Effect.WIRING if wire is not None:
            return (
                ""
                if wire(name, was).journaled == wire(name, now).journaled
                else f"device {name}: its samples come in another way"
            )
        case Effect.POINTS:
            return "" if _taken(was) == _taken(now) else f"points of {name}"
    return f"{changed} of {name}"


def _taken(device: config.Device) -> list[dict[str, Any]]:
    """What pipelines take of a device: its points, in their order, without what is only the adapter's."""
    needed = {key: Point.model_fields[key].get_default() for key, effect in EFFECTS[Point].items() if effect is not Effect.DEVICE}
    return [{key: point.get(key, default) for key, default in needed.items()} for point in device.points]


def _pipelines(old: config.Config, new: config.Config, rewired: Mapping[str, str]) -> tuple[Change, dict[str, tuple[str, ...]]]:
    """Those that restart; and of those whose rules alone changed, the rules."""
    found, changed, rules = _parts(old.pipelines, new.pipelines), dict[str, tuple[str, ...]](), dict[str, tuple[str, ...]]()
    for name, pipeline in new.pipelines.items():
        why = found.changed.get(name, ())
        swapped = all(EFFECTS[config.Pipeline].get(each) is Effect.RULES for each in why)
        if name in old.pipelines and pipeline.device in rewired:
            changed[name] = (*why, rewired[pipeline.device])
        elif why and swapped:
            rules[name] = _other_rules(old.pipelines[name], pipeline)
        elif why:
            changed[name] = why
    return Change(found.added, found.removed, changed), rules


def _other_rules(old: config.Pipeline, new: config.Pipeline) -> tuple[str, ...]:
    """What is other about the rules: `too-hot.above`, `too-cold (new)`, `order`."""
    before, after = ({rule.name: rule for rule in each.rules} for each in (old, new))
    told = [f"{name} (removed)" for name in before if name not in after]
    for name, rule in after.items():
        was = before.get(name)
        told += [f"{name} (new)"] if was is None else [f"{name}.{each}" for each in _changed(was, rule)]
    return tuple(told) or ("order",)


def _offers(settings: config.Config) -> list[tuple[str, str, str]]:
    """The models that peers may ask for: those of the pipelines, as they run them. What `mesh` itself says builds everything."""
    if settings.mesh is None or not settings.mesh.accept_tasks:
        return []
    each = settings.pipelines.values()
    return sorted({(one.model, one.engine, one.accelerator) for one in each if one.model is not None})


# --- what may fail because of it -------------------------------------------------------------------------------------


def _suspects(found: Plan, old: config.Config, new: config.Config, wire: Wire | None) -> Iterator[str]:
    for path in found.everything:
        for cause in CAUSES.get(path.partition(".")[0], ("anything",)):
            yield from _meant(cause, old, new)
    lines = [wire(name, new.devices[name]).line for name in found.devices.standing] if wire else []
    devices = dict.fromkeys(found.devices.standing)
    if wire is not None:  # a neighbour on the line waits for its turn
        devices |= {name: None for name, device in new.devices.items() if wire(name, device).line in lines}
    taken = [pipeline.device for pipeline in new.pipelines.values()]  # one that nobody takes is not read
    yield from (f"device {name}" for name in devices if name in taken)
    for name, pipeline in new.pipelines.items():
        if name in found.pipelines.standing or name in found.rules or pipeline.device in found.devices.standing:
            yield f"pipeline {name}"
    yield from (f"sink {name}" for name in found.sinks.standing)
    yield from ("mesh",) if found.offers else ()
    yield from ("metrics",) if found.metrics and new.metrics is not None else ()


def _meant(cause: str, old: config.Config, new: config.Config) -> Iterator[str]:
    match cause:
        case "anything":
            yield from (f"device {name}" for name in new.devices)
            yield from (f"pipeline {name}" for name in new.pipelines)
            yield from (f"sink {name}" for name in new.sinks)
            yield from ("broker", "mesh", "outbox", "control", "metrics")
        case "models":
            yield from (f"pipeline {name}" for name, each in new.pipelines.items() if each.model is not None)
        case "clients":
            ours = [found for each in (old, new) if (found := _place(each.broker.url))]
            for name, device in new.devices.items():
                if any(_place(option) in ours for option in device.options.values()):
                    yield f"device {name}"
            for name, sink in new.sinks.items():
                if sink.url == "local" or _place(sink.url) in ours:
                    yield f"sink {name}"
        case _:
            yield cause


def _meeting(settings: config.Config) -> tuple[Any, ...]:
    """Where others find it. `auto`: also how it looks for a broker; one that finds nobody hosts its own: well, and alone."""
    broker, mesh = settings.broker, settings.mesh
    place = _place(broker.url)
    if broker.mode == "external":
        return broker.mode, place
    looks = [getattr(mesh, name) for name in _LOOKS] if mesh and broker.mode == "auto" else []
    return broker.mode, place[1] if place else 0, broker.listen, looks


def _place(url: Any) -> tuple[str, int] | None:
    """Host and port of a broker; None: it is no URL of one. This machine has several names."""
    try:
        found = address(url) if isinstance(url, str) else None
    except BadAddress:
        return None
    return (("localhost" if found.host in _LOOPBACK else found.host), found.port) if found else None


def _reasons(changed: tuple[str, ...]) -> str:
    return ", ".join(changed) + (" changed" if all(" " not in each for each in changed) else "")
