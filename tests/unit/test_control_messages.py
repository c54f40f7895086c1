"""The messages of configuration and commands: what is taken, what is refused and how; the hash of a configuration."""

from __future__ import annotations

import hashlib
import json
import math
import re
import struct
from pathlib import Path
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bus import canonical, control
from edge_runtime.bus.control import Command, CommandReply, Desired, Fault, LayerState, Reported
from edge_runtime.bus.messages import BadMessage
from edge_runtime.control.layers import KEPT

PRESS = "gw/press-1"
JSON = st.recursive(
    st.none()
    | st.booleans()
    | st.integers()
    | st.floats(allow_nan=False, allow_infinity=False)
    | st.text(st.characters(codec="utf-8")),
    lambda inner: st.lists(inner, max_size=4) | st.dictionaries(st.text(st.characters(codec="utf-8")), inner, max_size=4),
    max_leaves=12,
)


def desired(text: str) -> Desired:
    return control.desired(text.encode(), PRESS)


def refused(text: str | bytes, target: str = PRESS) -> BadMessage:
    with pytest.raises(BadMessage) as error:
        control.desired(text if isinstance(text, bytes) else text.encode(), target)
    assert len(str(error.value)) < 1_000  # a person reads it, and a broker carries it
    return error.value


# --- desired ---


def test_the_shortest_form_is_a_patch() -> None:
    found = desired('{"patch": {"log": {"level": "debug"}}}')
    assert found == Desired(target=PRESS, patch={"log": {"level": "debug"}})
    assert (found.content, found.revision) == ({"log": {"level": "debug"}}, None)


def test_every_key_is_read_and_written() -> None:
    whole = Desired(
        target="group/presses",
        revision=7,
        issuer="alice",
        note="new sieve",
        config={"a": [1, None]},
        canaries=("press-1",),
        trial_s=5.0,
    )
    whole = Desired(**{each: getattr(whole, each) for each in whole.__struct_fields__} | {"hash": whole.digest})
    assert control.desired(control.pack(whole), "group/presses") == whole


@pytest.mark.parametrize(
    ("text", "cause"),
    [
        ("", "no valid JSON"),
        ("[]", "is no JSON object"),
        ('{"patch": {}', "line 1, character"),
        ("{}", "exactly one of config and patch"),
        ('{"patch": {}, "config": {}}', "exactly one of config and patch"),
        ('{"pach": {}}', "$.pach: unknown key"),
        ('{"patch": []}', "$.patch: expected object"),
        ('{"patch": {}, "revision": "7"}', "$.revision: expected int"),
        ('{"patch": {}, "revision": 0}', "$.revision"),
        ('{"patch": {}, "revision": 1e300}', "$.revision"),
        ('{"patch": {}, "trial_s": 0}', "$.trial_s"),
        ('{"patch": {}, "canaries": ["a/b"]}', "$.canaries[0]"),
        ('{"patch": {}, "target": "gw/press-2"}', "it is for gw/press-2 and came to gw/press-1"),
        ('{"patch": {}, "target": "press-1"}', "$.target"),
        ('{"patch": {}, "v": 2}', "version 2"),
        ('{"patch": {"a": 1, "a": 2}}', "the key a stands twice"),
        ('{"patch": {"a": NaN}}', "NaN is no number"),
        ('{"patch": {"a": 1e999}}', "too large"),
        ('{"patch": {"a": %s}}' % ("1" * 5_000), "more than 40 characters"),
        ('{"patch": {"a": 0.%s}}' % ("1" * 5_000), "more than 40 characters"),
        ('{"patch": {"a": "\\ud800"}}', "half a character"),
        ('{"patch": {"\\uDfff": 1}}', "half a character"),
        ('{"patch": {"a": ' + "[" * 40 + "]" * 40 + "}}", "nested deeper than 32"),
        ('{"patch": {"a": ' + "[" * 100_000 + "]" * 100_000 + "}}", "nested deeper than 32"),
        ('{"patch": {}, "hash": "%s"}' % ("0" * 64), "is not that of the content"),
        ('{"patch": {}, "hash": "short"}', "$.hash"),
    ],
)
def test_what_is_no_desired_document_is_refused_with_its_place(text: str, cause: str) -> None:
    assert cause in str(refused(text))


def test_bytes_that_are_no_text_and_too_many_are_refused() -> None:
    assert "UTF-8" in str(refused(b'{"patch": {"a": "\xff"}}'))
    assert "524289 bytes" in str(refused(b" " * (control.DESIRED_BYTES_MAX + 1)))


