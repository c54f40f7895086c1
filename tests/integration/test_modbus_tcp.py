"""The Modbus adapter over TCP: against libmodbus, and against a device whose every byte the test holds."""

from __future__ import annotations

import asyncio
import contextlib
import socket
import sys
from pathlib import Path
from typing import Any

import pytest
from modbus_devices import (
    asked,
    build,
    exception_answer,
    libmodbus,
    read,
    registers_answer,
    reopen,
    scripted_tcp,
)

from edge_runtime.adapter import Line, LinkLost, Unusable


def tcp(port: int, **more: Any) -> dict[str, Any]:
    return {"host": "127.0.0.1", "port": port, **more}


def test_every_table_and_type_as_libmodbus_writes_them(tmp_path: Path) -> None:
    points = [
        {"name": "i16", "number": 40101, "type": "int16"},
        {"name": "u16", "number": 40102},
        {"name": "i32", "address": 102, "type": "int32"},
        {"name": "u32", "address": 104, "type": "uint32"},
        {"name": "i64", "address": 106, "type": "int64"},
        {"name": "abcd", "address": 110, "type": "float32"},
        {"name": "cdab", "address": 112, "type": "float32", "order": "CDAB"},
        {"name": "badc", "address": 114, "type": "float32", "order": "BADC"},
        {"name": "dcba", "address": 116, "type": "float32", "order": "DCBA"},
        {"name": "bit0", "address": 118, "type": "bool", "bit": 0},
        {"name": "bit1", "address": 118, "type": "bool", "bit": 1},
        {"name": "bit8", "address": 118, "type": "bool", "bit": 8},
        {"name": "text", "address": 120, "type": "string", "length": 9},
        {"name": "nan", "address": 130, "type": "float32"},
        {"name": "input", "number": 30010},
        {"name": "coil3", "number": 4},
        {"name": "coil2999", "table": "coil", "address": 2999},
        {"name": "discrete5", "number": 10006},
        {"name": "discrete6", "table": "discrete", "address": 6},
    ]

    async def main(port: int) -> None:
        adapter = build(tcp(port), points)
        await adapter.open()
        assert await read(adapter) == {
            "i16": -2,
            "u16": 65534,
            "i32": -100000,
            "u32": 4000000000,
            "i64": -5000000000,
            "abcd": pytest.approx(123.456, abs=1e-5),
            "cdab": pytest.approx(123.456, abs=1e-5),
            "badc": pytest.approx(123.456, abs=1e-5),
            "dcba": pytest.approx(123.456, abs=1e-5),
            "bit0": True,
            "bit1": False,
            "bit8": True,
            "text": "Pump-11",
            "nan": ("fault", "not a number"),
            "input": 1009,
            "coil3": True,
            "coil2999": False,
            "discrete5": True,
            "discrete6": False,
        }
        await adapter.close()
        await adapter.close()

    with libmodbus(tmp_path) as device:
        asyncio.run(main(device.port))
        assert [function for function, _, _ in device.requests()] == [3, 4, 1, 1, 2]


def test_a_gap_that_the_device_refuses_is_split_once_and_remembered(tmp_path: Path) -> None:
    points = [{"name": f"r{address}", "address": address} for address in (40, 41, 49, 54, 60)]

    async def main(port: int) -> None:
        adapter = build(tcp(port), points)
        await adapter.open()
        for _ in range(3):
            values = await read(adapter)
            assert {name: value >> 8 for name, value in values.items()} == {"r40": 40, "r41": 41, "r49": 49, "r54": 54, "r60": 60}
        await adapter.close()

    with libmodbus(tmp_path) as device:
        asyncio.run(main(device.port))
        split = [(3, 40, 2), (3, 49, 1), (3, 54, 1), (3, 60, 1)]
        assert device.requests() == [(3, 40, 21), *split, *split, *split]


def test_a_refused_register_is_a_fault_and_the_others_are_read_on(tmp_path: Path) -> None:
    points = [{"name": f"r{address}", "address": address} for address in (48, 49, 50, 54)] + [{"name": "far", "number": 45000}]

    async def main(port: int) -> None:
        adapter = build(tcp(port), points)
        await adapter.open()
        for _ in range(2):
            values = await read(adapter)
            refused = ("fault", "Modbus exception 2: illegal data address")
            assert (values["r50"], values["far"]) == (refused, refused)
            assert [values[name] >> 8 for name in ("r48", "r49", "r54")] == [48, 49, 54]
        await adapter.close()

    with libmodbus(tmp_path) as device:
        asyncio.run(main(device.port))


