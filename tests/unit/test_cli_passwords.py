"""`edge-runtime site person` with a password, as it is typed. What a broker makes of it: integration/test_passwords.py."""

from __future__ import annotations

import argparse
import io
import json
import os
import pty
import re
import shutil
import sys
from collections.abc import Callable
from pathlib import Path

import msgspec
import pytest
from trusted import Site

from edge_runtime import cli
from edge_runtime.cli import identity
from edge_runtime.cli.mesh import finding
from edge_runtime.cli.site import opening
from edge_runtime.cli.talking import Talk
from edge_runtime.trust import keys, passwords
from edge_runtime.trust.identity import Identity
from edge_runtime.trust.roster import Forged

PASSPHRASE = "correct horse"
PLAIN = "olaf has a long password"
OLAF = ("site", "person", "olaf", "--role", "operator")

Command = Callable[..., tuple[str, str]]


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plant-site; copied for each test. Its passphrase is cheap: it is not what is looked at here."""
    folder = tmp_path_factory.mktemp("plant")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv(opening.ENVIRONMENT, PASSPHRASE)
        patch.setattr(keys, "_SCRYPT_N", 2)
        assert cli.main(["site", "init", "plant"]) == 0
    return folder


@pytest.fixture
def plant(made: Path, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]) -> Command:
    """Types it; gives what it says on standard output and error. `typed`: standard input."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(opening.ENVIRONMENT, PASSPHRASE)
    monkeypatch.delenv(identity.ENVIRONMENT, raising=False)
    shutil.copytree(made, tmp_path, dirs_exist_ok=True)

    def command(*words: str, status: int = 0, typed: str = "") -> tuple[str, str]:
        monkeypatch.setattr(sys, "stdin", io.TextIOWrapper(io.BytesIO(typed.encode())))
        got = cli.main(words)
        out, err = capsys.readouterr()
        assert got == status, err
        return out, err

    return command


def kept(name: str = "olaf") -> str:
    """The hash in the roster."""
    member = opening.roster(Path("plant-site"))[1].named(name)
    assert member
    return member.password


def test_one_is_made_by_chance_and_shown_once_and_is_in_no_file(plant: Command, tmp_path: Path) -> None:
    out, _ = plant(*OLAF, "--generate")
    (shown,) = re.findall(r"password, shown this once: (\S+)", out)
    assert passwords.matches(shown, kept())
    assert "site roster --publish" in out
    assert Identity.load(Path("olaf-identity"))  # and a certificate, as everybody
    again = json.loads(plant(*OLAF, "--generate", "--json")[0])
    assert (again["password"] != shown, passwords.matches(again["password"], kept())) == (True, True)
    for file in tmp_path.rglob("*"):
        assert not file.is_file() or not {shown.encode(), again["password"].encode()} & set(file.read_bytes().split()), file
        assert not file.is_file() or shown.encode() not in file.read_bytes(), file


def test_it_comes_from_standard_input_or_a_file_that_only_its_owner_can_read(plant: Command, tmp_path: Path) -> None:
    out, err = plant(*OLAF, "--password", typed=PLAIN + "\n")
    assert passwords.matches(PLAIN, kept())
    assert PLAIN not in out + err
    before, folder = kept(), (tmp_path / "olaf-identity" / "cert.pem").read_bytes()
    assert "olaf has a new password" in plant(*OLAF, "--password-file", "-", typed=PLAIN)[0]
    assert kept() != before  # the same one, with other salt
    assert passwords.matches(PLAIN, kept())
    file = tmp_path / "secret"
    file.write_text("quite another password\n")
    file.chmod(0o644)
    assert "others on this machine can read" in plant(*OLAF, "--password-file", "secret", status=1)[1]
    file.chmod(0o600)
    plant(*OLAF, "--password-file", "secret")
    assert passwords.matches("quite another password", kept())
    assert (tmp_path / "olaf-identity" / "cert.pem").read_bytes() == folder


def test_it_is_taken_away_and_who_has_one_is_shown(plant: Command) -> None:
    plant(*OLAF, "--generate")
    plant("site", "person", "vera", "--role", "viewer")
    rows = [line.split() for line in plant("site", "members")[0].splitlines()[1:]]
    assert [(row[0], row[4]) for row in rows[1:]] == [("olaf", "yes"), ("vera", "-")]
    assert kept()[:20] not in plant("site", "members", "--json")[0]
    shown = json.loads(plant("site", "members", "--json")[0])["members"]
    assert {each["name"]: each["password"] for each in shown} == {"olaf": True, "vera": False}
    assert "only the certificate counts" in plant(*OLAF, "--no-password")[0]
    assert kept() == ""
    assert "olaf has no password" in plant(*OLAF, "--no-password", status=1)[1]


def test_a_new_laptop_has_the_old_password_no_more(plant: Command) -> None:
    first = json.loads(plant(*OLAF, "--generate", "--json")[0])["password"]
    plant(*OLAF, "--replace", "-o", "second")
    assert kept() == ""
    plant(*OLAF, "--replace", "-o", "third", "--generate")
    assert not passwords.matches(first, kept())
    plant("site", "revoke", "olaf")
    assert b"$7$" not in (Path("plant-site") / "roster.json").read_bytes()


