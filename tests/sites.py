"""Gateways of one site as real processes, on this machine's loopback or each on a node of a network, and what each of them knows
of the others, from their logs: for figures. (mesh_site.py looks at a site from outside.) Instants are time.time()'s.

with site(folder) as plant:                     # or site(folder, net): gateway number n is on node n
    plant.add("g1", pipelines=...).start()
    plant.add("g2").start()
    took_s = plant.meshed() - began
"""

from __future__ import annotations

import json
import sqlite3
import sys
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
MOVES = {"broker_joined", "broker_hosted", "broker_lost", "broker_handed_over", "own_broker_lost", "own_broker_back"}
"""Lines of the log, after which a gateway is on another broker, or on none."""


class Site:
    """Gateways see each other by mDNS; each may host the broker."""

    def __init__(self, folder: Path, net: Network | None = None) -> None:
        self.name = f"site-{uuid.uuid4().hex[:8]}"
        """On loopback others run sites, too."""
        self.gateways: dict[str, GatewayProcess] = {}
        self._folder, self._net = folder, net
        self._said: dict[str, tuple[int, list[dict[str, Any]]]] = {}
        """How far each one's log was read, and what was found."""

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
    def running(self) -> list[str]:
        return [name for name, each in self.gateways.items() if each.process is not None]

    def said(self, name: str) -> list[dict[str, Any]]:
        """The log of a gateway since its last start."""
        gateway = self.gateways[name]
        at, found = self._said.get(name, (gateway.life_at, []))
        if at < gateway.life_at:
            at, found = gateway.life_at, []
        with gateway.log.open("rb") as log:
            log.seek(at)
            fresh = log.read()
        whole = fresh[: fresh.rfind(b"\n") + 1]
        found += [json.loads(line) for line in whole.splitlines() if line.startswith(b"{")]
        self._said[name] = at + len(whole), found
        return found

    def home(self, name: str) -> tuple[float, str]:
        """Since when a gateway is on a broker, and whose. "": on none."""
        said = [line for line in self.said(name) if line["event"] in MOVES]
        if not said:
            return 0.0, ""
        last = said[-1]
        host = {"broker_joined": last.get("host", ""), "broker_hosted": name, "own_broker_back": name}.get(last["event"], "")
        return instant(last), host

    def host(self, names: Sequence[str] = ()) -> str:
        """Who hosts the broker of all these (default: of all that run). "": they are not of one mind."""
        hosts = {self.home(each)[1] for each in names or self.running}
        return hosts.pop() if len(hosts) == 1 else ""

    def moved(self, since: float, names: Sequence[str] = (), limit_s: float = 30.0) -> float:
        """Waits until all these are on one broker, to which each came after `since`; returns when the last one came."""
        names = names or self.running
        until(lambda: self.host(names) and all(self.home(each)[0] > since for each in names), "one new broker for all", limit_s)
        return max(self.home(each)[0] for each in names)

    def known(self, name: str) -> dict[str, float]:
        """Peers that a gateway counts as alive, since when."""
        table: dict[str, float] = {}
        for line in self.said(name):
            if line["event"] == "peer_alive":
                table[line["peer"]] = instant(line)
            elif line["event"] == "peer_gone":
                table.pop(line["peer"], None)
            elif line["event"] in MOVES:  # on each broker all have to be heard again
                table.clear()
        return table

    def meshed(self, names: Sequence[str] = (), limit_s: float = 30.0) -> float:
        """Waits until each of these has all others of them in its table, and nobody else; returns when the last one got its last
        one."""
        wanted = set(names or self.running)
        tables: dict[str, dict[str, float]] = {}

        def whole() -> bool:  # one look: a moment later a gateway may have lost its broker, and all others with it
            tables.update({each: self.known(each) for each in wanted})
            return all(tables[each].keys() == wanted - {each} for each in wanted)

        until(whole, "a full mesh", limit_s)
        return max(max(table.values()) for table in tables.values())

    def tail(self) -> str:
        """For whoever has to find out what went wrong."""
        return "\n".join(f"{name}: {each.log.read_text()[-2000:]}" for name, each in self.gateways.items() if each.log.exists())

    def end(self) -> None:
        for each in self.gateways.values():
            each.end()


@contextmanager
def site(folder: Path, net: Network | None = None) -> Iterator[Site]:
    plant = Site(folder, net)
    try:
        yield plant
    except BaseException:
        print(plant.tail(), file=sys.stderr)
        raise
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


def instant(line: dict[str, Any]) -> float:
    """Of a line of the log, as time.time()."""
    return datetime.fromisoformat(line["timestamp"]).timestamp()


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


def brokers_in(folder: Path) -> list[psutil.Process]:
    """Every mosquitto whose files are there, whoever started it."""
    found = [each for each in psutil.process_iter(["name"]) if each.info["name"] == "mosquitto" and lives(each)]
    return [each for each in found if str(folder) in " ".join(each.cmdline())]


def lives(process: psutil.Process) -> bool:
    try:
        return process.is_running() and process.status() != psutil.STATUS_ZOMBIE
    except psutil.NoSuchProcess:
        return False


def row(name: str, unit: str, ours: float, target: str = "", bare: float | None = None) -> dict[str, Any]:
    """Of the bench's table; `bare` only to look at."""
    return {"name": f"site: {name}", "unit": unit, "ours": ours, "bare": bare, "ratio": None, "target": target}
