"""Plays back a CSV file as if it were a device. Needs no outside library."""

from __future__ import annotations

import asyncio
import csv
import math
import stat
from collections import deque
from collections.abc import Callable, Iterator, Sequence
from pathlib import Path
from typing import Literal, TextIO

from edge_runtime import adapter
from edge_runtime.adapter import Adapter, Context, Exhausted, Field, LinkLost, Sample, Stamp, Unusable, Value

SKIP_ROWS = 5_000
"""While skipping rows that are done, others run after so many."""


class Replay(Adapter):
    """Plays back a CSV file with a header line: one sample a row, at a rate or as fast as possible.

    With `message_ids` each sample carries its row number, and after a reconnect the rows that were not acknowledged come
    again: a source that asks again, without a broker.
    """

    mode = "pushed"

    class Options(adapter.Options):
        file: str = Field(description="CSV file with a header line, relative to the configuration file")
        rate_hz: float = Field(
            0.0, ge=0, le=1_000_000, description="Rows a second; 0: as fast as the rest of the gateway takes them"
        )
        loop: bool = Field(False, description="At the end start again; otherwise the device is done")
        batch_rows: int = Field(100, ge=1, le=10_000, description="Most rows handed on at once")
        delimiter: str = Field(",", min_length=1, max_length=1, description="Character between two cells")
        message_ids: bool = Field(False, description="Give each row its number as message id, and ask for acknowledgements")

    class Point(adapter.Point):
        column: str | int = Field(description="Column: its name in the header line, or its number (the first is 0)")
        type: Literal["number", "text", "flag"] = Field(
            "number", description="number; text: as it stands; flag: 1/true/yes/on, 0/false/no/off"
        )

        @property
        def is_text(self) -> bool:
            return self.type == "text"

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._file: TextIO | None = None
        self._rows: Iterator[list[str]] = iter(())
        self._columns: list[tuple[str, int, Callable[[str], Value]]] = []
        self._next = _Place()
        self._done = _Place()
        self._unacknowledged: deque[_Place] = deque()
        self._played = 0
        self._started_s = 0.0

    @property
    def redelivers(self) -> bool:
        return bool(self.context.options.message_ids)

    @property
    def waits(self) -> bool:
        return not self.context.options.rate_hz

    async def open(self) -> None:
        await self.close()
        if self.redelivers:
            self._next = self._done
            self._unacknowledged.clear()
        self._rewind()
        for row in range(self._next.row):
            next(self._rows, None)
            if row % SKIP_ROWS == SKIP_ROWS - 1:
                await asyncio.sleep(0)
        self._played = 0
        self._started_s = asyncio.get_running_loop().time()

    async def read(self) -> Sequence[Sample]:
        """The rows that are due now (all of a batch where no rate is given), waiting for the first one."""
        if self._file is None:
            raise LinkLost(f"{self.context.options.file} is not open")
        rows, late_s = self.context.options.batch_rows, 0.0
        rate_hz = self.context.options.rate_hz
        if rate_hz:
            now_s = asyncio.get_running_loop().time()
            due_s = self._started_s + self._played / rate_hz
            if due_s > now_s:
                await asyncio.sleep(due_s - now_s)  # nothing was taken from the file yet: cancelling loses no row
                now_s = asyncio.get_running_loop().time()
            late_s = max(0.0, now_s - due_s)
            rows = min(rows, 1 + int(late_s * rate_hz))
        return self._take(rows, late_s)

    async def close(self) -> None:
        if self._file is not None:
            self._file.close()
            self._file = None

    async def acknowledge(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if self._unacknowledged and str(self._unacknowledged[0]) == sample.message_id:
                self._done = self._unacknowledged.popleft()

    # --- the file ----------------------------------------------------------------------------------------------------

    def _rewind(self) -> None:
        """To the first row; raises Unusable where the file or a column is not there."""
        options = self.context.options
        path: Path = self.context.resolve(options.file)
        try:
            if self._file is not None:
                self._file.close()
            if not stat.S_ISREG(path.stat().st_mode):  # opening a pipe would wait, and all others with it, until somebody writes
                raise Unusable(f"{path} is no regular file", "a pipe or a device cannot be played back: give a CSV file")
            # A byte that is no UTF-8 makes a bad cell, not a bad file.
            self._file = path.open(newline="", encoding="utf-8-sig", errors="replace")
            self._rows = _rows(self._file, options.delimiter)
            header = next(self._rows, None)
        except OSError as error:
            raise Unusable(f"{path}: {error.strerror}", "`file` is relative to the configuration file") from None
        if header is None:
            raise Unusable(f"{path} is empty", "the first line must name the columns")
        self._columns = [(p.name, _index(p.column, header, path), _PARSERS[p.type]) for p in self.context.points]

    def _take(self, count: int, late_s: float) -> list[Sample]:
        """The next rows, at least one; Exhausted when there is none. Each is stamped with the instant it was due."""
        now = self.context.clock.now()
        rate_hz = self.context.options.rate_hz or math.inf
        samples: list[Sample] = []
        while len(samples) < count:
            cells = self._next_row(wrap=not samples)
            if cells is None:
                break
            samples.append(self._sample(cells, _earlier(now, late_s - len(samples) / rate_hz)))
        if not samples:
            raise Exhausted
        self._played += len(samples)
        return samples

    def _next_row(self, *, wrap: bool) -> list[str] | None:
        try:
            cells = next(self._rows, None)
            if cells is None and wrap and self.context.options.loop:
                self._rewind()
                self._next = _Place(self._next.lap + 1)
                cells = next(self._rows, None)
        except OSError as error:
            raise LinkLost(f"{self.context.options.file}: {error.strerror}") from None
        return cells

    def _sample(self, cells: list[str], stamp: Stamp) -> Sample:
        self._next = self._next.after()
        values: dict[str, Value] = {}
        faults: dict[str, str] = {}
        for name, index, parse in self._columns:
            try:
                values[name] = parse(cells[index])
            except IndexError:
                faults[name] = f"row {self._next.row}: no such cell"
            except ValueError as error:
                faults[name] = f"row {self._next.row}: {error}"
        if not self.redelivers:
            return self.context.sample(values, faults, stamp=stamp)
        self._unacknowledged.append(self._next)
        return self.context.sample(values, faults, stamp=stamp, message_id=str(self._next))


class _Place:
    """How many times the file was played, and the row (the first below the header is 1) in this lap."""

    __slots__ = ("lap", "row")

    def __init__(self, lap: int = 0, row: int = 0) -> None:
        self.lap, self.row = lap, row

    def after(self) -> _Place:
        return _Place(self.lap, self.row + 1)

    def __str__(self) -> str:
        return f"{self.lap}.{self.row}" if self.lap else str(self.row)


def _rows(file: TextIO, delimiter: str) -> Iterator[list[str]]:
    """Rows that are not empty. One that is no CSV comes as a row without cells, so that each of its points gets a fault."""
    reader = csv.reader(file, delimiter=delimiter)
    while True:
        try:
            cells = next(reader)
        except StopIteration:
            return
        except csv.Error:
            yield []
            continue
        if cells:
            yield cells


def _index(column: str | int, header: list[str], path: Path) -> int:
    if isinstance(column, int) and 0 <= column < len(header):
        return column
    names = [name.strip() for name in header]
    if names.count(str(column)) > 1:
        raise Unusable(f"{path} has more than one column {column!r}", "give its number in the place of its name: the first is 0")
    if column in names:
        return names.index(str(column))
    # Its names are not told: of a file without a header line they are values, and this goes to the log.
    raise Unusable(f"{path} has no column {column!r}", f"it has {len(names)}, see its first line: the names stand there")


def _number(cell: str) -> Value:
    text = cell.strip()
    if not text:
        raise ValueError("empty cell")
    try:
        if "_" in text:  # Python would take 1_000
            raise ValueError
        return int(text) if text.lstrip("+-").isdecimal() else float(text)
    except ValueError:
        raise ValueError(f"{text[:40]!r} is no number") from None


def _flag(cell: str) -> Value:
    text = cell.strip().lower()
    if text in _FLAGS:
        return _FLAGS[text]
    raise ValueError(f"{text[:40]!r} is no flag" if text else "empty cell")


def _text(cell: str) -> Value:
    return cell


def _earlier(now: Stamp, seconds: float) -> Stamp:
    """`now`, so many seconds before."""
    if seconds <= 0:
        return now
    ns = int(seconds * 1e9)
    return Stamp(now.boot, now.mono_ns - ns, now.wall_ns - ns, now.synced)


_PARSERS: dict[str, Callable[[str], Value]] = {"number": _number, "text": _text, "flag": _flag}
_FLAGS: dict[str, bool] = {
    "1": True,
    "true": True,
    "yes": True,
    "on": True,
    "0": False,
    "false": False,
    "no": False,
    "off": False,
}
