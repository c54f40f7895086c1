"""The configuration: everything that is wrong is said at once, with its line, its path and what to do."""

from __future__ import annotations

import json
from collections.abc import Mapping, Sequence
from pathlib import Path
from typing import Literal

import pytest
from hypothesis import given
from hypothesis import strategies as st

from edge_runtime import adapter, config, document
from edge_runtime.adapter import Adapter, Field, Sample, Unusable
from edge_runtime.config import ConfigError
from edge_runtime.sources.registry import Registry


class Meter(Adapter):
    """An adapter that is only its schema."""

    class Options(adapter.Options):
        host: str = Field(description="Host name")
        port: int = Field(502, description="TCP port", ge=1, le=65535)

    class Point(adapter.Point):
        address: int = Field(description="Register", ge=0)

    async def open(self) -> None: ...
    async def read(self) -> Sequence[Sample]:
        return []

    async def close(self) -> None: ...


SCHEMAS: Mapping[str, type[Adapter]] = {"meter": Meter}

GOOD = """\
site: plant
gateway: gw-1
broker: {mode: hosted}
devices:
  press:
    adapter: meter
    options: {host: plc.example}
    points:
      - {name: temp, address: 0, scale: 0.1, unit: Cel}
      - {name: force, address: 1}
pipelines:
  hot:
    device: press
    points: [force, temp]
    window: {count: 64, step: 16}
    rules:
      - {name: too-hot, output: temp.max, above: 80}
sinks:
  site: {type: mqtt, url: local}
  cloud: {type: https, url: "https://cloud.example", lanes: [event, result]}
"""


def _problems(text: str) -> dict[str, tuple[int, str, str]]:
    """path -> (line, message, hint)"""
    with pytest.raises(ConfigError) as caught:
        config.load(text, SCHEMAS, Path("f.yaml"))
    return {problem.path: (problem.line, problem.message, problem.hint) for problem in caught.value.problems}


def test_a_good_one() -> None:
    loaded = config.load(GOOD, SCHEMAS)
    assert loaded.devices["press"].points[1] == {"name": "force", "address": 1}
    assert loaded.pipelines["hot"].rules[0].above == 80.0
    assert isinstance(loaded.sinks["cloud"], config.HttpsSink)
    assert loaded.outbox.size_bytes_max == 256 * 2**20


MANY = """\
sites: plant                              #! ~: unknown key
gateway: gw/1                             #! ~: is no name
broker: {mode: external, url: plc}        #! ~.url: plc: the scheme is missing
outbox: {journal_rows_max: 100, drain_s_max: soon}  #! ~.drain_s_max: should be a number
devices:
  press:
    adapter: meter
    options: {hots: x, port: 0}           #! ~.hots: unknown key; ~.port: should be greater
    points:
      - {name: temp, adress: 0, scale: x} #! ~.adress: unknown key; ~.scale: should be a number
      - {name: temp, address: -1}         #! ~.name: is the name of another point; ~.address: should be greater
      - {name: 9lives, address: 1}        #! ~.name: is no name
  pump:
    adapter: metre                        #! ~: no adapter of this name
    period_s: -1                          #! ~: should be greater
    points: []                            #! ~: must not be empty
pipelines:
  both-windows:
    device: press
    points: [tmp, temp, temp]             #! ~[0]: is no point of press; ~[2]: stands here twice
    window:                               #! ~: give exactly one of count and length_s
      count: 8
      step: 9                             #! ~: is larger than count
      length_s: 1.5
      step_s: 2                           #! ~: is larger than length_s
      bed: skip                           #! ~: unknown key
    rules:
      - {name: hot, output: temp.maximum, abov: 80}  #! ~: has no limit; ~.output: is no output; ~.abov: unknown key
      - name: hot                         #! ~.name: is the name of another rule
        output: temp.max
        above: 80
        below: 80                         #! ~: is not less than above
        severity: 1                       #! ~: should be 'info'
      - {name: odd, output: temp.max, above: model, belw: 1}  #! ~.above: there is no model; ~.belw: unknown key
      - {name: low, output: temp.max, above: high, below: 3}  #! ~.above: should be a number
      - hot                               #! ~: should be a mapping
  no-window-at-all:
    device: pres                          #! ~: no device of this name
    points: [temp, temp]                  #! ~[1]: stands here twice
    window: {cuont: 8, step: 1, step_s: 1} #! ~: give exactly; ~.step: goes with count; ~.step_s: goes with length_s; ~.cuont: un
    rules: [{name: hot, output: tmp.max, above: 1}]  #! ~[0].output: is no output
  model-alone:
    device: press
    model: 5                              #! ~: should be a text; ~: needs a window
    queue: 1                              #! ~: unknown key
  rules-alone:
    device: press
    accelerator: 5                        #! ~: should be a text
    rules: [{name: hot, output: temp.max, above: 1, b: 1}]  #! ~: needs a window; ~[0].b: unknown key
  long:
    device: press
    accelerator: tpu                      #! ~: has not the right form
    window: {count: 51, gap_s_max: 0}     #! ~.count: is more than half; ~.gap_s_max: should be greater
sinks:
  site: {type: mqtt, url: "http://plc", lanes: [evnt]}  #! ~.url: http://plc: http:// is not; ~.lanes[0]: should be 'gap'
  plant: {type: mqtt, receiver: a/b}      #! ~.url: is missing; ~.receiver: is no name
  cloud: {type: http, url: "https://x"}   #! ~.type: should be 'mqtt' or 'https'
  other: {type: https, url: "ftp://x", recever: y}  #! ~.url: has not the right; ~.recever: unknown key
log: {level: loud}                        #! ~.level: should be 'debug'
"""
"""What is wrong stands behind its line: the path, and how the message begins. ~ is the path of the first thing in the line."""


