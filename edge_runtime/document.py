"""A YAML text that knows the line of everything in it, and says all that is wrong with it at once.

YAML is read by its 1.2 core rules: `no`, `on` and `2026-01-01` are text, 010 is ten, 1e3 is a number. PyYAML's own (1.1) rules
turn them into false, true, a date, eight and text. Keys are always text. JSON is YAML, with tabs too. Tags, anchors, aliases
and merge keys are refused: a line of aliases of aliases unfolds into more than the memory holds.
"""

from __future__ import annotations

import difflib
import json
import math
import re
from collections.abc import Iterable, Iterator, Mapping, Sequence
from dataclasses import dataclass, field, replace
from functools import partial
from typing import Any, NoReturn, get_args, get_origin

import yaml
from pydantic import BaseModel
from pydantic.fields import FieldInfo

from edge_runtime import unsaid, wording
from edge_runtime.ports import EdgeError

SIZE_BYTES_MAX = 2**20
"""Some 18,000 points; reading that takes 3 s, and grows with the size."""
DEPTH_MAX = 32
SHOWN_CHARACTERS_MAX = 60
NEAR, UNKNOWN, MISSING = "did you mean", "unknown key", "is missing"

NAME = r"^[A-Za-z0-9][A-Za-z0-9_-]{0,62}$"
POINT_NAME = r"^[A-Za-z_][A-Za-z0-9_.-]*$"
_FORMS = {
    NAME: "letters, digits, - and _; starts with a letter or digit; at most 63",
    POINT_NAME: "letters, digits, _, . and -; starts with a letter or _",
}
"""What a name is, in words: nobody should have to read a pattern."""

Path = tuple[str | int, ...]
"""("devices", "press", "points", 3, "address")"""


@dataclass(frozen=True)
class Problem:
    """One thing that is wrong: where, what, and what to do about it."""

    file: str
    line: int
    path: str
    message: str
    value: str | float | None = None
    """What stands there, if it is a scalar: short, and without the password of a URL."""
    hint: str = ""

    def __str__(self) -> str:
        where = (f"{self.file}:{self.line}: " if self.file else "") + (f"{self.path}: " if self.path else "")
        value = "" if self.value is None else f" (it is {json.dumps(self.value, ensure_ascii=False)})"
        return where + self.message + value + (f"\n    hint: {self.hint}" if self.hint else "")


class DocumentError(EdgeError):
    """Everything that is wrong with a file."""

    def __init__(self, problems: Sequence[Problem]) -> None:
        super().__init__("\n".join(str(problem) for problem in problems))
        self.problems = tuple(problems)


@dataclass(frozen=True)
class Document:
    """The value of a text (mappings, lists, scalars) and the line of each key and item, counted from 1."""

    file: str
    value: Any
    lines: Mapping[Path, int] = field(repr=False)

    def line(self, path: Path) -> int:
        """Of the path, or of the nearest thing around it that exists."""
        while path and path not in self.lines:
            path = path[:-1]
        return self.lines.get(path, 1)

    def problem(self, path: Path, message: str, *, value: Any = None, hint: str = "") -> Problem:
        return Problem(self.file, self.line(path), dotted(path), message, shown(value), hint)

    def at(self, path: Path) -> Any:
        """The value there; None if there is nothing."""
        here = self.value
        for step in path:
            in_mapping = isinstance(here, dict) and step in here
            if not in_mapping and not (isinstance(here, list) and isinstance(step, int) and step < len(here)):
                return None
            here = here[step]
        return here


def dotted(path: Path) -> str:
    """devices.press.points[3].address"""
    text = ""
    for step in path:
        if isinstance(step, int):
            text += f"[{step}]"
        elif re.fullmatch(r"[\w-]+", step):
            text += f".{step}" if text else step
        else:
            text += f"[{json.dumps(step, ensure_ascii=False)}]"
    return text


def shown(value: Any) -> str | float | None:
    """A scalar for a message: short, and without the password of a URL. None for lists and mappings."""
    if isinstance(value, bool | int) or (isinstance(value, float) and math.isfinite(value)):
        return value
    if not isinstance(value, str | float):
        return None
    text = re.sub(r"(://[^/@:]*:)[^/@]*@", r"\1***@", str(value))
    return text if len(text) <= SHOWN_CHARACTERS_MAX else text[: SHOWN_CHARACTERS_MAX - 1] + "…"


# --- reading ---------------------------------------------------------------------------------------------------------


def read(text: str, file: str = "<text>") -> Document:
    """Raises DocumentError: no YAML, a key twice, too large, too deep."""
    document, found = survey(text, file)
    if found:
        raise DocumentError(found)
    return document


