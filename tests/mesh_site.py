"""A site on a real network: gateways as processes on the nodes of a Network, a foreign MQTT client that watches, a receiver.

with network(6) as net, site(net, tmp_path, range(5), eye=5) as plant:
    plant.whole()                                   # all are on one broker
    plant.gateways[1].kill()
    plant.whole([0, 2, 3, 4])

What is asserted is what anybody can see: retained topics on the broker, and what the receiver has.
"""

from __future__ import annotations

import json
import signal
import sys
import time
from collections import Counter
from collections.abc import Iterable, Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

from gateways import GatewayProcess, until
from netns import Network, Subscriber
from receivers import ReceiverProcess

PORT = 1883
MODEL = "shuttle-anomaly"
FEATURES = 9
DEADLINE_S = 2.0


class Member(GatewayProcess):
    """One gateway, and the node that it is on."""

    def __init__(self, net: Network, folder: Path, node: int, settings: dict[str, Any], infer_ms: float = 0.0) -> None:
        """`infer_ms`: of a slow board; each window takes so long."""
        super().__init__(folder, settings, inside=net.nodes[node].inside)
        self.node, self.name = node, settings["gateway"]
        if infer_ms:
            slow = [sys.executable, "-m", "edge_runtime.testing.slow", str(self.file), "--infer-ms", str(infer_ms)]
            self.command = [*net.nodes[node].inside, *slow]

    def freeze(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGSTOP)

    def thaw(self) -> None:
        assert self.process is not None
        self.process.send_signal(signal.SIGCONT)


class Site:
    def __init__(self, net: Network, name: str, gateways: dict[int, Member], watcher: Subscriber) -> None:
        self.net, self.name, self.gateways, self.watcher = net, name, gateways, watcher

    def brokers(self, since: float = 0.0) -> tuple[float, dict[str, Any]]:
        """When the host said last that the broker is here, and what. A host that steps down, and one that knows better, say (with
        an empty `run`) where it is: that is no host of this broker."""
        said = [(when, json.loads(payload)) for when, payload in self.watcher.of(f"edge/{self.name}/brokers", since)]
        return next((each for each in reversed(said) if each[1]["run"]), (0.0, {}))

    def host(self, since: float = 0.0) -> int:
        """Node that hosts the broker; -1: nothing of it has come."""
        name = self.brokers(since)[1].get("host")
        return next((node for node, each in self.gateways.items() if each.name == name), -1)

    def status(self, node: int, since: float = 0.0) -> dict[str, Any]:
        found: dict[str, Any] = self.watcher.documents(since).get(f"edge/{self.name}/gw/{self.gateways[node].name}/status", {})
        return found

    def worker(self, but: int = -1) -> int:
        """A node that does not host."""
        return next(node for node in self.gateways if node not in (self.host(), but))

    def addresses(self, nodes: Iterable[int]) -> list[str]:
        return [f"{self.net.address(node)}:{PORT}" for node in nodes]

    def part(self, nodes: Iterable[int], watcher: Subscriber) -> Site:
        """Those of its gateways, as another watcher sees them."""
        return Site(self.net, self.name, {node: self.gateways[node] for node in nodes}, watcher)

    def beats(self, nodes: Iterable[int], *, since: float) -> float:
        """Until the watcher has heard a heartbeat of each of them. Returns the time of the last first one."""
        topics = [f"edge/{self.name}/gw/{self.gateways[node].name}/load" for node in nodes]
        self.watcher.wait(lambda now: all(topic in now for topic in topics), f"{topics}", since=since)
        firsts = self.watcher.first(since)
        return max(firsts[topic] for topic in topics)

    def back(self, nodes: Iterable[int], *, since: float) -> float:
        """Until they are heard again, and all are on one broker. Returns the seconds from `since`."""
        nodes = list(nodes)
        heard = self.beats(nodes, since=since)
        return max(heard, self.whole()) - since

    def lose(self, node: int) -> float:
        """kill -9. Returns the seconds until the watcher has it from the broker that this one is gone, or everything again from
        a new broker."""
        others = [each for each, gateway in self.gateways.items() if each != node and gateway.process is not None]
        began, hosts = time.monotonic(), node == self.host()
        self.gateways[node].kill()
        if hosts:
            return self.whole(others, since=began) - began
        self.watcher.wait(lambda now: self.status(node, began).get("online") is False, f"{node} is gone")
        return time.monotonic() - began

    def bring_back(self, node: int) -> float:
        """Returns the seconds from its start until it is one of the whole."""
        began = time.monotonic()
        self.gateways[node].start()
        self.watcher.wait(lambda now: self.status(node, began).get("online"), f"{node} is back")
        return max(self.whole(), began) - began

    def mend(self) -> None:
        """Whatever a test has done or left undone: every cable in, every gateway running, and all on one broker."""
        for node, each in self.gateways.items():
            self.net.heal(node)
            if each.process is None:
                each.start()
            each.thaw()
        self.net.join()
        self.net.unblock_all()
        self.whole()

    def whole(self, nodes: Iterable[int] | None = None, *, since: float = 0.0, limit_s: float = 20.0) -> float:
        """Until the watcher has, after `since`, a broker's host and the births of all these gateways to that very broker.
        Returns the time of the last of them."""
        wanted = sorted(self.gateways if nodes is None else nodes)
        self.watcher.lines.wait(
            lambda: self._whole(wanted, since), f"{wanted} on one broker, seen from {self.watcher.at()}", limit_s
        )
        topics = [f"edge/{self.name}/gw/{self.gateways[node].name}/status" for node in wanted]
        last = self.watcher.last(since)
        return max(self.brokers(since)[0], *(last[topic][0] for topic in topics))

    def _whole(self, wanted: list[int], since: float) -> bool:
        brokers = self.brokers(since)[1]
        births = [self.status(node, since) for node in wanted]
        here = all(birth.get("online") and birth["run"] == brokers.get("run") for birth in births)
        return here and brokers.get("host") in [self.gateways[node].name for node in wanted]


