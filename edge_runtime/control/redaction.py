"""What of a configuration may be shown (pure): the same, with "***" in the place of each secret.

A secret is: the password of a URL; what stands under a key whose name says so (`password`, `api_key`, `token`; not `token_file`,
which says where one is); and what the adapter's options declare to be one (`SecretStr`, or `json_schema_extra={"secret": True}`).
Of an adapter that is not installed nobody knows which options are secret: then all of its texts are. `secret:NAME` is no secret
but the name of one, and stays.
"""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Mapping
from dataclasses import replace
from functools import lru_cache
from typing import Any, get_args

from pydantic import BaseModel, SecretBytes, SecretStr
from pydantic.fields import FieldInfo

from edge_runtime import references
from edge_runtime.adapter import Adapter, Point
from edge_runtime.document import Path, Problem
from edge_runtime.ports import EdgeError

HIDDEN = "***"
SHOWN_BEGINNING = 16
"""Of a secret: by so much of it one is recognised that was cut short."""

SCRUBBED_CHARACTERS_MIN = 4
"""A secret that is shorter stands in every text by chance: `scrub` leaves it, and masks nothing of an innocent log."""

_SAYS = re.compile(r"passw|passphrase|passcode|secret|token|credential|api_?key|private_?key|auth_?key|shared_?key")
_SAYS_AS_WORD = frozenset({"pass", "pwd", "key", "keys", "psk", "pin", "auth", "authorization", "bearer", "cookie", "community"})
_SAYS_WHERE = frozenset({"file", "files", "path", "dir", "folder", "env", "name", "id", "type", "url", "uri"})
_SAYS_WHERE |= {"s", "ms", "max", "min", "size", "bytes", "count"}
"""A key that ends with one of these is about a secret and holds none."""

_IN_URL = re.compile(r"://(?:([^/:@\s]*):)?(.*)@", re.DOTALL)
"""Up to the last @: a password may hold / and @ although a URL may not."""

_BEFORE_HOST = re.compile(r"(?<!\S)([^\s/:@]*):\S*@(?=\S)")
"""user:password@host, a URL whose scheme was forgotten."""

_IN_QUERY = re.compile(r"([?&]([^=&#\s]+)=)([^&#\s]+)")
_NAMED_BY_PEOPLE: tuple[tuple[str, ...], ...] = (
    ("devices", "*"),
    ("devices", "*", "points", "*"),
    ("pipelines", "*"),
    ("pipelines", "*", "rules", "*"),
    ("sinks", "*"),
)
"""What a person called `token` here is a device, not a token."""

Schemas = Mapping[str, type[Adapter]]


def redacted(config: Mapping[str, Any], schemas: Schemas, known: Mapping[str, Any] | None = None) -> dict[str, Any]:
    """Of a configuration, or of a patch of one; `known` is then the configuration that says which adapter a device has."""
    return {key: _shown(value, (key,), (), _Adapters(config, known or {}, schemas)) for key, value in config.items()}


class Redacting:
    """The last configuration that was asked for, without its secrets: of a large one that takes a second, and it is done once."""

    def __init__(self, schemas: Schemas) -> None:
        self._schemas = schemas
        self._of: Mapping[str, Any] | None = None
        self._shown: dict[str, Any] = {}

    def __call__(self, config: Mapping[str, Any]) -> dict[str, Any]:
        if self._of is not config:
            self._of, self._shown = config, redacted(config, self._schemas)
        return self._shown


def secrets(config: Mapping[str, Any], schemas: Schemas, known: Mapping[str, Any] | None = None) -> tuple[str, ...]:
    """The texts that `redacted` hides, the longest first: to look for them in a log or a bundle."""
    found = dict.fromkeys(_hidden(config, redacted(config, schemas, known)))
    return tuple(sorted((text for text in found if len(text) >= SCRUBBED_CHARACTERS_MIN), key=lambda text: (-len(text), text)))


def scrub(text: str, known_secrets: Iterable[str]) -> str:
    """A text without these secrets, and without the password of any URL."""
    text = _without(text, known_secrets)
    return re.sub(rf"://([^/:@\s]*):(?!secret:{references.NAME}@)[^\s\"']*@", rf"://\1:{HIDDEN}@", text)


def hushed(problems: Iterable[Problem], config: Mapping[str, Any], schemas: Schemas) -> list[Problem]:
    """What is wrong with a configuration, without the secrets in it: for a log, a report, a terminal."""
    hidden = secrets(config, schemas)

    def value(problem: Problem) -> str | float | None:
        """Of a long text only the beginning stands there."""
        said = problem.value
        if isinstance(said, str) and any(said[:SHOWN_BEGINNING] == secret[:SHOWN_BEGINNING] for secret in hidden):
            return HIDDEN
        key = re.split(r"[.\[]", problem.path)[-1]
        return HIDDEN if said is not None and says_secret(key) else scrub(said, hidden) if isinstance(said, str) else said

    return [
        replace(each, message=scrub(each.message, hidden), value=value(each), hint=_without(each.hint, hidden))
        for each in problems
    ]


def _without(text: str, known_secrets: Iterable[str]) -> str:
    for secret in known_secrets:
        text = text.replace(secret, HIDDEN)
    return text


@lru_cache(1_024)
def says_secret(key: str) -> bool:
    """api_key, accessToken, PASSWORD: yes. token_file, keepalive_s: no."""
    words = re.findall(r"[a-z]+", re.sub(r"([a-z0-9])([A-Z])", r"\1_\2", key).lower())
    if not words or words[-1] in _SAYS_WHERE:
        return False
    return bool(_SAYS.search("_".join(words))) or any(word in _SAYS_AS_WORD for word in words)


