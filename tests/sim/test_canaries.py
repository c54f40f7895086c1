"""A change of a group with canaries, on five simulated gateways with one broker: they try it first, the others wait for their
word, and what a canary takes back nobody keeps; whoever crashes, is away, or moves to an empty broker meanwhile."""

from __future__ import annotations

import asyncio
import contextlib
import json
from collections.abc import AsyncIterator, Callable, Coroutine
from pathlib import Path
from typing import Any

import pytest

from edge_runtime.adapter import LinkLost
from edge_runtime.bus import topics
from edge_runtime.control.neighbours import Neighbours
from edge_runtime.control.reporting import Reporting
from edge_runtime.testing.discovery import Air
from edge_runtime.testing.lan import Lan
from edge_runtime.testing.loop import VirtualLoop, run
from edge_runtime.testing.network import FakeBroker
from edge_runtime.testing.person import Person
from edge_runtime.testing.process import PORT, Process

SITE, PLANT, ALL = "sim", "plant", "group/default"
NAMES = [f"gw-{number}" for number in range(1, 6)]
CANARIES = NAMES[:2]
REST = NAMES[2:]
GOOD = {"devices": {"plc": {"period_s": 0.5}}}
LIMIT_S = 120.0


class Five:
    """`broken`: names of gateways whose PLC cannot be read with the option that BAD sets."""

    def __init__(self, folder: Path, mode: str) -> None:
        loop = asyncio.get_running_loop()
        assert isinstance(loop, VirtualLoop)
        self.loop, self.lan = loop, Lan(loop)
        self.plant = FakeBroker(self.lan, PLANT, PORT, running=mode == "external")
        self.person = Person(self.lan, SITE)
        self.air = Air(self.lan)
        self.taken: dict[str, float] = {}
        """When each one began to try the newest document."""
        self.errors: list[str] = []
        self.gateways = {name: self._process(name, folder / name, mode) for name in NAMES}
        self.revision = 0
        self._tasks: list[asyncio.Task[None]] = []

    def _process(self, name: str, folder: Path, mode: str) -> Process:
        file: dict[str, Any] = {
            "site": SITE,
            "gateway": name,
            "broker": {"mode": "external", "url": f"mqtt://{PLANT}"}
            if mode == "external"
            else {"mode": "auto", "listen": "0.0.0.0"},
            "control": {"trial_s": 20, "from_network": True},
            "devices": {"plc": {"adapter": "faulty", "points": [{"name": "x"}], "period_s": 1.0, "timeout_s": 0.2}},
            "pipelines": {"raw": {"device": "plc"}},
            "sinks": {"cloud": {"type": "https", "url": "http://127.0.0.1:1"}},
            "outbox": {"drain_s_max": 1},
        }
        if mode == "auto":
            file["mesh"] = {}
        folder.mkdir()
        process = Process(name, json.dumps(file), folder, self.lan, persistent=False)
        process.air = self.air
        process.on_log = lambda event: self._logs(name, event)
        return process

    def _logs(self, name: str, event: dict[str, Any]) -> None:
        if event["event"] == "configuration_on_trial":
            self.taken[name] = self.loop.time()
        if event["event"] == "service_failed":
            self.errors.append(f"{name}: {event}")

    def begin(self, *names: str) -> None:
        for name in names:
            self._tasks.append(asyncio.create_task(self.gateways[name].live(), name=f"{name} lives"))

    @contextlib.asynccontextmanager
    async def running(self, *names: str) -> AsyncIterator[None]:
        hosts = [asyncio.create_task(self.person.listen(host), name=f"person at {host}") for host in (PLANT, *NAMES)]
        self.begin(*names)
        await self.until(lambda: all(self.state(name) == "active" for name in names), "all say that they are there")
        yield
        assert not self.errors
        for host in hosts:
            host.cancel()
        for process in self.gateways.values():
            if process.lives:
                process.end()
        await asyncio.gather(*self._tasks)

    async def want(self, patch: dict[str, Any], canaries: list[str], *, once: bool = True) -> None:
        self.revision += 1
        self.taken.clear()
        self.person.states.clear()
        document = {"revision": self.revision, "patch": patch, "canaries": canaries}
        await self.person.want(topics.desired(SITE, ALL), json.dumps(document).encode(), once=once)

    def breaks(self, *names: str) -> dict[str, Any]:
        """A document that only these cannot live with: another one has nothing at that place of the network."""
        for name in names:
            faulty = self.gateways[name].adapters["faulty"]

            class Picky(faulty):  # type: ignore[valid-type,misc]
                async def read(self) -> Any:
                    if self.context.options.late_s == 7.0:
                        raise LinkLost("it cannot live with that", "this is a test")
                    return await super().read()

            self.gateways[name].adapters["faulty"] = Picky
        return {"devices": {"plc": {"options": {"late_s": 7.0}}}}

    def state(self, name: str) -> str:
        """As it says itself, on the broker that it is on."""
        gateway = self.gateways[name].gateway
        home = gateway.mesh.link.home if gateway and gateway.mesh else None
        report = self.person.reports.get((self.lan.resolve(name, home.address.host), name)) if home else None
        return report.state if report else ""

    def has(self, name: str, patch: dict[str, Any]) -> bool:
        gateway = self.gateways[name].gateway
        if gateway is None:
            return False
        plc = gateway.settings.devices["plc"]
        wanted = patch["devices"]["plc"]
        return all(getattr(plc, key) == value for key, value in wanted.items())

    def settled(self, patch: dict[str, Any], *names: str) -> bool:
        return all(self.has(name, patch) and self.state(name) == "active" for name in names)

    async def until(self, condition: Callable[[], object], what: str) -> None:
        end_s = self.loop.time() + LIMIT_S
        while not condition():
            assert self.loop.time() < end_s, f"{what}: {self._told()}"
            await asyncio.sleep(0.1)

    def _told(self) -> str:
        reports = {(host, name): (each.state, each.cause) for (host, name), each in self.person.reports.items()}
        return f"{reports}; taken {self.taken}; {self.errors}"