def _expected(text: str) -> list[str]:
    lines = {line: path for path, line in reversed(document.read(text).lines.items()) if path}
    expected = []
    for number, line in enumerate(text.splitlines(), 1):
        for problem in line.partition("#! ")[2].split("; "):
            expected += [f"{number}: {problem.replace('~', document.dotted(lines[number]))}"] if problem else []
    return expected


def test_every_problem_at_once() -> None:
    """Every kind of mistake in one file: none hides another, none is said twice, and nothing is said that is not so."""
    with pytest.raises(ConfigError) as caught:
        config.load(MANY, SCHEMAS, Path("f.yaml"))
    said = [f"{problem.line}: {problem.path}: {problem.message}" for problem in caught.value.problems]
    assert [problem.line for problem in caught.value.problems] == sorted(problem.line for problem in caught.value.problems)
    for beginning in _expected(MANY):
        found = [one for one in said if one.startswith(beginning)]
        assert len(found) == 1, f"{beginning}: {found or said}"
        said.remove(found[0])
    assert said == []
    assert all(problem.hint for problem in caught.value.problems)


@pytest.mark.parametrize(
    ("old", "new", "line", "path", "message", "hint"),
    [
        (
            "adapter: meter",
            "adapter: metre",
            6,
            "devices.press.adapter",
            "no adapter of this name",
            "did you mean `meter`?; see `edge-",
        ),
        ("device: press", "device: pres", 13, "pipelines.hot.device", "no device of this name", "did you mean `press`?"),
        ("adapter: meter", "adaptor: meter", 6, "devices.press.adaptor", "unknown key", "did you mean `adapter`?"),
        ("adapter: meter", "zzz: meter", 5, "devices.press.adapter", "is missing", "Name of the adapter"),
        ("count: 64", "count: 64, length_s: 5", 15, "pipelines.hot.window", "give exactly one of count and length_s", ""),
        (
            "{count: 64, step: 16}",
            "{length_s: 5, step_s: 6}",
            15,
            "pipelines.hot.window.step_s",
            "is larger than length_s",
            "at most 5",
        ),
        (
            "device: press",
            "device: press\n    queue_max: 1" + "0" * 30,
            14,
            "pipelines.hot.queue_max",
            "should be less than or",
            "",
        ),
        (
            "above: 80",
            "above: 80, raise_after_s: 1e300",
            17,
            "pipelines.hot.rules[0].raise_after_s",
            "should be less than or",
            "",
        ),
        (
            "above: 80",
            "above: 80, clear_after_s: 1e300",
            17,
            "pipelines.hot.rules[0].clear_after_s",
            "should be less than or",
            "",
        ),
        ("scale: 0.1", "silence_max_s: 1e300", 9, "devices.press.points[0].silence_max_s", "should be less than or", ""),
        (
            "{count: 64, step: 16}",
            "{length_s: 60, rows_max: 60}",
            15,
            "pipelines.hot.window.length_s",
            "needs more samples than rows_max lets a window have",
            "set rows_max to 61 or more, or make the window shorter: it needs 61 samples, one each 1 s",
        ),
        (
            "{count: 64, step: 16}",
            "{length_s: 2000000}",
            15,
            "pipelines.hot.window.length_s",
            "needs more samples than rows_max lets a window have",
            "make the window shorter: it needs 2000001 samples",
        ),
        (
            "{count: 64, step: 16}",
            "{length_s: 60, step_s: 0.001}",
            15,
            "pipelines.hot.window.step_s",
            "is too small for length_s",
            "at least 0.006: that is 10000 windows that overlap",
        ),
        (
            "{count: 64, step: 16}",
            "{length_s: 5, step: 1}",
            15,
            "pipelines.hot.window.step",
            "goes with count",
            "give `count`, too",
        ),
        ("    window: {count: 64, step: 16}\n", "", 15, "pipelines.hot.rules", "needs a window", "give `window: {count: 1}`"),
        (", above: 80", "", 17, "pipelines.hot.rules[0]", "has no limit", "give above or below (or both): `above: 80`"),
        (
            "above: 80",
            "above: 80, below: 90",
            17,
            "pipelines.hot.rules[0].below",
            "is not less than above",
            "it must be less than above (80)",
        ),
        (
            "above: 80",
            "above: 80, below: 70, hysteresis: 6",
            17,
            "pipelines.hot.rules[0].hysteresis",
            "is too large",
            "less than half the distance of below (70) and above (80): the rule could never clear",
        ),
        ("above: 80", "above: model", 17, "pipelines.hot.rules[0].above", "there is no model", "give a number, or"),
        (
            "above: 80",
            "above: modell",
            17,
            "pipelines.hot.rules[0].above",
            "should be a number or 'model'",
            "did you mean `model`?",
        ),
        ("above: 80", "above: '80'", 17, "pipelines.hot.rules[0].above", "should be a number or 'model'", ""),
        ("scale: 0.1", "scale: 0.0", 9, "devices.press.points[0]", "scale 0: whatever the device says, the value would be", ""),
        ("count: 64", "count: 6.5", 15, "pipelines.hot.window.count", "should be a whole number", ""),
        ("count: 64", "count: '64'", 15, "pipelines.hot.window.count", "should be a whole number", "leave the quotes out: 64"),
        (
            "count: 64",
            "count: 64s",
            15,
            "pipelines.hot.window.count",
            "should be a whole number",
            "a number alone, without a unit",
        ),
        (
            "count: 64, step: 16",
            "length_s: 5s",
            15,
            "pipelines.hot.window.length_s",
            "should be a number",
            "a number alone, in seconds",
        ),
        (
            "count: 64, step: 16",
            'length_s: "0,5"',
            15,
            "pipelines.hot.window.length_s",
            "should be a number",
            "with a point in the place of the comma: `length_s: 0.5`",
        ),
        (
            "{count: 64, step: 16}",
            "64",
            15,
            "pipelines.hot.window",
            "should be a mapping",
            'Which samples make a window; without it every sample is forwarded; for instance `window: {"count": 64}`',
        ),
        ("{count: 64, step: 16}", "[64]", 15, "pipelines.hot.window", "should be a mapping", "Which samples make a window"),
        ("scale: 0.1", "sentinels: 9", 9, "devices.press.points[0].sentinels", "should be a list", "put brackets around it"),
        (
            "scale: 0.1",
            "sentinels: {a: 9}",
            9,
            "devices.press.points[0].sentinels",
            "should be a list",
            "each item of `sentinels` begins",
        ),
        ("scale: 0.1", "sentinels: ", 9, "devices.press.points[0].sentinels", "should be a list", "leave the key out"),
        ("type: https", "type: HTTPS", 20, "sinks.cloud.type", "should be 'mqtt' or 'https'", "did you mean `https`?"),
        (
            "broker: {mode: hosted}",
            "broker: hosted",
            3,
            "broker",
            "should be a mapping",
            "The local MQTT broker; its keys are mode, url, listen",
        ),
        (
            "gateway: gw-1",
            "gateway: gw-1\nlog: debug",
            3,
            "log",
            "should be a mapping",
            "The log on standard error; its keys are level",
        ),
        ("{name: force, address: 1}", "force", 10, "devices.press.points[1]", "should be a mapping", ""),
        (
            "output: temp.max",
            "output: temp",
            17,
            "pipelines.hot.rules[0].output",
            "is no output of this pipeline",
            "did you mean `temp.max` or `temp.min`?",
        ),
        ("site: plant", "site: 12", 1, "site", "should be a text", 'put quotes around it: "12"'),
        ("  press:", '  "pr ess":', 5, 'devices["pr ess"]', "is no name", "letters, digits, - and _"),
        (
            "options: {host: plc.example}",
            "options: [a]",
            7,
            "devices.press.options",
            "should be a mapping",
            "no list: in `options`",
        ),
        ("options: {host: plc.example}", "options: plc", 7, "devices.press.options", "should be a mapping", ""),
        ("broker: {mode: hosted}", "broker:", 3, "broker", "should be a mapping", "leave the key out"),
        ("type: https", "type: htps", 20, "sinks.cloud.type", "should be 'mqtt' or 'https'", "did you mean `https`?"),
        ("type: https", "type: http", 20, "sinks.cloud.type", "should be 'mqtt' or 'https'", "did you mean `https`?"),
        (", url: local", "", 19, "sinks.site.url", "is missing", "mqtt://[user:password@]host[:port] or mqtts://..., or `local`"),
        ("gw-1", "gw/1", 2, "gateway", "is no name", "letters, digits, - and _; starts with a letter or digit; at most 63"),
        ("name: temp", "name: 9", 9, "devices.press.points[0].name", "should be a text", 'put quotes around it: "9"'),
        ("name: temp", "name: 9a", 9, "devices.press.points[0].name", "is no name", "letters, digits, _, . and -; starts with"),
        ("type: https, ", "", 20, "sinks.cloud", "has no type", "give `type`"),
        (
            "https://cloud",
            "ftp://cloud",
            20,
            "sinks.cloud.url",
            "has not the right form",
            "https://host[:port]",
        ),
        ("url: local", "url: http://plc", 19, "sinks.site.url", "http://plc: http:// is not spoken here", "mqtt://[user"),
        ("url: local", 'url: "mqtts://b", key_file: k', 19, "sinks.site.url", "mqtts://b: cert_file and key_file belong", ""),
        ("{mode: hosted}", "{mode: external, url: plc}", 3, "broker.url", "plc: the scheme is missing", "mqtt://[user"),
        ("scale: 0.1", "scale: .nan", 9, "devices.press.points[0].scale", "should be a finite number", ""),
        ("scale: 0.1", "low: 5, high: 4", 9, "devices.press.points[0]", "low (5.0) must be below high (4.0)", ""),
    ],
)
def test_one_problem(old: str, new: str, line: int, path: str, message: str, hint: str) -> None:
    found = _problems(GOOD.replace(old, new, 1))[path]
    assert found[0] == line
    assert found[1].startswith(message)
    assert found[2].startswith(hint)


