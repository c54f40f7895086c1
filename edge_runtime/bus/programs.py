"""The brokers that this machine could start."""

from __future__ import annotations

import importlib.util
import os
import shutil

from edge_runtime.ports import BrokerError

PLACES = f"{os.defpath}:/usr/sbin:/usr/local/sbin"
"""Beside PATH: an ordinary user's lacks the folders where a distribution puts a server."""


def mosquitto() -> str | None:
    return shutil.which("mosquitto") or shutil.which("mosquitto", path=PLACES)


def has_iotcore() -> bool:
    return importlib.util.find_spec("iotcore") is not None


def can_start(wanted: str) -> bool:
    """`wanted`: mosquitto, iotcore or auto."""
    return (wanted != "iotcore" and mosquitto() is not None) or (wanted != "mosquitto" and has_iotcore())


def missing(wanted: str) -> BrokerError:
    hints = {"mosquitto": "apt-get install mosquitto", "iotcore": "pip install 'edge-runtime[broker]'"}
    names = list(hints) if wanted == "auto" else [wanted]
    return BrokerError(f"no broker to start: {' and '.join(names)} not found", " or ".join(hints[name] for name in names))
