"""The site authority: one name, one key, one revision for each change; a power cut or a second process breaks nothing."""

from __future__ import annotations

import fcntl
import shutil
import subprocess
import sys
from pathlib import Path

import pytest
from powercuts import every_cut
from trusted import NOW_S, PASSPHRASE, Later, Site, Still

from edge_runtime.ports import EdgeError
from edge_runtime.records import Stamp
from edge_runtime.trust import authority as authorities
from edge_runtime.trust import certificates, envelope, files, keys
from edge_runtime.trust.authority import Authority
from edge_runtime.trust.keys import PrivateKey
from edge_runtime.trust.roster import Forged, Member, Roster

CODE = """
import sys
from pathlib import Path
from trusted import PASSPHRASE, Still
from edge_runtime.trust import certificates
from edge_runtime.trust.authority import Authority
from edge_runtime.trust.keys import PrivateKey
authority = Authority.open(Path(sys.argv[1]), PASSPHRASE, Still())
for at in range(10):
    authority.issue(certificates.request(PrivateKey.generate(), "x"), f"{sys.argv[2]}-{at}", "gateway")
"""


@pytest.fixture(autouse=True)
def _cheap_passphrases(monkeypatch: pytest.MonkeyPatch) -> None:
    """An authority is opened in no time, where that is done at each of a hundred cuts."""
    monkeypatch.setattr(keys, "_SCRYPT_N", 2)


def read(site: Site) -> Roster:
    return envelope.open_roster(site.authority.roster(), site.name, site.authority.public)


def test_a_site_is_made_once_and_opened_with_its_passphrase(tmp_path: Path) -> None:
    site = Site(tmp_path)
    folder = site.authority.folder
    opened = Authority.open(folder, PASSPHRASE, Still())
    assert (opened.site, opened.public, opened.members) == ("plant-1", site.authority.public, ())
    assert (folder / "ca-key.pem").stat().st_mode & 0o777 == 0o600
    assert folder.stat().st_mode & 0o777 == 0o700
    assert b"ENCRYPTED" in (folder / "ca-key.pem").read_bytes()
    with pytest.raises(EdgeError, match="wrong passphrase"):
        Authority.open(folder, PASSPHRASE + "!", Still())
    with pytest.raises(EdgeError, match="not empty"):
        Authority.create(folder, "plant-1", PASSPHRASE, Still())
    with pytest.raises(EdgeError, match="No such file"):
        Authority.open(tmp_path / "none", PASSPHRASE, Still())
    for name in ("", "a/b", "plant 1", "x" * 64, "-x"):
        with pytest.raises(EdgeError, match="not a name"):
            Authority.create(tmp_path / "bad", name, PASSPHRASE, Still())
    with pytest.raises(EdgeError, match="too short"):
        Authority.create(tmp_path / "bad", "plant-1", "short", Still())
    assert not (tmp_path / "bad").exists()


def test_a_certificate_says_what_was_issued(tmp_path: Path) -> None:
    site = Site(tmp_path)
    key = PrivateKey.generate()
    pem = site.authority.issue(certificates.request(key, "wishes-to-be-called"), "alice", "engineer")
    subject = certificates.parse(pem)
    assert (subject.site, subject.role, subject.name, subject.key) == ("plant-1", "engineer", "alice", key.public.hex())
    assert subject.not_after_s == NOW_S + authorities.MEMBER_DAYS * 86_400
    assert certificates.is_signed(pem, site.authority.ca)
    assert (site.authority.folder / f"issued/{subject.serial}.pem").read_bytes() == pem
    member = Member("alice", "engineer", subject.key, subject.serial, subject.not_after_s)
    assert site.authority.members == read(site).members == (member,)
    assert member.fingerprint == key.fingerprint


def test_names_are_unique_over_gateways_and_people(tmp_path: Path) -> None:
    site = Site(tmp_path)
    site.authority.issue(site.csr(), "alice", "engineer")
    before = site.authority.roster()
    for role in ("gateway", "viewer", "engineer"):
        with pytest.raises(EdgeError, match=r"alice is taken.*engineer") as caught:
            site.authority.issue(site.csr(), "alice", role)
        assert "revoke alice" in caught.value.hint
        assert "replace alice" in caught.value.hint
    assert site.authority.roster() == before
    site.authority.revoke("alice", "left")
    site.authority.issue(site.csr(), "alice", "gateway")


