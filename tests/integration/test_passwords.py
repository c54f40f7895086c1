"""People of a site who come with name and password: real mosquitto, real mosquitto_pub and mosquitto_sub."""

from __future__ import annotations

import asyncio
import itertools
import shutil
import socket
import subprocess
from collections.abc import AsyncIterator, Iterator
from contextlib import asynccontextmanager, contextmanager
from dataclasses import dataclass
from pathlib import Path
from typing import Any

import msgspec
import pytest
from brokers import free_port
from gateways import gateway, until
from onlooking import Said, edge_runtime
from test_broker_mtls import COMMANDS as MAY_COMMAND
from test_broker_mtls import GATEWAY, NEVER, OUTSIDE, SIGNED, Log, connected, run, take
from test_site_people import settings
from trusted import PASSPHRASE, Site

from edge_runtime.board.system import SystemClock, SystemDice
from edge_runtime.bus import mosquitto, programs
from edge_runtime.bus.host import BrokerHost
from edge_runtime.cli import identity as identities
from edge_runtime.cli.site.opening import ENVIRONMENT
from edge_runtime.config import Broker
from edge_runtime.ports import Address, BrokerError
from edge_runtime.trust import passwords
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.roster import Role

pytestmark = [
    pytest.mark.skipif(programs.mosquitto() is None, reason="MISSING SYSTEM PACKAGE: mosquitto"),
    pytest.mark.skipif(shutil.which("mosquitto_pub") is None, reason="MISSING SYSTEM PACKAGE: mosquitto-clients"),
]

NAME = "plant-1"
ROOT = f"edge/{NAME}"
SECRETS = {name: f"{name} has a long password" for name in ("vera", "olaf", "alice")}
ROLES: dict[str, Role] = {"vera": "viewer", "olaf": "operator", "alice": "engineer"}
WRONG = "Connection Refused: not authorised"


def hashed(name: str, password: str = "") -> str:
    return passwords.hashed(password or SECRETS[name], name.encode().ljust(passwords.SALT_BYTES))


def member(site: Site, name: str) -> Identity:
    """A person with certificate and password."""
    identity = site.member(name, ROLES[name])
    site.authority.set_password(name, hashed(name))
    return identity


@dataclass
class Doors:
    """Of a broker that this process hosts. `members`: as a stranger sees it."""

    broker: BrokerHost
    log: Log
    members: Address
    people: Address

    def pub(self, *words: str, port: int = 0) -> subprocess.CompletedProcess[str]:
        """mosquitto_pub as somebody types it who has ca.pem."""
        command = ["mosquitto_pub", *self._at(port), "-q", "1", "-m", "from outside", *words]
        return subprocess.run(command, capture_output=True, text=True, timeout=10)

    @contextmanager
    def sub(self, name: str, topic: str) -> Iterator[subprocess.Popen[str]]:
        command = ["mosquitto_sub", *self._at(), "-u", name, "-P", SECRETS[name], "-v", "-d", "-t", topic]
        listener = subprocess.Popen(["stdbuf", "-oL", *command], stdout=subprocess.PIPE, text=True)
        assert listener.stdout
        try:
            while "SUBACK" not in listener.stdout.readline():
                assert listener.poll() is None
            yield listener
        finally:
            listener.kill()
            listener.communicate()

    def _at(self, port: int = 0) -> list[str]:
        return ["-h", "127.0.0.1", "-p", str(port or self.people.port), "--cafile", self.people.ca_file, "--insecure"]

    def by(self, name: str, password: str = "") -> Address:
        return msgspec.structs.replace(self.people, username=name, password=password or SECRETS[name])


