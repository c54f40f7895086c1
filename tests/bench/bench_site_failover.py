"""Gateways of a site on a real network (a namespace each), real mDNS, real mosquitto: how soon they know each other, and how soon
they go on after one of them is lost. Every gateway has a source and delivers to one receiver all the time; each row that was
accepted has to be there exactly once.

    PYTHONPATH=tests python tests/bench/bench_site_failover.py [start | five | twenty]

| figure       | from                                                | to                                                      |
|--------------|-----------------------------------------------------|---------------------------------------------------------|
| full mesh    | the last gateway's discovery is on (log)            | the last one has its last peer in its table (log)       |
| back         | the cable is in again                               | it is in all tables, and all are in its own (log)       |
| new broker   | kill -9 of the host, or its cable is pulled         | the last of the others is on the one new broker (log)   |
"""

from __future__ import annotations

import json
import sys
import tempfile
import time
from collections import Counter
from contextlib import ExitStack
from pathlib import Path
from typing import Any

from gateways import until
from mesh_site import FarEnd, far_end
from netns import Network, network
from sites import Site, brokers_in, brokers_of, instant, lives, row, site, slow

STARTS, KILLS, CUTS = 5, 3, 3
ORPHAN_S_MAX = 1.0
SETTLE_S = 3.0
ROWS = 10_000
"""More than a gateway has time for."""


def main() -> list[dict[str, Any]]:
    return [*start(), *five(), *twenty()]


# --- a cold start ----------------------------------------------------------------------------------------------------


def start() -> list[dict[str, Any]]:
    """Five processes at once, no broker anywhere. The worst of STARTS."""
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        net = stack.enter_context(network(5))
        plant = stack.enter_context(site(folder, net))
        for number in range(5):
            plant.add(f"g{number + 1}")
        took_s, whole_s = [], []
        for _ in range(STARTS):
            began = time.time()
            for each in plant.gateways.values():
                each.start()
            ended = plant.meshed()
            registered = max(_at(plant, name, "discovery_on") for name in plant.gateways)
            took_s.append(ended - registered)
            whole_s.append(ended - began)
            for each in plant.gateways.values():
                assert each.stop() == 0
        _tell("start", took_s, whole_s)
        return [
            row(f"full mesh of 5 after the last one registered, worst of {STARTS}", "s", max(took_s), "<= 1.5"),
            row(f"full mesh of 5 after the start of all five processes, worst of {STARTS}", "s", max(whole_s)),
        ]


def _at(plant: Site, name: str, event: str) -> float:
    return next(instant(line) for line in plant.said(name) if line["event"] == event)


# --- losses ----------------------------------------------------------------------------------------------------------


def five() -> list[dict[str, Any]]:
    return _losses(5, rate_hz=10.0, kills=KILLS, cuts=CUTS)


def twenty() -> list[dict[str, Any]]:
    return _losses(20, rate_hz=3.0, kills=2, cuts=2)


