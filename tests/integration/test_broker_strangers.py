"""Whom our clients take for a broker of their site, and what they tell anybody else: nothing."""

from __future__ import annotations

import asyncio
import os
import shutil
import socket
import subprocess
from contextlib import closing
from pathlib import Path

import pytest
from brokers import free_port, mosquitto
from clocks import told
from hosted import BUS, connected, hosted, run
from keepers import Log
from memberships import Births
from trusted import PASSPHRASE, Site, own_certificate
from waiting import until

from edge_runtime.board.system import SystemClock, SystemDice
from edge_runtime.bus import programs
from edge_runtime.bus.host import BrokerHost
from edge_runtime.bus.member import Dress
from edge_runtime.config import Broker, Config, Mesh
from edge_runtime.mesh import membership
from edge_runtime.mesh.discovery import NoDiscovery
from edge_runtime.mesh.link import Link
from edge_runtime.mesh.membership import Membership
from edge_runtime.mesh.probing import CONNECT_S_MAX, Probes
from edge_runtime.ports import Address, BrokerError, Revoked, Stranger
from edge_runtime.ports_mesh import Announcement, Endpoint
from edge_runtime.trust.identity import Identity

pytestmark = pytest.mark.skipif(
    shutil.which("mosquitto", path=programs.PLACES) is None, reason="MISSING SYSTEM PACKAGE: mosquitto"
)

NAME = "plant-1"
ROOT = f"edge/{NAME}"
CERTIFICATE_REVOKED = bytes.fromhex("15 03 03 0002 02 2c")
"""A fatal alert of TLS."""


# --- whom our clients take for a broker of the site ------------------------------------------------------------------


def test_a_certificate_that_makes_no_gateway_makes_no_broker(tmp_path: Path) -> None:
    """Neither as people get them from the authority, nor one that says that it may be a server."""
    site = Site(tmp_path)
    press, eve = site.member("press"), site.member("eve", "engineer")
    loose = resigned(site, eve, tmp_path / "loose.pem")
    for certificate, says in ((eve.cert_file, "purpose"), (loose, "person:eve")):
        lines = {"cafile": press.ca_file, "certfile": certificate, "keyfile": eve.key_file}
        with mosquitto(tmp_path, **lines) as broker:
            with pytest.raises(Stranger, match=says):
                asyncio.run(BUS.connect(Dress(press)(broker.address())))
            assert "New client connected" not in broker.log.read_text()


def resigned(site: Site, member: Identity, file: Path) -> Path:
    """Its certificate without any word of what it is for."""
    folder = site.authority.folder
    subject = f"/O={site.name}/OU=engineer/CN=person:{member.name}"
    request = ["openssl", "req", "-new", "-key", member.key_file, "-subj", subject]
    sign = ["openssl", "x509", "-req", "-CA", folder / "ca.pem", "-CAkey", folder / "ca-key.pem", "-passin", f"pass:{PASSPHRASE}"]
    csr = subprocess.run(request, check=True, capture_output=True).stdout
    file.write_bytes(subprocess.run([*sign, "-set_serial", "7"], input=csr, check=True, capture_output=True).stdout)
    return file


