"""The tables of control.db: the only SQL on that file. Each row that a gateway lives by carries its own checksum:
SQLite has none, and a rotten page must not become a configuration.

| table          | a row is                                                                            |
|----------------|-------------------------------------------------------------------------------------|
| life           | the only one: numbers of the active, last good and trial configuration, crashes     |
| documents      | what came for a layer, verbatim                                                     |
| configurations | an effective configuration, and the documents (by their serials) that it is made of |
| commands       | an id that was begun, and what came of it                                           |
"""

from __future__ import annotations

import hashlib
from collections.abc import Iterable, Mapping, Sequence
from typing import Any, Literal, TypeVar

import msgspec
from msgspec.structs import replace

from edge_runtime.control.trial import DocumentState, Life, Step, Terms
from edge_runtime.outbox.database import DiskError, corrupt
from edge_runtime.ports import Database
from edge_runtime.records import Stamp

LAYOUT = 1
"""Version of the tables, in `pragma user_version`."""

HISTORY_MAX = 50
HISTORY_BYTES_MAX = 8 * 2**20
"""Configurations kept, and what their texts may take together; the active, the last good and the one on trial always stay."""

LAYERS_MAX = 32
"""Layers whose newest document is kept although no configuration is made of it (groups that the gateway has left)."""

COMMANDS_MAX = 10_000

SHOWN_CHARACTERS_MAX = 60
"""Of what stands in a row that nobody wrote."""

T = TypeVar("T")


class LayerDocument(msgspec.Struct, frozen=True, kw_only=True):
    """What came for a layer. `serial` is 0 until the book has it; a later one came later."""

    layer: str
    hash: str
    payload: bytes
    """Verbatim: also its signature, for a broker that is empty."""
    stamp: Stamp
    revision: int | None = None
    state: DocumentState = "held"
    cause: str = ""
    serial: int = 0


class Configuration(msgspec.Struct, frozen=True, kw_only=True):
    """`text`: the whole effective configuration as JSON ("" in a history). `why`: why it is no longer what it was."""

    number: int
    hash: str
    stamp: Stamp
    state: Literal["trial", "active", "reverted", "superseded"]
    why: str = ""
    made_of: tuple[int, ...] = ()
    """Serials of documents."""
    terms: Terms = Terms()
    text: str = ""


class Pages(msgspec.Struct, frozen=True):
    """What a gateway lives by; replaced as a whole after each transaction. Of the configurations those that `life` names, of the
    documents those that they are made of and the newest of each layer, in order of their serials."""

    life: Life = Life()
    configurations: Mapping[int, Configuration] = {}
    documents: Mapping[int, LayerDocument] = {}


_TABLES = (
    "CREATE TABLE life (one INTEGER PRIMARY KEY CHECK (one = 1), life TEXT NOT NULL, sum TEXT NOT NULL)",
    "CREATE TABLE documents (serial INTEGER PRIMARY KEY AUTOINCREMENT, layer TEXT NOT NULL, hash TEXT NOT NULL, revision INTEGER,"
    " state TEXT NOT NULL, cause TEXT NOT NULL, stamp TEXT NOT NULL, payload BLOB NOT NULL, sum TEXT NOT NULL)",
    "CREATE TABLE configurations (number INTEGER PRIMARY KEY AUTOINCREMENT, hash TEXT NOT NULL, state TEXT NOT NULL,"
    " why TEXT NOT NULL, made_of TEXT NOT NULL, terms TEXT NOT NULL, stamp TEXT NOT NULL, text TEXT NOT NULL, sum TEXT NOT NULL)",
    "CREATE TABLE commands (id TEXT PRIMARY KEY, verb TEXT NOT NULL, boot TEXT NOT NULL, until_ns INTEGER NOT NULL,"
    " outcome TEXT) WITHOUT ROWID",
    f"PRAGMA user_version = {LAYOUT}",
)

