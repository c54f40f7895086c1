"""Batches, hellos and receipts on the wire: what goes in comes out, what is damaged is refused with its place."""

from __future__ import annotations

import gzip
import json
from pathlib import Path

import pytest
from hypothesis import given, settings
from hypothesis import strategies as st
from receivers import records

from edge_runtime.bus import messages, topics
from edge_runtime.bus.messages import BadMessage, Batch, Hello, ReceiptMessage
from edge_runtime.records import Lane, Record, Stamp

GOOD = {
    "v": 1,
    "site": "s",
    "gateway": "g",
    "epoch": "e1",
    "lane": "result",
    "records": [{"seq": 1, "source": "wear", "stamp": ["b", 1, 2, True], "body": {"n": 1}}],
}


def test_round_trip() -> None:
    (batch,) = messages.batches("s", "g", records(1, 50))
    packed = messages.pack(batch)
    assert packed[:2] == b"\x1f\x8b"
    again = messages.unpack(packed, Batch)
    assert [(r.seq, r.source, r.stamp, bytes(r.body), r.unique) for r in again.records] == [
        (r.seq, r.source, r.stamp, r.body, r.unique) for r in records(1, 50)
    ]
    assert (again.site, again.gateway, again.epoch, again.lane) == ("s", "g", "e1", Lane.RESULT)


def test_batches_are_split_by_size_and_never_empty() -> None:
    stamp = Stamp("b", 1, 2, True)
    sizes = [10, messages.BATCH_BYTES_AIM + 5, 10, 10, messages.BATCH_BYTES_AIM - 20, 30]
    some = [Record(Lane.SAMPLE, "e1", n, "cam", stamp, b"1" * size) for n, size in enumerate(sizes, 1)]
    parts = [[record.seq for record in part.records] for part in messages.batches("s", "g", some)]
    assert parts == [[1], [2], [3, 4, 5], [6]]
    assert list(messages.batches("s", "g", [])) == []


def change(path: str, value: object) -> bytes:
    document = json.loads(json.dumps(GOOD))
    *parents, last = path.split(".")
    at = document
    for each in parents:
        at = at[int(each) if each.isdigit() else each]
    at[last] = value
    return json.dumps(document).encode()


@pytest.mark.parametrize(
    ("payload", "words"),
    [
        (b"", "truncated"),
        (b"[]", "object"),
        (b"\xff\xfe", r"is no text in UTF-8 \(byte 0\)"),
        (json.dumps(GOOD).replace('{"n": 1}', r'"\ud83d"').encode(), "half of a character"),
        (json.dumps(GOOD).replace('{"n": 1}', r'"\ud83d\ud83d"').encode(), "half of a character"),
        (json.dumps(GOOD).replace('{"n": 1}', r'"\ude00 "').encode(), "half of a character"),
        (change("records.0.source", "\ud83d"), "half of a character"),
        (json.dumps(GOOD).replace('{"n": 1}', r'"\\ud83d\\\ud83d\ude00').encode(), "truncated"),
        (change("v", 2), "version 2"),
        (change("site", "a/b"), r"\$\.site"),
        (change("gateway", "+"), r"\$\.gateway"),
        (change("epoch", ""), r"\$\.epoch"),
        (change("lane", "fast"), r"\$\.lane"),
        (change("more", 1), "unknown field"),
        (change("records", []), r"\$\.records"),
        (change("records.0.seq", 0), r"\$\.records\[0\]\.seq"),
        (change("records.0.seq", 2**63), r"\$\.records\[0\]\.seq"),
        (change("records.0.stamp", ["b", 2**70, 2, True]), r"\$\.records\[0\]\.stamp|stamp"),
        (change("records.0.stamp", ["b", 2**63, 2, True]), r"\$\.records\[0\]\.stamp"),
        (change("records", GOOD["records"] * 2), r"\$\.records\[1\]\.seq: 1 after 1"),  # type: ignore[operator]
        (gzip.compress(json.dumps(GOOD).encode())[:-1], "truncated"),
        (gzip.compress(json.dumps(GOOD).encode()) + b"x", "truncated"),
        (gzip.compress(bytes(messages.BATCH_BYTES_MAX + 1)), "more than"),
        (bytes(messages.BATCH_BYTES_MAX + 1), "at most"),
        (json.dumps(GOOD).replace('{"n": 1}', "[" * 100_000 + "]" * 100_000).encode(), "recursion"),
    ],
)
def test_what_is_refused(payload: bytes, words: str) -> None:
    messages.unpack(json.dumps(GOOD).encode(), Batch)
    with pytest.raises(BadMessage, match=words) as caught:
        messages.unpack(payload, Batch)
    assert caught.value.hint


def test_both_halves_of_a_character_are_one() -> None:
    body = rb'"\ud83d\ude00 \\ud83d"'
    taken = messages.unpack(json.dumps(GOOD).encode().replace(b'{"n": 1}', body), Batch)
    assert bytes(taken.records[0].body) == body


@settings(max_examples=200)
@given(st.binary(max_size=200), st.integers(0, 10_000), st.sampled_from([Batch, Hello, ReceiptMessage]))
def test_no_payload_breaks_the_reader(noise: bytes, at: int, kind: type[Batch]) -> None:
    (batch,) = messages.batches("s", "g", records(1, 20))
    packed = messages.pack(batch)
    at %= len(packed)
    for payload in (noise, packed[:at] + noise + packed[at + len(noise) :]):
        try:
            messages.unpack(payload, kind)
        except BadMessage:
            continue


def test_topics_md_is_up_to_date() -> None:
    page = Path(__file__).parents[2] / "docs" / "topics.md"
    assert page.read_text() == topics.document(), "run: python -m edge_runtime.bus.topics > docs/topics.md"


def test_topics() -> None:
    topic = topics.gateway("s", "g", "batch", "cloud")
    assert topic == "edge/s/gw/g/batch/cloud"
    assert topics.parse(topic) == ("s", "g", ("batch", "cloud"))
    assert topics.parse("edge/s/gw/g") is None
    assert topics.parse("other/s/gw/g/x") is None
    assert topics.live("s", "g", Lane.SAMPLE, "press") == "edge/s/gw/g/data/press"
    assert topics.live("s", "g", Lane.GAP, "a/+#\x00b") == "edge/s/gw/g/gap/a____b"
    assert topics.live("s", "g", Lane.EVENT, "") == "edge/s/gw/g/event/_"
    known = {name.split("/")[2] for name, _, _ in topics.TOPICS if name.startswith("gw/")}
    assert known >= set(topics.LIVE.values()) | {"batch", "hello", "receipt"}
