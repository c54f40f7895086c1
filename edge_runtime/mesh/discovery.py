"""Gateways find each other over mDNS (touches zeroconf). What is said, and where: announcing.py.

mDNS tells where to ask, never who is alive: a gateway that was killed stays for up to four minutes, one that is cut off too.
python-zeroconf alone does not hear, for minutes, a gateway that was switched on while the network was cut, and does not notice
that an interface has come up or has another address. So the interfaces are looked at every second, a change means new sockets,
and every gateway announces itself and asks again every two seconds (less often where there are many): after any cut, wherever
in the network, they hear each other within that time.
"""

from __future__ import annotations

import asyncio
import contextlib
import ipaddress
import socket
from collections import Counter
from collections.abc import Sequence
from pathlib import Path
from typing import TYPE_CHECKING, Any

import msgspec

from edge_runtime.address import address
from edge_runtime.config import Config, Mesh
from edge_runtime.mesh import announcing
from edge_runtime.mesh.announcing import BadAnnouncement, Interface
from edge_runtime.ports import EdgeError
from edge_runtime.ports_mesh import Announcement, Discovery, Endpoint

if TYPE_CHECKING:
    from zeroconf import Zeroconf
    from zeroconf.asyncio import AsyncServiceBrowser, AsyncServiceInfo, AsyncZeroconf

TYPE = "_edge-runtime._tcp.local."
CHECK_S = 1.0
"""How often the machine's interfaces are looked at (0.5 ms)."""
TTL_S = 120
"""What was announced counts for so long."""
GREETING = 0.05
"""Part of the period after which newcomers are greeted, many at once: 0.1 s where there are few gateways."""
FOUND_MAX = 1_000
"""Gateways of the site; further ones are not taken, and counted."""

_SYS = Path("/sys/class/net")
_PTR, _IN = 12, 1
_REPLACED_TTL_S = 1
_DOWN = ("down", "lowerlayerdown", "notpresent")


class NoDiscovery:
    """`mesh.discovery: off`: says nothing, hears nothing."""

    def __init__(self) -> None:
        self.changed = asyncio.Event()

    async def open(self, mine: Announcement) -> None: ...

    async def announce(self, mine: Announcement) -> None: ...

    def found(self) -> Sequence[Announcement]:
        return ()

    async def close(self) -> None: ...


class _Heard(msgspec.Struct):
    announcement: Announcement
    until_s: float


