"""A network of real machines' worth on this one: each node is a network namespace with one cable (eth0) to a switch.

with network(5) as net:
    net.start(0, sys.executable, "-m", "edge_runtime", "run", str(file))     # a process on node 0: a Popen, killed at the end
    net.subscriber(1, [f"{net.address(0)}:1883"], "edge/#")                 # what a foreign MQTT client on node 1 hears
    net.cut(2); net.heal(2)                     # its cable is out: node 2 sees that its link is down
    net.partition([0, 1, 2], [3, 4]); net.join()      # between two switches: no node's link goes down
    net.block(0, 1, 1883); net.unblock(0, 1, 1883)    # a firewall: nothing from node 0 arrives at port 1883 of node 1

Namespaces have no names: each is held by one sleeping process, which dies with the test run, and then the kernel takes
everything away. So two test runs do not meet, and a test run that is killed leaves nothing.
"""

from __future__ import annotations

import contextlib
import json
import os
import shutil
import subprocess
import sys
import threading
import time
from collections.abc import Callable, Iterator, Sequence
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from gateways import die_with_parent

END_S_MAX = 10.0
FOREIGN = Path(__file__).with_name("foreign.py")
PROGRAMS = "unshare", "nsenter", "ip", "bridge"
HOLD = "mount -t sysfs sysfs /sys && ip link set lo up && echo up && exec sleep infinity"
"""/sys, too: a program that looks at /sys/class/net shall see its own cables."""


class Missing(Exception):
    """This machine has no network namespaces for us."""


class Space:
    """One network namespace."""

    def __init__(self) -> None:
        command = ["unshare", "--net", "--mount", "sh", "-c", HOLD]
        self.holder = subprocess.Popen(
            command, stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, preexec_fn=die_with_parent
        )
        assert self.holder.stdout is not None
        if not self.holder.stdout.readline():
            raise Missing(self.holder.communicate()[1].strip())

    @property
    def inside(self) -> list[str]:
        """What to put before a command. It runs as the same process; paths have to be absolute."""
        return ["nsenter", f"--target={self.holder.pid}", "--net", "--mount"]

    def ip(self, *lines: str) -> None:
        """`ip` with each of these lines."""
        done = subprocess.run([*self.inside, "ip", "-batch", "-"], input="\n".join(lines), capture_output=True, text=True)
        assert done.returncode == 0, f"{lines}: {done.stderr}"

    def close(self) -> None:
        self.holder.kill()
        self.holder.communicate()


