"""One command for one gateway, and its answer (runs). It holds for seconds, by the gateway's own clock, which comes with its
heartbeats; so it needs no right time here, and nobody can send it again later.
"""

from __future__ import annotations

import asyncio
from collections.abc import Callable, Mapping
from typing import Any

from edge_runtime.board.system import SystemDice
from edge_runtime.bus import control as messages
from edge_runtime.bus import presence, topics
from edge_runtime.bus.control import Command, CommandReply
from edge_runtime.bus.messages import BadMessage
from edge_runtime.bus.presence import Load
from edge_runtime.cli.talking import Talk
from edge_runtime.control.commands import REPLY
from edge_runtime.ports import EdgeError, Message
from edge_runtime.trust.roster import Forged

HEARTBEAT_S_MAX = 15.0
"""The slowest heart of a large site beats twice in that time."""
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
    reply_topic = topics.gateway(talk.site, gateway, "cmd", verb, "reply")
    await talk.listen(reply_topic)
    beat = await _heartbeat(talk, gateway)
    until_ns = 0 if asks_only else beat.now_ns + round(valid_s * 1e9)
    name = name or SystemDice().token()
    command = Command(
        id=name, issuer=talk.name, target=gateway, verb=verb, boot=beat.boot, until_ns=until_ns, args=dict(args)
    )  # fmt: skip
    payload = talk.signed(messages.pack(command), "command")
    await talk.publish(topics.gateway(talk.site, gateway, "cmd", verb), payload)
    until_s, forged = asyncio.get_running_loop().time() + wait_s, ""
    while message := await talk.hear(until_s):
        if message.topic != reply_topic:
            aside(message)
            continue
        try:
            reply = messages.unpack(talk.of_gateway(message.payload, REPLY, gateway), CommandReply)
        except (BadMessage, Forged) as error:
            forged = f"; an answer that came was not its own: {error.cause}"
            continue
        if (reply.id, reply.gateway, reply.verb) == (name, gateway, verb):
            return reply
    hint = f"`edge-runtime command {gateway} {verb} --id {name}` asks again what came of it; does it take commands from you?"
    raise Unanswered(f"{gateway} has not answered within {wait_s:g} s{forged}", hint)


async def _heartbeat(talk: Talk, gateway: str) -> Load:
    """The next one. Raises EdgeError."""
    topic, status = (topics.gateway(talk.site, gateway, kind) for kind in ("load", "status"))
    known = False
    async for message in talk.kept(topic, status):
        if beat := _beat(message, topic):
            return beat
        known = known or message.topic == status
    if not known:
        raise await talk.unknown(gateway)
    until_s = asyncio.get_running_loop().time() + HEARTBEAT_S_MAX
    while heard := await talk.hear(until_s):
        if beat := _beat(heard, topic):
            return beat
    raise EdgeError(f"{gateway} is silent: no heartbeat within {HEARTBEAT_S_MAX:g} s", "is it running? see `edge-runtime mesh`")


def _beat(message: Message, topic: str) -> Load | None:
    if message.topic != topic or message.retain:
        return None
    try:
        beat = presence.unpack(message.payload, Load)
    except BadMessage:
        return None
    if not beat.boot:
        raise EdgeError(f"{beat.gateway} does not tell its time: its version takes no commands", "update it")
    return beat
