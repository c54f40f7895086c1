"""Reads an audit log whole, through its segments and its database, and says whether it is what was written. Reads only, a page
at a time: it works while a gateway writes, and while that moves a segment away."""

from __future__ import annotations

from collections.abc import Iterator, Sequence
from itertools import dropwhile
from pathlib import Path

import msgspec

from edge_runtime.control import audit_segments
from edge_runtime.control.audit_chain import Broken, Chain, Head, Row
from edge_runtime.control.audit_file import NAME, REPLACED, rows_from, segments_after
from edge_runtime.ports import Database

READ_ROWS = 1000
"""At a time: one long transaction would hold up the checkpoint, and the WAL would grow."""


class Report(msgspec.Struct, frozen=True):
    """A log that holds. `beside`: files that are no part of the chain, and that somebody should look at."""

    entries: int
    head: str
    segments: list[str]
    beside: list[str]


def entries(
    database: Database, folder: Path, skipped: list[Broken] | None = None, *, since: int = 1
) -> Iterator[tuple[Row, str]]:
    """(entry, file that it is in), from n = `since` on, oldest first, not checked. Raises Broken for what cannot be read at all;
    of a segment it is put into `skipped` where that is given, and the next one is read."""
    n, done = since - 1, 0
    while True:
        for number, file, first, last, _ in segments_after(database, done):
            done = number
            if last <= n:
                continue
            try:
                for row in _segment(folder / Path(file).name, first, n + 1):
                    yield row, file
                    n = row.n
                if n < last:
                    raise Broken(n + 1, file, f"entries {n + 1} to {last} are missing: the segment's file ends before them")
            except Broken as broken:
                if skipped is None:
                    raise
                skipped.append(broken)
                n = last
        page = rows_from(database, n + 1, READ_ROWS)
        if page and page[0].n != n + 1 and segments_after(database, done):
            continue  # moved away since we looked
        if not page:
            return
        for row in page:
            yield row, NAME
        n = page[-1].n


def _segment(path: Path, first: int, wanted: int) -> Iterator[Row]:
    """From the entry `wanted` on: what comes before was read in the database, before it was moved away."""
    return dropwhile(lambda row: row.n < wanted, audit_segments.read(path, first))


def verify(database: Database, folder: Path, heads: Sequence[Head] = (), *, since: int = 1) -> Report:
    """`heads`: what was seen elsewhere. `since`: entries before are not looked at. Raises Broken, which names the first
    entry that is not what was written."""
    chain, seen, files = Chain(), {head.n: head for head in heads}, dict[str, None]()
    for row, file in entries(database, folder, since=since):
        if since > 1 and not files:
            chain = Chain(Head(since - 1, row.previous))
        chain.take(row, file)
        files[file] = None
        _compare(seen, row, file)
        if row.n == 1 and row.outcome == REPLACED.outcome and row.subject == REPLACED.subject:
            raise Broken(1, file, "the log began anew after its file was damaged: what came before is not in it", row.why)
    check_end(chain.head, heads)
    beside = [each.name for each in sorted(folder.glob("audit*")) if ".aside-" in each.name or ".corrupt-" in each.name]
    return Report(chain.head.n - since + 1 if files else 0, str(chain.head), [file for file in files if file != NAME], beside)


def verify_segment(path: Path, heads: Sequence[Head] = ()) -> tuple[Row, Row]:
    """A segment's file by itself: its first entry and its last. What comes before and after it is not looked at."""
    rows = audit_segments.read(path, 1)
    first = last = next(rows, None)
    if first is None or last is None:
        raise Broken(1, path.name, "the segment's file holds no entries")
    chain, seen = Chain(Head(first.n - 1, first.previous)), {head.n: head for head in heads}
    chain.take(first, path.name)
    for last in rows:
        chain.take(last, path.name)
        _compare(seen, last, path.name)
    return first, last


def _compare(seen: dict[int, Head], row: Row, file: str) -> None:
    head = seen.get(row.n)
    if head and head.hash != row.hash:
        cause = f"entry {row.n} is not the one that was seen as head: the log was written anew from there or from before"
        raise Broken(row.n, file, cause, f"seen was {head.hash[:16]}…, here is {row.hash[:16]}…")


def check_end(end: Head, heads: Sequence[Head]) -> None:
    """Whether entries are missing at the end; without a head from elsewhere nobody can tell."""
    newest = max(heads, key=lambda head: head.n, default=end)
    if newest.n > end.n:
        cause = f"entries {end.n + 1} to {newest.n} are missing at the end: entry {newest.n} was seen as head"
        raise Broken(end.n + 1, NAME, cause, "cut off, or an older copy was put in its place")
