"""A gateway dies with records that nobody has; new hardware takes its name, its configuration, its models and its old disk."""

from __future__ import annotations

import asyncio
import json
import os
import shutil
import subprocess
import sys
from collections.abc import Iterator
from contextlib import contextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import free_port, mosquitto
from gateways import PATIENT, GatewayProcess, assert_once, die_with_parent, press, publisher, until, waiting
from receivers import ReceiverProcess, receiver
from trusted import PASSPHRASE, Site

from edge_runtime import cli
from edge_runtime.bus import control as messages
from edge_runtime.bus import topics
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.control import Desired, Reported
from edge_runtime.bus.member import Dress
from edge_runtime.inference import store
from edge_runtime.ports import Address, BrokerError
from edge_runtime.trust.identity import Identity

SITE, MODEL = "plant-1", "press-anomaly"
REVISION = 7


class Plant:
    """A site with press-1, whose disk holds what is not delivered, and g2, which hosts the broker."""

    def __init__(self, folder: Path, machine_url: str, far_end: ReceiverProcess) -> None:
        self.folder, self.site, self.port = folder, Site(folder), free_port()
        self.alice = self.site.member("alice", "engineer")
        pipelines = {
            "all": {"device": "press"},
            "wear": {"device": "press", "model": MODEL, "window": {"count": 1}, "points": [f"f{n}" for n in range(9)]},
        }
        devices = {
            "press": press(machine_url),
            "spare": press(machine_url.replace("//", "//someone:confidential@"), client_id="s"),
        }
        self.old = self._gateway(
            "press-1", devices=devices, pipelines=pipelines, sinks={"cloud": {"type": "https", "url": far_end.url}},
            mesh={"discovery": "off", "peers": [f"127.0.0.1:{self.port}"], "may_host": False},
        )  # fmt: skip
        quiet = {"adapter": "replay", "options": {"file": str(folder / "none.csv")}, "points": [{"name": "a", "column": "a"}]}
        (folder / "none.csv").write_text("a\n")
        self.host = self._gateway(
            "g2", port=self.port, devices={"quiet": quiet}, pipelines={"q": {"device": "quiet"}}, mesh={"discovery": "off"}
        )

    def _gateway(self, name: str, port: int = 0, **more: Any) -> GatewayProcess:
        settings = {
            "site": SITE, "gateway": name, "log": {"format": "json"},
            "broker": {"mode": "auto", "url": f"mqtt://127.0.0.1:{port or free_port()}", "program": "mosquitto"},
        }  # fmt: skip
        folder = self.folder / name / "home"
        shutil.copytree(store.shipped() / "shuttle-anomaly", folder / "models" / MODEL)
        identity = self.site.member(name)
        shutil.copytree(identity.folder, folder / "data" / "identity")
        return GatewayProcess(folder, settings | more)

    @property
    def broker(self) -> str:
        return f"mqtt://127.0.0.1:{self.port}"

    def address(self, who: Identity) -> Address:
        return Dress(who)(Address(host="127.0.0.1", port=self.port))

    def want(self, patch: dict[str, Any]) -> None:
        payload = self.alice.sign(
            messages.pack(Desired(target="gw/press-1", revision=REVISION, patch=patch, trial_s=1.0)), "desired"
        )

        async def publish() -> None:
            connection = await PahoBus().connect(self.address(self.alice))
            await connection.publish(topics.desired(SITE, "gw/press-1"), payload, qos=1, retain=True)
            await connection.close()

        asyncio.run(publish())

    def reported(self) -> Reported | None:
        """The newest report of press-1, if the one that has the name now has signed it."""

        async def ask() -> bytes:
            connection = await PahoBus().connect(self.address(self.alice))
            await connection.subscribe(topics.gateway(SITE, "press-1", "config", "reported"))
            async with asyncio.timeout(5):
                message = await connection.receive()
            await connection.close()
            return message.payload

        from edge_runtime.trust import envelope
        from edge_runtime.trust.roster import Forged

        try:
            return messages.unpack(envelope.open(asyncio.run(ask()), "reported", self.alice.roster).document, Reported)
        except Forged:
            return None

    def lets_in(self, who: Identity) -> bool:
        async def knock() -> None:
            connection = await PahoBus().connect(self.address(who))
            await connection.subscribe(topics.roster(SITE))
            await connection.close()

        try:
            asyncio.run(knock())
        except BrokerError:
            return False
        return True

    @contextmanager
    def token(self) -> Iterator[str]:
        """`edge-runtime site token press-1 --replace`, which waits for the new hardware."""
        folder = self.site.folder / "authority"
        command = ["site", "token", "press-1", "--replace", "--folder", str(folder), "--listen", "127.0.0.1:0", "--json"]
        process = subprocess.Popen(
            [sys.executable, "-m", "edge_runtime", *command], stdout=subprocess.PIPE, preexec_fn=die_with_parent,
            env={"EDGE_RUNTIME_SITE_PASSPHRASE": PASSPHRASE, "PATH": "/usr/bin"},
        )  # fmt: skip
        try:
            assert process.stdout
            yield json.loads(process.stdout.readline())["token"]
            assert process.wait(15) == 0
        finally:
            process.kill()
            process.communicate()


