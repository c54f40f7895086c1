"""bus/host.py: the hosted broker, as a real child process."""

from __future__ import annotations

import asyncio
import errno
import os
import shutil
import signal
import socket
import subprocess
import sys
import time
from collections.abc import AsyncIterator, Awaitable, Callable
from contextlib import asynccontextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import free_port, mosquitto, save_now
from campaigns import fill, small_disk
from waiting import until

from edge_runtime.board.system import SystemClock, SystemDice
from edge_runtime.bus import host, programs
from edge_runtime.bus import mosquitto as told
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.host import BrokerHost
from edge_runtime.config import Broker
from edge_runtime.ports import Address, BrokerError

BUS = PahoBus()


class Log:
    def __init__(self) -> None:
        self.lines: list[tuple[str, dict[str, Any]]] = []

    def warning(self, event: str, **words: Any) -> None:
        self.lines.append((event, words))

    error = warning


def broker_host(folder: Path, log: Log | None = None, **settings: Any) -> BrokerHost:
    changed = {"mode": "hosted", "url": f"mqtt://127.0.0.1:{free_port()}", **settings}
    return BrokerHost(Broker.model_validate(changed), folder / "broker", SystemClock(), SystemDice(), log or Log())


@asynccontextmanager
async def hosted(one: BrokerHost) -> AsyncIterator[Address]:
    address = await one.start()
    supervisor = asyncio.create_task(one.run())
    try:
        yield address
    finally:
        await one.stop()
        await asyncio.wait_for(supervisor, 20)


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 30), debug=True)


def needs(program: str) -> None:
    if program == "mosquitto":
        if shutil.which("mosquitto", path=programs.PLACES) is None:
            pytest.skip("MISSING SYSTEM PACKAGE: mosquitto")
    else:
        pytest.importorskip("iotcore", reason="MISSING PACKAGE: iotcore")


@pytest.mark.parametrize("program", ["mosquitto", "iotcore"])
def test_it_serves_and_is_gone_after_stop(tmp_path: Path, program: str) -> None:
    needs(program)

    async def main() -> None:
        one = broker_host(tmp_path, program=program)
        async with hosted(one) as address:
            assert one.program.startswith(program + " ")
            assert ("nothing survives" in one.program) == (program == "iotcore")
            client = await BUS.connect(address)
            await client.subscribe("t")
            await client.publish("t", bytes(2_000_000), qos=1)  # a batch is larger than iotcore's default limit
            assert len((await client.receive()).payload) == 2_000_000
            for _ in range(50):
                await client.publish("other", b"", qos=1)
            assert (tmp_path / "broker" / "broker.log").stat().st_size < 1_000  # a log that grows with traffic fills the disk
            await client.close()
        await one.stop()
        with pytest.raises(BrokerError, match="refused"):
            await BUS.connect(address)

    run(main)


