"""Passwords of people, as a mosquitto password file has them: $7$ITERATIONS$SALT$HASH (PBKDF2-HMAC-SHA512; salt and hash in
base64). Pure: the salt is given. The password itself is nowhere stored.

All members of the site can read the roster, and so try passwords against a hash in it, for as long as they like: a password that
somebody has thought of may be found so, one that was made by chance never.
"""

from __future__ import annotations

import hashlib
import re
from base64 import b64decode, b64encode

from edge_runtime.ports import EdgeError

ITERATIONS = 10_000
"""8 ms on a PC; on a small board, not measured, several times that. The broker has one thread: it stands still so long for each
password that it is told, right or wrong, and again for each such client that is connected when a new roster comes. With ten
times as many, twelve wrong ones a second would stop a site on a PC; what that would gain against a guess, one more random
character gains, too."""

ITERATIONS_MIN, ITERATIONS_MAX = 1_000, 50_000
SALT_BYTES = 12
"""What every mosquitto 2.0 takes."""
CHARACTERS_MIN, BYTES_MAX = 12, 256
GENERATED_BYTES = 15
"""120 bits: 24 characters, which can be typed, and stand in a URL as they are."""
_ALPHABET = "abcdefghijkmnpqrstuvwxyz23456789"

PATTERN = r"^\$7\$[1-9][0-9]{3,4}\$[A-Za-z0-9+/]{16}\$[A-Za-z0-9+/]{86}==\Z"
"""Of a hash."""


def hashed(password: str, salt: bytes, iterations: int = ITERATIONS) -> str:
    """`salt`: SALT_BYTES by chance, new for each. Raises EdgeError: no password for anybody."""
    check(password)
    if len(salt) != SALT_BYTES:
        raise ValueError(f"a salt has {SALT_BYTES} bytes, not {len(salt)}")
    made = hashlib.pbkdf2_hmac("sha512", password.encode(), salt, iterations)
    return f"$7${iterations}${b64encode(salt).decode()}${b64encode(made).decode()}"


def matches(password: str, kept: str) -> bool:
    """Whether this hash is that of the password."""
    _, _, iterations, salt, made = kept.split("$")
    return hashlib.pbkdf2_hmac("sha512", password.encode(), b64decode(salt), int(iterations)) == b64decode(made)


def wrong(kept: str) -> str:
    """What is wrong with a hash that somebody has signed; "": nothing."""
    if not re.search(PATTERN, kept):
        return "is no hash of a password"
    iterations = int(kept.split("$")[2])
    if not ITERATIONS_MIN <= iterations <= ITERATIONS_MAX:
        return f"takes {iterations} rounds: {ITERATIONS_MIN} to {ITERATIONS_MAX} are taken"
    return ""


def check(password: str) -> None:
    """Raises EdgeError, which does not show it."""
    if len(password) < CHARACTERS_MIN or len(password.encode()) > BYTES_MAX:
        cause = f"a password has {CHARACTERS_MIN} characters or more, and {BYTES_MAX} bytes at most"
        raise EdgeError(cause, "--generate makes one that nobody guesses")
    if not password.isprintable():
        raise EdgeError("the password has characters that cannot be typed everywhere", "--generate makes one without")


def generated(chance: bytes) -> str:
    """A password of GENERATED_BYTES by chance: letters and digits that nobody confuses."""
    number = int.from_bytes(chance)
    return "".join(_ALPHABET[(number >> 5 * at) & 31] for at in range(len(chance) * 8 // 5))
