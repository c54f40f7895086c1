"""Finding and hosting the site's broker, on virtual time: who hosts, who follows, and how long it takes."""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Callable

import msgspec
import pytest
from memberships import Site, simulate

from edge_runtime.bus import presence, topics
from edge_runtime.bus.presence import Brokers
from edge_runtime.mesh.election import GRACE_S, SLOT_S, YIELD_S
from edge_runtime.mesh.membership import EXTERNAL_S_MAX
from edge_runtime.ports import Address
from edge_runtime.ports_mesh import Endpoint
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.host import FakeHost
from edge_runtime.testing.lan import Line
from edge_runtime.testing.network import FakeBroker

SEEDS = range(3)


def cases(*counts: int) -> list[tuple[int, int]]:
    """(gateways, seed): the largest site once, the others with each seed."""
    return [(count, seed) for count in counts for seed in (SEEDS if count < 20 else [7])]


def names(count: int) -> list[str]:
    return [f"gw-{number:02}" for number in range(1, count + 1)]


@pytest.mark.parametrize(("count", "seed"), cases(1, 5, 20))
def test_a_cold_start(count: int, seed: int) -> None:
    async def scenario(site: Site) -> None:
        site.start(*names(count))
        await site.settled(within_s=5)
        assert site.hosts == ["gw-01"]
        await site.stays(8)
        assert len(site.lan.connections) <= count + 2  # whoever asks closes

    simulate(scenario, seed=seed)


@pytest.mark.parametrize(("count", "seed"), cases(2, 5, 20))
def test_the_host_is_killed(count: int, seed: int) -> None:
    async def scenario(site: Site) -> None:
        site.start(*names(count))
        await site.settled()
        await asyncio.sleep(10)
        site.kill("gw-01")
        assert await site.settled(within_s=3) < GRACE_S + SLOT_S  # nobody waits for the dead one's turn
        assert site.hosts == ["gw-02"]
        await site.stays(8)
        site.start("gw-01")  # a better one that comes later moves nobody
        await site.settled(within_s=3)
        await site.stays(8)
        assert site.hosts == ["gw-02"]

    simulate(scenario, seed=seed)


@pytest.mark.parametrize(("count", "seed"), cases(2, 5, 20))
def test_the_host_is_cut_off_and_comes_back(count: int, seed: int) -> None:
    async def scenario(site: Site) -> None:
        everybody = names(count)
        site.start(*everybody)
        await site.settled()
        await asyncio.sleep(10)
        site.lan.cut("gw-01")
        await asyncio.sleep(0.1)
        await site.settled(*everybody[1:], within_s=4)
        await asyncio.sleep(10)
        assert site.agreed("gw-01")
        assert site.agreed(*everybody[1:])
        site.lan.heal()
        await site.settled(within_s=5)
        await site.stays(8)

    simulate(scenario, seed=seed)


