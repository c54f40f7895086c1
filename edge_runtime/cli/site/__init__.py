"""edge-runtime site: the authority of a site, who belongs to it. One file a word; opening.py finds folder and passphrase."""

from __future__ import annotations

import argparse
from pathlib import Path

from edge_runtime.cli import identity

SUMMARY = "make a site of your own, let gateways and people in, and put them out again"

WORDS = ("init", "token", "sign", "renew", "person", "members", "revoke", "roster")
ROLES = ("viewer", "operator", "engineer", "receiver", "device")
EXPIRES = "10m"


def arguments(parser: argparse.ArgumentParser) -> None:
    words = parser.add_subparsers(metavar="WHAT", dest="what", required=True, title="what")
    for word, add, summary in (
        ("init", _init, "make a new site: its authority, in a folder of its own"),
        ("token", _token, "let one gateway in over the network: prints a token for `edge-runtime join`, and waits"),
        ("sign", _sign, "let one gateway in by file: answers what `edge-runtime join --request` wrote"),
        ("renew", _renew, "certificates for another two years"),
        ("person", _person, "make a key and a certificate for a person, a receiver or other equipment"),
        ("members", _members, "who belongs to the site, and who was revoked"),
        ("revoke", _revoke, "put a gateway or a person out"),
        ("roster", _roster, "the signed list of members, for a site that the network does not reach"),
    ):
        sub = words.add_parser(word, help=summary, description=summary)
        add(sub)
        folder = "the authority's folder (default: {})"
        default = "./SITE-site" if word == "init" else "the one called *-site here"
        sub.add_argument("--folder", type=Path, metavar="DIR", help=folder.format(default))
        if word not in ("members", "roster"):
            sub.add_argument(
                "--passphrase-file",
                type=Path,
                metavar="FILE",
                help="default: $EDGE_RUNTIME_SITE_PASSPHRASE, or asked for on the terminal",
            )
        if word != "roster":
            sub.add_argument("--json", action="store_true", help="print JSON")


def run(args: argparse.Namespace) -> int:
    """Raises EdgeError."""
    import importlib

    return int(importlib.import_module(f"edge_runtime.cli.site.{args.what}").run(args))


def _init(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("site", metavar="SITE", help="its name, as in `site` of each gateway's file")


def _token(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("gateway", metavar="GATEWAY", help="its name, as in `gateway` of its file")
    parser.add_argument(
        "--listen", metavar="HOST:PORT", default="0.0.0.0:0", help="wait here (default: every IPv4 address, a free port)"
    )
    parser.add_argument(
        "--expires", type=duration, metavar="TIME", default=EXPIRES, help=f"30s, {EXPIRES}, 2h (default: {EXPIRES})"
    )
    _replace(parser)


def _sign(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, metavar="FILE", help="what `edge-runtime join --request FILE` wrote")
    parser.add_argument("-o", "--output", type=Path, metavar="ANSWER", help="default: FILE with .answer behind it")
    _replace(parser)


def _renew(parser: argparse.ArgumentParser) -> None:
    parser.add_argument(
        "names", nargs="*", metavar="NAME|FILE",
        help="members, or what `edge-runtime join --request FILE` wrote on them; none: all that have asked on the broker",
    )  # fmt: skip
    _where(parser, "answer all gateways that have asked")
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", default=Path(), help="where NAME.answer goes (default: here)")


def _person(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME")
    parser.add_argument(
        "--role", required=True, choices=ROLES,
        help="viewer reads; operator commands, too; engineer configures, too; receiver: `edge-runtime receive` in the plant; "
        "device: equipment that publishes below device/NAME/ and NAME/",
    )  # fmt: skip
    parser.add_argument("-o", "--output", type=Path, metavar="DIR", help="the new identity folder (default: NAME-identity)")
    _replace(parser)
    passwords = parser.add_argument_group(
        "a password, for what cannot use a certificate",
        "Of a new person beside the certificate; of one that there is: it gets one, or another one. "
        "It is good where a gateway's broker.people_listen is.",
    ).add_mutually_exclusive_group()
    passwords.add_argument("--password", action="store_true", help="asked for twice; not on a terminal: from standard input")
    passwords.add_argument("--password-file", type=Path, metavar="FILE", help="one line; only you may read it; -: standard input")
    passwords.add_argument("--generate", action="store_true", help="made by chance, and shown once")
    passwords.add_argument("--no-password", action="store_true", help="only the certificate, from now on")


def _members(parser: argparse.ArgumentParser) -> None:
    """Nothing of its own."""


def _revoke(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("name", metavar="NAME", help="see `edge-runtime site members`")
    parser.add_argument("--why", metavar="TEXT", default="", help="for the record: every member can read it")
    _where(parser, "tell the site at once")


def _roster(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("-o", "--output", type=Path, metavar="FILE", help="default: standard output")
    parser.add_argument("--publish", action="store_true", help="tell the site: needs --broker or --config, and --identity")
    _where(parser, "tell the site")


def _where(parser: argparse.ArgumentParser, what: str) -> None:
    """spreading.py reads them."""
    parser.add_argument("--broker", metavar="URL", help=f"{what}, over this broker of it: mqtt://host[:port]")
    parser.add_argument("--config", type=Path, metavar="FILE", help=f"{what}, over the broker that this gateway's file names")
    parser.set_defaults(site=None, ca=None)
    identity.add_argument(parser)


def _replace(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("--replace", action="store_true", help="there is one with this name: its old key is revoked")


def duration(text: str) -> int:
    """30s, 10m, 2h -> seconds."""
    number, unit = text[:-1], text[-1:]
    seconds = int(number) * {"s": 1, "m": 60, "h": 3_600}.get(unit, 0) if number.isdecimal() and len(number) < 6 else 0
    if not 1 <= seconds <= 86_400:
        raise argparse.ArgumentTypeError(f"{text!r} is no time from 1s to 24h: 30s, {EXPIRES}, 2h")
    return seconds
