"""Where a window is computed: what holds for all facts and draws, and the cases that have a name."""

from __future__ import annotations

import msgspec
import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.mesh import routing
from edge_runtime.mesh.routing import (
    MARGIN_NS,
    Decision,
    Draw,
    Here,
    Reason,
    There,
    Wanted,
    decide,
    finish_ns,
)
from edge_runtime.records import Privacy

MS = 1_000_000
NAMES = ("a", "b", "c", "d", "e")

WANTED = Wanted(Privacy.SITE, 2_000 * MS, 1_900 * MS)
SLOW = Here(service_ns=40 * MS)
MIDDLE = Draw(0.5, 0.5, 0.5)


def _there(name: str = "b", service_ms: float = 3, **facts: object) -> There:
    return There(name=name, service_ns=round(service_ms * MS), link_ns=MS, **facts)  # type: ignore[arg-type]


_ns = st.sampled_from((0, 1, MS, 3 * MS, 10 * MS, 40 * MS, 500 * MS, 3_000 * MS)) | st.integers(0, 5_000 * MS)
_mostly = st.sampled_from((True, True, True, True, False))
_share = st.floats(0, 1, exclude_max=True)
draws = st.builds(Draw, _share, _share, _share)
wants = st.builds(
    Wanted,
    privacy=st.sampled_from(Privacy),
    remaining_ns=_ns,
    peers_ns=_ns,
    connected=_mostly,
    fits=_mostly,
    tried=st.lists(st.sampled_from(NAMES), max_size=2, unique=True).map(tuple),
)
heres = st.builds(
    Here, able=st.booleans(), queue_ns=_ns, service_ns=_ns, stale=st.booleans(), spared=st.booleans(),
)  # fmt: skip


def _peer(name: str) -> st.SearchStrategy[There]:
    rare = st.sampled_from((False, False, False, True))
    return st.builds(
        There, name=st.just(name), has_model=rare.map(lambda odd: not odd), service_ns=_ns, queue_ns=_ns, link_ns=_ns,
        late=rare, broken=rare, spared=rare, exploring=st.booleans(),
    )  # fmt: skip


peers = st.lists(st.sampled_from(NAMES), unique=True).flatmap(lambda names: st.tuples(*map(_peer, names)).map(list))


def _capable(name: str, at: int) -> There:
    """Each takes another time; the fastest two are hot or on battery."""
    return There(name=name, service_ns=(at + 1) * MS, spared=at < 2)


def _may_take(wanted: Wanted, here: Here, peer: There) -> bool:
    """Written out once more, in other words."""
    barred = wanted.privacy is Privacy.GATEWAY or not (wanted.fits and wanted.connected) or peer.name in wanted.tried
    return peer.has_model and not (barred or peer.late or peer.broken or finish_ns(here, peer) > wanted.peers_ns)


@given(wants, heres, peers, draws)
def test_only_a_peer_that_may_and_refused_only_when_nobody_can(wanted: Wanted, here: Here, them: list[There], draw: Draw) -> None:
    found = decide(wanted, here, them, draw)
    able = {peer.name for peer in them if _may_take(wanted, here, peer)}
    assert {each.peer for each in found.compared} <= able
    if found.where == "peer":
        assert found.peer in able
    else:
        assert found.peer == ""
    assert (found.where == "refuse") == (not here.able and not able)
    assert (found.here_ns is None) == (not here.able)
    if found.where == "here":
        assert here.able


@given(wants, heres, peers, draws)
def test_what_is_private_never_leaves(wanted: Wanted, here: Here, them: list[There], draw: Draw) -> None:
    found = decide(msgspec.structs.replace(wanted, privacy=Privacy.GATEWAY), here, them, draw)
    assert (found.where, found.reason) == ("here" if here.able else "refuse", Reason.PRIVACY)


@given(wants, heres, peers, draws, st.randoms())
def test_the_order_of_the_peers_does_not_matter(
    wanted: Wanted, here: Here, them: list[There], draw: Draw, chance: object
) -> None:
    found = decide(wanted, here, them, draw)
    chance.shuffle(them)  # type: ignore[attr-defined]
    assert decide(wanted, here, them, draw) == found


