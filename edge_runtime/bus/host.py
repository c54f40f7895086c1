"""Starts the local broker as a child process (`broker.mode: hosted` or `auto`): mosquitto, or the embedded iotcore.

It listens on `broker.listen`: on loopback, or on the network, where it lets in anybody who is there (and says so at every start),
unless this gateway has an identity: then it speaks TLS only, to members of the site, and each one may write its own (acl.py).
The child dies with this process, also by kill -9; one that crashes is started again. mosquitto keeps sessions, queues and
retained messages in `folder` and saves them every second. `hosted`: for ever. `auto`: as long as this gateway goes on hosting; a
later time begins empty, because the site was elsewhere meanwhile, and what was kept is old news by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import functools
import importlib.metadata
import logging
import os
import signal
import sys
from collections.abc import Coroutine, Iterator, Mapping
from pathlib import Path
from typing import Any, NamedTuple, TypeVar

from msgspec.structs import replace

from edge_runtime import references
from edge_runtime.bus import listening, mosquitto, programs
from edge_runtime.bus.acl import Rules
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.member import Dress
from edge_runtime.bus.pipe import Pipe
from edge_runtime.bus.refusals import Refusals
from edge_runtime.config import Broker
from edge_runtime.ports import Address, BrokerError, Clock, Dice
from edge_runtime.trust.identity import Identity

START_S_MAX = 10.0
STOP_S_MAX = 5.0
"""mosquitto writes its persistence file on a clean stop."""
PROBE_S = 0.02
RESTART_S_MAX = 30.0
STEADY_S = 60.0
"""A broker that lived this long is started again at once."""
LOOK_S = 0.05
"""How often the roster, our certificate and what mosquitto says are looked at."""
SELDOM_S = 0.25
"""Without a site: nobody is refused. (Twenty looks a second take half a percent of a core.)"""
CROWDED_LOOK_S = 0.01
"""While it fills: mosquitto must seldom have to wait for us. In a flood it says 10,000 lines a second, of up to 1,000 bytes where
topics or names are long."""
CROWDED, CALM = 1 / 8, 1 / 64
"""Of the pipe, found full at a look."""

_PR_SET_PDEATHSIG = 1


_T = TypeVar("_T")


class _State(NamedTuple):
    """Of the identity, as far as mosquitto is concerned."""

    revision: int = 0
    serial: str = ""
    """Of our certificate: it may be renewed."""
    revoked: frozenset[str] = frozenset()


class BrokerHost:
    """One hosted broker. Call `start` from a thread that lives as long as the broker must (the event loop's): the child dies
    with the *thread* that forked it."""

    def __init__(
        self, settings: Broker, folder: Path, clock: Clock, dice: Dice, log: Any, identity: Identity | None = None
    ) -> None:  # fmt: skip
        """`identity`: of this gateway; None: there is no site. Its roster and its certificate may change at any time."""
        self._settings = settings
        self._folder = folder
        self._clock = clock
        self._dice = dice
        self._log = log
        self._listen, self._address = listening.where(settings)
        self._people = listening.for_passwords(settings)
        self._dress = None if identity is None else Dress(identity)
        self._applied = self._state()
        self._cause = ""
        self._pipe, self._refusals = Pipe(folder / "broker.log"), Refusals()
        self._restarting = False
        self._command: list[str] = []
        self._child: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._program = ""

    @property
    def program(self) -> str:
        """Which one runs, for people: "mosquitto 2.0.11"; "" before `start`."""
        return self._program

    @property
    def up(self) -> bool:
        """Its process lives."""
        return self._child is not None and self._child.returncode is None

    @property
    def refused(self) -> Mapping[str, int]:
        """Clients and publishes: by reason, as mosquitto tells, since `start`; see refusals.py."""
        return self._refusals.counts

    async def start(self) -> Address:
        """Returns when it accepts MQTT connections. Raises BrokerError: neither program is there, the port is taken, ..."""
        with self._able():
            self._command = await self._choose()
        if self._settings.mode == "auto":
            with self._on_disk():
                (self._folder / "mosquitto.db").unlink(missing_ok=True)
        await self._launch()
        if self._dress is None and not listening.is_loopback(self._listen[0]):
            hint = "no TLS, no passwords: for a trusted network only; else an external broker with TLS and access rules"
            cause = "whoever is on the network may read and write everything on this broker"
            self._log.warning("broker_open_to_network", listen=self._listen[0], port=self._address.port, cause=cause, hint=hint)
        return self._reach()

    async def run(self) -> None:
        """Starts it again whenever it dies, with growing pauses; returns after `stop`."""
        pause_s = 0.0
        while not self._stopping.is_set():
            began_ns = self._clock.mono_ns()
            if self._child is not None:
                code = await self._hearing(self._child.wait())
                if self._stopping.is_set():
                    return
                if not self._restarting:
                    self._log.warning("broker_died", program=self._program, status=code, says=self._last_words())
            steady = self._restarting or self._clock.mono_ns() - began_ns > STEADY_S * 1e9
            pause_s = 0.0 if steady else min(RESTART_S_MAX, max(0.1, pause_s * 2))
            self._restarting = False
            await asyncio.sleep(self._dice.uniform(pause_s / 2, pause_s))
            try:
                await self._launch()
            except BrokerError as error:
                self._log.error("broker_does_not_start", cause=error.cause, hint=error.hint)
            if self._stopping.is_set():
                await self.stop()

    async def stop(self) -> None:
        """A clean end, else kill. May be called again, and before `start`."""
        self._stopping.set()
        child, self._child = self._child, None
        if child is not None:
            await self._hearing(_end(child))
        self._pipe.close()

    def refresh_roster(self) -> None:
        """Takes what the identity's roster and certificate say now; done without being asked within LOOK_S.

        At a SIGHUP mosquitto 2.0.11 reads its access rules, certificate, key and CRL again. But a client that is connected stays
        so, though its certificate is revoked (measured), and goes on to read all of the site; and of two CRLs with the same
        date it may keep the old one. So after a revocation it is started again: the revoked one is off after 0.1 s, the others
        are back after 0.25 s.
        """
        before, child = self._applied, self._child
        if child is None or not self.up or self._state() == before:
            return
        try:
            self._write_access()
        except BrokerError as error:  # the disk is full: tried again until it is written
            if error.cause != self._cause:
                self._log.error("roster_not_applied", cause=error.cause, hint=error.hint)
            self._cause = error.cause
            return
        self._cause = ""
        if before.revoked == self._applied.revoked:
            child.send_signal(signal.SIGHUP)
        else:
            self._log.warning("broker_restarted", cause="a member was revoked", revision=self._applied.revision)
            self._restarting = True
            child.terminate()

    async def _choose(self) -> list[str]:
        wanted = "mosquitto" if self._dress is not None else self._settings.program
        if self._dress is None and self._people[0]:
            cause = "broker.people_listen: this gateway belongs to no site: there are no people of it, and no TLS"
            raise BrokerError(cause, "edge-runtime join TOKEN (see `edge-runtime site`), or leave broker.people_listen out")
        if self._dress is not None and self._settings.program == "iotcore":
            cause = "iotcore lets clients without a certificate in: it cannot serve a gateway that belongs to a site"
            raise BrokerError(cause, "apt-get install mosquitto, and broker.program: mosquitto or auto")
        found = programs.mosquitto()
        if found and wanted != "iotcore":
            return await self._mosquitto(found)
        if wanted != "mosquitto" and programs.has_iotcore():
            self._program = f"iotcore {importlib.metadata.version('iotcore')} (nothing survives a kill -9)"
            if self._listen[0] not in listening.ANYWHERE:  # it has one listener only
                self._listen = self._listen[:1]
                self._address = Address(host=self._listen[0], port=self._address.port)
            return [sys.executable, "-m", __spec__.name, self._listen[0], str(self._address.port)]
        raise programs.missing(wanted)

    async def _mosquitto(self, found: str) -> list[str]:
        asked = await asyncio.create_subprocess_exec(found, "-h", stdout=asyncio.subprocess.PIPE)
        words = (await asked.communicate())[0].decode(errors="replace").split()
        self._program = f"mosquitto {words[2]}" if words[:2] == ["mosquitto", "version"] else "mosquitto"
        return [found, "-c", str(self._folder / "mosquitto.conf")]

    def _configure(self) -> None:
        """At every start of mosquitto. Raises BrokerError."""
        self._write_access()
        doors = mosquitto.Doors(self._listen, self._address.port, *self._people)
        identity = None if self._dress is None else self._dress.identity
        text = mosquitto.configuration(self._settings, doors, self._folder, identity)
        with self._on_disk():
            (self._folder / "mosquitto.conf").write_text(text)

    def _write_access(self) -> None:
        """Not synced: it is written again at every start. Raises BrokerError."""
        if self._dress is not None:
            state, who = self._state(), self._dress.identity
            access = mosquitto.access(who)
            with self._on_disk():
                for name, text in access.items():
                    (self._folder / name).touch(0o600)
                    (self._folder / name).write_text(text)
            self._refusals.rules = Rules(access[mosquitto.ACL], access[mosquitto.NAMES_ACL])
            self._applied = state

    @contextlib.contextmanager
    def _on_disk(self) -> Iterator[None]:
        """A full or read-only disk is a state. Raises BrokerError."""
        try:
            yield
        except OSError as error:
            cause = f"{error.filename or self._folder}: cannot be written: {error.strerror}"
            raise BrokerError(cause, "is the disk full, or read-only? It is tried again") from None

    def _state(self) -> _State:
        if self._dress is None:
            return _State()
        who = self._dress.identity
        return _State(who.roster.revision, who.subject.serial, frozenset(each.serial for each in who.roster.revoked))

    def _reach(self) -> Address:
        """For clients on this machine."""
        return self._address if self._dress is None else replace(self._dress(self._address), quickack=False)

    async def _hearing(self, what: Coroutine[Any, Any, _T]) -> _T:
        """Until it is done. Nothing may be awaited of the broker but in here: it waits for who does not hear it."""
        doing = asyncio.create_task(what, name="broker process")
        try:
            wait_s = LOOK_S
            while not (await asyncio.wait([doing], timeout=wait_s if self._dress else SELDOM_S))[0]:
                self._hear()
                wait_s = next_look_s(wait_s, self._pipe.fill)
                self.refresh_roster()
            self._hear()  # what comes next has another pipe
            return doing.result()
        finally:
            doing.cancel()
            await asyncio.wait([doing])

    def _hear(self) -> None:
        kept, told = self._refusals.judge(self._pipe.look())
        self._pipe.keep(kept)
        for reason, times, cause in told:
            self._log.warning("broker_refused", reason=reason, times=times, cause=cause)

    async def _launch(self) -> None:
        """Raises BrokerError."""
        with self._able():
            for hosts, port in ((self._listen, self._address.port), self._people):
                for each in hosts:
                    listening.check_free(each, port)
            try:
                await self._attempt()
            except BrokerError:
                if not self._set_aside():
                    raise
                await self._attempt()

    @contextlib.contextmanager
    def _able(self) -> Iterator[None]:
        """No socket, no pipe, no process is a state, too. Raises BrokerError."""
        try:
            yield
        except OSError as error:
            cause = f"{self._program or 'the broker'} cannot be started: {error.strerror}"
            raise BrokerError(cause, "too many open files, or no memory? It is tried again") from None

    async def _attempt(self) -> None:
        with self._on_disk():
            self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        if self._command[0] != sys.executable:
            self._configure()
        with os.fdopen(self._pipe.begin(), "wb") as said:
            # A process group of its own: Ctrl-C on the terminal is for the gateway, which still has to drain to this broker.
            child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=said,
                stderr=said,
                process_group=0,
                env={name: value for name, value in os.environ.items() if not name.startswith(references.VARIABLE)},
                preexec_fn=functools.partial(_die_with_parent, os.getpid()),
            )
        try:
            await self._hearing(self._ready(child))
            self._child = child
        finally:
            if self._child is not child:
                await self._hearing(_end(child))

    async def _ready(self, child: asyncio.subprocess.Process) -> None:
        refused, where = "it does not answer", self._reach()
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_S_MAX):
                while child.returncode is None:
                    try:
                        await (await PahoBus().connect(where, timeout_s=START_S_MAX)).close()
                    except BrokerError as error:
                        refused = error.cause
                        await asyncio.sleep(PROBE_S)
                    else:
                        return
        raise BrokerError(f"{self._program} did not start: {self._last_words() or refused}", f"see {self._folder}/broker.log")

    def _last_words(self) -> str:
        self._hear()
        return " / ".join(self._pipe.last_words)[-500:]

    def _set_aside(self) -> bool:
        """mosquitto refuses to start with a damaged persistence file, for ever. Renamed, never deleted; True if it was that."""
        file = self._folder / "mosquitto.db"
        words = self._last_words().lower()
        if not file.exists() or not ("persist" in words or "database" in words):
            return False
        broken = next(name for count in range(10_000) if not (name := file.with_suffix(f".broken-{count}")).exists())
        with self._on_disk():
            file.rename(broken)
        cause = f"{file.name} is damaged: sessions, queues and retained messages of this broker are gone"
        self._log.error("broker_file_damaged", cause=cause, hint=f"nothing has to be done; it is kept as {broken}")
        return True


def next_look_s(before_s: float, fill: float) -> float:
    """After a look, `before_s` after the one before it, that found so much of the pipe full: seldom again only by and by, for at
    a short look it is never crowded."""
    if fill > CROWDED:
        return CROWDED_LOOK_S
    return min(LOOK_S, 2 * before_s) if fill < CALM else before_s


def serve(host: str, port: str) -> None:
    """In the child: the embedded broker, until it is killed."""
    import iotcore

    logging.disable(logging.CRITICAL)  # it logs an "error" for every packet; what stops it is an exception
    listen = f"[{host}]" if ":" in host else host
    iotcore.Broker(port=int(port), listen=listen, max_payload_size=mosquitto.MESSAGE_BYTES_MAX).run_forever()


async def _end(child: asyncio.subprocess.Process) -> None:
    with contextlib.suppress(ProcessLookupError):
        child.terminate()
        try:
            async with asyncio.timeout(STOP_S_MAX):
                await child.wait()
        except TimeoutError:
            child.kill()
    await child.wait()


_libc = ctypes.CDLL(None)


def _die_with_parent(parent: int) -> None:
    """In the child, before it becomes the broker."""
    _libc.prctl(_PR_SET_PDEATHSIG, signal.SIGKILL)
    if os.getppid() != parent:  # it died before we asked to be told
        os._exit(1)


if __name__ == "__main__":
    serve(*sys.argv[1:])
