"""Where a value stands in a JSON document (pure): `motor.temp`, `$.values[0]`, `["strange.key"].x`; `.` is the whole document."""

from __future__ import annotations

import json
import re
from typing import Any

_KEY = re.compile(r"[^.\[\]\"'\s]+")
_INDEX = re.compile(r"\[\s*(-?\d{1,9})\s*\]")
_QUOTED = re.compile(r"\[\s*(?:\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)')\s*\]|\"((?:[^\"\\]|\\.)*)\"|'((?:[^'\\]|\\.)*)'")


class BadPath(ValueError):
    """It is no path; the text says where."""


class NotThere(LookupError):
    """The document has nothing at this path; the text says how far it goes."""


class JsonPath:
    """Compiled once, then used for every message. A negative index counts from the end."""

    def __init__(self, text: str) -> None:
        """Raises BadPath."""
        self.text = text
        self.steps = _parse(text)

    def find(self, document: Any) -> Any:
        """Raises NotThere."""
        value: Any = document
        for number, step in enumerate(self.steps):
            try:
                if not isinstance(value, dict if isinstance(step, str) else list):
                    raise KeyError
                value = value[step]  # type: ignore[index]
            except (KeyError, IndexError):
                parent = "".join(map(_show, self.steps[:number])).lstrip(".")
                where = f"in {parent}" if parent else "in the message"
                what = f"index {step}" if isinstance(step, int) else f"key {json.dumps(step, ensure_ascii=False)}"
                raise NotThere(f"path {self.text}: no {what} {where}") from None
        return value


def _parse(text: str) -> tuple[str | int, ...]:
    """Steps are .key, ."key", ["key"] or [index]; the first dot may be left out, and so may the $ before it."""
    if text in (".", "$"):
        return ()
    rest = text.removeprefix("$") if text.startswith(("$", ".", "[")) else f".{text}"
    steps: list[str | int] = []
    while rest:
        dotted = rest.startswith(".")
        found = _INDEX.match(rest, dotted) or _QUOTED.match(rest, dotted) or (_KEY.match(rest, 1) if dotted else None)
        if found is None or not (dotted or rest.startswith("[")):
            example = "write for instance motor.temp, values[0], a['b.c'], or . for the whole message"
            raise BadPath(f"path {text!r}: cannot be read from {rest!r} on: {example}")
        if found.re is _INDEX:
            steps.append(int(found[1]))
        elif found.re is _QUOTED:
            steps.append(re.sub(r"\\(.)", r"\1", next(group for group in found.groups() if group is not None)))
        else:
            steps.append(found[0])
        rest = rest[found.end() :]
    return tuple(steps)


def _show(step: str | int) -> str:
    if isinstance(step, int):
        return f"[{step}]"
    return f".{step}" if _KEY.fullmatch(step) else f"[{json.dumps(step, ensure_ascii=False)}]"