def simulated(scenario: Callable[[Five], Coroutine[Any, Any, None]], folder: Path, mode: str = "external", seed: int = 1) -> None:
    async def main() -> None:
        await scenario(Five(folder, mode))

    run(main, seed=seed)


def test_canaries_first_then_the_rest(tmp_path: Path) -> None:
    async def scenario(five: Five) -> None:
        async with five.running(*NAMES):
            await five.want(GOOD, CANARIES)
            await five.until(lambda: five.settled(GOOD, *NAMES), "all have it")
            first, rest = [five.taken[name] for name in CANARIES], [five.taken[name] for name in REST]
            assert min(rest) - max(first) > 4.0, "the rest begins when the canaries have confirmed it"

    simulated(scenario, tmp_path)


def test_what_a_canary_takes_back_nobody_keeps(tmp_path: Path) -> None:
    async def scenario(five: Five) -> None:
        bad = five.breaks("gw-2")
        async with five.running(*NAMES):
            await five.want(GOOD, [])
            await five.until(lambda: five.settled(GOOD, *NAMES), "all have the one before")
            await five.want({"devices": {"plc": {**GOOD["devices"]["plc"], **bad["devices"]["plc"]}}}, CANARIES)
            await five.until(
                lambda: five.has("gw-1", bad) and five.state("gw-1") == "active", "the canary for which it works has it"
            )
            await five.until(lambda: five.state("gw-2") == "reverted", "the other one takes it back")
            await five.until(lambda: all(five.state(name) == "rejected" for name in REST), "the others refuse it")
            await five.until(lambda: not five.has("gw-1", bad) and five.state("gw-1") != "trial", "who had it takes it back")
            await asyncio.sleep(30)
            assert not {*REST} & {*five.taken}
            assert all(five.has(name, GOOD) for name in NAMES), "all have the one before"

            await five.want(GOOD | {"log": {"level": "warning"}}, CANARIES)
            await five.until(lambda: five.settled(GOOD, *NAMES), "a better one is taken")

    simulated(scenario, tmp_path)


def test_the_same_again_is_tried_again(tmp_path: Path) -> None:
    """The canary's PLC was mended, the document is the same, in a newer revision."""

    async def scenario(five: Five) -> None:
        async with five.running(*NAMES):
            faulty = five.gateways["gw-1"].adapters["faulty"]
            bad = five.breaks("gw-1")
            five.gateways["gw-1"].crash()
            await five.until(lambda: five.state("gw-1") == "active" and five.gateways["gw-1"].gateway, "it is there again")
            await five.want(bad, ["gw-1"])
            await five.until(lambda: five.state("gw-1") == "reverted" and five.state("gw-5") == "rejected", "it is refused")
            five.gateways["gw-1"].adapters["faulty"] = faulty
            five.gateways["gw-1"].crash()
            await asyncio.sleep(5)
            await five.want(bad, ["gw-1"])
            await five.until(lambda: five.settled(bad, *NAMES), "all have it")

    simulated(scenario, tmp_path)


