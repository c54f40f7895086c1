"""`edge-runtime config schema`: the JSON schema of the configuration, with every adapter that is installed."""

from __future__ import annotations

import argparse
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from pydantic import BaseModel

    from edge_runtime.adapter import Adapter
    from edge_runtime.sources.registry import Registry


def run(args: argparse.Namespace) -> int:
    """Prints to standard output; 0."""
    from edge_runtime.cli import terminal
    from edge_runtime.sources.registry import Registry

    terminal.emit_json(schema(_working(Registry())))
    return 0


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
