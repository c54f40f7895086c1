"""The rules of ports_mesh.Discovery as tests: they run over real mDNS and over the simulated one.

    class TestMine(DiscoverySuite):
        def play(self, scenario):
            asyncio.run(scenario(new))      # `new()` gives another participant of the same network, not opened

What is announced may come late or, on a bad network, only when it is repeated; no rule asks for more.
"""

from __future__ import annotations

import asyncio
import itertools
from collections.abc import Awaitable, Callable, Sequence
from functools import partial

import msgspec

from edge_runtime.ports_mesh import Announcement, Discovery, Endpoint

FAR_TOO_LONG_S = 20.0
"""What has not come by now never will; no promise of speed."""

New = Callable[[], Discovery]
Scenario = Callable[[New], Awaitable[None]]

_instances = itertools.count(1)


class DiscoverySuite:
    """Subclass it and give `play`. `site`: of its own for each test process that may share a network."""

    site = "suite"

    def play(self, scenario: Scenario) -> None:
        raise NotImplementedError

    def announcement(self, gateway: str, **changes: object) -> Announcement:
        """Of a process of its own."""
        instance = f"{next(_instances):08x}"
        mine = Announcement(
            site=self.site,
            gateway=gateway,
            instance=instance,
            role="candidate",
            rank=7,
            endpoints=(Endpoint("", 1884),),
            version="1.2.3",
            fingerprint="ab12",
        )
        return msgspec.structs.replace(mine, **changes)

    def test_all_find_each_other_sorted_and_nobody_finds_itself(self) -> None:
        async def scenario(new: New) -> None:
            all_of_them = [(new(), self.announcement(name)) for name in ("c", "a", "b")]
            for one, mine in all_of_them:
                await one.open(mine)
            for one, mine in all_of_them:
                await eventually(one, finds(*sorted({"a", "b", "c"} - {mine.gateway})))
            await close(*(one for one, _ in all_of_them))

        self.play(scenario)

    def test_what_is_found_is_what_was_announced_with_an_address(self) -> None:
        async def scenario(new: New) -> None:
            one, other = new(), new()
            mine = self.announcement("a")
            await one.open(mine)
            await other.open(self.announcement("b"))
            (found,) = await eventually(other, finds("a"))
            assert msgspec.structs.replace(found, endpoints=()) == msgspec.structs.replace(mine, endpoints=())
            assert found.endpoints
            assert all(each.host and each.port == 1884 for each in found.endpoints)
            await close(one, other)

        self.play(scenario)

    def test_what_changes_is_heard(self) -> None:
        async def scenario(new: New) -> None:
            one, other = new(), new()
            mine = self.announcement("a")
            await one.open(mine)
            await other.open(self.announcement("b"))
            for role, rank in (("host", 7), ("host", 3), ("guest", 3), ("candidate", 9)):
                await one.announce(msgspec.structs.replace(mine, role=role, rank=rank))
                await eventually(other, partial(_tells, role, rank))
            await close(one, other)

        self.play(scenario)

    def test_a_goodbye_takes_away_and_the_next_life_is_found(self) -> None:
        async def scenario(new: New) -> None:
            watcher = new()
            await watcher.open(self.announcement("b"))
            for _ in range(2):
                one, mine = new(), self.announcement("a")
                await one.open(mine)
                await eventually(watcher, partial(_is, mine.instance))
                await close(one, one)
                await eventually(watcher, finds())
            await close(watcher)

        self.play(scenario)

    def test_two_gateways_with_one_name_are_both_found(self) -> None:
        async def scenario(new: New) -> None:
            watcher, one, other = new(), new(), new()
            for each, name in ((watcher, "b"), (one, "a"), (other, "a")):
                await each.open(self.announcement(name))
            found = await eventually(watcher, finds("a", "a"))
            assert len({each.instance for each in found}) == 2
            await eventually(one, finds("a", "b"))
            await close(watcher, one, other)

        self.play(scenario)

    def test_another_site_is_not_found(self) -> None:
        async def scenario(new: New) -> None:
            one, stranger, late = new(), new(), new()
            await one.open(self.announcement("a"))
            await stranger.open(self.announcement("s", site=f"{self.site}-2"))
            await late.open(self.announcement("z"))
            await eventually(one, finds("z"))
            await eventually(late, finds("a"))
            assert not stranger.found()
            await close(one, stranger, late)

        self.play(scenario)

    def test_close_without_open(self) -> None:
        async def scenario(new: New) -> None:
            await new().close()

        self.play(scenario)


async def eventually(one: Discovery, holds: Callable[[Sequence[Announcement]], bool]) -> Sequence[Announcement]:
    """Waits for `changed`, and looks; what is found when it holds."""
    try:
        async with asyncio.timeout(FAR_TOO_LONG_S):
            while not holds(found := one.found()):
                await one.changed.wait()
                one.changed.clear()
    except TimeoutError:
        raise AssertionError(f"after {FAR_TOO_LONG_S:g} s this is found: {one.found()}") from None
    return found


def finds(*names: str) -> Callable[[Sequence[Announcement]], bool]:
    """Gateways of these names, in this order, and no others."""
    return lambda found: [each.gateway for each in found] == list(names)


def _tells(role: str, rank: int, found: Sequence[Announcement]) -> bool:
    return [(each.role, each.rank) for each in found] == [(role, rank)]


def _is(instance: str, found: Sequence[Announcement]) -> bool:
    return [each.instance for each in found] == [instance]


async def close(*discoveries: Discovery) -> None:
    for each in discoveries:
        await each.close()
