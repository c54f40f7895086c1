"""JSON paths."""

from __future__ import annotations

import contextlib
import json
from typing import Any

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_adapters.json_path import BadPath, JsonPath, NotThere

DOCUMENT = {"a": {"b": [10, [20, {"c": True}]]}, "x.y": {"": 1}, "ü": None, "quo'te\"d": "q", "s p": 2, "$": 3, "0": 4}


@pytest.mark.parametrize(
    ("path", "value"),
    [
        (".", DOCUMENT),
        ("$", DOCUMENT),
        ("a.b[0]", 10),
        ("$.a.b[0]", 10),
        (".a.b[0]", 10),
        ("$['a']['b'][1][0]", 20),
        ("a.b[1][1].c", True),
        ("a.b[-1][-1].c", True),
        ('a["b"][ 0 ]', 10),
        ("['x.y']['']", 1),
        ('"x.y".""', 1),
        ("$.'x.y'['']", 1),
        ("ü", None),
        (r"['quo\'te\"d']", "q"),
        ("['s p']", 2),
        ("['$']", 3),
        ("0", 4),
        ("$.0", 4),
    ],
)
def test_find(path: str, value: Any) -> None:
    assert JsonPath(path).find(DOCUMENT) == value


def test_an_array_at_the_top() -> None:
    assert JsonPath("[1]").find([1, 2]) == 2
    assert JsonPath("$[0].a").find([{"a": 5}]) == 5


@pytest.mark.parametrize(
    "path", ["", "a..b", "a.", "a[", "a[]", "a[x]", "a[1.5]", "a]", "a b", "a'b'", "$a", "..", "a['b]", "a.b [0", "'a'b"]
)
def test_bad_paths_say_where(path: str) -> None:
    with pytest.raises(BadPath) as caught:
        JsonPath(path)
    assert "path" in str(caught.value)
    if path:
        assert repr(path) in str(caught.value)


@pytest.mark.parametrize(
    ("path", "says"),
    [
        ("nope", 'path nope: no key "nope" in the message'),
        ("a.b.c", 'path a.b.c: no key "c" in a.b'),
        ("a.b[7]", "path a.b[7]: no index 7 in a.b"),
        ("a[0]", "path a[0]: no index 0 in a"),
        ("a.b[-3]", "no index -3 in a.b"),
        ("a.b[0].c", 'no key "c" in a.b[0]'),
        ("ü.x", 'no key "x" in ü'),
        ("['quo\\'te\"d'][0]", "no index 0"),
    ],
)
def test_what_is_not_there_says_how_far_it_goes(path: str, says: str) -> None:
    with pytest.raises(NotThere) as caught:
        JsonPath(path).find(DOCUMENT)
    assert says in str(caught.value)


@given(st.lists(st.one_of(st.text(), st.integers(0, 3)), min_size=1, max_size=6))
def test_every_place_has_a_path(steps: list[str | int]) -> None:
    document: Any = "found"
    for step in reversed(steps):
        document = {step: document} if isinstance(step, str) else [None] * step + [document]
    quoted = "".join(
        f"[{step}]" if isinstance(step, int) else '["' + step.replace("\\", "\\\\").replace('"', '\\"') + '"]' for step in steps
    )
    assert JsonPath("$" + quoted).find(document) == "found"


@given(st.text())
def test_any_text_is_a_path_or_a_bad_path(text: str) -> None:
    try:
        path = JsonPath(text)
    except BadPath:
        return
    with contextlib.suppress(NotThere):
        path.find(json.loads('{"a": [1, {"b": 2}]}'))
