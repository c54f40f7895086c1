"""kill -9 at any instant: what the broker has acknowledged to the machine is at the far end exactly once, and so is every window
that it makes. `make soak` runs the full campaign (50 kills); EDGE_KILLS sets another number, EDGE_KILL_SEED repeats one."""

from __future__ import annotations

import os
import random
import time
from pathlib import Path

import pytest
from brokers import mosquitto
from gateways import PATIENT, POINTS, assert_once, bodies, config, gateway, press, publisher
from publishing import values
from receivers import receiver

RATE = 500.0
WINDOW, STEP = 64, 16
LIFE_S_MIN, LIFE_S_MAX = 0.05, 1.6
"""A gateway needs about half a second to start: some are killed before they have done anything."""

SETTLE_S = 1.0
KILLS = int(os.environ.get("EDGE_KILLS", "8"))
KILLS_SOAK = int(os.environ.get("EDGE_KILLS", "50"))
SEED = int(os.environ.get("EDGE_KILL_SEED", "0")) or random.randrange(1, 10**6)


def expected_windows(numbers: list[int]) -> dict[int, dict[str, float]]:
    """First message of each window -> what is to be told of it, computed from the messages themselves."""
    windows = {}
    for at in range(0, len(numbers) - WINDOW + 1, STEP):
        rows = [values(n) for n in numbers[at : at + WINDOW]]
        columns = dict(enumerate(zip(*rows, strict=True)))
        told = {f"f{n}.{name}": float(of(column)) for n, column in columns.items() for name, of in _TOLD.items()}
        windows[numbers[at]] = told
    return windows


_TOLD = {"min": min, "max": max, "mean": lambda column: sum(column) / len(column), "last": lambda column: column[-1]}


def campaign(folder: Path, kills: int) -> None:
    dice = random.Random(SEED)
    print(f"EDGE_KILL_SEED={SEED} EDGE_KILLS={kills}")
    lives = [dice.uniform(LIFE_S_MIN, LIFE_S_MAX) for _ in range(kills)]
    count = int((sum(lives) + SETTLE_S) * RATE)
    with mosquitto(folder, **PATIENT) as broker, receiver(folder) as far_end:
        window = {"device": "press", "window": {"count": WINDOW, "step": STEP}}
        pipelines = {"windows": window, "all": {"device": "press"}}
        sinks = {"cloud": {"type": "https", "url": far_end.url}}
        with gateway(folder, config({"press": press(broker.url)}, sinks, pipelines=pipelines)) as edge:
            edge.wait("source_connected")
            with publisher(broker, rate=RATE, count=count) as machine:
                for life_s in lives:
                    time.sleep(life_s)  # the instant is chance, on purpose
                    edge.kill()
                    edge.start()
                acknowledged = machine.finish()
            assert len(acknowledged) == count
            windows = expected_windows(acknowledged)
            edge.delivers(far_end, "all", count)
            edge.delivers(far_end, "windows", len(windows))
            assert edge.stop() == 0
        assert_once(far_end, acknowledged)
        got = bodies(far_end.file, "windows")
        firsts = sorted(int(body["outputs"]["f0.min"]) for body in got)
        assert firsts == sorted(windows), f"seed {SEED}: windows are missing, too many or other ones"
        for body in got:
            told = {name: value for name, value in body["outputs"].items() if not name.startswith(f"f{POINTS - 1}.")}
            assert told == pytest.approx(windows[int(body["outputs"]["f0.min"])]), f"seed {SEED}"
        said = far_end.stop()
        assert (said["gaps"], said["declared_lost"]) == (0, 0)
        print(f"{kills} kills, {count} messages, {len(windows)} windows, each once; resent and recognised: {said['duplicates']}")


@pytest.mark.slow
def test_no_message_and_no_window_is_lost_or_doubled(tmp_path: Path) -> None:
    campaign(tmp_path, KILLS)


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_no_message_and_no_window_is_lost_or_doubled_in_the_full_campaign(tmp_path: Path) -> None:
    campaign(tmp_path, KILLS_SOAK)
