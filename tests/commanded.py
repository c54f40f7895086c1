"""A real gateway that polls a libmodbus server and hosts its broker (or comes to one): for tests of people who configure and
command it.

with line(tmp_path) as plant:
    said = plant.cli("config", "set", "press-1", "pipelines.wear.rules.too-hot.above=85")
"""

from __future__ import annotations

import asyncio
import json
import shutil
import subprocess
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import free_port
from gateways import GatewayProcess, until
from modbus_devices import Libmodbus, libmodbus
from onlooking import Said, edge_runtime

SPEED = 110
"""The holding register (and the next one): float32."""


class Plant:
    """`gateway` press-1 of the site plant, `device` what it polls, `identity` who types."""

    def __init__(self, folder: Path, device: Libmodbus, **settings: Any) -> None:
        self.folder, self.device = folder, device
        self.identity: Path | None = None
        self.settings: dict[str, Any] = {
            "site": "plant",
            "gateway": "press-1",
            "broker": {"mode": "hosted", "url": f"mqtt://127.0.0.1:{free_port()}", "program": "mosquitto"},
            "devices": {"press": press(device.port)},
            "pipelines": {"wear": {"device": "press", "window": {"count": 5}, "rules": [rule("too-hot", 1e9)]}},
            "log": {"format": "json"},
            **settings,
        }
        self.gateway = GatewayProcess(folder / "press-1", self.settings)

    @property
    def broker(self) -> str:
        return str(self.settings["broker"]["url"])

    def begin(self) -> None:
        """Returns when it reads its device and is on its broker."""
        self.gateway.start()
        mode, edge = self.settings["broker"]["mode"], self.gateway
        if mode == "auto":
            until(lambda: edge.events("broker_hosted") or edge.events("broker_joined"), "it has a broker")
        else:
            edge.wait("broker_hosted" if mode == "hosted" else "broker_joined")
        edge.wait("source_connected")

    def cli(self, *words: str) -> Said:
        """As a person types it."""
        return asyncio.run(edge_runtime(*words, *self.where()))

    def where(self) -> list[str]:
        return ["--broker", self.broker, *(["--identity", str(self.identity)] if self.identity else [])]

    def publish(self, topic: str, payload: dict[str, Any], *flags: str) -> None:
        """With mosquitto_pub, as somebody who is no part of this."""
        command = ["mosquitto_pub", *self._at(), "-q", "1", "-t", f"edge/plant/{topic}", "-m", json.dumps(payload), *flags]
        subprocess.run(command, check=True, timeout=10)

    @contextmanager
    def hearing(self, topic: str) -> Iterator[Heard]:
        command = ["mosquitto_sub", *self._at(), "-q", "1", "-d", "-t", f"edge/plant/{topic}"]
        listener = subprocess.Popen(["stdbuf", "-oL", *command], stdout=subprocess.PIPE, text=True)
        heard = Heard(listener)
        try:
            heard.line("SUBACK")
            yield heard
        finally:
            listener.kill()
            listener.communicate()

    def writes(self) -> list[tuple[int, int]]:
        """(function, address) of each request to write that the device has had."""
        return self.device.writes()

    def _at(self) -> list[str]:
        return ["-h", "127.0.0.1", "-p", self.broker.rpartition(":")[2]]


class Heard:
    """What mosquitto_sub prints."""

    def __init__(self, listener: subprocess.Popen[str]) -> None:
        assert listener.stdout
        self._out = listener.stdout

    def line(self, word: str) -> str:
        """The next one with this word."""
        while word not in (line := self._out.readline()):
            assert line, "mosquitto_sub has ended"
        return line

    def json(self) -> dict[str, Any]:
        """The next message."""
        while not (line := self._out.readline()).startswith("{"):
            assert line, "mosquitto_sub has ended"
        said: dict[str, Any] = json.loads(line)
        return said


@contextmanager
def line(folder: Path, **settings: Any) -> Iterator[Plant]:
    """It runs."""
    with waiting(folder, **settings) as plant:
        plant.begin()
        yield plant


@contextmanager
def waiting(folder: Path, **settings: Any) -> Iterator[Plant]:
    """It does not run yet."""
    for program in ("mosquitto", "mosquitto_pub"):
        if not (shutil.which(program) or shutil.which(program, path="/usr/sbin:/usr/local/sbin")):
            pytest.skip(f"MISSING SYSTEM PACKAGE: {program} (apt-get install mosquitto mosquitto-clients)")
    with libmodbus(folder) as device:
        plant = Plant(folder, device, **settings)
        try:
            yield plant
        finally:
            plant.gateway.end()


def press(port: int) -> dict[str, Any]:
    write = {"low": 0, "high": 2000, "every_s_min": 0.001}
    points = [
        {"name": "speed", "address": SPEED, "type": "float32", "write": write},
        {"name": "shown", "address": SPEED, "type": "float32"},
    ]
    return {"adapter": "modbus", "period_s": 0.2, "options": {"host": "127.0.0.1", "port": port}, "points": points}


def rule(name: str, above: float) -> dict[str, Any]:
    return {"name": name, "output": "speed.max", "above": above}
