"""edge-runtime join: makes this gateway a member of a site. Its key is made here and never leaves it."""

from __future__ import annotations

import argparse
import asyncio
import os
import sys
from pathlib import Path
from typing import TYPE_CHECKING, NamedTuple

if TYPE_CHECKING:
    from edge_runtime.trust.desk import Issued
    from edge_runtime.trust.identity import Identity
    from edge_runtime.trust.token import Token

SUMMARY = "make this gateway a member of a site: with a token over the network, or by file"

FOLDER = Path("data", "identity")
_TOKEN_BYTES_MAX = 4_096


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "token", nargs="?", metavar="TOKEN", help="as `edge-runtime site token` prints it; - reads it from standard input"
    )
    parser.add_argument(
        "--request", type=Path, metavar="FILE", help="by file: write a request, for `edge-runtime site sign FILE`"
    )
    parser.add_argument("--answer", type=Path, metavar="FILE", help="by file: take in what `site sign` or `site renew` wrote")
    parser.add_argument("--roster", type=Path, metavar="FILE", help="by file: take in what `site roster -o FILE` wrote")
    parser.add_argument("--name", help="with --request: of this gateway (default: that of --config)")
    parser.add_argument("--site", help="with --request: the site (default: that of --config)")
    where = parser.add_mutually_exclusive_group()
    where.add_argument("--config", type=Path, metavar="FILE", help="the gateway's file: its names, and where its identity goes")
    where.add_argument("--folder", type=Path, metavar="DIR", help=f"where the identity goes (default without --config: {FOLDER})")
    parser.add_argument("--json", action="store_true", help="print JSON")


class Place(NamedTuple):
    """Where the identity goes, and who the configuration says that we are ("": there is none)."""

    folder: Path
    site: str = ""
    gateway: str = ""


def run(args: argparse.Namespace) -> int:
    """Raises EdgeError."""
    from edge_runtime.ports import EdgeError

    given = [word for word in ("token", "request", "answer", "roster") if getattr(args, word)]
    if len(given) != 1:
        raise EdgeError("one of TOKEN, --request, --answer and --roster is needed", "edge-runtime join --help")
    place = _place(args)
    try:
        return {"token": _token, "request": _request, "answer": _answer, "roster": _roster}[given[0]](args, place)
    finally:
        hand_over(place.folder)


def _place(args: argparse.Namespace) -> Place:
    """Of the configuration only what is needed: one with a mistake elsewhere, or without devices yet, is good enough to join.
    Raises EdgeError."""
    if args.config is None:
        return Place(args.folder or FOLDER)
    from edge_runtime import document
    from edge_runtime.config import Config
    from edge_runtime.ports import EdgeError

    hint = "give the file that `edge-runtime run` gets, with its `site` and `gateway`"
    try:
        read = document.read(_read(args.config, hint).decode(), str(args.config))
    except UnicodeDecodeError:
        raise EdgeError(f"{args.config}: is no text in UTF-8", hint) from None
    keys = ("site", "gateway", "data_dir", "site_dir")
    site, gateway, data_dir, site_dir = (read.at((key,)) or Config.model_fields[key].get_default() for key in keys)
    if not all(isinstance(each, str) for each in (site, gateway, data_dir, site_dir)):
        raise EdgeError(f"{args.config}: has no good `site` and `gateway`", hint)
    return Place(args.config.resolve().parent / (site_dir or Path(data_dir, "identity")), site, gateway)


def hand_over(folder: Path) -> None:
    """What root writes here belongs to whom the folder around it belongs: `sudo edge-runtime join` is for the gateway's user. He
    may have put links there: none is followed. Raises EdgeError."""
    from edge_runtime.ports import EdgeError

    if os.geteuid() != 0 or not folder.parent.is_dir():
        return
    owner = folder.parent.stat()
    for each in (folder, folder.with_name(f"{folder.name}.joining")):
        if not each.exists():
            continue
        try:
            opened = os.open(each, os.O_RDONLY | os.O_DIRECTORY | os.O_NOFOLLOW)
            try:
                os.fchown(opened, owner.st_uid, owner.st_gid)
                for name in os.listdir(opened):  # noqa: PTH208 - of what is open, not of what has this name by now
                    os.chown(name, owner.st_uid, owner.st_gid, dir_fd=opened, follow_symlinks=False)
            finally:
                os.close(opened)
        except OSError as error:
            cause = f"{each}: cannot be given to the user of {folder.parent}: {error.strerror}"
            raise EdgeError(cause, "the gateway must be able to read it: chown -R USER FOLDER") from None


