"""edge-runtime run: runs one gateway in the foreground until SIGINT or SIGTERM, then stops cleanly."""

from __future__ import annotations

import argparse
import contextlib
import logging
from collections.abc import Iterator, MutableMapping
from pathlib import Path
from typing import TYPE_CHECKING, Any, TextIO, cast

if TYPE_CHECKING:
    from collections.abc import Callable
    from types import ModuleType

    from edge_runtime.config import Log
    from edge_runtime.lifetime import Lifetime
    from edge_runtime.world import World

SUMMARY = "run a gateway until SIGINT or SIGTERM"

LOCK = "gateway.lock"


def arguments(parser: argparse.ArgumentParser) -> None:
    parser.add_argument("file", type=Path, help="configuration file (YAML or JSON)")


def run(args: argparse.Namespace) -> int:
    """0: stopped cleanly."""
    import os
    import sys

    from edge_runtime import config
    from edge_runtime.board import systemd
    from edge_runtime.board.system import left_behind
    from edge_runtime.control.origin import bare, said_by
    from edge_runtime.lifetime import BOOK, Lifetime
    from edge_runtime.services import run_to_the_end
    from edge_runtime.sources.registry import Registry

    # `resolve` of a link that leads to itself is an error before there is a message.
    registry, folder = Registry(), Path(os.path.realpath(args.file)).parent
    text, unreadable = None, None
    try:
        text = config.text_of(args.file)
    except config.ConfigError as error:
        unreadable = error
    said = said_by(text)
    early = bare(said)
    data_dir = folder / early.data_dir
    state = systemd.state_directory()
    if "data_dir" not in said and state is not None and (state / BOOK).exists() and not (data_dir / BOOK).exists():
        data_dir = state  # a file that is gone, or was overwritten: here is what it goes on with
    if unreadable and not (data_dir / BOOK).exists():
        raise unreadable
    log = logger(early.log)
    sys.excepthook = lambda _kind, error, _trace: log.critical("gateway_failed", exc_info=error)
    os.umask(0o077)  # the outbox holds values, the book configurations: nobody else on this machine reads what we write
    make_private(data_dir, folder)
    with locked(data_dir):
        if unreadable:
            log.error("configuration_unreadable", cause=unreadable.cause, hint=unreadable.hint)
        world = real_world(registry, log)
        run_to_the_end(serve(lambda: Lifetime(text, str(args.file), folder, data_dir, world), log), log)
    if left := left_behind():  # in an engine that is still loading, say; `main` ends around them
        log.info("threads_left_behind", threads=left)
    return 0


async def serve(begin: Callable[[], Lifetime], log: Any) -> None:
    """Until a signal."""
    import asyncio
    import signal

    gateway = begin()
    loop = asyncio.get_running_loop()
    running = asyncio.ensure_future(gateway.run())

    def stop() -> None:
        # A second signal does not wait for the far ends any more.
        if gateway.stopping:
            running.cancel()
        gateway.stop()

    for number in (signal.SIGINT, signal.SIGTERM):
        loop.add_signal_handler(number, stop)
    try:
        await running
    except asyncio.CancelledError:
        log.warning("gateway_interrupted", hint="what was accepted is on the disk")


def real_world(registry: Any, log: Any) -> World:
    """The machine that we run on."""
    from importlib.metadata import version

    from edge_runtime.board import systemd
    from edge_runtime.board.secrets import SystemSecrets
    from edge_runtime.board.system import SystemClock, SystemDice, ThreadWorker
    from edge_runtime.board.vitals import SystemVitals
    from edge_runtime.bus.broker import PahoBus
    from edge_runtime.bus.host import BrokerHost
    from edge_runtime.mesh import discovery
    from edge_runtime.outbox import sinks
    from edge_runtime.outbox.database import FileDisk
    from edge_runtime.world import World

    clock, dice = SystemClock(), SystemDice()
    return World(
        clock=clock,
        dice=dice,
        bus=PahoBus(),
        adapters=registry,
        new_worker=ThreadWorker,
        new_disk=FileDisk,
        make_sink=sinks.make,
        new_host=lambda settings, folder, identity: BrokerHost(settings, folder, clock, dice, log, identity),
        log=log,
        use_log=use_log,
        version=version("edge-runtime"),
        new_discovery=lambda mesh, listen: discovery.make(mesh, listen, log),
        reachable=discovery.reachable,
        vitals=lambda folder: SystemVitals(folder).read,
        secrets=SystemSecrets,
        systemd=systemd.found(),
    )


def use_log(settings: Log) -> None:
    """From now on this level; the format stays until the next start of the process."""
    _Level.least = getattr(logging, settings.level.upper())


