"""edge-runtime audit: who changed what on a gateway, and whether the log of it is still what was written. Reads only; works while
the gateway runs."""

from __future__ import annotations

import argparse
import sys
from collections import deque
from collections.abc import Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

if TYPE_CHECKING:
    from edge_runtime.cli.audit_look import Action, Dates, Found
    from edge_runtime.control.audit_chain import Broken, Row
    from edge_runtime.ports import Database

SUMMARY = "show who changed what on a gateway, and verify that the log of it was not edited"

_TIMES = ("--at", "--since", "--until")
_KINDS = ("command", "configuration", "rule", "start", "trust")
_WHERE = "audit.db, the gateway's data_dir, or its configuration (default: the current folder)"


def arguments(parser: argparse.ArgumentParser) -> None:
    verbs = parser.add_subparsers(metavar="WHAT", required=True, dest="what")
    show = verbs.add_parser("show", help="entries, the newest last")
    show.add_argument("where", nargs="?", type=Path, default=Path(), metavar="WHERE", help=_WHERE)
    show.add_argument("--last", type=int, default=50, metavar="N", help="at most so many, the newest (default: %(default)s)")
    show.add_argument("--kind", choices=_KINDS, action="append", help="only this kind; may be given more than once")
    show.add_argument("--subject", help="only what is about this: 'point press/speed', config, 'model wear'")
    show.add_argument("--since", metavar="T", help="not before: 2026-11-21T10:00:00Z, -5m, @12:30")
    show.add_argument("--until", metavar="T", help="not after")
    point = verbs.add_parser("point", help="who or what last wrote a point before an instant, and what was done around it")
    point.add_argument("point", metavar="DEVICE/POINT")
    point.add_argument("where", nargs="?", type=Path, default=Path(), metavar="WHERE", help=_WHERE)
    point.add_argument("--at", default="", metavar="T", help="2026-11-21T10:00:00Z, -5m, @12:30 (default: now)")
    verify = verbs.add_parser("verify", help="0: the log holds; 1: it does not, and the first broken entry is named")
    verify.add_argument("where", nargs="?", type=Path, default=Path(), metavar="WHERE", help=_WHERE + ", or a segment's file")
    verify.add_argument(
        "--head", action="append", default=[], metavar="N:HASH",
        help="a head that was seen elsewhere: notices a log that was cut off or written anew; may be given more than once",
    )  # fmt: skip
    verify.add_argument("--from", type=int, default=1, dest="since", metavar="N", help="do not look at what comes before entry N")
    for verb in (show, point, verify):
        verb.add_argument("--json", action="store_true", help="print JSON")


def spelled(words: Sequence[str]) -> list[str]:
    """`--at -5m` as `--at=-5m`: else -5m would be taken for an option."""
    found: list[str] = []
    for word in words:
        if found and found[-1] in _TIMES and not word.startswith("--"):
            found[-1] += f"={word}"
        else:
            found.append(word)
    return found


def run(args: argparse.Namespace) -> int:
    """1 where the log does not hold. Raises EdgeError."""
    return {"show": _show, "point": _point, "verify": _verify}[args.what](args)


# --- verify ----------------------------------------------------------------------------------------------------------


def _verify(args: argparse.Namespace) -> int:
    from edge_runtime.cli import terminal
    from edge_runtime.control.audit_chain import Broken, Head

    heads = [Head.parse(text) for text in args.head]
    try:
        answer = _verified_segment(args.where, heads) if args.where.suffix == ".gz" else _verified(args.where, heads, args.since)
    except Broken as broken:
        if not args.json:
            raise
        terminal.emit_json({"holds": False, "entry": broken.n, "cause": broken.cause, "hint": broken.hint})
        return 1
    if args.json:
        terminal.emit_json({"holds": True, **answer})
        return 0
    for name, said in answer.items():
        print(f"{name}: {', '.join(said) if isinstance(said, list) else said}")
    if not heads:
        print("holds as it stands; only a head that was seen elsewhere (--head) shows entries that were cut off at the end")
    return 0


def _verified(where: Path, heads: list[Any], since: int) -> dict[str, Any]:
    import msgspec

    from edge_runtime.cli import audit_look
    from edge_runtime.control import audit_check

    path = audit_look.database_of(where)
    with audit_look.opened(path) as database:
        report = audit_check.verify(database, path.parent, heads, since=since)
    return {"file": str(path), **msgspec.to_builtins(report)}


def _verified_segment(path: Path, heads: list[Any]) -> dict[str, Any]:
    from edge_runtime.control import audit_check

    first, last = audit_check.verify_segment(path, heads)
    return {"file": str(path), "entries": last.n - first.n + 1, "continues": f"{first.n - 1}:{first.previous}",
            "head": f"{last.n}:{last.hash}"}  # fmt: skip


# --- show and point --------------------------------------------------------------------------------------------------


