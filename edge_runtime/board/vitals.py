"""The one place that reads the machine's temperatures, power supplies and disk (/sys, statvfs). It never raises: what cannot be
read is not known.

Reading takes from tens of microseconds to some milliseconds (a driver may ask its chip): call it every READ_S on a worker.

Traps of real boards that the rules below come from: zones of parts that are switched off answer EAGAIN; trip points that nobody
set stand at 0 or -274 degrees; the zone of a Jetson's power chip (PMIC-Die) says 100 degrees for ever; a wireless mouse is a
battery, too; a Raspberry Pi throttles at 80 degrees, and its only trip point is the critical one at 110.
"""

from __future__ import annotations

import os
from pathlib import Path

from edge_runtime.ports_mesh import Vitals

READ_S = 10.0
"""Machines do not become hot, or lose mains, more often than that matters."""

HOT_C = 80.0
"""Where a zone has no trip point at which the kernel slows the machine down: hot from here, or CRITICAL_MARGIN_C below the
critical one if that is lower."""
CRITICAL_MARGIN_C = 10.0
COOL_C = 5.0
"""So far below its limit a zone that was hot is not any more."""

TRIP_C_MIN = 40.0
TEMPERATURE_C_MIN, TEMPERATURE_C_MAX = -50.0, 150.0
"""Beyond them it is not a temperature."""

ENTRIES_MAX = 128
"""Zones, trip points, supplies that are looked at."""

_CONSTANT = ("pmic-die",)


class SystemVitals:
    """`folder`: on the disk whose room is told. `root`: of /sys."""

    def __init__(self, folder: Path, root: Path = Path("/sys")) -> None:
        self._folder, self._root = folder, root
        self._hot: frozenset[str] = frozenset()

    def read(self) -> Vitals:
        zones = _temperatures(self._root / "class/thermal")
        self._hot = frozenset(name for name, (c, limit) in zones.items() if c >= limit - (COOL_C if name in self._hot else 0.0))
        return Vitals(
            temperature_c=max((temperature for temperature, _ in zones.values()), default=None),
            hot=bool(self._hot),
            battery=_on_battery(self._root / "class/power_supply"),
            disk_free_bytes=_free_bytes(self._folder),
        )


def _temperatures(folder: Path) -> dict[str, tuple[float, float]]:
    """Zone -> temperature, and from where on it is hot; of those that say something."""
    zones = {}
    for zone in _entries(folder, "thermal_zone*"):
        temperature = _degrees(zone / "temp")
        if temperature is None or not TEMPERATURE_C_MIN < temperature < TEMPERATURE_C_MAX:
            continue
        if _text(zone / "type").lower() not in _CONSTANT:
            zones[zone.name] = (temperature, _limit(zone))
    return zones


def _limit(zone: Path) -> float:
    """Where the kernel begins to slow the machine down; the lowest of `active` trip points only switches on a fan."""
    slows, critical = [], []
    for entry in _entries(zone, "trip_point_*_type"):
        temperature = _degrees(entry.with_name(entry.name.replace("_type", "_temp")))
        if temperature is None or not TRIP_C_MIN <= temperature < TEMPERATURE_C_MAX:
            continue
        kind = _text(entry)
        if kind in ("passive", "hot"):
            slows.append(temperature)
        elif kind == "critical":
            critical.append(temperature - CRITICAL_MARGIN_C)
    return min(slows) if slows else min([HOT_C, *critical])


def _on_battery(folder: Path) -> bool:
    """A battery of the machine itself gives the power: it says so, or a supply is there and all of them are off."""
    supplies = [entry for entry in _entries(folder, "*") if _text(entry / "scope") != "Device"]
    kinds = {entry: _text(entry / "type") for entry in supplies}
    outer = [_text(entry / "online") for entry, kind in kinds.items() if kind not in ("Battery", "UPS", "")]
    batteries = [entry for entry, kind in kinds.items() if kind in ("Battery", "UPS") and _text(entry / "present") != "0"]
    if "1" in outer or not batteries:
        return False
    return "0" in outer or any(_text(entry / "status") == "Discharging" for entry in batteries)


def _free_bytes(folder: Path) -> int | None:
    try:
        disk = os.statvfs(folder)
    except OSError:
        return None
    return disk.f_bavail * disk.f_frsize


def _entries(folder: Path, pattern: str) -> list[Path]:
    try:
        return sorted(folder.glob(pattern))[:ENTRIES_MAX]
    except OSError:
        return []


def _degrees(file: Path) -> float | None:
    try:
        return int(_text(file)) / 1_000
    except ValueError:
        return None


def _text(file: Path) -> str:
    """ "": it is not there, does not answer, or says nothing in UTF-8."""
    try:
        with file.open("rb") as opened:
            return opened.read(256).decode().strip()
    except (OSError, UnicodeDecodeError):
        return ""
