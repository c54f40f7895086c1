"""Where the site's broker is, for a person at a terminal: connects to it as a client of its own name."""

from __future__ import annotations

import argparse
import asyncio
import getpass
import sys
from collections.abc import AsyncGenerator, AsyncIterator, Callable
from contextlib import aclosing, asynccontextmanager
from dataclasses import dataclass, replace
from importlib.util import find_spec
from pathlib import Path
from typing import TYPE_CHECKING

import msgspec

from edge_runtime.address import address
from edge_runtime.board.system import SystemDice
from edge_runtime.bus import presence, topics
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.member import Dress
from edge_runtime.bus.messages import BadMessage
from edge_runtime.bus.presence import Brokers
from edge_runtime.cli import identity
from edge_runtime.cli.mesh import BROKER_DEFAULT
from edge_runtime.ports import Address, BrokerError, Connection, EdgeError, Message

if TYPE_CHECKING:
    from edge_runtime.config import Config
    from edge_runtime.trust.identity import Identity

CONNECT_S_MAX = 2.0
DISCOVER_S_MAX = 3.0
"""How long mDNS is listened to."""
RETAINED_S = 1.0
QUIET_S = 0.2
"""A broker sends what it has kept at once: so long is waited for the first of it, and for more."""
KEEPALIVE_S = 5


@dataclass(frozen=True)
class Plan:
    """`site` "": the only one that is there. `ours`: only a broker that a gateway of the site says to host. `identity`: as whom
    we come; None: as nobody, to a broker that lets everybody in."""

    site: str
    places: tuple[Address, ...]
    ours: bool = False
    settings: Config | None = None
    discover: bool = False
    identity: Identity | None = None
    authority: bytes = b""
    """Of the site whose CA was given: the raw public key. Then we come with a password, and sign nothing."""
    takes: Callable[[Brokers], bool] = lambda _: True
    """With `ours`: whether it is the one that is meant, by what it says of who hosts it."""

    @property
    def user(self) -> str:
        """As whom we come with a password; "": with none."""
        return self.places[0].username if self.places else ""

    def dressed(self, place: Address) -> Address:
        return place if self.identity is None else Dress(self.identity)(place)

    @property
    def guessed(self) -> bool:
        """Nobody said where to look."""
        return not self.discover and self.settings is None and self.places == (address(BROKER_DEFAULT),)


@dataclass(frozen=True)
class Joined:
    """`name`: ours, as others see us. `where`: the broker, for people."""

    connection: Connection
    site: str
    name: str
    where: str


def plan(args: argparse.Namespace) -> Plan:
    """Raises EdgeError: a url, a file or an identity that is wrong, no broker in the file."""
    if args.ca:
        return _with_password(args)
    who = identity.find(args.identity)
    found = _places(args, args.site or (who.site if who else ""))
    if who is not None and found.site != who.site:
        raise EdgeError(f"your identity is of the site {who.site}, not of {found.site}", "--identity DIR: one of that site")
    return replace(found, identity=who)


def _with_password(args: argparse.Namespace) -> Plan:
    """To a broker of the site whose CA it is. The identity of the environment is not used then."""
    from edge_runtime.trust import certificates, files

    if args.identity or not args.broker:
        cause = "--ca goes with --broker mqtts://NAME@HOST:PORT, and without --identity"
        raise EdgeError(cause, "with a password nothing is signed; with --identity DIR no password is needed")
    site, authority = certificates.parse_authority(files.read(args.ca))
    where = address(args.broker)
    if not where.tls or not where.username:
        raise EdgeError(f"--ca: {where.host}:{where.port}: no TLS, or nobody's name", "mqtts://NAME@HOST:PORT")
    if args.site not in (None, site):
        raise EdgeError(f"{args.ca} is of the site {site}, not of {args.site}", "--ca FILE: that of the other one")
    place = msgspec.structs.replace(where, password=_password(where), site_ca=True, ca_file=str(args.ca))
    return Plan(site, (place,), authority=authority)


