"""A support bundle of a gateway that runs, of one that does not start, and of one whose files are broken: it is made, it is
small, and neither a secret nor a point's value is in it.
"""

from __future__ import annotations

import io
import json
import os
import subprocess
import sys
import tarfile
from contextlib import ExitStack
from pathlib import Path
from typing import Any

import pytest
from brokers import free_port, mosquitto
from canaries import CLASSES, ROWS, found, number, spoiled, word
from gateways import GatewayProcess, gateway, until, waiting

from edge_runtime import cli
from edge_runtime.board.secrets import SystemSecrets
from edge_runtime.ports import EdgeError
from edge_runtime.support import bundle, machine, making

REFERRED, LITERAL, TOKEN, IN_JSON = "canary-referred-tern", "canary-literal-skua", "canary-token-auk", 'canary"quo\\te-ä'
NEEDLES = [each.encode() for each in (REFERRED, LITERAL, TOKEN, "quo\\te-ä", "quo\\\\te", 'canary\\"')]


def settings(folder: Path, local: str) -> dict[str, Any]:
    devices, pipelines = {}, {}
    for privacy in CLASSES:
        lines = ["n,w,bad"]
        for row in range(ROWS):
            lines.append(f"{number(privacy, row)!r},{word(privacy)},{spoiled(privacy) if row % 10 == 3 else row}")
        (folder / f"{privacy}.csv").write_text("\n".join(lines) + "\n")
        points = [{"name": "n", "column": "n"}, {"name": "w", "column": "w", "type": "text"}, {"name": "bad", "column": "bad"}]
        devices[privacy] = {
            "adapter": "replay", "options": {"file": f"{privacy}.csv", "message_ids": True}, "points": points,
        }  # fmt: skip
        pipelines[f"raw-{privacy}"] = {"device": privacy, "privacy": privacy}
        rule = {"name": "high", "output": "n.max", "above": 1_000}
        window = {"device": privacy, "privacy": privacy, "points": ["n"], "window": {"count": 2}, "rules": [rule]}
        pipelines[f"win-{privacy}"] = window
    (folder / "token").write_text(TOKEN)
    return {
        "site": "plant",
        "gateway": "g1",
        "control": {"from_network": True},
        "log": {"level": "debug", "format": "json"},
        "metrics": {"listen": f"127.0.0.1:{free_port()}"},
        "broker": {"mode": "external", "url": local},
        "devices": devices,
        "pipelines": pipelines,
        "sinks": {
            "far": {"type": "mqtt", "url": "mqtt://edge:secret:far@127.0.0.1:1"},
            "literal": {"type": "mqtt", "url": f"mqtt://edge:{LITERAL}@127.0.0.1:1"},
            "cloud": {"type": "https", "url": "http://127.0.0.1:1", "token_file": "token"},
        },
    }


def opened(path: Path) -> dict[str, bytes]:
    """Its files by name."""
    with tarfile.open(path) as archive:
        names = archive.getnames()
        contents = [file.read() for name in names if (file := archive.extractfile(name))]
    return {name.removeprefix(f"{bundle.FOLDER}/"): content for name, content in zip(names, contents, strict=True)}


def assert_clean(path: Path) -> dict[str, bytes]:
    files = opened(path)
    for name, content in files.items():
        assert not [needle for needle in NEEDLES if needle in content], f"a secret in {name}"
        for privacy in CLASSES:
            assert not found(privacy, [content]), f"a value of class {privacy} in {name}"
    assert path.stat().st_size <= bundle.BUNDLE_BYTES_MAX
    assert path.stat().st_mode & 0o777 == 0o600
    return files


def missing(files: dict[str, bytes]) -> dict[str, str]:
    return {part["name"]: part["missing"] for part in json.loads(files["manifest.json"])["parts"] if "missing" in part}


def made(edge: GatewayProcess, target: Path, capsys: pytest.CaptureFixture[str], *more: str) -> dict[str, Any]:
    capsys.readouterr()
    words = ["support-bundle", str(edge.file), "-o", str(target), "--log", str(edge.log), "--json", *more]
    assert cli.main(words) == 0
    said: dict[str, Any] = json.loads(capsys.readouterr().out)
    return said


