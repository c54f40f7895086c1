"""Frames: what goes out comes in again; whatever else comes in is BadFrame, and nothing else."""

from __future__ import annotations

import contextlib
import struct
import tracemalloc

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st

from edge_runtime.bus import frames
from edge_runtime.bus.frames import BadFrame, Cancel, Reply, Task, Verdict
from edge_runtime.bus.messages import BadMessage
from edge_runtime.records import Inference, Privacy, Tensor

WINDOW = Tensor("float64", (1, 9), bytes(72))
TASK = Task(id="t1", instance="a1", model="m@1", remaining_ns=5, priority=7, privacy=Privacy.CLOUD, tensor=WINDOW, auth=b"x" * 32)
DONE = Reply(
    id="t1", instance="a1", verdict=Verdict.DONE, inference=Inference({"e": 1.5}, "cpu", "f" * 64, 0.5), service_ns=7, auth=b"y"
)
CANCEL = Cancel(id="t1", instance="a1", auth=b"z")

names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")
times = st.integers(0, 2**62)
finite = st.floats(allow_nan=False, allow_infinity=False)
texts = st.text(max_size=200)


def framed(kind: bytes, header: bytes, rest: bytes = b"") -> bytes:
    return struct.pack(">3scI", b"ET1", kind, len(header)) + header + rest


def changed(frame: Task | Reply | Cancel, **changes: object) -> bytes:
    """The frame with other things in its header."""
    payload = frames.pack(frame)
    length = struct.unpack_from(">I", payload, 4)[0]
    header = msgspec.msgpack.decode(payload[8 : 8 + length]) | changes
    return framed(payload[3:4], msgspec.msgpack.encode(header), payload[8 + length :])


@given(names, names, texts, times, st.integers(0, 9), st.sampled_from(Privacy), st.binary(min_size=1, max_size=99))
def test_a_task_comes_in_as_it_went_out(
    name: str, life: str, model: str, ns: int, priority: int, privacy: Privacy, data: bytes
) -> None:
    tensor = Tensor("uint8", (1, len(data)), data)
    task = Task(id=name, instance=life, model=model, remaining_ns=ns, priority=priority, privacy=privacy, tensor=tensor)
    got = frames.unpack(frames.pack(task))
    assert isinstance(got, Task)
    assert msgspec.structs.replace(got, tensor=tensor) == task
    assert bytes(got.tensor.data) == data


@given(st.dictionaries(texts, finite, max_size=9), st.none() | finite, times, times, times)
def test_a_reply_comes_in_as_it_went_out(
    outputs: dict[str, float], threshold: float | None, queue: int, service: int, waited: int
) -> None:
    inference = Inference(outputs, "cpu", "f" * 64, threshold)
    reply = msgspec.structs.replace(DONE, inference=inference, queue_ns=queue, service_ns=service, waited_ns=waited)
    assert frames.unpack(frames.pack(reply)) == reply


def test_the_authenticator_travels() -> None:
    for frame in (TASK, DONE, CANCEL):
        got = frames.unpack(frames.pack(frame))
        assert (type(got), got.auth) == (type(frame), frame.auth)


@settings(max_examples=100)
@given(st.binary(max_size=300))
def test_any_bytes_are_a_bad_frame(payload: bytes) -> None:
    with pytest.raises(BadFrame):
        frames.unpack(payload)


@settings(max_examples=200)
@given(st.sampled_from([TASK, DONE, CANCEL]), st.data())
def test_a_damaged_frame_is_a_bad_frame_or_another_frame(frame: Task | Reply | Cancel, data: st.DataObject) -> None:
    payload = bytearray(frames.pack(frame))
    for _ in range(data.draw(st.integers(1, 3))):
        at = data.draw(st.integers(3, len(payload) - 1))
        payload[at] = data.draw(st.integers(0, 255))
    if data.draw(st.booleans()):
        del payload[data.draw(st.integers(0, len(payload))) :]
    unpacked(bytes(payload))


@settings(max_examples=100)
@given(st.sampled_from([b"T", b"R", b"C", b"X"]), st.binary(max_size=200), st.binary(max_size=20))
def test_any_header_is_a_bad_frame(kind: bytes, header: bytes, rest: bytes) -> None:
    unpacked(framed(kind, header, rest))


