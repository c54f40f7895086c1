"""Finds adapters: everything installed that has an entry point in the group `edge_runtime.adapters`."""

from __future__ import annotations

import inspect
from collections.abc import Iterator, Mapping
from functools import partial
from importlib.metadata import EntryPoint, entry_points
from typing import Any

from edge_runtime.adapter import Adapter, Unusable
from edge_runtime.foreign import made

GROUP = "edge_runtime.adapters"


class Registry(Mapping[str, type[Adapter]]):
    """The installed adapters by name. Looking one up imports it, and raises EdgeError where that fails: it names the
    distribution, and the others go on working."""

    def __init__(self) -> None:
        self._points: dict[str, list[EntryPoint]] = {}
        for point in sorted(entry_points(group=GROUP), key=lambda point: (point.name, distribution(point))):
            self._points.setdefault(point.name, []).append(point)

    def __getitem__(self, name: str) -> type[Adapter]:
        first, *others = self._points[name]
        if others:
            owners = ", ".join(distribution(point) for point in self._points[name])
            raise Unusable(f"several distributions have an adapter {name}: {owners}", "uninstall all but one of them")
        return _load(first)

    def __iter__(self) -> Iterator[str]:
        return iter(self._points)

    def __len__(self) -> int:
        return len(self._points)

    def __contains__(self, name: object) -> bool:
        return name in self._points

    def distribution(self, name: str) -> str:
        """Who brings it: "edge-runtime 0.1.0"."""
        return ", ".join(distribution(point) for point in self._points[name])


def distribution(point: EntryPoint) -> str:
    return f"{point.dist.name} {point.dist.version}" if point.dist else "unknown"


def _load(point: EntryPoint) -> type[Adapter]:
    who = f"the adapter {point.name} of {distribution(point)}"
    found = made(partial(_imported, point, who), f"{who} cannot be imported")
    if not (inspect.isclass(found) and issubclass(found, Adapter)):
        raise Unusable(f"{who} is no adapter: {point.value} is no subclass of edge_runtime.adapter.Adapter", "tell its authors")
    if inspect.isabstract(found):
        missing = ", ".join(sorted(found.__abstractmethods__))
        raise Unusable(f"{who} is not whole: {point.value} has no {missing}", "tell its authors")
    return found


def _imported(point: EntryPoint, who: str) -> Any:
    try:
        return point.load()
    except (ImportError, SyntaxError) as error:  # its words say more than its place
        cause = f"{who} cannot be imported: {type(error).__name__}: {error}"
        raise Unusable(cause, "reinstall or uninstall that distribution, or tell its authors") from error
