"""The life of a gateway's process: finds out with which configuration it begins, runs a gateway with it, and another one when a
change needs everything built anew. What it knows of its own past stands in the book (control/book.py).
"""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable, Sequence
from dataclasses import replace
from pathlib import Path
from typing import Any

from edge_runtime import config
from edge_runtime.control import origin as origins
from edge_runtime.control.actions import Due
from edge_runtime.control.audit import AuditLog, Entry, Kind
from edge_runtime.control.audit_file import AuditFile
from edge_runtime.control.book import Book
from edge_runtime.control.book_file import BookError
from edge_runtime.control.origin import Origin, of_text
from edge_runtime.control.steering import Steering
from edge_runtime.gateway import Gateway
from edge_runtime.ports import EdgeError
from edge_runtime.trust.identity import Identity
from edge_runtime.world import World

BOOK, AUDIT, IDENTITY = "control.db", "audit.db", "identity"
"""Files and folder in `data_dir`."""

CLOSE_S_MAX = 5.0
"""A disk that is broken does not keep a process from ending."""

PAGES = 64
"""Of the WAL of the book and the audit log."""


class Lifetime:
    """Of one process. `text`: of the configuration file called `name`; None: it cannot be read."""

    def __init__(self, text: str | None, name: str, folder: Path, data_dir: Path, world: World) -> None:
        self._text, self._name, self._folder, self._world = text, name, folder, world
        self._log = world.log
        self.book = Book(world.new_disk(PAGES), data_dir / BOOK, world.clock, world.new_worker("control"))
        self.audit = AuditLog(
            AuditFile(world.new_disk(PAGES), data_dir / AUDIT, world.clock),
            worker=world.new_worker("audit"),
            clock=world.clock,
            log=self._log,
        )
        self._data_dir = data_dir
        self._asked = False
        self.gateway: Gateway | None = None
        self.watch: Callable[[Gateway], None] = lambda _: None
        """Called with each gateway before it runs."""

    def stop(self) -> None:
        """Begins a clean stop; at any time, and again."""
        self._asked = True
        if self.gateway:
            self.gateway.stop()

    @property
    def stopping(self) -> bool:
        return self._asked

    async def run(self) -> None:
        """Until `stop`. Raises ConfigError: nothing of the configuration works."""
        try:
            origin = await self._begin()
            await self.audit.open()
            self._tell(origin)
            await self._live(origin)
            with contextlib.suppress(BookError):
                await self.book.ended()
        finally:
            await self._close()

    async def _begin(self) -> Origin:
        """Raises ConfigError. To end with it is no crash: after one the same file would not be read again, though what it lacked
        (an adapter, say) may be there then."""
        try:
            return await origins.begin(self.book, self._text, self._name, self._world.adapters, self._world.clock)
        except config.ConfigError:
            with contextlib.suppress(BookError):
                await self.book.ended()
            raise

    async def _live(self, origin: Origin) -> None:
        left: Sequence[Due] = ()
        while not self._asked:
            identity = self._identity(origin.settings)
            steering = Steering(origin, self.book, self.audit, identity)
            self.gateway = gateway = Gateway(origin.settings, self._folder, self._world, steering, kept=origin.kept, left=left)
            self.watch(gateway)
            await gateway.run()
            if gateway.successor is None:
                gateway.actions.give_up()
                return
            left = gateway.actions.left()
            origin = self._next(origin, gateway.successor)

    def _next(self, origin: Origin, settings: config.Config) -> Origin:
        """In this process, with other settings: what the book has on trial, or as active, now."""
        book = self.book
        one, mode = book.on_trial or book.active, "trial" if book.on_trial else book.life.safe or "normal"
        effective = of_text(one.text, origin.base, origins.documents(book)) if one else origin.effective
        if mode == "bare":
            _, effective = origins.reduced(effective.config)
        kept = origins.active(book, self._world.adapters) if mode in ("trial", "bare") else None
        start = origins.replace_start(origin.start, mode)
        return replace(origin, settings=settings, effective=effective, kept=kept, start=start)

    def _identity(self, settings: config.Config) -> Identity | None:
        """Raises EdgeError: there is one, and it cannot be used. To go on without would open what was closed."""
        found = Identity.load(self._folder / settings.site_dir if settings.site_dir else self._data_dir / IDENTITY)
        if found is None and settings.site_dir:  # on a disk that is not mounted, say
            hint = "is its disk mounted? `edge-runtime join` makes one; a gateway that belongs to no site has no site_dir"
            raise EdgeError(f"site_dir: no identity is in {self._folder / settings.site_dir}", hint)
        if found and (found.site, found.name, found.role) != (settings.site, settings.gateway, "gateway"):
            whose = f"{found.role} {found.name} of {found.site}"
            hint = "the names in the configuration are those under which it has joined; else: edge-runtime join"
            raise EdgeError(f"{found.folder}: is of {whose}, and this is {settings.gateway} of {settings.site}", hint)
        return found

    def _tell(self, origin: Origin) -> None:
        start = origin.start
        if start.why:
            level: Any = self._log.error if origin.safe else self._log.warning
            level("configuration_start", mode=start.mode, cause=start.why, hint="edge-runtime config history")
        for fault in origin.faults:
            self._log.error("configuration_fault", path=fault.path, cause=fault.message, hint=fault.hint, layer=fault.layer)
        self.audit.note(
            Entry(kind=Kind.START, actor=origin.settings.gateway, subject="gateway", outcome=start.mode, why=start.why)
        )

    async def _close(self) -> None:
        try:
            async with asyncio.timeout(CLOSE_S_MAX):
                await self.audit.close()
                await self.book.close()
        except TimeoutError:
            self._log.error("control_not_closed", cause="the disk does not answer", hint="what was confirmed is on the disk")