def survey(text: str, file: str = "<text>") -> tuple[Document, Sequence[Problem]]:
    """And what is wrong in it and hides nothing else: a key twice, an alias (in its place is None). Raises DocumentError."""
    if len(text) > SIZE_BYTES_MAX:
        raise DocumentError([Problem(file, 1, "", f"is larger than {SIZE_BYTES_MAX} bytes", hint="is it the right file?")])
    if text.lstrip()[:1] in ("{", "["):
        text = text.replace("\t", " ")
    reader = _Reader(file)
    try:
        value = reader.document(yaml.parse(text, Loader=_LOADER))
    except yaml.MarkedYAMLError as error:
        raise DocumentError([_syntax(error, file)]) from None
    except yaml.reader.ReaderError as error:
        message = f"holds a character that YAML does not allow ({error.reason})"
        line = text.count("\n", 0, int(error.position)) + 1
        raise DocumentError([Problem(file, line, "", message, hint="is it a text file?")]) from None
    if reader.stopped:
        raise DocumentError(reader.problems)
    return Document(file, value, reader.lines), reader.problems


_LOADER = getattr(yaml, "CSafeLoader", yaml.SafeLoader)


def _syntax(error: yaml.MarkedYAMLError, file: str) -> Problem:
    mark = error.problem_mark or error.context_mark
    message = ", ".join(part for part in (error.context, error.problem) if part)
    hint = "a bracket or a quote is not closed, or the indentation changes, in this line or above it"
    if "\\t" in message or "'\t'" in message:
        hint = "YAML wants spaces, not tabs, at the start of a line"
    if "cannot start any token" in message:
        hint = "a tab where YAML wants spaces, or a text that begins with @, ` or % and needs quotes"
    if "could not find expected ':'" in message:
        hint = "a key needs `: ` behind it: look at this line and the one above it"
    if "mapping values are not allowed" in message:
        hint = "put quotes around a text that holds `: `, and check the indentation"
    return Problem(file, mark.line + 1 if mark else 1, "", f"no valid YAML: {message}", hint=hint)


class _Refused(Exception):
    """Reading cannot go on."""


class _Reader:
    """Builds values from YAML events (untyped: PyYAML's stubs know nothing of tags). It stops at a limit; what is wrong
    otherwise is noted, and reading goes on."""

    def __init__(self, file: str) -> None:
        self.file = file
        self.lines: dict[Path, int] = {}
        self.problems: list[Problem] = []
        self.stopped = False

    def document(self, events: Iterator[yaml.Event]) -> Any:
        content = (event for event in events if not isinstance(event, _FRAME))
        value = None
        try:
            for number, event in enumerate(content):
                if number:
                    self._refuse(event, (), "a second document begins here", "one file holds one document")
                value = self._value(event, content, ())
        except _Refused:
            self.stopped = True
        return value

    def _value(self, event: Any, events: Iterator[Any], path: Path) -> Any:
        if len(path) > DEPTH_MAX:
            self._refuse(event, path[:3], f"is nested deeper than {DEPTH_MAX}", "")
        self.lines.setdefault(path, _line(event))
        if isinstance(event, yaml.AliasEvent):
            return self._note(event, path, f"the alias *{event.anchor} is not supported", "repeat the value")
        if event.anchor is not None:
            self._note(
                event, path, f"the anchor &{event.anchor} is not supported", "leave it out, and repeat the value elsewhere"
            )
        if event.tag not in (None, "!"):
            self._note(event, path, f"the tag {event.tag} is not supported", "leave it out")
        if isinstance(event, yaml.ScalarEvent):
            return _scalar(event.value) if event.implicit[0] else event.value
        return self._list(events, path) if isinstance(event, yaml.SequenceStartEvent) else self._mapping(events, path)

    def _list(self, events: Iterator[Any], path: Path) -> list[Any]:
        items: list[Any] = []
        for event in events:
            if isinstance(event, yaml.SequenceEndEvent):
                break
            items.append(self._value(event, events, (*path, len(items))))
        return items

    def _mapping(self, events: Iterator[Any], path: Path) -> dict[str, Any]:
        items: dict[str, Any] = {}
        for event in events:
            if isinstance(event, yaml.MappingEndEvent):
                break
            if not isinstance(event, yaml.ScalarEvent):
                self._refuse(event, path, "a key must be a plain text", "")
            here = (*path, event.value)
            if event.value in items:
                self._note(event, here, f"stands here twice, first in line {self.lines[here]}", "remove one of them")
            self.lines[here] = _line(event)
            items[event.value] = self._value(next(events), events, here)
        return items

    def _note(self, event: yaml.Event, path: Path, message: str, hint: str) -> None:
        self.problems.append(Problem(self.file, _line(event), dotted(path), message, hint=hint))

    def _refuse(self, event: yaml.Event, path: Path, message: str, hint: str) -> NoReturn:
        self._note(event, path, message, hint)
        raise _Refused


