"""What gateways announce over mDNS: coded and decoded, and on which interfaces. Strangers may announce anything."""

from __future__ import annotations

import string

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.mesh import announcing
from edge_runtime.mesh.announcing import BadAnnouncement, Interface
from edge_runtime.ports import EdgeError
from edge_runtime.ports_mesh import Announcement, Endpoint

names = st.from_regex(r"\A[A-Za-z0-9][A-Za-z0-9_-]{0,62}\Z")
texts = st.text(string.ascii_letters + string.digits + ".:-+ ", max_size=64)
announcements = st.builds(
    Announcement,
    site=names,
    gateway=names,
    instance=st.text("0123456789abcdef", min_size=16, max_size=16),
    role=st.sampled_from(["host", "candidate", "guest"]),
    rank=st.integers(0, 1_000),
    endpoints=st.just((Endpoint("10.0.0.1", 1883),)),
    version=texts,
    fingerprint=texts,
)
MINE = Announcement(site="plant", gateway="g1", instance="0011223344556677", role="candidate")
LABEL = "g1-0011223344556677"


def as_bytes(texts: dict[str, str]) -> dict[bytes, bytes | None]:
    return {key.encode(): value.encode() for key, value in texts.items()}


@given(announcements, st.integers(0, 2**40))
def test_what_was_said_is_what_is_heard(mine: Announcement, revision: int) -> None:
    label = announcing.label(mine.gateway, mine.instance)
    said = announcing.encode(mine, revision)
    assert len(label.encode()) <= 63
    assert all(len(f"{key}={value}".encode()) <= 255 for key, value in said.items())
    assert announcing.decode(label, as_bytes(said), ["10.0.0.1"], 1883) == mine


@given(st.dictionaries(st.binary(max_size=20), st.none() | st.binary(max_size=255), max_size=12), st.text(max_size=300))
def test_garbage_is_refused_with_a_reason(properties: dict[bytes, bytes | None], name: str) -> None:
    with pytest.raises(BadAnnouncement) as refused:
        announcing.decode(name, properties, ["10.0.0.1"], 1883)
    assert refused.value.cause
    assert refused.value.hint


@given(
    st.sampled_from([*announcing.encode(MINE, 0)]),
    st.none() | st.binary(max_size=255) | st.sampled_from([b"", b"-1", b"1e9", b"\xff\xfe", b"a/b", b"a" * 200]),
)
def test_one_wrong_value_never_makes_another_gateway(key: str, value: bytes | None) -> None:
    properties = as_bytes(announcing.encode(MINE, 0)) | {key.encode(): value}
    try:
        heard = announcing.decode(LABEL, properties, [], 1883)
    except BadAnnouncement:
        return
    assert key in ("site", "role", "rank", "version", "fingerprint", "revision", "v")
    assert heard.gateway == "g1"


@pytest.mark.parametrize("key", ["v", "site", "gateway", "instance", "role", "rank"])
def test_a_missing_key_is_refused_by_name(key: str) -> None:
    properties = as_bytes(announcing.encode(MINE, 0))
    del properties[key.encode()]
    with pytest.raises(BadAnnouncement, match=key):
        announcing.decode(LABEL, properties, [], 1883)


@pytest.mark.parametrize(
    ("key", "value"),
    [
        ("v", b"2"),
        ("role", b"king"),
        ("rank", b"-1"),
        ("rank", b"x"),
        ("site", b"a/+"),
        ("gateway", b"\xff"),
        ("version", b"\x1b[2J"),
    ],
)
def test_a_wrong_value_is_refused(key: str, value: bytes) -> None:
    with pytest.raises(BadAnnouncement):
        announcing.decode(LABEL, as_bytes(announcing.encode(MINE, 0)) | {key.encode(): value}, [], 1883)


def test_a_later_version_may_say_more() -> None:
    properties = as_bytes(announcing.encode(MINE, 0)) | {b"colour": b"blue", b"flag": None}
    assert announcing.decode(LABEL, properties, [], 1883) == MINE


def test_nobody_speaks_under_another_name() -> None:
    with pytest.raises(BadAnnouncement, match="is of g1"):
        announcing.decode("g2-0011223344556677", as_bytes(announcing.encode(MINE, 0)), [], 1883)


