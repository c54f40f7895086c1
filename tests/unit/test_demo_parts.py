"""The demo's pure parts: the account, the comparison with the labels, latencies, the view."""

from __future__ import annotations

import asyncio
import errno
import importlib.util
import io
import os
import socket
import sys
import tempfile
from pathlib import Path
from typing import Any

import msgspec
import pytest

from edge_runtime import cli, config
from edge_runtime.cli import demo
from edge_runtime.cli.demo import settings
from edge_runtime.cli.demo.account import Account, account, lines
from edge_runtime.cli.demo.children import Children
from edge_runtime.cli.demo.picture import Picture, SinkPicture, changes, plain
from edge_runtime.cli.demo.watching import PENDING_MAX, Comparison, Found, Judged, Latencies, Latency, Rate, is_cut
from edge_runtime.ports import EdgeError
from edge_runtime.receiver.account import Account as Delivered
from edge_runtime.records import Lane
from edge_runtime.sources.registry import Registry

HEADS = {Lane.GAP: 0, Lane.EVENT: 4, Lane.RESULT: 10, Lane.SAMPLE: 10}


def _account(
    heads: dict[Lane, int] = HEADS, waiting: int = 0, outages: int = 1, due: bool = True, settled: bool = True, **far_end: Any
) -> Account:
    delivered = Delivered(site="s", gateway="g", **{"unique": sum(heads.values()), **far_end})
    return account(
        heads, delivered, waiting=waiting, outages=outages, outage_due=due, settled=settled,
        waited_max=7, found=Found(), latency=Latency(),
    )  # fmt: skip


def test_a_clean_account() -> None:
    clean = _account(duplicates=3, repeated=3)
    assert (clean.accepted, clean.delivered, clean.lost, clean.duplicates, clean.resends) == (24, 24, 0, 0, 3)
    assert clean.problems == []
    assert "clean: every accepted record is at the receiver exactly once" in lines(clean)[-1]


def test_content_that_was_recognised_under_another_id_is_not_lost() -> None:
    assert _account(unique=22, same_content=2, duplicates=2).problems == []


@pytest.mark.parametrize(
    ("wrong", "lost", "problem"),
    [
        ({"unique": 23}, 1, "1 of 24 accepted records are not at the receiver"),
        ({"kept_twice": 2}, 0, "2 records are at the receiver twice"),
        ({"unique": 20, "waiting": 4}, 0, "4 records could not be delivered in time; they are on the disk"),
        ({"unique": 19, "waiting": 4}, 1, "1 of 24 accepted records are not at the receiver"),
        ({"declared_lost": 5}, 0, "5 records had to go, and were declared lost"),
        ({"outages": 0}, 0, "the gateway never noticed that the uplink was away: nothing is proved"),
        ({"heads": dict.fromkeys(HEADS, 0)}, 0, "nothing was accepted"),
        ({"heads": {**HEADS, Lane.RESULT: 0}}, 0, "the model gave no result"),
    ],
)
def test_an_account_that_is_not_clean_says_why(wrong: dict[str, Any], lost: int, problem: str) -> None:
    unclean = _account(**wrong)
    assert problem in unclean.problems
    assert unclean.lost == lost
    assert f"NOT CLEAN: {problem}" in lines(unclean)


def test_a_receiver_that_knows_no_such_gateway_has_nothing() -> None:
    nothing = account(
        HEADS, None, waiting=0, outages=1, outage_due=True, settled=True, waited_max=0, found=Found(), latency=Latency()
    )
    assert (nothing.delivered, nothing.lost) == (0, 24)


def test_who_ends_it_before_the_outage_is_due_needs_none() -> None:
    assert _account(outages=0, due=False).problems == []


def test_who_ends_it_before_there_was_something_to_see_is_told_of_nothing_but_a_loss() -> None:
    assert _account(dict.fromkeys(HEADS, 0), outages=0, due=False, settled=False).problems == []
    assert _account(outages=0, due=False, settled=False, unique=23).problems == [
        "1 of 24 accepted records are not at the receiver"
    ]


def test_rows_are_compared_whichever_half_comes_first() -> None:
    seen = Comparison()
    for mono_ns, anomaly, alarm in ((1, False, False), (2, True, True), (3, True, False), (4, False, True)):
        halves = [lambda at=mono_ns, a=anomaly: seen.label(at, at, a), lambda at=mono_ns, a=alarm: seen.result(at, 0.5, a)]
        for half in halves if mono_ns % 2 else reversed(halves):
            half()
    assert seen.found == Found(rows=4, true=1, false=1, missed=1)
    assert seen.found.labelled == 2
    assert [judged.verdict for judged in seen.last] == ["normal", "found", "missed", "false alarm"]
    assert [judged.row for judged in seen.notable] == [2, 3, 4]


