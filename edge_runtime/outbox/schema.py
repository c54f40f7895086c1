"""The format of the outbox's file: its tables, its version, and how a file of an older format is brought up to this one.

| table        | a row is                                                                                      |
|--------------|-----------------------------------------------------------------------------------------------|
| lane_*       | a record; seq and epoch are its id for ever                                                   |
| heads        | the highest seq of a lane, noted with each deletion (so that none is given twice) and at times |
| epochs       | one start of this outbox, and the heads at that time                                          |
| boots        | one boot of the machine, and wall - monotonic as soon as its clock was synchronised           |
| journal      | a sample of a source that asks again, until no window needs it                                |
| seen         | a source's message id, so that a redelivery is recognised                                     |
| positions    | how far a pipeline has come in the journal of a device, and the state of its rules            |
| acknowledged | seqs of a lane that a sink's far end has                                                      |
| refused      | a record that a sink's far end refuses for ever, and why; for people                          |
| sinks        | a sink of the configuration, its lanes, and whether the receiver confirms; for people         |
"""

from __future__ import annotations

from edge_runtime.ports import Database
from edge_runtime.records import LANES

SCHEMA_VERSION = 3
"""1: without the lanes of the privacy classes `site` and `gateway`. 2: one position for each pipeline, whatever its device: that
of a pipeline which read another device on trial was gone when it came back."""

_LANE = """CREATE TABLE IF NOT EXISTS lane_{lane} (
    seq INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, source TEXT NOT NULL, boot INTEGER NOT NULL,
    mono_ns INTEGER NOT NULL, wall_ns INTEGER NOT NULL, synced INTEGER NOT NULL, uniq TEXT NOT NULL, body BLOB NOT NULL)"""

SINKS = "CREATE TABLE IF NOT EXISTS sinks (sink TEXT PRIMARY KEY, lanes TEXT NOT NULL, confirms INTEGER NOT NULL) WITHOUT ROWID"

_POSITIONS = """CREATE TABLE IF NOT EXISTS positions (pipeline TEXT, device TEXT, row INTEGER NOT NULL, state BLOB NOT NULL,
    PRIMARY KEY (pipeline, device)) WITHOUT ROWID"""

_UPGRADE = (
    "ALTER TABLE positions RENAME TO positions_before",
    _POSITIONS,
    "INSERT INTO positions (pipeline, device, row, state) SELECT pipeline, device, row, state FROM positions_before",
    "DROP TABLE positions_before",
)
"""From formats 1 and 2. Its other tables are made where they lack."""

_SCHEMA = (
    *(_LANE.format(lane=lane) for lane in LANES),
    "CREATE TABLE IF NOT EXISTS heads (lane TEXT PRIMARY KEY, seq INTEGER NOT NULL) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS epochs (number INTEGER PRIMARY KEY, epoch INTEGER NOT NULL, after TEXT NOT NULL)",
    "CREATE TABLE IF NOT EXISTS boots (number INTEGER PRIMARY KEY, boot TEXT NOT NULL UNIQUE, offset_ns INTEGER)",
    "CREATE TABLE IF NOT EXISTS journal (row INTEGER PRIMARY KEY AUTOINCREMENT, device TEXT NOT NULL, sample BLOB NOT NULL)",
    "CREATE INDEX IF NOT EXISTS journal_device ON journal (device, row)",
    "CREATE TABLE IF NOT EXISTS seen (device TEXT, message_id TEXT, row INTEGER, PRIMARY KEY (device, message_id)) WITHOUT ROWID",
    "CREATE INDEX IF NOT EXISTS seen_row ON seen (device, row)",
    _POSITIONS,
    "CREATE TABLE IF NOT EXISTS acknowledged (sink TEXT, lane TEXT, first INTEGER, last INTEGER, "
    "PRIMARY KEY (sink, lane, first)) WITHOUT ROWID",
    "CREATE TABLE IF NOT EXISTS refused (sink TEXT, lane TEXT, epoch INTEGER, seq INTEGER, cause TEXT, body BLOB, "
    "PRIMARY KEY (sink, lane, seq)) WITHOUT ROWID",
    SINKS,
    f"PRAGMA user_version={SCHEMA_VERSION}",
)


def create(database: Database) -> None:
    """In a transaction: a file has all tables and its version, or it is as it was."""
    if 0 < version(database) < SCHEMA_VERSION:
        for statement in _UPGRADE:
            database.execute(statement)
    for statement in _SCHEMA:
        database.execute(statement)


def pretend(database: Database) -> None:
    """To look at a file of an older format as if it had been brought up to this one: what it lacks is there, and empty, for this
    connection only. (The columns of `positions` have been the same from the first format on.)"""
    there = {name for (name,) in database.execute("SELECT name FROM sqlite_master WHERE type = 'table'")}
    for lane in LANES:
        if f"lane_{lane}" not in there:
            database.execute(_LANE.format(lane=lane).replace("CREATE TABLE", "CREATE TEMP TABLE"))


def version(database: Database) -> int:
    """0: it is empty, or none of ours."""
    [(found,)] = database.execute("PRAGMA user_version")
    return int(found)
