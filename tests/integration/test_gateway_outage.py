"""Outages: an uplink that is cut while the gateway is killed, a receiver that is away, a disk that comes back from an old copy.
`make soak` runs the first one at full length (35 s); EDGE_OUTAGE_S sets another length."""

from __future__ import annotations

import os
from pathlib import Path

import campaigns
import pytest

LENGTH_S = float(os.environ.get("EDGE_OUTAGE_S", "7"))
LENGTH_S_SOAK = float(os.environ.get("EDGE_OUTAGE_S", "35"))


@pytest.mark.slow
def test_an_outage_with_a_kill_in_it_loses_nothing(tmp_path: Path) -> None:
    print(campaigns.outage(tmp_path, LENGTH_S))


@pytest.mark.soak
@pytest.mark.timeout(600)
def test_an_outage_with_a_kill_in_it_loses_nothing_at_full_length(tmp_path: Path) -> None:
    print(campaigns.outage(tmp_path, LENGTH_S_SOAK))


@pytest.mark.slow
def test_a_receiver_behind_a_default_broker_that_comes_back_gets_everything_once(tmp_path: Path) -> None:
    campaigns.receiver_back(tmp_path, 5_000)


@pytest.mark.slow
@pytest.mark.parametrize("kind", ["https", "mqtt"])
def test_an_outbox_from_an_old_copy_gives_no_number_away_twice(tmp_path: Path, kind: str) -> None:
    campaigns.old_copy(tmp_path, kind)
