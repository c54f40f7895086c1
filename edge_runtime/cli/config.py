"""edge-runtime config: the schema of the configuration, and a sample to start from."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

    from edge_runtime.adapter import Adapter
    from edge_runtime.sources.registry import Registry

SUMMARY = "print the configuration's JSON schema, or a commented sample"


def arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="WHAT", required=True, dest="what")
    verbs.add_parser("schema", help="JSON schema, with the options and points of every installed adapter")
    sample = verbs.add_parser("example", help="a commented sample; every key that is commented out shows its default")
    sample.add_argument("--adapter", default="modbus", help="of the device in the sample (default: %(default)s)")


def run(args: argparse.Namespace) -> int:
    """Prints to standard output; 0."""
    from edge_runtime.sources.registry import Registry

    registry = Registry()
    if args.what == "schema":
        from edge_runtime.cli import terminal

        terminal.emit_json(schema(_working(registry)))
    else:
        print(_example(registry, args.adapter))
    return 0


def _example(registry: Registry, name: str) -> str:
    from edge_runtime.cli import yaml_sample
    from edge_runtime.document import closest
    from edge_runtime.ports import EdgeError

    if name not in registry:
        raise EdgeError(f"no adapter {name} is installed", closest(name, registry, "installed are"))
    return "\n".join(yaml_sample.configuration(name, registry[name]))


def _working(registry: Registry) -> dict[str, type[Adapter]]:
    """Those that can be imported: a broken one (`edge-runtime adapters` shows it) does not cost the schema of the others."""
    from edge_runtime.ports import EdgeError

    found = {}
    for name in registry:
        try:
            found[name] = registry[name]
        except EdgeError:
            continue
    return found


def schema(adapters: dict[str, type[Adapter]]) -> dict[str, Any]:
    """JSON schema (2020-12) of the configuration. A device's options and points depend on its adapter."""
    from pydantic.json_schema import models_json_schema

    from edge_runtime.config import Config

    models: list[type[BaseModel]] = [
        Config,
        *(model for adapter in adapters.values() for model in (adapter.Options, adapter.Point)),
    ]
    refs, whole = models_json_schema(
        [(model, "validation") for model in models], title="Configuration of an edge-runtime gateway"
    )
    definitions = whole["$defs"]
    definitions["Device"]["properties"]["adapter"]["enum"] = sorted(adapters)
    definitions["Device"]["allOf"] = [
        {
            "if": {"properties": {"adapter": {"const": name}}},
            "then": {
                "properties": {
                    "options": refs[adapter.Options, "validation"],
                    "points": {"items": refs[adapter.Point, "validation"]},
                }
            },
        }
        for name, adapter in sorted(adapters.items())
    ]
    return {"$schema": "https://json-schema.org/draft/2020-12/schema", **whole, **refs[Config, "validation"]}
