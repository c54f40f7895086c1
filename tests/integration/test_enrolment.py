"""A gateway joins a site over the network: both ends, real TLS, and whoever stands between them."""

from __future__ import annotations

import asyncio
import contextlib
import gc
import os
import shutil
import socket
import ssl
import struct
import subprocess
import sys
import time
import weakref
from collections.abc import AsyncIterator, Awaitable, Callable, Iterator
from contextlib import asynccontextmanager
from dataclasses import dataclass, field
from pathlib import Path

import pytest
from clocks import told
from msgspec.structs import replace

from edge_runtime import cli
from edge_runtime.board.system import SystemClock
from edge_runtime.cli import join
from edge_runtime.cli.site import opening
from edge_runtime.ports import EdgeError
from edge_runtime.records import Stamp
from edge_runtime.trust import certificates, desk, enrolment, files, joining, token
from edge_runtime.trust.authority import Authority
from edge_runtime.trust.enrolment import Event, Expired
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.joining import Interrupted, NotEnrolled, Refused, Stranger
from edge_runtime.trust.keys import PrivateKey
from edge_runtime.trust.token import Token

PASSPHRASE = "correct horse"
SECRET = b"the secret is 16"
PATIENCE_S = 20.0
BLIND = ssl.SSLContext(ssl.PROTOCOL_TLS_CLIENT)
BLIND.check_hostname, BLIND.verify_mode = False, ssl.CERT_NONE


class HandClock:
    """Goes when it is told to."""

    def __init__(self) -> None:
        self.ns = 0

    def mono_ns(self) -> int:
        return self.ns

    def now(self) -> Stamp:
        return Stamp("boot", self.ns, 0, False)


@dataclass
class Waiting:
    """The authority's end, which waits for g1."""

    token: Token
    clock: HandClock
    task: asyncio.Task[None]
    events: list[Event] = field(default_factory=list)

    def said(self, kind: str) -> list[str]:
        return [event.cause for event in self.events if event.event == kind]


