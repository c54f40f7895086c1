"""edge-runtime outbox: what is on disk and not yet delivered. Looks only; works while a gateway runs (`import` does neither)."""

from __future__ import annotations

import argparse
import contextlib
import sys
from collections.abc import Iterable, Iterator, Sequence
from pathlib import Path
from typing import TYPE_CHECKING, TextIO

if TYPE_CHECKING:
    from edge_runtime.cli.outbox_look import LaneLook, Look
    from edge_runtime.records import Lane, Record

SUMMARY = "show what waits in an outbox, export its records, or take in that of a dead gateway"

_LANES = ("gap", "event", "result", "sample")
_CLASSES = ("gateway", "site", "cloud")
COLUMNS = ("epoch", "lane", "seq", "source", "boot", "mono_ns", "wall_ns", "synced", "unique", "body")


def arguments(parser: argparse.ArgumentParser) -> None:
    # argparse would show `export` as a must
    parser.usage = "edge-runtime outbox [-h] [--json] FILE [export [-h] ...] | edge-runtime outbox import OLD.db --into CONFIG"
    parser.add_argument("file", type=_file, metavar="FILE", help="the outbox's file: outbox.db in the gateway's data_dir")
    parser.add_argument("--json", action="store_true", help="print JSON")
    verbs = parser.add_subparsers(metavar="export, import", dest="what")
    export = verbs.add_parser(
        "export",
        prog="edge-runtime outbox FILE export",
        help="its records as rows, each with its id; nothing is taken out of the outbox",
    )
    export.add_argument("--format", choices=("csv", "jsonl"), default="jsonl", help="CSV, or JSON lines (default)")
    export.add_argument("--lane", choices=_LANES, action="append", help="only this kind; may be given more than once")
    export.add_argument(
        "--privacy", choices=_CLASSES, action="append", help="only of pipelines of this class; may be given more than once"
    )
    export.add_argument("-o", "--output", type=Path, metavar="FILE", help="write here instead of to standard output")
    taking = verbs.add_parser(
        "import", prog="edge-runtime outbox import", help="takes in the outbox of a gateway that is dead: no loss, nothing twice"
    )
    taking.add_argument("old", type=Path, metavar="OLD.db", help="outbox.db of the old gateway's data_dir; it is not changed")
    taking.add_argument(
        "--into",
        type=Path,
        required=True,
        metavar="CONFIG",
        help="configuration of the gateway that took its name, or its outbox.db",
    )
    taking.add_argument("--json", action="store_true", default=argparse.SUPPRESS, help="print JSON")


def _file(word: str) -> Path:
    """`import` comes before its file, so `export` is typed there, too: of an option behind it argparse would say nonsense."""
    if word == "export" and not Path(word).exists():
        raise argparse.ArgumentTypeError("it stands before `export`: edge-runtime outbox FILE export [--format csv] ...")
    return Path(word)


def spelled(words: Sequence[str]) -> list[str]:
    """`import OLD.db`, which looks into no file, stands where a FILE does."""
    return ["import", *words] if list(words[:1]) == ["import"] else list(words)


def run(args: argparse.Namespace) -> int:
    """0. Raises EdgeError."""
    import importlib.util

    from edge_runtime.board.system import SystemClock
    from edge_runtime.cli import outbox_look, terminal
    from edge_runtime.ports import EdgeError
    from edge_runtime.records import LANES

    if args.what == "import":
        from edge_runtime.cli import outbox_import

        return outbox_import.run(args)
    if not importlib.util.find_spec("sqlite_utils"):
        raise EdgeError("`edge-runtime outbox` needs sqlite-utils", "pip install 'edge-runtime[cli]'")
    if args.what == "export":
        kinds, classes = args.lane or _LANES, args.privacy or _CLASSES
        lanes = [lane for lane in LANES if lane.kind in kinds and lane.privacy in classes]
        _export(args.file, lanes, args.format, args.output)
        return 0
    found = outbox_look.look(args.file, SystemClock())
    if args.json:
        import msgspec

        terminal.emit_json(msgspec.to_builtins(found))
    else:
        _print(found)
    return 0


# --- a look ----------------------------------------------------------------------------------------------------------


def _print(found: Look) -> None:
    from edge_runtime.cli import terminal

    rows = [(lane.lane.value, lane.records, _age(lane.oldest_s), lane.head, _takers(found, lane)) for lane in found.lanes]
    print(f"{found.file}: {found.size_bytes:,} bytes on disk")
    terminal.table(("lane", "records", "oldest", "last seq", "for"), rows, "records")
    _print_sinks(found)
    if found.gaps:
        terminal.table(("lane", "lost", "why"), [(gap.lane, gap.count, gap.reason) for gap in found.gaps], "gaps")
    if found.refused:
        rows_refused = [(each.sink, each.lane, each.count, each.reason) for each in found.refused]
        terminal.table(("sink", "lane", "records", "why"), rows_refused, "refused by a far end")
    if found.journal_rows:
        terminal.table(("device", "samples"), list(found.journal_rows.items()), "input journal")
    print(f"epochs: {', '.join(found.epochs)}")


