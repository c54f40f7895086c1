"""Values that are recognised wherever they come out: as text, in JSON, packed by gzip, and as the raw bytes of a number."""

from __future__ import annotations

import shutil
import struct
import subprocess
import zlib
from collections.abc import Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path

import pytest
from brokers import Broker
from gateways import die_with_parent, until

CLASSES = ("gateway", "site", "cloud")
NUMBERS = {"gateway": 7341.4415926, "site": 8452.5526037, "cloud": 9563.6637148}
ROWS = 40
CAUGHT_BYTES_MAX = 64 * 2**20


def number(privacy: str, row: int) -> float:
    """Each has the canary's digits in front."""
    return NUMBERS[privacy] + row * 1e-9


def word(privacy: str) -> str:
    return f"canary-{privacy}-tern"


def spoiled(privacy: str) -> str:
    """Stands where a number should: it is told as the reason why there is none."""
    return f"spoiled-{privacy}-gull"


def needles(privacy: str) -> list[bytes]:
    """As whatever a canary may leave."""
    value = NUMBERS[privacy]
    raw = [struct.pack(kind, number(privacy, row)) for kind in ("<d", ">d") for row in range(ROWS)]
    raw += [struct.pack(kind, value) for kind in ("<f", ">f")]
    return [str(value)[:9].encode(), word(privacy).encode(), spoiled(privacy).encode(), *raw]


def found(privacy: str, blobs: Sequence[bytes]) -> list[bytes]:
    """The needles that are in any of them, or in what they unpack to."""
    whole = b"\0".join([*blobs, *(plain for blob in blobs for plain in unpacked(blob))])
    return [needle for needle in needles(privacy) if needle in whole]


def unpacked(blob: bytes) -> Iterator[bytes]:
    """Every gzip member that begins anywhere in it."""
    at = blob.find(b"\x1f\x8b\x08")
    while at >= 0:
        unzip = zlib.decompressobj(wbits=31)
        try:
            yield unzip.decompress(blob[at:], CAUGHT_BYTES_MAX)
        except zlib.error:
            yield b""
        at = blob.find(b"\x1f\x8b\x08", at + 1)


# --- who listens -----------------------------------------------------------------------------------------------------


@contextmanager
def everything(broker: Broker, folder: Path) -> Iterator[Path]:
    """A file with the topic and the payload (as hex) of all that the broker is told."""
    program = shutil.which("mosquitto_sub")
    if program is None:
        pytest.skip("MISSING SYSTEM PACKAGE: mosquitto_sub (apt-get install mosquitto-clients)")
    file = folder / f"caught-{broker.port}"
    command = ["stdbuf", "-oL", program, "-p", str(broker.port), "-t", "#", "-q", "1", "-F", "%x %t", "-d"]
    with file.open("wb") as out:
        process = subprocess.Popen(command, stdout=out, stderr=out, preexec_fn=die_with_parent)
    try:
        until(lambda: b"SUBACK" in file.read_bytes(), "the listener's subscription")
        yield file
    finally:
        process.kill()
        process.wait()


def payloads(file: Path) -> list[bytes]:
    blobs = []
    for line in file.read_bytes().splitlines():
        packed, _, topic = line.partition(b" ")
        try:
            blobs += [bytes.fromhex(packed.decode()), topic]
        except ValueError:
            continue  # what the listener says of itself
    return blobs


def files(folder: Path, stem: str) -> list[bytes]:
    """With its WAL."""
    return [path.read_bytes() for path in folder.glob(f"{stem}*")]


def end(broker: Broker, traffic: Path) -> None:
    """Returns when the listener has all that was published before."""
    subprocess.run(["mosquitto_pub", "-p", str(broker.port), "-t", "the/end", "-m", "x", "-q", "1"], check=True)
    until(lambda: b"78 the/end" in traffic.read_bytes(), "the last message")
