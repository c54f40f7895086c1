"""Reading YAML: lines, limits, and the traps of YAML 1.1 that are none here."""

from __future__ import annotations

import json
import math

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import document
from edge_runtime.document import DocumentError


def _refused(text: str) -> list[str]:
    with pytest.raises(DocumentError) as caught:
        document.read(text, "f.yaml")
    return [str(problem) for problem in caught.value.problems]


def test_a_problem_of_no_file_names_none() -> None:
    assert str(document.Problem("", 0, "", "there is nothing")) == "there is nothing"
    assert str(document.Problem("", 0, "a.b", "is wrong", 3)) == "a.b: is wrong (it is 3)"


def test_lines_of_keys_and_items() -> None:
    doc = document.read("a: 1\nb:\n  # a comment\n  - x: 5\n    y: [1,\n      2]\n  - z\n")
    assert doc.value == {"a": 1, "b": [{"x": 5, "y": [1, 2]}, "z"]}
    assert doc.lines[("b", 0)] == 4
    assert doc.lines[("b", 0, "y")] == 5
    assert doc.lines[("b", 0, "y", 1)] == 6
    assert doc.line(("b", 1, "missing", "deeper")) == 7


@pytest.mark.parametrize(
    ("text", "value"),
    [
        ("no", "no"),
        ("on", "on"),
        ("Yes", "Yes"),
        ("true", True),
        ("2026-01-01", "2026-01-01"),
        ("12:30:45", "12:30:45"),
        ("010", 10),
        ("0x1F", 31),
        ("0o17", 15),
        ("1_000", "1_000"),
        ("1e3", 1000.0),
        ("-1.5E-2", -0.015),
        (".5", 0.5),
        ("~", None),
        ("'5'", "5"),
        ('"true"', "true"),
        (".inf", math.inf),
        ("-.INF", -math.inf),
        ("1.2.3", "1.2.3"),
        ("+", "+"),
        (".", "."),
        ("9" * 5000, "9" * 5000),
    ],
)
def test_scalars_by_the_core_rules(text: str, value: object) -> None:
    read = document.read(f"key: {text}").value["key"]
    assert read == value
    assert type(read) is type(value)


def test_keys_are_text() -> None:
    assert document.read("on: 1\n5: 2\nnull: 3\n").value == {"on": 1, "5": 2, "null": 3}


def test_json_is_yaml_also_with_tabs() -> None:
    value = {"a": [1, 2.5e-7, None, True], "b": {"c": "no", "d": "ü\u2028"}}
    for indent in (None, 2, "\t"):
        assert document.read(json.dumps(value, indent=indent)).value == value


def test_a_key_twice_is_refused_with_both_lines() -> None:
    assert _refused("a:\n  x: 1\n  y: 2\n  x: 3\nb: 1\nb: 2\n") == [
        "f.yaml:4: a.x: stands here twice, first in line 2\n    hint: remove one of them",
        "f.yaml:6: b: stands here twice, first in line 5\n    hint: remove one of them",
    ]


@pytest.mark.parametrize(
    ("text", "expected"),
    [
        ("a: [1, 2\nb: 3\n", "f.yaml:2: no valid YAML"),
        ("a:\n\t- 1\n", "f.yaml:2: no valid YAML"),
        ("a: b: c\n", "f.yaml:1: no valid YAML: mapping values are not allowed in this context\n    hint: put quotes"),
        ("a: 'open\n\n", "f.yaml:3: no valid YAML"),
        ("a: 1\nb: \x00\n", "f.yaml:2: holds a character that YAML does not allow"),
        ("a: 1\n---\nb: 2\n", "f.yaml:3: a second document begins here"),
        ("a: &x 1\nb: *x\n", "f.yaml:1: a: the anchor &x is not supported"),
        ("a: !!python/object:os.system {}\n", "f.yaml:1: a: the tag tag:yaml.org,2002:python/object:os.system is not supported"),
        ("? [a, b]\n: 1\n", "f.yaml:1: a key must be a plain text"),
        ("[" * 5000, "f.yaml:1: [0][0][0]: is nested deeper than 32"),
        ("x: &a [*a]\n", "f.yaml:1: x: the anchor &a"),
        ("a: " + "x" * document.SIZE_BYTES_MAX, f"f.yaml:1: is larger than {document.SIZE_BYTES_MAX} bytes"),
    ],
)
def test_what_is_refused_names_its_line(text: str, expected: str) -> None:
    assert _refused(text)[0].startswith(expected)


def test_paths_as_people_write_them() -> None:
    assert document.dotted(("devices", "press", "points", 3, "address")) == "devices.press.points[3].address"
    assert document.dotted(("devices", "bad name", "x")) == 'devices["bad name"].x'


@pytest.mark.parametrize(
    ("word", "hint"),
    [
        ("float", "did you mean `float32` or `float64`?"),
        ("floot32", "did you mean `float32`?"),
        ("FLOAT32", "did you mean `float32`?"),
        ("text", "known are float32, float64, uint16"),
    ],
)
def test_all_that_are_equally_near_are_hinted_at(word: str, hint: str) -> None:
    assert document.closest(word, ["float32", "float64", "uint16"], "known are") == hint


def test_one_name_is_hinted_at_once() -> None:
    assert document.closest("temprature", ["temperature", "temperature"], "") == "did you mean `temperature`?"


def test_a_text_is_told_from_a_number() -> None:
    doc = document.read("a: '5'\nb: 5\nc: .nan\nd: [1]", "f")
    told = [str(doc.problem((key,), "is wrong", value=doc.at((key,)))) for key in "abcd"]
    assert told == [
        'f:1: a: is wrong (it is "5")',
        "f:2: b: is wrong (it is 5)",
        'f:3: c: is wrong (it is "nan")',
        "f:4: d: is wrong",
    ]


def test_passwords_are_not_shown() -> None:
    assert document.shown("mqtt://user:geheim@host:1883/x") == "mqtt://user:***@host:1883/x"


@given(st.text())
def test_any_text_is_read_or_refused(text: str) -> None:
    try:
        document.read(text)
    except DocumentError as error:
        assert error.problems
