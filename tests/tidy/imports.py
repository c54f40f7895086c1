"""Who may import whom: rooms downwards only, one file for each outside library, adapters only their contract."""

from __future__ import annotations

import sys
from collections.abc import Iterator

from tidy.tree import Module, Tree

LIBRARIES: dict[str, tuple[str, ...]] = {
    # Values and validation: part of the language that this project is written in.
    "msgspec": ("edge_runtime/", "adapters/edge_adapters/"),
    "pydantic": ("edge_runtime/", "adapters/edge_adapters/"),
    "numpy": ("edge_runtime/pipeline/", "edge_runtime/inference/", "edge_runtime/testing/", "edge_runtime/cli/mesh/submit.py"),
    "structlog": ("edge_runtime/cli/run.py", "edge_runtime/testing/"),
    # Each of the others has one file that touches it.
    "paho": ("edge_runtime/bus/broker.py",),
    "iotcore": ("edge_runtime/bus/host.py",),
    "yaml": ("edge_runtime/document.py",),
    "zeroconf": ("edge_runtime/mesh/discovery.py",),
    "ifaddr": ("edge_runtime/mesh/discovery.py",),
    "sqlite3": ("edge_runtime/outbox/database.py", "edge_runtime/receiver/ledger.py", "edge_runtime/testing/"),
    "ai_edge_litert": ("edge_runtime/inference/engine_tflite.py",),
    "tflite_runtime": ("edge_runtime/inference/engine_tflite.py",),
    "openvino": ("edge_runtime/inference/engine_openvino.py",),
    "cryptography": ("edge_runtime/trust/keys.py", "edge_runtime/trust/certificates.py"),
    "pymodbus": ("adapters/edge_adapters/modbus_link.py", "edge_runtime/testing/"),
    "serial": ("adapters/edge_adapters/modbus_link.py",),
    "rich": ("edge_runtime/cli/",),
    "sqlite_utils": ("edge_runtime/cli/outbox_look.py",),
    "pytest": ("edge_runtime/testing/",),
}
"""Import name -> the files (or folders, with / at the end) that may import it. sqlite3 comes with Python; it is here because a
second place with SQL would be a second truth about what is on disk."""

CORE = ("cryptography", "msgspec", "numpy", "paho", "pydantic", "sqlite3", "structlog", "yaml")
"""Installed with every gateway; everything else is an extra, imported inside the function that needs it."""

LEVELS: dict[str, int] = {
    "records": 0,
    "ports": 1,
    "ports_mesh": 1,
    "address": 2,
    "document": 2,
    "unsaid": 1,
    "wording": 1,
    "saying": 2,
    "foreign": 3,
    "trail": 1,
    "references": 3,
    "adapter": 3,
    "crosschecks": 4,
    "config": 5,
    "trust": 5,
    "services": 5,
    "bus": 6,
    "board": 6,
    "outbox": 7,
    "mesh": 7,
    "inference": 8,
    "sources": 8,
    "control": 8,
    "receiver": 8,
    "world": 9,
    "pipeline": 9,
    "building": 10,
    "condition": 10,
    "support": 9,
    "verbs": 10,
    "watching": 10,
    "gateway": 11,
    "lifetime": 12,
    "cli": 13,
    "__main__": 14,
    "testing": 15,
}
"""Rooms of edge_runtime: each imports only rooms of a lower number, and itself."""

ONLY: dict[str, tuple[str, ...]] = {
    "receiver": ("outbox", "bus", "address", "ports", "records"),
    "trust": ("document", "saying", "ports", "records"),
    "control": (
        *("outbox", "bus", "board", "trust", "address", "references", "config", "crosschecks", "adapter"),
        *("document", "saying", "ports", "records"),
    ),
}
"""Rooms that stand further apart than their level says: the receiver is the cloud's end, it knows no gateway; trust knows no
gateway either; control steers through ports, it knows neither mesh nor pipelines."""


