"""`edge-runtime mesh submit`: windows out of a .npy file, computed by a gateway of the site."""

from __future__ import annotations

import argparse
import asyncio
import contextlib
import sys
from collections.abc import AsyncIterator, Iterable, Iterator, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.board.system import SystemClock, SystemDice
from edge_runtime.bus import frames, presence, topics
from edge_runtime.bus.frames import Reply, Verdict
from edge_runtime.bus.presence import Birth
from edge_runtime.cli import terminal
from edge_runtime.cli.mesh import finding
from edge_runtime.cli.mesh.finding import Joined
from edge_runtime.cli.mesh.sight import Row, Sight
from edge_runtime.mesh.asking import Asking, Unanswered
from edge_runtime.mesh.link import Home, Link
from edge_runtime.mesh.sealing import Sealing
from edge_runtime.ports import Address, BrokerError, EdgeError, Message
from edge_runtime.records import Tensor

if TYPE_CHECKING:
    import numpy as np
    from numpy.typing import NDArray

    from edge_runtime.trust.identity import Identity

LOOK_S = 2.0
"""How long to wait for the heartbeats of gateways that have the model."""
PRIORITY = 5
DIMENSIONS = (2, 3)


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """A window, and who computed it. `round_trip_ms` = computing + waiting there + the way."""

    window: int
    gateway: str
    model: str
    outputs: dict[str, float]
    threshold: float | None
    executed_on: str
    artefact: str
    round_trip_ms: float
    computed_ms: float
    waited_ms: float


def run(args: argparse.Namespace) -> int:
    windows = read(args.file)
    asyncio.run(_submit(args, windows))
    return 0


async def _submit(args: argparse.Namespace, windows: NDArray[np.float64]) -> None:
    plan = finding.plan(args)
    who = plan.identity
    check_may_ask(who)
    async with finding.joined(plan) as joined:
        rows = await _look(joined, args.model, who)
        check_not_running(who, rows)
        model = chosen_model(args.model, rows)
        gateways = candidates(model, rows, args.gateway)
        done: list[Done] = []
        async with _asking(joined, who, gateways) as asking:
            for number, window in _with_progress(list(enumerate(windows))):
                done.append(await _one(asking, gateways, model, number, window, args.deadline))
    if args.json:
        terminal.emit_json(msgspec.to_builtins(done))
    else:
        _print(done)


# --- the file --------------------------------------------------------------------------------------------------------


def read(file: Path) -> NDArray[np.float64]:
    """-> float64[windows, rows, points]. Raises EdgeError: no file, no .npy, no numbers, another number of dimensions."""
    import numpy as np

    try:
        found = np.load(file, allow_pickle=False)
    except OSError as error:
        raise EdgeError(f"{file}: {error.strerror or error}", "give a file written by numpy.save") from None
    except (ValueError, EOFError):
        raise EdgeError(f"{file}: is no .npy file of numbers", "write one with numpy.save(file, array)") from None
    if not isinstance(found, np.ndarray):
        raise EdgeError(f"{file}: holds several arrays (.npz)", "write the one with the windows with numpy.save")
    shape = " x ".join(map(str, found.shape)) or "a number"
    if found.dtype.kind not in "fiu":
        raise EdgeError(f"{file}: holds {found.dtype}, no real numbers", "windows are float64: array.astype('float64')")
    if found.ndim not in DIMENSIONS or not found.size:
        hint = "rows x points (one window), or windows x rows x points"
        raise EdgeError(f"{file}: its shape is {shape}", hint)
    windows = np.ascontiguousarray(found if found.ndim == max(DIMENSIONS) else found[None], dtype="<f8")
    if windows[0].nbytes > frames.TASK_BYTES_MAX - frames.HEADER_BYTES_MAX:
        raise EdgeError(f"{file}: a window has {windows[0].nbytes} bytes, at most 4 MiB travel", "its shape: " + shape)
    return windows


# --- who gets it -----------------------------------------------------------------------------------------------------


def check_may_ask(who: Identity | None) -> None:
    """Where the site has an authority, tasks are sealed between two gateways. Raises EdgeError."""
    if who is not None and who.role != "gateway":
        cause = f"{who.name} is {who.role}: where a site has an authority, tasks go between gateways only, sealed for each other"
        hint = "on a gateway that is stopped, or one of its own for tests: --identity DIR of the gateway (data_dir/identity)"
        raise EdgeError(cause, hint)


