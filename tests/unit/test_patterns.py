"""A pattern holds to the end of a text: a name with a line end behind it would be two lines in the broker's files."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec
import pytest

from edge_runtime.bus import chunks, control, messages, presence, renewal
from edge_runtime.mesh import announcing
from edge_runtime.trust import envelope, roster

MODULES = (announcing, chunks, control, envelope, messages, presence, renewal, roster)


def patterns() -> Iterator[tuple[str, str]]:
    """Of every type that stands in them."""
    for module in MODULES:
        for name, kind in vars(module).items():
            found: list[object] = [kind] if hasattr(kind, "__metadata__") else []
            if isinstance(kind, type) and issubclass(kind, msgspec.Struct):
                found = [field.type for field in msgspec.inspect.type_info(kind).fields]  # type: ignore[union-attr]
            for each in found:
                metas = getattr(each, "__metadata__", None) or [each]
                for meta in metas:
                    if pattern := getattr(meta, "pattern", None):
                        yield f"{module.__name__}.{name}", pattern


@pytest.mark.parametrize("pattern", sorted({pattern for _, pattern in patterns()}))
def test_a_pattern_does_not_end_before_a_line_end(pattern: str) -> None:
    assert pattern.endswith(r"\Z"), pattern


def test_there_are_some() -> None:
    assert len({pattern for _, pattern in patterns()}) > 10


@pytest.mark.parametrize("text", ["press\n", "press\n\n", "\npress", "press x"])
def test_a_name_is_one_word(text: str) -> None:
    for kind in (messages.Word, roster.Name, control.Id):
        with pytest.raises(msgspec.ValidationError):
            msgspec.convert(text, kind)
