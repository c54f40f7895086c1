"""A bundle for who helps: what a gateway is, how it is, and how it came to that, in one file that may leave the plant (pure).

    bundle.pack(bundle.parts(finding, secrets), mtime_s)

Each part is looked up by itself: what cannot be read is told in its place, and the others are there all the same. No part holds a
point's value or a record's body; over all of them goes `scrub`, with every secret that this machine knows of.
"""

from __future__ import annotations

import gzip
import io
import json
import tarfile
from collections.abc import Callable, Iterable, Mapping, Sequence
from typing import Any

import msgspec

from edge_runtime.control.redaction import HIDDEN, scrub
from edge_runtime.outbox.database import DiskError
from edge_runtime.ports import EdgeError
from edge_runtime.saying import told

FOLDER = "edge-runtime-support"
BUNDLE_BYTES_MAX = 5 * 2**20
"""Of the file."""
PART_BYTES_MAX = 2**20
CONTENT_BYTES_MAX = BUNDLE_BYTES_MAX - 2**18
"""Of all parts, not packed: then the file is smaller, whatever they hold."""

MANIFEST = "manifest.json"

UNREADABLE = (
    EdgeError,
    DiskError,
    OSError,
    msgspec.MsgspecError,
    ValueError,
    TypeError,
    LookupError,
    AttributeError,
    RecursionError,
)
"""What looking at something broken may raise: it is told in the part's place."""

Look = Callable[[], Any]
"""Returns a text, lines of a log, or what JSON can say; None: there is nothing to tell."""


class Part(msgspec.Struct, frozen=True, kw_only=True):
    """A file of the bundle. `missing`: why there is none of it; `cut`: bytes that were left out."""

    name: str
    content: bytes = b""
    missing: str = ""
    cut: int = 0


def parts(looks: Mapping[str, Look], secrets: Sequence[str]) -> list[Part]:
    """In the order of `looks`: where there is not room for all, the last ones are cut."""
    hidden = every_spelling(secrets)
    found, room = list[Part](), CONTENT_BYTES_MAX
    for name, look in looks.items():
        part = _part(name, look, hidden, min(room, PART_BYTES_MAX))
        room -= len(part.content)
        found.append(part)
    return found


def every_spelling(secrets: Iterable[str]) -> tuple[str, ...]:
    """As they are, and as they stand in JSON or in a URL; the longest first."""
    from urllib.parse import quote

    spelled = dict.fromkeys(
        text
        for secret in secrets
        for text in (secret, json.dumps(secret)[1:-1], json.dumps(secret, ensure_ascii=False)[1:-1], quote(secret, safe=""))
    )
    return tuple(sorted(spelled, key=lambda text: (-len(text), text)))


def pack(found: Sequence[Part], about: Mapping[str, Any], mtime_s: int) -> bytes:
    """A .tar.gz of them and of what is in it."""
    listed = {**about, "parts": listing(found)}
    files = [(MANIFEST, _json(listed)), *((part.name, part.content) for part in found if not part.missing)]
    packed = io.BytesIO()
    with tarfile.open(fileobj=packed, mode="w", format=tarfile.GNU_FORMAT) as archive:
        for name, content in files:
            member = tarfile.TarInfo(f"{FOLDER}/{name}")
            member.size, member.mtime, member.mode = len(content), max(0, mtime_s), 0o600
            archive.addfile(member, io.BytesIO(content))
    return gzip.compress(packed.getvalue(), mtime=0)


def listing(found: Iterable[Part]) -> list[dict[str, Any]]:
    """What went in, and what did not."""
    return [
        {"name": each.name, **({"missing": each.missing} if each.missing else {"bytes": len(each.content), "cut": each.cut})}
        for each in found
    ]


def _part(name: str, look: Look, hidden: Sequence[str], bytes_max: int) -> Part:
    try:
        seen = look()
        content = seen.encode(errors="replace") if isinstance(seen, str) else _json(seen)
    except UNREADABLE as error:
        return Part(name=name, missing=scrub(told(error), hidden) or type(error).__name__)
    if seen is None:
        return Part(name=name, missing="there is nothing to tell")
    content = scrub(content.decode(errors="replace"), hidden).encode()
    # Of a log the newest lines count.
    kept = content[-bytes_max:] if bytes_max else b""
    return Part(name=name, content=kept, cut=len(content) - len(kept))


def _json(value: Any) -> bytes:
    return (
        json.dumps(msgspec.to_builtins(value), indent=1, ensure_ascii=False, default=lambda _: HIDDEN).encode(errors="replace")
        + b"\n"
    )