def settings(node: int, site: str, file: Path, *, load: bool, sink: str = "", rate_hz: float = 20.0) -> dict[str, Any]:
    """A gateway that plays back `file`. `load`: once, each row through the model, and delivers to the receiver at `sink`; else
    one row a second for ever, as it is."""
    options = {"rate_hz": rate_hz if load else 1, "loop": not load, "message_ids": load}
    device = {
        "adapter": "replay",
        "options": {"file": str(file), **options},
        "points": [{"name": f"f{n + 1}", "column": f"f{n + 1}"} for n in range(FEATURES)],
    }
    model = {"window": {"count": 1}, "model": MODEL, "engine": "tflite", "deadline_s": DEADLINE_S} if load else {}
    return {
        "site": site,
        "gateway": f"{site}-{node}",
        "broker": {"mode": "auto", "listen": "0.0.0.0", "url": f"mqtt://127.0.0.1:{PORT}"},
        "mesh": {},
        "devices": {"press": device},
        "pipelines": {"wear": {"device": "press", **model}},
        "sinks": {"cloud": {"type": "https", "url": sink, "timeout_s": 2}} if sink else {},
        "log": {"format": "json"},
    }


def write_rows(file: Path, count: int) -> Path:
    """Rows that look like a press at work, each another one."""
    head = ",".join(f"f{n + 1}" for n in range(FEATURES))
    usual = (44.0, 0.0, 85.0, 0.0, 39.0, 1.0, 41.0, 45.0, 5.0)
    lines = (",".join(f"{value + number / 10_000:.4f}" for value in usual) for number in range(count))
    file.write_text("\n".join([head, *lines]) + "\n")
    return file


@contextmanager
def site(
    net: Network,
    folder: Path,
    nodes: Iterable[int],
    *,
    eye: int,
    name: str = "plant",
    rows: int = 0,
    sink: str = "",
    rate_hz: float = 20.0,
    slow: dict[int, float] | None = None,
) -> Iterator[Site]:
    """`eye`: the node of the watcher. `rows`: of the load of each gateway; `slow`: node -> milliseconds a window."""
    file = write_rows(folder / f"{name}.csv", rows or 10)
    with ExitStack() as stack:
        gateways = {}
        for node in nodes:
            given = settings(node, name, file, load=bool(rows), sink=sink, rate_hz=rate_hz)
            gateways[node] = Member(net, folder / f"{name}-{node}", node, given, (slow or {}).get(node, 0.0))
            stack.callback(gateways[node].end)
        addresses = [f"{net.address(node)}:{PORT}" for node in gateways]
        watcher = net.subscriber(eye, addresses, f"edge/{name}/brokers", f"edge/{name}/gw/+/status", f"edge/{name}/gw/+/load")
        stack.callback(watcher.kill)
        for each in gateways.values():
            each.start()
        yield Site(net, name, gateways, watcher)


class FarEnd(ReceiverProcess):
    """`edge-runtime receive` on a node."""

    def __init__(self, net: Network, folder: Path, node: int) -> None:
        super().__init__(folder / "records.db")
        self._address = net.address(node)
        self.command = [*net.nodes[node].inside, *(each.replace("127.0.0.1", self._address) for each in self.command)]

    @property
    def url(self) -> str:
        return f"http://{self._address}:{self.port}"


@contextmanager
def far_end(net: Network, folder: Path, node: int) -> Iterator[FarEnd]:
    receiver = FarEnd(net, folder, node)
    receiver.start()
    try:
        yield receiver
    finally:
        receiver.kill()


def results(receiver: ReceiverProcess) -> Counter[str]:
    """Gateway -> results that have come, each counted as often as it came."""
    return Counter(gateway for (gateway,) in receiver.rows("gateway"))


def all_once(receiver: ReceiverProcess, gateways: Iterable[Member], count: int, limit_s: float = 40.0) -> None:
    """Until exactly `count` records of each gateway have come: a lost one leaves a gap record, a doubled one is one too many."""
    expected = {each.name: count for each in gateways}
    until(lambda: results(receiver) == expected, f"{expected}, there are {results(receiver)}", limit_s)


def placed(receiver: ReceiverProcess, gateway: Member) -> Counter[str]:
    """Where its windows were computed, and why -> how many."""
    rows = receiver.rows("gateway, body")
    return Counter(json.loads(body)["placed"] for name, body in rows if name == gateway.name)
