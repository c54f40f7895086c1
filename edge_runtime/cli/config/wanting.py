"""To want something of a gateway or a group (runs): what is there now, what would happen, publishing it, what came of it."""

from __future__ import annotations

import argparse
import asyncio
import re
import sys
from collections.abc import AsyncIterator, Callable, Mapping, Sequence
from contextlib import asynccontextmanager, suppress
from dataclasses import dataclass, field
from typing import Any

import msgspec

from edge_runtime.bus import control as messages
from edge_runtime.bus import topics
from edge_runtime.bus.control import Desired, Fault, LayerState, Reported
from edge_runtime.cli import terminal
from edge_runtime.cli.config import patching
from edge_runtime.cli.config.following import REFUSED, TRIAL_S, Followed, Following
from edge_runtime.cli.config.moving import HEARD_MAX, Elsewhere, look_around
from edge_runtime.cli.config.places import Here, Place, places, said_there
from edge_runtime.cli.config.preview import Preview, Stack, preview
from edge_runtime.cli.config.seen import IN_FORCE, Seen
from edge_runtime.cli.mesh import finding
from edge_runtime.cli.talking import Talk
from edge_runtime.config import Config
from edge_runtime.control.layers import FILE, Layer, layer_name
from edge_runtime.document import NAME
from edge_runtime.ports import EdgeError, Message
from edge_runtime.sources.registry import Registry

Content = Mapping[str, Any]
"""{"patch": ...} or {"config": ...}"""

THERE = "--there mqtt://HOST:PORT says how it is reached; or publish the document there, too"
OFFLINE = "is offline: it takes it when it is back"


@dataclass
class Wanting:
    """`target`: gw/GATEWAY or group/NAME. `members`: gateways for which it is."""

    args: argparse.Namespace
    talk: Talk
    seen: Seen
    target: str
    members: list[str]
    before: Mapping[str, Any] = field(default_factory=dict)
    """What the layer says that is in force, as far as it is known."""

    @property
    def layer(self) -> str:
        return layer_name(self.target)

    @property
    def states(self) -> list[tuple[str, LayerState]]:
        """What the gateways say of this layer, those with the newest document first."""
        found = [(name, each) for name in self.members for each in self.seen.reports[name].layers if each.name == self.layer]
        return sorted(found, key=lambda pair: -pair[1].revision)

    @property
    def in_force(self) -> bool:
        """Whether the document on the broker is the one that gateways have taken last, or nobody has one yet."""
        newest, states = self.seen.desired(self.target), self.states
        if not states:
            return True
        last = [each for _, each in states if each.revision == states[0][1].revision]
        return newest is not None and all(each.hash == newest.digest and each.state in IN_FORCE for each in last)

    @property
    def held(self) -> Desired | None:
        """The document on the broker. Raises EdgeError: it is none that a gateway would take."""
        said = self.seen.documents.get(self.target)
        if said and said.wrong:
            cause = f"what is on the broker for {self.target} is no document of this site: {said.wrong.cause}"
            raise EdgeError(cause, "`edge-runtime config apply` puts a whole one in its place")
        return said.desired if said else None

    def document(self, content: Content) -> Desired:
        """Raises EdgeError: it holds what must not be sent."""
        args = self.args
        desired = Desired(
            target=self.target, revision=self.seen.revision(self.target, self.members), issuer=self.talk.name, note=args.note,
            canaries=tuple(args.canary), trial_s=args.trial, **content,
        )  # fmt: skip
        if hidden := patching.hidden(desired.content):
            hint = "a gateway does not show them: say what stands there (PATH=VALUE, best PATH=...secret:NAME), or leave them out"
            raise EdgeError(f"*** stands in the place of a secret: {', '.join(hidden[:5])}", hint)
        return msgspec.structs.replace(desired, hash=desired.digest)

    def previews(self, desired: Desired) -> list[Preview]:
        layer = Layer(self.layer, desired.revision or 1, config=desired.config, patch=desired.patch)
        schemas = Registry()
        made = []
        for name in self.members:
            above, unclear = self.seen.above(name, self.layer)
            made.append(preview(self.seen.reports[name], Stack(layer, self.before, above, unclear), schemas))
        return made


