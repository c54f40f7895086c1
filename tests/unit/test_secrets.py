"""secret:NAME: what is one, where it is asked for, and who never sees it."""

from __future__ import annotations

import io
import json
import os
from pathlib import Path
from typing import Any

import pytest
from pydantic import Field
from worlds import plc, simulated, until

from edge_runtime import adapter, cli, references
from edge_runtime.adapter import Unusable
from edge_runtime.address import address
from edge_runtime.board.secrets import CREDENTIALS, SystemSecrets
from edge_runtime.bus.unsealing import UnsealingBus
from edge_runtime.cli.run import make_private
from edge_runtime.control.redaction import redacted, scrub
from edge_runtime.ports import Address, BrokerError, SecretError
from edge_runtime.testing.adapter import Faulty

# --- what is one -----------------------------------------------------------------------------------------------------


@pytest.mark.parametrize(
    ("url", "name"),
    [
        ("mqtt://me:secret:cloud@host", "cloud"),
        ("mqtts://me:secret:a.b-c_1@[::1]:8883", "a.b-c_1"),
        ("mqtt://me:secret@host", ""),
        ("mqtt://me:secret:@host", ""),
        ("mqtt://me:secret:a@b@host", ""),
        ("mqtt://me:xsecret:a@host", ""),
        ("mqtt://host", ""),
    ],
)
def test_the_reference_in_a_url_is_what_the_address_has_as_password(url: str, name: str) -> None:
    assert references.name_in_url(url) == name
    assert references.name_in(address(url).password) == name


def test_every_reference_is_found_with_its_path() -> None:
    said = {"a": ["x", "secret:one"], "b": {"url": "mqtt://u:secret:two@h"}, "c": "secret:../etc", "d": 5}
    assert list(references.found(said)) == [(("a", 1), "one"), (("b", "url"), "two")]


def test_a_reference_is_shown_and_a_password_is_not() -> None:
    said = {
        "broker": {"url": "mqtt://me:secret:plant@h"},
        "sinks": {"a": {"url": "mqtt://me:geheim@h"}, "b": {"url": "mqtt://me:secret:x@y@h"}},
    }
    shown = redacted(said, {})
    assert shown["broker"]["url"] == "mqtt://me:secret:plant@h"
    assert shown["sinks"] == {"a": {"url": "mqtt://me:***@h"}, "b": {"url": "mqtt://me:***@h"}}
    assert scrub("at mqtt://me:secret:plant@h and mqtt://me:geheim@h", ()) == "at mqtt://me:secret:plant@h and mqtt://me:***@h"


# --- where it is asked for -------------------------------------------------------------------------------------------


def test_a_credential_comes_before_a_file_and_that_before_the_environment(tmp_path: Path) -> None:
    credentials = tmp_path / "credentials"
    credentials.mkdir()
    environment = {CREDENTIALS: str(credentials), "EDGE_RUNTIME_SECRET_CLOUD_PASSWORD": "from the environment"}
    secrets = SystemSecrets(tmp_path / "secrets", environment)
    assert secrets.get("cloud-password") == "from the environment"
    secrets.put("cloud-password", "from a file")
    assert secrets.get("cloud-password") == "from a file"
    (credentials / "cloud-password").write_text("from systemd\n")
    assert secrets.get("cloud-password") == "from systemd"


def test_what_is_nowhere_names_its_three_places(tmp_path: Path) -> None:
    with pytest.raises(SecretError) as caught:
        SystemSecrets(tmp_path, {}).get("cloud")
    assert caught.value.cause == "secret cloud is not here"
    places = f"the systemd credential cloud, the file {tmp_path / 'cloud'}, the environment variable EDGE_RUNTIME_SECRET_CLOUD"
    assert caught.value.hint == f"asked were {places}"


def test_a_file_that_others_can_read_is_refused(tmp_path: Path) -> None:
    path = SystemSecrets(tmp_path, {}).put("cloud", "geheim")
    assert path.stat().st_mode & 0o777 == 0o600
    for mode in (0o640, 0o604, 0o620):
        path.chmod(mode)
        with pytest.raises(SecretError, match=f"others on this machine can read it .chmod 600 {path}") as caught:
            SystemSecrets(tmp_path, {}).get("cloud")
        assert "geheim" not in str(caught.value)


