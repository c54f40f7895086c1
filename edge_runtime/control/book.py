"""The book: the file `control.db` in which a gateway keeps its configurations, the documents that they are made of, how its runs
ended, and which commands it has begun. Each call is one synced transaction: it happened as a whole, or not at all.

    book = Book(disk, data_dir / "control.db", clock, worker)
    start = await book.start(file)             # once a process; never raises
    number = await book.propose(text, hash, documents, terms)      # from now on a start takes it, on trial
    await book.confirm()                       # or: await book.revert(why)

A book that cannot be written (full, read-only) starts the gateway with what can be read, or with the file on disk; each change
raises BookError until it can be written again, and needs no restart for that. A corrupt one is set aside, and a new one begun.
"""

from __future__ import annotations

import contextlib
from collections.abc import Callable, Mapping, Sequence
from pathlib import Path
from typing import TypeVar

import msgspec
from msgspec.structs import replace

from edge_runtime.control import pages, trial
from edge_runtime.control.book_file import COMMAND_S_MAX, BookError, BookFile
from edge_runtime.control.layers import FILE
from edge_runtime.control.pages import Configuration, LayerDocument, Pages
from edge_runtime.control.trial import Life, Mode, Step, Terms
from edge_runtime.ports import Clock, Database, Disk, Worker

T = TypeVar("T")

EXPIRED = "the command has expired"
TEXT_BYTES_MAX = 4 * 2**20
"""Of an effective configuration, and of a document."""


class Start(msgspec.Struct, frozen=True):
    """What this run takes. `text` None: it has to be made from the file on disk (normal), or nothing is known (bare)."""

    mode: Mode
    text: str | None = None
    number: int = 0
    why: str = ""
    """What a person should know of it; "" if everything is as usual."""
    terms: Terms = Terms()
    """What the trial is judged by, in the mode trial."""


class Repeated(msgspec.Struct, frozen=True):
    """This id was begun before. `outcome` None: and nothing is known of how it ended."""

    verb: str
    outcome: str | None


