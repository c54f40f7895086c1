"""Where the pictures go: a live view on a terminal, plain lines in a pipe, JSON lines for programs."""

from __future__ import annotations

from typing import Protocol

from edge_runtime.cli.demo import picture as pictures
from edge_runtime.cli.demo.account import Account, lines
from edge_runtime.cli.demo.picture import Picture
from edge_runtime.records import to_json

JSON_S = 1.0


class Show(Protocol):
    """`picture` is called a few times a second; `close` once, before an account or an error is printed."""

    def picture(self, now: Picture) -> None: ...

    def close(self) -> None: ...


def choose(as_json: bool, live: bool) -> Show:
    if as_json:
        return JsonLines()
    if live:
        from edge_runtime.cli.demo.view import View

        return View()
    return PlainLines()


class PlainLines:
    """A line every few seconds, and one for each change."""

    def __init__(self) -> None:
        self._before: Picture | None = None
        self._next_s = pictures.PLAIN_S

    def picture(self, now: Picture) -> None:
        for line in pictures.changes(self._before, now):
            print(line, flush=True)
        if now.elapsed_s >= self._next_s:
            print(pictures.plain(now), flush=True)
            self._next_s = now.elapsed_s + pictures.PLAIN_S
        self._before = now

    def close(self) -> None:
        """Nothing to tidy up."""


class JsonLines:
    """{"type": "progress", ...} every second, {"type": "account", ...} at the end."""

    def __init__(self) -> None:
        self._next_s = 0.0

    def picture(self, now: Picture) -> None:
        if now.elapsed_s >= self._next_s:
            print(to_json(now).decode(), flush=True)
            self._next_s = now.elapsed_s + JSON_S

    def close(self) -> None:
        """Nothing to tidy up."""


def finish(account: Account, seconds: float, as_json: bool) -> bool:
    """Prints the account; True: it is clean."""
    if as_json:
        print(to_json(account).decode(), flush=True)
        return not account.problems
    print(f"\naccount of {seconds:.0f} s")
    for line in lines(account):
        print(f"  {line}")
    return not account.problems
