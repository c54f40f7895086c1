"""edge-runtime check: says everything that is wrong with a configuration, at once."""

from __future__ import annotations

import argparse
import dataclasses
import ipaddress
import sys
from collections.abc import Callable, Iterator, Sequence
from functools import partial
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.adapter import Adapter, Point
    from edge_runtime.config import Config, HttpsSink, MqttSink
    from edge_runtime.document import Document, Problem
    from edge_runtime.ports import EdgeError
    from edge_runtime.sources.registry import Registry

    Note = Callable[[tuple[str | int, ...], EdgeError, str | None], None]
    """Of something in the file that cannot work: where, why, and what stands there."""

SUMMARY = "check a configuration file: every error at once, with line and hint"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="configuration file (YAML or JSON); - reads standard input")
    parser.add_argument("--plan", action="store_true", help="also show how each adapter will read its device")
    parser.add_argument("--json", action="store_true", help="the outcome as JSON")


def run(args: argparse.Namespace) -> int:
    """0: valid, also with warnings; 1: it is not."""
    from edge_runtime import config, document
    from edge_runtime.cli import check_needs, terminal
    from edge_runtime.control.origin import said_by
    from edge_runtime.control.redaction import hushed
    from edge_runtime.sources.registry import Registry

    registry = Registry()
    name = "<stdin>" if str(args.file) == "-" else str(args.file)
    text = None
    try:
        text = config.text_of(args.file) if name != "<stdin>" else config.decoded(sys.stdin.buffer.read(), name)
        folder = Path() if name == "<stdin>" else args.file.resolve().parent
        try:
            valid = config.load(text, registry, Path(name))
        except config.ConfigError as error:
            raise config.ConfigError(_with_the_rest(error.problems, text, name, folder, registry)) from None
        lines = document.read(text, name)
        plan = _try_out(valid, lines, folder, registry)
    except config.ConfigError as error:
        problems = hushed(error.problems, said_by(text), registry)
        if args.json:
            terminal.emit_json({"valid": False, "problems": [dataclasses.asdict(problem) for problem in problems]})
        else:
            count = len(problems)
            print("\n".join([*map(str, problems), f"{count} problem{'s' if count > 1 else ''}"]), file=sys.stderr)
        return 1
    plan = plan if args.plan else {}
    warnings = sorted(
        [*check_needs.warnings(valid, lines, folder, registry), *_doubts(valid, lines, registry)],
        key=lambda problem: problem.line,
    )
    if args.json:
        told = {"warnings": list(map(dataclasses.asdict, warnings)), "notices": _notices(valid, args.file), "plan": plan}
        terminal.emit_json({"valid": True, "problems": [], **told})
    else:
        _show(valid, args.file)
        for warning in warnings:
            print(f"\nwarning: {warning}")
        for device, rows in plan.items():
            columns = tuple(dict.fromkeys(column for row in rows for column in row)) or ("nothing to plan",)
            terminal.table(columns, [[row.get(column) for column in columns] for row in rows], f"\nplan of {device}")
    return 0


def _doubts(config: Config, lines: Document, registry: Registry) -> Iterator[Problem]:
    """What works, and hardly as it was meant."""
    for name, pipeline in config.pipelines.items():
        if pipeline.window and pipeline.window.bad == "hold" and pipeline.window.filled_max == 0:
            hint = "set filled_max to the number of values that may be stood in for in a window"
            cause = "with filled_max 0 every window in which a value was held is discarded"
            yield lines.problem(("pipelines", name, "window", "bad"), cause, value="hold", hint=hint)
    taken = {pipeline.device for pipeline in config.pipelines.values()}
    for name, device in config.devices.items():
        if name not in taken:  # its messages would be acknowledged, and thrown away
            hint = f"add a pipeline with `device: {name}`"
            yield lines.problem(("devices", name), "no pipeline takes it: it is neither read nor written", hint=hint)
        for number, declared in enumerate(device.points):
            yield from _never_written(registry[device.adapter].Point.model_validate(declared), lines, name, number)


def _never_written(point: Point, lines: Document, device: str, number: int) -> Iterator[Problem]:
    """What may be written and does not fit is refused when it is commanded: too late for who has tried the line out with less."""
    from edge_runtime.foreign import made
    from edge_runtime.ports import EdgeError
    from edge_runtime.sources import writing

    here: tuple[str | int, ...] = ("devices", device, "points", number, "write")
    try:
        found = made(lambda: list(writing.unwritable(point)), "the adapter cannot tell what fits")
    except EdgeError as broken:
        yield lines.problem(here, broken.cause, hint=broken.hint)
        return
    for place, refusal in found:
        cause = f"may be written, and never will be: {refusal.cause}"
        yield lines.problem((*here, *place), cause, value=lines.at((*here, *place)), hint=refusal.hint)


