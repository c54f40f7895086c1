"""Keys: signatures, files that nobody else may read, agreement."""

from __future__ import annotations

import subprocess
import sys
from pathlib import Path

import pytest
from cryptography.hazmat.primitives.asymmetric.ec import SECP256R1, generate_private_key
from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

from edge_runtime.ports import EdgeError
from edge_runtime.trust.keys import Agreement, PrivateKey, fingerprint, verify

PURE = ["token", "desk", "roster", "envelope", "files", "keys", "certificates", "identity", "authority", "tls"]


def test_a_signature_holds_for_its_data_and_its_key_only() -> None:
    key, other = PrivateKey.generate(), PrivateKey.generate()
    signature = key.sign(b"open the valve")
    assert len(signature) == 64
    assert verify(key.public, signature, b"open the valve")
    assert not verify(key.public, signature, b"shut the valve")
    assert not verify(other.public, signature, b"open the valve")
    assert not verify(key.public, signature[:-1], b"open the valve")
    assert not verify(key.public[:-1], signature, b"open the valve")
    assert not verify(b"", b"", b"")


def test_a_fingerprint_is_the_head_of_the_sha256_of_the_raw_key() -> None:
    assert fingerprint(bytes(32)) == "66687aadf862bd776c8fc18b8e9f8e20"
    key = PrivateKey.generate()
    assert key.fingerprint == fingerprint(key.public)
    assert repr(key) == f"PrivateKey({key.fingerprint})"


@pytest.mark.parametrize("passphrase", [None, "correct horse", "Schlüssel für die Presse"])
def test_a_key_comes_back_from_its_file(tmp_path: Path, passphrase: str | None) -> None:
    key = PrivateKey.generate()
    key.save(tmp_path / "key.pem", passphrase)
    assert (tmp_path / "key.pem").stat().st_mode & 0o777 == 0o600
    assert PrivateKey.load(tmp_path / "key.pem", passphrase).public == key.public
    assert [path.name for path in tmp_path.iterdir()] == ["key.pem"]


@pytest.mark.parametrize("mode", [0o640, 0o604, 0o644, 0o660, 0o610])
def test_a_key_that_others_could_read_is_refused(tmp_path: Path, mode: int) -> None:
    path = tmp_path / "key.pem"
    PrivateKey.generate().save(path)
    path.chmod(mode)
    with pytest.raises(EdgeError) as caught:
        PrivateKey.load(path)
    assert caught.value.hint == f"chmod 600 {path}"


def test_a_wrong_passphrase_is_told_from_a_broken_file(tmp_path: Path) -> None:
    path = tmp_path / "key.pem"
    PrivateKey.generate().save(path, "correct horse")
    for passphrase, cause in (("wrong horse", "wrong passphrase"), (None, "is encrypted")):
        with pytest.raises(EdgeError, match=cause):
            PrivateKey.load(path, passphrase)
    PrivateKey.generate().save(path)
    with pytest.raises(EdgeError, match="is not encrypted"):
        PrivateKey.load(path, "correct horse")
    path.write_bytes(b"-----BEGIN PRIVATE KEY-----\nAAAA\n-----END PRIVATE KEY-----\n")
    with pytest.raises(EdgeError, match="not a private key"):
        PrivateKey.load(path)
    with pytest.raises(EdgeError, match="No such file"):
        PrivateKey.load(tmp_path / "none.pem")
    path.write_bytes(generate_private_key(SECP256R1()).private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption()))
    with pytest.raises(EdgeError, match="not an Ed25519 key"):
        PrivateKey.load(path)


def test_a_short_passphrase_is_refused(tmp_path: Path) -> None:
    with pytest.raises(EdgeError, match="too short"):
        PrivateKey.generate().save(tmp_path / "key.pem", "1234567")
    assert not (tmp_path / "key.pem").exists()


def test_what_is_encrypted_does_not_stand_in_the_file(tmp_path: Path) -> None:
    key = PrivateKey.generate()
    key.save(tmp_path / "one.pem", "correct horse")
    key.save(tmp_path / "two.pem", "correct horse")
    one, two = (tmp_path / "one.pem").read_text(), (tmp_path / "two.pem").read_text()
    assert one.startswith("-----BEGIN ENCRYPTED PRIVATE KEY-----\n")
    assert one != two, "each file has a salt of its own"


def test_two_ends_agree_on_a_key_that_depends_on_the_subject() -> None:
    ours, theirs, stranger = Agreement(), Agreement(), Agreement()
    assert len(ours.public) == 32
    assert ours.key_with(theirs.public, b"tasks") == theirs.key_with(ours.public, b"tasks")
    assert ours.key_with(theirs.public, b"tasks") != ours.key_with(theirs.public, b"replies")
    assert ours.key_with(theirs.public, b"tasks") != stranger.key_with(theirs.public, b"tasks")


@pytest.mark.parametrize("public", [b"", bytes(31), bytes(32), b"\x01" + bytes(31), bytes(33)])
def test_a_half_that_is_no_key_is_refused(public: bytes) -> None:
    """Of zeros or one: whatever ours is, all the world knows what comes out."""
    with pytest.raises(EdgeError, match="no key"):
        Agreement().key_with(public, b"tasks")


def test_a_gateway_without_a_site_does_not_pay_for_cryptography() -> None:
    code = "import sys\n" + "".join(f"import edge_runtime.trust.{name}\n" for name in PURE)
    code += "from pathlib import Path\nassert edge_runtime.trust.identity.Identity.load(Path('/nowhere/at/all')) is None\n"
    code += "print('cryptography' in sys.modules)"
    assert subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout == "False\n"


def test_without_the_package_it_says_what_to_install() -> None:
    code = "import sys\nsys.modules['cryptography'] = None\nfrom edge_runtime.trust.keys import *\n"
    code += "try:\n PrivateKey.generate()\nexcept EdgeError as error:\n print(error)"
    told = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=True).stdout
    assert "pip install cryptography" in told
