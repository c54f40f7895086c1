"""The Modbus adapter on a serial line: against libmodbus over a socat pty pair, and against a device whose every byte the test
holds. An RTU answer carries nothing that says which request it answers: most of these tests are about late ones."""

from __future__ import annotations

import asyncio
import random
from pathlib import Path
from typing import Any

import pytest
from modbus_devices import (
    asked,
    build,
    exception_answer,
    libmodbus_rtu,
    read,
    registers_answer,
    reopen,
    reopen_until_there,
    scripted_serial,
    serial_cable,
)

from edge_adapters.modbus_link import CANARY_LENGTHS
from edge_runtime.adapter import Line, LinkLost, Unusable


def rtu(port: str, **more: Any) -> dict[str, Any]:
    """Parity none: a pty has no parity."""
    return {"serial": port, "parity": "none", "quiet_s": 0.01, **more}


def test_libmodbus_on_a_serial_line_is_read(tmp_path: Path) -> None:
    points = [
        {"name": "r", "address": 7},
        {"name": "f", "address": 110, "type": "float32"},
        {"name": "coil", "number": 4},
        {"name": "input", "number": 30002},
    ]

    async def main(port: str) -> None:
        adapter = build(rtu(port, unit_id=5), points)
        await adapter.open()
        for _ in range(3):
            values = await read(adapter)
            assert values["r"] >> 8 == 7
            assert (values["coil"], values["input"]) == (True, 1001)
            assert values["f"] == pytest.approx(123.456, abs=1e-5)
        await adapter.close()

    with serial_cable(tmp_path) as cable, libmodbus_rtu(tmp_path, cable.theirs, unit_id=5):
        asyncio.run(main(cable.ours))


def test_a_stalled_unit_never_hands_out_an_old_or_a_foreign_value(tmp_path: Path) -> None:
    """SIGSTOP: the line keeps the requests, and the unit answers them all, one after the other, when it wakes up."""

    async def main() -> None:
        with serial_cable(tmp_path) as cable, libmodbus_rtu(tmp_path, cable.theirs) as device:
            adapter = build(rtu(cable.ours, gap_registers_max=0), [{"name": "a", "address": 7}, {"name": "b", "address": 90}])
            await adapter.open()
            for stalls in (1, 2, 12):
                device.stall()
                with pytest.raises(TimeoutError):
                    await read(adapter, 0.05)
                for _ in range(stalls - 1):
                    with pytest.raises(TimeoutError):
                        await reopen(adapter, 0.05)
                with pytest.raises(LinkLost):
                    await read(adapter)
                reopening = asyncio.create_task(reopen(adapter))
                await asyncio.sleep(0.03)  # the canary is out
                device.go_on()
                await reopening
                for _ in range(5):
                    values = await read(adapter)
                    answers = len(device.requests())
                    assert (values["a"], values["b"]) == (7 << 8 | answers - 1 & 0xFF, 90 << 8 | answers & 0xFF)
            await adapter.close()

    asyncio.run(main())


@pytest.mark.parametrize("seed", range(2))
def test_late_answers_are_never_taken_for_another(seed: int) -> None:
    """Every sixth answer comes late: while the line is kept quiet, while the canary is asked, or long after. The blocks have one
    length, so only the order of things can tell whose an answer is."""
    dice = random.Random(seed)
    count = 0

    def reply(request: bytes) -> list[tuple[float, bytes]]:
        nonlocal count
        count += 1
        _, address, size = asked(request)
        late_s = dice.uniform(0.02, 0.12) if dice.random() < 1 / 6 else 0.0
        if dice.random() < 0.05:
            return []
        return [(late_s, registers_answer(request, [address << 8 | count & 0xFF] * size))]

    async def main() -> None:
        stalls = good = 0
        with scripted_serial(reply) as port:
            points = [{"name": f"r{n}", "address": 3 * n} for n in range(4)]
            adapter = build(rtu(port, baudrate=115200, gap_registers_max=0), points)
            await reopen_until_there(adapter, 0.25)
            turn = 0
            while turn < 40 or min(stalls, good) < 5:
                turn += 1
                try:
                    values = await read(adapter, timeout_s=0.06)
                    good += 1
                    assert [value >> 8 for value in values.values()] == [3 * n for n in range(4)]
                    assert [value & 0xFF for value in values.values()] == [count - 3 + n & 0xFF for n in range(4)]
                except TimeoutError:
                    stalls += 1
                    await reopen_until_there(adapter, 0.25)
            await adapter.close()

    asyncio.run(main())


