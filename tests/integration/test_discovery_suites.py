"""The rules of ports_mesh.Discovery over real mDNS, on this machine's loopback. The simulated one: tests/unit/test_fake_mesh.py;
what needs a network of several machines: test_discovery.py."""

from __future__ import annotations

import asyncio
import uuid

import pytest
import structlog

from edge_runtime.config import Mesh
from edge_runtime.mesh.discovery import ZeroconfDiscovery
from edge_runtime.testing.discovery_suite import DiscoverySuite, Scenario


class TestZeroconf(DiscoverySuite):
    @pytest.fixture(autouse=True)
    def _own_site(self) -> None:
        """Others use this loopback, too."""
        self.site = f"suite-{uuid.uuid4().hex[:8]}"

    def play(self, scenario: Scenario) -> None:
        def new() -> ZeroconfDiscovery:
            return ZeroconfDiscovery(Mesh(), "127.0.0.1", structlog.get_logger())

        asyncio.run(asyncio.wait_for(scenario(new), 60))
