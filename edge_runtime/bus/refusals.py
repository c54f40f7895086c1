"""Hears what the broker's process says, and counts what it refused (touches: the pipe it writes to, and broker.log).

Clients without a good certificate, with a wrong name or password, one too many, or that speak no MQTT; and each publish that the
access rules do not allow. Those mosquitto names at its debug level alone, where it writes two lines for every message that
passes, too. So it writes to a pipe, which is looked at many times a second: a file would wear the disk out, and grow while this
process stands still. Who does not look in time hears less, and mosquitto does not wait for it. A will that is not
allowed it drops without a word when its client dies: we judge by its own rules what it says of a will when the client comes.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
import re
from collections import Counter, deque
from pathlib import Path
from typing import NamedTuple

from edge_runtime.bus.acl import Rules

PIPE_BYTES = 2**20
"""Without being root a process may ask for no more. That is 8,000 lines."""
LOG_BYTES_MAX = 2**20
"""Whoever knocks writes 250 bytes of it, a thousand times a second: it is emptied at this size."""
LINE_BYTES_MAX = 4_096
"""Of half a line."""
CUT_BYTES = 999
"""There mosquitto cuts a line: then a client has had the last word, and may have made it look like the broker's."""
WORDS = 3
"""Lines that are remembered."""

_REFUSED = re.compile(r"(?:OpenSSL Error\[0\]|Client connection from \S+ failed): error:[^:]+:[^:]*::(?!unexpected eof)")
"""Two words for one thing: the second where all of the client's greeting is there when it is accepted; at level `notice` only."""
_OF_A_CLIENT = re.compile(r"Client .* (?:closed its connection|closing old connection|disconnect(?:ed|ing)\b.*)\.")
"""So may one that calls itself "connection from x failed: error:..."."""
_NOT_KNOWN = re.compile(r"Client .* disconnected, not authorised\.")
"""The whole line: a client may call itself anything. It cannot bring a line end."""
_FULL = re.compile(r"Client connection from \S+ denied: max_connections exceeded\.")
_BROKEN = re.compile(
    r"Client .* disconnected due to (?:malformed packet|protocol error)\."
    r"|Bad socket read/write on client .*: (?:Invalid function arguments provided\.|Malformed UTF-8)"  # a will for all topics
)
_COMES, _WILL = b"New client connected from ", b"Will message specified"
_TOO_LARGE = b"Dropped too large PUBLISH from "
_DENIED = b"Denied PUBLISH from "
_WHERE = re.compile(r" \(d\d, q\d, r\d, m\d+, '")
"""Between who and where. Clients choose both words, and may put this into them, too."""
_CAME = re.compile(r"New client connected from \S+ as (.*) \(p\d, c\d, k\d+, u'(.*)'\)\.")
_WENT = re.compile(r"Client (.*) (?:disconnected|closed its connection|has exceeded timeout, disconnecting)\.")
USERS_MAX = 1_000
"""Whose names are known, by what they call themselves, while they are connected; beyond it they are learnt anew."""
_PASSING = (b"Received ", b"Sending ", b"\t", b"Will message specified", b"No will message specified")
"""Of what goes as it should, at level debug."""
CERTIFICATE, PASSWORD, FULL, PUBLISH, PACKET, WILL = "certificate", "password", "full", "publish", "packet", "will"
"""What was missing or wrong; too many connections at the door for passwords; a topic that the sender may not write; what is no
MQTT (a wildcard in the topic of a publish, too), or too large; a will on a topic that its client may not write."""


class Told(NamedTuple):
    """Of one reason there are now twice as many as when it was told last."""

    reason: str
    times: int
    cause: str
    """In the words of the broker, of the last one."""


