"""Subscribes to topics of another broker: what machines and their makers publish.

| file            | what it does                                                              |
|-----------------|---------------------------------------------------------------------------|
| json_path.py    | decides: where a value stands in a JSON document                          |
| mqtt_payload.py | decides: options and points, topic filters, payload -> values and faults  |
| mqtt.py         | runs: the adapter                                                         |
"""

from __future__ import annotations

import asyncio
import contextlib
from collections import deque
from collections.abc import Sequence

from edge_adapters import mqtt_payload
from edge_runtime.adapter import (
    Adapter,
    BadAddress,
    BrokerError,
    Connection,
    Context,
    LinkLost,
    Message,
    Sample,
    Stamp,
    Unusable,
)

CONNECT_S_MAX = 60.0
"""The device's own `timeout_s` normally ends an attempt sooner."""


class Mqtt(Adapter):
    """Subscribes to topics of an MQTT broker; each message is one sample.

    With QoS 1 (the default) the broker keeps messages while the gateway is away, and each is acknowledged when its sample is
    on disk: nothing is lost, and with `message_id` nothing is taken twice. A message that cannot be read (no JSON, no such
    path, wrong type) becomes a sample with bad values and the reason; it is acknowledged too and blocks nothing.
    """

    mode = "pushed"
    Options = mqtt_payload.Options
    Point = mqtt_payload.Point

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._options: mqtt_payload.Options = context.options
        self._reader = mqtt_payload.Reader(self._options, context.points)
        self._connection: Connection | None = None
        self._taken: list[Message] = []
        """Received, not yet returned: a read may be cancelled between two messages."""
        self._pending: deque[tuple[Stamp, str, Message]] = deque()
        """Returned, not yet acknowledged, of this connection."""

    @classmethod
    def session(cls, options: mqtt_payload.Options) -> tuple[str, str]:
        """A second client of that name gets the session, with what the broker keeps in it for the first one."""
        where = options.address(str)
        return "client_id", f"{where.host}:{where.port} {where.client_id}"

    @property
    def redelivers(self) -> bool:
        return self._options.redelivers

    async def open(self) -> None:
        await self.close()
        options = self._options
        try:
            where = options.address(self.context.resolve)
            self._connection = await self.context.bus.connect(where, timeout_s=CONNECT_S_MAX)
            await self._connection.subscribe(*options.topics, qos=options.qos)
        except BadAddress as error:
            raise Unusable(error.cause, error.hint) from None
        except BrokerError as error:
            raise LinkLost(error.cause, error.hint) from None

    async def read(self) -> Sequence[Sample]:
        """Everything that has come in, at most `batch_max` messages; waits for the first."""
        if self._connection is None:
            raise LinkLost("the adapter is not open")
        samples: list[Sample] = []
        while not samples:
            await self._take(self._connection)
            messages, self._taken = self._taken, []
            samples = [sample for message in messages if (sample := self._sample(self._connection, message))]
        return samples

    async def acknowledge(self, samples: Sequence[Sample]) -> None:
        for sample in samples:
            if self._connection is None or not self._pending:
                return
            stamp, message_id, message = self._pending[0]
            if (stamp, message_id) == (sample.stamp, sample.message_id):  # else it is one of an earlier connection
                self._pending.popleft()
                self._connection.acknowledge(message)

    async def close(self) -> None:
        """The session and its subscriptions stay at the broker, which keeps what comes."""
        connection, self._connection = self._connection, None
        self._taken.clear()
        self._pending.clear()
        if connection is not None:
            await connection.close()

    async def _take(self, connection: Connection) -> None:
        try:
            if not self._taken:
                self._taken.append(await connection.receive())
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0):  # what is there already
                    while len(self._taken) < self._options.batch_max:
                        self._taken.append(await connection.receive())
        except BrokerError as error:
            if not self._taken:
                raise LinkLost(error.cause, error.hint) from None

    def _sample(self, connection: Connection, message: Message) -> Sample | None:
        if not self._reader.wanted(message):
            connection.acknowledge(message)
            return None
        values, faults, message_id = self._reader.read(message)
        sample = self.context.sample(values, faults, message_id=message_id)
        if self.redelivers:
            self._pending.append((sample.stamp, sample.message_id, message))
        else:
            connection.acknowledge(message)  # nobody else will, and the broker stops after some unacknowledged ones
        return sample
