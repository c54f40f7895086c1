"""What an MQTT message says of a device's points (pure): options and points, topic filters, payload -> values and faults."""

from __future__ import annotations

import hashlib
import json
from collections.abc import Callable, Sequence
from math import isfinite
from typing import Annotated, Any, Literal, NoReturn

from pydantic import AfterValidator

from edge_adapters.json_path import JsonPath, NotThere
from edge_runtime import adapter
from edge_runtime.adapter import Address, BadAddress, Field, Message, Value, model_validator

NOT_IN_THIS_MESSAGE = "not in this message"
NOT_UTF_8 = "the payload is not UTF-8 text"
SHOWN_CHARS = 60
"""Of a payload, in a fault."""
ID_CHARS_MAX = 1_000
"""A message id that is longer, or that no disk can hold (half of a character), is known by its digest: else its message could
never be kept, would come again for ever, and hold up all that come after it."""


def _filter(text: str) -> str:
    levels = text.split("/")
    alone = all(len(level) == 1 for level in levels if "+" in level or "#" in level)
    if not text or not alone or "#" in levels[:-1]:
        raise ValueError(f"{text!r} is no topic filter: + stands alone in a level, # alone in the last one")
    return text


def _path(text: str) -> str:
    JsonPath(text)
    return text


Filter = Annotated[str, AfterValidator(_filter)]
Path = Annotated[str, AfterValidator(_path)]
OptionalFilter = Annotated[str, AfterValidator(lambda text: text and _filter(text))]
OptionalPath = Annotated[str, AfterValidator(lambda text: text and _path(text))]


class Options(adapter.Options):
    """How to reach the broker, and which messages are samples of this device."""

    url: str = Field(
        description="mqtt://[user:password@]host[:port], mqtts:// for TLS; `local`: the gateway's local broker",
        examples=["mqtt://127.0.0.1:1883"],
    )
    topics: tuple[Filter, ...] = Field(
        min_length=1,
        description="Topic filters (+ and # as usual). Each message on them is one sample of the device: "
        "values that come on different topics are better declared as different devices",
        examples=[["factory/press1/state"]],
    )
    client_id: str = Field(
        min_length=1,
        description="Name of our session at that broker: unique there (also among gateways), and never changed: "
        "the broker keeps what comes while we are away under this name",
        examples=["gateway7-press1"],
    )
    clean_session: bool = Field(
        False, description="true: the broker keeps nothing for us while we are away, and nothing is delivered again"
    )
    qos: Literal[0, 1] = Field(1, description="0: messages may be lost on the way to us; 1: at least once")
    message_id: OptionalPath = Field(
        "",
        description="JSON path of a field that identifies the message on its topic for ever (a UUID, or a counter that never "
        "starts again): by it one that is delivered twice is taken once. Without it: at least once",
        examples=["id"],
    )
    retained: bool = Field(
        False,
        description="Take retained messages too, which the broker sends on every connect. Nobody knows how old they are: "
        "they would look fresh",
    )
    batch_max: int = Field(500, ge=1, le=10_000, description="Most messages taken by one read (one transaction)")
    keepalive_s: int = Field(10, ge=1, le=3600, description="A broker that is silent for 1.5 times this counts as gone")
    ca_file: str = Field("", description="CA certificate for mqtts (default: the system's)")
    cert_file: str = Field("", description="Client certificate for mqtts")
    key_file: str = Field("", description="Client key for mqtts")

    @model_validator(mode="after")
    def _it_leads_somewhere(self) -> Options:
        try:
            self.address(str)
        except BadAddress as error:
            raise ValueError(str(error)) from None
        return self

    def address(self, resolve: Callable[[str], object]) -> Address:
        """`resolve` makes the paths of files absolute. Raises BadAddress."""

        def absolute(file: str) -> str:
            return str(resolve(file)) if file else ""

        return adapter.address(
            "mqtt://local" if self.url == "local" else self.url,
            client_id=self.client_id,
            clean=self.clean_session,
            keepalive_s=self.keepalive_s,
            ca_file=absolute(self.ca_file),
            cert_file=absolute(self.cert_file),
            key_file=absolute(self.key_file),
        )

    @property
    def redelivers(self) -> bool:
        """Does the broker send again what was not acknowledged?"""
        return self.qos == 1 and not self.clean_session


