"""The ledger and its account: what is new, what is a copy, what is missing and what was declared lost."""

from __future__ import annotations

import random
import sqlite3
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from receivers import records, rows

from edge_runtime.bus import messages
from edge_runtime.bus.messages import Batch
from edge_runtime.outbox import intervals
from edge_runtime.ports import Ranges
from edge_runtime.receiver import ledger
from edge_runtime.receiver.account import Account
from edge_runtime.receiver.ledger import Ledger, LedgerError
from edge_runtime.records import Gap, Lane, Record, Stamp, to_json


@pytest.fixture
def file(tmp_path: Path) -> Path:
    return tmp_path / "records.db"


def batch(some: list[Record], *, site: str = "site", gateway: str = "gw") -> Batch:
    """As it comes over the wire."""
    (made,) = messages.batches(site, gateway, some)
    return messages.unpack(messages.pack(made), Batch)


def keep(file: Path, *batches: Batch) -> list[Ranges]:
    book = Ledger(file, "cloud")
    try:
        return [receipt.lanes[0].ranges for receipt in book.take(batches)]
    finally:
        book.close()


def only(file: Path) -> Account:
    (account,) = ledger.statistics(file).gateways
    return account


@settings(max_examples=60)
@given(st.lists(st.lists(st.integers(1, 40), min_size=1, max_size=12, unique=True).map(sorted), max_size=12), st.randoms())
def test_any_order_of_any_batches_gives_each_number_once(parts: list[list[int]], rng: random.Random) -> None:
    book = Ledger(Path(":memory:"), "cloud")
    have: set[int] = set()
    while parts:
        group, parts = parts[: (cut := rng.randint(1, 3))], parts[cut:]
        receipts = book.take([batch([record for n in part for record in records(n, 1)]) for part in group])
        for part, receipt in zip(group, receipts, strict=True):
            have |= set(part)
            near = {n for first, last in receipt.lanes[0].ranges for n in range(first, last + 1)}
            assert set(part) <= near <= have
        hello = book.hello(messages.hello("site", "gw", ["e1"]))
        assert hello.receipt().ranges == {("e1", Lane.RESULT): intervals.of(have)}
    found = book._database.execute("SELECT seq FROM records ORDER BY seq").fetchall()
    assert [n for (n,) in found] == sorted(have)
    book.close()


def test_a_receipt_stays_small_whatever_the_ledger_has(file: Path) -> None:
    scattered = [record for n in range(1, 4001, 2) for record in records(n, 1)]
    keep(file, batch(scattered))
    assert keep(file, batch(records(3001, 1))) == [((3001, 3001),)]
    assert keep(file, batch(records(3002, 1))) == [((3001, 3003),)]


def test_the_largest_number(file: Path) -> None:
    top = messages.SEQ_MAX
    assert keep(file, batch(records(top - 1, 2, unique="")), batch(records(top, 1))) == [((top - 1, top),)] * 2
    assert len(rows(file)) == 2


def test_nothing_of_a_failed_group_is_kept(file: Path) -> None:
    book = Ledger(file, "cloud")
    book._database.execute("CREATE TRIGGER bad BEFORE INSERT ON records WHEN NEW.seq = 13 BEGIN SELECT RAISE(ABORT, 'x'); END")
    with pytest.raises(LedgerError):
        book.take([batch(records(1, 5)), batch(records(10, 5))])
    book._database.execute("DROP TRIGGER bad")
    assert book.hello(messages.hello("site", "gw", ["e1"])).lanes == ()
    book.take([batch(records(1, 5))])
    book.close()
    assert (len(rows(file)), only(file).received) == (5, 5)


def test_gateways_of_two_sites_may_have_the_same_name_and_content(file: Path) -> None:
    keep(file, batch(records(1, 5), site="north"), batch(records(1, 5), site="south"))
    assert [(each.site, each.unique, each.duplicates) for each in ledger.statistics(file).gateways] == [
        ("north", 5, 0),
        ("south", 5, 0),
    ]


