"""A real gateway and what stands around it, as processes that die with the test run: `edge-runtime run`, the uplink that can be
cut, and an MQTT publisher that knows which of its messages the broker has acknowledged.

with mosquitto(tmp_path, **PATIENT) as broker, receiver(tmp_path) as far_end, gateway(tmp_path, config(...)) as edge:
    edge.wait("source_connected")
    with publisher(broker, rate=500, count=5_000) as machine:
        edge.kill(); edge.start()           # kill -9, and up again with the same files
        machine.finish()
    edge.delivers(far_end, "all", 5_000)
"""

from __future__ import annotations

import ctypes
import json
import select
import signal
import sqlite3
import subprocess
import sys
import time
from collections import Counter
from collections.abc import Callable, Iterator, Sequence
from contextlib import closing, contextmanager
from pathlib import Path
from typing import Any

from brokers import Broker
from publishing import TOPIC
from receivers import ReceiverProcess

END_S_MAX = 20.0
POLL_S = 0.01
POINTS = 9
PATIENT: dict[str, Any] = {"max_queued_messages": 0, "log_type": "error"}
"""Settings of a broker that keeps whatever comes while the gateway is away."""

_LIBC = ctypes.CDLL(None)


# --- configurations --------------------------------------------------------------------------------------------------


def press(url: str, **options: Any) -> dict[str, Any]:
    """A device whose samples come over MQTT, QoS 1, a session that stays, message ids: {"id": 7, "v": [...]}"""
    return {
        "adapter": "mqtt",
        "backoff_s_max": 1.0,
        "options": {"url": url, "topics": [TOPIC], "client_id": "gateway-press", "message_id": "id", **options},
        "points": [{"name": f"f{n}", "path": f"v[{n}]"} for n in range(POINTS)],
    }


def config(devices: dict[str, Any], sinks: dict[str, Any], **more: Any) -> dict[str, Any]:
    """One pipeline that forwards all there is of each device, unless `pipelines` says something else."""
    forward = {f"all-{name}" if len(devices) > 1 else "all": {"device": name} for name in devices}
    return {"site": "plant", "gateway": "g1", "devices": devices, "pipelines": forward, "sinks": sinks, **more}


# --- processes -------------------------------------------------------------------------------------------------------


class GatewayProcess:
    """`start`, `kill` and `stop` as often as you like; configuration and data stay."""

    def __init__(
        self, folder: Path, settings: dict[str, Any], *, without: Sequence[str] = (), inside: Sequence[str] = ()
    ) -> None:
        """`without`: modules that count as not installed. `inside`: a command that runs it (`unshare -n ...`)."""
        folder.mkdir(parents=True, exist_ok=True)
        blocked = "".join(f"sys.modules[{name!r}] = None; " for name in without)
        code = f"import sys; {blocked}from edge_runtime.cli import main; sys.exit(main())"
        program = ["-c", code] if without else ["-m", "edge_runtime"]
        self.file = folder / "gateway.json"
        self.file.write_text(json.dumps(settings))
        self.data_dir = folder / settings.get("data_dir", "data")
        self.log = folder / "gateway.log"
        self.process: subprocess.Popen[bytes] | None = None
        self.command = [*inside, sys.executable, *program, "run", str(self.file)]
        self.life_at = 0

    def start(self) -> None:
        assert self.process is None, "it runs already"
        self.life_at = self.log.stat().st_size if self.log.exists() else 0
        with self.log.open("ab") as log:
            self.process = subprocess.Popen(self.command, stderr=log, preexec_fn=die_with_parent)

    def kill(self) -> None:
        """kill -9"""
        assert not self.ended(), self.log.read_text()[-3000:]
        self.end()

    def end(self) -> None:
        """kill -9, if it still runs."""
        if self.process is not None:
            process, self.process = self.process, None
            process.kill()
            process.wait()

    def ended(self) -> bool:
        """Whether it has ended by itself."""
        return self.process is not None and self.process.poll() is not None

    def stop(self, how: signal.Signals = signal.SIGTERM) -> int:
        """Returns the exit status."""
        assert self.process is not None
        self.process.send_signal(how)
        return self.wait_end()

    def wait_end(self) -> int:
        """Returns the exit status."""
        assert self.process is not None
        process, self.process = self.process, None
        status = process.wait(END_S_MAX)
        assert "Traceback" not in self.log.read_text(), self.log.read_text()[-3000:]
        return status

    def events(self, name: str, **fields: Any) -> list[dict[str, Any]]:
        """What it has logged since its last start."""
        with self.log.open("rb") as log:
            log.seek(self.life_at)
            lines = [json.loads(line) for line in log.read().split(b"\n")[:-1] if line.startswith(b"{")]
        return [line for line in lines if line["event"] == name and fields.items() <= line.items()]

    def wait(self, name: str, **fields: Any) -> dict[str, Any]:
        """The first such event since its last start."""
        until(lambda: self.events(name, **fields) or self.ended(), f"{name} {fields} of the gateway")
        found = self.events(name, **fields)
        assert found, f"the gateway ended: {self.log.read_text()[-3000:]}"
        return found[0]

    def delivers(self, far_end: ReceiverProcess, source: str, records: int, limit_s: float = END_S_MAX) -> None:
        """Returns when at least so many records of a pipeline have come."""
        until(lambda: count(far_end.file, source) >= records or self.ended(), f"{records} records of {source}", limit_s)
        assert not self.ended(), f"the gateway ended: {self.log.read_text()[-3000:]}"

    @property
    def rss_bytes(self) -> int:
        assert self.process is not None
        status = Path(f"/proc/{self.process.pid}/status").read_text()
        return 1024 * int(status.split("VmRSS:")[1].split()[0])