class ZeroconfDiscovery:
    """See ports_mesh.Discovery. Raises EdgeError when zeroconf is not installed."""

    def __init__(self, settings: Mesh, listen: str, log: Any) -> None:
        announcing.listens_on(listen)
        _check_installed()
        self.changed = asyncio.Event()
        self.refused: Counter[str] = Counter()
        """Announcements that were not taken, by reason: "bad", "too many"."""
        self.interfaces: tuple[Interface, ...] | None = None
        """Where it announces and listens now; None: nowhere yet."""
        self._settings, self._listen, self._log = settings, listen, log
        self._mine: Announcement | None = None
        self._revision = 0
        self._heard: dict[str, _Heard] = {}
        self._wire: _Wire | None = None
        self._again_s = 0.0
        self._newcomer = asyncio.Event()
        self._watching: asyncio.Task[None] | None = None

    async def open(self, mine: Announcement) -> None:
        """Returns when the first announcement is out, or when there is no network to announce it on."""
        self._mine = mine
        await self._look()
        self._watching = asyncio.create_task(self._watch(), name="discovery")

    async def announce(self, mine: Announcement) -> None:
        self._mine = mine
        self._revision += 1
        if self._wire is not None:
            await self._wire.change(self._info())

    def found(self) -> Sequence[Announcement]:
        found = (each.announcement for each in self._heard.values())
        return sorted(found, key=lambda each: (each.gateway, each.instance))

    async def close(self) -> None:
        watching, self._watching = self._watching, None
        if watching is not None:
            watching.cancel()
            with contextlib.suppress(asyncio.CancelledError):
                await watching
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close(goodbye=True)

    # --- our side ----------------------------------------------------------------------------------------------------

    async def _watch(self) -> None:
        """A newcomer is greeted: mDNS's own answer to its question may take a second."""
        while True:
            self._newcomer.clear()
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(CHECK_S):
                    await self._newcomer.wait()
            if self._newcomer.is_set():
                await asyncio.sleep(self._period_s() * GREETING)
                self._again_s = 0.0
            await self._look()

    async def _look(self) -> None:
        """Are the sockets still those of the machine's interfaces? Then say and ask again, when it is time."""
        now_s = asyncio.get_running_loop().time()
        settings = self._settings
        interfaces = announcing.chosen(_interfaces(), settings.interfaces, settings.interfaces_exclude, self._listen)
        if interfaces != self.interfaces or (interfaces and self._wire is None):
            await self._renew(interfaces)
        elif self._wire is not None and now_s >= self._again_s:
            self._wire.repeat()
        else:
            return
        self._again_s = now_s + self._period_s()
        self._refresh(now_s)

    def _period_s(self) -> float:
        assert self._mine is not None
        return announcing.period_s(len(self._heard), self._mine.instance)

    async def _renew(self, interfaces: tuple[Interface, ...]) -> None:
        wire, self._wire = self._wire, None
        if wire is not None:
            await wire.close(goodbye=False)  # we are not gone: whoever can still hear us must not think so
        changed, self.interfaces = interfaces != self.interfaces, interfaces
        cause = "no network interface is up that may be used"
        if interfaces:
            try:
                self._wire = await _Wire.open(interfaces, self._info(), self._on_name)
            except OSError as error:
                cause = error.strerror or str(error)
        names = [each.name for each in interfaces]
        if self._wire is not None:
            self._log.info("discovery_on", interfaces=names, addresses=announcing.announced(interfaces, self._listen))
        elif changed:
            hint = "mesh.interfaces and mesh.interfaces_exclude say which; it is tried again for ever"
            self._log.warning("discovery_off", interfaces=names, cause=cause, hint=hint)

    def _info(self) -> AsyncServiceInfo:
        from zeroconf.asyncio import AsyncServiceInfo

        assert self._mine is not None
        mine = self._mine
        label = announcing.label(mine.gateway, mine.instance)
        return AsyncServiceInfo(
            TYPE,
            f"{label}.{TYPE}",
            port=mine.port or (mine.endpoints[0].port if mine.endpoints else 0),
            properties=announcing.encode(mine, self._revision),
            server=f"{label}.local.",
            host_ttl=TTL_S,
            other_ttl=TTL_S,
            parsed_addresses=list(announcing.announced(self.interfaces or (), self._listen)),
        )

    # --- the others --------------------------------------------------------------------------------------------------

    def _on_name(self, name: str, here: bool) -> None:
        """A name was announced, has changed, or has said goodbye."""
        if here:
            self._read(name, asyncio.get_running_loop().time())
        elif self._heard.pop(name.lower(), None) is not None:
            self.changed.set()

    def _refresh(self, now_s: float) -> None:
        """Reads again what has changed without a word (an address ran out) or came while the sockets were opened, and forgets
        who was not heard for long."""
        for name in self._wire.names() if self._wire is not None else ():
            self._read(name, now_s)
        for name in [name for name, heard in self._heard.items() if heard.until_s < now_s]:
            del self._heard[name]
            self.changed.set()

    def _read(self, name: str, now_s: float) -> None:
        assert self._mine is not None
        try:
            announcement = self._wire.read(name, now_s) if self._wire is not None else None
        except BadAnnouncement as error:
            self._refuse("bad", error)
            return
        mine = self._mine
        if announcement is None or announcement.site != mine.site or announcement.instance == mine.instance:
            return
        key = name.lower()
        before = self._heard.get(key)
        if before is None and len(self._heard) >= FOUND_MAX:
            hint = "does somebody else announce them? `mesh.discovery: off` with `mesh.peers` needs no announcements"
            self._refuse("too many", BadAnnouncement(f"more than {FOUND_MAX} gateways are announced", hint))
            return
        self._heard[key] = _Heard(announcement, now_s + TTL_S)
        if before is None:
            self._newcomer.set()
        if before is None or before.announcement != announcement:
            self.changed.set()

    def _refuse(self, reason: str, error: BadAnnouncement) -> None:
        """Logged once: whoever announces nonsense does it for ever."""
        if reason not in self.refused:
            self._log.warning("announcement_refused", cause=error.cause, hint=error.hint)
        self.refused[reason] += 1


