"""Words for systemd, over a real notify socket; and when they are kept back."""

from __future__ import annotations

import asyncio
import os
import re
import shutil
import socket
import subprocess
import threading
from collections.abc import Iterator
from pathlib import Path

import pytest
from waiting import until
from watched import world

from edge_runtime.board.systemd import Systemd, found
from edge_runtime.config import Config
from edge_runtime.gateway import Gateway
from edge_runtime.outbox.database import FileDisk
from edge_runtime.records import Draft, Lane
from edge_runtime.watching import health, watching

Socket = socket.socket


@pytest.fixture(params=["path", "abstract"])
def listener(request: pytest.FixtureRequest, tmp_path: Path) -> Iterator[tuple[str, Socket]]:
    name = str(tmp_path / "notify") if request.param == "path" else f"@edge-test-{os.getpid()}"
    with socket.socket(socket.AF_UNIX, socket.SOCK_DGRAM) as heard:
        heard.bind("\0" + name[1:] if name.startswith("@") else name)
        heard.settimeout(5)
        yield name, heard


def test_words_arrive(listener: tuple[str, Socket]) -> None:
    name, heard = listener
    environ = {"NOTIFY_SOCKET": name, "WATCHDOG_USEC": "3000000", "WATCHDOG_PID": str(os.getpid()), "PATH": "x"}
    systemd = found(environ)
    assert systemd is not None
    assert environ == {"PATH": "x"}, "a child would speak in our name"
    assert systemd.watchdog_s == 3
    systemd.tell(READY=1, STATUS="works: 2 devices")
    assert heard.recv(4096) == b"READY=1\nSTATUS=works: 2 devices"


def test_a_cause_cannot_say_words_of_its_own(listener: tuple[str, Socket]) -> None:
    """What a far end answers stands in the status."""
    name, heard = listener
    Systemd(name).tell(STATUS="refused\nMAINPID=1\r\nSTOPPING=1\0" + "x" * 10_000)
    said = heard.recv(65536)
    assert b"\n" not in said
    assert len(said) < 400


def test_nobody_waits_for_systemd(listener: tuple[str, Socket]) -> None:
    name, _ = listener
    systemd = Systemd(name)
    for _ in range(5_000):  # nobody reads: its queue is full long before
        systemd.tell(WATCHDOG=1)
    Systemd("/nowhere/at/all").tell(READY=1)


@pytest.mark.parametrize(
    ("environ", "watchdog_s"),
    [
        ({}, None),
        ({"NOTIFY_SOCKET": "vsock:2:1"}, None),
        ({"NOTIFY_SOCKET": "/run/x"}, 0),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "2000000"}, 2),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "2000000", "WATCHDOG_PID": "1"}, 0),
        ({"NOTIFY_SOCKET": "/run/x", "WATCHDOG_USEC": "soon"}, 0),
    ],
)
def test_the_environment(environ: dict[str, str], watchdog_s: float | None) -> None:
    systemd = found(environ)
    assert (None if systemd is None else systemd.watchdog_s) == watchdog_s


class Hanging(FileDisk):
    """Its transactions begin and, while `free` is not set, do not end."""

    def __init__(self, pages: int, free: threading.Event) -> None:
        super().__init__(pages)
        self.free = free

    def identity(self, path: Path) -> int:
        self.free.wait(20)
        return super().identity(path)


def test_a_disk_that_does_not_come_back_is_told_by_silence(
    listener: tuple[str, Socket], tmp_path: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    """The event loop lives and says how it is; only the watchdog hears nothing, until the disk answers again."""
    name, heard = listener
    heard.setblocking(False)
    monkeypatch.setattr(health, "WRITING_S_MAX", 0.1)
    free = threading.Event()
    free.set()

    def words() -> list[bytes]:
        said = []
        while True:
            try:
                said.append(heard.recv(4096))
            except BlockingIOError:
                return said

    async def main() -> None:
        settings = Config.model_validate({"site": "s", "gateway": "g"})
        disk = Hanging(100, free)
        gateway = Gateway(settings, tmp_path, world([], new_disk=lambda _: disk, systemd=Systemd(name, watchdog_s=0.04)))
        life = asyncio.create_task(gateway.run())
        await until(lambda: any(b"WATCHDOG=1" in each for each in words()))
        free.clear()
        writing = asyncio.ensure_future(gateway.store.commit([Draft(Lane.EVENT, "p", gateway.world.clock.now(), b"{}")]))
        await until(lambda: any(b"STATUS=failed: outbox: the disk has not answered" in each for each in words()))
        await until(lambda: len(more := words()) > 0 and not any(b"WATCHDOG" in each for each in more))
        free.set()
        await writing
        await until(lambda: any(b"WATCHDOG=1" in each for each in words()))
        gateway.stop()
        await life
        assert any(b"STOPPING=1" in each for each in words())

    asyncio.run(main())


UNIT = Path(__file__).parents[2] / "packaging" / "systemd" / "edge-runtime@.service"
EXPOSURE_MAX = 3.0


def analyze(*arguments: str) -> str:
    if shutil.which("systemd-analyze") is None:
        pytest.skip("MISSING SYSTEM PACKAGE: systemd-analyze (apt-get install systemd)")
    done = subprocess.run(["systemd-analyze", *arguments], capture_output=True, text=True, check=False)
    return done.stdout + done.stderr


def test_systemd_understands_the_unit(tmp_path: Path) -> None:
    """Apart from the program, which is not installed here."""
    unit = tmp_path / UNIT.name
    unit.write_text(UNIT.read_text().replace("ExecStart=/usr/bin/edge-runtime", f"ExecStart={shutil.which('true')}"))
    assert analyze("verify", str(unit)) == ""


def test_the_unit_may_do_little() -> None:
    said = analyze("security", "--offline=true", str(UNIT))
    level = re.search(r"Overall exposure level for .*: ([\d.]+)", said)
    assert level, said
    assert float(level[1]) <= EXPOSURE_MAX, said


def test_the_unit_does_not_forbid_what_we_do() -> None:
    """adjtimex tells whether the clock is synchronised; a later list that is allowed wins over an earlier one that is not."""
    filters = re.findall(r"^SystemCallFilter=(.*)$", UNIT.read_text(), re.MULTILINE)
    assert filters.index("adjtimex clock_adjtime") > filters.index("~@privileged")
    settings = dict(re.findall(r"^(\w+)=(.*)$", UNIT.read_text(), re.MULTILINE))
    assert settings["Type"] == "notify"
    assert settings["NotifyAccess"] == "main"
    assert float(settings["WatchdogSec"]) / 2 >= watching.BEAT_S_MAX, "the beat would be faster than it has to"
    assert "ProtectClock" not in settings
    assert "AF_UNIX" in settings["RestrictAddressFamilies"], "the notify socket"
