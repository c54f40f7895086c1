"""With a site: who gets into the hosted broker, what each one may do there, and whom our clients take for the site's broker."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import AsyncExitStack, asynccontextmanager, closing
from pathlib import Path
from typing import Any

import msgspec
import pytest
from brokers import free_port, mosquitto
from memberships import Births
from trusted import PASSPHRASE, Site
from waiting import until

from edge_runtime.board.system import SystemClock, SystemDice
from edge_runtime.bus import host, pipe, programs
from edge_runtime.bus import mosquitto as conf
from edge_runtime.bus.broker import PahoBus, PahoConnection
from edge_runtime.bus.host import BrokerHost
from edge_runtime.bus.member import Dress
from edge_runtime.config import Broker, Config, Mesh
from edge_runtime.mesh import membership
from edge_runtime.mesh.discovery import NoDiscovery
from edge_runtime.mesh.link import Link
from edge_runtime.mesh.membership import Membership
from edge_runtime.mesh.probing import CONNECT_S_MAX, Probes
from edge_runtime.ports import Address, Announcement, BrokerError, Endpoint, Message, Stranger, Will
from edge_runtime.trust.identity import Identity

pytestmark = pytest.mark.skipif(
    shutil.which("mosquitto", path=programs.PLACES) is None, reason="MISSING SYSTEM PACKAGE: mosquitto"
)

BUS = PahoBus()
NAME = "plant-1"
ROOT = f"edge/{NAME}"


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def info(self, event: str, **words: Any) -> None:
        self.lines.append((event, words))

    warning = error = info

    def events(self) -> list[str]:
        return [event for event, _ in self.lines]


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30), debug=True)


@asynccontextmanager
async def hosted(
    folder: Path, identity: Identity, log: Log | None = None, **settings: Any
) -> AsyncIterator[tuple[BrokerHost, Address]]:
    """The host, and its address as a stranger sees it: not dressed."""
    settings = {"mode": "hosted", "url": f"mqtt://127.0.0.1:{free_port()}", **settings}
    one = BrokerHost(Broker.model_validate(settings), folder / "broker", SystemClock(), SystemDice(), log or Log(), identity)
    where = await one.start()
    assert (where.tls, where.site_ca) == (True, True)
    supervisor = asyncio.create_task(one.run())
    try:
        yield one, Address(host=where.host, port=where.port)
    finally:
        await one.stop()
        await asyncio.wait_for(supervisor, 20)


@asynccontextmanager
async def connected(
    address: Address, identity: Identity | None = None, will: Will | None = None
) -> AsyncIterator[PahoConnection]:
    connection = await BUS.connect(address if identity is None else Dress(identity)(address), will=will)
    try:
        yield connection
    finally:
        await connection.close()


async def take(connection: PahoConnection, count: int) -> list[Message]:
    async with asyncio.timeout(10):
        return [await connection.receive() for _ in range(count)]


async def no_way_in(address: Address) -> BrokerError:
    with pytest.raises(BrokerError) as caught:
        async with connected(address):
            pytest.fail("the broker let it in")
    return caught.value


# --- who gets in -----------------------------------------------------------------------------------------------------


def test_without_a_certificate_of_the_site_nobody_gets_in_and_each_one_is_counted(tmp_path: Path) -> None:
    site, other = Site(tmp_path), Site(tmp_path, "plant-2")
    press, lost = site.member("press"), site.member("lost")
    site.authority.revoke("lost", "stolen")
    foreign = other.member("press")
    self_signed = own_certificate(tmp_path)

    async def main() -> None:
        log = Log()
        site.roster(press)
        async with hosted(tmp_path, press, log) as (broker, plain):
            ours = Dress(press)(plain)
            async with connected(ours):
                pass
            attempts = {
                "plain MQTT": plain,
                "no certificate": msgspec.structs.replace(ours, cert_file="", key_file=""),
                "self-signed": msgspec.structs.replace(ours, cert_file=str(self_signed), key_file=str(self_signed)),
                "another site": msgspec.structs.replace(ours, cert_file=str(foreign.cert_file), key_file=str(foreign.key_file)),
                "revoked": msgspec.structs.replace(ours, cert_file=str(lost.cert_file), key_file=str(lost.key_file)),
            }
            said = {name: str(await no_way_in(address)) for name, address in attempts.items()}
            assert "certificate required" in said["no certificate"]
            assert "is revoked" in said["revoked"]
            await until(lambda: broker.refused["certificate"] >= len(attempts))
            assert broker.refused == {
                "certificate": len(attempts),
                "password": 0,
                "full": 0,
                "publish": 0,
                "packet": 0,
                "will": 0,
            }
            assert "broker_refused" in log.events()

    run(main)


def own_certificate(folder: Path) -> Path:
    """Key and certificate in one file, with the name of a gateway, signed by itself."""
    file = folder / "own.pem"
    subject = f"/O={NAME}/OU=gateway/CN=press"
    command = [
        "openssl",
        "req",
        "-x509",
        "-newkey",
        "ed25519",
        "-nodes",
        "-subj",
        subject,
        "-days",
        "9",
        "-keyout",
        file,
        "-out",
        "-",
    ]
    certificate = subprocess.run(command, check=True, capture_output=True).stdout
    with file.open("ab") as out:
        out.write(certificate)
    return file


def test_a_flood_of_strangers_does_not_fill_the_disk(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(pipe, "LOG_BYTES_MAX", 500)
    monkeypatch.setattr(host, "LOOK_S", 0.02)
    press = Site(tmp_path).member("press")

    async def main() -> None:
        async with hosted(tmp_path, press) as (broker, plain):
            while broker.refused["certificate"] < 30:
                await no_way_in(plain)
                await asyncio.sleep(0.02)
            assert (tmp_path / "broker" / "broker.log").stat().st_size < 1_500

    run(main)


@pytest.mark.parametrize("hurry", [False, True])
def test_no_delayed_acknowledgement_of_the_kernel_in_a_round_trip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, hurry: bool
) -> None:
    """Linux delays one by 40 ms at least. The broker that a gateway hosts must not wait for any, and nobody asks the kernel to
    hurry there; with `hurry` the other way round: a mosquitto as Debian starts it, with a certificate of the site."""
    if hurry:
        monkeypatch.setattr(conf, "_SETTINGS", conf._SETTINGS.replace("set_tcp_nodelay true\n", ""))
    site = Site(tmp_path)
    press, saw = site.member("press"), site.member("saw")
    site.roster(press, saw)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            _, plain = await stack.enter_async_context(hosted(tmp_path, press))
            plain = msgspec.structs.replace(plain, hurry=hurry)
            one, two = [await stack.enter_async_context(connected(plain, each)) for each in (press, saw)]
            assert one._line._quickack == two._line._quickack == hurry
            await one.subscribe(f"{ROOT}/gw/press/+/saw")
            await two.subscribe(f"{ROOT}/gw/saw/+/press")
            took = []
            for _ in range(20):
                start = loop.time()
                await one.publish(f"{ROOT}/gw/saw/task/press", b"x", qos=1)
                two.acknowledge(await two.receive())
                await two.publish(f"{ROOT}/gw/press/reply/saw", b"y", qos=1)
                one.acknowledge(await one.receive())
                took.append(loop.time() - start)
            assert min(took[10:]) < 0.04

    run(main)


@pytest.mark.parametrize("when", ["1970-01-01 00:00:05", "2099-06-01 00:00:00"])
def test_a_host_with_a_wrong_clock_lets_members_in_and_the_revoked_not(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, when: str
) -> None:
    library = next(Path("/usr/lib").glob("*/faketime/libfaketime.so.1"), None)
    if library is None:
        pytest.skip("MISSING SYSTEM PACKAGE: libfaketime (apt-get install faketime)")
    site = Site(tmp_path)
    press, saw, lost = (site.member(name) for name in ("press", "saw", "lost"))
    site.authority.revoke("lost", "stolen")
    site.roster(press, saw)
    monkeypatch.setenv("LD_PRELOAD", str(library))
    monkeypatch.setenv("FAKETIME", f"@{when}")

    async def main() -> None:
        async with hosted(tmp_path, press) as (_, plain), connected(plain, saw) as connection:
            await connection.publish(f"{ROOT}/gw/saw/status", b"", qos=1)
            assert "revoked" in str(await no_way_in(Dress(lost)(plain)))

    run(main)


def test_the_embedded_broker_is_refused(tmp_path: Path) -> None:
    press = Site(tmp_path).member("press")

    async def main() -> None:
        with pytest.raises(BrokerError, match="iotcore lets clients without a certificate in") as caught:
            async with hosted(tmp_path, press, program="iotcore"):
                pass
        assert "mosquitto" in caught.value.hint

    run(main)


def test_every_listener_is_closed_and_nobody_is_warned_of_an_open_broker(tmp_path: Path) -> None:
    press = Site(tmp_path).member("press")

    async def main() -> None:
        log = Log()
        async with hosted(tmp_path, press, log, listen="::") as (_, plain):
            for address in ("127.0.0.1", "::1") if socket.has_ipv6 else ("127.0.0.1",):
                where = msgspec.structs.replace(plain, host=address)
                async with connected(where, press):
                    pass
                await no_way_in(where)
        assert "broker_open_to_network" not in log.events()

    run(main)


# --- who may do what -------------------------------------------------------------------------------------------------

GATEWAY = {
    "gw/{me}/status", "gw/{me}/load", "gw/{me}/config/reported", "gw/{me}/cmd/write/reply", "gw/{me}/data/p", "gw/{me}/result/p",
    "gw/{me}/event/p", "gw/{me}/gap/normal", "gw/{me}/batch/cloud", "gw/{me}/hello/cloud", "gw/saw/task/{me}",
    "gw/saw/reply/{me}", "gw/saw/receipt/{me}", "why/r", "roster",
}  # fmt: skip
SIGNED = {"gw/press/config/desired", "gw/saw/config/desired", "group/default/config/desired"}
COMMANDS = {"gw/press/cmd/write", "gw/saw/cmd/write"}
MAY: dict[str, set[str]] = {
    "press": {each.format(me="press") for each in GATEWAY} | SIGNED | {"brokers/press", "why/r/answer"},
    "newcomer": {each.format(me="newcomer") for each in GATEWAY},
    "alice": {each.format(me="person:alice") for each in GATEWAY} | SIGNED | COMMANDS | {"gw/press/receipt/alice"},
    "olaf": {each.format(me="person:olaf") for each in GATEWAY} | COMMANDS | {"gw/press/receipt/olaf"},
    "vera": {"why/r", "roster", "gw/press/receipt/vera"},
}
"""Of these topics, and of no other that anybody here may write. The broker's roster does not have the newcomer yet."""
OUTSIDE = {
    "edge/plant-2/gw/press/status", "press/status", "edge/status", "gw/press/status",
}  # fmt: skip
NEVER = {
    "gw/press/x", "gw/press/config/x", "gw/press/cmd/write/x", "gw/press/data/p/x", "gw/press/receipt/cloud", "gw/press/task/x",
    "gw/press/reply/x", "group/x", "group/a/b/config/desired", "brokers/x", "roster/x", "why", "why/r/x", "status", "x",
}  # fmt: skip