def _rows(database: Database, folder: Path, broken: list[Broken]) -> Iterator[Row]:
    from edge_runtime.control import audit_check

    broken.clear()
    return (row for row, _ in audit_check.entries(database, folder, broken))


def _show(args: argparse.Namespace) -> int:
    from edge_runtime.board.system import SystemClock
    from edge_runtime.cli import audit_look, terminal

    now = SystemClock().now()
    since, until = (audit_look.instant(text, now.wall_ns) if text else None for text in (args.since, args.until))
    broken: list[Broken] = []
    path = audit_look.database_of(args.where)
    with audit_look.opened(path) as database:
        dates = audit_look.Dates(now, _rows(database, path.parent, broken))

        def wanted(row: Row) -> bool:
            at = dates.of(row)
            return (
                (not args.kind or row.kind in args.kind)
                and (not args.subject or row.subject == args.subject)
                and (at is None or ((since is None or at >= since) and (until is None or at <= until)))
            )

        found = deque(filter(wanted, _rows(database, path.parent, broken)), maxlen=max(0, args.last))
    if args.json:
        terminal.emit_json([audit_look.told(row, dates) for row in found])
    else:
        columns = ("n", "when", "kind", "who", "via", "subject", "before", "requested", "read back", "outcome", "why")
        terminal.table(columns, [_cells(row, dates) for row in found], str(path))
    return _status(broken)


def _cells(row: Row, dates: Dates) -> tuple[object, ...]:
    from edge_runtime.cli.audit_look import plain

    outcome = f"{row.outcome} (of {row.completes})" if row.completes else row.outcome
    texts = (row.kind, row.actor, row.via, row.subject, row.before, row.requested, row.read_back, outcome, row.why)
    return (row.n, dates.text(row), *map(plain, texts))


def _point(args: argparse.Namespace) -> int:
    from edge_runtime.board.system import SystemClock
    from edge_runtime.cli import audit_look, terminal

    now = SystemClock().now()
    at_ns = audit_look.instant(args.at, now.wall_ns) if args.at else now.wall_ns
    broken: list[Broken] = []
    path = audit_look.database_of(args.where)
    with audit_look.opened(path) as database:
        dates = audit_look.Dates(now, _rows(database, path.parent, broken))
        rows = _rows(database, path.parent, broken)
        found = audit_look.last_write(rows, f"point {args.point}", at_ns, dates)
    if args.json:
        terminal.emit_json(_told(args.point, audit_look.iso(at_ns), found, dates))
    else:
        _print(args.point, audit_look.iso(at_ns), found, dates)
    return _status(broken)


def _told(point: str, at: str, found: Found, dates: Dates) -> dict[str, Any]:
    from edge_runtime.cli import audit_look

    def action(each: Action | None) -> Any:
        if each is None:
            return None
        return {
            **audit_look.told(each.begun, dates),
            "before": audit_look.value(each.before),
            "read_back": audit_look.value(each.last.read_back),
            "outcome": each.last.outcome,
            "why": each.why,
            "ended": audit_look.told(each.ended, dates) if each.ended else None,
        }

    others = [action(each) for each in found.others]
    return {"point": point, "at": at, "wrote": action(found.wrote), "sure": found.sure, "around": others}


def _print(point: str, at: str, found: Found, dates: Dates) -> None:
    from edge_runtime.cli import audit_look, terminal

    wrote = found.wrote
    if wrote is None:
        print(f"{point}: nothing in this log wrote it before {at}")
    else:
        row = wrote.begun
        by = audit_look.plain(f"{row.actor} via {row.via}" if row.via else row.actor)
        print(f"{point}: last written before {at} by {by}")
        said = {
            "when": dates.text(row),
            "entry": f"{row.n}" + (f", outcome in {wrote.ended.n}" if wrote.ended else ""),
            "before": wrote.before,
            "requested": row.requested,
            "read back": wrote.last.read_back,
            "outcome": audit_look.outcome(wrote),
            "why": wrote.why,
        }
        for name, text in said.items():
            print(f"  {name:9}  {audit_look.plain(text) or '-'}")
        if not found.sure:
            print("  ~: its clock was not synchronised and nothing dates its boot: it may have been after that instant")
    if found.others:
        columns = ("n", "when", "who", "before", "requested", "read back", "outcome", "why")
        cells = [(each.begun.n, dates.text(each.begun), *map(audit_look.plain, _texts(each))) for each in found.others]
        terminal.table(columns, cells, "around it")


def _texts(each: Action) -> tuple[str, ...]:
    from edge_runtime.cli import audit_look

    return each.begun.actor, each.before, each.begun.requested, each.last.read_back, audit_look.outcome(each), each.why


def _status(broken: Sequence[Broken]) -> int:
    for each in broken:
        print(f"error: {each.cause}", file=sys.stderr)
    return 1 if broken else 0
