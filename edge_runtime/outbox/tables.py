"""Every SQL statement on the outbox's tables (see schema.py), but those of inserts.py. Plain functions of a connection, no state
but SQLite's.
"""

from __future__ import annotations

from collections.abc import Iterable, Mapping, Sequence
from typing import Any

import msgspec

from edge_runtime.outbox.database import corrupt
from edge_runtime.outbox.epochs import Epoch
from edge_runtime.outbox.schema import SINKS
from edge_runtime.ports import Database, Ranges
from edge_runtime.records import LANES, Gap, Lane, Record, Sample, Stamp

ROW_MAX = 2**62
"""Past every row and seq."""

LEAF_BYTES_MAX = 4_000
RECORD_TYPES = (int, int, str, int, int, int, int, str, bytes)
"""Of a row of lane_*, in the order of its columns. A flipped bit may turn one into another without SQLite noticing."""

_encode = msgspec.msgpack.Encoder().encode
decode_sample = msgspec.msgpack.Decoder(Sample).decode


def rows(database: Database, sql: str, *parameters: Any) -> list[tuple[Any, ...]]:
    return list(database.execute(sql, parameters))


# --- epochs and boots ------------------------------------------------------------------------------------------------


def epoch_text(number: int) -> str:
    return f"{number & 2**64 - 1:016x}"


def epoch_number(epoch: str) -> int:
    """16 hex digits -> SQLite's signed 64 bits."""
    number = int(epoch, 16)
    return number - 2**64 if number >= 2**63 else number


def add_epoch(database: Database, epoch: Epoch) -> None:
    after = msgspec.json.encode(epoch.after).decode()
    database.execute("INSERT INTO epochs (epoch, after) VALUES (?, ?)", (epoch_number(epoch.name), after))


def epochs(database: Database) -> list[Epoch]:
    """Oldest first."""
    found = rows(database, "SELECT epoch, after FROM epochs ORDER BY number")
    return [Epoch(epoch_text(epoch), msgspec.json.decode(after, type=dict[Lane, int])) for epoch, after in found]


def first_seqs(database: Database, lane: Lane) -> dict[str, int]:
    """The least seq of each epoch that has rows in a lane. Reads all of them."""
    found = rows(database, f"SELECT epoch, min(seq) FROM lane_{lane} GROUP BY epoch ORDER BY min(seq)")
    return {epoch_text(epoch): seq for epoch, seq in found}


def forget_epoch(database: Database, epoch: str) -> None:
    database.execute("DELETE FROM epochs WHERE epoch = ?", (epoch_number(epoch),))


def rename_epoch(database: Database, old: str, new: Epoch) -> None:
    """Records of `old` past `new.after` belong to `new` from now on: their numbers were used by another run."""
    add_epoch(database, new)
    for lane in LANES:
        database.execute(
            f"UPDATE lane_{lane} SET epoch = ? WHERE epoch = ? AND seq > ?",
            (epoch_number(new.name), epoch_number(old), new.after.get(lane, 0)),
        )


def lows(database: Database) -> dict[Lane, int]:
    """The oldest seq that is still here, by lane; nothing for an empty lane."""
    found = {lane: rows(database, f"SELECT min(seq) FROM lane_{lane}")[0][0] for lane in LANES}
    return {lane: seq for lane, seq in found.items() if seq is not None}


def boot_number(database: Database, boot: str) -> int:
    database.execute("INSERT OR IGNORE INTO boots (boot) VALUES (?)", (boot,))
    return int(rows(database, "SELECT number FROM boots WHERE boot = ?", boot)[0][0])


def boots(database: Database) -> dict[int, tuple[str, int | None]]:
    return {number: (boot, offset_ns) for number, boot, offset_ns in rows(database, "SELECT number, boot, offset_ns FROM boots")}


def set_boot_offset(database: Database, boot: str, offset_ns: int) -> None:
    database.execute("UPDATE boots SET offset_ns = ? WHERE boot = ?", (offset_ns, boot))


# --- records ---------------------------------------------------------------------------------------------------------


