"""Tasks and their replies on the wire: a small binary header, then the raw tensor.

    b"ET1"  kind (1 byte)  length of the header (4 bytes, big endian)  header (MessagePack)  tensor (little endian, C order)

The header is checked against its type, the tensor against what the header says of it; a key that a reader does not know is
passed over. Deadlines are remaining time, never instants: the clocks of two gateways may be years apart. `auth` is the place of
an authenticator over all that stands before it.

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
HEADER_BYTES_MAX = 64 * 2**10
"""About 3,000 outputs of a model."""
DIMENSIONS_MAX = 8
TEXT_CHARS_MAX = 1_000
"""Of a name, a cause, a hint."""

ITEM_BYTES = {"float64": 8, "float32": 4, "float16": 2, "int64": 8, "int32": 4, "int16": 2, "int8": 1, "uint8": 1, "bool": 1}

_PREFIX = struct.Struct(">3scI")

Nanoseconds = Annotated[int, msgspec.Meta(ge=0, le=2**62)]
Text = Annotated[str, msgspec.Meta(max_length=TEXT_CHARS_MAX)]
Priority = Annotated[int, msgspec.Meta(ge=0, le=9)]
Dimension = Annotated[int, msgspec.Meta(ge=1, le=2**31)]


class BadFrame(BadMessage):
    """Why a frame was not taken. `id` and `instance` are its own, where they can be read: then its sender can be told."""

    def __init__(self, cause: str, hint: str, *, oversized: bool = False, of: _Who | None = None) -> None:
        super().__init__(cause, hint)
        self.oversized = oversized
        self.id = of.id if of else ""
        self.instance = of.instance if of else ""


class Verdict(StrEnum):
    """How a task ended."""

    DONE = "done"
    REFUSED = "refused"
    """Not begun; another gateway may take it."""
    FAILED = "failed"
    """The model could not compute it."""


class Task(msgspec.Struct, frozen=True, omit_defaults=True, kw_only=True):
    """A window for a peer's model. `id` is the same when the task is sent again; (gateway, instance, id) is unique for ever."""

    id: Word
    instance: Word
    """Of the sender: which of its lives."""
    model: Text
    """name@version"""
    remaining_ns: Nanoseconds
    """Until nobody wants the answer any more, from when the frame was sent."""
    priority: Priority = 5
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
    """done, and only then; every number in it is finite."""
    cause: Text = ""
    hint: Text = ""
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
    model: Text
    remaining_ns: Nanoseconds
    priority: Priority
    privacy: Privacy
    dtype: str
    shape: Annotated[tuple[Dimension, ...], msgspec.Meta(max_length=DIMENSIONS_MAX)]
    auth: bytes = b""


class _Who(msgspec.Struct):
    id: Word
    instance: Word


_pack = msgspec.msgpack.Encoder().encode
_task = msgspec.msgpack.Decoder(_TaskHeader)
_cancel = msgspec.msgpack.Decoder(Cancel)
_reply = msgspec.msgpack.Decoder(Reply)
_who = msgspec.msgpack.Decoder(_Who)
_UNREADABLE = (msgspec.DecodeError, UnicodeDecodeError, RecursionError)
"""RecursionError: of arrays in arrays, under a key that no reader knows."""


def pack(frame: Task | Cancel | Reply) -> bytes:
    """Raises BadFrame for what the other side would not take: a tensor that is too large or is not what it says, too many
    outputs."""
    if not isinstance(frame, Task):
        return _framed(b"C" if isinstance(frame, Cancel) else b"R", _pack(frame), b"")
    tensor = frame.tensor
    _check_tensor(frame, tensor.dtype, tensor.shape, len(tensor.data))
    header = _TaskHeader(
        frame.id, frame.instance, frame.model, frame.remaining_ns, frame.priority, frame.privacy,
        tensor.dtype, tensor.shape, frame.auth,
    )  # fmt: skip
    return _framed(b"T", _pack(header), tensor.data)


