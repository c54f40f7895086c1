"""Which run gave a seq away, and what a receipt means."""

from __future__ import annotations

from hypothesis import given
from hypothesis import strategies as st

from edge_runtime.outbox import intervals
from edge_runtime.outbox.epochs import Epoch, confirmed, in_use, span, used_by_another
from edge_runtime.ports import Receipt
from edge_runtime.records import LANES, Lane

GROWTH = st.lists(st.fixed_dictionaries({lane: st.integers(0, 5) for lane in LANES}), min_size=1, max_size=6)


def history(growth: list[dict[Lane, int]]) -> tuple[list[Epoch], dict[Lane, int]]:
    """Epochs in which so many records came, and the heads after the last one."""
    heads, epochs = dict.fromkeys(LANES, 0), []
    for number, grown in enumerate(growth):
        epochs.append(Epoch(f"{number:016x}", dict(heads)))
        heads = {lane: heads[lane] + grown[lane] for lane in LANES}
    return epochs, heads


@given(GROWTH)
def test_every_seq_belongs_to_one_epoch(growth: list[dict[Lane, int]]) -> None:
    epochs, heads = history(growth)
    for lane in LANES:
        spans = [span(epochs, at, lane, heads[lane]) for at in range(len(epochs))]
        assert [seq for first, last in spans for seq in range(first, last + 1)] == list(range(1, heads[lane] + 1))


@given(GROWTH, st.data())
def test_an_epoch_with_records_is_never_forgotten(growth: list[dict[Lane, int]], data: st.DataObject) -> None:
    epochs, heads = history(growth)
    lows = {lane: data.draw(st.integers(1, heads[lane])) for lane in LANES if heads[lane] and data.draw(st.booleans())}
    kept = in_use(epochs, lows, heads)
    assert kept[-1] == epochs[-1]
    for at, epoch in enumerate(epochs):
        has_rows = any(intervals.clip((span(epochs, at, lane, heads[lane]),), low, heads[lane]) for lane, low in lows.items())
        assert epoch in kept or not has_rows
        # What is kept still says the same of those rows.
        if has_rows:
            for lane, low in lows.items():
                old = intervals.clip((span(epochs, at, lane, heads[lane]),), low, heads[lane])
                new = intervals.clip((span(kept, kept.index(epoch), lane, heads[lane]),), low, heads[lane])
                assert intervals.intersection(old, new) == old


@given(GROWTH, st.data())
def test_a_receipt_confirms_what_was_ours_and_nothing_else(growth: list[dict[Lane, int]], data: st.DataObject) -> None:
    epochs, heads = history(growth)
    told = {
        (name, lane): intervals.of(data.draw(st.sets(st.integers(1, 40))))
        for name in [*(epoch.name for epoch in epochs), "f" * 16]
        for lane in LANES
    }
    found = confirmed(epochs, Receipt(told), heads)
    for lane in LANES:
        wanted = {
            seq
            for at, epoch in enumerate(epochs)
            for first, last in [span(epochs, at, lane, heads[lane])]
            for seq in range(first, last + 1)
            if intervals.contains(told[epoch.name, lane], seq)
        }
        assert intervals.of(wanted) == found.get(lane, ())


def test_a_far_end_that_has_what_was_never_offered_heard_it_from_another() -> None:
    epoch = Epoch("a" * 16, {Lane.RESULT: 10})
    assert not used_by_another(epoch, Receipt({(epoch.name, Lane.RESULT): ((11, 15),)}), {Lane.RESULT: 15})
    assert used_by_another(epoch, Receipt({(epoch.name, Lane.RESULT): ((11, 16),)}), {Lane.RESULT: 15})
    assert used_by_another(epoch, Receipt({(epoch.name, Lane.EVENT): ((1, 1),)}), {Lane.RESULT: 15})
    assert not used_by_another(epoch, Receipt({("b" * 16, Lane.RESULT): ((11, 99),)}), {Lane.RESULT: 15})
