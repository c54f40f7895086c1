"""TLS with the certificates of a site: among ourselves, and with a real mosquitto, whatever year its clock or ours shows."""

from __future__ import annotations

import asyncio
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import warnings
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from brokers import Broker, free_port, mosquitto
from clocks import told
from trusted import PASSPHRASE, Site, Still

from edge_runtime.bus import tls, wire
from edge_runtime.bus.member import Dress
from edge_runtime.ports import Address, BrokerError
from edge_runtime.trust.authority import Authority
from edge_runtime.trust.identity import Identity

YEARS = {"1970": "@1970-01-02 00:00:00", "now": "", "2100": "@2100-01-01 00:00:00"}

HELLO = bytes.fromhex("100d00044d51545404020005000161")
"""MQTT's CONNECT, as client `a`."""
WELCOME = bytes.fromhex("20020000")
KNOCK = """
import sys, time
from pathlib import Path
from edge_runtime.trust.identity import Identity
from test_trust_tls import knock
print(time.gmtime().tm_year, knock(Identity.load(Path(sys.argv[1])), int(sys.argv[2])).hex())
"""


@pytest.fixture
def site(tmp_path: Path) -> Site:
    return Site(tmp_path)


def as_client(identity: Identity) -> ssl.SSLContext:
    """As a member comes to any broker of its site."""
    return tls.context(Dress(identity)(Address(host="somewhere")))


def as_server(identity: Identity) -> ssl.SSLContext:
    """As mosquitto does with the files of a member."""
    context = ssl.SSLContext(ssl.PROTOCOL_TLS_SERVER)
    context.verify_mode = ssl.CERT_REQUIRED
    context.load_verify_locations(identity.ca_file)
    context.load_cert_chain(identity.cert_file, identity.key_file)
    return context


def shake(server: ssl.SSLContext, client: ssl.SSLContext) -> ssl.SSLObject:
    """A handshake in memory -> as the client sees it."""
    to_server, to_client = ssl.MemoryBIO(), ssl.MemoryBIO()
    ends = (
        server.wrap_bio(to_server, to_client, server_side=True),
        client.wrap_bio(to_client, to_server, server_side=False),
    )
    for _ in range(4):
        for end in (ends[1], ends[0]):
            try:
                end.do_handshake()
            except ssl.SSLWantReadError:
                continue
    for end in ends:  # with TLS 1.3 the server's refusal comes after the client's handshake
        try:
            end.read()
        except ssl.SSLWantReadError:
            continue
    return ends[1]


def meet(server: Identity, client: Identity) -> str:
    """-> whom the client has met."""
    subject = shake(as_server(server), as_client(client)).getpeercert() or {}
    return str(dict(part for parts in subject["subject"] for part in parts)["commonName"])


def test_nothing_is_prepared_for_a_place_where_nobody_listens(site: Site, monkeypatch: pytest.MonkeyPatch) -> None:
    """The host of a site's broker looks for rivals at each place, about once a second: at 1.4 ms each that was most of what it
    took while idle."""
    made: list[Address] = []
    monkeypatch.setattr(wire.tls, "context", made.append)
    with pytest.raises(BrokerError, match="refused"):
        asyncio.run(wire.dial(Dress(site.member("press-1"))(Address(host="127.0.0.1", port=free_port()))))
    assert not made


@pytest.mark.parametrize("says", [b"", b"SSH-2.0-a\r\n"])
def test_one_that_resets_the_connection_at_once_is_no_fault_of_ours(
    site: Site, monkeypatch: pytest.MonkeyPatch, says: bytes
) -> None:
    """As a broker does that ends. It is noticed before the first word of TLS, or at it."""
    member = site.member("m")
    with socket.create_server(("127.0.0.1", 0)) as server:

        def context(address: Address) -> ssl.SSLContext:
            connection, _ = server.accept()
            connection.sendall(says)
            connection.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
            connection.close()
            return made(address)

        made = tls.context
        monkeypatch.setattr(tls, "context", context)
        address = Dress(member)(Address(host="127.0.0.1", port=server.getsockname()[1]))
        with pytest.raises(BrokerError, match=r"reset|closed|broken pipe"):
            asyncio.run(wire.dial(address))


def test_members_meet(site: Site) -> None:
    press, alice = site.member("press-1"), site.member("alice", "engineer")
    assert meet(press, alice) == "press-1"
    assert meet(press, site.member("press-2")) == "press-1"


def test_a_person_is_no_server(site: Site) -> None:
    press, alice = site.member("press-1"), site.member("alice", "engineer")
    with pytest.raises(ssl.SSLCertVerificationError, match="purpose"):
        meet(alice, press)


