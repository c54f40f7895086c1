"""Which configuration a simulated gateway may run, told by what was published and by what it has said so far. It judges from
outside: the merging of layers is the runtime's own, all else is written down again.

    expected.published(layer)                # a document is on its way
    expected.started(settings, mode, why, boot)      # raises Broken
    expected.said(event)                     # of its log: on trial, confirmed, reverted
"""

from __future__ import annotations

import re
from collections.abc import Mapping
from typing import Any

from edge_runtime.bus import canonical
from edge_runtime.bus.control import Reported
from edge_runtime.config import Config
from edge_runtime.control.layers import GATEWAY, BadLayers, Layer, merge, stack, validated
from edge_runtime.control.origin import bare
from edge_runtime.control.redaction import Schemas
from edge_runtime.testing.wishes import differ, harm

TRIAL_CRASHES, CRASHES = 2, 3
"""Within one boot: a trial is over; a configuration that was confirmed is given up."""


class Broken(AssertionError):
    """A promise was broken. The message says which."""


def require(holds: object, message: str) -> None:
    if not holds:
        raise Broken(message)


class Expected:
    """Of one gateway. A configuration is known by its name: the text of all its settings."""

    def __init__(self, base: Mapping[str, Any], schemas: Schemas) -> None:
        self._base, self._schemas = base, schemas
        self._published: dict[str, list[Layer]] = {"group/default": [], GATEWAY: []}
        self._made: dict[str, Config] = {}
        """Whatever the documents so far make together, and is valid."""
        self._hashes: dict[str, set[str]] = {}
        """Of each: a default value may be said or not."""
        self._add(())
        self.active = next(iter(self._made))
        self.past = [self._made[self.active]]
        """All that were ever active."""
        self.before = ""
        """Was active before it."""
        self.trial = ""
        self.reverts: list[str] = []
        self.confirmed = self.crashes = 0
        self._boot = ""
        self._safe = self._tried = False
        self._bares: dict[str, str] = {}
        self._last: tuple[Config, str] | None = None
        self._new: set[str] = set()
        """Made with a document that nothing has come of yet."""
        self._again: set[str] = set()
        """While it is on trial, or before it could say that it is, somebody wants it once more."""
        self._unseen: set[str] = set()
        """Of the new ones: never seen to run."""
        self._leaving: set[str] = set()
        """Not wanted any more; it may still run for a moment."""

    def published(self, layer: Layer) -> None:
        self._published[layer.name].append(layer)
        others = next(each for name, each in self._published.items() if name != layer.name)
        made = set().union(*(self._add((layer,) if other is None else (layer, other)) for other in (None, *others)))
        self._again |= made & (self._unseen | {self.trial})
        self._unseen |= made - {self.trial, self.active}
        self._new |= made

    def makes(self, *layers: Layer) -> str:
        """The name of what these make; "" : nothing that is valid."""
        held = {each.name: each for each in layers}
        try:
            return name_of(validated(merge(self._base, stack(self._base, held)), self._schemas))
        except BadLayers:
            return ""

    # --- what is seen ---

    def started(self, settings: Config, mode: str, why: str, boot: str, *, lives: int) -> None:
        """A gateway begins with these. `lives`: processes of this boot since the last one of which a gateway was seen; 0: it is
        another one of the same process."""
        if not lives:
            self.runs(settings)
            return
        name = name_of(settings)
        self.crashes = (self.crashes if boot == self._boot else -1) + lives
        self._boot = boot
        self._leaving = set()
        if mode == "trial":
            self._is_known(name)
            wanted = name in (self.trial, self.active) or name in self._new
            require(wanted, f"a trial starts that nobody wants now: {self._short(name)}")
            if name != self.trial:  # it was proposed, and could not say so
                self.trial, self.crashes = name, min(self.crashes, 1)
            self._unseen.discard(name)
        elif mode == "bare":
            require(self._safe or self.crashes >= CRASHES, f"bare after {self.crashes} crashes: {why}")
            require(name == self._bare(), "what is bare is not")
            self._safe = True
            self._over("")
        elif mode == "last_good" and name != self.active:
            require(self.crashes >= CRASHES and name == self.before, f"{mode} after {self.crashes} crashes: {why}")
            self.active, self.before, self._safe = name, "", True
            self._over("")
        elif name == self.active:
            if self.trial and self.trial != self.active:
                if "is not recorded" in why:  # the disk does not take it: the next start finds the trial again
                    self._again.add(self.trial)
                self._revert(why)
            elif self.trial:  # the same once more was on trial
                self._over("")
        else:
            require(self.trial and name == self.trial, f"{self._short(name)} starts, and is neither the old nor the new one")
            crashes = min(self.crashes, 1)  # it was confirmed, and crashed before it could say so
            self._confirm()
            self.crashes = crashes

    def said(self, event: Mapping[str, Any], settings: Config) -> None:
        """`settings`: what runs now."""
        kind = event["event"]
        if kind == "configuration_confirmed":
            self.runs(settings)
            self.trial = self.trial or self.active
            name = name_of(settings)
            require(name == self.trial, f"{self._short(name)} is confirmed, and {self._short(self.trial)} was on trial")
            self._confirm()
        elif kind == "configuration_reverted":
            self._revert(event["cause"])
        elif kind == "configuration_on_trial":
            self._leaving.add(self.trial)
            self.trial, self.crashes, self._tried = "", 0, True

    def runs(self, settings: Config) -> None:
        """At any time, of what the gateway says it does."""
        name = self._name(settings)
        if name in (self.active, self.trial, self._bare()) or (name in self._leaving and name not in self._new):
            return
        self._is_known(name)
        require(name in self._new, f"{self._short(name)} runs, and is neither old nor new")
        self.trial = name
        self._unseen.discard(name)

    def says(self, report: Reported, settings: Config) -> bool:
        """What it reports is what runs."""
        name = name_of(settings)
        if name == self._bare() and report.mode == "safe":
            return True
        return report.hash in self._hashes.get(name, ())

    # --- verdicts ---

    def _confirm(self) -> None:
        what = harm(self._made[self.trial])
        require(not what, f"confirmed although {what} cannot work")
        if self.trial != self.active:
            self.active, self.before = self.trial, self.active
            self.past.append(self._made[self.active])
        self.confirmed += 1
        self._safe = False
        self._over("")

    def _revert(self, why: str) -> None:
        require(self.trial or self._tried, f"reverted, and nothing was on trial: {why}")
        old, new = self._made[self.active], self._made.get(self.trial)
        if re.search(r"crashed \d+ times on trial", why):
            require(self.crashes >= TRIAL_CRASHES, f"reverted after {self.crashes} crashes in this boot: {why}")
        elif new and not harm(new):
            named = set(re.findall(r"\b(?:device|pipeline|sink) [\w-]+(?=: )|\b(?:broker|mesh|outbox|control|reach)(?=: )", why))
            require(named != {"reach"}, f"reverted, and somebody spoke to it: {why}")
            require(named and named <= differ(old, new), f"reverted, and did not cause it: {why}; it changed {differ(old, new)}")
        self._over(why)

    def _over(self, why: str) -> None:
        if why:
            self.reverts.append(why)
            if self.trial not in self._again:
                self._new.discard(self.trial)
            self._again.discard(self.trial)
        self._leaving.add(self.trial)
        self.trial, self.crashes, self._tried = "", 0, False

    # --- inside ---

    def _bare(self) -> str:
        """Of the active one, what is needed to be reached."""
        if self.active not in self._bares:
            self._bares[self.active] = name_of(bare(self._made[self.active].model_dump(mode="json")))
        return self._bares[self.active]

    def _name(self, settings: Config) -> str:
        if self._last is None or self._last[0] is not settings:
            self._last = (settings, name_of(settings))
        return self._last[1]

    def _is_known(self, name: str) -> None:
        require(name in self._made, f"what runs is nothing that was ever wanted: {name}")

    def _add(self, layers: tuple[Layer, ...]) -> set[str]:
        held = {each.name: each for each in layers}
        try:
            effective = merge(self._base, stack(self._base, held))
            settings = validated(effective, self._schemas)
        except BadLayers:
            return set()
        name = name_of(settings)
        self._made[name] = settings
        self._hashes.setdefault(name, set()).add(effective.hash)
        return {name}

    def _short(self, name: str) -> str:
        if name in self._made:
            return f"#{[*self._made].index(name)} (active #{[*self._made].index(self.active)})"
        return name[:60]


def name_of(settings: Config) -> str:
    return canonical.text(settings.model_dump(mode="json")).decode()
