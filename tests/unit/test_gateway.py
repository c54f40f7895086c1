"""The whole composition on virtual time: what does not work is shown and holds up nobody else; a stop is bounded."""

from __future__ import annotations

import asyncio
import sqlite3
from pathlib import Path
from typing import Any

import pytest
from worlds import Site, box, no_host, plc, simulated, until

from edge_runtime.config import Broker
from edge_runtime.gateway import STOP_S_MAX, Gateway
from edge_runtime.mesh.membership import State
from edge_runtime.outbox.delivery import Delivery
from edge_runtime.outbox.store import Store
from edge_runtime.ports import Address, BrokerError, EdgeError
from edge_runtime.records import Lane
from edge_runtime.sources.supervisor import Source
from edge_runtime.testing.disk import FaultyDisk
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.host import FakeHost
from edge_runtime.testing.sink import FakeSink

FORWARD = {"devices": {"d": box("a")}, "pipelines": {"raw": {"device": "d"}}}


def values(site: Site, sink: str = "cloud") -> list[float]:
    return [body["values"]["a"] for body in site.bodies(Lane.SAMPLE, "raw", sink)]


def numbered(count: int, first: int = 0) -> list[dict[str, Any]]:
    return [{"a": float(n)} for n in range(first, first + count)]


# --- broker, sinks, devices ----------------------------------------------------------------------------------------------


class Host(FakeHost):
    """A broker that does not start at first."""

    def __init__(self, site: Site, failures: int, calls: list[str]) -> None:
        super().__init__(site.broker, Fence("g"), site.loop.rng("host"))
        self.failures, self.calls = failures, calls

    async def start(self) -> Address:
        self.calls.append("start")
        await asyncio.sleep(1.0)
        if self.calls.count("start") <= self.failures:
            raise BrokerError("port 1883 is taken", "another broker?")
        return await super().start()

    async def stop(self) -> None:
        self.calls.append("stop")
        await super().stop()


def hosting(gateway: Gateway) -> State:
    assert gateway.mesh is not None
    return gateway.mesh.membership.state