def check_not_running(who: Identity | None, rows: Sequence[Row]) -> None:
    """Raises EdgeError: there would be two of one name, and the gateway that works would take the other for a rival."""
    if who is not None and any(row.gateway == who.name for row in rows):
        hint = f"--identity DIR of another gateway; or stop {who.name} meanwhile"
        raise EdgeError(f"the gateway {who.name} runs: nobody else may speak in its name", hint)


async def _look(joined: Joined, model: str, who: Identity | None = None) -> list[Row]:
    """Until all that have the model were heard: a better one than the first may be among them."""
    sight, clock = Sight(joined.site, who), SystemClock()

    def heard() -> bool:
        able = [row for row in sight.rows(clock.mono_ns()) if _offered(model, [row])]
        return bool(able) and all(row.state != "unproved" for row in able)

    await joined.connection.subscribe(*sight.filters(), qos=0)
    with contextlib.suppress(TimeoutError):
        async with asyncio.timeout(LOOK_S):
            while not heard():
                sight.take(await joined.connection.receive(), clock.mono_ns())
    await joined.connection.unsubscribe(*sight.filters())
    return [row for row in sight.rows(clock.mono_ns()) if row.state != "offline"]


def _offered(model: str, rows: Iterable[Row]) -> list[str]:
    """By its whole name, or any version of it."""
    names = [offer.model for row in rows for offer in row.models]
    return [name for name in dict.fromkeys(names) if name == model or name.partition("@")[0] == model]


def chosen_model(model: str, rows: Sequence[Row]) -> str:
    """name@version. Raises EdgeError: nobody offers it; there is more than one version."""
    found = _offered(model, rows)
    if len(found) == 1 or model in found:
        return model if model in found else found[0]
    if found:
        raise EdgeError(f"{model}: there is more than one version", f"say which: {', '.join(sorted(found))}")
    offered = sorted({offer.model for row in rows for offer in row.models})
    if not rows:
        raise EdgeError("no gateway is there", "see `edge-runtime mesh`")
    raise EdgeError(f"{model}: no gateway offers it", f"offered are: {', '.join(offered)}" if offered else "no model is offered")


def candidates(model: str, rows: Sequence[Row], only: str | None) -> list[str]:
    """Who is asked, in this order: who should be done first. Raises EdgeError where `only` is not there or has another model."""
    able = [row for row in rows if any(offer.model == model for offer in row.models)]
    if only is not None and only not in [row.gateway for row in able]:
        there = "it does not offer the model" if only in [row.gateway for row in rows] else "it is not there"
        raise EdgeError(f"gateway {only}: {there}", f"{model} is offered by {', '.join(row.gateway for row in able)}")

    def order(row: Row) -> tuple[bool, bool, float, str]:
        service_ns = next(offer.service_ns for offer in row.models if offer.model == model)
        spared = bool(row.hot or row.battery)
        return row.state != "online", spared, (row.queue_ms or 0) + service_ns / 1e6, row.gateway

    return [only] if only is not None else [row.gateway for row in sorted(able, key=order)]


# --- the way there ---------------------------------------------------------------------------------------------------


@asynccontextmanager
async def _asking(joined: Joined, who: Identity | None, gateways: Sequence[str]) -> AsyncIterator[Asking]:
    """`who`: a gateway of the site, which says that it is there, for the others to know its key; and that it is gone."""
    link = Link(joined.site, who.name if who else joined.name, SystemDice().token(), _Quiet(), Sealing(who) if who else None)
    ready = asyncio.Event()
    met = dict.fromkeys(gateways if who else (), False)

    async def join() -> None:
        await _say_birth(link, online=True)
        if not met:
            ready.set()

    def hear(gateway: str, message: Message) -> None:
        if link.sealing is not None and gateway in met and message.payload:
            link.sealing.meet(gateway, presence.unpack(message.payload, Birth).agreement)
            met[gateway] = True
            if all(met.values()):
                ready.set()

    def take_roster(_: str, message: Message) -> None:
        if who is not None:
            with contextlib.suppress(EdgeError):  # with the one that it has it goes on
                who.take_roster(message.payload)

    if who is not None:
        link.on("roster", take_roster, topics.roster(joined.site))
    link.on("status", hear)
    link.joined.append(join)
    asking = Asking(link, SystemClock(), _Quiet())
    serving = asyncio.create_task(link.serve(joined.connection, Home(Address(host=joined.where))), name="link")
    waiting = asyncio.create_task(ready.wait(), name="ready")
    try:
        await asyncio.wait((serving, waiting), return_when=asyncio.FIRST_COMPLETED, timeout=LOOK_S)
        if serving.done():
            serving.result()
        yield asking
    finally:
        with contextlib.suppress(BrokerError):
            await _say_birth(link, online=False)
        waiting.cancel()
        serving.cancel()
        with contextlib.suppress(asyncio.CancelledError, BrokerError):
            await serving


