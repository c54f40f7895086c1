"""The choice of a host, as pure rules: deterministic, whatever the order, sticky, and never two for good."""

from __future__ import annotations

import itertools
from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as some

from edge_runtime.address import BadAddress
from edge_runtime.bus.presence import Birth, Brokers
from edge_runtime.config import Broker, Config, Mesh
from edge_runtime.mesh import election
from edge_runtime.mesh.candidates import CANDIDATES_MAX, KEPT_NS, Candidates
from edge_runtime.mesh.election import YIELD_S, Candidate
from edge_runtime.ports_mesh import Announcement, Endpoint

NAMES = some.sampled_from([f"gw-{number}" for number in range(8)])
RANKS = some.sampled_from([0, 1, 100, 100, 100, 200])


@some.composite
def sites(draw: Any, least: int = 1) -> list[Candidate]:
    """Gateways of one site that see each other; two may have one name by mistake."""
    count = draw(some.integers(least, 12))
    return [
        Candidate(
            name=draw(NAMES), instance=f"i{number}", rank=draw(RANKS), endpoints=(Endpoint(f"10.0.0.{number}", 1883),),
            hosts=draw(some.booleans()),
        )
        for number in range(count)
    ]  # fmt: skip


def brokers(one: Candidate, run: str = "run") -> Brokers:
    return Brokers(site="s", host=one.name, instance=one.instance, run=run, rank=one.rank, endpoints=one.endpoints)


@given(sites())
def test_turns_are_all_different_and_the_best_one_is_first(site: list[Candidate]) -> None:
    """Who sees the same gateways agrees on the order of turns: exactly one is first."""
    turns = {each.instance: election.position(each, site) for each in site}
    assert sorted(turns.values()) == list(range(len(site)))
    assert turns[min(site, key=lambda each: each.key).instance] == 0


@given(sites(), some.randoms())
def test_the_order_in_which_it_was_heard_changes_nothing(site: list[Candidate], chance: Any) -> None:
    mixed = [*site]
    chance.shuffle(mixed)
    for me in site:
        assert election.position(me, site) == election.position(me, mixed)
        assert election.ask_order(me, site) == election.ask_order(me, mixed)


@given(sites(), some.randoms())
def test_exactly_one_of_any_hosts_that_reach_each_other_stays(hosting: list[Candidate], chance: Any) -> None:
    """Whichever two meet first, and in whatever order."""
    left = {each.instance: each for each in hosting}
    while len(left) > 1:
        mine, rival = chance.choice(sorted(itertools.permutations(left, 2)))
        if election.steps_down(brokers(left[mine]), brokers(left[rival]), seen_s=0.0):
            del left[mine]
        else:
            assert election.steps_down(brokers(left[rival]), brokers(left[mine]), seen_s=0.0)
    assert [each.key for each in left.values()] == [min(each.key for each in hosting)]


@given(sites(least=2))
def test_a_better_host_that_only_reaches_makes_room_in_the_end(site: list[Candidate]) -> None:
    best, worst = min(site, key=lambda each: each.key), max(site, key=lambda each: each.key)
    assert not election.steps_down(brokers(best), brokers(worst), YIELD_S - 0.001)
    assert election.steps_down(brokers(best), brokers(worst), YIELD_S)


@given(sites(least=2), some.data())
def test_asked_are_all_once_and_hosts_first(site: list[Candidate], data: Any) -> None:
    me = data.draw(some.sampled_from(site))
    hint = data.draw(some.sampled_from(site)).endpoints
    order = election.ask_order(me, site, hint)
    others = [each for each in site if each.instance != me.instance]
    assert election.listed(order) == election.listed(place for each in others for place in each.endpoints)
    assert len(order) == len(others)
    rest = [place for place in order if place not in hint]
    groups = [next((not each.hosts, each.key > me.key) for each in others if place in each.endpoints) for place in rest]
    hosting_first = [group[0] for group in groups]
    assert hosting_first == sorted(hosting_first)
    assert [group[1] for group in groups if group[0]] == sorted(group[1] for group in groups if group[0])
    if hint != me.endpoints:
        assert order[0] == hint[0]


@given(sites(least=3), some.data())
def test_who_failed_or_is_silent_is_not_waited_for(site: list[Candidate], data: Any) -> None:
    me = max(site, key=lambda each: each.key)
    other = data.draw(some.sampled_from([each for each in site if each.instance != me.instance]))
    alike = sum(each.name == other.name for each in site if each.instance != me.instance)
    before = election.position(me, site)
    if other.name != me.name:
        assert election.position(me, site, gone=[other.name]) == before - alike
    assert election.position(me, site, silent=other.endpoints) == before - 1


def test_addresses_without_names_take_turns_as_well() -> None:
    places = [Endpoint("10.0.0.9", 1883), Endpoint("10.0.0.10", 1883), Endpoint("gw.example", 1883)]
    turns = []
    for mine in places:
        me = Candidate(name="x", instance="x", endpoints=(mine,))
        turns.append(election.position(me, [Candidate(endpoints=(each,)) for each in places if each != mine]))
    assert turns == [0, 1, 2]


def test_turns_come_one_after_the_other() -> None:
    cold = [election.turn_s(ahead, cold=True, pinned=False) for ahead in range(3)]
    torn = [election.turn_s(ahead, cold=False, pinned=False, torn=True) for ahead in range(3)]
    just_there = [election.turn_s(ahead, cold=False, pinned=False, torn=False) for ahead in range(3)]
    assert cold == pytest.approx([0.6, 1.2, 1.8])
    assert torn == pytest.approx([0.4, 1.0, 1.6])
    assert just_there == pytest.approx([3.4, 4.0, 4.6])
    assert election.turn_s(3, cold=True, pinned=True) == 0


