"""A gateway is sent to another broker by its configuration: it stays where somebody speaks to it, and comes back from where
nobody does. Real brokers, a real process."""

from __future__ import annotations

import asyncio
import json
import socket
import subprocess
from dataclasses import replace
from pathlib import Path
from typing import Any

import msgspec
import pytest
from brokers import Broker, free_port, mosquitto
from commanded import Plant, line
from gateways import until
from onlooking import host, peer

from edge_runtime.bus import control as messages
from edge_runtime.bus import presence, programs
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.control import LayerState, Reported
from edge_runtime.bus.presence import Brokers
from edge_runtime.cli.config.following import Followed, Following
from edge_runtime.cli.config.moving import Elsewhere, look_around
from edge_runtime.cli.config.places import Place, places
from edge_runtime.cli.config.seen import Seen
from edge_runtime.cli.config.wanting import follow
from edge_runtime.cli.mesh import finding
from edge_runtime.cli.talking import Talk
from edge_runtime.config import Config
from edge_runtime.ports import Connection, Message

pytestmark = [
    pytest.mark.skipif(programs.mosquitto() is None, reason="MISSING SYSTEM PACKAGE: mosquitto"),
    pytest.mark.slow,
]

SHORT_S = "6"
"""Of a trial that is to fail."""
LONG = ("--trial", "30")
DESIRED, REPORTED = (f"edge/plant/gw/press-2/config/{each}" for each in ("desired", "reported"))
NOBODY = "nobody who may steer it has spoken to it on this broker"


def at(broker: Broker) -> dict[str, Any]:
    return {"mode": "external", "url": broker.url}


def where(plant: Plant) -> str:
    """The broker that it came to last."""
    return str(plant.gateway.events("broker_joined")[-1]["at"])


def test_it_stays_where_somebody_speaks_to_it(tmp_path: Path) -> None:
    for name in ("one", "other", "line"):
        (tmp_path / name).mkdir()
    with mosquitto(tmp_path / "one") as one, mosquitto(tmp_path / "other") as other:  # noqa: SIM117
        with line(tmp_path / "line", broker=at(one)) as plant:
            # With a tool that speaks at the old broker only.
            patch = {"broker": {"url": other.url}}
            plant.publish("gw/press-1/config/desired", {"patch": patch, "trial_s": float(SHORT_S)}, "-r")
            until(lambda: plant.gateway.events("configuration_reverted"), "it comes back", 60.0)
            (reverted,) = plant.gateway.events("configuration_reverted")
            assert NOBODY in reverted["cause"]
            until(lambda: where(plant) == f"127.0.0.1:{one.port}", "it is there again", 20.0)
            assert [each["at"] for each in plant.gateway.events("broker_joined")][1] == f"127.0.0.1:{other.port}"

            # The command line speaks at both. What came of the same content before is told there still: it does not count.
            said = plant.cli("config", "set", "press-1", f"broker.url={other.url}", "--there", other.url, *LONG)
            assert said.status == 0, said.error
            assert said.out.splitlines()[-1] == "press-1: active"
            assert where(plant) == f"127.0.0.1:{other.port}"

            # And where the gateway is its own host.
            plant.settings["broker"] = at(other)
            hosted = {"mode": "hosted", "url": f"mqtt://127.0.0.1:{free_port()}"}
            wanted = tmp_path / "wanted.json"
            wanted.write_text(json.dumps({"broker": hosted}))
            said = plant.cli("config", "apply", "press-1", str(wanted), "--patch", *LONG)
            assert said.status == 0, said.error
            assert "where it will be is not known here" in said.out
            assert plant.gateway.events("broker_hosted")
            assert len(plant.gateway.events("configuration_confirmed")) == 2


def test_two_brokers_that_send_it_to_each_other(tmp_path: Path) -> None:
    """Both keep a document without a revision: with plain tools it was moved there, and back. It tries the last one, once."""
    for name in ("one", "other", "line"):
        (tmp_path / name).mkdir()
    with mosquitto(tmp_path / "one") as one, mosquitto(tmp_path / "other") as other:  # noqa: SIM117
        with line(tmp_path / "line", broker=at(one)) as plant:
            back = json.dumps({"patch": {"broker": {"url": one.url}}})
            away = {"patch": {"broker": {"url": other.url}}, "trial_s": float(SHORT_S)}
            topic = "edge/plant/gw/press-1/config/desired"
            command = ["mosquitto_pub", "-p", str(other.port), "-q", "1", "-r", "-t", topic, "-m", back]
            subprocess.run(command, check=True)
            plant.publish("gw/press-1/config/desired", away, "-r")
            until(lambda: plant.gateway.events("configuration_reverted"), "it comes back", 60.0)
            until(lambda: where(plant) == f"127.0.0.1:{one.port}", "it is there again", 20.0)
            assert [each["revision"] for each in plant.gateway.events("configuration_on_trial")] == [1]


