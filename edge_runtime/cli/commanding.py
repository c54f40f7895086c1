"""One command for one gateway, and its answer (runs). It holds for seconds, by the gateway's own clock; so it needs no right time
here, and nobody can send it again later.

With a site the gateway is asked for its time, and signs the answer: a heartbeat is not signed, so whoever hosts the broker could
say one that is far ahead, keep the command, and let it arrive ten minutes later. Without a site the heartbeat is believed.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from dataclasses import dataclass
from typing import Any

import msgspec

from edge_runtime.board.system import SystemDice
from edge_runtime.bus import control as messages
from edge_runtime.bus import presence, topics
from edge_runtime.bus.control import Command, CommandReply, Reported
from edge_runtime.bus.messages import BadMessage
from edge_runtime.bus.presence import Load
from edge_runtime.cli.config.seen import birth_of
from edge_runtime.cli.talking import Talk
from edge_runtime.control.commands import REPLY
from edge_runtime.control.reporting import REPORTED
from edge_runtime.ports import EdgeError, Message
from edge_runtime.trust.roster import Forged

HEARTBEAT_S_MAX = 15.0
"""The slowest heart of a large site beats twice in that time."""
TIME_S_MAX, TIME_AGAIN_S = 15.0, 3.0
"""For the gateway's time; and from one question to the next: it may be on its way to another broker."""
OFFLINE_S_MAX = 2.0
"""For a sign of life of one that has said goodbye, or whose will has: it may be on its way back."""
VALID_S = 10.0
WAIT_S = 60.0
"""For the answer."""


class Unanswered(EdgeError):
    """Nobody knows what came of it: ask again with its id."""


async def commanded(
    talk: Talk, gateway: str, verb: str, args: Mapping[str, Any], *, name: str = "", asks_only: bool = False,
    valid_s: float = VALID_S, wait_s: float = WAIT_S, aside: Callable[[Message], object] = lambda _: None,
) -> CommandReply:  # fmt: skip
    """`asks_only`: what came of the command `name`; it is never begun. Raises EdgeError: no such gateway, it is silent, we may
    not command it, Unanswered. `aside` gets what comes meanwhile and is no answer."""
    name = name or SystemDice().token()
    said = Command(id=name, target=gateway, verb=verb, args=dict(args))
    messages.command(messages.pack(said), gateway, verb)  # no gateway would answer what is no command
    asking = Asking(talk, gateway, aside)
    if talk.roster is None:
        boot, now_ns = await _heartbeat(talk, gateway)
    else:
        await _check_taken(talk, gateway)
        boot, now_ns = await _time(asking)
    until_ns = 0 if asks_only else now_ns + round(valid_s * 1e9)
    command = msgspec.structs.replace(said, issuer=talk.name, boot=boot, until_ns=until_ns)
    if reply := await asking.answer(command, wait_s):
        return reply
    again = f"`edge-runtime command {gateway} {verb} --id {command.id}`"
    hint = f"{again} asks again what came of it; does it take commands from you?"
    raise Unanswered(f"{gateway} has not answered within {wait_s:g} s{asking.forged}", hint)


@dataclass
class Asking:
    """One gateway. `forged`: of answers that were not its own, for people."""

    talk: Talk
    gateway: str
    aside: Callable[[Message], object]
    forged: str = ""

    async def answer(self, command: Command, wait_s: float) -> CommandReply | None:
        """None: none came in time. Raises EdgeError: we may not command."""
        talk, wanted = self.talk, (command.id, self.gateway, command.verb)
        topic = topics.gateway(talk.site, self.gateway, "cmd", command.verb)
        await talk.listen(f"{topic}/reply")
        await talk.publish(topic, talk.signed(messages.pack(command), "command"))
        until_s = asyncio.get_running_loop().time() + wait_s
        while message := await talk.hear(until_s):
            if message.topic != f"{topic}/reply":
                self.aside(message)
                continue
            try:
                reply = messages.unpack(talk.of_gateway(message.payload, REPLY, self.gateway), CommandReply)
            except (BadMessage, Forged) as error:
                self.forged = f"; an answer that came was not its own: {error.cause}"
                continue
            if (reply.id, reply.gateway, reply.verb) == wanted:
                return reply
        return None


