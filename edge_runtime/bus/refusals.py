"""What the broker refused, by what its process says (decides; pipe.py is where it is heard).

Clients without a good certificate, with a wrong name or password, one too many, or that speak no MQTT; and each publish that the
access rules do not allow. Those mosquitto names at its debug level alone. A will that is not allowed it drops without a word
when its client dies: we judge by its own rules what it says of a will when the client comes.
"""

from __future__ import annotations

import re
from collections import Counter
from typing import NamedTuple

from edge_runtime.bus.acl import Rules

CUT_BYTES = 999
"""There mosquitto cuts a line: then a client has had the last word, and may have made it look like the broker's."""
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
_COMES, _TOO_LARGE = "New client connected from ", "Dropped too large PUBLISH from "
_WILL = b"Will message specified"
_DENIED = b"Denied PUBLISH from "
_WHERE = re.compile(r" \(d\d, q\d, r\d, m\d+, '")
"""Between who and where. Clients choose both words, and may put this into them, too."""
_CAME = re.compile(r"New client connected from \S+ as (.*) \(p\d, c\d, k\d+, u'(.*)'\)\.")
_WENT = re.compile(r"Client (.*) (?:disconnected|closed its connection|has exceeded timeout, disconnecting)\.")
USERS_MAX = 1_000
"""Whose names are known, by what they call themselves, while they are connected; beyond it they are learnt anew."""
_PASSING = (b"Received ", b"Sending ", b"\t", _WILL, b"No will message specified")
"""Of what goes as it should, at level debug."""
CERTIFICATE, PASSWORD, FULL, PUBLISH, PACKET, WILL = "certificate", "password", "full", "publish", "packet", "will"
"""What was missing or wrong; too many connections at the door for passwords; a topic that the sender may not write; what is no
MQTT (a wildcard in the topic of a publish, too), or too large; a will on a topic that its client may not write."""


_Judged = tuple[str, str] | None
"""(reason, cause); None: no refusal."""


class Told(NamedTuple):
    """Of one reason there are now twice as many as when it was told last."""

    reason: str
    times: int
    cause: str
    """In the words of the broker, of the last one."""


class Refusals:
    """Of one hosted broker, in all of its lives."""

    def __init__(self) -> None:
        self._told: Counter[str] = Counter()
        self._users: dict[str, str] = {}
        """What a client calls itself, and who it is by its certificate or password."""
        self._gone: set[str] = set()
        """Of them: after these lines."""
        self._came = ("", "")
        """What the last one calls itself, and who it is; empty where its line was cut: then it has no topics of its own."""
        self._before = b""
        """The line before: that of a will has its topic in the next one."""
        self.rules = Rules()
        """Of the broker as it is now; whoever changes them says so here."""
        self.counts = Counter({CERTIFICATE: 0, PASSWORD: 0, FULL: 0, PUBLISH: 0, PACKET: 0, WILL: 0})
        """In all of them."""

    def judge(self, lines: bytes) -> tuple[list[str], list[Told]]:
        """Those of the lines that are for people, and what there is to tell of them."""
        causes: dict[str, str] = {}
        kept, denied = [], b""
        for line in lines.split(b"\n") if lines else ():  # thousands in a flood: most are told by how they begin
            said = line.partition(b": ")[2]
            if said.startswith(_DENIED):
                self.counts[PUBLISH] += 1
                denied = line
            elif said[:1] == b"\t" and self._before.startswith(_WILL):
                self._note(causes, self._judged_will(said[1:].decode(errors="replace")))
            elif not said.startswith(_PASSING):
                kept.append(line.decode(errors="replace"))
                self._note(causes, self._judged(kept[-1].partition(": ")[2], whole=len(line) < CUT_BYTES))
            self._before = said
        if denied:
            causes[PUBLISH] = self._who_and_where(denied)
        while self._gone:
            self._users.pop(self._gone.pop(), None)
        twice = [each for each in causes if self.counts[each] >= 2 * self._told[each]]
        self._told |= Counter({each: self.counts[each] for each in twice})
        return kept, [Told(each, self.counts[each], causes[each]) for each in twice]

    def _note(self, causes: dict[str, str], judged: _Judged) -> None:
        if judged is not None:
            reason, cause = judged
            self.counts[reason] += 1
            causes[reason] = cause

    def _judged_will(self, topic: str) -> _Judged:
        name, user = self._came
        if self.rules.may_write(user, name, topic):
            return None
        return WILL, f"{user[:100] or 'a client with a long name'} may not leave a will at {topic[:200]}"

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

    def _judged(self, said: str, *, whole: bool) -> _Judged:
        """Of a line without the instant it was said at; `whole`: mosquitto has not cut it."""
        if said.startswith(_COMES):
            self._came = ("", "")
        if said.startswith(_TOO_LARGE):
            return PACKET, said[:300]
        if not whole:
            return None
        if came := _CAME.fullmatch(said):
            if len(self._users) >= USERS_MAX:
                self._users.clear()
            self._users[came[1]] = came[2]
            self._came = (came[1], came[2])
            self._gone.discard(came[1])
        elif went := _WENT.fullmatch(said):
            self._gone.add(went[1])
        elif _REFUSED.match(said) and not _OF_A_CLIENT.fullmatch(said):
            return CERTIFICATE, said.rpartition("::")[2].removesuffix(".")
        elif _NOT_KNOWN.fullmatch(said):
            return PASSWORD, "wrong user name or password"
        elif _FULL.fullmatch(said):
            return FULL, "too many connections of people with a password"
        elif _BROKEN.fullmatch(said):
            return PACKET, said[:300]
        return None
