"""Gateways find each other over real mDNS: each a process in a network namespace of its own, on one switch (see netns.py)."""

from __future__ import annotations

import asyncio
import logging
import sys
import time
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from discovering import Finder, finder
from netns import Network, network

from edge_runtime.config import Mesh
from edge_runtime.mesh.announcing import ANNOUNCE_S_MIN
from edge_runtime.mesh.discovery import FOUND_MAX, ZeroconfDiscovery
from edge_runtime.ports import EdgeError

HEALED_S_MAX = 4.0
"""After a heal: the period of announcements, and half of it for a slow machine. Without our own it is more than 40 s."""
MDNS = 5353
STRANGER = str(Path(__file__).parents[1] / "mdns_stranger.py")


@pytest.fixture(scope="module")
def net() -> Iterator[Network]:
    with network(4) as net:
        yield net


@pytest.fixture
def start(net: Network) -> Iterator[Any]:
    """finder(net, ...) whose process ends with the test."""
    started: list[Finder] = []

    def begin(node: int, gateway: str, **facts: Any) -> Finder:
        started.append(finder(net, node, gateway, **facts))
        return started[-1]

    yield begin
    for each in started:
        each.kill()


def test_they_find_each_other_and_a_late_joiner_and_hear_changes_and_goodbyes(start: Any) -> None:
    first, second = start(0, "g1"), start(1, "g2", port=1884)
    first.sees("g2")
    second.sees("g1")
    assert first.found()["g2"]["endpoints"] == [{"host": "10.77.0.2", "port": 1884}]
    late = start(2, "g3")
    late.sees("g1", "g2")
    first.sees("g2", "g3")

    began = time.monotonic()
    for role in ("host", "candidate") * 5:  # back to what a cache still holds
        second.lines.say(role)
        late.lines.wait(lambda role=role: late.found()["g2"]["role"] == role, f"g3 hears that g2 is {role}")
    assert time.monotonic() - began < 2 * ANNOUNCE_S_MIN, "not at once, but with what is announced anyway"
    second.close()
    first.sees("g3")
    late.sees("g1")


def test_killed_is_not_gone(start: Any) -> None:
    """mDNS tells where to ask, not who is alive."""
    first, second = start(0, "g1"), start(1, "g2")
    first.sees("g2")
    second.kill()
    time.sleep(1.0)
    first.sees("g2")
    again = start(1, "g2")
    first.lines.wait(lambda: len(first.said()[-1].get("found", ())) == 2, "the killed one and its next life")
    again.close()
    first.lines.wait(lambda: len(first.said()[-1].get("found", ())) == 1, "the goodbye of one of them")


@pytest.mark.parametrize("quiet", [False, True], ids=["cable pulled", "between two switches"])
def test_who_came_during_a_cut_is_seen_after_it(net: Network, start: Any, quiet: bool) -> None:
    first, second = start(0, "g1"), start(1, "g2")
    first.sees("g2")
    if quiet:
        net.partition([0, 1, 2], [3])
    else:
        net.cut(3)
    alone = start(3, "g4")
    if not quiet:
        assert alone.wait("discovery_off")["interfaces"] == []
    time.sleep(5.5 if quiet else 2.5)  # all that zeroconf says and asks of itself after a start is said
    assert alone.found() == {}
    if quiet:
        net.join()
    else:
        net.heal(3)
    took_s = [alone.sees("g1", "g2", limit_s=HEALED_S_MAX), first.sees("g2", "g4", limit_s=1.0)]
    second.sees("g1", "g4", limit_s=1.0)
    print(f"seen {max(took_s):.2f} s after the heal")


def test_a_cut_makes_nobody_forgotten(net: Network, start: Any) -> None:
    """Where to ask stays known: the election needs it."""
    first, second = start(0, "g1"), start(1, "g2")
    first.sees("g2")
    second.sees("g1")
    net.cut(1)
    second.wait("discovery_off")
    second.sees("g1")
    first.sees("g2")
    net.heal(1)
    second.lines.wait(lambda: len([1 for each in second.said() if each.get("event") == "discovery_on"]) == 2, "it is on again")


def test_a_new_interface_and_a_new_address_are_noticed(start: Any) -> None:
    with network(2) as net:
        first, second = finder(net, 0, "g1", listen="::"), finder(net, 1, "g2")
        first.sees("g2")
        net.nodes[1].ip("addr add 10.77.0.52/24 dev eth0")
        first.lines.wait(lambda: "10.77.0.52" in hosts(first, "g2"), "the second address")
        net.nodes[1].ip("addr del 10.77.0.52/24 dev eth0")
        first.lines.wait(lambda: "10.77.0.52" not in hosts(first, "g2"), "that it is gone")
        net.plug(1, "eth1", "10.77.0.62")
        first.lines.wait(lambda: "10.77.0.62" in hosts(first, "g2"), "the address of the new interface")
        second.lines.wait(lambda: "fd77::1" in hosts(second, "g1"), "IPv6 where the broker listens on ::")
        assert hosts(first, "g2") == ["10.77.0.2", "10.77.0.62"], "IPv4 only where the broker listens on 0.0.0.0"