class _Adapters:
    """Which options are secret, by device."""

    def __init__(self, config: Mapping[str, Any], known: Mapping[str, Any], schemas: Schemas) -> None:
        self._places, self._schemas = (config, known), schemas

    def of(self, device: str) -> type[Adapter] | None:
        """None: nobody knows."""
        for place in self._places:
            devices = place.get("devices")
            settings = devices.get(device) if isinstance(devices, dict) else None
            name = settings.get("adapter") if isinstance(settings, dict) else None
            if name is not None:
                try:
                    return self._schemas[name] if isinstance(name, str) and name in self._schemas else None
                except EdgeError:  # its module cannot be imported
                    return None
        return None


class _Unknown(BaseModel):
    """Stands for the options of an adapter that nobody knows."""


Models = tuple[type[BaseModel], ...]


def _shown(value: Any, path: Path, models: Models, adapters: _Adapters) -> Any:
    """`models`: those that the value may be of, in an adapter's options and points."""
    if len(path) == 3 and path[0] == "devices" and path[2] in ("options", "points"):
        adapter = adapters.of(str(path[1]))
        models = (_Unknown,) if adapter is None else (adapter.Options if path[2] == "options" else adapter.Point,)
    key = path[-1]
    if isinstance(key, str) and not _is_name(path) and _is_secret(key, models):
        return _covered(value)
    inner = _below(key, models) if isinstance(key, str) and len(path) > 3 and not _is_name(path) else models
    if isinstance(value, dict):
        return {step: _shown(one, (*path, step), inner, adapters) for step, one in value.items()}
    if isinstance(value, list):
        return [_shown(one, (*path, number), inner, adapters) for number, one in enumerate(value)]
    if not isinstance(value, str):
        return value
    return _covered(value) if _Unknown in models and key not in Point.model_fields else _text(value)


def _covered(value: Any) -> Any:
    """A secret. What is empty, or refers to one, may be seen."""
    if value is None or isinstance(value, bool) or value in ("", HIDDEN):
        return value
    return value if isinstance(value, str) and references.name_in(value) else HIDDEN


def _text(value: str) -> str:
    """Also without halves of characters, which no message can carry."""
    if references.name_in(value):
        return value
    value = value.encode("utf-8", "replace").decode()
    value = _IN_URL.sub(_user_only, value)
    if "://" not in value:
        return _BEFORE_HOST.sub(rf"\1:{HIDDEN}@", value)
    return _IN_QUERY.sub(lambda found: found[1] + HIDDEN if says_secret(found[2]) else found[0], value)


def _user_only(found: re.Match[str]) -> str:
    """://user:***@; a reference may be seen."""
    user, password = found.groups()
    if user is None:
        return f"://{HIDDEN}@"
    return found[0] if references.name_in(password) else f"://{user}:{HIDDEN}@"


def _is_name(path: Path) -> bool:
    return any(
        len(path) == len(place) and all(want in ("*", step) for want, step in zip(place, path, strict=True))
        for place in _NAMED_BY_PEOPLE
    )


# --- what an adapter declares ----------------------------------------------------------------------------------------


def _is_secret(key: str, models: Models) -> bool:
    return says_secret(key) or any(_is_declared(field) for field in _fields(key, models))


def _is_declared(field: FieldInfo) -> bool:
    extra = field.json_schema_extra
    flagged = isinstance(extra, dict) and bool(extra.get("secret"))
    return flagged or any(one in (SecretStr, SecretBytes) for one in _parts(field.annotation))


def _below(key: str, models: Models) -> Models:
    """What may stand under a key; a key that is no field is that of a mapping, or wrong."""
    fields = _fields(key, models)
    if not fields:
        return models
    return tuple(
        one for field in fields for one in _parts(field.annotation) if isinstance(one, type) and issubclass(one, BaseModel)
    )


def _fields(key: str, models: Models) -> list[FieldInfo]:
    return [found for model in models if (found := _keys(model).get(key)) is not None]


@lru_cache(256)
def _keys(model: type[BaseModel]) -> dict[str, FieldInfo]:
    """Its fields by the keys that they may be written with."""
    found = dict(model.model_fields)
    for field in model.model_fields.values():
        found |= {alias: field for alias in (field.alias, field.validation_alias) if isinstance(alias, str)}
    return found


def _parts(annotation: Any) -> tuple[Any, ...]:
    """Every type that a type is made of: dict[str, SecretStr | None] -> str, SecretStr, None."""
    inner = get_args(annotation)
    return tuple(one for each in inner for one in _parts(each)) if inner else (annotation,)


def _hidden(value: Any, shown: Any) -> Iterator[str]:
    """The texts of which something was hidden: of a URL, the part that was."""
    if isinstance(value, dict) and isinstance(shown, dict):
        for key, inner in value.items():
            yield from _hidden(inner, shown[key])
    elif isinstance(value, list) and isinstance(shown, list):
        for inner, one in zip(value, shown, strict=True):
            yield from _hidden(inner, one)
    elif value != shown and shown == HIDDEN:
        yield from _leaves(value)
    elif isinstance(value, str) and HIDDEN in str(shown) and value != shown:
        yield from _pieces(value, str(shown))


def _leaves(value: Any) -> Iterator[str]:
    if isinstance(value, dict | list):
        for inner in value.values() if isinstance(value, dict) else value:
            yield from _leaves(inner)
    elif value is not None and not isinstance(value, bool):
        yield str(value)


def _pieces(value: str, shown: str) -> Iterator[str]:
    """What stands where the asterisks are."""
    pattern = "(.*)".join(re.escape(part) for part in shown.split(HIDDEN))
    found = re.fullmatch(pattern, value, re.DOTALL)
    yield from (found.groups() if found else (value,))
