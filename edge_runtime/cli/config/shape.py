"""A configuration for people (pure): as YAML that reads back as the same, and its leaves. Points and rules stand in paths by
their names, as a patch says them: ("pipelines", "wear", "rules", "too-hot", "above").
"""

from __future__ import annotations

import json
import re
from collections.abc import Iterator, Mapping
from typing import Any

from edge_runtime.control.layers import NAMED

Path = tuple[str | int, ...]

WHOLE_MAX = 2**53
"""Up to here a float that is whole is that number and no other."""

_PLAIN = re.compile(r"[A-Za-z_][A-Za-z0-9_-]*", re.ASCII)
_WORDS = frozenset({"true", "false", "null"})
_INDENT = "  "


def lines(value: Any, path: Path = ()) -> Iterator[tuple[str, Path]]:
    """Each line of the YAML, and the path of what begins in it."""
    if not _inside(value):
        yield scalar(value), path
    for label, inner, here in steps(value, path):
        head = "-" if isinstance(value, list) else f"{scalar(label)}:"
        if not _inside(inner):
            yield f"{head} {scalar(inner)}", here
            continue
        below = list(lines(inner, here))
        if isinstance(value, list):
            (first, at), *below = below
            yield f"- {first}", at if isinstance(inner, list) else here
        else:
            yield head, here
        yield from ((_INDENT + text, at) for text, at in below)


def text(value: Any) -> list[str]:
    return [line for line, _ in lines(value)]


def leaves(value: Any, path: Path = ()) -> Iterator[tuple[Path, Any]]:
    """Everything that has nothing inside, in its order."""
    if not _inside(value):
        yield path, value
    for _, inner, here in steps(value, path):
        yield from leaves(inner, here)


def at(value: Any, path: Path) -> Any:
    """What stands there. Raises KeyError(what there is instead): nothing does."""
    here: Path = ()
    for step in path:
        inside = {next_path[-1]: inner for _, inner, next_path in steps(value, here)}
        if step not in inside:
            raise KeyError([str(each) for each in inside])
        value, here = inside[step], (*here, step)
    return value


def steps(value: Any, path: Path) -> Iterator[tuple[Any, Any, Path]]:
    """(key or number, what is there, its path) of a mapping or a list; of anything else nothing."""
    if isinstance(value, Mapping):
        yield from ((key, inner, (*path, key)) for key, inner in value.items())
    elif isinstance(value, list):
        names = _names(value) if len(path) == 3 and (path[0], path[2]) in NAMED else None
        for number, inner in enumerate(value):
            yield number, inner, (*path, names[number] if names else number)


def scalar(value: Any) -> str:
    """JSON is YAML; texts that cannot be taken for anything else stand without quotes; 80.0 is 80, as in a hash."""
    if isinstance(value, str) and _PLAIN.fullmatch(value) and value.lower() not in _WORDS:
        return value
    if isinstance(value, float) and value.is_integer() and abs(value) < WHOLE_MAX:
        value = int(value)
    text = json.dumps(value, ensure_ascii=False)
    return text if text.isprintable() else "".join(each if each.isprintable() else f"\\U{ord(each):08x}" for each in text)


def _inside(value: Any) -> bool:
    return isinstance(value, Mapping | list) and bool(value)


def _names(items: list[Any]) -> list[str] | None:
    found = [item.get("name") if isinstance(item, Mapping) else None for item in items]
    return [str(each) for each in found] if all(isinstance(each, str) for each in found) and len({*found}) == len(found) else None
