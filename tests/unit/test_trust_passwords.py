"""Passwords of people: their hashes, and how the authority puts them into the roster."""

from __future__ import annotations

import shutil
import subprocess
from pathlib import Path

import pytest
from hypothesis import given
from hypothesis import strategies as st
from trusted import PASSPHRASE, Site, Still

from edge_runtime.ports import EdgeError
from edge_runtime.trust import envelope, keys, passwords
from edge_runtime.trust.authority import Authority
from edge_runtime.trust.roster import Member

PLAIN = "olaf has a long password"
SALT = b"twelve bytes"


@pytest.fixture(autouse=True)
def _cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(keys, "_SCRYPT_N", 2)


def test_a_hash_is_that_of_mosquitto(tmp_path: Path) -> None:
    if shutil.which("mosquitto_passwd") is None:
        pytest.skip("MISSING SYSTEM PACKAGE: mosquitto (apt-get install mosquitto)")
    file = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-c", "-b", file, "olaf", PLAIN], check=True, capture_output=True)
    theirs = file.read_text().strip().removeprefix("olaf:")
    assert passwords.matches(PLAIN, theirs)
    assert not passwords.matches(PLAIN + "!", theirs)
    assert passwords.wrong(theirs)  # 101 rounds: too few to be in a roster
    ours = passwords.hashed(PLAIN, SALT)
    assert passwords.wrong(ours) == ""
    assert passwords.matches(PLAIN, ours)
    assert not passwords.matches(PLAIN + "!", ours)
    assert ours != passwords.hashed(PLAIN, b"twelve other")


@pytest.mark.parametrize("plain", ["", "too short", "x" * 257, "long enough, but\nof two lines", "long enough, but \0 in it"])
def test_what_is_no_password_is_refused_and_not_shown(plain: str) -> None:
    with pytest.raises(EdgeError) as caught:
        passwords.hashed(plain, SALT)
    assert not plain or plain not in str(caught.value) + caught.value.hint
    assert "--generate" in caught.value.hint


@given(st.binary(min_size=passwords.GENERATED_BYTES, max_size=passwords.GENERATED_BYTES))
def test_a_generated_one_can_be_typed_and_has_all_that_chance_gave(chance: bytes) -> None:
    made = passwords.generated(chance)
    passwords.check(made)
    assert (len(made), made.isascii(), made.isalnum()) == (24, True, True)
    back = sum(passwords._ALPHABET.index(each) << 5 * at for at, each in enumerate(made))
    assert back.to_bytes(len(chance)) == chance


def person(site: Site, name: str = "olaf") -> Member:
    found = envelope.open_roster(site.authority.roster(), site.name, site.authority.public).named(name)
    assert found
    return found


def test_a_password_comes_and_goes_each_with_a_revision(tmp_path: Path) -> None:
    site = Site(tmp_path)
    one, other = (passwords.hashed(PLAIN, each) for each in (SALT, SALT[::-1]))
    site.authority.issue(site.csr(), "olaf", "operator", one)
    before = person(site)
    assert before.password == one
    revision = site.authority._roster.revision
    for number, kept in enumerate((other, ""), start=1):
        site.authority.set_password("olaf", kept)
        assert person(site).password == kept
        assert site.authority._roster.revision == revision + number
    with pytest.raises(EdgeError, match="olaf has no password"):
        site.authority.set_password("olaf", "")
    site.authority.set_password("olaf", one)
    assert person(site) == before  # key, certificate and role as they were
    assert Authority.open(site.authority.folder, PASSPHRASE, Still()).members == (before,)


def test_renewed_it_stays_replaced_or_revoked_it_is_gone(tmp_path: Path) -> None:
    site, kept = Site(tmp_path), passwords.hashed(PLAIN, SALT)
    site.authority.issue(site.csr(), "olaf", "operator", kept)
    serial = person(site).serial
    site.authority.renew("olaf")
    assert (person(site).password, person(site).serial != serial) == (kept, True)
    site.authority.renew("olaf", "")
    assert person(site).password == ""
    site.authority.renew("olaf", kept)
    assert person(site).password == kept
    site.authority.replace("olaf", site.csr())
    assert person(site).password == ""
    site.authority.replace("olaf", site.csr(), kept)
    assert person(site).password == kept
    site.authority.revoke("olaf", "left")
    assert kept.encode() not in site.authority.roster()


def test_only_people_have_one_and_only_a_hash(tmp_path: Path) -> None:
    site, kept = Site(tmp_path), passwords.hashed(PLAIN, SALT)
    for name, role in (("press", "gateway"), ("scale", "device"), ("cloud", "receiver")):
        with pytest.raises(EdgeError, match="it has no password"):
            site.authority.issue(site.csr(), name, role, kept)  # type: ignore[arg-type]
        site.authority.issue(site.csr(), name, role)  # type: ignore[arg-type]
        with pytest.raises(EdgeError, match="it has no password"):
            site.authority.set_password(name, kept)
    site.authority.issue(site.csr(), "olaf", "operator")
    for bad in (PLAIN, kept + "\n", kept.replace("$10000$", "$99999$"), kept.replace("$10000$", "$999$")):
        with pytest.raises(EdgeError, match="the password of olaf") as caught:
            site.authority.set_password("olaf", bad)
        assert PLAIN not in str(caught.value)
    with pytest.raises(EdgeError, match="no member"):
        site.authority.set_password("nobody", kept)