def test_each_one_may_write_its_own_and_nothing_else(tmp_path: Path) -> None:
    """Each of them tries every topic that any of them may write, and some that none may."""
    site = Site(tmp_path)
    roles: dict[str, Any] = {"press": "gateway", "saw": "gateway", "alice": "engineer", "olaf": "operator", "vera": "viewer"}
    members = {name: site.member(name, role) for name, role in roles.items()}
    site.roster(members["saw"])
    members["newcomer"] = site.member("newcomer")
    vera = {each.format(me="person:vera") for each in GATEWAY}
    topics = sorted(set().union(*MAY.values()) | vera | NEVER)

    async def main() -> None:
        async with hosted(tmp_path, members["saw"]) as (_, plain), connected(plain, members["saw"]) as watcher:
            await watcher.subscribe("#")
            for name in MAY:
                async with connected(plain, members[name]) as connection:
                    for topic in [*(f"{ROOT}/{each}" for each in topics), *OUTSIDE]:
                        await connection.publish(topic, name.encode(), qos=1)
            await watcher.publish(f"{ROOT}/brokers", b"end", qos=1)
            seen: dict[str, set[str]] = {name: set() for name in MAY}
            while (message := (await take(watcher, 1))[0]).payload != b"end":
                seen[message.payload.decode()].add(message.topic.removeprefix(f"{ROOT}/"))
            for name, allowed in MAY.items():
                assert seen[name] == allowed, name

    run(main)


