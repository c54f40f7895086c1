"""Broker urls."""

from __future__ import annotations

import pytest

from edge_runtime.address import BadAddress, address
from edge_runtime.ports import Address


@pytest.mark.parametrize(
    ("url", "expected"),
    [
        ("mqtt://plc.local", Address(host="plc.local")),
        ("mqtt://plc.local/", Address(host="plc.local")),
        (" mqtt://127.0.0.1:1884\n", Address(host="127.0.0.1", port=1884)),
        ("mqtts://cloud.example", Address(host="cloud.example", port=8883, tls=True)),
        ("mqtt://[::1]:1885", Address(host="::1", port=1885)),
        ("mqtt://me:s%40%2Fcret@h", Address(host="h", username="me", password="s@/cret")),
        ("mqtt://me@h", Address(host="h", username="me")),
    ],
)
def test_url(url: str, expected: Address) -> None:
    assert address(url) == expected


def test_the_rest_is_handed_through() -> None:
    got = address("mqtts://h", client_id="c", clean=False, ca_file="ca", cert_file="c.pem", key_file="k.pem", keepalive_s=9)
    assert got == Address(
        host="h",
        port=8883,
        tls=True,
        client_id="c",
        clean=False,
        ca_file="ca",
        cert_file="c.pem",
        key_file="k.pem",
        keepalive_s=9,
    )


@pytest.mark.parametrize(
    ("url", "says"),
    [
        ("", "scheme is missing"),
        ("localhost:1883", "scheme is missing"),
        ("tcp://h", "tcp://"),
        ("ws://h", "ws://"),
        ("mqtt://", "host is missing"),
        ("mqtt://:1883", "host is missing"),
        ("mqtt://h:port", "port"),
        ("mqtt://h:99999", "port"),
        ("mqtt://h:0", "port 0"),
        ("mqtt://h/topic", "nothing may follow"),
        ("mqtt://h?x=1", "nothing may follow"),
        ("mqtt://[::1", "broken host"),
        ("mqtt://:secret@h", "password without a user"),
    ],
)
def test_a_bad_url_says_what_is_wrong(url: str, says: str) -> None:
    with pytest.raises(BadAddress) as caught:
        address(url)
    assert says in caught.value.cause
    assert caught.value.hint


@pytest.mark.parametrize(
    "url", ["mqtt://me:hunter2@h:port", "tcp://me:hunter2@h", "mqtt://me:hunter2/x@h", "mqtt://:hunter2@h", "me:hunter2@h"]
)
def test_a_password_is_never_shown(url: str) -> None:
    with pytest.raises(BadAddress) as caught:
        address(url)
    assert "hunter2" not in str(caught.value)


def test_what_does_not_fit_together() -> None:
    with pytest.raises(BadAddress, match="does not encrypt"):
        address("mqtt://h", ca_file="ca.pem")
    with pytest.raises(BadAddress, match="belong together"):
        address("mqtts://h", cert_file="c.pem")
    with pytest.raises(BadAddress, match="client_id"):
        address("mqtt://h", clean=False)