def _takers(found: Look, lane: LaneLook) -> str | None:
    if not found.sinks:  # there are none, or the file does not tell them
        return None
    return ", ".join(each.sink for each in found.sinks if lane.lane in each.lanes) or "no sink: they stay here"


def _print_sinks(found: Look) -> None:
    """What waits for each, by kind."""
    from edge_runtime.cli import terminal
    from edge_runtime.records import KINDS

    def waiting(sink: str, kind: Lane) -> int | None:
        counts = [lane.waiting[sink] for lane in found.lanes if lane.lane.kind is kind and sink in lane.waiting]
        return sum(counts) if counts else None

    withheld: dict[str, int] = {each.sink: each.withheld for each in found.sinks}
    delivery: dict[str, str | None] = {each.sink: each.delivery for each in found.sinks}
    if not delivery:  # a file that does not tell its sinks: those that have acknowledged something
        delivery = dict.fromkeys(sorted({sink for lane in found.lanes for sink in lane.waiting}))
    rows = [(sink, *(waiting(sink, kind) for kind in KINDS), withheld.get(sink), delivery[sink]) for sink in delivery]
    if not rows:
        return
    terminal.table(("sink", *(kind.value for kind in KINDS), "withheld", "delivery"), rows, "waiting for a sink")
    if any(count is None for row in rows for count in row[1:-2]):
        unknown = "" if found.sinks else ", or has acknowledged nothing of it"
        print(f"-: the sink does not take this lane{unknown}")
    if any(withheld.values()):
        print("withheld: it never gets these: the `privacy` of their pipelines does not allow its `reach`")


def _age(seconds: float | None) -> str | None:
    """12 s, 3 min, 5 h, 2 d."""
    if seconds is None:
        return None
    for unit_s, unit in ((86_400, "d"), (3_600, "h"), (60, "min")):
        if seconds >= 2 * unit_s:
            return f"{seconds / unit_s:.0f} {unit}"
    return f"{seconds:.0f} s"


# --- export ----------------------------------------------------------------------------------------------------------


def _export(file: Path, lanes: list[Lane], form: str, output: Path | None) -> None:
    from edge_runtime.cli import outbox_look
    from edge_runtime.ports import EdgeError

    if output is not None and output.exists() and any(output.samefile(each) for each in outbox_look.files(file)):
        raise EdgeError(f"{output}: belongs to the outbox that is to be exported", "write into another file")
    write = _write_csv if form == "csv" else _write_jsonl
    total = outbox_look.count(file, lanes)
    rows = _with_progress(outbox_look.records(file, lanes), total, to_terminal=output is None and sys.stdout.isatty())
    try:
        if output is None:
            write(rows, sys.stdout)
            sys.stdout.flush()
            return
        with output.open("w", newline="", encoding="utf-8") as out:
            write(rows, out)
    except BrokenPipeError:  # nobody reads on: main() knows
        raise
    except OSError as error:
        if output is None:
            sys.stdout = None  # the interpreter would write the rest of it once more at exit
        raise EdgeError(f"{output or 'standard output'}: {error.strerror}", "what is written so far is not complete") from None


def _write_csv(records: Iterable[Record], out: TextIO) -> None:
    import csv

    writer = csv.writer(out, lineterminator="\n")
    writer.writerow(COLUMNS)
    for each in records:
        stamp = each.stamp
        writer.writerow(
            (each.epoch, each.lane.value, each.seq, each.source, stamp.boot, stamp.mono_ns, stamp.wall_ns, int(stamp.synced),
             each.unique, each.body.decode())
        )  # fmt: skip


def _write_jsonl(records: Iterable[Record], out: TextIO) -> None:
    """The body stands in it as JSON, byte for byte."""
    import msgspec

    from edge_runtime.records import to_json

    for each in records:
        row = {"epoch": each.epoch, "lane": each.lane, "seq": each.seq, "source": each.source}
        stamp = msgspec.to_builtins(each.stamp)
        row |= dict(zip(("boot", "mono_ns", "wall_ns", "synced"), stamp, strict=True))
        out.write(to_json(row | {"unique": each.unique, "body": msgspec.Raw(each.body)}).decode() + "\n")


def _with_progress(records: Iterable[Record], total: int, *, to_terminal: bool) -> Iterator[Record]:
    """A bar on standard error, if that is a terminal and the rows do not go there too."""
    with contextlib.suppress(ImportError):
        if sys.stderr.isatty() and not to_terminal:
            from rich.console import Console
            from rich.progress import track

            return iter(track(records, "exporting", total, console=Console(stderr=True)))
    return iter(records)
