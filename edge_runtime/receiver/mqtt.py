"""The receiver's MQTT door: takes batches from a broker, answers on the receipt topics (runs).

A batch is acknowledged to the broker only when it is on disk *and* its receipt has gone out: whatever fails in between, the
broker hands it out again, and the ledger recognises it. The session is kept, so batches wait at the broker while we are away.
"""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable

from edge_runtime.bus import messages, topics
from edge_runtime.bus.messages import BadMessage, Batch, Hello, ReceiptMessage
from edge_runtime.ports import Address, BrokerError, Bus, Connection, Dice, EdgeError, Message
from edge_runtime.receiver.ledger import LedgerError
from edge_runtime.receiver.receiver import Receiver

GROUP_MAX = 100
"""Most messages that are worked on together; the broker holds back the rest."""

CONNECT_S_MAX = 5.0
BACKOFF_S_MIN, BACKOFF_S_MAX = 0.1, 2.0
LEDGER_AGAIN_S = 1.0
"""Wait between two attempts to write while the ledger cannot be written."""


class Door:
    """Feeds one receiver from one broker, for ever."""

    def __init__(
        self, receiver: Receiver, bus: Bus, where: Callable[[], Address], site: str, dice: Dice, tell: Callable[[str], None],
        sign: Callable[[bytes], bytes] = lambda receipt: receipt, on_roster: Callable[[bytes], Awaitable[None]] | None = None,
    ) -> None:  # fmt: skip
        """`where` is asked for each connection. `site` "+" is every site. `tell` hears, in a line each, when the broker is
        reached and lost. `sign` makes a signed document of a receipt: one signature a message, whatever it covers. `on_roster`
        hears the rosters of the site that are said there."""
        self._receiver, self._bus, self._where, self._site = receiver, bus, where, site
        self._dice, self._tell, self._sign, self._on_roster = dice, tell, sign, on_roster
        self._roster = topics.roster(site) if on_roster else ""

    async def run(self) -> None:
        failures = 0
        while True:
            try:
                connection = await self._connect()
                failures = 0
                self._tell("mqtt: connected")
                try:
                    await self._serve(connection)
                finally:
                    await connection.close()
            except BrokerError as error:
                if failures == 0:
                    self._tell(f"mqtt: {error}; trying again")
                failures += 1
                limit_s = min(BACKOFF_S_MAX, BACKOFF_S_MIN * 2 ** min(failures, 10))
                await asyncio.sleep(self._dice.uniform(BACKOFF_S_MIN, limit_s))

    async def _connect(self) -> Connection:
        connection = await self._bus.connect(self._where(), timeout_s=CONNECT_S_MAX)
        try:
            async with asyncio.timeout(CONNECT_S_MAX):
                filters = (topics.gateway(self._site, "+", what, self._receiver.name) for what in ("batch", "hello"))
                await connection.subscribe(*([self._roster] if self._roster else []), *filters)
        except TimeoutError:
            await connection.close()
            raise BrokerError("the broker did not answer our subscription") from None
        except BaseException:
            await connection.close()
            raise
        return connection

    async def _serve(self, connection: Connection) -> None:
        """Until the connection is lost. Reading and working are two tasks: a group is what came in during the last one."""
        inbox: asyncio.Queue[Message | BrokerError] = asyncio.Queue(GROUP_MAX)
        reading = asyncio.create_task(_read(connection, inbox), name="mqtt-read")
        try:
            while True:
                group = [await inbox.get()]
                while not inbox.empty():
                    group.append(inbox.get_nowait())
                answering = (self._answer(connection, each) for each in group if isinstance(each, Message))
                outcomes = await asyncio.gather(*answering, return_exceptions=True)
                for failed in (outcome for outcome in outcomes if outcome is not None):
                    raise failed
                for each in group:
                    if isinstance(each, BrokerError):
                        raise each
                    connection.acknowledge(each)
        finally:
            reading.cancel()
            await asyncio.gather(reading, return_exceptions=True)

    async def _answer(self, connection: Connection, message: Message) -> None:
        if self._on_roster is not None and message.topic == self._roster:
            await self._on_roster(message.payload)
            return
        parsed = topics.parse(message.topic)
        if parsed is None:
            return
        site, gateway, (kind, *_) = parsed
        try:
            answer = await self._work(site, gateway, kind, message.payload)
        except BadMessage as error:
            # It would come back for ever if it were not acknowledged; its sender hears why it is refused.
            answer = messages.refusal(self._receiver.name, gateway, message.payload, error)
        to = topics.gateway(site, gateway, "receipt", self._receiver.name)
        await connection.publish(to, self._packed(answer, message.payload), qos=1)

    def _packed(self, answer: ReceiptMessage, payload: bytes) -> bytes:
        try:
            return messages.pack(answer, self._sign)
        except EdgeError as error:  # more ranges than a signed document has room for
            return messages.pack(messages.refusal(self._receiver.name, answer.gateway, payload, error), self._sign)

    async def _work(self, site: str, gateway: str, kind: str, payload: bytes) -> ReceiptMessage:
        message: Hello | Batch = messages.unpack(payload, Hello) if kind == "hello" else messages.unpack(payload, Batch)
        if (message.site, message.gateway) != (site, gateway):
            raise BadMessage(
                f"{kind} of {message.site}/{message.gateway} on the topic of {site}/{gateway}", "a gateway speaks for itself only"
            )
        while True:
            try:
                if isinstance(message, Hello):
                    return await self._receiver.hello(message)
                return await self._receiver.take(message)
            except LedgerError as error:
                self._tell(f"mqtt: {error}; trying again")
                await asyncio.sleep(LEDGER_AGAIN_S)


async def _read(connection: Connection, inbox: asyncio.Queue[Message | BrokerError]) -> None:
    while True:
        try:
            await inbox.put(await connection.receive())
        except BrokerError as error:
            await inbox.put(error)
            return