_DOCUMENT = "SELECT serial, layer, hash, revision, state, cause, stamp, payload, sum FROM documents"
_CONFIGURATION = "SELECT number, hash, state, why, made_of, terms, stamp, text, sum FROM configurations"
_IN_HISTORY = "SELECT number, hash, state, why, made_of, terms, stamp, '', '' FROM configurations ORDER BY number DESC"


def layout(database: Database) -> int:
    """0: a file that nothing was written to yet."""
    return int(_rows(database, "PRAGMA user_version")[0][0])


def create(database: Database, pages: Pages) -> None:
    """The tables of a new file, with what is known from elsewhere."""
    for sql in _TABLES:
        database.execute(sql)
    for document in pages.documents.values():
        _insert_document(database, document)
    for configuration in pages.configurations.values():
        _insert_configuration(database, configuration)
    set_life(database, pages.life)


# --- reading ---------------------------------------------------------------------------------------------------------


def read(database: Database) -> Pages:
    """Raises DiskError (corrupt) for a row that is not what was written."""
    found = _rows(database, "SELECT life, sum FROM life")
    if len(found) != 1:
        raise corrupt("its table `life` is empty")
    life = _decode(_proved(*found[0]), Life)
    configurations = {}
    for number in _named(life):
        configurations[number] = one = configuration(database, number)
        if one is None:
            raise corrupt(f"configuration {number} is missing")
    documents = {}
    for row in _rows(database, f"{_DOCUMENT} ORDER BY serial"):
        document = _document(row)
        documents[document.serial] = document
    needed = [serial for each in configurations.values() if each for serial in each.made_of]
    if any(serial not in documents for serial in needed):
        raise corrupt("a document is missing that a configuration is made of")
    return Pages(life, {number: each for number, each in configurations.items() if each}, documents)


def salvage(database: Database) -> Pages:
    """What can be read of a damaged file: the active configuration, the last good one, their documents. A trial is over."""
    life = _tried(lambda: _decode(_proved(*_rows(database, "SELECT life, sum FROM life")[0]), Life)) or Life()
    documents: dict[int, LayerDocument] = {}
    for (serial,) in _tried(lambda: _rows(database, "SELECT serial FROM documents")) or []:
        if document := _tried(lambda s=serial: _document(_rows(database, f"{_DOCUMENT} WHERE serial = ?", s)[0])):
            documents[serial] = document
    numbers = [life.active, life.last_good] if life.active else [_tried(lambda: _active(database)) or 0]
    kept: dict[int, Configuration] = {}
    for number in filter(None, numbers):
        one = _tried(lambda n=number: configuration(database, n))
        if one is not None and all(serial in documents for serial in one.made_of):
            kept[number] = one
    readable = [number for number in numbers if number in kept]
    active, last_good = (*readable, 0, 0)[:2]
    if active:
        kept[active] = replace(kept[active], state="active", why="")
    needed = {serial: None for one in kept.values() for serial in one.made_of}
    documents = {s: replace(d, state="held") if d.state == "trial" and s not in needed else d for s, d in documents.items()}
    return Pages(replace(life, active=active, last_good=last_good, trial=0), kept, dict(sorted(documents.items())))


def _active(database: Database) -> int:
    found = _rows(database, "SELECT max(number) FROM configurations WHERE state = 'active'")
    return int(found[0][0] or 0)


def configuration(database: Database, number: int) -> Configuration | None:
    found = _rows(database, f"{_CONFIGURATION} WHERE number = ?", number)
    if not found:
        return None
    one = _configuration(found[0])
    _proved(one.text, found[0][-1])
    return one


def history(database: Database) -> list[Configuration]:
    """Newest first, without their texts."""
    return [_configuration(row) for row in _rows(database, _IN_HISTORY)]


def _configuration(row: Sequence[Any]) -> Configuration:
    number, digest, state, why, made_of, terms, stamp, text, _ = row
    return Configuration(
        number=number, hash=digest, state=_known(state, ("trial", "active", "reverted", "superseded")), why=why,
        made_of=_decode(made_of, tuple[int, ...]), terms=_decode(terms, Terms), stamp=_decode(stamp, Stamp), text=text,
    )  # fmt: skip