@given(st.permutations([_capable(name, at) for at, name in enumerate(NAMES)]), draws)
def test_nor_among_many_that_may(them: list[There], draw: Draw) -> None:
    found = decide(WANTED, SLOW, them, draw)
    assert found == decide(WANTED, SLOW, sorted(them, key=lambda peer: peer.name), draw)
    assert not next(peer.spared for peer in them if peer.name == found.peer)


@given(wants, heres, peers, draws, _ns)
def test_a_longer_queue_never_attracts(wanted: Wanted, here: Here, them: list[There], draw: Draw, more_ns: int) -> None:
    found = decide(wanted, here, them, draw)
    for peer in them:
        longer = msgspec.structs.replace(peer, queue_ns=peer.queue_ns + more_ns)
        changed = decide(wanted, here, [longer if each is peer else each for each in them], draw)
        assert found.peer == peer.name or changed.peer != peer.name
    busier = decide(wanted, msgspec.structs.replace(here, queue_ns=here.queue_ns + more_ns), them, draw)
    assert found.where == "here" or busier.where != "here"


@given(wants, heres, peers, draws)
def test_who_is_hot_or_on_battery_is_a_last_choice(wanted: Wanted, here: Here, them: list[There], draw: Draw) -> None:
    found = decide(wanted, here, them, draw)
    able = [peer for peer in them if _may_take(wanted, here, peer)]
    if found.where == "peer" and next(peer for peer in them if peer.name == found.peer).spared:
        assert all(peer.spared for peer in able)
        assert found.here_ns is None or found.here_ns > wanted.remaining_ns
    if here.spared and any(not peer.spared for peer in able):
        assert found.where == "peer"


# --- cases -----------------------------------------------------------------------------------------------------------


_quick = st.builds(
    Here, queue_ns=st.integers(0, 1_200_000), service_ns=st.integers(0, 1_200_000), spared=st.booleans(), stale=st.booleans()
)


@given(wants, _quick, peers, draws)
def test_where_no_peer_could_be_better_nobody_is_looked_at(wanted: Wanted, here: Here, them: list[There], draw: Draw) -> None:
    """The short cut decides as the long way, but for a look at a peer that nobody knows: such a window is not worth it."""
    soon, found = routing.at_once(wanted, here), decide(wanted, here, them, draw)
    if soon is not None:
        assert (soon.where, soon.here_ns) == ("here", found.here_ns)
        assert found.where == "here" or found.reason is Reason.EXPLORED
        assert wanted.privacy is not Privacy.GATEWAY


def _told(found: Decision) -> tuple[str, str, Reason]:
    return found.where, found.peer, found.reason


@pytest.mark.parametrize(
    ("wanted", "here", "them", "where", "reason"),
    [
        (WANTED, SLOW, [], "here", Reason.ALONE),
        (WANTED, SLOW, [_there(has_model=False)], "here", Reason.NO_MODEL),
        (WANTED, SLOW, [_there(late=True), _there("c", has_model=False)], "here", Reason.LATE),
        (WANTED, SLOW, [_there(broken=True)], "here", Reason.BREAKER),
        (WANTED, SLOW, [_there(queue_ns=3_000 * MS)], "here", Reason.DEADLINE),
        (WANTED, SLOW, [_there(spared=True)], "here", Reason.SPARED),
        (WANTED, SLOW, [_there()], "peer", Reason.PEER_FASTER),
        (WANTED, SLOW, [_there(service_ms=39)], "here", Reason.HERE_FASTER),
        (msgspec.structs.replace(WANTED, connected=False), SLOW, [_there()], "here", Reason.AWAY),
        (msgspec.structs.replace(WANTED, fits=False), SLOW, [_there()], "here", Reason.TOO_LARGE),
        (msgspec.structs.replace(WANTED, tried=("b",)), SLOW, [_there()], "here", Reason.TRIED),
        (msgspec.structs.replace(WANTED, tried=("a",)), SLOW, [_there()], "peer", Reason.REISSUED),
        (WANTED, Here(able=False), [_there()], "peer", Reason.HERE_CANNOT),
        (WANTED, Here(able=False), [_there(late=True)], "refuse", Reason.LATE),
        (WANTED, Here(service_ns=3 * MS, spared=True), [_there(service_ms=40)], "peer", Reason.HERE_SPARED),
        (WANTED, Here(service_ns=3 * MS, spared=True), [_there(spared=True)], "here", Reason.SPARED),
        (WANTED, Here(stale=True), [_there()], "here", Reason.HERE_MEASURED),
        (WANTED, Here(service_ns=1_500 * MS, stale=True), [_there()], "peer", Reason.PEER_FASTER),
    ],
)
def test_named_cases(wanted: Wanted, here: Here, them: list[There], where: str, reason: Reason) -> None:
    found = decide(wanted, here, them, MIDDLE)
    assert (found.where, found.reason) == (where, reason)