def test_an_absent_device_is_said_at_once_and_found_later(tmp_path: Path) -> None:
    async def main() -> None:
        with libmodbus(tmp_path) as device:
            adapter = build(tcp(device.port), [{"name": "r", "address": 7}])
            device.kill()
            for _ in range(3):
                with pytest.raises(LinkLost, match=r"cannot connect to 127\.0\.0\.1"):
                    await reopen(adapter)
            device.start()
            await reopen(adapter)
            assert (await read(adapter))["r"] >> 8 == 7
            await adapter.close()

    asyncio.run(main())


def test_a_restarted_device_is_read_again(tmp_path: Path) -> None:
    async def main() -> None:
        with libmodbus(tmp_path) as device:
            adapter = build(tcp(device.port), [{"name": "r", "address": 7}])
            await adapter.open()
            await read(adapter)
            device.kill()
            device.start()
            await asyncio.sleep(0.05)
            assert (await read(adapter))["r"] == 7 << 8 | 1
            device.kill()
            await asyncio.sleep(0.05)
            with pytest.raises(LinkLost, match="cannot connect"):
                await read(adapter)
            device.start()
            await reopen(adapter)
            assert (await read(adapter))["r"] == 7 << 8 | 1
            await adapter.close()

    asyncio.run(main())


def test_a_device_that_closes_while_nobody_asks_has_no_outage() -> None:
    """Many do after some seconds, or after each answer. Every other poll of it said that it is unreachable."""

    async def main() -> None:
        connections = []

        async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
            connections.append(writer)
            request = await reader.readexactly(12)
            writer.write(request[:4] + b"\0\x05" + request[6:8] + b"\x02\0" + bytes([len(connections)]))
            writer.close()

        async with await asyncio.start_server(serve, "127.0.0.1", 0) as server:
            adapter = build(tcp(server.sockets[0].getsockname()[1]), [{"name": "r", "address": 7}])
            await adapter.open()
            for number in range(1, 6):
                assert (await read(adapter))["r"] == number
                await asyncio.sleep(0.02)
            assert len(connections) == 5
            await adapter.close()

    asyncio.run(main())


def test_a_device_that_dies_while_it_is_asked_is_noticed_without_any_timeout(tmp_path: Path) -> None:
    async def main() -> None:
        with libmodbus(tmp_path) as device:
            adapter = build(tcp(device.port), [{"name": "r", "address": 7}])
            await adapter.open()
            device.stall()
            reading = asyncio.create_task(read(adapter, timeout_s=60))
            await asyncio.sleep(0.05)
            device.kill()
            with pytest.raises(LinkLost, match="closed the connection") as lost:
                await reading
            assert lost.value.hint == "did it restart? Many devices allow only a few connections"
            await adapter.close()

    asyncio.run(main())


def test_a_stalled_device_never_hands_out_an_old_value(tmp_path: Path) -> None:
    """SIGSTOP: the kernel goes on accepting connections and requests, and the device answers them all when it wakes up."""

    async def main() -> None:
        with libmodbus(tmp_path) as device:
            adapter = build(tcp(device.port), [{"name": "a", "address": 7}, {"name": "b", "address": 90}])
            await adapter.open()
            for _ in range(5):
                device.stall()
                with pytest.raises(TimeoutError):
                    await read(adapter, timeout_s=0.05)
                with pytest.raises(LinkLost, match="no answer"):
                    await read(adapter)
                await reopen(adapter)  # the kernel takes the connection
                with pytest.raises(TimeoutError):
                    await read(adapter, timeout_s=0.05)
                device.go_on()
                await reopen(adapter)
                for _ in range(3):
                    values = await read(adapter)
                    answers = len(device.requests()) & 0xFF
                    assert (values["a"], values["b"]) == (7 << 8 | answers - 1 & 0xFF, 90 << 8 | answers)
            await adapter.close()

    asyncio.run(main())


