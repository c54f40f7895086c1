"""`edge-runtime mesh` against a real mosquitto, with gateways that speak as real ones do."""

from __future__ import annotations

import asyncio
import os
import pty
import re
import socket
import sys
from collections.abc import AsyncIterator
from pathlib import Path
from typing import Any

import pytest
from brokers import Broker, free_port, mosquitto
from onlooking import SITE, edge_runtime, gateways, host, peer, play

from edge_runtime import cli
from edge_runtime.bus import presence, topics
from edge_runtime.bus.broker import PahoBus
from edge_runtime.cli.mesh import finding


@pytest.fixture
def broker(tmp_path: Path) -> Any:
    with mosquitto(tmp_path) as running:
        yield running


def test_all_gateways_as_json(broker: Broker) -> None:
    async def scenario() -> None:
        a, b, gone = peer("gateway-1", service_s=0.040), peer("gateway-2"), peer("gateway-3")
        connection = await PahoBus().connect(broker.address())
        await gone.be_born(connection)
        await host(broker, a)
        async with gateways(broker, a, b):
            said = await edge_runtime("mesh", "--broker", broker.url, "--site", SITE, "--json", "--seconds", "2")
        assert said.status == 0, said.error
        assert (said.json["site"], said.json["host"]) == (SITE, "gateway-1")
        one, two, three = said.json["gateways"]
        assert [one["role"], two["role"], three["role"]] == ["host", "guest", "guest"]
        assert [one["state"], two["state"], three["state"]] == ["online", "online", "unproved"]
        assert one["models"] == [{"model": "wear@1", "executed_on": "fake:cpu", "service_ns": 40_000_000, "artefact": "fake.bin"}]
        assert (one["temperature_c"], one["latency_ms"], one["tasks_out"], one["outbox_depth"]) == (51.4, 4.2, 7, 12)
        assert three["seen_s"] is None
        assert three["tasks_in"] is None

    play(scenario)


def test_json_does_not_wait_longer_than_it_has_to(broker: Broker) -> None:
    """Everybody was heard: it ends, long before its limit."""

    async def scenario() -> None:
        async with gateways(broker, peer("gateway-1"), peer("gateway-2")):
            said = await edge_runtime("mesh", "--broker", broker.url, "--json", "--seconds", "3600")
        assert [each["state"] for each in said.json["gateways"]] == ["online", "online"]

    play(scenario)


def test_a_line_for_every_change_where_there_is_no_terminal(broker: Broker) -> None:
    async def scenario() -> None:
        a = peer("gateway-1")
        process = await asyncio.create_subprocess_exec(
            sys.executable, "-m", "edge_runtime", "mesh", "--broker", broker.url, "--site", SITE, "--seconds", "3",
            stdout=asyncio.subprocess.PIPE,
        )  # fmt: skip
        assert process.stdout is not None
        lines = aiter(process.stdout)
        async with gateways(broker, a):
            assert await anext(lines) == f"site plant-1 on 127.0.0.1:{broker.port}\n".encode()
            await _line(lines, "gateway-1 online: guest, wear@1")
            await host(broker, a)
            await _line(lines, "gateway-1 online: host, wear@1")
        connection = await PahoBus().connect(broker.address())
        gone = presence.pack(a.birth(online=False))
        await connection.publish(topics.gateway(SITE, "gateway-1", "status"), gone, qos=1, retain=True)
        await _line(lines, "gateway-1 offline: guest, wear@1")
        await connection.close()
        table = (await process.stdout.read()).decode()
        assert re.search(r"^gateway +role +state", table, re.MULTILINE)
        assert await process.wait() == 0

    play(scenario)


async def _line(lines: AsyncIterator[bytes], wanted: str) -> None:
    async for line in lines:
        if line.decode() == f"{wanted}\n":
            return
    raise AssertionError(f"it ended without saying: {wanted}")


def test_a_live_table_on_a_terminal(broker: Broker) -> None:
    async def scenario() -> str:
        ours, its = pty.openpty()
        async with gateways(broker, peer("gateway-1")):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "edge_runtime", "mesh", "--broker", broker.url, "--seconds", "1.5", stdout=its,
                env={**os.environ, "COLUMNS": "200", "TERM": "xterm"},
            )  # fmt: skip
            os.close(its)
            shown = await asyncio.to_thread(_drain, ours)
            assert await process.wait() == 0
        return shown

    shown = asyncio.run(scenario())
    assert "1 of 1 gateways online" in shown
    assert "\x1b[" in shown  # drawn over itself
    assert "51 C" in shown


def _drain(terminal: int) -> str:
    read = b""
    while True:
        try:
            read += os.read(terminal, 65_536)
        except OSError:
            return read.decode()


def test_the_broker_is_lost_and_found_again(broker: Broker) -> None:
    async def scenario() -> None:
        async with gateways(broker, peer("gateway-1")):
            process = await asyncio.create_subprocess_exec(
                sys.executable, "-m", "edge_runtime", "mesh", "--broker", broker.url, "--site", SITE,
                stdout=asyncio.subprocess.PIPE,
            )  # fmt: skip
            assert process.stdout is not None
            await process.stdout.readline()
            await process.stdout.readline()
            await asyncio.to_thread(broker.kill)
            assert b"the broker is lost" in await process.stdout.readline()
        await asyncio.to_thread(broker.start)
        async with gateways(broker, peer("gateway-9")):
            async for line in process.stdout:
                if line.startswith(b"gateway-9 online"):
                    break
        process.terminate()
        await process.wait()

    play(scenario)


