"""What an onlooker makes of births, wills and heartbeats."""

from __future__ import annotations

from typing import Any

import msgspec
import pytest

from edge_runtime.bus import presence, topics
from edge_runtime.bus.presence import Birth, Brokers, Load
from edge_runtime.cli.mesh import spelled
from edge_runtime.cli.mesh.show import COLUMNS, cells, fitting
from edge_runtime.cli.mesh.sight import Row, Sight
from edge_runtime.ports import Message
from edge_runtime.ports_mesh import Offer

S = 10**9
BIRTH = Birth(
    site="s", gateway="g", instance="g-1", online=True, may_host=True, offers=(Offer("wear@1", "cpu", 5_000_000), Offer("new@1"))
)  # fmt: skip
LOAD = Load(gateway="g", instance="g-1", period_s=2.0, queue=3, queue_ns=15_000_000, temperature_c=71.0, hot=True)


def message(topic: str, payload: bytes, *, retain: bool = False) -> Message:
    return Message(topic, payload, 0, retain, False, 0, 1)


class Onlooker:
    def __init__(self) -> None:
        self.sight = Sight("s")

    def birth(self, now_s: float = 0, *, retain: bool = False, **changes: Any) -> None:
        said = msgspec.structs.replace(BIRTH, **changes)
        self.sight.take(message(topics.gateway("s", "g", "status"), presence.pack(said), retain=retain), round(now_s * S))

    def load(self, now_s: float, **changes: Any) -> None:
        said = msgspec.structs.replace(LOAD, **changes)
        self.sight.take(message(topics.gateway("s", "g", "load"), presence.pack(said)), round(now_s * S))

    def host(self, instance: str) -> None:
        said = Brokers(site="s", host="g", instance=instance, run="r")
        self.sight.take(message(topics.brokers("s"), presence.pack(said), retain=True), 0)

    def row(self, now_s: float) -> Row:
        [row] = self.sight.rows(round(now_s * S))
        return row


@pytest.fixture
def onlooker() -> Onlooker:
    return Onlooker()


def test_who_is_there(onlooker: Onlooker) -> None:
    onlooker.birth(retain=True)
    assert (onlooker.row(1).state, onlooker.row(1).seen_s) == ("unproved", None)
    assert not onlooker.sight.settled()
    onlooker.load(1)
    assert onlooker.sight.settled()
    assert (onlooker.row(3).state, onlooker.row(3).seen_s) == ("online", 2.0)
    assert onlooker.row(8.1).state == "late"  # 3.5 periods of 2 s
    onlooker.birth(9, online=False)
    assert (onlooker.row(9).state, onlooker.row(9).queue) == ("offline", None)


def test_a_late_will_of_an_earlier_life_changes_nothing(onlooker: Onlooker) -> None:
    onlooker.birth(1, instance="g-2")
    onlooker.birth(2, online=False, instance="g-1")
    assert onlooker.row(2).state == "online"


def test_a_birth_that_is_taken_away_is_gone(onlooker: Onlooker) -> None:
    onlooker.birth(1)
    onlooker.sight.take(message(topics.gateway("s", "g", "status"), b""), 2 * S)
    assert onlooker.sight.rows(2 * S) == []


def test_the_host_is_one_life_of_one_gateway(onlooker: Onlooker) -> None:
    onlooker.birth(1)
    assert onlooker.row(1).role == "candidate"
    onlooker.host("g-1")
    assert onlooker.row(1).role == "host"
    onlooker.host("g-0")
    assert onlooker.row(1).role == "candidate"


def test_models_take_as_long_as_said_last(onlooker: Onlooker) -> None:
    onlooker.birth(1)
    onlooker.load(1, services={"new@1": 7_000_000})
    assert [(each.model, each.service_ns) for each in onlooker.row(1).models] == [("wear@1", 5_000_000), ("new@1", 7_000_000)]


def test_a_line_of_the_table(onlooker: Onlooker) -> None:
    onlooker.birth(1)
    onlooker.load(1, battery=True, tasks_in=4, latency_ns=2_300_000)
    shown = dict(zip(COLUMNS, cells(onlooker.row(1)), strict=True))
    assert shown["waiting"] == "3 (15 ms)"
    assert shown["models"] == "wear@1 5 ms, new@1 -"
    assert (shown["temp"], shown["power"], shown["in"], shown["latency"]) == ("71 C hot", "battery", 4, "2.3 ms")


def test_other_sites_and_garbage(onlooker: Onlooker) -> None:
    onlooker.birth(1)
    onlooker.sight.take(message(topics.gateway("t", "x", "status"), presence.pack(BIRTH)), S)
    for payload in (b"\xff", b"[]", b'{"v":2}'):
        onlooker.sight.take(message(topics.gateway("s", "h", "load"), payload), S)
    assert (len(onlooker.sight.rows(S)), onlooker.sight.bad) == (1, 3)


@pytest.mark.parametrize(
    ("words", "whole"),
    [
        ([], ["show"]),
        (["gateway.yaml", "--json"], ["show", "gateway.yaml", "--json"]),
        (["--site", "s"], ["show", "--site", "s"]),
        (["show"], ["show"]),
        (["why", "r"], ["why", "r"]),
        (["--help"], ["--help"]),
    ],
)
def test_short_forms(words: list[str], whole: list[str]) -> None:
    assert spelled(words) == whole


def test_errors_are_said_before_anything_is_connected() -> None:
    from edge_runtime.cli import main

    for seconds in ("-1", "x"):
        with pytest.raises(SystemExit):
            main(["mesh", "--seconds", seconds])
    assert main(["mesh", "--broker", "tcp://x"]) == 1


def test_what_a_narrow_terminal_leaves_out(onlooker: Onlooker) -> None:
    """What nobody has a value for goes first; a model's time may stand below its name."""
    onlooker.birth(1)
    onlooker.load(1)
    texts = [["-" if cell is None or cell == "" else str(cell) for cell in cells(onlooker.row(1))]]
    assert fitting(texts, 200) == list(COLUMNS)
    narrow = fitting(texts, 60)
    assert {"gateway", "role", "state", "models", "waiting", "in"} <= set(narrow) < set(COLUMNS)
    assert narrow == [column for column in COLUMNS if column in narrow]
    unknown = [["-" if column == "latency" else text for column, text in zip(COLUMNS, texts[0], strict=True)]]
    two = next(kept for width in range(200, 0, -1) if len(kept := fitting(unknown, width)) < len(COLUMNS) - 1)
    assert set(COLUMNS) - set(two) == {"accelerators", "latency"}, "before the power, which is known"
    assert fitting(texts, 1) == ["gateway", "role", "state", "models"]


def test_a_time_is_written_in_its_unit(onlooker: Onlooker) -> None:
    onlooker.birth(1)
    onlooker.load(1, services={"wear@1": 9_700})
    assert "wear@1 9.7 us" in dict(zip(COLUMNS, cells(onlooker.row(1)), strict=True))["models"]  # type: ignore[operator]