def test_neither_secret_nor_value(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """While it runs, over MQTT, and after it has ended; with a log to which somebody has leaked."""
    with ExitStack() as stack:
        local = stack.enter_context(mosquitto(tmp_path))
        secrets = SystemSecrets(tmp_path / "data" / "secrets")
        secrets.put("far", REFERRED)
        secrets.put("odd", IN_JSON)
        said = settings(tmp_path, local.url)
        said["sinks"]["odd"] = {"type": "mqtt", "url": "mqtt://edge:secret:odd@127.0.0.1:1"}
        edge = stack.enter_context(gateway(tmp_path, said))
        edge.wait("gateway_started")
        until(lambda: waiting(edge, "sample") >= ROWS and waiting(edge, "sample_gateway") >= ROWS, "the samples")
        edge.wait("sink_away", sink="far")
        with edge.log.open("a") as log:  # as if something of ours, or a library, had said what it must not
            log.write(json.dumps({"event": "leaked", "a": REFERRED, "b": LITERAL, "c": TOKEN, "d": IN_JSON}) + "\n")
            log.write(f"{REFERRED} {LITERAL} {TOKEN} {IN_JSON} mqtt://edge:whatever@host\n")
        running = made(edge, tmp_path / "running.tar.gz", capsys)
        done = _command(local.url, "g1")
        assert edge.stop() == 0
        ended = made(edge, tmp_path / "ended.tar.gz", capsys)
    files = assert_clean(tmp_path / "running.tar.gz")
    parts = {part["name"]: part for part in running["parts"]}
    assert {name for name, part in parts.items() if "missing" in part} == {"identity.json"}, parts
    assert b"whatever" not in files["log.txt"]
    assert b"leaked" in files["log.txt"]
    shown = json.loads(files["configuration.json"])
    assert shown["effective"]["sinks"]["far"]["url"] == "mqtt://edge:secret:far@127.0.0.1:1"
    assert shown["effective"]["sinks"]["literal"]["url"] == "mqtt://edge:***@127.0.0.1:1"
    assert shown["asks_for_secrets"]["sinks.far.url"] == "far"
    assert shown["provenance"]
    assert json.loads(files["outbox.json"])["lanes"]["sample_gateway"]["head"] == ROWS
    assert b"edge_runtime_build_info" in files["metrics.txt"] or b"edge_runtime_" in files["metrics.txt"]
    assert json.loads(files["health.json"])["status"]
    assert json.loads(files["control.json"])["history"]
    assert [row["kind"] for row in json.loads(files["audit.json"])["entries"]][:1] == ["start"]
    assert json.loads(files["mesh.json"])["gateways"][0]["gateway"] == "g1"
    assert json.loads(files["about.json"])["disk"]["mode"] == "0o700"

    over_mqtt = Path(done["path"])
    assert over_mqtt.stat().st_size == done["size_bytes"]
    assert over_mqtt.parent == edge.data_dir / making.KEPT
    assert_clean(over_mqtt)
    assert not {"configuration.json", "outbox.json", "metrics.txt"} & done["missing"].keys()

    assert {"health.json", "metrics.txt"} <= missing(assert_clean(tmp_path / "ended.tar.gz")).keys()
    assert ended["size_bytes"] == (tmp_path / "ended.tar.gz").stat().st_size


def _command(broker: str, name: str) -> dict[str, Any]:
    words = [sys.executable, "-m", "edge_runtime", "command", name, "bundle", "--broker", broker, "--json"]
    done = subprocess.run(words, capture_output=True, text=True, timeout=60, check=False)
    assert done.returncode == 0, done.stdout + done.stderr
    said: dict[str, Any] = json.loads(done.stdout)
    return said["result"]  # type: ignore[no-any-return]


# --- a gateway that does not start -----------------------------------------------------------------------------------


def tell(folder: Path, text: str) -> dict[str, bytes]:
    file = folder / "gateway.yaml"
    file.write_text(text)
    assert cli.main(["support-bundle", str(file), "-o", str(folder / "b.tar.gz"), "--log", str(folder / "no.log")]) == 0
    return assert_clean(folder / "b.tar.gz")


def test_of_a_file_that_is_no_yaml(tmp_path: Path) -> None:
    files = tell(tmp_path, f"sinks: {{a: [ {LITERAL}\n  b: :")
    problems = json.loads(files["configuration.json"])["file"]["problems"]
    assert "no valid YAML" in problems[0]
    assert {"control.json", "outbox.json", "audit.json", "log.txt"} <= missing(files).keys()
    assert json.loads(files["about.json"])["version"]


def test_of_a_file_that_is_wrong(tmp_path: Path) -> None:
    text = f"site: s\ngateway: g\nsinks:\n  a: {{type: mqtt, url: 'mqtt://u:{LITERAL}@h:bad', password: {LITERAL}}}\n"
    files = tell(tmp_path, text)
    shown = json.loads(files["configuration.json"])
    assert any("sinks.a" in each for each in shown["file"]["problems"])
    assert shown["effective"]["sinks"]["a"]["password"] == "***"


def test_of_no_file_at_all(tmp_path: Path) -> None:
    assert cli.main(["support-bundle", str(tmp_path / "none.yaml"), "-o", str(tmp_path / "b.tar.gz")]) == 0
    files = assert_clean(tmp_path / "b.tar.gz")
    assert json.loads(files["configuration.json"])["file"] == {
        "name": str(tmp_path / "none.yaml"), "readable": False, "problems": ["it cannot be read"],
    }  # fmt: skip


@pytest.mark.parametrize("broken", [b"", b"\0" * 9_000, b"SQLite format 3\0" + b"\xff" * 9_000, "a folder"])
def test_of_broken_databases(broken: bytes | str, tmp_path: Path) -> None:
    (tmp_path / "data").mkdir()
    for name in ("control.db", "audit.db", "outbox.db"):
        path = tmp_path / "data" / name
        path.mkdir() if isinstance(broken, str) else path.write_bytes(broken)
    files = tell(tmp_path, "site: s\ngateway: g\n")
    assert {"control.json", "outbox.json", "audit.json"} <= missing(files).keys()
    assert json.loads(files["configuration.json"])["effective"] == {"site": "s", "gateway": "g"}
    for path in (tmp_path / "data").iterdir():
        assert path.is_dir() or path.read_bytes() == broken, "somebody who looks changes nothing"


def test_of_an_identity_that_others_can_read(tmp_path: Path) -> None:
    folder = tmp_path / "data" / "identity"
    folder.mkdir(parents=True)
    (folder / "key.pem").write_text("PRIVATE canary-literal-skua")
    (folder / "key.pem").chmod(0o644)
    assert "others on this machine can read" in missing(tell(tmp_path, "site: s\ngateway: g\n"))["identity.json"]


def test_what_was_written_to_a_point_is_not_told(tmp_path: Path) -> None:
    """Its values are a point's: before, requested, read back, and the reason, in words that somebody chose."""
    from edge_runtime.board.system import SystemClock
    from edge_runtime.control.audit_chain import Entry, Kind
    from edge_runtime.control.audit_file import AuditFile, Draft
    from edge_runtime.outbox.database import FileDisk

    (tmp_path / "data").mkdir()
    value, clock = number("site", 1), SystemClock()
    file = AuditFile(FileDisk(), tmp_path / "data" / "audit.db", clock)
    entry = Entry(
        kind=Kind.COMMAND, actor="person:alice", via="cmd/write", subject="point press/speed", before=value, requested=value,
        read_back=value, outcome="failed", why=f"it shows {value}",
    )  # fmt: skip
    file.write([Draft(key, clock.now(), entry) for key in range(5)])
    file.drop()
    told = json.loads(tell(tmp_path, "site: s\ngateway: g\n")["audit.json"])
    assert told["head"].startswith("5:")
    assert [(row["subject"], row["outcome"]) for row in told["entries"]] == [("point press/speed", "failed")] * 5


def test_the_journal_is_asked_for_this_run_of_the_service(tmp_path: Path, monkeypatch: pytest.MonkeyPatch) -> None:
    """A program in the place of journalctl says with what it was called."""
    program = tmp_path / "journalctl"
    program.write_text('#!/bin/sh\necho "$@"\n')
    program.chmod(0o755)
    monkeypatch.setenv("PATH", f"{tmp_path}:{os.environ['PATH']}")
    assert machine.log(None, {"INVOCATION_ID": "5f"}).endswith("--lines 2000 _SYSTEMD_INVOCATION_ID=5f\n")
    assert machine.log(None, {}).endswith("--lines 2000 --unit edge-runtime@*\n")
    program.write_text("#!/bin/sh\n")
    with pytest.raises(EdgeError, match="the journal has nothing of"):
        machine.log(None, {})


# --- its size --------------------------------------------------------------------------------------------------------


def test_it_is_bounded_whatever_the_parts_hold(tmp_path: Path) -> None:
    noise = os.urandom(3 * 2**20).hex()
    looks: dict[str, bundle.Look] = {f"{n}.txt": lambda: noise for n in range(8)}
    looks["last.json"] = lambda: {"a": 1}
    found_parts = bundle.parts(looks, [])
    packed = bundle.pack(found_parts, {}, 0)
    assert len(packed) <= bundle.BUNDLE_BYTES_MAX
    listed = {part["name"]: part for part in bundle.listing(found_parts)}
    assert listed["0.txt"]["bytes"] == bundle.PART_BYTES_MAX
    assert listed["0.txt"]["cut"] == len(noise) - bundle.PART_BYTES_MAX
    assert listed["7.txt"]["bytes"] == 0
    with tarfile.open(fileobj=io.BytesIO(packed)) as archive:
        assert archive.getnames()[0] == f"{bundle.FOLDER}/manifest.json"


def test_what_breaks_while_it_is_looked_at_is_told(tmp_path: Path) -> None:
    def breaks() -> Any:
        raise ValueError("canary-literal-skua")

    [part, other] = bundle.parts({"a": breaks, "b": lambda: "fine"}, [])
    assert part.missing.startswith("ValueError at test_support_bundle.py")
    assert other.content == b"fine"


def test_only_the_newest_are_kept(tmp_path: Path) -> None:
    for _ in range(5):
        making.next_of(tmp_path).write_bytes(b"x")
    assert sorted(path.name for path in (tmp_path / making.KEPT).iterdir()) == [
        "bundle-000003.tar.gz", "bundle-000004.tar.gz", "bundle-000005.tar.gz",
    ]  # fmt: skip
