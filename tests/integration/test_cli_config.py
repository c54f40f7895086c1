"""`edge-runtime config` against a real gateway that hosts its broker: what would happen, what happened, and back."""

from __future__ import annotations

import json
import os
import pty
import subprocess
import sys
import time
from collections.abc import Iterator
from pathlib import Path

import pytest
from brokers import mosquitto
from commanded import Plant, line, waiting
from gateways import until

from edge_runtime import document
from edge_runtime.cli.commanding import HEARTBEAT_S_MAX

pytestmark = pytest.mark.slow  # a change is looked at for five seconds

LIMIT = "pipelines.wear.rules.too-hot.above"


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Plant]:
    with line(
        tmp_path_factory.mktemp("plant"), sinks={"cloud": {"type": "https", "url": "http://u:hush@127.0.0.1:9"}}
    ) as running:
        yield running


def limit(plant: Plant) -> object:
    return plant.cli("config", "get", "press-1", LIMIT, "--json").json["config"]


def revision(plant: Plant) -> int:
    layers = plant.cli("config", "get", "press-1", "--json").json["layers"]
    return next((each["revision"] for each in layers if each["name"] == "gateway"), 0)


def test_a_threshold_is_set_and_nothing_restarts(plant: Plant) -> None:
    connected = plant.gateway.events("source_connected")
    said = plant.cli("config", "set", "press-1", f"{LIMIT}=85", "--note", "cooler")
    assert said.status == 0, said.error
    lines = said.out.splitlines()
    assert lines[0].startswith(f"  {LIMIT}: ")
    assert lines[0].endswith(" -> 85")
    assert lines[1] == "  pipeline wear: rules swapped (too-hot.above), nothing restarts"
    assert lines[3:] == ["press-1: trial (nothing restarts)", "press-1: active"]
    assert plant.gateway.events("source_connected") == connected
    assert not plant.gateway.events("source_stopped")
    assert limit(plant) == 85
    told = plant.cli("config", "get", "press-1", "pipelines", "--provenance").out
    assert "      above: 85                                              # gateway" in told.splitlines()
    assert document.read(told).value["wear"]["rules"][0]["above"] == 85


def test_what_it_runs_is_yaml_without_its_secrets(plant: Plant) -> None:
    told = plant.cli("config", "get", "press-1").out
    assert told.startswith("# press-1: ")
    assert "hush" not in told
    assert document.read(told).value["sinks"]["cloud"]["url"] == "http://u:***@127.0.0.1:9"
    for words, error in (
        (("press-1", "pipelines.wair"), "hint: did you mean `wear`?"),
        (("press-1", "pipelines.wear.rules[0]"), "points and rules are named here"),
        (("press-2",), "hint: did you mean `press-1`?"),
    ):
        said = plant.cli("config", "get", *words)
        assert said.status == 1
        assert error in said.error


def test_what_is_wrong_is_not_even_published(plant: Plant) -> None:
    before = revision(plant)
    for words, error in (
        (("press-1", f"{LIMIT}=warm"), f"  {LIMIT}: should be a number or 'model' (it is \"warm\")"),
        (("press-1", "site=other"), "  site: belongs to the machine"),
        (("group/default", "control.groups=[x]"), "  control.groups: a group cannot say it"),
        (("group/none", "log.level=info"), "no gateway of site plant is in group/none"),
        (("press-1", "sinks.cloud.url=http://u:***@127.0.0.1:8"), "*** stands in the place of a secret: sinks.cloud.url"),
        (("press-1", "log.level=info", "--canary", "press-1"), "canaries are gateways of a group"),
        (("press-1", "log.level=info", "--canary", "press-2"), "canaries are gateways of a group"),
    ):
        said = plant.cli("config", "set", *words)
        assert said.status == 1, words
        assert error in said.error, words
    assert revision(plant) == before


def test_what_the_gateway_rejects_is_told_and_not_built_on(plant: Plant) -> None:
    before = limit(plant)
    said = plant.cli("config", "set", "press-1", f"{LIMIT}=warm", "log.level=info", "--unchecked")
    assert said.status == 1
    assert "press-1: rejected: it is not valid" in said.out
    assert f"  {LIMIT}: should be a number or 'model' (it is \"warm\") [gateway]\n    hint: " in said.error
    assert plant.cli("config", "get", "press-1").out.startswith("# press-1: rejected, mode normal")
    said = plant.cli("config", "diff", "press-1")
    assert said.status == 1
    assert "+        above: warm" in said.out
    said = plant.cli("config", "set", "press-1", "pipelines.wear.rules.too-hot.clear_after_s=3")
    assert said.status == 0, said.error
    assert "this builds on the document of gateway that is in force on press-1" in said.error
    assert limit(plant) == before
    assert "level" not in plant.cli("config", "get", "press-1", "log", "--json").json["config"]
    assert plant.cli("config", "diff", "press-1").status == 0


def test_back_to_the_last_good_one_and_who_it_was(plant: Plant) -> None:
    said = plant.cli("config", "rollback", "press-1")
    assert said.status == 0, said.error
    assert "press-1: active" in said.out.splitlines()
    history = plant.cli("config", "history", "press-1", "--json").json
    newest, before = [each for each in history if each["number"]][:2]
    assert (newest["state"], newest["note"]) == ("active", "rolled back")
    assert (before["state"], before["by"]) == ("superseded", newest["by"])
    assert "cooler" in [each["note"] for each in history]
    assert (history[-1]["number"], history[-1]["by"]) == (1, "file")
    assert "rolled back" in plant.cli("config", "history", "press-1").out


