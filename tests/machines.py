"""A machine whose clock is moved under the programs that run on it, and whose kernel says whether something keeps it right.

machine = Machine(tmp_path)                                         # skips, loudly, where gcc is missing
with gateway(folder, settings, inside=machine.inside) as edge:      # and the broker that it hosts
    machine.set(in_days=400, synchronised=True)                     # now; the gateway asks every SYNC_CHECK_S
    machine.edge_runtime("site", "renew", ...)

A few lines of C stand in front of the C library's clock. libfaketime would do for the time of day; but under it a gateway stood
still for seconds when the clock jumped by years (0.9.10, in one run of six), and took half as much processor time again.
Monotonic clocks stay as they are: on a real machine nobody moves those.
"""

from __future__ import annotations

import shutil
import struct
import subprocess
import sys
import time
from pathlib import Path

import pytest

from edge_runtime.board import system

DAY_S = 86_400
_KERNEL = r"""
#define _GNU_SOURCE
#include <fcntl.h>
#include <stdlib.h>
#include <sys/mman.h>
#include <sys/syscall.h>
#include <sys/time.h>
#include <sys/timex.h>
#include <time.h>
#include <unistd.h>

static volatile const struct { long long ahead_s, synchronised; } *told;

__attribute__((constructor)) static void begin(void) {
    int file = open(getenv("MACHINE"), O_RDONLY);
    void *found = mmap(NULL, sizeof *told, PROT_READ, MAP_SHARED, file, 0);
    if (file < 0 || found == MAP_FAILED) abort();
    close(file);
    told = found;
}

int clock_gettime(clockid_t which, struct timespec *now) {
    int result = syscall(SYS_clock_gettime, which, now);
    if (!result && told && (which == CLOCK_REALTIME || which == CLOCK_REALTIME_COARSE)) now->tv_sec += told->ahead_s;
    return result;
}

int gettimeofday(struct timeval *restrict now, void *restrict zone) {
    struct timespec found;
    (void)zone;
    clock_gettime(CLOCK_REALTIME, &found);
    now->tv_sec = found.tv_sec;
    now->tv_usec = found.tv_nsec / 1000;
    return 0;
}

time_t time(time_t *now) {
    struct timespec found;
    clock_gettime(CLOCK_REALTIME, &found);
    if (now) *now = found.tv_sec;
    return found.tv_sec;
}

int adjtimex(struct timex *found) {
    found->status = told && told->synchronised ? 0 : STA_UNSYNC;
    return found->status ? TIME_ERROR : TIME_OK;
}
"""


class Machine:
    def __init__(self, folder: Path) -> None:
        if shutil.which("gcc") is None:
            pytest.skip("MISSING SYSTEM PACKAGE: gcc (apt-get install gcc libc6-dev)")
        if system._TIMESYNCD.exists():
            pytest.skip("systemd-timesyncd keeps the clock of this machine right: no test can take that back")
        self._told, kernel = folder / "machine", folder / "kernel.so"
        kernel.with_suffix(".c").write_text(_KERNEL)
        subprocess.run(["gcc", "-O1", "-shared", "-fPIC", "-o", kernel, kernel.with_suffix(".c")], check=True)
        self._told.write_bytes(struct.pack("qq", 0, 1))
        self.inside = ["env", f"MACHINE={self._told}", f"LD_PRELOAD={kernel}"]
        """A command that runs another one on this machine."""

    def set(self, *, in_days: float, synchronised: bool) -> None:
        """The clock, so far from now."""
        with self._told.open("r+b") as file:  # never shorter: it is in the memory of who runs here
            file.write(struct.pack("qq", int(in_days * DAY_S), synchronised))

    def set_to_1970(self, *, synchronised: bool) -> None:
        self.set(in_days=60 / DAY_S - time.time() / DAY_S, synchronised=synchronised)

    def edge_runtime(self, *words: str | Path) -> subprocess.CompletedProcess[str]:
        command = [*self.inside, sys.executable, "-m", "edge_runtime", *map(str, words)]
        return subprocess.run(command, capture_output=True, text=True, timeout=60, check=False)
