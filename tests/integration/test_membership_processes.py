"""Gateways as processes, brokers as real children of theirs: who hosts after a kill -9, after a hang, and after two have met."""

from __future__ import annotations

import os
import signal
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator
from contextlib import contextmanager
from pathlib import Path

import pytest
from brokers import free_port

from edge_runtime.bus import programs

pytestmark = pytest.mark.skipif(programs.mosquitto() is None, reason="MISSING SYSTEM PACKAGE: mosquitto")

TESTS = Path(__file__).parents[1]
FAR_TOO_LONG_S = 20.0


class Process:
    def __init__(self, folder: Path, name: str, port: int, rank: int, peers: list[int]) -> None:
        self.name, self.port, self.state = name, port, ("", "-")
        self.lines: list[str] = []
        program = str(Path(__file__).parent / "membership_process.py")
        words = [name, str(port), str(rank), str(folder / name), *(f"127.0.0.1:{peer}" for peer in peers)]
        self.process = subprocess.Popen(
            [sys.executable, program, *words],
            stdout=subprocess.PIPE,
            stderr=subprocess.STDOUT,
            text=True,
            env={**os.environ, "PYTHONPATH": str(TESTS)},
        )
        self._reader = threading.Thread(target=self._read, daemon=True)
        self._reader.start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        for line in self.process.stdout:
            self.lines.append(line.strip())
            if line.startswith("STATE "):
                _, role, site_host = line.split()
                self.state = (role, site_host)

    def known(self) -> str:
        """The last line that says whom it knows."""
        return next((line for line in reversed(self.lines) if line.startswith("KNOWN ")), "")

    def kill(self, how: signal.Signals = signal.SIGKILL) -> None:
        self.process.send_signal(how)
        if how is signal.SIGKILL:
            self.process.wait(FAR_TOO_LONG_S)
            self._reader.join(FAR_TOO_LONG_S)


class Site:
    """Each knows the ports of all others and nothing else."""

    def __init__(self, folder: Path) -> None:
        self.folder = folder
        self.ports: dict[str, int] = {}
        self.all: dict[str, Process] = {}

    def start(self, *names: str, rank: int = 100, peers: list[str] | None = None) -> None:
        for name in names:
            self.ports.setdefault(name, free_port())
        for name in names:
            knows = [self.ports[each] for each in (self.ports if peers is None else peers)]
            self.all[name] = Process(self.folder, name, self.ports[name], rank, knows)

    def kill(self, name: str) -> None:
        self.all.pop(name).kill()

    @property
    def hosts(self) -> list[str]:
        return [name for name, each in self.all.items() if each.state[0] == "host"]

    def agreed(self) -> bool:
        return self.hosts != [] and {each.state[1] for each in self.all.values()} == set(self.hosts) and len(self.hosts) == 1

    def settled(self) -> float:
        return self.until(self.agreed)

    def settled_without(self, name: str) -> float:
        aside = self.all.pop(name)
        try:
            return self.settled()
        finally:
            self.all[name] = aside

    def until(self, true: Callable[[], bool]) -> float:
        began = time.monotonic()
        while not true():
            assert time.monotonic() - began < FAR_TOO_LONG_S, self.report()
            time.sleep(0.005)
        return time.monotonic() - began

    def report(self) -> str:
        return "\n".join(f"{name}: {each.state} {each.lines[-8:]}" for name, each in self.all.items())

    def brokers(self) -> list[int]:
        """Processes of brokers that were started from our folder."""
        found = []
        for entry in Path("/proc").iterdir():
            if entry.name.isdigit():
                try:
                    command = (entry / "cmdline").read_bytes()
                except OSError:
                    continue
                if str(self.folder).encode() in command and b"mosquitto.conf" in command:
                    found.append(int(entry.name))
        return found


@contextmanager
def a_site(folder: Path) -> Iterator[Site]:
    site = Site(folder)
    try:
        yield site
    finally:
        for each in site.all.values():
            each.process.send_signal(signal.SIGCONT)
            each.kill()
        left = site.until(lambda: not site.brokers())  # none outlives its gateway
        assert left < FAR_TOO_LONG_S


def test_the_broker_is_killed_then_its_host_and_another_one_takes_over(tmp_path: Path) -> None:
    with a_site(tmp_path) as site:
        site.start("gw-1", "gw-2", "gw-3")
        print(f"\nprocesses started, 3 on a broker: {site.settled():.2f} s")
        (first,) = site.hosts
        site.until(lambda: all("gw-" in each.known() for each in site.all.values()))
        (broker,) = site.brokers()
        os.kill(broker, signal.SIGKILL)
        site.until(lambda: not site.agreed())
        print(f"broker killed, all on it again: {site.settled():.2f} s")
        assert site.hosts == [first]
        site.kill(first)
        print(f"host killed, all on a new broker: {site.settled():.2f} s")
        (second,) = site.hosts
        site.until(lambda: len(site.brokers()) == 1)
        site.start(first)
        site.until(lambda: site.all[first].state == ("candidate", second))
        assert site.hosts == [second]
        site.all[second].kill(signal.SIGINT)
        site.until(lambda: site.all[second].process.poll() is not None)
        print(f"host stopped, all on a new broker: {site.settled_without(second):.2f} s")


def test_a_host_that_hangs_is_left_and_steps_down_when_it_goes_on(tmp_path: Path) -> None:
    """As a cut of the network looks to everybody else, and its heal. Then a pinned host comes, which the others do not know."""
    with a_site(tmp_path) as site:
        site.start("gw-1", "gw-2", "gw-3")
        site.settled()
        (first,) = site.hosts
        site.until(lambda: all("gw-" in each.known() for each in site.all.values()))
        (broker,) = site.brokers()
        for pid in (broker, site.all[first].process.pid):
            os.kill(pid, signal.SIGSTOP)
        print(f"\nhost hangs, all others on a new broker: {site.settled_without(first):.2f} s")
        assert len(site.brokers()) == 2
        for pid in (broker, site.all[first].process.pid):
            os.kill(pid, signal.SIGCONT)
        print(f"it goes on, one broker again: {site.until(lambda: len(site.brokers()) == 1 and site.agreed()):.2f} s")
        site.start("pinned", rank=0)
        site.until(lambda: site.all["pinned"].state[0] == "host")
        print(f"a pinned host came, all on it: {site.until(lambda: site.hosts == ['pinned'] and site.agreed()):.2f} s")
