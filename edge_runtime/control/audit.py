"""The audit log: who changed what on this gateway, on the disk before it is done, in a chain that shows an edit.

    n = await audit.begin(Entry(kind=Kind.COMMAND, actor="person:alice", subject="point press/speed", requested=1200))
    ...                                                         # the write to the PLC
    await audit.complete(n, "verified", before=1100, read_back=1200)

| call       | for                                          | while the disk does not take it                       |
|------------|----------------------------------------------|-------------------------------------------------------|
| `begin`    | what is about to be done                     | raises AuditError at once: then it must not be done   |
| `append`   | the same, where there is no outcome to wait for | raises AuditError at once                          |
| `complete` | what came of it: that has happened           | waits and tries again; until then the intent stands alone |
| `note`     | what happens whether it is written or not (rules, starts) | is kept in memory, bounded, and written later |
"""

from __future__ import annotations

import asyncio
from collections import deque
from collections.abc import Sequence
from functools import partial
from typing import Any

import msgspec

from edge_runtime.control.audit_chain import BEGUN, Entry, Head, Kind
from edge_runtime.control.audit_file import AuditFile, Draft
from edge_runtime.control.audit_rate import Rate
from edge_runtime.outbox.database import HINTS, DiskError, Trouble, trouble
from edge_runtime.ports import Clock, EdgeError, Worker
from edge_runtime.saying import told

__all__ = ["AuditError", "AuditLog", "Entry", "Head", "Kind"]

WAITING_MAX = 1000
"""Entries that wait for the disk. One more is refused; of `note`, counted."""

INTENTS_MAX = 1000
"""Intents whose outcome has not come."""

RETRY_S_MIN, RETRY_S_MAX = 0.1, 2.0


class AuditError(EdgeError):
    """The entry could not be written, and what it tells of must not be done."""


class _Waiting:
    """An entry on its way to the disk. `patient`: tried until it is there."""

    __slots__ = ("done", "draft", "patient")

    def __init__(self, draft: Draft, patient: bool) -> None:
        self.draft, self.patient = draft, patient
        self.done: asyncio.Future[int] = asyncio.get_running_loop().create_future()


