"""A real site that is attacked: three gateways (`edge-runtime run`) with identities, on loopback. press-1 reads a press over
Modbus, each row goes through a model, each result to a receiver: the line. The other two are there, and may host the broker.

with plant(tmp_path) as site:
    site.person("alice", "engineer")                 # an Identity
    with site.going_on() as line: ...                # the line goes on, nothing of it is lost, memory stays flat
"""

from __future__ import annotations

import json
import re
import shutil
import subprocess
import sys
import time
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from attackers import Raw, credentials
from brokers import free_port
from gateways import GatewayProcess, until
from mesh_site import FEATURES, MODEL
from receivers import ReceiverProcess, receiver
from sites import Site, brokers_of
from trusted import Site as Authority

from edge_runtime.trust.identity import Identity
from edge_runtime.trust.roster import Role

ROOT = Path(__file__).parent.parent
LINE, PIPELINE = "press-1", "anomaly"
NAMES = (LINE, "press-2", "press-3")
PEOPLE: dict[str, Role] = {"vera": "viewer", "otto": "operator", "alice": "engineer"}
ROWS_PER_S = 10
RSS_GROWTH_BYTES_MAX = 24 * 2**20
"""Of a process that is attacked: a receive buffer that is full, and what Python keeps of it."""
RATE_MIN = 0.9


class Plant:
    def __init__(self, site: Site, authority: Authority, far_end: ReceiverProcess) -> None:
        self.site, self.authority, self.receiver = site, authority, far_end
        self.members: dict[str, Identity] = {}
        self.metrics: dict[str, int] = {}
        """Ports, by gateway."""
        self.first_roster = b""
        """Of a revision that is long past."""
        self.evil_port = 0
        """Of a broker that an attacker hosts."""

    @property
    def name(self) -> str:
        return self.site.name

    @property
    def line(self) -> GatewayProcess:
        return self.site.gateways[LINE]

    @property
    def host(self) -> str:
        """Who hosts the broker."""
        until(self.site.host, "one broker for all")
        return self.site.host()

    @property
    def port(self) -> int:
        """Of the broker."""
        return port_of(self.site.gateways[self.host])

    @property
    def ca(self) -> Path:
        return self.members[LINE].ca_file

    def topic(self, *rest: str, of: str = LINE) -> str:
        return "/".join(("edge", self.name, "gw", of, *rest))

    def as_member(self, name: str, client_id: str = "", port: int = 0) -> Raw:
        return Raw(port or self.port, credentials(self.ca, self.members[name]), client_id)

    def counted(self, metric: str, of: str = LINE) -> float:
        """A counter of a gateway, as it tells Prometheus; of one with labels the sum, or that of the labels given."""
        with urllib.request.urlopen(f"http://127.0.0.1:{self.metrics[of]}/metrics", timeout=5) as page:
            lines = page.read().decode().splitlines()
        name, _, labels = metric.partition("{")
        wanted = labels.rstrip("}")
        found = [line.rpartition(" ") for line in lines if re.match(rf"{name}[{{ ]", line) and wanted in line]
        return sum(float(value) for _, _, value in found)

    def said(self, event: str, of: str = LINE, **fields: Any) -> list[dict[str, Any]]:
        return [each for each in self.site.said(of) if each["event"] == event and fields.items() <= each.items()]

    # --- the line ---

    def results(self) -> list[int]:
        """Numbers of the results that have come, in order."""
        return [seq for source, lane, seq in self.receiver.rows("source, lane, seq") if (source, lane) == (PIPELINE, "result")]

    def rate(self, seconds: float) -> float:
        """Results a second that come at the receiver."""
        before, began_s = len(self.results()), time.monotonic()
        time.sleep(seconds)
        return (len(self.results()) - before) / (time.monotonic() - began_s)

    def nothing_lost(self) -> None:
        """Each result until now has come, once: their numbers have no hole, and no gap was reported."""
        numbers = self.results()
        assert numbers == list(range(numbers[0], numbers[0] + len(numbers)))
        assert not [row for row in self.receiver.rows("lane") if row[0] == "gap"]

    def rss(self) -> dict[str, int]:
        """Bytes: of the gateways and of the broker."""
        found = {name: each.rss_bytes for name, each in self.site.gateways.items()}
        return found | {"broker": sum(each.memory_info().rss for each in brokers_of(self.site.gateways[self.host]))}

    def check(self) -> None:
        """Nothing failed inside, whatever came."""
        for name, each in self.site.gateways.items():
            assert not each.ended(), each.log.read_text()[-3000:]
            assert "Traceback" not in each.log.read_text(), each.log.read_text()[-3000:]
            assert not self.said("service_failed", name)