def test_the_account(file: Path) -> None:
    gap = Gap(lane=Lane.RESULT, epoch="e1", first=21, last=40, count=18, reason="disk full")
    bodies = [to_json(gap), b'{"strange": 1}']
    gaps = [Record(Lane.GAP, "e1", n, "outbox", Stamp("b", 1, 2, True), body) for n, body in enumerate(bodies, 1)]
    keep(
        file,
        batch(records(11, 10)),
        batch(records(11, 10)),
        batch(records(41, 10)),
        batch(records(61, 5)),
        batch(records(11, 3, epoch="e2")),
        batch(gaps),
    )
    account = only(file)
    assert (account.received, account.unique, account.repeated, account.same_content) == (40, 27, 10, 3)
    assert (account.duplicates, account.kept_twice, account.epochs) == (13, 0, 2)
    assert (account.gaps, [(hole.first, hole.last) for hole in account.holes]) == (10, [(51, 60)])
    assert account.declared_lost == 18
    assert account.lost_reasons == {"disk full": 18, "unreadable gap record": 0}
    assert account.lanes == {"gap": 2, "result": 25}
    assert account.sources == {"gap/outbox": 2, "result/wear": 25}
    assert msgspec.to_builtins(ledger.statistics(file))["gaps"] == 10


def test_what_came_here_and_was_lost_to_another_sink_is_not_lost(file: Path) -> None:
    gap = to_json(Gap(lane=Lane.RESULT, epoch="e1", first=1, last=20, count=20, reason="outbox full"))
    stamp = Stamp("b", 1, 2, True)
    keep(file, batch(records(1, 15)), batch(records(21, 5)), batch([Record(Lane.GAP, "e1", 1, "outbox", stamp, gap)]))
    account = only(file)
    assert (account.declared_lost, account.lost_reasons, account.gaps) == (5, {"outbox full": 5}, 0)


@pytest.mark.parametrize("suffix", ["", "-wal"])
def test_a_file_that_is_removed_under_it_gives_no_receipt(file: Path, suffix: str) -> None:
    taking = Ledger(file, "cloud")
    taking.take([batch(records(1, 5))])
    file.with_name(file.name + suffix).unlink()
    for call in (lambda: taking.take([batch(records(6, 5))]), lambda: taking.hello(messages.hello("s", "g", ["e1"]))):
        with pytest.raises(LedgerError, match="was removed"):
            call()
    with pytest.raises(LedgerError, match="was removed"):
        taking.probe()
    taking.close()


def test_a_record_that_stands_there_twice_is_noticed(file: Path) -> None:
    keep(file, batch(records(1, 3, unique="")))
    with sqlite3.connect(file) as database:
        database.execute("INSERT INTO records SELECT * FROM records WHERE seq = 2")
    database.close()
    assert only(file).kept_twice == 1


def test_statistics_while_a_receiver_writes(file: Path) -> None:
    book = Ledger(file, "cloud")
    book.take([batch(records(1, 5))])
    with book._transaction():
        assert only(file).unique == 5
    book.close()


def use(file: Path) -> None:
    book = Ledger(file, "cloud")
    try:
        book.take([batch(records(1, 1))])  # some damage shows only when it is touched
    finally:
        book.close()


HINTS = {
    "garbage": "--file",
    "another": "--file",
    "newer": "update",
    "damaged": ".recover",
    "folder": "folder",
    "nowhere": "folder",
}


@pytest.mark.parametrize("function", [use, ledger.statistics])
@pytest.mark.parametrize("kind", HINTS)
def test_a_file_that_cannot_be_used(tmp_path: Path, kind: str, function: Callable[[Path], object]) -> None:
    file = tmp_path / "none" / "records.db" if kind == "nowhere" else tmp_path / "records.db"
    spoil(file, kind)
    with pytest.raises(LedgerError, match=r"records\.db") as caught:
        function(file)
    assert HINTS[kind] in caught.value.hint


def spoil(file: Path, kind: str) -> None:
    if kind == "garbage":
        file.write_bytes(b"no database at all, but long enough to be taken for one" * 100)
    elif kind == "folder":
        file.mkdir()
    elif kind == "another":
        with sqlite3.connect(file) as other:
            other.execute("CREATE TABLE outbox (x)")
    elif kind != "nowhere":
        keep(file, batch(records(1, 2000)))
        if kind == "newer":
            with sqlite3.connect(file) as database:
                database.execute("PRAGMA user_version = 99")
        else:
            content = file.read_bytes()
            file.write_bytes(content[:4096] + bytes(len(content) - 4096))


def test_a_full_disk_gives_no_receipt_and_passes(file: Path) -> None:
    book = Ledger(file, "cloud")
    book.take([batch(records(1, 10))])
    (pages,) = book._database.execute("PRAGMA page_count").fetchone()
    book._database.execute(f"PRAGMA max_page_count = {pages}")
    with pytest.raises(LedgerError, match="full") as caught:
        book.take([batch(records(11, 2000))])
    assert "free some disk space" in caught.value.hint
    book._database.execute("PRAGMA max_page_count = 100000")
    assert book.take([batch(records(11, 2000))])[0].lanes[0].ranges == ((1, 2010),)
    book.close()
    assert len(rows(file)) == 2010
