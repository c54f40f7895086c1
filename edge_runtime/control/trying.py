"""A configuration on trial (runs): proposed to the book, given to the gateway, judged, kept or taken back. One thing at a time:
whoever changes the gateway does it in the turn of Control's coroutine (`control.perform`).
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping, Sequence
from typing import Any, Protocol

import msgspec

from edge_runtime import config
from edge_runtime.control.audit import AuditLog, Entry, Kind
from edge_runtime.control.book import Book
from edge_runtime.control.layers import FILE, Effective, Layer, validated
from edge_runtime.control.origin import Origin, active, as_text, documents, of_text, reduced
from edge_runtime.control.pages import LayerDocument
from edge_runtime.control.plan import Change, Plan, Wiring, plan
from edge_runtime.control.redaction import Schemas
from edge_runtime.control.trial import CALLED, Judge, Part, Terms
from edge_runtime.ports import EdgeError

CHANGE_S_MAX = 30.0
"""The parts of a change have so long to stop and start; then everything is built anew."""

Say = Callable[..., None]
"""Of the report: state, and what else is to be told."""


class Gateway(Protocol):
    """gateway.Gateway, as far as it is steered."""

    settings: config.Config
    kept: config.Config | None
    successor: config.Config | None
    started: asyncio.Event

    def wire(self, name: str, device: config.Device, /) -> Wiring: ...
    def parts(self) -> Mapping[str, Part]: ...
    async def change(self, settings: config.Config, plan: Plan, kept: config.Config | None) -> None: ...
    async def settle(self) -> None: ...
    def become(self, settings: config.Config) -> None: ...
    def show(self, digest: str, safe: bool) -> None: ...


class Trying:
    """Of one gateway, as long as it runs with `origin`."""

    def __init__(
        self, origin: Origin, book: Book, audit: AuditLog, gateway: Gateway, schemas: Schemas, name: str, say: Say, log: Any
    ) -> None:
        self._origin, self._book, self._audit, self._gateway = origin, book, audit, gateway
        self._schemas, self._name, self._say, self._log = schemas, name, say, log
        self.effective, self.safe = origin.effective, origin.safe or bool(book.life.safe)
        self.judge: Judge | None = None
        """There is a trial."""
        self.layer = ""
        """Whose document is on trial; "": the file, or several."""
        self._since_s = self.began_s = 0.0

    def begin(self) -> None:
        """With this run; a trial that was there before goes on."""
        self.began_s = self._since_s = _now_s()
        if self._book.on_trial:
            self.judge, self.layer = Judge(self._book.on_trial.terms), self._layer_on_trial()

    def _layer_on_trial(self) -> str:
        """The one whose document is tried since before this run, or before all was built anew; "": there are several."""
        book, active = self._book, self._book.active
        known = active.made_of if active else ()
        found = [layer for layer, each in book.base.items() if each.serial not in known]
        return found[0] if len(found) == 1 and found[0] != FILE else ""

    @property
    def holds(self) -> str:
        """While one layer's document is on trial, that of another waits: a bad one must not take a good one down with it. The
        layer; "": nobody waits."""
        return self.layer if self.judge else ""

    # --- a new one ---

    async def propose(
        self, effective: Effective, settings: config.Config, made_of: Sequence[LayerDocument], layer: Layer,
        *, by: str, note: str = "", trial_s: float | None = None,
    ) -> None:  # fmt: skip
        """Raises BookError: nothing was changed."""
        gateway, before, replaced = self._gateway, self._kept_settings(), self._book.on_trial
        todo = plan(gateway.settings, settings, gateway.wire)
        # In the place of another trial, or of nothing (bare): judged by all that is other than the active one.
        against = plan(before, settings, gateway.wire)
        terms = Terms(
            (*against.parts, *((CALLED,) if against.moves else ())),
            replaced.terms.before if replaced else dict(gateway.parts()),
            trial_s or gateway.settings.control.trial_s,
            by,
            note,
        )
        number = await self._book.propose(as_text(effective.config), effective.hash, made_of, terms)
        self.effective = effective
        if self._book.on_trial is None:  # the same as before, or the first one of all: there is nothing to go back to
            self.safe = False
            self._say("active", document=layer.hash)
            if todo:
                await self.apply(settings, todo, None)
        elif replaced and replaced.number == number:  # it makes nothing else than what is on trial already
            self._say("trial", document=layer.hash)
        else:
            lines = todo.describe()
            self._log.info("configuration_on_trial", layer=layer.name, revision=layer.revision, by=by, does=lines)
            self.note(by, layer.name, "trial", "; ".join(lines))
            self.layer = layer.name
            await self._start(terms, settings, todo, before, document=layer.hash)

    async def withdraw(
        self, halted: LayerDocument, why: str, effective: Effective, settings: config.Config, made_of: Sequence[LayerDocument]
    ) -> None:
        """What is active goes on without this document, on trial."""
        gateway, before = self._gateway, self._kept_settings()
        todo = plan(gateway.settings, settings, gateway.wire)
        terms = Terms(todo.parts, dict(gateway.parts()), gateway.settings.control.trial_s, self._name, why)
        text = as_text(effective.config)
        await self._book.propose(text, effective.hash, made_of, terms, reverts={halted.serial: why})
        self.effective, self.layer = effective, ""
        self._log.warning("configuration_withdrawn", layer=halted.layer, cause=why, does=todo.describe())
        self.note(self._name, halted.layer, "withdrawn", why)
        if self._book.on_trial:
            await self._start(terms, settings, todo, before, cause=why)
        else:
            self._say("active", cause=why)

    async def rollback(self, by: str) -> str:
        """To the last good configuration. Returns what happens to whom. Raises EdgeError."""
        gateway, book = self._gateway, self._book
        good = await book.configuration(book.life.last_good) if book.life.last_good else None
        settings = self._valid(good.text) if good else gateway.settings  # without one the book says so
        todo, before = plan(gateway.settings, settings, gateway.wire), self._kept_settings()
        terms = Terms(todo.parts, dict(gateway.parts()), gateway.settings.control.trial_s, by, "rolled back")
        await book.rollback(terms)
        self.layer = ""
        one = book.on_trial
        assert one is not None
        self.effective = of_text(one.text, self._origin.base, documents(book))
        self.note(by, "configuration", "trial", f"rolled back to {one.number}")
        await self._start(terms, settings, todo, before, cause="rolled back")
        return "; ".join(todo.describe())

    async def _start(self, terms: Terms, settings: config.Config, todo: Plan, kept: config.Config | None, **more: Any) -> None:
        """What the book has on trial now."""
        self.judge, self._since_s = Judge(terms), _now_s()
        self._say("trial", restarts=todo.restarts, **more)
        await self.apply(settings, todo, kept)

    def _kept_settings(self) -> config.Config:
        """The active configuration: it may come back."""
        kept = active(self._book, self._schemas) if self._book.on_trial or self._book.life.safe else None
        return kept or self._gateway.settings

    def _valid(self, text: str) -> config.Config:
        return validated(Effective(msgspec.json.decode(text), {}), self._schemas)

    # --- the gateway ---

    async def restart(self, kind: str, name: str) -> None:
        """One part, with the settings that it has. `kind`: device, pipeline or sink; "": everything."""
        change, none = Change(changed={name: ("asked for",)}), Change()
        todo = Plan(
            everything=() if kind else ("asked for",),
            devices=change if kind == "device" else none,
            pipelines=change if kind == "pipeline" else none,
            sinks=change if kind == "sink" else none,
        )
        await self.apply(self._gateway.settings, todo, self._gateway.kept)

    async def apply(self, settings: config.Config, todo: Plan, kept: config.Config | None) -> None:
        """A change that fails, or takes too long, has left the gateway in between: then everything is built anew."""
        if todo.everything or not self._gateway.started.is_set():
            self._gateway.become(settings)
            return
        try:
            async with asyncio.timeout(CHANGE_S_MAX):
                await self._gateway.change(settings, todo, kept)
        except (EdgeError, TimeoutError) as error:
            self._log.warning("configuration_change_failed", cause=str(error) or "it took too long", hint="all is built anew")
            self._gateway.become(settings)

    # --- its end ---

    async def look(self) -> None:
        assert self.judge is not None
        verdict = self.judge.see(_now_s() - self._since_s, self._gateway.parts())
        if verdict is None:
            return
        if verdict.confirm:
            await self._confirm()
        else:
            await self.revert(verdict.why)

    async def _confirm(self) -> None:
        one = self._book.on_trial
        await self._book.confirm()
        self.judge, self.began_s, self.safe = None, _now_s(), False
        await self._gateway.settle()
        self._log.info("configuration_confirmed", number=one.number if one else 0)
        self.note(self._name, "configuration", "confirmed", "")
        self._say("active", document=self.newest_hash)

    async def revert(self, why: str) -> None:
        """To the active configuration; in safe mode, where that is what crashed, to broker and control."""
        document = self.newest_hash
        await self._book.revert(why)
        self.judge = None
        good = self._book.active
        assert good is not None
        kept = None
        if self._book.life.safe == "bare":
            kept = self._kept_settings()
            settings, self.effective = reduced(msgspec.json.decode(good.text))
        else:
            self.effective = of_text(good.text, self._origin.base, documents(self._book))
            settings = validated(self.effective, self._schemas)
        self._log.warning("configuration_reverted", cause=why, to=good.number)
        self.note(self._name, "configuration", "reverted", why)
        self._say("reverted", document=document, cause=why)
        await self.apply(settings, plan(self._gateway.settings, settings, self._gateway.wire), kept)

    @property
    def newest_hash(self) -> str:
        """Of the newest document."""
        newest = self._book.newest
        return newest.hash if newest else ""

    def note(self, actor: str, subject: str, outcome: str, why: str) -> None:
        """For the audit log."""
        self._audit.note(Entry(kind=Kind.CONFIGURATION, actor=actor, via="config", subject=subject, outcome=outcome, why=why))


def _now_s() -> float:
    return asyncio.get_running_loop().time()
