"""Looks into an audit log: when an entry was written, what became of an intent, who last wrote a point."""

from __future__ import annotations

import re
from collections.abc import Iterable, Iterator, Sequence
from contextlib import contextmanager
from datetime import UTC, datetime, timedelta
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime.control.audit_chain import BEGUN, Row
from edge_runtime.control.audit_file import NAME, SCHEMA_VERSION
from edge_runtime.outbox.database import DiskError, open_read_only
from edge_runtime.ports import Database, EdgeError
from edge_runtime.records import Stamp

NOT_DONE = ("refused", "failed", "rejected")
"""Outcomes of what has changed nothing. All others may have: also one that is not known."""

AROUND = 3
"""Actions shown before and after the one that was asked for."""

UNITS_S = {"s": 1, "m": 60, "h": 3600, "d": 86_400}


class AuditLookError(EdgeError):
    """The file is not there, is no audit log, or is damaged."""


# --- files -----------------------------------------------------------------------------------------------------------


def database_of(where: Path) -> Path:
    """The log of a file, of a gateway's data_dir or its parent, or of a configuration. Raises EdgeError."""
    if where.suffix in (".yaml", ".yml", ".json") and where.is_file():
        where = where.parent / _data_dir(where)
    if not where.is_dir():
        return where
    inside = [where / NAME, where / "data" / NAME]
    return next((each for each in inside if each.is_file()), inside[0])


def _data_dir(file: Path) -> str:
    """Of a configuration, also of one that is not valid: then one wants to know who changed it."""
    from edge_runtime import document

    try:
        said = document.read(file.read_text(), str(file)).at(("data_dir",))
    except (OSError, UnicodeDecodeError) as error:
        raise AuditLookError(f"{file}: cannot be read ({type(error).__name__})", "give the gateway's `data_dir` itself") from None
    return said if isinstance(said, str) else "data"


@contextmanager
def opened(path: Path) -> Iterator[Database]:
    """Reads only. Raises AuditLookError, also for what goes wrong while it is used."""
    if not path.is_file():
        raise AuditLookError(f"{path}: there is no such file", f"an audit log is {NAME} in the gateway's `data_dir`")
    try:
        database = open_read_only(path)
        try:
            [(version,)] = database.execute("PRAGMA user_version")
            if version > SCHEMA_VERSION:
                raise AuditLookError(f"{path}: written by a newer edge-runtime (format {version})", "update edge-runtime")
            yield database
        finally:
            database.close()
    except DiskError as error:
        raise AuditLookError(f"{path}: {error}", "no audit log, or a damaged one") from None


# --- time ------------------------------------------------------------------------------------------------------------


class Dates:
    """When entries were written. One whose clock was not synchronised is dated by another of its boot that was, or not at all."""

    def __init__(self, now: Stamp, rows: Iterable[Row]) -> None:
        self._offsets = {now.boot: now.wall_ns - now.mono_ns}
        for row in rows:
            if row.synced:
                self._offsets[row.boot] = row.wall_ns - row.mono_ns

    def of(self, row: Row) -> int | None:
        """Unix nanoseconds; None: nobody knows."""
        if row.synced:
            return row.wall_ns
        offset_ns = self._offsets.get(row.boot)
        return None if offset_ns is None else row.mono_ns + offset_ns

    def text(self, row: Row) -> str:
        """`~`: the clock was not synchronised."""
        at_ns = self.of(row)
        if at_ns is None:
            return f"~{iso(row.wall_ns)} (boot {row.boot[:8]} +{row.mono_ns / 1e9:.3f} s)"
        return iso(at_ns) if row.synced else f"~{iso(at_ns)}"


