"""With which configuration a process begins: that of its file and the documents that came over MQTT, or what worked last.

    origin = await begin(book, text, path, schemas, clock)     # once a process

Raises ConfigError where nothing of it works: a file that is wrong from the beginning, of a gateway that nobody could reach.
"""

from __future__ import annotations

import hashlib
import re
from collections.abc import Mapping
from dataclasses import dataclass, replace
from pathlib import Path
from typing import Any

import msgspec

from edge_runtime import config, document
from edge_runtime.bus import control as messages
from edge_runtime.bus.control import Fault
from edge_runtime.bus.messages import BadMessage
from edge_runtime.config import Config, ConfigError
from edge_runtime.control.book import Book, Start
from edge_runtime.control.book_file import BookError
from edge_runtime.control.layers import FILE, GATEWAY, BadLayers, Effective, Layer, merge, stack, validated
from edge_runtime.control.pages import LayerDocument
from edge_runtime.control.plan import plan
from edge_runtime.control.redaction import Schemas, hushed
from edge_runtime.control.trial import Terms
from edge_runtime.document import DocumentError, Problem
from edge_runtime.ports import Clock, EdgeError
from edge_runtime.trust import envelope

REACHED_BY = ("broker", "mesh", "control", "metrics", "log")
"""Sections of a gateway in safe mode: it does nothing, and can be reached."""

_FOLDERS = re.compile(r'''^(?:data|site|secrets)_dir *:.*$|"(?:data|site|secrets)_dir"\s*:\s*"[^"\n]*"''', re.MULTILINE)
"""What a file, YAML or JSON, says of where one of our folders is."""


@dataclass(frozen=True)
class Origin:
    """What the file says (`base`; nothing if it cannot be read), and what this process runs."""

    base: Mapping[str, Any]
    file: LayerDocument | None
    start: Start
    settings: Config
    effective: Effective
    kept: Config | None = None
    """While `settings` are on trial, or nothing runs (bare): the active configuration. What waits on the disk for it stays."""
    faults: tuple[Fault, ...] = ()
    """What is wrong with the file, where it is not what runs."""

    @property
    def safe(self) -> bool:
        return self.start.mode in ("last_good", "bare")


async def begin(book: Book, text: str | None, name: str, schemas: Schemas, clock: Clock) -> Origin:
    """`text`: of the file called `name`; None: it cannot be read."""
    base, unread = _base(text, name)
    file = None
    if text is not None:
        digest = hashlib.sha256(text.encode()).hexdigest()
        file = LayerDocument(layer=FILE, hash=digest, payload=text.encode(), stamp=clock.now())
    start = await book.start(file)
    if start.text is None and start.mode == "normal":
        return await _of_file(book, Origin(base, file, start, *reduced(base)), text or "", name, schemas, unread)
    return _of_book(book, Origin(base, file, start, *reduced(base)), schemas, unread)


async def _of_file(book: Book, origin: Origin, text: str, name: str, schemas: Schemas, unread: DocumentError | None) -> Origin:
    """Made anew: the file is new, or another one than before."""
    file = origin.file
    assert file is not None
    held = documents(book)
    try:
        if unread is not None:
            raise unread
        if not held:
            config.load(text, schemas, Path(name))  # with the lines of the file, for who wrote it
        effective = merge(origin.base, stack(origin.base, held))
        settings = validated(effective, schemas)
    except (DocumentError, BadLayers) as found:
        error: EdgeError = found
        if isinstance(found, DocumentError):
            error = ConfigError(hushed(found.problems, origin.base, schemas))
        start = await book.without_file(_brief(error))
        return _of_book(book, replace(origin, start=start, faults=_faults(error)), schemas, error)
    before = active(book, schemas)
    try:
        made_of = [file, *(each for layer, each in book.base.items() if layer != FILE)]
        # Judged by what it can have caused: an uplink that is away while the gateway starts takes no file back.
        parts = plan(before, settings).parts if before else ()
        await book.propose(as_text(effective.config), effective.hash, made_of, Terms(parts))
    except BookError:  # it says so itself; the file is there again at the next start
        return replace(origin, settings=settings, effective=effective)
    start, kept = origin.start, None
    if book.on_trial:
        start, kept = replace_start(start, "trial"), before
    return replace(origin, start=start, settings=settings, effective=effective, kept=kept)


def _of_book(book: Book, origin: Origin, schemas: Schemas, wrong: EdgeError | None) -> Origin:
    """What ran before, as the book has it; else nothing but broker and control."""
    start = origin.start
    if start.text is not None and start.mode != "bare":
        try:
            base = _base_of(book, origin.base)
            effective = of_text(start.text, base, documents(book))
            kept = active(book, schemas) if start.mode == "trial" else None
            return replace(origin, base=base, settings=validated(effective, schemas), effective=effective, kept=kept)
        except BadLayers as error:  # another version of this program, or an adapter that is gone
            wrong, start = error, replace_start(start, "bare")
    settings, effective = origin.settings, origin.effective
    if start.text is not None:  # where it was reached before: a document may have brought it to another broker than the file's
        settings, effective = reduced(msgspec.json.decode(start.text))
    if settings.broker.mode == "none" or settings.site == UNNAMED:
        if start.mode == "bare" and start.text is not None and not isinstance(wrong, BadLayers):
            # Nobody could reach it in safe mode, and a line that stands still for good is worse than one that starts again.
            effective = of_text(start.text, origin.base, documents(book))
            try:
                return replace(origin, start=start, settings=validated(effective, schemas), effective=effective)
            except BadLayers as error:
                wrong = error
        raise wrong if isinstance(wrong, ConfigError) else ConfigError(_problems(wrong, start))
    return replace(origin, start=start, settings=settings, effective=effective, kept=active(book, schemas))


