"""One Modbus line (a TCP connection or a serial port) and the units on it. The one importer of pymodbus.

pymodbus does framing and checksums. Everything that it would do by itself is switched off, because it hides what happened:
its retries (it repeats writes too), its reconnecting (after up to 300 s) and its timeouts (the runtime cancels instead).

**Answers that come late.** TCP answers carry a transaction number, but half of a late frame in the buffer shifts everything after
it: so a connection on which a request was given up is closed. RTU answers carry nothing that ties them to a request: there the
bytes that a unit still owes are remembered, and before anything else that unit is asked for an answer of another length (the
canary). A unit answers in order, so when the canary's answer is there, no older one can come any more. An answer to a write
that was given up is owed like any other: it is of another function than the canary's.
"""

from __future__ import annotations

import asyncio
import functools
import logging
import termios
from collections.abc import Callable, Sequence
from dataclasses import dataclass
from typing import TYPE_CHECKING, Any

from edge_adapters.modbus_plan import BITS, Options, Table, Write, answer_bytes
from edge_runtime.adapter import LinkLost, Unknown, Unusable

if TYPE_CHECKING:
    from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient
    from pymodbus.pdu import ModbusPDU

CANARIES_MAX = 4
"""Answers of a wrong length, one after the other, until the unit is given up."""
CANARY_LENGTHS = 8
"""Different lengths that are tried before one is used again."""
WRITE_ANSWER = 0
"""Among the sizes that a unit owes: the answer to a write. No answer to a read has this one."""
QUIET_ROUNDS_MAX = 100
"""A line that is not silent in so many waits is given up."""

EXCEPTIONS = {
    1: "illegal function",
    2: "illegal data address",
    3: "illegal data value",
    4: "device failure",
    5: "acknowledge, still working on it",
    6: "device busy",
    7: "negative acknowledge",
    8: "memory parity error",
    10: "gateway path unavailable",
    11: "gateway target does not answer",
}


@dataclass(frozen=True)
class Refused:
    """The device answered with a Modbus exception."""

    code: int

    @property
    def reason(self) -> str:
        return f"Modbus exception {self.code}: {EXCEPTIONS.get(self.code, 'unknown')}"


class WrongAnswer(LinkLost):
    """An answer that is not one to the question: of another length, or of another function."""


def line_key(options: Options) -> str:
    """Devices with the same key share the line."""
    return f"serial:{options.serial}" if options.serial else f"tcp://{options.host}:{options.port}"