def _document(row: Sequence[Any]) -> LayerDocument:
    serial, layer, digest, revision, state, cause, stamp, payload, checksum = row
    _proved(payload, checksum)
    return LayerDocument(
        serial=serial, layer=layer, hash=digest, revision=revision, cause=cause, stamp=_decode(stamp, Stamp), payload=payload,
        state=_known(state, ("held", "trial", "accepted", "rejected", "reverted")),
    )  # fmt: skip


# --- writing ---------------------------------------------------------------------------------------------------------


def set_life(database: Database, life: Life) -> None:
    text = _encode(life)
    database.execute("INSERT OR REPLACE INTO life VALUES (1, ?, ?)", (text, _sum(text)))


def add_document(database: Database, document: LayerDocument) -> int:
    """Its serial: that of the same document if the layer's newest is the same, with the state that this one has."""
    newest = _rows(
        database, "SELECT serial, hash, revision FROM documents WHERE layer = ? ORDER BY serial DESC LIMIT 1", document.layer
    )
    if newest and newest[0][1:] == (document.hash, document.revision):
        set_document(database, newest[0][0], document.state, document.cause)
        return int(newest[0][0])
    return _insert_document(database, replace(document, serial=0))


def set_document(database: Database, serial: int, state: DocumentState, cause: str) -> None:
    database.execute("UPDATE documents SET state = ?, cause = ? WHERE serial = ?", (state, cause, serial))


def _insert_document(database: Database, one: LayerDocument) -> int:
    cursor: Any = database.execute(
        "INSERT INTO documents VALUES (?,?,?,?,?,?,?,?,?)",
        (
            one.serial or None,
            one.layer,
            one.hash,
            one.revision,
            one.state,
            one.cause,
            _encode(one.stamp),
            one.payload,
            _sum(one.payload),
        ),
    )
    return int(cursor.lastrowid)


def add_configuration(database: Database, one: Configuration) -> int:
    """Its number."""
    return _insert_configuration(database, replace(one, number=0))


def set_made_of(database: Database, one: Configuration, made_of: Sequence[int]) -> None:
    """The same configuration, made of other documents."""
    database.execute("UPDATE configurations SET made_of = ? WHERE number = ?", (_encode(made_of), one.number))
    for serial in one.made_of:
        if serial not in made_of:
            _leave(database, serial, "held", "")


def _insert_configuration(database: Database, one: Configuration) -> int:
    cursor: Any = database.execute(
        "INSERT INTO configurations VALUES (?,?,?,?,?,?,?,?,?)",
        (
            one.number or None, one.hash, one.state, one.why, _encode(one.made_of), _encode(one.terms), _encode(one.stamp),
            one.text, _sum(one.text),
        ),
    )  # fmt: skip
    return int(cursor.lastrowid)


def turn(database: Database, step: Step) -> Pages:
    """Writes what a step of the state machine means, and forgets what nobody needs any more. Returns all anew."""
    life = step.life
    for number, state, why in step.left:
        database.execute("UPDATE configurations SET state = ?, why = ? WHERE number = ?", (state, why, number))
    for number, now in ((life.trial, "trial"), (life.active, "active")):
        database.execute("UPDATE configurations SET state = ?, why = '' WHERE number = ?", (now, number))
    set_life(database, life)
    made_of = {
        number: _decode(text, tuple[int, ...]) for number, text in _rows(database, "SELECT number, made_of FROM configurations")
    }
    active, trial = made_of.get(life.active, ()), made_of.get(life.trial, ())
    for number, state, why in step.left:
        for serial in made_of.get(number, ()):
            if serial not in active and serial not in trial:
                _leave(database, serial, "reverted" if state == "reverted" else "held", why)
    # While a rollback is on trial, what is being rolled back is reverted and still in the active configuration.
    spared = "AND state <> 'reverted'" if life.trial else ""
    for serial in active:
        database.execute(f"UPDATE documents SET state = 'accepted', cause = '' WHERE serial = ? {spared}", (serial,))
    for serial in trial:
        if serial not in active:
            set_document(database, serial, "trial", "")
    _prune(database, life, [serial for number in _named(life) for serial in made_of.get(number, ())])
    return read(database)


