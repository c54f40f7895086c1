"""Commands over MQTT (runs): each is done once, by who may give it, before it expires, and stands in the audit log before it is
done.

    who says it? --> for us, in time, never seen? --> audit: intent --> done --> audit: outcome --> book: outcome --> reply
     admitted.py      the book: id on the disk          or it is not done

Time is that of the target: its boot and its monotonic clock, which come with every heartbeat; so a command holds for seconds on a
gateway that thinks it is 1970. A command that comes again is answered with what came of it; one that was begun when the power
failed is `unknown`: it is never done a second time. Its id is for this command and this person alone: whoever uses it for
anything else is refused, and told nothing. The verbs themselves are verbs.py.
"""

from __future__ import annotations

import asyncio
from collections import Counter
from collections.abc import Awaitable, Callable, Mapping
from typing import Any, NamedTuple

import msgspec

from edge_runtime import config
from edge_runtime.bus import canonical, topics
from edge_runtime.bus import control as messages
from edge_runtime.bus.control import Command, CommandReply
from edge_runtime.bus.messages import BadMessage
from edge_runtime.control import admitted
from edge_runtime.control.audit import AuditError, Entry, Kind
from edge_runtime.control.book import Repeated
from edge_runtime.control.book_file import BookError
from edge_runtime.control.reporting import Link
from edge_runtime.control.steering import Steering
from edge_runtime.document import closest
from edge_runtime.ports import BrokerError, Clock, EdgeError, Message
from edge_runtime.saying import told

COMMANDS_MAX = 32
"""Under way at once; one more is refused, and may be sent again."""

FLOOD_MAX = 64
"""Messages that wait to be looked at. Who sends more is not answered."""

PACE_S = 0.02
BURST_MAX = 32
"""From one to the next, after so many at once: to find out that a message is worth nothing takes 0.2 ms, and whoever may write
here could send it five thousand times a second."""

KEPT_BYTES_MAX = 4_096
"""Of what came of a command. A larger result is told once."""

VERB_CHARS = 60
"""Of one that is refused, in the log: a topic may be 64 KiB long."""


class Asked(NamedTuple):
    """A command whose time has come. `by`: who gave it."""

    args: Mapping[str, Any]
    by: str
    until_ns: int


class Done(msgspec.Struct, frozen=True, kw_only=True):
    """What came of it. `before` and `read_back` are for the audit log."""

    outcome: Any
    cause: str = ""
    hint: str = ""
    result: dict[str, Any] = {}
    subject: str = ""
    before: Any = None
    read_back: Any = None


class Verb(NamedTuple):
    """`subject`: what a command is about, for the audit log. `only_asks`: it changes nothing and its answer is worth nothing
    later, so that it needs no expiry, and stands neither in the book nor in the audit log."""

    do: Callable[[Asked], Awaitable[Done]]
    subject: Callable[[Mapping[str, Any]], str]
    only_asks: bool = False


