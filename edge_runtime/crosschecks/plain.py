"""Plain values of a text, which may be anything: nobody has checked them yet."""

from __future__ import annotations

import contextlib
import math
from collections.abc import Mapping
from typing import Any

from edge_runtime.adapter import Adapter
from edge_runtime.document import Document, Path
from edge_runtime.ports import EdgeError


def schema(schemas: Mapping[str, type[Adapter]], name: Any) -> type[Adapter] | None:
    with contextlib.suppress(EdgeError):  # that is said elsewhere
        return schemas[name] if isinstance(name, str) and name in schemas else None
    return None


def number(value: Any) -> float:
    """NaN for what is no number: it is neither smaller nor larger than anything, and pydantic says that it is none."""
    return value if isinstance(value, int | float) and not isinstance(value, bool) else math.nan


def names(doc: Document, here: Path) -> list[str]:
    names = (mapping(item).get("name") for item in items(doc.at(here)))
    return [name for name in names if isinstance(name, str)]


def mapping(value: Any) -> dict[str, Any]:
    return value if isinstance(value, dict) else {}


def items(value: Any) -> list[Any]:
    return value if isinstance(value, list) else []