def test_each_one_reads_the_site_and_nothing_of_the_broker(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, vera = site.member("press"), site.member("vera", "viewer")
    site.roster(press)

    async def main() -> None:
        async with hosted(tmp_path, press) as (_, plain), connected(plain, vera) as reader, connected(plain, press) as writer:
            await reader.subscribe("#", "$SYS/#")
            for topic in ("gw/press/status", "gw/press/result/p", "gw/saw/task/press", "brokers"):
                await writer.publish(f"{ROOT}/{topic}", b"", qos=1)
                assert [each.topic for each in await take(reader, 1)] == [f"{ROOT}/{topic}"]

    run(main)


def test_nobody_leaves_a_will_in_the_name_of_another(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, saw = site.member("press"), site.member("saw")
    site.roster(press, saw)

    async def main() -> None:
        async with hosted(tmp_path, press) as (_, plain), connected(plain, press) as watcher:
            await watcher.subscribe(f"{ROOT}/#")
            for name in ("saw", "press"):
                try:
                    connection = await BUS.connect(Dress(saw)(plain), will=Will(f"{ROOT}/gw/{name}/status", name.encode()))
                except BrokerError:
                    assert name == "press"
                else:
                    connection.abort()
            assert [each.payload for each in await take(watcher, 1)] == [b"saw"]
            await watcher.publish(f"{ROOT}/gw/press/load", b"end", qos=1)
            assert [each.payload for each in await take(watcher, 1)] == [b"end"]

    run(main)


# --- a new roster ----------------------------------------------------------------------------------------------------


def test_a_new_member_gets_its_rights_while_everybody_stays_connected(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press = site.member("press")

    async def main() -> None:
        log = Log()
        async with hosted(tmp_path, press, log) as (_, plain), connected(plain, press) as watcher:
            await watcher.subscribe(f"{ROOT}/#")
            alice = site.member("alice", "engineer")
            async with connected(plain, alice) as connection:
                await connection.publish(f"{ROOT}/gw/press/cmd/write", b"too early", qos=1)
                site.roster(press)
                async with asyncio.timeout(10):
                    for each in itertools.count():
                        await connection.publish(f"{ROOT}/gw/press/cmd/write", b"now", qos=1)
                        await connection.publish(f"{ROOT}/why/{each}", b"", qos=1)
                        if (await take(watcher, 1))[0].payload == b"now":
                            break
                        await asyncio.sleep(0.02)
        assert log.events() == ["broker_refused"]  # what came too early

    run(main)


def test_what_was_refused_before_a_restart_is_counted(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setattr(host, "LOOK_S", 20.0)
    site = Site(tmp_path)
    press, lost = site.member("press"), site.member("lost")
    site.roster(press, lost)

    async def main() -> None:
        async with hosted(tmp_path, press) as (broker, plain):
            async with connected(plain, lost) as connection:
                for _ in range(20):
                    await connection.publish(f"{ROOT}/gw/press/load", b"1", qos=1)
            site.authority.revoke("lost", "stolen")
            site.roster(press)
            broker.refresh_roster()  # it is started again
            await until(lambda: broker.refused["publish"] == 20)

    run(main)


def test_a_revoked_member_is_off_within_seconds_and_the_others_are_back(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, lost = site.member("press"), site.member("lost")
    site.roster(press, lost)

    async def main() -> None:
        log = Log()
        async with hosted(tmp_path, press, log) as (_, plain), connected(plain, lost) as stolen:
            async with connected(plain, press) as connection:
                await connection.publish(f"{ROOT}/gw/press/status", b"kept", qos=1, retain=True)
            site.authority.revoke("lost", "stolen")
            site.roster(press)
            with pytest.raises(BrokerError):
                async with asyncio.timeout(5):
                    await stolen.receive()
            assert "revoked" in str(await refused_once_it_is_back(Dress(lost)(plain)))
            async with connected(plain, press) as connection:
                await connection.subscribe(f"{ROOT}/gw/+/status")
                assert (await take(connection, 1))[0].payload == b"kept"
        assert log.events()[0] == "broker_restarted"
        assert "broker_died" not in log.events()

    run(main)


async def refused_once_it_is_back(address: Address) -> BrokerError:
    while True:
        error = await no_way_in(address)
        if "connection refused" not in error.cause:
            return error
        await asyncio.sleep(0.02)


def test_a_renewed_certificate_is_shown_without_a_restart(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press = site.member("press")

    async def main() -> None:
        async with hosted(tmp_path, press) as (_, plain), connected(plain, press) as connection:
            before = shown(plain, press)
            renewed = site.authority.renew("press")
            press.subject = msgspec.structs.replace(press.subject, not_after_s=press.not_after_s - 1)
            assert press.take_certificate(renewed)
            await until(lambda: shown(plain, press) != before)
            await connection.publish(f"{ROOT}/gw/press/load", b"", qos=1)

    run(main)


def shown(plain: Address, identity: Identity) -> str:
    command = [
        "openssl",
        "s_client",
        "-connect",
        f"{plain.host}:{plain.port}",
        "-cert",
        identity.cert_file,
        "-key",
        identity.key_file,
    ]
    said = subprocess.run(command, input=b"", capture_output=True).stdout.decode()
    return said[said.find("-----BEGIN") : said.find("-----END")]


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
            for identity in (press, lost, lost):
                probes = Probes(NAME, BUS, SystemClock(), SystemDice(), log, Dress(identity))
                for _ in range(2):
                    assert not (await probes.ask(Endpoint(plain.host, plain.port))).stranger
        assert log.events() == ["broker_refuses_us"] * 2

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
    if shutil.which("faketime") is None:
        pytest.skip("MISSING SYSTEM PACKAGE: faketime")
    ca, key, cert = (tmp_path / name for name in ("ca.pem", "key.pem", "cert.pem"))
    for each in (ca, key):
        subprocess.run(["openssl", "genpkey", "-algorithm", "ed25519", "-out", each.with_suffix(".key")], check=True)
    old = ["faketime", "2001-01-01", "openssl"]
    make = [*old, "req", "-x509", "-new", "-key", ca.with_suffix(".key"), "-subj", "/CN=ca", "-days", "9", "-out", ca]
    request = ["openssl", "req", "-new", "-key", key.with_suffix(".key"), "-subj", f"/O={NAME}/OU=gateway/CN=g"]
    sign = [*old, "x509", "-req", "-CA", ca, "-CAkey", ca.with_suffix(".key"), "-set_serial", "1", "-days", "9", "-out", cert]
    (tmp_path / "names").write_text("subjectAltName=IP:127.0.0.1")
    sign += ["-extfile", tmp_path / "names"]
    subprocess.run(make, check=True, capture_output=True)
    csr = subprocess.run(request, check=True, capture_output=True).stdout
    subprocess.run(sign, input=csr, check=True, capture_output=True)
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
                assert (local.port, local.tls, local.site_ca) == (port, True, True)
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
