"""A gateway of a site: mTLS to the broker that it hosts, everything signed, and still small."""

from __future__ import annotations

import json
import shutil
import subprocess
import sys
from contextlib import ExitStack
from pathlib import Path

import pytest
from brokers import free_port, mosquitto
from gateways import PATIENT, config, gateway, press, publisher
from receivers import receiver
from trusted import Site

RSS_BYTES_MAX = 85 * 2**20


def test_the_memory_of_a_gateway_with_security(tmp_path: Path) -> None:
    """One device over MQTT, a sink over HTTP, its own broker for members of the site, after some traffic."""
    messages = 3_000
    with ExitStack() as stack:
        broker = stack.enter_context(mosquitto(tmp_path, **PATIENT))
        far_end = stack.enter_context(receiver(tmp_path))
        settings = config({"press": press(broker.url)}, {"cloud": {"type": "https", "url": far_end.url}})
        settings["broker"] = {"mode": "hosted", "url": f"mqtt://127.0.0.1:{free_port()}", "program": "mosquitto"}
        site = Site(tmp_path / "site", settings["site"])
        identity = site.member(settings["gateway"])
        site.roster(identity)
        shutil.copytree(identity.folder, tmp_path / settings.get("data_dir", "data") / "identity")
        edge = stack.enter_context(gateway(tmp_path, settings))
        edge.wait("source_connected")
        edge.wait("broker_hosted")
        with publisher(broker, rate=0, count=messages) as machine:
            machine.finish()
        edge.delivers(far_end, "all", messages)
        print(f"resident: {edge.rss_bytes / 2**20:.1f} MiB")
        assert edge.rss_bytes <= RSS_BYTES_MAX
        assert edge.stop() == 0


@pytest.mark.parametrize("wrong", ["another name", "another site", "a person", "readable by others", "elsewhere"])
def test_an_identity_that_is_not_its_own_keeps_it_from_starting(tmp_path: Path, wrong: str) -> None:
    """To go on without would open what was closed."""
    settings = config({"press": press("mqtt://127.0.0.1:1")}, {})
    site = Site(tmp_path / "site", "elsewhere" if wrong == "another site" else settings["site"])
    person = wrong == "a person"
    name = "another" if wrong == "another name" else "alice" if person else settings["gateway"]
    identity = site.member(name, "engineer" if person else "gateway")
    shutil.copytree(identity.folder, tmp_path / "data" / "identity")
    if wrong == "readable by others":
        (tmp_path / "data" / "identity" / "key.pem").chmod(0o644)
    if wrong == "elsewhere":
        settings["site_dir"] = "on-a-disk-that-is-not-mounted"
    (tmp_path / "gateway.yaml").write_text(json.dumps(settings))
    command = [sys.executable, "-m", "edge_runtime", "run", tmp_path / "gateway.yaml"]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 1
    assert "identity" in done.stderr
    assert "hint: " in done.stderr
