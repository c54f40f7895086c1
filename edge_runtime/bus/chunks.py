"""Files of models, from one gateway to another, chunk by chunk.

| message | topic                | how   |
|---------|----------------------|-------|
| Ask     | gw/{to}/fetch/{from} | QoS 1 |
| Chunk   | gw/{to}/chunk/{from} | QoS 1 |

Who asks has one question open, and asks for what follows: it sets the pace, and goes on where it was.
"""

from __future__ import annotations

from typing import Annotated, TypeVar

import msgspec

from edge_runtime.bus.messages import BadMessage, Word

CHUNK_BYTES = 60 * 1024
FRAME_BYTES_MAX = 64 * 1024
FILE_BYTES_MAX = 512 * 2**20

FileName = Annotated[str, msgspec.Meta(pattern=r"^[A-Za-z0-9][A-Za-z0-9_.-]{0,127}\Z")]
"""In the model's own folder: no path leads out of it."""
Offset = Annotated[int, msgspec.Meta(ge=0, le=FILE_BYTES_MAX)]


class Ask(msgspec.Struct, frozen=True):
    """For what stands from `offset` on in a file of a model."""

    id: Word
    model: Word
    file: FileName
    offset: Offset


class Chunk(msgspec.Struct, frozen=True):
    """The answer. `cause`: why there is none."""

    id: Word
    data: bytes = b""
    size_bytes: Offset = 0
    """Of the whole file."""
    cause: Annotated[str, msgspec.Meta(max_length=500)] = ""


M = TypeVar("M", Ask, Chunk)


def pack(message: Ask | Chunk) -> bytes:
    return msgspec.msgpack.encode(message)


def unpack(frame: bytes, kind: type[M]) -> M:
    """Raises BadMessage."""
    what = kind.__name__.lower()
    if len(frame) > FRAME_BYTES_MAX:
        raise BadMessage(f"{what}: {len(frame)} bytes, at most {FRAME_BYTES_MAX}", "who else publishes there?")
    try:
        return msgspec.msgpack.decode(frame, type=kind)
    except (msgspec.DecodeError, RecursionError) as error:
        raise BadMessage(f"{what}: {error}", "update the older side") from None