def _losses(gateways: int, *, rate_hz: float, kills: int, cuts: int) -> list[dict[str, Any]]:
    with ExitStack() as stack:
        folder = Path(stack.enter_context(tempfile.TemporaryDirectory()))
        net = stack.enter_context(network(gateways + 1))
        receiver = stack.enter_context(far_end(net, folder, gateways))
        plant = stack.enter_context(site(folder, net))
        device = slow(folder, ROWS, rate_hz=rate_hz, message_ids=True)
        for number in range(gateways):  # one after the other: they share the cores of this machine
            each = plant.add(
                f"g{number + 1:02}",
                devices={"press": device},
                pipelines={"all": {"device": "press"}},
                sinks={"cloud": {"type": "https", "url": receiver.url}, "local": {"type": "mqtt", "url": "local"}},
            )
            each.start()
            each.wait("source_connected")
        plant.meshed()
        killed = [_kill_host(plant) for _ in range(kills)]
        cut = [_cut_host(plant, net) for _ in range(cuts)]
        back = [_cut_worker(plant, net) for _ in range(cuts)]
        _tell(f"{gateways}: killed, cut, merged, back", killed, [new for new, _ in cut], [merged for _, merged in cut], back)
        for each in plant.gateways.values():
            assert each.stop() == 0
        came, wrong = _account(plant, receiver)
        time.sleep(ORPHAN_S_MAX)
        orphans = len(brokers_in(folder))
        return [
            row(f"{gateways} gateways, host killed -9: all on a new broker, worst of {kills}", "s", max(killed), "<= 3"),
            row(
                f"{gateways} gateways, host cut off: all others on a new broker, worst of {cuts}",
                "s",
                max(new for new, _ in cut),
                "<= 6",
            ),
            row(
                f"{gateways} gateways, host's cable in again: full mesh, worst of {cuts}",
                "s",
                max(merged for _, merged in cut),
                "<= 5",
            ),
            row(f"{gateways} gateways, another's cable in again: full mesh, worst of {cuts}", "s", max(back), "<= 5"),
            row(f"{gateways} gateways, {came:,} rows: lost or doubled", "records", wrong, "<= 0"),
            row(f"{gateways} gateways: brokers that outlive their gateway", "processes", orphans, "<= 0"),
        ]


def _kill_host(plant: Site) -> float:
    """And starts it again."""
    host = plant.host()
    brokers = brokers_of(plant.gateways[host])
    assert len(brokers) == 1, f"{host} hosts {brokers}"
    began = time.time()
    plant.gateways[host].kill()
    took_s = plant.moved(began) - began
    until(lambda: not any(lives(each) for each in brokers), "the broker dies with its gateway", ORPHAN_S_MAX)
    plant.gateways[host].start()
    plant.meshed()
    time.sleep(SETTLE_S)
    return took_s


def _cut_host(plant: Site, net: Network) -> tuple[float, float]:
    host = plant.host()
    others = [name for name in plant.gateways if name != host]
    node = list(plant.gateways).index(host)
    began = time.time()
    net.cut(node)
    took_s = plant.moved(began, others) - began
    time.sleep(SETTLE_S)
    return took_s, _heal(plant, net, node)


def _cut_worker(plant: Site, net: Network) -> float:
    host = plant.host()
    away = next(name for name in plant.gateways if name != host)
    node = list(plant.gateways).index(away)
    net.cut(node)
    plant.meshed([name for name in plant.gateways if name != away])
    until(lambda: plant.home(away)[1] == away, "it hosts a broker of its own")
    time.sleep(SETTLE_S)
    return _heal(plant, net, node)


def _heal(plant: Site, net: Network, node: int) -> float:
    healed = time.time()
    net.heal(node)
    took_s = plant.meshed() - healed
    assert plant.host(), "one broker for all"
    time.sleep(SETTLE_S)
    return took_s


# --- the account -----------------------------------------------------------------------------------------------------


def _account(plant: Site, receiver: FarEnd) -> tuple[int, int]:
    """Rows that came, and how many are lost or doubled. All gateways were stopped: what was accepted and not delivered, their
    last words tell; a gap in the numbers of what came is a loss, too."""
    kept = sum(line["undelivered"]["cloud"] for name in plant.gateways for line in plant.said(name) if "undelivered" in line)
    got = Counter((name, int(json.loads(body)["values"]["f1"])) for name, body in receiver.rows("gateway, body"))
    last = dict(sorted(got))
    expected = Counter((name, number) for name in plant.gateways for number in range(last.get(name, 0) + 1))
    return got.total(), kept + ((expected - got) + (got - expected)).total()


def _tell(what: str, *figures: list[float]) -> None:
    print(what, *(" ".join(f"{each:.2f}" for each in some) for some in figures), sep=" | ", file=sys.stderr)


if __name__ == "__main__":
    for part in [globals()[name] for name in sys.argv[1:]] or [main]:
        for each in part():
            print(each)