def test_a_row_that_was_read_twice_counts_once() -> None:
    seen = Comparison()
    for mono_ns in (1, 2):
        seen.label(mono_ns, 7, True)
        seen.result(mono_ns, 9.0, True)
    assert seen.found == Found(rows=1, true=1)
    assert len(seen.notable) == 1


def test_halves_that_stay_alone_are_forgotten() -> None:
    seen = Comparison()
    for at in range(PENDING_MAX + 1):
        seen.result(at, 0.1, False)
    seen.label(0, 0, True)
    seen.label(1, 1, True)
    assert seen.found.rows == 1


def test_records_that_waited_for_an_outage_do_not_count_as_usual() -> None:
    seen = Latencies()
    seen.delivered([0], 900_000_000)
    seen.warm(1_000_000_000)
    seen.delivered([1_000_000_000 + n for n in range(98)], 1_010_000_000)
    seen.delivered([1_020_000_000, 1_020_000_001], 1_070_000_000)
    seen.begin(9_000_000_000)
    seen.delivered([2_000_000_000], 9_500_000_000)
    figures = seen.figures
    assert figures.p50_ms == pytest.approx(10, abs=0.1)
    assert figures.p99_ms == pytest.approx(50, abs=0.1)
    assert figures.waited_s == 7.5


def test_rates_are_of_the_last_seconds() -> None:
    rate = Rate()
    assert rate.at(0, 0) == 0
    assert [rate.at(second * 10**9, second * 20) for second in range(1, 10)][-1] == 20.0
    assert [rate.at(second * 10**9, 180) for second in range(10, 20)][-1] == 0.0


def test_the_uplink_goes_away_and_comes_back() -> None:
    assert [at for at in range(20) if is_cut(at, 20)] == [6, 7, 8, 9, 10]
    endless = [at for at in range(120) if is_cut(at, None)]
    assert endless == [*range(20, 40), *range(80, 100)]


# --- what is shown ---------------------------------------------------------------------------------------------------


def _picture(**changed: Any) -> Picture:
    cloud = SinkPicture(
        name="cloud", confirms=True, connected=True, cause="", delivered=1_234, waiting={"event": 1, "result": 40, "sample": 40}
    )
    local = SinkPicture(name="local", confirms=False, connected=True, cause="", delivered=1_300, waiting={"result": 0})
    rows = [Judged(12_345 + n, 23.45, True, n % 2 == 0) for n in range(6)]
    picture = Picture(
        elapsed_s=12.3, seconds=20.0, draining=False, uplink="up", samples_per_s=20.0, results_per_s=20.0, outbox_bytes=4_000_000,
        sinks=[cloud, local], latency=Latency(9.5, 41.0, 6.0), anomalies=Found(1000, 100, 2, 3), last=rows, notable=rows,
        executed_on="tflite:cpu", broker="mqtt://127.0.0.1:12345",
    )  # fmt: skip
    return msgspec.structs.replace(picture, **changed)


def _away(picture: Picture) -> Picture:
    cause = "http://127.0.0.1:43577: [Errno 104] Connection reset by peer"
    cloud = msgspec.structs.replace(picture.sinks[0], connected=False, cause=cause)
    return msgspec.structs.replace(picture, uplink="cut", sinks=[cloud, picture.sinks[1]])


def test_plain_lines_tell_each_change_once() -> None:
    up, cut = _picture(), _away(_picture())
    assert any("sink local (to the broker only): connected" in line for line in changes(None, up))
    assert [line.split("  ", 2)[-1] for line in changes(up, cut)] == [
        "the uplink is CUT",
        "sink cloud (confirmed by the receiver): away: http://127.0.0.1:43577: [Errno 104] Connection reset by peer",
    ]
    assert list(changes(cut, cut)) == []
    assert "the uplink is back" in " ".join(changes(cut, up))
    assert "waiting   81" in plain(up)
    assert "p50 10 ms, p99 41 ms" in plain(up)


@pytest.mark.parametrize("width", [80, 120])
def test_the_view_fits(width: int) -> None:
    rich_console = pytest.importorskip("rich.console", reason="rich is not installed: the view is not tested")
    from edge_runtime.cli.demo.view import render

    for picture in (_picture(), _away(_picture(trouble="the disk is full", draining=True))):
        console = rich_console.Console(width=width, height=24, force_terminal=False)
        with console.capture() as captured:
            console.print(render(picture, width))
        shown = captured.get().rstrip().splitlines()
        assert len(shown) <= 24
        assert max(map(len, shown)) <= width
        text = "\n".join(shown)
        for part in (
            "81 waiting",
            "to the broker only",
            "confirmed by the receiver",
            "p50 10 ms",
            "100 found, 3 missed, 2 false",
        ):
            assert part in text
        assert ("uplink CUT" in text) == (picture.uplink == "cut")
        assert ("Connection reset by peer" in text) == (picture.uplink == "cut")
    assert "…" not in "\n".join(line for line in shown if "outbox" in line)