class _Level:
    """A processor that drops what is below the level of the moment."""

    least = logging.INFO

    def __call__(self, _logger: Any, method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
        import structlog

        if logging.getLevelNamesMapping()[method.upper()] < self.least:
            raise structlog.DropEvent
        return event


def logger(settings: Log) -> Any:
    """structlog on standard error: one event a line, key=value for people, JSON for programs."""
    import sys

    structlog = _structlog()
    json = settings.format == "json" or (settings.format == "auto" and not sys.stderr.isatty())
    text = structlog.dev.ConsoleRenderer(pad_event_to=24, colors=sys.stderr.isatty())
    render: Any = structlog.processors.JSONRenderer() if json else text
    use_log(settings)
    structlog.configure(
        processors=[
            _Level(),
            structlog.processors.add_log_level,
            structlog.processors.TimeStamper(fmt="iso", utc=True),
            _tell_exception,
            render,
        ],
        wrapper_class=_with_level_of_the_moment(structlog.make_filtering_bound_logger(logging.DEBUG)),
        logger_factory=structlog.WriteLoggerFactory(file=cast("TextIO", _Lines(sys.stderr))),
        cache_logger_on_first_use=True,
    )
    log = structlog.get_logger()
    logging.lastResort = _Libraries(log)
    return log


class _Lines:
    """Standard error, for the log. A line that cannot be written (a file on a disk that is full, a pipe whose reader has gone) is
    lost; it must not end the gateway."""

    def __init__(self, stream: TextIO) -> None:
        self._stream = stream

    def write(self, text: str) -> None:
        with contextlib.suppress(OSError):
            self._stream.write(text)

    def flush(self) -> None:
        with contextlib.suppress(OSError):
            self._stream.flush()


def _structlog() -> Any:
    """Without rich, which it would take for tracebacks that nobody is shown (see _tell_exception): 3 MiB of 70."""
    import sys

    hidden = {} if "rich" in sys.modules else {"rich": None}
    sys.modules.update(cast("dict[str, ModuleType]", hidden))
    try:
        import structlog
    finally:
        for name in hidden:
            del sys.modules[name]
    return structlog


def _with_level_of_the_moment(kind: type[Any]) -> type[Any]:
    """So that who would have to do a lot for a debug line can ask before whether anybody reads it."""
    return type("Log", (kind,), {"is_enabled_for": lambda _, level: level >= _Level.least})


def _tell_exception(_logger: Any, _method: str, event: MutableMapping[str, Any]) -> MutableMapping[str, Any]:
    """Kinds and places only: structlog's own renderers show an exception's words, and local variables."""
    import sys

    from edge_runtime.saying import trace

    found = event.pop("exc_info", None)
    error = found if isinstance(found, BaseException) else sys.exc_info()[1] if found else None
    if error is not None:
        event["exception"] = trace(error)
    return event


class _Libraries(logging.Handler):
    """What libraries, and asyncio, log as warnings or worse: Python would print it as it is, with the words of exceptions."""

    def __init__(self, log: Any) -> None:
        super().__init__(logging.WARNING)
        self._log = log

    def emit(self, record: logging.LogRecord) -> None:
        says = str(record.msg).partition("\n")[0]  # without its arguments
        error = record.exc_info[1] if record.exc_info else None
        self._log.warning("library_says", library=record.name, says=says, exc_info=error)


def make_private(data_dir: Path, folder: Path) -> None:
    """Nobody else may enter it, or read a database in it: also where an earlier version, or somebody, made them. A `data_dir` in
    which the configuration itself lies (`folder`) is not ours alone. Raises EdgeError."""
    import os
    import stat

    from edge_runtime.ports import EdgeError

    try:
        data_dir.mkdir(parents=True, exist_ok=True)
        if data_dir.stat().st_uid != os.geteuid():
            return
        private = [(path, 0o600) for path in data_dir.glob("*.db*")]
        if not folder.is_relative_to(data_dir.resolve()):
            private.append((data_dir, 0o700))
        for path, mode in private:
            if stat.S_IMODE(path.stat().st_mode) != mode:  # a disk that is read-only now is waited for
                path.chmod(mode)
    except OSError as error:
        raise EdgeError(f"{data_dir}: {error.strerror}", "make the folder writable, or set `data_dir`") from None


@contextlib.contextmanager
def locked(folder: Path, hint: str = "stop it, or give this gateway another `data_dir`") -> Iterator[None]:
    """Two gateways on one outbox would give the same numbers away: the second is refused, with this hint. Raises EdgeError."""
    from edge_runtime.cli import lock
    from edge_runtime.ports import EdgeError

    missing = "make the folder writable, or set `data_dir`"
    try:
        folder.mkdir(parents=True, exist_ok=True)
    except OSError as error:
        raise EdgeError(f"{folder}: {error.strerror}", missing) from None
    with lock.held(folder / LOCK, folder, by="gateway is running on this folder", hint=hint, missing=missing):
        yield
