"""A privacy class binds what becomes of a pipeline's records: a sink does not take the lanes of a class that it may not have, so
nothing of them is sent, waited for, missing or purged; and what the class was when a record was accepted holds for ever."""

from __future__ import annotations

import asyncio
from pathlib import Path
from typing import Any

import msgspec
import pytest
from outboxes import accounted, draft, everything, gaps_of, opened, texts
from worlds import Site, box, simulated, until

from edge_runtime import config
from edge_runtime.bus import topics
from edge_runtime.cli.outbox_look import records
from edge_runtime.receiver import account
from edge_runtime.records import KINDS, LANES, Gap, Lane, Privacy, Record, Stamp, to_json
from edge_runtime.testing.sink import FakeReceiver

MIB = 2**20
CLASSES = ("gateway", "site", "cloud")
SINKS: dict[str, Any] = {
    "cloud": {"type": "https", "url": "http://x"},
    "plant": {"type": "https", "url": "http://y", "reach": "site"},
}
RULE = {"name": "high", "output": "a.max", "above": 100}


def pipelines(**privacy: str) -> dict[str, Any]:
    """Of each class one that forwards samples, and one that makes windows with an alarm."""
    forwarded = {f"{name}-raw": {"device": "d", "privacy": each} for name, each in privacy.items()}
    window = {"device": "d", "window": {"count": 2}, "rules": [RULE]}
    return forwarded | {f"{name}-win": {**window, "privacy": each} for name, each in privacy.items()}


def came(far_end: FakeReceiver) -> set[tuple[str, str]]:
    """(pipeline, kind) of all that it has."""
    return {(record.source, record.lane.kind.value) for record in far_end.kept.values()}


def of(*names: str) -> set[tuple[str, str]]:
    return {each for name in names for each in ((f"{name}-raw", "sample"), (f"{name}-win", "result"), (f"{name}-win", "event"))}


# --- what a lane says ------------------------------------------------------------------------------------------------


def test_a_lane_is_a_kind_and_a_class() -> None:
    assert KINDS == (Lane.GAP, Lane.EVENT, Lane.RESULT, Lane.SAMPLE)
    private = [kind.of(privacy) for kind in KINDS[1:] for privacy in Privacy]
    assert {Lane.GAP, *private} == set(LANES)
    for kind in KINDS[1:]:
        for privacy in Privacy:
            assert (kind.of(privacy).kind, kind.of(privacy).privacy) == (kind, privacy)
        assert kind.of(Privacy.CLOUD) is kind
    assert [LANES.index(lane.kind) for lane in LANES] == sorted(LANES.index(lane.kind) for lane in LANES), "kinds before classes"


def test_a_class_has_no_topic_of_its_own() -> None:
    assert topics.live("s", "g", Lane.RESULT_SITE, "wear") == topics.live("s", "g", Lane.RESULT, "wear")


@pytest.mark.parametrize(
    ("sink", "reach"),
    [
        ({"type": "https", "url": "https://x"}, "cloud"),
        ({"type": "https", "url": "https://x", "reach": "site"}, "site"),
        ({"type": "mqtt", "url": "local"}, "site"),
        ({"type": "mqtt", "url": "local", "reach": "cloud"}, "cloud"),  # a bridge leads on from there
        ({"type": "mqtt", "url": "local", "receiver": "r"}, "site"),
        ({"type": "mqtt", "url": "mqtt://127.0.0.1"}, "cloud"),  # nobody has said where it is
        ({"type": "mqtt", "url": "mqtt://x", "reach": "site"}, "site"),
    ],
)
def test_the_reach_of_a_sink(sink: dict[str, Any], reach: str) -> None:
    whole: dict[str, Any] = {"site": "s", "gateway": "g", "devices": {"d": box("a")}, "sinks": {"sink": sink}}
    made = config.Config.model_validate(whole).sinks["sink"]
    assert config.reach(made) == reach
    may_have = {"cloud": ["cloud"], "site": ["cloud", "site"]}[reach]
    assert config.lanes(made) == [lane for lane in LANES if lane.privacy in may_have]
    some = config.Config.model_validate({**whole, "sinks": {"sink": {**sink, "lanes": ["event", "gap"]}}}).sinks["sink"]
    assert {lane.kind for lane in config.lanes(some)} == {Lane.GAP, Lane.EVENT}


