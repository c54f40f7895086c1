"""What a message says of a device's points."""

from __future__ import annotations

import json
from typing import Any

import pydantic
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_adapters.mqtt_payload import Options, Point, Reader, matches
from edge_runtime.ports import Message


def message(payload: bytes, topic: str = "m/1", retain: bool = False) -> Message:
    return Message(topic, payload, 1, retain, False, 1, 1)


def reader(*points: dict[str, Any], **options: Any) -> Reader:
    checked = Options(**{"url": "mqtt://h", "topics": ("m/+",), "client_id": "c", **options})
    return Reader(checked, [Point(**point) for point in points])


def one(payload: bytes, **point: Any) -> tuple[Any, str]:
    values, faults, _ = reader({"name": "p", **point}).read(message(payload))
    return values.get("p"), faults.get("p", "")


@pytest.mark.parametrize(
    ("payload", "point", "value"),
    [
        (b"21.5", {}, 21.5),
        (b" 21 \n", {"path": "$"}, 21),
        (b"-1e3", {}, -1000.0),
        (b"9007199254740993", {}, 9007199254740993),
        (b'{"a": {"b": [1, 2]}}', {"path": "a.b[1]"}, 2),
        (b"true", {"type": "boolean"}, True),
        (b'{"on": false}', {"path": "on", "type": "boolean"}, False),
        (b'"ON"', {"type": "text"}, "ON"),
        (b"ON\n", {"type": "text"}, "ON"),
        (b"12", {"type": "text"}, "12"),
        (b'{"s": "x"}', {"path": "s", "type": "text"}, "x"),
    ],
)
def test_values(payload: bytes, point: dict[str, Any], value: Any) -> None:
    got, fault = one(payload, **point)
    assert (got, type(got), fault) == (value, type(value), "")


@pytest.mark.parametrize(
    ("payload", "point", "says"),
    [
        (b"", {}, "empty"),
        (b"", {"type": "text"}, "empty"),
        (b"ON", {}, "not JSON"),
        (b"{", {"path": "a"}, "not JSON"),
        (b"\xff\xfe\xfd", {}, "not UTF-8"),
        (b"\xff\xfe\xfd", {"type": "text"}, "not UTF-8"),
        (b"NaN", {}, "NaN is no JSON number"),
        (b'{"a": Infinity}', {"path": "a"}, "Infinity is no JSON number"),
        (b"1e999", {}, "too large"),
        (b"9" * 5000, {}, "not JSON"),
        (b"[" * 200_000, {}, "nested too deeply"),
        (b'{"a": 1}', {"path": "b.c"}, 'no key "b"'),
        (b'{"a": "12"}', {"path": "a"}, 'not a number: "12"'),
        (b'{"a": true}', {"path": "a"}, "not a number: true"),
        (b'{"a": null}', {"path": "a"}, "not a number: null"),
        (b'{"a": 1}', {"path": "a", "type": "boolean"}, "not a boolean: 1"),
        (b'{"a": 1}', {"path": "a", "type": "text"}, "not a text: 1"),
        (b'{"a": {"b": 1}}', {"path": "a"}, "not a number: {"),
        (b'{"a": "' + b"x" * 9_000 + b'"}', {"path": "a"}, "..."),
    ],
)
def test_poison_is_a_fault_with_the_reason(payload: bytes, point: dict[str, Any], says: str) -> None:
    got, fault = one(payload, **point)
    assert got is None
    assert says in fault
    assert len(fault) < 200


@given(st.binary(), st.sampled_from(["number", "boolean", "text"]), st.sampled_from([".", "a", "a[0]"]))
def test_no_payload_breaks_the_reader(payload: bytes, kind: str, path: str) -> None:
    values, faults, _ = reader({"name": "p", "type": kind, "path": path}, message_id="id").read(message(payload))
    assert len(values) + len(faults) == 1


