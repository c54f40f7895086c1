"""Commented YAML samples, generated from the models, so that no sample can be out of date.

A key stands open where it is required or where its field gives an example. Every other one is commented out with its default:
`#` without a space; taking the `#` away opens it. Every key has its description above it, after `# `.
"""

from __future__ import annotations

import json
import textwrap
from collections.abc import Iterator
from typing import Any, Literal, get_args, get_origin

from pydantic import BaseModel, Field, create_model
from pydantic.fields import FieldInfo

from edge_runtime.adapter import Adapter
from edge_runtime.config import Config, Device, Name

COLUMNS_MAX = 110
INDENT = "  "
ENTRY_NAMES = {"Device": "press", "Pipeline": "press-anomaly", "MqttSink": "plant", "HttpsSink": "cloud"}
"""What the entries of a mapping are called in the sample, by their model."""


def configuration(name: str, adapter: type[Adapter]) -> list[str]:
    """A whole configuration file with one device of this adapter; it is valid as it is."""
    special: Any = (dict[Name, _device(name, adapter)], Config.model_fields["devices"])  # type: ignore[misc]
    head = ["# Configuration of an edge-runtime gateway. Check it with: edge-runtime check FILE", ""]
    return head + _model(create_model("Config", __base__=Config, devices=special), spaced=True)


def device(name: str, adapter: type[Adapter]) -> list[str]:
    """The `devices` section with one device of this adapter."""
    return ["devices:", f"{INDENT}{ENTRY_NAMES['Device']}:", *_indented(_model(_device(name, adapter)), 2)]


def _device(name: str, adapter: type[Adapter]) -> type[BaseModel]:
    """The model of a device whose adapter is known."""
    fields = Device.model_fields
    about = {key: fields[key].description for key in ("adapter", "options", "points")}
    return create_model(
        "Device",
        __base__=Device,
        adapter=(str, Field(description=about["adapter"], examples=[name])),
        options=(adapter.Options, Field(description=about["options"])),
        points=(list[adapter.Point], Field(description=about["points"])),  # type: ignore[name-defined]
    )


def _model(model: type[BaseModel], *, spaced: bool = False, all_open: bool = False) -> list[str]:
    lines: list[str] = []
    for name, field in model.model_fields.items():
        lines += [f"# {line}" for line in textwrap.wrap(field.description or "", COLUMNS_MAX)]
        body = _field(name, field, all_open)
        lines += body if all_open or _is_open(field, body) else [f"#{line}" for line in _field(name, field, True)]
        lines += [""] if spaced else []
    return lines


def _field(name: str, field: FieldInfo, all_open: bool) -> list[str]:
    models = list(_models(field.annotation))
    if not models:
        return [f"{name}: {_scalar(_value(field))}".rstrip()]
    if list in _containers(field.annotation):
        first, *rest = _model(models[0], all_open=all_open)
        return [f"{name}:", *_indented([f"- {first}", *_indented(rest)])]
    if dict in _containers(field.annotation):
        entries = [[f"{ENTRY_NAMES.get(one.__name__, 'name')}:", *_indented(_model(one, all_open=all_open))] for one in models]
        return [f"{name}:", *_indented([line for entry in entries for line in entry])]
    return [f"{name}:", *_indented(_model(models[0], all_open=all_open))]


def _is_open(field: FieldInfo, body: list[str]) -> bool:
    if field.examples:
        return True
    if len(body) > 1:
        optional = not field.is_required() and field.get_default() is None and field.default_factory is None
        return not optional and any(_is_key(line) for line in body[1:])
    return field.is_required()


def _is_key(line: str) -> bool:
    return not line.strip().removeprefix("- ").startswith("#")


def _indented(lines: list[str], levels: int = 1) -> list[str]:
    return [f"{INDENT * levels}{line}" if line else line for line in lines]


def _models(annotation: Any) -> Iterator[type[BaseModel]]:
    if isinstance(annotation, type) and issubclass(annotation, BaseModel):
        yield annotation
    for argument in get_args(annotation):
        yield from _models(argument)


def _containers(annotation: Any) -> set[Any]:
    inner = [_containers(argument) for argument in get_args(annotation)]
    return {get_origin(annotation)}.union(*inner)


def _value(field: FieldInfo) -> Any:
    """What stands behind the key: an example, the default, or something of the right type."""
    if field.examples:
        return field.examples[0]
    if not field.is_required():
        return field.get_default(call_default_factory=True, validated_data={})
    least = next((limit.ge for limit in field.metadata if hasattr(limit, "ge")), None)
    return least if least is not None else _any_value(field.annotation)


def _any_value(annotation: Any) -> Any:
    if get_origin(annotation) is Literal:
        return get_args(annotation)[0]
    known = {str: "text", int: 1, float: 1.0, bool: False}
    if annotation in known:
        return known[annotation]
    return next((_any_value(argument) for argument in get_args(annotation)), None)


def _scalar(value: Any) -> str:
    """JSON is YAML; texts that cannot be taken for anything else stand without quotes."""
    if value is None:
        return ""
    text = json.dumps(value, ensure_ascii=False, default=str)
    plain = isinstance(value, str) and value.replace("-", "").replace("_", "").isalpha()
    return str(value) if plain and value.lower() not in ("true", "false", "null") else text
