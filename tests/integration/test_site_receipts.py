"""With a site: only signed receipts count; a broker whose gateway was revoked is left; equipment sees its own."""

from __future__ import annotations

import asyncio
from collections.abc import Awaitable, Callable
from pathlib import Path

import pytest
from brokers import free_port
from gateways import config, gateway, numbers, until
from hosted import connected, hosted
from onlooking import edge_runtime, play
from receivers import ReceiverProcess, records
from trusted import Site

from edge_runtime.bus import messages, programs, topics
from edge_runtime.bus.broker import PahoBus
from edge_runtime.bus.local import LocalBus
from edge_runtime.bus.member import Dress
from edge_runtime.bus.messages import ReceiptMessage
from edge_runtime.outbox.sinks.mqtt import MqttSink
from edge_runtime.outbox.sinks.receipts import CONTEXT, opener
from edge_runtime.ports import Address, BrokerError, SinkError, Stranger
from edge_runtime.records import Lane
from edge_runtime.trust.identity import Identity

pytestmark = pytest.mark.skipif(programs.mosquitto() is None, reason="MISSING SYSTEM PACKAGE: mosquitto")

NAME = "plant-1"


def run(main: Callable[[], Awaitable[None]]) -> None:
    asyncio.run(asyncio.wait_for(main(), 60))  # type: ignore[arg-type]


def sink(press: Identity, where: Address, timeout_s: float = 5.0) -> MqttSink:
    dress = Dress(press)
    return MqttSink(
        NAME, "press", "cloud", PahoBus(), lambda: dress(where), timeout_s=timeout_s, opened=opener("cloud", press)
    )  # fmt: skip


def receive(file: Path, where: Address, who: Identity | None, *options: str) -> ReceiverProcess:
    named = ["--identity", str(who.folder)] if who else []
    return ReceiverProcess(file, "--mqtt", f"mqtt://{where.host}:{where.port}", *named, *options, mqtt=True)


async def forge(connection: object, payload: bytes, count: int = 1) -> None:
    topic = topics.gateway(NAME, "press", "receipt", "cloud")
    for _ in range(count):
        await connection.publish(topic, payload, qos=1)  # type: ignore[attr-defined]


