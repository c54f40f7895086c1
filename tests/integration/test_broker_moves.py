"""A gateway is sent to another broker by its configuration: it stays where somebody speaks to it, and comes back from where
nobody does. Real brokers, a real process."""

from __future__ import annotations

import json
import shutil
import socket
from pathlib import Path
from typing import Any

import pytest
from brokers import Broker, free_port, mosquitto
from commanded import Plant, line
from gateways import until

from edge_runtime.bus import host

pytestmark = [
    pytest.mark.skipif(shutil.which("mosquitto", path=host._PLACES) is None, reason="MISSING SYSTEM PACKAGE: mosquitto"),
    pytest.mark.slow,
]

TRIAL_S = 8


def at(broker: Broker) -> dict[str, Any]:
    return {"mode": "external", "url": broker.url}


def where(plant: Plant) -> str:
    """The broker that it came to last."""
    return str(plant.gateway.events("broker_joined")[-1]["at"])


def test_it_stays_where_somebody_speaks_to_it(tmp_path: Path) -> None:
    for name in ("one", "other", "line"):
        (tmp_path / name).mkdir()
    with mosquitto(tmp_path / "one") as one, mosquitto(tmp_path / "other") as other:  # noqa: SIM117
        with line(tmp_path / "line", broker=at(one), control={"trial_s": TRIAL_S}) as plant:
            # With a tool that speaks at the old broker only.
            plant.publish("gw/press-1/config/desired", {"patch": {"broker": at(other)}}, "-r")
            until(lambda: plant.gateway.events("configuration_reverted"), "it comes back", 60.0)
            (reverted,) = plant.gateway.events("configuration_reverted")
            assert (
                "reach: nobody who may steer it has spoken to it on this broker: publish the document there, too"
                in reverted["cause"]
            )
            until(lambda: where(plant) == f"127.0.0.1:{one.port}", "it is there again", 20.0)
            assert [each["at"] for each in plant.gateway.events("broker_joined")][1] == f"127.0.0.1:{other.port}"

            # The command line speaks at both.
            said = plant.cli("config", "set", "press-1", f"broker.url={other.url}")
            assert said.status == 0, said.error
            assert said.out.splitlines()[-1] == "press-1: active"
            assert where(plant) == f"127.0.0.1:{other.port}"

            # And where the gateway is its own host.
            plant.settings["broker"] = at(other)
            hosted = {"mode": "hosted", "url": f"mqtt://127.0.0.1:{free_port()}"}
            wanted = tmp_path / "wanted.json"
            wanted.write_text(json.dumps({"broker": hosted}))
            said = plant.cli("config", "apply", "press-1", str(wanted), "--patch")
            assert said.status == 0, said.error
            assert plant.gateway.events("broker_hosted")
            assert len(plant.gateway.events("configuration_confirmed")) == 2


def test_metrics_on_a_port_that_is_taken_are_taken_back(tmp_path: Path) -> None:
    with line(tmp_path) as plant, socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = plant.cli("config", "set", "press-1", f"metrics.listen={address}", "--trial", "2")
        assert said.status == 1
        assert f"press-1: reverted: not ok after 2 s: metrics: cannot listen on {address}" in said.out
        said = plant.cli("config", "set", "press-1", f"metrics.listen=127.0.0.1:{free_port()}")
        assert said.status == 0, said.error
