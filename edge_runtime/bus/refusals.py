"""Counts in mosquitto's log the clients that it did not let in, and keeps the log from filling the disk (touches: that file).

Only those without a good certificate: they are an error to mosquitto. A publish that the access rules refuse it mentions at its
debug level alone, where it writes two lines for every message that passes: those cannot be counted here.
"""

from __future__ import annotations

import re
from pathlib import Path

LOG_BYTES_MAX = 2**20
"""Whoever knocks writes 250 bytes of it, a thousand times a second: it is emptied at this size."""

_REFUSED = re.compile(r"(?:OpenSSL Error\[0\]|Client connection from \S+ failed): error:[^:]+:[^:]*::(?!unexpected eof)")
"""Two words for one thing: the second where all of the client's greeting is there when it is accepted; at level `notice` only."""


class Refusals:
    """The file is opened for appending by the broker: what is cut off here leaves no hole."""

    def __init__(self, file: Path) -> None:
        self._file = file
        self._at = 0
        self.count = 0
        """Since the gateway started."""

    def begin(self) -> None:
        """Another broker process, another log."""
        self._file.write_bytes(b"")
        self._at = 0

    def look(self) -> str:
        """Reads what is new, and returns the last reason in it ("": nobody was refused)."""
        last = ""
        with self._file.open("rb") as log:
            log.seek(self._at)
            new = log.read(2 * LOG_BYTES_MAX)
        whole = new[: new.rfind(b"\n") + 1]  # it writes a line in pieces
        self._at += len(whole)
        for line in whole.decode(errors="replace").splitlines():
            if _REFUSED.search(line):
                self.count += 1
                last = line.rpartition("::")[2].removesuffix(".")
        if self._at > LOG_BYTES_MAX and whole == new:
            self.begin()
        return last