class Network:
    """Nodes 0..n-1: 10.77.0.1, 10.77.0.2, ... and fd77::1, fd77::2, ..."""

    def __init__(self, nodes: int) -> None:
        self.nodes: list[Space] = []
        self.switch = Space()
        self.children: list[subprocess.Popen[Any]] = []
        self._switches = 0
        self._at: dict[int, str] = {}
        """Node -> switch that its cable is in."""
        self._blocked: dict[tuple[int, int, int], None] = {}
        try:
            self._add_switch()
            for _ in range(nodes):
                self.add_node()
        except BaseException:
            self.close()
            raise

    @staticmethod
    def address(node: int) -> str:
        return f"10.77.0.{node + 1}"

    @staticmethod
    def address6(node: int) -> str:
        return f"fd77::{node + 1:x}"

    def add_node(self) -> int:
        node = len(self.nodes)
        self.nodes.append(Space())
        self.plug(node, "eth0", self.address(node), self.address6(node))
        self._at[node] = "sw0"
        return node

    def plug(self, node: int, name: str, address: str, address6: str = "") -> None:
        """One more network card, on the same switch. Its end there: `{name}n{node}`"""
        space, end = self.nodes[node], f"{name}n{node}"
        self.switch.ip(
            f"link add {end} type veth peer name {name} netns {space.holder.pid}",
            f"link set {end} master sw0 up",
        )
        more = [f"addr add {address6}/64 dev {name} nodad"] if address6 else []
        space.ip(f"addr add {address}/24 dev {name}", *more, f"link set {name} up")

    def _add_switch(self) -> str:
        name = f"sw{self._switches}"
        self._switches += 1
        self.switch.ip(f"link add {name} type bridge mcast_snooping 0 forward_delay 0", f"link set {name} up")
        return name

    # --- what goes wrong ---------------------------------------------------------------------------------------------

    def cut(self, node: int) -> None:
        """The cable is pulled: the node sees it."""
        self.switch.ip(f"link set eth0n{node} down")

    def heal(self, node: int) -> None:
        self.switch.ip(f"link set eth0n{node} up")

    def partition(self, *groups: Sequence[int]) -> None:
        """Nodes reach only those of their own group; no link goes down. The first group keeps its switch."""
        for group in groups[1:]:
            switch = self._add_switch()
            for node in group:
                self.switch.ip(f"link set eth0n{node} master {switch}")
                self._at[node] = switch

    def join(self) -> None:
        """The end of every partition."""
        moved = [node for node, switch in self._at.items() if switch != "sw0"]
        self.switch.ip(*(f"link set eth0n{node} master sw0" for node in moved))
        self._at = dict.fromkeys(self._at, "sw0")

    def block(self, source: int, target: int, port: int) -> None:
        """TCP connections from one node to a port of the other are never answered; the other way round they are. (What the
        target sends from that port to the source is dropped: it needs no firewall program.)"""
        self._rule("add", source, target, port)
        self._blocked[source, target, port] = None

    def unblock(self, source: int, target: int, port: int) -> None:
        self._rule("del", source, target, port)
        del self._blocked[source, target, port]

    def unblock_all(self) -> None:
        for each in list(self._blocked):
            self.unblock(*each)

    def _rule(self, verb: str, source: int, target: int, port: int) -> None:
        self.nodes[target].ip(f"rule {verb} to {self.address(source)} ipproto tcp sport {port} blackhole")

    # --- what is there -----------------------------------------------------------------------------------------------

    def listening(self, node: int) -> list[int]:
        """TCP ports of a node on which somebody listens."""
        command = [*self.nodes[node].inside, "cat", "/proc/net/tcp", "/proc/net/tcp6"]
        rows = [line.split() for line in subprocess.run(command, capture_output=True, text=True, check=True).stdout.splitlines()]
        return sorted({int(row[1].rpartition(":")[2], 16) for row in rows if row[3] == "0A"})

    # --- processes ---------------------------------------------------------------------------------------------------

    def start(self, node: int, *command: str, **settings: Any) -> subprocess.Popen[Any]:
        """A process on a node. It dies with the test run, and with the network."""
        child = subprocess.Popen([*self.nodes[node].inside, *command], preexec_fn=die_with_parent, **settings)
        self.children.append(child)
        return child

    def lines(self, node: int, *command: str) -> Lines:
        return Lines(self.start(node, *command, stdout=subprocess.PIPE, stdin=subprocess.PIPE, text=True, bufsize=1))

    def subscriber(self, node: int, addresses: Sequence[str], *topics: str) -> Subscriber:
        """A foreign MQTT client (foreign.py): takes the first of these addresses (HOST:PORT) that answers, again and again."""
        return Subscriber(self.lines(node, sys.executable, str(FOREIGN), ",".join(addresses), *topics))

    def sniff(self, node: int, port: int) -> Sniffer:
        """Counts the UDP packets to a port that leave a node, on every interface of it."""
        return Sniffer(self.lines(node, sys.executable, str(Path(__file__)), str(port)))

    def close(self) -> None:
        for child in self.children:
            if child.poll() is None:
                child.kill()
            child.wait(END_S_MAX)
            for stream in (child.stdin, child.stdout):
                if stream is not None:
                    with contextlib.suppress(BrokenPipeError):
                        stream.close()
        for space in (*self.nodes, self.switch):
            space.close()


@contextmanager
def network(nodes: int) -> Iterator[Network]:
    """Skips the test, loudly, where there can be none."""
    missing = [each for each in PROGRAMS if shutil.which(each) is None]
    if os.geteuid() != 0 or missing:
        pytest.skip(f"NOT ROOT, OR NO {' '.join(missing)}: the mesh is NOT tested on a real network (apt install iproute2)")
    try:
        net = Network(nodes)
    except Missing as error:
        pytest.skip(f"NO NETWORK NAMESPACES HERE: the mesh is NOT tested on a real network ({error})")
    try:
        yield net
    finally:
        net.close()


# --- what processes say ----------------------------------------------------------------------------------------------


