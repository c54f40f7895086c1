"""`make bench`: runs every tests/bench/bench_*.py and prints one table.

    python -m tests.bench [--json] [WORD ...]        only files with one of the words in their name

A file has `main() -> list[dict]`; the keys of a row:

| key    | meaning                                                                                       |
|--------|-----------------------------------------------------------------------------------------------|
| name   | what was measured                                                                             |
| unit   | of ours and bare                                                                              |
| ours   | our figure                                                                                    |
| bare   | the same work without us, in the same run (None: nothing to compare with)                     |
| ratio  | ours / bare, 1 is "costs nothing" (None where there is no bare)                               |
| target | "<= 15" or ">= 0.8": of the ratio, or of ours where there is no ratio; "difference <= 100" is |
|        | of ours - bare; "" where there is none                                                        |

The exit status is 1 when a target is missed or a file fails. Each file runs in a process of its own, one after the other.
"""

from __future__ import annotations

import argparse
import importlib
import json
import subprocess
import sys
import traceback
from collections.abc import Sequence
from pathlib import Path
from typing import Any

HERE = Path(__file__).parent
COLUMNS = ("name", "unit", "ours", "bare", "ratio", "target", "verdict")


def run(name: str) -> list[dict[str, Any]]:
    """The rows of one file; a row that says why where it fails or cannot run here."""
    sys.path[:0] = [str(HERE), str(HERE.parent)]
    from _pytest.outcomes import Skipped

    try:
        rows: list[dict[str, Any]] = importlib.import_module(name).main()
    except Skipped as skipped:
        return [{"name": f"{name}: not run here: {skipped}", "verdict": "skipped"}]
    except Exception as error:  # noqa: BLE001 - a bench that fails must not hide the figures of the others
        traceback.print_exc()
        return [{"name": f"{name}: {type(error).__name__}: {error}", "verdict": "failed"}]
    return [row | {"verdict": row.get("verdict") or verdict(row)} for row in rows]


def verdict(row: dict[str, Any]) -> str:
    """ "ok", "missed", or "" where there is no target."""
    target = row.get("target") or ""
    if not target:
        return ""
    *subject, relation, limit = target.split()
    value = row["ours"] - row["bare"] if subject else row["ratio"] if row.get("ratio") is not None else row["ours"]
    return "ok" if (value <= float(limit) if relation == "<=" else value >= float(limit)) else "missed"


def table(rows: Sequence[dict[str, Any]]) -> str:
    cells = [COLUMNS, *(tuple(_shown(row.get(column)) for column in COLUMNS) for row in rows)]
    widths = [max(len(line[at]) for line in cells) for at in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.rjust(widths[at]) if 2 <= at <= 4 else cell.ljust(widths[at]) for at, cell in enumerate(line))
        for line in cells
    ]
    return "\n".join([lines[0].rstrip(), "  ".join("-" * width for width in widths), *(line.rstrip() for line in lines[1:])])


def _shown(value: object) -> str:
    if isinstance(value, float):
        return f"{value:,.0f}" if abs(value) >= 1_000 else f"{value:.3g}"
    return "" if value is None else f"{value:,}" if isinstance(value, int) else str(value)


def main() -> int:
    parser = argparse.ArgumentParser(prog="python -m tests.bench", description="Measures, and prints a table of ratios")
    parser.add_argument("words", nargs="*", metavar="WORD", help="only files with one of the words in their name")
    parser.add_argument("--json", action="store_true", help="print JSON")
    parser.add_argument("--one", help=argparse.SUPPRESS)
    args = parser.parse_args()
    if args.one:
        print(json.dumps(run(args.one)))
        return 0
    names = [path.stem for path in sorted(HERE.glob("bench_*.py")) if any(word in path.stem for word in args.words or [""])]
    rows: list[dict[str, Any]] = []
    for name in names:
        print(f"{name} ...", file=sys.stderr, flush=True)
        command = [sys.executable, str(HERE / "__main__.py"), "--one", name]
        rows += json.loads(subprocess.run(command, stdout=subprocess.PIPE, check=True).stdout.splitlines()[-1])
    print(json.dumps(rows, indent=1) if args.json else table(rows))
    return int(any(row["verdict"] in ("missed", "failed") for row in rows))


if __name__ == "__main__":
    sys.exit(main())
