"""The command line's frame, and the verbs that only look at a configuration."""

from __future__ import annotations

import json
import os
import re
import shutil
import subprocess
import sys
from pathlib import Path
from types import ModuleType

import pytest

from edge_runtime import cli, config
from edge_runtime.cli import terminal, yaml_sample
from edge_runtime.cli.config.schema import schema
from edge_runtime.control.book_file import COMMAND_S_MAX
from edge_runtime.document import Problem
from edge_runtime.ports import EdgeError
from edge_runtime.sources.registry import Registry


def _edge_runtime(*words: str, stdin: str | None = None) -> subprocess.CompletedProcess[str]:
    command = [sys.executable, "-m", "edge_runtime", *words]
    return subprocess.run(command, capture_output=True, text=True, input=stdin, timeout=60, check=False)


@pytest.fixture
def example() -> str:
    return _edge_runtime("config", "example").stdout


def test_help_shows_every_verb_and_imports_nothing_heavy() -> None:
    heavy = ("pydantic", "numpy", "yaml", "rich", "structlog", "sqlite3", "sqlite_utils", "paho", "pymodbus")
    code = f"""
import sys
from edge_runtime.cli import main
try:
    main(["--help"])
finally:
    print("HEAVY", [name for name in {heavy} if name in sys.modules])
"""
    shown = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=False).stdout
    assert "HEAVY []" in shown
    for verb in cli.VERBS:
        assert re.search(rf"\n    {verb}\s", shown), verb


def test_the_log_of_a_gateway_needs_no_rich() -> None:
    """structlog takes it where it is installed, for tracebacks: 3 MiB of the 70 that a gateway may have."""
    code = """
import sys
from edge_runtime.cli.run import logger
from edge_runtime.config import Log
for form in ("text", "json"):
    logger(Log(format=form)).error("event", cause="why")
print([name for name in sys.modules if name.partition(".")[0] in ("rich", "pygments")])
import rich
"""
    done = subprocess.run([sys.executable, "-c", code], capture_output=True, text=True, timeout=60, check=True)
    assert done.stdout == "[]\n"
    assert done.stderr.count("cause") == 2


def test_every_verb_has_its_help() -> None:
    for verb in cli.VERBS:
        done = _edge_runtime(verb, "--help")
        assert done.returncode == 0
        assert done.stdout.startswith(f"usage: edge-runtime {verb}")


@pytest.mark.parametrize("words", [[], ["chekc"], ["check"], ["config", "exmaple"]])
def test_wrong_usage_is_2(words: list[str]) -> None:
    done = _edge_runtime(*words)
    assert done.returncode == 2
    assert "usage: edge-runtime" in done.stderr
    assert "Traceback" not in done.stderr


@pytest.fixture
def verb(monkeypatch: pytest.MonkeyPatch) -> ModuleType:
    """A verb of its own, in the table as any other."""
    module = ModuleType("edge_runtime.cli.planted")
    module.SUMMARY = "planted"  # type: ignore[attr-defined]
    module.arguments = lambda parser: None  # type: ignore[attr-defined]
    monkeypatch.setitem(sys.modules, module.__name__, module)
    monkeypatch.setattr(cli, "VERBS", (*cli.VERBS, "planted"))
    return module


def test_an_error_is_its_cause_and_its_hint(verb: ModuleType, capsys: pytest.CaptureFixture[str]) -> None:
    def run(args: object) -> int:
        raise EdgeError("the cellar is flooded", "pump it out")

    verb.run = run  # type: ignore[attr-defined]
    assert cli.main(["planted"]) == 1
    assert capsys.readouterr().err == "error: the cellar is flooded\nhint: pump it out\n"


def test_ctrl_c_is_130(verb: ModuleType) -> None:
    def run(args: object) -> int:
        raise KeyboardInterrupt

    verb.run = run  # type: ignore[attr-defined]
    assert cli.main(["planted"]) == 130


