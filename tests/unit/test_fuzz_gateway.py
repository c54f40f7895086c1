"""Thousands of spoiled messages come to a running gateway, on virtual time: through its one connection, to the handlers that real
ones come to. Documents and commands are signed after they were spoiled, so that what they say is looked at, too.

Nothing fails inside; its configuration is at each moment one whole that is valid; each message that is not taken is counted;
its memory stays as it is; and at the end it takes a valid document, and does a command.
"""

from __future__ import annotations

import asyncio
import contextlib
import json
import os
import random
import tempfile
from collections import Counter
from collections.abc import Iterator
from pathlib import Path
from typing import Any

import psutil
import pytest
from fuzzing import CONFIG, PATCH, edited, mutated, parsers
from steered import Steered
from trusted import Site as Authority
from worlds import Site, simulated, until

from edge_runtime import config
from edge_runtime.bus import topics
from edge_runtime.control.layers import layer_name
from edge_runtime.mesh.sealing import BIRTH, Sealing
from edge_runtime.ports import Address, BrokerError, EdgeError
from edge_runtime.testing.fence import Fence

MESSAGES = int(os.environ.get("EDGE_FUZZ", "10000"))
BURST = 20
RSS_GROWTH_BYTES_MAX = 48 * 2**20
SIGNED = 0.7
"""Part of the documents and commands that somebody signs who may."""

Said = tuple[str, bytes, bool]


class Attacker:
    """Makes messages: topic, payload, retained."""

    def __init__(self, steered: Steered, authority: Authority | None, seed: int) -> None:
        self.dice, self.steered = random.Random(seed), steered
        self.alice = authority.member("alice", "engineer") if authority else None
        self.evil = authority.member("evil") if authority else None
        self.sealing = Sealing(self.evil) if self.evil else None
        self.revision = 0

    def next(self) -> Said:
        kind = self.dice.choice(list(KINDS))
        return KINDS[kind](self)

    def document(self) -> Said:
        target = self.dice.choice(["gw/g", "group/default", "group/presses"])
        self.revision += 1
        whole: dict[str, Any] = {"target": target, "revision": self.revision, "trial_s": 1}
        whole |= {"config": CONFIG} if self.dice.random() < 0.3 else {"patch": PATCH}
        said = json.loads(json.dumps(whole))
        payload = mutated(self.dice, json.dumps(said).encode()) if self.dice.random() < 0.5 else _kept(edited(self.dice, said))
        return topics.desired("s", target), self.signed(payload, "desired"), True

    def command(self) -> Said:
        now = self.steered.site.clock.now()
        verb = self.dice.choice(["write", "reload", "drain", "history", "rollback", "restart", "x"])
        args = {"write": {"point": "d/a", "value": 1}, "history": {"layer": "gateway"}, "restart": {"part": "device d"}}.get(
            verb, {}
        )
        whole = {"id": f"c{self.dice.randrange(10**6)}", "target": "g", "verb": verb, "boot": now.boot, "args": args}
        whole["until_ns"] = now.mono_ns + 10 * 10**9
        payload = mutated(self.dice, json.dumps(whole).encode())
        return topics.gateway("s", "g", "cmd", verb), self.signed(payload, "command"), self.dice.random() < 0.02

    def signed(self, payload: bytes, context: str) -> bytes:
        if self.alice is None:
            return payload
        try:
            envelope = self.alice.sign(payload, context)
        except EdgeError:  # not UTF-8: nobody could sign it
            return payload
        return envelope if self.dice.random() < SIGNED else mutated(self.dice, envelope)

    def birth(self) -> Said:
        name = self.dice.choice(["evil", "g", "x"])
        payload = mutated(self.dice, self.dice.choice(parsers()["birth"].seeds).replace(b'"g"', f'"{name}"'.encode()))
        if self.evil is not None and self.dice.random() < SIGNED:
            try:
                payload = self.evil.sign(payload, BIRTH)
            except EdgeError:
                payload = mutated(self.dice, payload)
        return topics.gateway("s", name, "status"), payload, self.dice.random() < 0.5

    def load(self) -> Said:
        name = self.dice.choice(["evil", "g", "x"])
        payload = self.dice.choice(parsers()["load"].seeds).replace(b'"g"', f'"{name}"'.encode())
        return topics.gateway("s", name, "load"), mutated(self.dice, payload), False

    def brokers(self) -> Said:
        topic = self.dice.choice([topics.brokers("s"), topics.other_broker("s", "evil"), topics.other_broker("s", "+x")])
        return topic.replace("+", ""), mutated(self.dice, parsers()["brokers"].seeds[0]), True

    def frame(self) -> Said:
        kind = self.dice.choice(["task", "reply"])
        payload = self.dice.choice(parsers()["frame"].seeds)
        payload = mutated(self.dice, payload) if self.dice.random() < 0.8 else payload
        if self.sealing is not None and self.dice.random() < SIGNED and self.steered.gateway.mesh is not None:
            ours = self.steered.gateway.mesh.link.sealing
            assert ours is not None
            ours.meet("evil", self.sealing.public)
            self.sealing.meet("g", ours.public)
            payload = self.sealing.seal(kind, "g", payload)
        return topics.gateway("s", "g", kind, "evil"), payload, False

    def other(self) -> Said:
        topic = self.dice.choice(
            [
                "edge/s/roster",
                "edge/s/why/r1",
                topics.gateway("s", "h", "config", "reported"),
                "edge/s/gw/g/cmd/x/y",
                "edge/s/gw//load",
            ]
        )
        return topic, mutated(self.dice, self.dice.choice(parsers()[self.dice.choice(list(parsers()))].seeds)), False