# --- with a token ----------------------------------------------------------------------------------------------------


def _token(args: argparse.Namespace, place: Place) -> int:
    return _show(with_token(args.token, place), args)


def with_token(text: str, place: Place) -> Identity:
    """`text` "-": from standard input. Raises EdgeError."""
    from edge_runtime.trust import certificates, token
    from edge_runtime.trust.identity import Identity

    read = token.read(sys.stdin.read(_TOKEN_BYTES_MAX) if text == "-" else text)
    _check_names(place, read.site, read.gateway)
    identity = _ours(place, read.site, read.gateway, read.ca)
    key = identity.key if identity else Identity.begin(place.folder)
    csr = certificates.request(key, read.gateway).decode()
    return asyncio.run(_join(read, csr, place, identity))


async def _join(token: Token, csr: str, place: Place, identity: Identity | None) -> Identity:
    """A member that joins again: its site's authority may not have heard that it has its certificate, or gives it a new one."""
    from edge_runtime.trust.joining import NotEnrolled, Refused, Stranger, enrolled

    try:
        async with enrolled(token, csr) as issued:
            return _take(issued, token.gateway, place, identity)
    except NotEnrolled as error:
        if identity is None or isinstance(error, Refused | Stranger):
            raise
        print(f"note: {error}", file=sys.stderr)
        return identity


# --- by file ---------------------------------------------------------------------------------------------------------


def _request(args: argparse.Namespace, place: Place) -> int:
    from edge_runtime.cli import terminal
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust import certificates, desk, files
    from edge_runtime.trust.identity import Identity
    from edge_runtime.trust.roster import check_name

    site, name = args.site or place.site, args.name or place.gateway
    if not site or not name:
        raise EdgeError("whose request? The names are missing", "--name GATEWAY --site SITE, or --config FILE")
    check_name(site, "gateway")
    check_name(name, "gateway")
    _check_names(place, site, name)
    identity = _ours(place, site, name)
    key = identity.key if identity else Identity.begin(place.folder)
    files.write(args.request, desk.encode(desk.Wanted(desk.VERSION, site, name, certificates.request(key, name).decode())))
    if args.json:
        terminal.emit_json({"site": site, "gateway": name, "key": key.fingerprint, "request": str(args.request)})
        return 0
    print(f"{args.request}: request of {name} to {site}, key {key.fingerprint}; it holds no secret")
    print(f"where the site's authority is: edge-runtime site sign {args.request.name}")
    where = f" --config {args.config}" if args.config else f" --folder {args.folder}" if args.folder else ""
    print(f"then here: edge-runtime join --answer FILE{where}")
    return 0


def _answer(args: argparse.Namespace, place: Place) -> int:
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust import desk

    hint = "`edge-runtime site sign` and `site renew` write one"
    try:
        issued = desk.decode(_read(args.answer, hint))
    except desk.BadMessage:
        raise EdgeError(f"{args.answer}: is no answer of a site's authority", hint) from None
    if not isinstance(issued, desk.Issued):
        raise EdgeError(f"{args.answer}: is no answer of a site's authority, but a {type(issued).__name__.lower()}", hint)
    _check_names(place, issued.site, issued.name)
    identity = _ours(place, issued.site, issued.name)
    return _show(_take(issued, issued.name, place, identity), args, renewed=identity is not None)


