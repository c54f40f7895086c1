"""Ed25519 signatures and X25519 key agreement. One of the two files that touch `cryptography` (certificates.py is the other):
it is imported when the first key is used, so that a gateway without a site does not pay for it.
"""

from __future__ import annotations

import base64
import hashlib
from pathlib import Path
from typing import TYPE_CHECKING, Self

from edge_runtime.ports import EdgeError
from edge_runtime.trust import files

if TYPE_CHECKING:
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

PUBLIC_BYTES = 32
SIGNATURE_BYTES = 64
PASSPHRASE_CHARACTERS_MIN = 8

_SCRYPT_N, _SCRYPT_R, _SCRYPT_P = 2**14, 8, 5
"""16 MiB and 0.2 s for each guess of a passphrase; OpenSSL refuses to read a file that takes more than 32 MiB."""
_PBES2 = bytes.fromhex("06092a864886f70d01050d")
_SCRYPT = bytes.fromhex("06092b06010401da47040b")
_AES256_CBC = bytes.fromhex("060960864801650304012a")


def require() -> None:
    """Raises EdgeError when the library that makes signatures is not installed."""
    try:
        import cryptography  # noqa: F401
    except ModuleNotFoundError:
        raise EdgeError("a site needs the package cryptography", "pip install cryptography") from None


def fingerprint(public: bytes) -> str:
    """Names a key: the first 32 hex digits of the SHA-256 of its 32 raw bytes."""
    return hashlib.sha256(public).hexdigest()[:32]


def verify(public: bytes, signature: bytes, data: bytes) -> bool:
    """Whether this signature of this data was made with the private half of `public` (32 raw bytes)."""
    require()
    from cryptography.exceptions import InvalidSignature
    from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PublicKey

    if len(public) != PUBLIC_BYTES:
        return False
    try:
        Ed25519PublicKey.from_public_bytes(public).verify(signature, data)
    except (InvalidSignature, ValueError):
        return False
    return True


class PrivateKey:
    """An Ed25519 key. It is shown by its fingerprint only."""

    def __init__(self, native: Ed25519PrivateKey) -> None:
        self.native = native
        """For certificates.py."""
        self.public = native.public_key().public_bytes_raw()
        """32 raw bytes."""

    @classmethod
    def generate(cls) -> Self:
        """A new one, from the operating system's randomness."""
        require()
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey

        return cls(Ed25519PrivateKey.generate())

    @classmethod
    def load(cls, path: Path, passphrase: str | None = None) -> Self:
        """From PEM (PKCS#8). Raises EdgeError: missing, readable by others, damaged, a wrong passphrase, another kind of key."""
        require()
        from cryptography.exceptions import UnsupportedAlgorithm
        from cryptography.hazmat.primitives.asymmetric.ed25519 import Ed25519PrivateKey
        from cryptography.hazmat.primitives.serialization import load_pem_private_key

        text = files.read_secret(path)
        try:
            native = load_pem_private_key(text, None if passphrase is None else passphrase.encode())
        except TypeError:
            cause = "is encrypted" if passphrase is None else "is not encrypted, but a passphrase was given"
            raise EdgeError(f"{path}: the key {cause}", "give the passphrase exactly if it has one") from None
        except (ValueError, UnsupportedAlgorithm):
            if passphrase is not None and b"ENCRYPTED" in text:
                raise EdgeError(f"{path}: wrong passphrase, or a damaged file", "try again; capitals count") from None
            raise EdgeError(f"{path}: not a private key in PEM", "restore it from a backup, or join the site again") from None
        if not isinstance(native, Ed25519PrivateKey):
            raise EdgeError(
                f"{path}: not an Ed25519 key", "keys of a site are made by `edge-runtime site` and `edge-runtime join`"
            )
        return cls(native)

    def save(self, path: Path, passphrase: str | None = None) -> None:
        """As PEM (PKCS#8), mode 0600, whole or not at all; encrypted when there is a passphrase. Raises EdgeError."""
        from cryptography.hazmat.primitives.serialization import Encoding, NoEncryption, PrivateFormat

        if passphrase is None:
            pem = self.native.private_bytes(Encoding.PEM, PrivateFormat.PKCS8, NoEncryption())
        elif len(passphrase) < PASSPHRASE_CHARACTERS_MIN:
            raise EdgeError("the passphrase is too short", f"at least {PASSPHRASE_CHARACTERS_MIN} characters")
        else:
            plain = self.native.private_bytes(Encoding.DER, PrivateFormat.PKCS8, NoEncryption())
            pem = _encrypted(plain, passphrase.encode())
        files.write(path, pem, files.SECRET)

    @property
    def fingerprint(self) -> str:
        return fingerprint(self.public)

    def sign(self, data: bytes) -> bytes:
        """64 bytes."""
        return self.native.sign(data)

    def __repr__(self) -> str:
        return f"PrivateKey({self.fingerprint})"


