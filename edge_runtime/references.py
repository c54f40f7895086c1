"""`secret:NAME`: what a configuration says where it must not hold a secret itself (pure).

It is taken where a password goes, and nowhere else:

| where                                               | how                                    |
|-----------------------------------------------------|----------------------------------------|
| `broker.url`, the `url` of an mqtt sink             | mqtt://user:secret:NAME@host           |
| options of a device: a URL of a broker              | mqtt://user:secret:NAME@host           |
| options of a device that the adapter calls a secret | password: secret:NAME                  |

A reference is no secret: it is stored, reported and shown. What it stands for is asked for in the moment in which it is used.
A password that itself begins with `secret:` cannot stand in a configuration; as a secret it can be used.
"""

from __future__ import annotations

import re
from collections.abc import Iterator
from typing import Any

from edge_runtime.document import Path

NAME = r"[A-Za-z0-9][A-Za-z0-9_.-]{0,99}"
"""Of a secret: it is the name of a file, too."""

VARIABLE = "EDGE_RUNTIME_SECRET_"

_REFERENCE = re.compile(rf"secret:({NAME})", re.ASCII)
_IN_URL = re.compile(rf"://[^/:@\s]*:secret:({NAME})@(?=[^@]*$)", re.ASCII)


def name_in(text: str) -> str:
    """`secret:NAME` -> NAME; "" for what is no reference."""
    found = _REFERENCE.fullmatch(text)
    return found[1] if found else ""


def name_in_url(url: str) -> str:
    """Of the password: mqtt://user:secret:NAME@host -> NAME; ""."""
    found = _IN_URL.search(url)
    return found[1] if found else ""


def is_name(text: str) -> bool:
    """Whether a secret can be called so."""
    return re.fullmatch(NAME, text, re.ASCII) is not None


def variable(name: str) -> str:
    """The environment variable that a secret may stand in: cloud-password -> EDGE_RUNTIME_SECRET_CLOUD_PASSWORD."""
    return VARIABLE + re.sub(r"[^A-Z0-9]", "_", name.upper())


def found(value: Any, here: Path = ()) -> Iterator[tuple[Path, str]]:
    """Every reference in a configuration: (path, NAME)."""
    if isinstance(value, dict):
        for key, inner in value.items():
            yield from found(inner, (*here, key))
    elif isinstance(value, list | tuple):
        for number, inner in enumerate(value):
            yield from found(inner, (*here, number))
    elif isinstance(value, str) and (name := name_in(value) or name_in_url(value)):
        yield here, name


def taken_at(path: Path) -> bool:
    """Whether a reference there is understood as one."""
    match path:
        case ("broker", "url") | ("sinks", _, "url"):
            return True
        case ("devices", _, "options", *_):
            return True
    return False
