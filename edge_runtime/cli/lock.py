"""A file that one process holds: a second one is refused. The lock ends with its process, by kill -9 too; the file stays."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator
from pathlib import Path


@contextlib.contextmanager
def held(file: Path, of: Path, *, by: str, hint: str, missing: str) -> Iterator[None]:
    """`of`: what it stands for; `by`: who else may have it, and the `hint` then; `missing`: the hint where the file cannot be
    made. Raises EdgeError."""
    import fcntl
    import os

    from edge_runtime.ports import EdgeError

    try:
        lock = os.fdopen(_opened(file))
    except OSError as error:
        raise EdgeError(f"{of}: {error.strerror}", missing) from None
    with lock:
        try:
            fcntl.flock(lock, fcntl.LOCK_EX | fcntl.LOCK_NB)
        except BlockingIOError:
            raise EdgeError(f"{of}: another {by}", hint) from None
        except OSError as error:
            raise EdgeError(
                f"{of}: cannot be locked: {error.strerror}", "SQLite needs locks too: put it on a local file system"
            ) from None
        yield


def _opened(file: Path) -> int:
    """Raises OSError."""
    import errno
    import os

    try:
        # A link that somebody has put there leads root nowhere; and what root makes is for the user who has the folder.
        descriptor = os.open(file, os.O_RDWR | os.O_CREAT | os.O_NOFOLLOW, 0o600)
    except OSError as error:
        if error.errno != errno.EROFS:
            raise
        return os.open(file, os.O_RDONLY | os.O_NOFOLLOW)  # that the disk takes nothing is for the store to tell
    if os.geteuid() == 0:
        owner = file.parent.stat()
        os.fchown(descriptor, owner.st_uid, owner.st_gid)
    return descriptor
