"""Has this gateway's certificate renewed, long before it should have been (runs).

    half of its life is over, by a clock that is right --> request, retained --> a person: edge-runtime site renew
                                                                                              |
    on the disk, in force for the next connections <-- certificate of our authority? <-- answer, retained
                                                          the same from a stick <-- edge-runtime join --answer, beside us

A certificate of a site never ends by itself: no clock puts a gateway out. So there is time, and nothing is asked twice: one
retained request a certificate and connection, whatever the clock does. A clock that is not synchronised asks for nothing.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Callable
from typing import Any

from edge_runtime.bus import renewal, topics
from edge_runtime.bus.messages import BadMessage
from edge_runtime.control.audit import Entry, Kind
from edge_runtime.control.keeping import AGAIN_S, AUTHORITY, LOOK_S
from edge_runtime.control.reporting import Link
from edge_runtime.ports import BrokerError, Clock, EdgeError, Message, Worker
from edge_runtime.trust import certificates
from edge_runtime.trust.authority import MEMBER_DAYS
from edge_runtime.trust.files import NotWritten, Watched
from edge_runtime.trust.identity import Identity, Moved

DUE_S = MEMBER_DAYS * 86_400 // 2
"""Left of a certificate's life: with less a gateway asks for another one."""


class Renewing:
    """Of one gateway."""

    def __init__(
        self, link: Link, identity: Identity, note: Callable[[Entry], None], new_worker: Callable[[], Worker], clock: Clock,
        log: Any,
    ) -> None:  # fmt: skip
        """`note`: of the audit log."""
        self._link, self._identity, self._note, self._new_worker = link, identity, note, new_worker
        self._clock, self._log = clock, log
        self.refused: Counter[str] = Counter()
        """Answers that brought no certificate of ours."""
        self._news = asyncio.Event()
        self._answer: bytes | None = None
        self._file = Watched(identity.cert_file)
        self._asked = ""
        """Serial that was asked for on this connection."""
        self._ask_kept = False
        """A request of ours may stand on the broker although nothing is due."""
        link.on("renewal", self._on_renewal, *(self._topic(what) for what in ("request", "answer")))

    def left_s(self) -> float | None:
        """Until the certificate should have been renewed; below 0: since. None: nobody knows what time it is."""
        now = self._clock.now()
        return self._identity.not_after_s - now.wall_ns / 1e9 if now.synced else None

    @property
    def due(self) -> bool:
        left_s = self.left_s()
        return left_s is not None and left_s < DUE_S and not self._identity.is_revoked

    async def joined(self) -> None:
        """To be called on every new connection. Never waits."""
        self._asked = ""
        self._news.set()

    def look(self) -> None:
        """At the file, now: to be called with each new roster, for who brings a certificate by hand brings that, too. Where the
        roster was here first, over the broker, the file is found by itself, within LOOK_S. Never waits."""
        self._news.set()

    async def run(self) -> None:
        """Until cancelled."""
        worker = self._new_worker()
        try:
            while True:
                with contextlib.suppress(TimeoutError):
                    async with asyncio.timeout(LOOK_S):
                        await self._news.wait()
                self._news.clear()
                await self._take_file(worker)
                if self._answer is not None:
                    await self._take_answer(worker)
                with contextlib.suppress(BrokerError):  # on the next connection
                    await self._ask()
        finally:
            worker.abandon()

    # --- inside -------------------------------------------------------------------------------------------------------

    def _topic(self, what: str) -> str:
        return topics.gateway(self._link.site, self._link.gateway, "renewal", what)

    def _on_renewal(self, gateway: str, message: Message) -> None:
        if gateway != self._link.gateway:
            return
        if message.topic == self._topic("answer") and message.payload:
            self._answer = message.payload
            self._news.set()
        elif message.topic == self._topic("request") and message.payload and message.retain:
            self._ask_kept = True  # of an earlier life
            self._news.set()

    async def _ask(self) -> None:
        serial = self._identity.subject.serial
        if not self._link.connected:
            return
        if self.due:
            if self._asked == serial:
                return
            csr = certificates.request(self._identity.key, self._identity.name).decode()
            document = renewal.pack(renewal.Request(gateway=self._identity.name, serial=serial, csr=csr))
            await self._link.send(
                self._topic("request"), self._identity.sign(document, renewal.RENEWAL), qos=1, retain=True
            )  # fmt: skip
            self._asked, self._ask_kept = serial, False
            self._log.warning("renewal_asked", days_left=round((self.left_s() or 0) / 86_400), hint="edge-runtime site renew")
        elif (self._asked and self._asked != serial) or (self._ask_kept and self.left_s() is not None):
            await self._link.send(self._topic("request"), b"", qos=1, retain=True)
            self._asked, self._ask_kept = "", False

    async def _take_answer(self, worker: Worker) -> None:
        payload, self._answer = self._answer or b"", None
        try:
            answer = renewal.unpack(payload, renewal.Answer)
            await self._take(answer.certificate.encode(), self._topic("answer"), worker)
        except NotWritten as error:
            self._refuse("disk", error)
            await asyncio.sleep(AGAIN_S)
            self._answer = self._answer or payload
            self._news.set()
        except EdgeError as error:
            self._refuse(_reason(error), error)

    async def _take_file(self, worker: Worker) -> None:
        """What is no certificate of ours stays there: it is for the next start."""
        try:
            if (pem := await worker.run(self._file.news)) is not None:
                await self._take(pem, str(self._file.path), worker)
        except EdgeError as error:
            self._refuse(_reason(error), error)

    async def _take(self, pem: bytes, via: str, worker: Worker) -> None:
        """Raises EdgeError: not ours, or the disk does not take it (NotWritten)."""
        before = self._identity.not_after_s
        if not await worker.run(self._identity.take_certificate, pem):  # the one that we have; it stays where it is
            return
        until = self._identity.not_after_s
        self._log.info("certificate_renewed", serial=self._identity.subject.serial, not_after_s=until)
        self._note(
            Entry(
                kind=Kind.TRUST, actor=AUTHORITY, via=via, subject="certificate",
                before={"not_after_s": before}, requested={"not_after_s": until}, outcome="renewed",
            )
        )  # fmt: skip

    def _refuse(self, reason: str, error: EdgeError) -> None:
        if not self.refused[reason]:
            self._log.warning("renewal_refused", reason=reason, cause=error.cause, hint=error.hint)
        self.refused[reason] += 1


def _reason(error: EdgeError) -> str:
    """`moved`: the folder is somebody else's by now."""
    if isinstance(error, BadMessage):
        return "malformed"
    return "moved" if isinstance(error, Moved) else "forged"
