"""Programs that are told another time of day, by libfaketime.

subprocess.run([...], env=os.environ | told("@1970-01-01 00:01:00"))     # from then on; without "@" the clock stands
"""

from __future__ import annotations

from pathlib import Path

import pytest

PLACES = ("usr/lib/*/faketime/libfaketime.so.1", "usr/lib/faketime/libfaketime.so.1")
SHARED = Path("/dev/shm")


def told(when: str) -> dict[str, str]:
    """For the environment of a program. Skips the test where there is no libfaketime."""
    library = next((path for place in PLACES for path in Path("/").glob(place)), None)
    if library is None:
        pytest.skip("MISSING SYSTEM PACKAGE: faketime (apt-get install faketime)")
    _sweep()
    return {"LD_PRELOAD": str(library), "FAKETIME": when, "FAKETIME_DONT_FAKE_MONOTONIC": "1", "TZ": "UTC"}


def _sweep() -> None:
    """What killed processes left: libfaketime names it by their number, and one that has that number again does not start."""
    for each in SHARED.glob("*faketime_s*_*"):
        number = each.name.rpartition("_")[2]
        if number.isdigit() and not Path(f"/proc/{number}").exists():
            each.unlink(missing_ok=True)
