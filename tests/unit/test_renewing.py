"""Renewal of certificates: asked for in time and once, taken from the authority only; no clock, right or wrong, makes a storm."""

from __future__ import annotations

from pathlib import Path

from keepers import YEAR_S, Gateway, Plant, simulated
from trusted import NOW_S, Site, Still

from edge_runtime.bus import renewal, topics
from edge_runtime.cli.site import asking
from edge_runtime.control.audit import Kind
from edge_runtime.control.keeping import LOOK_S
from edge_runtime.ports import Message
from edge_runtime.records import Stamp
from edge_runtime.testing.network import FakeBroker
from edge_runtime.trust import envelope, files
from edge_runtime.trust.authority import Authority
from edge_runtime.trust.files import NotWritten

DAY_S = 86_400


class InYears(Still):
    def __init__(self, years: float) -> None:
        self.wall_ns = int((NOW_S + years * YEAR_S) * 10**9)

    def now(self) -> Stamp:
        return Stamp(boot="boot", mono_ns=0, wall_ns=self.wall_ns, synced=True)


def authority(plant: Plant, years: float) -> Authority:
    """The same, so much later."""
    plant.site.authority._clock = InYears(years)  # to open its folder again would cost the passphrase each time
    return plant.site.authority


def clock(gateway: Gateway, years: float, *, synced: bool = True) -> None:
    gateway.clock.wall_offset_ns = int((NOW_S + years * YEAR_S) * 10**9)
    gateway.clock.synced = synced


def topic(plant: Plant, what: str, name: str = "press") -> str:
    return topics.gateway(plant.site.name, name, "renewal", what)


def requests(plant: Plant, name: str = "press") -> list[bytes]:
    return [payload for each, payload in plant.published if each == topic(plant, "request", name)]


def kept(plant: Plant, what: str = "request") -> bytes:
    found = plant.broker.retained.get(topic(plant, what))
    return found.payload if found else b""


async def answer(plant: Plant, years: float, name: str = "press") -> asking.Answered:
    """As `edge-runtime site renew` does."""
    request = plant.broker.retained[topic(plant, "request", name)]
    message = Message(request.topic, request.payload, 1, True, False, 1, 1)
    signing = authority(plant, years)
    roster = envelope.open_roster(signing.roster(), signing.site, signing.public)
    found = asking.answer(message, signing, roster, int(NOW_S + years * YEAR_S))
    assert found is not None
    if found.certificate:
        await plant.say_roster(signing.roster())
        document = renewal.pack(renewal.Answer(gateway=name, certificate=found.certificate.decode()))
        await plant.say(topic(plant, "answer", name), document)
    await plant.settled()
    return found