def iso(at_ns: int) -> str:
    """UTC, to the millisecond."""
    try:
        at = datetime.fromtimestamp(at_ns // 10**9, UTC)
    except (OverflowError, ValueError, OSError):
        return f"{at_ns} ns"
    return f"{at:%Y-%m-%dT%H:%M:%S}.{at_ns // 10**6 % 1000:03}Z"


def instant(text: str, now_ns: int) -> int:
    """Unix nanoseconds of `2026-11-21T10:00:00Z`, `2026-11-21`, `-5m` (s, m, h, d), `@12:30` (the last one). Without an offset it
    is UTC. Raises EdgeError."""
    now = datetime.fromtimestamp(now_ns / 1e9, UTC)
    if ago := re.fullmatch(r"-(\d+(?:\.\d+)?)([smhd])", text):
        return now_ns - round(float(ago[1]) * UNITS_S[ago[2]] * 1e9)
    try:
        if text.startswith("@"):
            clock = datetime.strptime(text[1:], "%H:%M:%S" if text.count(":") == 2 else "%H:%M")
            at = now.replace(hour=clock.hour, minute=clock.minute, second=clock.second, microsecond=0)
            at = at if at <= now else at - timedelta(days=1)
        else:
            at = datetime.fromisoformat(text)
    except ValueError:
        hint = "2026-11-21T10:00:00Z, 2026-11-21, -5m (s, m, h, d), or @12:30; UTC where no offset is given"
        raise AuditLookError(f"{text!r} is no time", hint) from None
    at = at if at.tzinfo else at.replace(tzinfo=UTC)
    return round((at - datetime.fromtimestamp(0, UTC)) / timedelta(microseconds=1)) * 1000


def plain(text: str) -> str:
    """For a terminal: what came from outside moves no cursor and changes no colour."""
    return "".join(each if each.isprintable() else each.encode("unicode_escape").decode() for each in text)


# --- entries ---------------------------------------------------------------------------------------------------------


def told(row: Row, dates: Dates) -> dict[str, Any]:
    """For JSON."""
    fields = msgspec.structs.asdict(row)
    for name in ("before", "requested", "read_back"):
        fields[name] = value(fields[name])
    return {**fields, "at": dates.text(row), "at_ns": dates.of(row)}


def value(text: str) -> Any:
    """Of a JSON text in an entry; None: there is none."""
    try:
        return msgspec.json.decode(text) if text else None
    except msgspec.DecodeError:  # somebody edited it
        return text


class Action(msgspec.Struct):
    """An intent with what came of it, or an entry that stands for both. `outcome` BEGUN: not known yet, or never."""

    begun: Row
    ended: Row | None = None

    @property
    def last(self) -> Row:
        return self.ended or self.begun

    @property
    def before(self) -> str:
        return self.last.before or self.begun.before

    @property
    def why(self) -> str:
        return self.last.why or self.begun.why


class Found(msgspec.Struct, frozen=True):
    """`wrote`: the action that last wrote the point before the instant; None: none that we know of. `sure` False: its time
    is not known, it may have been after. `others`: actions on the point around it, in their order."""

    wrote: Action | None
    sure: bool
    others: list[Action]


def last_write(rows: Iterable[Row], subject: str, at_ns: int, dates: Dates) -> Found:
    """What had happened to a subject at an instant. The order of entries is the order in which they were written; what
    had happened ends with the first one that is dated later."""
    before: dict[int, Action] = {}
    after: dict[int, Action] = {}
    dated_until, over = 0, False
    for row in rows:
        at = dates.of(row)
        over = over or (at is not None and at > at_ns)
        dated_until = row.n if at is not None and not over else dated_until
        if row.subject != subject:
            continue
        if begun := before.get(row.completes) or after.get(row.completes):
            begun.ended = row
        else:
            (after if over else before)[row.n] = Action(row)
            _forget(before, after)
    return _around([*before.values()], [*after.values()], dated_until)


KEPT_MAX = 1000


def _forget(before: dict[int, Action], after: dict[int, Action]) -> None:
    """Of a point that is written all the time, what is far from the instant."""
    if len(before) > KEPT_MAX:
        wrote = [n for n, action in before.items() if changed(action)][-1:]
        for n in [*before][: KEPT_MAX // 2]:
            if n not in wrote:
                del before[n]
    if len(after) > KEPT_MAX:
        after.popitem()


def _around(before: Sequence[Action], after: Sequence[Action], dated_until: int) -> Found:
    at = next((at for at in reversed(range(len(before))) if changed(before[at])), None)
    if at is None:
        return Found(None, True, [*before[-AROUND:], *after[:AROUND]])
    others = [*before[max(0, at - AROUND) : at], *before[at + 1 :][-AROUND:], *after[:AROUND]]
    return Found(before[at], before[at].begun.n <= dated_until or not after, others)


def changed(action: Action) -> bool:
    """Whether it has changed something, or may have."""
    return action.last.outcome not in NOT_DONE


def outcome(action: Action) -> str:
    """In words."""
    return "not known" if action.last.outcome == BEGUN else action.last.outcome or "-"