def test_a_gateway_that_would_find_nobody_any_more_comes_back(tmp_path: Path) -> None:
    """It would host a broker of its own then: well, and alone."""
    for name in ("one", "other"):
        (tmp_path / name).mkdir()
    port, own = free_port(), free_port()
    auto: dict[str, Any] = {"mode": "auto", "program": "mosquitto"}
    first = {"broker": {**auto, "url": f"mqtt://127.0.0.1:{port}"}, "mesh": {"discovery": "off", "rank": 1}}
    mesh = {"discovery": "off", "peers": [f"127.0.0.1:{port}"]}
    with line(tmp_path / "one", **first) as one:
        second = {"gateway": "press-2", "broker": {**auto, "url": f"mqtt://127.0.0.1:{own}"}, "mesh": mesh}
        with line(tmp_path / "other", **second) as other:
            assert where(other) == f"127.0.0.1:{port}"
            patch = {"mesh": {"peers": []}}
            one.publish("gw/press-2/config/desired", {"patch": patch, "trial_s": float(SHORT_S)}, "-r")
            until(lambda: other.gateway.events("configuration_reverted"), "it comes back", 60.0)
            assert NOBODY in other.gateway.events("configuration_reverted")[0]["cause"]
            assert other.gateway.events("broker_hosted", endpoints=[f"127.0.0.1:{own}"])
            until(lambda: len(other.gateway.events("broker_joined")) == 2, "it is back", 20.0)
            assert where(other) == f"127.0.0.1:{port}"

            said = one.cli("config", "set", "press-2", "mesh.peers=[]", *LONG)
            assert (said.status, said.out.splitlines()[-1]) == (0, "press-2: active"), said.error
            assert len(other.gateway.events("broker_hosted")) == 2


def test_where_a_password_is_wanted_it_is_taken_from_here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    for name in ("one", "other", "line"):
        (tmp_path / name).mkdir()
    passwords = tmp_path / "passwords"
    subprocess.run(["mosquitto_passwd", "-c", "-b", str(passwords), "gw", "open-sesame"], check=True, timeout=10)
    passwords.chmod(0o644)
    locked = {"allow_anonymous": "false", "password_file": passwords}
    with mosquitto(tmp_path / "one") as one, mosquitto(tmp_path / "other", **locked) as other:
        url = f"mqtt://gw:secret:BROKER@127.0.0.1:{other.port}"
        monkeypatch.setenv("EDGE_RUNTIME_SECRET_BROKER", "open-sesame")
        with line(tmp_path / "line", broker=at(one)) as plant:
            monkeypatch.delenv("EDGE_RUNTIME_SECRET_BROKER")
            said = plant.cli("config", "set", "press-1", f"broker.url={url}", "--trial", SHORT_S)
            assert said.status == 1
            assert f"127.0.0.1:{other.port}: secret BROKER is not here" in said.out
            assert NOBODY in said.error
            assert f"127.0.0.1:{other.port}: nobody could speak to it there" in said.error
            assert "not authorized" in said.error

            monkeypatch.setenv("EDGE_RUNTIME_SECRET_BROKER", "open-sesame")
            said = plant.cli("config", "set", "press-1", f"broker.url={url}", *LONG)
            assert (said.status, said.out.splitlines()[-1]) == (0, "press-1: active"), said.error


def test_canaries_of_a_move_are_refused_before_anything_is_published(tmp_path: Path) -> None:
    for name in ("one", "line"):
        (tmp_path / name).mkdir()
    with mosquitto(tmp_path / "one") as one, line(tmp_path / "line", broker=at(one)) as plant:
        second = Reported(gateway="press-2", state="active", config={**plant.settings, "gateway": "press-2"})
        plant.publish("gw/press-2/config/reported", json.loads(messages.pack(second)), "-r")
        with plant.hearing("group/default/config/desired") as heard:
            move = ("config", "set", "group/default", f"broker.url=mqtt://127.0.0.1:{free_port()}")
            said = plant.cli(*move, "--canary", "press-1")
            assert said.status == 1
            assert "--canary: the change moves the broker" in said.error
            assert "hint: first `edge-runtime config set press-1 ...` alone" in said.error
            assert "published" not in said.out
            plant.publish("group/default/config/desired", {"end": True})
            assert heard.json() == {"end": True}


# --- the one who speaks there ----------------------------------------------------------------------------------------


def plan(broker: Broker, **more: Any) -> finding.Plan:
    return finding.Plan("plant", (broker.address(),), **more)


async def kept(broker: Broker, topic: str) -> list[bytes]:
    async with Talk(plan(broker)) as talk:
        return [message.payload async for message in talk.kept(topic)]


