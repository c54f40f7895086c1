"""Where the pictures of the site go: a live table on a terminal, plain lines in a pipe, JSON lines for programs."""

from __future__ import annotations

from typing import TYPE_CHECKING, Protocol

from edge_runtime.cli.demo.picture import PLAIN_S
from edge_runtime.cli.demo.show import JSON_S
from edge_runtime.cli.demo.site import picture as pictures
from edge_runtime.cli.demo.site.picture import Picture, SiteAccount, lines
from edge_runtime.records import to_json

if TYPE_CHECKING:
    from rich.console import RenderableType


class Show(Protocol):
    """`picture` is called a few times a second; `close` once, before an account or an error is printed."""

    def picture(self, now: Picture) -> None: ...

    def close(self) -> None: ...


def choose(as_json: bool, live: bool) -> Show:
    if as_json:
        return JsonLines()
    return View() if live else PlainLines()


class PlainLines:
    """A line every few seconds, and one for each change."""

    def __init__(self) -> None:
        self._before: Picture | None = None
        self._next_s = PLAIN_S

    def picture(self, now: Picture) -> None:
        for line in pictures.changes(self._before, now):
            print(line, flush=True)
        if now.elapsed_s >= self._next_s:
            print(pictures.plain(now), flush=True)
            self._next_s = now.elapsed_s + PLAIN_S
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


class View:
    """On a terminal (rich); fits into 80 columns. The last picture stays, and the account stands below it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._live = Live(console=Console(), auto_refresh=False, transient=False)
        self._begun = False

    def picture(self, now: Picture) -> None:
        if not self._begun:
            self._live.start()
            self._begun = True
        self._live.update(render(now), refresh=True)

    def close(self) -> None:
        if self._begun:
            self._live.stop()
            self._begun = False


def render(now: Picture) -> RenderableType:
    from rich import box
    from rich.console import Group
    from rich.table import Table
    from rich.text import Text

    time = f"{now.elapsed_s:.0f} s" + (f" of {now.seconds:.0f} s" if now.seconds else "")
    head = Text(f" edge-runtime demo: a site of {len(now.gateways)} gateways · {time} · ", style="reverse", no_wrap=True)
    head.append("draining " if now.draining else "Ctrl-C ends it ")
    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1, 0, 0))
    table.add_column("gateway", no_wrap=True)
    table.add_column("state", no_wrap=True)
    for name in ("results/s", "here", "by peers", "for others", "waiting"):
        table.add_column(name, justify="right", no_wrap=True)
    styles = {"online": "green", "joining": "yellow", "killed": "bold red"}
    for each in now.gateways:
        who = Text(each.name).append(" slow" if each.slow else "", "yellow").append(" broker" if each.host else "", "cyan")
        counts = [f"{count:,}" for count in (each.here, each.by_peers, each.for_others, each.waiting)]
        table.add_row(who, Text(each.state, styles[each.state]), f"{each.results_per_s:.1f}", *counts)
    last = [Text(f"  {each}", style="dim", no_wrap=True, overflow="ellipsis") for each in now.last]
    return Group(head, table, Text(" the slow gateway's last windows were computed by"), *last)


def finish(account: SiteAccount, seconds: float, as_json: bool) -> bool:
    """Prints the account; True: it is clean."""
    if as_json:
        print(to_json(account).decode(), flush=True)
        return not account.problems
    print(f"\naccount of {seconds:.0f} s")
    for line in lines(account):
        print(f"  {line}")
    return not account.problems
