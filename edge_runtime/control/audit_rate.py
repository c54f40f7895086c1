"""How many entries a rule may write (decides): the first ones of a minute as they are, the others as one that counts them."""

from __future__ import annotations

from collections.abc import Iterator

import msgspec

from edge_runtime.control.audit_chain import Entry

ENTRIES_MAX = 30
"""Of one actor in PERIOD_S. A rule that flutters at 10 Hz for a year would otherwise be all that the log holds."""

PERIOD_S = 60.0

ACTORS_MAX = 1000
"""Whose counts are kept. Names of rules come from the configuration: there are not more of them at a time."""


class _Minute(msgspec.Struct):
    since_ns: int
    written: int = 0
    left_out: int = 0
    first: Entry | None = None
    last: Entry | None = None


class Rate:
    """Counts by actor."""

    def __init__(self) -> None:
        self._minutes: dict[str, _Minute] = {}

    def take(self, entry: Entry, mono_ns: int, *, room: bool = True) -> tuple[list[Entry], float]:
        """(what to write now, in how many seconds to ask `left_out`; 0: somebody will already). `room`: there is some for it."""
        minute, entries = self._minutes.get(entry.actor), []
        if minute is None or mono_ns - minute.since_ns >= PERIOD_S * 1e9:
            entries = [counted] if (counted := self.left_out(entry.actor)) else []
            self._forget_old(mono_ns)
            minute = self._minutes[entry.actor] = _Minute(mono_ns)
        if room and minute.written < ENTRIES_MAX:
            minute.written += 1
            return [*entries, entry], 0.0
        minute.left_out += 1
        minute.first, minute.last = minute.first or entry, entry
        return entries, PERIOD_S - (mono_ns - minute.since_ns) / 1e9 if minute.left_out == 1 else 0.0

    def left_out(self, actor: str) -> Entry | None:
        """The entry that counts what was not written of an actor, once."""
        minute = self._minutes.get(actor)
        if minute is None or minute.first is None or minute.last is None:
            return None
        first, last, count = minute.first, minute.last, minute.left_out
        minute.left_out, minute.first, minute.last = 0, None, None
        requested = {"entries": count, "first": [first.subject, first.why], "last": [last.subject, last.why]}
        why = f"{count} more than {ENTRIES_MAX} in {PERIOD_S:g} s, or than there was room for"
        return Entry(
            kind=last.kind, actor=actor, via=last.via, subject=last.subject, requested=requested, outcome="counted", why=why
        )

    def all_left_out(self) -> Iterator[Entry]:
        """Of all actors."""
        for actor in [*self._minutes]:
            if entry := self.left_out(actor):
                yield entry

    def _forget_old(self, mono_ns: int) -> None:
        if len(self._minutes) >= ACTORS_MAX:
            kept = {name: each for name, each in self._minutes.items() if each.first or mono_ns - each.since_ns < PERIOD_S * 1e9}
            self._minutes = kept if len(kept) < ACTORS_MAX else dict([*kept.items()][ACTORS_MAX // 2 :])