Plan = dict[str, list[dict[str, object]]]
"""How each device will be read, by name."""


def _try_out(config: Config, lines: Document, folder: Path, registry: Registry) -> Plan:
    """A gateway goes on without a model that is not there or does not fit, and without a device that cannot be read as it is
    declared, and says so in its log; here it is an error. Raises ConfigError."""
    from edge_runtime.config import ConfigError

    problems: list[Problem] = []

    def note(path: tuple[str | int, ...], error: EdgeError, value: str | None) -> None:
        problems.append(lines.problem(path, error.cause, value=value, hint=error.hint))

    plan = _plan(config, registry, note)
    _check_models(config, folder, registry, note)
    if problems:
        raise ConfigError(sorted(problems, key=lambda problem: problem.line))
    return plan


NO_DEVICE = "0" * 63
"""Of a pipeline whose device or points are wrong: whether its model fits them nobody knows."""


def _with_the_rest(problems: Sequence[Problem], text: str, name: str, folder: Path, registry: Registry) -> Sequence[Problem]:
    """Of an invalid file, too, what is right is tried out: one wrong key does not hide a model that is not there."""
    from edge_runtime.config import Config, ConfigError
    from edge_runtime.document import DocumentError, survey

    try:
        lines, _ = survey(text, name)
        _try_out(Config.model_validate(_rest(lines, problems)), lines, folder, registry)
    except DocumentError as error:
        more = error.problems if isinstance(error, ConfigError) else ()
        return sorted([*problems, *more], key=lambda problem: problem.line)
    return problems


def _rest(lines: Document, problems: Sequence[Problem]) -> dict[str, Any]:
    """Devices that are right as a whole, and of pipelines what is right of each."""
    from edge_runtime.document import dotted

    def right(*path: str | int) -> bool:
        here = dotted(path)
        return not any(one.path == here or one.path.startswith((f"{here}.", f"{here}[")) for one in problems)

    def part(*path: str) -> dict[str, Any]:
        value = lines.at(path)
        return value if isinstance(value, dict) else {}

    devices = {name: device for name, device in part("devices").items() if right("devices", name)}
    pipelines = {}
    for name in part("pipelines"):
        here = ("pipelines", name)
        kept = {key: value for key, value in part(*here).items() if right(*here, key)}
        if "device" not in kept or not right(*here, "points"):
            kept["device"] = NO_DEVICE
        if all(one.path != dotted(here) for one in problems):
            pipelines[name] = kept
    rest = {"models_dir": lines.at(("models_dir",))} if ("models_dir",) in lines.lines and right("models_dir") else {}
    offers = part("mesh").get("offers", []) if right("mesh", "offers") else []
    return {"site": "s", "gateway": "g", **rest, "devices": devices, "pipelines": pipelines, "mesh": {"offers": offers}}


def _check_models(config: Config, folder: Path, registry: Registry, note: Note) -> None:
    if not any(one.model for one in config.pipelines.values()) and not (config.mesh and config.mesh.offers):
        return
    from edge_runtime.inference import selection, store
    from edge_runtime.inference.model import engines
    from edge_runtime.pipeline.fit import window_points
    from edge_runtime.ports import EdgeError

    folders = [folder / config.models_dir]
    for name, pipeline in config.pipelines.items():
        if pipeline.model is None:
            continue
        try:
            manifest = store.load(store.find(pipeline.model, folders)).manifest
            if device := config.devices.get(pipeline.device):
                declared = [registry[device.adapter].Point.model_validate(point).name for point in device.points]
                window_points(name, pipeline, declared, manifest)
            selection.able(manifest, selection.named(engines(), pipeline.engine), pipeline.accelerator)
        except EdgeError as error:
            note(("pipelines", name, "model"), error, pipeline.model)
    for number, model in enumerate(config.mesh.offers if config.mesh else ()):
        try:
            store.load(store.find(model, folders))
        except EdgeError as error:
            note(("mesh", "offers", number), error, model)


def _plan(config: Config, registry: Registry, note: Note) -> Plan:
    from edge_runtime.foreign import made
    from edge_runtime.ports import EdgeError

    plan: Plan = {}
    for name, device in config.devices.items():
        schema = registry[device.adapter]
        options = schema.Options.model_validate(device.options)
        points = tuple(schema.Point.model_validate(point) for point in device.points)
        who = f"the adapter {device.adapter}"
        try:
            made(partial(schema.line, name, options), f"{who} cannot tell the device's line")
            made(partial(_session, schema, options), f"{who} cannot tell what one device only may have (`session`)")
            plan[name] = made(partial(_rows, schema, options, points), f"{who} cannot plan its reads")
        except EdgeError as error:
            note(("devices", name), error, None)
    return plan


def _session(schema: type[Adapter], options: Any) -> None:
    _option, _key = schema.session(options)