async def until_kept(broker: Broker, topic: str) -> list[bytes]:
    async with asyncio.timeout(30):
        while not (found := await kept(broker, topic)):
            pass
    return found


def report(state: Any, revision: int) -> bytes:
    layer = LayerState(name="gateway", revision=revision)
    return messages.pack(Reported(gateway="press-2", state=state, document="d", layers=(layer,)))


def test_where_we_are_already_is_not_elsewhere(tmp_path: Path) -> None:
    """Two hosts of one site: what is found first is the broker that they leave."""

    async def scenario(old: Broker, new: Broker) -> None:
        await host(old, peer("press-1"), "plant")
        said = Brokers(site="plant", host="press-2", instance="press-2-1", run="r2")
        connection = await PahoBus().connect(new.address())
        await connection.publish("edge/plant/brokers", presence.pack(said), qos=1, retain=True)
        async with Talk(plan(old)) as talk:
            here = await look_around(talk)
        broker = {"mode": "hosted", "url": new.url}
        (place,) = places(here, {"press-2": Config(site="plant", gateway="press-2", broker=broker)}, None, str)  # type: ignore[arg-type]
        both = replace(place, plan=replace(place.plan, places=(old.address(), new.address())))
        async with Elsewhere([both], DESIRED, b"{}", [REPORTED]):
            assert await until_kept(new, DESIRED) == [b"{}"]
        assert await kept(old, DESIRED) == []
        await connection.close()

    with mosquitto(tmp_path) as old, mosquitto(tmp_path) as new:
        asyncio.run(scenario(old, new))


def test_of_what_a_place_has_kept_only_what_comes_later_is_heard_and_a_newer_document_stays(tmp_path: Path) -> None:
    async def scenario(broker: Broker) -> None:
        stranger = await PahoBus().connect(broker.address())
        await stranger.publish(REPORTED, report("reverted", 3), qos=1, retain=True)
        async with Elsewhere([Place("there", plan(broker))], DESIRED, b"ours", [REPORTED]) as there:
            assert await until_kept(broker, DESIRED) == [b"ours"]
            await stranger.subscribe(DESIRED)
            await stranger.publish(DESIRED, b"newer", qos=1, retain=True)
            await _said(stranger, b"newer")
            await _said(stranger, b"ours")  # again and again, for a gateway that hosts the broker itself
            await stranger.publish(REPORTED, report("active", 4), qos=1, retain=True)
            assert (await there.heard.get()).payload == report("active", 4)
            assert not there.failures
        assert await kept(broker, DESIRED) == [b"newer"]
        await stranger.close()

    with mosquitto(tmp_path) as broker:
        asyncio.run(asyncio.wait_for(scenario(broker), 30))


async def _said(connection: Connection, payload: bytes) -> Message:
    while True:
        message = await connection.receive()
        connection.acknowledge(message)
        if message.payload == payload:
            return message


def test_who_follows_finds_the_old_place_again_however_long_that_takes(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    connect = finding._connect

    async def slow(*words: Any) -> Any:
        await asyncio.sleep(0.6)  # as TLS over a slow line
        return await connect(*words)

    async def scenario(one: Broker) -> list[str]:
        nowhere = Place("nowhere", finding.Plan("plant", (msgspec.structs.replace(one.address(), port=free_port()),)))
        async with Talk(plan(one)) as talk, Elsewhere([nowhere], DESIRED, b"{}", [REPORTED]) as there:
            await talk.listen(REPORTED)
            monkeypatch.setattr(finding, "_connect", slow)
            seen = Seen("plant", talk.of_gateway, talk.of_person)
            following, lines = Following(Followed("d", "gateway", 4), ["press-2"]), list[str]()
            task = asyncio.create_task(follow(talk, seen, following, lines.append, there.heard))
            one.stop()
            one.start()
            stranger = await PahoBus().connect(one.address())
            await stranger.publish(REPORTED, report("reverted", 4), qos=1, retain=True)
            await asyncio.wait_for(task, 30)
            await stranger.close()
            return lines

    with mosquitto(tmp_path) as one:
        assert asyncio.run(scenario(one)) == ["press-2: reverted"]


def test_metrics_on_a_port_that_is_taken_are_taken_back(tmp_path: Path) -> None:
    with line(tmp_path) as plant, socket.create_server(("127.0.0.1", 0)) as taken:
        address = f"127.0.0.1:{taken.getsockname()[1]}"
        said = plant.cli("config", "set", "press-1", f"metrics.listen={address}", "--trial", "2")
        assert said.status == 1
        assert f"press-1: reverted: not ok after 2 s: metrics: cannot listen on {address}" in said.out
        said = plant.cli("config", "set", "press-1", f"metrics.listen=127.0.0.1:{free_port()}", *LONG)
        assert said.status == 0, said.error
