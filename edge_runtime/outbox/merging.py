"""Brings what an outbox holds itself into the new one that was made of an old one: see importing.py. With two tables more than
other outboxes have: the epochs that were taken in, so that they are not taken in twice, and how far."""

from __future__ import annotations

from collections.abc import Iterator, Mapping, Sequence
from typing import Any

from edge_runtime.outbox import intervals, tables
from edge_runtime.outbox.epochs import Epoch, span
from edge_runtime.ports import Database, EdgeError, Ranges
from edge_runtime.records import LANES, Lane, Privacy

READ_ROWS = 500
_OF_DEVICE = ("journal", "seen", "positions")


class NoPlace(EdgeError):
    """The outbox has records of its own where the old ones belong."""


class Journal:
    """The old journal: samples of windows that were open. `points`: of each device that is read, how many (None: take all)."""

    def __init__(self, new: Database, points: Mapping[str, int] | None) -> None:
        self._new = new
        self.taken = tables.journal_counts(new)
        self.left: dict[str, tuple[int, str]] = {}
        for device in journal_devices(new):
            if points is None:
                continue
            if device not in points:
                self.leave(device, "the configuration has no such device")
            elif any(len(sample.values) != points[device] for sample in tables.read_journal(new, device, 0, 1)):
                self.leave(device, "the device has other points now")

    def keep_off(self, own: Database) -> None:
        """A device that has been read here already goes on from there: nobody would fill the hole in time before."""
        for device in journal_devices(own):
            self.leave(device, "the device is read here already")

    def leave(self, device: str, why: str) -> None:
        """Not taken, and said."""
        count = tables.journal_counts(self._new).get(device, 0)
        for table in _OF_DEVICE:
            self._new.execute(f"DELETE FROM {table} WHERE device = ?", (device,))
        if count:
            self.left[device] = (count, why)
        self.taken = tables.journal_counts(self._new)


def merge(new: Database, own: Database, epoch: str) -> None:
    """`epoch`: for records that get new numbers. Raises NoPlace: nothing of `own` was changed."""
    old_heads, heads = tables.heads(new), tables.heads(own)
    acknowledged, sinks = tables.acknowledged(own), tables.sinks(own)
    lows = {lane: _low(own, lane, _delivered(lane, acknowledged, sinks, heads)) for lane in LANES}
    moved = [lane for lane in LANES if lows[lane] and lows[lane] <= old_heads[lane] and lane.privacy is Privacy.GATEWAY]
    if wrong := [lane for lane in LANES if lows[lane] and lows[lane] <= old_heads[lane] and lane not in moved]:
        raise NoPlace(
            f"this gateway has records of its own that wait ({', '.join(wrong)}), with numbers of the old ones",
            "let it run until they are delivered (`edge-runtime outbox` shows it), stop it, and try again",
        )
    for each in tables.epochs(own):
        after = {lane: max(each.after.get(lane, 0), old_heads[lane]) for lane in LANES}
        tables.add_epoch(new, Epoch(each.name, after))
    boots = _boots(new, own)
    for lane in LANES:
        if lane not in moved and lows[lane]:
            for rows in _rows(own, lane, lows[lane]):
                _insert_rows(new, lane, [(*row[:3], boots[row[3]], *row[4:]) for row in rows])
    tables.set_heads(new, {lane: max(old_heads[lane], heads[lane]) for lane in LANES})
    _renumber(new, own, moved, epoch, boots)
    _acknowledged(new, acknowledged, old_heads, heads)
    _plain(new, own, sinks)
    _add_journal(new, own)


def _delivered(
    lane: Lane, acknowledged: Mapping[tuple[str, Lane], Ranges], sinks: Mapping[str, Any], heads: Mapping[Lane, int]
) -> Ranges:
    """What every sink has that takes the lane."""
    takers = [sink for sink, (lanes, _) in sinks.items() if lane in lanes]
    found: Ranges = ((1, heads[lane]),) if takers and heads[lane] else ()
    for sink in takers:
        found = intervals.intersection(found, acknowledged.get((sink, lane), ()))
    return found


def _low(own: Database, lane: Lane, delivered: Ranges) -> int:
    """The lowest seq that still waits; 0: none."""
    for first, last in intervals.missing(delivered, 1, tables.ROW_MAX):
        found = tables.rows(own, f"SELECT min(seq) FROM lane_{lane} WHERE seq BETWEEN ? AND ?", first, last)[0][0]
        if found is not None:
            return int(found)
    return 0


def _rows(own: Database, lane: Lane, first: int) -> Iterator[list[tuple[Any, ...]]]:
    while rows := tables.rows(own, f"SELECT * FROM lane_{lane} WHERE seq >= ? ORDER BY seq LIMIT ?", first, READ_ROWS):
        yield rows
        first = rows[-1][0] + 1


def _insert_rows(new: Database, lane: Lane, rows: Sequence[tuple[Any, ...]]) -> None:
    new.executemany(f"INSERT INTO lane_{lane} VALUES (?,?,?,?,?,?,?,?,?)", rows)


def _boots(new: Database, own: Database) -> dict[int, int]:
    """Number of a boot there -> here."""
    found = {}
    for number, (boot, offset_ns) in tables.boots(own).items():
        found[number] = tables.boot_number(new, boot)
        if offset_ns is not None:
            tables.set_boot_offset(new, boot, offset_ns)
    return found


