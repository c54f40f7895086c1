"""Keys, requests, certificates and lists of revocations, read and written by the `openssl` command as well."""

from __future__ import annotations

import base64
import json
import shutil
import subprocess
from pathlib import Path

import pytest
from trusted import PASSPHRASE, Site, Still

from edge_runtime.ports import EdgeError
from edge_runtime.trust import certificates
from edge_runtime.trust.authority import Authority
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.keys import PrivateKey

pytestmark = pytest.mark.skipif(
    shutil.which("openssl") is None, reason="MISSING SYSTEM PACKAGE: openssl (apt-get install openssl)"
)


def openssl(*words: str | Path, good: bool = True) -> str:
    """What it says, on both outputs."""
    done = subprocess.run(["openssl", *map(str, words)], capture_output=True, text=True, timeout=30, stdin=subprocess.DEVNULL)
    said = done.stdout + done.stderr
    assert (done.returncode == 0) is good, said
    return said


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


@pytest.fixture
def press(site: Site) -> Identity:
    return site.member("press-1")


def test_it_verifies_our_chain_and_what_each_may_be(site: Site, press: Identity) -> None:
    alice = site.member("alice", "engineer")
    for member in (press, alice):
        openssl("verify", "-x509_strict", "-CAfile", member.ca_file, "-purpose", "sslclient", member.cert_file)
    openssl("verify", "-x509_strict", "-CAfile", press.ca_file, "-purpose", "sslserver", press.cert_file)
    said = openssl("verify", "-CAfile", press.ca_file, "-purpose", "sslserver", alice.cert_file, good=False)
    assert "purpose" in said
    text = openssl("x509", "-noout", "-text", "-in", alice.cert_file)
    assert "O = plant-1, OU = engineer, CN = person:alice" in text
    assert "ED25519" in text
    assert f"{alice.subject.serial.zfill(40)}" in openssl("x509", "-noout", "-serial", "-in", alice.cert_file).lower()


def test_a_member_cannot_make_members(site: Site, press: Identity, tmp_path: Path) -> None:
    """A certificate that is signed with a member's key is in no chain."""
    false = tmp_path / "false.pem"
    false.write_bytes(
        certificates.issue(press.key, press.cert_file.read_bytes(), PrivateKey.generate().public, ("x", "gateway"), 10**9)
    )
    openssl("verify", "-CAfile", press.ca_file, "-untrusted", press.cert_file, false, good=False)


@pytest.mark.parametrize("at", ["0", "4102444800", "253402300000"])
def test_no_clock_makes_it_refuse_a_member(press: Identity, at: str) -> None:
    """1970, 2100 and 9999."""
    openssl("verify", "-attime", at, "-CAfile", press.ca_file, press.cert_file)


def test_it_reads_our_request(press: Identity, tmp_path: Path) -> None:
    (tmp_path / "a.csr").write_bytes(certificates.request(press.key, "press-1"))
    said = openssl("req", "-verify", "-noout", "-subject", "-in", tmp_path / "a.csr")
    assert "verify OK" in said
    assert "CN = press-1" in said


def test_we_take_a_request_of_its_making(site: Site, tmp_path: Path) -> None:
    key, csr = tmp_path / "theirs.pem", tmp_path / "theirs.csr"
    openssl("genpkey", "-algorithm", "ed25519", "-out", key)
    openssl("req", "-new", "-key", key, "-subj", "/CN=whatever", "-out", csr)
    pem = site.authority.issue(csr.read_bytes(), "press-7", "gateway")
    key.chmod(0o600)
    assert certificates.parse(pem).key == PrivateKey.load(key).public.hex()
    openssl("genpkey", "-algorithm", "EC", "-pkeyopt", "ec_paramgen_curve:P-256", "-out", key)
    openssl("req", "-new", "-key", key, "-subj", "/CN=whatever", "-out", csr)
    with pytest.raises(EdgeError, match="not an Ed25519 key"):
        site.authority.issue(csr.read_bytes(), "press-8", "gateway")