def test_a_point_of_another_topic_is_bad_and_says_so() -> None:
    both = reader({"name": "a", "topic": "m/1"}, {"name": "b", "topic": "m/2"})
    assert both.read(message(b"1", "m/1"))[:2] == ({"a": 1}, {"b": "not in this message"})
    assert both.read(message(b"2", "m/2"))[:2] == ({"b": 2}, {"a": "not in this message"})


@pytest.mark.parametrize(
    ("payload", "expected"),
    [
        (b'{"id": "k7"}', "m/1 k7"),
        (b'{"id": 7}', "m/1 7"),
        (b'{"id": 7.5}', ""),
        (b'{"id": true}', ""),
        (b'{"id": ""}', ""),
        (b'{"id": null}', ""),
        (b"{}", ""),
        (b"broken", ""),
    ],
)
def test_message_id(payload: bytes, expected: str) -> None:
    """With the topic: two machines that both count from 1 are not each other's redeliveries."""
    assert reader({"name": "p"}, message_id="id").read(message(payload))[2] == expected


@pytest.mark.parametrize("found", ["\ud800", "k" * 1_001, "k" * 500_000 + "\ude00"])
def test_a_message_id_that_no_disk_can_hold_is_known_by_its_digest(found: str) -> None:
    one, again, other = (
        reader({"name": "p"}, message_id="id").read(message(json.dumps({"id": each}).encode()))[2]
        for each in (found, found, found + "x")
    )
    assert one == again
    assert one != other
    assert one.startswith("m/1 ")
    assert len(one.encode()) < 50


def test_what_is_no_sample() -> None:
    assert reader({"name": "p"}).wanted(message(b"1"))
    assert not reader({"name": "p"}).wanted(message(b"1", retain=True))
    assert reader({"name": "p"}, retained=True).wanted(message(b"1", retain=True))
    assert not reader({"name": "p"}).wanted(message(b"1", "an/old/subscription"))


@pytest.mark.parametrize(
    ("wanted", "topic", "does"),
    [
        ("a/b", "a/b", True),
        ("a/b", "a", False),
        ("a", "a/b", False),
        ("a/+", "a/b", True),
        ("a/+", "a", False),
        ("a/+", "a/b/c", False),
        ("+/+", "/b", True),
        ("a/#", "a", True),
        ("a/#", "a/b/c", True),
        ("a/#", "ab", False),
        ("#", "a/b", True),
        ("#", "$SYS/x", False),
        ("+/x", "$SYS/x", False),
        ("$SYS/#", "$SYS/x", True),
        ("$share/g/a/+", "a/b", True),
    ],
)
def test_matches(wanted: str, topic: str, does: bool) -> None:
    assert matches(wanted, topic) is does


@pytest.mark.parametrize(
    ("changes", "says"),
    [
        ({"topics": ()}, "topics"),
        ({"topics": ("a/#/b",)}, "'a/#/b' is no topic filter"),
        ({"topics": ("a+",)}, "topic filter"),
        ({"url": "tcp://me:hunter2@h"}, "tcp://"),
        ({"cert_file": "c"}, "does not encrypt"),
        ({"message_id": "a..b"}, "a..b"),
        ({"client_id": ""}, "client_id"),
        ({"qos": 2}, "qos"),
    ],
)
def test_bad_options_say_what_is_wrong(changes: dict[str, Any], says: str) -> None:
    with pytest.raises(pydantic.ValidationError) as caught:
        reader({"name": "p"}, **changes)
    text = str([(error["loc"], error["msg"]) for error in caught.value.errors()])
    assert says in text
    assert "hunter2" not in text


def test_bad_points_say_what_is_wrong() -> None:
    for changes, says in (({"path": "a["}, "a["), ({"topic": "#/a"}, "topic filter"), ({"type": "date"}, "type")):
        with pytest.raises(pydantic.ValidationError, match=says.replace("[", r"\[")):
            reader({"name": "p", **changes})