class Link:
    """What the devices on one line have in common. The caller has the turn: there is one request at a time."""

    def __init__(self, options: Options) -> None:
        self.options = options
        self._client: AsyncModbusTcpClient | AsyncModbusSerialClient | None = None
        self._lost = ""
        self._answer: asyncio.Future[Any] | None = None
        self._silence_s = 0.0
        self._stirred = 0
        self._owed: dict[int, set[int]] = {}
        self._pause_s = max(3.5 * 11 / options.baudrate, 0.00175) if options.serial else 0.0  # 3.5 characters between frames

    async def connect(self) -> None:
        """Connects if it is not connected. Raises LinkLost, or Unusable where the library is missing."""
        if self._client and not self._lost:
            return
        self.close()
        self._client = client = _client(self.options, self._on_bytes, self._on_connection)
        self._lost = ""
        try:
            # Not client.connect(): it answers False and keeps the reason to itself.
            client.ctx.transport, _ = await client.ctx.call_create()
            # A serial transport sets itself up in the next two rounds of the loop, and fails there if it was closed before.
            await asyncio.sleep(0)
            await asyncio.sleep(0)
        except (OSError, ValueError, termios.error) as error:  # termios.error: settings that the port does not know
            self.close()
            raise _unreachable(self.options, error) from error
        except asyncio.CancelledError:
            self.close()
            raise

    def close(self) -> None:
        """Closes the connection, if there is one. What units owe stays known."""
        client, self._client = self._client, None
        if client:
            self._fail("the connection was closed")
            client.close()

    async def ask(self, unit_id: int, table: Table, address: int, count: int) -> Sequence[int] | Refused:
        """One request and its answer, of the right length (bits: at least). Raises LinkLost.

        When it is cancelled or fails after the request was sent, the answer is still owed: see the module's text."""
        await self._prepare()
        size = answer_bytes(table, count)
        owed = self._owed.setdefault(unit_id, set())
        owed.add(size)
        answer = await self._exchange(_requests()[table](dev_id=unit_id, address=address, count=count))
        if isinstance(answer, Refused):
            if owed == {size}:
                owed.clear()
            return answer
        values: Sequence[int] = answer.bits if table in BITS else answer.registers
        if answer_bytes(table, len(values)) != size:
            self._give_up()
            raise WrongAnswer(f"unit {unit_id} answered {len(values)} values for {count} asked ({table} {address})", _CONFUSED)
        owed.clear()
        return values

    async def write(self, unit_id: int, order: Write) -> Refused | None:
        """One request, sent once. None: the unit has confirmed it. Raises LinkLost where nothing was sent, else Unknown: no
        answer, or one that does not repeat what was sent. Cancelled: the answer is still owed."""
        await self._prepare()
        if self._client is None or self._lost:
            raise LinkLost(self._lost or "the connection was closed", self._lost and self._why)
        request = _write_request(unit_id, order)
        owed = self._owed.setdefault(unit_id, set())
        owed.add(WRITE_ANSWER)
        try:
            answer = await self._exchange(request)
        except LinkLost as error:
            raise Unknown(error.cause, error.hint) from error
        if isinstance(answer, Refused):
            owed.discard(WRITE_ANSWER)
            return answer
        if not request.encode().startswith(answer.encode()):
            self._give_up()
            raise Unknown(f"unit {unit_id} confirmed another write than the one that was sent", _CONFUSED)
        owed.clear()
        return None

    async def _prepare(self) -> None:
        """Until a request may be sent."""
        # Another unit gave up a request, and closed the connection that all share; or the device has closed it while nobody asked
        # anything: many do after some seconds, or after each answer. Once a poll that would be an outage of a sound device.
        if self._client is None or (self._lost and not self.options.serial):
            await self.connect()
        if self._silence_s:
            await self._quiet()
        if self._pause_s:
            await asyncio.sleep(self._pause_s)

    def owes(self, unit_id: int) -> bool:
        """RTU: an answer of this unit may still come, so nothing but `settle` may ask it."""
        return self.options.serial is not None and bool(self._owed.get(unit_id))

    async def settle(self, unit_id: int, table: Table, address: int, sizes: Sequence[int]) -> None:
        """RTU: makes sure that the unit is there and owes no answer. `sizes` (bytes) are the answers that an earlier run of this
        program may have left open. Raises LinkLost."""
        owed = self._owed.setdefault(unit_id, set(sizes))
        step = 8 if table in BITS else 1
        wrong: WrongAnswer | None = None
        for attempt in range(CANARIES_MAX):
            unlike = [count for count in range(step, (CANARY_LENGTHS + 1) * step, step) if answer_bytes(table, count) not in owed]
            if not unlike:
                owed.clear()
            self._silence_s = self.options.quiet_s * 2**attempt  # a slow unit needs more to get it all out
            try:
                await self.ask(unit_id, table, address, unlike[0] if unlike else step)
            except WrongAnswer as error:
                wrong = error
                continue
            if not owed:  # an exception has no length that tells whose it is: after one, ask again
                break
        else:
            if wrong:
                raise wrong
            owed.clear()  # it refuses whatever it is asked there, and at once
        self._silence_s = self.options.quiet_s

    async def _exchange(self, request: ModbusPDU) -> Any | Refused:
        """Sends a request, once, and waits for what comes.

        Not client.read_...() or client.write_...(): they wait with asyncio.wait_for, and the one of Python 3.11 forgets a
        cancellation that comes in the same moment as the answer. The runtime's timeout strikes once only: the next request
        would wait for ever."""
        if self._client is None or self._lost:
            raise LinkLost(self._lost or "the connection was closed", self._lost and self._why)
        ctx = self._client.ctx
        request.transaction_id = ctx.getNextTID()
        self._answer = ctx.response_future = asyncio.get_running_loop().create_future()
        try:
            ctx.pdu_send(request)
            answer = await self._answer
        except (LinkLost, asyncio.CancelledError):
            self._give_up()
            raise
        found, wanted = ((pdu.function_code & 0x7F, pdu.transaction_id) for pdu in (answer, request))
        if found != wanted:
            self._give_up()
            raise WrongAnswer(f"unit {request.dev_id} answered (function, transaction) {found} for {wanted} asked", _CONFUSED)
        return Refused(answer.exception_code) if answer.isError() else answer

    def _give_up(self) -> None:
        if self.options.serial:
            self._silence_s = self.options.quiet_s
        else:
            self.close()

    async def _quiet(self) -> None:
        """Waits until nothing has come in for a while; what comes in is thrown away (nobody asked)."""
        for _ in range(QUIET_ROUNDS_MAX):
            before = self._stirred
            await asyncio.sleep(self._silence_s)
            if self._stirred == before:
                self._silence_s = 0.0
                return
        raise LinkLost(f"{self.options.serial} is never silent", "is there a second master on the line?")

    def _on_bytes(self, sending: bool, data: bytes) -> bytes:
        self._stirred += not sending
        return data

    def _on_connection(self, there: bool) -> None:
        if not there and self._client:
            self._lost = "the serial port is gone" if self.options.serial else "the device closed the connection"
            self._fail(self._lost)

    @property
    def _why(self) -> str:
        return "was it unplugged?" if self.options.serial else "did it restart? Many devices allow only a few connections"

    def _fail(self, reason: str) -> None:
        """pymodbus leaves a request waiting when the connection breaks."""
        if self._answer and not self._answer.done():
            self._answer.set_exception(LinkLost(reason, self._lost and self._why))


