"""Secrets go through a real gateway to a broker that wants them: right, wrong and missing ones. Whatever the gateway says, writes
and answers is searched for them.
"""

from __future__ import annotations

import shutil
import subprocess
import urllib.error
import urllib.request
from collections.abc import Iterator
from contextlib import ExitStack, contextmanager
from pathlib import Path
from typing import Any

import pytest
from brokers import Broker, free_port, mosquitto
from canaries import end, everything, payloads
from gateways import GatewayProcess, count, gateway, until
from receivers import ReceiverProcess

from edge_runtime import cli
from edge_runtime.board.secrets import SystemSecrets

RIGHT, WRONG, LITERAL, TOKEN = "canary-right-tern", "canary-wrong-gull", "canary-literal-skua", "canary-token-auk"
NEEDLES = [each.encode() for each in (RIGHT, WRONG, LITERAL, TOKEN)]
ROWS = 20


@contextmanager
def guarded(folder: Path) -> Iterator[Broker]:
    """Wants a password: user edge."""
    program = shutil.which("mosquitto_passwd")
    if program is None:
        pytest.skip("MISSING SYSTEM PACKAGE: mosquitto_passwd (apt-get install mosquitto)")
    users = folder / "users"
    subprocess.run([program, "-b", "-c", str(users), "edge", RIGHT], check=True, capture_output=True)
    users.chmod(0o644)
    with mosquitto(folder, allow_anonymous="false", password_file=str(users)) as broker:
        yield broker


def settings(folder: Path, local: Broker, far: Broker, receiver: ReceiverProcess, metrics: int) -> dict[str, Any]:
    (folder / "rows.csv").write_text("n\n" + "\n".join(str(row) for row in range(ROWS)) + "\n")
    at = f"127.0.0.1:{far.port}"
    (folder / "token").write_text(TOKEN)
    (folder / "token").chmod(0o600)
    mqtt = {"adapter": "mqtt", "backoff_s_max": 0.5, "points": [{"name": "n"}]}
    return {
        "site": "plant",
        "gateway": "g1",
        "log": {"level": "debug", "format": "json"},
        "metrics": {"listen": f"127.0.0.1:{metrics}"},
        "broker": {"mode": "external", "url": local.url},
        "devices": {
            "rows": {
                "adapter": "replay",
                "options": {"file": "rows.csv", "message_ids": True},
                "points": [{"name": "n", "column": "n"}],
            },
            "press": {**mqtt, "options": {"url": f"mqtt://edge:secret:good@{at}", "topics": ["t"], "client_id": "press"}},
            "saw": {**mqtt, "options": {"url": f"mqtt://edge:secret:bad@{at}", "topics": ["t"], "client_id": "saw"}},
        },
        "pipelines": {name: {"device": name} for name in ("rows", "press", "saw")},
        "sinks": {
            "far": {"type": "mqtt", "url": f"mqtt://edge:secret:good@{at}", "receiver": "far"},
            "refused": {"type": "mqtt", "url": f"mqtt://edge:secret:bad@{at}"},
            "literal": {"type": "mqtt", "url": f"mqtt://edge:{LITERAL}@{at}"},
            "missing": {"type": "mqtt", "url": f"mqtt://edge:secret:lost@{at}"},
            "tokened": {"type": "https", "url": receiver.url, "token_file": "token"},
        },
    }