def test_half_of_its_life_is_left_alone_then_it_asks_once(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        clock(press, 0.99)
        await plant.settled(2 * LOOK_S)
        assert not requests(plant)
        clock(press, 1.01)
        await plant.settled(20 * LOOK_S)
        (request,) = requests(plant)
        opened = envelope.open(request, renewal.RENEWAL, press.identity.roster)
        found = renewal.unpack(opened.document, renewal.Request)
        assert (opened.by, found.gateway, found.serial) == ("press", "press", press.identity.subject.serial)
        assert press.log.count("renewal_asked") == 1

    simulated(scenario, tmp_path)


def test_the_answer_is_taken_and_the_request_is_taken_back(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        clock(press, 1.5)
        await plant.settled()
        before = press.identity.subject
        found = await answer(plant, 1.5)
        assert found.outcome == "renewed"
        after = press.identity.subject
        assert after.key == before.key
        assert after.not_after_s - before.not_after_s == int(1.5 * YEAR_S)
        assert press.identity.roster.member(press.identity.key.fingerprint).serial == after.serial  # type: ignore[union-attr]
        assert kept(plant) == b""
        (entry,) = [each for each in press.audit if each.subject == "certificate"]
        assert (entry.kind, entry.outcome) == (Kind.TRUST, "renewed")
        assert press.log.count("certificate_renewed") == 1
        said = len(requests(plant))
        await plant.settled(5 * LOOK_S)
        assert len(requests(plant)) == said

    simulated(scenario, tmp_path)


def test_a_clock_that_is_not_right_asks_for_nothing(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        for years in (-55, 1.5, 40, 1.9):
            clock(press, years, synced=False)
            await plant.settled(2 * LOOK_S)
        assert press.renewing.left_s() is None
        assert not requests(plant)

    simulated(scenario, tmp_path)


def test_a_clock_that_is_wrong_and_says_that_it_is_right_makes_no_storm(tmp_path: Path) -> None:
    """It jumps to and fro for days: one request a connection, and the authority makes one certificate at most."""

    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        for years in (30, -55, 3, 0, 70) * 20:
            clock(press, years)
            await plant.settled(LOOK_S)
        assert press.connections == 1
        assert len([each for each in requests(plant) if each]) == 1
        clock(press, 30)
        assert (await answer(plant, 0.0)).outcome == "not due"
        issued = len(list((plant.site.authority.folder / "issued").iterdir()))
        assert issued == 1
        assert (await answer(plant, 1.2)).outcome == "renewed"
        await plant.settled(LOOK_S)  # by its clock the new one has run out, too: it asks once more
        assert (await answer(plant, 1.2)).outcome == "not due"
        assert len(list((plant.site.authority.folder / "issued").iterdir())) == issued + 1

    simulated(scenario, tmp_path)


def test_a_request_that_was_answered_gets_the_same_answer(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        clock(press, 1.5)
        await plant.settled()
        request = kept(plant)
        await answer(plant, 1.5)
        await plant.say(topic(plant, "request"), request)  # it was away, and did not hear
        again = await answer(plant, 1.6)
        assert again.outcome == "answered again"
        assert again.renew_by_s == press.identity.not_after_s

    simulated(scenario, tmp_path)


def test_on_another_broker_it_asks_again(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        clock(press, 1.5)
        await plant.settled()
        press.broker = FakeBroker(plant.lan, "other")
        plant.broker.kill()
        await plant.settled(LOOK_S)
        assert topic(plant, "request") in press.broker.retained

    simulated(scenario, tmp_path)


def test_the_request_of_an_earlier_life_is_taken_back(tmp_path: Path) -> None:
    """It was renewed with a file, and started again."""

    async def scenario(plant: Plant) -> None:
        await plant.say(topic(plant, "request"), b"{}")
        plant.start("press")
        await plant.settled()
        assert kept(plant) == b""

    simulated(scenario, tmp_path)


def test_only_a_certificate_of_ours_is_taken(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press, saw = plant.start("press"), plant.start("saw")
        before = press.identity.subject
        for certificate in ("no certificate", saw.identity.cert_file.read_text(), authority(plant, 1).renew("saw").decode()):
            await plant.say(topic(plant, "answer"), renewal.pack(renewal.Answer(gateway="press", certificate=certificate)))
            await plant.settled(1)
        await plant.say(topic(plant, "answer"), b"[]")
        await plant.settled(1)
        assert press.renewing.refused == {"forged": 3, "malformed": 1}
        assert press.identity.subject == before

    simulated(scenario, tmp_path)


def test_a_full_disk_takes_it_later(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        clock(press, 1.5)
        await plant.settled()
        full = True

        def no_room(function: object) -> None:
            if full and getattr(function, "__name__", "") == "take_certificate":
                raise NotWritten("cert.pem: cannot be written", "")

        press.worker.before = no_room
        before = press.identity.not_after_s
        await answer(plant, 1.5)
        assert press.identity.not_after_s == before
        assert press.renewing.refused["disk"] > 1
        full = False
        await plant.settled()
        assert press.identity.not_after_s > before

    simulated(scenario, tmp_path)


def by_stick(gateway: Gateway, certificate: bytes, roster: bytes = b"") -> None:
    """As `edge-runtime join --answer` does, in another process."""
    files.write(gateway.identity.cert_file, certificate)
    if roster:
        files.write(gateway.identity.roster_file, roster)


def test_a_certificate_on_a_stick_is_taken_while_it_runs(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        clock(press, 1.5)
        await plant.settled()
        assert requests(plant)
        by_stick(press, authority(plant, 1.5).renew("press"), authority(plant, 1.5).roster())
        await plant.settled()
        assert press.identity.not_after_s == NOW_S + int(3.5 * YEAR_S)
        (entry,) = [each for each in press.audit if each.subject == "certificate"]
        assert (entry.via, entry.outcome) == (str(press.identity.cert_file), "renewed")
        assert kept(plant) == b""  # nothing is asked for any more

    simulated(scenario, tmp_path)


def test_it_is_taken_as_soon_where_the_roster_was_here_before(tmp_path: Path) -> None:
    """Over the broker, as it most often is: then nothing but the certificate's own file says that there is one."""

    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        await plant.settled()
        renewed = authority(plant, 0.5).renew("press")
        await plant.say_roster(authority(plant, 0.5).roster())
        await plant.settled()
        assert press.identity.roster.revision == 3
        by_stick(press, renewed, authority(plant, 0.5).roster())
        await plant.settled()
        assert press.identity.not_after_s == NOW_S + int(2.5 * YEAR_S)
        assert press.log.count("certificate_renewed") == 1

    simulated(scenario, tmp_path)


def test_nothing_is_written_into_a_folder_that_is_another_members_by_now(tmp_path: Path) -> None:
    """The same site was joined anew, or another one of the same name; what was made for the old key comes afterwards."""

    async def scenario(plant: Plant) -> None:
        press = plant.start("press")
        clock(press, 1.5)
        await plant.settled()
        folder, before = press.identity.folder, press.identity.subject
        folder.rename(tmp_path / "press.old")
        elsewhere = Site(tmp_path / "other", plant.site.name)
        for there in (plant.site.member("press-2").folder, elsewhere.member("press").folder):
            there.rename(folder)
            certificate = press.identity.cert_file.read_bytes()
            await answer(plant, 1.5)
            await plant.settled(5 * LOOK_S)
            assert press.identity.cert_file.read_bytes() == certificate
            folder.rename(tmp_path / f"{there.name}.away")
        assert press.identity.subject == before
        assert set(press.renewing.refused) == {"moved"}
        assert press.log.count("renewal_refused") == 1

    simulated(scenario, tmp_path)


def test_a_certificate_on_the_disk_that_is_not_ours_is_told_of_once_and_left_there(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press, saw = plant.start("press"), plant.start("saw")
        await plant.settled()
        before, other = press.identity.subject, saw.identity.cert_file.read_bytes()
        by_stick(press, other)
        await plant.settled(5 * LOOK_S)
        assert (press.identity.subject, press.renewing.refused) == (before, {"forged": 1})
        assert press.identity.cert_file.read_bytes() == other

    simulated(scenario, tmp_path)


def test_whose_request_it_is(tmp_path: Path) -> None:
    async def scenario(plant: Plant) -> None:
        press, saw = plant.start("press"), plant.start("saw")
        clock(press, 1.5)
        await plant.settled()
        good = kept(plant)
        plant.site.roster(press.identity, saw.identity)
        for wrong in (good.replace(b"press", b"preSS"), b"{}", saw.identity.sign(b"{}", renewal.RENEWAL)):
            await plant.say(topic(plant, "request"), wrong)
            assert (await answer(plant, 1.5)).outcome == "refused"
        await plant.say(topic(plant, "request", "saw"), good)  # on another's topic
        assert (await answer(plant, 1.5, "saw")).outcome == "refused"

    simulated(scenario, tmp_path)