values = st.recursive(
    st.none() | st.booleans() | st.integers(-(2**63), 2**64 - 1) | st.floats() | texts | st.binary(max_size=9),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(texts, inner, max_size=3),
    max_leaves=8,
)
KEYS = [
    "id",
    "instance",
    "model",
    "remaining_ns",
    "priority",
    "privacy",
    "dtype",
    "shape",
    "verdict",
    "inference",
    "cause",
    "auth",
]


@settings(max_examples=200)
@given(st.sampled_from([TASK, DONE, CANCEL]), st.dictionaries(st.sampled_from(KEYS), values, min_size=1, max_size=2))
def test_any_value_in_a_header_is_a_bad_frame_or_a_frame(frame: Task | Reply | Cancel, changes: dict[str, object]) -> None:
    unpacked(changed(frame, **changes))


def unpacked(payload: bytes) -> None:
    with contextlib.suppress(BadFrame):
        assert isinstance(frames.unpack(payload), Task | Reply | Cancel)


@pytest.mark.parametrize(
    ("payload", "cause"),
    [
        (changed(TASK, shape=[1, 8]), "has 64 bytes, 72 came"),
        (changed(TASK, shape=[0, 2**31]), "shape"),
        (changed(TASK, shape=[1] * 9), "shape"),
        (changed(TASK, dtype="object"), "dtype 'object'"),
        (changed(TASK, priority=10), "priority"),
        (changed(TASK, privacy="secret"), "privacy"),
        (changed(TASK, remaining_ns=-1), "remaining_ns"),
        (changed(TASK, model="m" * 1_001), "model"),
        (changed(DONE, verdict="maybe"), "verdict"),
        (changed(DONE, inference=None), "only there"),
        (changed(DONE, verdict="failed"), "only there"),
        (changed(DONE, inference={"outputs": {"e": float("nan")}, "executed_on": "", "artefact": ""}), "output e is nan"),
        (changed(DONE, inference={"outputs": {}, "executed_on": "", "artefact": "", "threshold": float("inf")}), "threshold"),
        (frames.pack(CANCEL) + b"x", "after the header"),
        (framed(b"X", frames.pack(CANCEL)[8:]), "kind"),
    ],
)
def test_what_is_wrong_is_named_and_whose_it_is_can_be_read(payload: bytes, cause: str) -> None:
    with pytest.raises(BadFrame, match=cause) as caught:
        frames.unpack(payload)
    assert (caught.value.id, caught.value.instance, caught.value.oversized) == ("t1", "a1", False)
    assert isinstance(caught.value, BadMessage)


@pytest.mark.parametrize("key", ["id", "instance"])
def test_a_name_that_is_none_is_nobody(key: str) -> None:
    with pytest.raises(BadFrame) as caught:
        frames.unpack(changed(CANCEL, **{key: "a/b"}))
    assert caught.value.id == ""


def test_a_key_that_a_reader_does_not_know_is_passed_over() -> None:
    got = frames.unpack(changed(CANCEL, later={"more": [1, 2]}))
    assert got == CANCEL


def test_arrays_in_arrays_without_end() -> None:
    with pytest.raises(BadFrame):
        frames.unpack(framed(b"C", b"\x81\xa1x" + b"\x91" * 60_000))


def test_a_length_that_lies_takes_no_memory() -> None:
    lies = [b"\x81\xa5shape\xdd\xff\xff\xff\xff", b"\x81\xa4auth\xc6\xff\xff\xff\xff", b"\xdf\xff\xff\xff\xff"]
    tracemalloc.start()
    for kind in (b"T", b"R", b"C"):
        for header in lies:
            with pytest.raises(BadFrame):
                frames.unpack(framed(kind, header))
    peak = tracemalloc.get_traced_memory()[1]
    tracemalloc.stop()
    assert peak < 1_000_000


def test_too_large_is_refused_on_both_sides() -> None:
    data = bytes(frames.TASK_BYTES_MAX)
    large = msgspec.structs.replace(TASK, tensor=Tensor("uint8", (len(data),), data))
    with pytest.raises(BadFrame) as caught:
        frames.pack(large)
    assert caught.value.oversized
    with pytest.raises(BadFrame) as caught:
        frames.unpack(changed(TASK, shape=[len(data)], dtype="uint8") + data)
    assert (caught.value.oversized, caught.value.id) == (True, "t1")


def test_too_many_outputs_are_refused_where_they_are_packed() -> None:
    outputs = {f"output-number-{number}": 0.0 for number in range(5_000)}
    with pytest.raises(BadFrame, match="too many outputs"):
        frames.pack(msgspec.structs.replace(DONE, inference=Inference(outputs, "cpu", "")))
