"""The layers of a configuration, and what they make together (pure).

    file < group/default < group/{G} (in the order of control.groups) < gateway

A layer says a whole configuration, which replaces all below it, or a patch of what the layers below it make: a JSON merge patch
(RFC 7396: a mapping is merged, null removes a key, anything else replaces). In one place a patch says more than RFC 7396 knows:
the points of a device and the rules of a pipeline are lists of named items, and a *mapping* there patches them by name.

    {"pipelines": {"wear": {"rules": {"too-hot": {"above": 85}}}}}     this one threshold, and nothing else
    ... {"rules": {"too-hot": null}}                                   without this rule
    ... {"rules": {"too-cold": {"output": "t.min", "below": 5}}}       a new name: behind the others
    ... {"rules": [...]}                                               a list: all of them, as RFC 7396 has it

A mapping is never valid there, so no patch that RFC 7396 makes sense of means something else here.

What belongs to the machine (KEPT) stands in its file: no layer above changes it, and a whole configuration need not repeat it.
Where a value comes from is known of every leaf: a scalar, an empty mapping or list, a list without named items.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping, Sequence
from dataclasses import dataclass
from functools import cached_property
from typing import Any

from edge_runtime.bus import canonical
from edge_runtime.bus.control import FAULTS_MAX, Desired, Fault
from edge_runtime.config import Config, ConfigError, checked
from edge_runtime.control.redaction import HIDDEN, Schemas, redacted, scrub, secrets
from edge_runtime.document import Document, Path, Problem, dotted, shown
from edge_runtime.ports import EdgeError

FILE, DEFAULT, GATEWAY = "file", "group/default", "gateway"

KEPT: tuple[Path, ...] = (
    ("site",),
    ("gateway",),
    ("data_dir",),
    ("site_dir",),
    ("secrets_dir",),
    ("outbox", "file"),
    ("control", "require_signature"),
    ("control", "from_network"),
)
"""Who this gateway is, whom it trusts, and where it keeps what it has accepted."""

REVISIONS_AHEAD_MAX = 10**6
FIRST_REVISION_MAX = 2**52
"""A document may be so much newer than the one that is held, and the first one of all so new: somebody who says the highest
revision of all would have the last word for ever."""

GROUPS: Path = ("control", "groups")
"""Which groups count, no group says."""

NAMED = (("devices", "points"), ("pipelines", "rules"))
"""devices.*.points and pipelines.*.rules: lists of items with a name."""


@dataclass(frozen=True)
class Layer:
    """What one layer says: a whole configuration or a patch."""

    name: str
    revision: int
    config: Mapping[str, Any] | None = None
    patch: Mapping[str, Any] | None = None

    @cached_property
    def hash(self) -> str:
        return canonical.digest(self.content)

    @property
    def content(self) -> Mapping[str, Any]:
        return self.config if self.config is not None else self.patch or {}


@dataclass(frozen=True)
class Effective:
    """What the layers make together. `provenance`: the layer that each leaf comes from; the items of named lists stand in it by
    their name, as a patch would say them: ("pipelines", "wear", "rules", "too-hot", "above")."""

    config: dict[str, Any]
    provenance: Mapping[Path, str]

    @cached_property
    def hash(self) -> str:
        return canonical.digest(self.config)

    def layer(self, path: Path) -> str:
        """That says what is at the path (by name or by number), or around it; "" if several do."""
        path = self.by_name(path)
        said: dict[str, None] = {}
        while not said:
            said = dict.fromkeys(layer for each, layer in self.provenance.items() if each[: len(path)] == path)
            if not path:
                break
            path = path[:-1]
        return next(iter(said)) if len(said) == 1 else ""

    def by_name(self, path: Path) -> Path:
        """pipelines.wear.rules[0].above -> pipelines.wear.rules.too-hot.above"""
        here: Any = self.config
        named: list[str | int] = []
        for step in path:
            items = _by_name(here) if isinstance(here, list) and _is_named(tuple(named)) else None
            inside = isinstance(step, int) and isinstance(here, list) and step < len(here)
            named.append(list(items)[step] if items and inside and isinstance(step, int) else step)
            here = here[step] if inside or (isinstance(here, dict) and step in here) else None
        return tuple(named)

    def summary(self) -> dict[str, str]:
        """For people: a path stands for all that is below it, unless a longer one says otherwise."""
        return {dotted(path): layer for path, layer in _largest(list(self.provenance.items()), ())}


class BadLayers(EdgeError):
    """Everything that is wrong with what the layers say, or with what they make together."""

    def __init__(self, faults: Sequence[Fault]) -> None:
        super().__init__("\n".join(str(fault) for fault in faults))
        self.faults = tuple(faults)


# --- which document counts -------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class Take:
    """The document is newer: this is the layer now."""

    layer: Layer


@dataclass(frozen=True)
class Same:
    """The layer says that already: nothing is to be done."""


@dataclass(frozen=True)
class Refused:
    """`older`: than what is held; it is no mistake where a broker comes back with what it knew long ago."""

    cause: str
    hint: str = ""
    older: bool = False


def newer(held: Layer | None, incoming: Desired, name: str, *, numbered: bool = False) -> Take | Same | Refused:
    """Of two revisions the higher one counts; the same revision of another content is refused. A document without a revision is
    the next one, if it says something else. `numbered`: it must have one (where documents are signed: one without could be
    played again for ever)."""
    if incoming.revision is None and numbered:
        return Refused("a signed document needs a revision", "without one, whoever has heard it could send it again")
    held_revision = held.revision if held else 0
    layer = Layer(name, incoming.revision or held_revision + 1, config=incoming.config, patch=incoming.patch)
    if layer.revision < held_revision:  # first: old ones can be said for ever, and the hash of a large one takes 0.3 s
        cause = f"revision {layer.revision} is older than {held_revision}, which is held"
        return Refused(cause, f"publish it as revision {held_revision + 1}", older=True)
    if not within_reach(held_revision, layer.revision):
        cause = f"revision {layer.revision} is too far ahead of {held_revision or 'none'}, which is held"
        return Refused(cause, f"publish it as revision {held_revision + 1}: they are counted, and no clock's time")
    same = held is not None and (held.hash, held.config is None) == (layer.hash, layer.config is None)
    if same and incoming.revision in (None, held_revision):
        return Same()
    if layer.revision == held_revision:
        cause = f"revision {held_revision} is held already, and says something else"
        return Refused(cause, f"publish it as revision {held_revision + 1}; who else publishes for {name}?")
    return Take(layer)


def within_reach(held: int, revision: int) -> bool:
    """Whether who holds this revision (0: none) takes that one."""
    return revision <= (held + REVISIONS_AHEAD_MAX if held else FIRST_REVISION_MAX)


def layer_name(target: str) -> str:
    """gw/press-1 -> gateway, group/presses -> group/presses"""
    return GATEWAY if target.startswith("gw/") else target


def groups(base: Mapping[str, Any], gateway: Layer | None) -> tuple[str, ...]:
    """Of which groups a gateway is, by its file and its own layer; what is no list of texts, validation will say."""
    root = _node(base, (), FILE)
    if gateway is not None:
        root = _applied(root, gateway, [])
    found = _at(_value(root), GROUPS)
    return tuple(dict.fromkeys(name for name in found if isinstance(name, str))) if isinstance(found, list) else ()


def stack(base: Mapping[str, Any], held: Mapping[str, Layer]) -> tuple[Layer, ...]:
    """The layers that count, in their order, of all that a gateway holds by name."""
    member = groups(base, held.get(GATEWAY))
    names = dict.fromkeys((DEFAULT, *(f"group/{group}" for group in member), GATEWAY))
    return tuple(held[name] for name in names if name in held)


# --- what they make together -----------------------------------------------------------------------------------------


def merge(base: Mapping[str, Any], layers: Sequence[Layer]) -> Effective:
    """`base`: what the file says; `layers`: see `stack`. Raises BadLayers where a patch cannot be applied or says what is not its
    to say; whether the whole makes sense, `validated` knows."""
    root, faults = _node(base, (), FILE), list[Fault]()
    for layer in layers:
        before = _value(root)
        root = _applied(root, layer, faults)
        after = _value(root)
        faults += [_not_its_own(layer.name, path) for path in _kept(layer) if _at(before, path) != _at(after, path)]
    if faults:
        raise BadLayers(faults)
    return Effective(_value(root), dict(_origins(root, ())))


def validated(effective: Effective, schemas: Schemas) -> Config:
    """Raises BadLayers with everything that is wrong, by path, without any secret."""
    lines = {path: number for number, path in enumerate(_paths(effective.config, ()))}
    try:
        return checked(Document("", effective.config, lines), schemas)
    except ConfigError as error:
        hidden, safe = secrets(effective.config, schemas), redacted(effective.config, schemas)
        whole = Document("", safe, lines)
        by_text = {dotted(path): path for path in lines}
        raise BadLayers([_fault(problem, by_text, effective, whole, hidden) for problem in error.problems[:FAULTS_MAX]]) from None


def steerable(settings: Config, layer: str) -> Config:
    """Raises BadLayers: with these settings nobody would look whether they work, and nobody could change them again."""
    if settings.broker.mode == "none":
        hint = "a gateway without a broker is configured by its file alone"
        raise BadLayers([Fault("broker.mode", "the gateway would not be reached any more", hint, layer)])
    return settings


def _fault(problem: Problem, by_text: Mapping[str, Path], effective: Effective, safe: Document, hidden: Sequence[str]) -> Fault:
    path, around = by_text.get(problem.path), problem.path
    while around not in by_text:  # it is missing: what is around it
        around = around[: max(around.rfind("."), around.rfind("["), 0)]
    value = shown(safe.at(path)) if path is not None and problem.value is not None else None
    stands = "" if value is None or value == HIDDEN else f" (it is {canonical.text(value).decode()})"
    hint = re.sub(r"the other one is in line \d+; ", "", problem.hint)  # of a text that nobody has seen
    where = dotted(effective.by_name(by_text[around])) + problem.path[len(around) :]
    message, hint = (scrub(text, hidden) for text in (problem.message + stands, hint))
    return Fault(where, message, hint, effective.layer(by_text[around]))


def _not_its_own(layer: str, path: Path) -> Fault:
    if path == GROUPS:
        return Fault(dotted(path), "a group cannot say it", "set it in the file on the gateway, or in its own layer", layer)
    return Fault(
        dotted(path), "belongs to the machine: it cannot be changed from elsewhere", "set it in the file on the gateway", layer
    )


# --- the tree --------------------------------------------------------------------------------------------------------


@dataclass(frozen=True)
class _Node:
    """A value and the layer that said it. `children`: of a mapping, or of a list of named items (`listed`), by name."""

    layer: str
    leaf: Any = None
    children: Mapping[str, _Node] | None = None
    listed: bool = False


def _node(value: Any, path: Path, layer: str) -> _Node:
    """Of a value that is said whole."""
    items = _by_name(value) if _is_named(path) and isinstance(value, list) else None
    if items is not None or isinstance(value, dict):
        inside = items if items is not None else value
        children = {key: _node(inner, (*path, key), layer) for key, inner in inside.items()}
        return _Node(layer, children=children, listed=items is not None)
    return _Node(layer, leaf=value)


def _patched(node: _Node | None, patch: Any, path: Path, layer: str, faults: list[Fault]) -> _Node:
    """RFC 7396, and named items by their names."""
    if not isinstance(patch, dict):
        if len(path) != 4 or not _is_named(path[:3]):
            return _node(patch, path, layer)
        faults.append(Fault(dotted(path), "should be a mapping (key: value), or null", "what shall change of it", layer))
        return _Node(layer, children={})
    listed = _is_named(path)
    if listed and node is not None and not node.listed:
        hint = "they need names that are unique; or send the whole list"
        faults.append(Fault(dotted(path), "its items cannot be patched by name", hint, layer))
    children = dict(node.children) if node is not None and node.children is not None else {}
    for key, value in patch.items():
        here = (*path, key)
        if len(here) == 5 and _is_named(here[:3]) and key == "name":
            if value != here[3]:
                faults.append(Fault(dotted(here), f"is another name than {here[3]}", "remove this one and add another", layer))
        elif value is None:
            children.pop(key, None)
        else:
            children[key] = _patched(children.get(key), value, here, layer, faults)
    return _Node(layer, children=children, listed=listed)


def _kept(layer: Layer) -> tuple[Path, ...]:
    return KEPT if layer.name == GATEWAY else (*KEPT, GROUPS)


def _applied(root: _Node, layer: Layer, faults: list[Fault]) -> _Node:
    """A whole configuration replaces everything but what belongs to the machine."""
    if layer.config is None:
        return _patched(root, layer.content, (), layer.name, faults)
    whole = _node(layer.config, (), layer.name)
    for path in _kept(layer):
        whole = _grafted(whole, root, path)
    return whole


def _grafted(node: _Node, donor: _Node, path: Path) -> _Node:
    """With what the donor has at the path, where the node has nothing."""
    key = str(path[0])
    theirs = (donor.children or {}).get(key)
    if theirs is None or node.children is None:
        return node
    mine = node.children.get(key)
    if len(path) == 1:
        return node if mine is not None else _Node(node.layer, children={**node.children, key: theirs})
    inner = _grafted(mine if mine is not None else _Node(theirs.layer, children={}), theirs, path[1:])
    return _Node(node.layer, children={**node.children, key: inner}) if inner.children else node


def _value(node: _Node) -> Any:
    if node.children is None:
        return node.leaf
    if node.listed:
        return [{"name": name, **_value(item)} for name, item in node.children.items()]
    return {key: _value(child) for key, child in node.children.items()}


def _origins(node: _Node, path: Path) -> Iterator[tuple[Path, str]]:
    if not node.children:
        yield path, node.layer
    for key, child in (node.children or {}).items():
        yield from _origins(child, (*path, key))


def _largest(said: Sequence[tuple[Path, str]], path: Path) -> Iterator[tuple[Path, str]]:
    """The largest parts that are all of one layer. `said`: of the leaves at and below the path."""
    if len({layer for _, layer in said}) == 1:
        yield path, said[0][1]
        return
    below: dict[Path, list[tuple[Path, str]]] = {}
    for each in said:
        below.setdefault(each[0][: len(path) + 1], []).append(each)
    for inner, those in below.items():
        yield from _largest(those, inner)


def _is_named(path: Path) -> bool:
    return len(path) == 3 and (path[0], path[2]) in NAMED


def _by_name(items: Sequence[Any]) -> dict[str, Any] | None:
    """[{"name": "a", ...}] -> {"a": {...}}; None: an item is no mapping, has no name, or that of another one."""
    found: dict[str, Any] = {}
    for item in items:
        name = item.get("name") if isinstance(item, dict) else None
        if not isinstance(name, str) or name in found:
            return None
        found[name] = {key: value for key, value in item.items() if key != "name"}
    return found


def _at(value: Any, path: Path) -> Any:
    for step in path:
        value = value.get(step) if isinstance(value, dict) else None
    return value


def _paths(value: Any, path: Path) -> Iterator[Path]:
    yield path
    steps = value.items() if isinstance(value, dict) else enumerate(value) if isinstance(value, list) else ()
    for step, inner in steps:
        yield from _paths(inner, (*path, step))
