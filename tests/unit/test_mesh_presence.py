"""Presence on virtual time: real services, a simulated broker."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Awaitable, Callable
from typing import Any

import pytest
import structlog
from worlds import until

from edge_runtime.bus import presence as payloads
from edge_runtime.bus import topics
from edge_runtime.bus.presence import Birth, Load
from edge_runtime.config import Config
from edge_runtime.mesh.link import Home, Link
from edge_runtime.mesh.naming import CLAIMS_MAX, TIE_S
from edge_runtime.mesh.presence import Facts, Presence
from edge_runtime.ports import Address, BrokerError, Connection
from edge_runtime.ports_mesh import Endpoint, Offer, Vitals
from edge_runtime.testing.fence import Fence
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.loop import SeededDice, VirtualClock, VirtualLoop, run
from edge_runtime.testing.network import FakeBroker

KEEPALIVE_S = 2


class Gateway:
    """As much of one as presence needs. `instance`: of this life; `crash` is kill -9."""

    def __init__(self, site: Site, name: str, instance: str, clock: VirtualClock | None, **mesh: Any) -> None:
        self.site, self.name, self.instance = site, name, instance
        self.offers: list[Offer] = []
        self.needs: list[str] = []
        self.facts = Facts()
        self.gone: list[str] = []
        self.log: list[dict[str, Any]] = []
        self.fence = Fence(f"{name}-{instance}")
        settings = Config.model_validate(
            {"site": "s", "gateway": name, "mesh": mesh, "devices": {"d": {"adapter": "x", "points": [{}]}}}
        )
        self.link = Link("s", name, instance, structlog.wrap_logger(None, processors=[self._note]))
        self.presence = Presence(
            self.link, settings, lambda: self.offers, lambda: self.needs, lambda: self.facts,
            clock or VirtualClock(site.loop), SeededDice(site.loop.rng(instance)), self.link._log, self.gone.append, "1.0",
        )  # fmt: skip
        self.peers = self.presence.peers
        self.task = self.fence.start(self._run(), name="gateway")

    async def _run(self) -> None:
        self.speaking = asyncio.create_task(self.presence.run(), name="presence")
        await self._member()

    async def _member(self) -> None:
        """What membership does: opens a connection, again and again."""
        while True:
            with contextlib.suppress(BrokerError):
                run = self.site.run_id
                address = Address(host="broker", client_id=f"edge-{self.name}-{self.instance}", keepalive_s=KEEPALIVE_S)
                connection = await self.site.lan.bus(self.fence).connect(address, will=self.presence.will(run), timeout_s=1.0)
                await self.link.serve(connection, Home(address, run=run))
            await asyncio.sleep(0.1)

    async def stop(self) -> None:
        """A clean one, as membership does it: says goodbye, then closes."""
        self.speaking.cancel()
        connection, will = self.link._connection, self.presence.will(self.site.run_id)
        assert connection is not None
        await connection.publish(will.topic, will.payload, qos=will.qos, retain=will.retain)
        await connection.close()
        self.fence.fall()

    def crash(self) -> None:
        self.fence.fall()

    def sees(self, *names: str) -> bool:
        return [peer.name for peer in self.peers.peers() if not peer.late] == list(names)

    def told(self) -> list[tuple[str, str]]:
        """Of its peers, in the log."""
        return [(line["event"], line["peer"]) for line in self.log if line["event"].startswith("peer_")]

    def _note(self, _logger: Any, level: str, event: Any) -> Any:
        self.log.append({**event, "level": level})
        raise structlog.DropEvent


class Site:
    def __init__(self, loop: VirtualLoop) -> None:
        self.loop = loop
        self.lan = Lan(loop)
        self.broker = FakeBroker(self.lan)
        self.run_id = "r1"
        self.gateways: list[Gateway] = []

    def gateway(self, name: str, instance: str = "", clock: VirtualClock | None = None, **mesh: Any) -> Gateway:
        gateway = Gateway(self, name, instance or f"{name}1", clock, **mesh)
        self.gateways.append(gateway)
        return gateway

    async def client(self) -> Connection:
        return await self.lan.bus().connect(Address(host="broker"))

    def moves(self) -> None:
        """The broker dies; another one, empty, takes its place."""
        self.broker.kill()
        self.broker.retained.clear()
        self.run_id = f"r{int(self.run_id[1:]) + 1}"
        self.broker.start()


def simulate(scenario: Callable[[Site], Awaitable[Any]], seeds: int = 5) -> None:
    for seed in range(seeds):

        async def main() -> None:
            loop = asyncio.get_running_loop()
            assert isinstance(loop, VirtualLoop)
            site = Site(loop)
            await scenario(site)
            for gateway in site.gateways:
                gateway.crash()

        run(main, seed=seed)


def topic(name: str, kind: str = "status") -> str:
    return topics.gateway("s", name, kind)


def retained(site: Site, name: str) -> Birth:
    return payloads.unpack(site.broker.retained[topic(name)].payload, Birth)


def test_gateways_find_each_other_and_tell_their_load() -> None:
    async def scenario(site: Site) -> None:
        one, two, three = (site.gateway(name) for name in "abc")
        two.offers = [Offer("m@1", "cpu", 1_000)]
        two.facts = Facts(queue=3, queue_ns=9, tasks_in=1, vitals=Vitals(71.5, hot=True, disk_free_bytes=5))
        await until(lambda: one.sees("b", "c") and two.sees("a", "c") and three.sees("a", "b"), 1)
        await until(lambda: all(each.load for each in one.peers.explain(0)), 2)
        (peer, _) = one.peers.peers()
        assert peer.birth.offers == (Offer("m@1", "cpu", 1_000),)
        assert peer.load is not None
        assert (peer.load.queue, peer.load.tasks_in, peer.load.temperature_c, peer.load.disk_free_bytes) == (3, 1, 71.5, 5)
        assert (peer.queue_ns, peer.spared) == (9, True)
        assert one.link.bad == {}
        assert one.gone == []

    simulate(scenario)


def test_the_log_tells_who_came_and_who_is_gone_once_each() -> None:
    async def scenario(site: Site) -> None:
        one, two = site.gateway("a"), site.gateway("b")
        await until(lambda: one.sees("b") and two.sees("a"), 1)
        await asyncio.sleep(20)  # heartbeats are no news
        assert one.told() == [("peer_alive", "b")]
        two.crash()
        await until(lambda: one.gone == ["b"], 10)
        site.gateway("b", "b2")
        await until(lambda: one.sees("b"), 10)
        assert one.told() == [("peer_alive", "b"), ("peer_gone", "b"), ("peer_alive", "b")]
        site.moves()  # on another broker all have to be heard again
        await until(lambda: len(one.told()) == 4, 10)
        await asyncio.sleep(20)
        assert one.told()[3:] == [("peer_alive", "b")]

    simulate(scenario)


def test_what_has_changed_is_said_again_and_only_that() -> None:
    async def scenario(site: Site) -> None:
        one, two = site.gateway("a"), site.gateway("b")
        await until(lambda: one.sees("b"), 1)
        said = site.broker.retained[topic("b")]
        two.presence.refresh()
        await asyncio.sleep(5)
        assert site.broker.retained[topic("b")] is said
        two.offers = [Offer("m@1", "cpu", 1_000)]
        two.presence.endpoints = (Endpoint("10.0.0.2", 1883),)
        two.presence.refresh()
        await until(lambda: one.peers.peers()[0].service_ns("m@1") == 1_000, 1)
        assert one.peers.peers()[0].birth.endpoints == (Endpoint("10.0.0.2", 1883),)
        said = site.broker.retained[topic("b")]
        two.offers = [Offer("m@1", "cpu", 3_000)]  # a time is told by heartbeats
        two.presence.refresh()
        await until(lambda: one.peers.peers()[0].service_ns("m@1") == 3_000, 2)
        assert site.broker.retained[topic("b")] is said
        assert one.gone == []

    simulate(scenario)


def test_who_takes_no_tasks_offers_nothing_and_power_is_as_configured() -> None:
    async def scenario(site: Site) -> None:
        one, two, three = (
            site.gateway("a"),
            site.gateway("b", accept_tasks=False, power="battery"),
            site.gateway("c", power="mains"),
        )
        two.offers = three.offers = [Offer("m@1")]
        three.facts = Facts(vitals=Vitals(battery=True))
        await until(lambda: one.sees("b", "c") and all(peer.load for peer in one.peers.peers()), 2)
        assert [(peer.service_ns("m@1"), peer.spared) for peer in one.peers.peers()] == [(None, True), (0, False)]

    simulate(scenario)


def test_a_crash_is_told_by_the_will_and_a_restart_is_another_life() -> None:
    async def scenario(site: Site) -> None:
        one, two = site.gateway("a"), site.gateway("b")
        await until(lambda: one.sees("b"), 1)
        two.crash()
        await until(lambda: one.gone == ["b"], 1)
        assert not retained(site, "b").online
        site.gateway("b", "b2")
        await until(lambda: one.sees("b"), 1)
        assert one.gone == ["b"]

    simulate(scenario)


def test_a_restart_that_is_quicker_than_the_will() -> None:
    """A cut gateway comes back as another process while the broker still believes in the first: its will comes late, hides the
    new birth in the broker's memory, and is answered by a birth."""

    async def scenario(site: Site) -> None:
        one, two = site.gateway("a"), site.gateway("b")
        await until(lambda: one.sees("b"), 1)
        site.lan.cut("b-b1")
        two.crash()
        site.gateway("b", "b2")
        await until(lambda: one.gone == ["b"] and one.sees("b"), 1)
        await asyncio.sleep(2 * KEEPALIVE_S)
        assert (retained(site, "b").online, retained(site, "b").instance) == (True, "b2")
        assert one.gone == ["b"]
        assert one.sees("b")

    simulate(scenario)