def port_of(gateway: GatewayProcess) -> int:
    url = json.loads(gateway.file.read_text())["broker"]["url"]
    return int(url.rpartition(":")[2])


@contextmanager
def press(rows_per_s: float = ROWS_PER_S) -> Iterator[int]:
    """The port of a press."""
    rows = ROOT / "models" / MODEL / "sample.csv"
    command = [sys.executable, "-m", "edge_runtime.testing.press", "--csv", str(rows), "--rows-per-s", str(rows_per_s)]
    with subprocess.Popen(command, stdout=subprocess.PIPE, text=True) as process:
        try:
            assert process.stdout
            yield int(json.loads(process.stdout.readline())["port"])
        finally:
            process.kill()


def line(port: int, url: str, **pipeline: Any) -> dict[str, Any]:
    """Of the gateway that reads the press: parts of its configuration."""
    points = [{"name": f"f{n + 1}", "table": "holding", "address": 2 * n, "type": "float32"} for n in range(FEATURES)]
    device = {"adapter": "modbus", "period_s": 1 / ROWS_PER_S, "options": {"host": "127.0.0.1", "port": port}, "points": points}
    return {
        "devices": {"press": device},
        "pipelines": {PIPELINE: {"device": "press", "window": {"count": 1}, "model": MODEL, "deadline_s": 1, **pipeline}},
        "sinks": {"cloud": {"type": "https", "url": url, "timeout_s": 2}},
    }


@contextmanager
def plant(folder: Path, *, infer_ms: float = 0.0, **pipeline: Any) -> Iterator[Plant]:
    """All are on one broker, and results come. `infer_ms`: so long takes a window on the gateway of the line, which gives work to
    the others then."""
    with ExitStack() as stack:
        port, far_end = stack.enter_context(press()), stack.enter_context(receiver(folder))
        site = Site(folder)
        authority = Authority(folder / "trust", site.name)
        found = Plant(site, authority, far_end)
        found.first_roster = authority.authority.roster()
        stack.callback(site.end)
        for name in (*NAMES, "evil"):
            found.members[name] = authority.member(name)
        for name, role in PEOPLE.items():
            found.members[name] = authority.member(name, role)
        found.members["lost"] = authority.member("lost", "engineer")
        authority.authority.revoke("lost", "stolen")
        authority.roster(*found.members.values())
        found.metrics = {name: free_port() for name in NAMES}
        for name in NAMES:
            more = line(port, far_end.url, **pipeline) if name == LINE else {"pipelines": {"quiet": {"device": "press"}}}
            more |= {"metrics": {"listen": f"127.0.0.1:{found.metrics[name]}"}, "models_dir": str(ROOT / "models")}
            gateway = site.add(name, mesh={"offers": [MODEL]}, **more)
            if name == LINE and infer_ms:
                slowly = ["-m", "edge_runtime.testing.slow", str(gateway.file), "--infer-ms", str(infer_ms)]
                gateway.command = [sys.executable, *slowly]
            shutil.copytree(found.members[name].folder, gateway.data_dir / "identity")
            gateway.start()
        try:
            site.meshed(NAMES)
            until(found.results, "a result")
            yield found
        except BaseException:
            print(site.tail(), file=sys.stderr)
            raise
