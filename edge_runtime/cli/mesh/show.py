"""`edge-runtime mesh`: a live table on a terminal, a line for every change elsewhere, or one JSON object."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import Sequence
from typing import Any

from edge_runtime.board.system import SystemClock
from edge_runtime.bus import topics
from edge_runtime.cli import terminal
from edge_runtime.cli.mesh import finding
from edge_runtime.cli.mesh.finding import Joined, Plan
from edge_runtime.cli.mesh.sight import Row, Sight
from edge_runtime.ports import BrokerError, EdgeError

JSON_S = 5.0
"""How long to wait for everybody's heartbeat at most."""
ALONE_S = 1.5
"""Without a single gateway."""
REFRESH_S = 0.25
AGAIN_S = 1.0
"""After the broker was lost, and between two attempts to find it."""

COLUMNS = (
    "gateway", "role", "state", "seen", "waiting", "models", "accelerators", "temp", "power", "in", "out", "latency", "outbox",
)  # fmt: skip
_SPARED = ("accelerators", "power", "outbox", "temp", "seen", "latency", "out", "in", "waiting")
"""Left out in this order where a terminal is too narrow; first of all those that nobody has a value for."""
_GAP = 2
"""Between two columns."""


def run(args: argparse.Namespace) -> int:
    plan = finding.plan(args)
    try:
        asyncio.run(_json(plan, args.seconds or JSON_S) if args.json else _watch(plan, args.seconds))
    except KeyboardInterrupt:
        if args.json:
            raise
    return 0


async def _json(plan: Plan, seconds: float) -> None:
    terminal.emit_json(await look(plan, seconds))


async def look(plan: Plan, seconds: float) -> dict[str, Any]:
    """Who is there now. Raises EdgeError: no broker, nobody."""
    import msgspec

    async with finding.joined(plan) as joined:
        sight, clock = Sight(joined.site, plan.identity), SystemClock()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(seconds):
                await _first(joined, sight)
                while sight.rows(0) and not sight.settled():
                    sight.take(await joined.connection.receive(), clock.mono_ns())
        rows = sight.rows(clock.mono_ns())
        if not rows:
            raise _nobody(joined)
        host = sight.brokers.host if sight.brokers else None
        return {"site": joined.site, "broker": joined.where, "host": host, "gateways": msgspec.to_builtins(rows)}


async def _watch(plan: Plan, seconds: float | None) -> None:
    """The first time there must be a broker, and a gateway; later it may come and go."""
    screen: Any = _Screen() if sys.stdout.isatty() and _has_rich() else _Lines()
    began = False
    with contextlib.suppress(TimeoutError), screen:
        async with asyncio.timeout(seconds):
            while True:
                try:
                    async with finding.joined(plan) as joined:
                        sight = Sight(joined.site, plan.identity)
                        await _first(joined, sight)
                        if not began and not sight.rows(0):
                            raise _nobody(joined)
                        began = True
                        await _follow(joined, sight, screen)
                except BrokerError as error:
                    if not began:
                        raise
                    screen.lost(str(error))
                await asyncio.sleep(AGAIN_S)
    if not began:
        raise EdgeError(f"no gateway was found within {seconds:g} s", "give it longer (--seconds), or say where: --broker URL")


async def _first(joined: Joined, sight: Sight) -> None:
    """Until there is a gateway, or nobody seems to be there."""
    clock = SystemClock()
    await joined.connection.subscribe(*sight.filters(), qos=0)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(ALONE_S):
            while not sight.rows(0):
                sight.take(await joined.connection.receive(), clock.mono_ns())


async def _follow(joined: Joined, sight: Sight, screen: Any) -> None:
    """Raises BrokerError when the broker is lost."""
    clock = SystemClock()

    async def draw() -> None:
        while True:
            screen.show(joined, sight, sight.rows(clock.mono_ns()))
            await asyncio.sleep(REFRESH_S)

    drawing = asyncio.create_task(draw(), name="drawing")
    try:
        while True:
            sight.take(await joined.connection.receive(), clock.mono_ns())
    finally:
        drawing.cancel()


def _nobody(joined: Joined) -> EdgeError:
    status = topics.gateway(joined.site, "+", "status")
    hint = f"is {joined.site} its name (nothing on {status})? does the gateway's file have `mesh`?"
    return EdgeError(f"{joined.where}: no gateway of site {joined.site} is, or was, there", hint)


# --- what is shown ---------------------------------------------------------------------------------------------------