def _renumber(new: Database, own: Database, lanes: list[Lane], epoch: str, boots: Mapping[int, int]) -> None:
    """Records that never leave this gateway: after the old ones, under an epoch of their own."""
    if not lanes:
        return
    heads = tables.heads(new)
    tables.add_epoch(new, Epoch(epoch, dict(heads)))
    number = tables.epoch_number(epoch)
    for lane in lanes:
        for rows in _rows(own, lane, 1):
            renumbered = [(heads[lane] + at, number, row[2], boots[row[3]], *row[4:]) for at, row in enumerate(rows, 1)]
            _insert_rows(new, lane, renumbered)
            heads[lane] += len(rows)
    tables.set_heads(new, heads)


def _acknowledged(
    new: Database, own: Mapping[tuple[str, Lane], Ranges], old_heads: Mapping[Lane, int], heads: Mapping[Lane, int]
) -> None:
    """Of the old seqs what the old one says, of those above what the own one says."""
    old = tables.acknowledged(new)
    for sink, lane in dict.fromkeys([*old, *own]):
        below = intervals.clip(old.get((sink, lane), ()), 1, old_heads[lane])
        above = intervals.clip(own.get((sink, lane), ()), old_heads[lane] + 1, max(heads[lane], old_heads[lane]))
        tables.set_acknowledged(new, sink, lane, intervals.union(below, above))


def _plain(new: Database, own: Database, sinks: Mapping[str, tuple[tuple[Lane, ...], bool]]) -> None:
    if sinks:
        tables.set_sinks(
            new, {sink: lanes for sink, (lanes, _) in sinks.items()}, [s for s, (_, sure) in sinks.items() if not sure]
        )
    new.executemany("INSERT OR IGNORE INTO refused VALUES (?,?,?,?,?,?)", tables.rows(own, "SELECT * FROM refused"))
    new.executemany("INSERT OR IGNORE INTO imported_upto VALUES (?,?,?)", tables.rows(own, "SELECT * FROM imported_upto"))


def _add_journal(new: Database, own: Database) -> None:
    """Its rows come after the old ones."""
    shift = tables.journal_last(new)
    for row, device, sample in own.execute("SELECT row, device, sample FROM journal ORDER BY row"):
        new.execute("INSERT INTO journal (row, device, sample) VALUES (?,?,?)", (row + shift, device, sample))
    for device, message_id, row in own.execute("SELECT device, message_id, row FROM seen"):
        new.execute("INSERT OR REPLACE INTO seen (device, message_id, row) VALUES (?,?,?)", (device, message_id, row + shift))
    for (pipeline, device), (row, state) in tables.positions(own).items():
        tables.set_position(new, pipeline, device, row + shift, state)
    tables.set_journal_last(new, tables.journal_last(own) + shift)


def journal_devices(database: Database) -> list[str]:
    """That have a sample, a message id or a position."""
    return [device for (device,) in tables.rows(database, " UNION ".join(f"SELECT device FROM {each}" for each in _OF_DEVICE))]


# --- what was taken in -----------------------------------------------------------------------------------------------


def create_imported(database: Database) -> None:
    database.execute("CREATE TABLE IF NOT EXISTS imported (number INTEGER PRIMARY KEY, epoch INTEGER NOT NULL UNIQUE)")
    columns = "epoch INTEGER, lane TEXT, seq INTEGER, PRIMARY KEY (epoch, lane)"
    database.execute(f"CREATE TABLE IF NOT EXISTS imported_upto ({columns}) WITHOUT ROWID")


def imported(database: Database) -> list[str]:
    """Epochs of other outboxes, oldest first."""
    return [tables.epoch_text(epoch) for (epoch,) in tables.rows(database, "SELECT epoch FROM imported ORDER BY number")]


def note_imported(database: Database, names: Sequence[str], last: str, heads: Mapping[Lane, int]) -> None:
    """`last`: the newest epoch of what is taken in; `heads`: how far it had come then."""
    numbers = [(tables.epoch_number(name),) for name in names]
    database.executemany("INSERT OR IGNORE INTO imported (epoch) VALUES (?)", numbers)
    upto = [(tables.epoch_number(last), lane.value, seq) for lane, seq in heads.items()]
    database.executemany("INSERT OR REPLACE INTO imported_upto VALUES (?,?,?)", upto)


def came_later(new: Database, own: Database, heads: Mapping[Lane, int]) -> int:
    """Records of `new` that came after the copy of it which `own` has taken in; 0 where `own` did not note how far that was."""
    found = 0
    epochs = tables.epochs(new)
    for number, lane, seq in tables.rows(own, "SELECT epoch, lane, seq FROM imported_upto"):
        at = next((at for at, each in enumerate(epochs) if each.name == tables.epoch_text(number)), None)
        if at is not None:
            first, last = span(epochs, at, Lane(lane), heads[Lane(lane)])
            found += max(0, last - max(seq, first - 1))
    return found


def delete_epoch_rows(database: Database, epoch: str) -> None:
    """An epoch with all its records."""
    for lane in LANES:
        database.execute(f"DELETE FROM lane_{lane} WHERE epoch = ?", (tables.epoch_number(epoch),))
    tables.forget_epoch(database, epoch)
