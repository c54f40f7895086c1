"""Output for people: tables that a terminal shows nicely and a pipe gets as plain lines; JSON for programs."""

from __future__ import annotations

import json
import sys
from collections.abc import Sequence
from typing import Any


def table(columns: Sequence[str], rows: Sequence[Sequence[object]], title: str = "") -> None:
    """Numbers stand right. On a terminal with rich it is drawn with lines; else columns of plain text, nothing cut off."""
    cells = [[_text(cell) for cell in row] for row in rows]
    right = [bool(rows) and all(isinstance(row[at], int | float) for row in rows) for at in range(len(columns))]
    if sys.stdout.isatty() and _rich_table(columns, cells, right, title):
        return
    widths = [max(len(cell) for cell in column) for column in zip(columns, *cells, strict=True)]
    if title:
        print(title)
    for line in (columns, *cells):
        pairs = zip(line, widths, right, strict=True)
        print("  ".join(cell.rjust(width) if left_pad else cell.ljust(width) for cell, width, left_pad in pairs).rstrip())


def _rich_table(columns: Sequence[str], cells: Sequence[Sequence[str]], right: Sequence[bool], title: str) -> bool:
    try:
        from rich.console import Console
        from rich.table import Table
        from rich.text import Text
    except ImportError:
        return False
    drawn = Table(title=title or None, title_justify="left")
    for column, numbers in zip(columns, right, strict=True):
        drawn.add_column(column, justify="right" if numbers else "left", overflow="fold")
    for line in cells:
        drawn.add_row(*(Text(cell) for cell in line))
    Console().print(drawn)
    return True


def _text(cell: object) -> str:
    return (
        "-" if cell is None or cell == "" else f"{cell:,}" if isinstance(cell, int) and not isinstance(cell, bool) else str(cell)
    )


def emit_json(value: Any) -> None:
    """One JSON document on standard output."""
    print(json.dumps(value, indent=2, ensure_ascii=False))