# --- where -----------------------------------------------------------------------------------------------------------


def _gateway_file(folder: Path, text: str) -> str:
    file = folder / "gateway.yaml"
    device = "devices: {press: {adapter: replay, options: {file: x.csv}, points: [{name: temperature, column: 0}]}}"
    file.write_text(f"site: {SITE}\ngateway: gateway-1\n{device}\n{text}\n")
    return str(file)


def test_who_has_no_zeroconf_is_not_told_that_it_was_quiet(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setitem(sys.modules, "zeroconf", None)
    file = _gateway_file(tmp_path, f"broker: {{mode: auto, url: 'mqtt://127.0.0.1:{free_port()}'}}\nmesh: {{}}")
    assert cli.main(["mesh", file]) == 1
    assert "; mDNS: needs zeroconf, edge-runtime[mesh]\n" in capsys.readouterr().err


def test_a_gateways_file_says_where(broker: Broker, tmp_path: Path) -> None:
    """auto: not a broker of another site, though it stands where ours would; then those that `mesh.peers` names."""

    async def scenario() -> None:
        with mosquitto(tmp_path) as other:
            file = _gateway_file(
                tmp_path,
                f"broker: {{mode: auto, url: 'mqtt://127.0.0.1:{other.port}'}}\n"
                f"mesh: {{discovery: 'off', peers: ['127.0.0.1:{free_port()}', '127.0.0.1:{broker.port}']}}",
            )
            stranger = peer("stranger", site="plant-2")
            await host(other, stranger, "plant-2")
            said = await edge_runtime("mesh", file)
            assert said.status == 1
            assert "error: no broker of site plant-1 was found: " in said.error
            assert "no gateway of the site hosts this broker" in said.error
            assert "--identity DIR" in said.error, "one that wants a certificate only cuts the connection"
            a = peer("gateway-1")
            await host(broker, a)
            async with gateways(broker, a):
                said = await edge_runtime("mesh", "--config", file, "--json")
                assert said.status == 0, said.error
                assert said.json["broker"] == f"127.0.0.1:{broker.port}"

    play(scenario)


@pytest.mark.parametrize("mode", ["external", "hosted"])
def test_a_file_with_a_known_broker(broker: Broker, tmp_path: Path, mode: str) -> None:
    file = _gateway_file(tmp_path, f"broker: {{mode: {mode}, url: 'mqtt://127.0.0.1:{broker.port}'}}")

    async def scenario() -> None:
        async with gateways(broker, peer("gateway-1")):
            said = await edge_runtime("mesh", file, "--json")
        assert [each["gateway"] for each in said.json["gateways"]] == ["gateway-1"]

    play(scenario)


def test_what_is_wrong_is_said(broker: Broker, tmp_path: Path) -> None:
    async def scenario() -> None:
        said = await edge_runtime("mesh", "--broker", f"mqtt://127.0.0.1:{free_port()}")
        assert (said.status, said.out) == (1, "")
        assert "connection refused" in said.error
        said = await edge_runtime("mesh", "--broker", broker.url)
        assert "no gateway is, or was, on this broker" in said.error
        said = await edge_runtime("mesh", "--broker", broker.url, "--site", "plant-9")
        assert "no gateway of site plant-9 is, or was, there" in said.error
        said = await edge_runtime("mesh", "--broker", broker.url, "--site", "plant-9", "--seconds", "0.5")
        assert (said.status, said.out) == (1, "")
        assert "no gateway was found within 0.5 s" in said.error
        said = await edge_runtime("mesh", _gateway_file(tmp_path, ""))
        assert "this gateway has no broker" in said.error
        async with gateways(broker, peer("gateway-1"), peer("gateway-1", site="plant-2")):
            said = await edge_runtime("mesh", "--broker", broker.url)
            assert "gateways of more than one site: plant-1, plant-2" in said.error
            assert "hint: say which: --site SITE" in said.error
        assert (await edge_runtime("mesh", "submit")).status == 2

    play(scenario)


def test_garbage_is_counted_and_hides_nobody(broker: Broker) -> None:
    async def scenario() -> None:
        connection = await PahoBus().connect(broker.address())
        for payload in (b"\xff", b"{}", b'{"v":99}'):
            await connection.publish(topics.gateway(SITE, "bad", "status"), payload, qos=1, retain=True)
        async with gateways(broker, peer("gateway-1")):
            said = await edge_runtime("mesh", "--broker", broker.url, "--seconds", "2")
        assert "1 of 1 gateways online, 1 messages that were none" in said.out

    play(scenario)


def test_a_port_that_does_not_speak_mqtt_ends_in_time() -> None:
    with socket.socket() as mute:
        mute.bind(("127.0.0.1", 0))
        mute.listen()
        url = f"mqtt://127.0.0.1:{mute.getsockname()[1]}"
        said = asyncio.run(edge_runtime("mesh", "--broker", url))
    assert said.status == 1
    assert f"no answer within {finding.CONNECT_S_MAX:g} s" in said.error