@pytest.fixture(scope="module")
def plant(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """The authority's folder of the site "plant"; it is copied for each test."""
    folder = tmp_path_factory.mktemp("sites") / "plant"
    Authority.create(folder, "plant", PASSPHRASE, SystemClock())
    return folder


@pytest.fixture
def authority(plant: Path, tmp_path: Path) -> Authority:
    return Authority.open(Path(shutil.copytree(plant, tmp_path / "plant-site")), PASSPHRASE, SystemClock())


def _server_tls(authority: Authority, folder: Path, certificate: Callable[[PrivateKey], bytes] | None = None) -> ssl.SSLContext:
    key = PrivateKey.generate()
    key.save(folder / "desk-key.pem")
    (folder / "desk.pem").write_bytes(certificate(key) if certificate else authority.desk(key.public))
    return enrolment.tls(str(folder / "desk.pem"), str(folder / "desk-key.pem"))


@asynccontextmanager
async def waiting(
    authority: Authority, *, host: str = "127.0.0.1", expires_ns: int = 10**12, again: bool = False
) -> AsyncIterator[Waiting]:
    listening = enrolment.listen(host, 0)
    made = _token(authority, listening.getsockname()[1])
    clock, events = HandClock(), list[Event]()
    serving = enrolment.serve(
        desk.Desk(made, expires_ns),
        listening,
        _server_tls(authority, authority.folder),
        authority.ca.decode(),
        lambda request: opening.certify(authority, request.csr, "g1", "gateway", replace=again),
        clock,
        events.append,
    )
    task = asyncio.create_task(serving)
    await asyncio.sleep(0)  # now it waits
    try:
        yield Waiting(made, clock, task, events)
    finally:
        task.cancel()
        await asyncio.gather(task, return_exceptions=True)


def _token(authority: Authority, port: int, *hosts: str) -> Token:
    mark = token.ca_mark(ssl.PEM_cert_to_DER_cert(authority.ca.decode()))
    return Token(site="plant", gateway="g1", hosts=hosts or ("127.0.0.1",), port=port, ca=mark, secret=SECRET)


async def _joins(made: Token, folder: Path) -> Identity:
    """As `edge-runtime join` does."""
    place = join.Place(folder)
    identity = Identity.load(folder)
    key = identity.key if identity else Identity.begin(folder)
    csr = certificates.request(key, made.gateway).decode()
    async with asyncio.timeout(PATIENCE_S):
        return await join._join(token.read(token.text(made)), csr, place, identity)


def _run(test: Awaitable[None]) -> None:
    async def limited() -> None:
        async with asyncio.timeout(2 * PATIENCE_S):
            await test

    asyncio.run(limited())


# --- the way it should go --------------------------------------------------------------------------------------------


def test_a_gateway_joins(authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        async with waiting(authority) as at:
            identity = await _joins(at.token, tmp_path / "g1")
            await at.task
        assert (identity.site, identity.name, identity.role) == ("plant", "g1", "gateway")
        assert identity.roster.named("g1") is not None
        assert [event.event for event in at.events] == ["issued", "joined"]
        assert sorted(each.name for each in (tmp_path / "g1").iterdir()) == ["ca.pem", "cert.pem", "key.pem", "roster.json"]
        assert not (tmp_path / "g1.joining").exists()

    _run(test())


def test_the_key_never_leaves_the_gateway(authority: Authority, tmp_path: Path) -> None:
    """Nothing of it is in what the authority has on its disk, or was asked with."""
    asked = []

    async def test() -> None:
        async with waiting(authority) as at:
            judge = desk.Desk.judge
            with pytest.MonkeyPatch.context() as patch:
                patch.setattr(desk.Desk, "judge", lambda *args: (asked.append(args[1]), judge(*args))[1])
                await _joins(at.token, tmp_path / "g1")

    _run(test())
    key = b"".join((tmp_path / "g1" / "key.pem").read_bytes().splitlines()[1:-1])
    kept = [path.read_bytes() for path in authority.folder.rglob("*") if path.is_file()]
    assert asked
    assert not any(key in b"".join(each.splitlines()) for each in [*kept, asked[0].csr.encode()])


def test_an_address_that_does_not_answer_costs_no_time(authority: Authority, tmp_path: Path) -> None:
    """A laptop has several; a packet to one of them may never come back."""

    async def test() -> None:
        async with waiting(authority) as at:
            with socket.create_server(("127.0.0.2", at.token.port), backlog=0) as silent, contextlib.ExitStack() as stack:
                for _ in range(4):  # its queue is full: it answers nobody any more
                    filler = stack.enter_context(socket.socket())
                    filler.setblocking(False)
                    filler.connect_ex(silent.getsockname())
                with pytest.MonkeyPatch.context() as patch:
                    patch.setattr(joining, "CONNECT_S_MAX", 10 * PATIENCE_S)
                    identity = await _joins(replace(at.token, hosts=("127.0.0.2", "127.0.0.1")), tmp_path / "g1")
            assert identity.name == "g1"

    _run(test())


# --- who is refused --------------------------------------------------------------------------------------------------


def test_a_second_gateway_with_the_same_token_is_refused(authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        async with waiting(authority) as at:
            csr = certificates.request(Identity.begin(tmp_path / "g1"), "g1").decode()
            async with joining.enrolled(at.token, csr):
                with pytest.raises(Refused, match="used"):
                    await _joins(at.token, tmp_path / "thief")
            await at.task
        assert at.said("refused") == ["the token is used: another key has got a certificate with it"]
        assert Identity.load(tmp_path / "thief") is None

    _run(test())


def test_the_token_expires_by_the_authoritys_clock(authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        async with waiting(authority) as at:
            at.clock.ns = 10**12  # the laptop slept; asyncio did not notice
            with pytest.raises(Refused, match="expired"):
                await _joins(at.token, tmp_path / "g1")
            with pytest.raises(Expired, match="g1 has not joined"):
                await at.task
            with pytest.raises(NotEnrolled, match="connection refused") as raised:
                await _joins(at.token, tmp_path / "g1")
            assert "site token" in raised.value.hint

    _run(test())


def test_a_wrong_secret_is_refused_and_the_gateway_still_joins(authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        async with waiting(authority) as at:
            for _ in range(3):
                with pytest.raises(Refused, match="not the one that is waited for"):
                    await _joins(replace(at.token, secret=bytes(16)), tmp_path / "guesser")
            await _joins(at.token, tmp_path / "g1")
            await at.task
        assert len(at.said("refused")) == 3

    _run(test())


def test_a_key_that_was_revoked_does_not_come_back(authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        async with waiting(authority) as at:
            await _joins(at.token, tmp_path / "g1")
        authority.revoke("g1", "stolen")
        async with waiting(authority) as at:
            with pytest.raises(Refused, match="revoked"):
                await _joins(at.token, tmp_path / "g1")
        assert authority.members == ()

    _run(test())


def test_new_hardware_takes_the_name_and_the_old_key_is_revoked(authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        async with waiting(authority) as at:
            old = await _joins(at.token, tmp_path / "old")
        async with waiting(authority, again=True) as at:
            assert not old.roster.is_revoked(key=old.subject.key)
            new = await _joins(at.token, tmp_path / "new")
        assert new.roster.is_revoked(key=old.subject.key)
        assert new.roster.named("g1") == authority.members[0]
        assert new.subject.key != old.subject.key

    _run(test())


def test_a_gateway_that_was_let_in_and_never_came_back_is_told(authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        async with waiting(authority) as at:
            csr = certificates.request(Identity.begin(tmp_path / "g1"), "g1").decode()
            with contextlib.suppress(asyncio.CancelledError):
                async with joining.enrolled(at.token, csr):
                    raise asyncio.CancelledError
            at.clock.ns = 10**12
            with pytest.raises(Expired, match="was let in, but never said that it has its certificate"):
                await at.task

    _run(test())


def test_who_has_joined_may_type_it_again(authority: Authority, tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """The goodbye was lost: the authority still waits. Or it has heard it, and has gone."""

    async def test() -> None:
        async with waiting(authority) as at:
            csr = certificates.request(Identity.begin(tmp_path / "g1"), "g1").decode()
            with contextlib.suppress(asyncio.CancelledError):
                async with joining.enrolled(at.token, csr) as issued:
                    join._take(issued, "g1", join.Place(tmp_path / "g1"), None)
                    raise asyncio.CancelledError
            first = Identity.load(tmp_path / "g1")
            assert first
            assert (await _joins(at.token, tmp_path / "g1")).subject == first.subject
            await at.task
            assert (await _joins(at.token, tmp_path / "g1")).subject == first.subject
        assert "no authority answers" in capsys.readouterr().err

    _run(test())


# --- strangers at the address of the token ---------------------------------------------------------------------------


@asynccontextmanager
async def stranger(context: ssl.SSLContext, greeting: bytes) -> AsyncIterator[tuple[int, list[bytes]]]:
    """Answers as an authority would. Gives its port, and what it is told."""
    told: list[bytes] = []

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        writer.write(greeting)
        with contextlib.suppress(OSError):
            told.append(await reader.read(65_536))
        writer.transport.abort()

    server = await asyncio.start_server(speak, "127.0.0.1", 0, ssl=context)
    try:
        yield server.sockets[0].getsockname()[1], told
    finally:
        server.close()


def _greeting(authority: Authority) -> bytes:
    return desk.encode(desk.Greeting(1, authority.ca.decode()))


def _learns_nothing(authority: Authority, context: ssl.SSLContext, greeting: bytes, folder: Path) -> None:
    async def test() -> None:
        async with stranger(context, greeting) as (port, told):
            with pytest.raises(Stranger):
                await _joins(_token(authority, port), folder)
            assert b"".join(told) == b""

    _run(test())


def test_another_authority_learns_nothing(authority: Authority, tmp_path: Path) -> None:
    other = Authority.create(tmp_path / "other", "plant", PASSPHRASE, SystemClock())
    _learns_nothing(authority, _server_tls(other, tmp_path), _greeting(other), tmp_path / "g1")


def test_who_shows_the_right_ca_without_its_key_learns_nothing(authority: Authority, tmp_path: Path) -> None:
    """The CA's certificate is no secret."""
    other = Authority.create(tmp_path / "other", "plant", PASSPHRASE, SystemClock())
    _learns_nothing(authority, _server_tls(other, tmp_path), _greeting(authority), tmp_path / "g1")


def test_a_stolen_gateway_in_place_of_the_authority_learns_nothing(authority: Authority, tmp_path: Path) -> None:
    """It has a certificate of the right CA."""

    def of_a_gateway(key: PrivateKey) -> bytes:
        return authority.issue(certificates.request(key, "stolen"), "stolen", "gateway")

    _learns_nothing(authority, _server_tls(authority, tmp_path, of_a_gateway), _greeting(authority), tmp_path / "g1")


@pytest.mark.parametrize("greeting", [b"HTTP/1.1 400 Bad Request\r\n", b'{"kind":"joined","v":1}\n', b"x" * 100_000], ids=len)
def test_another_program_learns_nothing(authority: Authority, tmp_path: Path, greeting: bytes) -> None:
    _learns_nothing(authority, _server_tls(authority, tmp_path), greeting, tmp_path / "g1")


def test_the_desks_certificate_makes_no_member(authority: Authority) -> None:
    with pytest.raises(EdgeError):
        certificates.parse(authority.desk(PrivateKey.generate().public))


# --- cuts ------------------------------------------------------------------------------------------------------------


@asynccontextmanager
async def cable(port: int, cut_after_bytes: Callable[[int], int | None]) -> AsyncIterator[int]:
    """To the authority, and cut when so many bytes have come from there; asked for each connection by its number."""
    count = 0

    async def carry(reader: asyncio.StreamReader, writer: asyncio.StreamWriter, left: int | None) -> None:
        with contextlib.suppress(OSError):
            while content := await reader.read(65_536):
                writer.write(content if left is None else content[:left])
                await writer.drain()
                if left is not None and (left := left - len(content)) <= 0:
                    break
        writer.transport.abort()

    async def speak(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal count
        left, count = cut_after_bytes(count), count + 1
        up, down = await asyncio.open_connection("127.0.0.1", port)
        ways = [asyncio.create_task(carry(reader, down, None)), asyncio.create_task(carry(up, writer, left))]
        await asyncio.wait(ways, return_when=asyncio.FIRST_COMPLETED)
        for each in (writer, down):
            each.transport.abort()

    server = await asyncio.start_server(speak, "127.0.0.1", 0)
    try:
        yield server.sockets[0].getsockname()[1]
    finally:
        server.close()


def test_cut_anywhere_the_same_command_works_afterwards(authority: Authority, tmp_path: Path) -> None:
    """One token, one key; the authority lets it in once."""

    async def test() -> None:
        async with waiting(authority) as at:
            for cut in (0, 1, 500, 900, 1_500, 1_800, 2_500):
                async with cable(at.token.port, lambda number, cut=cut: None if number == 0 else cut) as port:  # type: ignore[misc]
                    with pytest.MonkeyPatch.context() as patch:
                        patch.setattr(joining, "ATTEMPTS_MAX", 1)
                        with pytest.raises((Interrupted, Stranger)) as raised:
                            await _joins(replace(at.token, port=port), tmp_path / "g1")
                assert isinstance(raised.value, Interrupted), (cut, raised.value)
                assert "same command" in raised.value.hint
                assert Identity.load(tmp_path / "g1") is None
            await _joins(at.token, tmp_path / "g1")
            await at.task
        assert len(authority.members) == 1
        assert len(list((authority.folder / "issued").iterdir())) == 1

    _run(test())


def test_a_short_cut_is_not_noticed(authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        async with waiting(authority) as at, cable(at.token.port, lambda number: 600 if number in (0, 1, 3, 4) else None) as port:
            await _joins(replace(at.token, port=port), tmp_path / "g1")
            await at.task

    _run(test())


class PowerCut(BaseException):
    """Nothing more happens on this machine."""


def test_a_power_cut_at_any_write_leaves_all_or_nothing(authority: Authority, tmp_path: Path) -> None:
    """And the same command works afterwards, with the same token, while the authority waits."""

    left = 0
    on_the_gateway = False

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*args: object, **more: object) -> object:
            nonlocal left
            left -= on_the_gateway
            if left < 0:
                raise PowerCut
            return function(*args, **more)

        return call

    def gateways(function: Callable[..., Identity]) -> Callable[..., Identity]:
        """The authority writes, too, in this process: it has power."""

        def call(*args: object) -> Identity:
            nonlocal on_the_gateway
            on_the_gateway = True
            try:
                return function(*args)
            finally:
                on_the_gateway = False

        return call

    async def joins_until_cut(at: Waiting, folder: Path) -> bool:
        """Whether it was cut."""
        with pytest.MonkeyPatch.context() as patch:
            for place, name in ((os, "fsync"), (os, "open"), (Path, "replace"), (Path, "rename"), (Path, "mkdir")):
                patch.setattr(place, name, counted(getattr(place, name)))
            patch.setattr(join, "_take", gateways(join._take))
            patch.setattr(Identity, "begin", gateways(Identity.begin))
            try:
                await _joins(at.token, folder)
            except PowerCut:
                return True
        return False

    async def test() -> None:
        nonlocal left
        steps = 0
        async with waiting(authority) as at:
            folder = tmp_path / "g1"
            while await joins_until_cut(at, folder):
                identity = Identity.load(folder)  # raises where it is half of one
                assert identity is None or identity.name == "g1"
                if identity:
                    break
                left = steps = steps + 1
            await _joins(at.token, folder)
            await at.task
        assert steps > 10
        assert len(authority.members) == 1

    _run(test())


# --- floods ----------------------------------------------------------------------------------------------------------


def test_a_flood_does_not_keep_the_gateway_out(authority: Authority, tmp_path: Path) -> None:
    """From another address: connections that say nothing, that speak no TLS, that guess."""
    most = 0

    async def hold(at: Waiting) -> None:
        for number in range(200):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", at.token.port, local_addr=("127.0.0.2", 0))
                held.append(writer)
                if number % 2:
                    writer.write(b"GET / HTTP/1.1\r\n\r\n")

    async def guess(at: Waiting) -> None:
        for _ in range(200):
            with contextlib.suppress(OSError):
                _, writer = await asyncio.open_connection("127.0.0.1", at.token.port, ssl=BLIND, local_addr=("127.0.0.2", 0))
                writer.write(desk.encode(desk.Request(1, "plant", "g1", bytes(16), "csr")))
                held.append(writer)

    held: list[asyncio.StreamWriter] = []
    doors: list[enrolment._Door] = []
    accept = enrolment._Door.accept

    def watched(door: enrolment._Door, listening: socket.socket) -> None:
        doors[:] = [door]
        accept(door, listening)

    async def test() -> None:
        nonlocal most
        async with waiting(authority) as at:
            flood = [asyncio.create_task(each(at)) for each in (hold, hold, guess, guess)]
            while len(held) < 2 * enrolment.CONNECTIONS_MAX:
                await asyncio.sleep(0)
                most = max(most, len(doors[0]._open) if doors else 0)
            joins = asyncio.create_task(_joins(at.token, tmp_path / "g1"))
            while not joins.done():
                await asyncio.sleep(0)
                most = max(most, len(doors[0]._open))
            assert joins.result().name == "g1"
            await at.task
            for task in flood:
                task.cancel()
            await asyncio.gather(*flood, return_exceptions=True)
            for writer in held:
                writer.transport.abort()
        assert enrolment.CONNECTIONS_MAX // 2 < most <= enrolment.CONNECTIONS_MAX
        assert len(at.said("refused")) < 40  # told in round numbers

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enrolment._Door, "accept", watched)
        _run(test())


def test_a_flood_takes_no_memory(authority: Authority) -> None:
    """Also not until the collector comes by: asyncio has 300 KiB for each TLS connection."""
    spoken_with: list[weakref.ref[asyncio.StreamReader]] = []
    accepted = enrolment._accepted

    @asynccontextmanager
    async def remembered(connection: socket.socket, context: ssl.SSLContext) -> AsyncIterator[joining.Streams]:
        async with accepted(connection, context) as streams:
            spoken_with.append(weakref.ref(streams[0]))
            yield streams

    async def test() -> None:
        async with waiting(authority) as at:
            for number in range(60):
                reader, writer = await asyncio.open_connection("127.0.0.1", at.token.port, ssl=BLIND)
                await reader.readline()
                if number % 2:  # is cut while it waits for its answer
                    writer.write(desk.encode(desk.Request(1, "plant", "g1", bytes(16), "csr")))
                else:  # resets the connection
                    here = writer.get_extra_info("socket")
                    here.setsockopt(socket.SOL_SOCKET, socket.SO_LINGER, struct.pack("ii", 1, 0))
                    writer.transport.abort()
            await asyncio.sleep(0.1)
            assert len(spoken_with) == 60
            assert sum(each() is not None for each in spoken_with) <= enrolment.CONNECTIONS_MAX

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(enrolment, "_accepted", remembered)
        patch.setattr(enrolment, "CONNECTIONS_MAX", 8)
        gc.disable()
        try:
            _run(test())
        finally:
            gc.enable()


def test_who_sends_without_end_is_cut(authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        async with waiting(authority) as at:
            _, writer = await asyncio.open_connection("127.0.0.1", at.token.port, ssl=BLIND)
            with contextlib.suppress(OSError):
                for _ in range(4_096):
                    writer.write(b"x" * 4_096)
                    await writer.drain()
            assert writer.transport.is_closing()
            await _joins(at.token, tmp_path / "g1")
            await at.task
        assert "longer than any message" in at.said("refused")[0]

    _run(test())


def test_who_says_nothing_is_cut(authority: Authority, tmp_path: Path) -> None:
    async def test() -> None:
        with pytest.MonkeyPatch.context() as patch:
            patch.setattr(enrolment, "EXCHANGE_S_MAX", 0.2)
            async with waiting(authority) as at:
                reader, _ = await asyncio.open_connection("127.0.0.1", at.token.port)
                with contextlib.suppress(OSError):
                    assert await reader.read() == b""
                assert at.said("refused") == ["too slow"]

    _run(test())


# --- as commands -----------------------------------------------------------------------------------------------------


@pytest.fixture
def site_token(authority: Authority) -> Iterator[subprocess.Popen[str]]:
    command = [sys.executable, "-m", "edge_runtime", "site", "token", "g1", "--folder", str(authority.folder)]
    environment = os.environ | {opening.ENVIRONMENT: PASSPHRASE}
    process = subprocess.Popen(
        [*command, "--listen", "127.0.0.1:0"], stdout=subprocess.PIPE, stderr=subprocess.PIPE, text=True, env=environment
    )
    try:
        yield process
    finally:
        process.kill()
        process.communicate()


def test_one_command_on_each_side(site_token: subprocess.Popen[str], tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    assert site_token.stdout
    text = site_token.stdout.readline().strip()
    began = time.monotonic()
    assert cli.main(["join", text, "--folder", str(tmp_path / "g1")]) == 0
    out, err = site_token.communicate(timeout=PATIENCE_S)
    print(f"joined in {time.monotonic() - began:.2f} s")
    assert site_token.returncode == 0
    assert out == ""  # the token is the only line
    assert f"edge-runtime join {text}" in err
    assert "g1 has joined" in err
    assert SECRET.hex() not in err
    said = capsys.readouterr().out
    assert "g1 is a member of plant (gateway)" in said
    assert Identity.load(tmp_path / "g1")


@pytest.mark.parametrize("now", ["1970-01-01 00:01:00", "2100-06-01 00:00:00"])
def test_joins_whatever_its_clock_says(site_token: subprocess.Popen[str], tmp_path: Path, now: str) -> None:
    assert site_token.stdout
    text = site_token.stdout.readline().strip()
    command = [sys.executable, "-m", "edge_runtime", "join", text, "--folder", str(tmp_path / "g1")]
    environment = os.environ | told(f"@{now}")
    done = subprocess.run(command, env=environment, capture_output=True, text=True, timeout=PATIENCE_S, check=False)
    assert done.returncode == 0, done.stderr
    site_token.communicate(timeout=PATIENCE_S)
    assert site_token.returncode == 0
    files.read(tmp_path / "g1" / "cert.pem")