def test_no_secret_comes_out_anywhere(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    port = free_port()
    with ExitStack() as stack:
        far = stack.enter_context(guarded(tmp_path))
        (tmp_path / "local").mkdir()
        local = stack.enter_context(mosquitto(tmp_path / "local"))
        traffic = stack.enter_context(everything(local, tmp_path))
        url = f"mqtt://edge:{RIGHT}@127.0.0.1:{far.port}"
        receiver = ReceiverProcess(tmp_path / "far.db", "--name", "far", "--mqtt", url)
        receiver.start()
        stack.callback(receiver.kill)
        said = settings(tmp_path, local, far, receiver, port)
        secrets = SystemSecrets(tmp_path / "data" / "secrets")
        secrets.put("good", RIGHT)
        secrets.put("bad", WRONG)
        edge = stack.enter_context(gateway(tmp_path, said))
        edge.delivers(receiver, "rows", ROWS)
        edge.wait("source_connected", device="press")
        away = {name: edge.wait("sink_away", sink=name) for name in ("refused", "literal", "missing")}
        edge.wait("source_waiting", device="saw")
        pages = b"".join(_get(port, page) for page in ("metrics", "health"))
        assert cli.main(["check", str(edge.file)]) == 0
        assert cli.main(["check", str(edge.file), "--json"]) == 0
        assert cli.main(["secret", "list", str(edge.file)]) == 1
        until(lambda: b"config/reported" in b"".join(payloads(traffic)), "the report")
        assert edge.stop() == 0
        end(local, traffic)
        told = b"\0".join(payloads(traffic))
    caught = {
        "the log": edge.log.read_bytes(), "what the broker was told": told, "pages": pages,
        "the terminal": "".join(capsys.readouterr()).encode(),
        "the outbox": _files(edge, "outbox.db"), "the audit log": _files(edge, "audit.db"),
    }  # fmt: skip
    for where, blob in caught.items():
        assert not [needle for needle in NEEDLES if needle in blob], where
    assert b"secret:good" in told, "a reference is no secret"
    kept = _files(edge, "control.db")
    assert [needle for needle in NEEDLES if needle in kept] == [LITERAL.encode()], "documents are kept verbatim, and no more"
    assert away["missing"]["cause"] == "sinks.missing.url: secret lost is not here"
    assert "EDGE_RUNTIME_SECRET_LOST" in away["missing"]["hint"]
    assert "secret" not in away["refused"]["cause"]
    _assert_private(edge.data_dir)


def test_a_secret_that_is_set_later_is_used_without_a_restart(tmp_path: Path) -> None:
    with ExitStack() as stack:
        far = stack.enter_context(guarded(tmp_path))
        url = f"mqtt://edge:{RIGHT}@127.0.0.1:{far.port}"
        receiver = ReceiverProcess(tmp_path / "far.db", "--name", "far", "--mqtt", url, mqtt=True)
        receiver.start()
        stack.callback(receiver.kill)
        (tmp_path / "rows.csv").write_text("n\n1\n2\n")
        said = {
            "site": "plant", "gateway": "g1", "secrets_dir": "keys",
            "devices": {"rows": {"adapter": "replay", "options": {"file": "rows.csv"}, "points": [{"name": "n", "column": "n"}]}},
            "pipelines": {"rows": {"device": "rows"}},
            "sinks": {"far": {"type": "mqtt", "url": f"mqtt://edge:secret:late@127.0.0.1:{far.port}", "receiver": "far"}},
        }  # fmt: skip
        edge = stack.enter_context(gateway(tmp_path, said))
        edge.wait("sink_away", sink="far")
        assert count(receiver.file, "rows") == 0
        SystemSecrets(tmp_path / "keys").put("late", RIGHT)
        edge.delivers(receiver, "rows", 2)
        assert edge.stop() == 0


WRONG_FILE = f"""\
site: s
gateway: g
log: {{level: debug, format: json}}
broker: {{mode: external, url: "mqtt://127.0.0.1:1"}}
sinks:
  a: {{type: mqtt, url: "mqtt://u:{LITERAL}@h:bad", password: {LITERAL}}}
  b: {{type: https, url: "{LITERAL}"}}
  c: {{type: mqtt, url: "mqtt://u:{LITERAL}@h", timeout_s: {LITERAL}}}
"""


def test_what_is_wrong_with_a_file_is_told_without_its_secrets(tmp_path: Path, capsys: pytest.CaptureFixture[str]) -> None:
    """In the log of a gateway that starts in safe mode, in its audit log, and by `check`."""
    edge = GatewayProcess(tmp_path, {})
    edge.file.write_text(WRONG_FILE)
    edge.start()
    try:
        start = edge.wait("configuration_start")
        assert "sinks.a.password: unknown key" in start["cause"]
        assert edge.stop() == 0
    finally:
        edge.end()
    assert cli.main(["check", str(edge.file)]) == 1
    assert cli.main(["check", str(edge.file), "--json"]) == 1
    shown = "".join(capsys.readouterr())
    assert "mqtt://[user:password@]host[:port]" in shown
    for where, blob in (("log", edge.log.read_bytes()), ("audit", _files(edge, "audit.db")), ("check", shown.encode())):
        assert LITERAL.encode() not in blob, where


def _get(port: int, page: str) -> bytes:
    try:
        with urllib.request.urlopen(f"http://127.0.0.1:{port}/{page}", timeout=5) as answer:
            found: bytes = answer.read()
    except urllib.error.HTTPError as error:
        found = error.read()
    assert found
    return found


def _files(edge: GatewayProcess, stem: str) -> bytes:
    """With its WAL."""
    found = b"".join(path.read_bytes() for path in edge.data_dir.glob(f"{stem}*"))
    assert found, stem
    return found


def _assert_private(folder: Path) -> None:
    """Nobody else on the machine may read anything of it."""
    open_to_others = [path for path in (folder, *folder.rglob("*")) if path.stat().st_mode & 0o077]
    assert not open_to_others