# --- before it starts ------------------------------------------------------------------------------------------------


def test_its_configuration_is_valid() -> None:
    loaded = config.load(settings.text(broker_port=1, press_port=2, uplink_port=3), Registry())
    assert loaded.pipelines["anomaly"].rules[0].name == settings.RULE


def test_missing_extras_are_told_before_anything_starts(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    real = importlib.util.find_spec
    gone = ("pymodbus", "ai_edge_litert", "tflite_runtime", "openvino")
    monkeypatch.setattr(importlib.util, "find_spec", lambda name: None if name in gone else real(name))
    with pytest.raises(EdgeError, match=r"pymodbus \(the press\), ai-edge-litert \(the model\)"):
        settings.check_extras(view=False)
    assert cli.main(["demo", "--json"]) == 1
    assert "hint: pip install 'edge-runtime[demo]'" in capsys.readouterr().err


def test_a_machine_without_a_place_for_its_files_is_told_in_words(
    monkeypatch: pytest.MonkeyPatch, capsys: pytest.CaptureFixture[str]
) -> None:
    def none(*_: object, **__: object) -> str:
        raise FileNotFoundError(errno.ENOENT, "No usable temporary directory found in ['/tmp']")

    monkeypatch.setattr(tempfile, "mkdtemp", none)
    assert cli.main(["demo", "--json"]) == 1
    said = "error: no folder for its files: No usable temporary directory found in ['/tmp']\nhint: give one: --keep DIR"
    assert said in capsys.readouterr().err


def test_a_terminal_that_is_not_utf_8_gets_plain_lines(monkeypatch: pytest.MonkeyPatch) -> None:
    """The live view is drawn with characters that it does not know."""
    asked: list[bool] = []
    monkeypatch.setattr(settings, "check_extras", asked.append)
    monkeypatch.setattr(demo, "_folder", lambda _: sys.exit(3))
    for encoding in ("utf-8", "iso8859-1"):
        monkeypatch.setattr(sys, "stdout", Terminal(io.BytesIO(), encoding=encoding))
        with pytest.raises(SystemExit):
            cli.main(["demo"])
    assert asked == [True, False]


class Terminal(io.TextIOWrapper):
    def isatty(self) -> bool:
        return True


def test_a_broker_port_that_is_taken_is_told_at_once(capsys: pytest.CaptureFixture[str]) -> None:
    with socket.create_server(("127.0.0.1", 0)) as taken:
        port = taken.getsockname()[1]
        assert cli.main(["demo", "--json", "--broker-port", str(port)]) == 1
    assert f"error: port {port}: address already in use\nhint: give another --broker-port" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("words", "said"),
    [
        (["--broker-port", "70000"], "argument --broker-port: 70000: no port number"),
        (["--seconds", "1"], "argument --seconds: 1: at least 5"),
        (["--seconds", "nan"], "argument --seconds: nan: at least 5"),
        (["--seconds", "x"], "argument --seconds: x: no number of seconds"),
    ],
)
def test_wrong_options_are_refused(words: list[str], said: str, capsys: pytest.CaptureFixture[str]) -> None:
    with pytest.raises(SystemExit) as ended:
        cli.main(["demo", *words])
    assert ended.value.code == 2
    assert said in capsys.readouterr().err


def test_a_process_that_is_being_ended_when_ctrl_c_comes_again_is_not_left_behind(tmp_path: Path) -> None:
    (tmp_path / "deaf.py").write_text(
        "import json, os, signal, time\nsignal.signal(signal.SIGTERM, signal.SIG_IGN)\n"
        "print(json.dumps({'pid': os.getpid()}), flush=True)\ntime.sleep(60)\n"
    )

    async def cut_short() -> int:
        children = Children(tmp_path)
        ready = await children.start("deaf", "deaf")
        finishing = asyncio.create_task(children.finish("deaf"))
        await asyncio.sleep(0.1)
        finishing.cancel()
        await asyncio.wait([finishing])
        await children.end()
        return int(ready["pid"])

    pid = asyncio.run(cut_short())
    with pytest.raises(ProcessLookupError):
        os.kill(pid, 0)