class _Wire:
    """Sockets on a set of interfaces: our announcement goes out, the others' names come in."""

    def __init__(self, zeroconf: AsyncZeroconf, browser: AsyncServiceBrowser, info: AsyncServiceInfo) -> None:
        self._zeroconf, self._browser, self._info = zeroconf, browser, info
        self._saying: Any = None

    @classmethod
    async def open(cls, interfaces: tuple[Interface, ...], info: AsyncServiceInfo, on_name: Any) -> _Wire:
        """`on_name(name, here)`. Raises OSError, also for an interface that went away this moment."""
        from zeroconf import DNSQuestionType, Error, ServiceStateChange
        from zeroconf.asyncio import AsyncServiceBrowser, AsyncZeroconf

        def heard(zeroconf: Zeroconf, service_type: str, name: str, state_change: ServiceStateChange) -> None:
            on_name(name, state_change is not ServiceStateChange.Removed)

        # IPv4 sockets are made for an address, IPv6 sockets for an interface's number.
        four = [each for one in interfaces for each in one.addresses if ":" not in each]
        six = [one.index for one in interfaces if any(":" in each for each in one.addresses)]
        try:
            zeroconf = AsyncZeroconf(interfaces=[*four, *six])
        except RuntimeError as error:
            raise OSError(str(error)) from None
        try:
            # Questions that all may hear the answer of: one to us alone goes to any of the processes on this machine.
            ask = DNSQuestionType.QM
            browser = AsyncServiceBrowser(zeroconf.zeroconf, TYPE, handlers=[heard], question_type=ask)
            wire = cls(zeroconf, browser, info)
            wire._saying = await zeroconf.async_register_service(info, cooperating_responders=True)
        except BaseException as error:
            await zeroconf.async_close()
            if isinstance(error, Error):
                raise OSError(f"{type(error).__name__} {error}") from None
            raise
        return wire

    async def change(self, info: AsyncServiceInfo) -> None:
        """Says it at once, and twice more within half a second (a packet may be lost)."""
        self._info = info
        self._saying = await self._zeroconf.async_update_service(info)

    def repeat(self) -> None:
        """Says what we are, and asks for those whom we do not know."""
        from zeroconf import DNSOutgoing, DNSQuestion  # type: ignore[attr-defined]  # public, but not marked as such

        zeroconf = self._zeroconf.zeroconf
        zeroconf.async_send(zeroconf.generate_service_broadcast(self._info, None))
        question = DNSOutgoing(0)
        question.add_question(DNSQuestion(TYPE, _PTR, _IN))
        for known in zeroconf.cache.entries_with_name(TYPE):
            question.add_answer_at_time(known, 0)
        zeroconf.async_send(question)

    def names(self) -> list[str]:
        """That were heard and not forgotten."""
        from zeroconf import DNSPointer  # type: ignore[attr-defined]  # as above

        known = self._zeroconf.zeroconf.cache.entries_with_name(TYPE)
        return [each.alias for each in known if isinstance(each, DNSPointer)]

    def read(self, name: str, now_s: float) -> Announcement | None:
        """None: not everything of it has come, or it has run out. Raises BadAnnouncement."""
        from zeroconf import DNSAddress, DNSService, DNSText, Error  # type: ignore[attr-defined]  # as above
        from zeroconf.asyncio import AsyncServiceInfo

        records = self._records(name, now_s)
        texts = [each.text for each in records if isinstance(each, DNSText)]
        services = [each for each in records if isinstance(each, DNSService)]
        if not texts or not services:
            return None
        try:
            info = AsyncServiceInfo(TYPE, name, properties=texts[-1])
        except Error as error:
            raise BadAnnouncement(f"announcement {name[:80]!r}: {type(error).__name__}") from None
        where = services[-1]
        found = [each for each in self._records(where.server, now_s) if isinstance(each, DNSAddress)]
        addresses = [_text(each.address, each.scope_id) for each in found]
        return announcing.decode(info.get_name(), info.properties, addresses, where.port)

    def _records(self, name: str, now_s: float) -> list[Any]:
        """The newest last. zeroconf gives a record that was replaced one more second to live, and again with every announcement
        that does not have it: an address that is gone would come and go for a while."""
        records = self._zeroconf.zeroconf.cache.entries_with_name(name)
        return [each for each in records if each.ttl > _REPLACED_TTL_S and not each.is_expired(now_s * 1_000)]

    async def close(self, *, goodbye: bool) -> None:
        zeroconf = self._zeroconf.zeroconf
        self._saying.cancel()
        parting = zeroconf.generate_unregister_all_services()  # once: three of them, as zeroconf does, take a stop 0.25 s
        if goodbye and parting is not None:
            zeroconf.async_send(parting)
        await self._browser.async_cancel()
        await self._zeroconf.async_close()