@asynccontextmanager
async def doors(folder: Path, identity: Identity, listen: str = "127.0.0.1") -> AsyncIterator[Doors]:
    port, people = free_port(), free_port()
    said = {"mode": "hosted", "url": f"mqtt://127.0.0.1:{port}", "people_listen": f"{listen}:{people}"}
    log = Log()
    one = BrokerHost(Broker.model_validate(said), folder / "broker", SystemClock(), SystemDice(), log, identity)
    await one.start()
    supervisor = asyncio.create_task(one.run())
    at = Address(host="127.0.0.1", port=people, tls=True, site_ca=True, ca_file=str(identity.ca_file))
    try:
        yield Doors(one, log, Address(host="127.0.0.1", port=port), at)
    finally:
        await one.stop()
        await asyncio.wait_for(supervisor, 20)


# --- who may do what -------------------------------------------------------------------------------------------------


def test_with_a_password_each_one_may_do_what_it_may_with_its_certificate(tmp_path: Path) -> None:
    """And nothing of what a gateway of that name might."""
    site = Site(tmp_path)
    press = site.member("press")
    people = {name: member(site, name) for name in SECRETS}
    site.roster(press)
    own = {each.format(me=me) for each in GATEWAY for name in SECRETS for me in ("press", name, f"person:{name}")}
    topics = sorted(own | SIGNED | MAY_COMMAND | NEVER | {"gw/press/renewal/answer", "brokers/press", "brokers/olaf"})

    async def main() -> None:
        async with doors(tmp_path, press) as two, connected(two.members, press) as watcher:
            await watcher.subscribe("#")
            written: dict[str, set[str]] = {}
            for name, who in people.items():
                for way, address, as_whom in (("password", two.by(name), None), ("certificate", two.members, who)):
                    async with connected(address, as_whom) as connection:
                        for topic in [*(f"{ROOT}/{each}" for each in topics), *OUTSIDE]:
                            await connection.publish(topic, f"{name} {way}".encode(), qos=1)
            await watcher.publish(f"{ROOT}/brokers", b"end", qos=1)
            while (message := (await take(watcher, 1))[0]).payload != b"end":
                written.setdefault(message.payload.decode(), set()).add(message.topic.removeprefix(f"{ROOT}/"))
            for name in SECRETS:
                assert written[f"{name} password"] == written[f"{name} certificate"]
                assert not any(each.startswith(f"gw/{name}/") for each in written[f"{name} password"])
            assert "gw/press/cmd/write" in written["olaf password"] - written["vera password"]
            assert "gw/press/config/desired" in written["alice password"] - written["olaf password"]

    run(main)