_CONFUSED = "a faulty device, or two units with the same number on the line"


INSTALL = "pip install 'edge-runtime[modbus]'"


def libraries(options: Options) -> tuple[str, ...]:
    """What `_client` imports."""
    return ("pymodbus", "serial") if options.serial else ("pymodbus",)


def _client(
    options: Options, on_bytes: Callable[[bool, bytes], bytes], on_connection: Callable[[bool], None]
) -> AsyncModbusTcpClient | AsyncModbusSerialClient:
    try:
        import pymodbus
        from pymodbus.client import AsyncModbusSerialClient, AsyncModbusTcpClient

        if options.serial:
            import serial  # type: ignore[import-untyped]  # noqa: F401  # pymodbus fails late without it
    except ImportError as error:
        raise Unusable(f"Modbus needs a library that is not installed: {error.name}", INSTALL) from error
    if not pymodbus.__version__.startswith("3.16."):
        raise Unusable(f"pymodbus {pymodbus.__version__} is installed, 3.16 is needed (each minor release changes it)", INSTALL)
    logging.getLogger("pymodbus").addHandler(logging.NullHandler())  # else its remarks land on stderr
    if options.serial is None:
        return AsyncModbusTcpClient(
            options.host or "", port=options.port, reconnect_delay=0, retries=0, trace_connect=on_connection
        )
    return AsyncModbusSerialClient(
        options.serial,
        baudrate=options.baudrate,
        parity=options.parity[0].upper(),
        stopbits=options.stopbits,
        reconnect_delay=0,
        retries=0,
        trace_packet=on_bytes,
        trace_connect=on_connection,
    )


@functools.cache
def _requests() -> dict[Table, type[ModbusPDU]]:
    from pymodbus.pdu import bit_message, register_message

    return {
        "coil": bit_message.ReadCoilsRequest,
        "discrete": bit_message.ReadDiscreteInputsRequest,
        "holding": register_message.ReadHoldingRegistersRequest,
        "input": register_message.ReadInputRegistersRequest,
    }


def _write_request(unit_id: int, order: Write) -> ModbusPDU:
    from pymodbus.pdu import bit_message, register_message

    words = list(order.words)
    match order.function:
        case 5:
            return bit_message.WriteSingleCoilRequest(dev_id=unit_id, address=order.address, bits=[words[0] == 1])
        case 6:
            return register_message.WriteSingleRegisterRequest(dev_id=unit_id, address=order.address, registers=words)
        case 15:
            bits = [word == 1 for word in words]
            return bit_message.WriteMultipleCoilsRequest(dev_id=unit_id, address=order.address, bits=bits)
        case 16:
            return register_message.WriteMultipleRegistersRequest(dev_id=unit_id, address=order.address, registers=words)
        case 22:
            and_mask, or_mask = words
            return register_message.MaskWriteRegisterRequest(order.address, and_mask, or_mask, dev_id=unit_id)


def _unreachable(options: Options, error: Exception) -> LinkLost:
    if options.serial:
        known = "is it plugged in, and is the user in group dialout?"
        if isinstance(error, termios.error):
            known = f"does the port know {options.baudrate} baud, parity {options.parity}, stop bits {options.stopbits}?"
        return LinkLost(f"cannot open {options.serial}: {error}", known)
    return LinkLost(f"cannot connect to {options.host}:{options.port}: {error}", "is the device on, and host and port right?")