def test_a_window_by_time_that_has_room_for_its_samples() -> None:
    """As many as fit are no problem, and of a source that is not polled nobody knows how many will come."""
    for window, more in (("{length_s: 60, rows_max: 61}", ""), ("{length_s: 1000000, rows_max: 1}", "pushed")):
        schemas = {"meter": type("Pushed", (Meter,), {"mode": "pushed"}) if more else Meter}
        config.load(GOOD.replace("{count: 64, step: 16}", window), schemas)


@pytest.mark.parametrize(
    ("old", "new", "path", "hint"),
    [
        ("points: [force, temp]", "points: [force, null]", "pipelines.hot.points[1]", "Points in the model's order"),
        ("lanes: [event, result]", "lanes: [event, 5]", "sinks.cloud.lanes[1]", "Which records go there"),
        ("{type: mqtt, url: local}", "local", "sinks.site", "Where records go, by name"),
        ("scale: 0.1", "low: 5, high: 4", "devices.press.points[0]", "see `edge-runtime adapters meter`"),
    ],
)
def test_what_is_described_nowhere_has_the_hint_of_what_it_is_in(old: str, new: str, path: str, hint: str) -> None:
    found = _problems(GOOD.replace(old, new, 1))
    assert found[path][2].startswith(hint)


class Valve(Meter):
    """Its options and its points go together, or not."""

    class Options(adapter.Options):
        host: str = Field("", description="Host name")
        serial: str = Field("", description="Serial port")

        @adapter.model_validator(mode="after")
        def _one_of_two(self) -> Valve.Options:
            if bool(self.host) == bool(self.serial):
                raise ValueError("give either host or serial")
            return self

    class Point(adapter.WritablePoint):
        pass


