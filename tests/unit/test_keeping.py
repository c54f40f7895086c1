"""The site's roster over MQTT: the newest one gets everywhere, a forged one nowhere, and a revocation is in force at once."""

from __future__ import annotations

from pathlib import Path

import msgspec
from keepers import Gateway, Plant, simulated
from trusted import Later, Site

from edge_runtime.control.audit import Kind
from edge_runtime.control.keeping import LOOK_S, WAITING_BYTES_MAX, WAITING_MAX
from edge_runtime.ports import Revoked
from edge_runtime.trust import envelope, files
from edge_runtime.trust.authority import Authority
from edge_runtime.trust.files import NotWritten
from edge_runtime.trust.roster import encode


def test_a_broker_without_one_gets_ours_and_once(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        first = plant.start("press")
        others = [plant.start(name) for name in ("saw", "oven", "mill", "lathe")]
        plant.site.roster(first.identity, *(each.identity for each in others))
        await plant.settled()
        assert plant.kept == plant.site.authority.roster()
        assert plant.rosters() <= 2  # of five that could have said it

    simulated(scenario, tmp_path)


def test_who_comes_with_a_newer_one_brings_it_to_all(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        old = [plant.start(name) for name in ("press", "saw")]
        await plant.settled()
        newcomer = plant.start("oven")  # its identity names all three
        await plant.settled()
        assert {each.identity.roster.revision for each in (*old, newcomer)} == {4}
        assert plant.kept == plant.site.authority.roster()
        assert (old[0].identity.folder / "roster.json").read_bytes() == plant.kept

    simulated(scenario, tmp_path)


def test_a_revocation_is_in_force_at_once_and_stands_in_the_audit_log(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press, saw = plant.start("press"), plant.start("saw")
        plant.site.roster(press.identity, saw.identity)
        seen: list[bool] = []
        press.keeping.changed.append(lambda: seen.append(press.identity.roster.named("saw") is None))
        await plant.settled()
        plant.site.authority.revoke("saw", "stolen")
        await plant.say_roster(plant.site.authority.roster())
        await plant.settled(0.1)
        assert seen == [True]
        (entry,) = [each for each in press.audit if each.subject == "roster"]
        assert (entry.kind, entry.outcome, entry.before) == (Kind.TRUST, "taken", {"revision": 3})
        assert entry.requested == {"revision": 4, "members": 1, "revoked": ["saw"]}

    simulated(scenario, tmp_path)


def test_who_is_revoked_says_so_and_does_not_fight(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        saw = plant.start("saw")
        await plant.settled()
        before = plant.kept
        plant.site.authority.revoke("saw", "stolen")
        await plant.say_roster(plant.site.authority.roster())
        await plant.settled()
        assert saw.keeping.standing.revoked
        assert "revoked" in saw.keeping.standing.cause
        assert saw.log.count("gateway_revoked") == 1
        assert [each.outcome for each in saw.audit] == ["taken", "revoked"]
        said = plant.rosters()
        await plant.say_roster(before)  # it would be for the others to say the newer one
        await plant.settled()
        assert plant.rosters() == said + 1

    simulated(scenario, tmp_path)


def test_who_is_turned_away_as_revoked_and_knows_of_nothing_says_so(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        saw = plant.start("saw")
        await plant.settled()
        saw.refuses_us = Revoked("the broker says that we are revoked", "bring us the roster")
        standing = saw.keeping.standing
        assert (standing.revoked, standing.cause, standing.hint) == (False, saw.refuses_us.cause, saw.refuses_us.hint)
        plant.site.authority.revoke("saw", "stolen")
        plant.site.roster(saw.identity)
        assert saw.keeping.standing.revoked, "now it knows"
        assert saw.keeping.standing.cause != standing.cause

    simulated(scenario, tmp_path)


def test_an_old_one_is_answered_with_ours(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        old = plant.site.authority.roster()
        press = plant.start("press")
        await plant.settled()
        for wrong in (old, b""):
            await plant.say_roster(wrong)
            await plant.settled()
            assert plant.kept == press.identity.signed_roster
        assert press.identity.roster.revision == 2
        assert press.keeping.refused == {"older": 1}

    simulated(scenario, tmp_path)


def test_a_forged_one_is_counted_not_taken_and_replaced(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press, saw = plant.start("press"), plant.start("saw")
        plant.site.roster(press.identity, saw.identity)
        await plant.settled()
        more = msgspec.structs.replace(press.identity.roster, revision=99, members=())
        forged = [
            envelope.seal(encode(more), "roster", saw.identity.key, "authority"),  # by a member
            Site(tmp_path / "other", plant.site.name).authority.roster(),  # by another authority of the same name
            press.identity.signed_roster.replace(b"press", b"preSs"),
            b"{}", b"\xff" * 10,
        ]  # fmt: skip
        for each in forged:
            await plant.say_roster(each)
            await plant.settled()
            assert plant.kept == press.identity.signed_roster
        assert press.keeping.refused == {"forged": len(forged)}
        assert press.log.count("roster_refused") == 1
        assert press.identity.roster.revision == 3

    simulated(scenario, tmp_path)


def test_two_of_one_revision_are_told_of_and_nobody_fights(tmp_path: Path) -> None:
    """The authority's folder was restored from a backup, and has gone on."""

    async def scenario(plant: Plant) -> None:
        authority = plant.site.authority
        backup = authority.roster()
        press = plant.start("press")
        await plant.settled()
        (authority.folder / "roster.json").write_bytes(backup)
        restored = Authority.open(authority.folder, "correct horse battery", Later())
        restored.issue(plant.site.csr("other"), "other", "gateway")
        await plant.say_roster(restored.roster())
        said = plant.rosters()
        await plant.settled(60)
        assert press.keeping.refused == {"conflict": 1}
        assert plant.rosters() == said
        assert press.identity.roster.named("press")

    simulated(scenario, tmp_path)


def test_a_full_disk_does_not_lose_a_revocation(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        plant.start("saw")
        await plant.settled()
        full = True

        def no_room(function: object) -> None:
            if full and getattr(function, "__name__", "") == "take_roster":
                raise NotWritten("roster.json: cannot be written: No space left on device", "is the disk full?")

        press.worker.before = no_room
        plant.site.authority.revoke("saw", "stolen")
        await plant.say_roster(plant.site.authority.roster())
        await plant.settled()
        assert "No space left" in press.keeping.standing.cause
        assert press.log.count("roster_not_kept") == 1
        full = False
        await plant.settled()
        assert press.keeping.standing.cause == ""
        assert press.identity.roster.named("saw") is None

    simulated(scenario, tmp_path)


def test_a_flood_is_bounded_and_does_not_hide_the_true_one(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        await plant.settled()
        plant.start("saw")
        press.worker.delay_s = (0.2, 0.2)
        for number in range(50):
            await plant.say_roster(b"%d" % number)
        assert press.keeping.refused["flood"] > 50 - 2 * WAITING_MAX
        await plant.settled()
        assert press.identity.roster.revision == 3

    simulated(scenario, tmp_path)


def test_large_ones_do_not_fill_the_memory(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        await plant.settled()
        press.worker.delay_s = (60.0, 60.0)
        for _ in range(4):
            await plant.say_roster(b"x" * (WAITING_BYTES_MAX // 2))
        await plant.settled(1)
        assert sum(map(len, press.keeping._waiting)) <= WAITING_BYTES_MAX
        assert press.keeping.refused["flood"] >= 1
        await plant.say_roster(b"x" * (WAITING_BYTES_MAX + 1))
        await plant.settled(1)
        assert sum(press.link.bad.values()) == 1

    simulated(scenario, tmp_path)


# --- on a stick ------------------------------------------------------------------------------------------------------


def by_stick(gateway: Gateway, payload: bytes) -> None:
    """As `edge-runtime join --roster` does, in another process."""
    files.write(gateway.identity.roster_file, payload)


def test_one_that_comes_on_a_stick_is_taken_while_it_runs_and_handed_on(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press, saw = plant.start("press"), plant.start("saw")
        plant.site.roster(press.identity, saw.identity)
        await plant.settled()
        plant.site.member("oven")
        plant.site.authority.revoke("oven", "stolen")
        by_stick(press, plant.site.authority.roster())
        there = press.identity.roster_file.stat()
        await plant.settled(LOOK_S + 0.1)
        assert press.identity.roster.revision == 5
        assert press.identity.roster_file.stat().st_ino == there.st_ino  # who has put it there may still be at it
        (entry,) = [each for each in press.audit if each.subject == "roster"]
        assert (entry.via, entry.outcome) == (str(press.identity.roster_file), "taken")
        assert entry.requested == {"revision": 5, "members": 2, "revoked": ["oven"]}
        await plant.settled()
        assert saw.identity.roster.revision == 5
        assert plant.rosters() == 2  # of the one before, and of this

    simulated(scenario, tmp_path)


def test_without_any_broker_too(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        plant.broker.kill()
        press = plant.start("press")
        seen: list[int] = []
        press.keeping.changed.append(lambda: seen.append(press.identity.roster.revision))
        await plant.settled()
        plant.site.member("saw")
        by_stick(press, plant.site.authority.roster())
        await plant.settled()
        assert (press.connections, seen) == (0, [3])

    simulated(scenario, tmp_path)


def test_an_older_one_on_the_disk_is_replaced_by_ours(tmp_path: Path) -> None:
    """Somebody copied it there; or the network was faster than `join`, which had begun before."""

    async def scenario(plant: Plant) -> None:
        old = plant.site.authority.roster()
        press = plant.start("press")
        await plant.settled()
        full = True

        def no_room(function: object) -> None:
            if full and getattr(function, "__name__", "") == "keep_roster":
                raise NotWritten("roster.json: cannot be written: No space left on device", "is the disk full?")

        press.worker.before = no_room
        by_stick(press, old)
        await plant.settled(5 * LOOK_S)
        assert press.log.count("roster_not_kept") == 1
        assert "No space left" in press.keeping.standing.cause
        full = False
        await plant.settled()
        assert press.identity.roster_file.read_bytes() == press.identity.signed_roster
        assert (press.identity.roster.revision, press.keeping.standing.cause) == (2, "")

    simulated(scenario, tmp_path)


def test_what_our_authority_has_not_signed_is_told_of_once_and_left_there(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        await plant.settled()
        other = Site(tmp_path / "other", plant.site.name)
        other.member("press")
        by_stick(press, other.authority.roster())
        await plant.settled(5 * LOOK_S)
        assert press.identity.roster.revision == 2
        assert press.identity.roster_file.read_bytes() == other.authority.roster()
        assert press.keeping.refused == {"forged": 1}
        press.identity.folder.rename(tmp_path / "press.old")  # it leaves the site
        await plant.settled(2 * LOOK_S)
        assert not press.identity.folder.exists()
        assert press.keeping.standing.cause == ""

    simulated(scenario, tmp_path)


def test_nothing_is_written_into_a_folder_that_is_of_another_site_by_now(tmp_path: Path) -> None:
    """`mv identity`, and `join` there: the gateway still runs as the old member, and hears the old site."""

    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        await plant.settled()
        folder, revision = press.identity.folder, press.identity.roster.revision
        folder.rename(tmp_path / "press.old")
        Site(tmp_path / "other", "other").member("press").folder.rename(folder)
        there = {path.name: path.read_bytes() for path in folder.iterdir()}
        plant.site.member("saw")
        await plant.say_roster(plant.site.authority.roster())
        await plant.settled(10 * LOOK_S)
        assert {path.name: path.read_bytes() for path in folder.iterdir()} == there
        assert press.log.count("roster_not_kept") == 1
        assert "belongs to the site other by now" in press.keeping.standing.cause
        assert "restart" in press.keeping.standing.hint
        by_stick(press, plant.site.authority.roster())  # nor is one of ours that somebody has put there a reason
        await plant.settled(2 * LOOK_S)
        assert press.identity.roster.revision == revision
        folder.rename(tmp_path / "other.press")
        (tmp_path / "press.old").rename(folder)  # it was a mistake
        await plant.settled(2 * LOOK_S)
        assert (press.identity.roster.revision, press.keeping.standing.cause) == (revision + 1, "")
        assert (press.keeping.refused, press.log.count("roster_not_kept")) == ({}, 1)

    simulated(scenario, tmp_path)


def test_two_of_one_revision_on_the_disk_are_told_of_and_nobody_fights(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        authority = plant.site.authority
        backup = authority.roster()
        press = plant.start("press")
        await plant.settled()
        (authority.folder / "roster.json").write_bytes(backup)
        restored = Authority.open(authority.folder, "correct horse battery", Later())
        restored.issue(plant.site.csr("other"), "other", "gateway")
        by_stick(press, restored.roster())
        await plant.settled(5 * LOOK_S)
        assert press.keeping.refused == {"conflict": 1}
        assert press.identity.roster_file.read_bytes() == restored.roster()
        assert press.identity.roster.named("press")

    simulated(scenario, tmp_path)


def test_a_flood_does_not_hide_the_one_on_the_stick(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        await plant.settled()
        press.worker.delay_s = (0.2, 0.2)
        plant.site.member("saw")
        by_stick(press, plant.site.authority.roster())
        for number in range(100):
            await plant.say_roster(b"%d" % number)
            await plant.settled(0.1)
        assert press.keeping.refused["flood"]
        assert press.identity.roster.revision == 3

    simulated(scenario, tmp_path)
