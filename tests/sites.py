"""Gateways of one site as real processes, on this machine's loopback or each in a network namespace, and what they say.

with site(folder) as plant:                                # or site(folder, net): gateway number n is on node n
    first = plant.add("g1", pipelines=...); first.start()
    begun = instant(first.events("broker_hosted")[0])      # seconds since 1970, as time.time()
"""

from __future__ import annotations

import json
import sqlite3
import time
import uuid
from collections.abc import Iterator, Sequence
from contextlib import closing, contextmanager
from datetime import datetime
from pathlib import Path
from typing import Any

import psutil
from brokers import free_port
from gateways import GatewayProcess, until
from heavy import CACHE, POINTS
from netns import Network

PORT = 1883
MOVES = {"broker_joined", "broker_hosted", "broker_lost", "broker_handed_over", "own_broker_lost"}
"""Lines of the log, after which a gateway is on another broker, or on none."""


class Site:
    """Gateways see each other by mDNS; each may host the broker."""

    def __init__(self, folder: Path, net: Network | None = None) -> None:
        self.name = f"site-{uuid.uuid4().hex[:8]}"
        """On loopback others run sites, too."""
        self.gateways: dict[str, GatewayProcess] = {}
        self._folder, self._net = folder, net

    def add(self, name: str, *, core: int | None = None, mesh: dict[str, Any] | None = None, **more: Any) -> GatewayProcess:
        """One more gateway, not started. `core`: the one that it runs on. `more` goes into its configuration; where that has no
        device there is one that says nothing."""
        number = len(self.gateways)
        inside: list[str] = [] if core is None else ["taskset", "-c", str(core)]
        if self._net is not None:
            inside = [*self._net.nodes[number].inside, *inside]
        settings = {
            "site": self.name,
            "gateway": name,
            "models_dir": str(CACHE),
            "broker": self._broker(),
            "mesh": {"interfaces": ["lo"] if self._net is None else ["eth0"]} | (mesh or {}),
            "devices": {"press": slow(self._folder)},
            "log": {"format": "json"},
        }
        self.gateways[name] = gateway = GatewayProcess(self._folder / name, settings | more, inside=inside)
        return gateway

    def _broker(self) -> dict[str, Any]:
        if self._net is None:
            return {"mode": "auto", "url": f"mqtt://127.0.0.1:{free_port()}", "program": "mosquitto"}
        return {"mode": "auto", "url": f"mqtt://127.0.0.1:{PORT}", "listen": "0.0.0.0", "program": "mosquitto"}

    # --- what they say -----------------------------------------------------------------------------------------------

    @property
    def running(self) -> list[GatewayProcess]:
        return [each for each in self.gateways.values() if each.process is not None]

    def host(self) -> str:
        """Name of the gateway that hosts the broker of all that run. "": they are not of one mind."""
        hosts = [self._home(each)[1] for each in self.running]
        return hosts[0] if hosts and len(set(hosts)) == 1 else ""

    def _home(self, gateway: GatewayProcess) -> tuple[float, str]:
        """Since when it is on a broker, and whose. "": on none."""
        said = [line for line in lines(gateway) if line["event"] in MOVES]
        if not said:
            return 0.0, ""
        last = said[-1]
        host = {"broker_joined": last.get("host", ""), "broker_hosted": name_of(gateway)}.get(last["event"], "")
        return instant(last), host

    def moved(self, since: float, limit_s: float = 30.0) -> float:
        """Waits until all that run are on one broker to which each came after `since`; returns when the last one came."""
        until(lambda: self.host() and all(self._home(each)[0] > since for each in self.running), "one broker for all", limit_s)
        return max(self._home(each)[0] for each in self.running)

    def known(self, gateway: GatewayProcess) -> dict[str, float]:
        """Peers that it counts as alive, since when."""
        table: dict[str, float] = {}
        for line in lines(gateway):
            if line["event"] == "peer_alive":
                table[line["peer"]] = instant(line)
            elif line["event"] == "peer_gone":
                table.pop(line["peer"], None)
            elif line["event"] in MOVES:  # on each broker all have to be heard again
                table.clear()
        return table

    def meshed(self, limit_s: float = 30.0) -> float:
        """Waits until all that run know all that run as alive; returns when the last one came to know the last one."""
        names = {name_of(each) for each in self.running}

        def full() -> bool:
            return all(self.known(each).keys() == names - {name_of(each)} for each in self.running)

        until(full, "a full mesh", limit_s)
        return max(max(self.known(each).values()) for each in self.running)

    def end(self) -> None:
        for each in self.gateways.values():
            each.end()


@contextmanager
def site(folder: Path, net: Network | None = None) -> Iterator[Site]:
    plant = Site(folder, net)
    try:
        yield plant
    finally:
        plant.end()


# --- configurations --------------------------------------------------------------------------------------------------


def slow(folder: Path, rows: int = 3, **options: Any) -> dict[str, Any]:
    """A device that says nothing (for an hour), or its `rows` rows as `options` say: f1 counts from 0."""
    file = folder / f"rows-{rows}.csv"
    if not file.exists():
        folder.mkdir(parents=True, exist_ok=True)
        tail = ",".join(str(number / 8) for number in range(1, len(POINTS)))
        file.write_text("\n".join([",".join(POINTS), *(f"{number},{tail}" for number in range(rows))]) + "\n")
    return {
        "adapter": "replay",
        "options": {"file": str(file), "rate_hz": 1 / 3600} | options,
        "points": [{"name": name, "column": name} for name in POINTS],
    }


# --- processes -------------------------------------------------------------------------------------------------------


def lines(gateway: GatewayProcess) -> list[dict[str, Any]]:
    """What it has logged since its last start."""
    with gateway.log.open("rb") as log:
        log.seek(gateway.life_at)
        return [json.loads(line) for line in log.read().split(b"\n")[:-1] if line.startswith(b"{")]


def instant(line: dict[str, Any]) -> float:
    """Of a line of the log, as time.time()."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


def name_of(gateway: GatewayProcess) -> str:
    return gateway.file.parent.name


def committed(gateway: GatewayProcess, lane: str = "result") -> int:
    """Records that its outbox has had in a lane."""
    with closing(sqlite3.connect(f"{(gateway.data_dir / 'outbox.db').as_uri()}?mode=ro", uri=True)) as database:
        (last,) = database.execute(f"SELECT max(seq) FROM lane_{lane}").fetchone()
        found = database.execute("SELECT seq FROM heads WHERE lane = ?", (lane,)).fetchone()
        return max(last or 0, found[0] if found else 0)


def brokers_of(gateway: GatewayProcess) -> list[psutil.Process]:
    """The broker that it hosts."""
    assert gateway.process is not None
    return [each for each in psutil.Process(gateway.process.pid).children(recursive=True) if each.name() == "mosquitto"]


def cpu_s(gateway: GatewayProcess) -> float:
    """Of the process, without its broker."""
    assert gateway.process is not None
    times = psutil.Process(gateway.process.pid).cpu_times()
    return float(times.user + times.system)


def gone(processes: Sequence[psutil.Process], limit_s: float) -> bool:
    """Whether they have all ended in that time. A zombie has."""
    end = time.monotonic() + limit_s
    while time.monotonic() < end:
        if not any(_lives(each) for each in processes):
            return True
        time.sleep(0.01)
    return False


def _lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def row(name: str, unit: str, ours: float, target: str = "", bare: float | None = None) -> dict[str, Any]:
    """Of the bench's table; `bare` only to look at."""
    return {"name": f"site: {name}", "unit": unit, "ours": ours, "bare": bare, "ratio": None, "target": target}