def test_it_reads_our_list_of_revocations(site: Site, press: Identity, tmp_path: Path) -> None:
    other = site.member("press-2")
    crl = tmp_path / "crl.pem"
    crl.write_bytes(site.authority.crl())
    check = ("verify", "-crl_check", "-x509_strict", "-CAfile", press.ca_file, "-CRLfile", crl)
    assert "verify OK" in openssl("crl", "-noout", "-CAfile", press.ca_file, "-in", crl)
    openssl(*check, press.cert_file)
    site.authority.revoke("press-1", "stolen")
    crl.write_bytes(site.authority.crl())
    text = openssl("crl", "-noout", "-text", "-CAfile", press.ca_file, "-in", crl).lower()
    assert press.subject.serial in text
    assert other.subject.serial not in text
    for at in ("0", "4102444800"):
        assert "revoked" in openssl(*check, "-attime", at, press.cert_file, good=False)
        openssl(*check, "-attime", at, other.cert_file)
    openssl("crl", "-noout", "-CAfile", Site(tmp_path, "b").member("c").ca_file, "-in", crl, good=False)


def test_it_opens_our_key_with_the_passphrase_only(site: Site, tmp_path: Path) -> None:
    """Whoever has the passphrase has the site, also without this program."""
    key, public = site.authority.folder / "ca-key.pem", tmp_path / "public.pem"
    openssl("pkey", "-in", key, "-passin", f"pass:{PASSPHRASE}", "-pubout", "-out", public)
    assert base64.b64decode(public.read_text().splitlines()[1])[-32:] == site.authority.public
    openssl("pkey", "-in", key, "-passin", "pass:another", "-noout", good=False)
    assert "scrypt" in openssl("asn1parse", "-in", key)


@pytest.mark.parametrize("how", [["-scrypt"], ["-v2", "aes-256-cbc"], []])
def test_we_open_a_key_that_it_has_encrypted(tmp_path: Path, how: list[str]) -> None:
    plain, hidden = tmp_path / "plain.pem", tmp_path / "hidden.pem"
    PrivateKey.generate().save(plain)
    openssl("pkcs8", "-topk8", *how, "-in", plain, "-out", hidden, "-passout", "pass:correct horse")
    hidden.chmod(0o600)
    assert PrivateKey.load(hidden, "correct horse").public == PrivateKey.load(plain).public


def test_it_verifies_our_signatures(press: Identity, tmp_path: Path) -> None:
    """Of an envelope, by nothing but what the wire format says."""
    envelope = json.loads(press.sign(b'{"v":1}', "desired"))
    (tmp_path / "signature").write_bytes(base64.b64decode(envelope["signature"]))
    (tmp_path / "data").write_bytes(b"edge-runtime/1\0desired\0" + envelope["document"].encode())
    verify = ("pkeyutl", "-verify", "-rawin", "-certin", "-inkey", press.cert_file, "-sigfile", tmp_path / "signature", "-in")
    assert "Verified Successfully" in openssl(*verify, tmp_path / "data")
    (tmp_path / "data").write_bytes(b"edge-runtime/1\0command\0" + envelope["document"].encode())
    openssl(*verify, tmp_path / "data", good=False)


def test_a_folder_whose_key_was_changed_to_another_passphrase_by_it_opens(site: Site) -> None:
    """The recipe for a new passphrase, without a command of our own."""
    key = site.authority.folder / "ca-key.pem"
    fresh = key.with_name("new.pem")
    pairs = ["-passin", f"pass:{PASSPHRASE}", "-passout", "pass:another horse"]
    openssl("pkey", "-in", key, "-aes256", "-out", fresh, *pairs)
    fresh.chmod(0o600)
    fresh.replace(key)
    assert Authority.open(site.authority.folder, "another horse", Still()).public == site.authority.public
