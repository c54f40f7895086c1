"""What a configuration needs and this machine has not: a warning, no error, for it may be another machine that runs it.

Nothing is imported to find that out: an engine takes a second, and `check` is typed again and again.
"""

from __future__ import annotations

from collections.abc import Iterator
from functools import partial
from importlib.util import find_spec
from pathlib import Path
from typing import Any

from edge_runtime.adapter import Adapter
from edge_runtime.config import Config
from edge_runtime.document import Document, Problem
from edge_runtime.foreign import made
from edge_runtime.ports import EdgeError
from edge_runtime.sources.registry import Registry

Need = tuple[tuple[str | int, ...], EdgeError, str | None]
"""Where something is asked for, what is missing for it, and what stands there."""


def warnings(config: Config, lines: Document, folder: Path, registry: Registry) -> list[Problem]:
    """Each thing once, where it is asked for first, in the order of the lines."""
    needs = [*_adapters(config, registry), *_engines(config, folder), *_discovery(config), *_broker(config)]
    found = [lines.problem(path, error.cause, value=value, hint=error.hint) for path, error, value in needs]
    found.sort(key=lambda problem: problem.line)
    return list({(problem.message, problem.hint): problem for problem in reversed(found)}.values())[::-1]


def _adapters(config: Config, registry: Registry) -> Iterator[Need]:
    for name, device in config.devices.items():
        schema = registry[device.adapter]
        asked = partial(_missing, schema, schema.Options.model_validate(device.options))
        try:
            missing = made(asked, f"the adapter {device.adapter} cannot say what it needs")
        except EdgeError as broken:
            yield ("devices", name, "adapter"), broken, device.adapter
            continue
        for module, install in missing.items():
            error = EdgeError(f"adapter {device.adapter} needs {module}, which is not installed here", install)
            yield ("devices", name, "adapter"), error, device.adapter


def _missing(schema: type[Adapter], options: Any) -> dict[str, str]:
    """Of a submodule `find_spec` would import the parent."""
    return {module: how for module, how in schema.needs(options).items() if find_spec(module.partition(".")[0]) is None}


def _engines(config: Config, folder: Path) -> Iterator[Need]:
    """Of models that are there and fit: all else is an error, and was said before."""
    pipelines = [(name, one) for name, one in config.pipelines.items() if one.model]
    offers = list(enumerate(config.mesh.offers)) if config.mesh else []
    wanted: list[tuple[tuple[str | int, ...], str, str, str]] = [
        *((("pipelines", name, "model"), one.model or "", one.engine, one.accelerator) for name, one in pipelines),
        *((("mesh", "offers", number), model, "auto", "cpu") for number, model in offers),
    ]
    if not wanted:
        return
    from edge_runtime.inference import engine as engines
    from edge_runtime.inference import selection, store
    from edge_runtime.inference.model import engines as known

    for path, model, engine, accelerator in wanted:
        manifest = store.read_manifest(store.find(model, [folder / config.models_dir]))
        able = selection.able(manifest, selection.named(known(), engine), accelerator)
        if not any(engines.is_installed(one) for one in able):
            names = " or ".join(one.name for one in able)
            cause = f"model {manifest.name} needs the engine {names}, which is not installed here"
            yield path, EdgeError(cause, " or ".join(one.install for one in able)), model


def _discovery(config: Config) -> Iterator[Need]:
    if config.mesh is not None and config.mesh.discovery == "mdns":
        from edge_runtime.mesh import discovery

        if find_spec("zeroconf") is None:
            yield ("mesh",), discovery.not_installed(), None


def _broker(config: Config) -> Iterator[Need]:
    broker = config.broker
    hosts = broker.mode == "hosted" or (broker.mode == "auto" and config.mesh is not None and config.mesh.may_host)
    if not hosts:
        return
    from edge_runtime.bus import programs

    wanted = "mosquitto" if config.site_dir else broker.program
    if not programs.can_start(wanted):
        yield ("broker", "mode"), programs.missing(wanted), broker.mode