def _base_of(book: Book, otherwise: Mapping[str, Any]) -> Mapping[str, Any]:
    """What the file said when it was taken: a patch that comes builds on that, not on what is wrong with the file now."""
    held = book.base.get(FILE)
    return _base(held.payload.decode(), "")[0] if held else otherwise


def of_text(text: str, base: Mapping[str, Any], held: Mapping[str, Layer]) -> Effective:
    """A configuration as the book has it; with where its values come from, if that can be told."""
    value = msgspec.json.decode(text)
    try:
        made = merge(base, stack(base, held))
    except BadLayers:
        return Effective(value, {})
    return made if made.config == value else Effective(value, {})


def as_text(value: Mapping[str, Any]) -> str:
    return msgspec.json.encode(value).decode()


def documents(book: Book) -> dict[str, Layer]:
    """What the configuration on trial, or the active one, is made of, beside the file."""
    found = {}
    for name, each in book.base.items():
        if name != FILE:
            found[name] = layer_of(each)
    return found


def layer_of(held: LayerDocument) -> Layer:
    """Of a document that was taken once. Raises BookError: it is none any more."""
    try:
        said = messages.desired(envelope.unwrap(held.payload), "")
    except (BadMessage, EdgeError) as error:
        raise BookError(f"the document of {held.layer} in the book cannot be read: {error.cause}") from None
    return Layer(held.layer, held.revision or said.revision or 1, config=said.config, patch=said.patch)


def is_numbered(payload: bytes) -> bool:
    """A document: it says its revision itself."""
    try:
        return messages.desired(envelope.unwrap(payload), "").revision is not None
    except EdgeError:
        return False


def active(book: Book, schemas: Schemas) -> Config | None:
    """The active configuration."""
    if book.active is None:
        return None
    try:
        return validated(Effective(msgspec.json.decode(book.active.text), {}), schemas)
    except BadLayers:
        return None


def replace_start(start: Start, mode: Any) -> Start:
    return msgspec.structs.replace(start, mode=mode)


# --- safe mode -------------------------------------------------------------------------------------------------------

UNNAMED = "unnamed"


def bare(base: Mapping[str, Any]) -> Config:
    """Of all that a file says what is needed to be reached; a section that is wrong is as if it were not there."""
    found: dict[str, Any] = {"site": UNNAMED, "gateway": UNNAMED}
    for name in ("site", "gateway", "data_dir", "site_dir", "secrets_dir", *REACHED_BY):
        if name in base and _works({**found, name: base[name]}):
            found[name] = base[name]
    return Config.model_validate(found)


def _works(value: Mapping[str, Any]) -> bool:
    doc = document.Document("", dict(value), {(): 1})
    return not document.validate(doc, Config)


def reduced(base: Mapping[str, Any]) -> tuple[Config, Effective]:
    settings = bare(base)
    return settings, Effective(settings.model_dump(mode="json", exclude_unset=True), {})


def said_by(text: str | None) -> dict[str, Any]:
    """The values of a file, whatever is wrong with it. Of one that is no YAML at least where our folders are, as far as a line
    says so: in `data_dir` is all that a gateway goes on with while its file is broken."""
    found, unread = _base(text, "")
    if unread is not None and text is not None:
        for words in _FOLDERS.findall(text):
            found = {**_base(words, "")[0], **found}
    return found


def _base(text: str | None, name: str) -> tuple[dict[str, Any], DocumentError | None]:
    """What the file says, and what is wrong with it as a text."""
    if text is None:
        return {}, ConfigError([Problem(name, 1, "", "cannot be read", hint="see the message before")])
    try:
        value = document.read(text, name).value
    except DocumentError as error:
        return {}, ConfigError(error.problems)
    if not isinstance(value, dict):
        return {}, ConfigError([Problem(name, 1, "", "is no mapping (key: value)", hint="edge-runtime config example")])
    return value, None


def _faults(error: EdgeError) -> tuple[Fault, ...]:
    if isinstance(error, BadLayers):
        return error.faults
    problems = error.problems if isinstance(error, DocumentError) else ()
    return tuple(Fault(each.path, f"{each.message} (line {each.line})", each.hint, FILE) for each in problems)


def _brief(error: EdgeError) -> str:
    faults = error.faults if isinstance(error, BadLayers) else ()
    lines = [str(each) for each in faults] or str(error.cause).splitlines()
    return "; ".join(line.strip() for line in lines[:3]) + ("; ..." if len(lines) > 3 else "")


def _problems(wrong: EdgeError | None, start: Start) -> list[Problem]:
    if isinstance(wrong, BadLayers):
        return [Problem("", 0, fault.path, fault.message, hint=fault.hint) for fault in wrong.faults]
    return [Problem("", 0, "", start.why or "there is no configuration that works", hint="edge-runtime check FILE")]


def target_of(layer: str, gateway: str) -> str:
    """gateway -> gw/press-1; group/presses -> group/presses"""
    return f"gw/{gateway}" if layer == GATEWAY else layer