def test_a_key_belongs_to_one_member_and_never_comes_back(tmp_path: Path) -> None:
    site = Site(tmp_path)
    csr = site.csr()
    site.authority.issue(csr, "press-1", "gateway")
    with pytest.raises(EdgeError, match="belongs to press-1"):
        site.authority.issue(csr, "press-2", "gateway")
    site.authority.revoke("press-1", "stolen")
    for again in (lambda: site.authority.issue(csr, "press-1", "gateway"), lambda: site.authority.issue(csr, "thief", "viewer")):
        with pytest.raises(EdgeError, match="was revoked"):
            again()
    site.authority.issue(site.csr(), "press-1", "gateway")
    with pytest.raises(EdgeError, match="was revoked"):
        site.authority.replace("press-1", csr)


@pytest.mark.parametrize("name", ["", "a b", "a/b", "a+b", "#", "person:alice", "a\n", "é", "x" * 64, "-a"])
def test_a_name_that_is_no_name_is_refused(tmp_path: Path, name: str) -> None:
    site = Site(tmp_path)
    with pytest.raises(EdgeError, match="not a name"):
        site.authority.issue(site.csr(), name, "gateway")


def test_the_longest_names_fit_into_a_certificate(tmp_path: Path) -> None:
    site = Site(tmp_path, "s" * 63)
    for length, role in ((63, "gateway"), (57, "engineer")):
        subject = certificates.parse(site.authority.issue(site.csr(), role[0] * length, role))
        assert subject.name == role[0] * length
    with pytest.raises(EdgeError, match="not a name"):
        site.authority.issue(site.csr(), "x" * 58, "viewer")
    with pytest.raises(EdgeError, match="no such role"):
        site.authority.issue(site.csr(), "bob", "admin")  # type: ignore[arg-type]


def test_a_request_must_be_signed_with_its_own_key(tmp_path: Path) -> None:
    site = Site(tmp_path)
    mine, theirs = site.csr("a"), site.csr("a")
    for csr in (b"", b"rubbish", site.authority.ca, mine[:-60] + theirs[-60:], mine * 100):
        with pytest.raises(EdgeError):
            site.authority.issue(csr, "press-1", "gateway")
    assert site.authority.members == ()
    assert not list((site.authority.folder / "issued").iterdir())


def test_replace_is_one_step(tmp_path: Path) -> None:
    site = Site(tmp_path)
    old = site.member("press-1")
    before = read(site)
    new = PrivateKey.generate()
    pem = site.authority.replace("press-1", certificates.request(new, "x"))
    after = read(site)
    assert after.revision == before.revision + 1
    assert [(each.name, each.key) for each in after.members] == [("press-1", new.public.hex())]
    assert [(each.key, each.serial, each.why) for each in after.revoked] == [(old.subject.key, old.subject.serial, "replaced")]
    assert certificates.parse(pem).role == "gateway"
    for name, csr, told in (("none", site.csr(), "no member"), ("press-1", certificates.request(new, "x"), "has already")):
        with pytest.raises(EdgeError, match=told):
            site.authority.replace(name, csr)


def test_revocation_voids_every_certificate_that_the_key_ever_had(tmp_path: Path) -> None:
    """A broker knows certificates by their serial numbers: the one from before a renewal must not stay good."""
    site = Site(tmp_path)
    press = site.member("press-1")
    site.authority._clock = Later()
    renewed = certificates.parse(site.authority.renew("press-1"))
    assert renewed.key == press.subject.key
    assert renewed.serial != press.subject.serial
    assert renewed.not_after_s > press.subject.not_after_s
    assert read(site).revoked == ()
    site.authority.revoke("press-1", "stolen")
    roster = read(site)
    assert sorted(each.serial for each in roster.revoked) == sorted([press.subject.serial, renewed.serial])
    assert roster.member(press.key.fingerprint) is None
    assert roster.is_revoked(key=press.subject.key)
    assert roster.is_revoked(serial=press.subject.serial)
    assert roster.is_revoked(serial=renewed.serial)
    assert not roster.is_revoked(key="00" * 32, serial="1")
    assert roster.crl.encode() == site.authority.crl()


