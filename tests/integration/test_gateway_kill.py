"""kill -9 at any instant: what the broker has acknowledged to the machine is at the far end exactly once, and so is every window
that it makes. `make soak` runs the full campaign (50 kills); EDGE_KILLS sets another number, EDGE_KILL_SEED repeats one."""

from __future__ import annotations

import os
import random
from pathlib import Path

import campaigns
import pytest

KILLS = int(os.environ.get("EDGE_KILLS", "8"))
KILLS_SOAK = int(os.environ.get("EDGE_KILLS", "50"))
SEED = int(os.environ.get("EDGE_KILL_SEED", "0")) or random.randrange(1, 10**6)


@pytest.mark.slow
def test_no_message_and_no_window_is_lost_or_doubled(tmp_path: Path) -> None:
    print(campaigns.kills(tmp_path, KILLS, SEED))


@pytest.mark.soak
@pytest.mark.timeout(900)
def test_no_message_and_no_window_is_lost_or_doubled_in_the_full_campaign(tmp_path: Path) -> None:
    print(campaigns.kills(tmp_path, KILLS_SOAK, SEED))