def test_a_timeout_in_the_moment_of_the_answer_is_a_timeout() -> None:
    """asyncio.wait_for of Python 3.11, which pymodbus uses, answers instead of being cancelled: then nothing would ever end the
    next request, because a timeout strikes once."""

    def reply(request: bytes) -> list[tuple[float, bytes]]:
        _, address, count = asked(request)
        return [(0.0, registers_answer(request, [address] * count))] if address == 0 else []

    async def main() -> None:
        with scripted_serial(reply) as port:
            adapter = build(rtu(port, gap_registers_max=0), [{"name": "a", "address": 0}, {"name": "silent", "address": 9}])
            await adapter.open()
            link = adapter.context.line.shared
            reading = asyncio.create_task(read(adapter, timeout_s=60))
            link._client.ctx.trace_packet = lambda sending, data: (sending or reading.cancel(), data)[1]
            done, _ = await asyncio.wait([reading], timeout=5)
            assert done
            assert reading.cancelled()
            with pytest.raises(LinkLost):
                await read(adapter)
            await adapter.close()

    asyncio.run(main())


def test_a_unit_that_was_away_for_long_may_answer_everything_at_once() -> None:
    """More requests are open than there are lengths to tell them apart: then only silence tells that all answers are out."""
    away, waiting = False, list[bytes]()

    def reply(request: bytes) -> list[tuple[float, bytes]]:
        waiting.append(request)
        if away:
            return []
        answers = [(0.004, registers_answer(each, [asked(each)[1]] * asked(each)[2])) for each in waiting]
        waiting.clear()
        return answers

    async def main() -> None:
        nonlocal away
        with scripted_serial(reply) as port:
            points = [{"name": f"r{n}", "address": n} for n in (10, 20)]
            adapter = build(rtu(port, baudrate=115200, gap_registers_max=0), points)
            await adapter.open()
            away = True
            with pytest.raises(TimeoutError):
                await read(adapter, timeout_s=0.03)
            for _ in range(CANARY_LENGTHS - 1):
                with pytest.raises(TimeoutError):
                    await reopen(adapter, timeout_s=0.03)
            away = False
            await reopen(adapter)
            for _ in range(3):
                assert await read(adapter) == {"r10": 10, "r20": 20}
            await adapter.close()

    asyncio.run(main())


@pytest.mark.parametrize(("refuses_canary", "slow_s"), [(False, 0.004), (False, 0.05), (True, 0.004)])
def test_a_late_exception_does_not_shift_the_answers_after_it(refuses_canary: bool, slow_s: float) -> None:
    """An exception has no length that would tell whose it is: here it comes when the canary is asked, and the canary's own answer
    (which may be an exception too) a moment later."""
    stalls, open_answers = False, 0

    def reply(request: bytes) -> list[tuple[float, bytes]]:
        nonlocal open_answers
        _, address, count = asked(request)
        if stalls and address == 30:
            open_answers += 1
            return []
        refused = refuses_canary and count > 1
        answers = [(0.0, exception_answer(request, 4))] * open_answers
        open_answers = 0
        mine = exception_answer(request, 2) if refused else registers_answer(request, [address] * count)
        return [*answers, (slow_s if count > 1 else 0.0, mine)]

    async def main() -> None:
        nonlocal stalls
        with scripted_serial(reply) as port:
            points = [{"name": f"r{n}", "address": n} for n in (10, 20, 30)]
            adapter = build(rtu(port, gap_registers_max=0, quiet_s=0.03), points)
            await adapter.open()
            for _ in range(3):
                stalls = True
                with pytest.raises(TimeoutError):
                    await read(adapter, timeout_s=0.1)
                stalls = False
                await reopen(adapter)
                for _ in range(3):
                    assert await read(adapter) == {"r10": 10, "r20": 20, "r30": 30}
            await adapter.close()

    asyncio.run(main())


def test_an_answer_that_an_earlier_run_of_the_program_left_open_is_not_taken() -> None:
    """The first thing on the line is the late answer to a request of somebody who is gone; it has our block's length."""
    first = True

    def reply(request: bytes) -> list[tuple[float, bytes]]:
        nonlocal first
        _, _, count = asked(request)
        mine = (0.0, registers_answer(request, [1] * count))
        if first:
            first = False
            return [(0.03, registers_answer(request, [666])), mine]
        return [mine]

    async def main() -> None:
        with scripted_serial(reply) as port:
            adapter = build(rtu(port), [{"name": "a", "address": 0}])
            await adapter.open()
            assert await read(adapter) == {"a": 1}
            await adapter.close()

    asyncio.run(main())


@pytest.mark.parametrize("found", [1, 3, 5])
def test_an_answer_of_another_length_is_refused(found: int) -> None:
    def reply(request: bytes) -> list[tuple[float, bytes]]:
        _, _, count = asked(request)
        return [(0.0, registers_answer(request, [1] * (found if count == 2 else count)))]

    async def main() -> None:
        with scripted_serial(reply) as port:
            adapter = build(rtu(port), [{"name": "a", "address": 0, "type": "float32"}])
            await adapter.open()
            with pytest.raises(LinkLost, match=f"unit 1 answered {found} values for 2 asked"):
                await read(adapter)
            await adapter.close()

    asyncio.run(main())