def test_late_answers_over_tcp_are_never_taken_for_another() -> None:
    """The late answer comes in two halves, the second one when the next request is out already. In its data stands what looks
    like an answer to that request."""
    late = bytearray()
    connections = 0

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        nonlocal connections, late
        connections += 1
        while header := await reader.read(6):
            request = await reader.readexactly(int.from_bytes(header[4:6], "big"))
            if connections == 1 and not late:
                fake = (
                    (int.from_bytes(header[:2], "big") + 1).to_bytes(2, "big") + b"\0\0\0\x05" + registers_answer(request, [666])
                )
                late = bytearray(header[:4] + b"\0\x0e" + request[:2] + b"\x0b" + fake)
                writer.write(late[:9])
            elif connections == 1:
                writer.write(late[9:])
            else:
                writer.write(header[:4] + b"\0\x05" + registers_answer(request, [1]))
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        line = Line("shared")
        options = tcp(server.sockets[0].getsockname()[1])
        adapter, other = (build(options, [{"name": "a", "address": 0}], line, name) for name in ("one", "other"))
        await adapter.open()
        await other.open()
        with pytest.raises(TimeoutError):
            await read(adapter, timeout_s=0.05)
        assert await read(other) == {"a": 1}
        await adapter.close()
        await other.close()
        server.close()

    asyncio.run(main())
    assert connections == 2


@pytest.mark.parametrize("found", [0, 1, 5])
def test_an_answer_of_another_length_is_refused(found: int) -> None:
    async def main() -> None:
        async with scripted_tcp(lambda request: [(0.0, registers_answer(request, [1] * found))]) as port:
            adapter = build(tcp(port), [{"name": "a", "address": 0, "type": "float32"}])
            await adapter.open()
            with pytest.raises(LinkLost, match=f"unit 1 answered {found} values for 2 asked"):
                await read(adapter)
            with pytest.raises(LinkLost):
                await read(adapter)
            await adapter.close()

    asyncio.run(main())


def test_an_answer_to_another_function_is_refused() -> None:
    def reply(request: bytes) -> list[tuple[float, bytes]]:
        return [(0.0, registers_answer(bytes([request[0], 4]), [1, 1]))]

    async def main() -> None:
        async with scripted_tcp(reply) as port:
            adapter = build(tcp(port), [{"name": "a", "address": 0, "type": "float32"}])
            await adapter.open()
            with pytest.raises(LinkLost, match=r"answered \(function, transaction\) \(4, 1\) for \(3, 1\)"):
                await read(adapter)
            await adapter.close()

    asyncio.run(main())


def test_an_answer_without_the_number_of_its_request_is_refused() -> None:
    """pymodbus takes transaction 0 for an answer to anything."""

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        while request := await reader.read(12):
            writer.write(b"\0\0\0\0\0\x05" + registers_answer(request[6:], [1]))
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        adapter = build(tcp(server.sockets[0].getsockname()[1]), [{"name": "a", "address": 0}])
        await adapter.open()
        with pytest.raises(LinkLost, match=r"\(3, 0\) for \(3, 1\)"):
            await read(adapter)
        await adapter.close()
        server.close()

    asyncio.run(main())


def test_garbage_ends_the_connection_and_is_no_value() -> None:
    async def main() -> None:
        async with scripted_tcp(lambda request: [(0.0, b"\x01\x55garbage!")]) as port:
            adapter = build(tcp(port), [{"name": "a", "address": 0}])
            asyncio.get_running_loop().set_exception_handler(lambda loop, context: None)
            await adapter.open()
            with pytest.raises(LinkLost):
                await read(adapter)
            await adapter.close()

    asyncio.run(main())


@pytest.mark.parametrize("code", [10, 11])
def test_a_unit_behind_a_gateway_that_does_not_answer_is_a_lost_link(code: int) -> None:
    async def main() -> None:
        async with scripted_tcp(lambda request: [(0.0, exception_answer(request, code))]) as port:
            adapter = build(tcp(port, unit_id=7), [{"name": "a", "address": 0}])
            await adapter.open()
            with pytest.raises(LinkLost, match="unit 7: Modbus exception"):
                await read(adapter)
            await adapter.close()

    asyncio.run(main())


