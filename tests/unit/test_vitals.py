"""What is read of /sys, over copied trees of real kinds of machines."""

from __future__ import annotations

import os
from pathlib import Path
from typing import Any

import pytest
from hypothesis import HealthCheck, given, settings
from hypothesis import strategies as st

from edge_runtime.board.vitals import SystemVitals


def zone(kind: str, temperature: Any, *trips: tuple[str, int]) -> dict[str, Any]:
    """The files of a thermal zone; millidegrees, as the kernel says them."""
    points = {f"trip_point_{n}_type": trip[0] for n, trip in enumerate(trips)}
    return {"type": kind, "temp": temperature, **points, **{f"trip_point_{n}_temp": str(c) for n, (_, c) in enumerate(trips)}}


LAPTOP = {
    "class/thermal/thermal_zone0": zone("acpitz", "27800", ("critical", 119_000)),
    "class/thermal/thermal_zone1": zone("x86_pkg_temp", "56000", ("passive", -274_000), ("passive", 0)),
    "class/thermal/thermal_zone2": zone("iwlwifi_1", "38000"),
    "class/power_supply/AC": {"type": "Mains", "online": "1"},
    "class/power_supply/BAT0": {"type": "Battery", "present": "1", "status": "Full", "capacity": "100"},
    "class/power_supply/hidpp_battery_0": {"type": "Battery", "scope": "Device", "present": "1", "status": "Discharging"},
    "class/power_supply/ucsi-source-psy-USBC000:001": {"type": "USB", "online": "0"},
}
JETSON = {
    "class/thermal/thermal_zone0": zone("cpu-thermal", "48312", ("active", 46_000), ("passive", 99_000), ("critical", 104_500)),
    "class/thermal/thermal_zone1": zone("gpu-thermal", IsADirectoryError),  # switched off: it cannot be read
    "class/thermal/thermal_zone2": zone("PMIC-Die", "100000"),
    "class/thermal/thermal_zone3": zone("tj-thermal", "49125", ("hot", 97_000)),
}
PI = {"class/thermal/thermal_zone0": zone("cpu-thermal", "61835", ("critical", 110_000))}


def tree(root: Path, folders: dict[str, dict[str, Any]]) -> Path:
    for folder, files in folders.items():
        (root / folder).mkdir(parents=True, exist_ok=True)
        for name, text in files.items():
            if isinstance(text, str):
                (root / folder / name).write_text(f"{text}\n")
            else:
                (root / folder / name).mkdir()
    return root


def put(root: Path, file: str, text: str) -> None:
    (root / "class" / file).write_text(f"{text}\n")


def test_a_laptop(tmp_path: Path) -> None:
    vitals = SystemVitals(tmp_path, tree(tmp_path, LAPTOP))
    now = vitals.read()
    assert (now.temperature_c, now.hot, now.battery) == (56.0, False, False)
    room = os.statvfs(tmp_path)
    assert now.disk_free_bytes == pytest.approx(room.f_bavail * room.f_frsize, rel=0.1)
    put(tmp_path, "thermal/thermal_zone1/temp", "80000")
    assert vitals.read().hot, "no trip point is set: the documented limit"


def test_a_laptop_without_its_plug_is_on_battery_and_a_mouse_is_no_laptop(tmp_path: Path) -> None:
    vitals = SystemVitals(tmp_path, tree(tmp_path, LAPTOP))
    assert not vitals.read().battery
    put(tmp_path, "power_supply/AC/online", "0")
    assert vitals.read().battery
    put(tmp_path, "power_supply/BAT0/status", "Discharging")
    assert vitals.read().battery
    put(tmp_path, "power_supply/ucsi-source-psy-USBC000:001/online", "1")
    assert not vitals.read().battery
    put(tmp_path, "power_supply/ucsi-source-psy-USBC000:001/online", "0")
    put(tmp_path, "power_supply/BAT0/present", "0")
    assert not vitals.read().battery, "there is none in it, so it runs on something else"


def test_a_battery_that_says_nothing_of_a_charger(tmp_path: Path) -> None:
    vitals = SystemVitals(tmp_path, tree(tmp_path, {"class/power_supply/ups": {"type": "Battery", "status": "Charging"}}))
    assert not vitals.read().battery
    put(tmp_path, "power_supply/ups/status", "Discharging")
    assert vitals.read().battery


def test_a_jetson(tmp_path: Path) -> None:
    vitals = SystemVitals(tmp_path, tree(tmp_path, JETSON))
    now = vitals.read()
    assert (now.temperature_c, now.hot, now.battery) == (49.125, False, False)
    put(tmp_path, "thermal/thermal_zone0/temp", "98999")
    assert not vitals.read().hot, "a fan's trip point is no heat, and 99 degrees are this board's limit"
    put(tmp_path, "thermal/thermal_zone3/temp", "97000")
    assert vitals.read().hot


def test_a_raspberry_pi_is_hot_at_80_and_cool_again_below_75(tmp_path: Path) -> None:
    vitals = SystemVitals(tmp_path, tree(tmp_path, PI))
    seen = []
    for degrees in (61.8, 79.9, 80.0, 76.0, 75.1, 74.9, 79.0):
        put(tmp_path, "thermal/thermal_zone0/temp", str(round(degrees * 1000)))
        seen.append(vitals.read().hot)
    assert seen == [False, False, True, True, True, False, False]


def test_a_low_critical_point_counts(tmp_path: Path) -> None:
    folders = {"class/thermal/thermal_zone0": zone("soc", "66000", ("critical", 75_000))}
    assert SystemVitals(tmp_path, tree(tmp_path, folders)).read().hot


def test_nothing_there(tmp_path: Path) -> None:
    now = SystemVitals(tmp_path / "no disk", tmp_path / "no sys").read()
    assert (now.temperature_c, now.hot, now.battery, now.disk_free_bytes) == (None, False, False, None)


def test_this_machine(tmp_path: Path) -> None:
    now = SystemVitals(tmp_path).read()
    assert now.disk_free_bytes is not None
    assert now.temperature_c is None or -50 < now.temperature_c < 150


@settings(max_examples=60, deadline=None, suppress_health_check=[HealthCheck.function_scoped_fixture])
@given(
    texts=st.lists(
        st.binary(max_size=20) | st.sampled_from([b"passive", b"99999999999999999999", b"-1", b""]), min_size=8, max_size=8
    )
)
def test_garbage_is_not_known(tmp_path: Path, texts: list[bytes]) -> None:
    tree(tmp_path, {"class/thermal/thermal_zone0": {}, "class/power_supply/x": {}})
    heat, supply = tmp_path / "class/thermal/thermal_zone0", tmp_path / "class/power_supply/x"
    files = [heat / each for each in ("temp", "type", "trip_point_0_type", "trip_point_0_temp")]
    files += [supply / each for each in ("type", "online", "present", "status")]
    for file, text in zip(files, texts, strict=True):
        file.write_bytes(text)
    SystemVitals(tmp_path, tmp_path).read()
