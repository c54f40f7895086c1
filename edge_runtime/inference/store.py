"""Finds a model's folder, reads its manifest and known answers, and checks every file against its sha256."""

from __future__ import annotations

import hashlib
import sys
import zipfile
import zlib
from collections.abc import Sequence
from pathlib import Path

import msgspec
import numpy as np
from numpy.typing import NDArray

from edge_runtime.document import closest
from edge_runtime.inference.engine import EngineError
from edge_runtime.inference.manifest import Artefact, File, Manifest, parse

MANIFEST = "manifest.yaml"
KNOWN_ANSWERS_BYTES_MAX = 256 * 2**20


class ModelMissing(EngineError):
    """There is no such model on this machine; a peer may have it."""


class KnownAnswers(msgspec.Struct, frozen=True):
    """Raw windows float64[n, rows, points]; the fp32 model's outputs float64[n, values]; what follows from them, int64[n]:
    1 and 0 for above the threshold or not; without a threshold, which output is the largest."""

    windows: NDArray[np.float64]
    outputs: NDArray[np.float64]
    decisions: NDArray[np.int64]


class Stored(msgspec.Struct, frozen=True):
    """A model whose manifest is valid and whose files are the ones it names."""

    folder: Path
    manifest: Manifest
    known: KnownAnswers

    def path(self, artefact: Artefact) -> Path:
        return self.folder / artefact.file


def shipped() -> Path:
    """Models that come with the package: `models/` of a checkout, or where the wheel puts its data."""
    checkout = Path(__file__).resolve().parents[2]
    if (checkout / "pyproject.toml").is_file():
        return checkout / "models"
    return Path(sys.prefix) / "share" / "edge-runtime" / "models"


def names(folders: Sequence[Path]) -> list[str]:
    """Models in the folders and the shipped ones, sorted."""
    return sorted({path.parent.name for folder in (*folders, shipped()) for path in folder.glob(f"*/{MANIFEST}")})


def find(reference: str, folders: Sequence[Path]) -> Path:
    """A name or a path -> the model's folder. A name is looked up in the folders, in order, then in the shipped ones."""
    places = [folder / reference for folder in (*folders, shipped())]
    if "/" in reference or reference.startswith("."):
        places.insert(0, Path(reference))
    for place in places:
        if (place / MANIFEST).is_file():
            return place
    looked = ", ".join(dict.fromkeys(map(str, places)))
    raise ModelMissing(f"no model {reference!r}: no {MANIFEST} in {looked}", closest(reference, names(folders), "there are"))


def load(folder: Path) -> Stored:
    """Reads and checks everything. Raises EngineError: manifest wrong, file missing, other sha256, known answers unusable."""
    manifest = read_manifest(folder)
    verify_all(folder, manifest)
    return Stored(folder, manifest, _known_answers(folder / manifest.known_answers.file, manifest))


def read_manifest(folder: Path) -> Manifest:
    file = folder / MANIFEST
    try:
        text = file.read_text()
    except OSError as error:
        raise EngineError(f"{file}: {error.strerror}", "is the path right, and may we read it?") from error
    except UnicodeDecodeError as error:
        raise EngineError(f"{file}: is no text: {error.reason}", "write it in UTF-8") from error
    return parse(text, str(file))


def verify_all(folder: Path, manifest: Manifest) -> None:
    """Raises EngineError at the first file that is not the one that the manifest names."""
    for artefact in manifest.artefacts:
        verify(folder, artefact)
        if artefact.weights is not None:
            verify(folder, artefact.weights)
    verify(folder, manifest.known_answers)


def verify(folder: Path, wanted: File) -> None:
    """Raises EngineError when the file is missing or is another one than the manifest names."""
    path = folder / wanted.file
    try:
        with path.open("rb") as file:
            digest = hashlib.file_digest(file, "sha256").hexdigest()
    except OSError as error:
        raise EngineError(f"{path}: {error.strerror}", f"{MANIFEST} names it: copy the whole folder") from error
    if digest != wanted.sha256:
        raise EngineError(
            f"{path}: is not the file that {MANIFEST} names: sha256 is {digest}, wanted {wanted.sha256}",
            "copy it again; if you changed it on purpose, write its new sha256 into the manifest",
        )


def _known_answers(path: Path, manifest: Manifest) -> KnownAnswers:
    if path.stat().st_size > KNOWN_ANSWERS_BYTES_MAX:
        raise EngineError(f"{path}: larger than {KNOWN_ANSWERS_BYTES_MAX} bytes")
    hint = "an npz with the arrays windows, outputs, decisions"
    if not zipfile.is_zipfile(path):  # numpy would take it for a single array, or for pickled objects
        raise EngineError(f"{path}: is no npz", hint)
    try:
        with np.load(path, allow_pickle=False) as arrays:
            windows, outputs, decisions = (arrays[key] for key in ("windows", "outputs", "decisions"))
    except (OSError, EOFError, ValueError, KeyError, zipfile.BadZipFile, zlib.error) as error:
        raise EngineError(f"{path}: {error}", hint) from error
    for name, array in (("windows", windows), ("outputs", outputs), ("decisions", decisions)):
        if array.dtype.kind not in "biuf" or not np.isfinite(array).all():
            raise EngineError(f"{path}: {name} ({array.dtype}) holds something else than finite numbers", hint)
    count = len(decisions) if decisions.ndim == 1 else 0
    wanted = (count, manifest.input.rows, len(manifest.input.points))
    if not count or windows.shape != wanted or outputs.shape[:1] != (count,) or outputs.size != count * manifest.output_values:
        got = f"windows {windows.shape}, outputs {outputs.shape}, decisions {decisions.shape}"
        raise EngineError(
            f"{path}: {got} do not belong together",
            f"windows must be [n, {wanted[1]}, {wanted[2]}], outputs [n, {manifest.output_values}], decisions [n]",
        )
    return KnownAnswers(
        np.ascontiguousarray(windows, np.float64), outputs.reshape(count, -1).astype(np.float64), decisions.astype(np.int64)
    )
