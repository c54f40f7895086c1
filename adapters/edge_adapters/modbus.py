"""Modbus TCP and RTU: polls holding registers, input registers, coils and discrete inputs; writes coils and holding registers.

| file             | what it does                                                        |
|------------------|---------------------------------------------------------------------|
| modbus_values.py | decides: registers -> values, values -> registers                   |
| modbus_plan.py   | decides: options and points, blocks to read, requests to write      |
| modbus_link.py   | touches pymodbus: one line, one request, late answers, lost links   |
| modbus.py        | runs: the adapter                                                   |
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

from edge_adapters import modbus_plan
from edge_adapters.modbus_link import INSTALL, Link, Refused, libraries, line_key
from edge_adapters.modbus_plan import Block
from edge_runtime.adapter import Adapter, Context, LinkLost, Sample, Unknown, Unusable, Value

ILLEGAL_ADDRESS, ILLEGAL_VALUE = 2, 3
GATEWAY_CODES = (10, 11)
"""A TCP to RTU gateway answers instead of a unit that is silent or unknown: that unit's link is lost."""
DOUBTFUL_CODES = (4, 5, 8, 11)
"""To a write: failed in the middle of it, still at it, or no answer from behind a gateway. It may have been done."""
PATH_UNAVAILABLE = 10


class Modbus(Adapter):
    """Polls a PLC, drive, meter or sensor over Modbus TCP or RTU, and writes the points that are declared with `write`.

    Neighbouring points are read with one request (`edge-runtime check --plan` prints which); they are of the same instant. A
    request that the device refuses gives its points a fault. One that it refuses because of the addresses in it is split,
    first at the unused registers, and stays split until the device is opened again.

    A value is written with one request, sent once: function 5 (coils), 6 (one register), 16 (several), 22 (a bit of a register).
    """

    Options = modbus_plan.Options
    Point = modbus_plan.Point

    def __init__(self, context: Context) -> None:
        super().__init__(context)
        self._options: modbus_plan.Options = context.options
        self._points: dict[str, modbus_plan.Point] = {point.name: point for point in context.points}
        self._blocks: list[Block] = []
        self._joined = False
        self._ready = False

    @classmethod
    def line(cls, device: str, options: modbus_plan.Options) -> str:
        return line_key(options)

    @classmethod
    def needs(cls, options: modbus_plan.Options) -> Mapping[str, str]:
        return dict.fromkeys(libraries(options), INSTALL)

    @classmethod
    def describe(cls, options: modbus_plan.Options, points: Sequence[modbus_plan.Point]) -> list[dict[str, object]]:
        """The requests of one read."""
        return modbus_plan.describe(options, points)

    async def open(self) -> None:
        self._ready = False
        plan = modbus_plan.plan(self._options, self.context.points)
        link = self._link()
        if not self._joined:
            self._joined = True
            self.context.line.users += 1
        await link.connect()
        if self._options.serial:
            first = plan[0]
            await link.settle(self._options.unit_id, first.table, first.address, [block.answer_bytes for block in plan])
        self._blocks = list(plan)
        self._ready = True

    async def read(self) -> Sequence[Sample]:
        link, unit_id, index = self._begin(), self._options.unit_id, 0
        values: dict[str, Value] = {}
        faults: dict[str, str] = {}
        while index < len(self._blocks):
            block = self._blocks[index]
            answer = await link.ask(unit_id, block.table, block.address, block.count)
            if not isinstance(answer, Refused):
                block.decode(answer, values, faults)
            elif answer.code in GATEWAY_CODES:
                raise self._behind_gateway(answer)
            elif answer.code in (ILLEGAL_ADDRESS, ILLEGAL_VALUE) and (parts := block.split()):
                self._blocks[index : index + 1] = parts
                continue
            else:
                faults.update(dict.fromkeys((spot.name for spot in block.spots), answer.reason))
            index += 1
        self._ready = True
        return (self.context.sample(values, faults),)

    async def write(self, point: str, value: Value) -> None:
        order = modbus_plan.write_request(self._options, self._points[point], value)
        answer = await self._begin().write(self._options.unit_id, order)
        if answer is not None and answer.code == PATH_UNAVAILABLE:
            raise self._behind_gateway(answer)
        if answer is not None and answer.code in DOUBTFUL_CODES:
            raise Unknown(f"{answer.reason} (function {order.function})", "it may have been done")
        self._ready = True
        if answer is not None:
            hint = _NO_BITS if (order.function, answer.code) == (22, 1) else _REFUSED.get(answer.code, "")
            raise Unusable(f"{answer.reason} (function {order.function}, address {order.address})", hint)

    async def read_back(self, point: str) -> Value:
        (block,) = modbus_plan.plan(self._options, (self._points[point],))
        answer = await self._begin().ask(self._options.unit_id, block.table, block.address, block.count)
        if isinstance(answer, Refused) and answer.code in GATEWAY_CODES:
            raise self._behind_gateway(answer)
        self._ready = True
        if isinstance(answer, Refused):
            raise Unusable(answer.reason, "a register that can only be written?")
        values: dict[str, Value] = {}
        block.decode(answer, values, {})
        return values.get(point)

    async def close(self) -> None:
        self._ready = False
        if self._joined:
            self._joined = False
            self.context.line.users -= 1
            if self.context.line.users <= 0:
                self._link().close()

    def _begin(self) -> Link:
        """Before a request. `_ready` is False until it is over: whatever ends it early leaves an answer open."""
        link = self._link()
        if not self._ready or link.owes(self._options.unit_id):  # another device entry may have asked the same unit
            raise LinkLost("the last request got no answer", "the device is off, busy, or not the unit that was asked")
        self._ready = False
        return link

    def _behind_gateway(self, answer: Refused) -> LinkLost:
        return LinkLost(f"unit {self._options.unit_id}: {answer.reason}", "is the unit on, and unit_id right?")

    def _link(self) -> Link:
        """The line's link, which outlives its connections: it knows which units still owe an answer."""
        line = self.context.line
        if line.shared is None:
            line.shared = Link(self._options)
        link: Link = line.shared
        mine, theirs = ((one.baudrate, one.parity, one.stopbits) for one in (self._options, link.options))
        if mine != theirs:
            raise Unusable(f"devices on {link.options.serial} differ in baudrate, parity or stopbits: {mine}, {theirs}")
        return link


_NO_BITS = "this device cannot change one bit of a register: declare the whole register, or a coil"
_REFUSED = {
    1: "the device does not know this function: `write_multiple: true` takes 15 and 16 instead of 5 and 6",
    2: "no such address, or it is read only in the device",
    3: "the device does not take this value",
    6: "the device is busy: write again later",
}