def test_an_unknown_key_hides_nothing_of_what_does_not_go_together() -> None:
    """Pydantic looks at keys together only where each is right by itself."""
    text = """\
site: plant
gateway: gw-1
devices:
  valve:
    adapter: valve
    options: {host: a, serial: b, hots: c}
    points:
      - {name: a, low: 5, high: 4, unti: bar}
      - {name: b, write: {low: 5, hihg: 4}}
"""
    with pytest.raises(ConfigError) as caught:
        config.load(text, {"valve": Valve})
    said = [f"{problem.line}: {problem.path}: {problem.message}" for problem in caught.value.problems]
    assert [one[:70] for one in said] == [
        "6: devices.valve.options.hots: unknown key",
        "6: devices.valve.options: give either host or serial",
        "8: devices.valve.points[0].unti: unknown key",
        "8: devices.valve.points[0]: low (5.0) must be below high (4.0)",
        "9: devices.valve.points[1].write.hihg: unknown key",
        "9: devices.valve.points[1].write: no write without a bound: give `low` and `high`"[:70],
    ]


def test_what_is_wrong_with_the_yaml_hides_nothing_that_is_wrong_in_it() -> None:
    text = """\
site: plant
site: plant
gateway: gw-1
brokr: {mode: none}
devices:
  one: {adapter: valve, options: &o {host: a, serial: b}, points: [{name: a}]}
  two: {adapter: valve, options: *o, points: [{name: a, low: !!int 5, scale: x}]}
pipelines:
  p: {device: tow}
"""
    with pytest.raises(ConfigError) as caught:
        config.load(text, {"valve": Valve})
    assert [f"{problem.line}: {problem.path}: {problem.message}"[:60] for problem in caught.value.problems] == [
        "2: site: stands here twice, first in line 1",
        "4: brokr: unknown key",
        "6: devices.one.options: the anchor &o is not supported",
        "7: devices.two.options: the alias *o is not supported",
        "7: devices.two.points[0].low: the tag tag:yaml.org,2002:int is not supported"[:60],
        "7: devices.two.points[0].scale: should be a number",
        "9: pipelines.p.device: no device of this name is declared",
    ]


