"""Signed documents: only a member's, as he signed it, for what he signed it. Whatever comes in, only Forged comes out."""

from __future__ import annotations

import base64
import json
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from trusted import NOW_S, Site

from edge_runtime.ports import EdgeError
from edge_runtime.trust import envelope
from edge_runtime.trust.authority import MEMBER_DAYS
from edge_runtime.trust.envelope import Forged
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.keys import PrivateKey
from edge_runtime.trust.roster import Roster

DOCUMENT = '{"patch": {"unit": "°C"}, "note": "so \\"hot\\"\\n"}'.encode()


class Signed:
    """A document that alice signed, and what is needed to tamper with it."""

    def __init__(self, folder: Path) -> None:
        self.site = Site(folder)
        self.alice = self.site.member("alice", "engineer")
        self.press = self.site.member("press-1")
        self.roster: Roster = self.site.roster(self.alice, self.press)
        self.payload = self.alice.sign(DOCUMENT, "desired")

    def changed(self, **fields: Any) -> bytes:
        return json.dumps({**json.loads(self.payload), **fields}).encode()


@pytest.fixture(scope="module")
def signed(tmp_path_factory: pytest.TempPathFactory) -> Signed:
    return Signed(tmp_path_factory.mktemp("signed"))


def test_what_a_member_signs_comes_out_as_it_was(signed: Signed) -> None:
    opened = envelope.open(signed.payload, "desired", signed.roster)
    assert opened == (DOCUMENT, "alice", "engineer", signed.alice.key.fingerprint)
    assert envelope.open(signed.press.sign(b"{}", "command"), "command", signed.roster).role == "gateway"


def test_the_wire_format_is_the_documented_one(signed: Signed) -> None:
    """Whoever signs in another language needs no more than this."""
    read = json.loads(signed.payload)
    assert sorted(read) == ["by", "document", "key", "signature"]
    data = b"edge-runtime/1\0desired\0" + read["document"].encode()
    assert base64.b64decode(read["signature"]) == signed.alice.key.sign(data)
    assert signed.changed() != signed.payload, "spaces between the fields do not matter"
    assert envelope.open(signed.changed(), "desired", signed.roster).document == DOCUMENT


def test_a_document_is_good_for_its_context_only(signed: Signed) -> None:
    for context in ("command", "roster", "desire", "desired-"):
        with pytest.raises(Forged, match="does not fit"):
            envelope.open(signed.payload, context, signed.roster)


def test_each_change_is_noticed(signed: Signed) -> None:
    signature = bytearray(base64.b64decode(json.loads(signed.payload)["signature"]))
    signature[5] ^= 1
    cases = {
        "does not fit": {"document": DOCUMENT.decode().replace("C", "F")},
        "belongs to alice": {"by": "press-1"},
        "says that it is by": {"key": signed.press.key.fingerprint},
        "no member": {"key": PrivateKey.generate().fingerprint},
        "signature": {"signature": base64.b64encode(bytes(signature)).decode()},
        "the signature": {"signature": ""},
        "not a signed": {"more": 1},
        "not a": {"signature": "!"},
    }
    for told, fields in cases.items():
        with pytest.raises(Forged, match=told):
            envelope.open(signed.changed(**fields), "desired", signed.roster)


def test_another_member_cannot_sign_in_the_name_of_the_first(signed: Signed) -> None:
    for payload in (
        envelope.seal(DOCUMENT, "desired", signed.press.key, "alice"),
        signed.changed(key=signed.press.key.fingerprint, by="press-1"),
    ):
        with pytest.raises(Forged):
            envelope.open(payload, "desired", signed.roster)


def test_a_stranger_and_another_site_are_nobody(signed: Signed, tmp_path: Path) -> None:
    stranger = PrivateKey.generate()
    other = Site(tmp_path, "plant-2").member("alice", "engineer")
    for payload in (envelope.seal(DOCUMENT, "desired", stranger, "alice"), other.sign(DOCUMENT, "desired")):
        with pytest.raises(Forged, match="no member of plant-1"):
            envelope.open(payload, "desired", signed.roster)


def test_who_was_revoked_is_heard_no_more(tmp_path: Path) -> None:
    site = Site(tmp_path)
    bob, press = site.member("bob", "operator"), site.member("press-1")
    payload = bob.sign(DOCUMENT, "command")
    assert envelope.open(payload, "command", site.roster(press)).by == "bob"
    site.authority.revoke("bob", "left the company")
    with pytest.raises(Forged, match="revoked"):
        envelope.open(payload, "command", site.roster(press))


def test_age_counts_only_by_a_clock_that_is_right(signed: Signed) -> None:
    end_s = NOW_S + MEMBER_DAYS * 86_400
    for now_s in (None, 0, NOW_S, end_s):
        assert envelope.open(signed.payload, "desired", signed.roster, now_s=now_s).by == "alice"
    with pytest.raises(Forged, match="run out"):
        envelope.open(signed.payload, "desired", signed.roster, now_s=end_s + 1)