def test_the_late_will_of_an_earlier_connection_is_answered() -> None:
    async def scenario(site: Site) -> None:
        one, two = site.gateway("a"), site.gateway("b")
        await until(lambda: one.sees("b"), 1)
        late = two.presence.will("r1")
        await (await site.client()).publish(late.topic, late.payload, qos=1, retain=True)
        await until(lambda: one.gone == ["b"], 1)
        await until(lambda: one.sees("b") and retained(site, "b").online, 1)

    simulate(scenario)


def test_a_clean_stop_says_so_itself() -> None:
    async def scenario(site: Site) -> None:
        one, two = site.gateway("a"), site.gateway("b")
        await until(lambda: one.sees("b"), 1)
        await two.stop()
        await until(lambda: one.gone == ["b"], 1)
        assert not retained(site, "b").online

    simulate(scenario)


def test_who_hangs_is_noticed_and_who_comes_back_is_here_again() -> None:
    async def scenario(site: Site) -> None:
        one = site.gateway("a")
        hung = await site.client()
        birth = Birth(site="s", gateway="b", instance="b1", online=True, run="r1")
        await hung.publish(topic("b"), payloads.pack(birth), qos=1, retain=True)
        beat = payloads.pack(Load(gateway="b", instance="b1", period_s=1.0))
        await until(lambda: one.sees("b"), 1)
        for _ in range(10):
            await hung.publish(topic("b", "load"), beat)
            await asyncio.sleep(1)
        assert one.gone == []
        began = site.loop.time()
        await until(lambda: one.gone == ["b"], 5)
        assert 2 < site.loop.time() - began < 3
        assert one.peers.state("b") == "late"
        await hung.publish(topic("b", "load"), beat)
        await until(lambda: one.sees("b"), 1)

    simulate(scenario)