KINDS: dict[str, Any] = {
    name: getattr(Attacker, name) for name in ("document", "command", "birth", "load", "brokers", "frame", "other")
}


def _kept(value: Any) -> bytes:
    return json.dumps(value, ensure_ascii=False).encode("utf-8", "surrogatepass")


def whole(steered: Steered) -> None:
    """What runs is what the configuration says, and that is one that could be in a file."""
    gateway = steered.gateway
    if gateway.successor is not None or not gateway.started.is_set() or gateway.stopping:
        return
    settings = gateway.settings
    again = config.Config.model_validate(settings.model_dump(mode="json", exclude_unset=True))
    assert again == settings
    taken = {pipeline.device for pipeline in settings.pipelines.values()}
    assert set(gateway.pipelines) == set(settings.pipelines)
    assert set(gateway.deliveries) == set(settings.sinks)
    assert set(gateway.sources) == {name for name in settings.devices if name in taken}


@pytest.fixture
def in_memory(tmp_path: Path) -> Iterator[Path]:
    """What this is about is no disk: thousands of syncs would be most of the time."""
    place = Path("/dev/shm")
    with tempfile.TemporaryDirectory(dir=place if place.is_dir() else tmp_path) as folder:
        yield Path(folder)


@pytest.mark.parametrize("with_site", [True, False], ids=["with a site", "without a site"])
def test_a_gateway_stays_whole_whatever_comes(in_memory: Path, with_site: bool) -> None:
    settings = {key: value for key, value in CONFIG.items() if key not in ("site", "gateway")}
    counted: Counter[str] = Counter()
    growth = 0

    async def scenario(site: Site) -> None:
        nonlocal growth
        authority = Authority(in_memory / "trust", "s") if with_site else None
        steered = Steered(site, **settings)
        attacker = Attacker(steered, authority, 7)
        if authority is not None:
            own = authority.member("g")
            authority.roster(own)
            (site.folder / "data").mkdir(parents=True, exist_ok=True)
            own.folder.rename(site.folder / "data" / "identity")
        async with steered.running():
            await until(lambda: steered.said[-1].state == "active")
            process, rss = psutil.Process(), 0
            for number in range(0, MESSAGES // 2, BURST):
                await burst(steered, attacker)
                if number == MESSAGES // 8 // BURST * BURST:
                    rss = process.memory_info().rss
                for each in steered.gateways[:-2]:
                    count(each, counted)
                del steered.gateways[:-2]
            growth = process.memory_info().rss - rss
            for each in steered.gateways:
                count(each, counted)
            await ends_well(steered, attacker)
        assert not site.events("service_failed")
        counted.update(each["event"] for each in site.log if each["event"].startswith("configuration_"))

    simulated(scenario, in_memory)
    print(dict(counted), f"{growth / 2**20:.1f} MiB")
    assert growth <= RSS_GROWTH_BYTES_MAX
    assert counted["bad"] > MESSAGES / 10
    assert counted["document malformed"] > MESSAGES / 200
    assert counted["command malformed"] > MESSAGES / 200


async def burst(steered: Steered, attacker: Attacker) -> None:
    """BURST messages, one after the other, and the time to look at them. The broker is the gateway's own: where it is built anew,
    there is none for a while."""
    where, sent = Address(host="127.0.0.1", client_id="attacker"), 0
    while sent < BURST:
        with contextlib.suppress(BrokerError):
            connection = await steered.site.lan.bus(Fence("g")).connect(where, timeout_s=5.0)
            while sent < BURST:
                topic, payload, retain = attacker.next()
                await connection.publish(topic, payload, qos=1, retain=retain)
                sent += 1
                await asyncio.sleep(0.01)
            await connection.close()
        await asyncio.sleep(0.2)
    whole(steered)
    assert not steered.site.events("service_failed"), steered.site.events("service_failed")


def count(gateway: Any, counted: Counter[str]) -> None:
    if gateway.mesh is not None:
        counted["bad"] += sum(gateway.mesh.link.bad.values())
        gateway.mesh.link.bad.clear()
    for name, part in (("document", gateway.control), ("command", gateway.commands)):
        for reason, number in part.refused.items() if part is not None else ():
            counted[f"{name} {reason}"] += number
        if part is not None:
            part.refused.clear()


async def ends_well(steered: Steered, attacker: Attacker) -> None:
    """Whatever is in force now: a document that is valid, and newer, is taken."""
    for target in ("group/default", "group/presses", "gw/g"):
        held = steered.lifetime.book.layers.get(layer_name(target))
        revision = (held.revision or 0 if held else 0) + 1
        document: dict[str, Any] = {"target": target, "revision": revision, "trial_s": 1}
        document |= {"config": {**CONFIG, "log": {"level": "info"}}} if target == "gw/g" else {"patch": {}}
        payload = json.dumps(document).encode()
        signed = attacker.alice.sign(payload, "desired") if attacker.alice else payload
        await steered.publish(topics.desired("s", target), signed, retain=True)
        await asyncio.sleep(40)
    await until(lambda: steered.gateway.settings.log.level == "info" and steered.said[-1].state == "active")
    whole(steered)