@pytest.mark.parametrize(
    ("point", "said"),
    [
        ("low: x, scale: 0", ["low: should be a number", ": scale 0"]),
        ("unit: 5, low: 5, high: 3, scale: 0", ["unit: should be a text", ": scale 0", ": low (5.0) must be below high (3.0)"]),
        ("write: {low: 5, high: 3, verify: 3}", ["write.verify: should be true", "write: low (5.0) must be below high (3.0)"]),
        ("kind: wort, digits: 3", ["kind: should be 'number' or 'word'"]),
        ("kind: nummer, digits: 3", ["kind: should be 'number' or 'word'"]),
        ("kind: wort, digits: 3, scale: 0", ["kind: should be 'number' or 'word'", ": scale 0"]),
        ("kind: word, digits: 3, scale: 0", [": scale 0", ": only a number has digits"]),
        ("scale: 0, low: 5, high: x", ["high: should be a number", ": scale 0"]),
        ("write: {allowed: [null]}", ["write.allowed[0]: should be true or false"]),
    ],
)
def test_a_wrong_value_hides_nothing_of_what_does_not_go_together(point: str, said: list[str]) -> None:
    """And what only seems so, because of the wrong value, is not said: a word that is misspelled was one of those that may stand
    there."""

    class Display(Meter):
        class Point(adapter.WritablePoint):
            kind: Literal["number", "word"] = Field("number", description="What it shows")
            digits: int | None = Field(None, description="How many")

            @adapter.model_validator(mode="after")
            def _fits(self) -> Display.Point:
                if self.kind == "word" and self.digits is not None:
                    raise ValueError("only a number has digits")
                if self.kind == "number" and self.digits is None and self.write:
                    raise ValueError("say how many digits")
                return self

    text = f"""\
site: plant
gateway: gw-1
devices:
  display:
    adapter: display
    options: {{host: h}}
    points:
      - {{name: a, {point}}}
"""
    with pytest.raises(ConfigError) as caught:
        config.load(text, {"display": Display})
    here = "devices.display.points[0]"
    found = [f"{problem.path}: {problem.message}".removeprefix(here).lstrip(".") for problem in caught.value.problems]
    assert len(found) == len(said), found
    assert [one[: len(words)] for one, words in zip(found, said, strict=True)] == said