def test_sizes_have_a_limit_on_both_sides(signed: Signed) -> None:
    largest = b'"' + b"x" * (envelope.DOCUMENT_BYTES_MAX - 2) + b'"'
    assert envelope.open(signed.alice.sign(largest, "desired"), "desired", signed.roster).document == largest
    with pytest.raises(Forged, match="at most"):
        signed.alice.sign(largest + b" ", "desired")
    with pytest.raises(Forged, match="at most"):
        envelope.open(signed.changed(document="x" * len(largest) + "x"), "desired", signed.roster)
    with pytest.raises(Forged, match="at most"):
        envelope.open(b" " * (2 * envelope.DOCUMENT_BYTES_MAX + 1), "desired", signed.roster)
    with pytest.raises(Forged, match="at most"):
        signed.alice.sign(b"\x01" * (envelope.DOCUMENT_BYTES_MAX // 2), "desired")  # six bytes each, as JSON
    with pytest.raises(Forged, match="UTF-8"):
        signed.alice.sign(b"\xff", "desired")


def test_half_of_a_character_is_refused_in_words(signed: Signed) -> None:
    """JSON can hold what UTF-8 cannot."""
    for text in (r'"\ud800"', r'"\udc00\ud800"'):
        payload = signed.payload.replace(json.dumps(DOCUMENT.decode(), ensure_ascii=False).encode(), text.encode())
        assert payload != signed.payload
        with pytest.raises(Forged):
            envelope.open(payload, "desired", signed.roster)


def test_signed_or_not_is_seen_by_its_form(signed: Signed) -> None:
    assert envelope.is_signed(signed.payload)
    assert envelope.is_signed(signed.changed(by=3))
    for plain in (b"", b"{}", DOCUMENT, b"[1]", b"\xff", b'{"document": {}}', b"[" * 100_000, b'{"a":' * 100_000):
        assert not envelope.is_signed(plain)


def test_the_roster_is_the_authoritys_alone(signed: Signed) -> None:
    authority = signed.alice.authority
    payload = signed.site.authority.roster()
    assert envelope.open_roster(payload, "plant-1", authority) == signed.roster
    document = envelope.open_roster(payload, "plant-1", authority)
    for forged in (
        envelope.seal(msgspec.json.encode(document), "roster", signed.alice.key, "authority"),
        payload.replace(b"engineer", b"operator"),
        signed.alice.sign(DOCUMENT, "roster"),
        b"",
    ):
        with pytest.raises(Forged):
            envelope.open_roster(forged, "plant-1", authority)
    with pytest.raises(Forged, match="of the site plant-1"):
        envelope.open_roster(payload, "plant-2", authority)
    with pytest.raises(Forged, match="no member"):
        envelope.open(payload, "roster", signed.roster)


# --- whatever comes in -----------------------------------------------------------------------------------------------


def outcomes(payload: bytes, signed: Signed) -> Iterator[bytes]:
    """Of each reader: what it took. Anything but EdgeError goes through."""
    envelope.is_signed(payload)
    try:
        yield envelope.open(payload, "desired", signed.roster).document
    except Forged as error:
        assert error.cause
        assert error.hint
    with pytest.raises(Forged):
        envelope.open_roster(payload, "plant-1", signed.alice.authority)


@settings(max_examples=400, deadline=None)
@given(st.binary(max_size=400))
def test_bytes_from_nowhere(signed: Signed, payload: bytes) -> None:
    assert not list(outcomes(payload, signed))


@settings(max_examples=400, deadline=None)
@given(at=st.integers(min_value=0), span=st.integers(0, 6), instead=st.binary(max_size=6))
def test_a_signed_document_with_bytes_changed_is_refused_or_the_same(signed: Signed, at: int, span: int, instead: bytes) -> None:
    at %= len(signed.payload)
    payload = signed.payload[:at] + instead + signed.payload[at + span :]
    assert list(outcomes(payload, signed)) in ([], [DOCUMENT])


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=8) | st.just("\ud800"),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)


@settings(max_examples=400, deadline=None)
@given(field=st.sampled_from(["document", "by", "key", "signature"]), value=JSON, drop=st.booleans())
def test_a_signed_document_with_a_field_changed_is_refused(signed: Signed, field: str, value: Any, drop: bool) -> None:
    fields = json.loads(signed.payload)
    del fields[field]
    payload = json.dumps(fields if drop else {**fields, field: value}).encode()
    assert not list(outcomes(payload, signed))


@settings(max_examples=200, deadline=None)
@given(document=JSON, field=st.sampled_from(["v", "site", "revision", "members", "revoked", "crl", ""]))
def test_a_roster_that_the_authority_signed_badly_is_refused_in_words(signed: Signed, document: Any, field: str) -> None:
    """Also who holds the authority's key cannot make a gateway fall over."""
    if field:
        document = {**json.loads(msgspec.json.encode(signed.roster)), field: document}
    payload = envelope.seal(json.dumps(document).encode(), "roster", signed.site.authority._key, "authority")
    try:
        envelope.open_roster(payload, "plant-1", signed.alice.authority)
    except EdgeError as error:
        assert isinstance(error, Forged)


def test_an_identity_signs_in_its_own_name(signed: Signed) -> None:
    assert isinstance(signed.press, Identity)
    assert json.loads(signed.press.sign(b"{}", "birth"))["by"] == "press-1"
