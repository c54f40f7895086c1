"""What a document would do to a gateway that reports so and so (decides): which values change, what restarts, what is wrong.

It is made of what the gateway runs now, the document, and what the layers above it say once more: a merge patch may be said
twice. The file on the gateway is not known here, so where the document takes back what it said before, what shows up
from below cannot be told (`unknown`). Secrets stand in a report as "***", and so they do here: a new one as "****".
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from dataclasses import dataclass, field
from typing import Any

from pydantic import ValidationError

from edge_runtime.bus.control import Fault, Reported
from edge_runtime.cli.config import shape
from edge_runtime.config import Config
from edge_runtime.control.layers import BadLayers, Effective, Layer, merge, validated
from edge_runtime.control.origin import bare
from edge_runtime.control.plan import Plan, plan
from edge_runtime.control.redaction import HIDDEN, Schemas, redacted
from edge_runtime.document import dotted

NEW = "****"
"""In the place of a secret that may be another one now."""

ABSENT = "(nothing)"


@dataclass(frozen=True)
class Preview:
    """`changes`: (path, before, after), as YAML. `does`: what happens to which part. `faults`: why it will be refused."""

    gateway: str
    changes: tuple[tuple[str, str, str], ...] = ()
    does: tuple[str, ...] = ()
    restarts: tuple[str, ...] = ()
    faults: tuple[Fault, ...] = ()
    unknown: tuple[str, ...] = ()
    moved: Config | None = None
    """What is wanted, where that moves the broker."""


@dataclass(frozen=True)
class Stack:
    """`layer`: the document, new; `before`: what its layer said (a patch, or a whole one). `above`: the layers above it;
    `unclear`: those of them of which nobody here knows what they say."""

    layer: Layer
    before: Mapping[str, Any] = field(default_factory=dict)
    above: Sequence[Layer] = ()
    unclear: Sequence[str] = ()


def preview(report: Reported, stack: Stack, schemas: Schemas) -> Preview:
    name, now = report.gateway, report.config
    if now is None:
        return Preview(name, unknown=("it does not report its configuration: " + (report.hint or report.state),))
    layer = _covered(stack.layer, _redacted(stack, now, schemas))
    above = [_covered(each, redacted(each.content, schemas, now)) for each in stack.above]
    runs_nothing = report.mode == "safe" and not any(now.get(each) for each in ("devices", "pipelines"))
    try:
        after = merge(now, [layer, *above])
    except BadLayers as error:
        return _of_bare(name, now, now) if runs_nothing else Preview(name, faults=error.faults)
    if runs_nothing:
        return _of_bare(name, now, after.config)
    unknown = [f"{path}: falls back to what the layers below say" for path in _taken_back(stack)]
    unknown += [f"{layer} counts more, and what it says is not known here" for layer in stack.unclear]
    faults = _new(_faults(after, schemas), _faults(Effective(now, {}), schemas))
    found = _plan(now, after.config)
    if found is None and not faults:
        unknown.append("what restarts cannot be told from here: this program is another version than the gateway's")
    found = found or Plan()
    moved = Config.model_validate(after.config) if found.moves else None
    changes = tuple(_changes(now, after.config))
    return Preview(name, changes, tuple(found.describe()), found.restarts, faults, tuple(unknown), moved)


def _of_bare(name: str, now: Mapping[str, Any], after: Mapping[str, Any]) -> Preview:
    """It shows its broker and control alone, and a document builds on more than that: not that anything is missing can be told,
    only whether it moves."""
    moved = bare(after)
    unknown = ("it is in safe mode and runs nothing but broker and control: what it makes of it is not known here",)
    moves = plan(bare(now), moved).moves
    return Preview(name, tuple(_changes(now, after)), unknown=unknown, moved=moved if moves else None)


def _covered(layer: Layer, content: Mapping[str, Any]) -> Layer:
    if layer.config is not None:
        return Layer(layer.name, layer.revision, config=content)
    return Layer(layer.name, layer.revision, patch=content)


def _redacted(stack: Stack, now: Mapping[str, Any], schemas: Schemas) -> dict[str, Any]:
    """The document without its secrets. One that the layer has not said before may be another than that which is in force."""
    content = stack.layer.content
    found: dict[str, Any] = _marked(content, redacted(content, schemas, now), stack.before)
    return found


def _marked(value: Any, shown: Any, before: Any) -> Any:
    if isinstance(value, Mapping) and isinstance(shown, Mapping):
        said = before if isinstance(before, Mapping) else {}
        return {key: _marked(inner, shown[key], said.get(key)) for key, inner in value.items()}
    if isinstance(value, list) and isinstance(shown, list):
        items = before if isinstance(before, list) and len(before) == len(value) else [None] * len(value)
        return [_marked(*each) for each in zip(value, shown, items, strict=True)]
    return shown.replace(HIDDEN, NEW) if shown != value and value != before else shown


def _changes(now: Mapping[str, Any], after: Mapping[str, Any]) -> list[tuple[str, str, str]]:
    before, then = (dict(shape.leaves(each)) for each in (now, after))
    paths = dict.fromkeys((*before, *then))
    told = [(dotted(path), *(shape.scalar(side[path]) if path in side else ABSENT for side in (before, then))) for path in paths]
    return [(path, was, will) for path, was, will in told if was != will]


def _plan(now: Mapping[str, Any], after: Mapping[str, Any]) -> Plan | None:
    """None: it cannot be told. Without the adapters, so a changed option counts as the larger restart that it may be."""
    try:
        return plan(Config.model_validate(now), Config.model_validate(after))
    except ValidationError:
        return None


def _faults(effective: Effective, schemas: Schemas) -> tuple[Fault, ...]:
    try:
        validated(effective, schemas)
    except BadLayers as error:
        return error.faults
    return ()


def _new(found: Sequence[Fault], before: Sequence[Fault]) -> tuple[Fault, ...]:
    """What the gateway runs is right there, whatever is said of it here: without its adapters, its version, its secrets."""
    known = {(each.path, each.message) for each in before}
    return tuple(each for each in found if (each.path, each.message) not in known)


def _taken_back(stack: Stack) -> list[str]:
    """Paths of which the layer spoke, and does no more."""
    if stack.layer.config is not None:
        return []
    said = [path for path, _ in shape.leaves(stack.layer.content) if path]
    gone = [path for path, _ in shape.leaves(stack.before) if path and not any(_is_part(each, path) for each in said)]
    return [dotted(path) for path in gone]


def _is_part(one: shape.Path, other: shape.Path) -> bool:
    shorter = min(len(one), len(other))
    return one[:shorter] == other[:shorter]