def interrupted(plant: Command, *words: str) -> None:
    """When the roster has the person, and the folder is not there yet."""

    def cut(*_: object, **__: object) -> None:
        raise KeyboardInterrupt

    with pytest.MonkeyPatch.context() as patch:
        patch.setattr(Identity, "finish", cut)
        plant(*words, status=130)
    assert not Path("olaf-identity").exists()


@pytest.mark.parametrize("first", [(), ("--generate",)])
def test_the_one_that_is_shown_counts_after_an_interruption(plant: Command, first: tuple[str, ...]) -> None:
    interrupted(plant, *OLAF, *first)
    unseen = kept()
    assert bool(unseen) == bool(first)
    shown = json.loads(plant(*OLAF, "--replace", "--generate", "--json")[0])["password"]
    assert passwords.matches(shown, kept())
    assert kept() != unseen
    assert not opening.roster(Path("plant-site"))[1].revoked  # it is the key of before
    assert Identity.load(Path("olaf-identity"))


def test_one_that_nobody_has_seen_is_not_kept(plant: Command) -> None:
    """--replace takes the old one away, also where the key is the same."""
    interrupted(plant, *OLAF, "--generate")
    assert kept()
    plant(*OLAF, "--replace")
    assert kept() == ""


@pytest.mark.parametrize(
    ("words", "typed", "told"),
    [
        (("olaf", "--role", "operator", "--password"), "short", "12 characters or more"),
        (("olaf", "--role", "operator", "--password"), "", "is empty, or more than one line"),
        (("scale", "--role", "device", "--generate"), "", "scale is a device: it has no password"),
        (("cloud", "--role", "receiver", "--password"), PLAIN, "cloud is a receiver: it has no password"),
        (("vera", "--role", "operator", "--password"), PLAIN, "vera is a member already: viewer"),
    ],
)
def test_what_is_no_password_changes_nothing(plant: Command, words: tuple[str, ...], typed: str, told: str) -> None:
    plant("site", "person", "vera", "--role", "viewer")
    before = sorted(Path().rglob("*")), (Path("plant-site") / "roster.json").read_bytes()
    assert told in plant("site", "person", *words, status=1, typed=typed)[1]
    assert (sorted(Path().rglob("*")), (Path("plant-site") / "roster.json").read_bytes()) == before


@pytest.mark.parametrize(("second", "status"), [(PLAIN, 0), ("olaf has a lung password", 1)])
def test_on_a_terminal_a_password_is_asked_for_twice_and_not_shown(plant: Command, second: str, status: int) -> None:
    environment = {**os.environ, "PYTHONPATH": str(Path(cli.__file__).parents[2])}
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, "-m", "edge_runtime", *OLAF, "--password"], environment)
    said = b""
    try:
        for prompt, answer in ((b"characters): ", PLAIN), (b"again: ", second)):
            while not said.endswith(prompt):
                said += os.read(terminal, 1024)
            os.write(terminal, answer.encode() + b"\n")
        while content := os.read(terminal, 1024):
            said += content
    except OSError:  # it has ended
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
    os.close(terminal)
    assert PLAIN.encode() not in said
    assert status == 1 or passwords.matches(PLAIN, kept())


@pytest.mark.parametrize(
    ("words", "told"),
    [
        (("--broker", "mqtts://olaf:x@127.0.0.1:1", "--identity", "vera-identity"), "without --identity"),
        ((), "--ca goes with --broker mqtts://NAME@HOST:PORT"),
        (("--broker", "mqtt://olaf:x@127.0.0.1:1"), "no TLS"),
        (("--broker", "mqtts://127.0.0.1:1"), "nobody's name"),
        (("--broker", "mqtts://olaf:x@127.0.0.1:1", "--site", "other"), "is of the site plant, not of other"),
        (("--broker", "mqtts://olaf:secret:none@127.0.0.1:1"), "secret none is not here"),
    ],
)
def test_how_one_comes_with_a_password(plant: Command, words: tuple[str, ...], told: str) -> None:
    _, err = plant("command", "press", "drain", "--ca", "plant-site/ca.pem", *words, status=1)
    assert told in err


def test_who_comes_with_a_password_believes_what_the_site_has_signed(tmp_path: Path) -> None:
    """By the ca.pem alone: the roster that a broker has, and what its gateways say."""
    site, other = Site(tmp_path), Site(tmp_path / "other")
    press, stranger = site.member("press"), other.member("press")
    args = argparse.Namespace(ca=press.ca_file, broker="mqtts://olaf:x@127.0.0.1:1", identity=None, site=None)
    talk = Talk(finding.plan(args))
    assert (talk.site, talk.name, talk.roster) == (site.name, "olaf", None)
    for forged in (other.authority.roster(), b"{}", msgspec.json.encode(site.authority._roster)):
        with pytest.raises(Forged):
            talk._take_roster(forged)
    assert talk._take_roster(site.authority.roster())
    assert talk.of_gateway(press.sign(b"hot", "reply"), "reply", "press") == b"hot"
    for said in (b"hot", stranger.sign(b"hot", "reply"), press.sign(b"hot", "birth")):
        with pytest.raises(Forged):
            talk.of_gateway(said, "reply", "press")
    assert talk.signed(b"{}", "command") == b"{}"  # nobody knows who it is
