"""The identity folder: nothing in it that does not fit, a newer roster taken, never half a folder."""

from __future__ import annotations

import os
import shutil
from pathlib import Path

import msgspec
import pytest
from powercuts import every_cut
from trusted import PASSPHRASE, Later, Site, Still

from edge_runtime.ports import EdgeError
from edge_runtime.trust import certificates, envelope, files
from edge_runtime.trust.authority import Authority
from edge_runtime.trust.identity import Identity, Moved
from edge_runtime.trust.keys import PrivateKey
from edge_runtime.trust.roster import Forged


def test_a_member_knows_itself(tmp_path: Path) -> None:
    site = Site(tmp_path)
    for made in (site.member("press-1"), site.member("alice", "engineer")):
        identity = Identity.load(made.folder)
        assert identity is not None
        assert (identity.site, identity.name, identity.role) == (made.site, made.name, made.role)
        assert identity.key.public == made.key.public
        assert identity.ca_file.read_bytes() == site.authority.ca
        assert identity.roster.member(identity.key.fingerprint) is not None
        assert not identity.is_revoked
    assert Identity.load(tmp_path / "plant-1/press-1").username == "press-1"  # type: ignore[union-attr]
    assert made.username == "person:alice"
    assert sorted(path.name for path in made.folder.iterdir()) == ["ca.pem", "cert.pem", "key.pem", "roster.json"]
    assert made.folder.stat().st_mode & 0o777 == 0o700


def test_no_folder_or_an_empty_one_is_no_site(tmp_path: Path) -> None:
    assert Identity.load(tmp_path / "none") is None
    assert Identity.load(tmp_path) is None


def test_a_link_to_a_disk_that_is_not_mounted_is_an_error_and_never_no_site(tmp_path: Path) -> None:
    (tmp_path / "identity").symlink_to(tmp_path / "encrypted" / "identity")
    with pytest.raises(EdgeError, match="leads to "):
        Identity.load(tmp_path / "identity")


@pytest.mark.parametrize("name", ["ca.pem", "cert.pem", "key.pem", "roster.json"])
def test_a_folder_with_something_missing_is_an_error_and_never_no_site(tmp_path: Path, name: str) -> None:
    folder = Site(tmp_path).member("press-1").folder
    (folder / name).unlink()
    with pytest.raises(EdgeError, match=name):
        Identity.load(folder)
    (folder / name).write_bytes(b"\xff\x00")
    (folder / name).chmod(0o600)
    with pytest.raises(EdgeError, match=name):
        Identity.load(folder)


def test_a_key_that_others_could_read_is_refused(tmp_path: Path) -> None:
    identity = Site(tmp_path).member("press-1")
    identity.key_file.chmod(0o640)
    with pytest.raises(EdgeError) as caught:
        Identity.load(identity.folder)
    assert caught.value.hint == f"chmod 600 {identity.key_file}"


def copied(name: str, source: Identity, target: Identity) -> None:
    shutil.copy(source.folder / name, target.folder / name)


@pytest.mark.parametrize(
    ("names", "told"),
    [
        (["cert.pem"], "cert.pem: .*does not belong to the key"),
        (["key.pem"], "cert.pem: .*does not belong to the key"),
        (["ca.pem"], "cert.pem: .*of the site plant-1, but ca.pem is of plant-2"),
        (["roster.json"], "roster.json: .*signature"),
        (["cert.pem", "key.pem"], "cert.pem: .*of the site plant-2"),
        (["cert.pem", "key.pem", "ca.pem"], "roster.json: .*signature"),
    ],
)
def test_parts_of_two_members_do_not_make_one(tmp_path: Path, names: list[str], told: str) -> None:
    site = Site(tmp_path)
    press = site.member("press-1")
    other = site.member("press-2") if "belong" in told else Site(tmp_path, "plant-2").member("press-1")
    for name in names:
        copied(name, other, press)
    with pytest.raises(EdgeError, match=told) as caught:
        Identity.load(press.folder)
    assert caught.value.hint


def test_a_certificate_by_another_authority_of_the_same_name_is_refused(tmp_path: Path) -> None:
    press = Site(tmp_path).member("press-1")
    false = Authority.create(tmp_path / "false", "plant-1", PASSPHRASE, Still())
    press.cert_file.write_bytes(false.issue(certificates.request(press.key, "press-1"), "press-1", "gateway"))
    with pytest.raises(EdgeError, match=r"cert.pem: .*not signed by this site's authority"):
        Identity.load(press.folder)