@asynccontextmanager
async def wanting(args: argparse.Namespace) -> AsyncIterator[Wanting]:
    """With what is there now. Raises EdgeError: no broker, no such gateway, a group without gateways."""
    target = _target(args.target)
    if not target.startswith("group/"):
        _check_canaries(args.canary, [target.removeprefix("gw/")])
    async with Talk(finding.plan(args)) as talk:
        seen = await look(talk, "+" if target.startswith("group/") else target.removeprefix("gw/"))
        members = seen.members(target)
        if missing := next((each for each in (*members, *args.canary) if each not in seen.reports), None):
            raise seen.forged.get(missing) or await talk.unknown(missing)
        if not members:
            known = ", ".join(sorted({layer for name in seen.reports for layer in seen.layers(name) if layer != "gateway"}))
            raise EdgeError(f"{talk.where}: no gateway of site {talk.site} is in {target}", f"there are {known}" if known else "")
        _check_canaries(args.canary, members)
        wanted, newest = Wanting(args, talk, seen, target, members), seen.desired(target)
        if newest is not None and wanted.in_force:
            wanted.before = newest.content
        yield wanted


def _check_canaries(canaries: Sequence[str], members: Sequence[str]) -> None:
    """Raises EdgeError."""
    strange = [each for each in canaries if each not in members]
    if strange or (canaries and len(members) < 2):
        cause = f"--canary {', '.join(strange or canaries)}: canaries are gateways of a group, for the others in it"
        raise EdgeError(cause, f"this is for {', '.join(members)}")


async def look(talk: Talk, gateway: str) -> Seen:
    """What the broker has; "+": of all gateways."""
    seen = Seen(talk.site, talk.of_gateway, talk.of_person)
    async for message in talk.kept(*seen.filters(gateway)):
        seen.take(message)
    return seen


async def want(wanted: Wanting, content: Content) -> int:
    """Shows, asks, publishes, follows; the exit status. Raises EdgeError."""
    args, desired = wanted.args, wanted.document(content)
    for name in wanted.members:
        wanted.talk.check_taken(name, wanted.seen.reports[name].config or {}, "desired")
    previews = wanted.previews(desired)
    out = sys.stderr if args.json else sys.stdout
    _show(wanted, desired, previews, lambda line: print(line, file=out))
    moved = {each.gateway: each.moved for each in previews if each.moved is not None}
    _check_moves(args, moved)
    if any(each.faults for each in previews) and not args.unchecked:
        print("hint: nothing was published; --unchecked publishes it all the same", file=sys.stderr)
        return 1
    there = await _there(wanted, desired, moved)
    for place in there:
        if place.doubt:
            print(f"note: the change may be taken back: {place.name}: {place.doubt}; {THERE}", file=out)
    if args.dry_run or not await _agreed(args):
        if args.json:
            terminal.emit_json({"published": False, "previews": [_as_json(each) for each in previews]})
        return 0 if args.dry_run else 1
    payload = wanted.talk.signed(messages.pack(desired), "desired")
    online = [name for name in wanted.members if wanted.seen.online.get(name, True)]
    busy = _busy(wanted, online)
    for name, layer in busy:
        print(f"note: {name}: a change of {layer} is on trial there: this one has its turn after it", file=out)
    followed = Followed(desired.digest, wanted.layer, desired.revision or 1)
    following = Following(followed, online, _trial_s(wanted, [layer for _, layer in busy]), busy=bool(busy))
    site = wanted.talk.site
    topic, filters = topics.desired(site, wanted.target), [topics.gateway(site, each, "config", "reported") for each in online]
    async with Elsewhere(there, topic, payload, filters) as elsewhere:
        await wanted.talk.publish(topic, payload, retain=True)
        print(f"published revision {desired.revision} for {wanted.target} ({desired.digest[:12]})", file=out, flush=True)
        await follow(wanted.talk, wanted.seen, following, lambda line: print(line, file=out, flush=True), elsewhere.heard)
        status = finish(following, as_json=args.json)
        for name, error in elsewhere.failures.items() if status and following.was_tried else ():
            complain(f"{name}: nobody could speak to it there: {error.cause}", f"{error.hint or THERE}", ())
    return status