@contextmanager
def gateway(folder: Path, settings: dict[str, Any], **more: Sequence[str]) -> Iterator[GatewayProcess]:
    process = GatewayProcess(folder, settings, **more)
    process.start()
    try:
        yield process
    finally:
        process.end()


class Child:
    """A program that says one line of JSON when it is ready."""

    def __init__(self, *command: str) -> None:
        self.process = subprocess.Popen(
            [sys.executable, *command], stdin=subprocess.PIPE, stdout=subprocess.PIPE, preexec_fn=die_with_parent
        )
        self.ready = self.read()

    def say(self, line: str) -> None:
        assert self.process.stdin is not None
        self.process.stdin.write(line.encode() + b"\n")
        self.process.stdin.flush()

    def read(self) -> dict[str, Any]:
        assert self.process.stdout is not None
        line = self.process.stdout.readline()
        assert line, f"{self.process.args} ended"
        answer: dict[str, Any] = json.loads(line)
        return answer

    def kill(self) -> None:
        self.process.kill()
        self.process.communicate()


class Uplink(Child):
    """A TCP connection that can be cut."""

    @property
    def url(self) -> str:
        return f"http://127.0.0.1:{self.ready['port']}"

    def cut(self) -> None:
        self.say("cut")
        assert self.read() == {"uplink": "cut"}

    def heal(self) -> None:
        self.say("heal")
        assert self.read() == {"uplink": "up"}


@contextmanager
def uplink(to_port: int) -> Iterator[Uplink]:
    child = Uplink("-m", "edge_runtime.testing.relay", "--to", f"127.0.0.1:{to_port}")
    try:
        yield child
    finally:
        child.kill()


class Publisher(Child):
    """Publishes messages `first`..`first + count - 1`; `finish` returns the numbers that the broker has acknowledged."""

    def waits(self) -> bool:
        """Whether it still has something to publish."""
        return not select.select([self.process.stdout], [], [], 0)[0]

    def finish(self) -> list[int]:
        acknowledged: list[int] = self.read()["acknowledged"]
        return acknowledged


@contextmanager
def publisher(broker: Broker, *, rate: float, count: int, first: int = 0) -> Iterator[Publisher]:
    numbers = [str(number) for number in (broker.port, rate, first, count)]
    child = Publisher(str(Path(__file__).parent / "publishing.py"), *numbers)
    try:
        yield child
    finally:
        child.kill()


def die_with_parent() -> None:
    _LIBC.prctl(1, signal.SIGKILL)


# --- what has come ---------------------------------------------------------------------------------------------------


def until(condition: Callable[[], object], what: str, limit_s: float = END_S_MAX) -> None:
    end = time.monotonic() + limit_s
    while not condition():
        assert time.monotonic() < end, f"not within {limit_s:g} s: {what}"
        time.sleep(POLL_S)


def waiting(edge: GatewayProcess, lane: str = "sample") -> int:
    """Records of a lane in the outbox."""
    with closing(sqlite3.connect(f"{(edge.data_dir / 'outbox.db').as_uri()}?mode=ro", uri=True)) as database:
        (found,) = database.execute(f"SELECT count(*) FROM lane_{lane}").fetchone()
        return int(found)


def newest(edge: GatewayProcess, lane: str = "sample") -> int:
    """The highest seq of a lane in the outbox."""
    with closing(sqlite3.connect(f"{(edge.data_dir / 'outbox.db').as_uri()}?mode=ro", uri=True)) as database:
        (found,) = database.execute(f"SELECT max(seq) FROM lane_{lane}").fetchone()
        return int(found or 0)


def count(file: Path, source: str) -> int:
    """Records of a pipeline in a receiver's file."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        (found,) = database.execute("SELECT count(*) FROM records WHERE source = ?", (source,)).fetchone()
        return int(found)


def bodies(file: Path, source: str) -> list[Any]:
    """In the order in which they came."""
    with closing(sqlite3.connect(f"{file.as_uri()}?mode=ro", uri=True)) as database:
        rows = database.execute("SELECT body FROM records WHERE source = ? ORDER BY rowid", (source,)).fetchall()
        return [json.loads(body) for (body,) in rows]


def numbers(file: Path, source: str = "all") -> list[int]:
    """Of the forwarded messages, sorted."""
    return sorted(int(body["values"]["f0"]) for body in bodies(file, source) if body["values"]["f0"] is not None)


def assert_once(far_end: ReceiverProcess, expected: list[int], source: str = "all") -> None:
    """Each of these messages exactly once, and no other."""
    got = Counter(numbers(far_end.file, source))
    lost = [number for number in expected if not got[number]]
    twice = [number for number, times in got.items() if times > 1]
    strange = got.keys() - set(expected)
    assert not [*lost, *twice, *strange], f"lost {len(lost)} {lost[:9]}, twice {twice[:9]}, strange {sorted(strange)[:9]}"
