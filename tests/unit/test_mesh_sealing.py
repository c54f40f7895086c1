"""Tasks and replies between two gateways of a site: nobody else can make one, and none can be used as another."""

from __future__ import annotations

import hmac
import random
from pathlib import Path

import pytest
from trusted import Site

from edge_runtime.bus.messages import BadMessage
from edge_runtime.mesh.sealing import TAG_BYTES, Sealing
from edge_runtime.ports import EdgeError
from edge_runtime.trust.roster import Forged

FRAME = b"a window and its model"


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def pair(site: Site) -> tuple[Sealing, Sealing]:
    one, other = site.member("one"), site.member("other")
    site.roster(one, other)
    mine, theirs = Sealing(one), Sealing(other)
    mine.meet("other", theirs.public)
    theirs.meet("one", mine.public)
    return mine, theirs


def test_what_one_seals_the_other_opens(site: Site) -> None:
    mine, theirs = pair(site)
    assert theirs.open("task", "one", mine.seal("task", "other", FRAME)) == FRAME
    assert mine.open("reply", "other", theirs.seal("reply", "one", FRAME)) == FRAME


@pytest.mark.parametrize("size", [0, 1, 55, 56, 63, 64, 65, 1_000, 100_000])
def test_the_tag_is_the_hmac_that_python_would_make(site: Site, size: int) -> None:
    """And twice the same: what was begun beforehand is not used up."""
    mine, theirs = pair(site)
    key = mine._agreement.key_with(bytes.fromhex(theirs.public), b"tasks")
    frame = random.Random(size).randbytes(size)
    whole = hmac.digest(key, b"task\0one\0other\0" + frame, "sha256")
    for _ in range(2):
        assert mine.seal("task", "other", frame) == frame + whole[:TAG_BYTES]


@pytest.mark.parametrize("at", [0, len(FRAME) - 1, len(FRAME), len(FRAME) + TAG_BYTES - 1])
def test_a_changed_byte_is_seen(site: Site, at: int) -> None:
    mine, theirs = pair(site)
    sealed = bytearray(mine.seal("task", "other", FRAME))
    sealed[at] ^= 1
    with pytest.raises(BadMessage):
        theirs.open("task", "one", bytes(sealed))


def test_it_is_good_for_one_kind_one_sender_and_one_receiver(site: Site) -> None:
    mine, theirs = pair(site)
    sealed = mine.seal("task", "other", FRAME)
    with pytest.raises(BadMessage):
        theirs.open("reply", "one", sealed)  # as the other kind
    with pytest.raises(BadMessage):
        mine.open("task", "other", sealed)  # sent back
    third = Sealing(site.member("third"))
    third.meet("one", mine.public)
    with pytest.raises(BadMessage):
        third.open("task", "one", sealed)  # handed on


def test_a_third_one_cannot_make_one(site: Site) -> None:
    _, theirs = pair(site)
    third = Sealing(site.member("third"))
    third.meet("other", theirs.public)
    with pytest.raises(BadMessage):
        theirs.open("task", "one", third.seal("task", "other", FRAME))
    with pytest.raises(BadMessage, match="no key"):
        theirs.open("task", "third", third.seal("task", "other", FRAME))  # its birth did not come
    for short in (b"", b"x", bytes(TAG_BYTES)):
        with pytest.raises(BadMessage):
            theirs.open("task", "one", short)


def test_a_new_start_is_another_key(site: Site) -> None:
    mine, theirs = pair(site)
    old = mine.seal("task", "other", FRAME)
    theirs.meet("one", Sealing(site.member("again")).public)
    with pytest.raises(BadMessage):
        theirs.open("task", "one", old)


def test_a_birth_is_its_gateways_own(site: Site) -> None:
    mine, theirs = pair(site)
    assert theirs.open_birth("one", mine.sign(b"{}")) == b"{}"
    with pytest.raises(EdgeError):
        theirs.open_birth("other", mine.sign(b"{}"))  # in another's name
    with pytest.raises(Forged):
        theirs.open_birth("one", b"{}")
    alice = site.member("alice", "engineer")
    with pytest.raises(EdgeError):
        theirs.open_birth("alice", alice.sign(b"{}", "birth"))  # a person is no gateway


def test_the_keys_of_a_revoked_gateway_are_not_used_any_more(site: Site) -> None:
    mine, theirs = pair(site)
    theirs.open_birth("one", mine.sign(b"{}"))
    theirs.meet("one", mine.public)
    sealed = mine.seal("task", "other", FRAME)
    assert theirs.open("task", "one", sealed) == FRAME
    site.authority.revoke("one", "stolen")
    theirs._identity.take_roster(site.authority.roster())
    for use in (lambda: theirs.open("task", "one", sealed), lambda: theirs.seal("reply", "one", FRAME)):
        with pytest.raises(BadMessage, match="revoked"):
            use()
    assert theirs.forget_revoked() == ["one"]
    with pytest.raises(BadMessage, match="no key"):
        theirs.open("task", "one", sealed)
    assert theirs.forget_revoked() == []


def test_a_birth_that_came_too_early_is_remembered_as_such(site: Site) -> None:
    """Of a newcomer that our roster does not have yet: with the next one all births are heard again."""
    _, theirs = pair(site)
    newcomer = Sealing(site.member("third"))
    assert not theirs.refused_births
    with pytest.raises(Forged):
        theirs.open_birth("third", newcomer.sign(b"{}"))
    assert theirs.refused_births
    theirs._identity.take_roster(site.authority.roster())
    assert theirs.open_birth("third", newcomer.sign(b"{}")) == b"{}"


def test_a_revoked_gateway_is_not_born(site: Site) -> None:
    mine, theirs = pair(site)
    birth = mine.sign(b"{}")
    site.authority.revoke("one", "stolen")
    theirs._identity.take_roster(site.authority.roster())
    with pytest.raises(Forged, match="revoked"):
        theirs.open_birth("one", birth)