def test_a_broker_that_moves_is_empty_and_everybody_is_there_again() -> None:
    async def scenario(site: Site) -> None:
        one, two, three = (site.gateway(name) for name in "abc")
        await until(lambda: one.sees("b", "c"), 1)
        three.crash()
        site.moves()  # so nobody sends the will of c
        assert [birth.gateway for birth in one.peers.alive()] == ["b", "c"]
        await until(lambda: one.gone == [] and one.sees("b") and two.sees("a"), 2)
        assert retained(site, "a").run == "r2"
        await until(lambda: one.gone == ["c"], 15)
        assert one.sees("b")

    simulate(scenario)


def test_a_broker_with_an_old_memory_is_not_believed() -> None:
    async def scenario(site: Site) -> None:
        stranger = await site.client()
        for name, of in (("b", "r0"), ("c", "r1")):
            old = Birth(site="s", gateway=name, instance=f"{name}0", online=True, run=of)
            await stranger.publish(topic(name), payloads.pack(old), qos=1, retain=True)
        one = site.gateway("a")
        await until(lambda: one.peers.state("b") == "unproved" and one.sees("c"), 1)
        site.gateway("b")
        await until(lambda: one.sees("b", "c"), 1)
        assert one.gone == []

    simulate(scenario)


def test_a_wall_clock_that_is_an_hour_off_changes_nothing() -> None:
    def history(*offsets_s: float) -> list[Any]:
        seen: list[Any] = []

        async def scenario(site: Site) -> None:
            clocks = [VirtualClock(site.loop, wall_offset_ns=round(s * 1e9), synced=s == 0) for s in offsets_s]
            gateways = [site.gateway(name, clock=clock) for name, clock in zip("abc", clocks, strict=True)]
            for second in range(40):
                if second == 10:
                    clocks[0].wall_offset_ns += 3_600 * 10**9  # NTP comes
                if second == 20:
                    gateways[2].crash()
                await asyncio.sleep(1)
                for gateway in gateways[:2]:
                    lines = gateway.peers.explain(clocks[0].mono_ns())
                    seen.append([(line.name, line.state, line.heard_s) for line in lines])
            seen.append([gateway.gone for gateway in gateways])

        simulate(scenario, seeds=1)
        return seen

    assert history(0, 0, 0) == history(0, 3_600, -3_600)