def cells(row: Row) -> tuple[object, ...]:
    """As COLUMNS."""
    waiting = None if row.queue is None else f"{row.queue} ({_ms(row.queue_ms)})" if row.queue else "0"
    power = None if row.battery is None else "battery" if row.battery else "mains"
    temperature = None if row.temperature_c is None else f"{row.temperature_c:.0f} C"
    if row.hot:
        temperature = f"{temperature or ''} hot".strip()
    return (
        row.gateway,
        row.role,
        row.state,
        None if row.seen_s is None else f"{row.seen_s:.0f} s",
        waiting,
        ", ".join(f"{each.model} {_ms(each.service_ns / 1e6 if each.service_ns else None)}" for each in row.models),
        ", ".join(row.accelerators),
        temperature,
        power,
        row.tasks_in,
        row.tasks_out,
        _ms(row.latency_ms),
        row.outbox_depth,
    )


def _ms(value: float | None) -> str:
    if value is None:
        return "-"
    return f"{value:,.0f} ms" if value >= 10 else f"{value:.2g} ms" if value >= 0.1 else f"{value * 1e3:.2g} us"


def fitting(texts: Sequence[Sequence[str]], width: int) -> list[str]:
    """Which of COLUMNS fit into so many characters, in their order. Models are folded: a column as wide as the longest name."""
    of = dict(zip(COLUMNS, zip(COLUMNS, *texts, strict=True), strict=True))
    widths = {column: max(map(len, cells)) for column, cells in of.items()}
    widths["models"] = max(len(word) for cell in of["models"] for word in cell.split())
    empty = {column for column, (_, *rest) in of.items() if all(cell == "-" for cell in rest)}
    kept = list(COLUMNS)
    for column in sorted(_SPARED, key=lambda column: column not in empty):
        if sum(widths[each] + _GAP for each in kept) - _GAP <= width:
            break
        kept.remove(column)
    return kept


def _title(joined: Joined, sight: Sight, rows: Sequence[Row]) -> str:
    online = sum(row.state == "online" for row in rows)
    bad = f", {sight.bad} messages that were none" if sight.bad else ""
    return f"site {joined.site} on {joined.where}: {online} of {len(rows)} gateways online{bad}"


def _has_rich() -> bool:
    import importlib.util

    return importlib.util.find_spec("rich") is not None


class _Screen:
    """A table that is drawn again and again."""

    def __init__(self) -> None:
        from rich.live import Live

        self._live = Live(refresh_per_second=1 / REFRESH_S, vertical_overflow="visible")

    def __enter__(self) -> None:
        self._live.__enter__()

    def __exit__(self, *_: Any) -> None:
        self._live.__exit__(None, None, None)

    def show(self, joined: Joined, sight: Sight, rows: Sequence[Row]) -> None:
        from rich.table import Table
        from rich.text import Text

        styles = {"online": "", "late": "yellow", "offline": "dim", "unproved": "dim"}
        texts = [["-" if cell is None or cell == "" else str(cell) for cell in cells(row)] for row in rows]
        kept = fitting(texts, self._live.console.width)
        spared = ", ".join(column for column in COLUMNS if column not in kept)
        table = Table(
            title=_title(joined, sight, rows), title_justify="left", caption_justify="left", box=None, pad_edge=False,
            padding=(0, _GAP, 0, 0), header_style="bold",
            caption=f"in a wider terminal, and with --json: {spared}" if spared else None,
        )  # fmt: skip
        for column in kept:
            table.add_column(column, overflow="fold", no_wrap=column != "models")
        for row, line in zip(rows, texts, strict=True):
            shown = [text for column, text in zip(COLUMNS, line, strict=True) if column in kept]
            table.add_row(*map(Text, shown), style=styles[row.state])
        self._live.update(table)

    def lost(self, why: str) -> None:
        from rich.text import Text

        self._live.update(Text(f"the broker is lost, looking for it: {why}"))


class _Lines:
    """A line whenever a gateway comes, goes, or gets another role; all of them, in a table, at the end."""

    def __init__(self) -> None:
        self._said: dict[str, str] = {}
        self._last: tuple[str, Sequence[Row]] = ("", ())

    def __enter__(self) -> None:
        return

    def __exit__(self, kind: type[BaseException] | None, *_: Any) -> None:
        title, rows = self._last
        if kind in (None, TimeoutError) and title:
            terminal.table(COLUMNS, [cells(row) for row in rows], title)

    def show(self, joined: Joined, sight: Sight, rows: Sequence[Row]) -> None:
        if not self._last[0]:
            self._say(f"site {joined.site} on {joined.where}")
        self._last = _title(joined, sight, rows), rows
        for row in rows:
            models = ", ".join(each.model for each in row.models) or "no models"
            said = f"{row.gateway} {row.state}: {row.role}, {models}"
            if self._said.get(row.gateway) != said:
                self._said[row.gateway] = said
                self._say(said)

    def lost(self, why: str) -> None:
        self._say(f"the broker is lost, looking for it: {why}")

    @staticmethod
    def _say(line: str) -> None:
        print(line, flush=True)
