"""What becomes of a configuration (decides): trial, confirmed, reverted; which one a start takes; what a trial is judged by.

| what happened                                        | what follows                                                    |
|------------------------------------------------------|-----------------------------------------------------------------|
| a change is proposed                                 | it is on trial; the active one is the way back                  |
| all parts that it can have broken are ok for 5 s     | it is active; what was active is the last good one              |
| it moves the broker, and nobody speaks to it there   | reverted at the end: as if it could not be reached              |
| one of them fails for good, or is not ok at the end  | reverted: the active one runs again                             |
| the trial crashes twice within one boot              | reverted                                                        |
| the active one crashes 3 times, each within 60 s     | reverted: the last good one is active (mode last_good)          |
| that one crashes 3 times as well, or there is none   | bare: only broker and control                                   |
| a power cut, a reboot                                | nothing: crashes are counted anew, a trial starts its time anew |
| a clean stop and start                               | nothing: crashes so far stay counted, and the mode stays        |

A crash is a start within the same boot without a clean end before it. A run that was steady (60 s without a crash) forgets the
crashes before it, and its own crash does not count either; in a trial each one counts.

Out of last_good and bare there are three ways: a new configuration that is confirmed, a changed file on disk (it goes on trial),
a rollback (it goes on trial). Neither a restart nor a reboot is one: what crashed three times would crash a fourth time.
"""

from __future__ import annotations

import re
from collections.abc import Iterator, Mapping
from typing import Literal

import msgspec
from msgspec.structs import replace

CRASHES_TRIAL_MAX = 2
"""Crashes of a configuration on trial (or of a new file, while it is read) within one boot."""

CRASHES_MAX = 3
"""Crashes of an active configuration within one boot, each before it was steady."""

STEADY_S = 60.0
"""A run that has lived so long was no crash loop; who runs says `steady` then."""

SETTLE_S = 5.0
"""So long everything has to be ok until a change is confirmed."""

TRIAL_S = 60.0
"""A trial that does not say how long it may take."""

Mode = Literal["normal", "trial", "last_good", "bare"]

Left = Literal["reverted", "superseded"]
"""What a configuration is that is neither active nor on trial any more."""

DocumentState = Literal["held", "trial", "accepted", "rejected", "reverted"]
"""Of a layer's document: on the disk only (no judgement yet) | in the configuration on trial | in the active one | invalid |
tried, and taken back."""

News = Literal["known", "new", "pending", "rejected", "reverted", "missing"]
"""Of the file on the gateway, against the newest one in the book: in a configuration already | never seen | seen at an earlier
start, which did not come so far as to judge it | found invalid before | tried, and taken back | cannot be read."""


class Life(msgspec.Struct, frozen=True, kw_only=True):
    """Numbers of configurations (0: none), and how the runs went."""

    active: int = 0
    last_good: int = 0
    """Was active before it."""
    trial: int = 0
    safe: Literal["", "last_good", "bare"] = ""
    why: str = ""
    """What led to `safe`."""
    boot: str = ""
    """Of the newest start."""
    ended: bool = True
    """The newest run has ended by itself, as it was told to."""
    steady: bool = False
    """The newest run has lived for STEADY_S."""
    crashes: int = 0
    forgot_boot: str = ""
    forgot_until_ns: int = 0
    """The commands of that boot that are valid until then at most may have been executed before: their list was lost."""


class Step(msgspec.Struct, frozen=True):
    """A life after something happened. `left`: (number, what it is from now on, why)."""

    life: Life
    left: tuple[tuple[int, Left, str], ...] = ()
    reads_file: bool = False
    """A start: the configuration has to be made from the file on disk."""
    file_given_up: str = ""
    """A start: why the new file is not read any more."""


def news(held_hash: str | None, held_state: DocumentState, file_hash: str | None) -> News:
    """`held_*`: the newest file that the book knows (None: none). `file_hash`: of the one on disk; None: it cannot be read."""
    if file_hash is None:
        return "missing"
    if held_hash != file_hash:
        return "new"
    states: dict[DocumentState, News] = {
        "held": "pending",
        "trial": "known",
        "accepted": "known",
        "rejected": "rejected",
        "reverted": "reverted",
    }
    return states[held_state]


def started(life: Life, boot: str, file: News) -> Step:
    """A process begins."""
    began = replace(life, boot=boot, ended=False, steady=False, crashes=_crashes(life, boot))
    if file == "new":
        return Step(replace(began, crashes=0), reads_file=True)
    if file == "rejected" and began.crashes == 0:
        return Step(began, reads_file=True)  # another version of this program may take what the last one refused
    given_up = ""
    if file == "pending" or (file == "known" and not life.active):
        if began.crashes < CRASHES_TRIAL_MAX:
            return Step(began, reads_file=True)
        given_up = f"the process ended {began.crashes} times while it read it"
        began = replace(began, crashes=0)
    step = _after_crashes(began)
    return Step(step.life, step.left, file_given_up=given_up)


def _crashes(life: Life, boot: str) -> int:
    """In a row, within this boot: without power everything ends, whatever its configuration is."""
    if life.boot != boot:
        return 0
    crashed = not life.ended and (bool(life.trial) or not life.steady)
    return life.crashes + int(crashed)


def _after_crashes(life: Life) -> Step:
    if life.trial:
        return reverted(life, f"crashed {life.crashes} times on trial") if life.crashes >= CRASHES_TRIAL_MAX else Step(life)
    if life.safe == "bare" or not life.active or life.crashes < CRASHES_MAX:
        return Step(life)
    why = f"configuration {life.active} crashed {life.crashes} times within {STEADY_S:g} s of its start"
    if not life.last_good:
        return Step(replace(life, safe="bare", why=why, crashes=0))
    after = replace(life, active=life.last_good, last_good=0, safe="last_good", why=why, crashes=0)
    return Step(after, ((life.active, "reverted", why),))


