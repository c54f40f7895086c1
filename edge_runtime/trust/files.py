"""Files of an identity or an authority: written whole or not at all, and read with a limit.

A power cut at any instant leaves the old file or the new one. What is secret is never readable by others, not even for the
moment in which it is written.
"""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path

from edge_runtime.ports import EdgeError

SECRET = 0o600
PUBLIC = 0o644
FILE_BYTES_MAX = 8 * 2**20


class NotWritten(EdgeError):
    """The disk did not take it: the old file is there."""


def read(path: Path) -> bytes:
    """Raises EdgeError: missing, not ours to read, too large for any file of this kind."""
    try:
        with path.open("rb") as file:
            content = file.read(FILE_BYTES_MAX + 1)
    except OSError as error:
        raise EdgeError(f"{path}: {error.strerror}", "restore it from a backup, or join the site again") from None
    if len(content) > FILE_BYTES_MAX:
        raise EdgeError(f"{path}: larger than {FILE_BYTES_MAX} bytes", "this is not a file of a site")
    return content


def read_secret(path: Path) -> bytes:
    """As `read`, and refuses what others on this machine could read, too."""
    try:
        mode = path.stat().st_mode
    except OSError as error:
        raise EdgeError(f"{path}: {error.strerror}", "restore it from a backup, or join the site again") from None
    if mode & 0o077:
        raise EdgeError(f"{path}: others on this machine can read this key", f"chmod 600 {path}")
    return read(path)


def write(path: Path, content: bytes, mode: int = PUBLIC) -> None:
    """Returns when it is on disk under its name. Raises EdgeError."""
    fresh = path.with_name(f".{path.name}.new")
    try:
        fresh.unlink(missing_ok=True)
        descriptor = os.open(fresh, os.O_WRONLY | os.O_CREAT | os.O_EXCL | os.O_NOFOLLOW, mode)
        with os.fdopen(descriptor, "wb") as file:
            file.write(content)
            file.flush()
            os.fsync(descriptor)
        fresh.replace(path)
        sync_folder(path.parent)
    except OSError as error:
        raise NotWritten(f"{path}: cannot be written: {error.strerror}", "is the disk full, or read-only?") from None


class Watched:
    """A file that another program may write while we run: `edge-runtime join`, with what came on a stick."""

    def __init__(self, path: Path) -> None:
        self.path = path
        self._seen: tuple[int, ...] = ()

    def news(self) -> bytes | None:
        """What is in it, if it has changed since we were called last; the first time always. None also when it is not there: the
        folder was moved away. Raises EdgeError."""
        try:
            found = self.path.stat()
        except FileNotFoundError:
            return None
        except OSError as error:
            raise EdgeError(f"{self.path}: {error.strerror}", "this user must be able to read it") from None
        # Not the time of writing alone: whoever copies a file may keep that of the old one, and a clock may stand at 1970.
        seen = (found.st_ino, found.st_size, found.st_mtime_ns, found.st_ctime_ns)
        if seen == self._seen:
            return None
        content = read(self.path)
        self._seen = seen
        return content

    def forget(self) -> None:
        """What was in it could not be dealt with: it is news once more."""
        self._seen = ()


def is_empty(folder: Path) -> bool:
    """Or not there at all. Raises EdgeError when that cannot be told."""
    try:
        return not any(folder.iterdir())
    except FileNotFoundError:
        if folder.is_symlink():  # what it leads to is not mounted, say: it is not known to be empty
            raise EdgeError(f"{folder}: leads to {folder.readlink()}, which is not there", "is that mounted?") from None
        return True
    except OSError as error:
        raise EdgeError(f"{folder}: {error.strerror}", "it must be a folder that this user may read") from None


def make_folder(path: Path) -> None:
    """For this user only; its parents as they come. Raises EdgeError."""
    try:
        path.parent.mkdir(parents=True, exist_ok=True)
        path.mkdir(mode=0o700, exist_ok=True)
    except OSError as error:
        raise EdgeError(f"{path}: cannot be made: {error.strerror}", "choose another folder") from None


def hand_over(path: Path) -> None:
    """What root has written belongs to whom the folder around it belongs: it is for the user of the gateway. A link is not
    followed. Raises EdgeError."""
    if os.geteuid() != 0:
        return
    try:
        owner = path.parent.stat()
        os.chown(path, owner.st_uid, owner.st_gid, follow_symlinks=False)
    except OSError as error:
        raise EdgeError(
            f"{path}: cannot be given to the user of {path.parent}: {error.strerror}", "chown -R USER FOLDER"
        ) from None


def move_folder(path: Path, target: Path) -> None:
    """Gives a complete folder its name, at once. Raises EdgeError when there is one with anything in it."""
    try:
        sync_folder(path)
        path.rename(target)
        sync_folder(target.parent)
    except OSError as error:
        raise EdgeError(f"{target}: {error.strerror}", f"if there is an old one: mv {target} {target}.old") from None


def sync_folder(path: Path) -> None:
    """A rename is on disk when its folder is. Raises OSError."""
    descriptor = os.open(path, os.O_RDONLY | os.O_DIRECTORY)
    try:
        os.fsync(descriptor)
    finally:
        os.close(descriptor)


@contextmanager
def locked(folder: Path) -> Iterator[None]:
    """One process at a time changes a folder; another one waits. Raises EdgeError."""
    try:
        descriptor = os.open(folder / ".lock", os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, SECRET)
    except OSError as error:
        raise EdgeError(f"{folder}: {error.strerror}", "is it the folder of a site authority?") from None
    try:
        fcntl.flock(descriptor, fcntl.LOCK_EX)
        yield
    finally:
        os.close(descriptor)
