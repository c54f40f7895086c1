"""`edge-runtime site` and `join` as they are typed: by file, and all but the network (tests/integration/test_enrolment.py)."""

from __future__ import annotations

import json
import os
import pty
import shutil
import socket
import subprocess
import sys
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime import cli
from edge_runtime.cli import identity
from edge_runtime.cli.site import addresses, duration, opening
from edge_runtime.ports import EdgeError
from edge_runtime.trust.identity import Identity

PASSPHRASE = "correct horse"
CONFIG = "site: plant\ngateway: g1\n"
"""No devices yet: that is no reason not to join."""

Command = Callable[..., tuple[str, str]]


@pytest.fixture
def here(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> Path:
    monkeypatch.chdir(tmp_path)
    monkeypatch.setenv(opening.ENVIRONMENT, PASSPHRASE)
    monkeypatch.delenv(identity.ENVIRONMENT, raising=False)
    return tmp_path


@pytest.fixture
def command(here: Path, capsys: pytest.CaptureFixture[str]) -> Command:
    """Types it; gives what it says on standard output and error."""

    def typed(*words: str, status: int = 0) -> tuple[str, str]:
        got = cli.main(words)
        out, err = capsys.readouterr()
        assert got == status, err
        return out, err

    return typed


@pytest.fixture(scope="module")
def made(tmp_path_factory: pytest.TempPathFactory) -> Path:
    """plant-site, and the identities of its gateways g1 and g2; copied for each test: a passphrase is slow on purpose."""
    folder = tmp_path_factory.mktemp("plant")
    with pytest.MonkeyPatch.context() as patch:
        patch.chdir(folder)
        patch.setenv(opening.ENVIRONMENT, PASSPHRASE)
        assert cli.main(["site", "init", "plant"]) == 0
        for name in ("g1", "g2"):
            assert cli.main(["join", "--request", f"{name}.request", "--name", name, "--site", "plant", "--folder", name]) == 0
            assert cli.main(["site", "sign", f"{name}.request"]) == 0
            assert cli.main(["join", "--answer", f"{name}.request.answer", "--folder", name]) == 0
    return folder


@pytest.fixture
def plant(command: Command, made: Path, here: Path) -> Command:
    shutil.copytree(made, here, dirs_exist_ok=True)
    return command


def _loaded(folder: Path | str) -> Identity:
    identity = Identity.load(Path(folder))
    assert identity
    return identity


# --- the authority ---------------------------------------------------------------------------------------------------


def test_a_site_is_made_and_its_key_is_locked_up(command: Command, here: Path) -> None:
    out, _ = command("site", "init", "plant")
    key = here / "plant-site" / "ca-key.pem"
    assert "ENCRYPTED" in key.read_text()
    assert key.stat().st_mode & 0o777 == 0o600
    assert (here / "plant-site").stat().st_mode & 0o777 == 0o700
    assert "site plant is made in plant-site" in out
    assert PASSPHRASE not in out


def test_a_second_one_in_the_same_folder_is_refused(plant: Command) -> None:
    _, err = plant("site", "init", "plant", status=1)
    assert "plant-site: not empty" in err


def test_a_short_passphrase_leaves_no_site(command: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(opening.ENVIRONMENT, "short")
    _, err = command("site", "init", "plant", status=1)
    assert "too short" in err
    assert not (here / "plant-site").exists()


def test_the_wrong_passphrase_opens_nothing(plant: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.setenv(opening.ENVIRONMENT, "correct house")
    _, err = plant("site", "revoke", "g1", status=1)
    assert "wrong passphrase" in err
    assert "correct house" not in err


def test_the_passphrase_from_a_file_that_only_its_owner_can_read(
    plant: Command, here: Path, monkeypatch: pytest.MonkeyPatch
) -> None:
    monkeypatch.delenv(opening.ENVIRONMENT)
    file = here / "passphrase"
    file.write_text(f"{PASSPHRASE}\n")
    file.chmod(0o644)
    words = ("site", "person", "alice", "--role", "viewer", "--passphrase-file", "passphrase")
    _, err = plant(*words, status=1)
    assert "others on this machine can read" in err
    file.chmod(0o600)
    plant(*words)
    file.write_text("two\nlines\n")
    _, err = plant(*words, "--replace", status=1)
    assert "more than one line" in err


def test_without_a_terminal_it_says_how_to_give_the_passphrase(plant: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    monkeypatch.delenv(opening.ENVIRONMENT)
    monkeypatch.setattr(sys, "stdin", open(os.devnull))  # noqa: PTH123, SIM115
    _, err = plant("site", "revoke", "g1", status=1)
    assert "--passphrase-file" in err


@pytest.mark.parametrize(("second", "status"), [(PASSPHRASE, 0), ("something else", 1)])
def test_on_a_terminal_it_is_asked_for_twice_and_not_shown(here: Path, second: str, status: int) -> None:
    environment = {name: value for name, value in os.environ.items() if name != opening.ENVIRONMENT}
    environment["PYTHONPATH"] = str(Path(cli.__file__).parents[2])
    child, terminal = pty.fork()
    if child == 0:
        os.execve(sys.executable, [sys.executable, "-m", "edge_runtime", "site", "init", "plant"], environment)
    said = b""
    try:
        for prompt, answer in ((b"characters): ", PASSPHRASE), (b"again: ", second)):
            while not said.endswith(prompt):
                said += os.read(terminal, 1024)
            os.write(terminal, answer.encode() + b"\n")
        while content := os.read(terminal, 1024):
            said += content
    except OSError:  # it has ended
        pass
    assert os.waitstatus_to_exitcode(os.waitpid(child, 0)[1]) == status
    os.close(terminal)
    assert PASSPHRASE.encode() not in said
    assert (here / "plant-site").exists() == (status == 0)


def test_which_folder(plant: Command, here: Path) -> None:
    plant("site", "members")
    plant("site", "members", "--folder", "plant-site")
    _, err = plant("site", "members", "--folder", "other", status=1)
    assert "no site's authority is there" in err
    os.chdir("plant-site")
    plant("site", "members")
    os.chdir(here)
    plant("site", "init", "other")
    _, err = plant("site", "members", status=1)
    assert "several sites here: other-site, plant-site" in err


# --- members ---------------------------------------------------------------------------------------------------------


def test_a_gateway_joins_by_file(plant: Command, here: Path) -> None:
    out, _ = plant("join", "--request", "r", "--name", "g3", "--site", "plant", "--folder", "id")
    assert "edge-runtime site sign r" in out
    key = out.split("key ")[1][:32]
    assert (here / "id.joining" / "key.pem").stat().st_mode & 0o777 == 0o600
    assert Identity.load(here / "id") is None
    out, _ = plant("site", "sign", "r", "-o", "a")
    assert f"g3 belongs to plant now: key {key}" in out
    out, _ = plant("join", "--answer", "a", "--folder", "id")
    assert f"g3 is a member of plant (gateway): key {key}" in out
    assert (_loaded("id").name, _loaded("id").key.fingerprint) == ("g3", key)


def test_a_request_asked_for_twice_is_the_same(plant: Command) -> None:
    """A stick gets lost: the answer to the first one still fits."""
    for file in ("r1", "r2"):
        plant("join", "--request", file, "--name", "g3", "--site", "plant", "--folder", "id")
    assert Path("r1").read_bytes() == Path("r2").read_bytes()


def test_with_a_configuration_the_names_and_the_place_are_its_own(plant: Command, here: Path) -> None:
    Path("g3.yaml").write_text(CONFIG.replace("g1", "g3"))
    plant("join", "--request", "r", "--config", "g3.yaml")
    plant("site", "sign", "r")
    out, _ = plant("join", "--answer", "r.answer", "--config", "g3.yaml")
    assert "edge-runtime run g3.yaml" in out
    assert Identity.load(here / "data" / "identity")
    Path("g3.yaml").write_text(CONFIG.replace("g1", "g3") + "site_dir: keys\n")
    plant("join", "--request", "r", "--config", "g3.yaml")
    assert Path("keys.joining").exists()


def test_an_answer_for_another_gateway_is_refused(plant: Command, here: Path) -> None:
    Path("g1.yaml").write_text(CONFIG)
    _, err = plant("join", "--answer", "g2.request.answer", "--config", "g1.yaml", status=1)
    assert "this is for g2 of plant, and the configuration is that of g1 of plant" in err
    plant("join", "--request", "r", "--config", "g1.yaml")
    _, err = plant("join", "--answer", "g2.request.answer", "--folder", "data/identity", status=1)
    assert "does not belong to the key" in err
    assert Identity.load(here / "data" / "identity") is None


def test_a_name_that_is_taken_needs_replace(plant: Command, here: Path) -> None:
    old = _loaded("g1")
    plant("join", "--request", "r", "--name", "g1", "--site", "plant", "--folder", "new")
    _, err = plant("site", "sign", "r", status=1)
    assert "--replace" in err
    _, err = plant("site", "token", "g1", status=1)
    assert "--replace" in err
    plant("site", "sign", "r", "--replace")
    plant("join", "--answer", "r.answer", "--folder", "new")
    assert _loaded("new").roster.is_revoked(key=old.subject.key)


def test_an_identity_that_is_there_is_not_overwritten(plant: Command) -> None:
    before = {path.name: path.read_bytes() for path in Path("g1").iterdir()}
    _, err = plant("join", "--answer", "g2.request.answer", "--folder", "g1", status=1)
    assert "here is g1 (gateway) of plant already" in err
    _, err = plant("join", "--request", "r", "--name", "g2", "--site", "plant", "--folder", "g1", status=1)
    assert "mv g1 g1.old" in err
    assert {path.name: path.read_bytes() for path in Path("g1").iterdir()} == before


def test_renewal_by_name_and_by_request(plant: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    first = _loaded("g1")
    plant("join", "--request", "again", "--name", "g1", "--site", "plant", "--folder", "g1")
    later = opening.authority

    def a_year_later(args: object) -> object:
        opened = later(args)  # type: ignore[arg-type]
        now = opened._clock.now
        monkeypatch.setattr(opened._clock, "now", lambda: _after(now()), raising=False)
        return opened

    def _after(stamp: object) -> object:
        from msgspec.structs import replace

        return replace(stamp, wall_ns=stamp.wall_ns + 365 * 86_400 * 10**9)  # type: ignore[attr-defined,type-var]

    monkeypatch.setattr(opening, "authority", a_year_later)
    for word in ("g1", "again"):
        plant("site", "renew", word)
        plant("join", "--answer", "g1.answer", "--folder", "g1")
    renewed = _loaded("g1")
    assert renewed.not_after_s > first.not_after_s + 300 * 86_400
    assert renewed.subject.key == first.subject.key
    _, err = plant("site", "renew", "nobody", status=1)
    assert "no member of plant" in err


def test_a_person(plant: Command, here: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    out, _ = plant("site", "person", "alice", "--role", "engineer")
    assert "EDGE_RUNTIME_IDENTITY" in out
    with pytest.raises(EdgeError, match="who you are"):
        identity.needed(None)
    assert identity.find(None) is None
    monkeypatch.setenv(identity.ENVIRONMENT, str(here / "alice-identity"))
    alice = identity.needed(None)
    assert (alice.name, alice.role, alice.username) == ("alice", "engineer", "person:alice")
    with pytest.raises(EdgeError, match="no identity is there"):
        identity.find(here / "nowhere")
    _, err = plant("site", "person", "alice", "--role", "viewer", status=1)
    assert "alice is a member already: engineer" in err
    plant("site", "person", "alice", "--role", "engineer", "--replace", "-o", "new-laptop")
    assert identity.needed(here / "new-laptop").roster.is_revoked(key=alice.subject.key)


def test_a_person_cannot_be_a_gateway_by_name(plant: Command) -> None:
    plant("site", "person", "alice", "--role", "operator")
    _, err = plant("site", "token", "alice", "--replace", status=1)
    assert "alice is a member already: operator" in err


def test_a_token_says_what_of_its_words_is_wrong(plant: Command) -> None:
    _, err = plant("site", "token", "g11", "--replace", status=1)
    assert "--replace: g11 is no member, and never was" in err
    _, err = plant("site", "token", "g3", "--listen", "here", status=1)
    assert "--listen here: is no host:port" in err


def test_a_damaged_roster_of_the_authority_is_named(plant: Command, here: Path) -> None:
    file = here / "plant-site" / "roster.json"
    file.write_bytes(file.read_bytes()[:-10])
    for words in (("members",), ("revoke", "g2")):
        _, err = plant("site", *words, status=1)
        assert "plant-site/roster.json: not a signed document" in err
        assert "hint: restore the folder from a backup" in err


def test_members_and_revocation(plant: Command, monkeypatch: pytest.MonkeyPatch) -> None:
    plant("site", "renew", "g2")  # two certificates, one key
    out, _ = plant("site", "revoke", "g2", "--why", "stolen")
    assert "g2 is revoked" in out
    monkeypatch.delenv(opening.ENVIRONMENT)  # to look, no passphrase is needed
    out, _ = plant("site", "members")
    assert [line.split()[0] for line in out.splitlines()[2:]] == ["g1", "g2"]
    out, _ = plant("site", "members", "--json")
    listed = json.loads(out)["members"]
    assert [(each["name"], each["revoked"], each["why"]) for each in listed] == [("g1", False, None), ("g2", True, "stolen")]
    assert listed[0]["renew_by"] > "2027"


def test_a_revocation_reaches_an_offline_site(plant: Command) -> None:
    stolen = _loaded("g2")
    plant("site", "revoke", "g2")
    plant("site", "roster", "-o", "roster.json")
    out, _ = plant("join", "--roster", "roster.json", "--folder", "g1")
    assert "is taken in" in out
    assert _loaded("g1").roster.is_revoked(key=stolen.subject.key)
    out, _ = plant("join", "--roster", "roster.json", "--folder", "g1")
    assert "not newer" in out


def test_an_older_or_forged_roster_is_refused(plant: Command) -> None:
    plant("site", "roster", "-o", "old.json")
    plant("site", "renew", "g2")
    plant("site", "roster", "-o", "new.json")
    plant("join", "--roster", "new.json", "--folder", "g1")
    out, _ = plant("join", "--roster", "old.json", "--folder", "g1", "--json")
    assert json.loads(out)["taken"] is False
    Path("forged.json").write_text(Path("new.json").read_text().replace("g2", "g3"))
    _, err = plant("join", "--roster", "forged.json", "--folder", "g1", status=1)
    assert "Traceback" not in err


# --- what is typed wrong ---------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (("join",), "one of TOKEN"),
        (("join", "x.y.z", "--roster", "f"), "one of TOKEN"),
        (("join", "hello"), "this is no token"),
        (("join", "--answer", "nowhere"), "No such file"),
        (("join", "--roster", "nowhere"), "belongs to no site yet"),
        (("join", "--request", "r"), "--name GATEWAY --site SITE"),
        (("join", "--request", "r", "--config", "nowhere.yaml"), "No such file"),
        (("join", "--request", "r", "--config", "g1.request"), "has no good `site` and `gateway`"),
        (("join", "--request", "r", "--name", "a b", "--site", "plant"), "not a name"),
        (("site", "sign", "nowhere"), "No such file"),
        (("site", "init", "a/b"), "not a name"),
        (("site", "token", "a b"), "not a name"),
        (("site", "token", "g3", "--listen", "here"), "host:port"),
        (("site", "token", "g3", "--listen", "192.0.2.99:0"), "cannot listen"),
    ],
)
def test_it_is_told_in_words(plant: Command, words: tuple[str, ...], said: str) -> None:
    _, err = plant(*words, status=1)
    assert said in err
    assert "hint: " in err


def test_files_that_were_mixed_up(plant: Command) -> None:
    _, err = plant("site", "sign", "g1.request.answer", status=1)
    assert "no request, but an answer" in err
    _, err = plant("join", "--answer", "g1.request", "--folder", "g2", status=1)
    assert "no answer of a site's authority" in err
    plant("site", "init", "other")
    _, err = plant("site", "sign", "g1.request", "--folder", "other-site", status=1)
    assert "a request to plant, and this is other" in err


def test_the_time_of_a_token() -> None:
    assert [duration(text) for text in ("30s", "10m", "2h", "24h")] == [30, 600, 7_200, 86_400]
    for text in ("", "10", "m", "0s", "25h", "-1s", "1d", "9999999s", "²s"):
        with pytest.raises(Exception, match="no time from 1s to 24h"):
            duration(text)


# --- the token's command ---------------------------------------------------------------------------------------------


def test_a_token_that_nobody_uses_expires(plant: Command) -> None:
    out, err = plant("site", "token", "g3", "--expires", "1s", "--listen", "127.0.0.1:0", "--json", status=1)
    event = json.loads(out)
    assert event["token"].startswith("g3.plant.")
    assert event["addresses"] == ["127.0.0.1"]
    assert "the token has expired, and g3 has not joined" in err


def test_where_this_machine_is_reached() -> None:
    found = addresses.reachable("0.0.0.0")
    assert 1 <= len(found) <= 4
    for each in found:
        socket.create_server((each, 0)).close()
    assert addresses.reachable("10.0.0.5") == ("10.0.0.5",)
    assert addresses.reachable("laptop.local") == ("laptop.local",)


def test_what_root_writes_belongs_to_the_gateways_user(plant: Command, here: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away: not tried")
    home = here / "lib"
    home.mkdir()
    os.chown(home, 12_345, 12_345)
    plant("join", "--request", "r", "--name", "g3", "--site", "plant", "--folder", "lib/id")
    assert (home / "id.joining" / "key.pem").stat().st_uid == 12_345
    plant("site", "sign", "r")
    plant("join", "--answer", "r.answer", "--folder", "lib/id")
    assert {path.stat().st_uid for path in (home / "id", *(home / "id").iterdir())} == {12_345}


def test_root_gives_nothing_away_through_a_link(plant: Command, here: Path) -> None:
    if os.geteuid() != 0:
        pytest.skip("only root can give files away: not tried")
    home, secret = here / "lib", here / "etc"
    for each in (home, secret):
        each.mkdir()
    (secret / "shadow").write_text("")
    os.chown(home, 12_345, 12_345)
    (home / "id.joining").symlink_to(secret)
    plant("join", "--request", "r", "--name", "g3", "--site", "plant", "--folder", "lib/id", status=1)
    assert (secret / "shadow").stat().st_uid == 0


def test_help_imports_nothing_heavy() -> None:
    code = """
import sys
from edge_runtime.cli import main
try:
    main(["site", "token", "--help"])
finally:
    print("HEAVY", [name for name in ("cryptography", "pydantic", "yaml") if name in sys.modules])
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, check=False)
    assert "HEAVY []" in done.stdout
