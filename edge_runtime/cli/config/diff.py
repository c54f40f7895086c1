"""`edge-runtime config diff`: what a gateway runs, against a file, or against all that was published for it."""

from __future__ import annotations

import argparse
import asyncio
import difflib
from typing import Any

from edge_runtime import config, document
from edge_runtime.bus.control import Reported
from edge_runtime.cli.config import shape
from edge_runtime.cli.config.get import reported
from edge_runtime.cli.config.seen import Seen
from edge_runtime.control.layers import GATEWAY, BadLayers, Layer, merge
from edge_runtime.control.redaction import redacted
from edge_runtime.ports import EdgeError
from edge_runtime.sources.registry import Registry


def run(args: argparse.Namespace) -> int:
    """0: the same; 1: not. Raises EdgeError."""
    given = document.read(config.text_of(args.file), str(args.file)).value if args.file else None
    if args.file and not isinstance(given, dict):
        raise EdgeError(f"{args.file}: is no mapping (key: value)", "edge-runtime config example")
    seen, report = asyncio.run(reported(args, args.gateway))
    if report.config is None:
        raise EdgeError(f"{args.gateway} does not report its configuration", report.hint)
    other = given if isinstance(given, dict) else _desired(seen, report)
    wanted = redacted(other, Registry(), report.config)
    return _show(f"{args.gateway} ({report.state})", report.config, str(args.file or "desired"), wanted)


def _desired(seen: Seen, report: Reported) -> dict[str, Any]:
    """What it would run if all that was published were in force. Raises EdgeError: nothing was; it cannot be."""
    layers = []
    for name in seen.layers(report.gateway):
        said = seen.desired(f"gw/{report.gateway}" if name == GATEWAY else name)
        if said is not None:
            layers.append(Layer(name, said.revision or 1, config=said.config, patch=said.patch))
    try:
        return merge(report.config or {}, layers).config
    except BadLayers as error:
        raise EdgeError(f"what was published cannot be merged:\n{error}", "see `edge-runtime config get`") from None


def _show(one: str, now: dict[str, Any], other: str, wanted: dict[str, Any]) -> int:
    """In the order of the first one: that of keys means nothing."""
    found = list(difflib.unified_diff(shape.text(now), shape.text(_ordered(wanted, now)), one, other, lineterm=""))
    for line in found:
        print(line)
    return 1 if found else 0


def _ordered(value: Any, like: Any) -> Any:
    if not isinstance(value, dict) or not isinstance(like, dict):
        return value
    keys = [*(key for key in like if key in value), *(key for key in value if key not in like)]
    return {key: _ordered(value[key], like.get(key)) for key in keys}
