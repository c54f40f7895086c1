"""Which tasks of others are taken and in which order, what is kept of the answers, and when a peer is not asked any more."""

from __future__ import annotations

import pytest

from edge_runtime.bus.frames import Task
from edge_runtime.mesh import admission, standing
from edge_runtime.mesh.admission import FAIR_EVERY, KEPT_MAX, KEPT_SENDER_MAX, Kept, Outcome, Queue, Refusal, Waiting, left_ns
from edge_runtime.mesh.standing import FAILURES_MAX, PROBE_NS_MAX, PROBE_NS_MIN, Breaker, Standing
from edge_runtime.records import Tensor

MS = 1_000_000


def waiting(sender: str, name: str, *, priority: int = 5, within_ms: int = 10_000, service_ms: int = 1, size: int = 1) -> Waiting:
    tensor = Tensor("uint8", (size,), bytes(size))
    task = Task(id=name, instance="i", model="m", remaining_ns=within_ms * MS, priority=priority, tensor=tensor)
    return Waiting((sender, "i", name), task, 0, within_ms * MS, service_ms * MS)


def admit(queue: Queue, *tasks: Waiting, now_ms: int = 0, running_ms: int = 0) -> list[Refusal | None]:
    return [queue.admit(each, now_ms * MS, running_ms * MS) for each in tasks]


def order(queue: Queue) -> list[str]:
    names = []
    while (taken := queue.take()) is not None:
        names.append(taken.task.id)
    return names


def test_priority_first_then_the_earliest_deadline_then_who_came_first() -> None:
    queue = Queue(100)
    refusals = admit(
        queue,
        waiting("a", "late", within_ms=900),
        waiting("a", "soon", within_ms=100),
        waiting("a", "urgent", priority=9, within_ms=9_000),
        waiting("a", "soon-too", within_ms=100),
        waiting("a", "whenever", priority=0, within_ms=50),
    )
    assert refusals == [None] * 5
    assert order(queue) == ["urgent", "soon", "soon-too", "late", "whenever"]
    assert (queue.count, queue.size_bytes, queue.service_ns) == (0, 0, 0)


def test_a_sender_that_floods_us_starves_nobody() -> None:
    queue = Queue(64)
    served: list[str] = []
    [refusal] = admit(queue, waiting("quiet", "mine", priority=0))
    assert refusal is None
    for number in range(50):
        while admit(queue, waiting("flood", f"f-{number}-{queue.count}", priority=9))[0] is None:
            pass
        taken = queue.take()
        assert taken is not None
        served.append(taken.sender)
        if taken.sender == "quiet":
            break
    assert served.index("quiet") < 2 * FAIR_EVERY


def test_one_at_a_time_is_no_way_around_it() -> None:
    """A sender that has only one task here, and the next as soon as that is done, has not waited long."""
    queue = Queue(64)
    admit(queue, waiting("quiet", "mine", priority=0))
    served = []
    for number in range(2 * FAIR_EVERY):
        admit(queue, waiting("flood", f"f-{number}", priority=9))
        taken = queue.take()
        assert taken is not None
        served.append(taken.sender)
    assert "quiet" in served


def test_no_sender_holds_more_places_than_are_free() -> None:
    queue = Queue(64)
    refusals = admit(queue, *(waiting("flood", f"f{number}") for number in range(100)))
    assert refusals.count(None) == 32 == queue.count
    assert {refusal.why for refusal in refusals if refusal} == {Outcome.SHARE}
    assert all(refusal.retry_ns >= admission.RETRY_NS_MIN for refusal in refusals if refusal)
    refusals = admit(queue, *(waiting("flood-2", f"f{number}") for number in range(100)))
    assert refusals.count(None) == 16
    assert admit(queue, waiting("other", "o")) == [None]


def test_nor_more_bytes() -> None:
    queue, size = Queue(64), 3 * 2**20
    refusals = admit(queue, *(waiting("flood", f"f{number}", size=size) for number in range(9)))
    assert refusals.count(None) == 5
    assert admit(queue, waiting("other", "o", size=size)) == [None]
    for sender in "abcdefghijk":
        admit(queue, *(waiting(sender, f"f{number}", size=size) for number in range(9)))
    assert queue.size_bytes <= admission.WAITING_BYTES_MAX
    [full] = admit(queue, waiting("last", "x", size=size))
    assert full is not None
    assert full.why is Outcome.FULL


def test_no_more_wait_than_may() -> None:
    queue = Queue(8)
    for sender in "abcdefgh":
        admit(queue, *(waiting(sender, f"{sender}{number}") for number in range(9)))
    assert queue.count == 8
    [full] = admit(queue, waiting("z", "z"))
    assert full is not None
    assert full.why is Outcome.FULL
    assert full.retry_ns > 0


def test_refused_early_rather_than_late() -> None:
    queue = Queue(64)
    admit(queue, *(waiting("a", f"a{number}", service_ms=10) for number in range(3)))
    late, fits, ahead, slow = admit(
        queue,
        waiting("b", "late", within_ms=44, service_ms=10),
        waiting("b", "fits", within_ms=45, service_ms=10, priority=5),
        waiting("b", "ahead", within_ms=16, service_ms=10, priority=9),
        waiting("b", "slow", within_ms=9, service_ms=10, priority=9),
        running_ms=5,
    )
    assert (fits, ahead) == (None, None)  # 5 + 10 for `fits`: its deadline is before those of a's
    assert late is None
    assert slow is not None
    assert (slow.why, slow.retry_ns) == (Outcome.LATE, 0)
    [behind] = admit(queue, waiting("c", "c", within_ms=40, service_ms=10, priority=0), running_ms=5)
    assert behind is not None
    assert behind.why is Outcome.LATE
    assert behind.retry_ns == 35 * MS  # 5 + 6 * 10 + 10 - 40


