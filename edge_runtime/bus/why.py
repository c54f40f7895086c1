"""Why a window was computed where it was, as JSON: a question that anybody of the site may ask, and the answer of the gateway
that decided it. Topics: topics.py.

| message     | topic                | how   | who says it                                    |
|-------------|----------------------|-------|------------------------------------------------|
| Question    | why/{result}         | QoS 0 | `edge-runtime mesh why`                        |
| Explanation | why/{result}/answer  | QoS 0 | the gateway that remembers; the others nothing |
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from edge_runtime.bus.messages import VERSION, BadMessage, Word

WHY_BYTES_MAX = 64 * 2**10
"""Of one message; more is refused."""


class Question(msgspec.Struct, frozen=True):
    """`id`: of a result."""

    id: Word
    v: int = VERSION


class Compared(msgspec.Struct, frozen=True):
    """When a peer would have finished, from then."""

    peer: str
    finish_ns: int


class Step(msgspec.Struct, frozen=True, omit_defaults=True):
    """One decision, and what became of it. A window that a peer did not do has another step."""

    where: str
    """A peer's name; "": here, or nowhere."""
    reason: str
    here_ns: int | None = None
    """When it would have finished here, from then; None: not at all."""
    compared: tuple[Compared, ...] = ()
    outcome: str = ""
    """"done", or why not."""
    taken_ns: int = 0


class Explanation(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """`ago_s`: since the window was there to be computed."""

    v: int = VERSION
    id: Word
    gateway: Word
    model: str
    privacy: str
    deadline_s: float
    ago_s: Annotated[float, msgspec.Meta(ge=0)] = 0.0
    steps: tuple[Step, ...] = ()


M = TypeVar("M", Question, Explanation)


def pack(message: Question | Explanation) -> bytes:
    return msgspec.json.encode(message)


def unpack(payload: bytes, kind: type[M]) -> M:
    """Raises BadMessage, naming what is wrong and where."""
    what = kind.__name__.lower()
    if len(payload) > WHY_BYTES_MAX:
        raise BadMessage(f"{what}: {len(payload)} bytes, at most {WHY_BYTES_MAX} are taken", "who else publishes there?")
    try:
        message = msgspec.json.decode(payload, type=kind)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:  # arrays in arrays, under a key that nobody knows
        raise BadMessage(f"{what}: {error}", "see docs/topics.md") from None
    if message.v != VERSION:
        raise BadMessage(f"{what}: version {message.v}, this side speaks {VERSION}", "update the older side")
    return message
