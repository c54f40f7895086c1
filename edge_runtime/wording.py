"""What a validation error is called in a configuration file, and what helps: pydantic's words are a programmer's."""

from __future__ import annotations

import json
import re
from collections.abc import Sequence
from typing import Any

_UNITS = {"s": "seconds", "ns": "nanoseconds", "bytes": "bytes", "hz": "Hz"}
"""Units stand in the names of keys: `timeout_s`, `size_bytes_max`."""

_PHRASES = (
    ("Value error, ", ""),
    ("List should have at least 1 item after validation, not 0", "must not be empty"),
    ("Tuple should have at least 1 item after validation, not 0", "must not be empty"),
    ("Dictionary should have at least 1 item after validation, not 0", "must not be empty"),
    ("Unable to extract tag using discriminator 'type'", "has no type"),
    ("Input should be ", "should be "),
    ("a valid dictionary", "a mapping (key: value)"),
    ("an object", "a mapping (key: value)"),
    ("a valid array", "a list"),
    ("a valid string", "a text"),
    ("a valid integer", "a whole number"),
    ("a valid number", "a number"),
    ("a valid boolean", "true or false"),
)


def message(text: str) -> str:
    """Pydantic's words in those of a configuration file."""
    if text.startswith("String should match pattern"):
        return "has not the right form"  # nobody should have to read a pattern
    for theirs, ours in _PHRASES:
        text = text.replace(theirs, ours)
    return text[:1].lower() + text[1:]


def with_example(description: str, key: str | int, examples: Sequence[Any] | None) -> str:
    """What a key is for, and how it may be written."""
    return f"{description}; for instance `{key}: {json.dumps(examples[0], ensure_ascii=False)}`" if examples else description


def as_number(key: str, value: str) -> str:
    """How a text that was meant as a number is written; "" where it is none."""
    if re.fullmatch(r"[-+]?\d+,\d+", value):
        return f"with a point in the place of the comma: `{key}: {value.replace(',', '.')}`"
    if not re.match(r"[-+]?\.?\d", value):
        return ""
    unit = next((_UNITS[part] for part in reversed(key.split("_")) if part in _UNITS), "")
    return f"a number alone, in {unit}" if unit else "a number alone, without a unit"


def as_list(key: str, value: Any) -> str:
    """How what stands in the place of a list is written."""
    if value is None:
        return as_nothing("an item")
    if isinstance(value, dict):
        return f"each item of `{key}` begins with `- `"
    return f"put brackets around it: `{key}: [...]`"  # without the value: it may be a password


def as_mapping(key: str, value: Any, *, of_names: bool) -> str:
    """How what stands in the place of a mapping is written; "" where its description says more."""
    if value is None:
        return as_nothing("a key")
    return f"no list: in `{key}`, `NAME:` stands in the place of each `- `" if isinstance(value, list) and of_names else ""


def as_nothing(what: str) -> str:
    """The key stands there with nothing behind it."""
    return f"leave the key out to have the default, or put {what} below it"