def test_a_silent_unit_does_not_disturb_the_others_on_the_line() -> None:
    def reply(request: bytes) -> list[tuple[float, bytes]]:
        unit_id, _, count = asked(request)
        return [] if unit_id == 2 else [(0.0, registers_answer(request, [unit_id] * count))]

    async def main() -> None:
        with scripted_serial(reply) as port:
            line = Line("shared")
            one, silent, three = (build(rtu(port, unit_id=n), [{"name": "a", "address": 0}], line, f"u{n}") for n in (1, 2, 3))
            await one.open()
            await three.open()
            client = line.shared._client
            for _ in range(4):
                with pytest.raises(TimeoutError):
                    await reopen(silent, 0.05)
                assert (await read(one), await read(three)) == ({"a": 1}, {"a": 3})
                await silent.close()
            assert line.shared._client is client
            await one.close()
            assert await read(three) == {"a": 3}
            await three.close()
            assert (line.users, line.shared._client) == (0, None)

    asyncio.run(main())


def test_two_device_entries_of_one_unit_never_get_each_others_late_answer() -> None:
    """A fast and a slow group of points of the same unit, one register each."""
    late_s = 0.0

    def reply(request: bytes) -> list[tuple[float, bytes]]:
        _, address, count = asked(request)
        return [(late_s if address == 1 else 0.0, registers_answer(request, [address] * count))]

    async def main() -> None:
        nonlocal late_s
        with scripted_serial(reply) as port:
            line = Line("shared")
            fast, slow = (build(rtu(port), [{"name": "a", "address": n}], line, f"group{n}") for n in (1, 2))
            await fast.open()
            await slow.open()
            for _ in range(3):
                late_s = 0.08
                with pytest.raises(TimeoutError):
                    await read(fast, timeout_s=0.02)
                with pytest.raises(LinkLost):
                    await read(slow)
                late_s = 0.0
                await reopen(slow)
                assert await read(slow) == {"a": 2}
                await reopen(fast)
                assert await read(fast) == {"a": 1}
            await fast.close()
            await slow.close()

    asyncio.run(main())


def test_a_cable_that_is_pulled_is_a_lost_link_and_comes_back(tmp_path: Path) -> None:
    async def main() -> None:
        with serial_cable(tmp_path) as cable:
            adapter = build(rtu(cable.ours), [{"name": "r", "address": 7}])
            with libmodbus_rtu(tmp_path, cable.theirs):
                await adapter.open()
                await read(adapter)
                cable.unplug()
                with pytest.raises(LinkLost):
                    await read(adapter)
            with pytest.raises(LinkLost, match="cannot open"):
                await reopen(adapter)
            cable.plug_in()
            with libmodbus_rtu(tmp_path, cable.theirs):
                await reopen_until_there(adapter)
                assert (await read(adapter))["r"] >> 8 == 7
            await adapter.close()

    asyncio.run(main())


def test_a_device_that_is_pulled_while_it_is_asked_is_noticed_without_any_timeout(tmp_path: Path) -> None:
    async def main() -> None:
        with serial_cable(tmp_path) as cable, libmodbus_rtu(tmp_path, cable.theirs) as device:
            adapter = build(rtu(cable.ours), [{"name": "r", "address": 7}])
            await adapter.open()
            device.stall()
            reading = asyncio.create_task(read(adapter, timeout_s=60))
            await asyncio.sleep(0.05)
            cable.unplug()
            with pytest.raises(LinkLost, match="port is gone"):
                await reading
            await adapter.close()

    asyncio.run(main())


def test_an_absent_serial_port_is_said_at_once(tmp_path: Path) -> None:
    async def main() -> None:
        adapter = build(rtu(str(tmp_path / "ttyUSB9")), [{"name": "r", "address": 7}])
        with pytest.raises(LinkLost, match=r"cannot open .*ttyUSB9"):
            await adapter.open()
        await adapter.close()

    asyncio.run(main())


def test_settings_that_the_port_does_not_know_are_no_foreign_error() -> None:
    """A pty has no parity: where the system says so, it says it with termios.error, which is no OSError."""

    async def main() -> None:
        with scripted_serial(lambda request: [(0.0, registers_answer(request, [1] * asked(request)[2]))]) as port:
            adapter = build(rtu(port, parity="even"), [{"name": "a", "address": 0}])
            try:
                await adapter.open()
            except LinkLost as error:
                assert error.hint == "does the port know 19200 baud, parity even, stop bits 1?"
            await adapter.close()

    asyncio.run(main())


def test_devices_on_one_port_must_agree_on_its_settings(tmp_path: Path) -> None:
    async def main() -> None:
        with scripted_serial(lambda request: [(0.0, registers_answer(request, [1]))]) as port:
            line = Line("shared")
            one = build(rtu(port), [{"name": "a", "address": 0}, {"name": "b", "address": 100}], line)
            other = build(rtu(port, baudrate=9600, unit_id=2), [{"name": "a", "address": 0}], line)
            await other.close()
            with pytest.raises(LinkLost):
                await one.open()
            with pytest.raises(Unusable, match="differ in baudrate"):
                await other.open()
            await other.close()
            await one.close()

    asyncio.run(main())