def test_registers_that_the_device_does_not_have_are_taken_back(plant: Plant) -> None:
    """It answers, so it is connected; but the line would stand there blind."""
    addresses = [f"devices.press.points.{each}.address=5000" for each in ("speed", "shown")]
    said = plant.cli("config", "set", "press-1", *addresses, "--trial", "6")
    assert said.status == 1
    assert "device press: no value of it is good (speed: Modbus exception 2: illegal data address)" in said.error
    points = plant.cli("config", "get", "press-1", "devices.press.points", "--json").json["config"]
    assert [each["address"] for each in points] == [110, 110]


def test_a_whole_configuration_that_takes_the_broker_with_it_is_followed_to_its_end(plant: Plant, tmp_path: Path) -> None:
    hosted, file = len(plant.gateway.events("broker_hosted")), tmp_path / "wanted.json"
    file.write_text(json.dumps({**plant.settings, "control": {"groups": ["presses"]}}))
    assert plant.cli("config", "diff", "press-1", str(file)).status == 1
    said = plant.cli("config", "apply", "press-1", str(file), "--json")
    assert said.status == 0, said.error
    assert said.json["gateways"]["press-1"]["state"] == "active"
    assert "everything inside the gateway is built anew (control.groups)" in said.error
    assert len(plant.gateway.events("broker_hosted")) == hosted + 1
    assert plant.cli("config", "diff", "press-1", str(file)).status == 0
    said = plant.cli("config", "set", "group/presses", f"{LIMIT}=3", "devices.press.period_s=0.5", "--dry-run")
    assert said.status == 0, said.error
    assert "press-1  online  nothing changes" in said.out  # the gateway's own whole configuration counts more than a group


def test_a_file_that_is_none(plant: Plant, tmp_path: Path) -> None:
    file = tmp_path / "wanted.yaml"
    file.write_text("[1, 2]")
    assert "is no mapping" in plant.cli("config", "apply", "press-1", str(file)).error
    file.write_text("log: {level: info}")
    assert "devices: " in plant.cli("config", "apply", "press-1", str(file)).error
    assert plant.cli("config", "apply", "press-1", str(file), "--patch", "--dry-run").status == 0


def test_a_person_at_a_terminal_is_asked(plant: Plant) -> None:
    before = revision(plant)
    for answer, published in ((b"n\n", 0), (b"\n", 0), (b"y\n", 1)):
        ours, theirs = pty.openpty()
        command = [
            sys.executable,
            "-m",
            "edge_runtime",
            "config",
            "set",
            "press-1",
            f"{LIMIT}=warm",
            "--unchecked",
            *plant.where(),
        ]
        asked = subprocess.Popen(command, stdin=theirs, stdout=theirs, stderr=subprocess.DEVNULL)
        os.close(theirs)
        told = b""
        while b"[y/N]" not in told:
            told += os.read(ours, 4096)
        os.write(ours, answer)
        assert asked.wait(30) == 1  # it is no number: the gateway says no at once
        os.close(ours)
        assert revision(plant) == before + published


def test_on_top_of_what_only_a_gateway_knows_that_is_offline_nothing_is_set(tmp_path: Path) -> None:
    """Nobody waits for its heartbeat; and what is said instead is so."""
    with mosquitto(tmp_path) as broker, waiting(tmp_path, broker={"mode": "external", "url": broker.url}) as plant:
        plant.begin()
        said = plant.cli("config", "set", "press-1", f"{LIMIT}=warm", "--unchecked")
        assert "press-1: rejected" in said.out
        plant.gateway.stop()
        began_s = time.monotonic()
        said = plant.cli("config", "set", "press-1", f"{LIMIT}=70")
        assert time.monotonic() - began_s < HEARTBEAT_S_MAX / 2
        assert said.status == 1
        assert "the document on the broker is not in force, and who knows which one is, is offline: press-1\n" in said.error
        assert "set it when press-1 is back; or `edge-runtime config apply press-1 FILE --patch`" in said.error
        file = tmp_path / "patch.yaml"
        file.write_text("pipelines: {wear: {rules: {too-hot: {above: 70}}}}")
        said = plant.cli("config", "apply", "press-1", str(file), "--patch")
        assert (said.status, "press-1 is offline: it takes it when it is back" in said.out) == (0, True), said.error
        plant.begin()
        until(lambda: plant.gateway.events("configuration_confirmed"), "it has taken it")
        assert limit(plant) == 70


def test_a_gateway_in_safe_mode_says_so_and_takes_a_fix(tmp_path: Path) -> None:
    with line(tmp_path) as plant:
        plant.gateway.stop()
        plant.gateway.file.write_text("site: [plant")
        plant.begin()
        told = plant.cli("config", "get", "press-1").out
        assert told.startswith("# press-1: rejected, mode safe")
        assert "no valid YAML" in told
        said = plant.cli("config", "set", "press-1", f"{LIMIT}=12")
        assert said.status == 0, said.error
        report = plant.cli("config", "get", "press-1", "--json").json
        assert (report["state"], report["config"]["pipelines"]["wear"]["rules"][0]["above"]) == ("active", 12)
        assert report.get("mode", "normal") == "normal"
        until(lambda: not plant.gateway.ended(), "it lives")
