"""edge-runtime adapters: which adapters are installed, and what each one wants to know."""

from __future__ import annotations

import argparse
import inspect
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.adapter import Adapter
    from edge_runtime.sources.registry import Registry

SUMMARY = "list the installed adapters, or describe one with a sample configuration"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", nargs="?", help="show this adapter's text and a sample")
    parser.add_argument("--json", action="store_true", help="the same as JSON (with NAME: the schemas of options and points)")


def run(args: argparse.Namespace) -> int:
    """0; listing: 1 if one of them is broken."""
    from edge_runtime.sources.registry import Registry

    registry = Registry()
    return _describe(registry, args.name, args.json) if args.name else _list(registry, args.json)


def _list(registry: Registry, as_json: bool) -> int:
    from edge_runtime.cli import terminal
    from edge_runtime.ports import EdgeError

    rows: list[dict[str, Any]] = []
    for name in registry:
        row = {"name": name, "mode": None, "distribution": registry.distribution(name), "summary": "", "error": None}
        try:
            adapter = registry[name]
            row |= {"mode": adapter.mode, "summary": _text(adapter).partition("\n")[0]}
        except EdgeError as error:
            row |= {"error": error.cause, "summary": f"broken: {error.cause}"}
        rows.append(row)
    if as_json:
        terminal.emit_json(rows)
    else:
        columns = ("name", "mode", "distribution", "summary")
        terminal.table(columns, [[row[column] for column in columns] for row in rows])
    return 1 if any(row["error"] for row in rows) else 0


def _describe(registry: Registry, name: str, as_json: bool) -> int:
    from edge_runtime.cli import terminal, yaml_sample
    from edge_runtime.document import closest
    from edge_runtime.ports import EdgeError

    if name not in registry:
        raise EdgeError(f"no adapter {name} is installed", closest(name, registry, "installed are"))
    adapter = registry[name]
    if as_json:
        options, points = adapter.Options.model_json_schema(), adapter.Point.model_json_schema()
        terminal.emit_json({"name": name, "mode": adapter.mode, "text": _text(adapter), "options": options, "point": points})
        return 0
    print(f"{name} ({adapter.mode}, from {registry.distribution(name)})\n\n{_text(adapter)}\n\nSample:\n")
    print("\n".join(yaml_sample.device(name, adapter)))
    return 0


def _text(adapter: type[Adapter]) -> str:
    return inspect.cleandoc(adapter.__doc__ or "")