class Book:
    """One process uses it. `worker`: its thread, in which everything here that blocks is done."""

    def __init__(self, disk: Disk, path: Path, clock: Clock, worker: Worker) -> None:
        self._clock, self._worker = clock, worker
        self._book = BookFile(disk, path, clock)
        self._file: LayerDocument | None = None
        self._start = Start("normal")

    # --- what it knows -----------------------------------------------------------------------------------------------

    @property
    def trouble(self) -> str:
        """Why it could not be written the last time it was tried; "" if it could."""
        return self._book.trouble

    @property
    def life(self) -> Life:
        return self._book.pages.life

    @property
    def active(self) -> Configuration | None:
        return self._book.pages.configurations.get(self.life.active)

    @property
    def on_trial(self) -> Configuration | None:
        return self._book.pages.configurations.get(self.life.trial)

    @property
    def layers(self) -> Mapping[str, LayerDocument]:
        """The newest document of each layer, whatever became of it: what is published again on an empty broker."""
        return {document.layer: document for document in self._book.pages.documents.values()}

    @property
    def said(self) -> Mapping[str, LayerDocument]:
        """Of the layers those that came over MQTT."""
        return {name: each for name, each in self.layers.items() if name != FILE}

    @property
    def newest(self) -> LayerDocument | None:
        """Of those."""
        return max(self.said.values(), key=lambda each: each.serial, default=None)

    @property
    def base(self) -> Mapping[str, LayerDocument]:
        """By layer what the next change builds on: the documents of the configuration on trial, else of the active one."""
        one = self.on_trial or self.active
        return {each.layer: each for serial in (one.made_of if one else ()) if (each := self._book.pages.documents[serial])}

    @property
    def before(self) -> Mapping[str, LayerDocument]:
        """By layer the documents of the last good configuration."""
        one = self._book.pages.configurations.get(self.life.last_good)
        return {each.layer: each for serial in (one.made_of if one else ()) if (each := self._book.pages.documents[serial])}

    async def history(self) -> Sequence[Configuration]:
        """Newest first, without their texts. Raises BookError."""
        return await self._do(pages.history)

    async def configuration(self, number: int) -> Configuration | None:
        """With its text. Raises BookError."""
        return await self._do(lambda database: pages.configuration(database, number))

    # --- the life of a process ---------------------------------------------------------------------------------------

    async def open(self) -> None:
        """Reads what there is, for one who only looks. A disk that does not work is told by `trouble`."""
        with contextlib.suppress(BookError):
            await self._do(lambda database: None)

    async def start(self, file: LayerDocument | None) -> Start:
        """Begins a run: decides what it takes, and has it on the disk. `file`: of the layer "file", what is on the gateway's disk
        now (None: it cannot be read). A file that the book does not know has to be read, and proposed or refused
        (`without_file`). Raises nothing: what is wrong with the book stands in `why`."""
        self._file, self._book.first = file, self._record
        try:
            await self._do(lambda database: None)
        except BookError as error:
            self._start = await self._worker.run(self._unrecorded, error)
        return self._start

    async def without_file(self, cause: str) -> Start:
        """The file that `start` asked to read is not valid: what to take instead. Raises nothing."""
        try:
            await self._do(lambda database: self._reject_file(database, cause))
        except BookError as error:
            self._book.notes.append(f"that is not recorded: {error}")
        self._start = self._starting(self._book.pages, Step(self.life), "rejected", f"the file is not valid: {cause}")
        return self._start

    async def steady(self) -> None:
        """This configuration has run for STEADY_S (since the start, or since it was confirmed)."""
        if not self.life.steady:
            await self._do(lambda database: self._live(database, steady=True))

    async def ended(self) -> None:
        """The last call of a run that ends as it was told to: what follows is no crash."""
        await self._do(lambda database: self._live(database, ended=True))

    async def close(self) -> None:
        await self._worker.run(self._book.drop)

    # --- changes -----------------------------------------------------------------------------------------------------

    async def keep(self, document: LayerDocument) -> None:
        """A document that changes nothing, or not yet: rejected (with the cause), or held until its time comes."""
        await self._do(lambda database: self._keep(database, document))

    async def propose(
        self, text: str, digest: str, made_of: Sequence[LayerDocument], terms: Terms | None = None, *,
        reverts: Mapping[int, str] = {},
    ) -> int:  # fmt: skip
        """A new effective configuration goes on trial; the very first one is active at once. `made_of`: one document of each
        layer, also of those that a whole configuration above them replaces. `reverts`: documents (by their serials) that are
        taken back with it, and why. Returns its number.

        What is active already (or on trial, if something is) is no new configuration: its number is returned, and `on_trial`
        is what it was. Out of safe mode also the same one goes on trial."""
        if max(len(text), *(len(document.payload) for document in made_of), 0) > TEXT_BYTES_MAX:
            raise BookError(f"larger than {TEXT_BYTES_MAX} bytes", "split it over several gateways")
        return await self._do(lambda database: self._propose(database, text, digest, made_of, terms or Terms(), reverts))

    async def confirm(self) -> None:
        """What is on trial is active, and what was active is the last good one. Without a trial: nothing."""
        await self._do(self._confirm)

    async def revert(self, why: str) -> Configuration | None:
        """The trial is over. Returns the active configuration, which has to run again. Without a trial: changes nothing."""
        await self._do(lambda database: self._book.turn(database, trial.reverted(self._book.known.life, why)))
        return self.active

    async def rollback(self, terms: Terms | None = None) -> int:
        """The last good configuration goes on trial; documents that only the active one has are reverted. Returns its number."""
        return await self._do(lambda database: self._rollback(database, terms or Terms()))

    # --- commands ----------------------------------------------------------------------------------------------------

    async def begin(self, name: str, verb: str, boot: str, until_ns: int) -> Repeated | None:
        """To be called before anything is executed. None: this id is on the disk now and was not there before. Raises BookError
        for a command that has expired, is for another boot, or cannot be told from one of before."""
        return await self._do(lambda database: self._begin(database, name, verb, boot, until_ns))

    async def complete(self, name: str, outcome: str) -> None:
        """What came of a command that was begun; `outcome`: JSON, for one who asks again."""
        await self._do(lambda database: pages.set_outcome(database, name, outcome))

    # --- in the worker's thread: steps of a transaction --------------------------------------------------------------

    def _live(self, database: Database, *, steady: bool | None = None, ended: bool = False) -> None:
        life = self._book.known.life
        if steady:
            life = replace(life, steady=True, crashes=life.crashes if life.trial else 0)
        life = replace(life, ended=ended)
        pages.set_life(database, life)
        self._book.turned = replace(self._book.known, life=life)

    def _record(self, database: Database) -> None:
        """This run's start: what it takes depends on what the book says before it."""
        step, news = self._judge(self._book.known)
        if news == "new" and self._file:
            pages.add_document(database, replace(self._file, layer=FILE, state="held"))
        elif step.file_given_up and self._file:
            pages.add_document(database, replace(self._file, layer=FILE, state="reverted", cause=step.file_given_up))
        self._book.turn(database, step)
        self._start = self._starting(self._book.known, step, news)

    def _judge(self, known: Pages) -> tuple[Step, trial.News]:
        held = _newest_file(known)
        file_hash = self._file.hash if self._file else None
        news = trial.news(held.hash if held else None, held.state if held else "held", file_hash)
        return trial.started(known.life, self._clock.now().boot, news), news

    def _starting(self, known: Pages, step: Step, news: trial.News, more: str = "") -> Start:
        life, held = step.life, _newest_file(known)
        why = [*self._book.notes, *(f"configuration {number} was reverted: {cause}" for number, _, cause in step.left)]
        if not step.reads_file:
            news = "reverted" if step.file_given_up else news
            of_file = {
                "rejected": "the file is not valid",
                "reverted": "the file was taken back",
                "missing": "the file cannot be read",
            }
            if news in of_file and not more:
                why.append(of_file[news] + (f": {held.cause}" if held and held.cause and news != "missing" else ""))
        why += [text for text in (more, life.why if not step.left else "") if text]
        mode = trial.mode(life, news, reads_file=step.reads_file)
        one = known.configurations.get(life.trial if mode == "trial" else life.active)
        if step.reads_file or one is None:
            return Start(mode, why="; ".join(why))
        return Start(mode, one.text, one.number, "; ".join(why), one.terms)

    def _reject_file(self, database: Database, cause: str) -> None:
        if self._file:
            pages.add_document(database, replace(self._file, layer=FILE, state="rejected", cause=cause))
            self._book.turn(database, Step(self._book.known.life))

    def _keep(self, database: Database, document: LayerDocument) -> None:
        pages.add_document(database, document)
        self._book.turn(database, Step(self._book.known.life))

    def _propose(
        self,
        database: Database,
        text: str,
        digest: str,
        made_of: Sequence[LayerDocument],
        terms: Terms,
        reverts: Mapping[int, str],
    ) -> int:
        for serial, why in reverts.items():
            pages.set_document(database, serial, "reverted", why)
        known, life = self._book.known, self._book.known.life
        serials = tuple(
            one.serial if one.serial in known.documents else pages.add_document(database, replace(one, state="held"))
            for one in made_of
        )
        base = known.configurations.get(life.trial or life.active)
        if base and base.hash == digest and (life.trial or not life.safe):
            pages.set_made_of(database, base, serials)
            self._book.turn(database, Step(life))
            return base.number
        return self._try(database, text, digest, serials, terms)

    def _try(self, database: Database, text: str, digest: str, made_of: tuple[int, ...], terms: Terms) -> int:
        one = Configuration(
            number=0, hash=digest, stamp=self._clock.now(), state="trial", made_of=made_of, terms=terms, text=text
        )  # fmt: skip
        number = pages.add_configuration(database, one)
        self._book.turn(database, trial.proposed(self._book.known.life, number))
        return number

    def _confirm(self, database: Database) -> None:
        known, life = self._book.known, self._book.known.life
        if life.trial:
            same = known.configurations[life.trial].hash == known.configurations[life.active].hash
            self._book.turn(database, trial.confirmed(life, same=same))

    def _rollback(self, database: Database, terms: Terms) -> int:
        known, life = self._book.known, self._book.known.life
        if life.trial:
            raise BookError(f"configuration {life.trial} is on trial", "revert it, or wait until it is judged")
        good = known.configurations.get(life.last_good)
        if good is None:
            raise BookError("there is no last good configuration to go back to", "see `edge-runtime config history`")
        for serial in known.configurations[life.active].made_of:
            if serial not in good.made_of:
                pages.set_document(database, serial, "reverted", f"rolled back to configuration {good.number}")
        return self._try(database, good.text, good.hash, good.made_of, terms)

    def _begin(self, database: Database, name: str, verb: str, boot: str, until_ns: int) -> Repeated | None:
        if known := pages.command(database, name):
            return Repeated(*known)
        now, life = self._clock.now(), self._book.known.life
        if boot != now.boot or until_ns <= now.mono_ns:
            raise BookError(EXPIRED, "send it again: it takes the gateway's time from its newest heartbeat")
        if until_ns > now.mono_ns + int(COMMAND_S_MAX * 1e9):
            raise BookError(f"the command is valid for longer than {COMMAND_S_MAX:g} s", "send it with a shorter time")
        if life.forgot_boot == boot and until_ns <= life.forgot_until_ns:
            wait_s = (life.forgot_until_ns - now.mono_ns) / 1e9
            raise BookError("the list of executed commands was lost: this one may be one of them", f"try again in {wait_s:.0f} s")
        if pages.commands(database) >= pages.COMMANDS_MAX:
            pages.forget_commands(database, now.boot, now.mono_ns)
            if pages.commands(database) >= pages.COMMANDS_MAX:
                raise BookError(f"{pages.COMMANDS_MAX} commands are valid at once", "wait until some have expired")
        pages.add_command(database, name, verb, boot, until_ns)
        return None

    async def _do(self, step: Callable[[Database], T]) -> T:
        return await self._worker.run(self._book.transact, step)

    def _unrecorded(self, error: BookError) -> Start:
        """A start that is not on the disk. It is written with the first change that can be written again."""
        self._book.look()
        self._book.notes.append(f"this start is not recorded, so a crash of it will not be counted: {error}")
        step, news = self._judge(self._book.pages)
        return self._starting(self._book.pages, step, news)


def _newest_file(known: Pages) -> LayerDocument | None:
    return next((each for each in reversed([*known.documents.values()]) if each.layer == FILE), None)