class Agreement:
    """One half of an X25519 key agreement; made for one conversation and forgotten with it."""

    def __init__(self) -> None:
        require()
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PrivateKey

        self._native = X25519PrivateKey.generate()
        self.public = self._native.public_key().public_bytes_raw()
        """32 raw bytes."""

    def key_with(self, their_public: bytes, info: bytes) -> bytes:
        """32 bytes that only the two of us can compute; another `info`, another key. Raises EdgeError when theirs is no key."""
        from cryptography.hazmat.primitives.asymmetric.x25519 import X25519PublicKey
        from cryptography.hazmat.primitives.hashes import SHA256
        from cryptography.hazmat.primitives.kdf.hkdf import HKDF

        try:
            shared = self._native.exchange(X25519PublicKey.from_public_bytes(their_public))
        except ValueError:
            raise EdgeError("the other side's half of the key agreement is no key", "it may be a forgery") from None
        salt = b"".join(sorted((self.public, their_public)))
        return HKDF(SHA256(), length=32, salt=salt, info=b"edge-runtime/1\0" + info).derive(shared)


def _encrypted(plain: bytes, passphrase: bytes) -> bytes:
    """PKCS#8 (DER) -> the same under a passphrase, PEM: PBES2 (RFC 8018) with scrypt (RFC 7914) and AES-256-CBC, as
    `openssl pkcs8 -scrypt` writes and reads it. The library itself writes PBKDF2 with 2,048 rounds only: a stolen laptop
    would give away the site."""
    from cryptography.hazmat.primitives.ciphers import Cipher, modes
    from cryptography.hazmat.primitives.ciphers.aead import AESGCM
    from cryptography.hazmat.primitives.ciphers.algorithms import AES256

    salt, start = AESGCM.generate_key(128), AESGCM.generate_key(128)
    secret = hashlib.scrypt(passphrase, salt=salt, n=_SCRYPT_N, r=_SCRYPT_R, p=_SCRYPT_P, maxmem=2**26, dklen=32)
    padding = 16 - len(plain) % 16
    encryptor = Cipher(AES256(secret), modes.CBC(start)).encryptor()
    hidden = encryptor.update(plain + bytes([padding]) * padding) + encryptor.finalize()
    derivation = _sequence(_SCRYPT, _sequence(_octets(salt), *map(_integer, (_SCRYPT_N, _SCRYPT_R, _SCRYPT_P))))
    how = _sequence(_PBES2, _sequence(derivation, _sequence(_AES256_CBC, _octets(start))))
    text = base64.encodebytes(_sequence(how, _octets(hidden)))
    return b"-----BEGIN ENCRYPTED PRIVATE KEY-----\n" + text + b"-----END ENCRYPTED PRIVATE KEY-----\n"


def _sequence(*parts: bytes) -> bytes:
    return _der(0x30, b"".join(parts))


def _octets(value: bytes) -> bytes:
    return _der(0x04, value)


def _integer(value: int) -> bytes:
    return _der(0x02, value.to_bytes(value.bit_length() // 8 + 1, "big"))


def _der(tag: int, value: bytes) -> bytes:
    assert len(value) < 256
    return bytes([tag, *([0x81] if len(value) >= 128 else []), len(value)]) + value