@pytest.mark.parametrize("name", ["", "../x", ".hidden", "a/b", "a b", "x" * 101])
def test_a_name_is_no_path(name: str, tmp_path: Path) -> None:
    with pytest.raises(SecretError, match="is no name of a secret"):
        SystemSecrets(tmp_path, {}).put(name, "x")
    assert not references.name_in(f"secret:{name}")


def test_what_is_no_secret_file_says_so(tmp_path: Path) -> None:
    os.mkfifo(tmp_path / "pipe", 0o600)
    (tmp_path / "raw").write_bytes(b"\xff")
    (tmp_path / "raw").chmod(0o600)
    (tmp_path / "empty").touch(0o600)
    (tmp_path / "folder").mkdir(0o700)
    for name, cause in (("pipe", "is no file"), ("folder", "is no file"), ("raw", "is no text"), ("empty", "is empty")):
        with pytest.raises(SecretError, match=cause):
            SystemSecrets(tmp_path, {}).get(name)


# --- who gets it -----------------------------------------------------------------------------------------------------


class _Recorder:
    """A bus that notes the address that it is given."""

    def __init__(self) -> None:
        self.seen: list[Address] = []

    async def connect(self, address: Address, **_: Any) -> Any:
        self.seen.append(address)
        raise BrokerError("nobody is there")


def test_the_bus_asks_at_each_attempt_to_connect(tmp_path: Path) -> None:
    async def scenario(_: Any) -> None:
        bus, secrets = _Recorder(), SystemSecrets(tmp_path, {})
        unsealing = UnsealingBus(bus, lambda text: secrets.get(references.name_in(text)))
        where = address("mqtt://me:secret:cloud@h")
        for value in ("", "one", "two"):
            if value:
                secrets.put("cloud", value)
            with pytest.raises(BrokerError, match="nobody is there" if value else "secret cloud is not here"):
                await unsealing.connect(where)
        assert [each.password for each in bus.seen] == ["one", "two"]
        assert where.password == "secret:cloud"
        assert "two" not in repr(bus.seen[1])

    simulated(scenario, tmp_path)


class Guarded(Faulty):
    """A device that wants a password."""

    used: list[str] = []

    class Options(Faulty.Options):
        password: adapter.Secret = Field(description="Password")

    async def open(self) -> None:
        self.used.append(self.context.secret(self.context.options.password))
        await super().open()


def test_a_missing_secret_is_the_state_of_one_device_until_it_is_there(tmp_path: Path) -> None:
    """The other one reads; and when somebody sets it, the device goes on without a restart."""

    async def scenario(site: Any) -> None:
        Guarded.used.clear()
        secrets = SystemSecrets(tmp_path / "data" / "secrets", {})
        world = site.world
        site.world = lambda: _with(world(), secrets)
        devices = {
            "a": plc("x", period_s=10),
            "b": {**plc("x", period_s=10), "adapter": "guarded", "options": {"password": "secret:plc"}},
        }
        pipelines = {name: {"device": name} for name in devices}
        async with site.running(devices=devices, pipelines=pipelines) as gateway:
            await until(lambda: gateway.sources["b"].state.cause and gateway.sources["a"].state.phase == "connected")
            state = gateway.sources["b"].state
            assert state.phase == "unusable"
            assert state.cause == "devices.b.options.password: secret plc is not here"
            assert "EDGE_RUNTIME_SECRET_PLC" in state.hint
            secrets.put("plc", "geheim-8452")
            await until(lambda: gateway.sources["b"].state.phase == "connected")
            assert Guarded.used == ["geheim-8452"]
            assert "geheim-8452" not in repr(gateway.sources["b"].__dict__)
        assert "geheim-8452" not in repr(site.log)

    simulated(scenario, tmp_path)


def _with(world: Any, secrets: SystemSecrets) -> Any:
    import dataclasses

    return dataclasses.replace(world, secrets=lambda _: secrets, adapters={**world.adapters, "guarded": Guarded})


def test_an_adapter_without_secrets_gets_its_option_as_it_stands() -> None:
    class Options(adapter.Options):
        password: adapter.Secret

    from edge_runtime.testing.adapter import build

    context = build(Faulty, {}, [{"name": "a"}]).context
    assert context.secret("plain") == "plain"
    assert context.secret(Options.model_validate({"password": "plain"}).password) == "plain"
    assert issubclass(Unusable, Exception)


