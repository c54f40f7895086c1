"""From what a person types to a patch, and a patch on what a layer says already (decides).

pipelines.wear.rules.too-hot.above=85     {"pipelines": {"wear": {"rules": {"too-hot": {"above": 85}}}}}
metrics=                                  {"metrics": null}: removes it
devices.press.points["t.min"].high=90     a name with a dot
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edge_runtime import document
from edge_runtime.bus.control import Desired
from edge_runtime.cli.config import shape
from edge_runtime.control.layers import NAMED, Layer, merge
from edge_runtime.control.redaction import HIDDEN
from edge_runtime.document import dotted
from edge_runtime.ports import EdgeError

_STEP = re.compile(r'\.?([\w-]+)|\[("(?:[^"\\]|\\.)*")\]|\[(\d+)\]')
_EXAMPLE = "as `edge-runtime config get` shows them: pipelines.wear.rules.too-hot.above"


def path_of(text: str) -> tuple[str, ...]:
    """Raises EdgeError: it is none."""
    return _steps(text, text)


def assignment(text: str) -> tuple[tuple[str, ...], Any]:
    """PATH=VALUE. Raises EdgeError."""
    found = re.match(r'((?:[^="\[]|\["(?:[^"\\]|\\.)*"\]|\[\d+\])+)=(.*)', text, re.DOTALL)
    if found is None:
        raise EdgeError(f"{text!r} is not PATH=VALUE", _EXAMPLE + "=85")
    return _steps(found[1], text), yaml(found[2], text)


def yaml(text: str, said: str) -> Any:
    """What a person typed as a value. Raises EdgeError."""
    try:
        return document.read(text).value
    except document.DocumentError as error:
        problem = error.problems[0]
        raise EdgeError(f"{said!r}: the value is {problem.message}", problem.hint or "put quotes around it") from None


def patch(assignments: Sequence[tuple[tuple[str, ...], Any]]) -> dict[str, Any]:
    """Of all of them. Raises EdgeError where one says something of a part of another one."""
    made: dict[str, Any] = {}
    said: list[tuple[str, ...]] = []
    for path, value in assignments:
        for other in said:
            shorter = min(len(path), len(other))
            if path[:shorter] == other[:shorter]:
                raise EdgeError(f"{dotted(other)} and {dotted(path)}: one is part of the other", "say it once")
        said.append(path)
        here = made
        for step in path[:-1]:
            here = here.setdefault(step, {})
        here[path[-1]] = value
    return made


def on_top(held: Desired | None, change: Mapping[str, Any], layer: str) -> dict[str, dict[str, Any]]:
    """{"patch": ...} or {"config": ...}: what the layer says now, and the change. Raises BadLayers: of a whole configuration,
    which cannot be changed in this way."""
    if held is None or held.config is None:
        return {"patch": composed(held.content if held else {}, change)}
    return {"config": merge(held.config, [Layer(layer, 1, patch=change)]).config}


def composed(first: Mapping[str, Any], then: Mapping[str, Any], path: tuple[str, ...] = ()) -> dict[str, Any]:
    """One patch that does what both do, one after the other. (What the first removes and the second says anew cannot be told to
    replace what is below it: it is merged with that.)"""
    made = dict(first)
    for key, value in then.items():
        here, before = (*path, key), first.get(key)
        if isinstance(value, Mapping) and isinstance(before, Mapping):
            made[key] = composed(before, value, here)
        elif isinstance(value, Mapping) and isinstance(before, list) and len(here) == 3 and (here[0], here[2]) in NAMED:
            made[key] = _items(before, value)
        else:
            made[key] = value
    return made


def hidden(content: Mapping[str, Any]) -> list[str]:
    """Paths at which not a value stands but the asterisks that a report shows instead of a secret."""
    return [dotted(path) for path, value in shape.leaves(content) if isinstance(value, str) and HIDDEN in value]


def _items(items: Sequence[Any], change: Mapping[str, Any]) -> list[Any]:
    """A list of named items, patched by their names."""
    by_name = {item.get("name"): item for item in items if isinstance(item, Mapping)}
    for name, value in change.items():
        if value is None:
            by_name.pop(name, None)
        else:
            by_name[name] = {"name": name, **_without_nulls(composed(by_name.get(name, {}), value))}
    return list(by_name.values())


def _without_nulls(value: Any) -> Any:
    """What a patch makes where nothing was."""
    if not isinstance(value, Mapping):
        return value
    return {key: _without_nulls(inner) for key, inner in value.items() if inner is not None}


def _steps(text: str, said: str) -> tuple[str, ...]:
    return tuple(_each_step(text, said))


def _each_step(text: str, said: str) -> Iterator[str]:
    at = 0
    while at < len(text) or not text:
        found = _STEP.match(text, at)
        if found is None or (found[1] and (text[at] == ".") != (at > 0)):
            raise EdgeError(f"{said!r}: {text or 'nothing'} is no path", _EXAMPLE)
        if found[3]:
            raise EdgeError(f"{said!r}: points and rules are named here, not counted", _EXAMPLE)
        yield found[1] or json.loads(found[2])
        at = found.end()