def mode(life: Life, file: News, *, reads_file: bool) -> Mode:
    """Of a start. What has to be made from the file is normal until somebody proposes it."""
    if reads_file:
        return "normal"
    if life.trial:
        return "trial"
    if life.safe == "bare" or not life.active:
        return "bare"
    return "last_good" if life.safe or file in ("rejected", "reverted", "missing") else "normal"


def proposed(life: Life, number: int) -> Step:
    """A new configuration goes on trial, in the place of one that was. The first one of all has no way back: it is active."""
    fresh = replace(life, crashes=0, steady=False)
    if not life.active:
        return Step(replace(fresh, active=number, safe="", why=""))
    left: tuple[tuple[int, Left, str], ...] = ()
    if life.trial:
        left = ((life.trial, "superseded", f"configuration {number} took its place on trial"),)
    return Step(replace(fresh, trial=number), left)


def confirmed(life: Life, *, same: bool = False) -> Step:
    """`same`: it is what was active already (tried again out of safe mode), so the way back stays what it was."""
    if not life.trial:
        return Step(life)
    last_good = life.last_good if same else life.active
    after = replace(life, active=life.trial, last_good=last_good, trial=0, safe="", why="", crashes=0, steady=False)
    return Step(after, ((life.active, "superseded", f"configuration {life.trial} took its place"),))


def reverted(life: Life, why: str) -> Step:
    if not life.trial:
        return Step(life)
    return Step(replace(life, trial=0, crashes=0, steady=False), ((life.trial, "reverted", why),))


# --- judging a trial -------------------------------------------------------------------------------------------------

EVERYTHING = "everything"
"""As the name of a part: the change may have caused whatever fails."""

CONNECTIONS = ("broker", "mesh")
"""The parts by which a gateway is reached."""

CALLED = "reach"
"""The part that is ok when somebody who may steer this gateway has spoken to it since the change. A broker that answers is not
enough: it can be one where nobody ever looks."""

REACH = (EVERYTHING, *CONNECTIONS, "control")
"""A change of one of these can have cut the gateway off."""


class Part(msgspec.Struct, frozen=True):
    """How a part is. `terminal`: waiting does not mend it (unusable settings, a service that crashed)."""

    phase: Literal["ok", "starting", "failed"]
    cause: str = ""
    terminal: bool = False


OK = Part("ok")
STARTING = Part("starting")


class Terms(msgspec.Struct, frozen=True):
    """What a trial is judged by; it stands in the book, so that a start in the middle of a trial judges the same."""

    parts: tuple[str, ...] = ()
    """Those that the change can have broken and that are there after it ("device press", "sink cloud"); see EVERYTHING."""
    before: dict[str, Part] = {}
    """How they, and the connections, were when it was proposed."""
    trial_s: float = TRIAL_S
    by: str = ""
    """Who asked for it; "": the file on the gateway."""
    note: str = ""
    """Why, in their words."""


class Verdict(msgspec.Struct, frozen=True):
    confirm: bool
    why: str


class Judge:
    """One trial in one run of the process. Times are in seconds since this run took it up."""

    def __init__(self, terms: Terms) -> None:
        self.terms = terms
        self._everything = EVERYTHING in terms.parts
        self._ok_since_s: float | None = None

    def see(self, at_s: float, now: Mapping[str, Part]) -> Verdict | None:
        """How all parts are now. None: go on looking. What is ok at the end of the time, but not for long enough yet, may go
        on until it is; the first failure then reverts."""
        over = at_s >= self.terms.trial_s
        against = dict(self._against(now, over))
        for name, part in against.items():
            if part.terminal:
                return Verdict(False, f"{name}: {part.cause}")
        if against:
            self._ok_since_s = None
            told = "; ".join(f"{name}: {part.cause or 'is still starting'}" for name, part in against.items())
            return Verdict(False, f"not ok after {self.terms.trial_s:g} s: {told}") if over else None
        if self._ok_since_s is None:
            self._ok_since_s = at_s
        settled = at_s - self._ok_since_s >= SETTLE_S
        return Verdict(True, f"all that it changed is ok for {SETTLE_S:g} s") if settled else None

    def _against(self, now: Mapping[str, Part], over: bool) -> Iterator[tuple[str, Part]]:
        """Parts that count, and are not ok."""
        for name in self._counted(now):
            part, before = now.get(name, STARTING), self.terms.before.get(name)
            if name in CONNECTIONS and name not in now and before == OK:
                part = Part("failed", "is gone since the change")
            if part.phase != "ok" and (name == CALLED or not _excused(before, part, over)):
                yield name, part

    def _counted(self, now: Mapping[str, Part]) -> list[str]:
        """The named parts, and the connections that were there if the change can have cut them: a broker that others lost at the
        same time takes no change of a threshold back."""
        named = [name for name in self.terms.parts if name != EVERYTHING and (name != "control" or name in now)]
        if self._everything:
            named += [name for name in now if name != CALLED]
        if any(name in REACH for name in self.terms.parts):
            named += [name for name in CONNECTIONS if self.terms.before.get(name) == OK]
        return list(dict.fromkeys(named))


def _excused(before: Part | None, part: Part, over: bool) -> bool:
    """It had failed before the change, and fails for the same cause, or (at the end) does not know one yet."""
    if before is None or before.phase != "failed":
        return False
    if part.phase == "starting":
        return over
    return _gist(before.cause) == _gist(part.cause)


def _gist(cause: str) -> str:
    """Without its numbers: "no answer for 3.02 s" and "no answer for 41.7 s" are one cause."""
    return re.sub(r"\d+(\.\d+)?", "#", cause)
