"""What somebody who may write to the site's broker can do to a gateway with one message, or with many: they are counted, and the
mesh goes on."""

from __future__ import annotations

import asyncio
import contextlib
from collections.abc import Callable
from pathlib import Path
from typing import Any

import pytest
import structlog
from memberships import SITE
from memberships import Site as Members
from memberships import simulate as simulate_members
from worlds import Site as Gateways
from worlds import box, simulated, until

from edge_runtime.bus import frames, presence, topics, why
from edge_runtime.bus.frames import Task
from edge_runtime.bus.messages import BadMessage
from edge_runtime.bus.presence import PLACES_MAX, Birth, Brokers
from edge_runtime.config import Mesh
from edge_runtime.mesh.admission import Outcome
from edge_runtime.mesh.link import Home, Link
from edge_runtime.mesh.peers import PEERS_MAX, Peers
from edge_runtime.ports import Address, BrokerError, Message
from edge_runtime.ports_mesh import Endpoint, Offer
from edge_runtime.records import Tensor
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.loop import VirtualLoop, run
from edge_runtime.testing.network import FakeBroker

DEEP = b"[" * 30_000 + b"]" * 30_000


@pytest.mark.parametrize("unpack", [lambda payload: why.unpack(payload, why.Question), lambda p: presence.unpack(p, Birth)])
def test_arrays_in_arrays_under_an_unknown_key_are_a_bad_message(unpack: Callable[[bytes], Any]) -> None:
    """Else they would end the connection, of every gateway that hears them."""
    with pytest.raises(BadMessage):
        unpack(b'{"id": "r1", "more": ' + DEEP + b"}")


def test_a_birth_with_thousands_of_places_is_refused() -> None:
    """64 KiB of them would be 1 MiB in memory, and that for each of PEERS_MAX invented gateways."""
    birth = Birth(site="s", gateway="g", instance="i", online=True, endpoints=(Endpoint("h", 1),) * PLACES_MAX)
    assert presence.unpack(presence.pack(birth), Birth) == birth
    many = presence.pack(Birth(site="s", gateway="g", instance="i", online=True, endpoints=(Endpoint("h", 1),) * 2_000))
    with pytest.raises(BadMessage, match="endpoints"):
        presence.unpack(many, Birth)


def test_invented_gateways_give_up_their_places_when_they_are_late() -> None:
    peers = Peers("me", Mesh())
    offers = (Offer("m@1"),)
    for number in range(PEERS_MAX):
        birth = Birth(site="s", gateway=f"x{number}", instance="i", online=True, offers=offers)
        peers.on_birth(birth, retained=False, now_ns=0)
    real = Birth(site="s", gateway="real", instance="i", online=True, offers=offers)
    peers.on_birth(real, retained=False, now_ns=1)
    assert (peers.state("real"), peers.beyond) == (None, 1)
    late_ns = 60 * 10**9
    (chosen, *_) = peers.listen_to(["m@1"], 1)
    assert chosen in peers.check(late_ns)
    peers.on_birth(real, retained=False, now_ns=late_ns)
    assert peers.state("real") == "online"


def test_a_heap_of_retained_births_does_not_keep_a_gateway_from_the_broker() -> None:
    """They came while it waited for the answer to its own birth, until it held so many that it let the connection go, again and
    again: so it asks for them after that."""

    async def main() -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        lan = Lan(loop)
        FakeBroker(lan)
        where, status = Address(host="broker"), topics.gateway("s", "+", "status")
        stranger = await lan.bus().connect(where)
        await stranger.publish(topics.gateway("s", "invented", "status"), b"x", qos=1, retain=True)
        link, order = Link("s", "gw-1", "i", structlog.get_logger()), list[str]()
        link.on("status", lambda gateway, _: order.append(gateway))

        async def born() -> None:
            watch = await lan.bus().connect(where)
            await watch.close()
            order.append("born")

        link.joined.append(born)
        connection = await lan.bus().connect(where)
        subscribe = connection.subscribe

        async def noted(*filters: str, qos: int = 1) -> None:
            order.extend(["subscribed"] if status in filters else [])
            await subscribe(*filters, qos=qos)

        connection.subscribe = noted  # type: ignore[method-assign]

        async def serve() -> None:
            with contextlib.suppress(BrokerError):
                await link.serve(connection, Home(where))

        serving = asyncio.create_task(serve())
        await asyncio.sleep(1)
        serving.cancel()
        assert order == ["born", "subscribed", "invented"]

    run(main, seed=1)