def unpack(payload: bytes) -> Task | Cancel | Reply:
    """Raises BadFrame, naming what is wrong, and nothing else. The tensor's data is a view into the payload."""
    if len(payload) < _PREFIX.size or payload[:3] != MAGIC:
        raise BadFrame("frame: does not begin with ET1", "who else publishes there?")
    _, kind, length = _PREFIX.unpack_from(payload)
    body = _PREFIX.size + length
    if length > HEADER_BYTES_MAX or body > len(payload):
        raise BadFrame(f"frame: a header of {length} bytes in {len(payload)}", "it was damaged, or is none of ours")
    view = memoryview(payload)
    header = view[_PREFIX.size : body]
    if len(payload) > TASK_BYTES_MAX:
        cause = f"frame: {len(payload)} bytes, at most {TASK_BYTES_MAX} are taken"
        raise BadFrame(cause, "smaller windows", oversized=True, of=_sender(header))
    if kind != b"T" and body != len(payload):
        raise BadFrame(f"frame: {len(payload) - body} bytes after the header", "only tasks have a tensor", of=_sender(header))
    try:
        if kind == b"T":
            return _with_tensor(_task.decode(header), view[body:])
        if kind == b"R":
            return _checked(_reply.decode(header))
        if kind == b"C":
            return _cancel.decode(header)
    except _UNREADABLE as error:
        raise BadFrame(f"frame: {error}", "see docs/topics.md", of=_sender(header)) from None
    raise BadFrame(f"frame: kind {kind!r}", "update the older side", of=_sender(header))


def _framed(kind: bytes, header: bytes, tensor: bytes | memoryview) -> bytes:
    if len(header) > HEADER_BYTES_MAX:
        cause = f"frame: a header of {len(header)} bytes, at most {HEADER_BYTES_MAX} travel"
        raise BadFrame(cause, "this model has too many outputs for it", oversized=True)
    size = _PREFIX.size + len(header) + len(tensor)
    if size > TASK_BYTES_MAX:
        raise BadFrame(f"frame: {size} bytes, at most {TASK_BYTES_MAX} travel", "this window stays here", oversized=True)
    return b"".join((_PREFIX.pack(MAGIC, kind, len(header)), header, tensor))


def _sender(header: memoryview) -> _Who | None:
    """Whose frame it is, of a header that is wrong elsewhere."""
    try:
        return _who.decode(header)
    except _UNREADABLE:
        return None


def _with_tensor(header: _TaskHeader, data: memoryview) -> Task:
    _check_tensor(header, header.dtype, header.shape, len(data))
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


def _check_tensor(of: Task | _TaskHeader, dtype: str, shape: tuple[int, ...], size_bytes: int) -> None:
    item = ITEM_BYTES.get(dtype)
    if item is None:
        raise BadFrame(f"task: dtype {dtype[:20]!r}", f"one of {', '.join(ITEM_BYTES)}", of=_Who(of.id, of.instance))
    wanted = math.prod(shape) * item
    if wanted != size_bytes:
        cause = f"task: {dtype}{list(shape)} has {wanted} bytes, {size_bytes} came"
        raise BadFrame(cause, "it was damaged on the way", of=_Who(of.id, of.instance))


def _checked(reply: Reply) -> Reply:
    """What its type cannot say."""
    inference = reply.inference
    if (inference is None) == (reply.verdict is Verdict.DONE):
        raise _nonsense(reply, "an inference stands in a reply that is done, and only there")
    if inference is not None:
        for name, value in inference.outputs.items():
            if not math.isfinite(value):
                raise _nonsense(reply, f"output {name[:50]} is {value}")
        if inference.threshold is not None and not math.isfinite(inference.threshold):
            raise _nonsense(reply, f"the threshold is {inference.threshold}")
    return reply


def _nonsense(reply: Reply, cause: str) -> BadFrame:
    return BadFrame(f"reply: {cause}", "look at the peer's log", of=_Who(reply.id, reply.instance))