@pytest.mark.parametrize("at_s", [0.05, 1.0, 5.3, 6.0])
@pytest.mark.parametrize("power", [False, True])
def test_who_crashes_in_the_middle_goes_on(tmp_path: Path, at_s: float, power: bool) -> None:
    """A canary, and one that waits."""

    async def scenario(five: Five) -> None:
        async with five.running(*NAMES):
            await five.want(GOOD, CANARIES)
            await asyncio.sleep(at_s)
            for name in ("gw-2", "gw-4"):
                (five.gateways[name].cut_power if power else five.gateways[name].crash)()
            await five.until(lambda: five.settled(GOOD, *NAMES), "all have it")
            assert min(five.taken[name] for name in REST) - five.taken["gw-1"] > 4.0

    simulated(scenario, tmp_path)


def test_a_canary_that_crashes_of_it_stops_it(tmp_path: Path) -> None:
    async def scenario(five: Five) -> None:
        bomb = {"devices": {"plc": {"adapter": "bomb"}}}
        async with five.running(*NAMES):
            await five.want(bomb, ["gw-1"])
            await five.until(lambda: all(five.state(name) == "rejected" for name in NAMES[1:]), "nobody takes it")
            await five.until(lambda: five.state("gw-1") == "reverted", "it runs with the old one")
            assert not {*five.taken} - {"gw-1"}
            assert five.gateways["gw-1"].lives == 3

    simulated(scenario, tmp_path)


def test_one_that_was_away_comes_later(tmp_path: Path) -> None:
    async def scenario(five: Five) -> None:
        async with five.running(*NAMES[:4]):
            await five.want(GOOD, CANARIES)
            await five.until(lambda: five.settled(GOOD, *NAMES[:4]), "all that are there have it")
            five.begin("gw-5")
            await five.until(lambda: five.settled(GOOD, *NAMES), "the last one, too")
            bad = five.breaks("gw-2")
            five.gateways["gw-2"].crash()
            five.lan.cut("gw-5")
            await asyncio.sleep(10)
            await five.want(bad, CANARIES)
            await asyncio.sleep(60)
            five.lan.heal()
            await five.until(lambda: five.state("gw-5") == "rejected", "it hears that it was taken back")
            assert "gw-5" not in five.taken
            assert not any(five.has(name, bad) for name in NAMES)

    simulated(scenario, tmp_path)


def test_a_canary_that_is_away_is_waited_for(tmp_path: Path) -> None:
    async def scenario(five: Five) -> None:
        async with five.running(*NAMES):
            five.lan.cut("gw-2")
            await asyncio.sleep(5)
            await five.want(GOOD, CANARIES)
            await asyncio.sleep(60)
            assert five.settled(GOOD, "gw-1")
            assert [*five.taken] == ["gw-1"]
            five.lan.heal()
            await five.until(lambda: five.settled(GOOD, *NAMES), "all have it")

    simulated(scenario, tmp_path)


def moves(folder: Path, at_s: float, seed: int = 1) -> None:
    """The host of the broker dies with all that it knows: the document, and what the canaries have said."""

    async def scenario(five: Five) -> None:
        async with five.running(*NAMES[:4]):
            await asyncio.sleep(10)
            host = next(name for name in NAMES[:4] if five.gateways[name].broker.running)
            canaries = [name for name in NAMES[:4] if name != host][:2]
            await five.want(GOOD, canaries)
            await asyncio.sleep(at_s)
            five.gateways[host].cut_power()
            five.gateways[host].away_s = (20.0, 20.0)
            await asyncio.sleep(1.0)
            assert not five.gateways[host].broker.running
            five.begin("gw-5")  # it has never heard of it
            await five.until(lambda: five.settled(GOOD, *NAMES), "all have it")
            rest = [name for name in NAMES if name not in canaries]
            assert min(five.taken[name] for name in rest) - min(five.taken[name] for name in canaries) > 4.0

    simulated(scenario, folder, mode="auto", seed=seed)


@pytest.mark.parametrize("at_s", [0.5, 3.0, 5.6, 9.0])
def test_the_broker_moves_in_the_middle(tmp_path: Path, at_s: float) -> None:
    moves(tmp_path, at_s)


def test_without_saying_documents_again_they_would_be_lost(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    async def silent(_: object) -> None:
        await asyncio.sleep(0)

    monkeypatch.setattr(Reporting, "_say_documents", silent)
    monkeypatch.setattr(Neighbours, "_say_missing", silent)
    with pytest.raises(AssertionError, match="all have it"):
        moves(tmp_path, 3.0)