def test_a_revoked_gateway_makes_no_broker_for_those_who_know_it(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, saw, lost = (site.member(name) for name in ("press", "saw", "lost"))
    site.authority.revoke("lost", "stolen")
    site.roster(press)

    async def main() -> None:
        async with hosted(tmp_path, lost) as (_, plain):
            with pytest.raises(Stranger, match="revoked"):
                await BUS.connect(Dress(press)(plain))
            async with connected(plain, saw):
                pass  # it has not heard of it

    run(main)


def test_who_was_off_when_it_was_revoked_says_so_when_a_broker_of_the_site_does(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, lost = site.member("press"), site.member("lost")
    site.roster(press, lost)
    site.authority.revoke("lost", "stolen")
    site.roster(press)

    async def main() -> None:
        log = Log()
        async with hosted(tmp_path, press) as (_, plain):
            with pytest.raises(Revoked, match=r"our certificate is revoked.*join --roster"):
                await BUS.connect(Dress(lost)(plain))
            for identity in (press, lost, lost):
                probes = Probes(NAME, BUS, SystemClock(), SystemDice(), log, Dress(identity))
                for _ in range(2):
                    assert not (await probes.ask(Endpoint(plain.host, plain.port))).stranger
        assert log.events() == ["broker_refuses_us"] * 2

    run(main)


def test_a_stranger_who_says_that_we_are_revoked_is_not_believed(tmp_path: Path) -> None:
    """It takes seven bytes, and no certificate."""
    press, log = Site(tmp_path).member("press"), Log()

    async def alert(_: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(CERTIFICATE_REVOKED)
        writer.close()

    async def main() -> None:
        async with await asyncio.start_server(alert, "127.0.0.1", 0) as server:
            where = Endpoint(*server.sockets[0].getsockname())
            with pytest.raises(BrokerError, match="revoked") as raised:
                await BUS.connect(Dress(press)(Address(host=where.host, port=where.port)))
            assert not isinstance(raised.value, Revoked)
            assert not (await Probes(NAME, BUS, SystemClock(), SystemDice(), log, Dress(press)).ask(where)).ours
        assert not log.events()

    run(main)


def test_strangers_are_passed_over_quickly_told_nothing_logged_once_and_counted(tmp_path: Path) -> None:
    press, foreign = Site(tmp_path).member("press"), Site(tmp_path, "plant-2").member("press")
    own = own_certificate(tmp_path)
    theirs = {"cafile": foreign.ca_file, "certfile": foreign.cert_file, "keyfile": foreign.key_file}
    with (
        mosquitto(tmp_path) as plain,
        mosquitto(tmp_path, certfile=own, keyfile=own) as self_signed,
        mosquitto(tmp_path, **theirs) as other_site,
        closing(socket.create_server(("127.0.0.1", 0))) as ear,
    ):
        log = Log()

        async def main() -> None:
            probes = Probes(NAME, BUS, SystemClock(), SystemDice(), log, Dress(press))
            for times in (1, 2, 3):
                for broker in (plain, self_signed, other_site):
                    async with asyncio.timeout(CONNECT_S_MAX):
                        answer = await probes.ask(Endpoint("127.0.0.1", broker.port))
                    assert (answer.stranger, answer.ours, answer.silent) == (True, False, False)
                    assert probes.strangers[f"127.0.0.1:{broker.port}"] == times
            assert log.events() == ["broker_not_ours"] * 3
            asking = asyncio.create_task(probes.ask(Endpoint("127.0.0.1", ear.getsockname()[1])))
            heard = await asyncio.to_thread(listen, ear)
            assert heard.startswith(b"\x16\x03")  # TLS, a ClientHello
            assert not any(each in heard for each in (b"MQTT", b"press", NAME.encode()))
            assert (await asking).stranger

        run(main)
        for broker in (plain, self_signed, other_site):
            assert "New client connected" not in broker.log.read_text()


def listen(ear: socket.socket) -> bytes:
    """The first words of whoever comes; then it is sent away."""
    connection, _ = ear.accept()
    with connection:
        return connection.recv(65_536)


def test_a_broker_of_the_site_with_dates_that_are_over_is_taken(tmp_path: Path) -> None:
    """Clocks are wrong on both sides; the authority's certificates say so, but so may those of another maker."""
    ca, key, cert = (tmp_path / name for name in ("ca.pem", "key.pem", "cert.pem"))
    for each in (ca, key):
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", each.with_suffix(".key")], check=True)
    old = os.environ | told("@2001-01-01 00:00:00")
    make = ["openssl", "req", "-x509", "-new", "-key", ca.with_suffix(".key"), "-subj", "/CN=ca", "-days", "9", "-out", ca]
    request = ["openssl", "req", "-new", "-key", key.with_suffix(".key"), "-subj", f"/O={NAME}/OU=gateway/CN=g"]
    sign = [
        "openssl",
        "x509",
        "-req",
        "-CA",
        ca,
        "-CAkey",
        ca.with_suffix(".key"),
        "-set_serial",
        "1",
        "-days",
        "9",
        "-out",
        cert,
    ]
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1")
    sign += ["-extfile", tmp_path / "names"]
    subprocess.run(make, env=old, check=True, capture_output=True)
    csr = subprocess.run(request, check=True, capture_output=True).stdout
    subprocess.run(sign, env=old, input=csr, check=True, capture_output=True)
    with mosquitto(tmp_path, cafile=ca, certfile=cert, keyfile=key.with_suffix(".key")) as broker:

        async def main() -> None:
            async with connected(broker.address(tls=True, site_ca=True, ca_file=str(ca))):
                pass
            with pytest.raises(BrokerError, match="expired"):  # anybody else's broker is judged as ever
                await BUS.connect(broker.address(tls=True, ca_file=str(ca)))

        run(main)


# --- gateways --------------------------------------------------------------------------------------------------------


def test_two_gateways_of_a_site_meet_on_one_broker_and_pass_a_strangers_by(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, saw = site.member("press"), site.member("saw")
    site.roster(press, saw)
    with mosquitto(tmp_path) as stranger:

        async def main() -> None:
            port, log = free_port(), Log()
            hosts, joins = Gateway(press, tmp_path, port, log, "hosted"), Gateway(saw, tmp_path, free_port(), log, "auto")
            joins.start(stranger.port, port)
            hosts.start()
            try:
                await until(lambda: "saw" in hosts.births.heard and "press" in joins.births.heard)
                local = joins.membership.local()
                assert local is not None
                assert (local.port, local.tls, local.site_ca, local.quickack) == (port, True, True, False)
                async with connected(local):
                    pass
                await until(lambda: joins.membership.strangers)
                assert list(joins.membership.strangers) == [f"127.0.0.1:{stranger.port}"]
            finally:
                await hosts.stop()
                await joins.stop()

        run(main)
        assert "New client connected" not in stranger.log.read_text()


def test_a_gateway_leaves_the_broker_of_one_that_is_revoked(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(membership, "LEARN_S", 0.1)
    site = Site(tmp_path)
    lost, saw = site.member("lost"), site.member("saw")
    site.roster(lost, saw)

    async def main() -> None:
        port, log = free_port(), Log()
        hosts, joins = Gateway(lost, tmp_path, port, log, "hosted"), Gateway(saw, tmp_path, free_port(), log, "auto")
        hosts.start()
        joins.start(port)
        try:
            await until(lambda: joins.membership.state.host == "lost")
            site.authority.revoke("lost", "stolen")
            site.roster(saw)
            await until(lambda: joins.membership.state.host == "saw")  # it hosts itself
            assert hosts.membership.state.role == "host"  # the other one knows nothing, or does not care
            assert f"127.0.0.1:{port}" in joins.membership.strangers
        finally:
            await hosts.stop()
            await joins.stop()

    run(main)


class Gateway:
    """A membership and nothing else, on loopback."""

    def __init__(self, identity: Identity, folder: Path, port: int, log: Log, mode: str) -> None:
        self.identity, self.folder, self.port, self.log, self.mode = identity, folder, port, log, mode

    def start(self, *peers: int) -> None:
        name, clock, dice = self.identity.name, SystemClock(), SystemDice()
        settings = Config.model_construct(
            site=NAME, gateway=name,
            broker=Broker.model_validate({"mode": self.mode, "url": f"mqtt://127.0.0.1:{self.port}"}),
            mesh=Mesh.model_validate({"discovery": "off", "peers": [f"127.0.0.1:{each}" for each in peers]}),
        )  # fmt: skip
        link = Link(NAME, name, dice.token(), self.log)
        self.births = Births(link, settings)
        me = Announcement(site=NAME, gateway=name, instance=link.instance, role="guest")
        self.membership = Membership(
            settings, me, link, BUS, NoDiscovery(),
            lambda: BrokerHost(settings.broker, self.folder / name / "broker", clock, dice, self.log, self.identity),
            clock, dice, self.log, self.births.will, self.births.alive, Dress(self.identity),
        )  # fmt: skip
        self.births.endpoints = self.membership.endpoints
        self.running = asyncio.create_task(self.membership.run())

    async def stop(self) -> None:
        self.running.cancel()
        await asyncio.wait([self.running])