def test_what_is_missing_is_shown_by_an_example() -> None:
    hint = _problems(GOOD.replace(", url: local", ""))["sinks.site.url"][2]
    assert hint.endswith('or `local` for the local broker; for instance `url: "mqtt://broker.example:1883"`')


@pytest.mark.parametrize(
    ("text", "message"),
    [("", "is empty"), ("# nothing\n", "is empty"), ("- a\n- b\n", "is no mapping"), ("hello", "is no mapping")],
)
def test_no_configuration_at_all(text: str, message: str) -> None:
    assert _problems(text)[""][1].startswith(message)
    assert "edge-runtime config example" in _problems(text)[""][2]


def test_an_adapter_that_cannot_be_imported_is_one_problem() -> None:
    class Registry(dict[str, type[Adapter]]):
        def __getitem__(self, name: str) -> type[Adapter]:
            raise Unusable("the adapter meter of acme 1.0 cannot be imported", "tell its authors")

    with pytest.raises(ConfigError) as caught:
        config.load(GOOD, Registry(meter=Meter))
    [problem] = caught.value.problems
    assert (problem.line, problem.path, problem.hint) == (6, "devices.press.adapter", "tell its authors")


def test_files(tmp_path: Path) -> None:
    file = tmp_path / "gateway.yaml"
    file.write_text(GOOD)
    loaded = config.load_file(file, SCHEMAS)
    assert (loaded.folder, loaded.config.gateway) == (tmp_path, "gw-1")


@pytest.mark.parametrize(
    ("content", "expected"),
    [
        (None, "1: cannot be read: No such file or directory"),
        (b"\x7fELF\x02\x01\x01\x00", "1: holds a character that YAML does not allow"),
        (b"site: x\ngateway: \xff\xfe", "2: is no text in UTF-8"),
        (b"#" * 5_000_000, "1: is larger than"),
    ],
)
def test_files_that_are_none(tmp_path: Path, content: bytes | None, expected: str) -> None:
    file = tmp_path / "gateway.yaml"
    if content is not None:
        file.write_bytes(content)
    with pytest.raises(ConfigError) as caught:
        config.load_file(file, SCHEMAS)
    assert str(caught.value).startswith(f"{file}:{expected}")


def test_a_folder_is_no_file(tmp_path: Path) -> None:
    with pytest.raises(ConfigError, match=r"cannot be read: Is a directory\n    hint: give a file"):
        config.load_file(tmp_path, SCHEMAS)


_scalars = (
    st.none() | st.booleans() | st.integers() | st.floats() | st.text(max_size=5) | st.sampled_from(["press", "meter", "local"])
)
_keys = st.sampled_from(
    [
        "site",
        "devices",
        "press",
        "adapter",
        "options",
        "points",
        "name",
        "pipelines",
        "rules",
        "window",
        "sinks",
        "url",
        "type",
        "5",
    ]
)
_trees = st.recursive(
    _scalars, lambda inner: st.lists(inner, max_size=3) | st.dictionaries(_keys, inner, max_size=5), max_leaves=25
)