def test_joining_keeps_its_key_until_it_is_done(tmp_path: Path) -> None:
    """The request is carried about on a stick; the gateway is switched off meanwhile."""
    site, folder = Site(tmp_path), tmp_path / "data/identity"
    key = Identity.begin(folder)
    assert Identity.load(folder) is None, "not joined yet"
    again = Identity.begin(folder)
    assert again.public == key.public
    certificate = site.authority.issue(certificates.request(again, "press-1"), "press-1", "gateway")
    parts = {"ca": site.authority.ca, "certificate": certificate, "roster": site.authority.roster()}
    with pytest.raises(EdgeError, match=r"roster.json"):
        Identity.finish(folder, **{**parts, "roster": Site(tmp_path, "plant-2").authority.roster()})
    assert Identity.load(folder) is None
    assert Identity.finish(folder, **parts).name == "press-1"
    assert [path.name for path in folder.parent.iterdir()] == ["identity"]
    for again in (lambda: Identity.begin(folder), lambda: Identity.finish(folder, **parts)):
        with pytest.raises(EdgeError) as caught:
            again()
        assert caught.value.hint.endswith(f"mv {folder} {folder}.old")


def test_a_newer_roster_is_taken_and_kept(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press = site.member("press-1")
    first = press.signed_roster
    site.member("press-2")
    newer = site.authority.roster()
    assert press.take_roster(newer)
    assert not press.take_roster(newer), "the same again"
    assert not press.take_roster(first), "an old one that somebody has kept"
    for identity in (press, Identity.load(press.folder)):
        assert identity is not None
        assert identity.signed_roster == newer
        assert identity.roster.named("press-2") is not None


def test_a_roster_that_our_authority_did_not_sign_is_refused(tmp_path: Path) -> None:
    press, alice = (site := Site(tmp_path)).member("press-1"), site.member("alice", "engineer")
    forged = msgspec.structs.replace(alice.roster, revision=1000)
    for payload in (
        alice.sign(msgspec.json.encode(forged), "roster"),
        Site(tmp_path, "plant-2").authority.roster(),
        Authority.create(tmp_path / "false", "plant-1", PASSPHRASE, Still()).roster(),
        b"{}",
    ):
        with pytest.raises(Forged):
            press.take_roster(payload)
    assert press.roster.revision < 1000


def test_two_rosters_of_one_revision_are_a_forgery_or_a_restored_authority(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press = site.member("press-1")
    shutil.copytree(site.authority.folder, tmp_path / "backup")
    site.authority.issue(site.csr(), "press-2", "gateway")
    assert press.take_roster(site.authority.roster())
    restored = Authority.open(tmp_path / "backup", PASSPHRASE, Still())
    restored.issue(site.csr(), "press-3", "gateway")
    with pytest.raises(Forged, match="two rosters with revision 3"):
        press.take_roster(restored.roster())


def test_revocation_reaches_the_one_that_is_revoked(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press = site.member("press-1")
    site.authority.revoke("press-1", "stolen")
    assert press.take_roster(site.authority.roster())
    assert press.is_revoked
    again = Identity.load(press.folder)
    assert again is not None
    assert again.is_revoked


def test_a_renewed_certificate_is_taken_if_it_is_ours_and_runs_longer(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, other = site.member("press-1"), site.member("press-2")
    first = press.cert_file.read_bytes()
    site.authority._clock = Later()
    renewed = site.authority.renew("press-1")
    assert press.take_certificate(renewed)
    assert not press.take_certificate(renewed)
    assert not press.take_certificate(first)
    loaded = Identity.load(press.folder)
    assert loaded is not None
    assert loaded.subject == press.subject == certificates.parse(renewed)
    other_name = certificates.issue(site.authority._key, site.authority.ca, press.key.public, ("press-3", "gateway"), 2**32)
    other_role = certificates.issue(site.authority._key, site.authority.ca, press.key.public, ("press-1", "viewer"), 2**32)
    for foreign in (
        other_name,
        other_role,
        site.authority.renew("press-2"),
        Site(tmp_path, "plant-2").member("press-1").cert_file.read_bytes(),
        b"",
    ):
        with pytest.raises(EdgeError):
            press.take_certificate(foreign)
    assert other.take_certificate(site.authority.renew("press-2")) is True


def test_nothing_is_written_into_a_folder_that_is_another_members_by_now(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press = site.member("press-1")
    first = press.roster
    site.authority._clock = Later()
    renewed, newer = site.authority.renew("press-1"), site.authority.roster()
    press.folder.rename(tmp_path / "old")
    with pytest.raises(EdgeError, match=r"ca.pem: No such file"):
        press.take_roster(newer)
    for elsewhere, told in (("a", "belongs to the site plant-1 by now .another one"), ("b", "plant-2 by now, and .* to plant-1")):
        other = Site(tmp_path / elsewhere, "plant-1" if elsewhere == "a" else "plant-2").member("press-1")
        other.folder.rename(press.folder)
        for write in (lambda: press.take_roster(newer), lambda: press.take_certificate(renewed), press.keep_roster):
            with pytest.raises(Moved, match=told) as caught:
                write()
            assert "restart" in caught.value.hint
        found = Identity.load(press.folder)
        assert found is not None
        assert (found.subject, found.roster) == (other.subject, other.roster)
        press.folder.rename(tmp_path / elsewhere / "away")
    site.member("press-2").folder.rename(press.folder)
    with pytest.raises(Moved, match="another key than ours"):
        press.take_certificate(renewed)
    assert Identity.load(press.folder)
    assert press.roster is first
    press.folder.rename(tmp_path / "press-2")
    (tmp_path / "old").rename(press.folder)
    assert press.take_roster(newer)
    assert press.take_certificate(renewed)


# --- power cuts ------------------------------------------------------------------------------------------------------


def test_a_power_cut_while_joining_leaves_no_site_or_the_whole(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site, folder = Site(tmp_path), tmp_path / "data/identity"

    def look() -> None:
        identity = Identity.load(folder)
        assert identity is None or identity.name == "press-1"
        if identity is not None:
            shutil.rmtree(folder)

    key = Identity.begin(folder)
    certificate = site.authority.issue(certificates.request(key, "press-1"), "press-1", "gateway")
    assert every_cut(monkeypatch, lambda: join_with(folder, key, site, certificate), look) > 10


def join_with(folder: Path, key: PrivateKey, site: Site, certificate: bytes) -> None:
    Identity.begin(folder)
    key.save(folder.with_name("identity.joining") / "key.pem")
    Identity.finish(folder, ca=site.authority.ca, certificate=certificate, roster=site.authority.roster())


def test_a_power_cut_while_a_roster_is_taken_leaves_the_old_or_the_new(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path)
    press = site.member("press-1")
    old = press.roster.revision
    site.member("press-2")
    payload = site.authority.roster()
    seen: list[int] = []

    def look() -> None:
        loaded = Identity.load(press.folder)
        assert loaded is not None
        seen.append(loaded.roster.revision)
        assert press.roster.revision == old, "in memory never before it is on disk"

    assert every_cut(monkeypatch, lambda: press.take_roster(payload), look) >= 5
    assert set(seen) == {old, old + 1}
    assert seen == sorted(seen)


def test_a_file_is_on_disk_before_it_has_its_name(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    done: list[str] = []
    fsync, replace = os.fsync, Path.replace
    monkeypatch.setattr(files.os, "fsync", lambda descriptor: (done.append("synced"), fsync(descriptor))[1])
    monkeypatch.setattr(Path, "replace", lambda path, target: (done.append("named"), replace(path, target))[1])
    files.write(tmp_path / "a.pem", b"new", files.SECRET)
    assert done == ["synced", "named", "synced"]


def test_a_full_disk_is_told_and_changes_nothing(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    site = Site(tmp_path)
    press = site.member("press-1")
    site.member("press-2")
    before = press.roster
    (press.folder / ".roster.json.new").mkdir()  # what stands in the way of the write
    with pytest.raises(EdgeError, match="cannot be written"):
        press.take_roster(site.authority.roster())
    assert press.roster is before
    (press.folder / ".roster.json.new").rmdir()
    assert press.take_roster(site.authority.roster())


def test_a_left_over_file_of_a_power_cut_is_in_nobodys_way(tmp_path: Path) -> None:
    path = tmp_path / "a.pem"
    (tmp_path / ".a.pem.new").symlink_to(tmp_path / "victim")
    (tmp_path / "victim").write_bytes(b"precious")
    files.write(path, b"new")
    assert path.read_bytes() == b"new"
    assert (tmp_path / "victim").read_bytes() == b"precious"


def test_a_file_of_gigabytes_is_not_read(tmp_path: Path) -> None:
    with (tmp_path / "big").open("wb") as file:
        file.truncate(2**40)
    with pytest.raises(EdgeError, match="larger"):
        files.read(tmp_path / "big")


def test_envelopes_of_a_folder_that_was_loaded_again_hold(tmp_path: Path) -> None:
    site = Site(tmp_path)
    alice = Identity.load(site.member("alice", "engineer").folder)
    assert alice is not None
    assert envelope.open(alice.sign(b"{}", "desired"), "desired", alice.roster).by == "alice"


# --- a file that somebody else writes --------------------------------------------------------------------------------


def test_a_file_is_news_once_and_when_it_has_changed(tmp_path: Path) -> None:
    path = tmp_path / "roster.json"
    watched = files.Watched(path)
    assert watched.news() is None
    path.write_bytes(b"one")
    written = path.stat()
    assert [watched.news(), watched.news()] == [b"one", None]
    while path.stat().st_ctime_ns == written.st_ctime_ns:  # the file system's clock ticks every few milliseconds
        path.write_bytes(b"two")  # as long, and by its date as old
        os.utime(path, ns=(written.st_atime_ns, written.st_mtime_ns))
    assert [watched.news(), watched.news()] == [b"two", None]
    files.write(path, b"two")
    assert watched.news() == b"two"
    watched.forget()
    assert watched.news() == b"two"
    path.unlink()
    assert watched.news() is None
    path.mkdir()
    with pytest.raises(EdgeError, match=r"roster\.json: Is a directory"):
        watched.news()
