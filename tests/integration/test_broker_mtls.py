"""With a site: who gets into the hosted broker, and what each one may do there."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
import subprocess
import time
from contextlib import AsyncExitStack
from pathlib import Path
from typing import Any

import msgspec
import pytest
from attackers import Raw, credentials, publish
from clocks import told
from hosted import BUS, connected, hosted, no_way_in, run, take
from keepers import Log
from trusted import Site, own_certificate
from waiting import until

from edge_runtime.bus import host, pipe, programs
from edge_runtime.bus import mosquitto as conf
from edge_runtime.bus.member import Dress
from edge_runtime.ports import Address, BrokerError, Will
from edge_runtime.trust.identity import Identity

pytestmark = pytest.mark.skipif(
    shutil.which("mosquitto", path=programs.PLACES) is None, reason="MISSING SYSTEM PACKAGE: mosquitto"
)

NAME = "plant-1"
ROOT = f"edge/{NAME}"
BURST, STILL_S = 30_000, 0.5
"""Ten times what the pipe holds."""


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


@pytest.mark.parametrize("quickack", [False, True])
def test_no_delayed_acknowledgement_of_the_kernel_in_a_round_trip(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, quickack: bool
) -> None:
    """Linux delays one by 40 ms at least. The broker that a gateway hosts must not wait for any, and nobody asks the kernel to
    hurry there; with `quickack` the other way round: a mosquitto as Debian starts it, with a certificate of the site."""
    if quickack:
        monkeypatch.setattr(conf, "_SETTINGS", conf._SETTINGS.replace("set_tcp_nodelay true\n", ""))
    site = Site(tmp_path)
    press, saw = site.member("press"), site.member("saw")
    site.roster(press, saw)

    async def main() -> None:
        loop = asyncio.get_running_loop()
        async with AsyncExitStack() as stack:
            _, plain = await stack.enter_async_context(hosted(tmp_path, press))
            plain = msgspec.structs.replace(plain, quickack=quickack)
            one, two = [await stack.enter_async_context(connected(plain, each)) for each in (press, saw)]
            assert one._line._quickack == two._line._quickack == quickack
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
    site = Site(tmp_path)
    press, saw, lost = (site.member(name) for name in ("press", "saw", "lost"))
    site.authority.revoke("lost", "stolen")
    site.roster(press, saw)
    for name, value in told(f"@{when}").items():
        monkeypatch.setenv(name, value)

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


def test_a_burst_is_counted_to_the_last_one_though_we_stand_still(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, evil = site.member("press"), site.member("evil")
    site.roster(press, evil)

    publishes = publish(f"{ROOT}/gw/press/load", b"1" * 50) * BURST

    async def main() -> None:
        async with hosted(tmp_path, press) as (broker, plain):
            with Raw(plain.port, credentials(who=evil)) as raw:
                sending = asyncio.create_task(asyncio.to_thread(raw.sock.sendall, publishes))
                await until(lambda: broker.refused["publish"])
                time.sleep(STILL_S)  # noqa: ASYNC251 - nobody looks meanwhile, and the pipe fills
                await sending
                await until(lambda: broker.refused["publish"] >= BURST)
            assert broker.refused["publish"] == BURST

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