def _check_moves(args: argparse.Namespace, moved: Mapping[str, Config]) -> None:
    """Raises EdgeError."""
    if moved and args.canary:
        cause = "--canary: the change moves the broker, and who waits for a canary does not hear it any more once it has moved"
        raise EdgeError(cause, f"first `edge-runtime config set {args.canary[0]} ...` alone, and then the group without --canary")


async def _there(wanted: Wanting, desired: Desired, moved: Mapping[str, Config]) -> list[Place]:
    """Where the change moves brokers. Raises EdgeError: what was said of it is wrong."""
    args, talk = wanted.args, wanted.talk

    def secret(name: str) -> str:
        return finding.secret(args, name)

    if args.there:
        return [said_there(Here(talk.plan, talk.site), args.there, secret)]
    section = desired.content.get("broker")
    said = section.get("url") if isinstance(section, dict) else None
    hosted = any(each.broker.mode in ("hosted", "auto") for each in moved.values())
    return places(await look_around(talk) if hosted else Here(talk.plan, talk.site), moved, said, secret)


async def follow(
    talk: Talk, seen: Seen, following: Following, say: Callable[[str], None], heard: asyncio.Queue[Message] | None = None
) -> None:
    """Until all that are waited for have come to an end, or say nothing any more. `heard`: what comes from elsewhere, too."""
    loop = asyncio.get_running_loop()
    until_s = loop.time() + following.patience_s
    heard = heard or asyncio.Queue(HEARD_MAX)
    async with asyncio.TaskGroup() as group:
        here = group.create_task(_pass_on(talk, heard), name="here")
        with suppress(TimeoutError):
            while following.waiting:
                async with asyncio.timeout_at(until_s):
                    message = await heard.get()
                name = seen.take(message)
                if name and (line := following.take(seen.reports[name])):
                    say(line)
                    until_s = loop.time() + following.patience_s
        here.cancel()


async def _pass_on(talk: Talk, heard: asyncio.Queue[Message]) -> None:
    """For as long as it takes: where the broker is lost, finding it again may take longer than any one look."""
    while message := await talk.hear():
        await heard.put(message)


def finish(following: Following, *, as_json: bool) -> int:
    """What went wrong, on standard error; the exit status."""
    for name, state in following.outcome.items():
        report = following.last[name]
        if state != "active":
            complain(f"{name}: {state}: {report.cause.removeprefix(REFUSED)}", report.hint, report.errors)
    for name in following.waiting:
        if name in following.last and following.last[name].state == "validating":
            hint = "it takes it when they have, also if nobody looks; the next document takes its place (--canary: other ones)"
            complain(f"{name}: still {following.last[name].cause}", hint, ())
        elif name in following.last:
            complain(f"{name}: is silent since then", "if the change moves its broker, look for it there; else see its log", ())
        elif beside := following.beside.get(name):
            complain(f"{name}: says nothing about it, but: {beside.cause}", beside.hint, ())
        else:
            hint = "is it online? does it take it from you (--identity DIR)? its log says whom it refuses"
            complain(f"{name}: says nothing about it", hint, ())
    if as_json:
        said = {name: _told(report) for name, report in following.last.items()}
        terminal.emit_json({"published": True, "gateways": said, "silent": list(following.waiting)})
    return 0 if following.taken_everywhere else 1


def complain(cause: str, hint: str, errors: tuple[Fault, ...]) -> None:
    print(f"error: {cause}", file=sys.stderr)
    for fault in errors:
        print(f"  {fault}", file=sys.stderr)
    if hint:
        print(f"hint: {hint}", file=sys.stderr)


