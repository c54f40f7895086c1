"""Segments: the oldest entries of the audit log in closed files beside it, `audit-000001.jsonl.gz`, one entry a line.

A file is written whole under another name, synced, and only then gets its name. None is ever overwritten or deleted.
"""

from __future__ import annotations

import gzip
import os
import zlib
from collections.abc import Iterable, Iterator, Mapping
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.control.audit_chain import Broken, Row

LINE_BYTES_MAX = 2**20
"""No entry is longer: a file that was exchanged for a bomb does not fill the memory."""

PACKING = 6
UNFINISHED = ".part"


class Segments:
    """Files in the folder of the log."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def path(self, number: int) -> Path:
        return self._folder / f"audit-{number:06}.jsonl.gz"

    def write(self, number: int, rows: Iterable[Mapping[str, Any]]) -> None:
        """On the disk under its name when it returns. Another file of that name is set aside. Raises OSError."""
        path = self.path(number)
        part = path.with_name(path.name + UNFINISHED)
        with part.open("wb") as raw:
            with gzip.GzipFile("", "wb", PACKING, raw, mtime=0) as packed:
                for row in rows:
                    packed.write(msgspec.json.encode(row) + b"\n")
            raw.flush()
            os.fsync(raw.fileno())
        self._set_aside(path)
        part.rename(path)
        folder = os.open(self._folder, os.O_RDONLY)
        try:
            os.fsync(folder)
        finally:
            os.close(folder)

    def _set_aside(self, path: Path) -> None:
        """One of this name that the log does not know: from a crash before the log could note it, or somebody's."""
        number = 1
        while (aside := path.with_name(f"{path.name}.aside-{number}")).exists():
            number += 1
        if path.exists():
            path.rename(aside)


def read(path: Path, first: int) -> Iterator[Row]:
    """Its entries from `first` on, not checked. Raises Broken: missing, cut off, damaged."""
    n = first - 1
    try:
        with gzip.open(path) as file:
            while line := file.readline(LINE_BYTES_MAX):
                row = msgspec.json.decode(line, type=Row)
                yield row
                n = row.n
    except FileNotFoundError:
        hint = "if it was moved away on purpose, put it back to verify"
        raise Broken(first, path.name, f"entries from {first} on are missing: so is the segment's file", hint) from None
    except (OSError, EOFError, zlib.error, msgspec.MsgspecError, UnicodeDecodeError) as error:
        cause = f"the segment's file is damaged: entry {n + 1} cannot be read ({type(error).__name__})"
        raise Broken(n + 1, path.name, cause) from None