# --- whole gateways --------------------------------------------------------------------------------------------------


def test_each_sink_gets_what_it_may_have_and_waits_for_nothing_else(tmp_path: Path) -> None:
    async def scenario(site: Site) -> None:
        settings = {"devices": {"d": box("a")}, "pipelines": pipelines(gateway="gateway", site="site", cloud="cloud")}
        async with site.running(**settings, sinks=SINKS) as gateway:
            site.post(*({"a": n * 10} for n in range(40)))
            await site.acknowledged(40)
            async with asyncio.timeout(60):
                for pipeline in gateway.pipelines.values():
                    await pipeline.finish()
                for delivery in gateway.deliveries.values():
                    await delivery.drained()  # what it may not have is not waited for
            assert came(site.far_end("cloud")) == of("cloud")
            assert came(site.far_end("plant")) == of("cloud", "site")
            heads = gateway.store.heads
            assert heads[Lane.SAMPLE_GATEWAY] == heads[Lane.SAMPLE_SITE] == heads[Lane.SAMPLE] == 40
            await until(lambda: not gateway.store._file.books.purge_left)
            kept = await everything(gateway.store, Lane.SAMPLE_GATEWAY)
            assert [record.seq for record in kept] == [*range(1, 41)], "what nobody gets is not purged as delivered"
            assert len(await everything(gateway.store, Lane.RESULT_GATEWAY)) == 20
            assert len(await everything(gateway.store, Lane.EVENT_GATEWAY)) == 1
            assert all(delivery.state.refused == 0 for delivery in gateway.deliveries.values())

    simulated(scenario, tmp_path)


def test_the_class_of_the_day_of_acceptance_holds(tmp_path: Path) -> None:
    """Relaxed later, or the pipeline renamed: older records stay where they are. Narrowed: what was open before goes out."""

    async def scenario(site: Site) -> None:
        def far(name: str) -> list[float]:
            return sorted(msgspec.json.decode(record.body)["values"]["a"] for record in site.far_end(name).kept.values())

        async def life(count: int, name: str, privacy: str, *, up: bool = True) -> None:
            site.far_end("cloud").up = up
            raw = {name: {"device": "d", "privacy": privacy}}
            async with site.running(devices={"d": box("a")}, pipelines=raw, sinks=SINKS) as gateway:
                acknowledged = len(site.mailbox.acknowledged)
                site.post(*({"a": site.lives * 100 + n} for n in range(count)))
                await site.acknowledged(acknowledged + count)
                await gateway.pipelines[name].finish()
                if up:
                    await asyncio.sleep(30)

        await life(3, "raw", "gateway")
        await life(3, "raw", "site")
        await life(3, "raw", "cloud")
        await life(3, "other", "cloud", up=False)
        await life(3, "other", "gateway")
        assert far("cloud") == [300, 301, 302, 400, 401, 402]
        assert far("plant") == [200, 201, 202, 300, 301, 302, 400, 401, 402]
        file = tmp_path / "data" / "outbox.db"
        kept = [msgspec.json.decode(record.body)["values"]["a"] for record in records(file, [Lane.SAMPLE_GATEWAY])]
        assert kept == [100, 101, 102, 500, 501, 502]

    simulated(scenario, tmp_path)


def test_a_sink_that_is_declared_to_be_in_the_plant_gets_what_waits_for_such_a_one(tmp_path: Path) -> None:
    """Records of class `site` wait while no sink is of the site, under the cap; with the first one they go."""

    async def scenario(site: Site) -> None:
        settings: dict[str, Any] = {"devices": {"d": box("a")}, "pipelines": {"raw": {"device": "d", "privacy": "site"}}}
        async with site.running(**settings):
            site.post({"a": 1})
            await site.acknowledged(1)
            await asyncio.sleep(30)
        assert not site.far_end("cloud").kept
        async with site.running(**settings, sinks={"cloud": {**SINKS["cloud"], "reach": "site"}}):
            await until(lambda: site.far_end("cloud").kept)

    simulated(scenario, tmp_path)


# --- under the cap ---------------------------------------------------------------------------------------------------

