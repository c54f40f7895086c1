"""What a bundle tells of the machine and of what runs on it (touches: /proc, the disk, the journal, pages on loopback)."""

from __future__ import annotations

import http.client
import os
import platform
import shutil
import subprocess
from collections.abc import Mapping
from importlib import metadata
from pathlib import Path
from typing import Any

from edge_runtime.address import listener
from edge_runtime.board.vitals import SystemVitals
from edge_runtime.ports import Clock, EdgeError

LOG_LINES, LOG_BYTES_MAX = 2_000, 2**20
PAGE_BYTES_MAX = 2**20
PAGE_S_MAX = 3.0
JOURNAL_S_MAX = 10.0
UNIT = "edge-runtime@*"

PACKAGE = "edge-runtime"
_UNSPECIFIED = ("0.0.0.0", "::")


def about(clock: Clock, data_dir: Path) -> dict[str, Any]:
    """Version, machine, clock, room."""
    now = clock.now()
    return {
        "version": metadata.version(PACKAGE),
        "python": platform.python_version(),
        "platform": platform.platform(),
        "machine": platform.machine(),
        "cpus": os.cpu_count(),
        "clock": {"boot": now.boot, "since_boot_s": round(now.mono_ns / 1e9, 3), "wall_ns": now.wall_ns, "synced": now.synced},
        "memory": _memory(),
        "disk": _disk(data_dir),
        "vitals": SystemVitals(data_dir).read(),
    }


def dependencies() -> dict[str, str]:
    """Of the package and what it may use: the versions that are installed."""
    found = {}
    for wanted in sorted(
        {each.split(";")[0].split("[")[0].rstrip("<>=!~ 0123456789.,") for each in metadata.requires(PACKAGE) or ()}
    ):
        try:
            found[wanted] = metadata.version(wanted)
        except metadata.PackageNotFoundError:
            found[wanted] = "not installed"
    return found


def page(listen: str, path: str) -> str:
    """Of a gateway that runs on this machine. Raises EdgeError."""
    host, port = listener(listen)
    connection = http.client.HTTPConnection("127.0.0.1" if host in _UNSPECIFIED else host, port, timeout=PAGE_S_MAX)
    try:
        connection.request("GET", path)
        return connection.getresponse().read(PAGE_BYTES_MAX).decode(errors="replace")
    except (OSError, http.client.HTTPException) as error:
        raise EdgeError(f"{path} on {listen}: {type(error).__name__}: no gateway answers", "does it run?") from None
    finally:
        connection.close()


def log(file: Path | None, environment: Mapping[str, str] = os.environ) -> str:
    """The last lines, of a file or of the journal. Raises EdgeError."""
    if file is not None:
        return _tail(file)
    program = shutil.which("journalctl")
    if program is None:
        raise EdgeError("no journal on this machine", "give the file that the log goes to: --log FILE")
    run = environment.get("INVOCATION_ID")
    which = [f"_SYSTEMD_INVOCATION_ID={run}"] if run else ["--unit", UNIT]
    command = [program, "--no-pager", "--quiet", "--output", "cat", "--lines", str(LOG_LINES), *which]
    try:
        done = subprocess.run(command, capture_output=True, timeout=JOURNAL_S_MAX, check=False)
    except subprocess.TimeoutExpired:
        raise EdgeError("the journal does not answer", "give the file that the log goes to: --log FILE") from None
    if not done.stdout:
        raise EdgeError(f"the journal has nothing of {UNIT}", "give the file that the log goes to: --log FILE")
    return done.stdout[-LOG_BYTES_MAX:].decode(errors="replace")


def _tail(file: Path) -> str:
    try:
        with file.open("rb") as opened:
            opened.seek(max(0, file.stat().st_size - LOG_BYTES_MAX))
            lines = opened.read(LOG_BYTES_MAX).decode(errors="replace").splitlines(keepends=True)
    except OSError as error:
        raise EdgeError(f"{file}: {error.strerror}", "give the file that the log goes to: --log FILE") from None
    return "".join(lines[-LOG_LINES:])


def _memory() -> dict[str, int]:
    """Bytes; nothing where the kernel does not tell."""
    try:
        lines = Path("/proc/meminfo").read_text().splitlines()
    except OSError:
        return {}
    said = {name: rest.split() for name, _, rest in (line.partition(":") for line in lines)}
    return {name: int(said[name][0]) * 1024 for name in ("MemTotal", "MemAvailable", "SwapFree") if name in said}


def _disk(folder: Path) -> dict[str, Any]:
    """Of the folder, and of the files in it: names and sizes, no content."""
    while not folder.exists() and folder != folder.parent:
        folder = folder.parent
    room = shutil.disk_usage(folder)
    files = {path.name: path.lstat().st_size for path in sorted(folder.iterdir()) if path.is_file()}
    mode = oct(folder.stat().st_mode & 0o777)
    return {"folder": str(folder), "mode": mode, "total_bytes": room.total, "free_bytes": room.free, "files": files}