def test_a_machine_that_slept_takes_nobody_for_late() -> None:
    async def scenario(site: Site) -> None:
        clock = VirtualClock(site.loop)
        one, _ = site.gateway("a", clock=clock), site.gateway("b")
        await until(lambda: one.sees("b"), 1)
        for _ in range(10):
            clock._base_ns += 100 * 10**9  # time since boot goes on while it sleeps
            one.presence.refresh()  # it looks around before anybody has said a word
            await asyncio.sleep(0.7)
        assert one.gone == []
        assert one.sees("b")

    simulate(scenario)


def test_a_clock_that_runs_fast_makes_nobody_late() -> None:
    async def scenario(site: Site) -> None:
        one, two = site.gateway("a", clock=VirtualClock(site.loop, skew=0.01)), site.gateway("b")
        await until(lambda: one.sees("b"), 1)
        await asyncio.sleep(300)
        assert (one.gone, two.gone) == ([], [])

    simulate(scenario)


def test_garbage_and_lies_are_counted_and_hurt_nobody() -> None:
    async def scenario(site: Site) -> None:
        one, _ = site.gateway("a"), site.gateway("b")
        await until(lambda: one.sees("b"), 1)
        liar = await site.client()
        lies = [
            (topic("x"), payloads.pack(Birth(site="s", gateway="b", instance="l1", online=True))),
            (topic("x"), payloads.pack(Birth(site="other", gateway="x", instance="l1", online=True))),
            (topic("x"), payloads.pack(Birth(site="s", gateway="b", instance="b1", online=False))),
            (topic("b", "load"), payloads.pack(Load(gateway="x", instance="l1", period_s=1.0))),
            (topic("b", "load"), b"\xff{"),
            (topic("b"), b"[[[["),
            (topic("b"), b'{"x":' + b"[" * 9_000),
        ]
        for where, payload in lies:
            await liar.publish(where, payload, qos=1)
        await until(lambda: sum(one.link.bad.values()) == len(lies), 1)
        assert one.link.bad == {"x": 3, "b": 4}
        await liar.publish(topic("b", "load"), payloads.pack(Load(gateway="b", instance="l1", period_s=1.0)))
        await until(lambda: one.peers.strangers == 1, 1)
        assert one.sees("b")
        assert one.gone == []
        assert one.peers.state("x") is None

    simulate(scenario)


def test_an_empty_birth_is_a_person_who_takes_a_gateway_away_for_good() -> None:
    async def scenario(site: Site) -> None:
        one, two, three = (site.gateway(name) for name in "abc")
        await until(lambda: one.sees("b", "c"), 1)
        await three.stop()
        person = await site.client()
        for name in "abc":
            await person.publish(topic(name), b"", qos=1, retain=True)
        await until(lambda: one.peers.state("c") is None, 1)
        await until(lambda: topic("a") in site.broker.retained and topic("b") in site.broker.retained, 1)
        assert one.sees("b")
        assert two.gone == ["c"]

    simulate(scenario)


