"""Who tries a change of a group first (decides): canaries take it, the others wait for their reports. There is nobody in charge:
each gateway decides for itself, by what the canaries say.

A canary that took the document back, or found it invalid, stops it for everybody: who waits does not take it, who has it takes it
back.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence
from enum import Enum, auto
from typing import Protocol, TypeVar

from edge_runtime.bus import control as messages
from edge_runtime.bus import topics as all_topics
from edge_runtime.bus.control import Reported
from edge_runtime.bus.messages import BadMessage
from edge_runtime.control.reporting import REPORTED
from edge_runtime.trust import envelope
from edge_runtime.trust.identity import Identity

CANARIES_MAX = 1_000
DOCUMENTS_MAX = 16
"""That wait, or are watched, at once: of each group the newest."""


class Document(Protocol):
    """pages.LayerDocument, as far as it is named here."""

    @property
    def layer(self) -> str: ...
    @property
    def serial(self) -> int: ...
    @property
    def hash(self) -> str: ...
    @property
    def revision(self) -> int | None: ...


D = TypeVar("D", bound=Document)


def key(document: Document) -> str:
    """What a document is called here: the same content in a newer revision is to be tried anew."""
    return _key(document.revision or 0, document.hash)


def _key(revision: int, digest: str) -> str:
    return f"{revision}/{digest}"


def without(halted: D, base: Mapping[str, D], before: Mapping[str, D]) -> dict[str, D]:
    """By layer the documents of `base`; in the place of this one that of `before`, where it is another."""
    other = before.get(halted.layer)
    kept = {name: each for name, each in base.items() if each.serial != halted.serial}
    return kept | ({halted.layer: other} if other is not None and other.serial != halted.serial else {})


class Gate(Enum):
    OPEN = auto()
    WAIT = auto()
    HALT = auto()


class Canaries:
    """What they have said, by the key of the document."""

    def __init__(self, site: str) -> None:
        self._site = site
        self._of: dict[str, tuple[str, ...]] = {}
        self._said: dict[str, dict[str, str]] = {}
        """Key -> canary -> state."""
        self._newest: dict[str, dict[str, str]] = {}
        """Canary -> key -> state, of its newest report: it may come before the document does."""
        self._waiting: dict[str, tuple[str, bytes]] = {}
        """Key -> target, payload."""

    def gate(self, gateway: str, document: str, canaries: Sequence[str]) -> Gate:
        """May this gateway take the document now?"""
        if not canaries:
            return Gate.OPEN
        while len(self._of) >= DOCUMENTS_MAX and document not in self._of:
            self._forget(next(iter(self._of)))
        if document not in self._of:
            self._said[document] = {name: told[document] for name, told in self._newest.items() if document in told}
        self._of[document] = tuple(canaries[:CANARIES_MAX])
        if self.failed(document):
            return Gate.HALT
        return Gate.OPEN if gateway in canaries or not self.missing(document) else Gate.WAIT

    def wait(self, document: str, target: str, payload: bytes) -> None:
        self._waiting = {each: told for each, told in self._waiting.items() if told[0] != target}
        self._waiting[document] = (target, payload)

    def ready(self) -> list[tuple[str, bytes]]:
        """Target and payload of those that need not wait any more."""
        over = [each for each in self._waiting if self.failed(each) or not self.missing(each)]
        return [self._waiting.pop(each) for each in over]

    def missing(self, document: str) -> list[str]:
        """Canaries that have not confirmed it."""
        said = self._said.get(document, {})
        return [name for name in self._of.get(document, ()) if said.get(name) != "accepted"]

    def failed(self, document: str) -> str:
        """A canary that took it back; "" : none."""
        said = self._said.get(document, {})
        return next((name for name in self._of.get(document, ()) if said.get(name) in ("reverted", "rejected")), "")

    def topics(self) -> list[str]:
        names = dict.fromkeys(name for each in self._of.values() for name in each)
        return [all_topics.gateway(self._site, name, "config", "reported") for name in names]

    def heard(self, gateway: str, payload: bytes, identity: Identity | None) -> None:
        """A report. Raises BadMessage, Forged."""
        if identity is not None:
            opened = envelope.open(payload, REPORTED, identity.roster)
            if (opened.role, opened.by) != ("gateway", gateway):
                raise BadMessage(f"reported: of {gateway}, signed by {opened.by}", "somebody speaks in another's name")
            payload = opened.document
        report = messages.unpack(payload, Reported)
        if report.gateway != gateway or (gateway not in self._newest and len(self._newest) >= CANARIES_MAX):
            return
        self._newest[gateway] = {_key(layer.revision, layer.hash): layer.state for layer in report.layers}
        for document, state in self._newest[gateway].items():
            if document in self._of:
                self._said.setdefault(document, {})[gateway] = state

    def _forget(self, document: str) -> None:
        for table in (self._of, self._said, self._waiting):
            table.pop(document, None)