def test_a_reader_that_goes_away_is_no_error() -> None:
    """`edge-runtime config schema | head -c 1`"""
    command = f"{sys.executable} -m edge_runtime config schema | head -c 1"
    done = subprocess.run(["bash", "-c", f"set -o pipefail; {command}"], capture_output=True, text=True, timeout=60, check=False)
    assert done.stdout == "{"
    assert done.stderr == ""
    assert done.returncode == 0


def test_output_that_the_disk_does_not_take_is_said_in_words() -> None:
    """`edge-runtime outbox FILE export > backup.jsonl`, and the disk is full."""
    command = f"{sys.executable} -m edge_runtime config schema > /dev/full"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert done.stderr.startswith("error: the output cannot be written: No space left on device\nhint: ")
    assert "Traceback" not in done.stderr
    assert done.returncode == 1


@pytest.mark.parametrize(
    "words",
    ["outbox {}", "audit verify {}", "models {}", "models --dir {}", "secret list {}", "site members --folder {}", "run {}"],
)
def test_a_name_that_is_too_long_for_a_file_is_told_in_words(words: str, capsys: pytest.CaptureFixture[str]) -> None:
    """`edge-runtime outbox "$(cat gateway.yaml)"`"""
    assert cli.main(words.format("a" * 5000).split()) == 1
    said = capsys.readouterr().err
    assert "File name too long" in said
    assert "hint: " in said


@pytest.mark.parametrize(("words", "status"), [("run {}/loop", 1), ("check {}/loop", 1), ("support-bundle {0}/loop -o {0}/b", 0)])
def test_a_link_that_leads_to_itself_is_told_in_words(words: str, status: int, tmp_path: Path) -> None:
    (tmp_path / "loop").symlink_to("loop")
    done = _edge_runtime(*words.format(tmp_path).split())
    assert done.returncode == status
    assert "loop:1: cannot be read: Too many levels of symbolic links" in done.stderr
    assert "Traceback" not in done.stderr


def test_a_character_that_the_terminal_does_not_know_is_escaped(tmp_path: Path) -> None:
    """LC_ALL=en_US.ISO-8859-1 and the like. What a program reads means the same."""
    (tmp_path / "g.yaml").write_text('site: plant-1\ngateway: g\ndevices: {press: {adapter: "Ω\U0001f600é"}}\n')
    env = {**os.environ, "PYTHONIOENCODING": "latin-1"}
    command = [sys.executable, "-m", "edge_runtime", "check", "--json", str(tmp_path / "g.yaml")]
    done = subprocess.run(command, capture_output=True, timeout=60, check=False, env=env)
    assert done.stderr == b""
    assert "Ω\U0001f600é" in {problem["value"] for problem in json.loads(done.stdout.decode("latin-1"))["problems"]}


@pytest.mark.parametrize("closed", [">&-", "2>&-", "<&- >&- 2>&-"])
def test_a_closed_stream_is_no_error(closed: str) -> None:
    command = f"{sys.executable} -m edge_runtime adapters {closed}"
    done = subprocess.run(["bash", "-c", command], capture_output=True, text=True, timeout=60, check=False)
    assert (done.stderr, done.returncode) == ("", 0)


@pytest.mark.parametrize(
    ("words", "said"),
    [
        ("audit point press/speed --at -1h nowhere", "nowhere: there is no such file"),
        ("config get press-1 --broker mqtt://127.0.0.1:1 devices", "connection refused"),
        ("command press-1 write --broker mqtt://127.0.0.1:1 point=press/speed value=3", "connection refused"),
        ("mesh --json nowhere.yaml", "nowhere.yaml"),
    ],
)
def test_words_stand_before_and_behind_options(words: str, said: str, capsys: pytest.CaptureFixture[str]) -> None:
    """As docs/audit.md does it."""
    assert cli.main(words.split()) == 1
    assert said in capsys.readouterr().err


WITHOUT_ROOTS_RIGHTS = ["setpriv", "--bounding-set=-dac_override,-dac_read_search", "--inh-caps=-dac_override,-dac_read_search"]