@pytest.mark.parametrize(("count", "seed"), cases(3, 20))
def test_a_guest_is_cut_off_and_comes_back(count: int, seed: int) -> None:
    async def scenario(site: Site) -> None:
        everybody = names(count)
        site.start(*everybody)
        await site.settled()
        await asyncio.sleep(10)
        last = everybody[-1]
        site.lan.cut(last)
        await asyncio.sleep(10)
        assert site.agreed(last)
        assert site.agreed(*everybody[:-1])
        site.lan.heal()
        await site.settled(within_s=5)
        assert site.hosts == ["gw-01"]

    simulate(scenario, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_broker_dies_and_its_gateway_lives(seed: int) -> None:
    async def scenario(site: Site) -> None:
        site.start(*names(5))
        await site.settled()
        await asyncio.sleep(5)
        for _ in range(3):
            site.brokers["gw-01", 1883].kill()
            await asyncio.sleep(0.2)
            await site.settled(within_s=3)
            assert site.hosts == ["gw-01"]
            await asyncio.sleep(5)

    simulate(scenario, seed=seed)


@pytest.mark.parametrize(("count", "seed"), cases(5, 20))
def test_a_partition_heals(count: int, seed: int) -> None:
    async def scenario(site: Site) -> None:
        everybody = names(count)
        site.start(*everybody)
        await site.settled()
        await asyncio.sleep(10)
        one, other = everybody[::2], everybody[1::2]
        site.lan.part(one, other)
        await asyncio.sleep(0.1)
        await site.settled(*other, within_s=8)
        assert site.agreed(*one)
        await asyncio.sleep(10)
        site.lan.heal()
        await site.settled(within_s=5)
        assert site.hosts == ["gw-01"]
        await site.stays(8)

    simulate(scenario, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("lesser_is_blocked", [False, True])
def test_a_firewall_that_lets_one_way_through(lesser_is_blocked: bool, seed: int) -> None:
    """Parted first, so that both host; then only one of the hosts reaches the other."""

    async def scenario(site: Site) -> None:
        site.start(*names(4))
        await site.settled()
        await asyncio.sleep(5)
        site.lan.part(["gw-01", "gw-03"], ["gw-02", "gw-04"])
        await asyncio.sleep(15)
        assert sorted(site.hosts) == ["gw-01", "gw-02"]
        site.lan.heal()
        site.lan.block(*(("gw-02", "gw-01") if lesser_is_blocked else ("gw-01", "gw-02")))
        await site.settled(within_s=12)
        assert site.hosts == (["gw-02"] if lesser_is_blocked else ["gw-01"])
        await site.stays(20)

    simulate(scenario, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_gateway_that_nobody_reaches(seed: int) -> None:
    """gw-01 would host, but its firewall lets nobody in. It starts first."""

    async def scenario(site: Site) -> None:
        for other in ("gw-02", "gw-03"):
            site.lan.block(other, "gw-01")
        site.start("gw-01")
        await asyncio.sleep(5)
        site.start("gw-02", "gw-03")
        await site.settled(within_s=15)
        assert site.hosts == ["gw-02"]
        await site.stays(10)
        site.kill("gw-02")
        await site.settled(within_s=15)
        assert site.hosts == ["gw-03"]
        await site.stays(10)

    simulate(scenario, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_pinned_host_takes_over_when_it_comes_and_is_stood_in_for(seed: int) -> None:
    async def scenario(site: Site) -> None:
        site.start("gw-01", "gw-02", "gw-03")
        await site.settled()
        site.start("pinned", broker={"mode": "hosted"})
        await site.until(lambda: site.hosts == ["pinned"] and site.agreed(), 5, site.report)
        await site.stays(8)
        site.kill("pinned")
        await site.settled(within_s=3)
        assert site.hosts == ["gw-01"]
        await asyncio.sleep(5)
        site.start("pinned", broker={"mode": "hosted"})
        await site.until(lambda: site.hosts == ["pinned"] and site.agreed(), 5, site.report)

    simulate(scenario, seed=seed)


def test_what_its_brokers_refused_is_counted_over_all_its_terms_as_host(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(FakeHost, "refused", {"publish": 3, "certificate": 0}, raising=False)  # of each one

    async def scenario(site: Site) -> None:
        site.start("gw-01", "gw-02")
        await site.settled()
        membership = site.nodes["gw-01"].membership
        assert membership.refused_by_broker == {"publish": 3, "certificate": 0}
        site.start("pinned", broker={"mode": "hosted"})
        await site.until(lambda: site.hosts == ["pinned"] and site.agreed(), 5, site.report)
        assert membership.refused_by_broker == {"publish": 3, "certificate": 0}
        site.kill("pinned")
        await site.until(lambda: site.hosts == ["gw-01"] and site.agreed(), 5, site.report)
        assert membership.refused_by_broker == {"publish": 6, "certificate": 0}

    simulate(scenario, seed=1)


@pytest.mark.parametrize("seed", SEEDS)
@pytest.mark.parametrize("count", [2, 5])
def test_static_peers_only(count: int, seed: int) -> None:
    async def scenario(site: Site) -> None:
        everybody = names(count)
        site.start(*everybody, discovery="off", peers=everybody)
        await site.settled(within_s=5)
        assert site.air.packets == 0
        await asyncio.sleep(5)
        (host,) = site.hosts
        site.kill(host)
        await site.settled(within_s=3)
        site.start(host, discovery="off", peers=everybody)
        await site.settled(within_s=3)

    simulate(scenario, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_one_knows_the_other_and_not_the_other_way_round(seed: int) -> None:
    """The better one is found, and learns of the lesser one by being told."""

    async def scenario(site: Site) -> None:
        site.start("gw-01", discovery="off", peers=["gw-02"])
        await asyncio.sleep(5)
        site.start("gw-02", discovery="off", rank=1)
        await site.settled(within_s=10)

    simulate(scenario, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_a_lesser_host_that_knows_nobody_is_told(seed: int) -> None:
    """... by the better one, on the lesser one's own broker; so the better one need not make room."""

    async def scenario(site: Site) -> None:
        site.lan.part(["gw-01"], ["gw-02"])
        site.start("gw-01", discovery="off", peers=["gw-02"])
        site.start("gw-02", discovery="off")
        await asyncio.sleep(5)
        assert site.hosts == ["gw-01", "gw-02"]
        site.lan.heal()
        await site.settled(within_s=YIELD_S)
        assert site.hosts == ["gw-01"]

    simulate(scenario, seed=seed)


def test_a_new_run_of_the_broker_is_joined_anew_by_all() -> None:
    """The host's own connection broke: who knows whether the broker had died? All say their births again."""

    async def scenario(site: Site) -> None:
        site.start(*names(3))
        await site.settled()
        await asyncio.sleep(3)
        runs = set()
        for _ in range(3):
            site.lan.drop("gw-01")
            await asyncio.sleep(2)
            homes = [node.link.home for node in site.nodes.values()]
            (run,) = {home.run for home in homes if home is not None}
            assert None not in homes
            runs.add(run)
        assert len(runs) == 3

    simulate(scenario)


def test_a_broker_that_does_not_start_is_tried_again_ever_more_rarely() -> None:
    async def scenario(site: Site) -> None:
        site.host_faults.refuses = 1.0
        site.start("gw-01")
        await asyncio.sleep(60)
        node = site.nodes["gw-01"]
        assert 3 <= node.hostings <= 9
        assert node.log.events.count("broker_does_not_start") == 1
        assert "did not start" in node.membership.state.cause
        site.host_faults.refuses = 0.0
        await site.settled(within_s=31)
        assert node.membership.state.cause == ""

    simulate(scenario)


def test_what_others_publish_there_is_no_word_of_our_host() -> None:
    """A broker with garbage, and one with another site's host, in the place of ours."""

    async def scenario(site: Site) -> None:
        other = presence.pack(Brokers(site="elsewhere", host="x", instance="x", run="x"))
        for node, payload in (("gw-08", b"\xff{"), ("gw-09", other), ("gw-10", b"")):
            FakeBroker(site.lan, node)
            connection = await site.lan.bus(Fence("somebody")).connect(Address(host=node))
            await connection.publish(topics.brokers("plant"), payload, qos=1, retain=True)
        site.start("gw-01", peers=["gw-08", "gw-09", "gw-10"])
        await site.settled(within_s=5)
        assert site.hosts == ["gw-01"]

    simulate(scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_two_start_without_a_word_of_each_other_and_meet(seed: int) -> None:
    async def scenario(site: Site) -> None:
        site.lan.part(["gw-01", "gw-02"], ["gw-03"])
        site.start(*names(3))
        await asyncio.sleep(5)
        site.lan.heal()
        await site.settled(within_s=5)
        assert site.hosts == ["gw-01"]

    simulate(scenario, seed=seed)


@pytest.mark.parametrize("seed", SEEDS)
def test_behind_a_slow_link_one_that_steps_down_waits_for_the_answer(seed: int) -> None:
    """0.3 s there and back. Were it not given the time, it would host again, and step down again, for ever."""

    async def scenario(site: Site) -> None:
        for pair in itertools.permutations(names(3), 2):
            if "gw-02" in pair:
                site.lan.lines[pair] = Line(delay_s=(0.14, 0.16), stalls=0.05)
        site.lan.part(["gw-01", "gw-03"], ["gw-02"])
        site.start(*names(3))
        await asyncio.sleep(5)
        site.lan.heal()
        await site.settled(within_s=12)
        hostings = site.nodes["gw-02"].hostings
        await asyncio.sleep(60)
        assert site.agreed(), site.report()
        assert site.nodes["gw-02"].hostings - hostings <= 1

    simulate(scenario, seed=seed)


def test_another_sites_broker_and_a_foreign_one_are_passed_over() -> None:
    async def scenario(site: Site) -> None:
        FakeBroker(site.lan, "gw-02")  # somebody else's, on the port that gw-02 wants
        site.start("other", site="other-plant", discovery="off")
        await asyncio.sleep(3)
        site.start("gw-02", "gw-03", rank=1, peers=["other"])
        await site.settled("gw-02", "gw-03", within_s=10)
        assert site.nodes["gw-03"].hosts
        state = site.nodes["gw-02"].membership.state
        assert "in use" in state.cause or state.connected
        assert site.nodes["other"].host == "other"

    simulate(scenario)


@pytest.mark.parametrize("seed", SEEDS)
def test_the_broker_dies_and_somebody_else_takes_its_port(seed: int) -> None:
    """What answers there is not ours: nothing is said to it, least of all that the site's broker is there."""

    async def scenario(site: Site) -> None:
        site.start(*names(3))
        await site.settled()
        await asyncio.sleep(5)
        site.brokers["gw-01", 1883].kill()
        stranger = FakeBroker(site.lan, "gw-01")
        await site.settled("gw-02", "gw-03", within_s=3)
        await site.settled(within_s=8)
        await site.stays(10)
        assert site.hosts == ["gw-02"]
        assert not stranger.retained

    simulate(scenario, seed=seed)


def of_the_site(address: Address) -> Address:
    return msgspec.structs.replace(address, site_ca=True)


def waits_for_acknowledgements(site: Site) -> list[bool]:
    """The kernel's, and the broker of each: as far as its gateway knows."""
    places = [node.membership.local() for node in site.nodes.values()]
    return [place.quickack for place in places if place is not None]


@pytest.mark.parametrize("wear", [of_the_site, lambda each: each])
def test_of_a_broker_that_a_gateway_of_the_site_hosts_it_is_known_that_it_waits_for_no_acknowledgement(
    wear: Callable[[Address], Address],
) -> None:
    async def scenario(site: Site) -> None:
        site.start("gw-01", "gw-02", wear=wear)
        await site.settled()
        assert waits_for_acknowledgements(site) == [wear is not of_the_site] * 2

    simulate(scenario)


def test_an_external_broker_is_followed_for_ever_and_nobody_is_asked_or_told() -> None:
    async def scenario(site: Site) -> None:
        plant = FakeBroker(site.lan, "plant-broker", running=False)
        external = {"mode": "external", "url": "mqtt://plant-broker:1883"}
        site.start("gw-01", "gw-02", broker=external, peers=["gw-02"], wear=of_the_site)
        nodes = list(site.nodes.values())
        for away_s in (5, 120):
            await asyncio.sleep(away_s)
            assert not any(node.membership.state.connected for node in nodes)
            assert all("refused" in node.membership.state.cause for node in nodes)
            plant.start()
            await site.until(lambda: all(node.membership.state.connected for node in nodes), EXTERNAL_S_MAX + 1, site.report)
            assert [node.membership.state.role for node in nodes] == ["guest", "guest"]
            assert [node.link.home.run for node in nodes if node.link.home is not None] == ["", ""]
            assert waits_for_acknowledgements(site) == [True, True]  # though it is of the site: nobody of it has started it
            await asyncio.sleep(20)
            plant.kill()
        await asyncio.sleep(1)
        assert site.air.packets == 0
        for node in nodes:
            assert node.hostings == 0
            assert node.log.events.count("broker_joined") == 2
            assert node.log.events.count("broker_lost") <= 5  # at each transition, not at each attempt

    simulate(scenario)


def test_a_gateway_that_may_not_host_waits_for_one_that_may() -> None:
    async def scenario(site: Site) -> None:
        site.start("gw-01", may_host=False)
        await asyncio.sleep(30)
        assert site.hosts == []
        assert site.nodes["gw-01"].membership.local() is None
        site.start("gw-02")
        await site.settled(within_s=5)
        assert site.nodes["gw-01"].membership.local() is not None

    simulate(scenario)


def test_the_list_of_candidates_is_the_same_whoever_hosts() -> None:
    async def scenario(site: Site) -> None:
        site.start(*names(4), peers=["10.0.0.9"])
        await site.settled()
        await asyncio.sleep(5)
        first = await read_brokers(site, "gw-01")
        wanted = (Endpoint("10.0.0.9", 1883), *(Endpoint(name, 1883) for name in names(4)))
        assert (first.host, first.candidates) == ("gw-01", wanted)
        site.kill("gw-01")
        await site.settled()
        await asyncio.sleep(5)
        second = await read_brokers(site, "gw-02")
        assert (second.host, second.candidates) == ("gw-02", wanted)
        assert second.run != first.run

    simulate(scenario)


async def read_brokers(site: Site, name: str) -> Brokers:
    connection = await site.lan.bus(Fence("scada")).connect(Address(host=name))
    await connection.subscribe(topics.brokers("plant"))
    message = await connection.receive()
    await connection.close()
    return presence.unpack(message.payload, Brokers)
