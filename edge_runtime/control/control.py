"""Keeps this gateway at the configuration that is wanted of it (runs): takes documents, tries what they make, keeps it or takes
it back, and says what came of it.

    a document --> who says it? --> newer? --> canaries first? --> valid? --> on trial --> confirmed
                    admitted.py     layers.py   canaries.py        layers.py  trying.py    or reverted

One thing at a time, in one coroutine, and what commands change has its turn in it, too (`perform`): what a crash interrupts, the
next start finds in the book. Nothing of it needs the network but the document itself: a gateway that a change has cut off takes
it back all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter, deque
from collections.abc import Awaitable, Callable, Mapping, Sequence
from typing import Any

import msgspec

from edge_runtime import config
from edge_runtime.bus import control as messages
from edge_runtime.bus import topics
from edge_runtime.bus.control import Desired, Fault
from edge_runtime.bus.messages import BadMessage
from edge_runtime.control import admitted, canaries
from edge_runtime.control.book_file import BookError
from edge_runtime.control.calling import Calling, Word, leads_back
from edge_runtime.control.history import told
from edge_runtime.control.layers import (
    FILE,
    GATEWAY,
    BadLayers,
    Effective,
    Layer,
    Refused,
    Same,
    groups,
    layer_name,
    merge,
    newer,
    stack,
    steerable,
    validated,
)
from edge_runtime.control.origin import documents, is_numbered, layer_of
from edge_runtime.control.pages import LayerDocument
from edge_runtime.control.plan import plan
from edge_runtime.control.redaction import Redacting, Schemas
from edge_runtime.control.reporting import Link, Reporting, report
from edge_runtime.control.steering import Steering
from edge_runtime.control.trial import CALLED, STEADY_S
from edge_runtime.control.trying import Gateway, Trying
from edge_runtime.control.waiting import Waiting
from edge_runtime.ports import BrokerError, Clock, Dice, EdgeError, Message
from edge_runtime.trust import envelope
from edge_runtime.trust.roster import Forged

__all__ = ["Control", "Gateway"]

LOOK_S = 0.5
"""From one look at a configuration on trial to the next."""

JOBS_MAX = 64
"""What commands may have waiting for its turn."""

Job = Callable[[], Awaitable[Any]]


class Control:
    """Of one gateway, as long as it runs with `origin`."""

    def __init__(
        self, steering: Steering, gateway: Gateway, link: Link, schemas: Schemas, *, clock: Clock, dice: Dice, log: Any
    ) -> None:
        origin, identity = steering.origin, steering.identity
        self._origin, self._book, self._gateway, self._link = origin, steering.book, gateway, link
        self._audit = steering.audit
        self._identity, self._schemas, self._clock, self._log = identity, schemas, clock, log
        self._reporting = Reporting(link, identity, lambda: {} if self.waits else self._to_repeat(), dice, log)
        self.trying = Trying(origin, steering.book, steering.audit, gateway, schemas, link.gateway, self._say, log)
        self._shown = Redacting(schemas)
        self._canaries = canaries.Canaries(link.site)
        self._done_with: dict[str, None] = {}
        """Documents that a canary took back, and about which nothing more can be done here."""
        self._waiting = Waiting()
        self.calling = Calling()
        self.calling.then.append(self._reporting.repeat)
        self._jobs: deque[tuple[Job, asyncio.Future[Any] | None]] = deque()
        self._news = asyncio.Event()
        self.refused: Counter[str] = Counter()
        """What came and was not taken, by reason."""
        self.services = {"control": self.run, "control report": self._reporting.run}
        held = steering.book.base.get(GATEWAY)
        member = groups(origin.base, layer_of(held) if held else None)
        ours = (f"gw/{link.gateway}", *(f"group/{each}" for each in ("default", *member)))
        self._ours = tuple(topics.desired(link.site, each) for each in ours)
        link.on("config", self._on_config, *self._ours)

    async def joined(self) -> None:
        """To be called on every new connection to the broker."""
        await self._reporting.joined()

    async def perform(self, job: Job) -> Any:
        """In turn with everything else that changes the gateway. Returns what it returns, raises what it raises."""
        if len(self._jobs) >= JOBS_MAX:
            raise EdgeError(f"{JOBS_MAX} changes wait for their turn", "try again later")
        done: asyncio.Future[Any] = asyncio.get_running_loop().create_future()
        self._jobs.append((job, done))
        self._news.set()
        return await done

    def perform_in(self, wait_s: float, job: Job) -> None:
        """After a while, for what nobody waits for: an answer has to be out before everything is built anew."""

        def later() -> None:
            self._jobs.append((job, None))
            self._news.set()

        asyncio.get_running_loop().call_later(wait_s, later)

    async def run(self) -> None:
        """Until cancelled."""
        self.trying.begin()
        newest, faults = self._book.newest, self._origin.faults
        cause = {"cause": newest.cause} if newest and newest.cause else {}
        self._say("rejected" if faults else self._state(), document=newest.hash if newest else "", errors=faults, **cause)
        said = ""
        while True:
            try:
                await self._step()
                said = ""
            except BookError as error:  # nothing was changed; it is tried again
                if error.cause != said:
                    self._log.error("configuration_not_kept", cause=error.cause, hint=error.hint)
                    self._say(self._state(), cause=error.cause, hint=error.hint)
                said = error.cause
                await asyncio.sleep(LOOK_S)
            await self._wait()

    async def _step(self) -> None:
        self.calling.judge(self._counts)
        while self._jobs and self._gateway.successor is None:
            await self._perform(*self._jobs.popleft())
        while self._gateway.successor is None and (came := self._waiting.take(self.trying.holds)):
            target, payload = came
            try:
                await self._hear(target, payload)
            except BookError:
                self._waiting.put_back(target, payload)
                raise
        await self._canary_news()
        if self._gateway.successor is None and self.trying.judge:
            await self.trying.look()
        if not self._book.life.steady and self._now_s() - self.trying.began_s >= STEADY_S:
            await self._book.steady()

    async def _perform(self, job: Job, done: asyncio.Future[Any] | None) -> None:
        """Whoever asked hears what came of it; one who does not wait any more wanted it all the same."""
        try:
            result = await job()
        except EdgeError as error:
            if done is None:
                self._log.error("change_failed", cause=error.cause, hint=error.hint)
            elif not done.done():
                done.set_exception(error)
        else:
            if done is not None and not done.done():
                done.set_result(result)

    async def _wait(self) -> None:
        """For news; for the next look at a trial; until this start counts as a steady one."""
        limit_s = LOOK_S if self.trying.judge or self._waiting or self._jobs else None
        if limit_s is None and not self._book.life.steady:
            limit_s = max(LOOK_S, self.trying.began_s + STEADY_S - self._now_s())
        try:
            async with asyncio.timeout(limit_s):
                await self._news.wait()
        except TimeoutError:
            return
        self._news.clear()

    def _now_s(self) -> float:
        return asyncio.get_running_loop().time()

    # --- what comes in: called by the link, decides at once ---

    def _on_config(self, gateway: str, message: Message) -> None:
        target = topics.desired_target(self._link.site, message.topic)
        if target is None and message.topic.endswith("/reported"):
            self._canaries.heard(gateway, message.payload, self._identity)
        elif target and message.topic in self._ours and message.payload:
            home, word = self._link.home, Word(target, message.payload, message.retain)
            if not (self.waits and self.trying.layer in ("", layer_name(target)) and leads_back(word)):
                self._waiting.put(target, message.payload)
            self.calling.came(word, hosted=home is not None and home.host == self._link.gateway)
        self._news.set()

    @property
    def waits(self) -> bool:
        """To be called, as its trial wants it. Until then it says no document: after a next start that would look like a call."""
        return bool(self.trying.judge and CALLED in self.trying.judge.terms.parts and not self.calling.called)

    # --- a document ---

    async def _hear(self, target: str, payload: bytes) -> None:
        """It is taken, refused or passed over; each with a word about it."""
        try:
            said, desired, verdict = self._opened(target, payload)
        except (admitted.NotAdmitted, BadMessage, Forged) as error:
            self._refuse(target, error)
            return
        name = layer_name(target)
        newest = self._book.layers.get(name)
        if not isinstance(verdict, Refused):
            self._reporting.heard(name, desired.revision or 0)
        if isinstance(verdict, Refused):
            if verdict.older:
                self.refused["older"] += 1
                self._reporting.stale(name)
            else:
                self._refuse(target, verdict)
            return
        by = said.actor(desired.issuer)
        if not isinstance(verdict, Same):
            layer, now = verdict.layer, self._clock.now()
            kept = LayerDocument(layer=name, hash=layer.hash, payload=payload, stamp=now, revision=layer.revision)
            await self._take(layer, kept, desired, by, target)
        elif newest and newest.state == "held":  # it waits for canaries, perhaps since before this start
            await self._take(layer_of(newest), newest, desired, by, target)
        elif newest:
            await self._gate(newest, desired)

    def _opened(self, target: str, payload: bytes) -> tuple[admitted.Said, Desired, Any]:
        """Who says what, and whether it is newer than what we have. Raises NotAdmitted, BadMessage, Forged."""
        now, name = self._clock.now(), layer_name(target)
        now_s = now.wall_ns // 10**9 if now.synced else None
        said = admitted.opened(payload, "desired", self._gateway.settings, self._identity, now_s)
        desired = messages.desired(said.document, target, named=said.signed)
        held = self._book.layers.get(name)
        return said, desired, newer(layer_of(held) if held else None, desired, name, numbered=said.signed)

    def _counts(self, word: Word) -> bool:
        """As a call."""
        try:
            said, desired, verdict = self._opened(word.target, word.payload)
        except (admitted.NotAdmitted, BadMessage, Forged):
            return False  # counted when it has its turn
        lasting = desired.revision is not None and (said.signed or self._identity is None)
        return not isinstance(verdict, Refused) and (lasting or not word.kept)

    def _refuse(self, target: str, error: admitted.NotAdmitted | BadMessage | Forged | Refused) -> None:
        """Counted, and logged once for each reason: whoever may not speak must not fill the log, or the report."""
        reason = error.reason if isinstance(error, admitted.NotAdmitted) else "malformed"
        if not self.refused[reason]:
            self._log.warning("configuration_refused", target=target, reason=reason, cause=error.cause, hint=error.hint)
        self.refused[reason] += 1
        self._reporting.repeat()  # what we have of this layer waited for it
        if self._identity is None or reason == "malformed":
            self._say(self._state(), cause=f"refused: {error.cause}", hint=error.hint)

    async def _take(self, layer: Layer, kept: LayerDocument, desired: Desired, by: str, target: str) -> None:
        gate, key = await self._gate(kept, desired), canaries.key(kept)
        if gate is canaries.Gate.WAIT:
            await self._book.keep(kept)
            self._say("validating", document=layer.hash, cause=f"waits for {', '.join(self._canaries.missing(key))}")
            self._canaries.wait(key, target, kept.payload)
            return
        if gate is canaries.Gate.HALT:
            await self._reject(kept, by, f"canary {self._canaries.failed(key)} took it back", ())
            return
        try:
            effective, settings = self._made({**documents(self._book), layer.name: layer})
            settings = steerable(settings, layer.name)
            if desired.canaries and plan(self._gateway.settings, settings).moves:
                hint = "move one gateway by its own document first, look at it, and then the group, without canaries"
                raise BadLayers([Fault("canaries", "who waits for them does not hear them on another broker", hint)])
            if self._identity is None and (where := admitted.closed_by(settings)):
                hint = "join a site first, or set control.from_network in the file on the gateway"
                raise BadLayers([Fault("broker", f"open to the network ({where}), so nobody could change it again", hint)])
            made_of = {**self._book.base, layer.name: kept}
            if self._origin.file and FILE not in made_of:
                made_of = {FILE: self._origin.file, **made_of}
        except BadLayers as error:
            await self._reject(kept, by, "it is not valid", error.faults)
            return
        try:
            await self.trying.propose(
                effective, settings, tuple(made_of.values()), layer, by=by, note=desired.note, trial_s=desired.trial_s
            )
        except BookError:
            raise
        except EdgeError as error:  # an adapter that cannot be made with these options
            await self._reject(kept, by, error.cause, (Fault("devices", error.cause, error.hint, layer.name),))

    async def _gate(self, kept: LayerDocument, desired: Desired) -> canaries.Gate:
        """From now on its canaries are listened to: also by one of them, and by who has it."""
        gate = self._canaries.gate(self._link.gateway, canaries.key(kept), desired.canaries)
        with contextlib.suppress(BrokerError):  # then it is done on the next connection
            await self._link.also(*self._canaries.topics())
        return gate

    def _made(self, held: Mapping[str, Layer]) -> tuple[Effective, config.Config]:
        """Of these documents and the file. Raises BadLayers."""
        effective = merge(self._origin.base, stack(self._origin.base, held))
        return effective, validated(effective, self._schemas)

    async def _reject(self, kept: LayerDocument, by: str, cause: str, faults: Sequence[Fault]) -> None:
        await self._book.keep(msgspec.structs.replace(kept, state="rejected", cause=cause))
        self._log.warning("configuration_rejected", layer=kept.layer, by=by, cause=cause, faults=len(faults))
        self.trying.note(by, kept.layer, "rejected", cause)
        self._say("rejected", document=kept.hash, cause=cause, errors=tuple(faults))

    async def _canary_news(self) -> None:
        """Documents that wait for canaries have their turn again; of one that a canary took back, nothing stays."""
        for target, payload in self._canaries.ready():
            self._waiting.put_back(target, payload)
        base = [each for each in self._book.base.values() if canaries.key(each) not in self._done_with]
        halted = next((each for each in base if self._canaries.failed(canaries.key(each))), None)
        if self._gateway.successor is not None:
            return
        if halted is not None:
            why = f"canary {self._canaries.failed(canaries.key(halted))} took it back"
            if self._book.on_trial:
                await self.trying.revert(why)
            else:
                await self._go_on_without(halted, why, canaries.without(halted, self._book.base, self._book.before))
        elif unsigned := next((each for each in base if self._is_unsigned(each)), None):
            self._done_with[canaries.key(unsigned)] = None  # where it does not work without, the next start tries again
            made_of = {name: each for name, each in self._book.base.items() if each.serial != unsigned.serial}
            why = "it was taken before this gateway joined a site, and nobody has signed it"
            await self._go_on_without(unsigned, why, made_of)

    def _is_unsigned(self, held: LayerDocument) -> bool:
        """And signatures are wanted by now. While something is on trial, that is judged first."""
        if held.layer == FILE or not admitted.wants_signature(self._gateway.settings, self._identity, "desired"):
            return False
        return not (self._book.on_trial or self._book.life.safe or envelope.is_signed(held.payload))

    async def _go_on_without(self, halted: LayerDocument, why: str, made_of: Mapping[str, LayerDocument]) -> None:
        try:
            effective, settings = self._made({name: layer_of(each) for name, each in made_of.items() if name != FILE})
        except BadLayers as error:  # what this gateway has of its own needs it
            self._done_with[canaries.key(halted)] = None
            self._log.error("configuration_not_withdrawn", layer=halted.layer, cause=why, faults=len(error.faults))
            self._say(self._state(), cause=f"{why}; without it nothing is valid here", errors=error.faults)
            return
        await self.trying.withdraw(halted, why, effective, settings, tuple(made_of.values()))

    # --- for commands ---

    async def rollback(self, by: str) -> str:
        """To the last good configuration. Returns what happens to whom. Raises EdgeError."""
        return str(await self.perform(lambda: self.trying.rollback(by)))

    async def restart(self, kind: str, name: str) -> None:
        """One part, with the settings that it has then. `kind`: device, pipeline or sink."""
        await self.perform(lambda: self.trying.restart(kind, name))

    def restart_all_in(self, wait_s: float) -> None:
        self.perform_in(wait_s, lambda: self.trying.restart("", ""))

    async def history(self) -> list[dict[str, Any]]:
        """See history.py. Raises BookError."""
        return told(await self._book.history(), self._book.layers)

    def in_force(self, layer: str) -> bytes | None:
        """The document of a layer that the configuration is made of, as it came. None: there is none."""
        held = self._book.base.get(layer)
        return held.payload if held else None

    # --- what is said ---

    def _to_repeat(self) -> Mapping[str, LayerDocument]:
        """Documents that say their revision: of one without, nobody could tell that it is old."""
        wanted = admitted.wants_signature(self._gateway.settings, self._identity, "desired")
        said = {name: each for name, each in self._book.said.items() if is_numbered(each.payload)}
        waiting = self._waiting.layers  # what came is newer, or is told that it is not when it has its turn
        return {
            name: each for name, each in said.items() if name not in waiting and (not wanted or envelope.is_signed(each.payload))
        }

    def _state(self) -> Any:
        """Of the newest document, whatever else the gateway does."""
        newest = self._book.newest
        if self.trying.judge:
            return "trial"
        return newest.state if newest and newest.state in ("reverted", "rejected") else "active"

    def _say(self, state: Any, **more: Any) -> None:
        effective, book = self.trying.effective, self._book
        if self.trying.safe:
            more = {"mode": "safe", "cause": self._origin.start.why, **more}
        self._gateway.show(effective.hash, self.trying.safe)
        more = {"audit": str(self._audit.head), **more}
        now, shown = self._clock.now(), self._shown(effective.config)
        self._reporting.say(report(self._link.gateway, state, effective, book.layers, now, config=shown, **more))