def secret(args: argparse.Namespace, name: str) -> str:
    """What is called so on this computer: of the gateway whose file is given, or of who types. Raises EdgeError."""
    from edge_runtime import config
    from edge_runtime.board.secrets import SystemSecrets
    from edge_runtime.sources.registry import Registry

    if args.config is None:
        return SystemSecrets(Path("secrets")).get(name)
    settings = config.load_file(args.config, Registry()).config
    return SystemSecrets(args.config.resolve().parent / config.secrets_folder(settings)).get(name)


def _password(where: Address) -> str:
    """Of the url, of what it refers to, or typed. Raises EdgeError."""
    from edge_runtime import references
    from edge_runtime.board.secrets import SystemSecrets

    if name := references.name_in(where.password):
        return SystemSecrets(Path("secrets")).get(name)
    if where.password or not sys.stdin.isatty():
        return where.password
    return getpass.getpass(f"password of {where.username}: ")


def _places(args: argparse.Namespace, site: str) -> Plan:
    if args.broker:
        return Plan(site, (address(args.broker),))
    if args.config is None:
        return Plan(site, (address(BROKER_DEFAULT),), discover=bool(site))
    from edge_runtime import config, references
    from edge_runtime.board.secrets import SystemSecrets
    from edge_runtime.sources.registry import Registry

    settings = config.load_file(args.config, Registry()).config
    broker, site = settings.broker, args.site or settings.site
    if broker.mode == "none":
        raise EdgeError(f"{args.config}: this gateway has no broker (broker.mode: none)", "a mesh needs `broker: {mode: auto}`")
    own = address(broker.url)
    if broker.mode == "external":
        secrets = SystemSecrets(args.config.resolve().parent / config.secrets_folder(settings))
        name = references.name_in(own.password)
        return Plan(site, (msgspec.structs.replace(own, password=secrets.get(name)) if name else own,))
    here = address(f"mqtt://127.0.0.1:{own.port}")
    if broker.mode == "hosted":
        return Plan(site, (here,))
    peers = [address(f"mqtt://{each}") for each in (settings.mesh.peers if settings.mesh else ())]
    discover = settings.mesh is not None and settings.mesh.discovery == "mdns"
    return Plan(site, (here, *peers), ours=True, settings=settings, discover=discover)


@asynccontextmanager
async def joined(where: Plan) -> AsyncIterator[Joined]:
    """Raises EdgeError when there is no broker, or not one site."""
    name = f"cli-{SystemDice().token()[:8]}"
    connection, at = await _connect(where, name)
    try:
        yield Joined(connection, where.site or await _only_site(connection, at), name, at)
    finally:
        await connection.close()


async def _connect(where: Plan, name: str) -> tuple[Connection, str]:
    search = _Search(where, name)
    for place in where.places:
        if found := await search.at(place, ours=where.ours):
            return found
    if where.discover:
        async with aclosing(_announced(where)) as announced:
            async for place in announced:
                if found := await search.at(place, ours=True):
                    return found
    if len(search.failures) == 1 and where.guessed:
        cause = next(iter(search.failures.values())).cause
        raise EdgeError(
            cause, "say where: --config FILE of a gateway, --site SITE (looks with mDNS), or --broker mqtt://HOST:PORT"
        )
    who = "" if where.identity or where.authority else "a site with an authority lets members in: --identity DIR"
    if len(search.failures) == 1 and not where.discover:
        error = next(iter(search.failures.values()))
        if where.user and not where.authority:
            who = "is it the broker of a site? --ca FILE: its ca.pem"
        raise BrokerError(error.cause, "; ".join(filter(None, (error.hint, who))))
    causes = [error.cause for error in search.failures.values()]
    if where.discover:
        unheard = f"no other place within {DISCOVER_S_MAX:g} s" if find_spec("zeroconf") else "needs zeroconf, edge-runtime[mesh]"
        causes.append(f"mDNS: {unheard}")
    hint = "; ".join(filter(None, ("is a gateway running? give its broker: --broker mqtt://HOST:PORT", who)))
    raise EdgeError(f"no broker of site {where.site} was found: {'; '.join(causes)}", hint)