def test_addresses_have_one_order_and_a_limit() -> None:
    said = as_bytes(announcing.encode(MINE, 0))
    mixed = ["fe80::1%3", "fd00::2", "10.0.0.2", "fe80::9", "10.0.0.1", "10.0.0.2"]
    heard = announcing.decode(LABEL, said, mixed, 1884).endpoints
    assert [each.host for each in heard] == ["10.0.0.1", "10.0.0.2", "fd00::2", "fe80::1%3"]
    assert {each.port for each in heard} == {1884}
    assert announcing.decode(LABEL, said, mixed, 0).endpoints == ()
    many = announcing.decode(LABEL, said, [f"10.0.1.{n}" for n in range(200)], 1883).endpoints
    assert len(many) == announcing.ENDPOINTS_MAX


# --- interfaces ------------------------------------------------------------------------------------------------------

LO = Interface("lo", 1, ("127.0.0.1", "::1"))
ETH = Interface("eth0", 2, ("192.0.2.7", "fd00::7", "fe80::7"))
WLAN = Interface("wlan0", 3, ("198.51.100.7", "fe80::8"))
DOCKER = Interface("docker0", 4, ("172.17.0.1",))
BARE = Interface("eth1", 5, ("fe80::9",))
EMPTY = Interface("eth2", 6, ())
ALL = (DOCKER, LO, WLAN, ETH, EMPTY)


@pytest.mark.parametrize(
    ("only", "never", "listen", "expected"),
    [
        ([], ["docker*"], "0.0.0.0", ["eth0", "wlan0"]),
        ([], [], "0.0.0.0", ["eth0", "wlan0", "docker0"]),
        (["eth*"], [], "0.0.0.0", ["eth0"]),
        (["*"], ["docker*", "wl*"], "::", ["eth0"]),
        (["eth0"], ["eth0"], "0.0.0.0", []),
        ([], ["docker*"], "127.0.0.1", ["lo"]),
        ([], ["docker*"], "localhost", ["lo"]),
        ([], ["docker*"], "::1", ["lo"]),
        (["eth0"], [], "127.0.0.1", ["eth0"]),
        (["lo", "eth0"], [], "0.0.0.0", ["lo", "eth0"]),
        (["nothing"], [], "0.0.0.0", []),
    ],
)
def test_which_interfaces(only: list[str], never: list[str], listen: str, expected: list[str]) -> None:
    assert [each.name for each in announcing.chosen(ALL, only, never, listen)] == expected


@pytest.mark.parametrize(
    ("interfaces", "listen", "expected"),
    [
        ([ETH, WLAN], "0.0.0.0", ["192.0.2.7", "198.51.100.7"]),
        ([ETH, WLAN], "::", ["192.0.2.7", "fd00::7", "198.51.100.7"]),
        ([ETH, WLAN], "192.0.2.7", ["192.0.2.7"]),
        ([ETH, WLAN], "fd00::7", ["fd00::7"]),
        ([WLAN], "192.0.2.7", []),
        ([BARE], "::", ["fe80::9"]),
        ([BARE], "0.0.0.0", []),
        ([LO], "127.0.0.1", ["127.0.0.1"]),
        ([ETH], "127.0.0.1", []),
        ([], "0.0.0.0", []),
    ],
)
def test_which_addresses(interfaces: list[Interface], listen: str, expected: list[str]) -> None:
    assert list(announcing.announced(interfaces, listen)) == expected


def test_a_listen_that_is_no_address_is_said_at_once() -> None:
    with pytest.raises(EdgeError, match=r"broker\.listen"):
        announcing.chosen(ALL, [], [], "eth0")


def test_all_announcements_together_stay_bounded() -> None:
    for gateways in (0, 5, 50, 500):
        periods = [announcing.period_s(gateways, f"{n:016x}") for n in range(200)]
        assert min(periods) >= 0.9 * announcing.ANNOUNCE_S_MIN
        assert gateways / min(periods) <= 28
        assert len(set(periods)) > 150, "they keep step"


def test_every_change_is_a_record_of_its_own() -> None:
    assert announcing.encode(MINE, 1) != announcing.encode(MINE, 2)