def heads(database: Database) -> dict[Lane, int]:
    found = dict.fromkeys(LANES, 0)
    for lane, seq in rows(database, "SELECT lane, seq FROM heads"):
        found[Lane(lane)] = seq
    for lane in LANES:
        found[lane] = max(found[lane], rows(database, f"SELECT coalesce(max(seq), 0) FROM lane_{lane}")[0][0])
    # A salvaged file may have lost rows and heads. A seq that a sink has acknowledged would, given again, never be sent.
    for lane, seq in rows(database, "SELECT lane, max(last) FROM acknowledged GROUP BY lane"):
        found[Lane(lane)] = max(found[Lane(lane)], seq)
    return found


def set_heads(database: Database, changed: Mapping[Lane, int]) -> None:
    for lane, seq in changed.items():
        database.execute("INSERT OR REPLACE INTO heads (lane, seq) VALUES (?, ?)", (lane, seq))


def read(
    database: Database, lane: Lane, first: int, last: int, limit: int, known: Mapping[int, tuple[str, int | None]],
    bytes_max: int = ROW_MAX,
) -> list[Record]:  # fmt: skip
    """Records first..last, in order: at most `limit`, and no more once their bodies have `bytes_max` bytes. Where a boot's clock
    became right later, its records are re-stamped here.

    A damaged seq makes SQLite end too early, without an error. Who reads would take what is behind it for evicted: so it is
    looked for from the other side as well."""
    found, size_bytes, before = [], 0, first - 1
    for row in database.execute(
        f"SELECT seq, epoch, source, boot, mono_ns, wall_ns, synced, uniq, body FROM lane_{lane} "
        "WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?",
        (first, last, limit),
    ):
        if row[0] <= before:
            raise corrupt(f"lane_{lane}: row {row[0]} behind row {before}")
        before = row[0]
        found.append(_record(lane, row, known))
        size_bytes += len(found[-1].body)
        if size_bytes >= bytes_max:
            break
    newest = f"SELECT 1 FROM lane_{lane} WHERE seq BETWEEN ? AND ? ORDER BY seq DESC LIMIT 1"
    if not found and rows(database, newest, first, last):
        raise corrupt(f"lane_{lane}: rows of {first}..{last} are there, and are not found")
    return found


def _record(lane: Lane, row: tuple[Any, ...], known: Mapping[int, tuple[str, int | None]]) -> Record:
    if tuple(map(type, row)) != RECORD_TYPES:
        raise corrupt(f"lane_{lane}: row {row[0]} holds what no record holds")
    seq, epoch, source, boot, mono_ns, wall_ns, synced, unique, body = row
    name, offset_ns = known.get(boot, ("", None))
    if not synced and offset_ns is not None:
        wall_ns, synced = mono_ns + offset_ns, True
    return Record(lane, epoch_text(epoch), seq, source, Stamp(name, mono_ns, wall_ns, bool(synced)), body, unique)


def oldest(database: Database, lane: Lane, limit: int) -> list[tuple[int, int, int]]:
    """(seq, epoch, bytes) of the oldest records."""
    return rows(database, f"SELECT seq, epoch, length(body) FROM lane_{lane} ORDER BY seq LIMIT ?", limit)


def ranges(database: Database, lane: Lane) -> Ranges:
    """Seqs that are there. Reads all of them."""
    found = rows(
        database,
        f"SELECT min(seq), max(seq) FROM (SELECT seq, seq - row_number() OVER (ORDER BY seq) AS island FROM lane_{lane}) "
        "GROUP BY island ORDER BY island",
    )
    return tuple((first, last) for first, last in found)


def within(database: Database, lane: Lane, first: int, last: int, rows_max: int, bytes_max: int) -> int:
    """The last seq of first..last up to which rows lie in pages of so many bytes (a long body lies in pages of its own)."""
    found = rows(
        database,
        f"SELECT seq FROM (SELECT seq, sum(min(length(body), {LEAF_BYTES_MAX}) + 100) OVER (ORDER BY seq) AS bytes "
        f"FROM lane_{lane} WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT ?) WHERE bytes > ? ORDER BY seq LIMIT 1",
        first,
        last,
        rows_max,
        bytes_max,
    )
    return max(first, int(found[0][0]) - 1) if found else last


