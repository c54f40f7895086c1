"""Keeps this gateway at the configuration that is wanted of it (runs): takes documents, tries what they make, keeps it or takes
it back, and says what came of it.

    a document --> who says it? --> newer? --> canaries first? --> valid? --> on trial --> confirmed
                    admitted.py     layers.py   canaries.py        layers.py  the book      or reverted

One thing at a time, in one coroutine: what a crash interrupts, the next start finds in the book. Nothing of it needs the network
but the document itself: a gateway that a change has cut off takes it back all the same.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Mapping, Sequence
from typing import Any, Protocol

import msgspec

from edge_runtime import config
from edge_runtime.bus import control as messages
from edge_runtime.bus import topics
from edge_runtime.bus.control import Desired, Fault, LayerState, Reported
from edge_runtime.bus.messages import BadMessage
from edge_runtime.control import admitted, canaries
from edge_runtime.control.audit import Entry, Kind
from edge_runtime.control.book_file import BookError
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
    validated,
)
from edge_runtime.control.origin import as_text, documents, layer_of, of_text
from edge_runtime.control.pages import LayerDocument
from edge_runtime.control.plan import Plan, Wiring, plan
from edge_runtime.control.redaction import Schemas, redacted
from edge_runtime.control.reporting import Link, Reporting
from edge_runtime.control.steering import Steering
from edge_runtime.control.trial import EVERYTHING, STEADY_S, Judge, Part, Terms
from edge_runtime.ports import Clock, Dice, EdgeError, Message
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
        self._reporting = Reporting(link, identity, self._to_repeat, dice, log)
        self._effective = origin.effective
        self._redacted: tuple[Effective, dict[str, Any]] | None = None
        self._canaries = canaries.Canaries(link.site)
        self._waiting: dict[str, bytes] = {}
        """Documents that came, by target."""
        self._news = asyncio.Event()
        self._judge: Judge | None = None
        self._since_s = self._began_s = 0.0
        self.refused: Counter[str] = Counter()
        """What came and was not taken, by reason."""
        self.services = {"control": self.run, "control report": self._reporting.run}
        mine = topics.desired(link.site, f"gw/{link.gateway}")
        held = steering.book.base.get(GATEWAY)
        member = groups(origin.base, layer_of(held) if held else None)
        link.on("config", self._on_config, mine, *(topics.desired(link.site, f"group/{each}") for each in ("default", *member)))

    async def joined(self) -> None:
        """To be called on every new connection to the broker."""
        await self._reporting.joined()

    async def run(self) -> None:
        """Until cancelled."""
        self._began_s = self._since_s = asyncio.get_running_loop().time()
        if self._book.on_trial:
            self._judge = Judge(self._book.on_trial.terms)
        newest = self._newest()
        self._say(
            self._state(), document=newest.hash if newest else "", **({"cause": newest.cause} if newest and newest.cause else {})
        )
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
        if target is None:
            self._canaries.heard(gateway, message.payload, self._identity)
        elif message.payload and (target in self._waiting or len(self._waiting) < TARGETS_MAX):
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
            desired = messages.desired(said.document, target)
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
        elif not isinstance(verdict, Same):
            layer = verdict.layer
            kept = LayerDocument(
                layer=name, hash=layer.hash, payload=payload, stamp=now, revision=layer.revision if desired.revision else None
            )
            await self._take(layer, kept, desired, said.by or desired.issuer or "somebody on the broker", target)

    def _refuse(self, target: str, error: admitted.NotAdmitted | BadMessage | Forged | Refused) -> None:
        """Counted, and logged once for each reason: whoever may not speak must not fill the log, or the report."""
        reason = error.reason if isinstance(error, admitted.NotAdmitted) else "malformed"
        if not self.refused[reason]:
            self._log.warning("configuration_refused", target=target, reason=reason, cause=error.cause, hint=error.hint)
        self.refused[reason] += 1
        if self._identity is None or reason == "malformed":
            self._say(self._state(), cause=f"refused: {error.cause}", hint=error.hint)

    async def _take(self, layer: Layer, kept: LayerDocument, desired: Desired, by: str, target: str) -> None:
        gate = self._canaries.gate(self._link.gateway, layer.hash, desired.canaries)
        if gate is canaries.Gate.WAIT:
            await self._link.also(*self._canaries.topics())
            await self._book.keep(kept)
            self._say("validating", document=layer.hash, cause=f"waits for {', '.join(self._canaries.missing(layer.hash))}")
            self._canaries.wait(layer.hash, target, kept.payload)
            return
        if gate is canaries.Gate.HALT:
            await self._reject(kept, by, f"canary {self._canaries.failed(layer.hash)} took it back", ())
            return
        try:
            held = {**documents(self._book), layer.name: layer}
            effective = merge(self._origin.base, stack(self._origin.base, held))
            settings = validated(effective, self._schemas)
        except BadLayers as error:
            await self._reject(kept, by, "it is not valid", error.faults)
            return
        made_of = {**self._book.base, layer.name: kept}
        if self._origin.file and FILE not in made_of:
            made_of = {FILE: self._origin.file, **made_of}
        todo = plan(self._gateway.settings, settings, self._gateway.wire)
        await self._try(effective, settings, todo, tuple(made_of.values()), desired.trial_s, by, layer)

    async def _reject(self, kept: LayerDocument, by: str, cause: str, faults: Sequence[Fault]) -> None:
        await self._book.keep(msgspec.structs.replace(kept, state="rejected", cause=cause))
        self._log.warning("configuration_rejected", layer=kept.layer, by=by, cause=cause, faults=len(faults))
        self._note(by, kept.layer, "rejected", cause)
        self._say("rejected", document=kept.hash, cause=cause, errors=tuple(faults))

    # --- trial ---

    async def _try(
        self, effective: Effective, settings: config.Config, todo: Plan, made_of: Sequence[LayerDocument],
        trial_s: float | None, by: str, layer: Layer,
    ) -> None:  # fmt: skip
        terms = Terms(
            todo.parts,
            dict(self._gateway.parts()),
            trial_s or self._gateway.settings.control.trial_s,
        )
        before = self._kept_settings()
        await self._book.propose(as_text(effective.config), effective.hash, made_of, terms)
        self._effective = effective
        if self._book.on_trial is None:
            self._say("active", document=layer.hash)
            return
        lines = todo.describe()
        self._log.info("configuration_on_trial", layer=layer.name, revision=layer.revision, by=by, does=lines)
        self._note(by, layer.name, "trial", "; ".join(lines))
        self._judge, self._since_s = Judge(terms), self._now_s()
        self._say("trial", document=layer.hash, restarts=todo.restarts)
        await self._apply(settings, todo, before)

    def _kept_settings(self) -> config.Config:
        """The active configuration: it may come back."""
        if self._book.active is None or self._book.on_trial is None:
            return self._gateway.settings
        return validated(Effective(msgspec.json.decode(self._book.active.text), {}), self._schemas)

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
        self._judge, self._began_s = None, self._now_s()
        await self._gateway.settle()
        self._log.info("configuration_confirmed", number=one.number if one else 0)
        self._note(self._link.gateway, "configuration", "confirmed", "")
        self._say("active", document=self._newest_hash())

    async def _revert(self, why: str) -> None:
        document = self._newest_hash()
        await self._book.revert(why)
        self._judge = None
        active = self._book.active
        assert active is not None
        self._effective = of_text(active.text, self._origin.base, documents(self._book))
        settings = validated(self._effective, self._schemas)
        self._log.warning("configuration_reverted", cause=why, to=active.number)
        self._note(self._link.gateway, "configuration", "reverted", why)
        self._say("reverted", document=document, cause=why)
        await self._apply(settings, plan(self._gateway.settings, settings, self._gateway.wire), None)

    async def rollback(self, by: str) -> str:
        """To the last good configuration. Returns what happens to whom. Raises EdgeError."""
        terms = Terms((EVERYTHING,), dict(self._gateway.parts()), self._gateway.settings.control.trial_s)
        before = self._kept_settings()
        await self._book.rollback(terms)
        one = self._book.on_trial
        assert one is not None
        self._effective = of_text(one.text, self._origin.base, documents(self._book))
        settings = validated(self._effective, self._schemas)
        todo = plan(self._gateway.settings, settings, self._gateway.wire)
        self._judge, self._since_s = Judge(terms), self._now_s()
        self._note(by, "configuration", "trial", f"rolled back to {one.number}")
        self._say("trial", cause="rolled back", restarts=todo.restarts)
        await self._apply(settings, todo, before)
        return "; ".join(todo.describe())

    async def _canary_news(self) -> None:
        """Documents that wait for canaries have their turn again; of one that a canary took back, nothing stays."""
        for target, payload in self._canaries.ready():
            self._waiting.setdefault(target, payload)
        halted = next((each for each in self._book.base.values() if self._canaries.failed(each.hash)), None)
        if halted is None or halted.layer == FILE:
            return
        why = f"canary {self._canaries.failed(halted.hash)} took it back"
        if self._book.on_trial:
            await self._revert(why)
        elif self._book.life.last_good:
            await self.rollback(why)

    # --- what is said ---

    def _to_repeat(self) -> Mapping[str, LayerDocument]:
        return {name: each for name, each in self._book.layers.items() if name != FILE}

    def _newest(self) -> LayerDocument | None:
        return max(self._to_repeat().values(), key=lambda each: each.serial, default=None)

    def _newest_hash(self) -> str:
        newest = self._newest()
        return newest.hash if newest else ""

    def _state(self) -> Any:
        """Of the newest document, whatever else the gateway does."""
        newest = self._newest()
        if self._judge:
            return "trial"
        return newest.state if newest and newest.state in ("reverted", "rejected") else "active"

    def _say(self, state: Any, **more: Any) -> None:
        effective, now = self._effective, self._clock.now()
        self._reporting.say(
            Reported(
                gateway=self._link.gateway,
                state=state,
                hash=effective.hash,
                mode="safe" if self._origin.safe and self._book.life.safe else "normal",
                layers=tuple(
                    LayerState(name=name, revision=each.revision or 0, hash=each.hash, state=each.state, cause=each.cause)
                    for name, each in self._book.layers.items()
                ),
                config=self._shown(effective),
                provenance=effective.summary(),
                wall_ns=now.wall_ns,
                synced=now.synced,
                **{"cause": self._origin.start.why if self._origin.safe else "", **more},
            )
        )

    def _shown(self, effective: Effective) -> dict[str, Any]:
        """Without its secrets. Of a large one that takes a second: it is done once."""
        if self._redacted is None or self._redacted[0] is not effective:
            self._redacted = (effective, redacted(effective.config, self._schemas))
        return self._redacted[1]

    def _note(self, actor: str, subject: str, outcome: str, why: str) -> None:
        self._audit.note(Entry(kind=Kind.CONFIGURATION, actor=actor, via="config", subject=subject, outcome=outcome, why=why))