def test_a_flood_ahead_counts_only_as_far_as_fair_turns_let_it_pass() -> None:
    queue = Queue(400)
    admit(queue, *(waiting("flood", f"f{number}", priority=9, service_ms=10) for number in range(100)))
    turns = FAIR_EVERY * 2
    assert admit(queue, waiting("b", "no", service_ms=10, within_ms=turns * 10 + 9))[0] is not None
    assert admit(queue, waiting("b", "yes", service_ms=10, within_ms=turns * 10 + 10)) == [None]


def test_what_was_cancelled_is_gone_and_what_is_overdue_can_be_taken_out() -> None:
    queue = Queue(64)
    one, two, three = waiting("a", "1"), waiting("a", "2", within_ms=5), waiting("b", "3", within_ms=50)
    admit(queue, one, two, three)
    assert queue.drop(one)
    assert not queue.drop(one)
    assert queue.overdue(5 * MS) == [two]
    assert order(queue) == ["3"]
    assert not queue.drop(three)


def test_a_stuck_one_is_not_about_to_be_free() -> None:
    assert left_ns(0, 10, 4) == 6
    assert left_ns(0, 10, 1_000) == 990


def test_answers_are_kept_and_bounded() -> None:
    kept = Kept()
    for number in range(3 * KEPT_MAX):
        kept.put((f"s{number % 8}", "i", str(number)), b"x" * 10, number)
    assert len(kept) == KEPT_MAX
    assert kept.get(("s0", "i", "0"), 0) is None
    assert kept.get(("s7", "i", str(3 * KEPT_MAX - 1)), 3 * KEPT_MAX) == b"x" * 10
    for number in range(300):
        kept.put((f"s{number % 8}", "i", f"large-{number}"), bytes(60_000), number)
    assert kept.size_bytes <= admission.KEPT_BYTES_MAX
    kept.put(("s0", "i", "late"), b"", admission.KEPT_NS_MAX + 1_000)
    assert len(kept) == 1
    assert kept.get(("s0", "i", "late"), 2 * admission.KEPT_NS_MAX + 1_000) is None


def test_who_sends_most_loses_its_own_answers() -> None:
    kept = Kept()
    kept.put(("quiet", "i", "1"), b"x", 0)
    for number in range(3 * KEPT_MAX):
        kept.put(("flood", "i", str(number)), b"x", 1)
    assert kept.get(("quiet", "i", "1"), 2) == b"x"
    assert len(kept) == 1 + KEPT_SENDER_MAX


# --- the breaker and what is learned of a peer ---


def failed(breaker: Breaker, now_ns: int, times: int = FAILURES_MAX) -> None:
    for _ in range(times):
        breaker.failed(now_ns)


def test_the_breaker_opens_after_failures_in_a_row_only() -> None:
    breaker = Breaker()
    for _ in range(10):
        failed(breaker, 0, FAILURES_MAX - 1)
        assert breaker.enter(0)
        breaker.succeeded()
    assert (breaker.state(0), breaker.opened) == ("closed", 0)
    failed(breaker, 0)
    assert (breaker.state(0), breaker.enter(0), breaker.opened) == ("open", False, 1)


def test_one_probe_after_a_while_that_grows() -> None:
    breaker, now, wait = Breaker(), 0, PROBE_NS_MIN
    failed(breaker, now)
    for _ in range(10):
        assert breaker.state(now + wait - 1) == "open"
        now += wait
        assert breaker.state(now) == "half-open"
        assert [breaker.enter(now), breaker.enter(now)] == [True, False]
        assert breaker.failed(now)
        wait = min(2 * wait, PROBE_NS_MAX)
    assert wait == PROBE_NS_MAX
    assert breaker.opened == 11
    assert breaker.enter(now + wait)
    breaker.succeeded()
    failed(breaker, now + wait)
    assert breaker.state(now + wait + PROBE_NS_MIN) == "half-open"  # it starts anew


def test_a_probe_that_was_withdrawn_lets_another_one_in() -> None:
    breaker = Breaker()
    failed(breaker, 0)
    assert breaker.enter(PROBE_NS_MIN)
    breaker.withdrawn()
    assert breaker.enter(PROBE_NS_MIN)


def test_what_was_under_way_when_it_opened_does_not_count_again() -> None:
    breaker = Breaker()
    failed(breaker, 0, 10 * FAILURES_MAX)
    assert breaker.opened == 1
    assert breaker.state(PROBE_NS_MIN) == "half-open"


def test_link_and_service_times_are_learned_and_bounded() -> None:
    peer = Standing()
    for trip in (10, 10, 30):
        peer.measured(trip + 5, 2, 3)
    for _ in range(9):
        peer.measured(4, 2, 3)  # it says it took longer than we waited
    assert peer.link_p50_ns() == 10
    assert 10 < peer.link_ns < 30
    for number in range(2 * standing.MODELS_MAX):
        peer.served(str(number), 8)
    peer.served("0", 16)
    assert peer.services["0"] == 10
    assert len(peer.services) == standing.MODELS_MAX


@pytest.mark.parametrize("waiting_max", [1, 2, 3])
def test_few_places_are_places(waiting_max: int) -> None:
    assert admit(Queue(waiting_max), waiting("a", "1")) == [None]