def _told(report: Reported) -> dict[str, Any]:
    keys = ("state", "mode", "document", "hash", "cause", "hint", "errors", "restarts")
    return {key: msgspec.to_builtins(getattr(report, key)) for key in keys}


def _target(said: str) -> str:
    target = said if said.startswith("group/") else f"gw/{said}"
    if not re.fullmatch(NAME, target.partition("/")[2]):
        raise EdgeError(f"{said}: is no gateway and no group", "GATEWAY or group/NAME")
    return target


def _busy(wanted: Wanting, online: Sequence[str]) -> list[tuple[str, str]]:
    """Gateways that try what one other layer says, and which: until that is judged, ours waits."""
    trying = {name: [each.name for each in wanted.seen.reports[name].layers if each.state == "trial"] for name in online}
    return [(name, found[0]) for name, found in trying.items() if len(found) == 1 and found[0] not in (FILE, wanted.layer)]


def _trial_s(wanted: Wanting, first: Sequence[str]) -> float:
    """The longest of those that are asked. `first`: layers that are on trial there."""
    controls = [(wanted.seen.reports[name].config or {}).get("control") for name in wanted.members]
    found = [each.get("trial_s", TRIAL_S) if isinstance(each, dict) else TRIAL_S for each in controls]
    said = [each for target in wanted.seen.documents if layer_name(target) in first and (each := wanted.seen.desired(target))]
    return max([*found, wanted.args.trial or 0.0, *(each.trial_s or 0.0 for each in said)])


# --- what is shown ---------------------------------------------------------------------------------------------------


def _show(wanted: Wanting, desired: Desired, previews: list[Preview], say: Callable[[str], None]) -> None:
    for name, layer in wanted.states:
        if layer.state not in IN_FORCE:
            say(f"note: {name} has {layer.state} the newest document of {wanted.layer}")
    if wanted.target.startswith("group/") and not wanted.args.json:
        rows = [(each.gateway, _presence(wanted, each), "; ".join(_outcome(each)), len(each.changes)) for each in previews]
        terminal.table(("gateway", "is", "what happens", "values"), rows, f"{wanted.target}, revision {desired.revision}")
    for each in previews if wanted.target.startswith("gw/") else ():
        if not wanted.seen.online.get(each.gateway, True):
            say(f"{each.gateway} {OFFLINE}")
        for path, before, after in each.changes:
            say(f"  {path}: {before} -> {after}")
        for line in _outcome(each):
            say(f"  {line}")
    for each in previews:
        for line in each.unknown:
            say(f"note: {each.gateway}: {line}")
        if each.faults and not wanted.args.unchecked:
            complain(f"{each.gateway}: it is not valid", "", each.faults)


def _outcome(each: Preview) -> list[str]:
    if each.faults:
        return ["it will be refused"]
    return list(each.does) or (["nothing changes"] if not each.changes and not each.unknown else [])


def _presence(wanted: Wanting, each: Preview) -> str:
    return "online" if wanted.seen.online.get(each.gateway, True) else "offline"


def _as_json(each: Preview) -> dict[str, Any]:
    told = {key: value for key, value in vars(each).items() if key != "moved"}
    return {**msgspec.to_builtins(told), "moves_broker": each.moved is not None}


async def _agreed(args: argparse.Namespace) -> bool:
    """Only a person at a terminal is asked; the connection lives on meanwhile."""
    if args.yes or args.json or not (sys.stdin.isatty() and sys.stdout.isatty()):
        return True
    print("publish it? [y/N] ", end="", flush=True)
    typed, loop = asyncio.Event(), asyncio.get_running_loop()
    loop.add_reader(sys.stdin.fileno(), typed.set)
    try:
        await typed.wait()
    finally:
        loop.remove_reader(sys.stdin.fileno())
    return sys.stdin.readline().strip().lower() in ("y", "yes")
