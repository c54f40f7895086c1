"""Finds the folder of the authority, asks for its passphrase, and opens it.

The passphrase never stands on the command line: there every user of the machine could read it.
"""

from __future__ import annotations

import os
import sys
from argparse import Namespace
from pathlib import Path
from typing import TYPE_CHECKING

from edge_runtime.ports import EdgeError

if TYPE_CHECKING:
    from edge_runtime.trust.authority import Authority
    from edge_runtime.trust.desk import Issued
    from edge_runtime.trust.roster import Role, Roster

ENVIRONMENT = "EDGE_RUNTIME_SITE_PASSPHRASE"
SPREAD = "the gateways learn it from the first that has the new roster; by hand: `edge-runtime site roster -o FILE`"
"""After every change of who belongs to the site."""
_MAKE = "`edge-runtime site init SITE` makes one; --folder DIR says where it is"


def authority(args: Namespace) -> Authority:
    """Raises EdgeError."""
    from edge_runtime.board.system import SystemClock
    from edge_runtime.trust.authority import Authority

    where = folder(args.folder)
    return Authority.open(where, passphrase(args.passphrase_file, f"passphrase of {where}: "), SystemClock())


def folder(given: Path | None) -> Path:
    """The one that is named, or the only one here. Raises EdgeError."""
    from edge_runtime.trust.authority import KEY

    if given:
        if not (given / KEY).exists():
            raise EdgeError(f"{given}: no site's authority is there", _MAKE)
        return given
    found = [each for each in (Path(), *sorted(Path().glob("*-site"))) if (each / KEY).exists()]
    if not found:
        raise EdgeError("there is no site's authority in this folder", _MAKE)
    if len(found) > 1:
        raise EdgeError(f"there are several sites here: {', '.join(map(str, found))}", "--folder DIR says which")
    return found[0]


def passphrase(file: Path | None, prompt: str, *, twice: bool = False) -> str:
    """From the file, the environment or the terminal, in this order. Raises EdgeError."""
    if file:
        from edge_runtime.trust import files

        return _one_line(files.read_secret(file), str(file))
    if (found := os.environ.get(ENVIRONMENT)) is not None:
        return _one_line(os.fsencode(found), f"${ENVIRONMENT}")
    if not sys.stdin.isatty():
        raise EdgeError("the passphrase of the site is needed", f"--passphrase-file FILE, {ENVIRONMENT}, or a terminal")
    from getpass import getpass

    text = getpass(prompt)
    if twice and getpass("again: ") != text:
        raise EdgeError("the two are not the same", "try again; capitals count")
    return text


def password(args: Namespace) -> str:
    """A new one of a person: made by chance, from the file, from standard input where that is no terminal, or typed twice. Raises
    EdgeError."""
    from edge_runtime.trust import passwords

    if args.generate:
        from edge_runtime.board.system import secret

        return passwords.generated(secret(passwords.GENERATED_BYTES))
    if args.password_file and str(args.password_file) != "-":
        from edge_runtime.trust import files

        return _one_line(files.read_secret(args.password_file), str(args.password_file), "password")
    if args.password_file or not sys.stdin.isatty():
        return _one_line(sys.stdin.buffer.readline(), "standard input", "password")
    from getpass import getpass

    text = getpass(f"password of {args.name} (at least {passwords.CHARACTERS_MIN} characters): ")
    if getpass("again: ") != text:
        raise EdgeError("the two are not the same", "try again; capitals count")
    return text


def _one_line(content: bytes, name: str, what: str = "passphrase") -> str:
    try:
        text = content.decode().removesuffix("\n").removesuffix("\r")
    except UnicodeDecodeError:
        raise EdgeError(f"{name}: is no text in UTF-8", f"one line with the {what}") from None
    if not text or "\n" in text:
        raise EdgeError(f"{name}: is empty, or more than one line", f"one line with the {what}")
    return text


def roster(where: Path) -> tuple[bytes, Roster]:
    """As it is signed, and read; for that no passphrase is needed. Raises EdgeError."""
    from edge_runtime.trust import certificates, files
    from edge_runtime.trust.authority import CA, read_roster

    return read_roster(where, *certificates.parse_authority(files.read(where / CA)))


def check_free(opened: Authority, name: str, role: Role, *, replace: bool) -> None:
    """Raises EdgeError: nobody can have this name, or somebody has it; or there never was whom it is to replace."""
    from edge_runtime.trust.roster import check_name

    check_name(name, role)
    held = next((each.role for each in opened.members if each.name == name), None)
    if held is None:
        if replace and not opened.knew(name):  # the old key would stay good
            raise EdgeError(f"--replace: {name} is no member, and never was", "is the name right? `edge-runtime site members`")
        return
    if held != role:
        raise EdgeError(f"{name} is a member already: {held}", f"another name; or first: edge-runtime site revoke {name}")
    if not replace:
        cause = f"{name} is a member already: {held}"
        raise EdgeError(cause, f"new hardware, or a lost key: --replace; another period for the same key: site renew {name}")


def certify(opened: Authority, csr: str, name: str, role: Role, *, replace: bool, password: str = "") -> Issued:
    """A certificate, whatever the name needs: a first one, one more for the key that it has (the first time was interrupted),
    one for a new key. `password`: beside it, hashed; "": none, whatever there was. Raises EdgeError."""
    from edge_runtime.trust import certificates

    request = csr.encode()
    member = next((each for each in opened.members if each.name == name), None)
    if member and member.role == role and member.public == certificates.requested(request):
        return packed(opened, name, opened.renew(name, password))
    check_free(opened, name, role, replace=replace)
    certificate = opened.replace(name, request, password) if member else opened.issue(request, name, role, password)
    return packed(opened, name, certificate)


def packed(opened: Authority, name: str, certificate: bytes) -> Issued:
    """With all that a member needs beside it."""
    from edge_runtime.trust import desk

    return desk.Issued(desk.VERSION, opened.site, name, opened.ca.decode(), certificate.decode(), opened.roster())


def mark(ca: bytes) -> str:
    """Of a CA's certificate (PEM), for people to compare: the same as in a token."""
    import ssl

    from edge_runtime.trust.token import ca_mark

    return ca_mark(ssl.PEM_cert_to_DER_cert(ca.decode())).hex(":", 2)