def _rows(schema: type[Adapter], options: Any, points: Sequence[Any]) -> list[dict[str, object]]:
    """One that is no mapping, it cannot plan either."""
    return [dict(row) for row in schema.describe(options, points)]


def _show(config: Config, file: Path) -> None:
    from edge_runtime.cli import terminal
    from edge_runtime.config import reach

    print(f"valid: gateway {config.gateway} of site {config.site}")
    if config.devices:
        devices = [(name, one.adapter, len(one.points), one.period_s) for name, one in config.devices.items()]
        terminal.table(("device", "adapter", "points", "period_s"), devices, "\ndevices")
    if config.pipelines:
        pipelines = [(name, one.device, one.model, len(one.rules)) for name, one in config.pipelines.items()]
        terminal.table(("pipeline", "device", "model", "rules"), pipelines, "\npipelines")
    if config.sinks:
        sinks = [(name, one.type, reach(one).value, _delivery(one), ", ".join(one.lanes)) for name, one in config.sinks.items()]
        terminal.table(("sink", "type", "reach", "delivery", "lanes"), sinks, "\nsinks")
    if config.broker.mode != "none":
        print(f"\nsite\n{_site(config)}")
    for notice in _notices(config, file):
        print(f"\nnotice: {notice}")


def _site(config: Config) -> str:
    """Its part in the site, in two lines."""
    from edge_runtime.address import address

    broker, mesh = config.broker, config.mesh
    at = address(broker.url)
    where = f"{at.host}:{at.port}" if broker.mode == "external" else f"listens on {broker.listen}, port {at.port}"
    if mesh is None:
        return f"broker  {broker.mode}: {where}\nmesh    none: works alone"
    found = "mDNS" if mesh.discovery == "mdns" else "not looked for"
    peers = f"; peers {', '.join(mesh.peers)}" if mesh.peers else ""
    models = dict.fromkeys([one.model for one in config.pipelines.values() if one.model] + mesh.offers)
    offers = (", ".join(models) or "no model") if mesh.accept_tasks else "nothing"
    return f"broker  {broker.mode}: {where}\nmesh    others: {found}{peers}; computes for them: {offers}"


def _notices(config: Config, file: Path) -> list[str]:
    return [*_stays_here(config), *_who_gets_in(config), *_secrets(config, file)]


def _secrets(config: Config, file: Path) -> list[str]:
    """That are asked for and not here: no error, for it is another machine that runs it; and where nobody would ask."""
    from edge_runtime import document, references
    from edge_runtime.board.secrets import SystemSecrets
    from edge_runtime.config import secrets_folder
    from edge_runtime.ports import SecretError

    folder = Path() if str(file) == "-" else file.resolve().parent
    secrets, notices = SystemSecrets(folder / secrets_folder(config)), []
    for path, name in references.found(config.model_dump(mode="json")):
        where = document.dotted(path)
        if not references.taken_at(path):
            notices.append(f"{where}: secret:{name} is not understood here: it is taken as it stands")
            continue
        try:
            secrets.get(name)
        except SecretError as error:
            notices.append(f"{where}: {error.cause} ({error.hint}); the machine that runs this needs it")
    return notices


def _who_gets_in(config: Config) -> list[str]:
    """To a broker that this gateway starts."""
    broker = config.broker
    if broker.mode not in ("hosted", "auto"):
        return []
    if not ipaddress.ip_address(broker.listen).is_loopback:
        return [
            f"broker.listen {broker.listen}: whoever is on that network may read and write on its broker: no passwords, no TLS"
        ]
    if config.mesh is None:
        return []
    finds = " and mDNS finds" if config.mesh.discovery == "mdns" else ""
    hint = "for gateways on the network: `listen: 0.0.0.0`"
    return [f"broker.listen {broker.listen}: its broker takes{finds} gateways of this machine only; {hint}"]


def _stays_here(config: Config) -> list[str]:
    """Pipelines of which no sink may have anything because of their privacy class. That is no error, and must be no surprise."""
    from edge_runtime.config import reach

    notices = []
    where = f"their newest stay on this gateway, in {config.data_dir}/{config.outbox.file}"
    see = f"`edge-runtime outbox {config.data_dir}/{config.outbox.file}` shows them"
    for name, pipeline in config.pipelines.items():
        if pipeline.privacy == "gateway":
            notices.append(f"pipeline {name} has `privacy: gateway`: no sink gets its records; {where}; {see}")
        elif pipeline.privacy == "site" and not any(reach(sink) == "site" for sink in config.sinks.values()):
            hint = "give a sink that is in the plant `reach: site`"
            notices.append(f"pipeline {name} has `privacy: site`, and no sink is of the site: {where}; {see}; or {hint}")
    return notices


def _delivery(sink: MqttSink | HttpsSink) -> str:
    from edge_runtime.ports import delivery

    return delivery(sink.type == "https" or sink.receiver is not None)