def test_nothing_local_waits_for_a_broker_that_does_not_start(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        calls: list[str] = []
        site.new_host = lambda _settings, _folder: Host(site, 3, calls)
        async with site.running(**FORWARD, broker={"mode": "hosted"}) as gateway:
            site.post(*numbered(3))
            await until(lambda: values(site) == [0, 1, 2], 0.9)  # before the first attempt is over
            await until(lambda: hosting(gateway).cause)
            assert (hosting(gateway).connected, hosting(gateway).hint) == (False, "another broker?")
            await until(lambda: hosting(gateway).connected)
            assert hosting(gateway).role == "host"
        assert calls == ["start", "stop"] * 4
        assert len(site.events("broker_does_not_start")) == 1

    simulated(scenario, tmp_path)


def test_a_hosted_broker_that_cannot_be_made_is_shown(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.new_host = no_host
        async with site.running(**FORWARD, broker={"mode": "hosted"}) as gateway:
            await until(lambda: hosting(gateway).cause == "no broker in this test")
            site.post(*numbered(3))
            await until(lambda: values(site) == [0, 1, 2])

    simulated(scenario, tmp_path)


def test_a_sink_that_cannot_be_made_is_shown_and_the_others_go_on(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.broken_sinks["bad"] = "url: no port"
        sinks = {name: {"type": "https", "url": "http://x"} for name in ("bad", "good")}
        async with site.running(**FORWARD, sinks=sinks, outbox={"drain_s_max": 1}) as gateway:
            site.post(*numbered(3))
            await until(lambda: values(site, "good") == [0, 1, 2])
            state = gateway.deliveries["bad"].state
            assert (state.connected, state.cause, state.hint) == (False, "url: no port", "this is a test")
        del site.broken_sinks["bad"]
        async with site.running(**FORWARD, sinks=sinks):
            await until(lambda: values(site, "bad") == [0, 1, 2])
        assert len(site.events("sink_away")) == 1

    simulated(scenario, tmp_path)


@pytest.mark.parametrize(("confirms", "delivery"), [(True, "confirmed by the receiver"), (False, "to the broker only")])
def test_a_sink_that_connects_says_how_far_its_delivery_goes(
    tmp_path: Path, monkeypatch: pytest.MonkeyPatch, confirms: bool, delivery: str
) -> None:
    monkeypatch.setattr(FakeSink, "confirms", confirms)

    async def scenario(site: Site) -> None:
        async with site.running(**FORWARD):
            await until(lambda: site.events("sink_connected"))
        assert site.events("sink_connected")[0]["delivery"] == delivery

    simulated(scenario, tmp_path)


def test_a_device_that_no_pipeline_takes_is_not_read(tmp_path: Path) -> None:
    """It would be acknowledged, and thrown away."""

    async def scenario(site: Site) -> None:
        site.post(*numbered(3))
        async with site.running(devices={"d": box("a"), "other": plc("x")}, pipelines={"p": {"device": "other"}}):
            await until(lambda: len(site.bodies(Lane.SAMPLE)) > 5)
        assert [event["device"] for event in site.events("device_not_read")] == ["d"]
        assert not site.mailbox.acknowledged
        async with site.running(**FORWARD):
            await site.acknowledged(3)
        assert values(site) == [0, 1, 2]

    simulated(scenario, tmp_path)


# --- services that break -------------------------------------------------------------------------------------------------


def test_a_delivery_that_broke_unexpectedly_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    send, broken = Delivery._send_once, [1, 2]

    async def breaks(self: Delivery, records: Any) -> None:
        if self.name == "bad" and self.state.records >= 2 and broken:
            broken.pop()
            raise ZeroDivisionError
        await send(self, records)

    monkeypatch.setattr(Delivery, "_send_once", breaks)

    async def scenario(site: Site) -> None:
        sinks = {name: {"type": "https", "url": "http://x", "batch_records_max": 2} for name in ("bad", "good")}
        async with site.running(**FORWARD, sinks=sinks):
            site.post(*numbered(9))
            await until(lambda: len(values(site, "good")) == 9, 0.9)
            await until(lambda: len(values(site, "bad")) == 9)
        assert values(site, "bad") == [*map(float, range(9))]
        assert [event["service"] for event in site.events("service_failed")] == ["delivery bad"] * 2
        assert site.far_end("bad").repeated == 0

    simulated(scenario, tmp_path)


def test_a_source_whose_samples_were_not_taken_goes_on(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    journal, broken = Store.journal, [1, 2]

    async def breaks(self: Store, device: str, samples: Any) -> list[int]:
        if samples[0].values[0] >= 3 and broken:
            broken.pop()
            raise EdgeError("a sample of 9 MB", "one transaction may hold 2")
        return await journal(self, device, samples)

    monkeypatch.setattr(Store, "journal", breaks)

    async def scenario(site: Site) -> None:
        async with site.running(**FORWARD):
            for row in numbered(9):
                site.post(row)
                await asyncio.sleep(0.1)
            await site.acknowledged(9)
        assert values(site) == [*map(float, range(9))]
        assert [event["service"] for event in site.events("service_failed")] == ["source d"] * 2

    simulated(scenario, tmp_path)


def test_a_writer_that_broke_ends_the_gateway(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """Nothing can be accepted any more: whoever supervises the process starts it again."""

    async def broken(self: Store, batch: Any) -> None:
        raise ZeroDivisionError

    async def scenario(site: Site) -> None:
        gateway = site.gateway(**FORWARD)
        life = asyncio.create_task(gateway.run())
        await gateway.started.wait()
        monkeypatch.setattr(Store, "_write", broken)
        site.post(*numbered(3))
        with pytest.raises(ZeroDivisionError):
            await life
        assert not site.mailbox.acknowledged
        monkeypatch.undo()
        async with site.running(**FORWARD):
            await site.acknowledged(3)
        assert values(site) == [0, 1, 2]

    simulated(scenario, tmp_path)


# --- stop ----------------------------------------------------------------------------------------------------------------


def test_a_stop_drains_from_the_sources_to_the_far_ends(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        settings = FORWARD | {"pipelines": {"raw": {"device": "d"}, "p": {"device": "d", "window": {"count": 2}}}}
        async with site.running(**settings) as gateway:
            site.post(*numbered(40))
            await site.acknowledged(40)
            gateway.stop()
            gateway.stop()
        assert values(site) == [*map(float, range(40))]
        assert len(site.bodies(Lane.RESULT)) == 20
        assert site.events("gateway_stopped")[0]["undelivered"] == {"cloud": 0}

    simulated(scenario, tmp_path)


def test_a_stop_waits_for_a_pipeline_that_is_busy(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.models.points = ("a",)
        async with site.running(devices={"d": box("a")}, pipelines={"p": {"device": "d", "window": {"count": 1}, "model": "m"}}):
            site.post(*numbered(5))
            await until(lambda: len(site.bodies(Lane.RESULT)) == 5)
            site.models.faults.stuck = True
            site.post(*numbered(5, first=5))
            await site.acknowledged(10)
            site.loop.call_later(1.0, setattr, site.models.faults, "stuck", False)
        assert len(site.bodies(Lane.RESULT)) == 10

    simulated(scenario, tmp_path)


def test_stopped_before_it_started(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        gateway = site.gateway(**FORWARD)
        gateway.stop()
        await gateway.run()
        assert not gateway.started.is_set()
        async with site.running(**FORWARD):
            site.post(*numbered(1))
            await site.acknowledged(1)
        assert values(site) == [0]

    simulated(scenario, tmp_path)


def trouble(site: Site, code: int | None) -> FaultyDisk:
    disk = FaultyDisk(site.loop.rng("disk"), Fence("g"))
    disk.trouble = code
    site.new_disk = lambda _: disk
    return disk


def test_stopped_while_it_waits_for_the_disk(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        trouble(site, sqlite3.SQLITE_READONLY)
        gateway = site.gateway(**FORWARD)
        life = asyncio.create_task(gateway.run())
        await asyncio.sleep(5.0)
        assert not gateway.started.is_set()
        gateway.stop()
        async with asyncio.timeout(2 * STOP_S_MAX):
            await life

    simulated(scenario, tmp_path)


def test_a_stop_with_a_broken_disk_a_dead_model_and_a_sink_that_is_away_is_bounded(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        disk = trouble(site, None)
        site.models.faults.refuse = "no file"
        pipelines = {"raw": {"device": "d"}, "p": {"device": "d", "window": {"count": 1}, "model": "m"}}
        settings = {"devices": {"d": box("a"), "plc": plc("x")}, "pipelines": {**pipelines, "polled": {"device": "plc"}}}
        gateway = site.gateway(**settings, outbox={"drain_s_max": 2})
        life = asyncio.create_task(gateway.run())
        site.post(*numbered(3))
        await site.acknowledged(3)
        disk.trouble, site.far_end().up = sqlite3.SQLITE_FULL, False
        site.post(*numbered(3, first=3))
        await asyncio.sleep(1.0)
        began_s = site.loop.time()
        gateway.stop()
        await life
        assert site.loop.time() - began_s < 3 * STOP_S_MAX + 2 + 3
        assert site.events("outbox_not_closed")[0]["cause"]
        assert len(site.mailbox.acknowledged) == 3, "what is not on the disk was not acknowledged"
        disk = trouble(site, None)
        site.far_end().up, site.models.faults.refuse, site.models.points = True, "", ("a",)
        async with site.running(**settings):
            await site.acknowledged(6)
        assert values(site) == [0, 1, 2, 3, 4, 5]
        assert len(site.bodies(Lane.RESULT)) == 6

    simulated(scenario, tmp_path)


def test_many_devices_that_hang_do_not_add_up(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def hangs(self: Source) -> None:
        try:
            await asyncio.Event().wait()
        finally:
            await asyncio.sleep(2.0)

    monkeypatch.setattr(Source, "run", hangs)

    async def scenario(site: Site) -> None:
        names = [f"d{n}" for n in range(20)]
        settings = {"devices": {name: plc("a") for name in names}, "pipelines": {name: {"device": name} for name in names}}
        async with site.running(**settings):
            began_s = site.loop.time()
        assert site.loop.time() - began_s < 2 * STOP_S_MAX

    simulated(scenario, tmp_path)


def test_a_cancelled_run_ends_and_leaves_what_was_accepted(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        site.far_end().up = False
        gateway = site.gateway(**FORWARD)
        life = asyncio.create_task(gateway.run())
        site.post(*numbered(5))
        await site.acknowledged(5)
        gateway.stop()
        await asyncio.sleep(0.1)
        life.cancel()
        with pytest.raises(asyncio.CancelledError):
            await life
        site.far_end().up = True
        async with site.running(**FORWARD):
            await until(lambda: len(values(site)) == 5)

    simulated(scenario, tmp_path)


def test_services_end_in_the_order_of_the_data(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A broker of ours outlives the sinks that say goodbye to it."""
    order: list[str] = []
    source_run, delivery_run = Source.run, Delivery.run

    async def source(self: Source) -> None:
        try:
            await source_run(self)
        finally:
            order.append("source")

    async def delivery(self: Delivery) -> None:
        try:
            await delivery_run(self)
        finally:
            order.append("delivery")

    class Ordered(Host):
        async def stop(self) -> None:
            order.append("broker")
            await super().stop()

    monkeypatch.setattr(Source, "run", source)
    monkeypatch.setattr(Delivery, "run", delivery)

    async def scenario(site: Site) -> None:
        site.new_host = lambda _settings, _folder: Ordered(site, 0, [])
        async with site.running(**FORWARD, broker=Broker(mode="hosted").model_dump()) as gateway:
            await until(lambda: hosting(gateway).connected)
        assert order == ["source", "delivery", "broker"]

    simulated(scenario, tmp_path)