_FRAME = (yaml.StreamStartEvent, yaml.StreamEndEvent, yaml.DocumentStartEvent, yaml.DocumentEndEvent)
_WORDS: dict[str, Any] = {"": None, "~": None, "null": None, "Null": None, "NULL": None}
_WORDS |= {"true": True, "True": True, "TRUE": True, "false": False, "False": False, "FALSE": False}
_INTEGER = re.compile(r"[-+]?[0-9]+|0o[0-7]+|0x[0-9a-fA-F]+")
_FLOAT = re.compile(r"[-+]?(\.[0-9]+|[0-9]+(\.[0-9]*)?)([eE][-+]?[0-9]+)?|[-+]?\.(inf|Inf|INF)|\.(nan|NaN|NAN)")
_DIGITS_MAX = 100


def _line(event: yaml.Event) -> int:
    return event.start_mark.line + 1 if event.start_mark else 1


def _scalar(text: str) -> Any:
    """A plain scalar by the core rules of YAML 1.2."""
    if text in _WORDS:
        return _WORDS[text]
    if len(text) > _DIGITS_MAX:
        return text
    if _INTEGER.fullmatch(text):
        return int(text, 0) if text.startswith(("0o", "0x")) else int(text)
    if _FLOAT.fullmatch(text):
        return float(text.lower().replace(".inf", "inf").replace(".nan", "nan"))
    return text


# --- validating ------------------------------------------------------------------------------------------------------


def validate(document: Document, model: type[BaseModel], at: Path = ()) -> list[Problem]:
    """Everything by which the value at `at` (nothing there: an empty mapping) is no `model`, by pydantic's strict JSON rules
    ("5" is no number)."""
    value = document.at(at) if at in document.lines else {}
    place = partial(_place, document, at)
    errors = unsaid.errors(model, value)
    unknown = {place(item) for item in errors if item["type"] == "extra_forbidden"}
    unknown = {path for path in unknown if path[-1] not in _fields(document, model, at, path[:-1])}
    if unknown:
        errors += unsaid.errors(model, unsaid.without(value, unknown, at))
    errors += unsaid.unsaid(model, value, at, errors, place)
    found: dict[tuple[Path, str], list[Problem]] = {}
    for item in errors:
        path = place(item)
        if item["type"] == "too_short" and len(document.at(path) or ()) >= item["ctx"]["min_length"]:
            continue  # it has its items, but wrong ones: that is said of each of them
        of_its_own = item["msg"] if item["type"] == "value_error" else ""
        found.setdefault((path, of_its_own), []).append(_problem(document, model, at, path, item))
    said = [(path, _either(problems)) for (path, _), problems in found.items()]
    misspelled = [(path, one.hint.split("`")) for path, one in said if one.message == UNKNOWN and one.hint.count("`") == 2]
    meant = [(*path[:-1], words[1]) for path, words in misspelled]  # and so it is not missing
    return [one for path, one in said if one.message != MISSING or path not in meant]


def _place(document: Document, at: Path, item: Any) -> Path:
    """Pydantic's location without what is not in the text: names of alternatives, of validators, and "[key]"."""
    path, here, loc = at, document.at(at), item["loc"]
    for number, step in enumerate(loc, 1):
        inside = (isinstance(here, dict) and step in here) or (isinstance(here, list) and isinstance(step, int))
        if inside or (item["type"] == "missing" and number == len(loc)):
            path = (*path, step)
            here = document.at(path)
    return (*path, item["ctx"]["discriminator"].strip("'")) if item["type"] == "union_tag_invalid" else path


def _either(problems: Sequence[Problem]) -> Problem:
    """Alternatives that all failed at one place are one problem."""
    messages = dict.fromkeys(problem.message for problem in problems)
    first, *others = messages
    rest = (message.removeprefix("should be ") for message in others)
    hint = next((problem.hint for problem in problems if problem.hint.startswith(NEAR)), problems[0].hint)
    return replace(problems[0], message=" or ".join((first, *rest)), hint=hint)


