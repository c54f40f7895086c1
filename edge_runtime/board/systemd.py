"""The one place that knows systemd: datagrams to its notify socket, as sd_notify(3) says, and where it keeps our state.

Nobody waits for it, and what it does not take is lost: the next word comes soon.
"""

from __future__ import annotations

import contextlib
import os
import re
import socket
from collections.abc import Mapping, MutableMapping
from pathlib import Path

WORD_CHARS_MAX = 300
"""Of one value."""

_CONTROL = re.compile(r"[\x00-\x1f\x7f]+")


class Systemd:
    """`watchdog_s`: without a word for so long it kills us; 0: never."""

    def __init__(self, path: str, watchdog_s: float = 0.0) -> None:
        self.watchdog_s = watchdog_s
        self._path = "\0" + path[1:] if path.startswith("@") else path
        self._socket = socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM)
        self._socket.setblocking(False)

    def tell(self, **words: str | int) -> None:
        """tell(READY=1, STATUS="works"). A line break in a value would begin another word: it becomes a space."""
        text = "\n".join(f"{key}={_CONTROL.sub(' ', str(value))[:WORD_CHARS_MAX]}" for key, value in words.items())
        with contextlib.suppress(OSError):
            self._socket.sendto(text.encode(), self._path)


def found(environ: MutableMapping[str, str] = os.environ) -> Systemd | None:
    """None: nobody listens. Takes the socket out of the environment: mosquitto, as a child of ours, would say READY and STOPPING
    in our name."""
    path, watchdog_us = environ.pop("NOTIFY_SOCKET", ""), environ.pop("WATCHDOG_USEC", "")
    ours = environ.pop("WATCHDOG_PID", str(os.getpid())) == str(os.getpid())
    if not path.startswith(("/", "@")):
        return None
    return Systemd(path, int(watchdog_us) / 1e6 if ours and watchdog_us.isdigit() else 0.0)


def state_directory(environ: Mapping[str, str] = os.environ) -> Path | None:
    """StateDirectory= of the unit, the first one of several. None: there is none."""
    first = environ.get("STATE_DIRECTORY", "").partition(":")[0]
    return Path(first) if first.startswith("/") else None