def outside_libraries(tree: Tree) -> Iterator[str]:
    """Every outside library has the one file that touches it; a new one needs a line in the table (and in the docs)."""
    for module in tree.modules:
        for found in module.imports:
            if found.root in LIBRARIES:
                if not _within(module.path, LIBRARIES[found.root]):
                    yield module.at(found.line, f"{found.root} may be imported only in {', '.join(LIBRARIES[found.root])}")
            elif found.root not in sys.stdlib_module_names and found.root not in ("edge_runtime", "edge_adapters"):
                yield module.at(found.line, f"{found.root} is not in the table of outside libraries")


def extras_are_lazy(tree: Tree) -> Iterator[str]:
    """What is an extra may be missing: its import stands where its absence can be reported."""
    for module in tree.modules:
        if _within(module.path, ("edge_runtime/testing/",)):
            continue
        for found in module.imports:
            if found.top and not found.typing and found.root in LIBRARIES and found.root not in CORE:
                yield module.at(found.line, f"{found.root} is an extra: import it inside the function that needs it")


def rooms(tree: Tree) -> Iterator[str]:
    """Downwards only, also inside functions and for types."""
    for module in _own(tree):
        if module.room and module.room not in LEVELS:
            yield module.at(1, f"{module.room} is not in the table of rooms")
            continue
        for found in module.imports:
            parts = found.name.split(".")
            if parts[0] != "edge_runtime" or len(parts) < 2 or parts[1] == module.room or parts[1] not in LEVELS:
                continue
            allowed = ONLY.get(module.room)
            too_high = module.room and LEVELS[parts[1]] >= LEVELS[module.room]
            if parts[1] == "testing" or too_high or (allowed and parts[1] not in allowed):
                yield module.at(found.line, f"{module.room or module.name} may not import {parts[1]}")


def adapters_know_their_contract_only(tree: Tree) -> Iterator[str]:
    """An adapter in this tree is written as a third party would write it."""
    for module in tree.modules:
        if not module.name.startswith("edge_adapters"):
            continue
        for found in module.imports:
            if found.root == "edge_runtime" and not (found.name + ".").startswith("edge_runtime.adapter."):
                yield module.at(found.line, f"an adapter imports only edge_runtime.adapter, not {found.name}")


def core_does_not_know_adapters(tree: Tree) -> Iterator[str]:
    """They are found through entry points."""
    for module in _own(tree):
        for found in module.imports:
            if found.root == "edge_adapters" and module.room != "testing":
                yield module.at(found.line, "adapters are found through entry points, never imported")


def circles(tree: Tree) -> Iterator[str]:
    """No module imports itself by way of others (for types it may)."""
    names = {module.name: module for module in tree.modules}
    edges = {
        name: sorted({_target(one.name, names) for one in module.imports if not one.typing} - {name, ""})
        for name, module in names.items()
    }
    done: set[str] = set()
    for name in names:
        yield from _circle(names, edges, name, [], done)


def _circle(names: dict[str, Module], edges: dict[str, list[str]], name: str, trail: list[str], done: set[str]) -> Iterator[str]:
    if name in trail:
        yield names[name].at(1, "circle: " + " -> ".join([*trail[trail.index(name) :], name]))
    elif name not in done:
        for target in edges[name]:
            yield from _circle(names, edges, target, [*trail, name], done)
        done.add(name)


def _target(name: str, names: dict[str, Module]) -> str:
    """`from package.module import thing` -> package.module; a package's own folder is not an edge to its __init__."""
    if name in names:
        return name
    parent = name.rpartition(".")[0]
    return parent if parent in names else ""


def _own(tree: Tree) -> Iterator[Module]:
    return (module for module in tree.modules if module.name.startswith("edge_runtime"))


def _within(path: str, places: tuple[str, ...]) -> bool:
    return any(path == place or (place.endswith("/") and path.startswith(place)) for place in places)


RULES = (outside_libraries, extras_are_lazy, rooms, adapters_know_their_contract_only, core_does_not_know_adapters, circles)
