"""For every test: how fast the machine is, and what else it does, is no property of the code."""

from __future__ import annotations

import gc

import pytest
from hypothesis import HealthCheck, settings

from edge_runtime.outbox import pace

settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """The campaigns first: what computes for minutes and waits for nothing must not begin last."""
    items.sort(key=lambda item: item.path.name != "test_campaigns.py")


def pytest_collection_finish() -> None:
    """Thousands of tests and all that they import: whoever looks for garbage need not look through that each time (0.15 s)."""
    gc.collect()
    gc.freeze()


@pytest.fixture(params=["in the thread", "on the loop"])
def both_writers(request: pytest.FixtureRequest, monkeypatch: pytest.MonkeyPatch) -> None:
    """The outbox writes rows where the disk is quick enough; here it does in each of both places, whatever the disk is."""
    here = request.param == "on the loop"
    monkeypatch.setattr(pace, "PROOF", 0 if here else 10**9)
    monkeypatch.setattr(pace, "STALL_NS", 10**18)
    monkeypatch.setattr(pace, "QUICK_NS", 10**18 if here else 0)