class Refusals:
    """Of one hosted broker, in all of its lives."""

    def __init__(self, log: Path) -> None:
        """`log`: for people, what the broker says beside its traffic."""
        self._log = log
        self._pipe = -1
        self._holds = PIPE_BYTES
        self._rest = b""
        self.fill = 0.0
        """Of the pipe, at the last look."""
        self._told: Counter[str] = Counter()
        self._users: dict[str, str] = {}
        """What a client calls itself, and who it is by its certificate or password."""
        self._gone: set[str] = set()
        """Of them: after this look."""
        self._came = ("", "")
        """What the last one calls itself, and who it is; empty where its line was cut: then it has no topics of its own."""
        self._before = b""
        """The line before: that of a will has its topic in the next one."""
        self.rules = Rules()
        """Of the broker as it is now; whoever changes them says so here."""
        self.last_words: deque[str] = deque(maxlen=WORDS)
        self.counts = Counter({CERTIFICATE: 0, PASSWORD: 0, FULL: 0, PUBLISH: 0, PACKET: 0, WILL: 0})
        """In all of them."""

    def begin(self) -> int:
        """Another process: where it shall write to. Whoever asks has to close it."""
        self.close()
        self._pipe, theirs = os.pipe2(os.O_NONBLOCK | os.O_CLOEXEC)  # full: it goes on without a word
        with contextlib.suppress(OSError):  # the user has too many of them: a smaller one, then
            fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._holds = fcntl.fcntl(theirs, fcntl.F_GETPIPE_SZ)
        self._rest = b""
        self.last_words.clear()
        with contextlib.suppress(OSError):  # as below
            self._log.write_bytes(b"")
        return theirs

    def close(self) -> None:
        """May be called again."""
        if self._pipe >= 0:
            os.close(self._pipe)
            self._pipe = -1

    def look(self) -> list[Told]:
        """Takes what was said since; what there is to tell of it."""
        new = self._read()
        self.fill = len(new) / self._holds
        *lines, rest = (self._rest + new).split(b"\n")
        self._rest = rest[-LINE_BYTES_MAX:]  # it may have written half of it
        causes: dict[str, str] = {}
        kept, denied = [], b""
        for line in lines:  # thousands in a flood: most are told by how they begin
            said = line.partition(b": ")[2]
            if said.startswith(_DENIED):
                self.counts[PUBLISH] += 1
                denied = line
            elif said[:1] == b"\t" and self._before.startswith(_WILL):
                if not self.rules.may_write(self._came[1], self._came[0], topic := said[1:].decode(errors="replace")):
                    self.counts[WILL] += 1
                    causes[WILL] = f"{self._came[1][:100] or 'a client with a long name'} may not leave a will at {topic[:200]}"
            elif not said.startswith(_PASSING):
                if said.startswith(_COMES):
                    self._came = ("", "")
                kept.append(line.decode(errors="replace"))
                reason, cause = self._judged(kept[-1].partition(": ")[2]) if len(line) < CUT_BYTES else ("", "")
                if said.startswith(_TOO_LARGE):
                    reason, cause = PACKET, kept[-1].partition(": ")[2][:300]
                if reason:
                    self.counts[reason] += 1
                    causes[reason] = cause
            self._before = said
        if denied:
            causes[PUBLISH] = self._who_and_where(denied)
        while self._gone:
            self._users.pop(self._gone.pop(), None)
        self._keep(kept)
        twice = [each for each in causes if self.counts[each] >= 2 * self._told[each]]
        self._told |= Counter({each: self.counts[each] for each in twice})
        return [Told(each, self.counts[each], causes[each]) for each in twice]

    def _read(self) -> bytes:
        """At most what the pipe holds: who writes without end must not keep us here."""
        with contextlib.suppress(BlockingIOError):
            return b"" if self._pipe < 0 else os.read(self._pipe, PIPE_BYTES)
        return b""

    def _keep(self, lines: list[str]) -> None:
        if not lines:
            return
        self.last_words.extend(lines)
        with contextlib.suppress(OSError):  # no room, or read-only: the outbox tells it, and the last words are here
            size = self._log.stat().st_size if self._log.exists() else 0
            with self._log.open("a" if size < LOG_BYTES_MAX else "w") as log:
                log.write("".join(f"{each}\n" for each in lines))

    def _who_and_where(self, line: bytes) -> str:
        """Nobody is blamed for what another one calls itself: only who is known to have come by that name is named."""
        if len(line) >= CUT_BYTES:
            return "somebody may not write there: the name of the client, or the topic, is too long to be told"
        said = line.partition(_DENIED)[2].decode(errors="replace")
        for found in reversed(list(_WHERE.finditer(said))):
            if user := self._users.get(said[: found.start()]):
                topic = said[found.end() :].rpartition("', ... (")[0]
                return f"{user[:100]} may not write {topic[:200]}"
        return f"somebody unknown may not write there: {said[:300]!r}"

    def _judged(self, said: str) -> tuple[str, str]:
        """(reason, cause), without the instant it was said at; "": no refusal."""
        if came := _CAME.fullmatch(said):
            if len(self._users) >= USERS_MAX:
                self._users.clear()
            self._users[came[1]] = came[2]
            self._came = (came[1], came[2])
            self._gone.discard(came[1])
            return "", ""
        if went := _WENT.fullmatch(said):
            self._gone.add(went[1])
            return "", ""
        if _REFUSED.match(said) and not _OF_A_CLIENT.fullmatch(said):
            return CERTIFICATE, said.rpartition("::")[2].removesuffix(".")
        if _NOT_KNOWN.fullmatch(said):
            return PASSWORD, "wrong user name or password"
        if _FULL.fullmatch(said):
            return FULL, "too many connections of people with a password"
        if _BROKEN.fullmatch(said):
            return PACKET, said[:300]
        return "", ""