async def _say_birth(link: Link, *, online: bool) -> None:
    """Raises BrokerError."""
    if link.sealing is not None:
        key = link.sealing.public if online else ""
        birth = Birth(site=link.site, gateway=link.gateway, instance=link.instance, online=online, agreement=key)
        topic = topics.gateway(link.site, link.gateway, "status")
        await link.send(topic, link.sealing.sign(presence.pack(birth)), qos=1, retain=True)


async def _one(
    asking: Asking, gateways: Sequence[str], model: str, number: int, window: NDArray[np.float64], deadline_s: float
) -> Done:  # fmt: skip
    """Raises EdgeError: what the last one said."""
    clock, tensor = SystemClock(), Tensor("float64", window.shape, window.tobytes())
    deadline_ns = clock.mono_ns() + round(deadline_s * 1e9)
    last = EdgeError(f"window {number}: nobody computed it within {deadline_s:g} s", "a longer --deadline")
    for gateway in gateways:
        began_ns = clock.mono_ns()
        if began_ns >= deadline_ns:
            break
        try:
            reply = await asking.ask(gateway, model, tensor, deadline_ns=deadline_ns, priority=PRIORITY)
        except Unanswered as error:
            last = EdgeError(f"window {number}: {error.cause}", error.hint or "see `edge-runtime mesh`")
            continue
        if reply.verdict is Verdict.DONE:
            return _done(number, gateway, model, reply, clock.mono_ns() - began_ns)
        last = EdgeError(f"window {number}: {gateway} {reply.verdict}: {reply.cause}", reply.hint)
        if reply.verdict is Verdict.FAILED:
            break  # of the window itself, most likely: another one would say the same
    raise last


def _done(number: int, gateway: str, model: str, reply: Reply, taken_ns: int) -> Done:
    inference = reply.inference
    assert inference is not None
    return Done(
        window=number, gateway=gateway, model=model, outputs=inference.outputs, threshold=inference.threshold,
        executed_on=inference.executed_on, artefact=inference.artefact, round_trip_ms=taken_ns / 1e6,
        computed_ms=reply.service_ns / 1e6, waited_ms=reply.waited_ns / 1e6,
    )  # fmt: skip


class _Quiet:
    """What peers get wrong is said by what `ask` raises."""

    def warning(self, *_: Any, **__: Any) -> None:
        return

    def is_enabled_for(self, _level: int) -> bool:
        return False


# --- what is shown ---------------------------------------------------------------------------------------------------


def _print(done: Sequence[Done]) -> None:
    names = list(dict.fromkeys(name for each in done for name in each.outputs))
    columns = ("window", *names, "gateway", "computed on", "ms", "computing", "waiting", "way")
    title = f"{done[0].model}, {len(done)} window{'s' if len(done) > 1 else ''}"
    terminal.table(columns, [_cells(each, names) for each in done], title)
    limits = {each.threshold for each in done if each.threshold is not None}
    if len(limits) == 1:
        print(f"threshold: {limits.pop():.6g}")


def _cells(done: Done, names: Sequence[str]) -> tuple[object, ...]:
    way_ms = done.round_trip_ms - done.computed_ms - done.waited_ms
    times = (done.round_trip_ms, done.computed_ms, done.waited_ms, way_ms)
    outputs = (f"{done.outputs[name]:.6g}" if name in done.outputs else None for name in names)
    return done.window, *outputs, done.gateway, done.executed_on, *(f"{each:.2f}" for each in times)


def _with_progress(windows: list[tuple[int, Any]]) -> Iterator[tuple[int, Any]]:
    """A bar on standard error, if that is a terminal and there is more than one window."""
    with contextlib.suppress(ImportError):
        if sys.stderr.isatty() and len(windows) > 1:
            from rich.console import Console
            from rich.progress import track

            return iter(track(windows, "computing", len(windows), console=Console(stderr=True)))
    return iter(windows)