def test_a_key_that_is_nearly_right_is_named() -> None:
    assert "`patch`" in refused('{"pach": {}}').hint


def test_a_whole_number_is_one_however_it_is_written() -> None:
    """80.0 where a whole number is wanted would be refused, and 80 after it be the same document: never mended."""
    content = desired('{"patch": {"a": 80.0, "b": 8e1, "c": 80.5, "d": -0.0}}').content
    assert json.dumps(content) == '{"a": 80, "b": 80, "c": 80.5, "d": 0}'


def test_both_halves_of_a_character_are_one() -> None:
    assert desired('{"patch": {"a": "\\ud83d\\ude00"}}').content == {"a": "\U0001f600"}


@given(st.dictionaries(st.text(st.characters(codec="utf-8"), max_size=5), JSON, max_size=4))
def test_what_is_packed_is_read_again(content: dict[str, Any]) -> None:
    found = control.desired(control.pack(Desired(patch=content)), PRESS)
    assert found.content == content
    assert found.digest == canonical.digest(content)


@given(st.binary(max_size=40) | JSON.map(lambda value: json.dumps(value).encode()))
def test_whatever_comes_is_read_or_refused(payload: bytes) -> None:
    for read in (
        lambda: control.desired(payload, PRESS),
        lambda: control.command(payload, "press-1", "write"),
        lambda: control.unpack(payload, Reported),
        lambda: control.unpack(payload, CommandReply),
    ):
        try:
            read()
        except BadMessage as error:
            assert error.cause


def test_a_document_that_was_taken_once_is_read_again_without_its_topic() -> None:
    assert control.desired(b'{"patch": {}, "target": "gw/press-1"}', "").target == PRESS


# --- the hash ---


@pytest.mark.parametrize(
    ("number", "text"),
    [  # RFC 8785, appendix B: IEEE 754 bits, as JavaScript writes it
        ("0000000000000000", "0"),
        ("8000000000000000", "0"),
        ("0000000000000001", "5e-324"),
        ("7fefffffffffffff", "1.7976931348623157e+308"),
        ("4340000000000000", "9007199254740992"),
        ("4430000000000000", "295147905179352830000"),
        ("44b52d02c7e14af5", "9.999999999999997e+22"),
        ("44b52d02c7e14af6", "1e+23"),
        ("44b52d02c7e14af7", "1.0000000000000001e+23"),
        ("444b1ae4d6e2ef4e", "999999999999999700000"),
        ("444b1ae4d6e2ef50", "1e+21"),
        ("3eb0c6f7a0b5ed8c", "9.999999999999997e-7"),
        ("3eb0c6f7a0b5ed8d", "0.000001"),
        ("41b3de4355555553", "333333333.3333332"),
        ("becbf647612f3696", "-0.0000033333333333333333"),
        ("43143ff3c1cb0959", "1424953923781206.2"),
    ],
)
def test_numbers_are_written_as_javascript_writes_them(number: str, text: str) -> None:
    assert canonical.text(struct.unpack(">d", bytes.fromhex(number))[0]).decode() == text


def test_the_canonical_text_is_that_of_rfc_8785() -> None:
    value = {
        "numbers": [333333333.33333329, 1e30, 4.5, 2e-3, 1e-27],
        "string": '\u20ac$\x0f\nA\'B"\\\\"/',
        "literals": [None, True, False],
    }
    expected = (
        '{"literals":[null,true,false],"numbers":[333333333.3333333,1e+30,4.5,0.002,1e-27],'
        '"string":"€$\\u000f\\nA\'B\\"\\\\\\\\\\"/"}'
    )
    assert canonical.text(value).decode() == expected
    keys = {"€": 1, "\r": 2, "\ufb33": 3, "1": 4, "\U0001f600": 5, "\x80": 6, "ö": 7}
    assert list(json.loads(canonical.text(keys)).values()) == [2, 4, 6, 7, 1, 5, 3]


def test_a_hash_that_anybody_can_compute() -> None:
    assert canonical.digest({"b": 80.0, "a": "ü"}) == hashlib.sha256('{"a":"ü","b":80}'.encode()).hexdigest()


@given(JSON, JSON)
def test_the_canonical_text_is_one_for_equal_values_only(one: Any, other: Any) -> None:
    assert _kinds(json.loads(canonical.text(one))) == _kinds(one)
    assert (canonical.text(one) == canonical.text(other)) == (_kinds(one) == _kinds(other))


