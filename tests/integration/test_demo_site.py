"""`edge-runtime demo --gateways N` as a person runs it: real gateways, mosquitto where they agree, a killed host, an account."""

from __future__ import annotations

import json
import subprocess
import sys
from pathlib import Path
from typing import Any

import psutil
import pytest

from edge_runtime.cli.demo.site import picture
from edge_runtime.cli.demo.site.picture import GatewayPicture, Picture
from edge_runtime.receiver.account import Account

PROGRAM = (sys.executable, "-m", "edge_runtime", "demo")
LIMIT_S = 120.0


def run(folder: Path, *words: str) -> tuple[int, list[dict[str, Any]], str]:
    process = subprocess.Popen(
        [*PROGRAM, "--json", *words], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, start_new_session=True
    )
    family: dict[int, psutil.Process] = {}
    lines = []
    assert process.stdout is not None
    for line in process.stdout:
        lines.append(json.loads(line))
        family |= {each.pid: each for each in psutil.Process(process.pid).children(recursive=True)}
    _, error = process.communicate(timeout=LIMIT_S)
    _, alive = psutil.wait_procs(family.values(), timeout=10)
    assert [each for each in alive if each.status() != psutil.STATUS_ZOMBIE] == []
    return process.returncode, lines, error


def test_the_slow_one_is_helped_the_host_is_killed_and_nothing_is_lost(tmp_path: Path) -> None:
    status, lines, error = run(tmp_path, "--gateways", "3", "--seconds", "8", "--keep", str(tmp_path / "kept"))
    assert lines, error
    progress, account = lines[:-1], lines[-1]
    assert (status, account["problems"]) == (0, []), (error, account)
    hosts = [each["broker"] for each in progress if each["broker"]]
    slow = "gateway-1"
    assert slow not in hosts, "it has the higher rank"
    assert len(dict.fromkeys(hosts)) == 2, f"the host was killed, and another one took over: {hosts}"
    seen = [gateway for picture_ in progress for gateway in picture_["gateways"]]
    assert {each["name"] for each in seen if not each["running"]} == {hosts[0]}, "it was seen to be gone"
    found = {each["name"]: each for each in account["gateways"]}
    assert found[slow]["by_peers"] > 0
    assert all(each["accepted"] == each["delivered"] > 0 == each["lost"] == each["duplicates"] for each in found.values())


@pytest.mark.parametrize("number", ["0", "10", "x"])
def test_how_many_gateways(number: str, tmp_path: Path) -> None:
    done = subprocess.run([*PROGRAM, "--gateways", number], capture_output=True, text=True, timeout=LIMIT_S, check=False)
    assert done.returncode == 2
    assert f"{number}: 1 to 9 gateways" in done.stderr


def shown(by_peers: int) -> Picture:
    gateway = GatewayPicture(
        name="g", running=True, online=True, host=True, slow=True, results_per_s=1.0, here=1, by_peers=by_peers, for_others=0,
        waiting=0,
    )  # fmt: skip
    return Picture(elapsed_s=1.0, seconds=5.0, draining=False, gateways=[gateway], broker="g", last=[])


@pytest.mark.parametrize(
    ("accepted", "far_end", "by_peers", "back", "problem"),
    [
        (10, {"unique": 10}, 5, 1, None),
        (10, {"unique": 9, "same_content": 1}, 5, 1, None),
        (10, {"unique": 9}, 5, 1, "1 of 10 accepted records of g are not at the receiver"),
        (10, {"unique": 10, "kept_twice": 1}, 5, 1, "1 records of g are at the receiver twice"),
        (10, {"unique": 10, "declared_lost": 2}, 5, 1, "2 records of g had to go, and were declared lost"),
        (0, {}, 5, 1, "g accepted nothing"),
        (10, {"unique": 10}, 0, 1, "no window of g, the slow one, was computed by a peer"),
        (10, {"unique": 10}, 5, 0, "1 gateways were killed and 0 came back: nothing is proved"),
        (10, {"unique": 10}, 5, None, "it ended before a gateway was killed: nothing is proved"),
    ],
)
def test_what_makes_an_account_unclean(
    accepted: int, far_end: dict[str, int], by_peers: int, back: int | None, problem: str | None
) -> None:
    delivered = [Account(site="s", gateway="g", **far_end)]
    kills = 0 if back is None else 1
    found = picture.account({"g": accepted}, delivered, shown(by_peers), kills=kills, back=back or 0, kill_due=True, settled=True)
    assert found.problems == ([problem] if problem else [])
    said = picture.lines(found)
    assert said[-1] == (f"NOT CLEAN: {problem}" if problem else "clean: every accepted record is at the receiver exactly once")


def test_who_ends_it_at_once_is_not_told_that_nobody_was_helped_yet() -> None:
    delivered = [Account(site="s", gateway="g", unique=10)]
    early = picture.account({"g": 10}, delivered, shown(0), kills=0, back=0, kill_due=False, settled=False)
    assert early.problems == []
