"""What the broker's process says (touches: the pipe that it writes to, and broker.log).

At the level at which it names what it refuses, mosquitto writes two lines for every message that passes, too. So it writes to a
pipe, which is looked at many times a second: a file would wear the disk out, and grow while this process stands still. When the
pipe is full mosquitto waits until somebody looks: each refusal is heard, also in a burst that fills it between two looks.
"""

from __future__ import annotations

import contextlib
import fcntl
import os
from collections import deque
from pathlib import Path

PIPE_BYTES = 2**20
"""Without being root a process may ask for no more. That is 8,000 lines: 10 s of a busy site, 80 ms of an attacker's."""
LOG_BYTES_MAX = 2**20
"""Whoever knocks writes 250 bytes of it, a thousand times a second: it is emptied at this size."""
LINE_BYTES_MAX = 4_096
"""Of half a line."""
WORDS = 3
"""Lines that are remembered."""


class Pipe:
    """Of one hosted broker, in all of its lives."""

    def __init__(self, log: Path) -> None:
        """`log`: for people, what is kept of it."""
        self._log = log
        self._ours = -1
        self._holds = PIPE_BYTES
        self._rest = b""
        self.fill = 0.0
        """At the last look."""
        self.last_words: deque[str] = deque(maxlen=WORDS)

    def begin(self) -> int:
        """Another process: where it shall write to. Whoever asks has to close it."""
        self.close()
        self._ours, theirs = os.pipe2(os.O_CLOEXEC)
        os.set_blocking(self._ours, False)
        with contextlib.suppress(OSError):  # the user has too many of them: a smaller one, then
            fcntl.fcntl(theirs, fcntl.F_SETPIPE_SZ, PIPE_BYTES)
        self._holds = fcntl.fcntl(theirs, fcntl.F_GETPIPE_SZ)
        if self._holds < PIPE_BYTES:  # it would wait at each look: it had better go on without a word
            os.set_blocking(theirs, False)
        self._rest = b""
        self.last_words.clear()
        with contextlib.suppress(OSError):  # as below
            self._log.write_bytes(b"")
        return theirs

    def close(self) -> None:
        """May be called again."""
        if self._ours >= 0:
            os.close(self._ours)
            self._ours = -1

    def look(self) -> bytes:
        """Takes what was said since: whole lines."""
        new = self._read()
        self.fill = len(new) / self._holds
        lines, _, rest = (self._rest + new).rpartition(b"\n")
        self._rest = rest[-LINE_BYTES_MAX:]  # it may have written half of it
        return lines

    def keep(self, lines: list[str]) -> None:
        """For people."""
        if not lines:
            return
        self.last_words.extend(lines)
        with contextlib.suppress(OSError):  # no room, or read-only: the outbox tells it, and the last words are here
            size = self._log.stat().st_size if self._log.exists() else 0
            with self._log.open("a" if size < LOG_BYTES_MAX else "w") as log:
                log.write("".join(f"{each}\n" for each in lines))

    def _read(self) -> bytes:
        """At most what the pipe holds: who writes without end must not keep us here."""
        with contextlib.suppress(BlockingIOError):
            return b"" if self._ours < 0 else os.read(self._ours, PIPE_BYTES)
        return b""