@given(sites())
def test_the_list_for_everybody_is_sorted_and_stable(site: list[Candidate]) -> None:
    places = [place for each in site for place in each.endpoints]
    assert election.listed(places) == election.listed([*reversed(places), *places])
    assert len(election.listed(places)) == len(places)


def test_the_list_is_sorted_as_people_sort() -> None:
    texts = ["gw-b:1883", "10.0.0.10:1883", "10.0.0.9:1884", "10.0.0.9:1883", "[fe80::1]:1883", "gw-a"]
    assert [each.host for each in election.listed(map(election.peer, texts))] == [
        "10.0.0.9", "10.0.0.9", "10.0.0.10", "fe80::1", "gw-a", "gw-b",
    ]  # fmt: skip
    with pytest.raises(BadAddress):
        election.peer("gw:port")


@pytest.mark.parametrize(
    ("broker", "mesh", "rank", "may_host", "role"),
    [
        ({"mode": "hosted"}, {"rank": 7}, 0, True, "host"),
        ({"mode": "auto"}, {"rank": 7}, 7, True, "candidate"),
        ({"mode": "auto"}, {"may_host": False}, 100, False, "guest"),
        ({"mode": "external"}, {}, 100, False, "guest"),
    ],
)
def test_what_a_configuration_makes_of_a_gateway(broker: Any, mesh: Any, rank: int, may_host: bool, role: str) -> None:
    settings = Config.model_construct(broker=Broker.model_validate(broker), mesh=Mesh.model_validate(mesh))
    assert (election.rank(settings), election.may_host(settings), election.role(settings)) == (rank, may_host, role)


# --- what is remembered ----------------------------------------------------------------------------------------------

ME = Candidate(name="gw-1", instance="me", rank=100, endpoints=(Endpoint("10.0.0.1", 1883),))


def announced(number: int, **more: Any) -> Announcement:
    fields = {
        "site": "s", "gateway": f"gw-{number}", "instance": f"i{number}", "role": "candidate",
        "endpoints": (Endpoint(f"10.0.{number >> 8}.{number & 255}", 1883),), **more,
    }  # fmt: skip
    return Announcement(**fields)


def born(number: int, **more: Any) -> Birth:
    fields = {"site": "s", "gateway": f"gw-{number}", "instance": f"i{number}", "online": True, "may_host": True, "rank": 100}
    return Birth(**{**fields, **more})


def test_what_is_remembered_is_bounded() -> None:
    """... whatever somebody announces, and who was heard last is kept."""
    known = Candidates(ME, [Endpoint("static", 1883)])
    many = tuple(Endpoint("h", port) for port in range(1, 1000))
    known.hear_announced([announced(number, endpoints=many) for number in range(2, 2_000)], 0)
    assert len(known.all()) <= CANDIDATES_MAX + 1
    assert known.named("gw-1999") is not None
    assert known.named("gw-2") is None
    assert all(len(each.endpoints) <= 16 for each in known.all())
    known.hear_brokers(Brokers(site="s", host="h", instance="h", run="r", candidates=many), 0)
    assert len(known.all()) <= 2 * CANDIDATES_MAX + 1
    assert len(known.places()) <= CANDIDATES_MAX
    known.hear_births([born(number) for number in range(2, 2_000)], 0)
    assert len(known.there()) <= CANDIDATES_MAX


def test_those_that_were_there_last_are_those_of_the_last_broker() -> None:
    known = Candidates(ME, [Endpoint("10.0.0.7", 1883)])
    known.hear_announced([announced(2), announced(3), announced(4, role="guest")], 0)
    assert [each.name for each in known.there()] == ["gw-2", "gw-3", ""]
    assert known.cold
    known.hear_births([born(3), born(5, may_host=False), born(6, online=False)], 0)
    assert [each.name for each in known.there()] == ["gw-3"]
    assert not known.cold
    assert known.there()[0].endpoints == announced(3).endpoints  # from its announcement


def test_one_that_was_taken_away_leaves_the_list_after_a_day() -> None:
    known = Candidates(ME, [Endpoint("10.0.0.9", 1883)])
    known.hear_announced([announced(2), announced(3)], 0)
    known.hear_brokers(brokers(Candidate(name="gw-4", instance="i4", endpoints=(Endpoint("10.0.0.4", 1883),))), 0)
    assert [each.host for each in known.places()] == ["10.0.0.1", "10.0.0.2", "10.0.0.3", "10.0.0.4", "10.0.0.9"]
    known.hear_announced([announced(2)], KEPT_NS - 1)
    known.forget(KEPT_NS - 1)
    assert len(known.places()) == 5
    known.forget(KEPT_NS)
    assert [each.host for each in known.places()] == ["10.0.0.1", "10.0.0.2", "10.0.0.9"]


def test_a_restarted_gateway_replaces_its_former_life() -> None:
    known = Candidates(ME, [])
    known.hear_announced([announced(2)], 0)
    later = msgspec.structs.replace(announced(2), instance="new")
    known.hear_announced([later], 1)
    assert [each.instance for each in known.all()] == ["new"]


def test_word_of_ourselves_is_nothing_new() -> None:
    known = Candidates(ME, [])
    known.hear_brokers(brokers(ME), 0)
    known.hear_announced([announced(1, instance="me")], 0)
    known.hear_births([born(1, instance="me")], 0)
    assert known.all() == []
