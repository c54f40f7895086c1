"""What the broker's process says: counted, told, and bounded, whatever a client calls itself."""

from __future__ import annotations

import fcntl
import os
from collections.abc import Iterator
from pathlib import Path

import pytest

from edge_runtime.bus import host, pipe, refusals
from edge_runtime.bus.pipe import Pipe
from edge_runtime.bus.refusals import Refusals, Told

DENIED = "1700000000: Denied PUBLISH from {} (d0, q1, r0, m7, 'edge/plant/gw/press/load', ... (5 bytes))\n"
CAME = "1700000000: New client connected from 127.0.0.1:5 as {} (p2, c1, k60, u'{}').\n"
PASSING = "1700000000: Received PUBLISH from saw (d0, q0, r0, m0, 'edge/plant/gw/saw/load', ... (90 bytes))\n"


class Heard(Refusals):
    """With both ends of the pipe, as a host hears it."""

    def __init__(self, folder: Path) -> None:
        super().__init__()
        self.folder = folder
        self.pipe = Pipe(folder / "broker.log")
        self.theirs = self.pipe.begin()

    def say(self, text: str) -> None:
        os.write(self.theirs, text.encode())

    def look(self) -> list[Told]:
        kept, told = self.judge(self.pipe.look())
        self.pipe.keep(kept)
        return told


@pytest.fixture
def heard(tmp_path: Path) -> Iterator[Heard]:
    one = Heard(tmp_path)
    yield one
    one.pipe.close()
    os.close(one.theirs)


def test_each_refused_publish_counts_and_is_told_when_they_have_doubled(heard: Heard) -> None:
    heard.say(CAME.format("auto-1", "saw"))
    told = []
    for _ in range(10):
        heard.say(PASSING + DENIED.format("auto-1") + PASSING)
        told += heard.look()
    assert heard.counts["publish"] == 10
    assert [(each.reason, each.times) for each in told] == [("publish", times) for times in (1, 2, 4, 8)]
    assert {each.cause for each in told} == {"saw may not write edge/plant/gw/press/load"}


def test_a_line_that_comes_in_two_pieces_counts_once(heard: Heard) -> None:
    line = DENIED.format("saw")
    heard.say(line[:30])
    assert heard.look() == []
    heard.say(line[30:])
    heard.look()
    assert heard.counts["publish"] == 1


@pytest.mark.parametrize(
    "name",
    [
        "x disconnected, not authorised.",
        ": Denied PUBLISH from y (d0, q0, r0, m0, 'a', ... (1 bytes))",
        "OpenSSL Error[0]: error:1:2::3",
        "Client connection from y denied: max_connections exceeded.",
    ],
)
def test_a_client_that_calls_itself_a_refusal_is_none(heard: Heard, name: str) -> None:
    heard.say(PASSING.replace("saw", name) + f"1700000000: Sending PINGRESP to {name}\n")
    assert heard.look() == []
    assert heard.counts.total() == 0


@pytest.mark.parametrize(
    ("name", "topic"),
    [
        ("press-2", "x (d0, q0, r0, m0, 'edge/a'"),
        ("saw-7 (d0, q0, r0, m0, 'edge/a'", "x"),
        ("press-2", "x', ... (5 bytes)) (d0, q0, r0, m0, 'edge/a', ... ("),
    ],
)
def test_who_is_refused_cannot_hide_behind_words_that_look_like_the_brokers(heard: Heard, name: str, topic: str) -> None:
    heard.say(CAME.format("saw-7", "saw") + CAME.format(name, "evil"))
    heard.say(DENIED.format(name).replace("edge/plant/gw/press/load", topic))
    assert [each.cause for each in heard.look()] == [f"evil may not write {topic}"]


