"""`edge-runtime command` against a real gateway with a real device: once, in time, and with what came of it."""

from __future__ import annotations

from collections.abc import Iterator
from pathlib import Path
from typing import Any

import pytest
from brokers import mosquitto
from commanded import SPEED, Plant, line, waiting

from edge_runtime.board.system import SystemClock

pytestmark = pytest.mark.slow

WRITE = ("command", "press-1", "write", "point=press/speed")


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with line(tmp_path_factory.mktemp("plant")) as running:
        yield running


def command(plant: Plant, name: str, value: float, valid_s: float = 60.0) -> dict[str, Any]:
    """As somebody with mosquitto_pub would make it, from a heartbeat."""
    with plant.hearing("gw/press-1/load") as heard:
        beat = heard.json()
    until_ns = beat["now_ns"] + round(valid_s * 1e9)
    return {"id": name, "boot": beat["boot"], "until_ns": until_ns, "args": {"point": "press/speed", "value": value}}


def test_a_register_is_written_and_read_back(plant: Plant) -> None:
    said = plant.cli(*WRITE, "value=700", "--json")
    assert said.status == 0, said.error
    before = len(plant.writes())
    said = plant.cli(*WRITE, "value=710.5", "--json")
    assert said.status == 0, said.error
    assert (said.json["outcome"], said.json["verb"], said.json["gateway"]) == ("verified", "write", "press-1")
    assert said.json["result"] == {"before": 700.0, "requested": 710.5, "read_back": 710.5}
    assert plant.writes()[before:] == [(16, SPEED)]
    said = plant.cli(*WRITE, "value=711")
    assert said.out.splitlines() == ["verified", "  before: 710.5", "  requested: 711", "  read_back: 711"]
    assert said.error.startswith("id ")


def test_what_is_not_allowed_is_refused_with_the_reason(plant: Plant) -> None:
    before = plant.writes()
    for words, told in (
        ((*WRITE, "value=2001"), "hint: it takes 0 to 2000"),
        (("command", "press-1", "write", "point=press/shown", "value=1"), "shown may not be written"),
        (("command", "press-1", "write", "point=pres/speed", "value=1"), "hint: did you mean `press`?"),
        (("command", "press-1", "wrote"), "hint: did you mean `write`?"),
        (("command", "press-1", "reload", "model=none"), "no pipeline uses a model 'none'"),
        (("command", "press-1", "restart", "part=device pres"), "hint: did you mean `device press`?"),
        (("command", "press-9", "drain"), "hint: did you mean `press-1`?"),
        (("command", "press-1", "write", "value"), "'value' is not NAME=VALUE"),
        (("command", "press-1", "dr/ain"), "command: $.verb"),  # at once: no gateway would answer it
        (("command", "press-1", "write", "--id", "a b"), "command: $.id"),
    ):
        said = plant.cli(*words)
        assert said.status == 1, words
        assert told in said.error, words
    assert plant.writes() == before


def test_a_part_restarts_and_a_gateway_drains(plant: Plant) -> None:
    connected = len(plant.gateway.events("source_connected"))
    assert plant.cli("command", "press-1", "restart", "part=device press").out.startswith("done")
    assert len(plant.gateway.events("source_connected")) == connected + 1
    said = plant.cli("command", "press-1", "drain", "limit_s=5", "--json")
    assert (said.status, said.json["result"]) == (0, {"left": {}})
    assert plant.cli("command", "press-1", "drain", "resume=true").status == 0


def test_a_command_that_is_played_again_is_answered_and_not_done(plant: Plant) -> None:
    once, before = command(plant, "once-1", 801), len(plant.writes())
    with plant.hearing("gw/press-1/cmd/write/reply") as heard:
        plant.publish("gw/press-1/cmd/write", once)
        first = heard.json()
        assert plant.cli(*WRITE, "value=802").status == 0
        heard.json()
        plant.publish("gw/press-1/cmd/write", once)
        assert heard.json() == first
    assert first["outcome"] == "verified"
    assert len(plant.writes()) == before + 2
    assert plant.cli(*WRITE, "value=803", "--json").json["result"]["before"] == 802


def test_what_came_of_a_command_can_be_asked_and_asking_does_nothing(plant: Plant) -> None:
    said = plant.cli(*WRITE, "value=900", "--json")
    before = len(plant.writes())
    again = plant.cli("command", "press-1", "write", "--id", said.json["id"], "--json")
    assert (again.status, again.json) == (0, said.json)
    never = plant.cli(*WRITE, "value=901", "--id", "never-sent")
    assert (never.status, never.out.splitlines()[0]) == (1, "refused")
    assert "never begun" in never.error
    assert len(plant.writes()) == before


def test_a_command_that_has_expired_or_is_of_another_boot_is_not_done(plant: Plant) -> None:
    late, before = command(plant, "late-1", 850, valid_s=-1.0), plant.writes()
    other = {**command(plant, "boot-1", 850), "boot": "another"}
    endless = command(plant, "long-1", 850, valid_s=1e6)
    with plant.hearing("gw/press-1/cmd/write/reply") as heard:
        for each, told in ((late, "has expired"), (other, "has expired"), (endless, "is valid for longer than")):
            plant.publish("gw/press-1/cmd/write", each)
            reply = heard.json()
            assert (reply["id"], reply["outcome"]) == (each["id"], "refused")
            assert told in reply["cause"]
    assert plant.writes() == before


def test_a_retained_command_is_never_done(tmp_path: Path) -> None:
    with mosquitto(tmp_path) as broker, waiting(tmp_path, broker={"mode": "external", "url": broker.url}) as plant:
        now = SystemClock().now()
        payload = {"id": "kept-1", "boot": now.boot, "until_ns": now.mono_ns + 60 * 10**9}
        plant.publish("gw/press-1/cmd/write", {**payload, "args": {"point": "press/speed", "value": 5}}, "-r")
        plant.begin()
        said = plant.cli(*WRITE, "value=1000", "--json")
        assert said.json["outcome"] == "verified", said.error
        assert plant.writes() == [(16, SPEED)]
        never = plant.cli("command", "press-1", "write", "--id", "kept-1", "--json")
        assert never.json["outcome"] == "refused"
