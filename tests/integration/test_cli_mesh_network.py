"""`edge-runtime mesh` on a real network, with real gateways: it is given a site, or a gateway's file, and finds the rest."""

from __future__ import annotations

import json
import subprocess
import sys
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import numpy as np
import pytest
from mesh_site import FEATURES, MODEL, Site, site
from netns import network

EYE = 2

pytestmark = pytest.mark.slow


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Iterator[Site]:
    with network(3) as net, site(net, tmp_path_factory.mktemp("plant"), range(2), eye=EYE, rows=20) as plant:
        plant.whole()
        yield plant


def edge_runtime(plant: Site, node: int, *words: str) -> Any:
    command = [*plant.net.nodes[node].inside, sys.executable, "-m", "edge_runtime", "mesh", *words, "--json"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stderr
    return json.loads(done.stdout)


def test_mdns_is_enough(plant: Site) -> None:
    found = edge_runtime(plant, EYE, "--site", "plant")
    host = plant.host()
    assert found["broker"] == f"{plant.net.address(host)}:1883"
    assert [(each["gateway"], each["state"]) for each in found["gateways"]] == [("plant-0", "online"), ("plant-1", "online")]
    assert [each["role"] for each in found["gateways"]] == ["host" if node == host else "candidate" for node in (0, 1)]


@pytest.mark.parametrize("node", [0, 1])
def test_a_gateways_own_file_is_enough(plant: Site, node: int) -> None:
    """Also where another one hosts the broker."""
    found = edge_runtime(plant, node, str(plant.gateways[node].file))
    assert found["host"] == f"plant-{plant.host()}"


def test_a_window_is_computed_by_a_real_gateway(plant: Site, tmp_path: Path) -> None:
    usual = [44.0, 0.0, 85.0, 0.0, 39.0, 1.0, 41.0, 45.0, 5.0]
    assert len(usual) == FEATURES
    np.save(tmp_path / "windows.npy", np.array([[usual], [usual]]))
    done = edge_runtime(plant, EYE, "submit", MODEL, str(tmp_path / "windows.npy"), "--site", "plant", "--deadline", "10")
    assert [each["window"] for each in done] == [0, 1]
    assert done[0]["outputs"] == done[1]["outputs"]
    assert done[0]["executed_on"].startswith("tflite")
    assert done[0]["model"].startswith(f"{MODEL}@")