def test_ipv6_alone_is_enough(start: Any) -> None:
    with network(2) as net:
        for node in (0, 1):
            net.nodes[node].ip(f"addr del {net.address(node)}/24 dev eth0")
        first, second = finder(net, 0, "g1", listen="::"), finder(net, 1, "g2", listen="::")
        first.sees("g2")
        second.sees("g1")
        assert hosts(first, "g2") == ["fd77::2"]


def hosts(seen_by: Finder, gateway: str) -> list[str]:
    return [each["host"] for each in seen_by.found().get(gateway, {}).get("endpoints", ())]


def test_what_is_excluded_carries_no_packet(net: Network, start: Any) -> None:
    net.plug(2, "docker7", "10.77.0.73")
    sniffer = net.sniff(2, MDNS)
    first, second = start(0, "g1"), start(2, "g2")
    first.sees("g2")
    second.sees("g1")
    second.lines.say("host")
    first.lines.wait(lambda: first.found()["g2"]["role"] == "host", "the new role")
    assert hosts(first, "g2") == ["10.77.0.3"]
    counts = sniffer.count()
    assert counts.get("eth0", 0) > 0
    assert "docker7" not in counts
    assert "lo" not in counts

    named = start(2, "g3", interfaces=["docker7"], interfaces_exclude=[])
    first.lines.wait(lambda: hosts(first, "g3") == ["10.77.0.73"], "the named interface")
    assert sniffer.count().get("docker7", 0) > 0
    named.close()


def test_off_sends_not_one_packet(net: Network, start: Any) -> None:
    loud, quiet = net.sniff(0, MDNS), net.sniff(3, MDNS)
    first, off = start(0, "g1"), start(3, "g4", discovery="off")
    off.lines.say("host")
    late = start(1, "g2")
    late.sees("g1")
    first.sees("g2")
    off.close()
    assert loud.count().get("eth0", 0) > 0
    assert quiet.count() == {}
    assert off.found() == {}


def test_loopback_stays_on_this_machine(net: Network, start: Any) -> None:
    """The demo: several gateways on one machine, nothing on its wire."""
    sniffer = net.sniff(0, MDNS)
    first, second = start(0, "g1", listen="127.0.0.1"), start(0, "g2", listen="127.0.0.1", port=1884)
    first.sees("g2")
    second.sees("g1")
    assert first.found()["g2"]["endpoints"] == [{"host": "127.0.0.1", "port": 1884}]
    assert set(sniffer.count()) == {"lo"}


def test_two_sites_on_one_wire(start: Any) -> None:
    ours = start(0, "g1"), start(1, "g2")
    theirs = start(2, "g1", site="other"), start(3, "g2", site="other")
    for first, second in (ours, theirs):
        first.sees("g2")
        second.sees("g1")
    assert [each["site"] for each in ours[0].found().values()] == ["plant"]
    assert [each["site"] for each in theirs[1].found().values()] == ["other"]


def test_a_stranger_on_the_network_hurts_nobody(net: Network, start: Any) -> None:
    first, second = start(0, "g1"), start(1, "g2")
    first.sees("g2")
    stranger = net.start(2, sys.executable, STRANGER, net.address(2), "garbage", "40", "plant")
    assert stranger.wait(60) == 0
    late = start(3, "g4")
    first.sees("g2", "g4")
    late.sees("g1", "g2")
    assert first.ask("refused")["bad"] > 0
    assert len([1 for each in first.said() if each.get("event") == "announcement_refused"]) == 1
    second.close()


def test_a_crowd_is_bounded(start: Any) -> None:
    with network(2) as net:
        first = finder(net, 0, "g1")
        net.start(1, sys.executable, STRANGER, net.address(1), "crowd", str(FOUND_MAX + 300), "plant")
        first.lines.wait(lambda: len(first.found()) == FOUND_MAX, "the first thousand")
        first.lines.wait(lambda: first.ask("refused").get("too many", 0) > 100, "the others are counted")
        assert len(first.found()) == FOUND_MAX


def test_without_zeroconf_it_says_what_to_install(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf.asyncio", None)
    with pytest.raises(EdgeError, match=r"pip install 'edge-runtime\[mesh\]'"):
        asyncio.run(_build())


async def _build() -> ZeroconfDiscovery:
    return ZeroconfDiscovery(Mesh(), "0.0.0.0", logging.getLogger())