def test_a_gateway_whose_name_another_one_has_takes_no_tasks(tmp_path: Path) -> None:
    """The whole gateway: that the parts do it is tested with them."""

    async def scenario(site: Gateways) -> None:
        async with site.running(devices={}, mesh={"offers": ["m"]}, broker={"mode": "external"}, sinks={}) as gateway:
            assert gateway.mesh is not None
            await until(lambda: gateway.mesh and gateway.mesh.answering.offers())
            task = Task(id="t", instance="i", model="m@1", remaining_ns=10**9, tensor=Tensor("float64", (1, 2), bytes(16)))
            message = Message("edge/s/gw/g/task/p", frames.pack(task), 0, False, False, 0, 0)
            gateway.mesh.presence.name.taken = "twin"
            gateway.mesh.link._take(message)
            await asyncio.sleep(1)
            assert gateway.mesh.answering.counts == {Outcome.OUTSIDE: 1}
            gateway.mesh.presence.name.taken = ""
            gateway.mesh.link._take(message)
            await until(lambda: gateway.mesh and gateway.mesh.answering.counts[Outcome.DONE] == 1)

    simulated(scenario, tmp_path)


def test_a_gateway_that_drains_takes_no_more_tasks(tmp_path: Path) -> None:
    """Its far end is away, so that it has to wait a while before it stops."""
    settings = {"devices": {"d": box("a", "b")}, "pipelines": {"p": {"device": "d"}}, "outbox": {"drain_s_max": 60}}

    async def scenario(site: Gateways) -> None:
        site.far_end().up = False
        async with site.running(**settings, mesh={"offers": ["m"]}, broker={"mode": "external"}) as gateway:
            assert gateway.mesh is not None
            mesh = gateway.mesh
            await until(lambda: mesh.answering.offers())
            site.post({"a": 1.0, "b": 2.0})
            await site.acknowledged(1)
            gateway.stop()
            await asyncio.sleep(10)
            task = Task(id="t", instance="i", model="m@1", remaining_ns=10**9, tensor=Tensor("float64", (1, 2), bytes(16)))
            mesh.link._take(Message("edge/s/gw/g/task/p", frames.pack(task), 0, False, False, 0, 0))
            assert (mesh.answering.offers(), mesh.answering.counts) == ([], {Outcome.MODEL: 1})
            assert site.models.closed == 0, "it is still draining"

    simulated(scenario, tmp_path)


@pytest.mark.parametrize("payload", [b"", b"garbage", "another"])
def test_a_broker_whose_word_was_overwritten_is_found_by_who_comes_later(payload: bytes | str) -> None:
    """An empty retained message is what `mosquitto_sub --remove-retained` leaves."""
    other = Brokers(site=SITE, host="nobody", instance="x", run="forged", rank=500, endpoints=(Endpoint("nowhere", 1883),))

    async def scenario(site: Members) -> None:
        site.start("gw-1", "gw-2")
        await site.settled()
        host = site.hosts[0]
        stranger = await site.lan.bus().connect(Address(host=host))
        said = payload if isinstance(payload, bytes) else presence.pack(other)
        await stranger.publish(topics.brokers(SITE), said, qos=1, retain=True)
        await asyncio.sleep(3)
        retained = site.brokers[host, 1883].retained[topics.brokers(SITE)]
        assert presence.unpack(retained.payload, Brokers).host == host
        site.start("gw-3", may_host=False)
        await site.until(lambda: site.nodes["gw-3"].host == host, 5.0, site.report)
        assert site.hosts == [host]

    simulate_members(scenario)