def test_the_broker_is_told_no_secret_of_ours(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mosquitto")
    monkeypatch.setenv("EDGE_RUNTIME_SECRET_CLOUD", "open-sesame")

    async def main() -> bytes:
        one = broker_host(tmp_path, Log(), program="mosquitto")
        async with hosted(one):
            assert one._child is not None
            return await asyncio.to_thread(Path(f"/proc/{one._child.pid}/environ").read_bytes)

    environment = asyncio.run(main())
    assert b"PATH=" in environment
    assert b"open-sesame" not in environment


def test_mosquitto_keeps_a_session_over_a_kill_and_is_started_again(tmp_path: Path) -> None:
    needs("mosquitto")

    async def main() -> None:
        log = Log()
        one = broker_host(tmp_path, log, program="mosquitto")
        async with hosted(one) as address:
            keeper = await BUS.connect(Address(host=address.host, port=address.port, client_id="k", clean=False))
            await keeper.subscribe("t")
            await keeper.close()
            other = await BUS.connect(address)
            for each in range(2_000):  # more than mosquitto's default queue
                await other.publish("t", b"%d" % each, qos=1)
            child = one._child
            assert child is not None
            save_now(child.pid, tmp_path / "broker" / "mosquitto.db")
            os.kill(child.pid, signal.SIGKILL)
            with pytest.raises(BrokerError):
                await other.receive()
            await other.close()
            again = await connect_again(Address(host=address.host, port=address.port, client_id="k", clean=False))
            assert again.session_present
            for each in range(2_000):
                message = await again.receive()
                assert message.payload == b"%d" % each
                again.acknowledge(message)
            await again.close()
        assert [event for event, _ in log.lines] == ["broker_died"]
        assert (tmp_path / "broker" / "mosquitto.db").exists()

    run(main)


async def connect_again(address: Address) -> Any:
    while True:
        try:
            return await BUS.connect(address)
        except BrokerError:
            await asyncio.sleep(0.02)


def test_a_damaged_persistence_file_is_set_aside_and_not_for_ever_fatal(tmp_path: Path) -> None:
    needs("mosquitto")
    (tmp_path / "broker").mkdir()
    (tmp_path / "broker" / "mosquitto.db").write_bytes(b"\x00garbage" * 40)

    async def main() -> None:
        log = Log()
        async with hosted(broker_host(tmp_path, log)) as address:
            await (await BUS.connect(address)).close()
        assert "damaged" in log.lines[0][0]
        assert (tmp_path / "broker" / "mosquitto.broken-0").read_bytes() == b"\x00garbage" * 40

    run(main)


def test_a_full_disk_is_told_and_waited_for(tmp_path: Path) -> None:
    needs("mosquitto")

    async def main(disk: Path) -> None:
        foreign = fill(disk)
        one = broker_host(disk, program="mosquitto")
        with pytest.raises(BrokerError, match="cannot be written: No space left on device") as told:
            await one.start()
        assert "full" in told.value.hint
        foreign.unlink()
        async with hosted(one) as address:
            await (await BUS.connect(address)).close()

    with small_disk(tmp_path / "data") as disk:
        run(lambda: main(disk))


def test_a_folder_that_somebody_removes_is_made_again(tmp_path: Path) -> None:
    needs("mosquitto")
    one = broker_host(tmp_path, program="mosquitto")

    async def main() -> None:
        async with hosted(one) as address:
            shutil.rmtree(tmp_path / "broker")
            await asyncio.sleep(1.5 * host.LOOK_S)
            assert one._child is not None
            one._child.kill()
            await one._child.wait()
            await (await connect_again(address)).close()

    run(main)


def test_without_a_free_descriptor_it_is_tried_again(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mosquitto")

    def none_left(_flags: int) -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        log = Log()
        one = broker_host(tmp_path, log)
        async with hosted(one) as address:
            with monkeypatch.context() as patched:
                patched.setattr(os, "pipe2", none_left)
                assert one._child
                one._child.kill()
                await until(lambda: "broker_does_not_start" in [event for event, _ in log.lines])
            causes = [words["cause"] for event, words in log.lines if event == "broker_does_not_start"]
            assert "Too many open files" in causes[0]
            await until(lambda: one._child is not None and one._child.returncode is None)
            await (await BUS.connect(address)).close()

    run(main)


def test_without_a_free_descriptor_it_does_not_start(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mosquitto")

    def none_left() -> tuple[int, int]:
        raise OSError(errno.EMFILE, os.strerror(errno.EMFILE))

    async def main() -> None:
        one = broker_host(tmp_path)
        with monkeypatch.context() as patched:
            patched.setattr(os, "pipe", none_left)
            with pytest.raises(BrokerError, match="Too many open files"):
                await one.start()
        await one.stop()

    run(main)


def descriptors() -> int:
    return len(list(Path("/proc/self/fd").iterdir()))


def test_it_holds_no_more_descriptors_after_many_starts(tmp_path: Path) -> None:
    needs("mosquitto")

    async def main() -> None:
        one = broker_host(tmp_path)
        none = descriptors()
        async with hosted(one):
            some = descriptors()
            for _ in range(3):
                child = one._child
                assert child
                one._restarting = True  # at once
                child.terminate()
                await until(lambda child=child: one._child is not child and one._child is not None)  # type: ignore[misc]
            assert descriptors() == some
        assert descriptors() == none

    run(main)


def test_a_port_that_is_taken(tmp_path: Path) -> None:
    """... above all by another broker: it must not be taken for ours."""

    async def main() -> None:
        with mosquitto(tmp_path) as other:
            with pytest.raises(BrokerError, match="in use") as caught:
                await broker_host(tmp_path, url=other.url).start()
            assert "external" in caught.value.hint

    run(main)


def test_neither_program_is_there(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv("PATH", str(tmp_path))
    monkeypatch.setattr(programs, "PLACES", str(tmp_path))
    monkeypatch.setitem(sys.modules, "iotcore", None)
    monkeypatch.setattr(programs.importlib.util, "find_spec", lambda _name: None)

    async def main() -> None:
        for program, says in (("auto", "mosquitto and iotcore"), ("mosquitto", "mosquitto not"), ("iotcore", "iotcore not")):
            with pytest.raises(BrokerError, match=says) as caught:
                await broker_host(tmp_path, program=program).start()
            assert "install" in caught.value.hint

    run(main)


def test_a_program_that_ends_at_once_is_an_error_with_its_own_words(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    needs("mosquitto")
    monkeypatch.setattr(told, "_SETTINGS", told._SETTINGS + "no_such_setting 1\n")

    async def main() -> None:
        with pytest.raises(BrokerError, match="no_such_setting"):
            await broker_host(tmp_path, program="mosquitto").start()

    run(main)


def own_address() -> str:
    """Of this machine on the network; asking for the way sends no packet."""
    with socket.socket(socket.AF_INET, socket.SOCK_DGRAM) as asks:
        try:
            asks.connect(("192.0.2.1", 9))
        except OSError:
            pytest.skip("MISSING: a network interface beside loopback")
        return str(asks.getsockname()[0])


@pytest.mark.parametrize("program", ["mosquitto", "iotcore"])
@pytest.mark.parametrize("listen", ["0.0.0.0", "own", "::"])
def test_opened_to_the_network_it_says_so_at_every_start(tmp_path: Path, program: str, listen: str) -> None:
    needs(program)
    here = own_address()

    async def main() -> None:
        port, log = free_port(), Log()
        for starts in (1, 2):
            one = broker_host(
                tmp_path, log, program=program, listen=here if listen == "own" else listen, url=f"mqtt://127.0.0.1:{port}"
            )
            async with hosted(one) as address:
                near = ["127.0.0.1"] if program == "mosquitto" or listen != "own" else []
                for each in (address.host, here, *near):
                    await (await BUS.connect(Address(host=each, port=port))).close()
            assert [event for event, _ in log.lines] == starts * ["broker_open_to_network"]
        assert "read and write everything" in log.lines[0][1]["cause"]

    run(main)


def test_on_loopback_nobody_from_the_network_comes_in(tmp_path: Path) -> None:
    here = own_address()

    async def main() -> None:
        log = Log()
        async with hosted(broker_host(tmp_path, log)) as address:
            with pytest.raises(BrokerError, match="refused"):
                await BUS.connect(Address(host=here, port=address.port))
        assert log.lines == []

    run(main)


def test_an_address_of_another_machine_cannot_be_listened_on(tmp_path: Path) -> None:
    async def main() -> None:
        with pytest.raises(BrokerError, match="cannot assign") as caught:
            await broker_host(tmp_path, listen="192.0.2.1").start()
        assert "of this machine" in caught.value.hint

    run(main)
    with pytest.raises(BrokerError, match="no address"):
        broker_host(tmp_path, listen="everywhere")


@pytest.mark.parametrize("mode", ["hosted", "auto"])
def test_what_it_keeps_from_one_time_to_the_next(tmp_path: Path, mode: str) -> None:
    """A pinned broker everything; one that was hosted elsewhere meanwhile nothing, or old news would pass for new."""
    needs("mosquitto")

    async def main() -> None:
        port = free_port()
        for time_of_hosting in (1, 2):
            one = broker_host(tmp_path, program="mosquitto", mode=mode, url=f"mqtt://127.0.0.1:{port}")
            async with hosted(one) as address:
                client = await BUS.connect(Address(host=address.host, port=port, client_id="c", clean=False))
                assert client.session_present == (time_of_hosting == 2 and mode == "hosted")
                await client.subscribe("t")
                await client.publish("t", b"kept", qos=1, retain=True)
                await client.close()

    run(main)


@pytest.mark.parametrize("url", ["mqtt://0.0.0.0:1", "mqtts://127.0.0.1:1", "mqtt://me:pw@127.0.0.1:1", "mqtt://some.host:1"])
def test_it_is_never_open_to_the_network(tmp_path: Path, url: str) -> None:
    with pytest.raises(BrokerError, match="loopback"):
        broker_host(tmp_path, url=url)


@pytest.mark.parametrize("program", ["mosquitto", "iotcore"])
def test_the_child_dies_with_its_parent(tmp_path: Path, program: str) -> None:
    needs(program)
    port = free_port()
    script = f"""
import asyncio, os, signal, sys
sys.path.insert(0, {str(Path(__file__).parent)!r})
from pathlib import Path
from test_bus_host import broker_host
async def main():
    await broker_host(Path({str(tmp_path)!r}), program={program!r}, url="mqtt://127.0.0.1:{port}").start()
    os.kill(os.getpid(), signal.SIGKILL)
asyncio.run(main())
"""
    tests = str(Path(__file__).parent.parent)
    done = subprocess.run([sys.executable, "-c", script], env={**os.environ, "PYTHONPATH": tests}, capture_output=True)
    assert done.returncode == -signal.SIGKILL, done.stderr.decode()

    async def main() -> None:
        deadline = time.monotonic() + 20
        while time.monotonic() < deadline:
            try:
                await (await BUS.connect(Address(host="127.0.0.1", port=port))).close()
            except BrokerError:
                return
            await asyncio.sleep(0.02)
        pytest.fail("the broker outlived its parent")

    run(main)


def test_stop_before_start_and_twice(tmp_path: Path) -> None:
    async def main() -> None:
        one = broker_host(tmp_path)
        await one.stop()
        await one.stop()

    run(main)