def test_records_arrive_once_with_receipts_that_are_signed(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, cloud = site.member("press"), site.member("cloud", "receiver")
    site.roster(press)

    async def main() -> None:
        async with hosted(tmp_path, press) as (_, where):
            far_end = receive(tmp_path / "records.db", where, cloud)
            await asyncio.to_thread(far_end.start)
            try:
                mine = sink(press, where)
                await mine.open(["e1"])
                receipt = await mine.send(records(1, 5))
                assert receipt.ranges == {("e1", Lane.RESULT): ((1, 5),)}
                assert mine.forged == 0
                await mine.close()
            finally:
                statistics = await asyncio.to_thread(far_end.stop)
            assert statistics["gateways"][0]["unique"] == 5

    run(main)


def test_a_receipt_that_the_receiver_has_not_signed_makes_nobody_forget(tmp_path: Path) -> None:
    """By whoever hosts the broker: it may say anything on any topic."""
    site = Site(tmp_path)
    press, cloud, saw = site.member("press"), site.member("cloud", "receiver"), site.member("saw")
    site.roster(press, cloud, saw)
    has_all = messages.receipt("cloud", "press", [("e1", Lane.RESULT, ((1, 99),))], ["e1"])
    for_another = messages.receipt("cloud", "saw", [("e1", Lane.RESULT, ((1, 99),))], ["e1"])
    forged = [
        messages.pack(has_all),
        messages.pack(has_all, lambda receipt: saw.sign(receipt, CONTEXT)),
        messages.pack(has_all, lambda receipt: cloud.sign(receipt, "command")),
        messages.pack(has_all, lambda receipt: cloud.sign(receipt, CONTEXT)).replace(b"99", b"98"),
        messages.pack(for_another, lambda receipt: cloud.sign(receipt, CONTEXT)),
        b"no receipt",
    ]

    async def main() -> None:
        async with hosted(tmp_path, press) as (_, where), connected(where, cloud) as liar:
            mine = sink(press, where, timeout_s=1.0)
            opening = asyncio.create_task(mine.open(["e1"]))
            await liar.subscribe(topics.gateway(NAME, "press", "hello", "cloud"), qos=0)
            await liar.receive()
            for payload in forged:
                await forge(liar, payload)
            with pytest.raises(SinkError, match="no receipt within 1 s that it has signed"):
                await opening
            assert mine.forged == len(forged)
            opening = asyncio.create_task(mine.open(["e1"]))
            await liar.receive()
            for payload in (*forged, messages.pack(has_all, lambda receipt: cloud.sign(receipt, CONTEXT))):
                await forge(liar, payload)
            assert (await opening).ranges  # the true one, after all of them
            await mine.close()

    run(main)


def test_a_receiver_that_was_revoked_gives_receipts_no_more(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, cloud = site.member("press"), site.member("cloud", "receiver")
    site.roster(press)
    check = opener("cloud", press)
    document = messages.pack(messages.receipt("cloud", "press", [], ["e1"]), lambda receipt: cloud.sign(receipt, CONTEXT))
    assert messages.unpack(document, ReceiptMessage, check).receiver == "cloud"
    site.authority.revoke("cloud", "stolen")
    site.roster(press)
    with pytest.raises(Exception, match="revoked"):
        check(document)


def test_who_may_receive(tmp_path: Path) -> None:
    site = Site(tmp_path)
    alice, cloud = site.member("alice", "engineer"), site.member("cloud", "receiver")
    where = ["--mqtt", "mqtt://127.0.0.1:1", "--file", str(tmp_path / "r.db")]

    async def main() -> None:
        said = await edge_runtime("receive", *where, "--identity", str(alice.folder))
        assert (said.status, "alice is engineer: no gateway takes a receipt" in said.error) == (1, True)
        said = await edge_runtime("receive", *where, "--identity", str(cloud.folder), "--name", "sky")
        assert (said.status, "--name sky: the identity is of cloud" in said.error) == (1, True)

    play(main)


def test_a_gateway_with_a_site_and_its_receiver(tmp_path: Path) -> None:
    """Through `edge-runtime run`: a device over the site's own broker, a sink there, a receiver without and then with its key."""
    site = Site(tmp_path)
    press, scale, cloud = site.member("press"), site.member("scale", "device"), site.member("cloud", "receiver")
    site.roster(press)
    port = free_port()
    where = Address(host="127.0.0.1", port=port)
    device = {
        "adapter": "mqtt", "options": {"url": "local", "topics": ["device/scale/#"], "qos": 1, "client_id": "press-scale"},
        "points": [{"name": "f0", "path": "kg"}],
    }  # fmt: skip
    settings = config(
        {"scale": device}, {"plant": {"type": "mqtt", "url": "local", "receiver": "cloud", "timeout_s": 1.0}},
        site=NAME, gateway="press", site_dir=str(press.folder), broker={"mode": "hosted", "url": f"mqtt://127.0.0.1:{port}"},
        log={"format": "json"},
    )  # fmt: skip
    far_end = ReceiverProcess(
        tmp_path / "records.db", "--mqtt", f"mqtt://127.0.0.1:{port}", "--identity", str(cloud.folder), mqtt=True
    )

    async def weigh(first: int) -> None:
        async with connected(where, scale) as equipment:
            for kg in range(first, first + 5):
                await equipment.publish("device/scale/weight", b'{"kg": %d}' % kg, qos=1)

    with gateway(tmp_path / "g", settings) as edge:
        edge.wait("source_connected")
        asyncio.run(weigh(1))
        edge.wait("sink_away")
        far_end.start()
        try:
            edge.wait("sink_connected", delivery="confirmed by the receiver")
            until(lambda: numbers(far_end.file) == [1, 2, 3, 4, 5], "the first five")
        finally:
            far_end.stop()


def test_a_broker_whose_gateway_was_revoked_is_left(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, saw = site.member("press"), site.member("saw")
    site.roster(press, saw)

    async def main() -> None:
        async with hosted(tmp_path, saw) as (_, where):
            bus = LocalBus(PahoBus(), "", press)
            bus.local = lambda: Dress(press)(where)
            held = [await bus.connect(Address(host="local", client_id=f"sink-{number}")) for number in range(3)]
            assert bus.leave_revoked() == 0
            site.authority.revoke("saw", "stolen")
            press.take_roster(site.authority.roster())  # saw, which hosts, keeps its old one
            assert bus.leave_revoked() == 3
            for each in held:
                with pytest.raises(BrokerError):
                    await asyncio.wait_for(each.receive(), 5)
            with pytest.raises(Stranger):
                await bus.connect(Address(host="local"))

    run(main)


def test_equipment_sees_and_says_its_own(tmp_path: Path) -> None:
    site = Site(tmp_path)
    press, scale, oven = site.member("press"), site.member("scale", "device"), site.member("oven", "device")
    cloud = site.member("cloud", "receiver")
    site.roster(press)
    mine = ["device/scale/weight", "scale/weight"]
    others = ["device/oven/t", f"edge/{NAME}/gw/scale/status", f"edge/{NAME}/gw/device:scale/status", f"edge/{NAME}/roster", "x"]

    async def main() -> None:
        async with hosted(tmp_path, press) as (_, where), connected(where, press) as watcher, connected(where, scale) as one:
            await watcher.subscribe("#")
            for topic in [*others, *mine]:
                await one.publish(topic, b"1", qos=1)
            await watcher.publish("device/end", b"", qos=1)
            seen = []
            while (message := await watcher.receive()).topic != "device/end":
                watcher.acknowledge(message)
                seen.append(message.topic)
            assert seen == mine
            async with connected(where, oven) as other, connected(where, cloud) as receiver:
                for each in (one, other, receiver):
                    await each.subscribe("#")
                secret = [f"edge/{NAME}/gw/press/result/p", f"edge/{NAME}/gw/press/cmd/x/reply", f"edge/{NAME}/why/r"]
                for topic in [*secret, f"edge/{NAME}/gw/press/batch/cloud", "device/scale/x", "device/oven/y"]:
                    await watcher.publish(topic, b"", qos=1)
                assert (await one.receive()).topic == "device/scale/x"
                assert (await other.receive()).topic == "device/oven/y"
                assert (await receiver.receive()).topic == f"edge/{NAME}/gw/press/batch/cloud"
                await receiver.publish(f"edge/{NAME}/gw/press/receipt/cloud", b"", qos=1)
                for topic in ("receipt/sky", "batch/cloud", "status"):
                    await receiver.publish(f"edge/{NAME}/gw/press/{topic}", b"", qos=1)
                await watcher.publish("device/end", b"", qos=1)
                seen = []
                while (message := await watcher.receive()).topic != "device/end":
                    watcher.acknowledge(message)
                    seen.append(message.topic)
                assert f"edge/{NAME}/gw/press/receipt/cloud" in seen
                assert not {f"edge/{NAME}/gw/press/receipt/sky", f"edge/{NAME}/gw/press/status"} & set(seen)

    run(main)