class _Search:
    """`failures`: by place, each is tried once."""

    def __init__(self, where: Plan, name: str) -> None:
        self.failures: dict[str, BrokerError] = {}
        self._where, self._site, self._name = where, where.site, name

    async def at(self, place: Address, *, ours: bool) -> tuple[Connection, str] | None:
        """`ours`: only if a gateway of the site hosts it; where its word says that the host is elsewhere, there."""
        places = [place]
        while places:
            place = places.pop()
            at = f"{place.host}:{place.port}"
            if at in self.failures:
                continue
            try:
                named = msgspec.structs.replace(self._where.dressed(place), client_id=self._name, keepalive_s=KEEPALIVE_S)
                connection = await PahoBus().connect(named, timeout_s=CONNECT_S_MAX)
                said = await _said(connection, self._site) if ours else None
                if not ours or (said is not None and said.run and self._where.takes(said)):
                    return connection, at
                if said is not None and said.run:
                    self.failures[at] = BrokerError(f"{at}: {said.host} hosts this broker, which is not the one that is meant")
                else:
                    self.failures[at] = BrokerError(f"{at}: no gateway of the site hosts this broker")
                    places += [Address(host=each.host, port=each.port) for each in (said.endpoints if said else ())]
                await connection.close()
            except BrokerError as error:
                self.failures[at] = error
        return None


async def _said(connection: Connection, site: str) -> Brokers | None:
    """What the broker has kept of who hosts the site's. Raises BrokerError."""
    topic, found = topics.brokers(site), []

    def ours(message: Message) -> bool:
        if message.topic != topic:
            return False
        try:
            found.append(presence.unpack(message.payload, Brokers))
        except BadMessage:
            return False
        return True

    await connection.subscribe(topic)
    await until(connection, ours)
    await connection.unsubscribe(topic)
    return found[0] if found else None


async def until(connection: Connection, holds: Callable[[Message], bool]) -> bool:
    """For what the broker has kept. False: nothing of the kind came."""
    limit_s = RETAINED_S
    while True:
        try:
            async with asyncio.timeout(limit_s):
                message = await connection.receive()
        except TimeoutError:
            return False
        connection.acknowledge(message)  # a broker hands out twenty that are not, and waits
        if holds(message):
            return True
        limit_s = QUIET_S


async def _only_site(connection: Connection, at: str) -> str:
    """Raises EdgeError where there is none, or more than one."""
    sites: set[str] = set()

    def note(message: Message) -> bool:
        parsed = topics.parse(message.topic)
        if parsed is not None and message.payload:
            sites.add(parsed[0])
        return False

    everywhere = topics.gateway("+", "+", "status")
    await connection.subscribe(everywhere)
    await until(connection, note)
    await connection.unsubscribe(everywhere)
    if len(sites) == 1:
        return sites.pop()
    if not sites:
        raise EdgeError(f"{at}: no gateway is, or was, on this broker", "is it the right broker? do the gateways have `mesh`?")
    raise EdgeError(f"{at}: gateways of more than one site: {', '.join(sorted(sites))}", "say which: --site SITE")


async def _announced(where: Plan) -> AsyncGenerator[Address, None]:
    """Brokers that gateways of the site announce over mDNS. For that we have to announce ourselves: as a guest, and goodbye."""
    from edge_runtime.cli.run import logger
    from edge_runtime.config import Log, Mesh
    from edge_runtime.mesh import discovery
    from edge_runtime.ports_mesh import Announcement

    mesh = where.settings.mesh if where.settings and where.settings.mesh else Mesh()
    listen = where.settings.broker.listen if where.settings else "0.0.0.0"  # decides which interfaces are used
    token = SystemDice().token()
    me = Announcement(site=where.site, gateway=f"cli-{token[:8]}", instance=token, role="guest")
    try:
        found = discovery.make(mesh, listen, logger(Log(level="error", format="auto")))
    except EdgeError:
        return  # zeroconf is not installed: what is known without it was tried
    loop = asyncio.get_running_loop()
    try:
        await found.open(me)
        until_s = loop.time() + DISCOVER_S_MAX
        while True:
            found.changed.clear()
            # Hosts first: a candidate that is no host costs a refused connection.
            for each in sorted(found.found(), key=lambda each: each.role != "host"):
                for endpoint in each.endpoints if each.role != "guest" else ():
                    yield Address(host=endpoint.host, port=endpoint.port)
            async with asyncio.timeout_at(until_s):
                await found.changed.wait()
    except TimeoutError:
        return
    finally:
        await found.close()