TAKEN = {"cloud": [lane for lane in LANES if lane.privacy is Privacy.CLOUD]}


async def fill(store: Any, lane: Lane, first: int, count: int) -> None:
    for at in range(first, first + count, 20):
        await store.commit([draft(f"canary-{lane}-{at + n}", lane, size=2_000) for n in range(20)])


def test_of_what_stays_the_newest_are_kept_and_the_gap_record_names_no_value(tmp_path: Path) -> None:
    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db", TAKEN, size_bytes_max=MIB) as store:
            await fill(store, Lane.RESULT_GATEWAY, 0, 1_000)
            kept = texts(await everything(store, Lane.RESULT_GATEWAY))
            assert 50 < len(kept) < 1_000
            assert kept[-1] == "canary-result_gateway-999"
            assert await accounted(store, Lane.RESULT_GATEWAY) == ((1, 1_000),)
            gaps = await everything(store, Lane.GAP)
            assert {gap.reason for gap in gaps_of(gaps)} == {"outbox full"}
            assert not any(b"canary" in record.body for record in gaps)

    asyncio.run(scenario())


def test_what_waits_for_a_sink_does_not_go_for_what_stays(tmp_path: Path) -> None:
    """Else the archive would hold the whole cap one day, and from then on an outage of a minute would lose samples."""

    async def scenario() -> None:
        async with opened(tmp_path / "outbox.db", TAKEN, size_bytes_max=MIB) as store:
            await fill(store, Lane.EVENT_GATEWAY, 0, 600)
            await fill(store, Lane.SAMPLE, 0, 100)
            assert len(await everything(store, Lane.SAMPLE)) == 100
            left = len(await everything(store, Lane.EVENT_GATEWAY))
            assert 0 < left < 300
            store.acknowledge("cloud", Lane.SAMPLE, ((1, 100),))
            await store.commit([])
            while store._file.books.purge_left:
                await store.commit([])
            assert not await everything(store, Lane.SAMPLE), "what is never delivered must not hold up the purge of others"
            await fill(store, Lane.EVENT_GATEWAY, 600, 100)
            assert len(await everything(store, Lane.EVENT_GATEWAY)) == left + 100, "it has the room again"

    asyncio.run(scenario())


# --- the far end's account -------------------------------------------------------------------------------------------


def _statistics(arrived: list[Record], gaps: list[Gap]) -> account.Account:
    stamp = Stamp("b", 1, 2, True)
    arrived = arrived + [Record(Lane.GAP, "e", n, "x", stamp, to_json(gap)) for n, gap in enumerate(gaps, 1)]
    count = len(arrived)
    rows = account.Rows(
        arrivals=[("s", "g", count, 0, 0)],
        kept=[("s", "g", record.lane.value, record.source, 1) for record in arrived],
        twice=[],
        ranges=[("s", "g", "e", record.lane.value, record.seq, record.seq) for record in arrived],
        gaps=[("s", "g", record.body.decode()) for record in arrived if record.lane is Lane.GAP],
    )
    [found] = account.statistics(rows).gateways
    return found


def test_what_was_never_for_a_receiver_is_no_loss_of_its() -> None:
    """Gap records go to all; a receiver counts those of the lanes of which it has something, and those that go anywhere."""
    gap = Gap(lane=Lane.SAMPLE, epoch="e", first=2, last=3, count=2, reason="outbox full")
    gaps = [gap, *(msgspec.structs.replace(gap, lane=lane) for lane in (Lane.SAMPLE_SITE, Lane.SAMPLE_GATEWAY))]
    stamp = Stamp("b", 1, 2, True)

    def two(lane: Lane) -> list[Record]:
        return [Record(lane, "e", seq, "x", stamp, b"{}") for seq in (1, 4)]

    cloud = _statistics(two(Lane.SAMPLE), gaps)
    assert (cloud.gaps, cloud.declared_lost, cloud.not_for_here) == (0, 2, 4)
    plant = _statistics(two(Lane.SAMPLE) + two(Lane.SAMPLE_SITE), gaps)
    assert (plant.gaps, plant.declared_lost, plant.not_for_here) == (0, 4, 2)
    assert _statistics([], gaps).declared_lost == 2
