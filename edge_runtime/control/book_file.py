"""The file under the book: one synced transaction a step; opened again after trouble; replaced when it is corrupt.

A corrupt file is never deleted. What can be read of it is written to a new file beside it, then it is set aside, and the new one
takes its name: a power cut between any two of these is gone on with at the next opening.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import TypeVar

from msgspec.structs import replace

from edge_runtime.control import pages as tables
from edge_runtime.control.pages import Pages
from edge_runtime.control.trial import Step
from edge_runtime.outbox.database import DiskError, Transaction, Trouble, open_read_only, trouble
from edge_runtime.ports import Clock, Database, Disk, EdgeError

T = TypeVar("T")

COMMAND_S_MAX = 600.0
"""A command may be valid for so long. So what was begun before a book was lost is not valid for longer either."""

REPLACEMENTS_MAX = 3
"""In one run: a disk that spoils every new file must not be filled with what is set aside."""

NEW = ".new"
"""The new file beside the corrupt one, until it takes its place."""

HINTS = {
    Trouble.FULL: "free space on the disk",
    Trouble.READ_ONLY: "remount it writable or mend its permissions",
    Trouble.CORRUPT: "it is set aside and begun anew as soon as that can be written",
    Trouble.LOCKED: "end the other program that holds the file (`fuser` names it)",
    Trouble.FAILING: "check the disk (dmesg, smartctl)",
}


class BookError(EdgeError):
    """The book did not take it; nothing of it was written."""


class BookFile:
    """Used by one thread at a time. `pages` is what is on the disk."""

    def __init__(self, disk: Disk, path: Path, clock: Clock) -> None:
        self._disk, self._path, self._clock = disk, path, clock
        self._new = path.with_name(path.name + NEW)
        self._database: Database | None = None
        self._identity = 0
        self.pages = Pages()
        self.turned: Pages | None = None
        """What the transaction in progress makes of them."""
        self.first: Callable[[Database], None] | None = None
        """To be done before anything else, in the first transaction that works."""
        self.notes: list[str] = []
        """What a person should know of what was done to the file."""
        self.trouble = ""
        self._replacements = 0

    @property
    def known(self) -> Pages:
        """Within a transaction: what it has made of the pages so far."""
        return self.turned or self.pages

    def turn(self, database: Database, step: Step) -> None:
        self.turned = tables.turn(database, step)

    def transact(self, step: Callable[[Database], T]) -> T:
        """Raises BookError; then nothing of it was done, as far as the disk still tells."""
        try:
            try:
                return self._once(step)
            except DiskError as error:
                if trouble(error) is not Trouble.CORRUPT or self._replacements >= REPLACEMENTS_MAX:
                    raise
                self._replacements += 1
                self._replace(error)
                return self._once(step)
        except (DiskError, OSError) as error:
            self.drop()
            what = trouble(error) if isinstance(error, DiskError) else Trouble.FAILING
            self.trouble = f"{self._path.name}: {what}: {error}"
            raise BookError(self.trouble, HINTS[what]) from error

    def look(self) -> None:
        """Reads what there is without writing anything, where it could not be opened as usual."""
        if self.pages.configurations:
            return
        with contextlib.suppress(DiskError):
            database = open_read_only(self._path, alone=True)
            try:
                self.pages = tables.read(database)
            finally:
                database.close()

    def drop(self) -> None:
        """The next step opens it again."""
        database, self._database = self._database, None
        if database is not None:
            with contextlib.suppress(DiskError):
                database.close()

    def _once(self, step: Callable[[Database], T]) -> T:
        self.turned = None
        database, done = self._opened(), []
        try:
            with Transaction(database):
                if self.first:
                    self.first(database)
                done.append(step(database))
        except DiskError:
            if not done or not self._landed():
                raise
        self.pages, self.turned, self.first = self.known, None, None
        self.trouble = ""
        return done[0]

    def _landed(self) -> bool:
        """A COMMIT that failed may have reached the disk all the same: then it would be wrong to say that it did not."""
        self.drop()
        with contextlib.suppress(DiskError):
            self._opened()
            return self.pages == self.turned
        return False

    # --- opening -----------------------------------------------------------------------------------------------------

    def _opened(self) -> Database:
        if self._database is not None and self._disk.identity(self._path) != self._identity:
            self.drop()  # somebody removed or replaced the file: what is written to the old one has no name any more
        if self._database is None:
            self._finish_replacing()
            database = self._disk.open(self._path)
            try:
                self.pages = self._read(database)
            except BaseException:
                database.close()
                raise
            self._database, self._identity = database, self._disk.identity(self._path)
        return self._database

    def _read(self, database: Database) -> Pages:
        layout = tables.layout(database)
        if layout > tables.LAYOUT:
            raise BookError(f"{self._path.name} was written by a newer version", "update edge-runtime, or move the file away")
        if layout == 0:
            begun = self._remembered(self.pages) if self._identity else Pages()
            with Transaction(database):
                tables.create(database, begun)
        return tables.read(database)

    def _remembered(self, pages: Pages) -> Pages:
        """For a new file in the place of one that is lost. Which commands were executed is not known any more."""
        now = self._clock.now()
        until_ns = now.mono_ns + int(COMMAND_S_MAX * 1e9)
        return replace(pages, life=replace(pages.life, forgot_boot=now.boot, forgot_until_ns=until_ns))

    # --- replacing a corrupt file ------------------------------------------------------------------------------------

    def _replace(self, error: DiskError) -> None:
        self.drop()
        found = self.pages if self.pages.life.active else self._salvage()
        note = "the active configuration was saved" if found.life.active else "nothing of it could be read"
        if self._disk.size_bytes(self._new):
            self._disk.set_aside(self._new)
        database = self._disk.open(self._new)
        try:
            with Transaction(database):
                tables.create(database, self._remembered(found))
        finally:
            database.close()
        self.notes.append(f"{self._path.name} was corrupt ({error}) and is set aside beside a new one; {note}")
        self._finish_replacing()

    def _salvage(self) -> Pages:
        try:
            database = self._disk.open(self._path, damaged=True)
        except DiskError:
            return Pages()
        try:
            return tables.salvage(database)
        finally:
            database.close()

    def _finish_replacing(self) -> None:
        """Also for a replacement that a power cut interrupted."""
        if not self._disk.size_bytes(self._new):
            return
        if not self._complete(self._new):
            self._disk.set_aside(self._new)
            return
        if self._disk.size_bytes(self._path):
            self._disk.set_aside(self._path)
        self._disk.move(self._new, self._path)

    def _complete(self, path: Path) -> bool:
        try:
            database = self._disk.open(path)
        except DiskError as error:
            if trouble(error) is not Trouble.CORRUPT:
                raise
            return False
        try:
            return tables.layout(database) == tables.LAYOUT
        finally:
            database.close()
