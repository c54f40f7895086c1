"""A gateway of a site: mTLS to the broker that it hosts, everything signed, and still small."""

from __future__ import annotations

import shutil
from contextlib import ExitStack
from pathlib import Path

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