def test_nobody_is_blamed_whose_name_another_one_says(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    """One calls itself as another gateway is called, and comes under other names until who it is was forgotten."""
    monkeypatch.setattr(refusals, "USERS_MAX", 10)
    for name in ["press", *(f"c{number}" for number in range(10))]:
        heard.say(CAME.format(name, "evil"))
    heard.say(DENIED.format("press"))
    assert [each.cause[:37] for each in heard.look()] == ["somebody unknown may not write there:"]


@pytest.mark.parametrize("end", ["disconnected.", "closed its connection.", "has exceeded timeout, disconnecting."])
def test_who_stays_is_known_however_many_come_and_go(heard: Heard, monkeypatch: pytest.MonkeyPatch, end: str) -> None:
    """A probe, or mosquitto_pub in a script, calls itself something else each time."""
    monkeypatch.setattr(refusals, "USERS_MAX", 10)
    heard.say(CAME.format("gw-1", "saw"))
    for number in range(100):
        heard.say(CAME.format(f"c{number}", "saw") + f"1700000000: Client c{number} {end}\n")
        heard.look()
    heard.say(DENIED.format("gw-1"))
    assert [each.cause for each in heard.look()] == ["saw may not write edge/plant/gw/press/load"]


def test_who_has_gone_and_come_again_by_the_next_look_is_known(heard: Heard) -> None:
    gone = "1700000000: Client gw-1 disconnected.\n"
    for now in (CAME.format("gw-1", "saw") + DENIED.format("gw-1") + gone, CAME.format("gw-1", "saw") + gone):
        heard.say(now + CAME.format("gw-1", "saw"))
        heard.look()
    heard.say(DENIED.format("gw-1") + gone)
    assert [each.cause for each in heard.look()] == ["saw may not write edge/plant/gw/press/load"]


def test_a_line_that_was_cut_blames_nobody(heard: Heard) -> None:
    """What stands at its end is the client's: it may call itself so that there stands another user, or another topic."""

    def cut(line: str) -> str:
        return line[:999] + "\n"

    end = " (p2, c1, k60, u'person:alice')."
    name = "A" * (999 - CAME.index("{}") - len(end))
    heard.say(cut(CAME.format(name + end + "B" * 100, "evil")))
    heard.say(DENIED.format(name))
    assert "alice" not in heard.look()[0].cause
    heard.say(CAME.format("saw-7", "saw"))
    heard.say(cut(DENIED.format("saw-7 (d0, q0, r0, m0, 'edge/a'" + "B" * 1_000)))
    assert [each.cause[:27] for each in heard.look()] == ["somebody may not write ther"]
    assert heard.counts["publish"] == 2


def test_the_log_holds_no_traffic_and_does_not_grow(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "LOG_BYTES_MAX", 1_000)
    for number in range(100):
        heard.say(PASSING * 5 + DENIED.format("saw") + f"1700000000: Client {number} disconnected.\n")
        heard.look()
    log = heard.folder / "broker.log"
    assert log.stat().st_size < 1_100
    assert "PUBLISH" not in log.read_text()
    assert list(heard.pipe.last_words)[-1].endswith("Client 99 disconnected.")


def test_the_broker_waits_rather_than_saying_less(heard: Heard) -> None:
    assert os.get_blocking(heard.theirs)
    os.set_blocking(heard.theirs, False)  # else we would wait here
    line = DENIED.format("saw").encode()
    room = pipe.PIPE_BYTES // len(line)
    assert room >= 8_000
    assert os.write(heard.theirs, line * 2 * room) <= pipe.PIPE_BYTES  # the rest would wait
    heard.look()
    assert heard.counts["publish"] >= room - 1


def test_with_a_small_pipe_the_broker_does_not_wait(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """It would, at each look."""
    monkeypatch.setattr("fcntl.F_SETPIPE_SZ", fcntl.F_GETPIPE_SZ)  # it stays as it is
    small = Heard(tmp_path)
    many = (PASSING * 1_000).encode()
    while os.write(small.theirs, many) == len(many):
        continue
    with pytest.raises(BlockingIOError):  # so mosquitto drops the line, and goes on
        os.write(small.theirs, many)
    small.look()
    small.say("\n" + DENIED.format("saw"))
    small.look()
    assert small.counts["publish"] == 1
    small.pipe.close()
    os.close(small.theirs)


def test_who_floods_with_long_lines_is_looked_at_more_often(heard: Heard) -> None:
    """10 MB a second, for some seconds of a clock of ours."""
    os.set_blocking(heard.theirs, False)
    line = DENIED.format("saw").replace("edge/plant", "x" * 900).encode()
    wait_s, now_s, said, lost = host.LOOK_S, 0.0, 0, []
    while now_s < 5.0:
        for _ in range(round(10e6 * wait_s / len(line))):
            try:
                said += os.write(heard.theirs, line) // len(line)
            except BlockingIOError:
                lost.append(now_s)
        now_s += wait_s
        heard.look()
        wait_s = host.next_look_s(wait_s, heard.pipe.fill)
    assert heard.counts["publish"] == said
    assert wait_s == host.CROWDED_LOOK_S
    assert not lost
    for _ in range(10):
        heard.look()
        wait_s = host.next_look_s(wait_s, heard.pipe.fill)
    assert wait_s == host.LOOK_S


def test_a_disk_that_is_full_hides_no_refusal(heard: Heard) -> None:
    (heard.folder / "broker.log").unlink()
    (heard.folder / "broker.log").mkdir()  # cannot be written
    heard.say(DENIED.format("saw") + "1700000000: Error: it is so.\n")
    assert heard.look()
    assert heard.pipe.last_words[-1] == "1700000000: Error: it is so."


def test_names_of_clients_are_bounded(heard: Heard, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(refusals, "USERS_MAX", 10)
    for number in range(100):
        heard.say(CAME.format(f"c{number}", "saw"))
        heard.look()
    assert len(heard._users) <= 10