@given(_trees, st.sampled_from(["site", "devices", "pipelines", "sinks", "broker", "log"]))
def test_nothing_but_a_config_error_ever_comes_out(tree: object, section: str) -> None:
    """Whatever stands there, of whatever shape: a list of problems, no traceback."""
    text = json.dumps({"gateway": "g", "devices": {}, "sinks": {"s": {"type": "mqtt", "url": "local"}}, section: tree})
    with pytest.raises(ConfigError):
        config.load(text, SCHEMAS)


@given(_trees, st.sampled_from(["press", "hot", "window", "points", "options", "rules"]))
def test_nor_when_the_rest_is_fine(tree: object, key: str) -> None:
    """The same deeper down: the value of one key is replaced by anything."""
    whole = document.read(GOOD).value
    for around in (whole["devices"], whole["pipelines"], whole["devices"]["press"], whole["pipelines"]["hot"]):
        if key in around:
            around[key] = tree
    try:
        config.load(json.dumps(whole), SCHEMAS)
    except ConfigError as error:
        shown = str(error)
        assert "<text>:1: " in shown


def test_a_window_that_the_journal_cannot_hold_is_refused() -> None:
    text = """
site: s
gateway: g
devices: {box: {adapter: mqtt, options: {url: "mqtt://127.0.0.1", topics: [a], client_id: c}, points: [{name: a, path: a}]}}
pipelines: {big: {device: box, window: {count: 600}}}
outbox: {journal_rows_max: 1000}
"""
    with pytest.raises(config.ConfigError) as caught:
        config.load(text, Registry())
    assert [(each.path, each.value) for each in caught.value.problems] == [("pipelines.big.window.count", 600)]
    assert "1200" in caught.value.problems[0].hint
    config.load(text.replace("1000", "1200"), Registry())


SESSIONS = """\
site: plant
gateway: gw-1
devices:
  a: {adapter: mqtt, options: {url: "mqtt://B.example", topics: [a], client_id: x}, points: [{name: v}]}
  b: {adapter: mqtt, options: {url: "mqtt://b.example:1883/", topics: [b], client_id: x}, points: [{name: v}]}
  c: {adapter: mqtt, options: {url: "mqtt://c.example", topics: [a], client_id: x}, points: [{name: v}]}
  d: {adapter: mqtt, options: {url: "mqtt://b.example", topics: [a], client_id: y}, points: [{name: v}]}
  e: {adapter: meter, options: {host: a}, points: [{name: v, address: 0}]}
  f: {adapter: meter, options: {host: a}, points: [{name: v, address: 0}]}
"""


def test_two_devices_in_one_session_are_refused() -> None:
    """A broker hands the session, and all that waits in it, to whoever came last: of 300 messages for two such devices 145 were
    taken by the other one, acknowledged and thrown away."""
    schemas = {**SCHEMAS, "mqtt": Registry()["mqtt"]}
    with pytest.raises(ConfigError) as failed:
        config.load(SESSIONS, schemas)
    assert [(found.line, found.path, found.message, found.value) for found in failed.value.problems] == [
        (5, "devices.b.options.client_id", "is that of a, too", "x")
    ]
    assert "give each its own client_id" in failed.value.problems[0].hint
    config.load(SESSIONS.replace("[b], client_id: x", "[b], client_id: z"), schemas)


@pytest.mark.parametrize(
    ("period", "window", "refused"),
    [
        ("", "{count: 64, gap_s_max: 0.5}", True),
        ("", "{length_s: 60, gap_s_max: 0.5}", True),
        ("", "{count: 1, gap_s_max: 0.5}", False),
        ("", "{count: 64, gap_s_max: 1}", False),
        ("period_s: 0.1", "{count: 64, gap_s_max: 0.5}", False),
        ("period_s: 60", "{count: 64, gap_s_max: 5}", True),
    ],
)
def test_a_period_that_is_a_gap_already_is_refused(period: str, window: str, refused: bool) -> None:
    """Every window was discarded, there was never a result."""
    text = GOOD.replace("{count: 64, step: 16}", window).replace("adapter: meter", f"adapter: meter\n    {period}")
    if not refused:
        config.load(text, SCHEMAS)
        return
    [(path, (_, message, hint))] = _problems(text).items()
    assert (path, message) == ("pipelines.hot.window.gap_s_max", "is less than from one sample to the next")
    assert "the period_s of the device" in hint


