"""Writing over Modbus: against libmodbus and the pymodbus server, whose registers another client reads, and against devices and
lines that lose answers. Writes are counted where they arrive."""

from __future__ import annotations

import asyncio
import math
import struct
import threading
from collections.abc import AsyncIterator, Callable, Sequence
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from modbus_devices import (
    WRITES,
    asked,
    build,
    exception_answer,
    libmodbus,
    libmodbus_rtu,
    read,
    registers_answer,
    reopen,
    scripted_serial,
    scripted_tcp,
    serial_cable,
    write_answer,
    written,
)
from pymodbus.server import ModbusTcpServer
from pymodbus.simulator import DataType, SimData, SimDevice

from edge_adapters.modbus import Modbus
from edge_runtime import config
from edge_runtime.adapter import Line, LinkLost, Sample, Unknown, Unusable, Value
from edge_runtime.sources.registry import Registry
from edge_runtime.sources.supervisor import Source

ANY = {"low": -1e300, "high": 1e300, "every_s_min": 1e-6}
BOTH = {"allowed": [True, False], "every_s_min": 1e-6}


def tcp(port: int, **more: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": port, **more}


def rtu(port: str, **more: Any) -> dict[str, Any]:
    return {"serial": port, "parity": "none", "quiet_s": 0.01, **more}


async def write(device: Modbus, point: str, value: Value, timeout_s: float = 5.0) -> Value:
    """One write as the runtime does it, and what is read back."""
    async with asyncio.timeout(timeout_s), device.context.line.turn:
        await device.write(point, value)
        return await device.read_back(point)


async def registers(port: int, address: int, count: int, function: int = 3) -> bytes:
    """What another client sees: the data bytes."""
    reader, writer = await asyncio.open_connection("127.0.0.1", port)
    writer.write(struct.pack(">HHHBBHH", 7, 0, 6, 1, function, address, count))
    header = await reader.readexactly(9)
    data = await reader.readexactly(header[8])
    writer.close()
    return data


@asynccontextmanager
async def running(adapter: Modbus, **settings: Any) -> AsyncIterator[Source]:
    """Under supervision, after its first read."""
    first = asyncio.Event()

    async def accept(samples: Sequence[Sample]) -> None:
        first.set()

    async def lost(samples: Sequence[Sample]) -> None: ...

    settings = {"period_s": 0.05, "timeout_s": 0.3, "backoff_s_max": 0.2, **settings}
    points = [{"name": point.name} for point in adapter.context.points]
    source = Source(adapter, config.Device(adapter="modbus", points=points, **settings), accept, lost)
    task = asyncio.create_task(source.run(), name="source")
    async with asyncio.timeout(10):
        await first.wait()
    yield source
    source.stop()
    await task


# --- functions, types, byte orders -----------------------------------------------------------------------------------

POINTS: list[tuple[dict[str, Any], Value, bytes, int]] = [
    # point, value, the registers as another client sees them, function
    ({"type": "uint16"}, 65534, b"\xff\xfe", 6),
    ({"type": "int16"}, -2, b"\xff\xfe", 6),
    ({"type": "int16", "order": "BADC"}, -2, b"\xfe\xff", 6),
    ({"type": "int32"}, -100000, struct.pack(">i", -100000), 16),
    ({"type": "uint32", "order": "CDAB"}, 0x01020304, b"\x03\x04\x01\x02", 16),
    ({"type": "uint32", "order": "BADC"}, 0x01020304, b"\x02\x01\x04\x03", 16),
    ({"type": "uint32", "order": "DCBA"}, 0x01020304, b"\x04\x03\x02\x01", 16),
    ({"type": "float32"}, 123.456, b"\x42\xf6\xe9\x79", 16),
    ({"type": "float32", "order": "CDAB"}, 123.456, b"\xe9\x79\x42\xf6", 16),
    ({"type": "float32", "order": "BADC"}, 123.456, b"\xf6\x42\x79\xe9", 16),
    ({"type": "float32", "order": "DCBA"}, 123.456, b"\x79\xe9\xf6\x42", 16),
    ({"type": "int64"}, -5000000000, struct.pack(">q", -5000000000), 16),
    ({"type": "uint64", "order": "CDAB"}, 0x0102030405060708, b"\x07\x08\x05\x06\x03\x04\x01\x02", 16),
    ({"type": "float64"}, math.pi, struct.pack(">d", math.pi), 16),
    ({"type": "string", "length": 5}, "Pump", b"Pump\0\0", 16),
    ({"type": "string", "length": 5, "order": "BADC"}, "Pump1", b"uPpm\x001", 16),
    ({"type": "string", "length": 2}, "P1", b"P1", 6),
    ({"type": "bool", "bit": 3}, True, b"\x00\x08", 22),
    ({"type": "bool", "bit": 3, "order": "BADC"}, True, b"\x08\x00", 22),
]


def declared() -> list[dict[str, Any]]:
    """Each at an address of its own from 100 on, in the order of POINTS."""
    found, address = [], 100
    for number, (about, value, data, _) in enumerate(POINTS):
        rule = ANY if not isinstance(value, bool | str) else {"allowed": [value], "every_s_min": 1e-6}
        found.append({"name": f"p{number}", "address": address, "write": rule, **about})
        address += len(data) // 2
    return found


async def _all_types(port: int, multiple: bool, requests: Callable[[], list[tuple[int, int]]]) -> None:
    points = [*declared(), {"name": "coil", "number": 18, "write": BOTH}]
    adapter = build(tcp(port, write_multiple=multiple), points)
    await adapter.open()
    await write(adapter, "p17", False)
    await write(adapter, "p18", False)
    for point, (_, value, data, function) in zip(points, POINTS, strict=False):
        before = len(requests())
        raw = {one.name: one for one in adapter.context.points}[point["name"]].fit(value)
        assert await write(adapter, point["name"], raw) == raw
        assert requests()[before:] == [({6: 16}.get(function, function) if multiple else function, point["address"])]
        found = await registers(port, point["address"], len(data) // 2)
        mask = bytes([8]) * 2 if isinstance(value, bool) else b"\xff" * len(data)
        assert bytes(a & b for a, b in zip(found, mask, strict=True)) == bytes(a & b for a, b in zip(data, mask, strict=True))
    for value in (True, False, True):
        assert await write(adapter, "coil", value) is value
        assert requests()[-1] == (15 if multiple else 5, 17)
        assert (await registers(port, 17, 1, function=1))[0] & 1 == value
    values = await read(adapter)
    assert [values[f"p{n}"] for n in range(14)] == [pytest.approx(value, rel=1e-7) for _, value, _, _ in POINTS[:14]]
    await adapter.close()


@pytest.mark.parametrize("multiple", [False, True])
def test_each_type_is_one_request_of_the_right_function_on_libmodbus(tmp_path: Path, multiple: bool) -> None:
    with libmodbus(tmp_path) as device:
        asyncio.run(_all_types(device.port, multiple, device.writes))


@pytest.mark.parametrize("multiple", [False, True])
def test_each_type_is_one_request_of_the_right_function_on_pymodbus(multiple: bool) -> None:
    seen: list[tuple[int, int]] = []

    def note(sending: bool, pdu: Any) -> Any:
        if not sending and pdu.function_code in WRITES:
            seen.append((pdu.function_code, pdu.address))
        return pdu

    async def main() -> None:
        blocks = [SimData(0, count=400, values=0, datatype=DataType.REGISTERS)]
        bits = [SimData(0, count=400, values=False, datatype=DataType.BITS)]
        device = SimDevice(1, (bits, bits, blocks, blocks))
        server = ModbusTcpServer(device, address=("127.0.0.1", 0), trace_pdu=note)
        await server.serve_forever(background=True)
        listening: Any = server.transport
        await _all_types(listening.sockets[0].getsockname()[1], multiple, lambda: seen)
        await server.shutdown()

    asyncio.run(main())


def test_one_bit_is_changed_and_the_others_of_its_register_are_left_alone(tmp_path: Path) -> None:
    """118 holds 0x0105; reading, changing and writing it here would put back what the device has changed in between."""
    points = [{"name": f"b{bit}", "address": 118, "type": "bool", "bit": bit, "write": BOTH} for bit in range(16)]

    async def main(port: int) -> None:
        adapter = build(tcp(port), points)
        await adapter.open()
        for bit, value in ((1, True), (0, False), (15, True), (8, False), (8, True)):
            assert await write(adapter, f"b{bit}", value) is value
        assert await registers(port, 118, 1) == b"\x81\x06"
        await adapter.close()

    with libmodbus(tmp_path) as device:
        asyncio.run(main(device.port))
        assert device.writes() == [(22, 118)] * 5


def test_registers_that_are_read_only_are_refused_by_the_check() -> None:
    text = """
site: s
gateway: g
devices:
  plc:
    adapter: modbus
    options: {host: plc}
    points:
      - {name: a, number: 30001, write: {low: 0, high: 1}}
      - {name: b, number: 10001, write: {allowed: [true]}}
      - {name: c, number: 40001, write: {}}
      - {name: d, number: 40001, write: {low: 0, high: 1, hihg: 2}}
      - {name: e, number: 40001, write: {allowed: [1, 2]}}
"""
    with pytest.raises(config.ConfigError) as caught:
        config.load(text, Registry())
    told = {problem.path: problem.message for problem in caught.value.problems}
    assert list(told) == [f"devices.plc.points[{n}]" + more for n, more in enumerate(("", "", ".write", ".write.hihg"))]
    assert "an input register is read only" in told["devices.plc.points[0]"]
    assert "a discrete input is read only" in told["devices.plc.points[1]"]
    assert "no write without a bound" in told["devices.plc.points[2].write"]


# --- what a device answers -------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("code", "kind", "why"),
    [
        (1, Unusable, "exception 1: illegal function"),
        (2, Unusable, "exception 2: illegal data address"),
        (3, Unusable, "exception 3: illegal data value"),
        (6, Unusable, "exception 6: device busy"),
        (4, Unknown, "exception 4: device failure"),
        (5, Unknown, "exception 5: acknowledge"),
        (11, Unknown, "exception 11: gateway target"),
        (10, LinkLost, "exception 10: gateway path"),
    ],
)
def test_exceptions_are_named_and_mean_what_they_say(code: int, kind: type[Exception], why: str) -> None:
    async def main() -> None:
        async with scripted_tcp(lambda request: [(0.0, exception_answer(request, code))]) as port:
            adapter = build(tcp(port), [{"name": "a", "address": 0, "write": ANY}])
            await adapter.open()
            with pytest.raises(kind, match=why):
                await write(adapter, "a", 1)
            if kind is Unusable:
                with pytest.raises(kind, match=why):
                    await write(adapter, "a", 2)  # the connection is fine
            else:
                with pytest.raises(LinkLost, match="no answer"):
                    await write(adapter, "a", 2)
            await adapter.close()

    asyncio.run(main())


@pytest.mark.parametrize(
    "wrong",
    [
        lambda request: request[:5] + b"\x63",  # another value
        lambda request: request[:2] + b"\x00\x09" + request[4:6],  # another address
        lambda request: bytes([request[0], 3, 2, 0, 1]),  # another function
    ],
)
def test_what_does_not_repeat_the_request_does_not_confirm_it(wrong: Callable[[bytes], bytes]) -> None:
    async def main() -> None:
        async with scripted_tcp(lambda request: [(0.0, wrong(request))]) as port:
            adapter = build(tcp(port), [{"name": "a", "address": 0, "write": ANY}])
            await adapter.open()
            with pytest.raises(Unknown):
                await write(adapter, "a", 1)
            with pytest.raises(LinkLost):
                await read(adapter)
            await adapter.close()

    asyncio.run(main())


def test_a_device_that_dies_after_it_was_sent_leaves_it_unknown_and_before_it_nothing_is_sent(tmp_path: Path) -> None:
    async def main() -> None:
        with libmodbus(tmp_path) as device:
            adapter = build(tcp(device.port), [{"name": "a", "address": 150, "write": ANY}])
            await adapter.open()
            device.stall()
            writing = asyncio.create_task(write(adapter, "a", 1, timeout_s=60))
            await asyncio.sleep(0.05)
            device.kill()
            with pytest.raises(Unknown, match="closed the connection"):
                await writing
            with pytest.raises(LinkLost):
                await write(adapter, "a", 1)
            device.start()
            await reopen(adapter)
            device.kill()
            await asyncio.sleep(0.05)
            with pytest.raises(LinkLost, match="cannot connect"):
                await write(adapter, "a", 1)
            await adapter.close()

    asyncio.run(main())


# --- answers that are lost or late -----------------------------------------------------------------------------------


class Lossy:
    """Between a master and its device: answers can be dropped, requests are kept."""

    def __init__(self, port: int) -> None:
        self._port = port
        self.drop = 0
        self.dropped = 0
        self.requests: list[bytes] = []

    async def serve(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        far_reader, far_writer = await asyncio.open_connection("127.0.0.1", self._port)
        answers = asyncio.create_task(self._answers(far_reader, writer))
        while request := await reader.read(4096):
            self.requests.append(request[6:])
            far_writer.write(request)
        answers.cancel()
        far_writer.close()
        writer.close()

    async def _answers(self, reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while answer := await reader.read(4096):
            wrote = answer[7] in WRITES
            if self.drop and (wrote or self.dropped):
                self.drop -= 1
                self.dropped += 1
            else:
                writer.write(answer)


def test_two_lost_answers_are_one_write_at_the_device(tmp_path: Path) -> None:
    """pymodbus by itself makes three of it. The first lost answer is the write's, the second that of reading back."""

    async def main(port: int, writes: Callable[[], Any]) -> None:
        lossy = Lossy(port)
        server = await asyncio.start_server(lossy.serve, "127.0.0.1", 0)
        options = tcp(server.sockets[0].getsockname()[1])
        points = [{"name": "a", "address": 150, "write": ANY}, {"name": "b", "address": 151}]
        async with running(build(options, points)) as source:
            assert (await source.write("a", 1)).outcome == "verified"
            lossy.drop = 2
            outcome = await source.write("a", 2)
            assert lossy.dropped == 2
            assert (outcome.outcome, outcome.before, outcome.read_back) == ("verified", 1, 2)
            assert "no answer within 0.3 s" in outcome.cause
            assert writes() == [(6, 150), (6, 150)]
            assert [request for request in lossy.requests if request[1] in WRITES] == [
                b"\x01\x06\x00\x96\x00\x01",
                b"\x01\x06\x00\x96\x00\x02",
            ]
            assert (await source.write("a", 3)).outcome == "verified"
            assert source.state.counters.opens >= 2
        server.close()

    with libmodbus(tmp_path) as device:
        asyncio.run(main(device.port, device.writes))
        assert device.writes() == [(6, 150)] * 3


def test_a_device_that_stands_still_gets_it_once_and_what_became_of_it_is_found_out(tmp_path: Path) -> None:
    """SIGSTOP: the kernel keeps the request, and the device takes it when it wakes up."""

    async def main() -> None:
        with libmodbus(tmp_path) as device:
            points = [{"name": "a", "address": 150, "type": "float32", "write": ANY}]
            async with running(build(tcp(device.port), points)) as source:
                for number in range(1, 4):
                    pause = asyncio.Event()
                    adapter = source._adapter
                    send, adapter.write = adapter.write, _stalling(adapter.write, device.stall, pause)  # type: ignore[method-assign]
                    writing = asyncio.create_task(source.write("a", number + 0.5))
                    await pause.wait()
                    await asyncio.sleep(0.4)  # longer than its timeout
                    adapter.write = send  # type: ignore[method-assign]
                    device.go_on()
                    outcome = await writing
                    assert (outcome.outcome, outcome.read_back) == ("verified", number + 0.5), outcome
                    assert device.writes() == [(16, 150)] * number

    asyncio.run(main())


def _stalling(send: Callable[[str, Value], Any], stall: Callable[[], None], told: asyncio.Event) -> Callable[[str, Value], Any]:
    async def write(point: str, value: Value) -> None:
        stall()
        told.set()
        await send(point, value)

    return write


@pytest.mark.parametrize("after_s", [0.0, 0.001, 0.003, 0.01])
def test_a_write_that_is_cancelled_is_not_repeated(tmp_path: Path, after_s: float) -> None:
    async def main() -> None:
        with libmodbus(tmp_path) as device:
            async with running(build(tcp(device.port), [{"name": "a", "address": 150, "write": ANY}])) as source:
                writing = asyncio.create_task(source.write("a", 7))
                await asyncio.sleep(after_s)
                writing.cancel()
                await asyncio.wait([writing])
                for _ in range(40):
                    if (outcome := await source.write("a", 8)).outcome == "verified":
                        break
                    await asyncio.sleep(0.05)
                assert outcome.outcome == "verified"
                assert len(device.writes()) <= 2
                assert (await source.write("a", 9)).before == 8

    asyncio.run(main())


def test_on_a_serial_line_libmodbus_gets_it_once(tmp_path: Path) -> None:
    points = [
        {"name": "a", "address": 150, "type": "int32", "scale": 0.1, "write": {"low": -50, "high": 50, "every_s_min": 1e-6}},
        {"name": "coil", "number": 18, "write": BOTH},
        {"name": "bit", "address": 152, "type": "bool", "bit": 4, "write": BOTH},
        {"name": "word", "address": 153, "write": ANY},
    ]

    async def main() -> None:
        with serial_cable(tmp_path) as cable, libmodbus_rtu(tmp_path, cable.theirs) as device:
            async with running(build(rtu(cable.ours), points), period_s=0.2) as source:
                for point, value in (("a", -12.34), ("coil", True), ("bit", True), ("word", 513)):
                    outcome = await source.write(point, value)
                    assert (outcome.outcome, outcome.read_back) == ("verified", pytest.approx(value, abs=0.05)), outcome
                assert device.writes() == [(16, 150), (5, 17), (22, 152), (6, 153)]
                adapter, told = source._adapter, asyncio.Event()
                send, adapter.write = adapter.write, _stalling(adapter.write, device.stall, told)  # type: ignore[method-assign]
                writing = asyncio.create_task(source.write("word", 1027))
                await told.wait()
                await asyncio.sleep(0.5)
                adapter.write = send  # type: ignore[method-assign]
                device.go_on()
                outcome = await writing
                assert (outcome.outcome, outcome.before, outcome.read_back) == ("verified", 513, 1027), outcome
                assert device.writes()[4:] == [(6, 153)]

    asyncio.run(main())


@pytest.mark.parametrize("late_s", [0.0, 0.015, 0.03, 0.06, 0.12])
def test_a_late_answer_to_a_write_never_confirms_the_next_one(late_s: float) -> None:
    """The unit takes the second write and says nothing to it. What comes then, of the right form and value, is the late answer to
    the first one, which was given up: an RTU answer carries nothing that tells them apart."""
    held = {0: 0}
    held_up: list[bytes] = []
    deaf = False

    def reply(request: bytes) -> list[tuple[float, bytes]]:
        _, address, count = asked(request)
        late = [(late_s, each) for each in held_up]
        held_up.clear()
        if request[1] not in WRITES:
            return [*late, (0.0, registers_answer(request, [held.get(address + n, 0) for n in range(count)]))]
        if not held[0]:
            held[0] = written(request)[0]
            held_up.append(write_answer(request))
            return []
        if not deaf:
            held[0] = written(request)[0]
        return late

    async def main() -> None:
        nonlocal deaf
        with scripted_serial(reply) as port:
            adapter = build(rtu(port, baudrate=115200), [{"name": "a", "address": 0, "write": ANY}])
            await adapter.open()
            with pytest.raises(TimeoutError):
                await write(adapter, "a", 5, timeout_s=0.05)
            with pytest.raises(LinkLost):
                await write(adapter, "a", 5, timeout_s=1)
            deaf = True
            await reopen(adapter)
            with pytest.raises(TimeoutError):
                await write(adapter, "a", 5, timeout_s=0.3)
            await adapter.close()

    asyncio.run(main())


def test_a_late_answer_to_a_write_confirms_nothing_of_another_entry_of_the_same_unit() -> None:
    """A fast and a slow group of points of one unit, which takes the first write late and no other one."""
    writes: list[bytes] = []
    arrived = threading.Event()

    def reply(request: bytes) -> list[tuple[float, bytes]]:
        if request[1] not in WRITES:
            return [(0.0, registers_answer(request, [0] * asked(request)[2]))]
        writes.append(request)
        arrived.set()
        return [(0.3, write_answer(request))] if len(writes) == 1 else []

    async def main() -> None:
        with scripted_serial(reply) as port:
            line = Line("shared")
            fast, slow = (build(rtu(port), [{"name": "a", "address": 0, "write": ANY}], line, name) for name in ("fast", "slow"))
            await fast.open()
            await slow.open()
            writing = asyncio.create_task(write(fast, "a", 5))
            await asyncio.to_thread(arrived.wait)
            writing.cancel()
            with pytest.raises(LinkLost):
                await write(slow, "a", 5, timeout_s=1.0)
            assert len(writes) == 1
            await reopen(slow)
            assert await read(slow) == {"a": 0}
            await fast.close()
            await slow.close()

    asyncio.run(main())


def test_a_device_that_refuses_says_so_to_who_asked_and_is_polled_on(tmp_path: Path) -> None:
    points = [{"name": "r", "address": 150}, {"name": "far", "number": 45000, "write": ANY}]

    async def main() -> None:
        with libmodbus(tmp_path) as device:
            async with running(build(tcp(device.port), points)) as source:
                outcome = await source.write("far", 5)
                assert (outcome.outcome, outcome.read_back) == ("refused", None)
                assert "exception 2" in outcome.cause
                assert outcome.hint
                reads = source.state.counters.reads
                await asyncio.sleep(0.2)
                assert source.state.counters.reads > reads
                assert source.state.counters.opens == 1

    asyncio.run(main())
