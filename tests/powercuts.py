"""Cuts the power at each step of something that writes files through edge_runtime.trust.files.

steps = every_cut(monkeypatch, lambda: authority.revoke("press-1", "stolen"), look)
"""

from __future__ import annotations

import os
from collections.abc import Callable
from pathlib import Path

import pytest

from edge_runtime.trust import files

STEPS_MAX = 200


class PowerCut(BaseException):
    """Nothing after it happens; no `except` of ours catches it."""


def cut_at(monkeypatch: pytest.MonkeyPatch, step: int) -> None:
    """The power fails at the step-th thing that is done to the disk."""
    left = [step]

    def counted(function: Callable[..., object]) -> Callable[..., object]:
        def call(*arguments: object, **named: object) -> object:
            left[0] -= 1
            if left[0] < 0:
                raise PowerCut
            return function(*arguments, **named)

        return call

    for name in ("fsync", "open"):
        monkeypatch.setattr(files.os, name, counted(getattr(os, name)))
    for name in ("replace", "rename", "mkdir", "unlink"):
        monkeypatch.setattr(Path, name, counted(getattr(Path, name)))


def every_cut(monkeypatch: pytest.MonkeyPatch, change: Callable[[], object], look: Callable[[], object]) -> int:
    """Cuts the power at each step of `change`, and looks at what is on the disk each time. Returns the number of steps."""
    for step in range(STEPS_MAX):
        with monkeypatch.context() as patch:
            cut_at(patch, step)
            try:
                change()
            except PowerCut:
                pass
            else:
                return step
        look()
    raise AssertionError("it never ends")