class Guarding(Still):
    """Is asked in the middle of a change."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.refused = 0

    def now(self) -> Stamp:
        with (self.folder / ".lock").open() as lock:
            try:
                fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
            except BlockingIOError:
                self.refused += 1
        return super().now()


def test_a_change_keeps_others_out_until_it_is_done(tmp_path: Path) -> None:
    site = Site(tmp_path)
    guard = site.authority._clock = Guarding(site.authority.folder)
    site.authority.issue(site.csr(), "press-1", "gateway")
    site.authority.replace("press-1", site.csr())
    site.authority.renew("press-1")
    assert guard.refused == 3
    with files.locked(site.authority.folder):
        pass


def test_a_second_process_and_a_first_one_lose_nothing_of_each_other(tmp_path: Path) -> None:
    site = Site(tmp_path)
    command = [sys.executable, "-c", CODE, str(site.authority.folder)]
    environment = {"PYTHONPATH": str(Path(__file__).parent.parent)}
    others = [subprocess.Popen([*command, name], env=environment) for name in ("a", "b")]
    site.authority.issue(site.csr(), "mine", "gateway")
    assert [other.wait(60) for other in others] == [0, 0]
    roster = envelope.open_roster(files.read(site.authority.folder / "roster.json"), "plant-1", site.authority.public)
    assert len(roster.members) == 21
    assert roster.revision == 22
    site.authority.revoke("a-3", "of the other process")
    assert len(site.authority.members) == 20


def test_a_power_cut_at_any_instant_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path)
    site.member("press-1")
    csr = site.csr()
    backup = tmp_path / "backup"
    shutil.copytree(site.authority.folder, backup)
    seen: list[tuple[int, str]] = []

    def look() -> None:
        opened = Authority.open(site.authority.folder, PASSPHRASE, Still())
        roster = envelope.open_roster(opened.roster(), "plant-1", opened.public)
        member = roster.named("press-1")
        assert member is not None, "there is always one press-1"
        assert (len(roster.members), len(roster.revoked)) == (1, roster.revision - 2)
        assert (opened.folder / f"issued/{member.serial}.pem").exists()
        seen.append((roster.revision, member.key))
        shutil.rmtree(site.authority.folder)
        shutil.copytree(backup, site.authority.folder)

    assert every_cut(monkeypatch, lambda: site.authority.replace("press-1", csr), look) >= 10
    assert {revision for revision, _ in seen} == {2, 3}
    assert len({key for _, key in seen}) == 2


def test_a_power_cut_while_a_site_is_made_leaves_none(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    folder = tmp_path / "authority"

    def look() -> None:
        if not files.is_empty(folder):
            assert Authority.open(folder, PASSPHRASE, Still()).site == "plant-1"
            shutil.rmtree(folder)

    assert every_cut(monkeypatch, lambda: Authority.create(folder, "plant-1", PASSPHRASE, Still()), look) >= 12
    assert [path.name for path in tmp_path.iterdir()] == ["authority"]


def test_an_authority_restored_from_a_backup_learns_from_its_members(tmp_path: Path) -> None:
    site = Site(tmp_path)
    shutil.copytree(site.authority.folder, tmp_path / "backup")
    press = site.member("press-1")
    restored = Authority.open(tmp_path / "backup", PASSPHRASE, Still())
    assert restored.take_roster(press.signed_roster)
    assert not restored.take_roster(press.signed_roster)
    with pytest.raises(Forged):
        restored.take_roster(Site(tmp_path, "plant-2").authority.roster())
    with pytest.raises(EdgeError, match="is taken"):
        restored.issue(site.csr(), "press-1", "gateway")
    restored.revoke("press-1", "its certificate is not in issued/")
    assert press.take_roster(restored.roster())
    assert press.is_revoked
    assert press.roster.is_revoked(serial=press.subject.serial)


def test_a_folder_with_parts_of_two_sites_is_refused(tmp_path: Path) -> None:
    one, two = Site(tmp_path), Site(tmp_path, "plant-2")
    shutil.copy(two.authority.folder / "roster.json", one.authority.folder / "roster.json")
    with pytest.raises(EdgeError):
        Authority.open(one.authority.folder, PASSPHRASE, Still())
    with pytest.raises(EdgeError):
        one.authority.issue(one.csr(), "press-1", "gateway")
    shutil.copy(two.authority.folder / "ca.pem", one.authority.folder / "ca.pem")
    with pytest.raises(EdgeError, match="does not belong"):
        Authority.open(one.authority.folder, PASSPHRASE, Still())


def test_a_full_site_admits_nobody_and_can_still_revoke(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path)
    monkeypatch.setattr(authorities, "MEMBERS_MAX", 2)
    for name in ("press-1", "press-2"):
        site.authority.issue(site.csr(), name, "gateway")
    with pytest.raises(EdgeError, match="full"):
        site.authority.issue(site.csr(), "press-3", "gateway")
    site.authority.revoke("press-1", "gone")
    site.authority.issue(site.csr(), "press-3", "gateway")
    monkeypatch.setattr(authorities, "ROOM_TO_REVOKE", authorities.REVOKED_MAX)
    site.authority.revoke("press-3", "gone")
    with pytest.raises(EdgeError, match="full"):
        site.authority.issue(site.csr(), "press-4", "gateway")