def test_a_peer_on_battery_is_better_than_too_late() -> None:
    late = Here(queue_ns=2_500 * MS, service_ns=40 * MS)
    assert _told(decide(WANTED, late, [_there(spared=True)], MIDDLE)) == ("peer", "b", Reason.PEER_FASTER)


def test_two_that_are_equal_keep_their_windows() -> None:
    """Both with the same load: neither sends to the other, whatever that load is. One window more here still changes nothing
    while it costs less than the way."""
    for queue_ms in (0, 10, 100, 1_000):
        here = Here(queue_ns=queue_ms * MS, service_ns=10 * MS)
        assert decide(WANTED, here, [_there(service_ms=10, queue_ns=queue_ms * MS)], MIDDLE).where == "here"
    short = Here(queue_ns=MARGIN_NS // 2, service_ns=MARGIN_NS // 4)
    assert decide(WANTED, short, [There(name="b", service_ns=1)], MIDDLE).where == "here"


def test_a_queue_here_sends_windows_away() -> None:
    """Else two gateways would not be faster than one."""
    busy = Here(queue_ns=10 * MS, service_ns=10 * MS)
    assert _told(decide(WANTED, busy, [_there(service_ms=10)], MIDDLE)) == ("peer", "b", Reason.PEER_FASTER)


def test_two_are_compared_and_the_draw_says_which() -> None:
    them = [_there(name, service_ms=at + 1) for at, name in enumerate(NAMES)]
    seen = set()
    for first in range(5):
        for second in range(4):
            found = decide(WANTED, SLOW, them, Draw(first / 5 + 0.1, second / 4 + 0.1, 0.5))
            names = [each.peer for each in found.compared]
            assert len({*names}) == 2
            assert found.peer == min(names)  # the faster one has the smaller name
            seen.add(tuple(names))
    assert len(seen) == 20


def test_a_peer_that_nobody_knows_is_tried_now_and_then_and_once_at_a_time() -> None:
    unknown = There(name="b", link_ns=MS)
    assert _told(decide(WANTED, SLOW, [unknown], Draw(0, 0, 0.01))) == ("peer", "b", Reason.EXPLORED)
    assert _told(decide(WANTED, SLOW, [unknown], Draw(0, 0, 0.5))) == ("here", "", Reason.HERE_FASTER)
    trying = msgspec.structs.replace(unknown, exploring=True)
    assert decide(WANTED, SLOW, [trying], Draw(0, 0, 0.01)).where == "here"
    assert decide(WANTED, SLOW, [msgspec.structs.replace(unknown, spared=True)], Draw(0, 0, 0.01)).where == "here"


@pytest.mark.parametrize(("nanoseconds", "told"), [(310_000, "0.31 ms"), (3_100_000, "3.1 ms"), (2_000_000_000, "2,000 ms")])
def test_times_are_told_in_milliseconds_without_exponents(nanoseconds: int, told: str) -> None:
    assert routing.ms(nanoseconds) == told
