"""The one place that reads secrets, anew each time: systemd's credentials, files that nobody else may read, the environment."""

from __future__ import annotations

import os
import stat
from collections.abc import Mapping
from pathlib import Path

from edge_runtime import references
from edge_runtime.ports import SecretError
from edge_runtime.trust import files

CREDENTIALS = "CREDENTIALS_DIRECTORY"
"""Where systemd puts what a unit's LoadCredential= and SetCredentialEncrypted= name; only the service can read it."""

SECRET_BYTES_MAX = 64 * 2**10


class SystemSecrets:
    """ports.Secrets. `folder`: of files, one a secret."""

    def __init__(self, folder: Path, environment: Mapping[str, str] = os.environ) -> None:
        self.folder, self._environment = folder, environment

    def get(self, name: str) -> str:
        credential = self._credential(name)
        content = _read(credential, checked=False) if credential else None
        if content is None:
            content = _read(self.folder / name, checked=True)
        if content is None:
            content = self._environment.get(references.variable(name))
        if content is None:
            raise SecretError(f"secret {name} is not here", "asked were " + ", ".join(self.places(name)))
        if not content:
            raise SecretError(f"secret {name} is empty", f"edge-runtime secret set {name}")
        return content

    def places(self, name: str) -> tuple[str, str, str]:
        credential = self._credential(name)
        return (
            f"the systemd credential {credential or name}",
            f"the file {self.folder / name}",
            f"the environment variable {references.variable(name)}",
        )

    def place(self, name: str) -> str:
        """Where `get` takes it from; "" where it is nowhere."""
        credential, file, variable = self.places(name)
        path = self._credential(name)
        if path is not None and path.exists():
            return credential
        if (self.folder / name).exists():
            return file
        return variable if references.variable(name) in self._environment else ""

    def names(self) -> list[str]:
        """Of the files, in order."""
        try:
            return sorted(path.name for path in self.folder.iterdir() if references.is_name(path.name) and path.is_file())
        except OSError:
            return []

    def put(self, name: str, value: str) -> Path:
        """Into its file, which only its owner can read; at once, or not at all. Raises EdgeError."""
        if not references.is_name(name):
            raise SecretError(f"{name!r} is no name of a secret", "letters, digits, . - and _, beginning with a letter or digit")
        if not value or len(value.encode()) > SECRET_BYTES_MAX:
            raise SecretError(f"secret {name}: {'empty' if not value else 'too long'}", f"1 to {SECRET_BYTES_MAX} bytes")
        files.make_folder(self.folder)
        path = self.folder / name
        files.write(path, value.encode(), files.SECRET)
        _give_to_owner_of(self.folder.parent, self.folder, path)
        return path

    def _credential(self, name: str) -> Path | None:
        folder = self._environment.get(CREDENTIALS)
        return Path(folder) / name if folder else None


def _read(path: Path, *, checked: bool) -> str | None:
    """Without the newline at its end; None: there is no such file. `checked`: refused where others can read it."""
    try:
        descriptor = os.open(path, os.O_RDONLY | os.O_NONBLOCK | os.O_CLOEXEC)
    except FileNotFoundError:
        return None
    except OSError as error:
        raise SecretError(f"{path}: {error.strerror}", "make it readable for the gateway's user, and for nobody else") from None
    try:
        mode = os.fstat(descriptor).st_mode
        if not stat.S_ISREG(mode):  # a pipe, or a folder: not even a file object can be made of that
            raise SecretError(f"{path}: is no file", "a secret is a file with one line")
        if checked and mode & 0o077:
            raise SecretError(f"{path}: others on this machine can read it", f"chmod 600 {path}")
        with os.fdopen(descriptor, "rb", closefd=False) as file:
            content = file.read(SECRET_BYTES_MAX + 1)
    finally:
        os.close(descriptor)
    if len(content) > SECRET_BYTES_MAX:
        raise SecretError(f"{path}: larger than {SECRET_BYTES_MAX} bytes", "is it the right file?")
    try:
        text = content.decode()
    except UnicodeDecodeError:
        raise SecretError(f"{path}: is no text in UTF-8", "is it the right file?") from None
    return text.removesuffix("\n").removesuffix("\r")


def _give_to_owner_of(folder: Path, *paths: Path) -> None:
    """Root writes it for the gateway's user, who could not read root's file."""
    if os.geteuid() != 0:
        return
    owner = folder.stat()
    for path in paths:
        os.chown(path, owner.st_uid, owner.st_gid)
