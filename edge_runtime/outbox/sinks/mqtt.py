"""Records to a receiver through an MQTT broker, confirmed by the receiver's own receipts (runs).

The broker's PUBACK is no delivery: it says that the broker has the batch, and a broker drops what a subscriber's queue
cannot hold. So one batch is under way at a time, and it is done when a receipt covers it. On the broker of a site with an
authority a receipt counts if the receiver has signed it; what anybody else says there is counted, and waited past.
"""

from __future__ import annotations

import asyncio
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager

from edge_runtime.bus import messages, topics
from edge_runtime.bus.messages import BadMessage, Batch, ReceiptMessage
from edge_runtime.outbox import intervals
from edge_runtime.outbox.sinks.receipts import merged
from edge_runtime.ports import Address, BrokerError, Bus, Connection, Message, Receipt, Refused, SinkError
from edge_runtime.records import Record
from edge_runtime.trust.roster import Forged

HELLO_AGAIN_S = 0.5
"""A hello is QoS 0, so that a receiver that is away finds no heap of them; it is said again until it is answered."""


class MqttSink:
    """ports.Sink through a broker. One connection from `open` to the next `open` or `close`. `where` is asked at each `open`: a
    site's broker may move."""

    confirms = True

    def __init__(
        self, site: str, gateway: str, receiver: str, bus: Bus, where: Callable[[], Address], *, timeout_s: float,
        opened: Callable[[bytes], bytes] | None = None,
    ) -> None:  # fmt: skip
        """`opened`: of a signed receipt what was signed (receipts.opener); None: receipts are not signed."""
        self._site, self._gateway, self._receiver = site, gateway, receiver
        self._bus, self._where, self._timeout_s = bus, where, timeout_s
        self._opened = opened
        self._why_forged = ""
        self.forged = 0
        """Receipts that the receiver has not signed."""
        self._connection: Connection | None = None

    async def open(self, epochs: Sequence[str]) -> Receipt:
        await self.close()
        async with self._in_time():
            self._connection = await self._bus.connect(self._where(), timeout_s=self._timeout_s)
            await self._connection.subscribe(self._topic("receipt"))
            hello = messages.pack(messages.hello(self._site, self._gateway, epochs))
            return (await self._greet(self._connection, hello, epochs)).receipt()

    async def send(self, records: Sequence[Record]) -> Receipt:
        connection = self._connection
        if connection is None:
            raise SinkError("the sink is not open", "open it first")
        receipts = []
        for part in messages.batches(self._site, self._gateway, records):
            payload = messages.pack(part)
            async with self._in_time():
                await connection.publish(self._topic("batch"), payload, qos=1)
                receipts.append(await self._covering(connection, part, messages.digest(payload)))
        return merged(receipts)

    async def close(self) -> None:
        connection, self._connection = self._connection, None
        if connection is not None:
            await connection.close()

    async def _greet(self, connection: Connection, hello: bytes, epochs: Sequence[str]) -> ReceiptMessage:
        while True:
            await connection.publish(self._topic("hello"), hello)
            try:
                async with asyncio.timeout(HELLO_AGAIN_S):
                    while True:
                        answer = await self._next(connection, messages.digest(hello))
                        # Receipts of batches, of this life or an earlier one, may still be on their way.
                        if set(epochs) <= set(answer.epochs):
                            return answer
            except TimeoutError:
                continue

    async def _covering(self, connection: Connection, part: Batch, digest: str) -> Receipt:
        while True:
            receipt = (await self._next(connection, digest)).receipt()
            have = receipt.ranges.get((part.epoch, part.lane), ())
            if all(intervals.contains(have, record.seq) for record in part.records):
                return receipt

    async def _next(self, connection: Connection, digest: str) -> ReceiptMessage:
        """The next receipt for us. Raises Refused when it refuses the payload of this digest."""
        while True:
            message = await connection.receive()
            connection.acknowledge(message)
            answer = self._read(message)
            if answer is None:
                continue
            if answer.failure is None:
                return answer
            if answer.failure.refused == digest:
                raise Refused(f"receiver {self._receiver}: {answer.failure.cause}", answer.failure.hint)

    def _read(self, message: Message) -> ReceiptMessage | None:
        """None: the receiver has not signed it. Raises SinkError where nobody signs, and it is no receipt."""
        if self._opened is None:
            try:
                return messages.unpack(message.payload, ReceiptMessage)
            except BadMessage as error:
                hint = f"who else publishes on {message.topic}?"
                raise SinkError(f"receiver {self._receiver}: no receipt: {error.cause}", hint) from None
        try:
            answer = messages.unpack(message.payload, ReceiptMessage, self._opened)
        except (BadMessage, Forged) as error:
            self._why_forged = error.cause
        else:
            if (answer.receiver, answer.gateway) == (self._receiver, self._gateway):
                return answer
            self._why_forged = f"a receipt of {answer.receiver} for {answer.gateway}"
        self.forged += 1
        return None

    @asynccontextmanager
    async def _in_time(self) -> AsyncIterator[None]:
        self._why_forged = ""
        try:
            async with asyncio.timeout(self._timeout_s):
                yield
        except TimeoutError:
            hint = f"is `edge-runtime receive --name {self._receiver}` running, on the same broker?"
            cause = f"receiver {self._receiver}: no receipt within {self._timeout_s:g} s"
            if self._why_forged:
                cause, hint = f"{cause} that it has signed: {self._why_forged}", f"{hint} With --identity of the receiver?"
            raise SinkError(cause, hint) from None
        except BrokerError as error:
            raise SinkError(error.cause, error.hint) from None

    def _topic(self, what: str) -> str:
        return topics.gateway(self._site, self._gateway, what, self._receiver)
