"""The roster as a value: what it must be, also when the authority itself has signed it."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edge_runtime.ports import EdgeError
from edge_runtime.trust import roster as rosters
from edge_runtime.trust.keys import fingerprint
from edge_runtime.trust.roster import MEMBERS_MAX, REVOKED_MAX, Forged, Member, Revoked, Roster, decode, encode

PRESS = Member("press-1", "gateway", "aa" * 32, "1f", 2_000_000_000)
ALICE = Member("alice", "engineer", "bb" * 32, "2f", 2_000_000_000)
HASH = f"$7$10000${'c' * 16}${'d' * 86}=="
BOB = Revoked("bob", "cc" * 32, "3f", "left the company")
ROSTER = Roster(1, "plant-1", 7, (PRESS, ALICE), (BOB,))


def test_it_comes_back_from_the_wire() -> None:
    assert decode(encode(ROSTER)) == ROSTER


def test_a_roster_without_passwords_is_as_it_always_was() -> None:
    """A gateway that knows of none reads it; and this one reads what was signed before there were any."""
    assert b"password" not in encode(ROSTER)
    old = b'{"name":"alice","role":"engineer","key":"%s","serial":"2f","not_after_s":2000000000}' % (b"bb" * 32)
    assert old in encode(ROSTER)
    named = msgspec.structs.replace(ROSTER, members=(PRESS, msgspec.structs.replace(ALICE, password=HASH)))
    assert decode(encode(named)) == named


def test_members_are_found_by_fingerprint_and_name() -> None:
    assert ROSTER.member(fingerprint(bytes.fromhex("aa" * 32))) == PRESS
    assert ROSTER.member(fingerprint(bytes.fromhex("cc" * 32))) is None
    assert ROSTER.named("alice") == ALICE
    assert ROSTER.named("bob") is None
    assert ROSTER.is_revoked(key=BOB.key)
    assert ROSTER.is_revoked(serial="3f")
    assert not ROSTER.is_revoked(key=PRESS.key, serial=PRESS.serial)
    assert not ROSTER.is_revoked()


def test_a_copy_finds_its_own_members() -> None:
    """What is looked up is kept; not across copies."""
    assert ROSTER.named("alice") == ALICE
    assert msgspec.structs.replace(ROSTER, members=(PRESS,)).named("alice") is None


@pytest.mark.parametrize(
    ("told", "changes"),
    [
        ("version 2", {"v": 2}),
        ("same name", {"members": (PRESS, msgspec.structs.replace(ALICE, name="press-1"))}),
        ("same key", {"members": (PRESS, msgspec.structs.replace(ALICE, key=PRESS.key))}),
        ("revoked key", {"members": (PRESS, msgspec.structs.replace(ALICE, key=BOB.key))}),
        (r"members\[0\].name", {"members": (msgspec.structs.replace(PRESS, name="press/1"),)}),
        (r"members\[0\].name", {"members": (msgspec.structs.replace(PRESS, name="person:x"),)}),
        (r"members\[0\].role", {"members": (msgspec.structs.replace(PRESS, role="root"),)}),
        (r"members\[0\].key", {"members": (msgspec.structs.replace(PRESS, key="AA" * 32),)}),
        ("press-1 is gateway, and has a password", {"members": (msgspec.structs.replace(PRESS, password=HASH),)}),
        *(
            (told, {"members": (PRESS, msgspec.structs.replace(ALICE, password=password))})
            for told, password in (
                (r"members\[1\].password", "in plain words"),
                (r"members\[1\].password", HASH + "\n"),
                (r"members\[1\].password", HASH + "\nbob:" + HASH),
                (r"members\[1\].password", HASH.replace("$7$", "$6$")),
                (r"members\[1\].password", HASH.replace("10000", "010000")),
                (r"members\[1\].password", HASH.replace("10000", "1000000")),
                (r"members\[1\].password", HASH.replace("c", ":")),
                (r"members\[1\].password", HASH.removesuffix("==")),
                ("password of alice takes 99999 rounds", HASH.replace("10000", "99999")),
            )
        ),
        (r"members\[0\].serial", {"members": (msgspec.structs.replace(PRESS, serial="-5"),)}),
        ("revision", {"revision": 0}),
        ("revision", {"revision": 2**53}),
        ("site", {"site": "#"}),
        ("members", {"members": (PRESS,) * (MEMBERS_MAX + 1)}),
        ("revoked", {"revoked": (BOB,) * (REVOKED_MAX + 1)}),
    ],
)
def test_what_is_no_roster_is_refused_in_words(told: str, changes: dict[str, Any]) -> None:
    with pytest.raises(Forged, match=told) as caught:
        decode(encode(msgspec.structs.replace(ROSTER, **changes)))
    assert caught.value.hint


def test_the_largest_site_fits_into_one_document() -> None:
    longest = "n" * 63
    members = tuple(Member(longest, "engineer", "aa" * 32, "f" * 40, 2**40, HASH) for _ in range(MEMBERS_MAX))
    revoked = tuple(Revoked(longest, "cc" * 32, "f" * 40, "w" * 100) for _ in range(REVOKED_MAX))
    crl_bytes = REVOKED_MAX * 40 * 4 // 3
    size_bytes = len(encode(Roster(1, longest, 2**53 - 1, members, revoked))) + crl_bytes
    assert size_bytes <= 4 * 2**20
    assert crl_bytes <= 2**20


def test_user_names_of_people_and_gateways_never_meet() -> None:
    assert rosters.certificate_name("alice", "gateway") == "alice"
    assert rosters.certificate_name("alice", "viewer") == "person:alice"


def test_receivers_and_equipment_have_prefixes_of_their_own() -> None:
    assert rosters.certificate_name("cloud", "receiver") == "receiver:cloud"
    assert rosters.certificate_name("scale", "device") == "device:scale"
    assert len({rosters.PREFIXES[role] for role in ("gateway", "viewer", *rosters.MACHINES)}) == 4
    rosters.check_name("x" * 55, "receiver")
    with pytest.raises(EdgeError, match="not a name"):
        rosters.check_name("x" * 56, "receiver")


@pytest.mark.parametrize("name", ["edge", "device"])
def test_no_equipment_is_called_as_topics_begin(name: str) -> None:
    with pytest.raises(EdgeError, match="topics begin with it"):
        rosters.check_name(name, "device")
    rosters.check_name(name, "gateway")