def not_installed() -> EdgeError:
    return EdgeError("`mesh` needs zeroconf", "pip install 'edge-runtime[mesh]', or mesh.discovery: off")


def _check_installed() -> None:
    try:
        import zeroconf.asyncio  # noqa: F401  (now: the first import takes 0.1 s, too long for a running loop)
    except ImportError as error:
        raise not_installed() from error


def _interfaces() -> list[Interface]:
    """Those that are up, with the addresses that can be used now (a fresh IPv6 address cannot, for a second or two)."""
    import ifaddr

    found = []
    for adapter in ifaddr.get_adapters():
        if adapter.index is None or not _is_up(adapter.name):
            continue
        pairs = [(each.ip, 0) if isinstance(each.ip, str) else (each.ip[0], each.ip[2]) for each in adapter.ips]
        found.append(Interface(adapter.name, adapter.index, tuple(ip for ip, scope in pairs if _usable(ip, scope))))
    return found


def _is_up(name: str) -> bool:
    """True where the system does not tell."""
    try:
        return (_SYS / name / "operstate").read_text().strip() not in _DOWN
    except OSError:
        return True


def _usable(address: str, scope: int) -> bool:
    family = socket.AF_INET6 if ipaddress.ip_address(address).version == 6 else socket.AF_INET
    try:
        with socket.socket(family, socket.SOCK_DGRAM) as trial:
            trial.bind((address, 0, 0, scope) if family == socket.AF_INET6 else (address, 0))
    except OSError:
        return False
    return True


def _text(packed: bytes, scope: int | None) -> str:
    address = ipaddress.ip_address(packed)
    return f"{address}%{scope}" if scope and address.is_link_local else str(address)


def make(settings: Mesh, listen: str, log: Any) -> Discovery:
    """As `mesh.discovery` says. Raises EdgeError when zeroconf is needed and not installed."""
    return NoDiscovery() if settings.discovery == "off" else ZeroconfDiscovery(settings, listen, log)


def reachable(settings: Config) -> tuple[Endpoint, ...]:
    """Where others reach a broker on this machine, as things are now: at `broker.listen`, or at each address of the interfaces
    that may be used. Without zeroconf's library (discovery: off) only the one that packets leave from."""
    assert settings.mesh is not None
    listen, port = settings.broker.listen, address(settings.broker.url).port
    where = announcing.listens_on(listen)
    if not where.is_unspecified:
        return (Endpoint(str(where), port),)
    try:
        found = announcing.chosen(_interfaces(), settings.mesh.interfaces, settings.mesh.interfaces_exclude, listen)
    except ImportError:
        return tuple(Endpoint(each, port) for each in _outward())
    return tuple(Endpoint(each, port) for each in announcing.announced(found, listen))


def _outward() -> list[str]:
    """The address that packets to elsewhere leave from; nothing is sent."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as trial:
        try:
            trial.connect(("192.0.2.1", 9))
        except OSError:
            return []
        return [str(trial.getsockname()[0])]