def _roster(args: argparse.Namespace, place: Place) -> int:
    from edge_runtime.cli import terminal
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust.identity import Identity

    identity = Identity.load(place.folder)
    if identity is None:
        raise EdgeError(f"{place.folder}: this gateway belongs to no site yet", "first: edge-runtime join TOKEN")
    taken = identity.take_roster(_read(args.roster, "`edge-runtime site roster -o FILE` writes one"))
    if args.json:
        terminal.emit_json({"site": identity.site, "taken": taken, "revision": identity.roster.revision})
        return 0
    said = "is taken in" if taken else "is not newer than what is here, which stays"
    print(f"{args.roster}: {said}; roster of {identity.site}, revision {identity.roster.revision}")
    return 0


def _read(file: Path, hint: str) -> bytes:
    """Raises EdgeError."""
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust import files

    try:
        return files.read(file)
    except EdgeError as error:
        raise EdgeError(error.cause, hint) from None


# --- both ------------------------------------------------------------------------------------------------------------


def _check_names(place: Place, site: str, gateway: str) -> None:
    """Raises EdgeError: the configuration says something else."""
    from edge_runtime.ports import EdgeError

    if place.gateway and (place.site, place.gateway) != (site, gateway):
        cause = f"this is for {gateway} of {site}, and the configuration is that of {place.gateway} of {place.site}"
        raise EdgeError(cause, f"edge-runtime site token {place.gateway}")


def _ours(place: Place, site: str, gateway: str, ca: bytes = b"") -> Identity | None:
    """What is there already, if it is that of this gateway (`ca`: by this authority). Raises EdgeError: it is another's."""
    import ssl

    from edge_runtime.ports import EdgeError
    from edge_runtime.trust import files
    from edge_runtime.trust.identity import Identity
    from edge_runtime.trust.token import ca_mark

    identity = Identity.load(place.folder)
    if identity is None:
        return None
    other = f"to leave it: mv {place.folder} {place.folder}.old"
    if (identity.site, identity.name) != (site, gateway):
        raise EdgeError(f"{place.folder}: here is {identity.name} ({identity.role}) of {identity.site} already", other)
    if ca and ca != ca_mark(ssl.PEM_cert_to_DER_cert(files.read(identity.ca_file).decode())):
        raise EdgeError(f"{place.folder}: here is {gateway} of another site that is called {site}, too", other)
    return identity


def _take(issued: Issued, name: str, place: Place, identity: Identity | None) -> Identity:
    """On the disk when it returns, all of it or nothing. Raises EdgeError: it does not fit."""
    from edge_runtime.ports import EdgeError
    from edge_runtime.trust import certificates
    from edge_runtime.trust.identity import Identity

    certificate = issued.certificate.encode()
    subject = certificates.parse(certificate)
    if (subject.name, subject.role) != (name, identity.role if identity else "gateway"):
        raise EdgeError(f"the authority has made a certificate for {subject.name} ({subject.role}), not for {name}")
    if identity is None:
        return Identity.finish(place.folder, ca=issued.ca.encode(), certificate=certificate, roster=issued.roster)
    identity.take_certificate(certificate)
    identity.take_roster(issued.roster)
    return identity


def _show(identity: Identity, args: argparse.Namespace, *, renewed: bool = False) -> int:
    from edge_runtime.cli import terminal
    from edge_runtime.cli.site.opening import mark
    from edge_runtime.trust import files

    ca = mark(files.read(identity.ca_file))
    if args.json:
        shown = {"site": identity.site, "gateway": identity.name, "key": identity.key.fingerprint, "ca": ca}
        terminal.emit_json(shown | {"folder": str(identity.folder), "revision": identity.roster.revision})
        return 0
    print(f"{identity.name} is a member of {identity.site} ({identity.role}): key {identity.key.fingerprint}, authority {ca}")
    print(f"key, certificate and roster are in {identity.folder.absolute()}; the key was made here and has not left")
    if renewed:
        print("a gateway that runs takes it within seconds; it need not be started again")
    elif args.config:
        print(f"next: edge-runtime run {args.config} (restart it, if it runs)")
    elif identity.role == "gateway":
        print(f"next: in the gateway's file `site: {identity.site}`, `gateway: {identity.name}`, and this folder as `site_dir`")
    return 0