@pytest.mark.parametrize("later_s", [0.0, 0.5, TIE_S, 10.0])
def test_of_two_gateways_with_one_name_one_stands_down_until_the_other_is_gone(later_s: float) -> None:
    async def scenario(site: Site) -> None:
        watcher = site.gateway("w")
        twins = [site.gateway("b", "z")]
        await asyncio.sleep(later_s)
        twins.append(site.gateway("b", "y"))
        await until(lambda: any(twin.presence.name_taken for twin in twins), 10)
        await asyncio.sleep(3)
        (stays,) = [twin for twin in twins if not twin.presence.name_taken]
        (down,) = [twin for twin in twins if twin.presence.name_taken]
        if later_s > 2 * TIE_S:
            assert stays.instance == "z"
        if later_s == 0.0:
            assert stays.instance == "y"
        assert down.presence.name_taken == stays.instance
        assert down.peers.peers() == []
        assert retained(site, "b").instance == stays.instance
        assert watcher.sees("b")
        assert watcher.peers.peers()[0].birth.instance == stays.instance
        line = next(line for line in down.log if line["event"] == "name_conflict" and line["keeps"] == "theirs")
        assert (line["level"], line["ours"], line["theirs"]) == ("error", down.instance, stays.instance)
        assert down.presence.name.conflicts == 1
        flaps = len(watcher.gone)
        assert flaps <= (2 * CLAIMS_MAX + 2 if later_s == TIE_S else 3)
        beats = watcher.peers.strangers
        await asyncio.sleep(30)
        assert (len(watcher.gone), watcher.peers.strangers) == (flaps, beats), "peace"
        stays.crash()
        await until(lambda: not down.presence.name_taken and retained(site, "b").instance == down.instance, 2)
        await until(lambda: watcher.sees("b") and down.sees("w"), 2)

    simulate(scenario)


def test_who_stands_down_says_nothing_when_it_stops_or_the_broker_moves_and_comes_back_when_the_other_hangs() -> None:
    async def scenario(site: Site) -> None:
        watcher, first = site.gateway("w"), site.gateway("b", "z")
        await asyncio.sleep(3 * TIE_S)
        second = site.gateway("b", "y")
        await until(lambda: second.presence.name_taken, 2)
        site.moves()
        ears, births = await site.client(), []
        await ears.subscribe(topic("b"))
        await until(lambda: watcher.sees("b"), 3)
        await asyncio.sleep(5)
        with contextlib.suppress(TimeoutError):
            async with asyncio.timeout(1):
                while True:
                    births.append(payloads.unpack((await ears.receive()).payload, Birth).instance)
        assert set(births) == {"z"}
        assert second.presence.name_taken == "z"
        assert retained(site, "b").instance == "z"
        third = site.gateway("b", "x")
        await until(lambda: third.presence.name_taken, 2)
        await third.stop()
        second.crash()  # its will hides the birth of the one that stays, which says it again
        await asyncio.sleep(1)
        assert (retained(site, "b").online, retained(site, "b").instance) == (True, "z")
        assert watcher.sees("b")
        fourth = site.gateway("b", "v")
        await until(lambda: fourth.presence.name_taken, 2)
        first.speaking.cancel()  # as if it hung: neither a word nor a will
        await until(lambda: not fourth.presence.name_taken, 10)
        await until(lambda: watcher.sees("b") and retained(site, "b").instance == "v", 2)

    simulate(scenario)


def test_of_many_gateways_one_hears_sixteen_and_the_period_grows() -> None:
    async def scenario(site: Site) -> None:
        one = site.gateway("a", heartbeats_per_s_max=100)
        one.needs = ["m@1"]
        crowd = await site.client()
        for n in range(40):
            offers = (Offer("m@1"),) if n % 2 else ()
            birth = Birth(site="s", gateway=f"g{n:02}", instance="1", online=True, run="r1", offers=offers)
            await crowd.publish(topic(f"g{n:02}"), payloads.pack(birth), qos=1, retain=True)
        await until(lambda: len(one.peers.births()) == 40, 2)
        await until(lambda: len(one.peers.peers()) == 16, 2)
        (session,) = [s for s in site.broker._sessions.values() if s.client_id.startswith("edge-")]
        await until(lambda: len([each for each in session.filters if each.endswith("/load")]) == 17, 1)
        assert topic("a", "load") in session.filters
        assert one.peers.period_s == 41 * 17 / 100
        one.needs = []
        one.presence.refresh()
        await until(lambda: [each for each in session.filters if each.endswith("/load")] == [topic("a", "load")], 2)

    simulate(scenario)