def delete(database: Database, lane: Lane, first: int, last: int, limit: int) -> int:
    """At most `limit` of first..last; returns the last seq up to which nothing is left."""
    cut = rows(
        database, f"SELECT seq FROM lane_{lane} WHERE seq BETWEEN ? AND ? ORDER BY seq LIMIT 1 OFFSET ?", first, last, limit
    )
    upto = int(cut[0][0]) - 1 if cut else last
    database.execute(f"DELETE FROM lane_{lane} WHERE seq BETWEEN ? AND ?", (first, upto))
    return upto


def size_pages(database: Database) -> tuple[int, int]:
    """(pages of the file, of these free)."""
    return int(rows(database, "PRAGMA page_count")[0][0]), int(rows(database, "PRAGMA freelist_count")[0][0])


def add_refused(database: Database, sink: str, record: Record, cause: str, rows_max: int, bytes_max: int) -> None:
    """Keeps the newest of each sink and lane within these limits."""
    database.execute(
        "INSERT OR REPLACE INTO refused (sink, lane, epoch, seq, cause, body) VALUES (?,?,?,?,?,?)",
        (sink, record.lane, epoch_number(record.epoch), record.seq, cause, record.body),
    )
    trim_refused(database, sink, record.lane, rows_max, bytes_max)


def trim_refused(database: Database, sink: str, lane: Lane, rows_max: int, bytes_max: int) -> None:
    database.execute(
        "DELETE FROM refused WHERE sink = ? AND lane = ? AND seq <= (SELECT max(seq) FROM (SELECT seq, "
        "row_number() OVER newest AS number, sum(length(body)) OVER newest AS bytes FROM refused WHERE sink = ? AND lane = ? "
        "WINDOW newest AS (ORDER BY seq DESC)) WHERE number > ? OR bytes > ?)",
        (sink, lane, sink, lane, rows_max, bytes_max),
    )


def oldest_gaps(database: Database, limit: int) -> list[tuple[int, str, Gap]]:
    """(seq, epoch, gap) of the oldest gap records."""
    found = rows(database, "SELECT seq, epoch, body FROM lane_gap ORDER BY seq LIMIT ?", limit)
    return [(seq, epoch_text(epoch), msgspec.json.decode(body, type=Gap)) for seq, epoch, body in found]


# --- the input journal -----------------------------------------------------------------------------------------------


def add_to_journal(database: Database, device: str, samples: Iterable[Sample]) -> list[int]:
    """Row numbers, 0 for a sample whose message id was seen before."""
    numbers = []
    for sample in samples:
        if sample.message_id and rows(
            database, "SELECT 1 FROM seen WHERE device = ? AND message_id = ?", device, sample.message_id
        ):
            numbers.append(0)
            continue
        cursor: Any = database.execute("INSERT INTO journal (device, sample) VALUES (?, ?)", (device, _encode(sample)))
        number = int(cursor.lastrowid)
        if sample.message_id:
            database.execute("INSERT INTO seen (device, message_id, row) VALUES (?,?,?)", (device, sample.message_id, number))
        numbers.append(number)
    return numbers


def read_journal(database: Database, device: str, first: int, limit: int) -> list[Sample]:
    found = rows(
        database, "SELECT row, sample FROM journal WHERE device = ? AND row >= ? ORDER BY row LIMIT ?", device, first, limit
    )
    try:
        return [msgspec.structs.replace(decode_sample(sample), row=row) for row, sample in found]
    except (TypeError, msgspec.DecodeError):
        raise corrupt(f"journal: a row of {device} holds what no sample holds") from None


def journal_counts(database: Database) -> dict[str, int]:
    """Samples, by device."""
    return dict(rows(database, "SELECT device, count(*) FROM journal GROUP BY device"))


def journal_bytes(database: Database) -> dict[str, int]:
    """Bytes of the samples, by device."""
    return dict(rows(database, "SELECT device, sum(length(sample)) FROM journal GROUP BY device"))


def journal_last(database: Database) -> int:
    """The highest row ever given."""
    found = rows(database, "SELECT seq FROM sqlite_sequence WHERE name = 'journal'")
    if found and type(found[0][0]) is not int:
        raise corrupt("sqlite_sequence: the journal's last row is no number")
    return int(found[0][0]) if found else 0


def set_journal_last(database: Database, row: int) -> None:
    database.execute("DELETE FROM sqlite_sequence WHERE name = 'journal'")
    database.execute("INSERT INTO sqlite_sequence (name, seq) VALUES ('journal', ?)", (row,))


