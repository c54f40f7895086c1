"""The demo's live view (rich): fits into 80 columns and 24 lines."""

from __future__ import annotations

from collections.abc import Sequence
from typing import TYPE_CHECKING

from edge_runtime.cli.demo.picture import Picture
from edge_runtime.cli.demo.watching import LAST_MAX, Judged

if TYPE_CHECKING:
    from rich.console import RenderableType
    from rich.table import Table
    from rich.text import Text

_STYLES = {"found": "bold green", "missed": "bold yellow", "false alarm": "bold yellow", "normal": "dim"}


class View:
    """show.Show on a terminal. The last picture stays, and the account stands below it."""

    def __init__(self) -> None:
        from rich.console import Console
        from rich.live import Live

        self._console = Console()
        self._live = Live(console=self._console, auto_refresh=False, transient=False)
        self._begun = False

    def picture(self, now: Picture) -> None:
        if not self._begun:
            self._live.start()
            self._begun = True
        self._live.update(render(now, self._console.width), refresh=True)

    def close(self) -> None:
        if self._begun:
            self._live.stop()
            self._begun = False


def render(now: Picture, width: int) -> RenderableType:
    from rich.console import Group

    rows = _side_by_side(_judged("last rows", now.last), _judged(_score(now), now.notable))
    return Group(_head(now, width), "", _flow(now), _sinks(now), _figures(now), "", rows)


def _head(now: Picture, width: int) -> Text:
    from rich.text import Text

    time = f"{now.elapsed_s:.0f} s" + (f" of {now.seconds:.0f} s" if now.seconds else "")
    what = "draining" if now.draining else "Ctrl-C ends it"
    left, right = " edge-runtime demo: gateway press-7 at plant-1", f"{time} · {what} "
    return Text(left + " " * max(2, width - len(left) - len(right)) + right, style="reverse", no_wrap=True, overflow="ellipsis")


def _flow(now: Picture) -> Text:
    """The way of a record, and where it ends now."""
    from rich.text import Text

    cloud = now.sink("cloud")
    flow = Text(" ", no_wrap=True, overflow="ellipsis")
    flow.append("press", "bold").append(f" ─{now.samples_per_s:4.1f}/s→ ", "cyan")
    flow.append("model", "bold").append(f" ─{now.results_per_s:4.1f}/s→ ", "cyan")
    flow.append("outbox", "bold").append(f" {cloud.depth:,} waiting ", "yellow" if cloud.depth > 100 else "")
    if now.uplink == "cut":
        flow.append("──✂  uplink CUT  ✂──", "bold red")
    elif cloud.connected:
        flow.append("─── uplink up ───→", "green")
    else:
        flow.append("─── uplink up ─?─→", "yellow")
    return flow.append(" cloud", "bold")


def _sinks(now: Picture) -> Table:
    from rich import box
    from rich.table import Table
    from rich.text import Text

    table = Table(box=box.SIMPLE_HEAD, expand=True, padding=(0, 1))
    table.add_column("sink", no_wrap=True)
    table.add_column("delivery", no_wrap=True)
    table.add_column("state", ratio=1, no_wrap=True, overflow="ellipsis")
    table.add_column("delivered", justify="right", no_wrap=True)
    table.add_column("waiting", justify="right", no_wrap=True)
    for sink in now.sinks:
        delivery = Text(sink.delivery, "green" if sink.confirms else "yellow")
        state = Text("connected", "green") if sink.connected else Text("away", "bold red")
        table.add_row(sink.name, delivery, state, f"{sink.delivered:,}", f"{sink.depth:,}")
    return table


def _figures(now: Picture) -> Text:
    from rich.text import Text

    cloud, port = now.sink("cloud"), now.broker.rpartition(":")[2]
    waiting = ", ".join(f"{depth:,} {lane}{'s' if depth > 1 else ''}" for lane, depth in cloud.waiting.items() if depth)
    text = Text(no_wrap=True, overflow="ellipsis")
    text.append(f" latency  {now.latency.text()} from source to receipt; model on {now.executed_on or '... loading'}\n")
    text.append(f" outbox   {now.outbox_bytes / 1024:,.0f} KiB on disk; the cloud lacks {waiting or 'nothing'}\n")
    text.append(f" on site  mosquitto_sub -p {port} -t 'edge/#' -v", "dim")
    for sink in now.sinks:
        if not sink.connected:
            text.append(f"\n {sink.name} is away: {sink.cause}", "red")
    if now.trouble:
        text.append(f"\n {now.trouble}", "bold red")
    return text


def _score(now: Picture) -> str:
    found = now.anomalies
    return f"anomalies: {found.true} found, {found.missed} missed, {found.false} false"


def _judged(title: str, rows: Sequence[Judged]) -> Table:
    from rich.table import Table
    from rich.text import Text

    table = Table(title=title, title_justify="left", title_style="bold", box=None, padding=(0, 1), expand=True)
    for name in ("row", "score"):
        table.add_column(name, justify="right", style="dim")
    table.add_column("model, label", ratio=1)
    for judged in reversed(rows):
        said = Text(judged.verdict, _STYLES[judged.verdict])
        table.add_row(f"{judged.row:,}", f"{judged.score:,.2f}", said)
    for _ in range(LAST_MAX - len(rows)):
        table.add_row("", "", "")
    return table


def _side_by_side(left: Table, right: Table) -> Table:
    from rich.table import Table

    both = Table.grid(expand=True, padding=(0, 1))
    both.add_column(ratio=1)
    both.add_column(ratio=1)
    both.add_row(left, right)
    return both
