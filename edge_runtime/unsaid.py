"""What pydantic leaves unsaid of a value (pure): it looks at keys together only where each one is right, and it ends at the first
thing that does not go together. So what was found is taken away, and the rest is looked at again."""

from __future__ import annotations

import json
import re
from collections.abc import Callable, Collection, Iterator, Mapping, Sequence
from typing import Any

from pydantic import BaseModel, ValidationError

Path = tuple[str | int, ...]
Place = Callable[[Any], Path]
"""Where an error is."""

ROUNDS_MAX = 8


def errors(model: type[BaseModel], value: Any) -> list[Any]:
    """By pydantic's strict JSON rules."""
    try:
        model.model_validate_json(json.dumps(value), strict=True)
    except ValidationError as error:
        return list(error.errors(include_url=False))
    return []


def without(value: Any, gone: Collection[Path], here: Path, instead: Mapping[Path, Any] | None = None) -> Any:
    """The value without the keys that stand there; `instead`: with another value."""
    put = instead or {}
    if isinstance(value, dict):
        kept = {key: item for key, item in value.items() if (*here, key) in put or (*here, key) not in gone}
        return {key: put.get((*here, key), without(item, gone, (*here, key), put)) for key, item in kept.items()}
    if isinstance(value, list):
        return [without(item, gone, (*here, number), put) for number, item in enumerate(value)]
    return value


def unsaid(model: type[BaseModel], value: Any, at: Path, found: Sequence[Any], place: Place) -> Iterator[Any]:
    """More errors like those that were `found`: of keys that do not go together, though none of them was named yet."""
    gone: set[Path] = set()
    news = found
    for _ in range(ROUNDS_MAX):
        fresh = {key for item in news for key in _named(item, place(item), value, at)} - gone
        if not fresh:
            return
        gone |= fresh
        seen = [errors(model, without(value, gone, at, instead)) for instead in _instead(news, place)]
        both = set.intersection(*({(place(item), item["msg"]) for item in each} for each in seen))
        news = [item for item in seen[0] if item["type"] == "value_error" and (place(item), item["msg"]) in both]
        news = [item for item in news if not any(_names(item, key) for key in gone if key[:-1] == place(item))]
        yield from news


def _named(item: Any, path: Path, value: Any, at: Path) -> Iterator[Path]:
    """The keys that an error is about."""
    here = value
    if item["type"] == "value_error":
        for step in path[len(at) :]:
            here = here[step]
        if isinstance(here, dict):
            yield from ((*path, key) for key in here if _names(item, (key,)))
            return
    while path[len(at) :] and not isinstance(path[-1], str):  # of an item of a list: the whole list
        path = path[:-1]
    if path[len(at) :]:
        yield path


def _names(item: Any, key: Path) -> bool:
    return re.search(rf"\b{re.escape(str(key[-1]))}\b", item["msg"]) is not None


def _instead(found: Sequence[Any], place: Place) -> list[dict[Path, Any]]:
    """Nothing, or one of the words that a wrong one may have been meant as: an error that goes away with one of them is none."""
    words = [
        (place(item), re.findall(r"'([^']*)'", item["ctx"]["expected"])) for item in found if item["type"] == "literal_error"
    ]
    return [{}, *({path: word} for path, expected in words for word in expected)]
