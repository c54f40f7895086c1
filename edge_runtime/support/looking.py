"""What a bundle tells of a gateway: read from its files, without changing them, whether it runs or not, and whatever is wrong
with them. Blocking: for a worker, or a command line.

    looking = Looking(text, name, folder, schemas, clock)
    looking.looks()          # name of a part -> how it is found out
    looking.secrets()        # what must not stand in any of them
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Iterator, Mapping
from functools import cached_property, partial
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime import document, references
from edge_runtime.config import Config, secrets_folder
from edge_runtime.control import audit_file, history, pages, redaction
from edge_runtime.control.layers import FILE, BadLayers, Effective, Layer, validated
from edge_runtime.control.origin import bare, layer_of, of_text, said_by
from edge_runtime.control.pages import LayerDocument, Pages
from edge_runtime.control.redaction import Schemas
from edge_runtime.document import DocumentError
from edge_runtime.outbox import intervals, schema, tables
from edge_runtime.outbox.database import open_read_only
from edge_runtime.ports import Clock, Database, EdgeError, Ranges, Secrets, delivery
from edge_runtime.records import LANES
from edge_runtime.support import machine
from edge_runtime.support.bundle import UNREADABLE, Look
from edge_runtime.trust.identity import Identity

AUDIT_ENTRIES = 200
BOOK, AUDIT, IDENTITY, OUTBOX = "control.db", "audit.db", "identity", "outbox.db"


class Looking:
    """At one gateway. `text`: of the configuration file called `name` in `folder`; None: it cannot be read."""

    def __init__(
        self, text: str | None, name: str, folder: Path, schemas: Schemas, clock: Clock,
        secrets: Callable[[Path], Secrets], *, log: Path | None = None,
    ) -> None:  # fmt: skip
        self._text, self._name, self._folder, self._schemas, self._clock, self._log = text, name, folder, schemas, clock, log
        self.base = said_by(text)
        self._early: Config = bare(self.base)
        """Of the file what is needed to find the rest."""
        self.data_dir = folder / self._early.data_dir
        self._secrets = secrets(folder / secrets_folder(self._early))

    def looks(self) -> dict[str, Look]:
        """The most important ones first."""
        found: dict[str, Look] = {
            "about.json": lambda: machine.about(self._clock, self.data_dir),
            "configuration.json": self.configuration,
            "control.json": self.control,
            "outbox.json": self.outbox,
            "identity.json": self.identity,
            "dependencies.json": machine.dependencies,
        }
        settings = self.settings
        if settings.metrics is not None:
            found["health.json"] = partial(machine.page, settings.metrics.listen, "/health")
            found["metrics.txt"] = partial(machine.page, settings.metrics.listen, "/metrics")
        return {**found, "audit.json": self.audit, "log.txt": lambda: machine.log(self._log)}

    def secrets(self) -> list[str]:
        """All that this machine knows of: those in the configurations, those that they refer to, tokens in files."""
        said = [self.base, *self._files, *(layer.content for layer in self._layers.values()), self.effective.config]
        found = [text for each in said for text in redaction.secrets(each, self._schemas, self.effective.config)]
        for each in said:
            for _, name in references.found(each):
                with contextlib.suppress(EdgeError):
                    found.append(self._secrets.get(name))
            for file in _token_files(each):
                with contextlib.suppress(OSError, ValueError):
                    found.append((self._folder / file).read_text().strip())
        return [text for text in dict.fromkeys(found) if len(text) >= redaction.SCRUBBED_CHARACTERS_MIN]

    # --- its configuration ---

    @cached_property
    def _pages(self) -> Pages | None:
        """What its book holds; None: nothing that can be read."""
        try:
            with self._opened(BOOK) as database:
                return pages.read(database)
        except UNREADABLE:
            return None

    @cached_property
    def _layers(self) -> dict[str, Layer]:
        """The documents that came over MQTT, by layer."""
        found = {}
        for each in (self._pages or Pages()).documents.values():
            with contextlib.suppress(*UNREADABLE):
                if each.layer != FILE:
                    found[each.layer] = layer_of(each)
        return found

    @property
    def _files(self) -> list[Mapping[str, Any]]:
        """What the file said when it was read last: now it may be none that can be understood."""
        documents = (self._pages or Pages()).documents.values()
        return [said_by(each.payload.decode(errors="replace")) for each in documents if each.layer == FILE]

    @cached_property
    def effective(self) -> Effective:
        """What runs, as far as that can be told: what is on trial, or active; else what the file says."""
        book = self._pages
        one = book.configurations.get(book.life.trial or book.life.active) if book else None
        if book is None or one is None:
            return Effective(self.base, {})
        made_of = [book.documents[serial] for serial in one.made_of if serial in book.documents]
        return of_text(
            one.text, self.base, {each.layer: self._layers[each.layer] for each in made_of if each.layer in self._layers}
        )

    @cached_property
    def settings(self) -> Config:
        return bare(self.effective.config)

    def configuration(self) -> dict[str, Any]:
        """The effective one without secrets, where each value comes from, and what is wrong with the file."""
        effective = self.effective
        return {
            "file": {"name": self._name, "readable": self._text is not None, "problems": self._problems()},
            "effective": redaction.redacted(effective.config, self._schemas),
            "provenance": effective.summary(),
            "asks_for_secrets": {document.dotted(path): name for path, name in references.found(effective.config)},
        }

    def _problems(self) -> list[str]:
        """Without any value."""
        if self._text is None:
            return ["it cannot be read"]
        try:
            document.read(self._text, self._name)
            validated(Effective(self.base, {}), self._schemas)
        except DocumentError as error:
            return [f"line {each.line}: {each.path}: {each.message}" for each in error.problems]
        except BadLayers as error:
            return [str(fault) for fault in error.faults]
        return []

    def control(self) -> dict[str, Any]:
        """How it came to its configuration."""
        with self._opened(BOOK) as database:
            book, configurations = pages.read(database), pages.history(database)
        newest: dict[str, LayerDocument] = {each.layer: each for each in book.documents.values()}
        layers = [
            {"layer": each.layer, "hash": each.hash, "revision": each.revision, "state": each.state, "cause": each.cause}
            for each in newest.values()
        ]
        return {"life": msgspec.to_builtins(book.life), "layers": layers, "history": history.told(configurations, newest)}

    # --- what it holds ---

    def outbox(self) -> dict[str, Any]:
        """Numbers of records, by lane and sink; of none what is in it."""
        said = self.effective.config.get("outbox")
        file = said.get("file") if isinstance(said, dict) else None
        with self._opened(file if isinstance(file, str) else OUTBOX) as database:
            schema.pretend(database)
            heads, lows, acknowledged = tables.heads(database), tables.lows(database), tables.acknowledged(database)
            lanes = {
                lane.value: {
                    "head": heads[lane],
                    "oldest": lows.get(lane),
                    "waiting": {
                        sink: _waiting(acknowledged.get((sink, lane), ()), heads[lane])
                        for sink, (takes, _) in tables.sinks(database).items()
                        if lane in takes
                    },
                }
                for lane in LANES
                if heads[lane]
            }
            gaps = [
                {"lane": gap.lane, "epoch": epoch, "first": gap.first, "last": gap.last, "count": gap.count, "reason": gap.reason}
                for _, epoch, gap in tables.oldest_gaps(database, AUDIT_ENTRIES)
            ]
            return {
                "format": schema.version(database),
                "epochs": [epoch.name for epoch in tables.epochs(database)],
                "sinks": {sink: delivery(confirms) for sink, (_, confirms) in tables.sinks(database).items()},
                "lanes": lanes,
                "gaps": gaps,
                "journal_rows": tables.journal_counts(database),
            }

    def audit(self) -> dict[str, Any]:
        """Its head, and the last entries without what was written, shown, or said of it: that may hold a point's value."""
        with self._opened(AUDIT) as database:
            head = audit_file.newest(database)
            rows = audit_file.rows_from(database, max(1, head.n - AUDIT_ENTRIES + 1), AUDIT_ENTRIES)
        told = ("n", "boot", "mono_ns", "wall_ns", "synced", "kind", "actor", "via", "subject", "outcome", "completes", "hash")
        return {"head": str(head), "entries": [{field: getattr(row, field) for field in told} for row in rows]}

    def identity(self) -> dict[str, Any] | None:
        """Names, fingerprints, dates; None: there is no site."""
        settings = self._early
        identity = Identity.load(self._folder / settings.site_dir if settings.site_dir else self.data_dir / IDENTITY)
        if identity is None:
            return None
        return {
            "site": identity.site, "name": identity.name, "role": identity.role, "fingerprint": identity.key.fingerprint,
            "not_after_s": identity.not_after_s, "revoked": identity.is_revoked,
            "roster": {
                "revision": identity.roster.revision,
                "members": [
                    {"name": each.name, "role": each.role, "fingerprint": each.fingerprint, "not_after_s": each.not_after_s}
                    for each in identity.roster.members
                ],
                "revoked": len(identity.roster.revoked),
            },
        }  # fmt: skip

    @contextlib.contextmanager
    def _opened(self, name: str) -> Iterator[Database]:
        path = self.data_dir / name
        if not path.is_file():
            raise EdgeError(f"{path}: there is no such file", "has the gateway run?")
        database = open_read_only(path)
        try:
            yield database
        finally:
            database.close()


def _waiting(acknowledged: Ranges, head: int) -> int:
    return intervals.size(tuple(intervals.missing(acknowledged, 1, head)))


def _token_files(said: Mapping[str, Any]) -> list[str]:
    sinks = said.get("sinks")
    found = [sink.get("token_file") for sink in sinks.values() if isinstance(sink, dict)] if isinstance(sinks, dict) else []
    return [file for file in found if isinstance(file, str) and file]
