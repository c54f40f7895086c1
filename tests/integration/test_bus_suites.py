"""The rules of the bus, over our client and a real mosquitto."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import pytest
from brokers import Broker, mosquitto

from edge_runtime.bus.broker import PahoBus, PahoConnection
from edge_runtime.ports import Address
from edge_runtime.testing.bus_suite import INFLIGHT_MAX, QUEUED_MAX, BusSuite, Scenario


class Mosquitto:
    def __init__(self, broker: Broker) -> None:
        self.bus = PahoBus()
        self._broker = broker

    def address(self, **changes: Any) -> Address:
        return self._broker.address(**changes)

    def kill(self) -> None:
        self._broker.kill()

    def start(self) -> None:
        self._broker.start()

    def sever(self, connection: PahoConnection) -> None:
        connection.abort()


class TestMosquitto(BusSuite):
    @pytest.fixture(autouse=True)
    def _folder(self, tmp_path: Path) -> None:
        self.folder = tmp_path

    def play(self, scenario: Scenario) -> None:
        with mosquitto(self.folder, max_queued_messages=QUEUED_MAX, max_inflight_messages=INFLIGHT_MAX) as broker:
            asyncio.run(scenario(Mosquitto(broker)))  # type: ignore[arg-type]