@given(st.floats(allow_nan=False, allow_infinity=False))
def test_a_float_is_read_back(value: float) -> None:
    assert float(canonical.text(value)) == value


def test_whole_numbers_keep_their_digits() -> None:
    assert canonical.digest({"a": 2**63}) != canonical.digest({"a": 2**63 + 1})


def test_what_only_yaml_can_say_has_a_hash_too() -> None:
    assert canonical.digest({"a": math.inf}) != canonical.digest({"a": "\ud800"})


def _kinds(value: Any) -> Any:
    """true is not 1; and of what JSON has as one number, one."""
    if isinstance(value, dict):
        return {key: _kinds(inner) for key, inner in value.items()}
    if isinstance(value, list):
        return [_kinds(inner) for inner in value]
    if isinstance(value, float):  # its digits, read as a whole number, may be another one: 295147905179352830000
        text = canonical.text(value).decode()
        return int(text) if text.lstrip("-").isdigit() else value
    return (bool, value) if isinstance(value, bool) else value


# --- reported ---


def test_a_report_is_read_again_and_unknown_keys_are_passed_over() -> None:
    report = Reported(
        gateway="press-1",
        state="rejected",
        layers=(LayerState(name="gateway", revision=7, state="rejected", cause="no"),),
        errors=(Fault("a.b", "is missing", "add it", "gateway"),),
        config={"a": 1},
        provenance={"": "file"},
    )
    assert control.unpack(control.pack(report), Reported) == report
    newer = json.loads(control.pack(report)) | {"new": 1}
    assert control.unpack(json.dumps(newer).encode(), Reported) == report


def test_a_report_too_large_goes_without_the_configuration() -> None:
    report = Reported(
        gateway="g",
        state="rejected",
        errors=(Fault("p", "m"),) * 5_000,
        config={"a": "x" * control.REPORTED_BYTES_MAX},
        provenance={"": "file"},
    )
    payload = control.pack(report)
    assert len(payload) < control.REPORTED_BYTES_MAX
    found = control.unpack(payload, Reported)
    assert (found.config, found.provenance, len(found.errors)) == (None, {}, control.FAULTS_MAX)
    assert "too large" in found.hint


# --- commands ---


def test_a_command_is_read_and_answered() -> None:
    text = '{"id": "c-1", "boot": "b", "until_ns": 12, "args": {"point": "speed", "value": 5}}'
    found = control.command(text.encode(), "press-1", "write")
    assert found == Command(
        id="c-1",
        target="press-1",
        verb="write",
        boot="b",
        until_ns=12,
        args={"point": "speed", "value": 5},
    )
    reply = CommandReply(id="c-1", gateway="press-1", verb="write", outcome="verified", result={"read": 5})
    assert control.unpack(control.pack(reply), CommandReply) == reply


@pytest.mark.parametrize(
    ("keys", "cause"),
    [
        ({}, "missing required field id"),
        ({"id": ""}, "$.id"),
        ({"id": "a b"}, "$.id"),
        ({"id": "a", "target": "press-2"}, "it is for press-2"),
        ({"id": "a", "verb": "drain"}, "it is drain and came as write"),
        ({"id": "a", "until_ns": -1}, "$.until_ns"),
        ({"id": "a", "arguments": {}}, "$.arguments: unknown key"),
        ({"id": "a", "reply_to": "device/press/set"}, "$.reply_to: unknown key"),  # the gateway would publish where we may not
        ({"id": "a", "args": {"x": "y" * control.COMMAND_BYTES_MAX}}, "at most 65536 are taken"),
    ],
)
def test_what_is_no_command_is_refused(keys: dict[str, Any], cause: str) -> None:
    with pytest.raises(BadMessage) as error:
        control.command(json.dumps(keys).encode(), "press-1", "write")
    assert cause in str(error.value)


# --- what the page tells ---


def test_the_documents_on_the_page_are_taken() -> None:
    page = (Path(__file__).parents[2] / "docs/configuration-over-mqtt.md").read_text()
    told = [*re.findall(r"-m '(.*)'$", page, re.MULTILINE), *re.findall(r"```json\n(.*?)```", page, re.DOTALL)]
    assert len(told) >= 4
    for text in told:
        assert control.desired(text.encode(), PRESS).patch
    for path in KEPT:
        assert f"`{'.'.join(str(step) for step in path)}`" in page