def _problem(document: Document, model: type[BaseModel], at: Path, path: Path, item: Any) -> Problem:
    kind, value = item["type"], document.at(path)
    known = _fields(document, model, at, path[:-1])
    about = known.get(str(path[-1])) if path else None
    described = about or _owner(document, model, at, path)
    description = (described.description or "") if described else ""
    if kind == "extra_forbidden":
        return document.problem(path, UNKNOWN, value=value, hint=closest(str(path[-1]), known, "the keys here are"))
    if kind == "missing":
        return document.problem(path, MISSING, hint=wording.with_example(description, path[-1], about and about.examples))
    if kind == "string_pattern_mismatch" and (form := _FORMS.get(item["ctx"]["pattern"])):
        return document.problem(path, "is no name", value=value, hint=form)
    if kind in ("literal_error", "enum", "union_tag_invalid") and isinstance(value, str):
        allowed = item["ctx"].get("expected") or item["ctx"]["expected_tags"]
        description = closest(value, re.findall(r"'([^']*)'", allowed), "") or description
    elif kind == "string_type" and isinstance(value, int | float):
        description = f'put quotes around it: "{json.dumps(value)}"'
    elif kind in ("int_type", "float_type") and isinstance(value, str):
        plain = not isinstance(_scalar(value), str)
        written = f"leave the quotes out: {value}" if plain else wording.as_number(str(path[-1]), value)
        description = written or description
    elif kind in ("list_type", "tuple_type") and isinstance(path[-1], str):
        description = wording.as_list(path[-1], value)
    elif kind in ("model_type", "dict_type") and path:
        if kind == "model_type" and not (about and about.examples):
            description = f"{description}; its keys are {', '.join(_fields(document, model, at, path))}".lstrip("; ")
        written = wording.as_mapping(str(path[-1]), value, of_names=kind == "dict_type")
        description = written or wording.with_example(description, path[-1], about and about.examples)
    elif kind == "union_tag_not_found":
        description = "give `type`"
    message = item["msg"] if kind != "union_tag_invalid" else f"should be {' or '.join(item['ctx']['expected_tags'].split(', '))}"
    return document.problem(path, wording.message(message), value=value, hint=description)


def _owner(document: Document, model: type[BaseModel], at: Path, path: Path) -> FieldInfo | None:
    """Of an item or a name, which are described nowhere: what the list or the mapping is for."""
    above = (_fields(document, model, at, path[: end - 1]).get(str(path[end - 1])) for end in range(len(path) - 1, len(at), -1))
    return next((found for found in above if found), None)


def closest(word: str, known: Iterable[str], otherwise: str) -> str:
    """A hint: "did you mean `address`?" (all that are equally near, up to three), or all that is known after the words
    `otherwise` (nothing if they are empty)."""
    names = list(dict.fromkeys(known))
    as_written = {name.lower(): name for name in reversed(names)}
    near = difflib.get_close_matches(word.lower(), as_written, n=3, cutoff=0.6)
    if near:
        likeness = [difflib.SequenceMatcher(None, name, word.lower()).ratio() for name in near]
        nearest = [f"`{as_written[name]}`" for name, like in zip(near, likeness, strict=True) if like == likeness[0]]
        return f"{NEAR} {' or '.join(sorted(nearest))}?"
    return f"{otherwise} {', '.join(names) or 'none'}" if otherwise else ""


def _fields(document: Document, model: type[BaseModel], at: Path, path: Path) -> dict[str, FieldInfo]:
    """The fields that may stand at a path, which begins with `at`; of every alternative that what stands there now may be."""
    types, here = list[Any]([model]), document.at(path)
    for step in path[len(at) :]:
        types = [inner for outer in types for inner in _inside(outer, step)]
    models = [one for outer in types for one in _models(outer)]
    models = [one for one in models if _may_be(here, one)] or models
    return {name: field for one in models for name, field in one.model_fields.items()}


def _may_be(here: Any, model: type[BaseModel]) -> bool:
    """False: the `type` that stands here is that of another alternative."""
    told = isinstance(here, dict) and "type" in here and "type" in model.model_fields
    return not told or here["type"] in get_args(model.model_fields["type"].annotation)


def _inside(outer: Any, step: str | int) -> list[Any]:
    """The types that a key or an index leads to."""
    if isinstance(outer, type) and issubclass(outer, BaseModel):
        return [outer.model_fields[step].annotation] if step in outer.model_fields else []
    if get_origin(outer) is dict:
        return [get_args(outer)[1]]
    if get_origin(outer) in (list, tuple):
        return [get_args(outer)[0]]
    return [inner for argument in get_args(outer) for inner in _inside(argument, step)]


def _models(outer: Any) -> list[type[BaseModel]]:
    if isinstance(outer, type) and issubclass(outer, BaseModel):
        return [outer]
    if get_origin(outer) in (dict, list, tuple):
        return []
    return [model for argument in get_args(outer) for model in _models(argument)]
