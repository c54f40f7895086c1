"""What somebody of the site could do to others once, each with its test."""

from __future__ import annotations

import asyncio
import json
from pathlib import Path
from typing import Any

import pytest
from memberships import SITE, simulate
from memberships import Site as Members
from steered import Steered
from trusted import Site as Authority
from worlds import Site, simulated, until

from edge_runtime.bus import control, presence, topics
from edge_runtime.bus.messages import BadMessage
from edge_runtime.bus.presence import Brokers, Load
from edge_runtime.control.commands import BURST_MAX, FLOOD_MAX, PACE_S
from edge_runtime.ports import Address
from edge_runtime.testing.fence import Fence


def test_what_is_signed_says_for_whom_it_is() -> None:
    """Else who carries it could carry it to another gateway, or say it as another verb."""
    document: dict[str, Any] = {"revision": 3, "patch": {}}
    with pytest.raises(BadMessage, match="for whom"):
        control.desired(json.dumps(document).encode(), "gw/g", named=True)
    named = json.dumps({**document, "target": "gw/g"}).encode()
    assert control.desired(named, "gw/g", named=True).target == "gw/g"
    command: dict[str, Any] = {"id": "c1", "target": "g", "verb": "drain"}
    for missing in ("target", "verb"):
        less = {key: value for key, value in command.items() if key != missing}
        with pytest.raises(BadMessage, match="for whom"):
            control.command(json.dumps(less).encode(), "g", "drain", named=True)
    assert control.command(json.dumps(command).encode(), "g", "drain", named=True).verb == "drain"


@pytest.mark.parametrize("host", ["evil", "gw-1"])
def test_a_word_of_another_broker_drives_nobody_from_this_one(host: str) -> None:
    """A member said that the site's broker was another one, and all went to look for it: as often as it said so."""

    async def scenario(site: Members) -> None:
        site.start("gw-1", "gw-2")
        await site.settled()
        before = [node.log.events.count("broker_joined") for node in site.nodes.values()]
        connection = await site.lan.bus().connect(Address(host=site.hosts[0]))
        for number in range(5):
            word = Brokers(site=SITE, host=host, instance="x", run=f"r{number}", rank=1)
            await connection.publish(topics.other_broker(SITE, "evil"), presence.pack(word), qos=1)
            await asyncio.sleep(1)
        assert [node.log.events.count("broker_joined") for node in site.nodes.values()] == before
        assert all(node.membership._link.bad["evil"] == 5 for node in site.nodes.values())

    simulate(scenario)


def test_nobody_knows_the_client_id_of_another() -> None:
    """A broker throws out whoever is connected when another one comes with the same id; all that a birth says is known."""

    async def scenario(site: Members) -> None:
        site.start("gw-1", "gw-2")
        await site.settled()
        for node in site.nodes.values():
            client_id = node.membership._dress(Address(host="x")).client_id
            assert client_id == node.membership._dress(Address(host="y")).client_id
            assert node.membership.candidates.me.instance not in client_id

    simulate(scenario)


def test_commands_by_the_thousand_are_looked_at_in_their_time(tmp_path: Path) -> None:
    """Each takes a signature to check: five thousand a second took a whole core."""

    async def scenario(site: Site) -> None:
        async with Steered(site).running() as steered:
            connection = await site.lan.bus(Fence("g")).connect(Address(host="127.0.0.1", client_id="flood"), timeout_s=5.0)
            seconds, topic = 5, topics.gateway("s", "g", "cmd", "drain")
            for _ in range(seconds * 100):
                for _ in range(5):
                    await connection.publish(topic, b'{"id": "', qos=0)
                await asyncio.sleep(0.01)
            await asyncio.sleep(5)
            refused = steered.gateway.commands.refused if steered.gateway.commands else {}
            assert refused["malformed"] + refused["flood"] == seconds * 500
            assert BURST_MAX <= refused["malformed"] <= 1.5 * (seconds / PACE_S + FLOOD_MAX)
            assert len(site.events("command_refused")) == 2

    simulated(scenario, tmp_path)


def test_where_births_are_signed_a_heartbeat_alone_is_no_double(tmp_path: Path) -> None:
    """The broker's host can say heartbeats in every name."""

    async def scenario(site: Site, double: Load, topic: str) -> bool:
        steered = Steered(site, mesh={})
        async with steered.running():
            for _ in range(20):
                await steered.publish(topic, presence.pack(double))
                await asyncio.sleep(0.2)
            mesh = steered.gateway.mesh
            assert mesh is not None
            return bool(mesh.presence.name_taken)

    double = Load(gateway="g", instance="f" * 16, period_s=0.5, uptime_s=10**6)
    for signed in (True, False):
        folder = tmp_path / str(signed)
        (folder / "data").mkdir(parents=True)
        if signed:
            Authority(tmp_path / "trust", "s").member("g").folder.rename(folder / "data" / "identity")
        taken = simulated(lambda site: scenario(site, double, topics.gateway("s", "g", "load")), folder)
        assert taken is not signed


def test_the_site_still_finds_one_broker_of_two(tmp_path: Path) -> None:
    """What other_broker is for: a lesser host hears on its own broker of the one that outranks it."""

    async def scenario(site: Members) -> None:
        site.lan.part(["gw-1"], ["gw-2"])
        site.start("gw-1", "gw-2")
        await asyncio.sleep(20)
        assert sorted(site.hosts) == ["gw-1", "gw-2"]
        site.lan.heal()
        await site.settled()
        assert len(site.hosts) == 1

    simulate(scenario)
    del tmp_path


__all__ = ["until"]