def test_strangers_do_not_meet_members(site: Site, tmp_path: Path) -> None:
    press = site.member("press-1")
    other = Site(tmp_path, "plant-2").member("press-1")
    namesake = Authority.create(tmp_path / "false", "plant-1", PASSPHRASE, Still())
    site.authority, real = namesake, site.authority
    false = site.member("press-9")
    site.authority = real
    for stranger in (other, false):
        with pytest.raises(ssl.SSLError):
            meet(press, stranger)
        with pytest.raises(ssl.SSLError):
            meet(stranger, press)
    assert as_client(press).minimum_version is ssl.TLSVersion.TLSv1_2
    old = as_client(press)
    with warnings.catch_warnings(action="ignore", category=DeprecationWarning):
        old.minimum_version, old.maximum_version = ssl.TLSVersion.TLSv1, ssl.TLSVersion.TLSv1_1
    with pytest.raises(ssl.SSLError):
        shake(as_server(press), old)


def test_who_was_revoked_is_no_server_for_whoever_knows_it(site: Site) -> None:
    press, thief = site.member("press-1"), site.member("press-2")
    assert meet(thief, press) == "press-2", "a newer member than our roster: let in"
    site.authority.revoke("press-2", "stolen")
    press.take_roster(site.authority.roster())
    with pytest.raises(ssl.SSLCertVerificationError, match="revoked"):
        meet(thief, press)


@pytest.mark.parametrize("name", ["ca_file", "cert_file", "key_file"])
def test_files_that_have_gone_are_told(site: Site, name: str) -> None:
    press = site.member("press-1")
    getattr(press, name).unlink()
    with pytest.raises(BrokerError, match=r"press-1.*no such file"):
        as_client(press)


# --- a real broker ---------------------------------------------------------------------------------------------------


def faked(year: str) -> dict[str, str]:
    """Environment in which the clock shows another year, and goes on."""
    return told(YEARS[year]) if YEARS[year] else {}


def tls_broker(stack: ExitStack, folder: Path, host: Identity, crl: bytes, environment: dict[str, str]) -> Broker:
    (folder / "crl.pem").write_bytes(crl)
    settings: dict[str, Any] = {
        "allow_anonymous": "false",
        "cafile": host.ca_file,
        "certfile": host.cert_file,
        "keyfile": host.key_file,
        "crlfile": folder / "crl.pem",
        "require_certificate": "true",
        "use_identity_as_username": "true",
    }
    with pytest.MonkeyPatch.context() as patch:
        for name, value in environment.items():
            patch.setenv(name, value)
        return stack.enter_context(mosquitto(folder, **settings))


def knock(identity: Identity, port: int) -> bytes:
    """What a broker answers to a member; b"": it was not let in."""
    try:
        with (
            socket.create_connection(("127.0.0.1", port), 5) as plain,
            as_client(identity).wrap_socket(plain) as wrapped,
        ):
            wrapped.sendall(HELLO)
            return wrapped.recv(4)
    except (ssl.SSLError, ConnectionError):
        return b""


def knock_in(year: str, identity: Identity, port: int) -> bytes:
    """The same by a process whose clock shows another year."""
    command = [sys.executable, "-c", KNOCK, str(identity.folder), str(port)]
    here = Path(__file__).parent
    environment = {"PYTHONPATH": f"{here}:{here.parent}", **faked(year)}
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, env=environment, check=True)
    shown, _, answer = done.stdout.strip().partition(" ")
    assert shown == year
    return bytes.fromhex(answer)


def knock_plain(port: int) -> bytes:
    """As somebody without TLS."""
    try:
        with socket.create_connection(("127.0.0.1", port), 5) as plain:
            plain.sendall(HELLO)
            return plain.recv(4)
    except ConnectionError:
        return b""


@pytest.mark.parametrize("host_year", list(YEARS))
def test_a_broker_of_the_site_lets_its_members_in_whatever_the_clocks_show(tmp_path: Path, site: Site, host_year: str) -> None:
    if shutil.which("mosquitto") is None:
        pytest.skip("MISSING SYSTEM PACKAGE: mosquitto (apt-get install mosquitto)")
    host, press, alice, thief = site.member("host"), site.member("press-1"), site.member("alice", "viewer"), site.member("thief")
    stranger = Site(tmp_path, "plant-2").member("press-1")
    site.authority.revoke("thief", "stolen")
    with ExitStack() as stack:
        broker = tls_broker(stack, tmp_path, host, site.authority.crl(), faked(host_year))
        for member in (press, alice):
            assert knock(member, broker.port) == WELCOME
        for year in ("1970", "2100"):
            assert knock_in(year, press, broker.port) == WELCOME
        for nobody in (thief, stranger):
            assert knock(nobody, broker.port) == b""
        assert knock_plain(broker.port) == b""
        log = broker.log.read_text(errors="replace")
    assert "u'press-1'" in log
    assert "u'person:alice'" in log
    assert "u'thief'" not in log
