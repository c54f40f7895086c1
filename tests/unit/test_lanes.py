"""Which records go next: everything is sent, urgent lanes first, live before backlog, and the backlog never starves."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.outbox import intervals
from edge_runtime.outbox.lanes import BACKLOG_TURN, SPLITS_MAX, Course, next_to_go
from edge_runtime.records import LANES, Lane

HEADS = st.fixed_dictionaries({lane: st.integers(0, 30) for lane in LANES})


def send(course: Course, heads: dict[Lane, int], limit: int) -> tuple[Lane, int, int] | None:
    turn = course.next(heads)
    if turn is None:
        return None
    last = min(turn.last, turn.first + limit - 1)
    course.finish(turn.lane, ((turn.first, last),))
    return turn.lane, turn.first, last


@given(HEADS, st.data())
def test_everything_is_sent_once_whatever_comes_between(heads: dict[Lane, int], data: st.DataObject) -> None:
    course, sent = Course(LANES, {}), []
    for _ in range(data.draw(st.integers(0, 12))):
        if data.draw(st.booleans()):
            course.split(heads)
        heads = {lane: head + data.draw(st.integers(0, 3)) for lane, head in heads.items()}
        if found := send(course, heads, 4):
            sent.append(found)
    while found := send(course, heads, 7):
        sent.append(found)
    for lane in LANES:
        seqs = [seq for at, first, last in sent if at is lane for seq in range(first, last + 1)]
        assert sorted(seqs) == list(range(1, heads[lane] + 1))
        assert course.done[lane] == (((1, heads[lane]),) if heads[lane] else ())
    assert not any(course.depth(heads).values())


@given(HEADS, HEADS)
def test_the_most_urgent_lane_goes_first(before: dict[Lane, int], more: dict[Lane, int]) -> None:
    """Within what is live, and within the backlog."""
    course = Course(LANES, {})
    course.split(before)
    heads = {lane: before[lane] + more[lane] for lane in LANES}
    live: list[Lane] = []
    backlog: list[Lane] = []
    while found := send(course, heads, 5):
        (live if found[1] > before[found[0]] else backlog).append(found[0])
    for order in (live, backlog):
        assert order == sorted(order, key=LANES.index)


def test_live_records_overtake_the_backlog_and_the_backlog_does_not_starve() -> None:
    course, heads = Course([Lane.RESULT], {}), {Lane.RESULT: 1_000}
    course.split(heads)
    turns = []
    for _ in range(40):  # as fast as it is sent, new ones come
        heads[Lane.RESULT] += 10
        found = send(course, heads, 10)
        assert found
        turns.append(found[1] > 1_000)
    assert turns[0]
    assert turns.count(False) == 40 // BACKLOG_TURN
    assert all(any(not live for live in turns[at : at + BACKLOG_TURN]) for at in range(40 - BACKLOG_TURN))


def test_an_outage_each_minute_does_not_make_ranges_without_bound() -> None:
    course, heads = Course([Lane.RESULT], {}), {Lane.RESULT: 0}
    most = 0
    for _ in range(5 * SPLITS_MAX):
        heads[Lane.RESULT] += 10  # came in the outage
        course.split(heads)
        heads[Lane.RESULT] += 10
        course.finish(Lane.RESULT, ((heads[Lane.RESULT] - 9, heads[Lane.RESULT]),))  # only live ones get through
        most = max(most, len(course.done[Lane.RESULT]))
        if len(course.done[Lane.RESULT]) >= SPLITS_MAX:
            turn = course.next(heads)
            assert turn
            course.finish(Lane.RESULT, ((turn.first, turn.last),))
    assert most <= SPLITS_MAX + 1


@given(st.sets(st.integers(1, 30)), st.integers(0, 30))
def test_depth_counts_what_is_not_done(done: set[int], head: int) -> None:
    course = Course([Lane.EVENT], {Lane.EVENT: intervals.of(done)})
    assert course.depth({Lane.EVENT: head}) == {Lane.EVENT: len(set(range(1, head + 1)) - done)}


def test_lanes_that_a_sink_does_not_take_are_not_its_affair() -> None:
    course = Course([Lane.EVENT], {})
    assert course.next({Lane.EVENT: 0, Lane.RESULT: 9}) is None


@given(st.sets(st.sampled_from(LANES)), st.sets(st.sampled_from(LANES)))
def test_the_least_important_goes_and_a_gap_record_never(stored: set[Lane], coming: set[Lane]) -> None:
    lane = next_to_go(stored, coming)
    here = (stored | coming) - {Lane.GAP}
    assert lane == (max(here, key=LANES.index) if here else None)