class Point(adapter.Point):
    """A value in the message."""

    path: Path = Field(
        ".",
        description="Where the value stands in the JSON payload: motor.temp, values[0], a['b.c']; . for the payload itself",
        examples=["motor.temp"],
    )
    type: Literal["number", "boolean", "text"] = Field(
        "number", description='What it must be; "12" in quotes is no number. With path "." a text may come without quotes'
    )
    topic: OptionalFilter = Field(
        "", description="Only messages on this topic (filter) have the point; in the others it is bad: not in this message"
    )

    @property
    def is_text(self) -> bool:
        return self.type == "text"


class Reader:
    """Reads the messages of one device."""

    def __init__(self, options: Options, points: Sequence[Point]) -> None:
        self._topics = options.topics
        self._retained = options.retained
        self._id = JsonPath(options.message_id) if options.message_id else None
        self._points = [(point, JsonPath(point.path)) for point in points]

    def wanted(self, message: Message) -> bool:
        """False: not a sample (retained, or left over in the session from an earlier configuration)."""
        if message.retain and not self._retained:
            return False
        return any(matches(each, message.topic) for each in self._topics)

    def read(self, message: Message) -> tuple[dict[str, Value], dict[str, str], str]:
        """(values, faults, message id). Whatever the payload is: nothing here raises, for a message that breaks the reader
        would come again for ever."""
        document, trouble = _decode(message.payload)
        values: dict[str, Value] = {}
        faults: dict[str, str] = {}
        for point, path in self._points:
            if point.topic and not matches(point.topic, message.topic):
                faults[point.name] = NOT_IN_THIS_MESSAGE
                continue
            try:
                values[point.name] = _value(point, path, document, trouble, message.payload)
            except (ValueError, NotThere) as error:
                faults[point.name] = str(error)
        return values, faults, "" if trouble or self._id is None else self._message_id(message.topic, self._id, document)

    def _message_id(self, topic: str, path: JsonPath, document: Any) -> str:
        """With the topic: two machines that both count from 1 are not each other's redeliveries."""
        try:
            found = path.find(document)
        except NotThere:
            return ""
        if not isinstance(found, str | int) or isinstance(found, bool) or found == "":
            return ""
        if isinstance(found, str) and (len(found) > ID_CHARS_MAX or any("\ud800" <= char <= "\udfff" for char in found)):
            found = hashlib.blake2b(found.encode("utf-8", "surrogatepass"), digest_size=16).hexdigest()
        return f"{topic} {found}"


def matches(wanted: str, topic: str) -> bool:
    """Does a topic match a filter? $share/{group}/ in front of the filter is left out; + and # in front do not match $SYS."""
    if wanted.startswith("$share/"):
        wanted = wanted.split("/", 2)[-1]
    if wanted == topic:
        return True
    if topic.startswith("$") and wanted[0] in "+#":
        return False
    ours, theirs = wanted.split("/"), topic.split("/")
    for at, level in enumerate(ours):
        if level == "#":
            return True
        if at >= len(theirs) or level not in ("+", theirs[at]):
            return False
    return len(ours) == len(theirs)


def _decode(payload: bytes) -> tuple[Any, str]:
    """(document, "") or (None, what is wrong with it)."""
    try:
        return json.loads(payload, parse_constant=_refuse), ""
    except UnicodeDecodeError:
        return None, NOT_UTF_8
    except RecursionError:
        return None, "the payload is nested too deeply"
    except ValueError as error:
        return None, f"the payload is not JSON: {error}" if payload else "the payload is empty"


def _text(payload: bytes) -> str:
    """Raises ValueError."""
    try:
        return payload.decode("utf-8")
    except UnicodeDecodeError:
        raise ValueError(NOT_UTF_8) from None


def _refuse(word: str) -> NoReturn:
    raise ValueError(f"{word} is no JSON number")


def _value(point: Point, path: JsonPath, document: Any, trouble: str, payload: bytes) -> Value:
    """Raises ValueError or NotThere with the reason."""
    if point.type == "text" and not path.steps and payload and not isinstance(document, str):
        return _text(payload).strip()  # ON, running, 12, ...
    if trouble:
        raise ValueError(trouble)
    found = path.find(document)
    if point.type == "text" and isinstance(found, str):
        return found
    if isinstance(found, bool):
        if point.type == "boolean":
            return found
    elif point.type == "number" and isinstance(found, int | float):
        if not isfinite(found):
            raise ValueError(f"path {path.text}: too large a number")
        return found
    shown = json.dumps(found, ensure_ascii=False)
    raise ValueError(f"path {path.text}: not a {point.type}: {shown[:SHOWN_CHARS]}{'...' if len(shown) > SHOWN_CHARS else ''}")