def at(folder: Path) -> GatewayProcess:
    """The gateway whose file is there already."""
    found = GatewayProcess(folder, {})
    found.file.unlink()
    found.file = folder / "gateway.yaml"
    found.command[-1] = str(found.file)
    return found


@pytest.mark.slow
def test_new_hardware_takes_the_place_of_a_gateway_that_is_dead(tmp_path: Path, capfd: pytest.CaptureFixture[str]) -> None:
    with mosquitto(tmp_path, **PATIENT) as machines, receiver(tmp_path) as far_end:
        plant = Plant(tmp_path, machines.url, far_end)
        new: GatewayProcess | None = None
        try:
            plant.host.start()
            plant.host.wait("broker_hosted")
            plant.old.start()
            plant.old.wait("broker_joined")
            plant.want({"pipelines": {"all": {"priority": 3}}})
            plant.old.wait("configuration_confirmed")
            _publish(machines, 0, 300)
            plant.old.delivers(far_end, "all", 300)
            plant.host.wait("said_for_another", what="kept", target="gw/press-1")
            far_end.kill()
            _publish(machines, 300, 300)
            until(lambda: waiting(plant.old) >= 300, "300 records that wait")
            old_identity = Identity.load(plant.old.data_dir / "identity")
            assert old_identity
            assert plant.lets_in(old_identity)
            plant.old.kill()
            far_end.start()

            home = tmp_path / "new"
            home.mkdir()
            if root := os.geteuid() == 0:  # `sudo`: what is written is for the user who has the folder
                os.chown(home, 12_345, 12_345)
            options = [
                "--folder",
                str(home),
                "--broker",
                plant.broker,
                "--json",
                "--outbox",
                str(plant.old.data_dir / "outbox.db"),
            ]
            with plant.token() as token:
                capfd.readouterr()
                assert cli.main(["gateway", "replace", "press-1", token, *options]) == 1
            said = json.loads(capfd.readouterr().out)
            assert said["secrets"] == ["devices-spare-url"]
            assert {each["step"]: each["state"] for each in said["steps"]} == {
                "identity": "done", "configuration": "done", "secret": "left", "model": "left", "outbox": "done"
            }  # fmt: skip
            if root:
                assert {each.stat().st_uid for each in home.rglob("*")} == {12_345}
            secret = subprocess.run(
                [sys.executable, "-m", "edge_runtime", "secret", "set", said["secrets"][0], said["file"]], input=b"confidential"
            )
            assert secret.returncode == 0
            capfd.readouterr()
            assert cli.main(["gateway", "replace", "press-1", *options]) == 0
            again = json.loads(capfd.readouterr().out)
            assert again["ready"]
            assert {each["state"] for each in again["steps"] if each["step"] != "model"} == {"already"}

            joined = Identity.load(home / "data" / "identity")
            assert joined
            assert plant.alice.take_roster(joined.signed_roster)
            new = at(home)
            new.start()
            new.wait("broker_joined")
            new.wait("model_fetched", model=MODEL, peer="g2")
            new.wait("model_offered")
            assert len(new.events("model_fetched")) == 1
            _publish(machines, 600, 100)
            new.delivers(far_end, "all", 700)
            assert_once(far_end, list(range(700)))
            until(lambda: (found := plant.reported()) is not None and found.state == "active", "its report")
            report = plant.reported()
            assert report
            assert report.config
            assert report.config["pipelines"]["all"]["priority"] == 3
            assert [each.state for each in report.layers if each.revision == REVISION] == ["accepted"]
            until(lambda: not plant.lets_in(old_identity), "the old certificate is refused")
            assert new.stop() == 0
            assert plant.host.stop() == 0
            assert far_end.stop()["gaps"] in ({}, [], 0)
        finally:
            for each in (plant.old, plant.host, new):
                if each is not None:
                    each.end()


def _publish(machines: Any, first: int, count: int) -> None:
    with publisher(machines, rate=2_000, count=count, first=first) as machine:
        machine.finish()