class Lines:
    """Everything that a process writes, line by line, with the time when it came."""

    def __init__(self, process: subprocess.Popen[str]) -> None:
        self.process = process
        self.got: list[tuple[float, str]] = []
        self._news = threading.Condition()
        threading.Thread(target=self._read, daemon=True).start()

    def _read(self) -> None:
        assert self.process.stdout is not None
        with contextlib.suppress(ValueError):  # closed while we read
            for line in self.process.stdout:
                with self._news:
                    self.got.append((time.monotonic(), line.rstrip("\n")))
                    self._news.notify_all()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line + "\n")
        self.process.stdin.flush()

    def wait(self, condition: Callable[[], Any], what: str, limit_s: float = 20.0) -> Any:
        """Looks whenever a line has come."""
        end = time.monotonic() + limit_s
        with self._news:
            while not (found := condition()):
                assert time.monotonic() < end, (
                    f"not within {limit_s:g} s: {what}; it said last {[line[:200] for _, line in self.got[-3:]]}"
                )
                self._news.wait(min(0.2, max(0.0, end - time.monotonic())))
            return found


class Subscriber:
    """What a foreign MQTT client has heard. Times are those of time.monotonic()."""

    def __init__(self, lines: Lines) -> None:
        self.lines = lines

    def at(self) -> str:
        """Where it is connected now; "": nowhere."""
        return next((said.get("connected", "") for _, said in reversed(self._said()) if said.keys() & {"connected", "lost"}), "")

    def last(self, since: float = 0.0) -> dict[str, tuple[float, bytes]]:
        """Topic -> (when, payload) of the last message, of those that came after `since`."""
        messages = [(when, said) for when, said in self._said() if "topic" in said and when >= since]
        return {said["topic"]: (when, bytes.fromhex(said["hex"])) for when, said in messages}

    def of(self, topic: str, since: float = 0.0) -> list[tuple[float, bytes]]:
        """Every message of a topic: (when, payload)."""
        said = [(when, line) for when, line in self._said() if when >= since]
        return [(when, bytes.fromhex(line["hex"])) for when, line in said if line.get("topic") == topic]

    def first(self, since: float) -> dict[str, float]:
        """Topic -> when its first message came after `since`."""
        return {said["topic"]: when for when, said in reversed(self._said()) if "topic" in said and when >= since}

    def documents(self, since: float = 0.0) -> dict[str, Any]:
        """Topic -> its JSON; topics whose message was emptied are left out."""
        return {topic: json.loads(payload) for topic, (_, payload) in self.last(since).items() if payload}

    def wait(self, condition: Callable[[dict[str, Any]], Any], what: str, limit_s: float = 20.0, since: float = 0.0) -> Any:
        """Until `condition(documents(since))` holds. Returns what it returns."""
        return self.lines.wait(lambda: condition(self.documents(since)), what, limit_s)

    def kill(self) -> None:
        self.lines.process.kill()

    def _said(self) -> list[tuple[float, dict[str, Any]]]:
        return [(when, json.loads(line)) for when, line in list(self.lines.got)]


class Sniffer:
    def __init__(self, lines: Lines) -> None:
        self._lines = lines
        lines.wait(lambda: lines.got, "the sniffer listens")

    def count(self) -> dict[str, int]:
        """Interface -> packets that have left over it until now."""
        before = len(self._lines.got)
        self._lines.say("count")
        self._lines.wait(lambda: len(self._lines.got) > before, "the sniffer's count")
        counts: dict[str, int] = json.loads(self._lines.got[-1][1])
        return counts


def _sniff(port: int) -> None:
    """On the node: counts until its input ends."""
    import select
    import socket

    counts: dict[str, int] = {}
    outgoing = 4
    with socket.socket(socket.AF_PACKET, socket.SOCK_DGRAM, socket.htons(3)) as wire:
        print(json.dumps(counts), flush=True)
        while True:
            ready, _, _ = select.select([wire, sys.stdin], [], [])
            if wire in ready:
                packet, (name, protocol, kind, *_) = wire.recvfrom(65_535)
                udp = _udp(packet, protocol)
                if kind == outgoing and udp is not None and int.from_bytes(udp[2:4], "big") == port:
                    counts[name] = counts.get(name, 0) + 1
            elif not sys.stdin.readline():
                return
            else:
                print(json.dumps(counts), flush=True)


def _udp(packet: bytes, protocol: int) -> bytes | None:
    if protocol == 0x0800 and packet[9] == 17:
        return packet[(packet[0] & 0x0F) * 4 :]
    if protocol == 0x86DD and packet[6] == 17:
        return packet[40:]
    return None


if __name__ == "__main__":
    _sniff(int(sys.argv[1]))
