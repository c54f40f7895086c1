"""A person talks with a site (runs): over its broker, in their own name. Of a site they believe only what is signed."""

from __future__ import annotations

import asyncio
import getpass
from collections.abc import AsyncIterator, Callable, Mapping
from contextlib import AsyncExitStack, suppress
from types import TracebackType
from typing import Any, Literal, Self

from edge_runtime.bus import topics
from edge_runtime.cli.mesh import finding
from edge_runtime.control.admitted import MAY, signs
from edge_runtime.document import closest
from edge_runtime.ports import BrokerError, Connection, EdgeError, Message
from edge_runtime.trust import envelope
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.roster import Forged, Roster

AGAIN_S = 0.5
"""Between two attempts to find a broker that was lost: a gateway that builds all of it anew takes its broker with it."""


class Talk:
    """One connection; when it breaks it is looked for again. `identity` None: nobody has said who they are."""

    def __init__(self, plan: finding.Plan) -> None:
        self.identity: Identity | None = plan.identity
        self.site = plan.site
        self.where = ""
        self.plan = plan
        self.connections = 0
        self._stack = AsyncExitStack()
        self._connection: Connection | None = None
        self._filters: dict[str, None] = {}
        self._heard: Roster | None = None
        """Who comes with a password has none of their own; with an identity: that of the broker, where it is older than ours."""

    async def __aenter__(self) -> Self:
        await self._connect()
        if self.plan.authority:
            await self._learn_roster(self._take_roster)
        elif self.identity is not None:
            await self._learn_roster(self._compare_roster)
        return self

    async def __aexit__(self, kind: type[BaseException] | None, error: BaseException | None, trace: TracebackType | None) -> None:
        await self._stack.aclose()

    @property
    def name(self) -> str:
        """Of the person, for who reads it later."""
        return self.identity.name if self.identity else self.plan.user or getpass.getuser()

    @property
    def roster(self) -> Roster | None:
        """Whom we believe. None: nobody has said at which site we are, and all is taken as it comes."""
        return self.identity.roster if self.identity else self._heard

    @property
    def host_serial(self) -> str:
        """Of the certificate of the gateway that hosts the broker; "": it has shown none."""
        return str(getattr(self._there, "peer_serial", ""))

    async def listen(self, *filters: str) -> None:
        """From now on, also on the next connection. Raises BrokerError."""
        self._filters |= dict.fromkeys(filters)
        await self._there.subscribe(*filters)

    async def kept(self, *filters: str) -> AsyncIterator[Message]:
        """What the broker has kept of these; it goes on to be heard. Ends when nothing more comes."""
        await self.listen(*filters)
        found: list[Message] = []

        def note(message: Message) -> bool:
            found.append(message)
            return False

        await finding.until(self._there, note)
        for message in found:
            yield message

    async def hear(self, until_s: float | None = None) -> Message | None:
        """The next message; None: nothing came until then (the loop's time). Looks for the broker where it is lost: that takes
        seconds, and who gives up earlier is never there again."""
        with suppress(TimeoutError):
            async with asyncio.timeout_at(until_s):
                while True:
                    try:
                        message = await self._there.receive()
                    except BrokerError:
                        await self._again()
                        continue
                    self._there.acknowledge(message)
                    return message
        return None

    async def publish(self, topic: str, payload: bytes, *, retain: bool = False) -> None:
        """Raises BrokerError."""
        await self._there.publish(topic, payload, qos=1, retain=retain)

    # --- who says it ---

    def signed(self, document: bytes, context: Literal["desired", "command"]) -> bytes:
        """In our name, where we have one. Raises EdgeError: we may not say it."""
        who = self.identity or (self.roster.named(self.plan.user) if self.roster else None)
        if who is not None and who.role not in MAY[context]:
            what = "configures gateways" if context == "desired" else "commands gateways"
            role = MAY[context][0]
            hint = f"a role stays as it is: for another one, another name (`edge-runtime site person NAME --role {role}`)"
            raise EdgeError(f"{who.name} is {who.role}, who never {what}", hint)
        if self.identity and self._heard and self._heard.member(self.identity.key.fingerprint) is None:
            cause = f"{self.where}: {self.site} does not know {self.identity.name} yet: it has revision {self._heard.revision} of"
            hint = "tell it, beside the authority's folder: edge-runtime site roster --publish --broker URL --identity DIR"
            raise EdgeError(f"{cause} its roster, you have {self.identity.roster.revision}", hint)
        return self.identity.sign(document, context) if self.identity else document

    def check_taken(self, gateway: str, reported: Mapping[str, Any], context: Literal["desired", "command"]) -> None:
        """`reported`: the configuration of this gateway. Raises EdgeError: it takes nothing that is not signed, and we cannot
        sign; it would answer nothing."""
        control = reported.get("control")
        wanted = control.get("require_signature", True) if isinstance(control, dict) else True
        if self.identity is None and self.plan.authority and signs(wanted, context):
            what = "configuration" if context == "desired" else "commands"
            hint = "--identity DIR signs; in the file on the gateway control.require_signature says what needs no signature"
            raise EdgeError(f"{gateway} takes {what} only signed, and with a password nothing is", hint)

    def of_gateway(self, payload: bytes, context: str, gateway: str) -> bytes:
        """What a gateway has said. Raises Forged where there is a site and it is not its signature."""
        if self.roster is None:
            return envelope.unwrap(payload)
        found = envelope.open(payload, context, self.roster)
        if (found.by, found.role) != (gateway, "gateway"):
            raise Forged(f"is signed by {found.by} ({found.role}), not by {gateway}")
        return found.document

    def of_person(self, payload: bytes) -> bytes:
        """A document on the broker. Raises Forged where there is a site and nobody who may configure has signed it: whoever hosts
        the broker could have put it there, and what is built on it is signed by us."""
        if self.roster is None:
            return envelope.unwrap(payload)
        found = envelope.open(payload, "desired", self.roster)
        if found.role not in MAY["desired"]:
            raise Forged(f"is signed by {found.by}, who is {found.role} and may not configure")
        return found.document

    async def unknown(self, gateway: str) -> EdgeError:
        """To be raised: nobody has heard of this gateway."""
        names = []
        async for message in self.kept(topics.gateway(self.site, "+", "status")):
            if (parsed := topics.parse(message.topic)) and message.payload:
                names.append(parsed[1])
        hint = closest(gateway, sorted(names), "there are") or "is it running? see `edge-runtime mesh`"
        return EdgeError(f"{self.where}: gateway {gateway} of site {self.site} is not known here", hint)

    # --- the connection ---

    @property
    def _there(self) -> Connection:
        assert self._connection is not None
        return self._connection

    async def _connect(self) -> None:
        joined = await self._stack.enter_async_context(finding.joined(self.plan))
        self._connection, self.site, self.where = joined.connection, joined.site, joined.where
        self.connections += 1

    async def _again(self) -> None:
        with suppress(BrokerError):
            await self._stack.aclose()
        while True:
            with suppress(EdgeError):
                await self._connect()
                await self._there.subscribe(*self._filters)
                return
            await asyncio.sleep(AGAIN_S)

    def _compare_roster(self, payload: bytes) -> bool:
        """Where ours is the newer one, who is new in it is not known there: the broker throws away what they say, silently."""
        assert self.identity is not None
        newer = self.identity.take_roster(payload)
        heard = envelope.open_roster(payload, self.site, self.identity.authority)
        self._heard = heard if heard.revision < self.identity.roster.revision else None
        return newer

    def _take_roster(self, payload: bytes) -> bool:
        self._heard = envelope.open_roster(payload, self.site, self.plan.authority)
        return True

    async def _learn_roster(self, take: Callable[[bytes], bool]) -> None:
        """Who belongs to the site by now, as the broker knows it. Raises EdgeError: it says so to nobody, and we have none."""
        topic = topics.roster(self.site)
        await self._there.subscribe(topic)

        def news(message: Message) -> bool:
            if message.topic == topic:
                with suppress(Forged):
                    take(message.payload)
            return message.topic == topic

        await finding.until(self._there, news)
        await self._there.unsubscribe(topic)
        if self.roster is None:
            raise EdgeError(
                f"{self.where}: this broker has no roster of {self.site}", "is a gateway of that site connected to it?"
            )