@pytest.mark.parametrize(
    "words", [("outbox", "{}/outbox.db"), ("audit", "verify", "{}"), ("outbox", "import", "{}/o.db", "--into", "{}/g.yaml")]
)
def test_the_folder_of_another_user_is_told_in_words(words: tuple[str, ...], tmp_path: Path) -> None:
    """`data_dir` is 0700, and who looks after a gateway is not always its user."""
    if os.getuid() != 0 or shutil.which("setpriv") is None:
        pytest.skip("only root can give folders away, and setpriv takes its rights: not tried")
    data = tmp_path / "data"
    data.mkdir(mode=0o700)
    os.chown(data, 65534, 65534)
    command = [*WITHOUT_ROOTS_RIGHTS, sys.executable, "-m", "edge_runtime", *(word.format(data) for word in words)]
    done = subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
    assert (done.returncode, done.stdout) == (1, "")
    assert f"error: {data}/" in done.stderr
    assert "Permission denied" in done.stderr
    assert "Traceback" not in done.stderr


# --- config, check ---------------------------------------------------------------------------------------------------


@pytest.mark.parametrize("adapter", ["modbus", "mqtt", "replay"])
def test_the_example_is_valid_and_names_every_key(adapter: str) -> None:
    registry = Registry()
    lines = yaml_sample.configuration(adapter, registry[adapter])
    config.load("\n".join(lines), registry)
    keys = {line.strip(" #-").partition(":")[0] for line in lines}
    for model in (config.Config, config.Device, config.Window, config.Rule, config.HttpsSink, registry[adapter].Options):
        assert keys >= set(model.model_fields)


@pytest.mark.parametrize("adapter", ["modbus", "mqtt", "replay"])
def test_what_is_commented_out_can_be_opened(adapter: str) -> None:
    """All of it at once: not all of it goes together (TCP and serial, a mesh without a broker), but every key is known, and its
    default possible."""
    registry = Registry()
    lines = yaml_sample.configuration(adapter, registry[adapter])
    text = "\n".join(re.sub(r"^( *)#(?=\S|  )", r"\1", line) for line in lines)
    assert "\nbroker:\n" in text
    assert "\n    period_s: 1.0\n" in text
    known = ("devices.press.options", "mesh", "pipelines.press-anomaly.rules[0].writes[0].point")
    assert [str(problem) for problem in _problems(text, registry) if problem.path not in known] == []


def _problems(text: str, registry: Registry) -> tuple[Problem, ...]:
    try:
        config.load(text, registry)
    except config.ConfigError as error:
        return error.problems
    return ()


def test_every_key_is_described() -> None:
    """The example, the schema and the hints are made of the descriptions."""
    found = [
        config.Config,
        config.MqttSink,
        config.HttpsSink,
        config.Window,
        config.Rule,
        config.Broker,
        config.Outbox,
        config.Log,
    ]
    for model in (*found, config.Device, config.Pipeline):
        for name, field in model.model_fields.items():
            assert field.description, f"{model.__name__}.{name}"


def test_the_schema_knows_the_adapters() -> None:
    registry = Registry()
    whole = schema({name: registry[name] for name in ("modbus", "replay")})
    assert whole["$ref"] == "#/$defs/Config"
    device = whole["$defs"]["Device"]
    assert device["properties"]["adapter"]["enum"] == ["modbus", "replay"]
    [modbus, _] = device["allOf"]
    options = modbus["then"]["properties"]["options"]["$ref"].rpartition("/")[2]
    assert whole["$defs"][options]["additionalProperties"] is False
    references = {word for word in json.dumps(whole).split('"') if word.startswith("#/$defs/")}
    assert {reference.removeprefix("#/$defs/") for reference in references} <= set(whole["$defs"])