def test_a_silent_unit_does_not_break_its_neighbour_behind_the_same_address() -> None:
    def reply(request: bytes) -> list[tuple[float, bytes]]:
        unit_id, _, count = asked(request)
        return [] if unit_id == 2 else [(0.0, registers_answer(request, [unit_id] * count))]

    async def main() -> None:
        async with scripted_tcp(reply) as port:
            line = Line("shared")
            good, silent = (build(tcp(port, unit_id=n), [{"name": "a", "address": 0}], line, f"unit{n}") for n in (1, 2))
            assert type(good).line("one", good.context.options) == type(silent).line("two", silent.context.options)
            await good.open()
            await silent.open()
            for _ in range(5):
                with pytest.raises(TimeoutError):
                    await read(silent, timeout_s=0.02)
                assert await read(good) == {"a": 1}
                await reopen(silent)
                assert await read(good) == {"a": 1}
            await silent.close()
            assert await read(good) == {"a": 1}
            await good.close()
            assert line.users == 0

    asyncio.run(main())


def test_requests_leave_at_once_and_one_at_a_time(tmp_path: Path) -> None:
    """TCP_NODELAY is set, nothing is asked before the last answer is there, nothing is asked twice."""
    unasked: list[bytes] = []

    async def serve(reader: asyncio.StreamReader, writer: asyncio.StreamWriter) -> None:
        for _ in range(5):
            request = await reader.readexactly(12)
            with contextlib.suppress(TimeoutError):
                async with asyncio.timeout(0.01):
                    unasked.append(await reader.read(12))
            answer = registers_answer(request[6:], [asked(request[6:])[1]])
            writer.write(request[:4] + len(answer).to_bytes(2, "big") + answer)
        writer.close()

    async def main() -> None:
        server = await asyncio.start_server(serve, "127.0.0.1", 0)
        options = tcp(server.sockets[0].getsockname()[1], gap_registers_max=0)
        adapter = build(options, [{"name": f"r{n}", "address": 10 * n} for n in range(5)])
        await adapter.open()
        client = adapter.context.line.shared._client
        assert client.ctx.transport.get_extra_info("socket").getsockopt(socket.IPPROTO_TCP, socket.TCP_NODELAY) == 1
        assert (client.ctx.retries, client.ctx.comm_params.reconnect_delay) == (0, 0)
        assert await read(adapter) == {f"r{n}": 10 * n for n in range(5)}
        await adapter.close()
        server.close()

    asyncio.run(main())
    assert unasked == []


def test_close_ends_a_read_that_waits() -> None:
    async def main() -> None:
        async with scripted_tcp(lambda request: []) as port:
            adapter = build(tcp(port), [{"name": "a", "address": 0}])
            await adapter.open()
            reading = asyncio.create_task(adapter.read())
            await asyncio.sleep(0.02)
            await adapter.close()
            with pytest.raises(LinkLost, match="was closed"):
                await reading

    asyncio.run(main())


def test_close_after_a_failed_open_and_twice() -> None:
    async def main() -> None:
        with socket.socket() as taken:
            taken.bind(("127.0.0.1", 0))
            adapter = build(tcp(taken.getsockname()[1]), [{"name": "a", "address": 0}])
            await adapter.close()
            with pytest.raises(LinkLost):
                await adapter.open()
            await adapter.close()
            await adapter.close()
            assert adapter.context.line.users == 0

    asyncio.run(main())


def test_a_missing_library_is_said_with_what_to_type(monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setitem(sys.modules, "pymodbus", None)

    async def main() -> None:
        with pytest.raises(Unusable, match=r"pip install 'edge-runtime\[modbus\]'"):
            await build(tcp(502), [{"name": "a", "address": 0}]).open()

    asyncio.run(main())


def test_another_release_of_the_library_is_refused(monkeypatch: pytest.MonkeyPatch) -> None:
    """Its minor releases change what we build on."""
    monkeypatch.setattr("pymodbus.__version__", "3.17.0")

    async def main() -> None:
        with pytest.raises(Unusable, match=r"pymodbus 3\.17\.0 is installed, 3\.16 is needed"):
            await build(tcp(502), [{"name": "a", "address": 0}]).open()

    asyncio.run(main())
