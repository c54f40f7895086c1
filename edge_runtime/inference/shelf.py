"""Models of this gateway, for peers that lack one; and the place for one that comes from a peer, until every file of it is
the one that its manifest names.

    models/.fetched/NAME/      what has come so far
    models/NAME                when all of it is verified; the one before is models/NAME.before
"""

from __future__ import annotations

import ctypes
import os
import re
import shutil
from pathlib import Path

from edge_runtime.document import NAME
from edge_runtime.inference import store
from edge_runtime.inference.engine import EngineError
from edge_runtime.inference.manifest import File
from edge_runtime.ports import EdgeError

FETCHED, BEFORE = ".fetched", ".before"
MODEL_BYTES_MAX = 2**30
_libc = ctypes.CDLL(None, use_errno=True)
_AT_FDCWD, _RENAME_EXCHANGE = -100, 2

SPARE_BYTES = 64 * 2**20
"""That stay free on the disk."""


class Shelf:
    """mesh.fetching.Shelf: `folder` is that of the gateway's own models."""

    def __init__(self, folder: Path) -> None:
        self._folder = folder

    def has(self, model: str) -> bool:
        try:
            store.find(_checked(model), [self._folder])
        except EngineError:
            return False
        return True

    # --- for others ---

    def read(self, model: str, file: str, offset: int, size_bytes: int) -> tuple[bytes, int]:
        """Only files that the manifest names. A card that is not there is empty."""
        place = store.find(_checked(model), [self._folder])
        manifest = store.read_manifest(place)
        if file == manifest.card and not (place / file).exists():
            return b"", 0
        if file not in (store.MANIFEST, manifest.card, *(each.file for each in manifest.files)):
            raise EdgeError(f"{file}: no file of {model}")
        try:
            with (place / file).open("rb") as opened:
                whole = opened.seek(0, 2)
                opened.seek(offset)
                return opened.read(size_bytes), whole
        except OSError as error:
            raise EdgeError(f"{model}/{file}: {error.strerror}") from None

    # --- for us ---

    def begin(self, model: str) -> str:
        coming = self._coming(model)
        try:
            coming.mkdir(parents=True, exist_ok=True)
            (coming / store.MANIFEST).unlink(missing_ok=True)
        except OSError as error:
            raise EdgeError(f"{coming}: {error.strerror}", "may the gateway write into its models_dir?") from None
        return store.MANIFEST

    def wanted(self, model: str) -> list[tuple[str, int]]:
        """Files that are not there, or not whole."""
        coming = self._coming(model)
        manifest = store.read_manifest(coming)
        missing = [each.file for each in manifest.files if not _is_whole(coming, each)]
        return [*((file, _size(coming / file)) for file in missing), (manifest.card, 0)]

    def add(self, model: str, file: str, offset: int, data: bytes, size_bytes: int) -> None:
        coming = self._coming(model)
        path = coming / _checked_file(file)
        others = sum(_size(each) for each in coming.iterdir() if each != path)
        if others + size_bytes > MODEL_BYTES_MAX or len(data) > size_bytes - offset:
            raise EdgeError(f"{model}/{file}: {size_bytes} bytes", f"a model has at most {MODEL_BYTES_MAX}")
        if shutil.disk_usage(coming).free < size_bytes - offset + SPARE_BYTES:
            raise EdgeError(f"{coming}: no room for {model}", "free space on the disk")
        try:
            with path.open("r+b" if offset else "wb") as opened:
                opened.seek(offset)
                opened.truncate()
                opened.write(data)
        except OSError as error:
            raise EdgeError(f"{path}: {error.strerror}", "is the disk full, or read-only?") from None

    def finish(self, model: str) -> None:
        coming, place = self._coming(model), self._folder / model
        try:
            store.load(coming)
        except EngineError:
            shutil.rmtree(coming, ignore_errors=True)
            raise
        before = place.with_name(place.name + BEFORE)
        try:
            if place.exists():
                shutil.rmtree(before, ignore_errors=True)
                place.rename(before)
            coming.rename(place)
        except OSError as error:
            raise EdgeError(f"{place}: {error.strerror}", "may the gateway write into its models_dir?") from None

    def exchange(self, model: str) -> None:
        """The one before takes its place, and it the place of the one before: both at once, or nothing (a power cut has no
        instant between). Raises EdgeError: there is none before, or that one is damaged."""
        place = self._folder / _checked(model)
        before = place.with_name(place.name + BEFORE)
        if not before.is_dir():
            raise EdgeError(f"there is no model before {model}", f"the folder {before} would hold it")
        store.load(before)
        if _libc.renameat2(_AT_FDCWD, bytes(before), _AT_FDCWD, bytes(place), _RENAME_EXCHANGE):
            raise EdgeError(f"{place}: {os.strerror(ctypes.get_errno())}", "may the gateway write into its models_dir?")

    def _coming(self, model: str) -> Path:
        return self._folder / FETCHED / _checked(model)


def _checked(model: str) -> str:
    if not re.fullmatch(NAME, model):
        raise EngineError(f"{model[:80]!r}: is the name of no model", "only models with a name come from peers, no paths")
    return model


def _checked_file(file: str) -> str:
    if not re.fullmatch(r"[A-Za-z0-9][A-Za-z0-9_.-]{0,127}", file):
        raise EdgeError(f"{file[:80]!r}: is the name of no file of a model")
    return file


def _size(path: Path) -> int:
    return path.stat().st_size if path.is_file() else 0


def _is_whole(folder: Path, file: File) -> bool:
    try:
        store.verify(folder, file)
    except EngineError:
        return False
    return True
