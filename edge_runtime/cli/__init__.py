"""The command line: one file a verb. A verb's module has SUMMARY, arguments(parser) and run(args) -> exit status.

What starts must start at once: this file and the top of a verb's file import the standard library only; everything else is
imported by `run`.
"""

from __future__ import annotations

import argparse
import codecs
import contextlib
import errno
import importlib
import io
import os
import sys
from collections.abc import Sequence
from typing import Any, Protocol, cast

VERBS = (
    "run",
    "demo",
    "check",
    "config",
    "adapters",
    "models",
    "outbox",
    "mesh",
    "receive",
    "site",
    "join",
    "gateway",
    "audit",
    "secret",
    "support-bundle",
    "command",
)
"""Each is the module edge_runtime.cli.{verb} (- is _ there); in the order in which --help shows them."""

INTERRUPTED = 130

ESCAPED = "edge_runtime.escaped"
"""What becomes of a character that the output cannot show."""

NAME_SHOWN_CHARS = 60
"""Of one that is too long for a file."""

_OUTPUT_ENDS = (errno.ENOSPC, errno.EDQUOT, errno.EFBIG, errno.EIO)


class Verb(Protocol):
    """What a verb's module offers. `run` raises EdgeError; the status is 0 where all went well. A verb that knows short forms of
    what it takes has spelled(words) -> words, too: in full, without the verb."""

    SUMMARY: str

    def arguments(self, parser: argparse.ArgumentParser) -> None: ...

    def run(self, args: argparse.Namespace) -> int: ...


def main(argv: Sequence[str] | None = None) -> int:
    """Runs one verb and returns the exit status: 0 fine, 1 it failed, 2 wrong usage, 130 interrupted. Without `argv` it is the
    program, and may end it at once: a thread in an engine that still loads, or in a driver that hangs, must not see Python go."""
    status = _guarded(list(sys.argv[1:] if argv is None else argv))
    if argv is None and _is_anybody_left():
        for stream in (sys.stdout, sys.stderr):
            with contextlib.suppress(OSError, AttributeError):  # nobody reads on
                stream.flush()
        os._exit(status)
    return status


def _is_anybody_left() -> bool:
    system, services = (sys.modules.get(f"edge_runtime.{name}") for name in ("board.system", "services"))
    if services is not None and services.left:
        return True
    try:
        return system is not None and bool(system.left_behind())
    except KeyboardInterrupt:  # somebody does not want to wait for them
        return True


def _guarded(words: list[str]) -> int:
    _open_streams()
    try:
        return _run(words)
    except KeyboardInterrupt:
        return INTERRUPTED
    except BrokenPipeError:
        # Nobody reads on (`... | head`). The interpreter flushes at exit and would complain once more.
        sys.stdout = None
        return 0
    except PermissionError as error:
        # The folder of a gateway lets nobody in but its user: to look whether there is a file in it fails, too.
        if error.filename is None:
            raise
        print(f"error: {error.filename}: {error.strerror}", file=sys.stderr)
        print("hint: type it as the user to whom it belongs, or with sudo", file=sys.stderr)
        return 1
    except OSError as error:
        if error.errno == errno.ENAMETOOLONG:
            print(f"error: {str(error.filename)[:NAME_SHOWN_CHARS]}...: {error.strerror}", file=sys.stderr)
            print("hint: give the name of a file, not what stands in it", file=sys.stderr)
            return 1
        # `... > FILE` on a full disk. Of a file that a verb has opened itself the error names it: that is the verb's.
        if error.errno not in _OUTPUT_ENDS or error.filename is not None:
            raise
        print(f"error: the output cannot be written: {error.strerror}", file=sys.stderr)
        print("hint: what was written is not complete; is the disk full?", file=sys.stderr)
        sys.stdout = None
        return 1


def _open_streams() -> None:
    """Started with `>&-` or `2>&-`: the next file that is opened would have that number, and get what libraries print there."""
    while (number := os.open(os.devnull, os.O_RDWR)) <= 2:
        pass
    os.close(number)
    # Python has none where it found none: print would be silent, flush and isatty would not be there.
    sys.stdout = sys.stdout or os.fdopen(1, "w")
    sys.stderr = sys.stderr or os.fdopen(2, "w")
    # A terminal that is not UTF-8 (LC_ALL=de_DE) does not know every character of a unit or a hint.
    codecs.register_error(ESCAPED, _escaped)
    for stream in (sys.stdout, sys.stderr):
        if isinstance(stream, io.TextIOWrapper) and stream.errors in ("strict", "backslashreplace"):  # Python's own choice
            stream.reconfigure(errors=ESCAPED)


def _escaped(error: UnicodeError) -> tuple[str, int]:
    """As JSON writes it: what a program reads means the same then."""
    import json

    if not isinstance(error, UnicodeEncodeError):
        raise error
    return json.dumps(error.object[error.start : error.end])[1:-1], error.end


def _run(words: Sequence[str]) -> int:
    from edge_runtime.ports import EdgeError

    args = _parser(words).parse_args(_spelled(words))
    try:
        status = int(args.run(args))
        sys.stdout.flush()
        return status
    except EdgeError as error:
        print(f"error: {error.cause}", file=sys.stderr)
        if error.hint:
            print(f"hint: {error.hint}", file=sys.stderr)
        return 1


def _spelled(words: Sequence[str]) -> list[str]:
    if not words or words[0] not in VERBS:
        return list(words)
    spelled = getattr(_module(words[0]), "spelled", list)
    return [words[0], *spelled(words[1:])]


def _module(verb: str) -> Any:
    return importlib.import_module(f"edge_runtime.cli.{verb.replace('-', '_')}")


def _parser(words: Sequence[str]) -> argparse.ArgumentParser:
    """With the one verb that is asked for, or with all of them where --help (or a wrong word) has to show them."""
    parser = _Parser(
        prog="edge-runtime",
        description="Offline-first runtime for industrial and vehicle gateways: PLC in, anomaly out, nothing lost.",
    )
    parser.add_argument("--version", action=_Version, nargs=0, help="show the version and exit")
    verbs = parser.add_subparsers(metavar="VERB", required=True, title="verbs")
    for name in words[:1] if words and words[0] in VERBS else VERBS:
        verb = cast(Verb, _module(name))
        sub = verbs.add_parser(name, help=verb.SUMMARY, description=verb.SUMMARY)
        verb.arguments(sub)
        sub.set_defaults(run=verb.run)
    return parser


class _Parser(argparse.ArgumentParser):
    """Also of each verb. Options may stand between its words: `audit point press/speed --at -5m data`. Without it Python before
    3.12.8 takes an optional word as left out as soon as an option comes after the word before it, and then refuses it."""

    _mixing = False

    def parse_known_args(self, args: Any = None, namespace: Any = None) -> Any:
        if self._mixing or self._subparsers is not None:
            return super().parse_known_args(args, namespace)
        self._mixing = True
        try:
            return self.parse_known_intermixed_args(args, namespace)
        finally:
            self._mixing = False


class _Version(argparse.Action):
    def __call__(self, parser: argparse.ArgumentParser, *_: object) -> None:
        from importlib.metadata import version

        print(f"edge-runtime {version('edge-runtime')}")
        parser.exit()