class AuditLog:
    """Used by one event loop; call `open` first. The worker is the log's own."""

    def __init__(self, file: AuditFile, *, worker: Worker, clock: Clock, log: Any) -> None:
        self._file, self._worker, self._clock, self._log = file, worker, clock, log
        self._waiting: deque[_Waiting] = deque()
        self._intents: dict[int, Entry] = {}
        self._wake = asyncio.Event()
        self._keys = 0
        self._rate = Rate()
        self._closing = False
        self._task: asyncio.Task[None] | None = None
        self.trouble = ""
        """Why nothing can be written at the moment; "": it can."""

    # --- life ---

    async def open(self) -> None:
        """Closes what an earlier life left open. A disk that takes nothing does not keep the gateway from starting."""
        if not await self._write([]) and self._file.corrupt:
            await self._write([])  # it is set aside, and another one begun
        self._task = asyncio.create_task(self._run(), name="audit")

    async def close(self) -> None:
        """Writes what is left, then closes the file. While the disk is broken this waits: cancel it then."""
        for entry in self._rate.all_left_out():
            self._put(entry, patient=True)
        self._closing = True
        self._wake.set()
        if self._task:
            await self._task
        await self._worker.run(self._file.drop)
        self._worker.close()

    async def ended(self) -> None:
        """Returns after `close`. Raises what the writer did not expect: then nothing is written any more."""
        assert self._task
        await asyncio.shield(self._task)

    @property
    def head(self) -> Head:
        """The newest entry on the disk. Told to others, it shows later that the log's end was cut off or written anew."""
        return self._file.head

    # --- what comes in ---

    async def append(self, entry: Entry) -> int:
        """Returns the entry's n when it is on the disk. Raises AuditError."""
        return await self._put(entry, patient=False).done

    async def begin(self, entry: Entry) -> int:
        """Returns n when the intent is on the disk; only then may it be done, and then `complete(n, ...)` tells what came of it.
        Raises AuditError. A caller that is cancelled while it waits must not do it; the log says so."""
        if len(self._intents) >= INTENTS_MAX:
            raise AuditError(f"{INTENTS_MAX} commands have no outcome yet", "wait until some of them are done")
        waiting = self._put(msgspec.structs.replace(entry, outcome=BEGUN), patient=False)
        try:
            n = await asyncio.shield(waiting.done)
        except asyncio.CancelledError:
            waiting.done.add_done_callback(partial(self._withdraw, entry))
            raise
        self._intents[n] = entry
        return n

    async def complete(self, n: int, outcome: str, *, before: Any = None, read_back: Any = None, why: str = "") -> int:
        """Returns the n of the outcome's entry when it is on the disk, however long that takes; to cancel it does not take it
        back. `before`: where it was not known to `begin`."""
        intent = self._intents.pop(n)
        entry = msgspec.structs.replace(
            intent,
            before=intent.before if before is None else before,
            read_back=read_back,
            outcome=outcome,
            why=why or intent.why,
        )
        return await self._put(entry, n, patient=True).done

    def note(self, entry: Entry) -> None:
        """Of one actor only so many in a time (audit_rate): of those beyond there is one entry that counts them."""
        if self._closing:
            return
        entries, wait_s = self._rate.take(entry, self._clock.mono_ns(), room=len(self._waiting) < WAITING_MAX)
        for each in entries:
            self._put(each, patient=True)
        if wait_s:
            asyncio.get_running_loop().call_later(wait_s, self._tell_left_out, entry.actor)

    def _tell_left_out(self, actor: str) -> None:
        if not self._closing and (entry := self._rate.left_out(actor)):
            self._put(entry, patient=True)

    def _withdraw(self, entry: Entry, done: asyncio.Future[int]) -> None:
        if not done.cancelled() and not done.exception() and not self._closing:
            outcome = msgspec.structs.replace(entry, outcome="refused", why="given up before it was executed")
            self._put(outcome, done.result(), patient=True)

    def _put(self, entry: Entry, completes: int = 0, *, patient: bool) -> _Waiting:
        if self._closing:
            raise AuditError("the audit log is closed", "the gateway is stopping")
        if not patient and len(self._waiting) >= WAITING_MAX:
            raise AuditError(f"{WAITING_MAX} entries wait for the audit log's disk", self.trouble or "send commands more slowly")
        self._keys += 1
        waiting = _Waiting(Draft(self._keys, self._clock.now(), entry, completes), patient)
        self._waiting.append(waiting)
        self._wake.set()
        return waiting

    # --- the writer ---

    async def _run(self) -> None:
        retry_s = RETRY_S_MIN
        try:
            while self._waiting or not self._closing:
                await self._wake.wait()
                self._wake.clear()
                while self._waiting:
                    if await self._write([*self._waiting][: self._file.entries_max]):
                        retry_s = RETRY_S_MIN
                        continue
                    await self._woken(retry_s)
                    retry_s = min(2 * retry_s, RETRY_S_MAX)
        except BaseException as error:
            # A fault of ours, or the end. Whoever waits, or comes later, must hear of it and not wait for ever.
            self._closing = True
            self._refuse([*self._waiting], AuditError(f"the audit log has ended: {told(error)}", "restart the gateway"))
            raise

    async def _woken(self, timeout_s: float) -> None:
        """Whoever comes now is not kept waiting: the disk is asked for it, and it gets its answer."""
        try:
            async with asyncio.timeout(timeout_s):
                await self._wake.wait()
        except TimeoutError:
            return
        self._wake.clear()

    async def _write(self, batch: Sequence[_Waiting]) -> bool:
        try:
            numbers = await self._worker.run(self._file.write, [each.draft for each in batch])
        except (DiskError, OSError, EdgeError) as error:
            await self._worker.run(self._file.drop)
            refusal = self._troubled(error)
            self._refuse([each for each in self._waiting if not each.patient], refusal)
            return False
        for each in batch:
            self._waiting.remove(each)
            if not each.done.done():
                each.done.set_result(numbers[each.draft.key])
        self._recovered()
        return True

    def _refuse(self, refused: Sequence[_Waiting], error: AuditError) -> None:
        for each in refused:
            self._waiting.remove(each)
            if not each.done.done():
                each.done.set_exception(error)
                each.done.exception()  # whoever waits hears of it; who does not wait any more need not

    def _troubled(self, error: DiskError | OSError | EdgeError) -> AuditError:
        if isinstance(error, DiskError):
            kind = trouble(error)
            self._file.corrupt = kind is Trouble.CORRUPT
            cause, hint = str(error), HINTS[kind]
        else:
            cause, hint = (error.cause, error.hint) if isinstance(error, EdgeError) else (error.strerror or "", "check the disk")
        if not self.trouble:
            self._log.error("audit_blocked", cause=cause, hint="commands are refused until the audit log can be written")
        self.trouble = cause
        return AuditError(f"the audit log cannot be written: {cause}", hint)

    def _recovered(self) -> None:
        if self.trouble:
            self._log.info("audit_works")
        if self._file.aside:
            self._log.error("audit_replaced", cause="the file was damaged or exchanged", aside=str(self._file.aside))
        self.trouble, self._file.aside = "", None