# --- people ----------------------------------------------------------------------------------------------------------

CONFIGURATION = {
    "site": "s",
    "gateway": "g",
    "broker": {"mode": "external", "url": "mqtt://me:secret:plant@h"},
    "sinks": {"cloud": {"type": "mqtt", "url": "mqtt://me:secret:cloud@h"}},
    "devices": {"d": {"adapter": "replay", "options": {"file": "d.csv"}, "points": [{"name": "n", "column": "n"}]}},
    "pipelines": {"p": {"device": "d"}},
}


def test_secret_set_and_list(tmp_path: Path, capsys: pytest.CaptureFixture[str], monkeypatch: pytest.MonkeyPatch) -> None:
    file = tmp_path / "gateway.json"
    file.write_text(json.dumps(CONFIGURATION))
    monkeypatch.setattr("sys.stdin", io.StringIO("geheim-7341\n"))
    assert cli.main(["secret", "set", "cloud", str(file)]) == 0
    kept = tmp_path / "data" / "secrets" / "cloud"
    assert kept.read_text() == "geheim-7341"
    assert (kept.stat().st_mode & 0o777, kept.parent.stat().st_mode & 0o777) == (0o600, 0o700)
    assert cli.main(["secret", "list", str(file), "--json"]) == 1
    shown = capsys.readouterr().out
    rows = {each["name"]: each for each in json.loads(shown[shown.index("[") :])}
    assert rows["cloud"] == {"name": "cloud", "asked_by": ["sinks.cloud.url"], "found": f"the file {kept}"}
    assert rows["plant"]["asked_by"] == ["broker.url"]
    assert "is not here" in rows["plant"]["found"]
    assert "geheim" not in shown


def test_check_says_which_are_not_here_and_is_content(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    file = tmp_path / "gateway.json"
    said = {**CONFIGURATION, "models_dir": "secret:lost"}
    file.write_text(json.dumps(said))
    SystemSecrets(tmp_path / "data" / "secrets").put("cloud", "geheim")
    assert cli.main(["check", str(file), "--json"]) == 0
    notices = " ".join(json.loads(capsys.readouterr().out)["notices"])
    assert "broker.url: secret plant is not here (asked were the systemd credential plant" in notices
    assert "models_dir: secret:lost is not understood here" in notices
    assert "secret cloud" not in notices


# --- what is on the disk ---------------------------------------------------------------------------------------------


def test_the_data_dir_is_for_the_gateway_alone(tmp_path: Path) -> None:
    data = tmp_path / "data"
    data.mkdir(mode=0o755)
    for name in ("control.db", "audit.db-wal", "outbox.db"):
        (data / name).touch(0o644)
    make_private(data, tmp_path)
    assert data.stat().st_mode & 0o777 == 0o700
    assert {path.stat().st_mode & 0o777 for path in data.iterdir()} == {0o600}


def test_a_folder_with_the_configuration_is_not_locked_away(tmp_path: Path) -> None:
    tmp_path.chmod(0o755)
    (tmp_path / "control.db").touch(0o644)
    make_private(tmp_path, tmp_path)
    assert tmp_path.stat().st_mode & 0o777 == 0o755
    assert (tmp_path / "control.db").stat().st_mode & 0o777 == 0o600


@pytest.mark.parametrize("errors", ["strict", "surrogateescape"])
def test_what_is_no_text_is_told(
    errors: str, tmp_path: Path, monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    monkeypatch.setattr("sys.stdin", io.TextIOWrapper(io.BytesIO(b"\xff\xfe"), encoding="utf-8", errors=errors))
    assert cli.main(["secret", "set", "cloud", str(tmp_path)]) == 1
    assert "secret cloud: is no text in UTF-8" in capsys.readouterr().err
    monkeypatch.setattr("sys.stdin", None)  # as the interpreter has it where it was started without one
    assert cli.main(["secret", "set", "cloud", str(tmp_path)]) == 1
    assert "standard input is closed" in capsys.readouterr().err
    assert not list(tmp_path.iterdir())