def journal_heads(database: Database) -> dict[str, int]:
    """The newest row of each device."""
    return dict(rows(database, "SELECT device, max(row) FROM journal GROUP BY device"))


def trim_journal(database: Database, device: str, first_needed: int, seen_max: int) -> int:
    """Forgets samples that no window needs; keeps the newest message ids. Returns how many samples went."""
    cursor: Any = database.execute("DELETE FROM journal WHERE device = ? AND row < ?", (device, first_needed))
    trim_seen(database, device, seen_max)
    return int(cursor.rowcount)


def trim_seen(database: Database, device: str, seen_max: int) -> None:
    """Keeps the newest message ids."""
    database.execute(
        "DELETE FROM seen WHERE device = ? AND row < (SELECT max(row) FROM seen WHERE device = ?) - ?", (device, device, seen_max)
    )


def seen_devices(database: Database) -> list[str]:
    """That have a message id; a step of the index for each."""
    found: list[str] = []
    while rest := rows(database, "SELECT min(device) FROM seen WHERE device > ?", found[-1] if found else "")[0][0]:
        found.append(rest)
    return found


def refused_kinds(database: Database) -> list[tuple[str, Lane]]:
    """Sink and lane."""
    return [(sink, Lane(lane)) for sink, lane in rows(database, "SELECT DISTINCT sink, lane FROM refused")]


def set_position(database: Database, pipeline: str, device: str, row: int, state: bytes) -> None:
    database.execute(
        "INSERT OR REPLACE INTO positions (pipeline, device, row, state) VALUES (?,?,?,?)", (pipeline, device, row, state)
    )


def positions(database: Database) -> dict[tuple[str, str], tuple[int, bytes]]:
    """(pipeline, device) -> first row that it still needs, and its state."""
    found = rows(database, "SELECT pipeline, device, row, state FROM positions")
    return {(pipeline, device): (row, state) for pipeline, device, row, state in found}


def forget_position(database: Database, pipeline: str, device: str) -> None:
    database.execute("DELETE FROM positions WHERE pipeline = ? AND device = ?", (pipeline, device))


# --- sinks, and what they have acknowledged --------------------------------------------------------------------------


def set_sinks(database: Database, lanes: Mapping[str, Sequence[Lane]], unconfirmed: Sequence[str]) -> None:
    """These and no others. `unconfirmed`: those that are to the broker only."""
    database.execute(SINKS)  # a file that was written before there was such a table
    database.execute("DELETE FROM sinks")
    database.executemany(
        "INSERT INTO sinks (sink, lanes, confirms) VALUES (?,?,?)",
        [(sink, " ".join(lanes[sink]), sink not in unconfirmed) for sink in lanes],
    )


def sinks(database: Database) -> dict[str, tuple[tuple[Lane, ...], bool]]:
    """Name -> (its lanes, whether the receiver confirms). Nothing for a file that was written before there was such a table."""
    if not rows(database, "SELECT 1 FROM sqlite_master WHERE type = 'table' AND name = 'sinks'"):
        return {}
    found = rows(database, "SELECT sink, lanes, confirms FROM sinks ORDER BY sink")
    return {sink: (tuple(lane for lane in LANES if lane in lanes.split()), bool(confirms)) for sink, lanes, confirms in found}


def acknowledged(database: Database) -> dict[tuple[str, Lane], Ranges]:
    found: dict[tuple[str, Lane], list[tuple[int, int]]] = {}
    for sink, lane, first, last in rows(database, "SELECT sink, lane, first, last FROM acknowledged ORDER BY sink, lane, first"):
        found.setdefault((sink, Lane(lane)), []).append((first, last))
    return {key: tuple(ranges) for key, ranges in found.items()}


def set_acknowledged(database: Database, sink: str, lane: Lane, ranges: Ranges) -> None:
    database.execute("DELETE FROM acknowledged WHERE sink = ? AND lane = ?", (sink, lane))
    database.executemany(
        "INSERT INTO acknowledged (sink, lane, first, last) VALUES (?,?,?,?)",
        [(sink, lane, first, last) for first, last in ranges],
    )


def forget_sink(database: Database, sink: str) -> None:
    database.execute("DELETE FROM acknowledged WHERE sink = ?", (sink,))
