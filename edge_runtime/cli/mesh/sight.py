"""What an onlooker knows of a site's gateways (pure): from their births, wills and heartbeats, and from who hosts the broker."""

from __future__ import annotations

import msgspec

from edge_runtime.bus import presence, topics
from edge_runtime.bus.messages import BadMessage
from edge_runtime.bus.presence import Birth, Brokers, Load
from edge_runtime.mesh.peers import LATE_PERIODS
from edge_runtime.mesh.sealing import BIRTH
from edge_runtime.ports import Message
from edge_runtime.ports_mesh import Offer
from edge_runtime.trust import envelope
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.roster import Forged

GATEWAYS_MAX = 10_000
PERIOD_S = 1.0
"""Of a gateway that has not said its period yet."""


class Row(msgspec.Struct, frozen=True, kw_only=True):
    """One gateway. `seen_s`: since its last word; None: the broker's memory is all there is. What is None is not known."""

    gateway: str
    state: str
    """online; late: no heartbeat comes; offline: it said so, or its will; unproved: only the broker's memory says it is there"""
    role: str
    """host (of the broker), candidate, guest"""
    seen_s: float | None
    queue: int | None = None
    queue_ms: float | None = None
    models: list[Offer]
    accelerators: list[str]
    temperature_c: float | None = None
    hot: bool | None = None
    battery: bool | None = None
    tasks_in: int | None = None
    tasks_out: int | None = None
    latency_ms: float | None = None
    """p50 of its own tasks' round trips."""
    outbox_depth: int | None = None
    disk_free_bytes: int | None = None
    rank: int
    version: str
    instance: str


class Sight:
    """Every `now_ns` is of one monotonic clock."""

    def __init__(self, site: str, identity: Identity | None = None) -> None:
        """With an identity only gateways of its site are seen, by the newest roster there is: births are signed. Without, nobody
        can tell who signed them."""
        self.site = site
        self._authority = identity.authority if identity else b""
        self._roster = identity.roster if identity else None
        self._signers: dict[str, str] = {}
        self.brokers: Brokers | None = None
        self.bad = 0
        """Messages that were none."""
        self._births: dict[str, Birth] = {}
        self._loads: dict[str, Load] = {}
        self._heard: dict[str, int] = {}

    def filters(self) -> tuple[str, ...]:
        site = self.site
        first = (topics.roster(site),) if self._roster else ()
        return *first, topics.gateway(site, "+", "status"), topics.gateway(site, "+", "load"), topics.brokers(site)

    def take(self, message: Message, now_ns: int) -> None:
        try:
            self._take(message, now_ns)
        except (BadMessage, Forged):
            self.bad += 1

    def _take(self, message: Message, now_ns: int) -> None:
        if message.topic == topics.roster(self.site):
            self._take_roster(message.payload)
            return
        if message.topic == topics.brokers(self.site):
            self.brokers = presence.unpack(message.payload, Brokers) if message.payload else None
            return
        parsed = topics.parse(message.topic)
        if parsed is None or parsed[0] != self.site or (parsed[1] not in self._births and len(self._births) >= GATEWAYS_MAX):
            return
        _, name, rest = parsed
        if rest == ("status",) and not message.payload:
            self._forget(name)
        elif rest == ("status",):
            self._take_birth(presence.unpack(self._document(name, message.payload), Birth), message.retain, now_ns)
        elif rest == ("load",):
            load = presence.unpack(message.payload, Load)
            self._loads[name], self._heard[name] = load, now_ns

    def _take_birth(self, birth: Birth, retained: bool, now_ns: int) -> None:
        before = self._births.get(birth.gateway)
        if not birth.online and before is not None and before.instance != birth.instance:
            return  # a late will of an earlier life
        self._births[birth.gateway] = birth
        if not birth.online:
            self._loads.pop(birth.gateway, None)
        if not retained:
            self._heard[birth.gateway] = now_ns

    def _take_roster(self, payload: bytes) -> None:
        """Whoever it has revoked is not seen any more."""
        if self._roster is None or not payload:
            return
        found = envelope.open_roster(payload, self.site, self._authority)
        if found.revision > self._roster.revision:
            self._roster = found
            for name in [name for name, key in self._signers.items() if found.member(key) is None]:
                self._forget(name)

    def _document(self, gateway: str, payload: bytes) -> bytes:
        """Of a birth, as its gateway wrote it. Raises Forged."""
        if self._roster is None:
            return envelope.unwrap(payload)
        found = envelope.open(payload, BIRTH, self._roster)
        if (found.by, found.role) != (gateway, "gateway"):
            raise Forged(f"birth: of {gateway}, signed by {found.by} ({found.role})")
        self._signers[gateway] = found.key
        return found.document

    def _forget(self, name: str) -> None:
        self._signers.pop(name, None)
        for table in (self._births, self._loads, self._heard):
            table.pop(name, None)

    def settled(self) -> bool:
        """Everyone who may be there was heard."""
        return bool(self._births) and all(name in self._heard or not birth.online for name, birth in self._births.items())

    def rows(self, now_ns: int) -> list[Row]:
        """In order of their names."""
        return [self._row(name, birth, now_ns) for name, birth in sorted(self._births.items())]

    def _row(self, name: str, birth: Birth, now_ns: int) -> Row:
        load, heard_ns = self._loads.get(name), self._heard.get(name)
        seen_s = None if heard_ns is None else (now_ns - heard_ns) / 1e9
        known = {} if load is None else {
            "queue": load.queue, "queue_ms": load.queue_ns / 1e6, "temperature_c": load.temperature_c, "hot": load.hot,
            "battery": load.battery, "tasks_in": load.tasks_in, "tasks_out": load.tasks_out,
            "latency_ms": load.latency_ns / 1e6 if load.latency_ns else None, "outbox_depth": load.outbox_depth,
            "disk_free_bytes": load.disk_free_bytes,
        }  # fmt: skip
        return Row(
            gateway=name,
            state=self._state(birth, load, seen_s),
            role=self._role(birth),
            seen_s=seen_s,
            models=_offers(birth, load),
            accelerators=list(birth.accelerators),
            rank=birth.rank,
            version=birth.version,
            instance=birth.instance,
            **known,  # type: ignore[arg-type]
        )

    def _role(self, birth: Birth) -> str:
        hosts = self.brokers is not None and self.brokers.host == birth.gateway and self.brokers.instance == birth.instance
        return "host" if hosts and birth.online else "candidate" if birth.may_host else "guest"

    @staticmethod
    def _state(birth: Birth, load: Load | None, seen_s: float | None) -> str:
        if not birth.online:
            return "offline"
        if seen_s is None:
            return "unproved"
        return "late" if seen_s > LATE_PERIODS * (load.period_s if load else PERIOD_S) else "online"


def _offers(birth: Birth, load: Load | None) -> list[Offer]:
    """With the times that it says now."""
    now = load.services if load is not None else {}
    return [msgspec.structs.replace(offer, service_ns=now.get(offer.model, offer.service_ns)) for offer in birth.offers]
