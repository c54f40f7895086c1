"""Makes a bundle, and keeps the newest ones (touches files)."""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.ports import Clock, EdgeError
from edge_runtime.support import bundle
from edge_runtime.support.bundle import Look
from edge_runtime.support.looking import Looking
from edge_runtime.trust import files

KEPT = "bundles"
"""Folder in `data_dir` of those that were asked for over MQTT."""
KEPT_MAX = 3
_NAME = re.compile(r"bundle-(\d{1,9})\.tar\.gz", re.ASCII)


class Made(msgspec.Struct, frozen=True, kw_only=True):
    """A bundle on the disk. `parts`: what went in, and why something did not."""

    path: str
    size_bytes: int
    sha256: str
    parts: list[dict[str, Any]]


def make(looking: Looking, clock: Clock, target: Path, more: Mapping[str, Look] | None = None) -> Made:
    """Writes it for its owner alone. `more`: parts that only who asks can find out. Raises EdgeError: it cannot be written."""
    now = clock.now()
    found = bundle.parts({**looking.looks(), **(more or {})}, looking.secrets())
    about = {"made": {"wall_ns": now.wall_ns, "synced": now.synced, "boot": now.boot}, "gateway": looking.settings.gateway}
    content = bundle.pack(found, about, now.wall_ns // 10**9)
    files.write(target, content, files.SECRET)
    digest = hashlib.sha256(content).hexdigest()
    return Made(path=str(target), size_bytes=len(content), sha256=digest, parts=bundle.listing(found))


def next_of(data_dir: Path) -> Path:
    """Where the next one goes; older ones than the newest few are deleted. Raises EdgeError."""
    folder = data_dir / KEPT
    files.make_folder(folder)
    try:
        known = sorted((int(found[1]), path) for path in folder.iterdir() if (found := _NAME.fullmatch(path.name)))
        for _, path in known[: max(0, len(known) - KEPT_MAX + 1)]:
            path.unlink()
    except OSError as error:
        raise EdgeError(f"{folder}: {error.strerror}", "is the disk read-only?") from None
    return folder / f"bundle-{known[-1][0] + 1 if known else 1:06}.tar.gz"
