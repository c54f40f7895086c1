"""Keeps this gateway at the configuration that is wanted of it (runs): takes documents, tries what they make, keeps it or takes
it back, and says what came of it.

    a document --> who says it? --> newer? --> canaries first? --> valid? --> on trial --> confirmed
                    admitted.py     layers.py   canaries.py        layers.py  the book      or reverted

One thing at a time, in one coroutine: what a crash interrupts, the next start finds in the book. Nothing of it needs the network
but the document itself: a gateway that a change has cut off takes it back all the same.
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from edge_runtime import config
from edge_runtime.bus import control as messages
from edge_runtime.bus import topics
from edge_runtime.bus.control import Desired, Fault
from edge_runtime.bus.messages import BadMessage
from edge_runtime.control import admitted, canaries
from edge_runtime.control.audit import Entry, Kind
from edge_runtime.control.book_file import BookError
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
from edge_runtime.control.origin import active, as_text, documents, layer_of, of_text
from edge_runtime.control.pages import LayerDocument
from edge_runtime.control.plan import Plan, Wiring, plan
from edge_runtime.control.redaction import Schemas, redacted
from edge_runtime.control.reporting import Link, Reporting, report
from edge_runtime.control.steering import Steering
from edge_runtime.control.trial import EVERYTHING, STEADY_S, Judge, Part, Terms
from edge_runtime.ports import BrokerError, Clock, Dice, EdgeError, Message
from edge_runtime.trust.roster import Forged

LOOK_S = 0.5
"""From one look at a configuration on trial to the next."""

TARGETS_MAX = 64
"""Groups whose documents wait at once; of each the newest."""

CHANGE_S_MAX = 30.0
"""The parts of a change have so long to stop and start; then everything is built anew."""


class Gateway(Protocol):
    """gateway.Gateway, as far as it is steered."""

    settings: config.Config
    successor: config.Config | None

    def wire(self, name: str, device: config.Device, /) -> Wiring: ...
    def parts(self) -> Mapping[str, Part]: ...
    async def change(self, settings: config.Config, plan: Plan, kept: config.Config | None) -> None: ...
    async def settle(self) -> None: ...
    def become(self, settings: config.Config) -> None: ...


class Control:
    """Of one gateway, as long as it runs with `origin`."""

    def __init__(
        self, steering: Steering, gateway: Gateway, link: Link, schemas: Schemas, *, clock: Clock, dice: Dice, log: Any
    ) -> None:
        origin, identity = steering.origin, steering.identity
        self._origin, self._book, self._audit, self._gateway, self._link = origin, steering.book, steering.audit, gateway, link
        self._identity, self._schemas, self._clock, self._log = identity, schemas, clock, log
        self._reporting = Reporting(link, identity, lambda: self._book.said, dice, log)
        self._effective = origin.effective
        self._redacted: tuple[Effective, dict[str, Any]] | None = None
        self._canaries = canaries.Canaries(link.site)
        self._waiting: dict[str, bytes] = {}
        """Documents that came, by target."""
        self._news = asyncio.Event()
        self._safe = origin.safe
        self._judge: Judge | None = None
        self._since_s = self._began_s = 0.0
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

    async def run(self) -> None:
        """Until cancelled."""
        self._began_s = self._since_s = asyncio.get_running_loop().time()
        if self._book.on_trial:
            self._judge = Judge(self._book.on_trial.terms)
        newest, faults = self._book.newest, self._origin.faults
        cause = {"cause": newest.cause} if newest and newest.cause else {}
        self._say("rejected" if faults else self._state(), document=newest.hash if newest else "", errors=faults, **cause)
        while True:
            try:
                await self._step()
            except BookError as error:
                self._log.error("configuration_not_kept", cause=error.cause, hint=error.hint)
                self._say(self._state(), cause=error.cause, hint=error.hint)
                await asyncio.sleep(LOOK_S)
            await self._wait()

    async def _step(self) -> None:
        await self._canary_news()
        while self._waiting and self._gateway.successor is None:
            target = next(iter(self._waiting))
            await self._hear(target, self._waiting.pop(target))
        if self._gateway.successor is None and self._judge:
            await self._look()
        if not self._book.life.steady and self._now_s() - self._began_s >= STEADY_S:
            await self._book.steady()

    async def _wait(self) -> None:
        """For news; for the next look at a trial; until this start counts as a steady one."""
        limit_s = LOOK_S if self._judge else None
        if limit_s is None and not self._book.life.steady:
            limit_s = max(LOOK_S, self._began_s + STEADY_S - self._now_s())
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
        elif (
            target
            and message.topic in self._ours
            and message.payload
            and (target in self._waiting or len(self._waiting) < TARGETS_MAX)
        ):
            self._waiting[target] = message.payload
        self._news.set()

    # --- a document ---

    async def _hear(self, target: str, payload: bytes) -> None:
        """It is taken, refused or passed over; each with a word about it."""
        now = self._clock.now()
        try:
            said = admitted.opened(
                payload, "desired", self._gateway.settings, self._identity, now.wall_ns // 10**9 if now.synced else None
            )
            desired = messages.desired(said.document, target, named=said.signed)
        except (admitted.NotAdmitted, BadMessage, Forged) as error:
            self._refuse(target, error)
            return
        name = layer_name(target)
        newest = self._book.layers.get(name)
        verdict = newer(layer_of(newest) if newest else None, desired, name, numbered=said.signed)
        self._reporting.heard(name, desired.revision or 0)
        if isinstance(verdict, Refused):
            if verdict.older:
                self.refused["older"] += 1
                self._reporting.stale(name)
            else:
                self._refuse(target, verdict)
            return
        by = said.by or desired.issuer or "somebody on the broker"
        if not isinstance(verdict, Same):
            layer = verdict.layer
            revision = layer.revision if desired.revision else None
            kept = LayerDocument(layer=name, hash=layer.hash, payload=payload, stamp=now, revision=revision)
            await self._take(layer, kept, desired, by, target)
        elif newest and newest.state == "held":  # it waits for canaries, perhaps since before this start
            await self._take(layer_of(newest), newest, desired, by, target)
        elif newest:
            await self._gate(newest, desired)

    def _refuse(self, target: str, error: admitted.NotAdmitted | BadMessage | Forged | Refused) -> None:
        """Counted, and logged once for each reason: whoever may not speak must not fill the log, or the report."""
        reason = error.reason if isinstance(error, admitted.NotAdmitted) else "malformed"
        if not self.refused[reason]:
            self._log.warning("configuration_refused", target=target, reason=reason, cause=error.cause, hint=error.hint)
        self.refused[reason] += 1
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
        except BadLayers as error:
            await self._reject(kept, by, "it is not valid", error.faults)
            return
        made_of = {**self._book.base, layer.name: kept}
        if self._origin.file and FILE not in made_of:
            made_of = {FILE: self._origin.file, **made_of}
        todo = plan(self._gateway.settings, settings, self._gateway.wire)
        await self._try(effective, settings, todo, tuple(made_of.values()), desired, by, layer)

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
        self._note(by, kept.layer, "rejected", cause)
        self._say("rejected", document=kept.hash, cause=cause, errors=tuple(faults))

    # --- trial ---

    async def _try(
        self, effective: Effective, settings: config.Config, todo: Plan, made_of: Sequence[LayerDocument],
        desired: Desired, by: str, layer: Layer,
    ) -> None:  # fmt: skip
        before, replaced = self._kept_settings(), self._book.on_trial
        # In the place of another trial: judged by all that is other than the active one, against how that was.
        terms = Terms(
            plan(before, settings, self._gateway.wire).parts if replaced else todo.parts,
            replaced.terms.before if replaced else dict(self._gateway.parts()),
            desired.trial_s or self._gateway.settings.control.trial_s,
            by,
            desired.note,
        )
        number = await self._book.propose(as_text(effective.config), effective.hash, made_of, terms)
        self._effective = effective
        if self._book.on_trial is None:  # the same as before, or the first one of all: there is nothing to go back to
            self._safe = False
            self._say("active", document=layer.hash)
            if todo:
                await self._apply(settings, todo, None)
            return
        if replaced and replaced.number == number:  # it makes nothing else than what is on trial already
            self._say("trial", document=layer.hash)
            return
        lines = todo.describe()
        self._log.info("configuration_on_trial", layer=layer.name, revision=layer.revision, by=by, does=lines)
        self._note(by, layer.name, "trial", "; ".join(lines))
        await self._begin(terms, settings, todo, before, document=layer.hash)

    async def _begin(self, terms: Terms, settings: config.Config, todo: Plan, kept: config.Config | None, **more: Any) -> None:
        """What the book has on trial now."""
        self._judge, self._since_s = Judge(terms), self._now_s()
        self._say("trial", restarts=todo.restarts, **more)
        await self._apply(settings, todo, kept)

    def _kept_settings(self) -> config.Config:
        """The active configuration: it may come back."""
        kept = active(self._book, self._schemas) if self._book.on_trial or self._book.life.safe else None
        return kept or self._gateway.settings

    async def _apply(self, settings: config.Config, todo: Plan, kept: config.Config | None) -> None:
        if todo.everything:
            self._gateway.become(settings)
            return
        try:
            async with asyncio.timeout(CHANGE_S_MAX):
                await self._gateway.change(settings, todo, kept)
        except (EdgeError, TimeoutError) as error:
            self._log.warning("configuration_change_failed", cause=str(error) or "it took too long", hint="all is built anew")
            self._gateway.become(settings)

    async def _look(self) -> None:
        assert self._judge is not None
        verdict = self._judge.see(self._now_s() - self._since_s, self._gateway.parts())
        if verdict is None:
            return
        if verdict.confirm:
            await self._confirm()
        else:
            await self._revert(verdict.why)

    async def _confirm(self) -> None:
        one = self._book.on_trial
        await self._book.confirm()
        self._judge, self._began_s, self._safe = None, self._now_s(), False
        await self._gateway.settle()
        self._log.info("configuration_confirmed", number=one.number if one else 0)
        self._note(self._link.gateway, "configuration", "confirmed", "")
        self._say("active", document=self._newest_hash())

    async def _revert(self, why: str) -> None:
        document = self._newest_hash()
        await self._book.revert(why)
        self._judge = None
        good = self._book.active
        assert good is not None
        self._effective = of_text(good.text, self._origin.base, documents(self._book))
        settings = validated(self._effective, self._schemas)
        self._log.warning("configuration_reverted", cause=why, to=good.number)
        self._note(self._link.gateway, "configuration", "reverted", why)
        self._say("reverted", document=document, cause=why)
        await self._apply(settings, plan(self._gateway.settings, settings, self._gateway.wire), None)

    async def rollback(self, by: str) -> str:
        """To the last good configuration. Returns what happens to whom. Raises EdgeError."""
        terms = Terms((EVERYTHING,), dict(self._gateway.parts()), self._gateway.settings.control.trial_s, by, "rolled back")
        before = self._kept_settings()
        await self._book.rollback(terms)
        one = self._book.on_trial
        assert one is not None
        self._effective = of_text(one.text, self._origin.base, documents(self._book))
        settings = validated(self._effective, self._schemas)
        todo = plan(self._gateway.settings, settings, self._gateway.wire)
        self._note(by, "configuration", "trial", f"rolled back to {one.number}")
        await self._begin(terms, settings, todo, before, cause="rolled back")
        return "; ".join(todo.describe())

    async def history(self) -> list[dict[str, Any]]:
        """See history.py. Raises BookError."""
        return told(await self._book.history(), self._book.layers)

    def in_force(self, layer: str) -> bytes | None:
        """The document of a layer that the configuration is made of, as it came. None: there is none."""
        held = self._book.base.get(layer)
        return held.payload if held else None

    async def _canary_news(self) -> None:
        """Documents that wait for canaries have their turn again; of one that a canary took back, nothing stays."""
        for target, payload in self._canaries.ready():
            self._waiting.setdefault(target, payload)
        halted = next((each for each in self._book.base.values() if self._canaries.failed(canaries.key(each))), None)
        if halted is None or self._gateway.successor is not None:
            return
        why = f"canary {self._canaries.failed(canaries.key(halted))} took it back"
        if self._book.on_trial:
            await self._revert(why)
        else:
            await self._withdraw(halted, why)

    async def _withdraw(self, halted: LayerDocument, why: str) -> None:
        """What is active goes on without this document, on trial: with the one before it of its layer, if there is one."""
        made_of = canaries.without(halted, self._book.base, self._book.before)
        effective, settings = self._made({name: layer_of(each) for name, each in made_of.items() if name != FILE})
        todo, before = plan(self._gateway.settings, settings, self._gateway.wire), self._kept_settings()
        terms = Terms(todo.parts, dict(self._gateway.parts()), self._gateway.settings.control.trial_s, self._link.gateway, why)
        text = as_text(effective.config)
        await self._book.propose(text, effective.hash, tuple(made_of.values()), terms, reverts={halted.serial: why})
        self._effective = effective
        self._log.warning("configuration_withdrawn", layer=halted.layer, cause=why, does=todo.describe())
        self._note(self._link.gateway, halted.layer, "withdrawn", why)
        if self._book.on_trial:
            await self._begin(terms, settings, todo, before, cause=why)
        else:
            self._say(self._state(), cause=why)

    # --- what is said ---

    def _newest_hash(self) -> str:
        newest = self._book.newest
        return newest.hash if newest else ""

    def _state(self) -> Any:
        """Of the newest document, whatever else the gateway does."""
        newest = self._book.newest
        if self._judge:
            return "trial"
        return newest.state if newest and newest.state in ("reverted", "rejected") else "active"

    def _say(self, state: Any, **more: Any) -> None:
        effective, book = self._effective, self._book
        if self._safe:
            more = {"mode": "safe", "cause": self._origin.start.why, **more}
        now, shown = self._clock.now(), self._shown(effective)
        self._reporting.say(report(self._link.gateway, state, effective, book.layers, now, config=shown, **more))

    def _shown(self, effective: Effective) -> dict[str, Any]:
        """Without its secrets. Of a large one that takes a second: it is done once."""
        if self._redacted is None or self._redacted[0] is not effective:
            self._redacted = (effective, redacted(effective.config, self._schemas))
        return self._redacted[1]

    def _note(self, actor: str, subject: str, outcome: str, why: str) -> None:
        self._audit.note(Entry(kind=Kind.CONFIGURATION, actor=actor, via="config", subject=subject, outcome=outcome, why=why))