def test_a_pushed_device_has_no_period() -> None:
    class Pushed(Meter):
        mode = "pushed"

    text = GOOD.replace("{count: 64, step: 16}", "{count: 64, gap_s_max: 0.5}")
    config.load(text, {"meter": Pushed})


def test_a_point_that_is_no_point_makes_no_outputs() -> None:
    """The rule was told to watch an output of the misspelled point."""
    found = _problems(GOOD.replace("points: [force, temp]", "points: [force, tmp]").replace("temp.max", "temp.maximum"))
    assert found["pipelines.hot.points[1]"][2] == "did you mean `temp`?"
    assert found["pipelines.hot.rules[0].output"][2] == "did you mean `temp.max`?"
    assert list(_problems(GOOD.replace("points: [force, temp]", "points: [force, tmp]"))) == ["pipelines.hot.points[1]"]


@pytest.mark.parametrize(
    ("topics", "path", "message"),
    [
        ("[]", "topics", "must not be empty"),
        ('["a#"]', "topics[0]", "'a#' is no topic filter"),
        ("a", "topics", "should be a list"),
    ],
)
def test_a_list_of_wrong_items_is_not_called_empty(topics: str, path: str, message: str) -> None:
    with pytest.raises(ConfigError) as failed:
        config.load(
            SESSIONS.replace("topics: [b]", f"topics: {topics}").replace("[a], client_id: x", "[a], client_id: z"),
            {**SCHEMAS, "mqtt": Registry()["mqtt"]},
        )
    [found] = failed.value.problems
    assert found.path == f"devices.b.options.{path}"
    assert found.message.startswith(message)


@pytest.mark.parametrize(
    ("pipeline", "path", "message"),
    [
        ("{device: a, window: {count: 3}}", "window", "cannot hold a text, and t is one"),
        ("{device: a, points: [v, t], window: {count: 3}}", "points[1]", "is a text"),
        ("{device: a, points: [v], window: {count: 3}}", "", ""),
        ("{device: a}", "", ""),
    ],
)
@pytest.mark.parametrize(
    ("adapter", "options", "text"),
    [
        ("mqtt", '{url: "mqtt://b", topics: [a], client_id: x}', "{name: t, type: text}"),
        ("replay", "{file: a.csv}", "{name: t, column: 1, type: text}"),
        ("modbus", "{host: h}", "{name: t, address: 5, type: string, length: 4}"),
    ],
)
def test_no_window_holds_a_text(adapter: str, options: str, text: str, pipeline: str, path: str, message: str) -> None:
    """Every sample was bad, there was never a result, and nothing said why."""
    number = {"mqtt": "{name: v}", "replay": "{name: v, column: 0}", "modbus": "{name: v, address: 0}"}[adapter]
    points = f"[{number}, {text}]"
    device = f"{{adapter: {adapter}, options: {options}, points: {points}}}"
    whole = f"site: s\ngateway: g\ndevices:\n  a: {device}\npipelines:\n  p: {pipeline}\n"
    if not message:
        config.load(whole, Registry())
        return
    with pytest.raises(ConfigError) as failed:
        config.load(whole, Registry())
    [found] = failed.value.problems
    assert (found.path, found.message) == (f"pipelines.p.{path}", message)


@pytest.mark.parametrize(("key", "also"), [("adaptor", []), ("zzz", ["devices.press.adapter"])])
def test_a_key_that_is_only_misspelled_is_one_problem_and_hides_no_other(key: str, also: list[str]) -> None:
    """That the key is missing was said, too, and its hint spoke of something else."""
    found = _problems(GOOD.replace("adapter: meter", f"{key}: meter").replace("site: plant\n", ""))
    assert sorted(found) == sorted([f"devices.press.{key}", "site", *also])