def test_check_a_good_file(example: str, tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(example)
    done = _edge_runtime("check", str(file), "--plan")
    assert done.returncode == 0, done.stderr
    assert done.stdout.startswith("valid: gateway gateway-1 of site plant-1\n")
    assert "plan of press\n" in done.stdout
    assert _edge_runtime("check", "-", stdin=example).returncode == 0


def test_check_a_bad_file(example: str) -> None:
    bad = example.replace("site:", "zone:").replace("type: https", "type: htps")
    done = _edge_runtime("check", "-", stdin=bad)
    assert done.returncode == 1
    assert "<stdin>:4: site: is missing\n    hint: The site" in done.stderr
    assert "did you mean `https`?" in done.stderr
    assert done.stderr.endswith("3 problems\n")
    done = _edge_runtime("check", "-", "--json", stdin=bad)
    problems = json.loads(done.stdout)["problems"]
    assert done.returncode == 1
    assert {problem["path"] for problem in problems} == {"site", "zone", "sinks.cloud.type"}
    assert {problem["value"] for problem in problems} == {None, "plant-1", "htps"}  # as they are, not in quotes once more
    assert set(problems[0]) == {"file", "line", "path", "message", "value", "hint"}


def test_check_of_what_is_no_text() -> None:
    """Also where Python would smuggle bytes through a text (LC_ALL=C): that ended in a traceback."""
    command = [sys.executable, "-m", "edge_runtime", "check", "-"]
    for content, env in ((b"a: 1\nsite: p\xe9", {"LC_ALL": "C"}), ("site: é".encode("utf-16"), {"PYTHONIOENCODING": "ascii"})):
        done = subprocess.run(command, capture_output=True, input=content, env={**os.environ, **env}, timeout=60, check=False)
        line = 1 + content.partition(b"\xe9")[0].count(b"\n")
        assert done.returncode == 1
        assert done.stderr.decode().startswith(f"<stdin>:{line}: is no text in UTF-8\n    hint: ")


def test_one_wrong_key_does_not_hide_what_only_trying_out_finds() -> None:
    """A model that is not there, and a point that no request can read: said beside all else."""
    text = """\
site: s
gateway: g
log: {lvl: info}
devices:
  press: {adapter: modbus, options: {host: h}, points: [{name: a, number: 40001, unti: bar}]}
  saw: {adapter: modbus, options: {host: h, block_registers_max: 9}, points: [{name: t, number: 40100, type: string, length: 99}]}
pipelines:
  x: {device: press, window: {count: 1}, model: nowhere}
  y: {device: sow, window: {count: 1}, model: nowhere, queue: 5}
  z: 5
  "a b": {device: saw, model: nowhere}
mesh: {ofers: [nowhere], offers: [nowhere]}
"""
    done = _edge_runtime("check", "-", "--json", stdin=text)
    problems = [(one["line"], one["path"]) for one in json.loads(done.stdout)["problems"]]
    tried_out = [(6, "devices.saw"), (8, "pipelines.x.model"), (9, "pipelines.y.model"), (12, "mesh.offers[0]")]
    assert [one for one in problems if one in tried_out] == tried_out
    assert {(3, "log.lvl"), (5, "devices.press.points[0].unti"), (9, "pipelines.y.device"), (10, "pipelines.z")} <= {*problems}


def test_check_finds_a_point_that_no_request_can_read() -> None:
    """The gateway would say so in its log, and never read that device."""
    point = "{name: text, address: 0, type: string, length: 250}"
    device = f"  press: {{adapter: modbus, options: {{host: plc}}, points: [{point}]}}"
    text = f"site: plant\ngateway: gw\ndevices:\n{device}\n"
    for words in (["check", "-"], ["check", "-", "--plan"]):
        done = _edge_runtime(*words, stdin=text)
        assert done.returncode == 1
        assert "<stdin>:4: devices.press: point text has 125 registers, block_registers_max is 120\n" in done.stderr
        assert "    hint: raise block_registers_max (at most 125)\n1 problem\n" in done.stderr


def test_what_is_commanded_may_stand_behind_an_option() -> None:
    """It was "unrecognized arguments: point=press/speed value=5"."""
    for words in (
        ["g", "write", "--broker", "mqtt://b", "point=d/x", "value=-5"],
        ["g", "--json", "write", "point=d/x", "--broker", "mqtt://b", "value=-5"],
        ["g", "write", "--json", "point=d/x", "value=-5", "--broker", "mqtt://b"],
        ["g", "write", "--broker=mqtt://b", "point=d/x", "value=-5"],
    ):
        found = cli._parser(["command"]).parse_args(["command", *words])
        assert (found.gateway, found.verb, found.values) == ("g", "write", ["point=d/x", "value=-5"])
        assert found.broker == "mqtt://b"


def test_an_adapter_that_is_not_there() -> None:
    done = _edge_runtime("adapters", "modbsu")
    assert (done.returncode, done.stderr) == (1, "error: no adapter modbsu is installed\nhint: did you mean `modbus`?\n")


def test_adapters_as_json() -> None:
    shown = json.loads(_edge_runtime("adapters", "modbus", "--json").stdout)
    assert shown["mode"] == "polled"
    assert "name" in shown["point"]["properties"]


# --- terminal --------------------------------------------------------------------------------------------------------


def test_a_table_for_a_pipe(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.table(("name", "count"), [("press", 12345), ("a-long-name", 7), ("", 0)], "devices")
    assert (
        capsys.readouterr().out == "devices\nname          count\npress        12,345\na-long-name       7\n-                 0\n"
    )


def test_an_empty_table(capsys: pytest.CaptureFixture[str]) -> None:
    terminal.table(("name", "count"), [])
    assert capsys.readouterr().out == "name  count\n"


@pytest.mark.parametrize(
    "words",
    [
        ["audit", "point", "press/speed", "--at", "-5m", "--json", "/nowhere"],
        ["config", "get", "--json", "press-1", "--config", "/nowhere", "devices.press"],
        ["command", "press-1", "write", "--config", "/nowhere", "point=a/b", "--valid", "5", "value=1"],
    ],
)
def test_options_may_stand_between_the_words_of_a_verb(words: list[str], capsys: pytest.CaptureFixture[str]) -> None:
    """Before 3.12.8 Python takes a word that may be left out as left out when an option stands before it."""
    assert cli.main(words) == 1  # and not 2, with "unrecognized arguments"
    assert "/nowhere" in capsys.readouterr().err


def test_a_command_holds_no_longer_than_a_gateway_takes_it_for(capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit):
        cli.main(["command", "press-1", "drain", "--valid", f"{COMMAND_S_MAX + 1}"])
    assert f"is not between 0 and {COMMAND_S_MAX:g}" in capsys.readouterr().err


@pytest.mark.parametrize("stuck", [True, False])
def test_the_program_ends_around_a_thread_that_does_not_come_back(stuck: bool) -> None:
    """Python would abort ("terminate called") where it is shut down around one that is in a driver or an engine."""
    program = f"""
import asyncio, atexit, sys, time
from edge_runtime.board.system import ThreadWorker
from edge_runtime.cli import main

async def begin():
    worker = ThreadWorker("engine")
    asking = asyncio.ensure_future(worker.run(time.sleep, {60 if stuck else 0.01}))
    await asyncio.sleep(0.1)
    asking.cancel()
    worker.abandon()

asyncio.run(begin())
atexit.register(print, "Python was shut down")
sys.argv = ["edge-runtime", "adapters", "modbus"]
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "modbus" in done.stdout
    assert ("Python was shut down" in done.stdout) is not stuck


def test_who_interrupts_the_program_while_it_waits_for_threads_sees_no_traceback() -> None:
    program = """
import signal, sys
from edge_runtime.board import system
from edge_runtime.cli import main

system.left_behind = lambda: signal.raise_signal(signal.SIGINT)
sys.argv = ["edge-runtime", "adapters", "modbus"]
sys.exit(main())
"""
    done = subprocess.run([sys.executable, "-c", program], capture_output=True, text=True, timeout=30, check=False)
    assert (done.returncode, done.stderr) == (0, "")
    assert "modbus" in done.stdout