def test_a_viewer_reads_and_what_it_says_is_dropped(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press = site.member("press")
    member(site, "vera"), member(site, "olaf")
    site.roster(press)

    async def main() -> None:
        async with doors(tmp_path, press) as two, connected(two.members, press) as writer:
            await writer.subscribe(f"{ROOT}/gw/press/#")
            with two.sub("vera", f"{ROOT}/#") as screen:
                for name, topic in (("vera", "cmd/write"), ("vera", "load"), ("olaf", "cmd/drain")):
                    words = ["-u", name, "-P", SECRETS[name], "-t", f"{ROOT}/gw/press/{topic}"]
                    said = await asyncio.to_thread(two.pub, *words)
                    assert said.returncode == 0, said.stderr  # a broker answers also what it drops
                assert [each.topic for each in await take(writer, 1)] == [f"{ROOT}/gw/press/cmd/drain"]
                assert screen.stdout
                while not (line := await asyncio.to_thread(screen.stdout.readline)).startswith(ROOT):
                    assert line
                assert line == f"{ROOT}/gw/press/cmd/drain from outside\n"

    run(main)


# --- who gets in -----------------------------------------------------------------------------------------------------


def test_who_has_not_the_password_is_refused_and_counted_and_no_door_takes_the_key_of_the_other(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, alice = site.member("press"), site.member("alice", "engineer")
    member(site, "olaf")
    site.roster(press)
    cert = ["--cert", str(press.cert_file), "--key", str(press.key_file)]
    topic = ["-t", f"{ROOT}/gw/press/cmd/write"]

    async def main() -> None:
        async with doors(tmp_path, press) as two:
            wrong = {
                "another password": ["-u", "olaf", "-P", "not his password at all"],
                "no password": ["-u", "olaf"],
                "nobody": [],
                "one who has only a certificate": ["-u", "alice", "-P", "x"],
                "as the broker calls her at the other door": ["-u", "person:alice", "-P", "x"],
                "a gateway's certificate": cert,
                "a gateway's certificate and name": [*cert, "-u", "press", "-P", "x"],
                "a gateway's certificate, and his name": [*cert, "-u", "olaf", "-P", "x"],
            }
            password = ["-u", "olaf", "-P", SECRETS["olaf"]]
            said = await asyncio.to_thread(two.pub, *password, *topic, port=two.members.port)
            assert said.returncode not in (0, 5)  # it is no certificate
            for words in wrong.values():
                said = await asyncio.to_thread(two.pub, *words, *topic)
                assert (said.returncode, WRONG in said.stderr) == (5, True), (words, said.stderr)
            async with connected(two.members, press) as watcher:  # and beside one it is not looked at
                await watcher.subscribe(f"{ROOT}/#")
                both = [*password, "--cert", str(alice.cert_file), "--key", str(alice.key_file)]
                for who in ("person:alice", "person:olaf", "olaf"):
                    at = f"{ROOT}/gw/{who}/load"
                    assert (await asyncio.to_thread(two.pub, *both, "-t", at, port=two.members.port)).returncode == 0
                await watcher.publish(f"{ROOT}/gw/press/load", b"end", qos=1)
                assert [each.topic for each in await take(watcher, 2)] == [
                    f"{ROOT}/gw/{who}/load" for who in ("person:alice", "press")
                ]
            counts = two.broker.refused
            for _ in range(500):
                if sum(counts.values()) >= len(wrong) + 3:
                    break
                await asyncio.sleep(0.02)
            assert dict(counts) == {"certificate": 1, "password": len(wrong), "full": 0, "publish": 2, "packet": 0, "will": 0}
            assert ("broker_refused", "wrong user name or password") in [
                (name, words.get("cause")) for name, words in two.log.lines
            ]

    run(main)


def test_who_only_connects_keeps_no_member_out(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A stranger may open connections at the door for passwords, and say nothing: there are so many, and no more."""
    monkeypatch.setattr(mosquitto, "PASSWORD_CLIENTS_MAX", 3)
    site = Site(tmp_path)
    press = site.member("press")
    member(site, "olaf")
    site.roster(press)

    async def main() -> None:
        async with doors(tmp_path, press) as two:
            idle = [socket.create_connection(("127.0.0.1", two.people.port)) for _ in range(3)]
            with pytest.raises(BrokerError):
                async with connected(two.by("olaf")):
                    pass
            async with connected(two.members, press):
                pass
            for each in idle:
                each.close()
            async with asyncio.timeout(10):
                while not two.broker.refused["full"]:  # noqa: ASYNC110
                    await asyncio.sleep(0.02)

    run(main)


def test_without_a_look_at_the_host_name_the_chain_is_looked_at(tmp_path: Path) -> None:
    """What `--insecure` leaves of it; and without, where the name of the host is the gateway's."""
    site, other = Site(tmp_path), Site(tmp_path, "plant-2").member("press")
    local = site.member("localhost")
    member(site, "olaf")
    site.roster(local)

    async def main() -> None:
        async with doors(tmp_path, local) as two:
            base = [
                "mosquitto_pub",
                "-p",
                str(two.people.port),
                "-u",
                "olaf",
                "-P",
                SECRETS["olaf"],
                "-t",
                f"{ROOT}/why/x",
                "-m",
                "",
            ]
            ours, theirs = ["--cafile", str(local.ca_file)], ["--cafile", str(other.ca_file)]
            for words, good in (
                ([*ours, "--insecure", "-h", "127.0.0.1"], True),
                ([*theirs, "--insecure", "-h", "127.0.0.1"], False),
                ([*ours, "-h", "127.0.0.1"], False),
                ([*ours, "-h", "localhost"], True),
            ):
                said = await asyncio.to_thread(subprocess.run, [*base, *words], capture_output=True, timeout=10)
                assert (said.returncode == 0) is good, (words, said.stderr)

    run(main)


# --- a new roster ----------------------------------------------------------------------------------------------------


async def out(address: Address) -> None:
    """Returns when the broker takes this password no more."""
    async with asyncio.timeout(10):
        while True:
            try:
                async with connected(address):
                    await asyncio.sleep(0.02)
            except BrokerError as error:
                if "not authorized" in error.cause:
                    return
                await asyncio.sleep(0.02)


@pytest.mark.parametrize("how", ["removed", "changed", "revoked"])
def test_who_loses_the_password_is_out_within_seconds(tmp_path: Path, how: str) -> None:
    site = Site(tmp_path)
    press = site.member("press")
    member(site, "olaf"), member(site, "vera")
    site.roster(press)

    async def main() -> None:
        async with doors(tmp_path, press) as two, connected(two.by("olaf")) as his, connected(two.by("vera")) as screen:
            await screen.subscribe(f"{ROOT}/#")
            if how == "revoked":
                site.authority.revoke("olaf", "left")
            else:
                site.authority.set_password("olaf", "" if how == "removed" else hashed("olaf", "another password"))
            site.roster(press)
            with pytest.raises(BrokerError):
                async with asyncio.timeout(5):
                    await his.receive()
            await out(two.by("olaf"))
            if how == "changed":
                async with connected(two.by("olaf", "another password")):
                    pass
            if how != "revoked":  # then all have to come again
                async with connected(two.members, press) as writer:
                    await writer.publish(f"{ROOT}/gw/press/load", b"", qos=1)
                    await take(screen, 1)
                assert "broker_restarted" not in two.log.events()

    run(main)


def test_who_gets_a_password_comes_in_while_everybody_stays_connected(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, olaf = site.member("press"), site.member("olaf", "operator")
    site.roster(press)

    async def main() -> None:
        async with doors(tmp_path, press, "[::]") as two, connected(two.members, olaf) as his:
            with pytest.raises(BrokerError):
                async with connected(two.by("olaf")):
                    pass
            site.authority.set_password("olaf", hashed("olaf"))
            site.roster(press)
            async with asyncio.timeout(10):
                for each in itertools.count():
                    try:
                        async with connected(two.by("olaf")) as connection:
                            await connection.publish(f"{ROOT}/why/{each}", b"", qos=1)
                            break
                    except BrokerError:
                        await asyncio.sleep(0.02)
            await his.publish(f"{ROOT}/why/still", b"", qos=1)
        assert [each for each in two.log.events() if each != "broker_refused"] == []

    run(main)


@pytest.mark.parametrize("program", ["mosquitto", "iotcore"])
def test_without_a_site_there_are_no_passwords(tmp_path: Path, program: str) -> None:
    said = {"mode": "hosted", "url": f"mqtt://127.0.0.1:{free_port()}", "people_listen": "127.0.0.1:8884", "program": program}
    one = BrokerHost(Broker.model_validate(said), tmp_path / "broker", SystemClock(), SystemDice(), Log())
    with pytest.raises(BrokerError, match=r"broker\.people_listen: this gateway belongs to no site") as caught:
        asyncio.run(one.start())
    assert "edge-runtime join" in caught.value.hint


# --- a gateway -------------------------------------------------------------------------------------------------------


def typed(name: str, port: int, ca: Path, *words: str) -> Said:
    """At a terminal, as a person who has ca.pem and a password."""
    where = ["--ca", str(ca), "--broker", f"mqtts://{name}:secret:{name}@127.0.0.1:{port}"]
    return asyncio.run(edge_runtime(*words, *where))


def rostered(port: int, ca: Path, name: str = "olaf") -> list[str]:
    """mosquitto's words for this person, once the gateway has told the broker who belongs to the site."""
    at = ["-h", "127.0.0.1", "-p", str(port), "--cafile", str(ca), "--insecure", "-u", name, "-P", SECRETS[name], "-q", "1"]
    subprocess.run(["mosquitto_sub", *at, "-t", f"{ROOT}/roster", "-C", "1", "-W", "20"], check=True, capture_output=True)
    return at


@pytest.fixture
def _at_a_terminal(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(ENVIRONMENT, PASSPHRASE)
    monkeypatch.delenv(identities.ENVIRONMENT, raising=False)
    for name, secret in SECRETS.items():
        monkeypatch.setenv(f"EDGE_RUNTIME_SECRET_{name.upper()}", secret)


@pytest.mark.usefixtures("_at_a_terminal")
def test_a_command_by_password_counts_where_the_policy_says_so(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, saw = site.member("press"), site.member("saw")
    member(site, "olaf"), member(site, "alice")
    site.roster(press, saw)
    port, people = free_port(), free_port()
    loose: dict[str, Any] = {"control": {"require_signature": ["engineer"]}}
    first = settings(press, port, mode="hosted", people_listen=f"127.0.0.1:{people}") | loose
    with gateway(tmp_path / "a", first) as one, gateway(tmp_path / "b", settings(saw, port, mode="external")) as other:
        one.wait("peer_alive", peer="saw")
        at = rostered(people, press.ca_file)
        said = typed("olaf", people, press.ca_file, "command", "press", "drain", "resume=true", "--json")
        assert said.status == 0, said.error
        assert said.json["outcome"] == "done"
        one.wait("command", verb="drain", by="olaf", outcome="done")
        said = typed("olaf", people, press.ca_file, "command", "saw", "drain", "resume=true")
        assert (said.status, other.events("command_refused")) == (1, [])
        assert "saw takes commands only signed, and with a password nothing is" in said.error
        assert "control.require_signature" in said.error
        pub = ["mosquitto_pub", *at, "-m", '{"id":"1","issuer":"person:olaf"}', "-t"]
        for name in ("press", "saw"):
            subprocess.run([*pub, f"{ROOT}/gw/{name}/cmd/drain"], check=True, timeout=10)
        alice = [each.replace("olaf", "alice") for each in pub]  # configures, but only signed
        subprocess.run([*alice, f"{ROOT}/gw/press/config/desired"], check=True, timeout=10)
        one.wait("configuration_refused", reason="unsigned")
        refused = other.wait("command_refused", reason="unsigned")
        assert "control.require_signature" in refused["cause"]
        one.wait("command", id="1", by="person:olaf (not signed)", outcome="refused")  # it says no expiry


@pytest.mark.usefixtures("_at_a_terminal")
def test_by_password_a_gateway_is_configured_where_its_file_wants_no_signature_at_all(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press = site.member("press")
    member(site, "vera"), member(site, "alice")
    site.roster(press)
    people = free_port()
    loose: dict[str, Any] = {"control": {"require_signature": False}}
    with gateway(tmp_path / "a", settings(press, free_port(), mode="hosted", people_listen=f"127.0.0.1:{people}") | loose) as one:
        until(lambda: opens(people), "the port")
        rostered(people, press.ca_file, "vera")
        at = ["-t", f"{ROOT}/gw/press/config/desired", "-r", "-m", '{"patch": {"log": {"level": "debug"}}}']
        subprocess.run(["mosquitto_pub", *rostered(people, press.ca_file, "alice"), *at], check=True, timeout=10)
        one.wait("configuration_on_trial", by="somebody on the broker")
        said = typed("alice", people, press.ca_file, "config", "set", "press", "log.level=warning", "--dry-run")
        assert "log.level: debug -> warning" in said.out, said.error  # it builds on the first, which nobody has signed
        said = typed("vera", people, press.ca_file, "config", "get", "press", "log.level")
        assert (said.status, "debug" in said.out) == (0, True)
        said = typed("vera", people, press.ca_file, "command", "press", "drain")
        assert (said.status, "vera is viewer, who never commands gateways" in said.error) == (1, True)


def opens(port: int) -> bool:
    try:
        socket.create_connection(("127.0.0.1", port), 0.5).close()
    except OSError:
        return False
    return True