class Commands:
    """Of one gateway."""

    def __init__(
        self, steering: Steering, settings: Callable[[], config.Config], link: Link, verbs: Mapping[str, Verb], clock: Clock,
        called: Callable[[], None], log: Any,
    ) -> None:  # fmt: skip
        """`called`: to be told that somebody who may command has spoken to this gateway."""
        self._steering, self._settings, self._link = steering, settings, link
        self._verbs, self._clock, self._called, self._log = verbs, clock, called, log
        self._waiting: asyncio.Queue[Message] = asyncio.Queue(FLOOD_MAX)
        self._tasks: dict[str, asyncio.Task[None]] = {}
        self._running: dict[str, str] = {}
        """Commands that are being done: id -> `claim`."""
        self._number = 0
        self.refused: Counter[str] = Counter()
        """What came and was not done, by reason."""
        self.outcomes: Counter[str] = Counter()
        link.on("cmd", self._on_command, topics.gateway(link.site, link.gateway, "cmd", "+"))

    def _on_command(self, _gateway: str, message: Message) -> None:
        if message.retain:
            raise BadMessage("command: a retained message", "publish it without retain: it would be done at every start")
        try:
            self._waiting.put_nowait(message)
        except asyncio.QueueFull:
            cause = f"{FLOOD_MAX} messages wait to be looked at"
            self._refuse(message.topic.rpartition("/")[2], admitted.NotAdmitted("flood", cause, "who sends so many?"))

    async def run(self) -> None:
        """Until cancelled; what is under way then ends as `unknown`, and is never done again."""
        loop, due_s = asyncio.get_running_loop(), 0.0
        try:
            while True:
                message = await self._waiting.get()
                due_s = max(due_s, loop.time() - BURST_MAX * PACE_S) + PACE_S
                await asyncio.sleep(max(0.0, due_s - loop.time()))
                if len(self._tasks) >= COMMANDS_MAX:
                    await asyncio.wait(self._tasks.values(), return_when=asyncio.FIRST_COMPLETED)
                self._number += 1
                name = f"command-{self._number}"
                self._tasks[name] = task = asyncio.create_task(self._take(message), name=name)
                task.add_done_callback(self._ended)
        finally:
            tasks = list(self._tasks.values())
            for task in tasks:
                task.cancel()
            if tasks:
                await asyncio.wait(tasks)

    def _ended(self, task: asyncio.Task[None]) -> None:
        """A fault of ours ends one command. Who asks again with its id hears that it is `unknown`."""
        self._tasks.pop(task.get_name(), None)
        if not task.cancelled() and (error := task.exception()) is not None:
            self.outcomes["unknown"] += 1
            hint = "report it; the audit log says what it was"
            self._log.error("command_broke", cause=told(error), hint=hint, exc_info=error)

    async def _take(self, message: Message) -> None:
        verb, now = message.topic.rpartition("/")[2], self._clock.now()
        identity = self._steering.identity
        try:
            said = admitted.opened(
                message.payload, "command", self._settings(), identity, now.wall_ns // 10**9 if now.synced else None
            )
            command = messages.command(said.document, self._link.gateway, verb, named=said.signed)
        except (admitted.NotAdmitted, BadMessage) as error:
            self._refuse(verb, error)
            return
        self._called()
        by = said.actor(command.issuer)
        if command.id in self._running:  # it came twice: the answer comes when it is done
            # To another one nothing is said: who has sent the first would take it for the answer.
            self.refused["repeated" if _is_claimed(command, by, self._running[command.id]) else "id"] += 1
            return
        self._running[command.id] = claim(command, by)
        try:
            done = await self._once(command, by)
        finally:
            del self._running[command.id]
        self.outcomes[done.outcome] += 1
        # Why a write failed may say what was asked for and read back: that is in the answer and the audit log, no log has values.
        cause = "" if verb == "write" else done.cause
        self._log.info("command", verb=verb, id=command.id, by=by, outcome=done.outcome, cause=cause)
        await self._reply(command, done)

    def _refuse(self, verb: str, error: admitted.NotAdmitted | BadMessage) -> None:
        """Nobody is answered: who may not command us learns nothing, and who floods us makes us say nothing."""
        reason = error.reason if isinstance(error, admitted.NotAdmitted) else "malformed"
        if not self.refused[reason]:
            self._log.warning("command_refused", verb=verb[:VERB_CHARS], reason=reason, cause=error.cause, hint=error.hint)
        self.refused[reason] += 1

    async def _once(self, command: Command, by: str) -> Done:
        """Done now, or what came of it when it was done."""
        verb = self._verbs.get(command.verb)
        if verb is None:
            return self._no("verb", f"there is no command {command.verb!r}", closest(command.verb, self._verbs, "there are"))
        if verb.only_asks:
            return await verb.do(Asked(command.args, by, 0))
        if not command.boot or command.until_ns is None:
            hint = "boot and now_ns of the gateway come with every heartbeat: until_ns is now_ns and some seconds"
            return self._no("expiry", "it does not say until when it holds (boot, until_ns)", hint)
        book = self._steering.book
        try:
            repeated = await book.begin(command.id, claim(command, by), command.boot, command.until_ns)
        except BookError as error:
            return self._no("expired", error.cause, error.hint)
        if repeated is not None:
            return self._again(command, by, repeated)
        done = await self._audited(command, verb, by)
        try:
            await book.complete(command.id, _kept(done))
        except BookError as error:
            self._log.error("command_outcome_not_kept", id=command.id, cause=error.cause, hint=error.hint)
        return done

    def _again(self, command: Command, by: str, repeated: Repeated) -> Done:
        if not _is_claimed(command, by, repeated.verb):
            return self._no("id", "the id was used for another command", "give each command its own id")
        self.refused["repeated"] += 1
        if repeated.outcome is None:
            cause = "it was begun before, and nobody knows what came of it; it is not done again"
            return Done(outcome="unknown", cause=cause, hint="look at the device; then send another command")
        return msgspec.json.decode(repeated.outcome, type=Done)

    async def _audited(self, command: Command, verb: Verb, by: str) -> Done:
        """Done only if the log has it; then the log gets what came of it, also when we are stopped meanwhile."""
        audit = self._steering.audit
        subject = verb.subject(command.args)
        requested = command.args.get("value", command.args) if command.args else None
        entry = Entry(
            kind=Kind.COMMAND, actor=by, via=f"cmd/{command.verb}", subject=subject, requested=requested, why=f"id {command.id}"
        )
        try:
            number = await audit.begin(entry)
        except AuditError as error:
            return self._no("audit", f"it cannot be written to the audit log, so it is not done: {error.cause}", error.hint)
        try:
            done = await verb.do(Asked(command.args, by, command.until_ns or 0))
        except EdgeError as error:
            done = Done(outcome="failed", cause=error.cause, hint=error.hint)
        why = f"id {command.id}" + (f": {done.cause}" if done.cause else "")
        await audit.complete(number, done.outcome, before=done.before, read_back=done.read_back, why=why)
        return done

    def _no(self, reason: str, cause: str, hint: str) -> Done:
        self.refused[reason] += 1
        return Done(outcome="refused", cause=cause, hint=hint)

    async def _reply(self, command: Command, done: Done) -> None:
        reply = CommandReply(
            id=command.id, gateway=self._link.gateway, verb=command.verb, outcome=done.outcome, cause=done.cause,
            hint=done.hint, result=done.result,
        )  # fmt: skip
        payload = messages.pack(reply)
        if self._steering.identity is not None:
            payload = self._steering.identity.sign(payload, REPLY)
        topic = topics.gateway(self._link.site, self._link.gateway, "cmd", command.verb, "reply")
        try:
            await self._link.send(topic, payload, qos=1)
        except BrokerError as error:
            self._log.warning("command_reply_lost", id=command.id, cause=told(error), hint="send it again: it is not done twice")


def claim(command: Command, by: str) -> str:
    """What an id is used for, as the book has it: the verb, who gave the command, and all that it says."""
    said = [command.verb, dict(command.args), command.boot, command.until_ns]
    return f"{command.verb} {_digest(by)} {_digest([by, *said])}"


def _is_claimed(command: Command, by: str, claimed: str) -> bool:
    """The same command again; or its issuer asks what came of it (until_ns 0), and says no more than the id and the verb."""
    own = claim(command, by)
    return own == claimed or (command.until_ns == 0 and own.split()[:2] == claimed.split()[:2])


def _digest(value: Any) -> str:
    return canonical.digest(value)[:32]


def _kept(done: Done) -> str:
    """For one who asks again: ten thousand of them stand in the book."""
    text = msgspec.json.encode(done)
    return (text if len(text) <= KEPT_BYTES_MAX else msgspec.json.encode(msgspec.structs.replace(done, result={}))).decode()


REPLY = "reply"
"""Context of its signature."""
