"""The table of peers, the law of heartbeats, and who keeps a name: pure, on numbers instead of time."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.bus import presence
from edge_runtime.bus.messages import BadMessage
from edge_runtime.bus.presence import PRESENCE_BYTES_MAX, Birth, Brokers, Load
from edge_runtime.config import Mesh
from edge_runtime.mesh.naming import CLAIM_WAIT_S_MAX, Name
from edge_runtime.mesh.peers import LATE_PERIODS, LISTEN_MAX, PEERS_MAX, PERIOD_S_MAX, PROVE_S, Peers, period_s
from edge_runtime.ports_mesh import Offer

S = 10**9
MESH = Mesh()


def birth(name: str = "b", instance: str = "1", *, online: bool = True, **more: Any) -> Birth:
    return Birth(site="s", gateway=name, instance=instance, online=online, **more)


def load(name: str = "b", instance: str = "1", **more: Any) -> Load:
    return Load(**{"gateway": name, "instance": instance, "period_s": 1.0, **more})


def table(*births: Birth, run: str = "r1", listen: bool = True) -> Peers:
    """All of them are proved, at 0."""
    peers = Peers("a", MESH)
    peers.joined(run, 0)
    for each in births:
        peers.on_birth(each, retained=False, now_ns=0)
    if listen:
        peers.listen_to([], 0)
    return peers


# --- who is believed -------------------------------------------------------------------------------------------------


def test_a_birth_from_the_brokers_memory_is_no_peer_until_it_is_proved() -> None:
    for proof in (
        lambda peers: peers.on_birth(birth(run="r0"), retained=False, now_ns=1),
        lambda peers: peers.on_load(load(), 1),
        lambda peers: peers.replied("b", 0, 1),
    ):
        peers = table()
        peers.on_birth(birth(run="r0"), retained=True, now_ns=0)
        peers.listen_to([], 0)
        assert (peers.state("b"), peers.peers(), peers.alive()) == ("unproved", [], [])
        assert peers.explain(0)[0].why == "the broker remembers it from an earlier life"
        assert peers.gateways == 1, "a gateway of another time makes no heartbeat slower"
        proof(peers)
        assert (peers.state("b"), len(peers.peers()), len(peers.alive())) == ("online", 1, 1)
        assert peers.gateways == 2


def test_memory_of_this_run_is_believed_and_where_nobody_hosts_it_is_not() -> None:
    peers = table(run="r1")
    peers.on_birth(birth(run="r1"), retained=True, now_ns=0)
    assert peers.state("b") == "online"
    peers = table(run="")
    peers.on_birth(birth(run=""), retained=True, now_ns=0)
    assert peers.state("b") == "unproved"
    assert peers.gateways == 2, "it may well be there: a broker that nobody hosts has no runs"


def test_a_late_will_of_an_earlier_life_is_ignored() -> None:
    peers = table(birth(instance="2"))
    assert not peers.on_birth(birth(instance="1", online=False), retained=False, now_ns=1)
    assert peers.state("b") == "online"
    assert peers.on_birth(birth(instance="2", online=False), retained=False, now_ns=1)
    assert peers.state("b") == "offline"
    assert not peers.on_birth(birth(instance="2", online=False), retained=False, now_ns=1), "it is over once"
    peers.on_load(load(instance="2"), 2)
    assert (peers.state("b"), peers.strangers) == ("offline", 1), "who comes back says so with a birth"
    peers.on_birth(birth(instance="2"), retained=False, now_ns=3)
    assert peers.state("b") == "online"


def test_another_instance_is_another_life() -> None:
    peers = table(birth(instance="1"))
    peers.on_load(load(queue_ns=S), 0)
    assert peers.on_birth(birth(instance="2"), retained=False, now_ns=1)
    (peer,) = peers.peers()
    assert (peer.birth.instance, peer.load, peer.queue_ns) == ("2", None, 0)
    peers.on_load(load(instance="1"), 2)
    assert (peers.strangers, peer.load) == (1, None)


def test_what_a_broker_remembers_does_not_push_out_what_is_known() -> None:
    peers = table(birth(instance="2", version="new"), run="r1")
    for stale in (birth(instance="1", run="r0"), birth(instance="2", run="r0"), birth(instance="2", online=False, run="r0")):
        assert not peers.on_birth(stale, retained=True, now_ns=1)
        assert peers.alive()[0].version == "new"
    peers.joined("r2", 2)  # an old broker that comes back, with an old memory
    assert not peers.on_birth(birth(instance="1", run="r1"), retained=True, now_ns=3)
    assert [each.instance for each in peers.alive()] == ["2"]
    peers = table(birth(instance="1"), run="")
    peers.joined("", 2)  # a broker that nobody hosts: it was there all the time, we were not
    assert peers.on_birth(birth(instance="2"), retained=True, now_ns=3)
    assert peers.state("b") == "unproved"
    peers.on_load(load(instance="2"), 4)
    assert peers.state("b") == "online"


def test_on_a_new_broker_everybody_has_to_be_heard_again() -> None:
    peers = table(birth("b"), birth("c"), run="r1")
    peers.joined("r2", 10 * S)
    assert peers.peers() == [], "nobody is given work on a guess"
    assert [each.gateway for each in peers.alive()] == ["b", "c"], "but they may still come: for the choice of the next host"
    peers.on_birth(birth("b", run="r2"), retained=False, now_ns=11 * S)
    assert [peer.name for peer in peers.peers()] == ["b"]
    assert peers.next_check_s(11 * S) < PROVE_S
    for now_s in range(11, 20):
        peers.on_load(load("b"), now_s * S)
        peers.on_load(load("nobody"), now_s * S)
    assert peers.check(19 * S) == ["c"], "it is late, and listened to"
    assert peers.check(int((10 + PROVE_S) * S)) == []
    assert peers.state("c") == "offline"
    assert peers.explain(20 * S)[1].why == "it did not come to this broker"


def test_who_is_silent_is_late_until_it_speaks_again() -> None:
    peers = table(birth())
    peers.on_load(load(period_s=2.0), 0)
    limit_ns = int(LATE_PERIODS * 2 * S)
    assert peers.next_check_s(0) == limit_ns / S
    assert peers.check(limit_ns - 1) == []
    assert peers.check(limit_ns) == ["b"]
    assert (peers.state("b"), [peer.late for peer in peers.peers()], peers.alive()) == ("late", [True], [])
    assert peers.check(limit_ns + S) == [], "once"
    peers.on_load(load(), limit_ns + 2 * S)
    assert peers.state("b") == "online"


def test_a_reply_is_a_word_too() -> None:
    peers = table(birth())
    peers.on_load(load(), 0)
    peers.replied("b", 5, 3 * S)
    assert peers.check(4 * S) == []
    assert peers.peers()[0].queue_ns == 5


def test_nobody_is_late_because_we_slept() -> None:
    peers = table(birth())
    peers.on_load(load(), 0)
    peers.woke(100 * S)
    assert peers.check(100 * S) == []
    assert peers.check(104 * S) == ["b"]


@pytest.mark.parametrize(("said_s", "limit_s"), [(0.0, 0.05), (1e308, PERIOD_S_MAX)])
def test_a_peer_does_not_choose_how_long_we_wait_for_it(said_s: float, limit_s: float) -> None:
    peers = table(birth())
    peers.on_load(load(period_s=said_s), 0)
    assert peers.check(int(limit_s * LATE_PERIODS * S) - 1) == []
    assert peers.check(int(limit_s * LATE_PERIODS * S)) == ["b"]


def test_only_those_whose_load_we_hear_are_late() -> None:
    peers = table(birth(), listen=False)
    assert peers.check(10**6 * S) == []
    assert peers.peers() == [], "nobody knows what waits there"


def test_there_is_a_limit_and_those_that_are_gone_make_room() -> None:
    peers = table(*(birth(f"g{n}") for n in range(PEERS_MAX)))
    assert not peers.on_birth(birth("more"), retained=False, now_ns=1)
    assert (peers.beyond, peers.state("more"), len(peers.explain(1))) == (1, None, PEERS_MAX)
    peers.on_birth(birth("g7", online=False), retained=False, now_ns=2)
    peers.on_birth(birth("more"), retained=False, now_ns=3)
    assert (peers.beyond, peers.state("more"), peers.state("g7")) == (1, "online", None)
    peers = table(*(birth(f"g{n}") for n in range(PEERS_MAX - 1)))
    peers.on_birth(birth("of old", run="r0"), retained=True, now_ns=1)
    peers.on_birth(birth("more"), retained=False, now_ns=2)
    assert (peers.state("more"), peers.state("of old")) == ("online", None)


def test_what_is_taken_from_the_brokers_memory_is_forgotten_unless_it_is_here() -> None:
    peers = table(birth("b"), birth("c"))
    peers.on_birth(birth("c", online=False), retained=False, now_ns=1)
    for name in ("b", "c", "nobody"):
        peers.forget(name)
    assert [each.name for each in peers.explain(1)] == ["b"]


def test_what_routing_sees() -> None:
    offers = (Offer("m@1", "cpu", service_ns=7), Offer("n@1"))
    peers = table(birth(offers=offers))
    (peer,) = peers.peers()
    assert [peer.service_ns(model) for model in ("m@1", "n@1", "x@1")] == [7, 0, None]
    assert (peer.queue_ns, peer.late, peer.spared) == (0, False, False)
    peers.on_load(load(queue_ns=9, services={"m@1": 70, "n@1": -5, "x@1": 3}, hot=True), 0)
    assert [peer.service_ns(model) for model in ("m@1", "n@1", "x@1")] == [70, 0, None]
    assert (peer.queue_ns, peer.spared) == (9, True)
    peers.on_load(load(battery=True), 0)
    assert peer.spared
    peers.shut = True
    assert peers.peers() == []


# --- the law ---------------------------------------------------------------------------------------------------------


@given(gateways=st.integers(1, PEERS_MAX), limit=st.integers(10, 100_000), least=st.floats(0.05, 60))
def test_heartbeats_stay_below_the_limit_of_the_broker(gateways: int, limit: int, least: float) -> None:
    period = period_s(gateways, Mesh(heartbeats_per_s_max=limit, heartbeat_s_min=least))
    assert gateways * min(gateways, LISTEN_MAX + 1) / period <= limit * (1 + 1e-9)
    assert period >= least


def test_the_period_grows_only_where_it_must() -> None:
    assert [round(period_s(n, MESH), 3) for n in (1, 5, 50, 294, 500, 1_000)] == [1, 1, 1, 1, 1.7, 3.4]


def test_all_are_listened_to_while_they_are_few() -> None:
    births = [birth(f"g{n:02}") for n in range(LISTEN_MAX)]
    assert table(*births).listen_to([], 0) == [each.gateway for each in births]


def test_of_many_those_that_have_what_we_need_and_each_gateway_takes_others() -> None:
    heard: dict[str, int] = {}
    for me in range(100):
        peers = Peers(f"me{me}", MESH)
        for n in range(100):
            peers.on_birth(birth(f"g{n:02}", offers=(Offer("m@1" if n % 2 else "n@1"),)), retained=False, now_ns=0)
        chosen = peers.listen_to(["m@1"], 0)
        assert len(chosen) == LISTEN_MAX
        assert peers.listen_to(["m@1"], 0) == chosen, "the choice is no draw"
        assert peers.listen_to(["x@1"], 0) == []
        for name in chosen:
            assert int(name[1:]) % 2
            heard[name] = heard.get(name, 0) + 1
    assert len(heard) == 50
    assert max(heard.values()) < 2 * 100 * LISTEN_MAX / 50


def test_a_newcomer_changes_one_place_at_most_and_a_silent_one_gives_up_its_own() -> None:
    peers = table(*(birth(f"g{n}", offers=(Offer("m@1"),)) for n in range(40)))
    before = peers.listen_to(["m@1"], 0)
    for n in range(40, 80):
        peers.on_birth(birth(f"g{n}", offers=(Offer("m@1"),)), retained=False, now_ns=0)
        after = peers.listen_to(["m@1"], 0)
        assert len(set(after) - set(before)) <= 1
        before = after
    for name in before[1:]:
        peers.on_load(load(name), 60 * S)
    assert peers.check(60 * S) == [before[0]]
    after = peers.listen_to(["m@1"], 60 * S)
    assert set(before) - set(after) == {before[0]}
    assert len(after) == LISTEN_MAX


# --- two gateways with one name --------------------------------------------------------------------------------------


def duel(d_s: float, way_s: float, one: str, other: str) -> tuple[bool, bool]:
    """Both hear each other until one stands down; the first is `d_s` longer there. Who keeps the name?"""
    first, second = Name(one), Name(other)
    for _ in range(10):
        first.heard(other, 100.0 - way_s, 100.0 + d_s, 3.5, 0)
        second.heard(one, 100.0 + d_s - way_s, 100.0, 3.5, 0)
        if first.taken or second.taken:
            break
        first.claimed()
        second.claimed()
    return not first.taken, not second.taken


@given(d_s=st.floats(0, 10), way_s=st.floats(0, 1), smaller=st.booleans())
def test_of_two_with_one_name_exactly_one_keeps_it(d_s: float, way_s: float, smaller: bool) -> None:
    one, other = ("a", "b") if smaller else ("b", "a")
    kept = duel(d_s, way_s, one, other)
    assert sum(kept) == 1
    if d_s > 4:
        assert kept == (True, False), "the one that is longer there"
    elif d_s < 1:
        assert kept == (smaller, not smaller), "the smaller instance"


def test_who_stood_down_comes_back_when_the_other_is_gone_or_silent() -> None:
    name = Name("b")
    assert name.heard("a", 50, 1, 3.5, 0)
    assert (name.taken, name.conflicts) == ("a", 1)
    assert not name.heard("a", 51, 0, 3.5, S), "no news"
    assert not name.gone("c")
    assert name.gone("a")
    assert (name.taken, name.rival) == ("", "")
    name.heard("a", 60, 1, 3.5, 10 * S)
    assert name.conflicts == 2
    assert not name.check(13 * S)
    name.woke(13 * S)
    assert not name.check(16 * S)
    assert name.check(17 * S)
    assert not name.taken


def test_a_rival_that_does_not_listen_does_not_make_us_shout() -> None:
    name, waits = Name("a"), []
    for n in range(12):
        assert name.heard("b", 0.0, 0.0, 3.5, n) == (n == 0)
        waits.append(name.claim_wait_s())
        name.claimed()
    assert waits == sorted(waits)
    assert waits[-1] == CLAIM_WAIT_S_MAX
    assert not name.taken


# --- garbage ---------------------------------------------------------------------------------------------------------


@given(payload=st.binary(max_size=200), kind=st.sampled_from([Birth, Load, Brokers]))
def test_bytes_that_are_none(payload: bytes, kind: Any) -> None:
    with pytest.raises(BadMessage):
        presence.unpack(payload, kind)


JSON = st.recursive(
    st.none() | st.booleans() | st.integers() | st.floats(allow_nan=False, allow_infinity=False) | st.text(max_size=8),
    lambda inner: st.lists(inner, max_size=3) | st.dictionaries(st.text(max_size=8), inner, max_size=3),
    max_leaves=6,
)
BIRTH = msgspec.to_builtins(birth(offers=(Offer("m@1"),), endpoints=(), boot="x", rank=3, run="r1", uptime_s=1.0))
LOAD = msgspec.to_builtins(load(queue=1, queue_ns=2, services={"m@1": 3}, temperature_c=40.0, hot=True))


@given(whole=st.sampled_from([BIRTH, LOAD]), data=st.data())
def test_json_that_is_nearly_one_is_refused_or_does_no_harm(whole: dict[str, Any], data: st.DataObject) -> None:
    changed = {**whole, data.draw(st.sampled_from(sorted(whole))): data.draw(JSON)}
    peers = table(birth("c"))
    kind: Any = Birth if whole is BIRTH else Load
    try:
        message = presence.unpack(msgspec.json.encode(changed), kind)
    except BadMessage:
        return
    if isinstance(message, Birth):
        peers.on_birth(message, retained=False, now_ns=1)
    else:
        peers.on_load(message, 1)
    peers.listen_to(["m@1"], 1)
    peers.check(2)
    peers.explain(2)
    for peer in peers.peers():
        assert peer.service_ns("m@1") in (None, 0) or peer.service_ns("m@1") > 0  # type: ignore[operator]
    assert peers.state("c") == "online"


@pytest.mark.parametrize(
    "payload",
    [
        b'{"x":' + b"[" * 10_000 + b"]" * 10_000 + b"}",
        b" " * (PRESENCE_BYTES_MAX + 1),
        msgspec.json.encode({**BIRTH, "v": 2}),
        msgspec.json.encode({**BIRTH, "gateway": "a/b"}),
        msgspec.json.encode({**BIRTH, "offers": [{"model": "m@1"}] * 257}),
        msgspec.json.encode({**BIRTH, "endpoints": [{"host": "h", "port": 0}]}),
        msgspec.json.encode(BIRTH).replace(b"1.0", b"1e999"),
        msgspec.json.encode(BIRTH).replace(b"1.0", b"-1"),
    ],
)
def test_what_is_refused(payload: bytes) -> None:
    with pytest.raises(BadMessage, match="birth: "):
        presence.unpack(payload, Birth)


def test_who_was_revoked_is_put_out_at_once_and_no_heartbeat_brings_it_back() -> None:
    peers = table(birth())
    assert peers.put_out("b")
    assert not peers.put_out("b")
    assert not peers.put_out("nobody")
    peers.on_load(load(), 1)
    peers.replied("b", 0, 1)
    assert (peers.state("b"), peers.peers(), peers.alive()) == ("offline", [], [])
    assert peers.explain(1)[0].why == "it was revoked"
