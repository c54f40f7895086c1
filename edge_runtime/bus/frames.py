"""Tasks and their replies on the wire: a small binary header, then the raw tensor.

    b"ET1"  kind (1 byte)  length of the header (4 bytes, big endian)  header (MessagePack)  tensor (little endian, C order)

The header is checked against its type, the tensor against what the header says of it. Deadlines are remaining time, never
instants: the clocks of two gateways may be years apart. `auth` is the place of an authenticator over all that stands before it.

| frame  | topic               | how   |
|--------|---------------------|-------|
| Task   | gw/{to}/task/{from}  | QoS 0 |
| Cancel | gw/{to}/task/{from}  | QoS 0 |
| Reply  | gw/{to}/reply/{from} | QoS 0 |
"""

from __future__ import annotations

import math
import struct
from enum import StrEnum
from typing import Annotated

import msgspec

from edge_runtime.bus.messages import BadMessage, Word
from edge_runtime.records import Inference, Privacy, Tensor

MAGIC = b"ET1"
TASK_BYTES_MAX = 4 * 2**20
"""Of a whole frame. A larger window stays where it is."""
HEADER_BYTES_MAX = 16 * 2**10
DIMENSIONS_MAX = 8
DEADLINE_S_MAX = 3_600.0

ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}

_PREFIX = struct.Struct(">3scI")

Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=2**62)]


class Verdict(StrEnum):
    """How a task ended."""

    DONE = "done"
    REFUSED = "refused"
    """Not begun; another gateway may take it."""
    FAILED = "failed"
    """Begun, and the model could not compute it."""
    CANCELLED = "cancelled"


class Task(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A window for a peer's model. `id` is the same when the task is sent again; (gateway, instance, id) is unique for ever."""

    id: Word
    instance: Word
    """Of the sender: which of its lives."""
    model: str
    """name@version"""
    remaining_ns: Nanoseconds
    """Until nobody wants the answer any more, from when the frame was sent."""
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)] = 5
    """Higher goes first."""
    privacy: Privacy = Privacy.SITE
    tensor: Tensor
    auth: bytes = b""


class Cancel(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """Nobody wants the answer any more."""

    id: Word
    instance: Word
    auth: bytes = b""


class Reply(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """The end of a task. The load of who answers rides along."""

    id: Word
    instance: Word
    """Of the asker, as it stood in the task: an answer to an earlier life is no answer."""
    verdict: Verdict
    inference: Inference | None = None
    cause: str = ""
    hint: str = ""
    retry_ns: Nanoseconds = 0
    """refused: when it is worth asking again; 0: never."""
    queue_ns: Nanoseconds = 0
    """What waits at who answers, after this one."""
    service_ns: Nanoseconds = 0
    """What this one took, without waiting."""
    waited_ns: Nanoseconds = 0
    auth: bytes = b""


class _TaskHeader(msgspec.Struct, omit_defaults=True):
    id: Word
    instance: Word
    model: str
    remaining_ns: Nanoseconds
    priority: Annotated[int, msgspec.Meta(ge=0, le=9)]
    privacy: Privacy
    dtype: str
    shape: Annotated[tuple[Annotated[int, msgspec.Meta(ge=0)], ...], msgspec.Meta(max_length=DIMENSIONS_MAX)]
    auth: bytes = b""


_pack = msgspec.msgpack.Encoder().encode
_task = msgspec.msgpack.Decoder(_TaskHeader)
_cancel = msgspec.msgpack.Decoder(Cancel)
_reply = msgspec.msgpack.Decoder(Reply)


def pack(frame: Task | Cancel | Reply) -> bytes:
    """Raises BadMessage for a tensor that is too large or is not what it says."""
    if isinstance(frame, Task):
        tensor = frame.tensor
        header = _pack(
            _TaskHeader(
                frame.id, frame.instance, frame.model, frame.remaining_ns, frame.priority, frame.privacy,
                tensor.dtype, tensor.shape, frame.auth,
            )
        )  # fmt: skip
        _check_tensor(tensor.dtype, tensor.shape, len(tensor.data))
        if len(header) + len(tensor.data) + _PREFIX.size > TASK_BYTES_MAX:
            raise BadMessage(f"task: {len(tensor.data)} bytes, at most {TASK_BYTES_MAX} travel", "this window stays here")
        return b"".join((_PREFIX.pack(MAGIC, b"T", len(header)), header, tensor.data))
    header = _pack(frame)
    return _PREFIX.pack(MAGIC, b"R" if isinstance(frame, Reply) else b"C", len(header)) + header


def unpack(payload: bytes) -> Task | Cancel | Reply:
    """Raises BadMessage, naming what is wrong. The tensor's data is a view into the payload."""
    if len(payload) > TASK_BYTES_MAX:
        raise BadMessage(f"frame: {len(payload)} bytes, at most {TASK_BYTES_MAX} are taken", "smaller windows")
    if len(payload) < _PREFIX.size or payload[:3] != MAGIC:
        raise BadMessage("frame: does not begin with ET1", "who else publishes there?")
    _, kind, length = _PREFIX.unpack_from(payload)
    body = _PREFIX.size + length
    if length > HEADER_BYTES_MAX or body > len(payload):
        raise BadMessage(f"frame: a header of {length} bytes in {len(payload)}", "it was damaged, or is none of ours")
    header, rest = memoryview(payload)[_PREFIX.size : body], memoryview(payload)[body:]
    try:
        if kind == b"T":
            return _with_tensor(_task.decode(header), rest)
        if rest:
            raise BadMessage(f"frame: {len(rest)} bytes after the header", "only tasks have a tensor")
        if kind == b"R":
            return _reply.decode(header)
        if kind == b"C":
            return _cancel.decode(header)
    except (msgspec.DecodeError, UnicodeDecodeError) as error:
        raise BadMessage(f"frame: {error}", "see docs/topics.md") from None
    raise BadMessage(f"frame: kind {kind!r}", "update the older side")


def _with_tensor(header: _TaskHeader, data: memoryview) -> Task:
    _check_tensor(header.dtype, header.shape, len(data))
    return Task(
        id=header.id,
        instance=header.instance,
        model=header.model,
        remaining_ns=header.remaining_ns,
        priority=header.priority,
        privacy=header.privacy,
        tensor=Tensor(header.dtype, header.shape, data),
        auth=header.auth,
    )


def _check_tensor(dtype: str, shape: tuple[int, ...], size_bytes: int) -> None:
    item = ITEM_BYTES.get(dtype)
    if item is None:
        raise BadMessage(f"task: dtype {dtype!r}", f"one of {', '.join(ITEM_BYTES)}")
    wanted = math.prod(shape) * item
    if wanted != size_bytes:
        raise BadMessage(f"task: {dtype}{list(shape)} has {wanted} bytes, {size_bytes} came", "it was damaged on the way")