def _leave(database: Database, serial: int, state: DocumentState, why: str) -> None:
    """A document that is in no configuration any more; what was judged before stays as it is."""
    database.execute(
        "UPDATE documents SET state = ?, cause = ? WHERE serial = ? AND state IN ('trial', 'accepted')", (state, why, serial)
    )


def _prune(database: Database, life: Life, needed: Sequence[int]) -> None:
    kept, layers = dict.fromkeys(needed), dict.fromkeys([""])
    for serial, layer in _rows(database, "SELECT serial, layer FROM documents ORDER BY serial DESC"):
        if layer not in layers and len(layers) <= LAYERS_MAX:
            layers[layer] = None
        elif serial not in kept:
            database.execute("DELETE FROM documents WHERE serial = ?", (serial,))
    size_bytes, count = 0, 0
    for number, length in _rows(database, "SELECT number, length(text) FROM configurations ORDER BY number DESC"):
        size_bytes, count = size_bytes + length, count + 1
        if (count > HISTORY_MAX or size_bytes > HISTORY_BYTES_MAX) and number not in _named(life):
            database.execute("DELETE FROM configurations WHERE number = ?", (number,))


def _named(life: Life) -> list[int]:
    return [number for number in (life.active, life.last_good, life.trial) if number]


# --- commands --------------------------------------------------------------------------------------------------------


def command(database: Database, name: str) -> tuple[str, str | None] | None:
    """(verb, outcome or None if it has none yet); None: never begun, or forgotten."""
    found = _rows(database, "SELECT verb, outcome FROM commands WHERE id = ?", name)
    return (found[0][0], found[0][1]) if found else None


def add_command(database: Database, name: str, verb: str, boot: str, until_ns: int) -> None:
    database.execute("INSERT INTO commands VALUES (?, ?, ?, ?, NULL)", (name, verb, boot, until_ns))


def set_outcome(database: Database, name: str, outcome: str) -> None:
    database.execute("UPDATE commands SET outcome = ? WHERE id = ?", (outcome, name))


def commands(database: Database) -> int:
    return int(_rows(database, "SELECT count(*) FROM commands")[0][0])


def forget_commands(database: Database, boot: str, now_ns: int) -> None:
    """Those that nobody would take any more: expired, or for another boot."""
    database.execute("DELETE FROM commands WHERE boot <> ? OR until_ns < ?", (boot, now_ns))


# --- values ----------------------------------------------------------------------------------------------------------


SQL_ERROR = 1
"""SQLite's code of a statement that does not fit the tables."""


def _rows(database: Database, sql: str, *parameters: Any) -> list[Any]:
    try:
        return list(database.execute(sql, parameters))
    except DiskError as error:
        if getattr(error, "sqlite_errorcode", SQL_ERROR) == SQL_ERROR:  # a text that is none, a table that is not there: rot
            raise corrupt(str(error)[:SHOWN_CHARACTERS_MAX]) from error
        raise


def _encode(value: Any) -> str:
    return msgspec.json.encode(value).decode()


def _decode(text: Any, kind: type[T]) -> T:
    try:
        return msgspec.json.decode(text, type=kind)
    except (msgspec.DecodeError, TypeError) as error:
        raise corrupt(f"{str(text)[:SHOWN_CHARACTERS_MAX]!r} stands in a row: {error}") from error


def _known(state: Any, states: Iterable[Any]) -> Any:
    if state not in states:
        raise corrupt(f"{state!r} stands in a row")
    return state


def _sum(content: str | bytes) -> str:
    return hashlib.sha256(content.encode() if isinstance(content, str) else content).hexdigest()


def _proved(content: Any, checksum: Any) -> Any:
    if not isinstance(content, str | bytes) or _sum(content) != checksum:
        raise corrupt("a row is not what was written")
    return content


def _tried(read_it: Any) -> Any:
    """None for what cannot be read."""
    try:
        return read_it()
    except (DiskError, IndexError):
        return None
