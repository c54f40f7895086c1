"""Starts the local broker as a child process (`broker.mode: hosted` or `auto`): mosquitto, or the embedded iotcore.

It listens on `broker.listen`: on loopback, or on the network, where it lets in anybody who is there (and says so at every start).
The child dies with this process, also by kill -9; one that crashes is started again. mosquitto keeps sessions, queues and
retained messages in `folder` and saves them every second. `hosted`: for ever. `auto`: as long as this gateway goes on hosting; a
later time begins empty, because the site was elsewhere meanwhile, and what was kept is old news by then.
"""

from __future__ import annotations

import asyncio
import contextlib
import ctypes
import errno
import functools
import importlib.metadata
import importlib.util
import ipaddress
import logging
import os
import shutil
import signal
import socket
import sys
from pathlib import Path
from typing import Any

from edge_runtime.address import address
from edge_runtime.bus.broker import PahoBus
from edge_runtime.config import Broker
from edge_runtime.ports import Address, BrokerError, Clock, Dice

START_S_MAX = 10.0
STOP_S_MAX = 5.0
"""mosquitto writes its persistence file on a clean stop."""
PROBE_S = 0.02
RESTART_S_MAX = 30.0
STEADY_S = 60.0
"""A broker that lived this long is started again at once."""
INFLIGHT_MAX = 100
"""QoS 1 messages that a client may have unacknowledged (mosquitto's default is 20)."""
MESSAGE_BYTES_MAX = 17 * 2**20
"""A batch (messages.BATCH_BYTES_MAX) and its topic. iotcore's own default is 20 KiB: it closes the connection beyond it."""

_PR_SET_PDEATHSIG = 1
_ANYWHERE = ("0.0.0.0", "::")
_PLACES = f"{os.defpath}:/usr/sbin:/usr/local/sbin"
_MOSQUITTO = """\
# Written at every start: changes are lost.
{user}{listeners}
allow_anonymous true
persistence true
persistence_location {folder}/
autosave_interval 1
persistent_client_expiration 30d
max_queued_messages {queued}
max_inflight_messages {inflight}
message_size_limit {size}
set_tcp_nodelay true
log_dest stderr
log_type error
log_type warning
"""


class BrokerHost:
    """One hosted broker. Call `start` from a thread that lives as long as the broker must (the event loop's): the child dies
    with the *thread* that forked it."""

    def __init__(self, settings: Broker, folder: Path, clock: Clock, dice: Dice, log: Any) -> None:
        self._settings = settings
        self._folder = folder
        self._clock = clock
        self._dice = dice
        self._log = log
        self._listen, self._address = _where(settings)
        self._command: list[str] = []
        self._child: asyncio.subprocess.Process | None = None
        self._stopping = asyncio.Event()
        self._program = ""

    @property
    def program(self) -> str:
        """Which one runs, for people: "mosquitto 2.0.11"; "" before `start`."""
        return self._program

    async def start(self) -> Address:
        """Returns when it accepts MQTT connections. Raises BrokerError: neither program is there, the port is taken, ..."""
        self._folder.mkdir(parents=True, exist_ok=True, mode=0o700)
        self._command = await self._choose()
        if self._settings.mode == "auto":
            (self._folder / "mosquitto.db").unlink(missing_ok=True)
        await self._launch()
        if not _is_loopback(self._listen[0]):
            hint = "no TLS, no passwords: for a trusted network only; else an external broker with TLS and access rules"
            cause = "whoever is on the network may read and write everything on this broker"
            self._log.warning("broker_open_to_network", listen=self._listen[0], port=self._address.port, cause=cause, hint=hint)
        return self._address

    async def run(self) -> None:
        """Starts it again whenever it dies, with growing pauses; returns after `stop`."""
        pause_s = 0.0
        while not self._stopping.is_set():
            began_ns = self._clock.mono_ns()
            if self._child is not None:
                code = await self._child.wait()
                if self._stopping.is_set():
                    return
                self._log.warning("broker_died", program=self._program, status=code, says=self._last_words())
            steady = self._clock.mono_ns() - began_ns > STEADY_S * 1e9
            pause_s = 0.0 if steady else min(RESTART_S_MAX, max(0.1, pause_s * 2))
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
            await _end(child)

    async def _choose(self) -> list[str]:
        wanted = self._settings.program
        found = shutil.which("mosquitto") or shutil.which("mosquitto", path=_PLACES)
        if found and wanted != "iotcore":
            return await self._mosquitto(found)
        if wanted != "mosquitto" and importlib.util.find_spec("iotcore"):
            self._program = f"iotcore {importlib.metadata.version('iotcore')} (nothing survives a kill -9)"
            if self._listen[0] not in _ANYWHERE:  # it has one listener only
                self._listen = self._listen[:1]
                self._address = Address(host=self._listen[0], port=self._address.port)
            return [sys.executable, "-m", __spec__.name, self._listen[0], str(self._address.port)]
        hints = {"mosquitto": "apt-get install mosquitto", "iotcore": "pip install 'edge-runtime[broker]'"}
        missing = list(hints) if wanted == "auto" else [wanted]
        raise BrokerError(f"no broker to start: {' and '.join(missing)} not found", " or ".join(hints[each] for each in missing))

    async def _mosquitto(self, found: str) -> list[str]:
        asked = await asyncio.create_subprocess_exec(found, "-h", stdout=asyncio.subprocess.PIPE)
        words = (await asked.communicate())[0].decode(errors="replace").split()
        self._program = f"mosquitto {words[2]}" if words[:2] == ["mosquitto", "version"] else "mosquitto"
        file = self._folder / "mosquitto.conf"
        text = _MOSQUITTO.format(
            user="user root\n" if os.geteuid() == 0 else "",  # else it becomes `mosquitto`, which cannot write to our folder
            listeners="\n".join(f"listener {self._address.port} {each}" for each in self._listen),
            folder=self._folder.resolve(),
            queued=self._settings.queued_messages_max,
            inflight=INFLIGHT_MAX,
            size=MESSAGE_BYTES_MAX,
        )
        file.write_text(text)
        return [found, "-c", str(file)]

    async def _launch(self) -> None:
        for each in self._listen:
            _check_free(each, self._address.port)
        try:
            await self._attempt()
        except BrokerError:
            if not self._set_aside():
                raise
            await self._attempt()

    async def _attempt(self) -> None:
        with (self._folder / "broker.log").open("wb") as log:
            # A process group of its own: Ctrl-C on the terminal is for the gateway, which still has to drain to this broker.
            child = await asyncio.create_subprocess_exec(
                *self._command,
                stdin=asyncio.subprocess.DEVNULL,
                stdout=log,
                stderr=log,
                process_group=0,
                preexec_fn=functools.partial(_die_with_parent, os.getpid()),
            )
        try:
            await self._ready(child)
            self._child = child
        finally:
            if self._child is not child:
                await _end(child)

    async def _ready(self, child: asyncio.subprocess.Process) -> None:
        refused = "it does not answer"
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(START_S_MAX):
                while child.returncode is None:
                    try:
                        await (await PahoBus().connect(self._address, timeout_s=START_S_MAX)).close()
                    except BrokerError as error:
                        refused = error.cause
                        await asyncio.sleep(PROBE_S)
                    else:
                        return
        raise BrokerError(f"{self._program} did not start: {self._last_words() or refused}", f"see {self._folder}/broker.log")

    def _last_words(self) -> str:
        lines = (self._folder / "broker.log").read_text(errors="replace").strip().splitlines()
        return " / ".join(lines[-3:])[-500:]

    def _set_aside(self) -> bool:
        """mosquitto refuses to start with a damaged persistence file, for ever. Renamed, never deleted; True if it was that."""
        file = self._folder / "mosquitto.db"
        words = self._last_words().lower()
        if not file.exists() or not ("persist" in words or "database" in words):
            return False
        broken = next(name for count in range(10_000) if not (name := file.with_suffix(f".broken-{count}")).exists())
        file.rename(broken)
        self._log.error("broker's persistence file is damaged: sessions and queues are gone", set_aside=str(broken))
        return True