async def _check_taken(talk: Talk, gateway: str) -> None:
    """Raises EdgeError: it takes no command that is not signed, and ours would not be."""
    if talk.identity is None:
        async for message in talk.kept(topics.gateway(talk.site, gateway, "config", "reported")):
            if message.topic.endswith("/reported"):
                report = messages.unpack(talk.of_gateway(message.payload, REPORTED, gateway), Reported)
                talk.check_taken(gateway, report.config or {}, "command")


async def _time(asking: Asking) -> tuple[str, int]:
    """Boot and monotonic clock of the gateway when it answered, signed by it. Raises EdgeError."""
    talk, gateway, status = asking.talk, asking.gateway, topics.gateway(asking.talk.site, asking.gateway, "status")
    births = [message.payload async for message in talk.kept(status) if message.topic == status]
    if not births:
        raise await talk.unknown(gateway)
    command = Command(id=SystemDice().token(), issuer=talk.name, target=gateway, verb="time")
    waits_s = [TIME_AGAIN_S] * int(TIME_S_MAX / TIME_AGAIN_S) if _is_online(births[-1]) else [OFFLINE_S_MAX]
    for wait_s in waits_s:
        reply = await asking.answer(command, wait_s)
        if reply is None:
            continue
        boot, now_ns = reply.result.get("boot"), reply.result.get("now_ns")
        if reply.outcome != "done" or not isinstance(boot, str) or not isinstance(now_ns, int):
            raise EdgeError(f"{gateway} does not tell its time: {reply.cause or 'its answer is none'}", "update it")
        return boot, now_ns
    if not _is_online(births[-1]):
        raise _offline(gateway)
    hint = "is it running (see `edge-runtime mesh`)? does it take commands from you?"
    raise EdgeError(f"{gateway} is silent: it has not told its time within {TIME_S_MAX:g} s{asking.forged}", hint)


async def _heartbeat(talk: Talk, gateway: str) -> tuple[str, int]:
    """Boot and monotonic clock, of the next one. Raises EdgeError."""
    topic, status = (topics.gateway(talk.site, gateway, kind) for kind in ("load", "status"))
    births = []
    async for message in talk.kept(topic, status):
        if beat := _beat(message, topic):
            return beat
        births += [message.payload] if message.topic == status else []
    if not births:
        raise await talk.unknown(gateway)
    online, began_s = _is_online(births[-1]), asyncio.get_running_loop().time()
    while heard := await talk.hear(began_s + (HEARTBEAT_S_MAX if online else OFFLINE_S_MAX)):
        if beat := _beat(heard, topic):
            return beat
        online = _is_online(heard.payload) if heard.topic == status else online
    if not online:
        raise _offline(gateway)
    raise EdgeError(f"{gateway} is silent: no heartbeat within {HEARTBEAT_S_MAX:g} s", "is it running? see `edge-runtime mesh`")


def _is_online(status: bytes) -> bool:
    """Nothing that can be read says nothing."""
    birth = birth_of(status)
    return birth is None or birth.online


def _offline(gateway: str) -> EdgeError:
    return EdgeError(f"{gateway} is offline: nothing was sent", "type it again when `edge-runtime mesh` shows that it is back")


def _beat(message: Message, topic: str) -> tuple[str, int] | None:
    if message.topic != topic or message.retain:
        return None
    try:
        beat = presence.unpack(message.payload, Load)
    except BadMessage:
        return None
    if not beat.boot:
        raise EdgeError(f"{beat.gateway} does not tell its time: its version takes no commands", "update it")
    return beat.boot, beat.now_ns
