"""Who is let in with a token: the rules, without a network."""

from __future__ import annotations

import pytest
from msgspec.structs import replace

from edge_runtime.trust import desk
from edge_runtime.trust.desk import BadMessage, Desk, Issued, Refusal, Request
from edge_runtime.trust.token import Token

SECRET = bytes(range(16))
TOKEN = Token(site="plant", gateway="press", hosts=("10.0.0.5",), port=8484, ca=b"c" * 16, secret=SECRET)
REQUEST = Request(1, "plant", "press", SECRET, "csr")
ISSUED = Issued(1, "plant", "press", "ca", "certificate", b"roster")


def _reason(refusal: Refusal | None) -> str | None:
    return refusal and refusal.reason


def test_the_right_one_is_let_in_and_gets_it_again() -> None:
    at = Desk(TOKEN, until_ns=100)
    assert at.judge(REQUEST, 0) is None
    at.keep(REQUEST, ISSUED)
    assert at.judge(REQUEST, 99) is None
    assert at.issued is ISSUED


def test_another_key_comes_too_late() -> None:
    at = Desk(TOKEN, until_ns=100)
    at.keep(REQUEST, ISSUED)
    assert _reason(at.judge(replace(REQUEST, csr="mine"), 0)) == "used"


def test_the_token_expires() -> None:
    at = Desk(TOKEN, until_ns=100)
    assert _reason(at.judge(REQUEST, 100)) == "expired"
    at.keep(REQUEST, ISSUED)
    assert _reason(at.judge(REQUEST, 100)) == "expired"


@pytest.mark.parametrize("other", [{"gateway": "press-2"}, {"site": "plant-2"}])
def test_another_name_is_refused(other: dict[str, str]) -> None:
    assert _reason(Desk(TOKEN, until_ns=100).judge(replace(REQUEST, **other), 0)) == "name"


@pytest.mark.parametrize("secret", [b"", SECRET[:-1], SECRET + b"\0", SECRET[:-1] + b"\0", bytes(16)])
def test_a_wrong_secret_learns_nothing_and_waits_longer_each_time(secret: bytes) -> None:
    at = Desk(TOKEN, until_ns=100)
    guess = replace(REQUEST, secret=secret)
    first = at.judge(guess, 0)
    assert _reason(first) == "wrong"
    pause_s = at.pause_s()
    at.keep(REQUEST, ISSUED)
    others = (guess, replace(guess, csr="mine"), replace(guess, gateway="other"))
    assert {at.judge(each, now) for each in others for now in (0, 100)} == {first}
    assert at.wrong == 7
    assert pause_s < at.pause_s() <= desk.PAUSE_S_MAX


def test_a_message_comes_back_as_it_was() -> None:
    for message in (
        REQUEST,
        ISSUED,
        desk.Greeting(1, "ca"),
        desk.Joined(1),
        desk.Wanted(1, "s", "n", "csr"),
        Refusal(1, "used", "x"),
    ):
        line = desk.encode(message)
        assert line.count(b"\n") == 1
        assert desk.decode(line) == message


@pytest.mark.parametrize(
    "line",
    [
        b"",
        b"\n",
        b"GET / HTTP/1.1\r\n",
        b"[" * 100_000,
        b'{"kind":"joined"}',
        b'{"kind":"joined","v":2}',
        b'{"kind":"joined","v":1,"more":1}',
        b'{"kind":"request","v":1,"site":"s","gateway":"g","secret":"SECRET!","csr":"c"}',
        b'{"kind":"greeting","v":1,"ca":"' + b"a" * desk.OPEN_BYTES_MAX + b'a"}',
        b'{"kind":"greeting","v":1,"ca":"\xff"}',
    ],
)
def test_what_is_no_message_is_refused_without_its_words(line: bytes) -> None:
    with pytest.raises(BadMessage) as raised:
        desk.decode(line)
    assert "SECRET" not in str(raised.value)


def test_the_secret_is_in_no_log() -> None:
    assert repr(REQUEST) == "Request(press.plant)"
