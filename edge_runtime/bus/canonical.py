"""JSON that says one thing (pure): read strictly, and written in the one way that a hash can be made of.

Read: no key twice in an object, no NaN, not deeper than 32, text that can be written again. Written: canonical JSON (RFC 8785: no
spaces, keys sorted, `80.0` is `80`) with one difference: a whole number keeps all its digits, also beyond 2^53.
"""

from __future__ import annotations

import hashlib
import json
import math
import re
from collections.abc import Iterable, Mapping
from decimal import Decimal
from typing import Any

from edge_runtime.bus.messages import BadMessage
from edge_runtime.document import DEPTH_MAX

DIGITS_MAX = 40
"""Characters of a number that a person writes."""

SHOWN_CHARACTERS_MAX = 60


def read(payload: bytes, what: str) -> Any:
    """Raises BadMessage; `what` stands in front of its cause."""
    try:
        content = payload.decode("utf-8-sig")
        value = json.loads(content, object_pairs_hook=_once, parse_constant=_no_number, parse_float=_number, parse_int=_whole)
    except UnicodeDecodeError:
        raise BadMessage(f"{what}: is no text in UTF-8", "JSON is") from None
    except json.JSONDecodeError as error:
        hint = "a quote, a comma or a bracket is missing there, or one too many"
        raise BadMessage(f"{what}: no valid JSON: {error.msg} (line {error.lineno}, character {error.colno})", hint) from None
    except _Odd as odd:
        raise BadMessage(f"{what}: {odd}", "") from None
    except RecursionError:
        raise BadMessage(f"{what}: is nested deeper than {DEPTH_MAX}", "") from None
    _check_depth(value, what)
    if re.search(r"\\u[dD][89a-fA-F]", content):
        _check_surrogates(value, what)
    return value


class _Odd(Exception):
    """JSON by its grammar, and yet not to be taken."""


def _once(pairs: list[tuple[str, Any]]) -> dict[str, Any]:
    value = dict(pairs)
    if len(value) != len(pairs):
        seen: dict[str, None] = {}
        twice = next(key for key, _ in pairs if key in seen or seen.setdefault(key) is not None)
        raise _Odd(f"the key {short(twice)} stands twice in one object")
    return value


def _no_number(text: str) -> Any:
    raise _Odd(f"{text} is no number")


def _number(text: str) -> int | float:
    """80.0 is 80: they are one number in JSON, have one hash, and a tool of JavaScript writes the one for the other."""
    if len(text) > DIGITS_MAX:
        raise _Odd(f"the number {short(text)} has more than {DIGITS_MAX} characters")
    value = float(text)
    if not math.isfinite(value):
        raise _Odd(f"the number {short(text)} is too large")
    return int(value) if value.is_integer() and abs(value) <= 2**53 else value


def _whole(text: str) -> int:
    if len(text) > DIGITS_MAX:
        raise _Odd(f"the number {short(text)} has more than {DIGITS_MAX} characters")
    return int(text)


def _check_depth(value: Any, what: str) -> None:
    level = [value]
    for _ in range(DEPTH_MAX + 1):
        level = [inner for outer in level for inner in _inside(outer)]
        if not level:
            return
    raise BadMessage(f"{what}: is nested deeper than {DEPTH_MAX}", "")


def _inside(value: Any) -> Iterable[Any]:
    return value.values() if isinstance(value, dict) else value if isinstance(value, list) else ()


def _check_surrogates(value: Any, what: str) -> None:
    try:
        text(value).decode()
    except UnicodeDecodeError:
        raise BadMessage(
            f"{what}: holds half a character (\\ud800 to \\udfff)", "write both halves of it, or the character"
        ) from None


def short(text: str) -> str:
    """For a message: without what a terminal would do something with."""
    plain = json.dumps(text)[1:-1]
    return plain if len(plain) <= SHOWN_CHARACTERS_MAX else plain[: SHOWN_CHARACTERS_MAX - 1] + "…"


def digest(value: Mapping[str, Any]) -> str:
    """SHA-256 of the canonical JSON, 64 hex digits."""
    return hashlib.sha256(text(value)).hexdigest()


def text(value: Any) -> bytes:
    """The one JSON text of a value (see above), in UTF-8. Of anything that YAML or JSON can say."""
    return _canonical(value).encode("utf-8", "surrogatepass")


def _canonical(value: Any) -> str:
    if isinstance(value, Mapping):
        ordered = sorted(value.items(), key=lambda item: item[0].encode("utf-16-be", "surrogatepass"))
        return "{" + ",".join([f"{_canonical(key)}:{_canonical(inner)}" for key, inner in ordered]) + "}"
    if isinstance(value, list | tuple):
        return "[" + ",".join([_canonical(inner) for inner in value]) + "]"
    if isinstance(value, float) and math.isfinite(value):
        return _ecmascript(value)
    return json.dumps(value, ensure_ascii=False)


def _ecmascript(value: float) -> str:
    """As JavaScript writes a number: the shortest digits that read back the same."""
    if value == 0:
        return "0"
    sign, digits, _ = Decimal(repr(value)).normalize().as_tuple()
    figures, point = "".join(map(str, digits)), Decimal(repr(value)).adjusted() + 1
    if len(figures) <= point <= 21:
        text = figures.ljust(point, "0")
    elif 0 < point <= 21:
        text = f"{figures[:point]}.{figures[point:]}"
    elif -6 < point <= 0:
        text = "0." + "0" * -point + figures
    else:
        text = figures[0] + (f".{figures[1:]}" if len(figures) > 1 else "") + f"e{point - 1:+d}"
    return "-" + text if sign else text
