"""Tokens: what a person pastes or types comes back as it was, and a typing error is told with its place."""

from __future__ import annotations

import re

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import document
from edge_runtime.trust import token
from edge_runtime.trust.token import BadToken, Token

SECRET = bytes(range(16))
EXAMPLE = Token(site="plant-1", gateway="press-1", hosts=("10.0.0.5",), port=8484, ca=b"c" * 16, secret=SECRET)

names = st.from_regex(document.NAME.replace("$", r"\Z"))
hosts = st.one_of(
    st.ip_addresses().map(str), st.from_regex(r"\A[a-z]([a-z0-9-]{0,20}[a-z0-9])?(\.[a-z]{2,9})?\Z"), st.just("a" * 64)
)


@given(
    st.lists(hosts, min_size=1, max_size=token.HOSTS_MAX),
    names,
    names,
    st.integers(1, 65_535),
    st.binary(min_size=32, max_size=32),
)
def test_comes_back_as_it_was(hosts: list[str], site: str, gateway: str, port: int, random: bytes) -> None:
    made = Token(site=site, gateway=gateway, hosts=tuple(hosts), port=port, ca=random[:16], secret=random[16:])
    assert token.read(token.text(made)) == made


def test_it_is_short_enough_to_type() -> None:
    written = token.text(EXAMPLE)
    assert len(written) <= 125
    assert re.fullmatch(r"press-1\.plant-1\.([0-9A-Z]{6}-)+[0-9A-Z]{2,6}", written)
    assert not set("ILOU") & set(written.rpartition(".")[2])


def test_what_people_do_to_it_does_not_matter() -> None:
    names, _, groups = token.text(EXAMPLE).rpartition(".")
    for typed in (
        groups.lower(),
        groups.replace("0", "O").replace("1", "l"),
        groups.replace("-", " \n"),
        groups.replace("-", ""),
    ):
        assert token.read(f" '{names}.{typed}' ") == EXAMPLE


def test_one_wrong_character_is_told_with_its_group() -> None:
    names, _, groups = token.text(EXAMPLE).rpartition(".")
    for at, right in enumerate(groups):
        for wrong in "" if right == "-" else "0123456789ABCDEFGHJKMNPQRSTVWXYZ".replace(right, ""):
            with pytest.raises(BadToken, match=rf"in group {groups[:at].count('-') + 1} of") as raised:
                token.read(f"{names}.{groups[:at]}{wrong}{groups[at + 1 :]}")
            assert groups not in str(raised.value)


def test_what_is_in_no_token_is_told() -> None:
    with pytest.raises(BadToken, match="in group 2: 'U' is in no token"):
        token.read("a.b.000000-0U0000")


def test_two_neighbours_that_changed_places() -> None:
    names, _, groups = token.text(EXAMPLE).rpartition(".")
    for at in range(len(groups) - 1):
        if "-" not in groups[at : at + 2] and groups[at] != groups[at + 1]:
            with pytest.raises(BadToken, match="mistyped"):
                token.read(f"{names}.{groups[:at]}{groups[at + 1]}{groups[at]}{groups[at + 2 :]}")


def test_what_is_missing_is_told() -> None:
    written = token.text(EXAMPLE)
    start = len("press-1.plant-1.")
    for end in range(start, len(written)):
        if written[end] != "-":
            with pytest.raises(BadToken, match=r"mistyped|not whole"):
                token.read(written[:end])
    groups = written[start:].split("-")
    for number in range(len(groups)):
        with pytest.raises(BadToken, match=r"mistyped|not whole"):
            token.read(written[:start] + "-".join(groups[:number] + groups[number + 1 :]))


def test_another_name_does_not_go_with_it() -> None:
    for other in ("press-2.plant-1", "press-1.plant-2", "Press-1.plant-1"):
        with pytest.raises(BadToken, match="a name in front"):
            token.read(token.text(EXAMPLE).replace("press-1.plant-1", other))


@given(st.text(max_size=200))
def test_any_text_is_refused_in_words(text: str) -> None:
    with pytest.raises(BadToken):
        token.read(text)


@given(st.binary(max_size=120))
def test_any_content_with_good_checks_is_a_token_or_refused(payload: bytes) -> None:
    """As a program that counts wrong would write it."""
    symbols = token._symbols(payload + token._sum("a.b", payload))
    groups = [symbols[at : at + 5] for at in range(0, len(symbols), 5)]
    try:
        read = token.read("a.b." + "-".join(group + token._check(number, group) for number, group in enumerate(groups)))
    except BadToken:
        return
    assert read.hosts


def test_a_later_version_says_so() -> None:
    payload = bytes([2 << 4 | 1]) + bytes(34) + b"\x04\x0a\0\0\x01"
    symbols = token._symbols(payload + token._sum("a.b", payload))
    groups = [symbols[at : at + 5] for at in range(0, len(symbols), 5)]
    with pytest.raises(BadToken, match="version 2"):
        token.read("a.b." + "-".join(group + token._check(number, group) for number, group in enumerate(groups)))


def test_what_cannot_be_in_a_token_makes_none() -> None:
    from msgspec.structs import replace

    for bad in ({"gateway": "a.b"}, {"site": ""}, {"hosts": ()}, {"hosts": ("10.0.0.1",) * 5}, {"port": 0}, {"hosts": ("a b",)}):
        with pytest.raises(BadToken):
            token.text(replace(EXAMPLE, **bad))


def test_the_secret_is_in_no_log() -> None:
    assert repr(EXAMPLE) == "Token(press-1.plant-1)"