def serve(host: str, port: str) -> None:
    """In the child: the embedded broker, until it is killed."""
    import iotcore

    logging.disable(logging.CRITICAL)  # it logs an "error" for every packet; what stops it is an exception
    listen = f"[{host}]" if ":" in host else host
    iotcore.Broker(port=int(port), listen=listen, max_payload_size=MESSAGE_BYTES_MAX).run_forever()


def _where(settings: Broker) -> tuple[list[str], Address]:
    """The addresses to listen on, and the one for clients on this machine: loopback, so that they need no network. Raises
    BrokerError unless it is plain MQTT at an address."""
    where = address(settings.url)
    if where.tls or where.username:
        hint = "url: mqtt://127.0.0.1:1883; with TLS and passwords: a broker of your own, and mode external"
        raise BrokerError("a hosted broker listens on loopback or the network without TLS and passwords", hint)
    listen = "127.0.0.1" if settings.listen == "localhost" else settings.listen
    if listen == "127.0.0.1":
        host = "127.0.0.1" if where.host == "localhost" else where.host
        if not _is_loopback(host):
            hint = f"broker.listen: 0.0.0.0 opens it to the network; url: mqtt://127.0.0.1:{where.port}"
            raise BrokerError(f"a hosted broker listens on loopback unless broker.listen says more, not on {host}", hint)
        return [host], Address(host=host, port=where.port)
    try:
        parsed = ipaddress.ip_address(listen)
    except ValueError:
        raise BrokerError(f"broker.listen: {listen} is no address", "an address of this machine, or 0.0.0.0") from None
    near = Address(host="127.0.0.1" if parsed.version == 4 else "::1", port=where.port)
    if listen == "::":
        return ["::", "0.0.0.0"], near
    if listen == "0.0.0.0":
        return [listen], near
    if parsed.is_loopback:
        return [listen], Address(host=listen, port=where.port)
    return [listen, near.host], near


def _is_loopback(host: str) -> bool:
    try:
        return ipaddress.ip_address(host).is_loopback
    except ValueError:
        return False


def _check_free(host: str, port: int) -> None:
    """Else we would take another program's broker for our own."""
    family = socket.AF_INET6 if ":" in host else socket.AF_INET
    with socket.socket(family, socket.SOCK_STREAM) as probe:
        probe.setsockopt(socket.SOL_SOCKET, socket.SO_REUSEADDR, 1)
        if family == socket.AF_INET6:
            probe.setsockopt(socket.IPPROTO_IPV6, socket.IPV6_V6ONLY, 1)
        try:
            probe.bind((host, port))
        except OSError as error:
            hint = "another broker? take it with `mode: external`, or another port in broker.url"
            if error.errno == errno.EADDRNOTAVAIL:
                hint = "broker.listen is an address of this machine, or 0.0.0.0"
            raise BrokerError(f"port {port} on {host}: {(error.strerror or str(error)).lower()}", hint) from None


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
