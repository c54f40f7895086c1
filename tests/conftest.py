"""For every test: how fast the machine is, and what else it does, is no property of the code."""

from __future__ import annotations

from pathlib import Path

import pytest
from hypothesis import HealthCheck, settings

settings.register_profile("any-machine", deadline=None, suppress_health_check=[HealthCheck.too_slow])
settings.load_profile("any-machine")

COMPUTING = ("sim", "unit")
"""Folders whose tests compute. All others wait, most of the time, for processes and networks."""

SITES = ("attacker", "mesh", "demo", "discovery", "membership", "presence", "privacy", "suites")
"""In the names of files whose tests run many processes."""


def pytest_collection_modifyitems(items: list[pytest.Item]) -> None:
    """With `-n 3 --dist loadgroup` three tests run at a time, one of each group, however many cores there are."""
    here = Path(__file__).parent
    for item in items:
        folder = item.path.relative_to(here).parts[0] if item.path.is_relative_to(here) else ""
        waiting = "sites" if any(word in item.path.stem for word in SITES) else "real"
        item.add_marker(pytest.mark.xdist_group("computing" if folder in COMPUTING else waiting))
