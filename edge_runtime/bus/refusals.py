"""Counts in mosquitto's log the clients that it did not let in, and keeps the log from filling the disk (touches: that file).

Those without a good certificate, those with a wrong name or password, and those that are one too many. A publish that the
access rules refuse it mentions at its debug level alone, where it writes two lines for every message that passes: those cannot
be counted here.
"""

from __future__ import annotations

import re
from collections import Counter
from pathlib import Path

LOG_BYTES_MAX = 2**20
"""Whoever knocks writes 250 bytes of it, a thousand times a second: it is emptied at this size."""

_REFUSED = re.compile(r"(?:OpenSSL Error\[0\]|Client connection from \S+ failed): error:[^:]+:[^:]*::(?!unexpected eof)")
"""Two words for one thing: the second where all of the client's greeting is there when it is accepted; at level `notice` only."""
_NOT_KNOWN = re.compile(r"\d+: Client [^\n]{0,300} disconnected, not authorised\.")
"""The whole line: a client may call itself anything."""
_FULL = re.compile(r"\d+: Client connection from \S+ denied: max_connections exceeded\.")
CERTIFICATE, PASSWORD, FULL = "certificate", "password", "full"
"""What was missing or wrong; too many connections at the door for passwords."""


class Refusals:
    """The file is opened for appending by the broker: what is cut off here leaves no hole."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = 0
        self.counts = Counter({CERTIFICATE: 0, PASSWORD: 0, FULL: 0})
        """Since the gateway started."""

    def begin(self) -> None:
        """Another broker process, another log."""
        self._file.write_bytes(b"")
        self._at = 0

    def look(self) -> str:
        """Reads what is new, and returns the last reason in it ("": nobody was refused)."""
        last = ""
        if not self._file.exists():  # somebody has removed it
            return last
        with self._file.open("rb") as log:
            log.seek(self._at)
            new = log.read(2 * LOG_BYTES_MAX)
        whole = new[: new.rfind(b"\n") + 1]  # it writes a line in pieces
        self._at += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if _REFUSED.search(line):
                self.counts[CERTIFICATE] += 1
                last = line.rpartition("::")[2].removesuffix(".")
            elif _NOT_KNOWN.fullmatch(line):
                self.counts[PASSWORD] += 1
                last = "wrong user name or password"
            elif _FULL.fullmatch(line):
                self.counts[FULL] += 1
                last = "too many connections of people with a password"
        if self._at > LOG_BYTES_MAX and whole == new:
            self.begin()
        return last
