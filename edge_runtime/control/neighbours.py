"""What a gateway keeps for the others of its site, so that one that is dead can be replaced (runs): what is wanted of each, and
what each has reported last. A broker that moves is empty, and its host may be the one that is dead.

desired   as it came, with its signature; said again on its own topic where a broker does not know it, or an older one
kept      the report, on gw/{gateway}/config/kept, as the gateway has signed it: its key is revoked when it is replaced, and the
          roster remembers whose it was. Who keeps it can leave it away or say an older one, and cannot make one up

Of twenty gateways that keep the same one says it: each waits for a while of its own, and hears the one that was first.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from typing import Any, Protocol

import msgspec

from edge_runtime import config
from edge_runtime.bus import control as messages
from edge_runtime.bus import topics
from edge_runtime.bus.control import DESIRED_BYTES_MAX, REPORTED_BYTES_MAX, Reported
from edge_runtime.bus.messages import SEQ_MAX, BadMessage
from edge_runtime.control import admitted
from edge_runtime.control.layers import within_reach
from edge_runtime.control.neighbours_file import NeighboursFile
from edge_runtime.control.reporting import REPORTED
from edge_runtime.outbox.database import DiskError
from edge_runtime.ports import BrokerError, Dice, EdgeError, Message, Worker
from edge_runtime.trust import envelope
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.roster import Forged

LISTEN_S_MIN, LISTEN_S_MAX = 3.0, 9.0
"""On a new broker, before anything is said again: each gateway that is here has said its own by then."""

THINGS_MAX, BYTES_MAX = 400, 16 * 2**20
"""On the disk; what comes beyond it is not kept."""

WAITING_MAX = 64
"""Messages that wait for the disk, of each thing the newest; what is lost here is said again on the next broker."""

RANK_MAX, RANKS_AHEAD_MAX = 2**62, 10**6
"""Of a report, by a clock (nanoseconds: the year 2116); beyond it, so much more than what is held. Else a report with the highest
of all ranks would be the last one for ever."""

DESIRED, KEPT = "desired", "kept"


class Kept(msgspec.Struct, frozen=True):
    """A report as somebody else keeps it: where there is a site, in its envelope. Of two the higher `rank` is newer."""

    rank: int
    report: msgspec.Raw


class Link(Protocol):
    """mesh.link.Link, as far as it is needed here."""

    site: str
    gateway: str

    @property
    def connected(self) -> bool: ...

    def overhear(self, kind: Any, handler: Callable[[str, Message], None], *filters: str) -> None: ...

    async def send(self, topic: str, payload: bytes, *, qos: int = 0, retain: bool = False) -> None: ...


class Neighbours:
    """Of one gateway. `settings`: as they are now. `identity`: where there is a site; then only what is signed is kept."""

    def __init__(
        self, link: Link, identity: Identity | None, settings: Callable[[], config.Config], file: NeighboursFile,
        new_worker: Callable[[], Worker], silent: Callable[[], bool], dice: Dice, log: Any,
    ) -> None:  # fmt: skip
        """`silent`: nothing is said now; see Control.waits."""
        self._link, self._identity, self._settings, self._file = link, identity, settings, file
        self._new_worker, self._silent = new_worker, silent
        self._worker: Worker
        self._dice, self._log = dice, log
        self.ranks: dict[tuple[str, str], int] = {}
        """Of what is on the disk: (what, target) -> rank."""
        self._sizes: dict[tuple[str, str], int] = {}
        self._said: dict[tuple[str, str], int] = {}
        """On this broker."""
        self._waiting: dict[tuple[str, str], Message] = {}
        self._news, self._missing = asyncio.Event(), asyncio.Event()
        self._connections = 0
        self._full = False
        link.overhear(
            "config", self._on_config, topics.desired(link.site, "gw/+"), topics.desired(link.site, "group/+"),
            topics.gateway(link.site, "+", "config", "reported"), topics.gateway(link.site, "+", "config", KEPT),
        )  # fmt: skip

    async def joined(self) -> None:
        """A new connection. Never waits."""
        self._connections += 1
        self._said = {}
        self._missing.set()

    def repeat(self) -> None:
        """What is missing on this broker may be said by now."""
        self._missing.set()

    async def run(self) -> None:
        """Until cancelled."""
        self._worker = self._new_worker()
        try:
            with contextlib.suppress(DiskError):
                for what, target, rank, size_bytes in await self._worker.run(self._file.things):
                    self.ranks[what, target], self._sizes[what, target] = rank, size_bytes
            async with asyncio.TaskGroup() as group:
                group.create_task(self._keep_all(), name="neighbours-keep")
                group.create_task(self._repeat_all(), name="neighbours-repeat")
        finally:
            self._worker.abandon()

    # --- what comes in: called by the link, decides at once ---

    def _on_config(self, gateway: str, message: Message) -> None:
        target, what = topics.desired_target(self._link.site, message.topic), DESIRED
        if target is None:
            target, what = f"gw/{gateway}", message.topic.rpartition("/")[2]
        if target == f"gw/{self._link.gateway}":
            return
        if (what, target) in self._waiting or len(self._waiting) < WAITING_MAX:
            self._waiting[what, target] = message
            self._news.set()

    async def _keep_all(self) -> None:
        while True:
            await self._news.wait()
            self._news.clear()
            while self._waiting:
                (what, target), message = self._waiting.popitem()
                with contextlib.suppress(BadMessage, EdgeError, DiskError):  # whoever it is for has said so, and counted it
                    try:
                        if message.payload:
                            await self._hear(what, target, message)
                        else:
                            await self._miss(what, target)
                    except (BadMessage, Forged, admitted.NotAdmitted):
                        await self._miss(what, target)
                        raise

    async def _hear(self, what: str, target: str, message: Message) -> None:
        if what == DESIRED:
            said = admitted.opened(message.payload, "desired", self._settings(), self._identity, None)
            rank = messages.desired(said.document, target, named=said.signed).revision
            if rank is not None and within_reach(self.ranks.get((DESIRED, target), 0), rank):
                await self._take((DESIRED, target), rank, message.payload, said=rank)
            return
        gateway = target.partition("/")[2]
        held = self.ranks.get((KEPT, target), 0)
        if what == KEPT:
            rank, payload, _ = opened_kept(message.payload, self._identity, gateway)
            if rank <= max(RANK_MAX, held + RANKS_AHEAD_MAX):
                await self._take((KEPT, target), rank, payload, said=rank)
        elif what == "reported":
            report = report_of(message.payload, self._identity, gateway)
            if report.state != "trial" and report.config is not None and not self._is_revoked(message.payload):
                # What it says now is newer, whatever its clock says; what the broker remembers is as old as it is.
                rank = min(max(report.wall_ns, 0), RANK_MAX)
                await self._take((KEPT, target), rank if message.retain else max(rank, held + 1), message.payload)

    async def _miss(self, what: str, target: str) -> None:
        """The broker has lost it: whoever may say again what was signed may also take it away, or put something else there. Not
        said again is what would not count: two who hold such things would never come to an end."""
        if self._identity is None or (what, target) not in self.ranks:
            return
        if what == DESIRED:
            payload = await self._worker.run(self._file.payload, what, target)
            admitted.opened(payload, "desired", self._settings(), self._identity, None)
        self._said.pop((what, target), None)
        self._missing.set()

    def _is_revoked(self, payload: bytes) -> bool:
        """What a dead gateway has said stays as it is: whoever has its disk could say more."""
        if self._identity is None:
            return False
        try:
            envelope.open(payload, REPORTED, self._identity.roster)
        except Forged:
            return True
        return False

    async def _take(self, key: tuple[str, str], rank: int, payload: bytes, said: int = 0) -> None:
        """If it is newer. `said`: what this broker has."""
        self._said[key] = max(said, self._said.get(key, 0))
        held = self.ranks.get(key, 0)
        if rank > held and self._fits(key, len(payload)):
            if key[0] == KEPT and held and payload == await self._worker.run(self._file.payload, *key):
                return  # the same, said again
            await self._worker.run(self._file.keep, *key, rank, payload)
            self.ranks[key], self._sizes[key] = rank, len(payload)
        if self.ranks.get(key, 0) > self._said[key]:
            self._missing.set()

    def _fits(self, key: tuple[str, str], size_bytes: int) -> bool:
        others = sum(size for each, size in self._sizes.items() if each != key)
        fits = (key in self._sizes or len(self._sizes) < THINGS_MAX) and others + size_bytes <= BYTES_MAX
        if not fits and not self._full:
            self._full = True
            self._log.warning("neighbours_full", cause=f"{THINGS_MAX} documents or {BYTES_MAX} bytes", hint="others keep them")
        return fits

    # --- what is said ---

    async def _repeat_all(self) -> None:
        while True:
            await self._missing.wait()
            self._missing.clear()
            connection = self._connections
            await asyncio.sleep(self._dice.uniform(LISTEN_S_MIN, LISTEN_S_MAX))
            if connection == self._connections and not self._silent():
                with contextlib.suppress(BrokerError, DiskError):  # on the next broker again
                    await self._say_missing()

    async def _say_missing(self) -> None:
        for key, rank in list(self.ranks.items()):
            if self._said.get(key, 0) >= rank or not self._link.connected:
                continue
            what, target = key
            payload = await self._worker.run(self._file.payload, what, target)
            if what == KEPT:
                payload = pack_kept(rank, payload)
                topic = topics.gateway(self._link.site, target.partition("/")[2], "config", KEPT)
            else:
                topic = topics.desired(self._link.site, target)
            if self._said.get(key, 0) >= rank:  # somebody was faster
                continue
            await self._link.send(topic, payload, qos=1, retain=True)
            self._said[key] = rank
            self._log.info("said_for_another", what=what, target=target)


def pack_kept(rank: int, report: bytes) -> bytes:
    return msgspec.json.encode(Kept(rank, msgspec.Raw(report)))


def opened_kept(payload: bytes, identity: Identity | None, gateway: str) -> tuple[int, bytes, Reported]:
    """Rank, and the report of this gateway, as it came and as it is. Raises BadMessage, Forged: it has not said it."""
    try:
        kept = msgspec.json.decode(payload, type=Kept)
    except (msgspec.DecodeError, UnicodeDecodeError, RecursionError) as error:
        raise BadMessage(f"kept: {error}", "an older version?") from None
    if not 0 <= kept.rank < SEQ_MAX or len(kept.report) > REPORTED_BYTES_MAX + DESIRED_BYTES_MAX:
        raise BadMessage("kept: too large", "who else publishes there?")
    report = bytes(kept.report)
    return kept.rank, report, report_of(report, identity, gateway)


def report_of(payload: bytes, identity: Identity | None, gateway: str) -> Reported:
    """Raises BadMessage, Forged: it is none, or this gateway has not said it (with the key that it has, or had before it was
    revoked)."""
    document = payload if identity is None else envelope.open_late(payload, REPORTED, identity.roster, gateway)
    report = messages.unpack(document, Reported)
    if report.gateway != gateway:
        raise BadMessage(f"reported: of {report.gateway}, on the topic of {gateway}", "who publishes there?")
    return report
