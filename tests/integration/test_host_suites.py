"""The rules of ports.Host over the real child processes. The simulated one: tests/unit/test_fake_mesh.py."""

from __future__ import annotations

import asyncio
import importlib.util
import itertools
import os
import signal
from pathlib import Path

import pytest
import structlog
from brokers import free_port

from edge_runtime.board.system import SystemClock, SystemDice
from edge_runtime.bus import programs
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.host import BrokerHost
from edge_runtime.config import Broker
from edge_runtime.ports import Host
from edge_runtime.testing.host_suite import HostSuite, Scenario


class Hosts:
    def __init__(self, folder: Path, program: str) -> None:
        self._folder = folder
        self._settings = Broker.model_validate({"mode": "hosted", "url": f"mqtt://127.0.0.1:{free_port()}", "program": program})
        self._numbers = itertools.count(1)
        self.bus = PahoBus()

    def new(self) -> Host:
        folder = self._folder / f"broker-{next(self._numbers)}"
        return BrokerHost(self._settings, folder, SystemClock(), SystemDice(), structlog.get_logger())

    def kill(self, host: Host) -> None:
        assert isinstance(host, BrokerHost)
        assert host._child is not None
        os.kill(host._child.pid, signal.SIGKILL)


class RealHosts(HostSuite):
    program = ""

    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def play(self, scenario: Scenario) -> None:
        asyncio.run(asyncio.wait_for(scenario(Hosts(self.folder, self.program)), 30))


@pytest.mark.skipif(programs.mosquitto() is None, reason="MISSING SYSTEM PACKAGE: mosquitto")
class TestMosquitto(RealHosts):
    program = "mosquitto"


@pytest.mark.skipif(importlib.util.find_spec("iotcore") is None, reason="MISSING PACKAGE: iotcore")
class TestIotcore(RealHosts):
    program = "iotcore"
