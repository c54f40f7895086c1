"""Keeps the site's roster (runs): takes a newer one from whoever brings it, hands ours on where there is none or an older one.

    a roster on edge/{site}/roster --> signed by our authority? --> newer? --> on the disk --> in force, at once, everywhere
                                        no: counted                 older: counted, ours is said again

So a revocation reaches a site that has no internet with the first gateway, or person, that has it; or on a stick, for the file on
the disk is looked at while we run: `edge-runtime join --roster` writes it beside us. The highest revision wins; two of the same
revision are told of, and nobody fights. A gateway that is revoked itself says so, and says no roster any more.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable
from typing import Any

import msgspec

from edge_runtime.bus import topics
from edge_runtime.bus.messages import BadMessage
from edge_runtime.control.audit import Entry, Kind
from edge_runtime.control.reporting import LISTEN_S_MAX, LISTEN_S_MIN, Link
from edge_runtime.ports import BrokerError, Dice, EdgeError, Message, Worker
from edge_runtime.trust.envelope import ROSTER_BYTES_MAX, open_roster
from edge_runtime.trust.files import Watched
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.roster import Forged, Roster

WAITING_MAX = 8
WAITING_BYTES_MAX = 2 * ROSTER_BYTES_MAX
"""Rosters that wait to be looked at: so many, or one of the largest size. Of more the oldest are dropped: a good one is said
again by who has it."""

AGAIN_S = 2.0
"""After the disk did not take one."""

LOOK_S = 5.0
"""How often the file on our disk is looked at."""

AUTHORITY = "authority"
"""Who changes a roster, for the audit log."""

Changed = Callable[[], Awaitable[None] | int | None]


class Standing(msgspec.Struct, frozen=True):
    """Of this gateway at its site. `cause`: why it does not stand well; "": it does."""

    revision: int
    members: int
    revoked: bool = False
    cause: str = ""
    hint: str = ""


class Keeping:
    """Of one gateway. `changed`: called in order with each new roster, as soon as it is in force."""

    def __init__(
        self, link: Link, identity: Identity, note: Callable[[Entry], None], new_worker: Callable[[], Worker], dice: Dice,
        log: Any, refuses_us: Callable[[], EdgeError | None] = lambda: None,
    ) -> None:  # fmt: skip
        """`note`: of the audit log. `refuses_us`: what brokers of the site say who turn us away as revoked."""
        self._link, self._identity, self._note, self._new_worker = link, identity, note, new_worker
        self._dice, self._log, self._refuses_us = dice, log, refuses_us
        self.changed: list[Changed] = []
        self.refused: Counter[str] = Counter()
        """Rosters that were not taken, by reason: forged (nobody of ours has signed it), conflict, flood."""
        self._waiting: deque[bytes] = deque()
        self._file = Watched(identity.roster_file)
        self._wake, self._missing = asyncio.Event(), asyncio.Event()
        self._heard = 0
        """The newest revision that was said on this broker."""
        self._connections = 0
        self._trouble: EdgeError | None = None
        self._was_revoked = False
        link.on("roster", self._on_roster, topics.roster(link.site))

    @property
    def standing(self) -> Standing:
        roster, trouble = self._identity.roster, self._refuses_us() or self._trouble
        if self._identity.is_revoked:
            cause, hint = "this gateway was revoked: no other member hears it", "let it in again: edge-runtime site token"
            return Standing(roster.revision, len(roster.members), True, cause, hint)
        told = (trouble.cause, trouble.hint) if trouble else ("", "")
        return Standing(roster.revision, len(roster.members), False, *told)

    async def joined(self) -> None:
        """To be called on every new connection. Never waits."""
        self._connections += 1
        self._heard = 0
        self._missing.set()

    async def run(self) -> None:
        """Until cancelled."""
        self._look_at_ourselves()
        worker = self._new_worker()
        try:
            async with asyncio.TaskGroup() as group:
                group.create_task(self._take(worker), name="roster-take")
                group.create_task(self._hand_on(), name="roster-hand-on")
        finally:
            worker.abandon()

    # --- what is heard ---

    def _on_roster(self, _sender: str, message: Message) -> None:
        if len(message.payload) > WAITING_BYTES_MAX:
            raise BadMessage(f"roster: {len(message.payload)} bytes, at most {WAITING_BYTES_MAX} are taken", "who publishes it?")
        self._waiting.append(message.payload)
        while len(self._waiting) > WAITING_MAX or sum(map(len, self._waiting)) > WAITING_BYTES_MAX:
            self._waiting.popleft()
            self.refused["flood"] += 1
        self._wake.set()

    async def _take(self, worker: Worker) -> None:
        """One after the other, and the disk between any two: whoever floods the topic hides nothing that came on a stick."""
        while True:
            await self._look(worker)
            if not self._waiting:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._wake.wait()
                self._wake.clear()
            else:
                await self._judge(self._waiting.popleft(), worker)

    async def _look(self, worker: Worker) -> None:
        try:
            await self._compare(worker)
        except Forged as error:
            self._refuse("forged", error)
        except EdgeError as error:
            self._file.forget()
            self._tell_trouble(error)

    async def _compare(self, worker: Worker) -> None:
        """Ours with what somebody has put on our disk, beside us. What our authority has not signed stays there, and so
        does what is of another site, that this gateway has joined and will belong to when it starts again. Raises EdgeError."""
        payload, ours = await worker.run(self._file.news), self._identity.roster
        if payload is None:
            return
        if payload != self._identity.signed_roster:
            await worker.run(self._identity.check_folder)
            found = await worker.run(open_roster, payload, self._identity.site, self._identity.authority)
            if found.revision > ours.revision:
                if await self._take_newer(payload, str(self._file.path), ours, worker):
                    self._missing.set()  # the broker may not have it
                return
            if found.revision < ours.revision:
                await worker.run(self._identity.keep_roster)
            elif found != ours:
                self._refuse_conflict()
        self._trouble = None

    async def _judge(self, payload: bytes, worker: Worker) -> None:
        ours = self._identity.roster
        if not payload:  # somebody took it from the broker's memory
            self._say_again()
            return
        if payload == self._identity.signed_roster:
            self._heard = max(self._heard, ours.revision)
            return
        try:
            found = await worker.run(open_roster, payload, self._identity.site, self._identity.authority)
        except Forged as error:
            self._refuse("forged", error)
            self._say_again()
            return
        self._heard = max(self._heard, found.revision)
        if found.revision < ours.revision:
            self.refused["older"] += 1  # no news, so not logged: also who was away for long says one
            self._say_again()
        elif found.revision > ours.revision:
            taken = await self._take_newer(payload, topics.roster(self._link.site), ours, worker)
            if not taken and not self._waiting:
                self._waiting.append(payload)
        elif found != ours:
            self._refuse_conflict()

    async def _take_newer(self, payload: bytes, via: str, before: Roster, worker: Worker) -> bool:
        """False: the disk does not take it. A revocation must not get lost with that: it is to be tried again."""
        try:
            await worker.run(self._identity.take_roster, payload)
        except EdgeError as error:
            self._tell_trouble(error)
            await asyncio.sleep(AGAIN_S)
            return False
        self._trouble = None
        await self._tell(before, via)
        return True

    async def _tell(self, before: Roster, via: str) -> None:
        roster = self._identity.roster
        put_out = sorted({each.name for each in roster.revoked if not before.is_revoked(key=each.key)})
        self._log.info("roster_taken", revision=roster.revision, members=len(roster.members), revoked=put_out)
        requested = {"revision": roster.revision, "members": len(roster.members), "revoked": put_out}
        self._note(
            Entry(
                kind=Kind.TRUST, actor=AUTHORITY, via=via, subject="roster",
                before={"revision": before.revision}, requested=requested, outcome="taken",
            )
        )  # fmt: skip
        for each in self.changed:
            done = each()
            if isinstance(done, Awaitable):
                await done
        self._look_at_ourselves()

    def _look_at_ourselves(self) -> None:
        if self._identity.is_revoked and not self._was_revoked:
            standing = self.standing
            self._log.error("gateway_revoked", revision=standing.revision, cause=standing.cause, hint=standing.hint)
            self._note(
                Entry(
                    kind=Kind.TRUST, actor=AUTHORITY, subject=f"gateway {self._identity.name}", outcome="revoked",
                    why=f"revision {standing.revision}",
                )
            )  # fmt: skip
        self._was_revoked = self._identity.is_revoked

    def _tell_trouble(self, error: EdgeError) -> None:
        if self._trouble is None or self._trouble.cause != error.cause:
            self._log.error("roster_not_kept", cause=error.cause, hint=error.hint)
        self._trouble = error

    def _refuse_conflict(self) -> None:
        """No fight: neither is more than the other."""
        cause = f"two rosters with revision {self._identity.roster.revision}"
        self._refuse("conflict", EdgeError(cause, "was the authority's folder restored from a backup?"))

    def _refuse(self, reason: str, error: EdgeError) -> None:
        if not self.refused[reason]:
            self._log.warning("roster_refused", reason=reason, cause=error.cause, hint=error.hint)
        self.refused[reason] += 1

    # --- what is said ---

    def _say_again(self) -> None:
        """What the broker keeps is worth less than ours."""
        self._heard = 0
        self._missing.set()

    async def _hand_on(self) -> None:
        """Listens first: what the broker has comes by then, and of twenty gateways one says it."""
        while True:
            await self._missing.wait()
            self._missing.clear()
            connection = self._connections
            await asyncio.sleep(self._dice.uniform(LISTEN_S_MIN, LISTEN_S_MAX))
            if connection == self._connections:
                with contextlib.suppress(BrokerError):  # on the next one it is said
                    await self._say()

    async def _say(self) -> None:
        identity = self._identity
        if identity.is_revoked or self._heard >= identity.roster.revision or not self._link.connected:
            return
        revision, payload = identity.roster.revision, identity.signed_roster
        await self._link.send(topics.roster(self._link.site), payload, qos=1, retain=True)
        self._heard = max(self._heard, revision)
        self._log.info("roster_said", revision=revision)
